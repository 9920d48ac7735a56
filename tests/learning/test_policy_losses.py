"""Policy-gradient losses against plain numpy in float64, written sequence by sequence."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.learning.losses import (
    AGGREGATIONS,
    Surrogate,
    clip_cov_mask,
    covariance,
    kl_estimate,
    log_ratio,
    masked_mean,
    policy_loss,
    token_entropy,
    token_weights,
    top_covariance,
    top_entropy_mask,
    value_loss,
)

SURROGATES = {
    "clip": Surrogate(clip_high=0.28),
    "gspo": Surrogate(level="sequence", clip_low=0.1, clip_high=0.15),
    "dual_clip": Surrogate(dual_clip=1.4),
    "cispo": Surrogate("cispo", clip_low=0.3, clip_high=0.25),
    "sapo": Surrogate("sapo", temperatures=(0.8, 1.7)),
    "gmpo": Surrogate("gmpo", clip_low=0.4, clip_high=0.3),
}
MAX_LENGTH = 11  # of Dr. GRPO; not the width of the batch

# Twelve ragged sequences: one of a single token, one of none, one with a gap.
RNG = np.random.default_rng(0)
LENGTHS = (6, 4, 1, 0, 5, 3, 6, 2, 4, 5, 6, 3)
SHAPE = (len(LENGTHS), 6)
MASK = (np.arange(SHAPE[1])[None] < np.array(LENGTHS)[:, None]).astype(float)
MASK[0, 2] = 0
OLD = RNG.uniform(-4, -2, SHAPE).astype(np.float32).astype(float)
SHIFT = RNG.normal(size=(SHAPE[0], 1)) * 0.4 + RNG.normal(size=SHAPE) * 0.5
LOG_PROBS = (OLD + SHIFT).astype(np.float32).astype(float)
OF_TOKENS = RNG.normal(size=SHAPE).astype(np.float32).astype(float)
OF_TOKENS[1, 1] = 0
OF_SEQUENCES = np.broadcast_to(OF_TOKENS[:, :1], SHAPE).copy()
ADVANTAGES = {"of_tokens": OF_TOKENS, "of_sequences": OF_SEQUENCES}
WEIGHTS = RNG.uniform(0.1, 1, SHAPE) * MASK

every_surrogate = pytest.mark.parametrize("name", SURROGATES)
every_aggregation = pytest.mark.parametrize("aggregation", AGGREGATIONS)


def f32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@functools.partial(jax.jit, static_argnums=0)
def run(surrogate, log_probs, old, advantages, mask, weights):
    """Losses, metrics, and the sum of the weighted losses with its gradient."""

    def total(log_probs):
        losses, metrics = policy_loss(surrogate, log_probs, old, advantages, mask)
        return jnp.sum(weights * losses), (losses, metrics)

    (value, (losses, metrics)), gradient = jax.value_and_grad(total, has_aux=True)(log_probs)
    return losses, metrics, value, gradient


def floats(metrics):
    return {name: float(value) for name, value in metrics.items()}


def tokens_of(mask):
    return [[t for t in range(len(row)) if row[t]] for row in mask]


def held_in(value, low, high):
    return min(max(value, low), high)


def reference_losses(surrogate, log_probs, constant, advantages):
    """Losses of the tokens; `constant`: the log-probs wherever a gradient is stopped."""
    losses = np.zeros(SHAPE)
    low, high = 1 - surrogate.clip_low, 1 + surrogate.clip_high
    for i, tokens in enumerate(tokens_of(MASK)):
        ratio = {t: math.exp(log_probs[i, t] - OLD[i, t]) for t in tokens}
        fixed = {t: math.exp(constant[i, t] - OLD[i, t]) for t in tokens}
        if surrogate.level == "sequence":  # sg(s_i) pi / sg(pi)
            s = math.prod(fixed.values()) ** (1 / max(len(tokens), 1))
            ratio = {t: s * math.exp(log_probs[i, t] - constant[i, t]) for t in tokens}
        if surrogate.kind == "gmpo":
            bounds = math.exp(-surrogate.clip_low), math.exp(surrogate.clip_high)
            product = 1.0
            for t in tokens:
                sign = 1 if advantages[i, t] > 0 else -1
                product *= abs(min(sign * ratio[t], sign * held_in(ratio[t], *bounds)))
        for t in tokens:
            a = advantages[i, t]
            if surrogate.kind == "clip":
                gain = min(ratio[t] * a, held_in(ratio[t], low, high) * a)
                if surrogate.dual_clip is not None and a < 0:
                    gain = max(gain, surrogate.dual_clip * a)
            elif surrogate.kind == "cispo":
                gain = held_in(fixed[t], low, high) * a * log_probs[i, t]
            elif surrogate.kind == "sapo":
                tau = surrogate.temperatures[0 if a > 0 else 1]
                gain = 4 / tau / (1 + math.exp(-tau * (ratio[t] - 1))) * a
            else:
                gain = product ** (1 / len(tokens)) * a
            losses[i, t] = -gain
    return losses


def differences(function, at, step=1e-6):
    """Central finite differences of a function of an array."""
    out = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        out[index] = (function(up) - function(down)) / (2 * step)
    return out


def reference_clipped(surrogate, advantages):
    """Which tokens are clipped below and above, as lists of 0 and 1."""
    low, high = 1 - surrogate.clip_low, 1 + surrogate.clip_high
    if surrogate.kind == "gmpo":
        low, high = math.exp(-surrogate.clip_low), math.exp(surrogate.clip_high)
    below, above = [], []
    for i, tokens in enumerate(tokens_of(MASK)):
        ratios = [math.exp(LOG_PROBS[i, t] - OLD[i, t]) for t in tokens]
        if surrogate.level == "sequence":
            ratios = [math.prod(ratios) ** (1 / len(tokens)) for _ in tokens]
        for t, ratio in zip(tokens, ratios):
            a = advantages[i, t]
            below.append(ratio < low and (a < 0 or (surrogate.kind == "cispo" and a > 0)))
            above.append(ratio > high and (a > 0 or (surrogate.kind == "cispo" and a < 0)))
    return below, above


def reference_total(losses, aggregation):
    """The batch's loss from the losses of the tokens, list by list."""
    rows = [[losses[i, t] for t in tokens] for i, tokens in enumerate(tokens_of(MASK)) if tokens]
    if aggregation == "token_mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if aggregation == "sequence_mean_token_mean":
        return np.mean([np.mean(row) for row in rows])
    total = np.mean([sum(row) for row in rows])
    return total if aggregation == "sequence_mean_token_sum" else total / MAX_LENGTH


