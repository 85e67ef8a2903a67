"""Settled windows as operators export them: totals that are really signed, of any count.

rows = [row(settled(0, 5_000)), row(gap(1))]
write_exported(tmp_path / "totals.json", rows)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rbcl
from nacl.signing import SigningKey

from gridveil.cli.totals import outcome_json
from gridveil.protocol.layout import sha256
from gridveil.protocol.noise import Noise
from gridveil.protocol.release import RegisterTotal, Total, TotalNoise
from gridveil.settlements import NotReleased, NotReleasedReason, ReleasedTotal
from gridveil.totals_file import Settled
from tests.support.reports import CITY_ID, WINDOW

KEY = SigningKey(b"k" * 32)
STRANGER = SigningKey(b"s" * 32)
LENGTH = 900
COMMITMENT: bytes = rbcl.crypto_core_ristretto255_from_hash(b"n" * 64)


def settled(
    at: int,
    import_wh: int,
    export_wh: int | None = 0,
    *,
    count: int = 100,
    enrolled: int | None = None,
    lanes: int = 1,
    left_out: tuple[int, ...] = (),
    noise: Noise | None = None,
    deviations: Mapping[str, float] | None = None,
    start: int = WINDOW,
    length: int = LENGTH,
    unit: str = "Wh",
    signer: SigningKey = KEY,
    city_id: bytes = CITY_ID,
) -> Settled:
    """The ``at``-th window with its total; ``export_wh``: None for a city without that register."""
    window = start + at * length
    sums = {"import_wh": import_wh, "export_wh": export_wh}
    total = Total(
        city_id=city_id,
        epoch_id=sha256(b"epoch")[:16],
        parameters_digest=sha256(b"parameters"),
        window_start=window,
        window_length=length,
        roster_version=1,
        enrolled=count if enrolled is None else enrolled,
        count=count,
        lanes=lanes,
        left_out=left_out,
        release_digest=sha256(b"release%d" % window),
        entries_root=sha256(b"entries%d" % window),
        registers=tuple(
            RegisterTotal(name, unit, found) for name, found in sums.items() if found is not None
        ),
        blinding=bytes(32),
        added=TotalNoise(noise, COMMITMENT) if noise else None,
    )
    return Settled(ReleasedTotal(total, total.encode(), total.sign(signer)), deviations or {})


def gap(
    at: int, reason: NotReleasedReason = NotReleasedReason.REFUSED, *, start: int = WINDOW
) -> Settled:
    """The ``at``-th window, which has no total."""
    return Settled(NotReleased(start + at * LENGTH, reason), {})


def row(found: Settled) -> dict[str, Any]:
    """As ``gridveil totals list --json`` shows it."""
    return outcome_json(*found)


def write_exported(path: Path, rows: Sequence[Settled]) -> Path:
    """A file of what ``gridveil totals list --json`` prints."""
    path.write_text(json.dumps([row(found) for found in rows]))
    return path


def write_profile(folder: Path) -> Path:
    """A profile that pins the key that these totals are signed with; nobody can be called by it."""
    path = folder / "profile.toml"
    path.write_text(
        f'city_id = "{CITY_ID.hex()}"\nidentity_key = "{bytes(KEY.verify_key).hex()}"\n'
        '[tls]\nca = "ca"\ncertificate = "cert"\nkey = "key"\n'
    )
    return path


def write_feeder(path: Path, rows: Mapping[int, int]) -> Path:
    """A feeder's file."""
    lines = [f"{window},{wh}\n" for window, wh in rows.items()]
    path.write_text("window_start,wh\n" + "".join(lines))
    return path
