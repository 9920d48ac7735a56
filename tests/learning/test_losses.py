"""Losses against plain numpy in float64: values, reductions, gradients, and what is left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.learning.losses import REDUCTIONS, check_reduction, reduce_nll, token_nll

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 5, 6)) * 3
TOKENS = RNG.integers(0, 6, (3, 5))
MASK = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]], float)
NUM_SETS = 2


def reference_nll(logits):
    """-log softmax of tokens 1..T-1, entry by entry."""
    nll = np.zeros((3, 4))
    for b, t in np.ndindex(nll.shape):
        weights = np.exp(logits[b, t])
        nll[b, t] = -np.log(weights[TOKENS[b, t + 1]] / weights.sum())
    return nll


def reference_loss(nll, reduction):
    labels = [[value for value, kept in zip(*row) if kept] for row in zip(nll, MASK)]
    total, count = sum(map(sum, labels)), sum(map(len, labels))
    if reduction == "token_mean":
        return total / count
    if reduction == "sequence_mean":
        return np.mean([np.mean(row) for row in labels if row])
    return total / NUM_SETS


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.1)])
def test_token_nll_is_that_of_the_label(dtype, tolerance):
    nll = token_nll(jnp.asarray(LOGITS, dtype)[:, :-1], jnp.asarray(TOKENS)[:, 1:])
    assert nll.dtype == jnp.float32
    np.testing.assert_allclose(nll, reference_nll(LOGITS), atol=tolerance)


def test_token_nll_known_values():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]]))
    nll = token_nll(logits, jnp.array([[0, 1]]))
    np.testing.assert_allclose(nll, [[np.log(2), np.log(5)]], rtol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(reduction):
    nll = reference_nll(LOGITS)
    loss = reduce_nll(jnp.asarray(nll), jnp.asarray(MASK), reduction, NUM_SETS)
    assert loss == pytest.approx(reference_loss(nll, reduction), rel=1e-5)


def test_the_reductions_differ():
    nll = reference_nll(LOGITS)
    losses = [reference_loss(nll, reduction) for reduction in REDUCTIONS]
    assert np.ptp(losses) > 0.1 and len(set(losses)) == 3


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_padding_changes_nothing(reduction):
    nll, mask = reference_nll(LOGITS), MASK
    loss = float(reduce_nll(jnp.asarray(nll), jnp.asarray(mask), reduction, NUM_SETS))
    padded = np.pad(nll, ((0, 2), (0, 3)), constant_values=1e6)
    wider = np.pad(mask, ((0, 2), (0, 3)))
    assert reduce_nll(
        jnp.asarray(padded), jnp.asarray(wider), reduction, NUM_SETS
    ) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_empty_mask_gives_0_and_no_gradient(reduction):
    def loss(nll):
        return reduce_nll(nll, jnp.zeros((3, 4)), reduction, jnp.zeros((), jnp.int32))

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(reference_nll(LOGITS)))
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((3, 4)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_is_that_of_finite_differences(reduction):
    def loss(logits):
        nll = token_nll(logits[:, :-1], jnp.asarray(TOKENS)[:, 1:])
        return reduce_nll(nll, jnp.asarray(MASK), reduction, NUM_SETS)

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(LOGITS, jnp.float32))
    step, differences = 1e-5, np.zeros_like(LOGITS)
    for at in np.ndindex(LOGITS.shape):
        moved = np.zeros_like(LOGITS)
        moved[at] = step
        up, down = (
            reference_loss(reference_nll(LOGITS + sign * moved), reduction) for sign in (1, -1)
        )
        differences[at] = (up - down) / (2 * step)
    np.testing.assert_allclose(gradient, differences, atol=1e-5)
    assert (np.asarray(gradient)[:, :-1][MASK == 0] == 0).all()


def test_an_unknown_reduction_is_refused_in_one_sentence():
    message = r"^reduction='mean': must be one of token_mean, sequence_mean, set_sum\.$"
    with pytest.raises(ValueError, match=message):
        check_reduction("mean")
    with pytest.raises(ValueError, match=message):
        reduce_nll(jnp.zeros((1, 1)), jnp.ones((1, 1)), "mean", 1)
