"""Symbolic workers: what math-verify decides, limits, deaths and ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reasoning.rewards import symbolic
from reasoning.rewards.symbolic import SymbolicPool

pytest.importorskip("math_verify")

ENDLESS = ("5", "9^{9^{9^{9}}}")


@pytest.fixture(scope="module")
def pool():
    """Two workers, shared by the tests that leave them as they are."""
    with SymbolicPool(2, cpu_seconds=0.5) as pool:
        yield pool


def results(pool, *pairs):
    return [outcome.result for outcome in pool.verify(pairs)]


def running(pool):
    """The processes of a pool."""
    return [worker._process for worker in pool._workers if worker._process is not None]


def test_equal_and_unequal_formulas(pool):
    pairs = {
        ("x+1", "1+x"): "right",
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"): "right",
        ("x^2-1", "(x-1)(x+1)"): "right",
        ("1,-1", r"\pm 1"): "right",
        ("x<5", "5>x"): "right",
        ("1000", "10^3"): "right",
        ("x+1", "x+2"): "wrong",
        ("(1,2]", "(1,2)"): "wrong",
        (r"\frac{\pi}{2}", r"0.5\pi"): "right",
        (r"\frac{\pi}{3}", r"0.333333\pi"): "wrong",  # exact answers are asked for
        (r"\pi", "3.14159265"): "wrong",
        ("1", r"\frac{"): "unparsed",
        ("1", ""): "unparsed",
        ("x", "\x00\ud800"): "unparsed",
    }
    outcomes = pool.verify(list(pairs))
    assert {p: o.result for p, o in zip(pairs, outcomes)} == pairs
    assert all(0 < outcome.milliseconds < 60_000 for outcome in outcomes)
    assert pool.verify([]) == []


def test_the_version_names_what_verdicts_depend_on(pool):
    assert pool.version.startswith("math-verify 0.9") and "sympy 1." in pool.version


def test_workers_have_no_jax_and_no_part_in_the_terminals_signals(pool):
    results(pool, ("x+1", "1+x"))
    for process in running(pool):
        assert os.getsid(process.pid) == process.pid
        assert "jaxlib" not in Path(f"/proc/{process.pid}/maps").read_text()


def test_an_endless_answer_times_out_and_the_next_is_judged(pool):
    before = time.process_time()
    assert results(pool, ENDLESS, ("x+1", "1+x"), ("1", r"\frac{10^7!}{3}"), ("2x", "3x-x")) == [
        "timeout", "right", "timeout", "right",
    ]
    assert time.process_time() - before < 0.5, "the waiting costs this process no time"


def test_the_limit_is_cpu_time():
    """A worker that sleeps is not over it; one that hangs is over that of the wall."""
    with SymbolicPool(1, cpu_seconds=0.5, wall_seconds=1.2) as pool:
        assert results(pool, ("x+1", "1+x")) == ["right"]
        (process,) = running(pool)
        process.send_signal(signal.SIGSTOP)
        resumer = threading.Timer(0.7, process.send_signal, [signal.SIGCONT])
        resumer.start()
        (outcome,) = pool.verify([("x+1", "1+x")])
        assert outcome.result == "right" and outcome.milliseconds > 500
        resumer.join()
        process.send_signal(signal.SIGSTOP)
        assert results(pool, ("x+1", "1+x"), ("x+1", "2+x")) == ["timeout", "wrong"]
        assert process.poll() == -signal.SIGKILL


def test_memory_is_limited():
    """math-verify itself takes a failed allocation for a formula that is not equal."""
    with SymbolicPool(1, cpu_seconds=5, memory_mb=128) as pool:
        assert results(pool, ("1", "2^{2^{31}}"), ("x+1", "1+x")) == ["wrong", "right"]
        (process,) = running(pool)
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = int(status.split("VmPeak:")[1].split()[0])  # KiB
        assert peak < 128 * 1024, "two to the power of two to the 31st takes 256 MiB"


BROKEN = """
import os

def LatexExtractionConfig(**_):
    print("a library that prints")

def parse(text, **_):
    return [text[7:-1]]

def verify(gold, answer, **_):
    if answer == ["memory"]:
        raise MemoryError
    if answer == ["exit"]:
        os._exit(3)
    if answer == ["error"]:
        raise RecursionError
    return gold == answer
