"""The benchmark on a tiny size: it measures, checks what it says it checks, and refuses."""

import dataclasses
import json
import subprocess
import sys
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark, growth, step_benchmarks, timing
from reasoning.models.config import count_parameters
from reasoning.rewards.answers import compare, extract
from reasoning.runtime.programs import analyse

FIELDS = {"what", "size", "tokens", "tokens_per_s", "median_s", "laps", "first_s", "jax"}


def rows(what: str) -> list[dict]:
    """What a measurement prints, read again."""
    return [json.loads(json.dumps(row)) for row in benchmark.MEASUREMENTS[what]("tiny", 2)]


def one_second_each(programs: list, repeats: int) -> list[list[float]]:
    """Run what has a result; a lap of anything is a second."""
    for program in programs:
        if isinstance(program, timing.Program):
            program.lap()
    return [[1.0] * (1 + repeats)] * len(programs)


def check(row: dict, what: str) -> None:
    assert set(row) >= FIELDS
    assert row["what"] == what and row["size"] == "tiny" and row["jax"] == jax.__version__
    assert len(row["laps"]) == 2 and row["tokens_per_s"] > 0 and row["first_s"] > 0


def test_a_step_is_timed_on_all_its_tokens():
    (row,) = rows("rl")
    check(row, "rl")
    assert row["peak_bytes"] > 0


def test_decoding_is_held_against_the_memorys_bandwidth(monkeypatch):
    limit = timing.Limit("share_of_bandwidth", 1e9, jax.jit(jnp.matmul), ())
    monkeypatch.setattr(timing.Limit, "lap", lambda self: 1.0)  # a GB in a second
    monkeypatch.setattr(timing.Program, "lap", lambda self: 0.5)
    monkeypatch.setattr(step_benchmarks, "bandwidth_limit", lambda: limit)
    row, products = rows("decode")
    check(row, "decode")
    check(products, "decode")
    width = 4 * (row["parameters"] + 2 * 8 * 8)  # and the cache of 8 tokens, half-way
    assert row["share_of_bandwidth"] == pytest.approx(width * row["tokens"] / 0.5 / 1e9, abs=1e-6)


