"""The first gradient of every algorithm against its formula, with nothing of the library in it.

On the policy's own samples every surrogate is plain REINFORCE: the gradient of -sum(c log p) with a
coefficient c for each token, worked out in numpy; log-probs come from rows without left padding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.learning import experience, scoring
from reasoning.learning.algorithms import ALGORITHMS
from reasoning.learning.losses import top_entropy_mask
from reasoning.learning.rl_state import init_policy_state
from reasoning.learning.rl_updates import update
from reasoning.learning.scoring import score
from reasoning.rewards.verdicts import reason_id

LENGTH, EOS = 5, 1
CLOSE = dict(rtol=1e-4, atol=1e-5)


def host(tree):
    return jax.tree.map(np.array, tree)


def trained(rollouts):
    """1 on the policy's own tokens: all of the completion, <eos> included, but no given tag."""
    mask = np.array(rollouts.mask, float)
    mask[:, :, 0] *= ~np.asarray(rollouts.given)
    return mask


def loo(rewards):
    return rewards - (rewards.sum(axis=1, keepdims=True) - rewards) / (rewards.shape[1] - 1)


def centred(rewards):
    return rewards - rewards.mean(axis=1, keepdims=True)


def normalised(rewards):
    return centred(rewards) / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-6)


ADVANTAGES = {
    "rloo": loo,
    "grpo": normalised,
    "dr_grpo": centred,
    "reinforce_pp_baseline": lambda r: centred(r) / (centred(r).std(ddof=1) + 1e-6),
}


def whitened(values, mask):
    mean = (values * mask).sum() / mask.sum()
    std = np.sqrt(((values - mean) ** 2 * mask).sum() / mask.sum())
    return (values - mean) / std * mask


def weights(mask, aggregation):
    lengths = mask.sum(axis=2, keepdims=True)
    sequences = mask.shape[0] * mask.shape[1]
    return {
        "token_mean": mask / mask.sum(),
        "sequence_mean_token_mean": mask / lengths / sequences,
        "sequence_mean_token_sum": mask / sequences,
        "sequence_mean_token_sum_norm": mask / sequences / LENGTH,
    }[aggregation]


def formula(algorithm, rollouts, log_probs, reference):
    """The coefficients c `[P, G, N]` of every token's log-prob."""
    mask, rewards = trained(rollouts), np.array(rollouts.rewards, float)
    kl = (np.array(rollouts.log_probs, float) - reference) * mask  # k1 when they were sampled
    beta = algorithm.kl_coef
    if algorithm.penalty == "before":
        rewards = np.where(rollouts.penalised, -1.0, rewards)
    if algorithm.advantage == "reinforce_pp":  # the return from each token on
        later = np.cumsum(kl[..., ::-1], axis=2)[..., ::-1]
        advantage = whitened((rewards[:, :, None] - beta * later) * mask, mask)
    else:
        if algorithm.kl_in_reward:
            rewards = rewards - beta * kl.sum(axis=2)
        advantage = ADVANTAGES[algorithm.advantage](rewards)[:, :, None]
    weight = weights(mask, algorithm.aggregation)
    if algorithm.positions == "fork":
        weight = np.eye(1, LENGTH)[None] / rewards.size
    coefficients = weight * advantage
    if beta and not algorithm.kl_in_reward:
        slope = {"k2": log_probs - reference, "k3": 1 - np.exp(reference - log_probs)}
        coefficients -= weight * beta * slope[algorithm.kl_estimator]
    return coefficients, weight


PRESETS = [name for name in ALGORITHMS if name not in ("ppo", "gfpo_exact")]


@pytest.mark.parametrize("preset", PRESETS)
def test_first_gradient_of_every_preset_is_its_formula(
    preset, rl_config, tiny_params, other_params, prompts, made_up, plain, improve, same
):
    config, rollouts = rl_config(preset), made_up()
    log_probs, _ = plain.log_probs(tiny_params, prompts, rollouts.tokens)
    reference, _ = plain.log_probs(other_params, prompts, rollouts.tokens)
    # KL in the reward needs log-probs of some policy; the ratio must not depend on them.
    noise = 0.1 * np.random.default_rng(1).normal(size=log_probs.shape)
    rollouts = rollouts.replace(log_probs=jnp.asarray(log_probs + noise, jnp.float32))
    state, metrics = improve(config, tiny_params, rollouts, reference=other_params)
    c, weight = formula(config.algorithm, rollouts, log_probs, reference)
    bonus = config.algorithm.entropy_coef * weight
    expected = plain.gradient(tiny_params, prompts, rollouts.tokens, c, bonus)
    same(state.opt_state["total"], expected, **CLOSE)
    assert metrics["clip_ratio/low_mean"] == 0 and metrics["clip_ratio/high_mean"] == 0
    assert metrics["grad_norm"] > 1e-3 and metrics["skipped"] == 0
    if config.algorithm.ema_decay is not None:  # the reference follows the updated policy
        b = config.algorithm.ema_decay
        mixed = jax.tree.map(lambda x, y: b * x + (1 - b) * y, other_params, state.params)
        same(state.reference, mixed, rtol=1e-6, atol=1e-8)
        assert (state.reference["params"]["token_embedding"]
                != other_params["params"]["token_embedding"]).any()
    elif state.reference is not None:
        same(state.reference, other_params)


