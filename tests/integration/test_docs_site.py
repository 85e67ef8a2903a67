"""The documentation site: built without a warning, whole, and from nowhere else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import gridveil
from tests.unit.test_cli_app import all_commands

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""What a browser fetches by itself, and the attribute that says from where."""


class Links(HTMLParser):
    """What a page links to and fetches, and what can be linked to in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        if "id" in found:
            self.anchors.add(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if (name := FETCHED.get(tag)) and name in found:
            self.fetched.append(found[name])


def build(config: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "mkdocs", "build", "--strict"),
            *("--config-file", config, "--site-dir", target),
        ],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {page: Links(page) for page in site.rglob("*.html")}


def test_every_document_is_a_page_of_the_site(site: Path) -> None:
    documents = [path.relative_to(ROOT / "docs") for path in ROOT.glob("docs/**/*.md")]
    assert len(documents) > 25
    for document in documents:
        assert (site / document.with_suffix(".html")).is_file(), document


def test_every_link_leads_to_a_page_and_a_heading_of_it(pages: dict[Path, Links]) -> None:
    count = 0
    for page, found in pages.items():
        if page.name == "404.html":
            continue
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.name}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{page.name}: {link}"
            count += 1
    assert count > 1_000


def test_a_browser_fetches_nothing_from_elsewhere(site: Path, pages: dict[Path, Links]) -> None:
    fetched = [link for found in pages.values() for link in found.fetched]
    assert fetched
    assert [link for link in fetched if urlsplit(link).netloc] == []
    # Such diagrams would be drawn by a script that is fetched.
    assert not any("```mermaid" in page.read_text("utf-8") for page in ROOT.glob("docs/**/*.md"))
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style.read_text("utf-8"))


def test_the_reference_of_the_command_line_has_every_command(pages: dict[Path, Links]) -> None:
    (reference,) = (found for page, found in pages.items() if page.name == "cli.html")
    for typed, _ in all_commands():
        assert typed.replace(" ", "-") in reference.anchors


def test_the_reference_of_the_package_has_every_public_name(
    site: Path, pages: dict[Path, Links]
) -> None:
    reference = pages[site / "python.html"]
    for name in gridveil.__all__:
        assert f"gridveil.{name}" in reference.anchors
    shown = (site / "python.html").read_text("utf-8")
    assert "until_window: int = 0" in re.sub(r"<[^>]*>", "", shown)
    assert not re.search(r":(?:class|meth|func|mod):", re.sub(r"<[^>]*>", "", shown))


def test_a_link_that_leads_nowhere_breaks_the_build(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.name in {"docs", "scripts"}:
            shutil.copytree(path, copy / path.name)
        elif path.name == "mkdocs.yml":
            shutil.copy(path, copy)
        elif not path.name.startswith("."):
            (copy / path.name).symlink_to(path)
    wrong = [
        "nowhere.md",
        "operations.md#nothing-of-this-name",
        "../services/nowhere.py",
        "../README.md#nothing-in-the-readme",
    ]
    with (copy / "docs" / "control.md").open("a") as page:
        page.writelines(f"\n[away]({link})\n" for link in wrong)
    done = build(copy / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    for link in wrong:
        assert re.split("[/#]", link)[-1] in done.stderr, link
