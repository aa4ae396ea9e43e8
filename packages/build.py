"""What nodes without pip get: one executable file (`mlferry.pyz`) and a Debian package, of one tree.

The tree holds the wheel and all that it requires, at the versions of ``requirements.txt``, for every Python at once: wheels
for several Pythons have the same modules, and extension modules whose names tell the Pythons apart. That this holds is
checked. So one file serves a cluster whose nodes differ, and an upgrade of a distribution's Python breaks nothing.

The tools are uv (resolves and installs), pex (makes the file) and nfpm (makes the package): extra ``release``.
"""

from __future__ import annotations

import argparse
import filecmp
import gzip
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from email import message_from_string
from email.utils import formatdate
from pathlib import Path

from typer.completion import get_completion_script

REPOSITORY = Path(__file__).parents[1]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

#: The oldest C library: what all wheels that are needed are built for.
_LIBRARY = "manylinux_2_17"

#: Debian's names of what `uname -m` says.
_DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}

#: Where the package lives; only /usr/bin/mlferry and what systemd and man look for is elsewhere.
_HOME = Path("usr/lib/mlferry")

#: Where shells look for what they can complete, below /usr/share.
_COMPLETIONS = {
    "bash": "bash-completion/completions/mlferry",
    "zsh": "zsh/vendor-completions/_mlferry",
    "fish": "fish/vendor_completions.d/mlferry.fish",
}

#: What may differ between the trees of two Pythons: notes on what was installed.
_NOTES = ".dist-info"

#: Understood by any Python: what a node calls python3 may be too old, and whoever runs it there should hear so.
_ENTRY = """import sys


def main():
    if sys.version_info < (3, 10):
        sys.exit("mlferry needs Python 3.10 or later, and this is %d.%d: python3.11 mlferry.pyz ..." % sys.version_info[:2])
    from mlferry_agent.main import main

    return main()
"""

_MAIN = """#!/usr/lib/mlferry/bin/python3 -I
import sys

from mlferry_agent.main import main

sys.exit(main())
"""

#: Makes an environment of a directory: whichever python3 the distribution has finds the packages beside this file.
_VENV = "home = /usr/bin\ninclude-system-site-packages = false\n"


def tool(*command: str | Path, **environ: str) -> None:
    """Run a tool that is installed beside this Python. Ends the program where it fails."""
    bin = Path(sys.executable).parent
    path = f"{bin}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run([str(part) for part in command], env={**os.environ, "PATH": path, **environ}, cwd=REPOSITORY)
    if done.returncode:
        sys.exit(f"{command[0]} failed")


def lock() -> None:
    """Write ``requirements.txt`` anew: one version of each package, that all Pythons take."""
    words = ["--universal", "--fork-strategy", "fewest", "--python-version", PYTHONS[0], "--extra", "agent"]
    quiet = [
        "--quiet",
        "--generate-hashes",
        "--no-emit-index-url",
        "--upgrade",
        "--custom-compile-command",
        "make lock",
    ]
    tool("uv", "pip", "compile", *words, *quiet, "--no-emit-package", "mlferry", "-o", REQUIREMENTS, "pyproject.toml")


def _orderly(root: Path) -> None:
    """Modes as a distribution has them, whatever the wheels and the builder's umask say."""
    for path in root.rglob("*"):
        if not path.is_symlink():
            is_run = path.is_dir() or path.parent.name == "bin"
            path.chmod(0o755 if is_run else 0o644)


