"""The policy: a decoder-only Transformer used as a pure function of (params, tokens).

    logits, _     = Transformer(config).apply(params, tokens)                  training, scoring
    logits, cache = Transformer(config).apply(params, tokens, cache=cache)     sampling

RMSNorm before each sublayer, grouped-query attention, SwiGLU, learned or rotary positions; and
what published families change in that, by the fields of their `ModelConfig`.
Shapes: B rows, T tokens, C cache slots, D = d_model, N query heads, K key/value heads, H head_dim.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from reasoning.models import strategies
from reasoning.models.attention import (
    attend,
    attend_to_self,
    attend_with_prefix,
    attention_scale,
    soft_cap,
)
from reasoning.models.axes import constrain, in_force
from reasoning.models.cache import KVCache
from reasoning.models.config import ModelConfig

STREAM = ("batch", "length", "stream")  # the axes of the residual stream, for meshes
# And of what is looked up: each device reads its columns of the tables for the rows of its group.
LOOKED_UP = ("group", "length", "embed")


@flax.struct.dataclass
class LayerKind:
    """In what a layer differs from others; `[L, ...]` for all of them.

    Attributes:
      rotary: scalar int32, which of `rotary_frequencies` turns the heads; None: no choice.
      window: scalar int32, tokens that a query looks back, itself included; None: all layers, all.
    """

    rotary: Any
    window: Any


def layer_kinds(config: ModelConfig) -> LayerKind:
    """The kinds of all layers, host arrays `[L]`."""
    windows = np.array(config.windows or (0,) * config.num_layers, np.int32)
    rotary = (windows > 0).astype(np.int32) if len(rotary_frequencies(config)) > 1 else None
    sight = np.where(windows > 0, windows, np.iinfo(np.int32).max).astype(np.int32)
    return LayerKind(rotary, sight if windows.any() else None)


def rotary_frequencies(config: ModelConfig) -> np.ndarray:
    """`[F, H / 2]` float32 radians per token; F is 2 where layers with a window have their own."""
    whole = scaled_frequencies(config)
    local = rope_frequencies(config.local_rope_theta or config.rope_theta, config.head_dim)
    differ = any(config.windows) and not np.array_equal(whole, local)
    return np.stack([whole, local] if differ else [whole]).astype(np.float32)


def rotations(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """Cosines and sines of the angles that positions `[B, T]` turn by, each `[F, B, T, H / 2]`.

    None without rotary positions. They are read from tables: computed where they are used, XLA's
    CPU backend does so anew for every head of every layer.
    """
    if config.position_encoding != "rope":
        return None
    angles = jnp.arange(config.max_length)[None, :, None] * rotary_frequencies(config)[:, None]
    return jnp.cos(angles)[:, positions], jnp.sin(angles)[:, positions]


def rope_frequencies(theta: float, head_dim: int) -> np.ndarray:
    """Radians per token of each of the pairs `[H / 2]` (RoFormer, 2104.09864 eq. 15)."""
    return theta ** (-np.arange(0, head_dim, 2) / head_dim)


def scaled_frequencies(config: ModelConfig) -> np.ndarray:
    """Frequencies `[H / 2]` of layers that look at everything, under `config.rope_scaling`."""
    frequencies, scaling = rope_frequencies(config.rope_theta, config.head_dim), config.rope_scaling
    if scaling is None:
        return frequencies
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    turns = scaling.original_length * frequencies / (2 * math.pi)
    span = scaling.high_frequency - scaling.low_frequency
    kept = np.clip((turns - scaling.low_frequency) / span, 0, 1)  # 1: as fast as before
    return kept * frequencies + (1 - kept) * slow


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary position embedding (RoFormer, 2104.09864 eq. 34) of `[B, T, N, H]`, halves paired.

    Args:
      rotation: cosines and sines `[B, T, H / 2]`, one of `rotations`.
    """
    cos, sin = (part[:, :, None] for part in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _kernel(stddev: float, *axes: str | None) -> nn.initializers.Initializer:
    return nn.with_logical_partitioning(nn.initializers.normal(stddev), axes)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32 (1910.07467) along the axis named."""

    config: ModelConfig
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise `[..., D]`, scale by a learned `[D]`."""
        start = nn.initializers.zeros if self.config.norm_offset else nn.initializers.ones
        start = nn.with_logical_partitioning(start, (self.axis,))
        scale = self.param("scale", start, (x.shape[-1],), jnp.float32).astype(jnp.float32)
        if self.config.norm_offset:
            scale = 1 + scale
        wide = x.astype(jnp.float32)
        square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(square + self.config.norm_epsilon)
        return (normed * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention (2305.13245) that reads and extends a layer's cache."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: tuple[jax.Array, jax.Array] | None,
        mask: jax.Array,
        segment_ids: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None,
        prefix: tuple[jax.Array, jax.Array] | None,
        slot: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Attend from `[B, T, D]` to itself, or to the cache with itself written at `slot`; and to
        the prefix."""
        config = self.config
        d_model, heads, width = config.d_model, config.num_heads, config.head_dim
        kv_shape = (d_model, config.num_kv_heads, width)
        stddev = d_model**-0.5

        def project(name: str, shape: tuple[int, ...], axis: str) -> jax.Array:
            kernel = self.param(name, _kernel(stddev, "embed", axis, "head_dim"), shape)
            heads = jnp.einsum("btd,dnh->btnh", x, kernel.astype(x.dtype))
            if config.qkv_bias:
                zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axis, "head_dim"))
                bias = self.param(f"{name}_bias", zeros, shape[1:], jnp.float32)
                heads = heads + bias.astype(x.dtype)[None, None]
            return constrain(heads, "batch", "length", axis, "head_dim")

        q = project("query", (d_model, heads, width), "heads")
        k = project("key", kv_shape, "kv_heads")
        v = project("value", kv_shape, "kv_heads")
        if config.qk_norm:
            q = RMSNorm(config, "head_dim", name="query_norm")(q)
            k = RMSNorm(config, "head_dim", name="key_norm")(k)
        if rotation is not None:
            q, k = (rotate(part, rotation) for part in (q, k))
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, K, T, H]
        if cache is not None:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=2)
                for old, new in zip(cache, (k, v), strict=True)
            )
            cache = k, v = tuple(
                constrain(part, "batch", "kv_heads", "length", "head_dim") for part in (k, v)
            )
        # Residual branches start small, so that depth does not blow up the stream (GPT-2).
        out_std = (heads * width) ** -0.5 * (2 * config.num_layers) ** -0.5
        out = self.param(
            "output", _kernel(out_std, "heads", "head_dim", "embed"), (heads, width, d_model)
        )
        if prefix is not None:
            scale, cap = attention_scale(config), config.attention_softcap
            read = attend_with_prefix(q, k, v, prefix, mask, scale, cap)
        elif cache is None:
            read = attend_to_self(q, k, v, mask, segment_ids, config)
        else:
            read = attend(q, k, v, mask, attention_scale(config), config.attention_softcap)
        # Not as an einsum, which sums over heads last and turns the weights around for it.
        return jnp.tensordot(read, out.astype(x.dtype), axes=2), cache


class FeedForward(nn.Module):
    """SwiGLU (2002.05202): (silu(x W_gate) * x W_up) W_down; or GeGLU, with gelu."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, T, D]` to itself."""
        config = self.config
        wide, tall = (config.d_model, config.d_ff), (config.d_ff, config.d_model)
        stddev = config.d_model**-0.5
        gate = self.param("gate", _kernel(stddev, "embed", "mlp"), wide).astype(x.dtype)
        up = self.param("up", _kernel(stddev, "embed", "mlp"), wide).astype(x.dtype)
        down_std = config.d_ff**-0.5 * (2 * config.num_layers) ** -0.5
        down = self.param("down", _kernel(down_std, "mlp", "embed"), tall).astype(x.dtype)
        # As rows: with two axes in front XLA's CPU backend transposes the gradient far more slowly.
        rows = x.reshape(-1, config.d_model)
        activate = jax.nn.silu if config.activation == "silu" else jax.nn.gelu
        hidden = constrain(activate(rows @ gate) * (rows @ up), "batch", "mlp")
        return (hidden @ down).reshape(x.shape)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None,
        prefix: tuple[jax.Array, jax.Array] | None,
        kind: LayerKind,
        rotations: tuple[jax.Array, jax.Array] | None,
        mask: jax.Array,
        segment_ids: jax.Array,
        distances: jax.Array | None,
        slot: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Map `[B, T, D]` to itself, with the layer's cache (or None) carried along.

        `rotations` are those of the model, of which the layer's kind takes one; `distances`
        `[B or 1, T, C]` are from each key's position to each query's.
        """
        config = self.config

        def branch(name: str, update: jax.Array) -> jax.Array:
            post_norm = RMSNorm(config, name=f"{name}_post_norm") if config.post_norms else None
            return post_norm(update) if post_norm else update

        if kind.window is not None:
            mask = mask & (distances < kind.window)
        rotation = jax.tree.map(lambda x: x[0 if kind.rotary is None else kind.rotary], rotations)
        normed = RMSNorm(config, name="attention_norm")(x)
        update, cache = Attention(config, name="attention")(
            normed, rotation, mask, segment_ids, cache, prefix, slot
        )
        x = constrain(x + branch("attention", update), *STREAM)
        normed = RMSNorm(config, name="feed_forward_norm")(x)
        update = FeedForward(config, name="feed_forward")(normed)
        return constrain(x + branch("feed_forward", update), *STREAM), cache


def _block_class(config: ModelConfig) -> type[Block]:
    """Block with the config's rematerialisation policy around it."""
    if config.remat == "none":
        return Block
    policies = jax.checkpoint_policies
    policy = {
        "full": policies.nothing_saveable,
        "dots": policies.dots_with_no_batch_dims_saveable,
    }[config.remat]
    # Inside a scan, XLA cannot undo the recomputation by common-subexpression elimination.
    return nn.remat(Block, policy=policy, prevent_cse=not config.scan_layers)


class Transformer(nn.Module):
    """The policy over V tokens and S strategies (ids V..V+S-1)."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: KVCache | None = None,
        prefix: KVCache | None = None,
        num_scored: int | None = None,
        head: bool = True,
    ) -> tuple[jax.Array, KVCache | None]:
        """Score the next token at every position.

        Args:
          tokens: `[B, T]` int32 ids in 0..V+S-1.
          segment_ids: `[B, T]` int32; a token sees earlier tokens of its own segment. 0 marks
            padding. All ones if left out.
          positions: `[B, T]` int32 place of each token in its segment; 0, 1, 2, ... (after the
            cache's slots) if left out, which is right for rows that are not packed. With a cache
            they also say what comes before a token.
          cache: what was read before these tokens; None reads from the start.
          prefix: what was read before both, of fewer rows, each shared by as many of the tokens'
            rows, which stand one behind the other. It is not extended. `positions` must then be
            given, and say what comes before a token.
          num_scored: score only so many last positions (`[B, num_scored, V+S]`): prefill needs
            one, a completion after its prompt its own.
          head: False returns the normed hidden states `[B, T, D]` in place of the logits.

        Returns:
          logits `[B, T, V+S]` float32, and the extended cache (None without one).

        Raises:
          ValueError: rows longer than the model's max_length; a prefix without positions.
        """
        config = self.config
        batch, length = tokens.shape
        if length > config.max_length:
            raise ValueError(
                f"max_length={config.max_length}: the rows have {length} tokens; raise it, or "
                "choose shorter traces."
            )
        if prefix is not None and positions is None:
            raise ValueError("prefix: a token's place behind it is not known; pass positions.")
        if segment_ids is None:
            segment_ids = jnp.ones((batch, length), jnp.int32)
        if positions is None:
            offset = 0 if cache is None else cache.length
            positions = jnp.broadcast_to(offset + jnp.arange(length), (batch, length))
        keys = seen = segment_ids, positions  # of what may be looked at
        if cache is not None:
            keys = seen = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, new, cache.length, axis=1)
                for old, new in zip((cache.segment_ids, cache.positions), keys, strict=True)
            )
        if prefix is not None:
            seen = tuple(
                jnp.concatenate([jnp.repeat(old, batch // old.shape[0], axis=0), new], axis=1)
                for old, new in zip((prefix.segment_ids, prefix.positions), keys, strict=True)
            )
        if cache is None and prefix is None:
            places = jnp.arange(length)
            distances = (places[:, None] - places[None])[None]  # [1, T, T]
        else:
            distances = positions[:, :, None] - seen[1][:, None, :]  # [B, T, C]
        mask = (segment_ids[:, :, None] == seen[0][:, None, :]) & (distances >= 0)

        tables = strategies.table_initializer()
        token_table = self.param("token_embedding", tables, (config.vocab_size, config.d_model))
        strategy_table = None
        if not config.strategy_ids:
            shape = config.num_strategies, config.d_model
            strategy_table = self.param(strategies.TABLE, tables, shape)
        x = strategies.embed(token_table, strategy_table, tokens)
        if config.position_encoding == "learned":
            position_table = self.param(
                "position_embedding", _kernel(0.02, "position", "embed"),
                (config.max_length, config.d_model),
            )
            x = x + position_table[positions]
        x = x.astype(config.dtype)
        if config.scale_embeddings:
            x = x * jnp.asarray(config.d_model**0.5, config.dtype)
        if cache is None:
            # In two moves, the second an all-to-all: in one, meshes with both data and fsdp gather
            # the rows of all devices on each, and their gradients once more.
            x = constrain(x, *LOOKED_UP)
        x = constrain(x, *STREAM)

        slot = None if cache is None else cache.length
        distances = distances if any(config.windows) else None
        shared = rotations(config, positions), mask, segment_ids, distances, slot
        x, keys_values = self._layers(x, cache, prefix, shared)
        if cache is not None:
            cache = KVCache(*keys_values, *keys, cache.length + length)
        kept = length if num_scored is None else num_scored
        x = RMSNorm(config, name="final_norm")(x[:, length - kept :])

        heads = token_table, strategy_table
        if not config.tied_head:
            head_init = _kernel(config.d_model**-0.5, "vocab", "embed")
            heads = (
                self.param("token_head", head_init, token_table.shape),
                None
                if strategy_table is None
                else self.param(strategies.HEAD, head_init, strategy_table.shape),
            )
        if not head:
            return x, cache
        return soft_cap(strategies.score(*heads, x), config.final_softcap), cache

    def _layers(
        self, x: jax.Array, cache: KVCache | None, prefix: KVCache | None, shared: tuple
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """Run all blocks; returns `[B, T, D]` and the new (keys, values) of the cache.

        `shared` is what a block is given from `rotations` on.
        """
        config, block, kinds = self.config, _block_class(self.config), layer_kinds(self.config)
        caches = [None if c is None else (c.keys, c.values) for c in (cache, prefix)]
        if config.scan_layers:
            scan = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(
                    *(nn.broadcast if c is None else 0 for c in caches),
                    0,
                    *[nn.broadcast] * len(shared),
                ),
                length=config.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            kinds = jax.tree.map(jnp.asarray, kinds)
            x, new = scan(config, name="layers")(x, *caches, kinds, *shared)
            return x, new if cache is not None else (None, None)
        keys, values = [], []
        for layer in range(config.num_layers):
            kept = [None if c is None else (c[0][layer], c[1][layer]) for c in caches]
            kind = jax.tree.map(lambda rows, i=layer: jnp.asarray(rows[i]), kinds)
            x, new = block(config, name=f"layer_{layer}")(x, *kept, kind, *shared)
            if new is not None:
                keys.append(new[0])
                values.append(new[1])
        return x, (tuple(keys), tuple(values))


@partial(jax.jit, static_argnames="config")
def init_params(config: ModelConfig, key: jax.Array) -> Any:
    """Fresh parameters, a plain nested dict of float32 arrays; the key is consumed."""
    return nn.meta.unbox(Transformer(config).init(key, jnp.zeros((1, 1), jnp.int32)))


def logical_axes(config: ModelConfig) -> Any:
    """The tree of `init_params` with each array's logical axis names (a PartitionSpec)."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    boxed = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)
    return nn.get_partition_spec(boxed)


def params_for_sampling(config: ModelConfig, params: Any) -> Any:
    """The parameters as sampling reads them at every token: in the compute dtype, and on a mesh in
    the layout of the rule of "sampled_embed" in place of that of "embed".

    What they compute is the same to the last bit: weights are rounded here, once for all tokens,
    and not at each. What the model reads in float32 stays so.
    """

    def rounded(path: tuple, x: jax.Array) -> jax.Array:
        kept = path[-1].key == "scale" or (
            config.position_encoding == "learned" and path[-1].key.endswith("_embedding")
        )
        return x if kept else x.astype(config.dtype)

    params = jax.tree_util.tree_map_with_path(rounded, params)
    if not in_force():
        return params
    renamed = {"embed": "sampled_embed"}
    return jax.tree.map(
        lambda names, x: constrain(x, *(renamed.get(name, name) for name in names)),
        logical_axes(config), params, is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
