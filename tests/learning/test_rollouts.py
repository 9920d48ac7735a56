"""Rollouts: whose noise is whose, what is trained of them, their shaping, and dynamic sampling."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.learning.experience import score
from reasoning.learning.rollouts import (
    PromptBatch,
    RolloutConfig,
    Rollouts,
    assemble,
    informative,
    refill,
    roll_out,
    rollout_metrics,
    sample_tags,
)
from reasoning.rewards.verdicts import REASONS, Verdicts, reason_id
from reasoning.sampling.sampler import OWN_TAG, STOP_EOS, STOP_LENGTH, Samples

PAD, EOS, VOCAB, TAGS = 0, 1, 8, 3


def second_token_is_5(prompts, completions, metadata):
    """1 for that, and the problem's index on top, to see whose completion it is."""
    right = completions.tokens[:, 1] == 5
    reward = right.astype(jnp.float32) + metadata.astype(jnp.float32)
    return Verdicts(reward, jnp.where(right, 0, reason_id("wrong_value")).astype(jnp.int32))


@pytest.fixture(scope="module")
def run(quick):
    """`run(params, prompts, key, config)`: rollouts, sampled and judged in one jitted program."""

    @functools.partial(jax.jit, static_argnames="config", compiler_options=quick)
    def run(params, prompts, key, config):
        return roll_out(
            params, prompts, key, config=config.model, rollout=config.rollout,
            reward=second_token_is_5, allowed=config.allowed_ids(), eos_id=config.eos_id,
            pad_id=config.pad_id,
        )

    return run


def host(tree):
    return jax.tree.map(np.array, tree)


@pytest.fixture(scope="module")
def rollouts(run, rl_config, tiny_params, prompts):
    return host(run(tiny_params, prompts, jax.random.key(0), rl_config()))


def test_noise_is_new_for_every_key_and_every_sample(
    run, rollouts, rl_config, tiny_params, prompts
):
    again = host(run(tiny_params, prompts, jax.random.key(0), rl_config()))
    jax.tree.map(np.testing.assert_array_equal, again, rollouts)
    seen = {rollouts.tokens.tobytes()}
    for step in range(1, 6):
        key = jax.random.fold_in(jax.random.key(0), step)
        seen.add(host(run(tiny_params, prompts, key, rl_config()).tokens).tobytes())
    assert len(seen) == 6
    for group in rollouts.tokens:
        assert len(np.unique(group, axis=0)) > 3


def test_a_sequence_does_not_depend_on_who_shares_its_batch(
    run, rollouts, rl_config, tiny_params, prompts
):
    keys = jax.random.key(0)
    order = np.array([2, 0, 3, 1])
    mixed = host(run(tiny_params, jax.tree.map(lambda x: x[order], prompts), keys, rl_config()))
    for name in ("tokens", "mask", "tags", "ended", "rewards", "reasons"):
        np.testing.assert_array_equal(getattr(mixed, name), getattr(rollouts, name)[order])
    np.testing.assert_allclose(mixed.log_probs, rollouts.log_probs[order], atol=1e-5)
    # Prompts 0 and 1 stay, the others are replaced.
    ids = prompts.ids.at[2:].set(jnp.array([[6, 6, 6], [0, 5, 2]]))
    mask = (ids > 0).astype(jnp.int32)
    index = prompts.index.at[2:].set(77)
    other = host(run(tiny_params, PromptBatch(ids, mask, index, index), keys, rl_config()))
    np.testing.assert_array_equal(other.tokens[:2], rollouts.tokens[:2])
    assert (other.tokens[2:] != rollouts.tokens[2:]).any()


def test_rewards_meet_the_completions_of_their_own_problem(rollouts, prompts):
    right = rollouts.tokens[:, :, 1] == 5
    assert 0 < right.sum() < right.size
    expected = right + np.array(prompts.metadata)[:, None]
    np.testing.assert_array_equal(rollouts.rewards, expected)
    np.testing.assert_array_equal(rollouts.parts["task"], expected)
    ends = (rollouts.tokens == EOS) & rollouts.mask
    np.testing.assert_array_equal(rollouts.ended, ends.any(axis=2))
    assert rollouts.ended.any() and not rollouts.ended.all()
    assert not rollouts.given.any()
    is_tag = rollouts.tokens[:, :, 0] >= VOCAB
    np.testing.assert_array_equal(
        rollouts.tags, np.where(is_tag, rollouts.tokens[:, :, 0] - VOCAB, -1)
    )


