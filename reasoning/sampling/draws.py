"""The next token of each row: drawn by the row's own key, or given; and what it is scored at.

Both loops that sample are built on it, `reasoning.sampling.sampler` and `reasoning.sampling.slots`.
"""

import operator
from functools import reduce

import jax
import jax.numpy as jnp

from reasoning.models.config import ModelConfig
from reasoning.models.strategies import tag_to_id
from reasoning.sampling.filters import Filters, choose, filter_logits

OWN_TAG = -1  # in `tags`: the policy draws the tag itself


def draw_tokens(
    logits: jax.Array, keys: jax.Array, t: jax.Array, filters: Filters
) -> tuple[jax.Array, jax.Array]:
    """Tokens `[B]` from logits `[B, V]`, and the log-probs `[B, V]` that they are drawn from.

    Args:
      keys: `[B]`, one a sequence.
      t: the token's place in its completion, a scalar or `[B]`: what is drawn depends on key and
        place alone.
    """
    scores = filter_logits(logits, filters)
    places = jnp.broadcast_to(t, keys.shape)
    uniform = jax.vmap(lambda k, t: jax.random.uniform(jax.random.fold_in(k, t)))(keys, places)
    return choose(scores, uniform, jnp.asarray(filters.temperature)), scores


def open_and_score(
    config: ModelConfig,
    drawn: jax.Array,
    scores: jax.Array,
    logits: jax.Array,
    tags: jax.Array,
    t: jax.Array,
    instead: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The tokens `[B]` with the tags that are given at place 0, and their log-probs `[B]`.

    What was drawn is scored by the distribution it was drawn from; what was not, also where a
    filter would have removed it, at temperature 1.

    Args:
      drawn, scores: `[B]` and `[B, V]`, of `draw_tokens`.
      tags: `[B]` int32, or OWN_TAG.
      t: as in `draw_tokens`.
      instead: `[B]`, what is written in place of what was drawn, or the same.
    """
    token = drawn if instead is None else instead
    tag_given = (t == 0) & (tags != OWN_TAG)
    token = jnp.where(tag_given, tag_to_id(config, tags), token)
    given = tag_given | (token != drawn)
    scores = jnp.where(given[:, None], jax.nn.log_softmax(logits), scores)
    log_probs = jnp.take_along_axis(scores, token[:, None], axis=1)[:, 0]
    return token.astype(jnp.int32), log_probs


def ends_at(tokens: jax.Array, ids: tuple[int, ...]) -> jax.Array:
    """Which tokens, of any shape, end a completion."""
    return reduce(operator.or_, (tokens == i for i in ids))


def probability_gap(logits: jax.Array) -> jax.Array:
    """How far the likeliest token's probability is above the next one's: `[..., V]` to `[...]`."""
    top = logits.max(axis=-1, keepdims=True)
    first = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    others = jnp.where(first, -jnp.inf, logits)
    return (1 - jnp.exp(others.max(axis=-1) - top[..., 0])) / jnp.exp(logits - top).sum(axis=-1)
