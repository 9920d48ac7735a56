"""The judge as a whole: verdicts, memo, metrics, hostile answers, and the real corpora.

    REASONING_DATA=../shared/data pytest -m slow tests/rewards/test_judges.py
"""

import itertools
import json
import os
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from reasoning.data.formats import TextFormat
from reasoning.data.tasks.base import Verdict
from reasoning.data.tokenizers import train_tokenizer
from reasoning.rewards import judges
from reasoning.rewards.answers import AnswerKind, compare, extract
from reasoning.rewards.host import HostReward
from reasoning.rewards.judges import AnswerJudge, check_questions
from reasoning.rewards.symbolic import Outcome, SymbolicPool
from reasoning.rewards.verdicts import REASONS, Completions, TooManyFailures, reason_id
from reasoning.sampling.sampler import pad_prompts


class Question(NamedTuple):
    answer: str
    kind: AnswerKind


class StubPool:
    """A pool that answers what the answer says: `\\right`, `\\timeout`, ..."""

    def __init__(self, version="stub 1"):
        self.version, self.asked = version, []

    def verify(self, pairs):
        self.asked += pairs
        return [Outcome(answer[1:], 2.0) for _, answer in pairs]


def judge_all(judge, *rows, prompt="?"):
    """Verdicts on (gold, kind, completion)."""
    questions = [Question(gold, kind) for gold, kind, _ in rows]
    return judge([prompt] * len(rows), [text for *_, text in rows], questions)


def boxed(*answers, gold="x", kind="expression"):
    return [(gold, kind, rf"so \boxed{{{answer}}}") for answer in answers]


def test_verdicts_name_answer_method_reason_and_time():
    rows = [
        ("18", "number", "9 + 9 = 18\n#### 18"), ("18", "number", r"\boxed{9}"),
        ("(A)", "text", r"\boxed{A}"), ("18", "number", "18"), ("18", "number", r"\boxed{18"),
        *boxed("x", r"\right", r"\wrong", r"\unparsed", r"\timeout", r"\crash", "x, y"),
    ]  # fmt: skip
    verdicts = judge_all(AnswerJudge(pool=StubPool()), *rows)
    assert [(v.correct, v.reason, v.answer, v.method) for v in verdicts] == [
        (True, "correct", "18", "exact"),
        (False, "wrong_value", "9", "exact"),
        (True, "correct", "A", "exact"),
        (False, "no_answer", None, "exact"),
        (False, "unbalanced", None, "exact"),
        (True, "correct", "x", "exact"),
        (True, "correct", r"\right", "symbolic"),
        (False, "wrong_value", r"\wrong", "symbolic"),
        (False, "unparsed", r"\unparsed", "symbolic"),
        (False, "timeout", r"\timeout", "symbolic"),
        (False, "crash", r"\crash", "symbolic"),
        (False, "ambiguous", "x, y", "exact"),
    ]
    assert [v.milliseconds == 2.0 for v in verdicts] == [v.method == "symbolic" for v in verdicts]
    assert all(v.milliseconds > 0 and reason_id(v.reason) >= 0 for v in verdicts)
    assert Verdict(True, "correct") == Verdict(True, "correct", None, "exact", 0.0)


def test_thinking_that_the_prompt_opened_is_no_answer():
    row = ("7", "number", r"\boxed{7}")
    for prompt, reason in (("?", "correct"), ("?<think>", "no_answer"), ("<think>\n", "no_answer")):
        (verdict,) = judge_all(AnswerJudge(), row, prompt=prompt)
        assert verdict.reason == reason
    done = ("7", "number", r"\boxed{6}</think>\boxed{7}")
    assert judge_all(AnswerJudge(), done, prompt="?<think>")[0].correct


def test_a_pair_is_asked_for_once():
    pool = StubPool()
    judge = AnswerJudge(pool=pool, max_failures=1)
    first = judge_all(judge, *boxed(r"\right", r"\timeout", r"\right"))
    again = judge_all(judge, *boxed(r"\timeout", r"\right"), *boxed(r"\right", gold="y"))
    assert pool.asked == [("x", r"\right"), ("x", r"\timeout"), ("y", r"\right")]
    assert [v.reason for v in first + again] == [
        "correct", "timeout", "correct", "timeout", "correct", "correct",
    ]  # fmt: skip
    assert [v.milliseconds for v in first + again] == [2, 2, 0, 0, 0, 2]
    assert {v.method for v in first + again} == {"symbolic"}


