"""Advantages and losses of your own: looked at before they are compiled into an update."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp

SHAPE = (2, 4)  # of the arrays that they are tried on; nothing is computed


def check_function(
    field: str,
    name: str,
    function: Callable[..., jax.Array],
    arguments: Mapping[str, str],
    keywords: Mapping[str, str | int] | None = None,
) -> None:
    """Refuse a function that does not make float32 of its arguments' shape.

    Args:
      field, name: of the configuration, as messages name them.
      arguments: what it is called with, by position: name -> dtype of an array.
      keywords: and by keyword: name -> dtype of an array, or a number.

    Raises:
      ValueError: it has other parameters, raises, or makes something else; in one sentence.
    """
    keywords = keywords or {}
    dtypes = {**arguments, **{key: kind for key, kind in keywords.items() if isinstance(kind, str)}}
    arrays = {key: jax.ShapeDtypeStruct(SHAPE, dtype) for key, dtype in dtypes.items()}
    numbers = {key: kind for key, kind in keywords.items() if key not in arrays}
    given = [arrays.pop(key) for key in arguments]
    try:
        inspect.signature(function).bind(*given, **keywords)
    except (TypeError, ValueError) as error:  # ValueError: no signature, as of `max`
        takes = ", ".join((*arguments, *keywords))
        raise ValueError(
            f"{field}={name!r}: must be a function of ({takes}), and {error}."
        ) from error
    try:
        made = jax.eval_shape(partial(function, **numbers), *given, **arrays)
    except Exception as error:
        raise ValueError(
            f"{field}={name!r}: raised {type(error).__name__} on arrays {list(SHAPE)}, "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    if not (isinstance(made, jax.ShapeDtypeStruct) and made.shape == SHAPE):
        raise ValueError(
            f"{field}={name!r}: must return one value for each of {list(SHAPE)}, and returned "
            f"{getattr(made, 'shape', made)}."
        )
    if made.dtype != jnp.float32:
        raise ValueError(f"{field}={name!r}: must return float32, and returned {made.dtype}.")
