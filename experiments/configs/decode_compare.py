"""Ways of decoding, compared on one task at equal tokens.

    --config=experiments/configs/decode_compare.py                    words of S4: minutes
    --config=experiments/configs/decode_compare.py:multiplication     or expressions
    --config=experiments/configs/decode_compare.py:countdown          under matched tags
    --config=experiments/configs/decode_compare.py:S4,full            three seeds, more problems
"""

import ml_collections
from ml_collections.config_dict import placeholder

from experiments.configs import countdown

# Task: (name, arguments, strategies that its tags stand for, fine-tuning steps).
TASKS = {
    "S4": ("group_words", {"group": "S4", "length": 5}, ("left", "right", "tree"), 1200),
    "multiplication": (
        "multiplication", {}, ("schoolbook", "columns", "distributive"), 1500
    ),
    "expressions": ("expressions", {}, ("postorder", "levels", "shift_reduce"), 1500),
    "countdown": ("countdown", {}, (), 1000),
}


def get_config(preset: str = "S4") -> ml_collections.ConfigDict:
    """The configuration of a task, at a quick scale or in full; of another name, ValueError."""
    task, _, scale = preset.partition(",")
    if task not in TASKS or scale not in ("", "full"):
        raise ValueError(
            f"preset={preset!r}: must be one of {', '.join(TASKS)}, with ,full for all of it, as "
            "--config=FILE:PRESET."
        )
    config = countdown.fine_tuning_config()
    name, arguments, strategies, steps = TASKS[task]
    config.task.name = name
    if strategies:  # a tag for each from the start: no base policy, nothing to match
        config.arm = "fixed"
        config.task.arguments = ml_collections.ConfigDict(arguments)
        config.task.strategies = strategies
        config.pretrain.steps = 0
        config.model.num_strategies = len(strategies)
        config.finetune.steps = steps
        config.finetune.learning_rate = 3e-3
    config.seeds = 3 if scale else 1
    config.evaluation.problems = 400 if scale else 200
    config.evaluation.validation_problems = 100

    compare = config.compare = ml_collections.ConfigDict()
    compare.named = bool(strategies)  # tags stand for the strategies; False: config.arm assigns
    compare.samples = 12  # a problem's, of all strategies together
    compare.spare = 1.5  # so many times its share of samples is held of each tag
    compare.branches = 8  # of CoT-decoding under one tag, and beams
    compare.floor = 0.02  # of the probability of a branch
    compare.wait = placeholder(str)  # the word that makes thinking go on; None: no such row
    return config
