"""Synthetic meters and load profiles for demonstrations and tests."""
