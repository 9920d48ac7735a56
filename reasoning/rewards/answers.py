r"""What a completion answers, and whether that is right: by fixed rules, exact, and fast.

    extract(r"... so \boxed{1,000}")              Extraction("1,000", None)
    compare("1000", "1,000", "number")            Verdict(True, "correct", ...)
    compare("1000", "1.000", "number")            Verdict(False, "wrong_value", ...)
    compare("2x", "x + x", "expression")          None: left to `reasoning.rewards.symbolic`

The rules are those of a careful teacher, who accepts another spelling of the same answer and does
not accept what leaves open which answer is meant:

* An answer is one value. `5,7`, `7 or 5` and `x=5=7` are `ambiguous`, whatever the truth.
* Numbers are compared as fractions: 18.0 is 18, 1.000 is not 1000, 0.333 is not 1/3, 7% is 0.07.
  Digits are ASCII; commas count only between groups of three.
* `1.5 \times 10^3` is the number 1500, and `10^3` is 1000; no other power or product is a number.
* A currency sign before a number, a degree sign and a unit after it (`18 dollars`, `60 miles per
  hour`, `5\text{ m/s}^2`) are passed over where the gold answer has none: the gold does not say
  which unit was asked for, so `18 cents` passes as well. Words that change the number (`18
  thousand`, `7 percent`) are no units; nor are, in a formula, letters that may be factors (`5 xy`).
* `x = 5` answers 5: one name and one equals sign. With names on both sides, both must agree.
* A calculation is not an answer: `3+4` or `\sum_{k=1}^4 k` for a gold number is `malformed`.
* Texts (choices, words, brackets) must be equal but for case, spaces, commas, a final full stop
  and LaTeX's wrappers; `A` is `(A)`. A gold expression that is a word (`No`, `Evelyn`) is a text;
  `x`, `xy` and `AB` are formulas, and the case of their letters counts.
"""

import functools
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from reasoning.data.tasks.base import Verdict

Rule = Literal["boxed", "hashes", "final_number"]
AnswerKind = Literal["number", "expression", "text"]

MAX_TAIL = 20_000  # characters, at the end of the completion, in which an answer is looked for
MAX_ANSWER = 512  # characters
MAX_DEPTH = 32  # brackets inside brackets
MAX_DIGITS = 64  # in a row


class Extraction(NamedTuple):
    """The answer of a completion, or the reason why there is none."""

    answer: str | None
    reason: str | None


class Number(NamedTuple):
    """A number as it was written: `5 km` is (5, "km")."""

    value: Fraction
    unit: str


# ---------------------------------------------------------------------------------- extraction

_BRACES = re.compile(r"(\\boxed\s*\{)|(\\\\(?!boxed)|\\[{}])|([{}])")
_JOINT = re.compile(r"(?:[\s$.,;&~\\(){}]|text|quad|or|and)*")
_TOO_MANY_DIGITS = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_HAS_DIGIT = re.compile("[0-9]")
_BEFORE_WORDS = ",;!?*_`'\"()[]"  # a full stop may open .5
_JOINTS = frozenset(["or", "and", "&", ",", "/", "|", "\\times", "\\cdot", "\u00d7", "\u00b7"])


def extract(
    completion: str, rules: Sequence[Rule] = ("boxed", "hashes"), thinking: bool = False
) -> Extraction:
    r"""Take the final answer out of a completion.

    Only what follows the last `</think>` counts; nothing does while a `<think>` is open. The first
    of the rules that finds anything decides:

      boxed: the content of the last `\boxed{...}`. If that never closes: `unbalanced`, not an
        earlier box. Different boxes side by side (`\boxed{7} or \boxed{8}`) are `ambiguous`; an
        earlier box elsewhere is a thought that was given up.
      hashes: what follows the first `####` on the last line that has one.
      final_number: the last word that has a digit; `5 or 7` and `5, 7` are `ambiguous`.

    Args:
      completion: any text.
      rules: in the order in which they are tried.
      thinking: the prompt ended inside of an open `<think>`.

    Returns:
      The answer without spaces around it, or one of the reasons `no_answer`, `unbalanced`,
      `ambiguous`, `too_long` (over MAX_ANSWER, MAX_DEPTH or MAX_DIGITS).

    Raises:
      ValueError: an unknown rule.
    """
    end = completion.rfind("</think>")
    if (end < 0 and thinking) or completion.find("<think>", end + 1) >= 0:
        return Extraction(None, "no_answer")
    tail = completion[max(end + len("</think>") if end >= 0 else 0, len(completion) - MAX_TAIL) :]
    found = Extraction(None, "no_answer")
    for rule in rules:
        if rule not in _FINDERS:
            raise ValueError(f"rules={tuple(rules)}: {rule!r} is none of {', '.join(_FINDERS)}.")
        found = _FINDERS[rule](tail)
        if found.reason != "no_answer":
            break
    if found.answer is not None and _is_too_long(found.answer):
        return Extraction(None, "too_long")
    return found


