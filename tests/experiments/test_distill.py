"""Distillation on a task of one operation: equal tokens, own completions, and refusals."""

import json

import numpy as np
import pytest

from experiments import distill, launch, sources
from experiments.configs import countdown
from experiments.configs import distill as configs


def configuration():
    """Two numbers to 8, one operation: learned within seconds."""
    config = configs.get_config()
    arguments = dict(size=2, largest=8, target=16, limit=64, tries=3, practice_tries=1)
    config.task.arguments.update(arguments)
    config.model.update(max_length=40, num_layers=1)
    for phase in (config.pretrain, config.finetune, config.teacher):
        phase.steps, phase.problems, phase.rows, phase.buckets = 6, 40, 16, 1
    config.pretrain.steps = config.teacher.steps = 40
    config.distill.samples = 1
    config.distill.students = ("hard", "forward", "on_policy")
    config.evaluation.problems, config.evaluation.validation_problems = 8, 1
    return config


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A finished run of experiments.distill."""
    workdir = tmp_path_factory.mktemp("runs") / "distill"
    distill.main(configuration(), str(workdir))
    return workdir


def test_students_are_compared_at_equal_tokens(distilled):
    results = json.loads((distilled / "results.json").read_text())
    assert list(results["arms"]) == ["base", "teacher", "hard", "forward", "on_policy"]
    tokens = {name: figures["training"]["tokens"] for name, figures in results["arms"].items()}
    assert tokens["hard"] == tokens["forward"]
    assert 6 * 16 < tokens["on_policy"] < 6 * 16 * 40  # as many completions
    assert list(results["comparisons"]) == [
        "pass@1 of teacher less base", "pass@1 of hard less base", "pass@1 of forward less hard",
        "pass@1 of on_policy less hard",
    ]
    rows = [json.loads(line) for line in (distilled / "metrics.jsonl").open()]
    for name in ("forward", "on_policy"):
        found = [row["divergence"] for row in rows if row["phase"] == name]
        assert len(found) == 6 and min(found) > 0
        assert name == "on_policy" or found[-1] < found[0]  # whose rows are others at every step
    first = {
        name: next(row for row in rows if row["phase"] == name)["trace_nll"]
        for name in ("hard", "forward")
    }
    assert first["hard"] == pytest.approx(first["forward"], rel=1e-5)  # the same first batch


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_figures(distilled, stopped_at, figures_of, tmp_path):
    places = [("forward", 2), ("on_policy", 4)]
    run = stopped_at(places, distill.main, configuration(), tmp_path / "run")
    assert figures_of(run) == figures_of(distilled)


def test_own_rows_are_the_students_own_completions():
    config = configuration()
    study = distill.build(config)
    params = sources.first_params(
        config, study.setup.model, launch.run_key(0, "init"), None
    )
    members = np.array([3, 5, 7])
    batch = distill.own_batch(study, params, members, [12], step=0, seed=0)
    text_format = study.setup.text_format
    prompts = [text_format.prompt_ids(study.setup.task.prompt(study.problems[i])) for i in members]
    for row, prompt in enumerate(prompts):
        np.testing.assert_array_equal(batch.tokens[row, : batch.fork[row]], prompt)
        ids = batch.tokens[row, batch.fork[row] + 1 : batch.lengths[row]]
        ended = text_format.eos_id in ids
        assert ended == (ids[-1] == text_format.eos_id)
        assert ended or batch.lengths[row] == study.setup.model.max_length
    other = distill.own_batch(study, params, members, [12], step=1, seed=0)
    assert other.tokens.shape != batch.tokens.shape or (other.tokens != batch.tokens).any()


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("distill.students", ("forward",), "distill.students=('forward',): name hard"),
        ("distill.students", ("hard", "soft"), "distill.students=('hard', 'soft')"),
        ("distill.students", ("hard", "hard"), "none of them twice"),
        ("model.max_length", 42, "model.max_length=42: a policy's own completions"),
        ("teacher.trained", "nothing", "trained='nothing'"),
        ("distill.mix", 0.0, "divergence mix=0.0"),
        ("distill.temperature", 0.0, "divergence temperature=0.0"),
        ("model.max_length", 16, "model.max_length=16: the longest training row takes"),
        ("distill.samples", 20, "finetune.rows=16: must be at least distill.samples=20"),
        ("distill.teacher", "9t", "preset='9t'"),
        ("teacher.problems", 10, "teacher.problems=10"),
        ("teacher.steps", 0, "teacher.steps=0"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(tmp_path, refusal, setting, value, words):
    config = configuration()
    config.update_from_flattened_dict({setting: value})
    assert words in refusal(distill.main, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_configuration_is_refused(tmp_path, refusal):
    words = "give --config=experiments/configs/distill.py"
    assert words in refusal(distill.main, countdown.get_config(), tmp_path / "run")



@pytest.mark.parametrize("preset", configs.PRESETS)
def test_every_preset_describes_a_study(preset):
    config = configs.get_config(preset)
    config.pretrain.problems = config.teacher.problems = config.finetune.problems = 32
    config.evaluation.problems = config.evaluation.validation_problems = 8
    study = distill.build(config)
    assert study.teacher.model.d_model > study.setup.model.d_model
