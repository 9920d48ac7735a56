"""Multiplication: traces by hand, steps against integer arithmetic, checks against corruptions."""

import collections
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.tasks.base import parse_completion
from reasoning.data.tasks.moves import split_steps
from reasoning.data.tasks.multiplication import Multiplication, written

TASK = Multiplication()
THREE = Multiplication(digits=3)
WRITTEN = [strategy for strategy in TASK.strategies if strategy != "direct"]
EVERY = list(itertools.product(range(10, 100), repeat=2))
PROBLEM = (23, 47)
STEPS = {
    "schoolbook": "3 * 7 = 1 2 , 2 * 7 = 4 1 + 2 = 6 1 , 3 * 4 = 2 1 , 2 * 4 = 8 + 1 = 9 , "
    "1 6 1 + 0 2 9 = 1 8 0 1",
    "columns": "3 * 7 = 1 2 , 3 * 4 = 2 1 + 2 = 4 1 , 2 * 7 = 4 1 + 4 1 = 8 2 , "
    "2 * 4 = 8 + 2 = 0 1",
    "distributive": "0 2 * 0 4 = 0 0 8 , 3 * 0 4 = 0 2 1 , 0 0 8 + 0 2 1 = 0 2 9 , "
    "0 2 * 7 = 0 4 1 , 3 * 7 = 1 2 , 0 4 1 + 1 2 = 1 6 1 , 0 2 9 + 1 6 1 = 1 8 0 1",
    "peasant": "3 2 odd 7 4 , 1 1 odd 4 9 , 5 odd 8 8 1 , 2 even 6 7 3 , 1 odd 2 5 7 , "
    "7 4 + 4 9 = 1 4 1 , 1 4 1 + 8 8 1 = 9 2 3 , 9 2 3 + 2 5 7 = 1 8 0 1",
    "direct": "",
}
PROBLEMS = st.tuples(st.integers(10, 99), st.integers(10, 99))


def number(text: str) -> int:
    """The value of digits that are written the least significant first."""
    words = text.split(" ")
    assert all(len(word) == 1 for word in words) and (words[-1] != "0" or len(words) == 1)
    return sum(int(word) * 10**place for place, word in enumerate(words))


def equations(steps: str) -> list[tuple[int, str, int, int]]:
    """Each `a op b = c` of a trace as integers; a second operation goes on with the first's c."""
    found = []
    for step in split_steps(steps):
        if "=" in step:
            left, *results = step.split(" = ")
            for result in results:
                op = "*" if "*" in left else "+"
                a, b = left.split(f" {op} ")
                found.append((number(a), op, number(b), number(result.split(" + ")[0])))
                left = result
    return found


def test_one_problem_by_hand():
    assert TASK.prompt(PROBLEM) == "3 2 * 7 4 :"
    assert {name: TASK.trace(PROBLEM, name).steps for name in TASK.strategies} == STEPS
    assert TASK.trace(PROBLEM, "direct").completion == "answer 1 8 0 1"


@pytest.mark.parametrize(
    ("problem", "strategy", "steps"),
    [
        ((30, 40), "schoolbook", "0 * 0 = 0 , 3 * 0 = 0 + 0 = 0 , 0 * 4 = 0 , "
         "3 * 4 = 2 1 + 0 = 2 1 , 0 + 0 0 2 1 = 0 0 2 1"),
        ((30, 40), "distributive", "0 3 * 0 4 = 0 0 2 1"),  # a digit 0 has no part
        ((30, 47), "distributive", "0 3 * 0 4 = 0 0 2 1 , 0 3 * 7 = 0 1 2 , "
         "0 0 2 1 + 0 1 2 = 0 1 4 1"),
        ((47, 16), "peasant", "6 1 even 7 4 , 8 even 4 9 , 4 even 8 8 1 , 2 even 6 7 3 , "
         "1 odd 2 5 7"),  # the smaller factor is halved; one odd row needs no sum
        ((99, 99), "columns", "9 * 9 = 1 8 , 9 * 9 = 1 8 + 8 = 9 8 , 9 * 9 = 1 8 + 9 8 = 0 7 1 , "
         "9 * 9 = 1 8 + 7 1 = 8 9"),
    ],
)
def test_zeros_and_carries_by_hand(problem, strategy, steps):
    assert TASK.trace(problem, strategy).steps == steps


