"""The registers that Gridveil itself gives a meaning: energy of a window, Wh."""

from __future__ import annotations

IMPORT_REGISTER = "import_wh"
"""Drawn from the grid."""
EXPORT_REGISTER = "export_wh"
"""Fed into it."""
