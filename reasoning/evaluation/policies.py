"""What a policy does on held-out problems: sample under given tags, judge, and estimate.

    judged  = sample_and_judge(policy, problems, tags, key, filters)    every completion, judged
    summary = summarise(policy, judged, own, greedy, validation)        figures of results.json

Axes: P problems, R samples of each (tag-major: all samples of tag 0 first), S strategy tags.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from reasoning.data.formats import TextFormat
from reasoning.data.tasks.base import Problems, parse_completion
from reasoning.evaluation import diversity
from reasoning.evaluation.estimators import (
    bootstrap,
    cons_at_k,
    mean_estimate,
    pass_curve,
)
from reasoning.models.axes import row_parts
from reasoning.models.config import ModelConfig
from reasoning.models.strategies import id_to_tag
from reasoning.rewards.host import HostFunction
from reasoning.sampling.allocation import interleave
from reasoning.sampling.budgets import Budget
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import pad_prompts, sample, sequence_keys
from reasoning.sampling.slots import rows_at_a_time, sampler_for


@dataclasses.dataclass(frozen=True)
class Policy:
    """Everything that turns a problem into a completion, and judges it.

    Attributes:
      params, config: of the model.
      text_format: how problems are written as ids.
      problems: a task or a corpus.
      judge: `(prompts, completions, problems) -> verdicts` (`reasoning.rewards.host`).
      max_new_tokens: tag and <eos> included.
    """

    params: Any
    config: ModelConfig
    text_format: TextFormat
    problems: Problems
    judge: HostFunction
    max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class Judged:
    """Completions of P problems, R each, as host arrays `[P, R]`.

    Attributes:
      tags: int, the tag the completion opened with; -1 for none.
      correct: bool, the verifier's judgement.
      reasons: str, the verdict's reason; `over_long` where the completion did not end.
      strategies: int, index into `problems.strategies` of the strategy followed, or their number
        where none was recognised, as always in a corpus, which names none.
      validity: float, share of valid steps in the trace; NaN in a corpus.
      lengths: int, tokens, tag and <eos> included.
      completions: str, the text after the tag; all of it where there is no tag.
      answers: str, None where the completion gave none or was cut off.
      votes: str, what each answer counts as in a vote (`Verdict.key`): one for all its spellings.
      methods: str, how the verdict was found.
      milliseconds: float, what it took.
    """

    tags: np.ndarray
    correct: np.ndarray
    reasons: np.ndarray
    strategies: np.ndarray
    validity: np.ndarray
    lengths: np.ndarray
    completions: np.ndarray
    answers: np.ndarray
    votes: np.ndarray
    methods: np.ndarray
    milliseconds: np.ndarray

    def rows(self, task: Problems, problems: Sequence[Any]) -> list[dict[str, Any]]:
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
                "answer": self.answers[p, r],
                "method": self.methods[p, r],
                "milliseconds": round(float(self.milliseconds[p, r]), 3),
                "strategy": names[self.strategies[p, r]],
                "validity": None if np.isnan(self.validity[p, r]) else float(self.validity[p, r]),
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
    """Sample each problem once per entry of `tags` `[R]`, as `sample_problems`, and judge it."""
    drawn = sample_problems(policy, problems, tags, key, filters, batch_problems)
    return judge(policy, problems, drawn.tokens, drawn.mask)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was sampled for P problems, R completions each, as host arrays.

    Attributes:
      tokens: `[P, R, N]` int32: a tag, the text and <eos>, then padding.
      mask: `[P, R, N]` bool, the completion's tokens, <eos> included.
      log_probs: `[P, R, N]` float32 of each token (`Samples.log_probs`).
      seconds: that each call of the sampler took.
    """

    tokens: np.ndarray
    mask: np.ndarray
    log_probs: np.ndarray
    seconds: list[float]


