"""Counters, and their text for Prometheus (its exposition format, version 0.0.4)."""

from __future__ import annotations

import threading
from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_KINDS = {
    "requests_total": "counter",
    "request_seconds": "summary",
    "items_judged_total": "counter",
    "batch_items": "histogram",
}
_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Of the histogram of batch sizes, items."""


class Metrics:
    """Counts of requests and batches, which any thread may add to.

    Labels are routes and status codes, which need no escaping.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[str, float]] = {family: {} for family in _KINDS}

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        with self._lock:
            self._add("requests_total", f'{{route="{route}",status="{status}"}}', 1)
            self._add("request_seconds", f'_sum{{route="{route}"}}', seconds)
            self._add("request_seconds", f'_count{{route="{route}"}}', 1)

    def batch(self, num_items: int) -> None:
        """Count a batch, and its items as judged."""
        with self._lock:
            self._add("items_judged_total", "", num_items)
            for bound in _BOUNDS:
                self._add("batch_items", f'_bucket{{le="{bound}"}}', num_items <= bound)
            self._add("batch_items", '_bucket{le="+Inf"}', 1)
            self._add("batch_items", "_sum", num_items)
            self._add("batch_items", "_count", 1)

    def _add(self, family: str, suffix: str, value: float) -> None:
        self._values[family][suffix] = self._values[family].get(suffix, 0) + value

    def text(self, gauges: Mapping[str, float]) -> str:
        """All figures, and these of the moment."""
        lines = []
        with self._lock:
            for family, kind in _KINDS.items():
                lines.append(f"# TYPE spark_rl_{family} {kind}")
                lines += [f"spark_rl_{family}{suffix} {value:.12g}" for suffix, value in self._values[family].items()]
        for name, value in gauges.items():
            lines += [f"# TYPE spark_rl_{name} gauge", f"spark_rl_{name} {value:.12g}"]
        return "\n".join(lines) + "\n"