# Surrogates

@pytest.mark.parametrize("kind", ADVANTAGES)
@every_surrogate
def test_losses_and_gradients_are_those_of_the_reference(name, kind):
    surrogate, advantages = SURROGATES[name], ADVANTAGES[kind]
    losses, _, value, gradient = run(
        surrogate, *f32(LOG_PROBS, OLD, advantages, MASK, WEIGHTS)
    )

    def total(log_probs):
        return (WEIGHTS * reference_losses(surrogate, log_probs, LOG_PROBS, advantages)).sum()

    expected = reference_losses(surrogate, LOG_PROBS, LOG_PROBS, advantages)
    np.testing.assert_allclose(losses * MASK, expected, rtol=1e-5, atol=1e-6)
    assert value == pytest.approx(total(LOG_PROBS), rel=1e-5)
    slopes = differences(total, LOG_PROBS)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=2e-6)
    assert (np.asarray(gradient)[MASK == 0] == 0).all()
    assert np.abs(slopes).max() > 0.1


@pytest.mark.parametrize("kind", ADVANTAGES)
@every_surrogate
def test_clip_metrics_are_shares_of_the_tokens(name, kind):
    surrogate, advantages = SURROGATES[name], ADVANTAGES[kind]
    _, metrics, _, _ = run(surrogate, *f32(LOG_PROBS, OLD, advantages, MASK, WEIGHTS))
    below, above = reference_clipped(surrogate, advantages)
    assert min(sum(below), sum(above)) >= 3  # the data clip on both sides
    expected = {"low": below, "high": above, "region": np.logical_or(below, above)}
    assert floats(metrics) == {
        f"clip_ratio/{part}_mean": pytest.approx(np.mean(clipped), rel=1e-6)
        for part, clipped in expected.items()
    }


def test_the_data_reach_every_branch():
    ratio = np.exp(LOG_PROBS - OLD)[MASK > 0]
    advantages = OF_TOKENS[MASK > 0]
    dual = SURROGATES["dual_clip"].dual_clip
    assert ((ratio > dual) & (advantages < 0)).sum() >= 3
    assert (ratio < 0.5).sum() >= 3 and (ratio > 1.8).sum() >= 3
    one = [reference_losses(s, LOG_PROBS, LOG_PROBS, OF_TOKENS) for s in SURROGATES.values()]
    gaps = [np.abs(x - y).max() for n, x in enumerate(one) for y in one[:n]]
    assert min(gaps) > 0.05


