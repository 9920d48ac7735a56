"""Diversity measures against hand-computed numbers, brute force and their defining properties."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.evaluation.diversity import (
    distinct_n,
    effective_number,
    entropy,
    mutual_information,
    ngram_similarity,
    self_bleu,
    vendi_score,
)

quick = settings(max_examples=50, deadline=None)

tables = (
    st.tuples(st.integers(1, 5), st.integers(1, 5))
    .flatmap(
        lambda shape: st.lists(
            st.lists(st.integers(0, 50), min_size=shape[1], max_size=shape[1]),
            min_size=shape[0],
            max_size=shape[0],
        ).map(np.array)
    )
    .filter(lambda table: table.sum() > 0)
)
texts = st.lists(st.lists(st.sampled_from("abc"), max_size=7), min_size=2, max_size=6)


# strategies


def test_entropy_and_effective_number():
    assert entropy([1, 1, 1, 1]) == pytest.approx(math.log(4))
    assert effective_number([7, 7, 7, 0]) == pytest.approx(3.0)
    assert entropy([5, 0]) == 0.0 and effective_number([5]) == 1.0
    assert entropy([3, 1]) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert entropy([0.75, 0.25]) == pytest.approx(entropy([3, 1]))


def test_mutual_information_by_hand():
    """p = [[.4, .1], [.1, .4]]: 0.8 ln 1.6 + 0.2 ln 0.4."""
    expected = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    assert mutual_information([[4, 1], [1, 4]]) == pytest.approx(expected)
    assert mutual_information([[0.4, 0.1], [0.1, 0.4]]) == pytest.approx(expected)


@quick
@given(tables, st.randoms(use_true_random=False))
def test_mutual_information_bounds_and_symmetries(table, random):
    information = mutual_information(table)
    assert information >= 0.0
    assert information <= min(entropy(table.sum(axis=1)), entropy(table.sum(axis=0))) + 1e-12
    rows = random.sample(range(len(table)), len(table))
    columns = random.sample(range(table.shape[1]), table.shape[1])
    assert mutual_information(table[rows][:, columns]) == pytest.approx(information, abs=1e-12)
    assert mutual_information(table.T) == pytest.approx(information, abs=1e-12)
    assert mutual_information(3 * table) == pytest.approx(information, abs=1e-12)


@quick
@given(tables)
def test_mutual_information_is_the_divergence_from_independence(table):
    p = table / table.sum()
    apart = np.outer(p.sum(axis=1), p.sum(axis=0))
    divergence = sum(a * math.log(a / b) for a, b in zip(p.flat, apart.flat, strict=True) if a)
    assert mutual_information(table) == pytest.approx(divergence, abs=1e-12)


@pytest.mark.parametrize("num_tags", [1, 2, 4, 7])
def test_mutual_information_of_ignored_and_of_decisive_tags(num_tags):
    for columns in ([5, 0, 2, 1], range(1, 7), range(1, 8)):
        ignored = np.outer(np.arange(1, num_tags + 1), columns)
        assert 0.0 <= mutual_information(ignored) < 1e-12  # rounding must not go below zero
    assert mutual_information(3 * np.eye(num_tags)) == pytest.approx(math.log(num_tags))


@pytest.mark.parametrize("table", [[[0, 0], [0, 0]], [[1, -1]], [[math.nan, 1]], np.zeros((0, 2))])
def test_tables_without_a_distribution_are_refused(table):
    with pytest.raises(ValueError, match="counts: shape"):
        mutual_information(table)
    with pytest.raises(ValueError, match="weights: shape"):
        entropy(table)


def test_mutual_information_needs_a_table():
    with pytest.raises(ValueError, match=r"\[tags, strategies\]"):
        mutual_information([1, 2, 3])


# Vendi score


def test_vendi_known_values():
    assert vendi_score(np.eye(4)) == pytest.approx(4.0)
    assert vendi_score(np.ones((5, 5))) == pytest.approx(1.0)
    assert vendi_score([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]]) == pytest.approx(2.15730, abs=5e-6)
    assert vendi_score([[1.0]]) == pytest.approx(1.0)


def test_vendi_orders_by_hand():
    """Two equal items and one apart: eigenvalues of K/3 are 2/3, 1/3 and 0."""
    similarity = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert vendi_score(similarity, order=0.0) == pytest.approx(2.0)
    assert vendi_score(similarity, order=2.0) == pytest.approx(1 / (4 / 9 + 1 / 9))
    assert vendi_score(similarity, order=math.inf) == pytest.approx(1.5)
    assert vendi_score(similarity, order=2000.0) == pytest.approx(1.5, abs=1e-3)
    for order in (0.0, 0.5, 1.0, 2.0, 5000.0, math.inf):
        assert vendi_score(np.eye(4), order) == pytest.approx(4.0)
    nearly = [vendi_score(similarity, order) for order in (1 - 1e-5, 1.0, 1 + 1e-5)]
    assert nearly == pytest.approx([nearly[1]] * 3, abs=1e-4)


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 8))
def test_vendi_range_permutations_and_orders(seed, n, width):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(n, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    score = vendi_score(similarity)
    assert 1.0 - 1e-9 <= score <= min(n, width) + 1e-9
    order = generator.permutation(n)
    assert vendi_score(similarity[order][:, order]) == pytest.approx(score, abs=1e-9)
    by_order = [vendi_score(similarity, q) for q in (0.0, 0.5, 1.0, 2.0, 50.0, math.inf)]
    assert all(a >= b - 1e-7 for a, b in itertools.pairwise(by_order))
    assert vendi_score(similarity.astype(np.float32)) == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize(
    "similarity, message",
    [
        (np.ones((2, 3)), r"shape \(2, 3\)"),
        (np.ones((0, 0)), "n >= 1"),
        ([[1, 0.5], [0.4, 1]], "symmetric"),
        ([[1, math.nan], [math.nan, 1]], "symmetric"),
        ([[1, 0], [0, 2]], "unit diagonal"),
        ([[1, 2], [2, 1]], "eigenvalue -1 "),
    ],
)
def test_vendi_refuses_what_is_no_similarity(similarity, message):
    with pytest.raises(ValueError, match=message):
        vendi_score(similarity)


def test_vendi_refuses_negative_orders():
    for order in (-1.0, math.nan):
        with pytest.raises(ValueError, match="order="):
            vendi_score(np.eye(2), order)


# n-gram similarity


def test_ngram_similarity_by_hand():
    """Bigrams ab, bc against ab, bd: one of two shared."""
    similarity = ngram_similarity([list("abc"), list("abd"), list("abab")], 2)
    third = 2 / (math.sqrt(2) * math.sqrt(5))  # ab twice and ba once
    expected = [[1, 0.5, third], [0.5, 1, third], [third, third, 1]]
    np.testing.assert_allclose(similarity, expected, atol=1e-12)


def test_sequences_without_ngrams_are_like_their_equals_only():
    similarity = ngram_similarity([[], [], [1], [1], [2], [1, 2]], 2)
    expected = np.eye(6)
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = 1.0
    np.testing.assert_allclose(similarity, expected)
    assert vendi_score(similarity, order=0.0) == pytest.approx(4.0)
    assert ngram_similarity([], 2).shape == (0, 0)


@quick
@given(texts, st.integers(1, 3))
def test_ngram_similarity_is_a_kernel_that_vendi_accepts(sequences, n):
    similarity = ngram_similarity(sequences, n)
    assert (similarity >= 0.0).all() and (similarity <= 1.0).all()
    np.testing.assert_array_equal(np.diag(similarity), 1.0)
    assert np.linalg.eigvalsh(similarity).min() > -1e-9
    kinds = len({tuple(sequence) for sequence in sequences})
    assert 1.0 - 1e-9 <= vendi_score(similarity) <= kinds + 1e-9


# distinct-n


def test_distinct_n_by_hand():
    sequences = [[1, 2, 1, 2], [1, 2], [3], []]
    assert distinct_n(sequences, 1) == pytest.approx(3 / 7)
    assert distinct_n(sequences, 2) == pytest.approx(2 / 4)  # 12 three times, 21 once
    assert distinct_n(sequences, 5) == 0.0
    assert distinct_n([[1, 2, 3], [4, 5]], 2) == 1.0
    assert distinct_n([], 1) == 0.0


# self-BLEU


def brute_force_self_bleu(sequences, max_n):
    """BLEU as it is defined: every sequence against all others, clipped at the largest count."""

    def grams(sequence, n):
        return Counter(tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1))

    scores = []
    for i, sequence in enumerate(sequences):
        others = sequences[:i] + sequences[i + 1 :]
        if not sequence:
            scores.append(1.0 if [] in others else 0.0)
            continue
        product, orders = 1.0, min(max_n, len(sequence))
        for n in range(1, orders + 1):
            own = grams(sequence, n)
            matched = sum(
                min(count, max(grams(other, n)[gram] for other in others))
                for gram, count in own.items()
            )
            plus = 0 if n == 1 else 1
            product *= (matched + plus) / (sum(own.values()) + plus)
        gap = min(abs(len(other) - len(sequence)) for other in others)
        shorter = any(len(other) == len(sequence) - gap for other in others)
        closest = len(sequence) - gap if shorter else len(sequence) + gap
        brevity = min(1.0, math.exp(1 - closest / len(sequence)))
        scores.append(brevity * product ** (1 / orders))
    return sum(scores) / len(scores)


@quick
@given(texts, st.integers(1, 4), st.randoms(use_true_random=False))
def test_self_bleu_is_its_definition(sequences, max_n, random):
    score = self_bleu(sequences, max_n)
    assert score == pytest.approx(brute_force_self_bleu(sequences, max_n), abs=1e-12)
    assert 0.0 <= score <= 1.0 + 1e-12
    shuffled = random.sample(sequences, len(sequences))
    assert self_bleu(shuffled, max_n) == pytest.approx(score, abs=1e-12)


def test_self_bleu_by_hand():
    """abc against abd: 2/3 of unigrams, (1+1)/(2+1) of bigrams, (0+1)/(1+1) of trigrams."""
    pair = [list("abc"), list("abd")]
    assert self_bleu(pair, max_n=2) == pytest.approx(2 / 3)
    assert self_bleu(pair) == pytest.approx((2 / 3 * 2 / 3 * 1 / 2) ** (1 / 3))
    # The shorter is contained in the longer and pays for brevity; the longer matches 2 of 4.
    nested = self_bleu([list("ab"), list("abcd")], max_n=1)
    assert nested == pytest.approx((math.exp(1 - 4 / 2) + 2 / 4) / 2)


def test_self_bleu_ends_of_the_scale():
    assert self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(1.0)
    assert self_bleu([[1, 1, 1, 1]] * 2) == pytest.approx(1.0)
    assert self_bleu([[1, 2, 3, 4], [5, 6, 7, 8], [9]]) == 0.0
    assert self_bleu([[], []]) == 1.0
    assert self_bleu([[], [1]]) == 0.0


def test_text_measures_refuse_plain_strings_and_empty_ngrams():
    for measure in (ngram_similarity, distinct_n, self_bleu):
        with pytest.raises(ValueError, match="split every text into words"):
            measure(["a b c", "a b d"], 2)
        with pytest.raises(ValueError, match="n=0"):
            measure([[1], [2]], 0)
    with pytest.raises(ValueError, match="max_n=0"):
        self_bleu([[1], [2]], 0)
    with pytest.raises(ValueError, match="1 given"):
        self_bleu([[1, 2]])
