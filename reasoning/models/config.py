"""The shape of a policy: `ModelConfig`, named presets from 0.1M to 7B, and their sizes."""

import dataclasses
from typing import Literal

PositionEncoding = Literal["learned", "rope"]
RematPolicy = Literal["none", "full", "dots"]


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
      dtype: compute dtype; parameters, logits and softmax are always float32.
      norm_epsilon: added to the mean square in RMSNorm.

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
    dtype: Literal["float32", "bfloat16"] = "float32"
    norm_epsilon: float = 1e-6

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
            ("dtype", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}."
                )

    @property
    def output_size(self) -> int:
        """V + S, the number of ids that the head scores."""
        return self.vocab_size + self.num_strategies


# Shapes by name; everything that a preset leaves out keeps its default.
PRESETS: dict[str, dict[str, object]] = {
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
    attention = 2 * config.d_model * config.head_dim * (config.num_heads + config.num_kv_heads)
    feed_forward = 3 * config.d_model * config.d_ff
    norms = 2 * config.d_model
    tables = config.output_size * config.d_model * (1 if config.tied_head else 2)
    if config.position_encoding == "learned":
        tables += config.max_length * config.d_model
    return tables + config.num_layers * (attention + feed_forward + norms) + config.d_model
