"""Pairs in, clean pairs out, with a report of what was removed and why.

PEG's authors name noise in their data as its second limitation (arXiv 2311.11691). Rules look at a pair alone,
near-duplicates at all pairs, the consistency filter at what a first model makes of them; each row that goes is kept in
a file of its own, with its reason. Holds the texts of all pairs in memory.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peg_rag.errors import DataError, InvalidInput
from peg_rag.files import open_atomically, write_atomically
from peg_rag.index.filters import plain_scalar
from peg_rag.retriever import Encoder
from peg_rag.training.clean.consistency import assign_halves, first_model_recipe, rank_positives, trust_of
from peg_rag.training.clean.duplicates import group_near_duplicates
from peg_rag.training.clean.rules import RuleOptions, count_uses, find_fault
from peg_rag.training.data.files import read_rows
from peg_rag.training.data.texts import clean_text, text_key
from peg_rag.training.data.tokens import Ints

EXAMPLES = 5
SHUFFLED_SHARE = 0.25  # of the counter-examples by which foreign passages are told
_NO_TEXTS = "no query or positive"


@dataclass(frozen=True, kw_only=True)
class CleaningOptions:
    """What is removed.

    Attributes:
        rules: limits on a pair's texts.
        similarity: pairs whose queries and whose positives are both near-duplicates from this Jaccard similarity on
            are one; None keeps them.
        top: a pair stays when its positive is among the first `top` of `pool` random passages; None skips the filter.
        pool: passages that the positive competes with.
        belonging: a pair goes when the probability that its passage belongs to the others is below this, judged by its
            parts (`peg_rag.partwise`): a passage of another kind, or one patched up of several; None skips the rule.
        trust: write each pair's trust weight, σ of its positive's cosine, to the column `weight`.
        seed: of the first models.
    """

    rules: RuleOptions = field(default_factory=RuleOptions)
    similarity: float | None = 0.8
    top: int | None = 20
    pool: int = 10_000
    belonging: float | None = None
    trust: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.similarity is not None and not 0 < self.similarity <= 1:
            raise InvalidInput(f"similarity={self.similarity} must lie above 0 and not above 1; None keeps duplicates")
        if self.top is not None and self.top < 1:
            raise InvalidInput(f"top={self.top} must be 1 or more; None skips the filter")
        if self.pool < 1:
            raise InvalidInput(f"pool={self.pool} must be 1 or more")
        if self.belonging is not None and not 0 < self.belonging < 1:
            raise InvalidInput(f"belonging={self.belonging} must lie between 0 and 1; None skips the rule")


@dataclass
class CleaningReport:
    """What cleaning did.

    Attributes:
        rows, kept: pairs read and written.
        removed: pairs by the reason they went.
        examples: the first few of each reason.
    """

    rows: int = 0
    kept: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def note(self, reason: str, row: dict[str, Any]) -> None:
        """Count a removed row, and keep the first few as examples."""
        self.removed[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(row)


def clean_pairs(
    pairs: Path | Sequence[Path],
    out: Path,
    *,
    options: CleaningOptions | None = None,
    encoder: Encoder | None = None,
    show_progress: bool = False,
) -> CleaningReport:
    """Write the pairs that are worth training on to `out`, and the others with their reason to `<out>.removed.jsonl`.

    Args:
        pairs: .jsonl, .csv, .tsv (also .gz, .zst) or .parquet files with the columns query, positive and perhaps
            negatives; other columns travel along.
        out: a .jsonl file.
        encoder: judges consistency; None trains two first models, each of which judges the half it has not seen.
            Also compares the parts of passages; None takes the bundled model.

    Interrupted training of the first models goes on in the next call, from `<out>.cleaning`.

    Raises:
        DataError: a file is missing, holds no pair, or holds a value that JSON has no form for.
        InvalidInput: `out` is no .jsonl file, or a file of pairs would be written over.
        KeyboardInterrupt: the training of a first model was interrupted.
    """
    options = options or CleaningOptions()
    if out.suffix != ".jsonl":
        raise InvalidInput(f"{out}: a .jsonl file is expected to write to")
    files = [Path(pairs)] if isinstance(pairs, (str, Path)) else [Path(path) for path in pairs]
    removed = out.with_name(f"{out.name}.removed.jsonl")
    _check_apart(files, (out, removed))
    report = CleaningReport()
    incomplete: list[dict[str, Any]] = []
    rows = _read_pairs(files, report, incomplete)
    reasons: list[str | None] = [None] * len(rows)
    _apply_rules(rows, reasons, options.rules)
    if options.similarity is not None:
        _mark_duplicates(rows, reasons, options.similarity)
    if options.belonging is not None:
        _mark_foreign(rows, reasons, options.belonging, encoder, options.seed)
    weights = None
    if options.top is not None or options.trust:
        weights = _check_consistency(rows, reasons, options, encoder, out, show_progress)
    with open_atomically(out) as kept_stream, open_atomically(removed) as removed_stream:
        for row in incomplete:
            removed_stream.write(_to_line({**row, "reason": _NO_TEXTS}))
        for i, (row, reason) in enumerate(zip(rows, reasons, strict=True)):
            if reason is not None:
                report.note(reason, row)
                removed_stream.write(_to_line({**row, "reason": reason}))
                continue
            report.kept += 1
            if options.trust and weights is not None:
                row = {**row, "weight": round(float(weights[i]), 4)}
            kept_stream.write(_to_line(row))
    return report


def _check_apart(files: Sequence[Path], outputs: Sequence[Path]) -> None:
    for output in outputs:
        for file in files:
            if file.resolve() == output.resolve():
                raise InvalidInput(f"{file} would be written over; name another file to write to")


def _read_pairs(
    files: Sequence[Path], report: CleaningReport, incomplete: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows with both texts; the others, or where they stand, are added to `incomplete`."""
    rows: list[dict[str, Any]] = []
    for file in files:
        before = len(rows)
        for line, row in read_rows(file):
            report.rows += 1
            place = {"file": file.name, "line": line}
            if isinstance(row, str):
                report.note(_NO_TEXTS, place)
                incomplete.append({**place, "problem": row})
                continue
            plain = _make_plain(row, f"{file}:{line}")
            texts = {name: plain.get(name) for name in ("query", "positive")}
            cleaned = {name: clean_text(text) for name, text in texts.items() if isinstance(text, str)}
            if len(cleaned) < 2 or not all(cleaned.values()):
                report.note(_NO_TEXTS, place)
                incomplete.append(plain)
                continue
            rows.append({**plain, **cleaned})
        if len(rows) == before:
            raise DataError(f"{file} has no row with texts in 'query' and 'positive'")
    return rows


