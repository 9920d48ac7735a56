"""What the processes of a job settle among each other; a single process settles it alone.

Every function here is called by all processes of the job, in the same order.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class RefusedElsewhere(ValueError):
    """The first process has refused; the message is its own."""


def any_process(said: bool) -> bool:
    """Whether any process says so."""
    if jax.process_count() == 1:
        return said
    return bool(multihost_utils.process_allgather(np.array(said)).any())


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns in the first process, a JSON object, in every process.

    Raises:
      ValueError, OSError, RuntimeError: what `make` raises, in the first process.
      RefusedElsewhere: the same, in the others.
    """
    if jax.process_count() == 1:
        return make()
    value, error = None, None
    if jax.process_index() == 0:
        try:
            value = make()
        except (ValueError, OSError, RuntimeError) as raised:
            error = raised
    value, refusal = _broadcast([value, error and str(error)])
    if error:
        raise error
    if refusal:
        raise RefusedElsewhere(refusal)
    return value


def _broadcast(told: Any) -> Any:
    """The first process's JSON object."""
    content = np.frombuffer(json.dumps(told).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
    if jax.process_index() != 0:
        content = np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())
