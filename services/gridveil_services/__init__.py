"""The services of Gridveil."""
