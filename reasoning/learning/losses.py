"""Losses: negative log-likelihood of tokens, and the policy-gradient family."""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

from reasoning.learning.own_functions import check_function
from reasoning.names import find, is_own

Reduction = Literal["token_mean", "sequence_mean", "set_sum"]
REDUCTIONS: tuple[Reduction, ...] = ("token_mean", "sequence_mean", "set_sum")


def check_reduction(reduction: str) -> None:
    """Refuse an unknown reduction with one sentence (ValueError)."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: must be one of {', '.join(REDUCTIONS)}.")


def token_nll(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log p(label): logits `[..., V]` of any dtype, labels `[...]` -> `[...]` nats, float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def reduce_nll(
    nll: jax.Array, mask: jax.Array, reduction: Reduction, num_sets: jax.Array | int
) -> jax.Array:
    """One loss from the label losses `nll` `[B, T]`, in nats, under a mask `[B, T]` of 0 and 1.

    token_mean: every label of the batch counts alike (the usual default of trainers).
    sequence_mean: every row counts alike, by its own mean.
    set_sum: summed over the labels of a problem's traces, mean over the `num_sets` problems; the
      paper's L_Hungarian (2510.05132). Which of the three its code used is unknown.

    An empty mask gives 0. An unknown reduction raises a ValueError.
    """
    return jnp.sum(nll * label_weights(mask, reduction, num_sets))


def label_weights(
    mask: jax.Array, reduction: Reduction, num_sets: jax.Array | int
) -> jax.Array:
    """What each label of a batch counts in `reduce_nll`, `[B, T]`: parts of the batch add up.

    Args:
      mask: `[B, T]`, 1 on labels.
      num_sets: `[]`, problems in the whole batch.

    Raises:
      ValueError: an unknown reduction.
    """
    check_reduction(reduction)
    mask = mask.astype(jnp.float32)
    if reduction == "token_mean":
        return mask / jnp.maximum(mask.sum(), 1.0)
    if reduction == "sequence_mean":
        labels = mask.sum(axis=-1, keepdims=True)
        return mask / jnp.maximum(labels, 1.0) / jnp.maximum((labels > 0).sum(), 1)
    return mask / jnp.maximum(num_sets, 1)


KINDS = ("clip", "cispo", "sapo", "gmpo")

# Policy-gradient losses. B sequences, N completion tokens; masks are 1 on the tokens that train.
# Every loss below is per token, `[B, N]`; `token_weights` turns it into one number by a weighted
# sum. The weights belong to the whole batch, so that parts of a batch add up to its gradient.


@dataclasses.dataclass(frozen=True)
class Surrogate:
    """How a policy-gradient loss depends on the ratio pi / pi_old.

    Attributes:
      kind: "clip" (PPO, 1707.06347), "cispo" (2506.13585), "sapo" (2511.20347) or "gmpo"
        (2507.20673); or MODULE:ATTRIBUTE, a function of your own: `(log_ratio, advantages)`, both
        `[B, N]` -> the loss of each token `[B, N]`, by itself: an update reads samples in parts,
        apart from their groups, and cut to the longest of a part.
      level: "token", or "sequence" for the geometric mean over a sequence's tokens (GSPO,
        2507.18071; "clip" only).
      clip_low, clip_high: the ratio is held in [1 - clip_low, 1 + clip_high]; for gmpo the log
        ratio in [-clip_low, clip_high]. DAPO's clip-higher is clip_high > clip_low.
      dual_clip: c > 1, the largest loss -c A of a negative advantage ("clip" only, 1912.09729).
      temperatures: sapo's gates for positive and negative advantages.

    Raises:
      ValueError: an unknown name or an impossible combination.
    """

    kind: str = "clip"
    level: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    temperatures: tuple[float, float] = (1.0, 1.05)

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        if self.level not in ("token", "sequence"):
            raise ValueError(f"level={self.level!r}: must be one of token, sequence.")
        if self.kind != "clip" and (self.level == "sequence" or self.dual_clip is not None):
            raise ValueError(
                f"surrogate kind={self.kind!r}: sequence ratios and dual_clip belong to 'clip'."
            )
        if self.clip_low < 0 or self.clip_high < 0:
            raise ValueError(
                f"clip_low={self.clip_low}, clip_high={self.clip_high}: must be 0 or above."
            )
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip={self.dual_clip}: must be above 1.")


def _check_kind(kind: str) -> None:
    """Refuse an unknown loss, or one of your own that is no such function (ValueError)."""
    loss = find("kind", kind, dict.fromkeys(KINDS))
    if is_own(kind):
        check_function("kind", kind, loss, {"log_ratio": "float32", "advantages": "float32"})


Aggregation = Literal[
    "token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum",
    "sequence_mean_token_sum_norm",
]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)


def masked_mean(values: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
    """Mean of the values whose mask is 1, over an axis that is kept, or over all; 0 if none is.

    Args:
      values, mask: of one shape, any.
    """
    values = jnp.where(mask > 0, values * mask, 0.0)  # 0 times infinity is not a number
    total = jnp.sum(values, axis=axis, keepdims=axis is not None)
    return total / jnp.maximum(jnp.sum(mask, axis=axis, keepdims=axis is not None), 1.0)


def log_ratio(
    log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array, level: str
) -> jax.Array:
    """log(pi / pi_old) of each token `[B, N]`.

    At level "sequence" its value is the mean over the sequence's tokens, and its gradient with
    respect to a token's log-prob is 1 (GSPO-token, 2507.18071 eq. 14).

    Args:
      log_probs, old_log_probs: `[B, N]`, in nats.
      mask: `[B, N]`, 1 on the tokens of the mean.
    """
    tokens = log_probs - old_log_probs
    if level == "token":
        return tokens
    mean = jax.lax.stop_gradient(masked_mean(tokens, mask, axis=1))
    # In this order the value is the mean itself: GSPO clips at 3e-4, a log-prob's rounding counts.
    return mean + (log_probs - jax.lax.stop_gradient(log_probs))


def policy_loss(
    surrogate: Surrogate,
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The surrogate's loss per token.

    Args:
      log_probs, old_log_probs: `[B, N]` of the tokens now, and when they were sampled.
      advantages: `[B, N]`, or `[B, 1]` for one per sequence; constants.
      mask: `[B, N]` float, 1 on completion tokens. What the others hold never matters.

    Returns:
      `[B, N]`, and where the clipping acts: `clip_ratio/low_mean`, `clip_ratio/high_mean` and
      `clip_ratio/region_mean` (either), shares of the tokens (for sapo and functions of your own,
      which do not clip, where "clip" would). A log ratio is held below 20 against overflow.
    """
    advantages = jnp.broadcast_to(advantages, log_probs.shape)
    # A masked log-prob may be infinite: its gradient would be 0 times infinity.
    log_probs, old_log_probs, advantages = (
        jnp.where(mask > 0, x, 0.0) for x in (log_probs, old_log_probs, advantages)
    )
    logs = jnp.minimum(log_ratio(log_probs, old_log_probs, mask, surrogate.level), 20.0)
    ratio = jnp.exp(logs)
    low, high = 1.0 - surrogate.clip_low, 1.0 + surrogate.clip_high
    if surrogate.kind == "gmpo":
        low, high = jnp.exp(-surrogate.clip_low), jnp.exp(surrogate.clip_high)
    lowers, raises = advantages < 0, advantages > 0
    if surrogate.kind == "cispo":  # clips whatever the sign
        lowers = raises = lowers | raises
    below, above = (ratio < low) & lowers, (ratio > high) & raises
    if surrogate.kind == "clip":
        loss = -jnp.minimum(ratio * advantages, jnp.clip(ratio, low, high) * advantages)
        if surrogate.dual_clip is not None:
            capped = jnp.minimum(loss, -surrogate.dual_clip * advantages)
            loss = jnp.where(advantages < 0, capped, loss)
    elif surrogate.kind == "cispo":
        loss = -jax.lax.stop_gradient(jnp.clip(ratio, low, high)) * advantages * log_probs
    elif surrogate.kind == "sapo":
        tau = jnp.where(advantages > 0, *surrogate.temperatures)
        loss = -jax.nn.sigmoid(tau * (ratio - 1.0)) * 4.0 / tau * advantages
    elif is_own(surrogate.kind):
        loss = find("kind", surrogate.kind, {})(logs, advantages)
    else:  # gmpo: the geometric mean of the clipped ratios, the same for every token
        clipped = jnp.where(
            advantages > 0,
            jnp.minimum(logs, surrogate.clip_high),
            jnp.maximum(logs, -surrogate.clip_low),
        )
        loss = -jnp.exp(masked_mean(clipped, mask, axis=1)) * advantages
    metrics = {
        "clip_ratio/low_mean": masked_mean(below.astype(jnp.float32), mask),
        "clip_ratio/high_mean": masked_mean(above.astype(jnp.float32), mask),
        "clip_ratio/region_mean": masked_mean((below | above).astype(jnp.float32), mask),
    }
    return loss, metrics