def rloo_gradient(plain, params, prompts, rollouts, mask, temperature=1.0):
    advantage = loo(np.array(rollouts.rewards, float))[:, :, None]
    c = advantage * mask / rollouts.rewards.size
    return plain.gradient(params, prompts, rollouts.tokens, c, temperature=temperature)


def furthest(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.abs(x - y).max()) for x, y in pairs)


def test_the_decision_to_stop_is_trained(
    rl_config, tiny_params, prompts, made_up, plain, improve, same
):
    rollouts = made_up()
    got = improve(rl_config(), tiny_params, rollouts)[0].opt_state["total"]
    mask = trained(rollouts)
    without = mask * (np.asarray(rollouts.tokens) != EOS)
    assert 10 < (mask - without).sum() < 24
    same(got, rloo_gradient(plain, tiny_params, prompts, rollouts, mask), **CLOSE)
    assert furthest(got, rloo_gradient(plain, tiny_params, prompts, rollouts, without)) > 1e-2


def test_padding_and_the_samplers_log_probs_change_nothing(
    rl_config, tiny_params, made_up, improve, same
):
    rollouts = made_up()
    state, metrics = improve(rl_config(), tiny_params, rollouts)
    rng = np.random.default_rng(0)
    tokens = jnp.where(rollouts.mask, rollouts.tokens, rng.integers(0, 11, rollouts.mask.shape))
    again, _ = improve(rl_config(), tiny_params, rollouts.replace(tokens=tokens))
    same(again.opt_state["total"], state.opt_state["total"])
    # With one update per rollout the old policy is the present one, whatever rounding made of it.
    noise = jnp.asarray(rng.normal(size=rollouts.mask.shape), jnp.float32)
    noisy = rollouts.replace(log_probs=rollouts.log_probs + noise)
    again, other = improve(rl_config(), tiny_params, noisy)
    same(again.opt_state["total"], state.opt_state["total"])
    name = "sampling_logp_difference/mean"
    assert other[name] != metrics[name]  # where it shows


def test_a_given_tag_is_not_trained(
    rl_config, tiny_params, prompts, made_up, plain, improve, same
):
    rollouts = made_up(given=True)
    config = rl_config(rollout=dict(tags="stratified"))
    got = improve(config, tiny_params, rollouts)[0].opt_state["total"]
    mask = trained(rollouts)
    same(got, rloo_gradient(plain, tiny_params, prompts, rollouts, mask), **CLOSE)
    mask[:, :, 0] = 1
    assert furthest(got, rloo_gradient(plain, tiny_params, prompts, rollouts, mask)) > 1e-2


def test_the_distribution_that_was_sampled_from_is_trained(
    rl_config, tiny_params, prompts, made_up, plain, improve, same
):
    rollouts = made_up()
    config = rl_config(rollout=dict(temperature=1.3))
    got = improve(config, tiny_params, rollouts)[0].opt_state["total"]
    mask = trained(rollouts)
    expected = rloo_gradient(plain, tiny_params, prompts, rollouts, mask, temperature=1.3)
    same(got, expected, **CLOSE)
    assert furthest(got, rloo_gradient(plain, tiny_params, prompts, rollouts, mask)) > 1e-2


# Which samples train

def without(rollouts, dropped):
    """The same rollouts, some samples of which the reward has skipped."""
    reasons = np.where(dropped, reason_id("skipped"), rollouts.reasons)
    return rollouts.replace(reasons=jnp.asarray(reasons))


DROPPED = np.zeros((4, 6), bool)
DROPPED[[0, 0, 1, 3, 3, 3, 3], [0, 3, 5, 1, 2, 4, 5]] = True