def test_a_share_is_of_what_the_machine_did_in_the_same_round():
    limit = timing.Limit("share_of_peak", 100.0, jax.jit(jnp.matmul), ())
    laps, best = [9.0, 1.0, 2.0, 4.0], [9.0, 0.5, 1.0, 4.0]  # the first call counts for nothing
    row = timing.report("sft", "tiny", 10, laps, (limit, best, 3.0))
    assert row["share_of_peak"] == pytest.approx(0.15)  # of 0.15, 0.15 and 0.3
    assert row["median_s"] == 2.0 and row["first_s"] == 9.0


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_peak_counts_every_product_of_its_program(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    limit = timing.matmul_limit("bfloat16")
    text = limit.function.lower(*limit.inputs).compile().as_text()
    assert analyse(text).flops == limit.amount
    assert limit.amount == (2 * 2048**3 if backend == "cpu" else 16 * 2 * 8192**3)


def test_sampling_costs_what_each_of_its_tokens_looks_at():
    config = step_benchmarks.model_config("tiny", 12)
    mask = np.arange(8) < np.array([[1], [3]])  # what two prompts of 4 tokens are continued by
    prompts = 2 * step_benchmarks.forward_flops(config, 1, 4, 2.5, 1)  # 1, 2, 3, 4 keys
    decoded = sum(step_benchmarks.token_flops(config, context) for context in (5, 6))
    found = step_benchmarks.sampling_flops(config, 4, mask)
    assert found == pytest.approx(prompts + decoded)


def test_the_samplers_share_of_the_peak_is_that_of_its_prompts_and_tokens(monkeypatch):
    monkeypatch.setattr(step_benchmarks, "run_in_turn", one_second_each)
    monkeypatch.setattr(
        step_benchmarks, "matmul_limit",
        lambda dtype: timing.Limit("share_of_peak", 1e7, jax.jit(jnp.matmul), ()),
    )
    whole, batches, slots, products = found = rows("sampler")
    kinds = "whole", "heavy_tail", "heavy_tail_slots", "products_alone"
    for row, kind in zip(found, kinds, strict=True):
        check(row, "sampler")
        assert row["kind"] == kind
    config = step_benchmarks.model_config("tiny", 12)
    flops = step_benchmarks.forward_flops(config, 4, 4 + 8 - 1, 6, 8)  # 1 to 11 keys: 6
    assert whole["share_of_peak"] == pytest.approx(flops / 1e7, abs=1e-6)
    assert whole["share_of_peak"] < batches["share_of_peak"] == slots["share_of_peak"]
    assert products["tokens"] == whole["tokens"] == 4 * 8
    assert products["share_of_peak"] < whole["share_of_peak"]  # without prompts and attention
    # The same samples, in other rows.
    assert batches["tokens"] == slots["tokens"] < 16 * 8


def test_devices_of_a_cpu_share_out_the_samplers_rows(monkeypatch):
    work = dataclasses.replace(step_benchmarks.WORK["tiny"], rows=8)
    monkeypatch.setitem(step_benchmarks.WORK, "tiny", work)
    monkeypatch.setattr(step_benchmarks, "run_in_turn", one_second_each)
    together = rows("sampler")
    assert jax.device_count() == 8
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    for cut, whole in zip(together[:3], rows("sampler")[:3], strict=True):
        assert cut["tokens"] == whole["tokens"] and cut["peak_bytes"] < whole["peak_bytes"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_products_alone_are_those_of_the_weights(dtype):
    config = step_benchmarks.model_config("tiny", 12, dtype=dtype)
    params = step_benchmarks.init_params(config, jax.random.key(0))
    params = step_benchmarks.params_for_sampling(config, params)
    program = step_benchmarks.products_alone(config, params, rows=4, steps=3)
    found = analyse(program.compiled.as_text()).flops
    # A token's forward pass, less its look at one other.
    products = step_benchmarks.token_flops(config, 0)
    assert found == 4 * 3 * products == 4 * 3 * 2 * step_benchmarks.count_matrices(params)


@pytest.mark.parametrize(("size", "millions"), [("350m", 341), ("1b", 1093)])
def test_sizes_are_what_they_are_called(size, millions):
    config = step_benchmarks.model_config(size, 64)
    assert count_parameters(config) == pytest.approx(millions * 1e6, rel=0.01)


def test_the_parts_of_fine_tuning_need_less_memory():
    whole, in_parts = rows("sft")
    for row in (whole, in_parts):
        check(row, "sft")
    assert (whole["microbatches"], in_parts["microbatches"]) == (1, 2)
    assert in_parts["peak_bytes"] < whole["peak_bytes"]


def test_the_set_loss_is_timed_beside_plain_fine_tuning(monkeypatch):
    laps = [[9.0, 1.0, 4.0], [9.0, 3.0, 4.0], [9.0, 2.0, 12.0]]
    monkeypatch.setattr(step_benchmarks, "run_in_turn", lambda programs, repeats: laps)
    found = rows("set_loss")
    assert [row["match_share"] for row in found] == [0.0, 0.25, 1.0]
    assert [row["times_plain"] for row in found] == [1.0, 2.0, 2.5]  # medians of each round's


def test_the_set_loss_runs():
    for row in rows("set_loss"):
        check(row, "set_loss")


def test_the_peer_size_is_the_work_that_peers_are_timed_on():
    config = step_benchmarks.step_config("peer")
    drawn = config.num_prompts * config.rollout.num_samples * config.rollout.max_new_tokens
    assert drawn == 64 * 64 and config.model.max_length - config.rollout.max_new_tokens == 32
    assert config.on_policy and config.algorithm.kl_coef == 0.04
    assert min(config.stop_ids) >= config.model.output_size, "nobody stops early"
    assert config.model.vocab_size == 512 and config.model.tied_head


@pytest.mark.slow
def test_a_program_is_timed_for_one_seed_and_for_8_and_never_asks_the_host():
    one, vmapped, in_turn = rows("program")
    for row in (one, vmapped, in_turn):
        check(row, "program")
        assert row["host_callbacks"] == 0 and row["steps"] == 3
    assert [row["seeds"] for row in (one, vmapped, in_turn)] == [1, 8, 8]
    assert vmapped["vmapped"] and not in_turn["vmapped"] and vmapped["times_one_seed"] > 0


def test_a_checkpoint_is_timed_beside_the_steps():
    (row,) = rows("checkpoint")
    check(row, "checkpoint")
    assert row["bytes"] > 12 * row["parameters"] and row["blocked_s"] > 0


def test_a_checkpoint_is_written_when_the_disk_is_done_not_when_the_step_beside_it_is(monkeypatch):
    clock, read = [0], threading.Event()

    class Disk:
        def save(self, step, state, about):
            clock[0] += 1

        def wait(self):
            clock[0] += 2

    def now():
        seen = clock[0]
        if threading.current_thread() is not threading.main_thread():
            read.set()
        return seen

    def step():
        assert read.wait(60), "nobody looks at the clock before the step has ended"
        clock[0] += 100
        return 100

    monkeypatch.setattr(benchmark, "time", types.SimpleNamespace(perf_counter=now))
    assert benchmark.save_beside(Disk(), 0, None, step) == (1, 3, 100)


def test_the_load_is_that_before_the_first_lap(monkeypatch):
    load = [0.25]

    def busy(size, repeats):
        load[0] += 1
        yield {"what": "busy"}

    monkeypatch.setattr(benchmark.os, "getloadavg", lambda: (load[0], 9.0, 9.0))
    monkeypatch.setattr(benchmark, "MEASUREMENTS", {"busy": busy})
    found = list(benchmark.measure(["busy", "busy"], "tiny", 2))
    assert found == [{"what": "busy", "load1": 0.25}] * 2


def test_the_judge_is_timed_with_and_without_algebra():
    pytest.importorskip("math_verify")
    exact, symbolic = rows("judge")
    assert (exact["method"], symbolic["method"]) == ("exact", "symbolic")
    assert exact["answers_per_s"] > symbolic["answers_per_s"] > 0
    texts = benchmark.judged_texts(300)
    wrong = sum(not compare(g, extract(t).answer, "number").correct for g, t in texts)
    assert 70 < wrong < 130, "a third, whatever their spelling"


def test_the_data_are_timed_as_they_are_written_and_put_into_batches():
    written, padded, packed = rows("data")
    for row in (written, padded, packed):
        check(row, "data")
    assert [row["kind"] for row in (written, padded, packed)] == ["written", "padded", "packed"]
    assert packed["tokens"] > 1.2 * padded["tokens"], "as many batches hold more tokens"


def test_growth_is_the_slope_of_logarithms(tmp_path):
    assert growth.growth_exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)
    assert growth.scaled(8) == [2, 4, 8, 16] and growth.scaled(2) == [1, 2, 4]
    seconds = {"sampler": 1, "sft": 2, "set_loss": 0}
    found = [
        {"of": of, "by": "rows", "at": [1, 2, 4], "medians_s": [n**power for n in (1, 2, 4)],
         "exponent": power}
        for of, power in seconds.items()
    ]
    growth.plot_growth(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.slow
def test_growth_of_every_step():
    found = [json.loads(json.dumps(row)) for row in growth.measure_growth("tiny", 2)]
    assert [(row["of"], row["by"]) for row in found] == [
        ("sampler", "rows"), ("sampler", "new_tokens"), ("sampler", "num_samples"),
        ("sft", "rows"), ("sft", "length"), ("set_loss", "num_strategies"),
    ]
    assert all(len(row["at"]) == len(row["medians_s"]) >= 3 for row in found)


def test_a_host_callback_is_found():
    def step(state):
        shape = jax.ShapeDtypeStruct(state.shape, state.dtype)
        return jax.pure_callback(np.sin, shape, state)

    assert benchmark.Program(jax.jit(step), jnp.ones(2)).host_callbacks() == 1
    assert benchmark.Program(jax.jit(jnp.sin), jnp.ones(2)).host_callbacks() == 0


def test_equality_is_to_the_last_bit():
    ones = {"a": jnp.ones(2)}
    assert benchmark.bitwise_equal(ones, {"a": jnp.ones(2)})
    assert not benchmark.bitwise_equal(ones, {"a": jnp.ones(2).at[0].add(2.0**-23)})


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", *flags],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False, timeout=600,
    )


@pytest.mark.slow
def test_a_program_of_many_steps_is_the_steps_to_the_last_bit():
    done = run("--only=rl,program", "--size=tiny", "--repeats=1")
    assert done.returncode == 0, done.stderr
    step, one, *_ = [json.loads(line) for line in done.stdout.splitlines()]
    assert step["what"] == "rl"
    assert one["bitwise_equal"] is True


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--only=rl,chess"], "only='chess': must be some of sampler, decode, sft, set_loss, "),
        (["rl"], "'rl': no such argument"),
    ],
)
def test_a_mistake_is_one_sentence(flags, words):
    done = run(*flags)
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and done.stderr.count("\n") == 1
