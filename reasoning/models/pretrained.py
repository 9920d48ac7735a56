"""Hugging Face model directories (safetensors) as parameters of the Transformer, and back.

    config = load_config(directory, num_strategies=4)
    params = load_params(directory, config, key)        # tensor by tensor, onto its shards
    save_pretrained(directory, config, params)          # for `transformers`

The strategies of an imported model are rows of their own beside its vocabulary
(`start_strategies`), or ids of its vocabulary (`config.strategy_ids`); an export has the rows at
the end of the vocabulary.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
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
SHARD_BYTES = 4_000_000_000


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


class WeightFiles:
    """The tensors of a model directory by name; each is read when it is asked for.

    Raises:
      ValueError: no weights, a shard is missing or damaged, or the extra is not installed.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self._directory = Path(directory)
        self._open = _safe_open()
        self._files: dict[str, str] = {}
        for file in self._file_names():
            path = self._directory / file
            if not path.is_file():
                raise ValueError(f"{path}: this shard is missing; download the model again.")
            with self._reading(path) as tensors_of_file:
                self._files.update(dict.fromkeys(tensors_of_file.keys(), file))
        names = set(self._files)
        self.prefix = next((p for p in PREFIXES if f"{p}embed_tokens.weight" in names), PREFIXES[0])

    def _file_names(self) -> list[str]:
        index = self._directory / INDEX
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, Mapping) or not weight_map:
                raise ValueError(f"{index}: has no weight_map; download the model again.")
            return sorted(set(weight_map.values()))
        if (self._directory / WEIGHTS).is_file():
            return [WEIGHTS]
        raise ValueError(
            f"{self._directory}: has neither {WEIGHTS} nor {INDEX}; give the directory of a "
            "Hugging Face model with safetensors."
        )

    def _reading(self, path: Path) -> Any:
        try:
            return self._open(path, framework="np")
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise ValueError(f"{path}: is damaged ({error}); download it again.") from error

    def full_name(self, tensor: Tensor) -> str:
        """The name of a tensor in the files."""
        return tensor.name if tensor.name == HEAD_NAME else self.prefix + tensor.name

    def check(self, wanted: list[Tensor], tied_head: bool) -> None:
        """Refuse files that hold fewer tensors than are wanted, or others (ValueError)."""
        names = {self.full_name(tensor) for tensor in wanted}
        for name in sorted(names - set(self._files)):
            raise ValueError(
                f"{self._directory}: has no tensor {name}; config.json describes another model."
            )
        if tied_head:
            names.add(HEAD_NAME)  # some files repeat it
        for name in sorted(set(self._files) - names):
            if not name.startswith(TOWERS) and not name.endswith("rotary_emb.inv_freq"):
                raise ValueError(
                    f"{self._directory}: has a tensor {name} that the architecture does not use; "
                    "config.json describes another model."
                )

    def read(self, tensor: Tensor) -> np.ndarray:
        """A tensor as it is in the files, on the host.

        Raises:
          ValueError: it has another shape.
        """
        name = self.full_name(tensor)
        with self._reading(self._directory / self._files[name]) as file:
            array = file.get_tensor(name)
        if array.shape != tensor.shape:
            raise ValueError(
                f"{self._directory}: {name} has the shape {array.shape}, and config.json says "
                f"{tensor.shape}; download both again."
            )
        return array


def _safe_open() -> Any:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ValueError(
            "safetensors is not installed, which reads model directories: pip install "
            "'reasoning[hf]'."
        ) from error
    return safe_open