def sample_problems(
    policy: Policy,
    problems: Sequence[Any],
    tags: np.ndarray,
    key: jax.Array,
    filters: Filters,
    batch_problems: int = 64,
    budget: Budget | None = None,
) -> Drawn:
    """Sample each problem once per entry of `tags`.

    Args:
      tags: `[R]` int, the same for every problem; OWN_TAG leaves the tag to the policy.
      key: the evaluation's key; a sequence's own key depends on it, its problem and its place.
      filters: how to sample.
      batch_problems: problems per call of the sampler; it changes no figure.
      budget: how long to think, with counts `[R]`, or `[1]` for all alike; the same for every
        problem.
    """
    filters.check()
    if budget is not None:
        budget.check()

    def draw(ids: np.ndarray, mask: np.ndarray, index: np.ndarray) -> tuple[jax.Array, ...]:
        rows = len(index)
        counts = jax.tree.map(lambda n: jnp.broadcast_to(n, (rows, len(tags))), budget)
        draw_all = sampler_for(rows, len(tags), rows_at_a_time())
        if counts is not None:  # slots know no budget
            draw_all = partial(sample, budget=counts)
        samples = draw_all(
            policy.params,
            ids,
            mask,
            np.tile(tags.astype(np.int32), (rows, 1)),
            sequence_keys(key, jnp.asarray(index), len(tags)),
            filters,
            config=policy.config,
            max_new_tokens=policy.max_new_tokens,
            stop_ids=policy.text_format.stop_ids,
            pad_id=policy.text_format.pad_id,
        )
        shape = rows, len(tags), policy.max_new_tokens
        return tuple(x.reshape(shape) for x in (samples.tokens, samples.mask, samples.log_probs))

    return Drawn(*in_batches(policy, problems, draw, batch_problems))


def in_batches(
    policy: Policy,
    problems: Sequence[Any],
    draw: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[jax.Array, ...]],
    batch_problems: int = 64,
) -> tuple[Any, ...]:
    """Decode all problems, so many at a time.

    Args:
      draw: `(ids [B, T], mask [B, T], index [B]) -> arrays [B, ...]`, of the prompts and the
        places of B problems.

    Returns:
      the arrays `[P, ...]` on the host, and last the seconds that each call took.
    """
    prompts = [policy.text_format.prompt_ids(policy.problems.prompt(each)) for each in problems]
    ids, mask = pad_prompts(prompts, policy.text_format.pad_id)
    parts, seconds = [], []
    batch_problems = min(batch_problems, len(problems))
    batch_problems += -batch_problems % row_parts()
    for start in range(0, len(problems), batch_problems):
        # Filled up with its first prompt, so that one shape is compiled, and a mesh divides it.
        index = np.arange(start, start + batch_problems)
        index = np.where(index < len(problems), index, start)
        started = time.perf_counter()
        parts.append([np.asarray(array) for array in draw(ids[index], mask[index], index)])
        seconds.append(time.perf_counter() - started)
    arrays = (np.concatenate(each)[: len(problems)] for each in zip(*parts, strict=True))
    return (*arrays, seconds)


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
    for p, r in np.argwhere(~mask.any(axis=2)):
        raise ValueError(f"mask: completion {r} of problem {p} has no token; give the sampler's.")
    shape = num_problems, num_samples = tokens.shape[:2]
    text_format, lengths = policy.text_format, mask.sum(axis=2)
    texts = [
        text_format.completion_text(row[kept].tolist())
        for row, kept in zip(tokens.reshape(-1, tokens.shape[2]), mask.reshape(-1, mask.shape[2]))
    ]
    prompts = [_prompt_text(policy, problem) for problem in problems]
    repeated = [i for i in range(num_problems) for _ in range(num_samples)]
    verdicts = policy.judge(
        [prompts[i] for i in repeated], texts, [problems[i] for i in repeated]
    )
    first, last = (
        np.take_along_axis(tokens, place[..., None], axis=2)[..., 0]
        for place in (mask.argmax(axis=2), mask.shape[2] - 1 - mask[..., ::-1].argmax(axis=2))
    )
    ended = np.isin(last, text_format.stop_ids)
    traced = [_trace(policy, problems[i], text) for i, text in zip(repeated, texts)]
    kept = ended.reshape(-1)
    return Judged(
        tags=np.asarray(id_to_tag(policy.config, jnp.asarray(first))),
        correct=_column([v.correct for v in verdicts], bool, shape) & ended,
        reasons=_column([v.reason if e else "over_long" for v, e in zip(verdicts, kept)],
                        object, shape),
        strategies=_column([strategy for strategy, _ in traced], int, shape),
        validity=_column([validity for _, validity in traced], float, shape),
        lengths=lengths.astype(int),
        completions=_column(texts, object, shape),
        answers=_column([v.answer or None if e else None for v, e in zip(verdicts, kept)],
                        object, shape),
        votes=_column([v.key or v.answer or None if e else None for v, e in zip(verdicts, kept)],
                      object, shape),
        methods=_column([v.method for v in verdicts], object, shape),
        milliseconds=_column([v.milliseconds for v in verdicts], float, shape),
    )


