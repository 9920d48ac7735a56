"""Reinforcement learning cut over devices makes the updates of a single one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rl_steps import in_turn, one_program
from reasoning.learning.algorithms import make_algorithm
from reasoning.learning.optimizers import OptimizerConfig, make_optimizer
from reasoning.learning.rl_state import RLConfig, init_policy_state
from reasoning.learning.rollouts import PromptBatch, RolloutConfig
from reasoning.models.config import ModelConfig
from reasoning.rewards.verdicts import Verdicts, reason_id
from reasoning.runtime.meshes import (
    MeshShape,
    init_sharded,
    make_mesh,
    param_shardings,
    use_mesh,
)

MODEL = ModelConfig(
    vocab_size=28, num_strategies=4, d_model=16, num_layers=1, num_heads=4, num_kv_heads=2,
    head_dim=4, d_ff=32, max_length=40,
)
CONFIG = RLConfig(
    model=MODEL,
    algorithm=make_algorithm("grpo", kl_coef=0.1),
    rollout=RolloutConfig(num_samples=4, max_new_tokens=32, num_slots=5),
    stop_ids=(1,),
    pad_id=0,
    num_prompts=8,
    num_microbatches=2,
)
STEPS = 2


def share_of_even_tokens(prompts, completions, metadata):
    even = (completions.tokens % 2 == 0) & completions.mask
    reward = even.sum(axis=1) / completions.mask.sum(axis=1)
    return Verdicts(
        reward.astype(jnp.float32), jnp.full(reward.shape, reason_id("scored"), jnp.int32)
    )


def train(mesh, compiled):
    """The state after STEPS steps, with an axis of one seed, and their metrics."""
    optimizer = make_optimizer(OptimizerConfig(num_steps=STEPS, warmup_steps=0, learning_rate=0.01))
    ids = np.random.default_rng(0).integers(3, 28, (1, STEPS, 8, 5)).astype(np.int32)
    index = np.arange(STEPS * 8, dtype=np.int32).reshape(1, STEPS, 8)
    prompts = PromptBatch(ids, np.ones_like(ids), index, index)
    keys = jax.random.split(jax.random.key(2), (1, STEPS))
    with use_mesh(mesh):
        params = init_sharded(MODEL, jax.random.key(0), mesh)
        state = init_policy_state(params, CONFIG, optimizer)
        state = jax.tree.map(lambda x: jnp.stack([x]), state)
        advance = (
            one_program(CONFIG, optimizer, share_of_even_tokens, False, 1) if compiled
            else in_turn(CONFIG, optimizer, share_of_even_tokens, None)
        )
        state, metrics = advance(state, prompts, keys)
        return state, jax.device_get(metrics)


@pytest.mark.parametrize("shape", [
    MeshShape(1, 2, 2, 2),
    MeshShape(2, 2, 1, 1),  # whose devices go through their rows apart, in parts of like lengths
], ids=lambda shape: "x".join(map(str, shape.sizes)))
@pytest.mark.parametrize(
    "compiled", [pytest.param(True, marks=pytest.mark.slow), False], ids=["one_program", "in_turn"]
)
def test_devices_of_a_mesh_improve_a_policy_as_one(shape, compiled):
    mesh = make_mesh(shape, jax.devices()[: shape.devices])
    alone, expected = train(None, compiled)
    state, metrics = train(mesh, compiled)
    for ours, theirs in zip(*(jax.tree.leaves(s.params) for s in (state, alone)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for name in ("reward", "num_tokens", "kl", "grad_norm"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4, atol=1e-6)
    assert expected["kl"][0, 1] > 1e-4  # the first step has changed the policy
    for x, sharding in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(param_shardings(MODEL, mesh)), strict=True
    ):
        assert x.sharding.shard_shape(x.shape)[1:] == sharding.shard_shape(x.shape[1:])
