"""Countdown under four arms of supervised fine-tuning.

    --config=experiments/configs/countdown.py              the quickstart: minutes on two cores
    --config=experiments/configs/countdown.py:full         five seeds, and T1: 70 minutes
"""

import dataclasses
from collections.abc import Iterable

import ml_collections
from ml_collections.config_dict import placeholder

from reasoning.learning.algorithms import Algorithm
from reasoning.learning.losses import Surrogate

PRESETS = ("quickstart", "full")


def override_placeholders() -> ml_collections.ConfigDict:
    """Every field of an algorithm and its surrogate, left to the preset."""
    optional = {
        "advantage_k": int, "ema_decay": float, "reset_every": int, "entropy_target": float,
        "dual_clip": float,
    }
    fields = {
        field.name: optional.get(field.name, type(field.default))
        for kind in (Algorithm, Surrogate)
        for field in dataclasses.fields(kind)
        if field.name not in ("surrogate", "temperatures")
    }
    return ml_collections.ConfigDict({name: placeholder(kind) for name, kind in fields.items()})


def mesh_settings() -> ml_collections.ConfigDict:
    """Devices along each axis of the mesh (`reasoning.runtime.meshes`); all ones: one device."""
    return ml_collections.ConfigDict({"replica": 1, "data": 1, "fsdp": 1, "tensor": 1})


def task_settings() -> ml_collections.ConfigDict:
    """Three numbers to 20, targets to 40, five tries. What is left at None is the task's own."""
    task = ml_collections.ConfigDict()
    task.name = "countdown"  # or my_task:GCD, of your own (docs/ideas/task.md)
    task.strategies = ()  # those that write traces; (): all of the task's
    arguments = ("size", "largest", "target", "tries", "limit", "practice_tries")
    task.arguments = ml_collections.ConfigDict({name: placeholder(int) for name in arguments})
    return task


def corpus_settings() -> ml_collections.ConfigDict:
    """A corpus in place of a task (`reasoning.data.corpora.load_corpus`); None: the task."""
    corpus = ml_collections.ConfigDict()
    for name in ("name", "directory", "path", "template", "task", "question", "answer", "traces",
                 "kind", "split", "dataset"):
        corpus[name] = placeholder(str)
    for name in ("size", "seed"):
        corpus[name] = placeholder(int)
    corpus.vocab_size = 2048  # of the tokenizer that is trained on it
    return corpus


def judge_settings() -> ml_collections.ConfigDict:
    """How answers to a corpus's questions are judged (`reasoning.rewards.judges`)."""
    judge = ml_collections.ConfigDict()
    judge.rules = ("boxed", "hashes")  # and final_number
    judge.workers = 1  # processes that compare formulas
    judge.cpu_seconds = 0.5  # for one answer
    judge.max_failures = 0.01  # a larger share of timeouts and crashes ends the run
    return judge


def model_settings() -> ml_collections.ConfigDict:
    """A preset of `reasoning.models.config`; a field left at None is the preset's."""
    model = ml_collections.ConfigDict()
    model.preset = "0.2m"
    model.directory = placeholder(str)  # of a Hugging Face model, in place of a preset
    model.policy = placeholder(str)  # what a run has trained (RUN/policies/PHASE), to start from
    model.policy_seed = 0  # of those that a run of RL has trained together
    model.tags = "added"  # or textual: written in the ids of a model directory's own text
    model.chat = False  # prompts in the model directory's chat template
    model.num_strategies = 4
    model.max_length = 112
    for name in ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff"):
        model[name] = placeholder(int)
    for name in ("position_encoding", "remat", "attention", "dtype"):
        model[name] = placeholder(str)
    for name in ("tied_head", "scan_layers"):
        model[name] = placeholder(bool)
    model.rope_theta = placeholder(float)
    return model


def training_settings() -> ml_collections.ConfigDict:
    """The base policy's pre-training: correct traces in random order, all under tag 0."""
    training = ml_collections.ConfigDict()
    training.steps = 2500
    training.problems = 20_000
    training.rows = 32
    training.buckets = 3  # row lengths that batches are padded to
    training.pack = 0  # or rows lie side by side in `rows` sequences of so many tokens
    training.microbatches = 1  # parts of a batch whose gradients are added up
    training.optimizer = "muon"
    training.learning_rate = 1e-2
    training.warmup_steps = 20
    training.final_share = 0.1  # of the learning rate, at the end of its cosine decay
    training.weight_decay = 0.01
    training.clip_norm = 1.0
    training.trained = "all"  # or strategies: the strategies' embeddings alone
    return training


def loss_settings() -> ml_collections.ConfigDict:
    """What the paper leaves open, and how the tags start."""
    loss = ml_collections.ConfigDict()
    loss.reduction = "token_mean"  # or sequence_mean, set_sum
    loss.tag_is_label = True  # the policy also learns to write the tag
    loss.match_tokens = 30  # L: trace tokens that the matching cost reads
    loss.match_every = 1  # epochs from one matching of a problem to the next; only in arm matched
    loss.tag_noise = 1.0  # how far apart the tags start, in embedding deviations
    return loss


