"""Audio of any length: windows, their joins, and going on after an interruption."""

import dataclasses

import pytest
import torch

from mmaudio.errors import ConfigError
from mmaudio.features.bigvgan import BigVGAN
from mmaudio.features.encoders import encode_video
from mmaudio.features.griffin_lim import GriffinLim
from mmaudio.generation.conditions import VisualInput, encode_windows, window_names
from mmaudio.generation.generate import GenerationRequest, find_clip_range, generate_samples
from mmaudio.generation.long_audio import PieceDecoder
from mmaudio.generation.part_store import PartStore
from mmaudio.generation.prompt_table import TimedPrompt
from mmaudio.generation.windows import OVERLAP_SECONDS, plan_rows, plan_windows
from mmaudio.model.spec import CODECS, compute_lengths


@pytest.mark.parametrize("codec", ["16k", "44k"])
@pytest.mark.parametrize("seconds", [8.04, 9, 14, 14.04, 20.5, 60, 300])
def test_windows_cover_the_audio_and_their_weights_add_up_to_one(codec, seconds):
    grid = plan_windows(CODECS[codec], seconds)
    token_seconds = 2 * CODECS[codec].hop_length / CODECS[codec].sample_rate
    assert grid.starts[0] == 0 and grid.starts[-1] + grid.window_tokens == grid.num_tokens
    assert grid.num_tokens == compute_lengths(CODECS[codec], seconds).latent_tokens
    for start, time in zip(grid.starts, grid.start_times, strict=True):
        assert abs(start * token_seconds - time) <= token_seconds
    steps = [b - a for a, b in zip(grid.start_times, grid.start_times[1:], strict=False)]
    assert all(0 < step <= 8 - OVERLAP_SECONDS + 1 / 8 for step in steps)
    total = torch.zeros(grid.num_tokens)
    for start, weights in zip(grid.starts, grid.weights(), strict=True):
        total[start : start + grid.window_tokens] += weights
    torch.testing.assert_close(total, torch.ones(grid.num_tokens))


def test_a_weight_has_no_step_at_a_join():
    weights = plan_windows(CODECS["16k"], 60).weights()
    assert weights[1:-1].diff(dim=1).abs().max() < 0.03  # 62 tokens to rise


def test_prompts_share_the_windows_that_they_touch():
    codec = CODECS["16k"]
    grid = plan_windows(codec, 20)
    rows = plan_rows(grid, (TimedPrompt(0, 10, "rain"), TimedPrompt(10, 20, "wind")), codec)
    total = {prompt: torch.zeros(grid.num_tokens) for prompt in ("rain", "wind")}
    for row in rows:
        start = grid.starts[row.window]
        total[row.prompt][start : start + grid.window_tokens] += row.weights
    border = round(10 * codec.sample_rate / codec.hop_length / 2)
    is_rain = (torch.arange(grid.num_tokens) < border).float()
    torch.testing.assert_close(total["rain"], is_rain)
    torch.testing.assert_close(total["wind"], 1 - is_rain)


@pytest.mark.slow
def test_one_window_is_one_pass_bit_for_bit(base, sampler, encoders):
    for video, seconds in ((base / "long.mp4", 8.0), (base / "long.mp4", 3.0), (None, None)):
        request = GenerationRequest(video, "rain", seconds=seconds, num_steps=2)
        one_pass = dataclasses.replace(request, one_pass=True)
        assert torch.equal(*(generate_samples(sampler, encoders, r) for r in (request, one_pass)))


@pytest.mark.slow
def test_a_whole_video_gets_audio_from_windows_of_training_length(base, sampler, encoders):
    lengths = []
    hook = sampler.network.fused_blocks[0].register_forward_hook(lambda _m, _i, out: lengths.append(out.shape[1]))
    sampler.network.requires_grad_(True)  # as that of a model with an adapter
    waveform = generate_samples(sampler, encoders, GenerationRequest(base / "long.mp4", "rain", num_steps=1))[0]
    sampler.network.requires_grad_(False)
    hook.remove()
    assert set(lengths) == {compute_lengths(sampler.spec.codec).latent_tokens}
    assert len(waveform) == compute_lengths(sampler.spec.codec, 15).audio_samples
    assert waveform.isfinite().all() and waveform.std() > 0


