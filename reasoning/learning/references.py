"""Reference policies: frozen, moving (EMA), or reset to the policy now and then."""

from typing import Any

import jax
import jax.numpy as jnp

from reasoning.learning.algorithms import Algorithm


def update_reference(algorithm: Algorithm, reference: Any, params: Any, step: jax.Array) -> Any:
    """The reference after an update of the policy.

    ema_decay b (T1, 2501.11651): b * reference + (1 - b) * params, in float32: in bfloat16 the
    small increments of a slow reference vanish. reset_every n (ProRL, 2505.24864): the policy
    itself after every n-th update. Neither: unchanged.

    Args:
      step: int32 `[]`, updates made so far, this one included.
    """
    if algorithm.ema_decay is not None:
        decay = algorithm.ema_decay
        return jax.tree.map(
            lambda old, new: decay * old + (1.0 - decay) * new.astype(jnp.float32),
            reference, params,
        )
    if algorithm.reset_every is not None:
        due = step % algorithm.reset_every == 0
        return jax.tree.map(lambda old, new: jnp.where(due, new, old), reference, params)
    return reference
