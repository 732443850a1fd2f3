"""`ExtractiveLLM`: an LLM that only quotes, so that a query engine runs where no language model does.

Swap it for a real LLM and nothing else in the program changes. It makes no text up: an answer is sentences of the
passages in the prompt, or "not found". Costs one encoding of the passages' sentences.
"""

import re
from collections.abc import Generator
from typing import Any

from llama_index.core.base.llms.types import CompletionResponse, CompletionResponseGen, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from pydantic import Field

from peg_rag.answer import THRESHOLD
from peg_rag.errors import InvalidInput
from peg_rag.extractive import MODEL_NAME, numbered_passages, paragraphs, quote_passages
from peg_rag.llama_index.embedding import PEGEmbedding

# What LlamaIndex's question templates have in common: the context between two rules, then the query.
_PROMPT = re.compile(r"(?s)^.*?\n-{6,}\n(.*)\n-{6,}\n.*?Query:[ \t]*(.*?)\s*\nAnswer:\s*$")
# A node's metadata as it is put before its text: lines of `key: value` and a blank line.
_METADATA = re.compile(r"^(?:[a-z_]+: .*\n)+\n", re.MULTILINE)


class ExtractiveLLM(CustomLLM):
    """Answers a prompt of LlamaIndex's question templates with sentences from its context, or says there is no answer.

    It understands the templates that a query engine uses in `compact` mode (the default) and those of
    `CitationQueryEngine`, whose `Source 1:` numbers it cites. `CompletionResponse.additional_kwargs` says `extractive`,
    whether an answer was `found`, and the `confidence`.

    Args:
        embed_model: compares the question with the sentences; the one that the index uses will do.
        threshold: least confidence for an answer, 0 to 1; see `peg_rag.answer`.

    Raises:
        InvalidInput: when the prompt is of another form (a chat, a refinement, a summary).
    """

    embed_model: PEGEmbedding = Field(exclude=True)
    threshold: float = Field(default=THRESHOLD, ge=0, le=1)

    @classmethod
    def class_name(cls) -> str:
        return "ExtractiveLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """A window so wide that all passages come in one prompt."""
        return LLMMetadata(model_name=MODEL_NAME, context_window=1_000_000, num_output=1024)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The sentences that answer the prompt's query, with their numbers."""
        match = _PROMPT.match(prompt)
        if match is None:
            raise InvalidInput(
                "this prompt is not one of LlamaIndex's question templates (context between two rules, then 'Query:' "
                "and 'Answer:'), and ExtractiveLLM can only answer those; use a language model"
            )
        context = _METADATA.sub("", f"{match[1]}\n")
        passages = numbered_passages(context) or paragraphs(context)
        reply = quote_passages(match[2], passages, self.embed_model.encoder, self.threshold)
        return CompletionResponse(text=reply.text, additional_kwargs=reply.metadata)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete` as a single chunk: quoted answers cannot be streamed."""

        def pieces() -> Generator[CompletionResponse, None, None]:
            answer_text = self.complete(prompt, formatted, **kwargs)
            yield answer_text.model_copy(update={"delta": answer_text.text})

        return pieces()
