"""Registers of a meter by OBIS code, and the city's registers that are made of them.

Codes are those of IEC 62056-6-1 in the form ``A-B:C.D.E``. Values are whole Wh or varh.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gridveil.protocol.errors import MalformedInput, Reason

_CODE = re.compile(r"[0-9]{1,3}-[0-9]{1,3}:[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_CUMULATIVE = re.compile(r"1-[0-9]{1,3}:[1-8]\.8\.[0-9]{1,3}")
_MOST_CODES = 16

MODULUS = 10**9
"""Where a register of six digits before the comma, of kWh, starts again: 999,999.999 kWh in Wh."""

MOST_PER_HOUR = 400_000
"""More energy an hour than any home's connection carries, Wh or varh: 400 kW."""

DRAWN, FED_IN = "import_wh", "export_wh"
"""The city's usual names for what a home draws, and feeds in."""


@dataclass(frozen=True)
class Reading:
    """What a meter showed at one moment."""

    meter: str
    """Tells this meter from its successor: a serial number, or a digest of it."""
    at: int
    """Unix seconds UTC, by the meter's clock."""
    registers: Mapping[str, int] = field(repr=False)
    """Cumulative energy by OBIS code, whole Wh or varh, below the register's modulus."""
    heard: float | None = None
    """Unix seconds UTC, by the clock of who read it; None for what was recorded earlier."""
    counter: int | None = None
    """Of the message that it came in, which authenticated it; None if nothing did."""


@dataclass(frozen=True)
class RegisterMap:
    """Which of a meter's registers each of the city's registers is the sum of."""

    names: Mapping[str, tuple[str, ...]]
    """OBIS codes by the city's name of the register."""

    @property
    def codes(self) -> tuple[str, ...]:
        """Every code that a reading must hold, each once."""
        return tuple(dict.fromkeys(code for codes in self.names.values() for code in codes))

    def named(self, energy: Mapping[str, int]) -> dict[str, int]:
        """The sums by name, of energy by code."""
        return {name: sum(energy[code] for code in codes) for name, codes in self.names.items()}


P1_REGISTERS = RegisterMap({DRAWN: ("1-0:1.8.1", "1-0:1.8.2"), FED_IN: ("1-0:2.8.1", "1-0:2.8.2")})
"""Both tariffs of each direction, as DSMR 4 and 5 have them."""


def parse_registers(texts: Iterable[str]) -> RegisterMap:
    """The map in lines such as ``import_wh=1-0:1.8.1+1-0:1.8.2``.

    Raises:
        MalformedInput: CONFIG_INVALID for a name or code that is none, a code that is used twice
            or is no cumulative register of energy, or a name that comes twice.
    """
    names: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, separator, codes = text.partition("=")
        if not separator or not _NAME.fullmatch(name):
            raise _invalid("--register is NAME=CODE+CODE, such as import_wh=1-0:1.8.1+1-0:1.8.2")
        if name in names:
            raise _invalid(f"{name} is there twice")
        names[name] = tuple(_code(code) for code in codes.split("+"))
    _check_distinct([code for codes in names.values() for code in codes])
    return RegisterMap(names)


def _code(text: str) -> str:
    if not _CODE.fullmatch(text):
        raise _invalid("an OBIS code looks like 1-0:1.8.0")
    if not _CUMULATIVE.fullmatch(text):
        raise _invalid(f"{text} is no cumulative register of energy: those are 1-b:c.8.e")
    return text


def _check_distinct(codes: Sequence[str]) -> None:
    if len(set(codes)) != len(codes):
        raise _invalid("a register of the meter would be counted twice")
    if len(codes) > _MOST_CODES:
        raise _invalid(f"more than {_MOST_CODES} registers of a meter")


def advance(before: int, after: int, seconds: int, modulus: int = MODULUS) -> int | None:
    """Energy between two values of one register; None if it did not count up to there.

    A register that starts again from zero is told from one that was reset or set back by how much
    it would have counted: at most :data:`MOST_PER_HOUR`, and at least what an hour may bring.

    Args:
        before: the earlier value, Wh or varh.
        after: the later one.
        seconds: between them.
        modulus: where the register starts again.
    """
    counted = (after - before) % modulus
    return counted if counted * 3600 <= MOST_PER_HOUR * max(seconds, 3600) else None


def _invalid(what: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, what)
