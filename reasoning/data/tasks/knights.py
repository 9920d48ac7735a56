"""Knights and knaves: who tells the truth, where knights always do and knaves never.

Each person says one thing: that another is of a kind, or two such things of any people joined by
`and`, `or`, `iff`. A statement fits a knight if it is true and a knave if it is false. Exactly one
assignment of kinds fits all statements; the answer gives it in the order of the people.

    prompt     "A : B is knight and C is knave , B : A is knave , C : B is knight :"
    table      the assignments in turn, each with its statements up to one that does not fit
               knight knight knight A no , knight knight knave A yes B no ,
               knight knave knight A no , knight knave knave A no ,
               knave knight knight A yes B yes C yes
    propagate  assume that the first person is a knight; then what follows from one statement and
               the kinds known so far, and if nothing does, the next assumption. Where a statement
               can no longer fit, the last assumption flips, and what came after it is forgotten
               assume A knight , A so B knight , B no , flip A knave , B so B knight , A so C knight
    cases      the people by how often they are mentioned: both kinds of the first, within each both
               of the next, ...; a case ends where a statement can no longer fit
               case B knight , case B knight A knight B no , case B knight A knave ,
               case B knight A knave C knight
    direct     the answer alone: knave knight knight
"""

import collections
import dataclasses
import itertools
import operator
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    first,
    followed,
    split_steps,
    valid_moves,
    walk,
)
from reasoning.data.tasks.steps import Judged, check_strategy, share_as_expected, share_valid

NAMES = "ABCDE"
KINDS = {"knight": True, "knave": False}
CONNECTIVES: dict[str, Callable[[bool, bool], bool]] = {
    "and": operator.and_,
    "or": operator.or_,
    "iff": operator.eq,
}
Fact = tuple[int, bool]  # a person, by number, and whether that is a knight


class Statement(NamedTuple):
    """That one person is of a kind, or two such facts joined by a connective."""

    facts: tuple[Fact, ...]
    connective: str | None = None

    def true(self, kinds: Mapping[int, bool]) -> bool:
        """Whether it is true of the kinds of those it mentions."""
        values = [kinds[person] == knight for person, knight in self.facts]
        return CONNECTIVES[self.connective](*values) if self.connective else values[0]


@dataclasses.dataclass(frozen=True)
class KnightsProblem:
    """What each person says, in the order of the people."""

    statements: tuple[Statement, ...]

    @property
    def people(self) -> range:
        """The numbers of the people."""
        return range(len(self.statements))

    def about(self, speaker: int) -> set[int]:
        """Whose kinds decide whether the speaker's statement fits."""
        return {speaker, *(person for person, _ in self.statements[speaker].facts)}

    def fits(self, speaker: int, kinds: Mapping[int, bool]) -> bool:
        """Whether the speaker's statement fits: a knight's is true, a knave's is false."""
        return self.statements[speaker].true(kinds) == kinds[speaker]

    def fitting(self, speaker: int, known: Mapping[int, bool]) -> list[dict[int, bool]]:
        """The kinds with which the speaker's statement fits, as far as they are not known."""
        unknown = sorted(self.about(speaker) - known.keys())
        cases = (dict(zip(unknown, kinds)) for kinds in _assignments(len(unknown)))
        return [case for case in cases if self.fits(speaker, {**known, **case})]

    def solutions(self) -> list[tuple[bool, ...]]:
        """The kinds of all people with which every statement fits."""
        return [
            kinds for kinds in _assignments(len(self.statements))
            if all(self.fits(speaker, dict(enumerate(kinds))) for speaker in self.people)
        ]


def _assignments(count: int) -> Iterator[tuple[bool, ...]]:
    """All kinds of so many people: knights first, the last person's kind changes fastest."""
    return itertools.product((True, False), repeat=count)


def _kind(knight: bool) -> str:
    return "knight" if knight else "knave"


def _facts(facts: Iterable[Fact]) -> str:
    """`A knight B knave`."""
    return " ".join(f"{NAMES[person]} {_kind(knight)}" for person, knight in facts)


def _checks(problem: KnightsProblem, kinds: Mapping[int, bool]) -> str:
    """`A yes B no`: the statements in turn, up to the first that does not fit."""
    words = []
    for speaker in problem.people:
        fits = problem.fits(speaker, kinds)
        words += [NAMES[speaker], "yes" if fits else "no"]
        if not fits:
            break
    return " ".join(words)


# How far a strategy has come, and its moves: every valid step, with its own choice first.


class Table(NamedTuple):
    """The assignments that are left to try."""

    left: tuple[tuple[bool, ...], ...]

    def moves(self, problem: KnightsProblem) -> Iterator[tuple[str, "Table"]]:
        """Any assignment that is left, with its checks; none after one that fits."""
        for i, kinds in enumerate(self.left):
            checks = _checks(problem, dict(enumerate(kinds)))
            after = (*self.left[:i], *self.left[i + 1 :]) if checks.endswith("no") else ()
            yield f"{' '.join(map(_kind, kinds))} {checks}", Table(after)


