"""Servers that only take what Gridveil's aggregator takes: the floor under any aggregator here.

``receive``: gRPC with the aggregator's TLS identity; parses SubmitReports and answers each report
with an empty outcome. ``raw``: TCP; reads length-prefixed messages and answers a byte.
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import threading
from concurrent import futures
from pathlib import Path

import grpc

from gridveil.protocol.v1 import aggregator_pb2, report_pb2

SERVICE = "gridveil.v1.Aggregator"
METHOD = f"/{SERVICE}/SubmitReports"
LENGTH = struct.Struct("<I")
LARGEST = 4 * 2**20


def receive(
    request: aggregator_pb2.SubmitReportsRequest, _: grpc.ServicerContext
) -> aggregator_pb2.SubmitReportsResponse:
    """An empty outcome for each report."""
    outcomes = [report_pb2.ReportOutcome(index=at) for at in range(len(request.reports))]
    return aggregator_pb2.SubmitReportsResponse(outcomes=outcomes)


def serve_grpc(folder: Path) -> None:
    """Serve ``receive`` with the TLS files ca.pem, cert.pem and key.pem of ``folder``."""
    handler = grpc.unary_unary_rpc_method_handler(
        receive,
        request_deserializer=aggregator_pb2.SubmitReportsRequest.FromString,
        response_serializer=aggregator_pb2.SubmitReportsResponse.SerializeToString,
    )
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"SubmitReports": handler}),)
    )
    ca, certificate, key = ((folder / f"{name}.pem").read_bytes() for name in ("ca", "cert", "key"))
    credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    announce(port)
    server.wait_for_termination()


def serve_raw() -> None:
    """Serve TCP, a thread a connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    announce(listener.getsockname()[1])
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_drain, args=(connection,), daemon=True).start()


def _drain(connection: socket.socket) -> None:
    buffer = memoryview(bytearray(LARGEST))
    with connection:
        while _fill(connection, buffer[: LENGTH.size]):
            (size,) = LENGTH.unpack_from(buffer)
            _fill(connection, buffer[:size])
            connection.sendall(b"\0")


def _fill(connection: socket.socket, part: memoryview) -> bool:
    while part:
        count = connection.recv_into(part)
        if not count:
            return False
        part = part[count:]
    return True


def announce(port: int) -> None:
    """Tell the starter where to connect."""
    print(json.dumps({"event": "serving", "address": f"127.0.0.1:{port}"}), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("receive", "raw"))
    parser.add_argument("--tls", type=Path, help="folder of ca.pem, cert.pem, key.pem (receive)")
    options = parser.parse_args()
    if options.kind == "raw":
        serve_raw()
    elif options.tls is None:
        parser.error("receive needs --tls")
    else:
        serve_grpc(options.tls)


if __name__ == "__main__":
    main()
