"""Knights and knaves: texts read again by Python, every strategy held against all assignments."""

import collections
import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.tasks.base import parse_completion
from reasoning.data.tasks.knights import Knights, KnightsProblem, Statement
from reasoning.data.tasks.moves import split_steps

TASK = Knights()
FIVE = Knights(people=5)
EVERY_SIZE = pytest.mark.parametrize("people", [2, 3, 4, 5])
# A : B is knight and C is knave , B : A is knave , C : B is knight
PROBLEM = KnightsProblem((
    Statement(((1, True), (2, False)), "and"), Statement(((0, False),)), Statement(((1, True),)),
))
STEPS = {
    "table": "knight knight knight A no , knight knight knave A yes B no , "
    "knight knave knight A no , knight knave knave A no , knave knight knight A yes B yes C yes",
    "propagate": "assume A knight , A so B knight , B no , flip A knave , B so B knight , "
    "A so C knight",
    "cases": "case B knight , case B knight A knight B no , case B knight A knave , "
    "case B knight A knave C knight",
    "direct": "",
}


class Reading:
    """A problem as its prompt says it, evaluated by Python."""

    def __init__(self, task: Knights, problem: KnightsProblem) -> None:
        said = task.prompt(problem).removesuffix(" :").split(" , ")
        self.names = [text[0] for text in said]
        self.said = {}
        for text in said:
            claim = re.sub(r"([A-E]) is (knight|knave)", r"(kinds['\1'] == '\2')", text[4:])
            self.said[text[0]] = compile(claim.replace(" iff ", " == "), "claim", "eval")

    def fits(self, name: str, kinds: dict[str, str]) -> bool:
        return eval(self.said[name], {"kinds": kinds}) == (kinds[name] == "knight")

    def assignments(self, facts: dict[str, str]) -> list[dict[str, str]]:
        """Every assignment of all people that agrees with the facts, knights first."""
        found = itertools.product(("knight", "knave"), repeat=len(self.names))
        every = (dict(zip(self.names, kinds)) for kinds in found)
        return [kinds for kinds in every if facts.items() <= kinds.items()]

    def solutions(self) -> list[dict[str, str]]:
        return [kinds for kinds in self.assignments({})
                if all(self.fits(name, kinds) for name in self.names)]

    def fitting(self, name: str, facts: dict[str, str]) -> list[dict[str, str]]:
        return [kinds for kinds in self.assignments(facts) if self.fits(name, kinds)]


