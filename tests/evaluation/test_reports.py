"""Seeds put together, the table and the plots of small results that are written by hand."""

import copy
import itertools
import json
import math

import numpy as np
import pytest
from matplotlib.colors import to_hex

from reasoning.evaluation.reports import (
    COLOURS,
    COLUMNS,
    accuracy_by_tag,
    completions_table,
    estimate_bars,
    figures_over_seeds,
    learning_curves,
    over_seeds,
    pass_at_k_curves,
    plot_run,
    reinforcement_curves,
    run_figures,
    table,
    tag_by_strategy,
)

T_OF_TWO = 12.706205  # Student's t at 97.5%, one degree of freedom


def entry(value, half=0.05, n=100):
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def arm(level, counts, seconds=1.0):
    """An arm's figures: all at `level`, mutual information at half of ln 2."""
    return {
        **{name: entry(level) for name in COLUMNS},
        "pass@1_best_tag": {**entry(level), "tag": 1},
        "mutual_information": {
            **entry(math.log(2) / 2, half=math.log(2) / 10), "maximum": math.log(2), "share": 0.5
        },
        "tag_usage": {**entry(1.5), "shares": [0.25, 0.75]},
        "pass@k": {"k": [1, 2, 4], "curve": [entry(level), entry(level + 0.1), entry(0.9)]},
        "per_tag": [
            {"tag": tag, "pass@1": {**entry(level + tag / 10), "low": level}, "length": 7.0}
            for tag, row in enumerate(counts) if sum(row)
        ],
        "tag_by_strategy": counts,
        "training": {"steps": 10, "tokens": 300.0, "seconds": seconds, "device": "cpu"},
    }


def seed_results(level=0.5, seconds=1.0):
    """One seed: `mixed` of one tag, and `matched` of two that follow two of three columns."""
    return {
        "arms": {
            "mixed": arm(level, [[3, 6, 1], [0, 0, 0]], seconds),
            "matched": arm(level + 0.2, [[9, 0, 1], [1, 7, 2]], seconds),
        },
        "comparisons": {"pass@S of matched less mixed": entry(0.2 + level / 10)},
        "pretraining": {"steps": 10},
        "seed": 0,
    }


def metrics(*seeds, steps=4, phases=("base", "matched")):
    """Lines of metrics.jsonl: trace NLL (10 + step) * (seed + 1); entropy for `matched` only."""
    return [
        {
            "phase": phase, "step": step, "seed": seed, "trace_nll": (10.0 + step) * (seed + 1),
            "grad_norm": 1.0, **({"matching_entropy": 0.5} if phase == "matched" else {}),
        }
        for seed in seeds for phase in phases for step in range(steps)
    ]


# over seeds


def test_over_seeds_by_hand():
    """0.5 and 0.6: mean 0.55, deviation 0.1 / sqrt 2, so a half-width of t * 0.05."""
    first, second = seed_results(0.5, seconds=1.0), seed_results(0.6, seconds=4.0)
    merged = over_seeds([first, second])
    assert list(merged) == ["arms", "comparisons", "seeds"]
    assert merged["seeds"] == [first, second]
    assert list(merged["arms"]) == ["mixed", "matched"]
    expected = {
        "value": 0.55, "low": 0.55 - T_OF_TWO * 0.05, "high": 0.55 + T_OF_TWO * 0.05, "n": 2
    }
    mixed = merged["arms"]["mixed"]
    for name in ("pass@1", "pass@1_best_tag", "pass@1_own_tag", "pass@S", "cons@S"):
        assert mixed[name] == pytest.approx(expected, abs=1e-6)
    assert merged["arms"]["matched"]["pass@S"]["value"] == pytest.approx(0.75)
    difference = merged["comparisons"]["pass@S of matched less mixed"]
    assert difference["value"] == pytest.approx(0.255)
    assert difference["high"] - 0.255 == pytest.approx(T_OF_TWO * 0.005, abs=1e-6)
    assert difference["n"] == 2
    json.dumps(merged)


def test_over_seeds_keeps_the_curve_and_what_training_took():
    merged = over_seeds([seed_results(0.5, seconds=1.0), seed_results(0.7, seconds=4.0)])
    mixed = merged["arms"]["mixed"]
    assert mixed["pass@k"]["k"] == [1, 2, 4]
    assert [point["value"] for point in mixed["pass@k"]["curve"]] == pytest.approx([0.6, 0.7, 0.9])
    halves = [(point["high"] - point["low"]) / 2 for point in mixed["pass@k"]["curve"]]
    assert halves == pytest.approx([T_OF_TWO * 0.1, T_OF_TWO * 0.1, 0.0], abs=1e-6)
    assert {point["n"] for point in mixed["pass@k"]["curve"]} == {2}
    assert mixed["training"] == {"steps": 10.0, "tokens": 300.0, "seconds": 2.5}


