"""Losses: negative log-likelihood of tokens under a label mask, and its reductions."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

Reduction = Literal["token_mean", "sequence_mean", "set_sum"]
REDUCTIONS: tuple[Reduction, ...] = ("token_mean", "sequence_mean", "set_sum")


def check_reduction(reduction: str) -> None:
    """Refuse an unknown reduction with one sentence (ValueError)."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: must be one of {', '.join(REDUCTIONS)}.")


def token_nll(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """-log p(token) of tokens 1..T-1 given those before: `[B, T, V]`, `[B, T]` -> `[B, T-1]`.

    Entry t belongs to token t+1. Nats, float32.
    """
    return optax.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1].astype(jnp.float32), tokens[:, 1:]
    )


def reduce_nll(
    nll: jax.Array, mask: jax.Array, reduction: Reduction, num_sets: jax.Array | int
) -> jax.Array:
    """One loss from the label losses `[B, T]` under a mask `[B, T]` of 0 and 1.

    token_mean: every label of the batch counts alike (the usual default of trainers).
    sequence_mean: every row counts alike, by its own mean.
    set_sum: summed over the labels of a problem's traces, mean over the `num_sets` problems; the
      paper's L_Hungarian (2510.05132, METHODS 1.2). Which of the three its code used is unknown.

    An empty mask gives 0. An unknown reduction raises a ValueError.
    """
    check_reduction(reduction)
    mask = mask.astype(jnp.float32)
    total = jnp.sum(nll * mask)
    if reduction == "token_mean":
        return total / jnp.maximum(mask.sum(), 1.0)
    if reduction == "sequence_mean":
        labels = mask.sum(axis=-1)
        means = jnp.sum(nll * mask, axis=-1) / jnp.maximum(labels, 1.0)
        return means.sum() / jnp.maximum((labels > 0).sum(), 1)
    return total / jnp.maximum(num_sets, 1)
