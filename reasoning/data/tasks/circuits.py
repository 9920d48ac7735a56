"""Circuits: the value of a Boolean circuit.

Inputs and gates have ids, from 2 on, as 0 and 1 are values. The prompt gives the inputs' values,
then every gate with its operation and the ids that it reads; the last gate's value is asked for.
Five strategies that all find it:

    direct    the answer alone
    forward   every gate, in the order of the prompt
    backward  from the last gate: says what it needs, and evaluates it when it can; no other gate
    levels    every gate, in the order of its depth: first those that read inputs alone
    filler    as many dots as gates: room to compute, but no state is written (a control)

    prompt    "2 = 1 3 = 0 4 and 2 3 5 not 4 6 or 2 3 7 xor 2 5 :"
    forward   "4 and 1 0 = 0 5 not 0 = 1 6 or 1 0 = 1 7 xor 1 1 = 0 answer 0"
    backward  "need 7 need 5 need 4 4 and 1 0 = 0 5 not 0 = 1 7 xor 1 1 = 0 answer 0"
    levels    "4 and 1 0 = 0 6 or 1 0 = 1 5 not 0 = 1 7 xor 1 1 = 0 answer 0"

This is the circuit value problem of Li et al. (arXiv 2402.12875), who write the gates as `forward`
does. Here some gates are of no use, and the order of the prompt is never one by depth.
"""

import dataclasses
import hashlib
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
    verify_number,
)

FIRST_ID = 2
OPERATIONS: dict[str, Callable[..., int]] = {
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "not": lambda a: 1 - a,
}
MAX_WIRINGS = 100  # how often `sample` wires the same gates before it draws others
Move = tuple[str, int]  # ("need", id) or (operation, id): what a step does, without values


@dataclasses.dataclass(frozen=True)
class Gate:
    """An operation, and the ids of the inputs or earlier gates that it reads, in rising order."""

    operation: str
    reads: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Circuit:
    """The values of the inputs, and the gates in an order in which they can be evaluated."""

    inputs: tuple[int, ...]
    gates: tuple[Gate, ...]

    @property
    def by_id(self) -> dict[int, Gate]:
        """The gates in their order; their ids follow those of the inputs."""
        return dict(enumerate(self.gates, FIRST_ID + len(self.inputs)))

    @property
    def last(self) -> int:
        """The id of the gate whose value is asked for."""
        return FIRST_ID + len(self.inputs) + len(self.gates) - 1

    def fold(
        self, inputs: Sequence[Any], function: Callable[[Gate, list[Any]], Any]
    ) -> dict[int, Any]:
        """By id, the inputs as given and `function(gate, results of what it reads)`."""
        results = dict(enumerate(inputs, FIRST_ID))
        for number, gate in self.by_id.items():
            results[number] = function(gate, [results[read] for read in gate.reads])
        return results

    def values(self) -> dict[int, int]:
        """The value of every input and gate."""
        return self.fold(self.inputs, lambda gate, reads: OPERATIONS[gate.operation](*reads))

    def depths(self) -> dict[int, int]:
        """How many gates there are on the longest way from an input to each gate, itself one."""
        return self.fold([0] * len(self.inputs), lambda _, reads: 1 + max(reads))


class _Evaluation:
    """How far a circuit is evaluated, and what may be done next."""

    def __init__(self, circuit: Circuit) -> None:
        self._gates, self._last = circuit.by_id, circuit.last
        self._unknown = dict.fromkeys(self._gates)  # keeps the order
        self._needed: list[int] = []  # each for the one before it

    @property
    def done(self) -> bool:
        """Whether the last gate is known."""
        return self._last not in self._unknown

    def moves(self) -> list[Move]:
        """The moves that are open.

        Where a gate is needed there is one: the first gate that it waits for is needed as well, or
        else it is evaluated. Elsewhere the last gate may be needed, or any gate evaluated that
        waits for none.
        """
        if self._needed:
            number = self._needed[-1]
            waits = self._waits_for(number)
            return [("need", waits[0]) if waits else (self._gates[number].operation, number)]
        ready = [number for number in self._unknown if not self._waits_for(number)]
        need = [] if self.done else [("need", self._last)]
        return [*need, *((self._gates[number].operation, number) for number in ready)]

    def take(self, move: Move) -> None:
        """Make one of the moves."""
        operation, number = move
        if operation == "need":
            self._needed.append(number)
            return
        del self._unknown[number]
        if self._needed:
            self._needed.pop()

    def _waits_for(self, number: int) -> list[int]:
        return [read for read in self._gates[number].reads if read in self._unknown]


