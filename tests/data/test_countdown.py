"""Countdown: the verifier against brute force, the strategies' searches against a replay."""

import collections
import itertools
import random
import time
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.tasks import countdown
from reasoning.data.tasks.base import Trace, parse_completion
from reasoning.data.tasks.countdown import Countdown, CountdownProblem, split_steps

LIMIT = 99
THREE = Countdown(size=3, largest=9, target=40, tries=4, limit=LIMIT)
FOUR = Countdown(size=4, largest=9, target=40, tries=8, limit=LIMIT)
CANONICAL = {str(n): Fraction(n) for n in range(1, LIMIT + 1)}
OPERATIONS = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__}
PROBLEMS = st.builds(
    CountdownProblem,
    st.lists(st.integers(1, 12), min_size=2, max_size=3).map(tuple),
    st.integers(1, 40),
)


def practise(task: Countdown, problem: CountdownProblem, rng: random.Random) -> Trace | None:
    """What practice writes, taken apart."""
    text = task.practice(problem, rng)
    return None if text is None else Trace(*parse_completion(text))


def judge(problem: CountdownProblem, answer: str) -> bool:
    """The rules again, word by word in fractions, with nothing taken from the verifier."""
    words = [*answer.split(" "), ","]
    pool = collections.Counter(map(Fraction, problem.numbers))
    if len(words) != 6 * (len(problem.numbers) - 1):
        return False
    for i in range(0, len(words), 6):
        a, op, b, equals, c, comma = words[i : i + 6]
        if (equals, comma) != ("=", ",") or op not in OPERATIONS or not {a, b, c} <= set(CANONICAL):
            return False
        a, b, c = CANONICAL[a], CANONICAL[b], CANONICAL[c]
        pool.subtract((a, b))
        if min(pool.values()) < 0 or OPERATIONS[op](a, b) != c:
            return False
        pool[c] += 1
    return pool[Fraction(problem.target)] == 1 == pool.total()


