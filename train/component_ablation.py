r"""What each component of a recipe is worth: one arm for each, on a static model and on a small transformer.

All arms of a model train on the same number of pairs, from the same start. The temperature of each arm is chosen first,
on the validation split and one seed; then two further seeds run at it. Noise: a fifth of the training rows has the
positive of another row of its file; validation rows are neither changed nor cleaned. All is chosen on validation; the
evaluation sets are only scored.

The static model starts from random vectors. The transformer starts from one that was trained on other queries of the
same files, since from nothing it would learn little in the seconds that an arm has: three quarters of the queries are
for that, and the arms have some of the others.

    python train/component_ablation.py --out runs/components --model static
    python train/component_ablation.py --out runs/components --model transformer

Goes on where it was stopped. Cost on one core: static, 10 to 120 s for a run, an hour and a half in all; transformer,
six minutes for the start and 20 to 60 s for a run, an hour in all. `--report` writes the tables alone.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import RESULTS, Runs, StaticModel, Words, chinese_sets, data_folder, scores

from peg_rag.evaluation import RetrievalDataset, evaluate
from peg_rag.files import write_atomically
from peg_rag.training import CleaningOptions, Recipe, clean_pairs, train
from peg_rag.training.data.files import read_rows
from peg_rag.training.data.sampler import in_validation, smallest_hashes
from peg_rag.training.data.texts import text_key
from peg_rag.training.data.tokens import TokenRows
from peg_rag.training.model.encoder import TrainableEncoder, load_encoder
from peg_rag.training.recipe import ModelOptions
from peg_rag.training.run.validation import InTraining

PATTERNS = (
    *("medicine*", "insurance*", "finance-fin*", "law-statutes*", "tourism*", "web*", "science*", "film*", "music*"),
    *("realestate*", "encyclopedia-cmrc*", "general-sim*", "general-tri*", "news-xwlb*"),
)
NOISE = 0.2
SEEDS = (0, 1, 2)
GUIDE = "loss.masks=[{kind: guide, model: peg-mini}]"
EVERY_COMPARISON = (
    "loss.masks=[{kind: guide, model: peg-mini, compare: [query_document, document_document, query_query]}]"
)
MOMENTUM = "loss.candidates=[{kind: momentum, documents: %d, queries: %d, half_life: 0.05}]"

NOISE_ARMS: dict[str, list[str]] = {  # on pairs as they are, and on noisy ones
    "plain": [],
    "trust": ["loss.trust={}"],
    "guide": [GUIDE],
    "cleaned": [],
    "margin mask": ["loss.false_negative_margin=0.0"],
    "progressive": ["loss.progressive={strategy: static}"],
    "trust, progressive": ["loss.trust={}", "loss.progressive={strategy: static}"],
    "cleaned, trust column": [],
}
CLEANED_ARMS = ("cleaned", "cleaned, trust column")
COSTLY = ("clusters", "neighbours", "mined")  # they encode all rows before a round
STATIC_ARMS: dict[str, list[str]] = {
    "mixing": ["loss.candidates=[{kind: mixing}]"],
    "queue of 4,096": ["loss.candidates=[{kind: queue, size: 4096}]"],
    "512 shared documents": ["data.transforms=[{kind: shared_documents, documents: 512}]"],
    "momentum, 4,096 documents": [MOMENTUM % (4096, 0)],
    "momentum, 1,024 queries, too": [MOMENTUM % (4096, 1024)],
    "guide, all comparisons": [EVERY_COMPARISON],
    "clusters": ["data.order={kind: clusters}"],
    "neighbours": ["data.order={kind: neighbours}"],
    "mined": ["data.mining={negatives: 5}", "batch.negatives=5"],
    "neighbours, 3 rounds": ["data.order={kind: neighbours}", "rounds=3"],
    "mined, 3 rounds": ["data.mining={negatives: 5}", "batch.negatives=5", "rounds=3"],
    "mined, 3 rounds, guide": ["data.mining={negatives: 5}", "batch.negatives=5", "rounds=3", GUIDE],
}
TRANSFORMER_ARMS: dict[str, list[str]] = {
    "mixing": ["loss.candidates=[{kind: mixing}]"],
    "soft augmentation": ["data.transforms=[{kind: soft_augmentation}]"],
    "queue of 1,024": ["loss.candidates=[{kind: queue, size: 1024}]"],
    "momentum, 1,024 documents": [MOMENTUM % (1024, 0)],
    "momentum, 1,024 queries, too": [MOMENTUM % (1024, 1024)],
    "128 shared documents": ["data.transforms=[{kind: shared_documents, documents: 128}]"],
    "guide, all comparisons": [EVERY_COMPARISON],
    "clusters": ["data.order={kind: clusters}"],
    "neighbours": ["data.order={kind: neighbours}"],
    "mined": ["data.mining={negatives: 2}", "batch.negatives=2"],
    "mined, 2 rounds": ["data.mining={negatives: 2}", "batch.negatives=2", "rounds=2"],
    "mined, 2 rounds, guide": ["data.mining={negatives: 2}", "batch.negatives=2", "rounds=2", GUIDE],
}


@dataclass(frozen=True)
class Job:
    """One run: an arm on pairs with so much noise, at a temperature and with a seed."""

    noise: float
    arm: str
    overrides: Sequence[str]
    temperature: float
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """What tells it apart in the log of runs."""
        return {"noise": self.noise, "arm": self.arm, "temperature": self.temperature, "seed": self.seed}

    @property
    def pairs(self) -> str:
        """The folder of its pairs."""
        name = "noisy" if self.noise else "clean"
        return f"{name}-cleaned" if self.arm in CLEANED_ARMS else name


class StaticSetup:
    """A static model of 128 dimensions, from random vectors."""

    name = "static"
    arms = STATIC_ARMS
    temperatures = (0.04, 0.08)
    rows = 20_000  # of each file, at most
    share = 0.05  # of validation
    batch, steps, rate = 512, 240, 0.01
    description = (
        f"A static model of 128 dimensions with the bundled model's words, from random vectors: {steps} steps of "
        f"{batch} pairs, from at most {rows:,} rows of each file. Evaluation: ten sets, whole."
    )

    def __init__(self, out: Path) -> None:
        self.out = out
        self._sets: list[RetrievalDataset] | None = None
        self._words: Words | None = None

    def prepare(self, data: Path) -> None:
        """Write the pairs."""
        for file in list_files(data):
            write_pairs(self.out, file_name(file), read_pairs(file)[: self.rows], self.share)

    def clean(self, folder: str) -> None:
        """Clean the pairs of a folder, each file alone: its passages compete with each other."""
        for file in sorted((self.out / folder).glob("*.jsonl")):
            clean_files(self.out, folder, [file.name], self.share)

    def build_recipe(self, job: Job, folder: Path) -> Recipe:
        """The recipe of one run."""
        model = {"max_length": 128, "static": {"dimension": 128, "tokenizer": "peg-mini"}}
        tree = build_tree(folder, model, self.out / job.pairs, self.batch, self.steps, job.temperature)
        stage = tree["stages"][0]
        stage["optimizer"] = {"learning_rate": self.rate, "max_grad_norm": None}
        tree["validation"] = {"share": self.share, "queries_per_source": 300, "distractors": 20_000}
        return finish_recipe(tree, job)

    def score_sets(self, folder: Path) -> dict[str, float]:
        """nDCG@10 of each evaluation set."""
        if self._sets is None or self._words is None:
            self._sets = chinese_sets(data_folder())
            self._words = Words(folder / "tokenizer.json")
        return scores(StaticModel.load(folder, self._words), self._sets)


class TransformerSetup:
    """A transformer of 2 layers × 128 that learned from other queries of the same files before."""

    name = "transformer"
    arms = TRANSFORMER_ARMS
    temperatures = (0.05, 0.1)
    rows = 1_000
    share = 0.15
    length = 48  # tokens of a text
    batch, steps, rate = 128, 32, 5e-4
    start_batch, start_steps, start_rate = 256, 300, 1e-3
    eval_queries, eval_distractors = 80, 600
    description = (
        f"BERT of 2 layers × 128 (4 heads, 512 inner, no dropout, mean pooling), texts cut at {length} tokens. It "
        f"begins with the words of a static model, takes {start_steps} steps of {start_batch} pairs of three quarters "
        f"of the queries (plain loss), and is what all arms start from: {steps} steps of {batch} pairs, from at most "
        f"{rows:,} rows of each file with the other queries. Evaluation: {eval_queries} queries of each of the ten "
        f"sets, over their documents and {eval_distractors:,} others."
    )

    def __init__(self, out: Path) -> None:
        self.out = out / "transformer"
        self._sets: list[RetrievalDataset] | None = None
        self._tokens: dict[bytes, TokenRows] = {}

    def prepare(self, data: Path) -> None:
        """Write the pairs, and train what all arms start from."""
        for file in list_files(data):
            rows = read_pairs(file)
            for_arms = np.array([text_key(row["query"]) % 4 == 0 for row in rows], dtype=bool)
            if not (self.out / "others" / file_name(file)).is_file():
                write_rows(self.out / "others" / file_name(file), [rows[i] for i in np.flatnonzero(~for_arms)])
            write_pairs(self.out, file_name(file), [rows[i] for i in np.flatnonzero(for_arms)][: self.rows], self.share)
        self._train_start()

    def clean(self, folder: str) -> None:
        """Clean the pairs of a folder, all files together: alone they are too small for a first model."""
        clean_files(self.out, folder, [file.name for file in sorted((self.out / folder).glob("*.jsonl"))], self.share)

    def _train_start(self) -> None:
        """The model that all arms start from, unless it is there."""
        start = self.out / "start"
        if (start / "model.safetensors").is_file():
            return
        words = self.out / "words"
        if not (self.out / "untrained" / "model.safetensors").is_file():
            tree = StaticSetup(self.out).build_recipe(Job(0.0, "plain", [], 0.08, 0), words).model_dump()
            tree["stages"][0]["data"]["sources"] = [{"path": f"{self.out}/others/*.jsonl"}]
            train(Recipe.parse(tree), overwrite=True, show_progress=True)
            save_transformer(words, self.out / "untrained", self.length)
        model = {"path": str(self.out / "untrained")}
        tree = build_tree(start, model, self.out / "others", self.start_batch, self.start_steps, 0.08)
        tree["stages"][0]["optimizer"] = {"learning_rate": self.start_rate, "warmup_steps": 50}
        tree["validation"] = {"share": self.share, "queries_per_source": 60, "distractors": 2_000}
        tree["checkpoints"] = {"every_steps": 50, "keep": 1}
        train(Recipe.parse(tree), resume=True, show_progress=True)

    def build_recipe(self, job: Job, folder: Path) -> Recipe:
        """The recipe of one run."""
        model = {"path": str(self.out / "start"), "max_length": self.length}
        tree = build_tree(folder, model, self.out / job.pairs, self.batch, self.steps, job.temperature)
        tree["stages"][0]["optimizer"] = {"learning_rate": self.rate, "warmup_steps": 4}
        tree["validation"] = {"share": self.share, "queries_per_source": 60, "distractors": 2_000}
        return finish_recipe(tree, job)

    def score_sets(self, folder: Path) -> dict[str, float]:
        """nDCG@10 of some queries of each evaluation set."""
        if self._sets is None:
            self._sets = [
                cut_set(dataset, self.eval_queries, self.eval_distractors) for dataset in chinese_sets(data_folder())
            ]
        encoder = InTraining(load_encoder(ModelOptions(path=str(folder))), tokens=self._tokens)
        return {dataset.name: evaluate(encoder, dataset, k=100).mean() for dataset in self._sets}


Setup = StaticSetup | TransformerSetup
SETUPS: dict[str, type[StaticSetup] | type[TransformerSetup]] = {
    "static": StaticSetup,
    "transformer": TransformerSetup,
}


def list_files(data: Path) -> list[Path]:
    """The files of pairs that are used, in order."""
    return sorted({file for pattern in PATTERNS for file in (data / "pairs").glob(f"{pattern}.jsonl*")})


def read_pairs(file: Path) -> list[dict[str, Any]]:
    """The queries and positives of a file."""
    rows = [row for _, row in read_rows(file) if not isinstance(row, str)]
    return [{"query": row["query"], "positive": row["positive"]} for row in rows if row.get("positive")]


def file_name(file: Path) -> str:
    return f"{file.name.split('.')[0]}.jsonl"


def write_pairs(out: Path, name: str, rows: Sequence[dict[str, Any]], share: float) -> None:
    """A file of pairs as they are, and with wrong positives."""
    if not (out / "noisy" / name).is_file():
        write_rows(out / "clean" / name, rows)
        write_rows(out / "noisy" / name, swap_positives(rows, ~hold_out(rows, share)))


def clean_files(out: Path, folder: str, names: Sequence[str], share: float) -> None:
    """Clean some files of a folder together, but for their validation rows."""
    target = out / f"{folder}-cleaned"
    if all((target / name).is_file() for name in names):
        return
    files = {name: read_whole_rows(out / folder / name) for name in names}
    work = out / "work"
    write_rows(work / "pairs.jsonl", [{**row, "file": name} for name, rows in files.items() for row in rows])
    options = CleaningOptions(similarity=None, trust=True)
    clean_pairs(work / "pairs.jsonl", work / "cleaned.jsonl", options=options)
    cleaned = read_whole_rows(work / "cleaned.jsonl")
    for name, rows in files.items():
        validation = [rows[i] for i in np.flatnonzero(hold_out(rows, share))]
        write_rows(target / name, put_back([row for row in cleaned if row["file"] == name], validation))
    shutil.rmtree(work)


def read_whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file with all their columns; one that cannot be read is left out."""
    return [dict(row) for _, row in read_rows(path) if not isinstance(row, str)]


