"""Expressions: values against Python's own arithmetic, each strategy against its definition."""

import collections
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.tasks.base import Trace, parse_completion
from reasoning.data.tasks.expressions import Expressions, split_steps


def expression(text):
    return tuple(text.split())


TASK = Expressions(modulus=7, operations=3)
PROBLEM = expression("( ( 3 + 5 ) * ( 2 - 6 ) )")
CHAIN = expression("( 4 - ( 2 * ( 6 + 6 ) ) )")


def python_value(text, modulus):
    """The value as Python computes it."""
    return eval(text) % modulus


@st.composite
def problems(draw):
    modulus, operations = draw(st.integers(2, 12)), draw(st.integers(1, 9))
    task = Expressions(modulus, operations)
    return task, task.sample(draw(st.integers(0, 99)), draw(st.integers(0, 999)))


def practised(task, problem, rng):
    return Trace(*parse_completion(task.practice(problem, rng)))


def test_traces_by_hand():
    # 3 + 5 = 8 = 1, 2 - 6 = -4 = 3 and 1 * 3 = 3 modulo 7.
    steps = {strategy: TASK.trace(PROBLEM, strategy).steps for strategy in TASK.strategies}
    assert steps == {
        "direct": "",
        "postorder": "3 + 5 = 1 2 - 6 = 3 1 * 3 = 3",
        "levels": "( 1 * 3 ) ; 3 ;",
        "shift_reduce": "| 3 + 5 = 1 1 * | 2 - 6 = 3 | 1 * 3 = 3",
        "filler": ". . .",
    }
    assert TASK.prompt(PROBLEM) == "( ( 3 + 5 ) * ( 2 - 6 ) ) :"
    assert TASK.trace(PROBLEM, "levels").completion == "( 1 * 3 ) ; 3 ; answer 3"


def test_a_chain_by_hand():
    # 6 + 6 = 12 = 5, 2 * 5 = 10 = 3 and 4 - 3 = 1 modulo 7.
    steps = {strategy: TASK.trace(CHAIN, strategy).steps for strategy in TASK.strategies}
    assert steps["postorder"] == "6 + 6 = 5 2 * 5 = 3 4 - 3 = 1"
    assert steps["levels"] == "( 4 - ( 2 * 5 ) ) ; ( 4 - 3 ) ; 1 ;"
    assert steps["shift_reduce"] == "4 - 2 * | 6 + 6 = 5 4 - | 2 * 5 = 3 | 4 - 3 = 1"


@settings(deadline=None, max_examples=150)
@given(problems(), st.randoms(use_true_random=False))
def test_every_strategy_finds_pythons_value(case, rng):
    task, problem = case
    value = str(python_value(" ".join(problem), task.modulus))
    traces = [task.trace(problem, strategy) for strategy in task.strategies]
    for trace in (*traces, practised(task, problem, rng)):
        assert trace.answer == value
        assert task.verify(problem, trace.answer).reason == "correct"


@settings(deadline=None, max_examples=150)
@given(problems())
def test_postorder_is_the_order_of_the_closing_parentheses(case):
    """The steps again, by recursion over the tree."""
    task, problem = case
    words, steps = iter(problem), []

    def node():
        if (word := next(words)) != "(":
            return int(word)
        a, op, b, _ = node(), next(words), node(), next(words)
        steps.append(f"{a} {op} {b} = {python_value(f'{a} {op} {b}', task.modulus)}")
        return int(steps[-1].split()[-1])

    node()
    assert task.trace(problem, "postorder").steps == " ".join(steps)
    assert len(steps) == task.operations == len(task.trace(problem, "filler").steps.split())


@settings(deadline=None, max_examples=150)
@given(problems())
def test_rounds_do_what_can_be_done_and_nothing_else(case):
    """Each round is one level less deep, and every part of it has the value it had."""
    task, problem = case
    steps = split_steps(task.trace(problem, "levels").steps)
    rounds = [" ".join(problem), *(step.removesuffix(" ;") for step in steps)]

    def node(words):
        """(height, value, text of the subtree after one round)."""
        if (word := next(words)) != "(":
            return 0, int(word), word
        a, op, b, _ = node(words), next(words), node(words), next(words)
        value = python_value(f"{a[1]} {op} {b[1]}", task.modulus)
        height = 1 + max(a[0], b[0])
        return height, value, str(value) if height == 1 else f"( {a[2]} {op} {b[2]} )"

    parsed = [node(iter(text.split())) for text in rounds]
    assert [height for height, _, _ in parsed] == list(range(len(steps), -1, -1))
    assert len({value for _, value, _ in parsed}) == 1
    assert [text for _, _, text in parsed[:-1]] == rounds[1:]