def load_params(
    directory: str | os.PathLike,
    config: ModelConfig,
    key: jax.Array,
    shardings: Any = None,
    dtype: str = "float32",
) -> Any:
    """The parameters of a model directory, with strategies that start near its mean token.

    One tensor at a time is on the host; each device gets its part of it.

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
    for tensor in wanted:
        array = from_file_layout(files.read(tensor), tensor.layout, config.head_dim)
        sharding = one_device if shardings is None else _at(shardings["params"], tensor.path)
        if tensor.layer is None:
            _put(params, tensor.path, _place(array, sharding, dtype))
            continue
        stacked = _at(shapes, tensor.path).shape
        if tensor.layer == 0:
            make = jax.jit(partial(jnp.zeros, stacked, dtype), out_shardings=sharding)
            _put(params, tensor.path, make())
        row = _place(array, _row_sharding(sharding), dtype)
        _put(params, tensor.path, _set_row(_at(params, tensor.path), tensor.layer, row))
    params = {"params": start_strategies(params, config, key)}
    return params if shardings is None else jax.device_put(params, shardings)


def from_file_layout(array: np.ndarray, layout: str, head_dim: int) -> np.ndarray:
    """A tensor of a file as the parameter that it is here (a view); see `Tensor.layout`."""
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
    """The inverse of `from_file_layout`."""
    if tensor.layout in ("transposed", "heads_in", "heads_out"):
        flat = array.reshape(tensor.shape[::-1])
        return np.ascontiguousarray(flat.T)
    return array.reshape(tensor.shape)


def _place(array: np.ndarray, sharding: Sharding, dtype: str) -> jax.Array:
    """An array of the host on its devices, converted part by part."""
    return jax.make_array_from_callback(
        array.shape, sharding, lambda part: np.ascontiguousarray(array[part]).astype(dtype)
    )


def _row_sharding(sharding: Sharding) -> Sharding:
    """The sharding of one layer of a stacked parameter."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding


@partial(jax.jit, donate_argnums=0)
def _set_row(stacked: jax.Array, layer: int, row: jax.Array) -> jax.Array:
    """A stacked parameter with one layer's written into it, in place."""
    return jax.lax.dynamic_update_index_in_dim(stacked, row, layer, axis=0)


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def start_strategies(
    weights: dict[str, Any], config: ModelConfig, key: jax.Array, noise: float = 0.1
) -> dict[str, Any]:
    """Parameters with strategy rows: the mean of the vocabulary's, and a little noise each.

    Args:
      weights: the parameters by name, without strategies.
      key: consumed.
      noise: in standard deviations of the vocabulary's rows, dimension by dimension.
    """
    if config.strategy_ids:
        return weights
    tables = {strategies.TABLE: weights["token_embedding"]}
    if not config.tied_head:
        tables[strategies.HEAD] = weights["token_head"]
    keys = jax.random.split(key, len(tables))
    rows = {
        name: _near_mean(table, own_key, config.num_strategies, noise)
        for (name, table), own_key in zip(tables.items(), keys, strict=True)
    }
    return {**weights, **rows}


@partial(jax.jit, static_argnums=2)
def _near_mean(table: jax.Array, key: jax.Array, count: int, noise: float) -> jax.Array:
    """`count` rows near the mean row of a table `[V, D]`."""
    mean, deviation = jnp.mean(table, 0, jnp.float32), jnp.std(table, 0, jnp.float32)
    normal = jax.random.normal(key, (count, table.shape[1]))
    return (mean[None] + noise * deviation[None] * normal).astype(table.dtype)


def save_pretrained(
    directory: str | os.PathLike,
    config: ModelConfig,
    params: Any,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json and safetensors, which `transformers` loads and scores the same.

    Strategy rows follow the vocabulary's: strategy s is the id V + s.

    Args:
      directory: made; must hold no model yet.
      dtype: float32 or bfloat16.
      shard_bytes: a file's size; a second one is begun where the next tensor would not fit.

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
    # Last: it makes the directory a model's.
    (directory / CONFIG).write_text(json.dumps({**about, "dtype": dtype}, indent=2))


def _file_name(tensor: Tensor) -> str:
    return tensor.name if tensor.name == HEAD_NAME else PREFIXES[0] + tensor.name


def _save_file(content: dict[str, np.ndarray], path: Path) -> None:
    _safe_open()
    from safetensors.numpy import save_file

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
    rows = {"token_embedding": strategies.TABLE, "token_head": strategies.HEAD}
    if tensor.path[0] in rows and not config.strategy_ids:
        array = np.concatenate([array, np.asarray(weights[rows[tensor.path[0]]])])
    return to_file_layout(array, tensor).astype(dtype)
