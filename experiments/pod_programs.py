"""The programs that a configuration runs, as shapes on a mesh: nothing is allocated.

    for name, build in PROGRAMS.items():
        program = build(planned(config), mesh)
        compiled = program.lower(mesh).compile()

The functions are those of the launchers: `sft_update`, the RL step's `update` and `draw`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.rl import check_rl, rl_config, rl_optimizer
from experiments.sft import Setup, optimizer_config, set_up
from reasoning.data.pipelines import TraceBatch
from reasoning.learning import rollouts as ro
from reasoning.learning.optimizers import make_optimizer
from reasoning.learning.rl_state import PolicyState, RLConfig, init_policy_state
from reasoning.learning.rl_updates import update
from reasoning.learning.updates import TrainState, init_state, sft_update
from reasoning.models.axes import rows_apart
from reasoning.models.cache import init_cache
from reasoning.models.config import ModelConfig
from reasoning.models.transformer import init_params
from reasoning.rewards.verdicts import Verdicts
from reasoning.runtime.meshes import ROWS, param_shardings, row_sharding, use_mesh
from reasoning.sampling.sampler import cache_stages
from reasoning.sampling.slots import rows_at_a_time


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration with the sizes that its programs are compiled for.

    Attributes:
      config: the whole configuration.
      setup: its model, with the vocabulary and the prompt length of `config.plan` where it has any.
      rl: what the RL step is compiled for.
    """

    config: ml_collections.ConfigDict
    setup: Setup
    rl: RLConfig

    @property
    def model(self) -> ModelConfig:
        """The policy's shape."""
        return self.setup.model


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with the shapes, dtypes and shardings that it is called with.

    Attributes:
      name: as in `PROGRAMS`.
      function: jitted.
      arguments: positional, trees of `jax.ShapeDtypeStruct`.
      keywords: keyword arguments.
      kinds: kind of memory -> the tree of arguments that is of this kind.
      model_flops: of the matrix products that the mathematics asks for, of all devices: nothing is
        computed twice, attention is over whole rows. The sampler's are those of one token a row.
      steps: how often loops of unknown length run at most (the sampler's tokens), else 1.
      loops: that share these steps out, a program each (the stages of the sampler's cache).
      cache: shapes of what the program itself keeps for decoding, None without.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple
    keywords: dict[str, Any]
    kinds: dict[str, Any]
    model_flops: float
    steps: int = 1
    loops: int = 1
    cache: Any = None

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """Trace and lower it for the mesh's devices."""
        with use_mesh(mesh):
            return self.function.lower(*self.arguments, **self.keywords)


def planned(config: ml_collections.ConfigDict) -> Plan:
    """Check a configuration as the launchers do.

    Raises:
      ValueError: what cannot work, in one sentence.
    """
    setup = set_up(config, (config.arm,), on_mesh=False)
    check_rl(setup, config, "rl")
    if config.finetune.pack:
        raise ValueError(
            f"finetune.pack={config.finetune.pack}: the plan is one of padded rows; leave it 0."
        )
    sizes = config.get("plan")
    if sizes is not None:
        if not 0 < sizes.prompt_length < setup.model.max_length:
            raise ValueError(
                f"plan.prompt_length={sizes.prompt_length}: must lie between 0 and "
                f"model.max_length={setup.model.max_length}."
            )
        if sizes.vocab_size < setup.model.vocab_size:
            raise ValueError(
                f"plan.vocab_size={sizes.vocab_size}: the task's tokenizer has "
                f"{setup.model.vocab_size} ids; raise it to that."
            )
        model = dataclasses.replace(setup.model, vocab_size=sizes.vocab_size)
        setup = dataclasses.replace(setup, model=model, prompt_length=sizes.prompt_length)
    return Plan(config, setup, rl_config(setup, config.rl))


def _placed(shapes: Any, shardings: Any) -> Any:
    """Shapes with their shardings; one sharding serves a whole tree."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def _rows(mesh: Mesh, shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=row_sharding(mesh))


def _copied(mesh: Mesh, shapes: Any) -> Any:
    """Shapes of which every device holds all."""
    return _placed(shapes, NamedSharding(mesh, PartitionSpec()))


def _params(model: ModelConfig, mesh: Mesh) -> Any:
    shapes = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    return _placed(shapes, param_shardings(model, mesh))


def _opt_state(shapes: Any, params: Any, mesh: Mesh) -> Any:
    """The optimizer's state: moments lie where their parameters do, counters everywhere."""
    by_path = dict(jax.tree_util.tree_flatten_with_path(params)[0])

    def place(path: tuple, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # The state holds trees like the parameters': a moment's path ends as its parameter's.
        ends = (by_path.get(path[start:]) for start in range(len(path)))
        param = next((p for p in ends if p is not None and p.shape == x.shape), None)
        return _copied(mesh, x) if param is None else _placed(x, param.sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def forward_flops(
    config: ModelConfig, rows: int, length: int, slots: float, scored: int
) -> float:
    """FLOPs of a forward pass over `[rows, length]` tokens that see `slots` keys each, on average.

    Args:
      scored: positions of a row that the head scores.
    """
    heads = config.num_heads + config.num_kv_heads
    weights = 2 * config.d_model * config.head_dim * heads + 3 * config.d_model * config.d_ff
    attention = 2 * slots * config.num_heads * config.head_dim
    per_row = config.num_layers * length * (weights + attention)
    return 2.0 * rows * (per_row + scored * config.d_model * config.output_size)


def step_flops(
    config: ModelConfig, rows: int, length: int, scored: int, trained: str = "all"
) -> float:
    """FLOPs of an optimizer step on whole rows: a pass forwards, and its gradient.

    The gradient of a product costs one for each of its two sides, that of what is not trained none.

    Args:
      trained: as of `OptimizerConfig`.
    """
    whole = forward_flops(config, rows, length, length, scored)
    if trained == "all":
        return 3 * whole
    attention = whole - forward_flops(config, rows, length, 0, scored)
    head = forward_flops(config, rows, 0, 0, scored)
    strategies = head * config.num_strategies / config.output_size
    return 2 * whole + attention + strategies


def training_step(plan: Plan, mesh: Mesh) -> Program:
    """The update of supervised fine-tuning on `finetune.rows` of `model.max_length` tokens."""
    settings, model = plan.config.finetune, plan.model
    optimizer = make_optimizer(optimizer_config(settings))
    params = _params(model, mesh)
    state = jax.eval_shape(partial(init_state, optimizer=optimizer), params)
    state = TrainState(
        params, _opt_state(state.opt_state, params, mesh), _copied(mesh, state.step)
    )
    rows, length = settings.rows, model.max_length
    batch = TraceBatch(
        tokens=_rows(mesh, (rows, length)),
        lengths=_rows(mesh, (rows,)),
        fork=_rows(mesh, (rows,)),
        problem=_rows(mesh, (rows,)),
        slot=_rows(mesh, (rows,)),
        problem_seed=_rows(mesh, (rows,), jnp.uint32),
    )
    return Program(
        name="training step",
        function=sft_update,
        arguments=(state, batch, _rows(mesh, (rows,))),
        keywords=dict(
            config=model, optimizer=optimizer, reduction=plan.config.loss.reduction,
            tag_is_label=plan.config.loss.tag_is_label, num_microbatches=settings.microbatches,
            trained=settings.trained,
        ),
        kinds={"parameters": state.params, "optimizer": state.opt_state},
        model_flops=step_flops(model, rows, length, length, settings.trained),
    )


def _prompts(plan: Plan, mesh: Mesh) -> ro.PromptBatch:
    count, length = plan.rl.num_prompts, plan.setup.prompt_length
    ids = _rows(mesh, (count, length))
    return ro.PromptBatch(ids, ids, _rows(mesh, (count,)), _rows(mesh, (count,)))


def _draw(plan: Plan, num_slots: int | None) -> Callable[..., Any]:
    """The sampler, as the steps of RL call it."""
    config = plan.rl
    return partial(
        ro.draw, config=config.model, stop_ids=config.stop_ids, pad_id=config.pad_id,
        rollout=dataclasses.replace(config.rollout, num_slots=num_slots),
    )


def _decoding(
    plan: Plan, mesh: Mesh, num_slots: int
) -> tuple[int, int, list[tuple[int, int]]]:
    """How the devices decode: rows at a time, loops, and the caches as rows and slots."""
    num_prompts, num_samples = plan.rl.num_prompts, plan.rl.rollout.num_samples
    prompt, new = plan.setup.prompt_length, plan.rl.rollout.max_new_tokens
    with use_mesh(mesh):
        apart = rows_apart(num_prompts)
    sequences, stages = num_prompts * num_samples, len(cache_stages(new)) if apart else 1
    if 0 < apart * num_slots < sequences:
        rows = apart * num_slots
        return rows, 1, [(num_prompts, prompt), (rows, prompt + new)]
    if apart and num_samples > 1:  # which share their prompt's
        return sequences, stages, [(num_prompts, prompt), (sequences, new)]
    return sequences, stages, [(sequences, prompt + new)]


def sampler(plan: Plan, mesh: Mesh) -> Program:
    """`rl.samples` completions of `rl.prompts` prompts: prefill, then one token at a time."""
    params, key = _params(plan.model, mesh), jax.eval_shape(jax.random.key, 0)
    prompt, new = plan.setup.prompt_length, plan.rl.rollout.max_new_tokens
    num_slots = plan.config.rl.num_slots or rows_at_a_time(mesh.devices.flat[0].platform)
    rows, loops, sizes = _decoding(plan, mesh, num_slots)
    caches = [jax.eval_shape(partial(init_cache, plan.model, *size)) for size in sizes]
    axes = PartitionSpec(*(None,) * plan.model.scan_layers, ROWS, "tensor")  # [B, K, C, H]
    return Program(
        name="sampler",
        function=jax.jit(_draw(plan, num_slots)),
        arguments=(params, _prompts(plan, mesh), _copied(mesh, key)),
        keywords={},
        kinds={"parameters": params},
        model_flops=forward_flops(plan.model, rows, 1, prompt + new, 1),
        steps=-(-plan.rl.num_prompts * plan.rl.rollout.num_samples // rows) * new,
        loops=loops,
        cache=_placed([(x.keys, x.values) for x in caches], NamedSharding(mesh, axes)),
    )


def _update_flops(config: RLConfig, prompt_length: int) -> float:
    """FLOPs of an RL update: its optimizer steps, and the passes that stand before them.

    Those are one each of the reference, of the critic, and of the policy where its entropy is read.
    A KL over all tags reads the reference at every step instead.
    """
    algorithm, model, steps = config.algorithm, config.model, config.num_epochs
    rows, scored = config.num_prompts, 1
    if not algorithm.on_fork:
        rows, scored = rows * config.rollout.num_samples, config.rollout.max_new_tokens
    length = prompt_length + scored - 1
    passes = int(algorithm.reads_entropy)
    if algorithm.kl_coef:
        passes += steps if algorithm.positions == "fork_exact" else 1
    flops = passes * forward_flops(model, rows, length, length, scored)
    flops += steps * step_flops(model, rows, length, scored, config.trained)
    if algorithm.critic:  # its head has one output: next to nothing
        flops += forward_flops(model, rows, length, length, 0)
        flops += steps * step_flops(model, rows, length, 0)
    return flops


def rl_update(plan: Plan, mesh: Mesh) -> Program:
    """The update on judged completions of `rl.prompts` prompts, the reference's pass included."""
    config, optimizer = plan.rl, rl_optimizer(plan.config.rl)
    params, prompts = _params(plan.model, mesh), _prompts(plan, mesh)
    key = jax.eval_shape(jax.random.key, 0)
    shapes = jax.eval_shape(
        partial(init_policy_state, config=config, optimizer=optimizer), params
    )
    state = PolicyState(
        params=params,
        opt_state=_opt_state(shapes.opt_state, params, mesh),
        step=_copied(mesh, shapes.step),
        reference=None if shapes.reference is None else params,
        entropy_coef=_copied(mesh, shapes.entropy_coef),
        critic=None,
        critic_opt_state=None,
        skipped=_copied(mesh, shapes.skipped),
    )
    if shapes.critic is not None:
        head = _copied(mesh, shapes.critic["head"])
        critic = {"model": params, "head": head}
        opt_state = _opt_state(shapes.critic_opt_state, critic, mesh)
        state = state.replace(critic=critic, critic_opt_state=opt_state)
    samples = jax.eval_shape(_draw(plan, None), params, prompts, key)
    rows = samples.tokens.shape[0]
    verdicts = Verdicts(*(jax.ShapeDtypeStruct((rows,), d) for d in (jnp.float32, jnp.int32)))
    rollouts = jax.eval_shape(
        partial(
            ro.assemble, rollout=config.rollout, config=config.model,
            allowed=config.allowed_ids(),
        ),
        samples, verdicts,
    )
    kinds = {"parameters": params, "optimizer": state.opt_state}
    if state.reference is not None:
        kinds["reference"] = state.reference
    if state.critic is not None:
        kinds["critic"] = (state.critic, state.critic_opt_state)
    return Program(
        name="RL update",
        function=jax.jit(partial(update, config=config, optimizer=optimizer), donate_argnums=0),
        arguments=(state, prompts, _placed(rollouts, row_sharding(mesh)), _copied(mesh, key)),
        keywords={},
        kinds=kinds,
        model_flops=_update_flops(config, plan.setup.prompt_length),
    )


PROGRAMS: dict[str, Callable[[Plan, Mesh], Program]] = {
    "training step": training_step,
    "RL update": rl_update,
    "sampler": sampler,
}
