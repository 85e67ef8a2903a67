"""Time and size of one report, beside TenSEAL's bare encryption.

A: a whole report of four registers (check, commit, encrypt, fold, seal, sign), the generators of
   its window at hand, as in every report of a window but a meter's or gateway's first.
G: the same, each for another window, so that the window's generators are derived every time.
B: tenseal.ckks_vector alone at the same parameters and with the same number of values.
C: tenseal.ckks_vector alone at TenSEAL's usual parameters, N = 8192, 60 + 40 + 40 + 60 bits,
   scale 2^40, with the same number of values.

One process, one thread, one core; A G B C A G B C.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence

import tenseal

from benchmarks.baseline_server import usual_context
from benchmarks.fleet import Fleet, values
from benchmarks.local_city import local_epoch
from benchmarks.measure import (
    SERVER_CORE,
    Goal,
    Spread,
    interleaved,
    parser,
    pinned,
    ratios,
    report,
    seconds_each,
)
from gridveil.encryption import public_context
from gridveil.protocol.v1 import aggregator_pb2
from gridveil.reporting import ReportBuilder

REGISTERS = 4
CALLS = {"A": 16, "G": 16, "B": 32, "C": 4}
MOST_TO_BARE = 2.2
MOST_TO_USUAL = 0.25
MOST_BYTES = 17_700


class Subjects:
    """The three calls that are compared."""

    def __init__(self) -> None:
        self.parameters = local_epoch(REGISTERS)[0].parameters
        policy, epoch = self.parameters.policy, self.parameters.epoch
        self.builder = ReportBuilder(self.parameters, Fleet(b"meter").meter(0))
        self.readings = values(policy.register_names, 100)
        self.windows = itertools.cycle(
            range(epoch.first_window, epoch.end_window, policy.window_length)
        )
        self.bare = public_context(policy.crypto, epoch.ckks_public_key)
        self.usual = usual_context()
        self.slots = list(policy.layout.to_slots(tuple(self.readings.values()), 1 << 300))

    def calls(self) -> dict[str, Callable[[], object]]:
        """By letter."""
        window = self.parameters.epoch.end_window - self.parameters.policy.window_length
        return {
            "A": lambda: self.builder.build(window, self.readings),
            "G": lambda: self.builder.build(next(self.windows), self.readings),
            "B": lambda: tenseal.ckks_vector(self.bare, self.slots),
            "C": lambda: tenseal.ckks_vector(self.usual, self.slots),
        }

    def sizes(self) -> tuple[int, int]:
        """Bytes on the wire: our report with its framing in a batch, the usual ciphertext."""
        message = self.builder.build(next(self.windows), self.readings).to_message()
        batch = aggregator_pb2.SubmitReportsRequest(reports=[message]).SerializeToString()
        return len(batch), len(tenseal.ckks_vector(self.usual, self.slots).serialize())


def measure(rounds: int) -> tuple[dict[str, list[float]], Subjects]:
    """Microseconds a call by letter and round."""
    subjects = Subjects()
    variants = {
        letter: lambda call=call, times=CALLS[letter]: seconds_each(call, times) * 1e6
        for letter, call in subjects.calls().items()
    }
    return interleaved(variants, rounds, "reports, bare and usual encryption"), subjects


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    options: argparse.Namespace = parser(__doc__, rounds=60).parse_args(arguments)
    with pinned(SERVER_CORE):
        times, subjects = measure(options.rounds)
    a, g, b, c = (times[letter] for letter in "AGBC")
    ours, usual = subjects.sizes()
    to_bare, to_usual = ratios(a, b), ratios(a, c)
    first_to_bare, first_to_usual = ratios(g, b), ratios(g, c)
    goals = [
        Goal("report / bare encryption", to_bare.median, MOST_TO_BARE),
        Goal("report / usual encryption", to_usual.median, MOST_TO_USUAL),
        Goal("report on the wire, bytes", ours, MOST_BYTES),
    ]
    figures = {
        "report_us": Spread.of(a),
        "first_report_us": Spread.of(g),
        "bare_us": Spread.of(b),
        "usual_us": Spread.of(c),
        "report_to_bare": to_bare,
        "report_to_usual": to_usual,
        "first_report_to_bare": first_to_bare,
        "first_report_to_usual": first_to_usual,
        "report_bytes": ours,
        "usual_bytes": usual,
    }
    lines = [
        f"A report of {REGISTERS} registers   us {Spread.of(a).show(0)}",
        f"G with its generators     us {Spread.of(g).show(0)}",
        f"B bare encryption         us {Spread.of(b).show(0)}",
        f"C usual encryption        us {Spread.of(c).show(0)}",
        f"A / B                        {to_bare.show()}",
        f"A / C                        {to_usual.show(3)}",
        f"G / B                        {first_to_bare.show()}",
        f"G / C                        {first_to_usual.show(3)}",
        f"report on the wire     bytes {ours:,}",
        f"usual ciphertext       bytes {usual:,}   ({usual / ours:.1f} times)",
    ]
    return report(options, "meter", lines, goals, figures)


if __name__ == "__main__":
    sys.exit(main())
