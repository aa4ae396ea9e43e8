"""Compiles the spool's hot path into the wheel, where there is a C compiler; without one the wheel is pure Python.

One build serves every CPython from 3.10 on (the stable ABI), but for free-threaded ones, which have no such. An editable
install gets it beside its source. ``MLFERRY_PURE_PYTHON=1`` leaves it out.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PACKAGE = Path("spool", "mlferry_spool")
_MODULE = "mlferry_spool._appender"


class CompiledAppender(BuildHookInterface):  # type: ignore[type-arg]
    """Adds ``mlferry_spool._appender`` to a wheel."""

    _scratch: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not _is_wanted():
            return
        self._scratch = tempfile.TemporaryDirectory()
        into = _PACKAGE.parent if version == "editable" else Path(self._scratch.name)
        try:
            compiled = compile_into(Path(self.root), into)
        except Exception as error:  # whatever a compiler or its lack comes to
            self.app.display_warning(f"mlferry: its hot path was not compiled, and is in Python: {error}")
            return
        if version != "editable":
            build_data["force_include"][str(compiled)] = f"mlferry_spool/{compiled.name}"
            build_data["pure_python"] = False
            build_data["tag"] = f"cp310-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()


def _is_wanted() -> bool:
    is_off = os.environ.get("MLFERRY_PURE_PYTHON", "").lower() in ("true", "1")
    return sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED") and not is_off


def compile_into(root: Path, into: Path) -> Path:
    """Compile the module into a folder, below its package. Returns the file; raises what setuptools does."""
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    source = root / _PACKAGE
    sources = [str(source / "_appender.c")]
    extension = Extension(_MODULE, sources, py_limited_api=True, extra_compile_args=["-g0"])
    command = build_ext(Distribution({"name": "mlferry", "ext_modules": [extension]}))
    command.build_lib, command.force = str(root / into), True
    with tempfile.TemporaryDirectory() as objects:
        command.build_temp = objects
        command.ensure_finalized()
        command.run()
    return Path(command.get_ext_fullpath(_MODULE))
