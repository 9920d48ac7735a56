"""Every setting of every configuration file is read by a program, and set by a test or command."""

import importlib
import re

import ml_collections
import pytest
from commands import PROGRAMS, ROOT
from settings import WHOLE, Reader

from experiments.sft import COUNTS

# The programs that read a file. `evaluate` scores the policies of any run by the run's own file.
SERVES = {
    "countdown": ("sft", "rl", "quickstart", "ablations", "evaluate", "export"),
    "decode_compare": ("decode_compare", "evaluate"),
    "distill": ("distill", "evaluate"),
    "group_words": ("sft", "rl", "quickstart", "ablations", "evaluate", "export"),
    "gsm8k": ("sft", "rl", "quickstart", "ablations", "evaluate", "export"),
    "hidden_reasoning": ("hidden_reasoning", "evaluate"),
    "inference_scaling": ("inference_scaling",),
    "pod": ("plan", "sft", "rl", "evaluate"),
    "self_improve": ("self_improve", "evaluate"),
    "serial": ("serial",),
    "smoke": ("sft", "rl", "quickstart", "ablations", "evaluate", "export"),
}


def leaves(config, prefix=""):
    """`section.key` of every setting."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict) and len(value):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def config_of(file):
    return importlib.import_module(f"experiments.configs.{file}").get_config()


@pytest.fixture(scope="module")
def readers():
    return {name: Reader(name) for names in SERVES.values() for name in names}


def test_every_file_is_here():
    files = {path.stem for path in (ROOT / "experiments" / "configs").glob("[!_]*.py")}
    assert files == set(SERVES) and {p for names in SERVES.values() for p in names} < {*PROGRAMS}


@pytest.mark.parametrize("file", SERVES)
def test_every_setting_is_read(file, readers):
    unread = [
        key for key in leaves(config_of(file))
        if key not in COUNTS and not any(readers[name].reads(key) for name in SERVES[file])
    ]
    assert unread == []


@pytest.mark.parametrize("file", [file for file, names in SERVES.items() if "evaluate" in names])
def test_every_run_can_be_evaluated(file, readers):
    config = config_of(file)
    paths = [path for path in readers["evaluate"].paths if "*" not in path]
    assert "evaluation.split" in paths
    for path in paths:
        if path.rpartition(".")[2] not in WHOLE:
            assert config_path(config, path), path


def config_path(config, path):
    """Whether there is such a setting."""
    for key in path.split("."):
        if key not in config:
            return False
        config = config[key]
    return True


def test_an_unread_setting_is_found(readers):
    assert not readers["decode_compare"].reads("rl.steps")
    assert not readers["decode_compare"].reads("evaluation.split")
    assert readers["decode_compare"].reads("compare.floor")
    assert readers["distill"].reads("teacher.learning_rate")  # by way of `pretrain`


def test_every_setting_is_set_by_a_test_or_a_command():
    """By name: in a test as `rl.steps = 3`, `steps=3` or "steps", in a command as a flag."""
    keys = {key.rpartition(".")[2] for file in SERVES for key in leaves(config_of(file))}
    assigned = set()
    for path in ROOT.glob("tests/**/*.py"):
        text = path.read_text()
        for said in (r"\.(\w+)(?:, [\w.]+)* = ", r"\b(\w+)=", r"\"(?:\w+\.)*(\w+)\""):
            assigned |= set(re.findall(said, text))
    for path in (*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), *ROOT.glob("experiments/**/*.py")):
        assigned |= set(re.findall(r"--config\.(?:\w+\.)*(\w+)=", path.read_text()))
    assert sorted(keys - assigned) == []
