"""Who can rewrite the aggregator's store, or sits on the wire: neither bends nor reads a total.

The store's attacker knows its format and makes every checksum right again. Whatever it does, a
window has no total, or one that is exact for the meters it counts.
"""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw
import grpc
import pytest

from gridveil.profile import Profile
from gridveil.protocol.ciphertext import add, stored_sum, to_bytes
from gridveil.protocol.errors import GridveilError, Reason
from gridveil.protocol.release import OPENED_ENTRY_BYTES, Total
from gridveil.protocol.v1.aggregator_pb2 import SubmitReportsRequest
from gridveil.protocol.v1.aggregator_pb2_grpc import AggregatorStub
from gridveil.transport import connect, from_rpc_error
from gridveil_services.aggregator.serve import STORE_FILE
from gridveil_services.aggregator.store.records import (
    RECORD_BYTES,
    journal_checksum,
    sum_checksum,
)
from gridveil_services.bootstrap.certificates import Authority
from gridveil_services.releaselog.reader import LogReader
from gridveil_services.rpc import Role
from tests.support.aggregators import LENGTH, LocalCity
from tests.support.reports import WINDOW

METERS = 220
"""Enough for three lanes; those of two are still a cohort."""
NEXT = WINDOW + LENGTH


def reading(meter: int) -> tuple[int, int]:
    return 1_000 + 7 * meter, meter % 3


@dataclass(frozen=True)
class Stopped:
    """A city whose aggregator is down, with its store open to the attacker."""

    city: LocalCity
    store: apsw.Connection

    def lanes(self, window: int = WINDOW) -> list[tuple[int, int, bytes]]:
        """Number, count and sum of each lane."""
        query = "SELECT lane, count, sum FROM lanes WHERE window = ? ORDER BY lane"
        return [(int(n), int(c), bytes(s)) for n, c, s in self.store.execute(query, (window,))]

    def put_lane(self, lane: int, count: int, data: bytes) -> None:
        """Replace a lane, its checksum right."""
        checksum = sum_checksum(WINDOW, lane, count, data)
        self.store.execute(
            "UPDATE lanes SET count = ?, sum = ?, checksum = ? WHERE window = ? AND lane = ?",
            (count, data, checksum, WINDOW, lane),
        )

    def journal(self, lane: int) -> list[tuple[int, int, bytes]]:
        """Row number, time and packed reports."""
        query = (
            "SELECT number, accepted_at_ms, reports FROM journal WHERE window = ? AND lane = ?"
            " ORDER BY number"
        )
        rows = self.store.execute(query, (WINDOW, lane))
        return [(int(n), int(at), bytes(packed)) for n, at, packed in rows]

    def put_journal(self, number: int, lane: int, at: int, packed: bytes) -> None:
        """Replace a row, its checksum right."""
        self.store.execute(
            "UPDATE journal SET reports = ?, checksum = ? WHERE number = ?",
            (packed, journal_checksum(WINDOW, lane, at, packed), number),
        )


Rewrite = Callable[[Stopped], None]


def doubled_sum(stopped: Stopped) -> None:
    """Every reading of a lane twice."""
    lane, count, data = stopped.lanes()[0]
    crypto = stopped.city.parameters().policy.crypto
    residues = stored_sum(data, crypto, stopped.city.parameters().policy.layout.slots)
    stopped.put_lane(lane, count, to_bytes(add([residues, residues], crypto)))


def swapped_sums(stopped: Stopped) -> None:
    """Two lanes' sums in each other's place."""
    (first, count, data), (second, other_count, other) = stopped.lanes()[:2]
    stopped.put_lane(first, count, other)
    stopped.put_lane(second, other_count, data)


def sum_of_the_next_window(stopped: Stopped) -> None:
    """The same lane's sum, of another time."""
    lane, count, _ = stopped.lanes()[0]
    (_, _, other), *_ = stopped.lanes(NEXT)
    stopped.put_lane(lane, count, other)


def a_single_report_as_the_sum(stopped: Stopped) -> None:
    """One household's ciphertext where the sum of its lane was."""
    lane, count, _ = stopped.lanes()[0]
    stopped.put_lane(lane, count, stopped.city.report(0).ciphertext)


