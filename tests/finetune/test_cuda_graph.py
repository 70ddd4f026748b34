"""Gradient accumulation as CUDA graphs: the eager losses and gradients, in resumed runs too."""

import gc
import json

import mini_training
import pytest
import torch
from helpers import assert_close, filled, mini

from mmaudio.errors import TrainingError
from mmaudio.finetune import cuda_graph, trainer
from mmaudio.finetune.cuda_graph import GraphedAccumulator, build_accumulator
from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.diagnostics import count_flops_per_clip
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.memory_estimate import measure_activation_bytes
from mmaudio.finetune.precision import seeded_dropout
from mmaudio.finetune.state import new_state
from mmaudio.finetune.step import accumulate_gradients
from mmaudio.finetune.trainer import prepare_network
from mmaudio.lora.adapter import LoRAConfig, Phase
from mmaudio.lora.checkpoint import read_adapter

NO_DROPOUT = LoRAConfig(rank=4, alpha=8.0, dropout=0.0)


def prepare(folder, device="cuda", **settings):
    """A state on the device with B matrices away from zero, its clips and configuration."""
    config, network = mini_training.build_config(folder, **{"cuda_graph": True} | settings), mini().to(device)
    state = new_state(network, config, 5)
    for name, weight in state.trainable_parameters().items():
        if "lora_B" in name:
            weight.data += 0.05 * filled(name, *weight.shape).to(device)
    clips = build_dataset(network, mini_training.mini_clips(5), torch.device(device))
    prepare_network(state, config, torch.device(device))
    state.model.train()
    return state, clips, config


def test_on_a_cpu_gradients_are_accumulated_eagerly(tmp_path):
    _, clips, config = prepare(tmp_path, "cpu")
    assert build_accumulator(clips, config) is accumulate_gradients


@pytest.mark.slow
@pytest.mark.parametrize(
    "measure", [count_flops_per_clip, lambda *args: measure_activation_bytes(*args, 2)], ids=["flops", "memory"]
)
def test_no_graph_outlives_a_measuring_pass(tmp_path, measure):
    """What adds to a parameter's gradient stays on the stream of its creation, which no capture may touch."""
    state, clips, config = prepare(tmp_path, "cpu")
    nodes = list(gradient_nodes(state).values())
    for node in nodes:
        node.metadata["old"] = True
    measure(state, clips, config)
    del nodes, node
    gc.collect()
    assert [name for name, node in gradient_nodes(state).items() if "old" in node.metadata] == []


def gradient_nodes(state):
    """By parameter, what adds to its gradient: it lives as long as something that was computed from the parameter."""
    return {
        name: weight.expand_as(weight).grad_fn.next_functions[0][0]
        for name, weight in state.trainable_parameters().items()
    }


@pytest.mark.slow
def test_tensors_that_a_graph_reads_keep_their_addresses(tmp_path, monkeypatch):
    """A replay reads the addresses of the capture: no evaluation, EMA or save may move a tensor."""
    addresses = []

    def accumulate(state, clips, draws, config):
        tensors = [*state.model.named_parameters(), *state.model.named_buffers()]
        tensors += enumerate(
            [clips.mean, clips.std, clips.empty_caption_mask, *clips.projected.tensors(), *clips.empty.tensors()]
        )
        addresses.append({name: tensor.data_ptr() for name, tensor in tensors})
        with state.without_adapter():  # as samples of the base model do
            pass
        return accumulate_gradients(state, clips, draws, config)

    monkeypatch.setattr(trainer, "build_accumulator", lambda *_: accumulate)
    settings = mini_training.build_config(tmp_path, ema_decay=0.5, save_every=1, eval_every=1)
    settings.validation.average_every = 1
    mini_training.train_mini(tmp_path, **vars(settings) | {"output_dir": str(tmp_path)})
    assert len(addresses) == settings.max_steps and all(each == addresses[0] for each in addresses)


@pytest.mark.slow
def test_no_graph_of_an_earlier_pass_is_alive_when_a_batch_begins(tmp_path, monkeypatch):
    """From the new state on, through the memory estimate, evaluations and steps: a capture may begin anywhere."""
    old_nodes = []

    def mark(state):
        for node in gradient_nodes(state).values():
            node.metadata["old"] = True

    def new_marked_state(*args):
        state = new_state(*args)
        mark(state)
        return state

    def accumulate(state, clips, draws, config):
        gc.collect()
        old_nodes.append([name for name, node in gradient_nodes(state).items() if "old" in node.metadata])
        losses = accumulate_gradients(state, clips, draws, config)
        mark(state)
        return losses

    monkeypatch.setattr(trainer, "new_state", new_marked_state)
    monkeypatch.setattr(trainer, "build_accumulator", lambda *_: accumulate)
    mini_training.train_mini(tmp_path)
    assert old_nodes == [[]] * 6


