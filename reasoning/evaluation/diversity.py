"""How differently a policy solves problems: what tags control, and how varied the texts are.

Usage of strategies is measured on counts (entropy, effective number, and the mutual information
between the tag that was given and the strategy that was followed); variety of texts on token or
word sequences (Vendi score, distinct-n, self-BLEU). Everything is numpy in float64 on the host.
Entropies are in nats.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

TokenSequence = Sequence[Hashable]  # token ids or words of one text, without padding


def entropy(weights: ArrayLike) -> float:
    """Shannon entropy -sum p log p, in nats, of counts or probabilities of any shape.

    Args:
      weights: non-negative, not all zero; normalised here.

    Raises:
      ValueError: empty, all zero, negative or not finite.
    """
    weights = _check_weights("weights", weights)
    p = weights / weights.sum()
    p = p[p > 0]  # 0 log 0 = 0
    return max(0.0, -float(np.sum(p * np.log(p))))


def effective_number(weights: ArrayLike) -> float:
    """exp(entropy): the number of equally used strategies that would be as diverse (Hill 1973).

    Args:
      weights: as `entropy`, any shape.

    Raises:
      ValueError: as `entropy`.
    """
    return math.exp(entropy(weights))


def mutual_information(counts: ArrayLike) -> float:
    """What the given tag says about the strategy followed: H(tag) + H(strategy) - H(both), nats.

    The plug-in estimate: 0 where tags are ignored, ln S where each of S equally frequent tags has
    a strategy of its own. On N samples it lies above the truth by about (S-1)(K-1) / (2N) nats
    (Miller 1955), so values of that size mean nothing.

    Args:
      counts: `[S, K]`, how often each tag was followed by each strategy (or probabilities);
        samples that follow none may be a column of their own.

    Raises:
      ValueError: not two axes, or as `entropy`.
    """
    counts = _check_weights("counts", counts)
    if counts.ndim != 2:
        raise ValueError(f"counts: shape {counts.shape} must be [tags, strategies].")
    apart = entropy(counts.sum(axis=1)) + entropy(counts.sum(axis=0))
    return max(0.0, apart - entropy(counts))  # rounding can leave -1e-16


def vendi_score(similarity: ArrayLike, order: float = 1.0) -> float:
    """The effective number of different items, from their similarities: in [1, n].

    exp of the Shannon entropy of the eigenvalues of K/n (arXiv 2210.02410), or of their
    Renyi entropy of another order q (arXiv 2310.12952): (sum of lambda^q)^(1/(1-q)). Small orders
    weigh rare items more, large ones less; order 0 is the rank, infinity is 1 / max lambda.

    Args:
      similarity: K, `[n, n]`, symmetric, positive semi-definite, with unit diagonal (to 1e-6).
      order: q, in [0, inf].

    Raises:
      ValueError: a matrix that is not such a similarity, or a negative order.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    _check_similarity(similarity)
    if not order >= 0.0:
        raise ValueError(f"order={order}: must be at least 0.")
    eigenvalues = np.linalg.eigvalsh(similarity / len(similarity))
    if eigenvalues[0] < -1e-6:
        raise ValueError(
            f"similarity: has the eigenvalue {eigenvalues[0] * len(similarity):.3g} and must be "
            "positive semi-definite; use a kernel such as a cosine."
        )
    shares = eigenvalues[eigenvalues > 1e-10]  # below is rounding, which small orders inflate
    shares = shares / shares.sum()
    if order == 1.0:
        return effective_number(shares)
    if order == math.inf:
        return float(1.0 / shares.max())
    largest = shares.max()  # factored out, so that large orders do not underflow
    log_sum = order * math.log(largest) + math.log(np.sum((shares / largest) ** order))
    return math.exp(log_sum / (1.0 - order))


def ngram_similarity(sequences: Sequence[TokenSequence], n: int) -> np.ndarray:
    """Cosine similarity of n-gram counts, for `vendi_score`: `[len, len]`, float64, in [0, 1].

    Positive semi-definite because it is a Gram matrix of unit vectors. A sequence shorter than n
    has one feature, itself: it is like its equals only, and so are empty sequences. Memory is
    len(sequences) times the number of different n-grams.

    Raises:
      ValueError: n < 1, or a plain string among the sequences.
    """
    _check_sequences(sequences, n)
    grams = [_ngrams(sequence, n) or Counter([tuple(sequence)]) for sequence in sequences]
    column = {gram: i for i, gram in enumerate(dict.fromkeys(g for c in grams for g in c))}
    features = np.zeros((len(grams), len(column)))
    for row, counts in zip(features, grams, strict=True):
        row[[column[gram] for gram in counts]] = list(counts.values())
        row /= np.linalg.norm(row)
    similarity = np.minimum(features @ features.T, 1.0)
    np.fill_diagonal(similarity, 1.0)
    return similarity


