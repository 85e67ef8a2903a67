"""What the documents show is what happens: output, samples, commands."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gridveil.meter_identity import MeterKeys
from gridveil.profile import Profile
from gridveil.simulator.readings import ReadingBounds
from gridveil.simulator.replay import Simulator
from gridveil.simulator.standard_load import StandardLoadSource
from tests.support.city import TestCity

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [
    *(ROOT / folder / "README.md" for folder in ("", "client", "deploy")),
    *sorted(ROOT.glob("docs/*.md")),
]


def block(language: str, containing: str) -> str:
    """The one code block of the README in a language that contains a text."""
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)
    (found,) = [text for text in blocks if containing in text]
    return found


def test_the_readme_shows_what_the_demo_prints() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gridveil.cli", "demo"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    # How fast the clock runs, and how many empty windows come first, depends on the machine.
    varying = re.compile(r"windows \d+|one takes \d+\.\d s")
    shown = varying.sub("...", block("", "making a city"))
    assert varying.sub("...", done.stdout) == shown


def test_the_readmes_meter_and_operator_do_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestCity.create(tmp_path, meters=119, rate=60, grace=600) as city:
        own = MeterKeys.create()
        city.meters.append(own)
        city.start_all()
        city.enrol()
        window = city.window(ahead=1)
        monkeypatch.chdir(tmp_path)
        own.save("meter.key")
        others, source = city.meters[:-1], StandardLoadSource()
        simulator = Simulator(
            city.profile("gateway"), others, source, tmp_path / "others.db", clock=city.clock
        )
        with simulator:
            reporting = threading.Thread(target=simulator.run, args=(window, 1))
            reporting.start()
            city.wait_until(window + 900 + 1)
            assert run_meter(city) == f"{window} SETTLED\n"
            reporting.join()
        sums = source.read([None] * 119, [window], ReadingBounds(900, 0, 200_000)).wh.sum()
        city.wait_until(window + 900 + 600)
        wanted = f"{window} {int(sums) + 412} 120 1.0\n"
        for _ in range(100):
            if (told := run(block("python", "import Operator"), {})) == wanted:
                break
            city.wait_until(city.now() + 30)
        assert told == wanted


def run_meter(city: TestCity) -> str:
    """The meter of the README, on the clock of a development city."""
    sample = block("python", "import Meter")
    assert sample.count("clock = SystemClock()\n") == 1
    return run(sample.replace("clock = SystemClock()\n", ""), {"clock": city.clock})


def test_a_meter_that_follows_the_operations_page_asks_to_be_enrolled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [sys.executable, "-m", "gridveil.cli", "init", "city", "--min-cohort", "100"]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    (sample,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    asked = bytes.fromhex(run(sample, {}))
    city_id = Profile.load(Path("city/registrar/profile.toml")).city_id
    assert asked == MeterKeys.load("meter.key").enrolment_request(city_id)


def run(sample: str, names: dict[str, object]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(sample, names)  # noqa: S102 - the point of the test
    return printed.getvalue()


def commands() -> list[str]:
    """Every ``gridveil`` command line in a document's code."""
    found = []
    for page in DOCUMENTS:
        text = page.read_text("utf-8")
        for line in re.findall(r"^(?:    |  )(?:\S*/)?gridveil ([^#\n]*?)(?: &)?$", text, re.M):
            found.append(f"{page.name}: gridveil {line}")
    return found


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_documents_exists_with_its_options(line: str) -> None:
    words = shlex.split(line.split(": gridveil ", 1)[1].replace("...", ""))
    names: list[str] = []
    while words and not words[0].startswith("-") and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        names.append(words.pop(0))
    done = subprocess.run(
        [sys.executable, "-m", "gridveil.cli", *names, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={"COLUMNS": "200", "PATH": "", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in done.stdout


def test_links_between_documents_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "deploy" / "README.md"]
    for page in [*pages, *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