class EagerReplay:
    """Stand-in for a graph on a CPU: an eager pass over static inputs, into the gradient tensors of its capture."""

    def __init__(self, state, clips, draws, config, gradients):
        self.state, self.draws = state, draws.map(torch.clone)
        self.accumulate = lambda: accumulate_gradients(state, clips, self.draws, config)
        self.gradients = {
            w: gradients.setdefault(w, torch.zeros_like(w)) for w in state.trainable_parameters().values()
        }

    def replay(self, draws):
        for static_input, tensor in zip(self.draws.tensors(), draws.tensors(), strict=True):
            static_input.copy_(tensor)
        assert self.gradients.keys() == set(self.state.trainable_parameters().values()), (
            "a graph trains the weights it was captured with"
        )
        assert all(weight.grad is gradient for weight, gradient in self.gradients.items())
        losses = self.accumulate()
        assert all(weight.grad is gradient for weight, gradient in self.gradients.items())
        return losses


@pytest.mark.slow
@pytest.mark.parametrize("phases", [[], [Phase(2, 3), Phase(4, 6)]], ids=["one rank", "a rank that grows"])
def test_runs_of_replays_equal_eager_runs_bit_for_bit(tmp_path, monkeypatch, phases):
    """Gradients that are added up, evaluations and new ranks, without the graph itself."""
    lora = LoRAConfig(rank=2, alpha=4.0, dropout=0.1, phases=phases)
    settings = {"lora": lora, "batch_size": 3, "gradient_accumulation_steps": 2}
    plain = mini_training.train_mini(tmp_path / "plain", **settings)
    monkeypatch.setattr(cuda_graph, "_MicroBatchGraph", EagerReplay)
    monkeypatch.setattr(trainer, "build_accumulator", lambda *_: GraphedAccumulator())
    replayed = mini_training.train_mini(tmp_path / "replayed", **settings)
    first, second = (
        read_adapter(each.folder / "lora_checkpoints" / "last_lora.pt").state for each in (plain, replayed)
    )
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def add_gradients_and_fail(state, clips, draws, config, gradients):
    """A recording that fails after its warm-up has changed the gradients, as on a GPU whose driver refuses it."""
    accumulate_gradients(state, clips, draws, config)
    raise TrainingError("capturing the CUDA graph failed (operation not permitted)")


@pytest.mark.slow
def test_where_recording_fails_training_says_so_once_and_goes_on_without(tmp_path, monkeypatch):
    lines, settings = [], {"batch_size": 3, "gradient_accumulation_steps": 2}
    plain = mini_training.train_mini(tmp_path / "plain", **settings)
    monkeypatch.setattr(cuda_graph, "_MicroBatchGraph", add_gradients_and_fail)
    monkeypatch.setattr(trainer, "build_accumulator", lambda *_: GraphedAccumulator(lines.append))
    eager = mini_training.train_mini(tmp_path / "eager", **settings)
    first, second = (read_adapter(each.folder / "lora_checkpoints" / "last_lora.pt").state for each in (plain, eager))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert len(lines) == 1 and "not recorded" in lines[0] and "operation not permitted" in lines[0]


def test_recording_that_is_demanded_fails_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_graph, "_MicroBatchGraph", add_gradients_and_fail)
    state, clips, config = prepare(tmp_path, "cpu")
    with pytest.raises(TrainingError, match="operation not permitted"):
        GraphedAccumulator()(state, clips, state.draws.draw(2, 0.0, 0.0), config)
    assert all(weight.grad is None for weight in state.trainable_parameters().values())


@pytest.mark.gpu
def test_batches_are_recorded_by_default(tmp_path):
    _, clips, config = prepare(tmp_path, lora=NO_DROPOUT, cuda_graph=None)
    assert isinstance(build_accumulator(clips, config), GraphedAccumulator)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{"cuda_graph": False}, {"gradient_checkpointing": True}], ids=str)
