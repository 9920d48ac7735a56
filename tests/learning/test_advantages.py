"""Advantages against plain numpy in float64, known values, and what must not change them."""

import functools
import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from reasoning.learning.advantages import (
    ADVANTAGES,
    advantages,
    check_advantage,
    entropy_shaped,
    gdpo,
    needs,
    pass_at_k,
    penalise_after,
    penalise_before,
    pkpo,
    rloo,
)

P, G, K = 3, 6, 3
EPSILON = 1e-6
WEIGHTS = (1.0, 0.5)


def by_name(name):
    return lambda rewards, valid, lengths: advantages(name, rewards, valid, lengths=lengths, k=K)


# Every method as a function of (rewards, valid, lengths); gdpo takes the lengths for a reward.
METHODS = {name: jax.jit(by_name(name)) for name in ADVANTAGES}
METHODS["pkpo_plain"] = jax.jit(lambda r, v, lengths: pkpo(r, v, k=K, baseline=False))
METHODS["gdpo"] = jax.jit(
    lambda r, v, lengths: gdpo(jnp.stack([r, lengths.astype(r.dtype)]), v, WEIGHTS)
)
every_method = pytest.mark.parametrize("name", METHODS)


def call(name, rewards, valid, lengths):
    result = METHODS[name](
        jnp.asarray(rewards, jnp.float32), jnp.asarray(valid), jnp.asarray(lengths)
    )
    assert result.dtype == jnp.float32 and result.shape == np.shape(rewards)
    return np.asarray(result)


@st.composite
def batches(draw):
    """Rewards in quarters, with ties, 0s and 1s; groups of 0..G valid samples; any lengths."""
    rewards = draw(arrays(np.int8, (P, G), elements=st.integers(-4, 8))) / 4
    sizes = draw(st.tuples(*[st.sampled_from([0, 1, 1, 2, 3, 4, 5, G, G])] * P))
    valid = np.array([draw(st.permutations([g < size for g in range(G)])) for size in sizes])
    lengths = draw(arrays(np.int32, (P, G), elements=st.integers(0, 50)))
    return rewards, valid, lengths


def over_batches(test):
    return settings(max_examples=30, deadline=None)(given(batch=batches())(test))


