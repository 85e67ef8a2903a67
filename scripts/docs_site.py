"""What the documentation site has beyond docs/: a hook of MkDocs, named in mkdocs.yml.

Pages that lie elsewhere in the repository (README, CHANGELOG, deploy/README) become pages of the
site, the command line's reference is written from the commands, the package's from its public
names. Links are written for the repository: those that lead out of docs/ are turned into links to
these pages, or to a copy of the file that they name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import normpath, relpath

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click
from typer.main import get_command

import gridveil
from gridveil.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "deploy/README.md": "deployment.md",
}
"""Pages of the site by their place in the repository, of those that are not below docs/."""

_ORIGINS = {page: origin for origin, page in PAGES.items()}
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_DIRECTORY = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)\)")
_ROLE = re.compile(r":(?:class|meth|func|mod|attr|data):(?=<code>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that docs/ has not, and the files that pages link to."""
    for origin, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / origin).read_text("utf-8")))
    files.append(File.generated(config, "cli.md", content=command_line()))
    files.append(File.generated(config, "python.md", content=public_names()))
    pages = [file for file in files if file.is_documentation_page()]
    linked = {target for file in pages for target in _targets(_origin(file), file.content_string)}
    for target in sorted(linked):
        if (ROOT / target).is_file() and target not in PAGES and not target.startswith("docs/"):
            copied = File.generated(config, f"source/{target}", abs_src_path=str(ROOT / target))
            files.append(copied)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    origin, source = _origin(page.file), page.file.src_uri

    def turned(match: re.Match[str]) -> str:
        target, anchor = _target(origin, match[1]), match[2] or ""
        return f"]({relpath(_place(target), str(Path(source).parent))}{anchor})"

    return _LINK.sub(turned, _without_directories(origin, markdown))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings name things by roles of Sphinx, which mean nothing here."""
    return _ROLE.sub("", html) if page.file.src_uri == "python.md" else html


def command_line() -> str:
    """The reference of the command line, from the commands that are installed."""
    command = get_command(app)
    shown = get_docs_for_click(
        obj=command,
        ctx=typer.Context(command, info_name="gridveil"),
        name="gridveil",
        title="Command line",
    )
    # Examples are what is typed; as code they keep their dashes.
    return _linked(re.sub(r"^Example: (.*)$", r"Example: `\1`", shown, flags=re.MULTILINE))


def _linked(reference: str) -> str:
    """The commands of a group by links, in the place of the beginnings of their help texts."""
    lines, group = [], "gridveil"
    for line in reference.splitlines():
        if heading := re.match(r"#+ `(.+)`$", line):
            group = heading[1]
        if item := re.match(r"\* `([a-z][a-z-]*)`: ", line):
            typed = f"{group} {item[1]}"
            lines.append(f"* [`{typed}`](#{typed.replace(' ', '-')})")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def public_names() -> str:
    """A page that mkdocstrings fills with the public names of the package."""
    entries = [f"::: gridveil.{name}" for name in gridveil.__all__]
    entry = "\n\n".join(entries)
    return f"# Python names\n\nWhat is public, from the code; [the overview](api.md).\n\n{entry}\n"


def _origin(file: File) -> str:
    """Where a page lies in the repository."""
    return _ORIGINS.get(file.src_uri, f"docs/{file.src_uri}")


def _target(origin: str, link: str) -> str:
    """What a link of a page leads to, from the root of the repository."""
    return normpath(Path(origin).parent / link)


def _targets(origin: str, markdown: str) -> Iterator[str]:
    return (_target(origin, match[1]) for match in _LINK.finditer(markdown))


def _place(target: str) -> str:
    """Where the site has a file of the repository."""
    if target in PAGES:
        return PAGES[target]
    return target.removeprefix("docs/") if target.startswith("docs/") else f"source/{target}"


def _without_directories(origin: str, markdown: str) -> str:
    """A folder is no page: its name stays, the link goes."""

    def named(match: re.Match[str]) -> str:
        is_folder = "://" not in match[2] and (ROOT / _target(origin, match[2])).is_dir()
        return match[1] if is_folder else match[0]

    return _DIRECTORY.sub(named, markdown)
