"""The pages of docs/ideas work as written: their files, and their commands in order.

Each page is followed in a directory that holds nothing but the checkout's packages, as a reader
would who works in a checkout.
"""

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import check_pretrained, sft, show_task
from experiments.configs import smoke
from reasoning.data.corpora import load_corpus
from reasoning.data.tasks import make_task
from reasoning.evaluation.policies import judge, sample_problems
from reasoning.learning.advantages import advantages
from reasoning.learning.algorithms import make_algorithm
from reasoning.models.pretrained import check_weights, load_config
from reasoning.models.transformer import init_params
from reasoning.sampling.filters import Filters

ROOT = Path(__file__).parent.parent
PAGES = sorted(path.stem for path in (ROOT / "docs" / "ideas").glob("*.md"))
BLOCK = re.compile(r"(?:^`([\w.]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINES = 40  # of a file that the reader writes, at most
# Of every training and evaluation: that it runs, not how well. The last of two equal flags counts.
SMOKE = (
    "--config.model.preset=0.01m --config.pretrain.problems=60 --config.finetune.problems=60 "
    "--config.evaluation.problems=8 --config.evaluation.validation_problems=8 "
    "--config.rl.steps=2 --config.rl.problems=60 --config.rl.prompts=4 --config.rl.samples=4 "
    "--config.rl.microbatches=1 --config.rl.validate_every=2 --config.finetune.steps=2"
)
QUICK = "--xla_backend_optimization_level=0"  # much is compiled and little computed
FEW_STEPS = "--config.pretrain.steps=2"  # where there are any


def blocks(page):
    """The fenced blocks of a page: (file name or "", language, text)."""
    return BLOCK.findall((ROOT / "docs" / "ideas" / f"{page}.md").read_text())


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """`follow(page)`: write the page's files where a reader would, and stand there."""
    modules = []

    def written(page):
        for package in ("experiments", "reasoning"):
            (tmp_path / package).symlink_to(ROOT / package)
        for name, language, text in blocks(page):
            if language == "python":
                (tmp_path / name).write_text(text)
                modules.append(Path(name).stem)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    yield written
    for module in modules:  # another page may have one of the same name
        sys.modules.pop(module, None)


def test_there_is_a_page_for_each_idea_and_each_is_linked():
    assert PAGES == ["advantage", "corpus", "decoding", "family", "strategy", "task"]
    for text in ("README.md", "CONTRIBUTING.md"):
        linked = re.findall(r"\(docs/ideas/(\w+)\.md\)", (ROOT / text).read_text())
        assert sorted(linked) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_a_page_asks_for_few_lines(page):
    files = {name: text for name, language, text in blocks(page) if language == "python"}
    assert files and all(files), "every file has a name"
    for text in files.values():
        assert sum(1 for line in text.splitlines() if line.strip()) <= LINES
        assert max(map(len, text.splitlines())) <= 100
    assert {language for _, language, _ in blocks(page)} == {"python", "sh", "text"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs_in_order(page, follow):
    if page == "family":
        pytest.importorskip("transformers")
    directory = follow(page)
    shim = directory / "bin" / "python"  # the page's `python`, with flags that make runs small
    shim.parent.mkdir()
    shim.write_text(
        '#!/bin/bash\ncase "$*" in\n'
        '  *experiments.quickstart\\ *) set -- "$@" --config=experiments/configs/smoke.py ;;\n'
        f'  *gsm8k.py*) set -- "$@" {SMOKE} ;;\n'
        f'  *experiments.sft*|*experiments.rl*) set -- "$@" {SMOKE} {FEW_STEPS} ;;\n'
        f'esac\nexec {sys.executable} "$@"\n'
    )
    shim.chmod(0o755)
    script = "".join(text for _, language, text in blocks(page) if language == "sh")
    path = f"{shim.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XLA_FLAGS": QUICK}
    done = subprocess.run(
        ["bash", "-e", "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    asked = re.findall(r"--workdir=(\S+)", script)
    assert all((directory / workdir / "results.json").is_file() for workdir in asked)


# What each page says, without its trainings.


def shown(page):
    """The page's first output."""
    return next(text for _, language, text in blocks(page) if language == "text")


def described(name, count):
    """What show_task prints of a task's first problems."""
    task = make_task(name)
    problems = show_task.distinct_problems(task, "train", 0, count)
    return "\n\n".join(show_task.describe(task, problem) for problem in problems) + "\n"


def set_up(name, num_strategies):
    config = smoke.get_config()
    config.task.name, config.model.num_strategies = name, num_strategies
    return sft.set_up(config, ("matched",)), config


def test_task(follow):
    follow("task")
    assert described("my_task:GCD", 2) == shown("task")
    setup, config = set_up("my_task:GCD", 2)
    assert len(sft.training_data(setup, config).finetune) == config.finetune.problems
    task, problem = setup.task, (26, 20)
    mixed = "26 % 20 = 6 , 20 % 6 = 2 , 6 - 2 = 4 , 4 - 2 = 2 , 2 % 2 = 0"
    assert task.check_trace(problem, None, mixed) == 1.0 and task.recognise(problem, mixed) is None
    wrong = "26 % 20 = 6 , 20 % 6 = 3 , 6 % 3 = 0"
    assert task.check_trace(problem, None, wrong) == pytest.approx(1 / 3)
    assert task.recognise(problem, wrong) == "divide", "a wrong remainder is no other strategy"
    assert task.check_trace(problem, "divide", "26 % 20 = 6 , 20 - 6 = 14") == 0.5
    assert [task.verify(problem, each).correct for each in ("2", "4", "", None)] == [
        True, False, False, False
    ]


def test_strategy(follow):
    follow("strategy")
    assert described("my_strategy:Five", 1) == shown("strategy")
    setup, _ = set_up("my_strategy:Five", 5)
    problems = [setup.task.sample(0, index) for index in range(200)]
    traces = [(p, setup.task.trace(p, "products")) for p in problems]
    found = [setup.task.recognise(p, trace.steps) for p, trace in traces if trace]
    assert set(found) == {"products", None} and found.count("products") > len(found) / 2


def test_advantage(follow):
    follow("advantage")
    tests = vars(importlib.import_module("test_my_loss"))
    own = [test for name, test in tests.items() if name.startswith("test_")]
    assert len(own) == 2
    for test in own:
        test()
    names = {"advantage": "my_loss:w_reinforce", "kind": "my_loss:spo"}
    algorithm = make_algorithm("grpo", **names)
    made = advantages(algorithm.advantage, np.eye(2, dtype=np.float32), np.ones((2, 2), bool))
    np.testing.assert_allclose(made, [[0.1, -1.0], [-1.0, 0.1]])


def test_decoding(follow):
    """All strategies to the end: the likeliest of the greedy completions, found in another way."""
    follow("decoding")
    prune = importlib.import_module("my_decoding").prune
    setup, _ = set_up("countdown", 4)
    policy, problems = setup.policy(init_params(setup.model, jax.random.key(0))), setup.test[:2]
    greedy = sample_problems(
        policy, problems, np.arange(4), jax.random.key(1), Filters(temperature=0.0)
    )
    best = (greedy.log_probs * greedy.mask).sum(axis=2).argmax(axis=1)[:, None, None]
    tokens, mask = (np.take_along_axis(x, best, 1) for x in (greedy.tokens, greedy.mask))
    told = []

    def judged(*drawn):
        told.append(drawn[2:])
        return judge(*drawn)

    prune.__globals__["judge"] = judged
    _, cost = prune(policy, problems, kept=4, first=9)
    np.testing.assert_array_equal(told[0][0] * told[0][1], tokens * mask)
    np.testing.assert_array_equal(told[0][1], mask)
    assert cost == pytest.approx(greedy.mask.sum() / 2)


def test_corpus(follow):
    directory = follow("corpus")
    runpy.run_path("make_pens.py")
    plain = load_corpus("jsonl", path="pens.jsonl", traces="traces", kind="number")
    corpus = load_corpus("my_corpus:pens", path=directory / "pens.jsonl", template="{question}")
    sizes = [len(c.train) + len(c.validation) + len(c.test) for c in (plain, corpus)]
    assert sizes == [38 * 38, 2 * 38 * 38] and corpus.num_traces == 2
    for question in (corpus.train[0], corpus.test[0]):
        example, _, asked = corpus.prompt(question).partition("\n\n")
        assert asked == question.question and question.question not in example
        assert example.endswith("#### " + example.rpartition(" ")[2])
    for question in corpus.train:
        assert all(trace.endswith(f"#### {question.answer}") for trace in question.traces)


PHI = {
    "vocab_size": 9, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "sliding_window": 5, "model_type": "phi3",
}
PHI_LAYER = {
    "self_attn.qkv_proj": (16, 8), "self_attn.o_proj": (8, 8), "mlp.gate_up_proj": (12, 8),
    "mlp.down_proj": (8, 6), "input_layernorm": (8,), "post_attention_layernorm": (8,),
}


def write_phi(directory):
    """A directory with the shapes of a tiny Phi-3, random, without `transformers`."""
    rng = np.random.default_rng(0)
    shapes = {f"layers.{i}.{name}": shape for i in range(2) for name, shape in PHI_LAYER.items()}
    shapes |= {"embed_tokens": (9, 8), "norm": (8,)}
    shapes = {f"model.{name}": shape for name, shape in shapes.items()} | {"lm_head": (9, 8)}
    directory.mkdir(parents=True)
    files = {f"{name}.weight": rng.normal(size=s).astype("float32") for name, s in shapes.items()}
    save_file(files, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(PHI))
    return files


def convert(monkeypatch, *directories):
    monkeypatch.setattr(sys, "argv", ["my_family.py", *map(str, directories)])
    runpy.run_path("my_family.py", run_name="__main__")


def test_family(follow, monkeypatch):
    directory = follow("family")
    theirs = write_phi(directory / "phi")
    convert(monkeypatch, "phi", "ours")
    config = load_config(directory / "ours")
    check_weights(directory / "ours", config)
    assert config.windows == (5, 5) and config.norm_epsilon == 1e-5 and not config.tied_head
    ours = load_file(directory / "ours" / "model.safetensors")
    for layer in (f"model.layers.{i}." for i in range(2)):
        for whole, parts in (
            ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            joined = np.concatenate([ours.pop(f"{layer}{part}.weight") for part in parts])
            np.testing.assert_array_equal(joined, theirs.pop(f"{layer}{whole}.weight"))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])
    (directory / "phi" / "config.json").write_text(
        json.dumps({**PHI, "rope_scaling": {"type": "longrope"}})
    )
    with pytest.raises(SystemExit, match="neither scaled nor partial"):
        convert(monkeypatch, "phi", "again")


@pytest.mark.slow
def test_family_computes_what_transformers_does(follow, monkeypatch):
    pytest.importorskip("transformers")
    follow("family")
    runpy.run_path("tiny_phi3.py")
    convert(monkeypatch, "models/tiny-phi3", "models/tiny")
    found = check_pretrained.compare("models/tiny", 40, 4, "models/tiny-phi3")
    assert found["greedy_equal"] and max(found["logits"], found["log_probs"]) < 1e-4
