"""Expressions: the value of a fully parenthesised expression of +, - and x over numbers modulo m.

Five strategies that all find it. A long chain of operations is short for `postorder`, a balanced
expression for `levels`, which rewrites all of it as Feng et al. do (arXiv 2305.15408):

    direct        the answer alone
    postorder     one operation after the other: the first whose two operands are numbers
    levels        round by round the whole expression, with every such operation done
    shift_reduce  a parser's stack: what waits on the left, `|`, and the operation it reduces
    filler        as many dots as operations: room to compute, but no state is written (a control)

    prompt        "( ( 3 + 5 ) * ( 2 - 6 ) ) :"                      modulo 7
    postorder     "3 + 5 = 1 2 - 6 = 3 1 * 3 = 3 answer 3"
    levels        "( 1 * 3 ) ; 3 ; answer 3"
    shift_reduce  "| 3 + 5 = 1 1 * | 2 - 6 = 3 | 1 * 3 = 3 answer 3"

The stack is written without its parentheses: what waits is a number and its operator, once for
every parenthesis that is open around the operation and has its left operand already.
"""

import operator
import random
from collections.abc import Callable, Iterator, Sequence

from reasoning.data.tasks.base import (
    Split,
    Trace,
    Verdict,
    hashed_stream,
    strategy_completions,
)
from reasoning.data.tasks.steps import (
    Judged,
    check_strategy,
    count_dots,
    longest_opening,
    share_as_expected,
    share_valid,
    valid_steps,
    verify_number,
)

Expression = tuple[str, ...]  # its words: of a problem, and of what is left of it after some steps
Places = Sequence[int]  # where the expression has the "(" of operations to be done
Form = Callable[[Expression, Places, Sequence[str]], str]  # how a step writes their results

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
HOLE = "?"  # a number that is not known (yet)
MAX_DRAWS = 1000  # how often `sample` draws numbers for a shape before it takes another shape


def open_places(expression: Expression) -> list[int]:
    """Where the operations begin whose operands are both numbers: `( a op b )`."""
    opens = zip(expression, expression[4:])
    return [place for place, (first, last) in enumerate(opens) if (first, last) == ("(", ")")]


def replaced(expression: Expression, places: Places, results: Sequence[str]) -> Expression:
    """The expression with the operations at the places, in rising order, done."""
    words = list(expression)
    for place, result in zip(reversed(places), reversed(results), strict=True):
        words[place : place + 5] = [result]
    return tuple(words)


def _operation(expression: Expression, places: Places, results: Sequence[str]) -> str:
    """`3 + 5 = 1`, for one place."""
    (place,), (result,) = places, results
    return f"{' '.join(expression[place + 1 : place + 4])} = {result}"


def _stack(expression: Expression, places: Places, results: Sequence[str]) -> str:
    """`1 * | 2 - 6 = 3`, for the first place: only there all that waits on its left is numbers."""
    waiting = [word for word in expression[: places[0]] if word != "("]
    return " ".join((*waiting, "|", _operation(expression, places, results)))


def _round(expression: Expression, places: Places, results: Sequence[str]) -> str:
    """`( 1 * 3 ) ;`, for any places."""
    return " ".join((*replaced(expression, places, results), ";"))


# strategy -> (how many of the open places it takes at a time, from the left; how it writes them)
WAYS: dict[str, tuple[int | None, Form]] = {
    "postorder": (1, _operation),
    "levels": (None, _round),
    "shift_reduce": (1, _stack),
}


