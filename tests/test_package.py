"""The package itself: light to import, honest about missing extras, whole when installed from its wheel."""

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
from hiding import hiding_env

import peg_rag

REPO = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


INDEX = "import numpy as np; from peg_rag import PEGIndex; index = PEGIndex(None, dimension=2"


def python(code: str, *, executable: str = sys.executable, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([executable, "-c", code], capture_output=True, text=True, **{"check": True, **options})


def test_importing_peg_rag_imports_nothing_else() -> None:
    code = (
        "import sys, importlib, typing; before = set(sys.modules); import peg_rag; "
        "print(sorted(set(sys.modules) - before - sys.stdlib_module_names))"
    )
    assert python(code).stdout.strip() == "['peg_rag']"


def test_public_names_resolve_and_unknown_ones_do_not() -> None:
    for name in peg_rag.__all__:
        assert getattr(peg_rag, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = peg_rag.Nonsense


def test_the_version_is_one() -> None:
    assert PROJECT["version"] == peg_rag.__version__


@pytest.mark.parametrize(
    ("missing", "statement", "extra"),
    [
        ("langchain_core", "from peg_rag import PEGEmbeddings", "langchain"),
        ("llama_index", "from peg_rag.llama_index import PEGEmbedding", "llama-index"),
        ("faiss", f"{INDEX}, kind='hnsw'); index.upsert(['a'], ['b'], np.eye(1, 2)); index.persist()", "faiss"),
        ("jieba", f"{INDEX}, tokenizer='jieba')", "jieba"),
        (
            "trafilatura",
            "from pathlib import Path; from peg_rag.readers import read_sections\n"
            "Path('a.html').write_text('<p>一</p>'); list(read_sections(Path('a.html')))",
            "ingest",
        ),
        ("psycopg", "from peg_rag.stores import open_store; open_store('postgresql:///kb')", "postgres"),
        ("ir_measures", "from peg_rag.evaluation import score_run; score_run({}, {}, ['nDCG@10'])", "eval"),
        ("accelerate", "from peg_rag.training import Recipe, train", "train"),
        ("typer", "import sys; sys.argv = ['peg-rag', '--help']; from peg_rag.cli import main; main()", "cli"),
        ("fastapi", "import sys; sys.argv = ['peg-rag', 'serve', 'x']; from peg_rag.cli import main; main()", "serve"),
        ("mcp", "import sys; sys.argv = ['peg-rag', 'mcp', 'x']; from peg_rag.cli import main; main()", "mcp"),
    ],
)
def test_a_missing_extra_is_an_error_with_its_pip_line(
    tmp_path: Path, missing: str, statement: str, extra: str
) -> None:
    assert extra in PROJECT["optional-dependencies"]
    block = f"from hiding import hide; hide([{missing!r}])\n"
    done = python(block + statement, cwd=tmp_path, check=False, env=hiding_env())
    assert done.returncode != 0
    assert f"pip install 'peg-rag[{extra}]'" in done.stderr + done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where the build tool lies
    subprocess.run([*command, str(REPO)], check=True, capture_output=True, env={**os.environ, "PATH": path})
    return next(Path(folder).glob("*.whl"))


ANSWERS = (
    "from peg_rag import PEGEmbeddings; import peg_rag; "
    "print(len(PEGEmbeddings(model='peg-mini').embed_documents(['如何更换花呗绑定银行卡'])[0]), peg_rag.__file__)"
)


def test_the_wheel_holds_all_it_needs(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    done = python(f"import sys; sys.path.insert(0, {str(site)!r}); {ANSWERS}", cwd=tmp_path)
    assert str(site) in done.stdout
    assert (site / "peg_rag" / "py.typed").is_file()
    assert (site / "peg_rag" / "serving" / "web" / "dist" / "assets" / "page.js").is_file()
    assert not (site / "tests").exists()


@pytest.mark.slow
def test_the_wheel_answers_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    executable = str(tmp_path / "env" / "bin" / "python")
    constraints = str(REPO / "constraints.txt")
    command = [executable, "-m", "pip", "install", "--quiet", "-c", constraints, f"{wheel}[langchain]"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert python(ANSWERS, executable=executable, cwd=tmp_path).stdout.startswith("512 ")
