"""Valid protobuf messages, spoilt in the ways that parsers and handlers may stumble over.

    how, data = mutate(message_bytes, Random(7), other_message_bytes)

Bytes are changed blindly, and with the wire format in mind (fields, tags, lengths, varints), at any
depth of nested messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

CANARY = b"CANARY meter 4711 used 1234 Wh"
"""What a mutation puts into fields: whoever repeats it repeats what callers send."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTREMES = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_SIZES = (0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 4096)


class Field(NamedTuple):
    """A field as it stands on the wire."""

    number: int
    kind: int
    value: int | bytes
    length: int | None = None
    """Stated instead of the right one."""
    padding: int = 0
    """Bytes by which the varint of a number is longer than need be."""


def mutate(data: bytes, chance: Random, others: Sequence[bytes] = ()) -> tuple[str, bytes]:
    """A spoilt message, and what was done to it: one to three mutations."""
    names = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        kind = chance.choice(_ON_BYTES if chance.random() < 0.25 else _ON_FIELDS)
        if kind is _splice:
            data = _splice(data, chance, others)
        elif kind in _ON_BYTES:
            data = kind(data, chance)
        else:
            data = _on_fields(kind, data, chance)
        names.append(kind.__name__.strip("_"))
    return "+".join(names), data


def random_message(kind: type[Message], chance: Random, depth: int = 0) -> Message:
    """Some message of a type, each field set or not."""
    message: Any = kind()
    for field in message.DESCRIPTOR.fields:
        if depth > 3 or chance.random() < 0.3:
            continue
        if field.message_type is not None:
            nested = random_message(GetMessageClass(field.message_type), chance, depth + 1)
            held = getattr(message, field.name)
            if field.is_repeated:
                if not field.message_type.GetOptions().map_entry:
                    held.add().CopyFrom(nested)
            else:
                held.CopyFrom(nested)
        elif field.is_repeated:
            getattr(message, field.name).append(_scalar(field, chance))
        else:
            setattr(message, field.name, _scalar(field, chance))
    return message  # type: ignore[no-any-return]


