"""Countdown: combine all the given numbers with +, - and x to reach a target.

Four strategies search in really different orders with a bounded number of tries, so that they
succeed on different problems; each writes its failed tries and the check that they are wrong:

    largest    forward: the two largest numbers first; - before + before x
    smallest   forward: the two smallest numbers first; + before - before x
    nearest    forward: the result nearest to the target first
    backward   from the target: undo the last operation, until two numbers are left to try

A step is `a op b = c` followed by `,` (go on with c) or by the check of a try: `yes`, `high` or
`low` against the goal. A backward step opens with `from`: `from 36 - 1 = 35 ,` reads "36 is made
if 1 is added to 35", and 35 is the new goal. Many answers are right: the verifier replays the
equations exactly, with its own parser on bounded integers.
"""

import collections
import dataclasses
import functools
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence

from reasoning.data.tasks.base import (
    Split,
    Trace,
    Verdict,
    hashed_stream,
    parse_completion,
    strategy_completions,
)
from reasoning.data.tasks.steps import Judged, check_strategy, longest_opening, share_valid

FORWARD_OPS = ("*", "+", "-")
MISSED = ("low", "high")  # how a try ends that did not make the target
MAX_DRAWS = 10_000  # bounds the search of `sample` for a problem that some strategy solves
MAX_POSITIONS = 2000  # bounds the work of `check_trace`: six numbers, 20 tries reach about 100
Order = Callable[["Step"], tuple]
Position = tuple[tuple[int, ...], int]  # where a search stands: the sorted numbers left, the goal


