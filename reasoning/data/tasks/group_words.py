"""Group words: multiply n elements of a small permutation group, a task of state tracking.

No step can be skipped, so writing the steps is what makes it easy. Five strategies:

    direct   the answer alone
    left     from the left:   ((a b) c) d
    right    from the right:  a (b (c d))
    tree     neighbours in pairs, level by level:  (a b) (c d); an odd last one waits
    filler   n - 1 dots: room to compute as in a fold, but no state is written (a control)

    prompt   "3 1 4 2 :"
    left     "3 1 = 5 5 4 = 2 2 2 = 0 answer 0"

The elements are the permutations of the points 0, 1, ... in lexicographic order of their images
(in A5 the even ones alone, in Cn the rotations of n points), numbered from 0, the identity. Words
act from left to right: `a b = c` says that a and then b is c, c(i) = b(a(i)). In Cn that is the sum
of a and b modulo n.
"""

import functools
import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator

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
    valid_steps,
    verify_number,
)

Word = tuple[int, ...]  # a problem: the elements in the order of the prompt
Places = Iterable[int]  # a way to reduce a word: where the next two neighbours are multiplied

# group -> how many points it permutes
DEGREES = {"S3": 3, "S4": 4, "S5": 5, "A5": 5, **{f"C{n}": n for n in range(2, 13)}}


@functools.cache
def elements(group: str) -> tuple[tuple[int, ...], ...]:
    """The permutations of a group as tuples of images; an element's number is its index."""
    points = range(DEGREES[group])
    if group.startswith("C"):
        return tuple((*points[shift:], *points[:shift]) for shift in points)
    permutations = itertools.permutations(points)
    return tuple(p for p in permutations if group.startswith("S") or _is_even(p))


@functools.cache
def multiplication_table(group: str) -> tuple[tuple[int, ...], ...]:
    """`table[a][b]` is the number of the product `a b`: first a, then b."""
    members = elements(group)
    number = {permutation: i for i, permutation in enumerate(members)}
    return tuple(tuple(number[tuple(b[i] for i in a)] for b in members) for a in members)


