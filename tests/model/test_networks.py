"""The network against the golden numbers, the released keys, and its shapes promises."""

import pytest
import torch
from helpers import (
    assert_close,
    build_golden,
    fill,
    filled,
    golden,
    manifest,
    mini,
    mini_conditions,
    mini_inputs,
    mini_spec,
    relative_error,
)

from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.model import spec
from mmaudio.model.blocks import JointBlock
from mmaudio.model.layers import Conv1d, TimeEmbedding, tap_major
from mmaudio.model.networks import MMAudio, build_network, resample_tokens
from mmaudio.model.spec import MODELS, model_spec

RELEASED = [name for name, spec in MODELS.items() if not spec.bundled]


def capture(network, names):
    """The outputs of the named modules, filled when the network runs."""
    taps = {}
    for name in names:
        network.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: taps.update({name: out}))
    return taps


def compare_taps(taps, conditions, expected):
    got = {f"cond.{name}": getattr(conditions, name) for name in ("clip_f", "sync_f", "text_f")}
    got |= {"cond.clip_f_c": conditions.clip_c, "cond.text_f_c": conditions.text_c, "t_embed": taps["t_embed"]}
    got |= dict(zip(("joint0.latent", "joint0.clip", "joint0.text"), taps["joint_blocks.0"], strict=True))
    got["cond.sync_f"] = resample_tokens(conditions.sync_f, taps["last"].shape[1])
    got |= {"joint_last.latent": taps["last"], "fused0.latent": taps["fused_blocks.0"]}
    for name, value in got.items():
        cut = value[:, : expected[name].shape[1]] if value.ndim == 3 else value
        assert_close(cut, expected[name])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_mini_network_matches_the_golden_numbers(version):
    network, expected, inputs = mini(version == "v2"), golden(f"network_mini_{version}"), mini_inputs()
    taps = capture(network, ["t_embed", "joint_blocks.0", "joint_blocks.1", "fused_blocks.0"])
    with torch.no_grad():
        flow = network(**inputs)
        conditions = network.preprocess_conditions(inputs["clip_f"], inputs["sync_f"], inputs["text_f"])
        empty = network.empty_conditions(2)
    compare_taps(taps | {"last": taps["joint_blocks.1"][0]}, conditions, expected)
    assert_close(flow, expected["flow"])
    for name in ("clip_f", "sync_f", "text_f"):
        got = getattr(empty, name)
        assert_close(resample_tokens(got, 30) if name == "sync_f" else got, expected[f"empty.{name}"])
    assert_close(empty.clip_c, expected["empty.clip_f_c"])
    assert_close(empty.text_c, expected["empty.text_f_c"])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_lengths_can_change_after_loading(version):
    network, expected = mini(version == "v2"), golden(f"network_mini_{version}")
    network.set_lengths(45, 24, 40)
    shapes = {"latent": (1, 45, 8), "clip_f": (1, 24, 48), "sync_f": (1, 40, 32), "text_f": (1, 77, 40), "t": (1,)}
    inputs = {name: filled(f"longer/{name}", *shape) for name, shape in shapes.items()}
    with torch.no_grad():
        assert_close(network(**inputs | {"t": inputs["t"].sigmoid()}), expected["longer.flow"])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_bf16_autocast_stays_near_float32(version):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        flow = mini(version == "v2")(**mini_inputs())
    assert_close(flow, golden(f"network_mini_{version}")["flow"], tolerance=5e-2)


def test_bf16_weights_keep_tables_and_times_in_float32():
    network = mini(v2=True).to(torch.bfloat16)
    inputs = {name: value if name == "t" else value.to(torch.bfloat16) for name, value in mini_inputs().items()}
    with torch.no_grad():
        assert_close(network(**inputs), golden("network_mini_v2")["flow"], tolerance=5e-2)


