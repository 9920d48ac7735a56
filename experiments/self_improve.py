r"""A weak policy that teaches itself by a verifier: rejection sampling, preferences, retries.

    python -m experiments.self_improve --workdir=runs/improve \
        --config=experiments/configs/self_improve.py
    python -m experiments.self_improve --workdir=runs/star \
        --config=experiments/configs/self_improve.py:star

1. The base policy learns countdown from few demonstrations, each of which hits at the first try.
2. Rounds of rejection sampling, by each of `config.improve.methods`. Round n samples the training
   problems from the policy of round n - 1, keeps what verifies, one completion for each sequence of
   equations, and fine-tunes on it. The methods are settings of this one loop, `METHODS`: STaR
   (2203.14465), rejection-sampling fine-tuning (2308.01825), ReST-EM (2312.06585).
3. From the base policy's samples, right and wrong: DPO on pairs (2305.18290); and fine-tuning on
   chains of attempts up to the first right one (trial and error, T1 2501.11651), beside the right
   attempts of the same problems alone.
4. On held-out problems: pass@1 of each policy, and how often it goes on after a failed try. The
   control `more` is the base policy trained on its demonstrations as long as every other.

Rationalisation needs a policy that knows hints: for `star` a share of the demonstrations comes once
more with the prompt `... : answer 7 * 5 = 35 , 35 + 1 = 36` (`config.improve.hinted`). The hint is
the answer of one of the task's strategies, so this method is told more than the others, which see a
verdict.
"""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments import arms, attempts, launch
from experiments.arms import Trained
from experiments.sft import Setup, check_rows, set_up
from reasoning.data import pipelines
from reasoning.data.pipelines import Example
from reasoning.data.self_training import HintedPrompts, hinted_example, keep_right
from reasoning.data.tasks.base import ANSWER, distinct_problems, parse_completion
from reasoning.evaluation import reports
from reasoning.evaluation.policies import judge, sample_and_judge, sample_problems
from reasoning.runtime.runs import Run
from reasoning.sampling.filters import Filters

PROGRAM = "experiments.self_improve"


@dataclasses.dataclass(frozen=True)
class Method:
    """How a round makes its training data, and from which policy it starts.

    Attributes:
      samples: K, of each problem.
      temperature, top_k: of the sampling; 0 is greedy.
      cap: distinct right completions kept of a problem; None keeps all.
      start: fine-tune from the base policy, or from that of the round before.
      demonstrations: train on those of the base policy as well.
      rationalise: where no sample is right, sample once more with the answer told.

    Raises:
      ValueError: a value out of range.
    """

    samples: int
    temperature: float
    top_k: int | None = None
    cap: int | None = None
    start: Literal["base", "previous"] = "base"
    demonstrations: bool = False
    rationalise: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "cap"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"improve {name}={value}: must be at least 1.")
        if self.start not in ("base", "previous"):
            raise ValueError(f"improve start={self.start!r}: must be base or previous.")
        self.filters.check()

    @property
    def filters(self) -> Filters:
        """How completions are drawn."""
        return Filters(self.temperature, self.top_k)


# A field of `config.improve.override` changes any:
#
#   method    a problem's samples      kept   starts from   also trains on
#   star      1, greedy                1      base          rationalised: told the answer
#   rft       16 at temperature 0.7    all    base          the demonstrations
#   rest_em   16 at temperature 0.7    10     base          -
#
# RFT's paper makes one round of 100 samples; ReST-EM's 32 samples, each token one of the 40
# likeliest: a sort, `top_k`, that takes most of the time here.
METHODS = {
    "star": Method(samples=1, temperature=0.0, cap=1, rationalise=True),
    "rft": Method(samples=16, temperature=0.7, demonstrations=True),
    "rest_em": Method(samples=16, temperature=0.7, cap=10),
}


class Study(NamedTuple):
    """What a configuration describes, and the data that all seeds share."""

    setup: Setup
    methods: dict[str, Method]
    demonstrations: list[Example]
    hinted: list[Example]  # of the base policy too, where a method tells answers: what hints are
    problems: list[Any]  # of the train split, for the rounds