@dataclasses.dataclass(frozen=True)
class CountdownProblem:
    """The numbers, in the order shown, and the target to make of all of them."""

    numbers: tuple[int, ...]
    target: int


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation `a op b = result`, and the sorted numbers that are left after it."""

    a: int
    op: str
    b: int
    result: int
    left: tuple[int, ...]
    back: bool = False  # undoes the last operation: a is the goal, result the new goal

    @property
    def equation(self) -> str:
        """`a op b = result`."""
        return f"{self.a} {self.op} {self.b} = {self.result}"

    def text(self, check: str) -> str:
        """The step as a trace writes it."""
        return f"{'from ' if self.back else ''}{self.equation} {check}"


def _apply(a: int, op: str, b: int) -> int | None:
    """The exact value of `a op b` in positive integers, None where there is none."""
    if op == "/":
        return a // b if b > 1 and a % b == 0 else None
    value = a + b if op == "+" else a - b if op == "-" else a * b
    return value if value > 0 else None


def _without(numbers: Sequence[int], *used: int) -> tuple[int, ...]:
    left = list(numbers)
    for number in used:
        left.remove(number)
    return tuple(left)


@functools.lru_cache(maxsize=100_000)
def _forward_steps(numbers: tuple[int, ...], limit: int) -> tuple[Step, ...]:
    """Every different operation on two of the sorted numbers with a result in 1..limit."""
    steps = []
    for b, a in sorted(set(itertools.combinations(numbers, 2))):
        rest = _without(numbers, a, b)
        for op in FORWARD_OPS:
            result = _apply(a, op, b)
            if result is not None and result <= limit:
                steps.append(Step(a, op, b, result, tuple(sorted((*rest, result)))))
    return tuple(steps)


@functools.lru_cache(maxsize=100_000)
def _results(numbers: tuple[int, ...], limit: int) -> frozenset[int]:
    """All that can be made of the sorted numbers with no result above the limit."""
    if len(numbers) == 1:
        return frozenset(numbers)
    steps = _forward_steps(numbers, limit)
    return frozenset().union(*(_results(step.left, limit) for step in steps))


def _backward_steps(numbers: tuple[int, ...], goal: int, limit: int) -> list[Step]:
    """Every way to undo one operation on the goal: `-` undoes +, `/` undoes x, `+` undoes -."""
    return [
        Step(goal, op, number, result, _without(numbers, number), back=True)
        for number in sorted(set(numbers), reverse=True)
        for op in ("-", "/", "+")
        if (result := _apply(goal, op, number)) is not None and result <= limit
    ]


def _check(result: int, goal: int) -> str:
    return "yes" if result == goal else "high" if result > goal else "low"


def _orders(target: int) -> dict[str, Order]:
    """The order in which each forward strategy looks at the operations open to it."""
    return {
        "largest": lambda s: (-(s.a + s.b), -s.a, "-+*".index(s.op)),
        "smallest": lambda s: (s.a + s.b, s.a, "+-*".index(s.op)),
        "nearest": lambda s: (abs(s.result - target), -(s.a + s.b), -s.a, "*+-".index(s.op)),
    }


# A search yields (step, check, path): the path is the equations so far, goal-directed for
# backward steps, and it is the solution where the check is `yes`.
Found = tuple[Step, str, tuple[Step, ...]]


def forward_search(
    numbers: Sequence[int], target: int, limit: int, order: Order
) -> Iterator[Found]:
    """Depth-first search over operations in the given order: those of smaller keys first."""

    def search(numbers: tuple[int, ...], path: tuple[Step, ...]) -> Iterator[Found]:
        for step in sorted(_forward_steps(numbers, limit), key=order):
            last = len(numbers) == 2
            yield step, _check(step.result, target) if last else ",", (*path, step)
            if not last:
                yield from search(step.left, (*path, step))

    yield from search(tuple(sorted(numbers)), ())


def backward_search(
    numbers: Sequence[int], target: int, limit: int, order: Order
) -> Iterator[Found]:
    """Depth-first search from the target: undo operations until two numbers are left to try."""

    def search(numbers: tuple[int, ...], goal: int, path: tuple[Step, ...]) -> Iterator[Found]:
        if len(numbers) == 2:
            for step in sorted(_forward_steps(numbers, limit), key=order):
                yield step, _check(step.result, goal), (*path, step)
            return
        for step in sorted(_backward_steps(numbers, goal, limit), key=order):
            yield step, ",", (*path, step)
            yield from search(step.left, step.result, (*path, step))

    yield from search(tuple(sorted(numbers)), target, ())


def _bounded(search: Iterator[Found], max_tries: int) -> Trace | None:
    """The trace of a search that succeeds within the budget of tries, else None."""
    taken, tries = [], 0
    for step, check, path in search:
        if tries == max_tries:
            return None
        taken.append((step, check))
        tries += check != ","
        if check == "yes":
            return Trace(" ".join(step.text(check) for step, check in taken), _answer(path))
    return None


def _answer(path: tuple[Step, ...]) -> str:
    """The path's equations in the order in which they are computed."""
    inverse = {"-": "+", "/": "*", "+": "-"}
    forward = [step.equation for step in path if not step.back]
    undone = [
        f"{step.result} {inverse[step.op]} {step.b} = {step.a}"
        for step in reversed(path)
        if step.back
    ]
    return " , ".join(forward + undone)