def _scalar(field: FieldDescriptor, chance: Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_STRING:
            return chance.choice(("", "gridveil.v1.Totals", CANARY.decode(), "é\n{}"))
        case FieldDescriptor.CPPTYPE_STRING:
            return chance.randbytes(chance.choice(_SIZES))
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return chance.choice((0.0, -0.0, float("inf"), float("nan"), 1e300))
        case FieldDescriptor.CPPTYPE_ENUM:
            return chance.choice((0, 1, 2, 99))
        case FieldDescriptor.CPPTYPE_INT32:
            return chance.choice((0, 1, -1, 2**31 - 1, -(2**31)))
        case FieldDescriptor.CPPTYPE_INT64:
            return chance.choice((0, 900, -900, 2**53, 2**63 - 1, -(2**63)))
        case FieldDescriptor.CPPTYPE_UINT32:
            return chance.choice((0, 1, 100, 2**32 - 1))
        case _:
            return chance.choice((0, 1, 2**63, 2**64 - 1))


# Blind changes of bytes.


def _flip_bit(data: bytes, chance: Random) -> bytes:
    if not data:
        return b"\x01"
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def _set_bytes(data: bytes, chance: Random) -> bytes:
    at, size = chance.randint(0, len(data)), chance.randint(1, 8)
    return data[:at] + chance.randbytes(size) + data[at + size :]


def _truncate(data: bytes, chance: Random) -> bytes:
    return data[: chance.randint(0, max(0, len(data) - 1))]


def _extend(data: bytes, chance: Random) -> bytes:
    return data + chance.randbytes(chance.choice((1, 2, 8, 100)))


def _delete_slice(data: bytes, chance: Random) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + data[at + chance.randint(1, 40) :]


def _double_slice(data: bytes, chance: Random) -> bytes:
    at = chance.randint(0, len(data))
    piece = data[at : at + chance.choice((1, 8, 64, 2000))]
    return data[:at] + piece + data[at:]


def _swap_slices(data: bytes, chance: Random) -> bytes:
    first, second, third = sorted(chance.randint(0, len(data)) for _ in range(3))
    return data[:first] + data[second:third] + data[first:second] + data[third:]


def _double_all(data: bytes, _chance: Random) -> bytes:
    return data + data


def _garbage(_data: bytes, chance: Random) -> bytes:
    return chance.randbytes(chance.choice((1, 2, 10, 300)))


def _deep_nesting(_data: bytes, chance: Random) -> bytes:
    number = chance.randint(1, 4)
    nested = b""
    for _ in range(chance.choice((20, 120))):
        nested = encode([Field(number, _BYTES, nested)])
    return nested


def _splice(data: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
    other = chance.choice(others) if others else b""
    return data[: chance.randint(0, len(data))] + other[chance.randint(0, len(other)) :]


# Changes of fields.


def _drop_field(fields: list[Field], chance: Random) -> list[Field]:
    at = chance.randrange(len(fields))
    return fields[:at] + fields[at + 1 :]


def _double_field(fields: list[Field], chance: Random) -> list[Field]:
    at = chance.randrange(len(fields))
    return fields[: at + 1] + fields[at:]


def _shuffle_fields(fields: list[Field], chance: Random) -> list[Field]:
    return chance.sample(fields, len(fields))


def _swap_values(fields: list[Field], chance: Random) -> list[Field]:
    """Right types, values of each other."""
    one, two = chance.randrange(len(fields)), chance.randrange(len(fields))
    changed = list(fields)
    changed[one] = fields[one]._replace(value=fields[two].value, kind=fields[two].kind)
    changed[two] = fields[two]._replace(value=fields[one].value, kind=fields[one].kind)
    return changed


def _renumber(fields: list[Field], chance: Random) -> list[Field]:
    number = chance.choice((0, 1, 2, 3, 4, 9, 15, 16, 2047, 2**29 - 1))
    return _replace_one(fields, chance, lambda field: field._replace(number=number))


def _retype(fields: list[Field], chance: Random) -> list[Field]:
    kind = chance.choice((0, 1, 2, 3, 4, 5, 6, 7))
    return _replace_one(fields, chance, lambda field: field._replace(kind=kind))


def _pad_varint(fields: list[Field], chance: Random) -> list[Field]:
    padding = chance.choice((1, 2, 8, 20))
    return _replace_one(fields, chance, lambda field: field._replace(padding=padding))


def _lie_about_length(fields: list[Field], chance: Random) -> list[Field]:
    def lie(field: Field) -> Field:
        size = len(field.value) if isinstance(field.value, bytes) else 0
        lengths = (0, max(0, size - 1), size + 1, 2 * size, 2**31 - 1, 2**32, 2**64 - 1)
        return field._replace(length=chance.choice(lengths), kind=_BYTES)

    return _replace_one(fields, chance, lie)


def _extreme(fields: list[Field], chance: Random) -> list[Field]:
    value = chance.choice((*_EXTREMES, chance.getrandbits(64)))
    return _replace_one(fields, chance, lambda field: field._replace(value=value, kind=_VARINT))


def _step(fields: list[Field], chance: Random) -> list[Field]:
    """Numbers beside the right one."""

    def step(field: Field) -> Field:
        if isinstance(field.value, int):
            moved = (field.value + chance.choice((-900, -1, 1, 900))) % 2**64
            return field._replace(value=moved)
        return field

    return _replace_one(fields, chance, step)


def _resize(fields: list[Field], chance: Random) -> list[Field]:
    def resize(field: Field) -> Field:
        data = field.value if isinstance(field.value, bytes) else bytes(8)
        size = chance.choice((*_SIZES, max(0, len(data) - 1), len(data) + 1, 2 * len(data)))
        return field._replace(value=data[:size].ljust(size, b"\xa5"), kind=_BYTES)

    return _replace_one(fields, chance, resize)


def _flip_in_value(fields: list[Field], chance: Random) -> list[Field]:
    def flip(field: Field) -> Field:
        if isinstance(field.value, bytes):
            return field._replace(value=_flip_bit(field.value, chance))
        return field._replace(value=field.value ^ 1 << chance.randrange(64))

    return _replace_one(fields, chance, flip)


def _zero_or_fill(fields: list[Field], chance: Random) -> list[Field]:
    def fill(field: Field) -> Field:
        if isinstance(field.value, bytes):
            return field._replace(value=chance.choice((b"\0", b"\xff")) * len(field.value))
        return field._replace(value=0)

    return _replace_one(fields, chance, fill)


def _canary(fields: list[Field], chance: Random) -> list[Field]:
    def mark(field: Field) -> Field:
        size = len(field.value) if isinstance(field.value, bytes) else 0
        value = CANARY if chance.random() < 0.5 else CANARY.ljust(size)[: max(size, 16)]
        return field._replace(value=value, kind=_BYTES)

    return _replace_one(fields, chance, mark)


def _repeat_many(fields: list[Field], chance: Random) -> list[Field]:
    at = chance.randrange(len(fields))
    value = fields[at].value
    size = len(value) if isinstance(value, bytes) else 1
    return fields + [fields[at]] * chance.choice((2, 150, min(5000, 2**20 // (size + 1) + 1)))


def _unknown_field(fields: list[Field], chance: Random) -> list[Field]:
    number = chance.choice((17, 99, 1000, 2**29 - 1))
    value: int | bytes = chance.choice((CANARY, 7))
    kind = _BYTES if isinstance(value, bytes) else _VARINT
    return [*fields, Field(number, kind, value)]


def _replace_one(
    fields: list[Field], chance: Random, change: Callable[[Field], Field]
) -> list[Field]:
    at = chance.randrange(len(fields))
    return [*fields[:at], change(fields[at]), *fields[at + 1 :]]


def _on_fields(
    change: Callable[[list[Field], Random], list[Field]], data: bytes, chance: Random
) -> bytes:
    """Apply it to the message, or to one inside it."""
    fields = decode(data)
    if not fields:
        return _extend(data, chance)
    at = chance.randrange(len(fields))
    inner = fields[at].value
    if isinstance(inner, bytes) and chance.random() < 0.4 and decode(inner):
        fields[at] = fields[at]._replace(value=_on_fields(change, inner, chance))
        return encode(fields)
    return encode(change(fields, chance))


# The wire format.


def decode(data: bytes) -> list[Field] | None:
    """The fields of a message; None if it is none."""
    fields, at = [], 0
    try:
        while at < len(data):
            tag, at = _read_varint(data, at)
            number, kind = tag >> 3, tag & 7
            value: int | bytes
            if kind == _VARINT:
                value, at = _read_varint(data, at)
            else:
                size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
                if kind == _BYTES:
                    size, at = _read_varint(data, at)
                if size is None or at + size > len(data) or not number:
                    return None
                value, at = data[at : at + size], at + size
            fields.append(Field(number, kind, value))
    except ValueError:
        return None
    return fields


def encode(fields: Sequence[Field]) -> bytes:
    """The fields as they stand, right or wrong."""
    return b"".join(_encode_field(field) for field in fields)


def _encode_field(field: Field) -> bytes:
    tag = varint(field.number << 3 | field.kind)
    if field.kind == _VARINT:
        value = field.value if isinstance(field.value, int) else len(field.value)
        return tag + varint(value, field.padding)
    data = field.value if isinstance(field.value, bytes) else varint(field.value)
    if field.kind != _BYTES:
        return tag + data
    length = len(data) if field.length is None else field.length
    return tag + varint(length, field.padding) + data


def varint(value: int, padding: int = 0) -> bytes:
    """A base-128 number, longer than need be by some bytes."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    if padding:
        encoded[-1] |= 128
        encoded += bytes([128]) * (padding - 1) + b"\0"
    return bytes(encoded)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= len(data):
            break
        byte = data[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise ValueError("no varint")


_ON_BYTES: tuple[Any, ...] = (
    _flip_bit,
    _set_bytes,
    _truncate,
    _extend,
    _delete_slice,
    _double_slice,
    _swap_slices,
    _double_all,
    _garbage,
    _deep_nesting,
    _splice,
)
_ON_FIELDS: tuple[Any, ...] = (
    _drop_field,
    _double_field,
    _shuffle_fields,
    _swap_values,
    _renumber,
    _retype,
    _pad_varint,
    _lie_about_length,
    _extreme,
    _step,
    _resize,
    _flip_in_value,
    _flip_in_value,
    _zero_or_fill,
    _canary,
    _repeat_many,
    _unknown_field,
)