def build(config: ml_collections.ConfigDict) -> Study:
    """The study that the configuration describes.

    Raises:
      ValueError: what cannot work, in one sentence.
    """
    launch.check_study(config, "improve", "self_improve.py")
    setup, settings = set_up(config, ("mixed",)), config.improve
    changes = {name: value for name, value in settings.override.items() if value is not None}
    named = set(settings.methods)
    if not named or not named <= set(METHODS) or len(named) < len(settings.methods):
        raise ValueError(
            f"improve.methods={tuple(settings.methods)}: name some of {', '.join(METHODS)}, none "
            "of them twice."
        )
    methods = {
        name: dataclasses.replace(METHODS[name], **changes) for name in settings.methods
    }
    check(config, setup, methods)
    demonstrations = pipelines.practice_examples(
        setup.task, setup.text_format, config.seed, config.pretrain.problems
    )
    told = any(method.rationalise for method in methods.values())
    answer_id = setup.text_format.tokenizer.encode(ANSWER)[0]
    hinted = [
        hinted_example(example, answer_id)
        for example in demonstrations[: round(told * settings.hinted * len(demonstrations))]
    ]
    check_rows(setup, demonstrations + hinted)
    # Another stream than the demonstrations'; where a task has few problems, some are in both.
    problems = distinct_problems(setup.task, "train", config.seed + 1, config.finetune.problems)
    return Study(setup, methods, demonstrations, hinted, problems)


def check(
    config: ml_collections.ConfigDict, setup: Setup, methods: dict[str, Method]
) -> None:
    """Refuse settings that cannot work (ValueError)."""
    attempts.check(config, setup)
    arms.check_written_rows(setup)
    improve = config.improve
    for name in ("pretrain.steps", "finetune.steps", "improve.rounds"):
        section, field = name.split(".")
        if config[section][field] < 1:
            raise ValueError(f"{name}={config[section][field]}: must be at least 1.")
    if not 0 <= improve.hinted <= 1:
        raise ValueError(f"improve.hinted={improve.hinted}: is a share, from 0 to 1.")
    for name, method in methods.items():
        if (method.cap or method.samples) > config.finetune.rows:
            raise ValueError(
                f"improve method {name}: may keep {method.cap or method.samples} completions of a "
                f"problem, which travel in one batch of finetune.rows={config.finetune.rows}; "
                "lower improve.override.cap or raise finetune.rows."
            )
        if method.rationalise and not improve.hinted:
            raise ValueError(
                f"improve.hinted=0: {name} tells the policy answers, which it must know from its "
                "demonstrations; give them a share above 0."
            )


# The policies of one seed


def improve(
    run: Run,
    study: Study,
    base: Any,
    name: str,
    config: ml_collections.ConfigDict,
    seed: int,
) -> dict[str, Trained]:
    """The policies of a method's rounds, by `name_1`, `name_2`, ..."""
    method, policies, policy = study.methods[name], {}, base
    for n in range(1, config.improve.rounds + 1):
        arm = f"{name}_{n}"
        work = partial(collect, study, policy, method, n, seed)
        _, found = run.phase(f"seed{seed}/{arm}_samples", work)
        examples = arms.written_examples(study.setup, study.problems, found["kept"])
        if method.demonstrations:
            examples += study.demonstrations
        start = base if method.start == "base" else policy
        params, spent = arms.fine_tune(run, study.setup, start, examples, arm, config, seed)
        told = {field: value for field, value in found.items() if field != "kept"}
        policy, policies[arm] = params, Trained(params, {**spent, **told})
    return policies


def collect(
    study: Study, params: Any, method: Method, n: int, seed: int
) -> tuple[None, dict[str, Any]]:
    """What round n trains on: the completions `kept` of each problem, and what they amount to."""
    setup, key = study.setup, jax.random.fold_in(launch.run_key(seed, "rollouts"), n)
    tags = np.zeros(method.samples, int)
    policy = setup.policy(params)
    judged = sample_and_judge(policy, study.problems, tags, key, method.filters)
    kept = keep_right(judged.completions, judged.correct, method.cap, seed)
    figures = {
        "solved": float(judged.correct.any(axis=1).mean()),
        "right": float(judged.correct.mean()),
        "traces": sum(map(len, kept)),
    }
    if method.rationalise:
        unsolved = [i for i, texts in enumerate(kept) if not texts]
        told = rationalise(study, params, [study.problems[i] for i in unsolved], key)
        for i, texts in zip(unsolved, told, strict=True):
            kept[i] = texts
        figures["rationalised"] = sum(map(len, told)) / len(kept)
    if not any(kept):
        launch.refuse(
            f"pretrain.steps: no sample of {len(kept)} problems is right in round {n} of seed "
            f"{seed}; train the base policy longer, in another workdir."
        )
    return None, {"kept": kept, **figures}


