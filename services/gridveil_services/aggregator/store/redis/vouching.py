"""Whether a sealed window may be released: what all that is known of its loss says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gridveil.protocol.layout import sha256, text, u32, u64
from gridveil_services.aggregator.store.interface import Window
from gridveil_services.aggregator.store.redis.lanes import Marker

_DOMAIN = text("gridveil/store/redis-sealed")

PATIENCE_S = 6.0
"""How long the leader waits for an aggregator that does not vouch, real seconds, where it may do
without: two leases."""


def sealed_digest(window: Window, sealed: int, markers: Sequence[Marker]) -> str:
    """SHA-256, hexadecimal, of what all lanes of a sealed window hold, by their own digests."""
    lanes = b"".join(u64(marker.reports) + marker.digest for marker in markers)
    return sha256(_DOMAIN + u64(window.start) + u64(sealed) + u32(window.lanes) + lanes).hex()


@dataclass(frozen=True)
class Vouching:
    """What is known of a sealed window."""

    digest: str
    """Of what is sealed, as it was read."""
    participants: frozenset[str]
    """Aggregators that may have acknowledged reports."""
    vouchers: Mapping[str, str]

    @property
    def missing(self) -> Iterable[str]:
        """Aggregators that have not found all that they acknowledged in just this set."""
        return sorted(n for n in self.participants if self.vouchers.get(n) != self.digest)

    def suffices(self, *, same_servers: bool, waited_s: float) -> bool:
        """Whether no acknowledgement can be missing.

        Either every aggregator has compared its journal, or, for one that is gone, no server was
        restarted or replaced since the window was opened: then none has lost what it answered to.
        """
        return not self.missing or (same_servers and waited_s >= PATIENCE_S)
