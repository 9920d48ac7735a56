"""Votes and stopping rules against enumeration, hand-computed numbers and their properties."""

import itertools
import math
import operator
from collections import Counter
from functools import reduce

import numpy as np
import pytest
import scipy.integrate
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.sampling.voting import (
    best_of_n,
    mean_token_probability,
    samples_until_decided,
    samples_until_likely,
    samples_until_solved,
    sequence_probability,
    vote,
)

quick = settings(max_examples=50, deadline=None)
ANSWERS = st.sampled_from(["1", "2", "3", None])
SEEDS = st.integers(0, 99)
# Multiples of 1/8, so that sums are exact and ties are many.
BALLOTS = st.lists(st.tuples(ANSWERS, st.integers(0, 16).map(lambda i: i / 8)), max_size=10)


# votes


def test_majority_is_the_answer_given_most_often():
    assert vote(["2", "1", "2", "3"]) == "2"
    assert vote([None, None, None, "7"]) == "7"
    assert vote([None, None]) is None
    assert vote([]) is None


def test_ties_are_even_and_do_not_depend_on_the_order():
    votes = [vote(["b", "a", None, "b", "a", "c"], seed=seed) for seed in range(400)]
    assert set(votes) == {"a", "b"}
    assert 160 < votes.count("a") < 240  # 4 standard deviations
    for order in itertools.permutations(["b", "a", "c"]):
        assert vote(list(order), seed=5) == vote(["a", "b", "c"], seed=5)


def test_weighted_vote_by_hand():
    """Three votes of 0.2 are less than one of 0.7, and more than one of 0.5."""
    answers = ["x", "y", "x", "x"]
    assert vote(answers, [0.2, 0.7, 0.2, 0.2]) == "y"
    assert vote(answers, [0.2, 0.5, 0.2, 0.2]) == "x"


def summed_in_turn(values):
    """As `sum` did before Python 3.12, which makes up for rounding."""
    return reduce(operator.add, values)


def test_sums_that_are_equal_but_for_rounding_tie():
    """0.1 ten times is 0.9999999999999999 if summed in turn; 0.1 + 0.2 is never 0.3 in floats."""
    assert summed_in_turn([0.1] * 10) != 1.0 and math.fsum([0.1, 0.2]) != 0.3
    for answers, weights in (
        (["a"] * 10 + ["b"], [0.1] * 10 + [1.0]),
        (["a", "a", "b"], [0.1, 0.2, 0.3]),
    ):
        assert {vote(answers, weights, seed) for seed in range(50)} == {"a", "b"}
    assert {vote(["a", "b"], [1.0, 1.0 + 1e-9], seed) for seed in range(50)} == {"b"}


def test_a_tie_by_rounding_does_not_depend_on_the_order():
    """Summed from left to right, a tiny weight is lost beside 1 and counts beside its like."""
    tiny = [2.0**-54] * 8
    assert summed_in_turn([1.0, *tiny]) == 1.0 < summed_in_turn([*tiny, 1.0])
    edge = (1 + 2.0**-52) / (1 - 1e-12)  # the least total that still ties lies between the two
    assert 1.0 < edge * (1 - 1e-12) <= summed_in_turn([*tiny, 1.0])
    for weights in ([1.0, *tiny, edge], [*tiny, 1.0, edge]):
        assert {vote(["a"] * 9 + ["b"], weights, seed) for seed in range(50)} == {"a", "b"}


@quick
@given(BALLOTS, SEEDS)
def test_vote_is_the_argmax_of_the_summed_weights(ballots, seed):
    totals = Counter()
    for answer, weight in ballots:
        if answer is not None:
            totals[answer] += weight
    winners = {a for a, total in totals.items() if total == max(totals.values())} or {None}
    assert vote([a for a, _ in ballots], [w for _, w in ballots], seed) in winners


@quick
@given(BALLOTS, SEEDS, st.randoms(use_true_random=False))
def test_rules_do_not_depend_on_the_order_of_samples(ballots, seed, random):
    shuffled = random.sample(ballots, len(ballots))
    for rule in (vote, best_of_n):
        chosen = [rule([a for a, _ in b], [w for _, w in b], seed) for b in (ballots, shuffled)]
        assert chosen[0] == chosen[1]


@quick
@given(BALLOTS, SEEDS, st.integers(0, 10), st.sampled_from([0.0, 5.0, math.nan, math.inf]))
def test_samples_without_an_answer_change_nothing(ballots, seed, place, weight):
    more = [*ballots[:place], (None, weight), *ballots[place:]]
    for rule in (vote, best_of_n):
        chosen = [rule([a for a, _ in b], [w for _, w in b], seed) for b in (ballots, more)]
        assert chosen[0] == chosen[1]


