"""From judged rollouts to what an update reads: advantages, references, selected tokens.

    experience, metrics = make_experience(state, prompts, rollouts, key, config)

Axes: P prompts, G samples of each, N trained positions: all tokens of the completion, or the fork
(the strategy tag) alone.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from reasoning.learning import advantages, losses
from reasoning.learning.algorithms import Algorithm
from reasoning.learning.rollouts import PromptBatch, RolloutConfig, Rollouts, sample_tags
from reasoning.models.config import ModelConfig
from reasoning.models.transformer import Transformer
from reasoning.sampling.filters import Filters, filter_logits

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """Everything that an RL step is compiled for.

    Attributes:
      model, algorithm, rollout: their configurations.
      eos_id, pad_id, forbidden_ids: of the tokenizer; forbidden ids are garble in a completion.
      num_prompts: P, prompts of an update.
      max_rounds: rounds of P prompts that dynamic sampling may draw; 1 leaves it out.
      num_epochs, num_minibatches: updates made from one batch of rollouts, by passes and parts.
      num_microbatches: parts whose gradients are added up before the optimizer sees them.

    Raises:
      ValueError: parts that do not divide the prompts.
    """

    model: ModelConfig
    algorithm: Algorithm
    rollout: RolloutConfig
    eos_id: int
    pad_id: int
    forbidden_ids: tuple[int, ...] = ()
    num_prompts: int = 16
    max_rounds: int = 1
    num_epochs: int = 1
    num_minibatches: int = 1
    num_microbatches: int = 1

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
        grouped = not self.algorithm.critic and self.algorithm.advantage != "reinforce_pp"
        if self.rollout.num_samples < 2 and grouped:
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


@flax.struct.dataclass
class Experience:
    """What the update reads of P prompts with G samples of N trained positions each.

    On the fork alone N is 1. Constants: no gradient flows into them.

    Attributes:
      prompts: the prompts `[P]`.
      tokens: `[P, G, N]` int32.
      given: `[P, G]` bool, the tag was given: it is scored as the policy would draw it.
      mask: `[P, G, N]` float32, 1 on the policy's own tokens.
      selected: `[P, G, N]` float32, the part of the mask whose policy gradient is taken.
      old_log_probs: `[P, G, N]` when they were sampled.
      reference_log_probs: `[P, G, N]`, None without a KL in the loss.
      advantages: `[P, G, N]`.
      held: `[P, G, N]` float32, tokens under KL-Cov's penalty, else None.
      returns, old_values: `[P, G, N]` for the critic, else None.
      tag_values: `[P, S]` mean reward of each tag (positions="fork_exact"), else None.
      weights: `[P, G, N]` float32 of each token in the loss of its minibatch.
    """

    prompts: PromptBatch
    tokens: jax.Array
    given: jax.Array
    mask: jax.Array
    selected: jax.Array
    old_log_probs: jax.Array
    reference_log_probs: jax.Array | None
    advantages: jax.Array
    held: jax.Array | None
    returns: jax.Array | None
    old_values: jax.Array | None
    tag_values: jax.Array | None
    weights: jax.Array | None = None


def run_policy(
    params: Any, prompts: PromptBatch, tokens: jax.Array, config: RLConfig, head: bool = True
) -> jax.Array:
    """Logits (or hidden states) at the places that predict the tokens: `[P, G or 1, N, ...]`.

    The fork is predicted by the prompt alone, which is then read once for its G samples.
    """
    num_prompts, num_samples, length = tokens.shape
    ids, mask = prompts.ids, prompts.mask
    if length > 1:
        repeat = partial(jnp.repeat, repeats=num_samples, axis=0)
        read = tokens.reshape(-1, length)[:, :-1]
        ids = jnp.concatenate([repeat(ids), read], axis=1)
        mask = jnp.concatenate([repeat(mask), jnp.ones_like(read)], axis=1)
    out, _ = Transformer(config.model).apply(
        params, ids, segment_ids=mask, positions=jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0),
        num_scored=length, head=head,
    )
    return out.reshape(num_prompts, -1, length, out.shape[-1])


def score(
    params: Any,
    prompts: PromptBatch,
    tokens: jax.Array,
    given: jax.Array,
    config: RLConfig,
    filters: Filters | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropies `[P, G, N]` under the distribution that is sampled from.

    Args:
      tokens: `[P, G, N]` int32; N = 1 scores the tag alone.
      given: `[P, G]` bool; a given tag is scored without temperature and filters, as the sampler
        does.
      filters: those of the rollouts if left out.
    """
    logits = run_policy(params, prompts, tokens, config)
    shape = (*tokens.shape, logits.shape[-1])  # on the fork, a prompt's samples share their logits
    filters = config.rollout.filters if filters is None else filters
    dist = filter_logits(jnp.broadcast_to(logits, shape), filters, tokens)
    if config.rollout.tags == "stratified":
        plain = jax.nn.log_softmax(logits[:, :, :1])
        first = jnp.where(given[:, :, None, None], plain, dist[:, :, :1])
        dist = jnp.concatenate([first, dist[:, :, 1:]], axis=2)
    log_probs = jnp.take_along_axis(dist, tokens[..., None], axis=-1)[..., 0]
    return log_probs, losses.token_entropy(dist)


