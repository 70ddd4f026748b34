"""Solvers of the flow: dopri5 chooses its steps, keeps its tolerance and goes on from any of them."""

import importlib.util

import pytest
import torch

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.generation import solver
from mmaudio.generation.generate import GenerationRequest, generate_samples
from mmaudio.generation.part_store import PartStore
from mmaudio.generation.sampler import compute_mel
from mmaudio.generation.solver import ADAPTIVE, TOLERANCE, check_method, solve


def swing(x, t):
    """A velocity that is hard at the beginning; x0 exp(sin(20 t^2) / 2) solves it."""
    return 20 * t * torch.cos(20 * t * t) * x


EXACT = torch.tensor(20.0).sin().div(2).exp()


def test_dopri5_keeps_its_tolerance_and_counts_what_it_takes():
    x0, times, shown = torch.ones(2, 3, 4), [], []

    def velocity(x, t):
        times.append(float(t))
        return swing(x, t)

    x, counts = solve(velocity, x0, ADAPTIVE, 0, lambda steps: (shown.append(s) or s for s in steps))
    assert (x - EXACT).abs().max() < 20 * TOLERANCE
    assert counts.evaluations == len(times) >= 6 * counts.steps > 0
    assert max(times) <= 1, "the network knows no later time"
    assert shown == list(range(100))
    euler, fixed = solve(swing, x0, "euler", counts.evaluations)
    assert (fixed.steps, fixed.evaluations) == (counts.evaluations, counts.evaluations)
    assert (euler - EXACT).abs().max() > 5 * (x - EXACT).abs().max()


@pytest.mark.parametrize(("method", "evaluations"), [("euler", 5), ("midpoint", 10), ("heun", 10)])
def test_evaluations_of_fixed_steps_are_counted(method, evaluations):
    assert solve(swing, torch.ones(1, 1, 1), method, 5)[1] == solver.SolverCounts(5, evaluations)


@pytest.mark.parametrize("method", [ADAPTIVE, "heun"])
def test_a_solver_goes_on_from_any_of_its_steps(method):
    states = []
    whole, _ = solve(swing, torch.ones(1, 2, 3), method, 40, on_step=lambda *state: states.append(state))
    position, x = states[len(states) // 2]
    rest, counts = solve(swing, x, method, 40, position=position)
    torch.testing.assert_close(rest, whole, rtol=1e-4, atol=1e-4)
    assert 0 < counts.steps < len(states)


def test_a_difficult_sample_has_small_steps_beside_easy_ones():
    scale = torch.tensor([0.0, 0.0, 0.0, 1.0])[:, None, None]
    x, _ = solve(lambda x, t: scale * swing(x, t), torch.ones(4, 2, 2), ADAPTIVE, 0)
    assert (x[3] - EXACT).abs().max() < 20 * TOLERANCE


def test_a_smaller_tolerance_is_closer(monkeypatch):
    monkeypatch.setattr(solver, "TOLERANCE", TOLERANCE / 100)
    x, _ = solve(swing, torch.ones(1, 2, 2), ADAPTIVE, 0)
    assert (x - EXACT).abs().max() < TOLERANCE


def test_a_velocity_without_any_step_is_an_error():
    with pytest.raises(WeightsError, match="dopri5: no step on which the velocity is smooth"):
        solve(lambda x, t: x * torch.nan, torch.ones(1, 2, 3), ADAPTIVE, 0)


def test_dopri5_without_its_package_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(solver, "find_spec", lambda name: importlib.util.find_spec(f"{name}_that_is_absent"))
    with pytest.raises(ConfigError, match=r'method=dopri5 needs torchdiffeq.*pip install "mmaudio-lora\[solvers\]"'):
        GenerationRequest(None, "rain", method="dopri5")


def test_dopri5_takes_no_number_of_steps():
    with pytest.raises(ConfigError, match="steps=25: dopri5 chooses its steps"):
        check_method(25, ADAPTIVE)


@pytest.mark.slow
def test_dopri5_denoises_windows_together_and_goes_on(sampler, encoders, tmp_path, monkeypatch):
    monkeypatch.setattr(solver, "TOLERANCE", 0.1)  # fewer steps
    request = GenerationRequest(None, "rain", seconds=9, method=ADAPTIVE, guidance_scale=1)
    whole = generate_samples(sampler, encoders, request)
    assert sampler.solver_counts.evaluations >= 6 * sampler.solver_counts.steps > 0
    store = PartStore(tmp_path, "key")

    def stop_late(items, label):
        for item in items:
            if label == "solver, percent" and item == 30:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        generate_samples(sampler, encoders, request, progress=stop_late, store=store)
    assert store.get("latents")["position"].shape == (2,)
    resumed = generate_samples(sampler, encoders, request, store=store)
    mels = [compute_mel(waveform, sampler.spec) for waveform in (whole, resumed)]  # phases magnify rounding
    assert (mels[0] - mels[1]).abs().mean() < 5e-3
