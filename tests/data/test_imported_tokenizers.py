"""Imported tokenizers: as transformers and SentencePiece read them, text is text, clear errors."""

import json
import pickle
import re
import sys
from unicodedata import normalize

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.formats import TextFormat
from reasoning.data.imported_tokenizers import check_vocabulary, load_tokenizer
from reasoning.data.tokenizers import train_tokenizer

pytest.importorskip("tokenizers")

JSON_FAMILIES = ("qwen", "llama3", "llama2", "gemma")
MODEL_FAMILIES = ("llama2-model", "gemma-model")
FAMILIES = JSON_FAMILIES + MODEL_FAMILIES
BYTE_LEVEL = ("qwen", "llama3")
SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>"),
    *("<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
)
NASTY = (
    *SPECIALS, "<think>", "</think>", "<think2>\n", "<table>", "<0x41>", "<|im_", "end|>", "\0",
    *("a", "a ", "  b", " 48 / 2 = 24", "\n\n", "\r\n\t", "I'm", "日本語", "👩‍👩‍👧", "שלום", "ﬁ"),
)
TEXTS = st.lists(
    st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    max_size=6,
).map("".join)


@pytest.fixture(scope="module")
def tokenizers(model_directories):
    """{family: its tokenizer}, as we load it."""
    return {family: load_tokenizer(path) for family, path in model_directories.items()}


@pytest.fixture(scope="module")
def references(model_directories):
    """{family: its tokenizer}, as transformers loads it."""
    transformers = pytest.importorskip("transformers")
    return {
        family: transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        for family, path in model_directories.items()
    }


@pytest.mark.parametrize("family", JSON_FAMILIES)
def test_any_text_is_read_as_transformers_reads_it(tokenizers, references, family):
    ours, theirs = tokenizers[family], references[family]

    @settings(max_examples=200, deadline=None)
    @given(TEXTS)
    def check(text):
        options = dict(add_special_tokens=False)
        assert ours.encode(text) == theirs.encode(text, split_special_tokens=True, **options)
        ids = theirs.encode(text, **options)
        assert ours.encode_template(text) == ids
        assert ours.decode(ids) == theirs.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    check()


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_any_text_is_read_as_sentencepiece_reads_it(tokenizers, model_directories, family):
    ours, path = tokenizers[family], model_directories[family] / "tokenizer.model"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    turns = re.compile("<(start|end)_of_turn>")  # which that library takes for special in any text

    @settings(max_examples=200, deadline=None)
    @given(TEXTS.map(lambda text: turns.sub("turn", text)))
    def check(text):
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode([ours.bos_id, *ids, ours.eos_id]) == theirs.decode(ids)

    check()


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_a_sentencepiece_chat_is_read_as_transformers_reads_it(tokenizers, references, family):
    text = "<s><start_of_turn>user\nWhat is 48 / 2?<end_of_turn>\n<start_of_turn>model\n"
    if family == "llama2-model":
        text = "<s>"  # behind which transformers, unlike SentencePiece, puts no space in front
    ours, theirs = tokenizers[family], references[family]
    assert ours.encode_template(text) == theirs.encode(text, add_special_tokens=False)


def test_every_stretch_of_a_sentencepiece_template_is_a_text(tokenizers):
    tokenizer = tokenizers["llama2-model"]
    assert tokenizer.encode_template("<s>half</s> of") == [
        tokenizer.bos_id, *tokenizer.encode("half"), tokenizer.eos_id, *tokenizer.encode(" of"),
    ]


