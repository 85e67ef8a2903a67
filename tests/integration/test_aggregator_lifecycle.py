"""An aggregator beside a real key-holder: from enrolment to released totals, through restarts."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from gridveil.protocol.ciphertext import add, parse_ciphertext, to_bytes
from gridveil.protocol.city import open_city_parameters
from gridveil.protocol.errors import (
    GridveilError,
    MalformedInput,
    NotAuthentic,
    Reason,
    Unavailable,
)
from gridveil.protocol.release import open_total
from gridveil.protocol.v1 import aggregator_pb2, report_pb2
from gridveil.protocol.windows import EXPIRY_S
from gridveil_services.aggregator.config import AggregatorConfig
from gridveil_services.aggregator.serve import Aggregator
from gridveil_services.aggregator.store.interface import Phase, StoreFailed
from gridveil_services.releaselog.reader import LogReader
from tests.support.aggregators import LENGTH, LocalCity, refusal
from tests.support.reports import WINDOW, build_report, make_members

CLOSES = WINDOW + LENGTH + 300
METERS = 120


def events(city: LocalCity, window: int = WINDOW) -> list[str]:
    """What the key-holder's log says of a window."""
    found = []
    for record in LogReader(city.paths.published / "log").poll():
        kind = record.WhichOneof("event") or ""
        if getattr(getattr(record, kind), "window_start", None) == window:
            found.append(kind)
    return found


def total(city: LocalCity, window: int = WINDOW) -> int:
    """The released import of a window, from the key-holder's log."""
    key = city.aggregator_config.identity_key
    for record in LogReader(city.paths.published / "log").poll():
        if record.WhichOneof("event") == "released" and record.released.window_start == window:
            signed = record.released.total
            return open_total(signed.total, signed.signature, key).sum("import_wh")
    raise AssertionError("the window was not released")


def report_window(city: LocalCity, window: int = WINDOW) -> None:
    """Every meter reports; all are accepted."""
    city.enter_window(window)
    reply = city.stub("gateway").SubmitReports(city.batch(window))
    assert all(outcome.HasField("receipt") for outcome in reply.outcomes)


def seal_and_release(city: LocalCity) -> Phase:
    city.aggregator.sealer.step()
    city.aggregator.releaser.step()
    return city.stored_window().phase


def release_when_due(city: LocalCity) -> Phase:
    """The phase of the window after the next attempt, which the releaser puts off."""
    time.sleep(city.aggregator.releaser.step())
    city.aggregator.releaser.step()
    return city.stored_window().phase


def lock(city: LocalCity) -> int:
    """Have another window refused, which locks the key-holder; the index of its record."""
    ledger, other = city.keyholder.ledger, WINDOW + 3 * LENGTH
    ledger.claim(other, bytes(32), city.parameters().digest, 1)
    ledger.refused(other, bytes(32))
    assert ledger.locked_at is not None
    return ledger.locked_at


