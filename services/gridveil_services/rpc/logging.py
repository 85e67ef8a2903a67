"""Structured logs: one JSON object a line on stderr. Never a reading, a key or a ciphertext."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

_LONGEST_TEXT = 300
"""Of an exception, whose text may quote what was processed."""


def configure_logging(role: str, level: int = logging.INFO) -> None:
    """Send structlog's and the libraries' own logs to stderr, each line with the role."""
    shared = configure_structlog(role, level)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))


def configure_structlog(role: str, level: int = logging.INFO) -> list[Processor]:
    """Without the libraries' logs: what a server needs at the least."""

    def add_role(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["role"] = role
        return event

    processors: list[Processor] = [
        add_role,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # structlog's default renders local variables, and with them messages and keys.
        structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
        _shorten_exceptions,
    ]
    structlog.configure(
        processors=[*processors, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_stderr_logger,
    )
    return processors


def _stderr_logger(*_arguments: Any) -> structlog.WriteLogger:
    return structlog.WriteLogger(sys.stderr)


def _shorten_exceptions(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for exception in event.get("exception", ()):
        exception["exc_value"] = exception["exc_value"][:_LONGEST_TEXT]
    return event
