"""Judging steps: what the tasks share whose answer is a number and whose traces are lists of steps.

    written = ["3 1 = 5", "5 4 = 2"]                  # how a task cuts a trace is its own business
    share_as_expected(written, ["3 1 = 5", "5 2 = 0"])       # 0.5
    longest_opening({"left": 2, "right": 0, "tree": 1})      # "left"
"""

import itertools
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from reasoning.data.tasks.base import Task, Verdict

NUMBER = r"(?:0|[1-9][0-9]{0,2})"  # ASCII digits only, and few: the text may be anything
MAX_READINGS = 1000  # bounds the work of `valid_steps`

State = TypeVar("State", bound=Hashable)
Judged = tuple[str, bool]  # a step as it is written, and whether it is valid


def verify_number(answer: str | None, expected: int, largest: int) -> Verdict:
    """Whether the answer is the expected number, written as texts write one of 0..largest."""
    if not answer:
        return Verdict(False, "no_answer")
    if re.fullmatch(NUMBER, answer) is None or int(answer) > largest:
        return Verdict(False, "malformed")
    correct = int(answer) == expected
    return Verdict(correct, "correct" if correct else "wrong_value")


def check_strategy(task: Task, strategy: str) -> None:
    """Raise ValueError if the task has no such strategy."""
    if strategy not in task.strategies:
        raise ValueError(f"strategy={strategy!r}: {task.name} has {', '.join(task.strategies)}.")


def share_as_expected(written: Sequence[str], expected: Iterable[str]) -> float:
    """Share of the written steps that are the expected ones at their place; none of none is 1."""
    opening = list(itertools.islice(expected, max(len(written), 1)))
    if not written:
        return float(not opening)
    return sum(text == step for text, step in zip(written, opening)) / len(written)


def share_valid(judged: Sequence[Judged]) -> float:
    """Share of steps that are valid; of none, 0."""
    return sum(valid for _, valid in judged) / max(len(judged), 1)


def valid_steps(
    start: State, written: Sequence[str], after: Callable[[State, str], Iterable[State]]
) -> list[bool]:
    """For each step, whether it applies to the state left by the valid ones before it.

    Args:
      start: the state before any step.
      written: the steps.
      after: the states that a step may leave, () where it does not apply. A step may be meant in
        several places: every state that it may leave is followed, up to MAX_READINGS.
    """
    readings = [start]
    valid = []
    for text in written:
        # A dictionary keeps the order, which must not depend on the hashes of strings.
        reached = dict.fromkeys(state for before in readings for state in after(before, text))
        valid.append(bool(reached))
        readings = list(itertools.islice(reached, MAX_READINGS)) or readings
    return valid


def longest_opening(shared: Mapping[str, int]) -> str | None:
    """The one strategy that shares the most steps with a text, None if there is no single one."""
    best = max(shared.values())
    winners = [strategy for strategy, length in shared.items() if length == best]
    return winners[0] if best > 0 and len(winners) == 1 else None


def count_dots(written: Sequence[str]) -> int:
    """How many steps the text opens with that are dots, as `filler` writes them."""
    return sum(1 for _ in itertools.takewhile(lambda text: text == ".", written))
