"""Rewards in jnp, for procedural tasks: they jit and vmap, so an RL step can be one program.

They judge as the tasks' own verifiers do, on every sequence of ids that a policy can write. Those
read text, so the ids are spelled out in bytes first and cut into words at white space: a policy may
well write a number in two pieces, or a no-break space.

    reward = device_reward(task, tokenizer)  # None: judge on the host
    metadata = problem_arrays(task, problems)
    verdicts = reward(prompts, completions, metadata)  # jitted; may be part of a larger program
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reasoning.data.tasks.base import ANSWER, Task
from reasoning.data.tasks.countdown import Countdown
from reasoning.data.tasks.group_words import GroupWords, multiplication_table
from reasoning.data.tokenizers import Tokenizer
from reasoning.rewards.verdicts import Completions, RewardFn, Verdicts, ended, reason_id

SPACE = ord(" ")
WORD = 5  # bytes of a word that are looked at: one more than the longest number has digits
# Characters beyond these are no white space.
IS_SPACE = np.array([chr(code).isspace() for code in range(0x10000)])

# (number of words after the last ANSWER, the first of them `[W, WORD]`)
ReadAnswer = Callable[[jax.Array, jax.Array, int], tuple[jax.Array, jax.Array]]
# (read, tokens `[N]`, mask `[N]`, metadata of one problem) -> index into REASONS
JudgeRow = Callable[[ReadAnswer, jax.Array, jax.Array, Any], jax.Array]


@functools.cache
def device_reward(task: Task, tokenizer: Tokenizer) -> RewardFn | None:
    """The task's reward in jnp, None if it has none; the same object for the same arguments.

    It is chosen by the verifier: a subclass has it unless it has a `verify` of its own.
    """
    makers = {Countdown.verify: countdown_reward, GroupWords.verify: group_words_reward}
    maker = makers.get(_verifier(task))
    return maker and maker(task, tokenizer)


def _verifier(task: Task) -> Callable[..., Any] | None:
    """The `verify` of the task's class; None of a corpus, whose answers a judge compares."""
    return getattr(type(task), "verify", None)


def problem_arrays(task: Task, problems: Sequence[Any]) -> dict[str, np.ndarray]:
    """The metadata of P problems for `device_reward`, as host arrays int32.

    Returns:
      countdown: `numbers` `[P, n]` and `target` `[P]`; group_words: `word` `[P, n]`.

    Raises:
      ValueError: no problems, problems of different or too small sizes, elements that the group
        does not have, or a task without a reward on the device.
    """
    if _verifier(task) is Countdown.verify:
        numbers = _rectangle("numbers", [problem.numbers for problem in problems])
        if numbers.shape[1] < 2:
            raise ValueError(f"numbers: {numbers[0].tolist()} is too short; give at least 2.")
        return {"numbers": numbers, "target": np.array([p.target for p in problems], np.int32)}
    if _verifier(task) is GroupWords.verify:
        word = _rectangle("word", problems)
        if word.size and not (word.min() >= 0 and word.max() <= task.max_number):
            raise ValueError(
                f"word: elements {word.min()}..{word.max()} are not in {task.group}; they must "
                f"lie in 0..{task.max_number}."
            )
        return {"word": word}
    raise ValueError(
        f"task={type(task).__name__}: it has no reward on the device; use host.task_reward."
    )


def countdown_reward(task: Countdown, tokenizer: Tokenizer) -> RewardFn:
    """`Countdown.verify` in jnp: reward 1 for a correct answer that ends with <eos>, else 0.

    The metadata are `problem_arrays`: `numbers` `[B, n]` and `target` `[B]`, int32.
    """
    plus, minus, times, over, equals, comma = map(ord, "+-*/=,")

    def judge(read: ReadAnswer, tokens: jax.Array, mask: jax.Array, problem: Any) -> jax.Array:
        num_steps = problem["numbers"].shape[0] - 1
        length = 6 * num_steps - 1  # a op b = c , ... without the last comma
        count, words = read(tokens, mask, length + 1)
        # One row per equation; the word after the last one is what the count speaks about.
        words = words.reshape(num_steps, 6, WORD)
        a, b, c = (_number(words[:, i], digits=4) for i in (0, 2, 4))
        op, is_equal, separator = (_symbol(words[:, i]) for i in (1, 3, 5))
        is_op = (op == plus) | (op == minus) | (op == times) | (op == over)
        formed = (count == length) & jnp.all((a > 0) & (b > 0) & (c > 0))
        formed &= jnp.all(is_op & (is_equal == equals)) & jnp.all(separator[:-1] == comma)

        value = jnp.where(op == plus, a + b, jnp.where(op == minus, a - b, a * b))
        exact = (op != over) & (value == c) & (c <= task.max_number)
        reached = c[-1] == problem["target"]
        reason = jnp.where(reached, reason_id("correct"), reason_id("wrong_value"))
        fault = _replay(problem["numbers"], a, b, c, exact)
        reason = jnp.where(fault >= 0, fault, reason)
        return _answer_reason(count, formed, reason)

    return _reward("countdown_reward", judge, tokenizer)


