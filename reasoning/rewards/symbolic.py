r"""Whether two formulas are equal: math-verify in worker processes that can be killed.

    with SymbolicPool(num_workers=2) as pool:
        pool.verify([("2x", "x+x"), (r"\frac{1}{2}", r"9^{9^{9^{9}}}")])
        # [Outcome("right", 1.9), Outcome("timeout", 504.2)]

Algebra on what a policy wrote may take any time and memory, so each answer has limits. That of time
is CPU time, not time on the wall: a busy machine does not change rewards. math-verify is given
nothing but the two formulas; what it would accept and a careful teacher would not is refused before
(`reasoning.rewards.answers`). Workers speak JSON through pipes and end with the program.
"""

import importlib.metadata
import importlib.util
import json
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, Self

Result = Literal["right", "wrong", "unparsed", "timeout", "crash"]

PACKAGES = ("math-verify", "latex2sympy2-extended", "sympy")  # what a verdict depends on
START_SECONDS = 120.0  # until a new worker has to be ready, however busy the machine
STARTS = 3  # of workers that are killed before they are ready
ANSWERS_PER_WORKER = 1000  # then it is replaced, for sympy keeps much of what it has computed


class Outcome(NamedTuple):
    """What became of one pair.

    Attributes:
      result: "right" and "wrong"; "unparsed": one of the two is no formula; "timeout": over a limit
        of time; "crash": two workers died on this pair, of memory over the limit or otherwise.
      milliseconds: on the wall, without the start of a worker.
    """

    result: Result
    milliseconds: float


class SymbolicPool:
    """Worker processes that compare formulas; usable from several threads.

    They are started when first needed. One that overruns a limit is replaced. One that dies for no
    such reason (killed for memory that others took, say) is replaced too and its pair asked again;
    if that ends it once more, the pair's result is "crash".

    Args:
      num_workers: processes.
      cpu_seconds: CPU time for one pair.
      wall_seconds: on the wall for one pair, against a worker that hangs; generous, since
        rewards must not depend on the machine's load.
      memory_mb: address space of a worker in MiB, of which an idle one has about 70.

    Raises:
      ValueError: a limit out of its range, or math-verify is not installed.
    """

    def __init__(
        self,
        num_workers: int,
        cpu_seconds: float = 0.5,
        wall_seconds: float = 60.0,
        memory_mb: int = 450,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers={num_workers}: must be 1 or more.")
        if not 0 < cpu_seconds <= wall_seconds:
            raise ValueError(
                f"cpu_seconds={cpu_seconds}, wall_seconds={wall_seconds}: the first must be "
                "positive, the second at least as large."
            )
        if memory_mb < 128:
            raise ValueError(f"memory_mb={memory_mb}: must be 128 or more, or no worker can start.")
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError(
                "math-verify is not installed, which compares symbolic answers; "
                "`pip install '.[math]'`."
            )
        versions = (f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
        self.version = ", ".join(versions)
        self._closed = False
        self._workers = [_Worker(cpu_seconds, wall_seconds, memory_mb) for _ in range(num_workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="symbolic")

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[Outcome]:
        """Compare pairs of (gold, answer).

        Args:
          pairs: LaTeX formulas as they would stand in a box. The order matters: gold first.

        Returns:
          One Outcome for each pair, in their order.

        Raises:
          ValueError: the pool is closed.
          RuntimeError: a worker cannot start.
        """
        if self._closed:
            raise ValueError("pairs: this pool is closed; make a new SymbolicPool.")
        return list(self._threads.map(self._judge, pairs))

    def close(self) -> None:
        """Stop the workers; the pool cannot be used any more."""
        self._closed = True
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _judge(self, pair: tuple[str, str]) -> Outcome:
        worker = self._idle.get()  # there are as many threads as workers
        try:
            return worker.judge(pair)
        finally:
            self._idle.put(worker)


class _Worker:
    """One worker process at a time, used by one thread at a time."""

    def __init__(self, cpu_seconds: float, wall_seconds: float, memory_mb: int) -> None:
        self._cpu_seconds, self._wall_seconds = cpu_seconds, wall_seconds
        self._memory_mb = memory_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._judged = 0

    def judge(self, pair: tuple[str, str]) -> Outcome:
        """The outcome of one pair, from this process or another one if it dies."""
        started = time.perf_counter()
        for _ in range(2):
            outcome = self._ask(pair)
            if outcome is not None:
                return outcome
        return Outcome("crash", 1000 * (time.perf_counter() - started))

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None

    def _ask(self, pair: tuple[str, str]) -> Outcome | None:
        """The outcome of one pair; None if the process died of anything but the time limit."""
        if self._process is None or self._process.poll() is not None:  # killed while it was idle
            self._start()
        task = {"pair": pair, "cpu_seconds": self._cpu_seconds}
        started = time.perf_counter()
        try:
            self._process.stdin.write(json.dumps(task).encode("ascii") + b"\n")
            reply = self._read(self._wall_seconds)
        except BrokenPipeError:
            reply = b""
        taken = 1000 * (time.perf_counter() - started)
        if reply:
            self._judged += 1
            if self._judged == ANSWERS_PER_WORKER:
                self.stop()
            return Outcome(json.loads(reply)["outcome"], taken)
        if reply is None:
            self.stop()
            return Outcome("timeout", taken)
        status = self._process.wait()
        self.stop()
        return Outcome("timeout", taken) if status == -signal.SIGPROF else None

    def _start(self) -> None:
        """Start a process and wait until it is ready."""
        for _ in range(STARTS):
            self.stop()
            self._judged = 0
            self._process = self._popen()
            ready = self._read(START_SECONDS)
            if ready:
                return
            status = None if ready is None else self._process.wait()
            if status is None or status >= 0:
                break
        self.stop()
        raise RuntimeError(
            f"a symbolic worker did not start in {START_SECONDS:g} s (exit status {status}); its "
            "own message, if any, stands above; `pip install '.[math]'` mends most causes."
        )

    def _popen(self) -> subprocess.Popen[bytes]:
        program = Path(__file__).with_name("symbolic_worker.py")
        return subprocess.Popen(
            [sys.executable, "-P", str(program), str(self._memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # signals to the program's terminal are not for the worker
            env={**os.environ, "PYTHONHASHSEED": "0"},  # the same order of terms in every worker
        )

    def _read(self, seconds: float) -> bytes | None:
        """The next line; empty if the process ended before its end, None if time ran out."""
        poll = select.poll()  # unlike select, of any number of open files
        poll.register(self._process.stdout, select.POLLIN)
        deadline, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                return None
            part = self._process.stdout.read(4096)
            if not part:
                return b""
            line += part
        return line
