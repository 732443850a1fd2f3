"""The command line as a person meets it: quick help, clear errors, the whole way from a folder to a cited answer."""

import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHARACTERS
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sample_files import pdf, static_model

from peg_rag.cli import main
from peg_rag.cli.app import VERBS, run
from peg_rag.cli.console import excerpt, fold_text, printable
from peg_rag.cli.knowledge import common_terms, render_hit
from peg_rag.hits import Hit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(static_model(tmp_path_factory.mktemp("models") / "small", CHARACTERS))


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "报销.md").write_text("# 报销\n\n报销需要发票和审批单。\n\n## 期限\n\n三十天内提交。\n", encoding="utf-8")
    (folder / "门票.txt").write_text("故宫的门票六十元。北京的医院不要门票。", encoding="gb18030")
    (folder / "合同.pdf").write_bytes(pdf([["公司合同由法律部门保管。"]]))
    return folder


# -- start -------------------------------------------------------------------------------------------------------------


def test_help_lists_the_verbs_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from peg_rag.cli.app import run; run(['--help']);"
        "print([m for m in ('torch', 'transformers', 'faiss', 'langchain_core', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    for verb in ("demo", "embed", "info", "index", "search", "ask"):
        assert f" {verb} " in done.stdout


def test_help_comes_quickly() -> None:
    def processor_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "peg_rag.cli", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(processor_seconds() for _ in range(3)) < 1.0  # 0.4 s; a busy machine takes longer for the same


def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        if run([verb, "--help"]) == 0:
            assert f"peg-rag {verb}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("peg-rag 0.")