def test_over_seeds_keeps_the_share_of_the_maximum_and_leaves_out_what_is_by_tag():
    first, second = seed_results(), seed_results()
    other = second["arms"]["matched"]["mutual_information"]
    other["value"], other["share"] = math.log(2), 1.0
    figures = over_seeds([first, second])["arms"]["matched"]
    information = figures["mutual_information"]
    assert information["maximum"] == math.log(2)
    assert information["share"] == pytest.approx(0.75)
    assert information["value"] == pytest.approx(0.75 * math.log(2))
    for by_tag in ("per_tag", "tag_by_strategy"):
        assert by_tag not in figures
    assert "shares" not in figures["tag_usage"] and "tag" not in figures["pass@1_best_tag"]


def test_over_seeds_leaves_the_seeds_as_they_are():
    seeds = [seed_results(0.5), seed_results(0.6), seed_results(0.7)]
    before = copy.deepcopy(seeds)
    assert over_seeds(seeds)["arms"]["mixed"]["pass@1"]["n"] == 3
    assert seeds == before


def test_over_seeds_needs_neither_comparisons_nor_training():
    seeds = [seed_results(0.5), seed_results(0.6)]
    for result in seeds:
        del result["comparisons"], result["arms"]["mixed"]["training"]
    merged = over_seeds(seeds)
    assert list(merged) == ["arms", "seeds"]
    assert "training" not in merged["arms"]["mixed"] and "training" in merged["arms"]["matched"]


def test_over_seeds_takes_the_arms_of_the_first():
    seeds = [seed_results(0.5), seed_results(0.6)]
    seeds[1]["arms"]["another"] = seeds[1]["arms"]["mixed"]
    assert list(over_seeds(seeds)["arms"]) == ["mixed", "matched"]


def without(*path):
    """Three seeds, of which the last lacks one entry."""
    seeds = [seed_results() for _ in range(3)]
    *folders, name = path
    part = seeds[2]
    for folder in folders:
        part = part[folder]
    del part[name]
    return seeds


@pytest.mark.parametrize(
    "path",
    [
        ("arms",),
        ("arms", "matched"),
        ("arms", "mixed", "cons@S"),
        ("arms", "mixed", "pass@k"),
        ("arms", "mixed", "training"),
        ("arms", "mixed", "training", "tokens"),
        ("comparisons",),
        ("comparisons", "pass@S of matched less mixed"),
    ],
)
def test_over_seeds_names_what_a_later_seed_lacks(path):
    with pytest.raises(ValueError, match=rf"results\[2\]: has no '{path[-1]}'"):
        over_seeds(without(*path))


def test_over_seeds_refuses_too_few_seeds_and_curves_that_do_not_fit():
    with pytest.raises(ValueError, match="results: 1 seed"):
        over_seeds([seed_results()])
    with pytest.raises(ValueError, match="results: 0 seed"):
        over_seeds([])
    seeds = [seed_results(), seed_results()]
    seeds[1]["arms"]["mixed"]["pass@k"]["k"] = [1, 2, 8]
    with pytest.raises(ValueError, match=r"\[1, 2, 4\], \[1, 2, 8\]"):
        over_seeds(seeds)


# table


def test_table_of_one_seed():
    lines = table(seed_results()).splitlines()
    headings = ["pass@1", "best tag", "own tag", "pass@S", "cons@S", "greedy cover", "MI/max %"]
    assert lines[0] == "arm           " + "".join(heading.rjust(15) for heading in headings)
    assert lines[1] == "mixed         " + 6 * "      50.0 ±5.0" + "     50.0 ±10.0"
    assert lines[2] == "matched       " + 6 * "      70.0 ±5.0" + "     50.0 ±10.0"
    assert lines[3:] == [
        "pass@S of matched less mixed: +25.0 points, 95% interval +20.0 to +30.0, n = 100"
    ]


def test_table_over_seeds_and_of_a_single_arm():
    merged = over_seeds([seed_results(0.5), seed_results(0.6)])
    lines = table(merged).splitlines()
    assert lines[1] == "mixed         " + 6 * "     55.0 ±63.5" + "      50.0 ±0.0"
    assert lines[3].endswith("n = 2")
    single = {"arms": {"matched_gfpo": arm(1.0, [[1]])}}
    assert table(single).splitlines()[1].startswith("matched_gfpo  " + "     100.0 ±5.0")
    assert len(table(single).splitlines()) == 2