def combinations(numbers: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Every way to combine all the numbers within 1..LIMIT, as (equations, value)."""
    if len(numbers) == 1:
        yield "", numbers[0]
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
            for op, operation in OPERATIONS.items():
                c = int(operation(Fraction(a), Fraction(b)))
                if i != j and 1 <= c <= LIMIT:
                    for more, value in combinations((*rest, c)):
                        yield f"{a} {op} {b} = {c}{' , ' if more else ''}{more}", value


def solutions(problem: CountdownProblem) -> list[str]:
    return [text for text, value in combinations(problem.numbers) if value == problem.target]


@settings(deadline=None, max_examples=60)
@given(PROBLEMS)
def test_verifier_accepts_exactly_the_solutions(problem):
    for answer, value in combinations(problem.numbers):
        reason = "correct" if value == problem.target else "wrong_value"
        assert THREE.verify(problem, answer).reason == reason
        assert judge(problem, answer) == (value == problem.target)


def test_verifier_accepts_every_solution_of_four_numbers():
    for index in range(3):
        problem = FOUR.sample(0, index)
        found = solutions(problem)
        assert found
        assert all(FOUR.verify(problem, answer).correct for answer in found)


@st.composite
def mutations(draw: st.DrawFn, words: list[str]) -> list[str]:
    """The words with one replaced, inserted, deleted, or two swapped."""
    i, j = (draw(st.integers(0, len(words) - 1)) for _ in range(2))
    word = draw(st.sampled_from((*Countdown.words, *map(str, range(13)), *words)))
    swapped = list(words)
    swapped[i], swapped[j] = words[j], words[i]
    before, after = words[:i], words[i + 1 :]
    choices = ([*before, word, *after], [*before, word, *words[i:]], [*before, *after], swapped)
    return draw(st.sampled_from(choices))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_verifier_agrees_with_the_judge_on_mutated_solutions(data):
    problem = THREE.sample(0, data.draw(st.integers(0, 200)))
    words = data.draw(st.sampled_from(solutions(problem))).split()
    for _ in range(data.draw(st.integers(1, 3))):
        words = data.draw(mutations(words))
    answer = " ".join(words)
    verdict = THREE.verify(problem, answer)
    assert verdict.correct == judge(problem, answer) == (verdict.reason == "correct")


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40) | st.lists(st.sampled_from((*Countdown.words, "3", "6", "9"))))
def test_verifier_agrees_with_the_judge_on_any_text(text):
    problem = CountdownProblem((3, 6), 9)
    answer = text if isinstance(text, str) else " ".join(text)
    assert THREE.verify(problem, answer).correct == judge(problem, answer)


SEVEN = CountdownProblem((7, 5, 1), 36)  # 7 * 5 = 35 , 35 + 1 = 36


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("7 * 5 = 35 , 35 + 1 = 36", "correct"),
        ("5 * 7 = 35 , 1 + 35 = 36", "correct"),
        (None, "no_answer"),
        ("", "no_answer"),
        (" ", "malformed"),
        ("36", "malformed"),
        ("7 * 5 = 35", "malformed"),  # an equation is missing
        ("7 * 5 = 35 , 35 + 1 = 36 , 36 + 1 = 37", "malformed"),  # one too many
        ("7 * 5 = 35 , 35 + 1 = 36 ,", "malformed"),
        ("7 * 5 = 35 , 35 + 1 = 36\n", "malformed"),
        ("7*5=35 , 35+1=36", "malformed"),
        ("07 * 5 = 35 , 35 + 1 = 36", "malformed"),
        ("7 * 5 = 35 , 35 + 1 = 036", "malformed"),
        ("٧ * 5 = 35 , 35 + 1 = 36", "malformed"),
        ("７ * 5 = 35 , 35 + 1 = 36", "malformed"),
        ("7 * 5 = 3_5 , 3_5 + 1 = 36", "malformed"),
        ("7 * 5 = 35.0 , 35.0 + 1 = 36", "malformed"),
        ("-7 * -5 = 35 , 35 + 1 = 36", "malformed"),
        ("7 ** 5 = 16807 , 35 + 1 = 36", "malformed"),
        ("7 * 5 = 35 , 35 + 1 = " + "9" * 5000, "malformed"),
        ("7 * 5 = 35 , 35 + 7 = 42", "wrong_numbers"),  # 7 is used up
        ("7 * 7 = 49 , 49 - 5 = 44", "wrong_numbers"),
        ("6 * 6 = 36 , 36 + 1 = 37", "wrong_numbers"),
        ("7 * 5 = 36 , 36 * 1 = 36", "wrong_equation"),
        ("1 - 7 = 6 , 6 * 5 = 30", "wrong_equation"),
        ("7 * 5 = 35 , 35 - 1 = 34", "wrong_value"),
    ],
)
def test_verdicts(answer, reason):
    assert THREE.verify(SEVEN, answer).reason == reason


def test_an_answer_does_not_divide():
    problem = CountdownProblem((8, 2, 3), 7)
    assert THREE.verify(problem, "8 / 2 = 4 , 4 + 3 = 7").reason == "wrong_equation"
    assert THREE.check_trace(problem, None, "8 / 2 = 4 ,") == 0.0


def test_an_intermediate_result_has_a_bound():
    problem, answer = CountdownProblem((60, 50, 20), 90), "60 + 50 = 110 , 110 - 20 = 90"
    steps = "60 + 50 = 110 , 110 - 20 = 90 yes"
    for limit, reason, share in ((110, "correct", 1.0), (109, "wrong_equation", 0.0)):
        task = Countdown(largest=60, target=90, limit=limit)
        assert task.verify(problem, answer).reason == reason
        assert task.check_trace(problem, None, steps) == share


@pytest.mark.parametrize(
    "unit", ["9", " ", "7 * 5 = 36 , ", "( ", "from ", " = ", "٧", "\0", "a b c = d ", "🙂 "]
)
def test_long_nonsense_is_refused_quickly(unit):
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    assert not THREE.verify(SEVEN, text).correct
    for strategy in (None, "backward"):
        assert THREE.check_trace(SEVEN, strategy, text) == 0.0
    assert THREE.recognise(SEVEN, text) == ("nearest" if "7 * 5" in unit else None)
    assert time.process_time() - start < 2.0


def replay(problem: CountdownProblem, steps: str) -> list[str]:
    """The checks of a trace's tries, each against the goal that stood when it was made."""
    goal, checks = problem.target, []
    for step in split_steps(steps):
        *_, a, op, b, _, result, check = step.split()
        if step.startswith("from "):
            undo = {"-": Fraction.__sub__, "/": Fraction.__truediv__, "+": Fraction.__add__}[op]
            assert undo(Fraction(a), Fraction(b)) == int(result)
            goal = int(result)
        else:
            assert OPERATIONS[op](Fraction(a), Fraction(b)) == int(result)
        if check != ",":
            difference = int(result) - goal
            assert check == ("high" if difference > 0 else "low" if difference < 0 else "yes")
            checks.append(check)
    return checks


@pytest.mark.parametrize("task", [THREE, FOUR, Countdown(size=2)])
def test_a_trace_stops_at_its_first_success_within_its_tries(task):
    for index in range(60):
        problem = task.sample(1, index)
        for strategy in task.strategies:
            trace = task.trace(problem, strategy)
            if trace is not None:
                checks = replay(problem, trace.steps)
                assert 1 <= len(checks) <= task.tries
                assert checks.index("yes") == len(checks) - 1
                assert judge(problem, trace.answer)


def test_more_tries_never_change_a_trace_and_exhaust_the_forward_searches():
    few = THREE
    many = Countdown(size=3, largest=9, target=40, tries=10_000, limit=LIMIT)
    for index in range(60):
        problem = few.sample(2, index)
        for strategy in few.strategies:
            trace, full = few.trace(problem, strategy), many.trace(problem, strategy)
            assert strategy == "backward" or full is not None  # every problem can be solved
            in_time = full is not None and len(replay(problem, full.steps)) <= few.tries
            assert trace == (full if in_time else None)


@pytest.mark.parametrize("task", [THREE, FOUR])
def test_strategies_succeed_on_different_problems(task):
    problems = [task.sample(3, index) for index in range(200)]
    solved = {
        strategy: {p for p in problems if task.trace(p, strategy) is not None}
        for strategy in task.strategies
    }
    union = set().union(*solved.values())
    for strategy, own in solved.items():
        others = set().union(*(s for name, s in solved.items() if name != strategy))
        assert own - others, f"{strategy} solves nothing that the others do not"
        assert len(union) > 1.1 * len(own)


@pytest.mark.parametrize(
    ("steps", "share"),
    [
        ("7 * 5 = 35 , 35 + 1 = 36 yes", 1.0),
        ("35 + 1 = 36 yes 7 * 5 = 35 ,", 0.5),  # 35 is not there yet
        ("7 * 5 = 35 , 35 + 1 = 36 high", 0.5),
        ("7 * 5 = 35 , 35 - 1 = 34 high", 0.5),
        ("7 * 5 = 35 yes 35 + 1 = 36 yes", 0.0),
        ("from 36 - 1 = 35 , 7 * 5 = 35 yes", 1.0),
        ("from 36 - 1 = 35 , 7 * 5 = 35 low", 0.5),
        ("from 35 - 1 = 34 ,", 0.0),  # 35 is not the goal
        ("from 36 / 5 = 7 ,", 0.0),
        ("from 36 - 1 = 35 , from 35 - 5 = 30 ,", 0.5),  # the last two numbers are tried
        ("from 36 * 1 = 36 ,", 0.0),  # it would undo a division
        ("7 * 5 = 35 ,", 1.0),
        ("7 * 5 = 35 , and so on", 0.25),
        ("7 * 5 = 35 , 7 * 5 = 35 ,", 0.5),  # a step counts once from a position
        ("7 * 5 = 35 , 35 + 1 = 36 yes 35 + 1 = 36 yes", 2 / 3),
        ("from 36 - 1 = 35 , from 36 - 1 = 35 ,", 0.5),
        ("", 0.0),
    ],
)
def test_check_trace_without_a_strategy(steps, share):
    assert THREE.check_trace(SEVEN, None, steps) == share


@pytest.mark.parametrize(
    ("numbers", "step", "times"),
    [
        # Two ways to 4 are two positions, and 4 + 1 may be tried at each.
        ((2, 2, 1), "2 + 2 = 4 , 2 * 2 = 4 , {4 + 1 = 5 yes}", 2),
        # 2 + 1 may be meant before 4 + 3 or after it: a search may write both.
        ((1, 2, 3, 4), "4 + 3 = 7 , {2 + 1 = 3 ,}", 2),
        ((7, 5, 1), "{7 * 5 = 35 ,}", 1),
    ],
)
@pytest.mark.parametrize("copies", [1, 2, 3, 10, 5000])
def test_a_step_counts_once_from_each_position(numbers, step, times, copies):
    opening, _, repeated = step.removesuffix("}").partition("{")
    before = len(split_steps(opening))
    steps = opening + " ".join([repeated] * copies)
    share = (before + min(copies, times)) / (before + copies)
    assert FOUR.check_trace(CountdownProblem(numbers, 5), None, steps) == share


def outcome(problem: CountdownProblem, path: tuple[str, ...]) -> tuple | None:
    """The pool and the goal after these steps in a row, by the rules in fractions; else None."""
    pool, goal = collections.Counter(map(Fraction, problem.numbers)), Fraction(problem.target)
    undo = {"-": Fraction.__sub__, "/": Fraction.__truediv__, "+": Fraction.__add__}
    for step in path:
        left, op, right, _, made, check = step.removeprefix("from ").split()
        a, b, c = Fraction(left), Fraction(right), Fraction(made)
        back, last = step.startswith("from "), pool.total() == 2
        if pool.total() < 2:  # nothing follows a whole combination
            return None
        operations = undo if back else OPERATIONS
        if op not in operations or operations[op](a, b) != c or not 1 <= c <= LIMIT:
            return None
        if back and (a != goal or last or (op, b) == ("/", 1)):
            return None
        pool.subtract((b,) if back else (a, b))
        if min(pool.values()) < 0:
            return None
        if back:
            goal = c
        else:
            pool[c] += 1
        compared = "high" if c > goal else "low" if c < goal else "yes"
        if check != (compared if last else ","):
            return None
    return pool, goal


def count_valid(problem: CountdownProblem, written: list[str]) -> int:
    """How many steps are valid, from the ways to reach each position, all of them replayed."""
    ways: set[tuple[str, ...]] = {()}
    valid: collections.Counter[str] = collections.Counter()
    for step in written:
        longer = {(*way, step) for way in ways if outcome(problem, (*way, step)) is not None}
        valid[step] += valid[step] < len(longer)
        ways |= longer
    return valid.total()


@settings(deadline=None, max_examples=40)
@given(st.sampled_from((THREE, FOUR)), st.integers(0, 10_000))
def test_check_trace_agrees_with_a_replay_of_every_way(task, index):
    problem, rng = task.sample(5, index), random.Random(index)
    traces = [task.trace(problem, strategy) for strategy in task.strategies]
    traces += [practise(task, problem, rng) for _ in range(3)]
    traces = [split_steps(trace.steps) for trace in traces if trace is not None]
    written = [step for trace in rng.choices(traces, k=2) for step in trace]
    for _ in range(rng.randrange(4)):  # some repeated, some too early
        written.insert(rng.randrange(len(written)), rng.choice(written))
    share = count_valid(problem, written) / len(written)
    assert task.check_trace(problem, None, " ".join(written)) == share


@pytest.mark.parametrize("largest", [4, 9])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_searches_that_repeat_a_step_elsewhere_stay_valid(size, largest):
    task = Countdown(size=size, largest=largest, tries=40)
    repeats = 0
    for index in range(25):
        problem, rng = task.sample(6, index), random.Random(index)
        traces = [task.trace(problem, strategy) for strategy in task.strategies]
        traces += [practise(task, problem, rng) for _ in range(10)]
        for trace in filter(None, traces):
            written = split_steps(trace.steps)
            repeats += len(set(written)) < len(written)
            assert task.check_trace(problem, None, trace.steps) == 1.0
    assert repeats > 10


@pytest.mark.parametrize("size", [3, 4, 8])
def test_a_trace_of_thousands_of_true_steps_is_judged(size):
    task = Countdown(size=size)
    steps = [
        f"{back}{a} {op} {b} = {c} ,"
        for a, b in itertools.product(range(1, 41), repeat=2)
        for op, c in (("+", a + b), ("-", a - b), ("*", a * b))
        for back in ("", "from ")
        if 1 <= c <= 40 and (op, back) != ("*", "from ")
    ]
    steps = (2 * steps)[:5000]
    assert len(steps) == 5000
    problem = CountdownProblem((3, 5, 7, 2, 11, 4, 1, 6)[:size], 40)
    assert 0 < task.check_trace(problem, None, " ".join(steps)) < 0.5


def test_a_wrong_result_is_not_another_strategy():
    problems = (THREE.sample(4, index) for index in range(100))
    problem = next(p for p in problems if _only(p) == "smallest")
    steps = THREE.trace(problem, "smallest").steps
    words = steps.split()
    wrong = " ".join((*words[:4], "98", *words[5:]))
    assert THREE.recognise(problem, steps) == THREE.recognise(problem, wrong) == "smallest"
    assert THREE.check_trace(problem, "smallest", wrong) < 1


def _only(problem: CountdownProblem) -> str | None:
    """The one strategy that solves the problem, None where several do or none does."""
    solved = [s for s in THREE.strategies if THREE.trace(problem, s) is not None]
    return solved[0] if len(solved) == 1 else None


@settings(deadline=None)
@given(PROBLEMS, st.randoms(use_true_random=False))
def test_the_order_of_the_numbers_makes_no_other_instance(problem, rng):
    numbers = list(problem.numbers)
    rng.shuffle(numbers)
    shuffled = CountdownProblem(tuple(numbers), problem.target)
    assert THREE.key(shuffled) == THREE.key(problem)
    assert all(THREE.trace(shuffled, s) == THREE.trace(problem, s) for s in THREE.strategies)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"size": 1}, "size=1"),
        ({"largest": 0}, "largest=0"),
        ({"target": 61, "limit": 60}, "target=61"),
        ({"limit": 10_000}, "limit=10000"),
        ({"tries": 0}, "tries=0"),
    ],
)
def test_impossible_arguments_are_refused(arguments, field):
    with pytest.raises(ValueError, match=field):
        Countdown(**arguments)


