"""`ExtractiveLLM` in the query engines that a user would build, with their own templates."""

import pytest
from conftest import LetterEncoder
from llama_index.core import VectorStoreIndex
from llama_index.core.base.response.schema import Response
from llama_index.core.query_engine import CitationQueryEngine
from llama_index.core.schema import TextNode
from pydantic import ValidationError

from peg_rag.answer import NOT_FOUND
from peg_rag.errors import InvalidInput
from peg_rag.llama_index import PEGEmbedding
from peg_rag.llama_index.llm import ExtractiveLLM

TEXTS = ["理财产品可以赎回。", "花呗可以绑定银行卡。", "借款按月还。"]
QUESTION = "花呗怎样绑定银行卡？"


@pytest.fixture
def embed_model(letters: LetterEncoder) -> PEGEmbedding:
    return PEGEmbedding.from_encoder(letters)


@pytest.fixture
def llm(embed_model: PEGEmbedding) -> ExtractiveLLM:
    return ExtractiveLLM(embed_model=embed_model, threshold=0.3)


@pytest.fixture
def index(embed_model: PEGEmbedding) -> VectorStoreIndex:
    nodes = [
        TextNode(text=text, metadata={"file_path": f"/data/{i}.md", "page_label": "1"}) for i, text in enumerate(TEXTS)
    ]
    return VectorStoreIndex(nodes, embed_model=embed_model)


async def test_a_query_engine_answers_with_a_sentence_of_a_node(index: VectorStoreIndex, llm: ExtractiveLLM) -> None:
    engine = index.as_query_engine(llm=llm, similarity_top_k=3)
    assert str(engine.query(QUESTION)) == "花呗可以绑定银行卡。"
    assert str(await engine.aquery(QUESTION)) == "花呗可以绑定银行卡。"
    streaming = index.as_query_engine(llm=llm, streaming=True)
    assert str(streaming.query(QUESTION)) == "花呗可以绑定银行卡。"


def test_a_citation_engine_cites_the_source_that_says_it(index: VectorStoreIndex, llm: ExtractiveLLM) -> None:
    engine = CitationQueryEngine.from_args(index, llm=llm, similarity_top_k=3)
    response = engine.query(QUESTION)
    assert isinstance(response, Response)
    quoted, _, number = str(response).rstrip("]").partition("[")
    assert quoted == "花呗可以绑定银行卡。"
    assert quoted in response.source_nodes[int(number) - 1].node.get_content()


def test_says_so_when_nothing_answers(index: VectorStoreIndex, embed_model: PEGEmbedding) -> None:
    llm = ExtractiveLLM(embed_model=embed_model, threshold=1.0)
    assert str(index.as_query_engine(llm=llm).query("abc xyz?")) == NOT_FOUND


def test_metadata_in_the_prompt_is_no_sentence(llm: ExtractiveLLM) -> None:
    rule = "-" * 21
    context = "file_path: /花呗/绑定/银行卡.md\n\n理财产品可以赎回。\n\nfile_path: 花呗绑定银行卡\n\n借款按月还。"
    prompt = (
        f"Context information is below.\n{rule}\n{context}\n{rule}\nAnswer the query.\nQuery: 借款怎样还？\nAnswer: "
    )
    done = llm.complete(prompt)
    assert done.text == "借款按月还。"
    assert done.additional_kwargs["extractive"]
    assert done.additional_kwargs["found"]


def test_rules_inside_the_context_do_not_end_it(llm: ExtractiveLLM) -> None:
    prompt = f"below\n------\n理财产品。\n------\n花呗可以绑定银行卡。\n------\nQuery: {QUESTION}\nAnswer: "
    assert llm.complete(prompt).text == "花呗可以绑定银行卡。"


@pytest.mark.parametrize("prompt", ["", "你好", "user: 你好\nassistant: ", "Query: 花呗？\nAnswer: "])
def test_refuses_prompts_of_another_form(llm: ExtractiveLLM, prompt: str) -> None:
    with pytest.raises(InvalidInput, match="question templates"):
        llm.complete(prompt)


def test_settings_are_checked(embed_model: PEGEmbedding) -> None:
    with pytest.raises(ValidationError):
        ExtractiveLLM(embed_model=embed_model, threshold=2)
    assert ExtractiveLLM(embed_model=embed_model).metadata.model_name == "peg-rag-extractive"
