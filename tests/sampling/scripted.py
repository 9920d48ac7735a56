"""A model that answers from a script and keeps what it was asked."""

import dataclasses


@dataclasses.dataclass
class Call:
    prompts: list
    call: int
    num_samples: int
    max_new_tokens: int
    temperature: float
    stop: tuple


class Script:
    """Completes by `answer(prompt, sample)`, or by a list with one entry a call.

    An entry is the list of what is said to each prompt: a text, or a list of samples.
    """

    def __init__(self, answer):
        self.answer = answer
        self.calls = []

    def __call__(self, prompts, *, call, num_samples, max_new_tokens, temperature, stop):
        assert call == len(self.calls), "calls are numbered"
        self.calls.append(
            Call(list(prompts), call, num_samples, max_new_tokens, temperature, tuple(stop))
        )
        if callable(self.answer):
            return [[self.answer(prompt, g) for g in range(num_samples)] for prompt in prompts]
        said = self.answer[call]
        assert len(said) == len(prompts)
        return [[texts] if isinstance(texts, str) else texts for texts in said]

    @property
    def prompts(self):
        """The prompts of each call."""
        return [call.prompts for call in self.calls]
