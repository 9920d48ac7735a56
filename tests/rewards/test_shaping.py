"""Shaping terms: known values, plain references, and indifference to what the mask hides."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.tasks import TASKS, make_task
from reasoning.data.tokenizers import train_tokenizer
from reasoning.rewards.shaping import (
    cosine_length,
    garbled,
    repeats,
    repetition_fraction,
    soft_overlong,
    task_ids,
)

EOS = 2


def padded(*rows, width=None):
    """Rows of ids as tokens and mask `[B, N]`."""
    width = width or max(map(len, rows))
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = True
    return tokens, mask


def grams(row, n):
    return collections.Counter(tuple(row[i : i + n]) for i in range(len(row) - n + 1))


# repetition


def test_repetition_fraction_known_values():
    tokens, mask = padded([5, 5, 5, 5, 5], [1, 2, 3, 4, 5], [1, 2, 1, 2, 1], [5], [])
    got = repetition_fraction(tokens, mask, 2)
    np.testing.assert_allclose(-1.0 * got, [-0.75, 0.0, -0.5, 0.0, 0.0], atol=1e-7)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(repetition_fraction(tokens, mask, 1), [0.8, 0, 0.6, 0, 0], atol=1e-7)
    np.testing.assert_allclose(repetition_fraction(tokens, mask, 9), 0.0)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=4, max_size=4),
    n=st.sampled_from([1, 2, 3]),
    count=st.sampled_from([2, 3, 5]),
)
def test_repetition_against_counters(rows, n, count):
    tokens, mask = padded(*rows, width=12)
    counters = [grams(row, n) for row in rows]
    fraction = [1 - len(c) / c.total() if c else 0.0 for c in counters]
    np.testing.assert_allclose(repetition_fraction(tokens, mask, n), fraction, atol=1e-6)
    expected = [max(c.values(), default=0) >= count for c in counters]
    assert repeats(tokens, mask, n, count).tolist() == expected


def test_ngrams_are_compared_exactly():
    """Neither ids of 17 bits nor sums of ids collide, as they would under a careless hash."""
    tokens, mask = padded([1, 131073, 131073, 1, 2, 131072, 131072, 2])
    assert repetition_fraction(tokens, mask, 2).tolist() == [0.0]
    assert not repeats(tokens, mask, 2, 2)[0]


def test_ngrams_do_not_bridge_a_gap_in_the_mask():
    tokens = np.array([[1, 2, 1, 2, 1, 2]])
    mask = np.array([[True, True, False, True, False, False]])
    assert repeats(tokens, mask, 1, 2).tolist() == [True]  # 2, at places 1 and 3
    assert repeats(tokens, mask, 2, 2).tolist() == [False]


def test_repeats_over_a_long_row():
    rng = np.random.default_rng(0)
    row = rng.integers(0, 50_000, 5000)
    row[:16] = row[2000:2016] = row[4000:4016]
    tokens, mask = row[None], np.ones((1, 5000), bool)
    assert repeats(tokens, mask, 16, 3)[0] and not repeats(tokens, mask, 16, 4)[0]
    assert not repeats(tokens, mask, 17, 3)[0]
    np.testing.assert_allclose(repetition_fraction(tokens, mask, 16), 2 / 4985, rtol=1e-4)


def test_repetition_refuses_bad_arguments():
    tokens, mask = padded([1, 2])
    with pytest.raises(ValueError, match="n=0: an n-gram has at least 1 token"):
        repetition_fraction(tokens, mask, 0)
    with pytest.raises(ValueError, match="count=1: every n-gram occurs once"):
        repeats(tokens, mask, 2, 1)


# length


def test_soft_overlong_known_values():
    lengths = np.array([0, 80, 81, 90, 100, 101, 1000])
    expected = [0, 0, -0.05, -0.5, -1, -1, -1]
    np.testing.assert_allclose(soft_overlong(lengths, 100, 20), expected, atol=1e-7)
    got = soft_overlong(np.array([16384, 18432, 20480]), 20480, 4096)
    np.testing.assert_allclose(got, [0, -0.5, -1])
    assert not np.signbit(got[0]) and got.dtype == jnp.float32


@pytest.mark.parametrize("buffer", [0, 101])
def test_soft_overlong_refuses_a_bad_buffer(buffer):
    with pytest.raises(ValueError, match=rf"buffer={buffer}: must lie in 1..max_length=100"):
        soft_overlong(np.array([1]), 100, buffer)


def test_cosine_length_known_values():
    lengths = np.array([50, 50, 0, 0, 100, 100, 500, 500])
    correct = np.array([True, False] * 4)
    expected = [0.75, -0.75, 1.0, -1.0, 0.5, -0.5, 0.5, -0.5]
    got = cosine_length(lengths, correct, 100)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert got.dtype == jnp.float32


def test_cosine_length_against_the_papers_formula():
    lengths = np.arange(0, 130)
    cosine = 1 + np.cos(np.pi * np.minimum(lengths / 100, 1))
    for correct, low, high in ((True, 1.0, 2.0), (False, 0.0, -10.0)):
        got = cosine_length(
            lengths, np.full(130, correct), 100, right=(2.0, 1.0), wrong=(-10.0, 0.0)
        )
        np.testing.assert_allclose(got, low + 0.5 * (high - low) * cosine, atol=1e-5)


def test_cosine_length_refuses_a_bad_length():
    with pytest.raises(ValueError, match="max_length=0: must be positive"):
        cosine_length(np.array([1]), np.array([True]), 0)


# patterns


def test_garbled_known_cases():
    allowed = np.zeros(10, bool)
    allowed[[EOS, 5, 6, 7]] = True
    tokens, mask = padded(
        [10, 5, 6, EOS],  # a tag first
        [5, 6, EOS],  # no tag
        [10, 5, 11, EOS],  # a tag in the middle
        [10, 5, 3, EOS],  # unk
        [10, 5, 0, EOS],  # padding inside the completion
        [1, 5, EOS],  # bos first
        [12],
    )
    assert garbled(tokens, mask, allowed).tolist() == [
        False, False, True, True, True, True, False,
    ]


@pytest.mark.parametrize("name", TASKS)
def test_no_trace_of_a_task_is_garbled(name):
    task = make_task(name)
    tokenizer = train_tokenizer(
        (), vocab_size=None, words=task.words, numbers="whole", max_number=task.max_number
    )
    allowed = task_ids(task, tokenizer)
    assert allowed.sum() == len(task.words) + task.max_number + 2
    traces = (task.trace(task.sample(0, i), s) for i in range(10) for s in task.strategies)
    rows = [[*tokenizer.encode(t.completion), EOS] for t in traces if t is not None]
    rows = [[tokenizer.vocab_size + i % 3, *row] for i, row in enumerate(rows)]
    tokens, mask = padded(*rows)
    assert not garbled(tokens, mask, allowed).any()
    tokens[:, 2] = tokenizer.unk_id
    assert garbled(tokens, mask, allowed).all()


# all of them


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_what_the_mask_hides_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    mask = np.arange(16) < rng.integers(0, 17, size=(8, 1))
    one = rng.integers(0, 6, size=(8, 16)).astype(np.int32)
    other = np.where(mask, one, rng.integers(0, 6, size=(8, 16))).astype(np.int32)
    allowed = np.array([True, True, True, True])
    for function in (
        lambda t: repetition_fraction(t, mask, 2),
        lambda t: repeats(t, mask, 1, 4),
        lambda t: repeats(t, mask, 3, 2),
        lambda t: garbled(t, mask, allowed),
    ):
        np.testing.assert_array_equal(function(one), function(other))


def test_terms_jit_and_vmap():
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(0, 4, (3, 5, 12)), np.arange(12) < rng.integers(0, 13, (3, 5, 1))
    lengths, correct = mask.sum(axis=-1), rng.random((3, 5)) < 0.5
    allowed = np.array([True, True, False, True])

    def terms(tokens, mask, lengths, correct):
        return (
            repetition_fraction(tokens, mask, 2), repeats(tokens, mask, 2, 3),
            soft_overlong(lengths, 12, 4),
            cosine_length(lengths, correct, 12), garbled(tokens, mask, allowed),
        )

    together = jax.jit(jax.vmap(terms))(tokens, mask, lengths, correct)
    for i in range(3):
        alone = terms(tokens[i], mask[i], lengths[i], correct[i])
        for got, expected in zip(together, alone):
            np.testing.assert_allclose(got[i], expected, atol=1e-6)
