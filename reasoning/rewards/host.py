"""Rewards that run on the host: any Python function of texts, in worker processes if wanted.

    def function(prompts: list[str], completions: list[str], metadata: list) -> list: ...

    with HostReward(function, text_format, num_workers=8) as reward:
        verdicts = reward(prompts, completions, problems)  # numpy arrays

It returns one item per completion: a float, a `Verdict` of a task, or None where it has nothing to
say. Batches are cut in parts, so it must judge each completion by itself.
"""

import dataclasses
import functools
import math
import multiprocessing
import numbers
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self

import jax
import numpy as np

from reasoning.data.formats import TextFormat
from reasoning.data.tasks.base import Task, Verdict, parse_completion
from reasoning.rewards.verdicts import (
    Completions,
    TooManyFailures,
    Verdicts,
    check_verdicts,
    ended,
    reason_id,
    reward_name,
    shortened,
)

HostFunction = Callable[[list[str], list[str], list[Any]], Sequence[float | Verdict | None]]
Part = tuple[list[str], list[str], list[Any]]  # what a HostFunction takes
LARGEST = float(np.finfo(np.float32).max)
PARTS_PER_WORKER = 4  # a worker that is done early takes another part


def task_reward(task: Task) -> HostFunction:
    """The task's own verifier as a function of texts; the metadata are the problems."""
    return functools.partial(verify_answers, task)


def verify_answers(
    task: Task, prompts: list[str], completions: list[str], metadata: list[Any]
) -> list[Verdict]:
    """The task's verdicts on the completions' final answers."""
    answers = [parse_completion(text)[1] for text in completions]
    return [
        dataclasses.replace(task.verify(problem, answer), answer=answer)
        for problem, answer in zip(metadata, answers, strict=True)
    ]


def _end_with_parent() -> None:
    """End this worker when the program that started it does, also if that was killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class HostReward:
    """A function of texts as a reward: `(prompts, completions, metadata) -> Verdicts`.

    Ids are decoded, without the strategy tag. The reward of a `Verdict` is 1 if it is correct, else
    0; a completion without <eos> is never correct, but `over_long`. A float is the reward as it
    stands, with the reason `scored`; None has the reason `skipped`: it trains nothing.

    Args:
      function: judges a list of completions (see the module's docstring).
      text_format: of the policy.
      num_workers: processes to judge in, started when first needed; 0 for this process. They
        import the function's module anew, so a program must guard its main part with
        `if __name__ == "__main__":`.
      name: of the function in error messages.

    Raises:
      ValueError: `num_workers` is negative, or the function cannot be sent to other processes.
    """

    def __init__(
        self,
        function: HostFunction,
        text_format: TextFormat,
        num_workers: int = 0,
        name: str | None = None,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers}: must be 0 (this process) or more.")
        self.name = name or reward_name(function)
        self._function, self._format, self._num_workers = function, text_format, num_workers
        self._closed = False
        self._pool: ProcessPoolExecutor | None = None
        if num_workers:
            self._check_picklable()
            context = multiprocessing.get_context("spawn")  # a fork of a program with JAX may hang
            self._pool = ProcessPoolExecutor(
                num_workers, mp_context=context, initializer=_end_with_parent
            )

    def __call__(
        self, prompts: jax.Array, completions: Completions, metadata: Sequence[Any]
    ) -> Verdicts:
        """Judge B completions.

        Args:
          prompts: `[B, T]` int32, padded on the left.
          completions: of B rows.
          metadata: B objects, such as the problems of a task.

        Returns:
          Verdicts of numpy arrays `[B]`.

        Raises:
          ValueError: the reward is closed, arguments of different lengths, a completion without any
            token, or a function that returns a wrong number of items, a wrong kind of item, or NaN
            or infinity.
          RuntimeError: the function raised, or a worker process died.
        """
        if self._closed:
            raise ValueError(f"{self.name}: this reward is closed; make a new HostReward.")
        tokens, mask = np.asarray(completions.tokens), np.asarray(completions.mask)
        if not len(prompts) == len(tokens) == len(metadata):
            raise ValueError(
                f"metadata: {len(metadata)} entries for {len(prompts)} prompts and {len(tokens)} "
                "completions; give one per completion."
            )
        for i in np.flatnonzero(~mask.any(axis=1)):
            raise ValueError(f"mask: completion {i} has no token; give the sampler's.")
        decode = self._format.tokenizer.decode_any
        questions = [decode(row.tolist()) for row in np.asarray(prompts)]
        texts = [
            self._format.completion_text(ids[kept].tolist()) for ids, kept in zip(tokens, mask)
        ]
        scores, reasons = self._judge((questions, texts, list(metadata)))

        finished = np.asarray(ended(completions, self._format.stop_ids))
        is_verdict = ~np.isin(reasons, [reason_id("scored"), reason_id("skipped")])
        cut = is_verdict & ~finished
        verdicts = Verdicts(
            reward=np.where(cut, 0.0, scores).astype(np.float32),
            reason=np.where(cut, reason_id("over_long"), reasons).astype(np.int32),
        )
        check_verdicts(verdicts, texts, self.name)
        return verdicts

    def metrics(self) -> dict[str, float]:
        """What the function says of its work since the last call, where it says anything."""
        return self._function.metrics() if hasattr(self._function, "metrics") else {}

    def close(self) -> None:
        """Stop the worker processes; the reward cannot be used any more."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _judge(self, rows: Part) -> tuple[np.ndarray, np.ndarray]:
        """Scores `[B]` and reasons `[B]` of all rows, in parts if there are workers."""
        if self._pool is None:
            return _judge_part(self._function, self.name, rows)
        size = max(1, math.ceil(len(rows[0]) / (self._num_workers * PARTS_PER_WORKER)))
        parts = [
            tuple(column[start : start + size] for column in rows)
            for start in range(0, len(rows[0]), size)
        ]
        judge = functools.partial(_judge_part, self._function, self.name)
        try:
            results = list(self._pool.map(judge, parts))
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"{self.name}: a worker process died; it was killed (out of memory?), or it cannot "
                "import the function. Make a new HostReward, with num_workers=0 to see the cause."
            ) from error
        scores, reasons = zip(*results) if results else ([np.zeros(0)], [np.zeros(0, int)])
        return np.concatenate(scores), np.concatenate(reasons)

    def _check_picklable(self) -> None:
        try:
            pickle.dumps(self._function)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"function={self.name}: it cannot be sent to worker processes ({error}); define "
                "it at the top of a module, or use num_workers=0."
            ) from error


