"""Multiplication: two factors of a few digits, worked out in steps that are small by themselves.

Every number is written digit by digit, one word per digit and the least significant first, so that
a carry is known before it is needed: 47 is `7 4`. This holds for prompt, steps and answer.

    prompt        "3 2 * 7 4 :"  (23 * 47)
    schoolbook    one row per digit of the second factor, with carries; then the sum of the rows
                  3 * 7 = 1 2 , 2 * 7 = 4 1 + 2 = 6 1 , 3 * 4 = 2 1 , 2 * 4 = 8 + 1 = 9 ,
                  1 6 1 + 0 2 9 = 1 8 0 1
    columns       one column per digit of the product: its digit products are added to the carry
                  3 * 7 = 1 2 , 3 * 4 = 2 1 + 2 = 4 1 , 2 * 7 = 4 1 + 4 1 = 8 2 ,
                  2 * 4 = 8 + 2 = 0 1
    distributive  23 * 40 + 23 * 7, each of them from the parts 20 and 3 of the first factor
                  0 2 * 0 4 = 0 0 8 , 3 * 0 4 = 0 2 1 , 0 0 8 + 0 2 1 = 0 2 9 ,
                  0 2 * 7 = 0 4 1 , 3 * 7 = 1 2 , 0 4 1 + 1 2 = 1 6 1 , 0 2 9 + 1 6 1 = 1 8 0 1
    peasant       halve the smaller factor and double the other; then the sum of the odd rows
                  3 2 odd 7 4 , 1 1 odd 4 9 , 5 odd 8 8 1 , 2 even 6 7 3 , 1 odd 2 5 7 ,
                  7 4 + 4 9 = 1 4 1 , 1 4 1 + 8 8 1 = 9 2 3 , 9 2 3 + 2 5 7 = 1 8 0 1
    direct        the answer alone

In `2 * 7 = 4 1 + 2 = 6 1` the product 14 of two digits is added to what is carried, 2.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from reasoning.data.tasks.base import (
    Split,
    Trace,
    Verdict,
    hashed_stream,
    strategy_completions,
)
from reasoning.data.tasks.moves import (
    SEPARATOR,
    followed,
    split_steps,
    valid_moves,
    walk,
)
from reasoning.data.tasks.steps import Judged, check_strategy, share_as_expected, share_valid

Factors = tuple[int, int]  # a problem: in the order of the prompt
MAX_DIGITS = 4  # of a factor: bounds the work of `check_trace`


def written(number: int) -> str:
    """The digits as words, the least significant first."""
    return " ".join(reversed(str(number)))


def _digits(number: int) -> list[int]:
    return [int(digit) for digit in reversed(str(number))]


def _parts(number: int) -> list[int]:
    """What its digits other than 0 stand for, the largest first: 203 is 200 and 3."""
    places = [digit * 10**place for place, digit in enumerate(_digits(number)) if digit]
    return places[::-1]


def _product(x: int, y: int, carried: int | None = None) -> str:
    """The step that multiplies, and adds to what is carried unless that is None."""
    text = f"{written(x)} * {written(y)} = {written(x * y)}"
    if carried is None:
        return text
    return f"{text} + {written(carried)} = {written(x * y + carried)}"


def _sum(x: int, y: int) -> str:
    return f"{written(x)} + {written(y)} = {written(x + y)}"


def _row(left: int, right: int) -> str:
    """The row of the table of halves and doubles."""
    return f"{written(left)} {'odd' if left % 2 else 'even'} {written(right)}"


def _running_sum(terms: Iterable[int]) -> Iterator[str]:
    total, *rest = terms
    for term in rest:
        yield _sum(total, term)
        total += term


def _schoolbook(a: int, b: int) -> Iterator[str]:
    for digit in _digits(b):
        yield from (_in_row(a, place, digit) for place in range(len(_digits(a))))
    yield from _running_sum(a * digit * 10**place for place, digit in enumerate(_digits(b)))


def _in_row(a: int, place: int, digit: int) -> str:
    """The step at a place of the row for a digit; its first has nothing to carry."""
    carried = a % 10**place * digit // 10**place if place else None
    return _product(_digits(a)[place], digit, carried)


def _columns(a: int, b: int) -> Iterator[str]:
    total = None
    for column in range(2 * len(_digits(a)) - 1):
        for x, y in _pairs(a, b, column):
            yield _product(x, y, total)
            total = x * y + (total or 0)
        total //= 10


def _pairs(a: int, b: int, column: int) -> list[tuple[int, int]]:
    """The digits of the factors whose products belong to the column."""
    x, y = _digits(a), _digits(b)
    return [(x[i], y[column - i]) for i in range(len(x)) if 0 <= column - i < len(y)]


def _distributive(a: int, b: int) -> Iterator[str]:
    for part in _parts(b):
        yield from (_product(x, part) for x in _parts(a))
        yield from _running_sum(x * part for x in _parts(a))
    yield from _running_sum(a * part for part in _parts(b))


def _peasant(a: int, b: int) -> Iterator[str]:
    left, right = min(a, b), max(a, b)
    odd = []
    while left:
        yield _row(left, right)
        odd += [right] * (left % 2)
        left, right = left // 2, right * 2
    yield from _running_sum(odd)


STRATEGIES: dict[str, Callable[[int, int], Iterable[str]]] = {
    "schoolbook": _schoolbook,
    "columns": _columns,
    "distributive": _distributive,
    "peasant": _peasant,
    "direct": lambda a, b: (),
}


class Page(NamedTuple):
    """How far a calculation has come that takes its steps in any order.

    Attributes:
      way: what is left to do is in `rows`, `columns`, `parts` or a `table`.
      todo: rows: the places of the second factor whose rows are not begun; columns: the pairs of
        digits left in the column; parts: the pairs of parts left.
      at: rows: (place of the second factor, of the first) in the row begun, else (); columns:
        (column, what is carried or None); table: (left, right) of the next row, () behind it.
      terms: numbers to add, sorted.
    """

    way: str
    todo: tuple = ()
    at: tuple = ()
    terms: tuple[int, ...] = ()

    def having(self, term: int) -> tuple[int, ...]:
        """The terms with one more."""
        return tuple(sorted((*self.terms, term)))


def _starts(a: int, b: int) -> list[Page]:
    return [
        Page("rows", tuple(range(len(_digits(b))))),
        Page("columns", tuple(_pairs(a, b, 0)), (0, None)),
        Page("parts", tuple(itertools.product(_parts(a), _parts(b)))),
        Page("table", at=(a, b)),
        Page("table", at=(b, a)),
    ]


def _row_moves(a: int, b: int, page: Page) -> Iterator[tuple[str, Page]]:
    """Go on with the row begun, or begin any other."""
    for row, place in [page.at] if page.at else [(row, 0) for row in page.todo]:
        digit = _digits(b)[row]
        after = page._replace(todo=tuple(r for r in page.todo if r != row), at=(row, place + 1))
        if place + 1 == len(_digits(a)):
            after = after._replace(at=(), terms=page.having(a * digit * 10**row))
        yield _in_row(a, place, digit), after


def _column_moves(a: int, b: int, page: Page) -> Iterator[tuple[str, Page]]:
    """Any digit product of the column that is left."""
    for i, (x, y) in enumerate(page.todo):
        column, carried = page.at
        todo, total = page.todo[:i] + page.todo[i + 1 :], x * y + (carried or 0)
        if not todo:
            column, total = column + 1, total // 10
            todo = tuple(_pairs(a, b, column))
        yield _product(x, y, carried), page._replace(todo=todo, at=(column, total))


def _part_moves(a: int, b: int, page: Page) -> Iterator[tuple[str, Page]]:
    """Any product of a part of each factor."""
    for i, (x, y) in enumerate(page.todo):
        todo = page.todo[:i] + page.todo[i + 1 :]
        yield _product(x, y), page._replace(todo=todo, terms=page.having(x * y))


def _table_moves(a: int, b: int, page: Page) -> Iterator[tuple[str, Page]]:
    """The next row, down to the one that begins with 1."""
    if page.at:
        left, right = page.at
        after = page._replace(at=(left // 2, right * 2) if left > 1 else ())
        yield _row(left, right), after._replace(terms=page.having(right)) if left % 2 else after


WAYS = {
    "rows": _row_moves,
    "columns": _column_moves,
    "parts": _part_moves,
    "table": _table_moves,
}


def _moves(a: int, b: int, page: Page) -> Iterator[tuple[str, Page]]:
    """Every valid step: what the way does next, or the sum of any two terms."""
    yield from WAYS[page.way](a, b, page)
    for i, j in itertools.permutations(range(len(page.terms)), 2):
        x, y = page.terms[i], page.terms[j]
        rest = [term for k, term in enumerate(page.terms) if k not in (i, j)]
        yield _sum(x, y), page._replace(terms=tuple(sorted((*rest, x + y))))


class Multiplication:
    """The multiplication task (`reasoning.data.tasks.base.Task`).

    Args:
      digits: how many each factor has.
    """

    name = "multiplication"
    strategies = tuple(STRATEGIES)
    num_traces = len(strategies)
    words = ("*", "+", "=", ",", ":", "odd", "even", "answer")
    max_number = 9  # a word is one digit

    def __init__(self, digits: int = 2) -> None:
        if not 1 <= digits <= MAX_DIGITS:
            raise ValueError(f"digits={digits}: must lie in 1..{MAX_DIGITS}.")
        self.digits = digits

    def sample(self, seed: int, index: int) -> Factors:
        """Factors drawn uniformly from those with so many digits."""
        rng = random.Random(f"multiplication/{seed}/{index}")
        first, second = (rng.randrange(10 ** (self.digits - 1), 10**self.digits) for _ in range(2))
        return first, second

    def stream(self, split: Split, seed: int) -> Iterator[Factors]:
        """The endless stream of a split's problems, in the order of their index."""
        return hashed_stream(self, split, seed)

    def key(self, problem: Factors) -> str:
        """The factors in ascending order: both orders have the same product."""
        return f"{min(problem)} * {max(problem)}"

    def prompt(self, problem: Factors) -> str:
        """`3 2 * 7 4 :` for 23 * 47."""
        return f"{written(problem[0])} * {written(problem[1])} :"

    def trace(self, problem: Factors, strategy: str) -> Trace:
        """What `strategy` writes; every strategy finds the product."""
        steps = SEPARATOR.join(self._steps(problem, strategy))
        return Trace(steps, written(problem[0] * problem[1]))

    def completions(self, problem: Factors) -> list[str]:
        """The distinct traces of the strategies that solve it, sorted."""
        return strategy_completions(self, problem)

    def practice(self, problem: Factors, rng: random.Random) -> str:
        """The steps of a way drawn at random, in random order."""
        start = rng.choice(_starts(*problem))
        moves = walk(start, lambda page: _moves(*problem, page), rng.choice)
        steps = SEPARATOR.join(step for step, _ in moves)
        return Trace(steps, written(problem[0] * problem[1])).completion

    def verify(self, problem: Factors, answer: str | None) -> Verdict:
        """The answer must be the digits of the product, the least significant first."""
        if not answer:
            return Verdict(False, "no_answer")
        if len(answer) > 4 * self.digits or _NUMBER.fullmatch(answer) is None:
            return Verdict(False, "malformed")
        correct = answer == written(problem[0] * problem[1])
        return Verdict(correct, "correct" if correct else "wrong_value")

    def judge_steps(self, problem: Factors, steps: str) -> list[Judged]:
        """Each step, and whether it is valid where no strategy is asked for."""
        starts = _starts(*problem)
        written = split_steps(steps)
        valid = valid_moves(written, starts, lambda page: _moves(*problem, page))
        return list(zip(written, valid, strict=True))

    def check_trace(self, problem: Factors, strategy: str | None, steps: str) -> float:
        """Share of steps that are exact and multiply or add what is there, once each.

        With a strategy, a step must be the one that the strategy takes at that place. Nothing is
        right for the strategy `direct`, and earns 0 without a strategy.
        """
        if strategy is None:
            return share_valid(self.judge_steps(problem, steps))
        return share_as_expected(split_steps(steps), self._steps(problem, strategy))

    def recognise(self, problem: Factors, steps: str) -> str | None:
        """The one strategy that shares the longest opening with the steps, results aside."""
        if not steps:
            return "direct"
        expected = {strategy: self._steps(problem, strategy) for strategy in self.strategies}
        return followed(split_steps(steps), expected, _choice)

    def _steps(self, problem: Factors, strategy: str) -> Iterable[str]:
        check_strategy(self, strategy)
        return STRATEGIES[strategy](*problem)


_NUMBER = re.compile(r"[0-9]|[0-9]( [0-9])* [1-9]")  # ASCII digits; no 0 at the wrong end


def _choice(step: str) -> str:
    """What a step does, without its results: `2 * 7 = +` of `2 * 7 = 4 1 + 2 = 6 1`."""
    operation, equals, results = step.partition(" = ")
    return f"{operation}{equals}{'+' if ' + ' in results else ''}"
