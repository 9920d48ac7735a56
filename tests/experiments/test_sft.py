"""The general launcher: another task, several seeds, one arm."""

import json
import signal
from functools import partial

import jax
import numpy as np
import pytest

from experiments import evaluate, quickstart, sft, sources
from experiments.configs import group_words, smoke
from reasoning.data.pipelines import practice_examples
from reasoning.data.tokenizers import Tokenizer
from reasoning.runtime.checkpoints import load_tree
from reasoning.runtime.meshes import use_mesh
from reasoning.runtime.runs import STOPPED, Run, Saving


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two seeds of group words, tiny, under the arm `random`, whose rows are packed."""
    config = group_words.get_config()
    tiny = smoke.get_config()
    for section in ("pretrain", "finetune", "evaluation"):
        config[section].update(tiny[section].to_dict())
    config.arm, config.seeds = "random", 2
    config.finetune.pack = 64
    workdir = tmp_path_factory.mktemp("runs") / "group"
    sft.main(config, str(workdir))
    return workdir


def test_every_seed_is_trained_and_the_arms_figures_are_over_seeds(finished):
    results = json.loads((finished / "results.json").read_text())
    assert list(results["arms"]) == ["random"]
    assert [seed["seed"] for seed in results["seeds"]] == [0, 1]
    mean = sum(seed["arms"]["random"]["pass@1"]["value"] for seed in results["seeds"]) / 2
    entry = results["arms"]["random"]["pass@1"]
    assert entry["n"] == 2 and entry["value"] == pytest.approx(mean)
    counts = [seed["arms"]["random"]["tag_by_strategy"] for seed in results["seeds"]]
    assert counts[0] != counts[1], "seeds must differ"
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").open()]
    assert [(row["seed"], row["phase"]) for row in rows] == [
        (seed, phase) for seed in (0, 1) for phase in ("base", "random") for _ in range(6)
    ]
    assert {path.name for path in (finished / "plots").iterdir()} >= {"learning_curves.png"}


def test_a_signal_ends_an_evaluation_after_its_batch(tmp_path, monkeypatch, capsys):
    config, asked = smoke.get_config(), []

    def judge(*_):
        asked.append(signal.raise_signal(signal.SIGTERM))

    monkeypatch.setattr(sft, "sample_and_judge", judge)
    setup = sft.set_up(config, ("mixed",))
    with pytest.raises(SystemExit) as stopped, Run(tmp_path / "run", sft.PROGRAM, {}) as run:
        sft.evaluate(run, setup, None, "mixed", [0], config, 0)
    assert stopped.value.code == STOPPED and len(asked) == 1
    assert "stopped by SIGTERM; the same command goes on." in capsys.readouterr().out


def test_the_loop_moves_nothing_that_it_was_not_asked_to_move(tmp_path, monkeypatch):
    config, calls = smoke.get_config(), []

    def guarded(function):
        def call(*arguments, **settings):
            calls.append(function)
            with jax.transfer_guard("disallow"):
                return function(*arguments, **settings)

        return call

    monkeypatch.setattr(sft, "sft_update", guarded(sft.sft_update))
    monkeypatch.setattr(sft.assignment, "assign", guarded(sft.assignment.assign))
    setup = sft.set_up(config, ("matched",))
    data = sft.training_data(setup, config)
    params = sources.first_params(config, setup.model, jax.random.key(0), None)
    with Run(tmp_path / "run", sft.PROGRAM, {}) as run:
        work = partial(
            sft.train, run, setup, params, data.finetune, "finetune", "matched", config, 0
        )
        run.phase("seed0/matched", work, like=params, steps=config.finetune.steps)
    assert len(calls) == 2 * config.finetune.steps


def losses(path):
    return [json.loads(line)["loss"] for line in (path / "metrics.jsonl").open()]


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(tmp_path):
    config = smoke.get_config()
    config.pretrain.update(steps=4, problems=20)

    def run_on(mesh, name, **saving):
        config.mesh.update(mesh)
        setup = sft.set_up(config, ("mixed",))
        data = sft.Data(examples(setup), [])
        run = Run(tmp_path / name, sft.PROGRAM, config.to_dict(), saving=Saving(**saving))
        with run, use_mesh(setup.mesh):
            sft.pretrain(run, setup, data, config, 0)

    def examples(setup):
        return practice_examples(setup.task, setup.text_format, 0, config.pretrain.problems)

    alone, cut = dict(data=1, fsdp=1, tensor=1), dict(data=2, fsdp=2, tensor=2)
    run_on(alone, "alone")
    with pytest.raises(SystemExit):
        run_on(cut, "moved", max_minutes=0.0)
    run_on(alone, "moved")
    np.testing.assert_allclose(losses(tmp_path / "moved"), losses(tmp_path / "alone"), atol=1e-5)
    attempts = (tmp_path / "moved" / "attempts.jsonl").read_text().splitlines()
    assert len(attempts) == 2


def test_a_policy_of_a_run_is_opened_with_what_it_reads(finished):
    setup, policy = evaluate.policy_of_run(finished, "seed1/random")
    zeros = jax.tree.map(np.zeros_like, policy.params)
    saved = load_tree(finished / "policies" / "seed1" / "random", zeros)
    jax.tree.map(np.testing.assert_array_equal, policy.params, saved)
    assert setup.task.name == "group_words" and len(setup.test) == 12
    tokenizers = [x.fingerprint for x in (
        policy.text_format.tokenizer, Tokenizer.load(finished / sources.TOKENIZER)
    )]
    assert tokenizers[0] == tokenizers[1]


@pytest.mark.parametrize(
    ("run", "phase", "message"),
    [
        ("no", "seed0/random", "run=no: holds no config.json"),
        (None, "seed9/random", "no such directory"),
    ],
)
def test_what_no_run_holds_is_refused(run, phase, message, finished):
    with pytest.raises(ValueError, match=message):
        evaluate.policy_of_run(run or finished, phase)


def test_a_directory_of_another_program_is_refused(finished, capsys):
    config = group_words.get_config()
    with pytest.raises(SystemExit):
        quickstart.main(config, str(finished))
    assert "experiments.sft" in capsys.readouterr().err


@pytest.mark.parametrize("group", ["S3", "S4", "S5", "A5"])
def test_every_group_can_be_set_up(group):
    config = group_words.get_config(group)
    config.evaluation.problems, config.evaluation.validation_problems = 4, 4
    setup = sft.set_up(config, ("matched",))
    config.pretrain.problems = config.finetune.problems = 20
    assert len(sft.training_data(setup, config).finetune) == 20