@quick
@given(st.lists(ANSWERS, max_size=10), SEEDS, st.floats(1e-6, 1e6))
def test_equal_weights_are_the_majority(answers, seed, weight):
    assert vote(answers, [weight] * len(answers), seed) == vote(answers, seed=seed)


@quick
@given(BALLOTS, SEEDS, st.floats(1e-9, 1e9))
def test_scale_of_the_weights_changes_nothing(ballots, seed, scale):
    answers, weights = [a for a, _ in ballots], [w for _, w in ballots]
    assert vote(answers, [scale * w for w in weights], seed) == vote(answers, weights, seed)


def test_answers_of_no_weight_tie():
    """A verifier that refuses every sample says nothing about which answer is right."""
    assert {vote(["a", "a", "b"], [0, 0, 0], seed) for seed in range(50)} == {"a", "b"}
    assert vote(["a", "a", "b"], [0, 0, 0.1]) == "b"


def test_vote_refuses_weights_that_are_none():
    with pytest.raises(ValueError, match=r"weights: -0.5 of 'a' is negative"):
        vote(["a", "b"], [-0.5, 1.0])
    with pytest.raises(ValueError, match=r"weights: nan of 'b' must be finite"):
        vote(["a", "b"], [1.0, math.nan])
    with pytest.raises(ValueError, match=r"weights: shape \(1,\) .* the 2 answers"):
        vote(["a", "b"], [1.0])


# best-of-n


def test_best_of_n_by_hand():
    answers = ["4", "5", "5", None, "5"]
    assert best_of_n(answers, [0.9, 0.8, 0.8, 1.0, 0.8]) == "4"
    assert vote(answers, [0.9, 0.8, 0.8, 1.0, 0.8]) == "5"
    assert best_of_n(answers, [-9.0, -8.5, -8.0, 0.0, -8.2]) == "5"  # log-probs
    assert best_of_n([None, None], [1.0, 2.0]) is None
    assert best_of_n([], []) is None


def test_best_of_n_draws_among_the_best_samples():
    """Three best samples, two of which say b."""
    chosen = [best_of_n(["b", "a", "b", "c"], [1, 1, 1, 0], seed) for seed in range(900)]
    assert set(chosen) == {"a", "b"}
    assert 543 < chosen.count("b") < 657  # 600, 4 standard deviations


def test_scores_that_differ_a_little_do_not_tie():
    assert {best_of_n(["a", "b"], [0.5, 0.5 + 1e-15], seed) for seed in range(50)} == {"b"}


def test_best_of_n_refuses_scores_that_are_none():
    with pytest.raises(ValueError, match="scores: inf of 'a' must be finite"):
        best_of_n(["a"], [math.inf])
    with pytest.raises(ValueError, match=r"scores: shape \(2,\) .* the 1 answers"):
        best_of_n(["a"], [1.0, 2.0])


# weights


def test_probabilities_by_hand():
    """p = 1/2, 1/8 over two tokens and 1/4, 1/4, 1/2 over three: geometric means 1/4, 32^(-1/3)."""
    log_probs = np.log([[0.5, 0.125, 0.3], [0.25, 0.25, 0.5]])
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    np.testing.assert_allclose(mean_token_probability(log_probs, mask), [0.25, 32 ** (-1 / 3)])
    np.testing.assert_allclose(sequence_probability(log_probs, mask), [1.0, (1 / 32) / (1 / 16)])
    with pytest.raises(ValueError, match="mask: a sample has no token"):
        mean_token_probability(log_probs, np.zeros((2, 3)))


def test_normalised_and_unnormalised_sums_by_hand():
    """Two long samples, 8 tokens of p = 0.9, against a short one of 2 tokens of p = 0.7.

    Normalised, 0.9 + 0.9 > 0.7. Unnormalised, 2 * 0.9^8 = 0.861 > 0.7^2 = 0.490; at 16 tokens,
    2 * 0.9^16 = 0.371 < 0.490: the same confidence loses for being written at length.
    """
    for length, expected in ((8, "long"), (16, "short")):
        log_probs = np.zeros((3, length))
        log_probs[:2], log_probs[2, :2] = np.log(0.9), np.log(0.7)
        mask = np.ones((3, length), bool)
        mask[2, 2:] = False
        answers = ["long", "long", "short"]
        assert vote(answers, mean_token_probability(log_probs, mask)) == "long"
        assert vote(answers, sequence_probability(log_probs, mask)) == expected


