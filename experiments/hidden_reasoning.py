r"""A policy that has learned to reason, a decoder that does not show it, and what brings it out.

    python -m experiments.hidden_reasoning --workdir=runs/hidden \
        --config=experiments/configs/hidden_reasoning.py
    python -m experiments.hidden_reasoning --workdir=runs/hidden_full \
        --config=experiments/configs/hidden_reasoning.py:full

1. A policy of 0.1M parameters learns to multiply eight elements of a group from problems of two
   kinds: a little over half of them with the bare answer, which it cannot find without steps, the
   others with every step. Nothing in the prompt says which of the two is wanted. The toss of a coin
   words each step in one of two ways, `3 1 = 5` or `3 1 . 5`.
2. Greedy decoding opens with the likelier kind: the bare answer, a guess.
3. The other kind is there. Sampling finds it now and then, and a vote over samples prefers it, for
   guesses do not agree. CoT-decoding (arXiv 2402.10200) goes on from each of the k likeliest first
   tokens and believes the path whose answer is certain, as long as every one of these tokens is
   plausible: a token that the policy would hardly write opens a path that is wrong and certain.
   The likelihood of a path does not tell: any one wording of the steps is less likely than a guess.
4. Reinforcement learning with the verifier's reward makes the steps the default, and greedy
   decoding solves the task.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from numpy.typing import ArrayLike

from experiments import launch, sources
from experiments.rl import Problems, check_rl, reinforce, rl_config, rl_problems
from experiments.sft import Setup, check_rows, set_up, train
from reasoning.data.corpora import Corpus
from reasoning.data.pipelines import Example, named_examples
from reasoning.data.tasks.base import parse_completion
from reasoning.evaluation import reports
from reasoning.evaluation.estimators import mean_estimate, wilson_interval
from reasoning.evaluation.policies import Judged, sample_and_judge
from reasoning.evaluation.searches import Paths, cot_paths
from reasoning.run_files import METRICS
from reasoning.runtime.runs import Run
from reasoning.sampling.filters import Filters
from reasoning.sampling.voting import best_of_n, vote

PROGRAM = "experiments.hidden_reasoning"
TAG = 0  # the only one
Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Data:
    """What all seeds learn from: one completion for each problem, and the problems of RL."""

    examples: list[Example]
    problems: Problems


def build(config: ml_collections.ConfigDict) -> Setup:
    """What the configuration describes.

    Raises:
      ValueError: what cannot run, in one sentence.
    """
    if "hidden" not in config:
        raise ValueError(
            "hidden: the configuration has no such section; start from "
            "--config=experiments/configs/hidden_reasoning.py."
        )
    check_hidden(config)
    setup = set_up(config, ("mixed",))
    if setup.mesh is not None:
        raise ValueError("mesh: this study runs on one device; leave config.mesh at ones.")
    if isinstance(setup.task, Corpus):
        raise ValueError(
            f"corpus.name={config.corpus.name}: a corpus has no traces by strategy; leave it out "
            "and choose a task."
        )
    if setup.task.strategies[:1] != ("direct",) or len(setup.task.strategies) != 2:
        raise ValueError(
            f"task.strategies={config.task.strategies}: must be 'direct' and one that writes steps."
        )
    for sign in config.hidden.signs:
        if sign not in setup.task.words:
            raise ValueError(
                f"hidden.signs={config.hidden.signs}: {sign!r} is no word of {setup.task.name}; "
                f"choose among {', '.join(setup.task.words)}."
            )
    if max(config.hidden.branches) > setup.model.vocab_size:
        raise ValueError(
            f"hidden.branches={config.hidden.branches}: there are {setup.model.vocab_size} tokens "
            "to branch over; choose fewer."
        )
    check_rl(setup, config, "rl")
    if rl_config(setup, config.rl).algorithm.on_fork:
        raise ValueError(
            f"rl.algorithm={config.rl.algorithm!r}: learns which tag to choose, and here is one; "
            "choose dr_grpo, or another that trains every token."
        )
    return setup


def check_hidden(config: ml_collections.ConfigDict) -> None:
    """Refuse settings outside their range (ValueError)."""
    hidden = config.hidden
    for name in ("direct_share", "floor"):
        if not 0 < hidden[name] < 1:
            raise ValueError(f"hidden.{name}={hidden[name]}: must be between 0 and 1.")
    if not hidden.signs:
        raise ValueError("hidden.signs=(): give the sign of a step, and others in its place.")
    if hidden.samples < 1:
        raise ValueError(f"hidden.samples={hidden.samples}: must be at least 1.")
    if not hidden.branches or min(hidden.branches) < 1:
        raise ValueError(f"hidden.branches={hidden.branches}: give one or more, each at least 1.")
    if config.pretrain.steps:
        raise ValueError(
            f"pretrain.steps={config.pretrain.steps}: this study has no base policy; choose 0."
        )
    if config.finetune.steps < 1:
        raise ValueError(f"finetune.steps={config.finetune.steps}: must be at least 1.")
    if not config.loss.tag_is_label:
        raise ValueError("loss.tag_is_label=False: in RL the policy writes the tag; choose True.")


def make_data(setup: Setup, config: ml_collections.ConfigDict) -> Data:
    """The mixture: of each problem the bare answer, or every step, as chance will have it.

    In the steps the first of `hidden.signs` becomes any of them, each time as chance will have it.

    Raises:
      ValueError: a row is longer than the model reads.
    """
    count = config.finetune.problems
    both = named_examples(setup.task, setup.text_format, config.seed, count)
    check_rows(setup, both)
    rng = np.random.default_rng(config.seed)
    signs = [setup.text_format.tokenizer.encode(sign)[0] for sign in config.hidden.signs]
    direct = rng.random(count) < config.hidden.direct_share
    mixture = []
    for example, bare in zip(both, direct, strict=True):
        answer, steps = example.traces
        trace = answer if bare else reworded(steps, signs, rng)
        mixture.append(dataclasses.replace(example, traces=(trace,)))
    return Data(mixture, rl_problems(setup, config.rl, config.seed))


def reworded(
    trace: Sequence[int], signs: Sequence[int], rng: np.random.Generator
) -> tuple[int, ...]:
    """The trace with any one of the signs at each place where it has the first of them."""
    return tuple(signs[rng.integers(len(signs))] if token == signs[0] else token for token in trace)


def one_seed(
    run: Run, setup: Setup, data: Data, config: ml_collections.ConfigDict, seed: int
) -> tuple[None, Figures]:
    """Learn from the mixture, reinforce, decode both policies in every way; the seed's figures."""
    start = sources.first_params(config, setup.model, launch.run_key(seed, "init"), setup.mesh)
    learn = partial(
        train, run, setup, start, data.examples, "finetune", "mixed", config, seed, "mixture"
    )
    tuned, spent = run.phase(f"seed{seed}/mixture", learn, like=start, steps=config.finetune.steps)
    (reinforced,), spent_on_rl = reinforce(
        run, setup, [tuned], data.problems, config.rl, "rl", [seed]
    )
    # After all training: a run that is stopped while it trains then has logged no completions.
    policies = {
        name: decode(run, setup, params, name, config, seed)
        for name, params in (("fine-tuned", tuned), ("after RL", reinforced))
    }
    return None, {
        "policies": policies,
        "training": {"fine-tuned": spent, "after RL": spent_on_rl},
        "seed": seed,
    }


