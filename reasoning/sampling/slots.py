"""Sampling with fewer rows than sequences: when a row stops, the next sequence takes its place.

    samples = sample_in_slots(params, prompts, prompt_mask, tags, keys, filters, num_slots=64)

The same samples as `reasoning.sampling.sampler.sample`, in one compiled loop (what servers call
continuous batching). Where lengths differ a few long completions do not hold up the others: the
loop takes about as many steps as all tokens together need in so many rows. Each prompt is read
once; its keys and values are copied into a row when one of its samples starts there. All rows write
to the same place of the cache, one place further at every step, and begin again at the first after
N: no completion is longer, so that what is overwritten belongs to one that has ended.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from reasoning.models.axes import by_device, rows_apart
from reasoning.models.cache import KVCache, init_cache
from reasoning.models.config import ModelConfig
from reasoning.models.transformer import Transformer, params_for_sampling
from reasoning.sampling.draws import draw_tokens, ends_at, open_and_score
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import (
    Samples,
    as_samples,
    check_lengths,
    prefill,
    sample,
)

# Rows at a time; on two CPU cores twice as fast as 1024 at once, of 45 tokens on average and 98 at
# most. Accelerators are not filled by so few.
CPU_ROWS, ROWS = 128, 1024


def rows_at_a_time(platform: str | None = None) -> int:
    """In how many rows a device samples at most, if nobody says: "cpu", "gpu", "tpu", or jax's."""
    return CPU_ROWS if (platform or jax.default_backend()) == "cpu" else ROWS


def sampler_for(
    num_prompts: int, num_samples: int, num_slots: int | None, early_exit: bool = True
) -> Callable[..., Samples]:
    """`sample_in_slots` where a device has fewer rows than sequences; else `sample`.

    On a mesh whose devices do not go through their rows apart (`rows_apart`) it is `sample`, too.

    Args:
      num_slots: rows at a time on each device; None: one for every sequence.
      early_exit: of `sample`; slots always end early.
    """
    parts = rows_apart(num_prompts)
    if num_slots is None or not parts or num_slots >= num_prompts * num_samples // parts:
        return partial(sample, early_exit=early_exit)
    return partial(sample_in_slots, num_slots=num_slots)


@flax.struct.dataclass
class _Rows:
    """What is going on in R rows, B sequences in all.

    Attributes:
      step: scalar int32, of the loop.
      started: scalar int32, sequences that have got a row.
      over: `[R]` bool, the row has no sequence, or one that has ended.
      sequence: `[R]` int32, which one the row writes.
      t: `[R]` int32, tokens that it has written.
      logits: `[R, V+S]` of the next token.
      cache: T slots of the prompt and N of the completion.
      tokens, log_probs: `[B, N]`, what has been written.
    """

    step: jax.Array
    started: jax.Array
    over: jax.Array
    sequence: jax.Array
    t: jax.Array
    logits: jax.Array
    cache: KVCache
    tokens: jax.Array
    log_probs: jax.Array


@partial(
    jax.jit, static_argnames=("config", "max_new_tokens", "stop_ids", "pad_id", "num_slots")
)
def sample_in_slots(
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
    num_slots: int,
) -> Samples:
    """Complete every prompt G times, in `num_slots` rows at a time.

    The loop's end depends on the data, so that it is not to be vmapped.

    Args:
      prompts, prompt_mask: `[P, T]`, as those that follow, as `sample`.
      tags, keys: `[P, G]`.
      num_slots: R, at most P * G; on a mesh of each device, and at most its part of them.

    Raises:
      ValueError: prompt and completion do not fit into the model's max_length, more rows than
        sequences, or a mesh whose devices do not go through the prompts apart (`rows_apart`).
    """
    check_lengths(config, prompts.shape[1], max_new_tokens)
    parts = rows_apart(len(prompts))
    if not parts:
        raise ValueError(
            f"num_slots={num_slots}: on a mesh that cuts the parameters, or does not divide the "
            f"{len(prompts)} prompts, every sequence has a row of its own; use sample."
        )
    if not 1 <= num_slots <= tags.size // parts:
        raise ValueError(
            f"num_slots={num_slots}: must be between 1 and the {tags.size // parts} sequences of a "
            "device."
        )

    write = partial(
        _write, config=config, max_new_tokens=max_new_tokens, stop_ids=stop_ids, pad_id=pad_id,
        num_slots=num_slots,
    )
    rows = prompts, prompt_mask, tags, keys
    return as_samples(by_device(write, (params, filters), rows), config, stop_ids, len(prompts))