def _forward(circuit: Circuit) -> list[Move]:
    return [(gate.operation, number) for number, gate in circuit.by_id.items()]


def _backward(circuit: Circuit) -> list[Move]:
    evaluation, moves = _Evaluation(circuit), []
    while not evaluation.done:
        moves.append(evaluation.moves()[0])  # what is needed comes first
        evaluation.take(moves[-1])
    return moves


def _levels(circuit: Circuit) -> list[Move]:
    depths = circuit.depths()
    return sorted(_forward(circuit), key=lambda move: depths[move[1]])


ORDERS: dict[str, Callable[[Circuit], list[Move]]] = {
    "forward": _forward,
    "backward": _backward,
    "levels": _levels,
}


class Circuits:
    """The value of a circuit (`reasoning.data.tasks.base.Task`).

    Args:
      inputs: how many inputs a circuit has.
      gates: how many gates it has. A gate reads among the latest `inputs` + 2 ids, so that depth
        grows with the gates.
    """

    name = "circuits"
    strategies = ("direct", *ORDERS, "filler")
    num_traces = len(strategies)
    words = (*OPERATIONS, "need", ":", "=", ".", "answer")

    def __init__(self, inputs: int = 3, gates: int = 6) -> None:
        if not 2 <= inputs <= 100:
            raise ValueError(f"inputs={inputs}: must lie in 2..100.")
        if not 4 <= gates <= 100:
            raise ValueError(f"gates={gates}: must lie in 4..100.")
        self.inputs, self.gates = inputs, gates
        self.max_number = FIRST_ID + inputs + gates - 1

    def sample(self, seed: int, index: int) -> Circuit:
        """Operations, inputs and a value are drawn, then wirings until the last gate has the value.

        So, up to the rare gates that no drawn wiring brings to the value, neither operations nor
        inputs tell the answer. Inputs are not all equal, and wirings whose gates are in the order
        of their depth are drawn again.
        """
        rng = random.Random(f"circuits/{seed}/{index}")
        while True:
            operations = [rng.choice(tuple(OPERATIONS)) for _ in range(self.gates)]
            inputs = tuple(rng.randrange(2) for _ in range(self.inputs))
            value = rng.randrange(2)
            for _ in range(MAX_WIRINGS if len(set(inputs)) == 2 else 0):
                problem = Circuit(inputs, _wired(operations, self.inputs, rng))
                by_depth = _levels(problem) == _forward(problem)
                if problem.values()[problem.last] == value and not by_depth:
                    return problem

    def stream(self, split: Split, seed: int) -> Iterator[Circuit]:
        """The endless stream of a split's problems, in the order of their index."""
        return hashed_stream(self, split, seed)

    def key(self, problem: Circuit) -> str:
        """The same for all orders of the same gates, and of the same inputs."""

        def digest(gate: Gate, reads: list[str]) -> str:
            text = " ".join((gate.operation, *sorted(reads)))
            return hashlib.sha256(text.encode()).hexdigest()[:16]

        digests = problem.fold([str(value) for value in problem.inputs], digest)
        return " ".join((*sorted(digests.values()), digests[problem.last]))

    def prompt(self, problem: Circuit) -> str:
        """`2 = 1 3 = 0 4 and 2 3 5 not 4 6 or 2 3 7 xor 2 5 :`."""
        inputs = (f"{number} = {value}" for number, value in enumerate(problem.inputs, FIRST_ID))
        gates = (
            f"{number} {gate.operation} {' '.join(map(str, gate.reads))}"
            for number, gate in problem.by_id.items()
        )
        return " ".join((*inputs, *gates, ":"))

    def trace(self, problem: Circuit, strategy: str) -> Trace:
        """What `strategy` writes; every strategy finds the answer."""
        return Trace(" ".join(self._steps(problem, strategy)), str(_answer(problem)))

    def completions(self, problem: Circuit) -> list[str]:
        """The distinct traces of the strategies that solve it, sorted."""
        return strategy_completions(self, problem)

    def practice(self, problem: Circuit, rng: random.Random) -> str:
        """Gates in random order until the last one is known; half of the time, needs as well."""
        evaluation, moves = _Evaluation(problem), []
        says_needs = rng.random() < 0.5
        while not evaluation.done:
            opened = evaluation.moves()
            moves.append(rng.choice([m for m in opened if says_needs or m[0] != "need"]))
            evaluation.take(moves[-1])
        return Trace(" ".join(_texts(problem, moves)), str(_answer(problem))).completion

    def verify(self, problem: Circuit, answer: str | None) -> Verdict:
        """The answer must be the last gate's value, 0 or 1."""
        return verify_number(answer, _answer(problem), largest=1)

    def judge_steps(self, problem: Circuit, steps: str) -> list[Judged]:
        """Each step, and whether it is valid where no strategy is asked for."""
        evaluation, judged = _Evaluation(problem), []
        moves = evaluation.moves()
        texts = _texts(problem, moves)
        for text in split_steps(steps):
            judged.append((text, text in texts))
            if text in texts:
                evaluation.take(moves[texts.index(text)])
                moves = evaluation.moves()
                texts = _texts(problem, moves)
        return judged

    def check_trace(self, problem: Circuit, strategy: str | None, steps: str) -> float:
        """Share of steps that evaluate a gate whose values are known, or say what is needed next.

        After a need only what serves it is valid, in the order of the ids. With a strategy, a step
        must be the one that the strategy takes at that place. Nothing and dots are right for the
        strategies `direct` and `filler`, and earn 0 without a strategy.
        """
        if strategy is None:
            return share_valid(self.judge_steps(problem, steps))
        return share_as_expected(split_steps(steps), self._steps(problem, strategy))

    def recognise(self, problem: Circuit, steps: str) -> str | None:
        """The one strategy that shares the longest opening with the steps.

        Compared are the gates: wrong values are a wrong calculation, not another strategy.
        """
        written = split_steps(steps)
        if not written:
            return "direct"
        shared = {name: _shared_opening(order(problem), written) for name, order in ORDERS.items()}
        return longest_opening({**shared, "filler": count_dots(written)})

    def _steps(self, problem: Circuit, strategy: str) -> list[str]:
        check_strategy(self, strategy)
        if strategy in ORDERS:
            return _texts(problem, ORDERS[strategy](problem))
        return ["."] * self.gates if strategy == "filler" else []


