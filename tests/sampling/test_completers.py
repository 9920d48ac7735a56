"""A policy that completes texts: against the sampler itself, and whatever else is in the batch."""

import dataclasses
import string

import jax
import numpy as np
import pytest

from reasoning.data.formats import TextFormat
from reasoning.data.tokenizers import train_tokenizer
from reasoning.models.config import ModelConfig
from reasoning.sampling import completers
from reasoning.sampling.completers import cut, text_completer
from reasoning.sampling.filters import Filters
from reasoning.sampling.refinement import self_refine
from reasoning.sampling.sampler import OWN_TAG, sample, sequence_keys

TOKENIZER = train_tokenizer((), vocab_size=None, words=("cat", "legs", "?"), numbers="whole")
FORMAT = TextFormat(TOKENIZER)
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, num_strategies=2, d_model=8, num_layers=1, num_heads=2,
    num_kv_heads=2, head_dim=4, d_ff=8, max_length=40,
)
PROMPTS = ["cat legs ?", "7", "2 cat 3 cat 4 cat legs legs ?", "legs", "7 7", "cat"]
NEW = 6
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def weights(rough_params):
    return jax.tree.map(lambda leaf: 4 * leaf, rough_params(CONFIG))  # opinions, not noise


def completer(weights, key=KEY, text_format=FORMAT, **settings):
    return text_completer(
        weights, CONFIG, text_format, key, **{"batch_prompts": 4, "shortest": 8, **settings}
    )


def say(complete, prompts, **settings):
    defaults = dict(call=0, num_samples=2, max_new_tokens=NEW, temperature=1.0, stop=())
    return complete(prompts, **{**defaults, **settings})


def directly(weights, prompt, tag, filters):
    """What `sample` says to one prompt without any padding; greedily, so that no key matters."""
    ids = np.array([FORMAT.prompt_ids(prompt)], np.int32)
    samples = sample(
        weights, ids, np.ones_like(ids), np.full((1, 1), tag, np.int32),
        sequence_keys(KEY, np.arange(1), 1), filters, config=CONFIG, max_new_tokens=NEW,
        stop_ids=FORMAT.stop_ids, pad_id=FORMAT.pad_id,
    )
    return FORMAT.completion_text(np.asarray(samples.tokens)[np.asarray(samples.mask)].tolist())


@pytest.mark.parametrize("tag", [OWN_TAG, 0, 1])
def test_greedily_it_says_what_the_sampler_says(weights, tag):
    said = say(completer(weights, tag=tag), PROMPTS, num_samples=1, temperature=0.0)
    expected = [[directly(weights, prompt, tag, Filters(0.0))] for prompt in PROMPTS]
    assert said == expected and len({text for (text,) in said}) > 3


def test_filters_hold_and_the_temperature_is_that_of_the_call(weights):
    filters = Filters(temperature=5.0, top_k=1)
    said = say(completer(weights, filters=filters), PROMPTS)
    assert said == [[directly(weights, prompt, OWN_TAG, Filters(0.0))] * 2 for prompt in PROMPTS]
    hot, cold = (say(completer(weights), PROMPTS, temperature=t) for t in (5.0, 0.01))
    greedy = say(completer(weights), PROMPTS, temperature=0.0)
    assert cold == greedy and hot != greedy


def test_a_prompt_alone_is_completed_as_among_others(weights):
    complete = completer(weights)
    together = say(complete, PROMPTS)
    assert len({text for texts in together for text in texts}) > 6, "there is something to confuse"
    for prompt, texts in zip(PROMPTS, together, strict=True):
        assert say(complete, [prompt]) == [texts]
    assert say(complete, PROMPTS[::-1]) == together[::-1]
    assert say(complete, [PROMPTS[0]] * 5) == [together[0]] * 5
    for size in (1, 3, 8):
        assert say(completer(weights, batch_prompts=size), PROMPTS) == together
    assert say(completer(weights, shortest=16), PROMPTS) == together


def test_draws_are_of_the_key_the_call_the_prompt_and_the_sample(weights):
    complete = completer(weights)
    said = say(complete, PROMPTS)
    assert say(complete, PROMPTS) == said, "it keeps no state"
    assert [texts[:1] for texts in said] == say(complete, PROMPTS, num_samples=1)
    assert any(first != second for first, second in said)
    assert say(complete, PROMPTS, call=1) != said
    assert say(completer(weights, key=jax.random.key(4)), PROMPTS) != said


