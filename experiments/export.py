r"""Write a trained policy as a Hugging Face model directory, for serving and for other evaluators.

    python -m experiments.export --out=models/mine --config=experiments/configs/gsm8k.py:imported \
        --config.model.directory=models/Qwen2.5-1.5B-Instruct \
        --config.model.policy=runs/mine/policies/seed0/mixed_grpo
    python -m experiments.export --out=models/exact --config=experiments/configs/gsm8k.py:imported \
        --config.model.directory=models/Qwen2.5-1.5B-Instruct --dtype=float32 \
        --config.model.policy=runs/mine/policies/seed0/mixed_grpo

The configuration is that of the run, which began with an imported model. Strategies that are rows
of their own become added tokens, `<|strategy_1|>` and so on; a policy whose tags are textual has
nothing to add.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import app, flags

from experiments import launch, sources
from reasoning.data.formats import TextFormat
from reasoning.data.imported_tokenizers import add_tokens, read_settings
from reasoning.models.pretrained import load_config, save_pretrained

# What a model directory has beside its weights and its configuration.
COPIED = ("tokenizer*", "special_tokens_map.json", "chat_template*", "vocab.json", "merges.txt",
          "added_tokens.json", "LICENSE*")

_OUT = flags.DEFINE_string("out", None, "The directory to write.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of the weights.")


def export(config: ml_collections.ConfigDict, out: str, dtype: str) -> Path:
    """Write the policy of the configuration; returns the directory.

    Raises:
      ValueError: nothing to export, or what no published family computes.
    """
    if config.model.policy is None:
        raise ValueError("model.policy is missing: name what a run has trained.")
    if config.model.directory is None:
        raise ValueError(
            "model.directory is missing: only what began with an imported model is exported, as "
            "nothing else reads a tokenizer made here as it is read here; "
            "reasoning.models.pretrained.save_pretrained writes the weights of any policy with "
            "rotary positions."
        )
    text_format = sources.make_format(config, sources.make_problems(config))
    model = sources.make_model(config, text_format)
    last = text_format.tokenizer.largest_id
    if not model.strategy_ids and last >= model.vocab_size:
        raise ValueError(
            f"model.tags='added': {config.model.directory} has a token of id {last} without a row, "
            "which is a strategy's id; train with model.tags='textual' to export the model."
        )
    params = sources.first_params(config, model, jax.random.key(0), None)
    source = Path(config.model.directory)
    # A run may read shorter texts than its model can.
    longest = load_config(source).max_length
    save_pretrained(
        out, dataclasses.replace(model, max_length=longest), params, dtype,
        generation=generation_settings(source, text_format),
    )
    for pattern in COPIED:
        for path in source.glob(pattern):
            shutil.copy(path, out)
    if not model.strategy_ids:
        names = [f"<|strategy_{tag + 1}|>" for tag in range(model.num_strategies)]
        add_tokens(Path(out) / "tokenizer.json", model.vocab_size, names)
    return Path(out)


def generation_settings(source: Path, text_format: TextFormat) -> dict[str, Any]:
    """The model directory's generation_config.json, ending where a completion ended in training.

    The directory's other stop ids follow; its bos and pad stay, and are ours where it names none.
    """
    tokenizer = text_format.tokenizer
    named = read_settings(source / "generation_config.json")
    for name, i in (("bos_token_id", tokenizer.bos_id), ("pad_token_id", tokenizer.pad_id)):
        if named.get(name) is None:
            named[name] = i
    ends = list(dict.fromkeys([text_format.eos_id, *tokenizer.stop_ids]))
    return {**named, "eos_token_id": ends if len(ends) > 1 else ends[0]}


def main(argv: list[str]) -> None:
    """Export what the flags name."""
    if argv[1:]:
        launch.refuse(f"{argv[1]!r}: no such argument.")
    if not _OUT.value:
        launch.refuse("out is missing: say where the model is to be written, --out=DIR.")
    with launch.refusals():
        print(f"{export(launch.configuration(), _OUT.value, _DTYPE.value)}: written.")


if __name__ == "__main__":
    app.run(main, flags_parser=launch.parse)
