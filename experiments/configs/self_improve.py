"""A weak policy that teaches itself countdown (experiments.self_improve).

    --config=experiments/configs/self_improve.py           quick: minutes on two cores
    --config=experiments/configs/self_improve.py:full      three seeds, and RFT
    --config=experiments/configs/self_improve.py:star      STaR, from a base policy that knows hints
"""

import ml_collections
from ml_collections.config_dict import placeholder

from experiments.configs import countdown

PRESETS = ("quick", "full", "star")


def improve_settings() -> ml_collections.ConfigDict:
    """Rounds of rejection sampling and fine-tuning."""
    improve = ml_collections.ConfigDict()
    improve.methods = ("rest_em",)  # of METHODS: star, rft, rest_em
    improve.rounds = 2
    improve.hinted = 0.25  # for star, this share of demonstrations comes once more, answer told
    improve.override = ml_collections.ConfigDict(
        {
            "samples": placeholder(int), "temperature": placeholder(float),
            "top_k": placeholder(int), "cap": placeholder(int), "start": placeholder(str),
            "demonstrations": placeholder(bool), "rationalise": placeholder(bool),
        }
    )
    return improve


def attempts_settings() -> ml_collections.ConfigDict:
    """Samples of the weak policy, right and wrong: for pairs and for chains of attempts."""
    attempts = ml_collections.ConfigDict()
    attempts.samples = 8
    attempts.temperature = 1.0
    attempts.pairs = 2  # of a problem
    attempts.wrong = 2  # attempts before the right one in a chain, at most
    return attempts


def preference_settings() -> ml_collections.ConfigDict:
    """DPO on verified pairs; 0 steps leave it out."""
    dpo = countdown.training_settings()
    del dpo.problems  # it learns from pairs of the problems of `finetune`
    del dpo.pack, dpo.microbatches  # a pair is two whole rows
    dpo.steps = 300
    dpo.learning_rate = 5e-4
    dpo.optimizer = "adamw"
    dpo.beta = 0.1
    dpo.label_smoothing = 0.0
    dpo.length_normalised = False
    dpo.nll_weight = 1.0  # of the right completions' NLL in the loss
    return dpo


def get_config(preset: str = "quick") -> ml_collections.ConfigDict:
    """The configuration of a preset."""
    countdown.check_preset(preset, PRESETS)
    config = ml_collections.ConfigDict()
    # The settings were chosen on seed 0: the full scale has other seeds and held-out problems.
    config.seed = 1 if preset == "full" else 0
    config.seeds = 3 if preset == "full" else 1
    config.arm = "mixed"  # one tag: there are no strategies here
    config.task = countdown.task_settings()
    config.task.arguments.practice_tries = 1  # demonstrations that hit at the first try
    config.corpus = countdown.corpus_settings()
    config.judge = countdown.judge_settings()
    config.model = countdown.model_settings()
    config.model.num_strategies = 1
    config.model.max_length = 80
    config.mesh = countdown.mesh_settings()
    # The weak policy: few demonstrations, few steps.
    config.pretrain = countdown.training_settings()
    config.pretrain.steps = 2000
    config.pretrain.problems = 4000
    # Every fine-tuning from it, on completions to so many training problems.
    config.finetune = countdown.training_settings()
    config.finetune.steps = 1000
    config.finetune.problems = 4000
    config.finetune.learning_rate = 5e-3
    config.loss = countdown.loss_settings()
    config.improve = improve_settings()
    config.attempts = attempts_settings()
    config.dpo = preference_settings()
    config.evaluation = countdown.evaluation_settings()
    config.evaluation.samples_per_tag = 8
    if preset == "full":
        config.improve.methods = ("rft", "rest_em")
    if preset == "star":
        config.improve.methods = ("star",)
    return config
