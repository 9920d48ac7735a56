"""Rollouts: whose noise is whose, what is trained of them, their shaping, and dynamic sampling."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.learning.advantages import penalise_after, penalise_before, rloo
from reasoning.learning.rollouts import (
    PromptBatch,
    RolloutConfig,
    Rollouts,
    assemble,
    drawn_metrics,
    informative,
    refill,
    roll_out,
    rollout_metrics,
    sample_tags,
)
from reasoning.learning.scoring import score
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
            reward=second_token_is_5, allowed=config.allowed_ids(), stop_ids=config.stop_ids,
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


@pytest.mark.parametrize("num_slots", [5, 23, 100])
def test_rollouts_in_slots_are_the_same(run, rollouts, rl_config, tiny_params, prompts, num_slots):
    config = rl_config(rollout=dict(num_slots=num_slots))
    found = host(run(tiny_params, prompts, jax.random.key(0), config))
    for name in ("tokens", "mask", "tags", "ended", "rewards", "reasons"):
        np.testing.assert_array_equal(getattr(found, name), getattr(rollouts, name))
    np.testing.assert_allclose(found.log_probs, rollouts.log_probs, atol=1e-5)


def test_slots_need_a_row_and_a_loop_that_may_end():
    with pytest.raises(ValueError, match=r"^num_slots=0: must be at least 1\.$"):
        RolloutConfig(num_slots=0)
    with pytest.raises(ValueError, match=r"^num_slots=4: rows that take up new samples .*early_ex"):
        RolloutConfig(num_slots=4, early_exit=False)


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


FILTERS = [{}, dict(temperature=1.3, top_p=0.9), dict(min_p=0.1), dict(top_k=4)]


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


def test_top_k_is_what_is_sampled_from(run, rl_config, tiny_params, prompts):
    config = rl_config(rollout=dict(top_k=1))
    rows = host(run(tiny_params, prompts, jax.random.key(0), config))
    np.testing.assert_array_equal(rows.log_probs, 0)  # the likeliest token is the only one
    np.testing.assert_array_equal(rows.tokens, np.broadcast_to(rows.tokens[:, :1], (4, 6, 5)))


# Verdicts

def test_verdicts_of_a_wrong_shape_are_refused_while_tracing(rl_config, tiny_params, prompts):
    def one_a_token(prompts, completions, metadata):
        return Verdicts(completions.mask.astype(jnp.float32), completions.tokens[:, 0])

    def trace(reward):
        config = rl_config()
        sample = functools.partial(
            roll_out, config=config.model, rollout=config.rollout, reward=reward,
            allowed=config.allowed_ids(), stop_ids=(EOS,), pad_id=PAD,
        )
        jax.eval_shape(sample, tiny_params, prompts, jax.random.key(0))

    trace(second_token_is_5)
    message = r"^one_a_token: reward is float32\[24, 5\]; return float32\[24\], one entry per"
    with pytest.raises(ValueError, match=message):
        trace(one_a_token)


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
        ([2, 3, 2, 3, 2, 3, 6], 0.0, "skipped", "repetition garbled"),  # cut off, not judged
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
        told = reward > 0 or not found or reason == "skipped"
        assert REASONS[got] == (reason if told else found.split()[0]), (text, found)
    for pattern, found in rows.patterns.items():
        expected = [
            text[-1] != EOS if pattern == "truncated" else pattern in names
            for text, _, _, names in completions()
        ]
        np.testing.assert_array_equal(found.ravel(), expected)
    assert set(rows.patterns) == {"truncated", "repetition", "garbled"}
    assert rows.valid.ravel().tolist() == [True] * 7 + [False]
    worth = np.where(rows.penalised, -1, rows.rewards)
    np.testing.assert_array_equal(rows.worth("before"), worth)
    np.testing.assert_array_equal(rows.worth("after"), worth)
    np.testing.assert_array_equal(rows.worth("none"), rows.rewards)


def test_rewards_that_are_no_number_are_counted(rollouts):
    rewards = np.array(rollouts.rewards)
    rewards[0, 0], rewards[1, 1] = np.nan, np.inf
    lost = jax.tree.map(jnp.asarray, rollouts.replace(rewards=rewards))
    assert drawn_metrics(lost, "none")["sampling/reward_nan"] == 2


@pytest.mark.parametrize("skips", [False, True])
def test_metrics_of_a_batch(rollouts, skips):
    rng = np.random.default_rng(0)
    tags = rng.integers(-1, TAGS, rollouts.tags.shape)
    valid = rng.random(tags.shape) < 0.7 if skips else np.ones(tags.shape, bool)
    rollouts = rollouts.replace(
        tags=tags.astype(np.int32),
        patterns={name: rng.random(tags.shape) < 0.3 for name in ("truncated", "garbled")},
        reasons=np.where(valid, rng.integers(0, 3, tags.shape), reason_id("skipped")),
        # What was skipped has some reward, which must not matter.
        rewards=np.where(valid, rollouts.rewards, 99.0).astype(np.float32),
        parts={"task": np.where(valid, rollouts.rewards, 99.0).astype(np.float32)},
    )
    got = jax.jit(rollout_metrics, static_argnums=1)(jax.tree.map(jnp.asarray, rollouts), TAGS)
    lengths, rewards = rollouts.mask.sum(axis=2), rollouts.rewards
    groups = [row[kept] for row, kept in zip(rewards, valid, strict=True)]
    assert min(map(len, groups)) > 1
    patterns = rollouts.patterns
    expected = {
        "reward": rewards[valid].mean(),
        "reward_std": np.mean([group.std(ddof=1) for group in groups]),
        "frac_reward_zero_std": np.mean([len(set(group)) == 1 for group in groups]),
        "rewards/task/mean": rewards[valid].mean(),
        "rewards/task/std": rewards[valid].std(),
        "rewards/skipped": 1 - valid.mean(),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/mean_terminated_length": lengths[rollouts.ended].mean(),
        "completions/min_terminated_length": lengths[rollouts.ended].min(),
        "completions/max_terminated_length": lengths[rollouts.ended].max(),
        "completions/clipped_ratio": 1 - rollouts.ended.mean(),
        "patterns/truncated": patterns["truncated"].mean(),
        "patterns/garbled": patterns["garbled"].mean(),
        "penalised": (patterns["truncated"] | patterns["garbled"]).mean(),
        "num_tokens": lengths.sum(),
    }
    for i, name in enumerate(REASONS):
        expected[f"reasons/{name}"] = (rollouts.reasons == i).mean()
    counts = np.array([(rollouts.tags == tag).sum() for tag in range(TAGS)])
    share = counts / counts.sum()
    expected["tags/share"] = share
    expected["tags/entropy"] = -(share * np.log(share)).sum()
    expected["tags/reward"] = [
        rewards[(rollouts.tags == tag) & valid].mean() for tag in range(TAGS)
    ]
    assert set(got) == set(expected)
    assert counts.min() > 0 and len(set(counts)) > 1 and (tags == -1).any()
    assert 0 < expected["frac_reward_zero_std"] < 1 and lengths.min() < lengths.max()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    # One sample a prompt has no spread, and is no reason for a figure that is not finite.
    single = jax.tree.map(lambda x: jnp.asarray(x[:, :1]), rollouts)
    made = rollout_metrics(single, TAGS)
    assert made["reward_std"] == 0 and all(np.isfinite(x).all() for x in made.values())
    # Neither is a batch in which nothing has ended and nothing was judged.
    none = single.replace(
        ended=single.ended & False, reasons=jnp.full_like(single.reasons, reason_id("skipped"))
    )
    made = rollout_metrics(none, TAGS)
    assert all(np.isfinite(x).all() for x in made.values()) and made["rewards/skipped"] == 1
    assert made["frac_reward_zero_std"] == 1 and made["reward"] == 0
    for name in ("mean", "min", "max"):
        assert made[f"completions/{name}_terminated_length"] == 0


# Dynamic sampling

NUM_PROMPTS = 3


def sample_round(table, prompts, key):
    """The rewards of a prompt come from a table by its index; its tokens say whose they are.

    An odd index has a token less in each completion; a reward of 2 is one with garble.
    """
    rewards = table[prompts.index]
    shape = rewards.shape
    tokens = jnp.broadcast_to(prompts.index[:, None, None], (*shape, 2)).astype(jnp.int32)
    zeros, flags = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    return Rollouts(
        tokens=tokens, mask=jnp.arange(2)[None, None] < 2 - tokens % 2,
        log_probs=tokens.astype(jnp.float32), tags=zeros, given=flags, ended=flags,
        rewards=rewards, parts={"task": rewards}, patterns={"garbled": rewards == 2},
        reasons=zeros,
    )


def draw_rounds(table, prompts, key, penalty="none"):
    return refill(functools.partial(sample_round, table), prompts, key, NUM_PROMPTS, penalty)


def good(group):
    return len(set(group.tolist())) > 1


def brute_force(table, index, good=good):
    """Fill up round by round, as a list: informative groups first, in the order they came."""
    table = [good(row) for row in table]
    good = table.__getitem__

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
        kept, rollouts, metrics = compiled(*arguments)
        expected, drawn = brute_force(table, index)
        np.testing.assert_array_equal(kept.index, expected)
        # What was thrown away was drawn all the same.
        everything = index[: drawn * NUM_PROMPTS]
        assert {name: float(value) for name, value in metrics.items()} == {
            "num_tokens": 4 * (2 - everything % 2).sum(),
            "sampling/rounds": drawn,
            "sampling/groups": len(everything),
            "sampling/informative_groups": sum(good(table[i]) for i in everything),
            "sampling/reward": pytest.approx(table[everything].mean(), rel=1e-6),
            "sampling/reward_nan": 0,
        }
        assert rollout_metrics(rollouts, TAGS)["num_tokens"] == 4 * sum(2 - i % 2 for i in expected)
        # Every part of a prompt and of its rollouts moved along.
        np.testing.assert_array_equal(kept.ids[:, 0], np.array(expected) + 100)
        np.testing.assert_array_equal(kept.metadata, np.array(expected) * 2)
        np.testing.assert_array_equal(rollouts.tokens[:, 0, 0], expected)
        np.testing.assert_array_equal(rollouts.rewards, table[expected])
        assert informative(rollouts).sum() == sum(good(table[i]) for i in expected)
        seen.add(drawn)
        if trial == 0:
            again = draw_rounds(*arguments)
            jax.tree.map(np.testing.assert_array_equal, again, (kept, rollouts, metrics))
    # No more rounds than needed, and all there are where that does not help.
    assert len(seen) > 2 if 0 < share < 1 else seen == {4 if share == 0 else 1}


GROUPS = [  # rewards, which of them are garbled, and the penalties under which there is a gradient
    ((0, 0, 0, 0), (), ()),
    ((0, 1, 0, 0), (), ("none", "before", "after")),
    ((1, 1, 1, 1), (0,), ("before", "after")),
    ((0, -1, -1, -1), (0,), ("none", "after")),
    ((-1, -1, -1, -1), (0, 2), ("after",)),
    ((1, 1, 1, 1), (0, 1, 2, 3), ("after",)),  # -1 each, with no baseline
]
METHODS = {
    "none": lambda rewards, valid, _: rloo(rewards, valid),
    "before": functools.partial(penalise_before, rloo),
    "after": functools.partial(penalise_after, rloo),
}


@pytest.mark.parametrize("penalty", METHODS)
def test_a_group_is_informative_by_what_trains(penalty):
    index = np.arange(len(GROUPS))
    table = jnp.asarray([rewards for rewards, *_ in GROUPS], jnp.float32)
    rows = sample_round(table, PromptBatch(index, index, index, index), None)
    garbled = np.array([[i in places for i in range(4)] for _, places, _ in GROUPS])
    rows = rows.replace(patterns={"garbled": garbled, "truncated": garbled & False})
    expected = [penalty in penalties for *_, penalties in GROUPS]
    np.testing.assert_array_equal(informative(rows, penalty), expected)
    # It is where an advantage is not 0.
    advantages = METHODS[penalty](rows.rewards, rows.valid, rows.penalised)
    np.testing.assert_array_equal((advantages != 0).any(axis=1), expected)
    # TRL's figure is of the rewards alone.
    assert rollout_metrics(rows, TAGS)["frac_reward_zero_std"] == pytest.approx(4 / 6)


def test_samples_that_were_skipped_make_no_group_informative():
    table = jnp.asarray([[0, 0, 0, 1], [0, 0, 1, 1], [2, 0, 0, 0], [0, 1, 1, 1]], jnp.float32)
    rows = sample_round(table, PromptBatch(*[np.arange(4)] * 4), None)
    skipped = jnp.array([[0, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0], [1, 1, 1, 0]], bool)
    rows = rows.replace(reasons=jnp.where(skipped, reason_id("skipped"), rows.reasons))
    for penalty in ("none", "before", "after"):
        got = informative(rows, penalty)
        np.testing.assert_array_equal(got, [False, True, False, False])
    none = rows.replace(reasons=jnp.full_like(rows.reasons, reason_id("skipped")))
    assert not informative(none, "after").any()


@pytest.mark.parametrize("penalty", ["before", "after"])
def test_refill_keeps_groups_that_differ_by_a_penalty_alone(penalty):
    rng = np.random.default_rng(0)
    table = np.ones((50, 4), np.float32)
    table[rng.random(50) < 0.3] = [2, 2, 1, 1] if penalty == "before" else [2, 2, 2, 2]
    index = rng.permutation(50)[: 4 * NUM_PROMPTS].astype(np.int32)
    prompts = jax.tree.map(jnp.asarray, PromptBatch(index, index, index, index))
    kept, _, metrics = draw_rounds(jnp.asarray(table), prompts, jax.random.key(0), penalty)
    expected, drawn = brute_force(table, index, good=lambda group: 2 in group)
    np.testing.assert_array_equal(kept.index, expected)
    assert metrics["sampling/rounds"] == drawn > 1
    found = sum(2 in table[i] for i in index[: drawn * NUM_PROMPTS])
    assert metrics["sampling/informative_groups"] == found > 0


def test_rewards_that_are_not_finite_are_not_informative(rollouts):
    rewards = rollouts.rewards.copy()
    rewards[0] = [0, 0, 0, 0, 0, 1]
    rewards[1] = 0.3
    rewards[2, 1] = np.nan
    got = informative(jax.tree.map(jnp.asarray, rollouts.replace(rewards=rewards)))
    np.testing.assert_array_equal(got[:3], [True, False, False])
