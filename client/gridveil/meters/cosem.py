"""What a DLMS/COSEM push says: values by OBIS code, with scaler and unit where it says them.

Three forms are read: a list of what follows and then the values (IDIS and the Green Book's
push_object_list), a list of objects each with its code (Aidon), and codes and values in turn
(Kamstrup, Kaifa). dlms-cosem decodes the data, bounded here: by itself it reads on behind the end
of what there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from gridveil.meters.frames import fault
from gridveil.protocol.errors import MalformedInput

if TYPE_CHECKING:
    from dlms_cosem.dlms_data import DlmsDataParser

_MOST_DEPTH = 8
_CODE_BYTES = 6
_CURRENT = 255
"""Last part of a code: the value of now, not of a billing period."""

_VALUE, _SCALER_UNIT = 2, 3
"""Attributes of a register."""

_OF_THE_LIST = 3
"""Least elements of an entry in a list of what follows: class, code, attribute."""

_CLOCK = re.compile(r"0-[0-9]+:1\.0\.0")


@dataclass
class Item:
    """One object of a push."""

    value: Any = field(default=None, repr=False)
    """Whole number, bytes, or None for what is of no use here."""
    scaler: int | None = None
    """Power of ten."""
    unit: int | None = None
    """Of the Blue Book: 30 Wh, 32 varh."""


Items = dict[str, list[Item]]
"""By code, ``A-B:C.D.E``."""


def decode(body: bytes) -> Items:
    """The objects of a notification's body.

    Raises:
        MalformedInput: READING_INVALID with the fault ``data`` for bytes that are no data, or in
            none of the forms.
    """
    items: Items = {}
    for code, item in _objects(_parse(body)):
        items.setdefault(code, []).append(item)
    return items


def clock_of(items: Items) -> bytes | None:
    """The twelve bytes of the push's clock, if it has one."""
    found = [item for code, named in items.items() if _CLOCK.fullmatch(code) for item in named]
    values = {item.value for item in found if isinstance(item.value, bytes)}
    if len(values) > 1:
        raise fault("time", "two clocks that differ")
    return values.pop() if values else None


def _parse(body: bytes) -> Any:
    parser = _parser()
    try:
        (found,) = parser.parse(body)
    except MalformedInput:
        raise
    except Exception:
        # The library raises whatever it runs into.
        raise fault("data", "no data as A-XDR has it") from None
    return found.value if _name(found) in _LISTS else []


_LISTS = {"DataArray", "DataStructure"}
_NUMBERS = {
    "IntegerData",
    "LongData",
    "DoubleLongData",
    "Long64Data",
    "UnsignedIntegerData",
    "UnsignedLongData",
    "DoubleLongUnsignedData",
    "UnsignedLong64Data",
    "EnumData",
}


def _name(data: Any) -> str:
    return type(data).__name__


def _parser() -> DlmsDataParser:
    """dlms-cosem's parser, which ends where the bytes end, and goes no deeper than a push does."""
    from dlms_cosem.dlms_data import VARIABLE_LENGTH, DlmsDataParser, OctetStringData

    class Bounded(DlmsDataParser):  # type: ignore[misc]
        depth = 0

        def get_bytes(self, length: int) -> bytes:
            if length > len(self.buffer) - self.pointer:
                raise fault("data", "cut off: it ends before its last value")
            found: bytes = super().get_bytes(length)
            return found

        def parse_one_entry(self) -> Any:
            self.depth += 1
            if self.depth > _MOST_DEPTH:
                raise fault("data", f"nested more than {_MOST_DEPTH} deep")
            found = super().parse_one_entry()
            self.depth -= 1
            return found

        def decode_data(self, data_class: Any) -> Any:
            # Of texts, times and floats the bytes will do.
            plain = data_class.__name__ in _NUMBERS or not data_class.LENGTH
            if plain:
                return super().decode_data(data_class)
            if data_class.__name__ == "CompactArrayData":
                raise fault("data", "a compact array: not read")
            length = data_class.LENGTH
            if length == VARIABLE_LENGTH:
                length = self.decode_variable_integer()
            if data_class.__name__ == "BitStringData":
                length = (length + 7) // 8
            return OctetStringData(bytes(self.get_bytes(length)))

    return Bounded()


def _objects(top: Sequence[Any]) -> Iterator[tuple[str, Item]]:
    if not top:
        raise fault("data", "no list of objects")
    listed = _listed(top[0])
    if listed is not None:
        yield from _described(listed, top)
    elif all(_name(one) == "DataStructure" and one.value for one in top):
        for one in top:
            if not _is_code(one.value[0]):
                raise fault("data", "an object without its code")
            code = _code(one.value[0])
            if code is not None:
                yield from _with_rest(code, one.value[1:])
    else:
        # A list with its name first has an odd number of elements.
        turns = list(pairwise(top[len(top) % 2 :]))[::2]
        for named, value in turns:
            code = _code(named)
            if code is not None:
                yield code, Item(_plain(value))


def _listed(first: Any) -> list[tuple[str | None, int]] | None:
    """Code and attribute of each value that follows, if the first element lists them."""
    if _name(first) != "DataArray" or not first.value:
        return None
    found: list[tuple[str | None, int]] = []
    for entry in first.value:
        if _name(entry) != "DataStructure" or len(entry.value) < _OF_THE_LIST:
            return None
        _, code, attribute = entry.value[:_OF_THE_LIST]
        if _name(attribute) not in _NUMBERS:
            return None
        found.append((_code(code), attribute.value))
    return found


def _described(
    listed: list[tuple[str | None, int]], top: Sequence[Any]
) -> Iterator[tuple[str, Item]]:
    """Values in the order of the list, which may be its own first entry or not."""
    values = top[len(top) - len(listed) :]
    if not len(listed) <= len(top) <= len(listed) + 1:
        raise fault("data", "another number of values than the list says")
    found: dict[str, Item] = {}
    for (code, attribute), value in zip(listed, values, strict=True):
        if code is None:
            continue
        item = found.setdefault(code, Item())
        if attribute == _VALUE:
            item.value = _plain(value)
        elif attribute == _SCALER_UNIT:
            item.scaler, item.unit = _scaler_unit(value)
    yield from found.items()


def _with_rest(code: str, rest: Sequence[Any]) -> Iterator[tuple[str, Item]]:
    if rest:
        scaler, unit = _scaler_unit(rest[1]) if len(rest) > 1 else (None, None)
        yield code, Item(_plain(rest[0]), scaler, unit)


def _scaler_unit(data: Any) -> tuple[int | None, int | None]:
    parts = data.value if _name(data) == "DataStructure" else []
    numbers = [part.value for part in parts if _name(part) in _NUMBERS]
    if len(numbers) != 2:
        raise fault("data", "no scaler and unit")
    return numbers[0], numbers[1]


def _plain(data: Any) -> int | bytes | None:
    if _name(data) in _NUMBERS:
        return int(data.value)
    return bytes(data.value) if _name(data) == "OctetStringData" else None


def _is_code(data: Any) -> bool:
    raw = _plain(data)
    return isinstance(raw, bytes) and len(raw) == _CODE_BYTES


def _code(data: Any) -> str | None:
    """Of an octet string of six bytes; None for another, and for a past period's."""
    if not _is_code(data) or data.value[-1] != _CURRENT:
        return None
    a, b, c, d, e, _ = data.value
    return f"{a}-{b}:{c}.{d}.{e}"
