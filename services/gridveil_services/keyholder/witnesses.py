"""Witnesses of the release log: nothing is shown before enough of them have cosigned it.

A witness remembers the newest checkpoint that it cosigned. Hence a key-holder that was started from
an old copy of its disk is told so before it opens anything, and of two key-holders with the same
keys at most one can go on publishing.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

import structlog

from gridveil.protocol.checkpoint import TreeHead, WitnessPolicy
from gridveil.protocol.errors import (
    GridveilError,
    IntegrityLost,
    MalformedInput,
    NotAuthentic,
    Reason,
    Unavailable,
)
from gridveil.protocol.note import NOTE_BYTES, Note, NoteKey, NoteSignature
from gridveil.protocol.witnessing import PATH, AddCheckpoint, parse_cosignatures, parse_size
from gridveil_services.releaselog.framing import rolled_back
from gridveil_services.releaselog.writer import LogWriter

ANSWER_S = 5.0
"""Longest wait for a witness to go on."""
WHOLE_ANSWER_S = 10.0
"""Longest wait for all of its answer."""
RETRY_S = 0.5
"""Between two attempts to have a claim confirmed."""
LOOK_S = 0.1
"""Between two looks whether the log has grown."""
LONGEST_PAUSE_S = 10.0
"""Between two attempts while too few witnesses answer."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class WitnessEndpoint:
    """A witness and where it is asked."""

    url: str
    """Submission prefix, http or https."""
    key: NoteKey

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable or parts.query or parts.fragment or parts.username is not None:
            raise MalformedInput(
                Reason.CONFIG_INVALID, "a witness's url is http or https", field="url"
            )


@dataclass(frozen=True)
class WitnessSettings:
    """Which witnesses are asked, and how many must cosign."""

    threshold: int = 0
    endpoints: tuple[WitnessEndpoint, ...] = ()

    def __post_init__(self) -> None:
        WitnessPolicy(self.threshold, tuple(endpoint.key for endpoint in self.endpoints))
        if self.endpoints and not self.threshold:
            raise MalformedInput(
                Reason.CONFIG_INVALID, "with witnesses the threshold is at least 1"
            )

    @property
    def are_asked(self) -> bool:
        """Whether there are witnesses."""
        return bool(self.endpoints)

    @property
    def quorum_at_start(self) -> int:
        """Witnesses that must answer at start: one that saw the newest checkpoint is among them."""
        return max(self.threshold, len(self.endpoints) - self.threshold + 1)


NO_WITNESSES = WitnessSettings()


class WitnessClient:
    """Asks one witness, and remembers how far it is."""

    def __init__(self, endpoint: WitnessEndpoint) -> None:
        self._endpoint = endpoint
        self._known = 0

    @property
    def name(self) -> str:
        """The witness's name."""
        return self._endpoint.key.name

    def cosign(self, log: LogWriter, note: Note) -> NoteSignature:
        """The witness's cosignature of a checkpoint of the log.

        Raises:
            IntegrityLost: LOG_ROLLED_BACK if the witness has seen more of the log; LOG_FORKED if
                it has seen another one.
            Unavailable: NOT_WITNESSED if it cannot be asked, or does not know the log.
        """
        head = TreeHead.decode(note.text)
        for _ in range(2):
            old = self._known
            proof = tuple(log.consistency_proof(old, head.size))
            status, body = self._post(AddCheckpoint(old, proof, note).encode())
            if status == HTTPStatus.OK:
                self._known = head.size
                return self._checked(note, body)
            if status == HTTPStatus.UNPROCESSABLE_ENTITY:
                raise self._forked()
            if status != HTTPStatus.CONFLICT:
                raise self._silent(f"answered {status}")
            seen = self._size(body)
            if seen > head.size:
                raise rolled_back(seen, head.size)
            if seen == old == head.size:
                raise self._forked()
            self._known = seen
        raise self._silent("is asked by somebody else at the same time")

    def _post(self, body: bytes) -> tuple[int, bytes]:
        parts = urlsplit(self._endpoint.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=ANSWER_S)
        guard = threading.Timer(WHOLE_ANSWER_S, _cut, (connection,))
        guard.daemon = True
        guard.start()
        try:
            connection.request("POST", parts.path.rstrip("/") + PATH, body)
            answer = connection.getresponse()
            return answer.status, answer.read(NOTE_BYTES)
        except (OSError, HTTPException, ValueError):
            raise self._silent("does not answer") from None
        finally:
            guard.cancel()
            connection.close()

    def _checked(self, note: Note, body: bytes) -> NoteSignature:
        key = self._endpoint.key
        try:
            lines = parse_cosignatures(body)
            for line in lines:
                if (line.name, line.key_id) == (key.name, key.key_id):
                    Note(note.text, (line,)).is_signed_by(key)
                    return line
        except (MalformedInput, NotAuthentic):
            pass
        raise self._silent("did not cosign with its key")

    def _size(self, body: bytes) -> int:
        try:
            return parse_size(body.removesuffix(b"\n"))
        except MalformedInput:
            raise self._silent("did not say how far it is") from None

    def _forked(self) -> IntegrityLost:
        return IntegrityLost(
            Reason.LOG_FORKED, f"the witness {self.name} has seen another release log"
        )

    def _silent(self, how: str) -> Unavailable:
        return Unavailable(Reason.NOT_WITNESSED, f"the witness {self.name} {how}")


