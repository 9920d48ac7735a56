"""Squaring: answers against plain multiplication, each strategy against its definition."""

import collections
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.tasks.base import Trace, parse_completion
from reasoning.data.tasks.squaring import Power, Squaring, split_steps

TASK = Squaring()
PROBLEM = Power(7, 5, 19)  # 7, 11, 7, 11, 7, 11
OTHER = Power(8, 6, 19)  # no square itself: 8, 7, 11, 7, 11, 7, 11
EXPONENT = Power(5, 6, 19)  # 2^6 = 64 = 10 modulo 18, 1010 in binary
PRIMES = [7, 11, 19, 23, 31, 43, 47, 59, 67, 71, 79, 83, 103, 107, 127]  # those that are 3 modulo 4


@st.composite
def problems(draw):
    prime = draw(st.sampled_from(PRIMES))
    task = Squaring(prime, prime, squarings=12)
    return task, Power(draw(st.integers(2, prime - 2)), draw(st.integers(2, 12)), prime)


def multiplied(problem):
    """base * base * ... with 2^squarings factors."""
    value = 1
    for _ in range(2**problem.squarings):
        value = value * problem.base % problem.prime
    return value


def equations(steps):
    """(a, op, b, c) of every step."""
    return [(int(a), op, int(b), int(c)) for a, op, b, _, c in map(str.split, split_steps(steps))]


def test_traces_by_hand():
    # 49 = 2 * 19 + 11, 121 = 6 * 19 + 7; 2^5 = 32 = 14 modulo 18, which is 1110 in binary.
    steps = {strategy: TASK.trace(PROBLEM, strategy).steps for strategy in TASK.strategies}
    assert steps == {
        "direct": "",
        "squares": "7 * 7 = 11 11 * 11 = 7 7 * 7 = 11 11 * 11 = 7 7 * 7 = 11",
        "exponent": "2 + 2 = 4 4 + 4 = 8 8 + 8 = 16 16 + 16 = 14 "
        "7 * 7 = 11 11 * 7 = 1 1 * 1 = 1 1 * 7 = 7 7 * 7 = 11",
        "cycle": "7 * 7 = 11 11 * 11 = 7 5 % 2 = 1",
        "filler": ". . . . .",
    }
    assert TASK.prompt(PROBLEM) == "7 ^ 2 ^ 5 mod 19 :"
    assert TASK.trace(PROBLEM, "cycle").completion == "7 * 7 = 11 11 * 11 = 7 5 % 2 = 1 answer 11"


def test_more_traces_by_hand():
    # 64 = 3 * 19 + 7; a remainder of 0 is the number at the cycle's end, the second square.
    assert TASK.trace(OTHER, "cycle") == Trace("8 * 8 = 7 7 * 7 = 11 11 * 11 = 7 6 % 2 = 0", "11")
    # 25 = 6, 36 = 17, 17 * 5 = 85 = 4 * 19 + 9, 81 = 4 * 19 + 5 modulo 19.
    assert TASK.trace(EXPONENT, "exponent") == Trace(
        "2 + 2 = 4 4 + 4 = 8 8 + 8 = 16 16 + 16 = 14 14 + 14 = 10 "
        "5 * 5 = 6 6 * 6 = 17 17 * 5 = 9 9 * 9 = 5",
        "5",
    )


@settings(deadline=None, max_examples=200)
@given(problems(), st.randoms(use_true_random=False))
def test_every_strategy_finds_the_product(case, rng):
    task, problem = case
    traces = [task.trace(problem, strategy) for strategy in task.strategies]
    for trace in (*traces, Trace(*parse_completion(task.practice(problem, rng)))):
        assert trace.answer == str(multiplied(problem))
        assert task.verify(problem, trace.answer).reason == "correct"


@settings(deadline=None, max_examples=200)
@given(problems())
def test_squares(case):
    task, problem = case
    steps = equations(task.trace(problem, "squares").steps)
    assert len(steps) == problem.squarings == len(task.trace(problem, "filler").steps.split())
    value = problem.base
    for a, op, b, c in steps:
        assert (a, op, b) == (value, "*", value) and 0 <= c < problem.prime
        assert (a * b - c) % problem.prime == 0
        value = c
    assert value == multiplied(problem)


@settings(deadline=None, max_examples=200)
@given(problems())
def test_exponent(case):
    """The exponent again as a power of 2, its digits by those that are 1 and those that are 0."""
    task, problem = case
    steps = equations(task.trace(problem, "exponent").steps)
    doublings = steps[: problem.squarings - 1]
    for i, (a, op, b, c) in enumerate(doublings):
        assert (a, op, b) == (2 ** (i + 1) % (problem.prime - 1), "+", a)
        assert c == 2 ** (i + 2) % (problem.prime - 1)
    products, value = iter(steps[len(doublings) :]), problem.base
    for digit in f"{doublings[-1][3]:b}"[1:]:
        for factor in (value, problem.base) if digit == "1" else (value,):
            assert next(products) == (value, "*", factor, value * factor % problem.prime)
            value = value * factor % problem.prime
    assert next(products, None) is None and value == multiplied(problem)


