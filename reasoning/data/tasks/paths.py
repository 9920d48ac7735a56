"""Paths: a shortest path between two nodes of a small undirected graph.

Three strategies search from another end or in another order, and the answer may be any of the
shortest paths:

    prompt    "0 3 , 1 7 , 2 5 , 2 7 , 3 5 , 3 6 from 2 to 6 :"
    breadth   breadth first from the start: behind each node its neighbours that are new; then
              back along the nodes under which the goal and its forerunners were found
              2 : 5 7 , 5 : 3 , 7 : 1 , 3 : 0 6 , 6 from 3 , 3 from 5 , 5 from 2
    backward  the same from the goal
              6 : 3 , 3 : 0 5 , 0 : none , 5 : 2 , 2 to 5 , 5 to 3 , 3 to 6
    depth     depth first by iterative deepening: the paths of one node, two nodes, ...; `yes` where
              one step more reaches the goal, `no` where the search must go back
              2 no , 2 5 no , 2 7 no , 2 5 3 yes
    direct    the answer alone: 2 5 3 6

Edges are shown in ascending order with the smaller node first, and neighbours are written in
ascending order, which is the order in which the prompt shows them: a small policy learns soon to
look them up. A path that ends before the depth of the round, since all its last node's neighbours
are on it, is tried in every round. `depth` gives up after some tries; the others always find a
path. A plain depth-first search finds one too, but nothing that it has written says whether it is
a shortest; the rounds do.
"""

import collections
import dataclasses
import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    Choice,
    first,
    followed,
    split_steps,
    valid_moves,
    walk,
)
from reasoning.data.tasks.steps import Judged, check_strategy, share_as_expected, share_valid

Edge = tuple[int, int]
Graph = Mapping[int, Sequence[int]]  # the neighbours of each node, in ascending order
Found = Iterator[tuple[str, "Level | Round"]]  # a search: each step, and how far it is then
SEARCHES = ("breadth", "backward", "depth")
MAX_NODES = 20
MAX_TRIES = 100  # of a round of `depth`: bounds the work of `check_trace`


@dataclasses.dataclass(frozen=True)
class PathProblem:
    """The edges, in the order and direction shown, and the nodes to join, which some path does."""

    edges: tuple[Edge, ...]
    start: int
    goal: int

    @property
    def graph(self) -> Graph:
        """The neighbours of each node that has an edge."""
        neighbours = collections.defaultdict(set)
        for a, b in self.edges:
            neighbours[a].add(b)
            neighbours[b].add(a)
        return {node: sorted(found) for node, found in neighbours.items()}


def distances(graph: Graph, source: int) -> dict[int, int]:
    """How many edges each node that can be reached is away from the source."""
    found = {source: 0}
    queue = collections.deque([source])
    while queue:
        node = queue.popleft()
        for neighbour in graph.get(node, ()):
            if neighbour not in found:
                found[neighbour] = found[node] + 1
                queue.append(neighbour)
    return found


def _words(nodes: Iterable[int]) -> str:
    return " ".join(map(str, nodes))


# How far a search has come, and its moves: every valid step, with the strategy's choice first.


class Level(NamedTuple):
    """A breadth-first search, which may take the nodes of a level in any order.

    Attributes:
      near, far: the ends: it goes from one to the other.
      parents: (node, the node under which it was found) of every node found.
      level: its nodes that are left to expand.
      below: the nodes found of the next level.
      path: from the far end back, as far as it is written; the end alone while searching.
    """

    near: int
    far: int
    parents: tuple[Edge, ...]
    level: tuple[int, ...]
    below: tuple[int, ...]
    path: tuple[int, ...]

    def moves(self, problem: PathProblem) -> Iterator[tuple[str, "Level"]]:
        """Expand a node of the level; once the far end is found, go back from parent to parent."""
        graph, parents = problem.graph, dict(self.parents)
        if self.far in parents:
            node, parent = self.path[-1], parents[self.path[-1]]
            if node != self.near:
                link = "from" if self.far == problem.goal else "to"
                yield f"{node} {link} {parent}", self._replace(path=(*self.path, parent))
            return
        for node in self.level:
            found = [n for n in graph[node] if n not in parents]
            level, below = tuple(n for n in self.level if n != node), (*self.below, *found)
            yield f"{node} : {_words(found) or 'none'}", self._replace(
                parents=(*self.parents, *((n, node) for n in found)),
                level=level or below,
                below=below if level else (),
            )


