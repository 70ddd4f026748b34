"""The synthetic world: frames and audio agree, the seed determines everything, the two domains share nothing."""

import numpy as np
import pytest
import torch

from mmaudio.features.mel import build_mel
from mmaudio.media.audio import cut_audio_window, read_audio
from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.mux import write_video
from mmaudio.media.video import probe
from mmaudio.metrics.onsets import count_matches, onset_times
from mmaudio.model.spec import CODECS
from mmaudio.synthetic.canvas import SHAPES, draw_frames
from mmaudio.synthetic.demo import CASTS, is_complete, plan_demo_videos, write_demo_video
from mmaudio.synthetic.domains import BASE, CHIMES, DEMO
from mmaudio.synthetic.motion import WALL_THICKNESS, Glide, Hop
from mmaudio.synthetic.renderer import render_audio, render_scene
from mmaudio.synthetic.scenes import build_scene, random_actor, random_event_times, random_scene

CODEC = CODECS["tiny_16k"]


def scene_of(domain, motion, seed, seconds=8.0):
    generator = np.random.default_rng(seed)
    actor = random_actor(
        domain.kinds_with_motion(motion)[seed % len(domain.kinds_with_motion(motion))], 1.0, seconds, generator
    )
    return build_scene(domain, [actor], seconds, generator), generator


@pytest.mark.parametrize("domain", [BASE, DEMO, CHIMES], ids=lambda domain: domain.name)
@pytest.mark.parametrize("motion", ["strike", "switch"])
def test_every_event_has_an_onset_at_its_time(domain, motion):
    matched = num_events = num_onsets = 0
    offsets = []
    for seed in range(6):
        scene, generator = scene_of(domain, motion, seed)
        waveform = torch.from_numpy(render_audio(scene, CODEC.sample_rate, generator))
        times = onset_times(build_mel("tiny_16k")(waveform[None]), CODEC)[0]
        inside = [event.time for event in scene.events if 0.1 < event.time < 7.9]
        matched += count_matches(times, inside, 0.05)
        num_events, num_onsets = num_events + len(inside), num_onsets + len(times)
        offsets += [min((time - event for time in times), key=abs) for event in inside]
    assert matched >= 0.85 * num_events
    assert matched >= 0.85 * num_onsets
    assert abs(np.median(offsets)) < 0.012


def test_a_hop_touches_its_wall_when_it_lands():
    hop = Hop(landings=(0.7, 1.2, 3.0), wall=0, wall_position=0.5, sway=0.0, radius=0.1)
    landed = hop.pose(np.asarray(hop.landings))
    assert np.allclose(landed.y, 1 - WALL_THICKNESS - 0.1)
    between = hop.pose(np.asarray([0.95, 2.7]))
    assert (between.y < landed.y[0] - 0.1).all()
    assert hop.events[2].amplitude > hop.events[1].amplitude


def test_a_glide_reverses_at_its_sound():
    glide = Glide(start_position=(0.5, 0.4), velocity=(0.37, -0.21), radius=0.1, seconds=8.0)
    assert len(glide.events) >= 5
    for event in glide.events:
        pose = glide.pose(np.asarray([event.time]))
        walls = [pose.x[0], pose.y[0], 1 - pose.x[0], 1 - pose.y[0]]
        assert min(walls) == pytest.approx(WALL_THICKNESS + 0.1, abs=1e-9)


def test_a_spinning_shape_is_loudest_upright():
    scene, _ = scene_of(BASE, "spin", 1)
    times = np.linspace(0, 8, 400)
    motion = scene.actors[0].motion
    loudness, upright = motion.loudness(times), np.abs(np.cos(motion.pose(times).angle))
    assert np.corrcoef(loudness, upright)[0, 1] > 0.95


def test_the_seed_determines_everything():
    def render(seed):
        generator = np.random.default_rng(seed)
        return render_scene(random_scene(BASE, 2.0, generator), 25, 64, 16_000, generator)

    first, again, other = render(3), render(3), render(4)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.waveform, again.waveform)
    assert (first.caption, first.event_times) == (again.caption, again.event_times)
    assert not np.array_equal(first.frames, other.frames)


def test_the_domains_share_no_shape_no_colour_and_no_sound():
    for field in ("shape", "colour_name", "colour", "timbre"):
        base, demo = ({getattr(kind, field) for kind in domain.kinds} for domain in (BASE, DEMO))
        assert not base & demo, field
    nearest = min(np.abs(np.subtract(a.colour, b.colour)).max() for a in BASE.kinds for b in DEMO.kinds)
    assert nearest > 0.15