class Known(NamedTuple):
    """What is known.

    Attributes:
      facts: in the order in which they were written.
      assumed: the places of those facts that are assumptions.
      clash: whether a statement was found that can no longer fit.
    """

    facts: tuple[Fact, ...] = ()
    assumed: tuple[int, ...] = ()
    clash: bool = False

    def moves(self, problem: KnightsProblem) -> Iterator[tuple[str, "Known"]]:
        """After a clash flip the last assumption; else what follows, or an assumption if nothing.

        With nothing known, an assumption may come before what follows.
        """
        if self.clash:
            *assumed, place = self.assumed
            person, knight = self.facts[place]
            fact = (person, not knight)
            yield f"flip {_facts([fact])}", Known((*self.facts[:place], fact), tuple(assumed))
            return
        follows = [*self._clashes(problem), *self._derivations(problem)]
        assumptions = list(self._assumptions(problem))
        yield from (follows or assumptions) if self.facts else assumptions + follows

    def _assumptions(self, problem: KnightsProblem) -> Iterator[tuple[str, "Known"]]:
        known = dict(self.facts)
        for fact in itertools.product(problem.people, (True, False)):
            if fact[0] not in known:
                after = Known((*self.facts, fact), (*self.assumed, len(self.facts)))
                yield f"assume {_facts([fact])}", after

    def _clashes(self, problem: KnightsProblem) -> Iterator[tuple[str, "Known"]]:
        for speaker in problem.people:
            if not problem.fitting(speaker, dict(self.facts)):
                yield f"{NAMES[speaker]} no", self._replace(clash=True)

    def _derivations(self, problem: KnightsProblem) -> Iterator[tuple[str, "Known"]]:
        known = dict(self.facts)
        for speaker in problem.people:
            fitting = problem.fitting(speaker, known)
            for person in sorted(problem.about(speaker) - known.keys()):
                kinds = {case[person] for case in fitting}
                if len(kinds) == 1:
                    fact = (person, *kinds)
                    text = f"{NAMES[speaker]} so {_facts([fact])}"
                    yield text, self._replace(facts=(*self.facts, fact))


class Cases(NamedTuple):
    """The cases that are not closed.

    Attributes:
      left: each with whether it is written, so that it is to be split, or is still to be.
    """

    left: tuple[tuple[tuple[Fact, ...], bool], ...] = (((), True),)

    def moves(self, problem: KnightsProblem) -> Iterator[tuple[str, "Cases"]]:
        """Write a case, or split one by any other person and write the first part."""
        for i, (case, written) in enumerate(self.left):
            before, behind = self.left[:i], self.left[i + 1 :]
            if not written:
                yield _open(problem, case, before, behind)
                continue
            for person in _by_mentions(problem):
                if person not in dict(case):
                    for knight in (True, False):
                        other = ((*case, (person, not knight)), False)
                        yield _open(problem, (*case, (person, knight)), before, (other, *behind))


def _open(
    problem: KnightsProblem, case: tuple[Fact, ...], before: tuple, behind: tuple
) -> tuple[str, Cases]:
    """Write a case, and the first statement that can no longer fit in it."""
    text, kinds = f"case {_facts(case)}", dict(case)
    for speaker in problem.people:
        if not problem.fitting(speaker, kinds):
            return f"{text} {NAMES[speaker]} no", Cases((*before, *behind))
    complete = len(case) == len(problem.statements)
    return text, Cases(() if complete else (*before, (case, True), *behind))


def _by_mentions(problem: KnightsProblem) -> list[int]:
    """The people, those first that the statements mention most often."""
    mentions = collections.Counter(
        person for statement in problem.statements for person, _ in statement.facts
    )
    return sorted(problem.people, key=lambda person: -mentions[person])


