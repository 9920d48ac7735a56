"""Countdown under four arms of supervised fine-tuning.

    --config=experiments/configs/countdown.py              the quickstart: minutes on two cores
    --config=experiments/configs/countdown.py:full         five seeds: about half an hour
"""

import ml_collections
from ml_collections.config_dict import placeholder

PRESETS = ("quickstart", "full")


def get_config(preset: str = "quickstart") -> ml_collections.ConfigDict:
    """The configuration of a preset."""
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: must be one of {', '.join(PRESETS)}.")
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.num_seeds = 5 if preset == "full" else 1
    config.arm = "matched"  # for experiments.sft; the quickstart runs all four

    # Three numbers to 12, targets to 40, six tries. An argument left at None is the task's own.
    config.task = ml_collections.ConfigDict()
    config.task.name = "countdown"
    config.task.arguments = ml_collections.ConfigDict(
        {name: placeholder(int) for name in ("size", "largest", "target", "tries", "limit")}
    )

    config.model = ml_collections.ConfigDict()
    config.model.preset = "0.2m"
    config.model.num_strategies = 4
    config.model.max_length = 96
    # A field left at None is the preset's (reasoning.models.config.ModelConfig).
    for name in ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff"):
        config.model[name] = placeholder(int)
    for name in ("position_encoding", "remat", "dtype"):
        config.model[name] = placeholder(str)
    for name in ("tied_head", "scan_layers"):
        config.model[name] = placeholder(bool)
    config.model.rope_theta = placeholder(float)

    # One base policy: correct traces in random order, all under tag 0.
    config.pretrain = ml_collections.ConfigDict()
    config.pretrain.steps = 2500
    config.pretrain.problems = 20_000
    config.pretrain.rows = 32
    config.pretrain.buckets = 3  # row lengths that batches are padded to
    config.pretrain.optimizer = "muon"
    config.pretrain.learning_rate = 1e-2
    config.pretrain.warmup_steps = 20
    config.pretrain.weight_decay = 0.01
    config.pretrain.clip_norm = 1.0

    # Each arm starts from it: correct traces of the strategies, several per problem.
    config.finetune = config.pretrain.copy_and_resolve_references()
    config.finetune.steps = 1000
    config.finetune.learning_rate = 5e-3

    # What the paper leaves open and how the tags start.
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
    return config
