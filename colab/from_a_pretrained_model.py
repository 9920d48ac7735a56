# %% [markdown]
# # From a pretrained model
#
# A Hugging Face model directory gets strategy tokens, is fine-tuned set-supervised (SSFT, [arXiv
# 2510.05132](https://arxiv.org/abs/2510.05132)) on GSM8K with two solutions per question, is
# evaluated, and exported as a model directory again.
#
# On a GPU or a TPU with network this is Qwen2.5-0.5B-Instruct and GSM8K. Without network, or on a
# CPU, a small random model takes the model's place, and questions of two small calculations, made
# here in the form of GSM8K, that of GSM8K, which such a model could not learn: every step is the
# same. That takes about six minutes on two CPU cores.

# %%
# %matplotlib inline
import json
import os
import random
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import evaluate, export
from experiments.configs import gsm8k
from experiments.sft import fine_tune, pretrain, set_up, training_data
from reasoning.data.chat import load_chat_template
from reasoning.data.imported_tokenizers import load_tokenizer
from reasoning.data.questions import download
from reasoning.evaluation.policies import sample_and_judge
from reasoning.models.config import ModelConfig, count_parameters
from reasoning.models.pretrained import load_config, load_params, save_pretrained
from reasoning.models.transformer import Transformer, init_params
from reasoning.runtime.runs import Run
from reasoning.sampling.filters import Filters

# %%
QWEN = "Qwen/Qwen2.5-0.5B-Instruct"  # or None: a small random model
sizes = {
    "smoke": dict(model=None, gsm8k=False, steps=4, rows=8, length=200, held_out=4, batch=4),
    "cpu": dict(model=None, gsm8k=False, steps=500, rows=16, length=200, held_out=100, batch=50),
    "gpu": dict(model=QWEN, gsm8k=True, steps=300, rows=16, length=640, held_out=200, batch=50),
    "tpu": dict(model=QWEN, gsm8k=True, steps=300, rows=16, length=640, held_out=200, batch=50),
}
SCALE = os.environ.get("REASONING_NOTEBOOK_SCALE", jax.default_backend())
size = sizes[SCALE]
print(f"{SCALE}: {size}")

# %% [markdown]
# ## The questions
#
# A solution of GSM8K marks its calculations, `<<48/2=24>>`. So every question has two solutions:
# the one in *words*, and the *equations* alone. SSFT is not told which is which.
#
# A small random model gets questions made here, in the same form.

# %%
MADE = [  # question, solution in words; a, b, c are numbers
    ("{n} buys {a} boxes of {b} {t} and gives {c} away. How many {t} are left?",
     "{n} buys {a} * {b} = <<{a}*{b}={x}>>{x} {t}.\n"
     "After giving {c} away, {x} - {c} = <<{x}-{c}={y}>>{y} {t} are left.\n#### {y}",
     lambda a, b, c: (a * b, a * b - c)),
    ("{n} has {a} {t}, finds {b} more and sells {c} of them. How many {t} does {n} have now?",
     "With those found, {n} has {a} + {b} = <<{a}+{b}={x}>>{x} {t}.\n"
     "Now there are {x} - {c} = <<{x}-{c}={y}>>{y} {t}.\n#### {y}",
     lambda a, b, c: (a + b, a + b - c)),
    ("{n} has {a} {t}. Each of {b} friends brings {c} {t}. How many {t} are there?",
     "The friends bring {b} * {c} = <<{b}*{c}={x}>>{x} {t}.\n"
     "Together there are {a} + {x} = <<{a}+{x}={y}>>{y} {t}.\n#### {y}",
     lambda a, b, c: (b * c, a + b * c)),
]


