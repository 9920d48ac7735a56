"""Paths: verifier and searches against every simple path, checks against corruptions."""

import collections
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.tasks.base import parse_completion
from reasoning.data.tasks.moves import split_steps
from reasoning.data.tasks.paths import PathProblem, Paths, distances

TASK = Paths()
PATIENT = Paths(tries=100)
SMALL = Paths(nodes=6, edges=7)
PROBLEM = PathProblem(((0, 3), (1, 7), (2, 5), (2, 7), (3, 5), (3, 6)), 2, 6)
STEPS = {
    "breadth": "2 : 5 7 , 5 : 3 , 7 : 1 , 3 : 0 6 , 6 from 3 , 3 from 5 , 5 from 2",
    "backward": "6 : 3 , 3 : 0 5 , 0 : none , 5 : 2 , 2 to 5 , 5 to 3 , 3 to 6",
    "depth": "2 no , 2 5 no , 2 7 no , 2 5 3 yes",
    "direct": "",
}


def simple_paths(problem: PathProblem) -> list[tuple[int, ...]]:
    """All paths from the start that visit no node twice, of each length in lexicographic order."""
    joined = {*problem.edges, *((b, a) for a, b in problem.edges)}
    nodes = sorted({node for edge in joined for node in edge})
    return [
        (problem.start, *rest)
        for size in range(len(nodes))
        for rest in itertools.permutations([n for n in nodes if n != problem.start], size)
        if joined.issuperset(itertools.pairwise((problem.start, *rest)))
    ]


def shortest(problem: PathProblem) -> list[tuple[int, ...]]:
    found = [path for path in simple_paths(problem) if path[-1] == problem.goal]
    return [path for path in found if len(path) == len(found[0])]


def words(path: tuple[int, ...]) -> str:
    return " ".join(map(str, path))


def test_one_problem_by_hand():
    assert TASK.prompt(PROBLEM) == "0 3 , 1 7 , 2 5 , 2 7 , 3 5 , 3 6 from 2 to 6 :"
    traces = {strategy: TASK.trace(PROBLEM, strategy) for strategy in TASK.strategies}
    assert {name: trace.steps for name, trace in traces.items()} == STEPS
    assert {trace.answer for trace in traces.values()} == {"2 5 3 6"}


def test_a_dead_end_is_tried_in_every_round():
    problem = PathProblem(((0, 1), (3, 1), (5, 3), (5, 6), (6, 7)), 1, 7)
    steps = "1 no , 1 0 no , 1 3 no , 1 0 no , 1 3 5 no , 1 0 no , 1 3 5 6 yes"
    assert TASK.trace(problem, "depth").steps == steps
    assert Paths(tries=7).trace(problem, "depth").answer == "1 3 5 6 7"
    assert Paths(tries=6).trace(problem, "depth") is None
    assert TASK.check_trace(problem, None, steps) == 1.0
    assert TASK.check_trace(problem, None, "1 no , 1 0 no , 1 3 no , 1 3 5 no , 1 3 5 6 yes") == 0.8


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_the_verifier_accepts_exactly_the_shortest_paths(index):
    problem = SMALL.sample(0, index)
    best = set(shortest(problem))
    assert best and len(next(iter(best))) > 2
    joined = {*problem.edges, *((b, a) for a, b in problem.edges)}
    there = {node for edge in problem.edges for node in edge}
    for size in range(1, 5):
        for path in itertools.product(range(SMALL.nodes), repeat=size):
            reason = SMALL.verify(problem, words(path)).reason
            assert (reason == "correct") == (path in best)
            assert (reason == "wrong_numbers") == (not there.issuperset(path))
            if there.issuperset(path):
                is_walk = joined.issuperset(itertools.pairwise(path))
                assert (reason == "wrong_equation") == (not is_walk)
    for path in simple_paths(problem):
        assert SMALL.verify(problem, words(path)).correct == (path in best)


