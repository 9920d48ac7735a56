"""Write what a run has done as one HTML page: figures, curves, and every completion to browse.

    python -m experiments.report --workdir=runs/quickstart
    python -m experiments.report --workdir=runs/mixed --workdir=runs/matched --output=both.html

The page needs no network and no server. Several runs lie side by side, with the settings in which
they differ. A run that has not finished, or was killed, is shown as far as it is. Nothing in a run
directory changes but the page, which is RUN/report.html unless --output says otherwise.

Steps are coloured by the task's own check. Log-probabilities and entropies of tokens are computed
here, with the policies that the run has kept, for the completions of a few problems. Neither is
done for a run whose task or corpus is code of its own, unless --own_code says so.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections

from experiments import launch, sources
from reasoning.data.corpora import Corpus
from reasoning.data.tasks.base import Problems, StepJudge, distinct_problems
from reasoning.evaluation.records import Record, read_records
from reasoning.evaluation.report_completions import kept_lines, no_marks, step_marks
from reasoning.evaluation.report_html import View, make_page
from reasoning.evaluation.token_scores import TokenScores, token_scores
from reasoning.models.config import count_parameters
from reasoning.models.transformer import init_params
from reasoning.names import is_own
from reasoning.runtime.checkpoints import CannotRestore

SCORED = 8  # problems, unless the flag says otherwise
LARGEST = 100_000_000  # parameters of a model that is used without being asked for
SPLITS = {"test": "problems", "validation": "validation_problems"}  # split -> its count's name
# What reading an older or another program's configuration may end with; RuntimeError: of a device.
UNREADABLE = (
    ValueError, KeyError, AttributeError, TypeError, OSError, RuntimeError, CannotRestore
)


def code_of(config: Mapping[str, Any]) -> str | None:
    """The code of its own that a run's configuration names as task or corpus, MODULE:ATTRIBUTE."""
    parts = (config.get(part) for part in ("task", "corpus"))
    names = (part.get("name") for part in parts if isinstance(part, Mapping))
    return next((name for name in names if isinstance(name, str) and is_own(name)), None)


def held_out(config: ml_collections.ConfigDict, task: Problems) -> dict[str, Any]:
    """The problems that a run is validated and judged on, by their prompts."""
    return {
        task.prompt(problem): problem
        for split, count in SPLITS.items()
        for problem in distinct_problems(task, split, config.seed, config.evaluation[count])
    }


def view(record: Record) -> View:
    """How the steps of a run's completions are judged, or why they are not."""
    if not record.completions:
        return View(no_marks)
    try:
        config = ml_collections.ConfigDict(dict(record.config))
        task = sources.make_problems(config)
        if not isinstance(task, StepJudge):
            why = "answers of a corpus have no steps" if isinstance(task, Corpus) else (
                f"the task {task.name!r} has no judge_steps"
            )
            return View(no_marks, task.strategies, [f"Steps have no colours: {why}."])
        problems = held_out(config, task)
    except UNREADABLE as error:
        return View(no_marks, (), [f"Steps have no colours: {_sentence(error)}"])
    asked = {row.get("prompt") for row in record.completions}
    note = "Steps are coloured by the task's check, which asks for no strategy"
    if missing := len(asked - problems.keys()):
        note += f"; {missing} of {len(asked)} problems are not those held out, and have no colours"
    return View(step_marks(task, problems), task.strategies, [f"{note}."])


def score_run(
    record: Record, lines: Sequence[int], count: int | None
) -> tuple[dict[int, TokenScores], list[str]]:
    """Score the completions of a run's first problems under the policies that wrote them.

    Args:
      lines: of completions.jsonl, that the page holds.
      count: of problems, of the evaluation at the end; None: a few, of a small model from scratch
        alone.

    Returns:
      line of completions.jsonl -> scores, and sentences on which there are or why not.
    """
    largest = LARGEST if count is None else None
    if count is None:
        if (record.config.get("model") or {}).get("directory") is not None:
            return {}, ["No token scores: the model is imported; --scored=N asks for them."]
        count = SCORED
    if count == 0:
        return {}, ["No token scores: --scored=0."]
    final = [i for i in lines if (row := record.completions[i]).get("step") is None
             and "arm" in row and isinstance(row.get("tag"), int)]
    asked = list(dict.fromkeys(record.completions[i].get("prompt") for i in final))[:count]
    groups: dict[tuple[int, str], list[int]] = {}
    for i in final:
        row = record.completions[i]
        if row.get("prompt") in asked and row["tag"] >= 0:
            groups.setdefault((row.get("seed", 0), row["arm"]), []).append(i)
    scores: dict[int, TokenScores] = {}
    failed: dict[str, list[str]] = {}
    for (seed, arm), own in groups.items():
        try:
            scores |= _score_arm(record, seed, arm, own, largest)
        except UNREADABLE as error:
            failed.setdefault(_sentence(error), []).append(f"{arm} (seed {seed})")
    notes = [f"No token scores for {', '.join(arms)}: {why}" for why, arms in failed.items()]
    if scores:
        notes.insert(0, (
            f"Token scores (log-probability and entropy at temperature 1, the fork first) for "
            f"{len(scores):,} completions, those of the first {len(asked)} problems of the "
            "evaluation at the end (--scored); those of validations have none, as the run does not "
            "keep the policies of those steps."
        ))
    elif not failed:
        notes.append("No token scores: no completion here tells its arm and tag.")
    return scores, notes


