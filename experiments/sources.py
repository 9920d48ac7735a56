"""What a run starts from: its problems, their text as ids, the model and the judge.

A small task has words of its own and a model from scratch; a corpus has questions of natural text,
whose tokenizer is trained on it; and a Hugging Face model directory brings model, tokenizer and
chat template, for a corpus.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from reasoning.data.chat import load_chat_template
from reasoning.data.corpora import Corpus, load_corpus
from reasoning.data.formats import TextFormat
from reasoning.data.imported_tokenizers import check_vocabulary, load_tokenizer
from reasoning.data.tags import textual_tags
from reasoning.data.tasks import make_task
from reasoning.data.tasks.base import Problems, Verdict
from reasoning.data.tokenizers import Tokenizer, train_tokenizer
from reasoning.models.config import ModelConfig, make_config
from reasoning.models.pretrained import check_weights, load_config, load_params
from reasoning.rewards.host import HostFunction, task_reward
from reasoning.rewards.judges import AnswerJudge, Question, check_questions
from reasoning.rewards.symbolic import SymbolicPool
from reasoning.runtime.checkpoints import Checkpoints
from reasoning.runtime.meshes import init_sharded, param_shardings
from reasoning.runtime.processes import from_first

# What a run may change of a model directory's own shape.
TOKENIZER = "tokenizer.model"  # in the directory of a run that has made its own
CHANGEABLE = ("num_strategies", "max_length", "remat", "attention", "dtype", "scan_layers")


def make_problems(config: ml_collections.ConfigDict) -> Problems:
    """The corpus of `config.corpus`, or the task of `config.task` where it names none.

    Raises:
      ValueError: what cannot be read, in one sentence.
    """
    if config.corpus.name is None:
        return make_task(config.task.name, config.task.strategies, **config.task.arguments)
    fields = {name: value for name, value in config.corpus.items() if name != "vocab_size"}
    return load_corpus(fields.pop("name"), **fields)


def make_format(config: ml_collections.ConfigDict, problems: Problems) -> TextFormat:
    """How problems become ids: by the model directory's tokenizer, or by one made for them.

    Raises:
      ValueError: a directory without a usable tokenizer, or settings that do not fit together.
    """
    directory, tags = config.model.directory, config.model.tags
    if tags not in ("added", "textual"):
        raise ValueError(f"model.tags={tags!r}: must be added or textual.")
    if directory is None:
        if tags == "textual":
            raise ValueError("model.tags='textual': needs a model.directory whose text they are.")
        return TextFormat(_own_tokenizer(config, problems))
    if not isinstance(problems, Corpus):
        raise ValueError(
            f"model.directory={directory}: reads natural text; choose a corpus, as by "
            "--config.corpus.name=gsm8k."
        )
    num_ids = load_config(directory).vocab_size
    tokenizer = load_tokenizer(directory, num_ids)
    chat = load_chat_template(directory) if config.model.chat else None
    if config.model.chat and chat is None:
        raise ValueError(
            f"model.chat=True: {directory} has no chat template; choose model.chat=False."
        )
    textual = textual_tags(tokenizer, config.model.num_strategies) if tags == "textual" else None
    return TextFormat(tokenizer, chat, textual, num_ids=num_ids)


def _own_tokenizer(config: ml_collections.ConfigDict, problems: Problems) -> Tokenizer:
    """That of the run whose policy goes on, or one that is trained on the problems."""
    if config.model.policy is not None:
        return _tokenizer_of(Path(config.model.policy))
    if isinstance(problems, Corpus):
        try:
            return train_tokenizer(problems.lines(), vocab_size=config.corpus.vocab_size)
        except ValueError as error:
            raise ValueError(f"corpus.{error}") from error
    return train_tokenizer(
        (), vocab_size=None, words=problems.words, numbers="whole", max_number=problems.max_number
    )


def _tokenizer_of(policy: Path) -> Tokenizer:
    """What a policy has learned to read, from the directory of its run."""
    if not policy.is_dir():
        raise ValueError(
            f"model.policy={policy}: no such directory; name one that a run has written, as "
            "RUN/policies/PHASE."
        )
    for folder in policy.absolute().parents:
        if (folder / TOKENIZER).is_file():
            return Tokenizer.load(folder / TOKENIZER)
    raise ValueError(
        f"model.policy={policy}: the run around it has no {TOKENIZER}; keep policies within the "
        "run directory that trained them."
    )


def save_tokenizer(workdir: Path, text_format: TextFormat) -> None:
    """Keep a tokenizer that a run has made with its policies; a model directory keeps its own."""
    if isinstance(text_format.tokenizer, Tokenizer):
        text_format.tokenizer.save(workdir / TOKENIZER)


def make_model(config: ml_collections.ConfigDict, text_format: TextFormat) -> ModelConfig:
    """The model's shape: a preset with changes, or that of the model directory.

    Raises:
      ValueError: an impossible shape, or a directory's that is changed.
    """
    fields = {name: value for name, value in config.model.items() if value is not None}
    for name in ("directory", "policy", "policy_seed", "tags", "chat"):
        fields.pop(name, None)
    preset, directory = fields.pop("preset"), config.model.directory
    if directory is None:
        return make_config(preset, vocab_size=text_format.tokenizer.vocab_size, **fields)
    for name in fields:
        if name not in CHANGEABLE:
            raise ValueError(f"model.{name}={fields[name]}: {directory} has its own; leave it out.")
    own = load_config(directory)
    if fields["max_length"] > own.max_length:
        raise ValueError(
            f"model.max_length={fields['max_length']}: {directory} reads up to {own.max_length}."
        )
    check_vocabulary(text_format.tokenizer, own.vocab_size)
    fields.setdefault("scan_layers", True)  # many layers compile as one
    tags = text_format.tags
    model = load_config(directory, strategy_ids=tags.ids if tags else (), **fields)
    check_weights(directory, model)
    return model


def first_params(
    config: ml_collections.ConfigDict, model: ModelConfig, key: jax.Array, mesh: Mesh | None
) -> Any:
    """The parameters at the start: what a run has trained, a model directory's, or random ones."""
    if config.model.policy is not None:
        like = init_sharded(model, key, mesh)
        return load_policy(config.model.policy, config.model.policy_seed, like)
    if config.model.directory is None:
        return init_sharded(model, key, mesh)
    shardings = None if mesh is None else param_shardings(model, mesh)
    return load_params(config.model.directory, model, key, shardings)


