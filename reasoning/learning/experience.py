"""From judged rollouts to what an update reads: advantages, references, selected tokens.

    experience, metrics = make_experience(state, prompts, rollouts, key, config)

Axes: P prompts, G samples of each, N trained positions: all tokens of the completion, or the fork
(the strategy tag) alone.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp

from reasoning.learning import advantages, losses
from reasoning.learning.algorithms import Algorithm
from reasoning.learning.rl_state import PolicyState, RLConfig
from reasoning.learning.rollouts import Metrics, PromptBatch, Rollouts
from reasoning.learning.scoring import critic_values, score, split_parts, tag_log_probs
from reasoning.models.axes import by_device, in_force
from reasoning.sampling.filters import Filters

Result = TypeVar("Result")
LEAST_CUT, MOST_CUTS = 16, 3  # a part's program is compiled once for each length it may be cut to


@flax.struct.dataclass
class Experience:
    """What the update reads of P prompts with G samples of N trained positions each.

    On the fork alone N is 1. Constants: no gradient flows into them.

    Attributes:
      prompts: the prompts `[P]`.
      tokens: `[P, G, N]` int32.
      given: `[P, G]` bool, the tag was given: it is scored as the policy would draw it.
      mask: `[P, G, N]` float32, 1 on the policy's own tokens, of samples that may train.
      selected: `[P, G, N]` float32, the part of the mask whose policy gradient is taken.
      old_log_probs: `[P, G, N]` when they were sampled.
      advantages: `[P, G, N]`.
      sound: `[P]` bool, all rewards of the prompt's samples are finite.
      entropy: `[P, G, N]` of the policy before the update, None unless the algorithm reads it.
      reference_log_probs: `[P, G, N]`, None without a KL to sampled tokens.
      held: `[P, G, N]` float32, tokens under KL-Cov's penalty, else None.
      returns, old_values: `[P, G, N]` for the critic, else None.
      tag_values: `[P, S]` mean reward of each tag (positions="fork_exact"), else None.
      weights: `[P, G, N]` float32 of each token in the loss of its minibatch.
    """

    prompts: PromptBatch
    tokens: jax.Array
    given: jax.Array
    mask: jax.Array
    selected: jax.Array
    old_log_probs: jax.Array
    advantages: jax.Array
    sound: jax.Array
    entropy: jax.Array | None = None
    reference_log_probs: jax.Array | None = None
    held: jax.Array | None = None
    returns: jax.Array | None = None
    old_values: jax.Array | None = None
    tag_values: jax.Array | None = None
    weights: jax.Array | None = None


def _num_cuts(batch: Experience, config: RLConfig) -> int:
    if config.num_microbatches == 1 or not config.rollout.early_exit:
        return 1
    return min(max(batch.tokens.shape[2] // LEAST_CUT, 1), MOST_CUTS)


def part_lengths(batch: Experience, config: RLConfig) -> list[int]:
    """How many positions a part may be cut to, in ascending order; the last is N.

    N alone where a minibatch is one part, where the devices of a mesh go through it together, and
    without `rollout.early_exit`.
    """
    length, count = batch.tokens.shape[2], 1 if in_force() else _num_cuts(batch, config)
    return [-(-length * (i + 1) // count) for i in range(count)]


def part_unit(batch: Experience, num_parts: int, config: RLConfig) -> int:
    """A device that makes so many parts by itself needs a multiple of so many prompts.

    Parts of several lengths are made of samples, others of whole prompts.
    """
    samples = batch.tokens.shape[1] if _num_cuts(batch, config) > 1 else 1
    return num_parts // math.gcd(num_parts, samples)


def split_by_length(batch: Experience, num_parts: int) -> tuple[Experience, jax.Array]:
    """Parts `[num_parts, P G / num_parts, 1, N]` of single samples, the short ones first.

    Returns:
      the parts, each sample as the only one of its prompt, and the order of samples `[P G]`.
    """
    num_samples = batch.tokens.shape[1]
    of_prompts = {"prompts": batch.prompts, "sound": batch.sound}
    repeat = partial(jnp.repeat, repeats=num_samples, axis=0)
    rows = jax.tree.map(
        lambda x: x.reshape(-1, 1, *x.shape[2:]), batch.replace(**dict.fromkeys(of_prompts))
    )
    rows = rows.replace(**jax.tree.map(repeat, of_prompts))
    order = jnp.argsort(_last_position(rows)[:, 0])
    return split_parts(jax.tree.map(lambda x: x[order], rows), num_parts), order


def _last_position(batch: Experience) -> jax.Array:
    """`[P, G]` int32, so many positions hold all of a sample's trained tokens."""
    places = jnp.arange(1, batch.mask.shape[2] + 1)[None, None]
    return jnp.max(jnp.where(batch.mask > 0, places, 0), axis=2)