def a_flipped_bit(stopped: Stopped) -> None:
    """Rot, with a checksum that agrees."""
    lane, count, data = stopped.lanes()[0]
    stopped.put_lane(lane, count, bytes([data[0] ^ 1]) + data[1:])


def rot_without_checksum(stopped: Stopped) -> None:
    """Rot as disks make it."""
    lane, _, data = stopped.lanes()[0]
    stopped.store.execute(
        "UPDATE lanes SET sum = ? WHERE window = ? AND lane = ?",
        (bytes([data[0] ^ 1]) + data[1:], WINDOW, lane),
    )


def a_dropped_report(stopped: Stopped) -> None:
    """A meter that reported is taken out of the entries, not out of the sum."""
    lane, count, data = stopped.lanes()[0]
    number, at, packed = stopped.journal(lane)[0]
    stopped.put_journal(number, lane, at, packed[RECORD_BYTES:])
    stopped.put_lane(lane, count - 1, data)


def a_doubled_report(stopped: Stopped) -> None:
    """A meter twice among the entries, and in the sum."""
    lane, count, data = stopped.lanes()[0]
    number, at, packed = stopped.journal(lane)[0]
    stopped.put_journal(number, lane, at, packed + packed[:RECORD_BYTES])
    stopped.put_lane(lane, count + 1, data)


def a_whole_lane_taken_out(stopped: Stopped) -> None:
    """Everybody in a lane is left out of the city."""
    lane, _, _ = stopped.lanes()[0]
    for table in ("journal", "lanes"):
        stopped.store.execute(
            f"DELETE FROM {table} WHERE window = ? AND lane = ?",  # noqa: S608
            (WINDOW, lane),
        )


def another_roster_version(stopped: Stopped) -> None:
    """A roster of another time, to make a small cohort look like enough."""
    stopped.store.execute(
        "UPDATE windows SET roster_version = roster_version + 1, enrolled = 1 WHERE start = ?",
        (WINDOW,),
    )


def closed_early(stopped: Stopped) -> None:
    """A window that is over before its meters had their time."""
    stopped.store.execute("UPDATE windows SET closes = start WHERE start = ?", (WINDOW,))


def keys_of_the_attacker(stopped: Stopped) -> None:
    """Every meter's signing key replaced: now the attacker reports for all of them."""
    stopped.store.execute("UPDATE members SET signing_key = randomblob(32)")


REWRITES: list[Rewrite] = [
    doubled_sum,
    swapped_sums,
    sum_of_the_next_window,
    a_single_report_as_the_sum,
    a_flipped_bit,
    rot_without_checksum,
    a_dropped_report,
    a_doubled_report,
    a_whole_lane_taken_out,
    another_roster_version,
    closed_early,
    keys_of_the_attacker,
]


@contextmanager
def reported(folder: Path) -> Iterator[LocalCity]:
    """A city in which every meter has reported two windows; neither is sealed yet."""
    with LocalCity.create(folder, meters=METERS, min_coverage=0.5) as city:
        for window in (WINDOW, NEXT):
            city.enter_window(window)
            for first in range(0, METERS, 110):
                reports = [
                    city.report(meter, window, reading(meter))
                    for meter in range(first, first + 110)
                ]
                reply = city.stub("gateway").SubmitReports(SubmitReportsRequest(reports=reports))
                assert all(outcome.HasField("receipt") for outcome in reply.outcomes)
        yield city


def totals(city: LocalCity) -> dict[int, Total]:
    """What the key-holder released."""
    log = LogReader(city.paths.published / "log").poll()
    released = (record.released for record in log if record.HasField("released"))
    return {found.window_start: Total.decode(found.total.total) for found in released}


def assert_exact(city: LocalCity, total: Total) -> None:
    """The total is the sum of the readings of the meters whose entries it names, each once."""
    entries = (city.paths.published / "entries" / str(total.window_start)).read_bytes()
    assert len(entries) == total.count * OPENED_ENTRY_BYTES
    counted = {entries[at : at + 16] for at in range(0, len(entries), OPENED_ENTRY_BYTES)}
    assert len(counted) == total.count
    meters = [at for at, keys in enumerate(city.meters) if keys.meter_id in counted]
    assert len(meters) == total.count
    for at, register in enumerate(total.registers):
        assert register.sum == sum(reading(meter)[at] for meter in meters)


