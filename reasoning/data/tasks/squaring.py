"""Squaring: r squared n times modulo a prime p, r^(2^n) mod p.

Five strategies that all find the answer; which of them is short depends on r and n:

    direct    the answer alone
    squares   n squares, each of the one before
    exponent  2^n modulo p - 1 by doubling; then r to that power: a square for each of its binary
              digits after the first, followed by a product with r where the digit is 1
    cycle     squares until a number comes back; then n modulo their number says which one it is
    filler    n dots: room to compute, but no state is written (a control)

    prompt    "7 ^ 2 ^ 5 mod 19 :"
    squares   "7 * 7 = 11 11 * 11 = 7 7 * 7 = 11 11 * 11 = 7 7 * 7 = 11 answer 11"
    exponent  "2 + 2 = 4 4 + 4 = 8 8 + 8 = 16 16 + 16 = 14
               7 * 7 = 11 11 * 7 = 1 1 * 1 = 1 1 * 7 = 7 7 * 7 = 11 answer 11"
    cycle     "7 * 7 = 11 11 * 11 = 7 5 % 2 = 1 answer 11"

This is the iterated squaring of Li et al. (arXiv 2402.12875), who write the results of `squares`.
Primes are 3 modulo 4: then squaring permutes the squares, so that however often r is squared, all
squares but 1 stay equally likely, and a cycle holds every number but perhaps r.
"""

import dataclasses
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from reasoning.data.tasks.base import (
    Split,
    Trace,
    Verdict,
    hashed_stream,
    strategy_completions,
)
from reasoning.data.tasks.steps import (
    NUMBER,
    Judged,
    check_strategy,
    count_dots,
    longest_opening,
    share_as_expected,
    share_valid,
    verify_number,
)

Operation = tuple[int, str, int]  # of a step: * is modulo p, + modulo p - 1, and % the remainder


@dataclasses.dataclass(frozen=True)
class Power:
    """A problem: base^(2^squarings) modulo prime."""

    base: int
    squarings: int
    prime: int

    def after(self, squarings: int) -> int:
        """base^(2^squarings): the answer after so many squarings, and any earlier result."""
        return pow(self.base, pow(2, squarings, self.prime - 1), self.prime)

    def result(self, operation: Operation) -> int:
        """What an operation yields."""
        a, op, b = operation
        if op == "%":
            return a % b
        return (a + b) % (self.prime - 1) if op == "+" else a * b % self.prime


# The operation that a strategy does after those with the given results; None: it has finished.
Next = Callable[[Power, Sequence[int]], Operation | None]


def _squares(problem: Power, results: Sequence[int]) -> Operation | None:
    value = (problem.base, *results)[-1]
    return (value, "*", value) if len(results) < problem.squarings else None


def _exponent(problem: Power, results: Sequence[int]) -> Operation | None:
    doublings = problem.squarings - 1
    powers, products = (2, *results[:doublings]), results[doublings:]
    if len(powers) <= doublings:
        return powers[-1], "+", powers[-1]
    plan = f"{powers[-1]:b}"[1:].replace("0", "s").replace("1", "sb")  # s: square, b: times base
    if len(products) == len(plan):
        return None
    value = (problem.base, *products)[-1]
    return value, "*", value if plan[len(products)] == "s" else problem.base


def _cycle(problem: Power, results: Sequence[int]) -> Operation | None:
    *before, value = problem.base, *results
    if len(set(before)) < len(before):  # a number has come back and the remainder is written
        return None
    if value not in before:
        return value, "*", value
    return problem.squarings, "%", len(before) - before.index(value)


WAYS: dict[str, Next] = {"squares": _squares, "exponent": _exponent, "cycle": _cycle}