def at_own_length(
    function: Callable[[Experience], Result], part: Experience, lengths: list[int]
) -> Result:
    """`function` of the part cut to the least of the lengths that holds its trained tokens."""

    def cut(length: int) -> Callable[[Experience], Result]:
        def of_positions(x: jax.Array) -> jax.Array:
            return x[:, :, :length] if x.ndim == 3 else x

        return lambda part: function(
            jax.tree.map(of_positions, part.replace(prompts=None)).replace(prompts=part.prompts)
        )

    longest = jnp.max(_last_position(part))
    which = jnp.searchsorted(jnp.array(lengths), longest)
    return jax.lax.switch(which, [cut(length) for length in lengths], part)


def generalized_advantages(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gae_lambda: float
) -> jax.Array:
    """GAE (1506.02438 eq. 16) with gamma 1 along the last axis; any leading axes.

    Args:
      rewards, values, mask: `[..., N]`; the mask is 1 on a sequence's tokens, which are adjacent.
        Nothing follows the last of them.
    """
    after = jnp.concatenate([values[..., 1:] * mask[..., 1:], jnp.zeros_like(values[..., :1])], -1)
    deltas = (rewards + after - values) * mask

    def back(later: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        now = delta + gae_lambda * later
        return now, now

    start = jnp.zeros_like(deltas[..., 0])
    _, out = jax.lax.scan(back, start, jnp.moveaxis(deltas, -1, 0), reverse=True)
    return jnp.moveaxis(out, 0, -1) * mask


def _whiten(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Zero mean and unit deviation over the tokens of the mask."""
    centred = values - losses.masked_mean(values, mask)
    return centred * jax.lax.rsqrt(losses.masked_mean(centred**2, mask) + 1e-8) * mask


def _group_advantages(algorithm: Algorithm, cost: jax.Array, rollouts: Rollouts) -> jax.Array:
    """Advantages `[P, G]` of the rewards, with the algorithm's penalty, less a cost `[P, G]`.

    The cost is the KL. It is taken from penalised rewards too: T1's is LOO(r' - beta KL).
    """
    rewards, valid = rollouts.rewards, rollouts.valid
    lengths = rollouts.mask.sum(axis=2)

    def method(rewards: jax.Array, valid: jax.Array) -> jax.Array:
        return advantages.advantages(
            algorithm.advantage, rewards - cost, valid, lengths=lengths, k=algorithm.advantage_k
        )

    penalise = {"before": advantages.penalise_before, "after": advantages.penalise_after}
    if algorithm.penalty == "none":
        return method(rewards, valid)
    return penalise[algorithm.penalty](method, rewards, valid, rollouts.penalised)


def _token_advantages(
    state: PolicyState, read: Experience, cost: jax.Array, rewards: jax.Array, config: RLConfig
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Advantages `[P, G, N]` token by token, whitened: PPO's and REINFORCE++'s.

    The reward `[P, G]` comes with the last token, the cost `[P, G, N]` (the KL) with each.

    Returns:
      the advantages; returns and values of the critic, None without one (the advantage is then
      the return from each token on).
    """
    algorithm, mask = config.algorithm, read.mask
    last = (jnp.cumsum(mask, axis=2) == mask.sum(axis=2, keepdims=True)) * mask
    rewards = rewards[:, :, None] * last - cost
    if not algorithm.critic:
        gains = generalized_advantages(rewards, jnp.zeros_like(rewards), mask, gae_lambda=1.0)
        return _whiten(gains, mask), None, None
    values = mask * _by_parts(
        lambda critic, part: critic_values(critic, part.prompts, part.tokens, config),
        state.critic, read, config,
    )
    gains = generalized_advantages(rewards, values, mask, algorithm.gae_lambda)
    return _whiten(gains, mask), gains + values, values


def _tag_values(rewards: jax.Array, rollouts: Rollouts, num_strategies: int) -> jax.Array:
    """Mean reward `[P, S]` of each tag's valid samples; a tag without any has that of all."""
    valid = rollouts.valid[:, :, None]
    of_tag = (rollouts.tags[:, :, None] == jnp.arange(num_strategies)[None, None]) & valid
    mean_of_all, means = (
        losses.masked_mean(rewards[:, :, None], samples.astype(jnp.float32), axis=1)[:, 0]
        for samples in (valid, of_tag)
    )
    return jnp.where(of_tag.any(axis=1), means, mean_of_all)


def _select(
    algorithm: Algorithm,
    log_probs: jax.Array,
    entropy: jax.Array | None,
    advantage: jax.Array,
    mask: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """The tokens `[P, G, N]` that train, and those under KL-Cov's penalty (None without it)."""
    selected, held = mask, None
    if algorithm.top_entropy < 1:
        selected = losses.top_entropy_mask(entropy, mask, algorithm.top_entropy)
    if algorithm.clip_cov or algorithm.kl_cov:
        cov = losses.covariance(log_probs, advantage, mask)
    if algorithm.clip_cov:
        selected = selected * losses.clip_cov_mask(cov, mask, key, algorithm.clip_cov, 1.0, 5.0)
    if algorithm.kl_cov:
        held = losses.top_covariance(cov, mask, algorithm.kl_cov)
    return selected, held


def read_rollouts(prompts: PromptBatch, rollouts: Rollouts, algorithm: Algorithm) -> Experience:
    """What the rollouts say by themselves: tokens, and which of them train."""
    length = 1 if algorithm.on_fork else rollouts.tokens.shape[2]
    tokens, given = rollouts.tokens[:, :, :length], rollouts.given
    first = jnp.arange(length)[None, None] == 0
    drawn = ~(given[:, :, None] & first)  # not a tag that was given
    mask = rollouts.mask[:, :, :length] & drawn & rollouts.valid[:, :, None]
    if algorithm.positions == "fork_exact":  # all given, and one distribution for the prompt
        mask = jnp.broadcast_to(rollouts.valid.any(axis=1)[:, None, None], mask.shape)
    mask = mask.astype(jnp.float32)
    return Experience(
        prompts=prompts,
        tokens=tokens,
        given=given,
        mask=mask,
        selected=mask,
        old_log_probs=rollouts.log_probs[:, :, :length],
        advantages=jnp.zeros_like(mask),
        sound=jnp.isfinite(rollouts.rewards).all(axis=1),
    )


def _by_parts(
    function: Callable[[Any, Experience], Result], params: Any, read: Experience, config: RLConfig
) -> Result:
    """What `function(params, samples)` makes, arrays `[P, G, N]`, one microbatch after another.

    That bounds its memory. Look at it under the mask: behind a part's longest sample it may be 0.
    """
    num_parts = config.num_minibatches * config.num_microbatches

    def of_rows(params: Any, read: Experience) -> Result:
        of_part = partial(function, params)
        lengths = part_lengths(read, config)
        if len(lengths) == 1:
            found = jax.lax.map(of_part, split_parts(read, num_parts))
            return jax.tree.map(lambda x: x.reshape(read.tokens.shape), found)

        def padded(part: Experience) -> Result:
            missing = read.tokens.shape[2] - part.tokens.shape[2]
            return jax.tree.map(
                lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, missing))), of_part(part)
            )

        parts, order = split_by_length(read, num_parts)
        found = jax.lax.map(lambda part: at_own_length(padded, part, lengths), parts)
        back = jnp.argsort(order)
        return jax.tree.map(
            lambda x: x.reshape(order.size, -1)[back].reshape(read.tokens.shape), found
        )

    return by_device(of_rows, params, read, part_unit(read, num_parts, config))


