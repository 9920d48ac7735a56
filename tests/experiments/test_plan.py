"""The plan on simulated devices: what it reports, what it suggests, and what it refuses."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import plan, plan_reports, plan_suggestions
from experiments.configs import pod, smoke
from experiments.pod_programs import forward_flops, planned, training_step
from experiments.sft import mesh_shape
from reasoning.models.config import ModelConfig, count_parameters
from reasoning.models.transformer import Transformer, init_params
from reasoning.runtime.chips import CHIPS, GIB, Chip, chip_of, topology
from reasoning.runtime.meshes import make_mesh
from reasoning.runtime.programs import Cost


def tiny(**mesh):
    """The smoke configuration with a small model, one layer of which is scanned."""
    config = smoke.get_config()
    config.model.update(dict(
        d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=32,
        scan_layers=True,
    ))
    config.finetune.optimizer = "adamw"
    config.rl.prompts, config.rl.samples, config.rl.algorithm = 8, 2, "grpo"
    config.mesh.update(mesh)
    return config


@pytest.fixture(scope="module")
def reports():
    config = tiny(fsdp=4, tensor=2)
    names = ["training step", "sampler"]
    return dict(zip(names, plan.run(config, "cpu:8", names)))


def test_a_training_step_is_reported(reports):
    report = reports["training step"]
    model = planned(tiny()).model
    # Layers are cut over all 8 devices; a vocabulary of 315 and positions over the 4 of fsdp alone.
    whole = 4 * count_parameters(model)
    assert whole / 8 < report.memory["parameters"] < whole / 4
    assert report.memory["optimizer"] == pytest.approx(2 * report.memory["parameters"], abs=100)
    assert report.fits and report.total > sum(list(report.memory.values())[:2])
    assert report.program.model_flops / 8 <= report.cost.flops < report.program.model_flops
    assert {"all-gather", "all-reduce"} <= set(plan_reports.by_kind(report.cost.collectives))


def test_the_samplers_cost_is_that_of_a_token(reports):
    report = reports["sampler"]
    rows, slots = 16, report.program.steps + planned(tiny()).setup.prompt_length
    assert report.program.model_flops == forward_flops(planned(tiny()).model, rows, 1, slots, 1)
    assert report.program.model_flops / 8 <= report.cost.flops < report.program.model_flops
    assert report.prefill.flops > 0
    # [L, B, K, C, H] in float32, keys and values, rows over fsdp and heads over tensor.
    assert report.memory["cache"] == 2 * 2 * (rows // 4) * (2 // 2) * slots * 4 * 4


def test_devices_that_sample_apart_share_prompts_and_grow_their_cache():
    config = tiny(data=2)
    config.model.max_length = 112  # in stages
    chosen = planned(config)
    (report,) = plan.run(config, "cpu:2", ["sampler"])
    prompt, steps, rows = chosen.setup.prompt_length, report.program.steps, 16
    assert report.program.loops > 1
    assert report.memory["cache"] == 2 * 2 * 2 * 4 * 4 * (4 * prompt + rows // 2 * steps)
    assert report.memory["activations"] > 0
    # The stages read half of their slots on average, and the model's own FLOPs are those of all.
    whole = report.program.model_flops / 2
    assert 0.5 * whole < report.cost.flops < whole
    assert report.cost.moved == 0


def test_a_device_that_has_fewer_rows_than_sequences_is_planned_with_slots():
    config = tiny(data=2)
    config.rl.num_slots = 5
    chosen = planned(config)
    (report,) = plan.run(config, "cpu:2", ["sampler"])
    prompt, new = chosen.setup.prompt_length, chosen.rl.rollout.max_new_tokens
    assert report.program.steps == 2 * new  # 8 sequences of a device in 5 rows
    assert report.memory["cache"] == 2 * 2 * 2 * 4 * 4 * (4 * prompt + 5 * (prompt + new))


def test_devices_that_go_through_their_rows_apart_add_up_gradients_once():
    config = tiny(data=2)
    config.rl.prompts, config.rl.microbatches, config.rl.samples = 8, 8, 8
    config.finetune.microbatches = 4
    reports = plan.run(config, "cpu:2", ["training step", "RL update"])
    for report in reports:
        kinds = plan_reports.by_kind(report.cost.collectives)
        count, moved = kinds["all-reduce"]
        # Twice the half of the gradient, and some figures; once, whatever the number of parts.
        assert moved == pytest.approx(report.memory["parameters"], rel=0.05)
        assert count < 2 + len(jax.tree.leaves(report.program.kinds["parameters"]))


def test_an_rl_update_is_planned_with_its_reference_and_critic(tmp_path):
    config = tiny(fsdp=8)
    config.model.num_layers = 1
    config.rl.algorithm, config.rl.epochs = "ppo", 2
    (report,) = plan.run(config, "cpu:8", ["RL update"], hlo=str(tmp_path / "hlo"))
    assert (tmp_path / "hlo" / "RL_update.txt").read_text().startswith("HloModule")
    assert report.memory["reference"] == report.memory["parameters"]
    assert report.memory["critic"] > 3 * report.memory["parameters"]
    assert report.fits and "fits" in plan_reports.table([report])
    assert 8 * report.cost.flops == pytest.approx(report.program.model_flops, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "trained", "changes"),
    [
        ("rloo", "all", {}),
        ("rloo", "strategies", {}),
        ("gfpo_exact", "all", dict(kl_coef=0.1, entropy_coef=0.1, entropy_target=0.5)),
    ],
)
def test_an_updates_flops_are_those_of_the_compiled_update(algorithm, trained, changes):
    config = tiny()
    config.rl.update(dict(algorithm=algorithm, samples=4, epochs=3, trained=trained))
    config.rl.override.update(changes)
    (report,) = plan.run(config, "cpu:1", ["RL update"])
    assert report.cost.flops == pytest.approx(report.program.model_flops, rel=1e-3)


def test_forward_flops_are_those_of_the_compiled_pass():
    config = ModelConfig(
        vocab_size=60, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48,
        position_encoding="rope",
    )
    tokens = jax.ShapeDtypeStruct((3, 20), jnp.int32)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    run = jax.jit(lambda params, tokens: Transformer(config).apply(params, tokens)[0])
    text = run.lower(shapes, tokens).compile().as_text()
    assert plan_reports.analyse(text).flops == forward_flops(config, 3, 20, 20, 20)


def test_the_programs_shapes_are_those_of_a_real_call():
    config = tiny(fsdp=8)
    chosen = planned(config)
    mesh = make_mesh(mesh_shape(config), jax.devices()[:8])
    program = training_step(chosen, mesh)
    state, batch, tags = program.arguments

    def zeros(x):
        return jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)

    new, metrics = program.function(
        *jax.tree.map(zeros, (state, batch, tags)), **program.keywords
    )
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: x.shape, new) == jax.tree.map(lambda x: x.shape, state)
    assert np.isfinite(metrics["loss"])


def fake_report(reports, **changes):
    return dataclasses.replace(reports["training step"], **changes)


def test_a_program_that_does_not_fit_names_the_setting(reports):
    config = tiny()
    chosen = planned(config)
    small = fake_report(reports, chip=Chip("small", 100_000))
    assert not small.fits
    assert "model.remat=full" in plan_reports.verdict(small, chosen)
    config.model.remat = "full"
    assert "finetune.rows" in plan_reports.verdict(small, planned(config))
    config.finetune.rows = 1 * 4
    config.mesh.fsdp = 4
    assert "mesh.tensor" in plan_reports.verdict(small, planned(config))
    tiny_chip = fake_report(reports, chip=Chip("tiny", 1000))
    assert "mesh.fsdp" in plan_reports.verdict(tiny_chip, chosen)


def test_the_time_of_a_known_chip_is_the_slower_of_cores_and_links(reports):
    chip = CHIPS["TPU v5 lite"]
    report = fake_report(reports, chip=chip, cost=Cost(1e12, 1e9, 1.5e9, ()))
    assert report.compute_seconds == pytest.approx(1.0) and report.link_seconds == 0
    assert report.mfu(1.0) == pytest.approx(report.program.model_flops / 8 / 1.97e14)
    assert "MFU" in plan_reports.describe(report, planned(tiny()), 3)


@pytest.mark.parametrize(
    "message, needed",
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory. Used 20.5G of 15.75G hbm.", int(20.5 * GIB)),
        ("RESOURCE_EXHAUSTED: memory for temporaries (480.00G) exceeds HBM (15.75G).", 480 * GIB),
        ("RESOURCE_EXHAUSTED: something else", 0),
        ("INTERNAL: a defect", None),
    ],
)
def test_the_compilers_refusal_is_read(message, needed):
    assert plan_reports.memory_needed(message) == needed


def test_sizes_go_down_from_the_guess():
    assert plan_suggestions.powers_below(100.0, 3) == [96, 48, 24, 12, 6, 3]
    assert plan_suggestions.powers_below(2.9, 3) == []
    tried = []
    fits = lambda n: tried.append(n) or n <= 24  # noqa: E731
    assert plan_suggestions.first_that_fits([96, 48, 24, 12], fits) == 24
    assert tried == [96, 48, 24]
    assert plan_suggestions.first_that_fits([96, 48, 36, 12], fits) is None, "few are tried"


def measured(reports, name, batch, memory, kept=1000):
    """A report of a program whose batch takes so many bytes, on a chip with so much memory."""
    report = dataclasses.replace(
        reports["training step"], chip=Chip("chip", memory),
        memory={"parameters": kept, "activations": batch},
    )
    return dataclasses.replace(report, program=dataclasses.replace(report.program, name=name))


def test_suggestions_are_guessed_from_memory_and_compiled(reports):
    chosen, tried = planned(tiny(fsdp=4)), []  # 16 rows, remat none

    def attempt(limit):
        def fits(other):
            tried.append((other.model.remat, other.config.finetune.rows))
            factor = {"none": 4, "dots": 2, "full": 1}[other.model.remat]
            return factor * other.config.finetune.rows * 100 <= limit

        return fits

    report = measured(reports, "training step", 6400, 4000)
    lines = list(plan_suggestions.suggestions(chosen, report, attempt(3500)))
    assert lines == ["model.remat=dots recomputes least of what fits 16 rows"]
    lines = list(plan_suggestions.suggestions(chosen, report, attempt(0)))
    assert "mesh.fsdp" in lines[-1]
    # With room for 2.2 times the batch the next power of two is tried, and nothing beyond.
    tried.clear()
    report = measured(reports, "training step", 6400, 1000 + 14080)
    lines = list(plan_suggestions.suggestions(chosen, report, attempt(14080)))
    assert "model.remat=none" in lines[0] and "finetune.rows=32" in lines[1]
    assert tried == [("none", 32)]


def test_fewer_parts_or_prompts_are_suggested(reports):
    chosen = planned(tiny(fsdp=4))  # 8 prompts of 2 samples, one microbatch
    report = measured(reports, "RL update", 6400, 4200)
    few = lambda other: other.rl.num_prompts // other.rl.num_microbatches <= 4  # noqa: E731
    (line,) = plan_suggestions.suggestions(chosen, report, few)
    assert line.startswith("rl.microbatches=2")
    (line,) = plan_suggestions.suggestions(chosen, report, lambda _: False)
    assert "model.remat=full" in line
    report = measured(reports, "sampler", 6400, 1000 + 6400 * 5)
    (line,) = plan_suggestions.suggestions(chosen, report, lambda other: other.rl.num_prompts <= 16)
    assert line.startswith("rl.prompts=16")


@pytest.mark.parametrize(
    "where, message",
    [
        ("v5p", "its sizes, as in"), ("a100:8", "v5e, v5p, v6e, cpu"), ("cpu:2x4", "as in cpu:8"),
        ("cpu:512", "choose at most as many"),
    ],
)
def test_an_unknown_topology_is_refused(where, message):
    with pytest.raises(ValueError, match=message):
        topology(where)


def test_an_unknown_chip_is_refused():
    with pytest.raises(ValueError, match="TPU v9"):
        chip_of("TPU v9")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_tpus_compiler_it_says_what_to_install():
    with pytest.raises(ValueError, match=r"pip install -e '\.\[tpu\]'"):
        topology("v5e:4x4")


def test_what_cannot_run_is_refused():
    with pytest.raises(ValueError, match=r"finetune\.rows=12"):
        config = tiny(fsdp=8)
        config.finetune.rows = 12
        plan.run(config, "cpu:8", ["training step"])
    with pytest.raises(ValueError, match="4 places for 8 devices"):
        plan.run(tiny(fsdp=4), "cpu:8", ["sampler"])
    with pytest.raises(ValueError, match="programs='training'"):
        plan.run(tiny(), "cpu:8", ["training"])
    config = pod.get_config("v5e")
    config.plan.vocab_size = 10
    with pytest.raises(ValueError, match=r"plan\.vocab_size=10"):
        planned(config)


@pytest.mark.parametrize("kind, chips", [("v5e", 256), ("v5p", 128), ("v6e", 256)])
def test_the_pods_are_whole(kind, chips):
    config = pod.get_config(kind)
    chosen = planned(config)
    shape = mesh_shape(config)
    assert np.prod(shape.sizes) == chips
    assert config.finetune.rows % shape.rows == 0 and config.rl.prompts % shape.rows == 0
    assert count_parameters(chosen.model) > 7e9 and chosen.model.max_length == 4096


def test_the_launcher_refuses_in_one_line():
    command = [sys.executable, "-m", "experiments.plan", "--topology=v9:4"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: topology='v9:4'")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_tpus_own_compiler_plans_a_small_model():
    """In a process of its own, as libtpu needs. No device gathers the rows of all."""
    command = [
        sys.executable, "-m", "experiments.plan", "--topology=v5e:4x4",
        "--config=experiments/configs/pod.py:v5e", "--programs=training step",
        "--config.mesh.data=2", "--config.mesh.fsdp=4", "--config.mesh.tensor=2",
        "--config.model.d_model=512", "--config.model.num_layers=2", "--config.model.num_heads=8",
        "--config.model.d_ff=1024", "--config.model.max_length=512",
        "--config.plan.vocab_size=8192", "--config.plan.prompt_length=128",
        "--config.finetune.rows=8", "--config.rl.prompts=8",
        "--config.rl.microbatches=1", "--collectives=200",
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "16 x v5e" in done.stdout and "verdict      fits" in done.stdout
    assert "reduce-scatter" in done.stdout and "MFU" in done.stdout
    assert "[8,512,512]" not in done.stdout
