"""Real key-holders for tests: a city's folder with keys, a roster and a window full of reports.

city = prepare_city(tmp_path / "city", meters=120)
keyholder = city.open(ManualClock(city.closes))
keyholder.releases.release(city.release.messages())
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gridveil.clock import Clock, ManualClock
from gridveil.profile import Tls
from gridveil.protocol.city import CityParameters
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.refusal_lock import MOST_REFUSALS_PER_DAY
from gridveil.protocol.release import Total, open_total
from gridveil.protocol.report import Report
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import AtRest, create_key_file
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.releaselog.reader import LogReader
from tests.support.audits import assert_lawful
from tests.support.reports import (
    WINDOW,
    BuiltRelease,
    MeterKeys,
    build_release,
    build_report,
    city_policy,
    make_members,
)


def make_config(folder: Path, **policy: object) -> KeyHolderConfig:
    """A key-holder's configuration and keys in a new folder; ``policy`` changes city_policy().

    Its budget of refusals is the largest there is, so that no lock is in a test's way.
    """
    folder.mkdir(parents=True)
    config = KeyHolderConfig(
        policy=city_policy(**policy),
        epoch_length=86_400,
        refusals_per_day=MOST_REFUSALS_PER_DAY,
        listen="localhost:0",
        state=folder / "state",
        published=folder / "published",
        key_encrypting_key_file=folder / "kek",
        tls=Tls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem"),
    )
    create_key_file(config.key_encrypting_key_file)
    identity.create(config.state, AtRest.load(config.key_encrypting_key_file, config.city_id))
    return config


@contextmanager
def opened(config: KeyHolderConfig, now: float) -> Iterator[KeyHolder]:
    """A key-holder on a clock that stands still."""
    keyholder = KeyHolder(config, ManualClock(now))
    try:
        yield keyholder
    finally:
        keyholder.close()


def logged(config: KeyHolderConfig, kind: str) -> list[Any]:
    """The records of one kind in a key-holder's log, in order."""
    records = LogReader(config.published / "log").poll()
    return [getattr(record, kind) for record in records if record.WhichOneof("event") == kind]


@dataclass(frozen=True)
class PreparedCity:
    """A closed key-holder's folder, and all that a release of one window needs."""

    folder: Path
    config: KeyHolderConfig
    identity_key: bytes
    meters: list[MeterKeys]
    parameters: CityParameters
    roster_version: int
    reports: list[Report]
    release: BuiltRelease
    truth: tuple[int, ...]
    """The sum of each register over all reports."""
    window: int = WINDOW

    @property
    def closes(self) -> int:
        """From when the window may be released."""
        return self.config.policy.rules.closes(self.window)

    @property
    def expires(self) -> int:
        """From when it is too late."""
        return self.config.policy.rules.expires(self.window)

    def copy(self, folder: Path) -> PreparedCity:
        """The same city in another folder, free to be broken."""
        shutil.copytree(self.folder, folder)
        config = replace(
            self.config,
            state=folder / "state",
            published=folder / "published",
            key_encrypting_key_file=folder / "kek",
        )
        return replace(self, folder=folder, config=config)

    @contextmanager
    def open(self, clock: Clock | None = None) -> Iterator[KeyHolder]:
        """The running key-holder, at the window's close unless a clock says otherwise."""
        keyholder = KeyHolder(self.config, clock or ManualClock(self.closes))
        try:
            yield keyholder
        finally:
            keyholder.close()
        assert_lawful(self.config.published / "log", self.config.city_id, self.identity_key)

    def reports_with(self, report: Report) -> list[Report]:
        """All reports, one meter's replaced by another of it."""
        meter_id = report.claim.meter_id
        return [report if other.claim.meter_id == meter_id else other for other in self.reports]

    def totals(self) -> dict[int, Total]:
        """Every total in the log, its signature checked."""
        return {
            record.released.window_start: open_total(
                record.released.total.total, record.released.total.signature, self.identity_key
            )
            for record in self.log().poll()
            if record.WhichOneof("event") == "released"
        }

    def events(self) -> list[str]:
        """What happened to the window, in order."""
        found = []
        for record in self.log().poll():
            kind = record.WhichOneof("event") or ""
            if getattr(getattr(record, kind), "window_start", None) == self.window:
                found.append(kind)
        return found

    def log(self) -> LogReader:
        """The release log as everybody may read it."""
        return LogReader(self.config.published / "log")


def prepare_city(folder: Path, meters: int = 120, **policy: object) -> PreparedCity:
    """A city whose meters were enrolled before WINDOW and have all reported it."""
    config = make_config(folder, **policy)
    keys = make_members(meters)
    keyholder = KeyHolder(config, ManualClock(WINDOW - 1))
    version = keyholder.roster.enrol([meter.member for meter in keys])
    signed = keyholder.ring.for_window(WINDOW)
    assert signed is not None
    parameters = signed.parameters
    keyholder.close()
    values = [(300 + 7 * at, at % 5) for at in range(meters)]
    reports = [
        build_report(parameters, meter, WINDOW, reading)
        for meter, reading in zip(keys, values, strict=True)
    ]
    at_rest = AtRest.load(config.key_encrypting_key_file, config.city_id)
    return PreparedCity(
        folder=folder,
        config=config,
        identity_key=bytes(identity.load(config.state, at_rest).verify_key),
        meters=keys,
        parameters=parameters,
        roster_version=version.version,
        reports=reports,
        release=build_release(parameters, version.version, reports),
        truth=tuple(map(sum, zip(*values, strict=True))),
    )


def refusal_of(keyholder: KeyHolder, release: BuiltRelease) -> GridveilError:
    """Why a release is refused."""
    with pytest.raises(GridveilError) as refusal:
        keyholder.releases.release(release.messages())
    return refusal.value


@contextmanager
def unpublishable(city: PreparedCity, window: int) -> Iterator[None]:
    """Opened entries of a window cannot be written: a folder is in their file's place."""
    obstacle = city.config.published / "entries" / f"{window}.new"
    obstacle.mkdir()
    yield
    obstacle.rmdir()


def state_of(city: PreparedCity) -> dict[str, bytes]:
    """Every durable byte of the key-holder, but for what is on its way in."""
    files = (path for path in city.folder.rglob("*") if path.is_file())
    return {str(p): p.read_bytes() for p in files if "spool" not in p.parts}
