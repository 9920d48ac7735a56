"""Ablations of reinforcement learning: one choice varied, everything else and the start equal.

    python -m experiments.ablations --workdir=runs/samples --config.ablation.grid=samples
    python -m experiments.ablations --workdir=runs/clip --config.ablation.grid=clip --config.seeds=5

Every variant starts from the same fine-tuned policies (`config.arm`), one per seed, and trains all
seeds at once. Grids: samples per prompt (T1, 2501.11651, figures 3 and 4), temperature (table 2),
penalty (table 3), reference, clip-higher (2503.14476), positions that train (2510.05132).
"""

from typing import Any

import ml_collections

from experiments import launch
from experiments.rl import RLData, check_rl, check_seeds, reinforce, rl_problems
from experiments.sft import Setup, evaluate, fine_tune_seeds, set_up, training_data
from reasoning.runtime.runs import Run

PROGRAM = "experiments.ablations"

# Grid -> variant -> what it changes in the section `config.ablation.section`.
GRIDS: dict[str, dict[str, dict[str, Any]]] = {
    "samples": {f"K={k}": {"samples": k} for k in (4, 16, 64)},
    "temperature": {
        **{f"T={t}": {"temperature": t} for t in (0.9, 1.0, 1.1, 1.2, 1.3)},
        "T=1.2 min-p": {"temperature": 1.2, "min_p": 0.05},
    },
    "penalty": {kind: {"override.penalty": kind} for kind in ("before", "after", "none")},
    "reference": {
        "ema": {"override.ema_decay": 0.992},
        "frozen": {"override.ema_decay": 1.0},
        "none": {"override.kl_coef": 0.0},
    },
    "clip": {
        "clip 0.2": {"epochs": 2, "minibatches": 2},
        "clip-higher": {"epochs": 2, "minibatches": 2, "override.clip_high": 0.28},
    },
    "positions": {
        "all tokens": {"override.positions": "all"},
        "fork": {"override.positions": "fork"},
    },
}


def variants(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """The configuration of each variant of the grid, by its name.

    Raises:
      ValueError: an unknown grid or section.
    """
    grid, section = config.ablation.grid, config.ablation.section
    if grid not in GRIDS:
        raise ValueError(f"ablation.grid={grid!r}: must be one of {', '.join(GRIDS)}.")
    if section not in ("rl", "grpo", "gfpo", "t1"):
        raise ValueError(f"ablation.section={section!r}: must be rl, grpo, gfpo or t1.")
    made = {}
    for name, changes in GRIDS[grid].items():
        made[name] = config.copy_and_resolve_references()
        made[name][section].steps = config.ablation.steps
        made[name].update_from_flattened_dict(
            {f"{section}.{field}": value for field, value in changes.items()}
        )
    return made


def run_seeds(
    run: Run, setup: Setup, data: RLData, config: ml_collections.ConfigDict
) -> list[dict[str, Any]]:
    """Fine-tune every seed once, train every variant from it, evaluate; one seed's results each."""
    seeds = range(config.seed, config.seed + config.seeds)
    tags = setup.trained_tags(config.arm)
    starts, results = fine_tune_seeds(run, setup, data.supervised, config, seeds)
    policies = [{config.arm: start} for start in starts]
    for name, variant in variants(config).items():
        settings = variant[config.ablation.section]
        trained, spent = reinforce(run, setup, starts, data.problems, settings, name, seeds)
        for policy, result, params in zip(policies, results, trained, strict=True):
            policy[name] = params
            result["arms"][name] = {"training": dict(spent)}
    for seed, policy, result in zip(seeds, policies, results, strict=True):
        for name, params in policy.items():
            summary = evaluate(run, setup, params, name, tags, config, seed)
            result["arms"][name] |= summary.figures
    return results


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Train every variant of the grid, then report."""

    def build(config: ml_collections.ConfigDict) -> Setup:
        setup = set_up(config, (config.arm,))
        for variant in variants(config).values():
            check_rl(setup, variant, config.ablation.section)
            check_seeds(setup, variant, config.ablation.section)
        return setup

    def make_data(setup: Setup, config: ml_collections.ConfigDict) -> RLData:
        problems = rl_problems(setup, config[config.ablation.section], config.seed)
        return RLData(training_data(setup, config), problems)

    launch.run_program(PROGRAM, config, workdir, build, make_data, run_seeds)


if __name__ == "__main__":
    launch.start(main)
