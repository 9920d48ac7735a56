"""Self-improvement on a task of one operation: files, figures, and refusals."""

import json

import numpy as np
import pytest

from experiments import arms, attempts, launch, self_improve, sources
from experiments.configs import countdown
from experiments.configs import self_improve as configs
from experiments.self_improve import METHODS, Method
from reasoning.data.pipelines import Example
from reasoning.data.tasks.base import parse_completion


def configuration():
    """Two numbers to 8, one operation: learned within seconds."""
    config = configs.get_config()
    arguments = dict(size=2, largest=8, target=16, limit=64, tries=3)
    config.task.arguments.update(arguments)
    config.model.preset, config.model.max_length = "0.01m", 40
    for phase in (config.pretrain, config.finetune, config.dpo):
        phase.steps, phase.rows, phase.buckets = 6, 16, 1
    config.pretrain.problems = 40
    config.pretrain.steps = 80
    config.improve.methods = ("rest_em",)
    config.improve.override.rationalise = True
    config.improve.override.temperature = 1.0
    config.improve.override.demonstrations = True
    # One shape for all that is sampled: it is compiled once.
    config.improve.override.samples = config.attempts.samples = 8
    config.finetune.problems = config.evaluation.problems = 12
    config.evaluation.validation_problems = 1
    return config


@pytest.fixture(scope="module")
def improved(tmp_path_factory):
    """A finished run of experiments.self_improve."""
    workdir = tmp_path_factory.mktemp("runs") / "improve"
    self_improve.main(configuration(), str(workdir))
    return workdir


def read(path):
    return json.loads(path.read_text())


def test_every_policy_of_the_rounds_is_measured_and_compared(improved):
    results = read(improved / "results.json")
    rounds = ["rest_em_1", "rest_em_2"]
    assert list(results["arms"]) == ["base", "more", *rounds, "dpo", "right", "chains"]
    for name, figures in results["arms"].items():
        for figure in ("pass@1", "greedy", "pass@8", "retried", "recovered", "trace_validity"):
            entry = figures[figure]
            assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1
            assert entry["n"] == 12
        assert figures["training"]["tokens"] > 0, name
    assert list(results["comparisons"]) == [
        "pass@1 of more less base",
        "pass@1 of rest_em_1 less base", "pass@1 of rest_em_2 less rest_em_1",
        "pass@1 of rest_em_2 less more", "pass@1 of dpo less base", "pass@1 of chains less base",
        "pass@1 of chains less right", "retried of chains less base",
    ]
    difference = results["comparisons"]["pass@1 of dpo less base"]["value"]
    values = [results["arms"][name]["pass@1"]["value"] for name in ("dpo", "base")]
    assert difference == pytest.approx(values[0] - values[1], abs=1e-9)
    assert (improved / "table.txt").read_text().count("\n") == 1 + 7 + 8
    assert {path.name for path in (improved / "plots").iterdir()} == {
        "rounds.png", "pass_at_k.png"
    }


def test_what_a_round_keeps_is_right_and_within_the_methods_cap(improved):
    study = self_improve.build(configuration())
    for n in (1, 2):
        kept = read(improved / "finished" / "seed0" / f"rest_em_{n}_samples.json")["outcome"]
        assert len(kept["kept"]) == len(study.problems) == 12
        task, solved = study.setup.task, 0
        for problem, texts in zip(study.problems, kept["kept"], strict=True):
            answers = [parse_completion(text)[1] for text in texts]
            assert all(task.verify(problem, answer).correct for answer in answers)
            assert len(texts) <= METHODS["rest_em"].cap
            solved += bool(texts)
        assert kept["solved"] + kept["rationalised"] == pytest.approx(solved / 12)
        assert 0 < kept["right"] <= kept["solved"]


def test_a_finished_run_is_only_reported(improved, capsys):
    self_improve.main(configuration(), str(improved))
    out = capsys.readouterr().out
    assert "finished" in out and "pass@1 of dpo less base" in out


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_figures(improved, stopped_at, figures_of, tmp_path):
    places = [("rest_em_2", 2), ("dpo", 4)]
    run = stopped_at(places, self_improve.main, configuration(), tmp_path / "run")
    assert figures_of(run) == figures_of(improved)


def test_pairs_and_chains_are_of_one_problem_each(improved):
    study = self_improve.build(configuration())
    found = read(improved / "finished" / "seed0" / "attempts.json")["outcome"]
    task = study.setup.task
    assert any(found["pairs"]) and any(found["chains"])
    for problem, pairs, chain in zip(study.problems, found["pairs"], found["chains"], strict=True):
        for pair in pairs:
            verdicts = [task.verify(problem, parse_completion(text)[1]).correct for text in pair]
            assert verdicts == [True, False]
        if chain:
            steps, answer = parse_completion(chain[0])
            assert task.check_trace(problem, None, steps) == 1.0
            assert answer == parse_completion(chain[1])[1]
            assert task.verify(problem, answer).correct


class Judgements:
    """Completions of one problem as `chains` reads them."""

    def __init__(self, texts, correct):
        self.completions, self.correct = np.array([texts], object), np.array([correct])


