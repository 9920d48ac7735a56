"""The published sets as tensorflow-datasets in array_record files; TensorFlow is not needed.

    splits = build("gsm8k", "data/built", path="data/gsm8k")    # once: the next call only reads
    splits = build("gsm8k", "data/built")                       # downloads if it is not built

Importing this module imports tensorflow_datasets, which takes seconds, and registers a builder with
it. So only `reasoning.data.corpora` imports it, at the moment of use. The builder's class names the
dataset: `reasoning_questions/gsm8k`, which leaves TFDS its own `gsm8k`.
"""

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from reasoning.data.questions import (
    SOURCES,
    Question,
    download,
    files_digest,
    read_source,
    source_files,
)
from reasoning.data.tasks.base import Split

_FIELDS = ("id", "question", "answer", "kind")


class ReasoningQuestions(tfds.core.GeneratorBasedBuilder):
    """One config a set; `files` are a local copy, without it the set is downloaded."""

    VERSION = tfds.core.Version("1.0.0")  # raise it when the sets are read in another way
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SOURCES]  # noqa: RUF012

    def __init__(self, *, files: Sequence[pathlib.Path] | None = None, **arguments: Any) -> None:
        self._files = files
        # The format's default, tfrecord, fails without TensorFlow, and only after the work.
        super().__init__(file_format="array_record", **arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        fields = {**{field: text() for field in _FIELDS}, "traces": tfds.features.Sequence(text())}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(fields),
            disable_shuffling=True,  # keeps the order of the files
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[Split, Iterator[tuple[int, dict]]]:
        """A fresh generator a split; a split without questions is left out."""
        # Not by `dl_manager`: offline it tries again for minutes, and its checksums lie elsewhere.
        name = self.builder_config.name
        with tempfile.TemporaryDirectory() as folder:
            if self._files is None:
                download(name, pathlib.Path(folder))
            files = source_files(name, folder) if self._files is None else self._files
            self.info.metadata["source"] = files_digest(files)
            splits = read_source(name, files)
        return {split: self._generate_examples(found) for split, found in splits.items() if found}

    def _generate_examples(self, questions: Sequence[Question]) -> Iterator[tuple[int, dict]]:
        for index, question in enumerate(questions):
            fields = {field: getattr(question, field) for field in _FIELDS}
            yield index, {**fields, "traces": list(question.traces)}


def build(
    name: str,
    directory: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
) -> dict[Split, tuple[Question, ...]]:
    """Build a set in a directory, unless it is there, and read it into memory.

    Args:
      name: gsm8k, svamp, bbh or math.
      directory: where the built sets live; made if it is not there.
      path: a local copy of the set's files (`questions.source_files`); None: what is built, or
        else the original source, pinned to a commit and verified by checksum.

    Returns:
      The questions of each split that the source has, in its order.

    Raises:
      ValueError: unknown name, a directory that is a file, files that are missing or malformed or
        cannot be downloaded; or the directory holds the set built of other files than `path`.
    """
    if name not in SOURCES:
        raise ValueError(f"name={name!r}: must be one of {', '.join(SOURCES)}.")
    root = epath.Path(directory)
    if root.exists() and not root.is_dir():
        raise ValueError(f"directory='{directory}': is a file; name a directory.")
    files = None if path is None else source_files(name, path)
    builder = ReasoningQuestions(config=name, data_dir=os.fspath(root), files=files)
    if not builder.is_prepared():
        _prepare(builder)
        builder = ReasoningQuestions(config=name, data_dir=os.fspath(root), files=files)
    if files is not None and builder.info.metadata["source"] != files_digest(files):
        raise ValueError(
            f"path='{path}': directory='{directory}' holds {name} built of other files; delete "
            f"'{builder.data_dir}', or name another directory."
        )
    return {split: _read(builder, split) for split in builder.info.splits}


def _prepare(builder: ReasoningQuestions) -> None:
    # A build appears whole, by a rename: where another process was first, its build is taken.
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(FileExistsError):
        builder.download_and_prepare()  # what it prints is not the program's output


def _read(builder: ReasoningQuestions, split: Split) -> tuple[Question, ...]:
    rows = builder.as_data_source(split=split)
    return tuple(  # text comes back as bytes
        Question(
            **{field: row[field].decode() for field in _FIELDS},
            traces=tuple(trace.decode() for trace in row["traces"]),
        )
        for row in rows
    )