FILTERS = [{}, dict(temperature=1.3, top_p=0.9), dict(min_p=0.1)]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_the_distribution_that_is_sampled_from_is_the_one_that_trains(
    filters, run, rl_config, tiny_params, prompts, plain, quick
):
    config = rl_config(rollout=filters)
    rollouts = run(tiny_params, prompts, jax.random.key(0), config)
    scored, entropy = jax.jit(score, static_argnames="config", compiler_options=quick)(
        tiny_params, prompts, rollouts.tokens, rollouts.given, config=config
    )
    mask = np.array(rollouts.mask)
    difference = np.abs(np.array(scored - rollouts.log_probs))[mask]
    assert difference.max() < 1e-4
    assert (rollouts.log_probs[~mask] == 0).all() and (rollouts.log_probs[mask] <= 0).all()
    temperature = filters.get("temperature", 1.0)
    unfiltered, whole = plain.log_probs(tiny_params, prompts, rollouts.tokens, temperature)
    if len(filters) == 0:
        np.testing.assert_allclose(np.array(scored)[mask], unfiltered[mask], atol=1e-4)
        np.testing.assert_allclose(np.array(entropy)[mask], whole[mask], atol=1e-4)
    else:  # what a filter removes makes the rest likelier
        gained = np.array(scored)[mask] - unfiltered[mask]
        assert (gained > -1e-4).all() and (gained > 1e-2).mean() > 0.5


def test_stratified_samples_have_every_tag_equally_often(
    run, rl_config, tiny_params, prompts, plain
):
    config = rl_config(rollout=dict(tags="stratified", temperature=0.7))
    rows = host(run(tiny_params, prompts, jax.random.key(0), config))
    np.testing.assert_array_equal(rows.tags, np.tile(np.arange(6) % TAGS, (4, 1)))
    np.testing.assert_array_equal(rows.tokens[:, :, 0], VOCAB + rows.tags)
    assert rows.given.all()
    # The given tag has the log-prob of the policy, without the temperature.
    expected, _ = plain.log_probs(tiny_params, prompts, rows.tokens)
    np.testing.assert_allclose(rows.log_probs[:, :, 0], expected[:, :, 0], atol=1e-4)
    expected, _ = plain.log_probs(tiny_params, prompts, rows.tokens, temperature=0.7)
    later = rows.mask & (np.arange(5) > 0)
    np.testing.assert_allclose(rows.log_probs[later], expected[later], atol=1e-4)

    assert (sample_tags(RolloutConfig(num_samples=5), TAGS, 2) == OWN_TAG).all()
    with pytest.raises(ValueError, match=r"^num_samples=5: stratified draws need a multiple"):
        sample_tags(RolloutConfig(num_samples=5, tags="stratified"), TAGS, 2)


# Shaping

def completions():
    """Text behind a tag, whether it ended, its verdict's reward, and what is to be found in it."""
    return [
        ([2, 3, 4, 5, EOS], 1.0, "correct", ""),
        ([2, 3, 2, 3, 2, 3, EOS], 0.0, "wrong_value", "repetition"),  # (2, 3) three times
        ([2, 3, 2, 3, 2, 3, EOS], 1.0, "correct", "repetition"),
        ([2, 6, 4, EOS], 0.0, "malformed", "garbled"),  # 6 is forbidden
        ([2, 6, 4, EOS], 1.0, "correct", "garbled"),
        ([2, 9, 4, EOS], -1.0, "malformed", "garbled"),  # a tag inside
        ([2, 3, 2, 3, 2, 3, 6], 0.0, "over_long", "repetition garbled"),
        ([2, 3, 4, 5, 2, 4, 3], 1.0, "correct", ""),  # cut off
    ]


