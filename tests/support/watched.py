"""A service under attack: called over mTLS, and looked at for what it tells and what it keeps."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.rpc import error_details_pb2, status_pb2

from gridveil.profile import Tls
from gridveil.protocol.errors import Reason
from gridveil_services.rpc import Role
from tests.support.boundary import WATCH_S, Metadata, Outcome, send
from tests.support.corpus import INTERNALS, READING, ServingCity


class Watched:
    """A service that is called, and must stay as it is."""

    def __init__(self, city: ServingCity, name: str) -> None:
        self.city = city
        self.service = city.services[name]
        self._channels: dict[Role, grpc.Channel] = {}
        self._canaries = [*city.canaries(), str(READING).encode()]
        self._before = self.service.digest()

    def send(
        self,
        path: str,
        role: Role,
        messages: Sequence[bytes],
        metadata: Metadata = (),
        timeout_s: float | None = None,
    ) -> Outcome:
        """Make a call, and look at what is told.

        ``timeout_s``: if left out, more than enough, but for watches, which may have no end.
        """
        channel = self._channels.get(role)
        if channel is None:
            channel = self._channels[role] = self.city.channel(self.service, role)
        if timeout_s is None:
            timeout_s = WATCH_S if "/Watch" in path else 20.0
        outcome = send(channel, path, messages, metadata, timeout_s=timeout_s)
        assert len(outcome.told) < 8192
        assert not INTERNALS.search(outcome.told), outcome
        assert not [c for c in self._canaries if c in outcome.told and len(c) > 6], outcome
        return outcome

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        assert self.service.digest() == self._before


def reason_of(outcome: Outcome) -> Reason | None:
    """The reason in a refusal; None if it is the library's."""
    for part in outcome.told.split(b"\0", 1)[1:]:
        status = status_pb2.Status.FromString(part)
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.domain == "gridveil"
        return Reason(info.reason)
    return None


def tls_of(city: ServingCity, role: Role) -> Tls:
    """What a role shows."""
    folder = city.local.paths.tls(role)
    return Tls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
