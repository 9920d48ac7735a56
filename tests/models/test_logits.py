"""Logits made for chunks of tokens: the same values and gradients as all at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.models.logits import logits_of, map_logits
from reasoning.models.transformer import Transformer

KINDS = [
    {}, {"tied_head": False}, {"final_softcap": 2.0}, {"strategy_ids": (5, 7, 9)},
    {"strategy_ids": (5, 7, 9), "tied_head": False},
]
TOKENS = np.random.default_rng(0).integers(0, 29, (3, 7), dtype=np.int32)


@pytest.fixture(params=KINDS, ids=str)
def policy(request, config, rough_params):
    """A configuration and its parameters."""
    config = dataclasses.replace(config, **request.param)
    return config, rough_params(config)


def hidden_of(config, params):
    return Transformer(config).apply(params, TOKENS, head=False)[0]


def test_logits_are_those_of_the_transformer(policy):
    config, params = policy
    expected, _ = Transformer(config).apply(params, TOKENS)
    logits = logits_of(config, params, hidden_of(config, params))
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def label_loss(logits, labels, weights):
    """Two values a token, one of them weighted."""
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    return {"nll": nll, "weighted": nll[..., None] * weights}


@pytest.mark.parametrize("largest", [1, 3 * 32, 3 * 32 * 2, 3 * 32 * 4, 10**9])
def test_chunks_have_the_values_and_gradients_of_the_whole(policy, largest):
    config, params = policy
    weights = np.random.default_rng(1).random((3, 7, 2)).astype(np.float32)

    def read(params, largest):
        hidden = hidden_of(config, params)
        return map_logits(
            label_loss, config, params, hidden, TOKENS, weights, largest=largest
        )

    def total(params, largest):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(read(params, largest)))

    whole = label_loss(Transformer(config).apply(params, TOKENS)[0], TOKENS, weights)
    found = read(params, largest)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, whole)
    expected = jax.grad(
        lambda params: sum(
            jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(
                label_loss(Transformer(config).apply(params, TOKENS)[0], TOKENS, weights)
            )
        )
    )(params)
    gradients = jax.grad(total)(params, largest)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, expected)


def test_no_array_holds_more_than_a_chunk_of_logits(config, rough_params):
    params, labels = rough_params(config), np.zeros((2, 64), np.int32)
    hidden = jnp.ones((2, 64, config.d_model))

    def loss(params, largest):
        return map_logits(
            label_loss, config, params, hidden, labels, np.ones((2, 64, 1), np.float32),
            largest=largest,
        )["nll"].sum()

    def widest(largest):
        """The most elements of any array with the vocabulary as its last axis."""
        program = jax.jit(jax.grad(loss), static_argnums=1).lower(params, largest).as_text()
        ids = config.vocab_size + config.num_strategies
        shapes = {part.split("xf32")[0] for part in program.split("tensor<") if "xf32" in part}
        sizes = [list(map(int, s.split("x"))) for s in shapes if s.replace("x", "").isdigit()]
        return max(int(np.prod(size)) for size in sizes if size[-1] == ids)

    ids = config.vocab_size + config.num_strategies
    assert widest(10**9) == 2 * 64 * ids
    assert widest(2 * 8 * ids) == 2 * 8 * ids