@every_surrogate
def test_the_clipped_side_alone_loses_its_gradient(name):
    surrogate = SURROGATES[name]
    *_, gradient = run(surrogate, *f32(LOG_PROBS, OLD, OF_SEQUENCES, MASK, MASK))
    below, above = reference_clipped(surrogate, OF_SEQUENCES)
    gone = np.asarray(gradient)[MASK > 0] == 0
    expected = np.array(below) | np.array(above)
    if name == "dual_clip":
        ratio = np.exp(LOG_PROBS - OLD)[MASK > 0]
        expected |= (ratio > surrogate.dual_clip) & (OF_SEQUENCES[MASK > 0] < 0)
    if name in ("cispo", "sapo"):  # no token loses it
        expected[:] = False
    np.testing.assert_array_equal(gone, expected)


def test_gspo_token_has_the_gradient_of_the_sequence_ratio():
    """d/dlog pi_t of -min(s A, clip(s) A) is -s A / |o| where s is not clipped, else 0."""
    surrogate = SURROGATES["gspo"]
    low, high = 1 - surrogate.clip_low, 1 + surrogate.clip_high

    def gspo(log_probs):
        gains = []
        for i, tokens in enumerate(tokens_of(MASK)):
            if tokens:
                s = math.exp(np.mean([log_probs[i, t] - OLD[i, t] for t in tokens]))
                a = OF_SEQUENCES[i, 0]
                gains.append(min(s * a, held_in(s, low, high) * a))
        return -np.mean(gains)

    mask, = f32(MASK)
    weights = token_weights(mask, "sequence_mean_token_mean", MAX_LENGTH)
    _, _, value, gradient = run(surrogate, *f32(LOG_PROBS, OLD, OF_SEQUENCES), mask, weights)
    slopes = differences(gspo, LOG_PROBS)
    assert value == pytest.approx(gspo(LOG_PROBS), rel=1e-5)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-7)
    assert 0 < (np.abs(slopes).max(axis=1) > 1e-3).sum() < (MASK.sum(axis=1) > 0).sum()


def test_the_sequence_ratio_is_one_number_even_for_unlikely_tokens():
    # GSPO clips at 3e-4: adding and subtracting a log-prob must not round the mean.
    rng = np.random.default_rng(1)
    old = -rng.uniform(10, 100, SHAPE)
    log_probs, old, mask = f32(old + 1e-4 * rng.normal(size=SHAPE), old, MASK)
    logs = np.asarray(log_ratio(log_probs, old, mask, "sequence"))
    means = np.asarray(masked_mean(log_probs - old, mask, axis=1))
    np.testing.assert_array_equal(logs, np.broadcast_to(means, SHAPE))
    assert np.ptp(means) > 1e-6


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_log_ratio_has_slope_1_in_its_own_token(level):
    log_probs, old, mask = f32(LOG_PROBS, OLD, MASK)
    slope = jax.grad(lambda x: jnp.sum(WEIGHTS * log_ratio(x, old, mask, level)))(log_probs)
    np.testing.assert_allclose(slope * MASK, WEIGHTS, rtol=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_log_ratio_is_exactly_0_at_the_first_update(level):
    old, mask = f32(OLD * 17.3, MASK)
    np.testing.assert_array_equal(log_ratio(old, old, mask, level), np.zeros(SHAPE))


@every_aggregation
@every_surrogate
def test_the_first_update_is_that_of_reinforce(name, aggregation):
    surrogate = SURROGATES[name]
    old, advantages, mask = f32(OLD, OF_SEQUENCES, MASK)
    weights = token_weights(mask, aggregation, MAX_LENGTH)
    losses, metrics, _, gradient = run(surrogate, old, old, advantages, mask, weights)
    reinforce = -np.asarray(weights * advantages)
    if name in ("sapo", "gmpo"):  # through exp(log 4 ...) and the mean of the logs: rounded
        np.testing.assert_allclose(gradient, reinforce, rtol=1e-6)
    else:
        np.testing.assert_array_equal(gradient, reinforce)
    scale = {"cispo": OLD, "sapo": 2 / np.where(OF_SEQUENCES > 0, *surrogate.temperatures)}
    expected = -OF_SEQUENCES * scale.get(name, 1.0) * MASK
    exact = name not in scale  # the ratio is 1 to the last bit
    np.testing.assert_allclose(losses * mask, expected, rtol=0 if exact else 1e-6)
    assert all(value == 0 for value in metrics.values())


@every_surrogate
def test_advantages_of_sequences_broadcast(name):
    arrays = f32(LOG_PROBS, OLD, OF_SEQUENCES, MASK)
    expected, shares, *_ = run(SURROGATES[name], *arrays, *f32(WEIGHTS))
    arrays[2] = arrays[2][:, :1]
    losses, metrics = policy_loss(SURROGATES[name], *arrays)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert floats(metrics) == pytest.approx(floats(shares), rel=1e-6)


def test_known_values_of_clipping():
    """Ratios 0.5, 1, 2 under advantages +1 and -1."""
    ratio = np.array([[0.5, 1.0, 2.0]] * 2)
    logs, zeros, mask = f32(np.log(ratio), 0 * ratio, np.ones((2, 3)))
    advantages = jnp.array([[1.0], [-1.0]])

    mean = np.log([0.5 * 1.2, 1 / 1.2 * 2])[:, None] / 3
    log = math.log(1.2)
    cases = {
        Surrogate(): [[-0.5, -1, -1.2], [0.8, 1, 2]],
        Surrogate(clip_high=0.28): [[-0.5, -1, -1.28], [0.8, 1, 2]],
        Surrogate(dual_clip=1.5): [[-0.5, -1, -1.2], [0.8, 1, 1.5]],
        Surrogate(level="sequence"): [[-1] * 3, [1] * 3],  # the ratios' product is 1
        Surrogate("gmpo", clip_low=log, clip_high=log): np.exp(mean) * [[-1] * 3, [1] * 3],
    }
    got = jax.jit(lambda *rows: [policy_loss(surrogate, *rows)[0] for surrogate in cases])(
        logs, zeros, advantages, mask
    )
    for losses, expected in zip(got, cases.values()):
        np.testing.assert_allclose(losses, expected, rtol=1e-6)


# What is masked

JUNK = {
    "unlikely now": (-1e30, 0.0, 1.0),
    "unlikely then": (0.0, -1e30, 1.0),
    "unlikely twice": (-1e30, -1e30, -1e30),
    "large advantage": (3.0, -3.0, 1e30),
    "infinite": (-np.inf, -np.inf, np.inf),
    "not a number": (np.nan, np.nan, np.nan),
}


@pytest.mark.parametrize("junk", JUNK)
@every_surrogate
def test_masked_contents_never_matter(name, junk):
    arrays = [LOG_PROBS, OLD, OF_TOKENS]
    _, metrics, value, gradient = run(SURROGATES[name], *f32(*arrays, MASK, WEIGHTS))
    filled = [np.where(MASK > 0, x, bad) for x, bad in zip(arrays, JUNK[junk])]
    losses, *got = run(SURROGATES[name], *f32(*filled, MASK, WEIGHTS))
    assert np.isfinite(losses).all()
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves([metrics, value, gradient])):
        np.testing.assert_array_equal(x, y)