@pytest.mark.parametrize("preset", ["rloo", "dr_grpo", "dapo"])
def test_skipped_samples_are_in_no_baseline_and_have_no_weight(
    preset, rl_config, tiny_params, prompts, made_up, plain, improve, same
):
    rollouts, config = without(made_up(), DROPPED), rl_config(preset)
    rewards, mask = np.array(rollouts.rewards, float), trained(rollouts) * ~DROPPED[..., None]
    advantage = np.zeros(rewards.shape)
    for p, kept in enumerate(~DROPPED):
        advantage[p, kept] = ADVANTAGES[config.algorithm.advantage](rewards[p : p + 1, kept])[0]
    weight = {
        "sequence_mean_token_sum": mask / (~DROPPED).sum(),
        "sequence_mean_token_sum_norm": mask / (~DROPPED).sum() / LENGTH,
        "token_mean": mask / mask.sum(),
    }[config.algorithm.aggregation]
    state, metrics = improve(config, tiny_params, rollouts)
    c = weight * advantage[..., None]
    same(
        state.opt_state["total"], plain.gradient(tiny_params, prompts, rollouts.tokens, c), **CLOSE
    )
    assert metrics["skipped"] == 0
    # Whatever was written there, and whatever it was worth.
    other = made_up(seed=1)
    swap = functools.partial(
        jax.tree.map, lambda x, y: jnp.where(DROPPED.reshape(4, 6, *[1] * (x.ndim - 2)), y, x)
    )
    again, _ = improve(config, tiny_params, without(swap(rollouts, other), DROPPED))
    same(again.opt_state["total"], state.opt_state["total"])


@pytest.mark.parametrize("preset", ["ppo", "reinforce_pp", "t1", "gfpo", "gspo"])
def test_what_was_skipped_changes_nothing(
    preset, rl_config, tiny_params, other_params, made_up, improve, same
):
    config = rl_config(preset, dict(entropy_coef=0.1))
    rollouts = without(made_up(), DROPPED)
    state, _ = improve(config, tiny_params, rollouts, reference=other_params)
    rewards = jnp.where(DROPPED, -50.0, rollouts.rewards)
    patterns = {"garbled": jnp.where(DROPPED, True, rollouts.patterns["garbled"])}
    again, _ = improve(
        config, tiny_params, rollouts.replace(rewards=rewards, patterns=patterns),
        reference=other_params,
    )
    same(again.opt_state["total"], state.opt_state["total"])
    judged, _ = improve(
        config, tiny_params, rollouts.replace(reasons=jnp.zeros_like(rollouts.reasons)),
        reference=other_params,
    )
    assert furthest(judged.opt_state["total"], state.opt_state["total"]) > 1e-3


def test_a_batch_that_was_skipped_whole_has_no_gradient(
    rl_config, tiny_params, made_up, improve, same
):
    rollouts = without(made_up(), np.ones((4, 6), bool))
    for preset in ("grpo", "ppo", "gfpo"):
        state, metrics = improve(rl_config(preset), tiny_params, rollouts)
        same(state.params, tiny_params)
        assert metrics["skipped"] == 0 and metrics["loss"] == 0


@pytest.mark.parametrize("preset", ["rloo", "dapo"])
def test_truncated_completions_may_be_masked(
    preset, rl_config, tiny_params, prompts, made_up, plain, improve, same
):
    rollouts = made_up()
    kept = np.array(rollouts.ended)
    assert 2 < (~kept).sum() < 12
    mask = trained(rollouts) * kept[..., None]
    weight = mask / {"rloo": kept.sum(), "dapo": mask.sum()}[preset]
    config = rl_config(preset, dict(mask_truncated=True))
    state, _ = improve(config, tiny_params, rollouts)
    # Baselines see their rewards.
    advantage = ADVANTAGES[config.algorithm.advantage](np.array(rollouts.rewards, float))
    c = weight * advantage[..., None]
    expected = plain.gradient(tiny_params, prompts, rollouts.tokens, c)
    same(state.opt_state["total"], expected, **CLOSE)


# Which tokens train

def largest(values, mask, count):
    """1 at the `count` largest values under the mask."""
    ranked = np.argsort(np.where(mask > 0, -values, np.inf), axis=None)
    chosen = np.zeros(mask.size)
    chosen[ranked[:count]] = 1
    return chosen.reshape(mask.shape)


def covariances(log_probs, advantage, mask):
    def off(x):
        return x - (x * mask).sum() / mask.sum()

    return off(log_probs) * off(np.broadcast_to(advantage, mask.shape)) * mask


