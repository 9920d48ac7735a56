"""Shared by all tests: strict shapes in jax, eight simulated devices, a tiny model and one compiled
forward pass of it, and directories with the tokenizers of published families."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizer_files import MAKERS

from reasoning.models.config import ModelConfig
from reasoning.models.transformer import Transformer, init_params

# Shapes that broadcast by accident are an error. (Strict dtype promotion is one in optax itself.)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Where several devices are used at all; the rest stays on the first.
jax.config.update("jax_num_cpu_devices", 8)

# Tests compile much and compute little: machine code that is made fast, by fewer passes and whole
# kernels, takes a fraction of the time. XLA reads the flags once, here; programs that tests start
# do not inherit them.
FAST_COMPILE = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):  # a flag that XLA does not know ends the process
    FAST_COMPILE += " --xla_cpu_use_fusion_emitters=false"
_flags = os.environ.get("XLA_FLAGS")
os.environ["XLA_FLAGS"] = f"{FAST_COMPILE} {_flags or ''}".strip()
jax.devices()
if _flags is None:
    del os.environ["XLA_FLAGS"]
else:
    os.environ["XLA_FLAGS"] = _flags


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forget compiled programs before they are too many: each takes some of the areas of memory
    that Linux lets a process have (65,530), and the compiler dies of the first that is refused."""
    yield
    areas = Path("/proc/self/maps")
    if areas.exists() and areas.read_text().count("\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def config():
    """A model small enough to compile in a second: grouped queries, three strategies."""
    return ModelConfig(
        vocab_size=29, num_strategies=3, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2,
        head_dim=4, d_ff=24, max_length=32,
    )


@pytest.fixture(scope="session")
def rough_params():
    """A function of a config: parameters far from their initial values, norm scales included."""

    def make(config, seed=0):
        rng = np.random.default_rng(seed)
        shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))

        def fill(path, leaf):
            centre = 1.0 if path[-1].key == "scale" else 0.0
            return jnp.asarray(centre + 0.25 * rng.normal(size=leaf.shape), jnp.float32)

        return jax.tree_util.tree_map_with_path(fill, shapes)

    return make


@pytest.fixture(scope="session")
def params(config, rough_params):
    """Parameters of `config`."""
    return rough_params(config)


@pytest.fixture(scope="session")
def stack_layers():
    """A function of unrolled parameters: the same, stacked for `scan_layers`."""

    def stack(params):
        weights = dict(params["params"])
        layers = [weights.pop(f"layer_{i}") for i in range(sum("layer_" in k for k in weights))]
        return {"params": {**weights, "layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}}

    return stack


@pytest.fixture(scope="session")
def forward():
    """`forward(config, params, tokens, segment_ids=None, positions=None)`: logits, jitted."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(config, params, tokens, segment_ids=None, positions=None):
        model = Transformer(config)
        return model.apply(params, tokens, segment_ids=segment_ids, positions=positions)[0]

    return run


@pytest.fixture(scope="session")
def model_directories(tmp_path_factory):
    """{family: directory with its tokenizer}; not to be changed."""
    pytest.importorskip("tokenizers")
    directories = {family: tmp_path_factory.mktemp(family) for family in MAKERS}
    for family, directory in directories.items():
        MAKERS[family](directory)
    return directories


@pytest.fixture
def copy_directory(model_directories, tmp_path):
    """A function of a family: a copy of its directory, to be changed."""

    def copy(family):
        for file in model_directories[family].iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    return copy