class TestRelease:
    def test_a_window_is_released_exactly_and_its_entries_are_deleted(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=METERS) as city:
            report_window(city)
            store = city.aggregator.store
            city.aggregator.sealer.step()
            assert city.stored_window().phase is Phase.SEALED
            assert sum(map(len, store.entries(WINDOW))) == 196 * METERS
            city.clock.move_to(CLOSES)
            assert seal_and_release(city) is Phase.RELEASED
            assert events(city) == ["intent", "released"]
            assert total(city) == 250 * METERS
            assert list(store.entries(WINDOW)) == []

    def test_a_window_seals_when_it_closes_or_when_all_have_reported(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=3) as city:
            city.enter_window(WINDOW)
            stub = city.stub("meter")
            for meter in range(2):
                stub.SubmitReport(city.report(meter))
            city.clock.move_to(CLOSES - 1)
            city.aggregator.sealer.step()
            assert city.stored_window().phase is Phase.OPEN
            stub.SubmitReport(city.report(2))
            city.aggregator.sealer.step()
            assert city.stored_window().phase is Phase.SEALED
            city.enter_window(WINDOW + LENGTH)
            city.clock.move_to(CLOSES + LENGTH)
            city.aggregator.sealer.step()
            assert city.stored_window(WINDOW + LENGTH).phase is Phase.SEALED

    def test_too_small_a_cohort_is_final_once_the_window_closed(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=3) as city:
            report_window(city)
            assert seal_and_release(city) is Phase.SEALED
            city.clock.move_to(CLOSES)
            city.restart_aggregator()
            assert seal_and_release(city) is Phase.REFUSED
            assert city.aggregator.store.lane_sums(WINDOW) == []

    def test_a_locked_key_holder_is_asked_again_until_it_is_unlocked(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=METERS, refusals_per_day=1) as city:
            report_window(city)
            locked_at = lock(city)
            city.aggregator.sealer.step()
            with capture_logs() as logs:
                delays = [city.aggregator.releaser.step() for _ in range(3)]
            attempts = [line["reason"] for line in logs if line["event"] == "not released"]
            assert attempts == [Reason.KEYHOLDER_LOCKED], "it is not asked again at once"
            assert all(0 < delay <= 60 for delay in delays)
            assert city.stored_window().phase is Phase.SEALED
            city.stop_keyholder()
            city.start_keyholder(unlock=locked_at)
            assert release_when_due(city) is Phase.RELEASED
            assert total(city) == 250 * METERS

    def test_a_window_that_meets_a_lock_for_its_whole_time_expires(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=METERS, refusals_per_day=1) as city:
            report_window(city)
            lock(city)
            assert seal_and_release(city) is Phase.SEALED
            city.clock.move_to(WINDOW + LENGTH + EXPIRY_S)
            assert release_when_due(city) is Phase.EXPIRED
            city.keyholder.upkeep.tick()
            assert events(city) == ["expired"]

    def test_nobody_reported_and_nothing_is_released(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=3) as city:
            city.enter_window(WINDOW)
            city.clock.move_to(CLOSES)
            assert seal_and_release(city) is Phase.EMPTY
            assert events(city) == []

    def test_a_window_that_was_not_settled_in_a_day_expires(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=3) as city:
            report_window(city)
            city.aggregator.sealer.step()
            city.stop_keyholder()
            city.clock.move_to(WINDOW + LENGTH + 86_399)
            city.aggregator.releaser.step()
            assert city.stored_window().phase is Phase.SEALED
            city.restart_aggregator()
            city.clock.move_to(WINDOW + LENGTH + 86_400)
            city.aggregator.releaser.step()
            assert city.stored_window().phase is Phase.EXPIRED

    def test_a_release_waits_for_the_keyholder_and_survives_a_restart(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=METERS) as city:
            report_window(city)
            city.clock.move_to(CLOSES)
            city.stop_keyholder()
            assert seal_and_release(city) is Phase.SEALED
            city.restart_aggregator()
            city.start_keyholder()
            assert seal_and_release(city) is Phase.RELEASED
            assert total(city) == 250 * METERS

    def test_an_answer_that_was_lost_is_asked_for_again(self, tmp_path: Path) -> None:
        """The key-holder settled the window, and the aggregator stopped before it noted that."""
        with LocalCity.create(tmp_path, meters=METERS) as city:
            report_window(city)
            city.clock.move_to(CLOSES)
            city.aggregator.sealer.step()
            city.aggregator.committer.close()
            with pytest.raises(Unavailable):
                city.aggregator.releaser.step()
            assert events(city) == ["intent", "released"]
            city.restart_aggregator()
            assert city.stored_window().phase is Phase.SEALED
            assert seal_and_release(city) is Phase.RELEASED
            assert events(city) == ["intent", "released"]

    def test_another_release_than_the_settled_one_is_refused_for_ever(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=METERS) as city:
            report_window(city)
            city.clock.move_to(CLOSES)
            state = city.aggregator_config.state
            assert seal_and_release(city) is Phase.RELEASED
            city.stop_aggregator()
            for path in state.iterdir():
                path.unlink()
            city.clock.move_to(WINDOW + LENGTH)
            city.start_aggregator()
            report_window(city)
            city.clock.move_to(CLOSES)
            assert seal_and_release(city) is Phase.REFUSED
            assert events(city) == ["intent", "released"]


