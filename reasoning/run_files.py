"""The files of a run directory: their names, and readers that say what is wrong with one.

What writes a run (`reasoning.runtime`) and what looks at it (`reasoning.evaluation.records`) share
them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIG, RESULTS, TABLE = "config.json", "results.json", "table.txt"
ATTEMPTS, METRICS, COMPLETIONS = "attempts.jsonl", "metrics.jsonl", "completions.jsonl"
Row = dict[str, Any]


def read_about(workdir: Path) -> Row:
    """What config.json tells of a run: its program, its configuration and more.

    Raises:
      ValueError: it is damaged, or describes no run.
    """
    about = read_object(workdir / CONFIG)
    if "program" not in about or not isinstance(about.get("config"), dict):
        raise ValueError(
            f"workdir={workdir}: its {CONFIG} describes no run; choose another directory."
        )
    return about


def read_object(path: Path) -> Row:
    """The JSON object that a file holds.

    Raises:
      ValueError: the file holds something else.
    """
    mend = "restore it from a copy, or choose another workdir."
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is damaged ({error}); {mend}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: is damaged (no JSON object); {mend}")
    return found


def read_rows(path: Path) -> Iterator[Row | None]:
    """The JSON objects of a file of lines; None for each line that is none."""
    if not path.is_file():
        return
    with path.open("rb") as file:  # only b"\n" ends a line: texts may hold others
        for line in file:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            yield found if isinstance(found, dict) else None
