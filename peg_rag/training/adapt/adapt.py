"""`adapt`: a model and a folder of documents → the same model, better at finding things in such documents.

Why this exists: an embedding model is worst where its users are, on text that its training never saw, and they have
documents but no questions. So pairs are cut from the documents (`peg_rag.training.adapt_data`), the model itself ranks
what it confuses (`mine_hard_negatives`), and a short contrastive stage corrects it (`train`). Cut-out sentences are not
questions, though, and a model can learn them too well. Two things keep what it knew: the result is a mean of the
weights before and after (WiSE-FT, Wortsman et al., arXiv 2109.01903), with the share of the new ones chosen on held-out
documents; and it is compared with the start on other held-out documents, and not saved where it is worse.

Costs about a minute for 10,000 passages with a static model on one core; a transformer wants an accelerator.
"""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from peg_rag.backends.torch_backend import pick_device
from peg_rag.encoder import PEGEncoder
from peg_rag.errors import IndexBusy, InvalidInput
from peg_rag.evaluation import Evaluation, compare, evaluate
from peg_rag.files import write_atomically
from peg_rag.models import BUNDLED, CONFIG_FILE, Kind
from peg_rag.training.adapt.report import METRIC, Adaptation, Judgement, describe_adaptation
from peg_rag.training.adapt.split import Exam, Lesson, read_documents, split
from peg_rag.training.data.texts import TextPair
from peg_rag.training.mining.mine import MiningOptions, mine_hard_negatives
from peg_rag.training.model.encoder import load_encoder
from peg_rag.training.recipe import ModelOptions, Recipe
from peg_rag.training.run.estimate import plan_run
from peg_rag.training.run.folder import DONE_FILE
from peg_rag.training.run.model_card import CardFacts, card
from peg_rag.training.run.train import train
from peg_rag.training.run.validation import InTraining

