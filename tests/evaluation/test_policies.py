"""Judging completions and summing them up: against cases small enough to count by hand."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.data.formats import TextFormat
from reasoning.data.questions import Question
from reasoning.data.tasks import make_task
from reasoning.data.tasks.countdown import Countdown, CountdownProblem
from reasoning.data.tokenizers import train_tokenizer
from reasoning.evaluation.diversity import entropy
from reasoning.evaluation.estimators import cons_at_k
from reasoning.evaluation.policies import (
    Judged,
    Policy,
    judge,
    sample_and_judge,
    sample_problems,
    summarise,
    tag_strategy_counts,
)
from reasoning.models.config import ModelConfig
from reasoning.rewards.host import task_reward
from reasoning.rewards.judges import AnswerJudge
from reasoning.rewards.symbolic import Outcome
from reasoning.sampling import slots
from reasoning.sampling.budgets import Budget
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG

TASK = make_task("countdown")
TOKENIZER = train_tokenizer(
    (), vocab_size=None, words=TASK.words, numbers="whole", max_number=TASK.max_number
)
FORMAT = TextFormat(TOKENIZER)
CONFIG = ModelConfig(vocab_size=TOKENIZER.vocab_size, num_strategies=4)
POLICY = Policy(None, CONFIG, FORMAT, TASK, task_reward(TASK), max_new_tokens=64)
PROBLEM = CountdownProblem((2, 3, 10), 16)
STEPS = "from 16 - 10 = 6 , 3 * 2 = 6 yes"  # as `backward` searches
RIGHT = f"{STEPS} answer 3 * 2 = 6 , 10 + 6 = 16"
WRONG = f"{STEPS} answer 3 + 2 = 5 , 10 + 5 = 15"
TAG = CONFIG.vocab_size  # the id of tag 0


def rows(*completions: tuple[int | None, str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask `[1, R, 64]` of (first id, text) completions that end with <eos>."""
    tokens = np.full((1, len(completions), 64), TOKENIZER.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for r, (first, text) in enumerate(completions):
        opening = [] if first is None else [first]
        ids = [*opening, *TOKENIZER.encode(text), TOKENIZER.eos_id]
        tokens[0, r, : len(ids)] = ids
        mask[0, r, : len(ids)] = True
    return tokens, mask


def made(tags, strategies, correct) -> Judged:
    """Judgements `[P, R]` in which only these three say anything."""
    tags = np.array(tags)
    return Judged(
        tags=tags,
        correct=np.array(correct, bool),
        reasons=np.full(tags.shape, "correct", object),
        strategies=np.array(strategies),
        validity=np.ones(tags.shape),
        lengths=np.full(tags.shape, 7),
        completions=np.full(tags.shape, "a b c", object),
        answers=np.where(correct, "right", None).astype(object),
        votes=np.where(correct, "right", None).astype(object),
        methods=np.full(tags.shape, "exact", object),
        milliseconds=np.zeros(tags.shape),
    )


def with_strategies(num_strategies: int, names: tuple[str, ...] = TASK.strategies) -> Policy:
    """The policy with so many tags, on a task of these strategies."""
    task = Countdown()
    task.strategies = names
    config = dataclasses.replace(CONFIG, num_strategies=num_strategies)
    return dataclasses.replace(POLICY, config=config, problems=task)


# judging


def test_judge_reads_tag_verdict_strategy_and_length():
    judged = judge(POLICY, [PROBLEM], *rows((TAG + 2, RIGHT), (TAG, WRONG), (TAG + 3, "2 2")))
    assert judged.tags.tolist() == [[2, 0, 3]]
    assert judged.correct.tolist() == [[True, False, False]]
    assert judged.reasons.tolist() == [["correct", "wrong_value", "no_answer"]]
    assert judged.validity.tolist() == [[1.0, 1.0, 0.0]]
    assert judged.lengths.tolist() == [[2 + len(RIGHT.split()), 2 + len(WRONG.split()), 4]]
    assert judged.completions.tolist() == [[RIGHT, WRONG, "2 2"]]
    assert judged.answers.tolist() == [
        ["3 * 2 = 6 , 10 + 6 = 16", "3 + 2 = 5 , 10 + 5 = 15", None]
    ]
    backward, none = TASK.strategies.index("backward"), len(TASK.strategies)
    assert judged.strategies.tolist() == [[backward, backward, none]]


def judged_answers(gold, kind, *answers):
    """One problem's verdicts by the judge of answers, whatever the policy's words."""
    questions = [Question("q", "?", gold, kind)] * len(answers)
    texts = [rf"\boxed{{{answer}}}" for answer in answers]

    def judge_texts(*_):
        return AnswerJudge(("boxed",), NoAlgebra())(["?"] * len(texts), texts, questions)

    policy = dataclasses.replace(POLICY, judge=judge_texts)
    return judge(policy, [PROBLEM], *rows(*[(TAG, RIGHT)] * len(answers)))


class NoAlgebra:
    version = "none"

    def verify(self, pairs):
        return [Outcome("right" if answer == "x+x" else "wrong", 1.0) for _, answer in pairs]


@pytest.mark.parametrize(
    "gold, kind, answers, voted",
    [
        ("18", "number", ["18", "$18", "18.00", "20", "20", "7"], True),
        ("18", "number", ["18", "20", "x=20", "20.0", "18.0", "7"], False),
        (r"\frac{1}{2}", "expression", [r"\frac12", "0.5", "x", "z", "y"], True),
        ("2x", "expression", ["x+x", "2x", "3x", "3x", "y=2x"], True),
        ("(A)", "text", ["A", "(a)", "b", "c", "(B)", r"\text{(A)}"], True),
        ("x=5", "expression", ["y=5", "y=5", "y=5", "x=5", "5"], False),
        (r"5\text{ km}", "expression", [r"5\text{ miles}"] * 3 + ["5", r"5\text{ km}"], False),
    ],
)
def test_spellings_of_one_answer_vote_together(gold, kind, answers, voted):
    judged = judged_answers(gold, kind, *answers)
    assert judged.answers.tolist() == [answers], "as they were written"
    assert len(set(judged.votes[judged.correct])) == 1
    assert cons_at_k(judged.votes, judged.correct, len(answers)).tolist() == [voted]


def test_every_completion_is_judged_on_its_own_problem():
    other = CountdownProblem((2, 3, 10), 15)
    tokens, mask = rows((TAG, RIGHT), (TAG, WRONG))
    judged = judge(POLICY, [PROBLEM, other], np.tile(tokens, (2, 1, 1)), np.tile(mask, (2, 1, 1)))
    assert judged.correct.tolist() == [[True, False], [False, True]]


def test_a_completion_that_is_over_long_is_not_correct():
    tokens, mask = rows((TAG + 1, RIGHT), (TAG, RIGHT))
    tokens[0, 0, mask[0, 0].sum() - 1] = TOKENIZER.encode("16")[0]  # where <eos> stood
    mask[0, 1, mask[0, 1].sum() - 1] = False
    judged = judge(POLICY, [PROBLEM], tokens, mask)
    assert judged.correct.tolist() == [[False, False]]
    assert judged.reasons.tolist() == [["over_long", "over_long"]]
    assert judged.answers.tolist() == [[None, None]], "an answer that is not judged must not vote"
    assert judged.tags.tolist() == [[1, 0]]
    assert judged.lengths.tolist() == [[2 + len(RIGHT.split()), 1 + len(RIGHT.split())]]
    assert judged.validity.tolist() == [[1.0, 1.0]], "the steps are there"


def test_a_completion_that_opens_with_no_tag_keeps_its_first_word():
    judged = judge(POLICY, [PROBLEM], *rows((None, RIGHT), (None, WRONG)))
    assert judged.tags.tolist() == [[-1, -1]]
    assert judged.completions.tolist() == [[RIGHT, WRONG]]
    assert judged.correct.tolist() == [[True, False]]
    assert judged.validity.tolist() == [[1.0, 1.0]]
    last_word = TOKENIZER.vocab_size - 1
    assert judge(POLICY, [PROBLEM], *rows((last_word, RIGHT))).tags.tolist() == [[-1]]


def test_empty_completions_are_wrong():
    """A tag and <eos>; <eos> alone; a tag alone."""
    tokens, mask = rows((TAG + 3, ""), (None, ""), (TAG + 3, ""))
    mask[0, 2, 1] = False
    judged = judge(POLICY, [PROBLEM], tokens, mask)
    assert judged.tags.tolist() == [[3, -1, 3]]
    assert judged.correct.tolist() == [[False] * 3]
    assert judged.reasons.tolist() == [["no_answer", "no_answer", "over_long"]]
    assert judged.strategies.tolist() == [[len(TASK.strategies)] * 3]
    assert judged.validity.tolist() == [[0.0] * 3]
    assert judged.lengths.tolist() == [[2, 1, 1]]
    assert judged.completions.tolist() == [[""] * 3]
    assert judged.answers.tolist() == [[None] * 3]


def test_a_completion_of_no_token_at_all_is_refused():
    tokens, mask = rows((TAG, RIGHT), (TAG, RIGHT))
    mask[0, 1] = False
    with pytest.raises(ValueError, match="mask: completion 1 of problem 0 has no token"):
        judge(POLICY, [PROBLEM], tokens, mask)


def test_a_tag_inside_the_text_is_no_word():
    for place in (-2, len(STEPS.split())):  # the last number of the answer; the last check
        tokens, mask = rows((TAG, RIGHT))
        place %= mask.sum()
        tokens[0, 0, place] = TAG + 1
        judged = judge(POLICY, [PROBLEM], tokens, mask)
        assert judged.tags.tolist() == [[0]]
        assert "\ufffd" in judged.completions[0, 0]
        in_answer = place > len(STEPS.split())
        assert judged.correct[0, 0] != in_answer
        assert (judged.validity[0, 0] == 1.0) == in_answer


def test_rows_are_records_for_a_json_file():
    judged = judge(POLICY, [PROBLEM], *rows((TAG + 2, RIGHT), (None, "2")))
    first, second = json.loads(json.dumps(judged.rows(TASK, [PROBLEM])))
    assert first.pop("milliseconds") >= 0
    assert first == {
        "prompt": "2 3 10 make 16 :",
        "tag": 2,
        "completion": RIGHT,
        "reward": 1.0,
        "correct": True,
        "reason": "correct",
        "answer": RIGHT.partition(" answer ")[2],
        "method": "exact",
        "strategy": "backward",
        "validity": 1.0,
    }
    assert second["tag"] == -1 and second["strategy"] is None and not second["correct"]


def test_batches_of_the_sampler_and_slots_change_no_completion(rough_params, monkeypatch):
    config = ModelConfig(
        vocab_size=TOKENIZER.vocab_size, num_strategies=2, d_model=8, num_layers=1, num_heads=2,
        num_kv_heads=2, head_dim=4, d_ff=8, max_length=16,
    )
    policy = Policy(rough_params(config), config, FORMAT, TASK, task_reward(TASK), max_new_tokens=6)
    problems = [TASK.sample(0, i) for i in range(3)]
    tags = np.array([0, 1, OWN_TAG])
    key, filters = jax.random.key(0), Filters()
    whole = sample_and_judge(policy, problems, tags, key, filters, batch_problems=3)
    assert whole.completions.shape == (3, 3)
    assert (whole.tags[:, :2] == [0, 1]).all()
    assert len(set(whole.completions.ravel())) > 3
    parts = sample_and_judge(policy, problems, tags, key, filters, batch_problems=2)
    for name, values in dataclasses.asdict(whole).items():
        np.testing.assert_array_equal(getattr(parts, name), values, err_msg=name)
    monkeypatch.setattr(slots, "CPU_ROWS", 4)  # fewer than the nine sequences
    refilled = sample_and_judge(policy, problems, tags, key, filters, batch_problems=3)
    for name, values in dataclasses.asdict(whole).items():
        np.testing.assert_array_equal(getattr(refilled, name), values, err_msg=name)


def test_one_budget_stands_for_all_of_a_problems_samples(rough_params):
    config = dataclasses.replace(CONFIG, d_model=16, num_layers=1, num_heads=2, num_kv_heads=2,
                                 head_dim=8, d_ff=16, max_length=40)
    policy = dataclasses.replace(POLICY, params=rough_params(config), config=config,
                                 max_new_tokens=12)
    (end,) = TOKENIZER.encode("answer")

    def drawn(*most):
        budget = Budget(jnp.array(most), jnp.zeros(len(most), int), end, (end,)) if most else None
        tags, filters = np.arange(3), Filters()
        return sample_problems(policy, [PROBLEM] * 2, tags, jax.random.key(0), filters, 2, budget)

    np.testing.assert_array_equal(drawn(4).tokens, drawn(4, 4, 4).tokens)
    assert (drawn(4).tokens == end).sum() > (drawn().tokens == end).sum()
    assert (drawn(4).tokens != drawn(4, 9, 4).tokens).any()


# summing up


def test_tag_strategy_counts_by_hand():
    """Two problems; the completion without a tag is not counted."""
    judged = made([[0, 0, 2, -1], [0, 2, 2, 2]], [[1, 4, 0, 0], [1, 0, 0, 3]], np.ones((2, 4)))
    counts = tag_strategy_counts(judged, CONFIG, TASK)
    expected = np.zeros((2, 4, 5))
    expected[0, 0, 1] = expected[0, 0, 4] = expected[0, 2, 0] = 1
    expected[1, 0, 1], expected[1, 2, 0], expected[1, 2, 3] = 1, 2, 1
    np.testing.assert_array_equal(counts, expected)


def test_summary_of_a_perfect_specialist():
    """Tag t alone solves problem t: coverage is 1, pass@1 a quarter, best tag from validation."""
    tags = np.repeat(np.arange(4), 2)  # two samples of each tag
    right = tags == np.arange(4)[:, None]
    judged = made(np.tile(tags, (4, 1)), np.tile(tags, (4, 1)), right)
    own = made([[3, 3, -1, 3]] * 4, [[3] * 4] * 4, [[1, 1, 1, 0]] * 4)
    greedy = made([[0, 1, 2, 3]] * 4, [[4] * 4] * 4, [[0, 0, 0, 1]] * 2 + [[0] * 4] * 2)
    validation = made([tags], [tags], [tags == 3])
    summary = summarise(POLICY, judged, own, greedy, validation)
    assert summary.per_problem["pass@S"].tolist() == [1.0] * 4
    figures = summary.figures
    expected = {
        "pass@1": 1 / 4, "pass@1_best_tag": 1 / 4, "pass@1_own_tag": 3 / 4, "pass@S": 1.0,
        "cons@S": 1.0, "greedy_coverage": 1 / 2, "mutual_information": math.log(4),
        "tag_usage": 1.0, "recognised": 1.0, "trace_validity": 1.0, "vendi": 1.0,
        "distinct_2": 2 / 16,
    }
    assert {name: figures[name]["value"] for name in expected} == pytest.approx(expected)
    assert all(figures[name]["n"] == 4 for name in expected)
    assert figures["pass@1_best_tag"]["tag"] == 3
    assert figures["mutual_information"]["share"] == pytest.approx(1.0)
    assert figures["tag_usage"]["shares"] == [0.0, 0.0, 0.0, 1.0]
    assert figures["pass@k"]["k"] == [1, 2, 3, 4, 8]
    curve = [point["value"] for point in figures["pass@k"]["curve"]]
    assert curve == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1.0, 1.0])
    assert [(tag["tag"], tag["pass@1"]["value"]) for tag in figures["per_tag"]] == [
        (tag, 1 / 4) for tag in range(4)
    ]
    assert figures["per_tag"][0]["length"] == 7.0
    np.testing.assert_array_equal(figures["tag_by_strategy"], 8 * np.eye(4, 5))
    json.dumps(figures)


