"""Prompt programs that go on from what the model has said: choose, decompose, refine.

    solved = universal_self_consistency(complete, questions, num_samples=8, max_new_tokens=256)
    solved = least_to_most(complete, questions, exemplars, max_new_tokens=256)
    solved = self_refine(complete, questions, score, max_new_tokens=256)

What they return, and what they ask with, is that of `reasoning.sampling.prompting`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from reasoning.sampling.interviews import Complete, Interview, Solution, Solved
from reasoning.sampling.prompting import (
    CLOSE,
    Exemplar,
    Extract,
    Prompt,
    solve_prompt,
    stated_answer,
)

# (questions, answers) -> a number for each, higher is better: a verifier, a heuristic, a log-prob
Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


# Universal self-consistency


def universal_self_consistency(
    complete: Complete,
    questions: Sequence[str],
    *,
    num_samples: int = 8,
    max_new_tokens: int,
    max_choice_tokens: int = 32,
    temperature: float = 0.7,
    prompt: Prompt = solve_prompt,
    extract: Extract = str.strip,
) -> Solved:
    """Universal self-consistency (2311.17311): the model chooses among its own responses.

    Two calls: samples, then the greedy choice of the most consistent one, which needs no answers
    that can be compared. A choice that names no response, one that there is not, or two of them
    falls back on the first response, and is reported.

    Args:
      num_samples: responses to choose from; 8 in the paper, where 16 are chosen from less well.
      temperature: of the responses; 0.6 and 1.0 in the paper.
      prompt: how a question is asked.
      extract: finds the answer in the chosen response; by default it is the response.

    Raises:
      ValueError: there are no questions, or fewer than two responses to choose from.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples={num_samples}: must be at least 2, to choose from.")
    interview = Interview(complete, len(questions))
    responses = interview.sample(
        "responses", [prompt(question) for question in questions],
        num_samples=num_samples, max_new_tokens=max_new_tokens, temperature=temperature,
    )
    said = interview.ask(
        "choice", [_choice_prompt(*asked) for asked in zip(questions, responses)],
        max_new_tokens=max_choice_tokens, temperature=0.0,
    )
    choices = [chosen_response(text, num_samples) for text in said]
    return interview.solved(
        [extract(texts[choice or 0]) for texts, choice in zip(responses, choices)],
        [
            "no response was chosen: the first was taken" if choice is None else None
            for choice in choices
        ],
    )


def _choice_prompt(question: str, responses: Sequence[str]) -> str:
    listed = [f"Response {i}: {text.strip()}" for i, text in enumerate(responses)]
    return "\n\n".join([
        f"Question: {question}",
        f"These {len(listed)} responses were given to it.",
        *listed,
        "Select the most consistent response based on majority consensus. "  # the paper's words
        'Begin with "The most consistent response is Response", followed by its number.',
    ])


def chosen_response(text: str, num_responses: int) -> int | None:
    """The number in "the most consistent response is Response 3", in 0..num_responses-1.

    None if the text does not say so, names different ones, or one that there is not.
    """
    pattern = r"\bmost consistent response is Response ([0-9]{1,4})\b"
    named = {int(number) for number in re.findall(pattern, text, re.IGNORECASE)}
    return named.pop() if len(named) == 1 and max(named) < num_responses else None


# Least to most


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """A question solved by way of simpler ones.

    Attributes:
      steps: the sub-questions in order, each answered from those before it; the last is the
        question itself.

    Raises:
      ValueError: the last step asks another question.
    """

    question: str
    steps: tuple[Exemplar, ...]

    def __post_init__(self) -> None:
        if not self.steps or self.steps[-1].question != self.question:
            raise ValueError(
                f"steps of {self.question!r}: the last one must ask this very question."
            )