def test_without_the_extra_there_is_a_pip_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "peg_rag.cli.app")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "pip install 'peg-rag[cli]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nonsense"], 2, "No such command"),
        (["info", "--model", "/no/such/model"], 1, "no such folder"),
        (["search", "/no/such/store", "x"], 2, "peg-rag index"),
        (["index", "/no/such/docs", "--store", "kb"], 2, "no such file or folder"),
        (["embed", "/no/such/file.txt", "-o", "x.parquet"], 2, "no such file"),
        (["index", ".", "--store", "/proc/kb", "--model", "MODEL"], 1, "/proc"),
        (["search", "kb"], 2, "Missing argument"),
    ],
)
def test_errors_are_one_message_without_a_traceback(
    arguments: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], model: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run([model if argument == "MODEL" else argument for argument in arguments]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_debug_keeps_the_traceback() -> None:
    with pytest.raises(OSError, match="no such folder"):
        run(["--debug", "info", "--model", "/no/such/model"])


def test_info_shows_what_would_run(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "--model", model, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["pooling"] == "mean"
    assert facts["dimension"] == 64
    assert facts["backend"] == "static"
    assert facts["versions"]["peg-rag"]
    assert run(["info", "--model", model]) == 0
    assert "pooling" in capsys.readouterr().out


# -- a folder, a store, an answer --------------------------------------------------------------------------------------


def test_from_a_folder_to_a_cited_answer(
    docs: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = str(tmp_path / "kb")
    assert run(["index", str(docs), "--store", store, "--model", model]) == 0
    assert "4 chunks" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)  # the store remembers its model, wherever it is asked from
    assert run(["search", store, "报销需要哪些材料", "-k", "2", "--mode", "hybrid", "--json"]) == 0
    hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert hits[0]["metadata"]["source"] == "docs/报销.md"
    assert set(hits[0]["scores"]) == {"dense", "lexical", "fused"}
    assert run(["search", store, "故宫门票", "--mode", "lexical", "-k", "1"]) == 0
    assert "docs/门票.txt" in capsys.readouterr().out
    assert run(["ask", store, "公司合同由谁保管？", "--threshold", "0", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["sentences"][0]["text"] == "公司合同由法律部门保管。"
    assert answer["sources"][0]["metadata"]["page"] == 1
    assert run(["ask", store, "公司合同由谁保管？", "--threshold", "0"]) == 0
    printed = capsys.readouterr().out
    assert "公司合同由法律部门保管。 [1]" in printed
    assert "[1] docs/合同.pdf · p. 1" in printed
    assert run(["ask", store, "开花了吗", "--threshold", "1"]) == 3
    assert "没有找到" in capsys.readouterr().out


def test_a_changed_folder_and_a_broken_file(
    docs: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "kb")
    assert run(["index", str(docs), "--store", store, "--model", model]) == 0
    (docs / "报销.md").unlink()
    (docs / "坏.docx").write_bytes(b"PK\x03\x04")
    capsys.readouterr()
    assert run(["index", str(docs), "--store", store]) == 3
    captured = capsys.readouterr()
    assert "坏.docx is not a valid docx file" in captured.err
    assert "removed" in captured.out
    assert "2 chunks" in captured.out
    assert run(["search", store, "报销", "--mode", "lexical"]) == 0
    assert "报销.md" not in capsys.readouterr().out


def test_another_model_is_refused(docs: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = str(static_model(tmp_path / "other", CHARACTERS[::-1]))
    store = str(tmp_path / "kb")
    assert run(["index", str(docs), "--store", store, "--model", model]) == 0
    assert run(["search", store, "报销", "--model", other]) == 1
    assert "small@" in capsys.readouterr().err
    assert run(["search", store, "报销", "--mode", "sideways"]) == 2


def test_search_reranks(docs: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path / "kb")
    assert run(["index", str(docs), "--store", store, "--model", model]) == 0
    capsys.readouterr()
    assert run(["search", store, "报销", "--rerank", "maxi"]) == 2
    assert "auto, mini, none" in capsys.readouterr().err
    assert run(["search", store, "报销", "--mode", "dense", "--rerank", "mini"]) == 2
    assert "needs --mode hybrid" in capsys.readouterr().err
    assert run(["search", store, "报销", "--rerank", "mini"]) == 2
    assert "trained on the scores of peg-mini" in capsys.readouterr().err
    assert run(["search", store, "报销", "--json"]) == 0
    assert "rerank" not in json.loads(capsys.readouterr().out.splitlines()[0])["scores"]
    bundled = str(tmp_path / "bundled")
    assert run(["index", str(docs), "--store", bundled, "--model", "peg-mini"]) == 0
    capsys.readouterr()
    for options, is_reranked in (([], True), (["--rerank", "none"], False), (["--mode", "lexical"], False)):
        assert run(["search", bundled, "报销需要哪些材料", "--json", *options]) == 0
        assert ("rerank" in json.loads(capsys.readouterr().out.splitlines()[0])["scores"]) is is_reranked
    assert run(["ask", bundled, "报销需要哪些材料", "--json"]) in (0, 3)
    assert run(["ask", bundled, "报销需要哪些材料", "--rerank", "maxi"]) == 2


def test_text_of_documents_cannot_paint_the_terminal(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text(
        "北京[bold red]故宫[/] [link=http://x]门票[/link] \u202e反了", encoding="utf-8"
    )
    store = str(tmp_path / "kb[blue]")
    assert run(["index", str(tmp_path / "docs"), "--store", store, "--model", model]) == 0
    assert f"{store} is ready" in capsys.readouterr().out
    assert run(["search", store, "北京故宫门票"]) == 0
    printed = capsys.readouterr().out
    assert "北京[bold red]故宫[/] [link=http://x]门票[/link] 反了" in printed


# -- printing ----------------------------------------------------------------------------------------------------------


def test_printing_counts_chinese_as_two_columns() -> None:
    assert printable("a\x1b[2J\tb\n c\u2066") == "a [2J b c"
    assert [line.plain for line in fold_text(excerpt("检索增强生成", cells=12), 4).split("\n")] == [
        "检索",
        "增强",
        "生成",
    ]
    assert excerpt("检索增强生成", cells=7).cell_len <= 7
    assert excerpt("前" * 100 + "检索增强", ("检索",), cells=60).plain.endswith("检索增强")


@given(st.text("检索生成 abc。,", max_size=80), st.text("检索 a", max_size=60), st.integers(20, 70))
def test_a_hit_fits_the_terminal(text: str, title: str, width: int) -> None:
    screen = Console(width=width, force_terminal=True, file=io.StringIO())
    hit = Hit(
        "id", text, 0.5, {"dense": 0.123456, "lexical": 0.0, "fused": 1.9}, {"source": "docs/a.md", "title": title}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peg_rag.cli.knowledge.stdout", screen)
        shown = render_hit(1, hit, "检索", marked=True)
    assert all(line.cell_len <= width for line in shown.split("\n") if "dense" not in line.plain)
    assert "dense 0.123  lexical 0  fused 1.9" in shown.plain


def test_common_terms_are_the_longest_stretches() -> None:
    assert common_terms("北京故宫门票 PEG", "故宫的门票，peg 模型") == ("故宫", "门票", "peg")
    assert common_terms("", "x") == ()
