"""One step: the objective of the golden numbers, accumulation, checkpointing, schedules, non-finite values."""

import dataclasses

import pytest
import small_world
import torch
from conftest import assert_close, filled, golden
from test_adapter import adapted
from test_networks import mini, mini_inputs

from mmaudio.data.feature_store import Features, feature_set
from mmaudio.errors import ConfigError, TrainingError
from mmaudio.finetune import step
from mmaudio.finetune.dataset import material
from mmaudio.finetune.distributed import Team
from mmaudio.finetune.precision import compute_dtype, seeded, settle_frozen
from mmaudio.finetune.state import Draws, new_state
from mmaudio.lora.adapter import LoRAConfig

CPU = torch.device("cpu")


def golden_clips():
    """The golden training inputs as two clips, and their draws."""
    inputs = mini_inputs()
    mean, std, eps, noise = (filled(f"train/{name}", 2, 30, 8) for name in ("mean", "std", "eps", "x0"))
    features = Features(mean, 0.1 * std.abs(), inputs["clip_f"], inputs["sync_f"], inputs["text_f"])
    kept = torch.zeros(2, dtype=torch.bool)
    draws = Draws(torch.arange(2), eps, noise, filled("train/t", 2).sigmoid(), kept, kept, 0)
    return feature_set(features, small_world.clip_rows(2), "tiny_16k"), draws


def test_objective_and_gradients_are_the_golden_ones():
    network, model = adapted()
    clips, draws = golden_clips()
    losses = step.losses(network, material(network, clips, CPU), draws, torch.float32)
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
def test_dropping_after_projecting_is_dropping_before(masks):
    network = mini()
    clips, _ = golden_clips()
    no_video, no_text = (torch.tensor([mask, False]) for mask in masks)
    once = material(network.requires_grad_(False), clips, CPU)
    assert once.projected is not None
    live = material(network.requires_grad_(True), clips, CPU)
    assert live.projected is None, "trained projections cannot be computed once"
    index = torch.tensor([1, 0])
    got = once.conditions(network, index, no_video, no_text)
    expected = live.conditions(network, index, no_video, no_text)
    for one, other in zip(got.tensors(), expected.tensors(), strict=True):
        assert_close(one, other, 1e-5)


def after_one_step(tmp_path, team=Team(), **settings):  # noqa: B008 - frozen
    """The adapter's B matrices after a step without LoRA dropout."""
    lora = LoRAConfig(rank=4, alpha=8.0, dropout=0.0)
    config = small_world.config(tmp_path, lora=lora, max_grad_norm=1e9, **settings)
    network = mini()
    state = new_state(network, config, 5)
    metrics = step.train_step(state, material(network, small_world.clips(5), CPU), config, team)
    return metrics, torch.cat([weight.detach().flatten() for weight in state.trained().values()]), state


def test_accumulation_is_the_large_batch(tmp_path):
    small, weights, _ = after_one_step(tmp_path, batch_size=1, gradient_accumulation_steps=4)
    large, expected, state = after_one_step(tmp_path, batch_size=4, gradient_accumulation_steps=1)
    assert small.loss == pytest.approx(large.loss, rel=1e-5)
    assert small.grad_norm == pytest.approx(large.grad_norm, rel=1e-4)
    moments = [state.optimizer.state[weight]["exp_avg"].flatten() for weight in state.trained().values()]
    size = torch.cat(moments).abs()
    told = size > 1e-4 * size.max()  # Adam divides: in a gradient that is rounding alone, the rounding would show
    assert told.sum() > 1000
    assert torch.allclose(weights[told], expected[told], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"drop_conditions": 0.6}, {"drop_conditions": 0.0, "drop_captions": 0.9}, {"latent_noise": 0.5}],
    ids=str,
)
def test_a_step_drops_and_adds_what_the_settings_say(tmp_path, settings):
    metrics, plain = (after_one_step(tmp_path, **each)[0] for each in (settings, {"drop_conditions": 0.0}))
    config, network = small_world.config(tmp_path, **settings), mini()
    drawn = new_state(network, config, 5).draw(4, config.drop_conditions, config.caption_dropout)
    clips = material(network, small_world.clips(5), CPU)
    expected = step.losses(network, clips, drawn, torch.float32, config.latent_noise).detach().mean()
    assert metrics.loss == pytest.approx(float(expected), rel=1e-5) and metrics.loss != pytest.approx(
        plain.loss, rel=1e-4
    )


def test_a_step_drops_inputs_of_the_adapter(tmp_path):
    norms = []
    for dropout in (0.0, 0.5):
        config, network = small_world.config(tmp_path, lora=LoRAConfig(rank=4, alpha=8.0, dropout=dropout)), mini()
        state = new_state(network, config, 5)
        state.model.eval()  # as an evaluation leaves it
        norms.append(step.train_step(state, material(network, small_world.clips(5), CPU), config, Team()).grad_norm)
    assert norms[0] != pytest.approx(norms[1], rel=1e-2)