class Knights:
    """The task of knights and knaves (`reasoning.data.tasks.base.Task`).

    Args:
      people: how many there are.
    """

    name = "knights"
    strategies = ("table", "propagate", "cases", "direct")
    num_traces = len(strategies)
    max_number = 0  # its texts contain no numbers

    def __init__(self, people: int = 3) -> None:
        if not 2 <= people <= len(NAMES):
            raise ValueError(f"people={people}: must lie in 2..{len(NAMES)}.")
        self.people = people
        self.words = (
            *NAMES[:people], *KINDS, *CONNECTIVES, "is", ":", ",", "yes", "no", "assume", "so",
            "flip", "case", "answer",
        )

    def sample(self, seed: int, index: int) -> KnightsProblem:
        """Statements drawn until exactly one assignment fits them all: two draws in five do."""
        rng = random.Random(f"knights/{seed}/{index}")
        while True:
            problem = KnightsProblem(tuple(self._statement(s, rng) for s in range(self.people)))
            if len(problem.solutions()) == 1:
                return problem

    def _statement(self, speaker: int, rng: random.Random) -> Statement:
        """One fact about another person, or a connective and facts about any two people."""
        connective = rng.choice((None, *CONNECTIVES))
        if connective is None:
            others = [person for person in range(self.people) if person != speaker]
            mentioned = [rng.choice(others)]
        else:
            mentioned = rng.sample(range(self.people), 2)
        facts = tuple((person, rng.random() < 0.5) for person in mentioned)
        return Statement(facts, connective)

    def stream(self, split: Split, seed: int) -> Iterator[KnightsProblem]:
        """The endless stream of a split's problems, in the order of their index."""
        return hashed_stream(self, split, seed)

    def key(self, problem: KnightsProblem) -> str:
        """The statements, whichever of its two facts each names first."""
        statements = (Statement(tuple(sorted(s.facts)), s.connective) for s in problem.statements)
        return self.prompt(KnightsProblem(tuple(statements)))

    def prompt(self, problem: KnightsProblem) -> str:
        """`A : B is knave , B : A is knave and B is knight :`."""
        said = []
        for speaker, statement in zip(NAMES, problem.statements):
            facts = (f"{NAMES[person]} is {_kind(knight)}" for person, knight in statement.facts)
            said.append(f"{speaker} : {f' {statement.connective} '.join(facts)}")
        return f"{SEPARATOR.join(said)} :"

    def trace(self, problem: KnightsProblem, strategy: str) -> Trace:
        """What `strategy` writes; every strategy finds the solution."""
        steps = SEPARATOR.join(self._steps(problem, strategy))
        return Trace(steps, self._answer(problem))

    def completions(self, problem: KnightsProblem) -> list[str]:
        """The distinct traces of the strategies that solve it, sorted."""
        return strategy_completions(self, problem)

    def practice(self, problem: KnightsProblem, rng: random.Random) -> str:
        """One of the strategies with its steps in random order."""
        start = rng.choice(list(STARTS.values()))(problem)
        steps = (text for text, _ in walk(start, lambda page: page.moves(problem), rng.choice))
        return Trace(SEPARATOR.join(steps), self._answer(problem)).completion

    def verify(self, problem: KnightsProblem, answer: str | None) -> Verdict:
        """The answer must be the kinds of all people, in their order, that fit all statements."""
        if not answer:
            return Verdict(False, "no_answer")
        words = answer.split(" ", maxsplit=self.people)
        if len(words) != self.people or not KINDS.keys() >= set(words):
            return Verdict(False, "malformed")
        kinds = {person: KINDS[word] for person, word in enumerate(words)}
        correct = all(problem.fits(speaker, kinds) for speaker in problem.people)
        return Verdict(correct, "correct" if correct else "wrong_value")

    def judge_steps(self, problem: KnightsProblem, steps: str) -> list[Judged]:
        """Each step, and whether it is valid where no strategy is asked for."""
        starts = [start(problem) for start in STARTS.values()]
        written = split_steps(steps)
        valid = valid_moves(written, starts, lambda page: page.moves(problem))
        return list(zip(written, valid, strict=True))

    def check_trace(self, problem: KnightsProblem, strategy: str | None, steps: str) -> float:
        """Share of steps that are exact and go on with what the first one begins.

        Assignments, splits of cases, what follows and assumptions may come in any order. With a
        strategy, a step must be the one that the strategy takes at that place. Nothing is right
        for the strategy `direct`, and earns 0 without a strategy.
        """
        if strategy is not None:
            return share_as_expected(split_steps(steps), self._steps(problem, strategy))
        return share_valid(self.judge_steps(problem, steps))

    def recognise(self, problem: KnightsProblem, steps: str) -> str | None:
        """The one strategy that shares the longest opening with the steps, checks aside."""
        if not steps:
            return "direct"
        expected = {strategy: self._steps(problem, strategy) for strategy in self.strategies}
        return followed(split_steps(steps), expected, _choice)

    def _answer(self, problem: KnightsProblem) -> str:
        return " ".join(map(_kind, problem.solutions()[0]))

    def _steps(self, problem: KnightsProblem, strategy: str) -> Iterator[str]:
        check_strategy(self, strategy)
        if strategy == "direct":
            return iter(())
        found = walk(STARTS[strategy](problem), lambda page: page.moves(problem), first)
        return (text for text, _ in found)


STARTS: dict[str, Callable[[KnightsProblem], Table | Known | Cases]] = {
    "table": lambda problem: Table(tuple(_assignments(len(problem.statements)))),
    "propagate": lambda problem: Known(),
    "cases": lambda problem: Cases(),
}


def _choice(step: str) -> str:
    """A step without its result: the checks, or the kind of a person behind `so`."""
    words = step.split(" ")
    while len(words) > 2 and words[-1] in ("yes", "no"):
        del words[-2:]
    return " ".join(words[:3] if words[1:2] == ["so"] else words)
