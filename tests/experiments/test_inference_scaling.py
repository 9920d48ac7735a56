"""The study of a finished run: what it measures, on policies whose answers are known, and what it
refuses. The run is written here, in the quickstart's layout; its policies are rough functions."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import inference_scaling, quickstart, scaling_reports
from experiments.configs import inference_scaling as configs
from experiments.configs import smoke
from experiments.sft import set_up
from reasoning.data.tasks.base import ANSWER
from reasoning.evaluation.estimators import difference_estimate, mean_estimate
from reasoning.evaluation.policies import judge, sample_problems
from reasoning.runtime.checkpoints import save_tree
from reasoning.runtime.runs import Run
from reasoning.sampling.decoding import thinking_lengths
from reasoning.sampling.filters import Filters

BUDGETS = (0, 3, 7, 12)
STEPS = (1, 2, 3, 4)
ARMS = ("mixed", "matched", "matched_gfpo", "mixed_t1")


def source_config():
    """Of the run that is studied: a model that compiles in a second."""
    config = smoke.get_config()
    config.t1.steps, config.t1.keep_every, config.seeds = 4, 1, 2
    config.model.update(
        d_model=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, d_ff=8, max_length=40
    )
    return config


def study_config(run):
    config = configs.get_config()
    config.scaling.update(
        run=str(run), problems=3, checkpoints=2, budgets=BUDGETS, thinking_samples=2, samples=8,
        temperatures=(0.5,),
    )
    return config


@pytest.fixture(scope="module")
def source(tmp_path_factory, rough_params):
    """A run of two seeds, as the quickstart leaves it."""
    path = tmp_path_factory.mktemp("runs") / "quickstart"
    config = source_config()
    setup = set_up(config, ("mixed",))
    end_id = setup.text_format.tokenizer.encode(ANSWER)[0]

    def policy(seed):
        weights = rough_params(setup.model, seed)["params"]
        # Some of the completions end their thinking by themselves.
        weights["token_embedding"] = weights["token_embedding"].at[end_id].mul(8)
        return {"params": weights}

    for seed in (0, 1):
        folder = path / "policies" / f"seed{seed}"
        for i, arm in enumerate(ARMS):
            tree = policy(10 * seed + i)
            save_tree(folder / arm, tree if i < 2 else [tree], {})
        for step in (0, *STEPS):
            kept = path / "kept" / f"seed{seed}" / "mixed_t1" / f"{step:06d}"
            save_tree(kept, [policy(10 * seed + 4 + step)], {})
    about = {"program": quickstart.PROGRAM, "config": config.to_dict()}
    (path / "config.json").write_text(json.dumps(about))
    (path / "results.json").write_text("{}")
    setup.text_format.tokenizer.save(path / "tokenizer.model")
    return path


@pytest.fixture(scope="module")
def study(source):
    return inference_scaling.build_study(inference_scaling.read_run(study_config(source)))


def test_the_run_says_what_is_studied(study, source):
    assert study.steps == [2, 4] and list(study.seeds) == [0, 1]
    assert study.checkpoints == ["mixed", "mixed_t1_2", "mixed_t1_4"]
    assert study.ks == [1, 2, 4, 8]
    assert study.folder("mixed_t1_2", 1) == source / "kept" / "seed1" / "mixed_t1" / "000002"
    assert study.folder("mixed_t1", 0) == source / "policies" / "seed0" / "mixed_t1"
    assert len(study.setup.test) == 3
    for name in (*study.checkpoints, *ARMS):
        leaves = [jax.tree.leaves(study.policy(name, seed).params)[0] for seed in study.seeds]
        assert not np.array_equal(*leaves), "every seed has policies of its own"


def test_cut_thinking_is_the_same_thinking_and_both_answerers_read_it(study, tmp_path, monkeypatch):
    """Completions are judged by their thinking alone: a reference needs no budget to know it."""
    end_id = study.setup.text_format.tokenizer.encode(ANSWER)[0]
    eos = study.setup.text_format.eos_id

    def even(ids):
        return sum(ids) % 2 == 0

    def by_thinking(policy, problems, tokens, mask):
        correct = np.zeros(tokens.shape[:2], bool)
        for index in np.ndindex(correct.shape):
            ids = tokens[index][mask[index]].tolist()
            assert ids[0] == policy.config.vocab_size, "a completion opens with its tag"
            assert end_id in ids or eos in ids or len(ids) == policy.max_new_tokens
            thinking = ids[1 : ids.index(end_id)] if end_id in ids else ids[1:]
            correct[index] = even(thinking)
        return SimpleNamespace(correct=correct, rows=lambda *_: [])

    monkeypatch.setattr(inference_scaling, "judge", by_thinking)
    with Run(tmp_path / "run", "study", {}) as run:
        found = inference_scaling.measure_thinking(run, study, "mixed_t1_2", 1)

    policy = study.policy("mixed_t1_2", 1)
    key, _ = jax.random.split(inference_scaling.launch.run_key(1, "evaluate"))
    free = sample_problems(policy, study.setup.test, np.zeros(2, int), key, Filters())
    thought = thinking_lengths(free.tokens, free.mask, end_id, (eos,))
    assert thought.min() < BUDGETS[-1] < thought.max(), "some are cut, and some are not"
    expected = {name: np.zeros((3, len(BUDGETS))) for name in ("used", "cut", "right", "right_cut")}
    for (p, r), length in np.ndenumerate(thought):
        for b, budget in enumerate(BUDGETS):
            ids = free.tokens[p, r, 1 : 1 + min(length, budget)]
            expected["used"][p, b] += len(ids) / 2
            expected["cut"][p, b] += (length > budget) / 2
            expected["right"][p, b] += even(ids) / 2
            expected["right_cut"][p, b] += (even(ids) and length > budget) / 2
    for name, values in (
        ("used", "used"), ("cut", "cut"), ("own", "right"), ("own_cut", "right_cut"),
        ("summary", "right"), ("summary_cut", "right_cut"),
    ):
        np.testing.assert_allclose(found[name], expected[values], err_msg=name)
    np.testing.assert_allclose(found["free_used"], thought.mean(axis=1))


def test_samples_are_drawn_as_named_and_counted_by_hand(study, tmp_path, monkeypatch):
    """A judge that likes one tag: what k samples in turn come to is then known."""
    first = study.setup.model.vocab_size

    def likes_tag_one(policy, problems, tokens, mask):
        judged = judge(policy, problems, tokens, mask)
        correct = tokens[..., 0] == first + 1
        votes = np.where(correct, "right", "wrong").astype(object)
        return SimpleNamespace(
            correct=correct, votes=votes, lengths=judged.lengths, rows=judged.rows
        )

    monkeypatch.setattr(inference_scaling, "judge", likes_tag_one)
    with Run(tmp_path / "run", "study", {}) as run:
        matched = inference_scaling.measure_samples(run, study, "matched", 0)
        cold = inference_scaling.measure_samples(run, study, "mixed_T0.5", 0)
        own = inference_scaling.measure_samples(run, study, "matched_gfpo", 0)
    # One sample in four is right: k samples in turn hold one of it with chance k / 4.
    np.testing.assert_allclose(matched["pass@k"], [[0.25, 0.5, 1.0, 1.0]] * 3)
    np.testing.assert_allclose(np.array(matched["cons@k"])[:, [0, 2, 3]], [[0.25, 0, 0]] * 3)
    for method in scaling_reports.METHODS:
        np.testing.assert_allclose(np.array(matched[method])[:, 0], 0.25, err_msg=method)
        np.testing.assert_allclose(cold[method], 0.0, err_msg=method)  # mixed has tag 0 alone
    rows = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").open()]
    tags = {
        name: [row["tag"] for row in rows if row["policy"] == name]
        for name in ("matched", "mixed_T0.5", "matched_gfpo")
    }
    assert tags["matched"] == 3 * [0, 0, 1, 1, 2, 2, 3, 3] and set(tags["mixed_T0.5"]) == {0}
    drawn = np.array(tags["matched_gfpo"]).reshape(3, 8)
    np.testing.assert_allclose(np.array(own["pass@k"])[:, 0], (drawn == 1).mean(axis=1))


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("studies") / "scaling"
    inference_scaling.main(study_config(source), str(workdir))
    return workdir


def test_every_point_has_its_interval_and_tokens(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["problems"] == 3 and results["seeds"] == [0, 1]
    thinking, samples = results["thinking"], results["samples"]
    assert list(thinking["policies"]) == ["mixed", "mixed_t1_2", "mixed_t1_4"]
    for of in thinking["policies"].values():
        for answerer in ("own", "summary"):
            points = of[answerer]["points"]
            assert len(points) == len(BUDGETS)
            for point, budget in zip(points, BUDGETS):
                assert point["low"] <= point["value"] <= point["high"] and point["n"] == 2
                assert 0 <= point["tokens"] <= budget
            assert points[0]["cut"] > points[-1]["cut"]
    assert set(thinking["comparisons"]) == {
        "mixed_t1_2 less mixed", "mixed_t1_4 less mixed", "mixed_t1_4 less mixed_t1_2"
    }
    assert list(samples["policies"]) == [
        "mixed", "mixed_T0.5", "matched", "matched_gfpo", "mixed_t1"
    ]
    for of in samples["policies"].values():
        for method in scaling_reports.METHODS:
            tokens = [point["tokens"] for point in of[method]]
            np.testing.assert_allclose(tokens, np.array(results["k"]) * of["tokens"])
    assert (finished / "table.txt").read_text() == scaling_reports.table(results) + "\n"
    plots = {path.name for path in (finished / "plots").iterdir()}
    assert plots == {"thinking.png", "budgets.png", "samples.png", "tokens.png"}
    rows = [json.loads(line) for line in (finished / "completions.jsonl").open()]
    # Seeds, problems, and: checkpoints, budgets, answerers and samples; samplings and samples.
    assert len(rows) == 2 * 3 * (3 * len(BUDGETS) * 2 * 2 + 5 * 8)


@pytest.mark.slow
def test_a_stopped_study_goes_on_to_the_same_figures(source, finished, tmp_path, monkeypatch):
    measure, done = inference_scaling.measure_samples, []

    def stopped_once(run, study, name, seed):
        done.append((name, seed))
        if done[-1] == ("matched", 0) and done.count(done[-1]) == 1:
            raise KeyboardInterrupt
        return measure(run, study, name, seed)

    monkeypatch.setattr(inference_scaling, "measure_samples", stopped_once)
    with pytest.raises(KeyboardInterrupt):
        inference_scaling.main(study_config(source), str(tmp_path / "run"))
    inference_scaling.main(study_config(source), str(tmp_path / "run"))
    assert done.count(("mixed", 0)) == 1, "a phase that has ended is not worked out again"
    again, before = (
        json.loads((path / "results.json").read_text()) for path in (tmp_path / "run", finished)
    )
    again.pop("seconds"), before.pop("seconds")
    assert again == before


def test_gain_and_slope_by_hand():
    # Two problems: tokens 0, 5, 10 on average, accuracies 0, 0.25, 1.
    used = np.array([[0, 4, 8], [0, 6, 12.0]])
    correct = np.array([[0, 0, 1], [0, 0.5, 1.0]])
    assert scaling_reports.gains(correct).tolist() == [1.0, 1.0]
    assert scaling_reports.slope(used, correct) == pytest.approx(1.0)
    assert scaling_reports.slope(used[:, [1, 1]], correct[:, :2]) == 0.0
    generator = np.random.default_rng(0)
    used, correct = np.sort(generator.uniform(0, 50, (20, 6))), generator.random((20, 6))
    fitted = np.polyfit(used.mean(axis=0), correct.mean(axis=0), 1)[0]
    assert scaling_reports.slope(used, correct) == pytest.approx(10 * fitted)


def measured(generator, shift=0.0):
    """Thinking on four problems with three budgets, all made up."""
    return {
        "used": np.cumsum(generator.uniform(1, 5, (4, 3)), axis=1),
        "cut": np.tile([1.0, 0.5, 0.0], (4, 1)),
        "free": generator.random(4),
        "free_used": np.full(4, 9.0),
        **{name: generator.random((4, 3)) / 2 + shift * np.arange(3)
           for name in ("own", "own_cut", "summary", "summary_cut")},
    }


def test_a_steeper_policy_is_found_to_be_steeper():
    generator = np.random.default_rng(1)
    flat, steep = measured(generator), measured(generator, shift=0.25)
    results = scaling_reports.thinking_results({"a": flat, "b": steep})
    point = results["policies"]["b"]["summary"]["points"][1]
    assert point == {
        **mean_estimate(steep["summary"][:, 1]).as_dict(),
        "tokens": pytest.approx(steep["used"][:, 1].mean()),
        "cut": 0.5,
        "cut_and_right": pytest.approx(steep["summary_cut"][:, 1].mean()),
    }
    steeper = results["comparisons"]["b less a"]["own"]
    paired = difference_estimate(*(x["own"][:, -1] - x["own"][:, 0] for x in (steep, flat)))
    assert steeper["gain"] == pytest.approx(paired.as_dict())
    slopes = [scaling_reports.slope(x["used"], x["own"]) for x in (flat, steep)]
    assert steeper["slope"]["value"] == pytest.approx(slopes[1] - slopes[0])
    assert 0 < steeper["slope"]["low"] < steeper["slope"]["high"]


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("scaling.run", None, "scaling.run is missing: name the directory"),
        ("scaling.checkpoints", 5, "scaling.checkpoints=5: must be between 1 and the 4 that"),
        ("scaling.budgets", (4,), "scaling.budgets=(4,): must be two or more"),
        ("scaling.budgets", (0, 8, 4), "each larger than the one before"),
        ("scaling.budgets", (0, 31), "must leave room for an answer in the 33 tokens"),
        ("scaling.thinking_samples", 0, "scaling.thinking_samples=0: at least 1"),
        ("scaling.samples", 6, "scaling.samples=6: must be a multiple of the 4 tags"),
        ("scaling.temperatures", (-1.0,), "temperature=-1.0"),
        ("scaling.problems", 0, "evaluation.problems=0"),
    ],
)
def test_what_cannot_be_studied_is_refused(source, tmp_path, refusal, setting, value, words):
    config = study_config(source)
    config.update_from_flattened_dict({setting: value})
    assert words in refusal(inference_scaling.main, config, tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run, _: shutil.rmtree(run), "holds no run; make one there with python -m"),
        (lambda run, _: (run / "results.json").unlink(), "has not finished"),
        (lambda run, _: shutil.rmtree(run / "kept"), "has kept no policies of T1; make it with"),
        (lambda _, about: about.update(program="experiments.sft"), "a run of experiments.sft;"),
        (lambda _, about: about["config"]["gfpo"].update(steps=0), "made with gfpo.steps=0"),
    ],
)
def test_a_run_that_cannot_be_studied_is_refused(source, tmp_path, refusal, change, words):
    run = tmp_path / "run"
    shutil.copytree(source, run)
    about = json.loads((run / "config.json").read_text())
    change(run, about)
    if run.exists():
        (run / "config.json").write_text(json.dumps(about))
    assert words in refusal(inference_scaling.main, study_config(run), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_configuration_without_the_study_is_refused(tmp_path, refusal):
    words = "scaling is missing: give --config=experiments/configs/inference_scaling.py"
    assert words in refusal(inference_scaling.main, smoke.get_config(), tmp_path / "study")
    assert not (tmp_path / "study").exists()



@pytest.mark.slow
def test_a_real_run_is_read(tmp_path):
    config = source_config()
    config.t1.steps = 2
    quickstart.main(config, str(tmp_path / "run"))
    study = study_config(tmp_path / "run")
    inference_scaling.main(study, str(tmp_path / "study"))
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert list(results["thinking"]["policies"]) == ["mixed", "mixed_t1_1", "mixed_t1_2"]
