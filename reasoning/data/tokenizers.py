"""SentencePiece tokenizers, trained by the project on its own text, with an exact round trip.

    tokenizer = train_tokenizer(lines, vocab_size=2048)                          # natural text
    tokenizer = train_tokenizer(
        (), vocab_size=None, words=("make", ":", "*", "="), numbers="whole"
    )                                                                            # small tasks
    tokenizer.encode("7 * 5 = 35")  # one id per word

The ids, in this order: pad, bos, eos, unk; one per word and whole number; one per byte (256); then
the learned pieces. Strategy ids start at `vocab_size` and are not the tokenizer's business.

A piece carries the space before it ("▁make"), so that a word has one id wherever it stands. For the
first word to have its space as well, `encode` puts one in front of the text and `decode` takes one
away. Hence `decode(encode(a) + encode(b)) == a + " " + b` for two texts that are not empty.
"""

import dataclasses
import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, Protocol, Self

import sentencepiece

SPACE = "▁"  # U+2581, how SentencePiece writes a space
RESERVED = "▅"  # U+2585, SentencePiece's trainer silently drops every line that holds it
PROBE = f"  \t<s><0x41>{SPACE}\0ﬁ\r\n "  # survives only the settings of `train_tokenizer`


class TextTokenizer(Protocol):
    """What a `Tokenizer` and an `ImportedTokenizer` have in common."""

    @property
    def vocab_size(self) -> int:
        """The largest id + 1."""

    @property
    def pad_id(self) -> int:
        """Fills rows; never a stop id. Masks are made from lengths, not from this value."""

    @property
    def bos_id(self) -> int | None:
        """Begins every row; None: the model was trained without."""

    @property
    def eos_id(self) -> int:
        """Ends a completion in training."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Each ends a completion in sampling; the first is `eos_id`."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex); equal tokenizers have equal ones."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, none of them special, whatever the text says."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids in [0, vocab_size), special ones left out."""

    def decode_any(self, ids: Iterable[int]) -> str:
        """The text of what a policy wrote: an id that is no text's (a tag) becomes U+FFFD."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """An immutable tokenizer around one serialized SentencePiece model.

    It pickles as that model; two tokenizers are equal, and hash alike, if their fingerprints do.

    Raises:
      ValueError: `proto` is no SentencePiece model, or not one made by `train_tokenizer`.
    """

    proto: bytes

    pad_id: ClassVar[int] = 0
    bos_id: ClassVar[int] = 1
    eos_id: ClassVar[int] = 2
    stop_ids: ClassVar[tuple[int, ...]] = (2,)
    unk_id: ClassVar[int] = 3  # SentencePiece demands one; no text is encoded to it

    def __post_init__(self) -> None:
        try:
            model = self._processor
        except RuntimeError as error:
            raise ValueError(
                f"proto ({len(self.proto)} bytes) is not a SentencePiece model: pass the bytes "
                "that Tokenizer.save wrote."
            ) from error
        special_ids = (model.pad_id(), model.bos_id(), model.eos_id(), model.unk_id())
        if special_ids != (0, 1, 2, 3) or self.decode(self.encode(PROBE)) != PROBE:
            raise ValueError(
                f"proto ({len(self.proto)} bytes) is a SentencePiece model with other settings, "
                "whose text would not round trip: train one with train_tokenizer."
            )

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(self.proto)
        return processor

    @functools.cached_property
    def piece_bytes(self) -> tuple[bytes, ...]:
        """What each id stands for in UTF-8: nothing for pad, bos and eos."""
        return tuple(_piece_bytes(self._processor, i) for i in range(self._processor.vocab_size()))

    @functools.cached_property
    def _space_ids(self) -> list[int]:
        """The bytes of a literal SPACE character, which SentencePiece would read as a space."""
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    @property
    def vocab_size(self) -> int:
        """Number of ids; all are in [0, vocab_size)."""
        return len(self.piece_bytes)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the pieces and their scores, in the order of their ids."""
        model = self._processor
        pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(self.vocab_size)]
        return hashlib.sha256(repr(pieces).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, [] for ""; never pad, bos, eos or unk, whatever the text says.

        Raises:
          ValueError: the text holds a lone surrogate, which has no UTF-8 form.
        """
        if not text:
            return []
        check_utf8("text", text)
        first, *others = (" " + text).split(SPACE)
        ids = self._processor.encode(first)
        for part in others:
            ids += self._space_ids + self._processor.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids, exact for those of `encode`.

        Skips pad, bos and eos. Takes one space away in front. Bytes that are not UTF-8, and unk,
        become U+FFFD: a policy may well write such ids.

        Raises:
          ValueError: an id is outside [0, vocab_size).
        """
        ids = list(ids)
        check_ids(ids, self.vocab_size)
        text = b"".join(self.piece_bytes[i] for i in ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ")

    def decode_any(self, ids: Iterable[int]) -> str:
        """The text of what a policy wrote: an id that is no text's (a tag) becomes U+FFFD."""
        size = self.vocab_size
        return self.decode(i if 0 <= i < size else self.unk_id for i in ids)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the SentencePiece model to a file."""
        pathlib.Path(path).write_bytes(self.proto)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
          OSError: the file cannot be read.
          ValueError: it holds no model made by `train_tokenizer`.
        """
        try:
            return cls(pathlib.Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return Tokenizer, (self.proto,)  # the loaded model is rebuilt, not carried along

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]!r})"


