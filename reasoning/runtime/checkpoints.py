"""Checkpoints: all that a run needs to go on from a step as if it had never stopped.

    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(step, state, about)  # returns when the state has left the device
    step = checkpoints.latest()               # None: nothing was saved
    about = checkpoints.about(step)
    state = checkpoints.restore(step, like)

A step holds a tree of arrays and a JSON object, with the checksums of its files. It is there whole
or not at all: Orbax writes it aside and renames it. latest.json names the last step, so that one
that is lost is missed. A step that is damaged or lost is refused, and passed over only on request.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import LatestN

from reasoning.runtime.processes import from_first

# The items of a step, and the files beside them.
STATE, ABOUT, CHECKSUMS = "state", "about.json", "checksums.json"
LATEST = "latest.json"


class CannotRestore(ValueError):
    """What was saved is not what is asked for."""


class DamagedCheckpoint(CannotRestore):
    """A step that was complete and is not what was written."""


class Checkpoints:
    """The steps under one directory, for one writer at a time.

    Of the processes of a job all call `save`, `wait`, `restore` and `close`; the rest only reads
    and writes files, and is for the first process alone.

    Args:
      directory: made by `create`, or with the first step.
      keep_last: so many of the latest steps are kept.
    """

    def __init__(self, directory: str | os.PathLike, keep_last: int = 2) -> None:
        self.directory = Path(directory).absolute()
        self._keep_last, self._opened = keep_last, None
        self._saving, self._about = -1, {}
        self._waiting = False
        self._verified: set[int] = set()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def create(self) -> None:
        """Make the directory, in which no step was ever saved; one that is there stays as it is."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if not (self.directory / LATEST).exists():
            _replace(self.directory / LATEST, {"step": -1})

    def steps(self) -> list[int]:
        """The complete steps, in order."""
        found = self.directory.iterdir() if self.directory.is_dir() else ()
        return sorted(int(path.name) for path in found if path.name.isdecimal())

    def latest(self) -> int | None:
        """The last step; None if none was ever saved.

        Raises:
          DamagedCheckpoint: a later one was there once, or nothing says what was there.
        """
        steps, named = self.steps(), self._named()
        if named > max(steps, default=-1):
            raise DamagedCheckpoint(f"{self.directory / str(named)}: is missing.")
        return max(steps, default=None)

    def pass_over(self) -> None:
        """Make the step before the last one the latest; the last is damaged or lost, or its name.

        At most one step is passed over. Its files are set aside as `damaged_STEP_TIME`.

        Raises:
          DamagedCheckpoint: none of the steps before is whole; nothing is changed.
        """
        before = self.steps()
        with contextlib.suppress(DamagedCheckpoint):
            if before and self._named() <= before[-1]:  # neither it nor its name is lost
                before.pop()
        if not any(self._is_whole(step) for step in before):
            raise DamagedCheckpoint(
                f"{self.directory}: holds no step before that is whole; restore its files from a "
                "copy, or choose another workdir."
            )
        for step in self.steps()[len(before) :]:
            aside = self.directory / f"damaged_{step}_{time.time():.0f}"
            (self.directory / str(step)).rename(aside)
            self._verified.discard(step)
        _replace(self.directory / LATEST, {"step": before[-1]})
        if self._opened:
            self._opened.reload()

    def save(self, step: int, state: Any, about: Mapping[str, Any]) -> None:
        """Save a step; it is written while the program goes on.

        Args:
          step: higher than all before.
          state: a tree of arrays.
          about: a JSON object.

        Raises:
          OSError: this or the save before could not be written; the steps before are there.
        """
        self.wait()
        flat = _flat(state)
        self._saving, self._about = step, {**about, "tree": describe(flat)}
        with self._system_errors():
            self._manager().save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(flat)))
        self._waiting = True

    def wait(self) -> None:
        """Wait until what is being saved is there.

        Raises:
          OSError: it could not be written; the steps before are there.
        """
        if not self._waiting:
            return
        self._waiting = False  # a save that fails is asked about once
        with self._system_errors():
            self._manager().wait_until_finished()
        if jax.process_index() == 0:
            _replace(self.directory / LATEST, {"step": self._saving})

    def about(self, step: int) -> dict[str, Any]:
        """The JSON object of a complete step.

        Raises:
          DamagedCheckpoint: a file of the step is not what was written.
        """
        self._verify(step)
        return json.loads((self.directory / str(step) / ABOUT).read_text())

    def restore(self, step: int, like: Any) -> Any:
        """The state of a complete step.

        Args:
          like: a tree of arrays or `jax.ShapeDtypeStruct`s whose structure, shapes, dtypes and
            shardings the state is to have; another mesh than the one that saved is fine.

        Raises:
          DamagedCheckpoint: a file of the step is not what was written.
          CannotRestore: another tree, naming the first difference.
        """
        wanted = _flat(like)
        about = from_first(lambda: self.about(step))
        _compare(about["tree"], describe(wanted), self.directory / str(step))
        restored = self._manager().restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.tree.map(_abstract, wanted))
            ),
        )
        return jax.tree.unflatten(
            jax.tree.structure(like), [restored["state"][path] for path in wanted]
        )

    def close(self) -> None:
        """Wait for what is being saved; nothing can be saved any more."""
        self.wait()
        if self._opened:
            self._opened.close()

    def _manager(self) -> ocp.CheckpointManager:
        """Orbax's view of the directory, from the first save or restore on."""
        if self._opened is None:
            self._opened = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=LatestN(self._keep_last),
                    cleanup_tmp_directories=True,
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._complete),
                ),
                item_names=(STATE,),
            )
        return self._opened

    def _named(self) -> int:
        """The step that latest.json names; -1: none was ever saved."""
        path = self.directory / LATEST
        try:
            step = json.loads(path.read_text())["step"]
            if not isinstance(step, int):
                raise TypeError(f"step {step!r} is no number")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(f"{path}: cannot be read ({_reason(error)}).") from error
        return step

    def _is_whole(self, step: int) -> bool:
        """Whether every file of a step is what was written."""
        try:
            self._verify(step)
        except DamagedCheckpoint:
            return False
        return True

    @contextlib.contextmanager
    def _system_errors(self) -> Iterator[None]:
        """What tensorstore says of the file system (a full disk) as the OSError that it is."""
        try:
            yield
        except ValueError as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None:
                raise
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(self.directory)) from error

    def _complete(self) -> None:
        """Add what Orbax does not write to the step that it has written; then it renames it."""
        if jax.process_index() != 0:
            return
        (folder,) = self.directory.glob(f"{self._saving}.*tmp*")
        _replace(folder / ABOUT, self._about)
        files = [folder / ABOUT, *(path for path in (folder / STATE).rglob("*") if path.is_file())]
        sums = {str(path.relative_to(folder)): _checksum(path) for path in files}
        _replace(folder / CHECKSUMS, sums)

    def _verify(self, step: int) -> None:
        """Raise DamagedCheckpoint if a file of a complete step is not what was written."""
        if step in self._verified:
            return
        folder = self.directory / str(step)
        try:
            sums = {ABOUT: "", **json.loads((folder / CHECKSUMS).read_text())}
        except (OSError, ValueError, TypeError) as error:
            reason = _reason(error)
            raise DamagedCheckpoint(f"{folder / CHECKSUMS}: cannot be read ({reason}).") from error
        for name, expected in sums.items():
            path = folder / name
            if not path.is_file():
                raise DamagedCheckpoint(f"{path}: is missing.")
            if _checksum(path) != expected:
                raise DamagedCheckpoint(f"{path}: its content is not what was written.")
        self._verified.add(step)


