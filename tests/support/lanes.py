"""A city of five lanes, of which three are a cohort, and releases in which chosen lanes fail.

city = prepare_lanes(tmp_path / "city")
city.release(0, failing=[2])    # the first window, its third lane spoiled
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from gridveil.clock import ManualClock
from gridveil.protocol.ciphertext import add, parse_sum, to_bytes
from gridveil.protocol.release import LaneSum, Total
from gridveil.protocol.report import Report, sign_report
from gridveil.protocol.v1.log_pb2 import LogRecord
from gridveil.protocol.windows import lane_of
from gridveil_services.keyholder.epoch_keys import EpochKeys
from gridveil_services.keyholder.keyholder import KeyHolder
from tests.support.keyholders import PreparedCity, prepare_city
from tests.support.reports import WINDOW, BuiltRelease, build_release, build_report

METERS, LANES = 401, 5
LENGTH = 900
WINDOWS = 6
"""Windows of one epoch that may be released when a city is opened."""
NOW = WINDOW + WINDOWS * LENGTH + 400


@dataclass(frozen=True)
class LaneCity:
    """A prepared city, and the reports of its windows, made once for all of its copies."""

    city: PreparedCity
    _reports: dict[int, list[Report]] = field(default_factory=dict)

    def copy(self, folder: Path) -> LaneCity:
        """The same city, free to be broken."""
        return LaneCity(self.city.copy(folder), self._reports)

    def with_policy(self, **changes: object) -> LaneCity:
        """The same city under another policy of today."""
        policy = replace(self.city.config.policy, **changes)  # type: ignore[arg-type]
        config = replace(self.city.config, policy=policy)
        return LaneCity(replace(self.city, config=config), self._reports)

    @contextmanager
    def open(self, now: int = NOW) -> Iterator[KeyHolder]:
        """The running key-holder."""
        with self.city.open(ManualClock(now)) as keyholder:
            yield keyholder

    # What meters and aggregator make.

    def reports(self, number: int) -> list[Report]:
        """All reports of a window."""
        if number not in self._reports:
            self._reports[number] = [
                build_report(self.city.parameters, meter, window_at(number), values)
                for meter, values in zip(self.city.meters, readings(number), strict=True)
            ]
        return self._reports[number]

    def release(
        self, number: int, *, failing: Collection[int] = (), unsealed: Collection[int] = ()
    ) -> BuiltRelease:
        """The release of a window.

        Args:
            number: of the window.
            failing: lanes whose sum is not of their entries.
            unsealed: lanes in which the first meter sealed nothing that opens.
        """
        reports = list(self.reports(number))
        for lane in unsealed:
            at = self.meters_in(number, [lane])[0]
            reports[at] = self._unsealed(reports[at], at)
        release = build_release(self.city.parameters, self.city.roster_version, reports)
        lanes = tuple(self._doubled(s) if s.lane in failing else s for s in release.lanes)
        return release.resigned(lanes=lanes)

    def _unsealed(self, report: Report, at: int) -> Report:
        claim = report.claim._replace(sealed_commitment=bytes(48))
        return sign_report(claim, report.ciphertext, self.city.meters[at].signing_key)

    def _doubled(self, lane: LaneSum) -> LaneSum:
        """Every slot is whole and possible, and the equation does not hold."""
        policy = self.city.parameters.policy
        residues = parse_sum(lane.ciphertext, policy.crypto, policy.layout.slots)
        return replace(lane, ciphertext=to_bytes(add([residues, residues], policy.crypto)))

    # The truth.

    def meters_in(self, number: int, lanes: Collection[int]) -> list[int]:
        """The meters of some lanes of a window, by their place in the city."""
        epoch_id, window = self.city.parameters.epoch.epoch_id, window_at(number)
        return [
            at
            for at, meter in enumerate(self.city.meters)
            if lane_of(epoch_id, window, meter.meter_id, LANES) in lanes
        ]

    def ids_in(self, number: int, lanes: Collection[int]) -> list[bytes]:
        """Their ids, ascending."""
        return sorted(self.city.meters[at].meter_id for at in self.meters_in(number, lanes))

    def assert_exact(self, number: int, left_out: Sequence[int] = ()) -> Total:
        """The window's total is that of the meters in all other lanes, each once."""
        total = self.city.totals()[window_at(number)]
        counted = self.meters_in(number, set(range(LANES)) - set(left_out))
        values = readings(number)
        truth = tuple(map(sum, zip(*(values[at] for at in counted), strict=True)))
        assert tuple(register.sum for register in total.registers) == truth
        assert (total.count, total.enrolled) == (len(counted), METERS)
        assert total.left_out == tuple(left_out)
        return total

    # What came of it.

    def keys(self, keyholder: KeyHolder) -> EpochKeys:
        """The epoch's keys in use; they count also after they are destroyed."""
        keys = keyholder.ring.by_digest(self.city.parameters.digest)
        assert keys is not None
        return keys

    def outcomes(self) -> list[tuple[str, int]]:
        """Totals and refusals in the log, each with the failures that it counts."""
        found = []
        for record in self.city.log().poll():
            kind = record.WhichOneof("event") or ""
            if kind in {"released", "refused"}:
                found.append((kind, getattr(record, kind).failures))
        return found

    def logged(self, kind: str) -> list[LogRecord]:
        """The records of one kind."""
        return [r for r in self.city.log().poll() if r.WhichOneof("event") == kind]


def prepare_lanes(folder: Path, **policy: object) -> LaneCity:
    """A city whose policy ``policy`` changes."""
    usual: dict[str, object] = {"min_cohort": 150, "min_coverage_ppm": 500_000}
    return LaneCity(prepare_city(folder, METERS, **(usual | policy)))


def decrypted(keys: EpochKeys, number: int) -> dict[int, int]:
    """How often each lane of a window was decrypted."""
    window = window_at(number)
    return {lane: times for (w, lane), times in keys.decryptions.items() if w == window}


def window_at(number: int) -> int:
    """The start of a window."""
    return WINDOW + number * LENGTH


def readings(number: int) -> list[tuple[int, int]]:
    """What the meters report in a window."""
    return [(300 + 7 * at + number, at % 5) for at in range(METERS)]
