"""A first schema for a raw file: the role of every column, guessed from its first rows, with the reason beside it.

The schema prepares the file as it is. Where that and a better guess differ, it is careful: numbers of which some rows
were not seen may have fractions, and text may be anything.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from dqrm_cpu.data.prepare.row_layout import MOST_VALUES
from dqrm_cpu.data.prepare.sample import BETWEEN_ELEMENTS, RowSample, is_list, is_number
from dqrm_cpu.errors import DataError

_MISSING = ("", "nan", "null", "\\n")
_ANSWERS = ("0", "1", "true", "false", "yes", "no", "t", "f", "y", "n")
_LABEL_NAMES = ("click", "clicked", "is_click", "label", "target", "y", "conversion", "converted", "is_clicked")
_LABEL_WORDS = re.compile(r"click|label|target|convers|convert|purchase|bought|buy|order|response|like|install|outcome")
_RATING_WORDS = re.compile(r"rating|stars|score|grade|label|target")
_ID_WORDS = re.compile(
    r"(^|[_\W])(id|ids|code|type|kind|class|category|zip|uid|gid|hash|version)($|[_\W\d])|[a-z]I[dD]$"
)
_TIME_WORDS = re.compile(r"(^|[_\W])(ts|time|timestamp|date|datetime|day|created|updated|at)($|[_\W])", re.IGNORECASE)
_WHOLE = re.compile(r"-?[0-9]+(\.0*)?")
_HASH = re.compile(r"[0-9a-fA-F]{8}")
_SEPARATORS = "|;,"
_LIMIT = 32  # of values in a cell, where the schema names none

_EPOCHS = ((9e8, 4e9), (9e11, 4e12), (9e14, 4e15), (9e17, 4e18))
"""Between which numbers seconds, milliseconds, microseconds and nanoseconds since 1970 of our days lie."""

_LARGEST_INT32 = 2**31 - 1
_MOST_CODES = 50
_FEWEST_KEYS = 20
_MOST_RATINGS = 20
_MOST_BAD_LABELS = 0.01
_MOST_MISSING_LABELS = 0.5
"""Rows whose outcome nobody knows yet have an empty label; a column that is mostly empty is no label."""


@dataclass(frozen=True)
class Suggestion:
    """The role of one column, as the schema names it, and the reason for a person."""

    name: str
    role: str  # label, integers, decimals, hashes, categories, keys, or nothing where it is left out
    reason: str
    transform: str = ""
    multi: str = ""  # what stands in [multi], of a column with several values in a cell
    positive: float | None = None


@dataclass(frozen=True)
class _Facts:
    """Facts about one column of the sample, from which its role is guessed."""

    name: str
    cells: list[str]  # that are not missing
    share_missing: float
    counts: "Counter[str]"

    @property
    def distinct(self) -> int:
        return len(self.counts)

    def all_are(self, test: Callable[[str], object]) -> bool:
        """Tells whether every value passes a test, of which there is one at least."""
        return bool(self.counts) and all(test(cell) for cell in self.counts)

    @property
    def numbers(self) -> list[float]:
        """The different values, of a column of numbers."""
        return [float(cell) for cell in self.counts]


def suggest_schema(sample: RowSample, source: str, advance: Callable[[int], object] = lambda _: None) -> str:
    """Writes a schema for a file as TOML; DataError where no column can be the label, or none a number.

    `advance` hears of each column that has its role.
    """
    suggestions = _complete(_suggestions(sample, advance), sample)
    rows = f"all {sample.num_rows:,} rows" if sample.is_whole else f"the first {sample.num_rows:,} rows"
    lines = [
        f"# Suggested by dqrm-cpu prepare --suggest from {rows} of {_plain(source)}.",
        "# Look it over: what a column means, only you know. docs/prepare.md says what every key does.",
        "",
    ]
    if not sample.is_parquet:
        lines += [f"delimiter = {_quoted(sample.delimiter)}", f"header = {str(sample.header).lower()}"]
        lines += [f"quotes = {str(sample.quotes).lower()}"]
        if not sample.header:
            lines.append(f"fields = [{', '.join(map(_quoted, sample.names))}]")
        lines.append("")
    label = next(one for one in suggestions if one.role == "label")
    lines.append(f"label = {_quoted(label.name)}  # {label.reason}")
    if label.positive is not None:
        lines.append(f"positive = {label.positive:g}  # labels from here on are clicks: is that the right number?")
    for role in ("integers", "decimals", "hashes", "categories", "keys"):
        mine = [one for one in suggestions if one.role == role]
        if mine:
            lines += [f"{role} = [", *(f"    {_quoted(one.name)},  # {one.reason}" for one in mine), "]"]
    left_out = [one for one in suggestions if not one.role]
    if left_out:
        lines += ["", "# Left out:", *(f"# {_plain(one.name)}: {one.reason}" for one in left_out)]
    multi = [one for one in suggestions if one.multi]
    if multi:
        lines += ["", "[multi]", *(f"{_quoted(one.name)} = {one.multi}" for one in multi)]
    transforms = [one for one in suggestions if one.transform]
    if transforms:
        lines += ["", "[transforms]", *(f'{_quoted(one.name)} = "{one.transform}"' for one in transforms)]
    return "\n".join(lines) + "\n"


def is_code(name: str, distinct: int, num_rows: int) -> bool:
    """Says whether whole numbers are rather codes than amounts: by their column's name, or because they are few."""
    return _ID_WORDS.search(name) is not None or (distinct <= _MOST_CODES and num_rows >= 10 * distinct)


