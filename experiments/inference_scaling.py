r"""Accuracy against tokens of thinking and against samples, for the policies of a quickstart run.

    python -m experiments.quickstart --workdir=runs/quickstart --config.t1.steps=300 \
        --config.t1.keep_every=50
    python -m experiments.inference_scaling --workdir=runs/scaling \
        --config=experiments/configs/inference_scaling.py --config.scaling.run=runs/quickstart
    python -m experiments.inference_scaling --workdir=runs/scaling_full \
        --config=experiments/configs/inference_scaling.py:full --config.scaling.run=runs/quickstart

1. Thinking, as T1 measures it (2501.11651): the thinking of the fine-tuned policy and of
   checkpoints of its reinforcement learning is cut after so many tokens. Then the policy itself
   answers, or the fine-tuned one does for all of them.
2. Samples: pass@k, votes, and the best of k by log-probability, of plain fine-tuning (mixed), of
   the same at other temperatures, of one tag for each strategy in turn (matched), of tags that the
   policy chooses itself (matched_gfpo), and of T1's last policy (mixed_t1).

All policies and budgets are sampled with the same keys: differences are paired, and under a larger
budget a completion goes on with the thinking that it has under a smaller one. Intervals are over
problems where the run has one seed, and else over seeds.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import launch, quickstart, scaling_reports, sources
from experiments.configs import countdown
from experiments.sft import Setup, set_up
from reasoning.data.corpora import Corpus
from reasoning.data.tasks.base import ANSWER
from reasoning.evaluation import reports
from reasoning.evaluation.estimators import cons_at_k, pass_curve, voted_accuracy
from reasoning.evaluation.policies import Drawn, Judged, Policy, in_batches, judge, sample_problems
from reasoning.learning.assignment import ARMS
from reasoning.run_files import CONFIG, RESULTS, read_object
from reasoning.runtime.meshes import init_sharded
from reasoning.runtime.runs import Run
from reasoning.sampling.allocation import interleave
from reasoning.sampling.budgets import Budget
from reasoning.sampling.decoding import cut_thinking, thinking_lengths
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG, pad_prompts, sample, sequence_keys
from reasoning.sampling.voting import best_of_n, mean_token_probability

PROGRAM = "experiments.inference_scaling"
SFT, SSFT, GFPO, T1 = "mixed", "matched", "matched_gfpo", "mixed_t1"
MAKE_IT = "python -m experiments.quickstart --config.t1.steps=300 --config.t1.keep_every=50"


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
      arm: the policy's.
      tags: each gives as many samples; OWN_TAG leaves the tag to the policy.
      temperature: of the distribution.
    """

    arm: str
    tags: Sequence[int]
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class Study:
    """The run that is studied, and how.

    Attributes:
      setup: the run's task, format and model, with the study's test problems.
      run: its directory.
      seeds: of its training.
      steps: of T1, after which a policy is studied.
      settings: the study's section of the configuration.
    """

    setup: Setup
    run: Path
    seeds: Sequence[int]
    steps: Sequence[int]
    settings: ml_collections.ConfigDict

    @property
    def checkpoints(self) -> list[str]:
        """The policies whose thinking is cut, from the start of T1 on."""
        return [SFT, *(f"{T1}_{step}" for step in self.steps)]

    @property
    def samplings(self) -> dict[str, Sampling]:
        """What is sampled, by name."""
        one, every = self.setup.trained_tags(SFT), self.setup.trained_tags(SSFT)
        hot = {f"{SFT}_T{t:g}": Sampling(SFT, one, t) for t in self.settings.temperatures}
        return {
            SFT: Sampling(SFT, one),
            **hot,
            SSFT: Sampling(SSFT, every),
            GFPO: Sampling(GFPO, [OWN_TAG]),
            T1: Sampling(T1, one),
        }

    @property
    def ks(self) -> list[int]:
        """Numbers of samples: the powers of two up to all."""
        return [2**i for i in range(self.settings.samples.bit_length())]

    def folder(self, name: str, seed: int) -> Path:
        """Where a policy lies: what an arm ended with, or a checkpoint, such as `mixed_t1_100`."""
        for step in self.steps:
            if name == f"{T1}_{step}":
                return kept_folder(self.run, seed) / f"{step:06d}"
        return self.run / "policies" / f"seed{seed}" / name

    def policy(self, name: str, seed: int) -> Policy:
        """A policy, with the room for completions that it was trained with."""
        like = init_sharded(self.setup.model, jax.random.key(0), None)
        return self.setup.policy(sources.load_policy(str(self.folder(name, seed)), 0, like))

    def files(self) -> list[tuple[str, str]]:
        """Names and checksums of the files of all policies."""
        names = {*self.checkpoints, *(sampling.arm for sampling in self.samplings.values())}
        return sources.checksums(
            self.folder(name, seed) for seed in self.seeds for name in sorted(names)
        )


