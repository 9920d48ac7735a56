"""Corpora: what each source's shape becomes, refusals with their line, and the part of a task."""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
from collections import Counter

import pytest

from reasoning.data import questions
from reasoning.data.corpora import Corpus, Question, load_corpus, make_corpus
from reasoning.data.formats import TextFormat
from reasoning.data.pipelines import practice_examples, strategy_examples, trace_batches
from reasoning.data.tasks.base import SPLITS, distinct_problems, split_of
from reasoning.data.tokenizers import train_tokenizer

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def build():
    pytest.importorskip("tensorflow_datasets")
    from reasoning.data.corpus_builders import build

    return build


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def gsm8k(folder, train=30, test=5):
    """Made-up files of GSM8K's shape."""
    folder.mkdir()
    for split, count in (("train", train), ("test", test)):
        rows = [
            {
                "question": f"A {split} farm has {i} × 1,000 hens. How many?",
                "answer": f"It has {i}*1000 = <<{i}*1000={i * 1000}>>{i * 1000} hens.\n"
                f"That is ${i * 1000}.\n#### {i * 1000:,}",
            }
            for i in range(count)
        ]
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def svamp(folder, count=60):
    """A made-up file of SVAMP's shape."""
    folder.mkdir()
    rows = [
        {
            "ID": f"chal-{i}", "Body": f"Dan had $ {i} and got 0.5", "Question": "How much has he?",
            "Equation": f"( {i}.0 + 0.5 )", "Answer": i + 0.5 if i % 2 else float(i), "Type": "Sum",
        }
        for i in range(1, count + 1)
    ]
    (folder / "SVAMP.json").write_text(json.dumps(rows, indent=4))
    return folder


def bbh(folder):
    """Made-up files of two tasks of BBH's shape; a question comes twice with either answer."""
    folder.mkdir()
    tasks = {"counting": ["3", "-12"], "judging": ["Yes", "(A)", "] >", "No"]}
    for task, targets in tasks.items():
        examples = [
            {"input": f"{task} {min(i, 2)}\nOptions:\n- Yes", "target": target}
            for i, target in enumerate(targets)
        ]
        (folder / f"{task}.json").write_text(json.dumps({"canary": "x", "examples": examples}))
    (folder / "LICENSE").write_text("MIT")
    return folder


# The sets' shapes


def test_gsm8k_loses_marks_and_commas_and_keeps_order(build, tmp_path):
    splits = build("gsm8k", tmp_path / "built", gsm8k(tmp_path / "gsm8k"))
    assert {split: len(found) for split, found in splits.items()} == {"train": 30, "test": 5}
    assert [question.id for question in splits["train"]] == [f"gsm8k/train/{i}" for i in range(30)]
    assert splits["train"][12] == Question(
        id="gsm8k/train/12", question="A train farm has 12 × 1,000 hens. How many?",
        answer="12000", kind="number",
        traces=("It has 12*1000 = 12000 hens.\nThat is $12000.\n#### 12,000",),
    )


def test_svamp_writes_whole_numbers_and_splits_by_hash(build, tmp_path):
    splits = build("svamp", tmp_path / "built", svamp(tmp_path / "svamp"))
    found = {question.id: (split, question) for split in splits for question in splits[split]}
    assert len(found) == 60 and set(splits) == set(SPLITS)
    assert all(split == split_of(question.question) for split, question in found.values())
    _, whole = found["svamp/chal-50"]
    assert whole.question == "Dan had $ 50 and got 0.5 How much has he?"
    assert (whole.answer, whole.kind) == ("50", "number")
    assert whole.traces == ("( 50 + 0.5 )\n#### 50",)
    assert found["svamp/chal-7"][1].answer == "7.5"


def test_bbh_is_a_test_whose_problems_know_their_task(build, tmp_path):
    splits = build("bbh", tmp_path / "built", bbh(tmp_path / "bbh"))
    assert list(splits) == ["test"]
    rows = [(q.id, q.answer, q.kind, q.traces) for q in splits["test"]]
    assert rows == [
        ("bbh/counting/0", "3", "number", ()),
        ("bbh/counting/1", "-12", "number", ()),
        ("bbh/judging/0", "Yes", "text", ()),
        ("bbh/judging/1", "(A)", "text", ()),
        ("bbh/judging/2", "] >", "text", ()),
        ("bbh/judging/3", "No", "text", ()),
    ]
    corpus = load_corpus("bbh", tmp_path / "built", task="judging")
    assert corpus.name == "bbh/judging" and corpus.test == splits["test"][2:]
    assert len(distinct_problems(corpus, "test", 0, 4)) == 4  # one text may ask twice
    with pytest.raises(ValueError, match=r"^task='cooking': must be one of counting, judging\.$"):
        load_corpus("bbh", tmp_path / "built", task="cooking")