def rl_settings() -> ml_collections.ConfigDict:
    """Reinforcement learning from verifiable rewards (experiments.rl)."""
    rl = ml_collections.ConfigDict()
    rl.algorithm = "gfpo"  # a preset of reasoning.learning.algorithms
    rl.override = override_placeholders()  # a field left at None is the preset's
    rl.steps = 20
    rl.problems = 4000
    rl.prompts = 32  # a step draws `samples` completions of so many problems
    rl.samples = 16
    rl.rounds = 1  # dynamic sampling draws so many times to fill uninformative groups
    rl.temperature = 1.0
    rl.top_k = placeholder(int)
    rl.top_p = placeholder(float)
    rl.min_p = placeholder(float)
    rl.min_pass = 0.0  # train on problems whose pass rate lies between the two
    rl.max_pass = 1.0
    rl.shaping = ml_collections.ConfigDict()
    rl.shaping.repetition_weight = 0.0
    rl.shaping.overlong_weight = 0.0
    rl.shaping.overlong_buffer = 16
    rl.shaping.repetition_ngram = 7  # a penalised pattern: a step written three times
    rl.shaping.repetition_count = 3
    # Rows that a device samples at a time, each going on with the next sample when its own ends;
    # left out: the backend's number. On a mesh that cuts the parameters, and where seeds are
    # vmapped, every sample has a row of its own.
    rl.num_slots = placeholder(int)
    rl.epochs = 1
    rl.minibatches = 1
    # Of 32 samples at a time: on a CPU half the time of all at once.
    rl.microbatches = 16  # parts of an update whose gradients are added up
    rl.optimizer = "adamw"
    rl.learning_rate = 5e-4
    rl.warmup_steps = 5
    rl.final_share = 0.1
    rl.weight_decay = 0.0
    rl.clip_norm = 1.0
    rl.trained = "all"  # or strategies: the strategies' embeddings alone
    rl.validate_every = 10
    rl.validation_samples = 8
    rl.keep_every = 0  # also keep the policies of every so many steps, in kept/
    rl.keep_best = True  # the policies that were best at a validation, in best/
    rl.printed = 3  # completions shown at every validation; all are in completions.jsonl
    rl.max_skipped = 5  # so many steps in a row without a finite gradient end the run
    rl.reward = "device"  # or host: by worker processes, as for a task without one on the device
    rl.one_program = True  # False: sampling, reward and update in turn, each timed
    rl.workers = 0  # processes for a reward on the host
    return rl


def evaluation_settings() -> ml_collections.ConfigDict:
    """Held-out problems, and how they are sampled."""
    evaluation = ml_collections.ConfigDict()
    evaluation.problems = 400
    evaluation.validation_problems = 100
    evaluation.samples_per_tag = 4
    evaluation.temperature = 1.0
    # What only experiments.evaluate reads, which scores the policies of any run by its own file.
    evaluation.split = "test"
    evaluation.tag = 0  # under which greedy and single-tag completions are drawn
    evaluation.top_k = placeholder(int)
    evaluation.top_p = placeholder(float)
    evaluation.min_p = placeholder(float)
    evaluation.batch = 64  # problems that are sampled at a time; it changes no figure
    return evaluation


def check_preset(preset: str, presets: Iterable[str]) -> None:
    """Refuse a preset that a file does not have (ValueError)."""
    if preset not in presets:
        raise ValueError(
            f"preset={preset!r}: must be one of {', '.join(presets)}, as --config=FILE:PRESET."
        )


def fine_tuning_config() -> ml_collections.ConfigDict:
    """What every program reads that fine-tunes a policy on countdown, and evaluates it."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.seeds = 1
    config.arm = "matched"  # for experiments.sft; the quickstart runs all four
    config.task = task_settings()
    config.corpus = corpus_settings()
    config.judge = judge_settings()
    config.model = model_settings()
    config.mesh = mesh_settings()
    config.pretrain = training_settings()
    # Each arm starts from it: correct traces of the strategies, several per problem.
    config.finetune = training_settings()
    config.finetune.steps = 1000
    config.finetune.learning_rate = 5e-3
    config.loss = loss_settings()
    config.evaluation = evaluation_settings()
    return config


def get_config(preset: str = "quickstart") -> ml_collections.ConfigDict:
    """The configuration of a preset."""
    check_preset(preset, PRESETS)
    config = fine_tuning_config()
    config.seeds = 5 if preset == "full" else 1
    # On a CPU rows are quicker in small parts.
    config.pretrain.microbatches = config.finetune.microbatches = 4
    config.rl = rl_settings()

    # The quickstart's reinforced arms, at equal rollouts; an arm of 0 steps is left out.
    for name in ("grpo", "gfpo", "t1"):
        config[name] = rl_settings()
        config[name].algorithm = name
        config[name].steps = 30
    # The fork's update reads prompts alone: several passes over a batch of rollouts cost little.
    config.gfpo.epochs = 4
    config.gfpo.minibatches = 4
    config.gfpo.microbatches = 1
    # Through the other parameters the choice of a tag would change the traces behind it.
    config.gfpo.trained = "strategies"
    config.gfpo.learning_rate = 2e-3
    # The paper draws 64 samples at 1.2 (experiments.ablations); more prompts learn faster here.
    config.t1.steps = 350 if preset == "full" else 0
    config.t1.problems = 5000
    config.t1.learning_rate = 7e-4
    config.t1.warmup_steps = 10
    config.t1.validate_every = 25

    # What experiments.ablations varies, and in which of the sections above.
    config.ablation = ml_collections.ConfigDict()
    config.ablation.grid = "samples"
    config.ablation.section = "t1"
    config.ablation.steps = 40
    return config
