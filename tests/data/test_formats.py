"""Prompts and completions as ids: where the fork is, what ends a completion, and reading back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.data.chat import ChatTemplate
from reasoning.data.formats import TextFormat
from reasoning.data.imported_tokenizers import load_tokenizer
from reasoning.data.tags import textual_tags
from reasoning.data.tokenizers import train_tokenizer

CHAT = ChatTemplate(
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    {},
)
OWN = train_tokenizer(("What is 7 * 5? It is 35.",), vocab_size=None)


@pytest.fixture(scope="module")
def qwen(model_directories):
    return load_tokenizer(model_directories["qwen"])


def test_a_plain_row():
    text_format = TextFormat(OWN)
    assert text_format.prompt_ids("7 * 5?") == [OWN.bos_id, *OWN.encode("7 * 5?")]
    assert text_format.completion_ids("35.") == (*OWN.encode("35."), OWN.eos_id)
    assert (text_format.eos_id, text_format.pad_id) == (OWN.eos_id, OWN.pad_id)


def test_a_chat_ends_where_its_template_ends_an_answer(qwen):
    """Of several stop ids: not the tokenizer's own where the template writes another."""
    end, other = (qwen.encode_template(token)[0] for token in ("<|im_end|>", "<|endoftext|>"))
    assert {end, other} <= set(qwen.stop_ids)
    assert TextFormat(qwen, CHAT).eos_id == end
    ending = ChatTemplate(CHAT.source.replace("<|im_end|>", "<|endoftext|>"), {})
    assert TextFormat(qwen, ending).eos_id == other
    assert TextFormat(qwen, ChatTemplate("{{ messages[0]['content'] }}", {})).eos_id == qwen.eos_id


def test_a_chat_prompt_is_the_users_turn(qwen):
    ids = TextFormat(qwen, CHAT).prompt_ids("7 * 5?")
    expected = "<|im_start|>user\n7 * 5?<|im_end|>\n<|im_start|>assistant\n"
    assert ids == qwen.encode_template(expected)


def test_textual_tags_stand_around_the_fork(qwen):
    tags = textual_tags(qwen, 3)
    text_format = TextFormat(qwen, CHAT, tags)
    row = (*text_format.prompt_ids("?"), tags.ids[1], *text_format.completion_ids("It is 35."))
    tag = qwen.encode_template("<|im_start|>assistant\n<|im_start|><think2>\n")
    rest = [*qwen.encode("It is 35."), text_format.eos_id]
    assert list(row[-len(tag) - len(rest) :]) == [*tag, *rest]


@given(st.text("0123456789 abc\n?*", max_size=20))
def test_what_is_written_is_read_again(text):
    text_format = TextFormat(OWN)
    *ids, _ = text_format.completion_ids(text)
    assert text_format.completion_text([OWN.vocab_size + 2, *ids, OWN.eos_id]) == text
    assert text_format.completion_text([*ids, OWN.eos_id]) == text


def test_tags_are_cut_off_where_they_open_a_completion(qwen):
    tags = textual_tags(qwen, 2)
    text_format = TextFormat(qwen, CHAT, tags)
    *body, end = text_format.completion_ids("It is 35.")
    assert text_format.completion_text([tags.ids[0], *body, end]) == "It is 35."
    # A policy that breaks the tag off, and one that opens with none.
    rest = body[len(tags.suffix) :]
    assert text_format.completion_text([tags.ids[0], *rest, end]) == "It is 35."
    assert text_format.completion_text([*rest, end]) == "It is 35."


def test_ids_that_no_text_has_are_marked(qwen):
    beyond = qwen.vocab_size + 3  # a row of the model without a token
    two = qwen.encode("2")
    assert TextFormat(qwen).completion_text([*two, beyond, *two]) == "2\N{REPLACEMENT CHARACTER}2"
    assert TextFormat(OWN).completion_text([*OWN.encode("7"), OWN.vocab_size]).startswith("7")


def test_a_row_without_a_token_is_no_tag(qwen):
    """A model may have more rows than its tokenizer has ids; its tags come after all of them."""
    unused, tag = qwen.vocab_size + 1, qwen.vocab_size + 5
    two = qwen.encode("2")
    text_format = TextFormat(qwen, num_ids=tag)
    assert text_format.completion_text([tag, *two]) == "2"
    assert text_format.completion_text([unused, *two]) == "\N{REPLACEMENT CHARACTER}2"
