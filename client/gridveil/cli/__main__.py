"""``python -m gridveil.cli``."""

from gridveil.cli.app import main

main()
