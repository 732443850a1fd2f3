"""`adapt`: what is read, what is held out, and a model that is better on text it never saw or is not saved."""

import gzip
import importlib
import json
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from sample_files import docx, pdf, static_model

from peg_rag import PEGEncoder
from peg_rag.cli.app import run
from peg_rag.errors import DataError, IndexBusy, InvalidInput
from peg_rag.evaluation import evaluate
from peg_rag.extras import require_zstd
from peg_rag.training import Recipe
from peg_rag.training.adapt import AdaptOptions, adapt
from peg_rag.training.adapt.report import Adaptation
from peg_rag.training.adapt.split import read_documents, split
from peg_rag.training.data.texts import TextDocument, text_key
from peg_rag.training.recipe import StageOptions
from peg_rag.training.run.train import StageLoop

module = importlib.import_module("peg_rag.training.adapt.adapt")  # the package has the function by that name
zstd = require_zstd("train")

CHARACTERS = "".join(chr(0x4E00 + i) for i in range(600))
FILLERS, WORDS = CHARACTERS[:40], CHARACTERS[40:]


def passage(draw: random.Random) -> str:
    """Four sentences that share two of many words, drowned in fillers that a model must learn to overhear."""
    words = draw.sample(WORDS, 2)
    return "".join("".join(draw.choices(FILLERS, k=18)) + draw.choice(words) * 2 + "。" for _ in range(4))


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One a line."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("text") / "passages.txt"
    file.write_text("\n".join(passage(draw) for _ in range(480)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return static_model(tmp_path_factory.mktemp("model") / "start", CHARACTERS)


@pytest.fixture(scope="module")
def adapted(passages: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Adaptation:
    return adapt(passages, model, tmp_path_factory.mktemp("out") / "mine", AdaptOptions(steps=60, held_out=0.2))


# -- what is read ------------------------------------------------------------------------------------------------------


def test_read_documents_of_every_kind(tmp_path: Path) -> None:
    text = "这里是第一句话，说明这件事情。这里是第二句话，说明另一件事情。"
    (tmp_path / "a.md").write_text(f"# 报销\n{text}\n## 材料\n{text}", encoding="utf-8")
    (tmp_path / "b.txt").write_text(text, encoding="gb18030")
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"title": f"题{i}", "text": text}) for i in range(3)))
    (tmp_path / "d.docx").write_bytes(docx(["# 标题", text]))
    (tmp_path / "e.pdf").write_bytes(pdf([[text]]))
    (tmp_path / "f.pdf").write_bytes(b"%PDF-1.4 broken")
    (tmp_path / "g.zip").write_bytes(b"")
    found = read_documents(tmp_path)
    assert (found.files, len(found.failed), len(found.documents)) == (6, 1, 4 + 3)
    assert "f.pdf" in found.failed[0]
    assert [section.title for section in found.documents[0]] == ["报销", "报销 材料"]
    assert found.documents[2][0].title == "题0"
    assert all(section.passages for document in found.documents for section in document)


def test_a_passage_a_line(tmp_path: Path) -> None:
    packed = tmp_path / "texts.txt.zst"
    packed.write_bytes(zstd.compress("第一段。\n\n第二段。\n".encode()))
    assert [document[0].passages for document in read_documents(packed).documents] == [["第一段。"], ["第二段。"]]


def test_a_file_reads_alike_alone_and_in_a_folder(tmp_path: Path) -> None:
    text = "第一段说明报销的办法。\n第二段说明请假的办法。"
    for encoding in ("gb18030", "utf-16", "utf-8-sig"):
        file = tmp_path / "a.txt"
        file.write_text(text, encoding=encoding)
        alone, within = (read_documents(path).documents for path in (file, tmp_path))
        assert [document[0].passages[0] for document in alone] == text.split("\n")
        assert within[0][0].passages == [text.replace("\n", "")]
    bad = ("好" * 2_000 + "\n").encode() + b"\xff\n"  # one bad line leaves the others alone
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(bad))
    assert read_documents(tmp_path / "a.txt.gz").documents[0][0].passages == ["好" * 2_000]


