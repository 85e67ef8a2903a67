"""Durable storage of reports and windows."""