@pytest.mark.parametrize(
    "num_tags, names, maximum",
    [
        (4, TASK.strategies, math.log(4)),
        (6, TASK.strategies, math.log(4)),
        (3, TASK.strategies, math.log(3)),
        (1, TASK.strategies, 0.0),
        (4, ("largest",), 0.0),
    ],
)
@pytest.mark.parametrize("trained", ["all tags", "one tag"])
def test_mutual_information_is_a_share_of_one_maximum(num_tags, names, maximum, trained):
    """Tag t follows strategy t, or none if there is no such strategy: MI is what is followed."""
    used = range(num_tags if trained == "all tags" else 1)
    tags = np.tile(np.resize(used, num_tags), (3, 1))
    followed = np.minimum(tags, len(names))
    judged = made(tags, followed, np.ones(tags.shape))
    summary = summarise(with_strategies(num_tags, names), judged, judged, judged, judged)
    information = summary.figures["mutual_information"]
    value = entropy(np.bincount(followed[0]))
    assert information["value"] == pytest.approx(value)
    assert information["maximum"] == pytest.approx(maximum)
    assert information["share"] == pytest.approx(value / maximum if maximum else 0.0)
    if trained == "one tag":
        assert information["share"] == 0.0
    recognised = summary.figures["recognised"]["value"]
    assert recognised == pytest.approx((followed < len(names)).mean())


