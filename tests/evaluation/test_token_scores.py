"""Scores of tokens that exist: against the plain forward pass, and laid over the text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.data.formats import TextFormat
from reasoning.data.imported_tokenizers import load_tokenizer
from reasoning.data.tokenizers import train_tokenizer
from reasoning.evaluation.token_scores import _ends, token_scores


@pytest.fixture(scope="module")
def text_format():
    return TextFormat(train_tokenizer((), vocab_size=None, words=("a", "b", ":", "answer"),
                                      numbers="whole", max_number=9))


@pytest.fixture(scope="module")
def policy(config, rough_params, text_format):
    config = dataclasses.replace(config, vocab_size=text_format.tokenizer.vocab_size)
    return rough_params(config), config


PROMPTS = ["1 a 2 :", "b :", "1 a 2 :"]
TEXTS = ["3 b answer 4", "answer", ""]
TAGS = [0, 2, 1]


@pytest.mark.parametrize("ended", [True, False])
def test_scores_are_those_of_the_forward_pass(policy, text_format, forward, ended):
    params, config = policy
    scores = token_scores(params, config, text_format, PROMPTS, TAGS, TEXTS, [ended] * 3)
    for prompt, tag, text, found in zip(PROMPTS, TAGS, TEXTS, scores, strict=True):
        asked = text_format.prompt_ids(prompt)
        written = text_format.completion_ids(text)
        row = [*asked, config.vocab_size + tag, *(written if ended else written[:-1])]
        if not ended and not text:
            assert found is None  # nothing was written
            continue
        dist = jax.nn.log_softmax(forward(config, params, jnp.asarray([row]))[0])
        dist = np.asarray(dist)[len(asked) - 1 : -1]
        expected = dist[np.arange(len(dist)), row[len(asked) :]]
        np.testing.assert_allclose(found.log_probs, expected, atol=1e-5)
        np.testing.assert_allclose(found.entropies, -(np.exp(dist) * dist).sum(1), atol=1e-5)
        assert len(found.ends) == len(dist)


def test_tokens_lie_over_the_text(policy, text_format):
    params, config = policy
    first, second, third = token_scores(
        params, config, text_format, PROMPTS, TAGS, TEXTS, [True] * 3
    )
    text = TEXTS[0]
    pieces = [text[a:b] for a, b in zip([0, *first.ends], first.ends)]
    assert pieces == ["", "3", " b", " answer", " 4", ""]  # the tag, words, <eos>
    assert (second.ends, third.ends) == ([0, 6, 6], [0, 0])


def test_tokens_end_where_their_openings_end(model_directories):
    """Read a few at a time, tokens end where the text of all up to each one ends."""
    for text in ("two words,\n\n  and more", " \u4f60\u597d \U0001f642 caf\xe9\u0301 x", "a", "  "):
        for directory in model_directories.values():
            own = TextFormat(load_tokenizer(directory))
            ids = list(own.completion_ids(text))
            expected = []
            for count in range(1, len(ids) + 1):
                read = own.completion_text(ids[:count])
                expected.append(len(read) if text.startswith(read) else [0, *expected][-1])
            found = _ends(own, ids, text)
            assert found == (expected if expected[-1] == len(text) else None)


def test_what_cannot_be_scored_is_none(policy, text_format):
    params, config = policy
    texts = ["a \ud800", "a " * 100, "a"]
    scores = token_scores(params, config, text_format, ["b :"] * 3, [0] * 3, texts, [True] * 3)
    assert [found is None for found in scores] == [True, True, False]
    assert token_scores(params, config, text_format, [], [], [], []) == []
