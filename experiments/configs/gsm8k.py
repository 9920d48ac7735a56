"""GSM8K from nothing, the whole path on two cores: tokenizer, fine-tuning, RL with the verifier.

    --config=experiments/configs/gsm8k.py --config.corpus.path=DIR    with train.jsonl, test.jsonl

A model of this size learns the form of an answer and little arithmetic; the same flags train an
imported one (`--config.model.directory=DIR`).
"""

import ml_collections

from experiments.configs import countdown


def get_config() -> ml_collections.ConfigDict:
    """The configuration."""
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
    return config
