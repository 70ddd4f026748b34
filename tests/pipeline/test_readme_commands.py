"""The README's commands for one's own videos, run as they stand there: four videos, from the plan to a merged file."""

import re
import shlex
import subprocess

import pytest
from pipeline_command import PYTHON, ROOT

from mmaudio.model.networks import build_network
from mmaudio.weights.store import read_state_dict

SHORT = "-- max_steps=6 eval_every=3 save_every=3 warmup_steps=2 batch_size=4 lora.rank=4 early_stopping.enabled=false"
"""Training that takes seconds: added to the command that trains."""


def readme_commands() -> list[str]:
    """The commands under "Your own videos", without their comments."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own videos")[1]
    block = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[0]
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared_base_outputs):
    """A folder with four videos, each with a caption beside it."""
    folder = tmp_path_factory.mktemp("user")
    script = ROOT / "training" / "make_demo_videos.py"
    subprocess.run([PYTHON, script, "--output_dir", folder / "eight", "--videos", "8", "--seconds", "12"], check=True)
    (folder / "my_videos").mkdir()
    videos = sorted((folder / "eight").glob("*.mp4"))[:4]
    for video, name in zip(videos, ("dog", "door", "gate", "rain"), strict=True):
        video.rename(folder / "my_videos" / f"{name}.mp4")
        video.with_suffix(".txt").rename(folder / "my_videos" / f"{name}.txt")
    return folder


@pytest.mark.slow
def test_the_commands_lead_from_videos_to_a_merged_file(folder):
    for command in readme_commands():
        words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in shlex.split(command)]
        if words[0] == "source":  # the environment that the tests run in
            continue
        if words[0] == "python":
            words[0] = PYTHON
        trains = words[0].endswith("run_lora_pipeline.sh") and "--dry-run" not in words
        arguments = [*words, *(shlex.split(SHORT) if trains else [])]
        result = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    assert {path.name for path in (folder / "sound").iterdir()} == {"dog.flac", "dog.mp4"}
    merged = read_state_dict(folder / "merged_model.pt")
    assert merged.keys() == build_network("tiny_16k").state_dict().keys()
