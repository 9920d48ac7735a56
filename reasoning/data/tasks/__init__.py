"""The tasks by name: `make_task("countdown4")` builds a preset, keyword arguments change it.

`make_task("my_task:GCD")` builds a task of your own, and looks at it first (`checks`).
"""

from collections.abc import Callable, Sequence
from typing import Any

from reasoning.data.tasks.base import Task
from reasoning.data.tasks.checks import check_task
from reasoning.data.tasks.circuits import Circuits
from reasoning.data.tasks.countdown import Countdown
from reasoning.data.tasks.expressions import Expressions
from reasoning.data.tasks.group_words import GroupWords
from reasoning.data.tasks.knights import Knights
from reasoning.data.tasks.multiplication import Multiplication
from reasoning.data.tasks.paths import Paths
from reasoning.data.tasks.squaring import Squaring
from reasoning.names import find, is_own, parameters

# name -> (class, arguments)
TASKS: dict[str, tuple[Callable[..., Task], dict[str, Any]]] = {
    "countdown": (Countdown, {}),
    "countdown4": (Countdown, {"size": 4, "largest": 12, "tries": 8}),
    "group_words": (GroupWords, {}),
    "group_words_s4": (GroupWords, {"group": "S4"}),
    "group_words_s5": (GroupWords, {"group": "S5"}),
    "group_words_a5": (GroupWords, {"group": "A5"}),
    "group_words_c6": (GroupWords, {"group": "C6"}),
    "expressions": (Expressions, {}),
    "expressions6": (Expressions, {"modulus": 11, "operations": 6}),
    "circuits": (Circuits, {}),
    "circuits10": (Circuits, {"inputs": 4, "gates": 10}),
    "squaring": (Squaring, {}),
    "squaring_127": (Squaring, {"smallest": 127, "largest": 127}),
    "multiplication": (Multiplication, {}),
    "multiplication3": (Multiplication, {"digits": 3}),
    "paths": (Paths, {}),
    "paths10": (Paths, {"nodes": 10, "edges": 12}),
    "knights": (Knights, {}),
    "knights4": (Knights, {"people": 4}),
}


def make_task(name: str, strategies: Sequence[str] = (), **arguments: Any) -> Task:
    """The task of a preset, with some of its arguments replaced.

    Args:
      name: a key of `TASKS`, or MODULE:ATTRIBUTE: a class of your own, or a function that returns
        its object.
      strategies: those of the task's strategies that write traces, in this order; () for all.

    An argument of None is dropped, whether the task takes it or not: the preset's own value holds.
    So one configuration can declare an argument for every task and set none.

    Raises:
      ValueError: unknown name; a strategy that the task does not have; an argument other than None
        that the task does not take, or of another type than its default (a bool is no int); a
        value that the task refuses; or a task of your own that is none (`check_task`).
    """
    found = find("task", name, TASKS)
    build, preset = (found, {}) if is_own(name) else found
    taken, takes_any = parameters("task", name, build)
    arguments = {key: value for key, value in arguments.items() if value is not None}
    for key, value in arguments.items():
        if key not in taken and takes_any:
            continue
        if key not in taken:
            takes = ", ".join(taken) or "nothing"
            raise ValueError(f"{key}={value!r}: task {name!r} takes {takes}.")
        kind = type(taken[key].default)  # every argument of a task has a default
        if type(value) is not kind:
            raise ValueError(f"{key}={value!r}: task {name!r} takes {kind.__name__} here.")
    for key, parameter in taken.items():
        if parameter.default is parameter.empty:
            raise ValueError(f"task={name!r}: its argument {key} has no default; give it one.")
    try:
        task = build(**{**preset, **arguments})
    except TypeError as error:
        unnamed = [key for key in arguments if key not in taken]
        if not unnamed:
            raise
        # Its **keywords go on to another that does not take them; so do a Task's without __init__.
        raise ValueError(
            f"{unnamed[0]}={arguments[unnamed[0]]!r}: task {name!r} does not take it ({error}); "
            "leave it out, or name it in the class's __init__."
        ) from error
    if is_own(name):
        check_task(name, task)
    for strategy in strategies:
        if strategy not in task.strategies:
            raise ValueError(
                f"strategy={strategy!r}: task {name!r} has {', '.join(task.strategies)}."
            )
    if strategies:
        task.strategies, task.num_traces = tuple(strategies), len(strategies)
    return task
