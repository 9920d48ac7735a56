"""The general launcher: another task, several seeds, one arm."""

import json

import pytest

from experiments import quickstart, sft
from experiments.configs import group_words, smoke


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two seeds of group words, tiny, under the arm `random`."""
    config = group_words.get_config()
    tiny = smoke.get_config()
    for section in ("pretrain", "finetune", "evaluation"):
        config[section].update(tiny[section])
    config.arm, config.seeds = "random", 2
    workdir = tmp_path_factory.mktemp("runs") / "group"
    sft.main(config, str(workdir))
    return workdir


def test_every_seed_is_trained_and_the_arms_figures_are_over_seeds(finished):
    results = json.loads((finished / "results.json").read_text())
    assert list(results["arms"]) == ["random"]
    assert [seed["seed"] for seed in results["seeds"]] == [0, 1]
    mean = sum(seed["arms"]["random"]["pass@1"]["value"] for seed in results["seeds"]) / 2
    entry = results["arms"]["random"]["pass@1"]
    assert entry["n"] == 2 and entry["value"] == pytest.approx(mean)
    counts = [seed["arms"]["random"]["tag_by_strategy"] for seed in results["seeds"]]
    assert counts[0] != counts[1], "seeds must differ"
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").open()]
    assert [(row["seed"], row["phase"]) for row in rows] == [
        (seed, phase) for seed in (0, 1) for phase in ("base", "random") for _ in range(6)
    ]
    assert {path.name for path in (finished / "plots").iterdir()} >= {"learning_curves.png"}


def test_a_directory_of_another_program_is_refused(finished, capsys):
    config = group_words.get_config()
    with pytest.raises(SystemExit):
        quickstart.main(config, str(finished))
    assert "experiments.sft" in capsys.readouterr().err


@pytest.mark.parametrize("group", ["S3", "S4", "S5", "A5"])
def test_every_group_can_be_set_up(group):
    config = group_words.get_config(group)
    config.evaluation.problems, config.evaluation.validation_problems = 4, 4
    setup = sft.set_up(config, ("matched",))
    config.pretrain.problems = config.finetune.problems = 20
    assert len(sft.training_data(setup, config).finetune) == 20
