"""From problems to batches: tokenize once, plan the batches from a seed, feed them by grain.

A row is `<bos> prompt <fork> completion <eos>`; the id at the fork is a placeholder until a
strategy tag is assigned to the row. All traces of a problem travel in the same batch, so that
they can be matched to tags as a set. Rows are padded to a few bucket lengths.

The plan (which problems form batch i) is a pure function of the examples and the seed, so that
batches are the same for any number of workers and a position is one integer.
"""

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import grain
import jax
import numpy as np

from reasoning.data.formats import TextFormat
from reasoning.data.tasks.base import Problems, Task

MAX_MISSES = 1000  # so many problems in a row without a trace end the search for more


@flax.struct.dataclass
class TraceBatch:
    """N rows, each one trace of one problem; host arrays until a jitted function takes them.

    `problem` numbers the problems of the *global* batch. All rows of a problem are in it, but a
    host's share of the rows may hold only some of them, so matching must read the global batch.

    Attributes:
      tokens: `[N, T]` int32; the id at `fork` is a placeholder for the strategy tag.
      lengths: `[N]` int32 tokens in the row including <eos>; 0 for a row of padding.
      fork: `[N]` int32 position of the strategy tag.
      problem: `[N]` int32 which problem of the global batch the row belongs to, from 0.
      slot: `[N]` int32 which of its problem's traces the row is, in 0..M-1.
      problem_seed: `[N]` uint32 a number of the problem's own, for draws per problem and what is
        kept of it: the example's index.
      sequence, offset: `[N]` int32, where the row begins in a packed batch
        (`reasoning.data.packing`); None where every row stands alone.
    """

    tokens: Any
    lengths: Any
    fork: Any
    problem: Any
    slot: Any
    problem_seed: Any
    sequence: Any = None
    offset: Any = None


@dataclasses.dataclass(frozen=True)
class Example:
    """One problem as ids: `prompt` ends at the fork, each trace runs from after it to <eos>."""

    prompt: tuple[int, ...]
    traces: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        """Length of its longest row."""
        return len(self.prompt) + 1 + max(map(len, self.traces))


def make_example(text_format: TextFormat, prompt: str, completions: Sequence[str]) -> Example:
    """A problem's prompt and completions as ids."""
    traces = tuple(text_format.completion_ids(text) for text in completions)
    return Example(tuple(text_format.prompt_ids(prompt)), traces)


def _solved_problems(
    task: Problems, seed: int, count: int, write: Callable[[Any], list[str]]
) -> Iterator[tuple[Any, list[str]]]:
    """The first `count` training problems for which `write` has completions, with these."""
    if count < 1:
        raise ValueError(f"count={count}: ask for at least one problem.")
    found = misses = 0
    for problem in task.stream("train", seed):
        completions = write(problem)
        misses = 0 if completions else misses + 1
        if misses == MAX_MISSES:
            raise ValueError(
                f"count={count}: {task.name} has no trace for any of {misses} problems in a row, "
                f"after {found} that have one; make the task easier, as by more tries, or take a "
                "corpus with traces."
            )
        if completions:
            yield problem, completions
            found += 1
            if found == count:
                return


def strategy_examples(
    task: Problems, text_format: TextFormat, seed: int, count: int
) -> list[Example]:
    """Training problems with their traces: those of a task's strategies, or those of a corpus.

    Which strategy wrote a trace is not kept, and the order of a problem's traces is shuffled:
    matching has to discover what belongs together.

    Returns:
      `count` problems of the train split that have a trace. Of a corpus that holds fewer, the
      same problem comes again, once more in every pass.

    Raises:
      ValueError: `count` is below 1, or too few problems have a trace.
    """
    examples = []
    solved = _solved_problems(task, seed, count, task.completions)
    for index, (problem, completions) in enumerate(solved):
        random.Random(f"order/{seed}/{index}").shuffle(completions)
        examples.append(make_example(text_format, task.prompt(problem), completions))
    return examples


def named_examples(
    task: Task, text_format: TextFormat, seed: int, count: int
) -> list[Example]:
    """Training problems that all strategies of a task solve, with their traces in that order.

    Under the arm `fixed`, tag s then stands for the s-th strategy.

    Raises:
      ValueError: `count` is below 1, or too few problems have all traces.
    """

    def write(problem: Any) -> list[str]:
        traces = [task.trace(problem, name) for name in task.strategies]
        return [] if None in traces else [trace.completion for trace in traces]

    solved = _solved_problems(task, seed, count, write)
    return [make_example(text_format, task.prompt(problem), texts) for problem, texts in solved]


def practice_examples(
    task: Problems, text_format: TextFormat, seed: int, count: int
) -> list[Example]:
    """Training problems with one trace each: a task's follows no strategy, a corpus has its first.

    Raises:
      ValueError: `count` is below 1, or practice solves too few problems.
    """
    rng = random.Random(f"practice/{seed}")

    def write(problem: Any) -> list[str]:
        completion = task.practice(problem, rng)
        return [] if completion is None else [completion]

    return [
        make_example(text_format, task.prompt(problem), completions)
        for problem, completions in _solved_problems(task, seed, count, write)
    ]