def test_a_resumed_judge_sees_the_same_rewards():
    judge = AnswerJudge(pool=StubPool())
    rows = boxed(r"\right", r"\timeout", r"\crash", "x,y")
    before = judge_all(judge, *rows)
    memo = json.loads(json.dumps(judge.memo()))

    class Changed(StubPool):  # now it all takes longer
        def verify(self, pairs):
            self.asked += pairs
            return [Outcome("timeout", 2.0) for _ in pairs]

    resumed = AnswerJudge(pool=(pool := Changed()))
    resumed.load_memo(memo)
    after = judge_all(resumed, *rows)
    assert [(v.correct, v.reason, v.method) for v in after] == [
        (v.correct, v.reason, v.method) for v in before
    ]
    assert pool.asked == [] and resumed.memo() == memo

    other = AnswerJudge(pool=(pool := Changed("stub 2")))  # another version judges anew
    other.load_memo(memo)
    assert judge_all(other, *rows)[0].reason == "timeout" and len(pool.asked) == 3
    assert len(other.memo()["verdicts"]) == 6
    other.load_memo(memo)
    assert other.memo() == memo


@pytest.mark.parametrize("memo", [{}, {"verdicts": [["x", "y", "right"]]}, {"verdicts": 3},
                                  {"verdicts": [["v", "x", "y", "odd"]]}])
def test_a_damaged_memo_is_refused(memo):
    with pytest.raises(ValueError, match=r"^memo: not what AnswerJudge\.memo\(\) gave"):
        AnswerJudge().load_memo(memo)


def test_the_oldest_verdicts_are_forgotten(monkeypatch):
    monkeypatch.setattr(judges, "MEMO_SIZE", 3)
    judge = AnswerJudge(pool=StubPool(), max_failures=1)
    for gold in "abcde":
        judge_all(judge, *boxed(r"\right", gold=gold))
    assert [gold for _, gold, *_ in judge.memo()["verdicts"]] == list("cde")
    golds = "fghij"  # more in one batch than are remembered
    rows = [row for gold in golds for row in boxed(r"\right", gold=gold)]
    assert all(v.correct for v in judge_all(judge, *rows))
    assert len(judge.memo()["verdicts"]) == 3


def test_metrics_are_shares_since_the_last_call():
    judge = AnswerJudge(pool=StubPool())
    assert judge.metrics() == {}
    judge_all(judge, *boxed("x", "y,z", r"\timeout", r"\unparsed", r"\right", r"\right"),
              ("7", "number", "?"), ("7", "number", r"\boxed{7}"))  # fmt: skip
    metrics = judge.metrics()
    assert metrics.pop("p99_milliseconds") == pytest.approx(2.0)
    assert metrics == {
        "exact": 4 / 8, "symbolic": 4 / 8, "memoised": 1 / 8, "no_answer": 1 / 8,
        "unparsed": 1 / 8, "timeout": 1 / 8, "crash": 0.0,
    }  # fmt: skip
    assert judge.metrics() == {}
    judge_all(judge, *boxed(r"\crash"))
    assert judge.metrics()["crash"] == 1.0


def test_too_many_failures_stop_the_training():
    wanted = r"^max_failures=0\.01: 2 of the last 100 answers ended in a timeout or crash of"
    judge = AnswerJudge(pool=StubPool())
    judge_all(judge, *boxed(r"\timeout", r"\crash", *["x"] * 97))  # too few to tell
    with pytest.raises(RuntimeError, match=wanted):
        judge_all(judge, *boxed("x"))
    judge = AnswerJudge(pool=StubPool(), max_failures=0.02)
    judge_all(judge, *boxed(r"\timeout", r"\timeout", *["x"] * 98))
    judge = AnswerJudge(pool=StubPool())
    judge_all(judge, *boxed(*["x"] * 5000))  # long good times are no excuse
    with pytest.raises(RuntimeError, match=r"^max_failures=0\.01: 11 of the last 1000 answers"):
        judge_all(judge, *boxed(*[r"\timeout"] * 11))


def test_a_bad_batch_is_stopped_before_it_is_worked_through():
    pool = StubPool()
    rows = [(f"x_{i}", "expression", r"\boxed{\timeout}") for i in range(5000)]
    rows += boxed(*["x"] * 1000)  # a good end is no excuse
    wanted = r"^max_failures=0\.01: 100 of the last 100 .* '\\\\timeout' where the gold is 'x_99';"
    with pytest.raises(TooManyFailures, match=wanted):
        judge_all(AnswerJudge(pool=pool), *rows)
    assert len(pool.asked) == judges.CHUNK


