r"""A large teacher and small students: its samples, its distributions, or its word on their own.

    python -m experiments.distill --workdir=runs/distill \
        --config=experiments/configs/distill.py
    python -m experiments.distill --workdir=runs/distill_full \
        --config=experiments/configs/distill.py:full

The teacher has learned from more demonstrations than the weak policy that all students start from.
From there they learn with the same settings (`config.distill.students`):

   hard        the teacher's samples: fine-tuning on them
   forward     its distribution at every token of the same samples, KL(teacher || student)
   reverse     the same, KL(student || teacher)
   jsd         the same, the generalised Jensen-Shannon divergence between the two
   on_policy   its distribution at the tokens of the student's own samples, drawn anew at every
               step: the reverse KL (GKD, 2306.13649)

The first four see the same batches, so the same tokens; the last as many completions.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import arms, launch, sources
from experiments.arms import Trained
from experiments.batches import plan_padded
from experiments.rl import schedule
from experiments.sft import (
    Setup,
    Updated,
    check_layout,
    check_rows,
    check_training,
    optimizer_config,
    set_up,
    train_steps,
)
from reasoning.data import pipelines
from reasoning.data.pipelines import Example, TraceBatch
from reasoning.data.tasks.base import distinct_problems
from reasoning.evaluation import reports
from reasoning.evaluation.policies import sample_problems
from reasoning.learning.distillation import KINDS, Divergence, distill_update
from reasoning.learning.optimizers import make_optimizer
from reasoning.learning.updates import TrainState, init_state
from reasoning.runtime.meshes import shard_rows
from reasoning.runtime.runs import Run
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import check_lengths, pad_prompts, sample, sequence_keys

PROGRAM = "experiments.distill"
STUDENTS = ("hard", *KINDS, "on_policy")


class Study(NamedTuple):
    """What a configuration describes, and the data that all seeds share."""

    setup: Setup  # with the student's model
    teacher: Setup
    demonstrations: list[Example]  # the teacher's; the student has the first of them
    problems: list[Any]  # of the train split, for the students
    prompts: list[list[int]]  # of these problems, as ids


def build(config: ml_collections.ConfigDict) -> Study:
    """The study that the configuration describes.

    Raises:
      ValueError: what cannot work, in one sentence.
    """
    launch.check_study(config, "distill", "distill.py")
    setup = set_up(config, ("mixed",))
    larger = config.copy_and_resolve_references()
    larger.model.preset = config.distill.teacher
    model = sources.make_model(larger, setup.text_format)
    check(config)
    arms.check_written_rows(setup)
    check_training(config, "teacher", model)
    check_layout(config, "teacher")
    demonstrations = pipelines.practice_examples(
        setup.task, setup.text_format, config.seed, config.teacher.problems
    )
    check_rows(setup, demonstrations)
    # Another stream than the demonstrations'; where a task has few problems, some are in both.
    problems = distinct_problems(setup.task, "train", config.seed + 1, config.finetune.problems)
    prompts = [setup.text_format.prompt_ids(setup.task.prompt(problem)) for problem in problems]
    check_lengths(setup.model, max(map(len, prompts)), 2)
    teacher = dataclasses.replace(setup, model=model)
    return Study(setup, teacher, demonstrations, problems, prompts)


def check(config: ml_collections.ConfigDict) -> None:
    """Refuse settings that cannot work (ValueError)."""
    distill = config.distill
    named = set(distill.students)
    if not {"hard"} <= named <= set(STUDENTS) or len(named) < len(distill.students):
        raise ValueError(
            f"distill.students={tuple(distill.students)}: name hard, to compare with, and some of "
            f"{', '.join(STUDENTS[1:])}, none of them twice."
        )
    for kind in KINDS:
        divergence(config, kind)
    for name in ("pretrain.steps", "finetune.steps", "teacher.steps", "teacher.buckets",
                 "distill.samples"):
        section, field = name.split(".")
        if config[section][field] < 1:
            raise ValueError(f"{name}={config[section][field]}: must be at least 1.")
    if config.teacher.problems < config.pretrain.problems:
        raise ValueError(
            f"teacher.problems={config.teacher.problems}: the teacher has the student's "
            f"demonstrations and more; raise it to pretrain.problems={config.pretrain.problems}."
        )
    for name, default in (("pack", 0), ("microbatches", 1)):
        if config.finetune[name] != default:
            raise ValueError(
                f"finetune.{name}={config.finetune[name]}: students read whole batches, row by "
                f"row; leave it {default}."
            )
    rows = config.finetune.rows
    if not distill.samples <= rows <= config.finetune.problems:
        raise ValueError(
            f"finetune.rows={rows}: must be at least distill.samples={distill.samples}, a "
            f"problem's rows, and at most finetune.problems={config.finetune.problems}."
        )


def divergence(config: ml_collections.ConfigDict, kind: str) -> Divergence:
    """The divergence of a kind with the configuration's settings."""
    return Divergence(kind, config.distill.temperature, config.distill.mix)


