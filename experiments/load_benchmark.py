"""How fast a 7B model directory loads, and how much memory it takes beyond the parameters.

    python -m experiments.load_benchmark --directory=DIR                # 15 GB, kept in DIR
    python -m experiments.load_benchmark --directory=DIR --layers=4     # a smaller one

Writes random bfloat16 weights in the shape of Qwen 2.5 7B, unless they are there. Then, each after
the files have left the page cache: reads them plainly, and loads them as bfloat16 parameters. The
rates at which a core fills memory that is new and that it has used before are printed beside them,
as a limit. One JSON object.
"""

import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from experiments import launch, usage
from reasoning.models.config import ModelConfig, make_config
from reasoning.models.families import hf_config
from reasoning.models.pretrained import load_config, load_params, weight_shards

_DIRECTORY = flags.DEFINE_string("directory", None, "Where the weights are, or will be written.")
_LAYERS = flags.DEFINE_integer("layers", 28, "Of the 28 of Qwen 2.5 7B.", lower_bound=1)


def model(layers: int) -> ModelConfig:
    """Qwen 2.5 7B with so many of its layers, and nothing beside its vocabulary."""
    return make_config(
        "7b", vocab_size=152_064, num_strategies=1, strategy_ids=(0,), num_layers=layers,
        qkv_bias=True,
    )


def write_random(directory: Path, config: ModelConfig) -> None:
    """A model directory of random weights."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    block = np.random.default_rng(0).integers(0, 2**14, 2**22, dtype=np.uint16)
    weight_map = {}
    for number, shard in enumerate(weight_shards(config, "bfloat16")):
        content = {
            name: np.resize(block, shape).view("bfloat16") for name, shape in shard.items()
        }
        save_file(content, directory / f"model-{number}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(content, f"model-{number}.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(hf_config(config)))


def forget(files: list[Path]) -> None:
    """Drop files from the page cache, so that the next read is of the disk."""
    os.sync()
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_plainly(files: list[Path]) -> float:
    """Seconds to read them into memory that is used again."""
    forget(files)
    buffer = memoryview(bytearray(2**26))
    buffer[:] = bytes(len(buffer))
    started = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started


def memory_rates(num_bytes: int = 2**30) -> tuple[float, float]:
    """Bytes per second that a core writes into new memory, and into the same once more."""
    block, rates = np.empty(num_bytes, np.uint8), []
    for _ in range(2):
        started = time.perf_counter()
        block.fill(1)
        rates.append(num_bytes / (time.perf_counter() - started))
    return rates[0], rates[1]


def own_memory() -> int:
    """Bytes of this process that are no files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """A list whose one entry is the most memory used so far."""
    most, over = [own_memory()], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            most[0] = max(most[0], own_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield most
    over.set()
    watcher.join()


def main(_: list[str]) -> None:
    """Write, read, load, print."""
    if not _DIRECTORY.value:
        launch.refuse("directory is missing: say where the weights go, --directory=DIR.")
    load1 = os.getloadavg()[0]  # later it is this program's own
    directory, config = Path(_DIRECTORY.value), model(_LAYERS.value)
    if not (directory / "config.json").exists():
        write_random(directory, config)
    files = sorted(directory.glob("*.safetensors"))
    num_bytes = sum(path.stat().st_size for path in files)
    new, used = memory_rates()
    plain = read_plainly(files)
    forget(files)
    jax.devices()
    before, started = own_memory(), time.perf_counter()
    with watched_memory() as most:
        loaded = dataclasses.replace(load_config(directory), strategy_ids=(0,), scan_layers=True)
        params = load_params(directory, loaded, jax.random.key(0), dtype="bfloat16")
        jax.block_until_ready(params)
        seconds = time.perf_counter() - started
    leaves = jax.tree.leaves(params)
    largest = config.vocab_size * config.d_model * 2
    print(json.dumps({
        "parameters": sum(leaf.size for leaf in leaves),
        "gigabytes": round(num_bytes / 1e9, 2),
        "read_gb_per_s": round(num_bytes / plain / 1e9, 3),
        "load_gb_per_s": round(num_bytes / seconds / 1e9, 3),
        "load_s": round(seconds, 1),
        "peak_beyond_parameters_gb": round(
            (most[0] - before - sum(leaf.nbytes for leaf in leaves)) / 1e9, 2),
        "largest_tensor_gb": round(largest / 1e9, 2),
        "new_memory_gb_per_s": round(new / 1e9, 2),
        "used_memory_gb_per_s": round(used / 1e9, 2),
        "load1": round(load1, 2),
    }))


if __name__ == "__main__":
    app.run(main, flags_parser=usage.parse)