def test_a_search_for_problems_that_hardly_exist_ends():
    task = Countdown(size=2, largest=1, target=9999, limit=9999)  # only 1 and 2 can be made
    with pytest.raises(ValueError) as error:
        task.sample(0, 0)
    assert str(error.value) == (
        "size=2, largest=1, target=9999, tries=5, limit=9999: no strategy solves any of 10000 "
        "problems drawn; lower largest and target or raise tries."
    )


def test_practice_may_search_longer_than_a_strategy():
    task, rng = Countdown(tries=2, practice_tries=7), random.Random(0)

    def tries(trace):
        return sum(not step.endswith(",") for step in split_steps(trace.steps))

    problems = [task.sample(0, index) for index in range(60)]
    practised = [practise(task, problem, rng) for problem in problems]
    assert max(tries(trace) for trace in practised if trace) == 7
    taught = [task.trace(problem, name) for problem in problems for name in task.strategies]
    assert max(tries(trace) for trace in taught if trace) == 2
    with pytest.raises(ValueError, match="practice_tries=0: a search needs at least one try"):
        Countdown(practice_tries=0)


def test_samples_stay_what_they_were():
    assert [Countdown().sample(0, index) for index in range(3)] == [
        CountdownProblem((7, 12, 19), 14),
        CountdownProblem((10, 8, 2), 26),
        CountdownProblem((5, 5, 9), 34),
    ]
    rare = Countdown(size=2, largest=1)  # one target in 20 can be made: most draws are refused
    assert [rare.sample(0, index).target for index in range(4)] == [2, 1, 2, 2]


