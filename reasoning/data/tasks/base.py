"""What a procedural task is: problems, one trace per named strategy, and an exact verifier.

`Problems` is the part that the pipelines read; a corpus (`reasoning.data.corpora`) has it as well.

A task's text is made of words joined by single spaces, so that the word-level tokenizer
(`reasoning.data.tokenizers`) reads one id per word:

    prompt      "3 5 7 make 36 :"
    completion  "7 * 5 = 35 , 35 + 3 = 38 high , ... answer 7 * 5 = 35 , ..."

A `Trace` is what one strategy writes; `completion` joins its steps and its answer, and
`parse_completion` takes a sampled text apart again.
"""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Iterator
from typing import Any, Literal, Protocol, runtime_checkable

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ANSWER = "answer"  # the word that ends the trace and opens the final answer


@dataclasses.dataclass(frozen=True)
class Trace:
    """One strategy's way to a correct answer: the steps written, and the final answer."""

    steps: str
    answer: str

    @property
    def completion(self) -> str:
        """The text the policy is trained to write after the strategy tag."""
        return " ".join(part for part in (self.steps, ANSWER, self.answer) if part)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and why not.

    Attributes:
      correct: whether it is.
      reason: `correct`, `no_answer`, `malformed`, ...: one of `reasoning.rewards.verdicts.REASONS`.
      answer: what was taken out of the completion and judged; None if nothing was, or if the
        verifier does not tell.
      method: what decided: "exact" comparison or "symbolic" algebra.
      milliseconds: that the judging took; 0 where it was not measured.
      key: what the answer counts as in a vote, one for all its spellings; None: the answer itself.
    """

    correct: bool
    reason: str
    answer: str | None = None
    method: Literal["exact", "symbolic"] = "exact"
    milliseconds: float = 0.0
    key: str | None = None


class Problems(Protocol):
    """What training reads of a task or a corpus; a problem is any hashable value it understands."""

    name: str
    strategies: tuple[str, ...]  # () where none is named, as in a corpus
    num_traces: int  # the most completions that a problem may have

    def stream(self, split: Split, seed: int) -> Iterator[Any]:
        """The endless stream of a split's problems, a pure function of its arguments.

        Raises:
          ValueError: the split is empty.
        """
        ...

    def key(self, problem: Any) -> str:
        """One string per instance: equal for problems that differ only in presentation."""
        ...

    def prompt(self, problem: Any) -> str:
        """The text that the policy reads."""
        ...

    def completions(self, problem: Any) -> list[str]:
        """The different texts that the policy may learn to write; [] if there is none."""
        ...

    def practice(self, problem: Any, rng: random.Random) -> str | None:
        """One completion for pre-training, None if there is none; a task's follows no strategy."""
        ...


class Task(Problems, Protocol):
    """The interface of every procedural task."""

    words: tuple[str, ...]  # every word of its texts that is not a number
    max_number: int  # the largest number that its texts contain

    def sample(self, seed: int, index: int) -> Any:
        """The problem at a position of the endless stream of `seed`, of any split."""
        ...

    def trace(self, problem: Any, strategy: str) -> Trace | None:
        """What `strategy` writes, or None if it finds no answer within its budget."""
        ...

    def verify(self, problem: Any, answer: str | None) -> Verdict:
        """Exact judgement of a final answer (None: the completion gave none)."""
        ...

    def check_trace(self, problem: Any, strategy: str | None, steps: str) -> float:
        """Share of valid steps in [0, 1]; with a strategy, a step must also be its step."""
        ...

    def recognise(self, problem: Any, steps: str) -> str | None:
        """The strategy that the steps follow, or None where no single one explains them."""
        ...


@runtime_checkable
class StepJudge(Protocol):
    """A task that also tells which steps are valid; a run's report colours them by it."""

    def judge_steps(self, problem: Any, steps: str) -> list[tuple[str, bool]]:
        """Each step as it is written, in order, and whether it is valid.

        The share of valid ones is `Task.check_trace` without a strategy.
        """
        ...


def parse_completion(text: str) -> tuple[str, str | None]:
    """Split a completion into (steps, answer) at its last ANSWER word; no such word: None."""
    words = text.split()
    if ANSWER not in words:
        return " ".join(words), None
    cut = len(words) - 1 - words[::-1].index(ANSWER)
    return " ".join(words[:cut]), " ".join(words[cut + 1 :])


def split_of(key: str) -> Split:
    """The split an instance belongs to, by hash: 70% train, 10% validation, 20% test."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return "test" if bucket < 2 else "validation" if bucket == 2 else "train"


def hashed_stream(task: Task, split: Split, seed: int) -> Iterator[Any]:
    """`Task.stream`: the samples that `split_of` their key puts into the split, in their order.

    Raises:
      ValueError: the split seems to be empty, as it may be for a very small task.
    """
    skipped = 0
    for index in itertools.count():
        problem = task.sample(seed, index)
        if split_of(task.key(problem)) == split:
            skipped = 0
            yield problem
        elif (skipped := skipped + 1) == 10_000:
            raise ValueError(
                f"split={split!r}: none of {skipped} problems of {task.name} falls into it; "
                "make the task larger."
            )


def strategy_completions(task: Task, problem: Any) -> list[str]:
    """`Task.completions`: the distinct traces of the strategies that solve the problem, sorted."""
    traces = (task.trace(problem, strategy) for strategy in task.strategies)
    return sorted({trace.completion for trace in traces if trace is not None})


def distinct_problems(task: Problems, split: Split, seed: int, count: int) -> list[Any]:
    """The first `count` problems of a split with all keys different.

    Raises:
      ValueError: the split holds, or seems to hold, fewer than `count` different instances.
    """
    if count < 1:
        raise ValueError(f"count={count}: ask for at least one problem.")
    found: dict[str, Any] = {}
    misses = 0
    for problem in task.stream(split, seed):
        misses = misses + 1 if task.key(problem) in found else 0
        found.setdefault(task.key(problem), problem)
        if len(found) == count:
            return list(found.values())
        if misses > 1000 + 5 * len(found):
            raise ValueError(
                f"count={count}: only {len(found)} different problems were found in the {split} "
                f"split of {task.name}; ask for fewer, or take a larger task or corpus."
            )
    raise AssertionError("the stream of problems is endless")
