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
from experiments.sft import Data, Setup, evaluate, fine_tune, pretrain, set_up, training_data
from reasoning.evaluation import reports
from reasoning.evaluation.estimators import difference_estimate
from reasoning.learning.assignment import ARMS
from reasoning.runtime.runs import Run

PROGRAM = "experiments.quickstart"

# Coverage of the S tags of the first arm less S samples of the second.
COMPARED = (("matched", "mixed"), ("matched", "random"), ("matched", "fixed"))


def run_seed(
    run: Run, setup: Setup, data: Data, config: ml_collections.ConfigDict, seed: int
) -> dict[str, Any]:
    """Pre-train once, fine-tune and evaluate every arm; returns one seed's results."""
    base, pretrained = pretrain(run, setup, data, config, seed)
    arms, coverage = {}, {}
    for arm in ARMS:
        params, spent = fine_tune(run, setup, base, data, arm, config, seed)
        started = time.monotonic()
        summary = evaluate(run, setup, params, arm, setup.trained_tags(arm), config, seed)
        spent["evaluation_seconds"] = time.monotonic() - started
        arms[arm] = {**summary.figures, "training": spent}
        coverage[arm] = summary.coverage
    comparisons = {
        f"pass@S of {a} less {b}": difference_estimate(coverage[a], coverage[b]).as_dict()
        for a, b in COMPARED
    }
    return {"arms": arms, "comparisons": comparisons, "pretraining": pretrained, "seed": seed}


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Run every seed, then report."""
    setup, results = launch.prepare(PROGRAM, lambda config: set_up(config, ARMS), config, workdir)
    if results is None:
        with launch.refusals():
            data = training_data(setup, config)
            run = Run(workdir, PROGRAM, config.to_dict())
        with run:
            seeds = [
                run_seed(run, setup, data, config, seed)
                for seed in range(config.seed, config.seed + config.num_seeds)
            ]
            results = seeds[0] if len(seeds) == 1 else reports.over_seeds(seeds)
            reports.plot_run(run.path, setup.task.strategies, results)
            run.finish(results)
    print(reports.table(results))
    print(f"plots: {workdir}/plots")


if __name__ == "__main__":
    launch.start(main)
