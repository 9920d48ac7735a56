"""A run that is killed at random moments ends as the run that nobody disturbed, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import interruptions
from reasoning.runtime.checkpoints import save_tree

ROOT = Path(__file__).parents[2]
TINY = (
    "--config=experiments/configs/smoke.py", "--config.model.preset=0.1m",
    "--config.evaluation.problems=2", "--config.evaluation.validation_problems=2",
    "--config.pretrain.problems=40", "--config.finetune.problems=40", "--config.arm=mixed",
)


@pytest.mark.slow
def test_five_kills_change_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.interruptions", f"--directory={tmp_path}", "--kills=5",
         "--program=experiments.sft", "--", *TINY],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] == 5 and told["runs"] >= 1 and told["differences"] == []
    attempts = (tmp_path / "disturbed" / "attempts.jsonl").read_text().splitlines()
    assert attempts and (tmp_path / "disturbed" / "results.json").is_file()


def test_a_directory_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "alone").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "experiments.interruptions", f"--directory={tmp_path}"],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=100,
    )
    assert done.returncode == 2 and "holds files already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["alone"]


def write_run(path, loss, weight, seconds):
    path.mkdir()
    row = {"phase": "base", "step": 0, "loss": loss, "tokens_per_second/update": seconds}
    (path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (path / "completions.jsonl").write_text("")
    (path / "results.json").write_text(json.dumps({"pass@1": 0.5, "seconds": seconds}))
    save_tree(path / "policies" / "seed0" / "base", {"w": np.float32([weight])}, {})


def test_a_difference_is_found_and_the_clock_is_none(tmp_path):
    for name, loss, weight, seconds in (
        ("a", 1.0, 2.0, 3.0), ("same", 1.0, 2.0, 4.0), ("loss", 1.5, 2.0, 3.0),
        ("weight", 1.0, np.nextafter(np.float32(2.0), np.float32(3.0)), 3.0),
    ):
        write_run(tmp_path / name, loss, weight, seconds)
    assert interruptions.compare(tmp_path / "a", tmp_path / "same") == []
    assert interruptions.compare(tmp_path / "a", tmp_path / "loss") == ["metrics.jsonl: line 1"]
    (found,) = interruptions.compare(tmp_path / "a", tmp_path / "weight")
    assert found.startswith("policies/seed0/base")
