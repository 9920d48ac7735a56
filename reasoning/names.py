"""What a name in the configuration stands for: one of the library's own, or MODULE:ATTRIBUTE.

    find("task", "countdown", TASKS)        # TASKS["countdown"]
    find("task", "my_task:GCD", TASKS)      # GCD of my_task.py, which no part of the library names

A module is found as Python finds it: with `python -m`, first of all in the current directory.
"""

import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any


def is_own(name: str) -> bool:
    """Whether a name is MODULE:ATTRIBUTE, of the user's own code."""
    return ":" in name


def find(field: str, name: str, known: Mapping[str, Any]) -> Any:
    """What the name stands for; a module is imported when it is first needed, here alone.

    Args:
      field: of the configuration, as messages name it.
      known: the library's own, by name.

    Raises:
      ValueError: an unknown name, a module that cannot be found or imported, or one without the
        attribute, or an attribute that cannot be called; in one sentence.
    """
    if name in known:
        return known[name]
    if not is_own(name):
        own = "or MODULE:ATTRIBUTE of your own"
        raise ValueError(f"{field}={name!r}: must be one of {', '.join(known)}, {own}.")
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ValueError(
            f"{field}={name!r}: must be MODULE:ATTRIBUTE as Python imports them, such as "
            "my_ideas:mine of the file my_ideas.py."
        )
    found = vars(_import(field, name, module_name)).get(attribute)
    if found is None:
        raise ValueError(f"{field}={name!r}: module {module_name} has no {attribute}; define it.")
    if not callable(found):
        raise ValueError(
            f"{field}={name!r}: must be a class or a function, and is {type(found).__name__}."
        )
    return found


def parameters(
    field: str, name: str, function: Callable[..., Any]
) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters that a function or class names, and whether it takes any other by keyword.

    Args:
      field, name: of the configuration, as messages name them.

    Raises:
      ValueError: Python cannot tell, as of `max`; in one sentence.
    """
    try:
        found = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{field}={name!r}: Python cannot tell what it takes; name a function or class that "
            "is written in Python."
        ) from error
    rest = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    named = {key: parameter for key, parameter in found.items() if parameter.kind not in rest}
    return named, any(parameter.kind is rest[1] for parameter in found.values())


def _import(field: str, name: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and _within(error.name, module_name):
            raise ValueError(
                f"{field}={name!r}: there is no module {error.name}; run the program from the "
                "directory that holds it, or install it."
            ) from error
        told = str(getattr(error, "msg", error)).partition("\n")[0]
        raise ValueError(
            f"{field}={name!r}: {module_name} cannot be imported, {type(error).__name__} in "
            f"{_place(error)}: {told}."
        ) from error


def _within(missing: str | None, module_name: str) -> bool:
    """Whether it is the module itself that is missing, or a package that holds it."""
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")


def _place(error: Exception) -> str:
    """File and line at which the import failed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}"
