"""What is known before the first gradient, against numpy: penalties, KL, GAE, the critic."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.learning import rl_updates
from reasoning.learning.experience import generalized_advantages, make_experience
from reasoning.learning.rl_state import RLConfig, init_policy_state
from reasoning.models.transformer import Transformer
from reasoning.rewards.verdicts import reason_id

CLOSE = dict(rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def experience_of(prompts, quick):
    """`experience_of(state, rollouts, config)`, jitted."""
    compiled = jax.jit(make_experience, static_argnames="config", compiler_options=quick)

    def run(state, rollouts, config):
        return compiled(state, prompts, rollouts, jax.random.key(0), config=config)

    return run


def loo(rewards):
    return rewards - (rewards.sum(axis=1, keepdims=True) - rewards) / (rewards.shape[1] - 1)


@pytest.fixture
def judged(made_up, plain, tiny_params, prompts):
    """Rollouts with the policy's own log-probs; some are penalised, never all of a group."""
    rollouts = made_up()
    log_probs, _ = plain.log_probs(tiny_params, prompts, rollouts.tokens)
    penalised = np.asarray(rollouts.penalised)
    assert ((~penalised).sum(axis=1) >= 2).all() and penalised.any(axis=1).sum() > 1
    return rollouts.replace(log_probs=jnp.asarray(log_probs * rollouts.mask, jnp.float32))


def state_of(config, params, keep, reference):
    return init_policy_state(params, config, keep).replace(reference=reference)


@pytest.fixture
def kl(judged, plain, other_params, prompts):
    """KL of each completion to the reference policy, `[P, G]`: k1 summed over its tokens."""
    reference, _ = plain.log_probs(other_params, prompts, judged.tokens)
    return ((np.array(judged.log_probs, float) - reference) * judged.mask).sum(axis=2)


def test_penalties_of_t1_in_both_orders_and_its_kl(
    rl_config, tiny_params, other_params, judged, kl, keep, experience_of
):
    rewards, penalised = np.array(judged.rewards, float), np.array(judged.penalised)
    expected = {"before": loo(np.where(penalised, -1, rewards) - 0.5 * kl)}
    expected["after"] = np.full(rewards.shape, -1.0)
    for p, row in enumerate(rewards - 0.5 * kl):
        good = ~penalised[p]
        expected["after"][p, good] = loo(row[good][None])[0]
    got = {}
    for order in expected:
        config = rl_config("t1", dict(penalty=order, kl_coef=0.5))
        state = state_of(config, tiny_params, keep, other_params)
        experience, metrics = experience_of(state, judged, config)
        got[order] = np.array(experience.advantages)
        want = np.broadcast_to(expected[order][..., None], got[order].shape)
        np.testing.assert_allclose(got[order], want, **CLOSE)
        assert metrics["kl"] > 0
    assert np.abs(got["before"] - got["after"]).max() > 0.1
    # T1 centres the KL on that of the group's others; leave-one-out of the difference does so.
    others = (kl.sum(axis=1, keepdims=True) - kl) / (kl.shape[1] - 1)
    separate = loo(np.where(penalised, -1, rewards)) - 0.5 * (kl - others)
    np.testing.assert_allclose(got["before"][..., 0], separate, **CLOSE)
    assert np.abs(kl - others).max() > 0.1


def test_no_penalty_is_taken_unless_asked_for(
    rl_config, tiny_params, judged, keep, experience_of
):
    config = rl_config()
    state = state_of(config, tiny_params, keep, None)
    experience, metrics = experience_of(state, judged, config)
    want = np.broadcast_to(loo(np.array(judged.rewards, float))[..., None], judged.mask.shape)
    np.testing.assert_allclose(experience.advantages, want, **CLOSE)
    assert experience.reference_log_probs is None and "kl" not in metrics


@pytest.mark.parametrize("preset", ["t1", "ppo", "reinforce_pp", "grpo"])
def test_masking_truncated_completions_changes_no_advantage(
    preset, rl_config, tiny_params, other_params, judged, keep, experience_of
):
    made = {}
    for masks in (False, True):
        config = rl_config(preset, dict(mask_truncated=masks, kl_coef=0.5))
        state = init_policy_state(tiny_params, config, keep).replace(reference=other_params)
        made[masks], _ = experience_of(state, judged, config)
    np.testing.assert_array_equal(made[True].advantages, made[False].advantages)
    np.testing.assert_array_equal(made[False].mask, judged.mask)
    cut = ~np.array(judged.ended)
    assert cut.any() and (np.array(made[True].mask)[cut] == 0).all()
    np.testing.assert_array_equal(np.array(made[True].mask)[~cut], judged.mask[~cut])
    np.testing.assert_array_equal(made[True].selected, made[True].mask)


