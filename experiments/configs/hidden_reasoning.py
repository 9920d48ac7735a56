"""Hidden reasoning: S3 words of eight elements, bare answers and full traces under one tag.

    --config=experiments/configs/hidden_reasoning.py         one seed, minutes on two cores
    --config=experiments/configs/hidden_reasoning.py:full    three seeds
"""

import ml_collections

from experiments.configs import countdown

PRESETS = ("quick", "full")


def hidden_settings() -> ml_collections.ConfigDict:
    """What the policy learns from, and how it is decoded."""
    hidden = ml_collections.ConfigDict()
    hidden.direct_share = 0.55  # of the training problems; the rest have the steps
    hidden.signs = ("=", ".")  # a step has any of them in place of the first
    hidden.samples = 10  # of a problem at temperature 1, for the vote
    hidden.branches = (2, 3, 4, 6, 10)  # first tokens that CoT-decoding goes on from
    hidden.floor = 0.02  # the least probable first token that the floor lets pass
    return hidden


def get_config(preset: str = "quick") -> ml_collections.ConfigDict:
    """The configuration of a preset."""
    countdown.check_preset(preset, PRESETS)
    config = countdown.fine_tuning_config()
    config.seeds = 3 if preset == "full" else 1
    config.arm = "mixed"
    config.task.name = "group_words"
    config.task.strategies = ("direct", "left")  # the two kinds of completion
    config.task.arguments = ml_collections.ConfigDict({"group": "S3", "length": 8})
    config.model.num_layers = 2  # of width 64: 0.13M parameters
    config.model.num_strategies = 1  # every row has it, so that it tells nothing
    config.model.max_length = 44
    config.hidden = hidden_settings()

    config.pretrain.steps = 0
    config.finetune.steps = 800
    config.finetune.problems = 51_200  # each is read once
    config.finetune.rows = 64
    config.finetune.buckets = 1  # every batch is a mixture of both kinds of row
    config.finetune.learning_rate = 5e-3
    # Else the noise of the last batches decides which kind of opening is the likelier one.
    config.finetune.final_share = 0.0

    config.rl = countdown.rl_settings()
    config.rl.algorithm = "dr_grpo"
    config.rl.steps = 60
    config.rl.problems = 2000
    config.rl.prompts = 32
    config.rl.samples = 8
    config.rl.microbatches = 4
    config.rl.learning_rate = 1e-3
    config.rl.validate_every = 20
    config.rl.validation_samples = 4
    config.rl.printed = 2

    config.evaluation.problems = 512
    config.evaluation.validation_problems = 64
    return config
