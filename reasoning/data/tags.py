"""Strategy tags that are text of an imported model's own, such as the paper's `<think1>`.

    tags = textual_tags(tokenizer, num_strategies=6)         # <|im_start|><think1>\\n and so on
    row = (*prompt, *tags.prefix, tags.ids[tag], *tags.suffix, *trace)

The decision between strategies is one token at one position, the fork, and a policy's distribution
over strategies is its distribution over `ids` there. (Tags that are rows of their own behind the
vocabulary need no text: `reasoning.models.strategies`.)
"""

import dataclasses

from reasoning.data.imported_tokenizers import ImportedTokenizer

PATTERN = "<|im_start|><think{i}>\n"  # of Set Supervised Fine-Tuning's released code


@dataclasses.dataclass(frozen=True)
class StrategyTags:
    """How strategy 0..S-1 is written: `prefix`, its own id, `suffix`.

    Attributes:
      prefix: ids before the fork, the same for all.
      ids: `ids[tag]` is the id at the fork.
      suffix: ids after the fork, the same for all.

    Raises:
      ValueError: there are no ids, or two strategies share one.
    """

    prefix: tuple[int, ...]
    ids: tuple[int, ...]
    suffix: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError("ids=(): there is no strategy; give at least one id.")
        if len(set(self.ids)) < len(self.ids):
            raise ValueError(f"ids={self.ids}: every strategy needs an id of its own.")


def textual_tags(
    tokenizer: ImportedTokenizer, num_strategies: int, pattern: str = PATTERN
) -> StrategyTags:
    """The tags as the model's tokenizer reads them, numbered from 1 in the text.

    Args:
      pattern: the text of a tag, with "{i}" for its number; special tokens in it are meant.

    Raises:
      ValueError: `num_strategies` is below 1, the pattern has no "{i}", or two tags have different
        lengths (often from the 10th on) or differ in more or less than one id.
    """
    if num_strategies < 1:
        raise ValueError(f"num_strategies={num_strategies}: use at least 1.")
    if "{i}" not in pattern:
        raise ValueError(f"pattern={pattern!r} has no {{i}}: write it where the number belongs.")
    # At least two, to see which position is the fork.
    texts = [pattern.replace("{i}", str(i + 1)) for i in range(max(num_strategies, 2))]
    tags = [tuple(tokenizer.encode_template(text)) for text in texts]
    forks = [
        _fork(f"pattern={pattern!r}: {texts[0]!r} and {texts[i]!r}", tags[0], tags[i])
        for i in range(1, len(tags))
    ]
    fork = forks[0]
    for i, other in enumerate(forks[1:], start=2):
        if other != fork:
            raise ValueError(
                f"pattern={pattern!r}: {texts[1]!r} differs from {texts[0]!r} at position {fork} "
                f"and {texts[i]!r} at position {other}, but all tags must differ at one position: "
                "set the number off from the text around it."
            )
    ids = tuple(tag[fork] for tag in tags[:num_strategies])
    return StrategyTags(tags[0][:fork], ids, tags[0][fork + 1 :])


def _fork(names: str, first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """The one position at which two tags differ."""
    if len(first) != len(second):
        raise ValueError(
            f"{names} have {len(first)} and {len(second)} ids: use fewer strategies, or a pattern "
            "whose tags are equally long."
        )
    positions = [i for i, (a, b) in enumerate(zip(first, second)) if a != b]
    if len(positions) != 1:
        raise ValueError(
            f"{names} differ at {len(positions)} positions ({first} and {second}) instead of one: "
            "set the number off from the text around it."
        )
    return positions[0]
