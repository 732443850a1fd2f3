"""One contrastive training step: ours against sentence-transformers' CachedMultipleNegativesRankingLoss, in one run.

Same weights, same batch, same loss: both compute InfoNCE over all positives and hard negatives at scale 20, and the run
stops where their values differ by more than 1e-4 or their gradients by more than 1e-3 of their length.

* `loss`: the loss stage alone (vectors in, gradients on them out), 256 dimensions, 5 hard negatives per query, at the
  peer's default `mini_batch_size` and over a grid of others and of `mini_batch_num_tokens`. The GFLOP/s of ours count
  the arithmetic that is really done, and stand beside the machine's own GEMM rate in the same type and minutes.
* `memory`: what the loss stage takes above the vectors and their gradients (peak resident set, one process each; the
  median of as many processes as there are repeats, since the peer's peak varies by half).
* `step`: a whole step of a 4-layer BERT with dropout off, token lengths as in real Chinese pairs.

Where other work runs on the machine, wall time measures that too: `--clock cpu` counts processor time on one thread.

    python benchmarks/train_step.py                       # all three, about fifteen minutes on two cores
    python benchmarks/train_step.py --stages loss --batches 1024
"""

import argparse
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from peg_rag.training.data.batches import FeatureRows
from peg_rag.training.data.tokens import TokenRows
from peg_rag.training.loss.contrastive import LossResult, Pairs, tiled_loss
from peg_rag.training.loss.objective import ContrastiveObjective
from peg_rag.training.loss.progressive import ProgressiveState
from peg_rag.training.loss.tiles import Scratch, Tile
from peg_rag.training.recipe import LossOptions, ProgressiveOptions
from peg_rag.training.run.grad_cache import CachedStep, StepBatch

RESULTS = Path(__file__).parent / "results"
DIM, NEGATIVES, SCALE = 256, 5, 20.0
OPTIONS, SCRATCH = LossOptions(temperature=1 / SCALE), Scratch()
GRID = (32, 128, 512, 1024)  # mini_batch_size; the first is the peer's default
TOKEN_GRID = (32_768,)  # mini_batch_num_tokens, with the best mini_batch_size
DEFAULT_REPEATS = 3  # at the peer's default, which takes ten seconds
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


