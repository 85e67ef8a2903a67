"""A running key-holder to attack: over mTLS, with a real log, and a day of windows to spend.

    answer = city.release(release)
    city.assert_gains_nothing(release, reports)

Three of five lanes make a cohort, so that an attack on one of them costs the city only that lane.

The attacker is the aggregator: it has its certificate, every report, and whatever meters it has
corrupted. What the key-holder answered it is kept, and searched for what it must never hold.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc

from gridveil.clock import ManualClock
from gridveil.protocol.city import PPM, CityParameters, open_city_parameters
from gridveil.protocol.errors import Reason
from gridveil.protocol.layout import ID_BYTES
from gridveil.protocol.noise import NoisePolicy
from gridveil.protocol.release import ENTRY_BYTES, ReleaseHeader, Total, open_total, split_opened
from gridveil.protocol.report import Report
from gridveil.protocol.v1 import aggregator_pb2, keyholder_pb2, keyholder_pb2_grpc
from gridveil.protocol.v1.log_pb2 import WindowReleased
from gridveil.protocol.windows import lane_of
from gridveil.transport import connect, from_rpc_error
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import AtRest
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.serve import make_server
from gridveil_services.releaselog.reader import LogReader
from gridveil_services.rpc import Role
from tests.adversary.answers import Answer, StatusKey
from tests.support.audits import assert_lawful
from tests.support.keyholders import make_config
from tests.support.receiver import Certificates
from tests.support.reports import (
    BuiltRelease,
    MeterKeys,
    build_release,
    build_report,
    make_members,
)

if TYPE_CHECKING:
    ReleaseCall = grpc.StreamUnaryMultiCallable[
        keyholder_pb2.ReleaseMessage, keyholder_pb2.ReleaseReceipt
    ]

LENGTH = 300
DAY = 1_700_006_400
"""A midnight; the epoch starts with it."""
NOON, SIX = DAY + 12 * 3600, DAY + 18 * 3600
NOW = DAY + 23 * 3600 + 10
"""The time of every attack: windows that ended 100 s ago may be released."""
TIMEOUT_S = 60.0

LANES = 5
BUDGET = 5

RELEASED = "the key-holder released what it must not"
"""What a test says when its attack succeeds."""

MISSED = "an honest lane was left out"
DECRYPTED = "the key-holder decrypted what it must not"
"""What a test says when the attacker gets another answer about the key."""

PROBED = "the key-holder answered more probes than it may"
"""What a test says when the attacker is refused once more than the budget of a day allows."""

VICTIM_WH = 173_291
"""The reading that every attack is after; no other number of a test has these bytes."""


@dataclass(frozen=True)
class Crowd:
    """The meters of one part of the day, and when that is."""

    meters: tuple[MeterKeys, ...]
    version: int
    first: int
    end: int


class AttackedCity:
    """The running key-holder, the attacker's view of it, and the truth to compare with."""

    def __init__(self, folder: Path, noise: NoisePolicy | None = None) -> None:
        self._opened = ExitStack()
        policy: dict[str, object] = {"window_length": LENGTH, "grace": 100, "early_leeway": 60}
        policy |= {"min_cohort": 210, "min_coverage_ppm": 500_000, "failure_budget": BUDGET}
        policy |= {"noise": noise}
        self._folder, self._pristine = folder / "keyholder", folder / "pristine"
        config = make_config(self._folder, **policy)
        self.certificates = Certificates.make(folder, config.city_id)
        self.config: KeyHolderConfig = replace(
            config, tls=self.certificates.tls(Role.KEYHOLDER), listen="127.0.0.1:0"
        )
        at_rest = AtRest.load(config.key_encrypting_key_file, config.city_id)
        self.identity_key = bytes(identity.load(config.state, at_rest).verify_key)
        self.clock = ManualClock(DAY + 10)
        self._log_folder = config.published / "log"
        self._refusal: StatusKey | None = None
        self._start()
        self._enrol()
        self.clock.move_to(NOW)
        self.parameters = self.parameters_of(DAY)
        self._reports: dict[tuple[int, Crowd], list[Report]] = {}
        self.close()
        shutil.copytree(self._folder, self._pristine)
        self._is_pristine = False
        self.renew()

    def renew(self) -> None:
        """Put the city back to where nothing was tried yet, if anything was."""
        if self._is_pristine:
            return
        self.close()
        shutil.rmtree(self._folder)
        shutil.copytree(self._pristine, self._folder)
        self._start()
        self._is_pristine = True
        self._windows = {
            crowd: iter(range(crowd.first, crowd.end, LENGTH)) for crowd in self.crowds
        }

    def _enrol(self) -> None:
        """By day 402 meters; one leaves at noon; 60 come at six: five lanes all day."""
        first = make_members(402, seed=7)
        self.victim, self.leaver = first[0], first[-1]
        self.newcomers = make_members(60, seed=8)
        self._roster(enrol=first)
        self.clock.move_to(NOON)
        self._roster(withdraw=[self.leaver])
        self.clock.move_to(SIX)
        self._roster(enrol=self.newcomers)
        day = Crowd(tuple(first), 1, DAY + LENGTH, NOON)
        afternoon = Crowd(tuple(first[:-1]), 2, NOON + LENGTH, SIX)
        evening = Crowd((*first[:-1], *self.newcomers), 3, SIX + LENGTH, NOW - 400)
        self.day, self.afternoon, self.evening = self.crowds = (day, afternoon, evening)

    # What a test arranges.

    def window(self, crowd: Crowd | None = None) -> int:
        """A window that nobody has tried yet, over and unsettled."""
        self._is_pristine = False
        return next(self._windows[crowd or self.day])

    def reports(self, window: int, crowd: Crowd | None = None) -> list[Report]:
        """What the honest meters report; the victim's is the first."""
        self._is_pristine = False
        crowd = crowd or self.day
        made = self._reports.get((window, crowd))
        if made is None:
            readings = self.readings(window, len(crowd.meters))
            made = self._reports[window, crowd] = [
                build_report(self.parameters, meter, window, values)
                for meter, values in zip(crowd.meters, readings, strict=True)
            ]
        return list(made)

    def readings(self, window: int, count: int) -> list[tuple[int, int]]:
        """The register values behind ``reports``."""
        drawn = window // LENGTH % 97
        return [(VICTIM_WH, 0), *((drawn + 11 * at, at % 3) for at in range(1, count))]

    def truth(self, window: int, crowd: Crowd | None = None, left_out: Collection[int] = ()) -> int:
        """The honest total of the first register, without the meters of some lanes."""
        meters = (crowd or self.day).meters
        return sum(
            values[0]
            for meter, values in zip(meters, self.readings(window, len(meters)), strict=True)
            if self._lane_of(window, meter.meter_id) not in left_out
        )

    def built(self, reports: Sequence[Report], crowd: Crowd | None = None) -> BuiltRelease:
        """The release of these reports, every sum and digest in it right."""
        crowd = crowd or self.day
        return build_release(self.parameters, crowd.version, reports, enrolled=len(crowd.meters))

    def lane(self, report: Report) -> int:
        """The lane that a report falls into."""
        return self._lane_of(report.claim.window_start, report.claim.meter_id)

    def _lane_of(self, window: int, meter_id: bytes) -> int:
        return lane_of(self.parameters.epoch.epoch_id, window, meter_id, LANES)

    def is_enough(self, count: int, crowd: Crowd | None = None) -> bool:
        """Whether so many meters of a crowd are a cohort, by the city's policy."""
        policy, enrolled = self.config.policy, len((crowd or self.day).meters)
        return count >= policy.min_cohort and count * PPM >= policy.min_coverage_ppm * enrolled

    # What the attacker does.

    def release(self, release: BuiltRelease) -> Answer:
        """Hand a release to the key-holder."""
        return self._call(self._keyholder.Release, release.messages())

    def precheck(self, header: ReleaseHeader, entries: bytes) -> tuple[int, str]:
        """Hand entries over ahead of a release: meters that are held, or why they are not."""
        request = keyholder_pb2.PrecheckEntriesRequest(
            window_start=header.window_start,
            parameters_digest=header.parameters_digest,
            roster_version=header.roster_version,
            entries=entries,
        )
        try:
            return self._keyholder.PrecheckEntries(request, timeout=TIMEOUT_S).held, ""
        except grpc.RpcError as error:
            return 0, from_rpc_error(error).reason

    def progress(self, window: int, digest: bytes) -> keyholder_pb2.ReleaseProgress:
        """What the key-holder says that it holds of a release."""
        request = keyholder_pb2.GetReleaseProgressRequest(
            window_start=window, release_digest=digest
        )
        answer: keyholder_pb2.ReleaseProgress = self._keyholder.GetReleaseProgress(
            request, timeout=TIMEOUT_S
        )
        return answer

    def release_messages(self, messages: Iterable[keyholder_pb2.ReleaseMessage]) -> Answer:
        """Send any messages as a release."""
        return self._call(self._keyholder.Release, iter(messages))

    def parameters_of(self, window: int) -> CityParameters:
        """The parameters of a window's epoch, verified."""
        signed = self._keyholder.GetCityParameters(
            aggregator_pb2.GetCityParametersRequest(window_start=window), timeout=TIMEOUT_S
        )
        return open_city_parameters(
            signed.parameters, signed.signature, self.identity_key, self.config.city_id
        )

    def release_as(self, role: Role, release: BuiltRelease) -> Answer:
        """Hand a release over with another role's certificate."""
        with self._channel(role) as channel:
            stub = keyholder_pb2_grpc.KeyHolderStub(channel)
            return self._call(stub.Release, release.messages())

    # What came of it.

    def assert_gains_nothing(
        self,
        release: BuiltRelease,
        reports: Sequence[Report],
        *,
        failing: Collection[int] | None = None,
        decrypted: bool = True,
        crowd: Crowd | None = None,
    ) -> None:
        """Every lane that was tampered with is out of the total, which is exact for the others.

        If those are no cohort by themselves, the release is refused.

        Args:
            release: of the attacker.
            reports: what the honest meters reported.
            failing: the lanes that must be out; those unlike their honest selves if left out.
            decrypted: whether it takes the secret key to see what is wrong with them.
            crowd: of the window.
        """
        if failing is None:
            failing = self.tampered(release, reports, crowd)
        assert failing
        kept = [lane.count for lane in release.lanes if lane.lane not in failing]
        if not self.is_enough(sum(kept), crowd):
            self.assert_refused(release, reports, decryptions=int(decrypted), crowd=crowd)
            return
        left_out = tuple(sorted(failing))
        window, logged = release.header.window_start, len(self._log())
        answer = self.release(release)
        assert answer.code is grpc.StatusCode.OK, answer.text
        self._assert_without(window, left_out, crowd)
        self._assert_only_counted(window, reports, left_out)
        once = {lane.lane for lane in release.lanes if decrypted or lane.lane not in failing}
        assert self.decrypted(window) == dict.fromkeys(once, 1), DECRYPTED
        assert self._record(window).failures == (len(left_out) if decrypted else 0)
        # It is never tried again, whoever asks.
        assert self.release(release).receipt
        self.assert_pinned(self.built(reports, crowd))
        assert self.decrypted(window) == dict.fromkeys(once, 1), DECRYPTED
        assert self.events(window) == ["intent", "released"]
        assert not any(form in self._log()[logged:] for form in _victim_forms())
        self._assert_says_nothing(answer)

    def tampered(
        self, release: BuiltRelease, reports: Sequence[Report], crowd: Crowd | None = None
    ) -> set[int]:
        """The lanes of a release that are not what an honest aggregator makes of the reports."""
        return {
            lane
            for (lane, *made), (_, *honest) in zip(
                _by_lane(release), _by_lane(self.built(reports, crowd)), strict=True
            )
            if made != honest
        }

    def decrypted(self, window: int) -> dict[int, int]:
        """How often each lane of a window was decrypted since the start."""
        return {lane: n for (found, lane), n in self.keys.decryptions.items() if found == window}

    def assert_refused(
        self,
        release: BuiltRelease,
        reports: Sequence[Report],
        *,
        decryptions: int = 1,
        crowd: Crowd | None = None,
    ) -> None:
        """It was taken in, opened at most once, and refused for ever in the one form there is."""
        window = release.header.window_start
        logged = len(self._log())
        answer = self.release(release)
        self.assert_is_the_refusal(answer)
        assert self.events(window) == ["intent", "refused"]
        assert self.keyholder.ring.decryptions(window) == decryptions, DECRYPTED
        self.assert_pinned(self.built(reports, crowd))
        assert self.release(release) == answer
        assert self.progress(window, release.digest).complete
        assert self.events(window) == ["intent", "refused"]
        assert self.keyholder.ring.decryptions(window) == decryptions, DECRYPTED
        assert not self.entries_file(window).exists()
        news = self._log()[logged:]
        assert all(report.claim.meter_id not in news for report in reports)
        assert not any(form in news for form in _victim_forms())
        self._assert_says_nothing(answer)

    def _assert_without(self, window: int, left_out: tuple[int, ...], crowd: Crowd | None) -> None:
        """The total is exactly that of the honest meters in all other lanes."""
        total = self.total(window)
        assert total.left_out == left_out, RELEASED
        assert total.sum("import_wh") == self.truth(window, crowd, left_out), RELEASED

    def _assert_only_counted(
        self, window: int, reports: Sequence[Report], left_out: tuple[int, ...]
    ) -> None:
        """Entries are published of the meters that count, and of nobody else."""
        counted = {r.claim.meter_id for r in reports if self.lane(r) not in left_out}
        entries = self.entries_file(window).read_bytes()
        shown = {entry[:ID_BYTES] for entry in split_opened(entries)}
        assert shown == counted, RELEASED
        assert self.total(window).count == len(counted), RELEASED

    def assert_turned_away(
        self, release: BuiltRelease, reason: Reason, *, crowd: Crowd | None = None
    ) -> Answer:
        """It was not even taken in: nothing was opened, and the window is as it was."""
        window = release.header.window_start
        answer = self.release(release)
        assert answer.receipt is None, RELEASED
        assert answer.reason == reason
        assert self.events(window) == []
        assert self.keyholder.ring.decryptions(window) == 0
        assert not self.entries_file(window).exists()
        self._assert_says_nothing(answer)
        return answer

    def assert_released(self, release: BuiltRelease, total: int) -> None:
        """The honest case: the window's one total is exactly this."""
        answer = self.release(release)
        assert answer.code is grpc.StatusCode.OK, answer.text
        window = release.header.window_start
        assert self.events(window) == ["intent", "released"]
        assert self.total(window).left_out == (), MISSED
        assert self.total(window).sum("import_wh") == total
        self._assert_says_nothing(answer)

    def assert_is_the_refusal(self, answer: Answer) -> None:
        """The same bytes for every cause, window and attack."""
        assert answer.receipt is None, RELEASED
        assert answer.code is grpc.StatusCode.FAILED_PRECONDITION
        assert answer.reason == Reason.REFUSED
        key = answer.code, answer.text, answer.trailers
        self._refusal = self._refusal or key
        assert key == self._refusal

    def assert_pinned(self, release: BuiltRelease) -> None:
        """The window belongs to another release for ever."""
        answer = self.release(release)
        assert answer.receipt is None, RELEASED
        assert answer.reason == Reason.WINDOW_PINNED

    def events(self, window: int) -> list[str]:
        """What the release log says of a window."""
        return [kind for kind, found in self._records() if found == window]

    def total(self, window: int) -> Total:
        """The released total, its signature checked."""
        signed = self._record(window).total
        return open_total(signed.total, signed.signature, self.identity_key)

    def _record(self, window: int) -> WindowReleased:
        for record in LogReader(self._log_folder).poll():
            if record.released.window_start == window:
                return record.released
        raise AssertionError("nothing was released")

    def failures(self) -> int:
        """What the release log counts against the epoch's budget."""
        records = LogReader(self._log_folder).poll()
        return sum(record.released.failures + record.refused.failures for record in records)

    def entries_file(self, window: int) -> Path:
        """Where the opened entries of a released window are."""
        return self.config.published / "entries" / str(window)

    def _records(self) -> Iterator[tuple[str, int]]:
        for record in LogReader(self._log_folder).poll():
            kind = record.WhichOneof("event") or ""
            yield kind, getattr(getattr(record, kind), "window_start", 0)

    def _log(self) -> bytes:
        return (self._log_folder / "records").read_bytes()

    def _assert_says_nothing(self, answer: Answer) -> None:
        assert not any(form in answer.raw for form in _victim_forms())
        assert len(answer.raw) < 1024

    # Running it.

    def restart(self) -> None:
        """Stop the key-holder and start it again on what it kept."""
        self.close()
        self._start()

    def close(self) -> None:
        """Stop."""
        self._opened.close()

    def assert_log_is_lawful(self) -> None:
        """Whatever was attacked, the log is one that its readers accept."""
        assert_lawful(self._log_folder, self.config.city_id, self.identity_key)

    def _start(self) -> None:
        with ExitStack() as stack:
            self.keyholder = KeyHolder(self.config, self.clock)
            stack.callback(self.keyholder.close)
            server = stack.enter_context(make_server(self.keyholder, self.config))
            self.address = server.start()
            channel = stack.enter_context(self._channel(Role.AGGREGATOR))
            self._keyholder = keyholder_pb2_grpc.KeyHolderStub(channel)
            signed = self.keyholder.ring.for_window(DAY)
            keys = self.keyholder.ring.by_digest(signed.parameters.digest) if signed else None
            if keys is not None:
                self.keys = keys
                """Of the attacked epoch; they count also after they are destroyed."""
            self._opened = stack.pop_all()

    def _channel(self, role: Role) -> grpc.Channel:
        tls = self.certificates.tls(role)
        return connect(self.address, Role.KEYHOLDER, self.config.city_id, tls)

    def _roster(self, enrol: Sequence[MeterKeys] = (), withdraw: Sequence[MeterKeys] = ()) -> None:
        with self._channel(Role.REGISTRAR) as channel:
            roster = keyholder_pb2_grpc.RosterStub(channel)
            if enrol:
                enrolments = [meter.enrolment(self.config.city_id) for meter in enrol]
                request = keyholder_pb2.EnrolMetersRequest(enrolments=enrolments)
                roster.EnrolMeters(request, timeout=TIMEOUT_S)
            if withdraw:
                ids = [meter.meter_id for meter in withdraw]
                leaving = keyholder_pb2.WithdrawMetersRequest(meter_ids=ids)
                roster.WithdrawMeters(leaving, timeout=TIMEOUT_S)

    @staticmethod
    def _call(release: ReleaseCall, messages: Iterator[keyholder_pb2.ReleaseMessage]) -> Answer:
        try:
            return Answer(release(messages, timeout=TIMEOUT_S))
        except grpc.RpcError as error:
            call = cast(grpc.Call, error)
            trailers = tuple(
                (name, value if isinstance(value, bytes) else value.encode())
                for name, value in cast(Iterable[tuple[str, str | bytes]], call.trailing_metadata())
            )
            return Answer(None, call.code(), call.details() or "", trailers)


def _by_lane(release: BuiltRelease) -> Iterator[tuple[int, bytes, bytes]]:
    """Each lane's number, sum and entries."""
    at = 0
    for lane in release.lanes:
        end = at + lane.count * ENTRY_BYTES
        yield lane.lane, lane.ciphertext, release.entries[at:end]
        at = end


def _victim_forms() -> list[bytes]:
    """The victim's reading as text and as integers."""
    widths = [VICTIM_WH.to_bytes(width, order) for width in (4, 8) for order in ("little", "big")]
    return [str(VICTIM_WH).encode(), f"{VICTIM_WH:x}".encode(), *widths]
