"""Names of keys. A lane of a window is one hash tag, hence one slot of a cluster.

Names are made of fixed-width hexadecimal, so that nothing in them moves a key to another slot.
"""

from __future__ import annotations

from dataclasses import dataclass

from gridveil_services.aggregator.store.interface import Window

_METERS_PER_BUCKET = 64
_MOST_BUCKETS = 1_024


def buckets(window: Window) -> int:
    """Into how many hashes the receipts of one lane are split: small ones are kept packed."""
    expected = -(-window.enrolled // window.lanes)
    return max(1, min(_MOST_BUCKETS, -(-expected // _METERS_PER_BUCKET)))


def bucket_of(meter_id: bytes, count: int) -> int:
    """Which of ``count`` hashes holds a meter's receipt."""
    return int.from_bytes(meter_id[:4], "little") % count


@dataclass(frozen=True)
class LaneKeys:
    """Keys of one lane of a window."""

    prefix: str

    @property
    def lane(self) -> str:
        """Hash, the lane's marker: what it takes, how many it holds, and whether it is sealed."""
        return f"{self.prefix}:lane"

    @property
    def journal(self) -> str:
        """List of entries in the order they were committed."""
        return f"{self.prefix}:journal"

    @property
    def partials(self) -> str:
        """Hash of each writer's running sum and sequence number."""
        return f"{self.prefix}:partials"

    @property
    def equivocations(self) -> str:
        """Hash of the reports that contradict stored ones, by meter."""
        return f"{self.prefix}:equivocations"

    def receipts(self, bucket: int) -> str:
        """Hash of receipts by meter."""
        return f"{self.prefix}:receipts:{bucket:03x}"


@dataclass(frozen=True)
class CityKeys:
    """Keys of one city."""

    city: str
    """Its id, hexadecimal."""

    @property
    def start(self) -> str:
        """What every key of the city begins with."""
        return f"gv:{{{self.city}"

    @property
    def windows(self) -> str:
        """Set of the starts of all windows held."""
        return f"{self.start}}}:windows"

    @property
    def forgotten(self) -> str:
        """No window that starts up to here is ever opened again."""
        return f"{self.start}}}:forgotten"

    @property
    def leader(self) -> str:
        """Who seals and releases just now; it expires by itself."""
        return f"{self.start}}}:leader"

    @property
    def clocks(self) -> str:
        """Hash: the clock of each aggregator when it was last heard of, and the server's then."""
        return f"{self.start}}}:clocks"

    @property
    def servers(self) -> str:
        """Hash: which servers have kept the city's windows, since when, and in what format."""
        return f"{self.start}}}:servers"

    def window(self, start: int) -> str:
        """Hash of a window's facts, phase and fencing epoch, and of who takes part in it."""
        return f"{self.start}:{start:016x}}}:window"

    def lane(self, start: int, lane: int) -> LaneKeys:
        """Keys of a lane."""
        return LaneKeys(f"{self.start}:{start:016x}:{lane:04x}}}")
