"""Runs benchmarks one after the other: python -m benchmarks [NAME ...]; without a name, all."""

from __future__ import annotations

import argparse
import sys

from benchmarks import (
    control,
    forecast,
    ingest,
    meter,
    release,
    store,
    verification,
    watchfulness,
)

ALL = {
    "meter": meter.main,
    "ingest": ingest.main,
    "release": release.main,
    "verification": verification.main,
    "store": store.main,
    "forecast": forecast.main,
    "watchfulness": watchfulness.main,
    "control": control.main,
}


def main() -> int:
    """Command line; exit code 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)}; or all")
    parser.add_argument("--json", action="store_true", help="one JSON document a benchmark")
    options = parser.parse_args()
    unknown = set(options.names) - ALL.keys()
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    codes = []
    for name in options.names or ALL:
        print(f"== {name}", file=sys.stderr if options.json else sys.stdout, flush=True)
        codes.append(ALL[name](["--json"] if options.json else []))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