def _replay(
    numbers: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array, exact: jax.Array
) -> jax.Array:
    """The reason of the first equation `[n - 1]` at fault, -1 if none is."""
    pool, fault = numbers, jnp.int32(-1)
    for i in range(a.shape[0]):
        for operand in (a[i], b[i]):
            found = pool == operand
            fault = jnp.where((fault < 0) & ~found.any(), reason_id("wrong_numbers"), fault)
            # Used numbers become 0, which no equation contains.
            pool = jnp.where(found & (jnp.cumsum(found) == 1), 0, pool)
        fault = jnp.where((fault < 0) & ~exact[i], reason_id("wrong_equation"), fault)
        pool = jnp.append(pool, c[i])
    return fault


def group_words_reward(task: GroupWords, tokenizer: Tokenizer) -> RewardFn:
    """`GroupWords.verify` in jnp: reward 1 for a correct answer that ends with <eos>, else 0.

    The metadata are `problem_arrays`: `word` `[B, n]` int32.
    """
    table = np.array(multiplication_table(task.group), np.int32)

    def judge(read: ReadAnswer, tokens: jax.Array, mask: jax.Array, problem: Any) -> jax.Array:
        count, words = read(tokens, mask, 1)
        answer = _number(words[0], digits=3)
        formed = (count == 1) & (answer >= 0) & (answer <= task.max_number)
        word = problem["word"]
        product, _ = jax.lax.scan(lambda a, b: (jnp.asarray(table)[a, b], None), word[0], word[1:])
        reason = jnp.where(answer == product, reason_id("correct"), reason_id("wrong_value"))
        return _answer_reason(count, formed, reason)

    return _reward("group_words_reward", judge, tokenizer)


def _answer_reason(count: jax.Array, formed: jax.Array, reason: jax.Array) -> jax.Array:
    """The reason of an answer of `count` words, well formed or not."""
    reason = jnp.where(formed, reason, reason_id("malformed"))
    return jnp.where(count == 0, reason_id("no_answer"), reason)


def _reward(name: str, judge: JudgeRow, tokenizer: Tokenizer) -> RewardFn:
    """The reward of that name in error messages, whose reasons `judge` gives row by row."""
    read = _answer_reader(tokenizer)

    def reward(prompts: jax.Array, completions: Completions, metadata: Any) -> Verdicts:
        judge_rows = jax.vmap(functools.partial(judge, read))
        reason = judge_rows(completions.tokens, completions.mask, metadata)
        finished = ended(completions, tokenizer.stop_ids)
        reason = jnp.where(finished, reason, reason_id("over_long")).astype(jnp.int32)
        return Verdicts((reason == reason_id("correct")).astype(jnp.float32), reason)

    reward.__name__ = name
    return jax.jit(reward)


def _answer_reader(tokenizer: Tokenizer) -> ReadAnswer:
    """Make the function that finds the words of a final answer, as `parse_completion` does.

    It takes tokens `[N]`, mask `[N]` and W, and returns the number of words after the last ANSWER
    (0 without one) and the first W of these words in bytes `[W, WORD]`, filled up with spaces.
    """
    pieces = tokenizer.piece_bytes  # `decode` says what bytes mean in text, not which an id has
    sizes = np.array([len(piece) for piece in pieces], np.int32)
    spelling = np.full((len(pieces), sizes.max()), SPACE, np.uint8)
    for i, piece in enumerate(pieces):
        spelling[i, : len(piece)] = list(piece)

    def read(tokens: jax.Array, mask: jax.Array, num_words: int) -> tuple[jax.Array, jax.Array]:
        # A tag opens a completion and is no text; a tag in the middle is an unknown word.
        is_tag = tokens >= len(pieces)
        tokens = jnp.where(is_tag, tokenizer.unk_id, tokens)
        opening = mask & (jnp.cumsum(mask) == 1)
        size = jnp.where(mask & ~(opening & is_tag), jnp.asarray(sizes)[tokens], 0)
        text = _spell(jnp.asarray(spelling), tokens, size)
        text = jnp.where(_is_space(text), SPACE, text)

        place = jnp.arange(text.shape[0])
        starts = (text != SPACE) & (jnp.roll(text, 1).at[0].set(SPACE) == SPACE)
        is_answer = starts
        for ahead, letter in enumerate((*ANSWER.encode(), SPACE)):
            is_answer &= _ahead(text, ahead) == letter
        last = jnp.max(jnp.where(is_answer, place, -1))
        words = jnp.cumsum(starts & is_answer.any() & (place > last))
        # Where the first W words start; behind the end, where spaces are, if there are fewer.
        begin = jnp.searchsorted(words, jnp.arange(1, num_words + 1))
        text = jnp.append(text, jnp.full(WORD, SPACE, text.dtype))
        return words[-1], text[begin[:, None] + jnp.arange(WORD)[None]]

    return read


