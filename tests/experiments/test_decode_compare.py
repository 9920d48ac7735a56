"""The comparison of decoding methods: its rows by hand, and a tiny study from end to end."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import decode_compare
from experiments.configs import decode_compare as configs
from experiments.configs import smoke
from experiments.decode_compare import (
    Pool,
    any_right,
    best_for_votes,
    chosen,
    compare_allocations,
    sampled,
    stopped,
    table,
    tag_shares,
)
from reasoning.sampling.voting import best_of_n, samples_until_decided

# Two problems, two tags, four samples of each; "x" is right. Tag 0 costs 10 tokens, tag 1 costs 20.
VOTES = np.array([
    [["x", "x", "y", "x"], ["x", "z", "x", "x"]],
    [["y", "y", "y", "x"], ["x", "x", "x", "x"]],
], object)
LENGTHS = np.broadcast_to(np.array([10, 20])[:, None], VOTES.shape)
LIKELY = np.where(VOTES == "y", 0.9, 0.5)
POOL = Pool(VOTES, VOTES == "x", LENGTHS, LIKELY, LIKELY)


def test_a_budget_buys_samples_by_their_length():
    within = sampled(POOL.of(0), 40.0)
    assert (within.samples, within.tokens) == (4, 40.0)
    assert within.accuracy.tolist() == [1.0, 0.0]  # x x y x, and y y y x
    across = sampled(POOL, 120.0)  # at 15 tokens on average, all
    assert (across.samples, across.tokens) == (8, 120.0)
    assert across.accuracy.tolist() == [1.0, 1.0]  # x x x z y x x x, and y x y x y x x x
    assert sampled(POOL, 0.0).samples == 1 and sampled(POOL, 1e9).samples == 8


def test_the_likeliest_sample_may_be_wrong():
    chosen = sampled(POOL.of(0), 40.0, "likelihoods", best_of_n)
    assert chosen.accuracy.tolist() == [0.0, 0.0]


def test_stopping_saves_tokens_of_decided_votes():
    # In turn: x x x z y x x x, decided at 7 of 8 (5 to 1, one left); y x y x y x x x at the last.
    spent = stopped(POOL, 1e9, samples_until_decided)
    assert spent.accuracy.tolist() == [1.0, 1.0]
    votes = [["x", "x", "x", "z", "y", "x", "x", "x"], ["y", "x", "y", "x", "y", "x", "x", "x"]]
    used = [samples_until_decided(row) for row in votes]
    assert spent.samples == np.mean(used)
    in_turn = np.array([10, 20] * 4).cumsum()
    assert spent.tokens == np.mean([in_turn[n - 1] for n in used])


def test_a_verifier_needs_one_right_sample():
    assert any_right(POOL.of(0), 20.0).accuracy.tolist() == [1.0, 0.5]
    assert any_right(POOL, 30.0).accuracy.tolist() == [1.0, 1.0]


def test_the_best_strategy_is_best_in_votes():
    assert best_for_votes(POOL, 4) == 1
    assert best_for_votes(Pool(*(part[:1] for part in vars(POOL).values())), 1) == 0


def test_what_has_no_vote_is_not_right():
    votes = np.array([["x", None], [None, None]], object)
    right = np.array([[False, True], [True, True]])
    judged = SimpleNamespace(correct=right, lengths=np.ones((2, 2)))
    assert chosen(judged, votes).accuracy.tolist() == [0.0, 0.0]


def test_a_policy_that_draws_no_tag_has_equal_shares():
    tags, probs = np.array([[1, 0], [-1, -1]]), np.array([[0.6, 0.2], [0.5, 0.5]])
    paths = SimpleNamespace(judged=SimpleNamespace(tags=tags), branch_probs=probs)
    np.testing.assert_allclose(tag_shares(paths, 2), [[0.25, 0.75], [0.5, 0.5]], atol=1e-9)


def test_allocations_spend_until_a_verifier_is_content():
    shares = np.array([[1.0, 0.0], [0.0, 1.0]])
    curves = compare_allocations(POOL, POOL, shares, 4)
    assert [point.samples for point in curves["in turn"]] == [1, 2, 4]
    assert curves["the policy's own"][-1].tokens == np.mean([40, 80])
    assert curves["the policy's own"][-1].accuracy.tolist() == [1.0, 1.0]
    verified = curves["in turn, verifier"][-1]
    assert verified.samples == 1 and verified.tokens == np.mean([10, 20])  # each its own turn


@pytest.mark.parametrize("preset", ["S4", "multiplication", "expressions", "countdown,full"])
def test_every_preset_is_a_configuration(preset):
    assert configs.get_config(preset).compare.samples == 12


def tiny():
    config = configs.get_config("S4")
    for phase in (config.pretrain, config.finetune):
        phase.problems, phase.rows, phase.buckets = 40, 8, 1
    config.finetune.steps = 2
    config.task.arguments.length = 3
    config.model.max_length = 32
    config.evaluation.problems = config.evaluation.validation_problems = 6
    config.compare.samples, config.compare.branches = 3, 2
    return config


def test_a_study_ends_with_its_table(tmp_path, capsys):
    config = tiny()
    config.compare.wait = "."
    decode_compare.main(config, str(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    text = capsys.readouterr().out
    assert table(results) in text and (tmp_path / "run" / "plots" / "allocation.png").is_file()
    methods = results["methods"]
    assert len(methods) == 20 and all(0 <= row["value"] <= 1 for row in methods.values())
    assert methods["greedy, best strategy"]["samples"] == 1
    assert methods["vote across strategies"]["samples"] == 3
    decode_compare.main(config, str(tmp_path / "run"))
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("arm", "mixed", "compare.named=True: needs arm=fixed"),
        ("compare.samples", 2, "compare.samples=2: must be at least one for each of the 3 tags"),
        ("compare.spare", 0.5, "compare.spare=0.5: must be at least 1"),
        ("compare.branches", 0, "compare.branches=0: must lie between 1 and"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, setting, value, words):
    config = tiny()
    config.update_from_flattened_dict({setting: value})
    with pytest.raises(SystemExit):
        decode_compare.main(config, str(tmp_path / "run"))
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_another_configuration_is_refused(tmp_path, refusal):
    error = refusal(decode_compare.main, smoke.get_config(), tmp_path / "run")
    assert "config: describes no such study; " in error
    assert "give --config=experiments/configs/decode_compare.py." in error
    assert not (tmp_path / "run").exists()