def test_time_embedding_v2_matches_the_golden_numbers():
    embedding, expected = TimeEmbedding(896, 896, period=1.0), golden("time_embedding_v2")
    fill.fill_module(embedding, prefix="t_embed.")
    t = filled("input/t_many", 16).sigmoid()
    with torch.no_grad():
        assert_close(embedding.sinusoid(t), expected["sinusoid"])
        assert_close(embedding(t), expected["t_embed"])


@pytest.mark.slow
def test_small_16k_matches_the_golden_numbers():
    network, expected = build_golden(lambda: build_network("small_16k")), golden("network_small_16k")
    shapes = {"latent": (1, 250, 20), "clip_f": (1, 64, 1024), "sync_f": (1, 192, 768), "text_f": (1, 77, 1024)}
    inputs = {name: filled(f"input/{name}", *shape) for name, shape in shapes.items()}
    taps = capture(network, ["t_embed", "joint_blocks.0", "joint_blocks.3", "fused_blocks.0"])
    with torch.no_grad():
        flow = network(**inputs, t=filled("input/t", 1).sigmoid())
        conditions = network.preprocess_conditions(inputs["clip_f"], inputs["sync_f"], inputs["text_f"])
    compare_taps(taps | {"last": taps["joint_blocks.3"][0]}, conditions, expected)
    assert_close(flow, expected["flow"])


