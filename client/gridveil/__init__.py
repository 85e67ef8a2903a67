"""Privacy-preserving smart-meter aggregation: protocol, meter and operator library.

Everything named here is public, as is what ``docs/api.md`` says of it: it changes with a note in
the changelog only. A name is loaded when it is first used, so that an operator's program never
loads what only a meter needs::

    from gridveil import Operator, ReleasedTotal

    with Operator.open("city/operator/profile.toml") as operator:
        for outcome in operator.watch():
            if isinstance(outcome, ReleasedTotal):
                print(outcome.window_start, outcome.sum("import_wh"), outcome.coverage)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gridveil import tables
    from gridveil.clock import Clock, ManualClock, SystemClock
    from gridveil.control import (
        AsyncControlClient,
        ControlClient,
        ControlRules,
        ControlSignal,
        DemandForecast,
        ForecastPoint,
    )
    from gridveil.days import day_of, time_zone, windows_of
    from gridveil.household import Household, OwnReport, Standing
    from gridveil.meter import AsyncMeter, Meter, ReportStatus
    from gridveil.meter_identity import MeterKeys
    from gridveil.operator import AsyncOperator, Operator
    from gridveil.outbox import State as ReportState
    from gridveil.profile import Profile
    from gridveil.protocol.city import CityParameters, CityPolicy, Register
    from gridveil.protocol.errors import (
        Conflict,
        Exhausted,
        GridveilError,
        IntegrityLost,
        InternalFault,
        MalformedInput,
        NotAllowed,
        NotAuthentic,
        NotFound,
        Reason,
        Unavailable,
        WrongState,
    )
    from gridveil.protocol.release import RegisterTotal, Total
    from gridveil.registrar import Registrar, Roster, Suspect
    from gridveil.settlements import NotReleased, NotReleasedReason, Outcome, ReleasedTotal
    from gridveil.verification import Verification, verify_total

__all__ = [
    "AsyncControlClient",
    "AsyncMeter",
    "AsyncOperator",
    "CityParameters",
    "CityPolicy",
    "Clock",
    "Conflict",
    "ControlClient",
    "ControlRules",
    "ControlSignal",
    "DemandForecast",
    "Exhausted",
    "ForecastPoint",
    "GridveilError",
    "Household",
    "IntegrityLost",
    "InternalFault",
    "MalformedInput",
    "ManualClock",
    "Meter",
    "MeterKeys",
    "NotAllowed",
    "NotAuthentic",
    "NotFound",
    "NotReleased",
    "NotReleasedReason",
    "Operator",
    "Outcome",
    "OwnReport",
    "Profile",
    "Reason",
    "Register",
    "RegisterTotal",
    "Registrar",
    "ReleasedTotal",
    "ReportState",
    "ReportStatus",
    "Roster",
    "Standing",
    "Suspect",
    "SystemClock",
    "Total",
    "Unavailable",
    "Verification",
    "WrongState",
    "day_of",
    "tables",
    "time_zone",
    "verify_total",
    "windows_of",
]

_HOMES = {
    "gridveil.clock": ("Clock", "ManualClock", "SystemClock"),
    "gridveil.control": (
        *("AsyncControlClient", "ControlClient", "ControlRules", "ControlSignal"),
        *("DemandForecast", "ForecastPoint"),
    ),
    "gridveil.days": ("day_of", "time_zone", "windows_of"),
    "gridveil.household": ("Household", "OwnReport", "Standing"),
    "gridveil.meter": ("AsyncMeter", "Meter", "ReportStatus"),
    "gridveil.meter_identity": ("MeterKeys",),
    "gridveil.operator": ("AsyncOperator", "Operator"),
    "gridveil.profile": ("Profile",),
    "gridveil.protocol.city": ("CityParameters", "CityPolicy", "Register"),
    "gridveil.protocol.errors": (
        *("Conflict", "Exhausted", "GridveilError", "IntegrityLost", "InternalFault"),
        *("MalformedInput", "NotAllowed", "NotAuthentic", "NotFound", "Reason", "Unavailable"),
        "WrongState",
    ),
    "gridveil.protocol.release": ("RegisterTotal", "Total"),
    "gridveil.registrar": ("Registrar", "Roster", "Suspect"),
    "gridveil.settlements": ("NotReleased", "NotReleasedReason", "Outcome", "ReleasedTotal"),
    "gridveil.verification": ("Verification", "verify_total"),
}
_HOME_OF = {name: (home, name) for home, names in _HOMES.items() for name in names} | {
    "ReportState": ("gridveil.outbox", "State")
}
_OF_METERS = {"apsw", "numpy", "tenseal", "zstandard"}
"""What only ``gridveil[meter]`` installs."""


def __getattr__(name: str) -> Any:
    if name == "tables":
        return import_module("gridveil.tables")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home, own_name = _HOME_OF[name]
        found = getattr(import_module(home), own_name)
    except ModuleNotFoundError as error:
        if error.name not in _OF_METERS:
            raise
        hint = f"gridveil.{name} needs {error.name}; install it with: pip install 'gridveil[meter]'"
        raise ModuleNotFoundError(hint, name=error.name) from None
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