def make_questions(count: int, seed: int) -> list[dict[str, str]]:
    """Rows in the form of GSM8K's files."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        question, solution, results = rng.choice(MADE)
        a, b, c = rng.randint(5, 9), rng.randint(2, 9), rng.randint(2, 5)
        x, y = results(a, b, c)
        named = dict(n=rng.choice(["Ann", "Ben", "Eva", "Tom"]), a=a, b=b, c=c, x=x, y=y,
                     t=rng.choice(["pens", "eggs", "cards", "nuts"]))
        rows.append({"question": question.format(**named), "answer": solution.format(**named)})
    return rows


# %%
def gsm8k_rows() -> dict[str, list[dict[str, str]]] | None:
    """The files of GSM8K in data/gsm8k, downloaded there if need be; None without network."""
    folder = Path("data/gsm8k")
    try:
        if not (folder / "train.jsonl").is_file():
            download("gsm8k", folder)
    except ValueError as error:
        print(error)
        return None
    files = {split: (folder / f"{split}.jsonl").read_text() for split in ("train", "test")}
    return {split: list(map(json.loads, text.splitlines())) for split, text in files.items()}


def two_solutions(row: dict[str, str]) -> dict:
    """A question with its solution in words, and its equations alone."""
    answer = row["answer"].rpartition("#### ")[2].replace(",", "")
    words = re.sub("<<[^<>]*>>", "", row["answer"])
    equations = re.findall("<<([^<>]*)>>", row["answer"])
    traces = [words] + ["\n".join([*equations, f"#### {answer}"])] * bool(equations)
    return {"question": row["question"], "answer": answer, "traces": traces}


rows = gsm8k_rows() if size["gsm8k"] else None
SOURCE = "gsm8k" if rows else "made"
rows = rows or {"train": make_questions(4000, seed=0), "test": make_questions(400, seed=1)}
known = {row["question"] for row in rows["train"]}
rows["test"] = [row for row in rows["test"] if row["question"] not in known]

FOLDER = Path(f"runs/questions_{SOURCE}_{SCALE}")
FOLDER.mkdir(parents=True, exist_ok=True)
for split, found in rows.items():
    lines = "\n".join(json.dumps(two_solutions(row)) for row in found)
    (FOLDER / f"{split}.jsonl").write_text(lines)
print(f"{SOURCE}: {len(rows['train'])} train, {len(rows['test'])} test\n")
print(rows["train"][0]["question"], *two_solutions(rows["train"][0])["traces"], sep="\n\n")

# %% [markdown]
# ## The model directory
#
# config.json, the weights in safetensors, and a tokenizer. A small random one is written below in
# the shape of Qwen 2, with a byte-level tokenizer trained on the questions.

# %%
def small_tokenizer(directory: Path, texts: list[str]) -> int:
    """Train and write a tokenizer; returns the size of its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    specials = [AddedToken(text, special=True) for text in ("<|endoftext|>", "<|pad|>")]
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>",
             "pad_token": "<|pad|>", "bos_token": None}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
    return tokenizer.get_vocab_size()


def random_model(directory: Path, texts: list[str]) -> None:
    """Write a model directory of random weights."""
    directory.mkdir(parents=True, exist_ok=True)
    shape = ModelConfig(
        vocab_size=small_tokenizer(directory, texts), num_strategies=1, strategy_ids=(0,),
        d_model=128, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=384,
        max_length=1024, position_encoding="rope", qkv_bias=True,
    )
    save_pretrained(directory, shape, init_params(shape, jax.random.key(0)), dtype="float32")


# %%
DIRECTORY = None
if size["model"]:
    try:
        from huggingface_hub import snapshot_download

        files = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]
        DIRECTORY = snapshot_download(size["model"], allow_patterns=files)
    except (ImportError, OSError) as error:  # no network, and the model is not in the cache
        print(error)
if DIRECTORY is None:
    path = Path(f"runs/random_model_{SOURCE}_{SCALE}")
    texts = [row[field] for row in rows["train"] for field in ("question", "answer")]
    if not path.is_dir():
        random_model(path, texts)
    DIRECTORY = str(path)
PRETRAINED = not DIRECTORY.startswith("runs/")
print(f"{DIRECTORY}: {count_parameters(load_config(DIRECTORY)):,} parameters")

# %% [markdown]
# ## Strategy tokens
#
# `model.num_strategies = 2` adds two rows behind the vocabulary, which the policy reads and draws
# like any other token. (`model.tags = "textual"` writes tags as text in place of new rows.) The
# rate for a pretrained model is that of s1 ([2501.19393](https://arxiv.org/abs/2501.19393)), on
# whose recipe SSFT builds; for a random one it is larger.

# %%
config = gsm8k.get_config("imported")
config.corpus.name, config.corpus.path = "jsonl", str(FOLDER)
config.corpus.traces, config.corpus.kind = "traces", "number"
config.model.directory, config.model.num_strategies = DIRECTORY, 2
config.model.chat = load_chat_template(DIRECTORY) is not None
config.corpus.template = "{question}" if config.model.chat else "{question}\n"
config.model.max_length = size["length"]
config.arm = "matched"
config.finetune.steps, config.finetune.rows = size["steps"], size["rows"]
config.finetune.buckets = 1 if SCALE == "smoke" else 2
config.finetune.microbatches = size["rows"] // 4 if PRETRAINED else 1
config.evaluation.problems, config.evaluation.batch = size["held_out"], size["batch"]
config.evaluation.validation_problems, config.evaluation.samples_per_tag = size["batch"], 2
if not PRETRAINED:
    config.model.dtype, config.model.remat = "float32", "none"
    config.finetune.optimizer, config.finetune.learning_rate = "muon", 5e-3