@pytest.mark.parametrize("task", [TASK, SMALL, Paths(nodes=7, edges=14)])
def test_every_strategy_finds_a_shortest_path(task):
    for index in range(15):
        problem = task.sample(1, index)
        best = {words(path) for path in shortest(problem)}
        for strategy in ("breadth", "backward", "direct"):
            assert task.trace(problem, strategy).answer in best
        trace = task.trace(problem, "depth")
        assert trace is None or trace.answer == min(best)  # depth is first in lexicographic order


def test_depth_tries_every_path_up_to_the_first_that_reaches_the_goal():
    for index in range(15):
        problem = SMALL.sample(2, index)
        joined = {*problem.edges, *((b, a) for a, b in problem.edges)}
        simple = simple_paths(problem)
        expected = []
        for size in range(1, len(shortest(problem)[0])):
            # A path ends where it is long enough, or where no longer one begins with it.
            ends = [p for p in simple if len(p) == size
                    or (len(p) < size and not any(q[:-1] == p for q in simple))]
            expected += sorted(ends)
        reaches = [(path[-1], problem.goal) in joined for path in expected]
        stop = reaches.index(True) + 1
        assert split_steps(Paths(6, 7, 100).trace(problem, "depth").steps) == [
            f"{words(path)} {'yes' if yes else 'no'}" for path, yes in zip(expected, reaches)
        ][:stop]


@pytest.mark.parametrize(("strategy", "link"), [("breadth", "from"), ("backward", "to")])
def test_breadth_first_searches_find_nodes_level_by_level(strategy, link):
    for index in range(40):
        problem = TASK.sample(3, index)
        near = problem.start if strategy == "breadth" else problem.goal
        far = problem.goal if strategy == "breadth" else problem.start
        steps = split_steps(TASK.trace(problem, strategy).steps)
        order, parents = [near], {}
        for step in steps:
            if ":" in step:
                node, found = step.split(" : ")
                new = [] if found == "none" else [int(word) for word in found.split()]
                assert new == sorted(new) and not set(new) & set(order)
                assert int(node) == order[sum(":" in s for s in steps[: steps.index(step)])]
                order += new
                parents.update(dict.fromkeys(new, int(node)))
        away = distances(problem.graph, near)
        assert [away[node] for node in order] == sorted(away[node] for node in order)
        assert far in order and all(away[n] == away[p] + 1 for n, p in parents.items())
        node = far
        for step in steps[-away[far] :]:
            assert step == f"{node} {link} {parents[node]}"
            node = parents[node]
        assert node == near


def test_depth_gives_up_where_the_others_search_on():
    problems = [TASK.sample(4, index) for index in range(300)]
    solved = [TASK.trace(problem, "depth") is not None for problem in problems]
    assert 0.8 < sum(solved) / len(solved) < 0.97
    patient = [PATIENT.trace(problem, "depth") for problem in problems]
    assert all(patient)
    for problem, trace, in_time in zip(problems, patient, solved):
        assert in_time == (len(split_steps(trace.steps)) <= TASK.tries)
        assert TASK.trace(problem, "depth") == (trace if in_time else None)


def test_problems_have_distances_of_all_sizes():
    lengths = collections.Counter(
        distances(problem.graph, problem.start)[problem.goal]
        for problem in (TASK.sample(5, index) for index in range(400))
    )
    assert min(lengths) == 2 and max(lengths) >= 4
    assert 0.3 < lengths[2] / 400 < 0.5 and lengths[4] / 400 > 0.1


def test_the_texts_of_the_default_fit_into_112_words():
    for index in range(400):
        problem = TASK.sample(6, index)
        traces = [trace for s in TASK.strategies if (trace := TASK.trace(problem, s))]
        texts = [trace.completion for trace in traces]
        texts.append(TASK.practice(problem, random.Random(index)))
        assert max(len(f"{TASK.prompt(problem)} {text}".split()) for text in texts) <= 112


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_practice_is_a_search_in_random_order(index, rng):
    problem = TASK.sample(7, index)
    steps, answer = parse_completion(TASK.practice(problem, rng))
    assert TASK.verify(problem, answer).correct
    assert TASK.check_trace(problem, None, steps) == 1.0
    if steps.endswith("yes"):
        assert len(split_steps(steps)) <= TASK.tries


