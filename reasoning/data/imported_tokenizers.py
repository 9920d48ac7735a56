"""Tokenizers of imported models: a Hugging Face directory's tokenizer.json or tokenizer.model.

    tokenizer = load_tokenizer("models/Qwen2.5-1.5B-Instruct")      # pip install '.[hf]'
    check_vocabulary(tokenizer, config.vocab_size)
    tokenizer.encode("What is 7 * 5? <|im_end|>")                   # the last word is plain text
    tokenizer.encode_template("<|im_start|>user\\nHi<|im_end|>\\n")   # here it is a special id

Text is text: only `encode_template` reads special tokens, so that no question or trace ends a turn
by spelling one. Tokens that the model's authors added without marking them as special (Qwen3's
`</think>`) are read wherever they stand, as in their own programs.

How ids join: byte-level models (Qwen, Llama 3) have `decode(encode(a) + encode(b)) == a + b`; those
that put a space in front of every text (Llama 2, Mistral) have `a + " " + b`.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import sentencepiece

from reasoning.data.tokenizers import check_ids, check_utf8

if TYPE_CHECKING:
    import tokenizers

Kind = Literal["tokenizer.json", "tokenizer.model"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImportedTokenizer:
    """An immutable tokenizer around one file of a model directory; made by `load_tokenizer`.

    It pickles as the bytes it was read from; two tokenizers are equal, and hash alike, if their
    fingerprints do.

    Attributes:
      kind: which file `model` is.
      model: its bytes.
      config: tokenizer_config.json, and what only special_tokens_map.json says.
      generation: generation_config.json.
      num_rows: V of the model. Special tokens beyond its rows (Gemma 3 1B has one, for images)
        cannot be written. None: it has a row for every id.

    Raises:
      ValueError: the bytes are no such file, the settings or the rows do not fit them, or the
        library that reads the file is not installed.
    """

    kind: Kind
    model: bytes
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    num_rows: int | None = None

    def __post_init__(self) -> None:
        if self.num_rows is not None:
            check_vocabulary(self, self.num_rows)
        self._check_added_tokens()
        _ = self.bos_id, self.pad_id  # and all that they depend on

    @functools.cached_property
    def _backend(self) -> "_JsonModel | _SentencePieceModel":
        specials = (*named_tokens(self.config).values(), *_other_specials(self.config))
        backend = _JsonModel if self.kind == "tokenizer.json" else _SentencePieceModel
        return backend(self.model, specials)

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        """The special tokens by name; those that no settings file tells, from the model."""
        return self._backend.names | named_tokens(self.config)

    def _named_id(self, name: str) -> int | None:
        token = self._names.get(name)
        if token is None:
            return None
        if (i := self._backend.token_id(token)) is None:
            raise ValueError(
                f"{name}={token!r} is not in {self.kind}: the settings are of another tokenizer; "
                "fetch all files of the model again."
            )
        return i

    def _with_row(self, name: str) -> int | None:
        """The id of a token that a policy must read or write."""
        if (i := self._named_id(name)) is not None and i >= self.vocab_size:
            raise ValueError(
                f"{name}={self._names[name]!r} is id {i}, and the model has {self.num_rows} rows: "
                "use the model's own tokenizer."
            )
        return i

    def _check_added_tokens(self) -> None:
        for i, token in self.config.get("added_tokens_decoder", {}).items():
            found = self._backend.token_id(token["content"])
            if found != int(i):
                where = "is missing there" if found is None else f"has id {found} there"
                raise ValueError(
                    f"added_tokens_decoder has {token['content']!r} as id {i}, which {where} "
                    f"({self.kind}): use a directory with the tokenizer.json that belongs to it."
                )

    @functools.cached_property
    def vocab_size(self) -> int:
        """The largest id with a row + 1, added tokens included; a model may have more rows."""
        size = self.largest_id + 1
        return size if self.num_rows is None else min(size, self.num_rows)

    @property
    def largest_id(self) -> int:
        """Of all tokens, also of those without a row in the model."""
        return self._backend.vocab_size - 1

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that no text may produce, and unk; those without a row as well."""
        return frozenset(self._backend.special_ids)

    @functools.cached_property
    def bos_id(self) -> int | None:
        """What the model was trained to see before every text; None: nothing.

        `add_bos_token` in tokenizer_config.json decides, else what tokenizer.json adds to a text.
        """
        bos = self._with_row("bos_token")
        adds = self.config.get("add_bos_token")
        if adds is None:
            adds = self._backend.puts_first(bos)
        return bos if adds else None

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokenizer's own eos, and every other that generation_config.json lists.

        Raises:
          ValueError: an id that the tokenizer does not have, or none at all.
        """
        listed = self.generation.get("eos_token_id")
        listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
        for i in listed:
            if not (isinstance(i, int) and 0 <= i < self.vocab_size):
                raise ValueError(
                    f"eos_token_id={i!r} in generation_config.json is outside [0, "
                    f"{self.vocab_size}), the ids of {self.kind}: fetch both from the same model."
                )
        eos = self._with_row("eos_token")
        ids = tuple(dict.fromkeys(listed if eos is None else [eos, *listed]))
        if not ids:
            raise ValueError(
                "eos_token is missing: name it in tokenizer_config.json, or give eos_token_id in "
                "generation_config.json."
            )
        return ids

    @property
    def eos_id(self) -> int:
        """The eos of tokenizer_config.json, which ends a completion in training."""
        return self.stop_ids[0]

    @functools.cached_property
    def pad_id(self) -> int:
        """The model's pad, else unk, else its first other special id, but never a stop id.

        A pad that is an eos (Qwen 2.5, many conversions) tempts readers into masking the learned
        eos out of the loss; what fills a row makes no difference to the model.

        Raises:
          ValueError: there is no such id.
        """
        named = [self._named_id("pad_token"), self._named_id("unk_token")]
        bos = self._named_id("bos_token")
        others = sorted(self.special_ids - {bos})
        for i in (*named, *others, bos):
            if i is not None and i < self.vocab_size and i not in self.stop_ids:
                return i
        raise ValueError(
            f"pad_token: {self.kind} has no special token besides those that end a text; add one "
            "to it and name it in tokenizer_config.json."
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the file and of the ids that the settings choose."""
        chosen = (self.pad_id, self.bos_id, self.stop_ids, sorted(self.special_ids))
        return hashlib.sha256(self.model + repr(chosen).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, [] for ""; nothing is added, and no special token is read.

        Raises:
          ValueError: the text holds a lone surrogate, or the model itself (not the list of added
            tokens) has a piece for a special token that the text spells.
        """
        check_utf8("text", text)
        ids = self._backend.encode(text) if text else []
        spelled = self.special_ids.intersection(ids) - {self._named_id("unk_token")}
        if spelled:
            raise ValueError(
                f"text spells {self._backend.token(min(spelled))!r}, which {self.kind} reads as a "
                "special token even in plain text: take it out of the text."
            )
        return ids

    def encode_template(self, text: str) -> list[int]:
        """The ids of a text whose special tokens are meant, such as a rendered chat template.

        Nothing is added: a template writes its own bos. From a tokenizer.model, every stretch
        between two special tokens is a text of its own (with its space in front, if that is the
        model's way).

        Raises:
          ValueError: the text holds a lone surrogate, or a special token without a row.
        """
        check_utf8("text", text)
        ids = self._backend.encode_template(text) if text else []
        if ids and max(ids) >= self.vocab_size:
            raise ValueError(
                f"text has the token {self._backend.token(max(ids))!r}, id {max(ids)}, and the "
                f"model has {self.num_rows} rows: take it out of the text."
            )
        return ids

    def spells_special(self, text: str) -> bool:
        """Whether `encode_template` might read a special token in the text."""
        return any(token in text for token in self._special_texts)

    @functools.cached_property
    def _special_texts(self) -> tuple[str, ...]:
        return tuple(self._backend.token(i) for i in sorted(self.special_ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids; special ones are left out.

        Exact for the ids of `encode`, but for what the model itself changes (Qwen reads Unicode in
        NFC, SentencePiece models read U+2581 as a space). Bytes that are not UTF-8 become U+FFFD:
        a policy may well write such ids.

        Raises:
          ValueError: an id is outside [0, vocab_size).
        """
        ids = list(ids)
        check_ids(ids, self.vocab_size)
        return self._backend.decode([i for i in ids if i not in self.special_ids])

    def decode_any(self, ids: Iterable[int]) -> str:
        """The text of what a policy wrote: an id that is no text's (a tag) becomes U+FFFD."""
        runs = itertools.groupby(ids, key=lambda i: 0 <= i < self.vocab_size)
        return "".join(
            self.decode(run) if known else "\N{REPLACEMENT CHARACTER}" * len(list(run))
            for known, run in runs
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImportedTokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[type["ImportedTokenizer"], tuple[Any, ...]]:
        fields = (self.kind, self.model, self.config, self.generation, self.num_rows)
        return ImportedTokenizer, fields

    def __repr__(self) -> str:
        size, fingerprint = self.vocab_size, self.fingerprint[:12]
        return f"ImportedTokenizer({self.kind!r}, vocab_size={size}, fingerprint={fingerprint!r})"


def _tokenizers() -> Any:
    """The library."""
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            "tokenizer.json: the library tokenizers is not installed; pip install '.[hf]'."
        ) from error
    return tokenizers


def add_tokens(path: pathlib.Path, first_id: int, names: Sequence[str]) -> None:
    """Add special tokens to a tokenizer.json, the first of them as the id `first_id`.

    Ids between the tokenizer's last and that, rows of the model without a token, get names, too:
    a tokenizer has no gaps.

    Raises:
      ValueError: there is no tokenizer.json, or `first_id` and those after it are taken.
    """
    if not path.is_file():
        raise ValueError(f"{path}: is missing, to which strategy tokens would be added.")
    tokenizer = _tokenizers().Tokenizer.from_file(str(path))
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if size > first_id:
        raise ValueError(f"first_id={first_id}: is taken, the tokenizer has {size} ids.")
    unused = [f"<|unused_{i}|>" for i in range(size, first_id)]
    tokenizer.add_special_tokens([*unused, *names])
    tokenizer.save(str(path))


def load_tokenizer(
    directory: str | os.PathLike[str], num_rows: int | None = None
) -> ImportedTokenizer:
    """Read the tokenizer of a Hugging Face model directory.

    Of tokenizer.json and tokenizer.model the first that exists is read; tokenizer_config.json,
    special_tokens_map.json and generation_config.json as they exist.

    Args:
      num_rows: V of the model; None: as many as the tokenizer has ids.

    Raises:
      OSError: a file cannot be read.
      ValueError: there is no tokenizer, it needs code from the model's authors, a file is broken,
        the files do not fit each other, or the library that reads them is not installed.
    """
    directory = pathlib.Path(directory)
    config = tokenizer_settings(directory)
    if "AutoTokenizer" in (config.get("auto_map") or {}):
        raise ValueError(
            f"{directory}: its tokenizer needs code that comes with the model (auto_map in "
            "tokenizer_config.json), which is never run; convert it to a tokenizer.json first."
        )
    kinds: tuple[Kind, ...] = ("tokenizer.json", "tokenizer.model")
    kind = next((kind for kind in kinds if (directory / kind).is_file()), None)
    if kind is None:
        raise ValueError(
            f"{directory} has no tokenizer.json and no tokenizer.model: give the directory that "
            "holds the model's files."
        )
    try:
        return ImportedTokenizer(
            kind,
            (directory / kind).read_bytes(),
            config,
            read_settings(directory / "generation_config.json"),
            num_rows,
        )
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error


def check_vocabulary(tokenizer: ImportedTokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer whose text has ids that the model has no rows for.

    More rows than ids are normal; special tokens without a row are refused where they are written.

    Raises:
      ValueError: the tokenizer's vocabulary is larger than the model's.
    """
    if set(range(vocab_size, tokenizer.largest_id + 1)) - tokenizer.special_ids:
        raise ValueError(
            f"vocab_size={vocab_size} of the model is smaller than the tokenizer's "
            f"{tokenizer.largest_id + 1}: they do not belong together; use the model's own "
            "tokenizer."
        )


def tokenizer_settings(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """tokenizer_config.json, and what only special_tokens_map.json says.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file holds no JSON object.
    """
    directory = pathlib.Path(directory)
    names = read_settings(directory / "special_tokens_map.json")
    return names | read_settings(directory / "tokenizer_config.json")


def read_settings(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file, {} where there is no such file.

    Raises:
      OSError: the file cannot be read.
      ValueError: it holds no JSON object.
    """
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:  # JSONDecodeError, or bytes that are not UTF-8
        raise ValueError(f"{path} is not JSON ({error}): fetch it again.") from error
    if not isinstance(settings, dict):
        kind = type(settings).__name__
        raise ValueError(f"{path} holds a {kind} instead of an object: fetch it again.")
    return settings


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that settings name: {"eos_token": "<|im_end|>", ...}."""
    tokens = {name: _spelling(token) for name, token in config.items() if name.endswith("_token")}
    return {name: token for name, token in tokens.items() if token is not None}


def _other_specials(config: Mapping[str, Any]) -> Iterator[str]:
    """The special tokens that settings list without a name of their own."""
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = config.get(key) or []
        yield from map(_spelling, listed.values() if isinstance(listed, dict) else listed)
    for token in config.get("added_tokens_decoder", {}).values():
        if token.get("special"):
            yield token["content"]


def _spelling(token: Any) -> str | None:
    """A token as settings write it, a string or an object; None for settings such as a flag."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


class _JsonModel:
    """tokenizer.json through the tokenizers library."""

    names: Mapping[str, str] = {}  # the file knows no roles

    def __init__(self, model: bytes, specials: Iterable[str]) -> None:
        self._bytes, self._specials = model, set(specials)
        self._text = self._load()
        self._text.encode_special_tokens = True  # "encode as text", that is
        vocabulary = self._text.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        added = self._text.get_added_tokens_decoder()
        self.special_ids = {i for i, token in added.items() if token.special}

    def _load(self) -> "tokenizers.Tokenizer":
        try:
            model = _tokenizers().Tokenizer.from_buffer(self._bytes)
        except ValueError as error:
            raise ValueError(
                f"tokenizer.json cannot be read ({error}): fetch it again, or update tokenizers."
            ) from error
        model.no_truncation()  # the file may hold the settings of its last training
        model.no_padding()
        added = model.get_added_tokens_decoder().values()
        unmarked = self._specials - {token.content for token in added if token.special}
        model.add_special_tokens([t for t in sorted(unmarked) if model.token_to_id(t) is not None])
        return model

    @functools.cached_property
    def _template(self) -> "tokenizers.Tokenizer":
        return self._load()  # one of its own: switching the other back and forth is not thread-safe

    def token_id(self, token: str) -> int | None:
        return self._text.token_to_id(token)

    def token(self, i: int) -> str:
        return self._text.id_to_token(i)

    def puts_first(self, i: int | None) -> bool:
        return self._text.encode("").ids[:1] == [i]

    def encode(self, text: str) -> list[int]:
        return self._text.encode(text, add_special_tokens=False).ids

    def encode_template(self, text: str) -> list[int]:
        return self._template.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._text.decode(ids, skip_special_tokens=False)


class _SentencePieceModel:
    """tokenizer.model through the SentencePiece library."""

    def __init__(self, model: bytes, specials: Iterable[str]) -> None:
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(_as_control_pieces(model, set(specials)))
        except RuntimeError as error:
            raise ValueError(
                f"tokenizer.model cannot be read ({error}): fetch it again."
            ) from error
        self.vocab_size = self._model.vocab_size()
        ids = range(self.vocab_size)
        self.special_ids = {
            i for i in ids if self._model.is_control(i) or self._model.is_unknown(i)
        }
        self._special = {self.token(i): i for i in self.special_ids}
        roles = {
            "pad_token": self._model.pad_id(), "bos_token": self._model.bos_id(),
            "eos_token": self._model.eos_id(), "unk_token": self._model.unk_id(),
        }
        self.names = {name: self.token(i) for name, i in roles.items() if i >= 0}

    def token_id(self, token: str) -> int | None:
        i = self._model.piece_to_id(token)
        return i if self._model.id_to_piece(i) == token else None

    def token(self, i: int) -> str:
        return self._model.id_to_piece(i)

    def puts_first(self, i: int | None) -> bool:
        return i is not None  # the file does not say; models that have a bos want it

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def encode_template(self, text: str) -> list[int]:
        ids: list[int] = []
        longest_first = sorted(self._special, key=len, reverse=True)
        for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text):
            ids += [self._special[part]] if part in self._special else self.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode(list(ids))


def _as_control_pieces(model: bytes, specials: Collection[str]) -> bytes:
    """The SentencePiece model with special tokens as control pieces, which no text spells.

    Gemma's `<start_of_turn>` is a user-defined piece there, which every text may spell.
    """
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ValueError(
            "tokenizer.model: the library protobuf is not installed; pip install '.[hf]'."
        ) from error
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise ValueError(f"tokenizer.model cannot be read ({error}): fetch it again.") from error
    for piece in proto.pieces:
        if piece.piece in specials and piece.type != piece.UNKNOWN:
            piece.type = piece.CONTROL
    return proto.SerializeToString()
