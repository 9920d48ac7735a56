"""A model directory and a corpus through the launchers: train, evaluate, export, and load again."""

import json

import jax
import numpy as np
import pytest

from experiments import evaluate, export, rl, sft, sources
from experiments.configs import smoke
from reasoning.data.imported_tokenizers import add_tokens
from reasoning.models.config import ModelConfig
from reasoning.models.pretrained import load_config, load_params, save_pretrained
from reasoning.models.strategies import TABLE
from reasoning.models.transformer import init_params

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def directory(model_directories, tmp_path_factory):
    """A random Qwen 2 with a tokenizer, a chat template, and rows that no token has."""
    path = tmp_path_factory.mktemp("imported") / "model"
    path.mkdir()
    for file in model_directories["qwen"].iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "chat_template.jinja").write_text(TEMPLATE)
    vocab_size = sources.load_tokenizer(path).vocab_size + 5
    config = ModelConfig(
        vocab_size=vocab_size, num_strategies=1, strategy_ids=(0,), d_model=32, num_layers=2,
        num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48, max_length=256, position_encoding="rope",
        qkv_bias=True,
    )
    save_pretrained(path, config, init_params(config, jax.random.key(0)), dtype="float32")
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Sums with two traces each, as JSONL; the last questions are formulas."""
    path = tmp_path_factory.mktemp("questions") / "sums.jsonl"
    rows = [
        {"q": f"{a} + {b}?", "gold": str(a + b),
         "ways": [f"{a} and {b}\n#### {a + b}", f"it is {a + b}.\n#### {a + b}"]}
        for a in range(8) for b in range(5)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def config(directory, questions):
    """Seconds of fine-tuning and RL of that model on those questions."""
    config = smoke.get_config()
    config.corpus.name, config.corpus.path = "jsonl", str(questions)
    config.corpus.question, config.corpus.answer, config.corpus.traces = "q", "gold", "ways"
    config.corpus.kind = "number"
    config.model.directory, config.model.chat = str(directory), True
    config.model.num_strategies, config.model.max_length = 2, 96
    config.arm = "matched"
    config.pretrain.steps = 0
    config.finetune.steps, config.finetune.rows, config.loss.match_tokens = 2, 4, 4
    config.rl.steps = 2
    config.rl.problems, config.rl.prompts, config.rl.validation_samples = 8, 2, 2
    config.evaluation.problems = config.evaluation.validation_problems = 3
    config.evaluation.samples_per_tag = 1
    return config


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_model_is_trained_evaluated_and_exported(config, tmp_path):
    """Added tags: the whole way, and the exported model is the policy, strategies included."""
    config.rl.algorithm, config.rl.trained = "gfpo", "strategies"
    rl.main(config, str(tmp_path / "run"))
    metrics = [row for row in lines(tmp_path / "run" / "metrics.jsonl") if "reward" in row]
    assert [row["step"] for row in metrics] == [0, 1]
    assert all(row["judge/exact"] == 1 for row in metrics)
    (first, *_) = lines(tmp_path / "run" / "completions.jsonl")
    assert first["prompt"].endswith("?") and first["method"] == "exact"

    policy = tmp_path / "run" / "policies" / "seed0" / "matched_gfpo"
    config.model.policy = str(policy)
    evaluate.main(config, str(tmp_path / "evaluated"))
    results = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    assert set(results["protocols"]) == {"greedy", "one tag", "own tag", "all tags"}
    for figures in results["protocols"].values():
        assert figures["n"] == 3 and figures["tokens"] > 0 and "high" in figures["pass@1"]

    out = export.export(config, str(tmp_path / "out"), "float32")
    model = load_config(out)
    setup = evaluate.set_up(config)
    trained = sources.first_params(config, setup.model, jax.random.key(0), None)["params"]
    table = load_params(out, model, jax.random.key(0))["params"]["token_embedding"]
    np.testing.assert_array_equal(table[-2:], trained[TABLE])
    tokenizer = sources.load_tokenizer(out)
    assert tokenizer.vocab_size == model.vocab_size and model.max_length == 256
    assert tokenizer.encode_template("<|strategy_2|>") == [model.vocab_size - 1]
    ours = setup.text_format.tokenizer
    ends = [setup.text_format.eos_id, *ours.encode_template("<|endoftext|>")]
    for file in ("generation_config.json", "config.json"):
        about = json.loads((out / file).read_text())
        assert about["eos_token_id"] == ends and about["pad_token_id"] == ours.pad_id
        assert about["bos_token_id"] is None


def test_an_exports_generation_ends_where_training_did(config, directory, tmp_path):
    """The template's end first, though the directory names another; its other settings stay."""
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ending = TEMPLATE.replace("<|im_end|>", "<|endoftext|>")
    (tmp_path / "chat_template.jinja").write_text(ending)
    path = tmp_path / "generation_config.json"
    end, other = json.loads(path.read_text())["eos_token_id"]
    path.write_text(json.dumps({"eos_token_id": [end, other], "bos_token_id": 4, "top_k": 20}))
    config.model.directory = str(tmp_path)
    text_format = sources.make_format(config, sources.make_problems(config))
    assert export.generation_settings(tmp_path, text_format) == {
        "eos_token_id": [other, end], "bos_token_id": 4, "top_k": 20,
        "pad_token_id": text_format.pad_id,
    }


