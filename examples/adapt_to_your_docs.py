"""Adapt a model to documents that have no questions, and see on held-out documents what it gained.

python examples/adapt_to_your_docs.py                           # 2,000 of the demo's passages, about half a minute
python examples/adapt_to_your_docs.py path/to/docs my-model     # yours: txt, md, html, pdf, docx, csv, jsonl

`peg-mini` was trained on passages like the demo's, so there is next to nothing left to gain here; on news that a model
had not seen it was 15 points (train/LOG.md). The same from the command line: peg-rag adapt path/to/docs -o my-model
"""

import gzip
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from peg_rag import PEGEmbeddings
from peg_rag.training.adapt import AdaptOptions, adapt


def demo_documents(folder: Path) -> Path:
    """A folder of documents, as you have one: here a JSONL file, of which each row is one."""
    packed = files("peg_rag") / "assets" / "demo" / "passages.jsonl.gz"
    rows = gzip.decompress(packed.read_bytes()).decode().splitlines()[:2_000]
    (folder / "docs").mkdir()
    (folder / "docs" / "passages.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder / "docs"


def main(documents: Path, out: Path) -> None:
    done = adapt(documents, "peg-mini", out, AdaptOptions(held_out=0.2), force=True)
    judgement = done.judgement
    if judgement is None:
        raise SystemExit("interrupted; run it again to go on")
    print(f"{done.pairs:,} pairs cut from {done.documents - done.held_out:,} documents, {done.steps} steps")
    print(
        f"{len(judgement.before.query_ids)} queries of {done.held_out:,} held-out documents (half of them to choose on)"
    )
    for metric in ("nDCG@10", "MRR@10", "Recall@10"):
        print(f"  {metric:10} {judgement.before.mean(metric):.3f} → {judgement.after.mean(metric):.3f}")
    found = judgement.comparison
    print(f"  nDCG@10 {found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f}), p = {found.p:.4f}")
    print("  a gain" if found.low > 0 else "  no gain beyond chance: keep the model as it was, it may know such texts")
    embeddings = PEGEmbeddings(model=out)  # the result is a model like any other
    print(f"vectors of {len(embeddings.embed_query('北京有哪些值得一看的古迹？'))} dimensions from {out.name}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        given = [Path(argument) for argument in sys.argv[1:]]
        main(given[0] if given else demo_documents(Path(folder)), given[1] if len(given) > 1 else Path(folder) / "mine")
