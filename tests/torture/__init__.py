"""Faults in large numbers, and the account of them: python -m tests.torture."""
