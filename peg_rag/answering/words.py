"""Texts as they are compared, and their words: cut by the bundled model's tokenizer, weighed by what they tell.

Why this exists: 蓝牙 must stand in what answers a question about it, 寄 need not. A word tells the more the rarer it
is, and the more often it stood in what answered questions with it (`train/question_words.py`). No vectors are needed.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from peg_rag.answering.surnames import SURNAMES

HAN = r"\u3400-\u9fff"
_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_TENS = {"十": 10, "百": 100, "千": 1000}
_FIGURE = "[零〇一二两三四五六七八九十百千]"
_ABOUT = "(?:[多余]|(?<=[十百千])来)?"
# A numeral is a figure where it counts something; 一线 and 四川 are words.
_NUMERAL = re.compile(
    rf"(?<=第){_FIGURE}+|(?<=星期)[一二三四五六]|(?<!{_FIGURE})一(?=米(?:[高长宽深厚]|左右|出头|以[上下内])|[吨斤亩]半|公[斤里]半)|"
    rf"(?<![a-z0-9]){_FIGURE}+(?={_ABOUT}[年月日天节班级楼层季等期条章款个小分元块倍号时岁人次页台辆项万刻])(?!分之)|"
    rf"(?<![a-z0-9零一二两三四五六七八九十百千])(?!百度|千米|千户|一[^十百千]|[两二三四五六七八九][二三四五六七八九](?![十百千]))"
    rf"{_FIGURE}+(?={_ABOUT}(?:[点折成周斤吨度米套箱场份张件名位棵株根盒袋瓶盆桌尺户趟亩]|"
    rf"单(?![位身车元独方程人双价])|间(?!房[地直站乡]|[隔距接歇谍])|平(?![台均安凡常日时方]))|公[里斤分]|千[克瓦]|[毫厘]米|平方)|"
    rf"{_FIGURE}*十{_FIGURE}*"
)
_MYRIADS = re.compile(rf"(?<![a-z0-9.零一二两三四五六七八九十百千第])({_FIGURE}+|\d+)万({_FIGURE}*[十百千]{_FIGURE}*)")
# How measures are spoken: 九米六 is 9.6米, 一米四八 1.48米, 两块五 2.5块, 三万五 3.5万; 五百一晚 is no 510.
_SPOKEN = re.compile(
    rf"(?<![a-z0-9.零一二两三四五六七八九十百千第])(?P<whole>{_FIGURE}+?|\d+)(?P<unit>米|块|[百千万])"
    rf"(?P<part>(?<=米)(?:[零〇一二三四五六七八九]{{2}}|\d\d)(?![\d.厘公])|[二三四五六七八九]|\d(?![\d.]))(?:[毛角])?"
    rf"(?![十百千万亿点个层位名台件块米元年月日天号楼栋斤克吨升折成倍分岁人次])"
)
_PERCENT = re.compile(
    rf"百分之(?!{_FIGURE}*[一二两三四五六七八九]{{2}})(?P<whole>{_FIGURE}+|\d+)"
    r"(?:[点.](?P<part>[零〇一二三四五六七八九]+(?![十百])|\d+))?"
)
_DEGREES = re.compile(r"\s*(?:°c|°|摄氏度)(?![a-z])")
_BELOW_ZERO = re.compile(r"(?:零下|[零0]下|负)(?=\d+(?:\.\d+)?度)")
_QUARTER = re.compile(r"(?<![a-z])q([1-4])(?!\d)")
_COUNTED = (
    "万千亿元块角美年月日号人名位件份套台张本米克斤吨升度层栋步字次辆桌棵株只头条箱袋瓶盒户家间亩天平公里毫方多股瓦个分转片页枚"
    "粒支根批期秒卷桶厘两吋兆点盏把双"
)
# 12楼 and 星期3 are one word each, as a code is; of longer numbers, which may be names, only what is counted: 7829下.
_CODES = re.compile(
    rf"(星期\d|(?<![a-z\d度.])-\d+(?:\.\d+)?度|(?<![a-z\d.\-])\d+(?:\.\d+)?(?:小时|季度|分钟|(?<!\d{{4}})[{HAN}]|(?<=\d{{4}})[{_COUNTED}])|[a-z0-9]+(?:[\-./:@_][a-z0-9]+)*)"
)
_RUNS = re.compile(rf"[{HAN}]+")
_LATIN = re.compile("[a-z]")
_TOKEN_FLOOR = 5.5  # negative log probability up to which a word says nothing about the subject
_HEAVIEST = 7.0
_RARE_CHARACTER = -10.0  # log probability below which a single character is a part of a word
_STOP_TEXT = """
的 了 是 有 在 和 与 吧 啊 吗 呢 么 嘛 不 也 都 就 才 还 会 能 要 得 该 请 请问 问 一下 这 那 这个 那个
那天 这天 什么 什么样 为什么 为何 谁 是否 是不是 有没有 能不能 可不可以 可以 可 需要 需 应该 必须 我 我们
你 你们 他 她 它 他们 咱 咱们 大概 大约 最多 最少 至少 最 给 到 从 对 把 被 让 用 做 弄 搞 叫 叫做 如何
算 按 按照 跟 向 往 于 为 以 及 或 块 钱 个 时候 里 里面 上 下 中 内 后 前 时 之 其 并 而 但 如果 的话
知道 告诉 想 说 去 来 走 看 具体 目前 现在 一 一个 一次 分别 情况 规定 意思 以后 不会 每个 what which who
whom whose when where why how is are was were do does did the a an of in on to for by at it its be can
will much many long often there any our my your we you i and or
"""
STOP_WORDS = frozenset(_STOP_TEXT.split())
# Words that people ask with, and those that documents use for the same; each line is one meaning.
_SAME = """
酒店 宾馆 旅馆 住宿
坐飞机 飞机 机票 乘机 航班
坐火车 坐高铁 火车 高铁 列车 动车
工资 薪酬 薪资 薪水 月薪
价钱 价格 单价 售价 费用 金额
总共 一共 总价 总额 总计 合计 共计
结婚 婚假 婚姻
生孩子 生育 分娩 产假
生病 病假 患病
老公 丈夫 配偶
开始 起 施行 实施 执行 生效 启用
签的 签 签订 签署 签约
交货 交付 到货 送货
退钱 退款 退还 退回 返还
辞职 离职 解除劳动合同
上班 工作时间 办公时间 出勤
请假 休假 假期
入职 报到 入厂 进厂
加班 延时 延长工作时间
迟到 晚到
罚 罚款 处罚 违约金 扣款 滞纳金
违约 逾期 延迟
晚 迟 逾期 延迟
过期 到期 逾期 失效
打官司 诉讼 仲裁 管辖
纠纷 争议
谁批 审批 批准
批 审批 批准 审核
负责 责任人 负责人 主管 管理 归口
联系 电话 联系电话
手机 手机号 移动电话
哪家 单位 公司 供应商 厂家
地址 位置 地点
上课 课程 授课
老师 教师 讲师 授课人
讲 讲师 主讲 授课
参加 参会 出席 与会
没来 缺席 请假 未到
国庆节 春节 元旦 中秋节 端午节 劳动节 清明节 法定节假日 节假日
周末 星期六 星期日 休息日
星期末 星期6 星期日 休息日 周末
明年 次年 来年
每天 每日
丢了 丢 丢失 遗失 缺失
坏了 故障 损坏
修 维修 修理 检修
断网 网络中断 离线 掉线
停电 断电
断电 停电 供电
免费 免收 不收费 免
女 女性 女士
男 男性 男士
小孩 儿童 孩子 未成年人
老人 老年人
东西 物品
盒子 装箱 包装 附件
包装盒 装箱 包装 附件
带 携带 提供 提交
材料 资料 证件 凭证 文件
忘了 忘记 遗忘
密码 口令
注销 销户
多久 周期 期限 时限 时效
时限 期限 截止
保修 质保 保修期 质保期
开门 营业 开放 开诊
关门 营业 闭馆 停止营业
开诊 门诊 出诊
看病 就诊 门诊
挂号 挂号费 号别
抽血 采血
重修 补考
挂科 不及格
奖金 奖励
报 报销
自己的车 自驾 私家车
开车 自驾 驾车
寄 快递 邮寄 发往 目的地
发 快递 运费 到达地
改 变更 修改 调整 改为
"""
_LINES = [line.split() for line in _SAME.strip().split("\n")]
_SAME_WORDS: dict[str, tuple[str, ...]] = {}
for _head, *_others in _LINES:
    _SAME_WORDS[_head] = (*_SAME_WORDS.get(_head, ()), *_others)
    for _other in _others:
        _SAME_WORDS[_other] = (*_SAME_WORDS.get(_other, ()), _head)


@dataclass(frozen=True, slots=True)
class Word:
    """A word and how much it tells: near 0 for 公司, 7 for a rare one. A code has figures or Latin letters.

    Attributes:
        synonyms: other words for it, any of which says the same.
    """

    text: str
    weight: float
    is_code: bool
    synonyms: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash(self.text)  # words are keys of several caches


@lru_cache(maxsize=4096)
def fold_text(text: str) -> str:
    """Text as it is compared: NFKC, lower case, numerals as figures, no brackets, no blanks between Chinese words."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"[()\[\]{}“”\"'《》「」【】]", "", text)
    text = re.sub(r"周(?=[一二三四五六日天末])|礼拜", "星期", text)
    text = _DEGREES.sub("度", text)
    text = _PERCENT.sub(_write_percent, text)
    text = _MYRIADS.sub(_write_myriads, text)
    text = _SPOKEN.sub(_write_measure, text)
    text = _NUMERAL.sub(lambda numeral: _convert_numeral(numeral[0]), text)
    text = re.sub(r"(?<=\d)公分", "厘米", text)
    text = _QUARTER.sub(r"\1季度", text)
    text = _BELOW_ZERO.sub("-", text)
    return re.sub(r"(?<![a-z0-9])\s+|\s+(?![a-z0-9])", "", text)


