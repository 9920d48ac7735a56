"""The sampler against the training forward pass, and the independence of every sequence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.sampling.budgets import Budget
from reasoning.sampling.filters import Filters, filter_logits
from reasoning.sampling.sampler import (
    OWN_TAG,
    STOP_EOS,
    STOP_LENGTH,
    cache_stages,
    check_lengths,
    pad_prompts,
    sample,
    sequence_keys,
)

PAD, EOS, NEW = 0, 2, 8
PROMPTS = [[5, 6, 7], [1, 9, 12, 3, 20, 28], [13, 13, 4, 21], [28, 27, 26, 25, 24, 23]]
IDS, MASK = pad_prompts(PROMPTS, PAD)
TAGS = np.tile(np.array([0, 1, 2, OWN_TAG], np.int32), (4, 4))  # [P, G]
KEYS = sequence_keys(jax.random.key(7), jnp.arange(4), 16)
FILTERS = [Filters(1.0), Filters(0.7), Filters(0.7, top_k=9, top_p=0.8, min_p=0.05)]


def draw(config, params, ids=IDS, mask=MASK, tags=TAGS, keys=KEYS, filters=FILTERS[0], **changes):
    static = dict(max_new_tokens=NEW, stop_ids=(EOS,), pad_id=PAD)
    return jax.tree.map(
        np.asarray,
        sample(params, ids, mask, tags, keys, filters, config=config, **{**static, **changes}),
    )


@pytest.fixture(scope="module")
def samples(config, params):
    return draw(config, params)


def training_logits(forward, config, params, completions):
    """Logits `[B, N, V+S]` for the completions of all 64 rows, padded on the right."""
    prompts = [prompt for prompt in PROMPTS for _ in range(16)]
    rows = np.full((64, 6 + NEW), PAD, np.int32)
    for row, prompt, completion in zip(rows, prompts, completions, strict=True):
        row[: len(prompt) + NEW] = [*prompt, *completion]
    logits = np.asarray(forward(config, params, rows))
    return np.stack([
        logits[b, len(prompt) - 1 : len(prompt) - 1 + NEW] for b, prompt in enumerate(prompts)
    ])


# Log-probs


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_log_probs_are_those_of_a_training_forward_pass(config, params, forward, filters):
    samples = draw(config, params, filters=filters)
    logits = training_logits(forward, config, params, samples.tokens)
    sampled_from = np.array(filter_logits(jnp.asarray(logits), filters))
    given = TAGS.reshape(-1) != OWN_TAG  # a given tag has the policy's own log-prob
    sampled_from[given, 0] = jax.nn.log_softmax(logits[given, 0])
    expected = np.take_along_axis(sampled_from, samples.tokens[..., None], axis=2)[..., 0]
    assert samples.mask.sum() > 400 and (expected[samples.mask] > -20).all()
    np.testing.assert_allclose(
        samples.log_probs[samples.mask], expected[samples.mask], atol=1e-4
    )
    assert (samples.log_probs[~samples.mask] == 0).all()


def test_greedy_decoding_is_the_argmax_without_a_cache(config, params, forward):
    tags = np.where(TAGS == OWN_TAG, 0, TAGS)
    samples = draw(config, params, tags=tags, filters=Filters(0.0))
    tokens = np.full((64, NEW), PAD, np.int32)
    tokens[:, 0] = tags.reshape(-1) + config.vocab_size
    for t in range(1, NEW):
        logits = training_logits(forward, config, params, tokens)
        stopped = (tokens[:, :t] == EOS).any(axis=1)
        tokens[:, t] = np.where(stopped, PAD, logits[:, t].argmax(axis=-1))
    np.testing.assert_array_equal(samples.tokens, tokens)
    logits = training_logits(forward, config, params, tokens)  # log-probs of the policy itself
    expected = np.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(
        samples.log_probs[samples.mask], expected[samples.mask], atol=1e-4
    )
    assert len(np.unique(tokens, axis=0)) > 4  # tags and prompts lead to different completions


# Every sequence on its own


@pytest.mark.parametrize("p, g", [(0, 1), (2, 3)])
def test_a_sequence_alone_without_padding_is_the_same(config, params, samples, p, g):
    ids = np.array([PROMPTS[p]], np.int32)
    at = np.s_[p : p + 1, g : g + 1]
    alone = draw(config, params, ids, np.ones_like(ids), TAGS[at], KEYS[at])
    row = p * 16 + g
    np.testing.assert_array_equal(alone.tokens[0], samples.tokens[row])
    np.testing.assert_allclose(alone.log_probs[0], samples.log_probs[row], atol=1e-5)
    assert alone.stop_reason[0] == samples.stop_reason[row]


def test_a_sequence_does_not_change_with_its_place_or_its_batch_mates(config, params, samples):
    prompts, order = np.array([3, 1, 0, 2]), np.random.default_rng(0).permutation(16)
    at = np.ix_(prompts, order)
    moved = draw(config, params, IDS[prompts], MASK[prompts], TAGS[at], KEYS[at])
    expected = samples.tokens.reshape(4, 16, NEW)[at].reshape(64, NEW)
    np.testing.assert_array_equal(moved.tokens, expected)

    # Prompt 1 stays; the others become other prompts with other tags and keys.
    ids, tags = IDS.copy(), TAGS.copy()
    ids[[0, 2, 3]] = 11
    tags[[0, 2, 3]] = 2
    keys = sequence_keys(jax.random.key(8), jnp.arange(4), 16).at[1].set(KEYS[1])
    mates = draw(config, params, ids, MASK, tags, keys)
    np.testing.assert_array_equal(mates.tokens[16:32], samples.tokens[16:32])
    assert (mates.tokens[32:] != samples.tokens[32:]).any(axis=1).all()


def test_what_hides_in_the_padding_does_not_matter(config, params, samples):
    other = draw(config, params, np.where(MASK, IDS, 17))
    np.testing.assert_array_equal(other.tokens, samples.tokens)


def test_keys_are_of_the_run_the_prompt_and_the_sample_alone():
    data = jax.random.key_data(KEYS)
    assert len(np.unique(np.reshape(data, (64, -1)), axis=0)) == 64
    fewer = sequence_keys(jax.random.key(7), jnp.array([2, 0]), 3)
    np.testing.assert_array_equal(jax.random.key_data(fewer), data[jnp.array([2, 0])][:, :3])
    other = jax.random.key_data(sequence_keys(jax.random.key(8), jnp.arange(4), 16))
    assert (np.asarray(other) != np.asarray(data)).any(axis=-1).all()


def test_samples_of_a_prompt_differ_and_so_do_other_keys(config, params, samples):
    long = samples.mask.sum(axis=1) > 3
    assert long.sum() > 40
    for prompt in range(4):
        rows = samples.tokens[long & (np.arange(64) // 16 == prompt), 1:]
        assert len(np.unique(rows, axis=0)) == len(rows)
    np.testing.assert_array_equal(draw(config, params).tokens, samples.tokens)
    keys = sequence_keys(jax.random.fold_in(jax.random.key(7), 1), jnp.arange(4), 16)
    other = draw(config, params, keys=keys)
    assert (other.tokens != samples.tokens)[long].any(axis=1).all()


def test_scanned_layers_give_the_same_samples(config, params, samples, stack_layers):
    scanned = draw(dataclasses.replace(config, scan_layers=True), stack_layers(params))
    np.testing.assert_array_equal(scanned.tokens, samples.tokens)
    np.testing.assert_allclose(scanned.log_probs, samples.log_probs, atol=1e-5)


# The cache, as it grows

LONG = 100  # tokens, in three stages


@pytest.fixture(
    scope="module",
    params=[{}, dict(scan_layers=True), dict(position_encoding="rope"), dict(windows=(9, 0))],
    ids=str,
)
def long_policy(request, config, rough_params):
    """A policy of 128 tokens of context, and its long completions, of which none ends."""
    config = dataclasses.replace(config, max_length=128, **request.param)
    params = rough_params(config)
    return config, params, draw(config, params, max_new_tokens=LONG, stop_ids=(1000,))


def test_the_cache_grows_in_few_stages():
    assert cache_stages(LONG) == [34, 68, 100]
    assert cache_stages(8) == [8] and cache_stages(63) == [63] and cache_stages(64) == [32, 64]
    assert cache_stages(1000) == [250, 500, 750, 1000]


def test_tokens_beyond_a_stage_see_all_before_them(long_policy, forward):
    config, params, samples = long_policy
    rows = np.full((64, 6 + LONG), PAD, np.int32)
    prompts = [prompt for prompt in PROMPTS for _ in range(16)]
    for row, prompt, completion in zip(rows, prompts, samples.tokens, strict=True):
        row[: len(prompt) + LONG] = [*prompt, *completion]
    log_probs = jax.nn.log_softmax(forward(config, params, rows))
    expected = np.stack([
        np.take_along_axis(
            log_probs[b, len(prompt) - 1 : len(prompt) - 1 + LONG],
            samples.tokens[b][:, None], axis=1,
        )[:, 0]
        for b, prompt in enumerate(prompts)
    ])
    np.testing.assert_allclose(samples.log_probs, expected, atol=1e-4)


def test_a_shorter_completion_opens_as_the_longer_one(long_policy):
    config, params, samples = long_policy
    short = draw(config, params, max_new_tokens=20, stop_ids=(1000,))
    np.testing.assert_array_equal(short.tokens, samples.tokens[:, :20])


def test_stages_under_vmap_and_with_a_budget_across_them(config, rough_params):
    config = dataclasses.replace(config, max_length=128)
    params, shape = rough_params(config), (4, 16)
    # The end is written by force before, at and after the first stage's last token.
    limits = jnp.broadcast_to(jnp.arange(16) + 24, shape)
    budget = Budget(limits, jnp.zeros(shape, jnp.int32), end_id=7, end_ids=(7, 9))

    def long(keys, **settings):
        return sample(
            params, IDS, MASK, TAGS, keys, Filters(), config=config, max_new_tokens=LONG,
            stop_ids=(1000,), pad_id=PAD, **settings,
        ).tokens

    tokens = np.asarray(long(KEYS, budget=budget)).reshape(*shape, LONG)
    for g in range(16):
        thought = [list(row[1:]) for row in tokens[:, g]]
        for row in thought:
            end = row.index(7)
            assert end <= 24 + g and row[end : end + 2] == [7, 9] if end == 24 + g else True
        assert any(row.index(7) == 24 + g for row in thought) or g > 8
    keys = jnp.stack([KEYS, sequence_keys(jax.random.key(1), jnp.arange(4), 16)])
    together = jax.vmap(lambda keys: long(keys, early_exit=False))(keys)
    for alone, found in zip(keys, together, strict=True):
        np.testing.assert_array_equal(found, long(alone))


# Tags and the end


def test_given_tags_come_first_and_own_tags_are_drawn(config, samples):
    given, tags = TAGS.reshape(-1) != OWN_TAG, TAGS.reshape(-1)
    first = samples.tokens[:, 0]
    np.testing.assert_array_equal(first[given], tags[given] + config.vocab_size)
    np.testing.assert_array_equal(samples.tags[given], tags[given])
    assert len(set(first[~given])) > 4  # drawn from the whole vocabulary by this policy
    expected = np.where(first >= config.vocab_size, first - config.vocab_size, -1)
    np.testing.assert_array_equal(samples.tags, expected)


def test_rows_end_at_eos_and_are_padded(samples):
    ends = [
        [*row].index(EOS) + 1 if EOS in row else NEW for row in samples.tokens
    ]
    expected = np.arange(NEW) < np.array(ends)[:, None]
    np.testing.assert_array_equal(samples.mask, expected)
    assert (samples.tokens[~samples.mask] == PAD).all()
    stopped = (samples.tokens == EOS).any(axis=1)
    np.testing.assert_array_equal(samples.stop_reason == STOP_EOS, stopped)
    np.testing.assert_array_equal(samples.stop_reason == STOP_LENGTH, ~stopped)
    assert 3 < stopped.sum() < 61 and min(ends) < NEW
    # The mask does not come from token values: a padding id that the policy wrote counts.
    written = (samples.tokens == PAD) & samples.mask
    assert written.any() and (samples.log_probs[written] < 0).all()


def test_eos_may_be_the_padding_id_and_the_loop_ends_early(config, params):
    at = np.s_[:1, :1]
    alone = np.array(PROMPTS[:1], np.int32), np.ones((1, 3), np.int32), TAGS[at], KEYS[at]
    free = draw(config, params, *alone, filters=Filters(0.0))
    end = int(free.tokens[0, 2])
    assert end not in free.tokens[0, :2]
    stopped = draw(config, params, *alone, filters=Filters(0.0), stop_ids=(end,), pad_id=end)
    np.testing.assert_array_equal(stopped.tokens[0], [*free.tokens[0, :3], *[end] * (NEW - 3)])
    np.testing.assert_array_equal(stopped.mask[0], np.arange(NEW) < 3)
    np.testing.assert_allclose(
        stopped.log_probs[0], np.where(np.arange(NEW) < 3, free.log_probs[0], 0), atol=1e-6
    )
    assert stopped.stop_reason[0] == STOP_EOS


def test_each_stop_id_ends_a_completion(config, params):
    at = np.s_[:1, :1]
    alone = np.array(PROMPTS[:1], np.int32), np.ones((1, 3), np.int32), TAGS[at], KEYS[at]
    free = draw(config, params, *alone, filters=Filters(0.0)).tokens[0]
    first, second = int(free[2]), int(free[1])
    for stop_ids, length in (((first,), 3), ((first, second), 2), ((second, first), 2)):
        found = draw(config, params, *alone, filters=Filters(0.0), stop_ids=stop_ids)
        assert found.mask[0].sum() == length and found.stop_reason[0] == STOP_EOS
        np.testing.assert_array_equal(found.tokens[0, :length], free[:length])


def test_prompts_are_padded_on_the_left():
    ids, mask = pad_prompts([[4], [1, 2, 3], [0, 0]], pad_id=0)
    np.testing.assert_array_equal(ids, [[0, 0, 4], [1, 2, 3], [0, 0, 0]])
    np.testing.assert_array_equal(mask, [[0, 0, 1], [1, 1, 1], [0, 1, 1]])
    assert ids.dtype == mask.dtype == np.int32
    longer, longer_mask = pad_prompts([[4], [1, 2, 3]], pad_id=9, length=5)
    np.testing.assert_array_equal(longer, [[9, 9, 9, 9, 4], [9, 9, 1, 2, 3]])
    np.testing.assert_array_equal(longer_mask, [[0, 0, 0, 0, 1], [0, 0, 1, 1, 1]])


def test_a_prompt_without_room_for_its_completion_is_refused(config, params):
    check_lengths(config, 6, 26)
    message = r"^prompt of 6 tokens: with max_new_tokens=27 it is longer than the cache of "
    with pytest.raises(ValueError, match=message + r"max_length=32; shorten one of the three\.$"):
        check_lengths(config, 6, 27)
    with pytest.raises(ValueError, match=message):
        draw(config, params, max_new_tokens=27)
