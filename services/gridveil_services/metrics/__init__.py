"""Metrics of the services in Prometheus' text format: counts and times, never what was counted."""