class Countdown:
    """The countdown task (`reasoning.data.tasks.base.Task`).

    Args:
      size: how many numbers a problem has.
      largest: numbers are drawn from 1..largest.
      target: targets are drawn from 1..target.
      tries: how many complete combinations a strategy may try before it gives up.
      limit: no step may have a larger result; the largest number of the task's texts.
      practice_tries: how many combinations a practised search may try.
    """

    name = "countdown"
    strategies = ("largest", "smallest", "nearest", "backward")
    num_traces = len(strategies)
    words = ("make", ":", "+", "-", "*", "/", "=", ",", "yes", "high", "low", "from", "answer")

    def __init__(
        self,
        size: int = 3,
        largest: int = 20,
        target: int = 40,
        tries: int = 5,
        limit: int = 40,
        practice_tries: int = 8,
    ) -> None:
        if size < 2:
            raise ValueError(f"size={size}: countdown needs at least 2 numbers.")
        if tries < 1:
            raise ValueError(f"tries={tries}: a strategy needs at least one try.")
        if practice_tries < 1:
            raise ValueError(f"practice_tries={practice_tries}: a search needs at least one try.")
        if not limit <= 9999:
            raise ValueError(f"limit={limit}: the verifier reads numbers up to 9999.")
        for name, value in (("largest", largest), ("target", target)):
            if not 1 <= value <= limit:
                raise ValueError(f"{name}={value}: must lie in 1..limit={limit}.")
        self.size, self.largest, self.target = size, largest, target
        self.tries, self.practice_tries = tries, practice_tries
        self.max_number = limit

    def sample(self, seed: int, index: int) -> CountdownProblem:
        """Numbers and target drawn uniformly, and again until some strategy solves them.

        Raises:
          ValueError: no problem is found, as the task's arguments make solvable ones too rare.
        """
        rng = random.Random(f"countdown/{seed}/{index}")
        for _ in range(MAX_DRAWS):
            numbers = tuple(rng.randint(1, self.largest) for _ in range(self.size))
            problem = CountdownProblem(numbers, rng.randint(1, self.target))
            solved = (self.trace(problem, strategy) for strategy in self.strategies)
            if not self._is_hopeless(problem) and any(solved):
                return problem
        raise ValueError(
            f"size={self.size}, largest={self.largest}, target={self.target}, tries={self.tries}, "
            f"limit={self.max_number}: no strategy solves any of {MAX_DRAWS} problems drawn; "
            "lower largest and target or raise tries."
        )

    def _is_hopeless(self, problem: CountdownProblem) -> bool:
        """Whether no right answer exists; of more than three numbers that takes longer to tell than
        a few searches, and is not asked."""
        if self.size > 3:
            return False
        return problem.target not in _results(tuple(sorted(problem.numbers)), self.max_number)

    def stream(self, split: Split, seed: int) -> Iterator[CountdownProblem]:
        """The endless stream of a split's problems, in the order of their index."""
        return hashed_stream(self, split, seed)

    def key(self, problem: CountdownProblem) -> str:
        """The sorted numbers and the target: the order shown makes no other instance."""
        return f"{sorted(problem.numbers)} {problem.target}"

    def prompt(self, problem: CountdownProblem) -> str:
        """`3 5 7 make 36 :`."""
        return f"{' '.join(map(str, problem.numbers))} make {problem.target} :"

    def trace(self, problem: CountdownProblem, strategy: str) -> Trace | None:
        """The strategy's search up to its success, None if it runs out of tries."""
        return _bounded(self.search(problem, strategy), self.tries)

    def completions(self, problem: CountdownProblem) -> list[str]:
        """The distinct traces of the strategies that solve it, sorted."""
        return strategy_completions(self, problem)

    def practice(self, problem: CountdownProblem, rng: random.Random) -> str | None:
        """A search in random order, forward or backward, that happens to succeed in time."""
        for _ in range(10):
            search = rng.choice((forward_search, backward_search))
            found = search(
                problem.numbers, problem.target, self.max_number, lambda _: (rng.random(),)
            )
            if (trace := _bounded(found, self.practice_tries)) is not None:
                return trace.completion
        return None

    def verify(self, problem: CountdownProblem, answer: str | None) -> Verdict:
        """Replay the equations: every number used once, every value exact, the target last.

        In a vote, answers count as one whose expressions differ only in the order and grouping of
        sums and of products.
        """
        if not answer:
            return Verdict(False, "no_answer")
        equations = [_parse_equation(text) for text in answer.split(" , ")]
        if None in equations or len(equations) != len(problem.numbers) - 1:
            return Verdict(False, "malformed")
        left: list[tuple[int, Expression]] = [(n, ("", (str(n),))) for n in problem.numbers]
        for a, op, b, result in equations:
            operands = []
            for operand in (a, b):
                found = next((pair for pair in left if pair[0] == operand), None)
                if found is None:
                    return Verdict(False, "wrong_numbers")
                left.remove(found)
                operands.append(found[1])
            if op == "/" or _apply(a, op, b) != result or result > self.max_number:
                return Verdict(False, "wrong_equation")
            left.append((result, _join(op, *operands)))
        (value, expression), = left
        correct = value == problem.target
        return Verdict(correct, "correct" if correct else "wrong_value", key=_written(expression))

    def judge_steps(self, problem: CountdownProblem, steps: str) -> list[Judged]:
        """Each step, and whether it is valid where no strategy is asked for."""
        written = split_steps(steps)
        valid = _valid_steps(problem, written, self.max_number)
        return list(zip(written, valid, strict=True))

    def check_trace(self, problem: CountdownProblem, strategy: str | None, steps: str) -> float:
        """Share of steps that are exact operations on available numbers, rightly checked.

        A step counts once from each position of the search at which it can be written. With a
        strategy, a step must also be the one that the strategy takes at that place.
        """
        judged = self.judge_steps(problem, steps)
        if strategy is not None:
            taken = itertools.islice(self.search(problem, strategy), len(judged))
            expected = [step.text(check) for step, check, _ in taken]
            judged = [(text, valid and text in expected[i : i + 1])
                      for i, (text, valid) in enumerate(judged)]
        return share_valid(judged)

    def recognise(self, problem: CountdownProblem, steps: str) -> str | None:
        """The one strategy whose search shares the longest opening with the steps.

        The first operation must be the strategy's own. Operations are compared, not their results:
        a wrong result is a wrong sum, not another strategy.
        """
        written = [_choice(text) for text in split_steps(steps)]
        shared = {}
        for strategy in self.strategies:
            search = self.search(problem, strategy)
            taken = (_choice(step.text(check)) for step, check, _ in search)
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(written, taken))
            shared[strategy] = sum(1 for _ in same)
        return longest_opening(shared)

    def merge_attempts(
        self, problem: CountdownProblem, wrong: Sequence[str], right: str
    ) -> str | None:
        """One chain that fails, says so and tries again, of a policy's completions.

        The trial-and-error data of T1 (2501.11651), by rules in place of a language model: every
        attempt's operations are written with their true results and checks, so that a wrong
        one ends in `low` or `high` and the next takes over; what was written before is not written
        again. An attempt that cannot be told so is left out: one that takes numbers which are not
        there, or whose operations reach the target after all.

        Returns:
          a completion of which every step is valid, or None where the right one's own do not hold.
        """
        written: dict[str, Position] = {"": (tuple(sorted(problem.numbers)), problem.target)}
        for attempt in wrong:
            told = _replay(written, parse_completion(attempt)[0], self.max_number)
            checks = [step.rpartition(" ")[2] for step in told]
            if checks[-1] in MISSED and "yes" not in checks:
                written = told
        steps, answer = parse_completion(right)
        if self.check_trace(problem, None, steps) < 1.0 or not steps.endswith(" yes"):
            return None
        failed = list(written)[1:]
        retried = [step for step in split_steps(steps) if step not in written]
        return Trace(" ".join(failed + retried), answer).completion

    def search(self, problem: CountdownProblem, strategy: str) -> Iterator[Found]:
        """What a strategy tries, in its order: all that makes it different from the others.

        A subclass with another strategy names it in `strategies`, counts it in `num_traces` and
        answers for it here (docs/ideas/strategy.md).
        """
        check_strategy(self, strategy)
        orders = _orders(problem.target)
        if strategy == "backward":
            # Undo with the largest number first; then try x, + and - on the last two.
            return backward_search(
                problem.numbers, problem.target, self.max_number,
                lambda s: (-s.b, "-/+".index(s.op)) if s.back else ("*+-".index(s.op),),
            )
        return forward_search(
            problem.numbers, problem.target, self.max_number, orders[strategy]
        )


