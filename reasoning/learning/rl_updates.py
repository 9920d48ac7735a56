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
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from reasoning.learning import losses
from reasoning.learning.algorithms import Algorithm
from reasoning.learning.experience import (
    Experience,
    at_own_length,
    make_experience,
    part_lengths,
    part_unit,
    split_by_length,
)
from reasoning.learning.optimizers import freeze
from reasoning.learning.references import update_reference
from reasoning.learning.rl_state import PolicyState, RLConfig
from reasoning.learning.rollouts import (
    Metrics,
    PromptBatch,
    Rollouts,
    drawn_metrics,
    refill,
    roll_out,
    rollout_metrics,
)
from reasoning.learning.scoring import critic_values, score, split_parts, tag_log_probs
from reasoning.models.axes import by_device
from reasoning.rewards.verdicts import RewardFn

# An objective's loss of a part of a minibatch, with metrics to be added up over the parts (each
# times the part's tokens) and metrics whose maximum counts. What it is bound to are arguments of
# programs, too, hence `jax.tree_util.Partial`.
Objective = Callable[[Any, Experience], tuple[jax.Array, tuple[Metrics, Metrics]]]


def _token_objective(
    params: Any, part: Experience, entropy_coef: jax.Array, config: RLConfig
) -> tuple[jax.Array, tuple[Metrics, Metrics]]:
    """The loss of a part of a minibatch; the parts' losses add up to the minibatch's."""
    algorithm, params = config.algorithm, freeze(params, config.trained)
    log_probs, entropy = score(params, part.prompts, part.tokens, part.given, config)
    if not algorithm.weighs_entropy:  # whose gradient would be taken for nothing
        entropy = jax.lax.stop_gradient(entropy)
    log_probs = jnp.where(part.mask > 0, log_probs, 0.0)  # as the others' may be
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
    difference = jnp.where(part.mask > 0, jnp.abs(log_probs - part.old_log_probs), 0.0)
    metrics["entropy"] = losses.masked_mean(entropy, part.mask)
    metrics["sampling_logp_difference/mean"] = losses.masked_mean(difference, part.mask)
    sums = {name: value * part.mask.sum() for name, value in metrics.items()}
    return total, (sums, {"sampling_logp_difference/max": difference.max()})


def _fork_objective(
    params: Any, part: Experience, entropy_coef: jax.Array, reference: Any, config: RLConfig
) -> tuple[jax.Array, tuple[Metrics, Metrics]]:
    """Minus the expected reward over the tags, sum_g pi(g|x) q(x, g), exact in pi.

    q is the mean reward of a tag's samples; opening with anything but a tag is worth 0. No baseline
    is needed: over a whole distribution it has no gradient.
    """
    log_probs = tag_log_probs(freeze(params, config.trained), part.prompts, config)
    probs = jnp.exp(log_probs)
    gain = jnp.sum(probs * part.tag_values, axis=1)
    entropy = losses.token_entropy(log_probs)
    kl = jnp.zeros_like(gain)
    if config.algorithm.kl_coef:
        reference_log_probs = tag_log_probs(reference, part.prompts, config)
        kl = jnp.sum(probs * (log_probs - reference_log_probs), axis=1)
    weights, tokens = (x.sum(axis=(1, 2)) for x in (part.weights, part.mask))  # of each prompt
    total = jnp.sum(weights * (config.algorithm.kl_coef * kl - gain - entropy_coef * entropy))
    return total, ({"entropy": jnp.sum(entropy * tokens), "kl": jnp.sum(kl * tokens)}, {})


def _critic_objective(
    critic: Any, part: Experience, config: RLConfig
) -> tuple[jax.Array, tuple[Metrics, Metrics]]:
    """The value model's loss, a mean over the minibatch's tokens."""
    values = critic_values(critic, part.prompts, part.tokens, config)
    loss = losses.value_loss(
        values, part.old_values, part.returns, config.algorithm.value_clip
    )
    return jnp.sum(part.weights * loss), ({}, {})


