"""Strategy tags: the paper's ids, one id that differs, and every other case refused."""

import pytest

from reasoning.data.imported_tokenizers import ImportedTokenizer, load_tokenizer
from reasoning.data.tags import StrategyTags, textual_tags

pytest.importorskip("tokenizers")

# What Qwen2.5's vocabulary says of a tag (METHODS: "<|im_start|><think2>\n" -> 5 ids).
QWEN_IDS = {
    **{str(digit): 15 + digit for digit in range(10)},
    "<": 27, ">": 29, "h": 71, "i": 72, "k": 74, "n": 77, "t": 83, "Ċ": 198,
    "in": 258, "th": 339, ">Ċ": 397, "ink": 766, "<th": 13708, "<|im_start|>": 151644,
}
QWEN_MERGES = [("i", "n"), ("t", "h"), (">", "Ċ"), ("in", "k"), ("<", "th")]
QWEN_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def make_qwen(replaced="", by=""):
    """A few words of Qwen2.5's vocabulary under their published ids; it may misread a text."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    model = Tokenizer(models.BPE(QWEN_IDS, QWEN_MERGES))
    model.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    if replaced:
        model.normalizer = normalizers.Replace(replaced, by)
    model.add_special_tokens(["<|im_start|>"])
    config = {"pad_token": "<|im_start|>"}
    return ImportedTokenizer("tokenizer.json", model.to_str().encode(), config, {"eos_token_id": 0})


@pytest.fixture(scope="module")
def qwen():
    return make_qwen()


def test_textual_tags_are_those_of_the_paper(qwen):
    assert qwen.encode_template("<|im_start|><think2>\n") == [151644, 13708, 766, 17, 397]
    tags = textual_tags(qwen, 6)
    assert tags == StrategyTags((151644, 13708, 766), (16, 17, 18, 19, 20, 21), (397,))
    assert qwen.vocab_size == 151645


def test_a_single_tag_is_forked_where_a_second_would_differ(qwen):
    assert textual_tags(qwen, 1) == StrategyTags((151644, 13708, 766), (16,), (397,))
    assert len(textual_tags(qwen, 9).ids) == 9


def test_a_tenth_tag_has_another_length(qwen):
    with pytest.raises(ValueError, match=r"<think1>\\n' and .*<think10>\\n' have 5 and 6 ids"):
        textual_tags(qwen, 10)


def test_tags_may_have_two_digits_where_a_number_is_one_id(model_directories):
    llama3 = load_tokenizer(model_directories["llama3"])
    with pytest.raises(ValueError, match=r"<think1>\\n' and .*<think10>\\n' have \d+ and \d+ ids"):
        textual_tags(llama3, 10)  # "10" was never learned
    assert len(textual_tags(llama3, 9, "<|eot_id|>think {i}:").ids) == 9


def test_tags_that_differ_in_more_than_one_id_or_in_none(qwen):
    with pytest.raises(ValueError, match=r"'1<1>' and '2<2>' differ at 2 positions .* instead of"):
        textual_tags(qwen, 3, "{i}<{i}>")
    misreads = make_qwen("3", "1")
    assert textual_tags(misreads, 2).ids == (16, 17)
    with pytest.raises(ValueError, match=r"<think1>\\n' and .*<think3>\\n' differ at 0 positions"):
        textual_tags(misreads, 3)


def test_tags_that_differ_at_changing_positions():
    swaps = make_qwen("3k1", "1k3")
    assert textual_tags(swaps, 2, "{i}k1") == StrategyTags((), (16, 17), (74, 16))
    with pytest.raises(ValueError, match=r"'2k1' differs .* position 0 and '3k1' at p.* 2"):
        textual_tags(swaps, 3, "{i}k1")


def test_a_pattern_without_a_number(qwen):
    with pytest.raises(ValueError, match=r"pattern='<think>' has no \{i\}: write it where"):
        textual_tags(qwen, 3, "<think>")


def test_no_strategies_and_shared_ids(qwen):
    with pytest.raises(ValueError, match="num_strategies=0: use at least 1"):
        textual_tags(qwen, 0)
    with pytest.raises(ValueError, match=r"ids=\(\): there is no strategy"):
        StrategyTags((1,), (), (2,))
    with pytest.raises(ValueError, match=r"ids=\(5, 6, 5\): every strategy needs an id of its own"):
        StrategyTags((1,), (5, 6, 5), (2,))
