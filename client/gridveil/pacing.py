"""When a report is sent, and when again: pure functions of times and injected randomness.

All times are metering time, Unix seconds. First attempts are spread uniformly over the first two
thirds of what is left of the grace period. Repeats follow exponential backoff with full jitter
(M. Brooker, "Exponential Backoff And Jitter", 2015) above a floor of 10/3 s, so that no report is
sent more than three times in any 10 s whatever is drawn: an outage never becomes a storm. In all
a report is sent about 30 times if nobody answers from the window's end on.
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

LEARN_S = 600.0
"""How long after its window closed a report without an answer is still asked about; also the most
that is waited because the server asked for it."""


def first_attempt(rules: WindowRules, window_start: int, now: float, draw: Draw) -> float:
    """When to send a report first: in the first two thirds of what is left of the grace period."""
    earliest = max(now, rules.end(window_start))
    spread = rules.spread_s() / rules.grace
    return earliest + draw() * max(0.0, rules.closes(window_start) - earliest) * spread


def next_attempt(
    attempts: int, now: float, closes: float, retry_after_s: float | None, draw: Draw
) -> float | None:
    """When to send a report again, or None if it is too late for any use.

    Args:
        attempts: how often it was sent so far, at least 1.
        now: when the last attempt failed.
        closes: when its window closes. A wait that would miss that is shortened, never below
            FLOOR_S; afterwards the attempts go on for LEARN_S, to learn what became of the report.
        retry_after_s: what the server asked for, if anything; it is waited at the least.
        draw: uniform randomness.
    """
    if now >= closes + LEARN_S:
        return None
    floor = max(FLOOR_S, min(retry_after_s or 0.0, LEARN_S))
    left = closes - now - floor
    # Where the grace period is hours long, so are the waits.
    cap = max(CAP_S, left / 8)
    span = min(cap, math.ldexp(BASE_S, min(attempts, 32)))
    return now + floor + draw() * (min(span, left) if left > 0 else span)
