"""Words that exclude one another: 会员 and 非会员, 旺季 and 淡季, 上行 and 下行, 男 and 女.

Why this exists: opposites keep the same company, so that word vectors take them for like words, and 非会员价 contains
会员价. A column or a row that says the opposite of what the question says is the wrong one, however much else fits.
The groups were written by hand (`assets/opposites.txt`).
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

from peg_rag.answering.words import fold_text

_NOT = r"(?:不是|不算|没有|没办|没|非|未|无|不含|不|免)"
_DENIED = re.compile(r"(?:(?<!在)不在|(?<!住)不住在?|不属于)$")
_NEGATED_NAME = re.compile(r"(?:非|未|无|不含|不)([\u3400-\u9fff]{2,4})")
_LACKING_NAME = re.compile(r"(?:没有|没|不带)([\u3400-\u9fff]{2,4})")
# What a thing is denied to have or to be: 没电梯的楼; 没带身份证怎么登机 is answered by 身份证原件.
_DENIED_NAME = re.compile(
    r"(?<![有是能可会要行淹沉并除莫])(?:没有|没|不是|不带|不含)(?![有问人什多收几完过])"
    r"(?P<name>[\u3400-\u9fff]{2,4}?)的(?![怎多几吗？?]|$)"
)
_LACKS_BEFORE = r"(?:缺|忘|漏|丢|暂无|尚未|未[\u3400-\u9fff]{0,4})"
_LACKS_AFTER = r"(?:遗失|丢失|不限|不足|[:：]?(?:无|不含|没有|0))"


@dataclass(frozen=True, slots=True)
class Opposition:
    """How a text stands to a question: groups in which both say the same, and in which they exclude one another."""

    agreements: int
    conflicts: int


@lru_cache(maxsize=32768)
def compare_opposites(question: str, text: str) -> Opposition:
    """Compare two folded texts."""
    agreements = 0
    conflicts = 0
    asked_members = _find_asked_members(question)
    for group, members in _find_members(text).items() if asked_members else ():
        asked = asked_members.get(group)
        if asked:
            agreements += bool(asked & members)
            conflicts += not asked & members
    for match in _NEGATED_NAME.finditer(text):
        if name := _find_beginning(match[1], question):
            is_negated = re.search(_NOT + re.escape(name), question) is not None
            agreements += is_negated
            conflicts += not is_negated
    for match in _LACKING_NAME.finditer(text):
        name = _find_beginning(match[1], question)
        agreements += bool(name) and re.search(_NOT + re.escape(name), question) is not None
    conflicts += sum(_affirms(text, name) for name in _find_denied_names(question))
    return Opposition(agreements, conflicts)


def _find_beginning(name: str, text: str) -> str:
    """The longest beginning of a name, of two characters or more, that a text has; empty if it has none."""
    return next((name[:length] for length in (4, 3, 2) if len(name) >= length and name[:length] in text), "")


@lru_cache(maxsize=1024)
def _find_denied_names(question: str) -> tuple[str, ...]:
    """What a thing is denied to have or to be: 电梯 in 没电梯的楼."""
    return tuple(match["name"] for match in _DENIED_NAME.finditer(question))


def _affirms(text: str, denied: str) -> bool:
    """Whether a text says what is denied, and does not deny it itself."""
    name = re.escape(denied)
    denying = rf"(?:{_NOT}(?:装|带|办)?|{_LACKS_BEFORE}){name}|{name}{_LACKS_AFTER}"
    return denied in text and re.search(denying, text) is None


@lru_cache(maxsize=1024)
def _find_asked_members(question: str) -> dict[int, frozenset[int]]:
    """As `_find_members`; a place that the question denies each time stands for its opposite, if it has exactly one:
    不在本市 is 外地."""
    members = _find_members(question)
    words = list(_compile_words().finditer(question))
    affirmed = {group for word in words if not _is_denied(question, word) for group, _ in _read_groups()[word[0]]}
    denied = {place for word in words if _is_denied(question, word) for place in _read_groups()[word[0]]}
    for group, member in denied:
        if group not in affirmed and members[group] == {member} and _count_members(group) == 2:
            members = members | {group: frozenset({1 - member})}
    return members


def _is_denied(question: str, word: re.Match[str]) -> bool:
    return _DENIED.search(question[: word.start()]) is not None


@cache
def _count_members(group: int) -> int:
    return 1 + max(member for places in _read_groups().values() for own, member in places if own == group)


@lru_cache(maxsize=16384)
def _find_members(text: str) -> dict[int, frozenset[int]]:
    """The groups that a folded text speaks of, each with those of its members that it says; the longest word counts."""
    groups: dict[int, set[int]] = {}
    for match in _compile_words().finditer(text):
        for group, member in _read_groups()[match[0]]:
            groups.setdefault(group, set()).add(member)
    return {group: frozenset(members) for group, members in groups.items()}


@cache
def _compile_words() -> re.Pattern[str]:
    return re.compile("|".join(sorted(map(re.escape, _read_groups()), key=len, reverse=True)))


@cache
def _read_groups() -> dict[str, tuple[tuple[int, int], ...]]:
    """Each word with the groups that it is of and its member there: `word word | word | word`, a group a line."""
    words: dict[str, list[tuple[int, int]]] = {}
    text = (files("peg_rag") / "assets" / "opposites.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for group, line in enumerate(lines):
        for member, side in enumerate(line.split("|")):
            for word in side.split():
                words.setdefault(fold_text(word), []).append((group, member))
    return {word: tuple(places) for word, places in words.items()}
