"""Supervised fine-tuning on several traces per problem: any task, any arm, any size.

    python -m experiments.sft --workdir=runs/random --config.arm=random

Pre-trains a base policy that knows the task's moves but follows no strategy, fine-tunes it under
one arm (`reasoning.learning.assignment`), evaluates it on held-out problems and writes the run
directory (`reasoning.runtime.runs`).
"""

import dataclasses
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments import launch
from reasoning.data import pipelines
from reasoning.data.tasks import make_task
from reasoning.data.tasks.base import Task, distinct_problems
from reasoning.data.tokenizers import Tokenizer, train_tokenizer
from reasoning.evaluation import reports
from reasoning.evaluation.policies import Policy, Summary, sample_and_judge, summarise
from reasoning.learning import assignment
from reasoning.learning.losses import check_reduction
from reasoning.learning.optimizers import OptimizerConfig, make_optimizer
from reasoning.learning.updates import init_state, sft_update
from reasoning.models.config import ModelConfig, make_config
from reasoning.models.strategies import spread_strategies
from reasoning.models.transformer import init_params
from reasoning.runtime.runs import Progress, Run
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG, check_lengths


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a configuration describes, built and checked before anything is trained."""

    task: Task
    tokenizer: Tokenizer
    model: ModelConfig
    prompt_length: int
    test: list[Any]
    validation: list[Any]

    def policy(self, params: Any) -> Policy:
        """The policy with these parameters; a completion may fill the rest of the context."""
        room = self.model.max_length - self.prompt_length
        return Policy(params, self.model, self.tokenizer, self.task, room)


def set_up(config: ml_collections.ConfigDict, arms: tuple[str, ...]) -> Setup:
    """Build the task, the tokenizer, the model's shape and the held-out problems.

    Raises:
      ValueError: what cannot work, in one sentence that names the field and the mend.
    """
    task = make_task(config.task.name, **config.task.arguments)
    tokenizer = train_tokenizer(
        (), vocab_size=None, words=task.words, numbers="whole", max_number=task.max_number
    )
    shape = {name: value for name, value in config.model.items() if name != "preset"}
    model = make_config(config.model.preset, vocab_size=tokenizer.vocab_size, **shape)
    num_samples = config.evaluation.samples_per_tag * model.num_strategies
    for arm in dict.fromkeys((*arms, config.arm)):
        assignment.check_arm(arm, len(task.strategies), model.num_strategies)
        tags = assignment.trained_tags(arm, len(task.strategies), model.num_strategies)
        if num_samples % len(tags):
            raise ValueError(
                f"evaluation.samples_per_tag={config.evaluation.samples_per_tag}: every arm draws "
                f"{num_samples} samples a problem, which must be a multiple of the {len(tags)} "
                f"tags of arm {arm!r}; choose a multiple of {len(tags)}."
            )
    for name in ("pretrain", "finetune"):
        OptimizerConfig(name=config[name].optimizer)
        if config[name].rows < len(task.strategies):
            raise ValueError(
                f"{name}.rows={config[name].rows}: a batch must hold all traces of a problem, so "
                f"at least {len(task.strategies)} rows."
            )
    if config.num_seeds < 1:
        raise ValueError(f"num_seeds={config.num_seeds}: must be at least 1.")
    check_reduction(config.loss.reduction)
    Filters(temperature=config.evaluation.temperature).check()
    held_out = {
        split: distinct_problems(task, split, config.seed, count)
        for split, count in (
            ("test", config.evaluation.problems),
            ("validation", config.evaluation.validation_problems),
        )
    }
    prompts = [task.prompt(problem) for problems in held_out.values() for problem in problems]
    prompt_length = max(len(pipelines.prompt_ids(tokenizer, prompt)) for prompt in prompts)
    check_lengths(model, prompt_length, 1 + config.loss.match_tokens)
    return Setup(task, tokenizer, model, prompt_length, **held_out)


def train(
    run: Run,
    setup: Setup,
    params: Any,
    examples: list[pipelines.Example],
    arm: assignment.Arm,
    phase: str,
    config: ml_collections.ConfigDict,
    loss: ml_collections.ConfigDict,
    seed: int,
) -> tuple[Any, dict[str, float]]:
    """Train on the examples, each trace under the tag that the arm assigns to it.

    Returns:
      the trained parameters, and what it took: `steps`, `tokens` (labels) and `seconds`.
    """
    optimizer = make_optimizer(
        OptimizerConfig(
            name=config.optimizer,
            learning_rate=config.learning_rate,
            num_steps=config.steps,
            warmup_steps=config.warmup_steps,
        )
    )
    state = init_state(params, optimizer)
    batches = pipelines.trace_batches(
        examples,
        rows=config.rows,
        buckets=pipelines.bucket_lengths(examples, config.buckets),
        num_batches=config.steps,
        pad_id=setup.tokenizer.pad_id,
        seed=seed,
    )
    key = jax.random.key(seed)
    longest_prompt = max(len(example.prompt) for example in examples)
    progress = Progress(phase, config.steps)
    started, tokens = time.monotonic(), 0.0

    def record(step: int, metrics: dict[str, jax.Array]) -> float:
        values = jax.device_get(metrics)
        run.log_metrics(phase, step, {"seed": seed, **values})
        progress.advance(float(values["tokens"]), nll=float(values["trace_nll"]))
        return float(values["tokens"])

    waiting = None
    for step, batch in enumerate(batches):
        tags, matching = assignment.assign(
            arm,
            setup.model,
            state.params,
            batch,
            jax.random.fold_in(key, step),
            num_traces=len(setup.task.strategies),
            prefix=longest_prompt + 1 + loss.match_tokens,
            match_tokens=loss.match_tokens,
        )
        state, metrics = sft_update(
            state,
            batch,
            tags,
            config=setup.model,
            optimizer=optimizer,
            reduction=loss.reduction,
            tag_is_label=loss.tag_is_label,
        )
        # The metrics of the step before are ready: reading them does not make the device wait.
        tokens += record(*waiting) if waiting else 0.0
        waiting = step, {**metrics, **matching}
    tokens += record(*waiting) if waiting else 0.0
    progress.close()
    spent = {"steps": config.steps, "tokens": tokens, "seconds": time.monotonic() - started}
    return state.params, spent


def pretrain(
    run: Run, setup: Setup, config: ml_collections.ConfigDict, seed: int
) -> tuple[Any, dict[str, float]]:
    """The base policy: correct traces that follow no strategy, all under tag 0."""
    params = init_params(setup.model, jax.random.key(seed))
    if config.pretrain.steps == 0:
        return params, {"steps": 0, "tokens": 0.0, "seconds": 0.0}
    examples = pipelines.practice_examples(
        setup.task, setup.tokenizer, seed, config.pretrain.problems
    )
    return train(
        run, setup, params, examples, "mixed", "base", config.pretrain, config.loss, seed
    )


def fine_tune(
    run: Run,
    setup: Setup,
    base: Any,
    examples: list[pipelines.Example],
    arm: assignment.Arm,
    config: ml_collections.ConfigDict,
    seed: int,
) -> tuple[Any, dict[str, float]]:
    """The base policy fine-tuned under an arm; every arm sees the same batches."""
    start = spread_strategies(base, jax.random.key(seed), config.loss.tag_noise)
    return train(run, setup, start, examples, arm, arm, config.finetune, config.loss, seed)


def evaluate(
    run: Run,
    setup: Setup,
    params: Any,
    arm: assignment.Arm,
    config: ml_collections.ConfigDict,
    seed: int,
) -> Summary:
    """Sample the held-out problems under every tag the arm has trained, and estimate."""
    policy, num_strategies = setup.policy(params), setup.model.num_strategies
    tags = np.array(assignment.trained_tags(arm, len(setup.task.strategies), num_strategies))
    num_samples = config.evaluation.samples_per_tag * num_strategies  # of a problem, in every arm
    spread = np.repeat(tags, num_samples // len(tags))  # tag-major
    filters = Filters(temperature=config.evaluation.temperature)
    keys = jax.random.split(jax.random.key(seed), 4)
    judged = sample_and_judge(policy, setup.test, spread, keys[0], filters)
    drawn = np.full(num_strategies, OWN_TAG)
    own = sample_and_judge(policy, setup.test, drawn, keys[1], filters)
    validation = sample_and_judge(policy, setup.validation, spread, keys[2], filters)
    # Greedy completions under one tag are all alike: the tags are repeated to keep one shape.
    each = np.resize(tags, num_strategies)
    greedy = sample_and_judge(policy, setup.test, each, keys[3], Filters(temperature=0.0))
    rows = judged.rows(setup.task, setup.test)
    run.log_completions({"seed": seed, "arm": arm, **row} for row in rows)
    return summarise(policy, judged, own, greedy, validation)


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Pre-train, fine-tune under `config.arm`, evaluate, report."""
    setup, results = launch.prepare(set_up, config, (config.arm,), workdir)
    if results is None:
        with Run(workdir, config.to_dict()) as run:
            base, pretrained = pretrain(run, setup, config, config.seed)
            examples = pipelines.strategy_examples(
                setup.task, setup.tokenizer, config.seed, config.finetune.problems
            )
            params, spent = fine_tune(
                run, setup, base, examples, config.arm, config, config.seed
            )
            summary = evaluate(run, setup, params, config.arm, config, config.seed)
            results = {
                "arms": {config.arm: {**summary.figures, "training": spent}},
                "pretraining": pretrained,
            }
            reports.plot_run(run.path, setup.task.strategies, results)
            run.finish(results)
    print(reports.table(results))


if __name__ == "__main__":
    launch.start(main)
