"""How an attempt to deliver an object may fail."""

from __future__ import annotations

from enum import StrEnum


class Failure(StrEnum):
    """Why an object was not delivered; the label of a metric."""

    UNREACHABLE = "UNREACHABLE"
    """No connection, or none whose certificate is of the authority."""
    UNANSWERED = "UNANSWERED"
    """The connection failed or was silent after it was made."""
    NO_TOKEN = "NO_TOKEN"  # noqa: S105 - a reason, not a secret
    """The authorization server gave none."""
    THROTTLED = "THROTTLED"
    """The VTN asks to come back later."""
    SERVER_ERROR = "SERVER_ERROR"
    REFUSED = "REFUSED"
    """The VTN refused it for good."""
    MALFORMED = "MALFORMED"
    """The answer is not one of OpenADR."""


class NotDelivered(Exception):
    """What came of an attempt. Its text has nothing that a server wrote."""

    def __init__(
        self, failure: Failure, *, untouched: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(failure)
        self.failure = failure
        self.untouched = untouched
        """Whether it is certain that the VTN has not taken it."""
        self.retry_after_s = retry_after_s

    @property
    def final(self) -> bool:
        """Whether it makes no sense to send it again."""
        return self.failure is Failure.REFUSED