class Expressions:
    """The value of an expression (`reasoning.data.tasks.base.Task`).

    Args:
      modulus: numbers are 0..modulus - 1.
      operations: how many an expression has.
    """

    name = "expressions"
    strategies = ("direct", *WAYS, "filler")
    num_traces = len(strategies)
    words = ("(", ")", "+", "-", "*", ":", "=", ";", "|", ".", "answer")

    def __init__(self, modulus: int = 7, operations: int = 4) -> None:
        if not 2 <= modulus <= 100:
            raise ValueError(f"modulus={modulus}: must lie in 2..100.")
        if not 1 <= operations <= 100:
            raise ValueError(f"operations={operations}: must lie in 1..100.")
        self.modulus, self.operations = modulus, operations
        self.max_number = modulus - 1

    def sample(self, seed: int, index: int) -> Expression:
        """An expression of random shape, from chains to balanced ones, and random operators.

        Shape, operators and a value are drawn, then numbers until they have the value. So, up to
        the rare shapes that no drawn numbers bring to it, every value is equally likely whatever
        the operators are.
        """
        rng = random.Random(f"expressions/{seed}/{index}")
        while True:
            shape = _random_shape(self.operations, rng)
            value = rng.randrange(self.modulus)
            for _ in range(MAX_DRAWS):
                numbers = (str(rng.randrange(self.modulus)) for _ in range(self.operations + 1))
                problem = tuple(next(numbers) if word == HOLE else word for word in shape)
                if self._value(problem) == value:
                    return problem

    def stream(self, split: Split, seed: int) -> Iterator[Expression]:
        """The endless stream of a split's problems, in the order of their index."""
        return hashed_stream(self, split, seed)

    def key(self, problem: Expression) -> str:
        """The expression itself."""
        return " ".join(problem)

    def prompt(self, problem: Expression) -> str:
        """`( ( 3 + 5 ) * ( 2 - 6 ) ) :`."""
        return f"{' '.join(problem)} :"

    def trace(self, problem: Expression, strategy: str) -> Trace:
        """What `strategy` writes; every strategy finds the answer."""
        return Trace(" ".join(self._steps(problem, strategy)), str(self._value(problem)))

    def completions(self, problem: Expression) -> list[str]:
        """The distinct traces of the strategies that solve it, sorted."""
        return strategy_completions(self, problem)

    def practice(self, problem: Expression, rng: random.Random) -> str:
        """Operations done in random order, several at a time in rounds or one by one."""
        in_rounds = rng.random() < 0.5
        left, steps = problem, []
        while places := open_places(left):
            if in_rounds:
                taken, form = sorted(rng.sample(places, rng.randint(1, len(places)))), _round
            else:
                taken = [rng.choice(places)]
                form = rng.choice((_operation, _stack)) if taken == places[:1] else _operation
            step, left = self._do(left, taken, form)
            steps.append(step)
        return Trace(" ".join(steps), left[0]).completion

    def verify(self, problem: Expression, answer: str | None) -> Verdict:
        """The answer must be the expression's value, written as numbers are in the prompt."""
        return verify_number(answer, self._value(problem), self.max_number)

    def judge_steps(self, problem: Expression, steps: str) -> list[Judged]:
        """Each step, and whether it is valid where no strategy is asked for."""
        written = split_steps(steps)
        return list(zip(written, valid_steps(problem, written, self._after), strict=True))

    def check_trace(self, problem: Expression, strategy: str | None, steps: str) -> float:
        """Share of steps that truly do operations of the expression as reduced so far.

        With a strategy, a step must be the one that the strategy takes at that place. Nothing and
        dots are right for the strategies `direct` and `filler`, and earn 0 without a strategy.
        """
        if strategy is None:
            return share_valid(self.judge_steps(problem, steps))
        return share_as_expected(split_steps(steps), self._steps(problem, strategy))

    def recognise(self, problem: Expression, steps: str) -> str | None:
        """The one strategy that shares the longest opening with the steps.

        Compared are the operations and how they are written: a wrong result, and going on with it,
        is a wrong calculation, not another strategy.
        """
        written = split_steps(steps)
        if not written:
            return "direct"
        shared = {name: _shared_opening(problem, *way, written) for name, way in WAYS.items()}
        return longest_opening({**shared, "filler": count_dots(written)})

    def _value(self, problem: Expression) -> int:
        stack: list[str] = []
        for word in problem:
            stack.append(word)
            if word == ")":
                _, a, op, b, _ = stack[-5:]
                stack[-5:] = [self._result(a, op, b)]
        return int(stack[0])

    def _result(self, a: str, op: str, b: str) -> str:
        return str(OPERATORS[op](int(a), int(b)) % self.modulus)

    def _do(self, expression: Expression, places: Places, form: Form) -> tuple[str, Expression]:
        """The step that does the operations at the places, and the expression it leaves."""
        results = [self._result(*expression[place + 1 : place + 4]) for place in places]
        return form(expression, places, results), replaced(expression, places, results)

    def _steps(self, problem: Expression, strategy: str) -> list[str]:
        check_strategy(self, strategy)
        if strategy not in WAYS:
            return ["."] * self.operations if strategy == "filler" else []
        count, form = WAYS[strategy]
        left, steps = problem, []
        while places := open_places(left)[:count]:
            step, left = self._do(left, places, form)
            steps.append(step)
        return steps

    def _after(self, expression: Expression, text: str) -> Iterator[Expression]:
        """The expressions that the step may leave: one for each place where its operands stand."""
        words, places = text.split(), open_places(expression)
        if words[-1] == ";":
            form, choices = _round, [_places_done(expression, words)]
        elif "|" in words:
            form, choices = _stack, [places[:1]]
        else:
            form, choices = _operation, [[place] for place in places]
        for taken in choices:
            if taken:
                step, left = self._do(expression, taken, form)
                if step == text:
                    yield left


def split_steps(steps: str) -> list[str]:
    """Cut a trace after every `= c`, `;` and `.`; the words that are left stand alone."""
    cut, words = [], []
    for word in steps.split():
        words.append(word)
        if word in (";", ".") or words[-2:-1] == ["="]:
            cut.append(" ".join(words))
            words = []
    return cut + words


def _random_shape(operations: int, rng: random.Random) -> list[str]:
    """The words of an expression without its numbers; its left part has any number of operations.

    So four operations are a chain in a third of the shapes.
    """
    if not operations:
        return [HOLE]
    left = rng.randrange(operations)
    op = rng.choice(tuple(OPERATORS))
    parts = _random_shape(left, rng), _random_shape(operations - 1 - left, rng)
    return ["(", *parts[0], op, *parts[1], ")"]


def _places_done(expression: Expression, words: Sequence[str]) -> list[int]:
    """The open places that a round has as one word each."""
    done: list[int] = []
    for place in open_places(expression):
        here = place - 4 * len(done)  # each that is done is shorter by four words
        if words[here : here + 1] != ["("]:
            done.append(place)
    return done


def _shared_opening(problem: Expression, count: int | None, form: Form, written: list[str]) -> int:
    """How many steps do what the way does at that place, whatever they say that the results are."""
    left, shared = problem, 0
    for text in written:
        places = open_places(left)[:count]
        if not places:
            break
        expected, words = form(left, places, [HOLE] * len(places)).split(), text.split()
        pairs = list(zip(expected, words))
        if len(expected) != len(words) or any(a not in (HOLE, b) for a, b in pairs):
            break
        left = replaced(left, places, [b for a, b in pairs if a == HOLE])
        shared += 1
    return shared