def _is_even(permutation: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0


def _left(n: int) -> Places:
    return [0] * (n - 1)


def _right(n: int) -> Places:
    return range(n - 2, -1, -1)


def _tree(n: int) -> Places:
    while n > 1:
        yield from range(n // 2)
        n -= n // 2


FOLDS: dict[str, Callable[[int], Places]] = {"left": _left, "right": _right, "tree": _tree}


class GroupWords:
    """The word problem of a group (`reasoning.data.tasks.base.Task`).

    Args:
      group: S3 (6 elements), S4 (24), S5 (120), A5 (60, the smallest that is not solvable), or C2
        to C12 (cyclic: the order of the elements does not matter).
      length: how many elements a word has.
      sparse: any number of them is the identity: short words within long ones, from which products
        are learned one factor after another (arXiv 2410.03569).
    """

    name = "group_words"
    strategies = ("direct", *FOLDS, "filler")
    num_traces = len(strategies)
    words = (":", "=", ".", "answer")

    def __init__(self, group: str = "S3", length: int = 8, sparse: bool = False) -> None:
        if group not in DEGREES:
            raise ValueError(f"group={group!r}: must be one of {', '.join(DEGREES)}.")
        if length < 2:
            raise ValueError(f"length={length}: a product needs at least 2 elements.")
        self.group, self.length, self.sparse = group, length, sparse
        self.max_number = len(elements(group)) - 1
        self._table = multiplication_table(group)

    def sample(self, seed: int, index: int) -> Word:
        """Elements drawn uniformly; the others of a sparse word are the identity."""
        rng = random.Random(f"group_words/{seed}/{index}")
        word = tuple(rng.randint(0, self.max_number) for _ in range(self.length))
        count = rng.randint(1, self.length) if self.sparse else self.length
        kept = rng.sample(range(self.length), count)
        return tuple(element if place in kept else 0 for place, element in enumerate(word))

    def stream(self, split: Split, seed: int) -> Iterator[Word]:
        """The endless stream of a split's problems, in the order of their index."""
        return hashed_stream(self, split, seed)

    def key(self, problem: Word) -> str:
        """The word itself: the order of its elements matters."""
        return " ".join(map(str, problem))

    def prompt(self, problem: Word) -> str:
        """`3 1 4 2 :`."""
        return f"{' '.join(map(str, problem))} :"

    def trace(self, problem: Word, strategy: str) -> Trace:
        """What `strategy` writes; every strategy finds the answer."""
        return Trace(" ".join(self._steps(problem, strategy)), str(self._product(problem)))

    def completions(self, problem: Word) -> list[str]:
        """The distinct traces of the strategies that solve it, sorted."""
        return strategy_completions(self, problem)

    def practice(self, problem: Word, rng: random.Random) -> str:
        """Neighbours multiplied in random order (a short word leaves few orders to choose)."""
        places = (rng.randrange(left - 1) for left in range(len(problem), 1, -1))
        steps = " ".join(self._reduce(problem, places))
        return Trace(steps, str(self._product(problem))).completion

    def verify(self, problem: Word, answer: str | None) -> Verdict:
        """The answer must be the number of the product, written as in the prompt."""
        return verify_number(answer, self._product(problem), self.max_number)

    def judge_steps(self, problem: Word, steps: str) -> list[Judged]:
        """Each step, and whether it is valid where no strategy is asked for."""
        written = split_steps(steps)
        return list(zip(written, valid_steps(problem, written, self._apply), strict=True))

    def check_trace(self, problem: Word, strategy: str | None, steps: str) -> float:
        """Share of steps that are true products of two neighbours in the word as reduced so far.

        With a strategy, a step must be the one that the strategy takes at that place. Nothing and
        dots are right for the strategies `direct` and `filler`, and earn 0 without a strategy.
        Without, it is exact up to about 32 elements (24 in C2 and C3): beyond, a valid step may be
        missed where the same neighbours stand in very many places.
        """
        if strategy is None:
            return share_valid(self.judge_steps(problem, steps))
        return share_as_expected(split_steps(steps), self._steps(problem, strategy))

    def recognise(self, problem: Word, steps: str) -> str | None:
        """The one strategy that shares the longest opening with the steps.

        Compared are the neighbours that are chosen: a wrong product, and going on with it, is a
        wrong calculation, not another strategy.
        """
        written = split_steps(steps)
        if not written:
            return "direct"
        shared = {name: _shared_opening(problem, fold, written) for name, fold in FOLDS.items()}
        return longest_opening({**shared, "filler": count_dots(written)})

    def _product(self, problem: Word) -> int:
        return functools.reduce(lambda a, b: self._table[a][b], problem)

    def _steps(self, problem: Word, strategy: str) -> list[str]:
        check_strategy(self, strategy)
        if strategy in FOLDS:
            return self._reduce(problem, FOLDS[strategy](len(problem)))
        return ["."] * (len(problem) - 1) if strategy == "filler" else []

    def _reduce(self, problem: Word, places: Places) -> list[str]:
        """Multiply the neighbours at each place in turn; the steps written on the way."""
        left, steps = list(problem), []
        for place in places:
            a, b = left[place : place + 2]
            left[place : place + 2] = [self._table[a][b]]
            steps.append(f"{a} {b} = {self._table[a][b]}")
        return steps

    def _apply(self, word: Word, text: str) -> Iterator[Word]:
        """The words that the step may leave: one for each place where its operands stand."""
        match = _STEP.fullmatch(text)
        if match is None:
            return
        a, b, product = map(int, match.groups())
        for place, pair in enumerate(itertools.pairwise(word)):
            if pair == (a, b) and self._table[a][b] == product:
                yield (*word[:place], product, *word[place + 2 :])


_STEP = re.compile(rf"({NUMBER}) ({NUMBER}) = ({NUMBER})")


def split_steps(steps: str) -> list[str]:
    """Cut a trace into its steps; words that form no product stand alone, as a dot does."""
    return re.findall(r"\S+ \S+ = \S+|\S+", steps)


def _shared_opening(problem: Word, fold: Callable[[int], Places], written: list[str]) -> int:
    """How many steps multiply the fold's neighbours, whatever they say that the product is."""
    left = list(map(str, problem))
    shared = 0
    for place, text in zip(fold(len(problem)), written):
        operands, _, product = text.partition(" = ")
        if operands != f"{left[place]} {left[place + 1]}":
            break
        left[place : place + 2] = [product]
        shared += 1
    return shared
