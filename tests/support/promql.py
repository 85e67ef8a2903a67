"""What a PromQL expression asks for: metric names, and what it demands of their labels."""

from __future__ import annotations

import re
from dataclasses import dataclass

WORDS = frozenset(
    {
        *("and", "or", "unless", "by", "without", "bool", "on", "ignoring", "offset"),
        *("sum", "min", "max", "avg", "count", "rate", "increase", "time", "histogram_quantile"),
    }
)
"""Keywords and functions; an unknown one is taken for a metric, which then does not exist."""

_LISTS = re.compile(r"\b(by|without|on|ignoring)\s*\(([^)]*)\)")
_TIMES = re.compile(r"\[[^\]]*\]|\boffset\s+-?[0-9]+[a-z]+")
_SELECTOR = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)\s*(\{([^}]*)\})?")
_MATCHER = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')


@dataclass(frozen=True)
class Selector:
    """A metric, and the values that each label is compared with."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Question:
    """What an expression refers to."""

    selectors: tuple[Selector, ...]
    grouped_by: frozenset[str]


def question(expression: str) -> Question:
    """Everything an expression refers to; ValueError for a matcher that cannot be read."""
    grouped = {
        label.strip() for _, labels in _LISTS.findall(expression) for label in labels.split(",")
    }
    left = _TIMES.sub(" ", _LISTS.sub(" ", expression))
    selectors = []
    for found in _SELECTOR.finditer(left):
        if found[1] in WORDS and found[2] is None:
            continue
        selectors.append(Selector(found[1], _matchers(found[3] or "")))
    return Question(tuple(selectors), frozenset(grouped))


def _matchers(text: str) -> tuple[tuple[str, str, str], ...]:
    made, at = [], 0
    while text[at:].strip():
        found = _MATCHER.match(text, at)
        if found is None:
            raise ValueError(f"not a matcher: {text[at:]!r}")
        made.append((found[1], found[2], found[3]))
        at = found.end()
    return tuple(made)
