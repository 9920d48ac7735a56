"""JSONL with named fields: merged questions, any text, and refusals with their line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.questions import Question, read_jsonl
from reasoning.data.tokenizers import train_tokenizer


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path



def test_jsonl_merges_the_traces_of_a_question(tmp_path):
    path = write_jsonl(
        tmp_path / "mine.jsonl",
        [
            {"q": "One?", "gold": "1", "by": ["a", "b"]},
            {"q": "Two\u2028lines?", "gold": 2.0, "by": "c"},  # no line ends at U+2028
            {"q": "One?", "gold": 1, "by": ["b", "d"], "more": None},
        ],
    )
    with path.open("ab") as file:
        file.write(b"  \n" + '{"q": "Drei?", "gold": "a\\u0000é", "by": []}'.encode())
    assert read_jsonl(path, question="q", answer="gold", traces="by", kind="text") == (
        Question("mine/1", "One?", "1", "text", ("a", "b", "d")),
        Question("mine/2", "Two\u2028lines?", "2", "text", ("c",)),
        Question("mine/5", "Drei?", "a\0é", "text"),
    )
    assert all(q.traces == () and q.kind == "expression"
               for q in read_jsonl(path, question="q", answer="gold"))


def test_a_json_file_holds_a_list(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('[{"question": "One?", "answer": 1}, {"question": "One?", "answer": 2}]')
    with pytest.raises(ValueError, match=r"row 2: answer='2', but '1' .* in row 1; keep one\.$"):
        read_jsonl(path)
    path.write_text('[{"question": "One?", "answer": 1}]')
    assert read_jsonl(path) == (Question("list/1", "One?", "1", "expression"),)
    path.write_text('{"question": "One?", "answer": 1}')
    with pytest.raises(ValueError, match=r"^path='.*list\.json': must hold a list of objects\.$"):
        read_jsonl(path)


def test_jsonl_keeps_null_bytes_that_a_tokenizer_keeps(tmp_path):
    path = write_jsonl(tmp_path / "null.jsonl", [{"question": "a\0b", "answer": "\0"}])
    (question,) = read_jsonl(path)
    tokenizer = train_tokenizer(["a b"], vocab_size=None)
    assert tokenizer.decode(tokenizer.encode(question.question)) == "a\0b"


GOOD = b'{"question": "One?", "answer": "1", "traces": "a"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "is no JSON (Expecting property name enclosed in double quotes, at character 3)."),
        (b'{"question": "Two?"', "is no JSON (Expecting ',' delimiter, at character 21)."),
        (b'["Two?", "2"]', "must be a JSON object, not a list."),
        (b"null", "must be a JSON object, not null."),
        (b"\xef\xbb\xbf{}", "is no JSON (Unexpected UTF-8 BOM (decode using utf-8-sig), at "
                            "character 1)."),
        (b'{"question": "\xff"}', "is no JSON in UTF-8 ('utf-8' codec can't decode byte 0xff in "
                                  "position 14: invalid start byte)."),
        (b'{"answer": NaN}', "is no JSON in UTF-8 (NaN is no JSON value)."),
        (b"[" * 100_000, "is nested too deeply."),
        (b'{"question": "Two?"}', "has no field 'answer'; it has question."),
        (b'{"answer": "2"}', "has no field 'question'; it has answer."),
        (b"{}", "has no field 'question'; it has none."),
        (b'{"question": 2, "answer": "2", "traces": "a"}',
         "question must be a string, not a number."),
        (b'{"question": " ", "answer": "2", "traces": "a"}', "question is blank."),
        (b'{"question": "Two?", "answer": null}', "answer must be a string, not null."),
        (b'{"question": "Two?", "answer": true}', "answer must be a string, not true or false."),
        (b'{"question": "Two?", "answer": ["2"]}', "answer must be a string, not a list."),
        (b'{"question": "Two?", "answer": 1e999}', "answer is too large a number."),
        (b'{"question": "Two?", "answer": "2"}',
         "has no field 'traces'; it has question, answer."),
        (b'{"question": "Two?", "answer": "2", "traces": {"a": 1}}',
         "traces must be a string, not an object."),
        (b'{"question": "Two?", "answer": "2", "traces": ["a", 3]}',
         "traces must be a string, not a number."),
        (b'{"question": "Two?", "answer": "2", "traces": ["a", ""]}', "traces is blank."),
        (b'{"question": "\\ud83d?", "answer": "2", "traces": "a"}',
         "question has a lone surrogate, which UTF-8 cannot hold."),
        (b'{"question": "One?", "answer": "01", "traces": "a"}',
         "answer='01', but '1' for the same question in line 1; keep one."),
    ],
)
def test_a_malformed_line_is_named(line, message, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(ValueError) as error:
        read_jsonl(path, traces="traces")
    assert str(error.value) == f"{path}, line 3: {message}"


def test_a_file_that_is_missing_or_empty_is_refused(tmp_path):
    path = tmp_path / "none.jsonl"
    with pytest.raises(ValueError, match=r"^path='.*none\.jsonl': there is no such file\.$"):
        read_jsonl(path)
    path.write_text("\n \n")
    with pytest.raises(ValueError, match=r"^path='.*none\.jsonl': the file has no rows\.$"):
        read_jsonl(path)
    with pytest.raises(ValueError, match=r"^kind='maths': must be one of number, expression, text"):
        read_jsonl(path, kind="maths")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(deadline=None)
@given(st.dictionaries(TEXTS, st.tuples(TEXTS, st.lists(TEXTS, unique=True)), min_size=1))
def test_jsonl_holds_any_text(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("jsonl") / "any.jsonl"
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for text, (answer, traces) in rows.items():
            row = {"question": text, "answer": answer, "traces": traces}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    found = read_jsonl(path, traces="traces")
    assert [(q.question, q.answer, list(q.traces)) for q in found] == [
        (text, answer.strip(), traces) for text, (answer, traces) in rows.items()
    ]
