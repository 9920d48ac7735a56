"""What a run's figures depend on: versions, revision, the user's own code, configuration, data."""

import dataclasses
import hashlib
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reasoning import __version__
from reasoning.names import is_own

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "sentencepiece", "numpy")


def versions() -> dict[str, str]:
    """What the figures depend on beside the configuration."""
    found = {package: metadata.version(package) for package in PACKAGES}
    ours = {"reasoning": __version__, "python": platform.python_version()}
    return {**ours, **found, "device": jax.devices()[0].device_kind}


def git_revision() -> str | None:
    """The checkout's commit, with `+changes` if files differ from it; None outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40"]
    try:
        done = subprocess.run([*command, "--dirty=+changes"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode().strip()


def own_code(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The modules that a configuration names as MODULE:ATTRIBUTE, once they are imported.

    Returns:
      module -> its file and the SHA-256 of that file alone, not of what it imports.
    """
    found = {}
    for value in config.values():
        if isinstance(value, Mapping):
            found |= own_code(value)
        elif isinstance(value, str) and is_own(value):
            name = value.partition(":")[0]
            file = getattr(sys.modules.get(name), "__file__", None)
            if file and Path(file).is_file():
                checksum = hashlib.sha256(Path(file).read_bytes()).hexdigest()
                found[name] = {"file": file, "sha256": checksum}
    return found


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
            if all(type(part) is int for part in item):  # a row of ids, at once
                digest.update(repr(tuple(item)).encode())
                return
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