@pytest.mark.slow
def test_windows_get_the_features_of_their_part_of_the_video(base, sampler, encoders):
    grid, store = plan_windows(sampler.spec.codec, 14), PartStore()
    visual = VisualInput(base / "long.mp4", 0.5)
    encode_windows(visual, grid, encoders, store, lambda items, label: items)
    for name, time in zip(window_names(visual, grid), grid.start_times, strict=True):
        clip_f, sync_f = encode_video(base / "long.mp4", encoders, 8.0, 0.5 + time)
        features = store.get(name)
        torch.testing.assert_close(features["clip_f"], clip_f)
        torch.testing.assert_close(features["sync_f"], sync_f)


class Stop(Exception):
    """Stands for a kill."""


def stop_at(label, count):
    """A progress function that stops before item `count` of `label`, and the items of all labels that it yielded."""
    items_seen = []

    def progress(items, name):
        for number, item in enumerate(items):
            if (name, number) == (label, count):
                raise Stop
            items_seen.append((name, item))
            yield item

    return progress, items_seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "count"), [("conditions, by window", 2), ("solver steps", 2), ("decoding, by piece", 1)]
)
def test_an_interrupted_generation_goes_on_where_it_was(tmp_path, base, sampler, encoders, label, count):
    request = GenerationRequest(base / "long.mp4", "rain", num_steps=4)
    whole_progress, all_items = stop_at("", 0)
    whole = generate_samples(sampler, encoders, request, progress=whole_progress)
    progress, before = stop_at(label, count)
    with pytest.raises(Stop):
        generate_samples(sampler, encoders, request, progress=progress, store=PartStore(tmp_path, "key"))
    progress, after = stop_at("", 0)
    resumed = generate_samples(sampler, encoders, request, progress=progress, store=PartStore(tmp_path, "key"))
    assert torch.equal(whole, resumed)
    parts = {"conditions, by window", "solver steps"}  # a piece that exists passes through the bar again
    repeated = {item for item in before if item in after and item[0] in parts}
    assert not repeated and {*before, *after} == set(all_items)


def test_parts_of_another_request_are_removed(tmp_path):
    PartStore(tmp_path / "parts", "a").put("latents", {"x": torch.ones(2)})
    store = PartStore(tmp_path / "parts", "b")
    assert "latents" not in store and not (tmp_path / "parts" / "a").exists()
    store.put("latents", {"x": torch.ones(2)})
    assert "latents" in PartStore(tmp_path / "parts", "b")
    store.clear()
    assert not (tmp_path / "parts").exists()


@pytest.mark.slow
def test_pieces_of_griffin_lim_are_those_of_the_whole(sampler):
    grid = plan_windows(sampler.spec.codec, 20)
    latents = torch.randn(grid.num_tokens, sampler.spec.network.latent_dim, generator=torch.Generator().manual_seed(0))
    decoder = PieceDecoder(sampler, grid, latents)
    assert isinstance(sampler.vocoder, GriffinLim)
    pieces = decoder.decode(PartStore(), "audio", lambda items, label: items)
    whole = sampler.vocoder(decoder.blend_mels(0, 2 * grid.num_tokens)[None])[0, 0]
    assert torch.equal(pieces, whole)


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["16k", "44k"])
def test_no_sample_depends_on_mel_frames_beyond_the_vocoders_context(codec):
    torch.manual_seed(0)
    vocoder = BigVGAN(dataclasses.replace(CODECS[codec], vocoder_width=128)).eval()
    mel = torch.randn(1, CODECS[codec].n_mels, 200)
    changed = mel.clone()
    changed[..., 100] += 5
    with torch.inference_mode():
        difference = (vocoder(mel) - vocoder(changed))[0, 0].reshape(200, -1).abs().amax(1).nonzero().flatten()
    assert 0 < (difference - 100).abs().max() <= vocoder.context_frames


def test_a_request_is_as_long_as_its_video_its_prompts_or_what_was_asked(base):
    video, prompts = base / "long.mp4", (TimedPrompt(0, 12, "rain"), TimedPrompt(12, 20, "wind"))
    assert find_clip_range(GenerationRequest(video)).seconds == 15
    assert find_clip_range(GenerationRequest(video, one_pass=True)).seconds == 8
    assert find_clip_range(GenerationRequest(video, seconds=9.5)).seconds == 9.5
    assert find_clip_range(GenerationRequest(None, prompts=prompts)).seconds == 20
    assert find_clip_range(GenerationRequest(None, "rain", seconds=300)).seconds == 300
    with pytest.raises(ConfigError, match="seconds=31: audio lasts 1 to 30 s in one pass"):
        GenerationRequest(video, one_pass=True, seconds=31)
