"""What a policy does on held-out problems: sample under given tags, judge, and estimate.

    judged  = sample_and_judge(policy, problems, tags, key)      every completion, judged
    figures = summarise(policy, judged, own, validation)         the numbers of results.json

Axes: P problems, R samples of each (tag-major: all samples of tag 0 first), S strategy tags.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reasoning.data.pipelines import prompt_ids
from reasoning.data.tasks.base import Task, parse_completion
from reasoning.data.tokenizers import Tokenizer
from reasoning.evaluation import diversity
from reasoning.evaluation.estimators import (
    bootstrap,
    cons_at_k,
    interleave,
    mean_estimate,
    pass_at_k,
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
      reasons: str, the verdict's reason; `cut_off` where the completion did not end.
      strategies: int, index into `task.strategies` of the strategy followed, or the number of
        strategies where none was recognised.
      validity: float, share of valid steps in the trace.
      lengths: int, tokens, tag and <eos> included.
      completions: str, the text after the tag.
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
    """Judge completions `[P, R, N]` (ids and mask) of P problems."""
    task, tokenizer = policy.task, policy.tokenizer
    shape = tokens.shape[:2]
    kinds = dict(tags=int, correct=bool, reasons=object, strategies=int, validity=float,
                 lengths=int, completions=object, answers=object)
    judged = Judged(**{name: np.zeros(shape, kind) for name, kind in kinds.items()})
    for p, r in np.ndindex(shape):
        ids = tokens[p, r][mask[p, r]]
        tag, *rest = ids.tolist()
        # A tag in the middle of a text is no word: the verifier then finds a malformed answer.
        known = [i if i < tokenizer.vocab_size else tokenizer.unk_id for i in rest]
        text = tokenizer.decode(known)
        steps, answer = parse_completion(text)
        verdict = task.verify(problems[p], answer)
        ended = ids[-1] == tokenizer.eos_id
        strategy = task.recognise(problems[p], steps)
        judged.tags[p, r] = max(tag - policy.config.vocab_size, OWN_TAG)
        judged.correct[p, r] = verdict.correct and ended
        judged.reasons[p, r] = verdict.reason if ended else "cut_off"
        judged.strategies[p, r] = (
            len(task.strategies) if strategy is None else task.strategies.index(strategy)
        )
        judged.validity[p, r] = task.check_trace(problems[p], None, steps)
        judged.lengths[p, r] = len(ids)
        judged.completions[p, r] = text
        judged.answers[p, r] = answer if ended and answer else None
    return judged


def tag_strategy_counts(judged: Judged, config: ModelConfig, task: Task) -> np.ndarray:
    """How often each tag was followed by each strategy (last column: none): `[P, S, K+1]`."""
    counts = np.zeros((len(judged.tags), config.num_strategies, len(task.strategies) + 1))
    problem = np.broadcast_to(np.arange(len(judged.tags))[:, None], judged.tags.shape)
    given = judged.tags >= 0
    np.add.at(counts, (problem[given], judged.tags[given], judged.strategies[given]), 1)
    return counts


def pass_curve(correct: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """pass@k `[P, len(ks)]` of judgements `[P, tags, G]`, the k samples spread over the tags.

    Every tag gets k // tags samples, and every choice of k % tags of them one more. A tag's samples
    all fail with the chance that `pass_at_k` leaves; tags fail independently.
    """
    num_problems, num_tags, per_tag = correct.shape
    solved = correct.sum(axis=2).ravel()

    def failing(samples: int) -> np.ndarray:
        """Chance `[P, tags]` that all of so many samples of a tag are wrong."""
        if samples == 0:
            return np.ones((num_problems, num_tags))
        return 1 - pass_at_k(per_tag, solved, samples).reshape(num_problems, num_tags)

    columns = []
    for k in ks:
        base, extra = divmod(k, num_tags)
        fewer, more = failing(base), failing(base + 1) if extra else None
        unsolved = []
        for chosen in itertools.combinations(range(num_tags), extra):
            with_more = np.isin(np.arange(num_tags), chosen)
            each = np.where(with_more, more, fewer) if extra else fewer
            unsolved.append(each.prod(axis=1))
        columns.append(1 - np.mean(unsolved, axis=0))
    return np.stack(columns, axis=1)


@dataclasses.dataclass(frozen=True)
class Summary:
    """The figures of one policy.

    Attributes:
      figures: results.json's entries by name.
      coverage: `[P]` pass@S of every problem, for paired comparisons.
      counts: `[S, K+1]` tag against strategy followed.
    """

    figures: dict[str, Any]
    coverage: np.ndarray
    counts: np.ndarray


def summarise(
    policy: Policy,
    judged: Judged,
    own: Judged,
    greedy: Judged,
    validation: Judged,
) -> Summary:
    """Estimate everything that results.json holds for one policy.

    Args:
      judged: samples under the tags that were trained, the same number of each, tag-major.
      own: samples whose tag the policy drew itself.
      greedy: one greedy completion under each of the tags of `judged`.
      validation: like `judged`, on validation problems, to choose the best tag by.
    """
    num_strategies = policy.config.num_strategies
    tags = np.unique(judged.tags)
    correct = _by_tag(judged.correct, len(tags))  # [P, tags, G]
    votes, voted = interleave(_by_tag(judged.answers, len(tags))), interleave(correct)
    best = int(_by_tag(validation.correct, len(tags)).mean(axis=(0, 2)).argmax())
    rounds = voted.shape[1] // num_strategies  # samples of every tag
    ks = [*range(1, num_strategies), *(num_strategies * r for r in (1, 2, 4, 8) if r <= rounds)]
    curve = pass_curve(correct, ks)
    covered = curve[:, ks.index(num_strategies)]
    counts = tag_strategy_counts(judged, policy.config, policy.task)
    own_counts = tag_strategy_counts(own, policy.config, policy.task).sum(axis=2)  # [P, S]
    information = bootstrap(lambda c: diversity.mutual_information(c.sum(axis=0)), counts)
    usage = bootstrap(_effective_tags, own_counts)
    most = float(np.log(min(num_strategies, len(policy.task.strategies))))
    per_tag = correct.mean(axis=2)  # [P, tags]
    total = counts.sum(axis=0)
    figures = {
        "pass@1": mean_estimate(correct.mean(axis=(1, 2))).as_dict(),
        "pass@1_best_tag": {
            **mean_estimate(per_tag[:, best]).as_dict(), "tag": int(tags[best])
        },
        "pass@1_own_tag": mean_estimate(own.correct.mean(axis=1)).as_dict(),
        "pass@S": mean_estimate(covered).as_dict(),
        "cons@S": mean_estimate(cons_at_k(votes, voted, num_strategies)).as_dict(),
        "mutual_information": {
            **information.as_dict(), "maximum": most, "share": information.value / most
        },
        "tag_usage": {
            **usage.as_dict(),
            "shares": (own_counts.sum(axis=0) / max(own_counts.sum(), 1)).tolist(),
        },
        "greedy_coverage": mean_estimate(greedy.correct.any(axis=1)).as_dict(),
        "recognised": mean_estimate(
            (judged.strategies < len(policy.task.strategies)).mean(axis=1)
        ).as_dict(),
        "trace_validity": mean_estimate(judged.validity.mean(axis=1)).as_dict(),
        "vendi": mean_estimate(_vendi(judged)).as_dict(),
        "distinct_2": mean_estimate(
            [diversity.distinct_n([t.split() for t in row], 2) for row in judged.completions]
        ).as_dict(),
        "pass@k": {
            "k": list(ks), "curve": [mean_estimate(curve[:, i]).as_dict() for i in range(len(ks))]
        },
        "per_tag": [
            {
                "tag": int(tag),
                "pass@1": mean_estimate(per_tag[:, i]).as_dict(),
                "length": float(judged.lengths[judged.tags == tag].mean()),
                "validity": float(judged.validity[judged.tags == tag].mean()),
            }
            for i, tag in enumerate(tags)
        ],
        "tag_by_strategy": total.tolist(),
    }
    return Summary(figures, covered, total)


def _effective_tags(counts: np.ndarray) -> float:
    """Effective number of tags used in counts `[P, S]`, 0 if the policy never opened with one."""
    total = counts.sum(axis=0)
    return diversity.effective_number(total) if total.any() else 0.0


def _by_tag(values: np.ndarray, num_tags: int) -> np.ndarray:
    """Tag-major `[P, R]` as `[P, tags, G]`."""
    return values.reshape(len(values), num_tags, -1)


def _vendi(judged: Judged) -> np.ndarray:
    """Vendi score `[P]`: how many really different completions a problem's samples amount to."""
    return np.array(
        [
            diversity.vendi_score(diversity.ngram_similarity([t.split() for t in row], 3))
            for row in judged.completions
        ]
    )
