"""Traces (OpenTelemetry) of calls and of the work behind them; off without a configuration."""
