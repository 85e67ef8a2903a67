"""What an operator or auditor uses: released totals, every one of them verified.

What became of a window is believed only with a proof that the release log says so, under a
checkpoint that the profile's pinned identity key signed, and so many witnesses as the profile wants
(KEY_NOT_PINNED, PROOF_INVALID, NOT_WITNESSED). A total's own signature, city and window are checked
as well. The newest checkpoint is kept beside the profile: a log that does not go on from it is
LOG_FORKED or LOG_ROLLED_BACK, also for the next run.

:class:`Operator` blocks, :class:`AsyncOperator` is for asyncio; both raise the same errors::

    with Operator.open("city/operator/profile.toml") as operator:
        for outcome in operator.watch():
            if isinstance(outcome, ReleasedTotal):
                print(outcome.window_start, outcome.sum("import_wh"), outcome.coverage)
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from gridveil.profile import Profile
from gridveil.protocol.checkpoint import Checkpoint, TreeHead
from gridveil.protocol.city import CityParameters, open_city_parameters
from gridveil.protocol.errors import GridveilError, IntegrityLost, Reason, Unavailable
from gridveil.protocol.roster import Member
from gridveil.protocol.v1 import (
    totals_pb2,
    totals_pb2_grpc,
    transparency_pb2,
    transparency_pb2_grpc,
)
from gridveil.settlements import (
    PAGE_SIZE,
    NotReleased,
    NotReleasedReason,
    Outcome,
    OutcomeOpener,
    Pages,
    ReleasedTotal,
    WatchState,
)
from gridveil.transport import (
    ServerStream,
    connect,
    connect_async,
    connect_timeout,
    from_rpc_error,
    reach,
    reach_async,
    server_stream,
    server_stream_async,
)
from gridveil.verification import Verification, Verifier

CALL_TIMEOUT_S = 15.0
RECORDS_A_CALL = 1_000

__all__ = [
    "AsyncOperator",
    "NotReleased",
    "NotReleasedReason",
    "Operator",
    "Outcome",
    "ReleasedTotal",
]


def _ignore(_error: GridveilError) -> None:
    pass


class Operator:
    """Blocking access to the totals service; a context manager."""

    def __init__(self, profile: Profile, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._profile = profile
        self._timeout = timeout_s
        self._opener = OutcomeOpener(profile)
        self._channel = connect(profile.endpoint("totals"), "totals", profile.city_id, profile.tls)
        self._totals = totals_pb2_grpc.TotalsStub(self._channel)
        self._log = transparency_pb2_grpc.ReleaseLogStub(self._channel)
        self._followed = False
        # What is believed must not change between asking for a proof and checking it.
        self._believing = threading.Lock()
        self._known: CityParameters | None = None
        self._watching: ServerStream[totals_pb2.WindowOutcome] | None = None
        self._interrupted = False

    @classmethod
    def open(cls, profile: Path | str | Profile, *, timeout_s: float = CALL_TIMEOUT_S) -> Self:
        """An operator of the city in a profile file. Connects at the first call."""
        return cls(Profile.of(profile), timeout_s=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def interrupt(self) -> None:
        """End the watch, from another thread: it raises UNREACHABLE, and so does any later one."""
        self._interrupted = True
        if (call := self._watching) is not None:
            call.cancel()

    def get(self, window_start: int) -> Outcome:
        """One settled window, or NOT_RELEASED while it is not settled."""
        self._follow_once()
        request = totals_pb2.GetTotalRequest(window_start=window_start)
        try:
            message = self._totals.GetTotal(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return self._open(message, window_start)

    def list(
        self, from_window: int = 0, until_window: int = 0, *, page_size: int = PAGE_SIZE
    ) -> Generator[Outcome]:
        """Settled windows, oldest first, page by page as they are consumed.

        Args:
            from_window: first window start; 0 for the oldest there is.
            until_window: first window start that is not asked for; 0 for no end.
            page_size: windows a call, 1 to 1,000.
        """
        self._follow_once()
        pages = Pages(self._opener, from_window, until_window, page_size)
        while request := pages.next_request():
            try:
                page = self._totals.ListTotals(request, timeout=self._timeout)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            for message in page.outcomes:
                self._believe(self._opener.checkpoint(message))
            yield from pages.open(page)

    def watch(
        self,
        from_window: int = 0,
        *,
        give_up_after_s: float | None = None,
        on_failure: Callable[[GridveilError], None] = _ignore,
    ) -> Generator[Outcome]:
        """Settled windows from ``from_window`` on, then each new one as it settles; endless.

        Reconnects with backoff and resumes without gap or repetition. A window that settles out
        of order is delivered when it settles. With 0 only windows that settle from now on come.

        Args:
            from_window: first window start, or 0.
            give_up_after_s: raise what failed once the service has been out of reach for so
                long; None: keep trying.
            on_failure: told what failed before each wait for the next attempt.
        """
        state = WatchState(from_window, give_up_after_s)
        while True:
            if self._interrupted:
                raise Unavailable(Reason.UNREACHABLE, "the watch was interrupted")
            try:
                reach(self._channel, "totals", connect_timeout(self._timeout, give_up_after_s))
                self.follow()
                state.connected(time.monotonic())
                with closing(self._settled(state.resume_from)) as outcomes:
                    for outcome in outcomes:
                        if state.is_new(outcome.window_start):
                            yield outcome
                delay = state.ended(time.monotonic())
            except GridveilError as error:
                delay = state.failed(error, time.monotonic())
                on_failure(error)
            time.sleep(delay)

    def follow(self) -> Checkpoint | None:
        """The release log's newest checkpoint, now; None if there is no log yet.

        Raises:
            IntegrityLost: LOG_FORKED, LOG_ROLLED_BACK if it does not go on from what was seen.
        """
        with self._believing:
            return self._follow()

    def _follow(self) -> Checkpoint | None:
        view = self._opener.view
        try:
            message = self._log.GetCheckpoint(
                transparency_pb2.GetCheckpointRequest(), timeout=self._timeout
            )
        except grpc.RpcError as error:
            refusal = from_rpc_error(error)
            if refusal.reason is not Reason.NOT_RELEASED:
                raise refusal from None
            view.check_size(0)
            return None
        checkpoint = view.open(message.checkpoint)
        view.check_size(checkpoint.head.size)
        self._join(checkpoint)
        self._followed = True
        return checkpoint

    def records(self, head: TreeHead, first: int = 0) -> Generator[bytes]:
        """The records from ``first`` up to a followed tree head; unchecked. Not for meters."""
        while first < head.size:
            request = transparency_pb2.GetRecordsRequest(
                first=first, limit=min(RECORDS_A_CALL, head.size - first)
            )
            try:
                found = self._log.GetRecords(request, timeout=self._timeout).records
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            if not found:
                raise IntegrityLost(Reason.LOG_ROLLED_BACK, "the log ends before its checkpoint")
            yield from found
            first += len(found)

    def entries(self, window_start: int) -> Generator[bytes]:
        """The opened entries of a released window, in chunks of whole entries."""
        request = totals_pb2.GetEntriesRequest(window_start=window_start)
        with closing(server_stream(self._totals.GetEntries(request))) as chunks:
            for chunk in chunks:
                yield chunk.entries

    def parameters(self, window_start: int) -> CityParameters:
        """The verified city parameters that a released window's total names."""
        request = totals_pb2.GetParametersRequest(window_start=window_start)
        try:
            message = self._totals.GetParameters(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return open_city_parameters(
            message.parameters,
            message.signature,
            self._profile.identity_key,
            self._profile.city_id,
        )

    def deviations(self, released: ReleasedTotal) -> dict[str, float]:
        """Standard deviation of the noise in each register's sum, in its unit.

        From the signed city parameters, which are fetched once an epoch; 0 for exact sums.
        """
        known = self._known
        if known is None or known.digest != released.total.parameters_digest:
            known = self._known = self.parameters(released.window_start)
        return released.deviations(known)

    def own_entry(self, window_start: int, tag: bytes) -> totals_pb2.OwnEntry:
        """What is published for the meter with this tag; unchecked. Meters and gateways only."""
        request = totals_pb2.GetOwnEntryRequest(window_start=window_start, tag=tag)
        try:
            return self._totals.GetOwnEntry(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def inclusion_proof(self, released: ReleasedTotal) -> totals_pb2.LogProof:
        """A verified proof that the release log has a total."""
        window = released.window_start
        request = transparency_pb2.GetInclusionProofRequest(window_start=window)
        try:
            proof = self._log.GetInclusionProof(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        signed = totals_pb2.SignedTotal(total=released.encoded, signature=released.signature)
        outcome = totals_pb2.WindowOutcome(window_start=window, total=signed, proof=proof)
        self._open(outcome, window)
        return proof

    def verify(
        self,
        released: ReleasedTotal,
        roster: Mapping[bytes, Member] | None = None,
        keep: Callable[[bytes], object] | None = None,
    ) -> Verification:
        """Recompute a total from its opened entries; see :mod:`gridveil.verification`.

        ``keep`` gets the entries, a chunk at a time.
        """
        parameters = self.parameters(released.window_start)
        verifier = Verifier(released.total, parameters, roster)
        with closing(self.entries(released.window_start)) as chunks:
            for chunk in chunks:
                verifier.add(chunk)
                if keep:
                    keep(chunk)
        return verifier.finish()

    def _settled(self, from_window: int) -> Generator[Outcome]:
        request = totals_pb2.WatchTotalsRequest(from_window=from_window)
        self._watching = call = self._totals.WatchTotals(request)
        if self._interrupted:
            call.cancel()
        with closing(server_stream(call)) as messages:
            for message in messages:
                yield self._open(message)

    def _open(self, message: totals_pb2.WindowOutcome, window_start: int | None = None) -> Outcome:
        self._believe(self._opener.checkpoint(message))
        return self._opener.open(message, window_start)

    def _follow_once(self) -> None:
        if not self._followed:
            self.follow()

    def _believe(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint for one of the log that was seen before, or raise LOG_FORKED."""
        with self._believing:
            self._join(checkpoint)

    def _join(self, checkpoint: Checkpoint) -> None:
        view = self._opener.view
        hashes: Sequence[bytes] = ()
        if sizes := view.missing(checkpoint):
            request = transparency_pb2.GetConsistencyProofRequest(old_size=sizes[0], size=sizes[1])
            try:
                hashes = self._log.GetConsistencyProof(request, timeout=self._timeout).hashes
            except grpc.RpcError as error:
                raise _unproven(from_rpc_error(error)) from None
        view.accept(checkpoint, hashes)


class AsyncOperator:
    """The same for asyncio; an asynchronous context manager."""

    def __init__(self, profile: Profile, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._timeout = timeout_s
        self._opener = OutcomeOpener(profile)
        self._channel = connect_async(
            profile.endpoint("totals"), "totals", profile.city_id, profile.tls
        )
        self._totals = totals_pb2_grpc.TotalsStub(self._channel)
        self._log = transparency_pb2_grpc.ReleaseLogStub(self._channel)
        self._followed = False
        self._believing = asyncio.Lock()

    @classmethod
    def open(cls, profile: Path | str | Profile, *, timeout_s: float = CALL_TIMEOUT_S) -> Self:
        """An operator of the city in a profile file. Connects at the first call."""
        return cls(Profile.of(profile), timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def get(self, window_start: int) -> Outcome:
        """One settled window, or NOT_RELEASED while it is not settled."""
        return (await self.proven(window_start))[0]

    async def proven(self, window_start: int) -> tuple[Outcome, totals_pb2.LogProof]:
        """One settled window, and the verified proof that the release log says so."""
        await self._follow_once()
        request = totals_pb2.GetTotalRequest(window_start=window_start)
        try:
            message = await self._totals.GetTotal(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return await self._open(message, window_start), message.proof

    async def list(
        self, from_window: int = 0, until_window: int = 0, *, page_size: int = PAGE_SIZE
    ) -> AsyncGenerator[Outcome]:
        """Settled windows, oldest first; see :meth:`Operator.list`."""
        await self._follow_once()
        pages = Pages(self._opener, from_window, until_window, page_size)
        while request := pages.next_request():
            try:
                page = await self._totals.ListTotals(request, timeout=self._timeout)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            for message in page.outcomes:
                await self._believe(self._opener.checkpoint(message))
            for outcome in pages.open(page):
                yield outcome

    async def watch(
        self,
        from_window: int = 0,
        *,
        give_up_after_s: float | None = None,
        on_failure: Callable[[GridveilError], None] = _ignore,
    ) -> AsyncGenerator[Outcome]:
        """Settled windows, then each new one as it settles; see :meth:`Operator.watch`."""
        state = WatchState(from_window, give_up_after_s)
        while True:
            try:
                timeout = connect_timeout(self._timeout, give_up_after_s)
                await reach_async(self._channel, "totals", timeout)
                await self.follow()
                state.connected(time.monotonic())
                async with aclosing(self._settled(state.resume_from)) as outcomes:
                    async for outcome in outcomes:
                        if state.is_new(outcome.window_start):
                            yield outcome
                delay = state.ended(time.monotonic())
            except GridveilError as error:
                delay = state.failed(error, time.monotonic())
                on_failure(error)
            await asyncio.sleep(delay)

    async def follow(self) -> Checkpoint | None:
        """The release log's newest checkpoint, now; see :meth:`Operator.follow`."""
        async with self._believing:
            return await self._follow()

    async def _follow(self) -> Checkpoint | None:
        view = self._opener.view
        try:
            message = await self._log.GetCheckpoint(
                transparency_pb2.GetCheckpointRequest(), timeout=self._timeout
            )
        except grpc.RpcError as error:
            refusal = from_rpc_error(error)
            if refusal.reason is not Reason.NOT_RELEASED:
                raise refusal from None
            view.check_size(0)
            return None
        checkpoint = view.open(message.checkpoint)
        view.check_size(checkpoint.head.size)
        await self._join(checkpoint)
        self._followed = True
        return checkpoint

    async def entries(self, window_start: int) -> AsyncGenerator[bytes]:
        """The opened entries of a released window, in chunks of whole entries."""
        request = totals_pb2.GetEntriesRequest(window_start=window_start)
        async with aclosing(server_stream_async(self._totals.GetEntries(request))) as chunks:
            async for chunk in chunks:
                yield chunk.entries

    async def _settled(self, from_window: int) -> AsyncGenerator[Outcome]:
        request = totals_pb2.WatchTotalsRequest(from_window=from_window)
        async with aclosing(server_stream_async(self._totals.WatchTotals(request))) as messages:
            async for message in messages:
                yield await self._open(message)

    async def _open(
        self, message: totals_pb2.WindowOutcome, window_start: int | None = None
    ) -> Outcome:
        await self._believe(self._opener.checkpoint(message))
        return self._opener.open(message, window_start)

    async def _follow_once(self) -> None:
        if not self._followed:
            await self.follow()

    async def _believe(self, checkpoint: Checkpoint) -> None:
        async with self._believing:
            await self._join(checkpoint)

    async def _join(self, checkpoint: Checkpoint) -> None:
        view = self._opener.view
        hashes: Sequence[bytes] = ()
        if sizes := view.missing(checkpoint):
            request = transparency_pb2.GetConsistencyProofRequest(old_size=sizes[0], size=sizes[1])
            try:
                message = await self._log.GetConsistencyProof(request, timeout=self._timeout)
            except grpc.RpcError as error:
                raise _unproven(from_rpc_error(error)) from None
            hashes = message.hashes
        view.accept(checkpoint, hashes)


def _unproven(refusal: GridveilError) -> GridveilError:
    """A service that has no such sizes has a smaller log than the one seen."""
    if refusal.reason is not Reason.RANGE_INVALID:
        return refusal
    return IntegrityLost(
        Reason.LOG_ROLLED_BACK, "the totals service has a smaller log than was seen before"
    )
