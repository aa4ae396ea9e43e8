"""Pictures of a terminal in which the real commands run: `make screens` makes docs/screens/*.svg anew.

    python docs/site/screens.py [NAME ...]

Each command runs in a pseudo-terminal of a fixed size, on a spool that the examples have just filled, against a real MLflow
server; pyte is the terminal, rich draws what it shows. The picture of a command that takes long is a film: one drawing for
each state that was there for a moment, shown in turn by CSS, the last one where a reader wants no motion. Nothing is loaded
from elsewhere, and a picture brings its own background, so that it can be read on a light page and on a dark one.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import StringIO
from itertools import groupby
from pathlib import Path

import pyte
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.servers import MlflowServer  # noqa: E402

SCREENS = ROOT / "docs" / "screens"
COLUMNS = 92

#: Seconds that a state must have stood to be a drawing of its own, and for which the last one is shown.
_STOOD_S, _LAST_S = 0.35, 6.0

#: rich's drawing without the fonts that it would load from elsewhere.
_FORMAT = re.sub(r"@font-face\s*\{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono"
)


@dataclass(slots=True)
class Terminal:
    """A terminal that remembers what it has shown, and for how long."""

    rows: int
    environ: dict[str, str]
    folder: Path
    shown: list[tuple[float, list[Text]]] = field(default_factory=list)
    screen: pyte.Screen = field(init=False)
    stream: pyte.ByteStream = field(init=False)

    def __post_init__(self) -> None:
        self.screen = pyte.Screen(COLUMNS, self.rows)
        self.stream = pyte.ByteStream(self.screen)

    def run(self, command: str) -> None:
        """Run a command as if somebody had typed it."""
        self.stream.feed(f"\x1b[1;32m$\x1b[0m {command}\r\n".encode())
        self._show(0.8)
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", self.rows, COLUMNS, 0, 0))
        words = shlex.split(command)
        process = subprocess.Popen(words, env=self.environ, cwd=self.folder, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self._follow(ours)
        os.close(ours)
        process.wait()
        self._show(1.5)
        self.stream.feed(b"\r\n")

    def _follow(self, terminal: int) -> None:
        """Until the command has ended."""
        changed = time.monotonic()
        with contextlib.suppress(OSError):  # what a terminal says at its end
            while True:
                if select.select([terminal], [], [], _STOOD_S)[0]:
                    data = os.read(terminal, 65536)
                    if not data:
                        return
                    if time.monotonic() - changed > _STOOD_S:
                        self._show(time.monotonic() - changed)
                    self.stream.feed(data.replace(self.environ["HOME"].encode(), b"/home/me"))
                    changed = time.monotonic()

    def _show(self, seconds: float) -> None:
        drawn = [_line(self.screen, row) for row in range(self.rows)]
        if self.shown and self.shown[-1][1] == drawn:
            seconds += self.shown.pop()[0]
        self.shown.append((min(seconds, 1.5), drawn))


def _line(screen: pyte.Screen, row: int) -> Text:
    chars = [screen.buffer[row][column] for column in range(screen.columns)]
    text = Text()
    for look, alike in groupby(chars, key=lambda char: char._replace(data="")):
        style = Style(color=_color(look.fg), bgcolor=_color(look.bg), bold=look.bold, italic=look.italics)
        text.append("".join(char.data for char in alike), style)
    text.rstrip()
    return text


def _color(name: str) -> str | None:
    """rich's name of one of pyte's."""
    if name == "default":
        return None
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return {"brown": "yellow", "brightblack": "bright_black"}.get(name, name.replace("bright", "bright_"))


# -- drawing ------------------------------------------------------------------------------------------------------------


def drawing(lines: list[Text], title: str, unique: str, *, crop: bool = True) -> str:
    """One picture; ``crop``: without the empty lines at the end."""
    console = Console(width=COLUMNS, record=True, file=StringIO(), force_terminal=True, color_system="truecolor")
    used = max((number for number, line in enumerate(lines, 1) if line), default=1)
    for line in lines[: used if crop else None]:
        console.print(line, soft_wrap=True)
    return console.export_svg(title=title, code_format=_FORMAT, theme=DIMMED_MONOKAI, unique_id=unique)


def film(shown: list[tuple[float, list[Text]]], title: str, unique: str) -> str:
    """Several, one after the other."""
    shown = [*shown[:-1], (_LAST_S, shown[-1][1])]
    whole = sum(seconds for seconds, _ in shown)
    at, styles, frames = 0.0, [], []
    for number, (seconds, lines) in enumerate(shown):
        begin, end = 100 * at / whole, 100 * (at + seconds) / whole
        name = f"{unique}-{number}"
        rest = "visible" if number == len(shown) - 1 else "hidden"  # where nothing moves
        styles.append(
            f"@keyframes {name} {{ 0%, {begin:.2f}% {{ visibility: hidden }}"
            f" {begin + 0.01:.2f}%, {end:.2f}% {{ visibility: visible }} {end + 0.01:.2f}%, 100% {{ visibility: hidden }} }}"
            f" .{name} {{ visibility: {rest}; animation: {name} {whole:.1f}s linear infinite }}"
        )
        frames.append(f'<g class="{name}">{drawing(lines, title, name, crop=False)}</g>')
        at += seconds
    box = re.search(r'viewBox="([^"]+)"', frames[-1])
    assert box is not None
    still = (
        f"@media (prefers-reduced-motion) {{ g {{ animation: none !important }} .{name} {{ visibility: visible }} }}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box[1]}"><style>{" ".join([*styles, still])}</style>'
        f"{''.join(frames)}</svg>\n"
    )


# -- what is shown ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Desk:
    """A spool in which something was logged, and a server for it."""

    environ: dict[str, str]
    folder: Path
    server: str

    def example(self, name: str, *words: str, **environ: str) -> None:
        command = [sys.executable, str(ROOT / "examples" / name), *words]
        subprocess.run(command, env={**self.environ, "MLFERRY_QUIET": "1", **environ}, cwd=self.folder, check=True)

    def terminal(self, rows: int) -> Terminal:
        return Terminal(rows, self.environ, self.folder)


def demo(desk: Desk) -> str:
    terminal = desk.terminal(42)
    terminal.run("mlferry demo")
    return film(terminal.shown, "mlferry demo", "demo")


def looking(desk: Desk) -> str:
    desk.example("sweep.py")
    desk.example("offline_training.py")
    terminal = desk.terminal(54)
    terminal.run("mlferry ls")
    run_id = subprocess.check_output(
        ["mlferry", "ls", "--json", "--filter", "attributes.run_name = 'seed 0'"], env=desk.environ, text=True
    )
    found = re.search(r'"run_id": "([0-9a-f]{6})', run_id)
    assert found is not None
    terminal.run(f"mlferry show {found[1]} --plot loss")
    return drawing(terminal.shown[-1][1], "offline, and while runs train", "looking")


def delivering(desk: Desk) -> str:
    desk.example("sweep.py")
    desk.example("series_and_checkpoints.py")
    terminal = desk.terminal(32)
    for command in ("mlferry", f"mlferry sync --to {desk.server}", f"mlferry verify --to {desk.server}"):
        terminal.run(command)
    return drawing(terminal.shown[-1][1], "where the server can be reached", "delivering")


SCENES: dict[str, Callable[[Desk], str]] = {"demo": demo, "looking": looking, "delivering": delivering}


@contextlib.contextmanager
def desk() -> Iterator[Desk]:
    with tempfile.TemporaryDirectory() as folder, MlflowServer(Path(folder, "server")) as server:
        home = Path(folder, "home")
        home.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLF", "XDG_", "NO_COLOR"))}
        path = os.pathsep.join((str(Path(sys.executable).parent), kept["PATH"]))
        told = {"HOME": str(home), "PATH": path, "TERM": "xterm-256color", "USER": "me", "LOGNAME": "me"}
        yield Desk({**kept, **told, "COLUMNS": str(COLUMNS)}, home, server.url)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENES)}; all if none is named")
    for name in parser.parse_args().names or SCENES:
        with desk() as prepared:
            picture = SCENES[name](prepared)
        (SCREENS / f"{name}.svg").write_text(picture, encoding="utf-8")
        sys.stdout.write(f"docs/screens/{name}.svg: {len(picture) / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
