"""The notebook of a city's day, run as it is against a totals service, and what it has drawn."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from gridveil.days import time_zone, windows_of
from gridveil.protocol.release import RegisterTotal
from gridveil.simulator.readings import ReadingBounds
from gridveil.simulator.standard_load import StandardLoadSource
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.totals.serve import TotalsProcess
from tests.support.totals import (
    city_identity,
    expired,
    open_window,
    publish,
    readings,
    refused,
    released,
)

pytestmark = pytest.mark.long

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "city_day.ipynb"
METERS = 100
REFUSED, EXPIRED, SETTLED = 20, 40, 90
"""Windows of the day without a total, and how many are settled."""

PROBE = """
import json
print(json.dumps({
    "drawn": [None if value != value else value for value in curve.get_data().values],
    "edges": [edge.timestamp() for edge in edges],
    "baseline": curve.get_data().baseline,
    "shaded": len(demand.patches) - 1,
    "labels": [meters.xaxis.get_major_formatter()(tick) for tick in meters.get_xticks()],
}))
"""
"""What the test asks the notebook's own process, after its last cell."""


def load() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def publish_day(paths: CityPaths, windows: range) -> list[int]:
    """Release a day of made-up households but for its gaps and its last hours; the sums in Wh."""
    policy, signer = city_identity(paths)
    settled = windows[:SETTLED]
    wh = StandardLoadSource().read([None] * METERS, settled, ReadingBounds(900, 0, 200_000)).wh
    sums = [int(total) for total in wh.sum(axis=1)]
    opened = open_window(policy, signer, windows[0], readings(METERS), enrolled=110)
    records = []
    for at, (window, total) in enumerate(zip(settled, sums, strict=True)):
        gap = {REFUSED: refused, EXPIRED: expired}.get(at)
        registers = (RegisterTotal("import_wh", "Wh", total), opened.total.registers[1])
        made = opened.with_total(window_start=window, registers=registers)
        records.append(gap(window) if gap else released(made))
    publish(paths, *records)
    return sums


def execute(folder: Path, environment: dict[str, str], probe: str = PROBE) -> Any:
    """The notebook after a run, with a cell more."""
    notebook = load()
    notebook.cells.append(nbformat.v4.new_code_cell(probe))  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook,
        timeout=120,
        resources={"metadata": {"path": str(folder)}},
        kernel_name="python3",
    )
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        client.execute()
    return notebook


def printed(cell: Any) -> str:
    return "".join(output["text"] for output in cell.outputs if output.output_type == "stream")


@pytest.mark.parametrize(("day", "size"), [("2026-10-25", 100), ("2026-03-29", 92)])
def test_the_notebook_draws_steps_with_breaks_where_there_is_no_total(
    paths: CityPaths, serve: Callable[[], TotalsProcess], tmp_path: Path, day: str, size: int
) -> None:
    windows = windows_of(date.fromisoformat(day), time_zone("Europe/Zurich"), 900)
    sums = publish_day(paths, windows)
    serve()
    profile = str(paths.profile("operator"))

    notebook = execute(tmp_path, {"GRIDVEIL_PROFILE": profile, "GRIDVEIL_DAY": day})

    *_, reading, _, drawing, _, peak, probe = notebook.cells
    counts = {"not_released": 2, "not_settled": size - SETTLED, "released": SETTLED - 2}
    assert printed(reading) == f"{size} windows: {counts}\n"
    found = json.loads(printed(probe))
    assert found["edges"] == [*windows, windows.stop]
    assert found["baseline"] is None
    assert found["shaded"] == 2 + size - SETTLED
    gaps = {REFUSED, EXPIRED, *range(SETTLED, size)}
    assert {at for at, value in enumerate(found["drawn"]) if value is None} == gaps
    for at, total in enumerate(sums):
        if at not in gaps:
            assert found["drawn"][at] == pytest.approx(total * 4 / 1000)
    assert found["labels"][0] == "00:00"
    (picture,) = drawing.outputs
    assert base64.b64decode(picture["data"]["image/png"]).startswith(b"\x89PNG")
    largest = max(total for at, total in enumerate(sums) if at not in gaps)
    assert printed(peak).startswith(f"{largest * 4 / 1000:.1f} kW at ")
    assert printed(peak).endswith("100 of 110 meters are in it\n")


def test_the_notebook_is_kept_without_what_it_printed() -> None:
    notebook = load()
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 4
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * 4
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
