"""Images -> PIL images and the names that MLflow's UI looks for. Owns both rules; stores nothing.

Follows ``mlflow.tracking.client.log_image`` and ``mlflow.tracking.multimedia`` 3.17.2. numpy and Pillow are imported only
when an image is logged.
"""

from __future__ import annotations

import re
from typing import Any

from mlferry.errors import BadArtifact
from mlferry.limits import THUMBNAIL_PIXELS

__all__ = ["is_image", "stepped_name", "thumbnail", "to_pil"]

_KEY = re.compile(r"[a-zA-Z0-9_\-./ ]+")


def is_image(value: Any) -> bool:
    """Whether this looks like a PIL image (or mlflow.Image), as MLflow decides it in tables."""
    return (
        callable(getattr(value, "save", None)) and callable(getattr(value, "resize", None)) and hasattr(value, "size")
    )


def stepped_name(key: str, step: int, timestamp: int, unique: str) -> str:
    """The artifact of an image of a step, without suffix: ``+`` between the parts, ``~`` for the slashes of the key.

    Raises BadArtifact: the key has other characters than MLflow takes for an image.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise BadArtifact(f"an image's key holds letters, digits, spaces and _ - . / only: {key!r:.100}")
    return f"images/{key.replace('/', '~')}+step+{step}+timestamp+{timestamp}+{unique}"


def thumbnail(image: Any) -> Any:
    """A copy whose longer side has 256 pixels, as MLflow makes it."""
    width, height = image.size
    if width > height:
        return image.resize((THUMBNAIL_PIXELS, int(height * (THUMBNAIL_PIXELS / width))))
    return image.resize((int(width * (THUMBNAIL_PIXELS / height)), THUMBNAIL_PIXELS))


def to_pil(image: Any) -> Any:
    """A PIL image of a PIL image, mlflow.Image, numpy array (H x W, H x W x 1, 3 or 4) or torch tensor (also C x H x W).

    Raises BadArtifact: it is none of these, or its values are no pixels.
    """
    if hasattr(image, "to_pil"):
        return image.to_pil()
    if hasattr(image, "detach"):
        image = _channels_last(image.detach().cpu().numpy())
    if hasattr(image, "__array_interface__") and hasattr(image, "dtype"):
        return _from_array(image)
    if is_image(image):
        return image
    raise BadArtifact(f"an image is expected (numpy array, PIL image, tensor), not {type(image).__name__}")


def _channels_last(array: Any) -> Any:
    """torch keeps channels first; an array that can only be meant that way is turned."""
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        return array.transpose(1, 2, 0)
    return array


def _from_array(array: Any) -> Any:
    from PIL import Image

    if array.dtype.kind not in "biuf":
        raise BadArtifact(f"pixels are bool, integer or floating, not {array.dtype}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise BadArtifact(f"an image has shape H x W, or H x W x 1, 3 or 4, not {array.shape}")
    flat = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return Image.fromarray(_as_bytes(flat))


def _as_bytes(array: Any) -> Any:
    """0..255 as uint8: integers as they are; floats and bools times 255, stretched to 0..1 before if they are outside."""
    whole = array.dtype.kind in "iu"
    low, high = array.min(), array.max()
    if whole and (low < 0 or high > 255):
        raise BadArtifact(f"integer pixels lie between 0 and 255, these between {low} and {high}")
    if not whole and (low < 0 or high > 1):
        array = (array - low) / (high - low)
    return (array if whole else array * 255).astype("uint8")
