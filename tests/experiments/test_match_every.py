"""Matched tags that outlive a visit: visit by visit, packed, on a mesh, after a stop."""

import dataclasses
import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import sft, sources
from experiments.batches import due_problems, plan_batches
from experiments.configs import smoke
from reasoning.learning import assignment
from reasoning.learning.updates import init_state, sft_update
from reasoning.runtime.meshes import use_mesh
from reasoning.runtime.runs import Run

STEPS, EVERY = 6, 3
PADDED = {"finetune.rows": 16}
PACKED = {"finetune.rows": 4, "finetune.pack": 112}
CUT = {**PADDED, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}


def configuration(settings, every):
    """Six problems in batches of about four: epochs begin in the middle of a batch."""
    config = smoke.get_config()
    config.finetune.update(steps=STEPS, problems=6, optimizer="adamw", learning_rate=0.03)
    config.finetune.warmup_steps = 0
    config.pretrain.steps, config.loss.match_every = 0, every
    config.update_from_flattened_dict(settings)
    return config


def main(config, workdir):
    """Fine-tune on problems of four, three and two traces, as the launcher does; the parameters."""
    setup = sft.set_up(config, ("matched",))
    data = sft.training_data(setup, config)
    examples = [
        dataclasses.replace(example, traces=example.traces[: 4 - i % 3])
        for i, example in enumerate(data.finetune)
    ]
    with Run(workdir, sft.PROGRAM, config.to_dict()) as run, use_mesh(setup.mesh):
        params = sources.first_params(config, setup.model, jax.random.key(0), setup.mesh)
        data = sft.Data([], examples)
        return sft.fine_tune(run, setup, params, data, "matched", config, 0)[0]


def rows_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").open()]


@pytest.mark.parametrize("settings", [PADDED, PACKED, pytest.param(CUT, marks=pytest.mark.slow)])
def test_a_problem_keeps_its_tags_until_it_is_due_again(settings, tmp_path, monkeypatch):
    calls, visits = [], []

    def scored(*arguments, **numbers):
        calls.append((arguments, numbers))
        return assign(*arguments, **numbers)

    def updated(state, batch, tags, **numbers):
        (arm, model, *_, key), settings = calls[0]
        settings = {**settings, "due": np.ones_like(settings["due"])}
        anew, _ = assign(arm, model, state.params, batch, key, **settings)
        columns = batch.problem_seed, batch.problem, batch.slot, tags, anew
        rows = np.stack([np.asarray(column) for column in columns], axis=1)
        visits.append((len(calls), rows[np.asarray(batch.lengths) > 0].tolist()))
        return sft_update(state, batch, tags, **numbers)

    assign = assignment.assign
    monkeypatch.setattr(sft.assignment, "assign", scored)
    monkeypatch.setattr(sft, "sft_update", updated)
    main(configuration(settings, EVERY), tmp_path / "run")

    seen, kept, matched, changed = Counter(), {}, [], 0
    for _, rows in visits:
        due = {}  # example: which problem of the batch
        for example, problem in dict.fromkeys((row[0], row[1]) for row in rows):
            if seen[example] % EVERY == 0:
                due.setdefault(example, problem)
            seen[example] += 1
        matched.append(bool(due))
        for example, problem, slot, _, anew in rows:
            if due.get(example) == problem:
                kept[example, slot] = anew
        for example, _, slot, tag, anew in rows:
            assert tag == kept[example, slot]
            changed += tag != anew
    assert max(seen.values()) > EVERY and 0 < sum(matched) < STEPS
    assert changed > 0, "matching anew would have given the same tags"
    # What is not matched is not scored, and says nothing of a matching.
    assert [count for count, _ in visits] == np.cumsum(matched).tolist()
    rows = rows_of(tmp_path / "run")
    assert ["matching_entropy" in row for row in rows] == matched
    assert all(np.isfinite(row.get("matching_cost", 0.0)) for row in rows)


@pytest.mark.parametrize("settings", [PADDED, pytest.param(CUT, marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_within_an_epoch_goes_on(settings, tmp_path, stopped_at):
    """To the very same numbers."""
    config = configuration(settings, EVERY)
    alone = main(config, tmp_path / "alone")
    cut = stopped_at([("matched", 2)], main, config, tmp_path / "cut")
    assert rows_of(cut) == rows_of(tmp_path / "alone")
    jax.tree.map(np.testing.assert_array_equal, alone, main(config, cut))


def test_matching_at_every_visit_keeps_nothing(tmp_path, monkeypatch):
    """Bit for bit what tags, update, tags, update, ... give, with nothing in the state for it."""
    starts, steps, config = [], [], configuration(PADDED, 1)

    def updated(state, batch, tags, **numbers):
        assert state.kept_tags is None
        starts.append(jax.tree.map(jnp.copy, state.params))
        steps.append((batch, numbers))
        return sft_update(state, batch, tags, **numbers)

    monkeypatch.setattr(sft, "sft_update", updated)
    monkeypatch.delattr(sft.assignment, "keep_tags")
    after = main(config, tmp_path / "run")
    assert all("matching_entropy" in row for row in rows_of(tmp_path / "run"))

    longest, most = (
        max(int(getattr(batch, name).max()) for batch, _ in steps) for name in ("fork", "problem")
    )
    length = config.loss.match_tokens
    state = init_state(starts[0], steps[0][1]["optimizer"])
    for batch, numbers in steps:
        tags, _ = assignment.assign(
            "matched", numbers["config"], state.params, batch, jax.random.key(0), num_traces=4,
            prefix=longest + 1 + length, match_tokens=length, num_problems=most + 1,
        )
        state, _ = sft_update(state, batch, tags, **numbers)
    jax.tree.map(np.testing.assert_array_equal, after, state.params)


def test_due_are_the_visits_0_k_2k_and_one_copy_of_a_batch():
    epochs = [[0, 1], [2, 1], [2, 0], [0, 1], [2, 2], [0, 1]]  # a new one after every three
    assert due_problems(epochs, 2) == [
        [True, True], [True, False], [False, False], [True, True], [True, False], [False, False]
    ]
    assert due_problems(epochs, 3) == [
        [True, True], [True, False], [False, False], [False, False], [False, True], [True, True]
    ]
    copies = [[3, 3, 3, 4], [3, 4], [3, 4]]
    assert due_problems(copies, 2) == [[True, False, False, True], [False, False], [True, True]]


@pytest.mark.parametrize("pack", [0, 112])
def test_a_plan_names_the_examples_of_its_batches(pack):
    config = configuration(PACKED if pack else PADDED, 2)
    setup = sft.set_up(config, ("matched",))
    examples = sft.training_data(setup, config).finetune
    plan = plan_batches(examples, config.finetune, 0, setup.text_format.pad_id, None)
    for members, batch in zip(plan.members, plan.batches(0), strict=True):
        rows = batch.lengths > 0
        assert (np.take(members, batch.problem) == batch.problem_seed)[rows].all()
        assert batch.problem[rows].max() + 1 == len(members) <= plan.most_problems
