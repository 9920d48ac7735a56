"""Global forking policy optimization: the strategy tag alone is trained, at the cost of the prompt.

What the exact form follows is enumerated here over all tags, and differentiated in two other ways.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.learning.rl_state import RLConfig, init_policy_state
from reasoning.learning.rl_updates import update
from reasoning.learning.rollouts import PromptBatch, RolloutConfig, Rollouts
from reasoning.models.transformer import Transformer, init_params

PROMPT_LENGTH, VOCAB, TAGS = 3, 8, 3
CLOSE = dict(rtol=1e-4, atol=1e-6)
EXACT = dict(kl_coef=0.3, entropy_coef=0.2)


@pytest.mark.parametrize("preset", ["gfpo", "gfpo_exact"])
def test_nothing_after_the_tag_matters_but_the_reward(
    preset, rl_config, tiny_params, made_up, improve, same
):
    exact = preset == "gfpo_exact"
    config = rl_config(preset, EXACT if exact else {})
    rollouts = made_up(given=exact)
    state, metrics = improve(config, tiny_params, rollouts)
    # Other text, other lengths, another end: the same to the bit.
    other = made_up(given=exact, seed=1)
    assert (other.mask.sum(axis=2) != rollouts.mask.sum(axis=2)).any()
    swapped = rollouts.replace(
        tokens=other.tokens.at[:, :, 0].set(rollouts.tokens[:, :, 0]),
        mask=other.mask, log_probs=other.log_probs, ended=other.ended,
    )
    again, others = improve(config, tiny_params, swapped)
    same(again.opt_state["total"], state.opt_state["total"])
    same(again.params, state.params)
    assert others["loss"] == metrics["loss"]
    # Other rewards are not.
    again, _ = improve(config, tiny_params, rollouts.replace(rewards=other.rewards))
    assert (again.params["params"]["token_embedding"]
            != state.params["params"]["token_embedding"]).any()
    # No place beyond the prompt has a gradient; where whole completions train, they have.
    rows = state.opt_state["total"]["params"]["position_embedding"]
    assert (rows[PROMPT_LENGTH:] == 0).all() and (rows[:PROMPT_LENGTH] != 0).any(axis=1).all()
    rows = improve(rl_config(), tiny_params, rollouts)[0].opt_state["total"]
    assert (rows["params"]["position_embedding"][PROMPT_LENGTH:7] != 0).any(axis=1).all()


def flops(config, keep, options):
    """Of the compiled update, from shapes alone."""
    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    num_prompts, num_samples = config.num_prompts, config.rollout.num_samples
    rows, n = (num_prompts, num_samples), config.rollout.max_new_tokens
    tokens, floats = array(jnp.int32, *rows, n), array(jnp.float32, *rows, n)
    flag, number = array(bool, *rows), array(jnp.float32, *rows)
    ids, index = array(jnp.int32, num_prompts, PROMPT_LENGTH), array(jnp.int32, num_prompts)
    rollouts = Rollouts(
        tokens=tokens, mask=array(bool, *rows, n), log_probs=floats, tags=array(jnp.int32, *rows),
        given=flag, ended=flag, rewards=number, parts={}, patterns={"garbled": flag},
        reasons=array(jnp.int32, *rows),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lambda k: init_params(config.model, k), key)
    state = jax.eval_shape(lambda p: init_policy_state(p, config, keep), params)
    lowered = jax.jit(update, static_argnames=("config", "optimizer")).lower(
        state, PromptBatch(ids, ids, index, index), rollouts, key, config=config, optimizer=keep
    )
    return lowered.compile(compiler_options=options).cost_analysis()["flops"]


def test_the_cost_of_an_update_does_not_depend_on_the_completion(tiny, rl_config, keep, quick):
    model = dataclasses.replace(tiny, max_length=80)
    costs = {}
    for preset in ("gfpo", "gfpo_exact", "rloo"):
        for length in (8, 64):
            config = rl_config(preset, rollout=dict(max_new_tokens=length), model=model)
            costs[preset, length] = flops(config, keep, quick)
    assert costs["gfpo", 8] == costs["gfpo", 64] > 0
    assert costs["gfpo_exact", 8] == costs["gfpo_exact", 64] > 0
    assert costs["rloo", 64] > 4 * costs["rloo", 8] > 8 * costs["gfpo", 8]


@pytest.fixture(scope="module")
def fork_log_probs(tiny, prompts):
    """A jitted function of the parameters: `[P, V+S]`, from rows without left padding."""
    rows, last = np.zeros((4, 3), np.int32), []
    for row, ids, mask in zip(rows, prompts.ids, prompts.mask, strict=True):
        prompt = np.asarray(ids)[np.asarray(mask) > 0]
        row[: len(prompt)] = prompt
        last.append(len(prompt) - 1)

    @jax.jit
    def run(params):
        logits, _ = Transformer(tiny).apply(params, rows)
        return jax.nn.log_softmax(logits[np.arange(4), np.array(last)])

    return run


def worth(rollouts):
    """What the ids are worth, `[P, V+S]`: a tag its samples' mean reward, anything else 0."""
    worth = np.zeros((4, VOCAB + TAGS), np.float32)
    for p, tag in np.ndindex(4, TAGS):
        of_tag = np.asarray(rollouts.tags)[p] == tag
        worth[p, VOCAB + tag] = np.asarray(rollouts.rewards, float)[p][of_tag].mean()
    return worth


