"""The sources of pairs that may not go into shipped weights or vocabularies, nor into anything learned from them.

Their licences allow research only, or academic or non-commercial use; the README of the data names them, and a test
compares. Ablations and evaluations may read them.
"""

RESEARCH_ONLY = frozenset(
    {
        "reading-c3",
        "encyclopedia-squad_zh",
        "finance-afqmc",
        "general-cinlid",
        "law-lawyer_llama_qa",
        "law-lawyer_llama_article",
    }
)