def test_tokens_of_highest_entropy(
    rl_config, tiny_params, prompts, made_up, plain, improve, same
):
    rollouts = made_up()
    _, entropy = plain.log_probs(tiny_params, prompts, rollouts.tokens)
    mask = trained(rollouts)
    config = rl_config(overrides=dict(top_entropy=0.2))
    got = improve(config, tiny_params, rollouts)[0].opt_state["total"]
    few = largest(entropy, mask, int(np.ceil(0.2 * mask.sum())))
    same(got, rloo_gradient(plain, tiny_params, prompts, rollouts, few), **CLOSE)
    # All of them are the mask, as if nothing were selected.
    np.testing.assert_array_equal(top_entropy_mask(jnp.asarray(entropy), mask, 1.0), mask)


def test_clip_cov_drops_tokens_between_its_bounds(
    rl_config, tiny_params, prompts, made_up, plain, improve, same
):
    rollouts = made_up()
    log_probs, _ = plain.log_probs(tiny_params, prompts, rollouts.tokens)
    mask = trained(rollouts)
    cov = covariances(log_probs, loo(np.array(rollouts.rewards))[:, :, None], mask)
    inside = (cov > 1) & (cov < 5)
    assert 2 < inside.sum() < mask.sum() / 2
    config = rl_config(overrides=dict(clip_cov=1.0))  # all of them
    got = improve(config, tiny_params, rollouts)[0].opt_state["total"]
    same(got, rloo_gradient(plain, tiny_params, prompts, rollouts, mask * ~inside), **CLOSE)


def test_kl_cov_is_silent_while_the_policy_is_the_one_that_sampled(
    rl_config, tiny_params, prompts, made_up, plain, improve, same
):
    rollouts = made_up()
    log_probs, _ = plain.log_probs(tiny_params, prompts, rollouts.tokens)
    # Sampler and training pass agree up to rounding; the slope of |x| at 1e-6 is 1 all the same.
    rounding = 1e-6 * np.random.default_rng(0).normal(size=log_probs.shape)
    rollouts = rollouts.replace(log_probs=jnp.asarray(log_probs + rounding, jnp.float32))
    config = rl_config(overrides=dict(clip_high=0.28, kl_cov=0.2), num_epochs=2, num_minibatches=2)
    got = improve(config, tiny_params, rollouts, rate=0.0)[0].opt_state["total"]
    # Two epochs of two minibatches, each the mean of half of the prompts.
    expected = rloo_gradient(plain, tiny_params, prompts, rollouts, 4 * trained(rollouts))
    same(got, expected, **CLOSE)
    with pytest.raises(ValueError, match=r"^kl_cov=0\.2: holds tokens near the old policy"):
        rl_config(overrides=dict(kl_cov=0.2))


@pytest.mark.parametrize("overrides", [dict(kl_cov=0.2), dict(clip_cov=1.0)], ids=str)
def test_covariance_selects_nothing_where_all_advantages_are_0(
    overrides, rl_config, tiny_params, prompts, made_up, plain, improve, same
):
    rollouts = made_up()
    log_probs, _ = plain.log_probs(tiny_params, prompts, rollouts.tokens)
    far = rollouts.replace(
        rewards=jnp.ones_like(rollouts.rewards), log_probs=jnp.asarray(log_probs - 0.5, jnp.float32)
    )
    config = rl_config(overrides=overrides, num_epochs=2)
    state, _ = improve(config, tiny_params, far, rate=0.0)
    assert furthest(state.opt_state["total"], jax.tree.map(jnp.zeros_like, tiny_params)) == 0
    # With rewards that differ it does.
    far = far.replace(rewards=rollouts.rewards)
    every, _ = improve(rl_config(num_epochs=2), tiny_params, far, rate=0.0)
    state, _ = improve(config, tiny_params, far, rate=0.0)
    assert furthest(state.opt_state["total"], every.opt_state["total"]) > 1e-3


def test_entropy_shaped_advantages(
    rl_config, tiny_params, prompts, made_up, plain, improve, same
):
    rollouts = made_up()
    _, entropy = plain.log_probs(tiny_params, prompts, rollouts.tokens)
    advantage = loo(np.array(rollouts.rewards, float))[:, :, None]
    shaped = advantage + np.minimum(0.4 * entropy, np.abs(advantage) / 2)
    c = shaped * trained(rollouts) / rollouts.rewards.size
    config = rl_config(overrides=dict(entropy_shaping=0.4))
    got = improve(config, tiny_params, rollouts)[0].opt_state["total"]
    same(got, plain.gradient(tiny_params, prompts, rollouts.tokens, c), **CLOSE)


