"""DPO: the loss against numpy and known values, log-probs of completions, and the update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reasoning.data.pipelines import Example, collate
from reasoning.learning.preferences import (
    Preference,
    dpo_loss,
    dpo_update,
    sequence_log_probs,
)
from reasoning.learning.updates import init_state

RNG = np.random.default_rng(0)
LOG_PROBS, REFERENCE = -10 * RNG.random(size=(2, 5, 2))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference_loss(preference, log_probs, reference):
    """Loss `[B]` in float64."""
    margin = preference.beta * np.diff(reference - log_probs, axis=1)[:, 0]
    right = (1 - preference.label_smoothing) * np.log(sigmoid(margin))
    return -right - preference.label_smoothing * np.log(sigmoid(-margin))


@pytest.mark.parametrize("preference", [Preference(), Preference(0.7, 0.2)], ids=str)
def test_the_loss_is_that_of_numpy(preference):
    loss, rewards = dpo_loss(preference, jnp.asarray(LOG_PROBS), jnp.asarray(REFERENCE))
    np.testing.assert_allclose(loss, reference_loss(preference, LOG_PROBS, REFERENCE), rtol=1e-5)
    np.testing.assert_allclose(rewards, preference.beta * (LOG_PROBS - REFERENCE), rtol=1e-5)


def test_known_values():
    same = jnp.asarray(REFERENCE)
    for preference in (Preference(), Preference(3.0, 0.3)):
        loss, rewards = dpo_loss(preference, same, same)
        np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)  # the policy is the reference
        np.testing.assert_array_equal(rewards, 0.0)
    # beta (2 - -1) = ln 3: the chance that the right one is preferred is 3/4.
    loss, _ = dpo_loss(
        Preference(np.log(3) / 3), jnp.array([[-1.0, -5.0]]), jnp.array([[-3.0, -4.0]])
    )
    np.testing.assert_allclose(loss, -np.log(0.75), rtol=1e-5)


@pytest.mark.parametrize("preference", [Preference(0.5), Preference(0.5, 0.1)], ids=str)
def test_gradients_raise_the_right_and_lower_the_wrong(preference):
    def total(log_probs):
        return dpo_loss(preference, log_probs, jnp.asarray(REFERENCE))[0].sum()

    gradient = np.asarray(jax.grad(total)(jnp.asarray(LOG_PROBS)))
    margin = preference.beta * np.diff(REFERENCE - LOG_PROBS, axis=1)[:, 0]
    pull = preference.beta * (sigmoid(-margin) - preference.label_smoothing)
    np.testing.assert_allclose(gradient, np.stack([-pull, pull], axis=1), rtol=1e-4)
    for index in [(0, 0), (2, 1), (4, 0)]:
        step = np.zeros(LOG_PROBS.shape)
        step[index] = 1e-5
        up, down = (
            reference_loss(preference, LOG_PROBS + sign * step, REFERENCE).sum()
            for sign in (1, -1)
        )
        assert gradient[index] == pytest.approx((up - down) / 2e-5, rel=1e-4)
    assert preference.label_smoothing or (gradient[:, 0] < 0).all()


def test_the_reference_gets_no_gradient():
    gradient = jax.grad(
        lambda r: dpo_loss(Preference(), jnp.asarray(LOG_PROBS), r)[0].sum()
    )(jnp.asarray(REFERENCE))
    np.testing.assert_array_equal(gradient, 0.0)


def test_smoothed_labels_want_a_finite_margin():
    smoothing = 0.1
    best = np.log((1 - smoothing) / smoothing)
    losses = [
        float(dpo_loss(Preference(1.0, smoothing), jnp.array([[m, 0.0]]), jnp.zeros((1, 2)))[0][0])
        for m in (best - 0.1, best, best + 0.1)
    ]
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(beta=0.0), "preference beta=0.0: must be above 0."),
        (dict(label_smoothing=0.5), "preference label_smoothing=0.5"),
        (dict(label_smoothing=-0.1), "preference label_smoothing=-0.1"),
        (dict(nll_weight=-1.0), "preference nll_weight=-1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Preference(**settings)


# The update

ROWS, WIDTH = 8, 12


def tokens(n):
    return tuple(RNG.integers(3, 29, n).tolist())


EXAMPLES = [Example(tokens(n), (tokens(a), tokens(b))) for n, a, b in ((4, 7, 3), (3, 2, 5))]
BATCH = collate(EXAMPLES, WIDTH, [0, 1], ROWS, pad_id=0)  # two pairs, four rows of padding
TAGS = np.array([1, 1, 0, 0, 0, 0, 0, 0], np.int32)
DESCENT = optax.sgd(1.0)  # the step is minus the gradient


@pytest.fixture(scope="module")
def plain(config, forward):
    """`plain(params, normalised)`: the rows' log-probs `[N]`, from a plain forward pass."""
    read = np.array(BATCH.tokens)
    read[np.arange(ROWS), BATCH.fork] = config.vocab_size + TAGS
    trace = np.array([
        [fork < t < length for t in range(1, WIDTH)]
        for fork, length in zip(BATCH.fork, BATCH.lengths, strict=True)
    ])

    def run(params, normalised=False):
        log_probs = jax.nn.log_softmax(forward(config, params, read)[:, :-1])
        picked = jnp.take_along_axis(log_probs, read[:, 1:, None], axis=2)[..., 0]
        total = jnp.where(trace, picked, 0.0).sum(axis=1)
        return total / np.maximum(trace.sum(axis=1), 1) if normalised else total

    return run


