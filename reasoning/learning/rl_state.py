"""What a step of reinforcement learning is compiled for, and the state that it changes."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from reasoning.learning.algorithms import Algorithm
from reasoning.learning.rollouts import RolloutConfig, sample_tags
from reasoning.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """Everything that an RL step is compiled for.

    Attributes:
      model, algorithm, rollout: their configurations.
      stop_ids, pad_id, forbidden_ids: of the tokenizer; forbidden ids are garble in a completion.
      num_prompts: P, prompts of an update.
      max_rounds: rounds of P prompts that dynamic sampling may draw; 1 leaves it out.
      num_epochs, num_minibatches: updates made from one batch of rollouts, by passes and parts.
      num_microbatches: parts whose gradients are added up before the optimizer sees them.
      trained: as of `OptimizerConfig`; what the optimizer does not train gets no gradient.

    Raises:
      ValueError: parts that do not divide the prompts.
    """

    model: ModelConfig
    algorithm: Algorithm
    rollout: RolloutConfig
    stop_ids: tuple[int, ...]
    pad_id: int
    forbidden_ids: tuple[int, ...] = ()
    num_prompts: int = 16
    max_rounds: int = 1
    num_epochs: int = 1
    num_minibatches: int = 1
    num_microbatches: int = 1
    trained: str = "all"

    def __post_init__(self) -> None:
        for name in (
            "num_prompts", "max_rounds", "num_epochs", "num_minibatches", "num_microbatches",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1.")
        parts = self.num_minibatches * self.num_microbatches
        if self.num_prompts % parts:
            raise ValueError(
                f"num_prompts={self.num_prompts}: must be a multiple of num_minibatches * "
                f"num_microbatches = {parts}."
            )
        if self.max_rounds > 1 and not self.algorithm.needs_contrast:
            raise ValueError(
                f"max_rounds={self.max_rounds}: dynamic sampling replaces groups whose rewards are "
                "all alike, and this algorithm learns from them too; choose 1."
            )
        if self.algorithm.kl_cov and self.on_policy:
            raise ValueError(
                f"kl_cov={self.algorithm.kl_cov}: holds tokens near the old policy, which is the "
                "present one with a single update; raise num_epochs or num_minibatches."
            )
        needs = self.algorithm.advantage_k
        if needs is not None and needs > self.rollout.num_samples:
            raise ValueError(
                f"advantage_k={needs}: must be at most num_samples={self.rollout.num_samples}."
            )
        if self.rollout.num_samples < 2 and self.algorithm.grouped:
            raise ValueError(
                f"num_samples={self.rollout.num_samples}: a sample is compared with the others of "
                "its prompt; draw at least 2."
            )
        sample_tags(self.rollout, self.model.num_strategies, 1)
        if self.algorithm.positions == "fork" and self.rollout.tags != "own":
            raise ValueError(
                f"tags={self.rollout.tags!r}: positions='fork' trains tags that the policy drew; "
                "choose tags='own', or positions='fork_exact'."
            )
        if self.algorithm.positions == "fork_exact" and self.rollout.tags != "stratified":
            raise ValueError(
                f"tags={self.rollout.tags!r}: positions='fork_exact' needs every tag equally "
                "often; choose tags='stratified'."
            )

    @property
    def on_policy(self) -> bool:
        """One update per batch of rollouts: the probability ratio is 1."""
        return self.num_epochs * self.num_minibatches == 1

    def allowed_ids(self) -> jax.Array:
        """`[V]` bool, the ids that a completion may hold after its tag."""
        allowed = jnp.ones(self.model.vocab_size, bool)
        return allowed.at[jnp.array(self.forbidden_ids, int)].set(False)


@flax.struct.dataclass
class PolicyState:
    """What RL changes.

    Attributes:
      params, opt_state: of the policy.
      step: scalar int32, updates made.
      reference: the reference policy's parameters, None where no KL is taken.
      entropy_coef: scalar float32, weight of the entropy bonus (it may adapt).
      critic, critic_opt_state: PPO's value model {"model", "head"} and its optimizer; else None.
      skipped: scalar int32, steps in a row in which some loss or gradient was not finite.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    reference: Any
    entropy_coef: jax.Array
    critic: Any
    critic_opt_state: Any
    skipped: jax.Array


def init_policy_state(
    params: Any, config: RLConfig, optimizer: optax.GradientTransformation
) -> PolicyState:
    """A state at step 0 that owns copies of the parameters."""
    algorithm = config.algorithm
    params = jax.tree.map(jnp.copy, params)
    reference = jax.tree.map(jnp.copy, params) if algorithm.kl_coef else None
    critic = None
    if algorithm.critic:
        critic = {"model": jax.tree.map(jnp.copy, params), "head": jnp.zeros(config.model.d_model)}
    return PolicyState(
        params=params,
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        reference=reference,
        entropy_coef=jnp.asarray(algorithm.entropy_coef, jnp.float32),
        critic=critic,
        critic_opt_state=None if critic is None else optimizer.init(critic),
        skipped=jnp.zeros((), jnp.int32),
    )