def _judge_part(function: HostFunction, name: str, rows: Part) -> tuple[np.ndarray, np.ndarray]:
    """Scores and reasons of some rows; runs in a worker, or in this process.

    What leaves it is plain: numbers, or an error made of text, which any process can unpickle.
    """
    try:
        items = list(function(*rows))
    except TooManyFailures:  # no completion of this batch is to blame
        raise
    except Exception as error:
        text = shortened(_offender(function, rows))
        raise RuntimeError(
            f"{name} raised {type(error).__name__}: {error}; on the completion {text}."
        ) from error
    if len(items) != len(rows[1]):
        text = shortened(_offender(function, rows))
        raise ValueError(
            f"{name} returned {len(items)} items for {len(rows[1])} completions, first wrong with "
            f"{text}; return one each, None to skip it."
        )
    judged = [_judged(name, item, text) for item, text in zip(items, rows[1])]
    return np.array([j[0] for j in judged]), np.array([j[1] for j in judged], int)


def _offender(function: HostFunction, rows: Part) -> str:
    """The first completion that the function cannot judge alone; else the first of all."""
    for row in zip(*rows):
        try:
            if len(list(function(*([column] for column in row)))) != 1:
                return row[1]
        except Exception:
            return row[1]
    return rows[1][0] if rows[1] else ""


def _judged(name: str, item: float | Verdict | None, text: str) -> tuple[float, int]:
    """Score and reason of one item."""
    if item is None:
        return 0.0, reason_id("skipped")
    if isinstance(item, Verdict):
        try:
            return float(item.correct), reason_id(item.reason)
        except ValueError as error:
            raise ValueError(f"{name} on the completion {shortened(text)}: {error}") from error
    if not isinstance(item, numbers.Real | np.bool_):
        raise ValueError(
            f"{name} returned {item!r} for the completion {shortened(text)}; return a number, a "
            "Verdict or None."
        )
    if not abs(item) <= LARGEST:  # false for NaN too
        raise ValueError(
            f"{name} returned {item} for the completion {shortened(text)}; return a finite "
            "number, or None to skip it."
        )
    return float(item), reason_id("scored")
