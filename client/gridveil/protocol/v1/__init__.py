"""Stubs generated from protos/gridveil/v1 by scripts/generate_protos.py: do not edit."""