class Squaring:
    """Squaring again and again (`reasoning.data.tasks.base.Task`).

    Args:
      smallest: problems have the primes from here on that are 3 modulo 4, from 7 on.
      largest: up to here. Equal to `smallest`: one prime.
      squarings: how often r is squared is drawn from 2..squarings.
    """

    name = "squaring"
    strategies = ("direct", *WAYS, "filler")
    num_traces = len(strategies)
    words = ("^", "mod", ":", "*", "+", "%", "=", ".", "answer")

    def __init__(self, smallest: int = 19, largest: int = 47, squarings: int = 10) -> None:
        if not 7 <= smallest <= largest <= 999:
            raise ValueError(
                f"smallest={smallest}, largest={largest}: must lie in 7..999, in this order."
            )
        if not 2 <= squarings <= 999:
            raise ValueError(f"squarings={squarings}: must lie in 2..999.")
        self.primes = [n for n in range(smallest, largest + 1) if n % 4 == 3 and _is_prime(n)]
        if not self.primes:
            raise ValueError(
                f"smallest={smallest}, largest={largest}: no prime that is 3 modulo 4 lies there; "
                "take 19 to 47."
            )
        self.squarings = squarings
        self.max_number = max(self.primes[-1], squarings)

    def sample(self, seed: int, index: int) -> Power:
        """A prime, a number of squarings, and r from 2..p - 2, each drawn uniformly."""
        rng = random.Random(f"squaring/{seed}/{index}")
        prime = rng.choice(self.primes)
        return Power(rng.randint(2, prime - 2), rng.randint(2, self.squarings), prime)

    def stream(self, split: Split, seed: int) -> Iterator[Power]:
        """The endless stream of a split's problems, in the order of their index."""
        return hashed_stream(self, split, seed)

    def key(self, problem: Power) -> str:
        """The three numbers."""
        return f"{problem.base} {problem.squarings} {problem.prime}"

    def prompt(self, problem: Power) -> str:
        """`7 ^ 2 ^ 5 mod 19 :`."""
        return f"{problem.base} ^ 2 ^ {problem.squarings} mod {problem.prime} :"

    def trace(self, problem: Power, strategy: str) -> Trace:
        """What `strategy` writes; every strategy finds the answer."""
        return Trace(" ".join(self._steps(problem, strategy)), str(_answer(problem)))

    def completions(self, problem: Power) -> list[str]:
        """The distinct traces of the strategies that solve it, sorted."""
        return strategy_completions(self, problem)

    def practice(self, problem: Power, rng: random.Random) -> str:
        """A random number of squares, and the rest by its exponent or by the cycle."""
        squares = rng.randrange(problem.squarings)
        if rng.random() < 0.5:
            rest = _operations(_rest(problem, squares), _exponent)
        else:
            cycle = _operations(problem, _cycle)
            squares, rest = max(squares, len(cycle) - 1), cycle[-1:]
        operations = (*(_square(problem, i) for i in range(squares)), *rest)
        return Trace(" ".join(_texts(problem, operations)), str(_answer(problem))).completion

    def verify(self, problem: Power, answer: str | None) -> Verdict:
        """The answer must be the number in 0..p - 1 that is asked for."""
        return verify_number(answer, _answer(problem), problem.prime - 1)

    def judge_steps(self, problem: Power, steps: str) -> list[Judged]:
        """Each step, and whether it is valid where no strategy is asked for."""
        written = split_steps(steps)
        return list(zip(written, _valid_steps(problem, written), strict=True))

    def check_trace(self, problem: Power, strategy: str | None, steps: str) -> float:
        """Share of steps that are true and go on from those before them.

        Any number of squares may open, up to n or until a number comes back. Then what is left of
        n may be doubled as an exponent, and all of that way must follow; or, if a number has come
        back, the remainder is taken. With a strategy, a step must be the one that the strategy
        takes at that place. Nothing and dots are right for the strategies `direct` and `filler`,
        and earn 0 without a strategy.
        """
        if strategy is None:
            return share_valid(self.judge_steps(problem, steps))
        return share_as_expected(split_steps(steps), self._steps(problem, strategy))

    def recognise(self, problem: Power, steps: str) -> str | None:
        """The one strategy that shares the longest opening with the steps.

        Compared are the operations: a wrong result, and going on with it, is a wrong calculation,
        not another strategy. Of two that share as much, it is the one that has finished then:
        `squares` may be how `cycle` opens.
        """
        written = split_steps(steps)
        if not written:
            return "direct"
        shared = {name: _shared_opening(problem, way, written) for name, way in WAYS.items()}
        return longest_opening({**shared, "filler": 2 * count_dots(written)})

    def _steps(self, problem: Power, strategy: str) -> list[str]:
        check_strategy(self, strategy)
        if strategy in WAYS:
            return _texts(problem, _operations(problem, WAYS[strategy]))
        return ["."] * problem.squarings if strategy == "filler" else []


_STEP = re.compile(rf"({NUMBER}) ([*+%]) ({NUMBER}) = ({NUMBER})")


def split_steps(steps: str) -> list[str]:
    """Cut a trace into its steps; words that form none stand alone, as a dot does."""
    return re.findall(r"\S+ \S+ \S+ = \S+|\S+", steps)


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _answer(problem: Power) -> int:
    return problem.after(problem.squarings)


def _square(problem: Power, squares: int) -> Operation:
    """The square that follows the first `squares` ones."""
    return problem.after(squares), "*", problem.after(squares)


def _rest(problem: Power, squares: int) -> Power:
    """What is left to do after so many squares."""
    return Power(problem.after(squares), problem.squarings - squares, problem.prime)


def _operations(problem: Power, way: Next) -> list[Operation]:
    """What a strategy does, with true results."""
    operations, results = [], []
    while operation := way(problem, results):
        operations.append(operation)
        results.append(problem.result(operation))
    return operations


def _texts(problem: Power, operations: Iterable[Operation]) -> list[str]:
    """The steps: `7 * 7 = 11`."""
    return [f"{a} {op} {b} = {problem.result((a, op, b))}" for a, op, b in operations]


def _valid_steps(problem: Power, written: Sequence[str]) -> list[bool]:
    """For each step, whether it goes on from the valid ones before it.

    Squares come first, then perhaps another way.
    """
    *until_back, last = _operations(problem, _cycle)
    num_squares = max(problem.squarings, len(until_back))
    squares = _texts(problem, (_square(problem, i) for i in range(num_squares)))
    remainder, doubling = _texts(problem, (last, (2, "+", 2)))
    way, place, valid = squares, 0, []
    for text in written:
        if way is squares and text == doubling and place <= problem.squarings - 2:
            rest = _rest(problem, place)
            way, place = _texts(rest, _operations(rest, _exponent)), 0
        elif way is squares and text == remainder and place >= len(until_back):
            way, place = [remainder], 0
        valid.append([text] == way[place : place + 1])
        place += valid[-1]
    return valid


def _shared_opening(problem: Power, way: Next, written: Sequence[str]) -> int:
    """Twice the steps that do what the way does, whatever their results; 1 more if it is done."""
    results: list[int] = []
    for text in written:
        match = _STEP.fullmatch(text)
        if match is None or (int(match[1]), match[2], int(match[3])) != way(problem, results):
            break
        results.append(int(match[4]))
    finished = len(results) == len(written) and way(problem, results) is None
    return 2 * len(results) + finished