def test_passes_that_vary_are_not_captured(tmp_path, settings):
    _, clips, config = prepare(tmp_path, lora=NO_DROPOUT, **settings)
    assert build_accumulator(clips, config) is accumulate_gradients


def accumulate_batches(folder, accumulate, seeds, sizes, **settings):
    """Losses and gradients of batches of these sizes, all added up."""
    state, clips, config = prepare(folder, **settings)
    accumulate = accumulate or build_accumulator(clips, config)
    losses = []
    for size, seed in zip(sizes, seeds, strict=True):
        draws = state.draws.draw(size, 0.3, 0.3).to(torch.device("cuda"))
        with seeded_dropout(seed, torch.device("cuda")):
            losses.append(accumulate(state, clips, draws, config))
    return losses, {name: weight.grad.clone() for name, weight in state.trainable_parameters().items()}, accumulate


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # the compiler emits warnings of its own
@pytest.mark.parametrize("settings", [{}, {"compile": True}, {"amp": True}], ids=str)
def test_losses_and_accumulated_gradients_equal_the_eager_ones(tmp_path, settings):
    tolerance = 2e-2 if settings.get("amp") else 1e-3  # TF32 and bf16 products, in another order where compiled
    sizes, seeds = ([4, 4], [1, 2]) if "compile" in settings else ([4, 4, 3, 4], [1, 2, 3, 4])
    plain, expected, _ = accumulate_batches(
        tmp_path, accumulate_gradients, seeds, sizes, lora=NO_DROPOUT, amp=settings.get("amp", False)
    )
    losses, gradients, accumulate = accumulate_batches(tmp_path, None, seeds, sizes, lora=NO_DROPOUT, **settings)
    assert isinstance(accumulate, GraphedAccumulator)
    for loss, expected_loss in zip(losses, plain, strict=True):
        assert_close(loss, expected_loss, tolerance)
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0
        assert_close(gradients[name], gradient, tolerance)


@pytest.mark.gpu
def test_dropout_equals_the_eager_one_and_follows_the_seed(tmp_path):
    plain, expected, _ = accumulate_batches(tmp_path, accumulate_gradients, [7, 8], [4, 4])
    for seed, same in ((8, True), (9, False)):
        losses, gradients, _ = accumulate_batches(tmp_path, None, [7, seed], [4, 4])
        assert_close(losses[0], plain[0], 1e-3)
        assert torch.allclose(losses[1], plain[1], rtol=1e-3) == same
        for name, gradient in expected.items() if same else ():
            assert_close(gradients[name], gradient, 1e-3)


def run(folder, **settings):
    """A run's losses by name and step, and its last adapter."""
    outcome = mini_training.train_mini(
        folder,
        mini().to("cuda"),
        lora=settings.pop("lora", NO_DROPOUT),
        schedule="constant",
        distributed=Distributed(device=torch.device("cuda")),
        **{"cuda_graph": True} | settings,
    )
    rows = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    losses = {(key, row["step"]): row[key] for key in ("train/loss", "validation/loss") for row in rows if key in row}
    return losses, read_adapter(outcome.folder / "lora_checkpoints" / "last_lora.pt").state


@pytest.mark.gpu
def test_a_run_with_graphs_equals_the_eager_one_and_resumes(tmp_path):
    plain, _ = run(tmp_path / "plain", max_steps=6, cuda_graph=False)
    whole, adapter = run(tmp_path / "whole", max_steps=6)
    run(tmp_path / "parts", max_steps=3)
    parts, resumed = run(tmp_path / "parts", max_steps=6)
    assert whole == pytest.approx(plain, rel=1e-3) and whole["train/loss", 1] != whole["train/loss", 6]
    assert {name: parts[name] for name in whole} == pytest.approx(whole, rel=1e-3)  # step 3 is validated, too
    for name, value in adapter.items():
        assert_close(resumed[name], value, 1e-2)


@pytest.mark.gpu
def test_a_rank_that_grows_is_captured_anew(tmp_path):
    phases = LoRAConfig(rank=2, alpha=4.0, dropout=0.0, phases=[Phase(2, 3), Phase(4, 6)])
    plain, _ = run(tmp_path / "plain", max_steps=6, cuda_graph=False, lora=phases)
    losses, adapter = run(tmp_path / "graphs", max_steps=6, lora=phases)
    assert losses == pytest.approx(plain, rel=1e-3)
    assert {value.shape[0] for name, value in adapter.items() if "lora_A" in name} == {4}
