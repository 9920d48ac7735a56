"""Programs that go on from what was said: prompts, calls, what is accepted and reported."""

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Script

from reasoning.sampling.interviews import Pass
from reasoning.sampling.prompting import Exemplar, few_shot, solve_prompt, stated_answer
from reasoning.sampling.refinement import (
    Decomposition,
    chosen_response,
    least_to_most,
    read_subquestions,
    self_refine,
    universal_self_consistency,
)

QUESTIONS = ["How many legs have 2 cats?", "What is 7 * 5?"]


def fallbacks(solved):
    return [solution.fallback for solution in solved.solutions]


# Universal self-consistency


def test_the_chosen_response_is_the_answer():
    script = Script([
        [[" eight ", "Eight.", "9"], ["35", "36", "35!"]],
        ["The most consistent response is Response 1.", "Response 1, clearly"],
    ])
    solved = universal_self_consistency(
        script, QUESTIONS, num_samples=3, max_new_tokens=9, max_choice_tokens=5, temperature=0.6
    )
    responses, choice = script.calls
    assert responses.prompts == [solve_prompt(question) for question in QUESTIONS]
    assert (responses.num_samples, responses.max_new_tokens, responses.temperature) == (3, 9, 0.6)
    assert (choice.num_samples, choice.max_new_tokens, choice.temperature) == (1, 5, 0.0)
    assert choice.prompts[0] == (
        "Question: How many legs have 2 cats?\n\nThese 3 responses were given to it.\n\n"
        "Response 0: eight\n\nResponse 1: Eight.\n\nResponse 2: 9\n\n"
        "Select the most consistent response based on majority consensus. "
        'Begin with "The most consistent response is Response", followed by its number.'
    )
    assert solved.answers == ["Eight.", "35"] and solved.num_calls == 2
    assert fallbacks(solved) == [None, "no response was chosen: the first was taken"]
    assert solved.solutions[0].transcript[0] == Pass(
        "responses", solve_prompt(QUESTIONS[0]), (" eight ", "Eight.", "9")
    )


def test_the_choice_decides_and_not_the_vote():
    said = ["The answer is 1.", "The answer is 1.", "The answer is 2."]
    script = Script([[said], ["The most consistent response is Response 2"]])
    solved = universal_self_consistency(
        script, ["?"], num_samples=3, max_new_tokens=9, prompt="Ask: {}".format,
        extract=stated_answer,
    )
    assert script.prompts[0] == ["Ask: ?"] and solved.answers == ["2"]


@pytest.mark.parametrize(
    "text, chosen",
    [
        ("The most consistent response is Response 0.", 0),
        ("the most consistent response is response 2, as", 2),
        ("The most consistent response is Response 3", None),
        ("The most consistent response is Response 9" + "9" * 5000, None),
        ("The most consistent response is Response -1", None),
        ("The most consistent response is Response", None),
        ("The most consistent response is Response 1. No: "
         "the most consistent response is Response 2.", None),
        ("The most consistent response is Response 1. Yes, "
         "the most consistent response is Response 1.", 1),
        ("Response 1", None),
        ("", None),
    ],
)
def test_chosen_response_of_three(text, chosen):
    assert chosen_response(text, 3) == chosen


def test_one_response_is_no_choice():
    with pytest.raises(ValueError, match=r"^num_samples=1: must be at least 2"):
        universal_self_consistency(Script([]), QUESTIONS, num_samples=1, max_new_tokens=9)


# Least to most

ASK = "Concatenate the last letters of: "
GREEN_TEA = Decomposition(
    f"{ASK}green tea cup",
    (
        Exemplar(f"{ASK}green tea", "'green' ends in 'n' and 'tea' in 'a'.", "na"),
        Exemplar(f"{ASK}green tea cup", "'green tea' gives 'na' and 'cup' ends in 'p'.", "nap"),
    ),
)


