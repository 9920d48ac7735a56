"""How a problem and a completion are written as ids, and read again.

    text_format = TextFormat(tokenizer)                                 # <bos> prompt | text <eos>
    text_format = TextFormat(tokenizer, chat=load_chat_template(directory),
                             tags=textual_tags(tokenizer, num_strategies=6))
    row = (*text_format.prompt_ids("7 * 5?"), tag_id, *text_format.completion_ids("= 35"))

Between the two stands the fork: one id, the strategy's. A tag that is written in several ids keeps
those before its own in the prompt and those after it in the completion.
"""

import dataclasses
import functools
from collections.abc import Sequence

from reasoning.data.chat import ChatTemplate, chat_prompt_ids
from reasoning.data.tags import StrategyTags
from reasoning.data.tokenizers import TextTokenizer


@dataclasses.dataclass(frozen=True)
class TextFormat:
    """The ids around a fork.

    Attributes:
      tokenizer: of the text.
      chat: the prompt is the user's turn in this template; None: it is the text alone.
      tags: ids of the text that stand for strategies; None: ids from `num_ids` on, one each.
      num_ids: V of the model, which may have more rows than its tokenizer has ids; None: as many.
    """

    tokenizer: TextTokenizer
    chat: ChatTemplate | None = None
    tags: StrategyTags | None = None
    num_ids: int | None = None

    @functools.cached_property
    def eos_id(self) -> int:
        """What ends a completion: the end of the assistant's turn, or of the text.

        Of a model's stop ids, it is the one that its template writes after an answer.
        """
        if self.chat is None:
            return self.tokenizer.eos_id
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        text = self.chat.render(turns, add_generation_prompt=False)
        ends = [i for i in self.tokenizer.encode_template(text) if i in self.tokenizer.stop_ids]
        return ends[-1] if ends else self.tokenizer.eos_id

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """What may end a sampled completion: `eos_id` first, then the model's other stop ids."""
        return tuple(dict.fromkeys((self.eos_id, *self.tokenizer.stop_ids)))

    @property
    def pad_id(self) -> int:
        """What fills rows."""
        return self.tokenizer.pad_id

    def prompt_ids(self, text: str) -> list[int]:
        """The ids up to the fork."""
        if self.chat is not None:
            ids = chat_prompt_ids(self.tokenizer, self.chat, text)
        else:
            bos = self.tokenizer.bos_id
            ids = [*([] if bos is None else [bos]), *self.tokenizer.encode(text)]
        return [*ids, *(self.tags.prefix if self.tags else ())]

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """The ids after the fork, to the end."""
        suffix = self.tags.suffix if self.tags else ()
        return (*suffix, *self.tokenizer.encode(text), self.eos_id)

    def completion_text(self, ids: Sequence[int]) -> str:
        """The text of ids that were sampled from the fork on, without the tag that opens them."""
        ids = list(ids)
        if self.tags is None:
            first_tag = self.tokenizer.vocab_size if self.num_ids is None else self.num_ids
            opens = bool(ids) and ids[0] >= first_tag
            return self.tokenizer.decode_any(ids[1:] if opens else ids)
        if ids and ids[0] in self.tags.ids:
            ids, suffix = ids[1:], list(self.tags.suffix)
            ids = ids[len(suffix) :] if ids[: len(suffix)] == suffix else ids
        return self.tokenizer.decode_any(ids)