def test_archives_that_cannot_be_read(tmp_path: Path) -> None:
    rows = "\n".join(f"第{i}段说明第{i * i}件事情。" for i in range(2_000)).encode()
    whole = gzip.compress(rows)
    (tmp_path / "rows.jsonl.gz").write_bytes(whole)
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: unsupported file type \.gz"):
        read_documents(tmp_path / "rows.jsonl.gz")
    broken = whole[:200] + b"\xff" * 200 + whole[400:]
    for name, data in {"a.txt.gz": whole[:-500], "b.txt.gz": broken, "c.txt.gz": rows, "d.txt.zst": rows}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="is the file whole"):
            read_documents(tmp_path / name)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file or folder"):
        read_documents(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no text: 0 files"):
        read_documents(tmp_path)
    (tmp_path / "a.pdf").write_bytes(b"no pdf")
    with pytest.raises(DataError, match=r"1 files.*the first error: .*a\.pdf"):
        read_documents(tmp_path)


# -- what is held out --------------------------------------------------------------------------------------------------


def test_held_out_documents_teach_nothing(passages: Path) -> None:
    documents = read_documents(passages).documents
    lesson, choosing, reporting = split(documents, 0.2, seed=3)
    assert lesson.documents + choosing.documents + reporting.documents == len(documents)
    assert choosing.documents + reporting.documents == round(0.2 * len(documents))
    taught = {text_key(text) for pairs in lesson.pairs.values() for p in pairs for text in (p.query, p.positive)}
    whole = "\n".join(lesson.passages)
    for exam in (choosing, reporting):
        asked = [*exam.task.queries.values(), *(exam.task.corpus[d] for q in exam.task.qrels.values() for d in q)]
        assert not {text_key(text) for text in asked} & taught
        assert not any(query in whole for query in exam.task.queries.values())
        assert set(exam.task.corpus.values()) > set(lesson.passages[:10])  # it is to be found among others
    assert not set(choosing.task.queries.values()) & set(reporting.task.queries.values())
    again = split(documents, 0.2, seed=3)
    assert (again[0].pairs, again[1].task.queries) == (lesson.pairs, choosing.task.queries)
    assert split(documents, 0.2, seed=4)[1].task.queries != choosing.task.queries


def test_a_text_that_stands_twice_is_not_taught_and_asked(passages: Path) -> None:
    documents = read_documents(passages).documents
    lesson, choosing, reporting = split([*documents, *documents], 0.1, seed=0)
    asked = {text_key(q) for exam in (choosing, reporting) for q in exam.task.queries.values()}
    assert not asked & {text_key(p.query) for pairs in lesson.pairs.values() for p in pairs}


def test_of_copies_one_stands(passages: Path) -> None:
    documents = read_documents(passages).documents
    copies = [[TextDocument("副本", [f" {p}" for p in section.passages]) for section in d] for d in documents]
    lesson, choosing, reporting = split([*documents, *copies], 0.1, seed=0)
    assert lesson.documents + choosing.documents + reporting.documents == len(documents)
    taught = [pair.positive for pairs in lesson.pairs.values() for pair in pairs]
    for task in (choosing.task, reporting.task):
        asked = "\n".join(map(text_of, [*task.corpus.values(), *taught]))
        assert not any(query in asked for query in map(text_of, task.queries.values()))


def test_versions_of_a_text_are_not_asked_for(passages: Path) -> None:
    documents = read_documents(passages).documents
    versions = [[TextDocument("", [f"这是后来的一个版本。{d[0].passages[0]}"])] for d in documents[::4]]
    lesson, *exams = split([*documents, *versions], 0.2, seed=0)
    taught = [pair.positive for pairs in lesson.pairs.values() for pair in pairs]
    for exam in exams:
        elsewhere = "\n".join([*exam.task.corpus.values(), *taught])
        assert not any(query in elsewhere for query in exam.task.queries.values())


def text_of(text: str) -> str:
    return text.replace(" ", "")


def test_no_passage_meets_itself_in_a_batch(passages: Path) -> None:
    lesson, _, _ = split(read_documents(passages).documents, 0.2, seed=0)
    for name, pairs in lesson.pairs.items():
        sources = [next(p for p in lesson.passages if all(s in p for s in pair.positive.split("。"))) for pair in pairs]
        assert len(set(sources)) == len(sources), name


def test_few_documents_are_held_out_in_parts(passages: Path) -> None:
    draw = random.Random(1)
    text = "".join(passage(draw) for _ in range(900))
    folder = passages.parent / "one"
    folder.mkdir()
    (folder / "long.txt").write_text(text, encoding="utf-8")
    lesson, choosing, _ = split(read_documents(folder).documents, 0.2, seed=0)
    assert lesson.documents > 20
    assert not {text_key(q) for q in choosing.task.queries.values()} & {
        text_key(p.query) for pairs in lesson.pairs.values() for p in pairs
    }


def test_too_little_text(passages: Path) -> None:
    with pytest.raises(DataError, match=r"too little text: \d+ documents give \d+ pairs"):
        split(read_documents(passages).documents[:30], 0.1, seed=0)


# -- what comes out ----------------------------------------------------------------------------------------------------


def test_the_model_is_better_and_opens_everywhere(adapted: Adaptation, passages: Path, model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    judgement = adapted.judgement
    assert judgement is not None
    assert adapted.saved
    assert judgement.comparison.difference > 0.1
    assert judgement.comparison.p < 0.01
    assert 0 < judgement.share <= 1
    _, _, reporting = split(read_documents(passages).documents, 0.2, seed=0)
    for folder, said in ((model, judgement.before), (adapted.folder, judgement.after)):
        with PEGEncoder(folder) as encoder:
            assert evaluate(encoder, reporting.task).mean() == pytest.approx(said.mean(), abs=1e-6)
            ours = encoder.encode_documents([CHARACTERS[:20]])
    theirs = SentenceTransformer(str(adapted.folder), device="cpu").encode([CHARACTERS[:20]])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    card = (adapted.folder / "README.md").read_text(encoding="utf-8")
    for words in ("# mine", "## Adaptation", f"{judgement.after.mean():.4f}", "learning_rate", "paired over queries"):
        assert words in card
    assert [path.name for path in adapted.folder.parent.iterdir()] == ["mine"]  # the work is taken away


def test_what_got_worse_is_not_saved(
    passages: Path,
    adapted: Adaptation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wild = replace(module._DEFAULTS["static"], learning_rate=30.0)
    monkeypatch.setitem(module._DEFAULTS, "static", wild)
    monkeypatch.setattr(module, "SHARES", (1.0,))
    arguments = ["adapt", str(passages), "-m", str(adapted.folder), "-o", str(tmp_path / "worse"), "--steps", "5"]
    assert run(arguments) == 1
    shown = capsys.readouterr()
    assert "before" in shown.out
    assert "got worse and is not saved" in " ".join(shown.err.split())
    assert not (tmp_path / "worse").exists()
    lesson, _, _ = split(read_documents(passages).documents, AdaptOptions().held_out, seed=0)
    for name, pairs in lesson.pairs.items():  # mined together, and told apart again
        rows = (tmp_path / "worse.adapting" / "mined" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(row)["query"] for row in rows] == [pair.query for pair in pairs]
        assert any(json.loads(row)["negatives"] for row in rows)
    assert run([*arguments, "--force"]) == 0  # goes on from what is there
    assert PEGEncoder(tmp_path / "worse").dimension == 64
    assert run(arguments) == 2
    assert "already exists" in " ".join(capsys.readouterr().err.split())
    assert run([*arguments, "--force", "--overwrite"]) == 0


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Have Ctrl-C pressed in that training step; the list is filled with the steps that are taken."""
    plain, steps = StageLoop._take_step, []

    def step(self: StageLoop, batch: Any) -> None:
        steps.append(self.progress.step)
        if len(steps) == number:
            signal.raise_signal(signal.SIGINT)
        plain(self, batch)

    monkeypatch.setattr(StageLoop, "_take_step", step)
    return steps


def test_interrupted_and_gone_on_with(
    adapted: Adaptation, passages: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = interrupt_at(monkeypatch, 7)
    call = [
        "adapt",
        str(passages),
        "-m",
        str(model),
        "-o",
        str(tmp_path / "mine"),
        "--steps",
        "60",
        "--held-out",
        "0.2",
    ]
    assert run(call) == 130
    assert not (tmp_path / "mine").exists()
    assert run(call) == 0
    assert steps == [*range(7), *range(7, 60)]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "mine", adapted.folder)]
    assert weights[0] == weights[1]


def test_a_transformer(passages: Path, tiny_bert: Path, tmp_path: Path) -> None:
    done = adapt(passages, tiny_bert, tmp_path / "bert", AdaptOptions(steps=2), force=True, device="auto")
    assert done.saved
    with PEGEncoder(tmp_path / "bert") as encoder, PEGEncoder(tiny_bert, pooling="cls") as start:
        assert (encoder.spec.kind, encoder.spec.pooling) == ("transformer", "cls")
        assert not np.array_equal(encoder.encode_queries(["花呗"]), start.encode_queries(["花呗"]))


def test_minutes_become_steps(passages: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def stop(recipe: Recipe, **_: object) -> None:
        asked.append(recipe.stages[0].steps)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", stop)
    for minutes in (1.0, 10.0):
        with pytest.raises(KeyboardInterrupt):
            adapt(passages, model, tmp_path / "mine", AdaptOptions(minutes=minutes))
    assert 10 < asked[0] < asked[1]


def test_minutes_go_on_with_the_steps_that_were_measured(
    passages: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = interrupt_at(monkeypatch, 4)
    options = AdaptOptions(minutes=0.02)
    first = adapt(passages, model, tmp_path / "mine", options)
    assert (first.judgement, first.saved) == (None, False)
    monkeypatch.setattr(module, "estimate_run", None)  # another measurement would be another number
    done = adapt(passages, model, tmp_path / "mine", options, force=True)
    assert done.saved
    assert steps == [*range(4), *range(4, first.steps)]


def test_few_minutes_have_a_warm_up_of_their_own(
    passages: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[StageOptions] = []

    def stop(recipe: Recipe, **_: object) -> None:
        asked.append(recipe.stages[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", stop)
    monkeypatch.setitem(module._DEFAULTS, "transformer", replace(module._DEFAULTS["transformer"], passes=100))
    with pytest.raises(KeyboardInterrupt):
        adapt(passages, tiny_bert, tmp_path / "mine", AdaptOptions(minutes=1e-4), device="cpu")
    assert (asked[0].steps, asked[0].optimizer.warmup_steps) == (10, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 5, "minutes": 1.0},
        {"steps": 0},
        {"minutes": -1.0},
        {"minutes": float("inf")},
        {"held_out": 0.6},
        {"seed": -1},
    ],
)
def test_contradictory_options(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"expected|one says"):
        AdaptOptions(**options)


def test_without_the_extra_there_is_a_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert run(["adapt", str(tmp_path), "-o", str(tmp_path / "mine")]) == 1
    assert "pip install 'peg-rag[train]'" in " ".join(capsys.readouterr().err.split())


def test_a_folder_of_somebody_else_is_left_alone(passages: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.adapting").mkdir()
    (tmp_path / "mine.adapting" / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="in the way"):
        adapt(passages, model, tmp_path / "mine", AdaptOptions(steps=2))
    assert (tmp_path / "mine.adapting" / "thesis.txt").is_file()


def test_only_a_model_is_replaced(passages: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))

    def refused(documents: Path, out: Path, reason: str) -> None:
        with pytest.raises(InvalidInput, match=reason):
            adapt(documents, model, out, AdaptOptions(steps=2), overwrite=True)

    refused(passages, tmp_path / "thesis", "is no model")
    refused(passages, tmp_path / "docs" / "a.txt", "is no model")
    refused(tmp_path / "docs", tmp_path / "docs", "the documents .* would be lost")
    refused(tmp_path / "docs", tmp_path, "the documents .* would be lost")
    refused(tmp_path / "mine.adapting" / "docs", tmp_path / "mine", "the documents .* would be lost")
    refused(passages, model, "the model to start from .* would be lost")
    refused(passages, model.parent, "the model to start from .* would be lost")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_kill_while_the_model_is_replaced_loses_nothing(passages: Path, model: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "mine", tmp_path / "mine.adapting"
    (work / "replaced").mkdir(parents=True)
    (work / "call.json").write_text("{}")
    (work / "replaced" / "modules.json").write_text("[]")
    with pytest.raises(InvalidInput, match="already exists"):
        adapt(passages, model, out, AdaptOptions(steps=2))
    assert (out / "modules.json").read_text() == "[]"
    assert not (work / "replaced").exists()


def test_two_calls_do_not_share_the_work(passages: Path, model: Path, tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".mine.adapting.lock"),
        pytest.raises(IndexBusy, match=r"another process is at work in .*mine\.adapting"),
    ):
        adapt(passages, model, tmp_path / "mine", AdaptOptions(steps=2))
    assert not (tmp_path / "mine.adapting").exists()


def test_own_work_within_the_documents_is_not_read(
    passages: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (json.dumps({"text": line}) for line in passages.read_text(encoding="utf-8").splitlines())
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "torn.pdf").write_bytes(b"no pdf")
    monkeypatch.chdir(tmp_path)

    def stop(recipe: Recipe, **_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "train", stop)
        written = []
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                adapt(".", model, "mine", AdaptOptions(steps=2))
            mined = (tmp_path / "mine.adapting" / "mined").iterdir()
            written.append({file.name: file.stat().st_mtime_ns for file in mined})
    assert written[0] == written[1]
    call = ["adapt", ".", "-m", str(model), "-o", "mine", "--steps", "2", "--force"]
    assert run(call) == 3  # done, and one file was left out
    assert "torn.pdf" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "rows.jsonl", "torn.pdf"]
    assert len(read_documents(tmp_path, leave_out=[tmp_path / "mine"]).documents) == 480


def test_into_the_empty_folder_one_stands_in(
    passages: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert adapt(passages, model, ".", AdaptOptions(steps=2), force=True).folder == tmp_path / "mine"
    with pytest.raises(InvalidInput, match="already exists"):
        adapt(passages, model, "~/mine", AdaptOptions(steps=2))
    assert (tmp_path / "mine" / "modules.json").is_file()


@pytest.mark.parametrize("device", ["meta", "cuda:1", "tpu"])
def test_devices_that_are_not_trained_on(device: str, passages: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="device="):
        adapt(passages, model, tmp_path / "mine", AdaptOptions(steps=2), device=device)
    assert not list(tmp_path.iterdir())