def dot(a, b):
    return sum(float(jnp.sum(x * y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize("extra", [{}, EXACT], ids=["reward", "reward, KL and entropy"])
def test_exact_gradient_is_that_of_the_enumerated_objective(
    extra, rl_config, tiny_params, other_params, prompts, made_up, improve, fork_log_probs, same
):
    rollouts = made_up(given=True)
    config = rl_config("gfpo_exact", extra)
    state, metrics = improve(config, tiny_params, rollouts, reference=other_params)
    values = worth(rollouts)
    chances = np.exp(fork_log_probs(tiny_params))
    baseline = (chances * values).sum(axis=1, keepdims=True)  # b: it has no gradient
    beta, alpha = config.algorithm.kl_coef, config.algorithm.entropy_coef
    reference = np.array(fork_log_probs(other_params))[:, VOCAB:]

    @jax.jit
    def objective(params):
        """sum_v pi (q - b), less beta KL, plus alpha H, both over the tags; mean of the prompts."""
        every = fork_log_probs(params)
        gain = jnp.sum(jnp.exp(every) * (values - baseline), axis=1)
        tags = every[:, VOCAB:]
        cost = jnp.sum(jnp.exp(tags) * (beta * (tags - reference) + alpha * tags), axis=1)
        return jnp.mean(gain - cost)

    got = jax.tree.map(lambda g: -g, state.opt_state["total"])
    same(got, jax.jit(jax.grad(objective))(tiny_params), **CLOSE)
    loss = -float(objective(tiny_params)) - float(baseline.mean())
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)

    # Central differences, along the gradient and along some other direction.
    rng = np.random.default_rng(0)
    noise = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), got)
    for direction in (got, noise):
        step = 0.02 / np.sqrt(dot(direction, direction))
        ends = [
            float(objective(jax.tree.map(lambda x, d, s=s: x + s * d, tiny_params, direction)))
            for s in (step, -step)
        ]
        slope = dot(got, direction)
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=0.02)


def test_opening_with_anything_but_a_tag_is_worth_nothing(
    rl_config, tiny_params, made_up, improve, fork_log_probs
):
    config, rollouts = rl_config("gfpo_exact"), made_up(given=True)
    before = np.exp(fork_log_probs(tiny_params))[:, VOCAB:].sum(axis=1)
    for reward, sign in ((0.7, 1), (0.0, 0), (-0.7, -1)):
        alike = rollouts.replace(rewards=jnp.full_like(rollouts.rewards, reward))
        state, _ = improve(config, tiny_params, alike, rate=0.01)
        after = np.exp(fork_log_probs(state.params))[:, VOCAB:].sum(axis=1)
        assert (np.sign(after - before) == sign).all()


def test_sampled_tags_have_the_exact_gradient_on_average(
    rl_config, tiny_params, made_up, improve, fork_log_probs
):
    draws, judged = 4096, made_up(given=True)
    exact = improve(rl_config("gfpo_exact"), tiny_params, judged)[0].opt_state["total"]
    chances = np.array(np.exp(fork_log_probs(tiny_params)), float)
    rng = np.random.default_rng(0)
    tokens = np.stack([rng.choice(VOCAB + TAGS, draws, p=p / p.sum()) for p in chances])
    shape = tokens.shape
    rows = Rollouts(
        tokens=tokens[..., None].astype(np.int32), mask=np.ones((*shape, 1), bool),
        log_probs=np.zeros((*shape, 1), np.float32),
        tags=np.where(tokens >= VOCAB, tokens - VOCAB, -1).astype(np.int32),
        given=np.zeros(shape, bool), ended=np.zeros(shape, bool),
        rewards=np.take_along_axis(worth(judged), tokens, axis=1), parts={},
        patterns={"garbled": np.zeros(shape, bool)}, reasons=np.zeros(shape, np.int32),
    )
    config = rl_config("gfpo", dict(advantage="rloo"), dict(num_samples=draws))
    sampled, _ = improve(config, tiny_params, jax.tree.map(jnp.asarray, rows))
    sampled = sampled.opt_state["total"]
    lengths = np.sqrt(dot(sampled, sampled)), np.sqrt(dot(exact, exact))
    assert dot(sampled, exact) / (lengths[0] * lengths[1]) > 0.97
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1)


def test_settings_that_do_not_fit_the_fork_are_refused(tiny, rl_config):
    with pytest.raises(ValueError, match=r"^tags=.stratified.: positions=.fork. trains tags"):
        rl_config("gfpo", rollout=dict(tags="stratified"))
    with pytest.raises(ValueError, match=r"^tags=.own.: positions=.fork_exact. needs every tag"):
        RLConfig(
            tiny, rl_config("gfpo_exact").algorithm, RolloutConfig(tags="own"), stop_ids=(1,),
            pad_id=0,
        )
