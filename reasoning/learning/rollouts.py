"""Rollouts: what the policy wrote for a batch of prompts, and what it was worth.

    rollouts = roll_out(params, prompts, key, ...)                    sampler and reward, jitted
    prompts, rollouts, drawn = refill(roll_out, prompts, key, ...)    dynamic sampling (DAPO)

Axes: P prompts of T tokens, G samples of each, N completion tokens (the strategy tag is the first).
"""

import dataclasses
import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp

from reasoning.learning.algorithms import Penalty
from reasoning.learning.losses import masked_mean
from reasoning.models.config import ModelConfig
from reasoning.rewards import shaping
from reasoning.rewards.verdicts import (
    REASONS,
    Completions,
    RewardFn,
    Verdicts,
    check_shapes,
    reason_id,
    reward_name,
)
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG, STOP_EOS, Samples, sequence_keys
from reasoning.sampling.slots import sampler_for

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class PromptBatch:
    """P prompts, padded on the left.

    Attributes:
      ids, mask: `[P, T]` int32.
      index: `[P]` int32, the prompt's number in its data set; a sample's key depends on it.
      metadata: pytree of arrays `[P, ...]`, what the reward needs to know of the problem.
    """

    ids: Any
    mask: Any
    index: Any
    metadata: Any


@flax.struct.dataclass
class Rollouts:
    """G completions of each of P prompts, judged.

    Attributes:
      tokens: `[P, G, N]` int32, mask: bool, log_probs: float32, as in `Samples`.
      tags: `[P, G]` int32, -1 where the completion opened with no tag.
      given: `[P, G]` bool, the tag was given and not drawn by the policy.
      ended: `[P, G]` bool, the completion has its <eos>.
      rewards: `[P, G]` float32, the weighted sum of `parts`.
      parts: name -> `[P, G]` float32: the task's reward and each shaping term, unweighted.
      patterns: "truncated", "repetition", "garbled" -> `[P, G]` bool, whether it was found.
      reasons: `[P, G]` int32, index into REASONS.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    tags: jax.Array
    given: jax.Array
    ended: jax.Array
    rewards: jax.Array
    parts: dict[str, jax.Array]
    patterns: dict[str, jax.Array]
    reasons: jax.Array

    @property
    def penalised(self) -> jax.Array:
        """`[P, G]` bool: some unexpected pattern was found (T1, 2501.11651)."""
        return reduce(operator.or_, self.patterns.values())

    @property
    def valid(self) -> jax.Array:
        """`[P, G]` bool: the reward judged it; what it skipped is in no baseline and no loss."""
        return self.reasons != reason_id("skipped")

    def worth(self, penalty: Penalty) -> jax.Array:
        """Rewards `[P, G]`, -1 for penalised samples unless there is no penalty."""
        return self.rewards if penalty == "none" else jnp.where(self.penalised, -1.0, self.rewards)


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How prompts are sampled and shaped.

    Attributes:
      num_samples: G.
      max_new_tokens: N, tag and <eos> included.
      tags: "own" (the policy draws them) or "stratified" (every tag equally often).
      early_exit: end the sampler's loop when every row has ended, and let an update's parts be as
        long as their samples; not under vmap, which would compute every length.
      num_slots: rows that a device samples at a time, each going on with the next sample when its
        own has ended (not under vmap, nor on a mesh that cuts the parameters); None: a row for
        every sample.
      temperature, top_k, top_p, min_p: the distribution that is sampled from, and trained.
      repetition_weight: of minus the share of repeated n-grams (2502.03373).
      overlong_weight: of DAPO's soft punishment over the last `overlong_buffer` tokens.
      overlong_buffer: its length in tokens.
      repetition_ngram, repetition_count: an n-gram that occurs so often is a penalised pattern.

    Raises:
      ValueError: a value outside its range.
    """

    num_samples: int = 16
    max_new_tokens: int = 64
    tags: Literal["own", "stratified"] = "own"
    early_exit: bool = True
    num_slots: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_weight: float = 0.0
    overlong_weight: float = 0.0
    overlong_buffer: int = 8
    repetition_ngram: int = 7
    repetition_count: int = 3

    def __post_init__(self) -> None:
        self.filters.check()
        if self.temperature == 0:
            raise ValueError("temperature=0: greedy samples of a prompt are all alike; raise it.")
        if self.tags not in ("own", "stratified"):
            raise ValueError(f"tags={self.tags!r}: must be own or stratified.")
        for name in ("num_samples", "max_new_tokens", "num_slots", "overlong_buffer",
                     "repetition_ngram"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1.")
        if self.num_slots is not None and not self.early_exit:
            raise ValueError(
                f"num_slots={self.num_slots}: rows that take up new samples end when all are "
                "written; needs early_exit."
            )
        if self.repetition_count < 2:
            raise ValueError(
                f"repetition_count={self.repetition_count}: must be at least 2; every n-gram "
                "occurs once."
            )
        if self.overlong_weight and self.overlong_buffer > self.max_new_tokens:
            raise ValueError(
                f"overlong_buffer={self.overlong_buffer}: must be at most "
                f"max_new_tokens={self.max_new_tokens}."
            )

    @property
    def filters(self) -> Filters:
        """Temperature, top-k, top-p and min-p as the sampler takes them."""
        return Filters(self.temperature, self.top_k, self.top_p, self.min_p)


def sample_tags(rollout: RolloutConfig, num_strategies: int, num_prompts: int) -> jax.Array:
    """The tags `[P, G]` to sample under: OWN_TAG, or each tag equally often.

    Raises:
      ValueError: stratified samples cannot be shared equally among the tags.
    """
    shape = (num_prompts, rollout.num_samples)
    if rollout.tags == "own":
        return jnp.full(shape, OWN_TAG, jnp.int32)
    if rollout.num_samples % num_strategies:
        raise ValueError(
            f"num_samples={rollout.num_samples}: stratified draws need a multiple of "
            f"num_strategies={num_strategies}."
        )
    return jnp.broadcast_to(jnp.arange(rollout.num_samples) % num_strategies, shape)


def draw(
    params: Any,
    prompts: PromptBatch,
    key: jax.Array,
    *,
    config: ModelConfig,
    rollout: RolloutConfig,
    stop_ids: tuple[int, ...],
    pad_id: int,
) -> Samples:
    """G samples of each prompt, `[P * G, ...]`."""
    num_prompts = prompts.ids.shape[0]
    how = sampler_for(
        num_prompts, rollout.num_samples, rollout.num_slots, early_exit=rollout.early_exit
    )
    return how(
        params,
        prompts.ids,
        prompts.mask,
        sample_tags(rollout, config.num_strategies, num_prompts),
        sequence_keys(key, prompts.index, rollout.num_samples),
        rollout.filters,
        config=config,
        max_new_tokens=rollout.max_new_tokens,
        stop_ids=stop_ids,
        pad_id=pad_id,
    )


def shaped(
    samples: Samples, reward: jax.Array, rollout: RolloutConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The rewards `[B]` with the shaping terms that have a weight, and all parts, unweighted."""
    parts, total = {"task": reward}, reward
    if rollout.repetition_weight:
        parts["repetition"] = -shaping.repetition_fraction(
            samples.tokens, _text_mask(samples), rollout.repetition_ngram
        )
        total = total + rollout.repetition_weight * parts["repetition"]
    if rollout.overlong_weight:
        parts["overlong"] = shaping.soft_overlong(
            samples.mask.sum(axis=1), rollout.max_new_tokens, rollout.overlong_buffer
        )
        total = total + rollout.overlong_weight * parts["overlong"]
    return total, parts


def find_patterns(
    samples: Samples, rollout: RolloutConfig, allowed: jax.Array
) -> dict[str, jax.Array]:
    """T1's unexpected patterns by name, `[B]` bool each."""
    repeated = shaping.repeats(
        samples.tokens, _text_mask(samples), rollout.repetition_ngram, rollout.repetition_count
    )
    return {
        "truncated": samples.stop_reason != STOP_EOS,
        "repetition": repeated,
        "garbled": shaping.garbled(samples.tokens, samples.mask, allowed),
    }


def _text_mask(samples: Samples) -> jax.Array:
    return samples.mask.at[:, 0].set(False)  # the tag is no text


def assemble(
    samples: Samples,
    verdicts: Verdicts,
    *,
    rollout: RolloutConfig,
    config: ModelConfig,
    allowed: jax.Array,
    name: str = "reward",
) -> Rollouts:
    """Samples and their verdicts, with shaping terms and patterns, as `[P, G, ...]`.

    Args:
      allowed: `[V]` bool, ids that a completion may hold after its tag; others are garble.
      name: of the reward in error messages.

    Raises:
      ValueError: verdicts of a wrong shape or dtype.
    """
    check_shapes(verdicts, len(samples.tokens), name)
    rewards, parts = shaped(samples, verdicts.reward, rollout)
    patterns = find_patterns(samples, rollout, allowed)
    # A pattern explains a failure better than the verifier's word on what is left of the text.
    wrong = (verdicts.reward <= 0) & (verdicts.reason != reason_id("skipped"))
    reasons = verdicts.reason
    for pattern in ("garbled", "repetition"):
        reasons = jnp.where(patterns[pattern] & wrong, reason_id(pattern), reasons)
    rows = Rollouts(
        tokens=samples.tokens,
        mask=samples.mask,
        log_probs=samples.log_probs,
        tags=samples.tags,
        given=jnp.full(rewards.shape, rollout.tags == "stratified"),
        ended=samples.stop_reason == STOP_EOS,
        rewards=rewards,
        parts=parts,
        patterns=patterns,
        reasons=reasons,
    )
    return jax.tree.map(lambda x: x.reshape(-1, rollout.num_samples, *x.shape[1:]), rows)


def roll_out(
    params: Any,
    prompts: PromptBatch,
    key: jax.Array,
    *,
    config: ModelConfig,
    rollout: RolloutConfig,
    reward: RewardFn,
    allowed: jax.Array,
    stop_ids: tuple[int, ...],
    pad_id: int,
) -> Rollouts:
    """Sample, judge and shape; traceable where the reward is written in jnp.

    Args:
      allowed: `[V]` bool, ids that a completion may hold after its tag; others are garble.

    Raises:
      ValueError: while tracing, verdicts of a wrong shape or dtype; names the reward.
    """
    samples = draw(
        params, prompts, key, config=config, rollout=rollout, stop_ids=stop_ids, pad_id=pad_id
    )
    repeat = partial(jnp.repeat, repeats=rollout.num_samples, axis=0)
    verdicts = reward(
        repeat(prompts.ids),
        Completions(samples.tokens, samples.mask),
        jax.tree.map(repeat, prompts.metadata),
    )
    return assemble(
        samples, verdicts, rollout=rollout, config=config, allowed=allowed,
        name=reward_name(reward),
    )


def informative(rollouts: Rollouts, penalty: Penalty = "none") -> jax.Array:
    """`[P]` bool: the group's valid samples are not all worth the same: it has a gradient.

    Args:
      penalty: the algorithm's, for what trains is the reward after it.
    """
    worth, valid = rollouts.worth(penalty), rollouts.valid
    highest = jnp.max(worth, axis=1, where=valid, initial=-jnp.inf)
    lowest = jnp.min(worth, axis=1, where=valid, initial=jnp.inf)
    differ = highest > lowest
    if penalty == "after":  # the advantage -1 is no difference: the whole group may have it
        differ |= (highest == lowest) & jnp.any(valid & rollouts.penalised, axis=1)
    return differ


def rollout_metrics(rollouts: Rollouts, num_strategies: int) -> Metrics:
    """What a batch of rollouts looks like, under TRL's names where it has them.

    After dynamic sampling this is the batch that trains. Rewards are those of valid samples.
    """
    return {
        **_reward_metrics(rollouts),
        **_length_metrics(rollouts),
        **_tag_metrics(rollouts, num_strategies),
        **{f"reasons/{name}": (rollouts.reasons == i).mean() for i, name in enumerate(REASONS)},
        **{f"patterns/{name}": found.mean() for name, found in rollouts.patterns.items()},
        "penalised": rollouts.penalised.mean(),
        "num_tokens": rollouts.mask.sum(),
    }


def _reward_metrics(rollouts: Rollouts) -> Metrics:
    valid = rollouts.valid.astype(jnp.float32)
    metrics = {
        "reward": masked_mean(rollouts.rewards, valid),
        "reward_std": _std(rollouts.rewards, valid, axis=1, ddof=1).mean(),
        "frac_reward_zero_std": 1.0 - informative(rollouts).mean(),
        "rewards/skipped": 1.0 - valid.mean(),
    }
    for name, part in rollouts.parts.items():
        metrics[f"rewards/{name}/mean"] = masked_mean(part, valid)
        metrics[f"rewards/{name}/std"] = _std(part, valid, axis=None, ddof=0)
    return metrics


def _std(values: jax.Array, valid: jax.Array, axis: int | None, ddof: int) -> jax.Array:
    """Deviation of the valid values along an axis that is kept; a single one has none."""
    squares = (values - masked_mean(values, valid, axis)) ** 2 * valid
    count = jnp.sum(valid, axis=axis, keepdims=axis is not None)
    total = jnp.sum(squares, axis=axis, keepdims=axis is not None)
    return jnp.sqrt(total / jnp.maximum(count - ddof, 1.0))


def _length_metrics(rollouts: Rollouts) -> Metrics:
    lengths, ended = rollouts.mask.sum(axis=2), rollouts.ended
    shortest = jnp.min(lengths, where=ended, initial=rollouts.mask.shape[2])
    return {
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/mean_terminated_length": masked_mean(lengths, ended),
        # 0 where none has ended, as TRL has it.
        "completions/min_terminated_length": jnp.where(ended.any(), shortest, 0),
        "completions/max_terminated_length": jnp.max(lengths, where=ended, initial=0),
        "completions/clipped_ratio": 1.0 - ended.mean(),
    }


def _tag_metrics(rollouts: Rollouts, num_strategies: int) -> Metrics:
    """Each tag's share of the samples and mean reward `[S]`, and the entropy of the shares."""
    tags = jnp.arange(num_strategies)[None, None]
    of_tag = (rollouts.tags[:, :, None] == tags).astype(jnp.float32)
    counts = of_tag.sum(axis=(0, 1))
    share = counts / jnp.maximum(counts.sum(), 1.0)
    judged = of_tag * rollouts.valid[:, :, None]
    rewards = jnp.einsum("pg,pgs->s", rollouts.rewards, judged)
    return {
        "tags/share": share,
        "tags/entropy": -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-9))),
        "tags/reward": rewards / jnp.maximum(judged.sum(axis=(0, 1)), 1.0),
    }