logger = logging.getLogger(__name__)
Weights = dict[str, torch.Tensor]
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the trained weights in the result
SLACK = 0.02  # of nDCG@10 that is given up for staying nearer to the start: cut-out sentences flatter the new weights
FEWEST_STEPS = 10
MODEL_FILES = (CONFIG_FILE, "modules.json")  # either of them makes a folder a model, which may be replaced


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
        documents: a folder of txt, md, html, pdf, docx, csv, jsonl files, or one .txt (.gz, .zst) of a passage a line.
        model: a hub id, a folder or a bundled name.
        out: may lie within the documents; it and the work are not read.
        force: save a model that got worse, too.
        overwrite: replace the model in `out`; a folder that holds no model is never replaced.
        device: `cpu` or the first accelerator (`cuda`, `mps`); None or `auto` for the best there is.

    Raises:
        InvalidInput: no such documents; `out` is there already, or what is read lies in it; another device.
        IndexBusy: another call is adapting to the same `out`.
        DataError: too little text, or none that can be read.
        ModelNotAvailable, DamagedModel: the model to start from.
        TrainingError: training cannot go on.
    """
    options, trained_on = options or AdaptOptions(), _training_device(device)
    source, folder = Path(documents).expanduser(), Path(out).expanduser().resolve()
    work = Path(f"{folder}.adapting")
    _check_apart((folder, work), {"documents": source, "model to start from": _model_folder(model)})
    with _alone(work):
        _put_back(folder, work)
        _check_free(folder, overwrite)
        read = read_documents(source, leave_out=(folder, work))
        lesson, choosing, reporting = split(read.documents, options.held_out, options.seed)
        with PEGEncoder(model, device=device) as encoder:
            _prepare(work, encoder.identity, lesson, options)
            before = evaluate(encoder, reporting.task)
            kind, files = encoder.spec.kind, _mined(work, lesson, encoder, options, show_progress)
        recipe = _recipe(work, str(model), kind, files, lesson, options, trained_on)
        result = train(recipe, resume=True, show_progress=show_progress)
        done = Adaptation(
            folder=folder,
            documents=lesson.documents + choosing.documents + reporting.documents,
            held_out=choosing.documents + reporting.documents,
            pairs=len(lesson),
            steps=recipe.stages[0].steps,
            failed=read.failed,
        )
        if result.interrupted:
            return done
        judgement = _judge(recipe, work, before, choosing, reporting)
        done = replace(done, judgement=judgement, saved=force or not judgement.worse)
        if done.saved:
            _check_free(folder, overwrite)  # again, for hours may have passed
            _save(done, judgement, recipe, work)
        return done


def _training_device(device: str | None) -> str:
    """The kind of device to train on: the trainer takes the cpu or the first accelerator, whatever the number."""
    asked, best = torch.device(pick_device(device)), torch.device(pick_device(None))
    if asked.type not in ("cpu", best.type) or asked.index not in (None, 0):
        raise InvalidInput(
            f"device={device!r}: training takes 'cpu' or the first accelerator ({best.type!r} here); to train on "
            "another card, make it the first, such as with CUDA_VISIBLE_DEVICES=1"
        )
    return asked.type


def _model_folder(model: str | Path) -> Path | None:
    """The folder of a model that is given by one."""
    folder = Path(model).expanduser()
    return folder if folder.is_dir() and str(model) not in BUNDLED else None


def _check_apart(written: Sequence[Path], read: Mapping[str, Path | None]) -> None:
    """What is read must not lie where the work is emptied and the model replaced."""
    for name, path in read.items():
        for place in written:
            if path is not None and path.resolve().is_relative_to(place):
                raise InvalidInput(f"the {name} ({path}) would be lost in {place}; name another place for the model")


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """The work folder for this call alone; the lock lies beside it, for the folder itself is emptied and removed."""
    from filelock import FileLock, Timeout

    file = work.with_name(f".{work.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(file, timeout=0).acquire()
    except Timeout as error:
        raise IndexBusy(
            f"another process is at work in {work}; wait for it to finish, or name another place"
        ) from error
    with lock:
        try:
            yield
        finally:
            with suppress(OSError):  # where an open file cannot be removed, it stays
                file.unlink()


def _put_back(folder: Path, work: Path) -> None:
    """Undo half a replacement: a kill may have come after the old model was moved away and before the new one came."""
    replaced = work / "replaced"
    if replaced.is_dir() and _is_ours(work):
        if not _holds_files(folder):
            replaced.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.is_file() and not _holds_files(folder):
        return
    if not overwrite:
        raise InvalidInput(
            f"{folder} is there already; name another place for the model, or replace a model there (--overwrite)"
        )
    if not any((folder / name).is_file() for name in MODEL_FILES):
        raise InvalidInput(
            f"{folder} is there already and is no model (it holds neither {' nor '.join(MODEL_FILES)}), so it is not "
            "replaced; name another place for the model"
        )


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _is_ours(work: Path) -> bool:
    return (work / "call.json").is_file()


def _prepare(work: Path, identity: str, lesson: Lesson, options: AdaptOptions) -> None:
    """Make the work folder, or empty it where it is of another call.

    Raises:
        InvalidInput: a folder of that name is there and not ours.
    """
    content = hashlib.blake2b(digest_size=12)
    for name, pairs in lesson.pairs.items():
        content.update(json.dumps([name, [[pair.query, pair.positive] for pair in pairs]]).encode())
    call = [identity, asdict(options), content.hexdigest()]
    if _is_ours(work) and _read_call(work).get("call") == call:
        logger.info("going on with %s", work)
        return
    if work.exists() and not _is_ours(work):
        raise InvalidInput(f"{work} is in the way: it is where the work would lie, and peg-rag did not make it")
    shutil.rmtree(work, ignore_errors=True)
    _write_call(work, {"call": call})


def _read_call(work: Path) -> dict[str, Any]:
    read = json.loads((work / "call.json").read_text(encoding="utf-8"))
    return read if isinstance(read, dict) else {}


def _write_call(work: Path, content: Mapping[str, Any]) -> None:
    write_atomically(work / "call.json", json.dumps(content).encode())


def _mined(work: Path, lesson: Lesson, encoder: PEGEncoder, options: AdaptOptions, show_progress: bool) -> list[Path]:
    """The pairs with their negatives, a file for each name; what an earlier call wrote is kept."""
    files = {name: work / "mined" / f"{name}.jsonl" for name in lesson.pairs}
    if all(file.is_file() for file in files.values()):
        return list(files.values())
    passages, plain, mined = work / "passages.txt", work / "pairs.jsonl", work / "mined.jsonl"
    write_atomically(passages, "\n".join(lesson.passages).encode())
    write_atomically(plain, "\n".join(_line(pair) for pairs in lesson.pairs.values() for pair in pairs).encode())
    wanted = MiningOptions(negatives=_DEFAULTS[encoder.spec.kind].negatives, seed=options.seed)
    mine_hard_negatives(plain, mined, encoder, corpus=passages, options=wanted, show_progress=show_progress)
    with mined.open(encoding="utf-8") as rows:  # in the order of the pairs
        for name, pairs in lesson.pairs.items():
            write_atomically(files[name], "".join(islice(rows, len(pairs))).encode())
    return list(files.values())


def _line(pair: TextPair) -> str:
    return json.dumps({"query": pair.query, "positive": pair.positive}, ensure_ascii=False)


def _recipe(
    work: Path, model: str, kind: Kind, files: Sequence[Path], lesson: Lesson, options: AdaptOptions, device: str
) -> Recipe:
    """The recipe of the one stage."""
    defaults, static = _DEFAULTS[kind], kind == "static"
    scale = _spread(model) if static else 1.0

    def of(steps: int) -> Recipe:
        tree: dict[str, Any] = {
            "output_dir": str(work / "run"),
            "cache_dir": str(work / "cache"),
            "seed": options.seed,
            "device": device,
            "precision": "bf16" if device == "cuda" and not static else "fp32",
            "model": {"path": model},
            "stages": [
                {
                    "name": "adapt",
                    "steps": steps,
                    "batch": {"queries": defaults.queries, "negatives": defaults.negatives},
                    "data": {"sources": [{"path": str(file)} for file in files], "alpha": 1.0},
                    "loss": {"temperature": defaults.temperature, "symmetric": static},
                    "optimizer": {
                        "learning_rate": scale * defaults.learning_rate,
                        "warmup_steps": 0 if static else steps // 10,
                        "max_grad_norm": None if static else 1.0,
                    },
                }
            ],
            "validation": {"share": 0},
            "checkpoints": {"every_steps": max(50, steps // 4), "keep": 1},
        }
        return Recipe.parse(tree, name="adapt")

    if options.minutes is not None:
        return of(_measured_steps(work, of(FEWEST_STEPS), options.minutes))
    return of(options.steps or max(FEWEST_STEPS, round(defaults.passes * len(lesson) / defaults.queries)))


def _measured_steps(work: Path, recipe: Recipe, minutes: float) -> int:
    """Steps of this recipe that take so long here; measured once, for a run can only go on with as many."""
    call = _read_call(work)
    if "steps" not in call:
        call["steps"] = max(FEWEST_STEPS, round(60 * minutes / plan_run(recipe).stages[0].seconds))
        _write_call(work, call)
    return int(call["steps"])


def _spread(model: str) -> float:
    """Root mean square of a model's weights."""
    weights = torch.cat([tensor.detach().flatten() for tensor in load_encoder(ModelOptions(path=model)).parameters()])
    return float(weights.square().mean().sqrt())


