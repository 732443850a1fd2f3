"""Each extra alone is enough for what it promises: everything installed beyond it is hidden from the import system."""

import importlib.metadata as metadata
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from conftest import REPO
from hiding import hiding_env
from packaging.requirements import Requirement


@cache
def closure(extra: str) -> frozenset[str]:
    """Names of the distributions that `peg-rag[extra]` installs, found by walking their metadata."""
    found: set[str] = set()
    waiting = [("peg-rag", extra)]
    seen = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        for line in requires:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": wanted}):
                waiting += [(normal(need.name), e) for e in ("", *need.extras)]
    return frozenset(found)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def modules_of_distributions() -> dict[str, list[str]]:
    return {module: [normal(d) for d in names] for module, names in metadata.packages_distributions().items()}


def hidden_modules(extra: str) -> list[str]:
    allowed = closure(extra) | {"pip", "setuptools"}
    return sorted(m for m, owners in modules_of_distributions().items() if not allowed.intersection(owners))


RUNNER = """
import json, sys
from hiding import hide
hide(json.load(sys.stdin))
import numpy as np
"""

EMBED = "vectors = {}; assert len(vectors[0]) == 512"
EXPORT = (
    "import pathlib, tempfile; from peg_rag import PEGEncoder; from peg_rag.export import export_model\n"
    "folder = pathlib.Path(tempfile.mkdtemp()) / 'exported'\n"
    "export_model(sys.argv[1], folder, backend='{0}', dtype='int8', min_cosine=0.5)\n"
    "assert len(PEGEncoder(folder, backend='{0}', dtype='int8').encode_documents(['花呗'])) == 1"
)
PROMISES = {
    "": "from peg_rag import PEGEncoder; " + EMBED.format("PEGEncoder('peg-mini').encode_documents(['花呗'])"),
    "langchain": (
        "from peg_rag import PEGEmbeddings; from peg_rag.langchain import PEGVectorStore, PEGRetriever\n"
        + EMBED.format("PEGEmbeddings(model='peg-mini').embed_documents(['花呗'])")
        + "\nstore = PEGVectorStore.from_texts(['花呗', '故宫'], PEGEmbeddings(model='peg-mini'))\n"
        "assert PEGRetriever(vectorstore=store, k=1, search_type='hybrid').invoke('花呗')[0].page_content == '花呗'"
    ),
    "llama-index": (
        "from peg_rag.llama_index import PEGEmbedding, PEGVectorStore\n"
        + EMBED.format("[PEGEmbedding('peg-mini').get_text_embedding('花呗')]")
    ),
    "faiss": (
        "from peg_rag import PEGIndex\n"
        "index = PEGIndex(None, dimension=8, kind='hnsw'); index.upsert(['a'], ['b'], np.eye(1, 8))\n"
        "assert index.search(np.eye(1, 8)[0], k=1)[0].id == 'a'"
    ),
    "ingest": (
        "import pathlib, tempfile; from peg_rag.readers import read_sections\n"
        "folder = pathlib.Path(tempfile.mkdtemp()); (folder / 'a.html').write_text('<p>报销需要发票</p>')\n"
        "assert list(read_sections(folder / 'a.html'))"
    ),
    "eval": "from peg_rag.evaluation import score_run\nscore_run({'q': {'d': 1.0}}, {'q': {'d': 1}}, ['nDCG@10'])",
    "train": "from peg_rag.training import Recipe, train, mine_hard_negatives; print(Recipe)",
    "onnx": EXPORT.format("onnx"),
    "openvino": EXPORT.format("openvino"),
    "regex": "from peg_rag.index.filters import compile_filter\ncompile_filter({'a': {'$regex': '^x'}})",
    "jieba": (
        "from peg_rag import PEGIndex\n"
        "PEGIndex(None, dimension=8, tokenizer='jieba').upsert(['a'], ['花呗'], np.eye(1, 8))"
    ),
    "milvus": (
        "import pathlib, tempfile; from peg_rag.stores import open_store\n"
        "store = open_store(f'milvus://{tempfile.mkdtemp()}/a.db'); store.upsert(['a'], ['花呗'], np.eye(1, 8))\n"
        "assert store.search(np.eye(1, 8)[0], '花呗')[0].id == 'a'; store.close()"
    ),
    "postgres": (
        "from peg_rag.errors import StoreError; from peg_rag.stores import open_store\n"
        "try:\n    open_store('postgresql://127.0.0.1:1/none', timeout_s=1)\n"
        "except StoreError as error:\n    assert 'PostgreSQL at' in str(error), error"
    ),
    "serve": (
        "from peg_rag import PEGEncoder; from peg_rag.serving.app import create_app\n"
        "assert create_app(PEGEncoder('peg-mini')).openapi()['paths']"
    ),
    "mcp": "from peg_rag.mcp_server import KnowledgeReader, create_server, create_http_app, serve_http",
    "ocr": "from rapidocr import RapidOCR; import onnxruntime, pypdfium2",
    "chroma": "import chromadb",
    "mteb": "from peg_rag.evaluation.mteb import MTEBModel; import mteb; MTEBModel('peg-mini')",
    "modelscope": "from peg_rag.extras import require\nrequire('modelscope_hub', 'modelscope')",
    "cli": "import sys; sys.argv = ['peg-rag', 'info', '--model', 'peg-mini']; from peg_rag.cli import main; main()",
}


def test_the_workflow_tries_every_extra() -> None:
    workflow = yaml.safe_load((REPO / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"all", "ray"}  # the package itself does not use Ray
    assert set(workflow["jobs"]["extras"]["strategy"]["matrix"]["extra"]) == extras
    assert set(PROMISES) == extras | {""}


@pytest.mark.parametrize("extra", PROMISES)
def test_each_extra_alone_keeps_its_promise(extra: str, tiny_bert: Path) -> None:
    hidden = hidden_modules(extra)
    assert "pytest" in hidden
    code = RUNNER + PROMISES[extra]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bert)],
        input=json.dumps(hidden),
        capture_output=True,
        text=True,
        env=hiding_env(),
    )
    assert done.returncode in (0, None), done.stderr[-2000:]
