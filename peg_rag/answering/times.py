"""Times of day, days of the week, dates and holidays that a text says, and the ranges of them that it gives.

Why this exists: 晚上七点 lies in 17:00至21:00, 礼拜天 in 周六、周日 and 国庆 in 法定节假日, and they share no word.
A text is folded first (`fold_text`), so that its numbers are figures.
"""

import re
from collections.abc import Iterator

Span = tuple[float, float]  # a range, whose end is outside
TIMES = frozenset({"clock", "weekday", "date", "holiday"})  # what is measured

_TO = r"[-~～—至到]+(?:次日|第二天|翌日|次年|翌年)?"
_LATE = ("下午", "午后", "傍晚", "晚上", "今晚", "明晚", "夜里")
_HOUR = re.compile(
    rf"(?P<part>凌晨|清早|早上|早晨|上午|中午|{'|'.join(_LATE)})?(?P<hour>\d{{1,2}})"
    r"(?:点(?:钟|(?P<half>半)|过?(?P<past>\d\d?)分?)?|:(?P<minute>\d\d))"
)
_PARTS_OF_DAY = {"大清早": 6 * 60, "半夜": 60, "深夜": 23 * 60 + 30}  # minutes since midnight
_CLOCK = r"(\d{1,2}):(\d\d)"
_CLOCK_TO_CLOCK = re.compile(rf"{_CLOCK}{_TO}{_CLOCK}")
_CLOCK_ALONE = re.compile(rf"{_CLOCK}(?:(?P<from>以后|之后|后|起)|(?P<up_to>以前|之前|前|止))?")
_DAY = 24 * 60  # minutes

_NAME_OF_DAY = r"(?:周|星期|礼拜)([1-6日天末])"
_WEEKDAY = re.compile(_NAME_OF_DAY)
_WEEKDAY_TO_WEEKDAY = re.compile(rf"{_NAME_OF_DAY}{_TO}{_NAME_OF_DAY}")
_WEEKDAYS = {**{str(number): number for number in range(1, 7)}, "日": 7, "天": 7, "末": 6}
_WORKDAY = re.compile("工作日")

_YEAR = re.compile(r"\d{4}年")
_DATE = re.compile(r"(\d{1,2})月(?:(\d{1,2})[日号])?")
_DATE_TO_DATE = re.compile(
    rf"(\d{{1,2}})月(?:(\d{{1,2}})[日号])?{_TO}(?:(\d{{1,2}})月(?:(\d{{1,2}})[日号])?|(\d{{1,2}})[日号])"
)
_DATE_SAID = re.compile(r"(?<![\d个])(\d{1,2})月(?:(\d{1,2})[日号]|(底|末)|(初|头))?")
_MONTH = 31  # days, by which dates are numbered from the start of the year on
_WHOLE, _START, _END = (1, _MONTH), (1, 10), (21, _MONTH)  # days of a month
_SEASONS = {"夏天": (7, 20), "三伏": (7, 20), "暑假": (7, 20), "冬天": (1, 10), "寒假": (2, 1)}

_HOLIDAYS = (
    "元旦",
    "春节|过年|大年|正月|年三十",
    "清明",
    "五一|劳动节",
    "端午",
    "中秋",
    r"国庆|(?<![\d第初])11(?=长?假|去|那几天|期间|放)",
)
_ANY_HOLIDAY = re.compile("法定节?假?日|节假日|公众假期|(?<!除)假[日期]")
_FIGURE_OF_TIME = re.compile(r"\d{1,2}(?:月|点|:\d)|[周期拜]\d")


def times_said(folded: str) -> Iterator[tuple[str, Span]]:
    """(measure, span) of each time of day, day of the week, date and holiday that a question says: a minute, a day, or
    as many days as are meant."""
    hours = [_read_hour(match) for match in _HOUR.finditer(folded)]
    hours += [minute for name, minute in _PARTS_OF_DAY.items() if name in folded and not hours]
    yield from (("clock", (hour, hour + 1)) for hour in hours)
    weekdays = [_WEEKDAYS[match[1]] for match in _WEEKDAY.finditer(folded)]
    yield from (("weekday", (day, day + 1)) for day in weekdays)
    yield from (("date", _read_date(match)) for match in _DATE_SAID.finditer(folded))
    seasons = [month * _MONTH + day for name, (month, day) in _SEASONS.items() if name in folded]
    yield from (("date", (day, day + 1)) for day in seasons)
    yield from (("holiday", span) for span in _named_holidays(folded))