@pytest.fixture(scope="module")
def reference(config, rough_params):
    """Log-probs of a reference policy that is not the policy, `[N]`."""
    return sequence_log_probs(config, rough_params(config, seed=1), BATCH, TAGS)


@pytest.mark.parametrize("normalised", [False, True])
def test_log_probs_are_those_of_a_plain_forward_pass(config, params, plain, normalised):
    found = sequence_log_probs(config, params, BATCH, TAGS, normalised)
    np.testing.assert_allclose(found, plain(params, normalised), rtol=1e-5)
    np.testing.assert_array_equal(found[4:], 0.0)


def update(config, params, reference, batch=BATCH, tags=TAGS, **settings):
    """The gradient of one update, and its metrics."""
    state, metrics = dpo_update(
        init_state(params, DESCENT), batch, tags, reference, config=config, optimizer=DESCENT,
        preference=Preference(0.3, **settings),
    )
    return jax.tree.map(lambda before, after: before - after, params, state.params), metrics


@pytest.mark.parametrize("nll_weight", [0.0, 0.7])
def test_the_gradient_is_that_of_plain_autodiff(config, params, plain, reference, nll_weight):
    def loss(params):
        log_probs = plain(params)
        rewards = 0.3 * (log_probs - reference)[:4].reshape(2, 2)
        preferred = jnp.log(jax.nn.sigmoid(rewards[:, 0] - rewards[:, 1]))
        nll = -log_probs[:4:2] / jnp.array([len(example.traces[0]) for example in EXAMPLES])
        return jnp.mean(nll_weight * nll - preferred), rewards

    (value, rewards), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    found, metrics = update(config, params, reference, nll_weight=nll_weight)
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=5e-6), found, gradient)
    margin = np.asarray(rewards[:, 0] - rewards[:, 1])
    assert metrics["margin"] == pytest.approx(margin.mean(), rel=1e-4)
    assert metrics["accuracy"] == (margin > 0).mean()
    assert metrics["reward/right"] == pytest.approx(float(rewards[:, 0].mean()), rel=1e-4)
    assert metrics["reward/wrong"] == pytest.approx(float(rewards[:, 1].mean()), rel=1e-4)
    assert metrics["tokens"] == sum(len(t) for example in EXAMPLES for t in example.traces)
    nll = -plain(params, normalised=True)[:4:2].mean()
    assert metrics["nll"] == pytest.approx(float(nll), rel=1e-5)


def test_padding_changes_nothing(config, params, reference):
    gradient, metrics = update(config, params, reference)
    outside = np.arange(WIDTH) >= np.asarray(BATCH.lengths)[:, None]
    filled = BATCH.replace(tokens=np.where(outside, 17, BATCH.tokens))
    noise = np.where(np.arange(ROWS) < 4, reference, 99.0)
    again, told = update(config, params, noise, filled)
    jax.tree.map(np.testing.assert_array_equal, (again, told), (gradient, metrics))
    short = jax.tree.map(lambda x: x[:4], BATCH)
    fewer, _ = update(config, params, reference[:4], short, TAGS[:4])
    close = functools.partial(np.testing.assert_allclose, atol=5e-6)
    jax.tree.map(close, fewer, gradient)


@pytest.mark.parametrize("normalised", [False, True])
def test_steps_from_the_reference_prefer_the_right_ones(config, params, normalised):
    preference, optimizer = Preference(0.5, length_normalised=normalised), optax.adam(3e-3)
    reference = sequence_log_probs(config, params, BATCH, TAGS, normalised)
    state, found = init_state(params, optimizer), []
    for _ in range(20):
        state, metrics = dpo_update(
            state, BATCH, TAGS, reference, config=config, optimizer=optimizer,
            preference=preference,
        )
        found.append({name: float(value) for name, value in metrics.items()})
    assert found[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert found[-1]["accuracy"] == 1.0
    assert found[-1]["loss"] < found[0]["loss"] - 0.1
    assert found[-1]["reward/right"] > found[-1]["reward/wrong"]
