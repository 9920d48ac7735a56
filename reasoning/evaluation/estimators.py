"""What a policy can do, from its samples: pass@k, G-pass@k, cons@k and other votes, and intervals.

Everything here is numpy in float64 on the host. P is the number of problems, S of strategy tags,
G of samples per tag, N = G*S of samples per problem. The metrics return one value per problem,
`[P]` (`pass_curve` one for each k), so that any of them can be given an interval over problems:

    mean_estimate(pass_at_k(num_samples, num_correct, k=4))
    mean_estimate(cons_at_k(interleave(answers), interleave(correct), k=6))
    difference_estimate(pass_curve(ssft, ks=[6])[:, 0], pass_curve(baseline, ks=[6])[:, 0])
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from reasoning.sampling.voting import Rule, vote

_RESAMPLED_AT_ONCE = 2**18  # numbers that the bootstrap holds, against a loop in Python


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its confidence interval.

    Attributes:
      value: the point estimate, within [low, high].
      low: lower end of the interval.
      high: upper end of the interval.
      n: how many problems or trials the interval is over.
    """

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        """The fields by name, ready for JSON."""
        return dataclasses.asdict(self)


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: int) -> np.ndarray:
    """The chance that k of a problem's samples hold a correct one: 1 - C(n-c, k) / C(n, k).

    The unbiased estimator of Chen et al. (arXiv 2107.03374, eq. 1), as a product of k ratios that
    are all in [0, 1], so that nothing overflows.

    Args:
      num_samples: n, samples per problem, `[P]` (or of any shape) or a scalar.
      num_correct: c, correct ones among them, `[P]` or a scalar.
      k: samples drawn without replacement, the same for every problem.

    Returns:
      `[P]`, or the shape that was given, in [0, 1].

    Raises:
      ValueError: counts that are no integers or negative, c > n, k > n or k < 1.
    """
    n, c = _check_sample_counts(num_samples, num_correct, k)
    all_wrong = np.ones(n.shape)
    for drawn in range(k):
        all_wrong = all_wrong * np.maximum(n - c - drawn, 0) / (n - drawn)
    return 1.0 - all_wrong


def g_pass_at_k(
    num_samples: ArrayLike, num_correct: ArrayLike, k: int, threshold: float
) -> np.ndarray:
    """The chance that at least ceil(threshold * k) of k samples are correct: G-Pass@k_tau.

    sum over j >= ceil(tau k) of C(c, j) C(n-c, k-j) / C(n, k) (arXiv 2412.13147), in exact
    integers. As the threshold goes to 0 this is pass@k; at 1 all k must be correct.

    Args:
      num_samples: n, samples per problem, `[P]` or a scalar.
      num_correct: c, correct ones among them, `[P]` or a scalar.
      k: samples drawn without replacement, the same for every problem.
      threshold: tau, in (0, 1].

    Returns:
      `[P]`, in [0, 1].

    Raises:
      ValueError: counts that are no integers or negative, c > n, k > n, k < 1, or a threshold
        outside (0, 1].
    """
    n, c = _check_sample_counts(num_samples, num_correct, k)
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold={threshold}: must be above 0 and at most 1.")
    needed = max(1, math.ceil(threshold * k - 1e-9))  # 0.28 * 25 is a little above 7 in floats

    @functools.cache  # problems share n, and few values of c occur
    def tail(n: int, c: int) -> float:
        ways = sum(math.comb(c, j) * math.comb(n - c, k - j) for j in range(needed, k + 1))
        return ways / math.comb(n, k)

    return np.vectorize(tail, otypes=[np.float64])(n, c)


