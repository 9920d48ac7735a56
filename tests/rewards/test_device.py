"""Rewards in jnp: the verifiers' own verdicts on whatever a policy may write.

`Forger` writes completions that are right, nearly right, and absurd; the host judges them with the
tasks' verifiers, and the device must give the same reason for every one.
"""

import dataclasses
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning.data.formats import TextFormat
from reasoning.data.tasks import TASKS, make_task
from reasoning.data.tasks.countdown import Countdown, CountdownProblem
from reasoning.data.tasks.group_words import GroupWords
from reasoning.data.tokenizers import train_tokenizer
from reasoning.evaluation.policies import Policy, judge
from reasoning.models.config import ModelConfig
from reasoning.rewards.device import (
    IS_SPACE,
    countdown_reward,
    device_reward,
    group_words_reward,
    problem_arrays,
)
from reasoning.rewards.host import HostReward, task_reward
from reasoning.rewards.verdicts import REASONS, Completions, check_verdicts, reason_id

NUM_TAGS = 3
CHUNK = 2000
WIDTH = {"countdown": 56, "countdown4": 72, "group_words": 32, "group_words_s5": 32}
LINES = ("12 apples, 7 pears: the answer makes 19.\tNo\u00a0more! 1 + 1 = 2 , 3 * 4 = 12",) * 9


@functools.cache
def tokenizer_of(name, kind="words"):
    task = make_task(name)
    words = dict(words=task.words, max_number=task.max_number)
    return {
        "words": lambda: train_tokenizer((), vocab_size=None, numbers="whole", **words),
        "learned": lambda: train_tokenizer(LINES, vocab_size=360, numbers="whole", **words),
        "digits": lambda: train_tokenizer(LINES, vocab_size=330, numbers="digits"),
    }[kind]()


# White space that str.split knows, bytes that only look like it, and numbers that int() would read.
ODDITIES = (
    *(c.encode() for c in " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u205f\u3000"),
    *(b"\xc2", b"\xa0", b"\xe2\x80", b"\xe3\x80", b"\xc0\xa0", b"\xe0\x80\xa0", b"\xff"),
    *(b"\xf0\xe3\x80\x80", b"\xed\xa0\x80", b"\xf0\x80\x80\xa0", b"\xc2\xc2\xa0"),
    *(b"\xe2\x80\xc2\xa0", b"\0"),
    *(c.encode() for c in ("\u200b", "\ufeff", "\ufffd", "▁", "\u2004", "\u180e", "é", "🙂")),
    *(c.encode() for c in ("１", "²", "٣", "−", "×", "＝", "+", "=", ",", "0", "1", "-1", "+1")),
    *(b"answer", b" answer", b" answers", b" answe", b"r", b"an", b" Answer", b"\xc2\xa0answer"),
    *(b" 0", b" 00", b" 01", b" 1", b" 9999", b" 10000", b" 100000000001", b" 1.0", b" 1_0"),
)


@functools.cache
def device_of(name, kind="words"):
    return device_reward(make_task(name), tokenizer_of(name, kind))