@every_surrogate
def test_padding_changes_nothing(name):
    arrays = [x[:3] for x in (LOG_PROBS, OLD, OF_TOKENS, MASK, WEIGHTS)]
    expected = run(SURROGATES[name], *f32(*arrays))
    fill = -1e30, 0.0, 1.0, 0.0, 0.0
    padded = [np.pad(x, ((0, 9), (0, 0)), constant_values=v) for x, v in zip(arrays, fill)]
    losses, metrics, value, gradient = run(SURROGATES[name], *f32(*padded))
    for got, plain in ((losses, expected[0]), (gradient, expected[3])):
        np.testing.assert_allclose(got[:3], plain, rtol=1e-6, atol=1e-7)
    assert value == pytest.approx(float(expected[2]), rel=1e-6)
    assert floats(metrics) == pytest.approx(floats(expected[1]), rel=1e-6)
    assert (np.asarray(gradient)[3:] == 0).all()


@every_surrogate
def test_an_empty_mask_gives_0_and_no_gradient(name):
    empty = np.zeros(SHAPE)
    _, metrics, value, gradient = run(
        SURROGATES[name], *f32(LOG_PROBS, OLD, OF_TOKENS, empty, empty)
    )
    assert value == 0 and all(metric == 0 for metric in metrics.values())
    np.testing.assert_array_equal(gradient, empty)


@pytest.mark.parametrize("sign", [1, -1])
@every_surrogate
def test_ratios_beyond_float32_stay_finite(name, sign):
    log_probs = OLD + np.where(np.arange(SHAPE[0]) % 2, 200.0, -200.0)[:, None]
    advantages = np.full(SHAPE, float(sign))
    surrogate = SURROGATES[name]
    losses, _, _, gradient = run(surrogate, *f32(log_probs, OLD, advantages, MASK, WEIGHTS))
    assert np.isfinite(losses).all() and np.isfinite(gradient).all()
    if sign > 0 and name in ("clip", "dual_clip", "gspo"):
        expected = np.where(log_probs > OLD, -1 - surrogate.clip_high, 0) * MASK
        np.testing.assert_allclose(losses * MASK, expected, rtol=1e-6)
        np.testing.assert_array_equal(gradient, np.zeros(SHAPE))


