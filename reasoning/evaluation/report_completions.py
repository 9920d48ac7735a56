"""Completions as a report's page holds them: one block of data, by columns, compressed.

    block = completions_block(records, marks, scores, kept_lines(records, limit=60_000))
    block.text                                       # base64 of gzip of JSON: letters, digits, +/=

The text of a model is data there: no character of it stands in the page as it was written.
"""

import base64
import gzip
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from reasoning.data.tasks.base import Problems, StepJudge, parse_completion
from reasoning.evaluation.records import Record
from reasoning.evaluation.token_scores import TokenScores

# What a verdict tells of every completion; whatever else a row has says whose completion it is.
VERDICT = (
    "prompt", "tag", "completion", "reward", "correct", "reason", "answer", "method",
    "milliseconds", "strategy", "validity",
)
LEFT_OUT = ("milliseconds",)
Marks = Callable[[str, str], list[int] | None]  # (prompt, completion) -> step_marks
Scores = Mapping[tuple[int, int], TokenScores]  # (run, line of completions.jsonl) -> scores


class Block(NamedTuple):
    """The page's data: the text of the block, and how many completions it holds of how many."""

    text: str
    shown: int
    total: int


def completions_block(
    records: Sequence[Record], marks: Sequence[Marks], scores: Scores,
    lines: Sequence[Sequence[int]],
) -> Block:
    """Put the completions of several runs into one block.

    Args:
      marks: of each run.
      lines: of each run's completions.jsonl that are put in, as `kept_lines` chooses them.
    """
    total = sum(len(record.completions) for record in records)
    rows, numbers = [], []
    for run, kept in enumerate(lines):
        record = records[run]
        for line in kept:
            row = record.completions[line]
            steps = marks[run](str(row.get("prompt")), str(row.get("completion")))
            rows.append({"run": record.name, **row, "steps": steps})
            numbers.append((run, line))
    scored = {
        i: [found.ends, _rounded(found.log_probs), _rounded(found.entropies)]
        for i, place in enumerate(numbers)
        if (found := scores.get(place)) is not None
    }
    names = dict.fromkeys(name for row in rows for name in row if name not in LEFT_OUT)
    data = {
        "rows": len(rows),
        "columns": {name: _column([row.get(name) for row in rows]) for name in names},
        "choosers": [name for name in names if name not in (*VERDICT, "steps")],
        "scores": scored,
    }
    content = json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
    text = base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()
    return Block(text, len(rows), total)


def kept_lines(records: Sequence[Record], limit: int) -> list[list[int]]:
    """Which lines of each run's completions.jsonl a page holds.

    Args:
      limit: about the most completions; of more, all those of problems spread evenly over each run
        are kept, the first problem among them.
    """
    total = sum(len(record.completions) for record in records)
    return [_kept(record.completions, min(1.0, limit / max(total, 1))) for record in records]


def _kept(rows: Sequence[Mapping[str, Any]], share: float) -> list[int]:
    """The lines that are kept: those of so large a share of the problems, spread evenly."""
    places: dict[Any, int] = {}
    for row in rows:
        places.setdefault(str(row.get("prompt")), len(places))
    kept = [math.floor(place * share) > math.floor((place - 1) * share)
            for place in range(len(places))]
    return [i for i, row in enumerate(rows) if kept[places[str(row.get("prompt"))]]]


def _column(values: Iterable[Any]) -> dict[str, list[Any]]:
    """A column as its different values and, for each row, which it is."""
    places: dict[str, int] = {}
    distinct: list[Any] = []
    at = []
    for value in values:
        value = _plain(value)
        key = json.dumps(value)  # 1, 1.0 and true are different values
        if key not in places:
            places[key] = len(distinct)
            distinct.append(value)
        at.append(places[key])
    return {"values": distinct, "at": at}


def _plain(value: Any) -> Any:
    """A value that any reader of JSON takes: a text, a finite number, a list of whole ones."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list) and all(isinstance(x, int) for x in value):
        return value
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value)


def _rounded(values: Iterable[float]) -> list[float]:
    """Three digits; what is no number stands as far below as can be told."""
    return [round(x, 3) if math.isfinite(x) else -999.0 for x in values]


def no_marks(prompt: str, completion: str) -> None:
    """The marks of completions whose steps nothing judges."""


def step_marks(task: Problems, problems: Mapping[str, Any]) -> Marks:
    """How a task judges the steps of a completion: a function of prompt and completion.

    It returns two numbers a step: how many characters lie between it and the step before, and how
    long it is, negative where it is not valid. It raises a ValueError that names the task where
    `judge_steps` fails. None where the task judges no steps, the problem is
    unknown, or a step does not stand in the text as it is told.

    Args:
      problems: prompt -> problem.
    """
    if not isinstance(task, StepJudge):
        return no_marks
    memory: dict[tuple[str, str], list[int] | None] = {}

    def marks(prompt: str, completion: str) -> list[int] | None:
        if prompt not in problems:
            return None
        if (prompt, completion) not in memory:
            try:
                judged = task.judge_steps(problems[prompt], parse_completion(completion)[0])
                memory[prompt, completion] = _places(judged, completion)
            except Exception as error:
                raise ValueError(
                    f"task={task.name!r}: judge_steps of {completion!r}: "
                    f"{type(error).__name__}: {error}."
                ) from error
        return memory[prompt, completion]

    return marks


def _places(judged: Sequence[tuple[str, bool]], completion: str) -> list[int] | None:
    """Where the steps stand in the completion: gap and signed length; None where one does not."""
    found, at = [], 0
    for step, valid in judged:
        if not step:
            continue
        start, end = _span(step, completion, at)
        if start < 0:
            return None
        found += [start - at, end - start if valid else start - end]
        at = end
    return found


def _span(step: str, completion: str, at: int) -> tuple[int, int]:
    """Where a step stands from `at` on, however its words are spaced; (-1, -1) if nowhere."""
    start = completion.find(step, at)
    if start >= 0:
        return start, start + len(step)
    spaced = re.search(r"\s+".join(map(re.escape, step.split())), completion[at:])
    return (at + spaced.start(), at + spaced.end()) if spaced else (-1, -1)
