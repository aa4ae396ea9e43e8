"""What becomes an artifact: files, texts, dictionaries, figures. Owns how each turns into bytes; stores nothing.

Whatever needs a third-party library imports it when called, and only then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlferry.errors import BadArtifact

__all__ = ["dictionary_bytes", "figure_writer", "files_below"]


def files_below(directory: Path) -> Iterator[tuple[Path, str]]:
    """Every file below a directory with its path there, ``/`` between parts, in a stable order; links are followed.

    Raises BadArtifact: it is no directory.
    """
    if not directory.is_dir():
        raise BadArtifact(f"{directory} is not a directory")
    for parent, children, names in os.walk(directory, followlinks=False):
        children.sort()
        for name in sorted(names):
            path = Path(parent, name)
            yield path, path.relative_to(directory).as_posix()


def dictionary_bytes(dictionary: Any, artifact_file: str) -> bytes:
    """A dictionary or list as MLflow writes it: YAML for ``.yml`` and ``.yaml``, else JSON with ``str`` for the rest."""
    if Path(artifact_file).suffix in (".yml", ".yaml"):
        import yaml  # type: ignore[import-untyped,unused-ignore]

        return str(yaml.dump(dictionary, indent=2, default_flow_style=False)).encode()
    import json

    return json.dumps(dictionary, indent=2, default=str).encode()


def figure_writer(figure: Any, artifact_file: str, save_kwargs: dict[str, Any] | None) -> Callable[[str], None]:
    """How to save a matplotlib or plotly figure at a path, as MLflow saves it.

    Raises BadArtifact: it is neither, or plotly cannot write such a file.
    """
    options = dict(save_kwargs or {})
    if "matplotlib" in sys.modules and hasattr(figure, "savefig"):
        return lambda path: figure.savefig(path, **options)
    if not (hasattr(figure, "write_html") and hasattr(figure, "write_image")):
        raise BadArtifact(f"a matplotlib or plotly figure is expected, not {type(figure).__name__}")
    suffix = Path(artifact_file).suffix
    if suffix == ".html":
        options = {"include_plotlyjs": "cdn", "auto_open": False, **options}
        return lambda path: figure.write_html(path, **options)
    if suffix not in (".png", ".jpeg", ".webp", ".svg", ".pdf"):
        raise BadArtifact(f"plotly writes no {suffix or 'file without a suffix'}")
    return lambda path: figure.write_image(path, **options)
