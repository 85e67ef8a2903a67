"""P1 telegrams of made-up values, with right CRCs, as a DSMR 5 meter says them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

AMSTERDAM = ZoneInfo("Europe/Amsterdam")
SERIAL = "4530303331303033333031373838373135"


def crc16(data: bytes) -> int:
    """CRC-16/ARC, bit by bit."""
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
    return value


def stamp(at: int) -> str:
    """A moment as P1 writes it: local time, and S or W."""
    local = datetime.fromtimestamp(at, UTC).astimezone(AMSTERDAM)
    return local.strftime("%y%m%d%H%M%S") + ("S" if local.dst() else "W")


def kwh(wh: int) -> str:
    """A register of six and three digits."""
    return f"{wh // 1000:06d}.{wh % 1000:03d}*kWh"


def signed(lines: Iterable[str]) -> bytes:
    """A telegram of these lines with its CRC."""
    body = ("\r\n".join(["/ISK5\\2M550T-1012", "", *lines]) + "\r\n!").encode()
    return body + f"{crc16(body):04X}\r\n".encode()


def lines(
    at: int, energy: Mapping[str, int], *, serial: str = SERIAL, time: str | None = None
) -> list[str]:
    """What a meter says at a moment: also much that nobody asked for."""
    return [
        "1-3:0.2.8(50)",
        f"0-0:1.0.0({stamp(at) if time is None else time})",
        f"0-0:96.1.1({serial})",
        *(f"{code}({kwh(wh)})" for code, wh in energy.items()),
        "0-0:96.14.0(0002)",
        "1-0:1.7.0(00.244*kW)",
        "1-0:99.97.0()",
        "1-0:32.7.0(230.0*V)",
        "0-1:24.1.0(003)",
        "0-1:96.1.0(4730303339303031363532303530323136)",
        f"0-1:24.2.1({stamp(at)})(00012.345*m3)",
    ]


def energy(import_wh: int, export_wh: int = 0) -> dict[str, int]:
    """Registers of both tariffs: the second ones have what is above 100 kWh."""
    return {
        "1-0:1.8.1": min(import_wh, 100_000),
        "1-0:1.8.2": max(import_wh - 100_000, 0),
        "1-0:2.8.1": export_wh,
        "1-0:2.8.2": 0,
    }


def telegram(
    at: int,
    import_wh: int,
    export_wh: int = 0,
    *,
    serial: str = SERIAL,
    time: str | None = None,
) -> bytes:
    """One telegram with a right CRC."""
    return signed(lines(at, energy(import_wh, export_wh), serial=serial, time=time))
