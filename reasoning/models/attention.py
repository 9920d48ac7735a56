"""Attention: the plain form, and the fused kernels of GPUs and TPUs, which write no scores.

Whole rows that attend to themselves (training, scoring) may take a kernel; `attention_kernel` is
where it is chosen. With a cache it is always the plain form: a step's one query has few scores.
Shapes: B rows, T tokens, C cache slots, N query heads, K key/value heads, H head_dim.
"""

from functools import partial

import jax
import jax.numpy as jnp

from reasoning.models.axes import in_force, partition
from reasoning.models.config import ModelConfig

LANES = 128  # the kernel of TPUs works on tiles of so many numbers
CUDNN_TILE = 64  # cuDNN's takes rows of whole tiles of so many tokens


def attention_kernel(config: ModelConfig, length: int) -> str:
    """"plain", "cudnn" or "splash": what rows of `length` tokens attend by.

    Where the config leaves it open: what the default backend has a kernel for, if that can do all
    that the config asks for.
    """
    if config.attention != "auto":
        return config.attention
    backend = jax.default_backend()
    # Rows of less than a tile would be padding for the most part.
    if backend == "tpu" and length >= LANES and not config.misfits("splash"):
        return "splash"
    if backend == "gpu" and length >= CUDNN_TILE and not config.misfits("cudnn"):
        return "cudnn" if _has_bfloat16() else "plain"
    return "plain"


def _has_bfloat16() -> bool:
    """Whether the GPU is one of NVIDIA's from Ampere on, as cuDNN's kernel needs for bfloat16."""
    capability = getattr(jax.devices()[0], "compute_capability", "")  # "8.0"; AMD's are names
    return capability[:1].isdigit() and float(capability) >= 8.0


def attend_to_self(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    segment_ids: jax.Array,
    config: ModelConfig,
) -> jax.Array:
    """Attention of whole rows, by the kernel that is chosen for them.

    Args:
      q: `[B, T, N, H]`.
      k, v: `[B, K, T, H]`.
      mask: `[B, T, T]`, True where a query may look.
      segment_ids: `[B, T]` int32, of which the mask follows where no layer has a window.

    Returns:
      `[B, T, N, H]`.
    """
    kernel, scale = attention_kernel(config, q.shape[1]), attention_scale(config)
    if kernel == "splash":
        return splash(q, k, v, segment_ids, scale, config.attention_softcap)
    if kernel == "cudnn":
        return fused(q, k, v, mask, scale, implementation="cudnn")
    return attend(q, k, v, mask, scale, config.attention_softcap)


