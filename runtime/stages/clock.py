"""Where the time of a request goes. Clocks are read here and nowhere else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from tintype.engine import peak_rss_bytes
from tintype.events import Timings


class StageClock:
    """Seconds by stage. Opening graphs counts as loading, not as the stage that waited for it."""

    def __init__(self, load_seconds: Callable[[], float]) -> None:
        """load_seconds: how long opening graphs took the run until now."""
        self.steps = 0
        self.graph_seconds = 0.0  # of denoising, inside the graph
        self.device_bytes = 0  # the most that a device's own memory held
        self._seconds = {"encode": 0.0, "denoise": 0.0, "decode": 0.0}
        self._load_seconds = load_seconds
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def counting(self, stage: str) -> Iterator[None]:
        started, loaded = time.perf_counter(), self._load_seconds()
        try:
            yield
        finally:
            loading = self._load_seconds() - loaded
            self._seconds[stage] += time.perf_counter() - started - loading

    def timings(self) -> Timings:
        denoise = self._seconds["denoise"]
        return Timings(
            load_seconds=self._load_seconds(),
            encode_seconds=self._seconds["encode"],
            denoise_seconds=denoise,
            denoise_graph_seconds=self.graph_seconds,
            decode_seconds=self._seconds["decode"],
            total_seconds=time.perf_counter() - self._started,
            steps_per_second=self.steps / denoise if denoise > 0 else 0.0,
            peak_rss_bytes=peak_rss_bytes(),
            device_bytes=self.device_bytes,
        )
