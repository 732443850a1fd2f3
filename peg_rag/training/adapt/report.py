"""What an adaptation did and whether it helped, for the caller and for the model card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peg_rag.evaluation import Comparison, Evaluation

METRIC = "nDCG@10"


@dataclass(frozen=True)
class Judgement:
    """The start and the result on held-out documents that nothing was chosen on.

    Attributes:
        share: of the trained weights in the result, the rest being those of the start.
        comparison: of nDCG@10, paired over queries.
    """

    share: float
    before: Evaluation
    after: Evaluation
    comparison: Comparison

    @property
    def worse(self) -> bool:
        return self.comparison.difference < 0


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` did.

    Attributes:
        folder: where the model is, or would be.
        saved: it is there: it did not get worse, or was forced.
        judgement: None where training was interrupted; the same call goes on with it.
        documents, held_out, pairs, steps: how many there were.
        failed: files that could not be read, with the reason.
    """

    folder: Path
    documents: int
    held_out: int
    pairs: int
    steps: int
    failed: Sequence[str]
    judgement: Judgement | None = None
    saved: bool = False


def describe_adaptation(adaptation: Adaptation, judgement: Judgement) -> str:
    """The section of the model card on what was done."""
    before = judgement.before
    after = judgement.after
    comparison = judgement.comparison
    rows = "\n".join(f"| {name} | {before.mean(name):.4f} | {after.mean(name):.4f} |" for name in before.values)
    return f"""## Adaptation

Adapted to {adaptation.documents:,} documents without labels: {adaptation.pairs:,} pairs of a title and its text, a
sentence and the passage it was taken out of, and neighbouring passages, with mined negatives. {adaptation.held_out:,}
documents were held out. On one half of them the share of the trained weights in the result was chosen,
{judgement.share:.2f} (the rest are those of the start); the other half gave these scores over
{len(before.query_ids):,} queries cut from it:

| | before | after |
|---|---:|---:|
{rows}

{METRIC}: {comparison.difference:+.4f} (95 % interval {comparison.low:+.4f} to {comparison.high:+.4f},
p = {comparison.p:.4f}, permutation test paired over queries).
"""