def test_masked_mean():
    values, mask = f32(OF_TOKENS, MASK)
    values = jnp.where(mask > 0, values, jnp.nan)
    rows = [[OF_TOKENS[i, t] for t in tokens] for i, tokens in enumerate(tokens_of(MASK))]
    means = [[np.mean(row) if row else 0.0] for row in rows]
    np.testing.assert_allclose(masked_mean(values, mask, axis=1), means, rtol=1e-5, atol=1e-7)
    assert masked_mean(values, mask) == pytest.approx(OF_TOKENS[MASK > 0].mean(), rel=1e-5)
    gradient = jax.grad(lambda x: masked_mean(x, mask))(values)
    np.testing.assert_allclose(gradient, MASK / MASK.sum(), rtol=1e-6)


# Aggregations

@every_aggregation
def test_aggregations(aggregation):
    losses, mask = f32(OF_TOKENS, MASK)
    weights = token_weights(mask, aggregation, MAX_LENGTH)
    assert weights.dtype == jnp.float32 and (np.asarray(weights)[MASK == 0] == 0).all()
    expected = reference_total(OF_TOKENS, aggregation)
    assert (weights * losses).sum() == pytest.approx(expected, rel=1e-5)
    by_token = differences(lambda x: reference_total(x, aggregation), OF_TOKENS)
    np.testing.assert_allclose(weights, by_token, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(token_weights(mask > 0, aggregation, MAX_LENGTH), weights)


def test_the_aggregations_differ():
    totals = [reference_total(OF_TOKENS, aggregation) for aggregation in AGGREGATIONS]
    assert min(abs(x - y) for n, x in enumerate(totals) for y in totals[:n]) > 1e-4


@every_aggregation
def test_padding_and_empty_sequences_weigh_nothing(aggregation):
    weights = token_weights(jnp.asarray(MASK), aggregation, MAX_LENGTH)
    wider = token_weights(jnp.asarray(np.pad(MASK, ((2, 3), (0, 4)))), aggregation, MAX_LENGTH)
    np.testing.assert_array_equal(wider, np.pad(weights, ((2, 3), (0, 4))))
    empty = token_weights(jnp.zeros(SHAPE), aggregation, MAX_LENGTH)
    np.testing.assert_array_equal(empty, np.zeros(SHAPE))


@every_aggregation
@every_surrogate
def test_parts_of_a_batch_add_up_to_it(name, aggregation):
    surrogate, arrays = SURROGATES[name], f32(LOG_PROBS, OLD, OF_TOKENS, MASK)
    arrays.append(token_weights(arrays[-1], aggregation, MAX_LENGTH))
    losses, metrics, value, gradient = run(surrogate, *arrays)
    parts = [run(surrogate, *(x[i : i + 3] for x in arrays)) for i in range(0, SHAPE[0], 3)]
    assert sum(part[2] for part in parts) == pytest.approx(float(value), abs=1e-6)
    for n, whole in ((0, losses), (3, gradient)):
        together = np.concatenate([part[n] for part in parts])
        np.testing.assert_allclose(together * MASK, whole * MASK, rtol=1e-6, atol=1e-7)
    tokens = MASK.reshape(len(parts), -1).sum(axis=1)
    for key, mean in metrics.items():
        shares = [part[1][key] * count for part, count in zip(parts, tokens)]
        assert sum(shares) / tokens.sum() == pytest.approx(float(mean), abs=1e-6)


# Estimates of the KL

LOGITS = np.random.default_rng(2).normal(size=(2, 6))
POLICY, REFERENCE = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
KL = sum(p * math.log(p / q) for p, q in zip(POLICY, REFERENCE))
estimators = pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])


def slope_of_mean(estimator):
    """Gradient by the logits of the mean estimate at draws from the policy, held constant."""
    weights, reference, logits = f32(POLICY, np.log(REFERENCE), LOGITS[0])

    def loss(logits):
        return jnp.sum(weights * kl_estimate(jax.nn.log_softmax(logits), reference, estimator))

    return np.asarray(jax.grad(loss)(logits))


def test_kl_estimates_known_values():
    log_probs = jnp.log(jnp.array([0.5, 0.2, 0.3]))
    reference = jnp.log(jnp.array([0.25, 0.4, 0.3]))
    log2 = math.log(2)
    expected = {
        "k1": [log2, -log2, 0], "k2": [log2**2 / 2] * 2 + [0], "k3": [log2 - 0.5, 1 - log2, 0],
    }
    for estimator, values in expected.items():
        got = kl_estimate(log_probs, reference, estimator)
        np.testing.assert_allclose(got, values, rtol=1e-5, atol=1e-7)