def hold_out(rows: Sequence[dict[str, Any]], share: float) -> "np.ndarray":
    """Which rows are of the validation split, (n,) bool."""
    return in_validation(np.array([text_key(row["query"]) for row in rows], dtype=np.int64), share)


def put_back(cleaned: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cleaned rows, with the validation rows as they were."""
    queries = {row["query"] for row in validation}
    kept = [row for row in cleaned if row["query"] not in queries]
    return kept + [{**row, "weight": 1.0} for row in validation]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def swap_positives(rows: Sequence[dict[str, Any]], trained: np.ndarray) -> list[dict[str, Any]]:
    """A fifth of the rows that are trained on, (n,) bool, gets the positive of another of them."""
    training_rows = np.flatnonzero(trained)
    noisy_rows = np.random.default_rng(0).permutation(training_rows)[: int(NOISE * len(training_rows))]
    noisy = [dict(row) for row in rows]
    for row, other in zip(noisy_rows.tolist(), np.roll(noisy_rows, 1).tolist(), strict=True):
        noisy[row]["positive"] = rows[other]["positive"]
    return noisy


def build_tree(
    folder: Path, model: dict[str, Any], pairs: Path, batch: int, steps: int, temperature: float
) -> dict[str, Any]:
    """What the recipes of all runs share; their cache lies beside the folders of pairs."""
    stage = {
        "name": "arm",
        "steps": steps,
        "batch": {"queries": batch},
        "data": {"sources": [{"path": f"{pairs}/*.jsonl"}]},
        "loss": {"temperature": temperature, "symmetric": True},
    }
    return {
        "output_dir": str(folder),
        "cache_dir": str(pairs.parent / "cache"),
        "device": "cpu",
        "model": model,
        "stages": [stage],
    }


def finish_recipe(tree: dict[str, Any], job: Job) -> Recipe:
    """The recipe with the seed and what the arm changes."""
    if job.arm == "cleaned, trust column":
        tree["stages"][0]["data"]["sources"][0]["columns"] = {"weight": "weight"}
    return Recipe.parse(tree | {"seed": job.seed}, [f"stages.0.{override}" for override in job.overrides])


def save_transformer(words: Path, out: Path, length: int) -> None:
    """An untrained BERT whose words begin with the vectors of a static model, as a model folder."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    table = load_file(words / "model.safetensors")["embedding.weight"].float()
    tokenizer = Tokenizer.from_file(str(words / "tokenizer.json"))
    tokenizer.add_special_tokens(["[MASK]", "[PAD]"])
    pad_id = tokenizer.token_to_id("[PAD]")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=table.shape[1],
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * table.shape[1],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=512,
        pad_token_id=pad_id,
    )
    body = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        body.embeddings.word_embeddings.weight[: len(table)] = table

    def save_tokenizer(folder: Path) -> None:
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unk>", pad_token="[PAD]", mask_token="[MASK]"
        )
        wrapped.save_pretrained(folder)

    encoder = TrainableEncoder(
        body,
        tokenizer,
        pooling="mean",
        max_length=length,
        dimension=table.shape[1],
        tokenizer_files=save_tokenizer,
    )
    encoder.save(out)


