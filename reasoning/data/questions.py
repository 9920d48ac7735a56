"""Questions with gold answers, read from files: public sets in their own shapes, and any JSONL.

    questions = read_jsonl("traces.jsonl", question="problem", answer="gold", traces="solutions")
    splits = read_source("gsm8k", source_files("gsm8k", "data/gsm8k"))    # {"train": [...], ...}
    download("gsm8k", folder)                       # from a pinned commit, checksums verified

The sets are the user's or their authors': the project carries none of them.
"""

import dataclasses
import decimal
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import typing
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from reasoning.data.tasks.base import SPLITS, Split, split_of

Kind = Literal["number", "expression", "text"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)

# Where the sets are published: the address of a commit, and the SHA-256 of each of its files.
RAW = "https://raw.githubusercontent.com/"
ADDRESSES = {
    "gsm8k": RAW + "openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
    "grade_school_math/data/",
    "svamp": RAW + "arkilpatel/SVAMP/689d7ccac74b9983a2ac7cc3b264f441b99e7c53/",
    "bbh": RAW + "suzgunmirac/BIG-Bench-Hard/9ee07bd481feebf959a6b59d61ea57bdcf30964d/bbh/",
}
CHECKSUMS = {
    "gsm8k": {
        "test.jsonl": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        "train.jsonl": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    },
    "svamp": {
        "SVAMP.json": "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e",
    },
    "bbh": {
        "boolean_expressions.json":
            "ea6c754ec005e2d3f2d085d349a740f593b5764f32ea4638ffed4cfc0061b12a",
        "causal_judgement.json": "6e8bca44dd402008ed41c07a3d0a1d5e7b03db7001a7e002fcdf4c60985ea081",
        "date_understanding.json":
            "0148d4ac5fca05b2f82373e5fef7208e15363b9c6079493034d77b3dab496bf5",
        "dyck_languages.json": "3f9badedf15c2be1ce53d94fdf016299bb30ba231ef087ab9f51a7ed6d0bdc25",
        "formal_fallacies.json": "4c1adb664821157faade1d4153685403afcc02648f3c180a608a18f17f589629",
        "logical_deduction_five_objects.json":
            "d2df31394b903b7f0e085d42a69572a092987856eac076799017d70ef266fa8f",
        "logical_deduction_three_objects.json":
            "e590fae72e3a6041fbd23bd8ff6b74baf44ca563f6ba40a041c55e7b867c1681",
        "multistep_arithmetic_two.json":
            "c9d5a6433c9b78256422a15c78463949c8bec8d85607aa28b52d7234ad4a8595",
        "navigate.json": "b7944dfd3c81da5c4815bd75b00d6fa3c64140823498e78ed496f4c3d36f7f0d",
        "object_counting.json": "8acef14dbbdd40d2326ef7755750b6b5fe919fef06276af1bab3f1c297f022ff",
        "reasoning_about_colored_objects.json":
            "0a8850cf95166020fce7a78244026ceedd7ea839302471512b4f8744e85a6a49",
        "temporal_sequences.json":
            "92a1189faaa84aacc4c405aaa13f13f48c2992eb884772eedb622505252baef5",
        "tracking_shuffled_objects_five_objects.json":
            "2063a46a4fb484236ed4310523606543a3e1dd4a4dc34eda65d407910ece25a5",
        "tracking_shuffled_objects_three_objects.json":
            "546cc7bf10c6a01a6a4c17ae28a4966485f21f29fd5d111f37858ec78e354f6b",
        "web_of_lies.json": "3e60323f8514a107fdb4edf35f8832a9171c5a09c0eaa47823559de905e8ab8b",
        "word_sorting.json": "2a6132d2c99f00d0d2eb1113ac6b4a918bd969d863c48749210d969713db8d43",
    },
}


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of a corpus.

    Attributes:
      id: names it within its corpus, as `gsm8k/test/17` or `bbh/navigate/3`.
      question: the text to answer.
      answer: the gold answer as it is judged: `1080` where the source has `1,080`.
      kind: how answers are compared: as numbers, as mathematical expressions, or as text.
      traces: completions to learn from, in the corpus's order; () where there is none.
    """

    id: str
    question: str
    answer: str
    kind: Kind
    traces: tuple[str, ...] = ()


def kind_of(answers: Sequence[str]) -> Kind:
    """`number` if every answer is an integer or a decimal number, else `text`."""
    number = re.compile(r"-?[0-9]+(\.[0-9]+)?")
    return "number" if all(number.fullmatch(answer) for answer in answers) else "text"


def by_hash(questions: Iterable[Question]) -> dict[Split, list[Question]]:
    """Questions split as those of a task are: 70%, 10% and 20%, by a hash of their text."""
    splits: dict[Split, list[Question]] = {split: [] for split in SPLITS}
    for question in questions:
        splits[split_of(question.question)].append(question)
    return splits


def read_jsonl(
    path: str | os.PathLike[str],
    *,
    question: str = "question",
    answer: str = "answer",
    traces: str | None = None,
    kind: Kind = "expression",
) -> tuple[Question, ...]:
    """The questions of a JSONL file, in the order in which they first come.

    Rows with the same question text become one question with the traces of all, each once: that is
    how a question gets several traces. Blank lines are skipped. Null bytes are kept, as a tokenizer
    keeps them; a lone surrogate is refused, as UTF-8 cannot hold it.

    Args:
      path: UTF-8, one JSON object a line; a file named `.json` holds a list of objects instead.
      question: the field with the question, a string.
      answer: the field with the gold answer, a string or a number.
      traces: the field with a completion or a list of completions; None: there are no traces.
      kind: how answers are compared.

    Raises:
      ValueError: no such file, or no question in it; or a line is malformed, lacks a field, has
        one of a wrong type, or gives a question another answer: with file and line number.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(KINDS)}.")
    path = pathlib.Path(path)
    found: dict[str, tuple[_Row, str, dict[str, None]]] = {}
    for row in _rows(path):
        text, gold, written = _text(row, question), _answer(row, answer), _traces(row, traces)
        first, first_gold, known = found.setdefault(text, (row, gold, {}))
        if gold != first_gold:
            raise ValueError(
                f"{row}: {answer}={gold!r}, but {first_gold!r} for the same question in "
                f"{first.unit} {first.number}; keep one."
            )
        known.update(dict.fromkeys(written))  # each once, in order
    return tuple(
        Question(f"{path.stem}/{row.number}", text, gold, kind, tuple(known))
        for text, (row, gold, known) in found.items()
    )


