"""The pages as a reader uses them: every command parses, every setting composes, every link leads somewhere.

`tests/pipeline/test_readme_commands.py` runs those of "Your own videos" in the README.
"""

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from mmaudio import config
from mmaudio.commands.__main__ import COMMANDS as SUBCOMMANDS
from mmaudio.config import compose
from mmaudio.data.config import compose_split_config
from mmaudio.errors import MMAudioError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_SETTINGS = {"weights_only=True"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def blocks(page, language):
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands_of(text):
    """The commands of a block of shell, each as its words, without comments and line continuations."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


COMMANDS = [(page.name, words) for page in PAGES for text in blocks(page, "bash") for words in commands_of(text)]
SETTINGS = sorted(
    {
        text
        for page in PAGES
        for text in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
        if re.match(r"'?[a-z][\w.]*=[^`]", text) and text not in NOT_SETTINGS and not text.startswith("split.")
    }
)


def parse(module, arguments):
    """Parse a command's arguments with its parser."""
    return importlib.import_module(module).build_parser().parse_args(arguments)


def check_pipeline(arguments):
    from mmaudio.pipeline.flags import build_job, build_parser
    from mmaudio.pipeline.job import training_overrides

    cut = arguments.index("--") if "--" in arguments else len(arguments)
    args = build_parser().parse_args(arguments[:cut])
    if args.folder is not None:
        args.folder.mkdir(exist_ok=True)
    compose(training_overrides(build_job(args, arguments[cut + 1 :])))


def check_training(arguments):
    overrides = [text for text in arguments if not text.startswith(("--", "hydra/"))]
    config.check_override_names(overrides)
    if "--multirun" not in arguments:
        compose(overrides)


def check_splitting(arguments):
    args = importlib.import_module("split_videos_for_finetuning").build_parser().parse_intermixed_args(arguments)
    compose_split_config(args.overrides)


def check_ablation(arguments):
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parse("mmaudio.pipeline.ablation", arguments[:cut])
    compose(["exp_id=page", *arguments[cut + 1 :]])


SCRIPTS = {
    "train_lora.py": check_training,
    "evaluate_lora.py": lambda arguments: parse("evaluate_lora", arguments),
    "training/split_videos_for_finetuning.py": check_splitting,
    "training/extract_features_finetuning.py": lambda arguments: parse("extract_features_finetuning", arguments),
    "training/compare_settings.py": check_ablation,
    "examples/python_api.py": lambda arguments: None,
}
MODULES = {
    "mmaudio.generation": "mmaudio.generation.__main__",
    "benchmarks.training": "benchmarks.training",
    "benchmarks.generation": "benchmarks.generation",
    "benchmarks.features": "benchmarks.features",
    "benchmarks.bf16_error": "benchmarks.bf16_error",
    "benchmarks.best_of_samples": "benchmarks.best_of_samples",
    "benchmarks.long_generation": "benchmarks.long_generation",
    "benchmarks.long_videos": "benchmarks.long_videos",
    "benchmarks.loudness": "benchmarks.loudness",
    "benchmarks.whole_job": "benchmarks.whole_job",
}


def check_subcommand(name, *arguments):
    checks = {"run": check_pipeline, "train": check_training, "split": check_splitting}
    if name in checks:
        checks[name](list(arguments))
    else:
        SUBCOMMANDS[name].load().build_parser().parse_args(arguments)


def check_command(words):
    """Parse a command with the parser that will read it; an error for a command that no page may name."""
    program, *arguments = words
    if program == "torchrun":
        program, arguments = "python", [text for text in arguments if not text.startswith("--nproc")]
    if program.endswith("run_lora_pipeline.sh"):
        check_pipeline(arguments)
    elif program == "mmaudio-lora":
        check_subcommand(*arguments[: arguments.index(">") if ">" in arguments else None])
    elif program == "python" and arguments[0] == "-m":
        parse(MODULES[arguments[1]], arguments[2:])
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
        SCRIPTS[arguments[0]](arguments[1:])
    elif program == "pip":
        extras = re.search(r"\.\[(.*)\]", arguments[-1])
        assert extras is not None and set(extras[1].split(",")) <= EXTRAS.keys()
    elif program == "tensorboard":
        assert arguments[0] == "--logdir" and len(arguments) == 2
    elif program in (".ci/run", "./tests/run.sh"):
        assert (ROOT / program).is_file()
    else:
        assert program in ("source", "git", "pre-commit"), f"{program}: teach this test how it is checked"


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {shlex.join(words)}" for page, words in COMMANDS])
def test_a_command_parses(page, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    check_command(words)


@pytest.mark.parametrize("command", ["./run_lora_pipeline.sh --modle x", "python train_lora.py lora.ranc=4"])
def test_a_command_with_a_mistake_does_not(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SystemExit, MMAudioError)):
        check_command(shlex.split(command))


def test_every_page_has_commands_or_links():
    assert len(COMMANDS) > 30 and len(SETTINGS) > 12


@pytest.mark.slow
@pytest.mark.parametrize("text", SETTINGS)
def test_a_setting_is_one_for_the_shell_and_composes(text, tmp_path):
    words = shlex.split(text)
    output = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {text}"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    assert output == words
    compose(["exp_id=page", *(word.replace("DIR", "folder").replace("NAME", "small") for word in words)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    absent = [link for link in links if not (page.parent / link).exists()]
    assert not absent


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_import_what_is_there(page):
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_readme_is_short():
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 100


def test_shell_commands_of_the_pages_exist():
    assert shutil.which("tensorboard", path=str(Path(sys.executable).parent))