def _answer(text: str) -> Extraction:
    text = text.strip()
    return Extraction(text, None) if text else Extraction(None, "no_answer")


def _last_box(tail: str) -> Extraction:
    start = tail.find("\\boxed")
    if start < 0:
        return Extraction(None, "no_answer")
    opened: list[tuple[int, int] | None] = []  # each open brace: start and content if a box
    boxes: list[tuple[int, int, int]] = []  # start, content and end of each closed box
    last = -1
    for match in _BRACES.finditer(tail, start):
        if match[1]:
            last = match.start()
            opened.append((last, match.end()))
        elif match[3] == "{":
            opened.append(None)
        elif match[3] == "}" and opened:
            box = opened.pop()
            if box:
                while boxes and boxes[-1][0] > box[0]:  # the outermost box counts
                    boxes.pop()
                boxes.append((*box, match.start()))
    if last < 0:
        return Extraction(None, "no_answer")
    if not boxes or not boxes[-1][0] <= last < boxes[-1][2]:
        return Extraction(None, "unbalanced")
    contents = [tail[content:end].strip() for _, content, end in boxes]
    if _is_too_long(contents[-1]):
        return Extraction(None, "too_long")
    for i in range(len(boxes) - 1, 0, -1):
        between = tail[boxes[i - 1][2] + 1 : boxes[i][0]]
        if not _JOINT.fullmatch(between):
            break
        if contents[i - 1] != contents[i]:
            return Extraction(None, "ambiguous")
    answer = _unboxed(contents[-1])
    if "\\boxed" in answer:  # a box in the midst of another
        return Extraction(None, "ambiguous")
    return _answer(answer)


def _unboxed(text: str) -> str:
    r"""The answer of `\boxed{\boxed{7}}`, which is one, from the content of the outer box."""
    while (match := _BRACES.match(text)) and match[1] and text.endswith("}"):
        inner = text[match.end() : -1].strip()
        if _depths(inner, "{", "}")[0] < 0:  # `\boxed{5}, \boxed{7}`
            break
        text = inner
    return text


def _last_hashes(tail: str) -> Extraction:
    at = tail.rfind("####")
    if at < 0:
        return Extraction(None, "no_answer")
    line = tail[tail.rfind("\n", 0, at) + 1 :].partition("\n")[0]
    return _answer(line.partition("####")[2])


def _final_number(tail: str) -> Extraction:
    words = tail.split()
    last = next((i for i in reversed(range(len(words))) if _HAS_DIGIT.search(words[i])), None)
    if last is None:
        return Extraction(None, "no_answer")
    answer = words[last].rstrip(_BEFORE_WORDS + ".").lstrip(_BEFORE_WORDS)
    joined = last > 0 and words[last - 1].lower() in _JOINTS
    before = words[last - 1 - joined].strip(_BEFORE_WORDS) if last > joined else ""
    if _read_number(before, _UNIT_LETTERS["number"]) and before != answer:  # `5 or 7`, `5, 7`
        return Extraction(None, "ambiguous")
    return _answer(answer)


_FINDERS = {"boxed": _last_box, "hashes": _last_hashes, "final_number": _final_number}


