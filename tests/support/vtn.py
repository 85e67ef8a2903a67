"""A small VTN of OpenADR 3.1 over real HTTPS, with a token endpoint of its own.

It shares no code with Gridveil: objects are read by an independent implementation (openadr3), and
checked against the specification where GRIDVEIL_OPENADR names a folder that has it.
"""

from __future__ import annotations

import json
import os
import secrets
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from openadr3.entities.models import Event, Report
from openapi_schema_validator import OAS30Validator, oas30_format_checker

from gridveil_services.bootstrap.certificates import Authority
from gridveil_services.rpc import Role

CLIENT, SECRET = "gridveil-controller", "a-secret-that-nobody-may-see"
PROGRAM, REPORT_EVENT = "city-dr", "event-7"
MODELS: dict[str, Any] = {"/events": Event, "/reports": Report}
SCHEMAS = {"/events": "eventRequest", "/reports": "reportRequest"}


@dataclass(frozen=True)
class Trick:
    """How the next posts are answered instead of well."""

    status: int = 201
    headers: dict[str, str] = field(default_factory=dict)
    taken: bool = False
    """Whether the object is kept all the same."""
    silent: bool = False
    """Hang up instead of an answer."""
    wait: threading.Event | None = None
    """Answer when this is set."""


class Vtn:
    """What it was sent, and how it answers next."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.objects: dict[str, list[dict[str, Any]]] = {"/events": [], "/reports": []}
        self.tricks: deque[Trick] = deque()
        self.poison: set[str] = set()
        """Names that it always fails at."""
        self.token_tricks: deque[int] = deque()
        self.lifetime_s = 3_600
        self.tokens: dict[str, float] = {}
        self.tokens_given = 0
        self.scopes: list[str | None] = []
        self.requests: list[tuple[str, str]] = []
        self.attempted: list[str] = []
        """Names in posts, also in those that were refused."""
        self.lock = threading.Lock()
        self.url = ""
        self.ca = Path()

    def names(self, path: str = "/events") -> list[str]:
        """Of the objects that it has, in order of arrival."""
        key = "eventName" if path == "/events" else "reportName"
        with self.lock:
            return [str(one[key]) for one in self.objects[path]]

    def take_tokens_back(self) -> None:
        with self.lock:
            self.tokens.clear()

    def grant(self, form: Mapping[str, Sequence[str | None]]) -> tuple[int, dict[str, Any]]:
        """RFC 6749, 4.4: a token for the right secret."""
        with self.lock:
            if self.token_tricks:
                return self.token_tricks.popleft(), {"error": "server_error"}
            if form.get("grant_type") != ["client_credentials"]:
                return 400, {"error": "unsupported_grant_type"}
            if (form.get("client_id"), form.get("client_secret")) != ([CLIENT], [SECRET]):
                return 401, {"error": "invalid_client"}
            token = secrets.token_urlsafe(16)
            self.tokens[token] = time.monotonic() + self.lifetime_s
            self.tokens_given += 1
            self.scopes.append(form.get("scope", [None])[0])
        return 200, {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": self.lifetime_s,
        }

    def knows(self, authorization: str | None) -> bool:
        kind, _, token = (authorization or "").partition(" ")
        with self.lock:
            return kind == "Bearer" and time.monotonic() < self.tokens.get(token, 0.0)

    def listed(self, path: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """A page of what fits the filters."""
        with self.lock:
            found = list(self.objects[path])
        for key in ("programID", "eventID", "clientName"):
            if key in query:
                found = [one for one in found if one.get(key) == query[key][0]]
        if query.get("active") == ["true"]:
            found = [one for one in found if self._is_active(one)]
        skip, limit = (int(query.get(key, ["0"])[0]) for key in ("skip", "limit"))
        return found[skip : skip + min(limit or 50, 50)]

    def keep(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """An object with what the VTN adds to it."""
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        added = {"id": secrets.token_hex(4), "createdDateTime": now, "modificationDateTime": now}
        added |= {"objectType": "EVENT" if path == "/events" else "REPORT"}
        if path == "/reports":
            added |= {"clientID": CLIENT}
        kept = body | added
        MODELS[path].from_raw(kept)
        with self.lock:
            self.objects[path].append(kept)
        return kept

    def _is_active(self, event: dict[str, Any]) -> bool:
        period = event["intervalPeriod"]
        start = datetime.fromisoformat(period["start"]).timestamp()
        return self.now() < start + int(period["duration"].removeprefix("PT").removesuffix("S"))


def problem_of(path: str, body: object) -> str | None:
    """What is wrong with an object, by the specification if it is there."""
    if not isinstance(body, dict):
        return "no object"
    if "GRIDVEIL_OPENADR" in os.environ:
        schema = {"components": _components(), "$ref": f"#/components/schemas/{SCHEMAS[path]}"}
        validator = OAS30Validator(schema, format_checker=oas30_format_checker)
        for error in validator.iter_errors(body):
            return str(error.message)
    wanted = body.get("programID") if path == "/events" else body.get("eventID")
    return None if wanted in {PROGRAM, REPORT_EVENT} else "another program or event"


@cache
def _components() -> Any:
    folder = Path(os.environ["GRIDVEIL_OPENADR"])
    return yaml.safe_load((folder / "openadr3.yaml").read_text("utf-8"))["components"]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        vtn, parts = self.server.vtn, urlsplit(self.path)
        vtn.requests.append(("GET", self.path))
        if not vtn.knows(self.headers.get("Authorization")):
            self._answer(401, {"title": "no token"})
        elif parts.path in vtn.objects:
            self._answer(200, vtn.listed(parts.path, parse_qs(parts.query)))
        else:
            self._answer(404, {"title": "not found"})

    def do_POST(self) -> None:
        vtn = self.server.vtn
        data = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        vtn.requests.append(("POST", self.path))
        if self.path == "/auth/token":
            self._answer(*vtn.grant(parse_qs(data.decode())))
        elif not vtn.knows(self.headers.get("Authorization")):
            self._answer(401, {"title": "no token"})
        elif self.path not in vtn.objects:
            self._answer(404, {"title": "not found"})
        else:
            self._take(self.path, json.loads(data))

    def _take(self, path: str, body: Any) -> None:
        vtn = self.server.vtn
        with vtn.lock:
            vtn.attempted.append(body.get("eventName") or body.get("reportName"))
            trick = vtn.tricks.popleft() if vtn.tricks else Trick()
            if vtn.attempted[-1] in vtn.poison:
                trick = Trick(500)
        if trick.wait is not None:
            trick.wait.wait(30)
        problem = problem_of(path, body)
        if problem is not None:
            self._answer(400, {"title": problem})
            return
        kept = vtn.keep(path, body) if trick.taken or trick.status == 201 else {}
        if trick.silent:
            self.close_connection = True
            return
        self._answer(trick.status, kept or {"title": "tricked"}, trick.headers)

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, vtn: Vtn, context: ssl.SSLContext, port: int) -> None:
        self.vtn = vtn
        self._context = context
        super().__init__(("127.0.0.1", port), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        # The handshake in the request's own thread: a client that does not trust us keeps nobody.
        with self._context.wrap_socket(request, server_side=True) as secured:
            _Handler(secured, client_address, self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up or do not trust us are no news; all else is a defect of a test."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@contextmanager
def serving_vtn(
    folder: Path, *, now: Callable[[], float] = time.time, vtn: Vtn | None = None, port: int = 0
) -> Iterator[Vtn]:
    """A VTN, or the same one once more, at ``vtn.url``; its authority is in ``vtn.ca``."""
    found = vtn or Vtn(now)
    folder.mkdir(exist_ok=True)
    if vtn is None:
        make_identity(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server = _Server(found, context, port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    found.url, found.ca = f"https://localhost:{server.server_address[1]}", folder / "ca.pem"
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_identity(folder: Path) -> None:
    """A certificate for this machine, and its authority."""
    now = datetime.now(UTC)
    begin, end = now - timedelta(hours=1), now + timedelta(days=1)
    authority = Authority.create(b"an authority 16b", begin, end)
    issued = authority.issue(Role.TOTALS, "vtn", valid_from=begin, valid_until=end)
    (folder / "ca.pem").write_bytes(authority.certificate_pem)
    (folder / "cert.pem").write_bytes(issued.certificate_pem)
    (folder / "key.pem").write_bytes(issued.key_pem)
