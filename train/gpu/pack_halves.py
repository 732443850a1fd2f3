"""Pack one half of the permitted domains for `residual.py`: its static model, its pairs, and what the other half asks.

`train/reranker.py halves` trains two static models that share the permitted domains between them. A contextual encoder
that starts as one of them, and is trained on the same domains, can be judged on the domains of the other: nothing in
it has seen those. So a pack holds the token table (8-bit, a scale for each row) and the pairs of one half, validation
queries of both halves, and the Chinese evaluation sets, scored to report.

    python train/gpu/pack_halves.py --models runs/reranker --half b --out runs/gpu

makes `half-b.npz.xz` (some 30 MiB). Cost: five minutes of one core for a half.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments import chinese_sets, data_folder
from pack import Texts, encode, read_rows, write_xz
from sources import RESEARCH_ONLY

from peg_rag.training.data.sampler import in_validation, smallest_hashes
from peg_rag.training.data.texts import text_key

HALVES = {
    "a": ("law", "medicine", "psychology", "tourism", "film", "music"),
    "b": ("news", "finance", "insurance", "realestate", "web", "general", "encyclopedia", "science"),
}
LARGEST = {"psychology-smile": 16_000, "news-crud_lead": 12_000}  # pairs drawn from a source that outweighs the others
VALIDATION_SHARE = 0.02  # as in the recipe of the halves, so that what it held out stays held out
VALIDATION_QUERIES = 200  # of a source
VALIDATION_CORPUS = 3_000
QUERY_TOKENS = 64
PASSAGE_TOKENS = 256
SHORT_TOKENS = 96  # of a passage of an evaluation set whose domain is in the half
LEVELS = 8  # steps of the 8-bit table to the root mean square of a row
SEED = 20
EVALUATION_HALVES = {
    "encyclopedia": "b",
    "finance": "b",
    "law": "a",
    "medical": "a",
    "news": "b",
    "psychology": "a",
    "science": "b",
    "tourism": "a",
    "web": "b",
}
Arrays = dict[str, NDArray[Any]]


def pair_files(data: Path) -> list[Path]:
    files = sorted((data / "pairs").glob("*.jsonl.zst"))
    return [file for file in files if file.name.split(".")[0] not in RESEARCH_ONLY]


def half_of(file: Path) -> str:
    domain = file.name.split("-")[0]
    return next(half for half, domains in HALVES.items() if domain in domains)


def pack_table(file: Path) -> Arrays:
    """A static model's token vectors in 8 bits: `codes` times `scales`, (tokens, dimension) and (tokens, 1)."""
    table = load_file(file)["embedding.weight"].astype(np.float32)
    scales = np.sqrt(np.mean(table**2, axis=1, keepdims=True)) / LEVELS
    scales = np.maximum(scales, 1e-8)
    codes = np.clip(np.rint(table / scales), -127, 127).astype(np.int8)
    return {"table/codes": codes, "table/scales": scales.astype(np.float32)}


def read_pairs(file: Path) -> list[tuple[str, str]]:
    rows = [(row["query"], row["positive"]) for row in read_rows(file)]
    return list(dict.fromkeys(row for row in rows if row[0] != row[1]))


