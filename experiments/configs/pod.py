"""A policy of 7B parameters on a pod, sequences of 4096 tokens: what experiments.plan compiles.

    --config=experiments/configs/pod.py:v5p     128 chips
    --config=experiments/configs/pod.py:v5e     256 chips
    --config=experiments/configs/pod.py:v6e     256 chips

The task stays Countdown; the vocabulary and the length of the prompts are those of `config.plan`.
"""

import dataclasses

import ml_collections

from experiments.configs import countdown


@dataclasses.dataclass(frozen=True)
class Pod:
    """What depends on the chips.

    Attributes:
      data, fsdp, tensor: the mesh. Cut by 32, the model's width of 3584 leaves 112 columns; cut by
        64 it would leave 56, which fill no tile of the TPU's memory, and libtpu's compiler then
        sums whole gradients on every device in place of scattering them.
      rows: of a training step.
      microbatches: of an RL update.
    """

    data: int
    fsdp: int
    tensor: int
    rows: int
    microbatches: int


PODS = {
    "v5e": Pod(data=2, fsdp=32, tensor=4, rows=128, microbatches=4),
    "v5p": Pod(data=1, fsdp=32, tensor=4, rows=256, microbatches=4),
    "v6e": Pod(data=2, fsdp=32, tensor=4, rows=256, microbatches=2),
}


def get_config(kind: str = "v5p") -> ml_collections.ConfigDict:
    """The countdown configuration at the size of a pod of this kind of chip."""
    countdown.check_preset(kind, PODS)
    pod = PODS[kind]
    config = countdown.fine_tuning_config()
    config.model.preset = "7b"
    config.model.max_length = 4096
    config.plan = ml_collections.ConfigDict()
    config.plan.vocab_size = 152_064
    config.plan.prompt_length = 1024
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = pod.data, pod.fsdp, pod.tensor
    for phase in (config.pretrain, config.finetune):
        phase.optimizer, phase.learning_rate, phase.rows = "adamw", 1e-5, pod.rows
    config.rl = countdown.rl_settings()
    config.rl.algorithm = "grpo"
    config.rl.learning_rate = 1e-6
    config.rl.prompts, config.rl.samples = 64, 8
    config.rl.microbatches = pod.microbatches
    return config