def kept_folder(run: Path, seed: int) -> Path:
    """Where a run keeps the policies of T1, by step."""
    return run / "kept" / f"seed{seed}" / T1


def read_run(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration of the run that is studied, with the study's section.

    Raises:
      ValueError: no run, another program's, one that has not finished, or without what is studied.
    """
    if "scaling" not in config:
        raise ValueError(
            "scaling is missing: give --config=experiments/configs/inference_scaling.py."
        )
    if config.scaling.run is None:
        raise ValueError(f"scaling.run is missing: name the directory of a run of {MAKE_IT}.")
    run = Path(config.scaling.run)
    if not (run / CONFIG).is_file():
        raise ValueError(f"scaling.run={run}: holds no run; make one there with {MAKE_IT}.")
    about = read_object(run / CONFIG)
    if about.get("program") != quickstart.PROGRAM:
        raise ValueError(
            f"scaling.run={run}: holds a run of {about.get('program')}; make one with {MAKE_IT}."
        )
    if not (run / RESULTS).is_file():
        raise ValueError(f"scaling.run={run}: has not finished; its own command goes on with it.")
    # A setting that is newer than the run has its default, under which all is as it was.
    defaults = countdown.get_config().to_dict()
    filled = {
        name: {**defaults.get(name, {}), **value} if isinstance(value, dict) else value
        for name, value in about["config"].items()
    }
    merged = ml_collections.ConfigDict({**filled, **config.to_dict()})
    for section in ("gfpo", "t1"):
        if not merged[section].steps:
            raise ValueError(
                f"scaling.run={run}: was made with {section}.steps=0, and its policy is studied; "
                f"make one with {MAKE_IT}."
            )
    # So that its tokenizer is the run's; the test problems are the study's.
    merged.model.policy = str(run / "policies" / f"seed{merged.seed}" / SFT)
    merged.evaluation.problems = config.scaling.problems
    return merged


def build_study(config: ml_collections.ConfigDict) -> Study:
    """What `read_run` describes.

    Raises:
      ValueError: what cannot work, in one sentence.
    """
    settings, run = config.scaling, Path(config.scaling.run)
    seeds = range(config.seed, config.seed + config.seeds)
    folders = [kept_folder(run, seed).glob("[0-9]*") for seed in seeds]
    kept = sorted(set.intersection(*({int(path.name) for path in each} for each in folders)) - {0})
    if not kept:
        raise ValueError(f"scaling.run={run}: has kept no policies of T1; make it with {MAKE_IT}.")
    if not 1 <= settings.checkpoints <= len(kept):
        raise ValueError(
            f"scaling.checkpoints={settings.checkpoints}: must be between 1 and the {len(kept)} "
            "that the run has kept."
        )
    chosen = np.linspace(0, len(kept), settings.checkpoints + 1)[1:].round().astype(int) - 1
    setup = set_up(config, ARMS, on_mesh=False)
    check_settings(settings, setup)
    return Study(setup, run, seeds, [kept[i] for i in chosen], settings)


def check_settings(settings: ml_collections.ConfigDict, setup: Setup) -> None:
    """Refuse settings of the study that cannot run (ValueError)."""
    if isinstance(setup.task, Corpus):
        raise ValueError(
            f"scaling.run={settings.run}: is on a corpus; the thinking that is cut is a task's."
        )
    budgets, num_tags = list(settings.budgets), len(setup.trained_tags(SSFT))
    room = setup.model.max_length - setup.prompt_length
    if len(budgets) < 2 or budgets != sorted(set(budgets)) or budgets[0] < 0:
        raise ValueError(
            f"scaling.budgets={tuple(budgets)}: must be two or more, from 0 on, each larger than "
            "the one before."
        )
    if budgets[-1] + 3 > room:  # tag, end of thinking and one more token
        raise ValueError(
            f"scaling.budgets={tuple(budgets)}: must leave room for an answer in the {room} tokens "
            "of a completion."
        )
    if settings.thinking_samples < 1:
        raise ValueError(f"scaling.thinking_samples={settings.thinking_samples}: at least 1.")
    if settings.samples < 1 or settings.samples % num_tags:
        raise ValueError(
            f"scaling.samples={settings.samples}: must be a multiple of the {num_tags} tags."
        )
    for temperature in settings.temperatures:
        Filters(temperature).check()


def measure_thinking(run: Run, study: Study, name: str, seed: int) -> dict[str, Any]:
    """A policy's accuracy after its thinking was cut at every budget.

    Returns:
      by problem and budget `[P][B]`, means over samples: `used`, tokens of thinking; `cut`, the
      share that was cut; and by answerer, `own` and `summary`, the share of right answers, with
      `own_cut` and `summary_cut`, the share that was cut and is right all the same. By problem
      `[P]`, without a budget: `free` and `free_used`.
    """
    settings, problems, policy = study.settings, study.setup.test, study.policy(name, seed)
    (end_id,) = policy.text_format.tokenizer.encode(ANSWER)
    tags = np.full(settings.thinking_samples, study.setup.trained_tags(SFT)[0])
    own_key, summary_key = jax.random.split(launch.run_key(seed, "evaluate"))

    def draw(budget: int) -> tuple[Drawn, Judged]:
        # A call of its own: a small budget ends early, and shares its keys with the larger ones.
        run.stop_if_asked()
        counts = jnp.full(len(tags), budget), jnp.zeros(len(tags), int)
        forced = Budget(*counts, end_id=end_id, end_ids=(end_id,))
        drawn = sample_problems(policy, problems, tags, own_key, Filters(), budget=forced)
        return drawn, judge(policy, problems, drawn.tokens, drawn.mask)

    free, freely = draw(policy.max_new_tokens)
    thought = thinking_lengths(free.tokens, free.mask, end_id, policy.text_format.stop_ids)
    judged = {
        "own": [draw(budget)[1] for budget in settings.budgets],
        "summary": summarise_thinking(
            study.policy(SFT, seed), problems, free, thought, settings.budgets, end_id, summary_key
        ),
    }
    budgets = np.array(settings.budgets)
    cut = thought[..., None] > budgets  # [P, R, B]
    measured = {
        "used": np.minimum(thought[..., None], budgets).mean(axis=1),
        "cut": cut.mean(axis=1),
        "free": freely.correct.mean(axis=1),
        "free_used": thought.mean(axis=1),
    }
    for answerer, each in judged.items():
        correct = np.stack([at_budget.correct for at_budget in each], axis=-1)
        measured[answerer] = correct.mean(axis=1)
        measured[f"{answerer}_cut"] = (correct & cut).mean(axis=1)
        for budget, at_budget in zip(settings.budgets, each, strict=True):
            about = {"policy": name, "seed": seed, "budget": budget, "answerer": answerer}
            log_completions(run, study, about, at_budget)
    return {key: values.tolist() for key, values in measured.items()}


def log_completions(run: Run, study: Study, about: dict[str, Any], judged: Judged) -> None:
    """Add the completions of the test problems to completions.jsonl."""
    rows = judged.rows(study.setup.task, study.setup.test)
    run.log_completions({**about, **row} for row in rows)


def summarise_thinking(
    policy: Policy,
    problems: Sequence[Any],
    drawn: Drawn,
    thought: np.ndarray,
    budgets: Sequence[int],
    end_id: int,
    key: jax.Array,
) -> list[Judged]:
    """The policy's answers to thinking that another has written, cut at each of B budgets.

    Args:
      drawn: what the other has written, R completions of P problems.
      thought: `[P, R]`, tokens of thinking in each.
      end_id: ends it.
    """
    text_format = policy.text_format
    prompts = [text_format.prompt_ids(policy.problems.prompt(problem)) for problem in problems]
    rows, mask = pad_prompts(
        [
            row for budget in budgets
            for row in cut_thinking(prompts, drawn.tokens, thought, budget, (end_id,))
        ],
        text_format.pad_id,
    )
    length, shape = rows.shape[1], (len(budgets), *thought.shape, -1)
    rows, mask = (array.reshape(shape).swapaxes(0, 1) for array in (rows, mask))  # [P, B, R, T]

    def answer(_: np.ndarray, __: np.ndarray, index: np.ndarray) -> tuple[jax.Array, jax.Array]:
        keys = sequence_keys(key, jnp.asarray(index), thought.shape[1])
        keys = jnp.tile(keys, (1, len(budgets))).reshape(-1, 1)  # the same for every budget
        samples = sample(
            policy.params,
            rows[index].reshape(-1, length),
            mask[index].reshape(-1, length),
            np.full(keys.shape, OWN_TAG),  # the first token is the answer's
            keys,
            Filters(),
            config=policy.config,
            max_new_tokens=policy.config.max_length - length,
            stop_ids=text_format.stop_ids,
            pad_id=text_format.pad_id,
        )
        shape = *rows[index].shape[:3], -1
        return samples.tokens.reshape(shape), samples.mask.reshape(shape)

    answers, answered, _ = in_batches(policy, problems, answer, batch_problems=16)
    # A completion is what follows the prompt in its row, and the answer.
    asked = np.array([len(prompt) for prompt in prompts])[:, None, None, None]
    written = np.arange(length) >= length - mask.sum(axis=-1, keepdims=True) + asked
    tokens = np.concatenate([rows, answers], axis=-1)
    written = np.concatenate([written, answered], axis=-1)
    return [judge(policy, problems, tokens[:, b], written[:, b]) for b in range(len(budgets))]


def measure_samples(run: Run, study: Study, name: str, seed: int) -> dict[str, Any]:
    """What k samples of a policy are worth, its tags in turn.

    Returns:
      each of `scaling_reports.METHODS` by problem and k, `[P][K]`; `tokens` `[P]`, the mean length
      of a sample.
    """
    how, problems, ks = study.samplings[name], study.setup.test, study.ks
    policy, key = study.policy(how.arm, seed), launch.run_key(seed, "evaluate")
    tags = np.repeat(how.tags, study.settings.samples // len(how.tags))
    drawn = sample_problems(policy, problems, tags, key, Filters(how.temperature))
    judged = judge(policy, problems, drawn.tokens, drawn.mask)
    log_completions(run, study, {"policy": name, "seed": seed}, judged)
    by_tag = len(problems), len(how.tags), -1
    correct, votes, mean, total = (
        interleave(values.reshape(by_tag))
        for values in (
            judged.correct,
            judged.votes,
            mean_token_probability(drawn.log_probs, drawn.mask),
            (drawn.log_probs * drawn.mask).sum(axis=-1),
        )
    )

    def at_each_k(accuracy: Callable[..., np.ndarray], **by: Any) -> np.ndarray:
        return np.stack([accuracy(votes, correct, k, **by) for k in ks], axis=1)

    measured = {
        "pass@k": pass_curve(judged.correct.reshape(by_tag), ks),
        "cons@k": at_each_k(cons_at_k),
        "weighted@k": at_each_k(voted_accuracy, weights=mean),
        "best@k by mean": at_each_k(voted_accuracy, weights=mean, rule=best_of_n),
        "best@k by sum": at_each_k(voted_accuracy, weights=total, rule=best_of_n),
        "tokens": judged.lengths.mean(axis=1),
    }
    return {key: values.tolist() for key, values in measured.items()}


def study_seed(run: Run, study: Study, seed: int) -> dict[str, Any]:
    """Both studies of a seed's policies; each policy is a phase."""

    def measured(kind: str, measure: Callable, names: Sequence[str]) -> dict[str, Any]:
        def work(name: str) -> tuple[None, dict[str, Any]]:
            print(f"{kind}: {name}, seed {seed}", flush=True)
            return None, measure(run, study, name, seed)

        return {
            name: run.phase(f"seed{seed}/{kind}/{name}", partial(work, name))[1] for name in names
        }

    thinking = measured("thinking", measure_thinking, study.checkpoints)
    samples = measured("samples", measure_samples, list(study.samplings))
    return {
        "thinking": scaling_reports.thinking_results(thinking),
        "samples": scaling_reports.samples_results(samples, study.ks),
    }


def run_studies(run: Run, study: Study) -> dict[str, Any]:
    """Both studies of every seed, and their plots."""
    seeds = [study_seed(run, study, seed) for seed in study.seeds]
    results = {
        "task": study.setup.task.name,
        "problems": len(study.setup.test),
        "seeds": list(study.seeds),
        "budgets": list(study.settings.budgets),
        "k": study.ks,
        **(seeds[0] if len(seeds) == 1 else reports.figures_over_seeds(seeds)),
    }
    if jax.process_index() == 0:
        for name, figure in scaling_reports.figures(results).items():
            figure.savefig(run.path / "plots" / f"{name}.png", dpi=120)
    return results


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Study the policies of a finished run, in a directory of the study's own."""
    with launch.refusals():
        config = read_run(config)
    launch.run_study(
        PROGRAM, config, workdir, build_study,
        make_data=lambda study, _: study.files(),
        work=lambda run, study, *_: run_studies(run, study),
        table=scaling_reports.table,
    )


if __name__ == "__main__":
    launch.start(main)