@pytest.mark.parametrize("name", RELEASED)
def test_keys_and_shapes_equal_the_released_ones(name):
    with torch.device("meta"):
        network = build_network(name)
    shapes = {
        key: [str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in network.state_dict().items()
    }
    assert shapes == manifest(f"network_{name}")


@pytest.mark.parametrize("name", list(MODELS))
def test_parameters_in_millions(name):
    expected = {"tiny_16k": 3.55, "small_16k": 157.3, "small_44k": 157.4, "medium_44k": 621.8, "large_44k": 1030.0}
    with torch.device("meta"):
        count = sum(value.numel() for value in build_network(name).state_dict().values()) / 1e6
    assert count == pytest.approx(expected.get(name, 1030.6), abs=0.06)


def test_the_convolution_matches_pytorchs_over_tokens():
    ours, theirs = Conv1d(12, 20, 7, padding=3), torch.nn.Conv1d(12, 20, 7, padding=3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 31, 12, requires_grad=True)
    expected = theirs(x.transpose(1, 2)).transpose(1, 2)
    assert_close(ours(x), expected)
    weights = torch.randn_like(expected)
    inputs = (x, ours.weight, ours.bias)
    got = torch.autograd.grad((ours(x) * weights).sum(), inputs)
    gradients = torch.autograd.grad((expected * weights).sum(), (x, theirs.weight, theirs.bias))
    for mine, reference in zip(got, gradients, strict=True):
        assert_close(mine, reference)


@pytest.mark.parametrize(("width_in", "width_out", "kernel"), [(12, 20, 7), (9, 4, 3), (1, 6, 3), (8, 1, 3)])
def test_tap_major_weights_give_the_same_convolution_and_gradients(width_in, width_out, kernel):
    layer = Conv1d(width_in, width_out, kernel, padding=kernel // 2)
    x, outs, gradients = torch.randn(3, 31, width_in, requires_grad=True), [], []
    for weight in (layer.weight.data, tap_major(layer.weight.data)):
        layer.weight.data = weight
        outs.append(layer(x))
        gradients.append(torch.autograd.grad(outs[-1].square().sum(), (x, layer.weight, layer.bias)))
    assert layer.weight.transpose(1, 2).is_contiguous() and layer.weight.shape == (width_out, width_in, kernel)
    assert_close(outs[1], outs[0])
    for mine, reference in zip(*gradients, strict=True):
        assert_close(mine, reference)


def test_two_convolutions_of_one_input_give_in_sampling_what_each_gives():
    first, second, wider = (Conv1d(12, 20, kernel, padding=kernel // 2) for kernel in (3, 3, 5))
    x = torch.randn(3, 31, 12)
    for layer in (first, second, wider):
        layer.weight.data = tap_major(layer.weight.data)
    with torch.inference_mode():
        for pair in ((first, second), (first, wider)):
            for got, expected in zip(pair[0].forward_both(pair[1], x), (layer(x) for layer in pair), strict=True):
                assert torch.equal(got, expected)


@pytest.mark.slow
def test_old_tables_are_ignored_and_other_keys_are_errors():
    source, network = mini(), MMAudio(mini_spec())
    state = source.state_dict()
    network.load_released(state | {"latent_rot": torch.zeros(1), "t_embed.freqs": torch.zeros(1)})
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    with pytest.raises(WeightsError, match=r"1 unexpected \(head\.weight\)"):
        network.load_released(state | {"head.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"1 missing \(latent_mean\)"):
        network.load_released({key: value for key, value in state.items() if key != "latent_mean"})
    with pytest.raises(WeightsError, match=r"latent_mean \(3,\), expected \(1, 1, 8\)"):
        network.load_released(state | {"latent_mean": torch.zeros(3)})


def test_loading_casts_and_materialises():
    state = {key: value.half() for key, value in mini().state_dict().items()}
    with torch.device("meta"):
        network = MMAudio(mini_spec())
    network.load_released(state)
    assert all(torch.equal(value, state[key].float()) for key, value in network.state_dict().items())
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


def test_duration_sets_the_lengths():
    with torch.device("meta"):
        network = build_network("small_44k")
    assert (network.lengths.latent_tokens, network.lengths.clip_tokens, network.lengths.sync_tokens) == (345, 64, 192)
    assert network.lengths.audio_samples == 353_280
    network.set_duration(5)
    assert (network.lengths.latent_tokens, network.lengths.clip_tokens, network.lengths.sync_tokens) == (216, 40, 112)
    with pytest.raises(ConfigError, match="set_lengths"):
        MMAudio(mini_spec()).set_duration(5)
    with pytest.raises(ConfigError, match="multiples of 8"):
        network.set_lengths(30, 16, 23)


def test_wrong_shapes_are_errors_that_name_the_features():
    network, inputs = mini(), mini_inputs()
    with pytest.raises(DataError, match=r"clip features of shape \(2, 15, 48\).*\(batch, 16, 48\)"):
        network(**inputs | {"clip_f": inputs["clip_f"][:, 1:]})
    conditions = mini_conditions(network)
    network.set_lengths(30, 16, 16)
    with pytest.raises(DataError, match="conditions of 24 sync tokens: the network is set to 16"):
        network.predict_velocity(inputs["latent"], inputs["t"], conditions)
    network.set_lengths(30, 16, 24)
    with pytest.raises(DataError, match="latent of 29 tokens"):
        network(**inputs | {"latent": inputs["latent"][:, 1:]})


def test_conditions_are_batched_by_row():
    network, inputs = mini(), mini_inputs()
    with torch.no_grad():
        conditions = network.preprocess_conditions(inputs["clip_f"], inputs["sync_f"], inputs["text_f"])
        flow = network.predict_velocity(inputs["latent"], inputs["t"], conditions)
        second = network.predict_velocity(inputs["latent"][1:], inputs["t"][1], conditions.select(slice(1, None)))
        both = conditions.cat(network.empty_conditions(3))
    assert_close(second, flow[1:])
    assert both.batch_size == 5
    assert both.select(torch.tensor([4, 0])).repeat(2).batch_size == 4
    repeated = conditions.repeat(2).clip_c
    assert torch.equal(repeated[0], repeated[1]) and torch.equal(repeated[2], conditions.clip_c[1])


def modulated_rows(network, train):
    """The velocity of 60 latent tokens at 24 sync tokens, the gradients, and the rows that a block's modulation has."""
    network.set_lengths(60, 16, 24)
    inputs = mini_inputs() | {"latent": filled("more tokens", 2, 60, 8)}
    network.requires_grad_(False)
    for name in train:
        network.get_parameter(name).requires_grad_(True)
    rows = []
    layers = network.joint_blocks[0].latent_block.adaLN_modulation, network.fused_blocks[0].adaLN_modulation
    for layer in layers:
        layer.register_forward_hook(lambda _module, _inputs, out: rows.append(out.shape[1]))
    with torch.set_grad_enabled(bool(train)):
        velocity = network(**inputs)
    if train:
        velocity.square().mean().backward()
    return velocity.detach(), [network.get_parameter(name).grad for name in train], rows


@pytest.mark.parametrize(
    "train, shares",
    [
        ([], True),
        (["fused_blocks.0.ffn.w2.weight", "joint_blocks.0.latent_block.attn.qkv.weight"], True),
        (["fused_blocks.0.adaLN_modulation.1.weight"], False),
        (["sync_pos_emb", "global_cond_mlp.w1.weight"], False),
    ],
    ids=["sampling", "other layers", "a modulation", "its condition"],
)
def test_tokens_of_one_condition_share_its_modulation(train, shares, monkeypatch):
    velocity, gradients, rows = modulated_rows(mini(), train)
    assert set(rows) == ({24} if shares else {60})
    monkeypatch.setattr(spec, "MAX_SHARED_ROWS", 0.0)
    expected, expected_gradients, rows = modulated_rows(mini(), train)
    assert set(rows) == {60}
    assert_close(velocity, expected, 1e-6)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert expected_gradient.abs().sum() > 0
        assert_close(gradient, expected_gradient, 1e-6)


def test_a_negative_text_replaces_the_empty_text_only():
    network, text = mini(), mini_inputs()["text_f"]
    with torch.no_grad():
        negative, empty = network.empty_conditions(2, text[:1]), network.empty_conditions(2)
    assert torch.equal(negative.clip_f, empty.clip_f) and torch.equal(negative.sync_f, empty.sync_f)
    assert torch.equal(negative.text_f[0], negative.text_f[1])
    assert not torch.equal(negative.text_f, empty.text_f)


def test_normalisation_is_its_own_inverse():
    network, latent = mini(), mini_inputs()["latent"]
    assert_close(network.unnormalize(network.normalize(latent)), latent, tolerance=1e-6)
    assert torch.equal(network.normalize(network.latent_mean), torch.zeros_like(network.latent_mean))


@pytest.mark.slow
def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        network = mini()
        network.gradient_checkpointing = checkpointing
        network(**mini_inputs()).square().mean().backward()
        gradients.append({name: value.grad for name, value in network.named_parameters() if value.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    assert all(relative_error(checkpointed[key], value) < 1e-5 for key, value in plain.items())


@pytest.mark.slow
def test_a_new_network_starts_at_zero_velocity_and_learns_from_the_first_step():
    network = MMAudio(mini_spec())
    inputs = mini_inputs()
    assert torch.equal(network(**inputs), torch.zeros(2, 30, 8))
    first = {name: value.clone() for name, value in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(8):  # zero gates open one after the other
        optimizer.zero_grad()
        (network(**inputs) - inputs["latent"]).square().mean().backward()
        optimizer.step()
    unmoved = {name for name, value in network.named_parameters() if torch.equal(value, first[name])}
    unread = {f"joint_blocks.1.{stream}_block.attn.q_norm.weight" for stream in ("clip", "text")}
    assert unmoved == unread | {"empty_string_feat", "empty_clip_feat", "empty_sync_feat"}  # nothing was dropped


def test_initialisation_depends_on_the_generator_alone():
    network = MMAudio(mini_spec())
    states = []
    for _ in range(2):
        network.init_weights(torch.Generator().manual_seed(3))
        states.append({key: value.clone() for key, value in network.state_dict().items()})
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())


def test_the_last_joint_block_keeps_no_dead_weights():
    block = JointBlock(64, 2, 256, last=True)
    assert not hasattr(block.clip_block, "ffn") and not hasattr(block.text_block, "linear1")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match="small_16k"):
        build_network("smal_16k")
    assert model_spec("small_16k").network.width == 448
