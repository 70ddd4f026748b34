"""The layout's rules: which way imports point, what no module may do, how long files and functions are."""

import ast
import functools
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, TESTS, syntax, syntax_nodes

PACKAGE = ROOT / "mmaudio"
LAYERS = (
    ("errors",),
    ("model", "utils"),
    ("lora", "weights", "media", "cli"),
    ("synthetic", "config"),
    ("data",),
    ("features",),
    ("metrics",),
    ("generation",),
    ("evaluation", "finetune", "api", "pretraining"),
    ("report", "model.lora", "model.lora_mmaudio"),
    ("pipeline",),
    ("commands",),
    ("app",),
)
"""Lowest first; a module imports from its own package and from lower layers. The two names below `model` are the
guide's for `lora` and `api`: nothing in the package imports them."""
SOURCES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = [*ROOT.glob("*.py"), *(ROOT / "training").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
COMFYUI = sorted((ROOT / "comfyui").glob("*.py"))


def name_of(path: Path) -> str:
    """`mmaudio/media/video.py` is `media.video`; the package itself is the empty name."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def wing(module: str) -> str:
    """The entry of LAYERS that a module belongs to: the longest that its name begins with."""
    known = [name for layer in LAYERS for name in layer if module == name or module.startswith(f"{name}.")]
    assert known, f"mmaudio.{module} has no place in the layout: give it one in {__file__}"
    return max(known, key=len)


def level(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if wing(module) in layer)


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, anywhere in it, as names below the package."""
    modules = set()
    for node in syntax_nodes(path):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {name if is_module(name) else str(node.module) for name in names}
    return {name.removeprefix("mmaudio.") for name in modules if name.startswith("mmaudio.")}


@functools.cache
def import_graph() -> dict[str, set[str]]:
    """The imports of every module."""
    return {name_of(path): imports(path) for path in SOURCES}


def test_imports_point_down():
    up = [
        f"mmaudio.{module} imports mmaudio.{other}, which is not below it"
        for module in filter(None, import_graph())
        for other in import_graph()[module]
        if wing(other) != wing(module) and level(other) >= level(module)
    ]
    assert not up, up


def test_no_imports_go_in_a_circle():
    rest = {module: set(others) for module, others in import_graph().items()}
    while leaves := {module for module, others in rest.items() if not others & rest.keys()}:
        rest = {module: others for module, others in rest.items() if module not in leaves}
    assert not rest, f"these import each other: {', '.join(sorted(rest))}"


def test_packages_are_two_deep():
    assert all(name.count(".") <= 1 for name in import_graph())


def test_nothing_imports_a_benchmark():
    for path in [path for path in COMMANDS if path.parent.name != "benchmarks"]:
        others = {str(node.module) for node in syntax_nodes(path) if isinstance(node, ast.ImportFrom)}
        assert not any(name.startswith("benchmarks") for name in others), path
    assert not any("benchmarks" in others for others in import_graph().values())


READS_THE_PROCESS = ("app", "cli", "commands", "pipeline", "pretraining")
"""Entry points: what a command or a Python call begins in."""


PROCESS_STATE = (
    "sys.argv",
    "os.environ",
    "getenv",
    "torch.backends.",
    "set_float32_matmul_precision",
    "torch.manual_seed(",
)


def test_nothing_below_the_entry_points_reads_the_process():
    readers = [
        f"{path.name}: {line.strip()}"
        for path in SOURCES
        if not name_of(path).startswith(READS_THE_PROCESS)
        for line in path.read_text().splitlines()
        if any(name in line for name in PROCESS_STATE)
    ]
    assert not readers, readers


WRITES_OTHERWISE = {
    "local_files.py": "creates media files within the blocks of its callers, which call `create_media`",
    "scan_store.py": "appends",
    "detached_job.py": "appends",
    "metrics_log.py": "appends",
    "pretrain_tiny.py": "appends",
    "shard_writer.py": "keeps its temporary file open over many calls",
    "download.py": "continues its temporary file in a later process",
}
ATOMIC = {"atomic_write", "atomic_folder", "replace_synced"}


def is_write(node: ast.AST) -> bool:
    """Whether a call writes a file: by its name, or by the mode in which it opens one."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    texts = [ast.unparse(argument) for argument in node.args]
    if name == "save":  # of torch, of an image; objects of this package have a `save` of their own
        return (ast.unparse(node.func) == "torch.save" and "buffer" not in texts) or any(
            " / " in text for text in texts
        )
    if name == "open":
        modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        in_memory = {"os.devnull", "io.BytesIO()"} & set(texts)
        return not in_memory and any(mode in ("w", "wb", "a", "ab", "x", "xb", "r+b", "rb+") for mode in modes)
    return name in {"write_text", "write_bytes", "save_file", "touch", "mkstemp", "NamedTemporaryFile", "create_media"}


def writes_outside(node: ast.AST, inside: bool = False) -> list[int]:
    """The lines of a file that write without a block of `mmaudio.utils.files`."""
    if isinstance(node, ast.With):
        calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
        inside = inside or any(getattr(call.func, "id", "") in ATOMIC for call in calls)
    lines = [node.lineno] if isinstance(node, ast.Call) and is_write(node) and not inside else []
    return lines + [line for child in ast.iter_child_nodes(node) for line in writes_outside(child, inside)]


def test_every_file_is_written_through_one_place():
    """It gives them a temporary name of their own, and the permissions of the umask."""
    writers = {
        str(path.relative_to(ROOT)): writes_outside(syntax(path))
        for path in [*SOURCES, *COMMANDS]
        if path.parent.name != "benchmarks" and path != PACKAGE / "utils" / "files.py"
    }
    others = {path: lines for path, lines in writers.items() if lines and Path(path).name not in WRITES_OTHERWISE}
    assert not others, others


def dotted(node: ast.AST) -> str:
    """`av.open` of that name's node; empty for what is no name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def find_calls(paths: list[Path], function: str) -> dict[Path, list[ast.Call]]:
    """The calls of a function by file, where there are any."""
    calls = {
        path: [n for n in syntax_nodes(path) if isinstance(n, ast.Call) and dotted(n.func) == function]
        for path in paths
    }
    return {path: nodes for path, nodes in calls.items() if nodes}


def test_media_files_are_opened_by_name_in_one_place():
    """There a name is a file's and no address. Other modules open what is in memory only."""
    by_name = {
        path
        for path, calls in find_calls([*SOURCES, *COMMANDS], "av.open").items()
        if any(ast.unparse(call.args[0]) != "io.BytesIO()" for call in calls)
    }
    assert by_name == {PACKAGE / "media" / "local_files.py"}


def test_lines_are_printed_in_one_place():
    """It escapes control characters: a file's name or a server's answer would end the line or move the cursor."""
    paths = [path for path in [*SOURCES, *COMMANDS] if path.parent.name != "benchmarks"]
    assert set(find_calls(paths, "print")) == {PACKAGE / "utils" / "terminal.py"}


IMPORTS = """
import gc, importlib, sys, torch
gc.freeze()
gc.disable()
for name in {names!r}:
    for other in [other for other in sys.modules if other.partition(".")[0] in ("mmaudio", "benchmarks")]:
        del sys.modules[other]
    importlib.import_module(name)
assert torch.initial_seed() == torch.default_generator.initial_seed()
"""


@pytest.mark.slow
def test_every_module_imports_by_itself_and_prints_nothing():
    """Before each import our other modules are forgotten: none may lean on what another one imported."""
    benchmarks = [f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("*.py")]
    names = [*("mmaudio." + name for name in import_graph() if name and "__main__" not in name), *benchmarks]
    command = [sys.executable, "-c", IMPORTS.format(names=names)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


HEAVY = (
    *(
        "accelerate",
        "huggingface_hub.errors",
        "huggingface_hub.file_download",
        "hydra",
        "librosa",
        "matplotlib",
        "open_clip",
        "pandas",
        "peft",
        "scipy",
        "sklearn",
    ),
    *("tensorboard", "torch", "torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "torchvision"),
    "transformers",
)
"""Modules that take a quarter of a second or more to import: a command does so where it uses them."""
HEAVY_AT_START = {
    "mmaudio/pipeline/preflight.py": "hydra torch",
    "mmaudio/generation/__main__.py": "torch",
    "training/make_demo_videos.py": "",
    "training/split_videos_for_finetuning.py": "hydra torch",
    "training/extract_features_finetuning.py": "torch",
    "train_lora.py": "hydra torch",
    "evaluate_lora.py": "hydra torch",
}
"""Those that each command may import at its start."""


@pytest.mark.slow
@pytest.mark.parametrize("script", HEAVY_AT_START)
def test_a_command_imports_large_packages_where_it_uses_them(script):
    code = (
        f"import runpy, sys\nrunpy.run_path({str(ROOT / script)!r})\nprint(*sorted({{*{HEAVY!r}}} & {{*sys.modules}}))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, HEAVY_AT_START[script]), result.stderr


def function_lines(path: Path) -> dict[str, int]:
    """The length of every function in a file, by name and line."""
    functions = [n for n in syntax_nodes(path) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f"{path.name}:{n.lineno} {n.name}": (n.end_lineno or n.lineno) - n.lineno + 1 for n in functions}


def test_files_and_functions_are_short():
    paths = [*SOURCES, *COMMANDS, *COMFYUI, *TESTS.rglob("*.py")]
    long_files = [str(path.relative_to(ROOT)) for path in paths if path.read_text().count("\n") > 400]
    long_functions = [name for path in paths for name, lines in function_lines(path).items() if lines > 45]
    assert (long_files, long_functions) == ([], [])


def test_the_usual_file_and_function_is_shorter():
    assert statistics.median(path.read_text().count("\n") for path in SOURCES) <= 120
    lengths = [lines for path in SOURCES for lines in function_lines(path).values()]
    assert statistics.quantiles(lengths, n=20)[-1] <= 25, "95 % of the functions"


def test_public_names_have_docstrings():
    """Functions within functions as well."""
    bare = [str(path.relative_to(ROOT)) for path in SOURCES if not ast.get_docstring(syntax(path))]
    bare += [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in SOURCES
        for node in syntax_nodes(path)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_" and not ast.get_docstring(node)
    ]
    assert not bare, bare