def test_a_chain_ends_at_the_first_right_attempt_and_holds_the_last_wrong_ones():
    study = self_improve.build(configuration())
    problem = type(study.problems[0])((3, 4), 12)
    wrong = [f"{a} = 12 yes answer {a} = 12" for a in ("4 + 3", "4 - 3")]
    right = "4 * 3 = 12 yes answer 4 * 3 = 12"
    judged = Judgements([*wrong, right, wrong[0], right], [False, False, True, False, True])
    ((chain, alone),) = attempts.chains(study.setup, [problem], judged, 2)
    assert alone == right
    assert chain == f"4 + 3 = 7 low 4 - 3 = 1 low {right}"
    ((chain, _),) = attempts.chains(study.setup, [problem], judged, 1)
    assert chain == f"4 - 3 = 1 low {right}"
    none = Judgements(wrong, [False, False])
    assert attempts.chains(study.setup, [problem], none, 2) == [[]]


class Drawn:
    """A run whose phases have ended with what is given."""

    def __init__(self, found):
        self.found = found

    def phase(self, name, work):
        return None, self.found


def test_without_pairs_or_chains_the_program_ends_with_one_line(capsys):
    config = configuration()
    study = self_improve.build(config)
    problems = study.problems[:2]
    right, wrong = "1 + 1 = 2 yes answer 1 + 1 = 2", "1 + 2 = 3 high answer 1 + 2 = 3"
    pairs, chained = [[[right, wrong]], []], [[right, right], []]

    def draw(**found):
        return attempts.draw_attempts(Drawn(found), study.setup, None, problems, config, 0)

    drawn = draw(pairs=pairs, chains=chained)
    assert len(drawn.pairs) == len(drawn.chains) == len(drawn.right) == 1
    for found in ({"pairs": pairs, "chains": [[], []]}, {"pairs": [[], []], "chains": chained}):
        with pytest.raises(SystemExit):
            draw(**found)
        error = capsys.readouterr().err
        assert error.startswith("error: attempts.samples=8: ") and error.count("\n") == 1
    config.dpo.steps = 0
    assert not draw(pairs=[[], []], chains=chained).pairs


def test_a_retry_is_a_step_after_a_failed_try():
    texts = [
        "4 + 3 = 7 low 4 * 3 = 12 yes answer 4 * 3 = 12",
        "4 * 3 = 12 yes answer 4 * 3 = 12",
        "4 + 3 = 7 low answer 4 + 3 = 7",
        "4 + 3 = 7 high",
        "",
    ]
    found = arms.retries(Judgements(texts, [False] * 5))
    np.testing.assert_array_equal(found, [[True, False, False, False, False]])


def test_reference_log_probs_are_those_of_every_pair(improved):
    config = configuration()
    study = self_improve.build(config)
    setup = study.setup
    pairs = [
        Example(example.prompt, (example.traces[0], example.traces[0][2:]))
        for example in study.demonstrations[:9]
    ]
    params = sources.first_params(
        config, setup.model, launch.run_key(0, "init"), None
    )
    loss = attempts.preference(config)
    found = attempts.reference_log_probs(setup, params, pairs, loss, rows=8)
    assert found.shape == (9, 2) and (found < 0).all()
    alone = attempts.reference_log_probs(setup, params, pairs[8:], loss, rows=8)
    np.testing.assert_allclose(found[8:], alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("improve.methods", ("star", "magic"), "improve.methods=('star', 'magic')"),
        ("model.max_length", 16, "model.max_length=16: the longest training row takes"),
        ("model.max_length", 42, "model.max_length=42: a policy's own completions"),
        ("improve.methods", (), "improve.methods=()"),
        ("improve.methods", ("rft", "rft"), "none of them twice"),
        ("improve.rounds", 0, "improve.rounds=0"),
        ("improve.hinted", 1.5, "improve.hinted=1.5"),
        ("improve.hinted", 0.0, "improve.hinted=0: rest_em tells the policy answers"),
        ("improve.override.samples", 0, "improve samples=0"),
        ("improve.override.start", "middle", "improve start='middle'"),
        ("improve.override.temperature", -1.0, "temperature=-1.0"),
        ("improve.override.cap", 17, "improve method rest_em: may keep 17"),
        ("attempts.wrong", 0, "attempts.wrong=0"),
        ("dpo.beta", 0.0, "preference beta=0.0"),
        ("dpo.rows", 15, "dpo.rows=15: must be even"),
        ("dpo.trained", "nothing", "trained='nothing'"),
        ("pretrain.steps", 0, "pretrain.steps=0"),
        ("task.name", "group_words", "chains of attempts are made for countdown"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(tmp_path, refusal, setting, value, words):
    config = configuration()
    if setting == "task.name":
        config.task.arguments = {"group": "S3", "length": 3}
    config.update_from_flattened_dict({setting: value})
    assert words in refusal(self_improve.main, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_configuration_is_refused(tmp_path, refusal):
    words = "give --config=experiments/configs/self_improve.py"
    assert words in refusal(self_improve.main, countdown.get_config(), tmp_path / "run")



@pytest.mark.parametrize("preset", configs.PRESETS)
def test_every_preset_describes_a_study(preset):
    config = configs.get_config(preset)
    config.pretrain.problems = config.finetune.problems = 32
    config.evaluation.problems = config.evaluation.validation_problems = 8
    assert list(self_improve.build(config).methods) == list(config.improve.methods)


def test_methods_differ_as_their_papers_do():
    assert METHODS["star"].rationalise and METHODS["star"].filters.temperature == 0.0
    assert METHODS["rft"].cap is None and METHODS["rft"].demonstrations
    assert METHODS["rest_em"].cap == 10 and not METHODS["rest_em"].demonstrations
    assert all(method.start == "base" for method in METHODS.values())
    with pytest.raises(ValueError, match="improve cap=0"):
        Method(samples=4, temperature=1.0, cap=0)
