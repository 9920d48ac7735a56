"""Nothing that a model wrote, or that lies in a data file, is ever run as code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CALLS = {"eval", "exec", "__import__", "sympify", "parse_expr", "literal_eval",
         "import_module", "run_path", "run_module"}  # fmt: skip
OWNERS = {"", "builtins", "sympy", "sympy_parser", "ast", "importlib", "runpy"}
LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch"}
OWN_CODE = "reasoning/names.py"  # a module that the configuration names, of the user's own
DOWNLOADS = "reasoning/data/questions.py"  # a corpus, where it is asked for without a path
NETWORK = {"requests", "urllib", "http", "httpx", "aiohttp", "socket", "ftplib"}


def offences(source: str) -> list[str]:
    """What a program does that it must not do, with the line of each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            owner, name = _called(node.func)
            if (name in CALLS and owner in OWNERS) or (
                owner in LOADERS and name in ("load", "loads", "Unpickler", "open")
            ):
                found.append(f"{node.lineno}: {owner}.{name}")
            if (owner, name) == ("os", "system") or name == "exec_module":
                found.append(f"{node.lineno}: {owner}.{name}")
            for keyword in node.keywords:
                unsafe = keyword.arg in ("shell", "allow_pickle", "trust_remote_code")
                if unsafe and not _is_false(keyword.value):
                    found.append(f"{node.lineno}: {keyword.arg}")
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
            found += [f"{node.lineno}: import {name}" for name in names if name in NETWORK]
        elif isinstance(node, ast.ImportFrom) and node.module:
            package = node.module.split(".")[0]
            if package in NETWORK or (
                package in LOADERS | {"sympy", "ast", "importlib", "runpy"}
                and {alias.name for alias in node.names}
                & (CALLS | {"load", "loads", "Unpickler", "*"})
            ):
                found.append(f"{node.lineno}: from {node.module}")
    return found


def _called(function: ast.expr) -> tuple[str, str]:
    """`a.b.c(...)` as ("b", "c"), `c(...)` as ("", "c")."""
    if isinstance(function, ast.Name):
        return "", function.id
    if isinstance(function, ast.Attribute):
        return _called(function.value)[1], function.attr
    return "", ""


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


@pytest.mark.parametrize(
    "program",
    sorted(
        path for folder in ("reasoning", "experiments", "colab")
        for path in ROOT.glob(f"{folder}/**/*.py")
    ),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_program_runs_data(program):
    found = offences(program.read_text(encoding="utf-8"))
    if program == ROOT / DOWNLOADS:
        found = [offence for offence in found if not offence.endswith("import urllib")]
    if program == ROOT / OWN_CODE:
        assert found.pop().endswith("importlib.import_module")
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "eval(x)", "exec(x)", "builtins.eval(x)", "__import__(x)", "sympy.sympify(x)",
        "from sympy import sympify", "from sympy.parsing.sympy_parser import parse_expr",
        "sympy.parsing.sympy_parser.parse_expr(x)", "pickle.load(f)", "pickle.loads(x)",
        "pickle.Unpickler(f)", "from pickle import loads", "torch.load(f)",
        "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=flag)", "os.system(x)",
        "subprocess.run(x, shell=True)", "import requests", "import urllib.request",
        "from urllib.request import urlopen", "f(trust_remote_code=True)",
        "importlib.import_module(x)", "from importlib import import_module", "import_module(x)",
        "runpy.run_path(x)", "runpy.run_module(x)", "from runpy import run_path",
        "spec.loader.exec_module(x)",
    ],
)  # fmt: skip
def test_each_offence_is_found(source):
    assert offences(source)


@pytest.mark.parametrize(
    "source",
    [
        "pickle.dumps(x)", "jax.eval_shape(f)", "np.load(f, allow_pickle=False)", "json.loads(x)",
        "model.eval(x)", "subprocess.run([x], shell=False)", "import pickle", "import sympy",
        "importlib.metadata.version(x)", "importlib.util.find_spec(x)",
    ],
)  # fmt: skip
def test_what_only_looks_alike_is_left(source):
    assert offences(source) == []
