"""What experiments.inference_scaling samples from the policies of a quickstart run.

    --config=experiments/configs/inference_scaling.py              minutes on two cores
    --config=experiments/configs/inference_scaling.py:full         twice the problems and samples

Everything else (task, model, tokenizer, seeds) is read from the run itself.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from experiments.configs import countdown

PRESETS = ("quick", "full")


def get_config(preset: str = "quick") -> ml_collections.ConfigDict:
    """The configuration of a preset."""
    countdown.check_preset(preset, PRESETS)
    full = preset == "full"
    scaling = ml_collections.ConfigDict()
    scaling.run = placeholder(str)  # the directory of a finished quickstart run
    scaling.problems = 400 if full else 200  # of the test split
    # Of thinking: T1's checkpoints, spread evenly over those kept, and the budgets in tokens.
    scaling.checkpoints = 3
    scaling.budgets = (0, 4, 8, 12, 16, 24, 32, 48, 64)
    scaling.thinking_samples = 8 if full else 4  # completions of a problem
    # Of samples: how many of a problem, and other temperatures than 1 for the mixed arm.
    scaling.samples = 64 if full else 32
    scaling.temperatures = (0.7, 1.3)
    return ml_collections.ConfigDict({"scaling": scaling})