def test_table_shows_the_columns_that_are_asked_for():
    entry = {"value": 0.5, "low": 0.4, "high": 0.6}
    results = {"arms": {"a_long_name_of_an_arm": {"greedy": entry, "pass@1": entry}}}
    lines = table(results, {"greedy": "best", "missing": "none"}).splitlines()
    assert lines[0] == "arm".ljust(21) + "best".rjust(15)
    assert lines[1] == "a_long_name_of_an_arm" + "50.0 ±10.0".rjust(15)


def test_table_shows_no_share_of_a_maximum_of_zero():
    results = seed_results()
    information = results["arms"]["mixed"]["mutual_information"]
    information.update(value=0.0, low=0.0, high=0.0, maximum=0.0, share=0.0)
    assert table(results).splitlines()[1].endswith("       0.0 ±0.0")


# plots


def band(ax, i=0):
    """Lower and upper limit by x of the i-th filled band."""
    points = np.concatenate([path.vertices for path in ax.collections[i].get_paths()])
    limits = {}
    for x, y in points:
        low, high = limits.get(x, (y, y))
        limits[float(x)] = float(min(low, y)), float(max(high, y))
    return limits


def test_learning_curves_of_one_seed_are_its_metrics():
    nll, norm, entropy = learning_curves(metrics(0)).axes
    assert [line.get_label() for line in nll.lines] == ["base", "matched"]
    for line in nll.lines:
        assert line.get_xdata().tolist() == [1, 2, 3, 4]
        assert line.get_ydata().tolist() == [10, 11, 12, 13]
    assert len(norm.lines) == 2
    assert [line.get_label() for line in entropy.lines] == ["matched"]
    assert to_hex(entropy.lines[0].get_color()) == COLOURS["matched"]
    assert not nll.collections, "one seed has no band"
    assert nll.get_yscale() == "log"


def test_learning_curves_of_several_seeds_are_mean_and_range():
    nll, _, entropy = learning_curves(metrics(0, 1, 4)).axes
    assert len(nll.lines) == len(nll.collections) == 2
    for i, line in enumerate(nll.lines):
        assert line.get_ydata() == pytest.approx(np.arange(10, 14) * (1 + 2 + 5) / 3)
        limits = band(nll, i)
        assert limits == {step + 1.0: (10.0 + step, 5 * (10.0 + step)) for step in range(4)}
    assert len(entropy.lines) == len(entropy.collections) == 1


def test_learning_curves_of_several_seeds_show_the_steps_that_all_have():
    rows = metrics(0, 1)
    for row in rows:
        if (row["seed"], row["step"]) in {(0, 1), (1, 2)}:
            row.pop("matching_entropy", None)
    nll, _, entropy = learning_curves(rows).axes
    assert [line.get_xdata().tolist() for line in nll.lines] == [[1, 2, 3, 4]] * 2
    assert entropy.lines[0].get_xdata().tolist() == [1, 4]


def test_a_metric_that_no_phase_has_gets_no_panel():
    rows = [{"phase": "mixture", "step": step, "seed": 0, "trace_nll": 2.0} for step in range(3)]
    (panel,) = learning_curves(rows).axes
    assert panel.get_ylabel() == "trace NLL (nats per token)"