def test_adaptive_entropy_bonus(rl_config, tiny_params, prompts, made_up, plain, improve, same):
    overrides = dict(entropy_coef=0.3, entropy_target=1.0, entropy_delta=0.1)
    config, rollouts = rl_config(overrides=overrides), made_up()
    mask = trained(rollouts)
    for factor, step in ((2.0, 0.1), (0.5, -0.1)):  # a policy that is too sure, one that is not
        params = jax.tree.map(lambda x, f=factor: f * x, tiny_params)
        state, metrics = improve(config, params, rollouts)
        _, entropy = plain.log_probs(params, prompts, rollouts.tokens)
        mean = (entropy * mask).sum() / mask.sum()
        assert (mean < 1.0) == (step > 0) and metrics["entropy"] == pytest.approx(mean, rel=1e-4)
        assert state.entropy_coef == metrics["entropy_coef"] == pytest.approx(0.3 + step)
        # The bonus acts only below the target.
        size = rollouts.rewards.size
        c = loo(np.array(rollouts.rewards, float))[:, :, None] * mask / size
        bonus = 0.3 * mask / size * (mean <= 1.0)
        expected = plain.gradient(params, prompts, rollouts.tokens, c, bonus)
        same(state.opt_state["total"], expected, **CLOSE)
    # The weight never turns into a punishment of entropy.
    for _ in range(4):
        state, _ = improve(config, None, rollouts, state=state.replace(params=params))
    assert state.entropy_coef == 0


def test_the_entropy_is_read_by_one_pass_for_all_who_need_it(
    rl_config, tiny_params, prompts, made_up, keep, monkeypatch
):
    calls = []

    def count(*arguments, **options):
        calls.append(arguments)
        return read_completions(*arguments, **options)

    read_completions = scoring.read_completions
    monkeypatch.setattr(scoring, "read_completions", count)

    def passes(preset, **overrides):
        config = rl_config(preset, overrides)
        calls.clear()
        state = init_policy_state(tiny_params, config, keep)
        jax.eval_shape(
            functools.partial(update, config=config, optimizer=keep), state, prompts,
            made_up(given=preset == "gfpo_exact"), jax.random.key(0),
        )
        return len(calls)

    bonus = dict(entropy_coef=0.1, entropy_target=1.0)
    for preset in ("rloo", "gfpo", "gfpo_exact"):
        alone = passes(preset)
        assert alone >= 1 and passes(preset, **bonus) == alone + 1
    assert passes("rloo", top_entropy=0.5) == passes("rloo", top_entropy=0.5, **bonus)


def test_the_bonus_on_the_fork_is_by_the_entropy_of_the_tags(
    rl_config, tiny_params, prompts, made_up, improve, same
):
    overrides = dict(entropy_coef=0.3, entropy_target=0.5)
    rollouts, runs = made_up(given=True), {}
    log_probs = scoring.tag_log_probs(tiny_params, prompts, rl_config("gfpo_exact"))
    entropy = float(-(np.exp(log_probs) * log_probs).sum(axis=1).mean())
    for gap in (-0.01, 0.01, None):
        changes = {} if gap is None else {**overrides, "entropy_target": entropy + gap}
        config = rl_config("gfpo_exact", changes)
        runs[gap], metrics = improve(config, tiny_params, rollouts)
        assert metrics["entropy"] == pytest.approx(entropy, rel=1e-4)
    # Above its target it is off.
    same(runs[-0.01].opt_state["total"], runs[None].opt_state["total"], rtol=1e-5, atol=1e-7)
    assert furthest(runs[0.01].opt_state["total"], runs[None].opt_state["total"]) > 1e-3


def test_a_skipped_step_leaves_the_entropys_weight_alone(
    rl_config, tiny_params, made_up, improve
):
    config = rl_config(overrides=dict(entropy_coef=0.3, entropy_target=1.0, entropy_delta=0.1))
    lost = jax.tree.map(lambda x: x * jnp.nan, tiny_params)
    state, metrics = improve(config, lost, made_up())
    assert np.isnan(metrics["entropy"]) and metrics["skipped"] == 1
    assert state.entropy_coef == metrics["entropy_coef"] == np.float32(0.3)
    state, _ = improve(config, None, made_up(), state=state.replace(params=tiny_params))
    assert abs(float(state.entropy_coef) - 0.3) > 0.05


# Several updates per rollout

