"""Strategy tags: two tables that act as one, ids and back, and a start at tag 0's place."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.models.strategies import (
    HEAD,
    TABLE,
    embed,
    id_to_tag,
    score,
    spread_strategies,
    tag_to_id,
)

RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(7, 5)).astype(np.float32)
STRATEGIES = RNG.normal(size=(3, 5)).astype(np.float32)
WHOLE = np.concatenate([TOKENS, STRATEGIES])


def test_embed_reads_the_two_tables_as_one():
    ids = np.array([[0, 6, 7, 9, 3], [8, 1, 9, 2, 7]])
    found = embed(jnp.asarray(TOKENS), jnp.asarray(STRATEGIES), jnp.asarray(ids))
    np.testing.assert_array_equal(found, WHOLE[ids])


def test_embed_sends_each_gradient_to_the_row_that_was_read():
    ids = jnp.array([[6, 7, 7, 9]])
    gradients = jax.grad(lambda *tables: embed(*tables, ids).sum(), argnums=(0, 1))(
        jnp.asarray(TOKENS), jnp.asarray(STRATEGIES)
    )
    np.testing.assert_array_equal(gradients[0][:, 0], [0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(gradients[1][:, 0], [2, 0, 1])


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.1)])
def test_score_is_one_head_of_both_tables_in_float32(dtype, tolerance):
    hidden = RNG.normal(size=(2, 4, 5)).astype(np.float32)
    logits = score(jnp.asarray(TOKENS), jnp.asarray(STRATEGIES), jnp.asarray(hidden, dtype))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, hidden @ WHOLE.T, atol=tolerance)


def test_tags_and_ids_are_inverse(config):
    tags = jnp.array([[0, 2], [1, 1]])
    ids = tag_to_id(config, tags)
    np.testing.assert_array_equal(ids, [[29, 31], [30, 30]])
    np.testing.assert_array_equal(id_to_tag(config, ids), tags)
    np.testing.assert_array_equal(id_to_tag(config, jnp.array([0, 28, 29])), [-1, -1, 0])


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def weights(request, config, rough_params):
    return rough_params(dataclasses.replace(config, tied_head=request.param))


def test_without_noise_every_strategy_stands_where_tag_0_does(weights):
    before = jax.tree.map(np.array, weights)
    spread = spread_strategies(weights, jax.random.key(0), noise=0.0)
    jax.tree.map(np.testing.assert_array_equal, weights, before)  # not changed in place
    assert jax.tree.structure(spread) == jax.tree.structure(weights)
    for name, leaf in spread["params"].items():
        if name in (TABLE, HEAD):
            np.testing.assert_array_equal(leaf, np.tile(before["params"][name][:1], (3, 1)))
        else:
            jax.tree.map(np.testing.assert_array_equal, leaf, before["params"][name])


def test_noise_sets_the_other_tags_apart_in_units_of_the_embedding():
    # Wide tables, so that the standard deviation of a row is close to that of the noise.
    table = jax.random.normal(jax.random.key(1), (4, 4096)) * 3.0
    params = {"params": {TABLE: table, HEAD: 2 * table}}
    spread, other = (
        spread_strategies(params, jax.random.key(seed), noise=0.5)["params"] for seed in (2, 3)
    )
    for name, deviation in ((TABLE, 1.5), (HEAD, 3.0)):
        np.testing.assert_array_equal(spread[name][0], params["params"][name][0])
        moved = np.asarray(spread[name] - params["params"][name][:1])[1:]
        np.testing.assert_allclose(moved.std(axis=1), deviation, rtol=0.05)
        assert np.abs(np.corrcoef(moved) - np.eye(3)).max() < 0.1  # each its own noise
        assert np.abs(spread[name] - other[name])[1:].max() > 0.1
    moved = [np.asarray(spread[name] - params["params"][name][:1])[1] for name in (TABLE, HEAD)]
    assert abs(np.corrcoef(moved)[0, 1]) < 0.1
