"""Countdown under four arms of supervised fine-tuning.

    --config=experiments/configs/countdown.py              the quickstart: minutes on two cores
    --config=experiments/configs/countdown.py:full         five seeds, and T1: an hour and a half
"""

import dataclasses

import ml_collections
from ml_collections.config_dict import placeholder

from reasoning.learning.algorithms import Algorithm
from reasoning.learning.losses import Surrogate

PRESETS = ("quickstart", "full")


def override_placeholders() -> ml_collections.ConfigDict:
    """Every field of an algorithm and its surrogate, left to the preset."""
    optional = {
        "advantage_k": int, "ema_decay": float, "reset_every": int, "entropy_target": float,
        "dual_clip": float,
    }
    fields = {
        field.name: optional.get(field.name, type(field.default))
        for kind in (Algorithm, Surrogate)
        for field in dataclasses.fields(kind)
        if field.name not in ("surrogate", "temperatures")
    }
    return ml_collections.ConfigDict({name: placeholder(kind) for name, kind in fields.items()})


def get_config(preset: str = "quickstart") -> ml_collections.ConfigDict:
    """The configuration of a preset."""
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: must be one of {', '.join(PRESETS)}.")
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.seeds = 5 if preset == "full" else 1
    config.arm = "matched"  # for experiments.sft; the quickstart runs all four

    # Three numbers to 20, targets to 40, five tries. An argument left at None is the task's own.
    config.task = ml_collections.ConfigDict()
    config.task.name = "countdown"
    config.task.arguments = ml_collections.ConfigDict(
        {
            name: placeholder(int)
            for name in ("size", "largest", "target", "tries", "limit", "practice_tries")
        }
    )

    config.model = ml_collections.ConfigDict()
    config.model.preset = "0.2m"
    config.model.num_strategies = 4
    config.model.max_length = 112
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

    # Reinforcement learning from verifiable rewards (experiments.rl).
    config.rl = ml_collections.ConfigDict()
    config.rl.algorithm = "gfpo"  # a preset of reasoning.learning.algorithms
    config.rl.override = override_placeholders()  # a field left at None is the preset's
    config.rl.steps = 20
    config.rl.problems = 4000
    config.rl.prompts = 32  # a step draws `samples` completions of so many problems
    config.rl.samples = 16
    config.rl.rounds = 1  # dynamic sampling draws so many times to fill uninformative groups
    config.rl.temperature = 1.0
    config.rl.top_k = placeholder(int)
    config.rl.top_p = placeholder(float)
    config.rl.min_p = placeholder(float)
    config.rl.min_pass = 0.0  # train on problems whose pass rate lies between the two
    config.rl.max_pass = 1.0
    config.rl.shaping = ml_collections.ConfigDict()
    config.rl.shaping.repetition_weight = 0.0
    config.rl.shaping.overlong_weight = 0.0
    config.rl.shaping.overlong_buffer = 16
    config.rl.shaping.repetition_ngram = 7  # a penalised pattern: a step written three times
    config.rl.shaping.repetition_count = 3
    config.rl.epochs = 1
    config.rl.minibatches = 1
    config.rl.microbatches = 16  # two prompts' rows at a time: on a CPU half the time of all
    config.rl.optimizer = "adamw"
    config.rl.learning_rate = 5e-4
    config.rl.warmup_steps = 5
    config.rl.weight_decay = 0.0
    config.rl.clip_norm = 1.0
    config.rl.validate_every = 10
    config.rl.validation_samples = 8
    config.rl.printed = 3  # completions shown at every validation; all are in completions.jsonl
    config.rl.max_skipped = 5  # steps in a row without a finite gradient that end the run
    config.rl.one_program = True  # False: sampling, reward and update in turn, each timed
    config.rl.workers = 0  # processes for a reward on the host

    # The quickstart's reinforced arms, at equal rollouts; an arm of 0 steps is left out.
    for name in ("grpo", "gfpo", "t1"):
        config[name] = config.rl.copy_and_resolve_references()
        config[name].algorithm = name
        config[name].steps = 0
    # The fork's update reads prompts alone: several passes over a batch of rollouts cost little.
    config.gfpo.epochs = 4
    config.gfpo.minibatches = 4
    config.gfpo.learning_rate = 2e-4
    config.gfpo.microbatches = 1
    config.grpo.steps = config.gfpo.steps = 20
    # T1 draws at temperature 1.2 and 64 samples: experiments.ablations varies both.
    config.t1.steps = 400 if preset == "full" else 0
    config.t1.problems = 5000
    config.t1.learning_rate = 7e-4
    config.t1.warmup_steps = 10
    config.t1.validate_every = 25

    # What experiments.ablations varies, and in which of the sections above.
    config.ablation = ml_collections.ConfigDict()
    config.ablation.grid = "samples"
    config.ablation.section = "t1"
    config.ablation.steps = 40

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.problems = 400
    config.evaluation.validation_problems = 100
    config.evaluation.samples_per_tag = 4
    config.evaluation.temperature = 1.0
    return config
