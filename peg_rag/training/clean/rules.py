"""What is wrong with a pair by its texts alone: lengths, language, boilerplate, leftovers of markup."""

import re
from collections import Counter
from dataclasses import dataclass

from peg_rag.errors import InvalidInput
from peg_rag.training.data.texts import text_key

_CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LETTER = re.compile(r"[^\W\d_]")
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]{0,200}>|&(?:nbsp|amp|lt|gt|quot);|\ufffd")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+")


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """Limits on a pair's texts.

    Attributes:
        query_characters, positive_characters: the least and the most that a text may have.
        minimum_chinese: least share of a pair's letters that are Chinese; 0 for any language.
        maximum_markup: most characters of tags, entities and broken characters in a hundred of the positive.
        maximum_uses: a positive that answers more different queries than this is boilerplate; None allows any.
        maximum_repetition: most that one run of eight characters may make up of a text of 64 or more, as a share.
    """

    query_characters: tuple[int, int] = (2, 512)
    positive_characters: tuple[int, int] = (2, 20_000)
    minimum_chinese: float = 0.0
    maximum_markup: float = 10.0
    maximum_uses: int | None = 100
    maximum_repetition: float = 0.3

    def __post_init__(self) -> None:
        for name in ("query_characters", "positive_characters"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise InvalidInput(f"{name}=({least}, {most}) is no range; 1 <= least <= most is expected")
        if not 0 <= self.minimum_chinese <= 1:
            raise InvalidInput(f"minimum_chinese={self.minimum_chinese} is a share and must lie between 0 and 1")


def find_fault(query: str, positive: str, uses: int, options: RuleOptions) -> str | None:
    """The first rule that a pair breaks; None where it keeps them all. `uses`: queries that the positive answers."""
    for name, text, (least, most) in (
        ("query", query, options.query_characters),
        ("positive", positive, options.positive_characters),
    ):
        if len(text) < least:
            return f"{name} too short"
        if len(text) > most:
            return f"{name} too long"
    if _ADDRESS.sub("", query).strip() == "":
        return "query is an address"
    if chinese_share(query + positive) < options.minimum_chinese:
        return "not Chinese"
    if 100 * sum(map(len, _MARKUP.findall(positive))) > options.maximum_markup * len(positive):
        return "markup"
    if max(repetition(query), repetition(positive)) > options.maximum_repetition:
        return "repetition"
    if options.maximum_uses is not None and uses > options.maximum_uses:
        return "boilerplate"
    return None


def chinese_share(text: str) -> float:
    """The share of a text's letters that are Chinese characters; 1 for a text without letters."""
    letters = len(_LETTER.findall(text))
    return len(_CHINESE.findall(text)) / letters if letters else 1.0


def repetition(text: str) -> float:
    """The share of a text that its most frequent run of eight characters makes up; 0 for a text below 64."""
    if len(text) < 64:
        return 0.0
    counts = Counter(text[start : start + 8] for start in range(len(text) - 7))
    (_, most), *_ = counts.most_common(1)
    return min(1.0, 8 * most / len(text)) if most > 1 else 0.0


def count_uses(pairs: "list[tuple[str, str]]") -> dict[int, int]:
    """How many different queries each positive answers, by the key of its text."""
    different = {(text_key(query), text_key(positive)) for query, positive in pairs}
    return Counter(positive for _, positive in different)