def load_policy(path: str, seed: int, like: Any) -> Any:
    """What a phase of a run has trained; of seeds that were trained together, one.

    Raises:
      ValueError: there is none, it is damaged, or another model's.
    """
    if not Path(path).is_dir():
        raise ValueError(f"model.policy={path}: there is no such directory.")
    with Checkpoints(path) as checkpoints:
        names = checkpoints.about(0)["tree"]
        together = {name.partition(".")[0] for name in names} - {"params"}
        if not together:
            return checkpoints.restore(0, like)
        if not 0 <= seed < len(together):
            raise ValueError(
                f"model.policy_seed={seed}: {path} holds {len(together)} seeds, from 0."
            )
        return checkpoints.restore(0, [like] * len(together))[seed]


def files(config: ml_collections.ConfigDict) -> list[tuple[str, str]]:
    """Names and checksums of the files of the parameters at the start, for a run's fingerprint."""
    return checksums(Path(path) for path in (config.model.policy, config.model.directory) if path)


def checksums(folders: Iterable[Path]) -> list[tuple[str, str]]:
    """Names and checksums of the files in these directories and below."""
    found = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return [(path.name, _checksum(path)) for path in found]


def _checksum(path: Path) -> str:
    """SHA-256 of a file's size and its first, middle and last megabyte: other weights differ."""
    size, part = path.stat().st_size, 2**20
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in (0, size // 2, max(size - part, 0)):
            file.seek(start)
            digest.update(file.read(part))
    return digest.hexdigest()


def make_judge(config: ml_collections.ConfigDict, problems: Problems) -> HostFunction:
    """What judges completions: the task's verifier, or the judge of answers.

    Raises:
      ValueError: settings out of range, formulas without the extra that judges them, or a gold
        answer that its kind cannot have.
    """
    if not isinstance(problems, Corpus):
        return task_reward(problems)
    questions = (*problems.train, *problems.validation, *problems.test)
    check_questions(questions)
    return answer_judge(questions, config.judge)


def answer_judge(
    questions: Sequence[Question], settings: ml_collections.ConfigDict
) -> "FirstJudge":
    """The judge of answers to these questions, with algebra where one of them needs it.

    Raises:
      ValueError: settings out of range, or formulas without the extra that judges them.
    """
    pool = None
    if any(question.kind == "expression" for question in questions):
        pool = SymbolicPool(settings.workers, settings.cpu_seconds)
    return FirstJudge(tuple(settings.rules), pool, settings.max_failures)


class FirstJudge(AnswerJudge):
    """An AnswerJudge whose verdicts are those of the first process of a job, in all of them.

    Limits of time could be met in one process and missed in another.
    """

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], questions: Sequence[Any]
    ) -> list[Verdict]:
        """As `AnswerJudge`."""
        judge = super().__call__
        rows = from_first(
            lambda: [dataclasses.astuple(v) for v in judge(prompts, completions, questions)]
        )
        return [Verdict(*row) for row in rows]
