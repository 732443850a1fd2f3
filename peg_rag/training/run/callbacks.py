"""What a person sees of a run and how they stop it: the progress line, the log, and Ctrl-C that loses nothing."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm.auto import tqdm

from peg_rag.training.loss.contrastive import LossMetrics

logger = logging.getLogger(__name__)

LogObserver = Callable[[Mapping[str, float]], bool | None]
"""Is given every entry of the log, on the first rank; True ends training after the step, with a checkpoint."""

SHOWN = {
    "loss": "loss",
    "accuracy": "acc",
    "t": "t",
    "hard_share": "hard",
    "pairs_per_s": "pairs/s",
    "eval_ndcg@10": "ndcg",
}


class ProgressLine:
    """One line: steps, loss, in-batch accuracy, t, share of hard negatives, pairs a second, last validation score."""

    def __init__(self, name: str, *, steps: int, initial: int, show: bool) -> None:
        self._bar: Any = tqdm(total=steps, initial=initial, desc=name, unit="step", disable=not show)
        self._values: dict[str, str] = {}

    def advance(self) -> None:
        self._bar.update()

    def show(self, entry: Mapping[str, float]) -> None:
        self._values |= {label: f"{entry[key]:.4g}" for key, label in SHOWN.items() if key in entry}
        self._bar.set_postfix(self._values)

    def close(self) -> None:
        self._bar.close()


class StepMeter:
    """Means over the steps since the last entry of the log."""

    def __init__(self) -> None:
        self._metrics: list[LossMetrics] = []
        self._pairs = 0
        self._since = time.perf_counter()

    def add(self, metrics: LossMetrics, pairs: int) -> None:
        self._metrics.append(metrics)
        self._pairs += pairs

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is no time of training."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """The means, and a fresh start."""
        now = time.perf_counter()
        count = len(self._metrics)
        names = ("loss", "accuracy", "hard_share", "masked_share", "positive_similarity")
        values = {name: sum(getattr(metrics, name) for metrics in self._metrics) / count for name in names}
        values |= {"t": self._metrics[-1].t, "temperature": self._metrics[-1].temperature}
        values["pairs_per_s"] = self._pairs / (now - self._since)
        self._metrics = []
        self._pairs = 0
        self._since = now
        return values


class Interruption:
    """The first SIGINT or SIGTERM asks for an end after the step, with a checkpoint; the second ends at once."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the two signals over while inside (in the main thread; elsewhere they cannot be)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.signal(kind, self._handle_signal) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        logger.warning("stopping after this step, with a checkpoint; once more to stop at once and keep the last one")
