"""The study of serial problems: equal tokens, one program for all seeds, a run that goes on."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import serial
from experiments.configs import serial as configs
from experiments.configs import smoke
from reasoning.learning.optimizers import OptimizerConfig, make_optimizer
from reasoning.learning.updates import init_state, sft_update
from reasoning.models.transformer import init_params
from reasoning.runtime.runs import STOPPED, Run, Saving


def tiny():
    """S3 at one layer of width 8: it shows that things work, not how well."""
    config = configs.get_config()
    config.studied, config.depths, config.seeds = ("S3",), (1,), 2
    config.problems.S3.update(tokens=6000)
    config.problems.S3.arguments.length = 3
    config.model.update(d_model=8, num_heads=1, num_kv_heads=1, head_dim=8, d_ff=8)
    config.training.update(rows=16, steps_at_once=4)
    config.evaluation.update(problems=20, kept=(0.5,), shown=2)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "serial"
    serial.main(tiny(), str(workdir))
    return workdir


def test_every_arm_reads_as_many_tokens(finished):
    cells = json.loads((finished / "results.json").read_text())["cells"]
    assert [cell["arm"] for cell in cells] == list(serial.ARMS)
    # Rows: <bos> 3 elements : <tag>, then dots or steps, `answer`, the element, <eos>.
    for cell, completion in zip(cells, (3, 5, 11), strict=True):
        row = 6 + completion
        assert cell["tokens"] == row * cell["sequences"] == row * 16 * cell["steps"]
        assert cell["labels"] == completion * cell["sequences"]
        assert abs(cell["tokens"] - 6000) <= row * 16 * 4 / 2  # half a call of the program
    assert len({cell["sequences"] for cell in cells}) == 3


def test_the_run_directory_tells_what_was_found(finished):
    results = json.loads((finished / "results.json").read_text())
    for cell in results["cells"]:
        seeds = cell["accuracy"]["seeds"]
        assert cell["accuracy"]["n"] == 2 and [seed["n"] for seed in seeds] == [20, 20]
        assert cell["accuracy"]["value"] == pytest.approx(np.mean([s["value"] for s in seeds]))
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").open()]
    assert {(row["phase"], row["seed"]) for row in rows} == {
        (f"S3/{arm}/depth1", seed) for arm in serial.ARMS for seed in (0, 1)
    }
    completions = [json.loads(line) for line in (finished / "completions.jsonl").open()]
    assert len(completions) == 3 * 2 * 2
    assert (finished / "table.txt").read_text() == serial.table(results) + "\n"
    assert (finished / "plots" / "accuracy_by_depth.png").is_file()


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(finished, tmp_path):
    config = tiny()
    cells = serial.set_up(config)[:1]
    examples = serial.examples_of(cells[0].problem, 0, cells[0].rows * cells[0].steps)

    def train(name, saving):
        with Run(tmp_path / name, serial.PROGRAM, config.to_dict(), saving=saving) as run:
            def work():
                serial.train(run, cells[0], examples, config.training, (0, 1))
                return None, {}

            run.phase("first", lambda: (None, {}))  # max_minutes counts from then on
            run.phase(cells[0].name, work)

    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            train("stopped", Saving(every=0.0, max_minutes=0.0))
        assert stopped.value.code == STOPPED
    train("stopped", Saving())
    rows = [json.loads(line) for line in (tmp_path / "stopped" / "metrics.jsonl").open()]
    whole = [json.loads(line) for line in (finished / "metrics.jsonl").open()]
    whole = [row for row in whole if row["phase"] == cells[0].name]
    assert [row["loss"] for row in rows] == [row["loss"] for row in whole] and len(rows) > 4


def test_seeds_in_one_program_are_the_seeds_alone():
    config = tiny()
    cell = serial.set_up(config)[-1]
    examples = serial.examples_of(cell.problem, 0, 64)
    optimizer = make_optimizer(OptimizerConfig("muon", 1e-2, 4))
    keys = [jax.random.key(seed) for seed in range(2)]
    batches = [
        list(itertools.islice(serial.batches_of(cell, examples, seed, 0), 4)) for seed in range(2)
    ]
    assert not np.array_equal(batches[0][0].tokens, batches[1][0].tokens), "each its own order"
    states = [init_state(init_params(cell.model, key), optimizer) for key in keys]
    advance = serial.compiled_steps(cell.model, optimizer, 2)
    read = serial.stack([serial.stack(each) for each in batches])
    together, metrics = advance(serial.stack(states), read, jnp.zeros((2, 16), jnp.int32))
    for seed, state in enumerate(states):
        losses = []
        for batch in batches[seed]:
            state, step = sft_update(
                state, batch, jnp.zeros(16, jnp.int32), config=cell.model, optimizer=optimizer,
                tag_is_label=False,
            )
            losses.append(float(step["loss"]))
        assert float(metrics["loss"][seed]) == pytest.approx(np.mean(losses), rel=1e-4)
        for alone, of_both in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(together.params), strict=True
        ):
            np.testing.assert_allclose(of_both[seed], alone, atol=1e-4)


def test_seeds_are_over_problems_each_and_together_over_runs():
    right, wrong = np.ones(10, bool), np.zeros(10, bool)
    both = serial.seeds_estimate([right, wrong, np.empty(0, bool)])
    assert both["value"] == 0.5 and both["n"] == 2 and both["high"] > 1  # t of one degree
    assert [seed["value"] for seed in both["seeds"]] == [1.0, 0.0]
    alone = serial.seeds_estimate([right])
    assert alone["n"] == 10 and alone["low"] == pytest.approx(10 / (10 + 1.96**2), abs=1e-3)
    assert serial.seeds_estimate([np.empty(0, bool)]) is None


@pytest.mark.parametrize("preset", configs.PRESETS)
def test_every_problem_of_a_preset_can_be_set_up(preset):
    config = configs.get_config(preset)
    config.evaluation.problems = 20
    cells = serial.set_up(config)
    assert len(cells) == len(config.studied) * len(config.depths) * len(serial.ARMS)
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.problem.chance < 0.8


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("studied", ("S9",), "studied='S9': must be among "),
        ("studied", (), "studied=(): must be one or more"),
        ("depths", (1, 1), "depths=(1, 1): must be one or more, none of them twice."),
        ("seeds", 0, "seeds=0: must be at least 1."),
        ("training.rows", 0, "training.rows=0: must be at least 1."),
        ("evaluation.kept", (1.0,), "evaluation.kept=1.0: "),
        ("problems.S3.trace", "middle", "strategy='middle': task 'group_words' has direct, left"),
        ("problems.S3.trace", "tree", "trace='tree': of group_words the probes know left."),
        ("problems.S3.tokens", 10, "problems.S3.tokens=10: 4 steps of direct read "),
        ("problems.S3.arguments.group", "M11", "group='M11': must be one of"),
        ("model.policy", "elsewhere", "model.policy=elsewhere: policies start anew here."),
        ("model.num_kv_heads", 2, "num_kv_heads=2: must divide num_heads=1."),
    ],
)
def test_what_cannot_be_studied_is_refused_in_one_sentence(
    tmp_path, capsys, setting, value, words
):
    config = tiny()
    with config.unlocked():
        config.update_from_flattened_dict({setting: value})
    with pytest.raises(SystemExit):
        serial.main(config, str(tmp_path / "run"))
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_another_configuration_is_refused(tmp_path, refusal):
    error = refusal(serial.main, smoke.get_config(), tmp_path / "run")
    assert "config: describes no such study; give --config=experiments/configs/serial.py." in error
    assert not (tmp_path / "run").exists()
