"""What a question asks for: its words, its years and quantities, and the kind of its answer.

Why this exists: 多久 asks for a duration, 谁 for a person, and neither word stands in the sentence that answers. What
must stand there are the words about the subject, above all codes and years: HC200B is not HC200A.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from peg_rag.answering.quantities import Quantity, quantities_in, without_each
from peg_rag.answering.thesaurus import Phrase, find_phrases
from peg_rag.answering.words import HAN, STOP_WORDS, Word, fold_text, words_of

_RUNS = re.compile(rf"[{HAN}]+")
_SILENT = re.compile("[的了是有在和与吧啊吗呢么嘛我你他她它们请问这那个要能可以会给到把被让]+")
_YEAR = re.compile(r"(?<!\d)(20\d\d|19\d\d)(?!\d)")
_SHORT_YEAR = re.compile(r"(?<![\d龄满])(2\d|3\d)年(?=[第\d版那的度]|[春夏秋冬]|[上下]半|(?:[一二三四]|\d)季)")
# No figure is meant: 一个, 一天.
_ASKING_WORD = re.compile("[几哪多怎]|1[个次天笔晚平年份位种件只]$")
_ASKING_PHRASE = re.compile(
    rf"多少(?:钱|个)?(?:[元块天年月次位名张台本道倍层])?|几(?:个)?(?:[{HAN}])|哪一?[个天里儿家款位层年号些]|什么(?:时候|意思|地方|样的)?|"
    r"多(?:久|长时间|长|大|远|高|重)|怎么(?:办|样|做|弄|收费|收|处理|算)?|如何|百分之几|为什么|是谁的?|叫什么|请问|麻烦问?一?下|"
    r"想?问一?下|帮我查一?下|来着|能不能|可不可以|可以吗|是不是|有没有|行不行|要不要"
)
_ASKED_UNIT = re.compile(r"(?:几|多少)个?([个天年月日周次台张本册名位件只套盘道份页条家间层节门人元美米倍万分级度])")
_ASKED_NOUN = re.compile(
    rf"(?:哪一?[个家种款路条类门间所位届些]?|什么(?!时候|意思|地方)|多少|几个?|何种)([{HAN}]{{1,5}})"
)
_ELDER = r"爸|妈|爷|奶|外公|外婆|姥姥|姥爷|舅|姑|伯|叔|婶|老人|老头|老伴|老太太?|老爷子|大爷|大妈|父亲|母亲"
# 我爸61, 娃今年6; no money that one gets, and no 11, which is a holiday.
_AGE = re.compile(
    rf"(?<![给转请发借送赔][我他她您])(?<![给转请发借送赔])(?:(?:{_ELDER}|孩子|娃|儿子|女儿|闺女|[他她我])(?:今年|虚岁|周岁)"
    rf"(?:才|都|刚|快|已经|满)?(?!11)\d{{1,2}}|(?:{_ELDER})(?:才|都|刚|快|已经|满)?[4-9]\d)"
    r"(?!\d)(?=多?了|[，。,？?！!]|[能可怎办要]|$)"
)
_AFTER_NOUN = re.compile("[的是了被把才]|在(?!职|编)|有(?!效)|给(?!水)|能(?!源)|会(?!议|员|计|所)|要(?!害|求)|可(?!乐)")
# The kinds of answer, by what asks for them, the most telling first.
_KINDS = {
    "reason": r"为了?什么|为何|什么(?:原因|缘故)|怎么回事|怎么?[^，。]{0,8}[这那]么|why",
    "money": r"多少钱|什么价|多少元|多少块|多少万|多少美元|几[元毛角]|"
    r"几块(?=钱|一|每|了|呢|啊|[，。？?！!]|$)|几钱(?=一|[，。？?！!]|$)|"
    r"价格|价钱|怎么(?:收|算钱|卖)|收费标准|单价|"
    r"[报罚收花付补贴赔](?:了|给|我|他|她)?多少(?!人)|罚款|"
    r"(?:奖金|工资|底薪|月薪|租金|房租|补贴|补助|津贴|费用|押金|保证金|成本|收入|利润|奖学金|上限|额度|违约金|[^话]费)"
    r"[^，。]{0,6}(?:多少|几)(?![号月天次个人份期])|"
    r"最多[报借]|how much",
    "percent": r"百分之几|百分之多少|比例|占比|[几多少]成|率是?多少|percent",
    "duration": r"多久|多长时间|(?:几|多少)个?(?:年|月|天|周|星期|小时|分钟|工作日|学期)|周期|期限|时长|how long",
    "date": r"什么时候|何时|哪一?[天年日]|(?<!打)几[号月]|日期|哪个月|when",
    "time": r"几点|什么时间|营业时间|开放时间|what time",
    "person": r"谁|哪一?[位个]?(?:师傅|老师|教师|医生|大夫|教练|司机|同事|领导|经理|主管|律师|导游|讲师|负责人)|"
    r"哪一?[位个]?人(?![数员])|哪位|叫什么|何人|什么人|负责人|who",
    "phone": r"(?<![台部打回次])(?:电话|手机号?|分机号?|热线|号码)(?:号码?)?(?:是?多少|是?几[号位]?|是?什么|[呢？?]|$)|"
    r"(?:什么|哪个)(?:电话|手机|号码?|分机)|打几号|打(?:什么|哪个?)|联系方式|phone",
    "place": r"哪里|哪儿|[在到去上]哪(?!一?[天个些年月家位种款])|地址|位置|几楼|几层|哪一?层|"
    r"哪个(?:城市|地方|楼|库位|教室|车间)|什么地方|where",
    "code": r"编号|订货号|编码|代码|型号|账号|单号|哪款",
    "size": r"多大|多重|多沉|多高|多宽|多远|多深|多厚|多粗|尺寸|重量|容量|功率|温度|"
    r"(?:多少|几)(?:度|米|克|升|斤|公斤|兆)",
    "count": r"多少(?!钱)|几[^点号]|how many",
    "how": r"怎么(?![收样]|算钱|卖|回事)|如何|怎样|流程|步骤|顺序|次序|做法|how (?:do|can|to|should)",
    "rule": r"要求|条件|限制|注意什么|注意事项|规定|有什么讲究",
    "list": r"哪些|哪几|有什么?|[带交要拿穿戴备](?:些|点|上)?什么|注意些?什么|什么材料|都有谁|包括|包含|清单",
    "name": r"哪(?:家|款|种|路|条|只|所|间|一?个(?!月|地方|城市|楼|库位|教室|车间|部门))|叫什么|"
    r"什么(?:牌子|型号|品种|公司)",
    "meaning": r"什么意思|什么毛病|含义|代表什么|表示什么|什么是|什么故障",
    "polar": r"[吗不][？?]?$|([\u3400-\u9fff])[不没]\1|能不能|可不可以|是否|是不是|会不会|要不要|有没有|"
    r"^(?:is|are|does|do|can|will)\b",
}
KINDS = tuple(_KINDS)
_COLLOQUIAL = str.maketrans({"啥": "什么", "咋": "怎么"})
_MEASURES = frozenset({"money", "percent", "duration", "size", "phone", "code", "date", "time"})
_COMPILED_KINDS = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}


@dataclass(frozen=True, slots=True, eq=False)  # by identity: caches are keyed by it, and its parts take long to hash
class Question:
    """A question as it is matched.

    Attributes:
        typed: as it was typed.
        terms: that the file has for what it says, as they are written, if it was restated (see `terms.py`).
        asked: as it was typed, folded (see `fold_text`).
        text: the same, with the terms.
        words: about its subject, without those that only ask.
        pairs: of characters that stand together in what does not only ask; a word cut wrongly is still known by them.
        kinds: of the answer that is asked for; empty where nothing says.
        noun: what 哪个, 什么 or 多少 asks for, as 等级 in 什么等级 and 班 in 哪个班的; empty if nothing follows.
        unit: what is counted (天 in 几天), if anything.
        years: calendar years that are named.
        quantities: numbers that may lie within a range.
        phrases: that the thesaurus knows other words for.
        expanded: `text` and the other words for its phrases.
    """

    typed: str
    terms: tuple[str, ...]
    asked: str
    text: str
    words: tuple[Word, ...]
    pairs: tuple[str, ...]
    kinds: tuple[str, ...]
    noun: str
    unit: str
    years: frozenset[str]
    quantities: tuple[Quantity, ...]
    phrases: tuple[Phrase, ...]
    expanded: str


@lru_cache(maxsize=256)
def parse_question(text: str) -> Question:
    """Read a question."""
    plain = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).lower()).strip()
    folded = _name_age(fold_text(_SHORT_YEAR.sub(r"20\1年", plain)))
    subject = fold_text(_without_asking(_SHORT_YEAR.sub(r"20\1年", plain)))
    unit = _ASKED_UNIT.search(plain)
    years = frozenset(_YEAR.findall(folded))
    phrases = find_phrases(folded)
    return Question(
        text,
        (),
        folded,
        folded,
        tuple(_subject_words(subject, phrases)),
        character_pairs(subject),
        _find_kinds(plain),
        _asked_noun(folded),
        unit[1] if unit else "",
        years,
        tuple(q for q in quantities_of(_name_age(fold_text(without_each(plain)))) if q.text[:4] not in years),
        phrases,
        "\n".join([folded, *(synonym for phrase in phrases for synonym in phrase.synonyms)]),
    )


def _name_age(folded: str) -> str:
    """With the unit that goes without saying: 我爸今年61 is 61岁."""
    return _AGE.sub(r"\g<0>岁", folded)


@dataclass(frozen=True, slots=True)
class Term:
    """A name that a file uses, as it is matched: see `Question` for its parts."""

    text: str
    words: tuple[Word, ...]
    pairs: tuple[str, ...]


@lru_cache(maxsize=4096)
def parse_term(text: str) -> Term:
    folded = fold_text(text)
    return Term(folded, tuple(_subject_words(folded, ())), character_pairs(folded))


def character_pairs(folded: str) -> tuple[str, ...]:
    """Chinese characters that stand together, each pair once; pairs of characters that say nothing are left out."""
    runs = [run for piece in _SILENT.split(folded) for run in _RUNS.findall(piece)]
    return tuple(dict.fromkeys(run[i : i + 2] for run in runs for i in range(len(run) - 1)))


def _find_kinds(question: str) -> tuple[str, ...]:
    """The kinds of answer that are asked for; 多少 alone asks for a number, 多少钱 for money."""
    question = question.translate(_COLLOQUIAL)
    kinds = [kind for kind, pattern in _COMPILED_KINDS.items() if pattern.search(question)]
    if "count" in kinds and _MEASURES & set(kinds):
        kinds.remove("count")
    if "name" in kinds and {"person", "place", "date"} & set(kinds):
        kinds.remove("name")
    return tuple(kinds)


def _asked_noun(folded: str) -> str:
    noun = _ASKED_NOUN.search(folded)
    named = _AFTER_NOUN.split(noun[1])[0] if noun else ""
    return "" if named == "个" else named


def _without_asking(question: str) -> str:
    """The question without the words that only ask, so that 哪一层 does not ask for the word 层.

    A comma keeps what stood around them apart: 最晚什么时候报 says nothing of a 晚报.
    """
    return _ASKING_PHRASE.sub("，", question)


def quantities_of(folded: str) -> list[Quantity]:
    """The numbers of a folded text that are no part of a code."""
    return [quantity for quantity in quantities_in(folded) if not quantity.prefix]


def _subject_words(folded: str, phrases: Sequence[Phrase]) -> Iterator[Word]:
    texts = set()
    for word in words_of(folded):
        is_asking = word.text in STOP_WORDS or _ASKING_WORD.match(word.text)
        if not is_asking and word.weight > 0 and word.text not in texts:
            texts.add(word.text)
            yield replace(word, synonyms=(*word.synonyms, *_find_synonyms(word.text, phrases)))


def _find_synonyms(word: str, phrases: Sequence[Phrase]) -> tuple[str, ...]:
    """The other words for the phrases that a word is a part of; single characters stand in too many words."""
    return tuple(
        synonym for phrase in phrases if word in phrase.text for synonym in phrase.synonyms if len(synonym) > 1
    )
