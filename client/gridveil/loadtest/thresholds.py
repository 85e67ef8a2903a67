"""``--fail-if``: when a load test has failed, as a comparison of one figure with one number.

The grammar: ``NAME OPERATOR NUMBER[UNIT]``, spaces allowed between them; operators ``<``, ``<=``,
``>``, ``>=``, ``==``, ``!=``. Durations (p50, p90, p99, p99.9, max) take us, ms or s; rate takes
/s; counts take none, or % of what was sent. ``total!=exact`` and ``total==exact`` ask whether every
released total is that of the accepted reports.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gridveil.protocol.errors import MalformedInput, Reason

COUNTS = ("sent", "accepted", "duplicates", "refused", "errors", "retries")
DURATIONS = ("p50", "p90", "p99", "p99.9", "max")
RATE, TOTAL = "rate", "total"
NAMES = (*COUNTS, *DURATIONS, RATE, TOTAL)
_UNITS: Mapping[str, Mapping[str, float]] = {
    **{name: {"us": 1e-6, "ms": 1e-3, "s": 1.0} for name in DURATIONS},
    **{name: {"": 1.0, "%": 0.01} for name in COUNTS},
    RATE: {"/s": 1.0},
}
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_EXPRESSION = re.compile(r"\s*([^\s<>=!]+)\s*(<=|>=|==|!=|<|>)\s*([^\s<>=!]+)\s*", re.ASCII)
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)([a-z/%]*)", re.ASCII)
_EXACT = "exact"

Figures = Mapping[str, float]
"""By name: counts, seconds, reports a second; ``total`` is 1 if all totals are exact, else 0. A
figure that there is none of is left out."""


@dataclass(frozen=True)
class Threshold:
    """One condition under which a test has failed."""

    text: str
    name: str
    operator: str
    number: float
    of_sent: bool = False
    """The number is a share of what was sent."""

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """The condition in an argument of ``--fail-if``, or CONFIG_INVALID saying what is wrong."""
        found = _EXPRESSION.fullmatch(text)
        if found is None:
            raise _invalid(text, "is not NAME OPERATOR NUMBER, such as p99>1s")
        name, sign, value = found.groups()
        if name not in NAMES:
            raise _invalid(text, f"has an unknown name; there are {', '.join(NAMES)}")
        if name == TOTAL:
            if value != _EXACT or sign not in ("==", "!="):
                raise _invalid(text, "must be total!=exact or total==exact")
            return cls(text, name, sign, 1.0)
        number, units = _NUMBER.fullmatch(value), _UNITS[name]
        if number is None or number[2] not in units:
            known = " or ".join(unit or "no unit" for unit in units)
            raise _invalid(text, f"needs a number with {known}")
        return cls(text, name, sign, float(number[1]) * units[number[2]], number[2] == "%")

    def holds(self, figures: Figures) -> bool:
        """Whether the condition is met, and so the test has failed; a missing figure meets it."""
        if self.name not in figures:
            return True
        number = self.number * figures["sent"] if self.of_sent else self.number
        return _OPERATORS[self.operator](figures[self.name], number)

    def told(self, figures: Figures) -> str:
        """What the figure is, for people."""
        value = figures.get(self.name)
        if value is None:
            return f"{self.name} is not known"
        if self.name == TOTAL:
            return "every total is exact" if value else "not every total is exact"
        if self.name in DURATIONS:
            return f"{self.name} is {value * 1e3:,.1f} ms"
        return (
            f"{self.name} is {value:,.1f}/s" if self.name == RATE else f"{self.name} is {value:,}"
        )


def _invalid(text: str, what: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, f"--fail-if {text!r} {what}")
