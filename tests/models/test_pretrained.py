"""Hugging Face model directories: every family against `transformers` itself, and back."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra [reference]")
transformers = pytest.importorskip("transformers", reason="the extra [reference]")

from experiments.check_pretrained import compare, reference  # noqa: E402
from reasoning.models import strategies  # noqa: E402
from reasoning.models.config import RopeScaling  # noqa: E402
from reasoning.models.pretrained import (  # noqa: E402
    load_config,
    load_params,
    read_header,
    save_pretrained,
)
from reasoning.models.transformer import Transformer, init_params  # noqa: E402
from reasoning.runtime.meshes import MeshShape, make_mesh, param_shardings  # noqa: E402

SMALL = dict(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512,
)
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
LINEAR = dict(rope_type="linear", factor=8.0)
# The windows are shorter than the rows (48 tokens).
CASES = {
    "qwen2": ("Qwen2Config", dict(tie_word_embeddings=True)),
    "qwen2_sharded": ("Qwen2Config", {}),
    "qwen2_window": (
        "Qwen2Config", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)
    ),
    "qwen3": ("Qwen3Config", dict(head_dim=16, num_key_value_heads=1)),
    "llama": ("LlamaConfig", dict(rope_scaling=LLAMA3, rope_theta=5e5, num_key_value_heads=6)),
    "llama_tied": ("LlamaConfig", dict(tie_word_embeddings=True, rope_scaling=LINEAR)),
    "mistral": ("MistralConfig", dict(sliding_window=7, head_dim=12)),
    "mistral_whole": ("MistralConfig", dict(sliding_window=None)),
    "gemma2": ("Gemma2Config", dict(head_dim=16, sliding_window=6, query_pre_attn_scalar=24)),
    "gemma3": (
        "Gemma3TextConfig",
        dict(head_dim=16, sliding_window=6, query_pre_attn_scalar=24, num_hidden_layers=7,
             rope_scaling=LINEAR),
    ),
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A function of a case: a directory that `transformers` wrote, of random weights."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def directory(case):
        if case in made:
            return made[case]
        kind, changes = CASES[case]
        config = getattr(transformers, kind)(**{**SMALL, **changes})
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).float()
        for weights in model.parameters():  # biases and norms as well: far from where they start
            torch.nn.init.normal_(weights, 0.0 if weights.ndim == 2 else 0.5, 0.2)
        sharded = dict(max_shard_size="30KB") if "sharded" in case else {}
        model.save_pretrained(root / case, **sharded)
        made[case] = root / case
        return made[case]

    return directory


def equal(left, right):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), left, right))


@pytest.mark.parametrize("case", CASES)
def test_a_family_computes_what_transformers_computes(directories, case):
    found = compare(directories(case), length=48, new_tokens=8)
    assert found["logits"] < 1e-4
    assert found["log_probs"] < 1e-4
    assert found["greedy_equal"]


@pytest.mark.parametrize("case", CASES)
def test_an_export_scores_the_same_and_comes_back_bit_for_bit(directories, case, tmp_path):
    config = load_config(directories(case), num_strategies=3, scan_layers=True)
    params = load_params(directories(case), config, jax.random.key(0))
    save_pretrained(tmp_path / "out", config, params, dtype="float32", shard_bytes=40_000)
    tokens = np.random.default_rng(1).integers(0, config.output_size, (2, 24)).astype(np.int32)
    theirs, _ = reference(tmp_path / "out", tokens, np.ones_like(tokens), 1)
    ours, _ = jax.jit(Transformer(config).apply)(params, tokens)
    assert np.abs(theirs - ours).max() < 1e-4  # the strategies' ids, too: read and scored
    assert (tokens >= config.vocab_size).any()

    again = load_config(tmp_path / "out", num_strategies=1, scan_layers=True)
    assert dataclasses.replace(again, vocab_size=97, num_strategies=3) == config
    weights = load_params(tmp_path / "out", again, jax.random.key(0))["params"]
    table = np.asarray(weights["token_embedding"])
    np.testing.assert_array_equal(table[97:], params["params"][strategies.TABLE])
    np.testing.assert_array_equal(table[:97], params["params"]["token_embedding"])
    assert equal(weights["layers"], params["params"]["layers"])


def test_the_model_keeps_its_files_bits(directories, tmp_path):
    """Loaded and written without strategy rows, the tensors are those of the original files."""
    from safetensors.numpy import load_file

    source = directories("qwen2_sharded")
    config = load_config(source, num_strategies=2, strategy_ids=(5, 9))
    params = load_params(source, config, jax.random.key(0))
    assert strategies.TABLE not in params["params"]
    save_pretrained(tmp_path / "out", config, params, dtype="float32")
    written = load_file(tmp_path / "out" / "model.safetensors")
    original = {}
    for path in source.glob("*.safetensors"):
        original |= load_file(path)
    assert len(list(source.glob("*.safetensors"))) > 1
    assert written.keys() == original.keys()
    for name, array in original.items():
        np.testing.assert_array_equal(written[name], array)


def test_layouts_of_layers_agree(directories):
    """Unrolled and scanned layers, one device and eight: the same parameters."""
    source = directories("gemma3")
    config = load_config(source, num_strategies=2)
    unrolled = load_params(source, config, jax.random.key(0))["params"]
    scanned_config = dataclasses.replace(config, scan_layers=True)
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    shardings = param_shardings(scanned_config, mesh)
    scanned = load_params(source, scanned_config, jax.random.key(0), shardings)
    for found, wanted in zip(
        jax.tree.leaves(scanned), jax.tree.leaves(shardings), strict=True
    ):
        assert found.sharding.is_equivalent_to(wanted, found.ndim)
    shapes = jax.eval_shape(lambda key: init_params(scanned_config, key), jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), scanned) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    for layer in range(config.num_layers):
        rows = jax.tree.map(lambda x, i=layer: x[i], scanned["params"]["layers"])
        assert equal(rows, unrolled[f"layer_{layer}"])
    np.testing.assert_allclose(
        scanned["params"][strategies.TABLE], unrolled[strategies.TABLE], atol=1e-6
    )


def test_bfloat16_files_load_and_come_back(directories, tmp_path):
    source = directories("qwen3")
    config = load_config(source, num_strategies=1)
    save_pretrained(tmp_path / "half", config, load_params(source, config, jax.random.key(0)))
    half = load_config(tmp_path / "half", num_strategies=1)
    wide = load_params(tmp_path / "half", half, jax.random.key(0))
    narrow = load_params(tmp_path / "half", half, jax.random.key(0), dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(wide)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(narrow)} == {jnp.dtype("bfloat16")}
    for rows in (strategies.TABLE, strategies.HEAD):  # these are not in the files
        del wide["params"][rows], narrow["params"][rows]
    assert equal(wide, narrow)


def test_strategies_start_near_the_mean_token(directories):
    config = load_config(directories("llama"), num_strategies=64)
    weights = load_params(directories("llama"), config, jax.random.key(0))["params"]
    for table, rows in (
        ("token_embedding", strategies.TABLE), ("token_head", strategies.HEAD)
    ):
        vocabulary, started = np.asarray(weights[table]), np.asarray(weights[rows])
        assert len(np.unique(started, axis=0)) == 64
        spread = (started - vocabulary.mean(0)) / vocabulary.std(0)
        assert abs(spread.mean()) < 0.01
        assert abs(spread.std() - 0.1) < 0.01


def test_strategies_may_be_ids_of_the_vocabulary(directories):
    """Tags of the text are scored with their own rows, and nothing is added."""
    ids = (7, 8, 9)
    config = load_config(directories("qwen2"), num_strategies=3, strategy_ids=ids)
    assert config.output_size == config.vocab_size
    tags = jnp.array([2, 0])
    assert strategies.tag_to_id(config, tags).tolist() == [9, 7]
    read = strategies.id_to_tag(config, jnp.array([[7, 9], [6, 96]]))
    assert read.tolist() == [[0, 2], [-1, -1]]
    for wrong in ((7, 8), (7, 7, 8), (7, 8, 97)):
        with pytest.raises(ValueError, match="strategy_ids"):
            dataclasses.replace(config, strategy_ids=wrong)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "type": "llama3"}},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    ],
)
def test_old_and_new_keys_of_rotary_positions_mean_the_same(tmp_path, rope):
    write(tmp_path, {**SMALL, "model_type": "llama", **rope})
    config = load_config(tmp_path)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 64)


def test_the_text_model_within_a_larger_one(tmp_path):
    """Gemma 3's larger models keep the text model's configuration and weights one level down."""
    from safetensors.numpy import load_file, save_file

    inner = transformers.Gemma3TextConfig(**SMALL, head_dim=16, query_pre_attn_scalar=16)
    model = transformers.AutoModelForCausalLM.from_config(inner).float()
    model.save_pretrained(tmp_path)
    config = load_config(tmp_path)
    params = load_params(tmp_path, config, jax.random.key(0))
    about = json.loads((tmp_path / "config.json").read_text())
    write(tmp_path, {"model_type": "gemma3", "text_config": about})
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {f"language_model.{name}": array for name, array in tensors.items()}
    renamed["vision_tower.patches.weight"] = np.zeros((2, 2), np.float32)
    save_file(renamed, tmp_path / "model.safetensors")
    assert load_config(tmp_path) == config
    assert equal(load_params(tmp_path, config, jax.random.key(0)), params)


def write(directory, about):
    (directory / "config.json").write_text(json.dumps(about))


def change_config(**changes):
    def spoil(directory):
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def cut(directory):
    path = sorted(directory.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-10])


SPOILED = {
    "no directory": (lambda d: shutil.rmtree(d), "give the directory of a Hugging Face model"),
    "no JSON": (lambda d: (d / "config.json").write_text("{"), "config.json: is no JSON"),
    "architecture": (change_config(model_type="mamba"), "model_type='mamba': the architectures"),
    "rope": (change_config(rope_parameters={"rope_type": "yarn", "factor": 2.0}), "'yarn'"),
    "activation": (change_config(hidden_act="relu"), "hidden_act='relu'"),
    "number": (change_config(hidden_size="48"), "hidden_size='48'"),
    "bias": (change_config(model_type="llama", attention_bias=True), "attention_bias"),
    "missing shard": (
        lambda d: sorted(d.glob("*.safetensors"))[1].unlink(), "this shard is missing"
    ),
    "cut shard": (cut, "is damaged"),
    "no weights": (
        lambda d: [path.unlink() for path in d.glob("model*")], "has neither model.safetensors"
    ),
    "index": (
        lambda d: (d / "model.safetensors.index.json").write_text("{}"), "has no weight_map"
    ),
    "index is no JSON": (
        lambda d: (d / "model.safetensors.index.json").write_text("{"),
        r"model.safetensors.index.json: is no JSON",
    ),
    "index of numbers": (
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}'),
        "index.json: names 1, which is no file",
    ),
    "index of another folder": (
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}'),
        "index.json: names '../b', which is no file",
    ),
    "other shapes": (change_config(intermediate_size=81), "config.json says"),
    "tensor missing": (change_config(num_hidden_layers=4), "has no tensor model.layers.3"),
    "tensor left over": (change_config(num_hidden_layers=2), "does not use"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_what_does_not_load_is_one_sentence(directories, tmp_path, what):
    spoil, sentence = SPOILED[what]
    directory = tmp_path / "model"
    shutil.copytree(directories("qwen2_sharded"), directory)
    spoil(directory)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_params(directory, load_config(directory), jax.random.key(0))
    assert "\n" not in str(caught.value)


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize("key", ENTRY)
@pytest.mark.parametrize("value", ("left out", None, "text", [], [None, 2], [-1, 2], {}, 3))
def test_a_header_that_is_broken_names_the_tensor(tmp_path, key, value):
    path = tmp_path / "model.safetensors"

    def write_header(entry):
        header = json.dumps({"w": entry}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))

    write_header(ENTRY)
    assert read_header(path)["w"].shape == (2, 2)
    write_header({k: v for k, v in {**ENTRY, key: value}.items() if v != "left out"})
    with pytest.raises(ValueError, match=r"model.safetensors: .*\bw\b"):
        read_header(path)
    write_header(value)
    with pytest.raises(ValueError, match=r"is damaged \(the header says"):
        read_header(path)


def test_exports_say_which_tokens_end_and_begin(directories, tmp_path):
    """Llama without a word of them has eos 2 and bos 1, to transformers."""
    config = load_config(directories("llama_tied"), num_strategies=1)
    params = load_params(directories("llama_tied"), config, jax.random.key(0))
    silent, told = tmp_path / "silent", tmp_path / "told"
    save_pretrained(silent, config, params)
    told.mkdir()
    (told / "generation_config.json").write_text('{"top_k": 20, "pad_token_id": 5}')
    save_pretrained(told, config, params, generation={"eos_token_id": [9, 7], "bos_token_id": 3})
    for directory, expected in ((silent, (None, None, None)), (told, ([9, 7], 3, 5))):
        for about in (
            transformers.GenerationConfig.from_pretrained(directory),
            transformers.AutoConfig.from_pretrained(directory),
        ):
            assert (about.eos_token_id, about.bos_token_id, about.pad_token_id) == expected
    assert transformers.GenerationConfig.from_pretrained(told).top_k == 20


def test_what_no_family_computes_is_not_exported(config, tmp_path):
    params = init_params(config, jax.random.key(0))
    with pytest.raises(ValueError, match=r"train with position_encoding='rope' to"):
        save_pretrained(tmp_path / "out", config, params)
    odd = dataclasses.replace(config, position_encoding="rope", attention_softcap=5.0)
    with pytest.raises(ValueError, match=r"attention_softcap=5.0: llama"):
        save_pretrained(tmp_path / "out", odd, params)
    assert not (tmp_path / "out").exists()


def test_a_model_is_not_overwritten(directories):
    config = load_config(directories("qwen3"), num_strategies=1)
    params = init_params(config, jax.random.key(0))
    with pytest.raises(ValueError, match="holds a model already"):
        save_pretrained(directories("qwen3"), config, params)
