"""PEG on C-MTEB's retrieval and reranking tasks, beside the scores its authors published.

    python benchmarks/c_mteb.py                                        # TownsWu/PEG, all twelve tasks
    python benchmarks/c_mteb.py --model peg-mini --tasks CovidRetrieval

Needs the hub (or a cache of it) for the model and the tasks. Cost: hours on an accelerator for all twelve; Covid, the
smallest, has 100,000 passages.
"""

import argparse

import mteb

from peg_rag.evaluation.mteb import MTEBModel

PUBLISHED = {  # nDCG@10 of retrieval, MAP of reranking; arXiv 2311.11691
    "T2Retrieval": 87.00,
    "MMarcoRetrieval": 82.63,
    "DuRetrieval": 87.67,
    "CovidRetrieval": 82.56,
    "CmedqaRetrieval": 44.42,
    "EcomRetrieval": 67.32,
    "MedicalRetrieval": 60.99,
    "VideoRetrieval": 77.64,
    "T2Reranking": 69.43,
    "MMarcoReranking": 33.55,
    "CMedQAv1-reranking": 84.09,
    "CMedQAv2-reranking": 86.56,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="TownsWu/PEG")
    parser.add_argument("--tasks", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    options = parser.parse_args()
    result = mteb.evaluate(MTEBModel(options.model), mteb.get_tasks(tasks=options.tasks))
    print(f"{'task':<22}{options.model:>16}{'PEG, published':>16}")
    for task in result.task_results:
        score = 100 * task.get_score()
        print(f"{task.task_name:<22}{score:>16.2f}{PUBLISHED[task.task_name]:>16.2f}")


if __name__ == "__main__":
    main()
