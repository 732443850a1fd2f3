"""Runs a recipe, stage by stage, with a loop that can be read from its first batch to its last checkpoint.

`accelerate` finds the devices, joins the ranks, sets the precision and speaks to trackers. What a step is
(`peg_rag.training.run.grad_cache`), which batches there are (`peg_rag.training.data`), what a checkpoint holds
(`peg_rag.training.run.checkpoint`) and the order of it all are ours: a step over 80,000 candidates and a run that
resumes to the very same bits leave no room for a general trainer's habits.
"""

import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, set_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers.utils.logging import disable_progress_bar as hide_bars_of_saving

from peg_rag.errors import TrainingError
from peg_rag.files import write_atomically
from peg_rag.training.data.batches import FeatureRows, KnownPositives, RankBatch, StepBatches
from peg_rag.training.data.corpus import TextBatch, TextBatches, TextFile, TextReader, load_texts, require_mask_token
from peg_rag.training.data.pairs import PairFile, load_pairs
from peg_rag.training.data.sampler import BatchPlan, check_sources
from peg_rag.training.data.tokens import Ints, TokenRows
from peg_rag.training.extension import BatchObserver, StageContext
from peg_rag.training.loss.collectives import Ranks
from peg_rag.training.loss.contrastive import LossMetrics
from peg_rag.training.loss.cosent import CosentObjective
from peg_rag.training.loss.objective import ContrastiveObjective, Objective
from peg_rag.training.loss.tiles import Tile
from peg_rag.training.mining.mine import MiningOptions
from peg_rag.training.model.encoder import TrainableEncoder, build_encoder, load_encoder
from peg_rag.training.model.retromae import RetroMAE
from peg_rag.training.recipe import MiningRoundOptions, ModelOptions, Recipe, StageOptions, expand_path
from peg_rag.training.run.callbacks import Interruption, LogObserver, ProgressLine, StepMeter
from peg_rag.training.run.checkpoint import Progress, TrainingState, last_checkpoint, load_checkpoint, save_checkpoint
from peg_rag.training.run.folder import HISTORY_FILE, RunFolder
from peg_rag.training.run.grad_cache import CachedStep, StepBatch
from peg_rag.training.run.hub import open_repository, push_checkpoint
from peg_rag.training.run.masked_step import MaskedStep
from peg_rag.training.run.model_card import CardFacts, write_card
from peg_rag.training.run.optimizer import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from peg_rag.training.run.rounds import Round, list_rounds, mine_round
from peg_rag.training.run.trackers import check_trackers, open_trackers
from peg_rag.training.run.validation import (
    BeirFolders,
    InTraining,
    Split,
    StageScorer,
    split_rows,
    training_sources,
)

logger = logging.getLogger(__name__)

STATIC_CHUNK_TOKENS = 4_194_304  # a static model has no activations; its dense gradient costs the same for any chunk
GROUP_TIMEOUT = timedelta(hours=2)  # ranks wait while one prepares data or evaluates


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


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
    on_log: LogObserver | None = None,
) -> TrainingResult:
    """Run all stages and write the model to `output_dir`, which `PEGEncoder` and `SentenceTransformer` then open.

    Under `torchrun` every rank calls this with the same recipe.

    Args:
        resume: go on from the last checkpoint, to the same bits as a run that never stopped.
        overwrite: remove an earlier run in `output_dir` first.
        on_log: is given each entry of the log, on the first rank: `step`, `loss`, `eval_ndcg@10` and so on. Where it
            returns True, training ends after the step as with Ctrl-C.

    Ctrl-C (or SIGTERM) finishes the step, saves a checkpoint and returns with `interrupted`; a second stops at once.

    Raises:
        RecipeError, DataError, ModelNotAvailable: something the recipe names cannot be used.
        TrainingError: NaN or infinite loss, a full disk, or `output_dir` holds another run.
    """
    return _Run(recipe, show_progress, on_log).run_stages(resume, overwrite)


