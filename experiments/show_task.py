"""Print problems of a task, with what every strategy writes and the verdict on its answer.

    python -m experiments.show_task --task=countdown --count=3 --seed=0
    python -m experiments.show_task --task=countdown4 --set largest=12 --set tries=20
    python -m experiments.show_task --task=group_words --split=test --set group=A5 --set length=4
    python -m experiments.show_task --task=my_task:GCD    # a class of your own, in my_task.py

An argument that a task does not take is refused with those that it takes.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from experiments import usage
from reasoning.data.tasks import TASKS, make_task
from reasoning.data.tasks.base import SPLITS, Task, distinct_problems

_TASK = flags.DEFINE_string("task", "countdown", f"One of {', '.join(TASKS)}, or MODULE:ATTRIBUTE.")
_COUNT = flags.DEFINE_integer("count", 3, "How many different problems to print.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the stream of problems.")
_SPLIT = flags.DEFINE_enum("split", "train", SPLITS, "The split that the problems belong to.")
_SET = flags.DEFINE_multi_string("set", [], "An argument of the task as key=value; repeatable.")


def parse_arguments(settings: Sequence[str]) -> dict[str, Any]:
    """`["group=S4", "length=6"]` as keyword arguments; digits become an integer.

    Raises:
      ValueError: a setting has no key or no "=".
    """
    arguments: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise ValueError(f"set={setting!r}: write key=value, such as length=6.")
        arguments[key] = int(value) if value.removeprefix("-").isdecimal() else value
    return arguments


def describe(task: Task, problem: Any) -> str:
    """The prompt, then a paragraph for every strategy."""
    lines = [f"Prompt: {task.prompt(problem)}"]
    for strategy in task.strategies:
        trace = task.trace(problem, strategy)
        if trace is None:
            lines += ["", f"  {strategy}: no answer within its budget"]
            continue
        verdict = task.verify(problem, trace.answer)
        lines += ["", f"  {strategy}: {trace.steps or '(no steps)'}"]
        lines += [f"    answer: {trace.answer} ({verdict.reason})"]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Print the problems; a ValueError on the way is status 2 and one sentence on stderr."""
    try:
        if argv[1:]:
            raise ValueError(f"{argv[1]!r} is no flag: write --set key=value for each argument.")
        task = make_task(_TASK.value, **parse_arguments(_SET.value))
        problems = distinct_problems(task, _SPLIT.value, _SEED.value, _COUNT.value)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        print("\n\n".join(describe(task, problem) for problem in problems), flush=True)
    except BrokenPipeError:  # who reads has read enough; nothing is left to say at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=usage.parse)
