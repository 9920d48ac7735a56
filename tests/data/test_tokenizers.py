"""The tokenizers: exact round trip, one id per word, no special ids from text, clear errors."""

import pickle
import random

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.tokenizers import Tokenizer, train_tokenizer

WORDS = ("make", ":", "*", "+", "=", ",", "answer", "a", "ab", "A1", '"', "\\", "<s>", "é", "#")
LINES = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May.",
    "How many clips did Natalia sell altogether in April and May?\n48 / 2 = 24, 48 + 24 = 72",
    "\tif x:\r\n    return  <s>x</s>",
) * 20
NASTY = (
    *("", " ", "  ", " a", "a ", "a  b", "\t", "\n", "\r\n", "\0", "\x0b\x1f\x85\xa0\u3000\u2028"),
    *("▁", "▁▁", " ▁ ", "a▁b", "▁make", "▁ make", "▅", "⁇", " ⁇ ", "\ufeff", "\ufffd", "\uffff"),
    *("<s>", "</s>", "<pad>", "<unk>", "<0x41>", "<0xE2><0x96><0x81>", "<think1>", "<s> </s>"),
    *("🙂", "👩‍👩‍👧", "e\u0301", "é", "ﬁ", "Ａ", "①", "\u202e", "\U0010ffff", "日本語", "שלום"),
    *("make", "makes", " make", "make  make", "remake", "7*5", "100", "361", "-3", "3.14", "007"),
    " \r\n \t a▁ \0 <s>make 36 : 🙂  ",
)
TEXTS = st.lists(st.sampled_from(NASTY) | st.text(max_size=8), max_size=6).map("".join)