def pairs(words: list[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


def test_one_problem_by_hand():
    prompt = "A : B is knight and C is knave , B : A is knave , C : B is knight :"
    assert TASK.prompt(PROBLEM) == prompt
    traces = {strategy: TASK.trace(PROBLEM, strategy) for strategy in TASK.strategies}
    assert {name: trace.steps for name, trace in traces.items()} == STEPS
    assert {trace.answer for trace in traces.values()} == {"knave knight knight"}


def test_a_second_assumption_flips_before_the_first():
    # A : B is knave or C is knave , B : C is knave , C : B is knight or C is knight
    problem = KnightsProblem((
        Statement(((1, False), (2, False)), "or"), Statement(((2, False),)),
        Statement(((1, True), (2, True)), "or"),
    ))
    assert TASK.trace(problem, "propagate").steps == (
        "assume A knight , assume B knight , A so C knave , C no , flip B knave , B so C knight"
    )


@EVERY_SIZE
def test_problems_have_one_solution_and_the_verifier_accepts_it_alone(people):
    task = Knights(people)
    for index in range(60):
        problem = task.sample(0, index)
        (solution,) = Reading(task, problem).solutions()
        for kinds in itertools.product(("knight", "knave"), repeat=people):
            correct = list(kinds) == list(solution.values())
            verdict = task.verify(problem, " ".join(kinds))
            assert verdict.correct == correct
            assert verdict.reason == ("correct" if correct else "wrong_value")
        assert {task.trace(problem, s).answer for s in task.strategies} == {
            " ".join(solution.values())
        }


def test_statements_are_of_every_form():
    statements = [s for i in range(300) for s in TASK.sample(1, i).statements]
    forms = collections.Counter(s.connective for s in statements)
    assert set(forms) == {None, "and", "or", "iff"} and min(forms.values()) > 100
    own = 0
    for index in range(300):
        for speaker, (facts, connective) in enumerate(TASK.sample(1, index).statements):
            people = [person for person, _ in facts]
            assert len(set(people)) == len(people) == (2 if connective else 1)
            assert connective or people != [speaker]  # nobody says only what he is
            own += speaker in people
    assert own > 100


@EVERY_SIZE
def test_the_table_shows_each_assignment_up_to_the_solution(people):
    task = Knights(people)
    for index in range(25):
        problem = task.sample(2, index)
        reading = Reading(task, problem)
        rows = split_steps(task.trace(problem, "table").steps)
        for row, kinds in zip(rows, reading.assignments({})):
            words = row.split()
            assert words[:people] == list(kinds.values())
            fits = [reading.fits(name, kinds) for name in reading.names]
            shown = fits.index(False) + 1 if False in fits else people
            checks = zip(reading.names[:shown], fits)
            assert pairs(words[people:]) == {n: "yes" if yes else "no" for n, yes in checks}
            assert (False not in fits) == (row == rows[-1])


@EVERY_SIZE
def test_what_is_derived_follows_and_what_clashes_cannot_fit(people):
    task = Knights(people)
    flips = 0
    for index in range(50):
        problem = task.sample(3, index)
        reading = Reading(task, problem)
        facts, assumed = {}, []
        for step in split_steps(task.trace(problem, "propagate").steps):
            match step.split():
                case ["assume", name, kind]:
                    # The first that is unknown, where no statement says more.
                    unknown = set(reading.names) - facts.keys()
                    assert (name, kind) == (min(unknown), "knight")
                    for speaker in reading.names if facts else ():
                        possible = reading.fitting(speaker, facts)
                        assert all(len({k[n] for k in possible}) == 2 for n in unknown)
                    assumed.append((name, dict(facts)))
                    facts[name] = kind
                case [speaker, "so", name, kind]:
                    assert name not in facts
                    assert {kinds[name] for kinds in reading.fitting(speaker, facts)} == {kind}
                    facts[name] = kind
                case [speaker, "no"]:
                    assert not reading.fitting(speaker, facts)
                case ["flip", name, kind]:
                    flips += 1
                    person, facts = assumed.pop()
                    assert (name, kind) == (person, "knave")
                    facts[name] = kind
        assert facts in reading.solutions()
    assert flips > 15


@EVERY_SIZE
def test_closed_cases_hold_no_solution_and_split_by_mentions(people):
    task = Knights(people)
    closed = 0
    for index in range(40):
        problem = task.sample(4, index)
        reading = Reading(task, problem)
        claims = task.prompt(problem)
        mentions = {name: claims.count(f"{name} is") for name in reading.names}
        order = sorted(reading.names, key=lambda name: (-mentions[name], name))
        expected = [(kind,) for kind in ("knight", "knave")]  # cases, by kinds in that order
        for step in split_steps(task.trace(problem, "cases").steps):
            kinds = expected.pop(0)
            facts = dict(zip(order, kinds))
            broken = [name for name in reading.names if not reading.fitting(name, facts)]
            shown = " ".join(f"{name} {kind}" for name, kind in facts.items())
            assert step == f"case {shown}" + (f" {broken[0]} no" if broken else "")
            closed += bool(broken)
            if not broken and len(kinds) < people:
                expected = [(*kinds, "knight"), (*kinds, "knave"), *expected]
        assert facts in reading.solutions()
    assert closed > 20


@pytest.mark.parametrize("task", [TASK, FIVE], ids=["three people", "five people"])
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_practice_is_exact_in_any_order(task, index, rng):
    problem = task.sample(5, index)
    steps, answer = parse_completion(task.practice(problem, rng))
    assert task.verify(problem, answer).correct
    assert task.check_trace(problem, None, steps) == 1.0


def test_practice_comes_in_many_orders():
    rng = random.Random(0)
    texts = {TASK.practice(PROBLEM, rng) for _ in range(600)}
    opening = collections.Counter(text.split()[0] for text in texts)
    assert opening["case"] > 20 and opening["knight"] + opening["knave"] > 20
    assert opening["assume"] >= 6  # any person may be assumed to be of either kind
    assert {text.split()[1] for text in texts if text.startswith("assume")} == set("ABC")


def test_most_texts_of_three_people_fit_into_112_words():
    lengths = []
    for index in range(300):
        problem = TASK.sample(6, index)
        for strategy in TASK.strategies:
            text = f"{TASK.prompt(problem)} {TASK.trace(problem, strategy).completion}"
            lengths.append(len(text.split()))
    assert sum(length <= 112 for length in lengths) > 0.99 * len(lengths)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("knave knight knight", "correct"),
        ("knight knight knight", "wrong_value"),
        (None, "no_answer"),
        ("", "no_answer"),
        ("knave knight", "malformed"),
        ("knave knight knight knight", "malformed"),
        ("knave knight knight ", "malformed"),
        (" knave knight knight", "malformed"),
        ("knave  knight knight", "malformed"),
        ("knave knight knight\n", "malformed"),
        ("knave\tknight\tknight", "malformed"),
        ("Knave Knight Knight", "malformed"),
        ("A knave B knight C knight", "malformed"),
        ("knave , knight , knight", "malformed"),
        ("knave knight ｋnight", "malformed"),
        ("False True True", "malformed"),
        ("knave knight knight " * 30_000, "malformed"),
    ],
)
def test_verdicts(answer, reason):
    assert TASK.verify(PROBLEM, answer).reason == reason


