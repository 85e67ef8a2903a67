"""A small TOML writer for configuration: what ``gridveil init`` needs, and no more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

Words = tuple[str, ...]
Scalar = str | int | float | bool | Words
Value = Scalar | Mapping[str, "Value"] | Sequence[Mapping[str, "Value"]]


_SCALARS = (str, int, float, bool, tuple)


def dumps(document: Mapping[str, Value]) -> str:
    """TOML text of nested tables and arrays of tables; keys are bare keys already.

    A tuple is an array of strings.
    """
    return "\n".join(_table(document, ())).lstrip("\n") + "\n"


def _table(table: Mapping[str, Value], path: tuple[str, ...]) -> Iterator[str]:
    # A key after a table's header would belong to that table.
    for key, value in table.items():
        if isinstance(value, _SCALARS):
            yield f"{key} = {_scalar(value)}"
    for key, value in table.items():
        inner = (*path, key)
        if isinstance(value, Mapping):
            yield f"\n[{'.'.join(inner)}]"
            yield from _table(value, inner)
        elif not isinstance(value, _SCALARS):
            for item in value:
                yield f"\n[[{'.'.join(inner)}]]"
                yield from _table(item, inner)


def _scalar(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, str):
        # JSON strings are TOML basic strings, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return repr(value)