def _write(
    policy: tuple[Any, Filters],
    rows: tuple,
    *,
    config: ModelConfig,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
    num_slots: int,
) -> dict[str, jax.Array]:
    """`tokens` and `log_probs` `[B, N]` of the completions.

    Args:
      policy: parameters and filters.
      rows: prompts, their mask, tags and keys.
    """
    (params, filters), (prompts, prompt_mask, tags, keys) = policy, rows
    num_samples, prompt_length = tags.shape[1], prompts.shape[1]
    tags, keys = tags.reshape(-1), keys.reshape(-1)
    num_sequences = len(tags)
    model, params = Transformer(config), params_for_sampling(config, params)
    first_logits, read = prefill(config, params, prompts, prompt_mask)
    prompt_lengths = prompt_mask.sum(axis=1)

    def start_next(rows: _Rows) -> _Rows:
        """The next sequences in the rows whose own are over, as far as there are any."""
        sequence = rows.started + jnp.cumsum(rows.over) - 1
        starts = rows.over & (sequence < num_sequences)
        sequence = jnp.where(starts, sequence, rows.sequence)
        prompt = sequence // num_samples
        return rows.replace(
            started=rows.started + starts.sum(),
            over=rows.over & ~starts,
            sequence=sequence,
            t=jnp.where(starts, 0, rows.t),
            logits=jnp.where(starts[:, None], first_logits[prompt], rows.logits),
            cache=_put_prompts(rows.cache, read, starts, prompt, config),
        )

    def step(rows: _Rows) -> _Rows:
        # First, so that the layers read what was put: else XLA copies the whole cache to keep both.
        rows = start_next(rows)
        drawn, scores = draw_tokens(rows.logits, keys[rows.sequence], rows.t, filters)
        token, log_prob = open_and_score(
            config, drawn, scores, rows.logits, tags[rows.sequence], rows.t
        )
        # Where a row is over there is no such sequence: nothing is written.
        place = jnp.where(rows.over, num_sequences, rows.sequence), rows.t
        ended = ends_at(token, stop_ids) | (rows.t + 1 == max_new_tokens)
        over = rows.over | ended
        logits, cache = model.apply(
            params, token[:, None], segment_ids=(~over)[:, None].astype(jnp.int32),
            positions=(prompt_lengths[rows.sequence // num_samples] + rows.t)[:, None],
            cache=rows.cache,
        )
        return rows.replace(
            step=rows.step + 1,
            over=over,
            t=rows.t + 1,
            logits=logits[:, 0],
            cache=cache.replace(length=prompt_length + (rows.step + 1) % max_new_tokens),
            tokens=rows.tokens.at[place].set(token, mode="drop"),
            log_probs=rows.log_probs.at[place].set(log_prob, mode="drop"),
        )

    def unfinished(rows: _Rows) -> jax.Array:
        return (rows.started < num_sequences) | ~jnp.all(rows.over)

    nobody, written = jnp.zeros(num_slots, jnp.int32), jnp.zeros((num_sequences, max_new_tokens))
    cache = init_cache(config, num_slots, prompt_length + max_new_tokens)
    rows = _Rows(
        step=jnp.zeros((), jnp.int32),
        started=jnp.zeros((), jnp.int32),
        over=jnp.ones(num_slots, bool),
        sequence=nobody,
        t=nobody,
        logits=first_logits[nobody],
        cache=cache.replace(length=read.length),
        tokens=jnp.full(written.shape, pad_id, jnp.int32),
        log_probs=written,
    )
    rows = jax.lax.while_loop(unfinished, step, rows)
    return {"tokens": rows.tokens, "log_probs": rows.log_probs}


def _put_prompts(
    cache: KVCache, read: KVCache, starts: jax.Array, prompt: jax.Array, config: ModelConfig
) -> KVCache:
    """The cache of R rows with the prompts `[R]` in those that start, which forget all else.

    Args:
      read: the cache of the prompts, T slots.
      starts: `[R]` bool.
    """
    axis = 1 if config.scan_layers else 0
    order = jnp.argsort(~starts, stable=True)  # those that start come first

    def put(i: jax.Array, parts: tuple) -> tuple:
        row = order[i]

        def one(part: jax.Array, prompts: jax.Array) -> jax.Array:
            source = jax.lax.dynamic_slice_in_dim(prompts, prompt[row], 1, axis)
            return jax.lax.dynamic_update_slice(
                part, source, [row if dim == axis else 0 for dim in range(part.ndim)]
            )

        return jax.tree.map(one, parts, (read.keys, read.values))

    # Row by row and in place: about one starts at a step, and to choose between two whole caches
    # would read and write both.
    keys, values = jax.lax.fori_loop(0, starts.sum(), put, (cache.keys, cache.values))

    def begin(old: jax.Array, prompts: jax.Array) -> jax.Array:
        new = jnp.pad(prompts[prompt], ((0, 0), (0, old.shape[1] - prompts.shape[1])))
        return jnp.where(starts[:, None], new, old)

    segments = begin(cache.segment_ids, read.segment_ids)
    return KVCache(keys, values, segments, begin(cache.positions, read.positions), cache.length)