ROWS = [
    {"problem": "What is $\\frac{1}{2}$?", "solution": "It is \\boxed{\\frac12}.",
     "answer": "\\frac{1}{2}", "level": 3},
    {"problem": "Two?", "answer": 2},
]


def test_math_is_read_from_one_file_or_a_folder_of_splits(build, tmp_path):
    file = write_jsonl(tmp_path / "aime.jsonl", ROWS)
    assert build("math", tmp_path / "one", file) == {
        "test": (
            Question("math/test/0", "What is $\\frac{1}{2}$?", "\\frac{1}{2}", "expression",
                     ("It is \\boxed{\\frac12}.",)),
            Question("math/test/1", "Two?", "2", "expression"),
        )
    }
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps(ROWS[:1]))
    write_jsonl(folder / "validation.jsonl", ROWS[1:])
    splits = build("math", tmp_path / "two", folder)
    assert {split: len(found) for split, found in splits.items()} == {"train": 1, "validation": 1}
    write_jsonl(folder / "train.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"holds train\.json and train\.jsonl; keep one\.$"):
        build("math", tmp_path / "two", folder)


# What tensorflow-datasets does, and would do


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_builds_are_the_same_bytes_in_array_record(build, tmp_path):
    path = gsm8k(tmp_path / "gsm8k")
    for name in ("one", "two"):
        build("gsm8k", tmp_path / name, path)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one == two
    data = [name for name in one if "-of-" in name]
    assert len(data) == 2 and all(".array_record-" in name for name in data)


def test_a_second_build_reads_what_the_first_wrote(build, tmp_path, monkeypatch):
    path = gsm8k(tmp_path / "gsm8k")
    first = build("gsm8k", tmp_path / "built", path)
    before = contents(tmp_path / "built")
    for file in (tmp_path / "built").rglob("*"):  # written anew, it would have another time
        os.utime(file, (0, 0))
    monkeypatch.setattr(questions, "_rows", None)  # nothing is parsed, nothing is fetched
    monkeypatch.setattr(questions.urllib.request, "urlopen", None)
    assert build("gsm8k", tmp_path / "built", path) == first
    assert build("gsm8k", tmp_path / "built") == first
    assert contents(tmp_path / "built") == before
    assert all(file.stat().st_mtime == 0 for file in (tmp_path / "built").rglob("*"))


def test_processes_may_build_at_the_same_time(build, tmp_path, monkeypatch):
    path = gsm8k(tmp_path / "gsm8k")
    corpus_builders = sys.modules[build.__module__]
    read_source = corpus_builders.read_source

    def read_slowly(*arguments):  # meanwhile another builds the same
        monkeypatch.setattr(corpus_builders, "read_source", read_source)
        build("gsm8k", tmp_path / "built", path)
        return read_source(*arguments)

    monkeypatch.setattr(corpus_builders, "read_source", read_slowly)
    assert len(build("gsm8k", tmp_path / "built", path)["train"]) == 30
    assert corpus_builders.read_source is read_source
    assert not list((tmp_path / "built").rglob("*incomplete*"))


def test_a_build_of_other_files_is_not_taken_for_these(build, tmp_path):
    build("gsm8k", tmp_path / "built", gsm8k(tmp_path / "gsm8k"))
    with pytest.raises(ValueError, match=r"holds gsm8k built of other files; delete '.*1\.0\.0'"):
        build("gsm8k", tmp_path / "built", gsm8k(tmp_path / "more", train=31))


def test_a_builder_in_a_package_works_without_tensorflow_or_flags(build, tmp_path):
    """In a process of its own: no TensorFlow, TFDS only when used, absl's flags never parsed."""
    path = gsm8k(tmp_path / "gsm8k")
    program = f"""
import sys
import reasoning.data.tasks, reasoning.data.pipelines, reasoning.data.corpora
assert "tensorflow_datasets" not in sys.modules
corpus = reasoning.data.corpora.load_corpus("gsm8k", {str(tmp_path / "built")!r}, {str(path)!r})
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
import importlib_resources, tensorflow_datasets as tfds
source = tfds.data_source("reasoning_questions/gsm8k", data_dir={str(tmp_path / "built")!r},
                          split="train[:10%]")
assert len(source) == 3 and type(source[0]["question"]) is bytes
tfds.text.Gsm8k  # TFDS has one of its own, which ours leaves alone
print(len(corpus.test))
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "5\n"  # nothing that TFDS prints


def test_a_malformed_file_is_refused_in_one_sentence_and_leaves_nothing(build, tmp_path):
    path = gsm8k(tmp_path / "gsm8k")
    write_jsonl(path / "test.jsonl", [{"question": "How many?", "answer": "It is 3."}])
    for _ in range(2):
        with pytest.raises(ValueError) as error:
            build("gsm8k", tmp_path / "built", path)
        assert str(error.value) == (
            f"{path / 'test.jsonl'}, line 1: answer must end in '#### ' and a number."
        )
    (path / "test.jsonl").unlink()
    assert len(build("gsm8k", tmp_path / "built", path)["train"]) == 30


# The original source


@pytest.fixture
def published(monkeypatch, tmp_path):
    """The address of made-up GSM8K files, and their checksums, in place of the real ones."""
    folder = gsm8k(tmp_path / "published")
    monkeypatch.setitem(questions.ADDRESSES, "gsm8k", f"{folder.as_uri()}/")
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    monkeypatch.setitem(questions.CHECKSUMS, "gsm8k", sums)
    return folder


def test_a_set_without_a_path_comes_from_its_source(build, published, tmp_path):
    fetched = build("gsm8k", tmp_path / "fetched")
    assert fetched == build("gsm8k", tmp_path / "local", published)
    assert fetched == build("gsm8k", tmp_path / "fetched", published)  # the same files: no refusal


def test_a_download_that_is_not_what_was_published_is_refused(build, published, tmp_path):
    with (published / "test.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"test\.jsonl has the SHA-256 [0-9a-f]{64}, not [0-9a-f]"):
        build("gsm8k", tmp_path / "built")


def test_a_source_out_of_reach_is_one_sentence(build, published, tmp_path):
    (published / "train.jsonl").unlink()
    with pytest.raises(ValueError, match=r"^path=None: file:.*train\.jsonl cannot be fetched \("):
        build("gsm8k", tmp_path / "built")


def test_every_published_file_is_pinned_to_a_commit_and_a_checksum():
    assert set(questions.ADDRESSES) == set(questions.CHECKSUMS) == {"gsm8k", "svamp", "bbh"}
    assert {name: len(files) for name, files in questions.CHECKSUMS.items()} == {
        "gsm8k": 2, "svamp": 1, "bbh": 16,
    }
    for name, address in questions.ADDRESSES.items():
        assert any(len(part) == 40 and int(part, 16) for part in address.split("/")[5:6]), name
        assert all(len(bytes.fromhex(sha)) == 32 for sha in questions.CHECKSUMS[name].values())


# A corpus in a task's place


def numbered(count, traces=1, name="q"):
    return tuple(
        Question(f"{name}/{i}", f"What is {i} and {i}?", str(2 * i), "number",
                 tuple(f"It is {i} plus {i}, way {t}.\n#### {2 * i}" for t in range(traces)))
        for i in range(count)
    )


CORPUS = Corpus("sums", numbered(20, traces=3), (), numbered(5, name="t"))


def test_a_stream_is_every_question_once_an_epoch_in_a_new_order():
    stream = list(itertools.islice(CORPUS.stream("train", 3), 60))
    epochs = [stream[:20], stream[20:40], stream[40:]]
    assert all(Counter(epoch) == Counter(CORPUS.train) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(CORPUS.train)
    assert list(itertools.islice(CORPUS.stream("train", 3), 60)) == stream
    assert list(itertools.islice(CORPUS.stream("train", 4), 60)) != stream


def test_an_empty_split_is_refused_at_once():
    with pytest.raises(ValueError) as error:
        CORPUS.stream("validation", 0)
    assert str(error.value) == "split='validation': is empty in sums, which has train, test."


def test_distinct_problems_are_all_there_are_and_no_more():
    assert set(distinct_problems(CORPUS, "test", 0, 5)) == set(CORPUS.test)
    with pytest.raises(ValueError, match=r"^count=6: only 5 different problems were found in the "):
        distinct_problems(CORPUS, "test", 0, 6)


def test_a_tenth_of_train_is_held_out_by_the_question_alone():
    found = numbered(2000)
    corpus = make_corpus("sums", {"train": found, "test": numbered(3, name="t")})
    assert len(corpus.validation) == pytest.approx(200, abs=50)
    assert sorted((*corpus.train, *corpus.validation), key=found.index) == list(found)
    shuffled = random.Random(0).sample(found, 1000)
    other = make_corpus("sums", {"train": shuffled})
    assert set(other.validation) == set(corpus.validation) & set(shuffled)
    given = make_corpus("sums", {"train": found, "validation": ()})
    assert given.train == found  # the source's own, although it is empty


def test_a_template_holds_the_question_once_and_any_braces():
    question = Question("q/0", "What is {1, 2} and {question}?", "x", "text")
    corpus = Corpus("q", (question,), (), (), template="{Q} {question} {A:\\boxed{}}")
    prompt = "{Q} What is {1, 2} and {question}? {A:\\boxed{}}"
    assert corpus.prompt(question) == prompt and list(corpus.lines()) == [prompt]
    for template in ("", "Q: {}", "{question} {question}"):
        with pytest.raises(ValueError, match=r"must have \{question\} exactly once\.$"):
            Corpus("q", (question,), (), (), template=template)


def test_an_id_twice_is_refused():
    with pytest.raises(ValueError, match=r"^id='q/0': is there twice in sums; rename one\.$"):
        Corpus("sums", numbered(1), (), numbered(1))


def test_lines_are_the_text_of_train_alone():
    lines = list(CORPUS.lines())
    assert len(lines) == 20 * 4
    assert lines[:2] == ["What is 0 and 0?", "It is 0 plus 0, way 0.\n#### 0"]


def test_a_fingerprint_is_of_everything_in_the_corpus():
    def changed(**fields):
        return dataclasses.replace(CORPUS, name="other name", **fields).fingerprint

    def first(**fields):
        return (dataclasses.replace(CORPUS.train[0], **fields), *CORPUS.train[1:])

    others = [
        changed(train=CORPUS.train[::-1]),
        changed(test=CORPUS.test[1:]),
        changed(train=CORPUS.train + CORPUS.test, test=()),
        changed(template="Q: {question}"),
        changed(train=first(answer="1")),
        changed(train=first(kind="text")),
        changed(train=first(traces=())),
    ]
    assert changed() == CORPUS.fingerprint
    assert len({CORPUS.fingerprint, *others}) == 1 + len(others)


def test_the_pipelines_take_a_corpus_as_a_task():
    tokenizer = train_tokenizer(CORPUS.lines(), vocab_size=None)
    examples = strategy_examples(CORPUS, TextFormat(tokenizer), seed=0, count=20)
    by_prompt = {CORPUS.prompt(question): question for question in CORPUS.train}
    orders = set()
    for example in examples:
        question = by_prompt.pop(tokenizer.decode(example.prompt))
        written = [tokenizer.decode(trace[:-1]) for trace in example.traces]
        assert sorted(written) == sorted(question.traces)
        orders.add(tuple(map(question.traces.index, written)))
    assert not by_prompt and len(orders) > 3  # the order of traces says nothing
    for example in practice_examples(CORPUS, TextFormat(tokenizer), seed=0, count=20):
        (trace,) = example.traces
        assert "way 0." in tokenizer.decode(trace)
    assert CORPUS.num_traces == 3 and CORPUS.strategies == ()
    (batch,) = trace_batches(examples, rows=9, buckets=[80], num_batches=1, pad_id=0, seed=0)
    assert Counter(batch.problem.tolist()) == {0: 3, 1: 3, 2: 3}


def test_questions_without_traces_teach_nothing():
    corpus = Corpus("tests", numbered(5, traces=0), (), ())
    tokenizer = train_tokenizer(corpus.lines(), vocab_size=None)
    assert corpus.num_traces == 0
    for make in (strategy_examples, practice_examples):
        with pytest.raises(ValueError, match=r"tests has no trace for .* take a corpus with trac"):
            make(corpus, TextFormat(tokenizer), seed=0, count=1)


# load_corpus


def test_build_refuses_a_set_that_it_does_not_know(build, tmp_path):
    with pytest.raises(ValueError, match=r"^name='jsonl': must be one of gsm8k, svamp, bbh, math"):
        build("jsonl", tmp_path)


def test_load_corpus_reads_each_source(build, tmp_path):
    built = tmp_path / "built"
    corpus = load_corpus("gsm8k", built, gsm8k(tmp_path / "gsm8k"), template="Q: {question}")
    assert len(corpus.train) + len(corpus.validation) == 30 and len(corpus.test) == 5
    assert corpus.prompt(corpus.test[0]).startswith("Q: A test farm has 0 ")
    corpus = load_corpus("svamp", built, svamp(tmp_path / "svamp"))
    assert len(corpus.train) + len(corpus.validation) + len(corpus.test) == 60
    file = write_jsonl(tmp_path / "aime.jsonl", ROWS)
    assert len(load_corpus("math", built, file).test) == 2
    fields = dict(path=file, question="problem", kind="text", traces=None)
    splits = load_corpus("jsonl", **fields)
    assert all(split_of(q.question) == split for split in SPLITS for q in getattr(splits, split))
    assert len(load_corpus("jsonl", split="test", **fields).test) == 2
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "test"):
        write_jsonl(folder / f"{split}.jsonl", ROWS)
    corpus = load_corpus("jsonl", path=folder, question="problem")
    assert [q.id for q in (*corpus.train, *corpus.validation)] == ["train/1", "train/2"]
    assert [q.id for q in corpus.test] == ["test/1", "test/2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="gsm9k"), "corpus='gsm9k': must be one of gsm8k, svamp, bbh, math, jsonl, gym, "
         "or MODULE:ATTRIBUTE of your own."),
        (dict(name="gsm8k"), "directory=None: say where gsm8k is built, or shall be."),
        (dict(name="gsm8k", directory="D", path="X"), "path='X': there is no such file or folder."),
        (dict(name="gsm8k", directory="D", path="."),
         "path='.': gsm8k needs files named as (train|test)\\.jsonl; there is none."),
        (dict(name="gsm8k", directory="file"), "directory='file': is a file; name a directory."),
        (dict(name="math", directory="D"),
         "path=None: math is read from files of yours; give their path."),
        (dict(name="gsm8k", directory="D", task="navigate"),
         "task='navigate': corpus 'gsm8k' takes directory, path, template."),
        (dict(name="jsonl"), "path=None: corpus 'jsonl' needs a file or a folder."),
        (dict(name="jsonl", path="X"), "path='X': there is no such file."),
        (dict(name="jsonl", path="file", split="all"),
         "split='all': must be one of train, validation, test."),
        (dict(name="jsonl", path="."),
         "path='.': of a folder train.jsonl, validation.jsonl and test.jsonl are read, each as its "
         "split: it has none of them."),
        (dict(name="jsonl", path="file", colour=3),
         "colour=3: corpus 'jsonl' takes directory, path, template, question, answer, traces, "
         "kind, split."),
        (dict(name="gym", path="X"), "path='X': corpus 'gym' makes its questions; leave it out."),
    ],
)
def test_a_mistake_is_one_sentence(build, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("file").touch()
    with pytest.raises(ValueError) as error:
        load_corpus(**arguments)
    assert str(error.value) == message


# The real sets


@pytest.fixture(scope="module")
def real(build, tmp_path_factory):
    """A function of a name: the real corpus, built from $REASONING_DATA/NAME."""
    if "REASONING_DATA" not in os.environ:
        pytest.skip("REASONING_DATA names no folder with gsm8k, svamp and bbh")
    data = pathlib.Path(os.environ["REASONING_DATA"])
    directory = tmp_path_factory.mktemp("built")
    return lambda name: load_corpus(name, directory, data / name)


@pytest.mark.slow
def test_the_real_sets_have_their_counts_and_their_checksums(real):
    corpus = real("gsm8k")
    assert len(corpus.train) + len(corpus.validation) == 7473 and len(corpus.test) == 1319
    for question in (*corpus.train, *corpus.validation, *corpus.test):
        (trace,) = question.traces
        assert "<<" not in trace and ">>" not in trace
        assert trace.rpartition("#### ")[2].replace(",", "") == question.answer
        assert str(int(question.answer)) == question.answer
    corpus = real("svamp")
    found = (*corpus.train, *corpus.validation, *corpus.test)
    assert len(found) == 1000 and all(str(int(q.answer)) == q.answer for q in found)
    corpus = real("bbh")
    tasks = Counter(question.id.split("/")[1] for question in corpus.test)
    assert len(tasks) == 16 and tasks["causal_judgement"] == 187
    assert set(tasks.values()) == {187, 250} and not corpus.train and not corpus.validation
    numbers = {q.id.split("/")[1] for q in corpus.test if q.kind == "number"}
    assert numbers == {"multistep_arithmetic_two", "object_counting"}
    data = pathlib.Path(os.environ["REASONING_DATA"])
    for name, sums in questions.CHECKSUMS.items():
        for file, checksum in sums.items():
            assert hashlib.sha256((data / name / file).read_bytes()).hexdigest() == checksum
