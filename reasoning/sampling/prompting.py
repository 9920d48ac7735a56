"""Prompt programs for text models: one or two calls, an answer for each question.

    solved = zero_shot(complete, questions, max_new_tokens=256)
    solved.answers                     # ["8", None, ...]: None where no answer was found
    solved.solutions[0].transcript     # every prompt and what was said to it
    solved.num_calls                   # 2, however many questions there are

A program is a function of questions and of `complete` (`reasoning.sampling.interviews`), which a
policy becomes by `text_completer` (`reasoning.sampling.completers`).
Programs that ask about answers are in `reasoning.sampling.refinement`.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

from reasoning.sampling.interviews import Complete, Interview, Solved

STEP_BY_STEP = "Let's think step by step."  # 2205.11916, section 3
ELICIT = "Therefore, the answer (arabic numerals) is"  # 2205.11916, section 3
CLOSE = 'Close with "The answer is", the answer and a full stop.'
NEXT_QUESTION = ("\nQ:",)  # where a model goes on with a question of its own
SOLUTION = "# Solution"

Extract = Callable[[str], str | None]  # the answer in a completion, None if there is none
Prompt = Callable[[str], str]  # how a question is asked


# Reading answers


def stated_answer(text: str) -> str | None:
    """What follows the last "the answer is", to the end of its sentence or line.

    The sentence ends at a full stop before white space or the end, so that 3.14 stays whole.
    """
    _, *stated = re.split(r"\bthe answer is\b:?", text, flags=re.IGNORECASE)
    if not stated:
        return None
    line = stated[-1].partition("\n")[0]
    return re.split(r"\.(?:\s|$)", line)[0].strip() or None


def first_number(text: str) -> str | None:
    """The first number in the text, without separators of thousands (2205.11916)."""
    found = re.search(r"-?[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?", text)
    return found[0].replace(",", "") if found else None


# Chain of thought


@dataclasses.dataclass(frozen=True)
class Exemplar:
    """A question with its solution.

    Attributes:
      reasoning: the steps to the answer; "" shows the answer alone.
      answer: without a full stop.
    """

    question: str
    reasoning: str
    answer: str

    def __str__(self) -> str:
        reasoning = f"{self.reasoning} " if self.reasoning else ""
        return f"Q: {self.question}\nA: {reasoning}The answer is {self.answer}."


def few_shot_prompt(exemplars: Sequence[Exemplar], question: str) -> str:
    """The exemplars, then the question; without exemplars it is the question alone."""
    return "\n\n".join([*map(str, exemplars), f"Q: {question}\nA:"])


def step_by_step_prompt(question: str) -> str:
    """The question and the words that begin a chain of thought (2205.11916)."""
    return f"Q: {question}\nA: {STEP_BY_STEP}"


def solve_prompt(question: str) -> str:
    """The question and the instruction to solve it in steps."""
    return f"{question}\n\nSolve this step by step. {CLOSE}"


def few_shot(
    complete: Complete,
    questions: Sequence[str],
    exemplars: Sequence[Exemplar],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    extract: Extract = stated_answer,
) -> Solved:
    """Few-shot chain of thought (2201.11903): one call.

    Exemplars without reasoning make it standard few-shot prompting, none at all zero-shot.

    Args:
      exemplars: shown before each question; 8 in the paper.
      extract: finds the answer in the completion.

    Raises:
      ValueError: there are no questions.
    """
    interview = Interview(complete, len(questions))
    said = interview.ask(
        "solution", [few_shot_prompt(exemplars, question) for question in questions],
        max_new_tokens=max_new_tokens, temperature=temperature, stop=NEXT_QUESTION,
    )
    return interview.solved([extract(text) for text in said])


def zero_shot(
    complete: Complete,
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    max_answer_tokens: int = 32,
    temperature: float = 0.0,
    elicit: str = ELICIT,
    extract: Extract = first_number,
) -> Solved:
    """Zero-shot chain of thought (2205.11916): the reasoning, then the answer from it; two calls.

    Args:
      max_new_tokens, max_answer_tokens: of the two passes.
      elicit: what the answer is to follow; the paper has one for each kind of answer.
      extract: finds the answer in the second pass's completion.

    Raises:
      ValueError: there are no questions.
    """
    interview = Interview(complete, len(questions))
    prompts = [step_by_step_prompt(question) for question in questions]
    thoughts = interview.ask(
        "reasoning", prompts,
        max_new_tokens=max_new_tokens, temperature=temperature, stop=NEXT_QUESTION,
    )
    said = interview.ask(
        "answer",
        [f"{prompt} {thought.strip()}\n{elicit}" for prompt, thought in zip(prompts, thoughts)],
        max_new_tokens=max_answer_tokens, temperature=temperature, stop=NEXT_QUESTION,
    )
    return interview.solved([extract(text) for text in said])


# Recalling first


def analogical(
    complete: Complete,
    questions: Sequence[str],
    *,
    num_recalled: int = 3,
    max_new_tokens: int,
    temperature: float = 0.0,
    extract: Extract = stated_answer,
) -> Solved:
    """Analogical prompting (2310.01714): the model writes its own exemplars, then solves; one call.

    The answer is looked for after the last heading `# Solution`, so that it is none of a recalled
    problem. Where a completion has no such heading it is looked for in all of it, and reported.

    Args:
      num_recalled: how many problems it is to recall; 5 on GSM8K in the paper, else 3.
      extract: finds the answer in the completion's solution.

    Raises:
      ValueError: there are no questions, or fewer than one problem to recall.
    """
    if num_recalled < 1:
        raise ValueError(f"num_recalled={num_recalled}: must be at least 1.")
    interview = Interview(complete, len(questions))
    said = interview.ask(
        "solution", [_analogical_prompt(question, num_recalled) for question in questions],
        max_new_tokens=max_new_tokens, temperature=temperature,
    )
    missing = f"no heading {SOLUTION!r}: the answer was looked for in the whole completion"
    return interview.solved(
        [extract(text.rpartition(SOLUTION)[2]) for text in said],
        [None if SOLUTION in text else missing for text in said],
    )


def _analogical_prompt(question: str, num_recalled: int) -> str:
    return (
        f"# Problem\n{question}\n\nAnswer under these two headings.\n\n"
        f"# Relevant problems\nRecall problems that are relevant to this one, {num_recalled} in "
        "number and distinct from each other. State each and solve it.\n\n"
        f"{SOLUTION}\nThen solve the problem at the top step by step. {CLOSE}"
    )


def step_back(
    complete: Complete,
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    max_principle_tokens: int = 256,
    temperature: float = 0.0,
    extract: Extract = stated_answer,
) -> Solved:
    """Step-back prompting (2310.06117): the principle first, then the question; two calls.

    Args:
      max_new_tokens, max_principle_tokens: of the solution and of the principle.
      extract: finds the answer in the solution.

    Raises:
      ValueError: there are no questions.
    """
    interview = Interview(complete, len(questions))
    principles = interview.ask(
        "principle", [_principle_prompt(question) for question in questions],
        max_new_tokens=max_principle_tokens, temperature=temperature,
    )
    said = interview.ask(
        "solution",
        [
            f"Principle: {principle.strip()}\n\nQuestion: {question}\n\n"
            f"Answer the question step by step from the principle. {CLOSE}"
            for question, principle in zip(questions, principles)
        ],
        max_new_tokens=max_new_tokens, temperature=temperature,
    )
    return interview.solved([extract(text) for text in said])


def _principle_prompt(question: str) -> str:
    return (
        f"Question: {question}\n\nTake a step back before answering. Which general principle, fact "
        "or rule is this question about? State it, and do not answer the question yet."
    )
