"""A run of seconds that every launcher accepts: it shows that things work, not how well."""

import ml_collections

from experiments.configs import countdown


def get_config() -> ml_collections.ConfigDict:
    """The countdown configuration, made tiny."""
    config = countdown.get_config()
    config.pretrain.steps = 6
    config.pretrain.problems = 100
    config.pretrain.rows = 16
    config.pretrain.buckets = 1
    config.finetune.steps = 6
    config.finetune.problems = 100
    config.finetune.rows = 16
    config.finetune.buckets = 1
    config.evaluation.problems = 12
    config.evaluation.validation_problems = 8
    config.evaluation.samples_per_tag = 2
    return config
