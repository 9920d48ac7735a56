"""Hugging Face model directories (safetensors) as parameters of the Transformer, and back.

    config = load_config(directory, num_strategies=4)
    params = load_params(directory, config, key)        # tensor by tensor, onto its shards
    save_pretrained(directory, config, params)          # for `transformers`

Numbers are float32 or bfloat16 in the files, and either here. The strategies of an imported model
are rows of their own beside its vocabulary (`start_strategies`), or ids of its vocabulary
(`config.strategy_ids`); an export has the rows at the end of the vocabulary.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from reasoning.models import strategies
from reasoning.models.config import ModelConfig
from reasoning.models.families import HEAD_NAME, Tensor, hf_config, model_config, tensors
from reasoning.models.transformer import init_params

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# Of the text model within a model of more than text, too.
PREFIXES = ("model.", "language_model.model.", "model.language_model.")
TOWERS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.",
          "model.multi_modal_projector.")
GENERATION = "generation_config.json"
TOKEN_IDS = ("eos_token_id", "bos_token_id", "pad_token_id")
SHARD_BYTES = 4_000_000_000
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# The vocabulary's tables, and the strategies' beside them.
STRATEGY_ROWS = {"token_embedding": strategies.TABLE, "token_head": strategies.HEAD}
Spread = tuple[np.ndarray, np.ndarray]


def load_config(directory: str | os.PathLike, **changes: Any) -> ModelConfig:
    """The configuration of a model directory, with some fields replaced.

    Raises:
      ValueError: no model directory, an architecture that is not covered, or an impossible change.
    """
    path = Path(directory) / CONFIG
    try:
        config = model_config(read_json(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return dataclasses.replace(config, **changes)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model directory.

    Raises:
      ValueError: the file is not there, or holds something else.
    """
    if not path.is_file():
        raise ValueError("there is no such file; give the directory of a Hugging Face model.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"is no JSON ({error}); download it again.") from error
    if not isinstance(content, dict):
        raise ValueError("is no JSON object; download it again.")
    return content


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor's bytes are: the file, the first of them, and what they mean."""

    path: Path
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """How many they are."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, Place]:
    """The tensors of a safetensors file: 8 bytes of length, so much JSON, then their bytes.

    Raises:
      ValueError: the file is missing, cut off or no such file, or holds another kind of number.
    """
    if not path.is_file():
        raise ValueError(f"{path}: this shard is missing; download the model again.")
    with path.open("rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
        try:
            header = json.loads(file.read(length)) if length < size else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: is damaged (no header); download it again.")
    places = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (start, end) = _described(path, name, about)
        start, end = 8 + length + start, 8 + length + end
        place = Place(path, start, np.dtype(DTYPES[dtype]), shape)
        if end > size or end - start != place.num_bytes:
            raise ValueError(f"{path}: is damaged ({name} is cut off); download it again.")
        places[name] = place
    return places


def _described(path: Path, name: str, about: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """Of a header's entry: the kind of number, the shape, and where the bytes begin and end."""
    entry = about if isinstance(about, dict) else {}
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and _sizes(shape) and _sizes(offsets) and len(offsets) == 2):
        raise ValueError(
            f"{path}: is damaged (the header says {about!r} of {name}); download it again."
        )
    if dtype not in DTYPES:
        raise ValueError(f"{path}: {name} is of {dtype}; weights are {', '.join(DTYPES)}.")
    return dtype, tuple(shape), tuple(offsets)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


