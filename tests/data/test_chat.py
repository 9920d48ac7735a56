"""Chat templates: rendered as transformers renders them, kept in their sandbox, text stays text."""

import datetime
import json
import pickle
import sys
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.data.chat import ChatTemplate, chat_prompt_ids, load_chat_template
from reasoning.data.imported_tokenizers import load_tokenizer

pytest.importorskip("jinja2")

QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}{{- tools | tojson }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n' }}{{- call.arguments | tojson }}{{- '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3 = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(
        message.content.startswith('<tool_response>') and message.content.endswith('</x>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {%- set content = '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n' + content %}
        {%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception('System role not supported') }}
{%- endif -%}
{% for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{% endfor -%}
{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "tool" %}{%- continue %}{%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {%- generation %}{{- " " + message["content"]|trim + eos_token}}{%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""
LINES = """# a template of many lines, where blocks must leave no blank ones behind
{% for message in messages %}
    {% if message.role == 'user' %}
  Question {{ loop.index }} of {{ loop.length }}: {{ message.content }}
    {% else %}
        {% generation %}
{{ message | tojson(indent=1) }}
        {% endgeneration %}
        {% break %}
    {% endif %}
{% endfor %}
{{ dict(a=1)['a'] }} {{ pad_token }} {{ unk_token is defined }}
"""
TEMPLATES = {
    "qwen2.5": ("qwen", QWEN25), "qwen3": ("qwen", QWEN3), "llama3": ("llama3", LLAMA3),
    "gemma": ("gemma", GEMMA), "mistral": ("llama2", MISTRAL), "lines": ("qwen", LINES),
}
SYSTEM = {"role": "system", "content": " Think step by step. "}
ASKED = {"role": "user", "content": "\n What is <b>7 * 5</b>? \"é'\n"}
SAID = {"role": "assistant", "content": "<think>\n7 fives\n</think>\n\n35 & done "}
CHATS = (
    [ASKED], [ASKED, SAID], [ASKED, SAID, ASKED], [SYSTEM, ASKED], [SYSTEM, ASKED, SAID, ASKED],
)


def save_template(directory, template):
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"chat_template": template}
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("style", TEMPLATES)
def test_chats_are_rendered_and_read_as_by_transformers(copy_directory, style):
    transformers = pytest.importorskip("transformers")
    family, source = TEMPLATES[style]
    directory = copy_directory(family)
    save_template(directory, source)
    reference = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    tokenizer, template = load_tokenizer(directory), load_chat_template(directory)
    now = datetime.datetime.now()
    template = ChatTemplate(template.source, template.special_tokens, now)
    for messages in CHATS:
        if style == "gemma" and messages[0] is SYSTEM:
            with pytest.raises(ValueError, match="cannot render the messages: System role not sup"):
                template.render(messages)
            continue
        for asks in (False, True):
            expected = reference.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=asks
            )
            assert template.render(messages, add_generation_prompt=asks) == expected
            assert messages[0]["content"].strip() in expected or style == "lines"
        if messages[-1] is ASKED and len(messages) <= 2:
            system = messages[0]["content"] if messages[0] is SYSTEM else None
            ids = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
            assert chat_prompt_ids(tokenizer, template, ASKED["content"], system) == ids


def test_the_clock_stands_still():
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {})
    assert template.render([]) == "26 Jul 2024"


def test_where_a_directory_keeps_its_template(copy_directory):
    directory = copy_directory("qwen")
    assert load_chat_template(directory) is None
    save_template(directory, [
        {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"},
    ])
    assert load_chat_template(directory).render([]) == "plain"
    (directory / "chat_template.jinja").write_text("{{ eos_token }} in é file", encoding="utf-8")
    assert load_chat_template(directory).render([]) == "<|im_end|> in é file"
    (directory / "chat_template.jinja").unlink()
    save_template(directory, [{"name": "rag", "template": "plain"}])
    with pytest.raises(ValueError, match=r"chat_template has rag and none named default: save"):
        load_chat_template(directory)


@pytest.fixture(scope="module")
def qwen(model_directories):
    return load_tokenizer(model_directories["qwen"])


PARTS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_", "end|>", "\n", "a", " ")
TEXTS = st.lists(
    st.sampled_from(PARTS) | st.text(st.characters(codec="utf-8"), max_size=3), max_size=5
).map("".join)


def test_no_message_writes_a_turn_and_all_of_it_is_read(qwen):
    template = ChatTemplate(QWEN25, {})
    turns = [i for i in chat_prompt_ids(qwen, template, "a") if i in qwen.special_ids]

    @settings(deadline=None)
    @given(TEXTS, st.none() | TEXTS)
    def check(question, system):
        ids = chat_prompt_ids(qwen, template, question, system)
        assert [i for i in ids if i in qwen.special_ids] == turns
        told = "You are a helpful assistant." if system is None else system
        said = f"system\n{told}\nuser\n{question}\nassistant\n"
        assert normalize("NFC", qwen.decode(ids)) == normalize("NFC", said)

    check()


def test_a_message_that_spells_a_special_token_is_put_in_as_text(qwen):
    template = ChatTemplate(QWEN25, {})
    ids = chat_prompt_ids(qwen, template, "</s> or <|im_end|>?", "No <|im_start|>.")
    assert ids == [
        *qwen.encode_template("<|im_start|>system\n"), *qwen.encode("No <|im_start|>."),
        *qwen.encode_template("<|im_end|>\n<|im_start|>user\n"),
        *qwen.encode("</s> or <|im_end|>?"),
        *qwen.encode_template("<|im_end|>\n<|im_start|>assistant\n"),
    ]
    for source, times in (("{{ messages[0].content * 2 }}", 2), ("hello", 0)):
        with pytest.raises(ValueError, match=rf"user message '<\|im_end\|>' .* {times} times"):
            chat_prompt_ids(qwen, ChatTemplate(source, {}), "<|im_end|>")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ raise_exception.__globals__['json'] }}", "'__globals__' of 'function'"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "'__class__' is unsafe"),
        ("{{ namespace({'__class__': 1}) }}", "'__class__' is unsafe"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{% include 'setup.py' %}", "no loader"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% for i in range(999) %}{% for j in range(i) %}{% endfor %}{% endfor %}", "100000"),
        ("{% macro f(n) %}{{ f(n-1) ~ f(n-1) if n }}{% endmacro %}{{ f(40) }}", "100000 steps"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for m in [[1]] recursive %}{{ loop([m] * 9) }}{% endfor %}", "recursion|steps"),
        ("{{ lipsum(n=100) }}", "'lipsum' is undefined"),
        ("{{ cycler(1, 2).next() }}", "'cycler' is undefined"),
        ("{{ joiner()() }}", "'joiner' is undefined"),
        ("{{ raise_exception('only users, please') }}", "only users, please"),
        ("{{ messages.nothing.at_all }}", "has no attribute 'nothing'"),
        ("{{ 'a' + none }}", "concatenate"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_hostile_and_failing_templates(source, sentence):
    with pytest.raises(ValueError, match="chat_template cannot render the messages: ") as caught:
        ChatTemplate(source, {}).render([ASKED])
    assert caught.match(sentence)


def test_a_template_that_is_no_template():
    with pytest.raises(ValueError, match="chat_template is not valid jinja2: "):
        ChatTemplate("{% for %}", {}).render([ASKED])


def test_steps_are_counted_for_every_rendering_anew():
    template = ChatTemplate("{% for i in range(60000) %}{% endfor %}done", {})
    assert [template.render([]) for _ in range(3)] == ["done"] * 3


def test_pickles_after_rendering():
    template = ChatTemplate(QWEN25, {"eos_token": "<|im_end|>"})
    text = template.render([ASKED])
    copy = pickle.loads(pickle.dumps(template))
    assert copy == template
    assert copy.render([ASKED]) == text


def test_jinja2_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match=r"jinja2 is not installed; pip install '.\[hf\]'"):
        ChatTemplate("", {}).render([])
