"""Make the notebooks from their scripts, or see whether they are in step.

    python colab/convert.py            writes NAME.ipynb beside every NAME.py
    python colab/convert.py --check    writes nothing; exit status 1 if one is not in step

A script is in jupytext's percent format. Its notebook has two cells more, which are the same in all
of them: the badge, and behind the introduction the cell that installs this project.
"""

import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbformat.notebooknode import NotebookNode

# To be replaced by the owner and name under which the project is published.
REPOSITORY = "OWNER/reasoning"

FOLDER = Path(__file__).parent
SETUP = (FOLDER.parent / "setup.py").read_text(encoding="utf-8")
JAX = re.search(r'"jax([^"\[]+)"', SETUP)[1]  # the versions that setup.py asks for
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/colab/{name}.ipynb)"
)
INSTALL = """\
# Installs the project where it is not, in about a minute. The jax that is here stays as it is.
import importlib.metadata
import importlib.util
import sys

from packaging.specifiers import SpecifierSet

if importlib.util.find_spec("reasoning") is None:
    if importlib.util.find_spec("jax"):
        found = importlib.metadata.version("jax")
        if not SpecifierSet("{jax}").contains(found, prereleases=True):
            raise RuntimeError(
                f"jax {{found}} is installed, and jax {jax} is needed: choose a newer runtime "
                "version (Runtime > Change runtime type), or open this in a Jupyter of your own."
            )
    !{{sys.executable}} -m pip freeze | grep -E "^(jax|libtpu|numpy)" > kept.txt
    %pip install -q -c kept.txt "reasoning[colab] @ git+https://github.com/{repository}"\
"""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def scripts() -> list[Path]:
    """The notebooks' sources."""
    return sorted(path for path in FOLDER.glob("*.py") if path != Path(__file__))


def make_notebook(script: Path) -> NotebookNode:
    """The notebook of a script, without outputs; its cells are named by their place."""
    read = jupytext.read(script, fmt="py:percent")
    about = {"repository": REPOSITORY, "name": script.stem, "jax": JAX}
    badge = nbformat.v4.new_markdown_cell(BADGE.format(**about))
    install = nbformat.v4.new_code_cell(INSTALL.format(**about))
    introduction, *others = read.cells
    cells = [badge, introduction, install, *others]
    for place, cell in enumerate(cells):
        cell.id, cell.metadata = f"{script.stem}-{place:02}", {}
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def written(script: Path) -> str:
    """The notebook's file as it must be."""
    notebook = make_notebook(script)
    nbformat.validate(notebook)
    return nbformat.writes(notebook, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    """Write or check every notebook; returns the exit status."""
    late = 0
    for script in scripts():
        path, text = script.with_suffix(".ipynb"), written(script)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        late += 1
        if arguments == ["--check"]:
            print(f"{path.name}: is not what {script.name} says; run python colab/convert.py.")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path.name}: written.")
    return int(late > 0 and arguments == ["--check"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
