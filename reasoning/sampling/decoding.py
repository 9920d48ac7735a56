"""Decoding by more than one draw a token: CoT-decoding, answers after cut thinking, beam search.

CoT-decoding (2402.10200) branches over the likeliest first tokens, goes on greedily and trusts the
paths whose answer is certain:

    paths  = cot_decode(params, prompts, prompt_mask, tags, num_paths=10, ...)   one sampler call
    deltas = mean_gaps(paths.gaps, answer_masks(text_format, paths.tokens, paths.mask, answers))
    answer = the one with the largest sum of deltas (`reasoning.sampling.voting`), among the paths
             whose branch is likely enough: `paths.branch_probs >= floor`

The floor is ours: in a small vocabulary the tenth token is not plausible, as it is in a large
model's, and starts a path that is wrong and certain.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from reasoning.data.formats import TextFormat
from reasoning.models.cache import grow_cache, repeat_rows, take_rows
from reasoning.models.config import ModelConfig
from reasoning.models.strategies import tag_to_id
from reasoning.models.transformer import Transformer, params_for_sampling
from reasoning.sampling.draws import OWN_TAG, ends_at
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import check_lengths, completion_mask, prefill, sample


@flax.struct.dataclass
class CotPaths:
    """The k paths of each of P prompts, the likeliest branch first.

    Attributes:
      tokens, mask: `[P, k, N]` int32 and bool, as in `Samples`.
      log_probs: `[P, k, N]` float32 of each token.
      gaps: `[P, k, N]` float32, the likeliest token's probability less the next one's.
      branch_probs: `[P, k]` float32, the probability of the token that opens the path.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    gaps: jax.Array
    branch_probs: jax.Array


def cot_decode(
    params: Any,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    tags: jax.Array,
    *,
    config: ModelConfig,
    num_paths: int,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
) -> CotPaths:
    """Branch over the k likeliest first tokens of each prompt, and go on greedily.

    Args:
      prompts, prompt_mask: `[P, T]`, padded on the left.
      tags: `[P]` int32, the tag of all of a prompt's paths; or OWN_TAG, and the branches are over
        the first token, which is the tag.
      num_paths: k.
      max_new_tokens: N, tag and <eos> included.

    Raises:
      ValueError: more paths than there are tokens, or no room for them.
    """
    if not 1 <= num_paths <= config.vocab_size:
        raise ValueError(
            f"num_paths={num_paths}: must be between 1 and the {config.vocab_size} tokens."
        )
    shape = len(prompts), num_paths
    tags = jnp.broadcast_to(jnp.asarray(tags)[:, None], shape)
    samples = sample(
        params, prompts, prompt_mask, tags,
        jnp.broadcast_to(jax.random.key(0), shape),  # nothing is drawn
        Filters(temperature=0.0),
        config=config, max_new_tokens=max_new_tokens, stop_ids=stop_ids, pad_id=pad_id,
        ranks=jnp.broadcast_to(jnp.arange(num_paths), shape), with_gaps=True,
    )
    tokens, mask, log_probs, gaps = (
        x.reshape(*shape, max_new_tokens)
        for x in (samples.tokens, samples.mask, samples.log_probs, samples.gaps)
    )
    branch = jnp.where(tags == OWN_TAG, log_probs[..., 0], log_probs[..., 1])
    return CotPaths(tokens, mask, log_probs, gaps, jnp.exp(branch))


def answer_masks(
    text_format: TextFormat, tokens: ArrayLike, mask: ArrayLike, answers: ArrayLike
) -> np.ndarray:
    """Which tokens of each completion spell its answer, at the last place where it stands.

    Args:
      tokens, mask: `[..., N]` as sampled.
      answers: `[...]` the text that was taken out of each completion; None where there is none.

    Returns:
      bool `[..., N]`; no token where there is no answer.
    """
    tokens, answers = np.asarray(tokens), np.asarray(answers, dtype=object)
    lengths = np.asarray(mask).sum(axis=-1)
    found = np.zeros(tokens.shape, bool)
    for index in np.ndindex(answers.shape):
        if answers[index]:
            ids = tokens[index][: lengths[index]].tolist()
            start, stop = _span(text_format, ids, answers[index])
            found[index][start:stop] = True
    return found


def _span(text_format: TextFormat, ids: Sequence[int], answer: str) -> tuple[int, int]:
    """The tokens whose text holds the last occurrence of the answer; an empty span if none does."""
    text = text_format.completion_text(ids)
    place = text.rfind(answer)
    if place < 0:
        return 0, 0

    def tokens_for(characters: int) -> int:
        """The fewest tokens whose text has so many characters: the text grows with the tokens."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if len(text_format.completion_text(ids[:middle])) >= characters:
                high = middle
            else:
                low = middle + 1
        return low

    return tokens_for(place + 1) - 1, tokens_for(place + len(answer))


def mean_gaps(gaps: ArrayLike, masks: ArrayLike) -> np.ndarray:
    """Delta (2402.10200), the mean gap over the answer's tokens; 0 where there is no answer.

    Args:
      gaps, masks: `[..., N]`, of each token, and which of them are the answer's (`answer_masks`).

    Returns:
      `[...]`, in [0, 1].
    """
    gaps, masks = np.asarray(gaps, np.float64), np.asarray(masks)
    return (gaps * masks).sum(axis=-1) / np.maximum(masks.sum(axis=-1), 1)


def thinking_lengths(
    tokens: ArrayLike, mask: ArrayLike, end_id: int, stop_ids: Sequence[int]
) -> np.ndarray:
    """Tokens between a completion's tag and the end of its thinking: `[..., N]` to `[...]`."""
    tokens = np.asarray(tokens)[..., 1:]
    ends = (tokens == end_id) | np.isin(tokens, stop_ids) | ~np.asarray(mask)[..., 1:]
    return np.where(ends.any(axis=-1), ends.argmax(axis=-1), tokens.shape[-1])


