"""Times of day, days of the week, dates and holidays that a text says, as ranges.

Why this exists: 晚上七点 lies in 17:00至21:00, 礼拜天 in 周六、周日 and 国庆 in 法定节假日, and they share no word.
A text is folded first (`fold_text`), so that its numbers are figures and 周三 and 礼拜三 are 星期3.
"""

import re
from collections.abc import Iterator

Span = tuple[float, float]  # a range, whose end is outside
TIMES = frozenset({"clock", "weekday", "date", "lunar", "holiday"})  # what is measured

_TO = r"[-~～—至到]+(?:次日|第2天|第二天|翌日|次年|翌年)?"
_ONWARD = "以后|之后|后|起|开始|开场"
_BEFORE = "以前|之前|前|止"
_TAIL = rf"(?:(?P<onward>{_ONWARD})|(?P<before>{_BEFORE}))?"
_EXCLUDED = re.compile(
    r"除了?[^,，。;；]{1,12}?(?:以外|之外|外)|不(?:含|包括|包含)[^,，。;；]{1,12}|非(?:法定)?(?:节?假[日期]|星期[1-6日天末])|"
    r"(?:(?:法定)?节?假[日期]|法定节日|星期[1-6日天末]|[、和及与])+除外"
)

_NIGHT = ("晚上", "今晚", "明晚", "夜里", "夜间", "晚间", "夜晚", "半夜", "深夜", "晚")
_AFTERNOON = ("下午", "午后", "傍晚")
_PART = rf"(?P<part>凌晨|清早|早上|早晨|上午|中午|早|{'|'.join((*_AFTERNOON, *_NIGHT))})"
_NO_HOUR = r"(?<![\d.:第这那哪几扣涨降升提加减列比尺例])"
_HOUR = re.compile(
    rf"{_NO_HOUR}{_PART}?(?P<hour>\d{{1,2}}|一(?=点[半钟过\d]))(?:"
    r"点(?!建议|要求|内容|水|数|意见|原因|积分|好处|几)(?:钟|(?P<half>半)|(?P<quarter>[123一])刻|过?(?P<past>\d\d?)分?(?!\d))?|"
    r":(?P<minute>\d\d)(?!\d))"
)
_HOURS_WITH_PART = re.compile(rf"{_PART}(?P<first>\d{{1,2}}点(?:半|\d\d?分?)?)(?P<to>{_TO})(?=\d{{1,2}}点)")
_SURE_HOUR = 5  # from which on a bare `点` is an hour: 3点 may be three points
_HOUR_GOES_ON = re.compile(rf"去|来|到|走|出|进|开|左右|{_ONWARD}|{_BEFORE}|{_TO}")
_CLOCK = r"(?<![\d:])(\d{1,2}):(\d\d)(?![\d:])"
_CLOCK_TO_CLOCK = re.compile(rf"{_CLOCK}{_TO}{_CLOCK}")
_CLOCK_ALONE = re.compile(rf"{_CLOCK}{_TAIL}")
_PARTS_OF_DAY = {"大清早": 6 * 60, "半夜": 60, "深夜": 23 * 60 + 30}  # minutes since midnight
_DAY = 24 * 60  # minutes

_NAME_OF_DAY = r"(?<!\d)星期([1-6一二三四五六日天末])(?!\d(?!\d?:\d)|[次回节趟程数班遍]|个[小钟]|天(?!气))"
_WEEKDAY = re.compile(_NAME_OF_DAY)
_WEEKDAY_TO_WEEKDAY = re.compile(rf"{_NAME_OF_DAY}{_TO}{_NAME_OF_DAY}")
_SHORT_DAY = re.compile(r"(星期[1-6日天])([至到~～—、和-])(?=[1-6一二三四五六日天](?![\d次天月日个:点]))")  # 星期1至5
_WEEKDAYS = {name: number for names in ("123456", "一二三四五六") for number, name in enumerate(names, 1)}
_WEEKDAYS |= {"日": 7, "天": 7, "末": 6}
_WORKDAY = re.compile("工作日")

_YEAR_MARK = re.compile(r"\d{4}年")
_MONTH_DAY = r"(?<![\d个])(\d{1,2})月(?!龄)(?:(\d{1,2})[日号]|(?P<late>底|末)|(?P<early>初|头))?"
_DATE = re.compile(rf"{_MONTH_DAY}{_TAIL}")
_DATE_TO_DATE = re.compile(
    rf"(?<![\d个])(\d{{1,2}})月(?:(\d{{1,2}})[日号])?{_TO}(?:(\d{{1,2}})月(?:(\d{{1,2}})[日号])?|(\d{{1,2}})[日号])"
)
_SHORT_MONTH = re.compile(r"(?<![\d月])(\d{1,2})(?=(?:、|[-~～—至到])\d{1,2}(?:[、至到~～—-]\d{1,2})*月)")  # 7-9月
_MONTH = 31  # days, by which dates are numbered from the start of the year on
_WHOLE, _START, _END = (1, _MONTH), (1, 10), (21, _MONTH)  # days of a month
_SEASONS = {
    "春天": ((3, 1), (5, 31)), "夏天": ((6, 1), (8, 31)), "三伏": ((7, 10), (8, 25)), "暑假": ((7, 1), (8, 31)),
    "秋天": ((9, 1), (11, 30)), "冬天": ((12, 1), (2, 28)), "寒假": ((1, 15), (2, 20)),
}  # fmt: skip

