"""Forgetting on generic prompts: which prompts, an adapter that changes nothing, resuming, CLAP's similarity."""

from pathlib import Path

import pytest
from evaluation_inputs import write_random_adapter
from random_clap import write_random_clap
from random_model import MODEL, write_random_weights

from mmaudio.data.generic_captions import held_back_captions, training_captions
from mmaudio.evaluation import generic_prompts
from mmaudio.evaluation.config import EvaluationConfig, SamplingConfig
from mmaudio.evaluation.generic_prompts import (
    PromptSounds,
    choose_prompts,
    measure_prompts,
    plan_prompts,
    prompts_key,
    sample_prompts,
)
from mmaudio.generation.sampler import load_sampler
from mmaudio.lora.adapter import merge
from mmaudio.lora.stack import read_stack
from mmaudio.lora.strength import AS_TRAINED
from mmaudio.metrics.clap import ClapMetric
from mmaudio.metrics.metric_inputs import ADAPTED, BASE
from mmaudio.model.spec import model_spec
from mmaudio.weights.store import file_sha256

SECONDS = 2.0


def build_config(**settings):
    nowhere = Path("nowhere")
    sampling = SamplingConfig(num_steps=3)
    return EvaluationConfig(nowhere, nowhere, nowhere, nowhere, nowhere, **{"sampling": sampling} | settings)


def adapted_sampler(folder):
    """A sampler with random weights, and the same with a random adapter in its network."""
    write_random_weights(folder)
    write_random_adapter(folder / "adapter.pt", folder)
    base, adapted = load_sampler(MODEL, folder), load_sampler(MODEL, folder)
    stack = read_stack([(folder / "adapter.pt", AS_TRAINED)])
    sha256 = file_sha256(folder / "network.safetensors")
    adapted.network = merge(stack.attach(adapted.network, MODEL, sha256)).eval().requires_grad_(False)
    return base, adapted


@pytest.mark.parametrize("model", [MODEL, "small_16k"])
def test_prompts_are_spread_over_captions_that_no_training_sees(model):
    held_back = held_back_captions(model)
    for num_samples, count in ((1, 4), (60, 5), (100_000, len(held_back))):
        prompts = choose_prompts(model, num_samples)
        assert len(prompts) == len(set(prompts)) == count and not set(prompts) & set(training_captions(model))
        places = [held_back.index(prompt) for prompt in prompts]
        assert places[0] == 0 and max(b - a for a, b in zip(places, [*places[1:], len(held_back)], strict=True)) <= (
            -(-len(held_back) // count)
        )


def test_the_number_of_prompts_follows_what_is_sampled_anyway():
    few, reason = plan_prompts(build_config(), model_spec(MODEL), [24], 8.0)
    many, _ = plan_prompts(build_config(strengths=(0.5, 0.75, 1.25)), model_spec(MODEL), [24, 12], 8.0)
    assert (len(few.captions), len(many.captions), reason) == (4, 10, "")
    assert prompts_key(build_config(), model_spec(MODEL), few) != prompts_key(build_config(), model_spec(MODEL), many)


def test_without_the_encoder_of_texts_there_is_a_reason(tmp_path):
    prompts, reason = plan_prompts(build_config(weights=tmp_path), model_spec("small_16k"), [3], 8.0)
    assert prompts is None and reason.endswith("which encodes the prompts, is not at hand")
    assert prompts_key(build_config(), model_spec("small_16k"), None) is None


@pytest.mark.slow
def test_an_adapter_moves_sounds_and_the_base_itself_does_not(tmp_path, monkeypatch):
    base, adapted = adapted_sampler(tmp_path / "weights")
    config, calls = build_config(weights=tmp_path / "weights"), []

    def sample(sampler, features, sampling, label):
        calls.append((label, sampling.num_steps, sampling.samples))
        return original(sampler, features, sampling, label)

    original = generic_prompts.sample_latents
    monkeypatch.setattr(generic_prompts, "sample_latents", sample)
    write_random_clap(tmp_path / "clap")
    for name, network, moves in (("same", base, False), ("other", adapted, True)):
        for _ in range(2):  # the second time as after an interrupt
            prompts = PromptSounds(choose_prompts(MODEL, 36), SECONDS)
            for model, sampler in ((BASE, base), (ADAPTED, network)):
                sample_prompts(sampler, model, prompts, config, tmp_path / name)
        results = measure_prompts(network, prompts, [ClapMetric(tmp_path / "clap", network.device)])
        assert (results.mel.share > 0.1) == moves and (moves or results.mel.interval[1] < 1e-3)
        assert (results.loudness.distance > 1e-4) == moves
        assert results.mel.seed_distance > 0.1 and results.mel.prompts == 4 and prompts.elapsed > 0
        assert results.clap.clips == results.clap_movement.prompts == 4
        assert abs(results.clap.difference) <= results.clap_movement.distance + 1e-9
        assert "4 generic prompts moved " + ("" if moves else "0\u202f%") in results.sentence
        assert "similarity to the prompt (CLAP) went from" in results.sentence
    assert calls == 2 * [("base model, generic prompts", 1, 2), ("adapted model, generic prompts", 1, 1)]
    (tmp_path / "same" / "adapted-prompts.safetensors").write_bytes(b"damaged")
    sample_prompts(adapted, ADAPTED, prompts, config, tmp_path / "same")
    assert len(calls) == 5, "made anew"
    assert measure_prompts(base, prompts).clap is None
