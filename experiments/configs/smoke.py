"""A tiny run of sft, rl, quickstart or ablations: it shows that things work, not how well."""

import ml_collections

from experiments.configs import countdown


def get_config() -> ml_collections.ConfigDict:
    """The countdown configuration, made tiny."""
    config = countdown.get_config()
    config.model.preset = "0.01m"
    for phase in (config.pretrain, config.finetune):
        phase.steps, phase.problems, phase.rows, phase.buckets = 6, 100, 16, 1
        phase.microbatches = 1
    for rl in (config.rl, config.grpo, config.gfpo, config.t1):
        rl.prompts, rl.samples, rl.problems, rl.validate_every = 4, 4, 50, 1
        rl.microbatches = 1
    config.rl.steps = config.grpo.steps = config.gfpo.steps = 2
    config.ablation.steps = 2
    config.evaluation.problems = 12
    config.evaluation.validation_problems = 8
    config.evaluation.samples_per_tag = 2
    return config
