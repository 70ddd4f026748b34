"""The wheel: installed alone, outside of any checkout, its commands have their settings and scripts."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT
from video_files import write_tone_video

SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "train_lora.py", "evaluate_lora.py")
FOLDERS = ("mmaudio", "training", "config")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources, which building would leave files in."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", "."]
    subprocess.run(command, cwd=folder, check=True)
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Run `mmaudio-lora` of an installation that has the wheel alone beside this environment's packages."""
    place, empty = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), str(wheel)]
    subprocess.run(command, check=True)
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONWARNINGS": "error::DeprecationWarning:mmaudio"}

    def call(*arguments):
        program = [sys.executable, str(place / "bin" / "mmaudio-lora"), *map(str, arguments)]
        return subprocess.run(program, cwd=empty, env=environment, capture_output=True, text=True, check=False)

    return call, place, empty


@pytest.mark.slow
def test_it_carries_every_script_and_setting(wheel):
    names = {name.removeprefix("mmaudio/checkout/") for name in zipfile.ZipFile(wheel).namelist()}
    expected = {
        str(path.relative_to(ROOT)) for folder in ("training", "config") for path in (ROOT / folder).rglob("*.*")
    }
    assert {name for name in expected if "__pycache__" not in name} | {"train_lora.py", "evaluate_lora.py"} <= names


@pytest.mark.slow
def test_its_commands_work_in_an_empty_folder(run):
    call, place, empty = run
    help_page = call("train", "--help")
    assert help_page.returncode == 0 and f"from {place}/mmaudio/checkout/config/lora_config.yaml" in help_page.stdout
    (empty / "videos").mkdir()
    write_tone_video(empty / "videos" / "tone.mp4", 18)
    split = call("split", "--input_dir", "videos", "--output_tsv", "clips.tsv", "--keep-all")
    assert split.returncode == 0 and (empty / "clips.tsv").is_file(), split.stderr
    train = call("train", "exp_id=a", "model=tiny_16k", "preset=quick", "features_dir=none", "clips_tsv=clips.tsv")
    assert train.returncode == 1 and "(mmaudio-lora extract)" in train.stderr and train.stderr.count("\n") == 1
    plan = call("run", "--demo", "--dry-run", "--yes")
    assert plan.returncode == 0 and "tiny_16k" in plan.stdout, plan.stderr
