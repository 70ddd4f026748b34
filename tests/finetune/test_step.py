"""One step: the objective of the golden numbers, accumulation, checkpointing, schedules, non-finite values."""

import dataclasses

import mini_training
import pytest
import torch
from helpers import assert_close, filled, golden, mini, mini_inputs
from mini_adapters import adapted_mini
from mini_training import assert_same_gradients

from mmaudio.data.feature_set import Features, build_feature_set
from mmaudio.errors import ConfigError, TrainingError
from mmaudio.finetune import step
from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.draws import Draws
from mmaudio.finetune.precision import cast_frozen_weights, compute_dtype, seeded_dropout
from mmaudio.finetune.state import new_state
from mmaudio.lora.adapter import LoRAConfig

CPU = torch.device("cpu")


def golden_clips():
    """The golden training inputs as two clips, and their draws."""
    inputs = mini_inputs()
    mean, std, eps, noise = (filled(f"train/{name}", 2, 30, 8) for name in ("mean", "std", "eps", "x0"))
    features = Features(mean, 0.1 * std.abs(), inputs["clip_f"], inputs["sync_f"], inputs["text_f"])
    keep_all = torch.zeros(2, dtype=torch.bool)
    draws = Draws(torch.arange(2), eps, noise, filled("train/t", 2).sigmoid(), keep_all, keep_all, 0)
    return build_feature_set(features, mini_training.clip_rows(2), "tiny_16k"), draws


@pytest.mark.slow
def test_objective_and_gradients_are_the_golden_ones():
    network, model = adapted_mini()
    clips, draws = golden_clips()
    losses = step.compute_losses(network, build_dataset(network, clips, CPU), draws, torch.float32)
    losses.mean().backward()
    expected = golden("lora_mini_v1")
    assert_close(losses, expected["train.loss"])
    gradients = {
        name.replace(".default", ""): weight.grad for name, weight in model.named_parameters() if weight.requires_grad
    }
    compared = [key for key in expected if key.startswith("grad.")]
    assert compared
    for key in compared:
        assert_close(gradients[key.removeprefix("grad.")], expected[key])


@pytest.mark.parametrize("masks", [(True, False), (False, True), (True, True)])
def test_condition_dropout_after_projecting_equals_dropout_before(masks):
    network = mini()
    clips, _ = golden_clips()
    no_video, no_text = (torch.tensor([mask, False]) for mask in masks)
    projected = build_dataset(network.requires_grad_(False), clips, CPU)
    assert projected.projected is not None
    trainable = build_dataset(network.requires_grad_(True), clips, CPU)
    assert trainable.projected is None, "trained projections cannot be computed once"
    index = torch.tensor([1, 0])
    conditions = projected.conditions(network, index, no_video, no_text)
    expected = trainable.conditions(network, index, no_video, no_text)
    for one, other in zip(conditions.tensors(), expected.tensors(), strict=True):
        assert_close(one, other, 1e-5)


def after_one_step(tmp_path, distributed=Distributed(), **settings):  # noqa: B008 - frozen
    """The adapter's B matrices after a step without LoRA dropout."""
    lora = LoRAConfig(rank=4, alpha=8.0, dropout=0.0)
    config = mini_training.build_config(tmp_path, lora=lora, max_grad_norm=1e9, **settings)
    network = mini()
    state = new_state(network, config, 5)
    metrics = step.train_step(state, build_dataset(network, mini_training.mini_clips(5), CPU), config, distributed)
    return metrics, torch.cat([weight.detach().flatten() for weight in state.trainable_parameters().values()]), state


@pytest.mark.slow
def test_an_accumulated_step_equals_the_large_batchs(tmp_path):
    small, weights, _ = after_one_step(tmp_path, batch_size=1, gradient_accumulation_steps=4)
    large, expected, state = after_one_step(tmp_path, batch_size=4, gradient_accumulation_steps=1)
    assert small.loss == pytest.approx(large.loss, rel=1e-5)
    assert small.grad_norm == pytest.approx(large.grad_norm, rel=1e-4)
    moments = [state.optimizer.state[weight]["exp_avg"].flatten() for weight in state.trainable_parameters().values()]
    size = torch.cat(moments).abs()
    is_large = size > 1e-4 * size.max()  # Adam divides: in a gradient that is rounding alone, the rounding would show
    assert is_large.sum() > 1000
    assert torch.allclose(weights[is_large], expected[is_large], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"drop_conditions": 0.6},
        {"drop_conditions": 0.0, "drop_captions": 0.9},
        {"latent_noise": 0.5},
        {"early_times": 0.9},
    ],
    ids=str,
)
def test_a_step_applies_condition_dropout_latent_noise_and_early_times(tmp_path, settings):
    settings = {"early_times": 0.0} | settings
    plain_settings = {"drop_conditions": 0.0, "early_times": 0.0}
    metrics, plain = (after_one_step(tmp_path, **each)[0] for each in (settings, plain_settings))
    config, network = mini_training.build_config(tmp_path, **settings), mini()
    draw_arguments = (4, config.drop_conditions, config.caption_dropout_prob, config.early_times)
    draws = new_state(network, config, 5).draws.draw(*draw_arguments)
    clips = build_dataset(network, mini_training.mini_clips(5), CPU)
    expected = step.compute_losses(network, clips, draws, torch.float32, config.latent_noise).detach().mean()
    assert metrics.loss == pytest.approx(float(expected), rel=1e-5) and metrics.loss != pytest.approx(
        plain.loss, rel=1e-4
    )