class WeightFiles:
    """The tensors of a model directory by name.

    Raises:
      ValueError: no weights, or a shard is missing or damaged.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self._directory = Path(directory)
        self._places: dict[str, Place] = {}
        for file in self._file_names():
            self._places |= read_header(self._directory / file)
        self._prefix = next(
            (p for p in PREFIXES if f"{p}embed_tokens.weight" in self._places), PREFIXES[0]
        )

    def _file_names(self) -> list[str]:
        index = self._directory / INDEX
        if index.is_file():
            try:
                weight_map = read_json(index).get("weight_map")
            except ValueError as error:
                raise ValueError(f"{index}: {error}") from error
            if not isinstance(weight_map, Mapping) or not weight_map:
                raise ValueError(f"{index}: has no weight_map; download the model again.")
            for file in weight_map.values():
                if not isinstance(file, str) or Path(file).name != file:
                    raise ValueError(
                        f"{index}: names {file!r}, which is no file of the directory; download "
                        "the model again."
                    )
            return sorted(set(weight_map.values()))
        if (self._directory / WEIGHTS).is_file():
            return [WEIGHTS]
        raise ValueError(
            f"{self._directory}: has neither {WEIGHTS} nor {INDEX}; give the directory of a "
            "Hugging Face model with safetensors."
        )

    def _full_name(self, tensor: Tensor) -> str:
        return tensor.name if tensor.name == HEAD_NAME else self._prefix + tensor.name

    def check(self, wanted: Sequence[Tensor], tied_head: bool) -> None:
        """Refuse files that lack a tensor, or hold others or other shapes (ValueError)."""
        names = {self._full_name(tensor): tensor for tensor in wanted}
        for name, tensor in names.items():
            if name not in self._places:
                raise ValueError(
                    f"{self._directory}: has no tensor {name}; config.json describes another model."
                )
            if self._places[name].shape != tensor.shape:
                raise ValueError(
                    f"{self._directory}: {name} has the shape {self._places[name].shape}, and "
                    f"config.json says {tensor.shape}; download both again."
                )
        for name in sorted(set(self._places) - set(names)):
            tied = tied_head and name == HEAD_NAME  # some files repeat it
            if not tied and not name.startswith(TOWERS) and not name.endswith(".inv_freq"):
                raise ValueError(
                    f"{self._directory}: has a tensor {name} that the architecture does not use; "
                    "config.json describes another model."
                )

    def read_in_turn(self, wanted: Sequence[Tensor]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Each tensor as it is in the files, in host memory that the tensor after next reuses.

        The next one is read while the caller is at work on this one.
        """
        places = [self._places[self._full_name(tensor)] for tensor in wanted]
        largest = max(place.num_bytes for place in places)
        # Memory that is new to a process can be slower than the disk: it is touched once.
        buffers = [_aligned(largest), _aligned(largest)]
        with ThreadPoolExecutor(max_workers=1) as reader:
            following = reader.submit(_read, places[0], buffers[0])
            for i, tensor in enumerate(wanted):
                array = following.result()
                if i + 1 < len(wanted):
                    following = reader.submit(_read, places[i + 1], buffers[(i + 1) % 2])
                yield tensor, array


def _aligned(num_bytes: int) -> np.ndarray:
    """Host memory that a CPU device can read where it is."""
    buffer = np.empty(num_bytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + num_bytes]


def _read(place: Place, buffer: np.ndarray) -> np.ndarray:
    """The tensor of a place, read into the buffer."""
    part = buffer[: place.num_bytes]
    with place.path.open("rb", buffering=0) as file:
        file.seek(place.start)
        done = 0
        while done < len(part):
            count = file.readinto(part[done:].data)
            if not count:
                raise ValueError(f"{place.path}: became shorter while it was read.")
            done += count
    return part.view(place.dtype).reshape(place.shape)


def check_weights(directory: str | os.PathLike, config: ModelConfig) -> None:
    """Refuse a directory whose files are not those that the configuration describes.

    Raises:
      ValueError: missing, damaged or other files; nothing but their headers is read.
    """
    WeightFiles(directory).check(list(tensors(config)), config.tied_head)


