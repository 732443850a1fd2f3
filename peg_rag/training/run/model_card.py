"""The model card: what the model is, how it was made and how it scored, written by the run itself.

A folder of weights without its recipe cannot be judged or repeated. Everything here is taken from the run; nothing is
claimed that was not measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import peg_rag
from peg_rag.files import write_atomically
from peg_rag.training.data.pairs import KeyedFile
from peg_rag.training.data.tokens import Ints
from peg_rag.training.model.encoder import TrainableEncoder, parameter_count
from peg_rag.training.recipe import Recipe, StageOptions


@dataclass(frozen=True)
class CardFacts:
    """What the card says of a stage.

    Attributes:
        name, objective: of the stage.
        steps: optimiser steps taken.
        queries, candidates: in a batch, and documents each query was ranked against; texts and 0 for retromae.
        rows: rows trained on, by file.
        scores: of the last evaluation.
    """

    name: str
    objective: str
    steps: int
    queries: int
    candidates: int
    rows: dict[str, int] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        options: StageOptions,
        files: Sequence[KeyedFile],
        rows: Sequence[Ints],
        scores: dict[str, float],
        steps: int,
    ) -> "CardFacts":
        """Of a stage that took `steps` steps on these rows of its files."""
        counts = {file.name: len(numbers) for file, numbers in zip(files, rows, strict=True)}
        return cls(
            options.name,
            options.objective,
            steps,
            options.batch.queries,
            options.candidates_per_query,
            counts,
            dict(scores),
        )


def write_card(
    folder: Path,
    recipe: Recipe,
    encoder: TrainableEncoder,
    facts: Sequence[CardFacts],
    *,
    name: str | None = None,
    sections: Sequence[str] = (),
) -> None:
    """Write README.md with the recipe, data, steps, seed and scores.

    Args:
        name: of the model; None for the folder's.
        sections: further ones, in Markdown with their headings, before that on the training.
    """
    text = compose_card(name or folder.name, recipe, encoder, facts, sections)
    write_atomically(folder / "README.md", text.encode())


def compose_card(
    name: str, recipe: Recipe, encoder: TrainableEncoder, facts: Sequence[CardFacts], sections: Sequence[str] = ()
) -> str:
    """The text of the card."""
    training = "\n\n".join(["## Training", *(_describe_stage(stage) for stage in facts)])
    parts = [
        _front_matter(),
        _describe_model(name, recipe, encoder),
        *(section.strip() for section in sections),
        training,
        f"## Recipe\n\n```yaml\n{recipe.dump().strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter() -> str:
    return """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, sentence-similarity, peg-rag]
---"""


def _describe_model(name: str, recipe: Recipe, encoder: TrainableEncoder) -> str:
    prompts = "".join(f"\n- {role} prompt: `{text}`" for role, text in encoder.prompts.items() if text)
    origin = recipe.model.path or "random weights"
    return f"""# {name}

A text-embedding model, trained with peg-rag {peg_rag.__version__}.

- kind: {encoder.kind}, {parameter_count(encoder):,} parameters, started from {origin}
- vectors: {encoder.dimension} dimensions, pooling `{encoder.pooling}`, compared by cosine
- reads {encoder.max_length} tokens of a text{prompts}
- seed {recipe.seed}, precision {recipe.precision}

```python
from peg_rag import PEGEncoder

encoder = PEGEncoder("path/to/this/folder")
scores = encoder.encode_queries(["问题"]) @ encoder.encode_documents(["一段文字"]).T
```

sentence-transformers opens the folder as well, with the same vectors."""


def _describe_stage(facts: CardFacts) -> str:
    rows = "\n".join(f"| {name} | {count:,} |" for name, count in facts.rows.items())
    parts = [
        f"### Stage {facts.name}",
        _describe_steps(facts),
        f"| data | rows trained on |\n|---|---:|\n{rows}",
    ]
    if facts.scores:
        scores = "\n".join(f"| {name} | {value:.4f} |" for name, value in facts.scores.items())
        parts.append("Scores (`ndcg@10`, `spearman` and `loss`: on the validation split):")
        parts.append(f"| score | |\n|---|---:|\n{scores}")
    return "\n\n".join(parts)


def _describe_steps(facts: CardFacts) -> str:
    if not facts.candidates:
        return f"{facts.steps:,} steps of {facts.queries:,} texts, {facts.objective} loss."
    return (
        f"{facts.steps:,} steps of {facts.queries:,} pairs, {facts.objective} loss, "
        f"{facts.candidates:,} candidates for each query."
    )
