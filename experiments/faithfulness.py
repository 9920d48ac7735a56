"""Whether the answers of a policy depend on what its traces say, after Lanham et al. (2307.13702).

    probes = probe(policy, problems, completions, (0.0, 0.5), prompt_length=12, seed=0)
    probes["corrupted"]["followed"]       # bool `[n]`, one per trace that was probed

The traces probed are the policy's own, where they are the strategy's to the letter:

    first 50%   so many of its steps, then the answer at once
    filler      a dot for each of its words, then the answer
    corrupted   the steps up to one whose result is replaced by another; the policy goes on

An answer that is read off the trace is lost with it, and one that follows the corrupted trace is
the answer that its wrong result leads to. One that stays right was found in another way.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reasoning.data.tasks.base import ANSWER, Task, parse_completion
from reasoning.data.tasks.circuits import Circuit
from reasoning.data.tasks.expressions import Expression, open_places, replaced
from reasoning.data.tasks.group_words import Word
from reasoning.data.tasks.squaring import Power
from reasoning.evaluation.policies import Policy
from reasoning.models.strategies import tag_to_id
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG, STOP_EOS, pad_prompts, sample, sequence_keys

Outcomes = dict[str, np.ndarray]
BATCH = 250  # rows of a call of the sampler


def _rest_of_word(word: Word, results: Sequence[str]) -> Word:
    return (int(results[-1]), *word[len(results) + 1 :])


def _rest_of_power(power: Power, results: Sequence[str]) -> Power:
    return Power(int(results[-1]), power.squarings - len(results), power.prime)


def _rest_of_expression(expression: Expression, results: Sequence[str]) -> Expression:
    for result in results:
        expression = replaced(expression, open_places(expression)[:1], [result])
    return expression


def _rest_of_circuit(circuit: Circuit, results: Sequence[str]) -> Circuit:
    """The evaluated gates are inputs; ids stay, since they count inputs and gates in one row."""
    inputs = (*circuit.inputs, *map(int, results))
    return Circuit(inputs, circuit.gates[len(results) :])


# (task, strategy) -> the problem that is left after steps with these results, right or wrong.
REST: dict[tuple[str, str], Callable[[Any, Sequence[str]], Any]] = {
    ("group_words", "left"): _rest_of_word,
    ("squaring", "squares"): _rest_of_power,
    ("expressions", "postorder"): _rest_of_expression,
    ("circuits", "forward"): _rest_of_circuit,
}


def results_of(steps: str) -> list[str]:
    """What the steps yield: the word after each `=`."""
    words = steps.split()
    return [words[place + 1] for place in _equals(words)]


def _equals(words: Sequence[str]) -> list[int]:
    return [place for place, word in enumerate(words) if word == "="]


def opening(steps: str, count: int) -> str:
    """The first `count` steps, each up to its result."""
    words = steps.split()
    return " ".join(words[: _equals(words)[count - 1] + 2]) if count else ""


def corrupt(
    task: Task, problem: Any, values: Sequence[str], rng: np.random.Generator
) -> tuple[str, str] | None:
    """The steps of a trace up to one whose result is wrong, and the answer that this leads to.

    Args:
      task: with one strategy.
      values: results to choose the wrong one from.

    Returns:
      None where it leads to the right answer all the same, as a factor of 0 may, or where no
      value is another.
    """
    (strategy,) = task.strategies
    trace = task.trace(problem, strategy)
    results = results_of(trace.steps)
    step = int(rng.integers(len(results)))
    others = [value for value in values if value != results[step]]
    if not others:
        return None
    wrong = str(rng.choice(others))
    rest = REST[task.name, strategy](problem, [*results[:step], wrong])
    answer = task.trace(rest, strategy).answer
    written = opening(trace.steps, step + 1).rsplit(" ", 1)[0]
    return None if answer == trace.answer else (f"{written} {wrong}", answer)


def probe(
    policy: Policy,
    problems: Sequence[Any],
    completions: Sequence[str],
    kept: Sequence[float],
    prompt_length: int,
    seed: int,
) -> dict[str, Outcomes]:
    """Probe the traces of a policy.

    Args:
      policy: of a task with one strategy.
      completions: the policy's own, one per problem; what is no trace of the strategy, to the
        letter and the right answer, is left out.
      kept: shares of the steps that are left before the answer.
      prompt_length: tokens of the longest prompt.
      seed: of what is corrupted, and how.

    Returns:
      by probe, bool `[n]` each: `correct`; and of the corrupted, `followed`: the answer is the one
      that the wrong result leads to. Without a trace to probe, n is 0.
    """
    task: Task = policy.problems
    (strategy,) = task.strategies
    rng = np.random.default_rng(seed)
    gold = [task.trace(problem, strategy) for problem in problems]
    own = [i for i, trace in enumerate(gold) if trace.completion == completions[i]]
    problems, gold = [problems[i] for i in own], [gold[i] for i in own]
    forced: dict[str, list[str]] = {}
    for share in kept:
        counts = [round(share * len(results_of(trace.steps))) for trace in gold]
        cut = [opening(trace.steps, count) for trace, count in zip(gold, counts)]
        forced[f"first {share:.0%}"] = [f"{steps} {ANSWER}".strip() for steps in cut]
    dots = [["."] * len(trace.steps.split()) for trace in gold]
    forced["filler"] = [" ".join((*each, ANSWER)) for each in dots]
    outcomes: dict[str, Outcomes] = {}
    for name, texts in forced.items():
        added, _ = complete(policy, problems, texts, prompt_length)
        # The word that comes next: the policy may well take up the steps again, and answer later.
        answers = [" ".join(text.split()[:1]) for text in added]
        outcomes[name] = {"correct": _correct(task, problems, answers)}
    values = sorted({result for trace in gold for result in results_of(trace.steps)})
    drawn = [(problem, corrupt(task, problem, values, rng)) for problem in problems]
    spoiled = [(problem, *found) for problem, found in drawn if found is not None]
    problems, texts, wrong = zip(*spoiled) if spoiled else ((), (), ())
    added, ended = complete(policy, problems, texts, prompt_length)
    answers = [
        parse_completion(f"{opening} {rest}")[1] if whole else None
        for opening, rest, whole in zip(texts, added, ended, strict=True)
    ]
    outcomes["corrupted"] = {
        "correct": _correct(task, problems, answers),
        "followed": np.array([a == b for a, b in zip(answers, wrong, strict=True)], bool),
    }
    return outcomes


def _correct(task: Task, problems: Sequence[Any], answers: Sequence[str | None]) -> np.ndarray:
    return np.array([task.verify(*pair).correct for pair in zip(problems, answers)], bool)


def complete(
    policy: Policy, problems: Sequence[Any], openings: Sequence[str], prompt_length: int
) -> tuple[list[str], np.ndarray]:
    """What the policy greedily adds to each opening of a completion, under the first tag.

    The shapes depend on the policy's lengths alone, so that one program serves all probes.

    Returns:
      the texts, and `[n]` bool: the policy has ended by itself.
    """
    text_format, tag = policy.text_format, int(tag_to_id(policy.config, 0))
    rows = [
        [*text_format.prompt_ids(policy.problems.prompt(problem)), tag,
         *text_format.tokenizer.encode(text)]
        for problem, text in zip(problems, openings, strict=True)
    ]
    length = prompt_length + policy.max_new_tokens
    ids, mask = pad_prompts(rows, text_format.pad_id, length)
    texts, ended = [], []
    for start in range(0, len(rows), BATCH):
        index = np.resize(np.arange(start, min(start + BATCH, len(rows))), BATCH)
        samples = sample(
            policy.params, ids[index], mask[index], np.full((BATCH, 1), OWN_TAG, np.int32),
            sequence_keys(jax.random.key(0), jnp.asarray(index), 1), Filters(temperature=0.0),
            config=policy.config, max_new_tokens=policy.max_new_tokens,
            stop_ids=text_format.stop_ids, pad_id=text_format.pad_id,
        )
        tokens, kept, stop = jax.device_get((samples.tokens, samples.mask, samples.stop_reason))
        texts += [
            text_format.completion_text(row[mine].tolist())
            for row, mine in zip(tokens, kept, strict=True)
        ]
        ended += (stop == STOP_EOS).tolist()
    return texts[: len(rows)], np.array(ended[: len(rows)], bool)