def load_params(
    directory: str | os.PathLike,
    config: ModelConfig,
    key: jax.Array,
    shardings: Any = None,
    dtype: str = "float32",
) -> Any:
    """The parameters of a model directory, with strategies that start near its mean token.

    Two tensors at a time are on the host; each device gets its part of them.

    Args:
      config: of `load_config`, also with other strategies, `scan_layers` or `remat`.
      key: for the strategies; consumed.
      shardings: a tree like the parameters (`runtime.meshes.param_shardings`); None: the first
        device.
      dtype: of the parameters: float32 to train, bfloat16 to sample from a large model.

    Raises:
      ValueError: missing, damaged or other files than the configuration describes.
    """
    files, wanted = WeightFiles(directory), list(tensors(config))
    files.check(wanted, config.tied_head)
    shapes = jax.eval_shape(partial(init_params, config), key)["params"]
    one_device = SingleDeviceSharding(jax.devices()[0])
    params: dict[str, Any] = {}
    tables: dict[str, Spread] = {}
    for tensor, array in files.read_in_turn(wanted):
        sharding = one_device if shardings is None else _at(shardings["params"], tensor.path)
        if tensor.path[0] in STRATEGY_ROWS and not config.strategy_ids:
            tables[STRATEGY_ROWS[tensor.path[0]]] = spread_of(array)
        if tensor.layer is None:
            raw = _place(array, _file_sharding(sharding, tensor.layout))
            value = _converter(tensor.layout, config.head_dim, dtype, sharding)(raw)
        else:
            if tensor.layer == 0:
                shape = _at(shapes, tensor.path).shape
                zeros = jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)
                _put(params, tensor.path, zeros())
            raw = _place(array, _file_sharding(_row_sharding(sharding), tensor.layout))
            write = _row_writer(tensor.layout, config.head_dim, dtype, sharding)
            value = write(_at(params, tensor.path), raw, tensor.layer)
        # Before the array's memory is used again.
        _put(params, tensor.path, jax.block_until_ready(value))
    if not config.strategy_ids:
        params |= start_strategies(tables, config.num_strategies, key, dtype)
    params = {"params": params}
    return params if shardings is None else jax.device_put(params, shardings)


def from_file_layout(array: Any, layout: str, head_dim: int) -> Any:
    """A tensor of a file (of numpy or jax) as the parameter that it is; see `Tensor.layout`."""
    if layout == "same":
        return array
    if layout == "transposed":
        return array.T
    if layout == "bias":
        return array.reshape(-1, head_dim)
    if layout == "heads_in":
        return array.T.reshape(-1, head_dim, array.shape[0])
    return array.T.reshape(array.shape[1], -1, head_dim)


def to_file_layout(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The inverse of `from_file_layout`: a parameter of any shape as the file's tensor."""
    if tensor.layout in ("transposed", "heads_in", "heads_out"):
        return np.ascontiguousarray(array.reshape(tensor.shape[::-1]).T)
    return array.reshape(tensor.shape)


@functools.cache
def _converter(layout: str, head_dim: int, dtype: str, sharding: Sharding) -> Any:
    """A jitted function of a tensor in a file's layout: the parameter."""
    # A copy in any case: what is only passed on would stay in the memory that is read into.
    return jax.jit(
        lambda raw: jnp.copy(from_file_layout(raw, layout, head_dim).astype(dtype)),
        out_shardings=sharding,
    )


@functools.cache
def _row_writer(layout: str, head_dim: int, dtype: str, sharding: Sharding) -> Any:
    """A jitted function `(stacked, raw, layer)`: one layer's row written into it, in place."""

    def write(stacked: jax.Array, raw: jax.Array, layer: int) -> jax.Array:
        row = from_file_layout(raw, layout, head_dim).astype(dtype)
        return jax.lax.dynamic_update_index_in_dim(stacked, row, layer, axis=0)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _place(array: np.ndarray, sharding: Sharding) -> Any:
    """An array of the host on its devices, part by part."""
    if isinstance(sharding, SingleDeviceSharding):
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def _row_sharding(sharding: Sharding) -> Sharding:
    """The sharding of one layer of a stacked parameter."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding


def _file_sharding(sharding: Sharding, layout: str) -> Sharding:
    """The sharding of a tensor in the file's layout that is a parameter's in its own."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    order = {"same": None, "transposed": (1, 0), "bias": (0,), "heads_out": (1, 0),
             "heads_in": (2, 0)}[layout]
    spec = sharding.spec if order is None else [sharding.spec[i] for i in order]
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def spread_of(table: np.ndarray) -> Spread:
    """Mean and standard deviation `[D]` of the rows of a table `[V, D]`, in float32."""
    total = np.zeros((2, table.shape[1]), np.float64)
    for start in range(0, len(table), 1024):
        rows = table[start : start + 1024].astype(np.float32)
        total += np.stack([rows.sum(axis=0), (rows * rows).sum(axis=0)])
    mean, square = total / len(table)
    deviation = np.sqrt(np.maximum(square - mean * mean, 0))
    return mean.astype(np.float32), deviation.astype(np.float32)


