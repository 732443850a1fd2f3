"""Documents, mostly without questions → pairs to train on, and a held-out search task to judge by.

Whoever adapts a model to a folder of documents has no judged queries, so both the lesson and the exam are cut out of
the text itself. The exam's documents are set aside whole, before anything is cut, and a text of theirs that stands in
another document too is taken out of the lesson. Questions that people judged, where there are any, go with their
passages: to the lesson, or to the exam. Costs the reading (a second for the converters of PDF, Word and HTML
files, then some milliseconds a page) and the memory of the texts.
"""

import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from peg_rag.errors import DataError
from peg_rag.evaluation import RetrievalDataset, load_beir
from peg_rag.ingest import find_files
from peg_rag.reader_process import ReaderProcess
from peg_rag.readers import Section
from peg_rag.readers.kinds import SUFFIXES
from peg_rag.training.data.files import read_lines
from peg_rag.training.data.texts import (
    LONGEST_QUERY,
    SHORTEST_QUERY,
    Kind,
    TextDocument,
    TextPair,
    pairs_from,
    sentences,
    text_key,
)

logger = logging.getLogger(__name__)

LINES = (".txt", ".txt.gz", ".txt.zst")  # a file of passages, one a line
JUDGEMENTS = "qrels/test.tsv"  # of a folder in BEIR's form
FEWEST_PAIRS = 100  # to train on
FEWEST_QUERIES = 20  # of each exam
MOST_QUERIES = 500
DISTRACTORS = 2_000  # passages of the training documents among which a held-out one is to be found
FEWEST_DOCUMENTS = 20  # below which parts of documents are held out, not whole ones
PART_PASSAGES = 4
HELD_DOCUMENTS = 60  # set aside at least, or a quarter of all where that is less
DRAWS = 2  # sentences that are taken out of a passage, one at a time
MOST_DRAWS = 8  # where people asked as many questions of one passage


@dataclass
class Documents:
    """What was read: each document's sections, the files that could not be read, and questions that people judged."""

    documents: list[list[TextDocument]] = field(default_factory=list)
    files: int = 0
    failed: list[str] = field(default_factory=list)
    judged: list[TextPair] = field(default_factory=list)


@dataclass(frozen=True)
class Exam:
    """A held-out half as a search task, and how many documents it was cut from."""

    task: RetrievalDataset
    documents: int


@dataclass(frozen=True)
class Lesson:
    """What the other documents teach.

    Attributes:
        pairs: by name, such as `title` or `sentence-0`. No passage stands twice in one of them: a passage less one
            sentence and the same less another are no negatives of each other, and must not meet in a batch.
        passages: what negatives are mined from.
        documents: they were cut from.
    """

    pairs: dict[str, list[TextPair]]
    passages: list[str]
    documents: int

    def __len__(self) -> int:
        return sum(map(len, self.pairs.values()))


def read_documents(path: Path, *, leave_out: Sequence[Path] = ()) -> Documents:
    """Read a folder of files, one such file, or a .txt, .txt.gz or .txt.zst of one passage a line.

    A row of a CSV or JSONL file is a document, any other file is one. Files that cannot be read are left out and named.
    Of a folder in BEIR's form, such as `peg-rag feedback export` writes, the corpus and the judgements are read.

    Args:
        leave_out: folders within the folder that are not read; absolute.

    Raises:
        InvalidInput: there is no such file or folder.
        DataError: nothing in it can be read.
    """
    if path.is_file() and path.name.lower().endswith(LINES):
        documents = Documents([[TextDocument.of(line)] for line in read_lines(path)], files=1)
        ignored = 0
    elif (path / JUDGEMENTS).is_file():
        documents = _read_judged(path)
        ignored = 0
    else:
        files, ignored = find_files(path)
        inside = [file for file in files.values() if not any(file.is_relative_to(place) for place in leave_out)]
        documents = _read_files(inside)
    if not documents.documents:
        first = f"; the first error: {documents.failed[0]}" if documents.failed else ""
        raise DataError(
            f"{path} holds no text: {documents.files} files of the kinds that are read ({', '.join(SUFFIXES)}) and "
            f"{ignored} of others{first}"
        )
    return documents


