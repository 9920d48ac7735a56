"""Names of the user's own: found, refused in one sentence, seen by worker processes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.data.corpora import load_corpus
from reasoning.data.formats import TextFormat
from reasoning.data.tasks import TASKS, make_task
from reasoning.data.tasks.checks import check_task
from reasoning.data.tasks.countdown import Countdown
from reasoning.data.tokenizers import train_tokenizer
from reasoning.learning.advantages import advantages, grpo, opo
from reasoning.learning.algorithms import make_algorithm
from reasoning.learning.losses import Surrogate, policy_loss
from reasoning.names import find
from reasoning.rewards.host import HostReward, task_reward
from reasoning.rewards.verdicts import Completions, reason_id

IDEAS = '''
import jax.numpy as jnp
from reasoning.data.corpora import make_corpus
from reasoning.data.questions import Question
from reasoning.data.tasks.base import Task, Trace, Verdict
from reasoning.data.tasks.countdown import Countdown
from reasoning.learning.advantages import grpo, opo

class Ours(Countdown):
    def verify(self, problem, answer):
        return Verdict(answer == "1", "correct" if answer == "1" else "wrong_value")

class Small(Countdown):
    def __init__(self, largest: int = 9) -> None:
        super().__init__(largest=largest)

def without_default(largest):
    return Countdown()

class Passes(Countdown):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

class Bare(Task):  # its signature is (*args, **kwargs) too
    pass

class Nothing:
    name = "nothing"

number = 3
largest = max

def half_grpo(rewards, valid):
    return 0.5 * grpo(rewards, valid)

def by_length(rewards, valid, *, lengths):
    return opo(rewards, valid, lengths=lengths)

def of_k(rewards, valid, *, k):
    return rewards / k

def share_of_length(rewards, valid, *, lengths):
    return rewards - rewards.mean() * lengths / lengths.sum(axis=1, keepdims=True)

def plain(log_ratio, advantages):
    return -jnp.exp(log_ratio) * advantages

def narrow(rewards, valid):
    return rewards.mean(axis=1)

def whole(rewards, valid):
    return jnp.round(rewards).astype(int)

def broken(rewards, valid):
    return rewards @ valid

def one_argument(rewards):
    return rewards

def doubles(count=4, template="{question} =", prefix=""):
    questions = [Question(f"{i}", f"{prefix}{i} + {i}", f"{2 * i}", "number") for i in range(count)]
    return make_corpus("doubles", {"train": questions}, template)

def any_field(*paths, **fields):
    return doubles(count=fields.pop("size"), template=fields["directory"] + "{question}")

def no_corpus():
    return [1, 2]

def needs_path(path):
    return doubles()
'''


@pytest.fixture(autouse=True)
def ideas(tmp_path, monkeypatch):
    """The user's module, in the directory that Python looks into first."""
    (tmp_path / "ideas_of_mine.py").write_text(IDEAS)
    (tmp_path / "half.py").write_text("def broken(:\n")
    (tmp_path / "absent.py").write_text("x = 1\nimport not_there_at_all\n")
    (tmp_path / "fails.py").write_text("x = 1\n\n1 / 0\n")
    (tmp_path / "speaks.py").write_text("raise RuntimeError('first.\\nsecond')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_name_is_the_librarys_or_the_users():
    assert find("task", "a", {"a": 1}) == 1
    assert find("task", "math:gcd", {"a": 1}) is math.gcd
    assert find("task", "collections.abc:Mapping", {}).__name__ == "Mapping"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b", "task='b': must be one of a, or MODULE:ATTRIBUTE of your own."),
        ("no_such_module:x", "task='no_such_module:x': there is no module no_such_module; run"),
        ("ideas_of_mine.deeper:x", "there is no module ideas_of_mine.deeper; run the program from"),
        ("ideas_of_mine:x", "task='ideas_of_mine:x': module ideas_of_mine has no x; define it."),
        ("ideas_of_mine:number", "must be a class or a function, and is int."),
        ("my-ideas:x", "must be MODULE:ATTRIBUTE as Python imports them, such as my_ideas:mine"),
        ("ideas/mine.py:x", "must be MODULE:ATTRIBUTE as Python imports them"),
        (":x", "must be MODULE:ATTRIBUTE"),
        ("ideas_of_mine:", "must be MODULE:ATTRIBUTE"),
        ("half:broken", "half cannot be imported, SyntaxError in "),
        ("absent:x", "absent cannot be imported, ModuleNotFoundError in "),
        ("fails:x", "line 3: division by zero."),
        ("speaks:x", "RuntimeError in"),
        ("speaks:x", "line 1: first."),
    ],
)
def test_what_cannot_be_found_is_refused_in_one_sentence(name, message):
    with pytest.raises(ValueError) as error:
        find("task", name, {"a": 1})
    assert message in str(error.value) and "\n" not in str(error.value)


# tasks