class Witnesses:
    """Has the log's checkpoints cosigned and then published, from a thread of its own."""

    def __init__(self, log: LogWriter, settings: WitnessSettings) -> None:
        """Nothing is asked yet; without witnesses nothing ever is."""
        self._log = log
        self._settings = settings
        self._clients = [WitnessClient(endpoint) for endpoint in settings.endpoints]
        self._pool = ThreadPoolExecutor(max(1, len(self._clients)), thread_name_prefix="witness")
        self._asking = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def check_start(self) -> None:
        """Ask the witnesses whether this is the log they know, before anything is opened.

        Raises:
            IntegrityLost: LOG_ROLLED_BACK, LOG_FORKED.
            Unavailable: NOT_WITNESSED if too few of them answer to be sure.
        """
        if self._clients:
            self._cosign(self._settings.quorum_at_start)

    def confirm(self, patience_s: float) -> None:
        """Have the log as it is now cosigned and published before this returns.

        Args:
            patience_s: how long to go on asking if too few witnesses answer.

        Raises:
            IntegrityLost: LOG_ROLLED_BACK, LOG_FORKED; nothing is released any more.
            Unavailable: NOT_WITNESSED.
        """
        if not self._clients:
            return
        until = time.monotonic() + patience_s
        while True:
            try:
                self._cosign(self._settings.threshold)
                return
            except Unavailable:
                if time.monotonic() >= until or self._stopped.wait(RETRY_S):
                    raise
            except IntegrityLost:
                self._log.fail()
                raise

    def start(self) -> None:
        """Have cosigned what the log gets from now on."""
        if self._clients:
            self._thread = threading.Thread(target=self._run, name="witnesses", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ask nobody any more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        self._pool.shutdown()

    def _run(self) -> None:
        pause = LOOK_S
        while not self._stopped.wait(pause) and not self._log.failed:
            if self._log.published == self._log.size:
                continue
            try:
                self._cosign(self._settings.threshold)
                pause = LOOK_S
            except Unavailable as error:
                _log.warning("the log is not witnessed", cause=error.message)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            except IntegrityLost as error:
                _log.critical("the log is not the one its witnesses know", cause=error.message)
                self._log.fail()

    def _cosign(self, wanted: int) -> None:
        # One at a time: an older checkpoint after a newer one would look like a log put back.
        with self._asking:
            note = self._log.checkpoint()
            asked = [self._pool.submit(_try, client, self._log, note) for client in self._clients]
            answers = [future.result() for future in asked]
        for answer in answers:
            if isinstance(answer, IntegrityLost):
                raise answer
        lines = [answer for answer in answers if isinstance(answer, NoteSignature)]
        if len(lines) < wanted:
            raise Unavailable(Reason.NOT_WITNESSED, _too_few(wanted, answers))
        self._log.publish(note.with_signatures(lines))


def _cut(connection: HTTPConnection) -> None:
    """End a call whatever it waits for: a witness that drips its answer holds nobody up."""
    if connection.sock is not None:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def _try(client: WitnessClient, log: LogWriter, note: Note) -> NoteSignature | GridveilError:
    try:
        return client.cosign(log, note)
    except GridveilError as error:
        return error


def _too_few(wanted: int, answers: Sequence[NoteSignature | GridveilError]) -> str:
    causes = [answer.message for answer in answers if isinstance(answer, GridveilError)]
    return f"{wanted} witnesses must cosign the release log; {'; '.join(causes)}"
