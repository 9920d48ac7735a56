"""The launcher of ablations: each variant changes one thing, and all start from one policy."""

import json

import pytest

from experiments import ablations
from experiments.configs import smoke


def differences(a, b, path=""):
    """The settings, by their full names, in which two configurations differ."""
    if not isinstance(a, dict):
        return {path: (a, b)} if a != b else {}
    found = {}
    for key in a:
        found |= differences(a[key], b[key], f"{path}.{key}" if path else key)
    return found


@pytest.mark.parametrize("grid", list(ablations.GRIDS))
def test_a_variant_changes_what_it_says_and_nothing_else(grid):
    config = smoke.get_config()
    config.ablation.grid = grid
    start = config.to_dict()
    for name, variant in ablations.variants(config).items():
        changed = differences(start, variant.to_dict())
        changed.pop("t1.steps", None)
        said = {f"t1.{field}": value for field, value in ablations.GRIDS[grid][name].items()}
        assert {key: after for key, (_, after) in changed.items()}.items() <= said.items()
        assert variant.t1.steps == config.ablation.steps
    assert config.to_dict() == start


def test_every_variant_of_the_t1_section_can_run():
    config = smoke.get_config()
    setup = ablations.set_up(config, (config.arm,))
    for config.ablation.grid in ablations.GRIDS:
        for variant in ablations.variants(config).values():
            ablations.check_rl(setup, variant, "t1")


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("ablation.grid", "weather", "ablation.grid='weather': must be one of samples,"),
        ("ablation.section", "sft", "ablation.section='sft': must be rl, grpo, gfpo or t1"),
    ],
)
def test_what_cannot_be_varied_is_refused(tmp_path, capsys, setting, value, words):
    config = smoke.get_config()
    config.update_from_flattened_dict({setting: value})
    with pytest.raises(SystemExit):
        ablations.main(config, str(tmp_path / "run"))
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_seeds_of_a_grid_end_in_one_table_and_the_curves(tmp_path, monkeypatch):
    grid = {"K=2": {"samples": 2}, "K=4": {"samples": 4}}
    monkeypatch.setitem(ablations.GRIDS, "samples", grid)
    config = smoke.get_config()
    config.seeds, config.arm, config.pretrain.steps = 2, "mixed", 0
    config.model.update(d_model=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, d_ff=8)
    config.evaluation.problems = config.evaluation.validation_problems = 4
    ablations.main(config, str(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["arms"]) == ["mixed", "K=2", "K=4"]
    assert results["arms"]["K=4"]["pass@1"]["n"] == 2
    tokens = {arm: results["arms"][arm]["training"]["tokens"] for arm in grid}
    assert tokens["K=4"] > 1.5 * tokens["K=2"]
    assert (tmp_path / "run" / "plots" / "reinforcement.png").is_file()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert {row["seed"] for row in rows if row["phase"] == "K=2"} == {0, 1}
