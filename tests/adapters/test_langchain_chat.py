"""`ExtractiveChatModel` in the places a chat model stands in: a chain, a tool call, an agent."""

from typing import Any

import pytest
from conftest import LetterEncoder
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from pydantic import BaseModel, ValidationError

from peg_rag.answer import NOT_FOUND
from peg_rag.errors import InvalidInput
from peg_rag.langchain import PEGEmbeddings
from peg_rag.langchain.chat import ExtractiveChatModel

PASSAGES = "[1] 理财产品可以赎回。\n\n[2] 花呗可以绑定银行卡。更换银行卡要先解绑。\n\n[3] 借款按月还。"
QUESTION = "花呗怎样绑定银行卡？"


@pytest.fixture
def model(letters: LetterEncoder) -> ExtractiveChatModel:
    return ExtractiveChatModel(embeddings=PEGEmbeddings.from_encoder(letters), threshold=0.3)


def search(query: str) -> str:
    """Search the help pages."""
    return PASSAGES


def test_quotes_the_sentence_and_cites_the_prompts_number(model: ExtractiveChatModel) -> None:
    reply = model.invoke([SystemMessage(f"只根据资料回答，如[1]。\n\n{PASSAGES}"), HumanMessage(QUESTION)])
    assert reply.text.startswith("花呗可以绑定银行卡。[2]")
    assert reply.response_metadata["extractive"]
    assert reply.response_metadata["found"]
    assert 0 <= reply.response_metadata["confidence"] <= 1


@pytest.mark.parametrize("context", ["", "没有编号的说明。", "[1] abc def.", "[2] 花呗可以绑定银行卡。"])
def test_says_so_when_no_passage_answers(letters: LetterEncoder, context: str) -> None:
    model = ExtractiveChatModel(embeddings=PEGEmbeddings.from_encoder(letters), threshold=0.9)
    reply = model.invoke([SystemMessage(f"说明：\n{context}"), HumanMessage(QUESTION)])
    assert reply.text == NOT_FOUND
    assert not reply.response_metadata["found"]


def test_answers_the_last_question_of_a_conversation(model: ExtractiveChatModel) -> None:
    history = [SystemMessage(PASSAGES), HumanMessage("借款怎样还？"), AIMessage("借款按月还。[3]")]
    assert "[2]" in model.invoke([*history, HumanMessage(QUESTION)]).text


async def test_a_chain_runs_streams_and_batches(model: ExtractiveChatModel) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{question}")])
    chain = prompt | model | StrOutputParser()
    given = {"context": PASSAGES, "question": QUESTION}
    whole = chain.invoke(given)
    assert whole.startswith("花呗可以绑定银行卡。[2]")
    assert await chain.ainvoke(given) == whole
    assert chain.batch([given, given]) == [whole, whole]
    assert "".join(chain.stream(given)) == whole
    assert "".join([piece async for piece in chain.astream(given)]) == whole


def test_calls_its_tool_with_the_question_and_then_answers_from_the_result(model: ExtractiveChatModel) -> None:
    bound = model.bind_tools([search])
    asked = bound.invoke([HumanMessage(QUESTION)])
    (call,) = asked.tool_calls
    assert (call["name"], call["args"]) == ("search", {"query": QUESTION})
    answered = bound.invoke([HumanMessage(QUESTION), asked, ToolMessage(PASSAGES, tool_call_id=call["id"])])
    assert answered.tool_calls == []
    assert answered.text.startswith("花呗可以绑定银行卡。[2]")


def test_a_tools_result_needs_no_numbers(model: ExtractiveChatModel) -> None:
    result = ToolMessage("理财产品可以赎回。\n\n花呗可以绑定银行卡。", tool_call_id="1")
    assert model.invoke([HumanMessage(QUESTION), result]).text == "花呗可以绑定银行卡。"


def test_a_tools_error_is_not_quoted(model: ExtractiveChatModel) -> None:
    failed = ToolMessage("花呗可以绑定银行卡。", tool_call_id="1", status="error")
    assert model.invoke([HumanMessage(QUESTION), failed]).text == NOT_FOUND


@pytest.mark.parametrize("parallel", [False, True])
def test_an_agent_loop_ends_with_an_answer(model: ExtractiveChatModel, parallel: bool) -> None:
    asked: list[str] = []

    @tool(response_format="content_and_artifact")
    def look_up(query: str) -> tuple[str, list[Document]]:
        """Search the help pages."""
        asked.append(query)
        return PASSAGES, [Document("花呗可以绑定银行卡。")]

    agent: Any = create_agent(model, [look_up], system_prompt="你是客服。")
    given = {"messages": [HumanMessage(QUESTION)]}
    state = agent.batch([given, given])[1] if parallel else agent.invoke(given)
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert state["messages"][-1].text.startswith("花呗可以绑定银行卡。[2]")
    assert asked == [QUESTION] * (2 if parallel else 1)


def test_an_agents_second_question_is_searched_anew(model: ExtractiveChatModel) -> None:
    agent: Any = create_agent(model, [search])
    first = agent.invoke({"messages": [HumanMessage("借款怎样还？")]})
    second = agent.invoke({"messages": [*first["messages"], HumanMessage(QUESTION)]})
    assert [message.type for message in second["messages"]] == ["human", "ai", "tool", "ai"] * 2
    assert "[2]" in second["messages"][-1].text


class Person(BaseModel):
    """Someone."""

    name: str
    age: int


def add(a: int) -> int:
    """Add one."""
    return a + 1


@pytest.mark.parametrize("tools", [[], [search, search], [Person], [add]])
def test_refuses_tools_it_cannot_call_honestly(model: ExtractiveChatModel, tools: list[Any]) -> None:
    with pytest.raises(InvalidInput, match="one tool that takes one string"):
        model.bind_tools(tools)


def test_refuses_schemas_unknown_settings_and_prompts_without_a_question(model: ExtractiveChatModel) -> None:
    with pytest.raises(InvalidInput, match="cannot fill a schema"):
        model.with_structured_output(Person)
    with pytest.raises(InvalidInput, match="no human message"):
        model.invoke([SystemMessage(PASSAGES)])
    with pytest.raises(InvalidInput, match="question"):
        model.invoke([SystemMessage(PASSAGES), HumanMessage(" ")])
    for settings in ({"threshold": 2}, {"temperature": 0}):
        with pytest.raises(ValidationError):
            ExtractiveChatModel(embeddings=model.embeddings, **settings)  # type: ignore[arg-type]
