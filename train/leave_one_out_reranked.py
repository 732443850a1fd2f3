r"""What the reranker adds to a whole-recipe model that never saw a domain, with trees that never saw it either.

    python train/leave_one_out_reranked.py --out runs/rerank --model runs/leave-one-out/no_news \
        --domain news --set news-xwlb

`--out` is the folder of `reranker.py`, `--model` one of `leave_one_out.py`. Cost: a minute of one core.
"""

import argparse
import json
from pathlib import Path

from experiments import data_folder
from reranker import compare_orders, fit

from peg_rag import PEGEncoder
from peg_rag.evaluation import load_beir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="judged candidates of reranker.py")
    parser.add_argument("--model", type=Path, required=True, help="a model that was trained without the domain")
    parser.add_argument("--domain", required=True)
    parser.add_argument("--set", dest="name", required=True, help="the domain's evaluation set")
    arguments = parser.parse_args()
    reranker = fit(arguments.out, arguments.model, (arguments.domain,))
    dataset = load_beir(data_folder() / "eval" / arguments.name)
    with PEGEncoder(str(arguments.model)) as encoder:
        print(json.dumps({"domain": arguments.domain, **compare_orders(encoder, reranker, dataset)}))


if __name__ == "__main__":
    main()