def least_to_most(
    complete: Complete,
    questions: Sequence[str],
    exemplars: Sequence[Decomposition],
    *,
    max_new_tokens: int,
    max_list_tokens: int = 256,
    max_subquestions: int = 16,
    temperature: float = 0.0,
    extract: Extract = stated_answer,
) -> Solved:
    """Least-to-most prompting (2205.10625): list simpler questions, then answer them in order.

    One call lists the sub-questions of all questions, and one call answers the i-th of each, with
    those before it and their answers in the prompt. A list that `read_subquestions` cannot read
    leaves the question alone, and is reported.

    Args:
      exemplars: shown before each question, in both stages.
      max_new_tokens, max_list_tokens: of an answer and of the list.
      max_subquestions: a longer list is not followed.
      extract: finds the answer in the last completion.

    Raises:
      ValueError: there are no questions.
    """
    interview = Interview(complete, len(questions))
    said = interview.ask(
        "sub-questions", [_list_prompt(exemplars, question) for question in questions],
        max_new_tokens=max_list_tokens, temperature=temperature, stop=("\nProblem:",),
    )
    read = [
        read_subquestions(text, question, max_subquestions)
        for text, question in zip(said, questions)
    ]
    steps = [subquestions or [question] for subquestions, question in zip(read, questions)]
    pairs: list[list[str]] = [[] for _ in questions]
    answers = [""] * len(questions)
    for i in range(max(map(len, steps))):
        active = [p for p, asked in enumerate(steps) if i < len(asked)]
        said = interview.ask(
            f"sub-question {i + 1}",
            [_step_prompt(exemplars, questions[p], pairs[p], steps[p][i]) for p in active],
            about=active, max_new_tokens=max_new_tokens, temperature=temperature,
            stop=("\nQ:", "\nProblem:"),
        )
        for p, text in zip(active, said):
            answers[p] = text.strip()
            pairs[p].append(f"Q: {steps[p][i]}\nA: {answers[p]}")
    unread = "no list of sub-questions was found: the question was asked alone"
    return interview.solved(
        [extract(answer) for answer in answers], [None if found else unread for found in read]
    )


def _list_prompt(exemplars: Sequence[Decomposition], question: str) -> str:
    shown = [
        "\n".join([
            f"Problem: {shown.question}\nSub-questions:",
            *(f"{i}. {step.question}" for i, step in enumerate(shown.steps, 1)),
        ])
        for shown in exemplars
    ]
    return "\n\n".join([
        "Break each problem down into a numbered list of sub-questions, one a line, each of which "
        "can be answered from those before it. The last is the question that the problem asks.",
        *shown,
        f"Problem: {question}\nSub-questions:",
    ])


def _step_prompt(
    exemplars: Sequence[Decomposition], question: str, pairs: Sequence[str], subquestion: str
) -> str:
    shown = [
        "\n\n".join([f"Problem: {shown.question}", *map(str, shown.steps)]) for shown in exemplars
    ]
    return "\n\n".join([*shown, f"Problem: {question}", *pairs, f"Q: {subquestion}\nA:"])