def test_every_minibatch_is_a_step_and_later_ones_leave_the_old_policy(
    rl_config, tiny_params, prompts, made_up, plain, improve
):
    rollouts = made_up()
    log_probs, _ = plain.log_probs(tiny_params, prompts, rollouts.tokens)
    rollouts = rollouts.replace(log_probs=jnp.asarray(log_probs * rollouts.mask, jnp.float32))
    config = rl_config(num_epochs=2, num_minibatches=2)
    assert not config.on_policy
    still, metrics = improve(config, tiny_params, rollouts, rate=0.0)
    # At rate 0 every minibatch is the first: the ratio is 1.
    assert still.opt_state["count"] == 4 and still.step == 1
    assert metrics["sampling_logp_difference/mean"] < 1e-4
    assert metrics["clip_ratio/low_mean"] == 0 and metrics["clip_ratio/high_mean"] == 0
    moved, metrics = improve(config, tiny_params, rollouts, rate=1.0)
    assert moved.opt_state["count"] == 4
    # The sampler's policy is the first minibatch's; later ones have left it.
    assert metrics["sampling_logp_difference/mean"] < 1e-4
    clipped = [float(metrics[f"clip_ratio/{part}_mean"]) for part in ("low", "high", "region")]
    assert clipped[0] + clipped[1] == pytest.approx(clipped[2]) and clipped[2] > 0.01


def test_sampler_and_training_pass_are_compared_before_the_policy_moves(
    rl_config, tiny_params, prompts, made_up, plain, improve
):
    rollouts = made_up()
    log_probs, _ = plain.log_probs(tiny_params, prompts, rollouts.tokens)
    offsets = np.random.default_rng(0).uniform(-0.5, 0.5, log_probs.shape)
    rollouts = rollouts.replace(log_probs=jnp.asarray(log_probs + offsets, jnp.float32))
    away = np.abs(offsets)[trained(rollouts) > 0]
    for settings in ({}, dict(num_microbatches=2), dict(num_epochs=3)):
        config = rl_config(**settings)
        _, metrics = improve(config, tiny_params, rollouts, rate=1.0)
        got = [metrics[f"sampling_logp_difference/{name}"] for name in ("mean", "max")]
        np.testing.assert_allclose(got, [away.mean(), away.max()], rtol=1e-3)


@pytest.mark.parametrize("kl_cov", [0.0, 0.2])
def test_gradient_away_from_the_old_policy(
    kl_cov, rl_config, tiny_params, prompts, made_up, plain, improve, same
):
    rollouts, mask = made_up(), trained(made_up())
    log_probs, _ = plain.log_probs(tiny_params, prompts, rollouts.tokens)
    offsets = np.random.default_rng(0).uniform(-0.5, 0.5, log_probs.shape)
    rollouts = rollouts.replace(log_probs=jnp.asarray(log_probs + offsets, jnp.float32))
    ratio = np.exp(-offsets)
    advantage = loo(np.array(rollouts.rewards, float))[:, :, None]
    above, below = (ratio > 1.28) & (advantage > 0), (ratio < 0.8) & (advantage < 0)
    c = np.where(above | below, 0, advantage * ratio)
    if kl_cov:
        cov = covariances(log_probs, advantage, mask)
        held = largest(cov, mask, int(0.2 * mask.sum()))
        c = c - held * np.sign(-offsets)
    config = rl_config(
        overrides=dict(clip_high=0.28, kl_cov=kl_cov), num_epochs=2, num_minibatches=2
    )
    state, metrics = improve(config, tiny_params, rollouts, rate=0.0)
    # Each prompt comes once an epoch; a minibatch is the mean over its 2 x 6 sequences.
    expected = plain.gradient(tiny_params, prompts, rollouts.tokens, 2 * c * mask / (2 * 6))
    same(state.opt_state["total"], expected, **CLOSE)
    if not kl_cov:
        shares = [float((clipped * mask).sum() / mask.sum()) for clipped in (below, above)]
        assert min(shares) > 0.05
        got = [float(metrics[f"clip_ratio/{side}_mean"]) for side in ("low", "high")]
        np.testing.assert_allclose(got, shares, atol=0.03)  # means of unequal minibatches


# Gradient accumulation

PARTS = (  # each aggregation, with a KL in the loss or without; a critic; both forms of the fork
    "rloo", "grpo", "dr_grpo", "reinforce_pp_baseline", "ppo", "gfpo", "gfpo_exact",
)


