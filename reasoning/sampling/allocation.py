"""Which strategy tag each of a problem's samples is drawn under, given a budget of samples.

Everything here is numpy on the host. P is the number of problems, S of tags, G of samples held of
each tag, n of samples drawn. An allocation is the tags in the order in which they are drawn, `[n]`
or `[P, n]` int: its first k entries are the allocation of k samples. It is tried out on a pool of
samples `[P, S, G]`, in which every draw takes the tag's next unused sample:

    tags = uniform(num_tags, n)                              one of each tag in turn
    tags = by_policy(probabilities, n, seed)                 as the policy draws its own tag
    tags = apportion(probabilities, n)                       the same shares without chance
    tags = by_verifier(rewards, n, thompson, beta_prior(validation), seed)
    tags = by_agreement(votes, n, ucb1, np.zeros((S, 2)), seed)

    votes, correct, lengths = (take(pool, tags) for pool in (votes, correct, lengths))
    used = np.array([samples_until_decided(row) for row in votes])

What each must know when it draws: `uniform` nothing; `by_policy` and `apportion` the policy's
distribution over tags, which one forward pass gives; `by_verifier` a verdict on every sample so
far, and so a verifier at test time; `by_agreement` only the answers so far. What each wins for its
tokens: `accuracy_against_tokens` in `evaluation/estimators.py`.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from reasoning.sampling.voting import vote

# (wins [S], losses [S], generator) -> the worth [S] of drawing each tag next.
Index = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def uniform(num_tags: int, n: int) -> np.ndarray:
    """All tags in turn, `[n]`: as evenly as n allows, the first n % S tags once more."""
    return np.arange(n) % num_tags


def by_policy(probabilities: ArrayLike, n: int, seed: int = 0) -> np.ndarray:
    """Independent draws `[P, n]` from each problem's distribution over tags.

    Each problem has its own stream of (seed, problem), so that its draws depend neither on the
    other problems nor on n.

    Args:
      probabilities: `[P, S]`, each row >= 0 with sum 1.
      n: samples for each problem.
      seed: of the draws.

    Raises:
      ValueError: rows that are no distributions.
    """
    rows = _check_probabilities(probabilities)
    draws = [
        np.random.default_rng((seed, problem)).choice(len(row), n, p=row)
        for problem, row in enumerate(rows)
    ]
    return np.stack(draws)


def apportion(probabilities: ArrayLike, n: int) -> np.ndarray:
    """Tags `[P, n]` whose shares follow each problem's distribution as closely as counts can.

    The next sample goes to the tag of the largest p_s / (2 c_s + 1), where c_s is the number of
    samples it has (Sainte-Laguë's method); to the first of those that tie. Unlike rounding n p_s,
    a larger budget only adds samples.

    Args:
      probabilities: `[P, S]`, each row >= 0 with sum 1.
      n: samples for each problem.

    Raises:
      ValueError: rows that are no distributions.
    """
    rows = _check_probabilities(probabilities)
    counts = np.zeros(rows.shape, dtype=int)
    tags = np.empty((len(rows), n), dtype=int)
    for drawn in range(n):
        tags[:, drawn] = (rows / (2 * counts + 1)).argmax(axis=1)
        counts[np.arange(len(rows)), tags[:, drawn]] += 1
    return tags


def _check_probabilities(probabilities: ArrayLike) -> np.ndarray:
    """The rows `[P, S]`, each divided by its sum: those of a model are rounded."""
    rows = np.asarray(probabilities, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"probabilities: shape {rows.shape} must be [problems, tags].")
    totals = rows.sum(axis=1, keepdims=True)
    if not ((rows >= 0).all() and (abs(totals - 1) < 1e-3).all()):
        raise ValueError(
            "probabilities: each row must be >= 0 with sum 1; divide the tags' by their sum."
        )
    return rows / totals


# samples of several tags


def take(samples: ArrayLike, tags: ArrayLike) -> np.ndarray:
    """The samples of a pool in the order drawn: the j-th draw of a tag is its j-th sample.

    Args:
      samples: `[P, S, G]` of any type: sample g of tag s of a problem.
      tags: `[P, n]`, or `[n]` for the same tags in every problem; int in 0..S-1.

    Returns:
      `[P, n]`, of the type of `samples`.

    Raises:
      ValueError: samples that are not `[P, S, G]`, tags of another shape or outside 0..S-1, or a
        tag that is drawn more than G times.
    """
    samples = _check_pool("samples", samples)
    num_problems, num_tags, per_tag = samples.shape
    tags = np.asarray(tags)
    if tags.ndim == 1:
        tags = np.tile(tags, (num_problems, 1))
    if tags.ndim != 2 or len(tags) != num_problems:
        raise ValueError(f"tags: shape {tags.shape} must be [n] or [{num_problems} problems, n].")
    if ((tags < 0) | (tags >= num_tags)).any():
        raise ValueError(f"tags: must be between 0 and {num_tags - 1}, those of the samples.")
    places = np.zeros(tags.shape, dtype=int)
    for tag in range(num_tags):
        drawn = tags == tag
        places[drawn] = (drawn.cumsum(axis=1) - 1)[drawn]
    if (places >= per_tag).any():
        raise ValueError(
            f"tags: a problem draws one tag {places.max() + 1} times, and the pool holds {per_tag} "
            "samples of each; draw more of them, or allocate fewer."
        )
    return samples[np.arange(num_problems)[:, None], tags, places]


def interleave(samples: ArrayLike) -> np.ndarray:
    """All samples `[P, S, G]` of several tags as `[P, G*S]`, the tags in turn.

    Every S consecutive ones then hold one sample of each tag. Votes and passes over "the first k
    samples" of a tag-major array see only the first tags; in this order they see all tags as evenly
    as k allows.

    Raises:
      ValueError: samples that are not `[P, S, G]`.
    """
    samples = _check_pool("samples", samples)
    return samples.swapaxes(1, 2).reshape(len(samples), -1)


def _check_pool(name: str, samples: ArrayLike) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 3:
        raise ValueError(f"{name}: shape {samples.shape} must be [problems, tags, samples].")
    return samples


# adaptive: every problem is a bandit of its own, its arms the tags


def thompson(
    wins: np.ndarray, losses: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Thompson sampling: a draw `[S]` from each tag's posterior Beta(wins, losses) (Thompson 1933).

    Raises:
      ValueError: wins or losses that are not above 0, for want of a prior.
    """
    if not ((wins > 0) & (losses > 0)).all():
        raise ValueError(
            f"prior: Thompson sampling starts from wins {wins} and losses {losses}, which must be "
            "above 0; ones are the uniform prior."
        )
    return generator.beta(wins, losses)


def ucb1(wins: np.ndarray, losses: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """UCB1 `[S]`: mean reward + sqrt(2 ln(draws of all tags) / draws of the tag) (Auer 2002).

    `wins` and `losses` are `[S]`; those of the prior count as draws. A tag without any comes first.
    """
    draws = wins + losses
    seen = np.where(draws > 0, draws, 1.0)
    bound = wins / seen + np.sqrt(2 * np.log(max(draws.sum(), 1.0)) / seen)
    return np.where(draws > 0, bound, np.inf)


def by_verifier(
    rewards: ArrayLike, n: int, index: Index, prior: ArrayLike, seed: int = 0
) -> np.ndarray:
    """Tags `[P, n]` by a bandit that is told the verifier's score of every sample it draws.

    The next sample is of the tag whose `index` is largest (at random among those that tie), given
    its wins, the prior's and the sum of its rewards, and its losses, the prior's and the sum of
    1 - reward. With rewards of 0 and 1 and `thompson` this is the Beta-Bernoulli bandit. A tag
    whose G samples are used up is not drawn again.

    Args:
      rewards: `[P, S, G]` in [0, 1], of each sample of the pool, read only once it is drawn.
      n: samples for each problem, at most S*G.
      index: `thompson` or `ucb1`.
      prior: `[S, 2]`, wins and losses that count as seen before the first sample.
      seed: each problem draws from (seed, problem), so that it does not depend on the others.

    Raises:
      ValueError: shapes that do not fit, rewards outside [0, 1], a negative prior, or n > S*G.
    """
    rewards = _check_pool("rewards", rewards)
    if not ((rewards >= 0) & (rewards <= 1)).all():
        raise ValueError("rewards: must be in [0, 1]; scale them, or threshold them.")
    return _bandit(rewards, n, index, prior, seed, lambda drawn, _: drawn)


def by_agreement(
    votes: ArrayLike, n: int, index: Index, prior: ArrayLike, seed: int = 0
) -> np.ndarray:
    """Tags `[P, n]` by a bandit that is told no verdict, only the answers of the samples it draws.

    As `by_verifier`, the reward of a sample being whether it agrees with the majority of those
    drawn so far, itself included; all rewards are found anew after every draw. It takes the
    majority to be right: where a wrong answer leads, it draws the tags that give it.

    Args:
      votes: `[P, S, G]` str, None where a sample has no final answer, which agrees with nothing.
      n: samples for each problem, at most S*G.
      index: `thompson` or `ucb1`.
      prior: `[S, 2]`, agreements and disagreements that count as seen before the first sample.
      seed: each problem draws from (seed, problem), which also breaks the ties of its votes.

    Raises:
      ValueError: shapes that do not fit, a negative prior, or n > S*G.
    """

    def agree(drawn: np.ndarray, problem: int) -> np.ndarray:
        leader = vote(drawn, seed=(seed, problem))
        return np.array([answer is not None and answer == leader for answer in drawn], float)

    return _bandit(_check_pool("votes", votes), n, index, prior, seed, agree)


def _bandit(
    pool: np.ndarray,
    n: int,
    index: Index,
    prior: ArrayLike,
    seed: int,
    reward: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray:
    """Tags `[P, n]`; `reward(drawn, problem)` scores all samples `[t]` drawn so far."""
    num_problems, num_tags, per_tag = pool.shape
    prior = np.asarray(prior, dtype=np.float64)
    if prior.shape != (num_tags, 2) or not (prior >= 0).all():
        raise ValueError(
            f"prior: must be [{num_tags} tags, 2], wins and losses of at least 0, not "
            f"{prior.tolist()}."
        )
    if n > num_tags * per_tag:
        raise ValueError(f"n={n}: the pool holds {num_tags * per_tag} samples of each problem.")
    tags, places = np.empty((2, num_problems, n), dtype=int)
    for problem in range(num_problems):
        generator = np.random.default_rng((seed, problem))
        counts = np.zeros(num_tags, dtype=int)
        for t in range(n):
            before = tags[problem, :t]
            rewards = reward(pool[problem, before, places[problem, :t]], problem)
            won = np.bincount(before, weights=rewards, minlength=num_tags)
            worth = index(prior[:, 0] + won, prior[:, 1] + counts - won, generator)
            worth = np.where(counts < per_tag, worth, -np.inf)
            best = np.flatnonzero(worth == worth.max())
            tag = best[generator.integers(len(best))]
            tags[problem, t], places[problem, t] = tag, counts[tag]
            counts[tag] += 1
    return tags


def beta_prior(correct: ArrayLike) -> np.ndarray:
    """How often each tag solves a problem: Beta parameters `[S, 2]` fitted to validation problems.

    A tag's pass rate varies between problems; of G samples of one, the number that are correct is
    then beta-binomial. Mean m and variance v of the rates over problems give the moments' estimate

        a / (a + b) = m,    1 / (a + b + 1) = (G v / (m (1 - m)) - 1) / (G - 1)

    m counts one correct and one wrong sample more, so that no tag is ruled out. The second, the
    correlation of a problem's samples, is kept within 0.01 and 0.99, so that a + b is within 0.01
    and 99: at most 99 samples' worth of prior.

    Args:
      correct: bool `[P, S, G]`, with P >= 2 and G >= 2, on problems that are not evaluated.

    Raises:
      ValueError: fewer than two problems, or than two samples of each tag.
    """
    correct = _check_pool("correct", correct)
    num_problems, _, per_tag = correct.shape
    if num_problems < 2 or per_tag < 2:
        raise ValueError(
            f"correct: shape {correct.shape} must hold at least two problems, and two samples of "
            "each tag, to tell how pass rates vary."
        )
    mean = (correct.sum(axis=(0, 2)) + 1) / (num_problems * per_tag + 2)
    variance = correct.mean(axis=2).var(axis=0, ddof=1)
    correlation = (per_tag * variance / (mean * (1 - mean)) - 1) / (per_tag - 1)
    strength = 1 / np.clip(correlation, 0.01, 0.99) - 1
    return np.stack([mean * strength, (1 - mean) * strength], axis=1)
