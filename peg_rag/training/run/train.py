"""Runs a recipe: stage by stage, on `transformers.Trainer`, with the cached step in the place of its training step.

Why this exists: Trainer brings logging, callbacks, trackers, distributed set-up and optimisers that everybody knows;
a contrastive step over 80,000 candidates is one thing it cannot do, and a checkpoint that resumes to the very same
bits is another. Only those are overridden here: what a step is, which batches there are, and what a checkpoint holds.

A checkpoint is written beside its place and renamed when it is whole, so a killed run never leaves half of one. It
holds the model (a folder that opens as it is), optimiser, schedule, random generators of every rank, and the state of
the step; the data need no state, for batches are a function of the step's number. Costs three times the weights on
disk for each checkpoint kept.
"""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils.logging import disable_progress_bar as hide_bars_of_saving

from peg_rag.errors import DataError, MissingExtra, TrainingError
from peg_rag.files import write_atomically
from peg_rag.training.data.batches import FeatureRows, RankBatch, StepBatches
from peg_rag.training.data.pairs import PairFile, load_pairs
from peg_rag.training.data.sampler import BatchPlan
from peg_rag.training.loss.contrastive import LossMetrics
from peg_rag.training.loss.cosent import CosentObjective
from peg_rag.training.loss.objective import ContrastiveObjective, Objective
from peg_rag.training.loss.tiles import Tile
from peg_rag.training.model.encoder import TrainableEncoder, build_encoder, load_encoder
from peg_rag.training.recipe import ModelOptions, Recipe, StageOptions, expand_path
from peg_rag.training.run.callbacks import Interruption, Progress
from peg_rag.training.run.checkpoint import DONE_FILE, RECIPE_FILE, STATE_FILE, last_checkpoint, read_json, sync_folder
from peg_rag.training.run.grad_cache import CachedStep, StepBatch
from peg_rag.training.run.model_card import CardFacts, write_card
from peg_rag.training.run.validation import (
    InTraining,
    Split,
    graded_scores,
    graded_validation,
    retrieval_scores,
    retrieval_validation,
    split_rows,
    training_sources,
)

logger = logging.getLogger(__name__)
STATIC_CHUNK_TOKENS = 4_194_304  # a static model has no activations; its dense gradient costs the same for any chunk
DDP_TIMEOUT_S = 7_200  # ranks wait while one prepares data or evaluates
_HARMLESS = ("output_dir", "cache_dir", "device", "data_workers", "logging", "checkpoints", "evaluation")


@dataclass(frozen=True)
class StageResult:
    """How a stage ended: optimiser steps taken and the last scores, such as `ndcg@10`."""

    name: str
    steps: int
    scores: dict[str, float]


@dataclass(frozen=True)
class TrainingResult:
    """What `train` leaves: the model folder, and whether it was interrupted (then `resume` goes on)."""

    folder: Path
    stages: list[StageResult]
    interrupted: bool = False


@dataclass
class _Stage:
    """A stage with its data at hand."""

    options: StageOptions
    folder: Path
    files: list[PairFile]
    split: Split
    batches: StepBatches
    scores: dict[str, float] = field(default_factory=dict)


def train(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, show_progress: bool = False
) -> TrainingResult:
    """Run all stages and write the model to `output_dir`, which `PEGEncoder` and `SentenceTransformer` then open.

    Under `torchrun` every rank calls this with the same recipe.

    Args:
        resume: go on from the last checkpoint, to the same bits as a run that never stopped.
        overwrite: remove an earlier run in `output_dir` first.

    Ctrl-C (or SIGTERM) finishes the step, saves a checkpoint and returns with `interrupted`; a second stops at once.

    Raises:
        RecipeError, DataError, ModelNotAvailable: something the recipe names cannot be used.
        TrainingError: the loss is no number, the disk is full, or `output_dir` holds another run.
    """
    return _Run(recipe, show_progress).all(resume, overwrite)


