"""The generated world: what is seen and heard agree, seeds decide everything, the two domains share nothing."""

import numpy as np
import pytest
import torch

from mmaudio.features.mel import build_mel
from mmaudio.media.audio import audio_window, read_audio
from mmaudio.media.frame_windows import Grid, read_windows
from mmaudio.media.mux import write_video
from mmaudio.media.video import probe
from mmaudio.metrics.onsets import matches, onsets
from mmaudio.model.spec import CODECS
from mmaudio.synthetic.canvas import SHAPES, draw
from mmaudio.synthetic.demo import CASTS, demo_videos, is_made, write_demo_video
from mmaudio.synthetic.domains import BASE, DEMO
from mmaudio.synthetic.motion import BORDER, Glide, Hop
from mmaudio.synthetic.renderer import render, sound_of
from mmaudio.synthetic.scenes import actor_of, event_times, random_scene, stage

CODEC = CODECS["tiny_16k"]


def scene_of(domain, motion, seed, seconds=8.0):
    generator = np.random.default_rng(seed)
    actor = actor_of(domain.of(motion)[seed % len(domain.of(motion))], 1.0, seconds, generator)
    return stage(domain, [actor], seconds, generator), generator


@pytest.mark.parametrize("domain", [BASE, DEMO], ids=lambda domain: domain.name)
@pytest.mark.parametrize("motion", ["strike", "switch"])
def test_every_event_is_heard_when_it_happens(domain, motion):
    found = events = heard = 0
    offsets = []
    for seed in range(6):
        scene, generator = scene_of(domain, motion, seed)
        waveform = torch.from_numpy(sound_of(scene, CODEC.rate, generator))
        times = onsets(build_mel("tiny_16k")(waveform[None]), CODEC)[0]
        inside = [event.time for event in scene.events if 0.1 < event.time < 7.9]
        found, events, heard = found + matches(times, inside, 0.05), events + len(inside), heard + len(times)
        offsets += [min((time - event for time in times), key=abs) for event in inside]
    assert found >= 0.85 * events
    assert found >= 0.85 * heard
    assert abs(np.median(offsets)) < 0.012


def test_a_hop_touches_its_wall_when_it_lands():
    hop = Hop(landings=(0.7, 1.2, 3.0), wall=0, place=0.5, sway=0.0, radius=0.1)
    landed = hop.pose(np.asarray(hop.landings))
    assert np.allclose(landed.y, 1 - BORDER - 0.1)
    between = hop.pose(np.asarray([0.95, 2.7]))
    assert (between.y < landed.y[0] - 0.1).all()
    assert hop.events[2].strength > hop.events[1].strength


def test_a_glide_turns_round_when_it_is_heard():
    glide = Glide(start=(0.5, 0.4), velocity=(0.37, -0.21), radius=0.1, seconds=8.0)
    assert len(glide.events) >= 5
    for event in glide.events:
        pose = glide.pose(np.asarray([event.time]))
        walls = [pose.x[0], pose.y[0], 1 - pose.x[0], 1 - pose.y[0]]
        assert min(walls) == pytest.approx(BORDER + 0.1, abs=1e-9)


def test_what_spins_is_loudest_upright():
    scene, _ = scene_of(BASE, "spin", 1)
    times = np.linspace(0, 8, 400)
    motion = scene.actors[0].motion
    loudness, upright = motion.loudness(times), np.abs(np.cos(motion.pose(times).angle))
    assert np.corrcoef(loudness, upright)[0, 1] > 0.95


def test_the_seed_decides_everything():
    def made(seed):
        generator = np.random.default_rng(seed)
        return render(random_scene(BASE, 2.0, generator), 25, 64, 16_000, generator)

    first, again, other = made(3), made(3), made(4)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.waveform, again.waveform)
    assert (first.caption, first.events) == (again.caption, again.events)
    assert not np.array_equal(first.frames, other.frames)


