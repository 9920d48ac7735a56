"""One of two processes of a job that opens run directories: prints what it saw as JSON.

    python run_worker.py DIRECTORY INDEX HOST:PORT

tests/runtime/test_processes.py compares.
"""

import contextlib
import json
import sys
from pathlib import Path

import jax
import numpy as np

from reasoning.runtime import processes, runs
from reasoning.runtime.directory import lock
from reasoning.runtime.meshes import MeshShape, make_mesh, shard_rows, start_processes
from reasoning.runtime.runs import Run, Saving


class Killed(BaseException):
    """Stands for the end of the process."""


def open_run(workdir, data="data", **saving):
    return Run(workdir, "program", {"seed": 0}, data, Saving(every=0.0, **saving))


def refusal(*args, **saving):
    """The sentence with which a run is refused; None if it is not."""
    try:
        with open_run(*args, **saving):
            return None
    except ValueError as error:
        return str(error)


def train(workdir, mesh, last_step=None, **saving):
    """Four steps, of which each is saved: the step that it started from, and this one's rows."""
    like, seen = shard_rows({"w": np.arange(8.0)}, mesh), []
    half = jax.jit(lambda tree: jax.tree.map(lambda x: x / 2, tree))

    def work():
        params, done, _ = run.resume(like, {})
        seen.append(done)
        for step in range(done, 4):
            params = half(params)
            run.log_metrics("base", step, {})
            if run.due():
                run.save(step + 1, params, {})
            if step == last_step:
                raise Killed
        return params, {}

    with open_run(workdir, **saving) as run:
        params, _ = run.phase("base", work, like=like, steps=4)
    return seen, rows_of(params["w"])


def rows_of(array):
    """What this process holds of an array, device by device."""
    return [shard.data.tolist() for shard in array.addressable_shards]


def main(directory, index, coordinator):
    jax.config.update("jax_num_cpu_devices", 2)
    start_processes(coordinator, 2, index)
    runs.VISIBLE, runs.git_revision = 1.0, lambda: None
    told = {"told": processes.from_first(lambda: {"by": jax.process_index()})}
    told["any"] = [processes.any_process(index == i) for i in (0, 1, 2)]
    (directory / "file").write_text("")
    told["file"] = refusal(directory / "file")
    told["own"] = refusal(directory / f"own{index}")
    rows = np.arange(4)
    told["spanning"] = rows_of(shard_rows(rows, make_mesh(MeshShape(tensor=4))))
    mesh, workdir = make_mesh(MeshShape(fsdp=2, tensor=2)), directory / "run"
    told["cut"] = rows_of(shard_rows(rows, mesh))
    with contextlib.suppress(Killed):
        train(workdir, mesh, last_step=2)
    told["data"] = refusal(workdir, "other")
    held = lock(workdir) if index == 0 else None
    told["lock"] = refusal(workdir)
    if held:
        held.close()
        next((workdir / "checkpoints" / "2" / "state").rglob("manifest.ocdbt")).write_bytes(b"")
    told["damaged"] = refusal(workdir)
    told["trained"] = train(workdir, mesh, use_previous=True)
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
