"""What the key-holder decided, as far as this aggregator knows it: parameters and roster.

Written by the follower, read by every call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gridveil.protocol.city import CityParameters, CityPolicy
from gridveil.protocol.roster import Member, RosterVersion
from gridveil_services.aggregator.store.interface import MembershipRow


class SignedParameters(NamedTuple):
    """City parameters, and the very bytes that the key-holder signed."""

    parameters: CityParameters
    document: bytes
    signature: bytes


class Membership(NamedTuple):
    """One enrolment of a meter: from version ``since`` until before version ``until``."""

    signing_key: bytes
    since: int
    until: int | None
    earlier: Membership | None
    """The meter's enrolment before this one."""


class ParametersBook:
    """The city parameters of the epochs around now."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, SignedParameters] = {}

    def add(self, signed: SignedParameters) -> None:
        """Remember parameters."""
        self._by_digest[signed.parameters.digest] = signed

    def forget(self, digests: Iterable[bytes]) -> None:
        """Forget these; what is added meanwhile stays."""
        for digest in digests:
            self._by_digest.pop(digest, None)

    def named(self, digest: bytes) -> SignedParameters | None:
        """The parameters with a digest."""
        return self._by_digest.get(digest)

    def serving(self, window_start: int) -> SignedParameters | None:
        """The parameters of the newest epoch that a window may belong to.

        An epoch that was destroyed before its end has a successor that begins later, or that was
        learned later.
        """
        fitting = [s for s in self._all() if s.parameters.epoch.serves(window_start)]
        return max(fitting, key=lambda s: s.parameters.epoch.first_window, default=None)

    @property
    def policy(self) -> CityPolicy | None:
        """The policy of the newest epoch."""
        newest = max(self._all(), key=lambda s: s.parameters.epoch.first_window, default=None)
        return None if newest is None else newest.parameters.policy

    def _all(self) -> list[SignedParameters]:
        """Those learned last come first."""
        return list(self._by_digest.values())[::-1]


class Roster:
    """Who was enrolled in which version, by meter."""

    def __init__(
        self, rows: Iterable[MembershipRow] = (), head: RosterVersion | None = None
    ) -> None:
        self.head = head
        self._memberships: dict[bytes, Membership] = {}
        for meter_id, signing_key, since, until in rows:
            self._enter(meter_id, signing_key, since, until)

    def find(self, meter_id: bytes, version: int) -> Membership | None:
        """A meter's enrolment that began last, up to a version; it may have ended."""
        membership = self._memberships.get(meter_id)
        while membership is not None and membership.since > version:
            membership = membership.earlier
        return membership

    def apply(self, head: RosterVersion, removed: Sequence[bytes], added: Sequence[Member]) -> None:
        """Take a new version in."""
        for meter_id in removed:
            held = self._memberships.get(meter_id)
            if held is not None and held.until is None:
                self._memberships[meter_id] = held._replace(until=head.version)
        for member in added:
            self._enter(member.meter_id, member.signing_key, head.version, None)
        self.head = head

    def _enter(self, meter_id: bytes, key: bytes, since: int, until: int | None) -> None:
        earlier = self._memberships.get(meter_id)
        self._memberships[meter_id] = Membership(key, since, until, earlier)


class City:
    """All of it."""

    def __init__(self) -> None:
        self.parameters = ParametersBook()
        self.roster = Roster()
