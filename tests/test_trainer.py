"""Whole runs, small: the folder opens everywhere, Ctrl-C and faults lose nothing, recipes do what they say."""

import gzip
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from peg_rag import PEGEncoder
from peg_rag.errors import DataError, MissingExtra, TrainingError
from peg_rag.evaluation import RetrievalDataset, load_beir
from peg_rag.training import Recipe, train
from peg_rag.training.data.sampler import in_validation
from peg_rag.training.data.texts import text_key
from peg_rag.training.model.encoder import load_encoder
from peg_rag.training.recipe import ModelOptions, OptimizerOptions
from peg_rag.training.run.checkpoint import last_checkpoint
from peg_rag.training.run.estimate import estimate_run
from peg_rag.training.run.optimizer import learning_rate
from peg_rag.training.run.train import StageLoop
from peg_rag.training.run.validation import InTraining

REPO = Path(__file__).resolve().parent.parent
WORDS = "花呗银行卡绑定更换借款理财逾期北京故宫门票医院报销材料需哪些公司法律合同"
Make = Callable[..., Recipe]

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {
            "query": f"{a}{b}怎么办",
            "positive": f"关于{a}{b}的回答",
            "negatives": [f"关于{b}的事{a}"],
            "label": str(i % 3),
        }
        for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS[:8])
    ]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def make(tmp_path: Path, pairs: Path, tiny_bert: Path) -> Make:
    """A recipe for the tiny BERT; keyword arguments go into its stage, `overrides` anywhere."""

    def recipe(*overrides: str, source: dict[str, Any] | None = None, **stage: Any) -> Recipe:
        tree = {
            "output_dir": str(tmp_path / "run"),
            "cache_dir": str(tmp_path / "cache"),
            "device": "cpu",
            "model": {"path": str(tiny_bert), "pooling": "cls"},
            "stages": [
                {
                    "name": "main",
                    "steps": 6,
                    "batch": {"queries": 16, "negatives": 1},
                    "data": {"sources": [{"path": str(pairs), **(source or {})}]},
                    "optimizer": {"learning_rate": 1e-3},
                    **stage,
                }
            ],
            "validation": {"share": 0.1, "distractors": 20},
            "logging": {"every_steps": 2},
        }
        return Recipe.parse(tree, overrides)

    return recipe


def test_the_folder_opens_in_three_libraries_with_the_right_pooling(make: Make) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    result = train(make("model.query_prompt=问", "model.max_length=32"))
    texts = ["花呗怎么还款", "故宫门票多少钱一张", "银行卡"]
    with PEGEncoder(result.folder, dtype="float32") as encoder:
        assert (encoder.spec.pooling, encoder.spec.max_length, encoder.spec.query_prompt) == ("cls", 32, "问")
        ours, asked = encoder.encode_documents(texts), encoder.encode_queries(texts)
    theirs = SentenceTransformer(str(result.folder), device="cpu")
    np.testing.assert_allclose(ours, theirs.encode_document(texts), atol=1e-5)
    np.testing.assert_allclose(asked, theirs.encode_query(texts), atol=1e-5)
    model, tokenizer = AutoModel.from_pretrained(result.folder), AutoTokenizer.from_pretrained(result.folder)
    with torch.no_grad():
        states = model.eval()(**tokenizer(texts, return_tensors="pt", padding=True)).last_hidden_state[:, 0]
    np.testing.assert_allclose(ours, torch.nn.functional.normalize(states).numpy(), atol=1e-5)
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    for said in ("pooling `cls`", "| pairs |", "6 steps of 16 pairs", "32 candidates", "query prompt: `问`", "seed: 0"):
        assert said in card, said
    assert f"{result.stages[0].scores['ndcg@10']:.4f}" in card


