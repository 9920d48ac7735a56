"""One step of reinforcement learning with verifiable rewards, as a pure function.

    rl_step = make_rl_step(config, optimizer, reward)
    state, metrics = rl_step(state, prompts, key)

    rollouts   = policy(prompts)                              sampler and reward
    advantages = rewards against a group baseline or critic   reasoning.learning.advantages
    loss       = surrogate(ratio, advantages) + KL - entropy  reasoning.learning.losses
    policy     = optimizer(policy, gradient); the reference follows

Where the reward is written in jnp the step is traceable whole: jit it, scan it over steps
(`scan_steps`), vmap it over seeds. Where it runs on the host, `update` takes the rollouts that
were judged there. Global forking policy optimization is the same step on the completion's first
token alone, the strategy tag: its cost does not depend on the completion's length.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reasoning.learning import losses
from reasoning.learning.algorithms import Algorithm
from reasoning.learning.experience import (
    Experience,
    Metrics,
    PolicyState,
    RLConfig,
    critic_values,
    make_experience,
    score,
    tag_log_probs,
)
from reasoning.learning.references import update_reference
from reasoning.learning.rollouts import PromptBatch, Rollouts, refill, roll_out, rollout_metrics
from reasoning.rewards.verdicts import RewardFn


def _token_objective(
    params: Any, part: Experience, entropy_coef: jax.Array, config: RLConfig
) -> tuple[jax.Array, Metrics]:
    """The loss of a part of a minibatch; the parts' losses add up to the minibatch's."""
    algorithm = config.algorithm
    log_probs, entropy = score(params, part.prompts, part.tokens, part.given, config)
    old = jax.lax.stop_gradient(log_probs) if config.on_policy else part.old_log_probs
    rows = [x.reshape(-1, x.shape[-1]) for x in (log_probs, old, part.advantages, part.mask)]
    loss, metrics = losses.policy_loss(algorithm.surrogate, *rows)
    loss = loss.reshape(part.mask.shape) * part.selected
    if algorithm.kl_coef and not algorithm.kl_in_reward:
        kl = losses.kl_estimate(log_probs, part.reference_log_probs, algorithm.kl_estimator)
        loss = loss + algorithm.kl_coef * kl
    if algorithm.kl_cov:
        away = log_probs - old
        # |away|, whose slope would be 1 either way where sampler and update differ by rounding.
        slope = jnp.where(jnp.abs(away) < 1e-4, 0.0, jnp.sign(away))
        loss = loss + part.held * away * jax.lax.stop_gradient(slope)
    total = jnp.sum(part.weights * (loss - entropy_coef * entropy))
    difference = jnp.abs(log_probs - part.old_log_probs) * part.mask
    metrics["entropy"] = losses.masked_mean(entropy, part.mask)
    metrics["sampling_logp_difference/mean"] = losses.masked_mean(difference, part.mask)
    # Weighted by tokens, so that the parts' means add up to the minibatch's.
    return total, {name: value * part.mask.sum() for name, value in metrics.items()}


def _fork_objective(
    params: Any, part: Experience, entropy_coef: jax.Array, reference: Any, config: RLConfig
) -> tuple[jax.Array, Metrics]:
    """Minus the expected reward over the tags, sum_g pi(g|x) q(x, g), exact in pi.

    q is the mean reward of a tag's samples; opening with anything but a tag is worth 0. No baseline
    is needed: over a whole distribution it has no gradient.
    """
    log_probs = tag_log_probs(params, part.prompts, config)
    probs = jnp.exp(log_probs)
    gain = jnp.sum(probs * part.tag_values, axis=1)
    entropy = -jnp.sum(probs * log_probs, axis=1)
    kl = jnp.zeros_like(gain)
    if config.algorithm.kl_coef:
        reference_log_probs = tag_log_probs(reference, part.prompts, config)
        kl = jnp.sum(probs * (log_probs - reference_log_probs), axis=1)
    weights = part.weights[:, 0, 0] * part.tokens.shape[1]
    total = jnp.sum(weights * (config.algorithm.kl_coef * kl - gain - entropy_coef * entropy))
    metrics = {"entropy": entropy.mean(), "kl": kl.mean()}
    return total, {name: value * part.mask.size for name, value in metrics.items()}


def _gradient(
    objective: Callable[..., tuple[jax.Array, Metrics]],
    params: Any,
    batch: Experience,
    num_microbatches: int,
) -> tuple[Any, jax.Array, Metrics]:
    """Gradient, loss and metrics of a minibatch, its parts added up one after another."""
    differentiate = jax.value_and_grad(objective, has_aux=True)
    if num_microbatches == 1:
        (loss, metrics), grads = differentiate(params, batch)
        return grads, loss, metrics
    parts = jax.tree.map(
        lambda x: x.reshape(num_microbatches, -1, *x.shape[1:]), batch
    )

    def add(carry: Any, part: Experience) -> tuple[Any, None]:
        (loss, metrics), grads = differentiate(params, part)
        return jax.tree.map(jnp.add, carry, (grads, loss, metrics)), None

    (loss, metrics), grads = jax.eval_shape(
        differentiate, params, jax.tree.map(lambda x: x[0], parts)
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, loss, metrics))
    total, _ = jax.lax.scan(add, zeros, parts)
    return total


def _finite_or(new: Any, old: Any, ok: jax.Array) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)


def update(
    state: PolicyState,
    prompts: PromptBatch,
    rollouts: Rollouts,
    key: jax.Array,
    config: RLConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[PolicyState, Metrics]:
    """Improve the policy by judged rollouts: `num_epochs * num_minibatches` optimizer steps.

    An optimizer step whose loss or gradient is not finite is skipped and counted.

    Raises:
      ValueError: not `num_prompts` prompts.
    """
    algorithm = config.algorithm
    _check_prompts(prompts, config.num_prompts)
    select_key, order_key = jax.random.split(key)
    experience, metrics = make_experience(state, prompts, rollouts, select_key, config)
    entropy_coef = _bonus(state, experience, config)

    def one(state: PolicyState, index: jax.Array) -> tuple[PolicyState, Metrics]:
        batch = jax.tree.map(lambda x: x[index], experience)
        rows = batch.mask if algorithm.positions != "fork_exact" else jnp.ones_like(batch.mask)
        weights = losses.token_weights(
            rows.reshape(-1, rows.shape[-1]), algorithm.aggregation, config.rollout.max_new_tokens
        )
        if algorithm.on_fork:  # one token each: its weight does not depend on any length
            weights = losses.token_weights(rows.reshape(-1, 1), "token_mean", 1)
        batch = batch.replace(weights=weights.reshape(rows.shape))
        if algorithm.positions == "fork_exact":
            objective = partial(
                _fork_objective, entropy_coef=entropy_coef, reference=state.reference,
                config=config,
            )
        else:
            objective = partial(_token_objective, entropy_coef=entropy_coef, config=config)
        grads, loss, made = _gradient(objective, state.params, batch, config.num_microbatches)
        norm = optax.tree.norm(grads)
        ok = jnp.isfinite(loss) & jnp.isfinite(norm)
        steps, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, steps)
        made = {name: value / jnp.maximum(rows.sum(), 1.0) for name, value in made.items()}
        state = state.replace(
            params=_finite_or(params, state.params, ok),
            opt_state=_finite_or(opt_state, state.opt_state, ok),
        )
        if algorithm.critic:
            state, critic_metrics = _update_critic(state, batch, config, optimizer)
            made |= critic_metrics
        return state, {"loss": loss, "grad_norm": norm, "skipped": 1.0 - ok, **made}

    state, steps = jax.lax.scan(one, state, _minibatch_indices(order_key, config))
    metrics |= {name: value.mean() for name, value in steps.items()}
    metrics["skipped"] = steps["skipped"].sum()
    state = state.replace(skipped=jnp.where(metrics["skipped"] > 0, state.skipped + 1, 0))
    metrics["skipped_in_a_row"] = state.skipped
    step = state.step + 1
    state = state.replace(
        step=step, entropy_coef=_adapt(algorithm, state.entropy_coef, metrics["entropy"])
    )
    if state.reference is not None:
        reference = update_reference(algorithm, state.reference, state.params, step)
        state = state.replace(reference=reference)
    return state, {**metrics, "entropy_coef": state.entropy_coef}


def _check_prompts(prompts: PromptBatch, needed: int) -> None:
    """Refuse another number of prompts: an index beyond the last would silently repeat it."""
    given = prompts.ids.shape[0]
    if given != needed:
        raise ValueError(f"prompts: {given} were given where an update reads {needed}.")


def _minibatch_indices(key: jax.Array, config: RLConfig) -> jax.Array:
    """Which prompts form each minibatch, `[epochs * minibatches, P / minibatches]`."""
    if config.on_policy:
        return jnp.arange(config.num_prompts)[None]
    keys = jax.random.split(key, config.num_epochs)
    orders = jax.vmap(lambda k: jax.random.permutation(k, config.num_prompts))(keys)
    return orders.reshape(config.num_epochs * config.num_minibatches, -1)


def _bonus(state: PolicyState, experience: Experience, config: RLConfig) -> jax.Array:
    """The entropy bonus's weight in this update: 0 where the entropy is above its target."""
    target = config.algorithm.entropy_target
    if target is None:
        return state.entropy_coef
    prompts, mask = experience.prompts, experience.mask
    if config.algorithm.positions == "fork_exact":
        log_probs = tag_log_probs(state.params, prompts, config)
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=1).mean()
    else:
        _, entropies = score(state.params, prompts, experience.tokens, experience.given, config)
        entropy = losses.masked_mean(entropies, mask)
    return jnp.where(entropy <= target, state.entropy_coef, 0.0)


