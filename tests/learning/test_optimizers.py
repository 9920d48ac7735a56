"""The optimizers: the schedule as the size of steps, decay and clipping, and Muon's matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reasoning.learning.optimizers import OptimizerConfig, make_optimizer


def steps_of(optimizer, params, gradient, count):
    """The updates of `count` steps under one gradient."""

    @jax.jit
    def run(params):
        def step(state, _):
            updates, state = optimizer.update(gradient, state, params)
            return state, updates

        return jax.lax.scan(step, optimizer.init(params), None, length=count)[1]

    return jax.tree.map(np.asarray, run(params))


@pytest.mark.parametrize(("name", "share"), [("adamw", 0.1), ("muon", 0.1), ("adamw", 0.0)])
def test_the_rate_warms_up_and_decays_to_a_share_of_the_peak(name, share):
    # Under a constant gradient the step of Adam is the learning rate. Muon steps its other
    # parameters by NAdam, which looks a step ahead; that fades with the bias correction.
    optimizer = make_optimizer(
        OptimizerConfig(
            name=name, learning_rate=0.01, num_steps=40, warmup_steps=10, final_share=share
        )
    )
    gradient = {"scale": jnp.array([0.3, -0.2])}
    updates = steps_of(optimizer, {"scale": jnp.ones(2)}, gradient, 45)["scale"]
    rates, t = np.abs(updates), np.arange(1, 46)[:, None]
    if name == "muon":
        rates = rates / (0.9 * (1 - 0.9**t) / (1 - 0.9 ** (t + 1)) + 0.1 / (1 - 0.9**t))
    np.testing.assert_allclose(rates[:, 0], rates[:, 1], rtol=1e-4)
    assert (updates[1:40, 0] < 0).all() and (updates[1:40, 1] > 0).all()
    np.testing.assert_allclose(rates[:11, 0], 0.01 * np.arange(11) / 10, rtol=1e-4, atol=1e-9)
    assert rates[25, 0] == pytest.approx(0.005 * (1 + share), rel=1e-3)  # half-way down
    np.testing.assert_allclose(rates[40:, 0], 0.01 * share, rtol=1e-3, atol=1e-9)
    assert rates[:, 0].argmax() == 10


def test_only_matrices_decay_and_large_gradients_are_clipped():
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=0.01, num_steps=10, warmup_steps=1, weight_decay=0.1)
    )
    params = {"up": jnp.full((2, 3), 5.0), "token_embedding": jnp.full((4, 2), 5.0)}
    still = jax.tree.map(jnp.zeros_like, params)
    updates = steps_of(optimizer, params, still, 2)
    np.testing.assert_allclose(updates["up"][1], -0.01 * 0.1 * 5.0, rtol=1e-5)
    assert (updates["token_embedding"] == 0).all()

    huge = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e6), params)
    state = jax.jit(optimizer.update)(huge, optimizer.init(params), params)[1]
    first_moment = optax.tree.norm(optax.tree.get(state, "mu"))
    assert first_moment == pytest.approx(0.1, rel=1e-4)  # (1 - b1) of a gradient of norm 1


def layer(rng):
    shapes = dict(
        query=(8, 2, 4), key=(8, 1, 4), output=(2, 4, 8), down=(12, 8), scale=(8,)
    )
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_muon_orthogonalises_each_matrix_also_of_stacked_layers():
    rng = np.random.default_rng(0)
    layers, gradients = ([layer(rng) for _ in range(2)] for _ in range(2))
    optimizer = make_optimizer(
        OptimizerConfig(name="muon", learning_rate=1.0, num_steps=100, warmup_steps=1,
                        weight_decay=0.0, clip_norm=1e9)
    )

    def second_update(params, gradient):
        return jax.tree.map(lambda leaf: leaf[1], steps_of(optimizer, params, gradient, 2))

    def stack(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    apart = second_update(dict(enumerate(layers)), dict(enumerate(gradients)))
    stacked = second_update(stack(layers), stack(gradients))
    for i in range(2):
        for name, update in apart[i].items():
            np.testing.assert_allclose(stacked[name][i], update, atol=1e-3, err_msg=name)
            if name == "scale":
                continue
            rows = 8 if name != "down" else 12
            matrix = update.reshape((8, 8) if name == "output" else (rows, -1))
            values = np.linalg.svd(matrix, compute_uv=False)
            # Newton-Schulz brings all singular values near one common value, here scaled so that
            # the update's root mean square is near 0.2, as AdamW's is.
            assert values.max() / values.min() < 2.5, name
            assert 0.1 < np.sqrt(np.mean(matrix**2)) < 0.3, name


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"^optimizer='sgd': must be adamw or muon\.$"):
        OptimizerConfig(name="sgd")


def test_a_final_share_above_the_peak_is_refused():
    with pytest.raises(ValueError, match=r"^final_share=1\.5: must lie in \[0, 1\]\.$"):
        OptimizerConfig(final_share=1.5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_strategy_table_can_be_all_that_trains(name):
    optimizer = make_optimizer(
        OptimizerConfig(name=name, learning_rate=0.01, num_steps=10, trained="strategies")
    )
    tables = {"strategy_embedding": jnp.ones((4, 2)), "strategy_head": jnp.ones((4, 2))}
    params = {"layer_0": {"up": jnp.ones((2, 3))}, **tables}
    gradient = {"layer_0": {"up": jnp.full((2, 3), 1e6)}, **tables}
    updates = steps_of(optimizer, params, gradient, 3)
    assert (updates["layer_0"]["up"] == 0).all()
    assert all((updates[name][1:] < 0).all() for name in tables)


def test_a_gradient_is_clipped_by_what_trains():
    optimizer = make_optimizer(OptimizerConfig(trained="strategies", clip_norm=0.5))
    params = {"layer_0": {"up": jnp.ones((2, 3))}, "strategy_embedding": jnp.ones((4, 2))}
    gradient = {"layer_0": {"up": jnp.full((2, 3), 1e6)}, "strategy_embedding": jnp.ones((4, 2))}
    state = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)[1]
    first_moment = optax.tree.norm(optax.tree.get(state, "mu")["strategy_embedding"])
    assert first_moment == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_what_trains_has_two_names():
    with pytest.raises(ValueError, match="trained='table': must be all or strategies"):
        OptimizerConfig(trained="table")