def start_strategies(
    tables: Mapping[str, Spread], count: int, key: jax.Array, dtype: str, noise: float = 0.1
) -> dict[str, jax.Array]:
    """Rows `[count, D]` by name: the mean of a vocabulary's rows, and a little noise each.

    Args:
      tables: name of the rows -> mean and deviation of the vocabulary (`spread_of`).
      key: consumed.
      noise: in standard deviations of the vocabulary's rows, dimension by dimension.
    """
    rows = {}
    for (name, (mean, deviation)), own_key in zip(
        tables.items(), jax.random.split(key, len(tables)), strict=True
    ):
        normal = jax.random.normal(own_key, (count, len(mean)))
        rows[name] = (mean[None] + noise * deviation[None] * normal).astype(dtype)
    return rows


def save_pretrained(
    directory: str | os.PathLike,
    config: ModelConfig,
    params: Any,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json, generation_config.json and safetensors, for `transformers`.

    It loads and scores them the same.

    Strategy rows follow the vocabulary's: strategy s is the id V + s.

    Args:
      directory: made; must hold no model yet.
      dtype: float32 or bfloat16.
      shard_bytes: a file's size; a second one is begun where the next tensor would not fit.
      generation: what generation_config.json is to say, beside what it says if it is there
        already; config.json repeats its eos_token_id (one or several), bos_token_id and
        pad_token_id. Those left out are null, for none.

    Raises:
      ValueError: no published family computes this, or there is a model already.
    """
    directory = Path(directory)
    about = hf_config(dataclasses.replace(config, vocab_size=config.output_size, strategy_ids=(),
                                          num_strategies=1))
    if (directory / CONFIG).exists():
        raise ValueError(f"{directory}: holds a model already; choose another directory.")
    directory.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(config, dtype, shard_bytes))
    total = sum(size for _, size in shards)
    weight_map = {}
    for number, (names, _) in enumerate(shards):
        file = WEIGHTS
        if len(shards) > 1:
            file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        content = {_file_name(t): _export(params, config, t, dtype) for t in names}
        _save_file(content, directory / file)
        weight_map |= dict.fromkeys(content, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=1))
    says = _generation(directory / GENERATION, generation or {})
    (directory / GENERATION).write_text(json.dumps(says, indent=2))
    ids = {name: says[name] for name in TOKEN_IDS}
    # Last: it makes the directory a model's.
    (directory / CONFIG).write_text(json.dumps({**about, **ids, "dtype": dtype}, indent=2))


def _generation(path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What generation_config.json is to say, with all token ids.

    Without a word of them, `transformers` would take those of the family's first model.
    """
    try:
        there = read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return {**dict.fromkeys(TOKEN_IDS), **there, **changes}


def weight_shards(config: ModelConfig, dtype: str) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of each file that `save_pretrained` would write."""
    for members, _ in _shards(config, dtype, SHARD_BYTES):
        yield {_file_name(tensor): tensor.shape for tensor in members}


def _file_name(tensor: Tensor) -> str:
    return tensor.name if tensor.name == HEAD_NAME else PREFIXES[0] + tensor.name


def _save_file(content: dict[str, np.ndarray], path: Path) -> None:
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ValueError(
            "safetensors is not installed, which writes model directories; pip install '.[hf]'."
        ) from error
    save_file(content, path, metadata={"format": "pt"})


def _shards(
    config: ModelConfig, dtype: str, shard_bytes: int
) -> Iterator[tuple[list[Tensor], int]]:
    """The tensors of each file, and their bytes."""
    names: list[Tensor] = []
    size = 0
    for tensor in tensors(dataclasses.replace(config, vocab_size=config.output_size)):
        added = int(np.prod(tensor.shape)) * jnp.dtype(dtype).itemsize
        if names and size + added > shard_bytes:
            yield names, size
            names, size = [], 0
        names.append(tensor)
        size += added
    yield names, size


def _export(params: Any, config: ModelConfig, tensor: Tensor, dtype: str) -> np.ndarray:
    """A tensor as the files have it; tables with the strategies' rows at their end."""
    weights = params["params"]
    array = _at(weights, tensor.path)
    array = np.asarray(array if tensor.layer is None else array[tensor.layer])
    if tensor.path[0] in STRATEGY_ROWS and not config.strategy_ids:
        array = np.concatenate([array, np.asarray(weights[STRATEGY_ROWS[tensor.path[0]]])])
    return to_file_layout(array, tensor).astype(dtype)