# The published sets: a folder's files -> questions by split


def _gsm8k(files: Sequence[pathlib.Path]) -> dict[Split, list[Question]]:
    """`{"question", "answer"}` a line; the answer is a solution that ends in `#### 1,080`."""
    splits = {}
    for file in files:
        split = _split_named(file)
        splits[split] = [_gsm8k_question(row, split) for row in _rows(file)]
    return splits


def _gsm8k_question(row: "_Row", split: Split) -> Question:
    # <<48/2=24>> marks a call of the calculator: nothing to read or to learn.
    trace = re.sub(r"<<[^<>]*>>", "", _text(row, "answer"))
    _, mark, gold = trace.rpartition("#### ")
    gold = gold.strip().replace(",", "")
    if not mark or kind_of([gold]) != "number":
        raise ValueError(f"{row}: answer must end in '#### ' and a number.")
    text = _text(row, "question")
    return Question(f"gsm8k/{split}/{row.number - 1}", text, gold, "number", (trace,))


def _svamp(files: Sequence[pathlib.Path]) -> dict[Split, list[Question]]:
    """One list for all: it is split here, by hash, as tasks are (70%, 10%, 20%).

    The trace is the equation; that of chal-680 gives 5 and the gold is 1, as published.
    """
    questions = []
    for row in _rows(files[0]):
        text = f"{_text(row, 'Body').strip()} {_text(row, 'Question').strip()}"
        gold = _answer(row, "Answer")
        equation = re.sub(r"\.0\b", "", _text(row, "Equation").strip())  # 76.0 reads 76
        trace = f"{equation}\n#### {gold}"
        questions.append(Question(f"svamp/{_text(row, 'ID')}", text, gold, "number", (trace,)))
    return by_hash(questions)


