"""A policy of 7B parameters on a pod, sequences of 4096 tokens: what experiments.plan compiles.

    --config=experiments/configs/pod.py:v5p     128 chips
    --config=experiments/configs/pod.py:v5e     256 chips
    --config=experiments/configs/pod.py:v6e     256 chips

The task stays Countdown; the vocabulary and the length of the prompts are those of `config.plan`.
"""

import ml_collections

from experiments.configs import countdown

# Chips of the named pod: (fsdp, tensor).
MESHES = {"v5e": (64, 4), "v5p": (32, 4), "v6e": (64, 4)}


def get_config(kind: str = "v5p") -> ml_collections.ConfigDict:
    """The countdown configuration at the size of a pod of this kind of chip."""
    if kind not in MESHES:
        raise ValueError(f"pod={kind!r}: must be one of {', '.join(MESHES)}.")
    config = countdown.get_config()
    config.model.preset = "7b"
    config.model.max_length = 4096
    config.plan = ml_collections.ConfigDict()
    config.plan.vocab_size = 152_064
    config.plan.prompt_length = 1024
    config.mesh.fsdp, config.mesh.tensor = MESHES[kind]
    rows = config.mesh.fsdp
    for phase in (config.pretrain, config.finetune):
        phase.optimizer, phase.learning_rate, phase.rows = "adamw", 1e-5, rows
    config.rl.algorithm = "grpo"
    config.rl.learning_rate = 1e-6
    config.rl.prompts, config.rl.samples = rows, 8
    config.rl.microbatches = 8
    return config