@settings(deadline=None, max_examples=60)
@given(PROBLEMS)
def test_all_results_are_those_of_every_combination(problem):
    found = countdown._results(tuple(sorted(problem.numbers)), LIMIT)
    assert found == {value for _, value in combinations(problem.numbers)}


@pytest.mark.parametrize("task", [THREE, FOUR, Countdown(), Countdown(size=5, tries=8)])
def test_a_draw_without_an_answer_is_refused_as_a_search_would(task, monkeypatch):
    samples = [task.sample(1, index) for index in range(30)]
    monkeypatch.setattr(Countdown, "_is_hopeless", lambda self, problem: False)
    assert samples == [task.sample(1, index) for index in range(30)]


# Answers that count as one in a vote


@pytest.mark.parametrize(
    "first, second, same",
    [
        ("3 * 2 = 6 , 10 + 6 = 16", "2 * 3 = 6 , 6 + 10 = 16", True),
        ("3 + 2 = 5 , 10 + 5 = 15", "10 + 2 = 12 , 12 + 3 = 15", True),  # wrong, and one answer
        ("10 - 2 = 8 , 8 * 3 = 24", "10 - 3 = 7 , 7 * 2 = 14", False),
        ("10 - 3 = 7 , 7 - 2 = 5", "3 + 2 = 5 , 10 - 5 = 5", False),  # equal by algebra alone
    ],
)
def test_votes_are_on_expressions_not_on_their_order(first, second, same):
    problem, task = CountdownProblem((2, 3, 10), 16), Countdown()
    keys = [task.verify(problem, answer).key for answer in (first, second)]
    assert None not in keys and (keys[0] == keys[1]) == same