def test_estimate_bars_are_values_in_their_intervals():
    series = {
        "before": {"greedy": entry(0.2), "vote": entry(0.9, half=0.1)},
        "after": {"vote": entry(1.0, half=0.0)},
    }
    (ax,) = estimate_bars(series, "accuracy (%)").axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["greedy", "vote"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([20, 90, 100])
    middles = [bar.get_y() + bar.get_height() / 2 for bar in ax.patches]
    assert middles == pytest.approx([-0.2, 0.8, 1.2])  # two bars side by side in every row
    ends = [line.vertices[:, 0] for bars in ax.collections for line in bars.get_paths()]
    np.testing.assert_allclose(ends, [[15, 25], [80, 100], [100, 100]])
    assert ax.yaxis_inverted()


def test_long_learning_curves_are_means_over_a_fiftieth():
    """150 steps: each point is the mean of three, at the last of them."""
    (line,) = learning_curves(metrics(0, steps=150, phases=("base",))).axes[0].lines
    assert line.get_xdata().tolist() == list(range(3, 151))
    assert line.get_ydata() == pytest.approx(np.arange(11, 159))


def test_reinforcement_curves_show_rewards_and_validation_at_their_steps():
    rows = [{"phase": "base", "seed": 0, "step": 0, "trace_nll": 1.0, "grad_norm": 1.0}]
    for step in (0, 1):
        rows.append({"phase": "matched_gfpo", "seed": 0, "step": step, "reward": 0.5 + step / 10})
    for step in (0, 2):
        rows.append({"phase": "matched_gfpo", "seed": 0, "step": step, "validation/pass@1": 0.25})
    reward, validation, *_ = reinforcement_curves(rows).axes
    assert [line.get_label() for line in reward.lines] == ["matched_gfpo"]
    assert reward.lines[0].get_xdata().tolist() == [1, 2]
    assert reward.lines[0].get_ydata() == pytest.approx([0.5, 0.6])
    assert validation.lines[0].get_xdata().tolist() == [0, 2]
    figures = run_figures(rows, ("forward", "backward"), seed_results())
    assert list(figures)[-1] == "reinforcement"


def test_accuracy_by_tag_has_a_bar_of_each_tag():
    (ax,) = accuracy_by_tag(seed_results()["arms"]).axes
    bars = ax.patches
    assert [bar.get_height() for bar in bars] == pytest.approx([50.0, 70.0, 80.0])
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [
        COLOURS["mixed"], COLOURS["matched"], COLOURS["matched"]
    ]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["mixed", "matched"]
    intervals = [
        segment[:, 1].tolist()
        for container in ax.containers if hasattr(container, "has_yerr")
        for lines in container.lines[2] for segment in lines.get_segments()
    ]
    assert np.array(intervals) == pytest.approx(np.array([[50, 55], [70, 75], [70, 85]]))
    assert ax.figure.get_suptitle() == ""


@pytest.mark.parametrize("num_tags", [1, 2, 4, 7, 16])
def test_bars_of_any_number_of_tags_stand_apart(num_tags):
    arms = {name: arm(0.5, [[1]] * num_tags) for name in ("random", "matched")}
    (ax,) = accuracy_by_tag({"mixed": arm(0.5, [[1]]), **arms}).axes
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches]
    assert len(ends) == 1 + 2 * num_tags
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ends))
    assert len({round(bar.get_width(), 9) for bar in ax.patches}) == 1
    centres = [np.mean(ends[:1]), np.mean(ends[1 : 1 + num_tags]), np.mean(ends[1 + num_tags :])]
    assert centres == pytest.approx([0, 1, 2])


def test_tag_by_strategy_writes_the_shares_of_sampled_tags():
    figure = tag_by_strategy(seed_results()["arms"], ("forward", "backward"))
    mixed, matched = figure.axes
    assert [text.get_text() for text in mixed.texts] == ["30", "60", "10"]
    assert [text.get_text() for text in matched.texts] == ["90", "0", "10", "10", "70", "20"]
    assert [text.get_position() for text in matched.texts][:4] == [(0, 0), (1, 0), (2, 0), (0, 1)]
    np.testing.assert_allclose(
        matched.images[0].get_array(), [[0.9, 0.0, 0.1], [0.1, 0.7, 0.2]]
    )
    assert [text.get_text() for text in matched.get_xticklabels()] == [
        "forward", "backward", "none"
    ]
    assert [text.get_text() for text in mixed.get_yticklabels()] == ["tag 0"]
    assert matched.get_title() == "matched: 50% of max. MI"


def test_many_arms_stand_in_rows_of_four():
    arms = {f"arm {i}": arm(0.5, [[3, 1]]) for i in range(6)}
    axes = tag_by_strategy(arms, ("forward",)).axes
    assert len(axes) == 6
    places = [ax.get_subplotspec().rowspan.start for ax in axes]
    assert places == [0, 0, 0, 0, 1, 1]


def test_tags_keep_their_numbers_in_the_heat_map():
    arms = {"matched": arm(0.5, [[0, 0], [2, 2], [0, 0], [4, 0]])}
    (ax,) = tag_by_strategy(arms, ("forward",)).axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["tag 1", "tag 3"]
    assert [text.get_text() for text in ax.texts] == ["50", "50", "100", "0"]


