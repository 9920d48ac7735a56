"""Estimators against enumeration, hand-computed numbers and the properties they must have."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.evaluation.estimators import (
    Estimate,
    accuracy_against_tokens,
    bootstrap,
    cons_at_k,
    difference_estimate,
    g_pass_at_k,
    mean_estimate,
    pass_at_k,
    pass_curve,
    runs_estimate,
    voted_accuracy,
    wilson_interval,
)
from reasoning.sampling.allocation import interleave
from reasoning.sampling.voting import (
    best_of_n,
    samples_until_decided,
    samples_until_likely,
    vote,
)

quick = settings(max_examples=50, deadline=None)
SMALL = [(n, c, k) for n in range(1, 8) for c in range(n + 1) for k in range(1, n + 1)]


@st.composite
def sample_counts(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 200))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


def correct_in_subsets(n: int, c: int, k: int) -> list[int]:
    """How many correct samples each k-subset of n samples holds, c of them correct."""
    return [sum(s) for s in itertools.combinations([1] * c + [0] * (n - c), k)]


# pass@k


def test_pass_at_k_known_value():
    assert pass_at_k(8, 3, 4) == pytest.approx(0.928571, abs=1e-6)


@pytest.mark.parametrize("n, c, k", SMALL)
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n, c, k):
    found = np.mean([hits > 0 for hits in correct_in_subsets(n, c, k)])
    assert pass_at_k(n, c, k) == pytest.approx(found, abs=1e-12)


def test_pass_at_k_takes_one_count_per_problem():
    n, c = np.array([8, 8, 4, 5]), np.array([3, 0, 4, 1], np.uint8)
    values = pass_at_k(n, c, 2)
    assert values.shape == (4,)
    np.testing.assert_allclose(values, [1 - (5 * 4) / (8 * 7), 0.0, 1.0, 2 / 5], atol=1e-12)
    np.testing.assert_array_equal(pass_at_k(8, c[:2], 2), values[:2])


def test_pass_at_k_does_not_overflow():
    exact = 1 - math.comb(9_000, 2_000) / math.comb(10_000, 2_000)
    assert pass_at_k(10_000, 1_000, 2_000) == pytest.approx(exact, abs=1e-12)
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5, abs=1e-12)


@quick
@given(sample_counts())
def test_pass_at_k_grows_with_k_and_with_c(counts):
    n, c, k = counts
    value = pass_at_k(n, c, k)
    assert 0.0 <= value <= 1.0
    if k < n:
        assert pass_at_k(n, c, k + 1) >= value - 1e-12
    if c < n:
        assert pass_at_k(n, c + 1, k) >= value - 1e-12
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)


@pytest.mark.parametrize(
    "n, c, k, field",
    [
        (4, 2, 5, "k=5"),
        (4, 5, 2, "num_correct=5"),
        (4, -1, 2, "num_correct=-1"),
        (-4, 0, 2, "num_samples=-4"),
        (4, 2, 0, "k=0"),
        (4, 2, -1, "k=-1"),
        (4, 2.5, 2, "integers"),
        ([8, 4], [2, 2], 5, "num_samples=4"),
    ],
)
def test_impossible_counts_are_refused(n, c, k, field):
    with pytest.raises(ValueError, match=field):
        pass_at_k(n, c, k)
    with pytest.raises(ValueError, match=field):
        g_pass_at_k(n, c, k, 0.5)


# G-pass@k


@pytest.mark.parametrize("threshold", [0.01, 0.25, 0.5, 0.75, 1.0])
def test_g_pass_at_k_is_the_share_of_subsets_with_enough_correct_samples(threshold):
    for n, c, k in SMALL:
        found = np.mean([hits >= threshold * k for hits in correct_in_subsets(n, c, k)])
        assert g_pass_at_k(n, c, k, threshold) == pytest.approx(found, abs=1e-12), (n, c, k)


def test_g_pass_at_k_threshold_is_not_moved_by_rounding():
    """0.28 * 25 is 7.000000000000001 in floats, and 7 of 25 correct samples are enough."""
    assert 0.28 * 25 > 7
    assert g_pass_at_k(25, 7, 25, 0.28) == 1.0
    assert g_pass_at_k(25, 6, 25, 0.28) == 0.0


@quick
@given(sample_counts(), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_g_pass_at_k_lies_between_all_and_any(counts, low, high):
    n, c, k = counts
    low, high = sorted((low, high))
    easy, hard = g_pass_at_k(n, c, k, low), g_pass_at_k(n, c, k, high)
    assert 0.0 <= hard <= easy <= pass_at_k(n, c, k) + 1e-12
    assert hard >= g_pass_at_k(n, c, k, 1.0)
    assert g_pass_at_k(n, c, k, 1e-12) == pytest.approx(float(pass_at_k(n, c, k)), abs=1e-12)
    if c < n:
        assert g_pass_at_k(n, c + 1, k, low) >= easy - 1e-12


def test_g_pass_at_k_takes_one_count_per_problem():
    np.testing.assert_allclose(g_pass_at_k(4, [4, 2, 0], 2, 1.0), [1.0, 1 / 6, 0.0], atol=1e-12)


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.5, math.nan])
def test_g_pass_at_k_refuses_a_threshold_that_is_no_share(threshold):
    with pytest.raises(ValueError, match="threshold"):
        g_pass_at_k(4, 2, 2, threshold)


# samples of several tags


def test_votes_of_tag_major_samples_see_one_tag_only():
    """Two of three tags are right; without interleaving, one vote in three is of the wrong tag."""
    answers = np.array([[["9"] * 3, ["4"] * 3, ["4"] * 3]], dtype=object)
    correct = answers == "4"
    assert cons_at_k(interleave(answers), interleave(correct), k=3).tolist() == [1.0]
    tag_major = cons_at_k(answers.reshape(1, 9), correct.reshape(1, 9), k=3)
    assert tag_major.tolist() == [pytest.approx(2 / 3)]


def test_pass_curve_of_one_tag_is_pass_at_k():
    correct = np.random.default_rng(0).random((7, 1, 8)) < 0.4
    ks = [1, 2, 4, 8]
    expected = [pass_at_k(8, correct.sum(axis=(1, 2)), k) for k in ks]
    np.testing.assert_allclose(pass_curve(correct, ks), np.stack(expected, axis=1), atol=1e-12)


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3))
def test_pass_curve_is_the_share_of_even_choices_with_a_correct_sample(seed, S, G):
    """Every choice of k // S samples of each tag and one more of k % S tags, counted one by one."""
    correct = np.random.default_rng(seed).random((2, S, G)) < 0.4
    ks = range(1, S * G + 1)
    curve = pass_curve(correct, ks)
    assert curve.shape == (2, len(ks))
    for p, k in itertools.product(range(2), ks):
        base, extra = divmod(k, S)
        found = []
        for more in itertools.combinations(range(S), extra):
            draws = [itertools.combinations(correct[p, t], base + (t in more)) for t in range(S)]
            found += [any(map(any, choice)) for choice in itertools.product(*draws)]
        assert curve[p, k - 1] == pytest.approx(np.mean(found), abs=1e-12)
    assert (np.diff(curve, axis=1) >= -1e-12).all(), "more samples never solve less"


