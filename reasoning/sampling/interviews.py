"""Asking a model about many questions at once, pass by pass, with a transcript of each.

    interview = Interview(complete, len(questions))
    drafts = interview.ask("draft", questions, max_new_tokens=256, temperature=0.0)
    solved = interview.solved([text.strip() for text in drafts])

Prompt programs (`reasoning.sampling.prompting`, `reasoning.sampling.refinement`) are made of this.
Each pass is one call of `complete`, which completes prompts: a policy
(`reasoning.sampling.completers`), or anything that keeps to the protocol.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol


class Complete(Protocol):
    """Completes every prompt several times.

    What is said to a prompt depends on the prompt and the arguments, not on the other prompts.
    """

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        call: int,
        num_samples: int,
        max_new_tokens: int,
        temperature: float,
        stop: Sequence[str],
    ) -> list[list[str]]:
        """`num_samples` completions of each prompt, without the prompt.

        Args:
          call: a program numbers its calls from 0; the same prompt in two calls is completed by
            independent draws.
          max_new_tokens: at most so many tokens in a completion.
          temperature: 0 is greedy.
          stop: a completion ends before the first of these strings.
        """


@dataclasses.dataclass(frozen=True)
class Pass:
    """What one call asked about one question, and what was said.

    Attributes:
      name: of the pass, as "reasoning".
      prompt: the whole prompt.
      completions: one for each sample.
    """

    name: str
    prompt: str
    completions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Solution:
    """What a program made of one question.

    Attributes:
      answer: the final answer's text; None where none was found.
      transcript: its passes in order.
      fallback: what could not be read and what was done instead; None: all was read.
    """

    answer: str | None
    transcript: tuple[Pass, ...]
    fallback: str | None = None


@dataclasses.dataclass(frozen=True)
class Solved:
    """The solutions of all questions, in their order, and the number of calls that they took."""

    solutions: tuple[Solution, ...]
    num_calls: int

    @property
    def answers(self) -> list[str | None]:
        """The final answers."""
        return [solution.answer for solution in self.solutions]


class Interview:
    """Asks about P questions and keeps what was asked and said.

    Raises:
      ValueError: there are no questions.
    """

    def __init__(self, complete: Complete, num_questions: int) -> None:
        if num_questions < 1:
            raise ValueError("questions=(): there is nothing to ask; give at least one.")
        self._complete = complete
        self._passes: list[list[Pass]] = [[] for _ in range(num_questions)]
        self._num_calls = 0

    def ask(self, name: str, prompts: Sequence[str], **settings: Any) -> list[str]:
        """One completion of each prompt; the settings are those of `sample`."""
        return [text for (text,) in self.sample(name, prompts, num_samples=1, **settings)]

    def sample(
        self,
        name: str,
        prompts: Sequence[str],
        *,
        num_samples: int,
        max_new_tokens: int,
        temperature: float,
        stop: Sequence[str] = (),
        about: Sequence[int] | None = None,
    ) -> list[list[str]]:
        """`num_samples` completions of each prompt, in one call.

        Args:
          name: of the pass.
          about: the number of the question that each prompt is about; None: all, in order.

        Raises:
          ValueError: `complete` gave other than `num_samples` completions of each prompt.
        """
        said = self._complete(
            prompts, call=self._num_calls, num_samples=num_samples, max_new_tokens=max_new_tokens,
            temperature=temperature, stop=stop,
        )
        self._num_calls += 1
        if any(isinstance(texts, str) for texts in said):
            raise ValueError(
                "complete: gave a text for each prompt; it must give a list of num_samples texts."
            )
        given = [len(texts) for texts in said]
        if given != [num_samples] * len(prompts):
            raise ValueError(
                f"complete: gave {given} completions of {len(prompts)} prompts; it must give "
                f"num_samples={num_samples} of each."
            )
        about = range(len(self._passes)) if about is None else about
        for question, prompt, texts in zip(about, prompts, said, strict=True):
            self._passes[question].append(Pass(name, prompt, tuple(texts)))
        return said

    def solved(
        self, answers: Sequence[str | None], fallbacks: Sequence[str | None] | None = None
    ) -> Solved:
        """The solutions `[P]`, with the transcripts so far."""
        fallbacks = [None] * len(self._passes) if fallbacks is None else fallbacks
        return Solved(
            tuple(
                Solution(answer, tuple(passes), fallback)
                for answer, passes, fallback in zip(answers, self._passes, fallbacks, strict=True)
            ),
            self._num_calls,
        )