def _make_plain(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The row with times as strings: Parquet has values that JSON has not, and to learn that at the end is too late."""
    plain = {name: plain_scalar(value) for name, value in row.items()}
    for name, value in plain.items():
        if not isinstance(value, str | int | float | None):
            try:
                plain[name] = json.loads(json.dumps(value, default=plain_scalar))
            except (TypeError, ValueError) as error:
                raise DataError(f"{place}: the column {name!r} cannot be written as JSON ({error}); drop it") from error
    return plain


def _apply_rules(rows: Sequence[dict[str, Any]], reasons: list[str | None], options: RuleOptions) -> None:
    uses = count_uses([(row["query"], row["positive"]) for row in rows])
    for i, row in enumerate(rows):
        if text_key(row["query"]) == text_key(row["positive"]):
            reasons[i] = "query and positive are the same text"
        else:
            reasons[i] = find_fault(row["query"], row["positive"], uses[text_key(row["positive"])], options)


def _mark_duplicates(rows: Sequence[dict[str, Any]], reasons: list[str | None], similarity: float) -> None:
    """Of pairs that are near-duplicates on both sides the first stays."""
    remaining = _list_kept(reasons)
    queries = group_near_duplicates([rows[i]["query"] for i in remaining], similarity)
    positives = group_near_duplicates([rows[i]["positive"] for i in remaining], similarity)
    first: set[tuple[int, int]] = set()
    for i, group in zip(remaining, zip(queries.tolist(), positives.tolist(), strict=True), strict=True):
        if group in first:
            reasons[i] = "near-duplicate"
        first.add(group)


def _mark_foreign(
    rows: Sequence[dict[str, Any]], reasons: list[str | None], least: float, encoder: Encoder | None, seed: int
) -> None:
    """Mark passages that do not belong to the others; each half is judged by what the other is like."""
    from peg_rag.encoder import PEGEncoder
    from peg_rag.training.clean.partwise import fit_discriminator

    remaining = np.array(_list_kept(reasons), dtype=np.int64)
    keys = np.array([text_key(rows[i]["positive"]) for i in remaining.tolist()], dtype=np.int64)
    distinct, first, places = np.unique(keys, return_index=True, return_inverse=True)
    texts = [rows[i]["positive"] for i in remaining[first].tolist()]
    halves = assign_halves(distinct)
    if min(halves.sum(), (~halves).sum()) < 2:
        return
    odds = np.empty(len(texts))
    with nullcontext(encoder) if encoder is not None else PEGEncoder("peg-mini", device="cpu") as judge:
        for half in (False, True):
            lesson = [texts[i] for i in np.flatnonzero(halves != half).tolist()]
            judged = np.flatnonzero(halves == half)
            discriminator = fit_discriminator(lesson, judge, shuffled=SHUFFLED_SHARE, seed=seed)
            odds[judged] = discriminator.score_documents([texts[i] for i in judged.tolist()])
    for i in remaining[odds[places] < np.log(least / (1 - least))].tolist():
        reasons[i] = "foreign passage"


def _check_consistency(
    rows: Sequence[dict[str, Any]],
    reasons: list[str | None],
    options: CleaningOptions,
    encoder: Encoder | None,
    out: Path,
    show_progress: bool,
) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """Mark pairs whose positive is not found; the trust weights of all rows, (n,)."""
    remaining = _list_kept(reasons)
    keys = np.array([text_key(rows[i]["positive"]) for i in remaining], dtype=np.int64)
    weights = np.ones(len(rows), dtype=np.float32)
    if not remaining:
        return weights
    for part, judge in _assign_judges([rows[i] for i in remaining], keys, encoder, out, options.seed, show_progress):
        places = [remaining[i] for i in part.tolist()]
        queries = [rows[i]["query"] for i in places]
        positives = [rows[i]["positive"] for i in places]
        ranks, cosines = rank_positives(queries, positives, keys[part], judge, options.pool)
        weights[places] = trust_of(cosines)
        if options.top is not None:
            for place, rank in zip(places, ranks.tolist(), strict=True):
                if rank > options.top:
                    reasons[place] = "positive not found"
    return weights


def _assign_judges(
    rows: Sequence[dict[str, Any]], keys: Ints, encoder: Encoder | None, out: Path, seed: int, show_progress: bool
) -> Iterator[tuple[Ints, Encoder]]:
    """Rows and the model that judges them: all by the one that is given, or each half by the other's."""
    if encoder is not None:
        yield np.arange(len(rows)), encoder
        return
    from peg_rag.encoder import PEGEncoder

    halves = assign_halves(keys)
    work = out.with_name(f"{out.name}.cleaning")
    for half in (False, True):
        judged = np.flatnonzero(halves == half)
        lesson = np.flatnonzero(halves != half)
        if not len(judged):
            continue
        if len(lesson) < 2:
            raise DataError("too few pairs to train a first model on; give an encoder, or set top to None")
        lines = [_to_line({name: rows[i][name] for name in ("query", "positive")}) for i in lesson.tolist()]
        model = _train_first_model(work / f"half-{int(half)}", b"".join(lines), len(lesson), seed, show_progress)
        with PEGEncoder(str(model), device="cpu") as judge:
            yield judged, judge


def _train_first_model(folder: Path, lesson: bytes, rows: int, seed: int, show_progress: bool) -> Path:
    """The folder of a model of these rows, begun or finished by an earlier call; other rows' models are removed."""
    from peg_rag.training.run.train import train

    key = hashlib.blake2b(lesson + str(seed).encode(), digest_size=8).hexdigest()
    work = folder / key
    for other in folder.glob("*"):
        if other != work:
            shutil.rmtree(other)
    pairs = work / "pairs.jsonl"
    write_atomically(pairs, lesson)
    recipe = first_model_recipe(pairs, rows, work / "model", work / "cache", seed)
    result = train(recipe, resume=True, show_progress=show_progress)
    if result.interrupted:
        raise KeyboardInterrupt
    return result.folder


def _list_kept(reasons: Sequence[str | None]) -> list[int]:
    return [i for i, reason in enumerate(reasons) if reason is None]


def _to_line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