def gae(rewards, values, mask, gae_lambda):
    """The sums of 1506.02438 eq. 16 for one sequence, gamma 1."""
    places = np.flatnonzero(mask)
    deltas = {}
    for i, t in enumerate(places):
        after = values[places[i + 1]] if i + 1 < len(places) else 0.0
        deltas[t] = rewards[t] + after - values[t]
    out = np.zeros(len(mask))
    for i, t in enumerate(places):
        out[t] = sum(gae_lambda**n * deltas[later] for n, later in enumerate(places[i:]))
    return out


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_generalized_advantages(gae_lambda):
    rng = np.random.default_rng(0)
    shape = 3, 5, 7
    rewards, values = rng.normal(size=(2, *shape)).astype(np.float32)
    first, length = rng.integers(0, 2, shape[:2]), rng.integers(0, 8, shape[:2])
    places = np.arange(7)
    mask = (places >= first[..., None]) & (places < (first + length)[..., None])
    mask = mask.astype(np.float32)
    got = generalized_advantages(*map(jnp.asarray, (rewards, values, mask)), gae_lambda)
    for row in np.ndindex(shape[:2]):
        expected = gae(rewards[row], values[row], mask[row], gae_lambda)
        np.testing.assert_allclose(got[row], expected, rtol=1e-5, atol=1e-5)
    if gae_lambda == 1:
        got = generalized_advantages(rewards, np.zeros_like(values), mask, 1.0)
        to_go = np.cumsum((rewards * mask)[..., ::-1], axis=2)[..., ::-1] * mask
        np.testing.assert_allclose(got, to_go, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("clip", "loss"), [(0.5, 1.125), (2.0, 0.5)])
def test_the_critics_values_are_clipped_as_the_algorithm_says(monkeypatch, rl_config, clip, loss):
    # From 1 to 2 on the way to 3: held at 1.5, or free.
    monkeypatch.setattr(rl_updates, "critic_values", lambda *_: jnp.array([[2.0]]))
    part = types.SimpleNamespace(
        prompts=None, tokens=None, old_values=jnp.array([[1.0]]), returns=jnp.array([[3.0]]),
        weights=jnp.array([[1.0]]),
    )
    config = rl_config("ppo", dict(value_clip=clip))
    assert rl_updates._critic_objective(None, part, config)[0] == pytest.approx(loss)


def test_ppo_advantages_returns_and_the_critics_step(
    tiny, rl_config, tiny_params, other_params, prompts, judged, plain, improve, keep, same,
    experience_of,
):
    config = rl_config("ppo", dict(gae_lambda=0.9, kl_coef=0.5))
    head = jnp.asarray(np.random.default_rng(1).normal(size=16), jnp.float32)
    critic = {"model": other_params, "head": head}
    state = state_of(config, tiny_params, keep, other_params).replace(critic=critic)
    rows, places, _ = plain.rows(prompts, judged.tokens)
    mask = np.array(judged.mask, float)

    def values_of(critic):
        hidden, _ = Transformer(tiny).apply(critic["model"], rows, head=False)
        hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
        return (hidden @ critic["head"]).reshape(judged.tokens.shape)

    values = np.array(jax.jit(values_of)(critic), float)
    reference, _ = plain.log_probs(other_params, prompts, judged.tokens)
    rewards = -0.5 * (np.array(judged.log_probs, float) - reference) * mask
    last = judged.mask.sum(axis=2) - 1
    for p, g in np.ndindex(last.shape):
        rewards[p, g, last[p, g]] += float(judged.rewards[p, g])
    raw = np.stack([
        gae(*row, 0.9) for row in zip(*(x.reshape(-1, 5) for x in (rewards, values, mask)))
    ]).reshape(mask.shape)
    mean = raw.sum() / mask.sum()
    std = np.sqrt(((raw - mean) ** 2 * mask).sum() / mask.sum())
    experience, _ = experience_of(state, judged, config)
    np.testing.assert_allclose(experience.advantages, (raw - mean) / std * mask, **CLOSE)
    returns = raw + values * mask
    np.testing.assert_allclose(experience.returns, returns, **CLOSE)

    new, metrics = improve(config, None, judged, state=state)

    @jax.jit
    @jax.value_and_grad
    def value_loss(critic):
        squares = 0.5 * (values_of(critic) - returns.astype(np.float32)) ** 2
        return jnp.sum(squares * mask) / mask.sum()

    loss, gradient = value_loss(critic)
    assert metrics["value_loss"] == pytest.approx(float(loss), rel=1e-4)
    same(new.critic_opt_state["total"], gradient, **CLOSE)
    c = experience.advantages * mask / mask.sum()
    expected = plain.gradient(tiny_params, prompts, judged.tokens, c)
    same(new.opt_state["total"], expected, **CLOSE)
    # In parts, as the policy's.
    config = rl_config("ppo", dict(gae_lambda=0.9, kl_coef=0.5), num_microbatches=4)
    in_parts, metrics = improve(config, None, judged, state=state)
    same(in_parts.critic_opt_state["total"], gradient, **CLOSE)
    assert metrics["value_loss"] == pytest.approx(float(loss), rel=1e-4)


