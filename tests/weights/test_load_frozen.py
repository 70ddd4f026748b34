"""From files to modules: whose memory the values are in, what a wrong file is said to be, what is left out."""

from functools import partial

import pytest
import torch
from helpers import assert_close, fill, mini_spec
from safetensors.torch import save_file
from torch import nn

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.features.bigvgan import fold_weight_norm
from mmaudio.features.clip import build_clip
from mmaudio.features.encoders import CONDITION_ENCODERS, load_encoders
from mmaudio.features.synchformer import build_synchformer
from mmaudio.features.vae import build_vae
from mmaudio.features.vocoder import build_vocoder
from mmaudio.generation.sampler import load_sampler
from mmaudio.model.networks import MMAudio, build_network
from mmaudio.model.spec import MODELS
from mmaudio.weights import store as weights
from mmaudio.weights.load_frozen import load_frozen

RELEASED = [name for name, spec in MODELS.items() if not spec.bundled]
MODEL = "tiny_16k"


def on_meta(build):
    with torch.device("meta"):
        return build()


@pytest.fixture(params=["network.safetensors", "mmaudio_small_16k.pth"])
def stored(request, tmp_path):
    """A folder with a small network's file in one of the formats, and the model that it counts as."""
    network = MMAudio(mini_spec())
    fill.fill_module(network)
    path = tmp_path / request.param
    if path.suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    return path, MODEL if path.suffix == ".safetensors" else "small_16k"


def test_writing_to_a_loaded_network_leaves_its_file(stored):
    path, model = stored
    before = path.read_bytes()
    network = load_frozen(lambda: MMAudio(mini_spec()), model, "network", path.parent)
    state = weights.load_weights(model, "network", path.parent).state_dict
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2).add_(1)
    assert path.read_bytes() == before
    again = weights.load_weights(model, "network", path.parent).state_dict
    assert all(torch.equal(value, state[key]) for key, value in again.items())
    assert not torch.equal(network.state_dict()["final_layer.conv.weight"], again["final_layer.conv.weight"])


def test_a_meta_module_adopts_the_tensors_and_another_copies():
    source = MMAudio(mini_spec())
    state = source.state_dict()
    for network, shared in ((on_meta(partial(MMAudio, mini_spec())), True), (MMAudio(mini_spec()), False)):
        network.load_released(state)
        same = {key: value.data_ptr() == state[key].data_ptr() for key, value in network.state_dict().items()}
        assert set(same.values()) == {shared}
        assert all(parameter.requires_grad for parameter in network.parameters())


def test_values_are_cast_to_the_modules_dtype_and_layout():
    state = {key: value.double() for key, value in MMAudio(mini_spec()).state_dict().items()}
    state["text_cond_proj.weight"] = state["text_cond_proj.weight"].T.contiguous().T
    network = on_meta(partial(MMAudio, mini_spec()))
    network.load_released(state)
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in network.state_dict().values())


@pytest.mark.parametrize(
    "build",
    [
        partial(build_network, MODEL),
        partial(build_vae, MODEL),
        partial(build_vae, MODEL, drop_encoder=True),
        partial(build_vae, MODEL, drop_decoder=True),
        partial(build_synchformer, MODEL),
    ],
    ids=["network", "vae", "decoder", "encoder", "synchformer"],
)
def test_nothing_is_left_on_the_meta_device(build):
    source, module = build(), on_meta(build)
    module.load_released(source.state_dict())
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


@pytest.mark.slow
def test_clip_on_the_meta_device_gets_its_attention_mask_back():
    source, loaded = build_clip(MODEL).eval(), on_meta(partial(build_clip, MODEL)).eval()
    loaded.load_released(source.model.state_dict())
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    with torch.no_grad():
        assert torch.equal(loaded.encode_text(["a dog barks"]), source.encode_text(["a dog barks"]))


def test_folding_in_place_gives_the_same_weights_in_the_same_memory():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3))
    state = {key: value.detach().clone() for key, value in layer.state_dict().items()}
    direction = state["parametrizations.weight.original1"]
    copied, folded = fold_weight_norm(state), fold_weight_norm(state, in_place=True)
    assert_close(copied["weight"], layer.weight, 1e-6)
    assert torch.equal(copied["weight"], folded["weight"])
    assert folded["weight"].data_ptr() == direction.data_ptr() != copied["weight"].data_ptr()


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_another_models_network_is_recognised(name):
    state = on_meta(partial(build_network, name)).state_dict()
    wrong = on_meta(partial(build_network, RELEASED[RELEASED.index(name) - 1]))
    with pytest.raises(WeightsError, match=f"these are the shapes of {name}$"):
        wrong.load_released(state)
    del state["latent_mean"]
    with pytest.raises(WeightsError, match=f"most of its shapes are those of {name}$"):
        wrong.load_released(state)


@pytest.mark.slow
@pytest.mark.parametrize("build", [build_vae, partial(build_vae, drop_encoder=True), build_vocoder])
def test_another_codecs_file_is_recognised(build):
    state = on_meta(partial(build, "44k")).state_dict()
    with pytest.raises(WeightsError, match=r"16k weights of another model: .*; these are the shapes of 44k$"):
        on_meta(partial(build, "16k")).load_released(state)


@pytest.mark.slow
def test_a_foreign_file_matches_no_variant():
    with pytest.raises(WeightsError, match="check the model's name and the file"):
        on_meta(partial(build_network, "small_16k")).load_released(build_vae(MODEL).state_dict())


@pytest.mark.slow
def test_each_stage_loads_only_the_models_it_needs():
    sampler, seeing = load_sampler(MODEL), load_encoders(MODEL, names=CONDITION_ENCODERS)
    assert sampler.vae.encoder is None and sampler.vae.decoder is not None
    assert seeing.vae is None and seeing.clip is not None and seeing.sync is not None
    with pytest.raises(ConfigError, match="without 'codec'"):
        seeing.encode_audio(torch.zeros(1, 16_000))
    texts = ["a dog barks", "rain"]
    encoded = seeing.encode_texts(texts)
    seeing.drop_text_tower(texts)
    assert seeing.clip.model.transformer is None
    assert_close(seeing.encode_texts(texts[::-1]), encoded.flip(0), 1e-5)
    with pytest.raises(ConfigError, match="text tower of this CLIP was dropped"):
        seeing.encode_texts(["snow"])
    whole = load_encoders(MODEL)
    assert whole.vae.decoder is None and whole.vae.encoder is not None
    with pytest.raises(WeightsError, match="drop_decoder"):
        whole.vae.decode(torch.zeros(1, 20, 4))