def train_teacher(run: Run, study: Study, config: ml_collections.ConfigDict, seed: int) -> Trained:
    """The teacher, trained by the section `teacher`."""
    larger = config.copy_and_resolve_references()
    larger.pretrain = config.teacher
    setup, examples = study.teacher, study.demonstrations
    return arms.train_base(run, setup, examples, larger, seed, name="teacher")


def teacher_examples(
    run: Run, study: Study, teacher: Any, config: ml_collections.ConfigDict, seed: int
) -> list[Example]:
    """The teacher's samples of the problems, all of them: none of the losses knows a verifier."""
    setup, count = study.teacher, config.distill.samples

    def work() -> tuple[None, dict[str, Any]]:
        key = jax.random.fold_in(launch.run_key(seed, "rollouts"), 0)  # steps have 1, 2, ...
        policy, tags = setup.policy(teacher), np.zeros(count, int)
        drawn = sample_problems(policy, study.problems, tags, key, Filters())
        rows = zip(drawn.tokens, drawn.mask, strict=True)
        return None, {"ids": [completion_ids(tokens, mask) for tokens, mask in rows]}

    _, found = run.phase(f"seed{seed}/teacher_samples", work)
    return [
        Example(tuple(prompt), tuple(map(tuple, ids)))
        for prompt, ids in zip(study.prompts, found["ids"], strict=True)
    ]


def completion_ids(tokens: np.ndarray, mask: np.ndarray) -> list[list[int]]:
    """What follows the tag in sampled tokens `[R, N]` under their mask."""
    return [row[kept][1:].tolist() for row, kept in zip(tokens, mask, strict=True)]


def distill(
    run: Run,
    study: Study,
    start: Any,
    teacher: Any,
    examples: list[Example],
    name: str,
    config: ml_collections.ConfigDict,
    seed: int,
) -> Trained:
    """A student that learns the teacher's distribution, on its samples or on the student's own."""
    setup, settings = study.setup, config.finetune
    optimizer, tags = make_optimizer(optimizer_config(settings)), np.zeros(settings.rows, np.int32)
    distance = divergence(config, "reverse" if name == "on_policy" else name)
    buckets = pipelines.bucket_lengths(examples, settings.buckets)

    def learn(state: TrainState, step: int, batch: TraceBatch) -> Updated:
        return distill_update(
            state, teacher, *shard_rows((batch, tags), setup.mesh), config=setup.model,
            teacher_config=study.teacher.model, optimizer=optimizer, divergence=distance,
            reduction=config.loss.reduction, tag_is_label=config.loss.tag_is_label,
        )

    def learn_on_own(state: TrainState, step: int, members: np.ndarray) -> Updated:
        batch = own_batch(study, state.params, members, buckets, step, seed)
        return learn(state, step, batch)

    def own_problems(first: int) -> Iterator[np.ndarray]:
        plan = schedule(len(study.problems), settings.steps, settings.rows, seed)
        return iter(plan[first:])

    if name == "on_policy":
        batches, update = own_problems, learn_on_own
    else:
        plan = plan_padded(examples, settings, seed, setup.text_format.pad_id)
        batches, update = plan.batches, learn
    state = init_state(start, optimizer)
    work = partial(
        train_steps, run, state, batches, update, settings, name, seed, shown="divergence"
    )
    return Trained(*run.phase(f"seed{seed}/{name}", work, like=start, steps=settings.steps))


