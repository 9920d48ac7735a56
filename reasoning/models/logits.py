"""From hidden states to logits, and to what is read from them by chunks of tokens.

    hidden, _ = Transformer(config).apply(params, tokens, head=False)                [B, T, D]
    nll = map_logits(token_nll, config, params, hidden[:, :-1], tokens[:, 1:])        [B, T - 1]

The logits of a batch, `[tokens, vocabulary]` in float32, are its largest array by far where the
vocabulary is large, and their gradient is as large again. What is read from them is a few numbers a
token: `map_logits` makes them for a chunk of tokens, reads, and makes them anew in the backward
pass.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reasoning.models import strategies
from reasoning.models.attention import soft_cap
from reasoning.models.axes import in_force
from reasoning.models.config import ModelConfig

LARGEST = 2**26  # logits that are made at once: 256 MiB


def logits_of(config: ModelConfig, params: Any, hidden: jax.Array) -> jax.Array:
    """Logits `[..., V+S]` float32 of normed hidden states `[..., D]`, as `Transformer` has them."""
    weights = params["params"]
    if config.tied_head:
        heads = weights["token_embedding"], weights.get(strategies.TABLE)
    else:
        heads = weights["token_head"], weights.get(strategies.HEAD)
    return soft_cap(strategies.score(*heads, hidden), config.final_softcap)


def map_logits(
    read: Callable[..., Any],
    config: ModelConfig,
    params: Any,
    hidden: jax.Array,
    *along: jax.Array,
    largest: int = LARGEST,
) -> Any:
    """`read(logits, *along)` of every token, by chunks of at most `largest` logits.

    One token of every row is the least. Where a mesh cuts them all are made at once.

    Args:
      read: maps logits `[B, t, V+S]` and the parts `[B, t, ...]` of the other arrays to a tree of
        arrays `[B, t, ...]`, each token for itself.
      hidden: `[B, T, D]`, normed.
      along: arrays `[B, T, ...]`.

    Returns:
      what `read` makes of all T tokens.
    """
    batch, length, _ = hidden.shape
    chunk = max(largest // (batch * config.output_size), 1)

    def one(part: tuple[jax.Array, ...]) -> Any:
        return read(logits_of(config, params, part[0]), *part[1:])

    if in_force() or chunk >= length:
        return one((hidden, *along))
    count = math.ceil(length / chunk)
    missing = count * chunk - length

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(batch, count * chunk, *x.shape[3:])[:, :length]

    parts = jax.tree.map(cut, (hidden, *along))
    # Within a loop nothing can undo the recomputation: no barriers are needed against it.
    return jax.tree.map(join, jax.lax.map(jax.checkpoint(one, prevent_cse=False), parts))