@pytest.mark.parametrize(
    ("steps", "strategy", "share"),
    [
        ("knave knave knave A yes B no , knight knave knight A no", None, 1.0),
        ("knave knave knave A yes B no , knight knave knight A no", "table", 0.0),
        ("knight knight knight A no , knight knight knight A no", None, 0.5),
        ("knight knight knight A yes B no", None, 0.0),
        ("knight knight knave A yes", None, 0.0),  # up to the first that does not fit
        ("knight knight knave B no", None, 0.0),
        ("knave knight knight A yes B yes C yes", None, 1.0),
        ("knave knight knight A yes B yes C yes , knight knight knight A no", None, 0.5),
        ("assume B knave , B so A knight", None, 1.0),  # B lies: A is a knight
        ("assume B knave , B so A knight", "propagate", 0.0),
        ("assume B knave , B so A knight , A no", None, 1.0),
        ("assume B knave , B so A knight , A no , flip B knight , B so A knave", None, 1.0),
        ("assume B knave , flip B knight", None, 0.5),  # nothing clashes yet
        ("assume B knave , B so A knave", None, 0.5),
        ("assume B knave , assume C knave", None, 0.5),  # something follows
        ("assume B knave , A so A knight", None, 0.5),  # A alone does not say so
        ("assume B knave , B so A knight , A no , flip A knave", None, 0.75),
        ("assume B knave , B no", None, 0.5),
        ("A so B knight", None, 0.0),
        ("flip A knave", None, 0.0),
        ("case A knight , case A knave , case A knave B knave B no", None, 1.0),
        ("case A knight , case B knight", None, 0.5),  # A is split
        ("case A knight , case A knight B knight", None, 0.5),  # no remark that B does not fit
        ("case A knight , case A knight C knight A no , case A knight C knave", None, 1.0),
        ("case A knight , case A knight C knight A no , case A knight B knave A no", None, 2 / 3),
        ("case A knight , case A knight", None, 0.5),
        ("case A knight B knight B no", None, 0.0),
        ("case B knight , case B knight A knight B no", "cases", 1.0),
        ("case A knight , assume B knave", None, 0.5),
        ("assume A knight , and so on", None, 0.5),
        ("", None, 0.0),
        ("", "direct", 1.0),
        ("assume A knight", "direct", 0.0),
        ("", "table", 0.0),
    ],
)
def test_check_trace(steps, strategy, share):
    assert TASK.check_trace(PROBLEM, strategy, steps) == pytest.approx(share)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 1000), st.sampled_from(("table", "propagate", "cases")), st.data())
