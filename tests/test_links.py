"""What pages link to is there; experiments/README.md names every program, preset and advantage."""

import importlib
import pkgutil
import re
import shlex
from operator import attrgetter
from pathlib import Path

import pytest

from experiments import configs
from reasoning.learning.advantages import ADVANTAGES

ROOT = Path(__file__).parent.parent
README = ROOT / "experiments" / "README.md"
PAGES = [README, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "colab/README.md")),
         *sorted(ROOT.glob("docs/**/*.md"))]
LINK = re.compile(r"\[([^\]]+)\]\(([^)#:]*)(?:#([^)]+))?\)")
FIELD = re.compile(r"--config\.([\w.]+)")
PROGRAMS = [
    path.stem for path in sorted((ROOT / "experiments").glob("*.py"))
    if 'if __name__ == "__main__"' in path.read_text()
]
CONFIGS = [name for _, name, _ in pkgutil.iter_modules(configs.__path__)]


def anchors(page):
    """What GitHub names a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for label, target, anchor in LINK.findall(page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"
        if label.startswith("`") and ".py" in label:
            assert str(path).endswith(label.strip("`").partition("::")[0]), label


def test_links_are_found():
    text = "[a](b.md), [c](d.md#e-f), [g](#h) and [i](https://j.k)"
    assert LINK.findall(text) == [("a", "b.md", ""), ("c", "d.md", "e-f"), ("g", "", "h")]
    assert "look-at-a-run" in anchors(ROOT / "docs" / "runs.md")


def test_every_function_named_is_there():
    named = re.findall(r"\[`[\w/]+\.py::([\w.]+)`\]\(([\w./]+)\.py\)", README.read_text())
    assert len(named) > 60
    for attribute, target in named:
        path = (README.parent / target).resolve().relative_to(ROOT)
        module = importlib.import_module(".".join(path.parts))
        assert attrgetter(attribute)(module) is not None


def test_every_program_and_every_advantage_is_listed():
    text = README.read_text()
    assert PROGRAMS and set(PROGRAMS) <= {label for label, *_ in LINK.findall(text)}
    for advantage in ADVANTAGES.values():
        assert f"learning/advantages.py::{advantage.__name__}`" in text


def presets(name):
    """The presets of a configuration file beside its default."""
    module = importlib.import_module(f"experiments.configs.{name}")
    if name == "pod":
        return list(module.PODS)
    if name == "decode_compare":
        return list(module.TASKS)[1:]
    return list(getattr(module, "PRESETS", ("default",)))[1:]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_preset_is_listed(name):
    text = README.read_text()
    assert f"{name}.py" in text or name == "countdown"
    for preset in presets(name):
        assert f"{name}.py:{preset}" in text


def commands():
    return re.findall(r"`(experiments\.\w+ [^`]*--[^`]+)`", README.read_text())


def test_every_command_names_a_program_and_flags_that_exist():
    assert len(commands()) > 20
    for command in commands():
        program, *arguments = shlex.split(command)
        assert program.removeprefix("experiments.") in PROGRAMS
        file = next((a for a in arguments if a.startswith("--config=")), "--config=countdown.py")
        if file == "--config=FILE":
            continue
        name, _, preset = file.partition("=")[2].rpartition("/")[2].partition(".py")
        module = importlib.import_module(f"experiments.configs.{name}")
        config = module.get_config(*([preset.removeprefix(":")] if preset else []))
        for field in FIELD.findall(command):
            attrgetter(field)(config)  # AttributeError: no such field