def test_the_longest_special_token_is_read(copy_directory):
    directory = copy_directory("gemma-model")
    edit(directory, "tokenizer_config.json", additional_special_tokens=["<", "<table>"])
    tokenizer = load_tokenizer(directory)
    assert len(tokenizer.encode_template("<table>")) == 1
    assert len(tokenizer.encode_template("<|")) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_becomes_a_special_token_and_all_of_it_comes_back(tokenizers, family):
    tokenizer = tokenizers[family]

    def as_read(text):
        """What a model reads as the same text."""
        return normalize("NFC", text) if family in BYTE_LEVEL else text.replace("▁", " ")

    @settings(max_examples=200, deadline=None)
    @given(TEXTS)
    def check(text):
        ids = tokenizer.encode(text)
        assert as_read(tokenizer.decode(ids)) == as_read(text)
        assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids)
        assert not tokenizer.special_ids & set(ids)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_join_as_the_docstring_says(tokenizers, family):
    tokenizer = tokenizers[family]
    space = " " if family.startswith("llama2") else ""
    ids = tokenizer.encode("48 clips") + tokenizer.encode("half")
    assert tokenizer.decode(ids) == f"48 clips{space}half"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_special_token_is_text_in_text_and_one_id_in_a_template(tokenizers, family):
    tokenizer = tokenizers[family]
    ids = {token: tokenizer.encode_template(token) for token in SPECIALS}
    present = [token for token in SPECIALS if tokenizer.special_ids.issuperset(ids[token])]
    assert len(present) >= 2
    for token in present:
        text = f"a{token}b"
        assert tokenizer.spells_special(text)
        assert set(tokenizer.encode_template(text)) & tokenizer.special_ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert "".join(tokenizer.decode(tokenizer.encode_template(text)).split()) == "ab"
    assert not tokenizer.spells_special("a < b > c")


def test_tokens_that_are_not_marked_special_are_read_everywhere(tokenizers):
    qwen = tokenizers["qwen"]
    assert qwen.encode("</think>") == qwen.encode_template("</think>") == [345]
    assert qwen.decode([345]) == "</think>"
    gemma = tokenizers["gemma-model"]
    assert len(gemma.encode("<table>")) == 1
    assert len(gemma.encode("<start_of_turn>")) > 1


@pytest.mark.parametrize(
    ("family", "size", "pad", "bos", "stops"),
    [
        ("qwen", 346, 341, None, (342, 340)),  # its pad, 340, is a stop id
        ("llama3", 347, 342, 340, (346, 341, 345)),  # it names no pad: a reserved token
        ("llama2", 420, 0, 1, (2,)),  # it has no pad: unk
        ("gemma", 407, 0, 2, (1,)),
        ("llama2-model", 400, 0, 1, (2,)),
        ("gemma-model", 400, 0, 2, (1,)),
    ],
)
def test_ids_of_the_families(tokenizers, family, size, pad, bos, stops):
    tokenizer = tokenizers[family]
    assert tokenizer.vocab_size == size
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.stop_ids) == (pad, bos, stops)
    assert tokenizer.eos_id == stops[0]
    assert tokenizer.pad_id not in tokenizer.stop_ids
    assert tokenizer.decode([tokenizer.pad_id, *stops]) == ""


@pytest.mark.parametrize("family", ("qwen", "llama3", "llama2", "gemma", "llama2-model"))
def test_bos_and_eos_are_those_of_transformers(tokenizers, references, family):
    ours, theirs = tokenizers[family], references[family]
    bos = [] if ours.bos_id is None else [ours.bos_id]
    assert theirs.encode("half") == bos + ours.encode("half")
    assert ours.eos_id == theirs.eos_token_id
    assert ours.vocab_size == len(theirs)


def test_a_prompt_begins_with_bos_where_the_model_has_one(tokenizers):
    qwen, llama3 = tokenizers["qwen"], tokenizers["llama3"]
    assert TextFormat(qwen).prompt_ids("half") == qwen.encode("half")
    assert TextFormat(llama3).prompt_ids("half") == [llama3.bos_id, *llama3.encode("half")]


