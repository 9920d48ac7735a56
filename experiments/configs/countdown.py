"""Countdown under four arms of supervised fine-tuning.

    --config=experiments/configs/countdown.py              the quickstart: minutes on two cores
    --config=experiments/configs/countdown.py:full         five seeds: half an hour
"""

import ml_collections

PRESETS = ("quickstart", "full")


def get_config(preset: str = "quickstart") -> ml_collections.ConfigDict:
    """The configuration of a preset."""
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: must be one of {', '.join(PRESETS)}.")
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.num_seeds = 1
    config.arm = "matched"  # for experiments.sft; the quickstart runs all four

    config.task = ml_collections.ConfigDict()
    config.task.name = "countdown"
    config.task.arguments = ml_collections.ConfigDict(
        {"size": 3, "largest": 12, "target": 40, "tries": 4, "limit": 40}
    )

    config.model = ml_collections.ConfigDict()
    config.model.preset = "0.1m"
    config.model.num_strategies = 4
    config.model.max_length = 80

    # One base policy: correct traces in random order, all under tag 0.
    config.pretrain = ml_collections.ConfigDict()
    config.pretrain.steps = 2500
    config.pretrain.problems = 20_000
    config.pretrain.rows = 32
    config.pretrain.buckets = 3  # row lengths that batches are padded to
    config.pretrain.optimizer = "muon"
    config.pretrain.learning_rate = 1e-2
    config.pretrain.warmup_steps = 20

    # Each arm starts from it: correct traces of the strategies, several per problem.
    config.finetune = ml_collections.ConfigDict()
    config.finetune.steps = 1000
    config.finetune.problems = 20_000
    config.finetune.rows = 32
    config.finetune.buckets = 3
    config.finetune.optimizer = "muon"
    config.finetune.learning_rate = 5e-3
    config.finetune.warmup_steps = 20

    # What the paper leaves open (METHODS 1.2) and how the tags start.
    config.loss = ml_collections.ConfigDict()
    config.loss.reduction = "token_mean"  # or sequence_mean, set_sum
    config.loss.tag_is_label = True  # the policy also learns to write the tag
    config.loss.match_tokens = 30  # L: trace tokens that the matching cost reads
    config.loss.tag_noise = 1.0  # how far apart the tags start, in embedding deviations

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.problems = 400
    config.evaluation.validation_problems = 100
    config.evaluation.samples_per_tag = 4
    config.evaluation.temperature = 1.0

    if preset == "full":
        config.num_seeds = 5
    return config