def attention_scale(config: ModelConfig) -> float:
    """Of the products of queries and keys."""
    return (config.query_scale or config.head_dim) ** -0.5


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """c tanh(x / c) of any shape: nearly x where it is small, at most c (Gemma 2, 2408.00118)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float, cap: float | None
) -> jax.Array:
    """Grouped-query attention, softmax in float32.

    Args:
      q: `[B, T, N, H]`.
      k, v: `[B, K, C, H]`; N is a multiple of K.
      mask: `[B, T, C]`, True where a query may look.
      scale: of the products of queries and keys.
      cap: their soft cap.

    Returns:
      `[B, T, N, H]`.
    """
    batch, length, heads, width = q.shape
    num_kv = k.shape[1]
    # The queries of a group as rows of one matrix, heads before tokens: on a CPU the gradient of
    # products in any other order of axes takes twice as long.
    q = q.swapaxes(1, 2).reshape(batch, num_kv, -1, width)
    scores = jnp.einsum("bkqh,bkch->bkqc", q, k, preferred_element_type=jnp.float32)
    weights = _weights(scores, mask, scale, cap).astype(v.dtype)
    read = jnp.einsum("bkqc,bkch->bkqh", weights, v)
    return read.reshape(batch, heads, length, width).swapaxes(1, 2)


def _weights(scores: jax.Array, mask: jax.Array, scale: float, cap: float | None) -> jax.Array:
    """Softmax over C of the products `[B, K, Q, C]` of a group's queries, Q = N / K T of them.

    Args:
      mask, scale, cap: as of `attend`.
    """
    grouped = scores.reshape(*scores.shape[:2], -1, *mask.shape[1:])
    grouped = jnp.where(mask[:, None, None], soft_cap(grouped * scale, cap), -1e30)
    return jax.nn.softmax(grouped, axis=-1).reshape(scores.shape)


def attend_with_prefix(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prefix: tuple[jax.Array, jax.Array],
    mask: jax.Array,
    scale: float,
    cap: float | None,
) -> jax.Array:
    """`attend` to a prefix that R rows share, read once for all of them, and to each row's own.

    Both have their scores under one softmax. (Hydragen, 2402.05099, shares prefixes so.)

    Args:
      q: `[B R, T, N, H]`.
      k, v: `[B R, K, C, H]`, of each row.
      prefix: keys and values `[B, K, P, H]`, each row's shared by R rows, one behind the other.
      mask: `[B R, T, P + C]`, True where a query may look.
      scale, cap: as of `attend`.

    Returns:
      `[B R, T, N, H]`.
    """
    num_rows, length, heads, width = q.shape
    batch, num_kv, slots = prefix[0].shape[:3]
    q = q.swapaxes(1, 2).reshape(num_rows, num_kv, -1, width)

    def as_one(x: jax.Array) -> jax.Array:
        """`[B R, K, Q, .]` as `[B, K, R Q, .]`: what all rows do with shared keys, one matrix."""
        x = x.reshape(batch, -1, *x.shape[1:]).swapaxes(1, 2)
        return x.reshape(batch, num_kv, -1, x.shape[-1])

    def apart(x: jax.Array) -> jax.Array:
        """`[B, K, R Q, .]` as `[B R, K, Q, .]`."""
        x = x.reshape(batch, num_kv, num_rows // batch, -1, x.shape[-1])
        return x.swapaxes(1, 2).reshape(num_rows, num_kv, -1, x.shape[-1])

    product = partial(jnp.einsum, "bkqh,bkch->bkqc", preferred_element_type=jnp.float32)
    scores = [apart(product(as_one(q), prefix[0])), product(q, k)]
    scores = jnp.concatenate(scores, axis=-1)
    weights = _weights(scores, mask, scale, cap).astype(v.dtype)
    mix = partial(jnp.einsum, "bkqc,bkch->bkqh", preferred_element_type=jnp.float32)
    read = apart(mix(as_one(weights[..., :slots]), prefix[1])) + mix(weights[..., slots:], v)
    read = read.astype(v.dtype)  # after the sum: rounded once, as in the plain form
    return read.reshape(num_rows, heads, length, width).swapaxes(1, 2)


def fused(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float, implementation: str
) -> jax.Array:
    """`attend` of whole rows, without a soft cap, by jax's own function: on GPUs cuDNN's kernel.

    Rows are padded to whole tiles.

    Args:
      q: `[B, T, N, H]`.
      k, v: `[B, K, T, H]`.
      mask: `[B, T, T]`, True where a query may look.
      implementation: "cudnn" (bfloat16 alone) or "xla".
    """
    length, more = q.shape[1], -q.shape[1] % CUDNN_TILE
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))
        for x in (q, k.swapaxes(1, 2), v.swapaxes(1, 2))
    )
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, more)))
    # A query that may look nowhere would read no number.
    mask = jnp.pad(mask, ((0, 0), (0, more), (0, 0)), constant_values=True)
    read = jax.nn.dot_product_attention(
        q, k, v, mask=mask[:, None], scale=scale, implementation=implementation
    )
    return read[:, :length]


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    scale: float,
    cap: float | None,
) -> jax.Array:
    """Causal attention within segments by the TPU's kernel; rows and heads are cut over a mesh.

    Heads and rows are padded to whole tiles.

    Args:
      q: `[B, T, N, H]`.
      k, v: `[B, K, T, H]`, of the same tokens.
      segment_ids: int32 `[B, T]`; a token sees those of its own.
    """
    length, width = q.shape[1], q.shape[3]
    tokens, lanes = -length % LANES, -width % LANES

    def tiles(x: jax.Array) -> jax.Array:
        """`[B, N, T, H]` with T and H padded."""
        return jnp.pad(x, ((0, 0), (0, 0), (0, tokens), (0, lanes)))

    q, k, v = tiles((q * scale).swapaxes(1, 2)), tiles(k), tiles(v)
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, tokens)))  # behind all others: seen by none
    kernel = partial(_splash_rows, cap=cap)
    if in_force():
        mesh = jax.sharding.get_abstract_mesh().shape
        axes = ("batch", "heads", None, None), *2 * (("batch", "kv_heads", None, None),)
        specs = [partition(names, x.shape, mesh) for names, x in zip(axes, (q, k, v), strict=True)]
        rows = partition(("batch", None), segment_ids.shape, mesh)
        # What a kernel does cannot be seen from outside: no check of what varies over the mesh.
        kernel = jax.shard_map(
            kernel, in_specs=(*specs, rows), out_specs=specs[0], check_vma=False
        )
    return kernel(q, k, v, segment_ids)[:, :, :length, :width].swapaxes(1, 2)


def _splash_rows(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, cap: float | None
) -> jax.Array:
    """The kernel on the rows and heads of one device: `[B, N, T, H]`, whole tiles."""
    from jax.experimental.pallas.ops.tpu import splash_attention  # only where it is used: slow

    heads, length = q.shape[1:3]
    block = max(size for size in (128, 256, 512) if length % size == 0)
    sizes = splash_attention.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block,
        block_kv_dq=block,
    )
    mask = splash_attention.MultiHeadMask(
        [splash_attention.CausalMask((length, length)) for _ in range(heads)]
    )
    kernel = splash_attention.make_splash_mha_single_device(
        mask, block_sizes=sizes, attn_logits_soft_cap=cap
    )
    ids = splash_attention.SegmentIds(q=segment_ids, kv=segment_ids)
    return jax.vmap(kernel)(q, k, v, ids)
