"""A `PEGEncoder` in mteb: real tasks over local data, and scores that agree with ours and with pytrec_eval's."""

import gzip
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from conftest import REPO

mteb = pytest.importorskip("mteb")

from datasets import Dataset  # noqa: E402
from mteb.abstasks import AbsTaskReranking, AbsTaskRetrieval, AbsTaskSTS  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402

from peg_rag import PEGEncoder  # noqa: E402
from peg_rag.errors import InvalidInput, MissingExtra  # noqa: E402
from peg_rag.evaluation import (  # noqa: E402
    Candidates,
    Indexed,
    RetrievalDataset,
    SentencePairs,
    evaluate,
    load_beir,
    load_sts,
    score_run,
    sts_spearman,
    with_candidates,
)
from peg_rag.evaluation.mteb import MTEBModel  # noqa: E402

QUERIES, DOCUMENTS, PAIRS = 120, 500, 300


def metadata(name: str, kind: Any, main_score: str) -> TaskMetadata:
    unknown: dict[str, Any] = {
        "date": None,
        "domains": None,
        "task_subtypes": None,
        "license": None,
        "annotations_creators": None,
    }
    return TaskMetadata(
        name=name,
        description="Local files.",
        reference=None,
        dataset={"path": "local", "revision": "1"},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["cmn-Hans"],
        main_score=main_score,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
        **unknown,
    )


class Local:
    """A task over a set that `peg_rag.evaluation` read. mteb rounds its means, so each query's scores are kept."""

    dataset: Any

    def __init__(self, source: RetrievalDataset) -> None:
        super().__init__()
        self.source = source
        self.per_query: dict[str, dict[str, float]] = {}

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        texts = {"corpus": self.source.corpus, "queries": self.source.queries}
        data: dict[str, Any] = {
            name: Dataset.from_list([{"id": key, "text": text} for key, text in rows.items()])
            for name, rows in texts.items()
        }
        data["relevant_docs"] = {query: dict(grades) for query, grades in self.source.qrels.items()}
        data["top_ranked"] = self.candidates()
        self.dataset = {"default": {"test": data}}
        self.data_loaded = True

    def candidates(self) -> dict[str, list[str]] | None:
        return None

    def task_specific_scores(
        self, scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str
    ) -> dict[str, float]:
        self.per_query, self.run = scores, results
        return {}


class LocalRetrieval(Local, AbsTaskRetrieval):
    metadata = metadata("LocalRetrieval", "Retrieval", "ndcg_at_10")


class LocalReranking(Local, AbsTaskReranking):
    metadata = metadata("LocalReranking", "Reranking", "map_at_1000")

    def candidates(self) -> dict[str, list[str]]:
        return {query: list(grades) for query, grades in self.source.qrels.items()}


class LocalSTS(AbsTaskSTS):
    metadata = metadata("LocalSTS", "STS", "cosine_spearman")

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        super().__init__()
        self.rows = rows

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        self.dataset = {"test": Dataset.from_list(self.rows)}
        self.data_loaded = True


def run_mteb(model: MTEBModel, task: Any) -> dict[str, float]:
    task.load_data()  # mteb then leaves it loaded
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False)
    scores: dict[str, float] = result.task_results[0].scores["test"][0]
    return scores


@pytest.fixture(scope="module")
def model() -> MTEBModel:
    return MTEBModel("peg-mini")


@pytest.fixture(scope="module")
def science(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RetrievalDataset:
    """The first queries and documents of a set, as a BEIR folder of its own."""
    whole = load_beir(data_dir / "eval" / "science-csl")
    queries = list(whole.qrels)[:QUERIES]
    relevant = {document for query in queries for document in whole.qrels[query]}
    documents = list(dict.fromkeys([*relevant, *whole.corpus]))[:DOCUMENTS]
    folder = tmp_path_factory.mktemp("beir") / "science"
    (folder / "qrels").mkdir(parents=True)
    for name, ids, texts in (("corpus", sorted(documents), whole.corpus), ("queries", queries, whole.queries)):
        lines = [json.dumps({"_id": i, "title": "", "text": texts[i]}, ensure_ascii=False) for i in ids]
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    rows = [f"{query}\t{d}\t{grade}" for query in queries for d, grade in whole.qrels[query].items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]), encoding="utf-8")
    return load_beir(folder)