class Forger:
    """Writes batches of completions of one task, from correct to absurd."""

    def __init__(self, name, kind, seed):
        self.task, self.tokenizer = make_task(name), tokenizer_of(name, kind)
        self.rng = random.Random(seed)
        self.width = WIDTH[name] * (1 if kind == "words" else 2)
        self.problems = [self.task.sample(seed, i) for i in range(200)]
        self.right = [self.traces(problem) for problem in self.problems]
        self.encode = functools.cache(self.tokenizer.encode)
        pieces = self.tokenizer.piece_bytes
        self.byte_ids = [pieces.index(bytes([byte])) for byte in range(256)]
        self.oddities = [self.spelled(text) for text in ODDITIES]
        self.numbers = [*range(self.task.max_number + 1), 99, 100, 999, 1000, 9999, 10000]
        self.mutations = [
            self.swap, self.drop, self.double, self.renumber, self.exchange, self.insert_special,
            self.insert_word, self.insert_oddity, self.spell, self.truncate, self.repeat_end,
        ]

    def traces(self, problem):
        found = (self.task.trace(problem, strategy) for strategy in self.task.strategies)
        return [self.tokenizer.encode(t.completion) for t in found if t is not None]

    def spelled(self, text):
        return [self.byte_ids[byte] for byte in text]

    def ids_of(self, words):
        return [i for word in words for i in self.encode(word)]

    def place(self, ids):
        """Any place, more often one near the end, where the answer is."""
        low = self.rng.choice((0, max(0, len(ids) - 24)))
        return self.rng.randrange(low, len(ids)) if ids else 0

    # What is done to a completion, in place.

    def swap(self, ids):
        if ids:
            i, j = self.place(ids), self.place(ids)
            ids[i], ids[j] = ids[j], ids[i]

    def drop(self, ids):
        i = self.place(ids)
        del ids[i : i + 1]

    def double(self, ids):
        i = self.place(ids)
        ids[i:i] = ids[i : i + self.rng.choice((1, 1, 2, 6))]

    def renumber(self, ids):
        i = self.place(ids)
        ids[i : i + 1] = self.encode(str(self.rng.choice(self.numbers)))

    def exchange(self, ids):
        i = self.place(ids)
        ids[i : i + 1] = self.encode(self.rng.choice(self.task.words))

    def insert_special(self, ids):
        any_id = self.rng.randrange(self.tokenizer.vocab_size + NUM_TAGS)
        tag = self.tokenizer.vocab_size + 1
        ids.insert(self.place(ids), self.rng.choice((0, 1, 2, 3, tag, any_id)))

    def insert_word(self, ids):
        i = self.place(ids)
        ids[i:i] = self.encode(self.rng.choice(("answer", ",", "=", "+", "/", "0", "1", "40")))

    def insert_oddity(self, ids):
        i = self.place(ids)
        ids[i:i] = self.rng.choice(self.oddities)

    def spell(self, ids):
        """The same text in bytes, often with other white space in front."""
        i = self.place(ids)
        if i < len(ids) and ids[i] < self.tokenizer.vocab_size:
            text = self.tokenizer.piece_bytes[ids[i]]
            space = self.rng.choice((b" ", b" ", b"\xc2\xa0", b"\xe3\x80\x80", b"\n", b""))
            ids[i : i + 1] = self.spelled(text.replace(b" ", space))

    def truncate(self, ids):
        del ids[self.place(ids) :]

    def repeat_end(self, ids):
        ids += self.encode("answer") if self.rng.random() < 0.5 else ids[-self.rng.randint(1, 19) :]

    # Where a completion comes from.

    def played(self, problem):
        """An answer that plays by the rules up to the limit, and sometimes beyond."""
        if isinstance(self.task, GroupWords):
            return self.ids_of(["answer", str(self.rng.choice(self.numbers))])
        left, text, limit = list(problem.numbers), [], self.task.max_number
        while len(left) > 1:
            self.rng.shuffle(left)
            a, b = left.pop(), left.pop()
            results = {"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}
            legal = [op for op in "+-*" if 1 <= results[op] <= limit]
            op = self.rng.choice(legal if legal and self.rng.random() < 0.85 else "+-*/")
            c = results[op] + (self.rng.random() < 0.1)
            left.append(c if self.rng.random() < 0.95 else a)
            text += [str(a), op, str(b), "=", str(c), ","]
        return self.ids_of(["answer", *text[:-1]])

    def text(self, index):
        kind = self.rng.random()
        if kind < 0.04:  # any ids at all
            size = self.tokenizer.vocab_size + NUM_TAGS
            return [self.rng.randrange(size) for _ in range(self.rng.randint(0, self.width))]
        if kind < 0.08:  # any words
            words = (*self.task.words, *map(str, self.numbers))
            picked = self.rng.choices(words, k=self.rng.randint(0, 20))
            return self.ids_of(picked)
        played = kind < 0.4
        ids = self.played(self.problems[index]) if played else [*self.rng.choice(self.right[index])]
        for _ in range(self.rng.choice((0, 1, 1, 2, 4))):
            self.rng.choice(self.mutations)(ids)
        return ids

    def batch(self, count):
        """Completions `[B, width]`, and the index `[B]` of the problem that each is for."""
        rng, size = self.rng, self.tokenizer.vocab_size
        noise = np.random.default_rng(rng.getrandbits(32))
        tokens = noise.integers(0, size + NUM_TAGS, (count, self.width), np.int32)
        mask = np.zeros(tokens.shape, bool)
        index = np.array([rng.randrange(len(self.problems)) for _ in range(count)])
        for row in range(count):
            ids = [size + rng.randrange(NUM_TAGS)] if rng.random() < 0.95 else []
            ids += self.text(index[row])
            ids += [self.tokenizer.eos_id] if rng.random() < 0.95 or not ids else []
            ids = ids[: self.width]
            tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
        swapped = noise.random(count) < 0.05  # judged for another problem
        index = np.where(swapped, noise.integers(0, len(self.problems), count), index)
        holes = (noise.random(mask.shape) < 0.1) & (noise.random((count, 1)) < 0.05)
        holed = mask & ~holes
        return Completions(tokens, np.where(holed.any(axis=1, keepdims=True), holed, mask)), index


def compare(forger, device, count, chunk):
    """Judge `count` completions twice; how often each reason was given, by both."""
    host = HostReward(task_reward(forger.task), TextFormat(forger.tokenizer))
    arrays = problem_arrays(forger.task, forger.problems)
    prompts, seen = np.zeros((chunk, 0), np.int32), np.zeros(len(REASONS), int)
    for _ in range(0, count, chunk):
        completions, index = forger.batch(chunk)
        got = device(prompts, completions, jax.tree.map(lambda a, i=index: a[i], arrays))
        wanted = host(prompts, completions, [forger.problems[i] for i in index])
        check_verdicts(got, None, "device")
        for row in np.flatnonzero(np.asarray(got.reason) != wanted.reason):
            ids = completions.tokens[row][completions.mask[row]].tolist()
            raise AssertionError(
                f"{forger.problems[index[row]]}: device {REASONS[got.reason[row]]}, host "
                f"{REASONS[wanted.reason[row]]} on {ids} = {host._completion(ids)!r}"
            )
        np.testing.assert_array_equal(got.reward, wanted.reward)
        seen += np.bincount(wanted.reason, minlength=len(REASONS))
    return dict(zip(REASONS, seen.tolist()))


def reasons_of(task):
    more = ("wrong_equation", "wrong_numbers") if isinstance(task, Countdown) else ()
    return ("correct", "wrong_value", "no_answer", "malformed", "over_long", *more)


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("countdown", "words", 8000),
        ("countdown4", "words", 8000),
        ("group_words", "words", 4000),
        ("group_words_s5", "words", 2000),  # numbers of three digits
        ("countdown", "learned", 2000),
        ("countdown", "digits", 2000),
        ("group_words", "digits", 2000),
    ],
)
def test_device_agrees_with_host(name, kind, count):
    forger = Forger(name, kind, seed=1)
    seen = compare(forger, device_of(name, kind), count, chunk=CHUNK)
    for reason in reasons_of(forger.task):
        assert seen[reason] > count / 100, f"too few {reason} to mean anything: {seen}"
    assert sum(seen.values()) == count