def _spell(spelling: jax.Array, tokens: jax.Array, size: jax.Array) -> jax.Array:
    """Bytes `[N * L]` uint8 of tokens `[N]`, `size` of each, with spaces behind them.

    `spelling` `[V, L]` uint8 has the bytes of every id.
    """
    num_bytes, offset = tokens.shape[0] * spelling.shape[1], jnp.arange(spelling.shape[1])[None]
    place = (jnp.cumsum(size) - size)[:, None] + offset
    place = jnp.where(offset < size[:, None], place, num_bytes)  # out of bounds: dropped
    text = jnp.full(num_bytes, SPACE, spelling.dtype)
    return text.at[place].set(spelling[tokens], mode="drop")


def _ahead(text: jax.Array, count: int) -> jax.Array:
    """The byte `count` places further on, SPACE behind the end."""
    return jnp.append(text, jnp.full(count, SPACE, text.dtype))[count:]


def _is_space(text: jax.Array) -> jax.Array:
    """Whether each byte `[M]` belongs to white space, as `str.split` sees the decoded text.

    The decoder never skips a character's first byte, so valid UTF-8 may be sought at every place.
    """
    one, two, three = (_ahead(text, i).astype(jnp.int32) for i in range(3))
    pair = (one & 0x1F) << 6 | (two & 0x3F)
    triple = (one & 0x0F) << 12 | (two & 0x3F) << 6 | (three & 0x3F)
    # A code that fits into fewer bytes is not valid.
    is_pair = (one & 0xE0 == 0xC0) & (two & 0xC0 == 0x80) & (pair >= 0x80)
    is_triple = (one & 0xF0 == 0xE0) & (two & 0xC0 == 0x80) & (three & 0xC0 == 0x80)
    is_triple &= triple >= 0x800
    code = jnp.where(is_triple, triple, jnp.where(is_pair, pair, one))
    found = jnp.asarray(IS_SPACE)[code] & ((one < 0x80) | is_pair | is_triple)

    def behind(flags: jax.Array, count: int) -> jax.Array:
        return jnp.append(jnp.zeros(count, bool), flags)[: flags.shape[0]]

    second = behind(found & (is_pair | is_triple), 1)
    return found | second | behind(found & is_triple, 2)


def _length(words: jax.Array) -> jax.Array:
    """How many bytes each word `[..., WORD]` has; WORD if it has as many or more."""
    return jnp.cumprod(words != SPACE, axis=-1).sum(axis=-1)


def _symbol(words: jax.Array) -> jax.Array:
    """The byte of each word `[..., WORD]` of one byte, -1 for longer ones."""
    return jnp.where(_length(words) == 1, words[..., 0].astype(jnp.int32), -1)


def _number(words: jax.Array, digits: int) -> jax.Array:
    """The value of each word `[..., WORD]` in canonical decimal, -1 for anything else."""
    length = _length(words)
    valid = (length >= 1) & (length <= digits)
    valid &= (words[..., 0] != ord("0")) | (length == 1)
    value = jnp.zeros(length.shape, jnp.int32)
    for i in range(digits):
        digit = words[..., i].astype(jnp.int32) - ord("0")
        valid &= (i >= length) | ((digit >= 0) & (digit <= 9))
        value = jnp.where(i < length, 10 * value + digit, value)
    return jnp.where(valid, value, -1)


def _rectangle(field: str, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Rows of one length as `[P, n]` int32."""
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1:
        raise ValueError(f"{field}: problems have lengths {lengths}; give problems of one length.")
    return np.array(rows, np.int32)