@pytest.fixture(scope="module")
def searched(model: MTEBModel, science: RetrievalDataset) -> tuple[LocalRetrieval, dict[str, float]]:
    """The task after mteb ran it, and the means it reports."""
    task = LocalRetrieval(science)
    return task, run_mteb(model, task)


def test_retrieval_agrees_with_mteb_and_pytrec_eval(model: MTEBModel, science: RetrievalDataset, searched: Any) -> None:
    task, theirs = searched
    ours = evaluate(model.encoder, science)
    measures = {
        "nDCG@10": "ndcg_cut_10",
        "Recall@10": "recall_10",
        "Recall@100": "recall_100",
        "MAP@100": "map_cut_100",
    }
    judged = {query: dict(grades) for query, grades in science.qrels.items()}
    names = {"ndcg_cut.10", "recall.10,100", "map_cut.100", "recip_rank"}
    trec = pytrec_eval.RelevanceEvaluator(judged, names).evaluate(ours.run)
    for metric, name in measures.items():
        assert ours.values[metric] == pytest.approx([task.per_query[q][name] for q in ours.query_ids], abs=1e-6)
        assert ours.values[metric] == pytest.approx([trec[q][name] for q in ours.query_ids], abs=1e-6)
    ranks = np.array([trec[q]["recip_rank"] for q in ours.query_ids])
    assert ours.values["MRR@10"] == pytest.approx(np.where(ranks >= 0.1, ranks, 0), abs=1e-6)
    means = {"nDCG@10": "ndcg_at_10", "MRR@10": "mrr_at_10", "Recall@100": "recall_at_100", "MAP@100": "map_at_100"}
    assert {m: ours.mean(m) for m in means} == pytest.approx({m: theirs[n] for m, n in means.items()}, abs=5.1e-6)
    assert 0.5 < ours.mean() < 1  # a score that could differ


def test_our_metrics_on_the_run_that_mteb_made(science: RetrievalDataset, searched: Any) -> None:
    task, theirs = searched
    values = score_run(task.run, science.qrels)
    for metric, name in (("nDCG@10", "ndcg_cut_10"), ("Recall@10", "recall_10"), ("MAP@100", "map_cut_100")):
        assert values[metric] == pytest.approx([task.per_query[query][name] for query in science.qrels], abs=1e-6)
    assert values["MRR@10"].mean() == pytest.approx(theirs["mrr_at_10"], abs=5.1e-6)


def test_sts_agrees_with_mteb(model: MTEBModel, data_dir: Path) -> None:
    pairs = load_sts(data_dir / "sts" / "stsb.dev.tsv")
    whole = list(zip(pairs.first, pairs.second, pairs.labels.tolist(), strict=True))[:PAIRS]
    # The last bit of a cosine would order texts that a bag of words cannot tell apart.
    rows = [(a, b, label) for a, b, label in whole if sorted(a) != sorted(b)]
    theirs = run_mteb(model, LocalSTS([{"sentence1": a, "sentence2": b, "score": label} for a, b, label in rows]))
    first, second, labels = zip(*rows, strict=True)
    ours = sts_spearman(model.encoder, SentencePairs("stsb", first, second, np.array(labels)))
    assert ours == pytest.approx(theirs["cosine_spearman"], abs=1e-6)
    assert ours == pytest.approx(theirs["main_score"], abs=1e-6)


def test_reranking_agrees_with_mteb(model: MTEBModel, science: RetrievalDataset) -> None:
    dataset = with_candidates(science, Indexed("lexical").run(science, 20), k=20)
    ours = evaluate(Candidates(model.encoder, "peg-mini"), dataset)
    task = LocalReranking(dataset)
    theirs = run_mteb(model, task)
    for metric, name in (("MAP@100", "map_cut_100"), ("nDCG@10", "ndcg_cut_10")):
        assert ours.values[metric] == pytest.approx([task.per_query[q][name] for q in ours.query_ids], abs=1e-6)
    assert ours.mean("MAP@100") == pytest.approx(theirs["main_score"], abs=5.1e-6)
    assert ours.mean("MRR@10") == pytest.approx(theirs["mrr_at_10"], abs=5.1e-6)
    assert 0.5 < ours.mean("MAP@100") < 1