def read_subquestions(text: str, question: str, most: int) -> list[str] | None:
    """The sub-questions of a numbered list, of which the last is the question itself.

    Blank lines, and all before the first number, are passed over; from there every line must be
    `1. ...`, `2. ...` and so on. The question is added where the list does not end with it.

    Returns:
      None if there is no such list, or it has more than `most` sub-questions.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    items = [re.fullmatch(r"([0-9]{1,4})[.)]\s+(\S.*)", line) for line in lines]
    while items and items[0] is None:
        items.pop(0)
    numbers = [item and int(item[1]) for item in items]
    if not items or numbers != list(range(1, len(items) + 1)):
        return None
    listed = [item[2] for item in items if item]
    if _bare(listed[-1]) == _bare(question):
        listed.pop()
    return [*listed, question] if len(listed) < most else None


def _bare(text: str) -> str:
    return " ".join(text.casefold().split())


# Self-refinement


@dataclasses.dataclass(frozen=True)
class Refinement(Solution):
    """A solution and how it came about.

    Attributes:
      scores: of the draft, and of each revision.
      accepted: of each revision, whether it took the place of the answer before it.
    """

    scores: tuple[float, ...] = ()
    accepted: tuple[bool, ...] = ()


def self_refine(
    complete: Complete,
    questions: Sequence[str],
    score: Score,
    *,
    max_rounds: int = 2,
    max_new_tokens: int,
    max_critique_tokens: int = 256,
    temperature: float = 0.0,
    prompt: Prompt = solve_prompt,
    extract: Extract = stated_answer,
) -> Solved:
    """Self-refinement (2303.17651): draft, then rounds of critique and revision.

    A revision is accepted if its score is not lower than that of the answer it would replace, so
    the score never falls, and equal scores let it go on changing. A question is settled when its
    revision repeats the answer, or, at temperature 0, is not accepted: the next round would ask
    the same and be told the same. Two calls a round, for all questions that are not settled.

    Args:
      score: `(questions, answers) -> scores`, of as many of the questions as are not settled. An
        answer is the whole text. A constant accepts every revision.
      max_rounds: 0 keeps the draft. A weak model's answers become worse with more rounds.
      max_new_tokens, max_critique_tokens: of an answer and of a critique.
      prompt: how a question is asked for the draft.
      extract: finds the final answer in the answer that was kept.

    Returns:
      Solutions that are `Refinement`s.

    Raises:
      ValueError: there are no questions, fewer than 0 rounds, or a score is missing or NaN.
    """
    if max_rounds < 0:
        raise ValueError(f"max_rounds={max_rounds}: must be 0 or more.")
    interview = Interview(complete, len(questions))
    kept = interview.ask(
        "draft", [prompt(question) for question in questions],
        max_new_tokens=max_new_tokens, temperature=temperature,
    )
    scores = [[value] for value in _scores(score, questions, kept)]
    accepted: list[list[bool]] = [[] for _ in questions]
    active = list(range(len(questions)))
    for _ in range(max_rounds):
        if not active:
            break
        critiques = interview.ask(
            "critique", [_critique_prompt(questions[p], kept[p]) for p in active],
            about=active, max_new_tokens=max_critique_tokens, temperature=temperature,
        )
        revisions = interview.ask(
            "revision",
            [_revision_prompt(questions[p], kept[p], said) for p, said in zip(active, critiques)],
            about=active, max_new_tokens=max_new_tokens, temperature=temperature,
        )
        values = _scores(score, [questions[p] for p in active], revisions)
        settled = set()
        for p, revision, value in zip(active, revisions, values):
            accepted[p].append(value >= max(scores[p]))
            scores[p].append(value)
            if revision == kept[p] or not (accepted[p][-1] or temperature > 0):
                settled.add(p)
            if accepted[p][-1]:
                kept[p] = revision
        active = [p for p in active if p not in settled]
    solved = interview.solved([extract(text) for text in kept])
    refined = [
        Refinement(solution.answer, solution.transcript, None, tuple(values), tuple(accepts))
        for solution, values, accepts in zip(solved.solutions, scores, accepted)
    ]
    return dataclasses.replace(solved, solutions=tuple(refined))


def _scores(score: Score, questions: Sequence[str], answers: Sequence[str]) -> list[float]:
    values = [float(value) for value in score(questions, answers)]
    if len(values) != len(answers) or any(map(math.isnan, values)):
        raise ValueError(
            f"score: gave {values} for {len(answers)} answers; it must give a number for each."
        )
    return values


def _critique_prompt(question: str, answer: str) -> str:
    return (
        f"Question: {question}\n\nAnswer:\n{answer.strip()}\n\n"
        "Review this answer: check each step, name every error and say how to mend it, or say that "
        "there is none. Do not answer anew."
    )


def _revision_prompt(question: str, answer: str, critique: str) -> str:
    return (
        f"Question: {question}\n\nAnswer:\n{answer.strip()}\n\nReview:\n{critique.strip()}\n\n"
        f"Write the answer again, with what the review found mended. {CLOSE}"
    )