def rationalise(
    study: Study, params: Any, problems: list[Any], key: jax.Array
) -> list[list[str]]:
    """For each problem the policy's greedy completion once it is told an answer, if it is right."""
    if not problems:
        return []
    setup = study.setup
    # An answer that is known: that of the first strategy's trace.
    answers = [parse_completion(setup.task.completions(problem)[0])[1] for problem in problems]
    hinted, prompts = list(zip(problems, answers)), HintedPrompts(setup.task)
    longest = max(len(setup.text_format.prompt_ids(prompts.prompt(pair))) for pair in hinted)
    policy = dataclasses.replace(
        setup.policy(params), problems=prompts, max_new_tokens=setup.model.max_length - longest
    )
    drawn = sample_problems(policy, hinted, np.zeros(1, int), key, Filters(0.0))
    judged = judge(setup.policy(params), problems, drawn.tokens, drawn.mask)
    return keep_right(judged.completions, judged.correct, cap=1, seed=0)


def run_seed(
    run: Run, study: Study, config: ml_collections.ConfigDict, seed: int
) -> dict[str, Any]:
    """Train and measure every policy of a seed."""
    base = arms.train_base(
        run, study.setup, study.demonstrations + study.hinted, config, seed
    )
    tune = partial(arms.fine_tune, run, study.setup, base.params, config=config, seed=seed)
    policies = {"base": base, "more": tune(study.demonstrations, "more")}
    for method in study.methods:
        policies |= improve(run, study, base.params, method, config, seed)
    setup, problems = study.setup, study.problems
    drawn = attempts.draw_attempts(run, setup, base.params, problems, config, seed)
    if config.dpo.steps:
        policies["dpo"] = attempts.prefer(run, setup, base.params, drawn.pairs, config, seed)
    policies["right"] = tune(drawn.right, "right")
    policies["chains"] = tune(drawn.chains, "chains")
    measured = {
        name: arms.measure(run, study.setup, policy.params, name, config, seed)
        for name, policy in policies.items()
    }
    spent = {name: policy.spent for name, policy in policies.items()}
    return arms.one_result(measured, spent, compared(study, config), seed)


def compared(study: Study, config: ml_collections.ConfigDict) -> list[tuple[str, str, str]]:
    """The paired differences of the results."""
    pairs = [("more", "base")]
    for method in study.methods:
        rounds = ["base", *(f"{method}_{n}" for n in range(1, config.improve.rounds + 1))]
        pairs += [*zip(rounds[1:], rounds), (rounds[-1], "more")]
    pairs += [("dpo", "base")] if config.dpo.steps else []
    pairs += [("chains", "base"), ("chains", "right")]
    return [("pass@1", *pair) for pair in pairs] + [("retried", "chains", "base")]


def work(run: Run, study: Study, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Every seed, then the plots; returns results.json."""
    results = arms.run_seeds(study.setup, config, partial(run_seed, run, study, config))
    if jax.process_index() == 0:
        plot(run, study, config, results)
    return results


def plot(
    run: Run, study: Study, config: ml_collections.ConfigDict, results: dict[str, Any]
) -> None:
    """pass@1 by round, and pass@k of every policy."""
    figures, rounds = results["arms"], range(config.improve.rounds + 1)
    curves = {
        method: (rounds, [figures[f"{method}_{n}" if n else "base"]["pass@1"] for n in rounds])
        for method in study.methods
    }
    by_round = reports.estimate_curves({"": curves}, "round", "pass@1 (%)")
    by_round.savefig(run.path / "plots" / "rounds.png", dpi=120)
    reports.pass_at_k_curves(figures).savefig(run.path / "plots" / "pass_at_k.png", dpi=120)


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Run the study, or report it where it has finished."""
    launch.run_study(
        PROGRAM, config, workdir, build,
        make_data=lambda study, _: arms.identify(study),
        work=lambda run, study, *_: work(run, study, config),
        table=arms.table,
    )


if __name__ == "__main__":
    launch.start(main)