def own_batch(
    study: Study,
    params: Any,
    members: np.ndarray,
    buckets: list[int],
    step: int,
    seed: int,
) -> TraceBatch:
    """One completion of the policy's own for each of the problems, as rows.

    Args:
      members: `[N]`, the problems' places in the study.
      buckets: lengths that rows are padded to, beside the longest possible.
    """
    text_format, model = study.setup.text_format, study.setup.model
    prompts, length = [study.prompts[i] for i in members], max(map(len, study.prompts))
    key = jax.random.fold_in(launch.run_key(seed, "rollouts"), step + 1)
    samples = sample(
        params, *pad_prompts(prompts, text_format.pad_id, length),
        np.zeros((len(prompts), 1), np.int32),
        sequence_keys(key, jnp.asarray(members), 1), Filters(), config=model,
        max_new_tokens=model.max_length - length,
        stop_ids=text_format.stop_ids, pad_id=text_format.pad_id,
    )
    written = completion_ids(np.asarray(samples.tokens), np.asarray(samples.mask))
    rows = [
        Example(tuple(prompt), (tuple(ids),))
        for prompt, ids in zip(prompts, written, strict=True)
    ]
    longest = max(row.longest for row in rows)
    bucket = next((length for length in buckets if length >= longest), model.max_length)
    return pipelines.collate(rows, bucket, range(len(rows)), len(rows), text_format.pad_id)


def run_seed(
    run: Run, study: Study, config: ml_collections.ConfigDict, seed: int
) -> dict[str, Any]:
    """Train and measure the teacher and every student of a seed."""
    few = study.demonstrations[: config.pretrain.problems]
    base = arms.train_base(run, study.setup, few, config, seed)
    teacher = train_teacher(run, study, config, seed)
    examples = teacher_examples(run, study, teacher.params, config, seed)
    policies = {"base": base, "teacher": teacher}
    for name in config.distill.students:
        if name == "hard":
            policies[name] = arms.fine_tune(
                run, study.setup, base.params, examples, name, config, seed
            )
        else:
            policies[name] = distill(
                run, study, base.params, teacher.params, examples, name, config, seed
            )
    measured = {
        name: arms.measure(
            run, study.teacher if name == "teacher" else study.setup, policy.params, name, config,
            seed,
        )
        for name, policy in policies.items()
    }
    soft = [name for name in config.distill.students if name != "hard"]
    pairs = [("teacher", "base"), ("hard", "base"), *((name, "hard") for name in soft)]
    spent = {name: policy.spent for name, policy in policies.items()}
    return arms.one_result(measured, spent, [("pass@1", *pair) for pair in pairs], seed)


def work(run: Run, study: Study, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Every seed, then the plot; returns results.json."""
    results = arms.run_seeds(study.setup, config, partial(run_seed, run, study, config))
    if jax.process_index() == 0:
        curves = reports.pass_at_k_curves(results["arms"])
        curves.savefig(run.path / "plots" / "pass_at_k.png", dpi=120)
    return results


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Run the study, or report it where it has finished."""
    launch.run_study(
        PROGRAM, config, workdir, build,
        make_data=lambda study, _: arms.identify(study),
        work=lambda run, study, *_: work(run, study, config),
        table=arms.table,
    )


if __name__ == "__main__":
    launch.start(main)
