"""The tasks by name: `make_task("countdown4")` builds a preset, keyword arguments change it."""

from collections.abc import Callable
from typing import Any

from reasoning.data.tasks.base import Task
from reasoning.data.tasks.countdown import Countdown

# name -> (class, arguments)
TASKS: dict[str, tuple[Callable[..., Task], dict[str, Any]]] = {
    "countdown": (Countdown, {}),
    "countdown4": (Countdown, {"size": 4, "tries": 8}),
}


def make_task(name: str, **arguments: Any) -> Task:
    """The task of a preset, with some of its arguments replaced.

    Raises:
      ValueError: unknown name, unknown argument, or a value that the task refuses.
    """
    if name not in TASKS:
        raise ValueError(f"task={name!r}: must be one of {', '.join(TASKS)}.")
    build, preset = TASKS[name]
    try:
        return build(**{**preset, **arguments})
    except TypeError as error:
        raise ValueError(f"task={name!r}: {error}.") from error