def two_at_a_time(prompt, _):
    """A model that joins two things: two words, or the answer of a question before and a word."""
    *_, problem = prompt.split("Problem: ")
    if prompt.endswith("Sub-questions:"):
        words = problem.partition(ASK)[2].partition("\n")[0].split()
        prefixes = [" ".join(words[: n + 1]) for n in range(1, len(words))]
        return "\n" + "\n".join(f"{i}. {ASK}{prefix}" for i, prefix in enumerate(prefixes, 1))
    *before, asked = [question.split("\nA:") for question in problem.split("Q: ")[1:]]
    known = {question: stated_answer(answer) for question, answer in before}
    words = asked[0].removeprefix(ASK).split()
    start = known.get(ASK + " ".join(words[:-1]))
    if start is None:
        return f" The answer is {''.join(word[-1] for word in words[:2])}.\n"
    return f" {start} and {words[-1][-1]}. The answer is {start}{words[-1][-1]}.\n"


@given(st.lists(st.lists(st.text("abcde", min_size=1, max_size=4), min_size=1, max_size=9),
                min_size=1, max_size=4))
def test_least_to_most_solves_what_two_steps_at_a_time_can(wordlists):
    """Last-letter concatenation: any length from exemplars of three words (2205.10625)."""
    questions = [ASK + " ".join(words) for words in wordlists]
    letters = ["".join(word[-1] for word in words) for words in wordlists]
    solved = least_to_most(Script(two_at_a_time), questions, [GREEN_TEA], max_new_tokens=9)
    assert solved.answers == letters
    longest = max(map(len, wordlists))
    assert solved.num_calls == 1 + max(longest - 1, 1), "the i-th of all questions in one call"
    at_once = few_shot(Script(two_at_a_time), questions, GREEN_TEA.steps, max_new_tokens=9)
    assert at_once.answers == [answer[:2] for answer in letters]


def test_least_to_most_prompts_to_the_letter():
    questions = [f"{ASK}no way out", f"{ASK}yes sir"]
    script = Script(two_at_a_time)
    solved = least_to_most(
        script, questions, [GREEN_TEA], max_new_tokens=9, max_list_tokens=7, temperature=0.2
    )
    first, second, third = script.calls
    assert first.prompts[0] == (
        "Break each problem down into a numbered list of sub-questions, one a line, each of which "
        "can be answered from those before it. The last is the question that the problem asks.\n\n"
        f"Problem: {ASK}green tea cup\nSub-questions:\n"
        f"1. {ASK}green tea\n2. {ASK}green tea cup\n\n"
        f"Problem: {ASK}no way out\nSub-questions:"
    )
    shown = (
        f"Problem: {ASK}green tea cup\n\n"
        f"Q: {ASK}green tea\nA: 'green' ends in 'n' and 'tea' in 'a'. The answer is na.\n\n"
        f"Q: {ASK}green tea cup\n"
        "A: 'green tea' gives 'na' and 'cup' ends in 'p'. The answer is nap.\n\n"
    )
    assert second.prompts == [
        f"{shown}Problem: {ASK}no way out\n\nQ: {ASK}no way\nA:",
        f"{shown}Problem: {ASK}yes sir\n\nQ: {ASK}yes sir\nA:",
    ]
    assert third.prompts == [
        f"{shown}Problem: {ASK}no way out\n\nQ: {ASK}no way\nA: The answer is oy.\n\n"
        f"Q: {ASK}no way out\nA:"
    ]
    assert [call.max_new_tokens for call in script.calls] == [7, 9, 9]
    assert [call.stop for call in script.calls] == [
        ("\nProblem:",), *[("\nQ:", "\nProblem:")] * 2
    ]
    assert {call.temperature for call in script.calls} == {0.2}
    assert solved.answers == ["oyt", "sr"]
    assert [[step.name for step in solution.transcript] for solution in solved.solutions] == [
        ["sub-questions", "sub-question 1", "sub-question 2"],
        ["sub-questions", "sub-question 1"],
    ]


def test_a_question_that_is_not_decomposed_is_asked_alone_and_reported():
    script = Script([
        ["I do not know.", "1. How many legs has 1 cat?"],
        ["The answer is 5.", "It has 4."],
        ["The answer is 8."],
    ])
    solved = least_to_most(script, QUESTIONS[::-1], [], max_new_tokens=9)
    assert script.prompts[1:] == [
        [
            "Problem: What is 7 * 5?\n\nQ: What is 7 * 5?\nA:",
            "Problem: How many legs have 2 cats?\n\nQ: How many legs has 1 cat?\nA:",
        ],
        [
            "Problem: How many legs have 2 cats?\n\nQ: How many legs has 1 cat?\nA: It has 4.\n\n"
            "Q: How many legs have 2 cats?\nA:"
        ],
    ]
    assert solved.answers == ["5", "8"] and solved.num_calls == 3
    assert fallbacks(solved) == [
        "no list of sub-questions was found: the question was asked alone", None
    ]