def test_the_mean_of_k1_and_k3_is_the_kl():
    assert KL > 0.1
    policy, *logs = f32(POLICY, np.log(POLICY), np.log(REFERENCE))
    means = {k: float(jnp.sum(policy * kl_estimate(*logs, k))) for k in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(KL, rel=1e-5)
    assert means["k3"] == pytest.approx(KL, rel=1e-5)
    assert abs(means["k2"] - KL) > 1e-3


def test_gradients_of_the_mean_estimates():
    reverse = POLICY * (np.log(POLICY / REFERENCE) - KL)  # d KL(pi || ref) / d logits
    np.testing.assert_allclose(slope_of_mean("k2"), reverse, atol=1e-6)
    np.testing.assert_allclose(slope_of_mean("k1"), np.zeros(6), atol=1e-6)
    np.testing.assert_allclose(slope_of_mean("k3"), POLICY - REFERENCE, atol=1e-6)  # of KL(ref||pi)
    assert np.abs(POLICY - REFERENCE - reverse).max() > 0.01


def test_k3_is_never_negative_and_keeps_its_digits():
    # Near the reference, where exp(d) - d - 1 cancels: d^2 / 2 is far below float32's 1e-7.
    sizes = np.logspace(-8, 0.4, 500)
    apart = np.concatenate([-sizes, [0.0], sizes]).astype(np.float32).astype(float)
    got = np.asarray(kl_estimate(jnp.zeros(apart.shape), *f32(apart), "k3"))
    assert (got >= 0).all() and got[500] == 0
    series = apart**2 / 2 + apart**3 / 6 + apart**4 / 24
    exact = np.where(np.abs(apart) < 1e-2, series, np.expm1(apart) - apart)
    large = np.abs(apart) > 1e-3
    np.testing.assert_allclose(got[large], exact[large], rtol=1e-3)
    np.testing.assert_allclose(got, exact, rtol=1e-3, atol=1e-9)


@estimators
def test_kl_estimates_do_not_overflow(estimator):
    log_probs, reference = f32([-1e30, 0.0, -1e30, -500.0], [0.0, -1e30, -1e30, 0.0])
    value, gradient = jax.value_and_grad(
        lambda x: jnp.sum(kl_estimate(x, reference, estimator))
    )(log_probs)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@estimators
def test_kl_estimates_are_exact_up_to_their_bounds(estimator):
    apart = np.array([-30.0, -19.5, -10.9, -5.0, 2.6, 2.7, 19.5, 30.0])
    d = np.clip(apart, -20, 20)
    exact = {"k1": -d, "k2": d**2 / 2, "k3": np.minimum(np.exp(d) - d - 1, 10)}[estimator]
    got = kl_estimate(jnp.zeros(8), *f32(apart), estimator)
    np.testing.assert_allclose(got, exact, rtol=1e-5)


# Entropy and covariance

def test_token_entropy():
    uniform = jnp.asarray(np.full((2, 3, 7), -math.log(7)), jnp.float32)
    np.testing.assert_allclose(token_entropy(uniform), np.full((2, 3), math.log(7)), rtol=1e-6)
    probs = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    expected = [1.5 * math.log(2), -sum(p * math.log(p) for p in probs[1])]
    np.testing.assert_allclose(token_entropy(*f32(np.log(probs))), expected, rtol=1e-6)


@pytest.mark.parametrize("removed", [-1e30, -np.inf])
def test_removed_tokens_have_no_entropy(removed):
    log_probs = jnp.array([[math.log(0.5), removed, math.log(0.5)], [removed, 0.0, removed]])
    np.testing.assert_allclose(token_entropy(log_probs), [math.log(2), 0], rtol=1e-6)
    slope = jax.grad(lambda x: token_entropy(x).sum())(log_probs)
    half = -0.5 * (1 + math.log(0.5))
    np.testing.assert_allclose(slope, [[half, 0, half], [0, -1, 0]], rtol=1e-5)


def largest(values, mask, count):
    """1 at the `count` largest values of the mask and at those equal to the last of them."""
    ranked = sorted((value for value, kept in zip(values.flat, mask.flat) if kept), reverse=True)
    if not ranked:
        return np.zeros(mask.shape)
    return np.array(mask) * (values >= ranked[min(max(count, 1), len(ranked)) - 1])


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_top_entropy_mask(fraction, ties):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        entropy = rng.integers(0, 5, SHAPE).astype(float) if ties else rng.gamma(2.0, size=SHAPE)
        entropy = np.where(MASK > 0, entropy.astype(np.float32), rng.choice([9.0, np.nan], SHAPE))
        got = np.asarray(top_entropy_mask(*f32(entropy, MASK), fraction))
        count = math.ceil(Fraction(str(fraction)) * int(MASK.sum()))
        np.testing.assert_array_equal(got, largest(entropy, MASK, count))
        assert got.sum() >= count if ties else got.sum() == count
        if fraction == 1:
            np.testing.assert_array_equal(got, MASK)


@pytest.mark.parametrize("fraction, tokens", [(0.3, 50), (0.15, 100), (0.15, 101), (0.7, 10)])
def test_top_entropy_mask_keeps_no_token_more_by_rounding(fraction, tokens):
    entropy = jnp.arange(101.0)[None]
    mask = (jnp.arange(101)[None] < tokens).astype(jnp.float32)
    kept = math.ceil(Fraction(str(fraction)) * tokens)
    assert top_entropy_mask(entropy, mask, fraction).sum() == kept


@pytest.mark.parametrize("advantage", [0.0, -1.0])
def test_advantages_all_alike_select_nothing(advantage):
    """Every covariance is 0, and so is the largest of them."""
    log_probs, mask = f32(LOG_PROBS, MASK)
    cov = covariance(log_probs, jnp.full(SHAPE, advantage), mask)
    np.testing.assert_array_equal(cov, np.zeros(SHAPE))
    np.testing.assert_array_equal(top_covariance(cov, mask, 0.2), np.zeros(SHAPE))
    kept = clip_cov_mask(cov, mask, jax.random.key(0), 0.5, 1.0, 5.0)
    np.testing.assert_array_equal(kept, mask)


def test_an_empty_mask_has_no_top_tokens():
    values, empty = f32(OF_TOKENS, np.zeros(SHAPE))
    for got in (
        top_entropy_mask(values, empty, 0.2), top_covariance(values, empty, 0.2),
        clip_cov_mask(values, empty, jax.random.key(0), 0.5, -9.0, 9.0),
        covariance(values, values, empty),
    ):
        np.testing.assert_array_equal(got, empty)


@pytest.mark.parametrize("kind", ["of_tokens", "of_sequences"])
def test_covariance(kind):
    pairs = [
        (LOG_PROBS[i, t], ADVANTAGES[kind][i, t])
        for i, tokens in enumerate(tokens_of(MASK)) for t in tokens
    ]
    means = np.mean(pairs, axis=0)
    shares = np.zeros(SHAPE)
    shares[MASK > 0] = [(x - means[0]) * (a - means[1]) for x, a in pairs]
    junk = np.where(MASK > 0, LOG_PROBS, -np.inf), np.where(MASK > 0, ADVANTAGES[kind], np.nan)
    log_probs, advantages, mask = f32(*junk, MASK)
    got = covariance(log_probs, advantages, mask)
    np.testing.assert_allclose(got, shares, rtol=1e-4, atol=1e-5)
    full = np.cov(np.transpose(pairs), bias=True)[0, 1]
    assert masked_mean(got, mask) == pytest.approx(full, abs=1e-5)
    slope = jax.grad(lambda x: covariance(x, advantages, mask).sum())(log_probs)
    np.testing.assert_array_equal(slope, np.zeros(SHAPE))


def test_covariance_broadcasts_advantages_of_sequences():
    log_probs, advantages, mask = f32(LOG_PROBS, OF_SEQUENCES, MASK)
    np.testing.assert_array_equal(
        covariance(log_probs, advantages[:, :1], mask), covariance(log_probs, advantages, mask)
    )


# Tokens 1, 2, ... inside (1, 5) and others on or beyond its edges; masked ones are inside too.
COV = np.where(MASK > 0, RNG.uniform(-4, 8, SHAPE), 3.0).astype(np.float32)
COV[0, 0], COV[0, 1], COV[1, 0] = 1.0, 5.0, 2.0
INSIDE = (COV > 1) & (COV < 5) & (MASK > 0)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, None, 0, None))
def clip_cov_masks(cov, mask, key, fraction):
    return clip_cov_mask(cov, mask, key, fraction, 1.0, 5.0)


