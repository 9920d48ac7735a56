"""HLO of small programs whose FLOPs, bytes and collectives are known by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reasoning.runtime.hlo import parse
from reasoning.runtime.programs import _group_size, analyse

DEVICES, LAYERS, ROWS, WIDTH = 8, 7, 64, 32


def compiled_text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_matmul_in_a_scan_of_7_with_a_gather_counts_7_times():
    mesh = Mesh(jax.devices()[:DEVICES], ("devices",))

    def place(shape, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def layers(x, weights):
        def one(x, weight):
            weight = jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(x @ weight), None

        return jax.lax.scan(one, x, weights)[0]

    x = place((ROWS, WIDTH), "devices")
    cost = analyse(compiled_text(layers, x, place((LAYERS, WIDTH, WIDTH), None, "devices")))
    assert cost.flops == LAYERS * 2 * (ROWS // DEVICES) * WIDTH * WIDTH
    assert {x.kind for x in cost.collectives} == {"all-gather"}
    assert all(x.devices == DEVICES for x in cost.collectives)
    # Gathered layer by layer, or all before the loop.
    assert sum(x.count * x.size for x in cost.collectives) == LAYERS * WIDTH * WIDTH * 4
    assert cost.moved == LAYERS * WIDTH * WIDTH * 4 * (DEVICES - 1) / DEVICES


def test_a_sum_over_devices_is_an_all_reduce_of_what_each_has():
    mesh = Mesh(jax.devices()[:DEVICES], ("devices",))
    x = jax.ShapeDtypeStruct(
        (DEVICES, 100), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("devices"))
    )
    (exchange,) = analyse(compiled_text(lambda x: x.sum(axis=0), x)).collectives
    assert (exchange.kind, exchange.size, exchange.count) == ("all-reduce", 400, 1)
    assert exchange.moved == 2 * 400 * (DEVICES - 1) / DEVICES


@pytest.mark.parametrize("equation", ["mk,kn->mn", "bmk,bkn->bmn", "mk,nk->nm", "abk,ck->abc"])
def test_flops_without_loops_are_those_of_xla(equation):
    sizes = dict(a=2, b=3, c=7, m=5, n=6, k=4)
    left, right = equation.split("->")[0].split(",")
    arrays = [jax.ShapeDtypeStruct([sizes[i] for i in x], jnp.float32) for x in (left, right)]
    compiled = jax.jit(lambda x, y: jnp.einsum(equation, x, y)).lower(*arrays).compile()
    assert analyse(compiled.as_text()).flops == compiled.cost_analysis()["flops"]


def test_loops_within_loops_multiply():
    weight = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)

    def program(weight):
        def inner(x, _):
            return jnp.sin(x @ weight), None

        def outer(x, _):
            return jax.lax.scan(inner, x, length=3)[0], None

        return jax.lax.scan(outer, weight, length=5)[0]

    assert analyse(compiled_text(program, weight)).flops == 15 * 2 * WIDTH**3


def test_a_loop_that_ends_by_data_counts_as_often_as_is_said():
    weight = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)

    def program(weight):
        start = weight @ weight  # once, before the loop
        return jax.lax.while_loop(lambda x: x.sum() < 1e6, lambda x: x @ weight, start)

    text = compiled_text(program, weight)
    once, twice = analyse(text), analyse(text, unknown_trips=2)
    assert once.flops == 2 * 2 * WIDTH**3
    assert twice.minus(once).flops == 2 * WIDTH**3


def test_a_sum_of_two_arrays_moves_three():
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    assert analyse(compiled_text(lambda x, y: x + y, x, x)).hbm_bytes == 3 * 4000


def test_a_layer_of_a_stack_is_read_alone():
    stack = jax.ShapeDtypeStruct((10, 1000), jnp.float32)
    index = jax.ShapeDtypeStruct((), jnp.int32)
    text = compiled_text(lambda x, i: x[i] * 2.0, stack, index)
    assert analyse(text).hbm_bytes <= 3 * 4000, "the slice is read, perhaps copied, and written"


# What the TPU's compiler writes: products as convolutions, a matrix product of 8 heads as a
# convolution whose window has 8 valid places, a loop unrolled by 2, the steps of one gather in two
# fusions, a reduce-scatter as a fusion, estimates of cycles, arrays in vector memory as S(1).
TPU = """
HloModule example, is_scheduled=true

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%gather_step.1 (p: bf16[16,64]) -> bf16[64,64] {
  %p = bf16[16,64]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=5, replica_groups=[2,4]<=[8], dimensions={0}
}

%gather_step.2 (p.2: bf16[16,64]) -> bf16[64,64] {
  %p.2 = bf16[16,64]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=5, replica_groups=[2,4]<=[8], dimensions={0}
}

%all-reduce-scatter.1 (q: bf16[64,64]) -> bf16[16,64] {
  %q = bf16[64,64]{1,0} parameter(0)
  %all-reduce.1 = bf16[64,64]{1,0} all-reduce(%q), channel_id=6, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = bf16[16,64]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={16,64}
}

%product (l: bf16[512,1,64], r: bf16[8,64,32]) -> bf16[512,8,32] {
  %l = bf16[512,1,64]{2,0,1} parameter(0)
  %r = bf16[8,64,32]{2,1,0} parameter(1)
  ROOT %convolution.1 = bf16[512,8,32]{2,0,1} convolution(%l, %r), window={size=8 pad=7_7 rhs_reversal=1}, dim_labels=b0f_0io->b0f
}

