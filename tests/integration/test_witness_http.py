"""A witness on HTTP: whatever is sent, it answers with a status and goes on."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from gridveil.protocol.checkpoint import TreeHead, log_key, log_origin
from gridveil.protocol.merkle import EMPTY_ROOT
from gridveil.protocol.note import NoteKey
from gridveil.protocol.witnessing import REQUEST_BYTES, AddCheckpoint
from gridveil_services.keyholder.witnesses import WitnessEndpoint
from tests.support.witnesses import WitnessFolder

CITY = bytes(range(16))
KEY = SigningKey(b"k" * 32)
LOG_KEY = log_key(CITY, bytes(KEY.verify_key))
GOOD = AddCheckpoint(0, (), TreeHead(log_origin(CITY), 0, EMPTY_ROOT).sign(KEY)).encode()


@pytest.fixture
def folder(tmp_path: Path) -> WitnessFolder:
    return WitnessFolder.create(tmp_path / "witness", LOG_KEY)


@pytest.fixture
def endpoint(folder: WitnessFolder) -> Iterator[WitnessEndpoint]:
    with folder.serve() as serving:
        yield serving


def ask(endpoint: WitnessEndpoint, method: str, path: str, body: bytes, **headers: str) -> int:
    connection = HTTPConnection(endpoint.url.removeprefix("http://"), timeout=5)
    try:
        connection.request(method, path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def send(endpoint: WitnessEndpoint, data: bytes) -> bytes:
    host, _, port = endpoint.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(4096):
            answer += part
        return answer


def test_a_good_request_is_answered_also_on_a_connection_that_is_kept(
    endpoint: WitnessEndpoint,
) -> None:
    connection = HTTPConnection(endpoint.url.removeprefix("http://"), timeout=5)
    for _ in range(3):
        connection.request("POST", "/add-checkpoint", GOOD)
        answer = connection.getresponse()
        assert (answer.status, answer.read()[:4]) == (200, "— ".encode())
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/", GOOD, 404),
        ("POST", "/add-checkpoint/", GOOD, 404),
        ("POST", "/add-checkpoint?x", GOOD, 404),
        ("GET", "/add-checkpoint", b"", 501),
        ("PUT", "/add-checkpoint", GOOD, 501),
        ("POST", "/add-checkpoint", b"", 400),
        ("POST", "/add-checkpoint", b"\xff" * 100, 400),
        ("POST", "/add-checkpoint", bytes(REQUEST_BYTES), 400),
        ("POST", "/add-checkpoint", bytes(REQUEST_BYTES + 1), 413),
    ],
)
def test_every_request_gets_its_status(
    endpoint: WitnessEndpoint, method: str, path: str, body: bytes, status: int
) -> None:
    assert ask(endpoint, method, path, body) == status
    assert ask(endpoint, "POST", "/add-checkpoint", GOOD) == 200


@pytest.mark.parametrize("length", ["", "-1", "1e3", "9" * 30, "٣"])
def test_a_length_that_is_none_is_refused(endpoint: WitnessEndpoint, length: str) -> None:
    head = f"POST /add-checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
    answer = send(endpoint, head.encode())
    assert answer.startswith((b"HTTP/1.1 411", b"HTTP/1.1 413"))
    assert ask(endpoint, "POST", "/add-checkpoint", GOOD) == 200


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"POST", b"POST /add-checkpoint HTTP/1.1\r\n"])
def test_what_is_no_http_harms_nobody(endpoint: WitnessEndpoint, data: bytes) -> None:
    send(endpoint, data)
    assert ask(endpoint, "POST", "/add-checkpoint", GOOD) == 200


def test_a_body_that_is_cut_short_is_no_request(endpoint: WitnessEndpoint) -> None:
    head = b"POST /add-checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(GOOD)
    assert send(endpoint, head + GOOD[:-5]).startswith(b"HTTP/1.1 400")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gridveil.cli", "witness", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_makes_a_key_once_and_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    file = tmp_path / "witness.key"
    made = run("create-key", "witness.example/1", "--file", str(file))
    assert made.returncode == 0, made.stderr
    assert NoteKey.decode(made.stdout.strip()).name == "witness.example/1"
    assert file.stat().st_mode & 0o077 == 0
    again = run("create-key", "witness.example/1", "--file", str(file))
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    served = WitnessFolder(tmp_path, "witness.example/1", NoteKey.decode(made.stdout.strip()))
    served.write(LOG_KEY)
    with served.process() as serving:
        assert ask(serving, "POST", "/add-checkpoint", GOOD) == 200


@pytest.mark.parametrize(
    "line", ["listen = 'nowhere'", "listen = '127.0.0.1:99999'", "logs = ['x']", "more = 1"]
)
def test_a_wrong_configuration_is_one_line_and_code_2(folder: WitnessFolder, line: str) -> None:
    key = line.partition(" ")[0]
    kept = [found for found in folder.config.read_text().splitlines() if not found.startswith(key)]
    folder.config.write_text("\n".join([*kept, line]))
    ended = run("serve", "--config", str(folder.config))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
