"""Advantages: how much better a sample is than its policy's other samples, by ten methods.

    rloo                   reward less the mean of the group's other rewards
    grpo                   reward less the group's mean, over the group's std
    dr_grpo                reward less the group's mean
    reinforce_pp           reward less the batch's mean, over the batch's std
    reinforce_pp_baseline  reward less the group's mean, over the batch's std of these differences
    lite_ppo               reward less the group's mean, over the batch's std of the rewards
    opo                    reward less the group's mean weighted by length
    pass_at_k              what a sample is worth to sets of k, for right and wrong
    pkpo                   what a sample adds to the best of k, for real rewards
    gdpo                   several rewards, each normalised within the group, then together

P is the number of prompts, G of samples per prompt; a prompt's samples are its group. Rewards are
`[P, G]`, and so is the mask of the samples that are valid: those that are not take part in no mean
and no std, and their advantage is 0. So is that of every sample with nothing to compare it with:
a group (for reinforce_pp: a batch) of fewer than two valid samples. Everything is finite float32,
stds are unbiased (n - 1), and the functions may be jitted and vmapped.

A KL penalty needs no function of its own: give any method but pass_at_k `rewards - beta * kl`, with
one KL per sample. As rloo is linear, this centres the KL on that of the group's other samples, as
T1 does (arXiv 2501.11651):

    rloo(rewards - beta * kl) == rloo(rewards) - beta * (kl - leave-one-out mean of kl)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from reasoning.learning.own_functions import check_function
from reasoning.names import find, is_own, parameters

Estimator = Callable[[jax.Array, jax.Array], jax.Array]  # (rewards, valid) -> advantages

EPSILON = 1e-6
GROUP = -1
BATCH = (-2, -1)


def rloo(rewards: jax.Array, valid: jax.Array) -> jax.Array:
    """Reward less the mean of the group's other rewards: REINFORCE leave-one-out.

    Ahmadian et al. (arXiv 2402.14740). n / (n - 1) times `dr_grpo`, for n valid samples.

    Args:
      rewards: `[P, G]`.
      valid: bool `[P, G]`.

    Returns:
      `[P, G]`, in units of the reward.
    """
    count = jnp.sum(valid, axis=GROUP, keepdims=True)
    return _centred(rewards, valid, GROUP) * (count / jnp.maximum(count - 1, 1))


def grpo(rewards: jax.Array, valid: jax.Array, *, epsilon: float = EPSILON) -> jax.Array:
    """Reward less the group's mean, over the group's std: GRPO (arXiv 2402.03300).

    Args:
      rewards: `[P, G]`.
      valid: bool `[P, G]`.
      epsilon: added to the std.

    Returns:
      `[P, G]`, in stds; exactly 0 in a group whose rewards are all alike.
    """
    return _centred(rewards, valid, GROUP) / (_std(rewards, valid, GROUP) + epsilon)


def dr_grpo(rewards: jax.Array, valid: jax.Array) -> jax.Array:
    """Reward less the group's mean: Dr. GRPO (arXiv 2503.20783).

    Args:
      rewards: `[P, G]`.
      valid: bool `[P, G]`.

    Returns:
      `[P, G]`, in units of the reward.
    """
    return _centred(rewards, valid, GROUP)


def reinforce_pp(rewards: jax.Array, valid: jax.Array, *, epsilon: float = EPSILON) -> jax.Array:
    """Reward less the batch's mean, over the batch's std: REINFORCE++ (arXiv 2501.03262).

    Groups play no part, so one sample per prompt is enough. Samples count alike, however long.

    Args:
      rewards: `[P, G]`.
      valid: bool `[P, G]`.
      epsilon: added to the std.

    Returns:
      `[P, G]`, in stds.
    """
    return _centred(rewards, valid, BATCH) / (_std(rewards, valid, BATCH) + epsilon)


def reinforce_pp_baseline(
    rewards: jax.Array, valid: jax.Array, *, epsilon: float = EPSILON
) -> jax.Array:
    """Reward less the group's mean, then normalised over the batch (arXiv 2501.03262).

    The std is that of the differences, within groups; that of `lite_ppo` is also between groups.

    Args:
      rewards: `[P, G]`.
      valid: bool `[P, G]`.
      epsilon: added to the std.

    Returns:
      `[P, G]`, in stds.
    """
    centred = _centred(rewards, valid, GROUP)
    # The batch's mean needs no subtracting: every group's is 0.
    return centred / (_std(centred, _comparable(valid), BATCH) + epsilon)


def lite_ppo(rewards: jax.Array, valid: jax.Array, *, epsilon: float = EPSILON) -> jax.Array:
    """Reward less the group's mean, over the batch's std of rewards: Lite PPO (arXiv 2508.08221).

    Args:
      rewards: `[P, G]`.
      valid: bool `[P, G]`.
      epsilon: added to the std.

    Returns:
      `[P, G]`, in stds.
    """
    std = _std(rewards, _comparable(valid), BATCH)
    return _centred(rewards, valid, GROUP) / (std + epsilon)


def opo(rewards: jax.Array, valid: jax.Array, *, lengths: jax.Array) -> jax.Array:
    """Reward less the group's mean weighted by length: OPO (arXiv 2505.23585).

    Args:
      rewards: `[P, G]`.
      valid: bool `[P, G]`.
      lengths: `[P, G]`, tokens sampled; a group where all are 0 is weighted evenly.

    Returns:
      `[P, G]`, in units of the reward.
    """
    centred = _centred(rewards, valid, GROUP)
    lengths = jnp.where(valid, lengths, 0).astype(jnp.float32)
    total = jnp.sum(lengths, axis=GROUP, keepdims=True)
    baseline = jnp.sum(lengths * centred, axis=GROUP, keepdims=True) / jnp.maximum(total, 1.0)
    return jnp.where(valid, centred - baseline, 0.0)


def pass_at_k(rewards: jax.Array, valid: jax.Array, *, k: jax.Array | int) -> jax.Array:
    """What a sample is worth to sets of k that pass if one of them is correct: Pass@k training.

    The analytic advantages of arXiv 2508.10751: a set's advantage is its 0/1 reward normalised
    over all sets of k valid samples, a sample's the mean over the sets that it is in.

    Args:
      rewards: `[P, G]`, 1 for correct and 0 for wrong; the threshold is 1/2.
      valid: bool `[P, G]`.
      k: size of the sets, one for all or `[P, 1]`.

    Returns:
      `[P, G]`, in stds of the sets' reward; 0 where all sets fare alike or there are none.

    Raises:
      ValueError: k is a Python int outside 1..G.
    """
    _check_k(k, rewards.shape[GROUP])
    correct = valid & (rewards > 0.5)
    num_valid = jnp.sum(valid, axis=GROUP, keepdims=True)
    num_correct = jnp.sum(correct, axis=GROUP, keepdims=True)
    num_wrong = num_valid - num_correct
    chances = _draw_chances(num_valid, k, rewards.shape[GROUP] + 1)
    fail = jnp.take_along_axis(chances, num_wrong, axis=GROUP)  # 1 - R, for the mean reward R
    # A+ = (1 - R) / sigma with sigma = sqrt(R (1 - R)); A- is such that a group's sum is 0.
    of_correct = jnp.where(fail < 1, jnp.sqrt(fail / jnp.where(fail < 1, 1 - fail, 1.0)), 0.0)
    of_wrong = -of_correct * num_correct / jnp.maximum(num_wrong, 1)
    return jnp.where(valid, jnp.where(correct, of_correct, of_wrong), 0.0)


def pkpo(
    rewards: jax.Array, valid: jax.Array, *, k: jax.Array | int, baseline: bool = True
) -> jax.Array:
    """What a sample adds to the best reward of k: PKPO (arXiv 2505.15201).

    The paper's `sloo_minus_one` (eq. 33): over all sets of k valid samples that hold sample i, the
    sum of the best reward less the best without i, divided by C(n, k). Without the baseline: its
    `s`, the sum of the best reward.

    Both times n, the number of valid samples. The paper sums over a group's samples, the others
    here stand for a mean over them: `mean(pkpo * grad log p)` is the gradient of the best of k.
    In these units it is k times what i adds, on average, to k - 1 others.

    At k = 1 there are no others, whose best is then 0: the rewards come back, without a baseline.

    Args:
      rewards: `[P, G]`, real numbers.
      valid: bool `[P, G]`.
      k: size of the sets, one for all or `[P, 1]`.
      baseline: subtract the best of a set without the sample.

    Returns:
      `[P, G]`, in units of the reward; 0 in groups with fewer than k valid samples.

    Raises:
      ValueError: k is a Python int outside 1..G.
    """
    _check_k(k, rewards.shape[GROUP])
    count = jnp.sum(valid, axis=GROUP, keepdims=True)
    rewards = jnp.asarray(rewards, jnp.float32)
    best = jnp.max(rewards, axis=GROUP, keepdims=True, where=valid, initial=-jnp.inf)
    # Samples that are not valid stand level with the best, where they leave no gap to any other.
    rewards = jnp.where(valid, rewards, jnp.where(count > 0, best, 0.0))
    order = jnp.argsort(rewards, axis=GROUP)
    ranked = jnp.take_along_axis(rewards, order, axis=GROUP)
    gaps = jnp.diff(ranked, axis=GROUP, prepend=0.0)  # entry m: above the m lowest
    # The chance that a sample's k - 1 others are all among the m lowest samples, itself not.
    below = _draw_chances(count - 1, k - 1, rewards.shape[GROUP])
    if baseline:
        # A gap under the sample counts where none of the others has taken it already.
        values = jnp.cumsum(gaps * below, axis=GROUP)
    else:
        # Every gap under the sample counts, one over it where some of the others takes it; they
        # all miss it where they are among the m - 1 others of the m lowest.
        over = gaps[:, 1:] * (1.0 - below[:, :-1])
        over = jnp.pad(jnp.cumsum(over[:, ::-1], axis=GROUP)[:, ::-1], ((0, 0), (0, 1)))
        values = ranked + over
    values = jnp.take_along_axis(k * values, jnp.argsort(order, axis=GROUP), axis=GROUP)
    return jnp.where(_comparable(valid) & (k <= count), values, 0.0)


def gdpo(
    rewards: jax.Array, valid: jax.Array, weights: ArrayLike, *, epsilon: float = EPSILON
) -> jax.Array:
    """Several rewards, none drowned by the others: GDPO (arXiv 2601.05242).

    Each is normalised within its group as in `grpo`, then their weighted sum over the batch.

    Args:
      rewards: `[R, P, G]`, of R kinds.
      valid: bool `[P, G]`.
      weights: `[R]`, what each kind counts.
      epsilon: added to the stds.

    Returns:
      `[P, G]`, in stds of the weighted sum.
    """
    normalised = jax.vmap(lambda reward: grpo(reward, valid, epsilon=epsilon))(rewards)
    weights = jnp.asarray(weights, jnp.float32)
    total = jnp.sum(weights[:, None, None] * normalised, axis=0)
    # The batch's mean needs no subtracting: every group's is 0.
    return total / (_std(total, _comparable(valid), BATCH) + epsilon)


def entropy_shaped(
    advantages: jax.Array, entropy: jax.Array, *, alpha: float = 0.4, kappa: float = 2.0
) -> jax.Array:
    """More advantage where the policy was undecided: A + min(alpha H, |A| / kappa).

    Cheng et al. (arXiv 2506.14758). The bound keeps the sign of A; no gradient flows through H.

    Args:
      advantages: `[..., T]`, or `[..., 1]` where a sample's tokens share one.
      entropy: H, `[..., T]`, of the policy at each token in nats, at least 0.
      alpha: what a nat is worth, at least 0.
      kappa: the bound, above 1.

    Returns:
      `[..., T]`.
    """
    bonus = alpha * jax.lax.stop_gradient(entropy)
    return advantages + jnp.minimum(bonus, jnp.abs(advantages) / kappa)


def penalise_before(
    estimator: Estimator, rewards: jax.Array, valid: jax.Array, penalised: jax.Array
) -> jax.Array:
    """Penalised samples have reward -1, and the baseline sees it: T1 (arXiv 2501.11651).

    Their group's other samples gain by them, and how much they lose depends on the group. This is
    the paper's wording; `penalise_after` is the order in related code of the same authors.

    Args:
      estimator: a function of (rewards, valid), such as `rloo`.
      rewards: `[P, G]`.
      valid: bool `[P, G]`.
      penalised: bool `[P, G]`, samples that repeat themselves, are garbled or never end.

    Returns:
      `[P, G]`.
    """
    return estimator(jnp.where(penalised, -1.0, rewards), valid)


def penalise_after(
    estimator: Estimator, rewards: jax.Array, valid: jax.Array, penalised: jax.Array
) -> jax.Array:
    """Penalised samples have advantage -1, and no baseline or std sees them: TreeRL.

    The order in the code of arXiv 2506.11902, by authors of T1. Their group's other samples are
    compared among themselves.

    Args:
      estimator: a function of (rewards, valid), such as `rloo`.
      rewards: `[P, G]`.
      valid: bool `[P, G]`.
      penalised: bool `[P, G]`.

    Returns:
      `[P, G]`; 0 for a sample that is penalised but not valid.
    """
    return jnp.where(valid & penalised, -1.0, estimator(rewards, valid & ~penalised))


# name -> a function of (rewards, valid), and of keywords `lengths` and `k` where it takes them
ADVANTAGES: dict[str, Callable[..., jax.Array]] = {
    "rloo": rloo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "lite_ppo": lite_ppo,
    "opo": opo,
    "pass_at_k": pass_at_k,
    "pkpo": pkpo,
}


def check_advantage(name: str) -> None:
    """Refuse a method that is unknown, or one of your own that is no such function (ValueError)."""
    method = find("advantage", name, ADVANTAGES)
    if is_own(name):
        arrays = {"rewards": "float32", "valid": "bool"}
        extras = {"lengths": "int32", "k": 2}
        keywords = {extra: extras[extra] for extra in needs(name)}
        check_function("advantage", name, method, arrays, keywords)


def needs(name: str) -> tuple[str, ...]:
    """What a method takes beside rewards and valid: `lengths`, `k`."""
    taken, _ = parameters("advantage", name, find("advantage", name, ADVANTAGES))
    return tuple(extra for extra in ("lengths", "k") if extra in taken)


def advantages(
    name: str,
    rewards: jax.Array,
    valid: jax.Array,
    *,
    lengths: jax.Array | None = None,
    k: jax.Array | int | None = None,
) -> jax.Array:
    """Advantages by the name of a method; what it does not need is ignored.

    Args:
      name: a key of `ADVANTAGES`, or MODULE:ATTRIBUTE: a function of your own, of (rewards, valid)
        and, where it takes them, of keywords `lengths` and `k`.
      rewards: `[P, G]`.
      valid: bool `[P, G]`.
      lengths: `[P, G]`, tokens; as opo needs them.
      k: size of the sets; as pass_at_k and pkpo need it.

    Returns:
      `[P, G]`.

    Raises:
      ValueError: an unknown name, or what the method needs is not given or out of range.
    """
    method = find("advantage", name, ADVANTAGES)
    given = {"lengths": lengths, "k": k}
    for extra in needs(name):
        if given[extra] is None:
            raise ValueError(f"advantage={name!r}: needs {extra}, which is not given.")
    return method(rewards, valid, **{extra: given[extra] for extra in needs(name)})


def _check_k(k: jax.Array | int, num_samples: int) -> None:
    if isinstance(k, int) and not 1 <= k <= num_samples:
        raise ValueError(f"k={k}: must be between 1 and the {num_samples} samples per prompt.")


def _comparable(valid: jax.Array) -> jax.Array:
    """The valid samples `[P, G]` whose group holds another one."""
    return valid & (jnp.sum(valid, axis=GROUP, keepdims=True) > 1)


def _centred(rewards: jax.Array, valid: jax.Array, axis: int | tuple[int, int]) -> jax.Array:
    """Rewards less the mean of the valid ones; 0 where not valid."""
    rewards = jnp.asarray(rewards, jnp.float32)
    best = jnp.max(rewards, axis=axis, keepdims=True, where=valid, initial=-jnp.inf)
    # Measured from the best, rewards all alike are exactly 0, whatever a sum of them rounds to.
    rewards = jnp.where(valid, rewards - best, 0.0)
    count = jnp.maximum(jnp.sum(valid, axis=axis, keepdims=True), 1)
    mean = jnp.sum(rewards, axis=axis, keepdims=True) / count
    return jnp.where(valid, rewards - mean, 0.0)


def _std(rewards: jax.Array, valid: jax.Array, axis: int | tuple[int, int]) -> jax.Array:
    """Unbiased std of the valid rewards, axes kept; 0 for fewer than two."""
    count = jnp.sum(valid, axis=axis, keepdims=True)
    squares = jnp.sum(jnp.square(_centred(rewards, valid, axis)), axis=axis, keepdims=True)
    return jnp.sqrt(squares / jnp.maximum(count - 1, 1))


def _draw_chances(whole: jax.Array, k: jax.Array | int, size: int) -> jax.Array:
    """C(m, k) / C(whole, k) for m = 0..size-1: the chance that k drawn are all among m of them.

    As prod of (1 - k / t) over t = m+1..whole, so that nothing overflows. `[P, 1]` -> `[P, size]`;
    the entries are of no use where k > whole or m > whole.
    """
    t = jnp.arange(1, size + 1, dtype=jnp.float32)[None]
    factors = jnp.where(t <= whole, jnp.maximum(1.0 - k / t, 0.0), 1.0)
    return jax.lax.cumprod(factors, axis=1, reverse=True)
