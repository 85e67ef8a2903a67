"""An operator who wants one household's reading, against all three running services.

It holds an operator's certificate and may ask as often, for whatever, and whenever it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from gridveil.profile import Profile, Tls
from gridveil.protocol.errors import GridveilError, NotAuthentic, Reason
from gridveil.protocol.layout import u32, u64
from gridveil.protocol.release import open_total
from gridveil.protocol.v1 import aggregator_pb2, keyholder_pb2, report_pb2, totals_pb2
from gridveil.protocol.v1.totals_pb2_grpc import TotalsStub
from gridveil.transport import connect, from_rpc_error
from gridveil_services.totals.config import TotalsConfig
from gridveil_services.totals.serve import TotalsProcess
from tests.support.aggregators import LENGTH, LocalCity
from tests.support.reports import WINDOW

METERS = 120
VICTIM_WH = 173_291
OTHERS_WH = 40_000
DEADLINE_S = 30.0

ALLOWED = {"GetTotal", "ListTotals", "WatchTotals"}
"""What an operator is there for: each is attacked below."""
PUBLIC = {"GetParameters", "GetEntries"}
"""What a city signs for everybody, and entries, which its policy decides on."""

SERVICES = {
    "keyholder": (keyholder_pb2, ("KeyHolder", "Roster")),
    "aggregator": (aggregator_pb2, ("Aggregator",)),
    "totals": (totals_pb2, ("Totals",)),
}
METHODS = [
    (server, service, method)
    for server, (file, services) in SERVICES.items()
    for service in services
    for method in file.DESCRIPTOR.services_by_name[service].methods_by_name
    if method not in ALLOWED | PUBLIC
]


class Grid:
    """A city with one released window, one that is being reported, and the operator's stubs."""

    def __init__(self, city: LocalCity, stack: ExitStack) -> None:
        self.city = city
        self._stack = stack
        folder = city.paths.tls("operator")
        self._tls = Tls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
        self._profile = Profile.load(city.paths.profile("operator"))
        self._release_one_window()
        totals = TotalsProcess(TotalsConfig.load(city.paths.config("totals")))
        stack.callback(totals.stop)
        totals.start()
        self._addresses = {
            "keyholder": city.keyholder_config.listen,
            "aggregator": city.address,
            "totals": self._profile.endpoint("totals"),
        }
        self.totals = TotalsStub(self.channel("totals"))

    def channel(self, server: str) -> grpc.Channel:
        """A connection with the operator's certificate."""
        channel = connect(self._addresses[server], server, self._profile.city_id, self._tls)
        return self._stack.enter_context(channel)

    def _release_one_window(self) -> None:
        city = self.city
        city.enter_window(WINDOW)
        readings = [(VICTIM_WH, 0), *((OTHERS_WH + at, 1) for at in range(1, METERS))]
        reports = [city.report(at, WINDOW, values) for at, values in enumerate(readings)]
        city.stub("gateway").SubmitReports(aggregator_pb2.SubmitReportsRequest(reports=reports))
        city.aggregator.sealer.step()
        city.aggregator.releaser.step()
        city.enter_window(WINDOW + LENGTH)
        city.stub("gateway").SubmitReports(city.batch(WINDOW + LENGTH))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("grid")
        city = stack.enter_context(LocalCity.create(folder, meters=METERS))
        yield Grid(city, stack)


def refused(call: Callable[[], object]) -> GridveilError:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return from_rpc_error(raised.value)


def get(grid: Grid, window: int) -> totals_pb2.WindowOutcome:
    outcome: totals_pb2.WindowOutcome = grid.totals.GetTotal(
        totals_pb2.GetTotalRequest(window_start=window), timeout=DEADLINE_S
    )
    return outcome


@pytest.mark.parametrize(("server", "service", "method"), METHODS)
def test_every_other_method_of_the_city_is_closed_to_an_operator(
    grid: Grid, server: str, service: str, method: str
) -> None:
    """Release a cohort of one's own, read the roster, enrol a crowd, fetch ciphertexts, report."""
    before = grid.city.store_digest()
    call: grpc.StreamUnaryMultiCallable[bytes, bytes] = grid.channel(server).stream_unary(
        f"/gridveil.v1.{service}/{method}"
    )
    error = refused(lambda: call(iter([b""]), timeout=DEADLINE_S))
    assert error.reason is Reason.ROLE_NOT_ALLOWED
    assert grid.city.store_digest() == before


def test_asking_again_gives_the_same_bytes_and_nothing_to_average(grid: Grid) -> None:
    answers = {get(grid, WINDOW).SerializeToString(deterministic=True) for _ in range(50)}
    assert len(answers) == 1


