"""`adapt`: a model and a folder of documents → the same model, better at finding things in such documents.

An embedding model is worst where its users are, on text that its training never saw, and they have documents but no
questions. So pairs are cut from the documents (`peg_rag.training.adapt.split`), the model itself ranks what it confuses
(`mine_hard_negatives`), and a short contrastive stage corrects it (`train`). Cut-out sentences are not questions,
though, and a model can learn them too well. Two things keep what it knew: the result is a mean of the weights before
and after (WiSE-FT, Wortsman et al., arXiv 2109.01903), with the share of the new ones chosen on held-out documents; and
it is compared with the start on other held-out documents, and not saved where it is worse.

Costs about a minute for 10,000 passages with a static model on one core; a transformer wants an accelerator.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from peg_rag.backends.torch_backend import pick_device
from peg_rag.encoder import PEGEncoder
from peg_rag.errors import InvalidInput, TrainingError
from peg_rag.evaluation import Evaluation, compare, evaluate
from peg_rag.files import write_atomically
from peg_rag.models import BUNDLED, Kind
from peg_rag.training.adapt.report import METRIC, Adaptation, Judgement, describe_adaptation
from peg_rag.training.adapt.split import Exam, Lesson, read_documents, split
from peg_rag.training.adapt.work import WorkFolder, check_apart, check_free
from peg_rag.training.data.texts import TextPair
from peg_rag.training.mining.mine import MiningOptions, mine_hard_negatives
from peg_rag.training.model.encoder import load_encoder
from peg_rag.training.recipe import (
    BatchOptions,
    CheckpointOptions,
    DataOptions,
    LossOptions,
    ModelOptions,
    OptimizerOptions,
    Recipe,
    SourceOptions,
    StageOptions,
    ValidationOptions,
)
from peg_rag.training.run.estimate import estimate_run
from peg_rag.training.run.folder import RunFolder
from peg_rag.training.run.model_card import write_card
from peg_rag.training.run.train import train
from peg_rag.training.run.validation import InTraining

logger = logging.getLogger(__name__)

Weights = dict[str, torch.Tensor]

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the trained weights in the result
SLACK = 0.02  # of nDCG@10 that is given up for staying nearer to the start: cut-out sentences flatter the new weights
FEWEST_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """How to adapt; the defaults were chosen on financial news, see train/LOG.md.

    Attributes:
        steps: of the optimiser; None for `minutes`, or else `passes` through the pairs.
        minutes: about how long to train; reading, mining and comparing come on top.
        held_out: share of the documents that is set aside; of few documents it is more, up to a quarter.
        seed: of everything drawn, from 0 to 2³² - 1.
    """

    steps: int | None = None
    minutes: float | None = None
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise InvalidInput("steps and minutes are both given; one says how long to train")
        if (self.steps is not None and self.steps < 1) or (
            self.minutes is not None and not 0 < self.minutes < math.inf
        ):
            raise InvalidInput(f"steps={self.steps}, minutes={self.minutes}: a number above 0 is expected")
        if not 0 < self.held_out <= 0.5:
            raise InvalidInput(f"held_out={self.held_out}: a share above 0 and up to 0.5 is expected")
        if not 0 <= self.seed < 2**32:
            raise InvalidInput(f"seed={self.seed}: a number from 0 to 2³² - 1 is expected")


@dataclass(frozen=True)
class _Defaults:
    """What differs between kinds of models.

    Attributes:
        learning_rate: of a static model in units of its weights' root mean square, which makers choose freely.
        queries, negatives: in a batch, and for each query.
        passes: through the pairs, where neither steps nor minutes are given.
    """

    learning_rate: float
    queries: int
    negatives: int
    temperature: float
    passes: float


_DEFAULTS: dict[Kind, _Defaults] = {
    "static": _Defaults(learning_rate=0.075, queries=1_024, negatives=2, temperature=0.04, passes=4),
    "transformer": _Defaults(learning_rate=2e-5, queries=64, negatives=3, temperature=0.02, passes=1),
}


def adapt(
    documents: str | Path,
    model: str | Path,
    out: str | Path,
    options: AdaptOptions | None = None,
    *,
    force: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    show_progress: bool = False,
) -> Adaptation:
    """Adapt a model to documents and write it to `out`, which `PEGEncoder` and `SentenceTransformer` open.

    Interrupted (Ctrl-C finishes the step), the same call goes on from `<out>.adapting`, where all work lies until the
    model is saved.

    Args:
        documents: a folder of txt, md, html, pdf, docx, csv, jsonl files, one .txt (.gz, .zst) of a passage a line, or
            a folder in BEIR's form, whose judged questions are trained on, too.
        model: a hub id, a folder or a bundled name.
        out: may lie within the documents; it and the work are not read.
        force: save a model that got worse, too.
        overwrite: replace the model in `out`; a folder that holds no model is never replaced.
        device: `cpu` or the first accelerator (`cuda`, `mps`); None or `auto` for the best there is.

    Raises:
        InvalidInput: no such documents; `out` already exists, or what is read lies in it; another device.
        IndexBusy: another call is adapting to the same `out`.
        DataError: too little text, or none that can be read.
        ModelNotAvailable, DamagedModel: the model to start from.
        TrainingError: training cannot go on.
    """
    options = options or AdaptOptions()
    device_type = _training_device(device)
    source = Path(documents).expanduser()
    folder = Path(out).expanduser().resolve()
    work = WorkFolder(folder)
    check_apart((folder, work.path), {"documents": source, "model to start from": _model_folder(model)})
    with work.locked():
        work.undo_replacement()
        check_free(folder, overwrite)
        texts = read_documents(source, leave_out=(folder, work.path))
        lesson, choosing, reporting = split(texts.documents, options.held_out, options.seed, texts.judged)
        with PEGEncoder(model, device=device) as encoder:
            work.prepare(encoder.identity, lesson, asdict(options))
            before = evaluate(encoder, reporting.task)
            kind = encoder.spec.kind
            files = _mine_pairs(work.path, lesson, encoder, options.seed, show_progress)
        recipe = _build_recipe(work, str(model), kind, files, lesson, options, device_type)
        result = train(recipe, resume=True, show_progress=show_progress)
        adaptation = Adaptation(
            folder=folder,
            documents=lesson.documents + choosing.documents + reporting.documents,
            held_out=choosing.documents + reporting.documents,
            pairs=len(lesson),
            steps=recipe.stages[0].steps,
            failed=texts.failed,
        )
        if result.interrupted:
            return adaptation
        judgement = _choose_mixture(recipe, work.path, before, choosing, reporting)
        adaptation = replace(adaptation, judgement=judgement, saved=force or not judgement.worse)
        if adaptation.saved:
            check_free(folder, overwrite)  # again, for hours may have passed
            _describe_model(adaptation, judgement, recipe, work.path)
            work.install_model()
        return adaptation


def _training_device(device: str | None) -> str:
    """The kind of device to train on: the cpu or the first accelerator, whatever the number."""
    choice = torch.device(pick_device(device))
    best = torch.device(pick_device(None))
    if choice.type not in ("cpu", best.type) or choice.index not in (None, 0):
        raise InvalidInput(
            f"device={device!r}: training takes 'cpu' or the first accelerator ({best.type!r} here); to train on "
            "another card, make it the first, such as with CUDA_VISIBLE_DEVICES=1"
        )
    return choice.type


def _model_folder(model: str | Path) -> Path | None:
    """The folder of a model that is given by one."""
    folder = Path(model).expanduser()
    if folder.is_dir() and str(model) not in BUNDLED:
        return folder
    return None


def _mine_pairs(work: Path, lesson: Lesson, encoder: PEGEncoder, seed: int, show_progress: bool) -> list[Path]:
    """The pairs with their negatives, a file for each name; what an earlier call wrote is kept."""
    files = {name: work / "mined" / f"{name}.jsonl" for name in lesson.pairs}
    if all(file.is_file() for file in files.values()):
        return list(files.values())
    passages = work / "passages.txt"
    pairs_file = work / "pairs.jsonl"
    mined_file = work / "mined.jsonl"
    write_atomically(passages, "\n".join(lesson.passages).encode())
    lines = [_format_pair(pair) for pairs in lesson.pairs.values() for pair in pairs]
    write_atomically(pairs_file, "\n".join(lines).encode())
    options = MiningOptions(negatives=_DEFAULTS[encoder.spec.kind].negatives, seed=seed)
    mine_hard_negatives(pairs_file, mined_file, encoder, corpus=passages, options=options, show_progress=show_progress)
    with mined_file.open(encoding="utf-8") as rows:  # in the order of the pairs
        for name, pairs in lesson.pairs.items():
            write_atomically(files[name], "".join(islice(rows, len(pairs))).encode())
    return list(files.values())


def _format_pair(pair: TextPair) -> str:
    return json.dumps({"query": pair.query, "positive": pair.positive}, ensure_ascii=False)


def _build_recipe(
    work: WorkFolder, model: str, kind: Kind, files: Sequence[Path], lesson: Lesson, options: AdaptOptions, device: str
) -> Recipe:
    """A recipe of one stage, with as many steps as the options ask for."""
    defaults = _DEFAULTS[kind]
    static = kind == "static"
    rate = defaults.learning_rate
    if static:
        rate *= _root_mean_square(model)

    def build(steps: int) -> Recipe:
        stage = StageOptions(
            name="adapt",
            steps=steps,
            batch=BatchOptions(queries=defaults.queries, negatives=defaults.negatives),
            data=DataOptions(sources=[SourceOptions(path=str(file)) for file in files], alpha=1.0),
            loss=LossOptions(temperature=defaults.temperature, symmetric=static),
            optimizer=OptimizerOptions(
                learning_rate=rate,
                warmup_steps=0 if static else steps // 10,
                max_grad_norm=None if static else 1.0,
            ),
        )
        return Recipe(
            output_dir=str(work.path / "run"),
            cache_dir=str(work.path / "cache"),
            seed=options.seed,
            device=device,
            precision="bf16" if device == "cuda" and not static else "fp32",
            model=ModelOptions(path=model),
            stages=[stage],
            validation=ValidationOptions(share=0),
            checkpoints=CheckpointOptions(every_steps=max(50, steps // 4), keep=1),
        )

    if options.minutes is not None:
        return build(_measure_steps(work, build(FEWEST_STEPS), options.minutes))
    return build(options.steps or max(FEWEST_STEPS, round(defaults.passes * len(lesson) / defaults.queries)))


def _measure_steps(work: WorkFolder, recipe: Recipe, minutes: float) -> int:
    """Steps of this recipe that take so long here; measured once, for a resumed run must keep its step count."""
    steps = work.measured_steps
    if steps is None:
        steps = max(FEWEST_STEPS, round(60 * minutes / estimate_run(recipe).stages[0].seconds))
        work.measured_steps = steps
    return steps


def _root_mean_square(model: str) -> float:
    """Root mean square of a model's weights."""
    weights = torch.cat([tensor.detach().flatten() for tensor in load_encoder(ModelOptions(path=model)).parameters()])
    return float(weights.square().mean().sqrt())


