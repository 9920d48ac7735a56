"""The steps of reinforcement learning, compiled: as one program, or as three in turn.

A reward that is written in jnp compiles into one program with sampler and update, over many steps
and all seeds. Any other is judged on the host between two programs, one seed at a time.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax

from experiments.sft import Setup
from reasoning.learning import rollouts as ro
from reasoning.learning.rl_state import PolicyState, RLConfig
from reasoning.learning.rl_updates import all_seeds, make_rl_step, scan_steps, update
from reasoning.learning.rollouts import Metrics
from reasoning.rewards.device import device_reward
from reasoning.rewards.host import HostReward
from reasoning.rewards.verdicts import Completions, RewardFn, check_verdicts, reward_name
from reasoning.sampling.sampler import Samples

# `(state, prompts, keys)` of several steps and seeds -> the state after them, their metrics.
Advance = Callable[[PolicyState, ro.PromptBatch, jax.Array], tuple[PolicyState, Metrics]]


def chosen_reward(setup: Setup, settings: ml_collections.ConfigDict) -> RewardFn | None:
    """The task's reward on the device; None where it is judged on the host."""
    if settings.reward != "device":
        return None
    return device_reward(setup.task, setup.text_format.tokenizer)


def compiled_reward(setup: Setup, settings: ml_collections.ConfigDict) -> bool:
    """Whether the reward is compiled into one program with sampler and update."""
    return settings.one_program and chosen_reward(setup, settings) is not None


def seeds_side_by_side(num_seeds: int) -> bool:
    """Whether a device's seeds run side by side: a CPU is filled by one of them."""
    return num_seeds > 1 and jax.default_backend() != "cpu"


def devices_for(num_seeds: int) -> int:
    """How many devices share the seeds equally."""
    return max(n for n in range(1, jax.device_count() + 1) if num_seeds % n == 0)


@functools.cache
def one_program(
    config: RLConfig,
    optimizer: optax.GradientTransformation,
    reward: RewardFn,
    side_by_side: bool,
    num_devices: int,
) -> Advance:
    """Several steps of all seeds as one compiled program (`all_seeds`).

    State, prompts `[seeds, n, P]` and keys `[seeds, n]` have a leading axis of seeds. The same
    object for the same arguments, so that runs of one seed after another compile once.
    """
    steps = scan_steps(make_rl_step(config, optimizer, reward))
    return jax.jit(all_seeds(steps, side_by_side, num_devices), donate_argnums=0)


class Programs(NamedTuple):
    """The compiled parts of a step whose reward stands between them.

    The state has a leading axis of one seed, as in `one_program`.

    Attributes:
      sample: `(state, prompts, key)` -> samples.
      assemble: `(samples, verdicts)` -> rollouts.
      improve: `(state, prompts, rollouts, key)` -> state (the old one is donated), metrics.
      measure: rollouts -> metrics.
    """

    sample: Callable[[PolicyState, ro.PromptBatch, jax.Array], Samples]
    assemble: Callable[[Samples, Any], ro.Rollouts]
    improve: Callable[..., tuple[PolicyState, Metrics]]
    measure: Callable[[ro.Rollouts], Metrics]


@functools.cache
def programs_in_turn(
    config: RLConfig, optimizer: optax.GradientTransformation, name: str
) -> Programs:
    """The same objects for the same arguments, as `one_program`; `name` is the reward's."""

    def sample(state: PolicyState, prompts: ro.PromptBatch, key: jax.Array) -> Samples:
        return ro.draw(
            jax.tree.map(lambda x: x[0], state.params), prompts, key, config=config.model,
            rollout=config.rollout, stop_ids=config.stop_ids, pad_id=config.pad_id,
        )

    def improve(
        state: PolicyState, prompts: ro.PromptBatch, rollouts: ro.Rollouts, key: jax.Array
    ) -> tuple[PolicyState, Metrics]:
        state = jax.tree.map(lambda x: x[0], state)
        state, metrics = update(state, prompts, rollouts, key, config, optimizer)
        return jax.tree.map(lambda x: x[None], state), metrics

    def measure(rollouts: ro.Rollouts) -> Metrics:
        metrics = ro.rollout_metrics(rollouts, config.model.num_strategies)
        return metrics | ro.drawn_metrics(rollouts, config.algorithm.penalty)

    assemble = partial(
        ro.assemble, rollout=config.rollout, config=config.model, allowed=config.allowed_ids(),
        name=name,
    )
    return Programs(
        jax.jit(sample), jax.jit(assemble), jax.jit(improve, donate_argnums=0), jax.jit(measure)
    )