def decode(
    run: Run, setup: Setup, params: Any, name: str, config: ml_collections.ConfigDict, seed: int
) -> Figures:
    """What a policy does on the held-out problems, by every way of decoding.

    Returns:
      `methods`: by method, its `accuracy`, and `reasons`, the share of the completions it believes
        that write steps before the answer.
      `branches`: by floor, rule and k, the accuracy of CoT-decoding.
      `ranks`: the path from the r-th likeliest first token: that token's probability, the gap of
        its answer, its accuracy, whether it reasons.
    """
    policy, test, hidden = setup.policy(params), setup.test, config.hidden
    key = launch.run_key(seed, "evaluate")
    run.stop_if_asked()
    greedy = sample_and_judge(policy, test, np.full(1, TAG), key, Filters(temperature=0.0))
    sampled = sample_and_judge(policy, test, np.full(hidden.samples, TAG), key, Filters())
    paths = cot_paths(policy, test, TAG, max(hidden.branches))
    for way, judged in (("greedy", greedy), ("sampling", sampled), ("paths", paths.judged)):
        rows = judged.rows(setup.task, test)
        run.log_completions({"seed": seed, "policy": name, "decoding": way, **row} for row in rows)

    floors = {"no floor": 0.0, f"floor {hidden.floor:g}": hidden.floor}
    widest = max(hidden.branches)
    return {
        "methods": {
            "greedy": of_believed(greedy, np.ones_like(greedy.correct)),
            "sampling": of_believed(sampled, np.ones_like(sampled.correct)),
            f"majority of {hidden.samples}": of_believed(sampled, believe_vote(sampled.votes)),
            f"pass@{hidden.samples}": {"accuracy": estimate(sampled.correct.any(axis=1))},
            **{
                f"{rule} of {widest}, {label}": of_believed(paths.judged, believed)
                for label, floor in floors.items()
                for rule, believed in believe_paths(paths, widest, floor).items()
            },
        },
        "branches": {
            label: by_width(paths, hidden.branches, floor) for label, floor in floors.items()
        },
        "ranks": by_rank(paths),
    }


