"""Homes as they are configured: of each its meter's keys, and where its messages come from."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

import msgspec

from gridveil.clock import Clock
from gridveil.config import ConfigFile, Section, load
from gridveil.meter_identity import MeterKeys
from gridveil.meters.dlms import PushKeys, PushReader, PushRules
from gridveil.meters.fleet import Fleet
from gridveil.meters.following import Follower, Reader, Sending, sending
from gridveil.meters.gateway import (
    FAILED_STORE,
    HomeGateway,
    Recorder,
    Tell,
    check_registers,
)
from gridveil.meters.intervals import Rules
from gridveil.meters.p1 import TelegramReader
from gridveil.meters.registers import P1_REGISTERS, RegisterMap, parse_registers
from gridveil.meters.sources import (
    DLMS_LINE,
    P1_LINE,
    Source,
    is_open,
    open_source,
    parse_line,
)
from gridveil.meters.state import StateFile
from gridveil.protocol.city import CityPolicy
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason

MOST_HOMES = 500
"""Of one process: each has a thread."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LEAVE_S = 15
"""How long a home's thread is waited for at the end, real seconds."""

_TURN_S = 0.25


class HomeSection(Section, frozen=True, kw_only=True):
    """``[[home]]``. Paths are relative to the file's folder."""

    name: str
    keys: str
    """File with the meter's keys."""
    p1: str | None = None
    """Source of P1 telegrams: a port, tcp://, or a file."""
    dlms: str | None = None
    """Source of DLMS pushes: a port, tcp://, tcp-listen://, or a file. One of the two."""
    register: tuple[str, ...] = ()
    tolerance: Annotated[int, msgspec.Meta(ge=0, le=300)] = 30
    line: str | None = None
    """Of a serial port, such as 2400-8E1."""
    encryption_key: str | None = None
    authentication_key: str | None = None
    zone: str | None = None
    unit_wh: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None


class HomesFile(ConfigFile, frozen=True, kw_only=True):
    """``homes.toml``."""

    home: tuple[HomeSection, ...]
    outbox: str = "outbox.db"


@dataclass(frozen=True)
class Home:
    """One home, its files read."""

    name: str
    identity: MeterKeys
    registers: RegisterMap
    reader: Reader
    tolerance: int
    opened: Callable[[], AbstractContextManager[Source]] = field(repr=False)

    def follower(
        self, meter: Recorder, kept: Path, policy: CityPolicy, clock: Clock, tell: Tell
    ) -> Follower:
        """What follows this home into the outbox of ``meter``; its state is kept in a file.

        Raises:
            MalformedInput: CONFIG_INVALID if its registers are not the city's, or the state is
                another meter's.
            IntegrityLost: PARTIAL_CORRUPT if the state is damaged.
            Unavailable: STORE_UNAVAILABLE if it cannot be read.
        """
        check_registers(policy, self.registers)
        rules = Rules(policy.window_length, self.registers, self.tolerance)
        state = StateFile(kept, self.identity.meter_id)
        return Follower(
            HomeGateway(meter, state, clock, rules, tell), self.reader, clock, self.opened
        )


def make_home(section: HomeSection, folder: Path) -> Home:
    """A home by its configuration.

    Raises:
        MalformedInput: CONFIG_INVALID, naming what is wrong; or the extra is not installed.
    """
    source = section.p1 or section.dlms
    if source is None or (section.p1 and section.dlms):
        raise _invalid("a home has either a P1 source or a DLMS source")
    if not section.encryption_key and is_open(source):
        raise _invalid("to listen at an address of the network needs keys: anybody could connect")
    registers = parse_registers(section.register) if section.register else P1_REGISTERS
    usual = P1_LINE if section.p1 else DLMS_LINE
    line = parse_line(section.line, usual) if section.line else usual
    place = source if source.startswith(("tcp://", "tcp-listen://")) else str(folder / source)
    return Home(
        section.name,
        MeterKeys.load(folder / section.keys),
        registers,
        _telegrams(section, registers) if section.p1 else _pushes(section, registers, folder),
        section.tolerance,
        partial(open_source, place, line),
    )


