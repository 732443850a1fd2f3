"""From real documents to a right answer: 150 questions about 27 office files, right, wrong or declined.

Three systems answer the same questions:

* **peg-rag**: `peg-rag index FILES`, then `peg-rag ask STORE QUESTION --json`, with their defaults;
* **LlamaIndex readers**: the text that `SimpleDirectoryReader` and its default readers give, cut by its
  `SentenceSplitter`, then searched and answered by peg-rag, so that only the reading differs;
* **baseline**: pdfminer's text (other kinds through markitdown), chunks of 500 characters, BM25 over jieba's words, and
  of the five best chunks the sentence that shares most with the question.

    python benchmarks/answers.py                                # peg-mini, the open half; a minute
    python benchmarks/answers.py --split aside                  # the half that nothing was developed on
    python benchmarks/answers.py --set office                   # the second set: 280 questions about 15 files
    python benchmarks/answers.py --llama-index llama_index.jsonl   # made by benchmarks/llama_index_text.py
    python benchmarks/answers.py --show wrong,declined          # the answers behind the figures
    python benchmarks/answers.py --set documents-2              # the third: 80 questions about 11 files, fresh once
    python benchmarks/answers.py --set documents-3              # the fourth: 80 questions about 12 files, fresh once
    python benchmarks/answers.py --set documents-4              # the fifth: 80 questions about 14 files, fresh once
    python benchmarks/answers.py --set documents-5              # the sixth: 80 questions about 14 files, fresh once
    python benchmarks/answers.py --set documents-6              # the seventh: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-7              # the eighth: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-8              # the ninth: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-9              # the tenth: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-10             # the eleventh: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-11             # the twelfth: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-12            # the thirteenth: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-13            # the fourteenth: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-14            # the fifteenth: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-15            # the sixteenth: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-16           # the seventeenth: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-17           # the eighteenth: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-18           # the nineteenth: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-19          # the twentieth: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-20          # the twenty-first: 80 questions about 16 files, fresh once
    python benchmarks/answers.py --set documents-21          # the twenty-second: 80 questions, 16 files, fresh once
    python benchmarks/answers.py --set documents-22          # the twenty-third: 80 questions, 16 files, fresh once
    python benchmarks/answers.py --documents tests/data/public-documents                  # real public documents
    python benchmarks/answers.py --documents FOLDER --split fresh   # other files and questions
    python benchmarks/answers.py --documents FOLDER --split fresh --list    # show the questions, ask none

How an answer is judged: `tests/data/documents/README.md`.
"""

import argparse
import json
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

DOCUMENTS = Path(__file__).resolve().parent.parent / "tests" / "data" / "documents"
SETS = {
    "documents": DOCUMENTS,
    "office": DOCUMENTS / "office",
    "documents-2": DOCUMENTS.parent / "documents-2",
    "documents-3": DOCUMENTS.parent / "documents-3",
    "documents-4": DOCUMENTS.parent / "documents-4",
    "documents-5": DOCUMENTS.parent / "documents-5",
    "documents-6": DOCUMENTS.parent / "documents-6",
    "documents-7": DOCUMENTS.parent / "documents-7",
    "documents-8": DOCUMENTS.parent / "documents-8",
    "documents-9": DOCUMENTS.parent / "documents-9",
    "documents-10": DOCUMENTS.parent / "documents-10",
    "documents-11": DOCUMENTS.parent / "documents-11",
    "documents-12": DOCUMENTS.parent / "documents-12",
    "documents-13": DOCUMENTS.parent / "documents-13",
    "documents-14": DOCUMENTS.parent / "documents-14",
    "documents-15": DOCUMENTS.parent / "documents-15",
    "documents-16": DOCUMENTS.parent / "documents-16",
    "documents-17": DOCUMENTS.parent / "documents-17",
    "documents-18": DOCUMENTS.parent / "documents-18",
    "documents-19": DOCUMENTS.parent / "documents-19",
    "documents-20": DOCUMENTS.parent / "documents-20",
    "documents-21": DOCUMENTS.parent / "documents-21",
    "documents-22": DOCUMENTS.parent / "documents-22",
}
KINDS = ("table", "record", "scan", "text", "number", "date", "who", "how", "list", "unanswerable")
LONGEST_ANSWER = 400  # characters
_RADICALS = str.maketrans("⺠⻄⻅⻆⻉⻋⻓⻔⻘⻚⻛⻜⻝⻢⻥⻦⻨⻩⻬⻮⻰", "民西见角贝车长门青页风飞食马鱼鸟麦黄齐齿龙")
_CHUNK = 500
_SENTENCE = re.compile(r"[^。！？!?\n]+[。！？!?]?")


@dataclass(frozen=True)
class Question:
    """A line of `questions.jsonl`; see the README beside it."""

    id: str
    split: str
    kind: str
    files: list[str]
    question: str
    must: list[str]
    must_not: list[str]
    beside: list[str]