def test_a_token_that_has_a_strategys_id_is_not_exported(config, directory, tmp_path):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rows = load_config(directory).vocab_size
    add_tokens(tmp_path / "tokenizer.json", rows, ["<image_soft_token>"])
    config.model.directory, config.model.policy = str(tmp_path), "runs/mine"
    with pytest.raises(ValueError, match=rf"a token of id {rows} without a row"):
        export.export(config, str(tmp_path / "out"), "float32")
    assert not (tmp_path / "out").exists()


def test_a_policy_from_scratch_is_not_exported(config, tmp_path):
    config.model.directory, config.model.policy = None, "runs/mine"
    with pytest.raises(ValueError, match=r"model.directory is missing: only what began with") as no:
        export.export(config, str(tmp_path / "out"), "float32")
    assert "\n" not in str(no.value) and not (tmp_path / "out").exists()


def test_an_exported_policy_is_the_same_to_transformers(config, tmp_path):
    pytest.importorskip("torch", reason="the extra [reference]")
    transformers = pytest.importorskip("transformers", reason="the extra [reference]")
    from experiments.check_pretrained import compare

    sft.main(config, str(tmp_path / "run"))
    config.model.policy = str(tmp_path / "run" / "policies" / "seed0" / "matched")
    out = export.export(config, str(tmp_path / "out"), "float32")
    found = compare(out, length=24, new_tokens=6)
    assert max(found["logits"], found["log_probs"]) < 1e-4 and found["greedy_equal"]
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    asked = [{"role": "user", "content": "3 + 4?"}]
    chat = theirs.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    ids = theirs(chat + "<|strategy_1|>", add_special_tokens=False)["input_ids"]
    ours = sources.make_format(config, sources.make_problems(config))
    assert ids == [*ours.prompt_ids("3 + 4?"), load_config(out).vocab_size - 2]


def test_textual_tags_are_trained_in_place(config, tmp_path):
    """The paper's tags: nothing is added, and the fork is the digit."""
    config.model.tags = "textual"
    setup = sft.set_up(config, ("matched",))
    tags = setup.text_format.tags
    assert setup.model.strategy_ids == tags.ids
    assert setup.model.output_size == setup.model.vocab_size
    (example, *_) = sft.training_data(setup, config).finetune
    assert example.prompt[-len(tags.prefix):] == tags.prefix
    assert all(trace[: len(tags.suffix)] == tags.suffix for trace in example.traces)
    sft.main(config, str(tmp_path / "run"))
    rows = lines(tmp_path / "run" / "completions.jsonl")
    assert {row["tag"] for row in rows} == {0, 1}


