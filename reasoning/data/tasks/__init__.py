"""The tasks by name: `make_task("countdown4")` builds a preset, keyword arguments change it."""

import inspect
from collections.abc import Callable
from typing import Any

from reasoning.data.tasks.base import Task
from reasoning.data.tasks.countdown import Countdown
from reasoning.data.tasks.group_words import GroupWords

# name -> (class, arguments)
TASKS: dict[str, tuple[Callable[..., Task], dict[str, Any]]] = {
    "countdown": (Countdown, {}),
    "countdown4": (Countdown, {"size": 4, "tries": 8}),
    "group_words": (GroupWords, {}),
    "group_words_s4": (GroupWords, {"group": "S4"}),
    "group_words_s5": (GroupWords, {"group": "S5"}),
    "group_words_a5": (GroupWords, {"group": "A5"}),
}


def make_task(name: str, **arguments: Any) -> Task:
    """The task of a preset, with some of its arguments replaced; None keeps the preset's own.

    Raises:
      ValueError: unknown name, unknown argument, or a value that the task refuses.
    """
    if name not in TASKS:
        raise ValueError(f"task={name!r}: must be one of {', '.join(TASKS)}.")
    build, preset = TASKS[name]
    parameters = inspect.signature(build).parameters
    arguments = {key: value for key, value in arguments.items() if value is not None}
    for key, value in arguments.items():
        if key not in parameters:
            raise ValueError(f"{key}={value!r}: task {name!r} takes {', '.join(parameters)}.")
        kind = type(parameters[key].default)  # every argument of a task has a default
        if type(value) is not kind:
            raise ValueError(f"{key}={value!r}: task {name!r} takes {kind.__name__} here.")
    return build(**{**preset, **arguments})
