"""Generated answers by a real server of a real, tiny model: `transformers serve`, with weights made here in seconds.

The model has learned one sentence, which it says whatever it is asked, so every answer is known beforehand.
"""

import io
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import torch
from serving_fixtures import served_model, store, threaded
from test_serving import events
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.cli.app import run
from peg_rag.serving.app import create_app
from peg_rag.serving.knowledge import KnowledgeBase
from peg_rag.serving.language_model import LanguageModel
from peg_rag.serving.settings import LanguageModelSettings, ServerSettings

__all__ = ["served_model", "store"]
pytestmark = pytest.mark.slow

SENTENCE = "周一闭馆[1]。"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}答："
QUESTION = "故宫周一开门吗"


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of 2 layers over characters, which answers everything with `SENTENCE`."""
    folder = tmp_path_factory.mktemp("chat-model")
    characters = sorted(set(SENTENCE) | set("答：问故宫花呗银行卡门票") | set(map(chr, range(33, 127))))
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<unk>", "<eos>", *characters])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    teach_sentence(model, [vocabulary[token] for token in "答：" + SENTENCE] + [2], len(vocabulary))
    model.generation_config.update(do_sample=False, max_new_tokens=32, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    return folder


def teach_sentence(model: LlamaForCausalLM, lesson: list[int], size: int) -> None:
    """Train until the lesson's end follows its first two tokens, whatever stands before them."""
    draw = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        prompt = [draw.randrange(1, size) for _ in range(draw.choice([16, 200]))]
        tokens = torch.tensor([prompt + lesson])  # (1, tokens)
        labels = tokens.clone()
        labels[:, : len(prompt) + 2] = -100  # not trained on
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.01


@pytest.fixture(scope="module")
def endpoint(chat_model: Path) -> Iterator[str]:
    """`transformers serve` in a process of its own, on a free port of 127.0.0.1."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(chat_model)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(30)


def wait_until_ready(url: str, process: "subprocess.Popen[str]") -> None:
    give_up = time.monotonic() + 240
    while time.monotonic() < give_up:
        if process.poll() is not None:
            assert process.stdout is not None
            pytest.fail(process.stdout.read()[-3000:])
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail("the server of the language model did not start")


def test_the_server_streams_answers_of_a_real_model(
    endpoint: str, chat_model: Path, store: Path, served_model: str
) -> None:
    settings = LanguageModelSettings.model_validate({"base_url": endpoint, "model": str(chat_model)})
    follow_up = {"question": "那票价呢", "history": [{"question": QUESTION, "answer": SENTENCE}]}
    with PEGEncoder(served_model) as encoder, PEGIndex(store, identity=encoder.identity, read_only=True) as index:
        app = create_app(encoder, KnowledgeBase(store, index, encoder), language_model=LanguageModel(settings))
        with threaded(app, ServerSettings()) as (url, _):
            stream = events(httpx.post(f"{url}/ask", json={"question": QUESTION}, timeout=120))
            whole = httpx.post(f"{url}/ask", json={**follow_up, "stream": False}, timeout=120).json()
    names = [name for name, _ in stream]
    assert (names[0], names[-1]) == ("hits", "done")
    assert names.count("delta") > 1
    end = stream[-1][1]
    assert (end["text"], end["found"], end["complete"]) == (SENTENCE, True, True)
    assert [citation["number"] for citation in end["citations"]] == [1]
    assert whole["question"] == SENTENCE  # what the model made of the question and its history
    assert whole["text"] == SENTENCE


def test_the_command_has_a_real_model_write_and_converse(
    endpoint: str,
    chat_model: Path,
    store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--llm-url", endpoint, "--llm-model", str(chat_model)]
    assert run(["ask", str(store), QUESTION, "--json", *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["answer"], answer["complete"], len(answer["sources"])) == (SENTENCE, True, 1)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n那票价呢\n"))
    assert run(["ask", str(store), "--chat", *options]) == 0
    out, err = capsys.readouterr()
    assert out.count(SENTENCE) == 2
    assert f"searched for: {SENTENCE}" in err