@dataclass(frozen=True)
class Reply:
    """What a system says: the answer (empty for none) and the file that its first sentence is of."""

    text: str
    file: str = ""


Answerer = Callable[[str], Reply]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="documents", choices=tuple(SETS), help="the files and questions")
    parser.add_argument("--documents", type=Path, help="another folder with files/ and questions.jsonl")
    parser.add_argument("--split", default="open", choices=("open", "aside", "fresh", "all"))
    parser.add_argument("--model", default="peg-mini")
    parser.add_argument("--llama-index", type=Path, help="JSON lines made by benchmarks/llama_index_text.py")
    parser.add_argument("--only", default="peg-rag,llama-index,baseline", help="the systems to run")
    parser.add_argument("--show", default="", help="verdicts whose answers are printed: wrong,declined,right")
    parser.add_argument("--list", action="store_true", help="print the questions and their files, and ask none")
    parser.add_argument("--replies", type=Path, help="write every reply of peg-rag and its verdict to this file")
    options = parser.parse_args()
    folder_of_set = options.documents or SETS[options.set]
    questions = [q for q in read_questions(folder_of_set) if options.split in (q.split, "all")]
    if options.list:
        list_questions(questions, folder_of_set / "files")
        return
    every = len(questions)
    questions = present_questions(questions, folder_of_set / "files")
    if len(questions) < every:
        print(f"{every - len(questions)} of {every} questions are left out: their documents are not in {folder_of_set}")
    if not questions:
        parser.error(f"{folder_of_set} has no question of the split {options.split}")
    names = options.only.split(",")
    with tempfile.TemporaryDirectory() as folder:
        for name, answer in systems(names, folder_of_set / "files", options.model, Path(folder), options.llama_index):
            replies = [(question, answer(question.question)) for question in questions]
            report(name, options.split, replies, options.show.split(","))
            if options.replies and name == "peg-rag":
                write_replies(options.replies, replies)


def read_questions(folder: Path = DOCUMENTS) -> list[Question]:
    lines = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [Question(**json.loads(line)) for line in lines]


def list_questions(questions: list[Question], files: Path) -> None:
    """Print each question and the files that answer it; raises FileNotFoundError for a missing one."""
    for question in questions:
        for name in question.files:
            if not (files / name).is_file():
                raise FileNotFoundError(f"{question.id} is about {name}, which is not in {files}")
        print(f"{question.id:<26}{question.question}    {', '.join(question.files) or '-'}")


def present_questions(questions: list[Question], files: Path) -> list[Question]:
    """The questions whose documents are all there; the unanswerable ones stay as long as there is a document."""
    names = {file.name for file in files.iterdir()} if files.is_dir() else set()
    return [question for question in questions if names.issuperset(question.files)] if names else []


def systems(
    names: list[str], files: Path, model: str, folder: Path, llama_index: Path | None
) -> Iterator[tuple[str, Answerer]]:
    if "peg-rag" in names:
        yield "peg-rag", command_line(files, model, folder / "peg")
    if "llama-index" in names and llama_index:
        texts = read_llama_index(llama_index, folder / "texts")
        yield "LlamaIndex readers", command_line(texts, model, folder / "llama")
    if "baseline" in names:
        yield "baseline", Baseline(files).answer


def command_line(documents: Path, model: str, store: Path) -> Answerer:
    """`peg-rag index`, and `peg-rag ask` for every question, in this process."""
    from peg_rag.cli.app import app

    runner = CliRunner()
    indexing = runner.invoke(app, ["index", str(documents), "--store", str(store), "--model", model])
    print(indexing.output)

    def answer(question: str) -> Reply:
        result = runner.invoke(app, ["ask", str(store), question, "--json"])
        if result.exit_code not in (0, 3):
            raise RuntimeError(f"peg-rag ask failed on {question!r}: {result.output}") from result.exception
        output = json.loads(result.stdout)
        if not output["found"]:
            return Reply("")
        sources = output["sources"]
        first = sources[output["sentences"][0]["citation"] - 1]["metadata"]
        return Reply(output["answer"], Path(str(first["source"])).name)

    return answer


def read_llama_index(path: Path, folder: Path) -> Path:
    """What LlamaIndex read, cut by its splitter: a folder with one JSON lines file for each document."""
    from llama_index.core.node_parser import SentenceSplitter

    splitter, folder = SentenceSplitter(), folder / "files"
    folder.mkdir(parents=True)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line) if line.startswith("{") else {"file": "", "text": ""}
        with (folder / f"{row['file']}.jsonl").open("a", encoding="utf-8") as file:
            for piece in splitter.split_text(row["text"]) if row["text"].strip() else ():
                file.write(json.dumps({"text": piece}, ensure_ascii=False) + "\n")
    return folder