def test_a_key_tells_the_expression():
    verdict = Countdown().verify(CountdownProblem((2, 3, 10), 16), "3 * 2 = 6 , 10 + 6 = 16")
    assert verdict.key == "((2 * 3) + 10)"
    assert Countdown().verify(CountdownProblem((2, 3, 10), 16), "3 * 2 = 7").key is None


# Chains of attempts

TWENTY = Countdown()
MAKE_25 = CountdownProblem((8, 20, 3), 25)
RIGHT = "8 - 3 = 5 , 20 + 5 = 25 yes answer 8 - 3 = 5 , 20 + 5 = 25"


@pytest.mark.parametrize(
    ("wrong", "opening"),
    [
        # A wrong sum is set right, and so is the check that rested on it.
        (["20 - 8 = 12 , 12 + 3 = 25 yes answer 12"], "20 - 8 = 12 , 12 + 3 = 15 low "),
        (["from 25 - 20 = 5 , 8 + 3 = 5 yes answer"], "from 25 - 20 = 5 , 8 + 3 = 11 high "),
        (["20 - 8 = 13 , 13 + 3 = 25 yes"], "20 - 8 = 12 , 12 + 3 = 15 low "),
        (["from 25 + 3 = 18 , 20 + 8 = 28 yes"], ""),  # it is 28: the target is reached after all
        # What was written stands once.
        (
            ["20 - 8 = 12 , 12 + 3 = 25 yes", "20 - 8 = 13 , 12 * 3 = 25 yes"],
            "20 - 8 = 12 , 12 + 3 = 15 low 12 * 3 = 36 high ",
        ),
        (["20 - 8 = 12 , 12 + 3 = 15 low"] * 3, "20 - 8 = 12 , 12 + 3 = 15 low "),
        # Left out: numbers that are not there, no try, words, a target that is reached after all.
        (["20 - 9 = 11 , 11 + 3 = 14 low"], ""),
        (["20 - 8 = 12 ,"], ""),
        (["20 - 8", "answer", "", "20 / 8 = 2 , 3 * 3 = 9 low"], ""),
        (["8 - 3 = 5 , 20 + 5 = 24 low answer 8 - 3 = 5"], ""),
        (["8 - 3 = 5 , 20 + 5 = 25 yes 20 - 8 = 12 , 12 + 3 = 15 low"], ""),
        ([], ""),
    ],
)
def test_attempts_are_merged_into_one_chain(wrong, opening):
    assert TWENTY.merge_attempts(MAKE_25, wrong, RIGHT) == opening + RIGHT