def test_practice_comes_in_many_orders():
    rng, problem = random.Random(0), PathProblem(
        ((0, 1), (0, 2), (0, 3), (1, 4), (2, 5), (3, 6), (4, 7)), 0, 7
    )
    texts = {PATIENT.practice(problem, rng) for _ in range(600)}
    assert sum(text.startswith("0 :") for text in texts) > 20
    assert sum(text.startswith("0 no") for text in texts) > 20
    assert sum(text.startswith("7 :") for text in texts) == 1  # a chain leaves no choice


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("2 5 3 6", "correct"),
        ("6 3 5 2", "wrong_value"),  # the other way round
        ("2 7 2 5 3 6", "wrong_value"),  # too long
        ("2 5 3", "wrong_value"),
        ("2", "wrong_value"),
        ("5 3 6", "wrong_value"),
        ("2 3 6", "wrong_equation"),
        ("2 2 5 3 6", "wrong_equation"),
        ("2 4 6", "wrong_numbers"),  # 4 has no edge
        ("2 9 6", "wrong_numbers"),
        (None, "no_answer"),
        ("", "no_answer"),
        ("2 - 5 - 3 - 6", "malformed"),
        ("2 5 3 6 ", "malformed"),
        ("2 5 3 6\n", "malformed"),
        ("2  5 3 6", "malformed"),
        ("02 5 3 6", "malformed"),
        ("2 5 3 -6", "malformed"),
        ("2 100 6", "malformed"),
        ("٢ 5 3 6", "malformed"),
        ("２ 5 3 6", "malformed"),
        ("2 5 3 ²", "malformed"),
        ("9" * 100_000, "malformed"),
        ("2 5 " * 25_000 + "2 5 3 6", "wrong_value"),
    ],
)
def test_verdicts(answer, reason):
    assert TASK.verify(PROBLEM, answer).reason == reason


def test_another_shortest_path_is_another_vote():
    problem = PathProblem(((0, 1), (1, 3), (0, 2), (2, 3)), 0, 3)
    verdicts = {answer: TASK.verify(problem, answer) for answer in ("0 1 3", "0 2 3")}
    assert all(verdict.correct for verdict in verdicts.values())
    assert len({verdict.key or answer for answer, verdict in verdicts.items()}) == 2