def pass_curve(correct: ArrayLike, ks: Sequence[int]) -> np.ndarray:
    """pass@k for several k, the k samples spread over the tags as evenly as k allows.

    Every tag gives k // S of its samples, and k % S of the tags, any choice of them as likely as
    any other, give one more. At k = S this is the coverage of the tags: how often some tag solves
    the problem with one sample of each. With one tag it is `pass_at_k`; the two together say
    whether different tags solve different problems.

    A tag's samples all fail with the chance that `pass_at_k` leaves, and tags fail independently,
    so every way to choose the samples counts, not only those that stand side by side.

    Args:
      correct: bool `[P, S, G]`, sample g of tag s of a problem.
      ks: one or more numbers of samples drawn, each in 1..S*G.

    Returns:
      `[P, len(ks)]`, in [0, 1].

    Raises:
      ValueError: not three axes, no samples, values that are not 0 or 1, or k outside 1..S*G.
    """
    correct = _check_bool("correct", correct, num_axes=3)
    _, num_tags, per_tag = correct.shape
    if not num_tags * per_tag:
        raise ValueError(f"correct: shape {correct.shape} holds no samples; give S and G >= 1.")
    for k in ks:
        if not 1 <= k <= num_tags * per_tag:
            raise ValueError(
                f"k={k}: must be between 1 and the {num_tags * per_tag} samples per problem."
            )
    solved = correct.sum(axis=2)

    def failing(samples: int) -> np.ndarray:
        """Chance `[P, S]` that all of so many samples of a tag are wrong."""
        return 1 - pass_at_k(per_tag, solved, samples) if samples else np.ones(solved.shape)

    columns = []
    for k in ks:
        base, extra = divmod(k, num_tags)
        # Where no tag gives one more, no sample may be left to give: `more` is then not used.
        fewer, more = failing(base), failing(min(base + 1, per_tag))
        unsolved = [
            np.where(np.isin(np.arange(num_tags), chosen), more, fewer).prod(axis=1)
            for chosen in itertools.combinations(range(num_tags), extra)
        ]
        columns.append(1 - np.mean(unsolved, axis=0))
    return np.stack(columns, axis=1)


def cons_at_k(answers: ArrayLike, correct: ArrayLike, k: int, seed: int = 0) -> np.ndarray:
    """How often the majority answer of k samples is correct: cons@k, or maj@k.

    `voted_accuracy` with one vote for each sample.

    Args:
      answers: `[P, N]` of strings, or None.
      correct: bool `[P, N]`.

    Returns:
      float64 `[P]`.
    """
    return voted_accuracy(answers, correct, k, seed=seed)