def test_failures_blame_no_completion_of_their_batch():
    tokenizer = train_tokenizer((), vocab_size=None, words=["####"], numbers="whole", max_number=20)
    judge = AnswerJudge(pool=StubPool())
    judge_all(judge, *boxed(*["x"] * 97, r"\timeout", r"\crash"))  # one answer short of the count
    tokens = [[tokenizer.vocab_size, *tokenizer.encode("#### 1"), tokenizer.eos_id]]
    tokens = np.array(tokens, np.int32)
    prompts, _ = pad_prompts([tokenizer.encode("7")], tokenizer.pad_id)
    wanted = r"^max_failures=0\.01: 2 of the last 100 .* '\\\\crash' where the gold is 'x';"
    with (
        HostReward(judge, TextFormat(tokenizer)) as reward,
        pytest.raises(TooManyFailures, match=wanted),
    ):
        reward(prompts, Completions(tokens, tokens >= 0), [Question("1", "number")])


def test_gold_answers_are_checked_before_anything_is_judged():
    def asked(gold, kind):
        return SimpleNamespace(id="set/7", answer=gold, kind=kind)

    golds = [asked(f"{i},000", "number") for i in range(1, 10)]
    golds += [asked(rf"\frac{{{i}}}{{7}} + x", "expression") for i in range(8800)]
    started = time.process_time()
    check_questions([*golds, asked("(A)", "text"), asked("x, y", "expression")])
    assert time.process_time() - started < 2
    for gold, kind, sentence in (
        ("twelve", "number", "gold='twelve': is no number"), ("\t", "text", r"gold='\\t': a gold"),
        ("9" * 65, "expression", "gold='9+': is itself too_long; write"),
        ("5,7", "number", "gold='5,7': is no number"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^question set/7: {sentence}"):
            check_questions([*golds[:3], asked(gold, kind)])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"^kind='expression': only algebra .*'\.\[math\]'"):
        judge_all(AnswerJudge(), *boxed("x"))
    with pytest.raises(ValueError, match=r"^max_failures=2: must be a share between 0 and 1"):
        AnswerJudge(max_failures=2)
    with pytest.raises(ValueError, match=r"^rules=\(\): give at least one, such as 'boxed'"):
        AnswerJudge(())
    with pytest.raises(ValueError, match=r"^rules=\('box',\): 'box' is none of"):
        AnswerJudge(("box",))
    with pytest.raises(ValueError, match=r"^completions: 0 for 1 prompts and 0 questions; give"):
        AnswerJudge()(["?"], [], [])


def test_the_judge_is_a_reward():
    """Completions that were cut off are over-long, as with any reward on the host."""
    tokenizer = train_tokenizer((), vocab_size=None, words=["####"], numbers="whole", max_number=20)
    rows = [tokenizer.encode(text) for text in ("#### 18", "#### 17", "18", "#### 18")]
    tokens, mask = [], []
    for i, row in enumerate(rows):
        ids = [tokenizer.vocab_size, *row, *([tokenizer.eos_id] if i < 3 else [])]
        tokens.append(ids + [0] * (6 - len(ids)))
        mask.append([True] * len(ids) + [False] * (6 - len(ids)))
    prompts, _ = pad_prompts([tokenizer.encode("7")] * 4, tokenizer.pad_id)
    with HostReward(AnswerJudge(), TextFormat(tokenizer)) as reward:
        assert reward.name == "answers"
        completions = Completions(np.array(tokens, np.int32), np.array(mask))
        verdicts = reward(prompts, completions, [Question("18", "number")] * 4)
    assert verdicts.reward.tolist() == [1, 0, 0, 0]
    assert [REASONS[i] for i in verdicts.reason] == [
        "correct", "wrong_value", "no_answer", "over_long",
    ]  # fmt: skip


# ------------------------------------------------------------------------ with math-verify itself

# Where the exact comparison decides, math-verify decides alike. (It is meant to differ on percent
# signs, bases, chains, approximations and calculations: tests/rewards/test_answers.py.)
DECIDED = [
    ("18", "18.0"), ("1000", "1,000"), ("1000", "1{,}000"), ("1000", "1.000"), ("-5", "5"),
    ("0.5", r"\frac{1}{2}"), ("0.5", r"\dfrac12"), (r"\frac{2}{3}", r"\frac{4}{6}"),
    (r"\frac{1}{3}", "0.333"), ("1.5", r"1\frac{1}{2}"), ("18", r"\$18"), ("18", r"18\text{ km}"),
    ("90", r"90^\circ"), (r"90^\circ", "90"), ("18", "x=18"), ("x=5", "5"), ("5", "5,7"),
    ("5", r"\{5,7\}"), ("5", r"\pm 5"), ("5", r"5 \text{ or } 7"), ("5", "x=5, x=7"),
    (r"\left(1, 2\right)", "(1,2)"), (r"\text{Evelyn}", r"\text{Evelyn}"),
    (r"\text{Evelyn}", r"\text{Ann}"), (r"\sqrt{5}", r"\sqrt{5}, 7"), ("x^2", "f(x)=x^2"),
    (r"\frac{\pi}{2}", r"\dfrac{\pi}{2}"), ("7", "8"), ("7", "-7"),
    ("[0,1)", r"x \in [0,1)"), (r"2\pi", r"2 \pi"), ("0.07", r"7\%"),
]  # fmt: skip

COSTLY = [  # for algebra or for a parser
    "9^{9^{9^{9}}}", r"9^{9^{9^9}}\cdot x", "((9!)!)!", r"(10^7)!", r"10^{10^8}",
    r"\binom{10^9}{5\cdot 10^8}", r"\frac{5^{5^{5^{5^5}}-4}-5}{16}", "(x+1)^{9999}",
    r"(x+y+z+w+1)^{99}", r"\sum_{k=1}^{10^9} k^k", r"\prod_{k=1}^{10^9} (x+k)",
    r"\int_0^\infty e^{x^x} \sin(x^3) dx", r"\lim_{n \to \infty} (1+x/n)^{n^n}",
    r"\frac{1}{" * 30 + "x" + "}" * 30, r"\frac{1}{" * 300 + "x" + "}" * 300,
    "{" * 5000 + "7" + "}" * 5000, "(" * 5000 + "7" + ")" * 5000, "(" * 32 + "x" + ")" * 32,
    "{" * 32 + "x" + "}" * 32, r"\sqrt{" * 31 + "x" + "}" * 31, "9" * 10**5, "1," * 5000,
    "9." * 250, "x" * 512, "x^" * 200 + "x", "-" * 511 + "x", "x+" * 255 + "x", r"\sqrt" * 100,
    "sin" * 170, r"\sin\cos" * 60 + "x", "x_" * 250 + "1", "|" * 101, r"\left(" * 80,
    r"\begin{pmatrix}" + "1&" * 200 + r"1\end{pmatrix}", r"\overline{" * 30 + "7" + "}" * 30,
]  # fmt: skip
ODD = [  # odd letters, and code
    "\x00", "7\x00", "\ud800 7", "\udfff", "٧", "７", "𝟟", "7\u200b", "\u202e7", "é" * 512,
    "\r\n\t", "\x1b[31m7", '__import__("os").system("touch {canary}")',
    "x.__class__.__mro__[1].__subclasses__()", 'exec("open(\'{canary}\', \'w\')")',
    r"\text{__import__('os').system('touch {canary}')}", r"\input{/etc/passwd}",
    r"\write18{touch {canary}}", "lambda: open('{canary}','w')", "{{7*7}}", "$(touch {canary})",
    "`touch {canary}`", "'; import os; os.mkdir('{canary}'); '",
]  # fmt: skip


@pytest.fixture(scope="module")
def pool():
    pytest.importorskip("math_verify")
    # On the wall it may be several times the CPU time, when other tests run beside this one.
    with SymbolicPool(2, cpu_seconds=0.2) as pool:
        yield pool


def test_the_exact_comparison_agrees_with_math_verify(pool):
    found = [compare(gold, answer, "expression") for gold, answer in DECIDED]
    assert None not in found
    outcomes = pool.verify(DECIDED)
    differ = [
        (pair, verdict.reason, outcome.result)
        for pair, verdict, outcome in zip(DECIDED, found, outcomes)
        if verdict.correct != (outcome.result == "right")
    ]
    assert not differ


def check_hostile(pool, answers, canary):
    """Judge each answer for each kind of gold answer: quickly, and with nothing executed."""
    judge = AnswerJudge(("boxed", "hashes"), pool, max_failures=1)
    answers = [answer.replace("{canary}", str(canary)) for answer in answers]
    texts = [t for a in answers for t in (rf"\boxed{{{a}}}", f"#### {a}", rf"\boxed{{{a}")]
    texts.append(r"\boxed{" * 10_000)
    golds = [("8", "number"), ("8", "expression"), ("y+2", "expression"), ("A", "text")]
    for (gold, kind), text in itertools.product(golds, texts):
        (verdict,) = judge_all(judge, (gold, kind, text))
        assert not verdict.correct, (gold, text)
        assert verdict.milliseconds < 1000, (gold, text, verdict)
    assert not canary.exists()
    return judge.metrics()


def test_memory_of_workers_is_limited(pool):
    pool.verify([("2x", "x+x")])  # one that was stopped for its time starts again when asked
    running = [worker._process for worker in pool._workers if worker._process is not None]
    assert running
    for process in running:
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        (line,) = [x for x in limits.splitlines() if x.startswith("Max address space")]
        assert int(line.split()[3]) < 500 * 10**6


def test_some_hostile_answers(pool, tmp_path):
    metrics = check_hostile(pool, [COSTLY[0], *ODD], tmp_path / "canary")
    assert metrics["timeout"] > 0


@pytest.mark.slow
def test_all_hostile_answers(pool, tmp_path):
    print(check_hostile(pool, COSTLY + ODD, tmp_path / "canary"))


def corpora():
    """(name, gold, kind, solution) of the sets under REASONING_DATA."""
    root = Path(os.environ["REASONING_DATA"])
    for split in ("train", "test"):
        for line in (root / "gsm8k" / f"{split}.jsonl").read_text().splitlines():
            solution = json.loads(line)["answer"]
            yield f"gsm8k {split}", solution.split("#### ")[1], "number", solution
    for row in json.loads((root / "svamp" / "SVAMP.json").read_text()):
        yield "svamp", str(row["Answer"]), "number", f"{row['Equation']}\n#### {row['Answer']}"
    for path in sorted((root / "bbh").glob("*.json")):
        numeric = path.stem in ("multistep_arithmetic_two", "object_counting")
        for row in json.loads(path.read_text())["examples"]:
            kind = "number" if numeric else "text"
            yield f"bbh {path.stem}", row["target"], kind, f"so\n#### {row['target']}"


def sets():
    return {
        name: list(rows) for name, rows in itertools.groupby(corpora(), key=lambda row: row[0])
    }


needs_data = pytest.mark.skipif(
    "REASONING_DATA" not in os.environ, reason="REASONING_DATA names no folder with the corpora"
)


@pytest.mark.slow
@needs_data
def test_all_gold_answers_are_right_and_no_other():
    judge = AnswerJudge(("hashes",))
    for name, rows in sets().items():
        own = judge_all(judge, *[row[1:] for row in rows])
        assert [v.reason for v in own] == ["correct"] * len(rows), name
        value = (lambda g: Fraction(g.replace(",", ""))) if rows[0][2] == "number" else str
        golds = [row[1] for row in rows]
        others = [
            next(g for g in golds[i + 1 :] + golds[:i] if value(g) != value(gold))
            for i, gold in enumerate(golds)
        ]
        swapped = [(row[1], row[2], f"#### {other}") for row, other in zip(rows, others)]
        assert not any(v.correct for v in judge_all(judge, *swapped)), name
        print(name, len(rows), judge.metrics())


@pytest.mark.slow
@needs_data
def test_no_disagreement_with_math_verify_on_the_corpora(pool):
    pairs = {}
    for rows in sets().values():
        golds = [row[1] for row in rows]
        for i, (_, gold, kind, _) in enumerate(rows):
            if kind == "number":
                plain = gold.replace(",", "")
                for answer in (
                    gold, plain, rf"\${gold}", rf"{gold}\text{{ dollars}}", f"{gold}.",
                    f"x={plain}", rf"\frac{{{plain.split('.')[0]}}}{{1}}", golds[i - 1],
                    f"{plain}1", f"-{plain}", f"{plain}, {plain}1",
                    rf"{plain} \text{{ or }} {plain}1",
                ):  # fmt: skip
                    pairs[plain, answer] = None
    pairs = list(pairs)
    found = [compare(gold, extract(rf"\boxed{{{a}}}").answer, "number") for gold, a in pairs]
    outcomes = pool.verify(pairs)
    differ = [
        (pair, verdict, outcome)
        for pair, verdict, outcome in zip(pairs, found, outcomes)
        # math-verify cannot read `72.`, the end of a sentence: it decides nothing then.
        if verdict.correct != (outcome.result == "right") and outcome.result != "unparsed"
    ]
    print(len(pairs), "pairs,", sum(v.correct for v in found), "right")
    assert not differ
