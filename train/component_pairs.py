"""The pairs of the components' arms: as they are, with wrong positives, and cleaned.

Noise: a fifth of the training rows has the positive of another row of its file. Validation rows are neither changed nor
cleaned, so that all arms are measured by the same questions.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peg_rag.files import write_atomically
from peg_rag.training import CleaningOptions, clean_pairs
from peg_rag.training.data.files import read_rows
from peg_rag.training.data.sampler import in_validation
from peg_rag.training.data.texts import text_key

PATTERNS = (
    *("medicine*", "insurance*", "finance-fin*", "law-statutes*", "tourism*", "web*", "science*", "film*", "music*"),
    *("realestate*", "encyclopedia-cmrc*", "general-sim*", "general-tri*", "news-xwlb*"),
)
NOISE = 0.2


def list_files(data: Path) -> list[Path]:
    """The files of pairs that are used, in order."""
    return sorted({file for pattern in PATTERNS for file in (data / "pairs").glob(f"{pattern}.jsonl*")})


def read_pairs(file: Path) -> list[dict[str, Any]]:
    """The queries and positives of a file."""
    rows = [row for _, row in read_rows(file) if not isinstance(row, str)]
    return [{"query": row["query"], "positive": row["positive"]} for row in rows if row.get("positive")]


def file_name(file: Path) -> str:
    return f"{file.name.split('.')[0]}.jsonl"


def write_pairs(out: Path, name: str, rows: Sequence[dict[str, Any]], share: float) -> None:
    """A file of pairs as they are, and with wrong positives."""
    if not (out / "noisy" / name).is_file():
        write_rows(out / "clean" / name, rows)
        write_rows(out / "noisy" / name, swap_positives(rows, ~hold_out(rows, share)))


def clean_files(out: Path, folder: str, names: Sequence[str], share: float) -> None:
    """Clean some files of a folder together, but for their validation rows."""
    target = out / f"{folder}-cleaned"
    if all((target / name).is_file() for name in names):
        return
    files = {name: read_whole_rows(out / folder / name) for name in names}
    work = out / "work"
    write_rows(work / "pairs.jsonl", [{**row, "file": name} for name, rows in files.items() for row in rows])
    options = CleaningOptions(similarity=None, trust=True)
    clean_pairs(work / "pairs.jsonl", work / "cleaned.jsonl", options=options)
    cleaned = read_whole_rows(work / "cleaned.jsonl")
    for name, rows in files.items():
        validation = [rows[i] for i in np.flatnonzero(hold_out(rows, share))]
        write_rows(target / name, put_back([row for row in cleaned if row["file"] == name], validation))
    shutil.rmtree(work)


def read_whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file with all their columns; one that cannot be read is left out."""
    return [dict(row) for _, row in read_rows(path) if not isinstance(row, str)]


def hold_out(rows: Sequence[dict[str, Any]], share: float) -> "np.ndarray":
    """Which rows are of the validation split, (n,) bool."""
    return in_validation(np.array([text_key(row["query"]) for row in rows], dtype=np.int64), share)


def put_back(cleaned: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cleaned rows, with the validation rows as they were."""
    queries = {row["query"] for row in validation}
    kept = [row for row in cleaned if row["query"] not in queries]
    return kept + [{**row, "weight": 1.0} for row in validation]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def swap_positives(rows: Sequence[dict[str, Any]], trained: np.ndarray) -> list[dict[str, Any]]:
    """A fifth of the rows that are trained on, (n,) bool, gets the positive of another of them."""
    training_rows = np.flatnonzero(trained)
    noisy_rows = np.random.default_rng(0).permutation(training_rows)[: int(NOISE * len(training_rows))]
    noisy = [dict(row) for row in rows]
    for row, other in zip(noisy_rows.tolist(), np.roll(noisy_rows, 1).tolist(), strict=True):
        noisy[row]["positive"] = rows[other]["positive"]
    return noisy
