"""Run directories made by hand: what a report reads of them."""

import json

import pytest

ARMS = ("mixed", "matched")


def estimate(value, half=0.05, **more):
    return {"value": value, "low": value - half, "high": value + half, "n": 40, **more}


def arm_figures(shift=0.0):
    """What results.json holds of an arm, as far as tables and figures read it."""
    curve = [estimate(0.5 + shift), estimate(0.7 + shift)]
    return {
        "pass@1": estimate(0.5 + shift),
        "pass@S": estimate(0.7 + shift),
        "mutual_information": estimate(0.6, maximum=1.2, share=0.5),
        "vendi": estimate(3.25),
        "pass@k": {"k": [1, 2], "curve": curve},
        "tag_by_strategy": [[30, 0, 0, 0, 10], [0, 40, 0, 0, 0]],
        "per_tag": [
            {"tag": tag, "pass@1": estimate(0.5), "length": 20.5, "validity": 0.75}
            for tag in range(2)
        ],
        "training": {"steps": 3},
    }


def learning_rows(arms=ARMS, seeds=(0, 1), steps=3):
    rows = [
        {"phase": arm, "step": step, "seed": seed, "loss": 2.0 - 0.1 * step + 0.01 * seed,
         "grad_norm": 1.0, "tokens": 100}
        for arm in arms for seed in seeds for step in range(steps)
    ]
    return rows + [
        {"phase": "matched_gfpo", "step": step, "seed": 0, "reward": 0.5,
         "completions/mean_length": 20.0 + step, "reasons/correct": 0.5,
         "reasons/wrong_equation": 0.5, "tags/share": [0.25, 0.75], "validation/pass@1": 0.5}
        for step in range(steps)
    ]


@pytest.fixture
def write_run(tmp_path):
    """`write_run(name, completions, ...)`: a run directory with these lines."""

    def write(name="run", completions=(), metrics=(), results=None, config=None, table=None,
              program="experiments.quickstart"):
        path = tmp_path / name
        path.mkdir(parents=True)
        about = {
            "program": program, "config": config or {"seed": 0, "rl": {"steps": 3}},
            "versions": {"jax": "0.10.2", "device": "cpu"}, "git": "0123456789abcdef",
            "command": ["quickstart.py", "--workdir=runs/it"],
        }
        (path / "config.json").write_text(json.dumps(about))
        (path / "attempts.jsonl").write_text(json.dumps({"attempt": 1, "time": 1.8e9}) + "\n")
        for file, rows in (("metrics", metrics), ("completions", completions)):
            (path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if results is not None:
            (path / "results.json").write_text(json.dumps(results))
        if table is not None:
            (path / "table.txt").write_text(table)
        return path

    return write


@pytest.fixture
def whole_run(write_run):
    """`whole_run(name, completions, config, shift, metrics)`: a finished run of two arms."""

    def write(name="run", completions=(), config=None, shift=0.0, metrics=None):
        arms = {arm: arm_figures(shift + 0.1 * i) for i, arm in enumerate(ARMS)}
        results = {
            "arms": arms, "seconds": 120.0,
            "comparisons": {"pass@S of matched less pass@S of mixed": estimate(0.1)},
        }
        metrics = learning_rows() if metrics is None else metrics
        return write_run(name, completions, metrics, results, config)

    return write