"""


def test_what_a_library_may_do(monkeypatch, tmp_path):
    """A stand-in for math-verify: its prints, errors and ends do not disturb other pairs."""
    (tmp_path / "math_verify.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with SymbolicPool(1) as pool:
        answers = ["1", "memory", "2", "exit", "1", "error", "1"]
        assert results(pool, *[("1", answer) for answer in answers]) == [
            "right", "crash", "wrong", "crash", "right", "unparsed", "right",
        ]


def test_killed_workers_cost_no_verdict():
    pairs = [(f"{i}x+x", f"{i + 1}x" if i % 3 else "x") for i in range(2, 302)]
    wanted = ["right" if i % 3 else "wrong" for i in range(2, 302)]
    with SymbolicPool(2) as pool:
        results(pool, *pairs[:4])
        found = []
        judging = threading.Thread(target=lambda: found.extend(results(pool, *pairs)))
        judging.start()
        processes = running(pool)
        for process in processes:
            time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
        assert judging.is_alive(), "in mid-batch"
        judging.join()
        assert not {p.pid for p in processes} & {p.pid for p in running(pool)}
    assert found == wanted


def test_workers_killed_before_they_are_ready_cost_no_verdict(monkeypatch):
    with SymbolicPool(1) as pool:
        (worker,) = pool._workers
        started = []

        def popen(popen=worker._popen):
            process = popen()
            started.append(process)
            if len(started) in (1, 2, 4, 5, 6):
                process.kill()
            return process

        monkeypatch.setattr(worker, "_popen", popen)
        assert results(pool, ("x+1", "1+x")) == ["right"]
        worker.stop()
        with pytest.raises(RuntimeError, match=r"^a symbolic worker did not .* \(exit status -9\)"):
            pool.verify([("x+1", "1+x")])


def test_an_idle_worker_that_was_killed_costs_no_verdict(pool):
    assert results(pool, *[("x+1", "1+x")] * 8) == ["right"] * 8
    for process in running(pool):
        process.kill()
        process.wait()
    assert results(pool, *[("x+1", "1+x")] * 8) == ["right"] * 8


def test_a_second_death_is_a_crash(monkeypatch):
    with SymbolicPool(1) as pool:
        (worker,) = pool._workers
        asked = []

        def die(seconds, read=worker._read):
            if seconds == worker._wall_seconds and len(asked) < 2:
                asked.append(worker._process.pid)
                worker._process.kill()
            return read(seconds)

        monkeypatch.setattr(worker, "_read", die)
        assert results(pool, ENDLESS, ("x+1", "1+x")) == ["crash", "right"]
        assert len(set(asked)) == 2, "each time another process"
        worker._process.kill()  # an end while idle is not the next pair's doing
        worker._process.wait()
        del asked[1:]
        assert results(pool, ("x+1", "1+x")) == ["right"] and len(asked) == 2


def test_workers_are_replaced_now_and_then(monkeypatch):
    monkeypatch.setattr(symbolic, "ANSWERS_PER_WORKER", 2)
    with SymbolicPool(1) as pool:
        pids = []
        for _ in range(3):
            assert results(pool, ("x+1", "1+x")) == ["right"]
            pids.append([process.pid for process in running(pool)])
    assert pids[1] == [] and len(pids[0]) == len(pids[2]) == 1 and pids[0] != pids[2]


def test_several_threads_use_one_pool(pool):
    found = {}

    def judge(i):
        found[i] = results(pool, *[(f"{i}x", f"x+{i - 1}x"), (f"{i}x", "y")] * 10)

    threads = [threading.Thread(target=judge, args=[i]) for i in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: ["right", "wrong"] * 10 for i in range(2, 8)}


ORPHANS = """
import os, signal, sys
from reasoning.rewards.symbolic import SymbolicPool

pool = SymbolicPool(1, cpu_seconds=1)
pool.verify([("x+1", "1+x")])
if sys.argv[1] == "busy":
    import threading
    pairs = [("5", "9^{9^{9^{9}}}")]
    threading.Thread(target=pool.verify, args=[pairs], daemon=True).start()
    import time
    time.sleep(0.3)
print("judged", *sys.modules.keys() & {"jax"}, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_workers_end_with_a_program_that_is_killed(state):
    # The workers hold stderr open for as long as they live: this returns when they have ended.
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS, state], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL and done.stdout == "judged\n", done.stderr


def test_closing_ends_the_workers():
    with SymbolicPool(2) as pool:
        results(pool, *[("x+1", "1+x")] * 4)
        processes = running(pool)
    assert processes and all(process.poll() is not None for process in processes)
    with pytest.raises(ValueError, match=r"^pairs: this pool is closed; make a new SymbolicPool"):
        pool.verify([("1", "1")])
    pool.close()  # once more does no harm


def test_a_worker_that_cannot_start_says_so(monkeypatch, tmp_path):
    # A module that stands in the way of the worker's imports.
    (tmp_path / "math_verify.py").write_text("raise ImportError('a broken installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        SymbolicPool(1) as pool,
        pytest.raises(RuntimeError, match=r"^a symbolic worker did not start .*exit status 1"),
    ):
        pool.verify([("1", "1")])


def test_bad_arguments_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"^num_workers=0: must be 1 or more"):
        SymbolicPool(0)
    with pytest.raises(ValueError, match=r"^cpu_seconds=2, wall_seconds=1: the first must be pos"):
        SymbolicPool(1, cpu_seconds=2, wall_seconds=1)
    with pytest.raises(ValueError, match=r"^memory_mb=64: must be 128 or more"):
        SymbolicPool(1, memory_mb=64)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^math-verify is not .*pip install '\.\[math\]'"):
        SymbolicPool(1)