def test_rl_starts_from_a_policy_as_it_is(config, tmp_path):
    """No fine-tuning before: its tags keep what they have learned, and need no traces."""
    config.finetune.steps = 0
    config.corpus.traces = None
    setup = sft.set_up(config, ("matched",))
    data = sft.training_data(setup, config)
    assert data == sft.Data([], [])
    base = sources.first_params(config, setup.model, jax.random.key(1), None)
    params, spent = sft.fine_tune(None, setup, base, data, "matched", config, 0)
    assert params is base and spent["steps"] == 0


def test_a_policy_keeps_the_tokenizer_that_it_has_learned(config, tmp_path):
    """Another template trains another tokenizer of the same size: the policy's own is read."""
    config.model.directory, config.model.chat = None, False
    config.model.position_encoding = "rope"
    config.corpus.vocab_size = 300
    config.model.max_length = 112
    sft.main(config, str(tmp_path / "run"))
    before = sft.set_up(config, ("matched",)).text_format.tokenizer
    config.corpus.template = "Solve {question} now"
    assert sft.set_up(config, ("matched",)).text_format.tokenizer != before
    config.model.policy = str(tmp_path / "run" / "policies" / "seed0" / "matched")
    assert sft.set_up(config, ("matched",)).text_format.tokenizer == before
    config.model.policy = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere: no such directory"):
        sft.set_up(config, ("matched",))
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(ValueError, match="has no tokenizer"):
        sft.set_up(config, ("matched",))


def test_textual_tags_have_no_rows_to_train_alone(config):
    config.model.tags, config.rl.trained = "textual", "strategies"
    config.rl.algorithm = "gfpo"
    setup = sft.set_up(config, ("matched",))
    with pytest.raises(ValueError, match=r"rl.trained='strategies': tags that are textual"):
        rl.check_rl(setup, config, "rl")
    config.finetune.trained = "strategies"
    with pytest.raises(ValueError, match=r"finetune.trained='strategies'"):
        sft.set_up(config, ("matched",))


def test_a_format_knows_the_models_rows(config, directory):
    """The 5 rows without a token are no tags."""
    text_format = sources.make_format(config, sources.make_problems(config))
    rows = load_config(directory).vocab_size
    assert text_format.num_ids == rows == text_format.tokenizer.vocab_size + 5
    assert text_format.completion_text([rows, *text_format.tokenizer.encode("7")]) == "7"
    assert text_format.completion_text([rows - 1]) == "\N{REPLACEMENT CHARACTER}"


REFUSED = {
    "a task": ({"corpus.name": None}, "choose a corpus"),
    "no chat template": ({"model.chat": True}, "has no chat template"),
    "a shape": ({"model.d_ff": 7}, "model.d_ff=7"),
    "length": ({"model.max_length": 512}, "reads up to 256"),
    "tags": ({"model.tags": "none"}, "model.tags='none'"),
    "workers": ({"rl.workers": 2}, "judge.workers"),
    "formulas": ({"corpus.kind": "other"}, "kind='other'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_together_is_refused(config, directory, tmp_path, what, capsys):
    changes, sentence = REFUSED[what]
    if what == "no chat template":
        copy = tmp_path / "model"
        copy.mkdir()
        for file in directory.iterdir():
            if "chat" not in file.name:
                (copy / file.name).write_bytes(file.read_bytes())
        config.model.directory = str(copy)
    config.update_from_flattened_dict(changes)
    with pytest.raises(SystemExit) as stopped:
        rl.main(config, str(tmp_path / "run"))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_another_model_is_refused(config, model_directories, directory, tmp_path):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 100}))
    config.model.directory = str(tmp_path)
    with pytest.raises(ValueError, match="100"):
        sft.set_up(config, ("matched",))


COMPLETIONS = [
    ({"completion": r"so \boxed{42}", "gold": "42"}, True, "exact", "correct"),
    ({"completion": "#### 7.0", "gold": 7}, True, "exact", "correct"),
    ({"completion": r"\boxed{x+x}", "gold": "2x"}, True, "symbolic", "correct"),
    ({"completion": r"\boxed{(B)}", "gold": "B", "kind": "text"}, True, "exact", "correct"),
    ({"completion": "I give up", "gold": "3"}, False, "exact", "no_answer"),
    ({"completion": r"\boxed{8}", "gold": "7", "prompt": "<think>"}, False, "exact", "no_answer"),
]


