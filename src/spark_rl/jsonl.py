"""A row of JSON lines from its bytes, and one wording for everything that can be wrong with it."""

from __future__ import annotations

import codecs
import json
import math
import re
from typing import Any

MAX_ROW_BYTES = 4 * 2**20
"""A longer row is no question but a mistake: a missing line break, a wrong file, or a whole file in one field."""
MAX_DEPTH = 100
"""Lists and objects inside of each other. Deeper nesting is a mistake, and some libraries give up at 255."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_row(raw: bytes, *, finite: bool = False) -> Any:
    """The value that a line holds.

    Args:
        finite: whether to refuse NaN and infinities, which Python reads and JSON does not know.

    Raises:
        ValueError: it is bad; the reason alone, since the caller knows the place.
    """
    text = row_text(raw)
    value = parse_json(text, finite=finite)
    return whole(value) if _SURROGATE.search(text) else value


def row_text(raw: bytes) -> str:
    """The text of a row. For one that is too long, `MAX_ROW_BYTES` and one byte more are enough to refuse it."""
    if len(raw) > MAX_ROW_BYTES:
        raise ValueError(f"is longer than {MAX_ROW_BYTES // 2**20} MiB; shorten it, or look for a missing line break")
    return decoded(raw)


def decoded(raw: bytes) -> str:
    """UTF-8 text, without the mark that some editors put before it."""
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text at byte {error.start + 1}; convert the file") from None


def parse_json(text: str, *, finite: bool = False) -> Any:
    """`json.loads`, whose many errors become one sentence."""
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite) if finite else json.loads(text)
        if text.count("[") + text.count("{") <= MAX_DEPTH or not is_too_deep(value):
            return value
        reason = "nested too deeply"
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos + 1}"
    except RecursionError:
        reason = "nested too deeply"
    except OverflowError as error:
        reason = str(error)
    except ValueError:  # Python's own limit
        reason = "a number has more than 4300 digits"
    raise ValueError(f"not valid JSON ({reason}); write every row as one object on one line")


def is_too_deep(value: Any) -> bool:
    """Whether lists and mappings stand inside of each other more than `MAX_DEPTH` deep, or without end (by YAML's
    anchors)."""
    open_ones: list[tuple[Any, int]] = [(value, 1)]
    seen: dict[int, int] = {}
    while open_ones:
        each, depth = open_ones.pop()
        if not isinstance(each, dict | list) or seen.get(id(each), 0) >= depth:
            continue
        if depth > MAX_DEPTH:
            return True
        seen[id(each)] = depth
        open_ones += [(inner, depth + 1) for inner in (each.values() if isinstance(each, dict) else each)]
    return False


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise OverflowError(f"{text} is no number there")
    return value


def whole(value: Any) -> Any:
    """The value itself, if all of it is text that can be written."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair (\\ud800 to \\udfff), which is no text; remove it") from None
    return value
