"""Tasks whose traces are steps joined by ` , `, and whose valid steps can be listed at any point.

A page is how far a calculation has come: any hashable value. `moves(page)` gives each step that is
valid there, with the page after it; no move is left where the calculation is done:

    def moves(page):
        yield "3 * 7 = 1 2", page_with_the_product

From it come the check of a trace that keeps to no strategy (`valid_moves`), and by `walk` the
practice in random order and the strategies that take the first move.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import TypeVar

from reasoning.data.tasks.steps import longest_opening

SEPARATOR = " , "
Page = TypeVar("Page", bound=Hashable)
Moves = Callable[[Page], Iterable[tuple[str, Page]]]
Choice = Callable[[list[tuple[str, Page]]], tuple[str, Page]]


def split_steps(steps: str) -> list[str]:
    """Cut a trace into its steps; an empty trace has none."""
    return steps.split(SEPARATOR) if steps else []


def valid_moves(written: list[str], starts: Iterable[Page], moves: Moves[Page]) -> list[bool]:
    """For each step, whether it is a move from the page left by the valid ones before it.

    The same text may be several moves: each page that may be left is followed.
    """
    after = _merged(starts, moves)
    valid = []
    for text in written:
        valid.append(text in after)
        if valid[-1]:
            after = _merged(after[text], moves)
    return valid


def _merged(pages: Iterable[Page], moves: Moves[Page]) -> dict[str, set[Page]]:
    """The pages after each move from any of the given ones."""
    after: dict[str, set[Page]] = {}
    for page in pages:
        for text, next_page in moves(page):
            after.setdefault(text, set()).add(next_page)
    return after


def walk(
    start: Page, moves: Moves[Page], choose: Choice[Page]
) -> Iterator[tuple[str, Page]]:
    """The moves that are chosen, until none is left: each with the page after it."""
    page = start
    while options := list(moves(page)):
        text, page = choose(options)
        yield text, page


def first(options: list[tuple[str, Page]]) -> tuple[str, Page]:
    """Choose the first move: where moves come in a strategy's order, its own."""
    return options[0]


def followed(
    written: list[str], expected: Mapping[str, Iterable[str]], choice: Callable[[str], str]
) -> str | None:
    """The one strategy whose steps share the longest opening with those written, else None.

    Args:
      written: the trace's steps.
      expected: each strategy's steps.
      choice: what is compared of a step: what it does, without its result. A wrong result is a
        wrong calculation, not another strategy.
    """
    shared = {}
    for strategy, steps in expected.items():
        same = (choice(text) == choice(step) for text, step in zip(written, steps))
        shared[strategy] = sum(itertools.takewhile(bool, same))
    return longest_opening(shared)
