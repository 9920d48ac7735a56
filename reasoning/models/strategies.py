"""Strategy tags: the embedding table `[S, d_model]`, and the ids V..V+S-1 that look it up.

Or, where `config.strategy_ids` names them, ids of the vocabulary like any others, without a table.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reasoning.models.config import ModelConfig

# The names of the strategies' parameters: their embeddings, and their head where it is not tied.
TABLE, HEAD = "strategy_embedding", "strategy_head"


def tag_to_id(config: ModelConfig, tags: jax.Array) -> jax.Array:
    """Token ids of strategy tags 0..S-1, any shape."""
    if config.strategy_ids:
        return jnp.asarray(config.strategy_ids, jnp.int32)[tags]
    return tags + config.vocab_size


def id_to_tag(config: ModelConfig, ids: jax.Array) -> jax.Array:
    """Tags of token ids, any shape; -1 where the id is no strategy's."""
    if config.strategy_ids:
        same = jnp.stack([ids == tag_id for tag_id in config.strategy_ids])
        return jnp.where(same.any(axis=0), jnp.argmax(same, axis=0), -1)
    return jnp.where(ids >= config.vocab_size, ids - config.vocab_size, -1)


def embed(token_table: jax.Array, strategy_table: jax.Array | None, ids: jax.Array) -> jax.Array:
    """Look up ids `[B, T]` in the tables `[V, D]` and `[S, D]` as if they were one: `[B, T, D]`."""
    if strategy_table is None:
        return token_table[ids]
    vocab_size = token_table.shape[0]
    tokens = token_table[jnp.minimum(ids, vocab_size - 1)]
    strategies = strategy_table[jnp.maximum(ids - vocab_size, 0)]
    return jnp.where((ids >= vocab_size)[..., None], strategies, tokens)


def score(token_head: jax.Array, strategy_head: jax.Array | None, hidden: jax.Array) -> jax.Array:
    """Logits `[..., V+S]` (float32) of hidden states `[..., D]` under heads `[V, D]`, `[S, D]`."""
    heads = [head for head in (token_head, strategy_head) if head is not None]
    parts = [
        jnp.einsum("...d,vd->...v", hidden, head.astype(hidden.dtype),
                   preferred_element_type=jnp.float32)
        for head in heads
    ]
    return jnp.concatenate(parts, axis=-1)


def spread_strategies(params: Any, key: jax.Array, noise: float) -> Any:
    """Start every other strategy near tag 0, by Gaussian noise; the key is consumed.

    A policy that was pre-trained under tag 0 alone then continues under tag 0 where pre-training
    ended, under the others near there, and the noise breaks the symmetry between the tags.

    Args:
      params: the policy's parameters (unboxed), not changed.
      noise: standard deviation, in units of the standard deviation of tag 0's embedding.
    """
    weights = dict(params["params"])
    for table in (name for name in (TABLE, HEAD) if name in weights):
        key, table_key = jax.random.split(key)
        row = weights[table][:1]
        spread = jax.random.normal(table_key, weights[table].shape, weights[table].dtype)
        weights[table] = row + noise * jnp.std(row) * spread.at[0].set(0.0)
    return {**params, "params": weights}


def table_initializer() -> nn.initializers.Initializer:
    """Initialiser of both embedding tables, with their logical axes."""
    return nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
