"""Shared by the tests of reinforcement learning: a policy of one layer, prompts, made-up rollouts.

`plain` scores completions the long way, by itself; the library's gradients are held against it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reasoning.learning.algorithms import make_algorithm
from reasoning.learning.rl_state import RLConfig, init_policy_state
from reasoning.learning.rl_updates import update
from reasoning.learning.rollouts import PromptBatch, RolloutConfig, Rollouts
from reasoning.models.config import ModelConfig
from reasoning.models.transformer import Transformer

PAD, EOS, VOCAB, TAGS = 0, 1, 8, 3


@pytest.fixture(scope="session")
def tiny():
    """Three strategies, ids 8..10."""
    return ModelConfig(
        vocab_size=VOCAB, num_strategies=TAGS, d_model=16, num_layers=1, num_heads=2,
        num_kv_heads=2, head_dim=8, d_ff=16, max_length=16,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny, rough_params):
    return rough_params(tiny)


@pytest.fixture(scope="session")
def other_params(tiny, rough_params):
    """A reference policy: not far from the policy."""
    near = functools.partial(jax.tree.map, lambda x, y: 0.8 * x + 0.2 * y)
    return near(rough_params(tiny), rough_params(tiny, seed=1))


@pytest.fixture(scope="session")
def prompts():
    """Four prompts of one to three tokens."""
    ids = np.array([[0, 2, 3], [4, 5, 6], [0, 0, 7], [3, 3, 2]], np.int32)
    mask = np.array([[0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 1, 1]], np.int32)
    index = np.array([3, 5, 8, 9], np.int32)
    return jax.tree.map(jnp.asarray, PromptBatch(ids, mask, index, index))


@pytest.fixture(scope="session")
def rl_config(tiny):
    """`rl_config(preset, overrides, rollout, **settings)` for the four prompts, 6 samples each."""

    def make(preset="rloo", overrides=None, rollout=None, **settings):
        algorithm = make_algorithm(preset, **(overrides or {}))
        tags = "stratified" if algorithm.positions == "fork_exact" else "own"
        rollout = RolloutConfig(
            **{"num_samples": 6, "max_new_tokens": 5, "tags": tags, **(rollout or {})}
        )
        defaults = dict(model=tiny, stop_ids=(EOS,), pad_id=PAD, num_prompts=4)
        return RLConfig(algorithm=algorithm, rollout=rollout, **{**defaults, **settings})

    return make


@pytest.fixture(scope="session")
def made_up():
    """`made_up(given=False)`: rollouts `[4, 6, 5]` of 2 to 5 tokens, each tag twice in a group."""

    def make(given=False, seed=0):
        rng = np.random.default_rng(seed)
        shape = 4, 6, 5
        ended = rng.random(shape[:2]) < 0.8
        lengths = np.where(ended, rng.integers(2, 6, shape[:2]), 5)
        tags = rng.permuted(np.broadcast_to(np.arange(6) % TAGS, shape[:2]), axis=1)
        tokens = rng.integers(2, VOCAB, shape)
        tokens[:, :, 0] = VOCAB + tags
        places = np.arange(5)[None, None]
        tokens = np.where(ended[..., None] & (places == lengths[..., None] - 1), EOS, tokens)
        mask = places < lengths[..., None]
        rows = Rollouts(
            tokens=np.where(mask, tokens, PAD).astype(np.int32),
            mask=mask,
            log_probs=np.where(mask, -rng.exponential(2.0, shape), 0).astype(np.float32),
            tags=tags.astype(np.int32),
            given=np.full(shape[:2], given),
            ended=ended,
            rewards=rng.normal(size=shape[:2]).astype(np.float32),
            parts={},
            patterns={"garbled": rng.random(shape[:2]) < 0.3},
            reasons=np.zeros(shape[:2], np.int32),
        )
        return jax.tree.map(jnp.asarray, rows)

    return make


def _keep(grads, state, params=None):
    steps = jax.tree.map(lambda g: -state["rate"] * g, grads)
    return steps, {
        "rate": state["rate"],
        "count": state["count"] + 1,
        "total": jax.tree.map(jnp.add, state["total"], grads),
    }


@pytest.fixture(scope="session")
def keep():
    """Gradient descent that counts its steps and adds up the gradients; its rate is state."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"rate": jnp.float32(0.1), "count": jnp.int32(0), "total": zeros}

    return optax.GradientTransformation(init, _keep)


