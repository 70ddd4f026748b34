"""Mel to waveform: BigVGAN's golden numbers and key names; Griffin-Lim's timing."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, build_golden, fill, filled, golden, manifest
from torch import Tensor
from torchaudio.functional import griffinlim

from mmaudio.errors import WeightsError
from mmaudio.features.bigvgan import Activation, BigVGAN, compute_resampling_filter
from mmaudio.features.griffin_lim import GriffinLim
from mmaudio.features.mel import build_mel
from mmaudio.features.vocoder import build_vocoder
from mmaudio.model.spec import CODECS

MODES = ("16k", "44k")
TAPS = (0.002029, 0.009389, -0.025543, -0.057657, 0.128573, 0.443210)


def small(mode: str) -> BigVGAN:
    """The first two stages of a narrow vocoder, filled."""
    spec = CODECS[mode]
    rates, kernels = spec.upsample_rates[:2], spec.upsample_kernel_sizes[:2]
    vocoder = BigVGAN(dataclasses.replace(spec, vocoder_width=16, upsample_rates=rates, upsample_kernel_sizes=kernels))
    fill.fill_module(vocoder, skip=("filter",))
    return vocoder


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_keys_are_those_of_the_released_file(mode: str):
    with torch.device("meta"):
        vocoder = build_vocoder(mode)
    expected = {key: shape for key, (_, shape) in manifest(f"vocoder_{mode}").items()}
    assert {key: list(value.shape) for key, value in vocoder.state_dict().items()} == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "centre", "spread", "shape"),
    [
        ("16k", -1.6, 0.9, (1, 80, 24)),
        ("44k", -4.0, 2.0, (1, 128, 16)),
    ],
)
def test_outputs_match_the_golden_numbers(mode: str, centre: float, spread: float, shape: tuple[int, int, int]):
    vocoder = build_golden(lambda: build_vocoder(mode), filter=compute_resampling_filter())
    with torch.no_grad():
        waveform = vocoder(centre + spread * filled(f"input/vocoder_mel{mode}", *shape))
    assert_close(waveform, golden(f"vocoder_{mode}")["waveform"])


def test_resampling_filter():
    taps = compute_resampling_filter()[0, 0]
    assert taps[:6].tolist() == pytest.approx(TAPS, abs=1e-6)
    assert torch.allclose(taps, taps.flip(0))


@pytest.mark.parametrize("shape", [(1, 5, 1), (2, 3, 31), (1, 4, 32), (2, 700, 1000)], ids=str)
def test_filters_as_products_are_the_convolutions(shape: tuple[int, int, int]):
    activation, x = Activation(shape[1]), torch.randn(shape)
    activation.act.alpha.data, activation.act.beta.data = torch.randn(2, shape[1]) / 2
    for resampler, signal in ((activation.upsample, x), (activation.downsample.lowpass, x.repeat_interleave(2, 2))):
        resampler.filter = torch.randn(1, 1, 12)  # not symmetric
        assert_close(resampler.as_product(signal), resampler(signal), 1e-5)
        resampler.filter = compute_resampling_filter()
    with torch.inference_mode():
        got = activation(x)
    assert_close(got, activation(x), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_loading_folds_both_forms_of_weight_norm(mode: str):
    vocoder = small(mode)
    mel = filled("mel", 2, CODECS[mode].n_mels, 6)
    state = {key: value.clone() for key, value in vocoder.state_dict().items()}
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    former = {}
    for key, value in state.items():
        for present, old in names.items():
            key = key.replace(present, old)
        former[key] = value
    assert former.keys() != state.keys()
    with torch.no_grad():
        expected = vocoder(mel)
        assert expected.shape == (2, 1, 6 * math.prod(vocoder.spec.upsample_rates))
        for state_dict in (state, former):
            vocoder.load_released(state_dict)
            assert not any("parametrizations" in key for key in vocoder.state_dict())
            assert_close(vocoder(mel), expected, 1e-5)
        vocoder.load_released(vocoder.state_dict())
        assert_close(vocoder(mel), expected, 1e-5)


@pytest.mark.slow
def test_loading_names_what_does_not_fit():
    state = small("16k").state_dict()
    del state["conv_pre.bias"]
    with pytest.raises(WeightsError, match=r"1 missing \(conv_pre\.bias\)"):
        small("16k").load_released(state)
    with pytest.raises(WeightsError, match="another shape"):
        small("44k").load_released(small("16k").state_dict())


# Griffin-Lim

CLICKS = (0.004, 0.5, 0.62, 1.3, 1.45, 1.6, 2.21, 2.9)
"""Seconds; the first lies in the first mel frame."""
SAMPLE_RATE = 16_000


def bursts() -> Tensor:
    """3 s of short bursts over a faint noise, a whole number of mel frames: (1, samples)."""
    generator = torch.Generator().manual_seed(1)
    waveform = 2e-3 * torch.randn(188 * 256, generator=generator)
    for second in CLICKS:
        length = min(800, len(waveform) - int(second * SAMPLE_RATE))
        decay = torch.exp(-torch.arange(length) / 200)
        start = int(second * SAMPLE_RATE)
        waveform[start : start + length] += 0.5 * decay * torch.randn(length, generator=generator)
    return waveform.clamp(-1, 1)[None]


def find_onsets(waveform: Tensor, block: int = 80) -> list[float]:
    """Seconds at which the level in blocks of 5 ms reaches 0.15 after having been below 0.04."""
    blocks = waveform[: len(waveform) // block * block].reshape(-1, block)
    onsets: list[float] = []
    armed = True
    for k, level in enumerate(blocks.square().mean(1).sqrt().tolist()):
        if armed and level > 0.15:
            onsets.append(k * block / SAMPLE_RATE)
        armed = level < 0.04 or (armed and level <= 0.15)
    return onsets


@pytest.mark.slow
def test_griffin_lim_keeps_onsets_in_place():
    waveform = bursts()
    reconstructed = build_vocoder("tiny_16k")(build_mel("tiny_16k")(waveform))
    assert reconstructed.shape == (1, 1, waveform.shape[1])
    assert len(find_onsets(waveform[0])) == len(CLICKS)
    assert find_onsets(reconstructed[0, 0]) == pytest.approx(find_onsets(waveform[0]), abs=0.01)
    lags = torch.arange(-400, 401)
    a, b = (x.abs().reshape(-1) for x in (waveform, reconstructed))
    correlation = torch.stack([(a[400:-400] * b[400 + lag : len(b) - 400 + lag]).sum() for lag in lags.tolist()])
    assert abs(int(lags[correlation.argmax()])) <= 64


@pytest.mark.slow
def test_griffin_lim_reproduces_the_mel():
    to_mel = build_mel("tiny_16k")
    mel = to_mel(bursts())
    again = to_mel(build_vocoder("tiny_16k")(mel)[:, 0])
    assert float((again - mel).abs().mean()) < 0.08
    silence = build_vocoder("tiny_16k")(torch.full((1, 80, 40), -5.0))
    assert float(silence.abs().max()) < 1e-3


@pytest.mark.slow
def test_griffin_lim_is_that_of_torchaudio():
    """In float64: the iterations make the rounding of float32 audible."""
    vocoder, mel = GriffinLim(CODECS["tiny_16k"]).double(), build_mel("tiny_16k")(bursts()).double()
    magnitude = (vocoder.inverse_filterbank @ (mel * math.log(10)).exp()).clamp(min=0)
    padded = F.pad(magnitude, (1, 1), mode="replicate")
    settings = {"power": 1.0, "n_iter": 32, "momentum": 0.99, "length": None, "rand_init": False}
    expected = griffinlim(padded, vocoder.window, 1024, 256, 1024, **settings)[:, 128:-128]
    assert_close(vocoder.reconstruct(magnitude), expected, 1e-6)


@pytest.mark.slow
def test_griffin_lim_is_deterministic_and_batched():
    vocoder = build_vocoder("tiny_16k")
    mel = torch.cat([build_mel("tiny_16k")(bursts()), -2 + 0.3 * filled("mel", 1, 80, 188)])
    first = vocoder(mel)
    torch.manual_seed(123)
    assert torch.equal(vocoder(mel), first)
    assert_close(vocoder(mel[1:]), first[1:], 1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vocoder(mel), first)


def test_griffin_lim_has_no_weights():
    vocoder = build_vocoder("tiny_16k")
    assert isinstance(vocoder, GriffinLim)
    vocoder.load_released({})
    with pytest.raises(WeightsError, match=r"1 unexpected \(conv_pre"):
        vocoder.load_released({"conv_pre.bias": torch.zeros(1)})
