"""What a city's parties tell a collector of traces, as it comes in there."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from gridveil.meter import AsyncMeter, Meter, MeterKeys
from gridveil.profile import Profile
from gridveil.protocol.errors import Reason, Unavailable
from gridveil.protocol.v1 import aggregator_pb2, totals_pb2, totals_pb2_grpc
from gridveil.tracing.otel import OpenTelemetryTracer
from gridveil.tracing.settings import TracingSettings
from gridveil.transport import connect
from gridveil_services.aggregator.store.interface import Phase
from gridveil_services.totals.config import TotalsConfig
from gridveil_services.totals.serve import TotalsProcess
from tests.support.aggregators import LENGTH, LocalCity
from tests.support.clients import settle
from tests.support.collector import Collector, Seen, collecting
from tests.support.metrics import CANARIES, METERS
from tests.support.reports import WINDOW

AGGREGATOR, KEYHOLDER, METER = "gridveil-aggregator", "gridveil-keyholder", "gridveil-meter"
SUBMIT, BATCH = "gridveil.v1.Aggregator/SubmitReport", "gridveil.v1.Aggregator/SubmitReports"
STREAM, RELEASE = "gridveil.v1.Aggregator/StreamReports", "gridveil.v1.KeyHolder/Release"
PRECHECK = "gridveil.v1.KeyHolder/PrecheckEntries"
LIST = "gridveil.v1.Totals/ListTotals"

KNOWN, OTHER, UNSAMPLED = "ab" * 16, "cd" * 16, "ef" * 16
SPAN = "12" * 8
HARMLESS = {"rpc.system", "rpc.method", "gridveil.reports", "gridveil.reason"}


@dataclass(frozen=True)
class Played:
    """A city after a window was released, and what a collector was sent of it."""

    city: LocalCity
    collector: Collector

    def one(self, service: str, name: str, trace: str | None = None) -> Seen:
        (found,) = (
            seen
            for seen in self.collector.named(service, name)
            if trace is None or seen.trace == trace
        )
        return found

    def below(self, parent: Seen) -> set[tuple[str, str]]:
        """Services and names of the spans right below another."""
        return {
            (seen.service, seen.name)
            for seen in self.collector.spans()
            if seen.trace == parent.trace and seen.span.parent_span_id == parent.span.span_id
        }


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Reports of meters, of gateways with all sorts of traceparents, and a release."""
    folder = tmp_path_factory.mktemp("tracing")
    with collecting() as collector:
        with LocalCity.create(folder, meters=METERS, tracing=collector.settings) as city:
            city.enter_window(WINDOW)
            report_as_meters(city, collector.settings, folder)
            send_batches(city)
            city.aggregator.forerunner.step()
            city.clock.move_to(city.stored_window().closes)
            city.aggregator.sealer.step()
            city.aggregator.releaser.step()
            assert city.stored_window().phase is Phase.RELEASED
            ask_totals(city, collector.settings)
        yield Played(city, collector)


def report_as_meters(city: LocalCity, tracing: TracingSettings, folder: Path) -> None:
    """One blocking, one asyncio; each settles its report."""
    profile = replace(
        Profile.load(city.paths.profile("meter")),
        endpoints={"aggregator": city.address},
        tracing=tracing,
    )
    keys = [
        MeterKeys(meter.meter_id, bytes(meter.signing_key), meter.sealing_secret)
        for meter in city.meters[:2]
    ]
    registers = dict(zip(("import_wh", "export_wh"), CANARIES, strict=True))
    with Meter.open(
        profile, keys=keys[0], outbox=folder / "0.db", clock=city.clock, draw=lambda: 0.0
    ) as meter:
        meter.record(WINDOW, registers)
        (verdict,) = settle(meter, city.clock)
        assert verdict.reason is None

    async def report(own: MeterKeys) -> None:
        async with AsyncMeter.open(
            profile, keys=own, outbox=folder / "1.db", clock=city.clock, draw=lambda: 0.0
        ) as other:
            await other.record(WINDOW, registers)
            due = other.next_due()
            assert due is not None
            city.clock.move_to(max(due, city.clock.now()))
            (settled,) = await other.submit_due()
            assert settled.reason is None

    asyncio.run(report(keys[1]))


