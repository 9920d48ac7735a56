"""Sampling: prefill and decode in one jitted program.

The prompt is read once, and its G samples look at one copy of its keys and values; their own cache
grows with what is written, so that early tokens do not look at the slots of late ones. Rows that
have stopped write padding until all have, and the loop then ends early (`reasoning.sampling.slots`
gives their places to others). Every sequence has a key of its own: what it says does not depend on
who shares its batch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from reasoning.models.axes import by_device, constrain, in_force, rows_apart
from reasoning.models.cache import KVCache, grow_cache, init_cache, repeat_rows
from reasoning.models.config import ModelConfig
from reasoning.models.strategies import id_to_tag
from reasoning.models.transformer import Transformer, params_for_sampling
from reasoning.sampling import budgets
from reasoning.sampling.draws import (
    OWN_TAG,
    draw_tokens,
    ends_at,
    open_and_score,
    probability_gap,
)
from reasoning.sampling.filters import Filters

STOP_EOS, STOP_LENGTH = 0, 1  # values of Samples.stop_reason
LEAST_GROWTH, MOST_STAGES = 32, 4  # the loop is compiled once for each stage of the cache


@flax.struct.dataclass
class Samples:
    """G completions for each of P prompts; B = P * G rows, the samples of a prompt adjacent.

    Attributes:
      tokens: `[B, N]` int32: the strategy tag, the trace and the answer, <eos>, then padding.
      mask: `[B, N]` bool: the completion's tokens, <eos> included.
      log_probs: `[B, N]` float32 of each token under the distribution that was sampled from
        (temperature and filters applied; temperature 0 is scored as temperature 1); 0 in
        padding. A token that was not drawn but given (a tag, a branch, what a budget writes) has
        the log-prob with which the policy would draw it at temperature 1.
      tags: `[B]` int32 in 0..S-1, -1 where the policy opened with a token that is no tag.
      stop_reason: `[B]` int32, STOP_EOS or STOP_LENGTH.
      gaps: `[B, N]` float32, how far the probability of the likeliest token is above that of the
        next, at temperature 1 and without filters; 0 in padding. None unless asked for.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    tags: jax.Array
    stop_reason: jax.Array
    gaps: jax.Array | None = None


def sequence_keys(key: jax.Array, prompt_ids: jax.Array, num_samples: int) -> jax.Array:
    """One key per sequence `[P, G]` from the run's (or step's) key and the prompts' ids `[P]`."""
    per_prompt = jax.vmap(lambda index: jax.random.fold_in(key, index))(prompt_ids)
    samples = jnp.arange(num_samples)
    return jax.vmap(lambda k: jax.vmap(lambda g: jax.random.fold_in(k, g))(samples))(per_prompt)


