"""What a policy does on held-out problems: sample under given tags, judge, and estimate.

    judged  = sample_and_judge(policy, problems, tags, key, filters)    every completion, judged
    summary = summarise(policy, judged, own, greedy, validation)        figures of results.json

Axes: P problems, R samples of each (tag-major: all samples of tag 0 first), S strategy tags.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from reasoning.data.pipelines import prompt_ids
from reasoning.data.tasks.base import Task, parse_completion
from reasoning.data.tokenizers import Tokenizer
from reasoning.evaluation import diversity
from reasoning.evaluation.estimators import (
    bootstrap,
    cons_at_k,
    interleave,
    mean_estimate,
    pass_curve,
)
from reasoning.models.config import ModelConfig
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG, pad_prompts, sample, sequence_keys


@dataclasses.dataclass(frozen=True)
class Policy:
    """Everything that turns a problem into a completion."""

    params: Any
    config: ModelConfig
    tokenizer: Tokenizer
    task: Task
    max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class Judged:
    """Completions of P problems, R each, as host arrays `[P, R]`.

    Attributes:
      tags: int, the tag the completion opened with; -1 for none.
      correct: bool, the verifier's judgement.
      reasons: str, the verdict's reason; `over_long` where the completion did not end.
      strategies: int, index into `task.strategies` of the strategy followed, or the number of
        strategies where none was recognised.
      validity: float, share of valid steps in the trace.
      lengths: int, tokens, tag and <eos> included.
      completions: str, the text after the tag; all of it where there is no tag.
      answers: str, None where the completion gave none or was cut off.
    """

    tags: np.ndarray
    correct: np.ndarray
    reasons: np.ndarray
    strategies: np.ndarray
    validity: np.ndarray
    lengths: np.ndarray
    completions: np.ndarray
    answers: np.ndarray

    def rows(self, task: Task, problems: Sequence[Any]) -> list[dict[str, Any]]:
        """One record per completion, for completions.jsonl."""
        names = [*task.strategies, None]
        return [
            {
                "prompt": task.prompt(problems[p]),
                "tag": int(self.tags[p, r]),
                "completion": self.completions[p, r],
                "reward": float(self.correct[p, r]),
                "correct": bool(self.correct[p, r]),
                "reason": self.reasons[p, r],
                "strategy": names[self.strategies[p, r]],
                "validity": float(self.validity[p, r]),
            }
            for p, r in np.ndindex(self.tags.shape)
        ]


def sample_and_judge(
    policy: Policy,
    problems: Sequence[Any],
    tags: np.ndarray,
    key: jax.Array,
    filters: Filters,
    batch_problems: int = 64,
) -> Judged:
    """Sample each problem once per entry of `tags` and judge what comes out.

    Args:
      tags: `[R]` int, the same for every problem; OWN_TAG leaves the tag to the policy.
      key: the evaluation's key; a sequence's own key depends on it, its problem and its place.
      filters: how to sample.
      batch_problems: problems per call of the sampler; it changes no figure.
    """
    filters.check()
    tokenizer, config = policy.tokenizer, policy.config
    prompts = [prompt_ids(tokenizer, policy.task.prompt(problem)) for problem in problems]
    ids, mask = pad_prompts(prompts, tokenizer.pad_id)
    tokens, masks = [], []
    for start in range(0, len(problems), batch_problems):
        # The last batch is filled up with its first prompt, so that one shape is compiled.
        index = np.arange(start, start + batch_problems)
        index = np.where(index < len(problems), index, start)
        samples = sample(
            policy.params,
            ids[index],
            mask[index],
            np.tile(tags.astype(np.int32), (batch_problems, 1)),
            sequence_keys(key, jnp.asarray(index), len(tags)),
            filters,
            config=config,
            max_new_tokens=policy.max_new_tokens,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
        )
        tokens.append(np.asarray(samples.tokens))
        masks.append(np.asarray(samples.mask))
    shape = (-1, len(tags), policy.max_new_tokens)
    tokens = np.concatenate(tokens).reshape(shape)[: len(problems)]
    masks = np.concatenate(masks).reshape(shape)[: len(problems)]
    return judge(policy, problems, tokens, masks)


def judge(
    policy: Policy, problems: Sequence[Any], tokens: np.ndarray, mask: np.ndarray
) -> Judged:
    """Judge the completions of P problems, R each.

    Args:
      tokens: `[P, R, N]` ids as they were sampled: a tag, the text and <eos>, then padding.
      mask: `[P, R, N]` bool, the completion's tokens, <eos> included.

    Raises:
      ValueError: a completion without any token.
    """
    task, tokenizer = policy.task, policy.tokenizer
    for p, r in np.argwhere(~mask.any(axis=2)):
        raise ValueError(f"mask: completion {r} of problem {p} has no token; give the sampler's.")
    shape = tokens.shape[:2]
    kinds = dict(tags=int, correct=bool, reasons=object, strategies=int, validity=float,
                 lengths=int, completions=object, answers=object)
    judged = Judged(**{name: np.zeros(shape, kind) for name, kind in kinds.items()})
    for p, r in np.ndindex(shape):
        ids = tokens[p, r][mask[p, r]].tolist()
        tag = max(ids[0] - policy.config.vocab_size, OWN_TAG)
        words = ids[1:] if tag >= 0 else ids
        # A tag in the middle of a text is no word: the verifier then finds a malformed answer.
        known = [i if i < tokenizer.vocab_size else tokenizer.unk_id for i in words]
        text = tokenizer.decode(known)
        steps, answer = parse_completion(text)
        verdict = task.verify(problems[p], answer)
        ended = ids[-1] == tokenizer.eos_id
        strategy = task.recognise(problems[p], steps)
        judged.tags[p, r] = tag
        judged.correct[p, r] = verdict.correct and ended
        judged.reasons[p, r] = verdict.reason if ended else "over_long"
        judged.strategies[p, r] = (
            len(task.strategies) if strategy is None else task.strategies.index(strategy)
        )
        judged.validity[p, r] = task.check_trace(problems[p], None, steps)
        judged.lengths[p, r] = len(ids)
        judged.completions[p, r] = text
        judged.answers[p, r] = answer if ended and answer else None
    return judged


def tag_strategy_counts(judged: Judged, config: ModelConfig, task: Task) -> np.ndarray:
    """How often each tag was followed by each of the task's K strategies: `[P, S, K+1]`.

    The last column counts traces in which no strategy was recognised. Completions that open with
    no tag are left out.
    """
    counts = np.zeros((len(judged.tags), config.num_strategies, len(task.strategies) + 1))
    problem = np.broadcast_to(np.arange(len(judged.tags))[:, None], judged.tags.shape)
    given = judged.tags >= 0
    np.add.at(counts, (problem[given], judged.tags[given], judged.strategies[given]), 1)
    return counts


@dataclasses.dataclass(frozen=True)
class Summary:
    """The figures of one policy.

    Attributes:
      figures: results.json's entries by name.
      per_problem: `[P]` each of pass@1, pass@1_own_tag and pass@S, for paired comparisons.
    """

    figures: dict[str, Any]
    per_problem: dict[str, np.ndarray]


def summarise(
    policy: Policy,
    judged: Judged,
    own: Judged,
    greedy: Judged,
    validation: Judged,
) -> Summary:
    """Estimate everything that results.json holds for one policy.

    Its `mutual_information` is between the tag given and the strategy followed, with "none" as one
    more. `maximum` is ln min(S, K) of the policy's S tags and the task's K strategies, whichever
    tags were trained, and `share` is the part of it that is reached: one scale for all arms, on
    which an arm of a single tag has share 0. With S = 1 or K = 1 there is nothing to select: the
    maximum is 0, and so is the share. With S > K, tags that follow none can carry it past 1.

    Args:
      judged: samples under the tags that were trained, the same number of each, tag-major.
      own: samples whose tag the policy drew itself.
      greedy: one greedy completion under each of the tags of `judged`.
      validation: like `judged`, on validation problems, to choose the best tag by.

    Raises:
      ValueError: samples that are not tag-major, or fewer than S of a problem.
    """
    tags, num_strategies = np.unique(judged.tags), policy.config.num_strategies
    correct = _by_tag("judged", judged, tags, judged.correct)  # [P, tags, G]
    answers = _by_tag("judged", judged, tags, judged.answers)
    validated = _by_tag("validation", validation, tags, validation.correct)
    best = int(validated.mean(axis=(0, 2)).argmax())
    ks = _curve_ks(num_strategies, judged.tags.shape[1])
    curve = pass_curve(correct, ks)
    votes = cons_at_k(interleave(answers), interleave(correct), num_strategies)
    per_problem = {
        "pass@1": correct.mean(axis=(1, 2)),
        "pass@1_own_tag": own.correct.mean(axis=1),
        "pass@1_best_tag": correct[:, best].mean(axis=1),
        "pass@S": curve[:, ks.index(num_strategies)],
    }
    figures = {
        **{name: _mean(values) for name, values in per_problem.items()},
        "pass@1_best_tag": {**_mean(per_problem["pass@1_best_tag"]), "tag": int(tags[best])},
        "cons@S": _mean(votes),
        "greedy_coverage": _mean(greedy.correct.any(axis=1)),
        "trace_validity": _mean(judged.validity.mean(axis=1)),
        **_use_of_tags(policy, judged, own),
        **_variety(judged),
        "pass@k": {"k": ks, "curve": [_mean(column) for column in curve.T]},
        "per_tag": [
            {
                "tag": int(tag),
                "pass@1": _mean(correct[:, i].mean(axis=1)),
                "length": float(judged.lengths[judged.tags == tag].mean()),
                "validity": float(judged.validity[judged.tags == tag].mean()),
            }
            for i, tag in enumerate(tags)
        ],
    }
    return Summary(figures, per_problem)


def _mean(values: ArrayLike) -> dict[str, Any]:
    """The mean of values `[P]` with its interval, as an entry of results.json."""
    return mean_estimate(values).as_dict()


def _by_tag(name: str, judged: Judged, tags: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values `[P, R]` of tag-major samples as `[P, tags, G]`."""
    expected = np.repeat(tags, judged.tags.shape[1] // len(tags))
    if not all(np.array_equal(row, expected) for row in judged.tags):
        raise ValueError(
            f"{name}: a problem's samples must be tag-major, equally many of the tags "
            f"{tags.tolist()}; repeat each tag as often."
        )
    return values.reshape(len(values), len(tags), -1)


def _curve_ks(num_strategies: int, num_samples: int) -> list[int]:
    """The k of the pass@k curve: 1..S, then 2, 4 and 8 samples of each tag as far as they go."""
    if num_samples < num_strategies:
        raise ValueError(
            f"judged: {num_samples} samples of a problem are fewer than the {num_strategies} "
            "tags, so there is no pass@S; draw more."
        )
    more = [num_strategies * rounds for rounds in (2, 4, 8)]
    return [*range(1, num_strategies + 1), *(k for k in more if k <= num_samples)]


def _use_of_tags(policy: Policy, judged: Judged, own: Judged) -> dict[str, Any]:
    """What tags select and which of them the policy draws."""
    num_tags, num_known = policy.config.num_strategies, len(policy.task.strategies)
    counts = tag_strategy_counts(judged, policy.config, policy.task)  # [P, S, K+1]
    drawn = tag_strategy_counts(own, policy.config, policy.task).sum(axis=2)  # [P, S]
    information = bootstrap(lambda c: diversity.mutual_information(c.sum(axis=0)), counts)
    maximum = float(np.log(min(num_tags, num_known)))
    share = information.value / maximum if maximum else 0.0
    return {
        "mutual_information": {**information.as_dict(), "maximum": maximum, "share": share},
        "tag_usage": {
            **bootstrap(_effective_tags, drawn).as_dict(),
            "shares": (drawn.sum(axis=0) / max(drawn.sum(), 1)).tolist(),
        },
        "recognised": _mean((judged.strategies < num_known).mean(axis=1)),
        "tag_by_strategy": counts.sum(axis=0).tolist(),
    }


def _effective_tags(counts: np.ndarray) -> float:
    """Effective number of tags used in counts `[P, S]`, 0 if the policy never opened with one."""
    total = counts.sum(axis=0)
    return diversity.effective_number(total) if total.any() else 0.0


def _variety(judged: Judged) -> dict[str, Any]:
    """How many really different texts a problem's samples amount to, and distinct bigrams."""
    texts = [[text.split() for text in row] for row in judged.completions]
    vendi = [diversity.vendi_score(diversity.ngram_similarity(row, 3)) for row in texts]
    return {
        "vendi": _mean(vendi),
        "distinct_2": _mean([diversity.distinct_n(row, 2) for row in texts]),
    }
