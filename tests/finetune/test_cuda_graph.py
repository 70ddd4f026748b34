"""Batches recorded as CUDA graphs: the plain pass's losses and gradients, in runs that stop and go on, too."""

import gc
import json

import pytest
import small_world
import torch
from conftest import assert_close, filled
from test_networks import mini

from mmaudio.finetune import cuda_graph as recording
from mmaudio.finetune import trainer as run_module
from mmaudio.finetune.cuda_graph import RecordedBatch, batch_for
from mmaudio.finetune.dataset import material
from mmaudio.finetune.diagnostics import flops_per_clip
from mmaudio.finetune.distributed import Team
from mmaudio.finetune.precision import seeded
from mmaudio.finetune.run_summary import saved_bytes
from mmaudio.finetune.state import new_state
from mmaudio.finetune.step import batch_losses
from mmaudio.finetune.trainer import ready
from mmaudio.lora.adapter import LoRAConfig, Phase
from mmaudio.lora.checkpoint import read_adapter

NO_DROPOUT = LoRAConfig(rank=4, alpha=8.0, dropout=0.0)


def prepared(folder, device="cuda", **settings):
    """A state on the device with B matrices away from zero, its clips and configuration."""
    config, network = small_world.config(folder, **{"cuda_graph": True} | settings), mini().to(device)
    state = new_state(network, config, 5)
    for name, weight in state.trained().items():
        if "lora_B" in name:
            weight.data += 0.05 * filled(name, *weight.shape).to(device)
    clips = material(network, small_world.clips(5), torch.device(device))
    ready(state, config, torch.device(device))
    state.model.train()
    return state, clips, config


def test_on_a_cpu_batches_are_plain(tmp_path):
    _, clips, config = prepared(tmp_path, "cpu")
    assert batch_for(clips, config) is batch_losses


@pytest.mark.slow
@pytest.mark.parametrize("measure", [flops_per_clip, lambda *given: saved_bytes(*given, 2)], ids=["flops", "memory"])
def test_nothing_outlives_a_pass_that_measures(tmp_path, measure):
    """What adds to a parameter's gradient keeps to the stream that it was made on, which no recording may touch."""
    state, clips, config = prepared(tmp_path, "cpu")
    kept = list(gradient_nodes(state).values())
    for node in kept:
        node.metadata["old"] = True
    measure(state, clips, config)
    del kept, node
    gc.collect()
    assert [name for name, node in gradient_nodes(state).items() if "old" in node.metadata] == []


def gradient_nodes(state):
    """By parameter, what adds to its gradient: it lives as long as something that was computed from the parameter."""
    return {name: weight.expand_as(weight).grad_fn.next_functions[0][0] for name, weight in state.trained().items()}


@pytest.mark.slow
def test_what_a_recording_reads_stays_in_its_place_in_a_whole_run(tmp_path, monkeypatch):
    """A replay reads the addresses of recording: no evaluation, average or save may move a tensor."""
    places = []

    def batch(state, clips, rows, config):
        kept = [*state.model.named_parameters(), *state.model.named_buffers()]
        kept += enumerate([clips.mean, clips.std, clips.untitled, *clips.projected.tensors(), *clips.empty.tensors()])
        places.append({name: tensor.data_ptr() for name, tensor in kept})
        with state.without_adapter():  # as pictures and sounds of the base model do
            pass
        return batch_losses(state, clips, rows, config)

    monkeypatch.setattr(run_module, "batch_for", lambda clips, config: batch)
    settings = small_world.config(tmp_path, ema_decay=0.5, save_every=1, eval_every=1)
    settings.validation.average_every = 1
    small_world.run(tmp_path, **vars(settings) | {"output_dir": str(tmp_path)})
    assert len(places) == settings.max_steps and all(there == places[0] for there in places)


@pytest.mark.slow
def test_nothing_of_an_earlier_pass_is_alive_when_a_batch_begins(tmp_path, monkeypatch):
    """From the state's making on, through the memory estimate, evaluations and steps: recordings may begin anywhere."""
    found = []

    def mark(state):
        for node in gradient_nodes(state).values():
            node.metadata["old"] = True

    def made(*given):
        state = new_state(*given)
        mark(state)
        return state

    def batch(state, clips, rows, config):
        gc.collect()
        found.append([name for name, node in gradient_nodes(state).items() if "old" in node.metadata])
        losses = batch_losses(state, clips, rows, config)
        mark(state)
        return losses

    monkeypatch.setattr(run_module, "new_state", made)
    monkeypatch.setattr(run_module, "batch_for", lambda clips, config: batch)
    small_world.run(tmp_path)
    assert found == [[]] * 6


class Replayed:
    """What stands for a graph on a CPU: a pass over rows of its own, which adds to the tensors it was made with."""

    def __init__(self, state, clips, rows, config, gradients):
        self.state, self.rows = state, rows.map(torch.clone)
        self.again = lambda: batch_losses(state, clips, self.rows, config)
        self.held = {w: gradients.setdefault(w, torch.zeros_like(w)) for w in state.trained().values()}

    def replay(self, rows):
        for own, new in zip(self.rows.tensors(), rows.tensors(), strict=True):
            own.copy_(new)
        assert self.held.keys() == set(self.state.trained().values()), "a graph trains the weights it was recorded with"
        assert all(weight.grad is gradient for weight, gradient in self.held.items())
        losses = self.again()
        assert all(weight.grad is gradient for weight, gradient in self.held.items())
        return losses


