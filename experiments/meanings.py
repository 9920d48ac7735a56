"""What `--help=config` says of each setting: the comment behind the line that sets it.

    meanings("experiments/configs/countdown.py:full")["rl.printed"]
"""

import functools
import linecache
import sys
import tokenize
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from absl import flags
from ml_collections import ConfigDict, config_flags


def meanings(file: str) -> dict[str, str]:
    """`section.key` -> the comment, of the settings that have one.

    A configuration is made by functions, loops and other files: which line sets a key shows as it
    is made. Of several lines that set a key, the last with a comment tells.

    Args:
      file: a configuration's file that loads, or FILE:PRESET.
    """
    loading = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=loading)
    found: dict[tuple[int, str], str] = {}
    sections, set_item = [], ConfigDict.__setitem__  # kept, so that no other has their ids

    def note(section: ConfigDict, key: str, value: Any) -> None:
        set_item(section, key, value)
        frame = sys._getframe(1)
        while frame.f_globals.get("__name__", "").startswith("ml_collections."):
            frame = frame.f_back
        if comment := comments(frame.f_code.co_filename).get(frame.f_lineno):
            found[id(section), key] = comment
            sections.append(section)

    def walk(section: ConfigDict, prefix: str = "") -> Iterator[tuple[str, str]]:
        for key, value in section.items():
            if isinstance(value, ConfigDict):
                yield from walk(value, f"{prefix}{key}.")
            elif (id(section), key) in found:
                yield prefix + key, found[id(section), key]

    with patch.object(ConfigDict, "__setitem__", note):
        loading(["", f"--config={file}"])
    return dict(walk(loading["config"].value))


@functools.cache
def comments(path: str) -> dict[int, str]:
    """Line -> the comment behind what stands there, of a Python file."""
    tokens = tokenize.generate_tokens(iter(linecache.getlines(path)).__next__)
    return {
        token.start[0]: token.string.lstrip("# ") for token in tokens
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip()
    }
