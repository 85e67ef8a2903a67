"""The page for citizens: what was opened, when, of how many, and under which rules."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any

from starlette.concurrency import run_in_threadpool

from gridveil.operator import Operator
from gridveil.profile import Profile
from gridveil.protocol.city import PPM, CityParameters
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.layout import sha256
from gridveil_services.console.model import CityModel, Row

LANGUAGES = ("en", "de")
SHOWN = 96
RETRY_S = 30.0
"""Until the rules are asked for again where they were not to be had."""


class Citizens:
    """What everybody may see.

    However many visitors there are, the totals service is asked for the rules by one call at a
    time: once for each, and not again for a while where it did not give them.

    Args:
        model: of the city.
        profile: an operator's.
        contact: where to object.
        time_zone: the name of the city's.
    """

    def __init__(self, model: CityModel, profile: Profile, contact: str, time_zone: str) -> None:
        self._time_zone = time_zone
        self._model = model
        self._profile = profile
        self._contact = contact
        self._known: CityParameters | None = None
        self._asking = asyncio.Lock()
        self._not_before = 0.0

    async def shown(self, language: str) -> dict[str, Any]:
        """What the template of a language is filled with."""
        newest = self._model.newest
        parameters = await self._parameters(newest) if newest else None
        return {
            "language": language,
            "rows": [self._row(row, language) for row in self._model.released(SHOWN)],
            "policy": parameters and _policy(parameters),
            "city_id": self._profile.city_id.hex(),
            "key": self._profile.identity_key.hex(),
            "fingerprint": _groups(sha256(self._profile.identity_key).hex()[:32]),
            "contact": self._contact,
            "zone": self._time_zone,
            "minutes": self._model.length // 60,
        }

    async def _parameters(self, newest: Row) -> CityParameters | None:
        """Those that the newest total names; None while they are not to be had."""
        async with self._asking:
            if not self._has(newest) and time.monotonic() >= self._not_before:
                try:
                    self._known = await run_in_threadpool(self._fetch, newest.window_start)
                except GridveilError:
                    self._known = None
                if not self._has(newest):
                    self._not_before = time.monotonic() + RETRY_S
        return self._known if self._has(newest) else None

    def _has(self, newest: Row) -> bool:
        return self._known is not None and self._known.digest.hex() == newest.parameters

    def _fetch(self, window_start: int) -> CityParameters:
        with Operator.open(self._profile) as operator:
            return operator.parameters(window_start)

    def _row(self, row: Row, language: str) -> dict[str, Any]:
        return {
            "window": self._time(row.window_start, language),
            "opened": self._time(row.opened_at, language) if row.opened_at else "",
            "kwh": _number(row.sum / 1_000, language) if row.sum is not None else "",
            "count": row.count,
            "enrolled": row.enrolled,
        }

    def _time(self, seconds: int, language: str) -> str:
        style = "%d.%m.%Y %H:%M" if language == "de" else "%Y-%m-%d %H:%M"
        return datetime.fromtimestamp(seconds, self._model.zone).strftime(style)


def _policy(parameters: CityParameters) -> dict[str, Any]:
    policy = parameters.policy
    return {
        "min_cohort": policy.min_cohort,
        "coverage": round(100 * policy.min_coverage_ppm / PPM),
        "noise": policy.noise is not None,
        "audience": policy.entry_audience.name,
        "digest": parameters.digest.hex(),
        "epoch": parameters.epoch.epoch_id.hex(),
        "epoch_hours": (parameters.epoch.end_window - parameters.epoch.first_window) // 3_600,
    }


def _groups(text: str) -> str:
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def _number(value: float, language: str) -> str:
    text = f"{value:,.1f}"
    return text.translate(str.maketrans(",.", ".,")) if language == "de" else text