def drop(fraction, cov=COV, num_keys=600):
    """Which tokens are dropped under each key, `[keys, B, N]`."""
    keys = jax.random.split(jax.random.key(0), num_keys)
    masks = clip_cov_masks(*f32(cov, MASK), keys, fraction)
    assert np.isin(masks, [0, 1]).all() and (np.asarray(masks) <= MASK).all()
    return MASK - np.asarray(masks)


@pytest.mark.parametrize("fraction", [2e-4, 0.1, 0.2, 1.0])
def test_clip_cov_drops_that_many_tokens_inside_the_band(fraction):
    dropped = drop(fraction)
    count = min(max(math.floor(fraction * MASK.sum()), 1), INSIDE.sum())
    assert (dropped[:, ~INSIDE] == 0).all()
    np.testing.assert_array_equal(dropped.sum(axis=(1, 2)), np.full(600, count))


def test_clip_cov_draws_at_random():
    assert 10 <= INSIDE.sum() < 0.5 * MASK.sum()
    dropped = drop(0.1)
    share = math.floor(0.1 * MASK.sum()) / INSIDE.sum()
    deviation = math.sqrt(share * (1 - share) / 600)
    np.testing.assert_allclose(dropped.mean(axis=0)[INSIDE], share, atol=4.5 * deviation)
    np.testing.assert_array_equal(dropped, drop(0.1))


