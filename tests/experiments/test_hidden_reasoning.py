"""The study of hidden reasoning, tiny: its mixture, the rules of choice by hand, its files."""

import json

import numpy as np
import pytest

from experiments import hidden_reasoning as hidden
from experiments.configs import hidden_reasoning as configs
from reasoning.evaluation.policies import Judged
from reasoning.evaluation.searches import Paths

METHODS = ["greedy", "sampling", "majority of 3", "pass@3"]
RULES = ["max gap", "summed gap", "log-prob", "log-prob per token"]


def configuration():
    """Words of three elements, a policy of width 8, a few steps."""
    config = configs.get_config()
    config.task.arguments.length = 3
    config.model.update(
        d_model=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, d_ff=8, max_length=20
    )
    config.finetune.update(steps=30, problems=200, rows=16, learning_rate=2e-2)
    config.rl.update(
        steps=2, problems=8, prompts=2, samples=2, microbatches=1, validate_every=2,
        validation_samples=2, printed=0,
    )
    config.evaluation.update(problems=10, validation_problems=4)
    config.hidden.update(samples=3, branches=(1, 2, 4))
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, for all tests of this module."""
    workdir = tmp_path_factory.mktemp("runs") / "hidden"
    hidden.main(configuration(), str(workdir))
    return workdir


def estimates(figures, path=()):
    """Every estimate of a tree of figures, with its path."""
    if "value" in figures:
        return {path: figures}
    found = {}
    for name, part in figures.items():
        found |= estimates(part, (*path, name))
    return found


def judged(completions, correct):
    """Completions `[P, R]` as they are judged; an answer is the last word, "-" gives none."""
    completions = np.array(completions, dtype=object)
    answers = np.vectorize(
        lambda text: None if text.endswith("-") else text.split()[-1], otypes=[object]
    )(completions)
    empty = np.zeros(completions.shape)
    return Judged(
        tags=empty, correct=np.array(correct, bool), reasons=empty, strategies=empty,
        validity=empty, lengths=1 + np.vectorize(lambda text: len(text.split()))(completions),
        completions=completions, answers=answers, votes=answers, methods=empty,
        milliseconds=empty,
    )


# One problem, answer 4. A bare guess, the trace, and two paths from tokens that are forced: both
# wrong, both more certain than the trace.
PATHS = Paths(
    judged([["answer 2", "1 3 = 4 answer 4", "5 5 = 2 answer 2", "= = = answer 3"]],
           [[False, True, False, False]]),
    deltas=np.array([[0.05, 0.90, 0.93, 0.99]]),
    branch_probs=np.array([[0.56, 0.43, 0.019, 0.001]]),
    log_probs=np.array([[-2.0, -2.1, -4.5, -8.0]]),
)


@pytest.mark.parametrize(
    ("k", "floor", "believed"),
    [
        # 2 and 4 have one path each; the guess is the likelier text, not by the token.
        (2, 0.0, {"max gap": [1], "summed gap": [1], "log-prob": [0], "log-prob per token": [1]}),
        # 0.05 + 0.93 for the answer 2, 0.90 for 4.
        (3, 0.0, {"max gap": [2], "summed gap": [0, 2], "log-prob": [0]}),
        (4, 0.0, {"max gap": [3], "summed gap": [3], "log-prob": [0]}),
        (4, 0.02, {"max gap": [1], "summed gap": [1], "log-prob": [0]}),
        (4, 0.015, {"max gap": [2], "summed gap": [0, 2]}),
        (1, 0.02, {rule: [0] for rule in RULES}),
        (4, 0.9, {rule: [] for rule in RULES}),
    ],
)
def test_which_paths_a_rule_believes(k, floor, believed):
    chosen = hidden.believe_paths(PATHS, k, floor)
    assert list(chosen) == RULES
    for rule, places in believed.items():
        assert np.flatnonzero(chosen[rule][0]).tolist() == places, rule


def test_a_vote_believes_all_completions_of_the_winner_and_none_without_answers():
    votes = np.array([["1", "2", "1", None], [None, None, None, None]], dtype=object)
    believed = hidden.believe_vote(votes)
    assert believed.tolist() == [[True, False, True, False], [False] * 4]


def test_figures_are_means_over_the_problems_of_what_is_believed():
    found = judged(
        [
            ["1 3 = 4 answer 4", "answer 4", "answer 1"],
            ["answer 1", "answer 2", "2 2 = 1 answer -"],
        ],
        [[True, True, False], [False, True, False]],
    )
    assert hidden.reasons(found).tolist() == [[True, False, False], [False, False, True]]
    every = hidden.of_believed(found, np.ones((2, 3), bool))
    assert every["accuracy"]["value"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert every["reasons"]["value"] == pytest.approx(1 / 3)
    # Of the first problem the answer 4, of the second nothing.
    some = hidden.of_believed(found, np.array([[True, True, False], [False] * 3]))
    assert some["accuracy"]["value"] == 0.5
    assert some["reasons"]["value"] == pytest.approx(0.25)
    assert some["accuracy"]["n"] == 2


def test_an_interval_has_width_where_all_problems_agree():
    all_right = hidden.estimate(np.ones(10))
    assert all_right["low"] == pytest.approx(10 / (10 + 1.959964**2))  # Wilson's
    mixed = hidden.estimate([0.5, 1.0])
    assert mixed["value"] == 0.75 and mixed["low"] == 0.5 and mixed["high"] == 1.0


def test_the_mixture_has_one_completion_a_problem_and_the_share_that_is_asked_for():
    config = configuration()
    config.finetune.problems, config.hidden.direct_share = 800, 0.3
    setup = hidden.build(config)
    task, text_format = setup.task, setup.text_format
    examples, direct, prompts, signs = hidden.make_data(setup, config).examples, 0, set(), []
    for example in examples:
        (trace,) = example.traces
        prompt = text_format.tokenizer.decode(example.prompt)
        word = tuple(map(int, prompt.split()[:3]))
        assert prompt == task.prompt(word)
        texts = [task.trace(word, name).completion for name in ("direct", "left")]
        written = text_format.completion_text(trace)
        signs += [word for word in written.split() if word in ("=", ".")]
        direct += texts.index(written.replace(".", "=")) == 0
        prompts.add(prompt)
    assert len(examples) == 800
    assert abs(direct / 800 - 0.3) < 0.06  # nearly four deviations
    assert len(signs) == 2 * (800 - direct)
    assert abs(signs.count(".") / len(signs) - 0.5) < 0.06  # four deviations
    assert not prompts & {task.prompt(problem) for problem in setup.test}


def test_each_sign_of_a_trace_is_drawn_anew():
    rng, trace = np.random.default_rng(0), (5, 3, 1, 3, 7, 3)
    drawn = {hidden.reworded(trace, (3, 7), rng) for _ in range(200)}
    assert drawn == {(5, a, 1, b, 7, c) for a in (3, 7) for b in (3, 7) for c in (3, 7)}
    assert hidden.reworded(trace, (3,), rng) == trace


def test_results_hold_every_figure_with_its_interval(finished):
    results = json.loads((finished / "results.json").read_text())
    assert list(results["policies"]) == ["fine-tuned", "after RL"]
    for figures in results["policies"].values():
        widest = [f"{rule} of 4, {floor}" for floor in ("no floor", "floor 0.02") for rule in RULES]
        assert list(figures["methods"]) == METHODS + widest
        assert list(figures["branches"]) == ["no floor", "floor 0.02"]
        assert list(figures["branches"]["no floor"]) == RULES
        assert list(figures["branches"]["no floor"]["max gap"]) == ["1", "2", "4"]
        assert list(figures["ranks"]) == ["1", "2", "3", "4"]
        found = estimates(figures)
        assert len(found) == 2 * len(METHODS + widest) - 1 + 2 * 4 * 3 + 4 * 4
        for entry in found.values():
            assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1 and entry["n"] == 10
        # One branch is greedy decoding, under every rule.
        accuracy = figures["methods"]["greedy"]["accuracy"]
        for rule in RULES:
            assert figures["branches"]["no floor"][rule]["1"] == accuracy
        assert figures["ranks"]["1"]["accuracy"] == accuracy
        probabilities = [rank["probability"]["value"] for rank in figures["ranks"].values()]
        assert probabilities == sorted(probabilities, reverse=True)
    (seed,) = results["seeds"]
    assert seed["policies"] == results["policies"]
    assert seed["training"]["fine-tuned"]["steps"] == 30
    assert seed["training"]["after RL"]["steps"] == 2


def test_the_run_directory_is_complete(finished):
    plots = {path.name for path in (finished / "plots").iterdir()}
    assert plots == {
        "methods.png", "branches.png", "learning_curves.png", "reinforcement.png"
    }
    table = (finished / "table.txt").read_text()
    for name in [*METHODS, *RULES, "no floor", "k=4"]:
        assert name in table
    rows = [json.loads(line) for line in (finished / "completions.jsonl").open()]
    decoded = [row for row in rows if "decoding" in row]
    assert len(decoded) == 2 * 10 * (1 + 3 + 4)
    assert (finished / "tokenizer.model").is_file()


@pytest.mark.slow
def test_a_run_that_was_stopped_before_rl_ends_with_the_same_figures(
    finished, tmp_path, monkeypatch, capsys
):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(hidden, "reinforce", stop)
        with pytest.raises(KeyboardInterrupt):
            hidden.main(configuration(), str(tmp_path / "run"))
    monkeypatch.setattr(hidden, "train", stop)  # its phase has ended
    hidden.main(configuration(), str(tmp_path / "run"))
    first, second = (
        json.loads((folder / "results.json").read_text()) for folder in (finished, tmp_path / "run")
    )
    assert first["policies"] == second["policies"]
    for name in ("metrics.jsonl", "completions.jsonl"):
        lines = [(folder / name).read_text().count("\n") for folder in (finished, tmp_path / "run")]
        assert lines[0] == lines[1], name
    capsys.readouterr()
    hidden.main(configuration(), str(tmp_path / "run"))
    printed = capsys.readouterr().out
    assert "nothing is changed" in printed and "majority of 3" in printed


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("hidden.direct_share", 1.0, "hidden.direct_share=1.0: must be between 0 and 1"),
        ("hidden.floor", 0.0, "hidden.floor=0.0: must be between 0 and 1"),
        ("hidden.signs", (), "hidden.signs=(): give the sign of a step"),
        ("hidden.signs", ("=", "so"), "hidden.signs=('=', 'so'): 'so' is no word of group_words"),
        ("hidden.samples", 0, "hidden.samples=0: must be at least 1"),
        ("hidden.branches", (0, 2), "hidden.branches=(0, 2): give one or more"),
        ("hidden.branches", (2, 999), "hidden.branches=(2, 999): there are"),
        ("task.strategies", ("direct", "spiral"), "strategy='spiral': task 'group_words' has"),
        ("task.strategies", ("left", "direct"), "task.strategies=('left', 'direct'): must be"),
        ("task.strategies", ("direct", "left", "tree"), "task.strategies=('direct', 'left', 'tr"),
        ("pretrain.steps", 5, "pretrain.steps=5: this study has no base policy"),
        ("finetune.steps", 0, "finetune.steps=0: must be at least 1"),
        ("loss.tag_is_label", False, "loss.tag_is_label=False"),
        ("rl.algorithm", "gfpo", "rl.algorithm='gfpo'"),
        ("mesh.data", 8, "mesh: this study runs on one device"),
        ("model.max_length", 16, "model.max_length=16: the longest training row takes 20"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(tmp_path, capsys, setting, value, words):
    config = configuration()
    config.update_from_flattened_dict({setting: value})
    with pytest.raises(SystemExit) as stopped:
        hidden.main(config, str(tmp_path / "run"))
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_another_configuration_is_refused(tmp_path, capsys):
    from experiments.configs import smoke

    with pytest.raises(SystemExit):
        hidden.main(smoke.get_config(), str(tmp_path / "run"))
    assert "--config=experiments/configs/hidden_reasoning.py" in capsys.readouterr().err
