"""Supervised fine-tuning on several traces per problem: any task, any arm, any size.

    python -m experiments.sft --workdir=runs/random --config.arm=random
    python -m experiments.sft --workdir=runs/first --config=experiments/configs/smoke.py

Pre-trains a base policy that knows the task's moves but follows no strategy, fine-tunes it under
one arm (`reasoning.learning.assignment`), evaluates it on held-out problems and writes the run
directory (`reasoning.runtime.runs`).
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from experiments import launch, sources
from experiments.batches import due_problems, plan_batches
from reasoning.data import pipelines
from reasoning.data.corpora import Corpus
from reasoning.data.formats import TextFormat
from reasoning.data.tasks.base import Problems, distinct_problems
from reasoning.evaluation.policies import (
    Judged,
    Policy,
    Summary,
    sample_and_judge,
    summarise,
)
from reasoning.learning import assignment
from reasoning.learning.losses import check_reduction
from reasoning.learning.optimizers import OptimizerConfig, make_optimizer
from reasoning.learning.updates import TrainState, init_state, sft_update
from reasoning.models.config import ModelConfig
from reasoning.models.strategies import spread_strategies
from reasoning.rewards.host import HostFunction
from reasoning.runtime.meshes import MeshShape, check_mesh, make_mesh, shard_rows
from reasoning.runtime.progress import Progress, announced
from reasoning.runtime.runs import Run
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG, check_lengths

PROGRAM = "experiments.sft"
Phase = Literal["pretrain", "finetune"]
Batch = TypeVar("Batch")
Updated = tuple[TrainState, dict[str, jax.Array]]

COUNTS = (
    "seeds", "pretrain.problems", "pretrain.buckets", "finetune.problems",
    "finetune.buckets", "loss.match_tokens", "loss.match_every", "evaluation.problems",
    "evaluation.validation_problems", "evaluation.samples_per_tag",
)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a configuration describes, built and checked before anything is trained."""

    task: Problems
    text_format: TextFormat
    model: ModelConfig
    judge: HostFunction
    prompt_length: int
    test: list[Any]
    validation: list[Any]
    mesh: Mesh | None = None

    def policy(self, params: Any) -> Policy:
        """The policy with these parameters; a completion may fill the rest of the context."""
        room = self.model.max_length - self.prompt_length
        return Policy(params, self.model, self.text_format, self.task, self.judge, room)

    def trained_tags(self, arm: assignment.Arm) -> Sequence[int]:
        """The tags that an arm trains."""
        return assignment.trained_tags(arm, self.task.num_traces, self.model.num_strategies)


@dataclasses.dataclass(frozen=True)
class Data:
    """The training problems of the two phases; all seeds of a run share them."""

    pretrain: list[pipelines.Example]
    finetune: list[pipelines.Example]


def mesh_shape(config: ml_collections.ConfigDict) -> MeshShape:
    """`config.mesh` as a shape."""
    return MeshShape(**config.mesh)


def set_up(
    config: ml_collections.ConfigDict, arms: tuple[str, ...], on_mesh: bool = True
) -> Setup:
    """Build the problems, their format, the model's shape, the judge and the mesh.

    Args:
      on_mesh: False for a plan, where the mesh's devices are not there.

    Raises:
      ValueError: what cannot work, in one sentence that names the field and the mend.
    """
    task = sources.make_problems(config)
    text_format = sources.make_format(config, task)
    model = sources.make_model(config, text_format)
    check_mesh(mesh_shape(config), model)
    check_numbers(config, task)
    for phase in ("pretrain", "finetune"):
        check_training(config, phase, model)
        check_layout(config, phase)
    check_arms(config, (*arms, config.arm), task, model)
    held_out = {
        split: distinct_problems(task, split, config.seed, count)
        for split, count in (
            ("test", config.evaluation.problems),
            ("validation", config.evaluation.validation_problems),
        )
    }
    read = [problem for problems in held_out.values() for problem in problems]
    if isinstance(task, Corpus):  # its prompts vary more: all that may be asked
        read += task.train
    prompt_length = max(len(text_format.prompt_ids(task.prompt(problem))) for problem in read)
    check_lengths(model, prompt_length, 2)
    mesh = make_mesh(mesh_shape(config)) if on_mesh else None
    judge = sources.make_judge(config, task)
    return Setup(task, text_format, model, judge, prompt_length, **held_out, mesh=mesh)