def send_batches(city: LocalCity) -> None:
    """All that gateways send is taken, whatever traceparent comes with it."""
    gateway = city.stub("gateway")

    def sent(meters: range, *values: str) -> None:
        reports = [city.report(meter, values=CANARIES) for meter in meters]
        answer = gateway.SubmitReports(
            aggregator_pb2.SubmitReportsRequest(reports=reports),
            metadata=tuple(("traceparent", value) for value in values),
        )
        assert all(outcome.HasField("receipt") for outcome in answer.outcomes)

    sent(range(2, 20), f"00-{KNOWN}-{SPAN}-01")
    sent(range(20, 30), f"00-{OTHER}-{SPAN}-01-{OTHER}")
    sent(range(30, 40), f"00-{OTHER.upper()}-{SPAN}-01")
    sent(range(40, 50), f"00-{UNSAMPLED}-{SPAN}-00")
    with pytest.raises(grpc.RpcError):
        gateway.SubmitReports(aggregator_pb2.SubmitReportsRequest())
    stream = (
        aggregator_pb2.SubmitReportsRequest(reports=[city.report(m, values=CANARIES)])
        for m in range(50, METERS)
    )
    assert len(list(gateway.StreamReports(r.reports[0] for r in stream))) == METERS - 50


def ask_totals(city: LocalCity, tracing: TracingSettings) -> None:
    city.clock.move_to(WINDOW + 2 * LENGTH)
    config = TotalsConfig.load(city.paths.config("totals"))
    process = TotalsProcess(replace(config, listen="127.0.0.1:0", tracing=tracing))
    profile = Profile.load(city.paths.profile("operator"))
    with connect(process.start(), "totals", profile.city_id, profile.tls) as channel:
        stub = totals_pb2_grpc.TotalsStub(channel)
        stub.ListTotals(totals_pb2.ListTotalsRequest(page_size=10))
    process.stop()


def test_a_meters_call_and_the_aggregators_work_are_one_trace(played: Played) -> None:
    sent = played.collector.named(METER, SUBMIT)
    assert len(sent) == 2, "one blocking, one asyncio"
    assert len({seen.trace for seen in sent}) == 2
    for call in sent:
        assert played.below(call) == {(AGGREGATOR, SUBMIT)}
        served = played.one(AGGREGATOR, SUBMIT, call.trace)
        assert served.attributes == {"rpc.system": "grpc", "rpc.method": SUBMIT}
        assert played.below(served) == {(AGGREGATOR, "ingest")}


def test_the_stages_of_a_call_are_below_it(played: Played) -> None:
    served = played.one(AGGREGATOR, BATCH, KNOWN)
    assert served.span.parent_span_id.hex() == SPAN
    ingest = played.one(AGGREGATOR, "ingest", KNOWN)
    assert ingest.attributes == {"gridveil.reports": 18}
    stages = {(AGGREGATOR, name) for name in ("parse", "verify", "known", "sum", "commit")}
    assert played.below(ingest) == stages
    assert played.one(AGGREGATOR, "commit", KNOWN).attributes == {"gridveil.reports": 18}


def test_a_malformed_traceparent_is_ignored(played: Played) -> None:
    traces = {seen.trace for seen in played.collector.spans()}
    assert KNOWN in traces
    assert OTHER not in traces
    roots = [s for s in played.collector.named(AGGREGATOR, BATCH) if not s.span.parent_span_id]
    assert len(roots) == 3, "the two, and the empty batch"


def test_a_caller_that_samples_not_is_not_traced(played: Played) -> None:
    assert UNSAMPLED not in {seen.trace for seen in played.collector.spans()}


def test_the_groups_of_a_stream_are_traces_of_their_own(played: Played) -> None:
    stream = played.one(AGGREGATOR, STREAM)
    assert played.below(stream) == set()
    groups = [s for s in played.collector.named(AGGREGATOR, "ingest") if not s.span.parent_span_id]
    assert sum(int(group.attributes["gridveil.reports"]) for group in groups) == METERS - 50
    assert (AGGREGATOR, "commit") in played.below(groups[0])


def test_a_release_is_one_trace_from_the_aggregator_to_the_key_holder(played: Played) -> None:
    release = played.one(AGGREGATOR, "release")
    assert not release.span.parent_span_id
    assert release.attributes == {"gridveil.reports": METERS}
    progress = RELEASE.replace("/Release", "/GetReleaseProgress")
    assert played.below(release) == {(AGGREGATOR, progress), (AGGREGATOR, RELEASE)}
    served = played.one(KEYHOLDER, RELEASE, release.trace)
    assert served.span.parent_span_id == played.one(AGGREGATOR, RELEASE).span.span_id
    steps = {(KEYHOLDER, step) for step in ("take_in", "claim", "open", "settle")}
    assert played.below(served) == steps


