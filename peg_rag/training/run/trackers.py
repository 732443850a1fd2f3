"""TensorBoard and Weights & Biases, through accelerate's trackers."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from peg_rag.errors import MissingExtra
from peg_rag.training.recipe import Recipe


class Trackers:
    """Where numbers go besides the run's own log: names begin with `train/` or `eval/`."""

    def __init__(self, trackers: list[GeneralTracker]) -> None:
        self._trackers = trackers

    def log(self, values: Mapping[str, float], step: int) -> None:
        scalars = {_tracker_name(name): value for name, value in values.items()}
        for tracker in self._trackers:
            tracker.log(scalars, step=step)


def check_trackers(recipe: Recipe) -> None:
    """A tracker that is not installed should be known before the data are read.

    Raises:
        MissingExtra: one is not.
    """
    for name in recipe.logging.report_to:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # the latter: a folder `wandb` of earlier runs
            raise MissingExtra(f"logging.report_to: {name} is not installed. Install it with: pip install {name}")


@contextmanager
def open_trackers(recipe: Recipe, stage: str, folder: Path) -> Iterator[Trackers]:
    """The trackers that the recipe names, for one stage; only the first rank writes to them."""
    trackers: list[GeneralTracker] = []
    if "tensorboard" in recipe.logging.report_to:
        trackers.append(TensorBoardTracker(stage, folder / "logs"))
    if "wandb" in recipe.logging.report_to:
        project = os.environ.get("WANDB_PROJECT", "peg-rag")
        trackers.append(WandBTracker(project, name=stage, config=recipe.model_dump(mode="json")))
    for tracker in trackers:
        tracker.start()
    try:
        yield Trackers(trackers)
    finally:
        for tracker in trackers:
            tracker.finish()


def _tracker_name(name: str) -> str:
    if name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    return f"train/{name}"