def cut_set(dataset: RetrievalDataset, queries: int, distractors: int) -> RetrievalDataset:
    """Some queries of a set, over the documents that were judged for them and some others."""
    names = np.array(sorted(dataset.queries))
    chosen = names[smallest_hashes(hash_names(names), queries, 1)]
    qrels = {name: dataset.qrels[name] for name in chosen.tolist()}
    judged = {document for grades in qrels.values() for document in grades}
    others = np.array(sorted(dataset.corpus.keys() - judged))
    kept = judged | set(others[smallest_hashes(hash_names(others), distractors, 1)].tolist())
    corpus = {name: text for name, text in dataset.corpus.items() if name in kept}
    return replace(dataset, corpus=corpus, queries={name: dataset.queries[name] for name in qrels}, qrels=qrels)


def hash_names(names: np.ndarray) -> "np.ndarray":
    return np.array([text_key(name) for name in names.tolist()], dtype=np.int64)


class Experiment:
    """Trains the arms of one model and keeps what came of them."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._runs = Runs(runs_file(setup.name))

    def run_all(self) -> None:
        """Each arm at each temperature with one seed, then at its best one with the others."""
        for noise, arm in self._list_arms():
            if arm in CLEANED_ARMS:
                self._setup.clean("noisy" if noise else "clean")
            trials = {t: self._job(noise, arm, t, SEEDS[0]) for t in self._setup.temperatures}
            validation = {t: self._train_arm(job) for t, job in trials.items()}
            best = max(validation, key=lambda t: validation[t])
            for job in (trials[best], *(self._job(noise, arm, best, seed) for seed in SEEDS[1:])):
                self._train_arm(job)
                self._score_arm(job)
            shutil.rmtree(self._setup.out / "runs", ignore_errors=True)
            write_report()

    def _list_arms(self) -> list[tuple[float, str]]:
        """The arms by what they tell for their cost, those that others are compared with first."""
        costly = [arm for arm in self._setup.arms if arm.startswith(COSTLY)]
        return [
            (0.0, "plain"),
            *((0.0, arm) for arm in self._setup.arms if arm not in costly),
            (NOISE, "plain"),
            *((noise, arm) for arm in ("trust", "guide") for noise in (NOISE, 0.0)),
            *((NOISE, arm) for arm in NOISE_ARMS if arm not in ("plain", "trust", "guide")),
            *((0.0, arm) for arm in costly),
            *((0.0, arm) for arm in NOISE_ARMS if arm not in ("plain", "trust", "guide")),
        ]

    def _job(self, noise: float, arm: str, temperature: float, seed: int) -> Job:
        overrides = {**NOISE_ARMS, **self._setup.arms}[arm]
        return Job(noise, arm, overrides, temperature, seed)

    def _train_arm(self, job: Job) -> float:
        """The score of a run on the validation split; it is made unless it is known."""
        row = find_row(self._runs, job, "validation")
        if row is None:
            start = time.process_time()
            result = train(self._setup.build_recipe(job, self._folder(job)), overwrite=True)
            if result.interrupted:
                raise SystemExit(130)  # the arm is made again the next time
            seconds = round(time.process_time() - start, 1)
            row = job.key | {"validation": result.stages[-1].scores["ndcg@10_by_file"], "seconds": seconds}
            self._runs.add(row)
            print(f"{self._setup.name} {job.key}: {row['validation']:.4f}, {seconds:.0f} s", flush=True)
        return float(row["validation"])

    def _score_arm(self, job: Job) -> None:
        """Score a run on the evaluation sets, unless that was done; its model is made again where it is gone."""
        if find_row(self._runs, job, "eval") is not None:
            return
        folder = self._folder(job)
        if not (folder / "model.safetensors").is_file():
            train(self._setup.build_recipe(job, folder), overwrite=True)
        start = time.process_time()
        self._runs.add(job.key | {"eval": self._setup.score_sets(folder)})
        print(f"{job.key}: scored in {time.process_time() - start:.0f} s", flush=True)

    def _folder(self, job: Job) -> Path:
        return self._setup.out / "runs" / f"{job.temperature}-{job.seed}"


def find_row(runs: Runs, job: Job, column: str) -> dict[str, Any] | None:
    """What the log says of a run, in the row that has this column."""
    return next((row for row in runs if column in row and job.key.items() <= row.items()), None)


def runs_file(model: str) -> Path:
    return RESULTS / ("components.jsonl" if model == "static" else f"components_{model}.jsonl")


@dataclass(frozen=True)
class Outcome:
    """The runs of an arm at its temperature: by seed the validation score, the evaluation sets' mean and seconds."""

    temperature: float
    validation: dict[int, float]
    evaluation: dict[int, float]
    seconds: float

    @classmethod
    def of(cls, runs: Runs, noise: float, arm: str) -> "Outcome | None":
        """What has run so far; None where nothing has."""
        rows = [row for row in runs if row["noise"] == noise and row["arm"] == arm]
        trained = [row for row in rows if "validation" in row]
        first = [row for row in trained if row["seed"] == SEEDS[0]]
        if not first:
            return None
        best = max(first, key=lambda row: row["validation"])["temperature"]
        chosen = [row for row in trained if row["temperature"] == best]
        scored = [row for row in rows if row["temperature"] == best and "eval" in row]
        return cls(
            best,
            {row["seed"]: row["validation"] for row in chosen},
            {row["seed"]: float(np.mean(list(row["eval"].values()))) for row in scored},
            float(np.mean([row["seconds"] for row in chosen])),
        )


