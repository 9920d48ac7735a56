r"""Score a policy on held-out problems, or completions that were made elsewhere.

    python -m experiments.evaluate --workdir=runs/eval --config=experiments/configs/gsm8k.py \
        --config.model.policy=runs/gsm8k/policies/seed0/mixed_grpo
    python -m experiments.evaluate --workdir=runs/qwen \
        --config=experiments/configs/gsm8k.py:imported \
        --config.model.directory=models/Qwen2.5-1.5B-Instruct
    python -m experiments.evaluate --workdir=runs/judged --completions=FILE

The protocols are those of Set Supervised Fine-Tuning (2510.05132): greedy and sampled under one
tag, under the tag that the policy draws itself, and under all tags alike, with votes of one sample
from each. FILE holds `{"completion": ..., "gold": ...}` a line; `kind` (number, expression or
text) and `prompt` may stand beside them.
"""

import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import flags

from experiments import launch, sources
from experiments.sft import Setup, mesh_shape
from reasoning.data.questions import KINDS, kind_of
from reasoning.data.tasks.base import Verdict, distinct_problems
from reasoning.evaluation.estimators import (
    cons_at_k,
    g_pass_at_k,
    mean_estimate,
    pass_curve,
    wilson_interval,
)
from reasoning.evaluation.policies import Judged, Policy, judge, sample_problems
from reasoning.rewards.judges import check_gold
from reasoning.run_files import CONFIG, read_object
from reasoning.runtime.meshes import check_mesh, make_mesh, use_mesh
from reasoning.runtime.progress import announced
from reasoning.runtime.runs import Run
from reasoning.sampling.allocation import interleave
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG, check_lengths

PROGRAM = "experiments.evaluate"
THRESHOLDS = (0.5, 1.0)  # tau of G-Pass@k: half of the samples, and all
# Reasons of completions out of which no single answer could be taken.
NO_ANSWER = ("no_answer", "unbalanced", "ambiguous", "too_long")
BATCH = 10_000  # completions of a file that are judged at a time

_COMPLETIONS = flags.DEFINE_string("completions", None, "A JSONL file to be judged.")


class Row(NamedTuple):
    """One line of a completions file; a question to the judge."""

    completion: str
    answer: str  # gold
    kind: str
    prompt: str


def set_up(config: ml_collections.ConfigDict) -> Setup:
    """What is evaluated: problems of one split, the model, and the judge.

    Raises:
      ValueError: what cannot work, in one sentence.
    """
    if config.model.directory is None and config.model.policy is None:
        raise ValueError(
            "model.policy is missing: name what a run has trained (RUN/policies/PHASE), or a "
            "model.directory."
        )
    settings, task = config.evaluation, sources.make_problems(config)
    text_format = sources.make_format(config, task)
    model = sources.make_model(config, text_format)
    check_mesh(mesh_shape(config), model)
    filters(config).check()
    if not 0 <= settings.tag < model.num_strategies:
        raise ValueError(
            f"evaluation.tag={settings.tag}: the policy has {model.num_strategies} tags, from 0."
        )
    if settings.samples_per_tag < 1:
        raise ValueError(f"evaluation.samples_per_tag={settings.samples_per_tag}: at least 1.")
    test = distinct_problems(task, settings.split, config.seed, settings.problems)
    prompt_length = max(len(text_format.prompt_ids(task.prompt(problem))) for problem in test)
    check_lengths(model, prompt_length, 2)
    judge, mesh = sources.make_judge(config, task), make_mesh(mesh_shape(config))
    return Setup(task, text_format, model, judge, prompt_length, test, [], mesh)


def policy_of_run(run: str | Path, phase: str) -> tuple[Setup, Policy]:
    """What a run has trained, ready to be sampled from, and the run's problems, format and judge.

    It imports the code that the run's configuration names (MODULE:ATTRIBUTE): open your own runs.

        setup, policy = policy_of_run("runs/quickstart", "seed0/matched")
        sample_problems(policy, setup.test, ...)

    Args:
      phase: a directory below RUN/policies.

    Raises:
      ValueError: there is no such run or policy, or it is damaged.
    """
    about = Path(run) / CONFIG
    if not about.is_file():
        raise ValueError(f"run={run}: holds no {CONFIG}; name the --workdir of a run.")
    config = ml_collections.ConfigDict(read_object(about)["config"])
    config.model.policy = str(Path(run) / "policies" / phase)
    setup = set_up(config)
    key = launch.run_key(config.seed, "init")
    return setup, setup.policy(sources.first_params(config, setup.model, key, setup.mesh))


def filters(config: ml_collections.ConfigDict) -> Filters:
    """How completions are sampled, but for the greedy ones."""
    settings = config.evaluation
    return Filters(settings.temperature, settings.top_k, settings.top_p, settings.min_p)