%body (carry: (s32[], bf16[16,64], bf16[512,1,64], bf16[8,64,32])) -> (s32[], bf16[16,64], bf16[512,1,64], bf16[8,64,32]) {
  %carry = (s32[]{:T(128)}, bf16[16,64]{1,0}, bf16[512,1,64]{2,0,1:S(1)}, bf16[8,64,32]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %shard = bf16[16,64]{1,0} get-tuple-element(%carry), index=1
  %rows = bf16[512,1,64]{2,0,1:S(1)} get-tuple-element(%carry), index=2
  %heads = bf16[8,64,32]{2,1,0} get-tuple-element(%carry), index=3
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %start = bf16[64,64]{1,0:S(1)} fusion(%shard), kind=kCustom, calls=%gather_step.1
  %done = bf16[64,64]{1,0:S(1)} fusion(%shard), kind=kCustom, calls=%gather_step.2
  %scattered = bf16[16,64]{1,0} fusion(%done), kind=kCustom, calls=%all-reduce-scatter.1
  %fused = bf16[512,8,32]{2,0,1:S(1)} fusion(%rows, %heads), kind=kOutput, calls=%product, backend_config={"window_config":{"estimated_cycles":"1000"}}
  ROOT %out = (s32[]{:T(128)}, bf16[16,64]{1,0}, bf16[512,1,64]{2,0,1:S(1)}, bf16[8,64,32]{2,1,0}) tuple(%next, %scattered, %rows, %heads)
}

%condition (carry.2: (s32[], bf16[16,64], bf16[512,1,64], bf16[8,64,32])) -> pred[] {
  %carry.2 = (s32[]{:T(128)}, bf16[16,64]{1,0}, bf16[512,1,64]{2,0,1:S(1)}, bf16[8,64,32]{2,1,0}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%carry.2), index=0
  %limit = s32[]{:T(128)} constant(28)
  ROOT %less = pred[]{:T(512)} compare(%i.2, %limit), direction=LT
}

ENTRY %main (a: (s32[], bf16[16,64], bf16[512,1,64], bf16[8,64,32])) -> (s32[], bf16[16,64], bf16[512,1,64], bf16[8,64,32]) {
  %a = (s32[]{:T(128)}, bf16[16,64]{1,0}, bf16[512,1,64]{2,0,1:S(1)}, bf16[8,64,32]{2,1,0}) parameter(0)
  ROOT %while.1 = (s32[]{:T(128)}, bf16[16,64]{1,0}, bf16[512,1,64]{2,0,1:S(1)}, bf16[8,64,32]{2,1,0}) while(%a), condition=%condition, body=%body
}
"""  # noqa: E501


def test_what_the_tpu_compiler_writes_is_read():
    cost = analyse(TPU)
    trips = 28 // 2
    assert cost.flops == trips * 2 * 512 * 8 * 32 * 64
    assert cost.cycles == trips * 1000
    gather, scatter = cost.collectives
    assert (gather.kind, gather.devices, gather.count, gather.size) == ("all-gather", 4, 14, 8192)
    assert (scatter.kind, scatter.devices, scatter.size) == ("reduce-scatter", 4, 8192)
    assert cost.moved == 2 * trips * 8192 * 3 / 4
    # The gather and the scatter, once each; of the product the heads alone lie in HBM; the counter.
    exchanged = (2048 + 8192) + (8192 + 2048)
    assert cost.hbm_bytes == trips * (exchanged + 8 * 64 * 32 * 2 + 3 * 4)


@pytest.mark.parametrize(
    "groups, devices",
    [
        ("replica_groups={{0,4,8},{1,5,9}}, to_apply=%add", 3),
        ("replica_groups=[4,32]<=[32,4]T(1,0), dimensions={1}", 32),
        ("replica_groups=mesh['a'=4,'b'=2,'c'=8] {'a','c'}, dimensions={1}", 32),
        ("replica_groups=mesh['a'=16,'b'=4], device_ids=([4,16]T(1,0)) {'a'}, dimensions={1}", 16),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_groups_of_devices_are_read(groups, devices):
    assert _group_size(f", channel_id=1, {groups}, use_global_device_ids=true") == devices


def test_groups_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="replica_groups"):
        _group_size(", channel_id=1, replica_groups=everyone")


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no HLO module"):
        parse("nothing")


KERNEL = """HloModule kernel

ENTRY %main (p: bf16[4,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %kernel = bf16[4,8]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", metadata={k={
"sizes":"{\\"block\\": 512}"
}}, backend_config={"estimated_cycles":"77"}
  ROOT %twice = bf16[4,8]{1,0} add(%kernel, %kernel)
}
"""


def test_an_instruction_may_take_several_lines():
    computations, entry = parse(KERNEL)
    assert computations[entry].root.name == "twice"
    assert list(computations[entry].instructions) == ["p", "kernel", "twice"]
    assert analyse(KERNEL).cycles == 77


def test_of_the_branches_of_a_conditional_the_costliest_counts():
    weight = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)

    def program(weight, which):
        branches = [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x]
        return jax.lax.switch(which, branches, weight) @ weight

    text = compiled_text(program, weight, jax.ShapeDtypeStruct((), jnp.int32))
    assert analyse(text).flops == 3 * 2 * WIDTH**3