@pytest.mark.parametrize("known, dtype", [({"avx512_bf16": True}, torch.bfloat16), ({}, torch.float32)], ids=str)
def test_amp_is_bfloat16_where_there_are_instructions_for_it(tmp_path, monkeypatch, known, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert (compute_dtype(CPU, amp=True), compute_dtype(CPU, amp=False)) == (dtype, torch.float32)
    found = after_one_step(tmp_path, amp=True)[0].loss
    exact = after_one_step(tmp_path, amp=False)[0].loss
    assert found == pytest.approx(exact, rel=2e-2) and (found == exact) == (dtype == torch.float32)


def gradients(tmp_path, team=Team(), **settings):  # noqa: B008 - frozen
    """Every trained parameter's gradient at step 0, by name, LoRA dropout on; the B matrices away from zero."""
    config = small_world.config(tmp_path, **settings)
    network = mini()
    state = new_state(network, config, 5)
    for name, weight in state.trained().items():
        if "lora_B" in name:
            weight.data += 0.05 * filled(name, *weight.shape)
    drawn = state.draw(config.effective_batch, 0.3, 0.3)
    with seeded(5, CPU):
        for rows in drawn.split(config.batch_size):
            step.batch_losses(state, material(network, small_world.clips(5), CPU), rows, config)
    return {name: weight.grad for name, weight in state.trained().items()}


def assert_same(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys() and all(value.abs().sum() > 0 for value in expected.values())
    for name, value in expected.items():
        assert_close(found[name], value, tolerance)


def test_accumulated_gradients_are_the_large_batchs(tmp_path):
    lora = LoRAConfig(rank=4, alpha=8.0, dropout=0.0)  # one mask per pass: dropout differs between the two
    settings = [{"batch_size": size, "gradient_accumulation_steps": 4 // size, "lora": lora} for size in (4, 2, 1)]
    large, *smaller = [gradients(tmp_path, preserve_base=0.5, latent_noise=0.1, **each) for each in settings]
    for found in smaller:
        assert_same(found, large, 1e-4)


def test_checkpointing_gives_the_same_gradients(tmp_path):
    plain, checkpointed = (gradients(tmp_path, gradient_checkpointing=value) for value in (False, True))
    assert_same(checkpointed, plain)


def test_gradients_are_shortened_but_reported_in_full(tmp_path):
    long, _, _ = after_one_step(tmp_path)
    config, network = small_world.config(tmp_path, max_grad_norm=1e-3, lora=LoRAConfig(4, 8.0, 0.0)), mini()
    state = new_state(network, config, 5)
    seen = []
    state.optimizer.register_step_pre_hook(lambda *_: seen.extend(weight.grad for weight in state.trained().values()))
    metrics = step.train_step(state, material(network, small_world.clips(5), CPU), config, Team())
    assert metrics.grad_norm == pytest.approx(long.grad_norm, rel=1e-5) and metrics.grad_norm > 1e-2
    assert float(torch.cat([value.flatten() for value in seen]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_latent_noise_widens_the_posterior():
    clips, draws = golden_clips()
    network = mini()
    clips = material(network.requires_grad_(False), clips, CPU)
    eps = torch.randn(400, *draws.eps.shape[1:], generator=torch.Generator().manual_seed(0))
    many = dataclasses.replace(draws, index=torch.zeros(400, dtype=torch.int64), eps=eps)
    narrow, wide = (step.latents(network, clips, many, extra).var(0) for extra in (0.0, 0.3))
    assert float((wide - narrow).mean()) == pytest.approx(0.09, rel=0.05)
    assert torch.equal(step.latents(network, clips, draws), step.latents(network, clips, draws, 0.0))


def trained_for(tmp_path, steps=8, **settings):
    config, network = small_world.config(tmp_path, max_steps=steps, warmup_steps=0, **settings), mini()
    state = new_state(network, config, 5)
    clips = material(network, small_world.clips(5), CPU)
    for _ in range(steps):
        last = step.train_step(state, clips, config, Team())
    drawn = state.draw(16, 0.0, 0.0)
    with torch.no_grad():
        return float(step.drift(state, clips, drawn, torch.float32).mean()), last.loss, state


def test_a_fresh_adapter_has_not_drifted(tmp_path):
    assert trained_for(tmp_path, steps=0 + 1, learning_rate=1e-12)[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("lora", [LoRAConfig(4, 8.0, 0.0, bias="all"), LoRAConfig(enabled=False)], ids=["bias", "all"])
def test_in_bfloat16_what_has_drifted_is_measured_against_the_base_too(tmp_path, lora):
    config = small_world.config(tmp_path, lora=lora)
    state = new_state(mini(), config, 5)
    for name, weight in state.trained().items():
        weight.data += 0.05 * filled(name, *weight.shape)
    clips, drawn = material(state.network, small_world.clips(5), CPU), state.draw(4, 0.0, 0.0)
    exact, found = (step.drift(state, clips, drawn, dtype).mean() for dtype in (torch.float32, torch.bfloat16))
    assert found.item() == pytest.approx(exact.item(), rel=5e-2)
    found.backward()
    assert all(weight.grad.any() for weight in state.trained().values() if weight.grad is not None)


@pytest.mark.slow
def test_preserving_the_base_keeps_the_unconditional_velocity(tmp_path):
    (free, loss, _), (kept, kept_loss, state) = trained_for(tmp_path), trained_for(tmp_path, preserve_base=10.0)
    assert 0 < kept < 0.5 * free, "the velocity without conditions stays nearer to the base model's"
    assert all(weight.requires_grad for weight in state.trained().values()) and kept_loss != loss


@pytest.mark.slow
def test_weight_decay_pulls_the_adapter_toward_nothing(tmp_path):
    norms = [
        sum(
            float(weight.detach().square().sum())
            for weight in trained_for(tmp_path, weight_decay=decay)[2].trained().values()
        )
        for decay in (0.0, 1.0)
    ]
    assert norms[1] < norms[0]


def test_a_step_changes_the_adapter_alone(tmp_path):
    base = {key: value.clone() for key, value in mini().state_dict().items()}
    _, _, state = after_one_step(tmp_path)
    kept = {
        key.replace(".base_layer", ""): value for key, value in state.network.state_dict().items() if "lora" not in key
    }
    assert kept.keys() == base.keys() and all(torch.equal(kept[key], base[key]) for key in base)
    assert all(weight.abs().sum() > 0 for name, weight in state.trained().items() if "lora_B" in name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_before_the_weights_change(tmp_path, bad):
    config, network = small_world.config(tmp_path), mini()
    state = new_state(network, config, 5)
    before = {name: weight.detach().clone() for name, weight in state.trained().items()}
    clips = small_world.clips(5)
    broken = dataclasses.replace(material(network, clips, CPU), mean=torch.full_like(clips.mean, bad))
    with pytest.raises(TrainingError, match=r"step 1: .*preset=stable"):
        step.train_step(state, broken, config, Team())
    assert state.step == 0 and not state.optimizer.state
    assert all(torch.equal(weight, before[name]) for name, weight in state.trained().items())


def test_a_gradient_that_is_not_finite_stops_as_a_loss_does(tmp_path):
    config, network = small_world.config(tmp_path), mini()
    state, same = new_state(network, config, 5), new_state(mini(), config, 5)
    before = {name: weight.detach().clone() for name, weight in state.trained().items()}
    name = next(name for name in before if "lora_B" in name)
    state.trained()[name].register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(TrainingError, match=r"step 1: loss \d\S+, gradient norm (nan|inf);"):
        step.train_step(state, material(network, small_world.clips(5), CPU), config, Team())
    assert all(torch.equal(weight, before[name]) for name, weight in state.trained().items())
    assert torch.equal(state.draw(4, 0.1, 0.1).noise, same.draw(4, 0.1, 0.1).noise), "the step is drawn again"


def test_dropout_is_seeded_and_leaves_the_default_generator_alone():
    before = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        with seeded(seed, CPU):
            drawn.append(torch.nn.functional.dropout(torch.ones(64)))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(before, torch.get_rng_state())


def test_loss_by_time():
    found = step.in_bins(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 0.99]))
    assert found == {"0.00-0.25": 2.0, "0.75-1.00": 5.0}


def test_a_base_in_bf16_computes_what_autocast_does(tmp_path):
    results = []
    for halved in (False, True):
        config, network = small_world.config(tmp_path, lora=LoRAConfig(rank=4, alpha=8.0, dropout=0.0)), mini()
        state = new_state(network, config, 5)
        clips = material(network, small_world.clips(5), torch.device("cpu"))
        if halved:
            settle_frozen(network, config, torch.bfloat16)
            qkv = network.fused_blocks[0].attn.qkv
            assert qkv.base_layer.weight.dtype == network.audio_input_proj[0].weight.dtype == torch.bfloat16
            assert qkv.lora_A["default"].weight.dtype == network.text_cond_proj.weight.dtype == torch.float32
        draws = state.draw(4, 0.0, 0.0)
        results.append(step.losses(network, clips, draws, torch.bfloat16))
        results[-1].mean().backward()
        assert all(weight.grad.isfinite().all() for weight in state.trained().values())
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("lora", "dtype"), [({"use_dora": True, "target_modules": ["qkv"]}, torch.bfloat16), ({}, torch.float32)]
)
def test_dora_and_float32_leave_the_base_as_it_is(tmp_path, lora, dtype):
    config, network = small_world.config(tmp_path, lora=LoRAConfig(rank=4, **lora)), mini()
    new_state(network, config, 5)
    settle_frozen(network, config, dtype)
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


def test_a_base_in_bf16_needs_bf16(tmp_path):
    with pytest.raises(ConfigError, match="base_bf16=true needs amp=true"):
        small_world.run(tmp_path, base_bf16=True, amp=False)
