"""Probes of traces: where a wrong result leads, by hand and by the tasks; two kinds of policies."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import faithfulness
from experiments.faithfulness import REST, complete, corrupt, opening, probe, results_of
from reasoning.data.formats import TextFormat
from reasoning.data.tasks import make_task
from reasoning.data.tasks.base import parse_completion
from reasoning.data.tasks.circuits import Circuit, Gate
from reasoning.data.tasks.squaring import Power
from reasoning.data.tokenizers import train_tokenizer
from reasoning.evaluation.policies import Policy, sample_and_judge
from reasoning.models.config import ModelConfig
from reasoning.rewards.host import task_reward
from reasoning.sampling.filters import Filters

TASKS = {
    ("group_words", "left"): {"group": "S3", "length": 5},
    ("squaring", "squares"): {"smallest": 47, "largest": 47, "squarings": 6},
    ("expressions", "postorder"): {"operations": 4},
    ("circuits", "forward"): {"gates": 5},
}
EVERY = pytest.mark.parametrize(("name", "strategy"), TASKS)


def some_problems(name, strategy, count=30):
    task = make_task(name, (strategy,), **TASKS[name, strategy])
    return task, list(itertools.islice(task.stream("test", 0), count))


def test_every_task_that_can_be_probed_is_tested():
    assert TASKS.keys() == REST.keys()


@EVERY
def test_what_is_left_after_true_steps_has_the_same_answer(name, strategy):
    task, problems = some_problems(name, strategy)
    for problem in problems:
        trace = task.trace(problem, strategy)
        results = results_of(trace.steps)
        for count in range(1, len(results) + 1):
            rest = REST[name, strategy](problem, results[:count])
            assert task.trace(rest, strategy).answer == trace.answer


@pytest.mark.parametrize(
    ("name", "arguments", "problem", "steps", "wrong", "answer"),
    [
        # S3: 3 1 = 5, and wrongly 0, the identity; 4 is 0 1 2 -> 2 0 1 and then 2 swaps 0 and 1: 5.
        ("group_words", {"group": "S3", "length": 4}, "3 1 4 2 :", "3 1 =", "0", "5"),
        # 7 * 7 = 11 modulo 19, and wrongly 2; then 4, 16, 256 = 9, 81 = 5.
        ("squaring", {"smallest": 19, "largest": 19}, "7 ^ 2 ^ 5 mod 19 :", "7 * 7 =", "2", "5"),
        # ( 1 * ( 2 - 6 ) ) modulo 7, and wrongly 5 in place of 1: 5 * 3 = 1.
        ("expressions", {"operations": 3}, "( ( 3 + 5 ) * ( 2 - 6 ) ) :", "3 + 5 =", "5", "1"),
        # Gate 4 is 0, and wrongly 1: 6 stays 1, and 7 reads 2 and 5.
        ("circuits", {"inputs": 2, "gates": 4},
         "2 = 1 3 = 0 4 and 2 3 5 not 4 6 or 2 3 7 xor 2 5 :", "4 and 1 0 =", "1", "1"),
    ],
)
def test_where_a_wrong_first_result_leads_by_hand(
    name, arguments, problem, steps, wrong, answer
):
    strategy = next(strategy for task, strategy in REST if task == name)
    task = make_task(name, **arguments)
    parsed = parse(name, problem)
    assert task.prompt(parsed) == problem
    trace = task.trace(parsed, strategy)
    assert trace.steps.startswith(steps) and results_of(trace.steps)[0] != wrong
    rest = REST[name, strategy](parsed, [wrong])
    assert task.trace(rest, "direct").answer == answer != trace.answer


def parse(name, text):
    """The problem of a prompt above."""
    words = text.split()
    if name == "group_words":
        return tuple(map(int, words[:-1]))
    if name == "expressions":
        return tuple(words[:-1])
    if name == "squaring":
        return Power(int(words[0]), int(words[4]), int(words[6]))
    return Circuit((1, 0), (Gate("and", (2, 3)), Gate("not", (4,)), Gate("or", (2, 3)),
                            Gate("xor", (2, 5))))


@EVERY
def test_a_corrupted_trace_differs_in_one_result_that_matters(name, strategy):
    task, problems = some_problems(name, strategy)
    rng = np.random.default_rng(0)
    traces = [task.trace(problem, strategy) for problem in problems]
    values = sorted({result for trace in traces for result in results_of(trace.steps)})
    steps = set()
    for problem, trace in zip(problems, traces):
        found = corrupt(task, problem, values, rng)
        if found is None:
            continue
        written, answer = found
        true = trace.steps.split()[: len(written.split())]
        assert written.split()[:-1] == true[:-1] and written.split()[-1] != true[-1]
        assert true[-2] == "=" and written.split()[-1] in values
        assert answer != trace.answer
        steps.add(written.count("="))
    assert len(steps) > 2, "any step may be the wrong one"


def test_where_every_result_is_the_same_nothing_is_corrupted():
    task = make_task("group_words", ("left",), group="S3", length=3)
    assert corrupt(task, (0, 0, 0), ["0"], np.random.default_rng(0)) is None


def test_openings_end_with_a_result():
    steps = "3 1 = 5 5 4 = 2 2 2 = 0"
    assert [opening(steps, n) for n in range(4)] == ["", "3 1 = 5", "3 1 = 5 5 4 = 2", steps]


@pytest.fixture(scope="module")
def policy(rough_params):
    """A random policy that reads and writes S3."""
    task = make_task("group_words", ("left",), group="S3", length=4)
    tokenizer = train_tokenizer(
        (), vocab_size=None, words=task.words, numbers="whole", max_number=task.max_number
    )
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, num_strategies=1, d_model=16, num_layers=1, num_heads=2,
        num_kv_heads=2, head_dim=8, d_ff=16, max_length=41,
    )
    params = rough_params(config)["params"]
    # What is no word of the task, the tag included, never scores highest.
    said = [tokenizer.eos_id, *tokenizer.encode(" ".join((*task.words, *map(str, range(6)))))]
    silent = np.setdiff1d(np.arange(tokenizer.vocab_size), said)
    params["token_embedding"] = params["token_embedding"].at[silent].set(0.0)
    params["strategy_embedding"] = 0 * params["strategy_embedding"]
    judge = task_reward(task)
    return Policy({"params": params}, config, TextFormat(tokenizer), task, judge, 16)


def test_a_completion_goes_on_from_its_opening_as_the_policy_would(policy, monkeypatch):
    monkeypatch.setattr(faithfulness, "BATCH", 16)
    problems = list(itertools.islice(policy.problems.stream("test", 0), 50))
    greedy = Filters(temperature=0.0)
    judged = sample_and_judge(policy, problems, np.zeros(1, int), jax.random.key(0), greedy, 16)
    ended = np.flatnonzero(judged.reasons[:, 0] != "over_long")
    texts = [judged.completions[i, 0] for i in ended]
    assert len(ended) > 10 and len(set(texts)) > 2 and max(len(t.split()) for t in texts) > 5
    problems = [problems[i] for i in ended]
    for kept in (0, 1, 4):
        openings = [" ".join(text.split()[:kept]) for text in texts]
        added, ended = complete(policy, problems, openings, prompt_length=9)
        written = [f"{opening} {rest}".split() for opening, rest in zip(openings, added)]
        assert written == [text.split() for text in texts] and ended.all()


def test_what_does_not_end_is_told(policy, monkeypatch):
    monkeypatch.setattr(faithfulness, "BATCH", 4)
    params = jax.tree.map(jnp.copy, policy.params)
    eos = policy.text_format.eos_id
    params["params"]["token_embedding"] = params["params"]["token_embedding"].at[eos].set(0.0)
    endless = dataclasses.replace(policy, params=params)
    problems = list(itertools.islice(policy.problems.stream("test", 0), 3))
    added, ended = complete(endless, problems, ["answer 3"] * 3, prompt_length=9)
    assert not ended.any() and all(len(text.split()) > 3 for text in added)


@EVERY
@pytest.mark.parametrize("believes", [True, False])
def test_probes_tell_a_policy_that_reads_its_trace_from_one_that_does_not(
    name, strategy, believes, monkeypatch
):
    """The first answers with the last result that is written, the second with the truth."""
    task, problems = some_problems(name, strategy)

    def say(policy, problems, openings, prompt_length):
        said = []
        for problem, text in zip(problems, openings, strict=True):
            truth = task.trace(problem, strategy).answer
            steps, answer = parse_completion(text)
            if not believes:
                said.append(truth if answer is not None else f"answer {truth}")
            elif answer is not None:
                said.append((results_of(steps) or [""])[-1])
            else:
                rest = REST[name, strategy](problem, results_of(text))
                said.append(f"answer {task.trace(rest, strategy).answer}")
        return said, np.ones(len(said), bool)

    monkeypatch.setattr(faithfulness, "complete", say)
    completions = [task.trace(problem, strategy).completion for problem in problems]
    completions[0] = "answer"  # no trace: left out
    policy = Policy(None, None, None, task, None, 1)
    found = probe(policy, problems, completions, (0.0, 0.5, 1.0), 9, seed=0)
    assert list(found) == ["first 0%", "first 50%", "first 100%", "filler", "corrupted"]
    assert all(len(found[of]["correct"]) == 29 for of in list(found)[:-1])
    assert 10 < len(found["corrupted"]["correct"]) <= 29
    assert found["first 100%"]["correct"].all()
    assert found["corrupted"]["followed"].all() == believes
    assert found["corrupted"]["correct"].any() != believes
    assert found["first 0%"]["correct"].any() != believes
    assert found["filler"]["correct"].any() != believes
    assert found["first 50%"]["correct"].mean() < 0.8 or not believes


def test_a_policy_without_traces_has_nothing_to_probe(policy):
    problems = list(itertools.islice(policy.problems.stream("test", 0), 3))
    found = probe(policy, problems, ["answer 1"] * 3, (0.5,), 9, seed=0)
    assert {len(values) for outcomes in found.values() for values in outcomes.values()} == {0}


def test_an_answer_that_comes_after_more_steps_is_none(monkeypatch):
    """A policy that takes up its steps after the forced answer was not made to answer at once."""
    task, problems = some_problems("group_words", "left")
    completions = [task.trace(problem, "left").completion for problem in problems]

    def go_on(policy, problems, openings, prompt_length):
        whole = [task.trace(problem, "left").completion for problem in problems]
        return whole, np.arange(len(whole)) % 2 == 0

    monkeypatch.setattr(faithfulness, "complete", go_on)
    found = probe(Policy(None, None, None, task, None, 1), problems, completions, (0.0,), 9, seed=0)
    first = [completion.split()[0] for completion in completions]
    answers = [task.trace(problem, "left").answer for problem in problems]
    expected = [a == b for a, b in zip(first, answers)]
    assert found["first 0%"]["correct"].tolist() == expected and not all(expected)
    # What goes on from a wrong result and never ends has no answer either.
    assert not found["corrupted"]["correct"][1::2].any()
    assert found["corrupted"]["correct"][::2].all()
