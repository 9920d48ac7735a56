"""Whether an object is a task: what is looked at before anything is trained on one of your own.

    check_task("my_task:GCD", GCD())    # ValueError: the first thing that is wrong, in one sentence
"""

import random
from collections.abc import Iterator
from typing import Any

from reasoning.data.tasks.base import (
    Problems,
    StepJudge,
    Task,
    Trace,
    Verdict,
    parse_completion,
)

# Every attribute and method that the two protocols name.
MEMBERS = tuple(
    name
    for protocol in (Problems, Task)
    for name in (*protocol.__annotations__, *vars(protocol))
    if not name.startswith("_")
)
COUNT = 50  # problems that are looked at


def check_task(name: str, task: Any) -> None:
    """Refuse what is no `Task`, or one whose first problems break its promises.

    Of 50 problems: every trace verifies, is valid in all its steps and is found again by
    `parse_completion`; texts are `words`, and numbers up to `max_number`, joined by single spaces;
    a problem can be hashed, and is a function of seed and index; each strategy solves some problem.
    Where it has `judge_steps`, the mean of its verdicts is `check_trace`, also of half a trace.

    Raises:
      ValueError: the first of these that does not hold, in one sentence.
    """
    for member in MEMBERS:
        if not hasattr(task, member):
            raise ValueError(
                f"task={name!r}: {type(task).__name__} has no {member}; see Task in "
                "reasoning/data/tasks/base.py."
            )
    if task.num_traces < len(task.strategies):
        raise ValueError(
            f"task={name!r}: num_traces={task.num_traces}, and it has {len(task.strategies)} "
            "strategies; a problem may have a trace of each."
        )
    for what, value in (("the task", task), ("its problem", task.sample(0, 0))):
        if type(value).__hash__ is None:
            raise ValueError(
                f"task={name!r}: {what} cannot be hashed, a {type(value).__name__}; make it a "
                "tuple, a frozen dataclass or a class without __eq__."
            )
    solved = set()
    for index in range(COUNT):
        problem = task.sample(0, index)
        if task.key(problem) != task.key(task.sample(0, index)):
            raise ValueError(
                f"task={name!r}: sample(0, {index}) gives another problem each time; draw from "
                "random.Random of seed and index."
            )
        _check_words(name, task, task.prompt(problem))
        for strategy, trace in _traces(task, problem, index):
            _check_trace(name, task, problem, strategy, trace)
            solved.add(strategy)
    for strategy in task.strategies:
        if strategy not in solved:
            raise ValueError(
                f"task={name!r}: strategy {strategy!r} solves none of {COUNT} problems; make them "
                "easier for it."
            )


def _traces(task: Task, problem: Any, index: int) -> Iterator[tuple[str, Trace]]:
    """What each strategy writes, and `practice` under that name."""
    for strategy in task.strategies:
        trace = task.trace(problem, strategy)
        if trace is not None:
            yield strategy, trace
    text = task.practice(problem, random.Random(index))
    if text is not None:
        steps, answer = parse_completion(text)
        yield "practice", Trace(steps, "" if answer is None else answer)


def _check_trace(name: str, task: Task, problem: Any, strategy: str, trace: Trace) -> None:
    of = f"task={name!r}: of {task.prompt(problem)!r}, {strategy} writes"
    _check_words(name, task, trace.completion)
    if parse_completion(trace.completion) != (trace.steps, trace.answer):
        raise ValueError(f"{of} {trace.completion!r}, whose answer is not what follows `answer`.")
    verdict = task.verify(problem, trace.answer)
    if not isinstance(verdict, Verdict):
        raise ValueError(f"task={name!r}: verify returns {verdict!r}; return a Verdict.")
    if not verdict.correct:
        raise ValueError(f"{of} the answer {trace.answer!r}, which verify calls {verdict.reason}.")
    own = None if strategy == "practice" else strategy
    if task.check_trace(problem, own, trace.steps) != 1:
        raise ValueError(f"{of} {trace.steps!r}, whose steps check_trace does not all find valid.")
    if isinstance(task, StepJudge):
        words = trace.steps.split()
        for steps in (trace.steps, " ".join(words[: len(words) // 2])):
            _check_steps(name, task, problem, steps)


def _check_steps(name: str, task: Any, problem: Any, steps: str) -> None:
    """Refuse a `judge_steps` that is no list of steps with their verdicts, or not `check_trace`."""
    judged = task.judge_steps(problem, steps)
    pairs = isinstance(judged, list) and all(
        isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], str) for each in judged
    )
    if not pairs:
        raise ValueError(
            f"task={name!r}: judge_steps returns {judged!r}; return a list of (step, whether it is "
            "valid)."
        )
    mean = sum(bool(valid) for _, valid in judged) / max(len(judged), 1)
    share = task.check_trace(problem, None, steps)
    if steps and abs(mean - share) > 1e-6:
        raise ValueError(
            f"task={name!r}: of {steps!r}, judge_steps finds a share of {mean:.3f} valid, and "
            f"check_trace {share:.3f}; they must be equal."
        )


def _check_words(name: str, task: Task, text: str) -> None:
    """Refuse a text that the tokenizer of `words` and numbers would not read."""
    for word in text.split(" "):
        number = word.isdecimal() and str(int(word)) == word and int(word) <= task.max_number
        if word not in task.words and not number:
            raise ValueError(
                f"task={name!r}: {word!r} in {text!r} is none of its words, nor a number up to "
                f"max_number={task.max_number}; texts are words joined by single spaces."
            )