def check_numbers(config: ml_collections.ConfigDict, task: Problems) -> None:
    """Refuse settings outside their range (ValueError)."""
    for name in COUNTS:
        section, _, field = name.rpartition(".")
        value = (config[section] if section else config)[field]
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1.")
    for phase in ("pretrain", "finetune"):
        if config[phase].steps < 0:
            raise ValueError(f"{phase}.steps={config[phase].steps}: must be 0 (none) or above.")
        if config[phase].rows < task.num_traces:
            raise ValueError(
                f"{phase}.rows={config[phase].rows}: a batch must hold all traces of a problem, so "
                f"at least {task.num_traces} rows."
            )
    if config.loss.tag_noise < 0:
        raise ValueError(f"loss.tag_noise={config.loss.tag_noise}: must be 0 or above.")
    check_reduction(config.loss.reduction)
    Filters(temperature=config.evaluation.temperature).check()


def check_training(config: ml_collections.ConfigDict, section: str, model: ModelConfig) -> None:
    """Refuse a section whose rows the mesh cannot share, or without an optimizer (ValueError)."""
    settings, parts = config[section], mesh_shape(config).rows
    optimizer_config(settings)
    if settings.rows % parts:
        raise ValueError(
            f"{section}.rows={settings.rows}: must be a multiple of the {parts} parts that "
            "replica, data and fsdp of the mesh make."
        )
    check_trained(config, section, model)


def check_layout(config: ml_collections.ConfigDict, section: str) -> None:
    """Refuse a section whose batches cannot be cut or packed as it says (ValueError)."""
    settings = config[section]
    rows = settings.rows // mesh_shape(config).rows  # of each part of the mesh
    if settings.microbatches < 1 or rows % settings.microbatches:
        raise ValueError(
            f"{section}.microbatches={settings.microbatches}: must divide the {rows} rows that "
            "each part of the mesh has."
        )
    if settings.pack < 0:
        raise ValueError(f"{section}.pack={settings.pack}: must be 0 (no packing) or a length.")


def check_trained(config: ml_collections.ConfigDict, section: str, model: ModelConfig) -> None:
    """Refuse to train the strategies' rows where they have none of their own (ValueError)."""
    if config[section].trained == "strategies" and model.strategy_ids:
        raise ValueError(
            f"{section}.trained='strategies': tags that are textual are rows of the vocabulary; "
            f"choose {section}.trained=all, or model.tags=added."
        )


def check_arms(
    config: ml_collections.ConfigDict, arms: tuple[str, ...], task: Problems, model: ModelConfig
) -> None:
    """Refuse arms that cannot be trained or evaluated with these numbers (ValueError)."""
    num_samples = config.evaluation.samples_per_tag * model.num_strategies
    for arm in dict.fromkeys(arms):
        assignment.check_arm(arm, task.num_traces, model.num_strategies)
        tags = assignment.trained_tags(arm, task.num_traces, model.num_strategies)
        if num_samples % len(tags):
            raise ValueError(
                f"evaluation.samples_per_tag={config.evaluation.samples_per_tag}: every arm draws "
                f"{num_samples} samples a problem, which must be a multiple of the {len(tags)} "
                f"tags of arm {arm!r}; choose a multiple of {len(tags)}."
            )


def training_data(setup: Setup, config: ml_collections.ConfigDict) -> Data:
    """The examples of both phases, as ids.

    Raises:
      ValueError: a row is longer than the model reads.
    """
    make = {"pretrain": pipelines.practice_examples, "finetune": pipelines.strategy_examples}
    counts = {phase: config[phase].problems if config[phase].steps else 0 for phase in make}
    if isinstance(setup.task, Corpus):  # no question twice
        counts = {phase: min(count, len(setup.task.train)) for phase, count in counts.items()}
    print(f"writing {sum(counts.values())} training problems")
    data = Data(
        **{
            phase: examples(setup.task, setup.text_format, config.seed, counts[phase])
            if counts[phase] else []
            for phase, examples in make.items()
        }
    )
    check_rows(setup, data.pretrain + data.finetune)
    for phase in make:
        longest = max((example.longest for example in getattr(data, phase)), default=0)
        if 0 < config[phase].pack < longest:
            raise ValueError(
                f"{phase}.pack={config[phase].pack}: the longest training row takes {longest} "
                f"tokens; raise it to {longest} or more."
            )
    return data


def check_rows(setup: Setup, examples: Sequence[pipelines.Example]) -> None:
    """Refuse examples whose rows, padded to multiples of 4, the model cannot read (ValueError)."""
    longest = pipelines.bucket_lengths(examples, 1)[-1] if examples else 0
    if longest > setup.model.max_length:
        raise ValueError(
            f"model.max_length={setup.model.max_length}: the longest training row takes {longest} "
            f"tokens; raise it to {longest} or more, or choose shorter traces."
        )