@settings(deadline=None)
@given(st.integers(0, 9999))
def test_the_least_significant_digit_comes_first(value):
    assert number(written(value)) == value


@pytest.mark.parametrize("task", [TASK, THREE], ids=["two digits", "three digits"])
def test_every_equation_is_exact_and_the_last_results_are_the_product(task):
    operations = {"*": int.__mul__, "+": int.__add__}
    for index in range(150):
        problem = task.sample(0, index)
        first, second = problem
        for strategy in WRITTEN:
            trace = task.trace(problem, strategy)
            found = equations(trace.steps)
            assert all(operations[op](a, b) == result for a, op, b, result in found)
            assert number(trace.answer) == first * second
            assert task.check_trace(problem, None, trace.steps) == 1.0
            if strategy in ("schoolbook", "distributive"):
                assert found[-1][3] == first * second
            if strategy == "columns":  # each column leaves a digit, the last one all that is left
                last = [task.digits - abs(task.digits - 1 - k) for k in range(2 * task.digits - 1)]
                results = [split_steps(trace.steps)[i - 1].split(" = ")[-1]
                           for i in itertools.accumulate(last)]
                digits = [text.split()[0] for text in results[:-1]]
                assert number(" ".join((*digits, results[-1]))) == first * second
            if strategy == "peasant":
                rows = [step for step in split_steps(trace.steps) if "=" not in step]
                odd = [number(row.split(" odd ")[1]) for row in rows if " odd " in row]
                assert sum(odd) == first * second
                assert all(number(row.replace(" odd ", "/").replace(" even ", "/").split("/")[0])
                           == min(problem) >> i for i, row in enumerate(rows))


def test_the_rows_of_the_schoolbook_are_the_multiples():
    for first, second in EVERY[::97]:
        found = equations(TASK.trace((first, second), "schoolbook").steps)
        tens, ones = divmod(second, 10)
        assert found[-1] == (first * ones, "+", first * tens * 10, first * second)


def test_no_text_of_two_digits_has_more_than_124_words():
    lengths = [
        len(f"{TASK.prompt(problem)} {TASK.trace(problem, 'peasant').completion}".split())
        for problem in EVERY
    ]
    assert max(lengths) == 124 and sum(n > 112 for n in lengths) < 0.02 * len(lengths)


@settings(deadline=None, max_examples=60)
@given(PROBLEMS, st.randoms(use_true_random=False))
def test_practice_is_exact_in_any_order(problem, rng):
    steps, answer = parse_completion(TASK.practice(problem, rng))
    assert TASK.verify(problem, answer).correct
    assert TASK.check_trace(problem, None, steps) == 1.0
    operations = {"*": int.__mul__, "+": int.__add__}
    assert all(operations[op](a, b) == result for a, op, b, result in equations(steps))


def test_practice_takes_every_way_in_many_orders():
    rng = random.Random(0)
    texts = {TASK.practice(PROBLEM, rng) for _ in range(400)}
    signs = collections.Counter(
        "table" if "odd" in text else "parts" if "* 0 4" in text else
        "rows" if "1 6 1" in text else "columns"
        for text in texts
    )
    assert set(signs) == {"table", "parts", "rows", "columns"}
    assert signs["columns"] == 2  # its one column of two products leaves one choice
    assert min(signs["table"], signs["parts"]) > 20 and len(texts) > 80


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("1 8 0 1", "correct"),
        ("1 0 8 1", "wrong_value"),
        ("1", "wrong_value"),
        ("0", "wrong_value"),
        (None, "no_answer"),
        ("", "no_answer"),
        ("1 8 0 1 0", "malformed"),  # 01081
        ("0 0", "malformed"),
        ("1081", "malformed"),
        ("18 0 1", "malformed"),
        (" 1 8 0 1", "malformed"),
        ("1 8 0 1\n", "malformed"),
        ("1 8  0 1", "malformed"),
        ("1 8 0 1 1", "malformed"),  # of five digits: no product
        ("١ 8 0 1", "malformed"),
        ("１ 8 0 1", "malformed"),
        ("- 1 8 0 1", "malformed"),
        ("answer", "malformed"),
        ("9 " * 50_000 + "9", "malformed"),
    ],
)
def test_verdicts(answer, reason):
    assert TASK.verify(PROBLEM, answer).reason == reason


