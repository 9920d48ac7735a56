"""Scoring completions that exist: log-probs, entropies and values, by one forward pass.

Axes: P prompts, G samples of each, N trained positions: all tokens of the completion, or the fork
(the strategy tag) alone.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from reasoning.learning import losses
from reasoning.learning.rl_state import RLConfig
from reasoning.learning.rollouts import PromptBatch
from reasoning.models.config import ModelConfig
from reasoning.models.logits import logits_of, map_logits
from reasoning.models.strategies import tag_to_id
from reasoning.models.transformer import Transformer
from reasoning.sampling.filters import Filters, filter_logits


def split_parts(tree: Any, num_parts: int) -> Any:
    """Arrays `[P, ...]` of P prompts, or samples, as `[num_parts, P / num_parts, ...]`."""
    return jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), tree)


def read_completions(
    params: Any, ids: jax.Array, mask: jax.Array, tokens: jax.Array, config: ModelConfig
) -> jax.Array:
    """Hidden states at the places that predict the tokens `[P, G, N]`: `[P, G or 1, N, D]`.

    The fork is predicted by the prompt alone, which is then read once for its G samples.

    Args:
      ids, mask: `[P, T]` of the prompts, padded on the left.
    """
    num_prompts, num_samples, length = tokens.shape
    if length > 1:
        repeat = partial(jnp.repeat, repeats=num_samples, axis=0)
        read = tokens.reshape(-1, length)[:, :-1]
        ids = jnp.concatenate([repeat(ids), read], axis=1)
        mask = jnp.concatenate([repeat(mask), jnp.ones_like(read)], axis=1)
    hidden, _ = Transformer(config).apply(
        params, ids, segment_ids=mask, positions=jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0),
        num_scored=length, head=False,
    )
    return hidden.reshape(num_prompts, -1, length, hidden.shape[-1])


def score_tokens(dist: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probs of tokens `[...]`, and entropies, of log-probs `dist` `[..., V+S]`: nats."""
    log_probs = jnp.take_along_axis(dist, tokens[..., None], axis=-1)[..., 0]
    return log_probs, losses.token_entropy(dist)


def score(
    params: Any,
    prompts: PromptBatch,
    tokens: jax.Array,
    given: jax.Array,
    config: RLConfig,
    filters: Filters | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropies `[P, G, N]` under the distribution that is sampled from.

    Args:
      tokens: `[P, G, N]` int32; N = 1 scores the tag alone.
      given: `[P, G]` bool; a given tag is scored without temperature and filters, as the sampler
        does.
      filters: those of the rollouts if left out.
    """
    filters = config.rollout.filters if filters is None else filters

    def read(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        return score_tokens(filter_logits(logits, filters, tokens), tokens)

    hidden = read_completions(params, prompts.ids, prompts.mask, tokens, config.model)
    hidden = jnp.broadcast_to(hidden, (*tokens.shape, hidden.shape[-1]))  # on the fork, G alike
    hidden, rows = (x.reshape(-1, *x.shape[2:]) for x in (hidden, tokens))
    scores = map_logits(read, config.model, params, hidden, rows)
    if config.rollout.tags == "stratified":
        plain = jax.nn.log_softmax(logits_of(config.model, params, hidden[:, :1]))
        tag = (given.reshape(-1, 1) & (jnp.arange(rows.shape[1]) == 0)[None])
        scores = jax.tree.map(
            partial(jnp.where, tag), score_tokens(plain, rows[:, :1]), scores
        )
    return jax.tree.map(lambda x: x.reshape(tokens.shape), scores)


def tag_log_probs(params: Any, prompts: PromptBatch, config: RLConfig) -> jax.Array:
    """The policy's log-probs of the S tags at the fork, `[P, S]`."""
    fork = jnp.zeros((prompts.ids.shape[0], 1, 1), jnp.int32)
    hidden = read_completions(params, prompts.ids, prompts.mask, fork, config.model)[:, 0, 0]
    tags = tag_to_id(config.model, jnp.arange(config.model.num_strategies))
    return jax.nn.log_softmax(logits_of(config.model, params, hidden))[:, tags]


def critic_values(
    critic: Any, prompts: PromptBatch, tokens: jax.Array, config: RLConfig
) -> jax.Array:
    """The critic's value `[P, G, N]` before each token."""
    hidden = read_completions(
        critic["model"], prompts.ids, prompts.mask, tokens, config.model
    )
    return jnp.einsum("pgnd,d->pgn", hidden.astype(jnp.float32), critic["head"])
