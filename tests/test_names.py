"""Rules for names: files are nouns, values are named by their content."""

import ast
import importlib.util
from pathlib import Path

from helpers import ROOT, syntax_nodes

FOLDERS = ("mmaudio", "training", "benchmarks", "examples", "comfyui", "tests")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])
MODULES = [path for path in SOURCES if path.is_relative_to(ROOT / "mmaudio")]
EMPTY = {"found", "made", "kept", "wanted", "own", "told", "said", "given", "part"}
"""Words that say nothing of what a value is."""
PARTICIPLES = ("ing", "ed", "found", "made", "kept", "held", "own", "told", "said", "given", "taken", "known", "seen")
PARALLEL = {"__init__.py", "__main__.py", "config.py", "checkpoint.py", "registry.py"}
"""File names that mean the same thing in each wing that has one."""


def names_of(path: Path) -> dict[str, int]:
    """Every name that a file defines (variables, parameters, attributes, functions, classes), with its line."""
    names: dict[str, int] = {}
    for node in syntax_nodes(path):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] = node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names[node.attr] = node.lineno
        elif isinstance(node, ast.arg):
            names[node.arg] = node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) or (isinstance(node, ast.ExceptHandler) and node.name):
            names[str(node.name)] = node.lineno
    return names


def test_no_name_is_an_empty_word():
    empty = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in SOURCES
        for name, line in names_of(path).items()
        if name.strip("_") in EMPTY
    ]
    assert not empty, empty


def test_a_file_of_one_word_is_a_noun():
    """A participle says what is done, not what is there; PyTorch's own words (`torch.distributed`) are the field's."""
    participles = [path for path in MODULES if "_" not in path.stem and path.stem.endswith(PARTICIPLES)]
    others = [path.name for path in participles if importlib.util.find_spec(f"torch.{path.stem}") is None]
    assert not others, f"{', '.join(others)}: what it holds is a noun"


def test_no_file_name_stands_twice():
    names = [path.name for path in MODULES]
    twice = {name for name in names if names.count(name) > 1} - PARALLEL
    assert not twice, f"{', '.join(sorted(twice))}: one of them is named by what sets it apart"