def drawn_metrics(rollouts: Rollouts, penalty: Penalty) -> Metrics:
    """What a round of dynamic sampling drew, kept or not; those of several rounds add up."""
    valid = rollouts.valid
    return {
        "num_tokens": rollouts.mask.sum(),
        "sampling/rounds": jnp.ones((), jnp.int32),
        "sampling/groups": jnp.asarray(len(valid), jnp.int32),
        "sampling/informative_groups": informative(rollouts, penalty).sum(),
        "sampling/reward": masked_mean(rollouts.rewards, valid),
        "sampling/reward_nan": jnp.sum(~jnp.isfinite(rollouts.rewards)),
    }


def refill(
    sample_round: Callable[[PromptBatch, jax.Array], Rollouts],
    prompts: PromptBatch,
    key: jax.Array,
    num_prompts: int,
    penalty: Penalty = "none",
) -> tuple[PromptBatch, Rollouts, Metrics]:
    """Dynamic sampling in static shapes: groups without a gradient make room for others.

    The prompts `[R * P]` are R rounds of P. The first round is always drawn; a further one only
    while some group is uninformative, and its informative groups take the places of those (DAPO,
    2503.14476 eq. 11).

    Args:
      penalty: the algorithm's (`informative`).

    Returns:
      the prompts `[P]` and rollouts `[P, G]` that were kept, and `drawn_metrics` of all that were
      drawn.
    """
    rounds = prompts.ids.shape[0] // num_prompts

    def draw_round(r: jax.Array) -> tuple[PromptBatch, Rollouts]:
        batch = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, r * num_prompts, num_prompts), prompts
        )
        return batch, sample_round(batch, key)

    def one_more(carry: tuple) -> tuple:
        kept, drawn = carry
        new = draw_round(drawn["sampling/rounds"])
        # Old informative groups first, then new informative ones, then what is left of the old.
        both = jax.tree.map(lambda old, fresh: jnp.concatenate([old, fresh]), kept, new)
        is_new = jnp.arange(2 * num_prompts) >= num_prompts
        rank = jnp.where(informative(both[1], penalty), 0, 2) + jnp.where(is_new, 1, 0)
        order = jnp.argsort(rank, stable=True)[:num_prompts]
        drawn = jax.tree.map(jnp.add, drawn, drawn_metrics(new[1], penalty))
        return jax.tree.map(lambda x: x[order], both), drawn

    def lacking(carry: tuple) -> jax.Array:
        (_, rollouts), drawn = carry
        return (drawn["sampling/rounds"] < rounds) & ~jnp.all(informative(rollouts, penalty))

    first = draw_round(jnp.zeros((), jnp.int32))
    start = first, drawn_metrics(first[1], penalty)
    (prompts, rollouts), drawn = jax.lax.while_loop(lacking, one_more, start)
    # Rounds are of one size: the mean of all that was drawn is that of the rounds' means.
    drawn["sampling/reward"] /= drawn["sampling/rounds"]
    return prompts, rollouts, drawn