_IS_LUNAR = re.compile(r"农历|阴历|(?<![最当起年])初[1-9]|正月|腊月")
_LUNAR_NUMERALS = re.compile(r"(?<=初)[一二三四五六七八九]|(?<=逢)[一二三四五六七八九]|廿[一二三四五六七八九]?")
_LUNAR_DAY = r"(?:(?<![最当起年])初)?(\d{1,2})(?![\d月:点岁个元天])"
_LUNAR_TO_LUNAR = re.compile(rf"{_LUNAR_DAY}[-~～—至到]+(?:次月)?{_LUNAR_DAY}")
_LUNAR_ALONE = re.compile(rf"(?:农历|阴历|[正腊]月|[、和及](?=初)|(?=初)){_LUNAR_DAY}")
_EVERY_TEN_DAYS = re.compile(r"逢(\d)")
_LAST_LUNAR = 30

_NO_PLACE = "(?![路街店院园楼]|[前后])"
_HOLIDAYS = tuple(
    re.compile(pattern)
    for pattern in (
        f"元旦{_NO_PLACE}",
        f"春节{_NO_PLACE}|(?<![通超不经])过年(?![限度审检龄])|大年[初3三]|正月|年三十",
        f"清明{_NO_PLACE}(?!上河)",
        f"五一{_NO_PLACE}|劳动节{_NO_PLACE}",
        f"端午{_NO_PLACE}",
        f"中秋{_NO_PLACE}",
        rf"(?<![王李张刘陈赵杨黄周吴])国庆{_NO_PLACE}|(?<![\d第初楼铁号期])11(?=长?假|去|那几天|放假)",
    )
)
_ANY_HOLIDAY = re.compile("法定节?假?日|节假日|公众假期|(?<![除请病年婚产事休])假[日期]")


def time_spans(folded: str) -> list[tuple[str, Span]]:
    """(measure, range) of the times of day, days of the week, dates and holidays that a text says.

    Clocks are in minutes since midnight, weekdays from 1 to 7, dates in months of 31 days, lunar days from 1 to 30.
    What is excluded (节假日除外) is not said.
    """
    text = _write_out(folded)
    spans: dict[str, Iterator[Span]] = {
        "clock": _clock_spans(text),
        "weekday": _weekday_spans(text),
        "date": _date_spans(text),
        "lunar": _lunar_spans(text),
        "holiday": _holiday_spans(text),
    }
    return [(measure, span) for measure, own in spans.items() for span in own]


def without_times(folded: str) -> str:
    """A text without its times, so that 25日 of a date is no duration."""
    text = _write_out(folded)
    for pattern in (_CLOCK_ALONE, _WEEKDAY, _DATE_TO_DATE, _DATE):
        text = pattern.sub("，", text)
    return text


def overlap(span: Span, other: Span) -> bool:
    return span[0] < other[1] and other[0] < span[1]


def is_within(span: Span, other: Span) -> bool:
    return other[0] <= span[0] and span[1] <= other[1]


def _write_out(text: str) -> str:
    """Short forms in full: 7-9月 as 7月-9月, 星期1至5 as 星期1至星期5, 晚上7点半 as 19:30; years are left out."""
    text = _EXCLUDED.sub("，", _YEAR_MARK.sub("", text)).replace("星期6日", "星期6、星期日")
    text = _SHORT_MONTH.sub(r"\1月", text)
    while (longer := _SHORT_DAY.sub(r"\1\2星期", text)) != text:
        text = longer
    text = _HOURS_WITH_PART.sub(r"\g<part>\g<first>\g<to>\g<part>", text)
    return _HOUR.sub(_write_clock, text)


def _write_clock(match: re.Match[str]) -> str:
    hour = 1 if match["hour"] == "一" else int(match["hour"])
    part = match["part"] or ""
    minute = 30 if match["half"] else int(match["past"] or match["minute"] or 0)
    if match["quarter"]:
        minute = 15 * (1 if match["quarter"] == "一" else int(match["quarter"]))
    is_bare = not part and not match["minute"] and match[0].endswith("点")
    may_count = is_bare and hour < _SURE_HOUR and not _HOUR_GOES_ON.match(match.string, match.end())
    if hour > 24 or minute > 59 or may_count:
        return match[0]
    return f"{_read_hour(hour, part)}:{minute:02}"