def test_completions_made_elsewhere_are_judged_line_for_line(tmp_path, capsys):
    pytest.importorskip("math_verify")
    path = tmp_path / "file.jsonl"
    path.write_text("\n".join(json.dumps(row) for row, *_ in COMPLETIONS) + "\n\n")
    for _ in range(2):  # the second time it has finished
        evaluate.score_completions(path, smoke.get_config(), str(tmp_path / "run"))
        assert "6 completions: 66.67% right" in capsys.readouterr().out
    (tmp_path / "other.jsonl").write_text(json.dumps(COMPLETIONS[0][0]))
    with pytest.raises(SystemExit):  # the directory holds the verdicts on other completions
        evaluate.score_completions(
            tmp_path / "other.jsonl", smoke.get_config(), str(tmp_path / "run")
        )
    assert "another configuration (completions" in capsys.readouterr().err
    found = lines(tmp_path / "run" / "completions.jsonl")
    assert len(found) == len(COMPLETIONS)
    for row, (_, correct, method, reason) in zip(found, COMPLETIONS, strict=True):
        assert (row["correct"], row["method"], row["reason"]) == (correct, method, reason)
        assert row["milliseconds"] >= 0


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("{", "line 2: is no JSON"),
        ("[1]", "line 2: is no JSON object"),
        ('{"gold": "1"}', "line 2: completion=None must be a text"),
        ('{"completion": "1"}', "line 2: gold=None must be a text"),
        ('{"completion": "1", "gold": true}', "line 2: gold=True must be a text"),
        ('{"completion": "1", "gold": "1", "kind": "x"}', "line 2: kind='x'"),
        ('{"completion": "1", "gold": "six", "kind": "number"}', "line 2: gold='six': is no"),
        ('{"completion": "1", "gold": " "}', "line 2: gold=' ': a gold answer must not be empty"),
        (json.dumps({"completion": "1", "gold": "x" * 600}), "line 2: gold=.*: is itself too_long"),
        ("  \n" + json.dumps({"completion": "1", "gold": "1"}), "line 2: is blank; verdicts are"),
        ('{"completion": "1", "gold": ' + "[" * 100_000, "line 2: is nested too deeply"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, sentence):
    path = tmp_path / "file.jsonl"
    path.write_text(json.dumps(COMPLETIONS[0][0]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=sentence):
        evaluate.read_completions(path)


def test_a_gold_answer_that_its_kind_cannot_have_is_refused(config, questions, tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows.append({**rows[0], "q": "?", "gold": "six"})
    path.write_text("\n".join(map(json.dumps, rows)))
    config.corpus.path = str(path)
    with pytest.raises(ValueError, match=r"^question sums/41: gold='six': is no number"):
        sources.make_judge(config, sources.make_problems(config))


def test_samples_are_estimated_tag_by_tag():
    """Two tags, two samples each: the first tag is always right, the second never."""
    from reasoning.evaluation.policies import Judged

    right = np.array([[True, True, False, False]] * 3)
    texts = np.where(right, "1", "2").astype(object)
    judged = Judged(
        tags=np.array([[0, 0, 1, 1]] * 3), correct=right,
        reasons=np.where(right, "correct", "wrong_value").astype(object),
        strategies=np.zeros((3, 4), int), validity=np.zeros((3, 4)),
        lengths=np.full((3, 4), 5), completions=texts, answers=texts, votes=texts,
        methods=np.full((3, 4), "exact", object), milliseconds=np.zeros((3, 4)),
    )
    found = evaluate.estimates(judged, 2)
    assert found["pass@1"]["value"] == 0.5
    assert found["pass@k"]["2"]["value"] == 1  # one sample of each tag
    assert found["g_pass@k"]["2, tau 1.0"]["value"] == pytest.approx(1 / 6)  # of any two samples
    assert found["reasons"] == {"correct": 0.5, "wrong_value": 0.5}
    assert found["tokens"] == 60
