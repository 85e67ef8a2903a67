"""The gridveil command."""
