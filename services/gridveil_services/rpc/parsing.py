"""Untrusted bytes into messages, strictly: what is accepted has exactly one encoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from gridveil.protocol.errors import MalformedInput, Reason

Check = Callable[[Any], None]


class Parser:
    """Strict parser of one message type; thread-safe."""

    def __init__(self, kind: type[Message]) -> None:
        self._kind = kind
        self._enum_checks = _enum_checks(cast(Descriptor, kind.DESCRIPTOR), {})

    def parse(self, data: bytes) -> Message:
        """The message in ``data``.

        Raises:
            MalformedInput: MALFORMED_MESSAGE, NON_CANONICAL or ENUM_UNKNOWN.
        """
        message = self._kind()
        try:
            message.ParseFromString(data)
        except DecodeError:
            raise MalformedInput(
                Reason.MALFORMED_MESSAGE, f"these bytes are no {self._kind.DESCRIPTOR.name}"
            ) from None
        message.DiscardUnknownFields()
        if message.SerializeToString(deterministic=True) != data:
            raise MalformedInput(
                Reason.NON_CANONICAL,
                "fields must be known, in number order, each once, default values left out",
            )
        for check in self._enum_checks:
            check(message)
        return message


def _enum_checks(descriptor: Descriptor, known: dict[str, list[Check]]) -> list[Check]:
    """Checks of every enum in a message type, empty if there are none.

    proto3 enums are open: a number without a name parses.
    """
    if descriptor.full_name in known:
        return known[descriptor.full_name]
    checks = known[descriptor.full_name] = []
    for field in descriptor.fields:
        if field.enum_type is not None:
            checks.append(_number_check(field, field.enum_type))
        elif field.message_type is not None and _reaches_enum(field.message_type, set()):
            checks.append(_nested_check(field, _enum_checks(field.message_type, known)))
    return checks


def _reaches_enum(descriptor: Descriptor, seen: set[str]) -> bool:
    if descriptor.full_name in seen:
        return False
    seen.add(descriptor.full_name)
    return any(
        field.enum_type is not None
        or (field.message_type is not None and _reaches_enum(field.message_type, seen))
        for field in descriptor.fields
    )


def _number_check(field: FieldDescriptor, kind: EnumDescriptor) -> Check:
    name, repeated, numbers = field.name, field.is_repeated, frozenset(kind.values_by_number)

    def check(message: Any) -> None:
        value = getattr(message, name)
        if not numbers.issuperset(value if repeated else (value,)):
            raise MalformedInput(Reason.ENUM_UNKNOWN, f"{name} has no such value", field=name)

    return check


def _nested_check(field: FieldDescriptor, checks: list[Check]) -> Check:
    name, repeated = field.name, field.is_repeated

    def check(message: Any) -> None:
        if repeated:
            nested = list(getattr(message, name))
        else:
            nested = [getattr(message, name)] if message.HasField(name) else []
        for item in nested:
            for inner in checks:
                inner(item)

    return check
