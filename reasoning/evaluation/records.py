"""What a run directory tells whoever looks at the run, finished or not.

    record = read_record("runs/quickstart")
    record.completions[0]["reason"], record.state

Nothing is written and no lock is taken. Lines that a kill has cut short are counted, not fatal.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reasoning.run_files import (
    ATTEMPTS,
    COMPLETIONS,
    CONFIG,
    METRICS,
    RESULTS,
    TABLE,
    Row,
    read_about,
    read_object,
    read_rows,
)

LOGS = (ATTEMPTS, METRICS, COMPLETIONS)


@dataclasses.dataclass(frozen=True)
class Record:
    """A run as its directory tells it.

    Attributes:
      path: of the directory.
      name: of the run among those that are looked at.
      about: config.json: program, config, versions, git, command.
      attempts: lines of attempts.jsonl.
      metrics, completions: lines of metrics.jsonl and completions.jsonl.
      results: results.json; None while the run has not finished.
      table: table.txt, "" where there is none.
      damaged: file -> how many of its lines are no JSON objects, where there are such.
      written: when a log was last written, in seconds since the epoch.
    """

    path: Path
    name: str
    about: Mapping[str, Any]
    attempts: list[Row]
    metrics: list[Row]
    completions: list[Row]
    results: Mapping[str, Any] | None
    table: str
    damaged: dict[str, int]
    written: float

    @property
    def config(self) -> Mapping[str, Any]:
        """The run's configuration."""
        return self.about["config"]

    @property
    def state(self) -> str:
        """How far the run is, in one sentence."""
        if self.results is not None:
            return "Finished."
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.written))
        last = self.metrics[-1] if self.metrics else None
        where = f"step {last.get('step')} of {last.get('phase')}" if last else "nothing logged yet"
        return f"Not finished: {where}; last written {when}."


def read_record(workdir: str | os.PathLike, name: str | None = None) -> Record:
    """Read a run directory.

    Args:
      name: of the run; its directory's name if left out.

    Raises:
      ValueError: it is no run directory, or its config.json or results.json is damaged.
    """
    path = Path(workdir)
    if not path.is_dir():
        raise ValueError(f"workdir={workdir}: there is no such directory.")
    if not (path / CONFIG).is_file():
        raise ValueError(
            f"workdir={workdir}: holds no {CONFIG}, so no run was started there; name a run's "
            "directory."
        )
    about = read_about(path)
    rows, damaged = {}, {}
    for file in LOGS:
        lines = list(read_rows(path / file))
        rows[file] = [line for line in lines if line is not None]
        if len(rows[file]) < len(lines):
            damaged[file] = len(lines) - len(rows[file])
    logs = [path / CONFIG, *(path / file for file in LOGS)]
    return Record(
        path=path,
        name=path.resolve().name if name is None else name,
        about=about,
        attempts=rows[ATTEMPTS],
        metrics=rows[METRICS],
        completions=rows[COMPLETIONS],
        results=read_object(path / RESULTS) if (path / RESULTS).is_file() else None,
        table=_text(path / TABLE) if (path / TABLE).is_file() else "",
        damaged=damaged,
        written=max(log.stat().st_mtime for log in logs if log.is_file()),
    )


def read_records(workdirs: list[str]) -> list[Record]:
    """Read several run directories; those of one name are told apart by their parents.

    Raises:
      ValueError: as `read_record`, or a directory is named twice.
    """
    paths = [Path(workdir).resolve() for workdir in workdirs]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise ValueError(f"workdir={workdirs[i]}: is named twice; name each run once.")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    names = ["/".join(path.parts[-depth:]) for path in paths]
    return [read_record(workdir, name) for workdir, name in zip(workdirs, names, strict=True)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as one level: `rl.steps` -> value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(configs: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys whose values differ between configurations, each with its values, in their order.

    A key that a configuration lacks has the value "(none)" there.
    """
    flat = [flattened(config) for config in configs]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    values = {key: [each.get(key, "(none)") for each in flat] for key in keys}
    # As JSON: true is not 1.
    return {key: found for key, found in values.items() if len(set(map(json.dumps, found))) > 1}
