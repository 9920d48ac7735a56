"""Timed steps: sampling, decoding, fine-tuning, the set loss, and reinforcement learning.

Decoders with random weights, in float32 on CPUs and bfloat16 elsewhere. `peer` is the work that
peers are timed on: 4 layers of width 256.
"""

import dataclasses
import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.pod_programs import forward_flops
from experiments.timing import (
    Program,
    Row,
    bandwidth_limit,
    matmul_limit,
    report,
    run_in_turn,
)
from reasoning.data.pipelines import TraceBatch
from reasoning.learning.algorithms import make_algorithm
from reasoning.learning.assignment import assign
from reasoning.learning.rl_state import RLConfig, init_policy_state
from reasoning.learning.rl_updates import make_rl_step
from reasoning.learning.rollouts import PromptBatch, RolloutConfig
from reasoning.learning.updates import TrainState, init_state, sft_update
from reasoning.models.config import ModelConfig
from reasoning.models.strategies import TABLE
from reasoning.models.transformer import init_params, params_for_sampling
from reasoning.rewards.verdicts import Completions, Verdicts, reason_id
from reasoning.runtime.meshes import MeshShape, make_mesh, use_mesh
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import Samples, sample, sequence_keys
from reasoning.sampling.slots import sample_in_slots


@dataclasses.dataclass(frozen=True)
class Work:
    """What is timed at a size.

    Attributes:
      model: fields of the decoder.
      rows, prompt, new_tokens: of sampling.
      train_rows, train_length: of fine-tuning.
      problems, trace: of the set loss, whose prompts are as long as its traces.
      rl: prompts, samples of each, and tokens of a completion.
    """

    model: dict[str, Any]
    rows: int
    prompt: int
    new_tokens: int
    train_rows: int
    train_length: int
    problems: int
    trace: int
    rl: tuple[int, int, int]


def _shape(vocab: int, width: int, layers: int, heads: int, d_ff: int, **more: Any) -> dict:
    return dict(
        vocab_size=vocab, d_model=width, num_layers=layers, num_heads=heads, num_kv_heads=heads,
        head_dim=width // heads, d_ff=d_ff, **more,
    )


LARGE = dict(scan_layers=True, remat="full")
WORK = {
    "peer": Work(_shape(512, 256, 4, 4, 1024), 64, 32, 128, 32, 256, 8, 128, (8, 8, 64)),
    "tiny": Work(_shape(32, 8, 1, 1, 8), 4, 4, 8, 4, 12, 2, 8, (2, 2, 8)),
    "small": Work(_shape(64, 64, 3, 2, 192), 256, 16, 96, 32, 112, 32, 56, (32, 8, 96)),
    "wide": Work(_shape(512, 1024, 4, 16, 2816), 32, 32, 64, 8, 256, 2, 128, (2, 4, 64)),
    "350m": Work(
        _shape(32_000, 1024, 24, 16, 2816, **LARGE), 8, 32, 32, 4, 256, 1, 128, (1, 8, 32)
    ),
    "1b": Work(
        _shape(32_000, 2048, 20, 16, 5632, **LARGE), 8, 32, 32, 4, 256, 1, 128, (1, 8, 32)
    ),
}


def model_config(
    size: str, max_length: int, num_strategies: int = 1, **changes: Any
) -> ModelConfig:
    """The decoder that is timed, with the one tag that a peer lacks, or with more."""
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    fields = dict(
        max_length=max_length, num_strategies=num_strategies, position_encoding="rope", dtype=dtype
    )
    return ModelConfig(**(WORK[size].model | fields | changes))


def token_flops(config: ModelConfig, context: float) -> float:
    """Floating-point operations of one token's forward pass that looks at `context` tokens."""
    return forward_flops(config, 1, 1, context, 1)


def sampling_flops(config: ModelConfig, prompt: int, mask: np.ndarray) -> float:
    """FLOPs of sampling completions `[B, N]` (bool: what was written) after prompts of a length.

    They are those of reading prompts and completions once, but for the last token of each.
    """
    return sum(
        forward_flops(config, 1, prompt + count - 1, (prompt + count) / 2, count)
        for count in mask.sum(axis=1).tolist()
    )


def letters(num_prompts: int, length: int) -> np.ndarray:
    """Prompts `[P, T]` that all differ."""
    return (3 + (np.arange(num_prompts)[:, None] + np.arange(length)) % 26).astype(np.int32)