def _choose_mixture(recipe: Recipe, work: Path, before: Evaluation, choosing: Exam, reporting: Exam) -> Judgement:
    """Mix the weights by what the one exam says, save the mixture in `model`, and compare on the other exam."""
    start, end = (load_encoder(ModelOptions(path=str(path))) for path in (recipe.model.path, work / "run"))
    first, last = (encoder.to(recipe.device).body.state_dict() for encoder in (start, end))
    last = {name: tensor.clone() for name, tensor in last.items()}
    mixture = InTraining(end)
    scores: dict[float, float] = {}
    for share in SHARES:
        end.body.load_state_dict(_mix_weights(first, last, share))
        scores[share] = evaluate(mixture, choosing.task).mean(METRIC)
    logger.info("%s by share of the trained weights: %s", METRIC, scores)
    best = min(share for share in SHARES if scores[share] >= max(scores.values()) - SLACK)
    end.body.load_state_dict(_mix_weights(first, last, best))
    end.save(work / "model")
    before = replace(before, system="before")
    after = replace(evaluate(mixture, reporting.task), system="after")
    return Judgement(best, before, after, compare([before], [after], METRIC))


def _mix_weights(first: Weights, last: Weights, share: float) -> Weights:
    """(1 − share) · first + share · last; counters and the like are the last's."""
    return {
        name: torch.lerp(first[name], tensor, share) if tensor.is_floating_point() else tensor
        for name, tensor in last.items()
    }


def _describe_model(adaptation: Adaptation, judgement: Judgement, recipe: Recipe, work: Path) -> None:
    """Write the card of the model that is about to take its place."""
    facts = RunFolder(recipe).finished_stage(0)
    if facts is None:
        raise TrainingError(f"{work} holds no finished training run; remove it and adapt again")
    write_card(
        work / "model",
        recipe,
        load_encoder(ModelOptions(path=str(work / "model"))),
        [facts],
        name=adaptation.folder.name,
        sections=[describe_adaptation(adaptation, judgement)],
    )