def test_pass_curve_at_one_sample_of_each_tag_by_hand():
    """Tag 0 is right in 2 of 4 samples; tag 1 in 4 of 4, or in 1 of 4: then 1/2 * 3/4 fail."""
    correct = np.zeros((2, 2, 4), bool)
    correct[0, 0, :2], correct[0, 1] = True, True
    correct[1, 0, :2], correct[1, 1, 3] = True, True
    np.testing.assert_allclose(pass_curve(correct, [2])[:, 0], [1.0, 1 - 1 / 2 * 3 / 4])


def test_pass_curve_separates_tags_that_solve_different_problems():
    apart = np.array([[[1, 1], [0, 0]], [[0, 0], [1, 1]]])  # each tag solves its own problem
    alike = np.array([[[1, 1], [1, 1]], [[0, 0], [0, 0]]])  # the same mean accuracy
    assert pass_curve(apart, [1, 2]).tolist() == [[0.5, 1.0], [0.5, 1.0]]
    assert pass_curve(alike, [1, 2]).tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_pass_curve_refuses_rewards_wrong_shapes_and_impossible_k():
    with pytest.raises(ValueError, match="threshold the rewards"):
        pass_curve([[[1.0, -0.5]]], [1])
    with pytest.raises(ValueError, match="3 axes"):
        pass_curve([[True, False]], [1])
    with pytest.raises(ValueError, match="holds no samples"):
        pass_curve(np.zeros((2, 3, 0), bool), [1])
    for k in (0, 7):
        with pytest.raises(ValueError, match=f"k={k}: must be between 1 and the 6 samples"):
            pass_curve(np.zeros((2, 3, 2), bool), [1, k])


# voting