def test_any_changed_word_is_found(index, strategy, data):
    problem = TASK.sample(7, index)
    words = TASK.trace(problem, strategy).steps.split()
    place = data.draw(st.integers(0, len(words) - 1))
    others = [w for w in (*TASK.words, "1", "x") if w != words[place]]
    corrupted = (*words[:place], data.draw(st.sampled_from(others)), *words[place + 1 :])
    assert TASK.check_trace(problem, strategy, " ".join(corrupted)) < 1.0


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 1000), st.sampled_from(("table", "propagate", "cases")), st.data())
def test_a_wrong_finding_is_no_valid_step(index, strategy, data):
    problem = TASK.sample(8, index)
    steps = split_steps(TASK.trace(problem, strategy).steps)
    opposite = {"yes": "no", "no": "yes", "knight": "knave", "knave": "knight"}
    marks = "yes|no" if strategy == "table" else "no" if strategy == "cases" else "knight|knave|no"
    found = [i for i, step in enumerate(steps)
             if re.search(rf" ({marks})$", step) and not step.startswith("assume")]
    if found:
        place = data.draw(st.sampled_from(found))
        opening, _, last = steps[place].rpartition(" ")
        corrupted = " , ".join((*steps[:place], f"{opening} {opposite[last]}", *steps[place + 1 :]))
        assert TASK.check_trace(problem, None, corrupted) < 1.0


@pytest.mark.parametrize("strategy", ["table", "propagate", "cases"])
def test_steps_that_are_repeated_count_once(strategy):
    steps = split_steps(STEPS[strategy])
    assert TASK.check_trace(PROBLEM, None, " , ".join(steps * 1000)) == 1 / 1000
    repeated = " , ".join(step for step in steps for _ in range(1000))
    assert TASK.check_trace(PROBLEM, None, repeated) == 1 / 1000


@EVERY_SIZE
def test_a_strategy_is_recognised_by_its_first_steps(people):
    task = Knights(people)
    for index in range(50):
        problem = task.sample(9, index)
        for strategy in task.strategies:
            assert task.recognise(problem, task.trace(problem, strategy).steps) == strategy


@pytest.mark.parametrize(
    ("steps", "strategy"),
    [
        ("", "direct"),
        ("knight knight knight A yes B yes C yes", "table"),  # a wrong check
        ("assume A knight , A so B knave", "propagate"),  # a wrong conclusion
        ("case B knight A no", "cases"),
        ("knave knave knave A yes B no", None),
        ("assume B knave", None),
        ("case A knight", None),
        ("nonsense", None),
    ],
)
def test_recognise(steps, strategy):
    assert TASK.recognise(PROBLEM, steps) == strategy


@pytest.mark.parametrize(
    "unit",
    ["9", " ", " , ", "A no ", "A yes ", "knight ", "case A ", "assume A knight , ", "ｋ ", "\0",
     "🙂 ", "so "],
)
def test_long_nonsense_is_worth_nothing(unit):
    text = unit * (100_000 // len(unit))
    assert not TASK.verify(PROBLEM, text).correct
    for strategy in (None, *TASK.strategies):
        assert TASK.check_trace(PROBLEM, strategy, text) < 0.001
    assert TASK.recognise(PROBLEM, text) == ("propagate" if "assume" in unit else None)


def test_the_order_of_two_facts_makes_no_other_instance():
    swapped = PROBLEM.statements[0]._replace(facts=PROBLEM.statements[0].facts[::-1])
    shown = KnightsProblem((swapped, *PROBLEM.statements[1:]))
    assert TASK.prompt(shown).startswith("A : C is knave and B is knight ,")
    assert TASK.key(shown) == TASK.key(PROBLEM)
    assert all(TASK.trace(shown, s) == TASK.trace(PROBLEM, s) for s in TASK.strategies)
    other = KnightsProblem((PROBLEM.statements[0]._replace(connective="or"), *shown.statements[1:]))
    assert TASK.key(other) != TASK.key(PROBLEM)


@pytest.mark.parametrize(
    ("people", "message"), [(1, "people=1: must lie in 2..5."), (6, "people=6: must lie in 2..5.")]
)
def test_impossible_arguments_are_refused(people, message):
    with pytest.raises(ValueError) as error:
        Knights(people)
    assert str(error.value) == message


def test_samples_stay_what_they_were():
    assert [TASK.prompt(TASK.sample(0, index)) for index in range(2)] == [
        "A : B is knave or C is knave , B : B is knight or A is knight , "
        "C : C is knave iff A is knave :",
        "A : A is knight iff C is knight , B : A is knight , C : B is knight :",
    ]