def _depths(text: str, opening: str = "([{", closing: str = ")]}") -> tuple[int, int]:
    """The lowest and highest number of open brackets along a text."""
    depth = lowest = highest = 0
    for letter in text:
        if letter in opening:
            depth += 1
        elif letter in closing:
            depth -= 1
        lowest, highest = min(lowest, depth), max(highest, depth)
    return lowest, highest


def _is_too_long(answer: str) -> bool:
    if len(answer) <= MAX_DEPTH:
        return False
    return (
        len(answer) > MAX_ANSWER
        or _TOO_MANY_DIGITS.search(answer) is not None
        or _depths(answer)[1] > MAX_DEPTH
    )


# ---------------------------------------------------------------------------------- comparison

# Letters that are no ASCII and have only one meaning in an answer.
_LETTERS = str.maketrans({
    "\u2212": "-", "\u00a0": " ", "\u202f": " ", "\u00d7": r"\times ", "\u00b7": r"\cdot ",
    "\u00f7": r"\div ", "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u00b0": r"^\circ ",
    "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u2248": r"\approx ",
    "\u00b1": r"\pm ", "\u222a": r"\cup ",
})  # fmt: skip
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|displaystyle|textstyle)(?![A-Za-z])", ""),
        (r"\\!", ""),
        (r"(?<=[0-9])(?:\\,|\{,\})(?=[0-9]{3})", ","),
        (r"\\(?:quad|qquad)(?![A-Za-z])|\\[,:; ]|~", " "),
        (r"\\(?:dfrac|tfrac|cfrac)(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"\\(?:mathrm|mathbf|mathit|textbf|textit|textrm|mbox|operatorname)\s*\{", r"\\text{"),
        (r"\\\$", "$"),
        (r"\\%", "%"),
        (r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})\s*", ""),
        (r"\\(?:degree|degrees)(?![A-Za-z])\s*", ""),
        (r"\\(leq|geq|neq)(?![A-Za-z])", lambda match: "\\" + match[1][:2]),
        (r"([_^])\s*\{\s*(\w)\s*\}(?!\s*[0-9])", r"\1\2"),
        (r"\s+", " "),
    )
]
_UNUSUAL = re.compile(r"[\\~{]|\s\s|[^\S ]")
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))
_NUMBER = re.compile(
    r"""(?P<sign>[-+]?)\ ?(?:[$£€]\ ?(?P<late>[-+]?))?
    (?:(?:(?P<whole>[0-9]+)\ ?)?\\frac\ ?\{\ ?(?P<top>-?[0-9]+)\ ?\}\ ?\{\ ?(?P<below>[0-9]+)\ ?\}
      |(?:(?P<full>[0-9]+)\ )?(?P<over>[0-9]+)\ ?/\ ?(?P<under>[0-9]+)
      |(?P<integer>[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)?(?P<decimals>\.[0-9]+)?
       (?:(?:(?<=[0-9])\ ?\\(?:times|cdot)\ ?)?(?<![0-9.])
        10\ ?\^\ ?(?P<brace>\{\ ?)?(?P<power>-?[0-9]{1,3})(?(brace)\ ?\}))?)
    (?:\ ?(?P<percent>%)
      |\ ?\\text\ ?\{(?P<words>[A-Za-z/ ]+(?:\^[23]\ ?)?)\}(?P<raised>\ ?\^\ ?[23])?
      |\ (?P<bare>[A-Za-z ]+(?:/\ ?[A-Za-z]+)?))?""",
    re.VERBOSE,
)
# The form of most answers: a whole number, perhaps with a dollar sign or `.00`.
_WHOLE_NUMBER = re.compile(r"(-?)\$?([0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.0*)?")
# Words that change the number before them; any other word after a number may be its unit.
_NUMBER_WORDS = """
half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths
eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths
zero one two three four five six seven eight nine ten eleven twelve twenty hundred hundreds
thousand thousands million millions billion billions trillion trillions dozen dozens score pair
pairs percent percents pct times squared cubed factorial power root pi mod base plus minus point
over negative positive lakh crore gross grand mil mille bn mn
sqrt choose alpha beta gamma theta infinity
and or not nor no but to than then if else maybe perhaps is was about wrong false
"""
_NO_UNITS = frozenset(_NUMBER_WORDS.split())
# Units that are known by fewer letters than another word needs.
_UNIT_NAMES = """
m g s h l n j w v a c f mm cm dm km in ft yd mi mg kg lb lbs oz ml hr hrs min sec day mph kph
"""
_UNITS = frozenset(_UNIT_NAMES.split())
_MAX_UNIT_WORDS = 3
_UNIT_LETTERS = {"number": 2, "expression": 4}  # in a formula, a few letters are factors
_NAME = re.compile(
    r"((?:[A-Za-z]|\\[A-Za-z]+)(?:_(?:\w|\{\w+\}))?(?:\([a-z]\))?) ?(?:=|\\in(?![A-Za-z])) ?",
    re.ASCII,
)
_RELATION = re.compile(r"[=<>:]|\\(?:le|ge|ne|lt|gt|approx|equiv|sim|cong|to|in|mid)(?![A-Za-z])")
_SEPARATOR = re.compile(
    r"[,;&]|\\(?:pm|mp|cup|vee|lor|\\)(?![A-Za-z])|(?<![A-Za-z\\])(?:or|and|not)(?![A-Za-z])"
)
_THOUSANDS = re.compile(r"(?<![0-9,.])([1-9][0-9]{0,2}(?:,[0-9]{3})+)(?![0-9,])")
# A calculation that is still to be made; 2 \times 10^3 is a number.
_OPERATOR = re.compile(r"\\(?:int|sum|prod|lim|oint|iint|bigcup|bigcap)(?![A-Za-z])")
_ARITHMETIC = re.compile(
    r"!|(?<=[\w)}\]]) ?[-+*/]|\\(?:cdot|div|binom|pmod|bmod|gcd|lcm|max|min)(?![A-Za-z])"
    r"|\\times(?! ?10 ?\^)",
    re.ASCII,
)
_BASE = re.compile(r"[0-9)}] ?_ ?\{? ?(?:[0-9]|\\text)")
_DIGITS_APART = re.compile("[0-9] [0-9]")
_TEXT_COMMAND = re.compile(r"\\text ?\{([^{}]*)\}")
# A word, perhaps among others; other letters, such as xy and AB, are products.
_WORDS = re.compile(
    r"(?:[A-Za-z]+ )*(?:[A-Za-z]{4,}|[A-Z][a-z]+|yes|no|odd|one|two|six|ten)(?: [A-Za-z]+)*"
)
_LONG_WORDS = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}")
_CHOICE = re.compile(r"\(([a-z])\)")
_BRACKETS = re.compile(r"[][(){}<> ]+")