def settings_hash(setup: Setup, config: ml_collections.ConfigDict) -> str:
    """Of all that an accuracy depends on beside the weights: two figures compare if it is equal."""
    chat, tags = setup.text_format.chat, setup.text_format.tags
    told = {
        "prompt": setup.task.prompt(setup.test[0]),
        "chat": chat and chat.source,
        "tags": tags and [tags.prefix, tags.ids, tags.suffix],
        "tokenizer": setup.text_format.tokenizer.fingerprint,
        "problems": [setup.task.key(problem) for problem in setup.test],
        "evaluation": config.evaluation.to_dict(),
        "judge": config.judge.to_dict(),
        "room": setup.model.max_length - setup.prompt_length,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def estimates(judged: Judged, num_tags: int) -> dict[str, Any]:
    """The figures of samples `[P, R]` that are tag-major, R / num_tags of each tag.

    pass@k and votes of k take the samples of the tags in turn.
    """
    num_problems, num_samples = judged.correct.shape
    split = num_problems, num_tags, num_samples // num_tags
    correct = interleave(judged.correct.reshape(split))
    votes = interleave(judged.votes.reshape(split))
    solved = judged.correct.sum(axis=1)
    ks = [k for k in (1, 2, 4, 6, 8, 16, 32, 64) if k <= num_samples]
    curve = pass_curve(judged.correct.reshape(split), ks)
    return {
        "n": num_problems,
        "samples": num_samples,
        "pass@1": mean_estimate(judged.correct.mean(axis=1)).as_dict(),
        "pass@k": {f"{k}": mean_estimate(column).as_dict() for k, column in zip(ks, curve.T)},
        "cons@k": {
            f"{k}": mean_estimate(cons_at_k(votes, correct, k)).as_dict() for k in ks if k > 1
        },
        "g_pass@k": {
            f"{k}, tau {tau}": mean_estimate(g_pass_at_k(num_samples, solved, k, tau)).as_dict()
            for k in ks if k > 1 for tau in THRESHOLDS
        },
        "over_long": mean_estimate((judged.reasons == "over_long").mean(axis=1)).as_dict(),
        "no_answer": mean_estimate(np.isin(judged.reasons, NO_ANSWER).mean(axis=1)).as_dict(),
        "reasons": shares(judged.reasons.ravel()),
        "methods": shares(judged.methods.ravel()),
        "tokens": int(judged.lengths.sum()),
    }


def shares(names: Any) -> dict[str, float]:
    """How large a part of all each name has, the most frequent first."""
    return {name: count / len(names) for name, count in Counter(names).most_common()}


def run_protocols(run: Run, setup: Setup, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Each protocol's figures; one that an earlier process has finished is not run again."""
    key = launch.run_key(config.seed, "evaluate")
    own_key, tag_key = jax.random.split(key)
    init_key = launch.run_key(config.seed, "init")
    params = sources.first_params(config, setup.model, init_key, setup.mesh)
    policy, settings, count = setup.policy(params), config.evaluation, setup.model.num_strategies
    one, own = np.array([settings.tag]), np.full(count * settings.samples_per_tag, OWN_TAG)
    every = np.repeat(np.arange(count), settings.samples_per_tag)
    protocols = {
        "greedy": (one, key, Filters(temperature=0.0), 1),
        "one tag": (np.repeat(one, settings.samples_per_tag), tag_key, filters(config), 1),
        "own tag": (own, own_key, filters(config), 1),
        "all tags": (every, tag_key, filters(config), count),
    }
    if count == 1:  # every protocol gives the only tag
        del protocols["own tag"], protocols["all tags"]

    def work(name: str) -> tuple[None, dict[str, Any]]:
        tags, sample_key, chosen, num_tags = protocols[name]
        with announced(f"{name}  evaluation on {len(setup.test)} problems"):
            drawn = sample_problems(policy, setup.test, tags, sample_key, chosen, settings.batch)
            judged = judge(policy, setup.test, drawn.tokens, drawn.mask)
        rows = judged.rows(setup.task, setup.test)
        run.log_completions({"protocol": name, **row} for row in rows)
        figures = estimates(judged, num_tags)
        # Of the median call: the first one compiles.
        rate = figures["tokens"] / (statistics.median(drawn.seconds) * len(drawn.seconds))
        return None, {**figures, "tokens_per_second": rate}

    return {name: run.phase(name, partial(work, name))[1] for name in protocols}


def evaluate(
    run: Run, setup: Setup, settings: str, config: ml_collections.ConfigDict
) -> dict[str, Any]:
    """results.json of a policy; `settings` is their hash."""
    with use_mesh(setup.mesh):
        protocols = run_protocols(run, setup, config)
    return {"problems": setup.task.name, "settings": settings, "protocols": protocols}


def table(results: Mapping[str, Any]) -> str:
    """One line per protocol, in percent, with the half-width of the 95% interval of pass@1."""
    headings = ("n", "samples", "pass@1", "pass@k", "cons@k", "G-pass@k", "over-long", "no answer",
                "tokens", "tokens/s")
    lines = [f"{results['problems']}, settings {results['settings']}"]
    lines.append(f"{'':10}" + "".join(f"{heading:>12}" for heading in headings))
    for name, figures in results["protocols"].items():
        first = figures["pass@1"]
        half = 50 * (first["high"] - first["low"])
        cells = [
            figures["n"], figures["samples"], f"{100 * first['value']:.1f} ±{half:.1f}",
            *(_of_most(figures[key]) for key in ("pass@k", "cons@k", "g_pass@k")),
            f"{100 * figures['over_long']['value']:.1f}",
            f"{100 * figures['no_answer']['value']:.1f}",
            figures["tokens"], f"{figures['tokens_per_second']:.0f}",
        ]
        lines.append(f"{name:10}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _of_most(by_k: Mapping[str, Any]) -> str:
    """The figure of the largest k, and that k: of G-Pass@k, where all must be right."""
    if not by_k:
        return ""
    k, figure = list(by_k.items())[-1]
    return f"{100 * figure['value']:.1f} ({k.partition(',')[0]})"


def read_completions(path: Path) -> list[Row]:
    """The lines of a completions file.

    Raises:
      ValueError: no such file, or a line that is blank or malformed, with its number.
    """
    if not path.is_file():
        raise ValueError(f"completions={path}: there is no such file.")
    rows, content = [], path.read_bytes().rstrip()
    if not content:
        raise ValueError(f"completions={path}: holds no completions.")
    # Split at newlines alone: a completion may hold other characters that end lines.
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            raise ValueError(f"{path}, line {number}: is blank; verdicts are line for line.")
        try:
            found = json.loads(line)
        except RecursionError:
            raise ValueError(f"{path}, line {number}: is nested too deeply.") from None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: is no JSON ({error}).") from error
        rows.append(_row(found, f"{path}, line {number}"))
    return rows


def _row(found: Any, where: str) -> Row:
    if not isinstance(found, dict):
        raise ValueError(f"{where}: is no JSON object.")
    gold = found.get("gold")
    if isinstance(gold, int | float) and not isinstance(gold, bool):
        gold = str(gold)
    values = {"completion": found.get("completion"), "gold": gold,
              "prompt": found.get("prompt", ""), "kind": found.get("kind", "expression")}
    for name, value in values.items():
        if not isinstance(value, str):
            kind = "a text or a number" if name == "gold" else "a text"
            raise ValueError(f"{where}: {name}={value!r} must be {kind}.")
    if "kind" not in found and kind_of([gold]) == "number":
        values["kind"] = "number"
    if values["kind"] not in KINDS:
        raise ValueError(f"{where}: kind={values['kind']!r} must be one of {', '.join(KINDS)}.")
    try:
        check_gold(gold, values["kind"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Row(values["completion"], gold, values["kind"], values["prompt"])


def judge_file(
    run: Run, rows: list[Row], settings: ml_collections.ConfigDict
) -> tuple[None, dict[str, Any]]:
    """Judge every line; the verdicts go to completions.jsonl, line for line."""
    judge_rows = sources.answer_judge(rows, settings)
    started, verdicts = time.monotonic(), list[Verdict]()
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        found = judge_rows([row.prompt for row in part], [row.completion for row in part], part)
        run.log_completions(
            {
                "correct": verdict.correct, "method": verdict.method, "reason": verdict.reason,
                "milliseconds": round(verdict.milliseconds, 3), "answer": verdict.answer,
                "gold": row.answer,
            }
            for row, verdict in zip(part, found, strict=True)
        )
        verdicts += found
    seconds = time.monotonic() - started
    correct = sum(verdict.correct for verdict in verdicts)
    return None, {
        "n": len(rows),
        "accuracy": wilson_interval(correct, len(rows)).as_dict(),
        "reasons": shares([verdict.reason for verdict in verdicts]),
        "methods": shares([verdict.method for verdict in verdicts]),
        "answers_per_second": len(rows) / seconds,
    }


def score_completions(path: Path, config: ml_collections.ConfigDict, workdir: str) -> None:
    """Judge a file of completions in a run directory of its own."""
    with launch.refusals():
        rows = read_completions(path)
        told = {"judge": config.judge.to_dict(), "completions": launch.fingerprint(rows)}
        results = launch.finished_results(workdir, PROGRAM, told)
    if results is not None:
        print(f"{workdir}: finished, nothing is changed.")
    else:
        with launch.refusals(), launch.usable_directory():
            run = Run(workdir, PROGRAM, told, saving=launch.saving())
            with run:
                results = run.phase("completions", partial(judge_file, run, rows, config.judge))[1]
                run.finish(results)
    first = results["accuracy"]
    print(f"{results['n']} completions: {100 * first['value']:.2f}% right "
          f"({100 * first['low']:.2f} to {100 * first['high']:.2f}); by reason: "
          + ", ".join(f"{name} {100 * part:.2f}%" for name, part in results["reasons"].items()))


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Evaluate a policy, or judge a file."""
    if flags.FLAGS.is_parsed() and _COMPLETIONS.value:
        score_completions(Path(_COMPLETIONS.value), config, workdir)
        return

    launch.run_study(PROGRAM, config, workdir, set_up, settings_hash, evaluate, table)


if __name__ == "__main__":
    launch.start(main)