def a_batch(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(-4, 8, (P, G)) / 4, rng.random((P, G)) < 0.8, rng.integers(0, 50, (P, G))


# Plain numpy. A reference of one group maps its valid rewards and lengths to advantages.


def normalised(values):
    return (values - values.mean()) / (values.std(ddof=1) + EPSILON)


def reference_rloo(rewards, _):
    others = [np.delete(rewards, i).mean() for i in range(len(rewards))]
    return rewards - np.array(others)


def reference_opo(rewards, lengths):
    return rewards - np.average(rewards, weights=lengths if lengths.sum() else None)


def subsets(n):
    return [np.array(chosen) for chosen in itertools.combinations(range(n), K)]


def reference_pass_at_k(rewards, _):
    passed = {tuple(s): float((rewards[s] > 0.5).any()) for s in subsets(len(rewards))}
    of_sets = np.array(list(passed.values()))
    if not len(of_sets) or not of_sets.std():
        return np.zeros(len(rewards))
    of_sets = dict(zip(passed, (of_sets - of_sets.mean()) / of_sets.std()))
    return np.array(
        [np.mean([a for s, a in of_sets.items() if i in s]) for i in range(len(rewards))]
    )


def reference_pkpo(rewards, _, baseline=True):
    n, values = len(rewards), np.zeros(len(rewards))
    for s in subsets(n):
        for i in s:
            without = rewards[s[s != i]].max() if baseline else 0.0
            values[i] += (rewards[s].max() - without) / len(subsets(n))
    return n * values


GROUP_REFERENCES = {
    "rloo": reference_rloo,
    "grpo": lambda rewards, _: normalised(rewards),
    "dr_grpo": lambda rewards, _: rewards - rewards.mean(),
    "opo": reference_opo,
    "pass_at_k": reference_pass_at_k,
    "pkpo": reference_pkpo,
    "pkpo_plain": functools.partial(reference_pkpo, baseline=False),
}


def by_group(reference, rewards, valid, lengths):
    result = np.zeros((P, G))
    for p in range(P):
        if valid[p].sum() > 1:
            chosen = valid[p]
            result[p, chosen] = reference(rewards[p, chosen], lengths[p, chosen].astype(float))
    return result


def reference(name, rewards, valid, lengths):
    if name in GROUP_REFERENCES:
        return by_group(GROUP_REFERENCES[name], rewards, valid, lengths)
    result = np.zeros((P, G))
    kept = valid if name == "reinforce_pp" else valid & (valid.sum(axis=1, keepdims=True) > 1)
    if kept.sum() < 2:
        return result
    centred = by_group(GROUP_REFERENCES["dr_grpo"], rewards, valid, lengths)
    if name == "reinforce_pp":
        result[kept] = normalised(rewards[kept])
    elif name == "reinforce_pp_baseline":
        result[kept] = normalised(centred[kept])
    elif name == "lite_ppo":
        result[kept] = centred[kept] / (rewards[kept].std(ddof=1) + EPSILON)
    elif name == "gdpo":
        each = [by_group(GROUP_REFERENCES["grpo"], r, valid, lengths) for r in (rewards, lengths)]
        result[kept] = normalised(WEIGHTS[0] * each[0][kept] + WEIGHTS[1] * each[1][kept])
    return result


@every_method
@over_batches
def test_matches_brute_force(name, batch):
    np.testing.assert_allclose(call(name, *batch), reference(name, *batch), rtol=1e-4, atol=1e-4)


def test_known_values_of_one_right_in_four():
    rewards, valid = jnp.array([[1.0, 0.0, 0.0, 0.0]]), jnp.ones((1, 4), bool)
    expected = {
        "rloo": [1.0, -1 / 3, -1 / 3, -1 / 3],
        "grpo": [1.5, -0.5, -0.5, -0.5],
        "dr_grpo": [0.75, -0.25, -0.25, -0.25],
        "lite_ppo": [1.5, -0.5, -0.5, -0.5],  # one group is the whole batch
        "opo": [0.9, -0.1, -0.1, -0.1],
    }
    lengths = jnp.array([[10, 20, 30, 40]])
    for name, values in expected.items():
        result = advantages(name, rewards, valid, lengths=lengths)
        np.testing.assert_allclose(result, [values], rtol=1e-5)


EIGHT = jnp.array([[1.0, 0, 0, 1, 0, 1, 0, 0]])  # n=8, c=3


@pytest.mark.parametrize(
    "method, right, wrong",
    [
        (pass_at_k, 0.277350, -0.166410),
        (functools.partial(pkpo, baseline=False), 8 * 0.5, 8 * 0.442857),
        (pkpo, 8 / 7, 0.0),
    ],
)
def test_known_values_of_three_right_in_eight(method, right, wrong):
    result = jax.jit(functools.partial(method, k=4))(EIGHT, jnp.ones((1, 8), bool))
    np.testing.assert_allclose(result, np.where(EIGHT, right, wrong), rtol=1e-5)


def test_large_groups_neither_overflow_nor_lose_precision():
    """n=512, one right, k=256: half of the sets pass, and the right one is in all of these."""
    rewards, valid = jnp.zeros((1, 512)).at[0, 7].set(1.0), jnp.ones((1, 512), bool)
    expected = np.where(rewards, 1.0, -1 / 511)
    result = jax.jit(lambda r, v: pass_at_k(r, v, k=256))(rewards, valid)
    np.testing.assert_allclose(result, expected, rtol=1e-4)
    expected = np.where(rewards, 256.0, 0.0)
    result = jax.jit(lambda r, v: pkpo(r, v, k=256))(rewards, valid)
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_pkpo_of_one_sample_is_the_reward():
    rewards, valid = jnp.array([[0.3, -2.0, 0.3, 5.0]]), jnp.array([[True, True, True, False]])
    for baseline in (True, False):
        result = jax.jit(functools.partial(pkpo, k=1, baseline=baseline))(rewards, valid)
        np.testing.assert_allclose(result, [[0.3, -2.0, 0.3, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("method", [pass_at_k, pkpo])
def test_k_of_each_prompt(method):
    run = jax.jit(lambda k: method(jnp.tile(EIGHT, (3, 1)), jnp.ones((3, 8), bool), k=k))
    result = run(jnp.array([[1], [4], [9]]))
    np.testing.assert_allclose(result[0], run(1)[0], rtol=1e-6)
    np.testing.assert_allclose(result[1], run(4)[1], rtol=1e-6)
    np.testing.assert_array_equal(result[2], np.zeros(8))  # there are no sets of 9


# What must hold for every method.


@every_method
@over_batches
def test_no_advantage_without_comparison(name, batch):
    rewards, valid, lengths = batch
    result = call(name, rewards, valid, lengths)
    assert np.isfinite(result).all()
    assert not result[~valid].any()
    if name != "reinforce_pp":
        assert not result[valid.sum(axis=1) < 2].any()


@every_method
def test_nothing_valid_gives_0(name):
    rewards, valid, lengths = a_batch()
    result = call(name, rewards, np.zeros_like(valid), lengths)
    np.testing.assert_array_equal(result, np.zeros((P, G)))


def test_groups_of_one_sample():
    rewards, valid = jnp.array([[0.0], [1.0], [2.0]]), jnp.ones((3, 1), bool)

    @jax.jit
    def run(rewards, valid):
        lengths = jnp.ones((3, 1))
        results = {n: advantages(n, rewards, valid, lengths=lengths, k=1) for n in ADVANTAGES}
        results["pkpo_plain"] = pkpo(rewards, valid, k=1, baseline=False)
        results["gdpo"] = gdpo(jnp.stack([rewards, rewards]), valid, WEIGHTS)
        return results

    results = run(rewards, valid)
    # The batch is the group of reinforce_pp.
    np.testing.assert_allclose(results.pop("reinforce_pp"), [[-1.0], [0.0], [1.0]], atol=1e-5)
    for result in results.values():
        np.testing.assert_array_equal(result, np.zeros((3, 1)))


@every_method
@over_batches
def test_permuting_samples_permutes_advantages(name, batch):
    order = np.random.default_rng(0).permuted(np.tile(np.arange(G), (P, 1)), axis=1)
    shuffled = [np.take_along_axis(values, order, axis=1) for values in batch]
    expected = np.take_along_axis(call(name, *batch), order, axis=1)
    np.testing.assert_allclose(call(name, *shuffled), expected, rtol=1e-4, atol=1e-5)


@every_method
@over_batches
def test_padding_changes_nothing(name, batch):
    rewards, valid, lengths = batch
    by = ((0, 1), (0, 2))
    padded = call(
        name,
        np.pad(np.where(valid, rewards, np.inf), by, constant_values=np.nan),
        np.pad(valid, by),
        np.pad(lengths, by, constant_values=10**6),
    )
    assert not padded[P:].any() and not padded[:, G:].any()
    np.testing.assert_allclose(padded[:P, :G], call(name, *batch), rtol=1e-4, atol=1e-5)


@every_method
def test_vmap_gives_the_same(name):
    cases = [a_batch(1), a_batch(2)]
    rewards, valid, lengths = (jnp.stack([jnp.asarray(x) for x in xs]) for xs in zip(*cases))
    mapped = jax.jit(jax.vmap(METHODS[name]))(rewards.astype(jnp.float32), valid, lengths)
    expected = [call(name, *case) for case in cases]
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 0.1


# What some of them promise. 0.1 and 1/3 are sums that do not divide back in float32.

ALIKE_IN_GROUPS = [m for m in METHODS if m not in ("reinforce_pp", "pkpo_plain")]


@pytest.mark.parametrize("name", ALIKE_IN_GROUPS)
def test_groups_alike_have_exactly_0(name):
    _, valid, lengths = a_batch()
    rewards = np.broadcast_to([[0.1], [1.0], [1 / 3]], (P, G))
    if name == "gdpo":
        lengths = np.broadcast_to([[7], [11], [13]], (P, G))
    np.testing.assert_array_equal(call(name, rewards, valid, lengths), np.zeros((P, G)))


def test_a_batch_alike_has_exactly_0():
    _, valid, lengths = a_batch()
    result = call("reinforce_pp", np.full((P, G), 0.1), valid, lengths)
    np.testing.assert_array_equal(result, np.zeros((P, G)))


SHIFTS_OF_GROUPS = ["rloo", "grpo", "dr_grpo", "reinforce_pp_baseline", "opo", "pkpo", "gdpo"]
SHIFTS_OF_ALL = [*SHIFTS_OF_GROUPS, "reinforce_pp", "lite_ppo"]


@pytest.mark.parametrize(
    "name, shift",
    [(m, np.array([[-3.0], [0.0], [100.0]])) for m in SHIFTS_OF_GROUPS]
    + [(m, np.full((P, 1), 100.0)) for m in SHIFTS_OF_ALL],
)
def test_shifting_rewards_changes_nothing(name, shift):
    rewards, valid, lengths = a_batch()
    np.testing.assert_allclose(
        call(name, rewards + shift, valid, lengths), call(name, rewards, valid, lengths), rtol=1e-5
    )


@pytest.mark.parametrize(
    "name",
    ["rloo", "grpo", "dr_grpo", "reinforce_pp_baseline", "lite_ppo", "pass_at_k", "gdpo"],
)
@over_batches
def test_advantages_of_a_group_cancel(name, batch):
    np.testing.assert_allclose(call(name, *batch).sum(axis=1), np.zeros(P), atol=1e-4)


@over_batches
def test_rloo_is_scaled_dr_grpo(batch):
    count = batch[1].sum(axis=1, keepdims=True)
    expected = call("dr_grpo", *batch) * count / np.maximum(count - 1, 1)
    np.testing.assert_allclose(call("rloo", *batch), expected, rtol=1e-6)


def test_opo_of_equal_lengths_is_dr_grpo():
    rewards, valid, _ = a_batch()
    lengths = np.full((P, G), 7)
    np.testing.assert_allclose(
        call("opo", rewards, valid, lengths), call("dr_grpo", rewards, valid, lengths), atol=1e-6
    )


def test_rloo_of_rewards_less_kl_centres_the_kl():
    rewards, valid, _ = a_batch()
    kl, beta = np.random.default_rng(1).random((P, G)), 0.3
    centred_kl = by_group(reference_rloo, kl, valid, kl)
    np.testing.assert_allclose(
        rloo(jnp.asarray(rewards - beta * kl), jnp.asarray(valid)),
        rloo(jnp.asarray(rewards), jnp.asarray(valid)) - beta * centred_kl,
        atol=1e-6,
    )


@pytest.mark.parametrize("baseline", [True, False])
def test_pkpo_is_the_gradient_of_the_best_of_k(baseline):
    """The mean over all draws of three samples of three outcomes, for k = 2, in its units."""
    logits, values, k = jnp.array([0.2, -0.4, 0.5]), jnp.array([0.0, 1.0, 3.0]), 2
    draws = jnp.array(list(itertools.product(range(3), repeat=3)))

    @jax.grad
    def gradient(logits):
        probs = jax.nn.softmax(logits)
        return jnp.sum(probs[:, None] * probs[None] * jnp.maximum(values[:, None], values[None]))

    @jax.jit
    def estimate(logits):
        probs, rewards = jax.nn.softmax(logits), values[draws]
        result = pkpo(rewards, jnp.ones_like(rewards, bool), k=k, baseline=baseline)
        scores = jax.nn.one_hot(draws, 3) - probs[None, None]  # gradients of log p
        estimates = jnp.mean(result[..., None] * scores, axis=1)
        return jnp.sum(jnp.prod(probs[draws], axis=1, keepdims=True) * estimates, axis=0)

    np.testing.assert_allclose(estimate(logits), jax.jit(gradient)(logits), atol=1e-5)


# Entropy and penalties.

SHAPED = jax.jit(entropy_shaped)


@given(
    advantage=arrays(np.int8, (2, 4), elements=st.integers(-64, 64)),
    entropy=arrays(np.int8, (2, 4), elements=st.integers(0, 64)),
)
@settings(max_examples=30, deadline=None)
def test_entropy_shaping(advantage, entropy):
    advantage, entropy = np.float32(advantage / 16), np.float32(entropy / 16)
    shaped = SHAPED(advantage, entropy)
    bonus = np.minimum(0.4 * entropy, np.abs(advantage) / 2)
    np.testing.assert_allclose(shaped, advantage + bonus, rtol=1e-6)
    np.testing.assert_array_equal(np.sign(shaped), np.sign(advantage))


def test_entropy_shaping_of_one_advantage_per_sample():
    def total(entropy):
        return entropy_shaped(jnp.array([[1.0], [-1.0]]), entropy).sum()

    entropy = jnp.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    shaped = entropy_shaped(jnp.array([[1.0], [-1.0]]), entropy)
    np.testing.assert_allclose(shaped, [[1.0, 1.4, 1.5], [-1.0, -0.6, -0.5]], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(total)(entropy), np.zeros((2, 3)))


def test_penalties_before_and_after_the_baseline():
    rewards = jnp.array([[1.0, 0.0, 0.0, 1.0, 1.0]])
    valid = jnp.array([[True, True, True, True, False]])
    penalised = jnp.array([[False, False, False, True, True]])
    before = penalise_before(rloo, rewards, valid, penalised)
    np.testing.assert_allclose(before, [[4 / 3, 0.0, 0.0, -4 / 3, 0.0]], atol=1e-6)
    after = penalise_after(rloo, rewards, valid, penalised)
    np.testing.assert_allclose(after, [[1.0, -0.5, -0.5, -1.0, 0.0]], atol=1e-6)


@pytest.mark.parametrize("penalise", [penalise_before, penalise_after])
def test_no_penalties_change_nothing(penalise):
    rewards, valid, lengths = (jnp.asarray(x) for x in a_batch())
    estimator = functools.partial(advantages, "opo", lengths=lengths)
    result = penalise(estimator, rewards, valid, jnp.zeros((P, G), bool))
    np.testing.assert_array_equal(result, estimator(rewards, valid))


@pytest.mark.parametrize("unpenalised", [0, 1])
def test_penalties_after_with_nothing_to_compare(unpenalised):
    penalised = jnp.arange(4)[None] >= unpenalised
    result = penalise_after(rloo, jnp.ones((1, 4)), jnp.ones((1, 4), bool), penalised)
    np.testing.assert_array_equal(result, np.where(penalised, -1.0, 0.0))


# Names and refusals.


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="advantage='ppo': must be one of rloo, grpo, "):
        advantages("ppo", jnp.zeros((1, 2)), jnp.ones((1, 2), bool))
    with pytest.raises(ValueError, match="advantage='RLOO': must be one of"):
        check_advantage("RLOO")


@pytest.mark.parametrize(("name", "extra"), [("opo", "lengths"), ("pass_at_k", "k"), ("pkpo", "k")])
def test_a_missing_argument_is_refused(name, extra):
    with pytest.raises(ValueError, match=f"advantage='{name}': needs {extra}, which"):
        advantages(name, jnp.zeros((1, 2)), jnp.ones((1, 2), bool))


def test_the_other_methods_need_nothing():
    assert [name for name in ADVANTAGES if needs(name)] == ["opo", "pass_at_k", "pkpo"]


@pytest.mark.parametrize("method", [pass_at_k, pkpo])
@pytest.mark.parametrize("k", [0, 9])
def test_k_out_of_range_is_refused(method, k):
    with pytest.raises(ValueError, match=f"k={k}: must be between 1 and the 8 samples"):
        method(EIGHT, jnp.ones((1, 8), bool), k=k)
