"""A cell with a time: a number, or a date with the time of the day behind it, in seconds since 1970."""

from typing import Any

import numpy as np

from dqrm_cpu.data.prepare.bad_rows import Mistake
from dqrm_cpu.data.prepare.parse.fields import read_decimal
from dqrm_cpu.data.prepare.parse.values import VALUE
from dqrm_cpu.kernels.jit.compile import inlined
from dqrm_cpu.kernels.jit.memory import byte_at

_BAD_TIME = int(Mistake.BAD_TIME)
_MINUS, _PLUS, _POINT, _COLON, _SPACE, _T, _Z = 45, 43, 46, 58, 32, 84, 90
_DATE_BYTES = 10  # 2024-01-06
_DAY_S, _HOUR_S, _MINUTE_S = 86_400, 3600, 60

LARGEST_TIME = 1e38
"""Numbers below are times: records hold them as floats of 32 bits, which larger ones do not fit into."""


@inlined
def digits_at(text: int, at: int, count: int) -> Any:
    """Reads so many digits; a large negative number where one of them is none."""
    value = np.int64(0)
    for k in range(count):
        digit = byte_at(text, at + k) - 48
        value = value * 10 + digit if 0 <= digit <= 9 and value >= 0 else np.int64(-1_000_000)
    return value


@inlined
def days_in(year: int, month: int) -> Any:
    """Counts the days of a month."""
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


@inlined
def days_since_1970(year: int, month: int, day: int) -> Any:
    """Counts the days from 1970-01-01 to a date of the Gregorian calendar, by years that begin in March."""
    year = year - 1 if month <= 2 else year
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


@inlined
def zone_seconds(text: int, at: int, length: int) -> Any:
    """Reads what ends a time, Z or +01:00, +0100 or +01, as seconds; a large number where it is something else."""
    if length == 1 and byte_at(text, at) == _Z:
        return np.int64(0)
    sign = byte_at(text, at)
    if length not in (3, 5, 6) or sign not in (_PLUS, _MINUS):
        return np.int64(1_000_000)
    if length == 6 and byte_at(text, at + 3) != _COLON:
        return np.int64(1_000_000)
    hours = digits_at(text, at + 1, 2)
    minutes = digits_at(text, at + length - 2, 2) if length > 3 else np.int64(0)
    if not (0 <= hours < 24 and 0 <= minutes < 60):
        return np.int64(1_000_000)
    seconds = hours * _HOUR_S + minutes * _MINUTE_S
    return seconds if sign == _PLUS else -seconds


@inlined
def time_of_day(text: int, at: int, length: int) -> Any:
    """Reads a time of the day such as 12:30, 12:30:05 or 12:30:05.25+01:00 as seconds; negative where it is none."""
    hours, minutes = digits_at(text, at, 2), digits_at(text, at + 3, 2)
    if length < 5 or byte_at(text, at + 2) != _COLON or not (0 <= hours < 24 and 0 <= minutes < 60):
        return False, 0.0
    seconds, done = np.float64(hours * _HOUR_S + minutes * _MINUTE_S), np.int64(5)
    if done < length and byte_at(text, at + done) == _COLON:
        second = digits_at(text, at + done + 1, 2)
        if length < 8 or not 0 <= second < 60:
            return False, 0.0
        seconds, done = seconds + np.float64(second), np.int64(8)
        if done < length and byte_at(text, at + done) == _POINT:
            done += 1
            part = 1.0
            while done < length and 48 <= byte_at(text, at + done) <= 57:
                part /= 10.0
                seconds += part * np.float64(byte_at(text, at + done) - 48)
                done += 1
    if done == length:
        return True, seconds
    zone = zone_seconds(text, at + done, length - done)
    return abs(zone) < _DAY_S, seconds - np.float64(zone)


@inlined
def time_cell(text: int, at: int, length: int) -> Any:
    """Reads a time: (number, or seconds since 1970 of a date, VALUE or a negative mistake)."""
    number, taken = read_decimal(text, at)
    if taken == length and length > 0 and abs(number) < LARGEST_TIME:
        return number, np.int64(VALUE)
    bad = np.int64(-_BAD_TIME)
    if length < _DATE_BYTES or byte_at(text, at + 4) != _MINUS or byte_at(text, at + 7) != _MINUS:
        return 0.0, bad
    year, month, day = digits_at(text, at, 4), digits_at(text, at + 5, 2), digits_at(text, at + 8, 2)
    if year < 1 or not (1 <= month <= 12 and 1 <= day <= days_in(year, month)):
        return 0.0, bad
    seconds = np.float64(days_since_1970(year, month, day) * _DAY_S)
    if length == _DATE_BYTES:
        return seconds, np.int64(VALUE)
    between = byte_at(text, at + _DATE_BYTES)
    is_time, of_day = time_of_day(text, at + _DATE_BYTES + 1, length - _DATE_BYTES - 1)
    if between not in (_T, _SPACE) or not is_time:
        return 0.0, bad
    return seconds + of_day, np.int64(VALUE)
