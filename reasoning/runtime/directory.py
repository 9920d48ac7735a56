"""What a run directory says about its run: whose it is, whether it has finished, who writes it."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from reasoning.run_files import CONFIG, RESULTS, read_about, read_object
from reasoning.runtime.provenance import first_difference

# Of a configuration, what a run may go on with in another way: where its arrays lie.
LAYOUT = ("mesh",)
# What makes a directory no run yet.
KEPT = (".lock", f".{CONFIG}.partial")


def finished_results(
    workdir: str | os.PathLike, program: str, config: Mapping[str, Any], extend: bool = False
) -> dict | None:
    """The results of a finished run of this configuration; None if it is still to be run.

    Nothing is written. The mesh may be another one.

    Args:
      extend: a run of fewer steps is still to be run, too.

    Raises:
      ValueError: the directory holds something else, in one sentence.
    """
    if "://" in str(workdir):
        raise ValueError(
            f"workdir={workdir}: a run needs a file system, for its lock and its logs; mount the "
            "bucket (docs/tpu.md)."
        )
    workdir = Path(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"workdir={workdir}: is a file; choose a directory.")
    # A directory of nothing but these is a run that was stopped before it had started.
    if not workdir.exists() or all(path.name in KEPT for path in workdir.iterdir()):
        return None
    if not (workdir / CONFIG).is_file():
        raise ValueError(f"workdir={workdir}: holds files but no run; choose another directory.")
    about = read_about(workdir)
    if about["program"] != program:
        raise ValueError(
            f"workdir={workdir}: holds a run of {about['program']}, not of {program}; choose "
            "another directory."
        )
    before, config = _compared(about["config"]), _compared(config)
    if extend and _extends(before, config):
        return None
    difference = first_difference(before, config)
    if difference:
        raise ValueError(
            f"workdir={workdir}: holds a run of another configuration ({difference}); "
            "choose another directory."
        )
    results = workdir / RESULTS
    return read_object(results) if results.is_file() else None


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration must stay as it is."""
    kept = {name: value for name, value in config.items() if name not in LAYOUT}
    return json.loads(json.dumps(kept))


def is_extended(workdir: Path, config: Mapping[str, Any]) -> bool:
    """Whether the directory holds a run, and it has fewer steps."""
    path = workdir / CONFIG
    return path.is_file() and _extends(_compared(read_object(path)["config"]), _compared(config))


def _extends(old: Any, new: Any, key: str = "") -> bool:
    """Whether a configuration asks for more steps somewhere, and else for the same.

    Not where there were none: phases that have ended would have started from another policy.
    """
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return old == new or (key == "steps" and new > old > 0)
    same = old.keys() == new.keys()
    return same and old != new and all(
        old[key] == new[key] or _extends(old[key], new[key], key) for key in old
    )


def check_unfinished(
    workdir: str | os.PathLike, program: str, config: Mapping[str, Any], extend: bool
) -> None:
    """Raise a ValueError if the directory holds a finished run, or something else."""
    if finished_results(workdir, program, config, extend) is not None:
        raise ValueError(f"workdir={workdir}: this run has finished; choose another one.")


def lock(path: Path) -> TextIO:
    """The directory's lock, held until it is closed or the process ends, however it ends.

    Raises:
      ValueError: another process holds it.
    """
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
