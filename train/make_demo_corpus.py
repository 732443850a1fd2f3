"""Cut the demo's passages out of the training pairs: a few thousand real texts whose licences allow shipping them.

Only the passages are taken (the positives of the pairs, each once), from sources whose repository states an open
licence for the texts themselves; nothing comes from the evaluation sets. The questions beside them, in
`questions.jsonl`, are written by hand for the demo. Costs a second; the same data gives the same bytes.

    python train/make_demo_corpus.py            # reads $PEG_DATA, default ../shared/data
"""

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peg_rag.files import open_packed

REPO = Path(__file__).resolve().parent.parent
OUT = REPO / "peg_rag" / "assets" / "demo" / "passages.jsonl.gz"
MAX_CHARACTERS = 600  # longer texts would have to be cut into chunks first


@dataclass(frozen=True)
class Source:
    """One file of pairs: `prefix` begins the ids, texts shorter than `min_characters` are left out."""

    file: str
    prefix: str
    topic: str
    min_characters: int = 0
    titled: bool = False  # the query is the passage's title


SOURCES = (
    Source("encyclopedia-cmrc2018_trial", "wiki", "百科"),
    Source("science-csl", "paper", "论文", titled=True),
    Source("tourism-crosswoz_db", "beijing", "北京", titled=True),
    Source("tourism-kdconv_kb", "sight", "旅游", min_characters=40),
    Source("film-kdconv", "film", "电影", min_characters=40),
    Source("music-kdconv", "music", "音乐", min_characters=40),
)


def pairs(path: Path) -> Iterator[dict[str, str]]:
    with open_packed(path, "train") as lines:
        yield from map(json.loads, lines)


def passages(folder: Path) -> Iterator[dict[str, str]]:
    for source in SOURCES:
        titles: dict[str, str] = {}
        for pair in pairs(folder / f"{source.file}.jsonl.zst"):
            if len(pair["positive"]) >= source.min_characters:
                titles.setdefault(pair["positive"], pair["query"] if source.titled else "")
        # Sorted by text, so that the ids do not depend on the order of the rows.
        for number, text in enumerate(sorted(titles)):
            if len(text) > MAX_CHARACTERS:
                continue
            row = {"id": f"{source.prefix}-{number:04}", "topic": source.topic, "text": text}
            yield row | ({"title": titles[text]} if titles[text] else {})


def main() -> None:
    folder = Path(os.environ.get("PEG_DATA", REPO.parent / "shared" / "data")) / "pairs"
    rows = list(passages(folder))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    # No file name and no time in the gzip header, or the bytes would change from run to run.
    with OUT.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        for row in rows:
            packed.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    print(f"{len(rows)} passages, {OUT.stat().st_size / 1e6:.2f} MB -> {OUT}")


if __name__ == "__main__":
    main()