@pytest.fixture(scope="session")
def quick():
    """Options for `jax.jit`: XLA's older code generator compiles these programs 4 times faster."""
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(jnp.sin, compiler_options=options)(1.0)
    except jax.errors.JaxRuntimeError:  # a version of XLA, or a device, that has no such option
        return {}
    return options


@pytest.fixture(scope="session")
def improve(keep, prompts, quick):
    """`improve(config, params, rollouts, reference=None, rate=0.1, ...)`: one jitted `update`.

    The gradient is in `state.opt_state["total"]`.
    """
    compiled = jax.jit(
        update, static_argnames=("config", "optimizer"), compiler_options=quick
    )

    def run(config, params, rollouts, reference=None, rate=0.1, batch=prompts, state=None, seed=0):
        if state is None:
            state = init_policy_state(params, config, keep)
            state = state.replace(opt_state={**state.opt_state, "rate": jnp.float32(rate)})
            if state.reference is not None and reference is not None:
                state = state.replace(reference=reference)
        return compiled(
            state, batch, rollouts, jax.random.key(seed), config=config, optimizer=keep
        )

    return run


class Plain:
    """Prompt and completion in one row from position 0 on, no cache, and padding only behind."""

    def __init__(self, model, options):
        def scores(params, rows, places, tokens, temperature):
            logits, _ = Transformer(model).apply(params, rows)
            logits = jnp.take_along_axis(logits, places[..., None], axis=1)
            log_dist = jax.nn.log_softmax(logits / temperature)
            entropy = -jnp.sum(jnp.exp(log_dist) * log_dist, axis=-1)
            return jnp.take_along_axis(log_dist, tokens[..., None], axis=2)[..., 0], entropy

        def objective(params, on_log_probs, on_entropy, *row):
            log_probs, entropy = scores(params, *row)
            return -jnp.sum(on_log_probs * log_probs) - jnp.sum(on_entropy * entropy)

        self.scores = jax.jit(scores, compiler_options=options)
        self.objective_gradient = jax.jit(jax.grad(objective), compiler_options=options)

    def rows(self, prompts, tokens):
        """Rows `[B, T + N]`, and the places `[B, N]` that predict the tokens."""
        num_samples, length = tokens.shape[1:]
        rows, places = [], []
        for ids, mask, group in zip(prompts.ids, prompts.mask, np.asarray(tokens), strict=True):
            prompt = np.asarray(ids)[np.asarray(mask) > 0]
            for completion in group:
                padding = np.full(len(ids) - len(prompt), PAD)
                rows.append(np.concatenate([prompt, completion, padding]))
                places.append(len(prompt) - 1 + np.arange(length))
        flat = np.asarray(tokens).reshape(-1, length)
        assert len(rows) == len(prompts.ids) * num_samples
        return np.array(rows, np.int32), np.array(places), flat

    def log_probs(self, params, prompts, tokens, temperature=1.0):
        """Log-probs and entropies `[P, G, N]`."""
        made = self.scores(params, *self.rows(prompts, tokens), temperature)
        return [np.asarray(x, np.float64).reshape(tokens.shape) for x in made]

    def gradient(self, params, prompts, tokens, weights, entropy_weights=0.0, temperature=1.0):
        """Of minus the weighted sum of the log-probs and of the entropies."""
        row = self.rows(prompts, tokens)
        weights, entropy_weights = (
            np.broadcast_to(x, tokens.shape).reshape(row[2].shape).astype(np.float32)
            for x in (weights, entropy_weights)
        )
        return self.objective_gradient(params, weights, entropy_weights, *row, temperature)


@pytest.fixture(scope="session")
def plain(tiny, quick):
    """`plain.log_probs(params, prompts, tokens)` and `plain.gradient(..., weights)`."""
    return Plain(tiny, quick)


@pytest.fixture(scope="session")
def same():
    """`same(a, b, **tolerance)`: two trees of arrays agree; to the bit without a tolerance."""

    def check(a, b, **tolerance):
        def leaf(x, y):
            if tolerance:
                np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance)
            else:
                np.testing.assert_array_equal(np.asarray(x), np.asarray(y))

        jax.tree.map(leaf, a, b)

    return check
