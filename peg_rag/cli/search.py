"""`peg-rag search kb "问题"`: the best passages of a store, with where they stand and every score."""

import json
import time
from typing import Annotated

import typer


def search(
    store: Annotated[str, typer.Argument(help="A folder made by `peg-rag index`, or the URL of a store.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 5,
    mode: Annotated[str, typer.Option(help="hybrid, dense or lexical.")] = "hybrid",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Default: the model the store was made with.")
    ] = None,
    rerank: Annotated[
        str, typer.Option(help="A second look at 50 hybrid hits: auto (with peg-mini), mini (or an error) or none.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each hit, in a line.")] = False,
) -> None:
    """Search a store."""
    from peg_rag.cli import knowledge
    from peg_rag.cli.console import note, show

    with knowledge.open_store(store, model) as (index, encoder):
        start = time.perf_counter()
        [hits] = knowledge.find_hits(index, encoder, [query], k, mode, rerank)
        elapsed_ms = 1000 * (time.perf_counter() - start)
        documents = len(index)
    if as_json:
        for hit in hits:
            print(json.dumps(knowledge.hit_to_json(hit), ensure_ascii=False))
        return
    for rank, hit in enumerate(hits, start=1):
        show(knowledge.render_hit(rank, hit, query, lines=3))
    is_reranked = any("rerank" in hit.scores for hit in hits)
    method = f"{mode}, reranked" if is_reranked else mode
    note(f"{len(hits)} of {documents:,} chunks, {method}, {elapsed_ms:.0f} ms")
