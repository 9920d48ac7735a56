"""config.json as a ModelConfig: what published files leave out, and files that are broken."""

import copy

import pytest

from reasoning.models.config import ModelConfig, RopeScaling
from reasoning.models.families import FAMILIES, model_config

# As published: gemma-3-4b-it, whose other numbers are the family's defaults.
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
    "eos_token_id": [1, 106], "image_token_index": 262144, "vision_config": {"hidden_size": 1152},
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
        "num_hidden_layers": 34, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PUBLISHED = {
    **{family: {"model_type": family} for family in FAMILIES},
    "gemma3 4b": GEMMA3_4B,
    "qwen2 0.5b": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "rope_theta": 1e6, "tie_word_embeddings": True, "use_sliding_window": False,
    },
    "qwen2 with windows": {
        "model_type": "qwen2", "num_hidden_layers": 30, "use_sliding_window": True,
    },
    "llama with a window": {"model_type": "llama", "sliding_window": 7, "rope_scaling": LLAMA3},
    "mistral 0.3": {"model_type": "mistral", "rope_theta": 1e6, "sliding_window": None},
    "heads of null": {
        "model_type": "llama", "num_key_value_heads": None, "head_dim": None,
        "num_attention_heads": 16,
    },
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_what_is_left_out_is_what_transformers_puts_there(case):
    transformers = pytest.importorskip("transformers", reason="the extra [reference]")
    about = copy.deepcopy(PUBLISHED[case])
    ours = model_config(about)
    theirs = transformers.AutoConfig.for_model(**about).get_text_config()
    heads = theirs.num_attention_heads
    gemma = theirs.model_type.startswith("gemma")
    assert (ours.vocab_size, ours.d_model) == (theirs.vocab_size, theirs.hidden_size)
    assert (ours.num_layers, ours.d_ff) == (theirs.num_hidden_layers, theirs.intermediate_size)
    assert (ours.num_heads, ours.num_kv_heads) == (heads, theirs.num_key_value_heads)
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // heads)
    assert ours.max_length == theirs.max_position_embeddings
    assert (ours.norm_epsilon, ours.tied_head) == (theirs.rms_norm_eps, theirs.tie_word_embeddings)
    assert ours.query_scale == (theirs.query_pre_attn_scalar if gemma else None)
    assert ours.attention_softcap == getattr(theirs, "attn_logit_softcapping", None)
    assert ours.final_softcap == getattr(theirs, "final_logit_softcapping", None)
    activation = theirs.hidden_activation if gemma else theirs.hidden_act
    assert ours.activation == {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}[activation]
    assert (ours.windows or (0,) * ours.num_layers) == windows(theirs)
    ropes = theirs.rope_parameters
    assert ours.rope_theta == ropes.get("full_attention", ropes)["rope_theta"]
    local = ropes.get("sliding_attention", {}).get("rope_theta")
    assert ours.local_rope_theta == local
    assert (ours.rope_scaling is None) == (
        ropes.get("full_attention", ropes)["rope_type"] == "default"
    )


def windows(theirs):
    """How far back each layer looks in transformers; Llama knows no window at all."""
    window = None if theirs.model_type == "llama" else theirs.sliding_window
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
    return tuple((window or 0) if kind == "sliding_attention" else 0 for kind in kinds)


def test_gemma_3_4b_as_published():
    config = model_config(GEMMA3_4B)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.max_length, config.d_model) == (262208, 131072, 2560)
    assert config.rope_scaling == RopeScaling("linear", 8.0)
    assert config.windows[:6] == (1024,) * 5 + (0,)
    untied = model_config({**GEMMA3_4B, "tie_word_embeddings": False})
    assert config.tied_head and not untied.tied_head


# All keys that are read, with values that each family takes.
FULL = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 97, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True, "sliding_window": 8,
    "use_sliding_window": True, "max_window_layers": 1, "sliding_window_pattern": 2,
    "hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False,
    "query_pre_attn_scalar": 12, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 5.0,
    "rope_local_base_freq": 1e4, "rope_scaling": LLAMA3, "rope_parameters": None,
    "layer_types": None, "mlp_bias": False, "quantization_config": None,
}
BY_KIND = {
    "full_attention": {**LLAMA3, "rope_theta": 1e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
VALUES = (
    None, "text", "", [], ["text"], [[]], {}, {"a": 1}, 0, -1, 3, 0.5, -0.5, True, False,
    float("nan"), float("inf"),
)


def mangled(about):
    """Copies of nested settings in which one entry is missing or another."""
    for key, value in about.items():
        yield {name: kept for name, kept in about.items() if name != key}
        yield from ({**about, key: other} for other in VALUES)
        if isinstance(value, dict):
            yield from ({**about, key: other} for other in mangled(value))


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3"])
@pytest.mark.parametrize("changes", (
    {}, {"rope_parameters": BY_KIND}, {"layer_types": ["sliding_attention", "full_attention"]},
))
def test_any_broken_file_is_a_config_or_one_sentence(family, changes):
    about = {"model_type": family, **FULL, **changes}
    if family == "gemma3":
        about = {"model_type": family, "text_config": {**FULL, **changes}}
    assert isinstance(model_config(about), ModelConfig)
    refused = set()
    for broken in mangled(about):
        try:
            assert isinstance(model_config(broken), ModelConfig)
        except ValueError as error:
            refused.add(str(error))
            assert "\n" not in str(error)
    assert len(refused) > 50


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"rope_scaling": {"rope_type": "linear"}}, "factor=None: config.json must give a number"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "rope_type='yarn': rotations"),
        ({"rope_scaling": [8]}, r"rope_scaling=\[8\]: config.json must give an object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"num_attention_heads": 0}, "num_attention_heads=0: .* a whole number from 1 on"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes': .* true or false"),
        ({"head_dim": None, "hidden_size": 50}, "hidden_size=50: must be a multiple of num_att"),
        ({"layer_types": ["chunked_attention"] * 2}, "layer_types=.* full_attention or sliding_a"),
        ({"layer_types": ["full_attention"]}, "for each of the num_hidden_layers=2"),
        ({"quantization_config": {"bits": 4}}, "quantization_config=.*: not supported"),
    ],
)
def test_what_is_wrong_is_named(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        model_config({"model_type": "qwen2", **FULL, **changes})


def test_what_is_wrong_in_a_larger_model_is_named():
    with pytest.raises(ValueError, match=r"text_config=None: config.json must give an object"):
        model_config({"model_type": "gemma3"})
    with pytest.raises(ValueError, match=r"quantization_config=.*: not supported"):
        model_config({**GEMMA3_4B, "quantization_config": {"bits": 4}})
    local = {**BY_KIND, "sliding_attention": {"type": "linear", "factor": 2.0}}
    with pytest.raises(ValueError, match="rope_parameters: rotations are scaled in layers with"):
        model_config({"model_type": "gemma3_text", **FULL, "rope_parameters": local})
