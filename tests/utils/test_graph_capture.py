"""CUDA graph capture; skipped where torch sees no GPU."""

import pytest
import torch

from mmaudio.utils.graph_capture import GraphCapture

pytestmark = pytest.mark.gpu


def test_a_replay_reads_the_inputs_anew():
    device = torch.device("cuda")
    inputs = torch.arange(4.0, device=device)
    graph_capture = GraphCapture(device)
    graph_capture.warm_up(lambda: inputs * 2)
    graph, outputs = graph_capture.capture(lambda: inputs * 2, "Take the plain call")
    for value in (3.0, 5.0):
        inputs.fill_(value)
        graph.replay()
        assert outputs.tolist() == [2 * value] * 4