def test_a_window_of_the_operators_own_making_cannot_be_asked_for(grid: Grid) -> None:
    """Borders a minute apart would make the difference of two totals a minute of few."""
    for shift in (1, 60, LENGTH // 2, LENGTH - 1):
        assert refused(lambda: get(grid, WINDOW + shift)).reason is Reason.WINDOW_MISALIGNED  # noqa: B023


def test_a_window_in_progress_looks_like_one_that_nobody_began(grid: Grid) -> None:
    """Of the one being reported right now not even its existence can be asked."""
    told = {
        (error.reason, error.message, tuple(error.metadata))
        for error in (
            refused(lambda: get(grid, window))  # noqa: B023
            for window in (WINDOW + LENGTH, WINDOW + 500 * LENGTH, LENGTH)
        )
    }
    assert len(told) == 1
    assert {reason for reason, _, _ in told} == {Reason.NOT_RELEASED}


def test_a_list_of_everything_holds_only_what_was_released(grid: Grid) -> None:
    page = grid.totals.ListTotals(totals_pb2.ListTotalsRequest(), timeout=DEADLINE_S)
    assert [outcome.window_start for outcome in page.outcomes] == [WINDOW]


def test_entries_that_are_for_auditors_are_closed_to_an_operator(grid: Grid) -> None:
    """Who reported is not its business, released or not."""
    assert (grid.city.paths.published / "entries" / str(WINDOW)).exists()
    request = totals_pb2.GetEntriesRequest(window_start=WINDOW)
    error = refused(lambda: list(grid.totals.GetEntries(request, timeout=DEADLINE_S)))
    assert error.reason is Reason.ROLE_NOT_ALLOWED


def test_a_forged_page_token_opens_no_other_page(grid: Grid) -> None:
    for token in (b"\0", bytes(40), u64(WINDOW), u64(WINDOW) + bytes(32)):
        request = totals_pb2.ListTotalsRequest(page_token=token)
        error = refused(lambda: grid.totals.ListTotals(request, timeout=DEADLINE_S))  # noqa: B023
        assert error.reason is Reason.PAGE_TOKEN_INVALID


def test_no_request_has_a_field_that_names_a_meter_a_lane_or_a_cohort() -> None:
    """Differencing needs two cohorts of one window: an operator cannot even say which it wants."""
    methods = totals_pb2.DESCRIPTOR.services_by_name["Totals"].methods_by_name
    names = ALLOWED | PUBLIC
    asked = {field.name for name in names for field in methods[name].input_type.fields}
    assert not [name for name in asked if any(w in name for w in ("meter", "lane", "cohort"))]


def test_a_watch_tells_a_window_only_once_it_is_settled(grid: Grid) -> None:
    call = grid.totals.WatchTotals(totals_pb2.WatchTotalsRequest(from_window=WINDOW), timeout=3.0)
    seen: list[int] = []
    with pytest.raises(grpc.RpcError) as ended:
        seen.extend(outcome.window_start for outcome in call)
    assert from_rpc_error(ended.value).reason is Reason.DEADLINE_EXCEEDED
    assert seen == [WINDOW]


def test_what_an_operator_may_have_says_nothing_of_a_reading(grid: Grid) -> None:
    """Neither the total nor the log's bytes hold the victim's reading, as text or number."""
    log = (grid.city.paths.published / "log" / "records").read_bytes()
    for data in (get(grid, WINDOW).SerializeToString(), log):
        for form in (str(VICTIM_WH).encode(), u32(VICTIM_WH), VICTIM_WH.to_bytes(4, "big")):
            assert form not in data


def test_a_total_with_any_byte_altered_is_no_total(grid: Grid) -> None:
    """An operator cannot pass another number on as the city's."""
    signed = get(grid, WINDOW).total
    key = Profile.load(grid.city.paths.profile("operator")).identity_key
    total = open_total(signed.total, signed.signature, key)
    assert total.sum("import_wh") == VICTIM_WH + sum(OTHERS_WH + at for at in range(1, METERS))
    for at in range(len(signed.total)):
        altered = bytearray(signed.total)
        altered[at] ^= 1
        with pytest.raises(NotAuthentic):
            open_total(bytes(altered), signed.signature, key)


def test_a_report_of_the_operators_own_is_not_taken(grid: Grid) -> None:
    """A self-made zero of which it would know all: its certificate reports nothing."""
    before = grid.city.store_digest()
    own = grid.city.report(0, WINDOW + LENGTH, (0, 0))
    channel = grid.channel("aggregator")
    call = channel.unary_unary(
        "/gridveil.v1.Aggregator/SubmitReport",
        request_serializer=report_pb2.Report.SerializeToString,
        response_deserializer=report_pb2.Receipt.FromString,
    )
    assert refused(lambda: call(own, timeout=DEADLINE_S)).reason is Reason.ROLE_NOT_ALLOWED
    assert grid.city.store_digest() == before


def test_another_citys_operator_is_not_let_in(grid: Grid, tmp_path: Path) -> None:
    """Its authority is not this city's: the handshake fails."""
    with LocalCity.create(tmp_path, meters=0) as other:
        folder = other.paths.tls("operator")
        ours = grid.city.paths.tls("operator") / "ca.pem"
        tls = Tls(ours, folder / "cert.pem", folder / "key.pem")
        profile = Profile.load(grid.city.paths.profile("operator"))
        with connect(profile.endpoint("totals"), "totals", profile.city_id, tls) as channel:
            error = refused(
                lambda: TotalsStub(channel).GetTotal(
                    totals_pb2.GetTotalRequest(window_start=WINDOW), timeout=DEADLINE_S
                )
            )
    assert error.reason is Reason.UNREACHABLE
