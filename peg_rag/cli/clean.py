"""`peg-rag clean`: training pairs → those worth training on, and a report of the others."""

from pathlib import Path
from typing import Annotated

import typer


def clean(
    pairs: Annotated[list[Path], typer.Argument(help="Files of pairs: .jsonl, .csv, .tsv (.gz, .zst) or .parquet.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write: .jsonl.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="What judges the pairs; by default two models, each trained on one half."),
    ] = None,
    top: Annotated[int, typer.Option(help="The positive must be among so many; 0 skips this filter.", min=0)] = 20,
    pool: Annotated[int, typer.Option(help="Random passages that the positive competes with.", min=1)] = 10_000,
    similarity: Annotated[
        float, typer.Option(help="Jaccard similarity of near-duplicates; 0 keeps them.", min=0, max=1)
    ] = 0.8,
    minimum_chinese: Annotated[float, typer.Option(help="Share of letters that are Chinese.", min=0, max=1)] = 0.0,
    maximum_uses: Annotated[
        int, typer.Option(help="A positive of more queries is boilerplate; 0 allows any.", min=0)
    ] = 100,
    belonging: Annotated[
        float,
        typer.Option(help="Least probability that a passage belongs to the others; 0 skips this rule.", min=0, max=1),
    ] = 0.0,
    trust: Annotated[bool, typer.Option("--trust", help="Write trust weights to the column weight.")] = False,
    seed: Annotated[int, typer.Option(help="Of the models that are trained.")] = 0,
) -> None:
    """Remove noise from pairs: rules, near-duplicates, and positives that a first model does not find."""
    from peg_rag.cli.console import stderr
    from peg_rag.encoder import PEGEncoder
    from peg_rag.training.clean.clean import CleaningOptions, clean_pairs
    from peg_rag.training.clean.rules import RuleOptions

    options = CleaningOptions(
        rules=RuleOptions(minimum_chinese=minimum_chinese, maximum_uses=maximum_uses or None),
        similarity=similarity or None,
        top=top or None,
        pool=pool,
        belonging=belonging or None,
        trust=trust,
        seed=seed,
    )
    encoder = PEGEncoder(model) if model is not None else None
    report = clean_pairs(pairs, out, options=options, encoder=encoder, show_progress=True)
    stderr.print(f"{report.kept:,} of {report.rows:,} pairs → {out}", soft_wrap=True)
    for reason, count in report.removed.most_common():
        example = next((row["query"] for row in report.examples[reason] if "query" in row), "")
        stderr.print(f"  {count:,} {reason}" + (f", such as {example[:40]}" if example else ""), markup=False)
    if report.removed:
        stderr.print(f"What was removed, with its reason: {out}.removed.jsonl", soft_wrap=True)