def by_width(paths: Paths, widths: Sequence[int], floor: float) -> Figures:
    """The accuracy of each rule of CoT-decoding with k branches."""
    accuracy: Figures = {}
    for k in widths:
        for rule, believed in believe_paths(paths, k, floor).items():
            figures = of_believed(paths.judged, believed)
            accuracy.setdefault(rule, {})[str(k)] = figures["accuracy"]
    return accuracy


def by_rank(paths: Paths) -> Figures:
    """Each branch on its own, the likeliest first."""
    values = {
        "probability": paths.branch_probs,
        "gap": paths.deltas,
        "accuracy": paths.judged.correct,
        "reasons": reasons(paths.judged),
    }
    return {
        str(rank + 1): {name: estimate(value[:, rank]) for name, value in values.items()}
        for rank in range(paths.deltas.shape[1])
    }


def believe_paths(paths: Paths, k: int, floor: float) -> dict[str, np.ndarray]:
    """Which of its paths `[P, paths]` each rule of CoT-decoding believes, of the first k.

    Max gap and summed gap are those of arXiv 2402.10200, the others what it compares them with.
    """
    votes = paths.likely(floor)
    votes[:, k:] = None
    written = paths.judged.lengths - 1  # without the tag, which was given
    return {
        "max gap": believe_best(votes, paths.deltas),
        "summed gap": believe_vote(votes, paths.deltas),
        "log-prob": believe_best(votes, paths.log_probs),
        "log-prob per token": believe_best(votes, paths.log_probs / written),
    }


