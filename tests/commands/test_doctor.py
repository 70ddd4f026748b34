"""`mmaudio-lora doctor`: it names what is there, what is not, and what to do."""

import importlib.metadata
import shutil
from collections import namedtuple

import pytest

from mmaudio.commands import doctor


def test_a_machine_that_works_is_said_to(capsys):
    assert doctor.main([]) == 0
    output = capsys.readouterr().out
    assert "training and generation can work here" in output and "tiny_16k: all there" in output
    for topic in ("Python", "packages", "torch", "device", "decoders", "weights", "disk"):
        assert f" {topic} " in output


def test_absent_packages_and_decoders_fail_with_a_remedy(capsys, monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name in ("peft", "scenedetect-headless"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "DECODERS", ("h264", "no_such_codec"))
    assert doctor.main([]) == 1
    output = capsys.readouterr().out
    assert "pip install peft\n" in output and "scenes: without scenedetect-headless" in output
    assert "without no_such_codec" in output and output.endswith("fails: packages, decoders\n")


def test_a_torch_that_does_not_load_and_a_full_disk_are_told(capsys, monkeypatch):
    def broken(name="auto"):
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(doctor.cli, "pick_device", broken)
    usage = namedtuple("usage", "total used free")(10**12, 10**12, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert doctor.main([]) == 1
    output = capsys.readouterr().out
    assert "does not load: libcudart.so" in output and "weights" not in output
    assert "note  disk" in output and "make room" in output and output.endswith("fails: torch\n")


def test_a_folder_of_weights_that_is_not_there_is_named(tmp_path):
    (finding,) = doctor.check_weights(tmp_path / "none")
    assert "none" in finding.state and not finding.is_needed


@pytest.mark.parametrize("extra", ["scenes", "flags", "optimizers"])
def test_extras_are_those_of_the_package(extra):
    assert doctor.requirements()[extra] and "torch" in doctor.requirements()[""]
