"""Policy-gradient methods by name: an `Algorithm` is a choice at each step of one update.

    rewards -> penalties -> KL in the reward -> advantages -> surrogate -> aggregation -> loss

`ALGORITHMS["grpo"]` and the others set these choices and nothing else; docs/algorithms.md maps
each to its paper and equation.
"""

import dataclasses
from typing import Literal

from reasoning.learning.advantages import check_advantage, needs
from reasoning.learning.losses import AGGREGATIONS, Aggregation, KLEstimator, Surrogate

Positions = Literal["all", "fork", "fork_exact"]
Penalty = Literal["none", "before", "after"]


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """How an RL step turns rewards into an update.

    Attributes:
      advantage: how rewards of a group become advantages (`reasoning.learning.advantages`): a name,
        or MODULE:ATTRIBUTE of a function of your own.
      advantage_k: k of `pass_at_k`, `pkpo` and others that take it.
      surrogate: how the loss depends on the probability ratio.
      aggregation: how token losses become one loss (`token_weights`).
      positions: which tokens train: "all"; "fork", the strategy tag alone (global forking policy
        optimization, 2510.05132), as it was sampled; or "fork_exact", the tag alone with the
        expectation over all tags in place of the sampled one, from stratified draws.
      kl_coef: weight of the KL to the reference; 0 keeps no reference.
      kl_estimator: k1, k2 or k3.
      kl_in_reward: subtract it from the reward (k1 summed over the completion) rather than add it
        to the loss. Leave-one-out advantages then centre it within the group (T1, 2501.11651).
      ema_decay: the reference follows the policy, theta_ref <- b theta_ref + (1 - b) theta.
      reset_every: the reference becomes the policy every so many steps (ProRL, 2505.24864).
      entropy_coef: weight of the token entropies, which are maximised; they are summed as the
        losses are (`aggregation`).
      entropy_target: if set, the weight moves by `entropy_delta` a step towards this entropy, and
        acts only while the entropy is at most that (Skywork-OR1, 2505.22312).
      entropy_delta: that step.
      entropy_shaping: alpha of the entropy-shaped advantage (2506.14758); 0 leaves it out.
      top_entropy: train only this share of the tokens, those of highest entropy (2506.01939).
      clip_cov, kl_cov: share of tokens whose covariance with the advantage is held back by
        dropping them, or by a KL to the old policy (2505.22617); 0 leaves it out.
      penalty: unexpected patterns (over-long, repetition, garbled) get reward -1 "before" the
        baseline (T1's wording), or advantage -1 "after" it, with baselines over the others.
      mask_truncated: completions that were cut off have no loss, though their rewards are in the
        baselines (DAPO's overlong filtering, 2503.14476; TRL's mask_truncated_completions).
      critic: PPO's value model and GAE in place of group baselines.
      gae_lambda: lambda of GAE; gamma is 1.
      value_clip: range of the clipped value loss.

    Raises:
      ValueError: an unknown name or an impossible combination.
    """

    advantage: str = "rloo"
    advantage_k: int | None = None
    surrogate: Surrogate = dataclasses.field(default_factory=Surrogate)
    aggregation: Aggregation = "token_mean"
    positions: Positions = "all"
    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k3"
    kl_in_reward: bool = False
    ema_decay: float | None = None
    reset_every: int | None = None
    entropy_coef: float = 0.0
    entropy_target: float | None = None
    entropy_delta: float = 0.005
    entropy_shaping: float = 0.0
    top_entropy: float = 1.0
    clip_cov: float = 0.0
    kl_cov: float = 0.0
    penalty: Penalty = "none"
    mask_truncated: bool = False
    critic: bool = False
    gae_lambda: float = 1.0
    value_clip: float = 0.2

    def __post_init__(self) -> None:
        self._check_values()
        self._check_reference()
        self._check_positions()
        if "k" in needs(self.advantage) and self.advantage_k is None:
            raise ValueError(f"advantage={self.advantage!r}: needs advantage_k.")
        if self.advantage == "pass_at_k" and self.kl_in_reward:
            raise ValueError(
                "kl_in_reward=True: advantage='pass_at_k' needs rewards of 0 and 1; choose "
                "kl_in_reward=False."
            )
        if self.penalty == "after" and not self.needs_contrast:
            raise ValueError("penalty='after': needs advantages by group; choose 'before'.")

    def _check_values(self) -> None:
        """Refuse a field whose value alone is wrong."""
        check_advantage(self.advantage)
        for name, allowed in (
            ("positions", ("all", "fork", "fork_exact")),
            ("penalty", ("none", "before", "after")),
            ("kl_estimator", ("k1", "k2", "k3")),
            ("aggregation", AGGREGATIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}."
                )
        for name in ("kl_coef", "entropy_coef", "entropy_shaping", "clip_cov", "kl_cov"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or above.")
        if not 0 < self.top_entropy <= 1:
            raise ValueError(f"top_entropy={self.top_entropy}: must lie in (0, 1].")
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gae_lambda={self.gae_lambda}: must lie in [0, 1].")

    def _check_reference(self) -> None:
        """Refuse a KL or a reference that cannot be."""
        if self.ema_decay is not None and not 0 <= self.ema_decay <= 1:
            raise ValueError(f"ema_decay={self.ema_decay}: must lie in [0, 1].")
        if self.reset_every is not None and self.reset_every < 1:
            raise ValueError(f"reset_every={self.reset_every}: must be at least 1.")
        if self.ema_decay is not None and self.reset_every is not None:
            raise ValueError("ema_decay, reset_every: a reference follows one of the two rules.")
        for name in ("ema_decay", "reset_every"):
            if getattr(self, name) is not None and not self.kl_coef:
                raise ValueError(
                    f"{name}={getattr(self, name)}: has no effect with kl_coef=0, which keeps no "
                    "reference; raise kl_coef or leave it out."
                )
        if self.kl_in_reward and self.kl_estimator != "k1":
            raise ValueError(f"kl_estimator={self.kl_estimator!r}: in the reward it must be k1.")

    def _check_positions(self) -> None:
        """Refuse what the fork has no tokens for."""
        if self.positions == "fork_exact":
            for name in (
                "kl_in_reward", "entropy_shaping", "clip_cov", "kl_cov", "mask_truncated",
            ):
                if getattr(self, name):
                    raise ValueError(
                        f"{name}={getattr(self, name)}: positions='fork_exact' has no sampled "
                        "tokens in its objective; leave it out."
                    )
        if self.positions != "all" and (self.critic or self.top_entropy < 1):
            raise ValueError(
                f"positions={self.positions!r}: critic and top_entropy need positions='all'."
            )

    @property
    def grouped(self) -> bool:
        """Whether a sample's reward is compared with those of its group."""
        return not self.critic and self.advantage != "reinforce_pp"

    @property
    def needs_contrast(self) -> bool:
        """Whether a group whose rewards are all alike has no gradient."""
        return self.grouped and self.positions != "fork_exact"

    @property
    def on_fork(self) -> bool:
        """Whether the strategy tag is the only token that trains."""
        return self.positions != "all"

    @property
    def weighs_entropy(self) -> bool:
        """Whether the entropy has, or may come to have, a weight in the loss."""
        return self.entropy_coef > 0 or self.entropy_target is not None

    @property
    def reads_entropy(self) -> bool:
        """Whether the policy's entropy or covariance is needed before the first gradient."""
        by_covariance = self.clip_cov > 0 or self.kl_cov > 0
        by_entropy = self.top_entropy < 1 or self.entropy_shaping > 0
        return by_covariance or by_entropy or self.entropy_target is not None


ALGORITHMS: dict[str, Algorithm] = {
    "rloo": Algorithm(advantage="rloo", aggregation="sequence_mean_token_sum"),
    "grpo": Algorithm(
        advantage="grpo", aggregation="sequence_mean_token_mean", kl_coef=0.04, kl_estimator="k3"
    ),
    "dr_grpo": Algorithm(advantage="dr_grpo", aggregation="sequence_mean_token_sum_norm"),
    "dapo": Algorithm(
        advantage="grpo", surrogate=Surrogate(clip_high=0.28), aggregation="token_mean"
    ),
    "gspo": Algorithm(
        advantage="grpo",
        surrogate=Surrogate(level="sequence", clip_low=3e-4, clip_high=4e-4),
        aggregation="sequence_mean_token_mean",
    ),
    "gmpo": Algorithm(
        advantage="grpo",
        surrogate=Surrogate(kind="gmpo", clip_low=0.4, clip_high=0.4),
        aggregation="sequence_mean_token_mean",
    ),
    "cispo": Algorithm(
        advantage="grpo",
        surrogate=Surrogate(kind="cispo", clip_low=1.0, clip_high=0.28),
        aggregation="token_mean",
    ),
    "sapo": Algorithm(
        advantage="grpo",
        surrogate=Surrogate(kind="sapo"),
        aggregation="sequence_mean_token_mean",
    ),
    "reinforce_pp": Algorithm(
        advantage="reinforce_pp", kl_coef=0.01, kl_estimator="k1", kl_in_reward=True
    ),
    "reinforce_pp_baseline": Algorithm(
        advantage="reinforce_pp_baseline", kl_coef=0.01, kl_estimator="k2"
    ),
    "ppo": Algorithm(critic=True, kl_coef=0.01, kl_estimator="k1", kl_in_reward=True),
    "t1": Algorithm(
        advantage="rloo",
        aggregation="sequence_mean_token_mean",
        kl_coef=2e-4,
        kl_estimator="k1",
        kl_in_reward=True,
        ema_decay=0.992,
        entropy_coef=1e-3,
        penalty="before",
    ),
    # Global forking policy optimization; not group *filtered* policy optimization (2508.09726).
    "gfpo": Algorithm(advantage="grpo", positions="fork"),
    "gfpo_exact": Algorithm(positions="fork_exact"),
}


def make_algorithm(preset: str, **overrides: object) -> Algorithm:
    """The algorithm of a preset with some of its fields replaced.

    A field of the surrogate may be given by its own name (`clip_high=0.28`). `ema_decay` and
    `reset_every` replace each other's rule of the preset, and `kl_coef=0` clears either.

    Raises:
      ValueError: unknown preset or field, or an impossible combination.
    """
    if preset not in ALGORITHMS:
        raise ValueError(f"algorithm={preset!r}: must be one of {', '.join(ALGORITHMS)}.")
    algorithm = ALGORITHMS[preset]
    inner = {field.name for field in dataclasses.fields(Surrogate)}
    known = {field.name for field in dataclasses.fields(Algorithm)} - {"surrogate"}
    for name in overrides:
        if name not in known | inner:
            fields = ", ".join(sorted(known | inner))
            raise ValueError(f"{name}: no such field of an algorithm; it has {fields}.")
    surrogate = dataclasses.replace(
        algorithm.surrogate, **{name: overrides[name] for name in inner & overrides.keys()}
    )
    outer = {name: overrides[name] for name in known & overrides.keys()}
    return dataclasses.replace(
        algorithm, surrogate=surrogate, **{**_cleared(overrides), **outer}
    )


def _cleared(overrides: dict[str, object]) -> dict[str, None]:
    """The preset's rules of the reference that the overrides leave without an effect."""
    rules = ("ema_decay", "reset_every")
    if overrides.get("kl_coef") == 0 or any(overrides.get(rule) is not None for rule in rules):
        return dict.fromkeys(rules)
    return {}
