"""Batches without padding: rows of any length side by side in sequences of one length.

    plan = plan_packed(examples, num_sequences=8, length=512, num_batches=1000, seed=0)
    batch = collate_packed(examples, plan[0], rows=most_rows(plan), width=512, pad_id=0)

All traces of a problem travel in the same batch, so that they can be matched to tags as a set; they
may lie in different sequences. A row sees nothing of its neighbours: it is a segment of its own
(`reasoning.learning.updates.lay_out`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reasoning.data.pipelines import Example, TraceBatch, collate

WAITING = 64  # examples that are tried before a batch is closed


class Placed(NamedTuple):
    """An example of a batch, and where its rows lie."""

    index: int
    sequences: tuple[int, ...]
    offsets: tuple[int, ...]


def row_lengths(example: Example) -> list[int]:
    """Tokens of each of its rows, the fork included."""
    return [len(example.prompt) + 1 + len(trace) for trace in example.traces]


def plan_packed(
    examples: Sequence[Example], *, num_sequences: int, length: int, num_batches: int, seed: int
) -> list[list[Placed]]:
    """Which examples form each batch, and where their rows lie in its sequences.

    Examples are drawn in a new random order every epoch. Each goes where the least room is left;
    one that does not fit waits for the next batch, and a batch is closed when none of those that
    wait fits.

    Raises:
      ValueError: no examples, a number out of range, or rows that no empty batch has room for.
    """
    if not examples:
        raise ValueError("examples=[]: there is nothing to pack; give at least one.")
    for name, value, least in (
        ("num_sequences", num_sequences, 1), ("length", length, 1), ("num_batches", num_batches, 0)
    ):
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least}.")
    rng, order = np.random.default_rng(seed), []
    waiting: list[int] = []
    plan: list[list[Placed]] = []
    while len(plan) < num_batches:
        free, batch = [length] * num_sequences, []
        while True:
            while len(waiting) < WAITING:
                order = order or rng.permutation(len(examples)).tolist()
                waiting.append(order.pop())
            found = next(
                (
                    (place, placed)
                    for place, index in enumerate(waiting)
                    if (placed := _fit(examples[index], index, free, length))
                ),
                None,
            )
            if found is None:
                break
            place, placed = found
            del waiting[place]
            batch.append(placed)
            for sequence, size in zip(
                placed.sequences, row_lengths(examples[placed.index]), strict=True
            ):
                free[sequence] -= size
        if not batch:
            rows = row_lengths(examples[waiting[0]])
            raise ValueError(
                f"length={length}: {num_sequences} empty sequences have no room for a problem's "
                f"rows of {', '.join(map(str, rows))} tokens; raise it."
            )
        plan.append(batch)
    return plan


def _fit(example: Example, index: int, free: Sequence[int], length: int) -> Placed | None:
    """Where the example's rows fit, the longest first; None if they do not."""
    left, sizes = list(free), row_lengths(example)
    sequences, offsets = [0] * len(sizes), [0] * len(sizes)
    for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
        fits = [s for s in range(len(left)) if left[s] >= sizes[row]]
        if not fits:
            return None
        sequences[row] = min(fits, key=left.__getitem__)
        offsets[row] = length - left[sequences[row]]
        left[sequences[row]] -= sizes[row]
    return Placed(index, tuple(sequences), tuple(offsets))


def most_rows(plan: Sequence[Sequence[Placed]]) -> int:
    """The most rows in any batch of a plan."""
    return max(sum(len(placed.sequences) for placed in batch) for batch in plan)


def collate_packed(
    examples: Sequence[Example], batch: Sequence[Placed], rows: int, width: int, pad_id: int
) -> TraceBatch:
    """A batch of the plan as `[rows, width]`, and where they lie. Rows left over have length 0."""
    made = collate(examples, width, [placed.index for placed in batch], rows, pad_id)
    sequence, offset = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    count = sum(len(placed.sequences) for placed in batch)
    sequence[:count] = np.concatenate([placed.sequences for placed in batch])
    offset[:count] = np.concatenate([placed.offsets for placed in batch])
    return made.replace(sequence=sequence, offset=offset)