def _read_hour(hour: int, part: str) -> int:
    """Of 24, an hour of a part of the day: 晚上2点 is two in the night, 中午2点 is 14."""
    if part in _NIGHT and (hour == 12 or hour < _SURE_HOUR):
        return hour % 12
    is_late = part in _NIGHT or part in _AFTERNOON or (part == "中午" and hour < _SURE_HOUR)
    if part == "凌晨":
        return hour % 12
    return (hour + 12 if is_late and hour < 12 else hour) % 24


def _clock_spans(text: str) -> Iterator[Span]:
    found = False
    for match in _CLOCK_TO_CLOCK.finditer(text):
        found = True
        yield from _wrap(_count_minutes(match[1], match[2]), _count_minutes(match[3], match[4]), 0, _DAY)
    for match in _CLOCK_ALONE.finditer(_CLOCK_TO_CLOCK.sub("，", text)):
        found = True
        minute = _count_minutes(match[1], match[2])
        yield (minute, _DAY) if match["onward"] else (0, minute) if match["before"] else (minute, minute + 1)
    if not found:
        yield from ((minute, minute + 1) for name, minute in _PARTS_OF_DAY.items() if name in text)


def _weekday_spans(text: str) -> Iterator[Span]:
    for match in _WEEKDAY_TO_WEEKDAY.finditer(text):
        yield from _wrap(_WEEKDAYS[match[1]], _WEEKDAYS[match[2]] + 1, 1, 8)
    for match in _WEEKDAY.finditer(_WEEKDAY_TO_WEEKDAY.sub("，", text)):
        day = _WEEKDAYS[match[1]]
        yield day, day + (2 if match[1] == "末" else 1)
    if _WORKDAY.search(text):
        yield 1, 6


def _date_spans(text: str) -> Iterator[Span]:
    for match in _DATE_TO_DATE.finditer(text):
        month, day, last_month, last_day, day_of_month = match.groups()
        last = (int(last_month or month), int(last_day or day_of_month or _MONTH))
        yield from _wrap_dates((int(month), int(day or 1)), last)
    for match in _DATE.finditer(_DATE_TO_DATE.sub("，", text)):
        month, day = int(match[1]), match[2]
        first, last_of_month = (int(day), int(day)) if day else _days_of(match)
        start, end = month * _MONTH + first, month * _MONTH + last_of_month + 1
        yield (start, 14 * _MONTH) if match["onward"] else (_MONTH, start) if match["before"] else (start, end)
    for name, (first_date, last_date) in _SEASONS.items():
        if name in text:
            yield from _wrap_dates(first_date, last_date)


def _days_of(match: re.Match[str]) -> tuple[int, int]:
    return _END if match["late"] else _START if match["early"] else _WHOLE


def _lunar_spans(text: str) -> Iterator[Span]:
    """Days of a month of the moon: 初一至初四, 农历二十, 逢六 (6, 16, 26)."""
    text = _LUNAR_NUMERALS.sub(_write_lunar, text)
    if not _IS_LUNAR.search(text):
        return
    for match in _LUNAR_TO_LUNAR.finditer(text):
        yield from _wrap(int(match[1]), int(match[2]) + 1, 1, _LAST_LUNAR + 1)
    for match in _LUNAR_ALONE.finditer(_LUNAR_TO_LUNAR.sub("，", text)):
        yield int(match[1]), int(match[1]) + 1
    for match in _EVERY_TEN_DAYS.finditer(text):
        yield from ((day, day + 1) for day in range(int(match[1]), _LAST_LUNAR + 1, 10))


def _write_lunar(match: re.Match[str]) -> str:
    """The day of 初三 and 廿三 as a figure."""
    numeral = match[0].removeprefix("廿")
    day = "零一二三四五六七八九".index(numeral) if numeral else 0
    return str(day + (20 if match[0].startswith("廿") else 0))


def _holiday_spans(text: str) -> Iterator[Span]:
    if _ANY_HOLIDAY.search(text):
        yield 0, len(_HOLIDAYS)
    else:
        yield from ((number, number + 1) for number, names in enumerate(_HOLIDAYS) if names.search(text))


def _wrap_dates(first: tuple[int, int], last: tuple[int, int]) -> Iterator[Span]:
    return _wrap(first[0] * _MONTH + first[1], last[0] * _MONTH + last[1] + 1, _MONTH, 14 * _MONTH)


def _wrap(first: int, end: int, start_of_all: int, end_of_all: int) -> Iterator[Span]:
    """A range, which may go on after midnight or New Year."""
    if first < end:
        yield first, end
    else:
        yield first, end_of_all
        yield start_of_all, end


def _count_minutes(hour: str, minute: str) -> int:
    return int(hour) * 60 + int(minute)
