"""The shape of a policy: `ModelConfig`, named presets from 0.01M to 7B, and their sizes."""

import dataclasses
from typing import Literal

PositionEncoding = Literal["learned", "rope"]
RematPolicy = Literal["none", "full", "dots"]
AttentionKernel = Literal["auto", "plain", "cudnn", "splash"]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Slower rotations, for longer texts than a model was first trained on.

    Attributes:
      kind: "linear" divides every frequency by `factor` (2306.15595); "llama3" divides those whose
        wavelength exceeds `original_length / low_frequency`, keeps those below
        `original_length / high_frequency`, and goes smoothly from one to the other between.
      factor: by which the slowest rotations are slowed.
      low_frequency, high_frequency: turns within `original_length` between which it is smooth.
      original_length: tokens of the texts in the first training.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"kind={self.kind!r}: rotations are scaled by linear or llama3.")
        if self.factor < 1:
            raise ValueError(f"factor={self.factor}: must be at least 1.")
        if self.kind == "llama3" and self.high_frequency <= self.low_frequency:
            raise ValueError(
                f"high_frequency={self.high_frequency}: must be above "
                f"low_frequency={self.low_frequency}."
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer with a strategy-embedding table beside the token table.

    Attributes:
      vocab_size: V, the tokenizer's vocabulary; ids 0..V-1.
      num_strategies: S, the strategy tags; ids V..V+S-1, scored by the head.
      d_model: width of the residual stream.
      num_layers: number of blocks.
      num_heads: N, query heads.
      num_kv_heads: K, key and value heads; divides num_heads.
      head_dim: H, width of one head.
      d_ff: width of the gated feed-forward layer.
      max_length: the longest sequence, and the length of the learned position table.
      position_encoding: "learned" trains several times faster at small scale; "rope" at large.
      rope_theta: base of the rotary frequencies.
      tied_head: score tokens with the embedding tables, or with a head of their own.
      scan_layers: one compiled block scanned over stacked parameters, or an unrolled loop.
      remat: what the backward pass recomputes: nothing, all, or all but matrix products.
      attention: the kernel by which whole rows attend to themselves: on a GPU that of cuDNN, on a
        TPU splash, or the plain form; "auto" is the backend's, where it can do what is asked
        (`reasoning.models.attention`).
      dtype: compute dtype; logits and softmax are always float32.
      norm_epsilon: added to the mean square in RMSNorm.

    What published families add (`reasoning.models.pretrained`):
      strategy_ids: the ids in 0..V-1 that stand for the S tags, where these are written in the
        model's own vocabulary; there are then no strategy tables. (): ids V..V+S-1.
      qkv_bias: queries, keys and values have a bias (Qwen 2).
      qk_norm: queries and keys are normalised, head by head (Qwen 3, Gemma 3).
      windows: how many tokens back each layer looks, itself included; 0: all. (): all layers all.
      rope_scaling: of the layers without a window.
      local_rope_theta: base of the frequencies in layers with a window; None: rope_theta.
      query_scale: scores are divided by its root; None: by that of head_dim.
      attention_softcap, final_softcap: c tanh(x / c) of the scores and of the logits (Gemma 2).
      activation: of the feed-forward gate.
      scale_embeddings: by the root of d_model (Gemma).
      norm_offset: RMSNorm scales by 1 + its parameter (Gemma).
      post_norms: each sublayer's output is normalised, too (Gemma 2, Gemma 3).

    Raises:
      ValueError: an impossible combination, in one sentence.
    """

    vocab_size: int
    num_strategies: int = 4
    d_model: int = 64
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 16
    d_ff: int = 192
    max_length: int = 128
    position_encoding: PositionEncoding = "learned"
    rope_theta: float = 10_000.0
    tied_head: bool = True
    scan_layers: bool = False
    remat: RematPolicy = "none"
    attention: AttentionKernel = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    norm_epsilon: float = 1e-6
    strategy_ids: tuple[int, ...] = ()
    qkv_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int, ...] = ()
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    query_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    activation: Literal["silu", "gelu_tanh"] = "silu"
    scale_embeddings: bool = False
    norm_offset: bool = False
    post_norms: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < 1:
                raise ValueError(f"{field.name}={value}: must be at least 1.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads}: must divide num_heads={self.num_heads}."
            )
        if self.position_encoding == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: rotary positions need an even width.")
        for name, allowed in (
            ("position_encoding", ("learned", "rope")),
            ("remat", ("none", "full", "dots")),
            ("attention", ("auto", "plain", "cudnn", "splash")),
            ("dtype", ("float32", "bfloat16")),
            ("activation", ("silu", "gelu_tanh")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}."
                )
        if self.windows and len(self.windows) != self.num_layers:
            raise ValueError(
                f"windows={self.windows}: must have one entry for each of the "
                f"num_layers={self.num_layers}, 0 where a layer looks at everything."
            )
        self._check_attention()
        self._check_strategy_ids()

    def misfits(self, kernel: str) -> list[str]:
        """The fields that a fused kernel cannot do: "splash", or "cudnn" as of jax 0.10."""
        refused = {
            "splash": {"windows": any(self.windows)},
            "cudnn": {
                "attention_softcap": self.attention_softcap is not None,
                "dtype": self.dtype != "bfloat16",
                "head_dim": self.head_dim % 8 > 0 or self.head_dim > 128,
            },
        }
        return [field for field, unfit in refused.get(kernel, {}).items() if unfit]

    def _check_attention(self) -> None:
        for field in self.misfits(self.attention):
            raise ValueError(
                f"attention={self.attention!r}: cannot do {field}={getattr(self, field)!r}; "
                "use plain, or auto."
            )

    def _check_strategy_ids(self) -> None:
        ids = self.strategy_ids
        if not ids:
            return
        if len(set(ids)) != self.num_strategies or len(ids) != self.num_strategies:
            raise ValueError(
                f"strategy_ids={ids}: must be num_strategies={self.num_strategies} different ids."
            )
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise ValueError(
                f"strategy_ids={ids}: must lie in the vocabulary, 0..{self.vocab_size - 1}."
            )

    @property
    def output_size(self) -> int:
        """The number of ids that the head scores: V + S, or V where tags are ids of the text."""
        return self.vocab_size + (0 if self.strategy_ids else self.num_strategies)


# Shapes by name; everything that a preset leaves out keeps its default.
PRESETS: dict[str, dict[str, object]] = {
    "0.01m": dict(d_model=32, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16, d_ff=96),
    "0.1m": dict(d_model=48, num_layers=3, num_heads=2, num_kv_heads=2, head_dim=24, d_ff=144),
    "0.2m": dict(d_model=64, num_layers=3, num_heads=2, num_kv_heads=2, head_dim=32, d_ff=192),
    "0.4m": dict(d_model=128, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=32, d_ff=384),
    "0.8m": dict(d_model=128, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=32, d_ff=384),
    "3m": dict(d_model=256, num_layers=4, num_heads=8, num_kv_heads=4, head_dim=32, d_ff=704),
    "10m": dict(d_model=384, num_layers=6, num_heads=6, num_kv_heads=6, head_dim=64, d_ff=1024),
    "120m": dict(
        d_model=768, num_layers=12, num_heads=12, num_kv_heads=12, head_dim=64, d_ff=2048,
        max_length=2048, position_encoding="rope", scan_layers=True, remat="dots",
        dtype="bfloat16",
    ),
    "1.5b": dict(
        d_model=1536, num_layers=28, num_heads=12, num_kv_heads=2, head_dim=128, d_ff=8960,
        max_length=8192, position_encoding="rope", rope_theta=1e6, scan_layers=True,
        remat="dots", dtype="bfloat16",
    ),
    "7b": dict(
        d_model=3584, num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128, d_ff=18944,
        max_length=32768, position_encoding="rope", rope_theta=1e6, tied_head=False,
        scan_layers=True, remat="full", dtype="bfloat16",
    ),
}


def make_config(preset: str, **overrides: object) -> ModelConfig:
    """The config of a named preset with some fields replaced.

    Raises:
      ValueError: unknown preset or field, or an impossible combination.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: must be one of {', '.join(PRESETS)}.")
    known = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in overrides:
        if name not in known:
            raise ValueError(f"{name}: no such field of ModelConfig; it has {', '.join(known)}.")
    return ModelConfig(**{**PRESETS[preset], **overrides})


def count_parameters(config: ModelConfig) -> int:
    """Number of parameters, by arithmetic; equal to the size of the initialised tree."""
    width, heads = config.head_dim, config.num_heads + 2 * config.num_kv_heads
    attention = config.d_model * width * (heads + config.num_heads)
    attention += width * heads * config.qkv_bias + 2 * width * config.qk_norm
    feed_forward = 3 * config.d_model * config.d_ff
    norms = config.d_model * (4 if config.post_norms else 2)
    tables = config.output_size * config.d_model * (1 if config.tied_head else 2)
    if config.position_encoding == "learned":
        tables += config.max_length * config.d_model
    return tables + config.num_layers * (attention + feed_forward + norms) + config.d_model
