"""Group words: the product of n group elements, by five strategies that all reach it.

    --config=experiments/configs/group_words.py        S3, eight elements
    --config=experiments/configs/group_words.py:S5     another group: S3, S4, S5, A5 or C2 to C12
"""

import ml_collections

from experiments.configs import countdown


def get_config(group: str = "S3") -> ml_collections.ConfigDict:
    """The countdown configuration with another task."""
    config = countdown.get_config()
    config.task.name = "group_words"
    config.task.arguments = ml_collections.ConfigDict({"group": group, "length": 8})
    config.model.num_strategies = 5
    return config
