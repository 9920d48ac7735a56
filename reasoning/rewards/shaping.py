"""Length, repetition and pattern terms on token ids, in jnp.

Terms return a number per row, to be weighted and added to a reward; detectors return a bool per
row, for whoever decides what such a completion is worth. Tokens `[B, N]` come with a mask `[B, N]`
(bool); what stands outside it changes nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from reasoning.data.tasks.base import Task
from reasoning.data.tokenizers import Tokenizer


@partial(jax.jit, static_argnames="n")
def repetition_fraction(tokens: jax.Array, mask: jax.Array, n: int) -> jax.Array:
    """1 - different n-grams / all n-grams: `[B]` float32 in [0, 1), 0 where there is no n-gram.

    Demystifying Long Chain-of-Thought Reasoning in LLMs (arXiv 2502.03373) adds it with the weight
    -1 and n = 3. N-grams are compared exactly, by sorting: O(n N log N) a row.

    Args:
      tokens, mask: `[B, N]`; an n-gram is n neighbouring positions that are all in the mask.

    Raises:
      ValueError: `n` is not positive.
    """
    in_mask, same = _sorted_ngrams(tokens, mask, n, distance=1)
    total = in_mask.sum(axis=1)
    return same.sum(axis=1) / jnp.maximum(total, 1).astype(jnp.float32)


@partial(jax.jit, static_argnames=("n", "count"))
def repeats(tokens: jax.Array, mask: jax.Array, n: int, count: int) -> jax.Array:
    """Whether some n-gram occurs at least `count` times: `[B]` bool.

    T1 (arXiv 2501.11651) punishes repetition by such a rule, and does not give its n and count.
    Occurrences may overlap.

    Args:
      tokens, mask: as for `repetition_fraction`.

    Raises:
      ValueError: `n` is not positive, or `count` is less than 2.
    """
    if count < 2:
        raise ValueError(f"count={count}: every n-gram occurs once; use 2 or more.")
    _, same = _sorted_ngrams(tokens, mask, n, distance=count - 1)
    return same.any(axis=1)


def _sorted_ngrams(
    tokens: jax.Array, mask: jax.Array, n: int, distance: int
) -> tuple[jax.Array, jax.Array]:
    """Compare the n-grams of each row in sorted order.

    Returns:
      `[B, N]` bool, the places that hold an n-gram, which come first; and `[B, N - distance]` bool,
      whether each from place `distance` on equals the one `distance` places before it.
    """
    if n < 1:
        raise ValueError(f"n={n}: an n-gram has at least 1 token.")
    # The n-gram of a place is the n tokens from it on; behind the end there is no token.
    behind = ((0, 0), (0, n - 1))
    tokens, mask = jnp.pad(tokens, behind), jnp.pad(mask.astype(bool), behind)
    length = tokens.shape[1] - n + 1
    grams = [tokens[:, i : i + length] for i in range(n)]
    absent = ~jnp.stack([mask[:, i : i + length] for i in range(n)]).all(axis=0)
    absent, *grams = jax.lax.sort((absent, *grams), dimension=1, num_keys=n + 1)
    # Absent ones are last: where one is present, so is every one before it.
    same = ~absent[:, distance:]
    for gram in grams:
        same &= gram[:, distance:] == gram[:, : max(length - distance, 0)]
    return ~absent, same


def soft_overlong(lengths: jax.Array, max_length: int, buffer: int) -> jax.Array:
    """DAPO's soft punishment of length (arXiv 2503.14476): `[B]` float32 in [-1, 0].

    0 up to max_length - buffer tokens, falling evenly to -1 at max_length, and -1 beyond.

    Args:
      lengths: `[B]`, tokens of each completion.

    Raises:
      ValueError: `buffer` is not in 1..max_length.
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"buffer={buffer}: must lie in 1..max_length={max_length}.")
    left = (max_length - buffer) - lengths.astype(jnp.float32)
    return jnp.clip(left / buffer, -1.0, 0.0)


def cosine_length(
    lengths: jax.Array,
    correct: jax.Array,
    max_length: int,
    right: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (-1.0, -0.5),
) -> jax.Array:
    """The cosine reward of arXiv 2502.03373: `[B]` float32, in place of a reward for correctness.

    A correct completion earns the more the shorter it is; a wrong one loses the more the shorter it
    is, so that a policy thinks longer where it fails. Between its ends the reward follows half a
    cosine; beyond max_length it stays at the last.

    Args:
      lengths: `[B]`, tokens of each completion.
      correct: `[B]` bool.
      right, wrong: the rewards at length 0 and at `max_length`.

    Raises:
      ValueError: `max_length` is not positive.
    """
    if max_length < 1:
        raise ValueError(f"max_length={max_length}: must be positive.")
    progress = jnp.minimum(lengths.astype(jnp.float32) / max_length, 1.0)
    weight = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))  # of the reward at length 0
    first, last = (jnp.where(correct, *ends) for ends in zip(right, wrong))
    return last + (first - last) * weight


def garbled(tokens: jax.Array, mask: jax.Array, allowed: jax.Array) -> jax.Array:
    """Whether a completion has an id that has no business there: `[B]` bool.

    A strategy tag (an id of `len(allowed)` or more) may stand at the first place and nowhere else.

    Args:
      tokens, mask: `[B, N]`.
      allowed: `[V]` bool, the ids of the task's texts (`task_ids`).
    """
    is_tag = tokens >= allowed.shape[0]
    first = (jnp.arange(tokens.shape[1]) == 0)[None]
    known = jnp.asarray(allowed)[jnp.where(is_tag, 0, tokens)]
    return (mask & ~jnp.where(is_tag, first, known)).any(axis=1)


def task_ids(task: Task, tokenizer: Tokenizer) -> np.ndarray:
    """The ids that a task's texts are made of, and <eos>: `[vocab_size]` bool, host array."""
    allowed = np.zeros(tokenizer.vocab_size, bool)
    allowed[tokenizer.eos_id] = True
    for word in (*task.words, *map(str, range(task.max_number + 1))):
        allowed[tokenizer.encode(word)] = True
    return allowed
