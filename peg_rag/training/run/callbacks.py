"""What a person sees of a run and how they stop it: the progress line, and Ctrl-C that loses nothing."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

SHOWN = {
    "loss": "loss",
    "accuracy": "acc",
    "t": "t",
    "hard_share": "hard",
    "pairs_per_s": "pairs/s",
    "eval_ndcg@10": "ndcg",
}


class Progress(TrainerCallback):
    """One line: steps, loss, in-batch accuracy, t, share of hard negatives, pairs a second, last validation score."""

    def __init__(self, name: str, show: bool) -> None:
        self._name, self._show = name, show
        self._bar: Any = None
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        hidden = not (self._show and state.is_world_process_zero)
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self._name, unit="step", disable=hidden)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        self._shown |= {name: f"{logs[key]:.4g}" for key, name in SHOWN.items() if logs and key in logs}
        if self._bar is not None:
            self._bar.set_postfix(self._shown)
        if state.is_world_process_zero and logs:
            logger.info("%s, step %d: %s", self._name, state.global_step, logs)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.close()


class Interruption(TrainerCallback):
    """The first SIGINT or SIGTERM on any rank ends training after the step, with a checkpoint; a second at once."""

    def __init__(self) -> None:
        self.happened = False
        self._asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the two signals over while inside (in the main thread; elsewhere they cannot be)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.signal(kind, self._ask) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        logger.warning("stopping after this step, with a checkpoint; once more to stop at once and keep the last one")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._anywhere(args) and state.global_step < state.max_steps:
            self.happened = control.should_save = control.should_training_stop = True

    def _anywhere(self, args: TrainingArguments) -> bool:
        if not (dist.is_available() and dist.is_initialized()):
            return self._asked
        flag = torch.tensor(float(self._asked), device=args.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag > 0)
