"""The first vector of the bundled model in a fresh process: what a command or a serverless function waits for.

    python benchmarks/first_vector.py --runs 9

Each run starts Python anew, imports, loads the model and embeds one query; the ways take turns, so that a busy machine
slows all of them. sentence-transformers and `HuggingFaceEmbeddings` open the same folder. Cost: some two minutes.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from importlib.util import find_spec
from statistics import median

from peg_rag.models import bundled_path

QUERY = "如何更换花呗绑定银行卡"
FOLDER = str(bundled_path("peg-mini"))
WAYS = {
    "PEGEncoder": f"from peg_rag import PEGEncoder; PEGEncoder('peg-mini').encode_queries(['{QUERY}'])",
    "PEGEmbeddings (LangChain)": f"from peg_rag import PEGEmbeddings; PEGEmbeddings('peg-mini').embed_query('{QUERY}')",
    "PEGEmbedding (LlamaIndex)": (
        f"from peg_rag.llama_index import PEGEmbedding; PEGEmbedding('peg-mini').get_query_embedding('{QUERY}')"
    ),
    "sentence-transformers": (
        "from sentence_transformers import SentenceTransformer; "
        f"SentenceTransformer('{FOLDER}', device='cpu').encode('{QUERY}')"
    ),
    "HuggingFaceEmbeddings": (
        "from langchain_huggingface import HuggingFaceEmbeddings; "
        f"HuggingFaceEmbeddings(model_name='{FOLDER}', model_kwargs={{'device': 'cpu'}}).embed_query('{QUERY}')"
    ),
}
NEEDS = {
    "PEGEmbeddings (LangChain)": "langchain_core",
    "PEGEmbedding (LlamaIndex)": "llama_index",
    "sentence-transformers": "sentence_transformers",
    "HuggingFaceEmbeddings": "langchain_huggingface",
}
REPORT = "; import json, sys; print(json.dumps([name for name in ('torch', 'transformers') if name in sys.modules]))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="processes for each way")
    options = parser.parse_args()
    ways = [way for way in WAYS if way not in NEEDS or find_spec(NEEDS[way])]
    runs: dict[str, list[tuple[float, float, list[str]]]] = {way: [] for way in ways}
    for _ in range(options.runs):
        for way in ways:
            runs[way].append(measure(WAYS[way]))
    print(f"{'':<28}{'wall s':>8}{'best s':>8}{'CPU s':>8}  imports")
    for way, way_runs in runs.items():
        walls = [wall for wall, _, _ in way_runs]
        cpu = median(seconds for _, seconds, _ in way_runs)
        print(f"{way:<28}{median(walls):>8.2f}{min(walls):>8.2f}{cpu:>8.2f}  {', '.join(way_runs[0][2]) or '-'}")


def measure(code: str) -> tuple[float, float, list[str]]:
    """(wall seconds, CPU seconds, heavy modules that were imported) of a fresh process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.run([sys.executable, "-c", code + REPORT], capture_output=True, text=True, check=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return wall, cpu, json.loads(process.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
