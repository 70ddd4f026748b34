"""Tab completion: bash completes commands, flags and settings with the printed script; zsh and fish get theirs."""

import shutil
import subprocess

import pytest

from mmaudio.commands.__main__ import COMMANDS, main

SHOW = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
$(complete -p mmaudio-lora | sed 's/.*-F \\([^ ]*\\).*/\\1/') mmaudio-lora "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The printed script of every shell."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell in ("bash", "zsh", "fish"):
        with pytest.MonkeyPatch.context() as patch, (folder / shell).open("w") as file:
            patch.setattr("sys.stdout", file)
            assert main(["completion", shell]) == 0
    return folder


def complete(script, *words):
    result = subprocess.run(
        ["bash", "-c", SHOW, "bash", str(script), "mmaudio-lora", *words], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_flags_choices_and_settings(scripts):
    assert complete(scripts / "bash", "") >= set(COMMANDS)
    assert complete(scripts / "bash", "ev") == {"evaluate"}
    assert complete(scripts / "bash", "merge", "--st") == {"--strength"}
    assert complete(scripts / "bash", "run", "--model", "tiny") == {"tiny_16k"}
    assert complete(scripts / "bash", "train", "lora.ra") == {"lora.rank=", "lora.rank_pattern="}


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_with_everything(scripts, shell):
    text = (scripts / shell).read_text()
    assert all(word in text for word in [*COMMANDS, "strength", "lora.rank=", "tiny_16k"])
    if program := shutil.which(shell):
        subprocess.run([program, "-n", str(scripts / shell)], check=True)