def test_long_samples_keep_a_weight():
    """exp(-2000) is 0 in floats; all would tie."""
    log_probs = np.full((1, 3, 1000), -2.0)
    log_probs[0, 2, 0] += 1.0
    weights = sequence_probability(log_probs, np.ones((1, 3, 1000), bool))
    np.testing.assert_allclose(weights, [[math.exp(-1), math.exp(-1), 1.0]])
    assert vote(["a", "b", "b"], weights[0]) == "b"


def test_confidence_gaps_by_hand():
    """CoT-decoding: five sure-footed direct answers of small gap against two traces of large gap.

    Aggregated, 0.95 + 0.9 > 5 * 0.3; the single most confident path says something else.
    """
    answers = ["60"] * 5 + ["14", "14", "9"]
    gaps = [0.3] * 5 + [0.95, 0.9, 0.99]
    assert vote(answers) == "60"
    assert vote(answers, gaps) == "14"
    assert best_of_n(answers, gaps) == "9"


# when to stop


def certain_after(answers: list[str | None]) -> int:
    """By definition: the first point after which every continuation has the same one winner."""
    n = len(answers)
    choices = [*{a for a in answers if a is not None}, "new", None]
    for drawn in range(1, n):
        winners = set()
        for rest in itertools.product(choices, repeat=n - drawn):
            votes = Counter(a for a in [*answers[:drawn], *rest] if a is not None)
            most = max(votes.values(), default=0)
            winners.add(frozenset(a for a, count in votes.items() if count == most))
        if len(winners) == 1 and len(next(iter(winners))) == 1:
            return drawn
    return n


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["1", "2", None]), max_size=6))
def test_vote_is_decided_exactly_when_no_continuation_changes_it(answers):
    assert samples_until_decided(answers) == certain_after(answers)


@quick
@given(st.lists(ANSWERS, max_size=24), SEEDS)
def test_stopping_when_decided_never_changes_the_vote(answers, seed):
    drawn = samples_until_decided(answers)
    assert vote(answers[:drawn], seed=seed) == vote(answers, seed=seed)


def test_decided_by_hand():
    assert samples_until_decided(["a"] * 5) == 3
    assert samples_until_decided(["a"] * 4) == 3  # after two, b may still tie
    assert samples_until_decided(["a", "a", "b", "b", "a"]) == 5
    assert samples_until_decided(["a", None, "a", None]) == 3  # a leads by 2, one may follow
    assert samples_until_decided([None, None, "a"]) == 3
    assert samples_until_decided([None, None]) == 2
    assert samples_until_decided([]) == 0


@pytest.mark.parametrize("first, second", [(1, 0), (4, 0), (4, 1), (6, 3)])
def test_likely_is_the_posterior_of_the_two_leading_answers(first, second):
    """Against the integral of the likelihood p^v1 (1-p)^v2; a third answer counts for nothing."""

    def likelihood(p: float) -> float:
        return p**first * (1 - p) ** second

    above, _ = scipy.integrate.quad(likelihood, 0.5, 1)
    everything, _ = scipy.integrate.quad(likelihood, 0, 1)
    # The lead that is asked about is reached by the last a, and is the largest until then.
    answers = ["a", "b", "c"] * second + ["a"] * (first - second)
    after = [None] * 5
    assert samples_until_likely([*answers, *after], above / everything - 1e-9) == len(answers)
    assert samples_until_likely([*answers, *after], above / everything + 1e-9) == len(answers) + 5


def test_likely_by_hand():
    """k equal answers: P = 1 - 2^-(k+1), so 15/16 after three and 31/32 after four."""
    assert samples_until_likely(["a"] * 9, 0.95) == 4
    assert samples_until_likely(["a"] * 9, 15 / 16 - 1e-9) == 3
    assert samples_until_likely(["a", None, "a", "a", None, "a"], 0.95) == 6
    assert samples_until_likely(["a", "b"] * 5, 0.95) == 10
    assert samples_until_likely([], 0.95) == 0


def test_likely_may_stop_at_another_answer():
    """What it saves over certainty, it pays for: four a's, then five b's."""
    answers = ["a"] * 4 + ["b"] * 5
    assert vote(answers) == "b"
    assert vote(answers[: samples_until_likely(answers)]) == "a"


@pytest.mark.parametrize("threshold", [0.5, 1.0, 95, math.nan])
def test_likely_refuses_a_threshold_that_is_always_or_never_reached(threshold):
    with pytest.raises(ValueError, match="threshold"):
        samples_until_likely(["a"], threshold)


def test_solved_by_hand():
    assert samples_until_solved([False, False, True, True]) == 3
    assert samples_until_solved(np.array([True])) == 1
    assert samples_until_solved([False, False]) == 2
    assert samples_until_solved([]) == 0
