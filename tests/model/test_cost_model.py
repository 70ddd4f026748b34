"""The plan's arithmetic against counted operations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmaudio.features.synchformer import build_synchformer
from mmaudio.model import cost_model
from mmaudio.model.networks import build_network
from mmaudio.model.spec import MODELS


def counted(run):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        run()
    return counter.get_total_flops()


@pytest.mark.slow
def test_network_flops_match_a_forward_pass():
    spec = MODELS["tiny_16k"]
    network, n = build_network("tiny_16k"), spec.network
    parts = torch.zeros(1, n.clip_tokens, n.clip_dim), torch.zeros(1, n.sync_tokens, n.sync_dim)
    conditions = network.preprocess_conditions(*parts, torch.zeros(1, n.text_tokens, n.text_dim))
    latent = torch.zeros(1, n.latent_tokens, n.latent_dim)
    operations = counted(lambda: network.predict_velocity(latent, torch.zeros(1), conditions))
    assert cost_model.network_flops(n) == pytest.approx(operations, rel=0.1)


def test_synchformer_flops_match_a_forward_pass():
    spec = MODELS["tiny_16k"].sync
    encoder = build_synchformer("tiny_16k").eval()
    operations = counted(lambda: encoder(torch.zeros(1, 1, 16, 3, spec.image_size, spec.image_size)))
    assert cost_model.sync_flops(spec) == pytest.approx(operations, rel=0.05)


def test_the_released_clip_encoder_takes_a_teraflop_per_frame():
    assert cost_model.clip_flops(MODELS["small_16k"].clip) == pytest.approx(1.0e12, rel=0.05)


@pytest.mark.parametrize("stage", ["encoders", "training"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_stage_is_faster_than_matrix_products(stage, device, dtype):
    assert 0 < cost_model.expected_efficiency(stage, torch.device(device), dtype) < 1


def test_small_batches_on_a_gpu_are_bound_by_kernel_launches():
    spec = MODELS["tiny_16k"].network
    plain_seconds, recorded_seconds = (cost_model.launch_seconds(spec, 12_000, recorded) for recorded in (False, True))
    assert plain_seconds == pytest.approx(12_000 * (spec.num_joint_blocks + spec.num_fused_blocks) * 0.01)
    assert recorded_seconds < plain_seconds / 2


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "3 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h"), (200_000, "2.3 days")]
)
def test_durations_are_formatted(seconds, words):
    assert cost_model.format_duration(seconds) == words
