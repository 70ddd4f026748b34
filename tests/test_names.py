"""Rules for names: files are nouns, values are named by their content."""

import ast
import importlib.util

import pytest
from helpers import ROOT

FOLDERS = ("mmaudio", "training", "benchmarks", "examples", "tests")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])
EMPTY = {"found", "made", "kept", "wanted", "own", "told", "said", "given", "part"}
"""Words that say nothing of what a value is."""
PARTICIPLES = ("ing", "ed", "found", "made", "kept", "held", "own", "told", "said", "given", "taken", "known", "seen")
PARALLEL = {"__init__.py", "__main__.py", "config.py", "checkpoint.py", "registry.py"}
"""File names that mean the same thing in each wing that has one."""


def names_of(tree: ast.AST) -> dict[str, int]:
    """Every name that a file defines (variables, parameters, attributes, functions, classes), with its line."""
    names: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] = node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names[node.attr] = node.lineno
        elif isinstance(node, ast.arg):
            names[node.arg] = node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) or (isinstance(node, ast.ExceptHandler) and node.name):
            names[str(node.name)] = node.lineno
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_is_an_empty_word(path):
    empty = {name: line for name, line in names_of(ast.parse(path.read_text())).items() if name.strip("_") in EMPTY}
    assert not empty, ", ".join(f"line {line}: {name}" for name, line in empty.items())


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if "mmaudio" in p.parts], ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_file_of_one_word_is_a_noun(path):
    """A participle says what is done, not what is there; PyTorch's own words (`torch.distributed`) are the field's."""
    field = importlib.util.find_spec(f"torch.{path.stem}") is not None
    assert field or "_" in path.stem or not path.stem.endswith(PARTICIPLES), f"{path.name}: what it holds is a noun"


def test_no_file_name_stands_twice():
    names = [path.name for path in SOURCES if "mmaudio" in path.parts]
    twice = {name for name in names if names.count(name) > 1} - PARALLEL
    assert not twice, f"{', '.join(sorted(twice))}: one of them is named by what sets it apart"