def train_tokenizer(
    lines: Iterable[str],
    *,
    vocab_size: int | None,
    words: Sequence[str] = (),
    numbers: Literal["digits", "whole"] = "digits",
    max_number: int = 99,
) -> Tokenizer:
    """Train a byte-pair-encoding tokenizer; the same arguments give the same pieces.

    Every character of `lines` is a piece, but for the rarest, which make up 0.05% of the text:
    they are spelled in bytes, as is every character that `lines` do not have.

    Args:
      lines: the text to learn from; may be empty where words and numbers are all there is.
      vocab_size: exact number of ids, or None: as few as possible, no piece is learned.
      words: closed vocabulary; a text of these words, joined by single spaces, is encoded to one
        id per word.
      numbers: "digits" gives every digit an id of its own; "whole" also makes a word of each
        integer from 0 to `max_number`.
      max_number: the largest whole number; without "whole" it has no effect.

    Raises:
      ValueError: a line has a lone surrogate; words or numbers cannot be one piece each; or
        `vocab_size` is smaller than what must be in, or larger than what `lines` can fill.
    """
    if numbers not in ("digits", "whole"):
        raise ValueError(f"numbers={numbers!r} is unknown: use 'digits' or 'whole'.")
    if numbers == "whole":
        if max_number < 0:
            raise ValueError(f"max_number={max_number} is negative: use 0 or more.")
        words = (*words, *(str(n) for n in range(max_number + 1)))
    _check_words(words)

    lines = list(lines)
    for line in lines:
        check_utf8("lines", line)
    # The trainer strips newlines at the end, and needs one character that is in no word: the space.
    lines = [f" {line} ".replace(RESERVED, " ") for line in (*lines, "")]

    bound = 4 + 256 + len(words) + len(set().union(*lines))  # holds every piece of one character
    if vocab_size is None:
        return _train(lines, words, "char", bound)
    try:
        tokenizer = _train(lines, words, "bpe", vocab_size)
    except RuntimeError:
        smallest = _train(lines, words, "char", bound).vocab_size
        if vocab_size >= smallest:
            raise
        raise ValueError(
            f"vocab_size={vocab_size} is too small: specials, bytes, words, numbers and the "
            f"characters of lines need {smallest}; use at least that, or None."
        ) from None
    if tokenizer.vocab_size < vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is too large: lines yield only {tokenizer.vocab_size} "
            "pieces; use at most that, or give more lines."
        )
    return tokenizer


def _train(
    lines: list[str], words: Sequence[str], model_type: Literal["bpe", "char"], vocab_size: int
) -> Tokenizer:
    """Train with at most `vocab_size` pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        hard_vocab_limit=False,  # too few pieces is refused by the caller, in plainer words
        user_defined_symbols=[SPACE + word for word in words],
        required_chars=SPACE,  # however rare: in bytes it would read as the literal character
        split_digits=True,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,  # encode does it: SentencePiece would, at every literal SPACE
        max_sentence_length=2**30,  # longer lines would be dropped without a word
        num_threads=1,
        minloglevel=2,
        pad_id=Tokenizer.pad_id,
        bos_id=Tokenizer.bos_id,
        eos_id=Tokenizer.eos_id,
        unk_id=Tokenizer.unk_id,
    )
    return Tokenizer(model.getvalue())


def _piece_bytes(model: sentencepiece.SentencePieceProcessor, i: int) -> bytes:
    piece = model.id_to_piece(i)
    if model.is_control(i):
        return b""
    if model.is_unknown(i):
        return "\N{REPLACEMENT CHARACTER}".encode()
    if model.is_byte(i):
        return bytes([int(piece[1:-1], 16)])  # such as "<0x41>"
    return piece.replace(SPACE, " ").encode()


def _check_words(words: Sequence[str]) -> None:
    seen: set[str] = set()
    for word in words:
        check_utf8("words", word)
        if word.split() != [word] or SPACE in word or "\0" in word:
            raise ValueError(
                f"words has {word!r}: a word is one or more characters, none of them white space, "
                f"NUL or {SPACE!r}; split it or drop it."
            )
        if word in seen:
            raise ValueError(f"words has {word!r} twice (whole numbers count): drop one.")
        seen.add(word)


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Refuse ids that the tokenizer has no text for.

    Raises:
      ValueError: an id is outside [0, vocab_size).
    """
    for i in ids:
        if not 0 <= i < vocab_size:
            raise ValueError(
                f"ids has {i}, outside [0, {vocab_size}): take strategy ids and other "
                "additions to the vocabulary out before decoding."
            )


def check_utf8(field: str, text: str) -> None:
    """Refuse text that UTF-8 cannot hold.

    Raises:
      ValueError: the text holds a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{field} has the lone surrogate {text[error.start]!r} at position {error.start}, "
            "which UTF-8 cannot hold: replace it first."
        ) from None