@dataclass
class _Stage:
    """A stage with its data at hand: files of pairs, or of texts for objective retromae."""

    options: StageOptions
    folder: Path
    files: list[PairFile]
    texts: list[TextFile]
    split: Split
    known_positives: KnownPositives | None
    scorer: StageScorer
    scores: dict[str, float] = field(default_factory=dict)


class _Run:
    """One call of `train`: prepares each stage, has it trained, and saves its model."""

    def __init__(self, recipe: Recipe, show_progress: bool, on_log: LogObserver | None) -> None:
        self.recipe = recipe
        self.show_progress = show_progress
        self.on_log = on_log
        self.folder = RunFolder(recipe)
        self.beir = BeirFolders(recipe.evaluation.beir)
        self.tokens: dict[bytes, TokenRows] = {}
        self._cache = expand_path(recipe.cache_dir)

    def run_stages(self, resume: bool, overwrite: bool) -> TrainingResult:
        hide_bars_of_saving()
        check_trackers(self.recipe)
        self.beir.check()
        self.accelerator = start_accelerator(self.recipe)
        if self.accelerator.is_main_process:
            self.folder.prepare(resume=resume, overwrite=overwrite)
            if self.recipe.logging.push_to_hub is not None:
                open_repository(self.recipe.logging.push_to_hub)
        encoder: TrainableEncoder | None = None
        results: list[StageResult] = []
        facts: list[CardFacts] = []
        for number, options in enumerate(self.recipe.stages):
            saved_facts = self.folder.finished_stage(number)
            if saved_facts is not None:
                results.append(StageResult(options.name, options.steps, saved_facts.scores))
                facts.append(saved_facts)
                encoder = None
                continue
            checkpoint = last_checkpoint(self.folder.stage(number)) if resume else None
            if encoder is None or checkpoint is not None:
                encoder = self._load_encoder(number, checkpoint)
            stage = self._prepare_stage(number, encoder)
            sources = stage.files or stage.texts
            self.folder.check_data(number, sources)
            if checkpoint is None and self.accelerator.is_main_process:
                self.folder.write_data(number, sources)
            loop = StageLoop(self, stage, encoder)
            interrupted = loop.run(checkpoint)
            steps = loop.progress.step
            results.append(StageResult(options.name, steps, stage.scores))
            if interrupted:
                return TrainingResult(self.folder.path, results, interrupted=True)
            facts.append(CardFacts.of(options, sources, stage.split.training, stage.scores, steps))
            if self.accelerator.is_main_process:
                encoder.save(stage.folder / "model")
                self.folder.finish_stage(number, facts[-1])
            self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._save_result(encoder, facts)
        self.accelerator.wait_for_everyone()
        return TrainingResult(self.folder.path, results)

    def _load_encoder(self, number: int, checkpoint: Path | None) -> TrainableEncoder:
        """The model of a checkpoint, of the stage before, or what the recipe starts from."""
        set_seed(self.recipe.seed)
        origin = checkpoint
        if origin is None and number:
            origin = self.folder.stage(number - 1) / "model"
        if origin is not None:
            encoder = load_encoder(ModelOptions(path=str(origin)))
        else:
            with self.accelerator.main_process_first():  # it may learn a vocabulary
                encoder = build_encoder(self.recipe.model, self.recipe.stages[0].data.sources, self._cache)
        if self.recipe.compile and encoder.kind == "transformer":
            encoder.body.compile(dynamic=True)
        return encoder.to(self.accelerator.device)

    def _prepare_stage(self, number: int, encoder: TrainableEncoder) -> _Stage:
        options = self.recipe.stages[number]
        files: list[PairFile] = []
        texts: list[TextFile] = []
        with self.accelerator.main_process_first():  # it fills the cache
            if options.objective == "retromae":
                texts = self._load_texts(options, encoder)
            else:
                files = self._load_pairs(options, encoder)
        split = split_rows(files or texts, self.recipe.validation)
        check_sources(training_sources(files or texts, split.training))
        known = KnownPositives(files) if files else None
        scorer = StageScorer(options.objective, files, split, self.recipe.validation.distractors, self.beir)
        return _Stage(options, self.folder.stage(number), files, texts, split, known, scorer)

    def _load_pairs(self, options: StageOptions, encoder: TrainableEncoder) -> list[PairFile]:
        return load_pairs(
            options.data.sources,
            encoder.tokenizer,
            self._cache,
            prompts=encoder.prompts,
            maximum_bad_share=options.data.maximum_bad_share,
            path=f"stages.{options.name}.data.sources",
            show_progress=self.show_progress,
        )

    def _load_texts(self, options: StageOptions, encoder: TrainableEncoder) -> list[TextFile]:
        return load_texts(
            options.data.sources,
            encoder.tokenizer,
            self._cache,
            prompt=encoder.document_prompt,
            maximum_bad_share=options.data.maximum_bad_share,
            path=f"stages.{options.name}.data.sources",
        )

    def _save_result(self, encoder: TrainableEncoder | None, facts: Sequence[CardFacts]) -> None:
        """The last stage's model, and the card that says how it was made, in the run's own folder."""
        if encoder is None:
            last = self.folder.stage(len(facts) - 1) / "model"
            encoder = load_encoder(ModelOptions(path=str(last)))
        dtype = torch.float16 if self.recipe.stored_as == "fp16" else torch.float32
        encoder.save(self.folder.path, dtype)
        write_card(self.folder.path, self.recipe, encoder, facts)