class _Run:
    """One call of `train`."""

    def __init__(self, recipe: Recipe, show_progress: bool) -> None:
        self.recipe, self.show_progress = recipe, show_progress
        self.folder = expand_path(recipe.output_dir)
        self.cache = expand_path(recipe.cache_dir)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def all(self, resume: bool, overwrite: bool) -> TrainingResult:
        hide_bars_of_saving()  # type: ignore[no-untyped-call]
        self._check_trackers()
        self._check_beir()
        self._prepare_folder(resume, overwrite)
        encoder: TrainableEncoder | None = None
        results: list[StageResult] = []
        facts: list[CardFacts] = []
        for number, options in enumerate(self.recipe.stages):
            folder = self._stage_folder(number)
            if (done := read_json(folder / DONE_FILE)) is not None:
                results.append(StageResult(options.name, options.steps, done["scores"]))
                facts.append(CardFacts(**done["facts"]))
                encoder = None
                continue
            checkpoint = last_checkpoint(folder) if resume else None
            origin = checkpoint or (self._stage_folder(number - 1) / "model" if number else None)
            encoder = self._encoder(origin) if encoder is None or checkpoint else encoder
            stage, trainer = self._trainer(number, encoder)
            steps, interrupted = trainer.run(checkpoint)
            if interrupted:
                return TrainingResult(self.folder, [*results, StageResult(options.name, steps, stage.scores)], True)
            results.append(StageResult(options.name, steps, stage.scores))
            facts.append(CardFacts.of(options, stage.files, stage.split.training, stage.scores, steps))
            if self.rank == 0:
                self._finish_stage(stage, encoder, facts[-1])
            _barrier()
        if self.rank == 0:
            last = self._stage_folder(len(results) - 1) / "model"
            self._finish(encoder or load_encoder(ModelOptions(path=str(last))), facts)
        _barrier()
        return TrainingResult(self.folder, results)

    def _check_trackers(self) -> None:
        """Trainer would look for them only when all data are read."""
        for name in self.recipe.logging.report_to:
            spec = find_spec(name)
            if spec is None or spec.origin is None:  # the latter: a folder `wandb` of earlier runs
                raise MissingExtra(f"logging.report_to: {name} is not installed. Install it with: pip install {name}")

    def _check_beir(self) -> None:
        """A folder that is not there should be known now and not after the first thousand steps."""
        for i, folder in enumerate(self.recipe.evaluation.beir):
            if not expand_path(folder).is_dir():
                raise DataError(f"evaluation.beir[{i}]: {folder} is not there; a folder in BEIR's form is expected")

    def _prepare_folder(self, resume: bool, overwrite: bool) -> None:
        """Refuse to mix two runs; write the recipe down."""
        file = self.folder / RECIPE_FILE
        if self.rank:
            return
        if overwrite and file.is_file():
            shutil.rmtree(self.folder)
        if file.is_file():
            if not resume:
                raise TrainingError(
                    f"{self.folder} already holds a run; go on with it (--resume), replace it (--overwrite), "
                    "or name another output_dir"
                )
            _check_same(Recipe.load(file), self.recipe, file)
        write_atomically(file, self.recipe.dump().encode())

    def _encoder(self, origin: Path | None) -> TrainableEncoder:
        """The model a checkpoint or an earlier stage left, or what the recipe starts from."""
        set_seed(self.recipe.seed)
        if origin is not None:
            encoder = load_encoder(ModelOptions(path=str(origin)))
        else:
            with self._arguments(0).main_process_first(local=False, desc="learn the vocabulary"):
                encoder = build_encoder(self.recipe.model, self.recipe.stages[0].data.sources, self.cache)
        if self.recipe.compile and encoder.kind == "transformer":
            encoder.body.compile(dynamic=True)
        return encoder

    def _arguments(self, number: int) -> TrainingArguments:
        return training_arguments(self.recipe, self.recipe.stages[number], self._stage_folder(number))

    def _stage_folder(self, number: int) -> Path:
        return self.folder / "stages" / f"{number + 1}-{self.recipe.stages[number].name}"

    def _trainer(self, number: int, encoder: TrainableEncoder) -> tuple[_Stage, "ContrastiveTrainer"]:
        options, folder = self.recipe.stages[number], self._stage_folder(number)
        arguments = self._arguments(number)
        with arguments.main_process_first(local=False, desc="prepare the data"):
            files = load_pairs(
                options.data.sources,
                encoder.tokenizer,
                self.cache,
                prompts=encoder.prompts,
                maximum_bad_share=options.data.maximum_bad_share,
                path=f"stages.{options.name}.data.sources",
                show_progress=self.show_progress,
            )
        split = split_rows(files, self.recipe.validation)
        plan = BatchPlan(
            training_sources(files, split.training),
            batch=options.batch.queries,
            steps=options.steps,
            alpha=options.data.alpha,
            mixing=options.data.mixing,
            seed=self.recipe.seed,
            distinct=options.objective == "contrastive",
        )
        batches = StepBatches(
            files,
            split.training,
            plan,
            steps=options.steps,
            negatives=options.batch.negatives,
            rank=self.rank,
            world=self.world,
            seed=self.recipe.seed,
            with_answers=bool(options.loss.candidates),
        )
        stage = _Stage(options, folder, files, split, batches)
        return stage, ContrastiveTrainer(self.recipe, stage, encoder, arguments, self.show_progress)

    def _finish_stage(self, stage: _Stage, encoder: TrainableEncoder, facts: CardFacts) -> None:
        encoder.save(stage.folder / "model")
        done = {"scores": stage.scores, "facts": vars(facts)}
        write_atomically(stage.folder / DONE_FILE, json.dumps(done, ensure_ascii=False, indent=2).encode())

    def _finish(self, encoder: TrainableEncoder, facts: list[CardFacts]) -> None:
        """The last stage's model, and the card that says how it was made, in the run's own folder."""
        encoder.save(self.folder, torch.float16 if self.recipe.stored_as == "fp16" else torch.float32)
        write_card(self.folder, self.recipe, encoder, facts)