@pytest.mark.slow
@pytest.mark.parametrize("phases", [[], [Phase(2, 3), Phase(4, 6)]], ids=["one rank", "a rank that grows"])
def test_whole_runs_of_replays_are_the_plain_ones_bit_for_bit(tmp_path, monkeypatch, phases):
    """Gradients that are added up, evaluations and new ranks, without the graph itself."""
    lora = LoRAConfig(rank=2, alpha=4.0, dropout=0.1, phases=phases)
    settings = {"lora": lora, "batch_size": 3, "gradient_accumulation_steps": 2}
    plain = small_world.run(tmp_path / "plain", **settings)
    monkeypatch.setattr(recording, "_Recording", Replayed)
    monkeypatch.setattr(run_module, "batch_for", lambda clips, config: RecordedBatch())
    replayed = small_world.run(tmp_path / "replayed", **settings)
    first, second = (
        read_adapter(each.folder / "lora_checkpoints" / "last_lora.pt").state for each in (plain, replayed)
    )
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings", [{"cuda_graph": False}, {"gradient_checkpointing": True}, {"preserve_base": 0.5}], ids=str
)
def test_what_changes_from_batch_to_batch_is_not_recorded(tmp_path, settings):
    _, clips, config = prepared(tmp_path, lora=NO_DROPOUT, **settings)
    assert batch_for(clips, config) is batch_losses


def steps(folder, batch, seeds, sizes, **settings):
    """Losses and gradients of batches of these sizes, all added up."""
    state, clips, config = prepared(folder, **settings)
    batch = batch or batch_for(clips, config)
    found = []
    for size, seed in zip(sizes, seeds, strict=True):
        rows = state.draw(size, 0.3, 0.3).to(torch.device("cuda"))
        with seeded(seed, torch.device("cuda")):
            found.append(batch(state, clips, rows, config))
    return found, {name: weight.grad.clone() for name, weight in state.trained().items()}, batch


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"compile": True}, {"amp": True}], ids=str)
def test_losses_and_added_gradients_are_the_plain_ones(tmp_path, settings):
    tolerance = 2e-2 if settings.get("amp") else 1e-3  # TF32 and bf16 products, in another order where compiled
    sizes, seeds = ([4, 4], [1, 2]) if "compile" in settings else ([4, 4, 3, 4], [1, 2, 3, 4])
    plain, expected, _ = steps(tmp_path, batch_losses, seeds, sizes, lora=NO_DROPOUT, amp=settings.get("amp", False))
    losses, gradients, batch = steps(tmp_path, None, seeds, sizes, lora=NO_DROPOUT, **settings)
    assert isinstance(batch, RecordedBatch)
    for found, known in zip(losses, plain, strict=True):
        assert_close(found, known, tolerance)
    for name, known in expected.items():
        assert known.abs().sum() > 0
        assert_close(gradients[name], known, tolerance)


@pytest.mark.gpu
def test_dropout_is_the_plain_passes_and_follows_the_steps_seed(tmp_path):
    plain, expected, _ = steps(tmp_path, batch_losses, [7, 8], [4, 4])
    for seed, same in ((8, True), (9, False)):
        losses, gradients, _ = steps(tmp_path, None, [7, seed], [4, 4])
        assert_close(losses[0], plain[0], 1e-3)
        assert torch.allclose(losses[1], plain[1], rtol=1e-3) == same
        for name, known in expected.items() if same else ():
            assert_close(gradients[name], known, 1e-3)


def run(folder, **settings):
    """A run's losses, and its last adapter."""
    outcome = small_world.run(
        folder,
        mini().to("cuda"),
        lora=settings.pop("lora", NO_DROPOUT),
        schedule="constant",
        team=Team(device=torch.device("cuda")),
        **{"cuda_graph": True} | settings,
    )
    rows = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [row[key] for key in ("train/loss", "validation/loss") for row in rows if key in row]
    return numbers, read_adapter(outcome.folder / "lora_checkpoints" / "last_lora.pt").state


@pytest.mark.gpu
def test_a_recorded_run_is_the_plain_one_and_resumes(tmp_path):
    plain, _ = run(tmp_path / "plain", max_steps=6, cuda_graph=False)
    whole, adapter = run(tmp_path / "whole", max_steps=6)
    run(tmp_path / "parts", max_steps=3)
    parts, resumed = run(tmp_path / "parts", max_steps=6)
    assert whole == pytest.approx(plain, rel=1e-3) and whole[0] != whole[5]
    assert parts == pytest.approx(whole, rel=1e-3)
    for name, value in adapter.items():
        assert_close(resumed[name], value, 1e-2)


@pytest.mark.gpu
def test_a_rank_that_grows_is_recorded_anew(tmp_path):
    phases = LoRAConfig(rank=2, alpha=4.0, dropout=0.0, phases=[Phase(2, 3), Phase(4, 6)])
    plain, _ = run(tmp_path / "plain", max_steps=6, cuda_graph=False, lora=phases)
    found, adapter = run(tmp_path / "recorded", max_steps=6, lora=phases)
    assert found == pytest.approx(plain, rel=1e-3)
    assert {value.shape[0] for name, value in adapter.items() if "lora_A" in name} == {4}
