"""Whole steps of reinforcement learning as one program: they learn; scan and vmap change nothing.

Two small tasks: the second token must be a 5, and the tag must be 1. The gradients themselves are
in test_rl_gradients.py and test_forks.py.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reasoning.learning.optimizers import OptimizerConfig, make_optimizer
from reasoning.learning.rl_state import init_policy_state
from reasoning.learning.rl_updates import make_rl_step, scan_steps
from reasoning.learning.scoring import tag_log_probs
from reasoning.models.transformer import init_params
from reasoning.rewards.verdicts import Verdicts

STEPS, VOCAB = 60, 8
SAMPLES = dict(num_samples=12, max_new_tokens=2)


def verdicts(right):
    return Verdicts(right.astype(jnp.float32), jnp.where(right, 0, 1).astype(jnp.int32))


def second_token_is_5(prompts, completions, metadata):
    return verdicts(completions.tokens[:, 1] == 5)


def tag_is_1(prompts, completions, metadata):
    return verdicts(completions.tokens[:, 0] == VOCAB + 1)


def repeated(tree, *shape):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape)), tree)


@pytest.fixture(scope="module")
def fresh(tiny):
    return init_params(tiny, jax.random.key(0))


@pytest.fixture(scope="module")
def learn(fresh, prompts, quick):
    """`learn(config, reward)`: the state after 60 steps of Adam, and their metrics."""

    def run(config, reward):
        return many_steps(config, fresh, prompts, reward, quick)

    return run


def many_steps(config, params, prompts, reward, options):
    rounds = [prompts.replace(index=prompts.index + 100 * r) for r in range(config.max_rounds)]
    prompts = jax.tree.map(lambda *x: jnp.concatenate(x), *rounds)
    optimizer = optax.adam(3e-2)
    state = init_policy_state(params, config, optimizer)
    step = make_rl_step(config, optimizer, reward)
    steps = jax.jit(scan_steps(step), compiler_options=options)
    keys = jax.random.split(jax.random.key(1), STEPS)
    return steps(state, repeated(prompts, STEPS), keys)


@pytest.mark.parametrize("preset, max_rounds", [("rloo", 1), ("grpo", 2), ("ppo", 1)])
def test_learns_a_token(preset, max_rounds, rl_config, learn):
    config = rl_config(preset, rollout=SAMPLES, max_rounds=max_rounds)
    state, metrics = learn(config, second_token_is_5)
    rewards = np.array(metrics["reward"])
    assert rewards[:3].mean() < 0.4 and rewards[-10:].mean() > 0.95
    rounds = np.array(metrics["sampling/rounds"])
    assert set(rounds) == set(range(1, max_rounds + 1))
    np.testing.assert_array_equal(metrics["sampling/groups"], 4 * rounds)
    assert (metrics["sampling/informative_groups"] <= 4 * rounds).all()
    one_round = metrics["completions/mean_length"] * 4 * SAMPLES["num_samples"]
    drawn = np.array(metrics["num_tokens"])  # of all rounds, not only what was kept
    np.testing.assert_allclose(drawn[rounds == 1], one_round[rounds == 1], rtol=1e-5)
    assert (drawn[rounds > 1] > 1.5 * one_round[rounds > 1]).all()
    if max_rounds > 1:  # one is enough where every group of it has a gradient
        assert (metrics["frac_reward_zero_std"][rounds == 1] == 0).all()
        # The batch that trains is chosen by its rewards.
        assert not np.allclose(metrics["sampling/reward"], rewards)
    else:
        np.testing.assert_allclose(metrics["sampling/reward"], rewards, rtol=1e-6)
    assert state.step == STEPS and metrics["skipped"].sum() == 0
    np.testing.assert_allclose(metrics["sampling_logp_difference/mean"], 0, atol=1e-4)


@pytest.mark.parametrize("preset", ["gfpo", "gfpo_exact"])
def test_learns_a_tag(preset, rl_config, fresh, prompts, learn):
    config = rl_config(preset, rollout=SAMPLES)
    state, metrics = learn(config, tag_is_1)
    chances = np.exp([tag_log_probs(p, prompts, config)[:, 1] for p in (fresh, state.params)])
    assert (chances[0] < 0.2).all() and (chances[1] > 0.95).all()
    if preset == "gfpo":
        assert metrics["reward"][:3].mean() < 0.4 and metrics["reward"][-10:].mean() > 0.95
    else:  # the tags are given: each is drawn equally often, whatever the policy thinks of it
        np.testing.assert_allclose(metrics["reward"], 1 / 3, rtol=1e-5)
        np.testing.assert_allclose(metrics["tags/share"], np.full((STEPS, 3), 1 / 3), rtol=1e-5)


# One program

NUM_STEPS, SEEDS = 5, 3


@pytest.fixture(scope="module")
def optimised(quick):
    """Machine code as in a run. That of tests may round otherwise inside a loop than outside."""
    return {**quick, "xla_backend_optimization_level": 3}


@pytest.fixture(scope="module")
def job(rl_config, prompts, keep):
    """A config with a reference that follows, and its step."""
    rollout = dict(num_samples=4, max_new_tokens=3)
    config = rl_config("grpo", dict(ema_decay=0.9), rollout)
    return config, make_rl_step(config, keep, second_token_is_5)


@pytest.fixture(scope="module")
def start(job, tiny, keep):
    """`start(seed, rate)`: a state and the keys of its steps."""

    def make(seed, rate=3.0):
        state = init_policy_state(init_params(tiny, jax.random.key(seed)), job[0], keep)
        state = state.replace(opt_state={**state.opt_state, "rate": jnp.float32(rate)})
        return state, jax.random.split(jax.random.key(100 + seed), NUM_STEPS)

    return make


@pytest.fixture(scope="module")
def one_by_one(job, start, prompts, optimised):
    """`one_by_one(seed, rate)`: the jitted steps in a Python loop."""
    step = jax.jit(job[1], compiler_options=optimised)

    def run(seed, rate=3.0):
        state, keys = start(seed, rate)
        made = []
        for key in keys:
            state, metrics = step(state, prompts, key)
            made.append(metrics)
        return state, jax.tree.map(lambda *x: jnp.stack(x), *made)

    return run


def test_scanned_steps_are_those_of_a_loop_to_the_bit(
    job, start, one_by_one, prompts, same, optimised
):
    state, keys = start(0)
    arguments = state, repeated(prompts, NUM_STEPS), keys
    steps = jax.jit(scan_steps(job[1]), compiler_options=optimised)
    compiled = steps.lower(*arguments).compile()
    got = compiled(*arguments)
    same(got, one_by_one(0))
    assert got[0].step == NUM_STEPS and got[1]["loss"].shape == (NUM_STEPS,)
    # Nothing in it calls back to Python.
    away = re.compile(
        r'custom_call_target="[^"]*(callback|python)|\b(infeed|outfeed|send|recv)\(', re.IGNORECASE
    )
    assert "while(" in compiled.as_text() and not away.search(compiled.as_text())

    def asks(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), jnp.float32), x)

    assert away.search(jax.jit(asks).lower(1.0).compile().as_text())  # such a call would be seen


def test_seeds_may_be_vmapped(job, start, one_by_one, prompts, same, quick):
    states, keys = zip(*map(start, range(SEEDS)), strict=True)
    states = jax.tree.map(lambda *x: jnp.stack(x), *states)
    steps = jax.jit(
        jax.vmap(scan_steps(job[1]), in_axes=(0, None, 0)), compiler_options=quick
    )
    got = steps(states, repeated(prompts, NUM_STEPS), jnp.stack(keys))
    for seed in range(SEEDS):
        expected = one_by_one(seed)
        same(jax.tree.map(lambda x, i=seed: x[i], got), expected, rtol=1e-4, atol=1e-4)
    assert len(np.unique(np.array(got[1]["num_tokens"]), axis=0)) > 1


def test_a_policy_that_stands_still_writes_something_new_at_every_step(one_by_one, start, same):
    state, metrics = one_by_one(0, rate=0.0)
    same(state.params, start(0)[0].params)
    # Prompts and parameters are the same; losses differ where rollouts do.
    assert len(np.unique(np.array(metrics["entropy"]))) == NUM_STEPS
    assert len(np.unique(np.array(metrics["num_tokens"]))) > 1


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_projects_optimizers_take_policy_and_critic(name, rl_config, tiny_params):
    optimizer = make_optimizer(OptimizerConfig(name=name, learning_rate=1e-2, warmup_steps=0))
    state = init_policy_state(tiny_params, rl_config("ppo"), optimizer)

    def apply(tree, opt_state):
        grads = jax.tree.map(jnp.ones_like, tree)
        steps, _ = optimizer.update(grads, opt_state, tree)
        return optax.apply_updates(tree, steps)

    for tree, opt_state in (
        (state.params, state.opt_state), (state.critic, state.critic_opt_state)
    ):
        new = jax.eval_shape(apply, tree, opt_state)
        assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, tree)


def test_another_number_of_prompts_is_refused(rl_config, keep, start, prompts):
    state, keys = start(0)
    step = make_rl_step(rl_config(max_rounds=2), keep, second_token_is_5)
    with pytest.raises(ValueError, match=r"^prompts: 4 were given where an update reads 8\."):
        jax.eval_shape(step, state, prompts, keys[0])