def time_spans(folded: str) -> Iterator[tuple[str, Span]]:
    """(measure, range) of each time of day, day of the week, date and holiday, and of the ranges between two of them.

    Clocks are in minutes since midnight, weekdays from 1 to 7, dates in months of 31 days.
    """
    yield from (("clock", span) for span in _clock_spans(folded))
    yield from (("weekday", span) for span in _weekday_spans(folded))
    yield from (("date", span) for span in _date_spans(folded))
    yield from (("holiday", span) for span in _holiday_spans(folded))


def has_figure_of_time(folded: str) -> bool:
    """Whether a figure in a text is a month, an hour or a day of the week."""
    return _FIGURE_OF_TIME.search(folded) is not None


def _clock_spans(text: str) -> Iterator[Span]:
    for match in _CLOCK_TO_CLOCK.finditer(text):
        yield from _wrap(_count_minutes(match[1], match[2]), _count_minutes(match[3], match[4]), 0, _DAY)
    for match in _CLOCK_ALONE.finditer(_CLOCK_TO_CLOCK.sub("", text)):
        minute = _count_minutes(match[1], match[2])
        yield (minute, _DAY) if match["from"] else (0, minute) if match["up_to"] else (minute, minute + 1)


def _weekday_spans(text: str) -> Iterator[Span]:
    for match in _WEEKDAY_TO_WEEKDAY.finditer(text):
        yield from _wrap(_WEEKDAYS[match[1]], _WEEKDAYS[match[2]] + 1, 1, 8)
    for match in _WEEKDAY.finditer(_WEEKDAY_TO_WEEKDAY.sub("", text)):
        day = _WEEKDAYS[match[1]]
        yield day, day + (2 if match[1] == "末" else 1)
    if _WORKDAY.search(text):
        yield 1, 6


def _date_spans(text: str) -> Iterator[Span]:
    text = _YEAR.sub("", text)
    for match in _DATE_TO_DATE.finditer(text):
        month, day, last_month, last_day, day_of_month = match.groups()
        end = int(last_month or month) * _MONTH + int(last_day or day_of_month or _MONTH) + 1
        yield from _wrap(int(month) * _MONTH + int(day or 1), end, _MONTH, 14 * _MONTH)
    for match in _DATE.finditer(_DATE_TO_DATE.sub("", text)):
        first = int(match[1]) * _MONTH + int(match[2] or 1)
        yield first, first + (1 if match[2] else _MONTH)


def _holiday_spans(text: str) -> Iterator[Span]:
    if _ANY_HOLIDAY.search(text):
        yield 0, len(_HOLIDAYS)
    else:
        yield from _named_holidays(text)


def _named_holidays(text: str) -> Iterator[Span]:
    return ((number, number + 1) for number, names in enumerate(_HOLIDAYS) if re.search(names, text))


def _wrap(first: int, end: int, start_of_all: int, end_of_all: int) -> Iterator[Span]:
    """A range, which may go on after midnight or New Year."""
    if first < end:
        yield first, end
    else:
        yield first, end_of_all
        yield start_of_all, end


def _read_hour(match: re.Match[str]) -> int:
    """Minutes since midnight."""
    hour = int(match["hour"])
    is_late = hour < 12 and match["part"] in _LATE
    return (hour + 12 * is_late) * 60 + (30 if match["half"] else int(match["past"] or match["minute"] or 0))


def _read_date(match: re.Match[str]) -> Span:
    month, day, is_end, is_start = match.groups()
    first, last = (int(day), int(day)) if day else _END if is_end else _START if is_start else _WHOLE
    return int(month) * _MONTH + first, int(month) * _MONTH + last + 1


def _count_minutes(hour: str, minute: str) -> int:
    return int(hour) * 60 + int(minute)