def tree(wheel: Path, work: Path, pythons: tuple[str, ...], arch: str) -> Path:
    """One directory with the packages for all these Pythons. Ends the program where they differ in more than binaries."""
    merged = work / "tree"
    shutil.rmtree(work, ignore_errors=True)
    merged.mkdir(parents=True)
    for python in pythons:
        target = work / python
        words = ["uv", "pip", "install", "--quiet", "--target", target, "--only-binary", ":all:", "--no-deps"]
        words += ["--python-version", python, "--python-platform", f"{arch}-{_LIBRARY}", "--link-mode", "copy"]
        tool(*words, "--require-hashes", "--requirements", REQUIREMENTS)
        tool(*words, wheel)
        shutil.rmtree(target / "bin", ignore_errors=True)
        (target / ".lock").unlink(missing_ok=True)
        _merge(target, merged)
        shutil.rmtree(target)
    if arch == platform.machine() and shutil.which("strip"):
        tool("strip", "--strip-unneeded", *merged.rglob("*.so"), *merged.rglob("*.so.*"))
    return merged


def _merge(source: Path, target: Path) -> None:
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / path.relative_to(source)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)
        elif not _is_note(path) and not filecmp.cmp(path, place, shallow=False):
            sys.exit(f"not the same for every Python: {path.relative_to(source)}")


def _is_note(path: Path) -> bool:
    return any(part.endswith(_NOTES) for part in path.parts)


def zipapp(packages: Path, out: Path) -> None:
    """The executable file. It unpacks itself once for each user and Python, below ``~/.cache/pex`` or ``PEX_ROOT``.

    No interpreter constraint: with one, pex would use one environment for all Pythons that fit it, and on a home directory
    that nodes share it would be that of the first node's Python, which another may not have.
    """
    _written(packages / "mlferry_entry.py", _ENTRY)
    words = ["--sources-directory", packages, "--entry-point", "mlferry_entry:main", "--output-file", out]
    tool("pex", *words, "--venv", "--sh-boot", "--disable-cache", "--no-pypi")


def deb(packages: Path, out: Path, version: str, arch: str) -> None:
    """The Debian package."""
    root = packages.parent / "root"
    shutil.rmtree(root, ignore_errors=True)
    home = root / _HOME
    shutil.copytree(packages, home / "site-packages")
    _environment(home)
    _furnish(root, version)
    _orderly(root)
    filled = {"ARCH": _DEBIAN[arch], "VERSION": version, "ROOT": str(root), **_home_page(packages)}
    config = re.sub(r"\$\{(\w+)\}", lambda found: filled[found[1]], (REPOSITORY / "packages/nfpm.yaml").read_text())
    (packages.parent / "nfpm.yaml").write_text(config)
    tool("nfpm", "package", "--config", packages.parent / "nfpm.yaml", "--packager", "deb", "--target", out)


def _home_page(packages: Path) -> dict[str, str]:
    """Addresses, as the wheel has them."""
    [information] = packages.glob("mlferry-*.dist-info")
    found = message_from_string((information / "METADATA").read_text(encoding="utf-8"))
    addresses = dict(url.split(", ") for url in found.get_all("Project-URL", []))
    maintainer = f"{found['Author']} <mlferry@example.org>"
    return {"HOMEPAGE": addresses["Homepage"], "MAINTAINER": maintainer}


def _environment(home: Path) -> None:
    """A virtual environment for whichever Python there is."""
    (home / "bin").mkdir()
    (home / "bin/python3").symlink_to("/usr/bin/python3")
    _written(home / "bin/mlferry", _MAIN, 0o755)
    _written(home / "pyvenv.cfg", _VENV)
    for python in PYTHONS:
        (home / f"lib/python{python}").mkdir(parents=True)
        (home / f"lib/python{python}/site-packages").symlink_to("../../site-packages")
    commands = home.parents[1] / "bin"
    commands.mkdir(exist_ok=True)
    (commands / "mlferry").symlink_to("../lib/mlferry/bin/mlferry")