def test_chimes_have_the_motion_of_the_demo_and_no_colour_or_sound_of_another_domain():
    assert [kind.motion_type for kind in CHIMES.kinds] == [kind.motion_type for kind in DEMO.kinds]
    others = BASE.kinds + DEMO.kinds
    assert not {kind.timbre for kind in CHIMES.kinds} & {kind.timbre for kind in others}
    assert min(np.abs(np.subtract(a.colour, b.colour)).max() for a in CHIMES.kinds for b in others) > 0.15


def test_every_shape_is_drawn_at_its_position():
    assert {kind.shape for domain in (BASE, DEMO) for kind in domain.kinds} == set(SHAPES)
    for domain in (BASE, DEMO):
        for kind in domain.kinds[::7]:
            generator = np.random.default_rng(1)
            scene = build_scene(domain, [random_actor(kind, 1.0, 4.0, generator)], 4.0, generator)
            pose = scene.actors[0].motion.pose(np.asarray([2.0]))
            with_it = draw_frames(scene, np.asarray([2.0]), 64)[0].astype(int)
            without = draw_frames(build_scene(domain, [], 4.0, generator), np.asarray([2.0]), 64)[0]
            assert with_it.shape == without.shape == (64, 64, 3)
            empty = type(scene)((), scene.top, scene.bottom, scene.wall, 4.0)
            changed = np.abs(with_it - draw_frames(empty, np.asarray([2.0]), 64)[0]).sum(-1) > 12
            rows, columns = np.nonzero(changed)
            assert len(rows) > 15, kind.name
            assert abs(columns.mean() / 64 - pose.x[0]) < 0.06
            assert abs(rows.mean() / 64 - pose.y[0]) < 0.06


def test_events_leave_silences():
    gaps = np.concatenate([np.diff(random_event_times(60.0, 0.7, np.random.default_rng(seed))) for seed in range(5)])
    assert (gaps > 0).all()
    assert (gaps > 1.5).mean() > 0.1
    assert (gaps < 0.9).mean() > 0.3


def test_captions_name_the_sounds():
    generator = np.random.default_rng(0)
    kinds = [BASE.kinds[10], BASE.kinds_with_motion("switch")[1]]
    scene = build_scene(BASE, [random_actor(kind, 1.0, 8.0, generator) for kind in kinds], 8.0, generator)
    assert scene.caption == "a red box bouncing and an orange lamp switching"


@pytest.mark.slow
def test_files_keep_audio_and_video_in_sync(tmp_path):
    scene, generator = scene_of(BASE, "switch", 2, seconds=6.0)
    rendered = render_scene(scene, 30, 64, 48_000, generator)
    write_video(tmp_path / "clip.mp4", rendered.frames, 30, rendered.waveform, 48_000)
    info = probe(tmp_path / "clip.mp4")
    waveform, rate = read_audio(tmp_path / "clip.mp4", info)
    decoded = waveform[: len(rendered.waveform)].numpy()
    shifts = range(-40, 41)
    fit = [np.dot(np.roll(rendered.waveform, shift)[1000:-1000], decoded[1000:-1000]) for shift in shifts]
    assert (rate, shifts[int(np.argmax(fit))]) == (48_000, 0)
    assert len(cut_audio_window(waveform, rate, 1.0, rate)) == rate
    window = next(read_frame_windows(info, [0.0], [FrameGrid(25, 140, lambda frames: frames)]))
    picture = torch.stack(window.frames[0]).float()
    switched = (picture[1:] - picture[:-1]).abs().amax((1, 2, 3)) > 60
    switch_times = (np.flatnonzero(switched.numpy()) + 1) / 25
    inside = [event.time for event in scene.events if event.time < 5.5]
    assert count_matches(switch_times, inside, 0.08) == len(inside) == len(switch_times)


@pytest.mark.slow
def test_demo_videos_cover_every_kind_several_times(tmp_path):
    for count in (8, 16):
        counts = np.bincount([kind for number in range(count) for kind in CASTS[number % len(CASTS)]])
        assert len(counts) == len(DEMO.kinds)
        assert counts.min() >= 2
    video = plan_demo_videos(tmp_path, 16, 9.0, 3)[7]
    assert not is_complete(video)
    write_demo_video(video)
    assert is_complete(video)
    first = video.path.read_bytes()
    write_demo_video(video)
    assert video.path.read_bytes() == first
    assert video.path.with_suffix(".txt").read_text() == "a pink lantern switching and a teal moon bouncing\n"
    video.path.write_bytes(first[: len(first) // 2])
    assert not is_complete(video)
