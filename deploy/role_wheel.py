"""Cuts a role's wheel out of the wheel of all services: the siblings' code is not in it.

    python deploy/role_wheel.py SERVICES.whl ROLE FOLDER

The archive is one a wheel may be (PyPA, binary distribution format): what is left out of the
code is left out of RECORD and of the entry points as well.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

PACKAGE = "gridveil_services"
ROLES = {
    "aggregator": ("metrics", "rpc", "aggregator"),
    "console": ("rpc", "console"),
    "controller": ("metrics", "rpc", "controller"),
    "keyholder": ("metrics", "rpc", "releaselog", "keyholder"),
    "totals": ("metrics", "rpc", "releaselog", "totals"),
    "witness": ("rpc", "witness"),
}
"""What each role is made of, below the package."""

_ENTRY_POINTS = re.compile(r"[^/]+\.dist-info/entry_points\.txt")
_RECORD = re.compile(r"[^/]+\.dist-info/RECORD")


def cut(wheel: Path, role: str, folder: Path) -> Path:
    """Write the wheel of a role into a folder, under the same name; its path."""
    with ZipFile(wheel) as whole:
        kept = {
            name: whole.read(name)
            for name in whole.namelist()
            if _belongs(name, ROLES[role]) and not name.endswith("/")
        }
    for name, data in kept.items():
        if _ENTRY_POINTS.fullmatch(name):
            kept[name] = _commands(data.decode(), ROLES[role]).encode()
    (record,) = (name for name in kept if _RECORD.fullmatch(name))
    del kept[record]
    folder.mkdir(parents=True, exist_ok=True)
    with ZipFile(folder / wheel.name, "w", ZIP_DEFLATED) as own:
        for name, data in kept.items():
            own.writestr(name, data)
        own.writestr(record, _record(kept, record))
    return folder / wheel.name


def _belongs(name: str, packages: Iterable[str]) -> bool:
    top, _, rest = name.partition("/")
    below, inside, _ = rest.partition("/")
    return top != PACKAGE or not inside or below in packages


def _commands(entry_points: str, packages: Iterable[str]) -> str:
    """The entry points without those that lead to what is left out."""
    ours = re.compile(rf"[\w-]+\s*=\s*{PACKAGE}\.(\w+)")
    lines = entry_points.splitlines()
    matches = ((line, ours.match(line)) for line in lines)
    return "\n".join(line for line, found in matches if not found or found[1] in packages) + "\n"


def _record(files: Mapping[str, bytes], record: str) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.writerow((name, f"sha256={digest}", len(data)))
    rows.writerow((record, "", ""))
    return text.getvalue()


if __name__ == "__main__":
    _wheel, _role, _folder = sys.argv[1:]
    print(cut(Path(_wheel), _role, Path(_folder)))