@pytest.mark.slow
def test_device_agrees_with_host_a_million_times():
    for name, count in (("countdown", 480_000), ("countdown4", 400_000), ("group_words", 120_000)):
        for seed in range(2, 6):
            compare(Forger(name, "words", seed), device_of(name), count // 4, chunk=10_000)


@pytest.mark.parametrize("name", ["countdown", "countdown4", "group_words"])
def test_host_and_device_agree_with_the_evaluations_judge(name):
    forger = Forger(name, "words", seed=7)
    completions, index = forger.batch(CHUNK)
    problems = [forger.problems[i] for i in index]
    config = ModelConfig(vocab_size=forger.tokenizer.vocab_size, num_strategies=NUM_TAGS)
    verify, text_format = task_reward(forger.task), TextFormat(forger.tokenizer)
    policy = Policy(None, config, text_format, forger.task, verify, max_new_tokens=forger.width)
    some = slice(400)  # the judge also reads traces, which takes time
    judged = judge(
        policy, problems[some], completions.tokens[some, None], completions.mask[some, None]
    )
    wanted = judged.reasons[:, 0].tolist()

    host = HostReward(task_reward(forger.task), TextFormat(forger.tokenizer))
    prompts = np.zeros((CHUNK, 0), np.int32)
    for verdicts in (
        device_of(name)(prompts, completions, problem_arrays(forger.task, problems)),
        host(prompts, completions, problems),
    ):
        assert [REASONS[i] for i in verdicts.reason[some]] == wanted
        np.testing.assert_array_equal(verdicts.reward[some], judged.correct[:, 0])


# single cases, for whoever reads the tests rather than the forger

PROBLEM = CountdownProblem((2, 3, 10), 16)
WORDS = tokenizer_of("countdown")


def one(text, problem=PROBLEM, end=True):
    """The device's reason and reward for one completion under tag 0."""
    ids = text if isinstance(text, list) else WORDS.encode(text)
    ids = [WORDS.vocab_size, *ids, *([WORDS.eos_id] if end else [])]
    tokens, mask = np.zeros((1, 64), np.int32), np.arange(64)[None] < len(ids)
    tokens[0, : len(ids)] = ids
    arrays = problem_arrays(make_task("countdown"), [problem])
    verdicts = device_of("countdown")(None, Completions(tokens, mask), arrays)
    return REASONS[int(verdicts.reason[0])], float(verdicts.reward[0])


def test_countdown_cases():
    right = "answer 3 * 2 = 6 , 10 + 6 = 16"
    assert one(f"3 + 2 = 5 low {right}") == ("correct", 1.0)
    assert one(right, end=False) == ("over_long", 0.0)
    assert one("3 + 2 = 5 low") == ("no_answer", 0.0)
    assert one("answer") == ("no_answer", 0.0)
    assert one(f"{right} ,") == ("malformed", 0.0)
    assert one(right.replace("= 6", "6")) == ("malformed", 0.0)
    assert one(f"{right} answer 2") == ("malformed", 0.0)
    assert one(f"answer 2 {right}") == ("correct", 1.0)
    assert one("answer 3 * 3 = 9 , 10 + 9 = 19") == ("wrong_numbers", 0.0)
    assert one("answer 3 * 2 = 7 , 10 + 7 = 17") == ("wrong_equation", 0.0)
    assert one("answer 3 + 2 = 5 , 10 + 5 = 15") == ("wrong_value", 0.0)
    assert one("answer 2 - 3 = 1 , 10 + 1 = 11") == ("wrong_equation", 0.0)
    limit = CountdownProblem((5, 3, 10), 18)
    assert one("answer 10 * 5 = 50 , 50 + 3 = 53", limit) == ("wrong_equation", 0.0)


def test_pieces_of_words_and_odd_spaces_are_read_as_text():
    right = WORDS.encode("answer 3 * 2 = 6 , 10 + 6 = 16")
    byte = [WORDS.piece_bytes.index(bytes([b])) for b in range(256)]
    sixteen = [*WORDS.encode("1"), byte[ord("6")]]
    assert one([*right[:-1], *sixteen]) == ("correct", 1.0)
    assert one([*right, byte[0xC2], byte[0xA0]]) == ("correct", 1.0)  # a no-break space
    assert one([*right, byte[0xC2]]) == ("malformed", 0.0)
    assert one([*right, WORDS.unk_id]) == ("malformed", 0.0)
    assert one([*right, WORDS.vocab_size + 1]) == ("malformed", 0.0)
    assert one([*right[:4], WORDS.pad_id, WORDS.bos_id, *right[4:]]) == ("correct", 1.0)


def test_no_white_space_lies_beyond_the_table():
    assert not any(chr(code).isspace() for code in range(len(IS_SPACE), 0x110000))


# the functions themselves


def test_device_reward_chooses_by_class():
    class Longer(Countdown):
        """Searches longer, and verifies as its parent."""

        strategies = (*Countdown.strategies, "other")

    class Other(Countdown):
        """Verifies in another way."""

        def verify(self, problem, answer):
            return dataclasses.replace(super().verify(problem, answer), correct=True)

    for name in TASKS:
        on_device = name.startswith(("countdown", "group_words"))
        assert (device_reward(make_task(name), tokenizer_of(name)) is not None) == on_device
    assert device_reward(Longer(), WORDS) is not None
    assert problem_arrays(Longer(), [PROBLEM])["target"].tolist() == [PROBLEM.target]
    assert device_reward(Other(), WORDS) is None
    with pytest.raises(ValueError, match=r"task=Other: it has no reward on the device; use host"):
        problem_arrays(Other(), [PROBLEM])


def test_problem_arrays():
    arrays = problem_arrays(make_task("countdown"), [PROBLEM, CountdownProblem((1, 1, 1), 3)])
    assert {k: v.tolist() for k, v in arrays.items()} == {
        "numbers": [[2, 3, 10], [1, 1, 1]], "target": [16, 3],
    }
    words = problem_arrays(make_task("group_words"), [(0, 5), (1, 2)])
    assert words["word"].tolist() == [[0, 5], [1, 2]]
    assert {a.dtype for a in (*arrays.values(), *words.values())} == {np.dtype(np.int32)}


@pytest.mark.parametrize(
    ("name", "problems", "message"),
    [
        ("countdown", [PROBLEM, CountdownProblem((1, 2), 3)], r"numbers: .* lengths \[2, 3\]"),
        ("countdown", [], r"numbers: problems have lengths \[\]"),
        ("countdown", [CountdownProblem((3,), 3)], r"numbers: \[3\] is too short"),
        ("group_words", [(0, 6)], r"word: elements 0\.\.6 are not in S3; .* 0\.\.5"),
        ("group_words", [(0, 1), (1,)], r"word: problems have lengths \[1, 2\]"),
    ],
)
def test_problem_arrays_refuse(name, problems, message):
    with pytest.raises(ValueError, match=message):
        problem_arrays(make_task(name), problems)


@pytest.mark.parametrize(
    ("name", "make"), [("countdown", countdown_reward), ("group_words", group_words_reward)]
)
def test_rewards_jit_and_vmap(name, make):
    forger = Forger(name, "words", seed=3)
    completions, index = forger.batch(24)
    metadata = problem_arrays(forger.task, [forger.problems[i] for i in index])
    reward = make(forger.task, forger.tokenizer)
    prompts = np.zeros((24, 5), np.int32)
    plain = reward(prompts, completions, metadata)
    assert plain.reward.dtype == jnp.float32 and plain.reason.dtype == jnp.int32
    arguments = (prompts, completions, metadata)
    seeds = jax.tree.map(lambda a: a.reshape(4, 6, *a.shape[1:]), arguments)
    mapped = jax.jit(jax.vmap(reward))(*seeds)
    np.testing.assert_array_equal(mapped.reason.reshape(-1), plain.reason)
    np.testing.assert_array_equal(mapped.reward.reshape(-1), plain.reward)
    assert set(np.asarray(plain.reason).tolist()) > {reason_id("correct")}
