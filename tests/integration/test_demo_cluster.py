"""``gridveil demo --cluster``: aggregators over a real Redis Cluster, one of them killed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.demo.plan import EVENING
from tests.integration.test_demo import run_demo
from tests.support.redis_servers import NEEDED

pytestmark = NEEDED


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], CityPaths]:
    city = tmp_path_factory.mktemp("demo") / "city"
    done = run_demo("--cluster", "3", "--meters", "200", "--windows", "3", "--json", "--keep", city)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout), CityPaths(city)


def test_every_total_is_exact_although_an_aggregator_is_killed(
    played: tuple[dict[str, Any], CityPaths],
) -> None:
    told, _ = played
    assert told["aggregators"] == 3
    assert told["killed"] == {"name": "aggregator", "window_start": EVENING + 900}
    assert told["exact"] == told["released"] == len(told["windows"]) == 3
    assert told["reports"]["accepted"] == 600
    assert told["reports"]["unsettled"] == 0


def test_another_aggregator_led_after_the_killed_one_and_all_took_part(
    played: tuple[dict[str, Any], CityPaths],
) -> None:
    _, paths = played
    events = {
        name: [
            json.loads(line)
            for line in (paths.folder / "logs" / f"{name}.jsonl").read_text().splitlines()
        ]
        for name in ("aggregator", "aggregator-2", "aggregator-3")
    }
    led = [name for name, log in events.items() if any(e["event"] == "leads" for e in log)]
    assert "aggregator" in led
    assert len(led) > 1
    played_windows = [EVENING + at * 900 for at in range(3)]
    settled = [e["window"] for log in events.values() for e in log if e["event"] == "settled"]
    assert sorted(set(settled) & set(played_windows)) == played_windows
    assert len(settled) == len(set(settled)), "each is settled by one of them"


def test_a_cluster_of_one_is_refused() -> None:
    done = run_demo("--cluster", "1")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("--cluster is 2 to 8")
