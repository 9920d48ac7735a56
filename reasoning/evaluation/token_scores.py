"""What a policy gives each token of completions that exist: log-probabilities and entropies.

    scores = token_scores(params, config, text_format, prompts, tags, texts, ended)
    scores[0].log_probs, scores[0].ends          # of the fork first; where each token ends

One forward pass at temperature 1 without filters: the policy's own distribution, whatever the
completions were sampled with.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reasoning.data.formats import TextFormat
from reasoning.learning.scoring import read_completions, score_tokens
from reasoning.models.config import ModelConfig
from reasoning.models.logits import map_logits
from reasoning.models.strategies import tag_to_id
from reasoning.sampling.sampler import pad_prompts

BATCH = 64  # completions that are scored at a time


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """Of one completion of N tokens, the tag at the fork first.

    Attributes:
      ends: `[N]` where in the text each token ends, in characters; 0 for the tag; the end of the
        text is that of its <eos>, too.
      log_probs: `[N]` in nats.
      entropies: `[N]` of the distribution that the token was chosen from, in nats.
    """

    ends: list[int]
    log_probs: list[float]
    entropies: list[float]


def token_scores(
    params: Any,
    config: ModelConfig,
    text_format: TextFormat,
    prompts: Sequence[str],
    tags: Sequence[int],
    texts: Sequence[str],
    ended: Sequence[bool],
) -> list[TokenScores | None]:
    """Score B completions, one text under one tag after one prompt each.

    Args:
      ended: whether the completion ended; else it is scored without <eos>.

    Returns:
      for each completion its scores, or None where its ids do not read as its text, or are more
      than the model reads.
    """
    rows = [_ids(text_format, text, end) for text, end in zip(texts, ended, strict=True)]
    fork = np.asarray(tag_to_id(config, jnp.asarray(tags, jnp.int32)))
    written = [[int(tag), *ids] for tag, ids in zip(fork, rows, strict=True)]
    asked = [text_format.prompt_ids(prompt) for prompt in prompts]
    ends = [_ends(text_format, ids, text) for ids, text in zip(rows, texts, strict=True)]
    room = config.max_length - max(map(len, asked), default=0)
    fits = [found is not None and len(ids) <= room for found, ids in zip(ends, written)]
    kept = np.flatnonzero(fits)
    scores: list[TokenScores | None] = [None] * len(texts)
    if not len(kept):
        return scores
    ids, mask = pad_prompts([asked[i] for i in kept], text_format.pad_id)
    length = max(len(written[i]) for i in kept)
    tokens = np.full((len(kept), length), text_format.pad_id, np.int32)
    for row, i in enumerate(kept):
        tokens[row, : len(written[i])] = written[i]
    for start in range(0, len(kept), BATCH):
        # The last batch is filled up with its first row, so that one shape is compiled.
        part = np.arange(start, start + BATCH)
        part = np.where(part < len(kept), part, start)
        log_probs, entropies = map(
            np.asarray, _score(params, ids[part], mask[part], tokens[part], config=config)
        )
        for row, i in enumerate(kept[start : start + BATCH]):
            count = len(written[i])
            scores[i] = TokenScores(
                [0, *ends[i]], log_probs[row, :count].tolist(), entropies[row, :count].tolist()
            )
    return scores


@partial(jax.jit, static_argnames="config")
def _score(
    params: Any, prompts: jax.Array, mask: jax.Array, tokens: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropies `[B, N]` of tokens `[B, N]` after prompts `[B, T]`, padded left."""
    hidden = read_completions(params, prompts, mask, tokens[:, None], config)[:, 0]

    def read(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        return score_tokens(jax.nn.log_softmax(logits), tokens)

    return map_logits(read, config, params, hidden, tokens)


def _ids(text_format: TextFormat, text: str, ended: bool) -> list[int]:
    """What was written after the fork, as ids; [] for a text that has none."""
    try:
        ids = list(text_format.completion_ids(text))
    except ValueError:  # a lone surrogate
        return []
    return ids if ended else ids[:-1]


def _ends(text_format: TextFormat, ids: list[int], text: str) -> list[int] | None:
    """Where each token ends in the text; None where the tokens do not read as the text."""
    ends, fork = [], text_format.tags.ids[:1] if text_format.tags else ()
    at = start = known = 0  # characters that are read; ids[start:known] are the last of them
    for count in range(1, len(ids) + 1):
        # Read with those before: a space in front of the very first is taken away.
        opens = () if start else fork
        before = text_format.completion_text([*opens, *ids[start:known]])
        new = text_format.completion_text([*opens, *ids[start:count]])[len(before) :]
        if text.startswith(new, at):  # else a character's bytes are still to come
            at, start, known = at + len(new), known, count
        ends.append(at)
    return ends if ids and ends[-1] == len(text) else None