def test_what_is_checked_ahead_and_sealed_is_traced(played: Played) -> None:
    for call in played.collector.named(AGGREGATOR, PRECHECK):
        assert played.below(call) == {(KEYHOLDER, PRECHECK)}
    assert played.collector.named(AGGREGATOR, PRECHECK)
    assert not played.one(AGGREGATOR, "seal").attributes


def test_no_meters_trace_reaches_the_key_holder(played: Played) -> None:
    traces = {
        service: {seen.trace for seen in played.collector.spans() if seen.service == service}
        for service in (METER, AGGREGATOR, KEYHOLDER)
    }
    assert traces[METER] <= traces[AGGREGATOR]
    assert traces[KEYHOLDER]
    assert not traces[KEYHOLDER] & (traces[METER] | {KNOWN})


def test_totals_trace_what_they_are_asked(played: Played) -> None:
    assert played.one("gridveil-totals", LIST).attributes["rpc.method"] == LIST


def test_a_refusal_is_told_by_its_reason_alone(played: Played) -> None:
    (refused,) = (s for s in played.collector.named(AGGREGATOR, BATCH) if s.span.status.code)
    assert refused.attributes["gridveil.reason"] == Reason.BATCH_EMPTY
    for seen in played.collector.spans():
        assert seen.span.status.message == seen.attributes.get("gridveil.reason", "")
        assert seen.span.status.message in {"", *Reason.__members__}


def test_no_span_has_anything_but_names_counts_and_reasons(played: Played) -> None:
    for seen in played.collector.spans():
        assert seen.attributes.keys() <= HARMLESS, seen
        assert not seen.span.events, seen
        assert not seen.span.links, seen
        assert not seen.span.trace_state, seen
    for request in played.collector.requests:
        for resource in request.resource_spans:
            assert [pair.key for pair in resource.resource.attributes] == ["service.name"]


def test_no_reading_no_total_no_meter_no_key_and_no_address_is_in_them(played: Played) -> None:
    city = played.city
    secrets = [
        *(meter.meter_id for meter in city.meters),
        *(meter.member.signing_key for meter in city.meters),
        city.aggregator_config.identity_key,
        city.aggregator_config.city_id,
    ]
    numbers = [*CANARIES, *(METERS * reading for reading in CANARIES), WINDOW]
    forms = [str(number).encode() for number in numbers]
    forms += [form for s in secrets for form in (s, s.hex().encode(), base64.b64encode(s))]
    forms += [b"127.0.0.1", str(city.paths.folder).encode(), b".py", b"Traceback"]
    sent = [request.SerializeToString() for request in played.collector.requests]
    assert sum(map(len, sent)) > 5_000
    assert [form for form in forms if any(form in data for data in sent)] == []
    told = {value for seen in played.collector.spans() for value in seen.attributes.values()}
    assert not told & {*numbers}


def test_a_defect_leaves_neither_its_text_nor_its_stack() -> None:
    with collecting() as collector:
        tracer = OpenTelemetryTracer(collector.settings, "meter")
        with suppress(ZeroDivisionError), tracer.span("work"):
            raise ZeroDivisionError(CANARIES[0])
        with suppress(Unavailable), tracer.call(SUBMIT):
            raise Unavailable(Reason.UNREACHABLE, f"a text with {CANARIES[0]}")
        tracer.close()
        spans = {seen.name: seen.span for seen in collector.spans()}
        assert spans["work"].status.message == Reason.INTERNAL
        assert spans[SUBMIT].status.message == Reason.UNREACHABLE
        assert not any(span.events for span in spans.values())
        assert str(CANARIES[0]) not in str(collector.requests)


def test_a_sampled_share_is_sent_and_the_rest_is_told_as_unsampled() -> None:
    with collecting() as collector:
        tracer = OpenTelemetryTracer(replace(collector.settings, sample=0.0), "meter")
        with tracer.call(SUBMIT) as metadata:
            assert metadata is not None
            ((key, value),) = metadata
        tracer.close()
        assert key == "traceparent"
        assert value.endswith("-00")
        assert collector.spans() == []


def test_a_city_works_though_nobody_collects(tmp_path: Path) -> None:
    nowhere = TracingSettings("127.0.0.1:1", secure=False, sample=1.0)
    with LocalCity.create(tmp_path, meters=1) as city:
        city.aggregator_config = replace(city.aggregator_config, tracing=nowhere)
        city.restart_aggregator()
        city.enter_window(WINDOW)
        answer = city.stub("gateway").SubmitReports(city.batch())
        assert answer.outcomes[0].HasField("receipt")
