"""Rewards on the host: texts in, verdicts out, and errors that name function and completion."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reasoning.data.formats import TextFormat
from reasoning.data.tasks import make_task
from reasoning.data.tasks.base import Verdict
from reasoning.data.tasks.countdown import CountdownProblem
from reasoning.data.tokenizers import train_tokenizer
from reasoning.rewards.host import HostReward, task_reward
from reasoning.rewards.verdicts import REASONS, Completions
from reasoning.sampling.sampler import pad_prompts

TASK = make_task("countdown")
TOKENIZER = train_tokenizer(
    (), vocab_size=None, words=TASK.words, numbers="whole", max_number=TASK.max_number
)
FORMAT = TextFormat(TOKENIZER)
TAG, EOS = TOKENIZER.vocab_size, TOKENIZER.eos_id


def batch(*texts, prompt="1 2 make 3 :", end=True):
    """Prompts `[B, T]` and completions of these texts."""
    prompts, _ = pad_prompts([TOKENIZER.encode(prompt)] * len(texts), TOKENIZER.pad_id)
    rows = [[TAG, *TOKENIZER.encode(text), *([EOS] if end else [])] for text in texts]
    tokens, mask = np.zeros((len(rows), 40), np.int32), np.zeros((len(rows), 40), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    return prompts, Completions(tokens, mask)


def obey(prompts, completions, metadata):
    """Do to each completion what the metadata say."""
    if "raise" in metadata:
        raise KeyError("no such key")
    if "die" in metadata:
        os._exit(1)
    return [item for item in metadata if item != "drop"]


def read_back(prompts, completions, metadata):
    """How many words prompt and completion have."""
    return [10 * len(p.split()) + len(c.split()) for p, c in zip(prompts, completions)]


@pytest.fixture(scope="module")
def obedient():
    """A function of num_workers: rewards that `obey`; the pool of workers is started once."""
    with HostReward(obey, FORMAT) as here, HostReward(obey, FORMAT, num_workers=2) as there:
        yield {0: here, 2: there}.get


@pytest.fixture(scope="module", params=[0, 2])
def obeying(request, obedient):
    return obedient(request.param)


def test_kinds_of_items(obeying):
    prompts, completions = batch(*["1"] * 9)
    items = [0.5, -2, np.float32(0.25), True, None, np.int64(3), Verdict(True, "correct"),
             Verdict(False, "malformed"), np.bool_(True)]
    verdicts = obeying(prompts, completions, items)
    assert isinstance(verdicts.reward, np.ndarray) and verdicts.reward.dtype == np.float32
    assert isinstance(verdicts.reason, np.ndarray) and verdicts.reason.dtype == np.int32
    assert verdicts.reward.tolist() == [0.5, -2, 0.25, 1, 0, 3, 1, 0, 1]
    assert [REASONS[i] for i in verdicts.reason] == [
        *["scored"] * 4, "skipped", "scored", "correct", "malformed", "scored",
    ]


def test_a_completion_without_eos_is_never_correct(obedient):
    prompts, completions = batch(*["1"] * 4, end=False)
    items = [Verdict(True, "correct"), Verdict(False, "malformed"), 0.5, None]
    verdicts = obedient(0)(prompts, completions, items)
    assert verdicts.reward.tolist() == [0, 0, 0.5, 0]
    assert [REASONS[i] for i in verdicts.reason] == [
        "over_long", "over_long", "scored", "skipped",
    ]


def test_the_function_reads_texts_without_tag_and_special_ids():
    seen = []

    def watch(prompts, completions, metadata):
        seen.extend(zip(prompts, completions, metadata))
        return [0.0] * len(prompts)

    prompts, completions = batch("7 * 5 = 35", "answer", prompt="2 3 make 5 :")
    prompts[1, 0] = TAG  # no text has it, but ids are ids
    completions.tokens[1, 0] = TOKENIZER.encode("from")[0]  # opens with no tag
    HostReward(watch, FORMAT)(prompts, completions, ["a", "b"])
    assert seen == [
        ("2 3 make 5 :", "7 * 5 = 35", "a"), ("\ufffd 3 make 5 :", "from answer", "b"),
    ]


def test_an_empty_batch(obeying):
    prompts = np.zeros((0, 3), np.int32)
    completions = Completions(np.zeros((0, 4), np.int32), np.zeros((0, 4), bool))
    assert obeying(prompts, completions, []).reward.shape == (0,)


def test_workers_keep_the_order(obedient):
    rng = np.random.default_rng(0)
    items = rng.normal(size=101).astype(np.float32)
    prompts, completions = batch(*["1"] * 101)
    assert obedient(2)(prompts, completions, list(items)).reward.tolist() == items.tolist()


def test_workers_get_their_own_rows():
    texts = [" ".join(["1"] * (1 + i % 7)) for i in range(23)]
    prompts, completions = batch(*texts, prompt="2 3 make 5 :")
    here = HostReward(read_back, FORMAT)(prompts, completions, [None] * 23)
    assert here.reward.tolist() == [50 + 1 + i % 7 for i in range(23)]
    with HostReward(task_reward(TASK), FORMAT, num_workers=1) as reward:
        problem = CountdownProblem((2, 3, 10), 16)
        texts = ["answer 3 * 2 = 6 , 10 + 6 = 16", "answer 3 + 2 = 5 , 10 + 5 = 15", "3"]
        verdicts = reward(*batch(*texts), [problem] * 3)
    assert verdicts.reward.tolist() == [1, 0, 0]
    assert [REASONS[i] for i in verdicts.reason] == ["correct", "wrong_value", "no_answer"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_a_number_that_is_not_finite_is_refused(obeying, value):
    with pytest.raises(ValueError, match=r"^obey returned .* completion '35 high'; .* to skip it"):
        obeying(*batch("7", "35 high"), [1.0, value])


@pytest.mark.parametrize("value", ["1.0", [1.0]])
def test_an_item_of_a_wrong_kind_is_refused(obeying, value):
    with pytest.raises(ValueError, match=r"^obey returned .*1\.0.* completion '35 high'; return a"):
        obeying(*batch("7", "35 high"), [1.0, value])


def test_an_unknown_reason_is_refused(obeying):
    with pytest.raises(ValueError, match=r"^obey on the completion '35': reason='odd': must be"):
        obeying(*batch("35"), [Verdict(False, "odd")])


def test_a_function_that_raises_is_named_with_the_completion(obeying):
    texts = [str(i) for i in range(20)]
    wanted = r"^obey raised KeyError: 'no such key'; on the completion '17'\."
    with pytest.raises(RuntimeError, match=wanted) as caught:
        obeying(*batch(*texts), [0.0] * 17 + ["raise"] + [0.0] * 2)
    cause = caught.value.__cause__
    assert isinstance(cause, KeyError) or "KeyError: 'no such key'" in str(cause)


def test_a_function_that_returns_too_few_items_is_named(obeying):
    texts = [str(i) for i in range(20)]
    wanted = r"^obey returned (2 items for 3|19 items for 20) completions, first wrong with '3';"
    with pytest.raises(ValueError, match=wanted):
        obeying(*batch(*texts), [0.0] * 3 + ["drop"] + [0.0] * 16)


def test_long_completions_are_shortened_in_errors(obedient):
    with pytest.raises(ValueError) as caught:
        obedient(0)(*batch(" ".join(["high"] * 38)), [np.nan])
    assert "'high high" in str(caught.value) and " ... " in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_worker_that_dies_says_so():
    prompts, completions = batch("7", "35 high")
    reward = HostReward(obey, FORMAT, num_workers=1, name="deadly")
    with pytest.raises(RuntimeError, match=r"^deadly: a worker process died; .* num_workers=0"):
        reward(prompts, completions, [1.0, "die"])
    with pytest.raises(RuntimeError, match=r"^deadly: a worker process died"):
        reward(prompts, completions, [1.0, 1.0])
    reward.close()


ORPHANS = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_host

def judge(prompts, completions, metadata):
    return [1.0] * len(completions)

if __name__ == "__main__":
    reward = test_host.HostReward(judge, test_host.FORMAT, num_workers=1)
    prompts, completions = test_host.batch("a")
    print(reward(prompts, completions, [None]).reward[0], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_program_that_is_killed(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    # The worker holds the pipe open for as long as it lives: this returns when it has ended.
    done = subprocess.run(
        [sys.executable, str(script), str(Path(__file__).parent)], capture_output=True, text=True,
        timeout=120, check=False,
    )
    assert done.returncode == -signal.SIGKILL and done.stdout == "1.0\n", done.stderr


def test_closing_frees_the_workers():
    with HostReward(obey, FORMAT, num_workers=1) as reward:
        reward(*batch("7"), [1.0])
        workers = list(reward._pool._processes.values())
        assert workers and all(worker.is_alive() for worker in workers)
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(ValueError, match="obey: this reward is closed"):
        reward(*batch("7"), [1.0])
    reward.close()  # once more does no harm


def test_bad_arguments_are_refused(obedient):
    prompts, completions = batch("7", "35")
    with pytest.raises(ValueError, match=r"^metadata: 3 entries for 2 prompts and 2 completions"):
        obedient(0)(prompts, completions, [0.0] * 3)
    completions.mask[1] = False
    with pytest.raises(ValueError, match=r"^mask: completion 1 has no token"):
        obedient(0)(prompts, completions, [0.0] * 2)
    with pytest.raises(ValueError, match="num_workers=-1: must be 0"):
        HostReward(obey, FORMAT, num_workers=-1)
    with pytest.raises(ValueError, match=r"function=<lambda>: it cannot be sent .* num_workers=0"):
        HostReward(lambda p, c, m: [], FORMAT, num_workers=1)