class StageLoop:
    """The loop of one stage: batch, step, log, evaluation, checkpoint. One step is one batch."""

    def __init__(self, run: _Run, stage: _Stage, encoder: TrainableEncoder) -> None:
        self.recipe = run.recipe
        self.stage = stage
        self.encoder = encoder
        self.accelerator = run.accelerator
        self.progress = Progress()
        self._on_log = run.on_log
        self._show = run.show_progress and run.accelerator.is_main_process
        self._cache = expand_path(run.recipe.cache_dir)
        self._interruption = Interruption()
        self._meter = StepMeter()
        self._in_training = InTraining(encoder, run.accelerator.autocast, run.tokens)
        self._scored_at = -1
        self._batch: RankBatch | TextBatch | None = None

    def run(self, checkpoint: Path | None) -> bool:
        """Train to the end of the stage, or until interrupted; whether it was."""
        set_seed(self.recipe.seed)
        options = self.stage.options
        self._module: nn.Module = self.encoder
        if options.objective == "retromae":
            self._module = self._build_retromae()
        self._optimizer = build_optimizer(self._module, options.optimizer)
        self._cached_step = self._build_step()
        self._training_state = TrainingState(self.encoder, self._optimizer, self._cached_step, self.progress)
        if checkpoint is not None:
            load_checkpoint(checkpoint, self._training_state)
        self._line = ProgressLine(options.name, steps=options.steps, initial=self.progress.step, show=self._show)
        trackers = open_trackers(self.recipe, options.name, self.stage.folder)
        try:
            with self._interruption.listening(), trackers as self._trackers:
                interrupted = self._take_steps()
                if not interrupted and self._scored_at != self.progress.step:
                    self._evaluate_model()
        finally:
            self._line.close()
        self._write_history()
        return interrupted

    def _take_steps(self) -> bool:
        """From the next batch to the last; whether an interruption ended it before."""
        evaluation = self.recipe.evaluation
        checkpoints = self.recipe.checkpoints
        steps = self.stage.options.steps
        if evaluation.at_start and self.progress.step == 0:
            self._evaluate_model()
        for batch in self._load_batches():
            self._take_step(batch)
            self._line.advance()
            if self._is_due(self.recipe.logging.every_steps):
                self._log_step()
            if self._is_due(evaluation.every_steps):
                self._evaluate_model()
            stopping = Ranks().any(self._interruption.requested, self.accelerator.device)
            stopping = stopping and self.progress.step < steps
            if stopping or self._is_due(checkpoints.every_steps):
                self._save_checkpoint()
            if stopping:
                return True
        return False

    def _load_batches(self) -> Iterator[RankBatch | TextBatch]:
        """The batches that are left, round by round; every rank reads its own share."""
        for part in list_rounds(self.stage.options, self.stage.folder):
            if part.stop <= self.progress.step:
                continue
            with self._meter.paused():
                self._batches: StepBatches | TextBatches = (
                    self._prepare_texts() if self.stage.texts else self._prepare_round(part)
                )
            yield from DataLoader(
                self._batches,
                batch_size=None,
                sampler=range(max(part.start, self.progress.step), part.stop),
                num_workers=self.recipe.data_workers,
                pin_memory=self.accelerator.device.type == "cuda",
                generator=torch.Generator(),  # the loader must not draw from the generator of dropout
                collate_fn=_return_batch,
            )

    def _prepare_round(self, part: Round) -> StepBatches:
        """The batches of a round, with the negatives and in the order that the model chooses at its first step."""
        options = self.stage.options
        files = self.stage.files
        rows = self.stage.split.training
        order = None
        if options.data.mining is not None or options.data.order is not None:
            part.check(self.progress.step)
            with self.accelerator.main_process_first():
                if options.data.mining is not None:
                    files = self._mine_negatives(options.data.mining, part)
                    rows = [file.usable for file in files]
                if options.data.order is not None:
                    order = options.data.order.build(self._describe_stage(files, rows, part.folder))
                if self.accelerator.is_main_process:
                    part.mark_ready()
        context = self._describe_stage(self.stage.files, self.stage.split.training, part.folder)  # with their anchors
        plan = BatchPlan(
            training_sources(files, rows),
            batch=options.batch.queries,
            steps=options.steps,
            alpha=options.data.alpha,
            mixing=options.data.mixing,
            seed=self.recipe.seed,
            distinct=options.objective == "contrastive",
            order=order,
        )
        return StepBatches(
            files,
            rows,
            plan,
            steps=options.steps,
            negatives=options.batch.negatives,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            seed=self.recipe.seed,
            transforms=[transform.build(context) for transform in options.data.transforms],
            with_answers=bool(options.loss.candidates or options.data.transforms),
            known_positives=self.stage.known_positives,
        )

    def _prepare_texts(self) -> TextBatches:
        options = self.stage.options
        plan = BatchPlan(
            training_sources(self.stage.texts, self.stage.split.training),
            batch=options.batch.queries,
            steps=options.steps,
            alpha=options.data.alpha,
            mixing=options.data.mixing,
            seed=self.recipe.seed,
        )
        return TextBatches(
            self._read_texts(self.stage.split.training),
            plan,
            steps=options.steps,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )

    def _read_texts(self, rows: Sequence[Ints]) -> TextReader:
        masked = self.stage.options.retromae.encoder_masked
        return TextReader(self.stage.texts, rows, self.encoder.tokenizer, masked=masked, seed=self.recipe.seed)

    def _mine_negatives(self, options: MiningRoundOptions, part: Round) -> list[PairFile]:
        return mine_round(
            self.stage.files,
            self.stage.split.training,
            MiningOptions(**options.model_dump(), seed=self.recipe.seed),
            self._encoder_of_texts(),
            self.encoder.tokenizer,
            self.encoder.prompts,
            part.folder,
            self._cache,
        )

    def _encoder_of_texts(self) -> InTraining:
        """The model as it is now; it remembers no tokens, for it may be given millions of texts."""
        return InTraining(self.encoder, self.accelerator.autocast)

    def _describe_stage(self, files: Sequence[PairFile], rows: Sequence[Ints], folder: Path) -> StageContext:
        return StageContext(
            steps=self.stage.options.steps,
            seed=self.recipe.seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            files=files,
            rows=rows,
            tokenizer=self.encoder.tokenizer,
            encoder=self._encoder_of_texts(),
            cache=self._cache,
            folder=folder,
            model=self.encoder,
        )

    def _take_step(self, batch: RankBatch | TextBatch) -> None:
        """Gradients of the whole batch, chunk by chunk, and one step of the optimiser."""
        options = self.stage.options
        self._batch = batch
        self._module.train()
        try:
            with self.accelerator.autocast():
                metrics = self._add_gradients(batch)
        except TrainingError as error:
            raise self._report_failure(str(error)) from error
        if not math.isfinite(metrics.loss):
            raise self._report_failure(f"the loss is {metrics.loss}")
        norm = clip_gradients(self._module, options.optimizer.max_grad_norm)
        if not math.isfinite(norm):
            raise self._report_failure(f"the gradient's norm is {norm}")
        self._rate = learning_rate(options.optimizer, self.progress.step, options.steps)
        set_learning_rate(self._optimizer, self._rate)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._norm = norm
        self.progress.step += 1
        self._meter.add(metrics, len(batch) * self.accelerator.num_processes)

    def _add_gradients(self, batch: RankBatch | TextBatch) -> LossMetrics:
        if isinstance(self._cached_step, MaskedStep):
            assert isinstance(batch, TextBatch)
            return self._cached_step(batch)
        assert isinstance(batch, RankBatch)
        progress = self.progress.step / self.stage.options.steps
        return self._cached_step(self._step_batch(batch), progress=progress)

    def _step_batch(self, batch: RankBatch) -> StepBatch:
        device = self.accelerator.device
        pad = self.encoder.pad_id
        graded = self.stage.options.objective == "cosent"
        labels = torch.from_numpy(batch.grades).to(device) if graded else batch.pairs(device)
        return StepBatch(FeatureRows(batch.queries, pad, device), FeatureRows(batch.documents, pad, device), labels)

    def _build_retromae(self) -> RetroMAE:
        mask_id = require_mask_token(self.encoder.tokenizer)
        model = RetroMAE(self.encoder, mask_id, self.stage.options.retromae.decoder_masked)
        return model.to(self.accelerator.device)

    def _build_step(self) -> CachedStep | MaskedStep:
        model: Any = self._module
        device = self.accelerator.device
        if self.accelerator.num_processes > 1:
            model = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
        memory = self.stage.options.memory
        chunk_tokens = memory.chunk_tokens
        if self.stage.texts:
            return MaskedStep(model, batch_tokens=chunk_tokens, device=device)
        if chunk_tokens is None and self.encoder.kind == "static":
            chunk_tokens = STATIC_CHUNK_TOKENS
        context = self._describe_stage(self.stage.files, self.stage.split.training, self.stage.folder)
        with self.accelerator.main_process_first():  # a guide encodes the texts
            objective = build_objective(self.stage.options, context)
        observers = [source for source in getattr(objective, "sources", ()) if isinstance(source, BatchObserver)]
        return CachedStep(
            model, objective, batch_tokens=chunk_tokens, graphs=memory.graphs, device=device, observers=observers
        )

    def _is_due(self, every_steps: int | None) -> bool:
        return every_steps is not None and self.progress.step % every_steps == 0

    def _log_step(self) -> None:
        self._log_values({**self._meter.read(), "grad_norm": self._norm, "learning_rate": self._rate})

    def _evaluate_model(self) -> None:
        """Scores on the validation split and on the recipe's BEIR folders; computed by one rank while others wait."""
        with self._meter.paused():
            if self.accelerator.is_main_process:
                scores = {**self._score_texts(), **self.stage.scorer.score(self._in_training)}
                self.stage.scores.update(scores)
                self._log_values({f"eval_{name}": value for name, value in scores.items()})
            self.accelerator.wait_for_everyone()
        self._scored_at = self.progress.step

    def _score_texts(self) -> dict[str, float]:
        """The loss on texts that were held out, the same tokens hidden each time; nothing for stages of pairs."""
        rows = self.stage.split.validation
        if not isinstance(self._cached_step, MaskedStep) or not sum(map(len, rows)):
            return {}
        with self.accelerator.autocast():
            return {"loss": self._cached_step.score(self._read_texts(rows).read_all(step=0))}

    def _log_values(self, values: dict[str, float]) -> None:
        """Into the history, the progress line, the trackers and the caller's ears; on the first rank."""
        if not values or not self.accelerator.is_main_process:
            return
        entry = {**values, "step": self.progress.step}
        self.progress.log.append(entry)
        self._line.show(entry)
        self._trackers.log(values, self.progress.step)
        logger.info("%s, step %d: %s", self.stage.options.name, self.progress.step, values)
        if self._on_log is not None and self._on_log(entry):
            self._interruption.requested = True

    def _save_checkpoint(self) -> None:
        """A checkpoint of this step, and its model on the hub where the recipe says so."""
        with self._meter.paused():
            checkpoint = save_checkpoint(self.stage.folder, self._training_state, keep=self.recipe.checkpoints.keep)
            repository = self.recipe.logging.push_to_hub
            if repository is not None and self.accelerator.is_main_process:
                push_checkpoint(repository, checkpoint)
            self.accelerator.wait_for_everyone()

    def _write_history(self) -> None:
        if not self.accelerator.is_main_process:
            return
        history = {
            "global_step": self.progress.step,
            "max_steps": self.stage.options.steps,
            "log_history": self.progress.log,
        }
        write_atomically(self.stage.folder / HISTORY_FILE, json.dumps(history, indent=2).encode())

    def _report_failure(self, reason: str) -> TrainingError:
        """Put the batch on disk for inspection, and say where what was done so far lies."""
        assert self._batch is not None
        step = self.progress.step
        folder = self.stage.folder
        file = folder / f"bad-batch-step-{step}-rank-{self.accelerator.process_index}.jsonl"
        batches: Any = self._batches  # of the kind of the batch
        lines = [json.dumps(row, ensure_ascii=False) for row in batches.texts(self._batch)]
        write_atomically(file, "\n".join(lines).encode())
        checkpoint = last_checkpoint(folder)
        resume_hint = f"the last checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written yet"
        return TrainingError(
            f"step {step} of stage {self.stage.options.name}: {reason}. The batch is in {file}; {resume_hint}. Lower "
            "the learning rate, raise the temperature, clip gradients (max_grad_norm), or take out what is odd in that "
            "batch, then resume"
        )


def build_objective(options: StageOptions, context: StageContext) -> Objective:
    """The loss a stage asks for."""
    if options.objective == "cosent":
        return CosentObjective(1.0 / options.loss.temperature)
    rows = options.memory.loss_tile
    tile = Tile(rows=rows, columns=4 * rows, keep=False) if rows else None
    sources = [source.build(context) for source in options.loss.candidates]
    masks = [mask.build(context) for mask in options.loss.masks]
    return ContrastiveObjective(options.loss, sources=sources, masks=masks, tile=tile)


def start_accelerator(recipe: Recipe) -> Accelerator:
    """Devices, ranks and precision as the recipe says, whatever an earlier run in this process said."""
    AcceleratorState._reset_state(reset_partial_state=True)  # otherwise the first run's device and precision stay
    cpu = recipe.device == "cpu"
    on_cpu = cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    handlers = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        handlers.append(InitProcessGroupKwargs(backend="gloo" if on_cpu else None, timeout=GROUP_TIMEOUT))
    precision = "bf16" if recipe.precision == "bf16" else "no"
    return Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=handlers)


def _return_batch(batch: Any) -> Any:
    return batch
