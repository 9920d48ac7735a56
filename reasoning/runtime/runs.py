"""The run directory: what a run is, what it measured, and how far it is.

    config.json        program and configuration, with versions, git revision and device
    metrics.jsonl      one line per training step
    completions.jsonl  sampled completions with the verdict's reason
    results.json       the figures; there once the run has finished
    plots/             pictures of the results

An existing run is never harmed: a finished one is left alone, an unfinished one of the same
configuration is moved to attempts/ and started again, anything else is refused; so is a run that
another process is writing.
"""

import dataclasses
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import jax
import numpy as np
from tqdm import tqdm

CONFIG, RESULTS = "config.json", "results.json"
# What makes a directory no run yet, and stays in place when a run is started again.
KEPT = ("attempts", ".lock", f".{CONFIG}.partial")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "sentencepiece", "numpy")


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


class Run:
    """An open run directory that is being written."""

    def __init__(self, workdir: str | os.PathLike, program: str, config: Mapping[str, Any]) -> None:
        """Start the run, or start an unfinished one again.

        Raises:
          ValueError: another process writes this run, or it is finished or another one.
        """
        self.path = Path(workdir)
        self._started = time.monotonic()
        about = {"versions": versions(), "git": git_revision(), "command": sys.argv}
        _check_unfinished(workdir, program, config)  # no lock file in a directory of something else
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        try:
            # Again: whoever held the lock before may have finished the run.
            _check_unfinished(workdir, program, config)
            self._set_aside()
            # First: it makes the directory a run's.
            self._write(CONFIG, {"program": program, "config": config, **about})
            (self.path / "plots").mkdir()
            self._metrics = (self.path / "metrics.jsonl").open("w", buffering=1)
            self._completions = (self.path / "completions.jsonl").open("w", buffering=1)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._metrics.close()
        self._completions.close()
        self._lock.close()

    @property
    def seconds(self) -> float:
        """Time since the run started."""
        return time.monotonic() - self._started

    def log_metrics(self, phase: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        _append(self._metrics, {"phase": phase, "step": step, **metrics})

    def log_completions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to completions.jsonl."""
        for row in rows:
            _append(self._completions, row)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write results.json, which marks the run as finished."""
        self._write(RESULTS, {**results, "versions": versions(), "seconds": round(self.seconds, 1)})

    def _set_aside(self) -> None:
        """Move the files of an unfinished run to attempts/N/."""
        left = [path for path in self.path.iterdir() if path.name not in KEPT]
        if left:
            attempts = self.path / "attempts"
            number = 1 + sum(1 for _ in attempts.glob("*"))
            kept = attempts / str(number)
            kept.mkdir(parents=True)
            # The configuration last: without it, what a kill leaves here would be nobody's run.
            for path in sorted(left, key=lambda path: path.name == CONFIG):
                path.rename(kept / path.name)
            print(f"{self.path}: was not finished; starting again, its files are in {kept}.")

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        partial = self.path / f".{name}.partial"
        partial.write_text(json.dumps(content, indent=2, default=_plain) + "\n")
        partial.replace(self.path / name)


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
    """

    label: str
    total: int
    every: float = 15.0

    def __post_init__(self) -> None:
        self._bar = tqdm(
            total=self.total, desc=self.label, disable=not sys.stderr.isatty(), unit="step"
        )
        self._done, self._tokens = 0, 0.0
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
            left = (now - self._started) / self._done * (self.total - self._done)
            told = "  ".join(f"{name} {value}" for name, value in figures.items())
            print(f"{self.label}  {self._done}/{self.total}  {told}  {left:.0f} s left", flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