class TestFollowing:
    def test_reports_wait_until_the_roster_is_known(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=3) as city:
            city.clock.move_to(WINDOW + LENGTH)
            with pytest.raises(grpc.RpcError) as refused:
                city.stub("meter").SubmitReport(city.report(0))
            assert refusal(refused.value) == ("UNAVAILABLE", "KEYHOLDER_UNAVAILABLE")
            city.aggregator.follower.step()
            city.stub("meter").SubmitReport(city.report(0))

    def test_health_says_whether_reports_can_be_judged(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=3) as city:
            health: Any = health_pb2_grpc.HealthStub(city.channel("meter"))
            request = health_pb2.HealthCheckRequest()
            assert health.Check(request).status == health_pb2.HealthCheckResponse.NOT_SERVING
            city.enter_window(WINDOW)
            assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING

    def test_a_restart_works_while_the_keyholder_is_away(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=3) as city:
            city.enter_window(WINDOW)
            message = city.report(0)
            city.stop_keyholder()
            city.restart_aggregator()
            assert city.aggregator.follower.ready
            receipt = city.stub("meter").SubmitReport(message)
            assert not receipt.duplicate

    def test_enrolment_and_withdrawal_take_effect_with_the_next_window(
        self, tmp_path: Path
    ) -> None:
        with LocalCity.create(tmp_path, meters=3) as city:
            city.enter_window(WINDOW)
            newcomer = make_members(1, seed=5)[0]
            city.keyholder.roster.enrol([newcomer.member])
            city.keyholder.roster.withdraw([city.meters[0].meter_id])
            city.meters.append(newcomer)
            stub = city.stub("meter")
            stub.SubmitReport(city.report(0))
            with pytest.raises(grpc.RpcError) as refused:
                stub.SubmitReport(city.report(3))
            assert refusal(refused.value) == ("UNAUTHENTICATED", "SIGNATURE_INVALID")
            following = WINDOW + 2 * LENGTH
            city.enter_window(following)
            city.restart_aggregator()
            assert city.stored_window(following).enrolled == 3
            stub = city.stub("meter")
            stub.SubmitReport(city.report(3, following))
            with pytest.raises(grpc.RpcError) as refused:
                stub.SubmitReport(city.report(0, following))
            assert refusal(refused.value) == ("PERMISSION_DENIED", "METER_REVOKED")

    def test_an_older_roster_than_the_one_known_opens_no_window(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=3) as city:
            city.clock.move_to(WINDOW + LENGTH)
            city.keyholder.roster.withdraw([city.meters[0].meter_id])
            later = WINDOW + 2 * LENGTH
            city.enter_window(later)
            assert city.stored_window(later).roster_version == 2
            city.clock.move_to(WINDOW + 20)
            city.aggregator.follower.step()
            assert city.aggregator.store.window(WINDOW) is None
            head = city.aggregator.documents.roster()
            assert head is not None
            assert head[0].version == 2

    def test_a_roster_that_drifted_is_fetched_whole(self, tmp_path: Path) -> None:
        """A member was lost: the next change does not lead to the signed digest."""
        with LocalCity.create(tmp_path, meters=3) as city:
            city.enter_window(WINDOW)
            aggregator = city.aggregator
            lost = sorted(meter.meter_id for meter in city.meters)[1]
            head = aggregator.documents.roster()
            assert head is not None
            aggregator.documents.save_roster(*head, [lost], [])
            newcomer = make_members(1, seed=5)[0]
            city.keyholder.roster.enrol([newcomer.member])
            city.meters.append(newcomer)
            city.enter_window(WINDOW + 2 * LENGTH)
            members = [member.meter_id for member in aggregator.documents.members()]
            assert members == sorted(meter.meter_id for meter in city.meters)

    def test_a_new_epoch_is_known_before_it_begins(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=3) as city:
            city.enter_window(WINDOW)
            end = city.parameters().epoch.end_window
            last = end - LENGTH
            city.enter_window(last)
            asked = aggregator_pb2.GetCityParametersRequest
            stub = city.stub("meter")
            ahead = stub.GetCityParameters(asked(window_start=end))
            key = city.aggregator_config.identity_key
            city_id = city.aggregator_config.city_id
            opened = open_city_parameters(ahead.parameters, ahead.signature, key, city_id)
            assert opened.epoch.first_window == end
            assert ahead.parameters == city.parameters(end).encode()
            current = stub.GetCityParameters(asked(window_start=last))
            assert current.parameters == city.parameters(last).encode() != ahead.parameters
            assert stub.GetCityParameters(asked()) == ahead
            city.enter_window(end)
            stub.SubmitReport(city.report(0, end))
            with pytest.raises(grpc.RpcError) as refused:
                stub.SubmitReport(old_epoch_report(city, end))
            assert refusal(refused.value) == ("FAILED_PRECONDITION", "KEY_EPOCH")

    def test_a_keyholder_with_another_identity_is_not_believed(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=3) as city:
            city.enter_window(WINDOW)
            city.stop_aggregator()
            pinned = city.aggregator_config
            city.aggregator_config = replace(pinned, identity_key=bytes(32))
            with pytest.raises(NotAuthentic) as refused:
                city.start_aggregator()
            assert refused.value.reason is Reason.KEY_NOT_PINNED
            city.aggregator_config = replace(
                pinned, identity_key=bytes(32), state=tmp_path / "elsewhere"
            )
            city.start_aggregator()
            city.aggregator.follower.step()
            assert not city.aggregator.follower.ready

    def test_a_config_that_says_development_of_another_city_never_serves(
        self, tmp_path: Path
    ) -> None:
        with LocalCity.create(tmp_path, meters=3, development=False) as city:
            city.stop_aggregator()
            city.aggregator_config = replace(city.aggregator_config, development=True)
            city.start_aggregator()
            city.enter_window(WINDOW)
            assert not city.aggregator.follower.ready


