"""Which object answers a gRPC service, and which roles may ask it what."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gridveil_services.rpc.parsing import Parser
from gridveil_services.rpc.roles import Role


@dataclass(frozen=True)
class Method:
    """One rpc, ready to be called."""

    name: str
    """As in the descriptor."""
    path: str
    """As on the wire: ``/package.Service/Name``."""
    handler: Callable[..., Any]
    roles: frozenset[Role]
    parser: Parser
    answer: type[Message]
    client_streaming: bool
    server_streaming: bool

    @property
    def streaming(self) -> bool:
        """May last as long as both sides want."""
        return self.client_streaming or self.server_streaming


@dataclass(frozen=True)
class Binding:
    """A service of a proto file, the object with its handlers, and the roles of each rpc.

    Raises:
        ValueError: an rpc has no handler or no role, or a role set belongs to no rpc.
    """

    descriptor: ServiceDescriptor
    service: object
    roles: Mapping[str, Collection[Role]]

    def __post_init__(self) -> None:
        unknown = self.roles.keys() - self.descriptor.methods_by_name.keys()
        if unknown:
            raise ValueError(f"{self.descriptor.full_name} has no rpc {sorted(unknown)}")
        self.methods()

    def methods(self) -> list[Method]:
        """Every rpc of the service."""
        return [self._method(rpc) for rpc in self.descriptor.methods]

    def _method(self, rpc: MethodDescriptor) -> Method:
        roles = frozenset(Role(role) for role in self.roles.get(rpc.name, ()))
        if not roles:
            raise ValueError(f"{rpc.full_name} is allowed to nobody")
        handler = getattr(self.service, snake_case(rpc.name), None)
        if not callable(handler):
            raise ValueError(f"{rpc.full_name} has no handler {snake_case(rpc.name)}")
        return Method(
            name=rpc.name,
            path=f"/{self.descriptor.full_name}/{rpc.name}",
            handler=handler,
            roles=roles,
            parser=Parser(GetMessageClass(rpc.input_type)),
            answer=GetMessageClass(rpc.output_type),
            client_streaming=rpc.client_streaming,
            server_streaming=rpc.server_streaming,
        )


def snake_case(name: str) -> str:
    """``SubmitReport`` as ``submit_report``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
