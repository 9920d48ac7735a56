"""Chat templates of imported models: from messages to the text, and the ids, they were trained on.

    template = load_chat_template("models/Qwen2.5-1.5B-Instruct")    # pip install '.[hf]'
    template.render([{"role": "user", "content": "What is 7 * 5?"}])
    prompt = chat_prompt_ids(tokenizer, template, "What is 7 * 5?", system="Think step by step.")

A template is a program by strangers. jinja2's sandbox keeps it from everything but its arguments,
and the steps it may take are counted; only the memory that it takes is not limited.
"""

import dataclasses
import datetime
import functools
import json
import os
import pathlib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from reasoning.data.imported_tokenizers import (
    ImportedTokenizer,
    named_tokens,
    tokenizer_settings,
)

if TYPE_CHECKING:
    import jinja2

MAX_STEPS = 100_000  # loop passes and calls in one rendering; a long chat takes a few hundred
TODAY = datetime.datetime(2024, 7, 26)  # the day that Llama 3's templates assume without a clock


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template in jinja2, as tokenizer_config.json has it.

    Attributes:
      source: the template's text.
      special_tokens: what it may write by name, {"bos_token": "<s>", ...}.
      now: what its clock says; fixed, so that a prompt is the same tomorrow.
    """

    source: str
    special_tokens: Mapping[str, str]
    now: datetime.datetime = TODAY

    @functools.cached_property
    def _template(self) -> "jinja2.Template":
        jinja2 = _jinja2()
        try:
            return _environment(self.now).from_string(self.source)
        except jinja2.TemplateError as error:
            raise ValueError(f"chat_template is not valid jinja2: {error}") from error

    def __reduce__(self) -> tuple[type["ChatTemplate"], tuple[Any, ...]]:
        # What it compiled is made again, not carried along.
        return ChatTemplate, (self.source, self.special_tokens, self.now)

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation; special tokens in it are meant to be read as such.

        Args:
          messages: {"role": ..., "content": ...} in the order they were said.
          add_generation_prompt: end where the assistant's answer begins.

        Raises:
          ValueError: jinja2 is not installed; or the template is not valid, refuses the messages
            (many know no system role), takes too many steps or reaches for what is not its own.
        """
        template = self._template
        template.environment.steps = 0
        try:
            return template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except Exception as error:  # it is a program, and may fail in any way that one can
            raise ValueError(f"chat_template cannot render the messages: {error}") from error


def load_chat_template(directory: str | os.PathLike[str]) -> ChatTemplate | None:
    """The chat template of a model directory, None if it has none: chat_template.jinja, else the
    entry `chat_template` of tokenizer_config.json, of several named ones the one named "default".

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is broken, or none of several templates is named "default".
    """
    directory = pathlib.Path(directory)
    config = tokenizer_settings(directory)
    source = config.get("chat_template")
    if (path := directory / "chat_template.jinja").exists():
        source = path.read_text(encoding="utf-8")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        if "default" not in named:
            raise ValueError(
                f"{directory}: chat_template has {', '.join(sorted(named))} and none named "
                "default: save the one you want as chat_template.jinja."
            )
        source = named["default"]
    return None if source is None else ChatTemplate(source, named_tokens(config))


def chat_prompt_ids(
    tokenizer: ImportedTokenizer, template: ChatTemplate, question: str, system: str | None = None
) -> list[int]:
    """The ids of a question, up to where the assistant's answer begins.

    They are those of the rendered text, but that a message which spells a special token is encoded
    on its own, as plain text: "<|im_end|>" in a question ends no turn.

    Args:
      system: the system message; None: what the template says without one.

    Raises:
      ValueError: `ChatTemplate.render` or `ImportedTokenizer.encode` refuses; or the template does
        not write a message that spells a special token exactly once.
    """
    said = {"user": question} if system is None else {"system": system, "user": question}
    # Such a message is rendered as a mark, of private-use characters, and put back as ids.
    marks = {
        role: f"\ue000{role}\ue001" for role, text in said.items() if tokenizer.spells_special(text)
    }
    text = template.render(
        [{"role": role, "content": marks.get(role, content)} for role, content in said.items()]
    )
    ids: list[int] = []
    for role, mark in marks.items():
        if text.count(mark) != 1:
            raise ValueError(
                f"the {role} message {said[role]!r} spells a special token, and the template "
                f"writes it {text.count(mark)} times instead of once: take the token out of it."
            )
        before, _, text = text.partition(mark)
        ids += tokenizer.encode_template(before) + tokenizer.encode(said[role])
    return ids + tokenizer.encode_template(text)


def _jinja2() -> types.ModuleType:
    """The library, which the rest of the project does without."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError as error:
        raise ValueError(
            "chat_template: the library jinja2 is not installed; pip install '.[hf]'."
        ) from error
    return jinja2


def _environment(now: datetime.datetime) -> "jinja2.Environment":
    """What published templates are written for: transformers' settings, filters and globals."""
    jinja2 = _jinja2()

    class GenerationTag(jinja2.ext.Extension):
        """`{% generation %}...{% endgeneration %}` marks the assistant's text; here just text."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
        """The sandbox, with every call and every pass of a loop counted."""

        steps = 0

        def step(self) -> None:
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise jinja2.TemplateRuntimeError(f"it takes more than {MAX_STEPS} steps.")

        def call(self, /, *args: Any, **kwargs: Any) -> Any:
            self.step()
            return super().call(*args, **kwargs)

        def counted(self, items: Iterable[Any]) -> Iterator[Any]:
            for item in items:
                self.step()
                yield item

        def _parse(self, *args: Any) -> Any:
            tree = super()._parse(*args)
            for loop in list(tree.find_all(jinja2.nodes.For)):
                loop.iter = jinja2.nodes.Filter(
                    loop.iter, "counted", [], [], None, None, lineno=loop.lineno
                )
            return tree

    class Namespace(jinja2.utils.Namespace):
        """Variables that outlive a loop, but none that pass for Python's own attributes."""

        def __init__(self, /, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            for name, value in dict(*args, **kwargs).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.sandbox.SecurityError(f"access to attribute {name!r} is unsafe.")
            super().__setitem__(name, value)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["counted"] = environment.counted
    environment.filters["tojson"] = _to_json
    # Nothing else of jinja2's own: its lipsum() takes any time in a single step.
    environment.globals = {
        "range": environment.globals["range"],  # the sandbox's, of a limited length
        "dict": dict,
        "namespace": Namespace,
        "raise_exception": _raise_exception,
        "strftime_now": now.strftime,
    }
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja2's own filter escapes it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise _jinja2().TemplateError(message)
