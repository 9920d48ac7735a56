"""The main job on the smoke configuration: its files, its figures, and what it refuses."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import quickstart
from experiments.configs import smoke

FIGURES = (
    "pass@1", "pass@1_best_tag", "pass@1_own_tag", "pass@S", "cons@S", "mutual_information",
    "tag_usage",
)
TUNED = ("mixed", "random", "fixed", "matched")
REINFORCED = ("mixed_grpo", "matched_gfpo")


def configuration():
    """The smoke run with the low-variance form of the fork's update, and dynamic sampling."""
    config = smoke.get_config()
    config.gfpo.algorithm, config.grpo.rounds = "gfpo_exact", 2
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished smoke run, for all tests of this module."""
    workdir = tmp_path_factory.mktemp("runs") / "smoke"
    quickstart.main(configuration(), str(workdir))
    return workdir


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def without_times(results: dict) -> dict:
    """Results less what a clock says."""
    if isinstance(results, dict):
        return {k: without_times(v) for k, v in results.items() if "seconds" not in k}
    return results


def test_results_hold_every_figure_with_its_interval(finished):
    results = json.loads((finished / "results.json").read_text())
    assert tuple(results["arms"]) == TUNED + REINFORCED
    for figures in results["arms"].values():
        for name in FIGURES:
            entry = figures[name]
            assert entry["low"] <= entry["value"] <= entry["high"]
            assert entry["n"] == 12
        assert figures["training"]["tokens"] > 0
    assert results["seconds"] > 0 and results["versions"]["jax"]
    tokens = {arm: figures["training"]["tokens"] for arm, figures in results["arms"].items()}
    assert len({tokens[arm] for arm in TUNED}) == 1, "every arm trains on the same tokens"
    compared = "pass@1_own_tag of matched_gfpo less pass@1_own_tag of mixed_grpo"
    assert compared in results["comparisons"]
    assert results["arms"]["matched"]["mutual_information"]["maximum"] == math.log(4)


def test_the_run_directory_is_complete(finished):
    for name in ("config.json", "metrics.jsonl", "completions.jsonl", "results.json"):
        assert (finished / name).is_file()
    plots = {path.name for path in (finished / "plots").iterdir()}
    assert plots == {
        "learning_curves.png", "accuracy_by_tag.png", "tag_by_strategy.png", "pass_at_k.png",
        "reinforcement.png",
    }
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").open()]
    assert {row["phase"] for row in metrics} == {"base", *TUNED, *REINFORCED}
    for phase in ("base", *TUNED):
        steps = [row["step"] for row in metrics if row["phase"] == phase]
        assert steps == list(range(6))
    for phase in REINFORCED:
        rows = [row for row in metrics if row["phase"] == phase]
        assert [row["step"] for row in rows if "reward" in row] == [0, 1]
        assert [row["step"] for row in rows if "validation/pass@1" in row] == [0, 1, 2]
    matched = [row for row in metrics if row["phase"] == "matched"]
    assert all(0 <= row["matching_entropy"] <= math.log(4) + 1e-5 for row in matched)
    completions = [json.loads(line) for line in (finished / "completions.jsonl").open()]
    tested = [row for row in completions if "step" not in row]
    assert len(tested) == 6 * 12 * 8  # arms, problems, tags times samples
    assert {"prompt", "tag", "completion", "correct", "reason", "strategy"} <= set(completions[0])


@pytest.mark.slow  # runs of one command are compared bit for bit by test_interruptions, too
def test_the_same_command_gives_the_same_figures(finished, tmp_path):
    quickstart.main(configuration(), str(tmp_path / "again"))
    first, second = (
        without_times(json.loads((folder / "results.json").read_text()))
        for folder in (finished, tmp_path / "again")
    )
    assert first == second


def test_a_finished_run_is_left_as_it_is(finished, capsys):
    before = contents(finished)
    quickstart.main(configuration(), str(finished))
    assert contents(finished) == before
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("task.name", "chess", "task='chess'"),
        ("task.arguments.tries", 0, "tries=0"),
        ("model.num_heads", 3, "num_kv_heads=2: must divide num_heads=3"),
        ("model.dtype", "float16", "dtype='float16'"),
        ("model.num_strategies", 3, "num_strategies=3"),
        ("model.max_length", 8, "max_length=8"),
        ("arm", "chess", "arm='chess'"),
        ("finetune.rows", 3, "finetune.rows=3"),
        ("seeds", 0, "seeds=0"),
        ("pretrain.steps", -1, "pretrain.steps=-1"),
        ("finetune.steps", -1, "finetune.steps=-1"),
        ("finetune.buckets", 0, "finetune.buckets=0"),
        ("finetune.learning_rate", 0.0, "learning_rate=0.0"),
        ("loss.match_tokens", 0, "loss.match_tokens=0"),
        ("loss.match_every", 0, "loss.match_every=0"),
        ("loss.tag_noise", -1.0, "loss.tag_noise=-1.0"),
        ("evaluation.samples_per_tag", 0, "evaluation.samples_per_tag=0"),
        ("loss.reduction", "median", "reduction='median'"),
        ("finetune.optimizer", "sgd", "optimizer='sgd'"),
        ("evaluation.temperature", -1.0, "temperature=-1.0"),
        # A minute: the search goes on until it finds no new problem for long.
        pytest.param("evaluation.problems", 10**6, "count=1000000", marks=pytest.mark.slow),
        ("finetune.steps", 7, "another configuration (finetune.steps"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(finished, refusal, setting, value, words):
    config = configuration()
    config.update_from_flattened_dict({setting: value})
    before = contents(finished)
    assert words in refusal(quickstart.main, config, finished)
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task.name": "countdown4"}, "model.max_length=112: the longest training row takes 1"),
        ({"task.name": "group_words", "task.arguments.size": 3}, "size=3: task 'group_words'"),
    ],
)
def test_nothing_is_written_for_what_cannot_be_trained(tmp_path, refusal, settings, words):
    config = configuration()
    config.update_from_flattened_dict(settings)
    assert words in refusal(quickstart.main, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()



@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "workdir is missing"),
        (["--config.task.nme=countdown"], "nme"),
        (["--config.model.num_heads=3"], "num_kv_heads=2: must divide num_heads=3"),
        (["--config=experiments/configs/countdown.py:huge"], "preset='huge'"),
    ],
)
def test_flags_are_refused_in_one_line(tmp_path, arguments, words):
    if arguments:
        arguments = [f"--workdir={tmp_path / 'run'}", *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.quickstart", *arguments],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
