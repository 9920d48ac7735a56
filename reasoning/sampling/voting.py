"""Which of a problem's samples to believe: votes, weighted votes and best-of-n; when to stop.

Everything here is numpy on the host. R is the number of samples of a problem, N of tokens. A
method is a rule, `vote` or `best_of_n`, and a weight for each sample:

    vote(answers)                                                self-consistency
    vote(answers, mean_token_probability(log_probs, mask))       weighted by probability
    vote(answers, gaps)                                          CoT-decoding, aggregated
    best_of_n(answers, gaps)                                     CoT-decoding, maximal path
    vote(answers, scores), best_of_n(answers, scores)            by a verifier or a reward model
    best_of_n(answers, (log_probs * mask).sum(axis=-1))          by log-probability

An answer is any string that stands for all its spellings (`Verdict.key`), or None where a sample
has no final answer. A free-form completion can stand for itself in `best_of_n`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.special
from numpy.typing import ArrayLike

Seed = int | Sequence[int]
Rule = Callable[[Sequence[str | None], ArrayLike | None, Seed], str | None]

# Sums of weights that differ by less, relative to the largest, differ by rounding: they tie.
ROUNDING = 1e-12


def vote(
    answers: Sequence[str | None], weights: ArrayLike | None = None, seed: Seed = 0
) -> str | None:
    """The answer of the largest total weight: argmax_a sum over i with a_i = a of w_i.

    With equal weights this is the majority vote of self-consistency (arXiv 2203.11171). With
    w_i = Delta_i, the gap between the two likeliest tokens averaged over the answer's tokens, it is
    the aggregation of CoT-decoding (arXiv 2402.10200).

    A tie is broken uniformly at random by `seed`, not by position: where the samples of several
    tags take turns, the first always comes from the same tag, which would otherwise win every
    tie. The result depends neither on the order of the samples nor on the scale of the weights.

    Args:
      answers: R of them; None, which has no vote, where a sample has no final answer.
      weights: `[R]`, finite and >= 0, of the samples that have an answer; all 1 if left out.
      seed: one or more integers >= 0, used only where answers tie.

    Returns:
      the winner, or None where no sample has an answer.

    Raises:
      ValueError: not one weight for each answer, or a weight that is negative or not finite.
    """
    given = _given("weights", answers, [1.0] * len(answers) if weights is None else weights)
    ballots = defaultdict(list)
    for answer, weight in given:
        if weight < 0:
            raise ValueError(
                f"weights: {weight} of {answer!r} is negative, so that fewer votes would weigh "
                "more; give probabilities or other scores of at least 0."
            )
        ballots[answer].append(weight)
    totals = {answer: math.fsum(ballot) for answer, ballot in ballots.items()}
    enough = max(totals.values(), default=0.0) * (1 - ROUNDING)
    return _draw([answer for answer, total in totals.items() if total >= enough], seed)


def best_of_n(answers: Sequence[str | None], scores: ArrayLike, seed: Seed = 0) -> str | None:
    """The answer of the sample of the highest score, among those that have an answer.

    Best-of-n of a verifier (arXiv 2110.14168), and with the gaps of CoT-decoding its maximal path
    (arXiv 2402.10200). Of several samples with the highest score each is equally likely to be
    chosen by `seed`, whatever their order; an answer that two of them give is twice as likely.

    Args:
      answers: R of them; None where a sample has no final answer.
      scores: `[R]`, finite, of the samples that have an answer.
      seed: one or more integers >= 0, used only where scores tie.

    Returns:
      the chosen sample's answer, or None where no sample has one.

    Raises:
      ValueError: not one score for each answer, or a score that is not finite.
    """
    given = _given("scores", answers, scores)
    best = max((score for _, score in given), default=0.0)
    return _draw([answer for answer, score in given if score == best], seed)


def _given(
    name: str, answers: Sequence[str | None], values: ArrayLike
) -> list[tuple[str, float]]:
    """The samples that have an answer, each with its value."""
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(answers),):
        raise ValueError(
            f"{name}: shape {values.shape} must be one for each of the {len(answers)} answers."
        )
    given = [(a, value) for a, value in zip(answers, values.tolist()) if a is not None]
    for answer, value in given:
        if not math.isfinite(value):
            raise ValueError(f"{name}: {value} of {answer!r} must be finite.")
    return given


def _draw(tied: list[str], seed: Seed) -> str | None:
    """One of those that tie, or None if there are none; their order does not matter."""
    if len(tied) < 2:
        return tied[0] if tied else None
    return sorted(tied)[np.random.default_rng(seed).integers(len(tied))]


# weights


def mean_token_probability(log_probs: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """exp((1/T) sum_t log p_t): a sample's probability, normalised for its length T.

    The weight of the normalised weighted sum of arXiv 2203.11171 (eq. 1), which does about as well
    as the unweighted vote. Log-probs are those of the distribution that scored the samples:
    `Samples.log_probs` are at the sampler's temperature.

    Args:
      log_probs: `[..., N]` of the completion's tokens.
      mask: `[..., N]` bool, the tokens that count.

    Returns:
      `[...]` float64, in [0, 1].

    Raises:
      ValueError: a sample without a token that counts.
    """
    counts = np.asarray(mask, dtype=bool).sum(axis=-1)
    if (counts == 0).any():
        raise ValueError("mask: a sample has no token, so no mean over them; leave it out.")
    return np.exp(_log_probability(log_probs, mask) / counts)


def sequence_probability(log_probs: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """prod_t p_t, a sample's probability, relative to the likeliest of the problem's samples.

    The weight of the unnormalised weighted sum of arXiv 2203.11171: short samples outweigh all
    others, and it does worse than the unweighted vote. The common factor changes no vote and keeps
    long samples from all being 0.

    Args:
      log_probs: `[..., R, N]` of the tokens of a problem's R completions.
      mask: `[..., R, N]` bool, the tokens that count.

    Returns:
      `[..., R]` float64, in [0, 1]; 1 for the likeliest.
    """
    totals = _log_probability(log_probs, mask)
    return np.exp(totals - totals.max(axis=-1, keepdims=True))


def _log_probability(log_probs: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """Sums `[...]` of the log-probs `[..., N]` that count, in float64."""
    return np.where(np.asarray(mask, bool), np.asarray(log_probs, np.float64), 0.0).sum(axis=-1)


# when to stop


def samples_until_decided(answers: Sequence[str | None]) -> int:
    """After how many of n samples the majority vote of all n is certain, whatever comes next.

    That is as soon as the leading answer is more votes ahead of the second than samples are left,
    each of which may still give any answer; a lead as large as the rest could end in a tie. The
    vote of so many samples is always that of all n.

    Args:
      answers: n of them in the order drawn; None where a sample has no final answer.

    Returns:
      in 0..n; n where only the last sample decides, or a tie is left.
    """
    for drawn, (first, second) in enumerate(_leads(answers), start=1):
        if first - second > len(answers) - drawn:
            return drawn
    return len(answers)


def samples_until_likely(answers: Sequence[str | None], threshold: float = 0.95) -> int:
    """After how many of n samples the leading answer is the majority with probability >= threshold.

    The Beta criterion of Adaptive-Consistency (arXiv 2305.11860). The v1 and v2 votes of the two
    leading answers are seen as draws of p and 1 - p, p uniform beforehand, so that

        P(p > 1/2 | v1, v2) = 1 - I_{1/2}(v1 + 1, v2 + 1) = I_{1/2}(v2 + 1, v1 + 1)

    with the regularised incomplete beta function I. At 0.95, four equal answers are enough. Unlike
    `samples_until_decided`, it may stop at another answer than all n samples would give.

    Args:
      answers: n of them in the order drawn; None where a sample has no final answer.
      threshold: in (0.5, 1); at no lead the probability is 1/2.

    Returns:
      in 0..n; n where the threshold is never reached.

    Raises:
      ValueError: threshold outside (0.5, 1).
    """
    if not 0.5 < threshold < 1.0:
        raise ValueError(f"threshold={threshold}: must be between 0.5 and 1, for example 0.95.")
    for drawn, (first, second) in enumerate(_leads(answers), start=1):
        if scipy.special.betainc(second + 1, first + 1, 0.5) >= threshold:
            return drawn
    return len(answers)


def samples_until_solved(correct: Sequence[bool]) -> int:
    """After how many of n samples one is correct; n if none is. It takes a verifier to know it."""
    return next((drawn for drawn, right in enumerate(correct, start=1) if right), len(correct))


def _leads(answers: Sequence[str | None]) -> Iterator[tuple[int, int]]:
    """After each sample, the votes of the two leading answers; 0 where there is none."""
    votes = Counter()
    for answer in answers:
        if answer is not None:
            votes[answer] += 1
        first, second = [*(count for _, count in votes.most_common(2)), 0, 0][:2]
        yield first, second
