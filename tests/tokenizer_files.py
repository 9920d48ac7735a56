"""Small tokenizers in the form in which the families that we import publish theirs."""

import io
import json

import sentencepiece

LINES = (
    "Natalia sold clips to 48 of her friends in April, and then half as many in May. <think1>",
    "How many clips did Natalia sell?\n\n<think2>\n48 / 2 = 24, so 48 + 24 = 72.\n#### 72",
    "I think we'll think again: I'm sure, they've said so.\n<think3>\n\tassistant user system",
) * 20
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_WORDS = QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def byte_level(words, specials, others=()):
    """A byte-level BPE tokenizer whose special tokens follow its learned ones."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(words), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    ))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in others])
    return tokenizer


def qwen(path):
    """As Qwen3: no bos, single digits, pad among the stop ids, thinking tags not special."""
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>")
    tokenizer = byte_level(QWEN_WORDS, specials, others=("<think>", "</think>"))
    tokenizer.save(str(path / "tokenizer.json"))
    write_json(path / "tokenizer_config.json", {
        "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "bos_token": None,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    })
    eos = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    write_json(path / "generation_config.json", {"eos_token_id": eos})


def llama3(path):
    """As Llama 3: bos by post-processor, no pad, truncation settings left in the file."""
    from tokenizers import processors

    names = ("begin_of_text", "end_of_text", "reserved_special_token_0", "start_header_id",
             "end_header_id", "eom_id", "eot_id")
    tokenizer = byte_level(LLAMA_WORDS, tuple(f"<|{name}|>" for name in names))
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        ),
    ])
    tokenizer.enable_truncation(max_length=5)
    tokenizer.save(str(path / "tokenizer.json"))
    write_json(path / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": True,
    })
    eos = [tokenizer.token_to_id(f"<|{name}|>") for name in ("end_of_text", "eom_id", "eot_id")]
    write_json(path / "generation_config.json", {"eos_token_id": eos})


def byte_fallback(path, kind):
    """As Llama 2, whose texts begin with a space of their own, or as Gemma, whose do not."""
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        processors,
        trainers,
    )

    llama = kind == "llama2"
    specials = ["<unk>", "<s>", "</s>"] if llama else ["<pad>", "<eos>", "<bos>", "<unk>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    trained.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if llama else replace
    )
    trained.train_from_iterator(
        (word for line in LINES for word in line.split(" ")),
        trainers.BpeTrainer(
            vocab_size=420, show_progress=False, max_token_length=8,
            special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"],
        ),
    )
    state = json.loads(trained.to_str())
    state["added_tokens"] = []  # the bytes are ordinary tokens
    tokenizer = Tokenizer.from_str(json.dumps(state))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *[decoders.Strip(" ", 1, 0)] * llama])
    turns = [] if llama else ["<start_of_turn>", "<end_of_turn>"]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in [*specials, *turns]]
    )
    bos, eos = ("<s>", "</s>") if llama else ("<bos>", "<eos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    write_json(path / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": bos}, "eos_token": eos,
        "unk_token": "<unk>",
    })
    write_json(path / "special_tokens_map.json", {} if llama else {"pad_token": "<pad>"})


def sentence_piece(path, kind):
    """The same two as a SentencePiece model, Gemma's turns being user-defined pieces."""
    llama = kind == "llama2"
    ids = dict(unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    if not llama:
        ids = dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>")
        ids |= dict(bos_piece="<bos>", eos_piece="<eos>")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, model_type="bpe", vocab_size=400,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, minloglevel=2,
        add_dummy_prefix=llama, num_threads=1,
        user_defined_symbols=[] if llama else ["<start_of_turn>", "<end_of_turn>", "<table>"],
        **ids,
    )
    (path / "tokenizer.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    if not llama:
        turns = ["<start_of_turn>", "<end_of_turn>"]
        config = {"tokenizer_class": "GemmaTokenizer", "additional_special_tokens": turns}
    write_json(path / "tokenizer_config.json", config)


MAKERS = {
    "qwen": qwen,
    "llama3": llama3,
    "llama2": lambda path: byte_fallback(path, "llama2"),
    "gemma": lambda path: byte_fallback(path, "gemma"),
    "llama2-model": lambda path: sentence_piece(path, "llama2"),
    "gemma-model": lambda path: sentence_piece(path, "gemma"),
}
