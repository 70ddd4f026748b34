"""Adapter files: what is written is what is read, by us and by peft; the wrong base is refused."""

import pytest
import torch
from conftest import fill
from peft import PeftModel
from test_networks import mini, mini_inputs

from mmaudio.adapters import AdapterFile, attach, read_adapter, write_adapter
from mmaudio.errors import ConfigError, WeightsError
from mmaudio.model.lora import LoRAConfig, adapter_state, add_lora, load_adapter_state


def flow(network):
    with torch.no_grad():
        return network(**mini_inputs())


@pytest.fixture
def written(tmp_path):
    """An adapter that changes the miniature, its file, and the velocity with it."""
    network = mini()
    model = add_lora(network, LoRAConfig(rank=4, alpha=8.0, dropout=0.1))
    shapes = {key: tuple(value.shape) for key, value in adapter_state(model).items()}
    state = {key: torch.as_tensor(fill.fill_values(key, shape)).float() for key, shape in shapes.items()}
    load_adapter_state(model, state)
    targets = list(model.base_model.targeted_module_names)
    lora = LoRAConfig(rank=4, alpha=8.0, dropout=0.1)
    adapter = AdapterFile(lora, state, "tiny_16k", "ab" * 32, targets, 7, {"seed": 1}, {"train": {"ids": ["a"]}})
    path = tmp_path / "best_lora.pt"
    write_adapter(path, adapter)
    return adapter, path, flow(network.eval())


def test_every_form_reads_back_the_same(written):
    adapter, path, _ = written
    folder = path.with_suffix("")
    for form in (path, folder, folder / "adapter_model.safetensors"):
        found = read_adapter(form)
        assert found.described() == adapter.described()
        assert all(torch.equal(found.state[key], value) for key, value in adapter.state.items())
    assert not list(path.parent.glob(".*")), "temporary files are left"


def test_writing_twice_gives_the_same_bytes(written):
    adapter, path, _ = written
    files = [path, *path.with_suffix("").iterdir()]
    before = {file.name: file.read_bytes() for file in files}
    write_adapter(path, adapter)
    assert before == {file.name: file.read_bytes() for file in files}


def test_attached_computes_as_trained(written):
    adapter, path, expected = written
    network = mini()
    attach(network, read_adapter(path), "tiny_16k", adapter.base_sha256)
    assert torch.equal(flow(network), expected)


def test_peft_reads_our_folder_and_we_read_pefts(written, tmp_path):
    _, path, expected = written
    network = mini()
    model = PeftModel.from_pretrained(network, str(path.with_suffix("")))
    assert torch.equal(flow(network.eval()), expected)
    model.save_pretrained(str(tmp_path / "by_peft"))
    found = read_adapter(tmp_path / "by_peft")
    again = mini()
    attach(again, found, "tiny_16k")
    assert torch.equal(flow(again), expected) and found.lora.rank == 4


@pytest.mark.parametrize(
    "model, sha256, expected", [("small_16k", "", "tiny_16k"), ("tiny_16k", "cd" * 32, "another file")]
)
def test_another_base_is_refused(written, model, sha256, expected):
    network = mini()
    with pytest.raises(WeightsError, match=expected):
        attach(network, read_adapter(written[1]), model, sha256)
    assert not any("lora" in name for name, _ in network.named_parameters())


def test_what_is_no_adapter_is_named(tmp_path):
    with pytest.raises(WeightsError, match="no such adapter"):
        read_adapter(tmp_path / "best_lora.pt")
    for content in (b"", b"not a file of torch"):
        (tmp_path / "broken.pt").write_bytes(content)
        with pytest.raises(WeightsError, match=r"broken\.pt"):
            read_adapter(tmp_path / "broken.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt"):
        read_adapter(tmp_path / "other.pt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WeightsError, match="folder"):
        read_adapter(tmp_path / "folder")


def test_an_adapter_is_called_pt(written, tmp_path):
    with pytest.raises(ConfigError, match=r"NAME\.pt"):
        write_adapter(tmp_path / "adapter", written[0])
