"""Plain fine-tuning blurs several solutions into one; set-supervised fine-tuning keeps them apart.

    python -m experiments.quickstart --workdir=runs/quickstart

1. A base policy learns countdown's moves from correct traces in random order: no strategies.
2. Four arms fine-tune it on the same problems, each with the traces of those of four strategies
   that solve it. Which strategy wrote a trace is hidden. The arms differ in one thing only, the
   strategy tag under which a trace is trained (`reasoning.learning.assignment`):
   one tag for all (mixed), a random tag (random), its place in the list (fixed), or the tag under
   which the policy finds it most likely (matched: set-supervised fine-tuning, arXiv 2510.05132).
3. On held-out problems: does a tag select a strategy (mutual information), and do the S tags
   together solve more than S samples of one blurred policy (pass@S)?
"""

import time
from typing import Any

import ml_collections

from experiments import launch
from experiments.sft import Setup, evaluate, fine_tune, pretrain, set_up
from reasoning.data.pipelines import strategy_examples
from reasoning.evaluation import reports
from reasoning.evaluation.estimators import difference_estimate, runs_estimate
from reasoning.learning.assignment import ARMS
from reasoning.runtime.runs import Run

# Coverage of the S tags of the first arm less S samples of the second.
COMPARED = (("matched", "mixed"), ("matched", "random"), ("matched", "fixed"))


def run_seed(
    run: Run, setup: Setup, config: ml_collections.ConfigDict, seed: int
) -> dict[str, Any]:
    """Pre-train once, fine-tune and evaluate every arm; returns one seed's results."""
    base, pretrained = pretrain(run, setup, config, seed)
    examples = strategy_examples(setup.task, setup.tokenizer, seed, config.finetune.problems)
    arms, coverage = {}, {}
    for arm in ARMS:
        params, spent = fine_tune(run, setup, base, examples, arm, config, seed)
        started = time.monotonic()
        summary = evaluate(run, setup, params, arm, config, seed)
        spent["evaluation_seconds"] = time.monotonic() - started
        arms[arm] = {**summary.figures, "training": spent}
        coverage[arm] = summary.coverage
    comparisons = {
        f"pass@S of {a} less {b}": difference_estimate(coverage[a], coverage[b]).as_dict()
        for a, b in COMPARED
    }
    return {"arms": arms, "comparisons": comparisons, "pretraining": pretrained, "seed": seed}


def over_seeds(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Each figure's mean and interval over seeds, beside the results of every seed."""

    def mean(entries: list[dict[str, Any]]) -> dict[str, Any]:
        estimate = runs_estimate([entry["value"] for entry in entries]).as_dict()
        extra = {name: entries[0][name] for name in ("maximum",) if name in entries[0]}
        if extra:
            extra["share"] = estimate["value"] / extra["maximum"]
        return {**estimate, **extra}

    def collect(parts: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            name: mean([part[name] for part in parts])
            for name, entry in parts[0].items()
            if isinstance(entry, dict) and "value" in entry
        }

    arms = {arm: collect([result["arms"][arm] for result in results]) for arm in ARMS}
    comparisons = collect([result["comparisons"] for result in results])
    return {"arms": arms, "comparisons": comparisons, "seeds": results}


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Run every seed, then report."""
    setup, results = launch.prepare(set_up, config, ARMS, workdir)
    if results is None:
        with Run(workdir, config.to_dict()) as run:
            seeds = [
                run_seed(run, setup, config, seed)
                for seed in range(config.seed, config.seed + config.num_seeds)
            ]
            results = seeds[0] if len(seeds) == 1 else over_seeds(seeds)
            reports.plot_run(run.path, setup.task.strategies, seeds[0])
            run.finish(results)
    print(reports.table(results))
    print(f"plots: {workdir}/plots")


if __name__ == "__main__":
    launch.start(main)
