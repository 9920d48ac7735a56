"""Published families of models: `config.json` as a ModelConfig, and the names of their weights.

    config = model_config(json.loads((directory / "config.json").read_text()))
    for tensor in tensors(config): ...   # every tensor of the family's files: where it goes
    hf_config(config)                    # what `transformers` reads, again

Qwen 2 and 2.5, Qwen 3, Llama 3, Mistral, Gemma 2, Gemma 3 (text). What a config.json leaves out has
its family's default, as in `transformers`. Keys that are known to change the computation in a way
that ModelConfig cannot express (`UNSUPPORTED`) are refused; any other unknown key is not looked at.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from reasoning.models.config import ModelConfig, RopeScaling

FAMILIES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
GEMMAS = ("gemma2", "gemma3_text")
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# What config.json leaves out where it is the default: of all, then of each family. Published files
# do (Gemma 3's larger models give five numbers), and so may any that `transformers` wrote.
DEFAULTS: dict[str, Any] = {
    "rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "tie_word_embeddings": False, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "hidden_size": 4096,
}
QWEN_DEFAULTS = {
    "vocab_size": 151_936, "intermediate_size": 22_016, "max_position_embeddings": 32_768,
    "sliding_window": 4096, "max_window_layers": 28,
}
GEMMA_DEFAULTS = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "query_pre_attn_scalar": 256, "tie_word_embeddings": True, "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
}
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2": QWEN_DEFAULTS,
    "qwen3": {**QWEN_DEFAULTS, "head_dim": 128},
    "llama": {
        "vocab_size": 32_000, "intermediate_size": 11_008, "max_position_embeddings": 2048,
        "num_key_value_heads": None,
    },
    "mistral": {
        "vocab_size": 32_000, "intermediate_size": 14_336, "max_position_embeddings": 131_072,
        "num_key_value_heads": 8, "sliding_window": 4096,
    },
    "gemma2": {
        **GEMMA_DEFAULTS, "vocab_size": 256_000, "max_position_embeddings": 8192,
        "sliding_window_pattern": 2, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        **GEMMA_DEFAULTS, "vocab_size": 262_208, "max_position_embeddings": 131_072,
        "sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 10_000.0,
    },
}
HEAD_NAME = "lm_head.weight"  # the one name that has no prefix
# Fields of ModelConfig that say how a model is run, not what it computes.
RUN_ONLY = ("num_strategies", "strategy_ids", "scan_layers", "remat", "attention", "dtype")
# Keys whose presence, with another value than these, changes the computation in a way not covered.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "mlp_bias": (False, None),
    "use_bidirectional_attention": (False, None),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a family's files, and its place among the parameters.

    Attributes:
      name: in the files.
      path: of the parameter, such as ("layer_0", "attention", "query").
      layer: its row in a parameter that is stacked over layers; None: it is the whole parameter.
      shape: in the files.
      layout: how it becomes the parameter: "same"; "heads_out" `[N H, D] -> [D, N, H]`;
        "heads_in" `[D, N H] -> [N, H, D]`; "bias" `[N H] -> [N, H]`; "transposed".
    """

    name: str
    path: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]
    layout: str


