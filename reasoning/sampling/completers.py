"""A policy as what completes prompts: text in, text out.

    complete = text_completer(params, config, TextFormat(tokenizer, chat), jax.random.key(0))
    complete(["What is 7 * 5?"], call=0, num_samples=2, max_new_tokens=64, temperature=0.7, stop=())
    solved = zero_shot(complete, questions, max_new_tokens=256)   # reasoning.sampling.prompting
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from reasoning.data.formats import TextFormat
from reasoning.models.config import ModelConfig
from reasoning.sampling.filters import Filters
from reasoning.sampling.interviews import Complete
from reasoning.sampling.sampler import OWN_TAG, check_lengths, pad_prompts, sample, sequence_keys

UNFILTERED = Filters()


def text_completer(
    params: Any,
    config: ModelConfig,
    text_format: TextFormat,
    key: jax.Array,
    *,
    filters: Filters = UNFILTERED,
    tag: int = OWN_TAG,
    batch_prompts: int = 16,
    shortest: int = 64,
) -> Complete:
    """A policy that completes texts.

    A sequence's key is made of `key`, the number of the call, the ids of its prompt and the number
    of the sample, so the same prompt twice in one call is completed the same twice. Every batch is
    filled up to `batch_prompts` and padded to a length that is chosen by each prompt alone, of
    `shortest` times 1, 2, 4 and so on: what is said does not depend on the other prompts, and few
    shapes are compiled. Sampling knows no stop strings: completions are cut afterwards.

    Args:
      params, config: of the model.
      text_format: how a prompt is written as ids, and a completion read.
      key: typed, of all that this completer will say.
      filters: top-k, top-p and min-p; the temperature comes with each call.
      tag: the strategy that opens every completion, 0..S-1, or OWN_TAG.
      batch_prompts: prompts in one call of the sampler.
      shortest: tokens of the shortest padded prompt.

    Returns:
      The callable. It raises ValueError where a prompt and its completion do not fit into the
      model's max_length, or a setting is out of range.

    Raises:
      ValueError: a setting is out of range.
    """
    if not (tag == OWN_TAG or 0 <= tag < config.num_strategies):
        raise ValueError(
            f"tag={tag}: must be OWN_TAG ({OWN_TAG}) or below the model's "
            f"num_strategies={config.num_strategies}."
        )
    _at_least_one(batch_prompts=batch_prompts, shortest=shortest)
    filters.check()

    def complete(
        prompts: Sequence[str],
        *,
        call: int,
        num_samples: int,
        max_new_tokens: int,
        temperature: float,
        stop: Sequence[str],
    ) -> list[list[str]]:
        _at_least_one(num_samples=num_samples, max_new_tokens=max_new_tokens)
        if "" in stop:
            raise ValueError("stop has an empty string, which ends every completion: drop it.")
        drawn_by = filters.replace(temperature=temperature).check()
        call_key = jax.random.fold_in(key, call)
        rows = [text_format.prompt_ids(prompt) for prompt in prompts]
        lengths = [_padded_length(config, len(row), max_new_tokens, shortest) for row in rows]
        texts: dict[int, list[str]] = {}
        for length, batch in _batches(lengths, batch_prompts):
            # Filled up with the first of them, so that one shape is compiled for each length.
            filled = [rows[i] for i in batch] + [rows[batch[0]]] * (batch_prompts - len(batch))
            ids, mask = pad_prompts(filled, text_format.pad_id, length)
            digests = np.array([_digest(row) for row in filled], np.uint32)
            samples = sample(
                params,
                ids,
                mask,
                np.full((batch_prompts, num_samples), tag, np.int32),
                sequence_keys(call_key, digests, num_samples),
                drawn_by,
                config=config,
                max_new_tokens=max_new_tokens,
                stop_ids=text_format.stop_ids,
                pad_id=text_format.pad_id,
            )
            said = [
                cut(text_format.completion_text(row[written].tolist()), stop)
                for row, written in zip(np.asarray(samples.tokens), np.asarray(samples.mask))
            ]
            for place, i in enumerate(batch):
                texts[i] = said[place * num_samples : (place + 1) * num_samples]
        return [texts[i] for i in range(len(prompts))]

    return complete


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the strings in `stop`; all of it where there is none."""
    return text[: min((text.find(end) for end in stop if end in text), default=len(text))]


def _padded_length(config: ModelConfig, length: int, max_new_tokens: int, shortest: int) -> int:
    """The least of `shortest` times a power of two that holds so many tokens, or all the room."""
    check_lengths(config, length, max_new_tokens)
    padded = shortest
    while padded < length:
        padded *= 2
    return min(padded, config.max_length - max_new_tokens)


def _batches(lengths: Sequence[int], size: int) -> Iterator[tuple[int, list[int]]]:
    """Each length with the places that have it, at most `size` of them together."""
    for length in sorted(set(lengths)):
        same = [i for i, other in enumerate(lengths) if other == length]
        for start in range(0, len(same), size):
            yield length, same[start : start + size]


def _digest(ids: Sequence[int]) -> int:
    """A number of 32 bits that stands for a prompt."""
    return zlib.crc32(np.asarray(ids, "<i4").tobytes())


def _at_least_one(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1.")