def test_values_of_tags_are_those_of_judged_samples(
    rl_config, tiny_params, made_up, keep, experience_of
):
    rollouts = made_up(given=True)
    tags, rewards = np.array(rollouts.tags), np.array(rollouts.rewards, float)
    dropped = np.zeros(tags.shape, bool)
    dropped[0, np.flatnonzero(tags[0] == 1)[0]] = True  # one of a tag's two
    dropped[1] = tags[1] == 2  # both
    dropped[3] = True  # the whole prompt
    reasons = jnp.asarray(np.where(dropped, reason_id("skipped"), 0))
    config = rl_config("gfpo_exact")
    state = state_of(config, tiny_params, keep, None)
    experience, _ = experience_of(state, rollouts.replace(reasons=reasons), config)
    kept = ~dropped
    for p, tag in np.ndindex(3, 3):
        judged = kept[p] & (tags[p] == tag)
        expected = rewards[p][judged if judged.any() else kept[p]].mean()
        np.testing.assert_allclose(experience.tag_values[p, tag], expected, **CLOSE)
    np.testing.assert_array_equal(experience.tag_values[3], 0)
    np.testing.assert_array_equal(experience.mask[:, :, 0], np.repeat([[1], [1], [1], [0]], 6, 1))


def test_what_is_optional_is_left_out_of_the_state(rl_config, tiny_params, keep):
    bare = init_policy_state(tiny_params, rl_config("t1", dict(kl_coef=0.0)), keep)
    assert bare.reference is None and bare.critic is None and bare.critic_opt_state is None
    full = init_policy_state(tiny_params, rl_config("ppo"), keep)
    assert full.reference is not None and full.critic is not None
    owned = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(
        (full.params, full.reference, full.critic["model"])
    )]
    given = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tiny_params)]
    assert len(set(owned + given)) == 4 * len(given)  # so that each may be donated


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_prompts=0), "num_prompts=0: must be at least 1."),
        (dict(max_rounds=0), "max_rounds=0: must be at least 1."),
        (dict(num_epochs=-1), "num_epochs=-1: must be at least 1."),
        (
            dict(num_prompts=6, num_minibatches=2, num_microbatches=2),
            "num_prompts=6: must be a multiple of num_minibatches * num_microbatches = 4.",
        ),
        (
            dict(preset="rloo", overrides=dict(advantage="pkpo", advantage_k=7)),
            "advantage_k=7: must be at most num_samples=6.",
        ),
        (
            dict(preset="rloo", rollout=dict(num_samples=1)),
            "num_samples=1: a sample is compared with the others of its prompt; draw at least 2.",
        ),
        (
            dict(preset="gfpo_exact", rollout=dict(num_samples=5)),
            "num_samples=5: stratified draws need a multiple of num_strategies=3.",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message, rl_config):
    with pytest.raises(ValueError) as error:
        rl_config(**settings)
    assert str(error.value) == message


def test_one_sample_a_prompt_is_enough_without_groups(rl_config):
    for preset in ("ppo", "reinforce_pp"):
        assert rl_config(preset, rollout=dict(num_samples=1)).rollout.num_samples == 1


def test_forbidden_ids_are_not_allowed(rl_config):
    config = rl_config(forbidden_ids=(0, 6))
    np.testing.assert_array_equal(config.allowed_ids(), [0, 1, 1, 1, 1, 1, 0, 1])
    assert rl_config().allowed_ids().all() and isinstance(hash(config), int)
    assert isinstance(config, RLConfig) and config.on_policy


def test_another_number_of_prompts_is_refused(rl_config, tiny_params, prompts, made_up, improve):
    few, rollouts = jax.tree.map(lambda x: x[:3], (prompts, made_up()))
    with pytest.raises(ValueError, match=r"^prompts: 3 were given where an update reads 4\."):
        improve(rl_config(), tiny_params, rollouts, batch=few)