class ContrastiveTrainer(Trainer):
    """`Trainer` with the cached step. One step is one batch: there is no gradient accumulation outside of it."""

    def __init__(
        self,
        recipe: Recipe,
        stage: _Stage,
        encoder: TrainableEncoder,
        arguments: TrainingArguments,
        show_progress: bool,
    ) -> None:
        self._recipe, self._stage, self._encoder = recipe, stage, encoder
        self._interruption = Interruption()
        self._objective = build_objective(stage.options)
        self._step: CachedStep | None = None
        self._staging: Path | None = None
        self._batch: RankBatch | None = None
        self._metrics: list[LossMetrics] = []
        self._pairs, self._since = 0, time.perf_counter()
        self._validation: Any = None
        self._scored_at = -1
        progress = Progress(stage.options.name, show_progress)
        super().__init__(
            model=encoder,
            args=arguments,
            train_dataset=stage.batches,
            eval_dataset=[],
            data_collator=_only,
            callbacks=[progress, self._interruption],
        )
        for unwanted in ("PrinterCallback", "ProgressCallback"):
            for callback in [c for c in self.callback_handler.callbacks if type(c).__name__ == unwanted]:
                self.remove_callback(callback)

    def run(self, checkpoint: Path | None) -> tuple[int, bool]:
        """Train to the end of the stage, or until interrupted → (steps, interrupted)."""
        shutil.rmtree(self._staging_folder, ignore_errors=True)
        set_seed(self._recipe.seed)
        with self._interruption.listening():
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not self._interruption.happened and self._scored_at != self.state.global_step:
            self.evaluate()
        if self.is_world_process_zero():
            self.state.save_to_json(str(self._stage.folder / "history.json"))
        return self.state.global_step, self._interruption.happened

    # ---- what a step is

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Every rank reads its own share, so nothing is left for accelerate to split."""
        return DataLoader(
            self._stage.batches,
            batch_size=1,
            shuffle=False,
            collate_fn=_only,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=False,
        )

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Gradients of the whole batch, by the cached step."""
        model.train()
        batch: RankBatch = inputs["batch"]
        self._batch = batch
        assert self._step is not None
        try:
            with self.accelerator.autocast():
                metrics = self._step(
                    self._step_batch(batch), progress=self.state.global_step / self._stage.options.steps
                )
        except TrainingError as error:
            raise self._broken(str(error)) from error
        if not math.isfinite(metrics.loss):
            raise self._broken(f"the loss is {metrics.loss}")
        self._metrics.append(metrics)
        self._pairs += len(batch.queries) * self.args.world_size
        return torch.tensor(metrics.loss, device=self.args.device)

    def _step_batch(self, batch: RankBatch) -> StepBatch:
        device, pad = self.args.device, self._encoder.pad_id
        graded = self._stage.options.objective == "cosent"
        labels = torch.from_numpy(batch.grades).to(device) if graded else batch.pairs(device)
        return StepBatch(FeatureRows(batch.queries, pad, device), FeatureRows(batch.documents, pad, device), labels)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        if not math.isfinite(float(norm)):
            raise self._broken(f"the gradient's norm is {float(norm)}")
        return norm

    def _broken(self, reason: str) -> TrainingError:
        """Put the batch on disk for inspection, and say where what was done so far lies."""
        assert self._batch is not None
        name = f"bad-batch-step-{self.state.global_step}-rank-{self.args.process_index}.jsonl"
        file = self._stage.folder / name
        lines = [json.dumps(row, ensure_ascii=False) for row in self._stage.batches.texts(self._batch)]
        write_atomically(file, "\n".join(lines).encode())
        last = last_checkpoint(self._stage.folder)
        saved = f"the last checkpoint is {last}" if last else "no checkpoint was written yet"
        return TrainingError(
            f"step {self.state.global_step} of stage {self._stage.options.name}: {reason}. The batch is in {file}; "
            f"{saved}. Lower the learning rate, raise the temperature, clip gradients (max_grad_norm), or take "
            "out what is odd in that batch, then resume"
        )

    # ---- optimiser, log, evaluation

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        prepared = super()._prepare_for_training(  # type: ignore[no-untyped-call]
            max_steps, train_dataloader, resume_from_checkpoint
        )
        memory = self._stage.options.memory
        self._step = CachedStep(
            self.model_wrapped,
            self._objective,
            batch_tokens=memory.chunk_tokens or (STATIC_CHUNK_TOKENS if self._encoder.kind == "static" else None),
            graphs=memory.graphs,
            device=self.args.device,
        )
        if resume_from_checkpoint is not None:
            self._load_step_state(Path(resume_from_checkpoint))
        self._since = time.perf_counter()
        return prepared

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the steps since the last log reported."""
        if "loss" in logs and self._metrics:
            now = time.perf_counter()
            last, count = self._metrics[-1], len(self._metrics)
            logs["accuracy"] = sum(m.accuracy for m in self._metrics) / count
            logs["hard_share"] = sum(m.hard_share for m in self._metrics) / count
            logs["masked_share"] = sum(m.masked_share for m in self._metrics) / count
            logs["positive_similarity"] = sum(m.positive_similarity for m in self._metrics) / count
            logs |= {"t": last.t, "temperature": last.temperature, "pairs_per_s": self._pairs / (now - self._since)}
            self._metrics, self._pairs, self._since = [], 0, now
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Scores on the validation split and on the recipe's BEIR folders; computed by one rank while others wait."""
        started = time.perf_counter()
        scores = self._scores() if self.is_world_process_zero() else {}
        _barrier()
        metrics = {f"eval_{name}": value for name, value in scores.items()}
        self._since += time.perf_counter() - started  # pairs/s is of training alone
        if metrics:
            self._stage.scores.update(scores)
            self.log(dict(metrics))
        self._scored_at = self.state.global_step
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _scores(self) -> dict[str, float]:
        from peg_rag.evaluation import evaluate, load_beir

        stage, encoder = self._stage, InTraining(self._encoder, self.accelerator.autocast)
        scores: dict[str, float] = {}
        if stage.options.objective == "cosent":
            pairs = graded_validation(stage.files, stage.split)
            scores |= graded_scores(encoder, pairs) if pairs else {}
        else:
            if self._validation is None:
                self._validation = retrieval_validation(stage.files, stage.split, self._recipe.validation.distractors)
            scores |= retrieval_scores(encoder, self._validation, stage.files) if self._validation else {}
        for folder in self._recipe.evaluation.beir:
            dataset = load_beir(expand_path(folder))
            scores[f"{dataset.name}_ndcg@10"] = evaluate(encoder, dataset, k=100).mean()
        return scores

    # ---- what a checkpoint is

    @property
    def _staging_folder(self) -> Path:
        return self._stage.folder / ".saving"

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write beside, rename when whole, then remove the oldest."""
        self._staging = self._staging_folder
        try:
            super()._save_checkpoint(model, trial)
            _barrier()
            if self.is_world_process_zero():
                for written in self._staging.iterdir():
                    sync_folder(written)
                    written.rename(self._stage.folder / written.name)
                self._staging.rmdir()
        except Exception as error:
            shutil.rmtree(self._staging, ignore_errors=True)
            last = last_checkpoint(self._stage.folder)
            raise TrainingError(
                f"the checkpoint of step {self.state.global_step} cannot be written to {self._stage.folder} ({error}); "
                f"the last whole one is {last or 'none'}. Free space there, then resume"
            ) from error
        finally:
            self._staging = None
        if self.is_world_process_zero():
            rotate_checkpoints(output_dir=str(self._stage.folder), save_total_limit=self.args.save_total_limit)
            if self.args.push_to_hub:
                super()._push_from_checkpoint(str(self._stage.folder / f"checkpoint-{self.state.global_step}"))
        _barrier()

    def init_hf_repo(self, *args: Any, **options: Any) -> None:
        """Make sure of the hub before the first step."""
        try:
            super().init_hf_repo(*args, **options)
        except Exception as error:
            raise TrainingError(
                f"logging.push_to_hub: {self.args.hub_model_id} cannot be opened on the hub ({error}). "
                "Log in with `hf auth login` or HF_TOKEN, or leave push_to_hub out"
            ) from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Called while the checkpoint is still in the staging folder; pushed from its own place instead."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            self._encoder.save(Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._encoder.load_weights(Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._step is not None:
            state = {"step": self._step.state_dict()}
            write_atomically(Path(output_dir) / STATE_FILE, json.dumps(state).encode())

    def _load_step_state(self, checkpoint: Path) -> None:
        state = read_json(checkpoint / STATE_FILE)
        if state is None:
            raise TrainingError(f"{checkpoint} has no {STATE_FILE}; resume from a checkpoint that peg-rag train wrote")
        assert self._step is not None
        self._step.load_state_dict(state["step"])


def build_objective(options: StageOptions) -> Objective:
    """The loss a stage asks for."""
    if options.objective == "cosent":
        return CosentObjective(1.0 / options.loss.temperature)
    rows = options.memory.loss_tile
    tile = Tile(rows=rows, columns=4 * rows, keep=False) if rows else None
    sources = [source.build(options.steps) for source in options.loss.candidates]
    return ContrastiveObjective(options.loss, sources=sources, tile=tile)


def training_arguments(recipe: Recipe, options: StageOptions, folder: Path) -> TrainingArguments:
    """The recipe in Trainer's words."""
    optimizer, save, evaluate = options.optimizer, recipe.checkpoints, recipe.evaluation
    world = int(os.environ.get("WORLD_SIZE", 1))
    cpu = recipe.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    schedules = {"constant": "constant_with_warmup"}
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=options.steps,
        per_device_train_batch_size=max(1, options.batch.queries // world),
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type=schedules.get(optimizer.schedule, optimizer.schedule),
        warmup_steps=optimizer.warmup_steps,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.epsilon,
        max_grad_norm=optimizer.max_grad_norm or 0.0,
        bf16=recipe.precision == "bf16",
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and world > 1 else None,
        ddp_timeout=DDP_TIMEOUT_S,
        ddp_find_unused_parameters=False,
        seed=recipe.seed,
        logging_steps=recipe.logging.every_steps,
        logging_nan_inf_filter=False,
        report_to=list(recipe.logging.report_to) or "none",
        save_strategy="steps" if save.every_steps else "no",
        save_steps=save.every_steps or options.steps,
        save_total_limit=save.keep,
        eval_strategy="steps" if evaluate.every_steps else "no",
        eval_steps=evaluate.every_steps,
        eval_on_start=evaluate.at_start,
        push_to_hub=recipe.logging.push_to_hub is not None,
        hub_model_id=recipe.logging.push_to_hub,
        dataloader_num_workers=recipe.data_workers,
        remove_unused_columns=False,
        disable_tqdm=True,
        log_level="warning",
    )


def _check_same(saved: Recipe, asked: Recipe, file: Path) -> None:
    old, new = (r.model_dump(exclude=set(_HARMLESS)) for r in (saved, asked))
    for path, (before, now) in _differences(old, new):
        raise TrainingError(
            f"{file} was made with {path} = {before!r}, and now it is {now!r}; a run can only go on as it began. "
            "Set it back, or name another output_dir"
        )


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old:
            yield from _differences(old[key], new.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        for i, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, now, f"{path}[{i}]")
    elif old != new:
        yield path, (old, new)


def _only(items: Sequence[Any]) -> Any:
    return {"batch": items[0]}


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
