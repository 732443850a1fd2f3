"""A LangChain agent that looks things up: retrieval as a tool in an agent graph, with a memory of the conversation.

python examples/langchain_agent.py

Without a language model the agent follows one rule, search and then quote what was found. Give it a server that speaks
OpenAI's protocol and supports tools (Ollama, vLLM, …), and it decides for itself when to search, and for what:
OPENAI_BASE_URL=http://localhost:11434/v1 OPENAI_API_KEY=none OPENAI_MODEL=qwen3:8b python examples/langchain_agent.py
"""

import os
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver

from peg_rag.langchain import PEGEmbeddings, PEGRetriever, PEGVectorStore
from peg_rag.langchain.chat import ExtractiveChatModel

FOLDER = Path(__file__).parent / "data" / "sights"
QUESTIONS = ("香山公园哪里看红叶最好？", "月老祠几点开门？")
INSTRUCTIONS = "你是北京旅游顾问。先用工具查资料，再只根据资料回答，并注明出处的编号，如[1]。"

embeddings = PEGEmbeddings(model="peg-mini")  # the small bundled model; PEGEmbeddings() is PEG itself
store = PEGVectorStore(embeddings)
store.add_documents([Document(f.read_text("utf-8"), metadata={"source": f.name}) for f in sorted(FOLDER.iterdir())])
retriever = PEGRetriever(vectorstore=store, search_type="hybrid", k=3)


search_sights = retriever.as_tool(
    name="search_sights",
    description="Search a guide to the sights of Beijing: what there is to see, addresses, opening hours, tickets.",
)


def chat_model() -> BaseChatModel:
    if "OPENAI_BASE_URL" not in os.environ:
        print("No OPENAI_BASE_URL is set: answers are extractive, that is, quoted from the documents.")
        return ExtractiveChatModel(embeddings=embeddings)
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model=os.environ["OPENAI_MODEL"])  # takes the URL and the key from the environment


def main() -> None:
    agent = create_agent(chat_model(), [search_sights], system_prompt=INSTRUCTIONS, checkpointer=InMemorySaver())
    conversation: RunnableConfig = {"configurable": {"thread_id": "1"}}
    for question in QUESTIONS:
        print(f"\nUser:  {question}")
        for step in agent.stream({"messages": [HumanMessage(question)]}, conversation, stream_mode="updates"):
            for message in (message for update in step.values() for message in update["messages"]):
                show(message)


def show(message: AIMessage | ToolMessage) -> None:
    if isinstance(message, ToolMessage):
        print(
            "Tool: ",
            ", ".join(f"[{n}] {document.metadata['source']}" for n, document in enumerate(message.artifact, 1)),
        )
    elif message.tool_calls:
        print("Agent:", *(f"{call['name']}({call['args']})" for call in message.tool_calls))
    else:
        print("Agent:", message.text)


if __name__ == "__main__":
    main()
