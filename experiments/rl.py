r"""Reinforcement learning with verifiable rewards: any task, any algorithm, any starting policy.

    python -m experiments.rl --workdir=runs/gfpo --config.arm=matched --config.rl.algorithm=gfpo \
        --config.rl.trained=strategies
    python -m experiments.rl --workdir=runs/grpo --config.arm=mixed --config.rl.algorithm=grpo

Pre-trains and fine-tunes under `config.arm` as `experiments.sft` does, then improves that policy by
the algorithm (`reasoning.learning.algorithms`) and evaluates both. A reward that is written in jnp
compiles into one program with sampler and update; others are judged on the host.
"""

import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments import launch
from experiments.rl_steps import (
    chosen_reward,
    compiled_reward,
    compiled_steps,
    devices_for,
    seeds_side_by_side,
)
from experiments.sft import (
    Data,
    Setup,
    check_trained,
    evaluate,
    fine_tune_seeds,
    mesh_shape,
    optimizer_config,
    set_up,
    training_data,
)
from reasoning.data.corpora import Corpus
from reasoning.data.tasks.base import distinct_problems
from reasoning.evaluation import reports
from reasoning.evaluation.estimators import pass_at_k
from reasoning.evaluation.policies import sample_and_judge
from reasoning.learning import rollouts as ro
from reasoning.learning.algorithms import make_algorithm
from reasoning.learning.optimizers import make_optimizer
from reasoning.learning.rl_state import PolicyState, RLConfig, init_policy_state
from reasoning.learning.rl_updates import seeds_sharding
from reasoning.learning.rollouts import Metrics
from reasoning.rewards.device import problem_arrays
from reasoning.rewards.host import HostFunction
from reasoning.rewards.judges import AnswerJudge
from reasoning.rewards.shaping import task_ids
from reasoning.runtime.checkpoints import save_tree
from reasoning.runtime.meshes import param_shardings
from reasoning.runtime.progress import Progress
from reasoning.runtime.runs import Run
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG, pad_prompts
from reasoning.sampling.slots import rows_at_a_time

PROGRAM = "experiments.rl"


@dataclasses.dataclass(frozen=True)
class Problems:
    """The training problems of RL, as the host and the device read them: `[D, ...]`."""

    problems: list[Any]
    prompts: ro.PromptBatch


@dataclasses.dataclass(frozen=True)
class RLData:
    """What the supervised phases train on, and the problems of RL."""

    supervised: Data
    problems: Problems


def rl_config(
    setup: Setup, settings: ml_collections.ConfigDict, early_exit: bool = True
) -> RLConfig:
    """What an RL step is compiled for, from `config.rl` or a section like it.

    Args:
      early_exit: of `RolloutConfig`; not where seeds are vmapped.

    Raises:
      ValueError: what cannot work, in one sentence.
    """
    changes = {name: value for name, value in settings.override.items() if value is not None}
    algorithm = make_algorithm(settings.algorithm, **changes)
    num_slots = settings.num_slots
    if num_slots is None:
        num_slots = rows_at_a_time()
    return RLConfig(
        model=setup.model,
        algorithm=algorithm,
        rollout=ro.RolloutConfig(
            num_samples=settings.samples,
            max_new_tokens=setup.model.max_length - setup.prompt_length,
            tags="stratified" if algorithm.positions == "fork_exact" else "own",
            early_exit=early_exit,
            num_slots=num_slots if early_exit else None,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p,
            **settings.shaping,
        ),
        stop_ids=setup.text_format.stop_ids,
        pad_id=setup.text_format.pad_id,
        forbidden_ids=forbidden_ids(setup),
        num_prompts=settings.prompts,
        max_rounds=settings.rounds,
        num_epochs=settings.epochs,
        num_minibatches=settings.minibatches,
        num_microbatches=settings.microbatches,
        trained=settings.trained,
    )


def forbidden_ids(setup: Setup) -> tuple[int, ...]:
    """The ids that no completion of the problems is made of."""
    tokenizer = setup.text_format.tokenizer
    if isinstance(setup.task, Corpus):  # a model may have rows that its tokenizer does not use
        return tuple(range(tokenizer.vocab_size, setup.model.vocab_size))
    return tuple(np.flatnonzero(~task_ids(setup.task, tokenizer)).tolist())


