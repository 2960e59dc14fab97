"""Files for images that come as bytes, named by their content, so that references to them stay small.

They are in `images/` of `SPARK_RL_CACHE` (an environment variable; `~/.cache/spark-rl` if it is not set). A file there
was decoded before it was written, and is written whole or not at all; what is no longer needed may be removed.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from spark_rl.images.decode import ImageError, decoded, suffix_of


def keep(data: bytes, sha256: str) -> Path:
    """The file of an image that is in memory, written unless it is there.

    Raises:
        ImageError: it cannot be used (the reason alone), or not be written.
    """
    path = cache_folder() / "images" / sha256[:2] / f"{sha256}.{suffix_of(data)}"
    try:
        if path.is_file() and path.stat().st_size == len(data):
            return path
        decoded(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, data)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ImageError(f"cannot be kept in {path.parent} ({reason}); set SPARK_RL_CACHE to another folder") from None
    return path


def cache_folder() -> Path:
    """Absolute, since processes may start elsewhere."""
    return Path(os.environ.get("SPARK_RL_CACHE") or "~/.cache/spark-rl").expanduser().absolute()


def _write(path: Path, data: bytes) -> None:
    """Other processes see the whole file or none."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