def keys_of(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.array([text_key(text) for text in texts], dtype=np.int64)


def choose_queries(pairs: Sequence[tuple[str, str]], keys: NDArray[np.int64]) -> set[str]:
    """Up to 200 queries of a source, by their hash."""
    unique, first = np.unique(keys, return_index=True)
    return {pairs[first[row]][0] for row in smallest_hashes(unique, VALIDATION_QUERIES, 11).tolist()}


def pack_validation(name: str, pairs: list[tuple[str, str]], queries: set[str], texts: Texts) -> Arrays:
    """The queries, a corpus that holds their answers, and which answers which (rows of both)."""
    answers = [pair for pair in pairs if pair[0] in queries]
    corpus = list(dict.fromkeys(positive for _, positive in answers))
    distractors = [text for text in dict.fromkeys(positive for _, positive in pairs) if text not in set(corpus)]
    random.Random(SEED).shuffle(distractors)
    corpus += distractors[: max(0, VALIDATION_CORPUS - len(corpus))]
    row_of = {text: row for row, text in enumerate(corpus)}
    query_row = {text: row for row, text in enumerate(sorted(queries))}
    return {
        f"validation/{name}/queries": np.array([texts.number(text) for text in query_row], dtype=np.int32),
        f"validation/{name}/corpus": np.array([texts.number(text) for text in corpus], dtype=np.int32),
        f"validation/{name}/answers": np.array([(query_row[q], row_of[p], 1) for q, p in answers], dtype=np.int32),
    }


def pack_pairs(data: Path, half: str, texts: Texts) -> Arrays:
    """Training pairs of the half, and validation queries of every source."""
    arrays: Arrays = {}
    sources = {file.name.split(".")[0]: (half_of(file), read_pairs(file)) for file in pair_files(data)}
    keys = {name: keys_of([query for query, _ in pairs]) for name, (_, pairs) in sources.items()}
    names = [name for name, (side, _) in sources.items() if side == half]
    held_out_keys = np.concatenate([keys[name][in_validation(keys[name], VALIDATION_SHARE)] for name in names])
    for name, (side, pairs) in sources.items():
        held_out = in_validation(keys[name], VALIDATION_SHARE)
        if side == half:
            leaks = np.isin(keys_of([positive for _, positive in pairs]), held_out_keys)
            rows = np.flatnonzero(~held_out & ~leaks).tolist()
            random.Random(SEED).shuffle(rows)
            training = [pairs[row] for row in rows[: LARGEST.get(name, len(rows))]]
            arrays[f"train/{name}/queries"] = np.array([texts.number(q) for q, _ in training], dtype=np.int32)
            arrays[f"train/{name}/positives"] = np.array([texts.number(p) for _, p in training], dtype=np.int32)
        judged = np.flatnonzero(held_out) if side == half else np.arange(len(pairs))
        queries = choose_queries([pairs[row] for row in judged.tolist()], keys[name][judged])
        if len(queries) >= 20:
            kind = "known" if side == half else "new"
            arrays |= pack_validation(f"{kind}/{name}", pairs, queries, texts)
    return arrays


def pack_texts(tokenizer: Tokenizer, texts: list[str], limits: NDArray[np.int64], prefix: str) -> Arrays:
    """Token ids of all texts one after the other, each cut at its limit, and their lengths."""
    tokens, ends = encode(tokenizer, texts, prefix)
    starts = np.concatenate([[0], ends[:-1]])
    lengths = np.minimum(ends - starts, limits)
    places = np.concatenate([np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])
    return {f"{prefix}/tokens": tokens[places.astype(np.int64)], f"{prefix}/lengths": lengths.astype(np.uint16)}


def pack_evaluation(
    data: Path, half: str, tokenizer: Tokenizer, domains: Sequence[str]
) -> tuple[Arrays, dict[str, Any]]:
    arrays: Arrays = {}
    ids: dict[str, Any] = {}
    for dataset in chinese_sets(data):
        if domains and dataset.name.split("-")[0] not in domains:
            continue
        documents = list(dataset.corpus)
        queries = [query for query in dataset.queries if query in dataset.qrels]
        texts = [*dataset.corpus.values(), *(dataset.queries[query] for query in queries)]
        is_known = EVALUATION_HALVES[dataset.name.split("-")[0]] == half
        limits = np.full(len(texts), SHORT_TOKENS if is_known else PASSAGE_TOKENS)
        limits[len(documents) :] = QUERY_TOKENS
        prefix = f"evaluation/{dataset.name}"
        arrays |= pack_texts(tokenizer, texts, limits, prefix)
        row_of = {document: row for row, document in enumerate(documents)}
        answers = [(n, row_of[d], g) for n, q in enumerate(queries) for d, g in dataset.qrels[q].items() if g > 0]
        arrays[f"{prefix}/documents"] = np.array(len(documents))
        arrays[f"{prefix}/answers"] = np.array(answers, dtype=np.int32)
        arrays[f"{prefix}/known"] = np.array(is_known)
        ids[dataset.name] = {"documents": documents, "queries": queries}
    return arrays, ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="where `train/reranker.py halves` left its models")
    parser.add_argument("--half", choices=list(HALVES), required=True)
    parser.add_argument("--domains", nargs="*", default=[], help="of the evaluation sets; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    arguments = parser.parse_args()
    data = data_folder()
    model = arguments.models / f"half-{arguments.half}"
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = Texts()
    arrays = pack_pairs(data, arguments.half, texts)
    passages = [value for name, value in arrays.items() if name.endswith(("/positives", "/corpus"))]
    limits = np.full(len(texts.numbers), QUERY_TOKENS)
    limits[np.concatenate(passages)] = PASSAGE_TOKENS
    arrays |= pack_texts(tokenizer, list(texts.numbers), limits, "texts")
    arrays |= pack_table(model / "model.safetensors")
    evaluation, ids = pack_evaluation(data, arguments.half, tokenizer, arguments.domains)
    arrays |= evaluation
    file = arguments.out / f"half-{arguments.half}.npz.xz"
    write_xz(file, arrays)
    (arguments.out / f"half-{arguments.half}.json").write_text(json.dumps(ids), encoding="utf-8")


if __name__ == "__main__":
    main()
