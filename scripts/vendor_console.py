"""Fetch what the console's page is made of from other people, as the lock says, byte for byte.

    python scripts/vendor_console.py          fetch (needs npm), and record what was fetched
    python scripts/vendor_console.py --check  compare the committed files with that record

npm checks each package against the integrity in scripts/vendor/package-lock.json.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "scripts" / "vendor"
TARGET = ROOT / "services" / "gridveil_services" / "console" / "static" / "vendor"
RECORD = LOCK / "SHA256SUMS"
FILES = {
    "uplot/dist/uPlot.iife.min.js": "uPlot.iife.min.js",
    "uplot/dist/uPlot.min.css": "uPlot.min.css",
    "uplot/LICENSE": "uPlot.LICENSE",
}


def fetch() -> None:
    """Install from the lock into a folder of its own, and copy what is served."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("package.json", "package-lock.json"):
            shutil.copy(LOCK / file, folder)
        npm = shutil.which("npm")
        if npm is None:
            sys.exit("npm is needed to fetch; the committed files do without")
        subprocess.run([npm, "ci", "--ignore-scripts", "--silent"], cwd=folder, check=True)
        TARGET.mkdir(exist_ok=True)
        for source, target in FILES.items():
            shutil.copy(folder / "node_modules" / source, TARGET / target)
    RECORD.write_text(digests())


def digests() -> str:
    """SHA-256 of each file, as sha256sum writes it."""
    return "".join(
        f"{hashlib.sha256((TARGET / name).read_bytes()).hexdigest()}  {name}\n"
        for name in sorted(FILES.values())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        fetch()
    elif digests() != RECORD.read_text():
        sys.exit("the console's vendored files are not those that were fetched")


if __name__ == "__main__":
    main()
