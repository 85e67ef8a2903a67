"""The commands of deploy/README.md, run as it says, but for a cluster that is not there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.dockerfiles import ROOT
from tests.support.manifests import kubectl

GUIDE = (ROOT / "deploy" / "README.md").read_text("utf-8")
CITY = "CITY"


def lines(beginning: str) -> list[str]:
    """The command lines of the guide that begin so; at least one."""
    found: list[str] = re.findall(rf"^    ({re.escape(beginning)}.*)$", GUIDE, re.MULTILINE)
    assert found, beginning
    return found


def block(language: str) -> str:
    """The one code block in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return str(found)


def gridveil(*words: str) -> str:
    """What the command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "gridveil.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_city(folder: Path, *, cluster: bool) -> None:
    """As the guide makes a city for Kubernetes."""
    (line,) = lines(f"gridveil init {CITY} ")
    words = shlex.split(line.replace(CITY, str(folder)))[1:]
    (more,) = re.findall(r"`(--redis redis://\S+ --redis-replicas \d+)`", GUIDE)
    gridveil(*words, *(more.split() if cluster else []))


def make_secrets(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """By namespace and name, the Secrets that the guide makes from a city's folder."""
    made = {}
    for line in lines("kubectl create secret"):
        words = shlex.split(line.replace(CITY, str(folder)))[1:]
        if not (folder / "redis").exists() and ("redis" in line):
            continue
        secret = yaml.safe_load(kubectl(*words, "--dry-run=client", "--output=yaml"))
        made[secret["metadata"]["namespace"], secret["metadata"]["name"]] = secret
    return made
