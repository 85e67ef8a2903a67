"""What a city's services say of themselves to whoever scrapes them."""

from __future__ import annotations

import base64
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.aggregator.metrics import AggregatorMetrics, LaneReports
from gridveil_services.keyholder.differencing import Difference
from gridveil_services.metrics.config import MetricsSection, address_of
from gridveil_services.metrics.exposition import MOST_CONNECTIONS, MetricsServer
from tests.support.aggregators import IngestHarness
from tests.support.metrics import (
    ANYWHERE,
    CANARIES,
    METERS,
    Played,
    played_city,
    scrape,
    series,
    value,
)
from tests.support.reports import WINDOW


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with played_city(tmp_path_factory.mktemp("metrics")) as found:
        yield found


def test_an_aggregator_counts_what_became_of_reports(played: Played) -> None:
    found = played.series("aggregator")
    assert value(found, "gridveil_reports_total", outcome="accepted", reason="") == METERS
    assert value(found, "gridveil_reports_total", outcome="duplicate", reason="") == 1
    refused = value(found, "gridveil_reports_total", outcome="refused", reason="SIGNATURE_INVALID")
    assert refused == 1
    assert value(found, "gridveil_commit_reports_sum") == METERS
    assert value(found, "gridveil_reports_in_progress") == 0
    for stage in ("parse", "verify", "known", "sum", "commit_wait", "commit"):
        assert value(found, "gridveil_ingest_stage_seconds_count", stage=stage) == 2
    assert value(found, "gridveil_store_failures_total", reason="STORE_FULL") == 0


def test_calls_are_counted_by_method_status_and_reason(played: Played) -> None:
    found, method = played.series("aggregator"), "gridveil.v1.Aggregator/SubmitReports"
    calls = "gridveil_calls_total"
    assert value(found, calls, method=method, code="OK", reason="") == 2
    empty = {"code": "INVALID_ARGUMENT", "reason": "BATCH_EMPTY"}
    assert value(found, calls, method=method, **empty) == 1
    assert value(found, "gridveil_call_seconds_count", method=method) == 3


def test_an_aggregator_tells_of_its_windows_and_releases(played: Played) -> None:
    found = played.series("aggregator")
    assert value(found, "gridveil_windows", phase="released") == 1
    assert value(found, "gridveil_windows", phase="poisoned") == 0
    assert value(found, "gridveil_oldest_unsettled_window_age_seconds") == 0
    assert value(found, "gridveil_release_attempt_seconds_count", outcome="released") == 1
    assert {
        dict(labels)["condition"]: number
        for (name, labels), number in found.items()
        if name == "gridveil_ready"
    } == {"serving": 1, "certificate": 1, "parameters": 1, "store": 1}


def test_a_keyholder_tells_what_is_left_of_its_budgets(played: Played) -> None:
    found = played.series("keyholder")
    config = played.city.keyholder_config
    prefix = "gridveil_keyholder"
    assert value(found, f"{prefix}_releases_total", outcome="released", reason="") == 1
    assert value(found, f"{prefix}_lanes_decrypted_total", outcome="opened") >= 1
    assert value(found, f"{prefix}_lanes_decrypted_total", outcome="failed") == 0
    assert value(found, f"{prefix}_failures_left") == config.policy.failure_budget
    assert value(found, f"{prefix}_refusals_today") == 0
    assert value(found, f"{prefix}_refusals_budget") == config.refusals_per_day
    assert value(found, f"{prefix}_locked") == 0
    assert value(found, f"{prefix}_last_result_timestamp_seconds") > WINDOW
    assert value(found, f"{prefix}_log_records") > 3


def test_a_keyholder_tells_of_suspects_and_of_cohorts_that_were_compared(played: Played) -> None:
    found = played.series("keyholder")
    for evidence in ("strong", "proven"):
        assert value(found, "gridveil_keyholder_suspects", evidence=evidence) == 0
    for difference in Difference:  # there was one total only
        cohorts = "gridveil_keyholder_cohorts_total"
        assert value(found, cohorts, difference=difference.value) == 0


def test_reports_are_counted_by_lane_once_their_window_is_sealed(played: Played) -> None:
    lanes = {
        dict(labels)["lane"]: number
        for (name, labels), number in played.series("aggregator").items()
        if name == "gridveil_lane_reports"
    }
    assert sorted(lanes) == [str(lane) for lane in range(played.city.stored_window().lanes)]
    assert sum(lanes.values()) == METERS