KINDS = {
    "words": dict(lines=(), vocab_size=None, words=WORDS),
    "whole": dict(lines=(), vocab_size=None, words=WORDS, numbers="whole", max_number=99),
    "mixed": dict(lines=LINES, vocab_size=420, words=WORDS, numbers="whole", max_number=20),
    "digits": dict(lines=LINES, vocab_size=350),
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    """One tokenizer of every kind, trained once."""
    return {kind: train_tokenizer(**arguments) for kind, arguments in KINDS.items()}


def specials(tokenizer: Tokenizer) -> set[int]:
    """The ids that no text may produce."""
    return {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}


def check_text(tokenizer: Tokenizer, text: str) -> None:
    """A text comes back as it was, from ids of the vocabulary that are not special."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids)
    assert not specials(tokenizer) & set(ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_round_trips(tokenizers, kind, text):
    check_text(tokenizers[kind], text)


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_round_trips(tokenizers, kind):
    @settings(max_examples=200, deadline=None)
    @given(TEXTS)
    def check(text: str):
        check_text(tokenizers[kind], text)

    check()


def test_every_code_point_round_trips(tokenizers):
    text = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    for start in range(0, len(text), 2**16):
        check_text(tokenizers["words"], text[start : start + 2**16])


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30))
def test_one_id_per_word(tokenizers, sequence):
    for kind in ("words", "whole", "mixed"):
        ids = tokenizers[kind].encode(" ".join(sequence))
        assert len(ids) == len(sequence)
        assert len(set(ids)) == len(set(sequence))


@given(st.lists(st.integers(0, 99).map(str) | st.sampled_from(WORDS), min_size=1, max_size=30))
def test_one_id_per_word_and_whole_number(tokenizers, sequence):
    ids = tokenizers["whole"].encode(" ".join(sequence))
    assert len(ids) == len(sequence)
    assert len(set(ids)) == len(set(sequence))


VALID_WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(
    lambda word: word.split() == [word] and not {"▁", "\0"} & set(word)
)


@settings(max_examples=50, deadline=None)
@given(st.lists(VALID_WORDS, min_size=1, max_size=8, unique=True), st.sampled_from([None, 360]))
def test_any_closed_vocabulary_gets_one_id_per_word(words, vocab_size):
    tokenizer = train_tokenizer(LINES if vocab_size else (), vocab_size=vocab_size, words=words)
    ids = tokenizer.encode(" ".join(words))
    assert len(ids) == len(set(ids)) == len(words)
    check_text(tokenizer, " ".join(words))
    check_text(tokenizer, "".join(words))


def test_known_text_of_a_small_task(tokenizers):
    ids = tokenizers["whole"].encode("3 5 7 make 36 : 7 * 5 = 35")
    number = 4 + len(WORDS)  # words come first, in their order, then the numbers
    word = {w: 4 + i for i, w in enumerate(WORDS)}
    assert ids == [
        *(number + 3, number + 5, number + 7, word["make"], number + 36, word[":"]),
        *(number + 7, word["*"], number + 5, word["="], number + 35),
    ]


@given(TEXTS.filter(bool), TEXTS.filter(bool))
def test_joining_ids_joins_texts_with_a_space(tokenizers, first, second):
    for tokenizer in tokenizers.values():
        ids = tokenizer.encode(first) + tokenizer.encode(second)
        assert tokenizer.decode(ids) == f"{first} {second}"


def test_smallest_vocabulary_is_specials_bytes_words_numbers_and_a_space(tokenizers):
    assert tokenizers["words"].vocab_size == 4 + 256 + len(WORDS) + 1
    assert tokenizers["whole"].vocab_size == 4 + 256 + len(WORDS) + 100 + 1
    assert train_tokenizer((), vocab_size=None).vocab_size == 4 + 256 + 1
    assert train_tokenizer(["b a", "\n"], vocab_size=None).vocab_size == 4 + 256 + 1 + 3
    assert train_tokenizer(["a ab"], vocab_size=None, words=["ab"]).vocab_size == 4 + 256 + 1 + 2


def test_vocab_size_is_exact_and_text_gets_shorter(tokenizers):
    assert tokenizers["digits"].vocab_size == 350
    assert tokenizers["mixed"].vocab_size == 420
    smallest = train_tokenizer(LINES, vocab_size=None)
    assert len(tokenizers["digits"].encode(LINES[0])) < 0.6 * len(smallest.encode(LINES[0]))


@given(st.integers(0, 10**12))
def test_every_digit_has_its_own_id(tokenizers, number):
    encode = tokenizers["digits"].encode
    space, *ids = encode(str(number))
    assert [space] == encode("  ")[:1]
    assert len(ids) == len(str(number))
    assert len(set(ids)) == len(set(str(number)))


@given(st.integers(0, 10**6))
def test_numbers_above_the_largest_whole_number_round_trip(tokenizers, number):
    for kind in ("whole", "mixed"):
        text = f"{number} make -{number} : {number}"
        check_text(tokenizers[kind], text)


def test_largest_whole_number_is_one_id(tokenizers):
    assert len(tokenizers["mixed"].encode("20 20")) == 2
    assert len(tokenizers["mixed"].encode("21")) > 1


def test_space_is_a_piece_however_rare():
    tokenizer = train_tokenizer(["1" * 10**5], vocab_size=262)
    check_text(tokenizer, " 1 ▁ 2  ")


def test_characters_that_the_trainer_reserves_do_not_lose_a_line():
    tokenizer = train_tokenizer(["▅xyz \0", "▁q<s>"], vocab_size=None)
    assert all(len(tokenizer.encode(c)) == 2 for c in "xyzq")  # the space, and one piece
    assert len(set(tokenizer.encode("xyzq"))) == 5
    assert tokenizer.vocab_size == 4 + 256 + 1 + 4


def test_merges_never_meet_in_a_special_piece():
    parts = ["<s", "s>", "</", "/s>", "<pa", "ad>", "<unk", "nk>", "<0x", "41>", "0x4", "1>"]
    tokenizer = train_tokenizer(parts * 100, vocab_size=289)
    for text in ("<s>", "</s>", "<pad>", "<unk>", "<0x41>"):
        check_text(tokenizer, text)
        check_text(tokenizer, f"{text}{text} {text}")


def test_long_lines_are_learned_from():
    tokenizer = train_tokenizer(["xy" * 50_000], vocab_size=None)
    assert tokenizer.vocab_size == 4 + 256 + 1 + 2


def test_training_is_deterministic_and_reads_a_generator():
    rng = random.Random(0)
    lines = ["".join(rng.choices("abcdefgh ", k=60)) for _ in range(200)]
    first = train_tokenizer(lines, vocab_size=400, words=WORDS)
    again = train_tokenizer((line for line in lines), vocab_size=400, words=WORDS)
    other = train_tokenizer(lines[:100], vocab_size=400, words=WORDS)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first == again and hash(first) == hash(again)
    assert first != other and first != first.fingerprint
    assert len(first.fingerprint) == 64 and int(first.fingerprint, 16)


def test_training_is_quiet(capfd):
    train_tokenizer(LINES, vocab_size=300)
    with pytest.raises(ValueError):
        train_tokenizer(LINES, vocab_size=3000)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_pickled_tokenizers_are_the_same(tokenizers, kind, tmp_path):
    tokenizer = tokenizers[kind]
    tokenizer.save(tmp_path / "tokenizer.model")
    for copy in (
        Tokenizer.load(tmp_path / "tokenizer.model"),
        Tokenizer.load(str(tmp_path / "tokenizer.model")),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert copy == tokenizer and hash(copy) == hash(tokenizer)
        assert copy.vocab_size == tokenizer.vocab_size
        assert copy.encode(NASTY[-1]) == tokenizer.encode(NASTY[-1])


def test_tokenizer_is_immutable_and_prints_short(tokenizers):
    with pytest.raises(AttributeError):
        tokenizers["words"].proto = b""
    assert len(repr(tokenizers["words"])) < 100


def test_special_ids_are_distinct_and_skipped_in_decode(tokenizers):
    tokenizer = tokenizers["whole"]
    assert len(specials(tokenizer)) == 4
    ids = tokenizer.encode("7 make")
    pad, bos, eos = tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id
    assert tokenizer.decode([bos, ids[0], pad, ids[1], eos, pad]) == "7 make"
    assert tokenizer.decode([pad, bos, eos]) == ""
    assert tokenizer.decode([ids[0], tokenizer.unk_id]) == "7\ufffd"


def test_empty_text_has_no_ids(tokenizers):
    assert all(tokenizer.encode("") == [] for tokenizer in tokenizers.values())


def test_part_of_a_character_decodes_to_the_replacement_character(tokenizers):
    ids = tokenizers["words"].encode("a 日")  # a word, the space, three bytes
    assert len(ids) == 5
    assert tokenizers["words"].decode(ids[:4]) == "a \ufffd"


def test_any_ids_decode(tokenizers):
    """What a policy samples need not be UTF-8, but is read all the same."""
    rng = random.Random(0)
    for tokenizer in tokenizers.values():
        for _ in range(50):
            ids = rng.choices(range(tokenizer.vocab_size), k=20)
            check_text(tokenizer, tokenizer.decode(ids))
            assert tokenizer.decode(np.array(ids, np.int32)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_outside_the_vocabulary_are_refused(tokenizers, kind):
    size = tokenizers[kind].vocab_size
    for wrong in (-1, size, size + 3):
        with pytest.raises(ValueError, match=rf"ids has {wrong}, outside \[0, {size}\)"):
            tokenizers[kind].decode([0, wrong])


def test_lone_surrogates_are_refused(tokenizers):
    with pytest.raises(ValueError, match=r"text has the lone surrogate '\\ud800' at position 2"):
        tokenizers["digits"].encode("ab\ud800")
    with pytest.raises(ValueError, match=r"lines has the lone surrogate '\\udfff' at position 1"):
        train_tokenizer(["a\udfff"], vocab_size=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(vocab_size=260), r"vocab_size=260 is too small: .* need 261; use at least that"),
        (dict(vocab_size=-1), r"vocab_size=-1 is too small"),
        (dict(vocab_size=262), r"vocab_size=262 is too large: lines yield only 261"),
        (dict(vocab_size=265, words=WORDS), rf"too small: .* need {261 + len(WORDS)};"),
        (dict(words=["make", "a b"]), r"words has 'a b': .* split it"),
        (dict(words=["a\n"]), r"words has 'a\\n'"),
        (dict(words=[""]), r"words has ''"),
        (dict(words=["▁a"]), r"words has '▁a'"),
        (dict(words=["a\0"]), r"words has 'a\\x00'"),
        (dict(words=["\ud800"]), r"words has the lone surrogate"),
        (dict(words=["a", "b", "a"]), r"words has 'a' twice"),
        (dict(words=["7"], numbers="whole"), r"words has '7' twice \(whole numbers count\)"),
        (dict(numbers="roman"), r"numbers='roman' is unknown: use 'digits' or 'whole'"),
        (dict(numbers="whole", max_number=-1), r"max_number=-1 is negative"),
    ],
)
def test_impossible_training_is_refused_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        train_tokenizer((), **{"vocab_size": None, **arguments})
    assert "\n" not in str(raised.value)


def test_limits_of_vocab_size_are_the_ones_named():
    for wrong in (264, 3000):
        with pytest.raises(ValueError) as raised:
            train_tokenizer(LINES, vocab_size=wrong)
        named = next(int(w) for w in str(raised.value).replace(";", "").split() if w.isdigit())
        assert train_tokenizer(LINES, vocab_size=named).vocab_size == named


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "missing.model")
    for content in (b"", b"not a model"):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.model: .* is not a SentencePiece model"):
            Tokenizer.load(tmp_path / "bad.model")


@pytest.mark.parametrize(
    "setting",
    [
        dict(pad_id=3, unk_id=0),
        dict(byte_fallback=False),
        dict(add_dummy_prefix=True),
        dict(normalization_rule_name="nmt_nfkc"),
        dict(remove_extra_whitespaces=True),
    ],
)
def test_models_with_other_settings_are_refused(tmp_path, setting):
    ours = dict(byte_fallback=True, pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2)
    ours |= dict(normalization_rule_name="identity", add_dummy_prefix=False)
    ours |= dict(remove_extra_whitespaces=False, model_type="bpe", vocab_size=300)
    prefix = str(tmp_path / "other")
    for settings_, refused in ((ours, False), (ours | setting, True)):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES), model_prefix=prefix, hard_vocab_limit=False, **settings_
        )
        if refused:
            with pytest.raises(ValueError, match="with other settings"):
                Tokenizer.load(prefix + ".model")
        else:
            Tokenizer.load(prefix + ".model")