def assembled(rollout, tiny, rl_config):
    rows = completions()
    width = 8
    tokens = np.full((len(rows), width), PAD, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, (text, *_) in enumerate(rows):
        tokens[i, : 1 + len(text)] = [VOCAB + i % TAGS, *text]
        mask[i, : 1 + len(text)] = True
    ended = np.array([text[-1] == EOS for text, *_ in rows])
    samples = Samples(
        tokens=tokens, mask=mask, log_probs=-np.ones(tokens.shape, np.float32) * mask,
        tags=tokens[:, 0] - VOCAB, stop_reason=np.where(ended, STOP_EOS, STOP_LENGTH),
    )
    verdicts = Verdicts(
        np.array([row[1] for row in rows], np.float32),
        np.array([reason_id(row[2]) for row in rows], np.int32),
    )
    samples, verdicts = jax.tree.map(jnp.asarray, (samples, verdicts))
    allowed = rl_config(forbidden_ids=(6,)).allowed_ids()
    return samples, host(
        assemble(samples, verdicts, rollout=rollout, config=tiny, allowed=allowed)
    )


def test_rewards_are_the_weighted_sum_of_their_parts(tiny, rl_config):
    rollout = RolloutConfig(
        num_samples=4, max_new_tokens=8, repetition_weight=0.5, overlong_weight=0.25,
        overlong_buffer=4, repetition_ngram=2, repetition_count=3,
    )
    samples, rows = assembled(rollout, tiny, rl_config)
    texts = [text for text, *_ in completions()]
    task = np.array([row[1] for row in completions()])
    repeated, overlong = [], []
    for text in texts:
        pairs = list(itertools.pairwise(text))
        repeated.append(-(1 - len(set(pairs)) / len(pairs)))
        overlong.append(np.clip(((8 - 4) - (1 + len(text))) / 4, -1, 0))  # DAPO eq. 13
    expected = dict(task=task, repetition=np.array(repeated), overlong=np.array(overlong))
    assert set(rows.parts) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(rows.parts[name].ravel(), values, atol=1e-6)
        assert np.ptp(values) > 0
    total = task + 0.5 * expected["repetition"] + 0.25 * expected["overlong"]
    np.testing.assert_allclose(rows.rewards, total.reshape(2, 4), atol=1e-6)
    np.testing.assert_array_equal(rows.tokens, np.array(samples.tokens).reshape(2, 4, 8))
    # Without weights the task's reward is all there is.
    plain = RolloutConfig(
        num_samples=4, max_new_tokens=8, repetition_ngram=2, repetition_count=3
    )
    _, rows = assembled(plain, tiny, rl_config)
    assert list(rows.parts) == ["task"]
    np.testing.assert_allclose(rows.rewards.ravel(), task)


def test_patterns_are_penalised_and_explain_failures_alone(tiny, rl_config):
    rollout = RolloutConfig(
        num_samples=4, max_new_tokens=8, repetition_ngram=2, repetition_count=3
    )
    _, rows = assembled(rollout, tiny, rl_config)
    for text, reward, reason, found, penalised, got in zip(
        *zip(*completions()), rows.penalised.ravel(), rows.reasons.ravel(), strict=True
    ):
        assert penalised == (text[-1] != EOS or bool(found)), (text, found)
        expected = reason if reward > 0 or not found else found.split()[0]
        assert REASONS[got] == expected, (text, found)


def test_metrics_of_a_batch(rollouts):
    tags = np.random.default_rng(0).integers(-1, TAGS, rollouts.tags.shape)
    rollouts = rollouts.replace(tags=tags.astype(np.int32))
    got = jax.jit(rollout_metrics, static_argnums=1)(rollouts, TAGS)
    lengths, rewards = rollouts.mask.sum(axis=2), rollouts.rewards
    expected = {
        "reward": rewards.mean(),
        "reward_std": rewards.std(axis=1, ddof=1).mean(),
        "frac_reward_zero_std": np.mean([len(set(group)) == 1 for group in rewards.tolist()]),
        "rewards/task/mean": rewards.mean(),
        "rewards/task/std": rewards.std(),
        "completions/mean_length": lengths.mean(),
        "completions/max_length": lengths.max(),
        "completions/mean_terminated_length": lengths[rollouts.ended].mean(),
        "completions/clipped_ratio": 1 - rollouts.ended.mean(),
        "penalised": rollouts.penalised.mean(),
        "num_tokens": lengths.sum(),
    }
    counts = np.array([(rollouts.tags == tag).sum() for tag in range(TAGS)])
    share = counts / counts.sum()
    expected["tags/share"] = share
    expected["tags/entropy"] = -(share * np.log(share)).sum()
    expected["tags/reward"] = [rewards[rollouts.tags == tag].mean() for tag in range(TAGS)]
    assert set(got) == set(expected)
    assert counts.min() > 0 and len(set(counts)) > 1 and (tags == -1).any()
    assert 0 < expected["frac_reward_zero_std"] < 1
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    # One sample a prompt has no spread, and is no reason for a figure that is not finite.
    single = jax.tree.map(lambda x: jnp.asarray(x[:, :1]), rollouts)
    made = rollout_metrics(single, TAGS)
    assert made["reward_std"] == 0 and all(np.isfinite(x).all() for x in made.values())


# Dynamic sampling

NUM_PROMPTS = 3


def sample_round(table, prompts, key):
    """The rewards of a prompt come from a table by its index; its tokens say whose they are."""
    rewards = table[prompts.index]
    shape = rewards.shape
    tokens = jnp.broadcast_to(prompts.index[:, None, None], (*shape, 2)).astype(jnp.int32)
    zeros, flags = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    return Rollouts(
        tokens=tokens, mask=tokens >= 0, log_probs=tokens.astype(jnp.float32), tags=zeros,
        given=flags, ended=flags, rewards=rewards, parts={"task": rewards}, penalised=flags,
        reasons=zeros,
    )


def draw_rounds(table, prompts, key):
    return refill(functools.partial(sample_round, table), prompts, key, NUM_PROMPTS)


def brute_force(table, index):
    """Fill up round by round, as a list: informative groups first, in the order they came."""
    def good(i):
        return len(set(table[i].tolist())) > 1

    kept, rounds = list(index[:NUM_PROMPTS]), 1
    while rounds < len(index) // NUM_PROMPTS and not all(map(good, kept)):
        new = index[rounds * NUM_PROMPTS : (rounds + 1) * NUM_PROMPTS]
        usable = [i for i in kept if good(i)] + [i for i in new if good(i)]
        rest = [i for i in kept if not good(i)]
        kept = (usable + rest)[:NUM_PROMPTS]
        rounds += 1
    return kept, rounds


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_refill_is_brute_force(share):
    compiled, seen = jax.jit(draw_rounds), set()
    rng = np.random.default_rng(int(10 * share))
    for trial in range(40):
        table = np.repeat(rng.integers(0, 2, (50, 1)), 4, axis=1).astype(np.float32)
        mixed = rng.random(50) < share
        table[mixed] = [0, 1, 1, 0]
        index = rng.permutation(50)[: 4 * NUM_PROMPTS].astype(np.int32)
        prompts = PromptBatch(index[:, None] + 100, np.ones((12, 1), np.int32), index, index * 2)
        arguments = (*jax.tree.map(jnp.asarray, (table, prompts)), jax.random.key(0))
        kept, rollouts, rounds = compiled(*arguments)
        expected, drawn = brute_force(table, index)
        np.testing.assert_array_equal(kept.index, expected)
        assert rounds == drawn
        # Every part of a prompt and of its rollouts moved along.
        np.testing.assert_array_equal(kept.ids[:, 0], np.array(expected) + 100)
        np.testing.assert_array_equal(kept.metadata, np.array(expected) * 2)
        np.testing.assert_array_equal(rollouts.tokens[:, 0, 0], expected)
        np.testing.assert_array_equal(rollouts.rewards, table[expected])
        assert informative(rollouts).sum() == sum(len(set(table[i])) > 1 for i in expected)
        seen.add(drawn)
        if trial == 0:
            again = draw_rounds(*arguments)
            jax.tree.map(np.testing.assert_array_equal, again, (kept, rollouts, rounds))
    # No more rounds than needed, and all there are where that does not help.
    assert len(seen) > 2 if 0 < share < 1 else seen == {4 if share == 0 else 1}


def test_rewards_that_are_not_finite_are_not_informative(rollouts):
    rewards = rollouts.rewards.copy()
    rewards[0] = [0, 0, 0, 0, 0, 1]
    rewards[1] = 0.3
    rewards[2, 1] = np.nan
    got = informative(jax.tree.map(jnp.asarray, rollouts.replace(rewards=rewards)))
    np.testing.assert_array_equal(got[:3], [True, False, False])
