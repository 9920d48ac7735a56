"""What is read of a run directory: finished, killed, damaged, or none at all."""

import json
import re

import pytest

from reasoning.evaluation.records import differences, flattened, read_record, read_records

ROW = {"prompt": "3 5 make 8 :", "completion": "answer 3 + 5 = 8", "correct": True}


def test_a_record_holds_what_the_files_hold(write_run):
    metrics = [{"phase": "base", "step": 0, "loss": 1.5}]
    path = write_run("it", [ROW, ROW], metrics, {"arms": {}}, {"seed": 7}, table="a table\n")
    record = read_record(path)
    assert (record.name, record.config, record.state) == ("it", {"seed": 7}, "Finished.")
    assert (record.metrics, record.completions) == (metrics, [ROW, ROW])
    assert (record.results, record.table, record.damaged) == ({"arms": {}}, "a table\n", {})


def test_a_killed_run_is_read_up_to_its_damaged_line(write_run):
    path = write_run("it", [ROW], [{"phase": "mixed", "step": 41}])
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "mixed", "st')
    with (path / "completions.jsonl").open("ab") as file:
        file.write(b'[1, 2]\n\xff\xfe\n' + json.dumps(ROW).encode())
    record = read_record(path)
    assert record.results is None
    assert record.state.startswith("Not finished: step 41 of mixed; last written 20")
    assert record.completions == [ROW, ROW]
    assert record.damaged == {"metrics.jsonl": 1, "completions.jsonl": 2}


def test_a_run_that_has_just_started_has_a_state(write_run):
    assert "nothing logged yet" in read_record(write_run()).state


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (None, "there is no such directory"),
        ({}, "holds no config.json, so no run was started there"),
        ({"config.json": "{}"}, "describes no run"),
        ({"config.json": "{"}, "config.json: is damaged"),
        ({"config.json": "[]"}, "no JSON object"),
        ({"config.json": '{"program": "p", "config": {}}', "results.json": "{"},
         "results.json: is damaged"),
    ],
)
def test_what_is_no_run_is_refused_in_one_sentence(tmp_path, files, sentence):
    path = tmp_path / "it"
    if files is not None:
        path.mkdir()
        for name, content in files.items():
            (path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        read_record(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


def test_runs_of_one_name_are_told_apart(write_run, tmp_path):
    write_run("a/run")
    write_run("b/run")
    records = read_records([str(tmp_path / "a/run"), str(tmp_path / "b/run")])
    assert [record.name for record in records] == ["a/run", "b/run"]
    with pytest.raises(ValueError, match="named twice"):
        read_records([str(tmp_path / "a/run"), str(tmp_path / "b/../a/run")])


def test_only_settings_that_differ_are_told():
    one = {"seed": 0, "rl": {"steps": 3, "override": {}}, "only": None}
    other = {"seed": 0, "rl": {"steps": 4, "override": {"kl": 0.1}}, "arm": "mixed"}
    assert flattened(one) == {"seed": 0, "rl.steps": 3, "rl.override": {}, "only": None}
    assert differences([one, other]) == {
        "rl.steps": [3, 4], "rl.override": [{}, "(none)"], "only": [None, "(none)"],
        "rl.override.kl": ["(none)", 0.1], "arm": ["(none)", "mixed"],
    }
    assert differences([one, one]) == differences([one]) == {}
    assert differences([{"a": True}, {"a": 1}]) == {"a": [True, 1]}
