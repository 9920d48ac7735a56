"""The run directory: what a run is, what it measured, and how far it is.

    config.json        program, configuration and fingerprint of the data, with versions and device
    attempts.jsonl     one line per start: number, time, versions, command
    metrics.jsonl      one line per training step
    completions.jsonl  sampled completions with the verdict's reason
    events/N/          the metrics of attempt N for TensorBoard
    checkpoints/       where the phase stands that is being worked on
    policies/          the parameters that each phase ended with
    best/              those of reinforcement learning that were best at a validation
    finished/          what else each phase ended with
    results.json       the figures; there once the run has finished
    plots/             pictures of the results
    wandb.json         the run's id at Weights & Biases, where it is tracked there

An existing run is never harmed: a finished one is left alone, an unfinished one of the same
configuration goes on to the very same numbers, anything else is refused; so is a run that another
process is writing. Of the processes of one job the first writes; all see the same directory.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jax

from reasoning.run_files import ATTEMPTS, CONFIG, RESULTS, read_object
from reasoning.runtime import logs
from reasoning.runtime.checkpoints import (
    CannotRestore,
    Checkpoints,
    DamagedCheckpoint,
    save_tree,
)
from reasoning.runtime.directory import check_unfinished, is_extended, lock
from reasoning.runtime.processes import any_process, from_first
from reasoning.runtime.provenance import git_revision, own_code, versions

# Seconds until the other processes see what the first has written: a network's disks are late.
VISIBLE = 20.0
WANDB = "wandb.json"
STOPPED = 75  # exit status of a run that was asked to stop: the same command goes on (EX_TEMPFAIL)


@dataclasses.dataclass(frozen=True)
class Saving:
    """How a run saves and stops; none of it changes a figure.

    Attributes:
      every: seconds between saves.
      max_minutes: stop after so long, as if asked to; None: never.
      use_previous: where the last checkpoint is damaged, go on from the one before.
      extend: go on with a run that has fewer steps in its last phase.
      wandb_project: also track the metrics there; None: do not.
    """

    every: float = 120.0
    max_minutes: float | None = None
    use_previous: bool = False
    extend: bool = False
    wandb_project: str | None = None


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
        self._checkpoints = Checkpoints(self.path / "checkpoints")
        self._writes = jax.process_index() == 0
        self._logs: logs.Logs | None = None
        with contextlib.ExitStack() as opened:
            start = partial(self._start, workdir, program, config, data, opened)
            self._attempt, self._last, self._extends = from_first(start)
            opened.enter_context(self._checkpoints)
            self._check_shared()
            self._opened = opened.pop_all()
        self._phase, self._extended_from = "", None
        self._saved = time.monotonic()
        self._asked: str | None = None
        self._ended_one = False  # a phase, in this attempt
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
        self._opened.close()

    @property
    def seconds(self) -> float:
        """Time since this attempt started."""
        return time.monotonic() - self._started

    def log_metrics(self, phase: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl, and its numbers to the trackers."""
        self._check_extended()
        if self._logs:
            self._logs.metrics(phase, step, metrics)

    def log_completions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to completions.jsonl."""
        self._check_extended()
        if self._logs:
            self._logs.completions(rows)

    def phase(
        self,
        name: str,
        work: Callable[[], tuple[Any, Mapping[str, Any]]],
        like: Any = None,
        steps: int | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """What `work` returns, from this process or an earlier one.

        Args:
          name: of the phase, unique in the run.
          work: returns parameters and a JSON object.
          like: a tree of the parameters' structure, shapes, dtypes and shardings; None where `work`
            returns none.
          steps: how many the phase is to have; None where it does not train.

        Raises:
          SystemExit: as `stop_if_asked`.
        """
        self.stop_if_asked()
        policy = self.path / "policies" / name
        with Checkpoints(policy) as saved:
            found = from_first(lambda: self._mark(name, steps, None if like is None else saved))
            if found and found["steps"] == steps:
                return (None if like is None else saved.restore(0, like)), found["outcome"]
        self._phase, self._extended_from = name, found and found["steps"]
        params, outcome = work()
        self._checkpoints.wait()  # the mark says that the phase's last checkpoint is there
        if like is not None:
            save_tree(policy, params, {"phase": name})
        outcome = json.loads(json.dumps(outcome, default=logs.plain))
        self._write(
            f"finished/{name}.json",
            {"outcome": outcome, "steps": steps, "logs": self._positions()},
        )
        self._ended_one = True
        return params, outcome

    def _mark(
        self, name: str, steps: int | None, saved: Checkpoints | None
    ) -> dict[str, Any] | None:
        """What a phase has ended with; None where it is to be worked out.

        Args:
          saved: its parameters; None where it has none.

        Raises:
          DamagedCheckpoint: they are damaged, and are not to be made again.
        """
        mark = self.path / "finished" / f"{name}.json"
        if not mark.is_file() or (self._extends and steps is None):
            return None
        found = read_object(mark)
        if saved is None or found["steps"] != steps:
            return found
        try:
            saved.about(0)
        except DamagedCheckpoint as error:
            if self._last is None or self._last["phase"] != name:
                raise DamagedCheckpoint(
                    f"{error} Restore the file from a copy, or choose another workdir: no "
                    "checkpoint of its phase is left."
                ) from error
            if not self._saving.use_previous:
                raise DamagedCheckpoint(
                    f"{error} Restore the file from a copy, or go on from the last checkpoint of "
                    "its phase with --use_previous_checkpoint."
                ) from error
            print(f"{error} Making it again from the last checkpoint of its phase.")
            mark.unlink()
            self._logs.cut(self._last_positions(self._last))
            return None
        return found

    def resume(self, state: Any, carried: Mapping[str, Any]) -> tuple[Any, int, dict[str, Any]]:
        """Where this phase stands: state, steps done, and what else was carried along.

        Args:
          state: at the start of the phase.
          carried: a JSON object, at the start.
        """
        last = self._last
        here = last is not None and last["phase"] == self._phase
        if self._extended_from is not None and not here:
            raise CannotRestore(
                f"extend: {self._phase} has ended at step {self._extended_from} and others came "
                "after it; only the phase that trained last can be extended."
            )
        if self._extends:
            self._extend()
        if not here:
            return state, 0, dict(carried)
        print(f"{self._phase}: goes on after step {last['step']}.")
        return self._checkpoints.restore(last["number"], state), last["step"], last["carried"]

    def stop_if_asked(self) -> None:
        """Stop where nothing is to be saved: between phases, and between evaluations.

        `max_minutes` counts once this attempt has ended a phase: a short limit must not keep a run
        where it is.

        Raises:
          SystemExit: with STOPPED, after a signal or `max_minutes`.
        """
        why = self._must_stop() if self._ended_one else self._asked
        if any_process(why is not None):
            why = why or "another process"
            print(f"{self.path}: stopped by {why}; the same command goes on.", flush=True)
            raise SystemExit(STOPPED)

    def due(self) -> bool:
        """Whether the phase is to be saved after this step: all processes of a job agree."""
        late = time.monotonic() - self._saved > self._saving.every
        late = late or self._must_stop() is not None
        return bool(any_process(late))

    def save(self, step: int, state: Any, carried: Mapping[str, Any]) -> None:
        """Save where the phase stands; it is written while the phase goes on.

        Raises:
          SystemExit: with STOPPED, after a signal or `max_minutes`; the save is then complete.
        """
        started = time.monotonic()
        carried = json.loads(json.dumps(carried))  # a copy: the phase goes on while this is written
        about = {"phase": self._phase, "step": step, "carried": carried, "logs": self._positions()}
        number = self._last["number"] + 1 if self._last else 0
        self._checkpoints.save(number, state, about)
        self._last, self._saved = {**about, "number": number}, time.monotonic()
        why = self._must_stop()
        if any_process(why is not None):
            self._checkpoints.wait()
            seconds = time.monotonic() - started
            why = why or "another process"
            print(
                f"{self.path}: stopped by {why} after step {step} of {self._phase}, saved in "
                f"{seconds:.1f} s; the same command goes on.",
                flush=True,
            )
            raise SystemExit(STOPPED)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write results.json, which marks the run as finished."""
        self._check_extended()
        steps = [read_object(mark)["steps"] for mark in (self.path / "finished").rglob("*.json")]
        told = {"steps": sum(n for n in steps if n), "versions": versions()}
        self._write(RESULTS, {**results, **told, "seconds": round(self.seconds, 1)})

    def _start(
        self,
        workdir: str | os.PathLike,
        program: str,
        config: Mapping[str, Any],
        data: str,
        opened: contextlib.ExitStack,
    ) -> tuple[int, dict[str, Any] | None, bool]:
        """Open the directory for writing: the first process's part.

        Returns:
          the attempt's number, what the last checkpoint is about, and whether the run that is there
          has fewer steps.
        """
        extend = self._saving.extend
        check_unfinished(workdir, program, config, extend)  # before anything is written
        self.path.mkdir(parents=True, exist_ok=True)
        opened.enter_context(lock(self.path))
        # Again: whoever held the lock before may have finished the run.
        check_unfinished(workdir, program, config, extend)
        # Written down once a phase is found that can go on.
        extended = is_extended(self.path, config)
        attempt = self._describe(program, config, data)
        last = self._last_checkpoint()
        self._logs = logs.Logs(self.path, self._last_positions(last))
        opened.callback(self._logs.close)
        self._add_trackers(attempt)
        return attempt, last, extended

    def _describe(self, program: str, config: Mapping[str, Any], data: str) -> int:
        """Write config.json, or compare the data with those of the run that is there.

        Returns:
          the attempt's number.
        """
        about = {"versions": versions(), "git": git_revision(), "code": own_code(config),
                 "command": sys.argv}
        self._about = {"program": program, "config": config, "data": data, **about}
        if (self.path / CONFIG).is_file():
            there = read_object(self.path / CONFIG)
            before = there.get("data", "")
            if before != data:
                raise ValueError(
                    f"workdir={self.path}: holds a run on other data (fingerprint {before[:12]} "
                    f"there and {data[:12]} here): the task, the tokenizer or the pipeline has "
                    "changed; choose another directory."
                )
            for name, now in about["code"].items():
                if there.get("code", {}).get(name, now)["sha256"] != now["sha256"]:
                    print(f"{self.path}: {now['file']} has changed since this run began; what "
                          "comes now is by the new code.", flush=True)
        else:
            # First: it makes the directory a run's.
            self._write(CONFIG, self._about)
        (self.path / "plots").mkdir(exist_ok=True)
        attempt = 1 + self._attempts()
        if attempt == 1:
            # Before the attempt is noted: a directory that is lost later is missed.
            self._checkpoints.create()
        with (self.path / ATTEMPTS).open("a") as attempts:
            logs.append(attempts, {"attempt": attempt, "time": time.time(), **about})
        return attempt

    def _attempts(self) -> int:
        """How many attempts are noted."""
        path = self.path / ATTEMPTS
        return len(path.read_text().splitlines()) if path.is_file() else 0

    def _check_shared(self) -> None:
        """Refuse a directory that is not the same one for every process of the job (ValueError)."""
        limit = time.monotonic() + VISIBLE
        while not (seen := self._attempts() == self._attempt) and time.monotonic() < limit:
            time.sleep(0.1)
        if any_process(not seen):
            raise ValueError(
                f"workdir={self.path}: the processes of this job do not all see what the first one "
                "writes there; choose a directory that all hosts share."
            )

    def _check_extended(self) -> None:
        """Refuse to write before a phase of an extended run was found that can go on."""
        if self._extends:
            raise CannotRestore(
                "extend: no phase of this run has fewer steps, what the configuration adds trains "
                f"nothing here; give the steps of {self.path / CONFIG}."
            )

    def _extend(self) -> None:
        """Make an extended run of a finished one: what comes after training comes again."""
        self._extends = False
        if not self._writes:
            return
        # In this order: what a kill leaves goes on by either command.
        if (self.path / RESULTS).is_file():
            (self.path / RESULTS).rename(self.path / f"before_extension_{time.time():.0f}.json")
        for mark in (self.path / "finished").rglob("*.json"):
            if read_object(mark)["steps"] is None:
                mark.unlink()
        self._write(CONFIG, self._about)
        self._logs.cut(self._last_positions(self._last))

    def _last_checkpoint(self, passed_over: bool = False) -> dict[str, Any] | None:
        """What the last checkpoint is about, with its number; None if there is none.

        Args:
          passed_over: one that was damaged was passed over before; a second one is not.

        Raises:
          DamagedCheckpoint: it is damaged, and is not to be passed over.
        """
        try:
            number = self._checkpoints.latest()
            return None if number is None else {**self._checkpoints.about(number), "number": number}
        except DamagedCheckpoint as error:
            if passed_over:
                raise DamagedCheckpoint(
                    f"{error} So was the checkpoint after it; restore the files, or give the same "
                    "command again to go on from the one before."
                ) from error
            if not self._saving.use_previous:
                raise DamagedCheckpoint(
                    f"{error} Restore the file, or go on from the checkpoint before with "
                    "--use_previous_checkpoint."
                ) from error
            self._checkpoints.pass_over()
            print(f"{error} Going on from the checkpoint before.")
            return self._last_checkpoint(passed_over=True)

    def _add_trackers(self, attempt: int) -> None:
        """Tell others of the metrics, too."""
        self._logs.add(logs.tensorboard(self.path / "events" / str(attempt)))
        if self._saving.wandb_project:
            project, config = self._saving.wandb_project, self._about["config"]
            name = self._wandb_id()
            self._logs.add(logs.weights_and_biases(project, name, self.path, config))

    def _wandb_id(self) -> str:
        """The run's name at Weights & Biases: random, since two directories may be called alike."""
        if not (self.path / WANDB).is_file():
            self._write(WANDB, {"id": secrets.token_hex(8)})
        return read_object(self.path / WANDB)["id"]

    def _last_positions(self, last: Mapping[str, Any] | None) -> dict[str, int] | None:
        """How long the logs were at the last checkpoint, or when the last phase ended."""
        marks = [read_object(path) for path in (self.path / "finished").rglob("*.json")]
        positions = [mark["logs"] for mark in marks] + ([last["logs"]] if last else [])
        return max(positions, key=lambda at: [at[name] for name in logs.FILES], default=None)

    def _positions(self) -> dict[str, int]:
        return self._logs.positions() if self._logs else {}

    def _must_stop(self) -> str | None:
        """Why the run must stop, if it must."""
        limit = self._saving.max_minutes
        if self._asked is None and limit is not None and self.seconds > 60 * limit:
            return f"max_minutes={limit:g}"
        return self._asked

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Stop after this step; a second signal, whichever, ends the process at once."""
        self._asked = signal.Signals(number).name
        for each in self._handlers:
            signal.signal(each, signal.SIG_DFL)
        words = f"{self._asked}: stopping after this step; once more to stop at once.\n"
        os.write(2, words.encode())  # print cannot be interrupted by itself

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        if not self._writes:
            return
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w") as file:
            file.write(json.dumps(content, indent=2, default=logs.plain) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
