"""How often a word of a question stands in what answers it, from the training pairs: 蓝牙 nearly always, 寄 seldom.

    python train/question_words.py            # PEG_DATA names the data folder, else ../shared/data; a few minutes
    python train/question_words.py --write    # also writes peg_rag/assets/question_words.json

Counted over the pairs of question and passage that may go into shipped weights (those marked research-only are left
out), each pair once and each source with the same say. Of a rare word little is known: its share is drawn towards that
of all rare words.
"""

import argparse
import json
import os
from collections import Counter
from pathlib import Path

from peg_rag.answering.words import fold_text, tokens_of
from peg_rag.training.data.files import read_rows

REPO = Path(__file__).resolve().parent.parent
ASSET = REPO / "peg_rag" / "assets" / "question_words.json"
# Sources whose queries are questions or requests, and whose positives are passages.
SOURCES = (
    "medicine-disease_kb",
    "insurance-baoxian",
    "finance-disc_finllm",
    "realestate-ccf2020",
    "tourism-kdconv",
    "tourism-kdconv_kb",
    "tourism-crosswoz",
    "film-kdconv",
    "music-kdconv",
    "encyclopedia-cmrc2018_trial",
    "web-qbqtc",
)
MOST_PAIRS = 5000  # of a source
PRIOR = 8.0  # occurrences that the share of all words counts as
LEAST = 3  # occurrences of a word that is kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PEG_DATA", REPO.parent / "shared" / "data")))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    question_counts: Counter[str] = Counter()
    answer_counts: Counter[str] = Counter()
    for name in SOURCES:
        rows = [row for _, row in read_rows(options.data / "pairs" / f"{name}.jsonl.zst") if not isinstance(row, str)]
        for row in rows[:MOST_PAIRS]:
            answer = fold_text(row["positive"])
            for token in set(tokens_of(fold_text(row["query"]))):
                question_counts[token] += 1
                answer_counts[token] += token in answer
    mean = sum(answer_counts.values()) / sum(question_counts.values())
    rare = [token for token, count in question_counts.items() if count < LEAST]
    other = sum(answer_counts[token] for token in rare) / sum(question_counts[token] for token in rare)
    shares = {
        token: round((answer_counts[token] + PRIOR * other) / (count + PRIOR), 3)
        for token, count in question_counts.items()
        if count >= LEAST
    }
    print(f"{len(shares):,} words, {mean:.3f} of all stand in the answer, {other:.3f} of rare ones")
    for token in (
        "什么",
        "多少",
        "请问",
        "寄",
        "发",
        "需要",
        "怎么",
        "电话",
        "地址",
        "门票",
        "保险",
        "批",
        "审批",
        "能",
        "花",
    ):
        print(f"  {token}: {shares.get(token)} of {question_counts[token]}")
    if options.write:
        content = {"format": 1, "other": round(other, 3), "shares": dict(sorted(shares.items()))}
        ASSET.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
        print(f"{ASSET}: {ASSET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