def _gradient(
    objective: Objective, params: Any, batch: Experience, config: RLConfig
) -> tuple[Any, jax.Array, Metrics]:
    """Gradient, loss and metrics of a minibatch, its parts one after another.

    Where `part_lengths` names several, samples of like lengths stand in a part, which reads no
    further than the longest of them; else a part is whole prompts.
    """

    def of_rows(
        whole: tuple[Objective, Any], batch: Experience
    ) -> tuple[Any, tuple[Metrics, Metrics]]:
        """Sums `[1, ...]` and the parts' metrics, of what a device has of the minibatch."""
        objective, params = whole
        value_and_grad = partial(jax.value_and_grad(objective, has_aux=True), params)
        lengths = part_lengths(batch, config)

        def add(total: Any, part: Experience) -> tuple[Any, tuple[Metrics, Metrics]]:
            (loss, metrics), grads = at_own_length(value_and_grad, part, lengths)
            return jax.tree.map(jnp.add, total, (grads, loss)), metrics

        if len(lengths) == 1:
            parts = split_parts(batch, config.num_microbatches)
        else:
            parts, _ = split_by_length(batch, config.num_microbatches)
        start = jax.tree.map(jnp.zeros_like, params), jnp.zeros(())
        totals, metrics = jax.lax.scan(add, start, parts)
        return jax.tree.map(lambda x: x[None], totals), metrics

    unit = part_unit(batch, config.num_microbatches, config)
    totals, (sums, maxima) = by_device(of_rows, (objective, params), batch, unit)
    grads, loss = jax.tree.map(lambda x: x.sum(axis=0), totals)
    tokens = jnp.maximum(batch.mask.sum(), 1.0)
    metrics = {name: value.sum() / tokens for name, value in sums.items()}
    return grads, loss, metrics | {name: value.max() for name, value in maxima.items()}


def _weigh(batch: Experience, aggregation: losses.Aggregation, max_length: int) -> Experience:
    """A minibatch with the weight of each of its tokens in the loss."""
    rows = batch.mask.reshape(-1, batch.mask.shape[-1])
    weights = losses.token_weights(rows, aggregation, max_length)
    return batch.replace(weights=weights.reshape(batch.mask.shape))


def _descend(
    objective: Objective,
    params: Any,
    opt_state: Any,
    batch: Experience,
    config: RLConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[Any, Any, Metrics]:
    """One optimizer step, left out where the loss, the gradient or a reward is not finite.

    Returns:
      parameters, optimizer state, and metrics with `loss`, `grad_norm` and `skipped` (0 or 1).
    """
    grads, loss, metrics = _gradient(objective, params, batch, config)
    norm = optax.tree.norm(grads)
    ok = jnp.isfinite(loss) & jnp.isfinite(norm) & batch.sound.all()
    steps, new_opt_state = optimizer.update(grads, opt_state, params)
    new = optax.apply_updates(params, steps), new_opt_state
    kept = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, (params, opt_state))
    return *kept, {**metrics, "loss": loss, "grad_norm": norm, "skipped": 1.0 - ok}