def write_report() -> None:
    """The tables of what has run so far."""
    lines = [
        "# What each component is worth",
        "",
        "Made by `train/component_ablation.py`. nDCG@10: validation is the mean over 24 files, evaluation over ten "
        "sets. The temperature of each arm was chosen on validation with seed 0. Gains, in points, are over plain with "
        "the same seeds: their mean and, after ±, their deviation over the seeds. Seconds are of the processor, for "
        "one run without the evaluation sets. The words, and the guide, are those of the bundled model, which was "
        "trained on these files.",
    ]
    for name, setup in SETUPS.items():
        runs = Runs(runs_file(name))
        lines += ["", f"## {name.capitalize()}", "", setup.description, ""]
        lines += describe_arms(runs, ["plain", "guide", "trust", *setup.arms])
    lines += [
        "",
        "## Noise",
        "",
        "Pairs as they are, and with a fifth of the training rows' positives wrong. Of plain the scores, of the others "
        "the gains over plain on the same pairs: validation / evaluation.",
        "",
        *describe_noise(),
    ]
    write_atomically(RESULTS / "components.md", ("\n".join(lines) + "\n").encode())


def describe_arms(runs: Runs, arms: Sequence[str]) -> Iterator[str]:
    """A line for each arm that has run on pairs as they are."""
    yield "| arm | τ | seeds | validation | gain | evaluation | gain | seconds |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    plain = Outcome.of(runs, 0.0, "plain")
    for arm in arms:
        outcome = Outcome.of(runs, 0.0, arm)
        if outcome is None or plain is None:
            continue
        cells = [arm, f"{outcome.temperature:g}", str(len(outcome.validation))]
        for own, others in ((outcome.validation, plain.validation), (outcome.evaluation, plain.evaluation)):
            cells += [format_mean(own), "–" if arm == "plain" else format_gains(own, others)]
        yield "| " + " | ".join([*cells, f"{outcome.seconds:.0f}"]) + " |"