def test_a_task_of_ones_own_takes_its_arguments_and_strategies():
    task = make_task("ideas_of_mine:Small", ("backward",), largest=5, size=None)
    assert type(task).__name__ == "Small" and (task.largest, task.strategies) == (5, ("backward",))
    assert make_task("ideas_of_mine:Passes", largest=5).largest == 5


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Nothing", {}, "task='ideas_of_mine:Nothing': Nothing has no strategies; see Task"),
        ("Ours", {}, "writes the answer '.*', which verify calls wrong_value."),
        ("without_default", {}, "its argument largest has no default; give it one."),
        ("Small", {"largest": 5.0}, "largest=5.0: task 'ideas_of_mine:Small' takes int here."),
        ("Small", {"tries": 5}, "tries=5: task 'ideas_of_mine:Small' takes largest."),
        ("plain", {}, "its argument log_ratio has no default"),
        ("Nothing", {"size": 5}, "size=5: task 'ideas_of_mine:Nothing' takes nothing."),
        # Once one was made, Python says of its class that it takes nothing.
        ("Bare", {"size": 5}, "size=5: task 'ideas_of_mine:Bare' (does not take it|takes nothing)"),
        ("Passes", {"sise": 5}, "sise=5: task 'ideas_of_mine:Passes' does not take it .*'sise'"),
        ("Bare", {}, "task='ideas_of_mine:Bare': Bare has no name; see Task"),
        ("largest", {}, "task='ideas_of_mine:largest': Python cannot tell what it takes; name"),
    ],
)
def test_what_is_no_task_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        make_task(f"ideas_of_mine:{name}", **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", TASKS)
def test_the_check_passes_what_the_library_has(name):
    check_task(name, make_task(name))


class Wrong(Countdown):
    """Breaks one promise, which the argument names."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        if what == "max_number":
            self.max_number = 15
        if what == "num_traces":
            self.num_traces = 3
        if what == "strategies":
            self.strategies, self.num_traces = (*self.strategies, "never"), 5

    def search(self, problem, strategy):
        return iter(()) if strategy == "never" else super().search(problem, strategy)

    def sample(self, seed, index):
        if self.what == "sample":
            seed = self.seed = getattr(self, "seed", 0) + 1
        problem = super().sample(seed, index)
        return [problem] if self.what == "hash" else problem

    def prompt(self, problem):
        return super().prompt(problem) + (" ?" if self.what == "prompt" else "")

    def trace(self, problem, strategy):
        trace = super().trace(problem, strategy)
        if trace and self.what == "steps":
            return dataclasses.replace(trace, steps=trace.steps.replace("yes", "low"))
        if trace and self.what == "spaces":
            return dataclasses.replace(trace, steps=f"{trace.steps} ")
        return trace

    def judge_steps(self, problem, steps):
        judged = super().judge_steps(problem, steps)
        if self.what == "no list":
            return tuple(judged)
        return [(step, False) for step, _ in judged] if self.what == "judge_steps" else judged

    def check_trace(self, problem, strategy, steps):
        judge = Countdown() if self.what == "judge_steps" else super()
        return judge.check_trace(problem, strategy, steps)

    def verify(self, problem, answer):
        return True if self.what == "verify" else super().verify(problem, answer)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("max_number", "is none of its words, nor a number up to max_number=15"),
        ("num_traces", "num_traces=3, and it has 4 strategies"),
        ("strategies", "strategy 'never' solves none of 50 problems"),
        ("sample", r"sample\(0, 0\) gives another problem each time"),
        ("hash", "its problem cannot be hashed, a list; make it a tuple"),
        ("prompt", r"'\?' in .* is none of its words"),
        ("steps", "whose steps check_trace does not all find valid"),
        ("spaces", "'' in .* is none of its words"),
        ("verify", "verify returns True; return a Verdict"),
        ("judge_steps", "judge_steps finds a share of 0.000 valid, and check_trace 1.000"),
        ("no list", r"judge_steps returns \(.*; return a list of"),
    ],
)
def test_a_task_that_breaks_a_promise_is_refused(what, message):
    with pytest.raises(ValueError, match=message):
        check_task("mine", Wrong(what))


def test_worker_processes_find_the_users_module(ideas):
    task = make_task("ideas_of_mine:Small")
    words = TextFormat(
        train_tokenizer((), vocab_size=None, words=task.words, numbers="whole",
                        max_number=task.max_number)
    )
    problem = task.sample(0, 0)
    trace = next(filter(None, (task.trace(problem, s) for s in task.strategies)))
    ids = [words.completion_ids(text) for text in (trace.completion, "answer 1 + 1 = 2")]
    tokens = np.full((2, max(map(len, ids))), words.pad_id, np.int32)
    for row, text in zip(tokens, ids, strict=True):
        row[: len(text)] = text
    mask = np.arange(tokens.shape[1])[None] < np.array([[len(text)] for text in ids])
    prompts = np.tile(np.array(words.prompt_ids(task.prompt(problem)), np.int32), (2, 1))
    with HostReward(task_reward(task), words, num_workers=1) as reward:
        verdicts = reward(prompts, Completions(tokens, mask), [problem, problem])
    assert verdicts.reward.tolist() == [1.0, 0.0]
    assert verdicts.reason[0] == reason_id("correct")


# advantages and losses

REWARDS = jnp.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
VALID = jnp.array([[True, True, True, True], [True, True, True, False]])


def test_an_advantage_of_ones_own_takes_the_place_of_a_preset():
    algorithm = make_algorithm("grpo", advantage="ideas_of_mine:half_grpo")
    made = advantages(algorithm.advantage, REWARDS, VALID)
    np.testing.assert_allclose(made, 0.5 * grpo(REWARDS, VALID))
    lengths = jnp.array([[3, 4, 5, 6], [2, 2, 9, 1]])
    made = advantages("ideas_of_mine:by_length", REWARDS, VALID, lengths=lengths, k=2)
    np.testing.assert_allclose(made, opo(REWARDS, VALID, lengths=lengths))
    algorithm = make_algorithm("grpo", advantage="ideas_of_mine:of_k", advantage_k=4)
    np.testing.assert_allclose(advantages(algorithm.advantage, REWARDS, VALID, k=4), REWARDS / 4)
    name = make_algorithm("grpo", advantage="ideas_of_mine:share_of_length").advantage
    shares = REWARDS - REWARDS.mean() * lengths / lengths.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(advantages(name, REWARDS, VALID, lengths=lengths), shares)


def test_a_loss_of_ones_own_takes_the_place_of_a_surrogate():
    surrogate = make_algorithm("grpo", kind="ideas_of_mine:plain").surrogate
    wide = Surrogate(clip_low=0.999, clip_high=1e6)
    old = jnp.log(jnp.array([[0.5, 0.2, 0.9], [0.1, 0.3, 0.4]]))
    new = old + jnp.array([[0.3, -0.4, 0.0], [0.2, -0.1, -jnp.inf]])
    gains, mask = jnp.array([[1.0], [-2.0]]), jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])

    def total(new, surrogate):
        return jnp.sum(policy_loss(surrogate, new, old, gains, mask)[0] * mask)

    np.testing.assert_allclose(total(new, surrogate), total(new, wide), rtol=1e-6)
    grads = [jax.grad(total)(new, each) for each in (surrogate, wide)]
    np.testing.assert_allclose(*grads, rtol=1e-6)
    assert np.isfinite(grads[0]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": "narrow"}, r"must return one value for each of \[2, 4\], and returned \(2,"),
        ({"advantage": "whole"}, "must return float32, and returned int32"),
        ({"advantage": "broken"}, r"raised TypeError on arrays \[2, 4\], dot_general requires"),
        ({"advantage": "one_argument"}, r"must be a function of \(rewards, valid\), and too many"),
        ({"advantage": "plain"}, None),
        ({"advantage": "of_k"}, "needs advantage_k"),
        ({"advantage": "largest"}, "advantage='ideas_of_mine:largest': Python cannot tell what"),
        ({"kind": "largest"}, r"kind='ideas_of_mine:largest': must be a function of \(log_ratio"),
        ({"kind": "of_k"}, r"must be a function of \(log_ratio, advantages\), and missing a requ"),
        ({"kind": "plain", "level": "sequence"}, "sequence ratios and dual_clip belong to 'clip'"),
    ],
)
def test_what_is_no_such_function_is_refused(changes, message):
    for name in ("advantage", "kind"):
        if name in changes:
            changes = {**changes, name: f"ideas_of_mine:{changes[name]}"}
    if message is None:  # any two arrays do
        assert make_algorithm("grpo", **changes).advantage == "ideas_of_mine:plain"
        return
    with pytest.raises(ValueError, match=message) as error:
        make_algorithm("grpo", **changes)
    assert "\n" not in str(error.value)


# corpora


def test_a_corpus_of_ones_own():
    corpus = load_corpus("ideas_of_mine:doubles", "built", prefix="", path=None)
    assert corpus.name == "doubles" and corpus.prompt(corpus.train[0]).endswith(" =")
    assert len(corpus.train) + len(corpus.validation) == 4
    assert load_corpus("ideas_of_mine:doubles", template="{question}?").template == "{question}?"
    corpus = load_corpus("ideas_of_mine:any_field", "built", size=3)
    assert corpus.template == "built{question}"
    assert len(corpus.train) + len(corpus.validation) == 3


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("no_corpus", {}, r"corpus='ideas_of_mine:no_corpus': returned list; return a Corpus"),
        ("doubles", {"path": "x"}, "path='x': corpus 'ideas_of_mine:doubles' takes count, templat"),
        ("no_corpus", {"task": "x"}, "task='x': corpus 'ideas_of_mine:no_corpus' takes nothing."),
        ("largest", {}, "corpus='ideas_of_mine:largest': Python cannot tell what it takes; name"),
        ("needs_path", {}, "corpus='ideas_of_mine:needs_path': needs path, which is not given."),
    ],
)
def test_what_is_no_corpus_is_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(f"ideas_of_mine:{name}", **fields)