def rl_problems(setup: Setup, settings: ml_collections.ConfigDict, seed: int) -> Problems:
    """Distinct problems of the train split, and what a reward on the device knows of them.

    Raises:
      ValueError: the split holds fewer, or a prompt is longer than those that are held out.
    """
    problems = distinct_problems(setup.task, "train", seed, settings.problems)
    texts = [setup.text_format.prompt_ids(setup.task.prompt(problem)) for problem in problems]
    if max(map(len, texts)) > setup.prompt_length:
        raise ValueError(
            f"rl.problems: a prompt has {max(map(len, texts))} tokens, more than the "
            f"{setup.prompt_length} of those held out; raise evaluation.problems."
        )
    # Padded to the length of the held-out prompts.
    ids, mask = pad_prompts([*texts, [0] * setup.prompt_length], setup.text_format.pad_id)
    on_device = chosen_reward(setup, settings) is not None
    metadata = problem_arrays(setup.task, problems) if on_device else np.arange(len(problems))
    index = np.arange(len(problems), dtype=np.int32)
    return Problems(problems, ro.PromptBatch(ids[:-1], mask[:-1], index, metadata))


def schedule(num_problems: int, num_steps: int, per_step: int, seed: int) -> np.ndarray:
    """Which problems each step draws, `[steps, per_step]`: epoch after epoch in random order.

    What is left of an epoch when no whole step is, is left out.
    """
    rng = np.random.default_rng(seed)
    steps: list[np.ndarray] = []
    while len(steps) < num_steps:
        # No step spans two epochs: the same problem twice would give the same samples twice.
        whole = num_problems // per_step
        steps.extend(rng.permutation(num_problems)[: whole * per_step].reshape(whole, per_step))
    return np.stack(steps[:num_steps])


def filter_by_difficulty(
    setup: Setup, params: Any, data: Problems, settings: ml_collections.ConfigDict, seed: int
) -> np.ndarray:
    """Problems whose pass rate lies in [min_pass, max_pass] (T1 trains on hard ones): indices.

    Raises:
      ValueError: fewer do than a step draws.
    """
    tags = np.full(settings.samples, OWN_TAG)
    key = launch.run_key(seed, "difficulty")
    filters = rl_config(setup, settings).rollout.filters
    judged = sample_and_judge(setup.policy(params), data.problems, tags, key, filters)
    rate = judged.correct.mean(axis=1)
    kept = np.flatnonzero((rate >= settings.min_pass) & (rate <= settings.max_pass))
    if len(kept) < settings.prompts * settings.rounds:
        raise ValueError(
            f"min_pass={settings.min_pass}, max_pass={settings.max_pass}: the pass rates of only "
            f"{len(kept)} problems lie there, fewer than a step draws; they go from "
            f"{rate.min():.2f} to {rate.max():.2f}."
        )
    return kept


def choose_problems(
    run: Run,
    setup: Setup,
    params: Any,
    data: Problems,
    settings: ml_collections.ConfigDict,
    name: str,
    seed: int,
) -> np.ndarray:
    """What `filter_by_difficulty` keeps, found once in a run: a resumed one draws the same."""
    if settings.min_pass <= 0 and settings.max_pass >= 1:
        return np.arange(len(data.problems))

    def work() -> tuple[None, dict[str, Any]]:
        return None, {"kept": filter_by_difficulty(setup, params, data, settings, seed).tolist()}

    return np.array(run.phase(f"seed{seed}/{name}_problems", work)[1]["kept"])


def validate(
    run: Run, setup: Setup, params: Any, name: str, step: int, settings: Any, seed: int
) -> dict[str, float]:
    """pass@1 and pass@k of the policy's own tags on validation problems; prints a few."""
    tags = np.full(settings.validation_samples, OWN_TAG)
    key = jax.random.fold_in(launch.run_key(seed, "validate"), step)
    judged = sample_and_judge(setup.policy(params), setup.validation, tags, key, Filters())
    rows = judged.rows(setup.task, setup.validation)
    run.log_completions({"seed": seed, "arm": name, "step": step, **row} for row in rows)
    if settings.printed:
        few = rows[: len(tags) * settings.printed : len(tags)]  # the first of so many problems
        width = shutil.get_terminal_size().columns
        print(f"{name}, step {step}, seed {seed}:\n{reports.completions_table(few, width)}")
    solved, k = judged.correct.sum(axis=1), len(tags)
    return {
        "validation/pass@1": float(judged.correct.mean()),
        f"validation/pass@{k}": float(pass_at_k(k, solved, k).mean()),
    }