def token_weights(mask: jax.Array, aggregation: Aggregation, max_length: int) -> jax.Array:
    """The weight `[B, N]` of each token's loss in the batch's loss.

    token_mean: all tokens alike (DAPO, 2503.14476 eq. 8).
    sequence_mean_token_mean: the mean of the sequences' means (GRPO, 2402.03300 eq. 3).
    sequence_mean_token_sum: the mean of the sequences' sums (REINFORCE on whole completions).
    sequence_mean_token_sum_norm: that divided by `max_length` (Dr. GRPO, 2503.20783).

    Sequences without a token count for nothing.

    Raises:
      ValueError: an unknown aggregation.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation={aggregation!r}: must be one of {', '.join(AGGREGATIONS)}.")
    mask = mask.astype(jnp.float32)
    if aggregation == "token_mean":
        return mask / jnp.maximum(mask.sum(), 1.0)
    lengths = mask.sum(axis=1, keepdims=True)
    sequences = jnp.maximum((lengths > 0).sum(), 1)
    if aggregation == "sequence_mean_token_mean":
        return mask / jnp.maximum(lengths, 1.0) / sequences
    if aggregation == "sequence_mean_token_sum":
        return mask / sequences
    return mask / sequences / max_length


KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(
    log_probs: jax.Array, reference_log_probs: jax.Array, estimator: KLEstimator
) -> jax.Array:
    """An estimate per token of KL(pi || reference) at tokens drawn from pi; any shape.

    With d = log(reference / pi): k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1. As a term of the loss
    only k2 has the gradient of the reverse KL; k1 belongs into the reward (its gradient as a loss
    is zero on average), k3 (GRPO's) is biased. |d| is held below 20, k3 below 10, against outliers.

    Args:
      log_probs, reference_log_probs: under pi and the reference, in nats, of one shape.

    Raises:
      ValueError: an unknown estimator.
    """
    difference = jnp.clip(reference_log_probs - log_probs, -20.0, 20.0)
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return 0.5 * difference**2
    if estimator == "k3":
        return jnp.minimum(jnp.expm1(difference) - difference, 10.0)
    raise ValueError(f"kl_estimator={estimator!r}: must be one of k1, k2, k3.")


def token_entropy(log_probs: jax.Array) -> jax.Array:
    """Entropy in nats `[...]` of distributions given as log-probabilities `[..., V]`."""
    probs = jnp.exp(log_probs)
    return -jnp.sum(probs * jnp.where(probs > 0, log_probs, 0.0), axis=-1)


def top_entropy_mask(entropy: jax.Array, mask: jax.Array, fraction: float) -> jax.Array:
    """The mask `[B, N]` reduced to the batch's tokens of highest entropy (80/20, 2506.01939).

    Keeps the ceil(fraction * tokens) tokens of largest entropy; ties with the last of them stay.
    """
    share = fraction * mask.sum()
    whole = jnp.round(share)  # 0.3 * 50 is 15.000001 in float32
    kept = jnp.where(jnp.isclose(share, whole, rtol=2e-7, atol=0.0), whole, jnp.ceil(share))
    kept = kept.astype(jnp.int32)
    ranked = jnp.sort(jnp.where(mask > 0, entropy, -jnp.inf).ravel(), descending=True)
    least = ranked[jnp.maximum(kept - 1, 0)]
    return mask * (entropy >= least)


def covariance(log_probs: jax.Array, advantages: jax.Array, mask: jax.Array) -> jax.Array:
    """Each token's share in Cov(log pi, A), `[B, N]`: what drives entropy down (2505.22617).

    Args:
      log_probs, mask: `[B, N]`.
      advantages: `[B, N]`, or `[B, 1]` of whole sequences.
    """
    advantages = jnp.broadcast_to(advantages, log_probs.shape)
    centred = [values - masked_mean(values, mask) for values in (log_probs, advantages)]
    return jax.lax.stop_gradient(jnp.where(mask > 0, centred[0] * centred[1], 0.0))


def clip_cov_mask(
    cov: jax.Array, mask: jax.Array, key: jax.Array, fraction: float, low: float, high: float
) -> jax.Array:
    """The mask without a random `fraction` of all tokens, drawn where low < cov < high.

    Clip-Cov (2505.22617): these tokens' loss is dropped. At least one is drawn where there is one.

    Args:
      cov: `covariance`, `[B, N]`.
      mask: `[B, N]`, 1 on completion tokens.
    """
    inside = (cov > low) & (cov < high) & (mask > 0)
    dropped = jnp.maximum(jnp.floor(fraction * mask.sum()), 1.0).astype(jnp.int32)
    draw = jnp.where(inside, jax.random.uniform(key, cov.shape), jnp.inf)
    ranks = jnp.argsort(jnp.argsort(draw.ravel())).reshape(draw.shape)
    return mask * ~(inside & (ranks < dropped))


def top_covariance(cov: jax.Array, mask: jax.Array, fraction: float) -> jax.Array:
    """1 at the `fraction` of tokens of largest covariance, at least one `[B, N]`: KL-Cov.

    None whose covariance is not above 0: it does not lower the entropy, and where all advantages
    are alike every token is level with the largest.

    Args:
      cov, mask: `[B, N]`, as `clip_cov_mask`.
    """
    kept = jnp.maximum(jnp.floor(fraction * mask.sum()), 1.0).astype(jnp.int32)
    ranked = jnp.sort(jnp.where(mask > 0, cov, -jnp.inf).ravel(), descending=True)
    return mask * ((cov >= ranked[kept - 1]) & (cov > 0))


def value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, clip: float
) -> jax.Array:
    """PPO's clipped value loss per token `[B, N]` (1707.06347; Engstrom et al. 2005.12729).

    Args:
      values, old_values, returns: `[B, N]`; the old ones are those before the rollouts' updates.
      clip: how far from the old ones the values may help.
    """
    held = old_values + jnp.clip(values - old_values, -clip, clip)
    return 0.5 * jnp.maximum((values - returns) ** 2, (held - returns) ** 2)