def test_pass_at_k_curves_are_values_in_their_intervals():
    (ax,) = pass_at_k_curves(seed_results()["arms"]).axes
    assert [line.get_label() for line in ax.lines] == ["mixed", "matched"]
    assert list(ax.lines[0].get_xdata()) == [1, 2, 4]
    assert ax.lines[0].get_ydata() == pytest.approx([50, 60, 90])
    assert ax.lines[1].get_ydata() == pytest.approx([70, 80, 90])
    limits = band(ax, 1)
    assert list(limits) == [1, 2, 4]
    assert np.array(list(limits.values())) == pytest.approx(
        np.array([[65, 75], [75, 85], [85, 95]])
    )
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2", "4"]


def test_arms_have_colours_of_their_own():
    names = ("mixed", "random", "fixed", "matched", "mixed_grpo", "matched_gfpo", "mixed_t1")
    assert len({COLOURS[name] for name in names}) == len(names)
    variants = {name: arm(0.5, [[1]]) for name in ("K=4", "mixed", "K=16")}
    (ax,) = pass_at_k_curves(variants).axes
    lines = [to_hex(line.get_color()) for line in ax.lines]
    bands = [to_hex(shade.get_facecolor()[0]) for shade in ax.collections]
    assert lines == bands and len(set(lines)) == 3, "line and band agree, no two arms are alike"
    assert lines[1] == to_hex(COLOURS["mixed"])


def test_figures_of_one_seed_have_no_title():
    figures = run_figures(metrics(0), ("forward", "backward"), seed_results())
    assert list(figures) == ["learning_curves", "accuracy_by_tag", "pass_at_k", "tag_by_strategy"]
    assert all(figure.get_suptitle() == "" for figure in figures.values())


def test_a_corpus_has_no_figure_of_strategies():
    figures = run_figures(metrics(0), (), seed_results())
    assert list(figures) == ["learning_curves", "accuracy_by_tag", "pass_at_k"]


def test_figures_over_seeds_say_which_of_them_show_the_first():
    merged = over_seeds([seed_results(0.5), seed_results(0.7)])
    figures = run_figures(metrics(0, 1), ("forward", "backward"), merged)
    titles = {name: figure.get_suptitle() for name, figure in figures.items()}
    assert titles == {
        "learning_curves": "", "accuracy_by_tag": "first of 2 seeds",
        "tag_by_strategy": "first of 2 seeds", "pass_at_k": "",
    }
    heights = [bar.get_height() for bar in figures["accuracy_by_tag"].axes[0].patches]
    assert heights == pytest.approx([50.0, 70.0, 80.0]), "of the first seed"
    curve = figures["pass_at_k"].axes[0].lines[0].get_ydata()
    assert curve == pytest.approx([60, 70, 90]), "the mean over seeds"
    assert len(figures["learning_curves"].axes[0].collections) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_plot_run_writes_every_figure(tmp_path, count):
    seeds = [seed_results(0.5 + seed / 10) for seed in range(count)]
    results = seeds[0] if count == 1 else over_seeds(seeds)
    lines = [json.dumps(row) + "\n" for row in metrics(*range(count))]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "plots").mkdir()
    plot_run(tmp_path, ("forward", "backward"), results)
    written = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    assert set(written) == {
        "learning_curves.png", "accuracy_by_tag.png", "tag_by_strategy.png", "pass_at_k.png"
    }
    assert all(content.startswith(b"\x89PNG") for content in written.values())


def test_a_long_completion_keeps_both_ends():
    row = {"prompt": "1 2 make 3 :", "completion": "1 + 2 = 3 yes answer 1 + 2 = 3",
           "reward": 1.0, "reason": "correct", "tag": 2}
    heading, whole = completions_table([row], 200).splitlines()
    cut = completions_table([row], 60).splitlines()[1]
    assert heading.split() == ["reward", "reason", "tag", "completion"]
    assert whole.split(maxsplit=3)[:3] == ["1.00", "correct", "2"]
    assert whole.endswith(f"{row['prompt']} {row['completion']}")
    assert len(cut) <= 60 and cut.split()[3] == "1" and ".." in cut and cut.endswith("2 = 3")


def test_figures_over_seeds_by_hand():
    def seed(value, tokens, best):
        entry = {"value": value, "low": 0.0, "high": 1.0, "n": 40, "tokens": tokens}
        return {"rows": {"greedy": entry}, "curve": [entry, entry], "best": best}

    both = figures_over_seeds([seed(0.2, 10, "left"), seed(0.4, 20, "tree")])
    entry = both["rows"]["greedy"]
    assert entry["value"] == pytest.approx(0.3) and entry["n"] == 2 and entry["tokens"] == 15
    assert entry["low"] < 0.2 and entry["high"] > 0.4, "two seeds tell little"
    assert both["curve"] == [entry, entry] and both["best"] == ["left", "tree"]
