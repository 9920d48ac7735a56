"""Preferences: direct preference optimization on pairs of completions (DPO, 2305.18290).

    reference = sequence_log_probs(config, params, batch, tags)                    once
    state, metrics = dpo_update(state, batch, tags, reference, config=config, ...)

A pair is a right and a wrong completion of one problem under one tag: an example of two traces, the
preferred one first, so that rows 2i and 2i + 1 of a batch are a pair.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reasoning.data.pipelines import TraceBatch
from reasoning.learning.losses import masked_mean
from reasoning.learning.updates import TrainState, apply_gradient, label_mask, row_nll
from reasoning.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Preference:
    """How strongly a pair moves the policy.

    Attributes:
      beta: how dear it is to leave the reference, above 0.
      label_smoothing: the share of pairs that are taken to be the wrong way round, below a half
        (conservative DPO); 0 where a verifier has judged them.
      length_normalised: log-probs per token in place of those of whole completions.
      nll_weight: of the right completion's NLL per token in the loss (2404.19733). Without it a
        policy often makes both completions less likely, the wrong one only faster.

    Raises:
      ValueError: a value out of range.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    length_normalised: bool = False
    nll_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"preference beta={self.beta}: must be above 0.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"preference label_smoothing={self.label_smoothing}: must be 0 or above, and below "
                "0.5."
            )
        if not self.nll_weight >= 0:
            raise ValueError(f"preference nll_weight={self.nll_weight}: must be 0 or above.")


@partial(jax.jit, static_argnames=("config", "length_normalised"))
def sequence_log_probs(
    config: ModelConfig,
    params: Any,
    batch: TraceBatch,
    tags: jax.Array,
    length_normalised: bool = False,
) -> jax.Array:
    """log pi(completion | prompt, tag) of each row, `[N]`, nats; 0 for a row of padding.

    Args:
      length_normalised: the mean over the completion's tokens in place of their sum.
    """
    mask = label_mask(batch, tag_is_label=False)
    total = -jnp.sum(row_nll(config, params, batch, tags) * mask, axis=1)
    return total / jnp.maximum(mask.sum(axis=1), 1.0) if length_normalised else total


def dpo_loss(
    preference: Preference, log_probs: jax.Array, reference: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The loss of each pair, and its implicit rewards.

    The reward of a completion y is beta log(pi(y) / reference(y)), and the loss -log sigmoid of the
    right one's reward less the wrong one's (2305.18290 eq. 7): log 2 where the policy is the
    reference.

    Args:
      log_probs, reference: `[B, 2]`, right and wrong, of the policy and of the reference.

    Returns:
      the loss `[B]` in nats, and the rewards `[B, 2]`.
    """
    rewards = preference.beta * (log_probs - jax.lax.stop_gradient(reference))
    margin, smoothing = rewards[:, 0] - rewards[:, 1], preference.label_smoothing
    loss = -(1 - smoothing) * jax.nn.log_sigmoid(margin) - smoothing * jax.nn.log_sigmoid(-margin)
    return loss, rewards


@partial(
    jax.jit, static_argnames=("config", "optimizer", "preference"), donate_argnames=("state",)
)
def dpo_update(
    state: TrainState,
    batch: TraceBatch,
    tags: jax.Array,
    reference: jax.Array,
    *,
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    preference: Preference,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on the mean loss of the batch's pairs, and of their right completions' NLL.

    Args:
      batch: `[N]` rows of which 2i and 2i + 1 are a pair, or both padding.
      tags: `[N]`, the tags under which the completions are read.
      reference: `[N]`, `sequence_log_probs` of the reference policy, by `preference`.

    Returns:
      the new state (the old one is donated), and metrics: `loss`, `nll` (of the right completions,
      nats per token), `margin` (of the implicit rewards, nats), `accuracy` (share of pairs with a
      positive margin), `reward/right`, `reward/wrong`, `grad_norm`, `tokens` (of both completions).
    """
    pairs = (batch.lengths[::2] > 0).astype(jnp.float32)
    lengths = label_mask(batch, tag_is_label=False).sum(axis=1)

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        log_probs = sequence_log_probs(config, params, batch, tags, preference.length_normalised)
        counts = jnp.ones_like(lengths) if preference.length_normalised else lengths
        nll = -log_probs[::2] / jnp.maximum(counts[::2], 1.0)
        loss, rewards = dpo_loss(
            preference, log_probs.reshape(-1, 2), reference.reshape(-1, 2)
        )
        return masked_mean(loss + preference.nll_weight * nll, pairs), (rewards, nll)

    (loss, (rewards, nll)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    margin = rewards[:, 0] - rewards[:, 1]
    metrics = {
        "loss": loss,
        "nll": masked_mean(nll, pairs),
        "margin": masked_mean(margin, pairs),
        "accuracy": masked_mean((margin > 0).astype(jnp.float32), pairs),
        "reward/right": masked_mean(rewards[:, 0], pairs),
        "reward/wrong": masked_mean(rewards[:, 1], pairs),
        "grad_norm": optax.tree.norm(grads),
        "tokens": lengths.sum(),
    }
    return apply_gradient(state, grads, optimizer), metrics