def model_config(about: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig of a `config.json`, with one strategy beside its vocabulary.

    Raises:
      ValueError: another architecture, or a setting that is not covered, in one sentence.
    """
    family = _family(about)
    _refuse_unsupported(about, family)
    if family == "gemma3":  # with a vision tower, which is left alone
        whole, about, family = about, _object(about, "text_config"), "gemma3_text"
        if "tie_word_embeddings" in whole:  # of the two, the one that counts
            about["tie_word_embeddings"] = whole["tie_word_embeddings"]
        _refuse_unsupported(about, family)
    about = {**DEFAULTS, **FAMILY_DEFAULTS[family], **about}
    gemma = family in GEMMAS
    heads, d_model = _count(about, "num_attention_heads"), _count(about, "hidden_size")
    return ModelConfig(
        vocab_size=_count(about, "vocab_size"),
        num_strategies=1,
        d_model=d_model,
        num_layers=_count(about, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_kv_heads(about, family, heads),
        head_dim=_head_dim(about, family, d_model, heads),
        d_ff=_count(about, "intermediate_size"),
        max_length=_count(about, "max_position_embeddings"),
        position_encoding="rope",
        tied_head=_flag(about, "tie_word_embeddings"),
        norm_epsilon=_number(about, "rms_norm_eps"),
        qkv_bias=family == "qwen2",
        qk_norm=family in ("qwen3", "gemma3_text"),
        windows=_windows(about, family),
        query_scale=_number(about, "query_pre_attn_scalar") if gemma else None,
        attention_softcap=_cap(about, "attn_logit_softcapping") if gemma else None,
        final_softcap=_cap(about, "final_logit_softcapping") if gemma else None,
        activation=_activation(about, "hidden_activation" if gemma else "hidden_act"),
        scale_embeddings=gemma,
        norm_offset=gemma,
        post_norms=gemma,
        **_ropes(about, family),
    )


def _family(about: Mapping[str, Any]) -> str:
    """The `model_type`, if it is one that is covered; "gemma3" has one of them within it."""
    family, known = about.get("model_type"), (*FAMILIES, "gemma3")
    if family not in known:
        raise ValueError(
            f"model_type={family!r}: the architectures that load are {', '.join(known)}."
        )
    return family


def _refuse_unsupported(about: Mapping[str, Any], family: str) -> None:
    for key, allowed in UNSUPPORTED.items():
        if about.get(key) not in allowed:
            raise ValueError(f"{key}={about[key]!r}: not supported; choose a model without it.")
    if family != "qwen2" and about.get("attention_bias") not in (False, None):
        raise ValueError(
            f"attention_bias={about['attention_bias']!r}: {family} then has a bias after "
            "attention, too, which is not supported; choose a model without it."
        )


def _count(about: Mapping[str, Any], key: str, least: int = 1) -> int:
    value = about.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{key}={value!r}: config.json must give a whole number from {least} on.")
    return value


def _number(about: Mapping[str, Any], key: str) -> float:
    value = about.get(key)
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not (known and 0 < value < 1e30):
        raise ValueError(f"{key}={value!r}: config.json must give a number above 0.")
    return float(value)


def _cap(about: Mapping[str, Any], key: str) -> float | None:
    return None if about.get(key) is None else _number(about, key)


def _flag(about: Mapping[str, Any], key: str) -> bool:
    value = about.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key}={value!r}: config.json must give true or false.")
    return value


def _object(about: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = about.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"{key}={value!r}: config.json must give an object.")
    return dict(value)


def _activation(about: Mapping[str, Any], key: str) -> str:
    value = about.get(key)
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ValueError(f"{key}={value!r}: must be one of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[value]


def _kv_heads(about: Mapping[str, Any], family: str, heads: int) -> int:
    if about["num_key_value_heads"] is None and family not in GEMMAS:  # one for each
        return heads
    return _count(about, "num_key_value_heads")


def _head_dim(about: Mapping[str, Any], family: str, d_model: int, heads: int) -> int:
    if about.get("head_dim") is not None or "head_dim" in FAMILY_DEFAULTS[family]:
        return _count(about, "head_dim")
    if d_model % heads:
        raise ValueError(
            f"hidden_size={d_model}: must be a multiple of num_attention_heads={heads} where "
            "config.json gives no head_dim."
        )
    return d_model // heads


def _windows(about: Mapping[str, Any], family: str) -> tuple[int, ...]:
    """The window of every layer; () where none has one."""
    layers, qwen = _count(about, "num_hidden_layers"), family.startswith("qwen")
    if family == "llama" or (qwen and not _flag(about, "use_sliding_window")):
        return ()  # it has none, whatever the other keys say
    if about.get("sliding_window") is None:
        return ()
    window, kinds = _count(about, "sliding_window"), about.get("layer_types")
    if kinds is not None:
        local = _are_local(kinds, layers)
    elif family in GEMMAS:  # every so many layers, one looks at everything
        pattern = _count(about, "sliding_window_pattern")
        local = [bool((i + 1) % pattern) for i in range(layers)]
    elif qwen:
        local = [i >= _count(about, "max_window_layers", 0) for i in range(layers)]
    else:
        local = [True] * layers
    if not any(local):
        return ()
    return tuple(window if here else 0 for here in local)


def _are_local(kinds: Any, layers: int) -> list[bool]:
    """Of `layer_types`, which have a window."""
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in known for k in kinds):
        raise ValueError(
            f"layer_types={kinds!r}: must give {' or '.join(known)} for each of the "
            f"num_hidden_layers={layers}."
        )
    return [kind == "sliding_attention" for kind in kinds]


def _ropes(about: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The fields of ModelConfig on rotary positions, from the old keys or from the new ones."""
    key = "rope_parameters" if about.get("rope_parameters") is not None else "rope_scaling"
    given = {} if about.get(key) is None else _object(about, key)
    whole, local = given, {}
    if {"full_attention", "sliding_attention"} & set(given):  # by the kind of layer
        whole, local = ({} if given.get(kind) is None else _object(given, kind)
                        for kind in ("full_attention", "sliding_attention"))
    whole = {"rope_theta": about["rope_theta"], **whole}
    fields: dict[str, Any] = {
        "rope_theta": _number(whole, "rope_theta"), "rope_scaling": _rope_scaling(whole)
    }
    if family == "gemma3_text":
        local = {"rope_theta": about["rope_local_base_freq"], **local}
        if _rope_scaling(local) is not None:
            raise ValueError(
                "rope_parameters: rotations are scaled in layers with a window, which is not "
                "supported; choose a model without it."
            )
        fields["local_rope_theta"] = _number(local, "rope_theta")
    return fields


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    if rope.get("partial_rotary_factor") not in UNSUPPORTED["partial_rotary_factor"]:
        raise ValueError(
            f"partial_rotary_factor={rope['partial_rotary_factor']!r}: not supported; choose a "
            "model without it."
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", _number(rope, "factor"))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            _number(rope, "factor"),
            _number(rope, "low_freq_factor"),
            _number(rope, "high_freq_factor"),
            _count(rope, "original_max_position_embeddings"),
        )
    raise ValueError(f"rope_type={kind!r}: rotations are scaled by default, linear or llama3.")


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of the family that computes what this configuration says.

    Strategy tables are no family's: count their rows into `vocab_size` first.

    Raises:
      ValueError: no family does, naming the field that is in the way.
    """
    family = _nearest_family(config)
    gemma = family in GEMMAS
    about: dict[str, Any] = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": config.tied_head,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": _hf_rope_scaling(config.rope_scaling),
        "sliding_window": max(config.windows, default=0) or None,
    }
    activation = next(name for name, ours in ACTIVATIONS.items() if ours == config.activation)
    about["hidden_activation" if gemma else "hidden_act"] = activation
    if config.windows and family != "mistral":  # where all layers have the same
        kinds = "full_attention", "sliding_attention"
        about["layer_types"] = [kinds[window > 0] for window in config.windows]
        about["use_sliding_window"] = True
    if gemma:
        about["query_pre_attn_scalar"] = int(config.query_scale or config.head_dim)
        about["attn_logit_softcapping"] = config.attention_softcap
        about["final_logit_softcapping"] = config.final_softcap
    if family == "gemma3_text":
        about["rope_local_base_freq"] = config.local_rope_theta
    again = model_config(about)
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(config, field.name), getattr(again, field.name)
        if field.name not in RUN_ONLY and ours != theirs:
            raise ValueError(
                f"{field.name}={ours!r}: {family}, the nearest of the published families, has "
                f"{theirs!r}; train with {field.name}={theirs!r} to export the model."
            )
    return about


def _nearest_family(config: ModelConfig) -> str:
    if config.scale_embeddings or config.post_norms:
        return "gemma3_text" if config.qk_norm else "gemma2"
    if config.qkv_bias:
        return "qwen2"
    if config.qk_norm:
        return "qwen3"
    return "mistral" if config.windows else "llama"


def _hf_rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency,
        "high_freq_factor": scaling.high_frequency,
        "original_max_position_embeddings": scaling.original_length,
    }


def tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Every tensor of the family's files, in their order; `name` without the model's prefix.

    The vocabulary's rows are those of the token table alone.
    """
    table = (config.vocab_size, config.d_model)
    yield Tensor("embed_tokens.weight", ("token_embedding",), None, table, "same")
    for layer in range(config.num_layers):
        for name, path, shape, layout in _layer_tensors(config):
            path, row = (("layers", *path), layer) if config.scan_layers else (
                (f"layer_{layer}", *path), None)
            yield Tensor(f"layers.{layer}.{name}", path, row, shape, layout)
    yield Tensor("norm.weight", ("final_norm", "scale"), None, (config.d_model,), "same")
    if not config.tied_head:
        yield Tensor(HEAD_NAME, ("token_head",), None, table, "same")


def _layer_tensors(
    config: ModelConfig,
) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...], str]]:
    """Name, path, shape in the files, and layout of one layer's tensors."""
    d_model, width = config.d_model, config.head_dim
    norm = (d_model,)
    sides = ("query", "q", config.num_heads), ("key", "k", config.num_kv_heads), (
        "value", "v", config.num_kv_heads)
    for ours, theirs, heads in sides:
        shape, name = (heads * width, d_model), f"self_attn.{theirs}_proj"
        yield f"{name}.weight", ("attention", ours), shape, "heads_out"
        if config.qkv_bias:
            yield f"{name}.bias", ("attention", f"{ours}_bias"), shape[:1], "bias"
        if config.qk_norm and ours != "value":
            path = ("attention", f"{ours}_norm", "scale")
            yield f"self_attn.{theirs}_norm.weight", path, (width,), "same"
    shape = (d_model, config.num_heads * width)
    yield "self_attn.o_proj.weight", ("attention", "output"), shape, "heads_in"
    for name, shape in (
        ("gate", (config.d_ff, d_model)), ("up", (config.d_ff, d_model)),
        ("down", (d_model, config.d_ff)),
    ):
        yield f"mlp.{name}_proj.weight", ("feed_forward", name), shape, "transposed"
    yield "input_layernorm.weight", ("attention_norm", "scale"), norm, "same"
    after = "post_attention_layernorm.weight"
    if not config.post_norms:
        yield after, ("feed_forward_norm", "scale"), norm, "same"
        return
    yield after, ("attention_post_norm", "scale"), norm, "same"
    for theirs, ours in (("pre", "norm"), ("post", "post_norm")):
        path = (f"feed_forward_{ours}", "scale")
        yield f"{theirs}_feedforward_layernorm.weight", path, norm, "same"
