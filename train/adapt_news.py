"""Does `peg-rag adapt` help? A model trained without news, adapted to the texts of the news set without its queries.

    python train/adapt_news.py --model runs/no_news            # PEG_DATA names the data folder, else ../shared/data
    python train/adapt_news.py --model runs/no_news --write    # also writes train/results/adapt_news.md

The texts of `eval/news-xwlb` are read, its headlines and judgements are not: they only score the model before and
after, and the adapted weights are thrown away. `train/leave_one_out.py` makes the model without news. The defaults of
`peg_rag.training.adapt` were chosen on financial news (the texts of `pairs/finance-finna`, asked with their headlines)
and a model trained without finance and news. Cost: about two minutes of processor time.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from peg_rag import PEGEncoder
from peg_rag.evaluation import METRICS, Dense, Evaluation, Indexed, RetrievalDataset, compare, evaluate, load_beir
from peg_rag.files import write_atomically
from peg_rag.training.adapt.adapt import adapt
from peg_rag.training.adapt.report import Adaptation

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "train" / "results" / "adapt_news.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a model trained without news")
    parser.add_argument("--write", action="store_true", help="write the table to train/results")
    options = parser.parse_args()
    data = Path(os.environ.get("PEG_DATA", ROOT.parent / "shared" / "data"))
    news = load_beir(data / "eval" / "news-xwlb")
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.txt"
        texts.write_text("\n".join(news.corpus.values()), encoding="utf-8")
        outcome = adapt(texts, options.model, Path(folder) / "model", show_progress=True)
        seconds = time.process_time() - start
        results = score(news, {"before": options.model, "after": outcome.folder if outcome.saved else options.model})
    report = table(results, outcome, seconds)
    print(report)
    if options.write:
        write_atomically(RESULTS, report.encode())


def score(news: RetrievalDataset, models: dict[str, Path]) -> list[Evaluation]:
    """BM25, then each model alone and with BM25."""
    results = [evaluate(Indexed("lexical"), news)]
    for name, folder in models.items():
        with PEGEncoder(folder) as encoder:
            results.append(evaluate(Dense(encoder, name), news))
            results.append(evaluate(Indexed("hybrid", encoder, f"{name}, with BM25"), news))
    return results


def table(results: list[Evaluation], outcome: Adaptation, seconds: float) -> str:
    rows = [f"| {r.system} | {' | '.join(f'{r.mean(metric):.4f}' for metric in METRICS)} |" for r in results]
    by_system = {result.system: result for result in results}
    gain, judgement = compare([by_system["before"]], [by_system["after"]]), outcome.judgement
    assert judgement is not None
    return f"""# Adapting to news without labels

`python train/adapt_news.py --write`: a static model trained without news, adapted to the {outcome.documents:,} texts of
`eval/news-xwlb`; {len(by_system["after"].query_ids):,} headlines, never seen, are asked.

| | {" | ".join(METRICS)} |
|---|{"---:|" * len(METRICS)}
{chr(10).join(rows)}

nDCG@10 of the model alone: **{100 * gain.difference:+.1f} points** (95 % interval {100 * gain.low:+.1f} to
{100 * gain.high:+.1f}, p = {gain.p:.4f}, permutation test paired over queries; {gain.wins} queries won,
{gain.losses} lost).

{outcome.pairs:,} pairs cut from {outcome.documents - outcome.held_out:,} texts, {outcome.steps} steps,
{judgement.share:.2f} of the trained weights; {seconds:.0f} s of processor time in all. On the sentences cut from
{outcome.held_out:,} held-out texts, which decide whether a model is saved: nDCG@10 {judgement.before.mean():.4f}
before, {judgement.after.mean():.4f} after.
"""


if __name__ == "__main__":
    main()