def describe_noise() -> Iterator[str]:
    """A line for each arm, a column for each model and share of wrong positives."""
    columns = [(name, noise) for name in SETUPS for noise in (0.0, NOISE)]
    yield "| arm | " + " | ".join(f"{name}, {noise:.0%} wrong" for name, noise in columns) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    logs = {name: Runs(runs_file(name)) for name in SETUPS}
    for arm in NOISE_ARMS:
        cells = [arm]
        for name, noise in columns:
            outcome = Outcome.of(logs[name], noise, arm)
            plain = Outcome.of(logs[name], noise, "plain")
            cells.append("" if outcome is None or plain is None else describe_cell(arm, outcome, plain))
        yield "| " + " | ".join(cells) + " |"


def describe_cell(arm: str, outcome: Outcome, plain: Outcome) -> str:
    if arm == "plain":
        parts = [format_mean(outcome.validation), format_mean(outcome.evaluation)]
    else:
        parts = [
            format_gains(outcome.validation, plain.validation),
            format_gains(outcome.evaluation, plain.evaluation),
        ]
    return " / ".join(parts)


def format_mean(scores: dict[int, float]) -> str:
    return f"{np.mean(list(scores.values())):.4f}" if scores else ""


def format_gains(scores: dict[int, float], plain: dict[int, float]) -> str:
    """Mean and deviation, in points, over the seeds that both have."""
    gains = [100 * (scores[seed] - plain[seed]) for seed in sorted(scores.keys() & plain.keys())]
    if not gains:
        return ""
    deviation = f" ± {np.std(gains, ddof=1):.2f}" if len(gains) > 1 else ""
    return f"{np.mean(gains):+.2f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=list(SETUPS), default="static")
    parser.add_argument("--report", action="store_true", help="write the tables of what has run, and stop")
    arguments = parser.parse_args()
    if not arguments.report:
        setup = SETUPS[arguments.model](arguments.out)
        setup.prepare(data_folder())
        Experiment(setup).run_all()
    write_report()


if __name__ == "__main__":
    main()