def _check_examples(examples: Sequence[Example]) -> None:
    if not examples:
        raise ValueError("examples=[]: there is nothing to batch; give at least one.")


def bucket_lengths(examples: Sequence[Example], count: int) -> list[int]:
    """At most `count` bucket lengths that hold about equally many examples, multiples of 4.

    Raises:
      ValueError: `count` is below 1, or there are no examples.
    """
    if count < 1:
        raise ValueError(f"count={count}: ask for at least one bucket.")
    _check_examples(examples)
    longest = [example.longest for example in examples]
    shares = np.quantile(longest, np.arange(1, count + 1) / count)
    return sorted({4 * math.ceil(length / 4) for length in shares})


def plan_batches(
    examples: Sequence[Example], *, rows: int, buckets: Sequence[int], num_batches: int, seed: int
) -> list[tuple[int, list[int]]]:
    """Which examples form each batch: (bucket length, example indices), epoch after epoch.

    Examples are drawn in a new random order every epoch and wait in the smallest bucket that
    holds their longest row; a batch is full when the next example's rows would not fit.

    Raises:
      ValueError: no examples, `num_batches` below 0, or an example that fits no bucket or has
        more traces than a batch has rows.
    """
    _check_examples(examples)
    if num_batches < 0:
        raise ValueError(f"num_batches={num_batches}: must be 0 (none) or above.")
    buckets = sorted(buckets)
    longest = max(example.longest for example in examples)
    widest = max(len(example.traces) for example in examples)
    if longest > buckets[-1]:
        raise ValueError(f"buckets={buckets}: the longest row has {longest} tokens; add a bucket.")
    if widest > rows:
        raise ValueError(f"rows={rows}: one problem alone has {widest} traces; raise it.")
    rng = np.random.default_rng(seed)
    waiting: dict[int, tuple[int, list[int]]] = {length: (0, []) for length in buckets}
    plan: list[tuple[int, list[int]]] = []
    while len(plan) < num_batches:
        for index in rng.permutation(len(examples)):
            example = examples[index]
            bucket = next(length for length in buckets if length >= example.longest)
            used, members = waiting[bucket]
            if used + len(example.traces) > rows:
                plan.append((bucket, members))
                if len(plan) == num_batches:
                    return plan
                used, members = 0, []
            waiting[bucket] = (used + len(example.traces), [*members, int(index)])
    return plan


def collate(
    examples: Sequence[Example], bucket: int, members: Sequence[int], rows: int, pad_id: int
) -> TraceBatch:
    """Pad the members' rows to `[rows, bucket]`; rows left over have length 0."""
    tokens = np.full((rows, bucket), pad_id, np.int32)
    batch = TraceBatch(
        tokens, *(np.zeros(rows, np.int32) for _ in range(4)), np.zeros(rows, np.uint32)
    )
    row = 0
    for problem, index in enumerate(members):
        example = examples[index]
        for slot, trace in enumerate(example.traces):
            ids = (*example.prompt, pad_id, *trace)
            tokens[row, : len(ids)] = ids
            batch.lengths[row] = len(ids)
            batch.fork[row] = len(example.prompt)
            batch.problem[row] = problem
            batch.slot[row] = slot
            batch.problem_seed[row] = index
            row += 1
    return batch


def trace_batches(
    examples: Sequence[Example],
    *,
    rows: int,
    buckets: Sequence[int],
    num_batches: int,
    pad_id: int,
    seed: int,
    first: int = 0,
    num_workers: int = 0,
    host: int = 0,
    num_hosts: int = 1,
) -> grain.DatasetIterator:
    """An iterator over `num_batches` batches, from the batch `first` on.

    Args:
      rows: N of the global batch; host `host` of `num_hosts` gets its equal share of them, cut
        without regard to problems: a share may hold only some of a problem's traces. `problem`
        numbers those of the global batch, which is what assignment must read.
      num_workers: processes that collate ahead; 0 collates in this process.

    Raises:
      ValueError: the rows cannot be shared equally, or `plan_batches` refuses.
    """
    if rows % num_hosts:
        raise ValueError(f"rows={rows}: must be a multiple of num_hosts={num_hosts}.")
    plan = plan_batches(examples, rows=rows, buckets=buckets, num_batches=num_batches, seed=seed)
    plan = plan[first:]
    share = slice(host * rows // num_hosts, (host + 1) * rows // num_hosts)

    def build(entry: tuple[int, list[int]]) -> TraceBatch:
        batch = collate(examples, *entry, rows, pad_id)
        return jax.tree.map(lambda array: array[share], batch)

    return feed(plan, build, num_workers)


def feed(
    plan: Sequence[Any], build: Callable[[Any], TraceBatch], num_workers: int = 0
) -> grain.DatasetIterator:
    """The batches of a plan's entries, some of them built ahead."""
    dataset = grain.MapDataset.source(plan).map(build).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    )
    if num_workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return iter(dataset)
