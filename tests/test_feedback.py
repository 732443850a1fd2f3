"""Ratings of answers: kept, refused, exported, scored, trained on and reported."""

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sample_files import static_model
from serving_fixtures import AUTH, KEY, make_store, running, served_model, threaded

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.cli.app import run
from peg_rag.errors import DamagedIndex, DataError, IndexBusy
from peg_rag.evaluation import load_beir
from peg_rag.feedback import FeedbackStore, RatedPassage, Rating
from peg_rag.feedback.export import collect_judgements, export_feedback, query_id
from peg_rag.feedback.report import count_weeks, write_report
from peg_rag.feedback.store import FEEDBACK_FILE
from peg_rag.serving.app import create_app
from peg_rag.serving.keys import ApiKeys
from peg_rag.serving.knowledge import KnowledgeBase
from peg_rag.serving.settings import ServerSettings
from peg_rag.training.adapt.split import read_documents, split

__all__ = ["served_model"]

ID = "0123456789abcdef" * 2
Rated = tuple[Path, Path, dict[str, str]]  # store, model, passages


def rating(number: int = 0, **changes: Any) -> Rating:
    fields: dict[str, Any] = {"id": f"{number:032x}", "question": "花呗如何还款", "vote": "up", "created_ms": number}
    return Rating(**fields | changes)


# -- the store ---------------------------------------------------------------------------------------------------------


def test_ratings_come_back_as_they_were_put(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path)
    assert (len(store), store.read()) == (0, [])
    assert not store.file.exists()  # reading makes no file
    first = rating(
        1, reason="是这一段", passages=(RatedPassage("b", True, False, "x.md"), RatedPassage("a", False, True))
    )
    assert store.put(rating(2, vote="down", model="m")) is False
    assert store.put(first) is False
    assert store.read() == [first, rating(2, vote="down", model="m")]


def test_a_rating_that_is_sent_again_replaces_itself(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path)
    store.put(rating(1, passages=(RatedPassage("a", True, True), RatedPassage("b", True, False))))
    changed = rating(1, vote="down", passages=(RatedPassage("b", False, True),))
    assert store.put(changed) is True
    assert store.read() == [changed]
    assert len(store) == 1


def test_what_was_acknowledged_outlives_kill_9(tmp_path: Path) -> None:
    script = (
        "import sys; from peg_rag.feedback import FeedbackStore, Rating\n"
        f"store = FeedbackStore({str(tmp_path)!r})\n"
        "for n in range(10**6):\n"
        "    store.put(Rating(f'{n:032x}', '问题', 'up', created_ms=n)); print(n, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    acknowledged = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().split()]
    process.wait()
    ids = {kept.id for kept in FeedbackStore(tmp_path).read()}
    assert {f"{n:032x}" for n in acknowledged} <= ids
    FeedbackStore(tmp_path).put(rating(10**7))  # and it can be written to


_KILLED_IN_A_TRANSACTION = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute(sys.argv[2])
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_within(file: Path, statement: str) -> None:
    """Leave the journal of a transaction that was never committed."""
    subprocess.run([sys.executable, "-c", _KILLED_IN_A_TRANSACTION, str(file), statement])
    assert file.with_name(f"{file.name}-journal").exists()


def test_ratings_are_read_after_a_process_was_killed_within_one(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path)
    ratings = [rating(number, reason="长" * 1_000) for number in range(50)]
    for each in ratings:
        store.put(each)
    kill_within(store.file, "UPDATE ratings SET vote = 'down', reason = reason || 'x'")
    assert store.read() == ratings
    kill_within(store.file, "UPDATE ratings SET vote = 'down', reason = reason || 'x'")
    assert len(store) == 50


def test_a_process_killed_within_the_first_rating_leaves_none(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path)
    store.file.touch()
    assert (len(store), store.read()) == (0, [])
    store.put(rating(1))
    assert store.read() == [rating(1)]


def test_a_file_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path)
    store.file.mkdir()
    with pytest.raises(OSError, match=FEEDBACK_FILE):
        store.read()
    with pytest.raises(OSError, match=FEEDBACK_FILE):
        store.put(rating(1))


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path, timeout_s=60)
    threads = [
        threading.Thread(target=lambda n=n: [store.put(rating(10 * n + i)) for i in range(10)]) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store) == 80