def make_vectors(b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries (b, d) and documents (b·6, d) that resemble a trained encoder's: positives near, negatives nearby."""
    torch.manual_seed(b)
    queries = torch.randn(b, DIM)
    spread = torch.tensor([0.8] + [1.6] * NEGATIVES).view(1, -1, 1)
    documents = queries.unsqueeze(1) + spread * torch.randn(b, 1 + NEGATIVES, DIM)
    return queries, documents.flatten(0, 1)


def token_lengths(rows: int, seed: int = 0) -> np.ndarray:
    """Tokens of documents: log-normal about a median of 40, as Chinese passages of mixed sources, 4 to 256."""
    return np.clip(np.random.default_rng(seed).lognormal(np.log(40), 0.8, rows), 4, 256).astype(int)


def seconds_of(run: Callable[[], Any]) -> float:
    start = clock()
    run()
    return clock() - start


def gemm_seconds(flops: int) -> float:
    """Seconds that (2048, d) × (d, 2048) products take for as many operations: as long a look as ours."""
    a, b, out = torch.randn(2048, DIM), torch.randn(2048, DIM), torch.empty(2048, 2048)
    one = 2 * 2048 * 2048 * DIM
    times = max(round(flops / one), 1)
    torch.mm(a, b.T, out=out)  # touches the memory
    return seconds_of(lambda: [torch.mm(a, b.T, out=out) for _ in range(times)]) * flops / (one * times)


def floor_seconds(queries: torch.Tensor, documents: torch.Tensor, tile: Tile) -> float:
    """Seconds of what no float32 softmax over all candidates can do without, over the same tiles: the three matrix
    products, one exponential and one addition for each score, and for each vector and each gradient one pass over its
    bytes, to normalise it and to turn it back."""
    scores = SCRATCH.matrix(tile.rows, len(documents), documents)
    raw = queries, documents
    queries, documents = torch.zeros_like(queries), torch.zeros_like(documents)
    row_gradient, column_gradient = torch.zeros_like(queries), torch.zeros_like(documents)
    columns = [slice(at, min(at + tile.columns, len(documents))) for at in range(0, len(documents), tile.columns)]

    def run() -> None:
        for vectors, unit in zip(raw, (queries, documents), strict=True):
            torch.mul(vectors, DIM**-0.5, out=unit)
        for at in range(0, len(queries), tile.rows):
            rows = queries[at : at + tile.rows]
            row_scores = scores[: len(rows)]
            for column in columns:
                torch.mm(rows, documents[column].T, out=row_scores[:, column])
                row_scores[:, column].exp_().sum(1)
            torch.mm(row_scores, documents, out=row_gradient[at : at + tile.rows])
            column_gradient.addmm_(row_scores.T, rows)
        for gradient, unit in ((row_gradient, queries), (column_gradient, documents)):
            gradient.add_(unit)

    return seconds_of(run)


def best_of(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Seconds of the fastest run, and its result. The fastest: a shared machine only ever adds time."""
    best, result = float("inf"), None
    for _ in range(repeats):
        start = clock()
        result = run()
        best = min(best, clock() - start)
    return best, result


# ------------------------------------------------------------------------------------------------------ the peer


def peer_loss(model: Any, **options: Any) -> Any:
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    return CachedMultipleNegativesRankingLoss(model, scale=SCALE, **options)


def peer_model(folder: Path) -> Any:
    """A 4-layer BERT of width 256 with mean pooling, random weights, dropout off, saved and opened by the peer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    torch.manual_seed(0)
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    BertTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))).save_pretrained(folder)
    config = BertConfig(
        vocab_size=21_128,
        hidden_size=DIM,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * DIM,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    transformer = Transformer(str(folder))
    return SentenceTransformer(modules=[transformer, Pooling(DIM, "mean")], device="cpu").train()


def peer_chunks(vectors: torch.Tensor, lengths: np.ndarray, rows: int, tokens: int | None) -> list[torch.Tensor]:
    """A column's vectors as the peer holds them between its stages: one leaf per encoder mini-batch."""
    if tokens is None:
        return [part.clone().requires_grad_() for part in vectors.split(rows)]
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // tokens)) + 1
    return [part.clone().requires_grad_() for part in vectors.tensor_split(cuts.tolist())]


def gradient_of(leaf: torch.Tensor) -> torch.Tensor:
    if leaf.grad is None:
        raise RuntimeError("the peer left a vector without a gradient")
    return leaf.grad


def peer_stage(
    loss: Any, queries: torch.Tensor, documents: torch.Tensor, rows: int, tokens: int | None
) -> tuple[Callable[[], float], Callable[[], tuple[torch.Tensor, torch.Tensor]]]:
    """The peer's loss stage as it calls it itself, and its gradients in our order."""
    loss.mini_batch_size = rows
    columns = [queries, *documents.view(len(queries), 1 + NEGATIVES, DIM).unbind(1)]
    leaves = [peer_chunks(column, token_lengths(len(column), i), rows, tokens) for i, column in enumerate(columns)]

    def run() -> float:
        for leaf in (leaf for column in leaves for leaf in column):
            leaf.grad = None
        return float(loss.calculate_loss(leaves, with_backward=True))

    def gradients() -> tuple[torch.Tensor, torch.Tensor]:
        query_gradient, *columns = (torch.cat([gradient_of(leaf) for leaf in column]) for column in leaves)
        return query_gradient, torch.stack(columns, 1).flatten(0, 1)

    return run, gradients


def assert_same(result: LossResult, value: float, gradients: tuple[torch.Tensor, torch.Tensor]) -> None:
    if abs(result.loss.item() - value) > 1e-4:
        raise SystemExit(f"the losses differ: ours {result.loss.item():.6f}, theirs {value:.6f}")
    for gradient, reference in zip((result.query_gradient, result.document_gradient), gradients, strict=True):
        error = (gradient - reference).norm() / reference.norm()
        if error > 1e-3:
            raise SystemExit(f"the gradients differ by {error:.2e} of their length")


# ---------------------------------------------------------------------------------------------------- loss stage


def loss_stage(b: int, grid: list[int], repeats: int, folder: Path) -> dict[str, Any]:
    """Seconds of both at batch size b, and what they amount to.

    All take turns, and what is reported are medians over the turns, of ratios within a turn: the machine's clock rate
    changes by a quarter from one minute to the next, and would otherwise decide who is fast.
    """
    queries, documents = make_vectors(b)
    pairs, loss = Pairs.regular(b, NEGATIVES), peer_loss(peer_model(folder))
    tile = Tile.automatic(len(documents), documents.device)
    flops = (6 if tile.keep else 8) * b * len(documents) * DIM
    own_seconds: list[float] = []
    gemm: list[float] = []
    floor: list[float] = []
    peer_seconds: dict[str, float] = {}
    faster: dict[str, float] = {}
    settings: list[tuple[int, int | None]] = [(rows, None) for rows in grid if rows <= b]
    while settings:
        rows, tokens = settings.pop(0)
        run, gradients = peer_stage(loss, queries, documents, rows, tokens)
        result = compute_loss(queries, documents, pairs)
        assert_same(result, run(), gradients())
        name = f"mini_batch_size={rows}" + (f", mini_batch_num_tokens={tokens}" if tokens else "")
        turns: list[float] = []
        for _ in range(repeats if rows > GRID[0] else DEFAULT_REPEATS):
            turns.append(seconds_of(run))
            own_seconds.append(seconds_of(lambda: compute_loss(queries, documents, pairs)))
            gemm.append(gemm_seconds(flops))
            floor.append(floor_seconds(queries, documents, tile))
        peer_seconds[name] = median(turns)
        faster[name] = median(a / b for a, b in zip(turns, own_seconds[-len(turns) :], strict=True))
        if not settings and tokens is None:
            best = min(faster, key=lambda key: faster[key])
            settings = [(int(best.partition("=")[2]), tokens) for tokens in TOKEN_GRID]
    return {
        "queries": b,
        "repeats": repeats,
        "candidates": len(documents),
        "tile": asdict(tile),
        "loss": result.loss.item(),
        "ours_s": median(own_seconds),
        "theirs_s": peer_seconds,
        "faster": faster,
        "faster_than_default": faster[f"mini_batch_size={GRID[0]}"],
        "faster_than_best": min(faster.values()),
        "ours_gflops": flops / median(own_seconds) / 1e9,
        "gemm_gflops": flops / median(gemm) / 1e9,
        "share_of_gemm": median(a / b for a, b in zip(gemm, own_seconds, strict=True)),
        "floor_s": median(floor),
        "share_of_floor": median(a / b for a, b in zip(floor, own_seconds, strict=True)),
        "options_cost": dict(_measure_options(queries, documents, pairs, repeats)),
    }


def compute_loss(
    queries: torch.Tensor,
    documents: torch.Tensor,
    pairs: Pairs,
    options: LossOptions = OPTIONS,
    progressive: ProgressiveState | None = None,
) -> LossResult:
    """As a training step calls it, with the memory of the step before."""
    return tiled_loss(queries, documents, pairs, options, progressive, scratch=SCRATCH)


def _measure_options(
    queries: torch.Tensor, documents: torch.Tensor, pairs: Pairs, repeats: int
) -> list[tuple[str, float]]:
    """How many times as long ours takes with options that the peer does not have; medians of ratios within a turn."""
    n = len(documents)
    texts = Pairs(pairs.positives, pairs.owners, torch.arange(len(queries)) + n, torch.arange(n) // 2)
    curricular = ProgressiveState(ProgressiveOptions(strategy="curricular"))
    curricular.advance(0.7, 0.5)
    variants: dict[str, tuple[Pairs, LossOptions, ProgressiveState | None]] = {
        "half of the texts twice, masked": (texts, OPTIONS, None),
        "false negatives masked by margin": (
            pairs,
            LossOptions(temperature=1 / SCALE, false_negative_margin=0.0),
            None,
        ),
        "symmetric": (pairs, LossOptions(temperature=1 / SCALE, symmetric=True), None),
        "curricular": (pairs, OPTIONS, curricular),
    }
    costs = []
    for name, arguments in variants.items():
        turns = [
            seconds_of(lambda: compute_loss(queries, documents, *arguments))  # noqa: B023
            / seconds_of(lambda: compute_loss(queries, documents, pairs))
            for _ in range(repeats)
        ]
        costs.append((name, median(turns)))
    return costs


# -------------------------------------------------------------------------------------------------------- memory


def resident(field: str) -> int:
    """Bytes of `VmRSS` (now) or `VmHWM` (the peak since `reset_peak`)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def memory_of(who: str, b: int, folder: Path) -> int:
    """Bytes at the peak of one loss stage above the vectors and their gradients; call it in a fresh process."""
    small = make_vectors(64)
    tiled_loss(*small, Pairs.regular(64, NEGATIVES), OPTIONS)  # threads and kernels are there before we look
    queries, documents = make_vectors(b)
    loss = peer_loss(peer_model(folder)) if who != "ours" else None
    if loss is None:
        run: Callable[[], Any] = lambda: tiled_loss(queries, documents, Pairs.regular(b, NEGATIVES), OPTIONS)  # noqa: E731
    else:
        warm, _ = peer_stage(loss, *small, 32, None)
        warm()
        run, _ = peer_stage(loss, queries, documents, int(who), None)
    reset_peak()
    before = resident("VmRSS")
    result = run()
    gradients = 4 * DIM * (len(queries) + len(documents))
    del result
    return resident("VmHWM") - before - gradients


def memory_stage(batches: list[int], repeats: int, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for b in batches:
        peaks: dict[str, list[int]] = {"ours": [], "32": []}
        for _ in range(repeats):
            for who, values in peaks.items():
                options = ["--measure-memory", who, "--batches", str(b), "--folder", str(folder)]
                command = [sys.executable, __file__, *options]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                values.append(int(out.splitlines()[-1]))
        row: dict[str, Any] = {"queries": b, **{who: median(values) for who, values in peaks.items()}, "peaks": peaks}
        rows.append(row)
        print(
            f"  B={b}: ours {_format_megabytes(peaks['ours'])}; "
            f"theirs at their default {_format_megabytes(peaks['32'])}; "
            f"ratio of medians {row['ours'] / row['32']:.2f}",
            flush=True,
        )
    return rows


def _format_megabytes(peaks: list[int]) -> str:
    return f"{median(peaks) / 1e6:.0f} MB ({min(peaks) / 1e6:.0f} to {max(peaks) / 1e6:.0f})"


def plot_memory(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0))
    names = {
        "32": "sentence-transformers, mini_batch_size 32 (default)",
        "ours": "peg_rag",
    }
    for key, name in names.items():
        axes.plot([row["queries"] for row in rows], [row[key] / 1e6 for row in rows], marker="o", label=name)
    axes.set(xlabel="queries in the batch (5 hard negatives each)", ylabel="MB above vectors and gradients")
    axes.set_title("Memory of the loss stage, 256 dimensions, float32")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


# ---------------------------------------------------------------------------------------------------- whole step


def feature_rows(token_ids: list[list[int]]) -> FeatureRows:
    return FeatureRows(TokenRows.of(token_ids), 0, torch.device("cpu"))


def step_stage(b: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Seconds of a whole step of a 4-layer BERT, encoder and all, at the peer's defaults and at a larger mini-batch."""
    model, rng = peer_model(folder), np.random.default_rng(0)
    lengths = [np.clip(token_lengths(b, 100) // 3, 4, 64), *(token_lengths(b, i) for i in range(1 + NEGATIVES))]
    columns = [[rng.integers(5, 21_000, n).tolist() for n in column] for column in lengths]
    features = [feature_rows(column).features(np.arange(b)) for column in columns]
    tokens = sum(int(column.sum()) for column in lengths)

    def encode(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        vectors: torch.Tensor = model(batch)["sentence_embedding"]
        return vectors

    def gradients() -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    rows = StepBatch(
        feature_rows(columns[0]),
        feature_rows([columns[1 + j][i] for i in range(b) for j in range(1 + NEGATIVES)]),
        Pairs.regular(b, NEGATIVES),
    )
    own_steps = {
        graphs: CachedStep(encode, ContrastiveObjective(OPTIONS), graphs=graphs, batch_tokens=4096)
        for graphs in ("replay", "keep")
    }
    peer_losses = {f"mini_batch_size={size}": peer_loss(model, mini_batch_size=size) for size in (32, 256)}
    peer_losses["mini_batch_num_tokens=4096"] = peer_loss(model, mini_batch_num_tokens=4096)
    seconds = dict.fromkeys([*own_steps, *peer_losses], float("inf"))
    losses, gradients_by_name = {}, {}
    for _ in range(repeats):  # turn and turn about
        for name, step in own_steps.items():
            model.zero_grad()
            took, metrics = best_of(lambda: step(rows), 1)  # noqa: B023
            seconds[name], losses[name], gradients_by_name[name] = min(seconds[name], took), metrics.loss, gradients()
        for name, loss in peer_losses.items():
            model.zero_grad()

            def run() -> float:
                value = loss([dict(column) for column in features], None)  # noqa: B023
                value.backward()
                return float(value.detach())

            took, losses[name] = best_of(run, 1)
            seconds[name], gradients_by_name[name] = min(seconds[name], took), gradients()
    reference = gradients_by_name["mini_batch_size=32"]
    for name in seconds:
        error = (gradients_by_name[name] - reference).norm() / reference.norm()
        if abs(losses[name] - losses["replay"]) > 1e-4 or error > 1e-2:
            raise SystemExit(f"{name}: loss {losses[name]:.6f}, replay {losses['replay']:.6f}, or gradients differ")
    return {
        "queries": b,
        "tokens": tokens,
        "loss": losses["replay"],
        "seconds": seconds,
        "replay_faster_than_default": seconds["mini_batch_size=32"] / seconds["replay"],
        "replay_faster_than_best": min(seconds[name] for name in peer_losses) / seconds["replay"],
        "keep_faster_than_default": seconds["mini_batch_size=32"] / seconds["keep"],
    }


# ----------------------------------------------------------------------------------------------------------- run


def configuration() -> dict[str, Any]:
    cpu = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
    return {
        "cpu": cpu.partition(":")[2].strip() or platform.processor(),
        "threads": torch.get_num_threads(),
        "clock": next(name for name, function in CLOCKS.items() if function is clock),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "dtype": "float32",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sentence-transformers": version("sentence-transformers"),
        "dimensions": DIM,
        "hard_negatives": NEGATIVES,
        "scale": SCALE,
    }


def show(row: dict[str, Any]) -> None:
    print(f"  B={row['queries']}, {row['candidates']} candidates, loss {row['loss']:.4f}")
    print(f"    ours {row['ours_s']:.3f} s, {row['ours_gflops']:.0f} GFLOP/s = {row['share_of_gemm']:.0%} of GEMM")
    print(f"    the floor {row['floor_s']:.3f} s = {row['share_of_floor']:.0%} of ours")
    for name, seconds in row["theirs_s"].items():
        print(f"    theirs, {name}: {seconds:.3f} s = {row['faster'][name]:.2f}×")
    for name, cost in row["options_cost"].items():
        print(f"    ours, {name}: {cost:.2f} times as long")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=["loss", "memory", "step"], choices=["loss", "memory", "step"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1024, 2048, 4096])
    parser.add_argument("--mini-batches", nargs="+", type=int, default=list(GRID), help="of the peer")
    parser.add_argument("--step-batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor seconds, on one thread")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    if arguments.measure_memory:
        print(memory_of(arguments.measure_memory, arguments.batches[0], arguments.folder))
        return
    if arguments.clock == "cpu":
        global clock
        clock = CLOCKS["cpu"]
        torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "train_step.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    report["configuration"] = configuration()
    print(json.dumps(report["configuration"], indent=2), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stage in arguments.stages:
            print(stage, flush=True)
            if stage == "loss":
                for b in arguments.batches:
                    row = loss_stage(b, arguments.mini_batches, arguments.repeats, folder)
                    show(row)
                    report.setdefault("loss", {})[str(b)] = row
                    path.write_text(json.dumps(report, indent=2) + "\n")
            elif stage == "memory":
                report["memory_bytes"] = memory_stage(arguments.batches, arguments.repeats, folder)
                plot_memory(report["memory_bytes"], arguments.out / "train_step_memory.png")
            else:
                report["step"] = step_stage(arguments.step_batch, arguments.repeats, folder)
                print(json.dumps(report["step"], indent=2))
            path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"peak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB; wrote {path}")


if __name__ == "__main__":
    main()
