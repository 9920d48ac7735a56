"""The processes of a job: what the first finds holds for all, refusals included."""

import json

from jobs import two_processes


def test_two_processes_open_and_refuse_runs_together(tmp_path):
    first, second = two_processes("run_worker.py", tmp_path)
    for told in (first, second):
        assert told["told"] == {"by": 0} and told["any"] == [True, True, False]
        assert told["file"].endswith("is a file; choose a directory.")
        assert "holds a run on other data (fingerprint data there and other here)" in told["data"]
        assert "another process is writing this run" in told["lock"]
        assert "do not all see what the first one writes" in told["own"]
        assert "manifest.ocdbt: its content is not what was written." in told["damaged"]
        assert told["spanning"] == [[0, 1, 2, 3]] * 2  # the same rows on every device
    for told, rows, numbers in ((first, [0, 1], [0, 1, 2, 3]), (second, [2, 3], [4, 5, 6, 7])):
        assert told["cut"] == [rows] * 2
        # The damaged third step is passed over, once for both.
        assert told["trained"] == [[2], [[x / 2**4 for x in numbers]] * 2]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert steps == [0, 1, 2, 3]
    assert len(list((tmp_path / "run" / "checkpoints").glob("damaged_2_*"))) == 1