def test_a_store_that_another_process_writes_to_is_busy(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path, timeout_s=0.1)
    store.put(rating(1))
    other = sqlite3.connect(store.file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(IndexBusy, match="another process is writing"):
        store.put(rating(2))
    other.close()
    assert store.read() == [rating(1)]


@pytest.mark.parametrize("damage", ["rubbish", "newer"])
def test_a_file_that_cannot_be_read_is_named_and_kept(tmp_path: Path, damage: str) -> None:
    store = FeedbackStore(tmp_path)
    if damage == "rubbish":
        store.file.write_bytes(b"no database at all" * 100)
    else:
        store.put(rating(1))
        connection = sqlite3.connect(store.file)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
    before = store.file.read_bytes()
    for act in (lambda: store.put(rating(2)), store.read, lambda: len(store)):
        with pytest.raises(DamagedIndex, match=FEEDBACK_FILE):
            act()
    assert store.file.read_bytes() == before


# -- the route ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, served_model: str) -> Iterator[tuple[httpx.Client, Path]]:
    store = make_store(tmp_path_factory.mktemp("feedback"), served_model)
    with running(store) as started, httpx.Client(base_url=started.url, timeout=60) as client:
        yield client, store


def test_a_rating_is_kept_and_can_be_changed(served: tuple[httpx.Client, Path]) -> None:
    client, store = served
    hits = client.post("/search", json={"query": "花呗如何还款"}).json()["hits"]
    passages = [{"passage_id": hit["id"], "cited": place == 0} for place, hit in enumerate(hits)]
    body = {"id": ID, "question": "花呗如何还款", "vote": "up", "passages": passages}
    assert client.post("/feedback", headers=AUTH, json=body).json() == {"id": ID, "replaced": False}
    passages[1]["useful"] = True
    body |= {"vote": "down", "reason": "第二段才对", "passages": passages}
    assert client.post("/feedback", headers=AUTH, json=body).json() == {"id": ID, "replaced": True}
    [kept] = FeedbackStore(store).read()
    assert (kept.question, kept.vote, kept.reason) == ("花呗如何还款", "down", "第二段才对")
    assert kept.model
    assert [(p.passage_id, p.cited, p.useful) for p in kept.passages] == [
        (hit["id"], place == 0, place == 1) for place, hit in enumerate(hits)
    ]
    assert {p.source for p in kept.passages} == {hit["metadata"]["source"] for hit in hits}


@pytest.mark.parametrize(
    "change",
    [
        {"vote": "sideways"},
        {"vote": 1},
        {"question": " "},
        {"question": "长" * 10_001},
        {"reason": "长" * 2_001},
        {"id": "../../x"},
        {"id": ID.upper()},
        {"passages": [{"passage_id": "不存在", "cited": True}]},
        {"passages": [{"passage_id": f"p{n}", "cited": True} for n in range(21)]},
        {"passages": [{"passage_id": "a", "cited": True}, {"passage_id": "a", "cited": False}]},
        {"passages": [{"passage_id": "\ud800", "cited": True}]},
        {"unknown": 1},
    ],
)
def test_what_is_no_rating_is_refused_and_changes_nothing(
    served: tuple[httpx.Client, Path], change: dict[str, Any]
) -> None:
    client, store = served
    before = FeedbackStore(store).read()
    body = json.dumps({"question": "花呗如何还款", "vote": "up"} | change)
    answer = client.post("/feedback", headers=AUTH | {"Content-Type": "application/json"}, content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert FeedbackStore(store).read() == before


def test_no_key_no_rating(served: tuple[httpx.Client, Path]) -> None:
    client, store = served
    before = len(FeedbackStore(store))
    body = {"question": "花呗如何还款", "vote": "up"}
    assert client.post("/feedback", json=body).status_code == 401
    assert client.post("/feedback", json=body, headers={"Authorization": "Bearer wrong-key-0123456"}).status_code == 401
    assert len(FeedbackStore(store)) == before


def test_a_store_that_is_open_for_reading_only_keeps_none(tmp_path: Path, served_model: str) -> None:
    store = make_store(tmp_path, served_model)
    with PEGEncoder(served_model) as encoder, PEGIndex(store, identity=encoder.identity, read_only=True) as index:
        app = create_app(encoder, KnowledgeBase(store, index, encoder), keys=ApiKeys([KEY]))
        with threaded(app, ServerSettings()) as (url, _):
            answer = httpx.post(f"{url}/feedback", headers=AUTH, json={"question": "花呗", "vote": "up"})
            info = httpx.get(f"{url}/info").json()
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "read_only")
    assert info["feedback"] is False
    assert not (store / FEEDBACK_FILE).exists()


def test_ratings_outlive_an_index_that_is_made_anew(tmp_path: Path, served_model: str) -> None:
    store = make_store(tmp_path, served_model)
    FeedbackStore(store).put(rating(1))
    for file in store.iterdir():
        if file.name != FEEDBACK_FILE and file.is_file():
            file.unlink()
    assert FeedbackStore(store).read() == [rating(1)]


# -- export, evaluate, adapt, report -----------------------------------------------------------------------------------

CHARACTERS = "".join(chr(0x4E00 + i) for i in range(600))
FILLERS, WORDS = CHARACTERS[:40], CHARACTERS[40:]


def make_passage(draw: random.Random) -> str:
    """Four sentences that share two of many words, among fillers."""
    words = draw.sample(WORDS, 2)
    return "".join("".join(draw.choices(FILLERS, k=18)) + draw.choice(words) * 2 + "。" for _ in range(4))


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Rated:
    """A store of 200 passages, 60 of which were asked for by a sentence of theirs: (store, model, passages)."""
    folder = tmp_path_factory.mktemp("rated")
    draw = random.Random(0)
    model = static_model(folder / "model", CHARACTERS)
    texts = [make_passage(draw) for _ in range(240)]
    names = [f"p{number}" for number in range(len(texts))]
    with PEGEncoder(model) as encoder, PEGIndex(folder / "kb", identity=encoder.identity) as index:
        index.upsert(names, texts, encoder.encode_documents(texts), [{"source": f"{name}.txt"} for name in names])
    ratings = FeedbackStore(folder / "kb")
    for number in range(60):
        question = texts[number][19:21] + texts[number].split("。")[1][-2:] + f"在哪里？第{number}问"
        other = names[-1 - number]
        passages = (RatedPassage(names[number], True, False), RatedPassage(other, False, False))
        ratings.put(rating(number, question=question, passages=passages, created_ms=number * 86_400_000))
    ratings.put(rating(100, question="没有答案的问题", vote="down", passages=(RatedPassage("p99", True, False),)))
    ratings.put(rating(101, question="删掉的", passages=(RatedPassage("gone", True, True),)))
    return folder / "kb", model, dict(zip(names, texts, strict=True))


@pytest.fixture(scope="module")
def exported(rated: Rated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "set"
    assert run(["feedback", "export", str(rated[0]), str(folder)]) == 3  # a judged passage is gone
    return folder


def judge(*ratings: Rating, present: Sequence[str] = ("a", "b")) -> Any:
    """The grades of 问题 by these ratings of passages that are all in the index but for those not `present`."""
    with PEGIndex() as index:
        index.upsert(list(present), [f"段落{name}" for name in present], np.ones((len(present), 2), np.float32))
        return collect_judgements(ratings, index)


UP, DOWN = {"vote": "up", "question": "问题"}, {"vote": "down", "question": "问题"}


@pytest.mark.parametrize(
    ("ratings", "grades"),
    [
        ([(UP, "a", True, False)], {"a": 1}),
        ([(DOWN, "a", True, False)], {"a": 0}),
        ([(UP, "a", True, True)], {"a": 2}),
        ([(DOWN, "a", False, True)], {"a": 2}),  # the right passage, which the answer missed
        ([(UP, "a", False, False)], None),
        ([(UP, "a", True, False), (DOWN, "a", True, False), (UP, "a", True, True)], {"a": 2}),
        ([(UP, "a", True, False), (DOWN, "a", True, False), (DOWN, "a", True, False)], {"a": 0}),
        ([(UP, "a", True, False), (DOWN, "a", True, False)], {"a": 0}),  # as many of each: the newest
        ([(DOWN, "a", True, False), (UP, "a", True, False)], {"a": 1}),
        ([(UP, "a", True, False), (DOWN, "b", True, False)], {"a": 1, "b": 0}),
    ],
)
def test_what_most_ratings_say_is_the_grade(ratings: list[tuple[Any, ...]], grades: dict[str, int] | None) -> None:
    made = [
        rating(number, passages=(RatedPassage(name, cited, useful),), **fields)
        for number, (fields, name, cited, useful) in enumerate(ratings)
    ]
    judgements = judge(*made)
    assert list(judgements.qrels.values()) == ([] if grades is None else [grades])
    assert judgements.gone == 0


def test_one_question_in_several_writings_is_one() -> None:
    passages = (RatedPassage("a", True, False),)
    judgements = judge(
        rating(1, question="VPN 怎么连？", passages=passages), rating(2, question=" ｖｐｎ怎么连? ", passages=passages)
    )
    assert judgements.queries == {query_id("vpn怎么连?"): "VPN 怎么连？"}


def test_an_export_is_a_beir_folder_of_what_was_rated(rated: Rated, exported: Path) -> None:
    store, _, texts = rated
    dataset = load_beir(exported)
    assert dict(dataset.corpus) == texts
    assert len(dataset.queries) == 61
    assert dataset.qrels[query_id("没有答案的问题")] == {"p99": 0}
    assert sorted(name for grades in dataset.qrels.values() for name, grade in grades.items() if grade) == sorted(
        f"p{number}" for number in range(60)
    )
    before = (exported / "corpus.jsonl").read_bytes()
    assert run(["feedback", "export", str(store), str(exported)]) == 2  # it is not replaced unasked
    assert run(["feedback", "export", str(store), str(exported), "--overwrite"]) == 3
    assert (exported / "corpus.jsonl").read_bytes() == before


def test_nothing_to_export_is_said(tmp_path: Path, rated: Rated, capsys: pytest.CaptureFixture[str]) -> None:
    with PEGIndex(tmp_path / "kb") as index:
        index.upsert(["a"], ["一"], np.ones((1, 2), np.float32))
    assert run(["feedback", "export", str(tmp_path / "kb"), str(tmp_path / "set")]) == 1
    assert "nothing to export" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_an_id_that_breaks_the_table_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with PEGIndex(tmp_path / "kb") as index:
        index.upsert(["a\tb"], ["花呗还款"], np.ones((1, 4), dtype=np.float32))
        judged = rating(passages=(RatedPassage("a\tb", True, True),))
        with pytest.raises(DataError, match=r"a\\tb"):
            export_feedback([judged], index, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_is_scored_and_trained_on(
    rated: Rated, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model, _ = rated
    assert run(["evaluate", str(exported), "--model", str(model), "--systems", "dense,hybrid"]) == 0
    assert "nDCG@10" in capsys.readouterr().out
    out = tmp_path / "adapted"
    assert run(["adapt", str(exported), "-m", str(model), "-o", str(out), "--steps", "10", "--force"]) == 0
    assert "held-out queries" in capsys.readouterr().out
    assert run(["evaluate", str(exported), "-m", str(model), "-m", str(out), "-s", "dense"]) == 0


def test_the_judged_questions_are_taught_or_asked_and_never_both(exported: Path) -> None:
    texts = read_documents(exported)
    assert len(texts.judged) == 60
    lesson, *exams = split(texts.documents, 0.2, 0, texts.judged)
    taught = {pair.query for pairs in lesson.pairs.values() for pair in pairs}
    asked = {query for exam in exams for query in exam.task.queries.values()}
    judged = {pair.query for pair in texts.judged}
    assert judged & taught
    assert judged & asked
    assert not judged & taught & asked
    assert judged == judged & (taught | asked)
    for exam in exams:
        for query, question in exam.task.queries.items():
            if question in judged:
                [passage] = exam.task.qrels[query]
                assert any(
                    pair.positive == exam.task.corpus[passage] for pair in texts.judged if pair.query == question
                )
    for name, pairs in lesson.pairs.items():
        positives = [pair.positive for pair in pairs]
        assert len(positives) == len(set(positives)), name  # no passage twice in a batch


def test_a_report_shows_the_thumbs_and_the_scores(
    rated: Rated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, model, _ = rated
    page = tmp_path / "report.html"
    arguments = ["feedback", "report", str(store), str(page), "-m", str(model), "--against", "peg-mini"]
    earlier = shutil.copytree(store, tmp_path / "earlier" / store.name)
    assert run([*arguments, "--against", str(earlier)]) == 0
    out = capsys.readouterr().out
    assert "62 ratings, 61 useful; 60 questions" in out
    assert "store kb  nDCG@10" in out
    assert "model peg-mini  nDCG@10" in out
    assert f"store {earlier}  nDCG@10" in out  # not to be confused with the present one of the same name
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 2
    assert "<script" not in html
    assert "store kb" in html


def test_a_report_of_a_store_without_ratings(
    tmp_path: Path, served_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path, served_model)
    assert run(["feedback", "report", str(store), str(tmp_path / "r.html")]) == 0
    assert "There are no ratings yet" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_weeks_begin_on_monday_and_leave_none_out() -> None:
    day = 86_400_000
    ratings = [
        rating(n, created_ms=4 * day + days * day, vote=vote)
        for n, (days, vote) in enumerate([(0, "up"), (6, "down"), (7, "up"), (28, "up"), (28, "down")])
    ]
    weeks = count_weeks(ratings)  # 5 January 1970 was a Monday
    assert [f"{week.monday:%m-%d}" for week in weeks] == ["01-05", "01-12", "01-19", "01-26", "02-02"]
    assert [(week.up, week.down) for week in weeks] == [(1, 1), (1, 0), (0, 0), (0, 0), (1, 1)]


def test_what_readers_wrote_is_shown_and_never_run(tmp_path: Path) -> None:
    judgements = judge()
    page = tmp_path / "r.html"
    write_report(page, [rating(1, vote="down", question="<script>1</script>", reason="<img src=x>")], judgements, [])
    assert "&lt;script&gt;" in page.read_text(encoding="utf-8")
    assert "<img" not in page.read_text(encoding="utf-8")
