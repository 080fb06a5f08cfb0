"""What a model file says of itself: its columns, what a value of each becomes, its layers. One JSON document.

It stands in the metadata of the file under `MODEL`. Whoever reads the file in another language needs nothing else.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

MODEL = "model"
"""Key of the metadata under which the document stands."""

VERSION = 1

INTEGER, DECIMAL = "integer", "decimal"
HEX, TEXT, BUCKETS, BAG = "hex", "text", "buckets", "bag"
LOG, IDENTITY, STANDARD, QUANTILE = "log", "identity", "standard", "quantile"
DENSE, SPARSE, BANDS = "dense", "sparse", "bands"
DOT = "dot"
CAT = "cat"
CROSS = "cross"
"""Interactions; CROSS is the part of the layers that such a network has, too."""

BOTTOM, PROJECT, TOP = "bottom", "project", "top"
PLATT, ISOTONIC = "platt", "isotonic"

FLOAT_BITS = 32

MOST_MEMBERS = 1024

_LARGEST_NUMBER = sys.float_info.max
_WIDEST = 1 << 16
_MOST = 1 << 20
"""The limit of the length of every list in the document."""

_OF_MEMBER = re.compile(r"member([1-9][0-9]*)\.(.+)")

T = TypeVar("T")


class DescriptionError(Exception):
    """A document does not describe a model that this version can read; the text says why, as a clause."""


@dataclass(frozen=True)
class NumberColumn:
    """A dense column, or one that becomes a category (`buckets`); `numbers` are those of its transform."""

    name: str
    kind: str  # integer or decimal
    transform: str = LOG
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class CategoryColumn:
    """A categorical column and its table, named C1, C2, ... in the file."""

    name: str
    kind: str  # hex, text, bag (of texts), or buckets, whose number is in the dense columns of the same name
    rows: int
    dim: int
    separator: str = ""  # between the values of a bag in a text; a list needs none
    limit: int = 0  # of the different values of a bag: more are left out


@dataclass(frozen=True)
class IdRule:
    """What gives a category its row: keys in the file, or hashing to `hash_rows`; 0 where keys are there.

    Keys are taken modulo `max_ind_range` first, where that is not 0.
    """

    key_bits: int
    max_ind_range: int = 0
    hash_rows: int = 0


@dataclass(frozen=True)
class LayerDescription:
    """A fully connected layer: its name in the file, its part of the network, its shape and the bits of its weight."""

    name: str
    part: str
    inputs: int
    outputs: int
    relu: bool
    has_bias: bool
    bits: int


@dataclass(frozen=True)
class Calibrating:
    """What corrects logits: Platt's slope and intercept, or an isotonic map's knots and the probability at each."""

    kind: str
    first: tuple[float, ...]  # slope; knots
    second: tuple[float, ...]  # intercept; values


@dataclass(frozen=True)
class Description:
    """A model: rows of numbers and categories in, logits out."""

    numbers: tuple[NumberColumn, ...]  # dense columns in their order, then those that become buckets
    categories: tuple[CategoryColumn, ...]
    ids: IdRule
    dim: int  # of the vectors that interact; tables of another one have a layer `project`
    table_bits: int
    layout: str
    mean_pooling: bool
    interaction: str
    layers: tuple[LayerDescription, ...]
    bias_bits: int
    activation_bits: int
    calibration: Calibrating | None = None
    metrics: Mapping[str, float] | None = None  # of the test rows, when it was exported
    written_by: str = ""
    members: int = 1  # of an ensemble, whose score is the mean of their logits
    version: int = VERSION

    @property
    def dense(self) -> tuple[NumberColumn, ...]:
        """The numbers that the bottom MLP reads."""
        return tuple(column for column in self.numbers if column.transform != BUCKETS)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the raw columns."""
        categories = (column.name for column in self.categories if column.kind != BUCKETS)
        return (*(column.name for column in self.numbers), *categories)

    @property
    def has_bags(self) -> bool:
        """Tells whether some column has several values in a cell."""
        return any(column.kind == BAG for column in self.categories)

    @property
    def slots(self) -> tuple[int, ...]:
        """The number of the table of each id of a row: one of each, of a bag as many as its limit."""
        return tuple(t for t, column in enumerate(self.categories) for _ in range(column.limit or 1))

    def part(self, name: str) -> tuple[LayerDescription, ...]:
        """Returns the layers of the bottom MLP, the projections, the cross network or the top MLP."""
        return tuple(layer for layer in self.layers if layer.part == name)

    @property
    def joined_width(self) -> int:
        """Values of an example that the interaction hands on."""
        count = 1 + len(self.categories)
        return self.dim + count * (count - 1) // 2 if self.interaction == DOT else count * self.dim

    def to_json(self) -> str:
        """Writes the document."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Description":
        """Reads the document; DescriptionError for anything that is not sound in itself."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DescriptionError(f"its description is no JSON ({str(error)[:100]})") from None
        if not isinstance(document, dict):
            raise DescriptionError("its description is no table")
        version = document.get("version")
        if version != VERSION:
            raise DescriptionError(f"its description has version {str(version)[:20]}, this dqrm-cpu reads {VERSION}")
        parts: dict[str, Any] = {**document}
        for key, kind in (("numbers", NumberColumn), ("categories", CategoryColumn), ("layers", LayerDescription)):
            parts[key] = tuple(_made(kind, one, key) for one in _listed(document.get(key), key))
        parts["ids"] = _made(IdRule, document.get("ids"), "ids")
        if document.get("calibration") is not None:
            parts["calibration"] = _made(Calibrating, document["calibration"], "calibration")
        found = _made(cls, parts, "model")
        _require_sound(found)
        return found