def test_a_new_static_model_learns_and_opens_alike(make: Make, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    shape = "model={static: {dimension: 16, vocabulary: {size: 300}}}"
    recipe = make(shape, "stages.0.steps=20", "stages.0.optimizer.learning_rate=0.05", "evaluation.at_start=true")
    result = train(recipe)
    history = json.loads((result.folder / "stages" / "1-main" / "history.json").read_text())["log_history"]
    scores = [entry["eval_ndcg@10"] for entry in history if "eval_ndcg@10" in entry]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert scores[-1] >= scores[0]
    assert {"step", "accuracy", "t", "hard_share", "pairs_per_s", "learning_rate", "grad_norm"} <= set(history[1])
    texts = ["花呗怎么还款", "故宫门票多少钱一张"]
    with PEGEncoder(result.folder) as encoder:
        assert encoder.spec.kind == "static"
        vectors = encoder.encode_documents(texts)
    np.testing.assert_allclose(vectors, SentenceTransformer(str(result.folder), device="cpu").encode(texts), atol=1e-5)


def test_a_new_static_model_can_take_its_words_from_another(make: Make) -> None:
    result = train(make("model={static: {dimension: 16, tokenizer: peg-mini}}", "stages.0.steps=2"))
    folders = (result.folder, PEGEncoder("peg-mini").spec.path)
    ours, theirs = (json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"] for folder in folders)
    assert ours == theirs


@pytest.mark.parametrize("shape", ["static: {dimension: 16}", "transformer: {hidden_size: 24, layers: 1, heads: 2}"])
def test_the_last_folder_may_be_stored_in_half_the_bytes(make: Make, shape: str) -> None:
    from safetensors.torch import load_file

    result = train(make(f"model={{{shape}}}", "stages.0.steps=2", "stored_as=fp16"))
    kept = result.folder / "stages" / "1-main" / "model"
    stored, full = (load_file(folder / "model.safetensors") for folder in (result.folder, kept))
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    for key, tensor in full.items():
        torch.testing.assert_close(stored[key], tensor.half())
    vectors = [
        PEGEncoder(folder, dtype="float32").encode_documents(["花呗怎么还款"]) for folder in (result.folder, kept)
    ]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=2e-3)


def test_a_new_transformer_of_any_shape_is_built_and_saved(make: Make) -> None:
    shape = "model={transformer: {hidden_size: 24, layers: 1, heads: 2}, max_length: 40, pooling: mean}"
    result = train(make(shape, "stages.0.steps=2", "precision=bf16", "stages.0.loss.matryoshka_dims=[8, 24]"))
    with PEGEncoder(result.folder, dtype="float32") as encoder:
        assert (encoder.spec.pooling, encoder.spec.max_length, encoder.dimension) == ("mean", 40, 24)
        assert np.isfinite(encoder.encode_documents(["花呗"])).all()


def test_graded_pairs_train_with_cosent_after_a_contrastive_stage(make: Make, tmp_path: Path, pairs: Path) -> None:
    graded = tmp_path / "graded.tsv"
    lines = [
        f"{a}的{b}\t{a}和{b if i % 2 else a}\t{i % 5}"
        for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS[:6])
    ]
    graded.write_text("\n".join(["sentence1\tsentence2\tlabel", *lines]), encoding="utf-8")
    first = make().stages[0].model_dump(mode="json")
    second = {
        "name": "graded",
        "objective": "cosent",
        "steps": 4,
        "batch": {"queries": 32},
        "data": {
            "sources": [
                {
                    "path": str(graded),
                    "columns": {"query": "sentence1", "positive": "sentence2", "label_is_grade": True},
                }
            ]
        },
        "optimizer": {"learning_rate": 1e-3},
    }
    tree = make().model_dump(mode="json")
    result = train(Recipe.parse({**tree, "stages": [first, second]}))
    assert [stage.name for stage in result.stages] == ["main", "graded"]
    assert "spearman" in result.stages[1].scores
    assert "ndcg@10" in result.stages[0].scores
    assert (result.folder / "stages" / "1-main" / "model" / "modules.json").is_file()
    again = train(Recipe.parse({**tree, "stages": [first, second]}), resume=True)  # all done: nothing to do
    assert again.stages == result.stages


def write_beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": str(i), "title": "", "text": f"关于{w}的回答"} for i, w in enumerate(WORDS)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "花怎么办"}))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t0\t1\n")
    return folder


def test_beir_folders_are_scored(make: Make, tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "tiny-beir")
    result = train(make("stages.0.steps=1", f"evaluation.beir=[{folder}]"))
    assert 0 <= result.stages[0].scores["tiny-beir_ndcg@10"] <= 1