@pytest.mark.parametrize(
    "text, subquestions",
    [
        ("1. a?\n2. b?\n3. q?", ["a?", "b?", "q?"]),
        ("1. a?\n2. b?", ["a?", "b?", "q?"]),
        ("\nThese are they:\n\n 1) a?\n\n 2)  Q?  ", ["a?", "q?"]),
        ("1. q?", ["q?"]),
        ("1. a?\n2. b?\n3. c?\n4. q?", ["a?", "b?", "c?", "q?"]),
        ("1. a?\n2. b?\n3. c?\n4. d?", None),  # five with the question
        ("1. a?\n3. b?", None),
        ("2. a?\n3. b?", None),
        ("0. a?\n1. b?", None),
        ("1. a?\nwhich is\n2. b?", None),
        ("1. a?\n2. b?\nI hope this helps.", None),
        ("1.\n2. b?", None),
        ("a?\nb?", None),
        ("", None),
    ],
)
def test_read_subquestions(text, subquestions):
    assert read_subquestions(text, "q?", most=4) == subquestions


def test_a_question_of_several_lines_ends_its_list():
    question = "Cats have\n4 legs.  How many have 2?"
    assert read_subquestions("1. Cats have 4 legs. How many have 2?", question, 4) == [question]


def test_an_exemplar_ends_in_its_question():
    for steps in ((), (Exemplar("b?", "", "1"),)):
        with pytest.raises(ValueError, match=r"^steps of 'a\?': the last one must ask this very"):
            Decomposition("a?", steps)


# Self-refinement


def number(questions, answers):
    """Scores an answer by the number in it."""
    assert len(questions) == len(answers)
    return [float(re.search(r"-?[0-9]+", answer)[0]) for answer in answers]


def refine(said, score=number, questions=("q?",), **settings):
    """`said` has the draft, then a critique and a revision a round, of one question."""
    script = Script([[text] if isinstance(text, str) else text for text in said])
    solved = self_refine(script, list(questions), score, max_new_tokens=9, **settings)
    return solved, script


def test_self_refinement_prompts_to_the_letter():
    solved, script = refine(
        [" 7 legs. ", " Cats have 4. ", "8 legs. The answer is 8."], max_rounds=1,
        max_critique_tokens=5, temperature=0.4, prompt="Ask: {}".format,
    )
    assert script.prompts == [
        ["Ask: q?"],
        [
            "Question: q?\n\nAnswer:\n7 legs.\n\nReview this answer: check each step, name every "
            "error and say how to mend it, or say that there is none. Do not answer anew."
        ],
        [
            "Question: q?\n\nAnswer:\n7 legs.\n\nReview:\nCats have 4.\n\nWrite the answer again, "
            "with what the review found mended. "
            'Close with "The answer is", the answer and a full stop.'
        ],
    ]
    assert [call.max_new_tokens for call in script.calls] == [9, 5, 9]
    assert [call.temperature for call in script.calls] == [0.4] * 3
    (solution,) = solved.solutions
    assert solution.answer == "8" and solved.num_calls == 3
    assert solution.scores == (7.0, 8.0) and solution.accepted == (True,)
    assert [step.name for step in solution.transcript] == ["draft", "critique", "revision"]


@pytest.mark.parametrize(
    "draft, revision, kept",
    [("2", "3", "3"), ("2", "1", "2"), ("2", "2 again", "2 again"), ("-1", "-2", "-1")],
)
def test_a_revision_is_accepted_if_its_score_is_not_lower(draft, revision, kept):
    solved, _ = refine([draft, "c", revision], max_rounds=1, extract=str.strip)
    (solution,) = solved.solutions
    assert solution.answer == kept and solution.accepted == (kept == revision,)


def test_the_next_round_starts_from_the_best_answer_so_far():
    said = ["3", "c1", "5", "c2", "4", "c3", "5 too"]
    solved, script = refine(said, max_rounds=3, temperature=0.7, extract=str.strip)
    (solution,) = solved.solutions
    assert solution.scores == (3, 5, 4, 5) and solution.accepted == (True, False, True)
    reviewed = [prompts[0].split("Answer:\n")[1][0] for prompts in script.prompts[1::2]]
    assert reviewed == ["3", "5", "5"], "4 was not accepted"
    assert solution.answer == "5 too"