def _telegrams(section: HomeSection, registers: RegisterMap) -> Reader:
    others = (
        section.encryption_key,
        section.authentication_key,
        section.zone,
        section.unit_wh,
    )
    if any(other is not None for other in others):
        raise _invalid("keys, zone and unit are of DLMS pushes; P1 telegrams need none")
    return TelegramReader(registers)


def _pushes(section: HomeSection, registers: RegisterMap, folder: Path) -> Reader:
    keys = None
    if section.encryption_key and section.authentication_key:
        keys = PushKeys.load(folder / section.encryption_key, folder / section.authentication_key)
    elif section.encryption_key or section.authentication_key:
        raise _invalid("pushes are protected by two keys: for encryption and for authentication")
    zone = None if section.zone is None else read_zone(section.zone)
    return PushReader(registers, PushRules(keys, zone, section.unit_wh))


def read_zone(name: str) -> ZoneInfo:
    """A time zone by its IANA name, or CONFIG_INVALID."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise _invalid("a zone is an IANA name such as Europe/Oslo") from None


def load_homes(path: Path) -> tuple[list[Home], Path]:
    """The homes of a file, and their outbox.

    Raises:
        MalformedInput: CONFIG_INVALID, naming the home and what is wrong with it.
    """
    file = load(path, HomesFile)
    if not 0 < len(file.home) <= MOST_HOMES:
        raise _invalid(f"{path.name} has no homes, or more than {MOST_HOMES}")
    homes = [_named(section, path.parent) for section in file.home]
    _check_distinct([home.name for home in homes], "name")
    _check_distinct([home.identity.meter_id for home in homes], "meter's identity")
    _check_distinct([section.p1 or section.dlms for section in file.home], "source")
    return homes, path.parent / file.outbox


def _named(section: HomeSection, folder: Path) -> Home:
    if not _NAME.fullmatch(section.name):
        raise _invalid("a home's name is letters, digits and . _ -, at most 64")
    try:
        return make_home(section, folder)
    except MalformedInput as error:
        raise MalformedInput(error.reason, f"home {section.name}: {error.message}") from None


def _check_distinct(values: Sequence[object], what: str) -> None:
    if len(set(values)) != len(values):
        raise _invalid(f"two homes have the same {what}")


def run_homes(
    fleet: Fleet,
    followers: Mapping[str, Follower],
    stop: threading.Event,
    turn: Callable[[], None] = lambda: None,
) -> dict[str, GridveilError]:
    """Follow homes beside each other until ``stop``, or all of them to their files' ends.

    What is wrong in one home is told there and disturbs no other: a source that is not there is
    tried again, a home that can go on no more is left.

    Args:
        fleet: their meters.
        followers: by the home's name.
        stop: ends it.
        turn: called a few times a second.

    Returns:
        Why homes were left, by name.

    Raises:
        Unavailable: STORE_UNAVAILABLE or STORE_FULL if a disk fails: all of them end.
        GridveilError: what the city's parameters are refused for.
    """
    crew = _Crew(stop)
    with sending(fleet) as state:
        threads = [
            threading.Thread(target=crew.follow, args=(*named, state), name=named[0], daemon=True)
            for named in followers.items()
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) and not stop.is_set():
                turn()
                stop.wait(_TURN_S)
                state.check()
        finally:
            stop.set()
            for thread in threads:
                thread.join(_LEAVE_S)
    state.check()
    if crew.defect is not None:
        raise crew.defect
    return crew.left


@dataclass
class _Crew:
    """The homes' threads, and how they ended."""

    stop: threading.Event
    left: dict[str, GridveilError] = field(default_factory=dict)
    defect: Exception | None = None

    def follow(self, name: str, follower: Follower, state: Sending) -> None:
        # A source that is not there yet is waited for: others are.
        follower.begun = True
        try:
            follower.run(self.stop, state)
        except GridveilError as error:
            if error.reason in FAILED_STORE:
                self._end(error)
            else:
                self.left[name] = error
                follower.gateway.tell(error)
        except Exception as error:  # raised by who waits for all of them
            self._end(error)

    def _end(self, error: Exception) -> None:
        self.defect = self.defect or error
        self.stop.set()


def _invalid(what: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, what)
