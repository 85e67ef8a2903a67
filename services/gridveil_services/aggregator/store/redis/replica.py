"""This aggregator among those that share a Redis: who leads, who takes part, who vouches.

The leader's lease only keeps two aggregators from doing the same work. What a paused leader does
later is harmless by the fencing epochs and compare-and-sets of :mod:`.scripts`.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from gridveil.clock import Clock
from gridveil.protocol.errors import IntegrityLost, Reason, Unavailable
from gridveil_services.aggregator.store.interface import StoreFailed, Window
from gridveil_services.aggregator.store.redis import scripts
from gridveil_services.aggregator.store.redis.clocks import MOST_SKEW_S, differs, told
from gridveil_services.aggregator.store.redis.journal import Journal
from gridveil_services.aggregator.store.redis.keys import CityKeys
from gridveil_services.aggregator.store.redis.lanes import Lanes, Marker
from gridveil_services.aggregator.store.redis.pins import Pins, Record
from gridveil_services.aggregator.store.redis.servers import Servers, script
from gridveil_services.aggregator.store.redis.vouching import Vouching, sealed_digest
from gridveil_services.aggregator.store.redis.windows import Windows

_log = structlog.get_logger()

LEASE_MS = 3_000
CLOCK_KEPT_MS = 3_600_000
FORMAT = "1"
"""Of everything that is kept in Redis. Aggregators of different formats do not share it."""


class AcknowledgementLost(IntegrityLost):
    """A report that was acknowledged is not in what was sealed."""

    def __init__(self) -> None:
        super().__init__(Reason.PARTIAL_CORRUPT, "an acknowledged report is missing")


@dataclass
class Replica:
    """From any thread, but :meth:`lead` and :meth:`resign`."""

    name: str
    servers: Servers
    keys: CityKeys
    lanes: Lanes
    windows: Windows
    pins: Pins
    journal: Journal
    clock: Clock
    leads: bool = False
    clock_differs: bool = False
    """From those of most others, by more than may be."""
    _run: str = field(default_factory=lambda: secrets.token_hex(8))
    _told_at: int = 0
    """When this run told its time last, by the server's clock in milliseconds."""
    _sealed_at: dict[int, float] = field(default_factory=dict)
    """When a window was first seen to be sealed, on the real, monotonic clock."""

    def lead(self) -> bool:
        """Lead, unless somebody else does or the clocks differ.

        Raises:
            StoreFailed: another run of this name has told its time since this one did.
        """
        now = self.clock.now()
        try:
            first, others = self._tell(now)
        except BaseException:
            self.leads = False
            raise
        differed = self.clock_differs
        self.clock_differs = differs(now, others, self._told_at, 1 / self.clock.real(1.0))
        if self.clock_differs and not differed:
            _log.error("the clocks of the aggregators differ", limit_s=MOST_SKEW_S)
        self.leads = first and not self.clock_differs
        return self.leads

    def _tell(self, now: float) -> tuple[bool, dict[str, tuple[float, int]]]:
        """Ask for the lease; whether it is this aggregator's, and what the others told."""
        keys = [self.keys.leader, self.keys.clocks]
        said = self.name, str(LEASE_MS), repr(now), str(CLOCK_KEPT_MS), self._run
        call = script(scripts.LEAD, keys, *said, str(self._told_at))
        ((word, *answer),) = self.servers.write([call])
        if word == b"copied":
            _log.error("another aggregator runs on a copy of this one's state")
            raise self.servers.fail("an aggregator runs on a copy of this one's state")
        stamp, flat = answer
        words = [part.decode() for part in flat]
        others = told(dict(zip(words[::2], words[1::2], strict=True)))
        others.pop(self.name, None)
        self._told_at = int(stamp)
        return word == b"done", others

    def resign(self) -> None:
        """Let somebody else lead at once."""
        self.leads = False
        with suppress(Unavailable):
            self.servers.write([script(scripts.RESIGN, [self.keys.leader], self.name)])

    def unchanged_since(self) -> tuple[str, float]:
        """The servers' lineage, and the metering time since when it has been this one.

        Raises:
            StoreFailed: what they hold is of another format.
        """
        lineage = self.servers.lineage()
        call = script(scripts.SERVERS, [self.keys.servers], FORMAT, lineage, repr(self.clock.now()))
        ((word, value),) = self.servers.write([call])
        if word != b"done":
            raise StoreFailed("Redis does not serve: another version of Gridveil writes to it")
        return lineage, float(value)

    def vouched(self, window: Window, record: Record) -> list[Marker] | None:
        """Vouch for a sealed window; its lanes as they may be released, or None if not yet.

        Raises:
            AcknowledgementLost: what this aggregator acknowledged is not in them.
            IntegrityLost: they are not whole.
        """
        markers = self._sealed_markers(window, record.sealed)
        digest = sealed_digest(window, record.sealed, markers)
        vouchers = dict(record.vouchers)
        if self.name in record.participants and vouchers.get(self.name) != digest:
            self._compare(window)
            if self._sealed_markers(window, record.sealed) != markers:
                return None
            if not self.windows.vouch(window.start, self.name, record.sealed, digest):
                return None
            vouchers[self.name] = digest
        participants = record.participants | self.pins.participants(window.start)
        vouching = Vouching(digest, participants, vouchers)
        waited_s = time.monotonic() - self._sealed_at.setdefault(window.start, time.monotonic())
        same = bool(vouching.missing) and self.servers.lineage() == record.lineage
        return markers if vouching.suffices(same_servers=same, waited_s=waited_s) else None

    def forget(self, start: int) -> None:
        """A window is settled."""
        self._sealed_at.pop(start, None)

    def _sealed_markers(self, window: Window, sealed: int) -> list[Marker]:
        found = [marker for marker in self.lanes.markers(window) if marker is not None]
        if len(found) != window.lanes or any(marker.sealed != sealed for marker in found):
            raise IntegrityLost(Reason.PARTIAL_CORRUPT, "a lane of the window is gone")
        return found

    def _compare(self, window: Window) -> None:
        for lane, acknowledged in self.journal.of(window.start).items():
            stored = self.lanes.receipts_of(window, lane, list(acknowledged))
            for meter_id, digest in acknowledged.items():
                receipt = stored.get(meter_id)
                if receipt is None or receipt.digest != digest:
                    raise AcknowledgementLost