def _adapt(algorithm: Algorithm, coefficient: jax.Array, entropy: jax.Array) -> jax.Array:
    """The entropy bonus's next weight (Skywork-OR1, 2505.22312)."""
    if algorithm.entropy_target is None:
        return coefficient
    step = jnp.where(entropy < algorithm.entropy_target, 1.0, -1.0) * algorithm.entropy_delta
    return jnp.maximum(coefficient + step, 0.0)


def _update_critic(
    state: PolicyState,
    batch: Experience,
    config: RLConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[PolicyState, Metrics]:
    """One step of the value model on a minibatch."""

    def loss_of(critic: Any) -> jax.Array:
        values = critic_values(critic, batch.prompts, batch.tokens, config)
        loss = losses.value_loss(
            values, batch.old_values, batch.returns, config.algorithm.value_clip
        )
        return losses.masked_mean(loss, batch.mask)

    loss, grads = jax.value_and_grad(loss_of)(state.critic)
    ok = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
    steps, opt_state = optimizer.update(grads, state.critic_opt_state, state.critic)
    critic = optax.apply_updates(state.critic, steps)
    state = state.replace(
        critic=_finite_or(critic, state.critic, ok),
        critic_opt_state=_finite_or(opt_state, state.critic_opt_state, ok),
    )
    return state, {"value_loss": loss}


def make_rl_step(
    config: RLConfig, optimizer: optax.GradientTransformation, reward: RewardFn
) -> Callable[[PolicyState, PromptBatch, jax.Array], tuple[PolicyState, Metrics]]:
    """The step `(state, prompts, key) -> (state, metrics)`, traceable if the reward is.

    `prompts` holds `max_rounds * num_prompts` prompts (ValueError: it does not); the key is
    consumed.
    """

    def rl_step(
        state: PolicyState, prompts: PromptBatch, key: jax.Array
    ) -> tuple[PolicyState, Metrics]:
        _check_prompts(prompts, config.max_rounds * config.num_prompts)
        sample_key, update_key = jax.random.split(key)
        sample_round = partial(
            roll_out, state.params, config=config.model, rollout=config.rollout, reward=reward,
            allowed=config.allowed_ids(), eos_id=config.eos_id, pad_id=config.pad_id,
        )
        if config.max_rounds == 1:
            rollouts, rounds = sample_round(prompts, sample_key), jnp.ones((), jnp.int32)
        else:
            prompts, rollouts, rounds = refill(
                sample_round, prompts, sample_key, config.num_prompts
            )
        state, metrics = update(state, prompts, rollouts, update_key, config, optimizer)
        metrics |= rollout_metrics(rollouts, config.model.num_strategies)
        return state, {**metrics, "sampling_rounds": rounds}

    return rl_step


def scan_steps(
    rl_step: Callable[[PolicyState, PromptBatch, jax.Array], tuple[PolicyState, Metrics]],
) -> Callable[[PolicyState, PromptBatch, jax.Array], tuple[PolicyState, Metrics]]:
    """Many steps as one program: prompts, keys and metrics gain a leading axis `[steps]`."""

    def steps(
        state: PolicyState, prompts: PromptBatch, keys: jax.Array
    ) -> tuple[PolicyState, Metrics]:
        return jax.lax.scan(lambda state, x: rl_step(state, *x), state, (prompts, keys))

    return steps
