"""Timed steps: sampling, fine-tuning, the set loss, and reinforcement learning.

`peer` is the work of shared/bench/tunix_bench.py: a decoder of 4 layers of width 256, random
weights, float32.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.pod_programs import forward_flops
from experiments.timing import Program, Row, report, run_in_turn
from reasoning.data.pipelines import TraceBatch
from reasoning.learning.algorithms import make_algorithm
from reasoning.learning.assignment import assign
from reasoning.learning.rl_state import RLConfig, init_policy_state
from reasoning.learning.rl_updates import make_rl_step
from reasoning.learning.rollouts import PromptBatch, RolloutConfig
from reasoning.learning.updates import TrainState, init_state, sft_update
from reasoning.models.config import ModelConfig
from reasoning.models.transformer import init_params
from reasoning.rewards.verdicts import Completions, Verdicts, reason_id
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import Samples, sample, sequence_keys
from reasoning.sampling.slots import sample_in_slots


def model_config(size: str, max_length: int, num_strategies: int = 1) -> ModelConfig:
    """The decoder that is timed, with the one tag that a peer lacks, or with more."""
    shape = {
        "peer": dict(
            vocab_size=512, d_model=256, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=64,
            d_ff=1024,
        ),
        "tiny": dict(
            vocab_size=32, d_model=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, d_ff=8,
        ),
    }[size]
    return ModelConfig(
        **shape, max_length=max_length, num_strategies=num_strategies, position_encoding="rope"
    )


def token_flops(config: ModelConfig, context: float) -> float:
    """Floating-point operations of one token's forward pass that looks at `context` tokens."""
    return forward_flops(config, 1, 1, context, 1)


def letters(num_prompts: int, length: int) -> np.ndarray:
    """Prompts `[P, T]` that all differ."""
    return (3 + (np.arange(num_prompts)[:, None] + np.arange(length)) % 26).astype(np.int32)


