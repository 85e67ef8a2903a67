"""Too many refused windows lock the key-holder, over mTLS: it releases nothing until unlocked."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from structlog.testing import capture_logs

from gridveil.clock import ManualClock, SystemClock
from gridveil.protocol.errors import GridveilError, Reason
from gridveil.protocol.v1 import aggregator_pb2, keyholder_pb2, keyholder_pb2_grpc
from gridveil.protocol.v1.keyholder_pb2 import ReleaseMessage
from gridveil.transport import connect, from_rpc_error
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import AtRest
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.ledger import Ledger
from gridveil_services.keyholder.publication import LOG
from gridveil_services.keyholder.serve import make_server
from gridveil_services.releaselog.signing import LogSigner
from gridveil_services.rpc import Role
from tests.support.keyholders import refusal_of, unpublishable
from tests.support.lanes import NOW, LaneCity, prepare_lanes, window_at
from tests.support.ports import spare_addresses
from tests.support.receiver import Certificates
from tests.support.reports import BuiltRelease, make_members

pytestmark = pytest.mark.long

BUDGET = 2
ALARM = "locked: too many windows were refused"
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> LaneCity:
    return prepare_lanes(tmp_path_factory.mktemp("prepared") / "city")


class ServedCity:
    """A key-holder that two refusals lock, as the roles of its city reach it."""

    def __init__(self, city: LaneCity, folder: Path) -> None:
        config = city.city.config
        self.certificates = Certificates.make(folder, config.city_id)
        self.config = replace(
            config,
            refusals_per_day=BUDGET,
            listen="127.0.0.1:0",
            tls=self.certificates.tls(Role.KEYHOLDER),
        )
        self.city = LaneCity(replace(city.city, config=self.config), city._reports)
        self.clock = ManualClock(NOW)
        self._opened = ExitStack()

    def start(self, unlock: int | None = None) -> None:
        with ExitStack() as stack:
            self.keyholder = KeyHolder(self.config, self.clock, unlock=unlock)
            stack.callback(self.keyholder.close)
            server = stack.enter_context(make_server(self.keyholder, self.config))
            self._address = server.start()
            self._channels = stack.enter_context(ExitStack())
            self._opened = stack.pop_all()

    def stop(self) -> None:
        self._opened.close()

    def restart(self, unlock: int | None = None) -> None:
        self.stop()
        self.start(unlock)

    def channel(self, role: Role) -> grpc.Channel:
        tls = self.certificates.tls(role)
        city_id = self.config.city_id
        return self._channels.enter_context(connect(self._address, "keyholder", city_id, tls))

    @property
    def stub(self) -> keyholder_pb2_grpc.KeyHolderStub:
        return keyholder_pb2_grpc.KeyHolderStub(self.channel(Role.AGGREGATOR))

    def release(self, release: BuiltRelease) -> keyholder_pb2.ReleaseReceipt:
        receipt: keyholder_pb2.ReleaseReceipt = self.stub.Release(
            release.messages(), timeout=TIMEOUT_S
        )
        return receipt

    def refusal(self, release: BuiltRelease) -> GridveilError:
        return from_rpc_error(self.failure(release))

    def failure(self, release: BuiltRelease) -> Any:
        with pytest.raises(grpc.RpcError) as failure:
            self.release(release)
        return failure.value

    def honest(self, number: int) -> BuiltRelease:
        return self.city.release(number)

    def refused(self, number: int) -> BuiltRelease:
        """Refused before anything is decrypted: meters of three lanes sealed nothing."""
        return self.city.release(number, unsealed=[0, 1, 2])

    def lock(self, *numbers: int) -> int:
        for number in numbers or (0, 1):
            assert self.refusal(self.refused(number)).reason is Reason.REFUSED
        locked_at = self.keyholder.ledger.locked_at
        assert locked_at is not None
        return locked_at

    def assert_locked(self, number: int) -> None:
        """Nothing is claimed or decrypted for a window that was not settled."""
        before = self.events()
        assert self.refusal(self.honest(number)).reason is Reason.KEYHOLDER_LOCKED
        assert self.keyholder.ring.decryptions(window_at(number)) == 0
        assert self.events() == before

    def events(self) -> list[str]:
        return [record.WhichOneof("event") or "" for record in self.city.city.log().poll()]


@pytest.fixture
def served(prepared: LaneCity, tmp_path: Path) -> Iterator[ServedCity]:
    city = ServedCity(prepared.copy(tmp_path / "city"), tmp_path)
    city.start()
    yield city
    city.stop()


def alarms(logs: Sequence[Any]) -> list[tuple[str, int]]:
    return [(line["log_level"], line["record"]) for line in logs if line["event"] == ALARM]


def test_the_last_refusal_of_the_budget_locks_and_raises_the_alarm_once(
    served: ServedCity,
) -> None:
    with capture_logs() as logs:
        assert served.refusal(served.refused(0)).reason is Reason.REFUSED
        assert not alarms(logs)
        served.release(served.honest(1))
        locked_at = served.lock(2)
        served.assert_locked(3)
    assert served.events()[locked_at] == "refused"
    assert locked_at == len(served.events()) - 1
    assert alarms(logs) == [("error", locked_at)]


def test_a_locked_key_holder_names_no_time_to_come_back(served: ServedCity) -> None:
    served.lock()
    failure = served.failure(served.honest(2))
    assert failure.code() is grpc.StatusCode.UNAVAILABLE
    status = rpc_status.from_call(failure)
    assert status is not None
    assert not any(d.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for d in status.details)
    assert from_rpc_error(failure).metadata == {}


def test_neither_a_restart_nor_a_day_unlocks(served: ServedCity) -> None:
    served.lock()
    for _ in range(2):
        with capture_logs() as logs:
            served.restart()
        assert len(alarms(logs)) == 1
        served.assert_locked(2)
    served.clock.move_to(NOW + 3 * 86_400)
    served.restart()
    assert served.keyholder.ledger.locked_at is not None


def test_refusals_of_another_day_do_not_add_up(served: ServedCity) -> None:
    served.clock.move_to(window_at(1) + 400)
    assert served.refusal(served.refused(0)).reason is Reason.REFUSED
    served.clock.move_to(window_at(1) + 400 + 86_400)
    assert served.refusal(served.refused(4)).reason is Reason.REFUSED
    assert served.keyholder.ledger.locked_at is None
    served.lock(5)


def test_what_was_settled_is_still_answered_as_before(served: ServedCity) -> None:
    first = served.release(served.honest(0))
    served.lock(1, 2)
    again = served.release(served.honest(0))
    assert (again.release_digest, again.replayed) == (first.release_digest, True)
    assert served.refusal(served.refused(1)).reason is Reason.REFUSED
    assert served.refusal(served.honest(1)).reason is Reason.WINDOW_PINNED
    for number, complete in ((0, True), (1, True), (3, False)):
        request = keyholder_pb2.GetReleaseProgressRequest(
            window_start=window_at(number), release_digest=served.honest(number).digest
        )
        progress = served.stub.GetReleaseProgress(request, timeout=TIMEOUT_S)
        assert progress.complete is complete


def test_everything_but_releasing_goes_on(served: ServedCity) -> None:
    served.lock()
    registrar = keyholder_pb2_grpc.RosterStub(served.channel(Role.REGISTRAR))
    (newcomer,) = make_members(1, seed=99)
    enrolment = newcomer.enrolment(served.config.city_id)
    registrar.EnrolMeters(
        keyholder_pb2.EnrolMetersRequest(enrolments=[enrolment]), timeout=TIMEOUT_S
    )
    registrar.WithdrawMeters(
        keyholder_pb2.WithdrawMetersRequest(meter_ids=[newcomer.meter_id]), timeout=TIMEOUT_S
    )
    assert served.events()[-2:] == ["roster_changed", "roster_changed"]
    suspects = registrar.ListSuspects(
        keyholder_pb2.ListSuspectsRequest(limit=10), timeout=TIMEOUT_S
    )
    assert suspects.suspects
    roster = keyholder_pb2_grpc.RosterStub(served.channel(Role.AGGREGATOR))
    request = keyholder_pb2.GetRosterRequest(window_start=window_at(0))
    assert list(roster.GetRoster(request, timeout=TIMEOUT_S))
    parameters = served.stub.GetCityParameters(
        aggregator_pb2.GetCityParametersRequest(window_start=window_at(0)), timeout=TIMEOUT_S
    )
    assert parameters.parameters
    health: Any = health_pb2_grpc.HealthStub(served.channel(Role.AGGREGATOR))
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    # Advice to whoever watches it: all of the above was answered meanwhile.
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    served.clock.move_to(window_at(3) + 900 + 86_400)
    served.keyholder.upkeep.tick()
    assert "expired" in served.events()


def test_it_releases_again_when_its_very_lock_is_unlocked(served: ServedCity) -> None:
    locked_at = served.lock()
    with capture_logs() as logs:
        served.restart(unlock=locked_at)
    assert not alarms(logs)
    (unlocked,) = served.city.logged("keyholder_unlocked")
    assert unlocked.keyholder_unlocked.locked_at_index == locked_at
    served.release(served.honest(2))
    served.city.assert_exact(2)
    served.restart()
    served.release(served.honest(3))


@pytest.mark.parametrize("offset", [-1, 1])
def test_another_index_unlocks_nothing_and_starts_nothing(served: ServedCity, offset: int) -> None:
    locked_at = served.lock()
    served.stop()
    before = served.events()
    with pytest.raises(GridveilError) as refusal:
        KeyHolder(served.config, served.clock, unlock=locked_at + offset)
    assert refusal.value.reason is Reason.KEYHOLDER_LOCKED
    assert served.events() == before
    served.start()
    served.assert_locked(2)


def test_a_flag_that_was_left_in_place_does_not_unlock_the_next_lock(served: ServedCity) -> None:
    first = served.lock()
    served.restart(unlock=first)
    served.restart(unlock=first)
    second = served.lock(2, 3)
    with pytest.raises(GridveilError) as refusal:
        served.restart(unlock=first)
    assert refusal.value.reason is Reason.KEYHOLDER_LOCKED
    served.start(unlock=second)
    served.release(served.honest(4))


def test_what_was_refused_before_an_unlocking_is_not_counted_again(served: ServedCity) -> None:
    served.restart(unlock=served.lock())
    assert served.refusal(served.refused(2)).reason is Reason.REFUSED
    served.release(served.honest(3))
    served.lock(4)
    served.assert_locked(5)


# Crashes and races.


def refuse_while_closed(served: ServedCity, *numbers: int) -> None:
    """The records of a key-holder that died right after they were durable."""
    config = served.config
    key = identity.load(config.state, AtRest.load(config.key_encrypting_key_file, config.city_id))
    ledger = Ledger(config.published / LOG, served.clock, LogSigner(config.city_id, key))
    refuse(ledger, served, *numbers)
    ledger.close()


def refuse(ledger: Ledger, served: ServedCity, *numbers: int) -> None:
    for number in numbers:
        ledger.claim(window_at(number), bytes(32), served.city.city.parameters.digest, 1)
        ledger.refused(window_at(number), bytes(32))


def test_a_crash_right_after_the_locking_record_leaves_it_locked(served: ServedCity) -> None:
    served.stop()
    refuse_while_closed(served, 0, 1)
    with capture_logs() as logs:
        served.start()
    assert len(alarms(logs)) == 1
    served.assert_locked(2)


def test_a_claim_of_before_the_lock_is_settled_at_the_next_start(served: ServedCity) -> None:
    with unpublishable(served.city.city, window_at(2)):
        reason = served.refusal(served.honest(2)).reason
        assert reason is Reason.KEYHOLDER_UNAVAILABLE
    served.stop()
    refuse_while_closed(served, 0, 1)
    served.start()
    assert served.release(served.honest(2)).replayed
    served.city.assert_exact(2)
    served.assert_locked(3)


def test_a_claim_that_is_refused_at_the_start_may_lock_it(served: ServedCity) -> None:
    assert served.refusal(served.refused(0)).reason is Reason.REFUSED
    with unpublishable(served.city.city, window_at(1)):
        assert served.refusal(served.honest(1)).reason is Reason.KEYHOLDER_UNAVAILABLE
    served.stop()
    (spool,) = (served.config.state / "spool").iterdir()
    (spool / "entries").unlink()
    with capture_logs() as logs:
        served.start()
    assert len(alarms(logs)) == 1
    served.assert_locked(2)


def test_a_release_that_came_in_while_it_was_locked_claims_nothing(served: ServedCity) -> None:
    """The check before the stream is not enough: others may be refused meanwhile."""
    release = served.honest(2)

    def locking(messages: Iterator[ReleaseMessage]) -> Iterator[ReleaseMessage]:
        yield next(messages)
        refuse(served.keyholder.ledger, served, 0, 1)
        yield from messages

    with pytest.raises(GridveilError) as refusal:
        served.keyholder.releases.release(locking(release.messages()))
    assert refusal.value.reason is Reason.KEYHOLDER_LOCKED
    assert served.keyholder.ring.decryptions(window_at(2)) == 0
    assert not served.keyholder.ledger.failed
    served.restart(unlock=served.keyholder.ledger.locked_at)
    held = served.keyholder.releases.progress(window_at(2), release.digest)
    assert held == len(release.entries), "what came in is not sent again"
    served.keyholder.releases.release(release.messages(offset=held))
    served.city.assert_exact(2)


def test_a_window_of_a_spent_epoch_is_not_even_refused_while_locked(served: ServedCity) -> None:
    ledger, digest = served.keyholder.ledger, served.city.city.parameters.digest
    ledger.claim(window_at(0), bytes(32), digest, 1)
    ledger.refused(window_at(0), bytes(32), 5)
    refuse(ledger, served, 1)
    assert refusal_of(served.keyholder, served.honest(2)).reason is Reason.KEYHOLDER_LOCKED
    assert served.events()[-2:] == ["intent", "refused"]


# The command.


def serve_command(paths: CityPaths, *arguments: object) -> list[str]:
    serve = [sys.executable, "-m", "gridveil.cli", "keyholder", "serve"]
    return [*serve, "--config", str(paths.config("keyholder")), *map(str, arguments)]


def refused_start(paths: CityPaths, *arguments: object) -> str:
    """The one line with which it does not start."""
    run = subprocess.run(
        serve_command(paths, *arguments), capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout) == (2, "")
    return run.stderr.splitlines()[-1]


def lock_by_default(paths: CityPaths) -> int:
    """As many refusals as ``gridveil init`` writes down."""
    keyholder = KeyHolder(KeyHolderConfig.load(paths.config("keyholder")), SystemClock())
    for window in range(900, 900 * 6, 900):
        assert keyholder.ledger.locked_at is None
        keyholder.ledger.claim(window, bytes(32), bytes(32), 1)
        keyholder.ledger.refused(window, bytes(32))
    locked_at = keyholder.ledger.locked_at
    keyholder.close()
    assert locked_at is not None
    return locked_at


def test_the_command_unlocks_by_the_index_that_the_alarm_names(tmp_path: Path) -> None:
    paths = create_city(tmp_path / "city", CityOptions(min_cohort=100, addresses=spare_addresses()))
    assert refused_start(paths, "--unlock", 7) == "CONFIG_INVALID: the key-holder is not locked"
    locked_at = lock_by_default(paths)
    line = refused_start(paths, "--unlock", locked_at - 1)
    assert line.startswith(f"KEYHOLDER_LOCKED: record {locked_at} of the release log locked it")
    for arguments, alarmed in (((), True), (("--unlock", locked_at), False), ((), False)):
        with subprocess.Popen(
            serve_command(paths, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["event"] == "serving"
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
        assert process.returncode == 0
        found = [line for line in map(json.loads, said.splitlines()) if line["event"] == ALARM]
        assert [(line["level"], line["record"]) for line in found] == (
            [("error", locked_at)] if alarmed else []
        )