class Told:
    """An encoder's two methods, noting which one is called."""

    def __init__(self, encoder: PEGEncoder) -> None:
        self.encoder = encoder
        self.spec = encoder.spec
        self.calls: list[str] = []

    def encode_queries(self, texts: list[str], *, show_progress: bool = False) -> np.ndarray:
        self.calls.append("query")
        return self.encoder.encode_queries(texts)

    def encode_documents(self, texts: list[str], *, show_progress: bool = False) -> np.ndarray:
        self.calls.append("document")
        return self.encoder.encode_documents(texts)


@pytest.mark.parametrize(
    ("prompts", "alike"),
    [
        ({}, "document"),
        ({"query_prompt": "问："}, "document"),
        ({"query_prompt": "问：", "document_prompt": "答："}, "query"),
    ],
)
def test_prompts_by_kind_of_task(tiny_bert: Path, prompts: dict[str, str], alike: str) -> None:
    model = MTEBModel(tiny_bert, **prompts)
    told = model.encoder = Told(model.encoder)  # type: ignore[assignment]
    toy = RetrievalDataset(
        "toy", {"d0": "花呗", "d1": "借款"}, {"q0": "花呗", "q1": "借"}, {"q0": {"d0": 1}, "q1": {"d1": 1}}
    )
    run_mteb(model, LocalRetrieval(toy))
    assert told.calls == ["query", "document"]
    told.calls.clear()
    run_mteb(
        model,
        LocalSTS(
            [
                {"sentence1": a, "sentence2": b, "score": s}
                for a, b, s in [("花", "花呗", 5), ("借", "理财", 0), ("法", "法律", 3)]
            ]
        ),
    )
    assert set(told.calls) == {alike}
    assert model.mteb_model_meta.use_instructions is bool(prompts)


def test_model_meta(tiny_bert: Path) -> None:
    import torch
    from safetensors import safe_open

    meta = MTEBModel(tiny_bert, pooling="cls").mteb_model_meta
    with safe_open(tiny_bert / "model.safetensors", "pt") as file:
        assert meta.n_parameters == sum(torch.tensor(file.get_slice(k).get_shape()).prod().item() for k in file.keys())  # noqa: SIM118
    assert (meta.name, meta.embed_dim, meta.max_tokens) == (f"peg-rag/{tiny_bert.name}", 32, 64)
    assert meta.similarity_fn_name == "cosine"
    other = MTEBModel(tiny_bert, pooling="mean").mteb_model_meta
    assert meta.revision == other.revision
    assert meta.experiment_name != other.experiment_name  # mteb would else show one's results for the other


def test_without_mteb_there_is_a_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(MissingExtra, match=r"pip install 'peg-rag\[mteb\]'"):
        MTEBModel("peg-mini")


def test_an_encoder_is_taken_as_it_is(model: MTEBModel) -> None:
    again = MTEBModel(model.encoder)
    assert again.encoder is model.encoder
    assert again.mteb_model_meta.experiment_name
    with pytest.raises(InvalidInput, match="has its own revision"):
        MTEBModel(model.encoder, device="cpu")


def test_the_published_table_is_of_tasks_that_mteb_has(capsys: pytest.CaptureFixture[str]) -> None:
    c_mteb = runpy.run_path(str(REPO / "benchmarks" / "c_mteb.py"))
    published = c_mteb["PUBLISHED"]
    assert {task.metadata.name for task in mteb.get_tasks(tasks=list(published))} == set(published)
    c_mteb["print_table"]("TownsWu/PEG", published)
    assert re.search(r"mean of 8 retrieval +73\.78 +73\.78\n", capsys.readouterr().out)
    assert "73.78" in (REPO / "docs" / "results.md").read_text(encoding="utf-8")