def test_the_verifier_accepts_the_product_alone():
    for first, second in EVERY[::811]:
        accepted = [n for n in range(10_000) if TASK.verify((first, second), written(n)).correct]
        assert accepted == [first * second]


@pytest.mark.parametrize(
    ("steps", "strategy", "share"),
    [
        ("3 * 7 = 1 2 , 2 * 7 = 4 1 + 2 = 6 1", None, 1.0),
        ("3 * 7 = 1 2 , 2 * 7 = 4 1 + 3 = 7 1", None, 0.5),  # 2 is carried
        ("3 * 7 = 1 2 , 2 * 4 = 8 + 2 = 0 1", None, 0.5),  # the column between is missing
        ("3 * 7 = 1 2 , 2 * 7 = 4 1 + 2 = 6 1 , 3 * 4 = 2 1 + 6 = 8 1", None, 2 / 3),
        # The second row first, and the rows added the other way round.
        ("3 * 4 = 2 1 , 2 * 4 = 8 + 1 = 9 , 3 * 7 = 1 2 , 2 * 7 = 4 1 + 2 = 6 1 , "
         "0 2 9 + 1 6 1 = 1 8 0 1", None, 1.0),
        ("1 6 1 + 0 2 9 = 1 8 0 1", None, 0.0),  # rows that are not there yet
        ("3 * 0 4 = 0 2 1 , 0 2 * 7 = 0 4 1 , 0 4 1 + 0 2 1 = 0 6 2", None, 1.0),
        ("3 * 0 4 = 0 2 1 , 3 * 0 4 = 0 2 1", None, 0.5),
        ("3 * 0 4 = 0 2 1 , 0 2 1 + 0 2 1 = 0 4 2", None, 0.5),  # a term is used once
        ("7 4 odd 3 2 , 3 2 even 6 4", None, 0.5),  # 23 is odd
        ("7 4 odd 3 2 , 3 2 odd 6 4", None, 1.0),  # the larger factor is halved
        ("7 4 odd 3 2 , 3 2 odd 6 4", "peasant", 0.0),
        ("3 2 odd 7 4 , 5 odd 8 8 1 , 1 1 odd 4 9", None, 2 / 3),
        ("3 2 * 7 4 = 1 8 0 1", None, 0.0),  # no small step
        ("7 * 3 = 1 2", None, 0.0),
        ("3 * 7 = 1 2 0", None, 0.0),
        ("3 * 7 = 1 2 , and so on", None, 0.5),
        ("3 * 7 = 1 2 ,", None, 0.0),
        ("", None, 0.0),
        ("", "direct", 1.0),
        ("3 * 7 = 1 2", "direct", 0.0),
        ("", "columns", 0.0),
        ("3 * 7 = 1 2", "columns", 1.0),
        ("3 * 7 = 1 2 , 2 * 7 = 4 1 + 2 = 6 1", "columns", 0.5),
    ],
)
def test_check_trace(steps, strategy, share):
    assert TASK.check_trace(PROBLEM, strategy, steps) == pytest.approx(share)


@pytest.mark.parametrize("problem", [PROBLEM, (33, 77), (11, 11), (90, 90)])
def test_no_more_steps_count_than_a_calculation_has(problem):
    traces = [TASK.trace(problem, strategy).steps for strategy in WRITTEN]
    for steps in traces:
        longest = max(len(split_steps(trace)) for trace in traces)
        for many in (f"{steps} , " * 500, " , ".join(s for t in traces for s in [t] * 500)):
            count = len(split_steps(many))
            assert 0 < TASK.check_trace(problem, None, many) <= (longest + 1) / count