def measure_sampler(size: str, repeats: int) -> Iterator[Row]:
    """64 completions of 128 tokens each; and 256 whose lengths differ, 40 tokens on average.

    Those end at any of 13 of the 513 ids, which a policy with random weights draws about as often
    as others. The second program has a row for each of them, 64 at a time; in the third, 64 rows go
    on with the next sequence when theirs ends. `tokens_per_s` counts what was written up to <eos>.
    """
    rows, prompt, new = (64, 32, 128) if size == "peer" else (4, 4, 8)
    config = model_config(size, prompt + new)
    stops = tuple(range(3, 3 + max(config.vocab_size // 39, 1)))
    # Near enough to uniform for the lengths to be those of chance.
    params = jax.tree.map(lambda x: 0.5 * x, init_params(config, jax.random.key(0)))

    def program(count: int, stop_ids: tuple[int, ...], num_slots: int | None = None) -> Program:
        ids = letters(count, prompt)
        keys = sequence_keys(jax.random.key(1), jnp.arange(count), 1)
        settings = dict(config=config, max_new_tokens=new, stop_ids=stop_ids, pad_id=0)

        def draw(params: Any, ids: jax.Array, keys: jax.Array) -> Samples:
            tags = jnp.zeros(keys.shape, jnp.int32)
            mask = jnp.ones_like(ids)
            if num_slots:
                return sample_in_slots(
                    params, ids, mask, tags, keys, Filters(), num_slots=num_slots, **settings
                )
            return sample(params, ids, mask, tags, keys, Filters(), **settings)

        def in_batches(params: Any, ids: jax.Array, keys: jax.Array) -> Samples:
            parts = jax.tree.map(lambda x: x.reshape(-1, rows, *x.shape[1:]), (ids, keys))
            return jax.lax.map(lambda part: draw(params, *part), parts)

        return Program(jax.jit(draw if num_slots else in_batches), params, ids, keys)

    programs = [
        program(rows, (config.output_size,)), program(4 * rows, stops),
        program(4 * rows, stops, num_slots=rows),
    ]
    laps = run_in_turn(programs, repeats)
    kinds = ("whole", "heavy_tail", "heavy_tail_slots")
    for kind, timed, of_program in zip(kinds, programs, laps, strict=True):
        tokens = int(timed.result.mask.sum())
        flops = token_flops(config, prompt + tokens / timed.result.mask[..., 0].size / 2)
        yield report("sampler", size, tokens, of_program, kind=kind, flops_per_token=flops)


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


def measure_sft(size: str, repeats: int) -> Iterator[Row]:
    """A step of supervised fine-tuning by AdamW: 32 rows of 256 tokens, every one a label."""
    rows, length = (32, 256) if size == "peer" else (4, 12)
    config, optimizer = model_config(size, length), optax.adamw(1e-3)
    batch = trace_batch(config, rows, 1, prompt=1)
    state = init_state(init_params(config, jax.random.key(0)), optimizer)
    tags = np.zeros(rows, np.int32)

    def program(num_microbatches: int) -> Program:
        update = partial(
            sft_update, config=config, optimizer=optimizer, num_microbatches=num_microbatches
        )
        return Program(jax.jit(update, donate_argnums=0), state, batch, tags)

    counts = (1, 4, 8, 16, 32) if size == "peer" else (1, 2)
    laps = run_in_turn([program(count) for count in counts], repeats)
    flops = 3 * token_flops(config, length / 2)
    for count, of_program in zip(counts, laps, strict=True):
        yield report(
            "sft", size, rows * length, of_program, flops_per_token=flops, microbatches=count
        )


def measure_set_loss(size: str, repeats: int) -> Iterator[Row]:
    """Fine-tuning on 4 traces of each problem under matched tags of 6, beside plain fine-tuning.

    `match_share` is how much of a trace the matching reads; prompts are as long as traces.
    """
    problems, prompt, trace = (8, 128, 128) if size == "peer" else (2, 4, 8)
    config = model_config(size, prompt + 1 + trace, num_strategies=6)
    batch, optimizer = trace_batch(config, problems, 4, prompt), optax.adamw(1e-3)
    state = init_state(init_params(config, jax.random.key(0)), optimizer)

    def program(share: float) -> Program:
        def step(state: TrainState, batch: TraceBatch) -> tuple:
            arm = "matched" if share else "mixed"
            tags, _ = assign(
                arm, config, state.params, batch, jax.random.key(0), num_traces=4,
                prefix=prompt + 1 + round(share * trace), match_tokens=round(share * trace),
                num_problems=problems,
            )
            return sft_update(state, batch, tags, config=config, optimizer=optimizer)

        return Program(jax.jit(step, donate_argnums=0), state, batch)

    shares = (0.0, 0.25, 1.0)
    laps = run_in_turn([program(share) for share in shares], repeats)
    tokens = batch.tokens.size
    plain = report("set_loss", size, tokens, laps[0], match_share=0.0, times_plain=1.0)
    yield plain
    for share, of_program in zip(shares[1:], laps[1:], strict=True):
        row = report("set_loss", size, tokens, of_program, match_share=share)
        yield {**row, "times_plain": round(row["median_s"] / plain["median_s"], 3)}


def grpo_config(model: ModelConfig, prompts: int, samples: int, new_tokens: int) -> RLConfig:
    """One update of `prompts * samples` completions that all have `new_tokens` tokens."""
    return RLConfig(
        model=model,
        algorithm=make_algorithm("grpo", kl_coef=0.04),
        rollout=RolloutConfig(num_samples=samples, max_new_tokens=new_tokens),
        stop_ids=(model.output_size,),  # no id of the policy: nobody stops early
        pad_id=0,
        num_prompts=prompts,
    )


def step_config(size: str) -> RLConfig:
    """What `rl` times."""
    if size == "tiny":
        return grpo_config(model_config(size, 12), prompts=2, samples=2, new_tokens=8)
    return grpo_config(model_config(size, 96), prompts=8, samples=8, new_tokens=64)


def letter_share(prompts: jax.Array, completions: Completions, metadata: Any) -> Verdicts:
    """A reward that costs nothing: the share of one id."""
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
    yield report("rl", size, tokens, laps)
