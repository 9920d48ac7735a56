"""The cache of a policy's keys and values: empty, longer, or of other rows.

Shapes: L layers, B rows, K key/value heads, C slots, H head_dim.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from reasoning.models.config import ModelConfig


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens read so far; every row is at the same slot.

    Attributes:
      keys, values: one `[B, K, C, H]` per layer (`[L, B, K, C, H]` when layers are scanned);
        this order of axes spares a transposition of the whole cache at every decoding step.
      segment_ids: `[B, C]` int32, 0 where the slot is empty or holds padding.
      positions: `[B, C]` int32, of the token in the slot; it need not grow with the slots.
      length: scalar int32, the slot that the next token takes.
    """

    keys: Any
    values: Any
    segment_ids: jax.Array
    positions: jax.Array
    length: jax.Array


def init_cache(config: ModelConfig, batch_size: int, num_slots: int) -> KVCache:
    """An empty cache for `batch_size` rows of up to `num_slots` tokens.

    Raises:
      ValueError: num_slots is beyond the model's max_length.
    """
    if num_slots > config.max_length:
        raise ValueError(
            f"num_slots={num_slots}: longer than the model's max_length={config.max_length}; "
            "shorten the prompt or the completion, or raise max_length."
        )
    shape = (batch_size, config.num_kv_heads, num_slots, config.head_dim)
    dtype = jnp.dtype(config.dtype)

    def layers() -> Any:
        if config.scan_layers:
            return jnp.zeros((config.num_layers, *shape), dtype)
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))

    return KVCache(
        keys=layers(),
        values=layers(),
        segment_ids=jnp.zeros((batch_size, num_slots), jnp.int32),
        positions=jnp.zeros((batch_size, num_slots), jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )


def grow_cache(cache: KVCache, num_slots: int) -> KVCache:
    """The same cache with `num_slots` slots, those behind the present ones empty."""
    more = num_slots - cache.segment_ids.shape[1]

    def grow(part: jax.Array) -> jax.Array:
        return jnp.pad(part, [(0, 0)] * (part.ndim - 2) + [(0, more), (0, 0)])

    keys, values = jax.tree.map(grow, (cache.keys, cache.values))
    rows = (jnp.pad(x, ((0, 0), (0, more))) for x in (cache.segment_ids, cache.positions))
    return KVCache(keys, values, *rows, cache.length)


def take_rows(cache: KVCache, rows: jax.Array, config: ModelConfig) -> KVCache:
    """The cache whose row i is row `rows[i]` of this one."""
    return _of_rows(partial(jnp.take, indices=rows), cache, config)


def repeat_rows(cache: KVCache, count: int, config: ModelConfig) -> KVCache:
    """The cache with each row `count` times, one behind the other."""
    return _of_rows(partial(jnp.repeat, repeats=count), cache, config)


def _of_rows(choose: Callable[..., jax.Array], cache: KVCache, config: ModelConfig) -> KVCache:
    """The cache with `choose(array, axis=...)` of all its arrays along the axis of their rows."""
    layers = partial(choose, axis=1 if config.scan_layers else 0)
    keys, values = jax.tree.map(layers, (cache.keys, cache.values))
    rows = (choose(x, axis=0) for x in (cache.segment_ids, cache.positions))
    return KVCache(keys, values, *rows, cache.length)