def in_turn(
    config: RLConfig,
    optimizer: optax.GradientTransformation,
    reward: RewardFn,
    problems: list[Any] | None,
) -> Advance:
    """The same steps by three programs in turn, each timed; the reward may run on the host.

    State, prompts and keys have a leading axis of one seed, as in `one_program`.
    """
    name = reward_name(reward)
    programs = programs_in_turn(config, optimizer, name)

    def judge(prompts: ro.PromptBatch, samples: Samples) -> ro.Rollouts:
        repeat = partial(np.repeat, repeats=config.rollout.num_samples, axis=0)
        metadata = jax.tree.map(repeat, prompts.metadata)
        if problems is not None:
            metadata = [problems[i] for i in metadata]
        verdicts = reward(repeat(prompts.ids), Completions(samples.tokens, samples.mask), metadata)
        check_verdicts(verdicts, None, name)
        return programs.assemble(samples, verdicts)

    def step(
        state: PolicyState, prompts: ro.PromptBatch, key: jax.Array
    ) -> tuple[PolicyState, Metrics]:
        sample_key, update_key = jax.random.split(key)
        times = [time.monotonic()]
        samples = jax.block_until_ready(programs.sample(state, prompts, sample_key))
        times.append(time.monotonic())
        rollouts = jax.block_until_ready(judge(prompts, samples))
        times.append(time.monotonic())
        state, metrics = jax.block_until_ready(
            programs.improve(state, prompts, rollouts, update_key)
        )
        times.append(time.monotonic())
        metrics = jax.device_get(metrics | programs.measure(rollouts))
        if isinstance(reward, HostReward):
            metrics |= {f"judge/{name}": value for name, value in reward.metrics().items()}
        for part, seconds in zip(("sampling", "reward", "update"), np.diff(times), strict=True):
            metrics[f"tokens_per_second/{part}"] = metrics["num_tokens"] / max(seconds, 1e-9)
        return state, metrics

    def steps(
        state: PolicyState, prompts: ro.PromptBatch, keys: jax.Array
    ) -> tuple[PolicyState, Metrics]:
        made = []
        for i in range(keys.shape[1]):
            batch = jax.tree.map(lambda x, i=i: x[0, i], prompts)
            state, metrics = step(state, batch, keys[0, i])
            made.append(metrics)
        return state, {name: np.stack([m[name] for m in made])[None] for name in made[0]}

    return steps


@contextlib.contextmanager
def compiled_steps(
    setup: Setup,
    problems: list[Any],
    settings: ml_collections.ConfigDict,
    config: RLConfig,
    optimizer: optax.GradientTransformation,
    num_seeds: int,
) -> Iterator[Advance]:
    """The steps that the settings ask for; worker processes of a host reward end with the block."""
    on_device = chosen_reward(setup, settings)
    if compiled_reward(setup, settings):
        side_by_side, num_devices = seeds_side_by_side(num_seeds), devices_for(num_seeds)
        yield one_program(config, optimizer, on_device, side_by_side, num_devices)
    elif on_device is not None:
        yield in_turn(config, optimizer, on_device, None)
    else:
        workers = settings.workers
        with HostReward(setup.judge, setup.text_format, num_workers=workers) as reward:
            yield in_turn(config, optimizer, reward, problems)
