"""A policy's CoT-decoding paths and beams on held-out problems, judged.

    paths   = cot_paths(policy, problems, tag, num_paths=10)
    answers = [vote(row, delta) for row, delta in zip(paths.likely(0.02), paths.deltas)]

The rule that chooses among the answers is in `reasoning.sampling.voting`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from reasoning.evaluation.policies import Judged, Policy, in_batches, judge
from reasoning.sampling.decoding import answer_masks, beam_search, cot_decode, mean_gaps


@dataclasses.dataclass(frozen=True)
class Paths:
    """The k paths of each of P problems, the likeliest branch first.

    Attributes:
      judged: `[P, k]`.
      deltas: `[P, k]` float, Delta of each path's answer (`mean_gaps`), 0 without an answer.
      branch_probs: `[P, k]` float, of the token that opens the path.
      log_probs: `[P, k]` float, of the whole completion, its tag left out where it was given.
    """

    judged: Judged
    deltas: np.ndarray
    branch_probs: np.ndarray
    log_probs: np.ndarray

    def likely(self, floor: float) -> np.ndarray:
        """The votes `[P, k]` of paths whose branch is at least so probable; None for the others."""
        return np.where(self.branch_probs >= floor, self.judged.votes, None)


def cot_paths(
    policy: Policy, problems: Sequence[Any], tag: int, num_paths: int, batch_problems: int = 64
) -> Paths:
    """CoT-decoding (2402.10200): branch over the k likeliest first tokens, go on greedily.

    Args:
      tag: given to all paths; with OWN_TAG the branches are over the tags.
      num_paths: k.
    """

    def draw(ids: np.ndarray, mask: np.ndarray, index: np.ndarray) -> tuple[jax.Array, ...]:
        paths = cot_decode(
            policy.params, ids, mask, np.full(len(index), tag), config=policy.config,
            num_paths=num_paths, **_lengths(policy),
        )
        return paths.tokens, paths.mask, paths.log_probs, paths.gaps, paths.branch_probs

    tokens, mask, log_probs, gaps, branch_probs, _ = in_batches(
        policy, problems, draw, batch_problems
    )
    judged = judge(policy, problems, tokens, mask)
    masks = answer_masks(policy.text_format, tokens, mask, judged.answers)
    first = 0 if tag < 0 else 1
    totals = log_probs[..., first:].sum(axis=-1)
    return Paths(judged, mean_gaps(gaps, masks), branch_probs, totals)


def judged_beams(
    policy: Policy, problems: Sequence[Any], tag: int, num_beams: int, batch_problems: int = 64
) -> Judged:
    """The K likeliest completions that beam search finds, `[P, K]`, the likeliest first."""

    def draw(ids: np.ndarray, mask: np.ndarray, index: np.ndarray) -> tuple[jax.Array, ...]:
        beams = beam_search(
            policy.params, ids, mask, np.full(len(index), tag), config=policy.config,
            num_beams=num_beams, **_lengths(policy),
        )
        return beams.tokens, beams.mask

    tokens, mask, _ = in_batches(policy, problems, draw, batch_problems)
    return judge(policy, problems, tokens, mask)


def _lengths(policy: Policy) -> dict[str, Any]:
    """What every decoder reads of a policy to know where a completion ends."""
    return {
        "max_new_tokens": policy.max_new_tokens,
        "stop_ids": policy.text_format.stop_ids,
        "pad_id": policy.text_format.pad_id,
    }
