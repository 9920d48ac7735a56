"""What a policy learns from its own attempts, right and wrong, beside rejection sampling.

    drawn = draw_attempts(run, setup, base, problems, config, seed)
    prefer(run, setup, base, drawn.pairs, config, seed)            DPO on verified pairs
    fine_tune(run, setup, base, drawn.chains, "chains", config, seed)

A chain is a problem's attempts in the order in which they were drawn, up to the first right one:
what was wrong is told so, and the next attempt follows (trial and error, T1 2501.11651).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments import launch
from experiments.arms import Trained, written_examples
from experiments.batches import plan_padded
from experiments.sft import (
    Setup,
    Updated,
    check_training,
    optimizer_config,
    train_steps,
)
from reasoning.data import pipelines
from reasoning.data.pipelines import Example, TraceBatch
from reasoning.data.self_training import preference_pairs
from reasoning.evaluation.policies import Judged, sample_and_judge
from reasoning.learning.optimizers import make_optimizer
from reasoning.learning.preferences import Preference, dpo_update, sequence_log_probs
from reasoning.learning.updates import TrainState, init_state
from reasoning.runtime.meshes import shard_rows
from reasoning.runtime.runs import Run
from reasoning.sampling.filters import Filters


class Attempts(NamedTuple):
    """Training data from a policy's samples."""

    pairs: list[Example]  # right and wrong completions
    chains: list[Example]  # attempts up to the first right one
    right: list[Example]  # the attempts that end the chains, alone


def check(config: ml_collections.ConfigDict, setup: Setup) -> None:
    """Refuse `config.attempts` and `config.dpo` where they cannot work (ValueError)."""
    for name in ("samples", "pairs", "wrong"):
        if config.attempts[name] < 1:
            raise ValueError(f"attempts.{name}={config.attempts[name]}: must be at least 1.")
    Filters(config.attempts.temperature).check()
    if not hasattr(setup.task, "merge_attempts"):
        raise ValueError(
            f"task.name={config.task.name!r}: chains of attempts are made for countdown alone."
        )
    preference(config)
    check_training(config, "dpo", setup.model)
    for name, least in (("steps", 0), ("buckets", 1), ("rows", 2)):
        if config.dpo[name] < least:
            raise ValueError(f"dpo.{name}={config.dpo[name]}: must be at least {least}.")
    if config.dpo.rows % 2:
        raise ValueError(f"dpo.rows={config.dpo.rows}: must be even, two rows for a pair.")


def preference(config: ml_collections.ConfigDict) -> Preference:
    """What `config.dpo` says of the loss."""
    dpo = config.dpo
    return Preference(
        dpo.beta, dpo.label_smoothing, dpo.length_normalised, dpo.nll_weight
    )


def draw_attempts(
    run: Run,
    setup: Setup,
    params: Any,
    problems: list[Any],
    config: ml_collections.ConfigDict,
    seed: int,
) -> Attempts:
    """Sample the problems, and make pairs and chains of what comes, as a phase of the run.

    Where there are none, the program ends with one line.
    """
    settings = config.attempts

    def work() -> tuple[None, dict[str, Any]]:
        key = jax.random.fold_in(launch.run_key(seed, "rollouts"), 0)  # rounds count from 1
        tags = np.zeros(settings.samples, int)
        filters = Filters(settings.temperature)
        judged = sample_and_judge(setup.policy(params), problems, tags, key, filters)
        ended = judged.reasons != "over_long"  # what was cut off has no end to be learned
        texts, correct = (
            [row[kept].tolist() for row, kept in zip(values, ended, strict=True)]
            for values in (judged.completions, judged.correct)
        )
        pairs = preference_pairs(texts, correct, settings.pairs, seed)
        return None, {"pairs": pairs, "chains": chains(setup, problems, judged, settings.wrong)}

    _, found = run.phase(f"seed{seed}/attempts", work)
    pairs = [
        pipelines.make_example(setup.text_format, setup.task.prompt(problem), pair)
        for problem, of_problem in zip(problems, found["pairs"], strict=True)
        for pair in of_problem
    ]
    merged, right = (
        written_examples(setup, problems, [each[i : i + 1] for each in found["chains"]])
        for i in (0, 1)
    )
    longest = setup.model.max_length
    fit = [i for i, example in enumerate(merged) if example.longest <= longest]
    drawn = Attempts(
        [example for example in pairs if example.longest <= longest],
        [merged[i] for i in fit],
        [right[i] for i in fit],
    )
    if not drawn.chains or (config.dpo.steps and not drawn.pairs):
        launch.refuse(
            f"attempts.samples={settings.samples}: the base policy of seed {seed} solves too few "
            f"of {len(problems)} problems for pairs and chains; draw more, or train it longer."
        )
    return drawn


def chains(
    setup: Setup, problems: Sequence[Any], judged: Judged, limit: int
) -> list[list[str]]:
    """For each problem its chain, and the right attempt that ends it alone.

    Args:
      limit: wrong attempts in a chain; the last ones before the right one.

    Returns:
      [] for a problem without a right attempt, or where its first one's steps do not hold.
    """
    made = []
    for problem, texts, verdicts in zip(problems, judged.completions, judged.correct, strict=True):
        first, chain = int(verdicts.argmax()), None
        if verdicts.any():
            wrong = texts[max(first - limit, 0) : first]
            chain = setup.task.merge_attempts(problem, wrong, texts[first])
        made.append([] if chain is None else [chain, texts[first]])
    return made


def prefer(
    run: Run,
    setup: Setup,
    base: Any,
    pairs: list[Example],
    config: ml_collections.ConfigDict,
    seed: int,
) -> Trained:
    """DPO from the base policy, which is also the reference."""
    settings, loss = config.dpo, preference(config)
    optimizer, tags = make_optimizer(optimizer_config(settings)), np.zeros(settings.rows, np.int32)

    def work() -> tuple[Any, dict[str, float]]:
        reference = reference_log_probs(setup, base, pairs, loss, settings.rows)

        def update(state: TrainState, step: int, batch: TraceBatch) -> Updated:
            expected = reference[batch.problem_seed, batch.slot]
            return dpo_update(
                state, *shard_rows((batch, tags, expected), setup.mesh), config=setup.model,
                optimizer=optimizer, preference=loss,
            )

        batches = plan_padded(pairs, settings, seed, setup.text_format.pad_id).batches
        state = init_state(base, optimizer)
        return train_steps(run, state, batches, update, settings, "dpo", seed, shown="margin")

    return Trained(*run.phase(f"seed{seed}/dpo", work, like=base, steps=settings.steps))


def reference_log_probs(
    setup: Setup, params: Any, pairs: list[Example], loss: Preference, rows: int
) -> np.ndarray:
    """The log-probs `[E, 2]` of E pairs under the reference policy."""
    (bucket,) = pipelines.bucket_lengths(pairs, 1)
    found = []
    for start in range(0, len(pairs), rows // 2):
        members = range(start, min(start + rows // 2, len(pairs)))
        batch = pipelines.collate(pairs, bucket, members, rows, setup.text_format.pad_id)
        log_probs = sequence_log_probs(
            setup.model, params, batch, np.zeros(rows, np.int32), loss.length_normalised
        )
        found.append(np.asarray(log_probs).reshape(-1, 2)[: len(members)])
    return np.concatenate(found)
