"""What the routes share: one object, made by `create_app`, in place of globals."""

from collections.abc import Sequence
from dataclasses import dataclass

from peg_rag.encoder import CHARACTERS_PER_TOKEN, PEGEncoder, load_tokenizer
from peg_rag.serving.generate import LanguageModel
from peg_rag.serving.guard import Load
from peg_rag.serving.keys import ApiKeys
from peg_rag.serving.knowledge import KnowledgeBase
from peg_rag.serving.metrics import Metrics
from peg_rag.serving.settings import ServerSettings
from peg_rag.serving.work import EmbeddingQueue, Gate, Role


@dataclass(slots=True)
class State:
    """The server's parts. `knowledge` is None where only embeddings are served, `language_model` where answers are
    quoted and not written."""

    encoder: PEGEncoder
    knowledge: KnowledgeBase | None
    language_model: LanguageModel | None
    settings: ServerSettings
    keys: ApiKeys
    metrics: Metrics
    load: Load
    queue: EmbeddingQueue
    searches: Gate
    writes: Gate
    conversions: Gate
    created: int  # seconds since 1970
    stopping: bool = False


class ModelTokens:
    """Counts tokens with a tokenizer of its own, prompts included and cut at the model's limit."""

    def __init__(self, encoder: PEGEncoder) -> None:
        self._spec = encoder.spec
        self._tokenizer = load_tokenizer(encoder.spec)

    def count(self, texts: Sequence[str], role: Role) -> list[int]:
        prompt = self._spec.query_prompt if role == "query" else self._spec.document_prompt
        limit = self._spec.max_length * CHARACTERS_PER_TOKEN
        heads = [prompt + text[:limit] for text in texts]
        special = self._spec.kind == "transformer"
        return [len(found.ids) for found in self._tokenizer.encode_batch_fast(heads, add_special_tokens=special)]
