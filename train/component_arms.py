"""The arms of the components' comparison, the models they train, and the recipe of each run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from component_pairs import (
    NOISE,
    clean_files,
    file_name,
    list_files,
    read_pairs,
    write_pairs,
    write_rows,
)
from experiments import StaticModel, Words, chinese_sets, data_folder, scores

from peg_rag.evaluation import RetrievalDataset, evaluate
from peg_rag.training import Recipe, train
from peg_rag.training.data.sampler import smallest_hashes
from peg_rag.training.data.texts import text_key
from peg_rag.training.data.tokens import TokenRows
from peg_rag.training.model.encoder import TrainableEncoder, load_encoder
from peg_rag.training.recipe import ModelOptions
from peg_rag.training.run.validation import InTraining

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

LONGER_ARMS = {
    arm: TRANSFORMER_ARMS[arm]
    for arm in ("mixing", "soft augmentation", "queue of 1,024", "128 shared documents", "clusters", "mined")
}


def order_arms(arms: Sequence[str]) -> list[tuple[float, str]]:
    """All arms, with their noise, by what they tell for their cost; those that others are compared with come first."""
    costly = [arm for arm in arms if arm.startswith(COSTLY)]
    return [
        (0.0, "plain"),
        *((0.0, arm) for arm in arms if arm not in costly),
        (NOISE, "plain"),
        *((noise, arm) for arm in ("trust", "guide") for noise in (NOISE, 0.0)),
        *((NOISE, arm) for arm in NOISE_ARMS if arm not in ("plain", "trust", "guide")),
        *((0.0, arm) for arm in costly),
        *((0.0, arm) for arm in NOISE_ARMS if arm not in ("plain", "trust", "guide")),
    ]


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

    name, title = "static", "Static"
    arms = STATIC_ARMS
    order: Sequence[tuple[float, str]] = order_arms(list(STATIC_ARMS))
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

    name, title = "transformer", "Transformer"
    arms = TRANSFORMER_ARMS
    order: Sequence[tuple[float, str]] = order_arms(list(TRANSFORMER_ARMS))
    temperatures: Sequence[float] = (0.05, 0.1)
    rows = 1_000
    share = 0.15
    length = 48  # tokens of a text
    batch, steps, rate = 128, 32, 5e-4
    warmup_steps = 4
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
        self.out = out / self.name
        self._base = out / "transformer"  # of what all arms start from
        self._sets: list[RetrievalDataset] | None = None
        self._tokens: dict[bytes, TokenRows] = {}

    def prepare(self, data: Path) -> None:
        """Write the pairs, and train what all arms start from."""
        for file in list_files(data):
            rows = read_pairs(file)
            for_arms = np.array([text_key(row["query"]) % 4 == 0 for row in rows], dtype=bool)
            if not (self._base / "others" / file_name(file)).is_file():
                write_rows(self._base / "others" / file_name(file), [rows[i] for i in np.flatnonzero(~for_arms)])
            write_pairs(self.out, file_name(file), [rows[i] for i in np.flatnonzero(for_arms)][: self.rows], self.share)
        self._train_start()

    def clean(self, folder: str) -> None:
        """Clean the pairs of a folder, all files together: alone they are too small for a first model."""
        clean_files(self.out, folder, [file.name for file in sorted((self.out / folder).glob("*.jsonl"))], self.share)

    def _train_start(self) -> None:
        """The model that all arms start from, unless it is there."""
        start = self._base / "start"
        if (start / "model.safetensors").is_file():
            return
        words = self._base / "words"
        if not (self._base / "untrained" / "model.safetensors").is_file():
            tree = StaticSetup(self._base).build_recipe(Job(0.0, "plain", [], 0.08, 0), words).model_dump()
            tree["stages"][0]["data"]["sources"] = [{"path": f"{self._base}/others/*.jsonl"}]
            train(Recipe.parse(tree), overwrite=True, show_progress=True)
            save_transformer(words, self._base / "untrained", self.length)
        model = {"path": str(self._base / "untrained")}
        tree = build_tree(start, model, self._base / "others", self.start_batch, self.start_steps, 0.08)
        tree["stages"][0]["optimizer"] = {"learning_rate": self.start_rate, "warmup_steps": 50}
        tree["validation"] = {"share": self.share, "queries_per_source": 60, "distractors": 2_000}
        tree["checkpoints"] = {"every_steps": 50, "keep": 1}
        train(Recipe.parse(tree), resume=True, show_progress=True)

    def build_recipe(self, job: Job, folder: Path) -> Recipe:
        """The recipe of one run."""
        model = {"path": str(self._base / "start"), "max_length": self.length}
        tree = build_tree(folder, model, self.out / job.pairs, self.batch, self.steps, job.temperature)
        tree["stages"][0]["optimizer"] = {"learning_rate": self.rate, "warmup_steps": self.warmup_steps}
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


class LongerSetup(TransformerSetup):
    """The same transformer from the same start, six times as long, at the temperature that plain chose there."""

    name, title = "longer", "Transformer, longer"
    arms = LONGER_ARMS
    order = (  # what a short arm left open comes first
        *((noise, arm) for arm in ("plain", "trust") for noise in (NOISE, 0.0)),
        *((NOISE, arm) for arm in ("cleaned", "guide")),
        *((0.0, arm) for arm in ("128 shared documents", "mixing", "mined", "queue of 1,024")),
        *((NOISE, arm) for arm in ("progressive", "margin mask")),
        *((0.0, arm) for arm in ("soft augmentation", "clusters", "guide")),
    )
    temperatures = (0.05,)
    rows = 6_000
    steps, warmup_steps = 192, 24
    description = (
        f"The same model from the same start: {steps} steps of {TransformerSetup.batch} pairs, from at most {rows:,} "
        "rows of each file, so that no pair is seen twice, all at the temperature that plain chose above. "
        "Evaluation as before; the validation split is larger, and its scores are not those above."
    )


Setup = StaticSetup | TransformerSetup
SETUPS: dict[str, type[StaticSetup] | type[TransformerSetup]] = {
    "static": StaticSetup,
    "transformer": TransformerSetup,
    "longer": LongerSetup,
}


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