def sampler_program(
    config: ModelConfig,
    num_prompts: int,
    prompt: int,
    new_tokens: int,
    stop_ids: tuple[int, ...],
    num_samples: int = 1,
    batches: int = 1,
    num_slots: int | None = None,
) -> Program:
    """Samples of prompts of `prompt` tokens, in so many batches one after another, or in slots."""
    # Near enough to uniform for the lengths to be those of chance.
    params = jax.tree.map(lambda x: 0.5 * x, init_params(config, jax.random.key(0)))
    ids = letters(num_prompts, prompt)
    keys = sequence_keys(jax.random.key(1), jnp.arange(num_prompts), num_samples)
    how = partial(sample_in_slots, num_slots=num_slots) if num_slots else sample

    def draw(params: Any, ids: jax.Array, keys: jax.Array) -> Samples:
        tags = jnp.zeros(keys.shape, jnp.int32)
        return how(
            params, ids, jnp.ones_like(ids), tags, keys, Filters(), config=config,
            max_new_tokens=new_tokens, stop_ids=stop_ids, pad_id=0,
        )

    def in_batches(params: Any, ids: jax.Array, keys: jax.Array) -> Samples:
        parts = jax.tree.map(lambda x: x.reshape(batches, -1, *x.shape[1:]), (ids, keys))
        return jax.lax.map(lambda part: draw(params, *part), parts)

    return Program(jax.jit(draw if batches == 1 else in_batches), params, ids, keys)


def products_alone(config: ModelConfig, params: Any, rows: int, steps: int) -> Program:
    """The products with the weights that `steps` steps of so many rows make, and nothing else.

    A sampler is slower by all else that it does.

    Args:
      params: as a sampler reads them (`params_for_sampling`).
    """

    def matrix(path: tuple, x: jax.Array) -> jax.Array:
        if path[-1].key in (TABLE, "token_embedding"):  # as the head
            return x.T
        return x.reshape((-1, x.shape[-1]) if path[-1].key == "output" else (x.shape[0], -1))

    def run(params: Any, rows: jax.Array) -> jax.Array:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        matrices = [matrix(path, x) for path, x in leaves if x.ndim > 1]

        def step(rows: jax.Array, _: None) -> tuple[jax.Array, None]:
            made = (rows[:, : m.shape[0]] @ m for m in matrices)
            # Each step waits for the one before.
            return rows + 1e-9 * sum(x.max(axis=1, keepdims=True) for x in made), None

        return jax.lax.scan(step, rows, length=steps)[0]

    widest = max(config.d_ff, config.d_model, config.num_heads * config.head_dim)
    return Program(jax.jit(run), params, jnp.ones((rows, widest), config.dtype))


