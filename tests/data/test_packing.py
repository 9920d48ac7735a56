"""Packing: every example once an epoch, whole problems, rows apart, sequences full."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.packing import (
    collate_packed,
    most_rows,
    plan_packed,
    row_lengths,
)
from reasoning.data.pipelines import Example


def make_examples(count, longest=12, most_traces=3, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Example(
            tuple(range(1, 1 + rng.integers(1, 5))),
            tuple((5,) * n for n in rng.integers(1, longest + 1, rng.integers(most_traces) + 1)),
        )
        for _ in range(count)
    ]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), sequences=st.integers(1, 5), length=st.integers(60, 90),
       seed=st.integers(0, 9))
def test_rows_lie_within_sequences_and_never_overlap(count, sequences, length, seed):
    examples = make_examples(count, seed=seed)
    plan = plan_packed(
        examples, num_sequences=sequences, length=length, num_batches=6, seed=seed
    )
    assert len(plan) == 6
    for batch in plan:
        taken = np.zeros((sequences, length), int)
        for placed in batch:
            sizes = row_lengths(examples[placed.index])
            for sequence, offset, size in zip(
                placed.sequences, placed.offsets, sizes, strict=True
            ):
                assert offset + size <= length
                taken[sequence, offset : offset + size] += 1
        assert taken.max() == 1


def test_every_example_comes_once_an_epoch_and_none_waits_for_long():
    examples = make_examples(100)
    plan = plan_packed(examples, num_sequences=2, length=64, num_batches=200, seed=0)
    order = [placed.index for batch in plan for placed in batch]
    for end in range(100, len(order), 100):
        counts = Counter(order[:end])
        assert max(counts.values()) - min(counts[i] for i in range(100)) <= 2
    again = plan_packed(examples, num_sequences=2, length=64, num_batches=200, seed=0)
    assert again == plan
    assert plan_packed(examples, num_sequences=2, length=64, num_batches=200, seed=1) != plan


def test_sequences_are_filled_to_more_than_95_percent():
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(4.0, 0.6, 2000)), 4, 400).astype(int)  # a heavy tail
    examples = [
        Example((1,) * 20, tuple((5,) * n for n in lengths[i : i + 4])) for i in range(0, 2000, 4)
    ]
    plan = plan_packed(examples, num_sequences=8, length=512, num_batches=40, seed=0)
    tokens = sum(sum(row_lengths(examples[placed.index])) for batch in plan for placed in batch)
    assert tokens / (40 * 8 * 512) > 0.95


def test_a_batch_says_where_its_rows_lie():
    examples = make_examples(30)
    plan = plan_packed(examples, num_sequences=3, length=40, num_batches=4, seed=0)
    for entry in plan:
        batch = collate_packed(examples, entry, rows=most_rows(plan), width=20, pad_id=0)
        assert batch.tokens.shape == (most_rows(plan), 20)
        rows = [
            (placed.sequences[slot], placed.offsets[slot], size)
            for placed in entry
            for slot, size in enumerate(row_lengths(examples[placed.index]))
        ]
        found = zip(batch.sequence, batch.offset, batch.lengths, strict=True)
        assert list(found)[: len(rows)] == rows
        assert (batch.lengths[len(rows) :] == 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(length=10), "length=10: 2 empty sequences have no room for a problem's rows of"),
        (dict(num_sequences=0), "num_sequences=0: must be at least 1"),
        (dict(num_batches=-1), "num_batches=-1: must be at least 0"),
    ],
)
def test_what_cannot_be_packed_is_refused(change, words):
    numbers = {**dict(num_sequences=2, length=40, num_batches=2), **change}
    with pytest.raises(ValueError, match=words):
        plan_packed([Example((1, 2), ((3,) * 20,))], **numbers, seed=0)
    with pytest.raises(ValueError, match="nothing to pack"):
        plan_packed([], num_sequences=2, length=40, num_batches=2, seed=0)
