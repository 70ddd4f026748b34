"""Recorded solver steps: the latents of plain ones, for every call of a sampler."""

import warnings

import pytest
import torch
from helpers import relative_error

from mmaudio.errors import TrainingError
from mmaudio.generation import recorded_velocity
from mmaudio.generation.recorded_velocity import MIN_STEPS, RecordedVelocity, record_velocity
from mmaudio.generation.sampler import load_sampler
from mmaudio.generation.solver import METHODS, solve
from mmaudio.utils.graph_capture import WARM_UP_CALLS

CPU = torch.device("cpu")
NOISE = torch.linspace(-2, 2, 12).view(2, 3, 2)


def curved(latent, t):
    return latent * torch.cos(3 * t) + t


class RecomputedGraph:
    """What a CUDA graph does for its user, on a CPU: it writes the result of the recorded inputs' values anew."""

    def __init__(self, function):
        self.function, self.result = function, torch.full_like(function(), torch.nan)
        self.replays = 0

    def replay(self):
        self.replays += 1
        self.result.copy_(self.function())


class Capture:
    """`GraphCapture` on a CPU."""

    def __init__(self, error=None):
        self.error, self.warm_ups, self.graph = error, 0, None

    def warm_up(self, function):
        self.warm_ups += 1
        function()

    def capture(self, function, alternative):
        if self.error:
            raise self.error
        self.graph = RecomputedGraph(function)
        return self.graph, self.graph.result


@pytest.mark.parametrize("method", METHODS)
def test_the_latents_are_those_of_plain_steps(method):
    if method == "dopri5":
        pytest.importorskip("torchdiffeq")
    expected, counts = solve(curved, NOISE, method, 10)
    capture = Capture()
    latents, _ = solve(RecordedVelocity(curved, capture), NOISE, method, 10)
    assert torch.equal(latents, expected)
    assert (capture.warm_ups, capture.graph.replays) == (WARM_UP_CALLS, counts.evaluations - WARM_UP_CALLS)


@pytest.mark.parametrize("error", [TrainingError("no kernel for it"), torch.OutOfMemoryError("no memory")])
def test_where_recording_fails_the_steps_are_plain_and_one_warning_says_so(error):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        latents, _ = solve(RecordedVelocity(curved, Capture(error)), NOISE, "euler", 25)
    assert torch.equal(latents, solve(curved, NOISE, "euler", 25)[0])
    assert [str(warning.message) for warning in caught] == [f"sampling goes on without recorded steps: {error}"]


def test_only_a_gpu_and_a_solver_of_some_steps_are_worth_it(monkeypatch):
    monkeypatch.setattr(recorded_velocity, "GraphCapture", lambda device: Capture())
    cuda = torch.device("cuda")
    assert record_velocity(curved, CPU, "euler", 100) is curved
    assert record_velocity(curved, cuda, "euler", MIN_STEPS - 1) is curved
    for method, num_steps in (("euler", MIN_STEPS), ("dopri5", 0)):
        assert isinstance(record_velocity(curved, cuda, method, num_steps), RecordedVelocity)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_a_sampler_replays_steps_with_every_clips_own_conditions(monkeypatch, dtype, tolerance):
    sampler = load_sampler("tiny_16k", device="cuda", dtype=dtype)
    text = sampler.network.empty_text(1)

    def sample(seed):
        generator = torch.Generator().manual_seed(seed)
        lengths, spec = sampler.network.lengths, sampler.spec
        clip = torch.randn(1, lengths.clip_tokens, spec.clip.image_dim, generator=generator)
        sync = torch.randn(1, lengths.sync_tokens, sampler.network.spec.sync_dim, generator=generator)
        return sampler.sample_latents(clip, sync, text, sampler.draw_noise([seed]))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded = [sample(seed) for seed in (0, 1)]
    monkeypatch.setattr("mmaudio.generation.sampler.record_velocity", lambda velocity, *rest: velocity)
    for latents, seed in zip(recorded, (0, 1), strict=True):
        assert relative_error(latents, sample(seed)) < tolerance