def split_steps(steps: str) -> list[str]:
    """Cut a trace after every `= c`, `need c` and `.`; the words that are left stand alone."""
    cut, words = [], []
    for word in steps.split():
        words.append(word)
        if word == "." or words[-2:-1] in (["="], ["need"]):
            cut.append(" ".join(words))
            words = []
    return cut + words


def _wired(operations: Sequence[str], num_inputs: int, rng: random.Random) -> tuple[Gate, ...]:
    """Gates that read among the latest ids; the first read is one that no gate has read so far."""
    first = FIRST_ID + num_inputs
    unread, gates = set(range(FIRST_ID, first)), []
    for number, operation in enumerate(operations, first):
        near = range(max(FIRST_ID, number - num_inputs - 2), number)
        reads = [rng.choice([read for read in near if read in unread] or near)]
        if operation != "not":
            reads.append(rng.choice([read for read in near if read != reads[0]]))
        gates.append(Gate(operation, tuple(sorted(reads))))
        unread = unread - {*reads} | {number}
    return tuple(gates)


def _answer(problem: Circuit) -> int:
    return problem.values()[problem.last]


def _texts(problem: Circuit, moves: Sequence[Move]) -> list[str]:
    """The steps that make the moves, with true values: `need 7`, `4 and 1 0 = 0`."""
    gates, values = problem.by_id, problem.values()
    texts = []
    for operation, number in moves:
        if operation == "need":
            texts.append(f"need {number}")
            continue
        reads = " ".join(str(values[read]) for read in gates[number].reads)
        texts.append(f"{number} {operation} {reads} = {values[number]}")
    return texts


def _shared_opening(moves: Sequence[Move], written: Sequence[str]) -> int:
    """How many steps make the moves, whatever values they say."""
    shared = 0
    for (operation, number), text in zip(moves, written):
        choice = f"need {number}" if operation == "need" else f"{number} {operation}"
        if text.split()[:2] != choice.split():
            break
        shared += 1
    return shared
