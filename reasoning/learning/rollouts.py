"""Rollouts: what the policy wrote for a batch of prompts, and what it was worth.

    rollouts = roll_out(params, prompts, key, ...)          sampler and reward, one program
    rollouts = refill(roll_out, prompts, key, ...)          dynamic sampling (DAPO, 2503.14476)

Axes: P prompts of T tokens, G samples of each, N completion tokens (the strategy tag is the first).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp

from reasoning.learning.losses import masked_mean
from reasoning.models.config import ModelConfig
from reasoning.rewards import shaping
from reasoning.rewards.verdicts import REASONS, Completions, RewardFn, Verdicts
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG, STOP_EOS, Samples, sample, sequence_keys


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
      penalised: `[P, G]` bool, an unexpected pattern was found.
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
    penalised: jax.Array
    reasons: jax.Array


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How prompts are sampled and shaped.

    Attributes:
      num_samples: G.
      max_new_tokens: N, tag and <eos> included.
      tags: "own" (the policy draws them) or "stratified" (every tag equally often).
      early_exit: end the sampler's loop when every row has ended (not under vmap).
      temperature, top_p, min_p: the distribution that is sampled from, and trained.
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
    temperature: float = 1.0
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
        for name in ("num_samples", "max_new_tokens", "overlong_buffer", "repetition_ngram"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1.")
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
        """Temperature, top-p and min-p as the sampler takes them."""
        return Filters(temperature=self.temperature, top_p=self.top_p, min_p=self.min_p)


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
    eos_id: int,
    pad_id: int,
) -> Samples:
    """G samples of each prompt, `[P * G, ...]`."""
    num_prompts = prompts.ids.shape[0]
    return sample(
        params,
        prompts.ids,
        prompts.mask,
        sample_tags(rollout, config.num_strategies, num_prompts),
        sequence_keys(key, prompts.index, rollout.num_samples),
        rollout.filters,
        config=config,
        max_new_tokens=rollout.max_new_tokens,
        eos_id=eos_id,
        pad_id=pad_id,
        early_exit=rollout.early_exit,
    )


def assemble(
    samples: Samples,
    verdicts: Verdicts,
    *,
    rollout: RolloutConfig,
    config: ModelConfig,
    allowed: jax.Array,
) -> Rollouts:
    """Samples and their verdicts, with shaping terms and patterns, as `[P, G, ...]`.

    Args:
      allowed: `[V]` bool, ids that a completion may hold after its tag; others are garble.
    """
    ended = samples.stop_reason == STOP_EOS
    text_mask = samples.mask.at[:, 0].set(False)  # the tag is no text
    repeated = shaping.repeats(
        samples.tokens, text_mask, rollout.repetition_ngram, rollout.repetition_count
    )
    garbled = shaping.garbled(samples.tokens, samples.mask, allowed)
    lengths = samples.mask.sum(axis=1)
    parts = {"task": verdicts.reward}
    weights = {"task": 1.0}
    if rollout.repetition_weight:
        parts["repetition"] = -shaping.repetition_fraction(
            samples.tokens, text_mask, rollout.repetition_ngram
        )
        weights["repetition"] = rollout.repetition_weight
    if rollout.overlong_weight:
        parts["overlong"] = shaping.soft_overlong(
            lengths, rollout.max_new_tokens, rollout.overlong_buffer
        )
        weights["overlong"] = rollout.overlong_weight
    # A pattern explains a failure better than the verifier's word on what is left of the text.
    wrong = verdicts.reward <= 0
    reasons = verdicts.reason
    for pattern, found in (("garbled", garbled), ("repetition", repeated)):
        reasons = jnp.where(found & wrong, REASONS.index(pattern), reasons)
    rows = Rollouts(
        tokens=samples.tokens,
        mask=samples.mask,
        log_probs=samples.log_probs,
        tags=samples.tags,
        given=jnp.full(ended.shape, rollout.tags == "stratified"),
        ended=ended,
        rewards=sum(weights[name] * part for name, part in parts.items()),
        parts=parts,
        penalised=~ended | repeated | garbled,
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
    eos_id: int,
    pad_id: int,
) -> Rollouts:
    """Sample, judge and shape; traceable where the reward is written in jnp."""
    samples = draw(
        params, prompts, key, config=config, rollout=rollout, eos_id=eos_id, pad_id=pad_id
    )
    repeat = partial(jnp.repeat, repeats=rollout.num_samples, axis=0)
    verdicts = reward(
        repeat(prompts.ids),
        Completions(samples.tokens, samples.mask),
        jax.tree.map(repeat, prompts.metadata),
    )
    return assemble(samples, verdicts, rollout=rollout, config=config, allowed=allowed)


def informative(rollouts: Rollouts) -> jax.Array:
    """`[P]` bool: the group's rewards are not all alike, so that it has a gradient."""
    return rollouts.rewards.max(axis=1) > rollouts.rewards.min(axis=1)


