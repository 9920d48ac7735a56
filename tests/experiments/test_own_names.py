"""Runs on code of one's own: the directory holds the names, and the same command goes on."""

import json

import pytest

from experiments import rl, sft
from experiments.configs import smoke

OWN = '''
import jax.numpy as jnp
from reasoning.data.tasks.countdown import Countdown
from reasoning.learning.advantages import grpo

class Mine(Countdown):
    def verify(self, problem, answer):  # of its own, so on the host
        return super().verify(problem, answer)

class Other(Mine):
    pass

def noisy(rewards, valid):
    """Something that is never 0 for all: an untrained policy's rewards mostly are."""
    return grpo(rewards, valid) + jnp.linspace(-1.0, 1.0, rewards.shape[1])[None] * valid

def plain(log_ratio, advantages):
    return -jnp.exp(log_ratio) * advantages
'''


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "own_names.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    config = smoke.get_config()
    config.task.name, config.arm = "own_names:Mine", "mixed"
    config.pretrain.steps = config.finetune.steps = 2
    config.evaluation.problems = config.evaluation.validation_problems = 4
    config.rl.update(algorithm="grpo", workers=1, validation_samples=2, microbatches=1)
    config.rl.override.advantage = "own_names:noisy"
    config.rl.override.kind = "own_names:plain"
    return config


@pytest.mark.slow
def test_a_run_on_own_code_goes_on_and_is_told_from_another(
    config, tmp_path, stopped_at, refusal
):
    places = [("mixed", 0), ("mixed_grpo", 0)]
    stopped_at(places, rl.main, config, tmp_path / "stopped")
    rl.main(config, str(tmp_path / "whole"))
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("stopped", "whole")
    ]
    losses = [[row.get("loss") for row in each] for each in rows]
    assert losses[0] == losses[1] and any(losses[0])
    steps = [row for row in rows[0] if row["phase"] == "mixed_grpo" and "loss" in row]
    assert len(steps) == config.rl.steps and all(row["loss"] != 0.0 for row in steps)
    described = json.loads((tmp_path / "stopped" / "config.json").read_text())
    assert list(described["code"]) == ["own_names"]
    about = described["config"]
    assert about["task"]["name"] == "own_names:Mine"
    assert about["rl"]["override"]["advantage"] == "own_names:noisy"
    config.task.name = "own_names:Other"
    error = refusal(rl.main, config, tmp_path / "stopped")
    assert "task.name is 'own_names:Mine' there and 'own_names:Other' here" in error


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task.name", "own_names:Absent", "task='own_names:Absent': module own_names has no Abs"),
        ("task.name", "own_name:Mine", "there is no module own_name; run the program from"),
        ("task.name", "own_names:plain", "its argument log_ratio has no default"),
        ("corpus.name", "own_names:Mine", "returned Mine; return a Corpus"),
        ("rl.override.advantage", "own_names:Mine", "'own_names:Mine': raised ValueError on"),
        ("rl.override.kind", "own_names:absent", "kind='own_names:absent': module own_names has"),
    ],
)
def test_what_is_no_such_thing_is_refused_before_anything_is_written(
    field, value, message, config, tmp_path, refusal
):
    config.update_from_flattened_dict({field: value})
    error = refusal(rl.main if field.startswith("rl") else sft.main, config, tmp_path / "run")
    assert message in error
    assert not (tmp_path / "run").exists()
