"""Images from addresses, for those who allow it: bounded in size and in time."""

from __future__ import annotations

import http.client
import time
import urllib.request

from spark_rl.images.decode import ImageError

SECONDS = 20.0
"""Time for one image, from the name's look-up to the last byte."""


def fetch(url: str, max_bytes: int) -> bytes:
    """What is at an http(s) address; one byte more than `max_bytes` are enough to refuse it.

    Raises:
        ImageError: nothing is, or not in time; the reason alone.
    """
    end = time.monotonic() + SECONDS
    data = bytearray()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "spark-rl"})
        with urllib.request.urlopen(request, timeout=SECONDS) as reply:
            while len(data) <= max_bytes and (piece := reply.read1(2**16)):
                data += piece
                if time.monotonic() > end:
                    raise TimeoutError(f"not whole after {SECONDS:.0f} s")
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ImageError(f"cannot be fetched ({reason}); check the address, or give a file") from None
    return bytes(data)
