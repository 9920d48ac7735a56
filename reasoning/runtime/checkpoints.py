"""Checkpoints: all that a run needs to go on from a step as if it had never stopped.

    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(step, state, about)  # returns when the state has left the device
    step = checkpoints.latest()               # None: nothing was saved
    about = checkpoints.about(step)
    state = checkpoints.restore(step, like)

A step holds a tree of arrays and a JSON object, with the checksums of its files. It is there whole
or not at all: Orbax writes it aside and renames it. A step that is damaged or lost is refused,
never passed over.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

CHECKSUMS, LATEST = "checksums.json", "latest.json"
ITEMS = ("state", "about")


class CannotRestore(ValueError):
    """What was saved is not what is asked for."""


class DamagedCheckpoint(CannotRestore):
    """A step that was complete and is not what was written."""


class Checkpoints:
    """The steps under one directory, for one writer at a time.

    Args:
      directory: made if it is not there.
      keep_last: so many of the latest steps are kept.
      keep_best: and so many of the best, by the number `best` that is saved with them; higher is
        better.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        keep_last: int = 2,
        keep_best: int = 0,
        best: str = "",
    ) -> None:
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        policies = [LatestN(keep_last)]
        if keep_best:
            policies.append(BestN(get_metric_fn=lambda metrics: metrics[best], n=keep_best))
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._add_checksums),
            ),
            item_names=ITEMS,
        )
        self._saving, self._waiting = -1, False
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

    def steps(self) -> list[int]:
        """The complete steps, in order."""
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

    def latest(self) -> int | None:
        """The last step; None if none was ever saved.

        Raises:
          DamagedCheckpoint: a later one was there once.
        """
        steps, named = self.steps(), self.directory / LATEST
        last = json.loads(named.read_text())["step"] if named.is_file() else -1
        if last > max(steps, default=-1):
            raise DamagedCheckpoint(f"{self.directory / str(last)}: is missing.")
        return max(steps, default=None)

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
        self._saving, self._waiting = step, True
        flat = _flat(state)
        with self._system_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(flat),
                    about=ocp.args.JsonSave({**about, "tree": describe(flat)}),
                ),
                metrics=about.get("metrics"),
            )

    def wait(self) -> None:
        """Wait until what is being saved is there.

        Raises:
          OSError: it could not be written; the steps before are there.
        """
        waiting, self._waiting = self._waiting, False  # a save that fails is asked about once
        with self._system_errors():
            self._manager.wait_until_finished()
        if waiting and jax.process_index() == 0:
            _replace(self.directory / LATEST, {"step": self._saving})

    def about(self, step: int) -> dict[str, Any]:
        """The JSON object of a complete step.

        Raises:
          DamagedCheckpoint: a file of the step is not what was written.
        """
        self._verify(step)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(about=ocp.args.JsonRestore())
        )
        return restored["about"]

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
        _compare(self.about(step)["tree"], describe(wanted), self.directory / str(step))
        restored = self._manager.restore(
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
        self._manager.close()

    def drop_latest(self) -> None:
        """Forget the last step, damaged or lost, for the one before it to be the latest."""
        named = self.directory / LATEST
        steps = self.steps()
        lost = json.loads(named.read_text())["step"] if named.is_file() else -1
        if steps and lost <= steps[-1]:
            self._verified.discard(steps[-1])
            self._manager.delete(steps.pop())
        _replace(named, {"step": max(steps, default=-1)})

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

    def _add_checksums(self) -> None:
        """Complete the step whose files are all written; then Orbax renames it."""
        if jax.process_index() != 0:
            return
        (folder,) = self.directory.glob(f"{self._saving}.*tmp*")
        files = [path for item in ITEMS for path in (folder / item).rglob("*") if path.is_file()]
        sums = {str(path.relative_to(folder)): _checksum(path) for path in files}
        _replace(folder / CHECKSUMS, sums)

    def _verify(self, step: int) -> None:
        """Raise DamagedCheckpoint if a file of a complete step is not what was written."""
        if step in self._verified:
            return
        folder = self.directory / str(step)
        try:
            sums = json.loads((folder / CHECKSUMS).read_text())
        except (OSError, ValueError) as error:
            raise DamagedCheckpoint(f"{folder / CHECKSUMS}: cannot be read ({error}).") from error
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
      DamagedCheckpoint: it is not what was written.
      CannotRestore: there is none, or another tree, naming the first difference.
    """
    if not Path(directory).is_dir():
        raise CannotRestore(f"{directory}: there is no checkpoint.")
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