def believe_vote(votes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The completions that gave the answer of the largest weight; none without answers.

    `votes`, `weights` and what is returned are `[P, R]`.
    """
    winners = [
        vote(row, None if weights is None else weights[p], seed=p) for p, row in enumerate(votes)
    ]
    return np.array(
        [[answer is not None and answer == winner for answer in row]
         for row, winner in zip(votes, winners, strict=True)]
    )


def believe_best(votes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The one completion of the best score that gave an answer; none without answers.

    `votes`, `scores` and what is returned are `[P, R]`.
    """
    believed = np.zeros(votes.shape, bool)
    for p, row in enumerate(votes):
        places = [None if answer is None else str(r) for r, answer in enumerate(row)]
        best = best_of_n(places, scores[p], seed=p)
        if best is not None:
            believed[p, int(best)] = True
    return believed


def reasons(judged: Judged) -> np.ndarray:
    """Which completions `[P, R]` write anything before the answer."""
    return np.array(
        [[bool(parse_completion(text)[0]) for text in row] for row in judged.completions]
    )


def of_believed(judged: Judged, believed: np.ndarray) -> Figures:
    """Shares of the completions `[P, R]` that are believed, means over problems."""
    count = np.maximum(believed.sum(axis=1), 1)
    return {
        "accuracy": estimate((judged.correct & believed).sum(axis=1) / count),
        "reasons": estimate((reasons(judged) & believed).sum(axis=1) / count),
    }


def estimate(values: ArrayLike) -> dict[str, Any]:
    """The mean over problems `[P]`: Wilson's interval where all are 0 or 1, else a bootstrap's."""
    values = np.asarray(values, np.float64)
    if np.isin(values, (0, 1)).all():
        return wilson_interval(int(values.sum()), len(values)).as_dict()
    return mean_estimate(values).as_dict()


def study(
    run: Run, setup: Setup, data: Data, config: ml_collections.ConfigDict
) -> dict[str, Any]:
    """Every seed in turn, then the plots; returns results.json."""
    sources.save_tokenizer(run.path, setup.text_format)
    seeds = [
        run.phase(f"seed{seed}/results", partial(one_seed, run, setup, data, config, seed))[1]
        for seed in range(config.seed, config.seed + config.seeds)
    ]
    each = [seed["policies"] for seed in seeds]
    policies = each[0] if len(each) == 1 else reports.figures_over_seeds(each)
    plot(run.path, policies)
    return {"policies": policies, "seeds": seeds}


def plot(path: Path, policies: Mapping[str, Figures]) -> None:
    """The plots of a run, into its plots/ folder."""
    metrics = [json.loads(line) for line in (path / METRICS).read_text().splitlines()]
    accuracy = {
        policy: {name: entry["accuracy"] for name, entry in figures["methods"].items()}
        for policy, figures in policies.items()
    }
    widths = {
        f"{rule}, {label}": ([int(k) for k in by_k], list(by_k.values()))
        for label, rules in policies["fine-tuned"]["branches"].items()
        for rule, by_k in rules.items()
    }
    for name, figure in {
        "methods": reports.estimate_bars(accuracy, "accuracy (%)"),
        "branches": reports.estimate_curves({"": widths}, "branches k", "accuracy (%)"),
        "learning_curves": reports.learning_curves(metrics),
        "reinforcement": reports.reinforcement_curves(metrics),
    }.items():
        figure.savefig(path / "plots" / f"{name}.png", dpi=120)


def table(results: Mapping[str, Any]) -> str:
    """Percent with the half-width of the 95% interval: methods, then CoT-decoding by its width."""
    policies = results["policies"]
    lines = [f"{'':34s}" + "".join(f"{name:>28s}" for name in policies)]
    lines.append(f"{'method':34s}" + f"{'accuracy':>14s}{'reasons':>14s}" * len(policies))
    for method in policies["fine-tuned"]["methods"]:
        entries = [figures["methods"][method] for figures in policies.values()]
        cells = [cell(entry.get(name)) for entry in entries for name in ("accuracy", "reasons")]
        lines.append(f"{method:34s}" + "".join(f"{text:>14s}" for text in cells))
    tuned = policies["fine-tuned"]
    for label, rules in tuned["branches"].items():
        widths = next(iter(rules.values()))
        title = f"fine-tuned, {label}, accuracy"
        lines += ["", f"{title:34s}" + "".join(f"{f'k={k}':>14s}" for k in widths)]
        for rule, by_k in rules.items():
            lines.append(f"{rule:34s}" + "".join(f"{cell(entry):>14s}" for entry in by_k.values()))
    columns = next(iter(tuned["ranks"].values()))
    title = "fine-tuned, path by first token"
    lines += ["", f"{title:34s}" + "".join(f"{name:>14s}" for name in columns)]
    for rank, entry in tuned["ranks"].items():
        lines.append(f"{rank:34s}" + "".join(f"{cell(entry[name]):>14s}" for name in columns))
    return "\n".join(lines)


def cell(entry: Mapping[str, Any] | None) -> str:
    """`62.4 ±2.1`, in percent, to the further end; nothing where there is no figure."""
    if entry is None:
        return ""
    further = max(entry["high"] - entry["value"], entry["value"] - entry["low"])
    return f"{100 * entry['value']:.1f} ±{100 * further:.1f}"


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Run the study, or report a finished one."""
    launch.run_study(PROGRAM, config, workdir, build, make_data, study, table)


if __name__ == "__main__":
    launch.start(main)