@pytest.mark.parametrize(
    ("steps", "strategy", "share"),
    [
        ("2 : 5 7 , 5 : 3 , 7 : 1", None, 1.0),
        ("2 : 5 7 , 7 : 1 , 5 : 3", None, 1.0),  # the level in another order
        ("2 : 5 7 , 7 : 1 , 5 : 3", "breadth", 1 / 3),
        ("2 : 5 7 , 7 : 1 , 1 : none", None, 2 / 3),  # 5 comes before the next level
        ("2 : 5 7 , 5 : 2 3", None, 0.5),  # 2 is not new
        ("2 : 7 5", None, 0.0),  # neighbours ascend
        ("2 : 5 7 , 2 : 5 7", None, 0.5),
        ("2 : 5", None, 0.0),
        ("5 : 2 3", None, 0.0),  # neither end
        ("6 from 3", None, 0.0),  # nothing is found yet
        ("2 : 5 7 , 5 : 3 , 7 : 1 , 3 : 0 6 , 6 from 3 , 3 from 5 , 5 from 2", None, 1.0),
        ("2 : 5 7 , 5 : 3 , 7 : 1 , 3 : 0 6 , 0 : none", None, 0.8),  # the goal is found
        ("2 : 5 7 , 5 : 3 , 7 : 1 , 3 : 0 6 , 6 to 3", None, 0.8),
        ("2 : 5 7 , 5 : 3 , 7 : 1 , 3 : 0 6 , 3 from 5", None, 0.8),
        ("2 : 5 7 , 6 : 3", None, 0.5),  # from one end at a time
        ("6 : 3 , 3 : 0 5 , 5 : 2 , 2 to 5 , 5 to 3 , 3 to 6", None, 1.0),  # without 0
        ("6 : 3 , 3 : 0 5 , 5 : 2 , 0 : none , 2 to 5", None, 0.8),  # 2 ended the search
        ("6 : 3 , 3 : 0 5 , 0 : , 5 : 2", None, 0.75),
        ("2 no , 2 7 no , 2 5 no , 2 7 1 no , 2 5 3 yes", None, 1.0),
        ("2 no , 2 7 no , 2 5 no , 2 7 1 no , 2 5 3 yes", "depth", 0.2),
        ("2 no , 2 5 no , 2 5 3 yes", None, 2 / 3),  # 2 7 was not tried
        ("2 no , 2 5 yes", None, 0.5),
        ("2 no , 2 6 no", None, 0.5),
        ("2 no , 2 5 no , 2 5 no", None, 2 / 3),
        ("2 5 3 yes", None, 0.0),
        ("2 no , 2 5 no , 2 7 no , 2 5 3 yes , 2 7 1 no", None, 0.8),  # after the end
        ("2 no , 2 5 no , 2 7 no , 2 5 3 yes", "depth", 1.0),
        ("2 no , and so on", None, 0.5),
        ("", None, 0.0),
        ("", "direct", 1.0),
        ("2 no", "direct", 0.0),
        ("", "depth", 0.0),
    ],
)
def test_check_trace(steps, strategy, share):
    assert TASK.check_trace(PROBLEM, strategy, steps) == pytest.approx(share)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10_000), st.sampled_from(("breadth", "backward", "depth")), st.data())
def test_any_changed_word_is_found(index, strategy, data):
    problem = PATIENT.sample(8, index)
    steps = PATIENT.trace(problem, strategy).steps.split()
    place = data.draw(st.integers(0, len(steps) - 1))
    others = [w for w in (*TASK.words, *"012345678", "x") if w != steps[place]]
    corrupted = (*steps[:place], data.draw(st.sampled_from(others)), *steps[place + 1 :])
    assert PATIENT.check_trace(problem, strategy, " ".join(corrupted)) < 1.0


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000), st.sampled_from(("breadth", "backward", "depth")), st.data())
def test_a_wrong_finding_is_no_valid_step(index, strategy, data):
    problem = PATIENT.sample(9, index)
    steps = split_steps(PATIENT.trace(problem, strategy).steps)
    place = data.draw(st.integers(0, len(steps) - 1))
    opening, _, result = steps[place].rpartition(" ")
    if strategy == "depth":
        wrong = "no" if result == "yes" else "yes"
    else:  # the last node found, or the parent
        wrong = data.draw(st.sampled_from([w for w in ("none", *"01234567") if w != result]))
    corrupted = " , ".join((*steps[:place], f"{opening} {wrong}", *steps[place + 1 :]))
    assert PATIENT.check_trace(problem, None, corrupted) < 1.0


@pytest.mark.parametrize("strategy", ["breadth", "backward", "depth"])
def test_steps_that_are_repeated_count_once(strategy):
    steps = STEPS[strategy]
    count = len(split_steps(steps))
    assert TASK.check_trace(PROBLEM, None, " , ".join([steps] * 1000)) == 1 / 1000
    repeated = " , ".join(step for step in split_steps(steps) for _ in range(1000))
    assert TASK.check_trace(PROBLEM, None, repeated) == count / (1000 * count)