@settings(deadline=None, max_examples=150)
@given(problems())
def test_the_stack_is_that_of_a_parser(case):
    """A machine that reads word by word, and shows its stack whenever it reduces."""
    task, problem = case
    stack, shown = [], []
    for word in problem:
        if word != ")":
            stack.append(word)
            continue
        b, op, a = stack.pop(), stack.pop(), stack.pop()
        assert stack.pop() == "("
        value = str(python_value(f"{a} {op} {b}", task.modulus))
        shown += [*(w for w in stack if w != "("), "|", a, op, b, "=", value]
        stack.append(value)
    assert task.trace(problem, "shift_reduce").steps == " ".join(shown)


def test_a_problem_has_the_operations_asked_for():
    for modulus, operations in ((2, 1), (7, 4), (11, 6), (100, 12)):
        task = Expressions(modulus, operations)
        for index in range(50):
            counts = collections.Counter(task.sample(1, index))
            numbers = {word for word in counts if word.isdecimal()}
            assert counts["("] == counts[")"] == operations == sum(counts[op] for op in "+-*")
            assert sum(counts[number] for number in numbers) == operations + 1
            assert all(0 <= int(number) < modulus for number in numbers)


def test_shapes_lie_between_chains_and_balanced_ones():
    task, depths = Expressions(operations=4), collections.Counter()
    for index in range(1500):
        depth = deepest = 0
        for word in task.sample(2, index):
            depth += (word == "(") - (word == ")")
            deepest = max(deepest, depth)
        depths[deepest] += 1
    assert set(depths) == {3, 4}
    assert depths[4] / 1500 == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("operations", [1, 4])
def test_every_value_is_equally_likely_whatever_the_operators(operations):
    task, values = Expressions(operations=operations), {}
    for index in range(4000):
        problem = task.sample(3, index)
        products = problem.count("*")
        value = python_value(" ".join(problem), 7)
        values.setdefault(products, collections.Counter())[value] += 1
    for counts in (sum(values.values(), collections.Counter()), values[0], values[1]):
        for value in range(7):
            assert counts[value] / counts.total() == pytest.approx(1 / 7, abs=0.035)


@pytest.mark.parametrize(
    ("steps", "strategy", "share"),
    [
        ("3 + 5 = 1 2 - 6 = 3 1 * 3 = 3", None, 1.0),
        ("2 - 6 = 3 3 + 5 = 1 1 * 3 = 3", None, 1.0),  # an order that no strategy takes
        ("2 - 6 = 3 3 + 5 = 1 1 * 3 = 3", "postorder", 1 / 3),
        ("3 + 5 = 1", "postorder", 1.0),
        ("3 + 5 = 1 3 + 5 = 1", "postorder", 0.5),
        ("3 + 5 = 1 3 + 5 = 1", None, 0.5),  # used up
        ("3 + 5 = 8", None, 0.0),  # not modulo 7
        ("5 + 3 = 1", None, 0.0),  # true, but it is not there
        ("1 * 3 = 3", None, 0.0),  # not yet there
        ("03 + 5 = 1", None, 0.0),
        ("٣ + 5 = 1", None, 0.0),
        ("3 + 5 = 1 and so", None, 1 / 3),
        ("( 1 * 3 ) ; 3 ;", None, 1.0),
        ("( 1 * 3 ) ; 3 ;", "levels", 1.0),
        ("( 1 * ( 2 - 6 ) ) ; ( 1 * 3 ) ; 3 ;", None, 1.0),  # a round may do a part
        ("( 1 * ( 2 - 6 ) ) ; ( 1 * 3 ) ; 3 ;", "levels", 0.0),
        ("( ( 3 + 5 ) * ( 2 - 6 ) ) ;", None, 0.0),  # and must do something
        ("3 ;", None, 0.0),  # not two levels at a time
        ("( 1 * 3 )", None, 0.0),
        ("( 1 * 3 ) ) ;", None, 0.0),
        (";", None, 0.0),
        ("3 + 5 = 1 ( 1 * 3 ) ; | 1 * 3 = 3", None, 1.0),  # ways may be mixed
        ("| 3 + 5 = 1 1 * | 2 - 6 = 3 | 1 * 3 = 3", None, 1.0),
        ("| 3 + 5 = 1 | 2 - 6 = 3", None, 0.5),  # 1 * waits
        ("| 2 - 6 = 3", None, 0.0),  # ( 3 + 5 ) * waits, which is no number
        ("2 * | 2 - 6 = 3", None, 0.0),
        ("", "direct", 1.0),
        ("3 + 5 = 1", "direct", 0.0),
        ("", "levels", 0.0),
        ("", None, 0.0),
        (". . .", None, 0.0),
        (". . .", "filler", 1.0),
        (". . . .", "filler", 0.75),
        (". . .", "postorder", 0.0),
    ],
)
def test_check_trace(steps, strategy, share):
    assert TASK.check_trace(PROBLEM, strategy, steps) == pytest.approx(share)


