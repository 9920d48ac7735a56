"""Published families of models: `config.json` as a ModelConfig, and the names of their weights.

    config = model_config(json.loads((directory / "config.json").read_text()))
    for tensor in tensors(config): ...   # every tensor of the family's files: where it goes
    hf_config(config)                    # what `transformers` reads, again

Qwen 2 and 2.5, Qwen 3, Llama 3, Mistral, Gemma 2, Gemma 3 (text). What a family's config.json may
say beyond what ModelConfig can express is refused, never ignored.
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
# What config.json leaves out where it is the family's default: for all, then for some.
DEFAULTS: dict[str, Any] = {
    "rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "tie_word_embeddings": False,
}
GEMMA_DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256, "query_pre_attn_scalar": 256}
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 128},
    "mistral": {"sliding_window": 4096},
    "gemma2": {
        **GEMMA_DEFAULTS, "sliding_window": 4096, "sliding_window_pattern": 2,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        **GEMMA_DEFAULTS, "sliding_window": 4096, "sliding_window_pattern": 6,
        "rope_theta": 1e6, "rope_local_base_freq": 10_000.0,
    },
}
HEAD_NAME = "lm_head.weight"  # the one name that has no prefix
# Fields of ModelConfig that say how a model is run, not what it computes.
RUN_ONLY = ("num_strategies", "strategy_ids", "scan_layers", "remat", "dtype")
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
    if family == "gemma3":  # with a vision tower, which is left alone
        about, family = {**about["text_config"], "model_type": "gemma3_text"}, "gemma3_text"
    about = {**DEFAULTS, **FAMILY_DEFAULTS.get(family, {}), **about}
    if family in GEMMAS:
        about["hidden_act"] = about.get("hidden_activation") or "gelu_pytorch_tanh"
    _refuse_unsupported(about, family)
    heads = _count(about, "num_attention_heads")
    ropes = _ropes(about)
    return ModelConfig(
        vocab_size=_count(about, "vocab_size"),
        num_strategies=1,
        d_model=_count(about, "hidden_size"),
        num_layers=_count(about, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=about.get("num_key_value_heads") or heads,
        head_dim=about.get("head_dim") or _count(about, "hidden_size") // heads,
        d_ff=_count(about, "intermediate_size"),
        max_length=_count(about, "max_position_embeddings"),
        position_encoding="rope",
        tied_head=bool(about["tie_word_embeddings"]),
        norm_epsilon=about["rms_norm_eps"],
        qkv_bias=family == "qwen2" or bool(about.get("attention_bias")),
        qk_norm=family in ("qwen3", "gemma3_text"),
        windows=_windows(about, family),
        query_scale=float(about["query_pre_attn_scalar"]) if family in GEMMAS else None,
        attention_softcap=about.get("attn_logit_softcapping"),
        final_softcap=about.get("final_logit_softcapping"),
        activation=ACTIVATIONS[about["hidden_act"]],
        scale_embeddings=family in GEMMAS,
        norm_offset=family in GEMMAS,
        post_norms=family in GEMMAS,
        **ropes,
    )


def _family(about: Mapping[str, Any]) -> str:
    """The `model_type`, if it is one that is covered."""
    family, known = about.get("model_type"), ", ".join(FAMILIES)
    if family == "gemma3" and isinstance(about.get("text_config"), dict):
        return family
    if family not in FAMILIES:
        raise ValueError(f"model_type={family!r}: the architectures that load are {known}.")
    return family


def _refuse_unsupported(about: Mapping[str, Any], family: str) -> None:
    for key, allowed in UNSUPPORTED.items():
        if about.get(key) not in allowed:
            raise ValueError(f"{key}={about[key]!r}: not supported; choose a model without it.")
    if about["hidden_act"] not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act={about['hidden_act']!r}: must be one of {', '.join(ACTIVATIONS)}."
        )
    if about.get("attention_bias") and family != "qwen2":
        raise ValueError(
            f"attention_bias=True: {family} then has a bias after attention, too, which is not "
            "supported; choose a model without it."
        )


def _count(about: Mapping[str, Any], key: str) -> int:
    value = about.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key}={value!r}: config.json must give a whole number.")
    return value


def _windows(about: Mapping[str, Any], family: str) -> tuple[int, ...]:
    """The window of every layer; () where none has one."""
    layers, window = _count(about, "num_hidden_layers"), about.get("sliding_window")
    if family.startswith("qwen") and not about.get("use_sliding_window"):
        window = None
    if not window:
        return ()
    kinds = about.get("layer_types")
    if kinds is not None:
        local = [kind == "sliding_attention" for kind in kinds]
    elif "sliding_window_pattern" in about:  # every so many layers, one looks at everything
        local = [bool((i + 1) % about["sliding_window_pattern"]) for i in range(layers)]
    elif family.startswith("qwen"):
        local = [i >= about.get("max_window_layers", layers) for i in range(layers)]
    else:
        local = [True] * layers
    if not any(local):
        return ()
    return tuple(window if here else 0 for here in local)


def _ropes(about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ModelConfig on rotary positions, from the old keys or from the new ones."""
    given = about.get("rope_parameters") or {}
    by_kind = {"full_attention", "sliding_attention"} & set(given)
    whole = dict(given["full_attention"] if by_kind else given)
    if not given:
        whole = {**(about.get("rope_scaling") or {})}
    fields: dict[str, Any] = {
        "rope_theta": float(whole.get("rope_theta", about["rope_theta"])),
        "rope_scaling": _rope_scaling(whole, about),
    }
    if "rope_local_base_freq" in about:
        local = given.get("sliding_attention", {}) if by_kind else {}
        if local.get("rope_type", "default") != "default":
            raise ValueError(
                f"rope_type={local['rope_type']!r}: not supported in layers with a window."
            )
        fields["local_rope_theta"] = float(local.get("rope_theta", about["rope_local_base_freq"]))
    return fields


def _rope_scaling(rope: Mapping[str, Any], about: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
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
                f"{theirs!r}; a model that is to be exported must keep to one of them."
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