def save_tree(directory: str | os.PathLike, tree: Any, about: Mapping[str, Any]) -> None:
    """Write one tree of arrays, such as a policy's parameters; replaces what is there."""
    if jax.process_index() == 0:
        shutil.rmtree(directory, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"{directory} is clear")
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(0, tree, about)


def load_tree(directory: str | os.PathLike, like: Any) -> Any:
    """What `save_tree` wrote, with the structure and the shardings of `like`.

    Raises:
      DamagedCheckpoint: it is not what was written, or not there.
      CannotRestore: another tree, naming the first difference.
    """
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore(0, like)


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by their path, such as `params.final_norm.scale`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def describe(flat: Mapping[str, Any]) -> dict[str, str]:
    """Dtype and shape of each leaf, such as `float32[4,64]`."""
    return {
        path: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in flat.items()
    }


def _compare(saved: Mapping[str, str], wanted: Mapping[str, str], folder: Path) -> None:
    for path in sorted({*saved, *wanted}):
        there, here = saved.get(path, "absent"), wanted.get(path, "absent")
        if there != here:
            raise CannotRestore(
                f"{folder}: holds another state ({path} is {there} there and {here} here); go on "
                "with the configuration that saved it, or choose another workdir."
            )


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _reason(error: Exception) -> str:
    """What an error says, in words and without the file's name."""
    return error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all, and on the disk when this returns."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
