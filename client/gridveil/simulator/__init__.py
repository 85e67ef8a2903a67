"""Simulated fleets: readings from files or made up, played through one gateway.

Readings come from :class:`CsvSource` or :class:`StandardLoadSource` (extra
``gridveil[profiles]``); :class:`Simulator` turns them into reports (extra ``gridveil[meter]``).
"""

from gridveil.simulator.csv_source import CsvSource
from gridveil.simulator.plan import Tally
from gridveil.simulator.readings import ReadingBounds, Readings, ReadingSource
from gridveil.simulator.replay import Simulator
from gridveil.simulator.standard_load import StandardLoadSource

__all__ = [
    "CsvSource",
    "ReadingBounds",
    "ReadingSource",
    "Readings",
    "Simulator",
    "StandardLoadSource",
    "Tally",
]
