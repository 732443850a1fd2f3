"""`ExtractiveChatModel`: a chat model that only quotes, so that a chain or an agent runs where no language model does.

Swap it for a real chat model and nothing else in the program changes. It makes no text up: an answer is sentences of
the passages in the prompt with their numbers, or "not found". Costs one encoding of the passages' sentences.
"""

import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.tool import tool_call
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field

from peg_rag.answer import THRESHOLD
from peg_rag.errors import InvalidInput
from peg_rag.extractive import MODEL_NAME, numbered_passages, paragraphs, quote_passages
from peg_rag.hits import Hit
from peg_rag.langchain.bridges import encoder_of
from peg_rag.retriever import identity_of

logger = logging.getLogger(__name__)


class ExtractiveChatModel(BaseChatModel):
    """Answers the last human message with sentences from the passages it is given, or says that there is no answer.

    Passages are read from system messages, where they are numbered `[1]`, `[2]`, … at the start of a line, and from
    tool messages, where numbers are welcome but not needed. `response_metadata` of the reply says `extractive`,
    whether an answer was `found`, and the `confidence`.

    With a tool bound it follows one rule: call the tool with the user's question, then answer from what it returns.
    So the tool must be the only one and take one string. Schemas cannot be filled.

    Args:
        embeddings: compares the question with the sentences; the ones that the retriever uses will do.
        threshold: least confidence for an answer, 0 to 1; see `peg_rag.answer`.

    Raises:
        InvalidInput: when called without a human message.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    embeddings: Embeddings = Field(exclude=True)
    threshold: float = Field(default=THRESHOLD, ge=0, le=1)

    @property
    def _llm_type(self) -> str:
        return MODEL_NAME

    @property
    def _identifying_params(self) -> dict[str, Any]:
        embeddings = identity_of(encoder_of(self.embeddings))
        return {"model": self._llm_type, "embeddings": embeddings, "threshold": self.threshold}

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind the one tool that is called with the question.

        Raises:
            InvalidInput: there is not exactly one tool, or it does not take exactly one string.
        """
        schemas = [convert_to_openai_tool(tool)["function"] for tool in tools]
        if len(schemas) != 1 or _argument_name(schemas[0]) is None:
            raise InvalidInput(
                f"tools {[schema['name'] for schema in schemas]}: ExtractiveChatModel cannot choose among tools or "
                "fill in arguments; bind one tool that takes one string (a question), or use a language model"
            )
        return self.bind(tools=schemas, **kwargs)

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Runnable[LanguageModelInput, Any]:
        """Refused: there is no honest way to fill a schema by quoting.

        Raises:
            InvalidInput: always.
        """
        raise InvalidInput("ExtractiveChatModel quotes sentences and cannot fill a schema; use a language model")

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        tools: Sequence[dict[str, Any]] = (),
        **kwargs: Any,
    ) -> ChatResult:
        place = max((i for i, message in enumerate(messages) if isinstance(message, HumanMessage)), default=None)
        if place is None:
            raise InvalidInput("there is no human message, so there is no question to answer")
        question = messages[place].text
        tool_messages = [message for message in messages[place:] if isinstance(message, ToolMessage)]
        if tools and not tool_messages:
            reply = _call_tool(tools[0], question)
        else:
            system = [message for message in messages if isinstance(message, SystemMessage)]
            reply = self._answer_question(question, [*_numbered_passages(system), *_tool_passages(tool_messages)])
        return ChatResult(generations=[ChatGeneration(message=reply)])

    def _answer_question(self, question: str, passages: list[Hit]) -> AIMessage:
        if not passages:
            logger.warning("no passages numbered [1], [2], … in the system messages and none from a tool")
        reply = quote_passages(question, passages, encoder_of(self.embeddings), self.threshold)
        return AIMessage(reply.text, response_metadata={"model_name": MODEL_NAME, **reply.metadata})


def _argument_name(schema: dict[str, Any]) -> str | None:
    """The name of the tool's one argument, if that is a string."""
    arguments = list(schema.get("parameters", {}).get("properties", {}).items())
    return str(arguments[0][0]) if len(arguments) == 1 and arguments[0][1].get("type") == "string" else None


def _call_tool(schema: dict[str, Any], question: str) -> AIMessage:
    call = tool_call(name=schema["name"], args={str(_argument_name(schema)): question}, id=f"call_{uuid.uuid4().hex}")
    return AIMessage("", tool_calls=[call], response_metadata={"extractive": True})


def _numbered_passages(messages: Sequence[BaseMessage]) -> list[Hit]:
    return [hit for message in messages for hit in numbered_passages(message.text)]


def _tool_passages(messages: Sequence[ToolMessage]) -> list[Hit]:
    """What tools returned for the question, numbered or not; error messages are no passages."""
    texts = [message.text for message in messages if message.status != "error"]
    return [hit for text in texts for hit in numbered_passages(text) or paragraphs(text)]
