"""Does context pay on domains never seen? A contextual residual on a static model that saw half of the domains.

Four layers × 256 read the static model's token vectors (frozen, 512 dimensions) and add to its mean; they train on the
same half of the domains (`pack_halves.py`), with negatives mined by the model itself, and are judged on the other half:
validation queries to choose with, and the vectors of its evaluation sets, to be scored in the hybrid where the index
is. Short runs on validation choose among a few settings, the best gets the rest of the seconds.

    python peg_small.py --data half-b.npz --out results/b --seconds 150

writes `runs.jsonl`, the weights of the last run, and the evaluation vectors of the static model and of the trained one
(8-bit, a scale for each row). A rehearsal on a CPU: `--seconds 60 --tokens 2000 --pairs 200 --few`.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_transformer import cut_pack
from residual import (
    Batches,
    Lab,
    Pack,
    Plan,
    ResidualEncoder,
    Shape,
    load_pack,
    main_directions,
    measure_rate,
    prepare_device,
    synchronize,
)
from safetensors.torch import save_file
from torch import Tensor

SHAPE = Shape(layers=4, width=256, heads=4, inner=512, positions=256, gated=True, dropout=0.1, dropped_tokens=0.1)
WIDTHS = (32, 96, 256)
QUERY_WIDTH = 64
NEGATIVES = 3
TOKENS = 98_304  # padded, of a step
PROBES: dict[str, dict[str, Any]] = {  # a temperature of 0.05 learns the half's domains and loses the others
    "rate 1e-4, temperature 0.1": {"rate": 1e-4, "temperature": 0.1},
    "rate 1e-3, temperature 0.1": {"rate": 1e-3, "temperature": 0.1},
    "rate 3e-4, temperature 0.2": {"rate": 3e-4, "temperature": 0.2},
}
FINAL_SHARE = 0.5  # of the seconds, for the last run
MOST_STEPS = 8_000


def batch_sizes(tokens: int) -> Batches:
    """Pairs of a step for each width of passages, so that a step holds about as many tokens."""
    sizes = {
        width: max(8, tokens // (min(QUERY_WIDTH, 2 * width) + (1 + NEGATIVES) * width) // 8 * 8) for width in WIDTHS
    }
    return Batches(sizes, NEGATIVES, QUERY_WIDTH)


def validate(lab: Lab) -> dict[str, Any]:
    """nDCG@10 of the sources of the half and of those never seen, by source and on average."""
    scores = {
        task.name: round(float(lab.score(task, query_limit=QUERY_WIDTH, limit=WIDTHS[-1]).ndcg.mean()), 5)
        for task in lab.pack.validation
    }
    summary = {
        kind: round(float(np.mean([value for name, value in scores.items() if name.startswith(f"{kind}/")])), 5)
        for kind in ("known", "new")
    }
    return {**summary, "scores": scores}


def save_vectors(lab: Lab, folder: Path, name: str) -> dict[str, float]:
    """The vectors of the evaluation sets, documents then queries, and the nDCG@10 of the vectors alone."""
    scores, codes, scales = {}, [], []
    for task in lab.pack.evaluation:
        documents = lab.encode(task.texts, task.corpus, WIDTHS[-1])
        queries = lab.encode(task.texts, task.queries, QUERY_WIDTH)
        scores[task.name] = round(float(lab.score(task, query_limit=QUERY_WIDTH, limit=WIDTHS[-1]).ndcg.mean()), 5)
        for vectors in (documents, queries):
            scale = vectors.abs().amax(1, keepdim=True) / 127
            codes.append((vectors / scale).round().to(torch.int8).cpu().numpy())
            scales.append(scale.half().cpu().numpy())
    rows = np.concatenate(codes)
    shard = (15 << 20) // rows.shape[1]
    for number, start in enumerate(range(0, len(rows), shard)):
        np.save(folder / f"{name}-{number}.npy", rows[start : start + shard])
    np.save(folder / f"{name}-scales.npy", np.concatenate(scales))
    return scores


def save_weights(lab: Lab, file: Path) -> None:
    """All but the token vectors, which the static model's folder holds."""
    weights = {
        key: value.detach().half().cpu().contiguous() for key, value in lab.model.state_dict().items() if key != "table"
    }
    save_file(weights, file, metadata={"shape": json.dumps(dataclasses.asdict(lab.model.shape))})


def build_lab(pack: Pack, shape: Shape, directions: Tensor, tokens: int, *, graphs: bool) -> Lab:
    torch.manual_seed(0)
    model = ResidualEncoder(pack.table, directions, shape, train_table=False).to(pack.table.device)
    if pack.table.is_cuda:
        model.table.data = model.table.data.bfloat16()
    return Lab(pack, model, batch_sizes(tokens), most_steps=MOST_STEPS, graphs=graphs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--only", default="", help="the setting to train with, without short runs to choose it")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--pairs", type=int, default=0, help="of a source at most; 0: all")
    parser.add_argument("--few", action="store_true", help="score few queries only, for a rehearsal")
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    arguments = parser.parse_args()
    begin = time.monotonic()
    device = prepare_device()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pack = load_pack(arguments.data, device, widths=WIDTHS, sets=lambda _, known: not known)
    if arguments.pairs:
        pack = cut_pack(pack, arguments.pairs, arguments.few)
    lab = build_lab(pack, SHAPE, main_directions(pack, SHAPE.width), arguments.tokens, graphs=arguments.graphs)
    log = Log(arguments.out / "runs.jsonl")
    log.add({"run": "static model", **validate(lab), "evaluation": save_vectors(lab, arguments.out, "static")})
    speed = measure_rate(lab, Plan(500, 1e-4), min(6.0, arguments.seconds / 20))
    print(f"{speed:.1f} steps/s after {time.monotonic() - begin:.1f} s", flush=True)
    remaining_s = arguments.seconds - (time.monotonic() - begin)
    final_seconds = remaining_s * (0.9 if arguments.only else FINAL_SHARE)
    choices = {}
    if not arguments.only:
        for name, options in PROBES.items():
            steps = step_count(speed, (remaining_s * 0.9 - final_seconds) / len(PROBES))
            choices[name] = train_once(lab, log, f"probe: {name}", Plan(steps, **options))
    best = arguments.only or max(choices, key=lambda name: choices[name])
    plan = Plan(step_count(speed, final_seconds), **PROBES[best], remine=(1 / 3, 2 / 3))
    train_once(lab, log, f"final: {best}", plan)
    save_weights(lab, arguments.out / "residual.safetensors")
    log.add({"run": "vectors", "evaluation": save_vectors(lab, arguments.out, "trained")})
    print(f"done after {time.monotonic() - begin:.1f} s", flush=True)


def step_count(speed: float, seconds: float) -> int:
    return max(10, min(MOST_STEPS, int(speed * seconds)))


def train_once(lab: Lab, log: "Log", name: str, plan: Plan) -> float:
    """Train and validate → nDCG@10 on the domains never seen."""
    begin = time.monotonic()
    lab.train(plan)
    synchronize(lab.device)
    seconds = round(time.monotonic() - begin, 1)
    tail = lab.losses[plan.steps * 9 // 10 : plan.steps].mean().item()
    row = {"run": name, **dataclasses.asdict(plan), "loss": round(tail, 4), "seconds": seconds, **validate(lab)}
    log.add(row)
    return float(row["new"])


class Log:
    """One JSON object a line, on the screen in short."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def add(self, row: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        print({key: value for key, value in row.items() if key not in ("scores", "remine")}, flush=True)


if __name__ == "__main__":
    main()
