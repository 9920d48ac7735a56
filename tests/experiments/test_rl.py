"""The launcher of reinforcement learning: one program or three in turn, seeds, refusals."""

import json
import types

import jax
import numpy as np
import pytest

from experiments import rl, rl_steps, sft, sources
from experiments.configs import smoke
from reasoning.models.transformer import init_params
from reasoning.rewards.verdicts import Verdicts
from reasoning.runtime.checkpoints import Checkpoints, load_tree, save_tree
from reasoning.runtime.runs import Run, Saving


@pytest.fixture(scope="module")
def setup():
    return sft.set_up(smoke.get_config(), ("mixed",))


@pytest.fixture(scope="module")
def policy(setup):
    return init_params(setup.model, jax.random.key(0))


def spelled_reward(prompts, completions, metadata):
    """A reward that an untrained policy earns now and then: the second id is even."""
    good = completions.tokens[:, 1] % 2 == 0
    return Verdicts(good.astype("float32"), good.astype("int32"))


def use_reward(monkeypatch, reward):
    """The task's reward on the device."""
    monkeypatch.setattr(rl_steps, "device_reward", lambda *_: reward)


def reinforce(path, setup, policies, seeds, max_minutes=None, **changes):
    """The policies, what it took, and the lines of the two logs."""
    config = smoke.get_config()
    config.update_from_flattened_dict({f"rl.{name}": value for name, value in changes.items()})
    data = rl.rl_problems(setup, config.rl, config.seed)
    saving = Saving(max_minutes=max_minutes)
    with Run(path, rl.PROGRAM, config.to_dict(), saving=saving) as run:
        out, spent = rl.reinforce(run, setup, policies, data, config.rl, "arm", seeds)
    logs = [
        [json.loads(line) for line in (path / f"{name}.jsonl").open()]
        for name in ("metrics", "completions")
    ]
    return out, spent, *logs


@pytest.fixture(scope="module")
def together(setup, policy, tmp_path_factory):
    """Two seeds from one policy as one program, by Dr. GRPO on a reward that is often earned."""
    with pytest.MonkeyPatch.context() as patch:
        use_reward(patch, spelled_reward)
        path = tmp_path_factory.mktemp("together")
        return reinforce(path, setup, [policy, policy], [0, 1], algorithm="dr_grpo", steps=3)


def test_seeds_in_one_program_are_the_seeds_alone_and_in_turn(
    setup, policy, together, tmp_path, monkeypatch
):
    use_reward(monkeypatch, spelled_reward)
    changes = {"algorithm": "dr_grpo", "steps": 3}
    alone, *_ = reinforce(tmp_path / "alone", setup, [policy], [1], **changes)
    in_turn, _, metrics, _ = reinforce(
        tmp_path / "turn", setup, [policy], [1], **changes, one_program=False, keep_best=False
    )
    assert [(tmp_path / name / "best").exists() for name in ("alone", "turn")] == [True, False]
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (alone[0], policy)))) > 0
    for other in (together[0][1], in_turn[0]):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), alone[0], other)
    rates = [row for row in metrics if "tokens_per_second/sampling" in row]
    assert len(rates) == 3 and all(row["tokens_per_second/update"] > 0 for row in rates)


def test_one_of_the_seeds_that_were_trained_together_is_read(setup, policy, tmp_path):
    config, path = smoke.get_config(), tmp_path / "both"
    other = jax.tree.map(lambda x: x + 1, policy)
    save_tree(path, [policy, other], {})
    config.model.policy, config.model.policy_seed = str(path), 1
    found = sources.first_params(config, setup.model, jax.random.key(1), None)
    jax.tree.map(np.testing.assert_array_equal, found, other)
    config.model.policy_seed = 2
    with pytest.raises(ValueError, match=r"model.policy_seed=2: .* holds 2 seeds, from 0"):
        sources.first_params(config, setup.model, jax.random.key(1), None)


def test_seeds_on_several_devices_are_restored_there(setup, policy, tmp_path, monkeypatch):
    use_reward(monkeypatch, spelled_reward)

    class Found(Exception):
        """Ends the phase with the state that it asks to be restored."""

    def resume(run, state, carried):
        raise Found(state)

    monkeypatch.setattr(Run, "resume", resume)
    with pytest.raises(Found) as found:
        reinforce(tmp_path, setup, [policy, policy], [0, 1])
    for leaf in jax.tree.leaves(found.value.args[0]):
        assert leaf.sharding.device_set == set(jax.devices()[:2])


