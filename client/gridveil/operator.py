"""What an operator or auditor uses: released totals, every one of them verified.

A total is believed only after its Ed25519 signature was checked against the profile's pinned
identity key, and its city and window against what was asked for; else KEY_NOT_PINNED.
That a window was *not* released is the totals service's word: nothing signs a gap.

:class:`Operator` blocks, :class:`AsyncOperator` is for asyncio; both raise the same errors::

    with Operator.open("city/operator/profile.toml") as operator:
        for outcome in operator.watch():
            if isinstance(outcome, ReleasedTotal):
                print(outcome.window_start, outcome.sum("import_wh"), outcome.coverage)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import aclosing, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from gridveil.profile import Profile
from gridveil.protocol.city import CityParameters, open_city_parameters
from gridveil.protocol.errors import GridveilError, Reason, Unavailable
from gridveil.protocol.roster import Member
from gridveil.protocol.v1 import totals_pb2, totals_pb2_grpc
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
from gridveil.transport import connect, connect_async, from_rpc_error, server_stream
from gridveil.verification import Verification, Verifier

T = TypeVar("T")

CALL_TIMEOUT_S = 15.0

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

    @classmethod
    def open(cls, profile: Path | str | Profile, *, timeout_s: float = CALL_TIMEOUT_S) -> Self:
        """An operator of the city in a profile file. Connects at the first call."""
        return cls(_loaded(profile), timeout_s=timeout_s)

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

    def get(self, window_start: int) -> Outcome:
        """One settled window, or NOT_RELEASED while it is not settled."""
        request = totals_pb2.GetTotalRequest(window_start=window_start)
        try:
            message = self._totals.GetTotal(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return self._opener.open(message, window_start)

    def list(
        self, from_window: int = 0, until_window: int = 0, *, page_size: int = PAGE_SIZE
    ) -> Generator[Outcome]:
        """Settled windows, oldest first, page by page as they are consumed.

        Args:
            from_window: first window start; 0 for the oldest there is.
            until_window: first window start that is not asked for; 0 for no end.
            page_size: windows a call, 1 to 1,000.
        """
        pages = Pages(self._opener, from_window, until_window, page_size)
        while request := pages.next_request():
            try:
                page = self._totals.ListTotals(request, timeout=self._timeout)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
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
            try:
                self._reach(give_up_after_s)
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

    def own_entry(self, window_start: int, tag: bytes) -> totals_pb2.OwnEntry:
        """What is published for the meter with this tag; unchecked. Meters and gateways only."""
        request = totals_pb2.GetOwnEntryRequest(window_start=window_start, tag=tag)
        try:
            return self._totals.GetOwnEntry(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def verify(
        self, released: ReleasedTotal, roster: Mapping[bytes, Member] | None = None
    ) -> Verification:
        """Recompute a total from its opened entries; see :mod:`gridveil.verification`."""
        parameters = self.parameters(released.window_start)
        verifier = Verifier(released.total, parameters, roster)
        with closing(self.entries(released.window_start)) as chunks:
            for chunk in chunks:
                verifier.add(chunk)
        return verifier.finish()

    def _settled(self, from_window: int) -> Generator[Outcome]:
        request = totals_pb2.WatchTotalsRequest(from_window=from_window)
        with closing(server_stream(self._totals.WatchTotals(request))) as messages:
            for message in messages:
                yield self._opener.open(message)

    def _reach(self, patience_s: float | None) -> None:
        ready = grpc.channel_ready_future(self._channel)
        try:
            ready.result(timeout=_connect_timeout(self._timeout, patience_s))
        except grpc.FutureTimeoutError:
            ready.cancel()
            raise _unreachable() from None


class AsyncOperator:
    """The same for asyncio; an asynchronous context manager."""

    def __init__(self, profile: Profile, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._timeout = timeout_s
        self._opener = OutcomeOpener(profile)
        self._channel = connect_async(
            profile.endpoint("totals"), "totals", profile.city_id, profile.tls
        )
        self._totals = totals_pb2_grpc.TotalsStub(self._channel)

    @classmethod
    def open(cls, profile: Path | str | Profile, *, timeout_s: float = CALL_TIMEOUT_S) -> Self:
        """An operator of the city in a profile file. Connects at the first call."""
        return cls(_loaded(profile), timeout_s=timeout_s)

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
        request = totals_pb2.GetTotalRequest(window_start=window_start)
        try:
            message = await self._totals.GetTotal(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return self._opener.open(message, window_start)

    async def list(
        self, from_window: int = 0, until_window: int = 0, *, page_size: int = PAGE_SIZE
    ) -> AsyncGenerator[Outcome]:
        """Settled windows, oldest first; see :meth:`Operator.list`."""
        pages = Pages(self._opener, from_window, until_window, page_size)
        while request := pages.next_request():
            try:
                page = await self._totals.ListTotals(request, timeout=self._timeout)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
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
                await self._reach(give_up_after_s)
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

    async def entries(self, window_start: int) -> AsyncGenerator[bytes]:
        """The opened entries of a released window, in chunks of whole entries."""
        request = totals_pb2.GetEntriesRequest(window_start=window_start)
        async with aclosing(_stream_async(self._totals.GetEntries(request))) as chunks:
            async for chunk in chunks:
                yield chunk.entries

    async def _settled(self, from_window: int) -> AsyncGenerator[Outcome]:
        request = totals_pb2.WatchTotalsRequest(from_window=from_window)
        async with aclosing(_stream_async(self._totals.WatchTotals(request))) as messages:
            async for message in messages:
                yield self._opener.open(message)

    async def _reach(self, patience_s: float | None) -> None:
        timeout = _connect_timeout(self._timeout, patience_s)
        try:
            await asyncio.wait_for(self._channel.channel_ready(), timeout)
        except TimeoutError:
            raise _unreachable() from None


async def _stream_async(call: grpc.aio.UnaryStreamCall[Any, T]) -> AsyncGenerator[T]:
    try:
        async for message in call:
            yield message
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    finally:
        call.cancel()


def _connect_timeout(timeout_s: float, patience_s: float | None) -> float:
    return timeout_s if patience_s is None else min(timeout_s, max(patience_s, 1.0))


def _unreachable() -> Unavailable:
    return Unavailable(Reason.UNREACHABLE, "the totals service cannot be reached")


def _loaded(profile: Path | str | Profile) -> Profile:
    return profile if isinstance(profile, Profile) else Profile.load(Path(profile))