def _bbh(files: Sequence[pathlib.Path]) -> dict[Split, list[Question]]:
    """`{"examples": [{"input", "target"}]}`, a file a task: a test, nothing in it is to learn from.

    Two questions of causal_judgement come twice, once with either answer, as published.
    """
    questions = []
    for file in files:
        rows = list(_rows(file, "examples"))
        golds = [_answer(row, "target") for row in rows]
        kind = kind_of(golds)
        questions += [
            Question(f"bbh/{file.stem}/{row.number - 1}", _text(row, "input"), gold, kind)
            for row, gold in zip(rows, golds, strict=True)
        ]
    return {"test": questions}


def _math(files: Sequence[pathlib.Path]) -> dict[Split, list[Question]]:
    """`{"problem", "solution", "answer"}` a row; the solution, where there is one, is the trace."""
    splits = {}
    for file in files:
        split = _split_named(file)
        splits[split] = [
            Question(
                f"math/{split}/{row.number - 1}",
                _text(row, "problem"),
                _answer(row, "answer"),
                "expression",
                _traces(row, "solution" if "solution" in row.fields else None),
            )
            for row in _rows(file)
        ]
    return splits


def _split_named(file: pathlib.Path) -> Split:
    return typing.cast(Split, file.stem) if file.stem in SPLITS else "test"


Parser = Callable[[Sequence[pathlib.Path]], dict[Split, list[Question]]]
# name -> (which files of a folder belong to it, how they are read)
SOURCES: dict[str, tuple[str, Parser]] = {
    "gsm8k": (r"(train|test)\.jsonl", _gsm8k),
    "svamp": (r"SVAMP\.json", _svamp),
    "bbh": (r"[a-z_]+\.json", _bbh),
    "math": (r"(train|validation|test)\.jsonl?", _math),
}


