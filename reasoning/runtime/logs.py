"""What a run writes down as it goes: metrics and completions as lines of JSON, and for trackers.

metrics.jsonl and completions.jsonl are the record, and can be cut back to where a checkpoint left
them. Trackers only watch: TensorBoard's events, one directory for each attempt, and Weights and
Biases.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reasoning.run_files import COMPLETIONS, METRICS

FILES = (METRICS, COMPLETIONS)


@dataclasses.dataclass(frozen=True)
class Tracker:
    """Who is told of the metrics.

    Attributes:
      track: takes names and values of scalars, and their step.
      close: no more will come.
    """

    track: Callable[[Mapping[str, float], int], None]
    close: Callable[[], None]


class Logs:
    """The open logs of a run directory.

    Args:
      positions: cut each file back to so many bytes; None: to nothing.

    Raises:
      ValueError: a file is shorter than that.
    """

    def __init__(self, path: Path, positions: Mapping[str, int] | None) -> None:
        self._trackers: list[Tracker] = []
        self._files = {name: (path / name).open("a+", buffering=1) for name in FILES}
        self.cut(positions)

    def add(self, tracker: Tracker) -> None:
        """Tell a tracker of the metrics to come; it is closed with the files."""
        self._trackers.append(tracker)

    def cut(self, positions: Mapping[str, int] | None) -> None:
        """Cut each file back to so many bytes; None: to nothing.

        Raises:
          ValueError: a file is shorter than that.
        """
        for name, file in self._files.items():
            end = positions[name] if positions else 0
            if file.seek(0, os.SEEK_END) < end:
                raise ValueError(
                    f"{file.name}: is shorter than when the run was saved; choose another "
                    "workdir."
                )
            file.truncate(end)

    def metrics(self, phase: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl, and its numbers to the trackers."""
        append(self._files[METRICS], {"phase": phase, "step": step, **metrics})
        if self._trackers:
            prefix = f"seed{metrics['seed']}/{phase}" if "seed" in metrics else phase
            scalars = {
                f"{prefix}/{name}": float(value)
                for name, value in metrics.items()
                if name != "seed" and np.ndim(value) == 0
            }
            for tracker in self._trackers:
                tracker.track(scalars, step)

    def completions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to completions.jsonl."""
        for row in rows:
            append(self._files[COMPLETIONS], row)

    def positions(self) -> dict[str, int]:
        """How long the files are, all of it on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}

    def close(self) -> None:
        """Close the files and the trackers."""
        for part in (*self._files.values(), *self._trackers):
            part.close()


def tensorboard(path: Path) -> Tracker:
    """Events for TensorBoard under `path`."""
    # Slow to import. Not SummaryWriter: its thread ends on a full disk, and the next call waits for
    # it forever; here the error comes to the caller.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    path.mkdir(parents=True, exist_ok=True)
    writer = EventsWriter(str(path / "events"))

    def track(scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            summary = scalar(name, value)
            writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()

    return Tracker(track, writer.close)


def weights_and_biases(project: str, name: str, path: Path, config: Mapping[str, Any]) -> Tracker:
    """A run of a Weights & Biases project, the same one for every attempt of the same name.

    Raises:
      ValueError: the package is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"wandb_project={project!r}: wandb is not installed; pip install '.[wandb]'."
        ) from error
    run = wandb.init(project=project, id=name, resume="allow", config=dict(config), dir=str(path))

    def track(scalars: Mapping[str, float], step: int) -> None:
        # Phases count their own steps: each scalar comes with its step, and W&B with its own.
        phase = next(iter(scalars)).rpartition("/")[0] if scalars else ""
        run.log({**scalars, f"{phase}/step": step})

    return Tracker(track, run.finish)


def append(file: Any, row: Mapping[str, Any]) -> None:
    """Add one line of JSON."""
    file.write(json.dumps(row, default=plain) + "\n")


def plain(value: Any) -> Any:
    """Arrays and numpy numbers as JSON."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic | jax.Array) else str(value)