def old_epoch_report(city: LocalCity, window: int) -> report_pb2.Report:
    old = city.parameters(window - LENGTH)
    return build_report(old, city.meters[1], window, [1, 1]).to_message()


class TestAggregates:
    def ask(
        self, city: LocalCity, kind: int, role: str = "auditor", window: int = WINDOW
    ) -> aggregator_pb2.EncryptedAggregate:
        request = aggregator_pb2.GetAggregateRequest(window_start=window, kind=kind)  # type: ignore[arg-type]
        answer: aggregator_pb2.EncryptedAggregate = city.stub(role).GetAggregate(request)
        return answer

    def test_sum_and_mean_are_the_same_bytes_at_another_scale(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=METERS) as city:
            city.enter_window(WINDOW)
            batch = city.batch()
            city.stub("gateway").SubmitReports(batch)
            city.aggregator.sealer.step()
            total, mean = self.ask(city, 1), self.ask(city, 2, role="keyholder")
            assert total.count == mean.count == METERS
            assert list(total.lanes) == list(mean.lanes)
            assert (total.scale, mean.scale) == (2.0**24, METERS * 2.0**24)
            policy = city.parameters().policy
            crypto, slots = policy.crypto, policy.layout.slots
            parsed = [parse_ciphertext(r.ciphertext, crypto, slots) for r in batch.reports]
            lanes = [np.frombuffer(lane.ciphertext, dtype="<u8") for lane in total.lanes]
            assert to_bytes(add(lanes, crypto)) == to_bytes(add(parsed, crypto))

    def test_an_aggregate_is_kept_for_its_retention_and_not_longer(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=METERS) as city:
            report_window(city)
            city.clock.move_to(CLOSES)
            assert seal_and_release(city) is Phase.RELEASED
            city.clock.move_to(WINDOW + LENGTH + 86_400)
            city.aggregator.sealer.step()
            assert self.ask(city, 1).count == METERS
            city.clock.move_to(WINDOW + LENGTH + 86_401)
            city.aggregator.sealer.step()
            with pytest.raises(grpc.RpcError) as refused:
                self.ask(city, 1)
            assert refusal(refused.value) == ("NOT_FOUND", "NOT_FOUND")

    def test_an_aggregate_of_too_few_meters_is_not_given_out(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=3) as city:
            report_window(city)
            city.aggregator.sealer.step()
            with pytest.raises(grpc.RpcError) as refused:
                self.ask(city, 1, role="keyholder")
            assert refusal(refused.value) == ("FAILED_PRECONDITION", "COHORT_TOO_SMALL")


class TestConfig:
    @pytest.mark.parametrize(
        ("old", "new", "named"),
        [
            ("retention_s = 86400", "retention_s = 3600", "retention_s"),
            ("retention_s = 86400", "retention = 86400", "retention"),
            ("city_id = ", "city_id = 5 # ", "city_id"),
            ("retention_s = 86400", "max_store_bytes = 1", "max_store_bytes"),
            ("listen", "# listen", "listen"),
        ],
    )
    def test_a_wrong_config_names_the_key(
        self, tmp_path: Path, old: str, new: str, named: str
    ) -> None:
        from gridveil_services.bootstrap.city import CityOptions, create_city

        path = create_city(tmp_path / "city", CityOptions(min_cohort=100)).config("aggregator")
        AggregatorConfig.load(path)
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
        with pytest.raises(MalformedInput, match=named):
            AggregatorConfig.load(path)

    def test_a_state_in_use_is_refused(self, tmp_path: Path) -> None:
        with LocalCity.create(tmp_path, meters=0) as city:
            with pytest.raises(StoreFailed) as refused:
                Aggregator(city.aggregator_config, city.clock)
            assert isinstance(refused.value, GridveilError)
