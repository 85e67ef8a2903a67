"""When a report is sent, and when again: pure functions of times and injected randomness.

All times are metering time, Unix seconds. First attempts are spread uniformly over the first two
thirds of what is left of the grace period. Repeats follow exponential backoff with full jitter
(M. Brooker, "Exponential Backoff And Jitter", 2015) above a floor of 10/3 s, so that no report is
sent more than three times in any 10 s whatever is drawn: an outage never becomes a storm.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from gridveil.protocol.windows import WindowRules

Draw = Callable[[], float]
"""A uniform number in [0, 1)."""

system_draw: Draw = random.SystemRandom().random

FLOOR_S = 10 / 3
"""Least time between two attempts of one report."""

BASE_S = 1.0
CAP_S = 60.0
"""The jitter's span doubles from BASE_S with every attempt, up to CAP_S."""

MOST_ATTEMPTS = 24
"""Attempts of one report altogether. They reach about 12 minutes."""


def first_attempt(rules: WindowRules, window_start: int, now: float, draw: Draw) -> float:
    """When to send a report first: in the first two thirds of what is left of the grace period."""
    earliest = max(now, rules.end(window_start))
    spread = rules.spread_s() / rules.grace
    return earliest + draw() * max(0.0, rules.closes(window_start) - earliest) * spread


def next_attempt(
    attempts: int, now: float, closes: float, retry_after_s: float | None, draw: Draw
) -> float | None:
    """When to send a report again, or None if it was sent often enough.

    Args:
        attempts: how often it was sent so far, at least 1.
        now: when the last attempt failed.
        closes: when its window closes. A wait that would miss that is shortened, never below
            FLOOR_S; after it the attempts go on, to learn what became of the report.
        retry_after_s: what the server asked for, if anything; it is waited at the least.
        draw: uniform randomness.
    """
    if attempts >= MOST_ATTEMPTS:
        return None
    floor = max(FLOOR_S, retry_after_s or 0.0)
    span = min(CAP_S, math.ldexp(BASE_S, min(attempts, 16)))
    left = closes - now - floor
    return now + floor + draw() * (min(span, left) if left > 0 else span)
