"""Real witnesses for tests: processes with a key, a memory and a log that they know."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gridveil.protocol.note import NoteKey
from gridveil_services.keyholder.witnesses import WitnessEndpoint
from gridveil_services.witness.config import WitnessConfig, create_key, public_key
from gridveil_services.witness.server import WitnessServer
from gridveil_services.witness.witness import Witness

NOW = 1_700_000_000


@dataclass
class WitnessFolder:
    """A witness's files."""

    folder: Path
    name: str
    key: NoteKey
    port: int = 0

    @classmethod
    def create(cls, folder: Path, log: NoteKey, name: str = "witness.example/1") -> WitnessFolder:
        """A witness of one log."""
        secret = create_key(folder / "witness.key")
        made = cls(folder, name, public_key(name, bytes(secret.verify_key)))
        made.write(log)
        return made

    def write(self, *logs: NoteKey) -> None:
        """Its configuration."""
        lines = [
            f'name = "{self.name}"',
            f'listen = "127.0.0.1:{self.port}"',
            f"logs = {json.dumps([log.encode() for log in logs])}",
        ]
        self.config.write_text("\n".join(lines) + "\n")

    @property
    def config(self) -> Path:
        """Its witness.toml."""
        return self.folder / "witness.toml"

    def witness(self) -> Witness:
        """The witness without HTTP."""
        return Witness(WitnessConfig.load(self.config), lambda: NOW)

    @contextmanager
    def serve(self) -> Iterator[WitnessEndpoint]:
        """Serve from this process."""
        server = WitnessServer(self.witness(), f"127.0.0.1:{self.port}")
        server.start()
        try:
            self.port = int(server.address.rpartition(":")[2])
            yield self.endpoint
        finally:
            server.stop()

    @contextmanager
    def process(self) -> Iterator[WitnessEndpoint]:
        """``gridveil witness serve``."""
        command = [sys.executable, "-m", "gridveil.cli", "witness", "serve", "--config"]
        with subprocess.Popen(
            [*command, str(self.config)], stdout=subprocess.PIPE, text=True
        ) as running:
            try:
                assert running.stdout is not None
                line = json.loads(running.stdout.readline())
                self.port = int(line["address"].rpartition(":")[2])
                yield self.endpoint
            finally:
                running.terminate()
                assert running.wait(10) == 0

    @property
    def endpoint(self) -> WitnessEndpoint:
        """Where and who it is, while it serves."""
        return WitnessEndpoint(f"http://127.0.0.1:{self.port}", self.key)
