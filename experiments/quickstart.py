"""Plain fine-tuning blurs several solutions into one; set-supervised fine-tuning keeps them apart.

    python -m experiments.quickstart --workdir=runs/quickstart

1. A base policy learns countdown's moves from correct traces in random order: no strategies.
2. Four arms fine-tune it on the same problems, each with the traces of those of four strategies
   that solve it. Which strategy wrote a trace is hidden. The arms differ in one thing only, the
   strategy tag under which a trace is trained (`reasoning.learning.assignment`):
   one tag for all (mixed), a random tag (random), its place in the list (fixed), or the tag under
   which the policy finds it most likely (matched: set-supervised fine-tuning, arXiv 2510.05132).
3. If the configuration gives them steps, reinforced arms go on with the verifier's reward: from
   the matched policy, global forking policy optimization (matched_gfpo) trains nothing but the
   choice of the tag; from the mixed one, GRPO (mixed_grpo) and T1's recipe (mixed_t1) train every
   token.
4. On held-out problems: does a tag select a strategy (mutual information), do the S tags together
   solve more than S samples of one blurred policy (pass@S), and does the policy choose its tag
   well (pass@1 of its own tag)?
"""

import time
from typing import Any

import ml_collections

from experiments import launch
from experiments.rl import Problems, check_rl, reinforce, rl_problems
from experiments.sft import Data, Setup, evaluate, fine_tune, pretrain, set_up, training_data
from reasoning.evaluation import reports
from reasoning.evaluation.estimators import difference_estimate
from reasoning.learning.assignment import ARMS
from reasoning.runtime.runs import Run

PROGRAM = "experiments.quickstart"

# Reinforced arm -> the arm it starts from, and the configuration's section of its settings.
REINFORCED = {
    "mixed_grpo": ("mixed", "grpo"),
    "matched_gfpo": ("matched", "gfpo"),
    "mixed_t1": ("mixed", "t1"),
}
# Paired differences on the held-out problems: figure, first arm, second arm.
COMPARED = (
    ("pass@S", "matched", "mixed"),
    ("pass@S", "matched", "random"),
    ("pass@S", "matched", "fixed"),
    ("pass@S", "matched_gfpo", "matched"),
    ("pass@1_own_tag", "matched_gfpo", "matched"),
    ("pass@1_own_tag", "matched_gfpo", "mixed_grpo"),
    ("pass@1_own_tag", "mixed_grpo", "mixed"),
    ("pass@1_own_tag", "mixed_t1", "mixed"),
)


def reinforced_arms(config: ml_collections.ConfigDict) -> list[str]:
    """The reinforced arms that the configuration asks for: those of at least one step."""
    return [arm for arm, (_, section) in REINFORCED.items() if config[section].steps]


def train_arms(
    run: Run, setup: Setup, data: Data, config: ml_collections.ConfigDict, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pre-train once and fine-tune every arm from it; returns the policies and what they took."""
    base, pretrained = pretrain(run, setup, data, config, seed)
    policies, spent = {}, {"base": pretrained}
    for arm in ARMS:
        policies[arm], spent[arm] = fine_tune(run, setup, base, data, arm, config, seed)
    return policies, spent


def evaluate_arms(
    run: Run,
    setup: Setup,
    policies: dict[str, Any],
    spent: dict[str, Any],
    config: ml_collections.ConfigDict,
    seed: int,
) -> dict[str, Any]:
    """One seed's results: every arm's figures, and the paired differences."""
    summaries = {}
    for arm, params in policies.items():
        started = time.monotonic()
        tags = setup.trained_tags(REINFORCED.get(arm, (arm,))[0])
        summaries[arm] = evaluate(run, setup, params, arm, tags, config, seed)
        spent[arm]["evaluation_seconds"] = time.monotonic() - started
    comparisons = {
        f"{figure} of {a} less {b}": difference_estimate(
            summaries[a].per_problem[figure], summaries[b].per_problem[figure]
        ).as_dict()
        for figure, a, b in COMPARED
        if a in summaries and b in summaries
    }
    arms = {arm: {**summaries[arm].figures, "training": spent[arm]} for arm in policies}
    return {"arms": arms, "comparisons": comparisons, "pretraining": spent["base"], "seed": seed}


def run_seeds(
    run: Run, setup: Setup, data: Data, problems: Problems, config: ml_collections.ConfigDict
) -> list[dict[str, Any]]:
    """Fine-tune seed by seed, reinforce all seeds at once, evaluate; one seed's results each."""
    seeds = range(config.seed, config.seed + config.seeds)
    policies, spent = zip(
        *(train_arms(run, setup, data, config, seed) for seed in seeds), strict=True
    )
    for arm in reinforced_arms(config):
        start, section = REINFORCED[arm]
        reinforced, took = reinforce(
            run, setup, [p[start] for p in policies], problems, config[section], arm, seeds
        )
        for i, params in enumerate(reinforced):
            policies[i][arm], spent[i][arm] = params, dict(took)
    return [
        evaluate_arms(run, setup, policies[i], spent[i], config, seed)
        for i, seed in enumerate(seeds)
    ]


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Run every seed, then report."""

    def build(config: ml_collections.ConfigDict) -> Setup:
        setup = set_up(config, ARMS)
        for arm in reinforced_arms(config):
            check_rl(setup, config, REINFORCED[arm][1])
        return setup

    setup, results = launch.prepare(PROGRAM, build, config, workdir)
    if results is None:
        with launch.refusals():
            data = training_data(setup, config)
            problems = rl_problems(setup, config.grpo, config.seed)
            run = Run(workdir, PROGRAM, config.to_dict())
        with run:
            seeds = run_seeds(run, setup, data, problems, config)
            results = seeds[0] if len(seeds) == 1 else reports.over_seeds(seeds)
            reports.plot_run(run.path, setup.task.strategies, results)
            run.finish(results)
    print(reports.table(results))
    print(f"plots: {workdir}/plots")


if __name__ == "__main__":
    launch.start(main)