def rl_optimizer(settings: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """The policy's optimizer; its schedule spans every update of every step."""
    return make_optimizer(optimizer_config(settings, settings.epochs * settings.minibatches))


def start_seeds(
    policies: Sequence[Any],
    chosen: Sequence[np.ndarray],
    settings: ml_collections.ConfigDict,
    config: RLConfig,
    seeds: Sequence[int],
) -> tuple[PolicyState, np.ndarray, jax.Array]:
    """What the seeds start from, stacked: their states, the problems that each step draws
    `[seeds, steps, P]`, and its keys `[seeds, steps]`.

    Args:
      chosen: the problems of each seed, as indices.
    """
    optimizer, per_step = rl_optimizer(settings), settings.prompts * settings.rounds
    states, plans, keys = [], [], []
    for params, kept, seed in zip(policies, chosen, seeds, strict=True):
        states.append(init_policy_state(params, config, optimizer))
        plans.append(kept[schedule(len(kept), settings.steps, per_step, seed)])
        keys.append(jax.random.split(launch.run_key(seed, "rollouts"), settings.steps))
    return jax.tree.map(lambda *x: jnp.stack(x), *states), np.stack(plans), jnp.stack(keys)


def reinforce(
    run: Run,
    setup: Setup,
    policies: Sequence[Any],
    data: Problems,
    settings: ml_collections.ConfigDict,
    name: str,
    seeds: Sequence[int],
) -> tuple[list[Any], dict[str, float]]:
    """Improve one policy per seed by reinforcement learning, all seeds at once.

    Returns:
      the improved parameters, and what it took a seed: `steps`, `tokens` (sampled), `seconds`.

    Raises:
      FloatingPointError: `max_skipped` steps in a row had no finite loss or gradient.
    """
    chosen = [
        choose_problems(run, setup, params, data, settings, name, seed)
        for params, seed in zip(policies, seeds, strict=True)
    ]
    work = partial(improve_policies, run, setup, policies, data, chosen, settings, name, seeds)
    phase = f"seed{seeds[0]}/{name}"
    return run.phase(phase, work, like=list(policies), steps=settings.steps)


def improve_policies(
    run: Run,
    setup: Setup,
    policies: Sequence[Any],
    data: Problems,
    chosen: Sequence[np.ndarray],
    settings: ml_collections.ConfigDict,
    name: str,
    seeds: Sequence[int],
) -> tuple[list[Any], dict[str, float]]:
    """The phase of `reinforce`, from its start or from where it was stopped.

    Args:
      chosen: of each seed, the indices `[K]` of its training problems.

    Returns:
      the policies, and what they took: `tokens` and `seconds`.
    """
    # Side by side the seeds' samplers wait for each other, and an exit is only a test more.
    config = rl_config(setup, settings, early_exit=not seeds_side_by_side(len(seeds)))
    state, plan, keys = start_seeds(policies, chosen, settings, config, seeds)
    one_program = compiled_reward(setup, settings)
    if one_program and devices_for(len(seeds)) > 1:
        # What is restored stays where its like was, and the program runs on these devices.
        state = jax.device_put(state, seeds_sharding(devices_for(len(seeds))))
    elif setup.mesh is None:
        # Where the program will leave it: a state that is bound to no device is compiled for anew.
        state = jax.device_put(state, jax.devices()[0])
    state, done, carried = run.resume(
        state,
        {
            "spent": {"tokens": 0.0, "seconds": 0.0},
            "verdicts": verdicts_of(setup.judge),
            "best": -1.0,  # pass@1 on validation problems
        },
    )
    spent, best = {**carried["spent"], "steps": settings.steps}, carried["best"]
    phase = f"seed{seeds[0]}/{name}"
    if isinstance(setup.judge, AnswerJudge):  # the same answer gets the same reward again
        setup.judge.load_memo(carried["verdicts"])

    def check_in(step: int) -> None:
        nonlocal best
        policies = [one_seed(setup, state.params, i) for i in range(len(seeds))]
        scores = []
        for params, seed in zip(policies, seeds, strict=True):
            figures = validate(run, setup, params, name, step, settings, seed)
            run.log_metrics(name, step, {"seed": seed, **figures})
            scores.append(figures["validation/pass@1"])
        if settings.keep_best and np.mean(scores) > best:
            best = float(np.mean(scores))
            save_tree(run.path / "best" / phase, policies, {"step": step, "pass@1": best})
        if settings.keep_every and step % settings.keep_every == 0:
            save_tree(run.path / "kept" / phase / f"{step:06d}", policies, {"step": step})

    # A program cannot be interrupted; steps in turn can be after each of them.
    unit = settings.validate_every if one_program else 1
    progress = Progress(name, settings.steps, done=done)
    before = time.monotonic() - spent["seconds"] * len(seeds)
    with compiled_steps(
        setup, data.problems, settings, config, rl_optimizer(settings), len(seeds)
    ) as advance:
        for start, stop in parts(done, settings.steps, unit):
            if start % settings.validate_every == 0:
                check_in(start)
            prompts = jax.tree.map(lambda x: x[plan[:, start:stop]], data.prompts)  # noqa: B023
            if one_program:
                prompts = jax.device_put(prompts)
            state, metrics = advance(state, prompts, keys[:, start:stop])
            metrics = jax.device_get(metrics)
            tokens = record(run, progress, name, start, seeds, metrics)
            spent["tokens"] += tokens / len(seeds)
            spent["seconds"] = (time.monotonic() - before) / len(seeds)
            skipped = int(metrics["skipped_in_a_row"].max())
            if skipped >= settings.max_skipped:
                stop_lost(run, state, name, stop, skipped)
            if stop == settings.steps or run.due():
                verdicts = verdicts_of(setup.judge)
                run.save(stop, state, {"spent": spent, "verdicts": verdicts, "best": best})
    check_in(settings.steps)
    progress.close()
    return [one_seed(setup, state.params, i) for i in range(len(seeds))], spent


def verdicts_of(judge: HostFunction) -> dict[str, Any]:
    """What a judge remembers; a task's verifier needs no memory."""
    return judge.memo() if isinstance(judge, AnswerJudge) else {}


def parts(done: int, steps: int, unit: int) -> Iterator[tuple[int, int]]:
    """The steps from `done` on, cut at the multiples of `unit`: start and stop of each part.

    An extended run may start between two multiples.
    """
    while done < steps:
        stop = min(done - done % unit + unit, steps)
        yield done, stop
        done = stop


def one_seed(setup: Setup, params: Any, i: int) -> Any:
    """The i-th seed's parameters, where a single policy has them."""
    own = jax.tree.map(lambda x: x[i], params)
    if setup.mesh is None:
        return jax.device_put(own, jax.devices()[0])
    return jax.device_put(own, param_shardings(setup.model, setup.mesh))


def record(
    run: Run,
    progress: Progress,
    name: str,
    start: int,
    seeds: Sequence[int],
    metrics: Metrics,
) -> float:
    """Log the metrics `[seeds, n]` of n steps from `start` on; returns the tokens of all."""
    for i in range(metrics["reward"].shape[1]):
        for j, seed in enumerate(seeds):
            values = {key: value[j, i] for key, value in metrics.items()}
            run.log_metrics(name, start + i, {"seed": seed, **values})
        drawn = float(metrics["num_tokens"][:, i].sum())
        progress.advance(drawn, reward=float(metrics["reward"][:, i].mean()))
    return float(metrics["num_tokens"].sum())


def stop_lost(run: Run, state: PolicyState, name: str, step: int, skipped: int) -> NoReturn:
    """End a run whose updates have not been finite for a while; its last good state is kept.

    Raises:
      FloatingPointError: always.
    """
    kept = run.path / "last_good" / name
    save_tree(kept, state, {"step": step})
    raise FloatingPointError(
        f"{name}: {skipped} steps in a row had no finite loss or gradient, up to step {step}; the "
        f"last good state (all seeds) is in {kept}. See metrics.jsonl: reward_nan counts rewards "
        "that are no number; else lower the learning rate."
    )


def check_seeds(setup: Setup, config: ml_collections.ConfigDict, section: str) -> None:
    """Refuse several seeds where they cannot train at once (ValueError)."""
    if config.seeds > 1 and setup.mesh is not None:
        raise ValueError(
            f"seeds={config.seeds}: on a mesh one policy trains at a time; choose seeds=1, or a "
            "mesh of ones, where the seeds are cut over the devices."
        )
    if config.seeds > 1 and not compiled_reward(setup, config[section]):
        raise ValueError(
            f"seeds={config.seeds}: seeds train at once where the reward is compiled; choose "
            f"seeds=1, or {section}.one_program=True with a task that has a reward on the device."
        )


def check_rl(setup: Setup, config: ml_collections.ConfigDict, section: str) -> None:
    """Refuse settings of a section of the configuration that cannot run (ValueError)."""
    settings = config[section]
    on_device = compiled_reward(setup, settings)
    critic = rl_config(setup, settings).algorithm.critic
    optimizer_config(settings)
    check_trained(config, section, setup.model)
    if critic and settings.trained != "all":
        raise ValueError(
            f"{section}.trained={settings.trained!r}: the value model of "
            f"{settings.algorithm!r} trains as the policy does; choose all."
        )
    for name in ("steps", "problems", "validate_every", "validation_samples", "max_skipped"):
        if settings[name] < 1:
            raise ValueError(f"{section}.{name}={settings[name]}: must be at least 1.")
    if settings.keep_every < 0 or settings.keep_every % settings.validate_every:
        raise ValueError(
            f"{section}.keep_every={settings.keep_every}: must be 0 (none), or a multiple of "
            f"{section}.validate_every={settings.validate_every}."
        )
    if settings.reward not in ("device", "host"):
        raise ValueError(f"{section}.reward={settings.reward!r}: must be device or host.")
    parts = mesh_shape(config).rows
    scored = settings.prompts // (settings.minibatches * settings.microbatches)
    if settings.prompts % parts or scored * settings.samples % parts:
        raise ValueError(
            f"{section}.prompts={settings.prompts}: it, and the {scored * settings.samples} rows "
            f"of a microbatch, must be multiples of the {parts} parts that replica, data and fsdp "
            f"of the mesh make; choose more prompts or fewer {section}.microbatches."
        )
    if settings.rounds > 1 and not on_device:
        raise ValueError(
            f"{section}.rounds={settings.rounds}: dynamic sampling needs {section}.one_program and "
            "a task with a reward on the device."
        )
    if settings.problems < settings.prompts * settings.rounds:
        raise ValueError(
            f"{section}.problems={settings.problems}: a step draws "
            f"{settings.prompts * settings.rounds} different ones; raise it."
        )
    if settings.workers and isinstance(setup.task, Corpus):
        raise ValueError(
            f"{section}.workers={settings.workers}: a corpus is judged by judge.workers; leave "
            f"{section}.workers at 0."
        )
    if settings.workers < 0 or settings.min_pass > settings.max_pass:
        raise ValueError(
            f"{section}.workers={settings.workers}, min_pass={settings.min_pass}, max_pass="
            f"{settings.max_pass}: workers must be 0 or more, and min_pass at most max_pass."
        )


def run_seeds(
    run: Run, setup: Setup, data: RLData, config: ml_collections.ConfigDict
) -> list[dict[str, Any]]:
    """Train every seed as `experiments.sft`, then reinforce all; returns each seed's results."""
    arm, name = config.arm, f"{config.arm}_{config.rl.algorithm}"
    tags, seeds = setup.trained_tags(arm), range(config.seed, config.seed + config.seeds)
    before, results = fine_tune_seeds(run, setup, data.supervised, config, seeds)
    after, spent = reinforce(run, setup, before, data.problems, config.rl, name, seeds)
    for seed, result, *policies in zip(seeds, results, before, after, strict=True):
        result["arms"][name] = {"training": spent}
        for label, params in zip((arm, name), policies, strict=True):
            result["arms"][label] |= evaluate(
                run, setup, params, label, tags, config, seed
            ).figures
    return results


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Run every seed, then report; what cannot work (ValueError) is refused in one line."""

    def build(config: ml_collections.ConfigDict) -> Setup:
        setup = set_up(config, (config.arm,))
        check_rl(setup, config, "rl")
        check_seeds(setup, config, "rl")
        tags = setup.trained_tags(config.arm)
        if rl_config(setup, config.rl).algorithm.on_fork and len(tags) == 1:
            raise ValueError(
                f"rl.algorithm={config.rl.algorithm!r}: learns which tag to choose, and the arm "
                f"{config.arm!r} trains a single one; choose another arm, or rl.algorithm=grpo."
            )
        return setup

    def make_data(setup: Setup, config: ml_collections.ConfigDict) -> RLData:
        return RLData(training_data(setup, config), rl_problems(setup, config.rl, config.seed))

    launch.run_program(PROGRAM, config, workdir, build, make_data, run_seeds)


if __name__ == "__main__":
    launch.start(main)