def settle(city: LocalCity) -> None:
    """Seal and hand over whatever the aggregator thinks it has."""
    for step in (city.aggregator.sealer.step, city.aggregator.releaser.step):
        with suppress(GridveilError):
            step()


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda rewrite: rewrite.__name__)
def test_a_rewritten_store_bends_no_total(tmp_path: Path, rewrite: Rewrite) -> None:
    with reported(tmp_path) as city:
        city.stop_aggregator()
        store = apsw.Connection(str(city.aggregator_config.state / STORE_FILE))
        with store:
            rewrite(Stopped(city, store))
        store.close()
        with suppress(GridveilError):
            city.start_aggregator()
            settle(city)
        released = totals(city)
        if WINDOW in released:
            assert_exact(city, released[WINDOW])


def test_a_store_put_back_to_before_a_report_bends_no_total(tmp_path: Path) -> None:
    """A snapshot taken early and restored late: what is released is exact for whom it counts."""
    with reported(tmp_path) as city:
        state = city.aggregator_config.state
        city.stop_aggregator()
        shutil.copytree(state, tmp_path / "snapshot")
        city.start_aggregator()
        settle(city)
        first = totals(city)
        assert_exact(city, first[WINDOW])
        city.stop_aggregator()
        shutil.rmtree(state)
        (tmp_path / "snapshot").rename(state)
        city.start_aggregator()
        settle(city)
        assert totals(city) == first


def test_an_untouched_store_gives_both_totals(tmp_path: Path) -> None:
    """The control: without an attack the same steps release everything."""
    with reported(tmp_path) as city:
        city.restart_aggregator()
        settle(city)
        for window in (WINDOW, NEXT):
            total = totals(city)[window]
            assert total.count == METERS
            assert_exact(city, total)


# On the wire.


class Wire:
    """A man in the middle of one connection at a time, between a gateway and the aggregator."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.alter: Callable[[bytes, int], bytes | None] = lambda data, _at: data
        """From a piece the client sent and how much came before it; None cuts the line."""
        self.recorded = bytearray()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            back = threading.Thread(target=self._pump, args=(server, client, False), daemon=True)
            back.start()
            self._pump(client, server, True)
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(4096):
                piece: bytes | None = data
                if from_client:
                    self.recorded += data
                    piece = self.alter(data, passed)
                passed += len(data)
                if piece is None:
                    break
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def tapped(folder: Path) -> Iterator[tuple[LocalCity, Wire]]:
    """A city that takes reports of a window, and a tapped line to its aggregator."""
    with ExitStack() as stack:
        city = stack.enter_context(LocalCity.create(folder, meters=METERS))
        city.enter_window(WINDOW)
        wire = Wire(city.address)
        stack.callback(wire.close)
        yield city, wire


@contextmanager
def line(city: LocalCity, wire: Wire) -> Iterator[AggregatorStub]:
    """A gateway's connection through the tapped line."""
    profile = Profile.load(city.paths.profile("gateway"))
    with connect(wire.address, "aggregator", profile.city_id, profile.tls) as channel:
        yield AggregatorStub(channel)