def test_a_constant_score_accepts_every_revision():
    said = ["5", "c", "4", "c", "3"]
    solved, _ = refine(said, lambda _, answers: [0.0] * len(answers), extract=str.strip)
    assert solved.answers == ["3"] and solved.solutions[0].accepted == (True, True)


@pytest.mark.parametrize(
    "temperature, said, calls",
    [
        (0.0, ["3", "c", "3", "c", "9"], 3),  # it repeats itself
        (0.7, ["3", "c", "3", "c", "9"], 3),
        (0.0, ["3", "c", "2", "c", "9"], 3),  # greedy, it would say 2 again
        (0.7, ["3", "c", "2", "c", "9"], 5),  # another draw may be better
        (0.0, ["3", "c", "4", "c", "9"], 5),
    ],
)
def test_a_question_is_settled_when_nothing_changes(temperature, said, calls):
    solved, script = refine(said, max_rounds=2, temperature=temperature, extract=str.strip)
    assert solved.num_calls == len(script.calls) == calls
    assert solved.answers == ["9" if calls == 5 else "3"]


def test_settled_questions_are_not_asked_again_nor_scored():
    asked = []

    def score(questions, answers):
        asked.append(questions)
        return number(questions, answers)

    said = [["1", "2", "3"], ["c"] * 3, ["1", "3", "4"], ["d"] * 2, ["4", "4"], ["e"], ["7"]]
    solved, script = refine(
        said, score, "abc", max_rounds=3, prompt=str.upper, extract=str.strip
    )
    assert script.prompts[0] == ["A", "B", "C"]
    assert [len(prompts) for prompts in script.prompts] == [3, 3, 3, 2, 2, 1, 1]
    assert "Question: b" in script.prompts[5][0], "3 of b became 4, 4 of c stayed 4"
    assert asked == [["a", "b", "c"], ["a", "b", "c"], ["b", "c"], ["b"]]
    assert solved.answers == ["1", "7", "4"] and solved.num_calls == 7
    assert [s.scores for s in solved.solutions] == [(1, 1), (2, 3, 4, 7), (3, 4, 4)]


def test_no_round_keeps_the_draft():
    solved, _ = refine(["The answer is 3."], max_rounds=0)
    assert solved.answers == ["3"] and solved.num_calls == 1
    assert solved.solutions[0].scores == (3,) and solved.solutions[0].accepted == ()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_the_score_of_the_answer_never_falls(values):
    """Of answers that all differ, the last of the best is kept, wherever it came."""
    texts = [f"{value} at {i}" for i, value in enumerate(values)]
    said = [texts[0], *itertools.chain(*(("c", text) for text in texts[1:]))]
    solved, _ = refine(said, max_rounds=len(values) - 1, temperature=1.0, extract=str.strip)
    best = max(i for i, value in enumerate(values) if value == max(values))
    assert solved.answers == [texts[best]] and solved.solutions[0].scores == tuple(values)


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [math.nan]])
def test_scores_that_are_missing_or_no_number_are_refused(values):
    with pytest.raises(ValueError, match=r"^score: gave \[.*\] for 1 answers; it must give"):
        refine(["1"], lambda *_: values)


def test_negative_rounds_are_refused():
    with pytest.raises(ValueError, match=r"^max_rounds=-1: must be 0 or more"):
        refine([], max_rounds=-1)


@pytest.mark.parametrize(
    "program",
    [
        lambda *args: universal_self_consistency(*args, max_new_tokens=9),
        lambda *args: least_to_most(*args, [GREEN_TEA], max_new_tokens=9),
        lambda *args: self_refine(*args, number, max_new_tokens=9),
    ],
)
def test_questions_do_not_meet(program):
    """Each question alone has the same transcript as among others, and none is refused."""

    def say(prompt, sample):
        return "1. a\n2. b" if prompt.endswith("7 * 5?\nSub-questions:") else f"{len(prompt)}"

    together = program(Script(say), QUESTIONS)
    for question, solution in zip(QUESTIONS, together.solutions, strict=True):
        assert program(Script(say), [question]).solutions == (solution,)
    with pytest.raises(ValueError, match=r"^questions=\(\)"):
        program(Script(say), [])
