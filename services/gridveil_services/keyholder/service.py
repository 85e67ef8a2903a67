"""The key-holder's services on the wire; who may call what is at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from gridveil.protocol.errors import MalformedInput, NotFound, Reason, WrongState
from gridveil.protocol.layout import DIGEST_BYTES, ID_BYTES, fixed
from gridveil.protocol.release import CHUNK_BYTES, ENTRY_BYTES
from gridveil.protocol.roster import RosterVersion, open_enrolment
from gridveil.protocol.v1 import keyholder_pb2
from gridveil.protocol.v1.aggregator_pb2 import GetCityParametersRequest, SignedCityParameters
from gridveil.protocol.v1.keyholder_pb2 import (
    EnrolMetersRequest,
    GetReleaseProgressRequest,
    GetRosterRequest,
    ListSuspectsRequest,
    ListSuspectsResponse,
    PrecheckEntriesRequest,
    PrecheckEntriesResponse,
    ReleaseMessage,
    ReleaseProgress,
    ReleaseReceipt,
    RosterChunk,
    SignedRosterVersion,
    Suspect,
    WithdrawMetersRequest,
)
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.rpc import Binding, Call, Role

MOST_METERS = 4096
"""In one enrolment or withdrawal."""
MOST_SUSPECTS = 1000
"""In one answer."""
ADDED_A_CHUNK = 12_500
"""Roster entries of 80 bytes, so that a chunk stays below 1 MiB."""
REMOVED_A_CHUNK = 62_500
"""Meter ids of 16 bytes, for the same bound."""

T = TypeVar("T")


class KeyHolderService:
    """``gridveil.v1.KeyHolder``."""

    def __init__(self, keyholder: KeyHolder) -> None:
        self._keyholder = keyholder

    def get_city_parameters(
        self, request: GetCityParametersRequest, call: Call
    ) -> SignedCityParameters:
        """Of windows that are not over for good, up to the end of the next epoch.

        For no window: those in force now, or from the next window on.
        """
        keyholder, rules = self._keyholder, self._keyholder.policy.rules
        now = keyholder.clock.now()
        window = request.window_start or rules.start_at(now)
        rules.check_aligned(window)
        keyholder.ring.ensure(now)
        signed = keyholder.ring.for_window(window) if rules.expires(window) > now else None
        if signed is None and not request.window_start:
            # The current window's keys are destroyed: the next window's are in force.
            signed = keyholder.ring.for_window(rules.end(window))
        if signed is None:
            raise WrongState(Reason.KEY_EPOCH, "no epoch serves this window")
        return signed.to_message()

    def precheck_entries(
        self, request: PrecheckEntriesRequest, call: Call
    ) -> PrecheckEntriesResponse:
        """Checks entries before their window's release; settles nothing."""
        digest = fixed(request.parameters_digest, DIGEST_BYTES, "parameters_digest")
        entries = request.entries
        if not entries:
            raise MalformedInput(Reason.FIELD_REQUIRED, "entries is required", field="entries")
        if len(entries) > CHUNK_BYTES or len(entries) % ENTRY_BYTES:
            raise MalformedInput(
                Reason.FIELD_FORMAT, "entries are whole ones, at most 1 MiB", field="entries"
            )
        held = self._keyholder.releases.prechecks.add(
            request.window_start, digest, request.roster_version, entries
        )
        return PrecheckEntriesResponse(held=held)

    def get_release_progress(
        self, request: GetReleaseProgressRequest, call: Call
    ) -> ReleaseProgress:
        """What a resumed stream need not send again."""
        digest = fixed(request.release_digest, DIGEST_BYTES, "release_digest")
        held = self._keyholder.releases.progress(request.window_start, digest)
        if held is None:
            return ReleaseProgress(complete=True)
        return ReleaseProgress(entry_bytes=held)

    def release(self, requests: Iterator[ReleaseMessage], call: Call) -> ReleaseReceipt:
        """Settles a window; never says what its total is."""
        settled = self._keyholder.releases.release(requests)
        return ReleaseReceipt(release_digest=settled.digest, replayed=settled.replayed)