def words_of(folded: str) -> list[Word]:
    """The words of a folded text in their order."""
    words = []
    for piece in _CODES.split(folded):
        if _CODES.fullmatch(piece):
            words.append(Word(piece, _code_weight(piece), True))
            continue
        for run in _RUNS.findall(piece):
            words += [
                Word(token, _weigh_token(token), False, (*_split_halves(token), *same_words(token)))
                for token in _join_characters(_tokenize_run(run))
            ]
    return words


@lru_cache(maxsize=16384)
def list_words(folded: str) -> tuple[Word, ...]:
    """`words_of` of a short text, kept: names of columns and values come back with every question."""
    return tuple(words_of(folded))


def tokens_of(folded: str) -> list[str]:
    """The words of a folded text by themselves, codes left out."""
    return [
        token
        for piece in _CODES.split(folded)[::2]
        for run in _RUNS.findall(piece)
        for token in _join_characters(_tokenize_run(run))
    ]


def contains_word(text: str, word: str) -> bool:
    """Whether a folded text contains a word; a Latin one by itself: port not within report, id within user_id.

    Chinese text has no blanks, so that only Latin letters are looked at.
    """
    return word in text and (not _LATIN.search(word) or _compile_word(word).search(text) is not None)


@lru_cache(maxsize=4096)
def _compile_word(word: str) -> re.Pattern[str]:
    before = "(?<![a-z])" if _LATIN.match(word[0]) else ""
    after = "s?(?![a-z])" if _LATIN.match(word[-1]) else ""
    return re.compile(before + re.escape(word) + after)


