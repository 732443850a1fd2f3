# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Ratings of answers: kept, refused, exported, scored, trained on and reported."""

import json
import signal
import sqlite3
import subprocess
import sys
import threading

import httpx
import pytest
from serving_fixtures import AUTH, KEY, make_store, running, served_model, threaded

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.errors import DamagedIndex, IndexBusy
from peg_rag.feedback import FeedbackStore, RatedPassage, Rating
from peg_rag.feedback.store import FEEDBACK_FILE
from peg_rag.serving.app import create_app
from peg_rag.serving.keys import ApiKeys
from peg_rag.serving.knowledge import KnowledgeBase
from peg_rag.serving.settings import ServerSettings

__all__ = ["served_model"]

ID = "0123456789abcdef" * 2


def rating(number=0, **changes):
    fields = {"id": f"{number:032x}", "question": "花呗如何还款", "vote": "up", "created_ms": number}
    return Rating(**fields | changes)


# -- the store ---------------------------------------------------------------------------------------------------------


def test_ratings_come_back_as_they_were_put(tmp_path):
    store = FeedbackStore(tmp_path)
    assert (len(store), store.read()) == (0, [])
    assert not store.file.exists()  # reading makes no file
    first = rating(
        1, reason="是这一段", passages=(RatedPassage("b", True, False, "x.md"), RatedPassage("a", False, True))
    )
    assert store.put(rating(2, vote="down", model="m")) is False
    assert store.put(first) is False
    assert store.read() == [first, rating(2, vote="down", model="m")]


def test_a_rating_that_is_sent_again_replaces_itself(tmp_path):
    store = FeedbackStore(tmp_path)
    store.put(rating(1, passages=(RatedPassage("a", True, True), RatedPassage("b", True, False))))
    changed = rating(1, vote="down", passages=(RatedPassage("b", False, True),))
    assert store.put(changed) is True
    assert store.read() == [changed]
    assert len(store) == 1


def test_what_was_acknowledged_outlives_kill_9(tmp_path):
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


def test_many_threads_lose_nothing(tmp_path):
    store = FeedbackStore(tmp_path, timeout_s=60)
    threads = [
        threading.Thread(target=lambda n=n: [store.put(rating(10 * n + i)) for i in range(10)]) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store) == 80


def test_a_store_that_another_process_writes_to_is_busy(tmp_path):
    store = FeedbackStore(tmp_path, timeout_s=0.1)
    store.put(rating(1))
    other = sqlite3.connect(store.file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(IndexBusy, match="another process is writing"):
        store.put(rating(2))
    other.close()
    assert store.read() == [rating(1)]


@pytest.mark.parametrize("damage", ["rubbish", "newer"])
def test_a_file_that_cannot_be_read_is_named_and_kept(tmp_path, damage):
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
def served(tmp_path_factory, served_model):
    store = make_store(tmp_path_factory.mktemp("feedback"), served_model)
    with running(store) as started, httpx.Client(base_url=started.url, timeout=60) as client:
        yield client, store


def test_a_rating_is_kept_and_can_be_changed(served):
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
def test_what_is_no_rating_is_refused_and_changes_nothing(served, change):
    client, store = served
    before = FeedbackStore(store).read()
    body = json.dumps({"question": "花呗如何还款", "vote": "up"} | change)
    answer = client.post("/feedback", headers=AUTH | {"Content-Type": "application/json"}, content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert FeedbackStore(store).read() == before


def test_no_key_no_rating(served):
    client, store = served
    before = len(FeedbackStore(store))
    body = {"question": "花呗如何还款", "vote": "up"}
    assert client.post("/feedback", json=body).status_code == 401
    assert client.post("/feedback", json=body, headers={"Authorization": "Bearer wrong-key-0123456"}).status_code == 401
    assert len(FeedbackStore(store)) == before


def test_a_store_that_is_open_for_reading_only_keeps_none(tmp_path, served_model):
    store = make_store(tmp_path, served_model)
    with PEGEncoder(served_model) as encoder, PEGIndex(store, identity=encoder.identity, read_only=True) as index:
        app = create_app(encoder, KnowledgeBase(store, index, encoder), keys=ApiKeys([KEY]))
        with threaded(app, ServerSettings()) as (url, _):
            answer = httpx.post(f"{url}/feedback", headers=AUTH, json={"question": "花呗", "vote": "up"})
            info = httpx.get(f"{url}/info").json()
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "read_only")
    assert info["feedback"] is False
    assert not (store / FEEDBACK_FILE).exists()


def test_ratings_outlive_an_index_that_is_made_anew(tmp_path, served_model):
    store = make_store(tmp_path, served_model)
    FeedbackStore(store).put(rating(1))
    for file in store.iterdir():
        if file.name != FEEDBACK_FILE and file.is_file():
            file.unlink()
    assert FeedbackStore(store).read() == [rating(1)]