@settings(deadline=None, max_examples=200)
@given(PROBLEMS, st.sampled_from(WRITTEN), st.data())
def test_any_changed_word_is_found(problem, strategy, data):
    words = TASK.trace(problem, strategy).steps.split()
    place = data.draw(st.integers(0, len(words) - 1))
    others = [w for w in (*TASK.words, *"0123456789", "10", "x") if w != words[place]]
    corrupted = " ".join((*words[:place], data.draw(st.sampled_from(others)), *words[place + 1 :]))
    assert TASK.check_trace(problem, strategy, corrupted) < 1.0
    assert TASK.check_trace(problem, None, corrupted) < 1.0


def test_a_strategy_is_recognised_wherever_the_traces_differ():
    for problem in EVERY[::7]:
        traces = {strategy: TASK.trace(problem, strategy) for strategy in TASK.strategies}
        assert len(set(traces.values())) == 5
        for strategy, trace in traces.items():
            assert TASK.recognise(problem, trace.steps) == strategy


def test_one_digit_leaves_one_way_to_multiply():
    task = Multiplication(digits=1)
    traces = [task.trace((3, 7), strategy) for strategy in WRITTEN]
    assert [trace.steps for trace in traces[:3]] == ["3 * 7 = 1 2"] * 3
    assert task.recognise((3, 7), "3 * 7 = 1 2") is None
    assert task.recognise((3, 7), traces[3].steps) == "peasant"
    assert len(task.completions((3, 7))) == 3


@pytest.mark.parametrize(
    ("steps", "strategy"),
    [
        ("", "direct"),
        ("3 * 7 = 1 2", None),  # how schoolbook and columns begin
        ("3 * 7 = 2 2 , 2 * 7 = 4 1 + 2 = 6 1", "schoolbook"),  # a wrong product
        ("3 * 7 = 1 3 , 3 * 4 = 2 1 + 3 = 5 1", "columns"),
        ("0 2 * 0 4 = 8", "distributive"),
        ("3 2 odd 7 4 nonsense", None),
        ("3 2 odd 7 4", "peasant"),
        ("7 4 odd 3 2", None),
        ("nonsense", None),
    ],
)
def test_recognise(steps, strategy):
    assert TASK.recognise(PROBLEM, steps) == strategy


@pytest.mark.parametrize(
    "unit", ["9", " ", " , ", "3 * 7 = 1 2 , ", "1 + ", "* ", "= ", "٧ ", "\0", "🙂 ", "odd "]
)
def test_long_nonsense_is_worth_nothing(unit):
    text = unit * (100_000 // len(unit))
    assert not TASK.verify(PROBLEM, text).correct
    for strategy in (None, *TASK.strategies):
        assert TASK.check_trace(PROBLEM, strategy, text) < 0.001
    assert TASK.recognise(PROBLEM, text) is None


def test_both_orders_of_the_factors_are_one_instance():
    assert TASK.key((23, 47)) == TASK.key((47, 23)) == "23 * 47"
    assert len({TASK.key(problem) for problem in EVERY}) == 90 * 91 // 2


@pytest.mark.parametrize(
    ("digits", "message"), [(0, "digits=0: must lie in 1..4."), (5, "digits=5: must lie in 1..4.")]
)
def test_impossible_arguments_are_refused(digits, message):
    with pytest.raises(ValueError) as error:
        Multiplication(digits)
    assert str(error.value) == message


def test_samples_stay_what_they_were():
    assert [TASK.sample(0, index) for index in range(3)] == [(41, 82), (34, 80), (14, 19)]
    for task in (TASK, THREE, Multiplication(4)):
        for index in range(50):
            assert {len(str(factor)) for factor in task.sample(1, index)} == {task.digits}