def _improve_policy(
    state: PolicyState,
    batch: Experience,
    entropy_coef: jax.Array,
    config: RLConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[PolicyState, Metrics]:
    """One step of the policy on a minibatch."""
    algorithm = config.algorithm
    objective = Partial(partial(_token_objective, config=config), entropy_coef=entropy_coef)
    if algorithm.positions == "fork_exact":
        objective = Partial(
            partial(_fork_objective, config=config),
            entropy_coef=entropy_coef, reference=state.reference,
        )
    # The fork is one token each: its weight does not depend on any length.
    aggregation = "token_mean" if algorithm.on_fork else algorithm.aggregation
    batch = _weigh(batch, aggregation, config.rollout.max_new_tokens)
    params, opt_state, metrics = _descend(
        objective, state.params, state.opt_state, batch, config, optimizer
    )
    return state.replace(params=params, opt_state=opt_state), metrics


def _improve_critic(
    state: PolicyState,
    batch: Experience,
    config: RLConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[PolicyState, Metrics]:
    """One step of the value model on a minibatch."""
    batch = _weigh(batch, "token_mean", config.rollout.max_new_tokens)
    critic, opt_state, metrics = _descend(
        Partial(partial(_critic_objective, config=config)), state.critic,
        state.critic_opt_state, batch, config, optimizer,
    )
    return state.replace(critic=critic, critic_opt_state=opt_state), metrics


def update(
    state: PolicyState,
    prompts: PromptBatch,
    rollouts: Rollouts,
    key: jax.Array,
    config: RLConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[PolicyState, Metrics]:
    """Improve the policy by judged rollouts: `num_epochs * num_minibatches` optimizer steps.

    An optimizer step whose loss, gradient or rewards are not finite is skipped and counted
    (`skipped`, the critic's included); `reward_nan` counts the samples with such a reward.

    Raises:
      ValueError: not `num_prompts` prompts.
    """
    _check_prompts(prompts, config.num_prompts)
    select_key, order_key = jax.random.split(key)
    experience, metrics = make_experience(state, prompts, rollouts, select_key, config)
    metrics["reward_nan"] = jnp.sum(~jnp.isfinite(rollouts.rewards))
    entropy_coef = _bonus(state, experience, config.algorithm)

    def one(state: PolicyState, index: jax.Array) -> tuple[PolicyState, Metrics]:
        batch = jax.tree.map(lambda x: x[index], experience)
        state, made = _improve_policy(state, batch, entropy_coef, config, optimizer)
        if config.algorithm.critic:
            state, of_critic = _improve_critic(state, batch, config, optimizer)
            made["value_loss"] = of_critic["loss"]
            made["skipped"] += of_critic["skipped"]
        return state, made

    state, steps = jax.lax.scan(one, state, _minibatch_indices(order_key, config))
    return _conclude(state, metrics | _over_steps(steps), config.algorithm)


def _over_steps(steps: Metrics) -> Metrics:
    """One figure of each metric of the optimizer steps `[steps]`."""
    metrics = {name: value.mean() for name, value in steps.items()}
    metrics["skipped"] = steps["skipped"].sum()
    for name in steps:
        if name.startswith("sampling_logp_difference"):
            metrics[name] = steps[name][0]  # later the policy has left the one that sampled
    return metrics


def _conclude(
    state: PolicyState, metrics: Metrics, algorithm: Algorithm
) -> tuple[PolicyState, Metrics]:
    """What follows the last optimizer step: counters, the entropy's weight, the reference."""
    skipped = metrics["skipped"] > 0
    adapted = _adapt(algorithm, state.entropy_coef, metrics["entropy"])
    state = state.replace(
        step=state.step + 1,
        skipped=jnp.where(skipped, state.skipped + 1, 0),
        # Where a step was skipped the entropy may be no number.
        entropy_coef=jnp.where(skipped, state.entropy_coef, adapted),
    )
    if state.reference is not None:
        reference = update_reference(algorithm, state.reference, state.params, state.step)
        state = state.replace(reference=reference)
    metrics = {**metrics, "skipped_in_a_row": state.skipped, "entropy_coef": state.entropy_coef}
    return state, metrics


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


def _bonus(state: PolicyState, experience: Experience, algorithm: Algorithm) -> jax.Array:
    """The entropy bonus's weight in this update: 0 where the entropy is above its target."""
    if algorithm.entropy_target is None:
        return state.entropy_coef
    entropy = losses.masked_mean(experience.entropy, experience.mask)
    return jnp.where(entropy <= algorithm.entropy_target, state.entropy_coef, 0.0)


def _adapt(algorithm: Algorithm, coefficient: jax.Array, entropy: jax.Array) -> jax.Array:
    """The entropy bonus's next weight (Skywork-OR1, 2505.22312)."""
    if algorithm.entropy_target is None:
        return coefficient
    step = jnp.where(entropy < algorithm.entropy_target, 1.0, -1.0) * algorithm.entropy_delta
    return jnp.maximum(coefficient + step, 0.0)


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
            allowed=config.allowed_ids(), stop_ids=config.stop_ids, pad_id=config.pad_id,
        )
        penalty = config.algorithm.penalty
        if config.max_rounds == 1:
            rollouts = sample_round(prompts, sample_key)
            drawn = drawn_metrics(rollouts, penalty)
        else:
            prompts, rollouts, drawn = refill(
                sample_round, prompts, sample_key, config.num_prompts, penalty
            )
        state, metrics = update(state, prompts, rollouts, update_key, config, optimizer)
        metrics |= rollout_metrics(rollouts, config.model.num_strategies)
        return state, metrics | drawn  # whose num_tokens counts what was thrown away, too

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


def seeds_sharding(num_devices: int) -> NamedSharding:
    """A leading axis `[seeds]` cut over the first so many devices; their number divides it."""
    devices = jax.devices()[:num_devices]
    mesh = jax.make_mesh((num_devices,), ("seeds",), (AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec("seeds"))


def all_seeds(
    steps: Callable[[PolicyState, PromptBatch, jax.Array], tuple[PolicyState, Metrics]],
    side_by_side: bool,
    num_devices: int = 1,
) -> Callable[[PolicyState, PromptBatch, jax.Array], tuple[PolicyState, Metrics]]:
    """Several seeds as one program: every argument and result gains a leading axis `[seeds]`.

    Args:
      side_by_side: a device's seeds are vmapped; else it takes them one after another.
      num_devices: the seeds are cut over the first so many devices; it divides their number.
    """

    def one_device(
        state: PolicyState, prompts: PromptBatch, keys: jax.Array
    ) -> tuple[PolicyState, Metrics]:
        if side_by_side:
            return jax.vmap(steps)(state, prompts, keys)
        return jax.lax.map(lambda x: steps(*x), (state, prompts, keys))

    if num_devices == 1:
        return one_device
    # No device reads another one's seeds; the check would want every constant marked as varying.
    cut = seeds_sharding(num_devices)
    return jax.shard_map(
        one_device, mesh=cut.mesh, in_specs=cut.spec, out_specs=cut.spec, check_vma=False
    )