def source_files(name: str, path: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The files of a set of SOURCES at a path: a folder that holds them, or one of any name.

    Raises:
      ValueError: no such path; or the folder holds none of the set's files, or two for one split.
    """
    pattern, _ = SOURCES[name]
    path = pathlib.Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"path='{path}': there is no such file or folder.")
    files = sorted(file for file in path.iterdir() if re.fullmatch(pattern, file.name))
    if not files:
        raise ValueError(f"path='{path}': {name} needs files named as {pattern}; there is none.")
    for one, other in itertools.pairwise(files):
        if one.stem == other.stem:
            raise ValueError(f"path='{path}': holds {one.name} and {other.name}; keep one.")
    return files


def read_source(name: str, files: Sequence[pathlib.Path]) -> dict[Split, list[Question]]:
    """The questions of a set of SOURCES by split, in the order of its files.

    A file named by a split (`train.jsonl`) is that split of gsm8k or math; any other is a test.

    Raises:
      ValueError: a file is not like the set's, with its row.
    """
    _, parse = SOURCES[name]
    return parse(files)


def files_digest(files: Sequence[pathlib.Path]) -> str:
    """SHA-256 (hex) of the files' names and contents."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def download(name: str, folder: pathlib.Path) -> None:
    """Fetch a set's files from the commit where they are published, into a folder.

    Raises:
      ValueError: the set is one to be given by path, a file cannot be fetched, or it is not the
        one whose checksum is known.
    """
    if name not in ADDRESSES:
        raise ValueError(f"path=None: {name} is read from files of yours; give their path.")
    for file, checksum in CHECKSUMS[name].items():
        address = ADDRESSES[name] + file
        try:
            with urllib.request.urlopen(address, timeout=60) as response:
                content = response.read()
        except OSError as error:  # urllib's own errors are of this class
            raise ValueError(
                f"path=None: {address} cannot be fetched ({error}); fetch the files of {name} "
                "yourself and give their path."
            ) from error
        found = hashlib.sha256(content).hexdigest()
        if found != checksum:
            raise ValueError(
                f"{address} has the SHA-256 {found}, not {checksum}: something on the way changed "
                "it; fetch it again, or give a path."
            )
        (folder / file).write_bytes(content)


# Rows and their fields; every complaint says where


@dataclasses.dataclass(frozen=True)
class _Row:
    """An object of a file: the line of a JSONL file, or the n-th of a list, from 1."""

    path: pathlib.Path
    unit: Literal["line", "row"]
    number: int
    fields: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"


def _rows(path: pathlib.Path, inside: str | None = None) -> Iterator[_Row]:
    """The objects of a .json file (a list, or the list in the field `inside`), or of JSONL lines.

    Raises:
      ValueError: no such file, no row in it, or one that is no object, with its number.
    """
    if not path.is_file():
        raise ValueError(f"path='{path}': there is no such file.")
    read = _json_items(path, inside) if path.suffix == ".json" else _jsonl_items(path)
    unit: Literal["line", "row"] = "row" if path.suffix == ".json" else "line"
    empty = True
    for number, item in read:
        if not isinstance(item, dict):
            raise ValueError(f"{path}, {unit} {number}: must be a JSON object, not {_named(item)}.")
        yield _Row(path, unit, number, item)
        empty = False
    if empty:
        raise ValueError(f"path='{path}': the file has no rows.")


def _jsonl_items(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as lines:  # as bytes, for only \n ends a line: U+2028 may be in a text
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _parse(line, f"{path}, line {number}")


def _json_items(path: pathlib.Path, inside: str | None) -> Iterator[tuple[int, Any]]:
    items = _parse(path.read_bytes(), str(path))
    if inside is not None:
        items = items.get(inside) if isinstance(items, dict) else None
    if not isinstance(items, list):
        where = "an object with a list in the field 'examples'" if inside else "a list of objects"
        raise ValueError(f"path='{path}': must hold {where}.")
    yield from enumerate(items, 1)


def _parse(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode(), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        at = f"{error.msg}, at character {error.pos + 1}"  # its own line counts are from `where`
        raise ValueError(f"{where}: is no JSON ({at}).") from None
    except RecursionError:
        raise ValueError(f"{where}: is nested too deeply.") from None
    except ValueError as error:  # bytes that are no UTF-8, NaN, an integer of thousands of digits
        raise ValueError(f"{where}: is no JSON in UTF-8 ({error}).") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _named(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")


def _field(row: _Row, name: str) -> Any:
    if name not in row.fields:
        raise ValueError(f"{row}: has no field {name!r}; it has {', '.join(row.fields) or 'none'}.")
    return row.fields[name]


def _checked(row: _Row, name: str, text: Any) -> str:
    """A text as it may stand in a corpus."""
    if not isinstance(text, str):
        raise ValueError(f"{row}: {name} must be a string, not {_named(text)}.")
    if not text.strip():
        raise ValueError(f"{row}: {name} is blank.")
    if re.search(r"[\ud800-\udfff]", text):
        raise ValueError(f"{row}: {name} has a lone surrogate, which UTF-8 cannot hold.")
    return text


def _text(row: _Row, name: str) -> str:
    return _checked(row, name, _field(row, name))


def _answer(row: _Row, name: str) -> str:
    """A gold answer; a number is written out, and 8.0 as 8."""
    value = _field(row, name)
    if isinstance(value, float) and not math.isfinite(value):  # as JSON reads 1e999
        raise ValueError(f"{row}: {name} is too large a number.")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format(decimal.Decimal(repr(value)), "f").removesuffix(".0")
    return _checked(row, name, value).strip()


def _traces(row: _Row, name: str | None) -> tuple[str, ...]:
    if name is None:
        return ()
    value = _field(row, name)
    texts = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(_checked(row, name, text) for text in texts))  # each once
