"""Question answering over a folder with LangChain: a chain that answers with its sources.

python examples/langchain_rag.py

Answers are sentences quoted from the documents, unless an OpenAI-compatible server (Ollama, vLLM, …) is named:
OPENAI_BASE_URL=http://localhost:11434/v1 OPENAI_API_KEY=none OPENAI_MODEL=qwen3:8b python examples/langchain_rag.py
"""

import os
from operator import itemgetter
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_text_splitters import RecursiveCharacterTextSplitter

from peg_rag.langchain import PEGEmbeddings, PEGRetriever, PEGVectorStore
from peg_rag.langchain.chat import ExtractiveChatModel

FOLDER = Path(__file__).parent / "data"
QUESTIONS = ("八达岭长城的门票多少钱？", "白葡萄酒和红葡萄酒哪个亚硫酸盐更多？", "周杰伦的第一张专辑叫什么？")
PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "只根据下面的资料回答问题，并注明出处的编号，如[1]。资料里没有答案就直说。\n\n{context}"),
        ("human", "{question}"),
    ]
)


def load(folder: Path) -> list[Document]:
    """The folder's files, cut where Chinese text may be cut."""
    files = sorted(folder.glob("*/*.*"))
    documents = [Document(f.read_text("utf-8"), metadata={"source": f.relative_to(folder).as_posix()}) for f in files]
    splitter = RecursiveCharacterTextSplitter(
        separators=["\n\n", "\n", "。", "；", "，", ""], keep_separator="end", chunk_size=400, chunk_overlap=0
    )
    return splitter.split_documents(documents)


def chat_model(embeddings: PEGEmbeddings) -> BaseChatModel:
    if "OPENAI_BASE_URL" not in os.environ:
        print("No OPENAI_BASE_URL is set: answers are extractive, that is, quoted from the documents.")
        return ExtractiveChatModel(embeddings=embeddings)
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model=os.environ["OPENAI_MODEL"])  # takes the URL and the key from the environment


def numbered(documents: list[Document]) -> str:
    return "\n\n".join(f"[{number}] {document.page_content}" for number, document in enumerate(documents, 1))


def main() -> None:
    embeddings = PEGEmbeddings(model="peg-mini")  # the small bundled model; PEGEmbeddings() is PEG itself
    store = PEGVectorStore.from_documents(load(FOLDER), embeddings)  # path="…" keeps it on disk
    retriever = PEGRetriever(vectorstore=store, search_type="hybrid", k=4)
    model = chat_model(embeddings)

    context = itemgetter("documents") | RunnableLambda(numbered)
    answer = RunnablePassthrough.assign(context=context) | PROMPT | model | StrOutputParser()
    chain = RunnablePassthrough.assign(documents=itemgetter("question") | retriever).assign(answer=answer)

    for question in QUESTIONS:
        result = chain.invoke({"question": question})
        print(f"\nQuestion: {question}\nAnswer:   {result['answer']}")
        for number, document in enumerate(result["documents"], 1):
            if f"[{number}]" in result["answer"]:
                print(f"  [{number}] {document.metadata['source']}")


if __name__ == "__main__":
    main()
