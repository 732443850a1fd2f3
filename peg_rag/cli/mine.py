"""`peg-rag mine`: training pairs → the same pairs with hard negatives."""

from pathlib import Path
from typing import Annotated

import typer

from peg_rag.errors import InvalidInput


def mine(
    pairs: Annotated[list[Path], typer.Argument(help="Files of pairs: .jsonl, .csv, .tsv (.gz, .zst) or .parquet.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write: .jsonl, .jsonl.gz or .jsonl.zst.")],
    corpus: Annotated[
        list[Path] | None, typer.Option(help="Files of passages; by default those of the pairs. May be repeated.")
    ] = None,
    negatives: Annotated[int, typer.Option(help="Negatives for each pair.", min=1)] = 5,
    model: Annotated[
        str, typer.Option("--model", "-m", help="What ranks: a hub id, a folder or a bundled name.")
    ] = "peg-mini",
    first_rank: Annotated[int, typer.Option(help="Skip candidates ranked above this.", min=1)] = 1,
    last_rank: Annotated[int, typer.Option(help="Consider candidates down to this rank.", min=1)] = 100,
    margin: Annotated[float | None, typer.Option(help="Cosine that a negative must lie below the positive's.")] = None,
    relative_margin: Annotated[
        float, typer.Option(help="Share of the positive's cosine that a negative must lie below; 0 switches it off.")
    ] = 0.95,
    sample: Annotated[str, typer.Option(help="top: the hardest; random: any of the range.")] = "top",
    keep: Annotated[bool, typer.Option(help="Keep the negatives in the file, before mined ones.")] = True,
    bm25: Annotated[bool, typer.Option("--bm25", help="Let BM25 propose candidates too.")] = False,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Search quantised vectors in lists: for millions of passages.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the random draw.")] = 0,
    shard_rows: Annotated[int, typer.Option(help="Passages whose vectors are in memory at once.", min=1)] = 100_000,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; by default the best that is available.")] = None,
) -> None:
    """Mine hard negatives. Interrupted, it goes on where it stopped when run again with the same arguments."""
    if sample not in ("top", "random"):
        raise InvalidInput(f"--sample {sample}: top or random is expected")
    from peg_rag.cli.console import stderr
    from peg_rag.encoder import PEGEncoder
    from peg_rag.training import MiningOptions, mine_hard_negatives

    options = MiningOptions(
        negatives=negatives,
        first_rank=first_rank,
        last_rank=last_rank,
        margin=margin,
        relative_margin=relative_margin or None,
        random=sample == "random",
        keep=keep,
        bm25=bm25,
        approximate=approximate,
        seed=seed,
    )
    with PEGEncoder(model, device=device) as encoder:
        report = mine_hard_negatives(
            pairs, out, encoder, corpus=corpus, options=options, shard_rows=shard_rows, show_progress=True
        )
    refusals = ", ".join(f"{count:,} {reason}" for reason, count in report.refused.items())
    stderr.print(
        f"{report.negatives:,} negatives for {report.pairs:,} pairs out of {report.corpus:,} passages → {out}; "
        f"{report.short:,} pairs have fewer than {negatives}; refused: {refusals or 'none'}",
        soft_wrap=True,
    )
