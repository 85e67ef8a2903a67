"""The aggregator one would write from TenSEAL's and gRPC's tutorials, to compare with.

Insecure, unary, one vector of the usual parameters a call, added in memory. No signature, no
duplicate check, nothing durable.
"""

from __future__ import annotations

import argparse
import json
import threading
from concurrent import futures
from pathlib import Path

import grpc
import tenseal
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import BytesValue

SERVICE = "benchmark.Baseline"
METHOD = f"/{SERVICE}/Submit"
DEGREE = 8192
PRIME_BITS = (60, 40, 40, 60)
SCALE = 2**40


class Baseline:
    """Adds every vector that arrives."""

    def __init__(self, context: tenseal.Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._total: tenseal.CKKSVector | None = None

    def submit(self, request: BytesValue, _: grpc.ServicerContext) -> Empty:
        vector = tenseal.ckks_vector_from(self._context, request.value)
        with self._lock:
            if self._total is None:
                self._total = vector
            else:
                self._total += vector
        return Empty()


def usual_context() -> tenseal.Context:
    """TenSEAL's usual CKKS context: N = 8192, 60 + 40 + 40 + 60 bits, scale 2^40."""
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=list(PRIME_BITS), n_threads=1
    )
    context.global_scale = SCALE
    return context


def serve(context: tenseal.Context, listen: str) -> None:
    """Serve until killed; the address is printed as one JSON line."""
    handler = grpc.unary_unary_rpc_method_handler(
        Baseline(context).submit,
        request_deserializer=BytesValue.FromString,
        response_serializer=Empty.SerializeToString,
    )
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=10))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Submit": handler}),)
    )
    port = server.add_insecure_port(listen)
    server.start()
    host = listen.rpartition(":")[0]
    print(json.dumps({"event": "serving", "address": f"{host}:{port}"}), flush=True)
    server.wait_for_termination()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=Path, required=True, help="serialized public context")
    parser.add_argument("--listen", default="127.0.0.1:0")
    options = parser.parse_args()
    serve(tenseal.context_from(options.context.read_bytes(), n_threads=1), options.listen)


if __name__ == "__main__":
    main()
