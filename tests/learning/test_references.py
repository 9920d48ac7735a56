"""Reference policies: frozen, following, or reset; the closed form of the moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.learning.algorithms import Algorithm
from reasoning.learning.references import update_reference

OLD = {"a": jnp.array([1.0, -2.0, 3.0]), "b": {"c": jnp.array([[0.5]])}}
NEW = {"a": jnp.array([4.0, 0.25, -1.0]), "b": {"c": jnp.array([[-8.0]])}}


def after(algorithm, num_steps, params=NEW):
    def one(reference, step):
        return update_reference(algorithm, reference, params, step), None

    return jax.lax.scan(one, OLD, jnp.arange(1, num_steps + 1))[0]


@pytest.mark.parametrize("num_steps", [1, 10, 500])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_moving_average_in_closed_form(num_steps, dtype):
    algorithm = Algorithm(kl_coef=0.1, ema_decay=0.992)
    params = jax.tree.map(lambda x: x.astype(dtype), NEW)
    got, kept = after(algorithm, num_steps, params), 0.992**num_steps
    for old, new, now in zip(*map(jax.tree.leaves, (OLD, NEW, got)), strict=True):
        expected = kept * np.asarray(old, float) + (1 - kept) * np.asarray(new, float)
        assert now.dtype == jnp.float32
        np.testing.assert_allclose(now, expected, rtol=2e-5)
        assert (np.asarray(now) != np.asarray(old)).all()  # the smallest step is not lost


def test_reset_every_so_many_steps():
    algorithm = Algorithm(kl_coef=0.1, reset_every=3)
    reference = OLD
    for step in range(1, 8):
        params = jax.tree.map(lambda x, s=step: x + s, NEW)
        reference = update_reference(algorithm, reference, params, jnp.asarray(step))
        last = step - step % 3
        expected = OLD if last == 0 else jax.tree.map(lambda x, s=last: x + s, NEW)
        jax.tree.map(np.testing.assert_array_equal, reference, expected)


def test_frozen():
    jax.tree.map(np.testing.assert_array_equal, after(Algorithm(kl_coef=0.1), 5), OLD)


def test_updates_carry_the_reference_along(
    rl_config, tiny_params, other_params, made_up, improve, same
):
    config = rl_config(overrides=dict(kl_coef=0.1, reset_every=2))
    state, _ = improve(config, tiny_params, made_up(), reference=other_params)
    same(state.reference, other_params)
    moved, _ = improve(config, None, made_up(), state=state)
    same(moved.reference, moved.params)
    again, _ = improve(config, None, made_up(), state=moved)
    same(again.reference, moved.params)
    assert int(again.step) == 3
