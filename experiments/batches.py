"""The batches that a phase of supervised training reads, padded or packed as its section says.

    plan = plan_batches(examples, config.finetune, seed, pad_id, mesh)
    for batch in plan.batches(first_step): ...
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import ml_collections
from jax.sharding import Mesh

from reasoning.data import pipelines
from reasoning.data.packing import collate_packed, most_rows, plan_packed
from reasoning.data.pipelines import Example, TraceBatch
from reasoning.runtime.meshes import num_row_parts


class BatchPlan(NamedTuple):
    """What a phase reads.

    Attributes:
      batches: those from a step on.
      members: the indices of the examples in each, from the first on; a batch numbers its problems
        in this order.
      packing: number and length of the sequences that rows are packed into; None: of no packing.
    """

    batches: Callable[[int], Iterator[TraceBatch]]
    members: list[list[int]]
    packing: tuple[int, int] | None = None

    @property
    def most_problems(self) -> int:
        """In any of the batches."""
        return max(map(len, self.members))


def plan_batches(
    examples: Sequence[Example],
    settings: ml_collections.ConfigDict,
    seed: int,
    pad_id: int,
    mesh: Mesh | None,
) -> BatchPlan:
    """The batches of a phase, packed where its section names a length for that."""
    if not settings.pack:
        return plan_padded(examples, settings, seed, pad_id)
    packing = settings.rows, settings.pack
    plan = plan_packed(
        examples, num_sequences=settings.rows, length=settings.pack, num_batches=settings.steps,
        seed=seed,
    )
    share = 1 if mesh is None else num_row_parts(mesh)
    collate = partial(
        collate_packed, examples, rows=-(-most_rows(plan) // share) * share,
        width=pipelines.bucket_lengths(examples, 1)[0], pad_id=pad_id,
    )
    members = [[placed.index for placed in batch] for batch in plan]
    return BatchPlan(_feed_from(plan, collate), members, packing)


def plan_padded(
    examples: Sequence[Example], settings: ml_collections.ConfigDict, seed: int, pad_id: int
) -> BatchPlan:
    """The batches of a phase, their rows padded to the section's buckets."""
    plan = pipelines.plan_batches(
        examples, rows=settings.rows, num_batches=settings.steps, seed=seed,
        buckets=pipelines.bucket_lengths(examples, settings.buckets),
    )

    def collate(entry: tuple[int, list[int]]) -> TraceBatch:
        return pipelines.collate(examples, *entry, settings.rows, pad_id)

    return BatchPlan(_feed_from(plan, collate), [members for _, members in plan])


def due_problems(members: Sequence[Sequence[int]], every: int) -> list[list[bool]]:
    """Which problems of each batch are matched: at their visits 0, `every`, 2 `every`, ...

    Every copy of a problem is a visit, so that visits are epochs. Of the copies in one batch at
    most one is matched, for all of them.

    Args:
      members: of a plan, from its first batch on.
    """
    visits, due = Counter[int](), []
    for batch in members:
        row, matched = [], set()
        for index in batch:
            row.append(visits[index] % every == 0 and index not in matched)
            if row[-1]:
                matched.add(index)
            visits[index] += 1
        due.append(row)
    return due


def _feed_from(
    plan: Sequence[Any], build: Callable[[Any], TraceBatch]
) -> Callable[[int], Iterator[TraceBatch]]:
    """A function of a step: the batches from there on."""
    return lambda first: pipelines.feed(plan[first:], build)
