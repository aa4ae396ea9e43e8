"""Content first, then the record that names it. Owns the order; decides neither names nor formats.

When a method returns, the content is complete in the run's blobs, so a source may vanish or change right after.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from mlferry import artifacts
from mlferry.errors import MlferryError
from mlferry.guard import explained
from mlferry.validation import artifact_path
from mlferry_spool.blobs import Blob, Blobs
from mlferry_spool.records import Artifact, BlobRef, Record

__all__ = ["Keeper"]


class Keeper:
    """Puts artifacts into one run.

    Args:
        put: writes a record.
        refuse: takes the error of one file among many, while the others go on.

    Its methods raise BadArtifactPath, and OSError where the source or the disk is unwell.
    """

    def __init__(self, blobs: Blobs, put: Callable[[Record], Any], refuse: Callable[[MlferryError], None]) -> None:
        self._blobs, self._put, self._refuse = blobs, put, refuse

    def file(self, source: Path, *parts: str | None) -> None:
        """A file, under the path that the parts make."""
        path = artifact_path(*parts)
        self._name(path, self._blobs.put_file(source))

    def files(self, directory: Path, below: str | None) -> None:
        """Everything in a directory, under the same names below ``below``."""
        for path, name in artifacts.files_below(directory):
            try:
                self.file(path, below, name)
            except (OSError, MlferryError) as error:
                self._refuse(explained(error))

    def opened(self, artifact_file: str) -> AbstractContextManager[IO[bytes]]:
        """A file to write to, in the spool from its first byte; what the disk does to it is refused, not raised."""
        from mlferry.opened import written

        return written(self._blobs, artifact_file, self._name, self._refuse)

    def content(self, artifact_file: str, content: bytes) -> None:
        """Bytes, under a path."""
        path = artifact_path(artifact_file)
        self._name(path, self._blobs.put_bytes(content))

    def rendered(self, artifact_file: str, save: Callable[[str], Any]) -> None:
        """What ``save`` writes into a temporary file of the artifact's own name (libraries read the format off it)."""
        import tempfile  # with all that it brings, only for those who log figures or images

        path = artifact_path(artifact_file)
        with tempfile.TemporaryDirectory(prefix="mlferry-") as directory:
            temporary = Path(directory, Path(path).name)
            save(str(temporary))
            self.file(temporary, path)

    def image(self, image: Any, artifact_file: str) -> None:
        """A PIL image, in the format that the suffix names."""
        self.rendered(artifact_file, image.save)

    def cell(self, artifact_file: str, image: Any) -> dict[str, str]:
        """An image of a table: two files, and what stands in the cell for them (``MlflowClient.log_table``)."""
        import uuid

        from mlferry import images

        name = f"table_images/{artifact_file.rpartition('.')[0]}/{uuid.uuid4()}"
        pil = images.to_pil(image)
        self.image(pil, f"{name}.png")
        self.image(images.thumbnail(pil), f"{name}.webp")
        return {"type": "image", "filepath": f"{name}.png", "compressed_filepath": f"{name}.webp"}

    def text(self, text: str) -> BlobRef:
        """A text too long for a record; it is no artifact."""
        blob = self._blobs.put_bytes(text.encode())
        return BlobRef(blob.sha256, blob.size)

    def _name(self, path: str, blob: Blob) -> None:
        self._put(Artifact(time.time_ns() // 1_000_000, path, blob.sha256, blob.size))