@settings(deadline=None, max_examples=200)
@given(problems())
def test_cycle(case):
    task, problem = case
    *squares, (n, op, period, remainder) = equations(task.trace(problem, "cycle").steps)
    values = [problem.base, *(c for *_, c in squares)]
    assert all((a, op, b) == (value, "*", value) for (a, op, b, _), value in zip(squares, values))
    assert len(set(values)) == len(values) - 1 and values[-1] in values[:-1]  # the first to be back
    assert (n, op) == (problem.squarings, "%")
    assert values[-1 - period] == values[-1] and remainder == n % period
    assert multiplied(problem) == values[remainder or period]


def test_problems_are_not_degenerate():
    for index in range(2000):
        problem = TASK.sample(1, index)
        assert problem.prime in (19, 23, 31, 43, 47)
        assert 2 <= problem.base <= problem.prime - 2 and 2 <= problem.squarings <= 10
        assert multiplied(problem) not in (0, 1, problem.prime - 1)


@pytest.mark.parametrize("prime", [19, 47])
def test_all_squares_but_1_are_equally_likely(prime):
    task = Squaring(prime, prime)
    answers = collections.Counter(multiplied(task.sample(2, index)) for index in range(4000))
    squares = {n * n % prime for n in range(2, prime - 1)}
    assert set(answers) == squares and len(squares) == (prime - 3) / 2
    for count in answers.values():
        assert count / 4000 == pytest.approx(1 / len(squares), abs=0.02)
    # Without chance: over all numbers to be squared, each of them twice.
    for squarings in range(2, 11):
        every = collections.Counter(
            multiplied(Power(base, squarings, prime)) for base in range(2, prime - 1)
        )
        assert set(every.values()) == {2}


def test_guessing_is_hard():
    """Also for who knows the prime, or looks at the number to be squared."""
    problems = [TASK.sample(3, index) for index in range(5000)]
    for feature in (lambda p: 0, lambda p: p.prime, lambda p: p.squarings):
        answers = collections.defaultdict(collections.Counter)
        for problem in problems:
            answers[feature(problem)][multiplied(problem)] += 1
        assert sum(max(counts.values()) for counts in answers.values()) / 5000 < 0.13
    assert sum(multiplied(problem) == problem.base for problem in problems) / 5000 < 0.13


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("11", "correct"), ("7", "wrong_value"), ("18", "wrong_value"), ("19", "malformed"),
     ("30", "malformed"), ("011", "malformed"), ("1１", "malformed"), (None, "no_answer")],
)
def test_verdicts(answer, reason):
    assert TASK.verify(PROBLEM, answer).reason == reason


@pytest.mark.parametrize(
    ("steps", "strategy", "share"),
    [
        ("7 * 7 = 11 11 * 11 = 7", None, 1.0),
        ("7 * 7 = 11 11 * 11 = 7", "squares", 1.0),
        ("7 * 7 = 11 7 * 7 = 11", None, 0.5),  # not of the one before
        ("7 * 7 = 11 5 % 2 = 1", None, 0.5),  # nothing has come back yet
        ("7 * 7 = 11 11 * 11 = 7 5 % 2 = 1", None, 1.0),
        ("7 * 7 = 11 11 * 11 = 7 7 * 7 = 11 5 % 2 = 1", None, 1.0),  # later than `cycle` does
        ("7 * 7 = 11 11 * 11 = 7 7 * 7 = 11 5 % 2 = 1", "cycle", 0.5),
        ("7 * 7 = 11 11 * 11 = 7 5 % 2 = 1 5 % 2 = 1", None, 0.75),
        ("7 * 7 = 11 11 * 11 = 7 5 % 2 = 1 7 * 7 = 11", None, 0.75),
        ("7 * 7 = 11 11 * 11 = 7 5 % 4 = 1", None, 2 / 3),
        ("7 * 7 = 11 11 * 11 = 7 4 % 2 = 0", None, 2 / 3),
        ("7 * 7 = 11 " + "11 * 11 = 7 7 * 7 = 11 " * 3, None, 5 / 7),  # five are asked for
        ("7 * 7 = 11 11 * 11 = 7 2 + 2 = 4 4 + 4 = 8", None, 1.0),  # three are left: 2^3
        ("7 * 7 = 11 11 * 11 = 7 2 + 2 = 4 4 + 4 = 8 8 + 8 = 16", None, 0.8),
        ("7 * 7 = 11 2 + 2 = 4 4 + 4 = 8 8 + 8 = 16 11 * 11 = 7 7 * 7 = 11", None, 1.0),
        ("2 + 2 = 4 7 * 7 = 11", None, 0.5),  # the exponent first
        ("2 + 2 = 4 2 + 2 = 4", None, 0.5),
        ("7 * 11 = 1", None, 0.0),
        ("11 * 11 = 7", None, 0.0),
        ("7 * 7 = 49", None, 0.0),
        ("07 * 7 = 11", None, 0.0),
        ("٧ * ٧ = ١١", None, 0.0),
        ("7 * 7 = 11 and so", None, 1 / 3),
        ("", "direct", 1.0),
        ("7 * 7 = 11", "direct", 0.0),
        ("", "squares", 0.0),
        ("", None, 0.0),
        (". . .", None, 0.0),
        (". . .", "filler", 1.0),
        (". . . . . .", "filler", 5 / 6),
    ],
)
def test_check_trace(steps, strategy, share):
    assert TASK.check_trace(PROBLEM, strategy, steps) == pytest.approx(share)


