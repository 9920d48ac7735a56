r"""Plain fine-tuning blurs several solutions into one; set-supervised fine-tuning keeps them apart.

    python -m experiments.quickstart --workdir=runs/quickstart
    python -m experiments.quickstart --workdir=runs/first --config=experiments/configs/smoke.py
    python -m experiments.quickstart --workdir=runs/full \
        --config=experiments/configs/countdown.py:full

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

import dataclasses
import time
from functools import partial
from typing import Any

import ml_collections

from experiments import launch
from experiments.rl import Problems, check_rl, reinforce, rl_problems
from experiments.sft import Data, Setup, evaluate, fine_tune, pretrain, set_up, training_data
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
# Paired differences on the held-out problems: a figure of an arm, less one of another.
COMPARED = (
    (("pass@S", "matched"), ("pass@S", "mixed")),
    (("pass@S", "matched"), ("pass@S", "random")),
    (("pass@S", "matched"), ("pass@S", "fixed")),
    (("pass@S", "matched_gfpo"), ("pass@S", "matched")),
    (("pass@1_own_tag", "matched_gfpo"), ("pass@1", "matched")),
    (("pass@1_own_tag", "matched_gfpo"), ("pass@1_best_tag", "matched")),
    (("pass@1_own_tag", "matched_gfpo"), ("pass@1_own_tag", "mixed_grpo")),
    (("pass@1_own_tag", "mixed_grpo"), ("pass@1_own_tag", "mixed")),
    (("pass@1_own_tag", "mixed_t1"), ("pass@1_own_tag", "mixed")),
)


@dataclasses.dataclass(frozen=True)
class QuickstartData:
    """What the four arms train on, and the problems of each section of RL."""

    supervised: Data
    problems: dict[str, Problems]


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
        f"{figure} of {arm} less {less} of {other}": difference_estimate(
            summaries[arm].per_problem[figure], summaries[other].per_problem[less]
        ).as_dict()
        for (figure, arm), (less, other) in COMPARED
        if arm in summaries and other in summaries
    }
    arms = {arm: {**summaries[arm].figures, "training": spent[arm]} for arm in policies}
    return {"arms": arms, "comparisons": comparisons, "pretraining": spent["base"], "seed": seed}


def reinforce_arms(
    run: Run,
    setup: Setup,
    problems: dict[str, Problems],
    policies: dict[str, Any],
    spent: dict[str, Any],
    config: ml_collections.ConfigDict,
    seed: int,
) -> None:
    """Add the reinforced arms to a seed's policies, and what they took."""
    for arm in reinforced_arms(config):
        start, section = REINFORCED[arm]
        (policies[arm],), spent[arm] = reinforce(
            run, setup, [policies[start]], problems[section], config[section], arm, [seed]
        )


def run_seeds(
    run: Run, setup: Setup, data: QuickstartData, config: ml_collections.ConfigDict
) -> list[dict[str, Any]]:
    """Fine-tune, reinforce and evaluate every arm, seed after seed; one seed's results each.

    So the first seed of many gives the figures of that seed alone.
    """

    def one_seed(seed: int) -> tuple[None, dict[str, Any]]:
        policies, spent = train_arms(run, setup, data.supervised, config, seed)
        reinforce_arms(run, setup, data.problems, policies, spent, config, seed)
        return None, evaluate_arms(run, setup, policies, spent, config, seed)

    seeds = range(config.seed, config.seed + config.seeds)
    return [run.phase(f"seed{seed}/results", partial(one_seed, seed))[1] for seed in seeds]


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Run every seed, then report."""

    def build(config: ml_collections.ConfigDict) -> Setup:
        setup = set_up(config, ARMS)
        for arm in reinforced_arms(config):
            check_rl(setup, config, REINFORCED[arm][1])
        return setup

    def make_data(setup: Setup, config: ml_collections.ConfigDict) -> QuickstartData:
        sections = [REINFORCED[arm][1] for arm in reinforced_arms(config)]
        problems = {name: rl_problems(setup, config[name], config.seed) for name in sections}
        return QuickstartData(training_data(setup, config), problems)

    launch.run_program(PROGRAM, config, workdir, build, make_data, run_seeds)


if __name__ == "__main__":
    launch.start(main)