def test_the_domains_share_no_shape_no_colour_and_no_sound():
    for what in ("shape", "colour_name", "colour", "timbre"):
        base, demo = ({getattr(kind, what) for kind in domain.kinds} for domain in (BASE, DEMO))
        assert not base & demo, what
    nearest = min(np.abs(np.subtract(a.colour, b.colour)).max() for a in BASE.kinds for b in DEMO.kinds)
    assert nearest > 0.15


def test_every_shape_is_drawn_where_it_is():
    assert {kind.shape for domain in (BASE, DEMO) for kind in domain.kinds} == set(SHAPES)
    for domain in (BASE, DEMO):
        for kind in domain.kinds[::7]:
            generator = np.random.default_rng(1)
            scene = stage(domain, [actor_of(kind, 1.0, 4.0, generator)], 4.0, generator)
            pose = scene.actors[0].motion.pose(np.asarray([2.0]))
            with_it = draw(scene, np.asarray([2.0]), 64)[0].astype(int)
            without = draw(stage(domain, [], 4.0, generator), np.asarray([2.0]), 64)[0]
            assert with_it.shape == without.shape == (64, 64, 3)
            empty = type(scene)((), scene.top, scene.bottom, scene.wall, 4.0)
            changed = np.abs(with_it - draw(empty, np.asarray([2.0]), 64)[0]).sum(-1) > 12
            rows, columns = np.nonzero(changed)
            assert len(rows) > 15, kind.name
            assert abs(columns.mean() / 64 - pose.x[0]) < 0.06
            assert abs(rows.mean() / 64 - pose.y[0]) < 0.06


def test_events_leave_silences():
    gaps = np.concatenate([np.diff(event_times(60.0, 0.7, np.random.default_rng(seed))) for seed in range(5)])
    assert (gaps > 0).all()
    assert (gaps > 1.5).mean() > 0.1
    assert (gaps < 0.9).mean() > 0.3


def test_captions_name_what_is_heard():
    generator = np.random.default_rng(0)
    kinds = [BASE.kinds[10], BASE.of("switch")[1]]
    scene = stage(BASE, [actor_of(kind, 1.0, 8.0, generator) for kind in kinds], 8.0, generator)
    assert scene.caption == "a red box bouncing and an orange lamp switching"


def test_files_keep_sound_and_picture_together(tmp_path):
    scene, generator = scene_of(BASE, "switch", 2, seconds=6.0)
    rendered = render(scene, 30, 64, 48_000, generator)
    write_video(tmp_path / "clip.mp4", rendered.frames, 30, rendered.waveform, 48_000)
    info = probe(tmp_path / "clip.mp4")
    waveform, rate = read_audio(tmp_path / "clip.mp4", info)
    kept = waveform[: len(rendered.waveform)].numpy()
    shifts = range(-40, 41)
    fit = [np.dot(np.roll(rendered.waveform, shift)[1000:-1000], kept[1000:-1000]) for shift in shifts]
    assert (rate, shifts[int(np.argmax(fit))]) == (48_000, 0)
    assert len(audio_window(waveform, rate, 1.0, rate)) == rate
    window = next(read_windows(info, [0.0], [Grid(25, 140, lambda frames: frames)]))
    picture = torch.stack(window.frames[0]).float()
    switched = (picture[1:] - picture[:-1]).abs().amax((1, 2, 3)) > 60
    seen = (np.flatnonzero(switched.numpy()) + 1) / 25
    inside = [event.time for event in scene.events if event.time < 5.5]
    assert matches(seen, inside, 0.08) == len(inside) == len(seen)


def test_demo_videos_cover_every_kind_several_times(tmp_path):
    for count in (8, 16):
        counts = np.bincount([kind for number in range(count) for kind in CASTS[number % len(CASTS)]])
        assert len(counts) == len(DEMO.kinds)
        assert counts.min() >= 2
    video = demo_videos(tmp_path, 16, 9.0, 3)[7]
    assert not is_made(video)
    write_demo_video(video)
    assert is_made(video)
    first = video.path.read_bytes()
    write_demo_video(video)
    assert video.path.read_bytes() == first
    assert video.path.with_suffix(".txt").read_text() == "a pink lantern switching and a teal moon bouncing\n"
    video.path.write_bytes(first[: len(first) // 2])
    assert not is_made(video)