def member_tensor(number: int, name: str) -> str:
    """Returns how a file calls a tensor of a member, from 1 on; those of the first are called as in a single model."""
    return name if number == 1 else f"member{number}.{name}"


def entries_by_member(entries: Mapping[str, T], members: int) -> list[dict[str, T]] | None:
    """Returns the entries of each member by the names that they have in a single model; None for other members.

    What is of no member, such as the vocabulary, is among the entries of the first.
    """
    found: list[dict[str, T]] = [{} for _ in range(members)]
    for name, entry in entries.items():
        of_other = _OF_MEMBER.fullmatch(name)
        number, own = (int(of_other[1][:9]), of_other[2]) if of_other else (1, name)
        if number > members or (of_other and number == 1):
            return None
        found[number - 1][own] = entry
    return found if all(found) else None


def _listed(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > _MOST:
        raise DescriptionError(f"its description has no list of {where}")
    return value


def _made(kind: type[T], document: Any, where: str) -> T:
    """Makes a dataclass of a document's table; what it does not know is passed over, what it needs must be there."""
    if not isinstance(document, Mapping):
        raise DescriptionError(f"its description of {where} is no table")
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in document:
            continue
        value, wanted = document[field.name], field.type
        if wanted == tuple[float, ...]:
            value = tuple(map(_finite, _listed(value, field.name)))
        elif wanted in (str, bool, int) and (type(value) is not wanted or (isinstance(value, int) and value < 0)):
            raise DescriptionError(f"its description of {where} has {str(value)[:40]!r} as {field.name}")
        values[field.name] = value
    try:
        return kind(**values)
    except TypeError:
        raise DescriptionError(f"its description of {where} lacks a field") from None


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= _LARGEST_NUMBER:
        raise DescriptionError(f"its description has {str(value)[:40]!r} among numbers")
    return float(value)


def _require_sound(model: Description) -> None:
    """Requires known words, and layers that fit to each other."""
    words = [
        *((column.kind, (INTEGER, DECIMAL)) for column in model.numbers),
        *((column.transform, (LOG, IDENTITY, STANDARD, QUANTILE, BUCKETS)) for column in model.numbers),
        *((column.kind, (HEX, TEXT, BUCKETS, BAG)) for column in model.categories),
        *((layer.part, (BOTTOM, PROJECT, CROSS, TOP)) for layer in model.layers),
        (model.layout, (DENSE, SPARSE, BANDS)),
        (model.interaction, (DOT, CAT, CROSS)),
        *([(model.calibration.kind, (PLATT, ISOTONIC))] if model.calibration else []),
        (model.ids.key_bits, (32, 64)),
    ]
    for word, known in words:
        if word not in known:
            raise DescriptionError(f"its description says {str(word)[:40]!r} where one of {known} belongs")
    bits = [model.table_bits, model.bias_bits, model.activation_bits, *(layer.bits for layer in model.layers)]
    if any(not 1 < one <= 16 and one != FLOAT_BITS for one in bits) or model.table_bits == FLOAT_BITS:
        raise DescriptionError("its description has impossible bit widths")
    if not 0 < model.members <= MOST_MEMBERS:
        raise DescriptionError(f"its description has {model.members:,} members, 1 to {MOST_MEMBERS:,} are possible")
    _require_names(model)
    _require_transforms(model)
    _require_chain(model)


def _require_names(model: Description) -> None:
    numbers = [column.name for column in model.numbers]
    categories = [column.name for column in model.categories if column.kind != BUCKETS]
    if len({*numbers, *categories}) != len(numbers) + len(categories):
        raise DescriptionError("its description names a column twice")
    buckets = [column.name for column in model.categories if column.kind == BUCKETS]
    if buckets != [column.name for column in model.numbers if column.transform == BUCKETS]:
        raise DescriptionError("its description has other buckets among its numbers than among its categories")
    if not model.dense or not model.categories:
        raise DescriptionError("its description has no numbers or no categories")


def _require_transforms(model: Description) -> None:
    for column in model.numbers:
        rises = all(low <= high for low, high in zip(column.numbers, column.numbers[1:], strict=False))
        sound = {
            LOG: not column.numbers,
            IDENTITY: not column.numbers,
            STANDARD: len(column.numbers) == 2 and column.numbers[-1] > 0,
            QUANTILE: bool(column.numbers) and rises,
            BUCKETS: rises,
        }
        if not sound[column.transform]:
            raise DescriptionError(f"its transform of {column.name[:80]} has numbers that cannot be")
    of_calibration = model.calibration
    if of_calibration is not None:
        counts = len(of_calibration.first), len(of_calibration.second)
        if counts[0] != counts[1] or not counts[0] or (of_calibration.kind == PLATT and counts[0] != 1):
            raise DescriptionError("its calibration has numbers that cannot be")


def _require_chain(model: Description) -> None:
    """Requires that each layer reads what the one before it gives."""
    joined = model.joined_width
    if not 0 < model.dim <= _WIDEST or not 0 < joined <= _MOST:
        raise DescriptionError("its description has an impossible width")
    for part, first, last in ((BOTTOM, len(model.dense), model.dim), (CROSS, joined, joined), (TOP, joined, 1)):
        layers = model.part(part)
        if not layers and part != CROSS:
            raise DescriptionError(f"its description has no layers of the {part} MLP")
        widths = [first, *(layer.outputs for layer in layers)]
        if [layer.inputs for layer in layers] != widths[:-1] or (layers and widths[-1] != last):
            raise DescriptionError(f"its layers of {part} do not fit to each other")
        if part == CROSS and any(layer.outputs != joined for layer in layers if layer.has_bias):
            raise DescriptionError("its cross layers do not fit to each other")
    _require_tables(model)


def _require_tables(model: Description) -> None:
    """Requires a projection for each table of another dimension, in their order, and bags that can be read."""
    for column in model.categories:
        if not 0 < column.rows < 1 << 31 or not 0 < column.dim <= _WIDEST:
            raise DescriptionError("its description has a table of an impossible size")
        if (column.kind == BAG) != (column.limit > 0) or len(column.separator) > 1:
            raise DescriptionError(f"its description of {column.name[:80]} has a limit or separator that cannot be")
    if sum(column.limit or 1 for column in model.categories) > _WIDEST:
        raise DescriptionError("its description has too many ids in a row")
    if model.ids.max_ind_range >= 1 << 63 or (model.ids.hash_rows and not 1 < model.ids.hash_rows < 1 << 31):
        raise DescriptionError("its description has ids that cannot be")
    other = [
        (f"project.C{t + 1}", column.dim, model.dim)
        for t, column in enumerate(model.categories)
        if column.dim != model.dim
    ]
    if [(layer.name, layer.inputs, layer.outputs) for layer in model.part(PROJECT)] != other:
        raise DescriptionError("its projections are not those of its tables")
