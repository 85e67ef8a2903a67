"""Whether this aggregator's clock can be right, by those of the others. Pure.

Which window takes reports, and when it is sealed, goes by each aggregator's own clock.
"""

from __future__ import annotations

from collections.abc import Mapping

MOST_SKEW_S = 600.0
"""Metering time that clocks may differ by."""
FRESH_MS = 10_000
"""Older words of others are not compared with."""


def told(answer: Mapping[str, str]) -> dict[str, tuple[float, int]]:
    """Metering time, and the server's in milliseconds, by aggregator, where they can be read."""
    clocks = {}
    for name, words in answer.items():
        try:
            metering, _run, stamp = words.split()
            clocks[name] = float(metering), int(stamp)
        except ValueError:
            continue
    return clocks


def differs(
    own: float, others: Mapping[str, tuple[float, int]], server_ms: int, rate: float
) -> bool:
    """Whether more than half of the others have another time.

    Of two that differ nobody can say which is wrong: both stop.

    Args:
        own: metering time of this aggregator.
        others: what the others told, and when by the server's clock.
        server_ms: the server's clock now.
        rate: metering seconds per real second.
    """
    fresh = [
        metering + (server_ms - stamp) / 1000 * rate
        for metering, stamp in others.values()
        if server_ms - stamp <= FRESH_MS
    ]
    apart = sum(abs(own - metering) > MOST_SKEW_S for metering in fresh)
    return 2 * apart > len(fresh)
