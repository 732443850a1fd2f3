"""Unlabelled text → training pairs: what a document says of itself, turned into queries and their answers.

Most users have documents and no questions. A title asks for its body; a sentence asks for the passage it was taken out
of (the inverse cloze task of Lee, Chang and Toutanova, arXiv 1906.00300, section 5); passages that stand side by side
are about the same thing. None of these is a real question, so they teach words and topics, not how people ask. Costs
microseconds a pair, and the memory of one document.
"""

import hashlib
import random
import re
import struct
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from peg_rag.errors import InvalidInput
from peg_rag.texts import replace_unencodable

Kind = Literal["title", "sentence", "neighbour"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PASSAGE_CHARACTERS = 400
SHORTEST_QUERY = 8  # characters of a sentence, or a title, that makes a query
LONGEST_QUERY = 64
SHORTEST_PASSAGE = 16  # characters left of a passage, below which it answers nothing
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\ufeff]")
_SPACE = re.compile(r"\s+")
_NOT_WORD = re.compile(r"[\W_]+")
_SENTENCE = re.compile(r"[^。！？!?；;\n]*(?:[。！？!?；;]+[”’」』）)\"]*|\n|$)")


@dataclass(frozen=True, slots=True)
class TextDocument:
    """One document: its title, or "", and its passages in their order."""

    title: str
    passages: Sequence[str]

    @classmethod
    def of(cls, text: str, title: str = "", characters: int = PASSAGE_CHARACTERS) -> "TextDocument":
        """Cut a text at ends of sentences into passages of at most this many characters (a longer sentence stays)."""
        passages = []
        passage = ""
        for sentence in sentences(text):
            if passage and len(passage) + len(sentence) > characters:
                passages.append(passage)
                passage = ""
            passage += sentence
        return cls(title.strip(), [*passages, passage] if passage else passages)


@dataclass(frozen=True, slots=True)
class TextPair:
    """A query and the passage that answers it, and how they were made; `judged`: by people."""

    query: str
    positive: str
    kind: Kind | Literal["judged"]


def pairs_from(
    documents: Iterable[TextDocument], kinds: Sequence[Kind] = KINDS, *, seed: int = 0
) -> Iterator[TextPair]:
    """The pairs of every document, in order; the same documents and seed always give the same pairs.

    Each document gives at most one pair of its title, one sentence of each passage, and one pair of neighbours.

    Raises:
        InvalidInput: an unknown kind.
    """
    if unknown := set(kinds) - set(KINDS):
        raise InvalidInput(f"kinds of pairs {sorted(unknown)} are unknown; {', '.join(KINDS)} are expected")
    draw = random.Random(seed)
    return (pair for document in documents for kind in kinds for pair in _MAKERS[kind](document, draw))


def sentences(text: str) -> list[str]:
    """The sentences of a text with their marks, joined again the text without white space around sentences."""
    stripped = (sentence.strip() for sentence in _SENTENCE.findall(text))
    return [sentence for sentence in stripped if sentence]


def _pair_title(document: TextDocument, draw: random.Random) -> Iterator[TextPair]:
    """The title asks for the document's beginning, with the title itself taken out where the text repeats it."""
    if not document.passages or not 2 <= len(document.title) <= LONGEST_QUERY:
        return
    body = document.passages[0].removeprefix(document.title).lstrip("。：: \n")
    if len(body) >= SHORTEST_PASSAGE:
        yield TextPair(document.title, body, "title")


def _pair_sentence(document: TextDocument, draw: random.Random) -> Iterator[TextPair]:
    """A sentence of each passage asks for the rest of it."""
    for passage in document.passages:
        parts = sentences(passage)
        fitting = [i for i, part in enumerate(parts) if SHORTEST_QUERY <= len(part) <= LONGEST_QUERY]
        if not fitting:
            continue
        number = draw.choice(fitting)
        passage_less_one = "".join(parts[:number] + parts[number + 1 :])
        if len(passage_less_one) >= SHORTEST_PASSAGE:
            yield TextPair(parts[number].rstrip("。；;"), passage_less_one, "sentence")


def _pair_neighbour(document: TextDocument, draw: random.Random) -> Iterator[TextPair]:
    """One passage, where a document has several, asks for the next, by its last sentence."""
    if len(document.passages) < 2:
        return
    place = draw.randrange(len(document.passages) - 1)
    last = sentences(document.passages[place])[-1]
    following = document.passages[place + 1]
    if SHORTEST_QUERY <= len(last) <= LONGEST_QUERY and len(following) >= SHORTEST_PASSAGE:
        yield TextPair(last.rstrip("。；;"), following, "neighbour")


_MAKERS: dict[Kind, Callable[[TextDocument, random.Random], Iterator[TextPair]]] = {
    "title": _pair_title,
    "sentence": _pair_sentence,
    "neighbour": _pair_neighbour,
}


def clean_text(text: str) -> str:
    """NFC, control characters removed, white space collapsed: the only changes made to a training text."""
    text = replace_unencodable(text)
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return _SPACE.sub(" ", _CONTROL.sub("", text)).strip()


def text_key(text: str) -> int:
    """64 bits that are equal for texts alike but for case, width, spaces and punctuation.

    Repeated pairs, the validation split, batches without repeats and the false-negative mask all go by it. Among a
    hundred million texts, the chance that any two share a key by accident is one in 3,700.
    """
    letters = _NOT_WORD.sub("", text).casefold() or text
    if not unicodedata.is_normalized("NFKC", letters):  # without its punctuation, Chinese text mostly is: much faster
        key = unicodedata.normalize("NFKC", letters).casefold()
        letters = _NOT_WORD.sub("", key) or key
    digest = hashlib.blake2b(letters.encode("utf-8", "replace"), digest_size=8).digest()
    return int(struct.unpack("<q", digest)[0])