def test_the_right_attempt_does_not_repeat_what_was_written():
    wrong = "8 - 3 = 5 , 20 - 5 = 25 yes answer 8 - 3 = 5 , 20 - 5 = 25"
    chain = TWENTY.merge_attempts(MAKE_25, [wrong], RIGHT)
    assert chain == RIGHT.replace(", 20", ", 20 - 5 = 15 low 20", 1)


@pytest.mark.parametrize(
    "right",
    [
        "8 - 3 = 6 , 20 + 5 = 25 yes answer 8 - 3 = 5 , 20 + 5 = 25",  # a step that does not hold
        "8 - 3 = 5 , answer 8 - 3 = 5 , 20 + 5 = 25",  # steps that do not arrive
    ],
)
def test_a_right_attempt_whose_steps_do_not_hold_ends_no_chain(right):
    assert TWENTY.merge_attempts(MAKE_25, [], right) is None


@given(st.integers(0, 10_000), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_every_step_of_a_chain_is_valid_and_its_answer_right(index, count, rng):
    problem = TWENTY.sample(0, index)
    right = next(text for text in iter(lambda: TWENTY.practice(problem, rng), 0) if text)
    wrong = []
    for _ in range(count):
        # Attempts at another target, and with numbers changed at random.
        other = CountdownProblem(problem.numbers, rng.randint(1, 40))
        words = (TWENTY.practice(other, rng) or right).split()
        for _ in range(rng.randint(0, 3)):
            words[rng.randrange(len(words))] = str(rng.randint(1, 40))
        wrong.append(" ".join(words))
    steps, answer = parse_completion(TWENTY.merge_attempts(problem, wrong, right))
    assert TWENTY.check_trace(problem, None, steps) == 1.0
    assert TWENTY.verify(problem, answer).correct
    assert steps.split().count("yes") == 1 and steps.endswith("yes")
    assert set(split_steps(parse_completion(right)[0])) <= set(split_steps(steps))