def test_clip_cov_drops_nothing_where_nothing_is_inside():
    outside = np.where(MASK > 0, np.where(COV > 3, 5.0, 1.0), 3.0)
    assert drop(1.0, outside).sum() == 0
    outside[4, 2] = 1.5
    (only,) = np.argwhere(drop(2e-4, outside)[0])
    assert tuple(only) == (4, 2)


@pytest.mark.parametrize("fraction", [2e-4, 0.1, 0.5, 1.0])
def test_top_covariance(fraction):
    for seed, ties in ((0, False), (1, True), (2, False)):
        cov = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
        cov = np.where(MASK > 0, np.round(cov) if ties else cov, 99.0)
        got = np.asarray(top_covariance(*f32(cov, MASK), fraction))
        count = max(math.floor(fraction * MASK.sum()), 1)
        np.testing.assert_array_equal(got, largest(cov, MASK, count) * (cov > 0))
        assert ties or got.sum() == min(count, ((cov > 0) & (MASK > 0)).sum())


# The critic

@pytest.mark.parametrize("clip", [0.2, 0.6, 1e6])
def test_value_loss_and_its_gradient(clip):
    rng = np.random.default_rng(3)
    old, returns = rng.normal(size=(2, *SHAPE))
    values, old, returns = (
        x.astype(np.float32).astype(float) for x in (old + rng.normal(size=SHAPE) / 2, old, returns)
    )

    def reference(values):
        losses = np.zeros(SHAPE)
        for at in np.ndindex(SHAPE):
            held = held_in(values[at], old[at] - clip, old[at] + clip)
            losses[at] = 0.5 * max((values[at] - returns[at]) ** 2, (held - returns[at]) ** 2)
        return losses

    def total(values, *others):
        losses = value_loss(values, *others, clip)
        return losses.sum(), losses

    expected, slopes = reference(values), differences(lambda x: reference(x).sum(), values)
    slope, losses = jax.jit(jax.grad(total, has_aux=True))(*f32(values, old, returns))
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(slope, slopes, atol=1e-5)
    acts = expected > 0.5 * (values - returns) ** 2
    assert (slopes[acts] == 0).all() and acts.any() == (clip < 1)


def test_value_loss_known_values():
    values = jnp.array([[1.0, 1.0, 1.0]])
    got = value_loss(values, jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[3.0, 2.0, 0.0]]), 0.5)
    # Unmoved; moved beyond the clip towards the return: the held 0.5 counts; away from it.
    np.testing.assert_allclose(got, [[2.0, 1.125, 0.5]])


# Refusals

@pytest.mark.parametrize(
    "options, message",
    [
        (dict(kind="ppo"), r"kind='ppo': must be one of clip, .*, or MODULE:ATTRIBUTE .*"),
        (dict(level="row"), r"level='row': must be one of token, sequence\."),
        *(
            (
                dict(kind=kind, **options),
                rf"surrogate kind='{kind}': sequence ratios and dual_clip belong to 'clip'\.",
            )
            for kind in ("cispo", "sapo", "gmpo")
            for options in (dict(level="sequence"), dict(dual_clip=3.0))
        ),
        (dict(clip_low=-0.1), r"clip_low=-0\.1, clip_high=0\.2: must be 0 or above\."),
        (dict(clip_high=-0.1), r"clip_low=0\.2, clip_high=-0\.1: must be 0 or above\."),
        (dict(dual_clip=1.0), r"dual_clip=1\.0: must be above 1\."),
    ],
)
def test_impossible_surrogates_are_refused_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Surrogate(**options)


def test_possible_surrogates_are_taken():
    Surrogate(clip_low=0.0, clip_high=0.0)
    Surrogate(level="sequence", dual_clip=1.5)


def test_unknown_names_are_refused_in_one_sentence():
    message = f"^aggregation='mean': must be one of {', '.join(AGGREGATIONS)}\\.$"
    with pytest.raises(ValueError, match=message):
        token_weights(jnp.ones((1, 1)), "mean", 1)
    with pytest.raises(ValueError, match=r"^kl_estimator='k4': must be one of k1, k2, k3\.$"):
        kl_estimate(jnp.zeros(1), jnp.zeros(1), "k4")
