"""Filters against a plain reference in numpy, and draws against the probabilities they invert."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from reasoning.sampling.filters import MASKED, Filters, choose, filter_logits

SIZE = 8
BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
filtered = jax.jit(filter_logits)
drawn = jax.jit(choose)


def softmax(logits):
    weights = np.exp(logits - np.max(logits))
    return weights / weights.sum()


def reference(logits, temperature, top_k, top_p, min_p):
    """Probabilities in float64; also how close a threshold is to including one token more."""
    probs = softmax(np.asarray(logits, np.float64) / (temperature or 1.0))
    close = []
    if top_k is not None:
        least = np.sort(probs)[::-1][min(top_k, len(probs)) - 1]
        probs = np.where(probs >= least, probs, 0.0)
        probs /= probs.sum()
    if top_p is not None:
        ranked = np.sort(probs)[::-1]
        held = 0.0
        for least in ranked:  # the fewest tokens that hold at least top_p
            held += least
            close.append(abs(held - top_p))
            if held >= top_p:
                break
        probs = np.where(probs >= least, probs, 0.0)
        probs /= probs.sum()
    if min_p is not None:
        close += list(np.abs(probs / probs.max() - min_p))
        probs = np.where(probs >= min_p * probs.max(), probs, 0.0)
        probs /= probs.sum()
    return probs, min(close, default=1.0)


numbers = st.integers(-12, 12).map(lambda n: n / 4)  # with ties
settings_drawn = dict(
    logits=st.lists(numbers, min_size=SIZE, max_size=SIZE),
    temperature=st.sampled_from([0.0, 0.25, 0.7, 1.0, 3.0]),
    top_k=st.integers(1, SIZE + 3),
    top_p=st.floats(1e-3, 0.999),
    min_p=st.floats(1e-3, 0.999),
)


@settings(max_examples=200, deadline=None)
@given(**settings_drawn)
@example([0.0] * 8, 1.0, 3, 0.5, 0.999)
@example([3.0] + [-3.0] * 7, 0.25, 11, 0.999, 0.001)
def test_filtered_logits_are_the_reference_distribution(logits, temperature, top_k, top_p, min_p):
    expected, margin = reference(logits, temperature, top_k, top_p, min_p)
    assume(margin > 1e-5)  # rounding decides there
    log_probs = np.asarray(
        filtered(jnp.array(logits), Filters(temperature, top_k, top_p, min_p)), np.float64
    )
    np.testing.assert_allclose(np.exp(log_probs), expected, atol=1e-5)
    kept = expected > 0
    assert kept.any() and kept[np.argmax(logits)]
    np.testing.assert_allclose(log_probs[kept], np.log(expected[kept]), atol=1e-4)
    assert (log_probs[~kept] < MASKED / 2).all() and np.isfinite(log_probs).all()


PROBS = np.array([0.05, 0.4, 0.1, 0.15, 0.3])


@pytest.mark.parametrize(
    "filters, expected",
    [
        (Filters(), PROBS),
        (Filters(0.0), PROBS),  # greedy: left at temperature 1
        (Filters(0.5), PROBS**2 / np.sum(PROBS**2)),
        (Filters(2.0), PROBS**0.5 / np.sum(PROBS**0.5)),
        (Filters(top_k=1), [0, 1, 0, 0, 0]),
        (Filters(top_k=2), [0, 4 / 7, 0, 0, 3 / 7]),
        (Filters(top_k=99), PROBS),
        (Filters(top_p=0.39), [0, 1, 0, 0, 0]),
        (Filters(top_p=0.41), [0, 4 / 7, 0, 0, 3 / 7]),
        (Filters(top_p=0.8), [0, 8 / 17, 0, 3 / 17, 6 / 17]),
        (Filters(top_p=2.0), PROBS),
        (Filters(min_p=0.26), [0, 8 / 17, 0, 3 / 17, 6 / 17]),
        (Filters(min_p=1.0), [0, 1, 0, 0, 0]),
        # Each filter sees what the one before leaves: 4/7 of two tokens already holds 0.5, and
        # without top-k the first token alone would not.
        (Filters(top_k=2, top_p=0.5), [0, 1, 0, 0, 0]),
        (Filters(top_p=0.5), [0, 4 / 7, 0, 0, 3 / 7]),
    ],
    ids=str,
)
def test_filters_by_hand(filters, expected):
    found = filtered(jnp.log(jnp.asarray(PROBS, jnp.float32))[None], filters)
    np.testing.assert_allclose(np.exp(found[0]), expected, atol=1e-6)


def test_tokens_as_likely_as_the_kth_stay():
    logits = jnp.array([1.0, 0.0, 1.0, 1.0, -1.0])
    np.testing.assert_allclose(
        np.exp(filtered(logits, Filters(top_k=2))), [1 / 3, 0, 1 / 3, 1 / 3, 0], atol=1e-6
    )


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e4, 1e30])
def test_something_is_always_kept_and_nothing_is_nan(scale):
    logits = scale * jnp.array([[0.0, 1.0, -1.0, 0.5, 1.0, 0.0, 0.25, 0.0]])
    for filters in (
        Filters(1.0, 1, 1e-6, 1.0), Filters(1e-3, 8, 1.0, 1.0), Filters(0.0, 3, 1e-9, 1e-9)
    ):
        log_probs = np.asarray(filtered(logits, filters))
        assert np.isfinite(log_probs).all()
        assert np.exp(log_probs).sum() == pytest.approx(1.0, abs=1e-5)
        assert log_probs[0, 1] == log_probs.max()


def test_logits_of_bfloat16_are_filtered_in_float32():
    assert filter_logits(jnp.zeros((2, 4), jnp.bfloat16), Filters()).dtype == jnp.float32


def test_numbers_may_change_without_recompiling():
    traces = []

    @jax.jit
    def run(logits, filters):
        traces.append(filters)
        return filter_logits(logits, filters)

    results = [
        np.asarray(run(jnp.array(PROBS, jnp.float32), Filters(t, k, p, m)))
        for t, k, p, m in [(1.0, 5, 0.9, 0.1), (0.7, 2, 0.5, 0.3), (0.0, 1, 1.0, 1.0)]
    ]
    assert len(traces) == 1
    assert not np.allclose(results[0], results[1])
    run(jnp.array(PROBS, jnp.float32), Filters(1.0))  # a filter less is another program
    assert len(traces) == 2


# Drawing


def test_draws_are_as_frequent_as_the_probabilities():
    probs = np.array([0.0, 0.02, 0.3, 0.0, 0.08, 0.25, 0.35, 0.0])
    count = 20_000
    log_probs = jnp.broadcast_to(jnp.where(probs > 0, jnp.log(probs), MASKED), (count, SIZE))
    log_probs = log_probs.astype(jnp.float32)
    possible = probs > 0

    uniform = jax.random.uniform(jax.random.key(0), (count,))
    counts = np.bincount(drawn(log_probs, uniform, 1.0), minlength=SIZE)
    assert counts[~possible].sum() == 0
    test = scipy.stats.chisquare(counts[possible], count * probs[possible])
    assert test.pvalue > 1e-3

    # At evenly spread uniforms the frequencies are exact, and tokens come in order.
    tokens = np.asarray(drawn(log_probs, (jnp.arange(count) + 0.5) / count, 1.0))
    assert (np.diff(tokens) >= 0).all()
    np.testing.assert_allclose(np.bincount(tokens, minlength=SIZE), count * probs, atol=1.5)


def test_the_ends_of_the_uniform_draw_the_first_and_the_last_possible_token():
    keep = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0], [0, 1, 0, 1]], bool)
    log_probs = jax.nn.log_softmax(jnp.where(keep, 0.3, MASKED))
    np.testing.assert_array_equal(drawn(log_probs, jnp.zeros(4), 1.0), [1, 0, 2, 1])
    np.testing.assert_array_equal(drawn(log_probs, jnp.full(4, BELOW_ONE), 1.0), [2, 3, 2, 3])


def test_rounding_of_the_cumulative_sum_never_draws_a_masked_token():
    # Uniforms within a few roundings of the borders between tokens, in a large vocabulary.
    rng = np.random.default_rng(0)
    rows, size = 20_000, 300
    masked = rng.random((rows, size)) < 0.7
    masked[:, 5] = False
    log_probs = np.asarray(
        jax.nn.log_softmax(np.where(masked, MASKED, 2 * rng.normal(size=(rows, size))))
    )
    cumulative = np.cumsum(np.exp(log_probs, dtype=np.float64), axis=1)
    border = cumulative[np.arange(rows), rng.integers(0, size, rows)] / cumulative[:, -1]
    uniform = np.float32(border) + np.float32(2.0**-24) * rng.integers(-4, 5, rows)
    tokens = drawn(log_probs, np.clip(uniform.astype(np.float32), 0, BELOW_ONE), 1.0)
    assert not masked[np.arange(rows), tokens].any()


def test_temperature_0_takes_the_likeliest_token_whatever_the_uniform():
    logits = jnp.array([[0.1, 3.0, 2.9, -1.0], [5.0, 5.0, 4.0, 0.0], [-9.0, -8.0, -7.0, 90.0]])
    log_probs = filter_logits(logits, Filters(temperature=0.0, top_p=1.0))
    assert np.isfinite(log_probs).all()
    for uniform in (0.0, 0.5, BELOW_ONE):
        tokens = drawn(log_probs, jnp.full(3, uniform, jnp.float32), 0.0)
        np.testing.assert_array_equal(tokens, [1, 0, 3])


@pytest.mark.parametrize(
    "filters, message",
    [
        (Filters(-0.1), "temperature=-0.1: must be 0 (greedy) or above."),
        (Filters(top_k=0), "top_k=0: must be at least 1, or None to keep all."),
        (Filters(top_p=0.0), "top_p=0.0: must lie in (0, 1], or be None."),
        (Filters(top_p=1.5), "top_p=1.5: must lie in (0, 1], or be None."),
        (Filters(min_p=-0.5), "min_p=-0.5: must lie in (0, 1], or be None."),
        (Filters(min_p=2), "min_p=2: must lie in (0, 1], or be None."),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_in_one_sentence(filters, message):
    with pytest.raises(ValueError) as error:
        filters.check()
    assert str(error.value) == message


def test_settings_at_the_ends_of_their_range_are_accepted():
    for filters in (Filters(), Filters(0.0, 1, 1.0, 1.0), Filters(top_p=1e-9)):
        assert filters.check() is filters
