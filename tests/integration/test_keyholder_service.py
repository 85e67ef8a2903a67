"""The key-holder on the wire: mutual TLS, roles, and what each call answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from gridveil.clock import ManualClock
from gridveil.profile import Tls
from gridveil.protocol.city import CityParameters, open_city_parameters
from gridveil.protocol.errors import GridveilError, Reason
from gridveil.protocol.roster import (
    Member,
    RosterVersion,
    open_roster_version,
    parse_members,
    roster_digest,
)
from gridveil.protocol.v1 import keyholder_pb2
from gridveil.protocol.v1.aggregator_pb2 import GetCityParametersRequest
from gridveil.protocol.v1.keyholder_pb2 import (
    EnrolMetersRequest,
    GetReleaseProgressRequest,
    GetRosterRequest,
    ListSuspectsRequest,
    PrecheckEntriesRequest,
    SignedRosterVersion,
    WithdrawMetersRequest,
)
from gridveil.protocol.v1.keyholder_pb2_grpc import KeyHolderStub, RosterStub
from gridveil.transport import connect, from_rpc_error
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.serve import make_server
from gridveil_services.releaselog.reader import LogReader
from gridveil_services.rpc import Role
from tests.support.reports import MeterKeys, build_release, build_report, make_members

START = 1_767_225_600
WINDOW = START + 900
METERS = make_members(120)
CLIENTS = [role for role in Role if role is not Role.KEYHOLDER]


@dataclass
class Running:
    """A key-holder that is served in this process."""

    keyholder: KeyHolder
    clock: ManualClock
    paths: CityPaths
    published: Path
    address: str
    channels: ExitStack

    @property
    def city_id(self) -> bytes:
        return self.keyholder.policy.city_id

    def channel(self, role: Role) -> grpc.Channel:
        folder = self.paths.tls(role)
        tls = Tls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
        return self.channels.enter_context(connect(self.address, "keyholder", self.city_id, tls))

    def releases(self, role: Role = Role.AGGREGATOR) -> KeyHolderStub:
        return KeyHolderStub(self.channel(role))

    def roster(self, role: Role = Role.REGISTRAR) -> RosterStub:
        return RosterStub(self.channel(role))

    @property
    def identity_key(self) -> bytes:
        text = self.paths.profile("registrar").read_text()
        line = next(line for line in text.splitlines() if line.startswith("identity_key"))
        return bytes.fromhex(line.split('"')[1])

    def parameters(self, window: int = WINDOW) -> CityParameters:
        signed = self.releases().GetCityParameters(
            GetCityParametersRequest(window_start=window), timeout=10
        )
        return open_city_parameters(
            signed.parameters, signed.signature, self.identity_key, self.city_id
        )

    def head(self, signed: SignedRosterVersion) -> RosterVersion:
        return open_roster_version(
            signed.roster_version, signed.signature, self.identity_key, self.city_id
        )

    def enrol(self, meters: list[MeterKeys]) -> RosterVersion:
        enrolments = [meter.enrolment(self.city_id) for meter in meters]
        return self.head(
            self.roster().EnrolMeters(EnrolMetersRequest(enrolments=enrolments), timeout=30)
        )


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> CityPaths:
    options = CityOptions(min_cohort=100, development=True)
    return create_city(tmp_path_factory.mktemp("city") / "city", options)


@pytest.fixture
def running(paths: CityPaths, tmp_path: Path) -> Iterator[Running]:
    config = KeyHolderConfig.load(paths.config("keyholder"))
    state = tmp_path / "state"
    state.mkdir()
    (state / "identity.key").write_bytes((config.state / "identity.key").read_bytes())
    config = replace(config, state=state, published=tmp_path / "published", listen="127.0.0.1:0")
    clock = ManualClock(START)
    keyholder = KeyHolder(config, clock)
    with make_server(keyholder, config) as server, ExitStack() as channels:
        yield Running(keyholder, clock, paths, config.published, server.start(), channels)
    keyholder.close()


def refused(call: Callable[[], object]) -> GridveilError:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return from_rpc_error(error.value)


def released_windows(running: Running) -> list[int]:
    log = LogReader(running.published / "log")
    return [r.released.window_start for r in log.poll() if r.WhichOneof("event") == "released"]


def test_a_city_is_enrolled_and_its_window_released_over_the_wire(running: Running) -> None:
    version = running.enrol(METERS)
    assert version.effective_window == WINDOW
    parameters = running.parameters()
    reports = [build_report(parameters, meter, WINDOW, [at, 1]) for at, meter in enumerate(METERS)]
    release = build_release(parameters, version.version, reports)
    stub = running.releases()
    asked = GetReleaseProgressRequest(window_start=WINDOW, release_digest=release.digest)

    early = refused(lambda: stub.Release(release.messages(), timeout=30))
    assert early.reason is Reason.WINDOW_OPEN
    assert early.metadata["closes"] == str(WINDOW + 1200)

    running.clock.move_to(WINDOW + 900)  # everybody has reported: no grace is needed
    assert not stub.GetReleaseProgress(asked, timeout=10).complete
    receipt = stub.Release(release.messages(size=9800), timeout=30)
    assert (receipt.release_digest, receipt.replayed) == (release.digest, False)
    again = stub.Release(iter([release.header_message()]), timeout=30)
    assert (again.release_digest, again.replayed) == (release.digest, True)
    assert stub.GetReleaseProgress(asked, timeout=10).complete
    assert running.keyholder.ring.decryptions(WINDOW) == 1
    assert released_windows(running) == [WINDOW]


def test_the_aggregator_is_never_told_a_total(running: Running) -> None:
    """A receipt has no room for one: its only bytes are the digest that was sent."""
    fields = keyholder_pb2.ReleaseReceipt.DESCRIPTOR.fields_by_name
    assert set(fields) == {"release_digest", "replayed"}


ALLOWED = {
    "GetCityParameters": {Role.AGGREGATOR, Role.REGISTRAR},
    "PrecheckEntries": {Role.AGGREGATOR},
    "GetReleaseProgress": {Role.AGGREGATOR},
    "Release": {Role.AGGREGATOR},
    "EnrolMeters": {Role.REGISTRAR},
    "WithdrawMeters": {Role.REGISTRAR},
    "GetRoster": {Role.AGGREGATOR, Role.REGISTRAR},
    "ListSuspects": {Role.REGISTRAR},
}


@pytest.mark.parametrize("role", CLIENTS)
def test_each_role_may_call_what_it_must_and_nothing_else(running: Running, role: Role) -> None:
    running.enrol(METERS[:3])
    releases, roster = running.releases(role), running.roster(role)
    calls: dict[str, Callable[[], object]] = {
        "GetCityParameters": lambda: releases.GetCityParameters(
            GetCityParametersRequest(), timeout=10
        ),
        "PrecheckEntries": lambda: releases.PrecheckEntries(PrecheckEntriesRequest(), timeout=10),
        "GetReleaseProgress": lambda: releases.GetReleaseProgress(
            GetReleaseProgressRequest(window_start=WINDOW, release_digest=bytes(32)), timeout=10
        ),
        "Release": lambda: releases.Release(iter(()), timeout=10),
        "EnrolMeters": lambda: roster.EnrolMeters(EnrolMetersRequest(), timeout=10),
        "WithdrawMeters": lambda: roster.WithdrawMeters(WithdrawMetersRequest(), timeout=10),
        "GetRoster": lambda: list(roster.GetRoster(GetRosterRequest(), timeout=10)),
        "ListSuspects": lambda: roster.ListSuspects(ListSuspectsRequest(limit=1), timeout=10),
    }
    assert calls.keys() == ALLOWED.keys()
    for name, call in calls.items():
        try:
            call()
            reason = None
        except grpc.RpcError as error:
            reason = from_rpc_error(error).reason
        assert (reason is Reason.ROLE_NOT_ALLOWED) == (role not in ALLOWED[name]), name


@pytest.mark.parametrize(
    ("window", "served"),
    [
        (0, True),
        (START, True),
        (START - 900, False),  # of an epoch before the city was made
        (START + 86_400, True),
        (START + 2 * 86_400 - 900, True),
        (START + 2 * 86_400, False),
        (2**53 - 2**53 % 900 - 900, False),
    ],
)
def test_parameters_are_those_of_the_current_and_the_next_epoch(
    running: Running, window: int, served: bool
) -> None:
    if served:
        assert running.parameters(window).epoch.serves(window or START)
    else:
        assert refused(lambda: running.parameters(window)).reason is Reason.KEY_EPOCH


@pytest.mark.parametrize("window", [1, -900, START + 1, 2**53, -(2**63)])
def test_parameters_of_no_window_are_refused(running: Running, window: int) -> None:
    assert refused(lambda: running.parameters(window)).reason is Reason.WINDOW_MISALIGNED


def test_parameters_of_a_window_that_is_over_for_good_are_refused(running: Running) -> None:
    running.enrol(METERS[:1])
    running.clock.move_to(WINDOW + 900 + 86_399)
    running.parameters(WINDOW)
    running.clock.move_to(WINDOW + 900 + 86_400)
    assert refused(lambda: running.parameters(WINDOW)).reason is Reason.KEY_EPOCH


@pytest.mark.parametrize(
    ("window", "digest", "reason"),
    [
        (WINDOW, b"", Reason.FIELD_REQUIRED),
        (WINDOW, bytes(31), Reason.FIELD_FORMAT),
        (0, bytes(32), Reason.WINDOW_MISALIGNED),
        (-900, bytes(32), Reason.WINDOW_MISALIGNED),
    ],
)
def test_progress_of_nothing_is_refused(
    running: Running, window: int, digest: bytes, reason: Reason
) -> None:
    request = GetReleaseProgressRequest(window_start=window, release_digest=digest)
    stub = running.releases()
    assert refused(lambda: stub.GetReleaseProgress(request, timeout=10)).reason is reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"parameters_digest": b""}, Reason.FIELD_REQUIRED),
        ({"parameters_digest": bytes(31)}, Reason.FIELD_FORMAT),
        ({"release_digest": bytes(33)}, Reason.FIELD_FORMAT),
        ({"window_start": -900}, Reason.WINDOW_MISALIGNED),
        ({"window_start": 2**62}, Reason.WINDOW_MISALIGNED),
        ({"roster_version": 2**64 - 1}, Reason.ROSTER_VERSION),
        ({"lanes": 2**32 - 1}, Reason.COHORT_INVALID),
        ({"count": 2**64 - 1}, Reason.COHORT_INVALID),
    ],
)
def test_extreme_headers_are_refused(
    running: Running, change: dict[str, Any], reason: Reason
) -> None:
    running.enrol(METERS)
    digest = running.parameters().digest
    running.clock.move_to(WINDOW + 1200)
    fields: dict[str, Any] = {
        "window_start": WINDOW,
        "parameters_digest": digest,
        "roster_version": 1,
        "lanes": 2,
        "count": 120,
        "release_digest": bytes(32),
    }
    header = keyholder_pb2.ReleaseHeader(**(fields | change))
    message = keyholder_pb2.ReleaseMessage(header=header)
    stub = running.releases()
    assert refused(lambda: stub.Release(iter([message]), timeout=10)).reason is reason


def enrolments(running: Running) -> dict[str, list[bytes]]:
    good = [meter.enrolment(running.city_id) for meter in METERS[:3]]
    signature = good[2][:-1] + bytes([good[2][-1] ^ 1])
    forged = replace(METERS[3], sealing_secret=bytes([1] * 32)).enrolment(running.city_id)
    swapped_key = good[2][:100] + forged[100:132] + good[2][132:]
    return {
        "signature": [*good[:2], signature],
        "sealing key": [*good[:2], swapped_key],
        "other city": [*good[:2], METERS[2].enrolment(bytes(16))],
        "short": [*good[:2], good[2][:-1]],
        "long": [*good[:2], good[2] + b"\x00"],
        "empty": [*good[:2], b""],
        "nobody": [],
        "too many": good[:1] * 4097,
    }


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("signature", Reason.SIGNATURE_INVALID),
        ("sealing key", Reason.SIGNATURE_INVALID),
        ("other city", Reason.FIELD_FORMAT),
        ("short", Reason.MALFORMED_MESSAGE),
        ("long", Reason.MALFORMED_MESSAGE),
        ("empty", Reason.MALFORMED_MESSAGE),
        ("nobody", Reason.BATCH_EMPTY),
        ("too many", Reason.BATCH_TOO_LARGE),
    ],
)
def test_one_wrong_enrolment_enrols_nobody(running: Running, case: str, reason: Reason) -> None:
    request = EnrolMetersRequest(enrolments=enrolments(running)[case])
    stub = running.roster()
    assert refused(lambda: stub.EnrolMeters(request, timeout=30)).reason is reason
    assert running.keyholder.roster.first_in_force is None


def test_withdrawals_are_all_or_nothing(running: Running) -> None:
    running.enrol(METERS[:3])
    stub = running.roster()

    def withdraw(*ids: bytes) -> RosterVersion:
        request = WithdrawMetersRequest(meter_ids=ids)
        return running.head(stub.WithdrawMeters(request, timeout=10))

    first, second, stranger = (METERS[at].meter_id for at in (0, 1, 9))
    assert refused(withdraw).reason is Reason.BATCH_EMPTY
    assert refused(lambda: withdraw(first, b"")).reason is Reason.FIELD_REQUIRED
    assert refused(lambda: withdraw(first, first[:15])).reason is Reason.FIELD_FORMAT
    assert refused(lambda: withdraw(first, stranger)).reason is Reason.NOT_FOUND
    assert refused(lambda: withdraw(*[first] * 4097)).reason is Reason.BATCH_TOO_LARGE
    assert (withdraw(first, second).count, withdraw(first, second).version) == (1, 2)


def roster_of(running: Running, known: int, window: int) -> tuple[RosterVersion, Any]:
    chunks = list(
        running.roster(Role.AGGREGATOR).GetRoster(
            GetRosterRequest(known_version=known, window_start=window), timeout=30
        )
    )
    assert [chunk.HasField("head") for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert all(chunk.ByteSize() <= 2**20 for chunk in chunks)
    added = [member for chunk in chunks for member in parse_members(chunk.added)]
    removed = b"".join(chunk.removed for chunk in chunks)
    ids = [removed[at : at + 16] for at in range(0, len(removed), 16)]
    return running.head(chunks[0].head), (added, ids, len(chunks))


def test_an_aggregator_follows_the_roster_by_what_changed(running: Running) -> None:
    members = sorted(meter.member for meter in METERS)
    running.enrol(METERS)
    running.clock.move_to(WINDOW)
    head, (added, removed, _) = roster_of(running, 0, WINDOW)
    assert (added, removed) == (members, [])
    assert head.digest == roster_digest(added)
    running.roster().WithdrawMeters(
        WithdrawMetersRequest(meter_ids=[METERS[0].meter_id]), timeout=10
    )
    assert roster_of(running, 1, WINDOW)[1] == ([], [], 1)
    running.clock.move_to(WINDOW + 900)
    head, (added, removed, _) = roster_of(running, 1, WINDOW + 900)
    assert (added, removed) == ([], [METERS[0].meter_id])
    assert head.count == 119
    _, (added, removed, _) = roster_of(running, 2, WINDOW)
    assert (added, removed) == ([METERS[0].member], [])
    assert refused(lambda: roster_of(running, 0, WINDOW - 900)).reason is Reason.NOT_FOUND
    assert refused(lambda: roster_of(running, 3, WINDOW)).reason is Reason.NOT_FOUND
    assert refused(lambda: roster_of(running, 0, 1)).reason is Reason.WINDOW_MISALIGNED


def test_a_large_roster_comes_in_chunks_below_1_mib(running: Running) -> None:
    members = [
        Member(at.to_bytes(16, "big"), meter.member.signing_key, meter.member.sealing_key)
        for at, meter in enumerate(make_members(12_501, seed=5))
    ]
    running.keyholder.roster.enrol(members)
    running.clock.move_to(WINDOW)
    head, (added, _, chunks) = roster_of(running, 0, WINDOW)
    assert (added, head.count, chunks) == (members, 12_501, 2)


def test_suspects_are_told_the_likeliest_first_until_they_are_withdrawn(running: Running) -> None:
    running.enrol(METERS)
    ids = [meter.meter_id for meter in METERS]
    running.keyholder.suspicions.record(WINDOW, [ids[:40]], [ids[50]], [ids[60:]])
    running.keyholder.suspicions.record(WINDOW + 900, [ids[:1]], [], [ids[1:]])
    roster = running.roster()

    def listed(limit: int) -> list[bytes]:
        answer = roster.ListSuspects(ListSuspectsRequest(limit=limit), timeout=10)
        return [suspect.meter_id for suspect in answer.suspects]

    assert listed(1000)[:2] == [ids[50], ids[0]]
    assert listed(1) == [ids[50]]
    roster.WithdrawMeters(WithdrawMetersRequest(meter_ids=[ids[50]]), timeout=10)
    assert listed(1) == [ids[0]]


@pytest.mark.parametrize(
    ("limit", "reason"),
    [(0, Reason.FIELD_REQUIRED), (1001, Reason.FIELD_RANGE), (2**32 - 1, Reason.FIELD_RANGE)],
)
def test_a_list_of_suspects_is_bounded(running: Running, limit: int, reason: Reason) -> None:
    roster = running.roster()
    error = refused(lambda: roster.ListSuspects(ListSuspectsRequest(limit=limit), timeout=10))
    assert (error.reason, error.metadata["field"]) == (reason, "limit")
