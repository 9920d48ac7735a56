"""Policies side by side: fine-tuned, measured on the same held-out problems, compared in pairs.

    params, spent = fine_tune(run, setup, start, examples, name, config, seed)
    measured = {name: measure(run, setup, params, name, config, seed) for ...}
    result = one_result(measured, spent, pairs=[("pass@1", "after", "before")], seed=seed)

All completions are drawn under tag 0.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import ml_collections
import numpy as np

from experiments import launch, sources
from experiments.sft import Setup, train
from reasoning.data.pipelines import Example, make_example
from reasoning.data.tasks.base import parse_completion
from reasoning.data.tasks.countdown import MISSED
from reasoning.evaluation import reports
from reasoning.evaluation.estimators import difference_estimate, mean_estimate, pass_at_k
from reasoning.evaluation.policies import Judged, sample_and_judge
from reasoning.runtime.meshes import use_mesh
from reasoning.runtime.progress import announced
from reasoning.runtime.runs import Run
from reasoning.sampling.filters import Filters

Measured = Mapping[str, Any]


class Trained(NamedTuple):
    """A policy, and what its training took."""

    params: Any
    spent: dict[str, float]


class Study(Protocol):
    """What a program's configuration describes, as far as it is alike."""

    setup: Setup
    demonstrations: list[Example]
    problems: list[Any]


def check_written_rows(setup: Setup) -> None:
    """Refuse a context that holds a policy's own rows but not their padding (ValueError)."""
    length = setup.model.max_length
    if length % 4:
        raise ValueError(
            f"model.max_length={length}: a policy's own completions fill rows up to it, which are "
            f"padded to multiples of 4; choose {length - length % 4} or {length + 4 - length % 4}."
        )


def identify(study: Study) -> object:
    """What a study's figures depend on beside its configuration."""
    setup = study.setup
    keys = [setup.task.key(problem) for problem in (*setup.test, *study.problems)]
    return setup.text_format.tokenizer.fingerprint, keys, study.demonstrations


def train_base(
    run: Run,
    setup: Setup,
    examples: list[Example],
    config: ml_collections.ConfigDict,
    seed: int,
    name: str = "base",
) -> Trained:
    """A policy from scratch, by the configuration's section `pretrain`, as a phase of the run."""
    params = sources.first_params(config, setup.model, launch.run_key(seed, "init"), setup.mesh)
    work = partial(
        train, run, setup, params, examples, "pretrain", "mixed", config, seed, name=name
    )
    phase, steps = f"seed{seed}/{name}", config.pretrain.steps
    return Trained(*run.phase(phase, work, like=params, steps=steps))


def fine_tune(
    run: Run,
    setup: Setup,
    start: Any,
    examples: list[Example],
    name: str,
    config: ml_collections.ConfigDict,
    seed: int,
) -> Trained:
    """A policy fine-tuned on examples, as a phase of the run."""
    work = partial(
        train, run, setup, start, examples, "finetune", "mixed", config, seed, name=name
    )
    phase = f"seed{seed}/{name}"
    return Trained(*run.phase(phase, work, like=start, steps=config.finetune.steps))


def written_examples(
    setup: Setup, problems: Sequence[Any], texts: Sequence[Sequence[str]]
) -> list[Example]:
    """Problems with the completions that are kept of each, as ids; those without any left out."""
    return [
        make_example(setup.text_format, setup.task.prompt(problem), kept)
        for problem, kept in zip(problems, texts, strict=True)
        if kept
    ]


def retries(judged: Judged) -> np.ndarray:
    """Which completions `[P, R]` go on after a try that failed."""

    def goes_on(text: str) -> bool:
        return any(word in MISSED for word in parse_completion(text)[0].split()[:-1])

    return np.vectorize(goes_on, otypes=[bool])(judged.completions)


def measure(
    run: Run, setup: Setup, params: Any, name: str, config: ml_collections.ConfigDict, seed: int
) -> Measured:
    """A policy's figures on the held-out problems, as a phase of the run.

    `retried` is the share of completions that go on after a failed try, `recovered` the share that
    do and are right in the end.

    Returns:
      `figures`, as results.json holds them, and values `per_problem` for paired differences.
    """

    def work() -> tuple[None, Measured]:
        settings, key = config.evaluation, launch.run_key(seed, "evaluate")

        def draw(samples: int, temperature: float) -> Judged:
            filters = Filters(temperature=temperature)
            tags = np.zeros(samples, int)
            return sample_and_judge(setup.policy(params), setup.test, tags, key, filters)

        with announced(f"{name}  evaluation on {len(setup.test)} problems"):
            judged, greedy = draw(settings.samples_per_tag, settings.temperature), draw(1, 0.0)
        rows = judged.rows(setup.task, setup.test)
        run.log_completions({"seed": seed, "arm": name, **row} for row in rows)
        return None, estimates(judged, greedy)

    return run.phase(f"seed{seed}/{name}_measured", work)[1]


def estimates(judged: Judged, greedy: Judged) -> Measured:
    """What `measure` returns of samples and of one greedy completion a problem."""
    samples, again = judged.correct.shape[1], retries(judged)
    solved = judged.correct.sum(axis=1)
    ks = [k for k in (1, 2, 4, 8, 16, 32) if k <= samples]
    per_problem = {
        "pass@1": judged.correct.mean(axis=1),
        "greedy": greedy.correct[:, 0],
        "retried": again.mean(axis=1),
        "recovered": (again & judged.correct).mean(axis=1),
        "trace_validity": judged.validity.mean(axis=1),
        f"pass@{ks[-1]}": pass_at_k(samples, solved, ks[-1]),
    }
    figures = {name: mean_estimate(values).as_dict() for name, values in per_problem.items()}
    curve = [mean_estimate(pass_at_k(samples, solved, k)).as_dict() for k in ks]
    figures |= {"pass@k": {"k": ks, "curve": curve}, "length": float(judged.lengths.mean())}
    compared = {name: values.tolist() for name, values in per_problem.items()}
    return {"figures": figures, "per_problem": compared}


def one_result(
    measured: Mapping[str, Measured],
    spent: Mapping[str, Mapping[str, float]],
    pairs: Sequence[tuple[str, str, str]],
    seed: int,
) -> dict[str, Any]:
    """One seed's results.

    Args:
      pairs: a figure and two policies, whose paired difference is estimated, the first less the
        second.
    """
    return {
        "arms": {
            name: {**entry["figures"], "training": spent[name]} for name, entry in measured.items()
        },
        "comparisons": {
            f"{figure} of {a} less {b}": difference_estimate(
                measured[a]["per_problem"][figure], measured[b]["per_problem"][figure]
            ).as_dict()
            for figure, a, b in pairs
        },
        "seed": seed,
    }


def run_seeds(
    setup: Setup, config: ml_collections.ConfigDict, one_seed: Callable[[int], dict[str, Any]]
) -> dict[str, Any]:
    """The results of every seed of a run, put together where there are several."""
    with use_mesh(setup.mesh):
        seeds = [one_seed(seed) for seed in range(config.seed, config.seed + config.seeds)]
    return seeds[0] if len(seeds) == 1 else reports.over_seeds(seeds)


def table(results: Mapping[str, Any]) -> str:
    """One line per policy and per comparison, in percent."""
    figures = next(iter(results["arms"].values()))
    solved = [name for name in figures if name.startswith("pass@") and name != "pass@k"]
    shown = [*dict.fromkeys(["pass@1", "greedy", *solved]), "retried", "recovered"]
    columns = {name: name for name in shown} | {"trace_validity": "valid steps"}
    return reports.table(results, columns)