def test_a_lane_without_a_report_is_zero_and_windows_that_are_open_are_not_told(
    tmp_path: Path,
) -> None:
    harness = IngestHarness(tmp_path, meters=300)
    try:
        told = LaneReports(harness.store)
        assert told.look() is None
        first = harness.report(0)
        harness.submit(first)
        assert told.look() is None
        harness.store.seal(WINDOW)
        found = told.look()
    finally:
        harness.close()
    assert found is not None
    assert len(found) > 1
    assert sorted(found.values()) == [0.0] * (len(found) - 1) + [1.0]


def test_totals_tell_how_far_they_have_read(played: Played) -> None:
    found = played.series("totals")
    assert value(found, "gridveil_totals_newest_window_end_timestamp_seconds") == WINDOW + 900
    assert value(found, "gridveil_totals_log_records") == value(
        played.series("keyholder"), "gridveil_keyholder_log_records"
    )
    assert value(found, "gridveil_totals_newest_coverage_ratio") == 1
    assert value(found, "gridveil_totals_newest_lanes_left_out") == 0
    expires = value(found, "gridveil_certificate_expiry_timestamp_seconds")
    assert expires > WINDOW


def test_no_reading_no_total_no_meter_and_no_key_is_in_them(played: Played) -> None:
    city = played.city
    numbers = [*CANARIES, *(METERS * reading for reading in CANARIES)]
    secrets = [
        *(meter.meter_id for meter in city.meters),
        *(meter.member.signing_key for meter in city.meters),
        city.aggregator_config.identity_key,
        city.aggregator_config.city_id,
    ]
    forms = [str(number) for number in numbers]
    forms += [secret.hex() for secret in secrets]
    forms += [base64.b64encode(secret).decode().rstrip("=") for secret in secrets]
    for role, text in played.texts.items():
        assert len(text) > 1_000, role
        assert [form for form in forms if form in text] == [], role


def test_what_tells_one_series_from_another_comes_from_closed_lists(played: Played) -> None:
    allowed = {"method", "code", "reason", "outcome", "stage", "phase", "condition", "le"}
    allowed |= {"difference", "evidence", "lane"}
    allowed |= {"level", "basis", "cause", "kind"}
    described = {"role", "version", "python"}
    for role in played.texts:
        for name, labels in played.series(role):
            names = {label for label, _ in labels}
            assert names <= (described if name == "gridveil_build_info" else allowed), name
            for label, text in labels:
                if label == "reason" and text:
                    assert text in Reason.__members__


def test_more_meters_make_no_more_series(tmp_path: Path) -> None:
    metrics = AggregatorMetrics()
    harness = IngestHarness(tmp_path, meters=60, observer=metrics)
    try:
        with MetricsServer(ANYWHERE, metrics.registry) as served:
            harness.submit(*(harness.report(meter) for meter in range(2)))
            few = series(scrape(served.url))
            harness.submit(*(harness.report(meter) for meter in range(2, 60)))
            many = series(scrape(served.url))
    finally:
        harness.close()
    assert few.keys() == many.keys()
    assert value(many, "gridveil_reports_total", outcome="accepted", reason="") == 60


def test_only_get_of_one_path_is_answered() -> None:
    with MetricsServer(ANYWHERE, CollectorRegistry()) as served:
        assert scrape(served.url) == ""
        for request, code in (
            (urllib.request.Request(served.url + "/x"), 404),  # noqa: S310
            (urllib.request.Request(served.url, data=b"x", method="POST"), 501),  # noqa: S310
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)  # noqa: S310
            refused.value.close()
            assert refused.value.code == code


def test_connections_that_say_nothing_keep_their_places_and_no_more() -> None:
    with MetricsServer(ANYWHERE, CollectorRegistry(), longest_s=1.0) as served:
        host, _, port = served.url.removeprefix("http://").partition("/")[0].rpartition(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(MOST_CONNECTIONS)]
        try:
            with socket.create_connection((host, int(port)), timeout=30) as one_too_many:
                assert one_too_many.recv(1) == b"", "closed unread"
            # What says nothing is cut off after a while, and leaves its place.
            assert [held.recv(1) for held in silent] == [b""] * MOST_CONNECTIONS
            assert scrape(served.url) == ""
        finally:
            for held in silent:
                held.close()


@pytest.mark.parametrize("listen", ["9464", "localhost", ":9464", "localhost:x", "localhost:70000"])
def test_metrics_listen_on_a_host_and_a_port(listen: str) -> None:
    with pytest.raises(MalformedInput) as refused:
        address_of(MetricsSection(listen=listen))
    assert refused.value.reason is Reason.CONFIG_INVALID


def test_an_address_in_use_is_said_at_the_start() -> None:
    with MetricsServer(ANYWHERE, CollectorRegistry()) as served:
        port = int(served.url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(MalformedInput) as refused:
            MetricsServer(("127.0.0.1", port), CollectorRegistry())
    assert refused.value.reason is Reason.CONFIG_INVALID