class RosterService:
    """``gridveil.v1.Roster``."""

    def __init__(self, keyholder: KeyHolder) -> None:
        self._city_id = keyholder.policy.city_id
        self._rules = keyholder.policy.rules
        self._roster = keyholder.roster
        self._suspicions = keyholder.suspicions

    def enrol_meters(self, request: EnrolMetersRequest, call: Call) -> SignedRosterVersion:
        """All of them or none."""
        _check_batch(request.enrolments, "enrolments")
        return self._signed(
            self._roster.enrol([open_enrolment(e, self._city_id) for e in request.enrolments])
        )

    def withdraw_meters(self, request: WithdrawMetersRequest, call: Call) -> SignedRosterVersion:
        """All of them or none."""
        _check_batch(request.meter_ids, "meter_ids")
        meter_ids = [fixed(m, ID_BYTES, "meter_ids") for m in request.meter_ids]
        version = self._roster.withdraw(meter_ids)
        self._suspicions.forget(meter_ids)
        return self._signed(version)

    def get_roster(self, request: GetRosterRequest, call: Call) -> Iterator[RosterChunk]:
        """The signed head, then what changes, in chunks."""
        self._rules.check_aligned(request.window_start)
        follows = call.identity.role is Role.AGGREGATOR
        in_force = self._roster.tell if follows else self._roster.in_force
        version = in_force(request.window_start)
        if version is None:
            raise NotFound(Reason.NOT_FOUND, "no roster is in force for this window")
        change = self._roster.change(request.known_version, version)
        head: SignedRosterVersion | None = self._signed(version)
        for members in _pieces(change.added, ADDED_A_CHUNK):
            added = b"".join(member.encode() for member in members)
            yield RosterChunk(head=head, added=added)
            head = None
        for ids in _pieces(change.removed, REMOVED_A_CHUNK):
            yield RosterChunk(head=head, removed=b"".join(ids))
            head = None
        if head is not None:
            yield RosterChunk(head=head)

    def list_suspects(self, request: ListSuspectsRequest, call: Call) -> ListSuspectsResponse:
        """The likeliest first."""
        if not 1 <= request.limit <= MOST_SUSPECTS:
            reason = Reason.FIELD_RANGE if request.limit else Reason.FIELD_REQUIRED
            raise MalformedInput(reason, f"limit is 1 to {MOST_SUSPECTS}", field="limit")
        ranking = self._suspicions.ranking(request.limit)
        return ListSuspectsResponse(suspects=[Suspect(**vars(suspect)) for suspect in ranking])

    def _signed(self, version: RosterVersion) -> SignedRosterVersion:
        return SignedRosterVersion(
            roster_version=version.encode(), signature=self._roster.sign(version)
        )


def bindings(keyholder: KeyHolder) -> list[Binding]:
    """Both services and the roles that may call each of their methods."""
    services = keyholder_pb2.DESCRIPTOR.services_by_name
    return [
        Binding(
            descriptor=services["KeyHolder"],
            service=KeyHolderService(keyholder),
            roles={
                "GetCityParameters": {Role.AGGREGATOR, Role.REGISTRAR},
                "PrecheckEntries": {Role.AGGREGATOR},
                "GetReleaseProgress": {Role.AGGREGATOR},
                "Release": {Role.AGGREGATOR},
            },
        ),
        Binding(
            descriptor=services["Roster"],
            service=RosterService(keyholder),
            roles={
                "EnrolMeters": {Role.REGISTRAR},
                "WithdrawMeters": {Role.REGISTRAR},
                "GetRoster": {Role.AGGREGATOR, Role.REGISTRAR},
                "ListSuspects": {Role.REGISTRAR},
            },
        ),
    ]


def _check_batch(items: Sequence[bytes], field: str) -> None:
    if not items:
        raise MalformedInput(Reason.BATCH_EMPTY, f"{field} is empty", field=field)
    if len(items) > MOST_METERS:
        raise MalformedInput(
            Reason.BATCH_TOO_LARGE, f"{field} holds more than {MOST_METERS}", field=field
        )


def _pieces(items: list[T], size: int) -> Iterator[list[T]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]
