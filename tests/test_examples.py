"""Every example is run as a user runs it, offline, and must print the right answers; and once with a language model.

They run in this process, where sockets are closed but for the local machine, so that the frameworks are imported once.
"""

import gzip
import importlib.util
import json
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.files import open_packed

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOT_FOUND = "在文档中没有找到答案"
REPLY = "淡季35元，旺季40元[1]。"


@pytest.fixture(autouse=True)
def no_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)


class Run:
    """Runs an example and returns what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, name: str, *arguments: str) -> str:
        path = str(EXAMPLES / f"{name}.py")
        self._monkeypatch.setattr(sys, "argv", [path, *arguments])
        runpy.run_path(path, run_name="__main__")
        return self._capsys.readouterr().out


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)


def answers(printed: str) -> dict[str, str]:
    """What follows each question, by question."""
    parts = re.split(r"^(?:Question|User): +(.+)\n", printed, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_each_example_is_tested_and_listed() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    listed = set(re.findall(r"python examples/(\w+)\.py", (EXAMPLES / "README.md").read_text("utf-8")))
    assert names <= tested
    assert names == listed


def test_no_example_hides_a_module_that_it_imports() -> None:
    # `python examples/x.py` puts the folder first on the path, so an example called like a package shadows it.
    assert [path.stem for path in EXAMPLES.glob("*.py") if importlib.util.find_spec(path.stem)] == []


def test_the_data_is_what_its_readme_says() -> None:
    readme = (EXAMPLES / "data" / "README.md").read_text("utf-8")
    for folder, count in re.findall(r"\| `(\w+)/` \| (\d+) \|", readme):
        assert len(list((EXAMPLES / "data" / folder).iterdir())) == int(count)


def test_langchain_rag(run: Run) -> None:
    printed = run("langchain_rag")
    found = answers(printed)
    assert "extractive" in printed
    assert "旺季4月1日-10月31日40元" in found["八达岭长城的门票多少钱？"]
    assert "sights/badaling.md" in found["八达岭长城的门票多少钱？"]
    assert "白葡萄酒比红葡萄酒含有更多的亚硫酸盐" in found["白葡萄酒和红葡萄酒哪个亚硫酸盐更多？"]
    assert "encyclopedia/sulfite.txt" in found["白葡萄酒和红葡萄酒哪个亚硫酸盐更多？"]
    assert NOT_FOUND in found["周杰伦的第一张专辑叫什么？"]


def test_langchain_agent(run: Run) -> None:
    found = answers(run("langchain_agent"))
    asked = "月老祠几点开门？"
    assert f"search_sights({{'query': '{asked}'}})" in found[asked]
    assert "[1] yuelao.md" in found[asked]
    assert re.search(r"Agent: .*9:00-22:00\[1\]", found[asked])
    assert re.search(r"Agent: .*看红叶的绝好之处.*\[1\]", found["香山公园哪里看红叶最好？"])


def test_langchain_with_chroma(run: Run) -> None:
    everywhere, papers = run("langchain_with_chroma").split("\n\n")[1:]
    assert re.search(r"^  0\.\d+  encyclopedia/sulfite\.txt$", everywhere.splitlines()[1])
    assert [line.split("/")[0].split()[-1] for line in papers.splitlines()[1:]] == ["papers", "papers"]
    assert "papers/wine-clarification.md" in papers.splitlines()[1]


def test_langchain_incremental(run: Run) -> None:
    first, again, changed, deleted = re.split(r"^\d\. ", run("langchain_incremental"), flags=re.MULTILINE)[1:]
    assert "'num_added': 10, 'num_updated': 0, 'num_skipped': 0, 'num_deleted': 0" in first
    assert "门票：40元 (mutianyu.md)" in first
    assert "'num_added': 0, 'num_updated': 0, 'num_skipped': 10, 'num_deleted': 0" in again
    assert "'num_added': 1, 'num_updated': 0, 'num_skipped': 9, 'num_deleted': 1" in changed
    assert "门票：45元 (mutianyu.md)" in changed
    assert "'num_added': 0, 'num_updated': 0, 'num_skipped': 9, 'num_deleted': 1" in deleted
    assert "mutianyu" not in deleted


def test_llamaindex_rag(run: Run) -> None:
    printed = run("llamaindex_rag")
    found = answers(printed)
    assert "extractive" in printed
    assert "丙烯颜料有轻微毒性。[1]" in found["丙烯颜料有毒吗？"]
    assert "encyclopedia/acrylic-paint.txt" in found["丙烯颜料有毒吗？"]
    assert "22座敌楼" in found["慕田峪长城有多少座敌楼？"]
    assert "sights/mutianyu.md" in found["慕田峪长城有多少座敌楼？"]
    assert NOT_FOUND in found["周杰伦的第一张专辑叫什么？"]


def test_llamaindex_ingestion(run: Run) -> None:
    pattern = r"(\d+) nodes went in, (\d+) of them embedded; the index holds (\d+)"
    first, again, cached, changed = [
        tuple(map(int, found)) for found in re.findall(pattern, run("llamaindex_ingestion"))
    ]
    total = first[0]
    assert first == (total, total, total)
    assert total >= 10
    assert again == (0, 0, total)
    assert cached == (total, 0, total)
    assert changed[:2] == (1, 1)
    assert changed[2] < total


def test_llamaindex_with_chroma(run: Run) -> None:
    lines = run("llamaindex_with_chroma").splitlines()
    assert "encyclopedia/sulfite.txt" in lines[1]
    assert "papers/wine-clarification.md" in lines[4]
    assert "papers/" in lines[5]


def test_llamaindex_hybrid(run: Run) -> None:
    blocks = run("llamaindex_hybrid").strip().split("\n\n")
    best = [{line.split()[0]: line.split()[1] for line in block.splitlines()[1:]} for block in blocks]
    paraphrase, name = best
    assert paraphrase["hybrid"] == "yuelao.md" not in (paraphrase["default"], paraphrase["text_search"])
    assert name["text_search"] == name["hybrid"] == "friends-of-voltaire.txt"


def test_qdrant_hybrid(run: Run) -> None:
    pytest.importorskip("qdrant_client")
    blocks = run("qdrant_hybrid").strip().split("\n\n")
    paraphrase, name = [{line.split()[0]: line.split()[1] for line in block.splitlines()[1:]} for block in blocks]
    assert paraphrase["hybrid"] == "yuelao.md" not in (paraphrase["dense"], paraphrase["lexical"])
    assert name["lexical"] == name["hybrid"] == "friends-of-voltaire.txt"


def test_qdrant_finds_what_the_index_finds() -> None:
    qdrant = pytest.importorskip("qdrant_client")
    recipe = runpy.run_path(str(EXAMPLES / "qdrant_hybrid.py"))
    files = sorted(recipe["FOLDER"].glob("*/*.*"))
    texts = [file.read_text("utf-8") for file in files]
    queries = ["门票多少钱", "电池怎么散热", "Tallentyre 写过什么书", "脱单拜哪座庙", "银杏"]
    encoder = PEGEncoder("peg-mini")
    vectors = encoder.encode_documents(texts)
    index = PEGIndex()
    index.upsert([str(number) for number in range(len(texts))], texts, vectors)
    documents = recipe["QdrantDocuments"](qdrant.QdrantClient(":memory:"), encoder.identity, encoder.dimension)
    documents.add(texts, vectors, [{} for _ in texts])
    for mode, tolerance in {"dense": 1e-5, "lexical": 0.03, "hybrid": 0.03}.items():  # the average length is estimated
        ours = index.search_batch(encoder.encode_queries(queries), queries, mode=mode, k=3)  # type: ignore[arg-type]
        theirs = documents.search_batch(encoder.encode_queries(queries), queries, mode=mode, k=3)
        for expected, hits in zip(ours, theirs, strict=True):
            assert [hit.score for hit in hits] == pytest.approx(
                [hit.score for hit in expected], rel=tolerance, abs=0.02
            )
            assert hits[0].id == expected[0].id


def test_qdrant_keeps_what_an_earlier_call_added() -> None:
    qdrant = pytest.importorskip("qdrant_client")
    recipe = runpy.run_path(str(EXAMPLES / "qdrant_hybrid.py"))
    documents = recipe["QdrantDocuments"](qdrant.QdrantClient(":memory:"), "m@1", 2)
    for text in ("银杏", "电池"):
        documents.add([text], np.ones((1, 2)), [{}])
    assert {hit.text for hit in documents.search_batch(np.ones((1, 2)), None, mode="dense")[0]} == {"银杏", "电池"}


def test_compare_pooling(run: Run) -> None:
    rows = dict(re.findall(r"^  (\w+) +(.+)$", run("compare_pooling"), flags=re.MULTILINE))
    assert all(float(cosine) > 0.9995 for cosine in rows["PEGEmbeddings"].split())
    assert all(float(cosine) < 0.9 for cosine in rows["HuggingFaceEmbeddings"].split())


@pytest.mark.slow
def test_adapt_to_your_docs(run: Run) -> None:
    printed = run("adapt_to_your_docs")
    assert "1,471 pairs cut from 426 documents, 10 steps" in printed
    assert "532 headings as questions to 532 sections" in printed
    held_out, headings = re.findall(r"nDCG@10 +([\d.]+) → ([\d.]+)", printed)
    assert float(held_out[1]) > float(held_out[0])
    assert float(headings[1]) > float(headings[0]) + 0.02
    assert printed.count(": a gain") == 2


def test_adapt_to_your_docs_with_a_folder(run: Run, tmp_path: Path) -> None:
    with gzip.open(EXAMPLES / "handbook" / "sections.jsonl.gz", "rt", encoding="utf-8") as lines:
        sections = list(lines)[:230]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "sections.jsonl").write_text("".join(sections), encoding="utf-8")
    printed = run("adapt_to_your_docs", str(tmp_path / "docs"), str(tmp_path / "mine"))
    assert re.search(r"\d+ pairs cut from 1\d\d documents, \d+ steps\n\d+ queries of \d+ held-out documents", printed)
    match = re.search(r"nDCG@10 [+-][\d.]+ \(([+-][\d.]+) to", printed)
    assert match
    low = float(match[1])
    assert ("no gain beyond chance" in printed) == (low <= 0)


@pytest.mark.slow
def test_adapt_to_your_docs_gains_on_documents_the_model_never_saw(run: Run, data_dir: Path, tmp_path: Path) -> None:
    with open_packed(data_dir / "pairs" / "encyclopedia-squad_zh.jsonl.zst", "train") as lines:
        passages = list(dict.fromkeys(json.loads(line)["positive"] for line in lines))[:2_000]
    (tmp_path / "docs").mkdir()
    rows = "\n".join(json.dumps({"text": passage}, ensure_ascii=False) for passage in passages)
    (tmp_path / "docs" / "passages.jsonl").write_text(rows, encoding="utf-8")
    printed = run("adapt_to_your_docs", str(tmp_path / "docs"), str(tmp_path / "mine"))
    match = re.search(r"nDCG@10 +([\d.]+) → ([\d.]+)", printed)
    assert match
    before, after = map(float, match.groups())
    assert after > before
    assert ": a gain" in printed


@pytest.mark.slow  # Ray takes a while to start a cluster, and cannot run where sockets are closed
def test_scale_out_ray() -> None:
    pytest.importorskip("ray", reason="needs peg-rag[ray]")
    command = [sys.executable, str(EXAMPLES / "scale_out_ray.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if "timed out during startup" in done.stderr:
        pytest.skip("the machine is so busy that Ray did not start within the 30 s that it gives itself")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "5,539 passages, embedded by 2 workers" in done.stdout
    difference = re.search(r"one process: (.+)", done.stdout)
    assert difference
    assert float(difference[1]) < 1e-6
    assert "paper-0544: 本文研究了在红葡萄酒澄清处理中" in done.stdout


def test_the_command_of_the_readme_works_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "langchain_incremental.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert "门票：45元" in done.stdout
    assert list(tmp_path.iterdir()) == []


class ChatServer:
    """What a server of OpenAI's chat protocol needs for these examples: replies, tool calls, and a memory of requests.

    It asks for a tool if it is offered one and has no result yet, in words of its own, as a language model does.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append({"path": self.path, **request})
                server.keys.add(self.headers["Authorization"])
                body = json.dumps(server.reply(request)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": REPLY}
        if request.get("tools") and request["messages"][-1]["role"] != "tool":
            call = {"name": request["tools"][0]["function"]["name"], "arguments": '{"query": "八达岭 门票"}'}
            message = {"role": "assistant", "content": None}
            message["tool_calls"] = [{"id": f"call-{len(self.requests)}", "type": "function", "function": call}]
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        whole = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
        return {**whole, "choices": [choice], "usage": usage}

    def sent(self) -> str:
        return json.dumps([request["messages"] for request in self.requests], ensure_ascii=False)


@pytest.fixture
def language_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    server = ChatServer()
    threading.Thread(target=server.http.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.http.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_MODEL", "some-model")
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.mark.parametrize("name", ["langchain_rag", "llamaindex_rag"])
def test_a_language_model_is_given_the_passages_and_its_answer_is_shown(
    run: Run, language_model: ChatServer, name: str
) -> None:
    printed = run(name)
    assert "extractive" not in printed
    assert {request["path"] for request in language_model.requests} == {"/v1/chat/completions"}
    assert {request["model"] for request in language_model.requests} == {"some-model"}
    assert language_model.keys == {"Bearer secret"}
    found = answers(printed)
    assert len(found) == len(language_model.requests) == 3
    for (question, shown), request in zip(found.items(), language_model.requests, strict=True):
        prompt = json.dumps(request["messages"], ensure_ascii=False)
        assert question in prompt
        assert REPLY in shown
        assert re.search(r"^  \[1\] \w+/[\w-]+\.\w+$", shown, re.MULTILINE)
    assert "目前开放的2250米长城段中" in language_model.sent() or "旺季4月1日-10月31日40元" in language_model.sent()


def test_a_language_model_calls_the_tool_in_its_own_words(run: Run, language_model: ChatServer) -> None:
    found = answers(run("langchain_agent"))
    assert language_model.keys == {"Bearer secret"}
    for shown in found.values():
        assert "search_sights({'query': '八达岭 门票'})" in shown
        assert "[1] badaling.md" in shown
        assert f"Agent: {REPLY}" in shown
    assert "旺季4月1日-10月31日40元" in language_model.sent()
    roles = [message["role"] for message in language_model.requests[-1]["messages"]]
    assert roles == ["system", *["user", "assistant", "tool", "assistant"], *["user", "assistant", "tool"]]
