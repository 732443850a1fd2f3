"""Adapt a model to documents that have no questions, and see on held-out documents and questions what it gained.

python examples/adapt_to_your_docs.py                           # sections of a handbook, about half a minute
python examples/adapt_to_your_docs.py path/to/docs my-model     # yours: txt, md, html, pdf, docx, csv, jsonl

`peg-mini` has hardly seen a text about running servers, so a handbook on Debian can teach it much. The headings of the
handbook serve as questions: they were taken out of the text, so adapting never sees them. On documents like those that
a model was trained on, expect next to nothing. The same from the command line: peg-rag adapt path/to/docs -o my-model
"""

import gzip
import json
import sys
import tempfile
from pathlib import Path

from peg_rag import PEGEncoder
from peg_rag.evaluation import RetrievalDataset, compare, evaluate
from peg_rag.training.adapt import AdaptOptions, adapt

HANDBOOK = Path(__file__).parent / "handbook" / "sections.jsonl.gz"


def load_handbook() -> RetrievalDataset:
    """The sections of the handbook, and their headings as questions."""
    rows = [json.loads(line) for line in gzip.decompress(HANDBOOK.read_bytes()).decode("utf-8").splitlines()]
    return RetrievalDataset(
        "handbook",
        corpus={row["id"]: row["text"] for row in rows},
        queries={row["id"]: row["title"] for row in rows},
        qrels={row["id"]: {row["id"]: 1} for row in rows},
    )


def write_documents(handbook: RetrievalDataset, folder: Path) -> Path:
    """A folder of documents, as you have one: here a JSONL file, of which each row is one."""
    folder.mkdir()
    rows = (json.dumps({"text": text}, ensure_ascii=False) for text in handbook.corpus.values())
    (folder / "sections.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def adapt_model(documents: Path, out: Path) -> bool:
    """Adapt `peg-mini`, and return whether it found more in documents that were held out; only then is it saved."""
    adaptation = adapt(documents, "peg-mini", out, AdaptOptions(held_out=0.2))
    judgement = adaptation.judgement
    if judgement is None:
        raise SystemExit("interrupted; run it again to go on")
    training = adaptation.documents - adaptation.held_out
    queries = len(judgement.before.query_ids)
    print(f"{adaptation.pairs:,} pairs cut from {training:,} documents, {adaptation.steps} steps")
    print(f"{queries} queries of {adaptation.held_out:,} held-out documents (half of them to choose on)")
    for metric in ("nDCG@10", "MRR@10", "Recall@10"):
        print(f"  {metric:10} {judgement.before.mean(metric):.3f} → {judgement.after.mean(metric):.3f}")
    print_comparison(judgement.comparison.difference, judgement.comparison.low, judgement.comparison.high)
    return out.is_dir()


def ask_headings(handbook: RetrievalDataset, model: Path) -> None:
    """Search the sections for their headings, with the model as it was and as it is."""
    runs = []
    for name in ("peg-mini", model):
        with PEGEncoder(name) as encoder:
            runs.append(evaluate(encoder, handbook))
    before, after = runs
    print(f"{len(handbook.queries)} headings as questions to {len(handbook.corpus)} sections")
    print(f"  {'nDCG@10':10} {before.mean():.3f} → {after.mean():.3f}")
    comparison = compare([before], [after])
    print_comparison(comparison.difference, comparison.low, comparison.high)


def print_comparison(difference: float, low: float, high: float) -> None:
    verdict = "a gain" if low > 0 else "no gain beyond chance"
    print(f"  nDCG@10 {difference:+.3f} ({low:+.3f} to {high:+.3f}): {verdict}")


def main(folder: Path, arguments: list[str]) -> None:
    if arguments:
        adapt_model(Path(arguments[0]), Path(arguments[1]) if len(arguments) > 1 else folder / "mine")
        return
    handbook = load_handbook()
    if adapt_model(write_documents(handbook, folder / "docs"), folder / "mine"):
        ask_headings(handbook, folder / "mine")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name), sys.argv[1:])
