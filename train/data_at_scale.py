r"""Five million pre-tokenised pairs in shards: do they stream faster than an encoder eats them, in flat memory?

Shards as `peg_rag.training.data` keeps them (Arrow, mapped from disk), of random token ids with the lengths of Chinese
questions and passages. Batches are drawn over all of them as in training. Measured on one core: pairs a second of the
data, and of a BERT of 4 layers × 256 through forward, forward again and backward; and the process's own memory at the
beginning and the end.

    python train/data_at_scale.py --out runs/data

Cost: 2.5 GB of disk and a few minutes.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from experiments import RESULTS

from peg_rag.batching import plan_batches
from peg_rag.files import write_atomically
from peg_rag.training.data.batches import FeatureRows, KnownPositives, StepBatches
from peg_rag.training.data.pairs import PairFile, ReadReport
from peg_rag.training.data.sampler import BatchPlan, SourceRows
from peg_rag.training.data.tokens import Ints
from peg_rag.training.model.encoder import bert_config
from peg_rag.training.recipe import TransformerOptions

VOCABULARY = 21_128
QUERY_TOKENS, PASSAGE_TOKENS = 14, 90  # medians
BATCH = 1_024
ENCODER = TransformerOptions(hidden_size=256, layers=4, heads=4)


def make_shard(folder: Path, number: int, rows: int) -> PairFile:
    """A shard on disk, made where it is not there yet."""
    generator = np.random.default_rng(number)
    query_keys, positive_keys = generator.integers(-(2**62), 2**62, size=(2, rows))
    texts, tokens = folder / f"rows-{number}.arrow", folder / f"tokens-{number}.arrow"
    if not tokens.is_file():
        blank = pa.array([""] * rows)
        empty = pa.ListArray.from_arrays(pa.array(np.zeros(rows + 1, np.int32)), pa.array([], pa.int64()))
        write_table(texts, {"query": blank, "positive": blank, "negatives": empty, "negative_keys": empty})
        columns = {
            "query_ids": draw_tokens(generator, rows, QUERY_TOKENS),
            "positive_ids": draw_tokens(generator, rows, PASSAGE_TOKENS),
            "negatives_ids": pa.ListArray.from_arrays(
                pa.array(np.zeros(rows + 1, np.int32)),
                pa.ListArray.from_arrays(pa.array([0], pa.int32()), pa.array([], pa.int32())),
            ),
        }
        write_table(tokens, columns)
    return PairFile(
        f"shard-{number}",
        Dataset.from_file(str(texts)),
        Dataset.from_file(str(tokens)),
        np.arange(rows),
        query_keys,
        positive_keys,
        np.full(rows, np.nan, np.float32),
        np.ones(rows, np.float32),
        np.full(rows, -1, np.int64),
        1.0,
        ReadReport(f"shard-{number}", rows),
    )


def draw_tokens(generator: np.random.Generator, rows: int, median: int) -> pa.ListArray:
    """Rows of random ids, of log-normal lengths."""
    lengths = np.clip(generator.lognormal(np.log(median), 0.6, rows), 3, 256).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, generator.integers(5, VOCABULARY, int(offsets[-1]), dtype=np.int32))


def write_table(file: Path, columns: dict[str, pa.Array]) -> None:
    table = pa.table(columns)
    part = file.with_suffix(".part")
    with part.open("wb") as stream, pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=10_000)
    part.replace(file)


def own_memory() -> float:
    """MiB that this process holds besides files that it maps."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def measure_stream(batches: StepBatches, steps: int) -> dict[str, float]:
    """Pairs and tokens a second of the processor, and memory after a tenth of the steps and at the end."""
    pairs = tokens = 0
    early = 0.0
    started = time.process_time()
    for step in range(steps):
        batch = batches[step]
        pairs += len(batch.queries)
        tokens += len(batch.queries.tokens) + len(batch.documents.tokens)
        if step == steps // 10:
            early = own_memory()
    seconds = time.process_time() - started
    return {
        "pairs_per_second": pairs / seconds,
        "tokens_per_second": tokens / seconds,
        "mib_after_a_tenth": early,
        "mib_at_the_end": own_memory(),
    }


def measure_encoder(batch_rows: int, rounds: int = 2) -> float:
    """Pairs a second of the processor that the encoder eats: forward, forward again, backward."""
    from transformers import BertModel

    torch.set_num_threads(1)
    model = BertModel(bert_config(ENCODER, VOCABULARY, 256), add_pooling_layer=False)
    generator = np.random.default_rng(0)
    best = float("inf")
    for _ in range(rounds):
        seconds = 0.0
        for median in (QUERY_TOKENS, PASSAGE_TOKENS):
            rows = read_rows(draw_tokens(generator, batch_rows, median))
            started = time.process_time()
            for chunk in plan_batches(rows.lengths, 4_096):
                features = rows.features(chunk)
                with torch.no_grad():
                    model(**features)
                model(**features).last_hidden_state[:, 0].sum().backward()
            seconds += time.process_time() - started
        best = min(best, seconds)
    return batch_rows / best


def read_rows(array: pa.ListArray) -> FeatureRows:
    from peg_rag.training.data.tokens import token_rows_of

    return FeatureRows(token_rows_of(array), 0, torch.device("cpu"))


def build_batches(files: list[PairFile], steps: int) -> StepBatches:
    """All rows of all shards in batches, as a stage of training makes them."""
    rows: list[Ints] = [file.usable for file in files]
    sources = [SourceRows(file.name, file.query_keys, file.positive_keys) for file in files]
    plan = BatchPlan(sources, batch=BATCH, steps=steps, alpha=1.0)
    return StepBatches(
        files, rows, plan, steps=steps, negatives=0, rank=0, world=1, known_positives=KnownPositives(files)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5_000_000)
    parser.add_argument("--shards", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1_000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    files = [make_shard(arguments.out, i, arguments.pairs // arguments.shards) for i in range(arguments.shards)]
    stream = measure_stream(build_batches(files, arguments.steps), arguments.steps)
    encoder = measure_encoder(64)
    result = {
        "pairs": sum(len(file.usable) for file in files),
        "shards": len(files),
        "mb_on_disk": round(sum(path.stat().st_size for path in arguments.out.glob("*.arrow")) / 1e6),
        "steps_of": BATCH,
        **{name: round(value) for name, value in stream.items()},
        "encoder_pairs_per_second": round(encoder, 1),
        "times_the_encoder": round(stream["pairs_per_second"] / encoder),
    }
    print(json.dumps(result))
    if arguments.pairs >= 5_000_000:
        write_atomically(RESULTS / "data_at_scale.json", (json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