def compare(gold: str, answer: str, kind: AnswerKind) -> Verdict | None:
    """Judge an answer by exact comparison, by the rules at the head of this file.

    Args:
      gold: the right answer.
      answer: as `extract` gives it; beyond its limits it is `too_long`.
      kind: what the gold answer is: a "number", a "text" to be repeated, or an "expression", which
        has many spellings.

    Returns:
      A Verdict with the method "exact"; None if only algebra can tell, which may be for the kind
      "expression" alone.

    Raises:
      ValueError: an unknown kind, an empty gold answer, or no number where the kind is "number".
    """
    if _is_too_long(answer):
        return _verdict(answer, "too_long")
    if kind == "number":
        return _verdict(answer, _judge_number(_gold_number(gold), answer))
    if not gold.strip():
        raise ValueError(f"gold={gold!r}: a gold answer must not be empty; drop the problem.")
    if kind == "text":
        return _verdict(answer, _judge_text(gold, answer))
    if kind != "expression":
        raise ValueError(f"kind={kind!r}: must be number, expression or text.")
    reason = _judge_expression(gold, answer)
    return None if reason is None else _verdict(answer, reason)


def vote_key(answer: str, kind: AnswerKind) -> str:
    r"""One text for the spellings of an answer, so that votes on it come together.

    A number is its fraction (`$18.00` and `x = 18` are `18`), a text or formula its plain spelling.
    What only algebra finds equal keeps keys of its own; units are left out.
    """
    if kind == "text":
        return _plain_text(answer)
    whole = _WHOLE_NUMBER.fullmatch(answer)
    if whole:
        return str(_whole(whole))
    text = _without_name(_plain(answer))
    number = _read_number(text, _UNIT_LETTERS[kind])
    if number:
        return str(number.value)
    if len(_bare(text)) == 1:
        return _bare(text)
    if _is_text(text):
        return _plain_text(text)
    return text if _DIGITS_APART.search(text) else text.replace(" ", "")


