"""Words and numbers as a reader should see them: nothing invisible, no secret, no digit without meaning."""

import math
import re
import unicodedata
from typing import Any

NBSP = "\u00a0"  # a number and its unit stay on one line
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji are spelt with these two
_HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_SECRET_KEY = re.compile(r"(^|[._-])(token|secret|password|passwd|api_?key|credentials?)$", re.IGNORECASE)
_SECRET_TEXT = [
    (re.compile(r"://[^/\s@]+@"), "://(hidden)@"),
    (re.compile(r"(--?(?:token|password|secret|api[-_]?key)[= ])\S+", re.IGNORECASE), r"\1(hidden)"),
    (re.compile(r"\b(hf_|sk-)[A-Za-z0-9_-]{16,}"), r"\1(hidden)"),
]


def common_start(one: str, other: str) -> int:
    """How many characters both begin with.

    >>> common_start("abc", "abd"), common_start("ab", "abc"), common_start("", "")
    (2, 2, 0)
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def visible(text: str) -> str:
    """Control, bidi and other invisible characters spelt out; a page then shows what the text holds.

    >>> visible("a\\x1b[0m\\u202eb")
    'a␛[0m⟨U+202E⟩b'
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_spelt, text))


def _spelt(char: str) -> str:
    if char in "\n\t" or char in _JOINERS or unicodedata.category(char) not in _HIDDEN_CATEGORIES:
        return char
    code = ord(char)
    if code == 0x7F:
        return "␡"
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def redacted(key: str, value: Any) -> Any:
    """`value` without what would let somebody in: secret keys, credentials in addresses, known tokens.

    >>> redacted("index", "https://me:pw@example.org"), redacted("hub.token", "x"), redacted("max_tokens", 5)
    ('https://(hidden)@example.org', '(hidden)', 5)
    """
    if _SECRET_KEY.search(key):
        return "(hidden)"
    if isinstance(value, str):
        for pattern, replacement in _SECRET_TEXT:
            value = pattern.sub(replacement, value)
    return value


def number(value: Any) -> float | None:
    """`value` as a finite float, or None: a curve has a gap where a run wrote NaN, not a made-up point."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON has integers no float can hold
        return None


def shown(value: float | None) -> str:
    """Three significant digits, thousands grouped, a true minus sign.

    >>> [shown(x) for x in (0.91234, -0.000123, 12345.6, 2_500_000, 7.0, None)]
    ['0.912', '−1.23e−4', '12,346', '2.50\xa0M', '7', '–']
    """
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1e6:
        text = _with_unit(value)
    elif size >= 1000:
        text = f"{value:,.0f}"
    elif size and size < 1e-3:
        text = _scientific(value)
    else:
        text = f"{value:.0f}" if value == int(value) else f"{value:#.3g}".rstrip(".")
    return text.replace("-", "−")


def _with_unit(value: float) -> str:
    for power, unit in ((12, "T"), (9, "G"), (6, "M")):
        if abs(value) >= 10**power:
            return (
                f"{value / 10**power:#.3g}".rstrip(".") + f"{NBSP}{unit}"
                if abs(value) < 1e15
                else _scientific(value)
            )
    return f"{value:.3g}"


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def percent(value: float | None) -> str:
    """A fraction as a percentage with one decimal."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}{NBSP}%".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds as somebody would say them, two units at most.

    >>> [duration(x) for x in (0.34, 14.2, 95, 760, 12_000, 200_000)]
    ['0.34\xa0s', '14\xa0s', '1\xa0min 35\xa0s', '12\xa0min', '3\xa0h 20\xa0min', '2\xa0d 7\xa0h']
    """
    if seconds is None:
        return "–"
    if 0 < seconds < 1e-3:
        return f"<{NBSP}1{NBSP}ms"
    if seconds < 10:
        return f"{seconds:.2g}{NBSP}s"
    whole = int(seconds)
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            second = f" {rest}{NBSP}{small}" if rest and whole < 10 * size else ""
            return f"{whole // size}{NBSP}{unit}{second}"
    return f"{whole}{NBSP}s"
