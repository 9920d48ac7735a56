"""Answers at once, after fillers, or after a written trace, at several depths.

    --config=experiments/configs/serial.py           two problems, two depths, two seeds
    --config=experiments/configs/serial.py:full      every problem, four seeds
"""

import ml_collections

from experiments.configs import countdown

PRESETS = ("quick", "full")


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


def words(group: str, length: int, tokens: int) -> dict:
    """Words of a group; in training any number of their elements is the identity.

    Without that no policy here learns even sums of five numbers modulo 6 at once.
    """
    arguments = {"group": group, "length": length}
    return problem("group_words", "left", tokens, arguments, {"sparse": True})


PROBLEMS = {
    "S3": words("S3", 5, 2_000_000),
}


def get_config(preset: str = "quick") -> ml_collections.ConfigDict:
    """The configuration of a preset."""
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: must be one of {', '.join(PRESETS)}.")
    full = preset == "full"
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.seeds = 4 if full else 2  # cut over the devices (--jax_num_cpu_devices=2)
    config.problems = ml_collections.ConfigDict(PROBLEMS)
    config.studied = tuple(PROBLEMS) if full else ("S3",)
    config.depths = (1, 2, 4) if full else (1, 2)
    config.model = countdown.model_settings()
    config.model.num_strategies = 1
    config.training = ml_collections.ConfigDict()
    config.training.rows = 64
    config.training.optimizer = "muon"
    config.training.learning_rate = 1e-2
    config.training.warmup_steps = 20
    config.training.weight_decay = 0.01
    config.training.clip_norm = 1.0
    config.training.steps_at_once = 10  # of one call; metrics.jsonl has a line for each call
    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.shown = 5  # completions of each policy in completions.jsonl
    config.evaluation.problems = 1000 if full else 400
    config.evaluation.kept = (0.0, 0.25, 0.5, 0.75)  # shares of a trace left by the probes
    return config