def voted_accuracy(
    answers: ArrayLike,
    correct: ArrayLike,
    k: int,
    weights: ArrayLike | None = None,
    rule: Rule = vote,
    seed: int = 0,
) -> np.ndarray:
    """How often the answer that a rule chooses from k samples is correct.

    Consecutive slices of k samples are vote groups (the last N mod k samples are in none), and
    their mean is taken; the samples of several tags must come through `interleave`. A group
    without an answer is wrong. Ties are broken as in the rule, with (seed, problem, group) as the
    seed, so that the ties of one problem do not shift those of the next.

    Args:
      answers: `[P, N]` of strings, or None where a sample has no final answer.
      correct: bool `[P, N]`; equal answers to one problem must be equally correct.
      k: samples per vote, at most N.
      weights: float `[P, N]`, the weights or scores that the rule reads.
      rule: `vote` or `best_of_n` of `reasoning.sampling.voting`.
      seed: breaks ties.

    Returns:
      `[P]`, in [0, 1].

    Raises:
      ValueError: shapes that do not fit, k outside 1..N, weights that the rule refuses, or a
        problem where the same answer (or no answer) is judged in two ways.
    """
    answers, correct, weights = _check_votes(answers, correct, weights)
    num_problems, num_samples = correct.shape
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k}: must be between 1 and the {num_samples} samples per problem.")
    values = np.zeros((num_problems, num_samples // k))
    for problem in range(num_problems):
        verdicts = _verdict_by_answer(problem, answers[problem], correct[problem])
        for group in range(num_samples // k):
            part = np.s_[problem, group * k : (group + 1) * k]
            scores = None if weights is None else weights[part]
            chosen = rule(answers[part], scores, (seed, problem, group))
            values[problem, group] = verdicts[chosen]
    return values.mean(axis=1)


def accuracy_against_tokens(
    answers: ArrayLike,
    correct: ArrayLike,
    lengths: ArrayLike,
    used: ArrayLike,
    weights: ArrayLike | None = None,
    rule: Rule = vote,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """What the first samples of a problem cost, and whether the answer chosen from them is right.

    For the curve of an allocation (`reasoning.sampling.allocation`) the B columns of `used` are
    budgets, the same for all problems, or what a rule that stops early took of each:

        used = np.broadcast_to([1, 2, 4, 8], (P, 4))                     so many samples
        used = (lengths.cumsum(axis=1) <= 1000).sum(axis=1)[:, None]     as many as 1000 tokens pay
        used = [[samples_until_decided(row)] for row in answers]         until the vote is certain

    A verifier that is there when answers are chosen is `rule=best_of_n` with its scores as weights.

    Args:
      answers: `[P, n]` of strings in the order drawn, or None where there is no final answer.
      correct: bool `[P, n]`; equal answers to one problem must be equally correct.
      lengths: int `[P, n]`, tokens of each sample.
      used: int `[P, B]` in 0..n, how many of a problem's samples are drawn at each point.
      weights, rule: as in `voted_accuracy`.
      seed: breaks ties as in the first group of `voted_accuracy`.

    Returns:
      tokens: int `[P, B]`, spent on the samples used.
      right: bool `[P, B]`, whether the chosen answer is correct; no answer is wrong.

    Raises:
      ValueError: shapes that do not fit, used outside 0..n, weights that the rule refuses, or a
        problem where the same answer (or no answer) is judged in two ways.
    """
    answers, correct, weights = _check_votes(answers, correct, weights)
    lengths, used = np.asarray(lengths), np.asarray(used)
    num_problems, num_samples = correct.shape
    if lengths.shape != correct.shape:
        raise ValueError(
            f"lengths: shape {lengths.shape} must be that of correct, {correct.shape}."
        )
    if used.ndim != 2 or len(used) != num_problems:
        raise ValueError(f"used: shape {used.shape} must be [{num_problems} problems, points].")
    if ((used < 0) | (used > num_samples)).any():
        raise ValueError(f"used: must be between 0 and the {num_samples} samples per problem.")
    spent = np.pad(lengths.cumsum(axis=1), ((0, 0), (1, 0)))
    right = np.zeros(used.shape, dtype=bool)
    for problem in range(num_problems):
        verdicts = _verdict_by_answer(problem, answers[problem], correct[problem])
        for point, count in enumerate(used[problem]):
            scores = None if weights is None else weights[problem, :count]
            chosen = rule(answers[problem, :count], scores, (seed, problem, 0))
            right[problem, point] = verdicts[chosen]
    return np.take_along_axis(spent, used, axis=1), right


def _check_votes(
    answers: ArrayLike, correct: ArrayLike, weights: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The three as arrays of one shape `[P, N]`."""
    answers = np.asarray(answers, dtype=object)
    correct = _check_bool("correct", correct, num_axes=2)
    weights = None if weights is None else np.asarray(weights, dtype=np.float64)
    for name, values in (("answers", answers), ("weights", weights)):
        if values is not None and values.shape != correct.shape:
            raise ValueError(
                f"{name}: shape {values.shape} must be that of correct, {correct.shape}."
            )
    return answers, correct, weights


def _verdict_by_answer(
    problem: int, answers: np.ndarray, correct: np.ndarray
) -> dict[str | None, bool]:
    """Whether each of a problem's answers `[N]` is right, refusing contradictions."""
    verdicts: dict[str | None, bool] = {None: False}
    for answer, verdict in zip(answers, correct.tolist(), strict=True):
        if verdicts.setdefault(answer, verdict) != verdict:
            raise ValueError(
                f"correct: the answer {answer!r} to problem {problem} is both right and wrong; "
                "vote on the answers that the verifier judged (None is always wrong)."
            )
    return verdicts


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Estimate:
    """A proportion and its Wilson score interval (Wilson 1927), for independent trials.

    Unlike a bootstrap, it keeps its width where all trials agree. Samples of one problem are not
    independent trials: for those, use `mean_estimate` over problems.

    Raises:
      ValueError: no trials, successes outside 0..trials, or confidence outside (0, 1).
    """
    if trials < 1:
        raise ValueError(f"trials={trials}: an interval needs at least one trial.")
    if not 0 <= successes <= trials:
        raise ValueError(f"successes={successes}: must be between 0 and trials={trials}.")
    z = NormalDist().inv_cdf(0.5 + _check_confidence(confidence) / 2)
    share = float(successes / trials)
    scale = 1.0 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # Rounding may put an end a hair inside the share at 0 and at 1.
    return Estimate(
        share, min(max(0.0, centre - half), share), max(min(1.0, centre + half), share), int(trials)
    )


def mean_estimate(
    values: ArrayLike, seed: int = 0, num_resamples: int = 2000, confidence: float = 0.95
) -> Estimate:
    """The mean over problems of `values` `[P]`, with the interval of `bootstrap`.

    Raises:
      ValueError: as `bootstrap`, or values that are not `[P]`.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"values: shape {values.shape} must be one value per problem, [P].")
    return _bootstrap(
        lambda resamples: resamples.mean(axis=1), (values,), seed, num_resamples, confidence
    )


def difference_estimate(
    a: ArrayLike,
    b: ArrayLike,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """mean(a) - mean(b) over the same problems: a paired bootstrap of `a`, `b`, both `[P]`.

    Pairing removes what makes problems easy or hard for both, so the interval is narrower than
    that of two separate sets of problems.

    Raises:
      ValueError: as `mean_estimate`, or a and b of different shapes.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"b: shape {b.shape} must be that of a, {a.shape}: the same problems.")
    return mean_estimate(a - b, seed, num_resamples, confidence)


def runs_estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean over independent runs (seeds) with Student's t interval; n is their number.

    Raises:
      ValueError: fewer than two runs, or confidence outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"values: {len(values)} run has no interval; give at least two.")
    quantile = scipy.stats.t.ppf(0.5 + _check_confidence(confidence) / 2, len(values) - 1)
    mean, half = values.mean(), quantile * values.std(ddof=1) / math.sqrt(len(values))
    return Estimate(float(mean), float(mean - half), float(mean + half), len(values))


def bootstrap(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Any statistic of the problems, with its percentile bootstrap interval (Efron 1979).

    Problems are drawn with replacement, the same ones from every array. For the mutual
    information of tables of counts `[P, S, K]`, one per problem:

        bootstrap(lambda counts: mutual_information(counts.sum(axis=0)), counts)

    The interval knows only the spread between the problems it is given: one problem, or problems
    that all agree, give an interval of no width. It is stretched to hold the value where the
    statistic is biased, as plug-in mutual information is; resampling repeats that bias, so a low
    end above zero is no evidence that the truth is.

    Args:
      statistic: maps the resampled arrays to a finite float.
      *arrays: each `[P, ...]`.
      seed: of the resampling; the same seed gives the same interval.
      num_resamples: how many sets of P problems are drawn.
      confidence: of the interval, in (0, 1).

    Raises:
      ValueError: no arrays or no problems, arrays of different P, num_resamples < 1, confidence
        outside (0, 1), or a statistic that is not finite.
    """

    def of_each(*resamples: np.ndarray) -> np.ndarray:
        return np.array([statistic(*each) for each in zip(*resamples)], dtype=np.float64)

    return _bootstrap(of_each, arrays, seed, num_resamples, confidence)


def _bootstrap(
    statistics: Callable[..., np.ndarray],
    arrays: Sequence[ArrayLike],
    seed: int,
    num_resamples: int,
    confidence: float,
) -> Estimate:
    """`bootstrap` with the statistics `[R]` of R sets of problems at a time."""
    arrays = tuple(np.asarray(array) for array in arrays)
    sizes = {array.shape[0] if array.ndim else 0 for array in arrays}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"arrays: shapes {[array.shape for array in arrays]} must share a leading axis of at "
            "least one problem."
        )
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples}: must be at least 1.")
    tail = (1.0 - _check_confidence(confidence)) / 2
    num_problems = sizes.pop()
    generator = np.random.default_rng(seed)
    (value,) = statistics(*(array[None] for array in arrays)).tolist()
    at_once = max(_RESAMPLED_AT_ONCE // max(array.size for array in arrays), 1)
    resampled = []
    for start in range(0, num_resamples, at_once):
        count = min(at_once, num_resamples - start)
        drawn = generator.integers(num_problems, size=(count, num_problems))
        resampled.extend(statistics(*(array[drawn] for array in arrays)))
    if not np.isfinite([value, *resampled]).all():
        raise ValueError(
            f"statistic: is {value} on the {num_problems} problems and must be finite on them and "
            "on every resample; leave out the problems that have no value."
        )
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value), num_problems)


def _check_sample_counts(
    num_samples: ArrayLike, num_correct: ArrayLike, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """n and c as int64 of one shape, with 0 <= c <= n and 1 <= k <= n."""
    n, c = np.broadcast_arrays(num_samples, num_correct)
    if n.dtype.kind not in "iu" or c.dtype.kind not in "iu":
        raise ValueError(
            f"num_samples, num_correct: {n.dtype} and {c.dtype} must be integers; count the "
            "samples, do not average them."
        )
    n, c = n.astype(np.int64), c.astype(np.int64)
    if k < 1:
        raise ValueError(f"k={k}: must be at least 1.")
    if (n < k).any():
        raise ValueError(f"k={k}: must be at most num_samples={n.min()}; draw more samples.")
    if (c < 0).any() or (c > n).any():
        wrong = c[(c < 0) | (c > n)]
        raise ValueError(f"num_correct={wrong[0]}: must be between 0 and num_samples.")
    return n, c


def _check_bool(name: str, values: ArrayLike, num_axes: int) -> np.ndarray:
    """The values as bool, refusing shaped rewards such as -0.5, which would count as true."""
    values = np.asarray(values)
    if values.ndim != num_axes:
        raise ValueError(f"{name}: shape {values.shape} must have {num_axes} axes.")
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"{name}: must be bool, or 0 and 1; threshold the rewards first.")
    return values.astype(bool)


def _check_confidence(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence}: must be between 0 and 1, for example 0.95.")
    return confidence