def same_words(word: str) -> tuple[str, ...]:
    """What documents call what people ask for by this word."""
    return _SAME_WORDS.get(word, ())


def _split_halves(word: str) -> tuple[str, ...]:
    """Half of the pairs of a word that was put together from characters; a person's name must be there whole."""
    return (word[:2], word[1:]) if len(word) == 3 and word[0] not in SURNAMES else ()


def _join_characters(tokens: list[str]) -> list[str]:
    """Tokens with single characters put together that make a name or a rare word: 张 玮, 注 塑 机."""
    joined: list[str] = []
    is_open = False
    for token in tokens:
        is_rare = (
            len(token) == 1 and token not in STOP_WORDS and _log_probabilities().get(token, -14.0) < _RARE_CHARACTER
        )
        if is_open and is_rare and len(joined[-1]) < 3:
            joined[-1] += token
            continue
        joined.append(token)
        is_open = is_rare or token in SURNAMES
    return joined


def _code_weight(code: str) -> float:
    """A code tells most, a lone figure least, a figure with its unit and an English word are between."""
    if _RUNS.search(code) or code.isalpha():
        return 5.0
    return _HEAVIEST if len(code) > 1 else 2.5


@lru_cache(maxsize=4096)
def _tokenize_run(run: str) -> list[str]:
    tokens: list[str] = _load_tokenizer().encode(run, add_special_tokens=False).tokens
    return tokens


def _weigh_token(token: str) -> float:
    """By how rare the word is and how often it stands in what answers; a single character is half a word."""
    weight = min(max(0.0, -_log_probabilities().get(token, -14.0) - _TOKEN_FLOOR), _HEAVIEST)
    content = _question_words()
    other = float(content["other"])
    share = float(content["shares"].get(token, other))
    return weight * min(share / other, 1.2) / (2 if len(token) == 1 else 1)


def _write_myriads(spoken: re.Match[str]) -> str:
    """两万五千 as 25000."""
    myriads, rest = (int(_convert_numeral(part) if part[0] in _FIGURE else part) for part in spoken.groups())
    return str(10_000 * myriads + rest)


def _write_measure(spoken: re.Match[str]) -> str:
    """九米六 as 9.6米."""
    whole, part = (_convert_numeral(text) if text[0] in _FIGURE else text for text in spoken.group("whole", "part"))
    return f"{whole}.{part}{spoken['unit']}"


def _write_percent(spoken: re.Match[str]) -> str:
    """百分之零点五 as 0.5%."""
    figures = [_convert_numeral(text) if text[0] in _FIGURE else text for text in spoken.groups() if text]
    return f"{'.'.join(figures)}%"


def _convert_numeral(numeral: str) -> str:
    """A Chinese numeral as figures: 二十一 as 21, 二〇二五 as 2025."""
    if not any(character in _TENS for character in numeral):
        return "".join(str(_DIGITS[character]) for character in numeral)
    total = 0
    digit = 0
    for character in numeral:
        if character in _TENS:
            total += (digit or 1) * _TENS[character]
            digit = 0
        else:
            digit = _DIGITS[character]
    return str(total + digit)


@cache
def _question_words() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        (files("peg_rag") / "assets" / "question_words.json").read_text(encoding="utf-8")
    )
    return content


@cache
def _load_tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(_tokenizer_json())


@cache
def _log_probabilities() -> dict[str, float]:
    return dict(json.loads(_tokenizer_json())["model"]["vocab"])


def _tokenizer_json() -> str:
    return (files("peg_rag") / "assets" / "peg-mini" / "tokenizer.json").read_text(encoding="utf-8")
