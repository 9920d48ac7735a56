"""Answers at once, after fillers, or after a written trace, at several depths.

    --config=experiments/configs/serial.py           S3 at two depths, one seed: minutes
    --config=experiments/configs/serial.py:groups    S3, S4 and A5 at three depths, three seeds
    --config=experiments/configs/serial.py:others    the other problems at two layers, three seeds
"""

import ml_collections

from experiments.configs import countdown

GROUPS = ("S3", "S4", "A5")
PRESETS = ("quick", "groups", "others")


def problem(
    task: str, trace: str, tokens: int, arguments: dict, trained: dict | None = None
) -> dict:
    """A problem of the study.

    Args:
      task, arguments: of `reasoning.data.tasks.make_task`.
      trace: the strategy that the third arm writes.
      tokens: that each arm trains on, prompts included.
      trained: arguments that are others for the training problems.
    """
    return {
        "task": task, "trace": trace, "tokens": tokens, "arguments": arguments,
        "trained": trained or {},
    }


def words(group: str, tokens: int) -> dict:
    """Words of five elements of a group; in training any number of them is the identity.

    Without that no policy here learns even sums of five numbers modulo 6 at once.
    """
    arguments = {"group": group, "length": 5}
    return problem("group_words", "left", tokens, arguments, {"sparse": True})


PROBLEMS = {
    "S3": words("S3", 3_000_000),  # solvable
    "S4": words("S4", 4_000_000),  # solvable, and of a size nearer to that of A5
    "A5": words("A5", 4_000_000),  # the smallest group that is not
    "squaring": problem("squaring", "squares", 2_000_000, {"smallest": 103, "largest": 127}),
    "expressions": problem("expressions", "postorder", 2_000_000, {}),
    "circuits": problem("circuits", "forward", 4_000_000, {}),
}


def get_config(preset: str = "quick") -> ml_collections.ConfigDict:
    """The configuration of a preset."""
    countdown.check_preset(preset, PRESETS)
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.seeds = 1 if preset == "quick" else 3
    config.problems = ml_collections.ConfigDict(PROBLEMS)
    config.studied = {
        "quick": ("S3",), "groups": GROUPS,
        "others": tuple(name for name in PROBLEMS if name not in GROUPS),
    }[preset]
    config.depths = {"quick": (1, 2), "groups": (1, 2, 4), "others": (2,)}[preset]
    config.model = countdown.model_settings()
    config.model.num_strategies = 1
    config.training = ml_collections.ConfigDict()
    config.training.rows = 128
    config.training.optimizer = "muon"
    config.training.learning_rate = 5e-3
    config.training.warmup_steps = 20
    config.training.weight_decay = 0.01
    config.training.clip_norm = 1.0
    config.training.steps_at_once = 10  # of one call; metrics.jsonl has a line for each call
    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.shown = 5  # completions of each policy in completions.jsonl
    config.evaluation.problems = 400
    config.evaluation.kept = (0.0, 0.25, 0.5, 0.75)  # shares of a trace left by the probes
    return config