def submit(city: LocalCity, wire: Wire, meter: int) -> grpc.StatusCode:
    """One report over the tapped line."""
    with line(city, wire) as stub:
        try:
            stub.SubmitReport(city.report(meter, values=reading(meter)), timeout=3.0)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_a_bit_flipped_on_the_wire_changes_nothing(tmp_path: Path) -> None:
    with tapped(tmp_path) as (city, wire):
        assert submit(city, wire, 0) is grpc.StatusCode.OK
        length = len(wire.recorded)
        before = city.store_digest()
        for place in (0, 40, length // 2, length - 5_000):

            def flip(data: bytes, at: int, place: int = place) -> bytes:
                if not at <= place < at + len(data):
                    return data
                return data[: place - at] + bytes([data[place - at] ^ 1]) + data[place - at + 1 :]

            wire.alter = flip
            assert submit(city, wire, 1) is not grpc.StatusCode.OK
            assert city.store_digest() == before
        wire.alter = lambda data, _at: data
        assert submit(city, wire, 1) is grpc.StatusCode.OK


def test_a_line_cut_at_any_place_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The same report again over a line that holds: it counts once, whatever had arrived."""
    with tapped(tmp_path) as (city, wire):
        reports = [city.report(meter, values=reading(meter)) for meter in range(METERS)]
        for meter, place in enumerate((1, 600, 2_500, 9_000, 18_000, 19_500)):
            wire.alter = lambda data, at, place=place: data if at < place else None  # type: ignore[misc]
            with line(city, wire) as stub, suppress(grpc.RpcError):
                stub.SubmitReport(reports[meter], timeout=3.0)
        wire.alter = lambda data, _at: data
        with line(city, wire) as stub:
            for first in range(0, METERS, 110):
                stub.SubmitReports(SubmitReportsRequest(reports=reports[first : first + 110]))
        settle(city)
        total = totals(city)[WINDOW]
        assert total.count == METERS
        assert_exact(city, total)


def test_recorded_bytes_played_again_do_nothing(tmp_path: Path) -> None:
    with tapped(tmp_path) as (city, wire):
        assert submit(city, wire, 0) is grpc.StatusCode.OK
        recorded, before = bytes(wire.recorded), city.store_digest()
        host, _, port = city.address.rpartition(":")
        with socket.create_connection((host, int(port))) as played:
            played.settimeout(3.0)
            with suppress(OSError):
                played.sendall(recorded)
                while played.recv(4096):
                    pass
        assert city.store_digest() == before


def test_what_crosses_the_wire_holds_no_report_in_the_clear(tmp_path: Path) -> None:
    with tapped(tmp_path) as (city, wire):
        report = city.report(0, values=reading(0))
        with line(city, wire) as stub:
            stub.SubmitReport(report)
        for part in (report.meter_id, report.signature, report.ciphertext[:32]):
            assert part not in wire.recorded


def test_a_stand_in_with_a_certificate_of_its_own_is_told_nothing(tmp_path: Path) -> None:
    """It answers in the aggregator's place, vouched for by an authority of its own."""
    with tapped(tmp_path) as (city, _wire):
        profile = Profile.load(city.paths.profile("gateway"))
        now = datetime.now(UTC)
        authority = Authority.create(profile.city_id, now, now + timedelta(days=1))
        issued = authority.issue(
            Role.AGGREGATOR, "stand-in", valid_from=now, valid_until=now + timedelta(days=1)
        )
        server = grpc.server(ThreadPoolExecutor(1))
        credentials = grpc.ssl_server_credentials([(issued.key_pem, issued.certificate_pem)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            address = f"127.0.0.1:{port}"
            with (
                connect(address, "aggregator", profile.city_id, profile.tls) as channel,
                pytest.raises(grpc.RpcError) as raised,
            ):
                AggregatorStub(channel).SubmitReport(city.report(0), timeout=3.0)
            assert from_rpc_error(raised.value).reason is Reason.UNREACHABLE
        finally:
            server.stop(None)


@pytest.mark.parametrize("role", ["keyholder", "totals", "meter"])
def test_no_other_certificate_of_the_city_passes_for_the_aggregators(
    tmp_path: Path, role: str
) -> None:
    """A stolen key of another role does not collect reports."""
    with tapped(tmp_path) as (city, _wire):
        profile = Profile.load(city.paths.profile("gateway"))
        tls = city.paths.tls(role)
        pair = (tls / "key.pem").read_bytes(), (tls / "cert.pem").read_bytes()
        server = grpc.server(ThreadPoolExecutor(1))
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        server.start()
        try:
            address = f"127.0.0.1:{port}"
            with (
                connect(address, "aggregator", profile.city_id, profile.tls) as channel,
                pytest.raises(grpc.RpcError) as raised,
            ):
                AggregatorStub(channel).SubmitReport(city.report(0), timeout=3.0)
            assert from_rpc_error(raised.value).reason is Reason.UNREACHABLE
        finally:
            server.stop(None)
