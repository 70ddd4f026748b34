"""The benchmark's contestants compute the same, and its command says what it measured."""

from dataclasses import replace

import pytest
import torch
from helpers import assert_close, fill, mini, mini_conditions, mini_inputs

from benchmarks.baseline_network import PlainNetwork
from benchmarks.generation import REFERENCE, build_contestants, main, relative_rms
from mmaudio.errors import ConfigError
from mmaudio.model.networks import resample_tokens


@pytest.mark.slow
@pytest.mark.parametrize("v2", [False, True])
def test_the_plain_network_is_the_same_function_with_the_same_keys(v2):
    network, inputs = mini(v2), mini_inputs()
    plain = PlainNetwork(network.spec)
    fill.fill_module(plain)
    shapes, plain_shapes = ({key: value.shape for key, value in n.state_dict().items()} for n in (network, plain))
    assert plain_shapes.items() <= shapes.items()
    with torch.no_grad():
        conditions = mini_conditions(network)
        expected = network.predict_velocity(inputs["latent"], inputs["t"], conditions)
        resampled = replace(conditions, sync_f=resample_tokens(conditions.sync_f, inputs["latent"].shape[1]))
        assert_close(plain.predict_velocity(inputs["latent"], inputs["t"], resampled), expected)


@pytest.mark.slow
def test_contestants_agree():
    runs = build_contestants("tiny_16k", 1.0, 3, 2, torch.device("cpu"))
    latents = {name: run() for name, run in runs.items()}
    errors = {name: relative_rms(latent, latents[REFERENCE]) for name, latent in latents.items()}
    assert errors["this network, float32"] < 1e-4
    assert 0 < errors["this network, bfloat16"] < 0.05 and 0 < errors["plain PyTorch, bfloat16"] < 0.05
    assert relative_rms(torch.zeros(1, 2), torch.ones(1, 2)) == 1


@pytest.mark.slow
def test_the_table_names_what_was_measured(capsys):
    assert main(["--model", "tiny_16k", "--seconds", "1", "--steps", "1", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny_16k, 1 s, 1 guided Euler steps, batch 1"
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "plain PyTorch, float32",
        "plain PyTorch, bfloat16",
        "this network, float32",
        "this network, bfloat16",
    ]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--steps", "0", "at least 1"),
        ("--batch", "-1", "at least 1"),
        ("--batch", "100000000", "at most 1000000"),
        ("--rounds", "0", "at least 1"),
        ("--threads", "-1", "at least 1"),
        ("--seconds", "nan", "1 to 30"),
        ("--seconds", "inf", "1 to 30"),
        ("--seconds", "1e9", "1 to 30"),
    ],
)
def test_invalid_numbers_are_refused(flag, value, message):
    with pytest.raises(ConfigError, match=f"{flag} .*: {message}"):
        main(["--model", "tiny_16k", flag, value])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_16k", "small_16k"])
def test_decoding_is_timed_by_part(model, capsys):
    assert main(["--model", model, "--decode", "--seconds", "1", "--rounds", "1"]) == 0
    title, _, vae, vocoder = capsys.readouterr().out.splitlines()
    assert title == f"{model}, 1 s, batch 1, float32" and (vae[:3], vocoder[:7]) == ("VAE", "vocoder")
