"""The judge of answers as a reward on the host: extraction, exact comparison, then algebra.

    with SymbolicPool(num_workers=2) as pool:
        judge = AnswerJudge(("boxed",), pool)
        reward = HostReward(judge, text_format)
        verdicts = judge(prompts, completions, problems)  # each problem has `answer` and `kind`
        judge.metrics()  # {"exact": 0.93, "symbolic": 0.07, "timeout": 0.0, ...}

The pool belongs to one process, so HostReward takes such a judge with `num_workers=0`.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, get_args

import numpy as np

from reasoning.data.tasks.base import Verdict
from reasoning.rewards.answers import AnswerKind, Rule, compare, extract, vote_key
from reasoning.rewards.symbolic import Result, SymbolicPool
from reasoning.rewards.verdicts import TooManyFailures, shortened

Pair = tuple[str, str]  # gold, answer
MEMO_SIZE = 100_000  # symbolic verdicts that are remembered; the oldest are forgotten
FAILURE_WINDOW = 1000  # answers over which failures are counted
FAILURE_MINIMUM = 100  # answers before they are
CHUNK = 256  # formulas that the pool is asked for before failures are counted

_gold_key = functools.lru_cache(maxsize=65_536)(vote_key)  # the same for all of its samples
_REASONS = {"right": "correct", "wrong": "wrong_value"}  # the other results are reasons themselves
_FAILURES = ("timeout", "crash")


class Question(Protocol):
    """What is known about a problem."""

    answer: str  # gold
    kind: AnswerKind


def check_gold(gold: str, kind: AnswerKind) -> None:
    """Refuse a gold answer that could not be judged, or that would not be right itself.

    Raises:
      ValueError: it is empty, over a limit of `extract`, or no number where the kind says so.
    """
    verdict = compare(gold, gold, kind)
    if verdict and not verdict.correct:
        raise ValueError(
            f"gold={shortened(gold)}: is itself {verdict.reason}; write it as an answer of the "
            f"kind {kind!r}, or drop the problem."
        )


def check_questions(questions: Iterable[Any]) -> None:
    """Refuse a gold answer that its question's kind cannot have; each has `id`, `answer`, `kind`.

    Raises:
      ValueError: as `check_gold`, with the question's id.
    """
    for question in questions:
        try:
            check_gold(question.answer, question.kind)
        except ValueError as error:
            raise ValueError(f"question {question.id}: {error}") from None


class AnswerJudge:
    """Judges final answers against gold answers: `(prompts, completions, questions) -> verdicts`.

    A symbolic verdict is remembered, timeouts too, so that the same answer always gets the same
    reward; `memo` and `load_memo` carry that over to a resumed run.

    Args:
      rules: by which the answer is found, in order (`reasoning.rewards.answers.extract`).
      pool: decides formulas; needed for questions of the kind "expression". It stays the caller's
        to close.
      max_failures: the largest share of timeouts and crashes among the last FAILURE_WINDOW answers,
        after any answer from the FAILURE_MINIMUM-th on; in [0, 1].

    Raises:
      ValueError: `max_failures` is no share, or there is an unknown rule.
    """

    name = "answers"

    def __init__(
        self,
        rules: Sequence[Rule] = ("boxed", "hashes"),
        pool: SymbolicPool | None = None,
        max_failures: float = 0.01,
    ) -> None:
        if not 0 <= max_failures <= 1:
            raise ValueError(f"max_failures={max_failures}: must be a share between 0 and 1.")
        if not rules:
            raise ValueError("rules=(): give at least one, such as 'boxed'.")
        extract("", rules)  # refuses what is no rule
        self._rules, self._pool, self._max_failures = tuple(rules), pool, max_failures
        self._memo: dict[tuple[str, str, str], str] = {}  # verifier, gold, answer -> result
        self._failed: collections.deque[bool] = collections.deque()
        self._num_failed = 0  # of those
        self._last_failed: tuple[str, str] = ("", "")  # answer, gold
        self._clear()

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], questions: Sequence[Question]
    ) -> list[Verdict]:
        """Judge a batch.

        Args:
          prompts: B texts; one that ends with `<think>` opens the thinking of its completion.
          completions: B texts.
          questions: B objects with `answer` and `kind`.

        Returns:
          B Verdicts with answer, method, milliseconds, and the answer's key in votes.

        Raises:
          ValueError: arguments of different lengths, a question of the kind "expression" without a
            pool, or a gold answer that `compare` refuses.
          TooManyFailures: too many timeouts and crashes; the rest of the batch is not judged.
          RuntimeError: a worker of the pool cannot start.
        """
        if not len(prompts) == len(completions) == len(questions):
            raise ValueError(
                f"completions: {len(completions)} for {len(prompts)} prompts and {len(questions)} "
                "questions; give one of each per completion."
            )
        verdicts: list[Verdict | None] = []
        undecided: dict[int, Pair] = {}  # since the pool was asked last
        counted = 0
        for i, row in enumerate(zip(prompts, completions, questions)):
            verdict, pair = self._exact(*row)
            verdicts.append(verdict)
            if pair:
                undecided[i] = pair
            if len(undecided) == CHUNK or i == len(questions) - 1:
                for at, verdict in self._symbolic(undecided).items():
                    verdicts[at] = verdict
                self._count(verdicts[counted:], questions[counted:])
                counted, undecided = len(verdicts), {}
        return [_with_key(*row) for row in zip(verdicts, questions)]

    def memo(self) -> dict[str, Any]:
        """The symbolic verdicts so far, for `json.dumps`."""
        return {"verdicts": [[*key, result] for key, result in self._memo.items()]}

    def load_memo(self, memo: dict[str, Any]) -> None:
        """Go on with the verdicts of an earlier `memo()`; those of this judge are forgotten.

        Verdicts of another version of the verifier are kept, and used by that version alone.

        Raises:
          ValueError: it is no such memo.
        """
        try:
            loaded = {(v, gold, answer): result for v, gold, answer, result in memo["verdicts"]}
            if not set(loaded.values()) <= set(get_args(Result)):
                raise ValueError("an unknown result")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"memo: not what AnswerJudge.memo() gave ({error!r}); the checkpoint that holds it "
                "is damaged or of another version."
            ) from error
        self._memo = loaded

    def metrics(self) -> dict[str, float]:
        """Shares of the answers judged since the last call, and their time; {} if there were none.

        Returns:
          Shares of all answers: `exact` and `symbolic` (the method), `memoised` (symbolic, from
          memory), and of the reasons `no_answer`, `unparsed`, `timeout`, `crash`. And
          `p99_milliseconds`, which 99% of the answers stay under.
        """
        if not self._milliseconds:
            return {}
        total = len(self._milliseconds)
        names = ("exact", "symbolic", "memoised", "no_answer", "unparsed", *_FAILURES)
        found = {name: self._counts[name] / total for name in names}
        found["p99_milliseconds"] = float(np.percentile(self._milliseconds, 99))
        self._clear()
        return found

    def _clear(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._milliseconds: list[float] = []

    def _exact(
        self, prompt: str, completion: str, question: Question
    ) -> tuple[Verdict | None, Pair | None]:
        """The verdict on one completion, or the pair that algebra has to decide."""
        if question.kind == "expression" and self._pool is None:
            raise ValueError(
                "kind='expression': only algebra can judge it; give AnswerJudge a "
                "SymbolicPool, which needs `pip install '.[math]'`."
            )
        started = time.perf_counter()
        thinking = prompt.rstrip().endswith("<think>")
        answer, reason = extract(completion, self._rules, thinking)
        if answer is None:
            found = Verdict(False, reason)
        else:
            found = compare(question.answer, answer, question.kind)
        if found is None:
            return None, (question.answer, answer)
        taken = 1000 * (time.perf_counter() - started)
        return Verdict(found.correct, found.reason, found.answer, "exact", taken), None

    def _symbolic(self, undecided: dict[int, Pair]) -> dict[int, Verdict]:
        """The pool's verdicts on the undecided rows: each pair is asked for once, ever."""
        if not undecided:
            return {}
        version = self._pool.version
        asked = [p for p in dict.fromkeys(undecided.values()) if (version, *p) not in self._memo]
        outcomes = dict(zip(asked, self._pool.verify(asked)))
        results = {p: self._memo.get((version, *p)) for p in undecided.values()}
        for pair, outcome in outcomes.items():
            self._memo[version, *pair] = results[pair] = outcome.result
        while len(self._memo) > MEMO_SIZE:
            del self._memo[next(iter(self._memo))]
        verdicts = {}
        for i, pair in undecided.items():
            reason = _REASONS.get(results[pair], results[pair])
            taken = 0.0
            if pair in outcomes:  # the first row that asked; the others have it from memory
                taken = outcomes.pop(pair).milliseconds
            else:
                self._counts["memoised"] += 1
            verdicts[i] = Verdict(reason == "correct", reason, pair[1], "symbolic", taken)
        return verdicts

    def _count(self, verdicts: Sequence[Verdict], questions: Sequence[Question]) -> None:
        """Count for the metrics, and refuse to go on where too much fails."""
        for verdict, question in zip(verdicts, questions):
            failed = verdict.reason in _FAILURES
            self._counts[verdict.method] += 1
            self._counts[verdict.reason] += 1
            self._milliseconds.append(verdict.milliseconds)
            self._failed.append(failed)
            self._num_failed += failed
            if failed:
                self._last_failed = verdict.answer, question.answer
            if len(self._failed) > FAILURE_WINDOW:
                self._num_failed -= self._failed.popleft()
            if self._num_failed:
                self._check_failures()

    def _check_failures(self) -> None:
        judged = len(self._failed)
        if judged < FAILURE_MINIMUM or self._num_failed <= self._max_failures * judged:
            return
        answer, gold = self._last_failed
        raise TooManyFailures(
            f"max_failures={self._max_failures}: {self._num_failed} of the last {judged} answers "
            f"ended in a timeout or crash of the verifier, the last of them {shortened(answer)} "
            f"where the gold is {shortened(gold)}; read such completions, then give the "
            "SymbolicPool more cpu_seconds or allow a larger share."
        )


def _with_key(verdict: Verdict, question: Question) -> Verdict:
    """The verdict with its key: the gold's for what is right, never that for what is wrong."""
    if verdict.answer is None:
        return verdict
    key = gold = _gold_key(question.answer, question.kind)
    if not verdict.correct:
        key = vote_key(verdict.answer, question.kind)
        if key == gold:  # another unit, or y = 5 for x = 5
            key = f"not {gold}: {verdict.answer}"
    return dataclasses.replace(verdict, key=key)