def split(
    documents: Sequence[Sequence[TextDocument]], share: float, seed: int, judged: Sequence[TextPair] = ()
) -> tuple[Lesson, Exam, Exam]:
    """Set a share of the documents aside whole and cut both parts: the lesson, an exam to choose on, one to report.

    A passage that stands in several places is kept in the first: it cannot be held out and taught at once, and a copy
    of the right answer would be counted as a wrong one.

    Args:
        judged: questions and the passages that people found relevant. They take the place of what would be cut out of
            these passages. A question with passages on both sides is taught.

    Raises:
        DataError: too little text.
    """
    documents = _drop_repeats(documents)
    if len(documents) < FEWEST_DOCUMENTS:
        documents = [[part] for document in documents for section in document for part in _cut_section(section)]
    shuffled = random.Random(seed).sample(list(documents), len(documents))
    count = max(round(share * len(documents)), min(HELD_DOCUMENTS, len(documents) // 4))  # held out
    halves = (shuffled[:count:2], shuffled[1:count:2])
    teaching = shuffled[count:]
    lesson_pairs, *exam_pairs = _deal_judged(judged, (teaching, *halves))
    exams = _drop_ambiguous(
        [
            _make_exam(list(chain.from_iterable(half)), seed, pairs)
            for half, pairs in zip(halves, exam_pairs, strict=True)
        ],
        documents,
    )
    unseen = {text_key(text) for exam in exams for pair in exam for text in (pair.query, pair.positive)}
    lesson = _make_lesson(list(chain.from_iterable(teaching)), unseen, len(teaching), seed, lesson_pairs)
    _check_enough(lesson, exams, len(documents))
    corpus = dict.fromkeys([*(pair.positive for exam in exams for pair in exam), *lesson.passages[:DISTRACTORS]])
    ids = {text: f"d{number}" for number, text in enumerate(corpus)}
    choosing, reporting = (
        Exam(_make_task(exam, ids, seed), len(half)) for exam, half in zip(exams, halves, strict=True)
    )
    return lesson, choosing, reporting


def _read_judged(folder: Path) -> Documents:
    """A BEIR folder: each text of the corpus is a document of one passage, which its judgements name as it stands."""
    dataset = load_beir(folder)
    documents = {name: TextDocument.of(text, characters=len(text) + 1) for name, text in dataset.corpus.items()}
    judged = [
        TextPair(dataset.queries[query], documents[name].passages[0], "judged")
        for query, grades in dataset.qrels.items()
        for name, grade in grades.items()
        if grade > 0 and name in documents and documents[name].passages
    ]
    return Documents([[document] for document in documents.values()], files=1, judged=judged)


def _read_files(files: Sequence[Path]) -> Documents:
    documents = Documents(files=len(files))
    with ReaderProcess() as reader:
        for file in files:
            try:
                documents.documents += _group_sections(reader.read(file))
            except DataError as error:
                logger.warning("left out: %s", error)
                documents.failed.append(str(error))
    return documents


def _group_sections(sections: Iterable[Section]) -> Iterator[list[TextDocument]]:
    """Rows one by one; everything else of a file together."""
    together: list[TextDocument] = []
    for section in sections:
        document = TextDocument.of(section.text, section.title.replace(" > ", " "))
        if section.row is not None:
            yield [document]
        else:
            together.append(document)
    if together:
        yield together


def _drop_repeats(documents: Sequence[Sequence[TextDocument]]) -> list[list[TextDocument]]:
    """Every passage once; documents that have none left are dropped."""
    keys: set[int] = set()
    distinct = []
    for document in documents:
        sections = [TextDocument(section.title, _new_passages(section, keys)) for section in document]
        sections = [section for section in sections if section.passages]
        if sections:
            distinct.append(sections)
    return distinct


def _new_passages(section: TextDocument, keys: set[int]) -> list[str]:
    """The passages whose keys are not among `keys`, to which they are added."""
    passages = []
    for passage in section.passages:
        key = text_key(passage)
        if key not in keys:
            keys.add(key)
            passages.append(passage)
    return passages


def _cut_section(section: TextDocument) -> Iterator[TextDocument]:
    for start in range(0, len(section.passages), PART_PASSAGES):
        yield TextDocument(section.title if start == 0 else "", section.passages[start : start + PART_PASSAGES])


def _add_title(section: TextDocument) -> TextDocument:
    """A section without a title, with its first sentence in its place: what comes first says what it is about."""
    if section.title or not section.passages:
        return section
    first = next(iter(sentences(section.passages[0])), "").rstrip("。；;")
    return TextDocument(first, section.passages) if SHORTEST_QUERY <= len(first) <= LONGEST_QUERY else section


def _deal_judged(judged: Sequence[TextPair], parts: Sequence[Sequence[Sequence[TextDocument]]]) -> list[list[TextPair]]:
    """The judged pairs of each part; a question goes to the first part that holds one of its passages."""
    places = {
        text_key(passage): number
        for number, part in enumerate(parts)
        for document in part
        for section in document
        for passage in section.passages
    }
    by_question: dict[int, list[TextPair]] = {}
    for pair in judged:
        if text_key(pair.positive) in places:
            by_question.setdefault(text_key(pair.query), []).append(pair)
    dealt: list[list[TextPair]] = [[] for _ in parts]
    for pairs in by_question.values():
        numbers = [places[text_key(pair.positive)] for pair in pairs]
        first = min(numbers)
        dealt[first] += [pair for pair, number in zip(pairs, numbers, strict=True) if number == first]
    return dealt


def _drop_passages(sections: Iterable[TextDocument], pairs: Sequence[TextPair]) -> list[TextDocument]:
    """The sections less the passages of these pairs, and less sections that are then empty."""
    keys = {text_key(pair.positive) for pair in pairs}
    if not keys:
        return list(sections)
    shorter = [TextDocument(s.title, [p for p in s.passages if text_key(p) not in keys]) for s in sections]
    return [section for section in shorter if section.passages]


def _make_exam(sections: Sequence[TextDocument], seed: int, judged: Sequence[TextPair]) -> list[TextPair]:
    """One pair of each passage: two of one passage would be taken for each other."""
    pairs = list({text_key(pair.query): pair for pair in judged}.values())  # one passage of each question
    for section in map(_add_title, _drop_passages(sections, judged)):
        titles = list(pairs_from([section], ["title"]))
        passages = section.passages[1:] if titles else section.passages
        pairs += [*titles, *pairs_from([TextDocument("", passages)], ["sentence"], seed=seed)]
    return pairs


def _drop_ambiguous(
    exams: Sequence[Sequence[TextPair]], documents: Sequence[Sequence[TextDocument]]
) -> list[list[TextPair]]:
    """The pairs less those whose query stands in several passages, as in versions of one text: each would answer it."""
    places = Counter({text_key(pair.query): 0 for exam in exams for pair in exam})
    for passage in (passage for document in documents for section in document for passage in section.passages):
        places.update({text_key(sentence) for sentence in sentences(passage)} & places.keys())
    return [[pair for pair in exam if places[text_key(pair.query)] <= 1] for exam in exams]


def _make_lesson(
    sections: Sequence[TextDocument], unseen: set[int], documents: int, seed: int, judged: Sequence[TextPair]
) -> Lesson:
    pairs_by_passage: dict[str, list[TextPair]] = {}
    for pair in judged:
        pairs_by_passage.setdefault(pair.positive, []).append(pair)
    unjudged = _drop_passages(sections, judged)

    def cut(kind: Kind, draw: int) -> list[TextPair]:
        source = unjudged if kind == "sentence" else sections
        pairs = list(pairs_from(map(_add_title, source), [kind], seed=seed + draw))
        if kind == "sentence":
            pairs += [questions[draw % len(questions)] for questions in pairs_by_passage.values()]
        return [p for p in dict.fromkeys(pairs) if not {text_key(p.query), text_key(p.positive)} & unseen]

    draws = max(DRAWS, min(MOST_DRAWS, max(map(len, pairs_by_passage.values()), default=0)))
    pairs = {"title": cut("title", 0), "neighbour": cut("neighbour", 0)}
    pairs |= {f"sentence-{draw}": cut("sentence", draw) for draw in range(draws)}
    passages = [passage for section in sections for passage in section.passages]
    filled = {name: cut_pairs for name, cut_pairs in pairs.items() if cut_pairs}
    return Lesson(filled, passages, documents)


def _check_enough(lesson: Lesson, exams: Sequence[Sequence[TextPair]], documents: int) -> None:
    queries = min(map(len, exams))
    if len(lesson) < FEWEST_PAIRS or queries < FEWEST_QUERIES:
        raise DataError(
            f"too little text: {documents} documents give {len(lesson)} pairs to train on and {queries} held-out "
            f"queries; at least {FEWEST_PAIRS} and {FEWEST_QUERIES} are needed. Add documents"
        )


def _make_task(pairs: Sequence[TextPair], ids: dict[str, str], seed: int) -> RetrievalDataset:
    sample = random.Random(seed).sample(list(pairs), min(len(pairs), MOST_QUERIES))
    queries = {f"q{number}": pair.query for number, pair in enumerate(sample)}
    qrels = {f"q{number}": {ids[pair.positive]: 1} for number, pair in enumerate(sample)}
    return RetrievalDataset("held-out", {name: text for text, name in ids.items()}, queries, qrels)