def _judge(recipe: Recipe, work: Path, before: Evaluation, choosing: Exam, reporting: Exam) -> Judgement:
    """Mix the weights by what the one exam says, keep the mix in `model`, and compare on the other exam."""
    start, end = (load_encoder(ModelOptions(path=str(path))) for path in (recipe.model.path, work / "run"))
    first, last = (encoder.to(recipe.device).body.state_dict() for encoder in (start, end))
    last = {name: tensor.clone() for name, tensor in last.items()}
    scores: dict[float, float] = {}
    for share in SHARES:
        end.body.load_state_dict(_mean(first, last, share))
        scores[share] = evaluate(InTraining(end), choosing.task).mean(METRIC)
    logger.info("%s by share of the trained weights: %s", METRIC, scores)
    share = min(share for share in SHARES if scores[share] >= max(scores.values()) - SLACK)
    end.body.load_state_dict(_mean(first, last, share))
    end.save(work / "model")
    before, after = replace(before, system="before"), replace(evaluate(InTraining(end), reporting.task), system="after")
    return Judgement(share, before, after, compare([before], [after], METRIC))


def _mean(first: Weights, last: Weights, share: float) -> Weights:
    """(1 − share) · first + share · last; counters and the like are the last's."""
    return {
        name: torch.lerp(first[name], tensor, share) if tensor.is_floating_point() else tensor
        for name, tensor in last.items()
    }


def _save(done: Adaptation, judgement: Judgement, recipe: Recipe, work: Path) -> None:
    """Put the model with its card in its place, and take the work away."""
    model, stage = work / "model", recipe.stages[0].name
    facts = json.loads((work / "run" / "stages" / f"1-{stage}" / DONE_FILE).read_text(encoding="utf-8"))["facts"]
    text = card(done.folder.name, recipe, load_encoder(ModelOptions(path=str(model))), [CardFacts(**facts)])
    account = describe_adaptation(done, judgement)
    write_atomically(model / "README.md", text.replace("## Training\n", f"{account}## Training\n", 1).encode())
    if done.folder.exists():
        done.folder.rename(work / "replaced")
    model.rename(done.folder)
    shutil.rmtree(work)