def _score_arm(
    record: Record, seed: int, arm: str, lines: Sequence[int], largest: int | None
) -> dict[int, TokenScores]:
    """Score completions of one policy.

    Raises:
      ValueError: the run does not hold that policy, it is another model's, or has more parameters
        than `largest`.
    """
    config = ml_collections.ConfigDict(dict(record.config))
    folder, place = policy_folder(record.path, config.seed, seed, arm)
    config.model.policy, config.model.policy_seed = str(folder), place
    text_format = sources.make_format(config, sources.make_problems(config))
    model = sources.make_model(config, text_format)
    size = count_parameters(model)
    if largest is not None and size > largest:
        raise ValueError(f"the model has {size:,} parameters; --scored=N asks for them.")
    shapes = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes
    )
    params = sources.load_policy(config.model.policy, config.model.policy_seed, like)
    rows = [record.completions[i] for i in lines]
    found = token_scores(
        params, model, text_format,
        prompts=[row["prompt"] for row in rows],
        tags=[row["tag"] for row in rows],
        texts=[row["completion"] for row in rows],
        ended=[row["reason"] != "over_long" for row in rows],
    )
    return {i: scores for i, scores in zip(lines, found, strict=True) if scores is not None}


def policy_folder(path: Path, first: int, seed: int, arm: str) -> tuple[Path, int]:
    """Where a run keeps the policy of a seed and an arm, and its place among those of that phase.

    Raises:
      ValueError: nowhere.
    """
    policies = (path / "policies").resolve()
    for folder, place in ((f"seed{seed}", 0), (f"seed{first}", seed - first)):
        found = (policies / folder / arm).resolve()
        if found.is_dir() and found.parent == policies / folder:
            return found, place
    raise ValueError(f"the run holds no policies/seed{seed}/{arm}.")


def _sentence(error: Exception) -> str:
    """What went wrong, as one sentence."""
    words = str(error)
    if isinstance(error, RuntimeError):  # of a device: the rest of its lines are its memory
        words = words.partition("\n")[0]
    words = " ".join(words.split())
    if isinstance(error, KeyError | AttributeError | TypeError):
        words = f"its configuration cannot be read here ({words})"
    return words if words.endswith(".") else f"{words}."


def report(
    workdirs: Sequence[str], output: str | None, scored: int | None, limit: int,
    own_code: bool = False,
) -> Path:
    """Write the page; returns where it is.

    Args:
      scored: problems whose completions are scored, as `score_run` takes it.
      limit: about the most completions that the page holds.
      own_code: import the code that a run's configuration names.

    Raises:
      ValueError: a workdir holds no run, or what it holds is damaged.
    """
    records = read_records(list(workdirs))
    scores, views = {}, []
    kept = kept_lines(records, limit)
    for run, (record, lines) in enumerate(zip(records, kept, strict=True)):
        if not own_code and (name := code_of(record.config)):
            note = f"the run names code of its own, {name}; --own_code imports it."
            views.append(View(no_marks, (), [f"No colours of steps, no token scores: {note}"]))
            continue
        seen = view(record)
        found, notes = score_run(record, lines, scored)
        scores |= {(run, line): each for line, each in found.items()}
        views.append(View(seen.marks, seen.strategies, [*seen.notes, *notes]))
    page = make_page(records, views, scores, kept)
    path = records[0].path / "report.html" if output is None else Path(output)
    path.write_bytes(page)
    return path


def flag_parser() -> argparse.ArgumentParser:
    """The flags; absl's would meet --workdir of the launchers, which is one directory."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", action="append", required=True, help="a run; repeatable")
    parser.add_argument("--output", help="the page; RUN/report.html of the first run if left out")
    parser.add_argument(
        "--scored", type=int, metavar="N",
        help="problems whose completions' tokens are scored, 0 for none (default: "
        f"{SCORED}; 0 of an imported model, or one of more than {LARGEST:,} parameters)",
    )
    parser.add_argument(
        "--completions", type=int, default=60_000, metavar="N",
        help="about the most completions that the page holds (default: 60000)",
    )
    parser.add_argument(
        "--own_code", action="store_true",
        help="import the task or corpus of its own (MODULE:ATTRIBUTE) that a run names",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Parse the flags and write the page."""
    given = flag_parser().parse_args(argv)
    for name in ("scored", "completions"):
        value = getattr(given, name)
        if value is not None and value < 0:
            launch.refuse(f"{name}={value}: must be 0 or more.")
    launch.keep_programs()
    with launch.refusals():
        path = report(
            given.workdir, given.output, given.scored, given.completions, given.own_code
        )
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser.")


if __name__ == "__main__":
    main(sys.argv[1:])
