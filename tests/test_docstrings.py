"""Every public name says what it is; of arrays the shape, and of a ValueError that there is one."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for part in ("reasoning", "experiments")
         for path in sorted(ROOT.glob(f"{part}/**/*.py"))
         if path.read_text().strip()]
ARRAY = re.compile(r"\b(jax\.Array|np\.ndarray|ArrayLike)\b")
# `[B, T]`, `[]`, `[P * G, ...]` within backquotes, or words that say as much.
SHAPE = re.compile(r"`[^`]*\[[^`\]]*\][^`]*`|\bany shape\b|\bof one shape\b")


def public(nodes, owner=""):
    """`(name, node, docstring of the class around it)` of functions, classes and their methods."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node, owner
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, ast.get_docstring(node) or "")


def raises(node):
    """Whether a function itself raises a ValueError; one that it defines, or catches, counts."""
    return any(
        isinstance(part, ast.Raise) and part.exc and "ValueError" in ast.unparse(part.exc)
        for part in ast.walk(node)
    )


def complaints(source):
    """What is missing in a file: `NAME: what`."""
    tree = ast.parse(source)
    if not ast.get_docstring(tree):
        yield "the module: no docstring"
    for name, node, owner in public(tree.body):
        said = ast.get_docstring(node)
        if not said:
            yield f"{name}: no docstring"
        elif isinstance(node, ast.FunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arrays = [
                a.arg for a in given
                if a.annotation and ARRAY.search(ast.unparse(a.annotation)) and a.arg != "key"
                and "Callable" not in ast.unparse(a.annotation)  # says itself what it takes
            ]
            if arrays and not SHAPE.search(said + owner):
                yield f"{name}: no shape of {', '.join(arrays)}, as `[B, T]`"
            elif len(SHAPE.findall(said + owner)) < len(arrays):
                silent = [a for a in arrays if not re.search(rf"\b{a}\b", said + owner)]
                yield from (f"{name}: does not say which shape {a} has" for a in silent)
            if raises(node) and "ValueError" not in said:
                yield f"{name}: does not name the ValueError that it raises"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_name_has_a_docstring_with_shapes_and_errors(path):
    assert list(complaints(path.read_text())) == []


def test_what_is_missing_is_found():
    source = '''
class Reader:
    """Reads."""

    def read(self, x: jax.Array) -> None:
        """Reads x."""

    def other(self): pass

def check(n: int) -> None:
    """Checks."""
    raise ValueError("n")

def _private(x: jax.Array): raise ValueError

def scored(x: jax.Array, key: jax.Array) -> None:
    """Of `[B, T]`."""

def joined(x: jax.Array, y: jax.Array) -> None:
    """x of `[B, T]`, and another."""

def drawn(key: jax.Array) -> None:
    """Draws."""
'''
    assert list(complaints(source)) == [
        "the module: no docstring", "read: no shape of x, as `[B, T]`", "other: no docstring",
        "check: does not name the ValueError that it raises",
        "joined: does not say which shape y has",
    ]