class Round(NamedTuple):
    """Iterative deepening, which may take the paths of a round in any order.

    Attributes:
      size: the most nodes that a path has in this round.
      left: the paths that are left to try.
      path: the one that reaches the goal, once it is found.
    """

    size: int
    left: tuple[tuple[int, ...], ...]
    path: tuple[int, ...] = ()

    def moves(self, problem: PathProblem) -> Iterator[tuple[str, "Round"]]:
        """Try a path of the round; after the last one the next round begins."""
        graph = problem.graph
        for path in self.left:
            reaches = problem.goal in graph[path[-1]]
            after = self._replace(left=tuple(p for p in self.left if p != path))
            if reaches:
                after = Round(self.size, (), (*path, problem.goal))
            elif not after.left:
                deeper = _leaves(graph, (problem.start,), self.size + 1)
                after = Round(self.size + 1, tuple(itertools.islice(deeper, MAX_TRIES)))
            yield f"{_words(path)} {'yes' if reaches else 'no'}", after


def _leaves(graph: Graph, path: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    """Where a depth-first search goes back that takes paths of at most `size` nodes."""
    onward = [n for n in graph[path[-1]] if n not in path] if len(path) < size else []
    if not onward:
        yield path
    for node in onward:
        yield from _leaves(graph, (*path, node), size)


def _start(problem: PathProblem, strategy: str) -> Level | Round:
    """Where the strategy begins."""
    start, goal = problem.start, problem.goal
    if strategy == "depth":
        return Round(1, ((start,),))
    near, far = (start, goal) if strategy == "breadth" else (goal, start)
    return Level(near, far, ((near, near),), (near,), (), (far,))


class Paths:
    """The task of shortest paths (`reasoning.data.tasks.base.Task`).

    Args:
      nodes: a graph has so many, numbered from 0; some may have no edge.
      edges: how many there are.
      tries: how many paths the strategy `depth` may try before it gives up.
    """

    name = "paths"
    strategies = (*SEARCHES, "direct")
    num_traces = len(strategies)
    words = (":", ",", "from", "to", "none", "yes", "no", "answer")

    def __init__(self, nodes: int = 8, edges: int = 10, tries: int = 8) -> None:
        if not 3 <= nodes <= MAX_NODES:
            raise ValueError(f"nodes={nodes}: must lie in 3..{MAX_NODES}.")
        most = nodes * (nodes - 1) // 2 - 1  # with one more, every two nodes have an edge
        if not 2 <= edges <= most:
            raise ValueError(f"edges={edges}: must lie in 2..{most} for nodes={nodes}.")
        if not 1 <= tries <= MAX_TRIES:
            raise ValueError(f"tries={tries}: must lie in 1..{MAX_TRIES}.")
        self.nodes, self.edges, self.tries = nodes, edges, tries
        self.max_number = nodes - 1

    def sample(self, seed: int, index: int) -> PathProblem:
        """Edges drawn uniformly; then a distance of those in the graph, and nodes so far apart."""
        rng = random.Random(f"paths/{seed}/{index}")
        pairs = list(itertools.combinations(range(self.nodes), 2))
        while True:  # one graph in six has such nodes, or more: fewest with 20 nodes and 2 edges
            problem = PathProblem(tuple(sorted(rng.sample(pairs, self.edges))), 0, 0)
            apart = collections.defaultdict(list)
            for start in range(self.nodes):
                for goal, distance in distances(problem.graph, start).items():
                    apart[distance].append((start, goal))
            if far := [nodes for distance, nodes in sorted(apart.items()) if distance > 1]:
                start, goal = rng.choice(rng.choice(far))
                return dataclasses.replace(problem, start=start, goal=goal)

    def stream(self, split: Split, seed: int) -> Iterator[PathProblem]:
        """The endless stream of a split's problems, in the order of their index."""
        return hashed_stream(self, split, seed)

    def key(self, problem: PathProblem) -> str:
        """The sorted edges and the two nodes: order and direction shown make no other instance."""
        edges = sorted((min(edge), max(edge)) for edge in problem.edges)
        return f"{edges} {problem.start} {problem.goal}"

    def prompt(self, problem: PathProblem) -> str:
        """`0 3 , 2 5 , 3 5 from 2 to 0 :`."""
        edges = SEPARATOR.join(map(_words, problem.edges))
        return f"{edges} from {problem.start} to {problem.goal} :"

    def trace(self, problem: PathProblem, strategy: str) -> Trace | None:
        """The strategy's search; None if `depth` runs out of tries."""
        check_strategy(self, strategy)
        if strategy == "direct":
            return Trace("", self._trace("breadth", self._search(problem, "breadth")).answer)
        return self._trace(strategy, self._search(problem, strategy))

    def completions(self, problem: PathProblem) -> list[str]:
        """The distinct traces of the strategies that solve it, sorted."""
        return strategy_completions(self, problem)

    def practice(self, problem: PathProblem, rng: random.Random) -> str:
        """One of the searches in random order; none takes more tries than `depth` may."""
        trace = None
        while trace is None:
            strategy = rng.choice(SEARCHES)
            trace = self._trace(strategy, self._search(problem, strategy, rng.choice))
        return trace.completion

    def verify(self, problem: PathProblem, answer: str | None) -> Verdict:
        """The answer must be a shortest path; a path has one spelling, so each is another vote.

        Reasons: `wrong_numbers` for a node that the graph has not, `wrong_equation` for a step
        where it has no edge, `wrong_value` for a path that is too long or joins other nodes.
        """
        if not answer:
            return Verdict(False, "no_answer")
        if _PATH.fullmatch(answer) is None:
            return Verdict(False, "malformed")
        graph, path = problem.graph, list(map(int, answer.split(" ")))
        if not graph.keys() >= set(path):
            return Verdict(False, "wrong_numbers")
        if any(b not in graph[a] for a, b in itertools.pairwise(path)):
            return Verdict(False, "wrong_equation")
        length = distances(graph, problem.start)[problem.goal]
        correct = (path[0], path[-1], len(path) - 1) == (problem.start, problem.goal, length)
        return Verdict(correct, "correct" if correct else "wrong_value")

    def judge_steps(self, problem: PathProblem, steps: str) -> list[Judged]:
        """Each step, and whether it is valid where no strategy is asked for."""
        starts = [_start(problem, search) for search in SEARCHES]
        written = split_steps(steps)
        valid = valid_moves(written, starts, lambda page: page.moves(problem))
        return list(zip(written, valid, strict=True))

    def check_trace(self, problem: PathProblem, strategy: str | None, steps: str) -> float:
        """Share of steps that are exact and go on with the search that the first one begins.

        A level's nodes, or a round's paths, may come in any order, and each once. With a strategy,
        a step must be the one that the strategy takes at that place. Nothing is right for the
        strategy `direct`, and earns 0 without a strategy.
        """
        if strategy is not None:
            return share_as_expected(split_steps(steps), self._steps(problem, strategy))
        return share_valid(self.judge_steps(problem, steps))

    def recognise(self, problem: PathProblem, steps: str) -> str | None:
        """The one strategy that shares the longest opening with the steps.

        Compared are the nodes and paths that are chosen, not what is said to be found there.
        """
        if not steps:
            return "direct"
        expected = {strategy: self._steps(problem, strategy) for strategy in self.strategies}
        return followed(split_steps(steps), expected, _choice)

    def _steps(self, problem: PathProblem, strategy: str) -> Iterator[str]:
        check_strategy(self, strategy)
        found = () if strategy == "direct" else self._search(problem, strategy)
        return (text for text, _ in found)

    def _search(self, problem: PathProblem, strategy: str, choose: Choice = first) -> Found:
        return walk(_start(problem, strategy), lambda page: page.moves(problem), choose)

    def _trace(self, strategy: str, search: Found) -> Trace | None:
        """The trace of a search, None if it finds no path within its tries."""
        found = list(itertools.islice(search, self.tries) if strategy == "depth" else search)
        page = found[-1][1]
        path = page.path[::-1] if strategy == "breadth" else page.path
        return Trace(SEPARATOR.join(text for text, _ in found), _words(path)) if path else None


_NODE = r"(?:0|[1-9][0-9]?)"  # ASCII digits, and few: the text may be anything
_PATH = re.compile(rf"{_NODE}(?: {_NODE})*")


def _choice(step: str) -> str:
    """A step without its result: `2 :` of `2 : 5 7`, `2 5` of `2 5 no`."""
    node, colon, _ = step.partition(" : ")
    return node + colon if colon else step.removesuffix(" yes").removesuffix(" no")