def pad_prompts(
    prompts: Sequence[Sequence[int]], pad_id: int, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts padded on the left to one length: ids `[P, T]` and mask `[P, T]`, int32.

    Args:
      length: T, at least that of the longest prompt; None: that of the longest prompt.
    """
    length = max(map(len, prompts)) if length is None else length
    ids = np.full((len(prompts), length), pad_id, np.int32)
    mask = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return ids, mask


def check_lengths(config: ModelConfig, prompt_length: int, max_new_tokens: int) -> None:
    """Refuse a prompt that leaves no room for its completion.

    Raises:
      ValueError: prompt and completion together exceed the model's max_length.
    """
    if prompt_length + max_new_tokens > config.max_length:
        raise ValueError(
            f"prompt of {prompt_length} tokens: with max_new_tokens={max_new_tokens} it is longer "
            f"than the cache of max_length={config.max_length}; shorten one of the three."
        )


@partial(
    jax.jit,
    static_argnames=("config", "max_new_tokens", "stop_ids", "pad_id", "early_exit", "with_gaps"),
)
def sample(
    params: Any,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    tags: jax.Array,
    keys: jax.Array,
    filters: Filters,
    *,
    config: ModelConfig,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
    early_exit: bool = True,
    ranks: jax.Array | None = None,
    budget: budgets.Budget | None = None,
    with_gaps: bool = False,
) -> Samples:
    """Complete every prompt G times.

    Args:
      prompts, prompt_mask: `[P, T]`, padded on the left (`pad_prompts`).
      tags: `[P, G]` int32, the strategy of each sample, or OWN_TAG.
      keys: `[P, G]` typed keys, one per sequence (`sequence_keys`).
      filters: temperature, top-k, top-p, min-p (`Filters.check` them first).
      max_new_tokens: N, tag and <eos> included.
      stop_ids: each ends a completion, and is its last token: <eos>.
      early_exit: stop when every row has stopped. Under vmap a loop whose end depends on the data
        copies the whole cache at every step: leave it out there.
      ranks: `[P, G]` int32; where not negative, the first token after a given tag (of the whole
        completion where the tag is the policy's own) is the one of that rank by likelihood, from 0.
      budget: how long to think (`Budget.check` it first).
      with_gaps: also return `Samples.gaps`.

    Raises:
      ValueError: prompt and completion do not fit into the model's max_length.
    """
    check_lengths(config, prompts.shape[1], max_new_tokens)
    write = partial(
        _write, config=config, max_new_tokens=max_new_tokens, stop_ids=stop_ids, pad_id=pad_id,
        early_exit=early_exit, with_gaps=with_gaps,
    )
    rows = prompts, prompt_mask, tags, keys, ranks, budget
    return as_samples(by_device(write, (params, filters), rows), config, stop_ids, len(prompts))


def as_samples(
    written: dict[str, jax.Array], config: ModelConfig, stop_ids: tuple[int, ...], num_prompts: int
) -> Samples:
    """What devices have written for so many prompts, fields `[B, N]` of Samples, and the others.

    It is made whole on every device, for each process to read it; but not where all is in one
    process and they draw apart: none then waits for another.
    """
    if jax.process_count() > 1 or not rows_apart(num_prompts):
        written = {name: constrain(values, None, None) for name, values in written.items()}
    tokens = written["tokens"]
    ended = ends_at(tokens, stop_ids).any(axis=1)
    return Samples(
        **written,
        mask=completion_mask(tokens, stop_ids),
        tags=id_to_tag(config, tokens[:, 0]),
        stop_reason=jnp.where(ended, STOP_EOS, STOP_LENGTH),
    )


def _write(
    policy: tuple[Any, Filters],
    rows: tuple,
    *,
    config: ModelConfig,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
    early_exit: bool,
    with_gaps: bool,
) -> dict[str, jax.Array]:
    """The fields `[B, N]` of Samples that the loop fills.

    Args:
      policy: parameters and filters.
      rows: prompts, their mask, tags, keys, ranks and budget, as of `sample`.
    """
    (params, filters), (prompts, prompt_mask, tags, keys, ranks, budget) = policy, rows
    num_samples, prompt_length = tags.shape[1], prompts.shape[1]
    model, params = Transformer(config), params_for_sampling(config, params)
    logits, cache = prefill(config, params, prompts, prompt_mask)
    logits = jnp.repeat(logits, num_samples, axis=0)
    if num_samples == 1 or in_force():  # where rows are cut over devices by XLA: a copy for each
        prefix, cache = None, repeat_rows(cache, num_samples, config)
    else:
        prefix, cache = cache, init_cache(config, tags.size, 0)
    prompt_lengths = jnp.repeat(prompt_mask.sum(axis=1), num_samples)
    tags, keys = tags.reshape(-1), keys.reshape(-1)
    num_rows = tags.shape[0]

    def write(
        t: jax.Array, logits: jax.Array, thinking: budgets.BudgetState | None
    ) -> tuple[jax.Array, jax.Array, budgets.BudgetState | None]:
        """The next token of each row `[B]` and its log-prob, before rows that are done."""
        drawn, scores = draw_tokens(logits, keys, t, filters)
        token = drawn
        if ranks is not None:
            token = _branch(t, logits, token, tags, ranks.reshape(-1))
        if thinking is not None:
            forced, after = budgets.enforce(budget, thinking, token, ends_at(token, stop_ids))
            token = jnp.where(t > 0, forced, token)
            thinking = jax.tree.map(lambda new, old: jnp.where(t > 0, new, old), after, thinking)
        token, log_prob = open_and_score(config, drawn, scores, logits, tags, t, instead=token)
        return token, log_prob, thinking

    def step(carry: tuple) -> tuple:
        t, logits, cache, done, thinking, written = carry
        token, log_prob, thinking = write(t, logits, thinking)
        token = jnp.where(done, pad_id, token)
        values = {"tokens": token, "log_probs": jnp.where(done, 0.0, log_prob)}
        if with_gaps:
            values["gaps"] = jnp.where(done, 0.0, probability_gap(logits))
        written = {
            name: jax.lax.dynamic_update_slice(written[name], value[:, None], (0, t))
            for name, value in values.items()
        }
        done |= ends_at(token, stop_ids)
        logits, cache = model.apply(
            params, token[:, None], positions=(prompt_lengths + t)[:, None], cache=cache,
            prefix=prefix,
        )
        return t + 1, logits[:, 0], cache, done, thinking, written

    def unfinished(end: int, carry: tuple) -> jax.Array:
        t, done = carry[0], carry[3]
        return (t < end) & ~jnp.all(done) if early_exit else t < end

    empty = jnp.zeros((num_rows, max_new_tokens))
    written = {"tokens": jnp.full(empty.shape, pad_id, jnp.int32), "log_probs": empty}
    carry = (
        jnp.zeros((), jnp.int32),
        logits,
        cache,
        jnp.zeros(num_rows, bool),
        None if budget is None else budgets.start(budget),
        {**written, "gaps": empty} if with_gaps else written,
    )
    # In one stage where parameters are cut: memory binds there, and a growing cache is there twice.
    stages = [max_new_tokens] if in_force() else cache_stages(max_new_tokens)
    for end in stages:
        t, logits, cache, *rest = carry
        slots = end + (prompt_length if prefix is None else 0)
        carry = t, logits, grow_cache(cache, slots), *rest
        carry = jax.lax.while_loop(partial(unfinished, end), step, carry)
    return carry[-1]


def prefill(
    config: ModelConfig, params: Any, prompts: jax.Array, prompt_mask: jax.Array
) -> tuple[jax.Array, KVCache]:
    """Logits `[P, V+S]` behind the prompts `[P, T]`, padded on the left, and a cache of T slots."""
    logits, cache = Transformer(config).apply(
        params, prompts, segment_ids=prompt_mask, cache=init_cache(config, *prompts.shape),
        positions=jnp.maximum(jnp.cumsum(prompt_mask, axis=1) - 1, 0), num_scored=1,
    )
    return logits[:, 0], cache


def cache_stages(max_new_tokens: int) -> list[int]:
    """After how many tokens the cache grows, and their whole number last."""
    count = min(max(max_new_tokens // LEAST_GROWTH, 1), MOST_STAGES)
    growth = -(-max_new_tokens // count)
    return [*range(growth, max_new_tokens, growth), max_new_tokens]


def completion_mask(tokens: jax.Array, stop_ids: tuple[int, ...]) -> jax.Array:
    """Which of the tokens `[..., N]` are the completion's: all up to the first that ends it."""
    stops = ends_at(tokens, stop_ids)
    return (jnp.cumsum(stops, axis=-1) - stops) == 0


def _branch(
    t: jax.Array, logits: jax.Array, token: jax.Array, tags: jax.Array, ranks: jax.Array
) -> jax.Array:
    """At its first free position, the token `[B]` of each row's rank; else the one drawn."""

    def ranked() -> jax.Array:
        order = jnp.argsort(logits, axis=-1, descending=True)
        return jnp.take_along_axis(order, jnp.maximum(ranks, 0)[:, None], axis=1)[:, 0]

    here = (t == jnp.where(tags == OWN_TAG, 0, 1)) & (ranks >= 0)
    # Sorting the vocabulary at every step would cost more than the policy itself.
    likely = jax.lax.cond(t <= 1, ranked, lambda: token.astype(jnp.int32))
    return jnp.where(here, likely.astype(token.dtype), token)