def test_rounds_with_very_many_paths_are_judged():
    task = Paths(nodes=20, edges=60, tries=100)
    for index in range(3):
        problem = task.sample(0, index)
        simple = [(problem.start,)]
        for path in simple:
            if len(simple) < 3000:
                simple += [(*path, n) for n in problem.graph[path[-1]] if n not in path]
        steps = " , ".join(f"{words(path)} no" for path in simple)
        assert 0 < task.check_trace(problem, None, steps) < 0.2


@pytest.mark.parametrize("task", [TASK, Paths(nodes=10, edges=12)])
def test_a_strategy_is_recognised_by_its_search(task):
    for index in range(60):
        problem = task.sample(10, index)
        for strategy in task.strategies:
            trace = task.trace(problem, strategy)
            assert trace is None or task.recognise(problem, trace.steps) == strategy


@pytest.mark.parametrize(
    ("steps", "strategy"),
    [
        ("", "direct"),
        ("2 : 5 , 5 : 3", "breadth"),  # 7 is missing: a wrong finding is no other strategy
        ("6 : none", "backward"),
        ("2 yes", "depth"),
        ("2 5 no", None),
        ("5 : 2 3", None),
        ("nonsense", None),
    ],
)
def test_recognise(steps, strategy):
    assert TASK.recognise(PROBLEM, steps) == strategy


@pytest.mark.parametrize(
    "unit", ["9", "2 ", " , ", " : ", "2 no , ", "2 : 5 7 , ", "from ", "٢ ", "\0", "🙂 ", "2 5 "]
)
def test_long_nonsense_is_worth_nothing(unit):
    text = unit * (100_000 // len(unit))
    assert not TASK.verify(PROBLEM, text).correct
    for strategy in (None, *TASK.strategies):
        assert TASK.check_trace(PROBLEM, strategy, text) < 0.001
    expected = {"2 no , ": "depth", "2 : 5 7 , ": "breadth"}
    assert TASK.recognise(PROBLEM, text) == expected.get(unit)


@settings(deadline=None)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_and_direction_of_the_edges_make_no_other_instance(index, rng):
    problem = TASK.sample(11, index)
    edges = [(b, a) if rng.random() < 0.5 else (a, b) for a, b in problem.edges]
    rng.shuffle(edges)
    shown = PathProblem(tuple(edges), problem.start, problem.goal)
    assert TASK.key(shown) == TASK.key(problem)
    assert all(TASK.trace(shown, s) == TASK.trace(problem, s) for s in TASK.strategies)
    other = PathProblem(problem.edges, problem.goal, problem.start)
    assert TASK.key(other) != TASK.key(problem)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodes": 2}, "nodes=2: must lie in 3..20."),
        ({"nodes": 21}, "nodes=21: must lie in 3..20."),
        ({"edges": 1}, "edges=1: must lie in 2..27 for nodes=8."),
        ({"nodes": 4, "edges": 6}, "edges=6: must lie in 2..5 for nodes=4."),
        ({"tries": 0}, "tries=0: must lie in 1..100."),
        ({"tries": 101}, "tries=101: must lie in 1..100."),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        Paths(**arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(("nodes", "edges"), [(3, 2), (20, 2), (20, 189), (4, 5)])
def test_the_rarest_problems_are_found(nodes, edges):
    task = Paths(nodes, edges)
    for index in range(20):
        problem = task.sample(0, index)
        assert len(set(problem.edges)) == edges and list(problem.edges) == sorted(problem.edges)
        assert all(a < b for a, b in problem.edges)
        assert distances(problem.graph, problem.start)[problem.goal] >= 2


def test_samples_stay_what_they_were():
    assert [TASK.prompt(TASK.sample(0, index)) for index in range(2)] == [
        "0 2 , 0 3 , 0 5 , 1 3 , 1 6 , 2 4 , 2 5 , 4 5 , 5 7 , 6 7 from 4 to 1 :",
        "0 2 , 1 7 , 2 5 , 2 6 , 2 7 , 3 5 , 3 6 , 4 5 , 4 6 , 5 6 from 6 to 1 :",
    ]
