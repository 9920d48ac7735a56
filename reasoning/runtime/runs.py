"""The run directory: what a run is, what it measured, and how far it is.

    config.json        program, configuration and fingerprint of the data, with versions and device
    attempts.jsonl     one line per start: when, with what, from where
    metrics.jsonl      one line per training step
    completions.jsonl  sampled completions with the verdict's reason
    checkpoints/       where the phase stands that is being worked on
    policies/          the parameters that each phase ended with
    finished/          what else each phase ended with
    results.json       the figures; there once the run has finished
    plots/             pictures of the results

An existing run is never harmed: a finished one is left alone, an unfinished one of the same
configuration goes on to the very same numbers, anything else is refused; so is a run that another
process is writing.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TextIO

import jax
import numpy as np
from tqdm import tqdm

from reasoning.runtime.checkpoints import Checkpoints, DamagedCheckpoint, load_tree, save_tree

CONFIG, RESULTS, ATTEMPTS = "config.json", "results.json", "attempts.jsonl"
LOGS = ("metrics.jsonl", "completions.jsonl")
# What makes a directory no run yet.
KEPT = (".lock", f".{CONFIG}.partial")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "sentencepiece", "numpy")
STOPPED = 75  # exit status of a run that was asked to stop: the same command goes on (EX_TEMPFAIL)


def versions() -> dict[str, str]:
    """What the figures depend on beside the configuration."""
    found = {package: metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **found, "device": jax.devices()[0].device_kind}


def git_revision() -> str | None:
    """The checkout's commit, with `+changes` if files differ from it; None outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40"]
    try:
        done = subprocess.run([*command, "--dirty=+changes"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode().strip()


def fingerprint(data: Any) -> str:
    """A checksum of nested dataclasses, mappings, sequences, arrays and plain values."""
    digest = hashlib.sha256()

    def add(item: Any) -> None:
        if dataclasses.is_dataclass(item):
            item = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
        if isinstance(item, Mapping):
            item = [part for key in sorted(item) for part in (key, item[key])]
        if isinstance(item, np.ndarray | jax.Array):
            digest.update(f"{item.dtype}{item.shape}".encode())
            digest.update(np.asarray(item).tobytes())
        elif isinstance(item, Sequence) and not isinstance(item, str | bytes):
            digest.update(f"({len(item)}".encode())
            for part in item:
                add(part)
        else:
            digest.update(repr(item).encode())

    add(data)
    return digest.hexdigest()


def first_difference(old: Mapping, new: Mapping, prefix: str = "") -> str | None:
    """The first key at which two nested configurations differ, with both values."""
    for key in sorted({*old, *new}):
        before, after = (repr(side[key]) if key in side else "absent" for side in (old, new))
        if before == after:
            continue
        if isinstance(old.get(key), Mapping) and isinstance(new.get(key), Mapping):
            inner = first_difference(old[key], new[key], f"{prefix}{key}.")
            if inner:
                return inner
        else:
            return f"{prefix}{key} is {before} there and {after} here"
    return None


def finished_results(
    workdir: str | os.PathLike, program: str, config: Mapping[str, Any]
) -> dict | None:
    """The results of a finished run of this configuration; None if it is still to be run.

    Nothing is written.

    Raises:
      ValueError: the directory holds something else, in one sentence.
    """
    workdir = Path(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"workdir={workdir}: is a file; choose a directory.")
    # A directory of nothing but these is a run that was stopped before it had started.
    if not workdir.exists() or all(path.name in KEPT for path in workdir.iterdir()):
        return None
    if not (workdir / CONFIG).is_file():
        raise ValueError(f"workdir={workdir}: holds files but no run; choose another directory.")
    about = _read(workdir / CONFIG)
    if "program" not in about or not isinstance(about.get("config"), dict):
        raise ValueError(
            f"workdir={workdir}: its {CONFIG} describes no run; choose another directory."
        )
    if about["program"] != program:
        raise ValueError(
            f"workdir={workdir}: holds a run of {about['program']}, not of {program}; choose "
            "another directory."
        )
    difference = first_difference(about["config"], json.loads(json.dumps(config)))
    if difference:
        raise ValueError(
            f"workdir={workdir}: holds a run of another configuration ({difference}); "
            "choose another directory."
        )
    results = workdir / RESULTS
    return _read(results) if results.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the run directory."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}); choose another workdir.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is damaged (no JSON object); choose another workdir.")
    return content


@dataclasses.dataclass(frozen=True)
class Saving:
    """How a run saves and stops; none of it changes a figure.

    Attributes:
      every: seconds between saves.
      max_minutes: stop after so long, as if asked to; None: never.
      use_previous: where the last checkpoint is damaged, go on from the one before.
    """

    every: float = 120.0
    max_minutes: float | None = None
    use_previous: bool = False


class Run:
    """An open run directory that is being written, by phases that are each worked out once.

        with Run(workdir, program, config) as run:
            params, spent = run.phase("seed0/base", work, like=params)

    and within `work`, which may go on where an earlier process has stopped:

        state, start, carried = run.resume(state, {"tokens": 0.0})
        for step in range(start, num_steps):
            ...
            if run.due():
                run.save(step + 1, state, carried)  # ends the process if it was asked to stop

    What was logged after the last save is cut off when a run goes on: it comes again.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        program: str,
        config: Mapping[str, Any],
        data: str = "",
        saving: Saving = Saving(),
    ) -> None:
        """Start the run, or go on with an unfinished one.

        Args:
          data: fingerprint of what the phases read.

        Raises:
          ValueError: another process writes this run, it is finished or another one, its data have
            changed, or what it saved is damaged.
        """
        self.path = Path(workdir)
        self._saving, self._started = saving, time.monotonic()
        _check_unfinished(workdir, program, config)  # no lock file in a directory of something else
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        try:
            # Again: whoever held the lock before may have finished the run.
            _check_unfinished(workdir, program, config)
            self._describe(program, config, data)
            self._checkpoints = Checkpoints(self.path / "checkpoints")
            self._open_logs()
        except BaseException:
            self._lock.close()
            raise
        self._phase = ""
        self._saved = time.monotonic()
        self._asked: str | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Run":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._ask_to_stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._checkpoints.close()
        for log in self._logs.values():
            log.close()
        self._lock.close()

    @property
    def seconds(self) -> float:
        """Time since this attempt started."""
        return time.monotonic() - self._started

    def log_metrics(self, phase: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        _append(self._logs["metrics.jsonl"], {"phase": phase, "step": step, **metrics})

    def log_completions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to completions.jsonl."""
        for row in rows:
            _append(self._logs["completions.jsonl"], row)

    def phase(
        self, name: str, work: Callable[[], tuple[Any, Mapping[str, Any]]], like: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """What `work` returns, from this process or an earlier one.

        Args:
          name: of the phase, unique in the run.
          work: returns parameters and a JSON object.
          like: a tree of the parameters' structure, shapes, dtypes and shardings; None where `work`
            returns none.
        """
        mark, policy = self.path / "finished" / f"{name}.json", self.path / "policies" / name
        if mark.is_file():
            outcome = _read(mark)["outcome"]
            if like is None:
                return None, outcome
            return load_tree(policy, like), outcome
        self._phase = name
        params, outcome = work()
        if like is not None:
            save_tree(policy, params, {"phase": name})
        outcome = json.loads(json.dumps(outcome, default=_plain))
        mark.parent.mkdir(parents=True, exist_ok=True)
        self._write(f"finished/{name}.json", {"outcome": outcome, "logs": self._positions()})
        return params, outcome

    def resume(self, state: Any, carried: Mapping[str, Any]) -> tuple[Any, int, dict[str, Any]]:
        """Where this phase stands: state, steps done, and what else was carried along.

        Args:
          state: at the start of the phase.
          carried: a JSON object, at the start.
        """
        about = self._last_checkpoint()
        if about is None or about["phase"] != self._phase:
            return state, 0, dict(carried)
        print(f"{self._phase}: goes on after step {about['step']}.")
        return self._checkpoints.restore(about["number"], state), about["step"], about["carried"]

    def due(self) -> bool:
        """Whether the phase is to be saved after this step."""
        late = time.monotonic() - self._saved > self._saving.every
        return late or self._must_stop() is not None

    def save(self, step: int, state: Any, carried: Mapping[str, Any]) -> None:
        """Save where the phase stands; it is written while the phase goes on.

        Raises:
          SystemExit: with STOPPED, after a signal or `max_minutes`; the save is then complete.
        """
        started = time.monotonic()
        carried = json.loads(json.dumps(carried))  # a copy: the phase goes on while this is written
        about = {"phase": self._phase, "step": step, "carried": carried, "logs": self._positions()}
        self._checkpoints.save(self._next, state, about)
        self._next, self._saved = self._next + 1, time.monotonic()
        why = self._must_stop()
        if why is not None:
            self._checkpoints.wait()
            seconds = time.monotonic() - started
            print(
                f"{self.path}: stopped by {why} after step {step} of {self._phase}, saved in "
                f"{seconds:.1f} s; the same command goes on.",
                flush=True,
            )
            raise SystemExit(STOPPED)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write results.json, which marks the run as finished."""
        self._write(RESULTS, {**results, "versions": versions(), "seconds": round(self.seconds, 1)})

    def _describe(self, program: str, config: Mapping[str, Any], data: str) -> None:
        """Write config.json, or compare the data with those of the run that is there."""
        about = {"versions": versions(), "git": git_revision(), "command": sys.argv}
        if (self.path / CONFIG).is_file():
            before = _read(self.path / CONFIG).get("data", "")
            if before != data:
                raise ValueError(
                    f"workdir={self.path}: holds a run on other data (fingerprint {before[:12]} "
                    f"there and {data[:12]} here): the task, the tokenizer or the pipeline has "
                    "changed; choose another directory."
                )
        else:
            # First: it makes the directory a run's.
            self._write(CONFIG, {"program": program, "config": config, "data": data, **about})
        (self.path / "plots").mkdir(exist_ok=True)
        with (self.path / ATTEMPTS).open("a") as attempts:
            _append(attempts, {"time": time.time(), **about})

    def _last_checkpoint(self) -> dict[str, Any] | None:
        """What the last checkpoint is about, with its number; None if there is none.

        Raises:
          DamagedCheckpoint: it is damaged, and `use_previous` is not set.
        """
        try:
            number = self._checkpoints.latest()
            return None if number is None else {**self._checkpoints.about(number), "number": number}
        except DamagedCheckpoint as error:
            if not self._saving.use_previous:
                raise DamagedCheckpoint(
                    f"{error} Restore the file, or go on from the checkpoint before with "
                    "--use_previous_checkpoint."
                ) from error
            self._checkpoints.drop_latest()
            print(f"{error} Going on from the checkpoint before.")
            return self._last_checkpoint()

    def _open_logs(self) -> None:
        """Open the logs where the last save has left them."""
        marks = [_read(path) for path in (self.path / "finished").rglob("*.json")]
        last = self._last_checkpoint()
        self._next = last["number"] + 1 if last else 0
        positions = [mark["logs"] for mark in marks] + ([last["logs"]] if last else [])
        position = max(positions, key=lambda logs: [logs[name] for name in LOGS], default=None)
        self._logs = {name: (self.path / name).open("a+", buffering=1) for name in LOGS}
        for name, log in self._logs.items():
            end = position[name] if position else 0
            if log.seek(0, os.SEEK_END) < end:
                raise ValueError(
                    f"{self.path / name}: is shorter than when the run was saved; choose another "
                    "workdir."
                )
            log.truncate(end)

    def _positions(self) -> dict[str, int]:
        """How long the logs are, all of it on the disk."""
        for log in self._logs.values():
            log.flush()
            os.fsync(log.fileno())
        return {name: os.fstat(log.fileno()).st_size for name, log in self._logs.items()}

    def _must_stop(self) -> str | None:
        """Why the run must stop, if it must."""
        limit = self._saving.max_minutes
        if self._asked is None and limit is not None and self.seconds > 60 * limit:
            return f"max_minutes={limit:g}"
        return self._asked

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Stop after this step; a second signal ends the process at once."""
        self._asked = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)
        print(f"{self._asked}: stopping after this step; once more to stop at once.", flush=True)

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        path = self.path / name
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w") as file:
            file.write(json.dumps(content, indent=2, default=_plain) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def _check_unfinished(
    workdir: str | os.PathLike, program: str, config: Mapping[str, Any]
) -> None:
    """Raise a ValueError if the directory holds a finished run, or something else."""
    if finished_results(workdir, program, config) is not None:
        raise ValueError(f"workdir={workdir}: this run has finished; choose another one.")


def _lock(path: Path) -> TextIO:
    """The directory's lock, held until it is closed or the process ends, however it ends."""
    lock = (path / ".lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ValueError(
            f"workdir={path}: another process is writing this run; wait for it or choose another "
            "directory."
        ) from error
    return lock


def _append(file: TextIO, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """Arrays and numpy numbers as JSON."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic | jax.Array) else str(value)


@dataclasses.dataclass
class Progress:
    """A progress bar with tokens/s and time left; a plain line now and then off a terminal.

    Attributes:
      label: what is being done.
      total: steps to come.
      every: seconds between plain lines.
      done: steps that were done before.
    """

    label: str
    total: int
    every: float = 15.0
    done: int = 0

    def __post_init__(self) -> None:
        self._bar = tqdm(
            total=self.total, initial=self.done, desc=self.label,
            disable=not sys.stderr.isatty(), unit="step",
        )
        self._done, self._tokens = self.done, 0.0
        self._started = self._spoke = time.monotonic()

    def advance(self, tokens: float = 0.0, **shown: float) -> None:
        """One more step, of so many tokens if it counts any; `shown` are figures worth a look."""
        self._done += 1
        self._tokens += tokens
        now = time.monotonic()
        rate = self._tokens / max(now - self._started, 1e-9)
        figures = {name: f"{value:.3f}" for name, value in shown.items()}
        if self._tokens:
            figures["tokens/s"] = f"{rate:,.0f}"
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update()
        if self._bar.disable and (now - self._spoke > self.every or self._done == self.total):
            self._spoke = now
            pace = (now - self._started) / (self._done - self.done)
            left = pace * (self.total - self._done)
            told = "  ".join(f"{name} {value}" for name, value in figures.items())
            print(f"{self.label}  {self._done}/{self.total}  {told}  {left:.0f} s left", flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
