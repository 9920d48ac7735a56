"""Corpora: questions with gold answers that stand where a task stands, before the pipelines.

    corpus = load_corpus("gsm8k", "data/built", path="data/gsm8k")
    corpus = load_corpus("jsonl", path="traces.jsonl", answer="gold", traces="solutions")
    tokenizer = train_tokenizer(corpus.lines(), vocab_size=2048)
    examples = strategy_examples(corpus, tokenizer, seed=0, count=len(corpus.train))

A corpus is held in memory: 100,000 questions as long as GSM8K's take about 100 MB. It names no
strategies: which trace gets which tag is for the assignment to find out.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from reasoning.data.questions import Question, by_hash, read_jsonl
from reasoning.data.tasks.base import SPLITS, Split
from reasoning.names import find, is_own, parameters

SLOT = "{question}"  # where a template has the question


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Questions in three splits (`reasoning.data.tasks.base.Problems`).

    Attributes:
      name: names the corpus, as in messages.
      train: the questions to learn from.
      validation: those to choose by.
      test: those to report.
      template: the prompt, with `{question}` once; other braces stand for themselves.

    Raises:
      ValueError: the template has not exactly one `{question}`, or two questions have one id.
    """

    name: str
    train: tuple[Question, ...]
    validation: tuple[Question, ...]
    test: tuple[Question, ...]
    template: str = SLOT

    strategies = ()  # a corpus does not say how a trace was come by

    def __post_init__(self) -> None:
        if self.template.count(SLOT) != 1:
            raise ValueError(f"template={self.template!r}: must have {SLOT} exactly once.")
        seen: set[str] = set()
        for question in self._all():
            if question.id in seen:
                raise ValueError(f"id={question.id!r}: is there twice in {self.name}; rename one.")
            seen.add(question.id)

    def _all(self) -> Iterator[Question]:
        return itertools.chain(self.train, self.validation, self.test)

    @functools.cached_property
    def num_traces(self) -> int:
        """The largest number of traces of a question."""
        return max((len(question.traces) for question in self._all()), default=0)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the template and of every question with its split, in order."""
        digest = hashlib.sha256(json.dumps(self.template).encode())
        for split in SPLITS:
            for question in getattr(self, split):
                row = [split, *dataclasses.astuple(question)]
                digest.update(json.dumps(row).encode())
        return digest.hexdigest()

    def stream(self, split: Split, seed: int) -> Iterator[Question]:
        """The split's questions for ever, in a new order every epoch: a function of split and seed.

        Raises:
          ValueError: the split is empty.
        """
        questions = getattr(self, split)
        if not questions:
            full = ", ".join(name for name in SPLITS if getattr(self, name)) or "nothing"
            raise ValueError(f"split={split!r}: is empty in {self.name}, which has {full}.")
        return _epochs(questions, f"{self.name}/{split}/{seed}")

    def key(self, question: Question) -> str:
        """Its id."""
        return question.id

    def prompt(self, question: Question) -> str:
        """The template with the question in it."""
        return self.template.replace(SLOT, question.question)

    def completions(self, question: Question) -> list[str]:
        """Its traces."""
        return list(question.traces)

    def practice(self, question: Question, rng: random.Random) -> str | None:
        """Its first trace, None if it has none; nothing is drawn."""
        del rng
        return question.traces[0] if question.traces else None

    def lines(self) -> Iterator[str]:
        """The text of the train split, prompts and traces: what a tokenizer may learn from."""
        for question in self.train:
            yield self.prompt(question)
            yield from question.traces

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split}={len(getattr(self, split))}" for split in SPLITS)
        return f"Corpus({self.name!r}, {sizes})"


def _epochs(questions: Sequence[Question], seed: str) -> Iterator[Question]:
    for epoch in itertools.count():
        yield from random.Random(f"{seed}/{epoch}").sample(questions, len(questions))


def make_corpus(
    name: str, splits: Mapping[Split, Iterable[Question]], template: str = SLOT
) -> Corpus:
    """A corpus of the splits that a source has.

    Where it has no validation split, a tenth of train becomes it, by a hash of the question: the
    same questions wherever and in whatever order they are read.
    """
    found = {split: tuple(splits.get(split, ())) for split in SPLITS}
    if "validation" not in splits:
        held = [_held_out(question) for question in found["train"]]
        train = found["train"]
        found["validation"] = tuple(itertools.compress(train, held))
        found["train"] = tuple(itertools.compress(train, (not out for out in held)))
    return Corpus(name, **found, template=template)


def _held_out(question: Question) -> bool:
    digest = hashlib.sha256(f"validation/{question.question}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 10 == 0


# name -> what it takes beside directory, path and template; gym also its dataset's configuration
FIELDS: dict[str, tuple[str, ...]] = {
    "gsm8k": (),
    "svamp": (),
    "bbh": ("task",),
    "math": (),
    "jsonl": ("question", "answer", "traces", "kind", "split"),
    "gym": ("dataset", "size", "seed"),
}


def load_corpus(
    name: str,
    directory: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    template: str | None = None,
    **fields: Any,
) -> Corpus:
    """The corpus of a name; a field of None is as good as not given.

        load_corpus("bbh", "data/built", "data/bbh", task="navigate")
        load_corpus("math", "data/built", "data/aime.jsonl")
        load_corpus("jsonl", path="mine.jsonl", traces="solutions", kind="number", split="train")
        load_corpus("gym", dataset="chain_sum", size=1000, seed=0, max_terms=3)
        load_corpus("my_corpus:capitals", template="{question} =")

    Args:
      name: gsm8k (train, test), svamp (split by hash, 70%, 10%, 20%), bbh (test alone), math, jsonl
        or gym (split by hash). Without a validation split a tenth of train becomes it. Or
        MODULE:ATTRIBUTE: a function (or class) of your own that returns a Corpus; it is given
        those of the arguments below that are not None, and must take them all but `directory`.
      directory: where gsm8k, svamp, bbh and math are built, once, as tensorflow-datasets; jsonl
        and gym are read anew each time and need none.
      path: the source's own files. For gsm8k, svamp and bbh: None downloads what is not built. For
        math and jsonl: train, validation and test as `.jsonl` in a folder, or one file. One file
        of math is a test, unless it is named `train` or `validation`; one of jsonl goes into
        `split`, or is split by hash.
      template: the prompt, with `{question}` once; None: the question alone.
      fields: `task` of bbh (None: all); `question`, `answer`, `traces`, `kind` of jsonl, as
        `read_jsonl` takes them, and `split`; `dataset`, `size` and `seed` of gym, and the fields
        of the dataset's own configuration.

    Raises:
      ValueError: in one sentence: unknown name, a field that the corpus does not take, files that
        are missing or malformed, an extra that is not installed, a function that returns none.
    """
    own = find("corpus", name, dict.fromkeys(FIELDS))
    fields = {key: value for key, value in fields.items() if value is not None}
    if is_own(name):
        given = {"directory": directory, "path": path, "template": template}
        given = {key: value for key, value in given.items() if value is not None}
        return _own(name, own, {**given, **fields})
    for key, value in fields.items():
        if key not in FIELDS[name] and name != "gym":
            takes = ", ".join(("directory", "path", "template", *FIELDS[name]))
            raise ValueError(f"{key}={value!r}: corpus {name!r} takes {takes}.")
    template = SLOT if template is None else template
    if name == "jsonl":
        return make_corpus(name, _jsonl(path, **fields), template)
    if name == "gym":
        return make_corpus(f"gym/{fields.get('dataset')}", _gym(path, **fields), template)
    return _built(name, directory, path, template, **fields)


def _own(name: str, build: Callable[..., Any], fields: Mapping[str, Any]) -> Corpus:
    """The corpus that a function of the user's makes of the fields that are set."""
    taken, takes_any = parameters("corpus", name, build)
    if "directory" not in taken and not takes_any:
        fields = {key: value for key, value in fields.items() if key != "directory"}
    for key, value in fields.items():
        if key not in taken and not takes_any:
            takes = ", ".join(taken) or "nothing"
            raise ValueError(f"{key}={value!r}: corpus {name!r} takes {takes}.")
    for key, parameter in taken.items():
        if parameter.default is parameter.empty and key not in fields:
            raise ValueError(f"corpus={name!r}: needs {key}, which is not given.")
    corpus = build(**fields)
    if not isinstance(corpus, Corpus):
        raise ValueError(
            f"corpus={name!r}: returned {type(corpus).__name__}; return a Corpus (make_corpus)."
        )
    return corpus


