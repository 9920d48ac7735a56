"""Prompt programs of one or two calls: exact prompts, and which text the answer is read from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Script

from reasoning.sampling.prompting import (
    Exemplar,
    analogical,
    few_shot,
    few_shot_prompt,
    first_number,
    solve_prompt,
    stated_answer,
    step_back,
    zero_shot,
)

# Last-letter concatenation, on which standard prompting fails (2201.11903).
LETTERS = Exemplar(
    "Take the last letters of the words in 'green tea' and concatenate them.",
    "The last letter of 'green' is 'n'. The last letter of 'tea' is 'a'. Together they are 'na'.",
    "na",
)
QUESTIONS = ["How many legs have 2 cats?", "What is 7 * 5?"]


def names(solved):
    return [[step.name for step in solution.transcript] for solution in solved.solutions]


# Reading answers


@pytest.mark.parametrize(
    "text, answer",
    [
        ("So 2 * 4 = 8. The answer is 8.", "8"),
        ("The answer is 3.14.", "3.14"),
        ("the answer is: na\nQ: next", "na"),
        ("The answer is 5. The answer is 6. That is all.", "6"),
        ("The answer is 18", "18"),
        ("The answer is 5. The answer is", None),
        ("The answer is\n18", None),
        ("The answer is .", None),
        ("The answer is ", None),
        ("The answer isn't known", None),
        ("Breathe answer is 8.", None),
        ("8", None),
        ("", None),
    ],
)
def test_stated_answer(text, answer):
    assert stated_answer(text) == answer


@given(
    st.text("abc 019,-$.", min_size=1).map(str.strip).filter(
        lambda text: text and not text.startswith(".") and not text.endswith(".")
        and ". " not in text
    )
)
def test_the_answer_of_an_exemplar_is_read_again(answer):
    assert stated_answer(str(Exemplar("?", "Because.", answer))) == answer
    assert stated_answer(str(Exemplar("?", "", answer))) == answer


@pytest.mark.parametrize(
    "text, number",
    [
        (" 8.", "8"),
        ("$1,080.50 and 7", "1080.50"),
        ("5,6", "5"),
        ("12,3456", "12"),
        ("about -3 or 4", "-3"),
        ("eight", None),
        ("", None),
    ],
)
def test_first_number(text, number):
    assert first_number(text) == number


# Chain of thought


def test_few_shot_prompt_to_the_letter():
    assert few_shot_prompt([LETTERS, Exemplar("2 + 2?", "", "4")], "3 + 4?") == (
        "Q: Take the last letters of the words in 'green tea' and concatenate them.\n"
        "A: The last letter of 'green' is 'n'. The last letter of 'tea' is 'a'. "
        "Together they are 'na'. The answer is na.\n\n"
        "Q: 2 + 2?\nA: The answer is 4.\n\n"
        "Q: 3 + 4?\nA:"
    )
    assert few_shot_prompt([], "3 + 4?") == "Q: 3 + 4?\nA:"


def test_few_shot_is_one_call_for_all_questions():
    said = [" 2 * 4 = 8. The answer is 8.", " 35"]
    script = Script([said])
    solved = few_shot(script, QUESTIONS, [LETTERS], max_new_tokens=9)
    assert script.prompts == [[few_shot_prompt([LETTERS], question) for question in QUESTIONS]]
    (call,) = script.calls
    assert (call.max_new_tokens, call.temperature, call.stop) == (9, 0.0, ("\nQ:",))
    assert solved.answers == ["8", None] and solved.num_calls == 1
    numbered = few_shot(Script([said]), QUESTIONS, [], max_new_tokens=9, extract=first_number)
    assert numbered.answers == ["2", "35"]


def test_zero_shot_reads_the_answer_from_the_second_pass():
    script = Script([[" 2 * 4 is 8.\n", " 7 times 5."], [" 8 legs, not 9.", " unknown"]])
    solved = zero_shot(script, QUESTIONS, max_new_tokens=9, max_answer_tokens=4)
    asked = [f"Q: {question}\nA: Let's think step by step." for question in QUESTIONS]
    then = "\nTherefore, the answer (arabic numerals) is"
    assert script.prompts == [
        asked, [f"{asked[0]} 2 * 4 is 8.{then}", f"{asked[1]} 7 times 5.{then}"]
    ]
    assert [call.max_new_tokens for call in script.calls] == [9, 4]
    assert solved.answers == ["8", None] and solved.num_calls == 2
    assert names(solved) == [["reasoning", "answer"]] * 2
    assert solved.solutions[0].transcript[1].completions == (" 8 legs, not 9.",)
    assert solved.solutions[0].transcript[1].prompt == script.prompts[1][0]


def test_zero_shot_for_other_kinds_of_answers():
    script = Script([["r"], [" (B)"]])
    solved = zero_shot(
        script, ["?"], max_new_tokens=9, elicit="So it is", extract=str.strip, temperature=0.3
    )
    assert script.prompts[1] == ["Q: ?\nA: Let's think step by step. r\nSo it is"]
    assert solved.answers == ["(B)"] and [call.temperature for call in script.calls] == [0.3] * 2


# Recalling first


def test_analogical_answer_is_not_that_of_a_recalled_problem():
    recalled = "# Relevant problems\n3 dogs have 12 legs. The answer is 12.\n"
    script = Script([[
        recalled + "# Solution\n2 * 4 = 8. The answer is 8.",
        recalled + "# Solution\nI do not kn",
        recalled,
    ]])
    solved = analogical(script, [*QUESTIONS, "?"], num_recalled=2, max_new_tokens=9)
    assert script.prompts[0][0] == (
        "# Problem\nHow many legs have 2 cats?\n\nAnswer under these two headings.\n\n"
        "# Relevant problems\nRecall problems that are relevant to this one, 2 in number and "
        "distinct from each other. State each and solve it.\n\n"
        "# Solution\nThen solve the problem at the top step by step. "
        'Close with "The answer is", the answer and a full stop.'
    )
    assert solved.answers == ["8", None, "12"] and solved.num_calls == 1
    fallbacks = [solution.fallback for solution in solved.solutions]
    assert fallbacks[:2] == [None, None]
    assert fallbacks[2] == (
        "no heading '# Solution': the answer was looked for in the whole completion"
    )
    with pytest.raises(ValueError, match=r"^num_recalled=0: must be at least 1"):
        analogical(script, QUESTIONS, num_recalled=0, max_new_tokens=9)


def test_step_back_carries_the_principle_into_the_solution():
    script = Script([[" Cats have 4 legs. ", "Products."], ["8. The answer is 8.", "35"]])
    solved = step_back(script, QUESTIONS, max_new_tokens=9, max_principle_tokens=5)
    assert script.prompts[0][1] == (
        "Question: What is 7 * 5?\n\nTake a step back before answering. Which general principle, "
        "fact or rule is this question about? State it, and do not answer the question yet."
    )
    assert script.prompts[1][0] == (
        "Principle: Cats have 4 legs.\n\nQuestion: How many legs have 2 cats?\n\nAnswer the "
        "question step by step from the principle. "
        'Close with "The answer is", the answer and a full stop.'
    )
    assert [call.max_new_tokens for call in script.calls] == [5, 9]
    assert solved.answers == ["8", None] and solved.num_calls == 2
    assert names(solved) == [["principle", "solution"]] * 2


def test_solve_prompt_to_the_letter():
    assert solve_prompt("7 * 5?") == (
        "7 * 5?\n\nSolve this step by step. "
        'Close with "The answer is", the answer and a full stop.'
    )


# Every program


@pytest.mark.parametrize(
    "program",
    [
        lambda *args: few_shot(*args, [LETTERS], max_new_tokens=9),
        lambda *args: zero_shot(*args, max_new_tokens=9),
        lambda *args: analogical(*args, max_new_tokens=9),
        lambda *args: step_back(*args, max_new_tokens=9),
    ],
)
def test_questions_do_not_meet(program):
    """Each question alone has the same transcript as among others, and none is refused."""

    def echo(prompt, _):
        return f"{len(prompt)} # Solution The answer is {prompt[::7]}"

    together = program(Script(echo), QUESTIONS)
    for question, solution in zip(QUESTIONS, together.solutions, strict=True):
        alone = program(Script(echo), [question])
        assert alone.solutions == (solution,) and alone.num_calls == together.num_calls
    with pytest.raises(ValueError, match=r"^questions=\(\)"):
        program(Script(echo), [])
