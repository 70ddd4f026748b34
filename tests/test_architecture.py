"""The layout's rules: which way imports point, what no module may do, how long files and functions are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mmaudio"
ENTRIES = (
    "cli",
    "pipeline",
    "checks",
    "planning",
    "comparing",
    "generation.__main__",
    "generation.benchmark",
    "features.benchmark",
    "finetune.benchmark",
    "finetune.rounding",
    "launch",
    "model.lora_mmaudio",
    "pretraining",
)
LAYERS = (
    ("errors", "progress", "quoting", "memory", "speed"),
    ("model",),
    ("config", "weights", "released", "hub", "download", "checksums", "adapters", "data", "synthetic"),
    ("features",),
    ("generation",),
    ("finetune", "evaluation"),
    ENTRIES,
)
"""Lowest first; a module imports from its own package and from lower layers."""
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [*ROOT.glob("*.py"), *(ROOT / "training").glob("*.py")]


def name_of(path: Path) -> str:
    """`mmaudio/data/video.py` is `data.video`; the package itself is the empty name."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def level(module: str) -> int:
    """The layer of a module; entry points win over the package that they lie in."""
    entry = [name for name in ENTRIES if module == name or module.startswith(f"{name}.")]
    if entry or not module:
        return len(LAYERS) - 1 if entry else 0
    found = [number for number, names in enumerate(LAYERS) if module.split(".")[0] in names]
    assert found, f"mmaudio/{module.replace('.', '/')}.py has no place in the layout: give it one in {__file__}"
    return found[0]


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, as names below the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {
                f"{module}.{alias.name}" if is_module(f"{module}.{alias.name}") else module for alias in node.names
            }
    return {name.removeprefix("mmaudio").lstrip(".") for name in found if name.split(".")[0] == "mmaudio"}


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_one_way(path):
    own = name_of(path)
    for other in imports(path):
        if not other or not own:
            continue
        same_package = other.split(".")[0] == own.split(".")[0]
        allowed = level(other) < level(own) or (same_package and level(other) == level(own))
        peers = level(own) == len(LAYERS) - 1 or {own.split(".")[0], other.split(".")[0]} <= set(LAYERS[2])
        assert allowed or (peers and level(other) == level(own)), f"mmaudio.{own} imports mmaudio.{other}"


def test_finetune_and_evaluation_do_not_know_each_other():
    for path in SOURCES:
        own, others = name_of(path).split(".")[0], {name.split(".")[0] for name in imports(path)}
        assert own not in ("finetune", "evaluation") or not ({"finetune", "evaluation"} - {own}) & others


@pytest.mark.parametrize("path", [p for p in SOURCES if level(name_of(p)) < len(LAYERS) - 1], ids=name_of)
def test_nothing_below_the_entry_points_reads_the_process(path):
    text = path.read_text()
    for forbidden in (
        "sys.argv",
        "os.environ",
        "getenv",
        "torch.backends.",
        "set_float32_matmul_precision",
        "torch.manual_seed(",
    ):
        where = [line for line in text.splitlines() if forbidden in line]
        assert not where, f"{path.name}: {where[0].strip()}"


@pytest.mark.slow
def test_importing_prints_and_reads_nothing():
    modules = ["mmaudio." + name_of(path) for path in SOURCES if name_of(path) and "__main__" not in name_of(path)]
    script = "import sys, importlib\nstate = dict(__import__('os').environ)\n"
    script += f"for name in {modules!r}: importlib.import_module(name)\n"
    script += "import torch\nassert torch.initial_seed() == torch.default_generator.initial_seed()\n"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/", check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", ["mmaudio/checks.py", "training/split_videos_for_finetuning.py"])
def test_what_only_looks_at_files_and_settings_waits_for_no_large_package(script):
    code = f"import runpy, sys\nrunpy.run_path({str(ROOT / script)!r})\n"
    code += "print(*sorted({'peft', 'transformers', 'torchvision', 'open_clip'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=lambda path: path.stem)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno <= 60, f"{path.name}: {node.name}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text())
    bare = [
        node.name
        for scope in [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef))]
        for node in scope.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_" and not ast.get_docstring(node)
    ]
    assert ast.get_docstring(tree) and not bare, bare


def test_the_entry_script_is_clean_shell():
    if subprocess.run(["which", "shellcheck"], capture_output=True, check=False).returncode:
        pytest.skip("shellcheck is not installed")
    scripts = [ROOT / "run_lora_pipeline.sh", ROOT / "tests/run.sh", ROOT / ".ci/run"]
    result = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
