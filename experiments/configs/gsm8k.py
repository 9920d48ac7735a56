"""GSM8K from nothing, the whole path on two cores: tokenizer, fine-tuning, RL with the verifier.

    --config=experiments/configs/gsm8k.py             a model of 3M parameters from nothing, which
                                                      learns the form of an answer, not arithmetic
    --config=experiments/configs/gsm8k.py:imported    with --config.model.directory=DIR, of an
                                                      instruct model: RL at once, in its chat format

Both read train.jsonl and test.jsonl of --config.corpus.path=DIR, or download them.
"""

import ml_collections

from experiments.configs import countdown

PRESETS = ("small", "imported")


def get_config(preset: str = "small") -> ml_collections.ConfigDict:
    """The configuration of a preset."""
    countdown.check_preset(preset, PRESETS)
    config = countdown.get_config()
    config.arm = "mixed"
    config.corpus.name = "gsm8k"
    config.corpus.directory = "runs/corpora"
    config.corpus.template = "Question: {question}\nAnswer:"

    config.model.preset = "3m"
    config.model.num_strategies = 1  # a question of GSM8K has a single trace
    config.model.max_length = 640

    config.pretrain.steps = 0
    config.finetune.steps = 400
    config.finetune.problems = 7000
    config.finetune.rows = 16
    config.finetune.buckets = 6
    config.finetune.learning_rate = 3e-3

    config.rl.algorithm = "grpo"
    config.rl.steps = 24
    config.rl.problems = 2000
    config.rl.prompts = 8
    config.rl.samples = 8
    config.rl.microbatches = 4
    config.rl.reward = "host"
    config.rl.validate_every = 12
    config.rl.validation_samples = 4
    config.rl.printed = 2

    # Of the run itself; experiments.evaluate with evaluation.problems=1319 scores the whole test.
    config.evaluation.problems = 200
    config.evaluation.validation_problems = 50
    config.evaluation.samples_per_tag = 1
    return import_model(config) if preset == "imported" else config


def import_model(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Rates and lengths for a model that knows much already."""
    config.corpus.template = (
        "{question}\nThink step by step, and give the final number in \\boxed{}."
    )
    config.model.chat = True
    config.model.max_length = 1536
    config.model.remat = "full"
    config.model.dtype = "bfloat16"
    # Where it is wanted: the rate of s1 (2501.19393), on whose recipe SSFT (2510.05132) builds.
    config.finetune.steps = 0
    config.finetune.optimizer = "adamw"
    config.finetune.learning_rate = 1e-5
    config.finetune.weight_decay = 1e-4
    config.rl.learning_rate = 1.5e-6  # T1 (2501.11651)
    config.rl.steps = 200
    config.rl.prompts = 32
    config.rl.problems = 6000
    config.rl.microbatches = 32
    config.rl.validate_every = 20
    return config
