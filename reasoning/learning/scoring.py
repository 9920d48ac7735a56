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
from reasoning.models.strategies import tag_to_id
from reasoning.models.transformer import Transformer
from reasoning.sampling.filters import Filters, filter_logits


def split_parts(tree: Any, num_parts: int) -> Any:
    """Arrays `[P, ...]` of P prompts as `[num_parts, P / num_parts, ...]`: the microbatches."""
    return jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), tree)


def run_policy(
    params: Any, prompts: PromptBatch, tokens: jax.Array, config: RLConfig, head: bool = True
) -> jax.Array:
    """Logits (or hidden states) at the places that predict the tokens: `[P, G or 1, N, ...]`.

    The fork is predicted by the prompt alone, which is then read once for its G samples.
    """
    num_prompts, num_samples, length = tokens.shape
    ids, mask = prompts.ids, prompts.mask
    if length > 1:
        repeat = partial(jnp.repeat, repeats=num_samples, axis=0)
        read = tokens.reshape(-1, length)[:, :-1]
        ids = jnp.concatenate([repeat(ids), read], axis=1)
        mask = jnp.concatenate([repeat(mask), jnp.ones_like(read)], axis=1)
    out, _ = Transformer(config.model).apply(
        params, ids, segment_ids=mask, positions=jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0),
        num_scored=length, head=head,
    )
    return out.reshape(num_prompts, -1, length, out.shape[-1])


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
    logits = run_policy(params, prompts, tokens, config)
    shape = (*tokens.shape, logits.shape[-1])  # on the fork, a prompt's samples share their logits
    filters = config.rollout.filters if filters is None else filters
    dist = filter_logits(jnp.broadcast_to(logits, shape), filters, tokens)
    if config.rollout.tags == "stratified":
        plain = jax.nn.log_softmax(logits[:, :, :1])
        first = jnp.where(given[:, :, None, None], plain, dist[:, :, :1])
        dist = jnp.concatenate([first, dist[:, :, 1:]], axis=2)
    log_probs = jnp.take_along_axis(dist, tokens[..., None], axis=-1)[..., 0]
    return log_probs, losses.token_entropy(dist)


def tag_log_probs(params: Any, prompts: PromptBatch, config: RLConfig) -> jax.Array:
    """The policy's log-probs of the S tags at the fork, `[P, S]`."""
    logits = run_policy(params, prompts, jnp.zeros((prompts.ids.shape[0], 1, 1), jnp.int32), config)
    tags = tag_to_id(config.model, jnp.arange(config.model.num_strategies))
    return jax.nn.log_softmax(logits[:, 0, 0])[:, tags]


def critic_values(
    critic: Any, prompts: PromptBatch, tokens: jax.Array, config: RLConfig
) -> jax.Array:
    """The critic's value `[P, G, N]` before each token."""
    hidden = run_policy(critic["model"], prompts, tokens, config, head=False)
    return jnp.einsum("pgnd,d->pgn", hidden.astype(jnp.float32), critic["head"])