def _suggestions(sample: RowSample, advance: Callable[[int], object]) -> list[Suggestion]:
    found: list[Suggestion] = []
    types = sample.types or ("",) * len(sample.names)
    for name, cells, kind in zip(sample.names, sample.columns, types, strict=True):
        advance(bool(found))
        if not name or sample.names.count(name) > 1:
            found.append(Suggestion(name, "", "it has no name of its own"))
            continue
        if cells is None:
            found.append(Suggestion(name, "", "it holds structures, which are not read"))
            continue
        facts = _facts(name, cells)
        found.append(_of_bags(facts, BETWEEN_ELEMENTS) if is_list(kind) else _of_column(facts, sample))
    label = _label(sample)
    return [label if one.name == label.name else one for one in found]


def _facts(name: str, cells: Sequence[str]) -> _Facts:
    known = [cell for cell in cells if cell.lower() not in _MISSING]
    return _Facts(name, known, 1 - len(known) / max(len(cells), 1), Counter(known))


def _label(sample: RowSample) -> Suggestion:
    """Chooses the label: the column with two answers that has the best name, or else a rating."""
    once = [name for name in sample.names if name and sample.names.count(name) == 1]
    columns = [_facts(n, c) for n, c in zip(sample.names, sample.columns, strict=True) if n in once and c]
    full = [facts for facts in columns if facts.cells and not facts.share_missing]
    answers = [facts for facts in full if facts.all_are(_is_answer) and facts.distinct <= 4]
    answers = answers or [some for facts in columns if (some := _mostly_answers(facts, 0)) is not None]
    if answers and (chosen := _best_named(answers)):
        return chosen
    for facts in full:
        is_rating = facts.all_are(is_number) and 2 <= facts.distinct <= _MOST_RATINGS
        if is_rating and _RATING_WORDS.search(facts.name.lower()):
            numbers = sorted(facts.numbers)
            positive = numbers[-max(1, len(numbers) * 2 // 5)]
            reason = f"{facts.distinct} different numbers, {numbers[0]:g} to {numbers[-1]:g}; its name says so"
            return Suggestion(facts.name, "label", reason, positive=positive)
    sparse = [some for facts in columns if (some := _mostly_answers(facts, _MOST_MISSING_LABELS)) is not None]
    if sparse and (chosen := _best_named(sparse)):
        return chosen
    raise DataError(
        "no column looks like a label: none has 0 or 1, or the like, in all rows or most, and none is called a rating; "
        "write the schema by hand, with `label`, and `positive` where it is another number"
    )


def _best_named(answers: Sequence[_Facts]) -> Suggestion | None:
    """Chooses among columns with two answers by their names, or the first that has both."""
    both = [facts for facts in answers if len({_truth(cell) for cell in facts.counts}) == 2]
    named = [facts for facts in answers if _LABEL_WORDS.search(facts.name.lower())]
    exact = [facts for facts in answers if facts.name.lower() in _LABEL_NAMES]
    for candidates, reason in (
        (exact, "its name says so"),
        (named, "its name says so"),
        (both, "the first of its kind"),
    ):
        if candidates:
            chosen = candidates[0]
            clicks = sum(_truth(cell) for cell in chosen.cells) / len(chosen.cells)
            where = "every row"
            if chosen.share_missing:
                where = f"all but {chosen.share_missing:.2%} of the rows, which are bad ones (--bad-rows skip)"
            return Suggestion(chosen.name, "label", f"a yes or no in {where}, {clicks:.2%} yes; {reason}")
    return None


def _mostly_answers(facts: _Facts, most_missing: float) -> _Facts | None:
    """Leaves out the few cells that are no answer, and those missing; None where they are too many."""
    cells = [cell for cell in facts.cells if _is_answer(cell)]
    all_cells = len(facts.cells) / (1 - facts.share_missing) if facts.cells else 0
    others = len(facts.cells) - len(cells)
    if not cells or others > _MOST_BAD_LABELS * all_cells:
        return None
    if len(cells) < (1 - max(_MOST_BAD_LABELS, most_missing)) * all_cells:
        return None
    return _Facts(facts.name, cells, 1 - len(cells) / all_cells, Counter(cells))


def _is_answer(cell: str) -> bool:
    return cell.lower() in _ANSWERS or (is_number(cell) and float(cell) in (0.0, 1.0))


def _truth(cell: str) -> bool:
    return float(cell) == 1.0 if is_number(cell) else cell.lower() in ("true", "yes", "t", "y")


def _of_column(facts: _Facts, sample: RowSample) -> Suggestion:
    """Says what a column is that is not the label."""
    missing = f", {facts.share_missing:.1%} missing" if facts.share_missing else ""
    if not facts.cells:
        return Suggestion(facts.name, "", "it is empty")
    if facts.distinct == 1 and not facts.share_missing:
        return Suggestion(facts.name, "", f"every row has {_shown(facts.cells[0])}")
    if time := _time_reason(facts):
        return Suggestion(facts.name, "", f"a time: {time}; rows that come later must not be learned from")
    many = len(facts.cells) >= _FEWEST_KEYS and facts.distinct > 0.999 * len(facts.cells)
    if facts.all_are(is_number):
        return _of_numbers(facts, sample, many, missing)
    values = f"{facts.distinct:,} different values{missing}"
    if not sample.is_parquet and facts.all_are(_HASH.fullmatch) and not any(c.isupper() for c in facts.cells[0]):
        return Suggestion(facts.name, "categories", f"hashes of 8 digits, {values}")
    if separator := _separator_of(facts):
        return _of_bags(facts, separator)
    if many and not facts.share_missing:
        return Suggestion(facts.name, "keys", "a text of its own in every row: it names the row, and is no feature")
    return Suggestion(facts.name, "categories", f"text, {values}")


def _of_bags(facts: _Facts, separator: str) -> Suggestion:
    """Says what cells with several values hold: lists, or texts with a separator between the values."""
    cells = [{value.strip() for value in cell.split(separator)} - {""} for cell in facts.cells]
    if not any(cells):
        return Suggestion(facts.name, "", "it is empty")
    distinct, most = len(set.union(*cells)), max(map(len, cells))
    empty = f", {facts.share_missing:.1%} empty" if facts.share_missing else ""
    how = "lists" if separator == BETWEEN_ELEMENTS else f"several values with {separator!r} between them"
    options = [] if separator == BETWEEN_ELEMENTS else [f"separator = {_quoted(separator)}"]
    if most > _LIMIT:
        options.append(f"limit = {min(most, MOST_VALUES)}")
    is_plain = len(options) == 1 and separator != BETWEEN_ELEMENTS
    return Suggestion(
        facts.name,
        "categories",
        f"{how}: {distinct:,} different ones, up to {most} in a cell{empty}",
        multi=_quoted(separator) if is_plain else f"{{ {', '.join(options)} }}".replace("{  }", "{}"),
    )


def _of_numbers(facts: _Facts, sample: RowSample, many: bool, missing: str) -> Suggestion:
    numbers = facts.numbers
    values = f"{facts.distinct:,} different values, {min(numbers):g} to {max(numbers):g}{missing}"
    is_whole = facts.all_are(_WHOLE.fullmatch)
    has_id_name = _ID_WORDS.search(facts.name) is not None
    if is_whole and many and not facts.share_missing and has_id_name:
        return Suggestion(facts.name, "keys", "a number of its own in every row: it names the row, and is no feature")
    if is_whole and has_id_name:
        return Suggestion(facts.name, "categories", f"whole numbers that its name calls a code, {values}")
    is_small = all(abs(number) <= _LARGEST_INT32 for number in numbers)
    if is_whole and is_code(facts.name, facts.distinct, sample.num_rows):
        return Suggestion(facts.name, "categories", f"few whole numbers, rather codes than amounts, {values}")
    if is_whole and is_small and sample.is_whole:
        return Suggestion(facts.name, "integers", f"whole numbers, {values}")
    negative = "; negative ones count as 0 unless [transforms] says otherwise" if min(numbers) < 0 else ""
    return Suggestion(facts.name, "decimals", f"{'whole ' if is_whole else ''}numbers, {values}{negative}")


def _time_reason(facts: _Facts) -> str:
    """Says why a column is a time; empty where it is none."""
    if facts.all_are(is_number):
        numbers = facts.numbers
        is_epoch = any(low <= min(numbers) and max(numbers) <= high for low, high in _EPOCHS)
        return "seconds or parts of them since 1970" if is_epoch and _TIME_WORDS.search(facts.name) else ""
    some = list(facts.counts)[:1000]
    return f"{min(facts.counts)} to {max(facts.counts)}" if all(map(_is_date, some)) else ""


def _is_date(cell: str) -> bool:
    try:
        datetime.fromisoformat(cell)
    except ValueError:
        return False
    return not cell.isdecimal()


def _separator_of(facts: _Facts) -> str:
    """Finds what stands between several values in a cell: with it, there are fewer different ones than without.

    Commas are in texts too, and have to make them half as many.
    """
    for separator in _SEPARATORS:
        several = [cell for cell in facts.cells if separator in cell]
        if 5 * len(several) > len(facts.cells):
            parts = {part.strip() for cell in facts.counts for part in cell.split(separator)} - {""}
            if len(parts) * (2 if separator == "," else 1) < facts.distinct:
                return separator
    return ""


def _complete(suggestions: list[Suggestion], sample: RowSample) -> list[Suggestion]:
    """Sees to it that there is a number and a category, which every data set has."""
    features = [one for one in suggestions if one.role in ("integers", "decimals", "categories", "hashes")]
    dense = [one for one in features if one.role in ("integers", "decimals")]
    if not dense:
        change = _first_numbers(features, sample)
        suggestions = [change if one.name == change.name else one for one in suggestions]
        dense, features = [change], [change if one.name == change.name else one for one in features]
    if len(dense) < len(features):
        return suggestions
    if len(dense) < 2:
        raise DataError("there is one column of numbers and no other; a data set has a number and a category at least")
    fewest = dense[-1]
    change = replace(fewest, transform="buckets", reason=f"{fewest.reason}; as buckets, for want of another category")
    return [change if one.name == fewest.name else one for one in suggestions]


def _first_numbers(features: Sequence[Suggestion], sample: RowSample) -> Suggestion:
    """Chooses which of the categories is to be a number: the one with the most values."""
    columns = dict(zip(sample.names, sample.columns, strict=True))
    every = [_facts(one.name, columns[one.name] or []) for one in features]
    numbers = [facts for facts in every if facts.all_are(is_number)]
    if numbers:
        facts = max(numbers, key=lambda facts: facts.distinct)
        reason = f"numbers, {facts.distinct:,} different values; perhaps codes, but there is no other number"
        return Suggestion(facts.name, "decimals", reason)
    raise DataError(
        "no column holds numbers; a data set has one column of numbers at least, such as a count or a price"
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _plain(text: str) -> str:
    """Shortens a text for a comment."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