@pytest.mark.parametrize(
    ("steps", "strategy"),
    [
        ("", "direct"),
        (". .", "filler"),
        ("7 * 7 = 11 11 * 11 = 7", None),  # how squares and cycle begin
        ("7 * 7 = 11 11 * 11 = 7 7 * 7 = 11", "squares"),
        ("7 * 7 = 11 11 * 11 = 7 5 % 2 = 1", "cycle"),
        ("7 * 7 = 3 3 * 3 = 9 9 * 9 = 9 5 % 1 = 0", "cycle"),  # wrong numbers are no other way
        ("7 * 7 = 3 3 * 3 = 9 9 * 9 = 9 9 * 9 = 9", "squares"),
        ("2 + 2 = 4", "exponent"),
        ("2 + 2 = 4 4 + 4 = 9 9 + 9 = 0 0 + 0 = 5 7 * 7 = 1 1 * 1 = 1 1 * 7 = 7", "exponent"),
        ("7 * 7 = 11 2 + 2 = 4", None),
        ("5 % 2 = 1", None),
        ("nonsense", None),
    ],
)
def test_recognise(steps, strategy):
    assert TASK.recognise(PROBLEM, steps) == strategy


def test_where_no_number_comes_back_in_time_the_squares_are_how_the_cycle_opens():
    problem = Power(5, 3, 23)  # comes back after ten squares
    squares, cycle = (TASK.trace(problem, name).steps for name in ("squares", "cycle"))
    assert cycle.startswith(f"{squares} ")
    assert TASK.recognise(problem, squares) == "squares"
    assert TASK.recognise(problem, cycle) == "cycle"
    assert TASK.check_trace(problem, None, cycle) == 1.0


HOSTILE = (
    "7 * 7 = 11 " * 10_000, "2 + 2 = 4 " * 10_000, "5 % 0 = 1 " * 10_000, "= " * 20_000,
    "9" * 100_000, "7 * 7 = " + "9" * 10_000, "% " * 20_000, "\0",
    " ".join(f"{a} * {a} = {b}" for a, b in itertools.pairwise((7, *range(20, 999)))),
)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_judged_like_any_other(text):
    assert TASK.verify(PROBLEM, text).reason == "malformed"
    for strategy in (None, *TASK.strategies):
        assert TASK.check_trace(PROBLEM, strategy, text) < 0.01
    TASK.recognise(PROBLEM, text)


@given(st.lists(st.sampled_from((*TASK.words, "0", "1", "2", "5", "7", "11"))).map(" ".join))
def test_any_words_are_judged(text):
    assert 0 <= TASK.check_trace(PROBLEM, None, text) <= 1
    assert TASK.recognise(PROBLEM, text) in (*TASK.strategies, None)
    assert TASK.verify(PROBLEM, text).correct == (text == "11")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"smallest": 5}, "smallest=5, largest=47: must lie in 7..999, in this order."),
        ({"largest": 1000}, "smallest=19, largest=1000: must lie in 7..999, in this order."),
        ({"smallest": 48}, "smallest=48, largest=47: must lie in 7..999, in this order."),
        ({"squarings": 1}, "squarings=1: must lie in 2..999."),
        ({"squarings": 1000}, "squarings=1000: must lie in 2..999."),
        ({"smallest": 24, "largest": 30}, "smallest=24, largest=30: no prime that is 3 modulo 4 "
                                          "lies there; take 19 to 47."),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        Squaring(**arguments)
    assert str(error.value) == message


def test_the_primes_are_those_that_are_3_modulo_4():
    assert Squaring(7, 127).primes == PRIMES
    assert Squaring(127, 127).primes == [127]


def test_the_largest_prime_is_possible():
    task, problem = Squaring(991, 991, squarings=30), Power(6, 30, 991)
    for strategy in ("squares", "exponent", "cycle"):
        trace = task.trace(problem, strategy)
        assert trace.answer == str(pow(6, 2**30, 991))
        assert task.check_trace(problem, None, trace.steps) == 1.0
    practice = parse_completion(task.practice(problem, random.Random(0)))
    assert task.verify(problem, practice[1]).correct
