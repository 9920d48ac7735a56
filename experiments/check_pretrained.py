"""Whether a model directory computes here what it computes in `transformers`.

    python -m experiments.check_pretrained --model=DIR
    python -m experiments.check_pretrained --model=DIR --length=200 --new_tokens=64 --tolerance=1e-3
    python -m experiments.check_pretrained --model=DIR --reference=DIR

Loads the directory twice in float32, on the CPU there and on the first device here, and compares
logits and log-probs of a padded batch and a greedy continuation with the cache, on random tokens.
`transformers` loads --reference instead, where a model was rewritten as another family's.
Prints one JSON object; the exit status is 1 above the tolerance. Needs torch and transformers
(extra [reference]).
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from scipy.special import log_softmax

from experiments import launch, usage
from reasoning.models.config import ModelConfig
from reasoning.models.pretrained import load_config, load_params
from reasoning.models.transformer import Transformer
from reasoning.sampling.filters import Filters
from reasoning.sampling.sampler import OWN_TAG, sample, sequence_keys

_MODEL = flags.DEFINE_string("model", None, "A Hugging Face model directory.")
_REFERENCE = flags.DEFINE_string("reference", None, "What transformers loads; --model's, if not.")
_LENGTH = flags.DEFINE_integer("length", 48, "Tokens of the longest row.", lower_bound=4)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 16, "Tokens continued greedily.", lower_bound=1)
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-4, "The largest difference that passes.")


def random_batch(vocab_size: int, length: int, rows: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask `[rows, length]`, padded on the left by 0, 1, ... thirds of the length."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, length)).astype(np.int32)
    starts = np.arange(rows) * length // (rows + 1)
    mask = (np.arange(length)[None] >= starts[:, None]).astype(np.int32)
    return tokens * mask, mask


def reference(directory: str | Path, tokens: np.ndarray, mask: np.ndarray, new_tokens: int) -> Any:
    """Logits `[B, T, V]` and greedy continuations `[B, N]` of `transformers`, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    model.train(False)
    ids, seen = torch.tensor(tokens, dtype=torch.long), torch.tensor(mask, dtype=torch.long)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    model.generation_config.eos_token_id = None  # the continuations are of one length
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=seen, position_ids=positions).logits
        continued = model.generate(
            input_ids=ids, attention_mask=seen, do_sample=False, max_new_tokens=new_tokens,
            pad_token_id=0,
        )
    return logits.numpy(), continued[:, ids.shape[1] :].numpy()


def ours(
    config: ModelConfig, params: Any, tokens: np.ndarray, mask: np.ndarray, new_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same of `tokens`, `mask` `[B, T]` by this project's forward pass and its sampler."""
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    score = jax.jit(Transformer(config).apply)
    logits, _ = score(params, tokens, segment_ids=jnp.asarray(mask), positions=positions)
    samples = sample(
        params,
        tokens,
        mask,
        np.full((len(tokens), 1), OWN_TAG, np.int32),
        sequence_keys(jax.random.key(0), jnp.arange(len(tokens)), 1),
        Filters(temperature=0.0),
        config=config,
        max_new_tokens=new_tokens,
        stop_ids=(config.output_size,),  # no id: nobody stops early
        pad_id=0,
    )
    return np.asarray(logits), np.asarray(samples.tokens)


def compare(
    directory: str | Path, length: int, new_tokens: int, original: str | Path | None = None
) -> dict[str, Any]:
    """The largest differences of a model directory, and whether greedy continuations are equal.

    Args:
      original: the directory that `transformers` loads; None: the same.

    Raises:
      ValueError: the directory does not load here.
    """
    # The strategy is an id of the vocabulary: the model scores what it was published with.
    config = load_config(directory, num_strategies=1, strategy_ids=(0,))
    length = min(length, config.max_length - new_tokens)
    params = load_params(directory, config, jax.random.key(0))
    tokens, mask = random_batch(config.vocab_size, length)
    theirs, their_words = reference(original or directory, tokens, mask, new_tokens)
    logits, words = ours(config, params, tokens, mask, new_tokens)
    seen = mask.astype(bool)
    scored = seen[:, 1:] & seen[:, :-1]
    their_log_probs, log_probs = (
        np.take_along_axis(log_softmax(x[:, :-1], axis=-1), tokens[:, 1:, None], axis=-1)[scored]
        for x in (theirs, logits)
    )
    return {
        "model": str(directory),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "logits": float(np.abs(theirs - logits)[seen].max()),
        "log_probs": float(np.abs(their_log_probs - log_probs).max()),
        "greedy_equal": bool(np.array_equal(their_words, words)),
    }


def main(_: list[str]) -> None:
    """Compare, print, and say by the exit status whether all is well."""
    if not _MODEL.value:
        launch.refuse("model is missing: say which directory, --model=DIR.")
    try:
        with launch.refusals():
            found = compare(
                _MODEL.value, _LENGTH.value, _NEW_TOKENS.value, _REFERENCE.value
            )
    except ImportError as error:
        launch.refuse(f"{error.name} is not installed: pip install '.[reference]'.")
    largest = max(found["logits"], found["log_probs"])
    passed = largest <= _TOLERANCE.value and found["greedy_equal"]
    print(json.dumps({**found, "largest": largest, "tolerance": _TOLERANCE.value, "pass": passed}))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    app.run(main, flags_parser=usage.parse)