def _furnish(root: Path, version: str) -> None:
    """Units, manual, documents, where Debian has them."""
    units, documents = REPOSITORY / "systemd", root / "usr/share/doc/mlferry"
    for unit in units.glob("*.service"):
        _written(root / "usr/lib/systemd/system" / unit.name, unit.read_text())
    user = (units / "user/mlferry-agent.service").read_text().replace("%h/.local/bin/mlferry", "/usr/bin/mlferry")
    _written(root / "usr/lib/systemd/user/mlferry-agent.service", user)
    for kind in ("sysusers.d", "tmpfiles.d"):
        _written(root / "usr/lib" / kind / "mlferry.conf", (units / kind / "mlferry.conf").read_text())
    made = subprocess.run(
        [sys.executable, "packages/manual.py", version], cwd=REPOSITORY, capture_output=True, check=True
    )
    _zipped(root / "usr/share/man/man1/mlferry.1.gz", made.stdout)
    for shell, place in _COMPLETIONS.items():
        _written(root / "usr/share" / place, completion(shell))
    for path in sorted((REPOSITORY / "docs").rglob("*.md")):
        _written(documents / "docs" / path.relative_to(REPOSITORY / "docs"), path.read_text())
    _written(documents / "README.md", (REPOSITORY / "README.md").read_text())
    _written(documents / "copyright", _copyright(root / _HOME / "site-packages"))
    _zipped(documents / "NEWS.md.gz", (REPOSITORY / "CHANGELOG.md").read_bytes())
    _zipped(documents / "changelog.Debian.gz", _changes(version).encode())
    shutil.copytree(REPOSITORY / "docs/monitoring", documents / "docs/monitoring", dirs_exist_ok=True)


def completion(shell: str) -> str:
    """The script that teaches a shell the command, as `mlferry --install-completion` writes it."""
    script = get_completion_script(prog_name="mlferry", complete_var="_MLFERRY_COMPLETE", shell=shell) + "\n"
    # zsh reads this file when it completes for the first time, and wants an answer then.
    return script.replace("\ncompdef _mlferry_completion mlferry", '\n_mlferry_completion "$@"')


def _changes(version: str) -> str:
    """Debian's own changelog, which names the package's release and points to ours."""
    at = formatdate(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    return (
        f"mlferry ({version}-1) stable; urgency=medium\n\n  * What changed: NEWS.md.gz.\n\n"
        f" -- The mlferry authors <mlferry@example.org>  {at}\n"
    )


def _copyright(packages: Path) -> str:
    """Ours, and where those of the packages that come along stand."""
    licenses = sorted(path for info in packages.glob("*.dist-info") for path in info.rglob("*") if _is_license(path))
    listed = "\n".join(f" /{_HOME}/site-packages/{path.relative_to(packages)}" for path in licenses)
    return (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: mlferry\n\n"
        "Files: *\nCopyright: 2026 the mlferry authors\nLicense: Apache-2.0\n"
        " On Debian systems, the license stands in /usr/share/common-licenses/Apache-2.0.\n"
        f" The packages that come along have licenses of their own:\n{listed}\n"
    )


def _is_license(path: Path) -> bool:
    return path.is_file() and path.name.upper().startswith(("LICEN", "COPYING", "NOTICE"))


def _written(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _zipped(path: Path, content: bytes) -> None:
    """Without a time, so that the same content is the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 9, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description="Build what nodes without pip get.")
    parser.add_argument("what", choices=["lock", "zipapp", "deb"])
    parser.add_argument("--wheel", type=Path, help="the wheel that it is made of")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "dist", help="a directory")
    parser.add_argument("--python", action="append", help="of the zipapp: only for this Python; may be repeated")
    parser.add_argument("--arch", default=platform.machine(), choices=sorted(_DEBIAN))
    asked = parser.parse_args()
    if asked.what == "lock":
        return lock()
    pythons = tuple(asked.python or PYTHONS)
    version = asked.wheel.name.split("-")[1]
    packages = tree(asked.wheel.resolve(), asked.out.resolve() / f".{asked.what}", pythons, asked.arch)
    if asked.what == "zipapp":
        zipapp(packages, asked.out.resolve() / "mlferry.pyz")
    else:
        deb(packages, asked.out.resolve() / f"mlferry_{version}-1_{_DEBIAN[asked.arch]}.deb", version, asked.arch)
    shutil.rmtree(packages.parent)


if __name__ == "__main__":
    main()