@pytest.mark.slow
def test_seeds_on_several_devices_go_on_where_they_were_stopped(
    setup, policy, together, tmp_path, monkeypatch
):
    use_reward(monkeypatch, spelled_reward)
    changes = {"algorithm": "dr_grpo", "steps": 3}
    with pytest.raises(SystemExit):
        reinforce(tmp_path, setup, [policy, policy], [0, 1], max_minutes=0.0, **changes)
    after, *_, completions = reinforce(tmp_path, setup, [policy, policy], [0, 1], **changes)
    for a, b in zip(*map(jax.tree.leaves, (after, together[0]))):
        assert a.sharding.device_set == {jax.devices()[0]}
        np.testing.assert_array_equal(a, b)
    assert completions == together[3]


@pytest.mark.parametrize(("seeds", "devices"), [(1, 1), (2, 2), (6, 6), (9, 3), (11, 1)])
def test_as_many_of_the_eight_devices_as_share_the_seeds_equally(seeds, devices):
    assert rl_steps.devices_for(seeds) == devices


def test_every_step_and_validation_is_logged(together):
    _, spent, metrics, completions = together
    for seed in (0, 1):
        rows = [row for row in metrics if row["seed"] == seed]
        trained = [row for row in rows if "reward" in row]
        assert [row["step"] for row in trained] == [0, 1, 2]
        assert [row["step"] for row in rows if "validation/pass@8" in row] == [0, 1, 2, 3]
        for name in (
            "reward", "reward_std", "frac_reward_zero_std", "rewards/task/mean", "entropy",
            "completions/mean_length", "completions/clipped_ratio", "clip_ratio/low_mean",
            "grad_norm", "tags/share", "tags/entropy", "tags/reward", "num_tokens",
        ):
            assert np.isfinite(trained[0][name]).all(), name
    drawn = sum(float(row["num_tokens"]) for row in metrics if "num_tokens" in row)
    assert spent["steps"] == 3 and spent["tokens"] == drawn / 2
    assert {"prompt", "completion", "reason", "step", "arm"} <= set(completions[0])


def test_an_extended_run_meets_the_validations_again():
    assert list(rl.parts(0, 10, 4)) == [(0, 4), (4, 8), (8, 10)]
    assert list(rl.parts(10, 20, 4)) == [(10, 12), (12, 16), (16, 20)]
    assert list(rl.parts(20, 20, 4)) == []


def test_schedule_visits_every_problem_once_an_epoch():
    plan = rl.schedule(num_problems=10, num_steps=7, per_step=5, seed=3)
    assert plan.shape == (7, 5)
    for epoch in plan.ravel()[:30].reshape(3, 10):
        assert sorted(epoch) == list(range(10))
    np.testing.assert_array_equal(plan, rl.schedule(10, 7, 5, seed=3))
    assert (plan != rl.schedule(10, 7, 5, seed=4)).any()
    uneven = rl.schedule(num_problems=10, num_steps=50, per_step=4, seed=0)
    assert all(len(set(step)) == 4 for step in uneven), "no problem twice in a step"


def test_difficulty_keeps_problems_by_their_pass_rate(setup, policy, monkeypatch, tmp_path):
    config = smoke.get_config()
    settings = config.rl
    data = rl.rl_problems(setup, settings, 0)
    rates = np.arange(len(data.problems)) % 5 / 4  # 0, 1/4, ... 1
    correct = np.arange(4)[None] < 4 * rates[:, None]
    monkeypatch.setattr(
        rl, "sample_and_judge", lambda *_, **__: types.SimpleNamespace(correct=correct)
    )
    everything = rl.choose_problems(None, setup, policy, data, settings, "arm", 0)
    np.testing.assert_array_equal(everything, np.arange(len(rates)))
    settings.min_pass, settings.max_pass = 0.1, 0.5
    with Run(tmp_path, rl.PROGRAM, config.to_dict()) as run:
        kept = rl.choose_problems(run, setup, policy, data, settings, "arm", 0)
        np.testing.assert_array_equal(kept, np.flatnonzero((rates >= 0.1) & (rates <= 0.5)))
        monkeypatch.delattr(rl, "sample_and_judge")  # a run that goes on does not judge again
        again = rl.choose_problems(run, setup, policy, data, settings, "arm", 0)
    np.testing.assert_array_equal(again, kept)
    monkeypatch.undo()
    monkeypatch.setattr(
        rl, "sample_and_judge", lambda *_, **__: types.SimpleNamespace(correct=correct)
    )
    settings.min_pass, settings.max_pass = 0.3, 0.4
    with pytest.raises(ValueError, match=r"max_pass=0\.4: the pass rates of only 0 problems"):
        rl.filter_by_difficulty(setup, policy, data, settings, 0)


