"""Lines of the terminal: a name ends none, and a command with odd names can be typed as it is shown."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import ROOT, load_script

from mmaudio import cli
from mmaudio.utils.terminal import join_command, print_lines

NAME = "n\nerror: all is lost\x1b[2K\u202e.mp4"
SHOWN = r"n\nerror: all is lost\x1b[2K\u202e.mp4"


def test_every_line_is_one_line(capsys):
    print_lines("", f"left out: {NAME}", 3)
    print_lines(NAME, file=sys.stderr, flush=True)
    assert capsys.readouterr() == (f"\nleft out: {SHOWN}\n3\n", f"{SHOWN}\n")


def test_a_shell_reads_the_words_of_a_command_as_they_are():
    words = ["printf", "%s|", "a b", "it's", "it's\n\\n\t'$HOME'", "-x", "\x1b[1m", "\u202eé"]
    line = join_command(words)
    assert line.isprintable()
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert result.stdout == "".join(f"{word}|" for word in words[2:])


@pytest.mark.slow
@pytest.mark.parametrize("script", ["training/split_videos_for_finetuning.py", "evaluate_lora.py"])
def test_an_error_is_one_line_whatever_is_in_a_name(tmp_path, monkeypatch, capsys, script):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the command sets its own
    main = load_script(ROOT / script).main
    flags = ("--input_dir", NAME) if "split" in script else ("--lora_checkpoint", NAME, "--test_videos", NAME)
    for arguments in (flags, (NAME, *flags, f"--{NAME}")):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.run(main)
        errors = capsys.readouterr().err
        assert stop.value.code in (1, 2)
        assert SHOWN in errors and errors.count("\n") == 1
        assert errors.removesuffix("\n").isprintable()