def edit(directory, name, **changes):
    """Change entries of a settings file; None takes an entry away."""
    path = directory / name
    entries = (json.loads(path.read_text()) if path.exists() else {}) | changes
    kept = {key: value for key, value in entries.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def test_add_bos_token_overrules_what_tokenizer_json_adds(copy_directory):
    directory = copy_directory("llama3")
    edit(directory, "tokenizer_config.json", add_bos_token=False)
    assert load_tokenizer(directory).bos_id is None


def test_one_stop_id_may_be_a_number_and_eos_may_come_from_it(copy_directory):
    directory = copy_directory("qwen")
    edit(directory, "tokenizer_config.json", eos_token=None)
    edit(directory, "generation_config.json", eos_token_id=340)
    assert load_tokenizer(directory).stop_ids == (340,)
    edit(directory, "generation_config.json", eos_token_id=None)
    with pytest.raises(ValueError, match=r"eos_token is missing: name it"):
        load_tokenizer(directory)


def test_a_token_that_only_the_settings_call_special_is_special(copy_directory):
    directory = copy_directory("qwen")
    edit(directory, "tokenizer_config.json", additional_special_tokens=["</think>"])
    tokenizer = load_tokenizer(directory)
    assert len(tokenizer.encode("</think>")) > 1
    assert tokenizer.encode_template("</think>") == [345]
    assert tokenizer.decode([345]) == ""


def test_a_model_that_has_special_pieces_of_its_own_refuses_texts_that_spell_them(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = Tokenizer(models.WordLevel({"?": 0, "a": 1, "<s>": 2, "</s>": 3}, unk_token="?"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.save(str(tmp_path / "tokenizer.json"))
    edit(tmp_path, "tokenizer_config.json", eos_token="</s>", bos_token="<s>", unk_token="?")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a new a") == [1, 0, 1]
    with pytest.raises(ValueError, match=r"text spells '</s>', which tokenizer.json reads"):
        tokenizer.encode("a </s>")


def test_pickles_as_bytes_and_equals_by_fingerprint(tokenizers, copy_directory):
    for family in FAMILIES:
        tokenizer = tokenizers[family]
        data = pickle.dumps(tokenizer)
        assert len(data) < len(tokenizer.model) + 5000
        copy = pickle.loads(data)
        assert copy == tokenizer
        assert hash(copy) == hash(tokenizer)
        assert copy.encode("a</s><|im_end|>") == tokenizer.encode("a</s><|im_end|>")
    assert len({t.fingerprint for t in tokenizers.values()}) == len(FAMILIES)
    assert tokenizers["qwen"] != train_tokenizer((), vocab_size=None)
    directory = copy_directory("qwen")
    edit(directory, "tokenizer_config.json", model_max_length=99)
    assert load_tokenizer(directory) == tokenizers["qwen"]
    edit(directory, "tokenizer_config.json", eos_token="<|endoftext|>")
    assert load_tokenizer(directory) != tokenizers["qwen"]


def test_repr_is_short(tokenizers):
    assert re.fullmatch(
        r"ImportedTokenizer\('tokenizer.json', vocab_size=346, fingerprint='[0-9a-f]{12}'\)",
        repr(tokenizers["qwen"]),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_ids_and_texts(tokenizers, family):
    tokenizer = tokenizers[family]
    for i in (-1, tokenizer.vocab_size, 10**9):
        with pytest.raises(ValueError, match=rf"ids has {i}, outside \[0, \d+\): take"):
            tokenizer.decode([5, i])
    for read in (tokenizer.encode, tokenizer.encode_template):
        assert read("") == []
        with pytest.raises(ValueError, match=r"text has the lone surrogate '\\ud800'"):
            read("a\ud800")
    broken = tokenizer.encode("é")[:-1]  # a byte short
    assert tokenizer.decode(iter(broken)).endswith("�")


def test_a_vocabulary_larger_than_the_models_is_refused(tokenizers):
    check_vocabulary(tokenizers["qwen"], 346)
    check_vocabulary(tokenizers["qwen"], 512)  # rows that no id uses
    with pytest.raises(ValueError, match=r"vocab_size=345 of the model .* tokenizer's 346"):
        check_vocabulary(tokenizers["qwen"], 345)


def test_a_special_token_beyond_the_models_rows(model_directories, tokenizers):
    """As Gemma 3 1B's <image_soft_token>: nothing writes it, and all else is as it was."""
    whole = tokenizers["gemma"]
    last, text = whole.vocab_size - 1, "<start_of_turn>user\n48"
    assert whole.encode_template("<end_of_turn>") == [last]
    check_vocabulary(whole, last)
    cut = load_tokenizer(model_directories["gemma"], num_rows=last)
    assert (cut.vocab_size, cut.largest_id) == (last, last)
    assert cut.encode_template(text) == whole.encode_template(text)
    assert cut.encode("<end_of_turn>") == whole.encode("<end_of_turn>")
    assert (cut.pad_id, cut.stop_ids) == (whole.pad_id, whole.stop_ids)
    assert cut.decode_any([last]) == "\N{REPLACEMENT CHARACTER}"  # a tag, it may be
    assert pickle.loads(pickle.dumps(cut)).vocab_size == last
    with pytest.raises(ValueError, match=rf"'<end_of_turn>', id {last}, and the model has {last}"):
        cut.encode_template("a<end_of_turn>")


def test_a_pad_or_an_eos_beyond_the_models_rows(model_directories, copy_directory):
    directory = copy_directory("gemma")
    last = load_tokenizer(directory).vocab_size - 1
    edit(directory, "special_tokens_map.json", pad_token="<end_of_turn>")
    assert load_tokenizer(directory).pad_id == last
    assert load_tokenizer(directory, num_rows=last).pad_id < last
    edit(directory, "tokenizer_config.json", eos_token="<end_of_turn>")
    with pytest.raises(ValueError, match=rf"eos_token='<end_of_turn>' is id {last}, and the mod"):
        load_tokenizer(directory, num_rows=last)
    with pytest.raises(ValueError, match=r"vocab_size=100 of the model .* they do not belong"):
        load_tokenizer(directory, num_rows=100)


def refused(directory, sentence):
    """That loading says so in one line."""
    with pytest.raises(ValueError, match=sentence) as caught:
        load_tokenizer(directory)
    assert "\n" not in str(caught.value)


def test_directories_that_hold_no_tokenizer(tmp_path, copy_directory):
    refused(tmp_path / "nowhere", r"nowhere has no tokenizer.json and no tokenizer.model: give the")
    directory = copy_directory("qwen")
    edit(directory, "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", None]})
    refused(directory, r"needs code that comes with the model .* never run; convert it")


@pytest.mark.parametrize("data", (b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"model": {"type": 1}}'))
def test_a_broken_tokenizer_file(copy_directory, data):
    directory = copy_directory("qwen")
    (directory / "tokenizer.json").write_bytes(data)
    refused(directory, r"tokenizer.json cannot be read \(.*\): fetch it again")
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.model").write_bytes(data)
    refused(directory, r"tokenizer.model cannot be read \(.*\): fetch it again")


@pytest.mark.parametrize(
    "name", ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
)
def test_broken_settings(copy_directory, name):
    directory = copy_directory("qwen")
    for data, sentence in (
        (b"{", r"is not JSON \(.*\): fetch"),
        (b"\xff", r"is not JSON"),
        (b"[1]", r"holds a list instead of an object"),
    ):
        (directory / name).write_bytes(data)
        refused(directory, f"{name} {sentence}")


@pytest.mark.parametrize("family", ("qwen", "llama2-model"))
def test_settings_of_another_tokenizer(copy_directory, family):
    directory = copy_directory(family)
    kind = load_tokenizer(directory).kind
    added = {"400": {"content": "<new>", "special": True}}
    edit(directory, "tokenizer_config.json", added_tokens_decoder=added)
    refused(directory, rf"'<new>' as id 400, which is missing there \({kind}\): use a directory")
    eos = {"qwen": "<|im_end|>", "llama2-model": "</s>"}[family]
    added = {"0": {"content": eos, "special": True}}
    edit(directory, "tokenizer_config.json", added_tokens_decoder=added)
    refused(directory, rf"as id 0, which has id \d+ there \({kind}\)")
    edit(directory, "tokenizer_config.json", added_tokens_decoder=None, eos_token="<end>")
    refused(directory, rf"eos_token='<end>' is not in {kind}: the settings are of another")
    edit(directory, "tokenizer_config.json", eos_token=eos)
    edit(directory, "generation_config.json", eos_token_id=[2, 999])
    refused(directory, r"eos_token_id=999 in generation_config.json is outside \[0, \d+\)")


def test_no_special_token_to_pad_with(tmp_path):
    from tokenizers import Tokenizer, models

    model = Tokenizer(models.BPE({"a": 0, "<|end|>": 1}, []))
    model.add_special_tokens(["<|end|>"])
    model.save(str(tmp_path / "tokenizer.json"))
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|end|>")
    edit(tmp_path, "tokenizer_config.json", **names)  # as GPT-2
    refused(tmp_path, r"pad_token: tokenizer.json has no special token besides those that end")


@pytest.mark.parametrize(
    ("family", "module", "library"),
    [("qwen", "tokenizers", "tokenizers"), ("llama2-model", "google.protobuf", "protobuf")],
)
def test_a_missing_library(copy_directory, monkeypatch, family, module, library):
    directory = copy_directory(family)
    if library == "protobuf":
        monkeypatch.setitem(sys.modules, "google.protobuf.message", None)
    monkeypatch.setitem(sys.modules, module, None)
    refused(directory, rf"the library {library} is not installed; pip install '.\[hf\]'")
