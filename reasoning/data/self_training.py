"""Training data from a policy's own completions: what is kept of them, hints, and preference pairs.

    kept  = keep_right(completions, correct, cap=4, seed=0)         rejection sampling
    pairs = preference_pairs(completions, correct, limit=2, seed=0)

Two completions with the same sequence of equations are one (rejection-sampling fine-tuning, RFT,
2308.01825): the number of different ways to an answer is what makes such data good.
"""

import dataclasses
import random
import re
from collections.abc import Sequence
from typing import Any

from reasoning.data.pipelines import Example
from reasoning.data.tasks.base import ANSWER, Problems

_EQUATION = re.compile(r"[\d.]+(?:\s*[-+*/]\s*[\d.]+)+\s*=\s*-?\s*[\d.]*\d")


def equations(text: str) -> tuple[str, ...]:
    """The equations `a op b = c` of a text in their order, without blanks."""
    return tuple("".join(found.split()) for found in _EQUATION.findall(text))


def distinct(completions: Sequence[str]) -> list[str]:
    """The first completion of each sequence of equations; a text without any stands for itself."""
    found: dict[Any, str] = {}
    for text in completions:
        found.setdefault(equations(text) or text, text)
    return list(found.values())


def _chosen(texts: list[str], limit: int | None, rng: random.Random) -> list[str]:
    """At most `limit` of the texts, drawn at random without a change of their order."""
    if limit is None or len(texts) <= limit:
        return texts
    return [texts[i] for i in sorted(rng.sample(range(len(texts)), limit))]


def keep_right(
    completions: Sequence[Sequence[str]],
    correct: Sequence[Sequence[bool]],
    cap: int | None,
    seed: int,
) -> list[list[str]]:
    """Of each problem's completions those that are right and distinct, at most `cap` of them.

    The draw of a problem depends on the seed and its place alone.

    Args:
      completions, correct: R of each of P problems.
      cap: None keeps all.

    Returns:
      P lists; an empty one where no completion is right.

    Raises:
      ValueError: a cap below 1.
    """
    if cap is not None and cap < 1:
        raise ValueError(f"cap={cap}: must be at least 1, or None for all.")
    kept = []
    for index, (texts, verdicts) in enumerate(zip(completions, correct, strict=True)):
        right = [text for text, verdict in zip(texts, verdicts, strict=True) if verdict]
        kept.append(_chosen(distinct(right), cap, random.Random(f"keep/{seed}/{index}")))
    return kept


def preference_pairs(
    completions: Sequence[Sequence[str]],
    correct: Sequence[Sequence[bool]],
    limit: int,
    seed: int,
) -> list[list[tuple[str, str]]]:
    """Pairs (right, wrong) of each problem's distinct completions, at most `limit` of a problem.

    No completion is in two pairs of a problem.

    Raises:
      ValueError: a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"limit={limit}: must be at least 1.")
    pairs = []
    for index, (texts, verdicts) in enumerate(zip(completions, correct, strict=True)):
        rng = random.Random(f"pairs/{seed}/{index}")
        sides = [
            distinct([text for text, v in zip(texts, verdicts, strict=True) if bool(v) is side])
            for side in (True, False)
        ]
        for side in sides:
            rng.shuffle(side)
        pairs.append(list(zip(*sides))[:limit])
    return pairs


# Rationalisation (STaR, 2203.14465): where a policy fails, it is told the answer and asked for the
# way there; the hint is then dropped.


@dataclasses.dataclass(frozen=True)
class HintedPrompts:
    """The prompts of problems whose answer is told; a problem is a pair (problem, answer)."""

    problems: Problems

    def prompt(self, hinted: tuple[Any, str]) -> str:
        """`3 5 7 make 36 : answer 7 * 5 = 35 , ...`."""
        problem, answer = hinted
        return f"{self.problems.prompt(problem)} {ANSWER} {answer}"


def hinted_example(example: Example, answer_id: int) -> Example:
    """An example of one trace whose prompt tells the trace's own answer: `HintedPrompts` as ids.

    A policy must be trained on some such rows before hints mean anything to it.

    Args:
      answer_id: the id of the word that opens the answer.

    Raises:
      ValueError: more traces than one, or a trace without an answer.
    """
    if len(example.traces) != 1 or answer_id not in example.traces[0]:
        raise ValueError("example: a hint needs one trace, with an answer in it.")
    (trace,) = example.traces
    start = len(trace) - 1 - trace[::-1].index(answer_id)
    return Example((*example.prompt, *trace[start:-1]), example.traces)
