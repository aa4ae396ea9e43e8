"""What the site has beside docs/: the README as its home, other documents of the repository, and the files that they cite.

Owns which file of the repository is which page, and the links between them. A document is written once and read in two
places: on a forge its relative links lead to files of the repository; here the same link leads to the page that has the
file's content. So a promise leads to its tests and a number to its benchmark without another host, from a disk as well.

A path in backticks that exists in the repository (``tests/crash``, ``tests/unit/test_retry.py::test_name``) becomes a link,
too. One that does not exist is a warning, which is an error where the site is built.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

#: Documents outside docs/ and the page of each.
DOCUMENTS = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "examples/README.md": "examples.md",
    "spool/FORMAT.md": "format.md",
    "systemd/README.md": "units.md",
}
_FOLDERS = ("agent", "benchmarks", "docs", "examples", "sdk", "spool", "systemd", "tests")
_LANGUAGES = {".py": "python", ".json": "json", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".sbatch": "bash"}

_FENCE = re.compile(r"(?ms)^(?P<fence>`{3,}).*?^(?P=fence)[ \t]*$")
_LINK = re.compile(r"\]\((?![a-z]+:)([^)\s#]+)(#[^)\s]*)?\)")
_PATH = rf"((?:{'|'.join(_FOLDERS)})/[\w./-]*\w/?)(?:::(\w+))?"
_CODE = re.compile(rf"`{_PATH}[^`\n]*`")
_SHOWN = re.compile(rf"(?s)<a .*?</a>|<pre.*?</pre>|<code>{_PATH}(?=[\s<])[^<]*</code>")

_log = get_plugin_logger("mlferry")


# -- which pages there are ----------------------------------------------------------------------------------------------


def on_files(files: Files, config: Any) -> Files:
    """Add the documents outside docs/, then a page for every file that a document cites."""
    for origin, page in DOCUMENTS.items():
        files.append(File.generated(config, page, content=(ROOT / origin).read_text(encoding="utf-8")))
    known = {file.src_uri for file in files}
    for path in sorted(_cited(files)):
        if f"docs/{_relative(path)}" != path and page_of(path) not in known:
            files.append(File.generated(config, page_of(path), content=_page(path)))
    return files


def page_of(path: str) -> str:
    """The page or file of the site that has a path of the repository."""
    within = _relative(path)
    if path in DOCUMENTS:
        return DOCUMENTS[path]
    return within if path.startswith("docs/") else f"source/{path}.md"


def _relative(path: str) -> str:
    return path.removeprefix("docs/")


def origin_of(page: str) -> str:
    """The file of the repository that a page was made of."""
    return next((origin for origin, made in DOCUMENTS.items() if made == page), f"docs/{page}")


def _cited(files: Iterable[File]) -> set[str]:
    """Paths of the repository outside docs/ that documents lead to, and all that a cited folder holds."""
    todo = [path for file in files if file.src_uri.endswith(".md") for path in _citations(file)]
    found: set[str] = set()
    while todo:
        path = todo.pop()
        if path not in found and path not in DOCUMENTS and not path.startswith("docs/"):
            found.add(path)
            todo += [f"{path}/{name}" for name in _held(path)]
    return found


def _citations(file: File) -> Iterator[str]:
    text, origin = _FENCE.sub("", file.content_string), origin_of(file.src_uri)
    for target, _ in _LINK.findall(text):
        path = _resolved(origin, target)
        if path is not None:
            yield path
    for path, _ in _CODE.findall(text):
        if (ROOT / path).exists():
            yield path.rstrip("/")


def _resolved(origin: str, target: str) -> str | None:
    """The path of the repository that a link in a document leads to, or None where there is none."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


# -- the pages of cited files -------------------------------------------------------------------------------------------


def _held(path: str) -> list[str]:
    """What a folder holds, but for what programs leave there."""
    if not (ROOT / path).is_dir():
        return []
    names = sorted(os.listdir(ROOT / path))
    return [name for name in names if not name.startswith((".", "__pycache__")) and not name.endswith(".egg-info")]


def _page(path: str) -> str:
    head = f"---\ntitle: {path}\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# {path}\n\n"
    if (ROOT / path).is_dir():
        return head + "\n".join(_listed(path)) + "\n"
    try:
        text = (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return f"{head}{(ROOT / path).stat().st_size:,} bytes, no text.\n"
    return f'{head}````{_LANGUAGES.get(PurePosixPath(path).suffix, "text")} linenums="1"\n{text.rstrip()}\n````\n'


def _listed(path: str) -> Iterator[str]:
    for name in _held(path):
        page = posixpath.relpath(page_of(f"{path}/{name}"), posixpath.dirname(page_of(path)))
        yield f"- [{name}]({page}){_purpose(ROOT / path / name)}"


def _purpose(file: Path) -> str:
    """The first sentence of a module."""
    if file.suffix != ".py":
        return ""
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return f": {said.partition(chr(10) * 2)[0].replace(chr(10), ' ')}" if said else ""


# -- links --------------------------------------------------------------------------------------------------------------


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages, outside of code."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    parts, at = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_relinked(markdown[at : fence.start()], page.file.src_uri), fence.group()]
        at = fence.end()
    return "".join([*parts, _relinked(markdown[at:], page.file.src_uri)])


def _relinked(text: str, page: str) -> str:
    def replaced(found: re.Match[str]) -> str:
        path = _resolved(origin_of(page), found[1])
        if path is None:
            return found.group()  # as it stands: MkDocs says what is wrong with it
        return f"]({posixpath.relpath(page_of(path), posixpath.dirname(page) or '.')}{found[2] or ''})"

    return _LINK.sub(replaced, text)


def on_page_content(html: str, page: Page, config: Any, files: Files) -> str:
    """Turn paths in backticks into links; one that names a test leads to its line."""
    here = page.file

    def linked(found: re.Match[str]) -> str:
        path = (found[1] or "").rstrip("/")
        if not path:
            return found.group()
        file = files.get_file_from_path(page_of(path))
        if file is None:
            if path.startswith("tests/"):
                _log.warning(f"{here.src_uri}: there is no {path}")
            return found.group()
        line = _line(path, found[2], here.src_uri) if found[2] else ""
        return f'<a href="{file.url_relative_to(here)}{line}">{found.group()}</a>'

    return html if here.src_uri.startswith("source/") else _SHOWN.sub(linked, html)


def _line(path: str, name: str, page: str) -> str:
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    number = next((at for at, line in enumerate(lines, 1) if re.match(rf"(?:async )?(?:def|class) {name}\b", line)), 0)
    if not number:
        _log.warning(f"{page}: {path} has no {name}")
    return f"#__codelineno-0-{number}"