def test_few_shapes_are_compiled(weights, monkeypatch):
    seen = []

    def recorded(params, prompts, mask, *args, **kwargs):
        rows = [row[kept == 1].tolist() for row, kept in zip(prompts, mask)]
        assert (np.diff(mask, axis=1) >= 0).all(), "padding is on the left"
        seen.append((prompts.shape, rows))
        return sample(params, prompts, mask, *args, **kwargs)

    monkeypatch.setattr(completers, "sample", recorded)
    prompts = ["cat", " ".join(["cat"] * 7), " ".join(["cat"] * 8), " ".join(["cat"] * 33)]
    say(completer(weights), prompts)
    lengths = [len(FORMAT.prompt_ids(prompt)) for prompt in prompts]
    assert lengths == [2, 8, 9, 34], "<bos> and the words"
    assert [shape for shape, _ in seen] == [(4, 8), (4, 16), (4, 34)], "34 + 6 is max_length"
    ids = [FORMAT.prompt_ids(prompt) for prompt in prompts]
    assert [rows for _, rows in seen] == [
        [ids[0], ids[1], ids[0], ids[0]], [ids[2]] * 4, [ids[3]] * 4
    ]


def test_completions_end_before_a_stop_string(weights):
    complete = completer(weights)
    whole = say(complete, PROMPTS)
    longest = max((text for texts in whole for text in texts), key=len)
    stop = (longest[len(longest) // 2], longest[-1])
    assert say(complete, PROMPTS, stop=stop) == [[cut(t, stop) for t in texts] for texts in whole]


@pytest.mark.parametrize(
    "text, stop, before",
    [
        ("a. Q: b", ("Q:",), "a. "),
        ("a. Q: b", ("b", "Q:"), "a. "),
        ("a Q: b Q:", ("Q:",), "a "),
        ("Q:", ("Q:",), ""),
        ("a", ("Q:",), "a"),
        ("a", (), "a"),
    ],
)
def test_cut(text, stop, before):
    assert cut(text, stop) == before


def test_a_program_asks_a_policy_about_each_question_alone(rough_params):
    """Other questions, settled or not, change nothing in a question's transcript."""
    letters = train_tokenizer((string.printable,), vocab_size=None)
    config = dataclasses.replace(CONFIG, vocab_size=letters.vocab_size, max_length=600)
    weights = jax.tree.map(lambda leaf: 4 * leaf, rough_params(config))
    complete = text_completer(
        weights, config, TextFormat(letters), KEY, batch_prompts=3, shortest=590
    )

    def refined(questions):
        return self_refine(
            complete, questions, lambda _, answers: [len(set(answer)) for answer in answers],
            max_rounds=2, max_new_tokens=10, max_critique_tokens=10, temperature=1.0,
        )

    questions = ["How many legs have 2 cats?", "7 * 5?", "Why?"]
    together = refined(questions)
    for question, solution in zip(questions, together.solutions, strict=True):
        assert refined([question]).solutions == (solution,)
    assert len({solution.transcript[0].completions for solution in together.solutions}) == 3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"tag": 2}, r"tag=2: must be OWN_TAG \(-1\) or below the model's num_strategies=2\."),
        ({"tag": -2}, r"tag=-2: must be OWN_TAG"),
        ({"batch_prompts": 0}, r"batch_prompts=0: must be at least 1\."),
        ({"shortest": 0}, r"shortest=0: must be at least 1\."),
        ({"filters": Filters(top_k=0)}, r"top_k=0: must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match="^" + message):
        completer(None, **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_samples": 0}, r"num_samples=0: must be at least 1\."),
        ({"max_new_tokens": 0}, r"max_new_tokens=0: must be at least 1\."),
        ({"temperature": -1.0}, r"temperature=-1\.0: must be 0"),
        ({"stop": ("Q:", "")}, r"stop has an empty string"),
        ({"max_new_tokens": 39}, r"prompt of 2 tokens: with max_new_tokens=39 it is longer"),
    ],
)
def test_calls_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match="^" + message):
        say(completer(None), ["cat"], **settings)
