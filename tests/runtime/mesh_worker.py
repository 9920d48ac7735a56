"""Trains and samples on a mesh, as one process of several: prints losses and tokens as JSON.

    python mesh_worker.py DATAxFSDPxTENSOR DEVICES_OF_A_PROCESS PROCESSES INDEX HOST:PORT

tests/runtime/test_meshes.py compares.
"""

import json
import sys

import jax
import numpy as np

from reasoning.data.pipelines import TraceBatch
from reasoning.learning.assignment import assign
from reasoning.learning.optimizers import OptimizerConfig, make_optimizer
from reasoning.learning.updates import init_state, sft_update
from reasoning.models.config import ModelConfig
from reasoning.runtime.meshes import (
    MeshShape,
    init_sharded,
    make_mesh,
    shard_rows,
    start_processes,
    use_mesh,
)
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG
from reasoning.sampling.slots import sampler_for

STEPS, ROWS, LENGTH = 20, 16, 24
PACKING = 8, 48  # sequences, and their tokens: two rows in each
CONFIG = ModelConfig(
    vocab_size=30, num_strategies=4, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=8, d_ff=64, max_length=64, scan_layers=True,
)


def make_batch(step):
    """Random traces: four under one problem."""
    rng, rows = np.random.default_rng(step), np.arange(ROWS)
    return TraceBatch(
        tokens=rng.integers(3, 30, (ROWS, LENGTH)).astype(np.int32),
        lengths=rng.integers(12, LENGTH + 1, ROWS).astype(np.int32),
        fork=np.full(ROWS, 5, np.int32),
        problem=(rows // 4).astype(np.int32),
        slot=(rows % 4).astype(np.int32),
        problem_seed=rows.astype(np.uint32),
        sequence=(rows % PACKING[0]).astype(np.int32),
        offset=(rows // PACKING[0] * LENGTH).astype(np.int32),
    )


def train_and_sample(mesh):
    """Losses of STEPS steps, what the policy then writes, and the state."""
    optimizer = make_optimizer(OptimizerConfig(name="muon", num_steps=STEPS))
    tags = np.arange(ROWS, dtype=np.int32) % 4
    losses = []
    with use_mesh(mesh):
        state = init_state(init_sharded(CONFIG, jax.random.key(0), mesh), optimizer)
        for step in range(STEPS):
            batch, rows = shard_rows((make_batch(step), tags), mesh)
            if step % 2:
                rows, _ = assign(
                    "matched", CONFIG, state.params, batch, jax.random.key(step), num_traces=4,
                    prefix=5 + 1 + 8, match_tokens=8,
                )
            # Alternately rows for themselves and packed, whole and in parts.
            state, metrics = sft_update(
                state, batch, rows, config=CONFIG, optimizer=optimizer,
                num_microbatches=1 + step % 2, packing=PACKING if step % 4 > 1 else None,
            )
            losses.append(float(metrics["loss"]))
        prompts = np.random.default_rng(0).integers(3, 30, (8, 6)).astype(np.int32)
        # In slots where there is no mesh, or one that copies the parameters.
        samples = sampler_for(8, 2, 1)(
            state.params, prompts, np.ones_like(prompts), np.full((8, 2), OWN_TAG),
            jax.random.split(jax.random.key(1), (8, 2)), Filters(), config=CONFIG,
            max_new_tokens=40, stop_ids=(1,), pad_id=0,
        )
        return losses, np.asarray(samples.tokens), state


if __name__ == "__main__":
    shape, devices, processes, index, coordinator = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    start_processes(coordinator, int(processes), int(index))
    mesh = make_mesh(MeshShape(1, *map(int, shape.split("x"))))
    losses, tokens, _ = train_and_sample(mesh)
    print(json.dumps({"losses": losses, "tokens": tokens.tolist()}))