def rollout_metrics(rollouts: Rollouts, num_strategies: int) -> dict[str, jax.Array]:
    """What a batch of rollouts looks like, under TRL's names where it has them."""
    lengths = rollouts.mask.sum(axis=2)
    ended = rollouts.ended
    ddof = min(rollouts.rewards.shape[1] - 1, 1)  # a single sample has the std 0
    of_tag = (rollouts.tags[:, :, None] == jnp.arange(num_strategies)[None, None]).astype(
        jnp.float32
    )
    counts = of_tag.sum(axis=(0, 1))
    share = counts / jnp.maximum(counts.sum(), 1.0)
    parts = {}
    for name, part in rollouts.parts.items():
        parts[f"rewards/{name}/mean"] = part.mean()
        parts[f"rewards/{name}/std"] = part.std()
    return {
        "reward": rollouts.rewards.mean(),
        "reward_std": rollouts.rewards.std(axis=1, ddof=ddof).mean(),
        "frac_reward_zero_std": 1.0 - informative(rollouts).mean(),
        **parts,
        "completions/mean_length": lengths.mean(),
        "completions/max_length": lengths.max(),
        "completions/mean_terminated_length": masked_mean(lengths, ended),
        "completions/clipped_ratio": 1.0 - ended.mean(),
        "penalised": rollouts.penalised.mean(),
        "num_tokens": lengths.sum(),
        "tags/share": share,
        "tags/entropy": -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-9))),
        "tags/reward": jnp.einsum("pg,pgs->s", rollouts.rewards, of_tag) / jnp.maximum(counts, 1.0),
    }


def refill(
    sample_round: Callable[[PromptBatch, jax.Array], Rollouts],
    prompts: PromptBatch,
    key: jax.Array,
    num_prompts: int,
) -> tuple[PromptBatch, Rollouts, jax.Array]:
    """Dynamic sampling in static shapes: groups whose rewards are all alike make room for others.

    The prompts `[R * P]` are R rounds of P. The first round is always drawn; a further one only
    while some group is uninformative, and its informative groups take the places of those.

    Returns:
      the prompts `[P]` and rollouts `[P, G]` that were kept, and the number of rounds drawn.
    """
    rounds = prompts.ids.shape[0] // num_prompts

    def take(r: jax.Array) -> PromptBatch:
        return jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, r * num_prompts, num_prompts), prompts
        )

    def one_more(carry: tuple) -> tuple:
        r, kept = carry
        new = take(r), sample_round(take(r), key)
        # Old informative groups first, then new informative ones, then what is left of the old.
        both = jax.tree.map(lambda old, fresh: jnp.concatenate([old, fresh]), kept, new)
        good = informative(both[1])
        is_new = jnp.arange(2 * num_prompts) >= num_prompts
        rank = jnp.where(good, 0, 2) + jnp.where(is_new, 1, 0)
        order = jnp.argsort(rank, stable=True)[:num_prompts]
        return r + 1, jax.tree.map(lambda x: x[order], both)

    def lacking(carry: tuple) -> jax.Array:
        r, (_, rollouts) = carry
        return (r < rounds) & ~jnp.all(informative(rollouts))

    first = take(jnp.zeros((), jnp.int32))
    start = jnp.ones((), jnp.int32), (first, sample_round(first, key))
    drawn, (prompts, rollouts) = jax.lax.while_loop(lacking, one_more, start)
    return prompts, rollouts, drawn