@pytest.mark.parametrize("preset", PARTS)
def test_parts_of_a_batch_add_up_to_it(
    preset, rl_config, tiny_params, other_params, prompts, made_up, improve, same
):
    exact = preset == "gfpo_exact"
    rollouts, runs = made_up(given=exact), {}
    overrides = dict(kl_coef=0.3, entropy_coef=0.2) if exact else {}
    for parts in (1, 2, 4):
        config = rl_config(preset, overrides, num_microbatches=parts)
        runs[parts] = improve(config, tiny_params, rollouts, reference=other_params)
        state, metrics = runs[parts]
        same(state.params, runs[1][0].params, rtol=1e-6, atol=1e-7)
        same(state.critic, runs[1][0].critic, rtol=1e-6, atol=1e-7)
        assert set(metrics) == set(runs[1][1])
        same(metrics, runs[1][1], rtol=1e-4, atol=1e-6)
    assert furthest(runs[1][0].params, tiny_params) > 1e-3
    # The order of the prompts does not matter, wherever the parts are cut.
    order = np.array([2, 0, 3, 1])
    batch, shuffled = jax.tree.map(lambda x: x[order], (prompts, rollouts))
    state, _ = improve(config, tiny_params, shuffled, reference=other_params, batch=batch)
    same(state.params, runs[1][0].params, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("preset", "epochs"),
    [("grpo", 1), ("gspo", 2), ("ppo", 2), ("gmpo", 1), ("entropy", 1), ("stratified", 1)],
)
def test_parts_that_are_cut_to_their_samples_compute_the_same(
    preset, epochs, rl_config, tiny_params, other_params, made_up, improve, same, monkeypatch
):
    monkeypatch.setattr(experience, "LEAST_CUT", 1)
    overrides = {} if preset == "ppo" else dict(kl_coef=0.3, entropy_coef=0.2)
    sampling, given = {}, preset == "stratified"
    if preset == "entropy":
        preset, overrides = "dapo", dict(top_entropy=0.5, mask_truncated=True)
    elif given:
        preset, sampling = "grpo", dict(tags="stratified", temperature=0.7)
    make = functools.partial(
        # Nothing reads forbidden ids here; other tests' programs were compiled without the patch.
        rl_config, preset, overrides, num_microbatches=2, forbidden_ids=(7,), num_epochs=epochs,
        num_minibatches=epochs,
    )
    rollouts = made_up(given=given)
    # Behind the end stands another token than padding, and log-probs that no one may read.
    rollouts = rollouts.replace(
        tokens=jnp.where(rollouts.mask, rollouts.tokens, 3),
        log_probs=jnp.where(rollouts.mask, rollouts.log_probs, -200.0),
    )
    whole, whole_metrics = improve(
        make(rollout=dict(early_exit=False, **sampling)), tiny_params, rollouts,
        reference=other_params,
    )
    cut, metrics = improve(make(rollout=sampling), tiny_params, rollouts, reference=other_params)
    assert furthest(whole.params, tiny_params) > 1e-3
    same(cut.params, whole.params, rtol=1e-5, atol=1e-5)
    same(cut.critic, whole.critic, rtol=1e-5, atol=1e-5)
    same(metrics, whole_metrics, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", ["rloo", "gfpo"])
def test_what_is_not_trained_gets_no_gradient(
    preset, rl_config, tiny_params, made_up, improve, same
):
    whole, _ = improve(rl_config(preset), tiny_params, made_up())
    state, metrics = improve(rl_config(preset, trained="strategies"), tiny_params, made_up())
    for path, gradient in jax.tree_util.tree_leaves_with_path(state.opt_state["total"]):
        if path[-1].key == "strategy_embedding":
            of_all = whole.opt_state["total"]["params"]["strategy_embedding"]
            same(gradient, of_all, rtol=1e-5, atol=1e-7)
            assert metrics["grad_norm"] == pytest.approx(float(jnp.linalg.norm(of_all)), rel=1e-4)
        else:
            assert (gradient == 0).all(), path


def test_an_entropy_without_weight_is_measured_and_changes_nothing(
    rl_config, tiny_params, made_up, improve, same
):
    runs = []
    for target in (None, 100.0):  # far above: the bonus acts, and its weight begins at 0
        config = rl_config(overrides=dict(entropy_target=target, entropy_delta=0.0))
        runs.append(improve(config, tiny_params, made_up()))
    same(runs[0][0].params, runs[1][0].params, rtol=1e-5, atol=1e-7)
    measured, weighed = (float(metrics["entropy"]) for _, metrics in runs)
    assert measured == pytest.approx(weighed, rel=1e-5) and measured > 0.1


def test_a_part_reads_no_further_than_its_longest_sample(rl_config, prompts, made_up, monkeypatch):
    monkeypatch.setattr(experience, "LEAST_CUT", 1)
    config, rollouts = rl_config(num_microbatches=4), made_up()
    batch = experience.read_rollouts(prompts, rollouts, config.algorithm)
    lengths = experience.part_lengths(batch, config)
    assert lengths == [2, 4, 5]
    parts, order = experience.split_by_length(batch, 4)

    def seen(part):
        return jnp.array([part.tokens.shape[2], part.tokens.sum()])

    found = jax.lax.map(lambda part: experience.at_own_length(seen, part, lengths), parts)
    counts = np.array(rollouts.mask.sum(axis=2)).reshape(-1)[order].reshape(4, 6)
    assert (np.diff(counts.reshape(-1)) >= 0).all() and counts.min() < 5
    least = np.searchsorted(lengths, counts.max(axis=1))  # of the lengths that hold a part
    np.testing.assert_array_equal(found[:, 0], np.array(lengths)[least])
    assert found[:, 1].sum() == rollouts.tokens.sum()  # padding is 0: nothing else is left out


# What is not finite

def test_a_step_that_is_not_finite_is_skipped_and_counted(
    rl_config, tiny_params, made_up, improve, same
):
    config, good = rl_config(), made_up()
    bad = good.replace(rewards=good.rewards.at[1, 2].set(jnp.nan))
    state, metrics = improve(config, tiny_params, good)
    assert state.skipped == 0 and metrics["skipped"] == 0
    before = host(state)
    for count in (1, 2):
        state, metrics = improve(config, None, bad, state=state)
        same(state.params, before.params)
        same(state.opt_state, before.opt_state)
        assert state.skipped == count and metrics["skipped"] == 1
        assert not np.isfinite(metrics["loss"]) and metrics["reward_nan"] == 1
    state, metrics = improve(config, None, good, state=state)
    assert state.skipped == 0 and metrics["skipped"] == metrics["reward_nan"] == 0
    assert furthest(state.params, before.params) > 1e-3

    # Parameters that are lost are left as they are, and the step is one that was skipped.
    lost = jax.tree.map(jnp.copy, tiny_params)
    lost["params"]["token_embedding"] = lost["params"]["token_embedding"].at[3, 0].set(jnp.nan)
    state, metrics = improve(config, lost, good)
    same(state.params, lost)
    assert state.skipped == 1 and metrics["skipped"] == 1 and state.opt_state["count"] == 0


@pytest.mark.parametrize("reward", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "preset, overrides",
    [
        ("rloo", dict(advantage="pass_at_k", advantage_k=2)),  # asks only what is above 1/2
        ("t1", {}), ("ppo", {}), ("gfpo_exact", {}),
    ],
)
def test_a_reward_that_is_not_finite_is_never_trained(
    reward, preset, overrides, rl_config, tiny_params, made_up, improve, same
):
    rollouts = made_up(given=preset == "gfpo_exact")
    place = tuple(np.argwhere(np.asarray(rollouts.penalised))[0])  # a penalty does not hide it
    bad = rollouts.replace(rewards=rollouts.rewards.at[place].set(reward))
    config = rl_config(preset, overrides)
    state, metrics = improve(config, tiny_params, bad)
    same(state.params, tiny_params)
    assert metrics["reward_nan"] == 1
    assert metrics["skipped"] == (2 if preset == "ppo" else 1)  # its critic's step, too
    assert state.skipped == 1


def test_only_the_minibatches_that_are_not_finite_are_skipped(
    rl_config, tiny_params, made_up, improve
):
    rollouts = made_up()
    rollouts = rollouts.replace(rewards=rollouts.rewards.at[1, 2].set(jnp.nan))
    state, metrics = improve(rl_config(num_epochs=2, num_minibatches=2), tiny_params, rollouts)
    assert metrics["skipped"] == 2 and state.opt_state["count"] == 2  # one of two in each epoch
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(host(state.params)))


def test_a_given_tag_is_scored_without_the_filters(
    rl_config, tiny_params, prompts, made_up, plain, quick
):
    rollouts = made_up()
    config = rl_config(rollout=dict(temperature=0.5, min_p=0.3, tags="stratified"))
    run = jax.jit(score, static_argnums=4, compiler_options=quick)
    drawn, _ = run(tiny_params, prompts, rollouts.tokens, rollouts.given, config)
    given, _ = run(tiny_params, prompts, rollouts.tokens, ~rollouts.given, config)
    expected, _ = plain.log_probs(tiny_params, prompts, rollouts.tokens)
    np.testing.assert_allclose(given[:, :, 0], expected[:, :, 0], **CLOSE)
    assert np.abs(drawn[:, :, 0] - expected[:, :, 0]).min() > 1e-3
    np.testing.assert_array_equal(drawn[:, :, 1:], given[:, :, 1:])