def cut_thinking(
    prompts: Sequence[Sequence[int]],
    tokens: ArrayLike,
    thinking: ArrayLike,
    max_thinking: int,
    end_ids: Sequence[int],
) -> list[list[int]]:
    """Prompts that ask for the answer after at most so much thinking.

    Whoever completes them answers: the policy that thought, or another that was trained to sum up,
    as in T1's protocol (2501.11651).

    Args:
      prompts: the ids of P prompts.
      tokens: `[P, R, N]` completions, the tag first.
      thinking: `[P, R]` tokens of thinking in each (`thinking_lengths`).
      max_thinking: tokens of it that are kept.
      end_ids: what is put after it to end it.

    Returns:
      P * R lists of ids: prompt, tag, thinking, end.
    """
    tokens, kept = np.asarray(tokens), np.minimum(thinking, max_thinking)
    return [
        [*prompts[p], *tokens[p, r, : 1 + kept[p, r]].tolist(), *end_ids]
        for p, r in np.ndindex(kept.shape)
    ]


@flax.struct.dataclass
class Beams:
    """The K best completions found of each of P prompts, the likeliest first.

    Attributes:
      tokens, mask: `[P, K, N]` as in `Samples`.
      log_probs: `[P, K]` float32, of the completion as a whole, a given tag left out.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array


@partial(
    jax.jit, static_argnames=("config", "num_beams", "max_new_tokens", "stop_ids", "pad_id")
)
def beam_search(
    params: Any,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    tags: jax.Array,
    *,
    config: ModelConfig,
    num_beams: int,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
) -> Beams:
    """The likeliest completions by beam search, without a reward for length.

    Args:
      prompts, prompt_mask: `[P, T]`, padded on the left.
      tags: `[P]` int32, the tag of a prompt's beams, or OWN_TAG.
      num_beams: K.
      max_new_tokens: N, tag and <eos> included.

    Raises:
      ValueError: prompt and completion do not fit into the model's max_length.
    """
    num_prompts, prompt_length = prompts.shape
    check_lengths(config, prompt_length, max_new_tokens)
    model, params = Transformer(config), params_for_sampling(config, params)
    logits, cache = prefill(config, params, prompts, prompt_mask)
    logits = jnp.repeat(logits, num_beams, axis=0)
    cache = grow_cache(repeat_rows(cache, num_beams, config), prompt_length + max_new_tokens)
    shape = num_prompts, num_beams
    positions = jnp.broadcast_to(prompt_mask.sum(axis=1)[:, None], shape).reshape(-1, 1)
    num_ids = logits.shape[-1]
    only_pad = _certain(jnp.full(shape, pad_id), num_ids)
    only_tag = _certain(jnp.broadcast_to(tag_to_id(config, tags)[:, None], shape), num_ids)

    def step(carry: tuple) -> tuple:
        t, logits, cache, done, totals, tokens = carry
        scores = jax.nn.log_softmax(logits).reshape(*shape, num_ids)
        given = (t == 0) & (tags != OWN_TAG)
        scores = jnp.where(given[:, None, None], only_tag, scores)
        scores = jnp.where(done[..., None], only_pad, scores)
        candidates = (totals[..., None] + scores).reshape(num_prompts, -1)
        totals, best = jax.lax.top_k(candidates, num_beams)  # [P, K]
        parents, token = best // num_ids, (best % num_ids).astype(jnp.int32)
        tokens = jnp.take_along_axis(tokens, parents[..., None], axis=1)
        tokens = jax.lax.dynamic_update_slice(tokens, token[..., None], (0, 0, t))
        done = jnp.take_along_axis(done, parents, axis=1) | ends_at(token, stop_ids)
        rows = parents + num_beams * jnp.arange(num_prompts)[:, None]
        cache = take_rows(cache, rows.reshape(-1), config)
        logits, cache = model.apply(
            params, token.reshape(-1, 1), positions=positions + t, cache=cache
        )
        return t + 1, logits[:, 0], cache, done, totals, tokens

    def unfinished(carry: tuple) -> jax.Array:
        return (carry[0] < max_new_tokens) & ~jnp.all(carry[3])

    # The K beams of a prompt are equal at first: one of them counts.
    totals = jnp.broadcast_to(jnp.where(jnp.arange(num_beams) == 0, 0.0, -jnp.inf), shape)
    tokens = jnp.full((*shape, max_new_tokens), pad_id, jnp.int32)
    start = jnp.zeros((), jnp.int32), logits, cache, jnp.zeros(shape, bool), totals, tokens
    *_, totals, tokens = jax.lax.while_loop(unfinished, step, start)
    return Beams(tokens, completion_mask(tokens, stop_ids), totals)


def _certain(ids: jax.Array, num_ids: int) -> jax.Array:
    """Log-probs `[..., V]` of a draw that can only give these ids `[...]`."""
    return jnp.where(jax.nn.one_hot(ids, num_ids, dtype=bool), 0.0, -jnp.inf)
