"""What the key-holder lets an attacker see of a call, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2, status_pb2

from gridveil.protocol.v1 import keyholder_pb2

StatusKey = tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]


@dataclass(frozen=True)
class Answer:
    """What the key-holder said: a receipt, or all of a failed call that the caller can see."""

    receipt: keyholder_pb2.ReleaseReceipt | None
    code: grpc.StatusCode = grpc.StatusCode.OK
    text: str = ""
    trailers: tuple[tuple[str, bytes], ...] = ()

    @property
    def status(self) -> status_pb2.Status:
        """The google.rpc.Status of a refusal."""
        return status_pb2.Status.FromString(dict(self.trailers)["grpc-status-details-bin"])

    @property
    def reason(self) -> str:
        """``ErrorInfo.reason``."""
        info = error_details_pb2.ErrorInfo()
        assert self.status.details[0].Unpack(info)
        assert info.domain == "gridveil"
        return str(info.reason)

    @property
    def raw(self) -> bytes:
        """Every byte of it."""
        receipt = self.receipt.SerializeToString() if self.receipt else b""
        return receipt + self.text.encode() + b"".join(value for _, value in self.trailers)