def _column(values: Sequence[Any], kind: type, shape: tuple[int, int]) -> np.ndarray:
    """Values of all samples as an array `[P, R]`."""
    column = np.empty(len(values), kind)
    column[:] = values
    return column.reshape(shape)


def _prompt_text(policy: Policy, problem: Any) -> str:
    """What the judge reads of a prompt: its end may open the thinking."""
    ids = policy.text_format.prompt_ids(policy.problems.prompt(problem))
    return policy.text_format.tokenizer.decode_any(ids)


def _trace(policy: Policy, problem: Any, text: str) -> tuple[int, float]:
    """Which strategy a completion follows, and the share of its steps that are valid."""
    task = policy.problems
    if not task.strategies:
        return 0, float("nan")
    steps, _ = parse_completion(text)
    strategy = task.recognise(problem, steps)
    known = strategy in task.strategies
    index = task.strategies.index(strategy) if known else len(task.strategies)
    return index, task.check_trace(problem, None, steps)


def tag_strategy_counts(judged: Judged, config: ModelConfig, task: Problems) -> np.ndarray:
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
    votes = _by_tag("judged", judged, tags, judged.votes)
    validated = _by_tag("validation", validation, tags, validation.correct)
    best = int(validated.mean(axis=(0, 2)).argmax())
    ks = _curve_ks(num_strategies, judged.tags.shape[1])
    curve = pass_curve(correct, ks)
    voted = cons_at_k(interleave(votes), interleave(correct), num_strategies)
    per_problem = {
        "pass@1": correct.mean(axis=(1, 2)),
        "pass@1_own_tag": own.correct.mean(axis=1),
        "pass@1_best_tag": correct[:, best].mean(axis=1),
        "pass@S": curve[:, ks.index(num_strategies)],
    }
    figures = {
        **{name: _mean(values) for name, values in per_problem.items()},
        "pass@1_best_tag": {**_mean(per_problem["pass@1_best_tag"]), "tag": int(tags[best])},
        "cons@S": _mean(voted),
        "greedy_coverage": _mean(greedy.correct.any(axis=1)),
        "over_long": _mean((judged.reasons == "over_long").mean(axis=1)),
        "no_answer": _mean((judged.reasons == "no_answer").mean(axis=1)),
        **_use_of_tags(policy, own),
        **_use_of_strategies(policy, judged),
        **_variety(judged),
        "pass@k": {"k": ks, "curve": [_mean(column) for column in curve.T]},
        "per_tag": [
            {
                "tag": int(tag),
                "pass@1": _mean(correct[:, i].mean(axis=1)),
                "length": float(judged.lengths[judged.tags == tag].mean()),
                **_validity_of(policy, judged, tag),
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


def _use_of_tags(policy: Policy, own: Judged) -> dict[str, Any]:
    """Which tags the policy draws."""
    drawn = tag_strategy_counts(own, policy.config, policy.problems).sum(axis=2)  # [P, S]
    return {
        "tag_usage": {
            **bootstrap(_effective_tags, drawn).as_dict(),
            "shares": (drawn.sum(axis=0) / max(drawn.sum(), 1)).tolist(),
        },
    }


def _use_of_strategies(policy: Policy, judged: Judged) -> dict[str, Any]:
    """What tags select, and whether traces hold; {} in a corpus, which names no strategies."""
    num_known = len(policy.problems.strategies)
    if not num_known:
        return {}
    counts = tag_strategy_counts(judged, policy.config, policy.problems)  # [P, S, K+1]
    information = bootstrap(lambda c: diversity.mutual_information(c.sum(axis=0)), counts)
    maximum = float(np.log(min(policy.config.num_strategies, num_known)))
    share = information.value / maximum if maximum else 0.0
    return {
        "mutual_information": {**information.as_dict(), "maximum": maximum, "share": share},
        "recognised": _mean((judged.strategies < num_known).mean(axis=1)),
        "tag_by_strategy": counts.sum(axis=0).tolist(),
        "trace_validity": _mean(judged.validity.mean(axis=1)),
    }


def _validity_of(policy: Policy, judged: Judged, tag: int) -> dict[str, float]:
    """The share of valid steps under a tag; {} in a corpus."""
    valid = judged.validity[judged.tags == tag]
    return {"validity": float(valid.mean())} if policy.problems.strategies else {}


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
