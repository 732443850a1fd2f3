"""Fields that the training has never seen: each domain is left out in turn, and its evaluation set scored.

Users bring fields of their own, so what a model does on one it was not trained on says more than the mean over those it
was. Each model is the bundled one's recipe without the domain's sources, from the first line: the words are counted
without them too.

    python train/make_text_pairs.py --out runs/text-pairs
    python train/leave_one_out.py --out runs/leave-one-out

Goes on where it was stopped. Cost: for each domain about 25 minutes of one core.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import yaml
from experiments import RESULTS, Runs, data_folder

from peg_rag import PEGEncoder
from peg_rag.evaluation import BM25s, Dense, Indexed, System, evaluate, load_beir
from peg_rag.training import Recipe, train

SETS = {
    "law": "law-lawyer_llama",
    "medicine": "medical-kuake_qtr",
    "tourism": "tourism-kdconv",
    "news": "news-xwlb",
    "finance": "finance-finna",
}
RECIPE = Path(__file__).parent / "recipes" / "peg_mini.yaml"


def build_recipe(out: Path, domain: str) -> Recipe:
    """`peg_mini.yaml` without a domain."""
    tree: dict[str, Any] = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    for stage in tree["stages"]:
        for source in stage["data"]["sources"]:
            source["exclude"] = [*source.get("exclude", []), f"{domain}-*"]
    return Recipe.parse(tree | {"output_dir": str(out)})


def train_without(out: Path, domain: str) -> Path:
    """The folder of the model; one that another recipe made is refused, whether it is finished or not."""
    recipe = build_recipe(out, domain)
    if (out / "peg_rag.json").is_file() and Recipe.load(out / "recipe.yaml") != recipe:
        raise SystemExit(f"{out} was made by another recipe; name another --out")
    if not (out / "peg_rag.json").is_file():
        train(recipe, resume=(out / "recipe.yaml").is_file(), show_progress=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the models go")
    parser.add_argument("--text-pairs", type=Path, default=Path("runs/text-pairs"), help="made by make_text_pairs.py")
    parser.add_argument("--domains", nargs="+", choices=list(SETS), default=list(SETS))
    arguments = parser.parse_args()
    data = data_folder()
    os.environ["PEG_TEXT_PAIRS"] = str(arguments.text_pairs)
    runs = Runs(RESULTS / "leave_one_out.jsonl")
    for domain in arguments.domains:
        folder = train_without(arguments.out / f"no_{domain}", domain)
        if not runs.has({"domain": domain}):
            runs.add({"domain": domain, **score_model(folder, data / "eval" / SETS[domain])})
    write_table(runs)


def score_model(folder: Path, beir: Path) -> dict[str, Any]:
    dataset = load_beir(beir)
    with PEGEncoder(folder) as encoder:
        systems: list[System] = [
            Dense(encoder, "dense"),
            Indexed("lexical", name="bm25"),
            Indexed("hybrid", encoder, "hybrid"),
            BM25s(),
        ]
        scores = {system.name: evaluate(system, dataset).mean() for system in systems}
    return {"set": dataset.name, "scores": scores}


def write_table(runs: Runs) -> None:
    rows = list(runs)
    names = list(rows[0]["scores"])
    lines = ["# Left-out domains", "", "Made by `train/leave_one_out.py`. nDCG@10.", ""]
    lines += [f"| left out | set | {' | '.join(names)} |", "|---|---|" + "---:|" * len(names)]
    for row in rows:
        values = " | ".join(f"{row['scores'][name]:.3f}" for name in names)
        lines.append(f"| {row['domain']} | {row['set']} | {values} |")
    text = "\n".join(lines) + "\n"
    (RESULTS / "leave_one_out.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