setup = set_up(config, ("matched",))
example = setup.test[0]
prompt_ids = setup.text_format.prompt_ids(setup.task.prompt(example))
print(repr(setup.text_format.tokenizer.decode_any(prompt_ids)))
print(f"ids of the two tags: {setup.model.vocab_size}, {setup.model.vocab_size + 1}")

# %% [markdown]
# ## SSFT
#
# Each question's two solutions are trained under the two tags, in the assignment under which the
# policy finds them likelier (*Strategies in five minutes* has the formula). Run the cell again
# and it goes on, or reads what is there.

# %%
RUN = Path(f"runs/ssft_{SOURCE}_{SCALE}")
data = training_data(setup, config)
with Run(RUN, "colab.ssft", config.to_dict()) as run:
    start, _ = pretrain(run, setup, data, config, seed=0)  # no steps: the model as it is
    params, spent = fine_tune(run, setup, start, data, "matched", config, seed=0)

metrics = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
for row in metrics[:: max(1, len(metrics) // 8)]:
    print(f"step {row['step']:4}: {row['trace_nll']:.2f} nats a token, "
          f"matching entropy {row['matching_entropy']:.2f} of {np.log(2):.2f}")

# %% [markdown]
# ## One question, both tags
#
# And over the held-out questions: how often a completion under a tag is equations alone.

# %%
policy, filters = setup.policy(params), Filters(temperature=0.0)
key, batch = jax.random.key(0), size["batch"]
judged = sample_and_judge(policy, setup.test, np.arange(2), key, filters, batch)
print(setup.test[0].question, f"(gold: {setup.test[0].answer})")
for tag in range(2):
    print(f"\n--- tag {tag}: {judged.reasons[0, tag]}\n{judged.completions[0, tag]}")
equations = np.vectorize(lambda text: re.search("[A-Za-z]", text) is None)(judged.completions)
for tag in range(2):
    print(f"\ntag {tag}: {100 * equations[:, tag].mean():.0f}% equations alone, "
          f"{100 * judged.correct[:, tag].mean():.0f}% right, "
          f"{judged.lengths[:, tag].mean():.0f} tokens")

# %% [markdown]
# ## Evaluation
#
# The paper's protocols: greedy and sampled under one tag, under the tag that the policy draws
# itself, and under all tags, with votes across them. `evaluate.main` is `python -m
# experiments.evaluate` as a function; the judge takes the number behind the last `####` (or in
# `\boxed{}`) and compares exactly.

# %%
trained = config.copy_and_resolve_references()
trained.model.policy = str(RUN / "policies/seed0/matched")
evaluate.main(trained, f"{RUN}_test")

# %% [markdown]
# ## Export
#
# A model directory again, for `transformers` and for serving: the strategies are tokens of its
# tokenizer, `<|strategy_1|>` and `<|strategy_2|>`, which a prompt may end with. Read again, it
# computes the same.

# %%
OUT = Path(f"{RUN}_model")
if not OUT.exists():
    export.export(trained, str(OUT), "float32")
print(*sorted(f"{file.name}: {file.stat().st_size:,} bytes" for file in OUT.iterdir()), sep="\n")
tags = [load_tokenizer(OUT).encode_template(f"<|strategy_{n}|>") for n in (1, 2)]
print(f"strategy tokens: {tags}")

exported = load_config(OUT, dtype=setup.model.dtype, scan_layers=True)
row = jnp.array([[*prompt_ids, *tags[0]]])
before, _ = Transformer(setup.model).apply(params, row)
after, _ = Transformer(exported).apply(load_params(OUT, exported, jax.random.key(0)), row)
difference = jnp.abs(before - after[..., : before.shape[-1]]).max()
print(f"largest difference of logits: {difference:.1e}")

# %% [markdown]
# ## What to change
#
# - `size["model"]`: any Qwen 2, 2.5 or 3, Llama 3, Mistral or Gemma 2 or 3 (`docs/models.md`);
#   gated ones need a login of yours at the Hub.
# - `two_solutions`: any number of traces per question, as solutions that several larger models
#   wrote; `config.model.num_strategies` must be at least as large.
# - `experiments.rl` goes on from here by the judge's reward: with `rl.algorithm = "gfpo"` it
#   learns which tag to draw.