def tag_log_probs(params: Any, prompts: PromptBatch, config: RLConfig) -> jax.Array:
    """The policy's log-probs of the S tags at the fork, `[P, S]`."""
    logits = run_policy(params, prompts, jnp.zeros((prompts.ids.shape[0], 1, 1), jnp.int32), config)
    return jax.nn.log_softmax(logits[:, 0, 0])[:, config.model.vocab_size :]


def critic_values(
    critic: Any, prompts: PromptBatch, tokens: jax.Array, config: RLConfig
) -> jax.Array:
    """The critic's value `[P, G, N]` before each token."""
    hidden = run_policy(critic["model"], prompts, tokens, config, head=False)
    return jnp.einsum("pgnd,d->pgn", hidden.astype(jnp.float32), critic["head"])


def generalized_advantages(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gae_lambda: float
) -> jax.Array:
    """GAE (1506.02438 eq. 16) with gamma 1 along the last axis; any leading axes.

    Args:
      rewards, values, mask: `[..., N]`; the mask is 1 on a sequence's tokens, which are adjacent.
        Nothing follows the last of them.
    """
    after = jnp.concatenate([values[..., 1:] * mask[..., 1:], jnp.zeros_like(values[..., :1])], -1)
    deltas = (rewards + after - values) * mask

    def back(later: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        now = delta + gae_lambda * later
        return now, now

    start = jnp.zeros_like(deltas[..., 0])
    _, out = jax.lax.scan(back, start, jnp.moveaxis(deltas, -1, 0), reverse=True)
    return jnp.moveaxis(out, 0, -1) * mask


def _whiten(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Zero mean and unit deviation over the tokens of the mask."""
    centred = values - losses.masked_mean(values, mask)
    return centred * jax.lax.rsqrt(losses.masked_mean(centred**2, mask) + 1e-8) * mask


def _group_advantages(algorithm: Algorithm, cost: jax.Array, rollouts: Rollouts) -> jax.Array:
    """Advantages `[P, G]` of the rewards, with the algorithm's penalty, less a cost `[P, G]`.

    The cost is the KL. It is taken from penalised rewards too: T1's is LOO(r' - beta KL).
    """
    rewards = rollouts.rewards
    lengths = rollouts.mask.sum(axis=2)
    everyone = jnp.ones(rewards.shape, bool)

    def method(rewards: jax.Array, valid: jax.Array) -> jax.Array:
        return advantages.advantages(
            algorithm.advantage, rewards - cost, valid, lengths=lengths, k=algorithm.advantage_k
        )

    penalise = {"before": advantages.penalise_before, "after": advantages.penalise_after}
    if algorithm.penalty == "none":
        return method(rewards, everyone)
    return penalise[algorithm.penalty](method, rewards, everyone, rollouts.penalised)


def _penalised_rewards(algorithm: Algorithm, rollouts: Rollouts) -> jax.Array:
    """Rewards `[P, G]`, -1 for penalised samples, where there is no group to compare with."""
    if algorithm.penalty == "none":
        return rollouts.rewards
    return jnp.where(rollouts.penalised, -1.0, rollouts.rewards)


def _token_advantages(
    state: PolicyState,
    prompts: PromptBatch,
    tokens: jax.Array,
    mask: jax.Array,
    cost: jax.Array,
    rollouts: Rollouts,
    config: RLConfig,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Advantages `[P, G, N]` token by token, whitened: PPO's and REINFORCE++'s.

    The reward comes with the last token, the cost `[P, G, N]` (the KL) with each.

    Returns:
      the advantages; returns and values of the critic, None without one (the advantage is then
      the return from each token on).
    """
    algorithm = config.algorithm
    last = (jnp.cumsum(mask, axis=2) == mask.sum(axis=2, keepdims=True)) * mask
    rewards = _penalised_rewards(algorithm, rollouts)[:, :, None] * last - cost
    if not algorithm.critic:
        gains = generalized_advantages(rewards, jnp.zeros_like(rewards), mask, gae_lambda=1.0)
        return _whiten(gains, mask), None, None
    values = critic_values(state.critic, prompts, tokens, config) * mask
    gains = generalized_advantages(rewards, values, mask, algorithm.gae_lambda)
    return _whiten(gains, mask), gains + values, values


def _tag_values(algorithm: Algorithm, rollouts: Rollouts, num_strategies: int) -> jax.Array:
    """Mean reward `[P, S]` of each tag's samples."""
    of_tag = rollouts.tags[:, :, None] == jnp.arange(num_strategies)[None, None]
    rewards = _penalised_rewards(algorithm, rollouts)[:, :, None]
    return losses.masked_mean(rewards, of_tag.astype(jnp.float32), axis=1)[:, 0]


def _select(
    algorithm: Algorithm,
    log_probs: jax.Array,
    entropy: jax.Array,
    advantage: jax.Array,
    mask: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """The tokens `[P, G, N]` that train, and those under KL-Cov's penalty (None without it)."""
    selected, held = mask, None
    if algorithm.top_entropy < 1:
        selected = losses.top_entropy_mask(entropy, mask, algorithm.top_entropy)
    if algorithm.clip_cov or algorithm.kl_cov:
        cov = losses.covariance(log_probs, advantage, mask)
    if algorithm.clip_cov:
        selected = selected * losses.clip_cov_mask(cov, mask, key, algorithm.clip_cov, 1.0, 5.0)
    if algorithm.kl_cov:
        held = losses.top_covariance(cov, mask, algorithm.kl_cov)
    return selected, held


def make_experience(
    state: PolicyState, prompts: PromptBatch, rollouts: Rollouts, key: jax.Array, config: RLConfig
) -> tuple[Experience, Metrics]:
    """Everything that is known before the first gradient: references, advantages, selections."""
    algorithm = config.algorithm
    length = 1 if algorithm.on_fork else rollouts.tokens.shape[2]
    tokens, given = rollouts.tokens[:, :, :length], rollouts.given
    drawn = ~(given[:, :, None] & (jnp.arange(length)[None, None] == 0))  # not a tag that was given
    mask = (rollouts.mask[:, :, :length] & drawn).astype(jnp.float32)
    old_log_probs = rollouts.log_probs[:, :, :length]
    metrics: Metrics = {}

    log_probs, entropy = old_log_probs, jnp.zeros_like(old_log_probs)
    if algorithm.reads_entropy:
        log_probs, entropy = score(state.params, prompts, tokens, given, config)
    reference_log_probs = None
    cost = jnp.zeros_like(old_log_probs)
    if algorithm.kl_coef and algorithm.positions != "fork_exact":
        # Without truncation: what the reference would cut off is unlikely there, not impossible.
        whole = Filters(temperature=config.rollout.temperature)
        reference_log_probs, _ = score(state.reference, prompts, tokens, given, config, whole)
        kl = losses.kl_estimate(old_log_probs, reference_log_probs, "k3")
        metrics["kl"] = losses.masked_mean(kl, mask)
        if algorithm.kl_in_reward:
            k1 = losses.kl_estimate(old_log_probs, reference_log_probs, "k1")
            cost = algorithm.kl_coef * k1 * mask

    returns = values = tag_values = None
    if algorithm.critic or algorithm.advantage == "reinforce_pp":
        advantage, returns, values = _token_advantages(
            state, prompts, tokens, mask, cost, rollouts, config
        )
    else:
        advantage = _group_advantages(algorithm, cost.sum(axis=2), rollouts)
        advantage = jnp.broadcast_to(advantage[:, :, None], mask.shape)
    if algorithm.positions == "fork_exact":
        tag_values = _tag_values(algorithm, rollouts, config.model.num_strategies)
    if algorithm.entropy_shaping:
        advantage = advantages.entropy_shaped(advantage, entropy, alpha=algorithm.entropy_shaping)
    selected, held = _select(algorithm, log_probs, entropy, advantage, mask, key)
    experience = Experience(
        prompts=prompts,
        tokens=tokens,
        given=given,
        mask=mask,
        selected=selected,
        old_log_probs=old_log_probs,
        reference_log_probs=reference_log_probs,
        advantages=jax.lax.stop_gradient(advantage),
        held=held,
        returns=returns,
        old_values=values,
        tag_values=tag_values,
    )
    return experience, metrics
