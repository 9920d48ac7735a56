"""Distillation: a student learns a teacher's distribution at every token, not only its samples.

    hard      the NLL of the teacher's samples             `reasoning.learning.updates.sft_update`
    forward   KL(teacher || student): the student covers all that the teacher may write
    reverse   KL(student || teacher): it keeps to what the teacher is likely to write
    jsd       between the two (generalised Jensen-Shannon divergence; GKD, 2306.13649)

The last three are `distill_update`. Its rows are the teacher's samples, or the student's own, drawn
anew at every step (on-policy distillation, 2306.13649).
"""

import dataclasses
import math
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from reasoning.data.pipelines import TraceBatch
from reasoning.learning.losses import Reduction, reduce_nll, token_nll
from reasoning.learning.updates import (
    TrainState,
    apply_gradient,
    count_sets,
    label_mask,
    read_rows,
)
from reasoning.models.config import ModelConfig
from reasoning.models.logits import logits_of, map_logits

Kind = Literal["forward", "reverse", "jsd"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class Divergence:
    """How the distance of the student from the teacher is measured.

    Attributes:
      kind: "forward", "reverse" or "jsd".
      temperature: both distributions are those of logits divided by it.
      mix: the teacher's share in the mixture of "jsd", between 0 and 1. Divided by it, a small one
        gives the forward KL; divided by 1 - mix, a large one the reverse KL.

    Raises:
      ValueError: an unknown kind, or a value out of range.
    """

    kind: Kind = "forward"
    temperature: float = 1.0
    mix: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"divergence kind={self.kind!r}: must be one of {', '.join(KINDS)}.")
        if not self.temperature > 0:
            raise ValueError(f"divergence temperature={self.temperature}: must be above 0.")
        if not 0 < self.mix < 1:
            raise ValueError(f"divergence mix={self.mix}: must lie between 0 and 1.")


def token_divergence(
    divergence: Divergence, student_logits: jax.Array, teacher_logits: jax.Array
) -> jax.Array:
    """How far the student is from the teacher at each token: `[..., V]` twice -> `[...]`.

    With P the teacher's distribution and Q the student's, float32, nats:

      forward   KL(P || Q)
      reverse   KL(Q || P)
      jsd       mix KL(P || M) + (1 - mix) KL(Q || M),   M = mix P + (1 - mix) Q

    times temperature^2, so that the gradient keeps its size (1503.02531). No gradient flows into
    the teacher's logits.
    """
    student, teacher = (
        jax.nn.log_softmax(logits.astype(jnp.float32) / divergence.temperature)
        for logits in (student_logits, jax.lax.stop_gradient(teacher_logits))
    )
    kl = optax.losses.kl_divergence_with_log_targets  # (log Q, log P) -> KL(P || Q)
    if divergence.kind == "forward":
        distance = kl(student, teacher)
    elif divergence.kind == "reverse":
        distance = kl(teacher, student)
    else:
        mix = divergence.mix
        middle = jnp.logaddexp(teacher + math.log(mix), student + math.log(1 - mix))
        distance = mix * kl(middle, teacher) + (1 - mix) * kl(middle, student)
    return divergence.temperature**2 * distance


@partial(
    jax.jit,
    static_argnames=(
        "config", "teacher_config", "optimizer", "divergence", "reduction", "tag_is_label",
    ),
    donate_argnames=("state",),
)
def distill_update(
    state: TrainState,
    teacher: Any,
    batch: TraceBatch,
    tags: jax.Array,
    *,
    config: ModelConfig,
    teacher_config: ModelConfig,
    optimizer: optax.GradientTransformation,
    divergence: Divergence,
    reduction: Reduction = "token_mean",
    tag_is_label: bool = True,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the student towards the teacher, at the tokens of the rows.

    Args:
      teacher: its parameters, which get no gradient; it reads the same ids as the student.
      batch, tags: rows and their tags `[N]`, as for `sft_update`.
      tag_is_label: whether the student also learns the teacher's distribution over tags.

    Returns:
      the new state (the old one is donated), and metrics: `loss` (as reduced), `divergence` (nats
      per trace token), `trace_nll` (of the rows, nats per trace token), `grad_norm`, `tokens`.
    """
    num_sets = count_sets(batch)
    aims, _ = read_rows(teacher_config, teacher, batch, tags)

    def compare(logits: jax.Array, labels: jax.Array, aims: jax.Array) -> tuple:
        """Distance and NLL `[N, t]` of some labels; aims are the hidden states of the teacher."""
        aim = logits_of(teacher_config, teacher, aims)
        return token_divergence(divergence, logits, aim), token_nll(logits, labels)

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        read = read_rows(config, params, batch, tags)
        distance, nll = map_logits(compare, config, params, *read, aims)
        loss = reduce_nll(distance, label_mask(batch, tag_is_label), reduction, num_sets)
        return loss, (distance, nll)

    (loss, (distance, nll)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    trace = label_mask(batch, tag_is_label=False)
    metrics = {
        "loss": loss,
        "divergence": reduce_nll(distance, trace, "token_mean", num_sets),
        "trace_nll": reduce_nll(nll, trace, "token_mean", num_sets),
        "grad_norm": optax.tree.norm(grads),
        "tokens": label_mask(batch, tag_is_label).sum(),
    }
    return apply_gradient(state, grads, optimizer), metrics