def optimizer_config(
    phase: ml_collections.ConfigDict, updates_per_step: int = 1
) -> OptimizerConfig:
    """A phase's optimizer; its schedule spans all updates of the phase."""
    return OptimizerConfig(
        name=phase.optimizer,
        learning_rate=phase.learning_rate,
        num_steps=max(phase.steps, 1) * updates_per_step,
        warmup_steps=phase.warmup_steps,
        final_share=phase.final_share,
        weight_decay=phase.weight_decay,
        clip_norm=phase.clip_norm,
        trained=phase.trained,
    )


def train(
    run: Run,
    setup: Setup,
    params: Any,
    examples: list[pipelines.Example],
    phase: Phase,
    arm: assignment.Arm,
    config: ml_collections.ConfigDict,
    seed: int,
    name: str | None = None,
) -> tuple[Any, dict[str, float]]:
    """Train on the examples, each trace under the tag that the arm assigns to it.

    Args:
      phase: the section of the configuration that says how.
      name: of the phase in metrics.jsonl; the arm's if left out, or `base`.

    Returns:
      the trained parameters, and what it took: `steps`, `tokens` (labels) and `seconds`.
    """
    settings, loss = config[phase], config.loss
    optimizer = make_optimizer(optimizer_config(settings))
    key = launch.run_key(seed, "assign")
    longest_prompt = max(len(example.prompt) for example in examples)
    plan = plan_batches(examples, settings, seed, setup.text_format.pad_id, setup.mesh)
    # On a mesh every row is scored under every tag for itself.
    num_problems = plan.most_problems if setup.mesh is None else None
    keeps = arm == "matched" and loss.match_every > 1
    schedule = due_problems(plan.members, loss.match_every) if keeps else None

    def update(state: TrainState, step: int, batch: pipelines.TraceBatch) -> Updated:
        due = np.take(schedule[step], batch.problem) if keeps else None
        tags, matching, matches = None, {}, not keeps or due.any()
        batch, due = shard_rows((batch, due), setup.mesh)
        if matches:
            tags, matching = assignment.assign(
                arm,
                setup.model,
                state.params,
                batch,
                jax.random.fold_in(key, jax.device_put(np.uint32(step))),
                num_traces=setup.task.num_traces,
                prefix=longest_prompt + 1 + loss.match_tokens,
                match_tokens=loss.match_tokens,
                num_problems=num_problems,
                due=due,
            )
        if keeps:
            tags, kept = assignment.keep_tags(state.kept_tags, batch, due, tags)
            state = state.replace(kept_tags=kept)
        state, metrics = sft_update(
            state,
            batch,
            tags,
            config=setup.model,
            optimizer=optimizer,
            reduction=loss.reduction,
            tag_is_label=loss.tag_is_label,
            num_microbatches=settings.microbatches,
            packing=plan.packing,
            trained=settings.trained,
        )
        return state, {**metrics, **matching}

    name = name or ("base" if phase == "pretrain" else arm)
    state = init_state(params, optimizer)
    if keeps:
        state = state.replace(
            kept_tags=jnp.zeros((len(examples), setup.task.num_traces), jnp.int32)
        )
    return train_steps(run, state, plan.batches, update, settings, name, seed)


def train_steps(
    run: Run,
    state: TrainState,
    batches: Callable[[int], Iterator[Batch]],
    update: Callable[[TrainState, int, Batch], Updated],
    settings: ml_collections.ConfigDict,
    name: str,
    seed: int,
    shown: str = "trace_nll",
) -> tuple[Any, dict[str, float]]:
    """Train through `update(state, step, batch)`, from the start or from where the run stopped.

    Args:
      state: at the start.
      batches: those from a step on.
      update: returns the next state and its metrics, `tokens` and `shown` among them.
      settings: a section with `steps`.
      name: of the phase in metrics.jsonl.
      shown: the metric that the progress tells.

    Returns:
      as `train`.
    """
    state, start, spent = run.resume(state, {"tokens": 0.0, "seconds": 0.0})
    spent["steps"] = settings.steps
    progress = Progress(name, settings.steps, done=start)
    before = time.monotonic() - spent["seconds"]

    def record(step: int, metrics: dict[str, jax.Array]) -> None:
        values = jax.device_get(metrics)
        run.log_metrics(name, step, {"seed": seed, **values})
        progress.advance(float(values["tokens"]), **{shown: float(values[shown])})
        spent["tokens"] += float(values["tokens"])
        spent["seconds"] = time.monotonic() - before

    waiting = None
    for step, batch in enumerate(batches(start), start):
        state, metrics = update(state, step, batch)
        # The metrics of the step before are ready: reading them does not make the device wait.
        if waiting:
            record(*waiting)
        waiting = step, metrics
        if step + 1 == settings.steps or run.due():
            record(*waiting)
            waiting = None
            run.save(step + 1, state, spent)
    progress.close()
    return state.params, spent