def _built(
    name: str,
    directory: str | os.PathLike[str] | None,
    path: str | os.PathLike[str] | None,
    template: str,
    task: str | None = None,
) -> Corpus:
    if directory is None:
        raise ValueError(f"directory=None: say where {name} is built, or shall be.")
    from reasoning.data.corpus_builders import build  # tensorflow_datasets takes seconds to import

    splits = build(name, directory, path)
    if task is None:
        return make_corpus(name, splits, template)
    test = [question for question in splits["test"] if question.id.startswith(f"bbh/{task}/")]
    if not test:
        tasks = dict.fromkeys(question.id.split("/")[1] for question in splits["test"])
        raise ValueError(f"task={task!r}: must be one of {', '.join(tasks)}.")
    return make_corpus(f"bbh/{task}", {"test": test}, template)


def _jsonl(
    path: str | os.PathLike[str] | None, split: Split | None = None, **fields: Any
) -> Mapping[Split, Sequence[Question]]:
    if path is None:
        raise ValueError("path=None: corpus 'jsonl' needs a file or a folder.")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}.")
    path = pathlib.Path(path)
    if not path.is_dir():
        questions = read_jsonl(path, **fields)
        return by_hash(questions) if split is None else {split: questions}
    files = {split: path / f"{split}.jsonl" for split in SPLITS}
    files = {split: file for split, file in files.items() if file.is_file()}
    if split is not None or not files:
        raise ValueError(
            f"path='{path}': of a folder train.jsonl, validation.jsonl and test.jsonl are read, "
            f"each as its split: {'leave `split` out' if files else 'it has none of them'}."
        )
    return {split: read_jsonl(file, **fields) for split, file in files.items()}


def _gym(
    path: str | os.PathLike[str] | None, dataset: str = "", **fields: Any
) -> Mapping[Split, Sequence[Question]]:
    if path is not None:
        raise ValueError(f"path='{path}': corpus 'gym' makes its questions; leave it out.")
    from reasoning.data.gym import gym_questions  # an extra, and seconds to import

    return by_hash(gym_questions(dataset, **{"size": 1000, "seed": 0, **fields}))