def test_check_trace_follows_operations_that_stand_in_several_places():
    problem = expression("( ( 1 + 1 ) - ( ( 1 + 1 ) * 3 ) )")
    task = Expressions(operations=4)
    for steps in (
        "1 + 1 = 2 2 * 3 = 6 1 + 1 = 2 2 - 6 = 3",  # the first may be either
        "1 + 1 = 2 1 + 1 = 2 2 * 3 = 6 2 - 6 = 3",
        "1 + 1 = 2 2 - | 1 + 1 = 2 2 * 3 = 6",
        "1 + 1 = 2 | 1 + 1 = 2",
        "1 + 1 = 2 ( ( 1 + 1 ) - 6 ) ;",
    ):
        assert task.check_trace(problem, None, steps) == 1.0
    for steps in ("1 + 1 = 2 ( ( 1 + 1 ) - 6 ) ; 2 - | 1 + 1 = 2", "1 + 1 = 2 " * 3):
        assert task.check_trace(problem, None, steps) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("steps", "strategy"),
    [
        ("", "direct"),
        (". .", "filler"),
        ("3 + 5 = 1", "postorder"),
        ("3 + 5 = 4 2 - 6 = 3 4 * 3 = 5", "postorder"),  # a wrong sum is no other strategy
        ("3 + 5 = 4 2 - 6 = 3 1 * 3 = 3", "postorder"),
        ("2 - 6 = 3 3 + 5 = 1", None),
        ("( 1 * 3 ) ;", "levels"),
        ("( 2 * 2 ) ; 4 ;", "levels"),
        ("( 1 * ( 2 - 6 ) ) ;", None),
        ("| 3 + 5 = 1", "shift_reduce"),
        ("| 3 + 5 = 4 4 * | 2 - 6 = 3", "shift_reduce"),
        ("1 * | 2 - 6 = 3", None),
        ("nonsense", None),
    ],
)
def test_recognise(steps, strategy):
    assert TASK.recognise(PROBLEM, steps) == strategy


HOSTILE = (
    "( " * 20_000, ") " * 20_000, "; " * 20_000, "| " * 20_000, "= " * 20_000, "1 + " * 20_000,
    "3 + 5 = 1 " * 20_000, "( 1 * 3 ) ; " * 10_000, "9" * 100_000, "? ? ? = ? " * 9, "\0", "( ; ",
)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_judged_like_any_other(text):
    assert TASK.verify(PROBLEM, text).reason == "malformed"
    for strategy in (None, *TASK.strategies):
        assert TASK.check_trace(PROBLEM, strategy, text) < 0.01
    TASK.recognise(PROBLEM, text)


@given(st.lists(st.sampled_from((*TASK.words, *"0123456", "7", "?"))).map(" ".join))
def test_any_words_are_judged(text):
    assert 0 <= TASK.check_trace(PROBLEM, None, text) <= 1
    assert TASK.recognise(PROBLEM, text) in (*TASK.strategies, None)
    assert TASK.verify(PROBLEM, text).correct == (text == "3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modulus": 1}, "modulus=1: must lie in 2..100."),
        ({"modulus": 101}, "modulus=101: must lie in 2..100."),
        ({"operations": 0}, "operations=0: must lie in 1..100."),
        ({"operations": 101}, "operations=101: must lie in 1..100."),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        Expressions(**arguments)
    assert str(error.value) == message


def test_large_arguments_are_possible():
    task = Expressions(modulus=100, operations=100)
    problem = task.sample(0, 0)
    assert task.trace(problem, "levels").answer == str(python_value(" ".join(problem), 100))
    practice = practised(task, problem, random.Random(0))
    assert task.verify(problem, practice.answer).correct