class Baseline:
    """Plain text, chunks of so many characters, BM25, and the sentence with most of the question's words."""

    def __init__(self, folder: Path) -> None:
        import bm25s
        import jieba

        jieba.setLogLevel("WARNING")
        self._words = jieba.lcut
        self._chunks = [
            (path.name, text[start : start + _CHUNK])
            for path in sorted(folder.iterdir())
            for text in [plain_text(path)]
            for start in range(0, len(text), _CHUNK)
        ]
        self._search = bm25s.BM25()
        self._search.index([self._words(text) for _, text in self._chunks], show_progress=False)

    def answer(self, question: str) -> Reply:
        words = self._words(question)
        numbers, scores = self._search.retrieve([words], k=5, show_progress=False)
        best, file, most = "", "", 0
        for number, score in zip(numbers[0].tolist(), scores[0].tolist(), strict=True):
            name, chunk = self._chunks[number]
            for sentence in _SENTENCE.findall(chunk) if score > 0 else ():
                common = len({word for word in set(words) & set(self._words(sentence)) if len(word) > 1})
                if common > most:
                    best, file, most = sentence.strip(), name, common
        return Reply(best, file)


def plain_text(path: Path) -> str:
    """The text of a file as the usual converters give it; what they cannot read is empty."""
    from markitdown import MarkItDown
    from pdfminer.high_level import extract_text

    if path.suffix in (".txt", ".md", ".csv", ".jsonl", ".eml"):
        data = path.read_bytes()
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return data.decode("gb18030")
    if path.suffix == ".pdf":
        return str(extract_text(path))
    try:
        return str(MarkItDown().convert(path).markdown)
    except Exception as error:
        print(f"baseline: {path.name}: {type(error).__name__}")
        return ""


def normalise(text: str) -> str:
    """What answers and patterns are compared as."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", unicodedata.normalize("NFKC", text.translate(_RADICALS)))
    return re.sub(r"\s+", "", text).lower()


def occurs(pattern: str, answer: str) -> bool:
    """Whether a literal, or a regular expression after `re:` (written for normalised text), occurs in an answer."""
    if pattern.startswith("re:"):
        return re.search(pattern[3:], answer, re.IGNORECASE) is not None
    literal = normalise(pattern)
    before = r"(?<!\d)(?<!\d\.)" if literal[0].isdigit() else ""
    after = r"(?!\.?\d)" if literal[-1].isdigit() else ""
    return re.search(before + re.escape(literal) + after, answer) is not None


def judge(question: Question, reply: Reply) -> str:
    """`right` or `exact`, `declined`, `wrong`."""
    if question.kind == "unanswerable":
        return "wrong" if reply.text else "exact"
    if not reply.text:
        return "declined"
    answer = normalise(reply.text)
    name = reply.file.removesuffix(".jsonl") if reply.file not in question.files else reply.file
    right = (
        len(answer) <= LONGEST_ANSWER
        and name in question.files
        and all(occurs(pattern, answer) for pattern in question.must)
        and not any(occurs(pattern, answer) for pattern in question.must_not)
    )
    if not right:
        return "wrong"
    return "right" if any(occurs(pattern, answer) for pattern in question.beside) else "exact"


def report(name: str, split: str, replies: list[tuple[Question, Reply]], show: list[str]) -> None:
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for question, reply in replies:
        verdict = judge(question, reply)
        counts[question.kind][verdict] += 1
        if verdict in show:
            line = reply.text.replace("\n", "⏎") or "-"
            print(f"{verdict} {question.id}: {question.question}\n    must {question.must}\n    {reply.file}: {line}")
    print(f"\n{name}, {split} questions\n{'kind':<14}{'all':>5}{'right':>7}{'exact':>7}{'wrong':>7}{'declined':>10}")
    for kind, count in counts.items():
        print_row(kind, count)
    print_row("answerable", total(counts, lambda kind: kind != "unanswerable"))
    print_row("all", total(counts, lambda _: True))


def total(counts: Mapping[str, Counter[str]], belongs: Callable[[str], bool]) -> Counter[str]:
    return sum((count for kind, count in counts.items() if belongs(kind)), Counter())


def print_row(kind: str, count: Counter[str]) -> None:
    right, every = count["right"] + count["exact"], count.total()
    share = f"{right / max(every, 1):>8.0%}"
    print(f"{kind:<14}{every:>5}{right:>7}{count['exact']:>7}{count['wrong']:>7}{count['declined']:>10}{share}")


def write_replies(path: Path, replies: list[tuple[Question, Reply]]) -> None:
    rows: list[dict[str, Any]] = [
        {"id": question.id, "verdict": judge(question, reply), "file": reply.file, "answer": reply.text}
        for question, reply in replies
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