def pretrain(
    run: Run, setup: Setup, data: Data, config: ml_collections.ConfigDict, seed: int
) -> tuple[Any, dict[str, float]]:
    """The base policy: correct traces that follow no strategy, all under tag 0."""
    key = launch.run_key(seed, "init")
    params = sources.first_params(config, setup.model, key, setup.mesh)
    if config.pretrain.steps == 0:
        return params, {"steps": 0, "tokens": 0.0, "seconds": 0.0}
    work = partial(train, run, setup, params, data.pretrain, "pretrain", "mixed", config, seed)
    return run.phase(f"seed{seed}/base", work, like=params, steps=config.pretrain.steps)


def fine_tune(
    run: Run,
    setup: Setup,
    base: Any,
    data: Data,
    arm: assignment.Arm,
    config: ml_collections.ConfigDict,
    seed: int,
) -> tuple[Any, dict[str, float]]:
    """The base policy fine-tuned under an arm; every arm sees the same batches.

    The tags start near the first, unless they come from a policy that has trained them.
    """
    if config.finetune.steps == 0:
        return base, {"steps": 0, "tokens": 0.0, "seconds": 0.0}
    start = base
    if config.model.policy is None:
        start = spread_strategies(base, launch.run_key(seed, "tags"), config.loss.tag_noise)
    work = partial(train, run, setup, start, data.finetune, "finetune", arm, config, seed)
    return run.phase(f"seed{seed}/{arm}", work, like=start, steps=config.finetune.steps)


def fine_tune_seeds(
    run: Run,
    setup: Setup,
    data: Data,
    config: ml_collections.ConfigDict,
    seeds: Sequence[int],
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Each seed's policy, fine-tuned under `config.arm`, and its results before any evaluation."""
    policies, results = [], []
    for seed in seeds:
        base, pretrained = pretrain(run, setup, data, config, seed)
        params, spent = fine_tune(run, setup, base, data, config.arm, config, seed)
        policies.append(params)
        arms = {config.arm: {"training": spent}}
        results.append({"arms": arms, "pretraining": pretrained, "seed": seed})
    return policies, results


def evaluate(
    run: Run,
    setup: Setup,
    params: Any,
    name: str,
    tags: Sequence[int],
    config: ml_collections.ConfigDict,
    seed: int,
) -> Summary:
    """Sample the held-out problems under every tag that was trained, and estimate."""
    policy, num_strategies = setup.policy(params), setup.model.num_strategies
    tags = np.array(tags)
    num_samples = config.evaluation.samples_per_tag * num_strategies  # of a problem, in every arm
    tag_major = np.repeat(tags, num_samples // len(tags))
    filters = Filters(temperature=config.evaluation.temperature)
    keys = jax.random.split(launch.run_key(seed, "evaluate"), 4)

    def judge(problems: list[Any], tags: np.ndarray, key: jax.Array, filters: Filters) -> Judged:
        run.stop_if_asked()
        return sample_and_judge(policy, problems, tags, key, filters)

    with announced(f"{name}  evaluation on {len(setup.test)} problems"):
        judged = judge(setup.test, tag_major, keys[0], filters)
        own = judge(setup.test, np.full(num_strategies, OWN_TAG), keys[1], filters)
        validation = judge(setup.validation, tag_major, keys[2], filters)
        # Greedy completions under one tag are all alike: the tags are repeated to keep one shape.
        every_tag = np.resize(tags, num_strategies)
        greedy = judge(setup.test, every_tag, keys[3], Filters(temperature=0.0))
    rows = judged.rows(setup.task, setup.test)
    run.log_completions({"seed": seed, "arm": name, **row} for row in rows)
    return summarise(policy, judged, own, greedy, validation)


def run_seeds(
    run: Run, setup: Setup, data: Data, config: ml_collections.ConfigDict
) -> list[dict[str, Any]]:
    """Pre-train, fine-tune under `config.arm`, evaluate; one seed's results each."""
    arm = config.arm

    def one_seed(seed: int) -> tuple[None, dict[str, Any]]:
        base, pretrained = pretrain(run, setup, data, config, seed)
        params, spent = fine_tune(run, setup, base, data, arm, config, seed)
        figures = evaluate(run, setup, params, arm, setup.trained_tags(arm), config, seed).figures
        arms = {arm: {**figures, "training": spent}}
        return None, {"arms": arms, "pretraining": pretrained, "seed": seed}

    seeds = range(config.seed, config.seed + config.seeds)
    return [run.phase(f"seed{seed}/results", partial(one_seed, seed))[1] for seed in seeds]


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Run every seed, then report."""
    launch.run_program(
        PROGRAM,
        config,
        workdir,
        build=lambda config: set_up(config, (config.arm,)),
        make_data=training_data,
        run_seeds=run_seeds,
    )


if __name__ == "__main__":
    launch.start(main)
