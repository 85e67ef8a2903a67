"""What is said to a report: pure functions of the report, the state of its window, and the time.

They are asked in this order, and the first refusal is the answer: parameters known, window whole,
roster known, author, known already, window open, ciphertext (``gridveil.protocol``), room in the
lane.
Retries are answered before the window is looked at, so that a receipt that was lost on its way
can be fetched after the window was sealed and settled.

A report names its ciphertext by the digest computed here, so a flipped bit of the ciphertext is a
signature that does not match, not a DIGEST_MISMATCH.
"""

from __future__ import annotations

from gridveil.protocol.city import CityParameters
from gridveil.protocol.errors import (
    Conflict,
    Exhausted,
    GridveilError,
    NotAllowed,
    NotAuthentic,
    Reason,
    Unavailable,
    WrongState,
)
from gridveil.protocol.signing import SigningKey, is_signed_by
from gridveil_services.aggregator.city import Membership, ParametersBook, SignedParameters
from gridveil_services.aggregator.store.interface import Phase, StoredReceipt, Window

_NOBODY = bytes(SigningKey.generate().verify_key)
"""Checked for unknown meters, so that they are told the same after the same time."""

RETRY_S = 1.0


def parameters_of(
    book: ParametersBook, parameters_digest: bytes, window_start: int
) -> CityParameters:
    """The parameters a report was made for.

    Raises:
        WrongState: KEY_EPOCH, with the epoch to use if there is one, unless they are known.
        Unavailable: KEYHOLDER_UNAVAILABLE as long as none are.
    """
    if book.policy is None:
        raise keyholder_unknown()
    named = book.named(parameters_digest)
    if named is None:
        raise key_epoch(book.serving(window_start))
    return named.parameters


def check_author(
    membership: Membership | None, version: int, transcript: bytes, signature: bytes
) -> None:
    """Refuse unless a meter that the roster version holds signed the transcript.

    Args:
        membership: the named meter's last enrolment up to that version.
        version: the roster version of the window.
        transcript: 175 bytes.
        signature: 64 bytes.

    Raises:
        NotAuthentic: SIGNATURE_INVALID, for unknown meters too.
        NotAllowed: METER_REVOKED for a meter that was withdrawn.
    """
    key = _NOBODY if membership is None else membership.signing_key
    if not is_signed_by(key, transcript, signature) or membership is None:
        raise NotAuthentic(Reason.SIGNATURE_INVALID, "the signature is not valid")
    if membership.until is not None and membership.until <= version:
        raise NotAllowed(Reason.METER_REVOKED, "the meter is not enrolled any more")


def check_whole(window: Window | None) -> None:
    """WINDOW_POISONED if it is not sure which reports of the window were accepted."""
    if window is not None and window.phase is Phase.POISONED:
        raise WrongState(Reason.WINDOW_POISONED, "the window is lost")


def check_roster_known(
    window: Window | None, window_start: int, parameters: CityParameters, now: float
) -> None:
    """Refuse if the window's roster is not known: that of another window says nothing.

    It comes before the author: a meter that was enrolled last must not be told that it is unknown.

    Raises:
        MalformedInput: WINDOW_MISALIGNED.
        WrongState: WINDOW_TOO_EARLY or WINDOW_CLOSED.
        Unavailable: KEYHOLDER_UNAVAILABLE if the window takes reports.
    """
    if window is None:
        rules = parameters.policy.rules
        rules.check_aligned(window_start)
        rules.check_open(window_start, now)
        raise keyholder_unknown()


def check_same(receipt: StoredReceipt, report_digest: bytes) -> None:
    """EQUIVOCATION unless the report is the one that the receipt is for."""
    if receipt.digest != report_digest:
        raise Conflict(
            Reason.EQUIVOCATION,
            "another report of this meter for this window stands",
            resource=receipt.digest.hex(),
        )


def check_window(
    book: ParametersBook,
    window: Window | None,
    window_start: int,
    parameters: CityParameters,
    now: float,
) -> Window:
    """The window, if it takes reports made for these parameters at this time.

    Args:
        book: all parameters.
        window: what is stored of it.
        window_start: what the report says.
        parameters: what the report was made for.
        now: Unix seconds of the aggregator's clock.

    Raises:
        MalformedInput: WINDOW_MISALIGNED.
        WrongState: WINDOW_TOO_EARLY, WINDOW_CLOSED, WINDOW_RELEASED or KEY_EPOCH.
        Unavailable: KEYHOLDER_UNAVAILABLE while the window's roster is not known.
    """
    rules = parameters.policy.rules
    rules.check_aligned(window_start)
    if window is not None and window.phase is not Phase.OPEN:
        raise not_open(window.phase)
    rules.check_open(window_start, now)
    if window is None:
        raise keyholder_unknown()
    if window.parameters_digest != parameters.digest:
        raise key_epoch(book.named(window.parameters_digest))
    return window


def not_open(phase: Phase | None) -> GridveilError:
    """Why a window that is sealed or further takes no report."""
    if phase is Phase.RELEASED:
        return WrongState(Reason.WINDOW_RELEASED, "the window is released")
    if phase is Phase.POISONED:
        return WrongState(Reason.WINDOW_POISONED, "the window is lost")
    return WrongState(Reason.WINDOW_CLOSED, "the window is closed")


def keyholder_unknown() -> GridveilError:
    """While the key-holder has not said yet which parameters or roster are in force."""
    return Unavailable(
        Reason.KEYHOLDER_UNAVAILABLE,
        "the parameters or the roster of the window are not known yet",
        retry_after_s=RETRY_S,
    )


def lane_full() -> GridveilError:
    """The lane holds as many reports as can be decrypted exactly."""
    return Exhausted(Reason.LANE_FULL, "the lane of this meter is full")


def key_epoch(serving: SignedParameters | None) -> GridveilError:
    """The report was made for another epoch than its window's."""
    refusal = WrongState(Reason.KEY_EPOCH, "other city parameters are in force")
    if serving is not None:
        refusal.metadata["epoch"] = serving.parameters.epoch.epoch_id.hex()
    return refusal
