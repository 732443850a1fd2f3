"""`PEGReranker`: the bundled reranker as a LlamaIndex node postprocessor, over any retriever's nodes."""

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import Field

from peg_rag.errors import InvalidInput
from peg_rag.reranking import load_reranker


class PEGReranker(BaseNodePostprocessor):
    """Orders nodes by how well they answer a query, and keeps the first ones.

    For nodes of other stores: a `PEGVectorStore` has reranked its hybrid hits already, with the counts of the whole
    index. No model is needed beyond the bundled `peg-mini`.

    Raises:
        InvalidInput: from `postprocess_nodes`: there is no query, or it is blank.
    """

    top_n: int | None = Field(default=None, ge=1, description="Nodes to keep; None for all.")

    @classmethod
    def class_name(cls) -> str:
        return "PEGReranker"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InvalidInput("nodes are reranked for a query; give query_str or query_bundle")
        texts = [node.node.get_content(MetadataMode.NONE) for node in nodes]
        ranking = load_reranker("mini").rank(query_bundle.query_str, texts)
        return [NodeWithScore(node=nodes[each.index].node, score=each.score) for each in ranking[: self.top_n]]
