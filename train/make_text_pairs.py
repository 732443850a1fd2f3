"""Pairs out of plain text for `recipes/peg_mini.yaml`: each passage is asked for by one of its own sentences.

    python train/make_text_pairs.py --data ../shared/data --out runs/text-pairs

`text/zh.txt.zst` mixes news, statutes and a source that is for research only. A passage is taken only where it shares
two runs of 16 letters with a permitted source of pairs, or is an article of a statute by its form, and shares none with
the research-only one. Cost: about a CPU minute.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from peg_rag.files import write_atomically
from peg_rag.training.data.files import read_lines
from peg_rag.training.data.texts import TextDocument, TextPair, pairs_from

PERMITTED = {"news-crud_lead": "news", "news-xwlb": "news", "law-statutes": "law"}
RESEARCH_PASSAGES = "reading-c3"  # for research only; the text holds its passages
RUN = 16  # letters
_ARTICLE = re.compile(r"第[一二三四五六七八九十百千零〇]+条")
_NOT_LETTER = re.compile(r"[\W_]+")


def runs(text: str, step: int) -> Iterator[int]:
    """Hashes of the runs of letters that begin at every `step`-th letter."""
    letters = _NOT_LETTER.sub("", text)
    return (hash(letters[i : i + RUN]) for i in range(0, max(1, len(letters) - RUN), step))


def known_runs(file: Path) -> set[int]:
    return {run for line in read_lines(file) for run in runs(json.loads(line)["positive"], RUN)}


def permitted_domain(text: str, runs_by_source: dict[str, set[int]]) -> str | None:
    """The domain of a passage that is known to come from a permitted source; None for all others."""
    shared_runs = Counter(name for run in runs(text, 1) for name, hashes in runs_by_source.items() if run in hashes)
    if shared_runs[RESEARCH_PASSAGES]:
        return None
    source, hits = max(((name, shared_runs[name]) for name in PERMITTED), key=lambda item: item[1])
    if hits >= 2:
        return PERMITTED[source]
    return "law" if _ARTICLE.search(text) else None


def text_documents(data: Path) -> Iterator[tuple[str, TextDocument]]:
    names = [*PERMITTED, RESEARCH_PASSAGES]
    runs_by_source = {name: known_runs(data / "pairs" / f"{name}.jsonl.zst") for name in names}
    for text in tqdm(read_lines(data / "text" / "zh.txt.zst"), desc="passages", mininterval=5):
        if domain := permitted_domain(text, runs_by_source):
            yield domain, TextDocument.of(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    documents: dict[str, list[TextDocument]] = {}
    for domain, document in text_documents(arguments.data):
        documents.setdefault(domain, []).append(document)
    for domain, domain_documents in sorted(documents.items()):
        write(arguments.out / f"{domain}-sentences.jsonl", list(pairs_from(domain_documents, ["sentence"])))


def write(file: Path, pairs: list[TextPair]) -> None:
    rows = (json.dumps({"query": p.query, "positive": p.positive}, ensure_ascii=False) + "\n" for p in pairs)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "".join(rows).encode())
    print(f"{file}: {len(pairs):,} pairs")


if __name__ == "__main__":
    main()