def _verdict(answer: str, reason: str) -> Verdict:
    return Verdict(reason == "correct", reason, answer)


def _equal(same: bool) -> str:
    return "correct" if same else "wrong_value"


@functools.lru_cache(maxsize=65_536)
def _gold_number(gold: str) -> Number:
    if gold.isdecimal() and gold.isascii():
        return Number(Fraction(int(gold)), "")
    number = _read_number(_plain(gold), _UNIT_LETTERS["number"])
    if number is None:
        raise ValueError(
            f"gold={gold!r}: is no number; give this problem the kind 'expression' or 'text'."
        )
    return number


def _whole(match: re.Match[str]) -> int:
    return int(match[1] + match[2].replace(",", ""))


def _judge_number(gold: Number, answer: str) -> str:
    whole = _WHOLE_NUMBER.fullmatch(answer)
    if whole:
        return _equal(_whole(whole) == gold.value)
    text = _without_name(_plain(answer))
    number = _read_number(text, _UNIT_LETTERS["number"])
    if number is None:
        several = _SEPARATOR.search(text) or _RELATION.search(text)
        return "ambiguous" if several else "malformed"
    return _equal(_same_number(gold, number))


def _judge_text(gold: str, answer: str) -> str:
    return _equal(_plain_text(gold) == _plain_text(answer))


def _judge_expression(gold: str, answer: str) -> str | None:
    """The reason of the verdict, or None if algebra has to find it."""
    gold, answer = _plain(gold), _plain(answer)
    if gold == answer:
        return "correct"
    if not _NAME.match(gold):
        answer = _without_name(answer)
    elif not _NAME.match(answer):
        gold = _without_name(gold)
    if "," not in gold:
        answer = _THOUSANDS.sub(lambda match: match[1].replace(",", ""), answer)
    if gold.replace(" ", "") == answer.replace(" ", "") and not _DIGITS_APART.search(answer):
        return "correct"
    wanted, given = (_read_number(text, _UNIT_LETTERS["expression"]) for text in (gold, answer))
    if wanted and given:
        return _equal(_same_number(wanted, given))
    if _is_text(gold):
        return _judge_text(gold, answer)
    if gold.isalpha() and gold == _bare(answer):
        return "correct"
    return _refusal(gold, answer, wanted is not None)


def _is_text(gold: str) -> bool:
    """A choice, words, or what LaTeX sets as text; letters alone are a product."""
    if _TEXT_COMMAND.sub("", gold).strip(" ()") == "" or _WORDS.fullmatch(gold):
        return True
    return _CHOICE.fullmatch(gold.lower()) is not None


def _bare(text: str) -> str:
    r"""The letters of `\text{(C)}`."""
    return _TEXT_COMMAND.sub(r"\1", text).strip(" ()")


def _refusal(gold: str, answer: str, wants_number: bool) -> str | None:
    """Why an answer is not given to the algebra, which is more lenient than a careful teacher."""
    if _OPERATOR.search(answer) and not _OPERATOR.search(gold):
        return "malformed"
    for pattern in (_SEPARATOR, _RELATION):
        if len(pattern.findall(answer)) > len(pattern.findall(gold)):
            return "ambiguous"
    if ("%" in gold) != ("%" in answer) or _BASE.search(gold) or _BASE.search(answer):
        return "wrong_value"  # the algebra passes over percent signs and bases
    if not answer.isascii() or not answer.isprintable() or "$" in answer or '"' in answer:
        return "malformed"
    for pattern in (_DIGITS_APART, _TEXT_COMMAND):
        if pattern.search(answer) and not pattern.search(gold):
            return "malformed"
    if not wants_number:
        return None
    small = answer.lower()  # the algebra passes over the words of `7 percent`
    if "per cent" in small or any(word in _NO_UNITS for word in _LONG_WORDS.findall(small)):
        return "malformed"
    return "malformed" if _ARITHMETIC.search(answer) else None


