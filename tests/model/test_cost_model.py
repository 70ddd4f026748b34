"""The plan's arithmetic against counted operations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmaudio.features.synchformer import build_synchformer
from mmaudio.model import cost_model as planning
from mmaudio.model.networks import build_network
from mmaudio.model.spec import MODELS


def counted(run):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def test_network_operations_match_what_runs():
    spec = MODELS["tiny_16k"]
    network, n = build_network("tiny_16k"), spec.network
    parts = torch.zeros(1, n.clip_tokens, n.clip_dim), torch.zeros(1, n.sync_tokens, n.sync_dim)
    conditions = network.preprocess_conditions(*parts, torch.zeros(1, n.text_tokens, n.text_dim))
    latent = torch.zeros(1, n.latent_tokens, n.latent_dim)
    operations = counted(lambda: network.predict_velocity(latent, torch.zeros(1), conditions))
    assert planning.network_flops(n) == pytest.approx(operations, rel=0.1)


def test_synchformer_operations_match_what_runs():
    spec = MODELS["tiny_16k"].sync
    encoder = build_synchformer("tiny_16k").eval()
    operations = counted(lambda: encoder(torch.zeros(1, 1, 16, 3, spec.size, spec.size)))
    assert planning.sync_flops(spec) == pytest.approx(operations, rel=0.05)


def test_the_released_clip_encoder_takes_a_teraflop_a_frame():
    assert planning.clip_flops(MODELS["small_16k"].clip) == pytest.approx(1.0e12, rel=0.05)


@pytest.mark.parametrize("part", ["encoders", "training"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_part_is_faster_than_matrix_products(part, device, dtype):
    assert 0 < planning.efficiency(part, torch.device(device), dtype) < 1


def test_small_batches_on_a_gpu_wait_for_their_start():
    spec = MODELS["tiny_16k"].network
    plain, recorded = (planning.launching(spec, 12_000, how) for how in (False, True))
    assert plain == pytest.approx(12_000 * (spec.joint_blocks + spec.fused_blocks) * 0.01)
    assert recorded < plain / 2


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "3 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h"), (200_000, "2.3 days")]
)
def test_durations_read_well(seconds, words):
    assert planning.readable(seconds) == words