def distinct_n(sequences: Sequence[TokenSequence], n: int) -> float:
    """Different n-grams / all n-grams, pooled over the sequences: in [0, 1].

    Li et al. (arXiv 1510.03055) divide by the number of tokens instead; dividing by the number of
    n-grams makes 1 reachable for every n. It falls with the amount of text, so compare equal
    amounts. 0 where no sequence is as long as n.

    Raises:
      ValueError: n < 1, or a plain string among the sequences.
    """
    _check_sequences(sequences, n)
    counts: Counter = Counter()
    for sequence in sequences:
        counts.update(_ngrams(sequence, n))
    return len(counts) / counts.total() if counts else 0.0


def self_bleu(sequences: Sequence[TokenSequence], max_n: int = 4) -> float:
    """The mean BLEU of each sequence against all the others (arXiv 1802.01886): in [0, 1].

    Lower is more diverse: 1 where all are equal, 0 where no two share a token. BLEU has uniform
    weights over orders 1..max_n, of which a sequence shorter than max_n uses those it has;
    precisions of orders >= 2 are smoothed by adding one to both counts (Lin and Och 2004), and
    the brevity penalty is against the other whose length is closest. An empty sequence scores 1
    if another is empty too, and 0 otherwise.

    Raises:
      ValueError: fewer than two sequences, max_n < 1, or a plain string among the sequences.
    """
    _check_sequences(sequences, max_n, name="max_n")
    if len(sequences) < 2:
        raise ValueError(f"sequences: {len(sequences)} given, self-BLEU compares at least 2.")
    matched, possible = _clipped_matches(sequences, max_n)
    lengths = [len(sequence) for sequence in sequences]
    scores = [
        _bleu(matched[i], possible[i], length, lengths[:i] + lengths[i + 1 :])
        for i, length in enumerate(lengths)
    ]
    return float(np.mean(scores))


def _bleu(matched: np.ndarray, possible: np.ndarray, length: int, others: list[int]) -> float:
    """BLEU of a sequence of `length` tokens from its n-gram counts, two `[max_n]`."""
    if length == 0:
        return float(0 in others)
    if matched[0] == 0:  # no shared token: no overlap of any order, whatever smoothing adds
        return 0.0
    orders = min(len(matched), length)
    smoothing = (np.arange(orders) > 0).astype(np.float64)
    precisions = (matched[:orders] + smoothing) / (possible[:orders] + smoothing)
    closest = min(others, key=lambda other: (abs(other - length), other))
    return math.exp(min(0.0, 1.0 - closest / length) + np.log(precisions).mean())


def _clipped_matches(
    sequences: Sequence[TokenSequence], max_n: int
) -> tuple[np.ndarray, np.ndarray]:
    """n-grams of each sequence that the others have too, and all of them: two `[len, max_n]`.

    BLEU clips a count at the largest count in any other sequence. The smaller of the two equals
    min(count, second largest count of all sequences), which takes one pass instead of all pairs.
    """
    matched, possible = np.zeros((2, len(sequences), max_n))
    for order in range(1, max_n + 1):
        grams = [_ngrams(sequence, order) for sequence in sequences]
        largest: Counter = Counter()
        second: Counter = Counter()
        for counts in grams:
            for gram, count in counts.items():
                second[gram] = max(second[gram], min(count, largest[gram]))
                largest[gram] = max(largest[gram], count)
        for i, counts in enumerate(grams):
            matched[i, order - 1] = sum(min(count, second[g]) for g, count in counts.items())
            possible[i, order - 1] = counts.total()
    return matched, possible


def _ngrams(sequence: TokenSequence, n: int) -> Counter:
    """How often each run of n tokens occurs."""
    return Counter(tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1))


def _check_weights(name: str, weights: ArrayLike) -> np.ndarray:
    weights = np.asarray(weights, dtype=np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(
            f"{name}: shape {weights.shape}, must be finite and non-negative with a sum above 0; "
            "is there a sample to count?"
        )
    return weights


def _check_similarity(similarity: np.ndarray) -> None:
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not similarity.size:
        raise ValueError(f"similarity: shape {similarity.shape} must be [n, n] with n >= 1.")
    if not np.allclose(similarity, similarity.T, rtol=0.0, atol=1e-6):  # also refuses NaN
        raise ValueError("similarity: must be symmetric; average it with its transpose.")
    if not np.allclose(np.diag(similarity), 1.0, rtol=0.0, atol=1e-6):
        raise ValueError("similarity: must have a unit diagonal; normalise the kernel.")


def _check_sequences(sequences: Sequence[TokenSequence], n: int, name: str = "n") -> None:
    if n < 1:
        raise ValueError(f"{name}={n}: the length of an n-gram must be at least 1.")
    if isinstance(sequences, str) or any(isinstance(sequence, str) for sequence in sequences):
        raise ValueError("sequences: a plain string is given; split every text into words first.")