_STEP = re.compile(r"(?:from )?\S+ \S+ \S+ = \S+ (?:,|yes|high|low)|\S+")
_EQUATION = re.compile(r"([1-9][0-9]{0,3}) ([-+*/]) ([1-9][0-9]{0,3}) = ([1-9][0-9]{0,3})")


# The operation on top and what it joins, as text; of a number, no operation and itself.
Expression = tuple[str, tuple[str, ...]]


def _join(op: str, a: Expression, b: Expression) -> Expression:
    """What two operands make: sums, and products, of the same parts are one expression."""
    if op == "-":
        return op, (_written(a), _written(b))
    parts = (side[1] if side[0] == op else (_written(side),) for side in (a, b))
    return op, tuple(sorted(itertools.chain.from_iterable(parts)))


def _written(expression: Expression) -> str:
    op, parts = expression
    return f"({f' {op} '.join(parts)})" if op else parts[0]


def split_steps(steps: str) -> list[str]:
    """Cut a trace into its steps; words that form no step stand alone, as invalid steps."""
    return _STEP.findall(steps)


def _choice(step: str) -> str:
    """A step without its result and check: `from 36 - 1`."""
    return step.partition(" = ")[0]


def _parse_equation(text: str) -> tuple[int, str, int, int] | None:
    """`a op b = c` with plain ASCII numbers of at most four digits, None for anything else."""
    match = _EQUATION.fullmatch(text)
    return match and (int(match[1]), match[2], int(match[3]), int(match[4]))