@pytest.mark.slow
def test_a_step_applies_lora_dropout(tmp_path):
    norms = []
    for dropout in (0.0, 0.5):
        config, network = (
            mini_training.build_config(tmp_path, lora=LoRAConfig(rank=4, alpha=8.0, dropout=dropout)),
            mini(),
        )
        state = new_state(network, config, 5)
        state.model.eval()  # as an evaluation leaves it
        norms.append(
            step.train_step(
                state, build_dataset(network, mini_training.mini_clips(5), CPU), config, Distributed()
            ).grad_norm
        )
    assert norms[0] != pytest.approx(norms[1], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("known, dtype", [({"avx512_bf16": True}, torch.bfloat16), ({}, torch.float32)], ids=str)
def test_amp_is_bfloat16_where_the_cpu_has_instructions_for_it(tmp_path, monkeypatch, known, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert (compute_dtype(CPU, amp=True), compute_dtype(CPU, amp=False)) == (dtype, torch.float32)
    rounded = after_one_step(tmp_path, amp=True)[0].loss
    exact = after_one_step(tmp_path, amp=False)[0].loss
    assert rounded == pytest.approx(exact, rel=2e-2) and (rounded == exact) == (dtype == torch.float32)


def gradients(tmp_path, distributed=Distributed(), **settings):  # noqa: B008 - frozen
    """Every trained parameter's gradient at step 0, by name, LoRA dropout on; the B matrices away from zero."""
    config = mini_training.build_config(tmp_path, **settings)
    network = mini()
    state = new_state(network, config, 5)
    for name, weight in state.trainable_parameters().items():
        if "lora_B" in name:
            weight.data += 0.05 * filled(name, *weight.shape)
    draws = state.draws.draw(config.effective_batch_size, 0.3, 0.3)
    with seeded_dropout(5, CPU):
        for micro_draws in draws.split(config.batch_size):
            step.accumulate_gradients(
                state, build_dataset(network, mini_training.mini_clips(5), CPU), micro_draws, config
            )
    return {name: weight.grad for name, weight in state.trainable_parameters().items()}


@pytest.mark.slow
def test_accumulated_gradients_equal_the_large_batchs(tmp_path):
    lora = LoRAConfig(rank=4, alpha=8.0, dropout=0.0)  # one mask per pass: dropout differs between the two
    settings = [{"batch_size": size, "gradient_accumulation_steps": 4 // size, "lora": lora} for size in (4, 2, 1)]
    large, *smaller = [gradients(tmp_path, latent_noise=0.1, **each) for each in settings]
    for small in smaller:
        assert_same_gradients(small, large, 1e-4)


@pytest.mark.slow
def test_checkpointing_gives_the_same_gradients(tmp_path):
    plain, checkpointed = (gradients(tmp_path, gradient_checkpointing=value) for value in (False, True))
    assert_same_gradients(checkpointed, plain)


@pytest.mark.slow
def test_gradients_are_clipped_and_the_reported_norm_is_before_clipping(tmp_path):
    long, _, _ = after_one_step(tmp_path)
    config, network = mini_training.build_config(tmp_path, max_grad_norm=1e-3, lora=LoRAConfig(4, 8.0, 0.0)), mini()
    state = new_state(network, config, 5)
    clipped_gradients = []
    state.optimizer.register_step_pre_hook(
        lambda *_: clipped_gradients.extend(weight.grad for weight in state.trainable_parameters().values())
    )
    metrics = step.train_step(state, build_dataset(network, mini_training.mini_clips(5), CPU), config, Distributed())
    assert metrics.grad_norm == pytest.approx(long.grad_norm, rel=1e-5) and metrics.grad_norm > 1e-2
    assert float(torch.cat([value.flatten() for value in clipped_gradients]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_latent_noise_widens_the_posterior():
    clips, draws = golden_clips()
    network = mini()
    clips = build_dataset(network.requires_grad_(False), clips, CPU)
    eps = torch.randn(400, *draws.eps.shape[1:], generator=torch.Generator().manual_seed(0))
    many = dataclasses.replace(draws, index=torch.zeros(400, dtype=torch.int64), eps=eps)
    narrow, wide = (step.sample_latents(network, clips, many, extra).var(0) for extra in (0.0, 0.3))
    assert float((wide - narrow).mean()) == pytest.approx(0.09, rel=0.05)
    assert torch.equal(step.sample_latents(network, clips, draws), step.sample_latents(network, clips, draws, 0.0))


@pytest.mark.slow
def test_a_step_changes_only_the_adapter(tmp_path):
    base = {key: value.clone() for key, value in mini().state_dict().items()}
    _, _, state = after_one_step(tmp_path)
    base_after = {
        key.replace(".base_layer", ""): value for key, value in state.network.state_dict().items() if "lora" not in key
    }
    assert base_after.keys() == base.keys() and all(torch.equal(base_after[key], base[key]) for key in base)
    assert all(weight.abs().sum() > 0 for name, weight in state.trainable_parameters().items() if "lora_B" in name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_loss_stops_before_the_weights_change(tmp_path, bad):
    config, network = mini_training.build_config(tmp_path), mini()
    state = new_state(network, config, 5)
    before = {name: weight.detach().clone() for name, weight in state.trainable_parameters().items()}
    clips = mini_training.mini_clips(5)
    broken = dataclasses.replace(build_dataset(network, clips, CPU), mean=torch.full_like(clips.mean, bad))
    with pytest.raises(TrainingError, match=r"step 1: .*preset=stable"):
        step.train_step(state, broken, config, Distributed())
    assert state.step == 0 and not state.optimizer.state
    assert all(torch.equal(weight, before[name]) for name, weight in state.trainable_parameters().items())


@pytest.mark.slow
def test_a_non_finite_gradient_stops_before_the_weights_change(tmp_path):
    config, network = mini_training.build_config(tmp_path), mini()
    state, same = new_state(network, config, 5), new_state(mini(), config, 5)
    before = {name: weight.detach().clone() for name, weight in state.trainable_parameters().items()}
    name = next(name for name in before if "lora_B" in name)
    state.trainable_parameters()[name].register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(TrainingError, match=r"step 1: loss \d\S+, gradient norm (nan|inf);"):
        step.train_step(state, build_dataset(network, mini_training.mini_clips(5), CPU), config, Distributed())
    assert all(torch.equal(weight, before[name]) for name, weight in state.trainable_parameters().items())
    assert torch.equal(state.draws.draw(4, 0.1, 0.1).noise, same.draws.draw(4, 0.1, 0.1).noise), (
        "the step is draws again"
    )


def test_dropout_is_seeded_and_leaves_the_default_generator_alone():
    before = torch.get_rng_state()
    masks = []
    for seed in (1, 1, 2):
        with seeded_dropout(seed, CPU):
            masks.append(torch.nn.functional.dropout(torch.ones(64)))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert torch.equal(before, torch.get_rng_state())


def test_losses_are_grouped_by_flow_time():
    means = step.average_by_time(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 0.99]))
    assert means == {"0.00-0.25": 2.0, "0.75-1.00": 5.0}


@pytest.mark.slow
def test_a_bf16_base_computes_what_autocast_does(tmp_path):
    results = []
    for use_bf16 in (False, True):
        config, network = mini_training.build_config(tmp_path, lora=LoRAConfig(rank=4, alpha=8.0, dropout=0.0)), mini()
        state = new_state(network, config, 5)
        clips = build_dataset(network, mini_training.mini_clips(5), torch.device("cpu"))
        if use_bf16:
            cast_frozen_weights(network, config, torch.bfloat16)
            qkv = network.fused_blocks[0].attn.qkv
            assert qkv.base_layer.weight.dtype == network.audio_input_proj[0].weight.dtype == torch.bfloat16
            assert qkv.lora_A["default"].weight.dtype == network.text_cond_proj.weight.dtype == torch.float32
        draws = state.draws.draw(4, 0.0, 0.0)
        results.append(step.compute_losses(network, clips, draws, torch.bfloat16))
        results[-1].mean().backward()
        assert all(weight.grad.isfinite().all() for weight in state.trainable_parameters().values())
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("lora", "dtype"), [({"use_dora": True, "target_modules": ["qkv"]}, torch.bfloat16), ({}, torch.float32)]
)
def test_dora_and_float32_leave_the_base_as_it_is(tmp_path, lora, dtype):
    config, network = mini_training.build_config(tmp_path, lora=LoRAConfig(rank=4, **lora)), mini()
    new_state(network, config, 5)
    cast_frozen_weights(network, config, dtype)
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


def test_a_base_in_bf16_needs_bf16(tmp_path):
    with pytest.raises(ConfigError, match="base_bf16=true needs amp=true"):
        mini_training.train_mini(tmp_path, base_bf16=True, amp=False)