def test_validation_is_tokenised_once_and_beir_folders_are_read_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peg_rag.training.model.encoder import TrainableEncoder
    from peg_rag.training.run import validation

    folder = write_beir(tmp_path / "tiny-beir")
    tokenised: list[tuple[str, ...]] = []
    loaded: list[Path] = []
    plain_tokens = TrainableEncoder.token_ids

    def note_texts(self: TrainableEncoder, texts: list[str]) -> list[list[int]]:
        tokenised.append(tuple(texts))
        return plain_tokens(self, texts)

    def note_folder(path: Path) -> RetrievalDataset:
        loaded.append(path)
        return load_beir(path)

    monkeypatch.setattr(TrainableEncoder, "token_ids", note_texts)
    monkeypatch.setattr(validation, "load_beir", note_folder)
    tree = make(f"evaluation={{beir: [{folder}], at_start: true, every_steps: 2}}").model_dump(mode="json")
    tree["stages"].append({**tree["stages"][0], "name": "again"})
    train(Recipe.parse(tree))  # eight evaluations
    assert len(loaded) == 1
    assert len(tokenised) == len(set(tokenised)) == 4  # queries and documents, of the split and of the folder


# ---- interruption and faults


def test_ctrl_c_saves_a_checkpoint_and_resume_ends_where_a_straight_run_does(make: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    straight = train(make(f"output_dir={tmp_path / 'straight'}", "stages.0.steps=30"))
    recipe = make("stages.0.steps=30")
    stage = tmp_path / "run" / "stages" / "1-main"
    trigger = threading.Thread(target=_interrupt_when, args=(lambda: _steps_seen() >= 4,))
    _seen.clear()
    with pytest.MonkeyPatch.context() as patch:
        _count_steps(patch)
        trigger.start()
        result = train(recipe)
        trigger.join()
    assert result.interrupted
    checkpoint = last_checkpoint(stage)
    assert checkpoint is not None
    assert 4 <= int(checkpoint.name.split("-")[1]) < 30
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = train(recipe, resume=True)
    assert not resumed.interrupted
    one, other = (load_file(r.folder / "model.safetensors") for r in (straight, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


_seen: list[int] = []


def _steps_seen() -> int:
    return len(_seen)


def _count_steps(patch: pytest.MonkeyPatch) -> None:
    plain = StageLoop._take_step

    def counting(self: StageLoop, batch: Any) -> None:
        plain(self, batch)
        _seen.append(1)

    patch.setattr(StageLoop, "_take_step", counting)


def _interrupt_when(due: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not due() and time.monotonic() < end:
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_loss_that_is_no_number_dumps_the_batch_and_keeps_the_checkpoint(make: Make, tmp_path: Path) -> None:
    plain = StageLoop._take_step

    def poisoned(self: StageLoop, batch: Any) -> None:
        if self.progress.step == 5:
            with torch.no_grad():
                next(self.encoder.parameters()).fill_(float("nan"))
        plain(self, batch)

    recipe = make("checkpoints.every_steps=2", "stages.0.steps=8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageLoop, "_take_step", poisoned)
        with pytest.raises(TrainingError) as caught:
            train(recipe)
    stage = tmp_path / "run" / "stages" / "1-main"
    assert "step 5 of stage main" in str(caught.value)
    assert f"the last checkpoint is {stage / 'checkpoint-4'}" in str(caught.value)
    (dump,) = stage.glob("bad-batch-step-5-*.jsonl")
    rows = [json.loads(line) for line in dump.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 16
    assert set(rows[0]) == {"file", "row", "query", "positive", "negatives"}
    assert train(recipe, resume=True).stages[0].steps == 8


def test_a_full_disk_is_an_error_that_names_the_last_whole_checkpoint(make: Make, tmp_path: Path) -> None:
    """The limit on file sizes stands for the disk: the write fails in the middle of a file."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(make("checkpoints.every_steps=2", "checkpoints.keep=9", "stages.0.steps=8").dump(), "utf-8")
    stage = tmp_path / "run" / "stages" / "1-main"
    code = f"""
import resource, sys
from peg_rag.training.run import train as module
from peg_rag.training.__main__ import main
plain = module.save_checkpoint
def save(folder, trained, *, keep):
    if trained.progress.step == 6:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    return plain(folder, trained, keep=keep)
module.save_checkpoint = save
sys.exit(main([{str(recipe)!r}]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert run.returncode == 1, run.stderr[-2000:]
    assert "the checkpoint of step 6 cannot be written" in run.stderr
    assert f"the last whole one is {stage / 'checkpoint-4'}" in run.stderr
    assert sorted(path.name for path in stage.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert not (stage / ".saving").exists()
    assert train(Recipe.load(recipe), resume=True).stages[0].steps == 8
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_folder_with_another_run_is_not_touched(make: Make, tmp_path: Path) -> None:
    train(make("stages.0.steps=1"))
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=r"already holds a run; go on with it \(--resume\), replace it"):
        train(make("stages.0.steps=1"))
    with pytest.raises(TrainingError, match=r"stages\[0\]\.steps = 1, and now it is 2"):
        train(make("stages.0.steps=2"), resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert train(make("stages.0.steps=2"), overwrite=True).stages[0].steps == 2


def test_bad_data_is_named_before_anything_is_trained(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stages\.main\.data\.sources\[0\]\.path: .*nothing\.jsonl does not exist"):
        train(make(f"stages.0.data.sources.0.path={tmp_path / 'nothing.jsonl'}"))
    with pytest.raises(DataError, match="no column 'frage'"):
        train(make(source={"columns": {"query": "frage"}}), overwrite=True)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl has no usable row"):
        train(make(f"stages.0.data.sources.0.path={tmp_path / 'empty.jsonl'}"), overwrite=True)
    with pytest.raises(DataError, match="no row is left"):
        train(make(source={"minimum_label": 99}), overwrite=True)
    with pytest.raises(DataError, match="does not exist"):
        train(make("evaluation.beir=[/nowhere/at/all]", "evaluation.at_start=true"), overwrite=True)


def test_a_file_that_no_negative_is_mined_for_is_named(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    recipe = make("stages.0.data.mining={negatives: 1, first_rank: 5000, last_rank: 6000}", "stages.0.steps=1")
    with caplog.at_level(logging.WARNING, logger="peg_rag"):
        train(recipe)
    assert "pairs: no negative was mined for its" in caplog.text


def test_each_round_mines_anew_with_the_model_as_it_then_is(make: Make, tmp_path: Path) -> None:
    options = "{negatives: 2, relative_margin: null}"
    recipe = make(
        f"stages.0.data.mining={options}",
        "stages.0.batch.negatives=2",
        "stages.0.rounds=2",
        "checkpoints.every_steps=3",
        source={"columns": {"negatives": None}},
    )
    train(recipe)
    stage = tmp_path / "run" / "stages" / "1-main"
    chosen = []
    for number, model in enumerate([recipe.model.path, str(stage / "checkpoint-3")], start=1):
        lines = (stage / f"round-{number}" / "mined-0.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert rows
        encoder = InTraining(load_encoder(ModelOptions(path=model, pooling="cls")))
        positives = sorted({row["positive"] for row in rows})
        queries = encoder.encode_queries([row["query"] for row in rows])
        cosines = queries @ encoder.encode_documents(positives).T  # (rows, positives)
        for row, own in zip(rows, cosines, strict=True):
            own[positives.index(row["positive"])] = -np.inf
            mined = own[[positives.index(text) for text in row["negatives"]]]
            np.testing.assert_allclose(mined, np.sort(own)[:-3:-1], atol=1e-5)
        chosen.append([row["negatives"] for row in rows])
    assert chosen[0] != chosen[1]


def test_a_resumed_run_keeps_its_data(make: Make, pairs: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    lines = pairs.read_text(encoding="utf-8").splitlines()
    recipe = make(source={"path": str(tmp_path / "own*.jsonl")})
    file.write_text("\n".join(lines), encoding="utf-8")
    assert train(recipe, on_log=lambda entry: entry["step"] == 2).interrupted
    for changed in (
        lines[:-1],
        [*lines, json.dumps({"query": "新的问题", "positive": "新的回答"}, ensure_ascii=False)],
    ):
        file.write_text("\n".join(changed), encoding="utf-8")
        with pytest.raises(TrainingError, match=r"stage main began with other rows \(own changed\).*--overwrite"):
            train(recipe, resume=True)
    file.write_text("\n".join(lines), encoding="utf-8")
    shutil.copy(file, tmp_path / "own-2.jsonl")
    with pytest.raises(TrainingError, match=r"other rows \(own-2 changed\)"):
        train(recipe, resume=True)
    for checkpoint in (tmp_path / "run" / "stages" / "1-main").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(TrainingError, match="other rows"):  # what was made for the first step would not fit
        train(recipe, resume=True)
    (tmp_path / "own-2.jsonl").unlink()
    assert not train(recipe, resume=True).interrupted


@pytest.mark.parametrize(
    "component", ["order={kind: neighbours}", "order={kind: clusters}", "mining={negatives: 1}", "alpha=0.5"]
)
def test_a_file_without_rows_to_train_on_is_named(component: str, make: Make, tmp_path: Path) -> None:
    queries = np.array([text_key(f"问{i}") for i in range(50)], dtype=np.int64)
    held_out = int(np.flatnonzero(in_validation(queries, 0.4))[0])
    single = tmp_path / "single.jsonl"
    single.write_text(json.dumps({"query": f"问{held_out}", "positive": "唯一的回答"}), encoding="utf-8")
    recipe = make(f"stages.0.data.{component}", "validation.share=0.4", source={"path": str(single)})
    with pytest.raises(DataError, match="single: no row is left to train on"):
        train(recipe)


def test_on_log_hears_every_entry_and_may_end_the_run(make: Make, tmp_path: Path) -> None:
    entries: list[dict[str, float]] = []

    def watch(entry: Any) -> bool:
        entries.append(dict(entry))
        return bool(entry["step"] >= 4)

    recipe = make("stages.0.steps=10", "logging.every_steps=2")
    result = train(recipe, on_log=watch)
    assert result.interrupted
    assert [entry["step"] for entry in entries] == [2, 4]
    checkpoint = last_checkpoint(tmp_path / "run" / "stages" / "1-main")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-4"
    resumed = train(recipe, resume=True)
    assert not resumed.interrupted
    history = json.loads((resumed.folder / "stages" / "1-main" / "history.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [2, 4, 6, 8, 10]


def test_learning_rates_follow_the_schedule() -> None:
    rates = {}
    for schedule in ("linear", "cosine", "constant"):
        options = OptimizerOptions(learning_rate=1.0, schedule=schedule, warmup_steps=2)
        rates[schedule] = [learning_rate(options, step, 6) for step in range(6)]
    assert rates["linear"] == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])
    assert rates["cosine"] == pytest.approx([0, 0.5, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    assert rates["constant"] == pytest.approx([0, 0.5, 1, 1, 1, 1])


# ---- the verbs


def test_the_verbs_train_and_mine(make: Make, tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peg_rag.cli.app import run

    recipe, mined = tmp_path / "recipe.yaml", tmp_path / "mined.jsonl"
    recipe.write_text(make().dump(), encoding="utf-8")
    assert run(["train", str(recipe), "--set", "stages.0.steps=1"]) == 0
    assert run(["train", str(recipe), "--set", "stages.0.steps=1"]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert run(["train", str(recipe), "--dry-run", "--devices", "4"]) == 0
    assert "candidates per query: 32" in capsys.readouterr().out
    assert run(["mine", str(pairs), "-o", str(mined), "--negatives", "2", "-m", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in mined.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(pairs.read_text(encoding="utf-8").splitlines())
    assert max(len(row["negatives"]) for row in rows) == 2


# ---- the shipped recipes


def test_a_dry_run_names_a_file_that_is_cut_off(make: Make, pairs: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(pairs.read_bytes() * 40)[:-20])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz cannot be read .* is the file whole"):
        estimate_run(make(source={"path": str(cut)}))


def test_a_dry_run_states_candidates_memory_tokens_and_hours(make: Make) -> None:
    plan = estimate_run(make("stages.0.batch={queries: 13334, negatives: 5}"), devices=8)
    assert plan.stages[0].candidates == 80_004
    lines = "\n".join(plan.lines())
    for said in ("candidates per query: 80,004", "memory on each device", "hours", "tokens/s"):
        assert said in lines
    assert plan.hours > 0


def test_a_dry_run_counts_the_vectors_of_a_queue(make: Make) -> None:
    plain = estimate_run(make()).stages[0]
    queued = estimate_run(make("stages.0.loss.candidates=[{kind: queue, size: 1000000}]")).stages[0]
    assert queued.candidates == plain.candidates + 1_000_000
    assert queued.vector_bytes > plain.vector_bytes + 4 * 1_000_000


def test_the_smoke_recipe_learns(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its small form: nDCG@10 on the validation split rises by 0.15 at least."""
    monkeypatch.setenv("PEG_DATA", str(data_dir))
    recipe = Recipe.load(
        REPO / "train" / "recipes" / "smoke.yaml",
        [
            f"output_dir={tmp_path / 'smoke'}",
            f"cache_dir={tmp_path / 'cache'}",
            "stages.0.data.sources=[{path: $PEG_DATA/pairs/medicine-chip_cdn.jsonl.zst}]",
            "stages.0.steps=20",
            "stages.0.batch.queries=512",
            "stages.0.optimizer.learning_rate=0.02",
            "model.static.vocabulary.size=8000",
            "evaluation.every_steps=null",
            "validation.distractors=1000",
        ],
    )
    result = train(recipe)
    history = json.loads((result.folder / "stages" / "1-contrastive" / "history.json").read_text())["log_history"]
    scores = [entry["eval_ndcg@10"] for entry in history if "eval_ndcg@10" in entry]
    assert scores[-1] > scores[0] + 0.15, scores


def test_trackers_and_the_hub_are_looked_for_before_the_first_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peg_rag.training.run.trackers.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"report_to: wandb is not installed.*pip install wandb"):
        train(make("logging.report_to=[wandb]"))
    with pytest.raises(TrainingError, match=r"push_to_hub: nobody/nothing cannot be opened .*hf auth login"):
        train(make("logging.push_to_hub=nobody/nothing"))


def test_tensorboard_gets_loss_and_scores(make: Make) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(make("logging.report_to=[tensorboard]", "logging.every_steps=1", steps=3))
    (folder,) = {events.parent for events in result.folder.rglob("events.out.tfevents.*")}
    found = EventAccumulator(str(folder)).Reload()
    assert {"train/loss", "train/accuracy", "eval/ndcg@10"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_runs_learn_the_same(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    still = shutil.copytree(tiny_bert, tmp_path / "still")
    config = json.loads((still / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # compiled code draws other numbers
    (still / "config.json").write_text(json.dumps(config))
    losses = {}
    for compiled in ("false", "true"):
        overrides = [f"compile={compiled}", f"output_dir={tmp_path / compiled}", f"model.path={still}"]
        folder = train(make(*overrides, "logging.every_steps=1", steps=3)).folder
        history = folder / "stages" / "1-main" / "history.json"
        losses[compiled] = [row["loss"] for row in json.loads(history.read_text())["log_history"] if "loss" in row]
    assert len(losses["true"]) == 3
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)


@pytest.mark.slow
def test_the_large_recipe_shrunken_runs_on_two_ranks(data_dir: Path, tmp_path: Path) -> None:
    """Ten steps of `peg_large.yaml` under torchrun: its data, loss and five negatives a query, a narrow BERT."""
    overrides = [
        f"output_dir={tmp_path / 'large'}",
        f"cache_dir={tmp_path / 'cache'}",
        "device=cpu",
        "stages.0.steps=10",
        "stages.0.optimizer.warmup_steps=2",
        "stages.0.batch.queries=48",
        "stages.0.data.sources=[{path: $PEG_DATA/pairs/web-qbqtc.jsonl.zst}]",
        "model.max_length=32",
        "model.transformer.hidden_size=64",
        "model.transformer.heads=4",
        "model.transformer.layers=2",
        "model.transformer.vocabulary={size: 6000, texts_per_file: 5000}",
        "validation.distractors=200",
        "data_workers=0",
    ]
    sets = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    run = subprocess.run(
        [*command, "peg_rag.training", str(REPO / "train" / "recipes" / "peg_large.yaml"), *sets],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PEG_DATA": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=270,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    done = json.loads((tmp_path / "large" / "stages" / "1-contrastive" / "done.json").read_text())
    assert done["facts"]["steps"] == 10
    assert yaml.safe_load((tmp_path / "large" / "recipe.yaml").read_text())["precision"] == "bf16"
    with PEGEncoder(tmp_path / "large") as encoder:
        assert encoder.spec.pooling == "cls"
