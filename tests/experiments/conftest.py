"""Shared by the tests of the experiments: refusals, and runs that are stopped and go on."""

import json
import signal

import pytest

from reasoning.runtime.runs import STOPPED, Run


@pytest.fixture
def refusal(capsys):
    """`refusal(main, config, workdir)`: the one line with which a program refuses to run."""

    def refused(main, config, workdir):
        with pytest.raises(SystemExit) as stopped:
            main(config, str(workdir))
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    return refused


@pytest.fixture
def stopped_at(monkeypatch):
    """`stopped_at(places, main, config, workdir)`: a run that a signal ends at each of the places.

    A place is a phase of metrics.jsonl and a step; the same command goes on each time.
    """

    def run(places, main, config, workdir):
        log, stops = Run.log_metrics, list(places)

        def log_and_stop(run, phase, step, metrics):
            log(run, phase, step, metrics)
            if stops and (phase, step) == stops[0]:
                signal.raise_signal(signal.SIGTERM)
                del stops[0]

        monkeypatch.setattr(Run, "log_metrics", log_and_stop)
        for _ in places:
            with pytest.raises(SystemExit) as stopped:
                main(config, str(workdir))
            assert stopped.value.code == STOPPED
        main(config, str(workdir))
        assert not stops
        return workdir

    return run


@pytest.fixture
def figures_of():
    """`figures_of(workdir)`: the arms and comparisons of a run, without the seconds they took."""

    def read(workdir):
        results = json.loads((workdir / "results.json").read_text())
        for arm in results["arms"].values():
            del arm["training"]["seconds"]
        return results["arms"], results["comparisons"]

    return read
