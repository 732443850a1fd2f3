"""Passages as the text that a tool returns to a language model: numbered, with where each comes from.

The tools of MCP, LangChain and LlamaIndex return the same text, so that a model cites all of them alike.
"""

from collections.abc import Iterable, Mapping
from typing import Any

NO_PASSAGES = "没有找到相关的段落。 / No passages found."


def write_numbered_passages(passages: Iterable[tuple[Mapping[str, Any], str]]) -> str:
    """(metadata, text) of passages as a tool shows them to a model: numbered, with file, headings and page above.

    `extractive.numbered_passages` reads the texts back.
    """
    blocks = []
    for number, (metadata, text) in enumerate(passages, start=1):
        place = place_of(metadata)
        blocks.append(f"[{number}] (source: {place})\n{text}" if place else f"[{number}] {text}")
    return "\n\n".join(blocks) or NO_PASSAGES


def place_of(metadata: Mapping[str, Any]) -> str:
    """Where a passage stands: file, headings, sheet, page or row, as far as they are known."""
    parts = [str(metadata.get(name) or "") for name in ("source", "title", "sheet")]
    parts += [f"{name} {metadata[name]}" for name in ("page", "row") if metadata.get(name)]
    return " · ".join(" ".join(part.split()) for part in parts if part.strip())
