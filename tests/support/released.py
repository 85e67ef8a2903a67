"""A made city whose key-holder has really released one window.

city = release_window(tmp_path, audience=EntryAudience.NOBODY)
TotalsProcess(TotalsConfig.load(city.paths.config("totals"))).start()
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gridveil.clock import ManualClock
from gridveil.meter_identity import MeterKeys
from gridveil.protocol.city import CityParameters, EntryAudience
from gridveil.protocol.report import Report
from gridveil.protocol.roster import Member
from gridveil.protocol.windows import lane_count, lane_of
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.totals.config import TotalsConfig
from gridveil_services.totals.serve import TotalsProcess
from tests.support import reports
from tests.support.city import MIDNIGHT, TestCity

WINDOW = MIDNIGHT


@dataclass(frozen=True)
class ReleasedCity:
    """A city's folder after a release, and who reported what."""

    paths: CityPaths
    config: KeyHolderConfig
    meters: list[MeterKeys]
    """Those that reported."""
    silent: MeterKeys
    """Enrolled, and did not report."""
    reports: list[Report]
    parameters: CityParameters
    truth: tuple[int, ...]
    """Sum of each register over the meters that count."""
    left_out: list[MeterKeys]
    """Those in the lane of a liar."""

    @property
    def roster(self) -> dict[bytes, Member]:
        """Of the window."""
        return {meter.meter_id: meter.member for meter in (*self.meters, self.silent)}

    @contextmanager
    def keyholder(self, at: float) -> Iterator[KeyHolder]:
        """The key-holder, opened at a time."""
        with _opened(self.config, at) as keyholder:
            yield keyholder

    @contextmanager
    def totals(self) -> Iterator[TotalsProcess]:
        """The totals service of the city, serving."""
        process = TotalsProcess(TotalsConfig.load(self.paths.config("totals")))
        process.start()
        try:
            yield process
        finally:
            process.stop()


def release_window(
    folder: Path,
    *,
    meters: int = 120,
    audience: EntryAudience = EntryAudience.AUDITORS,
    liar: bool = False,
) -> ReleasedCity:
    """Make a city, enrol meters, and release WINDOW, for which all but one reported.

    ``liar``: the first one reports more than all meters together can.
    """
    made = TestCity.create(folder, meters=meters + 1, entry_audience=audience)
    config = KeyHolderConfig.load(made.paths.config("keyholder"))
    *reporting, silent = made.meters
    with _opened(config, WINDOW - 1) as keyholder:
        version = keyholder.roster.enrol([meter.member for meter in made.meters])
        signed = keyholder.ring.for_window(WINDOW)
        assert signed is not None
        parameters = signed.parameters
    values = [(300 + 7 * at, at % 5) for at in range(meters)]
    if liar:
        values[0] = (config.policy.registers[0].bound * meters + 1, 0)
    built = [
        reports.build_report(parameters, _as_built(meter), WINDOW, reading)
        for meter, reading in zip(reporting, values, strict=True)
    ]
    release = reports.build_release(parameters, version.version, built, enrolled=version.count)
    with _opened(config, config.policy.rules.closes(WINDOW)) as keyholder:
        keyholder.releases.release(release.messages())
    lanes = lane_count(version.count, config.policy.crypto, config.policy.layout.slots)
    lane = [lane_of(parameters.epoch.epoch_id, WINDOW, m.meter_id, lanes) for m in reporting]
    lost = [liar and other == lane[0] for other in lane]
    counted = [reading for reading, out in zip(values, lost, strict=True) if not out]
    return ReleasedCity(
        made.paths,
        config,
        reporting,
        silent,
        built,
        parameters,
        tuple(map(sum, zip(*counted, strict=True))),
        [meter for meter, out in zip(reporting, lost, strict=True) if out],
    )


@contextmanager
def _opened(config: KeyHolderConfig, at: float) -> Iterator[KeyHolder]:
    keyholder = KeyHolder(config, ManualClock(at))
    try:
        yield keyholder
    finally:
        keyholder.close()


def _as_built(meter: MeterKeys) -> reports.MeterKeys:
    return reports.MeterKeys(meter.meter_id, meter.signing_key, meter.sealing_secret)