def lost_reward(prompts, completions, metadata):
    """A reward that is no number."""
    count = len(completions.tokens)
    return Verdicts(np.full(count, np.nan, np.float32), np.zeros(count, np.int32))


def test_a_run_without_finite_updates_ends_with_its_last_good_policy(
    setup, policy, tmp_path, monkeypatch
):
    use_reward(monkeypatch, lost_reward)
    changes = {"algorithm": "dr_grpo", "steps": 6, "validate_every": 3, "max_skipped": 2}
    with pytest.raises(FloatingPointError, match=r"arm: 3 steps in a row .* up to step 3"):
        reinforce(tmp_path, setup, [policy], [0], **changes)
    config = smoke.get_config()
    config.update_from_flattened_dict({f"rl.{name}": value for name, value in changes.items()})
    chosen = [np.arange(config.rl.problems)]
    rl_config = rl.rl_config(setup, config.rl)
    like = rl.start_seeds([policy], chosen, config.rl, rl_config, [0])[0]
    state = load_tree(tmp_path / "last_good" / "arm", like)
    assert state.skipped.tolist() == [3]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), state.params, policy)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("rl.algorithm", "sarsa", "algorithm='sarsa': must be one of rloo, grpo"),
        ("rl.override.advantage", "best", "advantage='best'"),
        ("rl.override.clip_low", -0.1, "clip_low=-0.1"),
        ("rl.temperature", 0.0, "temperature=0"),
        ("rl.samples", 0, "num_samples=0"),
        ("rl.num_slots", 0, "num_slots=0"),
        ("rl.minibatches", 3, "num_prompts=4: must be a multiple"),
        ("rl.steps", 0, "rl.steps=0"),
        ("rl.learning_rate", -1.0, "learning_rate=-1.0"),
        ("rl.problems", 3, "rl.problems=3: a step draws 4 different ones"),
        ("rl.trained", "tags", "trained='tags': must be all or strategies"),
        ("rl.rounds", 2, "max_rounds=2: dynamic sampling"),
        ("rl.keep_every", -1, "rl.keep_every=-1: must be 0 (none), or a multiple"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    tmp_path, capsys, setting, value, words
):
    config = smoke.get_config()
    if setting == "rl.rounds":
        config.rl.algorithm = "gfpo_exact"  # learns from every group
    config.update_from_flattened_dict({setting: value})
    with pytest.raises(SystemExit) as stopped:
        rl.main(config, str(tmp_path / "run"))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and words in error
    assert not (tmp_path / "run").exists()


def test_the_launcher_writes_both_policies_and_a_host_can_judge(tmp_path):
    config = smoke.get_config()
    config.rl.reward, config.rl.workers, config.rl.keep_every = "host", 1, 1
    rl.main(config, str(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["arms"]) == ["matched", "matched_gfpo"]
    assert (tmp_path / "run" / "plots" / "reinforcement.png").is_file()
    metrics = list(map(json.loads, (tmp_path / "run" / "metrics.jsonl").open()))
    name = "validation/pass@1"
    scores = {row["step"]: row[name] for row in metrics if name in row}
    with Checkpoints(tmp_path / "run" / "best" / "seed0" / "matched_gfpo") as best:
        about = best.about(0)
    assert about["pass@1"] == max(scores.values()) == scores[about["step"]]
    kept = sorted((tmp_path / "run" / "kept" / "seed0" / "matched_gfpo").iterdir())
    assert [path.name for path in kept] == ["000000", "000001", "000002"]
