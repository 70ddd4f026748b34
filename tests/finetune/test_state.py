"""The training state: random draws, EMA, and a state_dict that resumes."""

import io

import mini_training
import pytest
import torch
from helpers import mini

from mmaudio.errors import TrainingError
from mmaudio.finetune.draws import EpochSampler
from mmaudio.finetune.early_stopping import Evaluation
from mmaudio.finetune.state import new_state
from mmaudio.lora.adapter import LoRAConfig, Phase


def test_every_epoch_draws_every_clip_once():
    sampler = EpochSampler(5, torch.Generator().manual_seed(0))
    indices = torch.cat([sampler.take(3) for _ in range(5)]).tolist()
    epochs = [indices[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_may_be_larger_than_the_data():
    assert sorted(EpochSampler(2, torch.Generator().manual_seed(0)).take(6).tolist()) == [0, 0, 0, 1, 1, 1]


@pytest.mark.slow
def test_the_seed_determines_adapter_and_draws(tmp_path):
    def first(seed):
        state = new_state(mini(), mini_training.build_config(tmp_path, seed=seed), 5)
        return next(iter(state.trainable_parameters().values())).detach(), state.draws.draw(4, 0.5, 0.5)

    (a, draws_a), (b, draws_b), (c, draws_c) = first(1), first(1), first(2)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(draws_a.noise, draws_b.noise) and draws_a.dropout_seed == draws_b.dropout_seed
    assert not torch.equal(draws_a.noise, draws_c.noise) and not torch.equal(draws_a.noise, draws_a.eps)


def test_conditions_are_dropped_with_their_probabilities(tmp_path):
    draws = new_state(mini(), mini_training.build_config(tmp_path), 5).draws.draw(4000, 0.1, 0.3)
    both = draws.no_video & draws.no_text
    assert float(draws.no_video.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert float(draws.no_text.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert float(both.float().mean()) == pytest.approx(0.03, abs=0.015), "video and text are dropped independently"
    assert 0.45 < float(draws.t.median()) < 0.55 and float((draws.t < 0.2689).float().mean()) == pytest.approx(
        0.159, abs=0.02
    )


@pytest.mark.slow
def test_a_loaded_state_continues_alike(tmp_path):
    config = mini_training.build_config(tmp_path, ema_decay=0.9)
    state = new_state(mini(), config, 5)
    state.draws.draw(7, 0.1, 0.1)
    for weight in state.trainable_parameters().values():
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    state.optimizer.step()
    state.step = 3
    state.update_ema(0.9)
    state.history.add(Evaluation(2, [0.5, 0.25], [0.25, 0.5]), 0.0)
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    other = new_state(mini(), mini_training.build_config(tmp_path, ema_decay=0.9, seed=7), 5)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.step == 3 and other.history == state.history
    assert all(
        torch.equal(a, b)
        for a, b in zip(state.trainable_parameters().values(), other.trainable_parameters().values(), strict=True)
    )
    assert all(torch.equal(state.ema[name], other.ema[name]) for name in state.ema)
    for one, two in ((state.draws.draw(9, 0.1, 0.1), other.draws.draw(9, 0.1, 0.1)),):
        assert (
            torch.equal(one.index, two.index) and torch.equal(one.eps, two.eps) and one.dropout_seed == two.dropout_seed
        )


def test_another_adapters_state_is_refused(tmp_path):
    saved = new_state(mini(), mini_training.build_config(tmp_path), 5).state_dict()
    lora = LoRAConfig(rank=4, alpha=8.0, target_modules=["fused_blocks[*].ffn"])
    with pytest.raises(TrainingError, match="another adapter"):
        new_state(mini(), mini_training.build_config(tmp_path, lora=lora), 5).load_state_dict(saved)


def test_use_ema_swaps_the_parameters(tmp_path):
    state = new_state(mini(), mini_training.build_config(tmp_path, ema_decay=0.5), 5)
    name, weight = next(iter(state.trainable_parameters().items()))
    start = weight.detach().clone()
    weight.data += 1.0
    state.step = 100
    state.update_ema(0.5)
    with state.use_ema():
        assert torch.allclose(state.trainable_parameters()[name], start + 0.5)
        assert torch.equal(state.ema[name], state.trainable_parameters()[name])
    assert torch.equal(state.trainable_parameters()[name], start + 1.0)
    with state.use_ema(False):
        assert torch.equal(state.trainable_parameters()[name], start + 1.0)


def test_draws_can_be_undone(tmp_path):
    state = new_state(mini(), mini_training.build_config(tmp_path), 5)
    state.draws.draw(3, 0.1, 0.1)
    undo = state.draws.undo_point()
    first = state.draws.draw(9, 0.1, 0.1)
    undo()
    second = state.draws.draw(9, 0.1, 0.1)
    assert torch.equal(first.index, second.index) and torch.equal(first.noise, second.noise)
    assert first.dropout_seed == second.dropout_seed


def same_draws(one, other):
    return one.dropout_seed == other.dropout_seed and all(map(torch.equal, one.tensors(), other.tensors()))


@pytest.mark.slow
@pytest.mark.parametrize("between", ["nothing", "save", "undo", "other", "grow"])
def test_prefetched_draws_equal_later_ones(tmp_path, between):
    """Whatever comes between: a save, a step that is undone, another number of clips, a rank that grows."""
    lora = LoRAConfig(rank=2, alpha=4.0, dropout=0.0, phases=[Phase(2, 3), Phase(4, 3)])
    config = mini_training.build_config(tmp_path, lora=lora)
    draws = []
    for prefetch in (False, True):
        state = new_state(mini(), config, 5)
        state.draws.draw(4, 0.1, 0.1)
        if prefetch:
            state.draws.prefetch(4, 0.1, 0.1)
        if between == "save":
            saved, state = state.state_dict(), new_state(mini(), config, 5)
            state.load_state_dict(saved)
        elif between == "undo":
            undo = state.draws.undo_point()
            state.draws.draw(4, 0.1, 0.1)
            if prefetch:
                state.draws.prefetch(4, 0.1, 0.1)
            undo()
        elif between == "other":
            draws.append(state.draws.draw(3, 0.2, 0.1))
        elif between == "grow":
            state.enter_phase(1, state.draws.generator)
        draws += [state.draws.draw(4, 0.1, 0.1), state.draws.draw(4, 0.1, 0.1)]
    half = len(draws) // 2
    assert all(map(same_draws, draws[:half], draws[half:])) and not same_draws(draws[0], draws[1])