def _replay(written: dict[str, Position], steps: str, limit: int) -> dict[str, Position]:
    """The steps written and where each leads, and after them more steps, told as they truly are.

    A step is taken from the latest position that allows its operation; where there is none, all is
    left as it was.
    """
    told, corrected = dict(written), {}
    for step in split_steps(steps):
        choice, _, claimed = step.partition(" = ")
        words = [corrected.get(word, word) for word in choice.split()]
        back, operation = words[0] == "from", " ".join(words).removeprefix("from ")
        parsed = _parse_equation(f"{operation} = 1")
        result = parsed and _apply(*parsed[:3])
        if result is None or result > limit:
            return written
        corrected[claimed.partition(" ")[0]] = str(result)  # the steps after it mean this number
        equation = (*parsed[:3], result)
        true = (
            (f"{'from ' if back else ''}{operation} = {result} {check}", after)
            for position in reversed(told.values())
            for check in (",", "yes", "high", "low")
            if (after := _take(position, equation, back, check)) is not None
        )
        text, after = next(true, (None, None))
        if text is None:
            return written
        told.setdefault(text, after)
    return told


def _valid_steps(problem: CountdownProblem, written: list[str], limit: int) -> list[bool]:
    """For each step, whether some position opened so far allows it and was not left by it before.

    A step may be meant at any position that allows it, so it opens what follows at all of them;
    but it is valid only as often as there are such positions. `2 + 2 = 4` and `2 * 2 = 4` open two
    positions, although the same numbers are left: a search goes on from both.
    """
    positions = [(tuple(sorted(problem.numbers)), problem.target)]
    tried: collections.Counter[str] = collections.Counter()  # at how many positions, from the first
    unspent: collections.Counter[str] = collections.Counter()  # how often it may still be written
    valid = []
    for text in written:
        after = _after(positions[tried[text] :], text, limit)
        tried[text] = len(positions)
        positions += after[: MAX_POSITIONS - len(positions)]
        unspent[text] += len(after)
        valid.append(unspent[text] > 0)
        unspent[text] -= valid[-1]
    return valid


def _after(positions: Sequence[Position], text: str, limit: int) -> list[Position]:
    """The positions that a step leads to, one for each of the given ones that allows it."""
    back, body = text.startswith("from "), text.removeprefix("from ")
    equation, _, check = body.rpartition(" ")
    parsed = _parse_equation(equation)
    if parsed is None or parsed[3] > limit or _apply(*parsed[:3]) != parsed[3]:
        return []
    taken = (_take(position, parsed, back, check) for position in positions)
    return [position for position in taken if position is not None]


def _take(
    position: Position, equation: tuple[int, str, int, int], back: bool, check: str
) -> Position | None:
    """The position after a step, None where the step does not apply there."""
    numbers, goal = position
    a, op, b, result = equation
    if back:
        applies = a == goal and op != "*" and b in numbers and len(numbers) > 2 and check == ","
        return (_without(numbers, b), result) if applies else None
    needed = list(numbers)
    for operand in (a, b):
        if operand not in needed:
            return None
        needed.remove(operand)
    if op == "/" or check != (_check(result, goal) if len(numbers) == 2 else ","):
        return None
    return tuple(sorted((*needed, result))), goal
