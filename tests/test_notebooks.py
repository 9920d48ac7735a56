"""The notebooks of colab/: in step with their scripts, without outputs, run from top to bottom."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "colab"
# name -> plots that it shows
NOTEBOOKS = {
    "strategies_in_five_minutes": 4,
    "your_own_task": 1,
    "rl_one_program": 1,
    "thinking_longer_and_in_parallel": 2,
    "from_a_pretrained_model": 0,
}
named = pytest.mark.parametrize("name", NOTEBOOKS)


@pytest.fixture(scope="module")
def convert():
    """colab/convert.py, which is no part of a package."""
    pytest.importorskip("jupytext")
    spec = importlib.util.spec_from_file_location("convert", FOLDER / "convert.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(name, kind="code"):
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def test_these_are_the_notebooks(convert):
    assert {path.stem for path in convert.scripts()} == set(NOTEBOOKS)
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NOTEBOOKS)


@named
def test_a_notebook_says_what_its_script_says(convert, name):
    made = convert.written(FOLDER / f"{name}.py")
    assert (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8") == made, (
        "run python colab/convert.py"
    )
    script = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert source(cells(name)[-1]) in script


def test_a_notebook_that_is_not_in_step_is_found(convert, tmp_path, monkeypatch, capsys):
    script = tmp_path / "small.py"
    script.write_text("# %% [markdown]\n# # Small\n\n# %%\nprint(1)\n")
    monkeypatch.setattr(convert, "FOLDER", tmp_path)
    assert convert.main(["--check"]) == 1 and not (tmp_path / "small.ipynb").exists()
    assert convert.main([]) == 0 and convert.main(["--check"]) == 0
    script.write_text(script.read_text() + "\n# %%\nprint(2)\n")
    assert convert.main(["--check"]) == 1
    assert "small.ipynb: is not what small.py says" in capsys.readouterr().out


@named
def test_outputs_are_stripped_and_cells_are_short(name):
    for cell in cells(name):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        assert source(cell).count("\n") < 40, source(cell)


@named
def test_it_begins_with_its_badge_and_its_sizes_follow_the_machine(convert, name):
    badge = source(cells(name, "markdown")[0])
    link = f"github/{convert.REPOSITORY}/blob/main/colab/{name}.ipynb)"
    assert badge.startswith("[![Open in Colab](") and badge.endswith(link)
    sizes = [source(cell) for cell in cells(name) if "sizes = {" in source(cell)]
    assert len(sizes) == 1
    for scale in ("smoke", "cpu", "gpu", "tpu"):
        assert f'    "{scale}": dict(' in sizes[0]


@named
def test_one_cell_installs(name):
    first, *others = map(source, cells(name))
    assert "%pip install" in first and "find_spec" in first
    for text in others:
        assert "pip install" not in text and "drive.mount" not in text


def install_cell():
    """The install cell as a program that appends its commands to `commands`."""
    program = source(cells("your_own_task")[0])
    return re.sub(
        "(?m)^( *)[!%](.+)", lambda line: f"{line[1]}commands.append({line[2]!r})", program
    )


@pytest.mark.parametrize("version", ["0.7.2", "0.11.1", "0.10.1"])
def test_a_jax_that_cannot_be_kept_is_refused(monkeypatch, version):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "reasoning" else real(name)
    )
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    commands = []
    with pytest.raises(RuntimeError, match=f"jax {version} is installed, and jax >=.* is needed:"):
        exec(install_cell(), {"commands": commands})
    assert commands == []
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.3.dev20261101")
    exec(install_cell(), {"commands": commands})
    assert len(commands) == 2


@pytest.mark.parametrize("is_here", [True, False])
def test_the_install_cell_keeps_the_jax_that_is_here(monkeypatch, tmp_path, is_here):
    """Its two commands, carried out but for the last."""
    if not is_here:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    commands = []
    exec(install_cell(), {"commands": commands})
    assert len(commands) == (0 if is_here else 2)
    if not is_here:
        freeze, install = commands
        freeze = freeze.replace("{sys.executable}", sys.executable)
        subprocess.run(["bash", "-c", freeze], cwd=tmp_path, check=True)
        assert install.startswith("pip install -q -c kept.txt ")
        kept = (tmp_path / "kept.txt").read_text().splitlines()
        for package in ("jax", "jaxlib", "numpy"):
            assert f"{package}=={importlib.metadata.version(package)}" in kept
        assert not any(line.startswith(("optax", "flax", "reasoning")) for line in kept)


@pytest.mark.slow
@named
def test_it_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("REASONING_NOTEBOOK_SCALE", "smoke")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    plots = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(plots) == NOTEBOOKS[name]
    assert not (tmp_path / "kept.txt").exists()
