"""`ServerState`: the objects that all requests share, made by `create_app` and kept in `app.state.server`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peg_rag.encoder import CHARACTERS_PER_TOKEN, PEGEncoder, load_tokenizer
from peg_rag.hits import Hit
from peg_rag.retriever import Mode
from peg_rag.serving.keys import ApiKeys
from peg_rag.serving.knowledge import KnowledgeBase
from peg_rag.serving.language_model import LanguageModel
from peg_rag.serving.limits.middleware import Load
from peg_rag.serving.limits.queues import EmbeddingQueue, InputType, WorkerPool
from peg_rag.serving.metrics import Metrics
from peg_rag.serving.settings import ServerSettings


@dataclass(slots=True)
class ServerState:
    """Everything that a route needs besides its request.

    Attributes:
        knowledge: None where only embeddings are served.
        language_model: None where answers are quoted from the documents.
        created: when the server started, in seconds since 1970.
        stopping: set once the server shuts down.
    """

    encoder: PEGEncoder
    knowledge: KnowledgeBase | None
    language_model: LanguageModel | None
    settings: ServerSettings
    keys: ApiKeys
    metrics: Metrics
    load: Load
    embedding_queue: EmbeddingQueue
    searches: WorkerPool
    writes: WorkerPool
    conversions: WorkerPool
    created: int
    stopping: bool = False


async def search_knowledge(
    state: ServerState, knowledge: KnowledgeBase, query: str, *, mode: Mode, **options: Any
) -> list[Hit]:
    """`KnowledgeBase.search`, with the query encoded in one batch with those of concurrent requests.

    Raises:
        Busy: too many texts wait to be embedded, or too many searches to be run.
    """
    vectors = None
    if mode != "lexical":
        vectors = (await state.embedding_queue.embed([query], "query")).vectors
    return await state.searches.run(knowledge.search, query, mode=mode, vectors=vectors, **options)


class ModelTokenCounter:
    """Counts the tokens of texts as the model sees them: with their prompt, truncated at its maximum length.

    It has a tokenizer of its own, since the encoder's is used by another thread.
    """

    def __init__(self, encoder: PEGEncoder) -> None:
        self._spec = encoder.spec
        self._tokenizer = load_tokenizer(encoder.spec)

    def count(self, texts: Sequence[str], input_type: InputType) -> list[int]:
        """The number of tokens of each text."""
        prompt = self._spec.query_prompt if input_type == "query" else self._spec.document_prompt
        limit = self._spec.max_length * CHARACTERS_PER_TOKEN
        prompted_texts = [prompt + text[:limit] for text in texts]
        add_special_tokens = self._spec.kind == "transformer"
        encodings = self._tokenizer.encode_batch_fast(prompted_texts, add_special_tokens=add_special_tokens)
        return [len(encoding.ids) for encoding in encodings]