def _score(
    params: Any, read: Experience, config: RLConfig, filters: Filters | None = None
) -> tuple[jax.Array, jax.Array]:
    """`score` by parts."""
    return _by_parts(
        lambda params, part: score(
            params, part.prompts, part.tokens, part.given, config, filters
        ),
        params, read, config,
    )


def _policy_scores(
    params: Any, read: Experience, config: RLConfig
) -> tuple[jax.Array, jax.Array | None]:
    """Log-probs and entropies `[P, G, N]` before the update, the entropies where they are read."""
    if not config.algorithm.reads_entropy:
        return read.old_log_probs, None
    if config.algorithm.positions == "fork_exact":
        entropy = losses.token_entropy(tag_log_probs(params, read.prompts, config))
        return read.old_log_probs, jnp.broadcast_to(entropy[:, None, None], read.mask.shape)
    return _score(params, read, config)


def _reference_log_probs(reference: Any, read: Experience, config: RLConfig) -> jax.Array:
    # Without truncation: what the reference would cut off is unlikely there, not impossible.
    whole = Filters(temperature=config.rollout.temperature)
    return _score(reference, read, config, whole)[0]


def make_experience(
    state: PolicyState, prompts: PromptBatch, rollouts: Rollouts, key: jax.Array, config: RLConfig
) -> tuple[Experience, Metrics]:
    """Everything that is known before the first gradient: references, advantages, selections."""
    algorithm = config.algorithm
    read = read_rollouts(prompts, rollouts, algorithm)
    old, mask = read.old_log_probs, read.mask
    log_probs, entropy = _policy_scores(state.params, read, config)

    metrics: Metrics = {}
    reference, cost = None, jnp.zeros_like(mask)
    if algorithm.kl_coef and algorithm.positions != "fork_exact":
        reference = _reference_log_probs(state.reference, read, config)
        kl = losses.kl_estimate(old, reference, "k3")
        metrics["kl"] = losses.masked_mean(kl, mask)
        if algorithm.kl_in_reward:
            cost = algorithm.kl_coef * losses.kl_estimate(old, reference, "k1") * mask

    returns = values = tag_values = None
    rewards = rollouts.worth(algorithm.penalty)
    if algorithm.grouped:
        advantage = _group_advantages(algorithm, cost.sum(axis=2), rollouts)
        advantage = jnp.broadcast_to(advantage[:, :, None], mask.shape)
    else:
        advantage, returns, values = _token_advantages(state, read, cost, rewards, config)
    if algorithm.positions == "fork_exact":
        tag_values = _tag_values(rewards, rollouts, config.model.num_strategies)
    if algorithm.entropy_shaping:
        advantage = advantages.entropy_shaped(advantage, entropy, alpha=algorithm.entropy_shaping)
    if algorithm.mask_truncated:  # after the baselines, which they are part of
        mask = mask * rollouts.ended[:, :, None]
    selected, held = _select(algorithm, log_probs, entropy, advantage, mask, key)
    experience = read.replace(
        mask=mask,
        selected=selected,
        entropy=entropy,
        reference_log_probs=reference,
        advantages=jax.lax.stop_gradient(advantage),
        held=held,
        returns=returns,
        old_values=values,
        tag_values=tag_values,
    )
    return experience, metrics