@quick
@given(
    st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=12),
    st.integers(1, 12),
)
def test_cons_at_k_is_the_mean_over_slices(answers, k):
    k = min(k, len(answers))
    right = {"1": True, "2": False, "3": True, None: False}
    correct = [right[answer] for answer in answers]
    slices = [answers[i * k : (i + 1) * k] for i in range(len(answers) // k)]
    expected = np.mean([right[vote(part, seed=(3, 0, i))] for i, part in enumerate(slices)])
    assert cons_at_k([answers], [correct], k, seed=3).tolist() == [pytest.approx(expected)]


def test_cons_at_k_by_hand():
    answers = [
        ["4", "4", "5", "5", None, "5", "9"],  # right, wrong, and a sample left over
        [None, None, None, "4", None, None, "4"],  # no answer is wrong; one answer is enough
    ]
    correct = np.array([[a == "4" for a in row] for row in answers])
    assert cons_at_k(answers, correct, k=3).tolist() == [0.5, 0.5]
    assert cons_at_k(answers, correct, k=1).tolist() == [pytest.approx(2 / 7)] * 2


def test_ties_of_a_problem_are_its_own():
    """Breaking a tie in one problem does not shift the ties of the next."""
    tied = ["1", "2"] * 20
    right = [answer == "1" for answer in tied]
    after_ties = cons_at_k([tied, tied], [right, right], k=2)
    after_none = cons_at_k([["1"] * 40, tied], [[True] * 40, right], k=2)
    assert after_ties[1] == after_none[1]
    assert 0.0 < after_ties[0] < 1.0


def test_cons_at_k_refuses_contradictions():
    with pytest.raises(ValueError, match="'4' to problem 1 is both right and wrong"):
        cons_at_k([["1", "1"], ["4", "4"]], [[True, True], [True, False]], k=2)
    with pytest.raises(ValueError, match="None to problem 0"):
        cons_at_k([["1", None]], [[False, True]], k=2)
    with pytest.raises(ValueError, match=r"k=3: .* 2 samples"):
        cons_at_k([["1", "1"]], [[True, True]], k=3)
    with pytest.raises(ValueError, match="k=0"):
        cons_at_k([["1", "1"]], [[True, True]], k=0)
    with pytest.raises(ValueError, match="answers: shape"):
        cons_at_k([["1", "1"]], [[True]], k=1)


def test_voted_accuracy_by_hand():
    """Two groups of three: one vote of weight 3 beats two of 1, and 2 + 2 beat 3."""
    answers = [["4", "5", "5", "4", "4", "5", "9"]]  # the last is in no group
    correct = np.array(answers) == "4"
    weights = [[3.0, 1.0, 1.0, 2.0, 2.0, 3.0, 9.0]]
    assert voted_accuracy(answers, correct, 3).tolist() == [0.5]
    assert voted_accuracy(answers, correct, 3, weights).tolist() == [1.0]
    assert voted_accuracy(answers, correct, 3, weights, best_of_n).tolist() == [0.5]
    assert voted_accuracy(answers, correct, 1, weights).tolist() == [pytest.approx(3 / 7)]


def test_a_perfect_verifier_chooses_a_correct_sample_wherever_there_is_one():
    generator = np.random.default_rng(0)
    answers = generator.choice(["a", "b", "c", "d"], size=(20, 12)).astype(object)
    correct = answers == "a"
    for k in (1, 3, 4):
        covered = correct.reshape(20, 12 // k, k).any(axis=2).mean(axis=1)
        chosen = voted_accuracy(answers, correct, k, correct.astype(float), best_of_n)
        np.testing.assert_array_equal(chosen, covered)


@quick
@given(st.lists(st.sampled_from(["1", "2", None]), min_size=2, max_size=8), st.integers(1, 4))
def test_equal_weights_change_no_vote(answers, k):
    k, correct = min(k, len(answers)), [[answer == "1" for answer in answers]]
    weighted = voted_accuracy([answers], correct, k, np.full((1, len(answers)), 0.3), seed=7)
    assert weighted.tolist() == cons_at_k([answers], correct, k, seed=7).tolist()


def test_voted_accuracy_refuses_weights_of_another_shape():
    with pytest.raises(ValueError, match=r"weights: shape \(2,\) must be that of correct"):
        voted_accuracy([["1", "1"]], [[True, True]], 1, [0.5, 0.5])


# accuracy against tokens


def test_accuracy_against_tokens_by_hand():
    answers = [["7", "4", "4", "4"], [None, "1", "2", "2"]]
    correct = [[False, True, True, True], [False, True, False, False]]
    lengths = [[5, 10, 20, 40], [8, 8, 8, 8]]
    used = [[0, 1, 3, 4], [1, 2, 4, 0]]
    tokens, right = accuracy_against_tokens(answers, correct, lengths, used)
    assert tokens.tolist() == [[0, 5, 35, 75], [8, 16, 32, 0]]
    assert right.tolist() == [[False, False, True, True], [False, True, False, False]]
    scores = [[0.9, 0.1, 0.2, 0.3], [0.0, 0.5, 0.4, 0.6]]
    _, right = accuracy_against_tokens(answers, correct, lengths, used, scores, best_of_n)
    assert right.tolist() == [[False, False, False, False], [False, True, False, False]]
    _, right = accuracy_against_tokens(answers, correct, lengths, used, correct, best_of_n)
    assert right.tolist() == [[False, False, True, True], [False, True, True, False]]


def test_accuracy_of_all_samples_is_that_of_one_group():
    """Also where answers tie."""
    answers = np.random.default_rng(3).choice(["a", "b", "c"], size=(40, 6)).astype(object)
    correct = answers == "a"
    _, right = accuracy_against_tokens(answers, correct, np.ones((40, 6), int), [[6]] * 40, seed=2)
    np.testing.assert_array_equal(right[:, 0], cons_at_k(answers, correct, 6, seed=2))


def test_stopping_when_the_vote_is_certain_saves_tokens_and_no_accuracy():
    generator = np.random.default_rng(4)
    answers = generator.choice(["a", "b", "c"], p=[0.9, 0.07, 0.03], size=(200, 16)).astype(object)
    correct, lengths = answers == "a", generator.integers(20, 60, size=(200, 16))
    stops = [samples_until_decided, samples_until_likely, len]
    used = [[stop(row) for stop in stops] for row in answers]
    tokens, right = accuracy_against_tokens(answers, correct, lengths, used)
    certain, likely, full = tokens.mean(axis=0)
    np.testing.assert_array_equal(right[:, 0], right[:, 2])
    assert likely < 0.45 * full < certain < 0.75 * full
    assert right[:, 1].mean() > right[:, 2].mean() - 0.05


def test_accuracy_against_tokens_refuses_what_does_not_fit():
    answers, correct, lengths = [["1", "1"]], [[True, True]], [[3, 3]]
    with pytest.raises(ValueError, match="used: must be between 0 and the 2 samples"):
        accuracy_against_tokens(answers, correct, lengths, [[3]])
    with pytest.raises(ValueError, match=r"used: shape \(1,\) must be \[1 problems, points\]"):
        accuracy_against_tokens(answers, correct, lengths, [1])
    with pytest.raises(ValueError, match="lengths: shape"):
        accuracy_against_tokens(answers, correct, [3, 3], [[1]])
    with pytest.raises(ValueError, match="both right and wrong"):
        accuracy_against_tokens(answers, [[True, False]], lengths, [[1]])


# intervals


def test_wilson_by_hand():
    """8 of 10 with z = 1.959964: centre 0.9920729 / 1.3841459, half-width 0.226577."""
    estimate = wilson_interval(8, 10)
    assert (estimate.value, estimate.n) == (0.8, 10)
    assert estimate.low == pytest.approx(0.716740 - 0.226577, abs=2e-6)
    assert estimate.high == pytest.approx(0.716740 + 0.226577, abs=2e-6)


@quick
@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_are_as_far_as_the_score_test_accepts(case):
    """An end p0 inside (0, 1) solves |share - p0| = z sqrt(p0 (1 - p0) / n)."""
    successes, trials = case
    estimate = wilson_interval(successes, trials)
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
    assert estimate.low < estimate.high
    for end in (estimate.low, estimate.high):
        distance = 1.959963984540054 * math.sqrt(end * (1 - end) / trials)
        assert abs(estimate.value - end) == pytest.approx(distance, abs=1e-7)
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored.low == pytest.approx(1 - estimate.high, abs=1e-12)


def test_wilson_keeps_its_width_where_all_trials_agree():
    z2 = 1.959963984540054**2
    assert wilson_interval(0, 20).high == pytest.approx(z2 / (20 + z2))
    assert wilson_interval(20, 20).low == pytest.approx(20 / (20 + z2))
    assert wilson_interval(5, 20, confidence=0.5).high < wilson_interval(5, 20).high


@pytest.mark.parametrize(
    "arguments, field",
    [
        ((0, 0), "trials=0"),
        ((3, 2), "successes=3"),
        ((-1, 2), "successes=-1"),
        ((1, 2, 1.0), "confidence=1.0"),
        ((1, 2, 95), "confidence=95"),
    ],
)
def test_wilson_refuses_impossible_arguments(arguments, field):
    with pytest.raises(ValueError, match=field):
        wilson_interval(*arguments)


@quick
@given(
    st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=30), st.integers(0, 1000)
)
def test_bootstrap_holds_the_value_and_repeats_for_a_seed(values, seed):
    estimate = mean_estimate(values, seed, num_resamples=50)
    assert estimate == mean_estimate(values, seed, num_resamples=50)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.value == pytest.approx(float(np.mean(values)))
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= estimate.low and estimate.high <= max(values) + slack
    assert estimate.n == len(values)


def test_mean_interval_is_that_of_the_normal_limit():
    values = np.random.default_rng(1).normal(size=400)
    estimate = mean_estimate(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert mean_estimate(values, seed=1) != estimate
    narrower = mean_estimate(values, confidence=0.5)
    assert estimate.low < narrower.low < narrower.high < estimate.high


def test_degenerate_values_give_intervals_of_no_width():
    assert mean_estimate([0.3]) == Estimate(0.3, 0.3, 0.3, 1)
    same = mean_estimate([0.1] * 7)
    assert same.low == pytest.approx(0.1) and same.high == pytest.approx(0.1)
    assert same.low <= same.value <= same.high
    assert difference_estimate([0.25], [0.75]) == Estimate(-0.5, -0.5, -0.5, 1)


def test_difference_is_paired():
    generator = np.random.default_rng(0)
    hardness = generator.random(200)
    a, b = hardness + 0.05, hardness + 0.01 * generator.normal(size=200)
    paired = difference_estimate(a, b)
    assert paired.value == pytest.approx(a.mean() - b.mean())
    assert 0.04 < paired.low < paired.high < 0.06
    separate = mean_estimate(a)
    assert paired.high - paired.low < 0.1 * (separate.high - separate.low)
    swapped = difference_estimate(b, a)
    assert (swapped.low, swapped.high) == pytest.approx((-paired.high, -paired.low))


def test_bootstrap_draws_the_same_problems_from_every_array():
    x = np.arange(12.0)
    ratio = bootstrap(lambda a, b: a.sum() / b.sum(), 3 * x + 3, x + 1, num_resamples=100)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((3.0, 3.0, 3.0))
    tables = np.arange(24).reshape(4, 2, 3)
    totals = bootstrap(lambda counts: float(counts.sum()), tables, num_resamples=100)
    assert totals.value == tables.sum() and totals.low < totals.value < totals.high
    assert totals.n == 4


def test_bootstrap_of_a_biased_statistic_holds_its_value():
    """The number of different values is smaller in every resample than in the whole."""
    estimate = bootstrap(lambda a: float(len(np.unique(a))), np.arange(20), num_resamples=50)
    assert estimate.high == estimate.value == 20.0 > estimate.low


def test_bootstrap_refuses_what_has_no_interval():
    with pytest.raises(ValueError, match="at least one problem"):
        mean_estimate([])
    with pytest.raises(ValueError, match="at least one problem"):
        bootstrap(np.mean)
    with pytest.raises(ValueError, match=r"\(3,\), \(2,\)"):
        bootstrap(lambda a, b: 0.0, np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="statistic: is nan"):
        mean_estimate([0.5, math.nan])
    with pytest.raises(ValueError, match=r"values: shape \(2, 2\)"):
        mean_estimate(np.eye(2))
    with pytest.raises(ValueError, match="the same problems"):
        difference_estimate([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="num_resamples=0"):
        mean_estimate([1.0], num_resamples=0)
    with pytest.raises(ValueError, match="confidence=0"):
        mean_estimate([1.0], confidence=0.0)


def test_runs_estimate_by_hand():
    """1, 2, 3 have deviation 1; Student's t at 97.5% is 4.302653 for two degrees of freedom."""
    estimate = runs_estimate([1, 2, 3])
    assert (estimate.value, estimate.n) == (2.0, 3)
    assert estimate.high - 2 == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert 2 - estimate.low == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    narrower = runs_estimate([1, 2, 3], confidence=0.5)
    assert narrower.high - 2 == pytest.approx(0.816497 / math.sqrt(3), abs=1e-6)
    assert runs_estimate([0.5, 0.5]) == Estimate(0.5, 0.5, 0.5, 2)


def test_one_run_has_no_interval():
    with pytest.raises(ValueError, match="values: 1 run has no interval"):
        runs_estimate([0.5])
    with pytest.raises(ValueError, match="confidence=1"):
        runs_estimate([0.5, 0.6], confidence=1)


def test_estimate_is_json():
    estimate = mean_estimate(pass_at_k(8, np.array([3, 0, 8]), 4))
    assert json.loads(json.dumps(estimate.as_dict())) == {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": 3,
    }
    json.dumps(wilson_interval(np.int64(3), np.int64(4)).as_dict())