def measure_sampler(size: str, repeats: int) -> Iterator[Row]:
    """As many completions as rows, all of the same length; and four times as many that differ.

    Those end at any of 1 in 39 ids, which a policy with random weights draws about as often as
    others: after 40 tokens on average. The second program has a row for each of them, so many at a
    time; in the third, the rows go on with the next sequence when theirs ends. On a CPU each of
    several devices has its part of the rows, if they divide them. `tokens_per_s`
    counts what was written up to <eos>. Last, the products with the weights of the first program.
    """
    work = WORK[size]
    rows, prompt, new = work.rows, work.prompt, work.new_tokens
    config = model_config(size, prompt + new)
    stops = tuple(range(3, 3 + max(config.vocab_size // 39, 1)))
    apart = jax.default_backend() == "cpu" and rows % jax.device_count() == 0
    num_devices = jax.device_count() if apart else 1
    programs = [
        sampler_program(config, rows, prompt, new, (config.output_size,)),
        sampler_program(config, 4 * rows, prompt, new, stops, batches=4),
        sampler_program(config, 4 * rows, prompt, new, stops, num_slots=rows // num_devices),
    ]
    with use_mesh(make_mesh(MeshShape(data=num_devices)) if num_devices > 1 else None):
        peaks = [program.peak_bytes for program in programs]  # compiled here, for the mesh
    limit, plain = matmul_limit(config.dtype), model_config(size, prompt + new, scan_layers=False)
    params = params_for_sampling(plain, init_params(plain, jax.random.key(0)))
    products = products_alone(plain, params, rows, new)
    *laps, alone, best = run_in_turn([*programs, products, limit], repeats)
    kinds = ("whole", "heavy_tail", "heavy_tail_slots")
    for kind, timed, of_program, peak in zip(kinds, programs, laps, peaks, strict=True):
        tokens = int(timed.result.mask.sum())
        flops = sampling_flops(config, prompt, np.asarray(timed.result.mask).reshape(-1, new))
        yield report(
            "sampler", size, tokens, of_program, (limit, best, flops / tokens), kind=kind,
            dtype=config.dtype, peak_bytes=peak,
        )
    yield report(
        "sampler", size, rows * new, alone, (limit, best, 2 * count_matrices(params)),
        kind="products_alone", dtype=config.dtype, peak_bytes=products.peak_bytes,
    )


def count_matrices(params: Any) -> int:
    """Parameters that are part of a matrix."""
    return sum(x.size for x in jax.tree.leaves(params) if x.ndim > 1)


def measure_decode(size: str, repeats: int) -> Iterator[Row]:
    """One sequence, token by token: every step reads all the weights, and the cache so far.

    Then the products with these weights alone.
    """
    work = WORK[size]
    # Not scanned over stacked layers, whose weights and cache are slices there.
    config = model_config(size, work.prompt + work.new_tokens, scan_layers=False)
    params, ids = init_params(config, jax.random.key(0)), letters(1, work.prompt)
    draw = partial(
        sample, config=config, max_new_tokens=work.new_tokens, stop_ids=(config.output_size,),
        pad_id=0,
    )
    program = Program(
        jax.jit(lambda params, *inputs: draw(params, *inputs, Filters())),
        params, ids, jnp.ones_like(ids), jnp.zeros((1, 1), jnp.int32),
        sequence_keys(jax.random.key(1), jnp.arange(1), 1),
    )
    limit, read_once = bandwidth_limit(), params_for_sampling(config, params)
    products = products_alone(config, read_once, 1, work.new_tokens)
    laps, alone, best = run_in_turn([program, products, limit], repeats)
    width = jnp.dtype(config.dtype).itemsize
    read = work.prompt + work.new_tokens / 2
    cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * read
    weights = sum(x.size for x in jax.tree.leaves(params))
    yield report(
        "decode", size, work.new_tokens, laps, (limit, best, width * (weights + cache)),
        kind="whole", parameters=weights, peak_bytes=program.peak_bytes,
    )
    yield report(
        "decode", size, work.new_tokens, alone, (limit, best, width * count_matrices(params)),
        kind="products_alone", parameters=weights, peak_bytes=products.peak_bytes,
    )


def trace_batch(config: ModelConfig, problems: int, traces: int, prompt: int) -> TraceBatch:
    """Rows of `max_length` random tokens, as many traces of each problem, none of them padded."""
    rng, rows = np.random.default_rng(0), problems * traces
    tokens = rng.integers(3, config.vocab_size, (rows, config.max_length)).astype(np.int32)
    tokens[:, :prompt] = np.repeat(tokens[::traces, :prompt], traces, axis=0)
    return TraceBatch(
        tokens=tokens,
        lengths=np.full(rows, config.max_length, np.int32),
        fork=np.full(rows, prompt, np.int32),
        problem=np.repeat(np.arange(problems, dtype=np.int32), traces),
        slot=np.tile(np.arange(traces, dtype=np.int32), problems),
        problem_seed=np.repeat(np.arange(problems, dtype=np.uint32), traces),
    )


def sft_program(config: ModelConfig, rows: int, num_microbatches: int = 1) -> Program:
    """A step of supervised fine-tuning by AdamW on whole rows, every token a label."""
    optimizer = optax.adamw(1e-3)
    update = partial(
        sft_update, config=config, optimizer=optimizer, num_microbatches=num_microbatches
    )
    state = init_state(init_params(config, jax.random.key(0)), optimizer)
    batch, tags = trace_batch(config, rows, 1, prompt=1), np.zeros(rows, np.int32)
    return Program(jax.jit(update, donate_argnums=0), state, batch, tags)


def measure_sft(size: str, repeats: int) -> Iterator[Row]:
    """A step of supervised fine-tuning, its gradient in so many parts."""
    rows, length = WORK[size].train_rows, WORK[size].train_length
    config = model_config(size, length)
    counts = [count for count in (1, 2, 4, 8, 16) if count < rows]
    programs, limit = [sft_program(config, rows, n) for n in counts], matmul_limit(config.dtype)
    *laps, best = run_in_turn([*programs, limit], repeats)
    flops = 3 * token_flops(config, length / 2)
    for count, timed, of_program in zip(counts, programs, laps, strict=True):
        yield report(
            "sft", size, rows * length, of_program, (limit, best, flops), microbatches=count,
            dtype=config.dtype, peak_bytes=timed.peak_bytes,
        )


def set_loss_program(config: ModelConfig, problems: int, trace: int, share: float) -> Program:
    """A step on 4 traces of each problem under matched tags; share 0: plain fine-tuning.

    Prompts are as long as traces, of which the matching reads so much.
    """
    optimizer, prompt = optax.adamw(1e-3), trace

    def step(state: TrainState, batch: TraceBatch) -> tuple:
        tags, _ = assign(
            "matched" if share else "mixed", config, state.params, batch, jax.random.key(0),
            num_traces=4, prefix=prompt + 1 + round(share * trace),
            match_tokens=round(share * trace), num_problems=problems,
        )
        return sft_update(state, batch, tags, config=config, optimizer=optimizer)

    state = init_state(init_params(config, jax.random.key(0)), optimizer)
    batch = trace_batch(config, problems, 4, prompt)
    return Program(jax.jit(step, donate_argnums=0), state, batch)


def measure_set_loss(size: str, repeats: int) -> Iterator[Row]:
    """Fine-tuning on 4 traces of each problem under matched tags of 6, beside plain fine-tuning."""
    problems, trace = WORK[size].problems, WORK[size].trace
    config, shares = model_config(size, 2 * trace + 1, num_strategies=6), (0.0, 0.25, 1.0)
    programs = [set_loss_program(config, problems, trace, share) for share in shares]
    laps = run_in_turn(programs, repeats)
    tokens = problems * 4 * config.max_length
    for share, of_program in zip(shares, laps, strict=True):
        times = [lap / of_plain for lap, of_plain in zip(of_program[1:], laps[0][1:], strict=True)]
        yield report(
            "set_loss", size, tokens, of_program, match_share=share,
            times_plain=round(statistics.median(times), 3),
        )


def step_config(size: str) -> RLConfig:
    """What `rl` times: one update of completions that all have the same number of tokens."""
    prompts, samples, new_tokens = WORK[size].rl
    model = model_config(size, WORK[size].prompt + new_tokens)
    return RLConfig(
        model=model,
        algorithm=make_algorithm("grpo", kl_coef=0.04),
        rollout=RolloutConfig(num_samples=samples, max_new_tokens=new_tokens),
        stop_ids=(model.output_size,),  # no id of the policy: nobody stops early
        pad_id=0,
        num_prompts=prompts,
    )


def letter_share(prompts: jax.Array, completions: Completions, metadata: Any) -> Verdicts:
    """A reward that costs nothing, `[B]`: the share of one id; `prompts` `[B, T]` are not read."""
    share = jnp.mean(completions.tokens == 3, axis=1)
    return Verdicts(share, jnp.full(share.shape, reason_id("scored")))


def measure_rl(size: str, repeats: int) -> Iterator[Row]:
    """A step of GRPO: sampling, reward, KL to a reference, one update by AdamW."""
    config = step_config(size)
    num_prompts, new_tokens = config.num_prompts, config.rollout.max_new_tokens
    index = np.arange(num_prompts, dtype=np.int32)
    ids = letters(num_prompts, config.model.max_length - new_tokens)
    optimizer = optax.adamw(1e-4)
    program = Program(
        jax.jit(make_rl_step(config, optimizer, letter_share), donate_argnums=0),
        init_policy_state(init_params(config.model, jax.random.key(0)), config, optimizer),
        PromptBatch(ids, np.ones_like(ids), index, metadata=index),
        jax.random.key(1),
    )
    (laps,) = run_in_turn([program], repeats)
    tokens = num_prompts * config.rollout.num_samples * new_tokens
    drawn = int(program.result[1]["num_tokens"])
    if drawn != tokens:
        raise RuntimeError(f"rl: {drawn} tokens were drawn, not the {tokens} of the comparison.")
    yield report("rl", size, tokens, laps, peak_bytes=program.peak_bytes)
