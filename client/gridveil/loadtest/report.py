"""A load test's result as figures, as one JSON object, and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from gridveil.loadtest.run import Result, WindowResult
from gridveil.loadtest.thresholds import RATE, TOTAL, Figures, Threshold
from gridveil.operator import ReleasedTotal

_SLOW_S = (0.1, 0.5, 1.0, 5.0)


def figures(result: Result) -> Figures:
    """What ``--fail-if`` can name."""
    total = result.total
    found: dict[str, float] = {
        "sent": total.sent,
        "accepted": total.accepted,
        "duplicates": total.duplicates,
        "refused": total.refused.total(),
        "errors": errors(result),
        "retries": total.retries.total(),
        TOTAL: float(bool(result.windows) and result.exact),
        **total.latencies.seconds(),
    }
    if result.sending_s > 0:
        found[RATE] = total.latencies.count / result.sending_s
    return found


def errors(result: Result) -> int:
    """Reports that were not answered as they must be."""
    return result.total.errors.total()


def expected_refusals(result: Result) -> int:
    """Reports that had to be refused, in the windows that were sent."""
    return result.load.refused * len(result.windows)


def violated(thresholds: Sequence[Threshold], result: Result) -> list[Threshold]:
    """The conditions that are met."""
    found = figures(result)
    return [threshold for threshold in thresholds if threshold.holds(found)]


def passed(thresholds: Sequence[Threshold], result: Result) -> bool:
    """Whether a test ends with 0: it was not cut short, no condition is met, all totals exact."""
    return (
        not result.interrupted
        and bool(result.windows)
        and result.exact
        and not violated(thresholds, result)
    )


def as_json(thresholds: Sequence[Threshold], result: Result) -> dict[str, Any]:
    """The result for programs."""
    total, found = result.total, figures(result)
    latency = total.latencies.seconds()
    return {
        "passed": passed(thresholds, result),
        "interrupted": result.interrupted,
        "mode": mode(result),
        "meters": result.load.meters,
        "window_seconds": round(result.window_s, 3),
        "sent": total.sent,
        "accepted": total.accepted,
        "duplicates": total.duplicates,
        "refused": {reason.value: count for reason, count in sorted(total.refused.items())},
        "refused_expected": expected_refusals(result),
        "errors": dict(sorted(total.errors.items())),
        "retries": {reason.value: count for reason, count in sorted(total.retries.items())},
        "known_already": total.known_already,
        "exact": result.exact,
        "reports_per_second": found.get(RATE),
        "latency_ms": {name: round(value * 1e3, 3) for name, value in latency.items()},
        "latency_of": latency_of(result),
        "reports_slower_than_ms": {
            f"{limit * 1e3:.0f}": total.latencies.above(limit) for limit in _SLOW_S
        },
        "generator_behind_ms": round(total.behind_s * 1e3, 3),
        "server_cpu_us_per_report": cpu_us(result),
        "bytes_per_report": bytes_per_report(result),
        "thresholds": [
            {"fail_if": one.text, "violated": one.holds(found), "found": one.told(found)}
            for one in thresholds
        ],
        "windows": [_window_json(window) for window in result.windows],
    }


def mode(result: Result) -> str:
    """How reports were sent."""
    return "closed loop" if result.load.rate is None else "open loop"


def latency_of(result: Result) -> str:
    """What the latencies are measured from."""
    if result.load.rate is None:
        return "service time: from when a call was sent, and calls waited for earlier ones"
    return "response time: from when a call was meant to be sent"


def cpu_us(result: Result) -> dict[str, float] | None:
    """Each service's CPU time a report that was answered, microseconds; None if nobody knows."""
    answered = result.total.settled
    if not result.cpu_s or not answered:
        return None
    return {role: round(used / answered * 1e6, 1) for role, used in result.cpu_s.items()}


def bytes_per_report(result: Result) -> float | None:
    """Bytes of the calls' messages a report."""
    total = result.total
    if not total.reports_in_calls:
        return None
    return round(total.bytes_in_calls / total.reports_in_calls, 1)


def window_name(start: int) -> str:
    """A window's start, ISO 8601, UTC."""
    return datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _window_json(window: WindowResult) -> dict[str, Any]:
    compared, tally = window.compared, window.tally
    outcome = compared.outcome if compared else None
    return {
        "window_start": window.start,
        "window": window_name(window.start),
        "sent": tally.sent,
        "accepted": tally.accepted,
        "errors": tally.errors.total(),
        "exact": bool(compared and compared.exact),
        "expected": dict(compared.sums) if compared else None,
        "released": (
            {register.name: register.sum for register in outcome.total.registers}
            if isinstance(outcome, ReleasedTotal)
            else None
        ),
        "counted": outcome.count if isinstance(outcome, ReleasedTotal) else None,
        "failure": compared.why or None if compared else "the test was interrupted",
    }


def as_lines(thresholds: Sequence[Threshold], result: Result) -> Iterator[str]:
    """The result for people."""
    total, found = result.total, figures(result)
    yield (
        f"{total.sent:,} reports of {result.load.meters:,} meters in {len(result.windows)} windows"
        f" of {result.window_s:.1f} s, {mode(result)}"
    )
    yield f"  accepted    {total.accepted:,}"
    if total.duplicates:
        yield f"  duplicates  {total.duplicates:,}"
    if expected := expected_refusals(result):
        yield f"  refused     {total.refused.total():,} of {expected:,} that had to be"
        yield from (f"    {reason}: {count:,}" for reason, count in sorted(total.refused.items()))
    yield f"  errors      {errors(result):,}"
    yield from (f"    {what}: {count:,}" for what, count in sorted(total.errors.items()))
    if total.retries:
        yield f"  retries     {total.retries.total():,}"
        yield from (f"    {reason}: {count:,}" for reason, count in sorted(total.retries.items()))
    if total.known_already:
        yield f"  known already, by a retry or a copy sent on purpose: {total.known_already:,}"
    yield from _speed_lines(result)
    for window in result.windows:
        yield _window_line(window)
    if result.interrupted:
        yield "Interrupted: the totals were not compared."
    for threshold in violated(thresholds, result):
        yield f"FAILED --fail-if {threshold.text!r}: {threshold.told(found)}"
    yield "passed" if passed(thresholds, result) else "failed"


def _speed_lines(result: Result) -> Iterator[str]:
    latency, total = result.total.latencies.seconds(), result.total
    if RATE in (found := figures(result)):
        yield f"  {found[RATE]:,.0f} reports/s while sending"
    if latency:
        shown = ", ".join(f"{name} {value * 1e3:,.1f}" for name, value in latency.items())
        yield f"  ms: {shown}"
        yield f"  ({latency_of(result)})"
    if result.load.rate is not None:
        yield f"  the load generator was at most {total.behind_s * 1e3:,.1f} ms behind"
    if cpu := cpu_us(result):
        shown = ", ".join(f"{role} {used:,.0f}" for role, used in cpu.items())
        yield f"  server CPU, us a report: {shown}"
    if size := bytes_per_report(result):
        yield f"  {size:,.0f} bytes a report"


def _window_line(window: WindowResult) -> str:
    name, compared = window_name(window.start), window.compared
    if compared is None:
        return f"  {name}  {window.tally.accepted:,} accepted"
    sums = ", ".join(f"{register} {value:,}" for register, value in compared.sums.items())
    return f"  {name}  {compared.accepted:,} accepted, {sums}: {compared.why or 'exact'}"