def test_a_policy_that_opens_with_no_tag_uses_none():
    judged = made([[0, 1, 2, 3]], [[4] * 4], [[0] * 4])
    own = made([[-1] * 4], [[4] * 4], [[0] * 4])
    usage = summarise(POLICY, judged, own, judged, judged).figures["tag_usage"]
    assert usage["value"] == 0.0 and usage["shares"] == [0.0] * 4


@pytest.mark.parametrize(
    "per_tag, last", [(1, []), (3, [8]), (4, [8, 16]), (8, [8, 16, 32]), (9, [8, 16, 32])]
)
def test_pass_at_k_goes_as_far_as_the_samples(per_tag, last):
    tags = np.repeat(np.arange(4), per_tag)[None]
    judged = made(tags, tags, np.ones(tags.shape))
    curve = summarise(POLICY, judged, judged, judged, judged).figures["pass@k"]
    assert curve["k"] == [1, 2, 3, 4, *last]
    assert [point["value"] for point in curve["curve"]] == [1.0] * len(curve["k"])


def test_samples_that_are_not_tag_major_are_refused():
    good = made([[0, 0, 1, 1]] * 2, [[0] * 4] * 2, np.ones((2, 4)))
    for tags in ([[0, 1, 0, 1]] * 2, [[0, 0, 1, 1], [1, 1, 0, 0]], [[0, 0, 0, 1]] * 2, [[0, 1, 1]]):
        bad = made(tags, tags, np.ones(np.shape(tags)))
        with pytest.raises(ValueError, match=r"judged: .* tag-major"):
            summarise(POLICY, bad, good, good, good)
        with pytest.raises(ValueError, match=r"validation: .* \[0, 1\]"):
            summarise(POLICY, good, good, good, bad)


def test_fewer_samples_than_tags_are_refused():
    few = made([[0, 1]], [[0, 1]], [[1, 1]])
    with pytest.raises(ValueError, match=r"judged: 2 samples of a problem .* 4 tags"):
        summarise(POLICY, few, few, few, few)