def _plain(text: str) -> str:
    """One spelling for the many of LaTeX; a text that is plain already is left as it is."""
    if not text.isascii():
        text = text.translate(_LETTERS)
    text = text.strip()
    if _UNUSUAL.search(text):
        for pattern, replacement in _SPELLINGS:
            text = pattern.sub(replacement, text)
    while (inner := _unwrapped(text)) != text:
        text = inner
    return text


def _unwrapped(text: str) -> str:
    """A text without one of the wrappers or full stops around it."""
    text = text.strip()
    if text.endswith(".") and not text.endswith(".."):
        return text[:-1]
    for left, right in _WRAPPERS:
        inner = text[len(left) : -len(right)]
        around = text.startswith(left) and text.endswith(right)
        if around and inner:
            return inner
    if text.startswith("{") and text.endswith("}") and _depths(text[1:-1], "{", "}")[0] == 0:
        return text[1:-1]
    return text


def _without_name(text: str) -> str:
    """The right side of `x = 5`."""
    match = _NAME.match(text)
    return text[match.end() :] if match else text


def _read_number(text: str, unit_letters: int) -> Number | None:
    r"""The number that a plain text writes, or None if it is not one number and nothing else.

    Args:
      text: as `_plain` leaves it.
      unit_letters: what a word after the number needs to be a unit outside of `\text`.
    """
    wrapped = _TEXT_COMMAND.fullmatch(text)
    match = _NUMBER.fullmatch(wrapped[1].strip() if wrapped else text)
    if not match or (match["sign"] and match["late"]):
        return None
    words = (match["words"] or match["bare"] or "") + (match["raised"] or "")
    unit = _unit(words, 1 if match["words"] else unit_letters)
    if unit is None:
        return None
    top, below = match["top"] or match["over"], match["below"] or match["under"]
    if below:
        if not int(below):
            return None
        value = int(match["whole"] or match["full"] or 0) + Fraction(int(top), int(below))
    elif match["integer"] or match["decimals"] or match["power"]:
        digits = (match["integer"] or "").replace(",", "") + (match["decimals"] or "")
        value = Fraction(digits or 1)  # 10^3
        if match["power"]:
            value *= Fraction(10) ** int(match["power"])
    else:
        return None
    if "-" in (match["sign"], match["late"]):
        value = -value
    return Number(value / 100 if match["percent"] else value, unit)


@functools.lru_cache(maxsize=4096)
def _unit(text: str, letters: int) -> str | None:
    """One spelling of the unit that the words after a number are; None if they are none.

    A word needs so many letters, two at least, unless it is a known unit; one of a single letter is
    that only in LaTeX's text (letters=1) or after `per`.
    """
    text = re.sub(r" ?\^ ?", "^", text.lower().replace("/", " per "))
    words = text.split()
    if words.count("per") > 1 or words[-1:] == ["per"]:
        return None
    names = [word.partition("^")[0] for word in words]
    if len(names) - names.count("per") > _MAX_UNIT_WORDS or "per cent" in text:
        return None
    for before, name in zip(["", *names], names):
        known = name in _UNITS and (letters == 1 or before == "per" or len(name) > 1)
        if name in _NO_UNITS or not (name == "per" or known or len(name) >= max(2, letters)):
            return None
    return " ".join(words)


def _same_number(gold: Number, given: Number) -> bool:
    """Equal, and of one unit where both name theirs."""
    return gold.value == given.value and (
        not gold.unit or not given.unit or gold.unit == given.unit
    )


def _plain_text(text: str) -> str:
    """One spelling for a choice, a word, a list of words or a run of brackets."""
    text = text.strip()
    if not _BRACKETS.fullmatch(text):
        text = _TEXT_COMMAND.sub(r"\1", _plain(text)).strip("'\" ")
    text = text.replace("\\{", "{").replace("\\}", "}").casefold()
    if _BRACKETS.fullmatch(text):
        return text.replace(" ", "")
    text = " ".join(text.replace(",", " ").split())
    choice = _CHOICE.fullmatch(text)
    return choice[1] if choice else text
