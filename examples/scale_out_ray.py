"""Embed a corpus on a Ray cluster: a pool of workers, Parquet in, Parquet out, then into an index.

python examples/scale_out_ray.py

The cluster is two workers on this machine. With RAY_ADDRESS set it is that one: keep the files where every machine
reads them, and give `map_batches` `num_gpus=1` for PEG itself. Ray streams the corpus, so memory does not grow with it,
and embeds again what a lost worker held. Workers finish in any order: rows are known by their ids.
"""

import gzip
import json
import os
import tempfile
from importlib.resources import files
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by the import: Ray would report its use to its makers

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import ray

from peg_rag import PEGEncoder, PEGIndex, Retriever

MODEL = "peg-mini"  # the small bundled model; TownsWu/PEG is PEG itself
QUESTION = "怎样让红葡萄酒变得更清澈？"


class Embed:
    """A worker: loads the model once, then embeds one batch after another."""

    def __init__(self, model: str) -> None:
        self.encoder = PEGEncoder(model)

    def __call__(self, batch: pa.Table) -> pa.Table:
        vectors = self.encoder.encode_documents(batch["text"].to_pylist())  # (rows, dimension)
        batch = batch.append_column("embedding", pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]))
        return batch.append_column("worker", pa.array([os.getpid()] * len(batch)))


def embed(corpus: Path, vectors: Path, workers: int) -> None:
    pool = ray.data.ActorPoolStrategy(size=workers)
    passages = ray.data.read_parquet(str(corpus)).repartition(
        target_num_rows_per_block=1024
    )  # what a worker gets at once
    embedded = passages.map_batches(
        Embed, fn_constructor_args=(MODEL,), compute=pool, batch_size=512, batch_format="pyarrow"
    )
    embedded.write_parquet(str(vectors))


def check(table: pa.Table) -> None:
    """The same texts in this one process give the same vectors."""
    alone = Embed(MODEL)(table.select(["id", "text"]))
    there, here = (np.stack(t["embedding"].to_numpy()) for t in (table, alone))  # (passages, dimension) each
    print(f"Largest difference to one process: {abs(there - here).max():.1e}")


def search(table: pa.Table) -> None:
    encoder = PEGEncoder(MODEL)
    with PEGIndex(identity=encoder.identity) as index:  # PEGIndex("kb", …) keeps it on disk
        for batch in table.to_batches():
            vectors = np.stack(batch["embedding"].to_numpy(zero_copy_only=False))
            index.upsert(batch["id"].to_pylist(), batch["text"].to_pylist(), vectors)
        print(QUESTION)
        for hit in Retriever(index, encoder, k=3, mode="hybrid").retrieve(QUESTION):
            print(f"  {hit.score:.2f} {hit.id}: {hit.text[:40]}…")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus, vectors = Path(folder, "corpus"), Path(folder, "vectors")
        corpus.mkdir()
        with gzip.open(str(files("peg_rag") / "assets/demo/passages.jsonl.gz"), "rt", encoding="utf-8") as lines:
            rows = [{"id": row["id"], "text": row["text"]} for row in map(json.loads, lines)]
        for part in range(4):
            pq.write_table(pa.Table.from_pylist(rows[part::4]), corpus / f"{part}.parquet")

        ray.init(
            num_cpus=None if "RAY_ADDRESS" in os.environ else 3, log_to_driver=False
        )  # one for reading and writing
        embed(corpus, vectors, workers=2)
        ray.shutdown()

        table = ds.dataset(vectors).to_table()
        print(f"{len(table):,} passages, embedded by {len(table['worker'].unique())} workers")
        check(table)
        search(table)


if __name__ == "__main__":
    main()
