"""What generated rows are drawn from: which Criteo field each table and each dense feature imitates, as flat arrays.

Inverse distribution functions are tables that a kernel reads in a few nanoseconds: CELLS + 1 equally spaced points over
all shares and FINE_CELLS + 1 over the last cell, where the rarest values live. Read with linear interpolation and
rounded down, they give ranks of categories or values of integers.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.synthetic.click_model import (
    BASE_CLICK_RATE,
    CATEGORY_MODELS,
    HIDDEN_LEADS,
    INTEGER_MODELS,
    PAIR_MODELS,
    EffectSizes,
)
from dqrm_cpu.data.synthetic.fields import CATEGORICAL_FIELDS, INTEGER_FIELDS, CategoricalField, IntegerField
from dqrm_cpu.kernels.hashing import splitmix64

CATEGORY = np.dtype(
    [
        ("own_draw", np.uint64),  # number of the draw that decides the value
        ("missing_draw", np.uint64),
        ("world", np.uint64),  # what the effects of the values are hashed with
        ("hidden", np.int64),  # which hidden id it follows
        ("hidden_share", np.float64),  # in what share of the rows
        ("missing_share", np.float64),
        ("num_common", np.int64),  # ranks below are of values that come back often enough to be learned
        ("common_spread", np.float64),  # of their hashed effects
        ("spread", np.float64),  # of those of rarer values
        ("num_heads", np.int64),  # ranks whose effects are given rather than hashed
    ],
    align=True,
)
"""The record of a categorical field. Records, not an array for each property: numba counts references to arrays."""

INTEGER = np.dtype(
    [
        ("own_draw", np.uint64),
        ("missing_draw", np.uint64),
        ("missing_share", np.float64),
        ("activity", np.float64),  # how far the field leans on the hidden activity of the row
        ("slope", np.float64),
        ("spike", np.float64),
        ("missing_effect", np.float64),
    ],
    align=True,
)
"""The record of an integer field."""

PAIR = np.dtype([("first", np.int64), ("second", np.int64), ("spread", np.float64)], align=True)
"""The record of a product between two categorical fields, by their places."""

Records = NDArray[np.void]
Floats = NDArray[np.float32]


class World(NamedTuple):
    """The distributions that rows are drawn from: T categorical fields, D integer fields, H hidden ids, P pairs."""

    categories: Records  # CATEGORY[T]
    category_quantiles: Floats  # [T, POINTS]
    head_effects: Floats  # [T, HEADS + 1] of a missing cell, then of the commonest values
    integers: Records  # INTEGER[D]
    integer_quantiles: Floats  # [D, POINTS]
    hidden_draws: NDArray[np.uint64]  # [H]
    hidden_quantiles: Floats  # [H, POINTS]
    pairs: Records  # PAIR[P]


class StreamKeys(NamedTuple):
    """The seed, the first row to make, and the bias."""

    seed: np.uint64
    start: int
    bias: float  # of the log odds


class RawArrays(NamedTuple):
    """The arrays that n raw rows go to."""

    integers: NDArray[np.int32]  # [n, D]
    ranks: NDArray[np.int32]  # [T, n]
    log_odds: NDArray[np.float32]  # [n] before the bias
    label: NDArray[np.float32]  # [n]


class Folding(NamedTuple):
    """The numbers by which ranks become ids of T tables."""

    first_id: NDArray[np.int64]  # [T] 1 where id 0 stands for a missing cell
    rows: NDArray[np.int64]  # [T]


CELLS = 4096
FINE_CELLS = 1024
POINTS = CELLS + 1 + FINE_CELLS + 1


def table_shares() -> NDArray[np.float64]:
    """Returns the shares, in (0, 1), at which a table holds its points: coarse ones, then those of the last cell."""
    coarse = np.arange(CELLS + 1) / CELLS
    fine = 1 - 1 / CELLS + np.arange(FINE_CELLS + 1) / (FINE_CELLS * CELLS)
    return np.concatenate([coarse, fine])


def rank_quantiles(field: CategoricalField, num_ranks: int) -> NDArray[np.float32]:
    """Computes quantiles of the rank of a present cell; num_ranks beyond the field's own stretch its tail."""
    head = np.asarray(field.head_shares)
    own_ranks = field.num_values - field.first_id
    if not field.tail_ranks:
        edges, ranks = np.concatenate([[0], np.cumsum(head)]), np.arange(head.size + 1.0)
        return np.asarray(np.interp(table_shares(), edges / edges[-1], ranks), np.float32)
    tail = np.asarray(field.tail_shares)
    head_mass = head.sum() / (head.sum() + tail.sum())
    edges = np.concatenate([[0], np.cumsum(head) / head.sum() * head_mass])
    tail_edges = head_mass + np.concatenate([[0], np.cumsum(tail) / tail.sum()]) * (1 - head_mass)
    shares = table_shares()
    in_head = np.interp(shares, edges, np.arange(head.size + 1.0))
    in_tail = np.exp(np.interp(shares, tail_edges, np.log(field.tail_ranks)))
    if num_ranks > own_ranks:
        in_tail = head.size * (in_tail / head.size) ** (np.log(num_ranks / head.size) / np.log(own_ranks / head.size))
    return np.where(shares < head_mass, in_head, in_tail).astype(np.float32)


def integer_quantiles(field: IntegerField) -> NDArray[np.float32]:
    """Computes quantiles of the value of a present cell."""
    shares, values = np.asarray(field.points).T
    return np.asarray(np.interp(table_shares(), shares, values), np.float32)


_TABLE_DRAWS = 1 << 10
_HIDDEN_DRAWS = 1 << 32
_MISSING_DRAWS = 1 << 33
_INTEGER_DRAWS = 1 << 34
_INTEGER_MISSING_DRAWS = 1 << 35
_DRAWS_PER_FIELD = 8
_MISSING_DRAW = 2  # after its own draw; the kernel takes numbers 1 and 3
_GROUPS_PER_COPY = 64

_CLICKS_TO_TRUST = 50.0
"""A measured click rate counts in full only where it was seen much more often than this."""


class Role(NamedTuple):
    """The field that a table imitates; a second table of the same field is copy 1, independent of copy 0."""

    field: CategoricalField
    copy: int


def assign_roles(table_rows: tuple[int, ...]) -> tuple[Role, ...]:
    """Assigns fields by position where all tables fit the ones there, else by size: rich fields to large tables."""
    fields = CATEGORICAL_FIELDS
    if all(rows <= fields[t % len(fields)].num_values for t, rows in enumerate(table_rows)):
        return tuple(Role(fields[t % len(fields)], t // len(fields)) for t in range(len(table_rows)))
    by_richness = sorted(fields, key=lambda field: -field.num_values)
    by_size = sorted(range(len(table_rows)), key=lambda t: -table_rows[t])
    roles: dict[int, Role] = {}
    copies: dict[str, int] = {}
    for place, t in enumerate(by_size):
        field = by_richness[place * len(fields) // len(table_rows)]
        copy = copies.get(field.name, 0)
        copies[field.name] = copy + 1
        roles[t] = Role(field, copy)
    return tuple(roles[t] for t in range(len(table_rows)))


def _log_odds(rate: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(rate / (1 - rate)))


def _head_effects(field: CategoricalField) -> NDArray[np.float32]:
    """Effects of a missing cell (none) and of the ten commonest values, rates of rare ones drawn to the base rate."""
    rates, shares = np.asarray(field.head_click_rates), np.asarray(field.head_shares)
    seen = shares * 80_000 * (1 - field.missing_share)
    trusted = (rates * seen + BASE_CLICK_RATE * _CLICKS_TO_TRUST) / (seen + _CLICKS_TO_TRUST)
    effects = np.zeros(11, np.float32)
    effects[1 : 1 + rates.size] = CATEGORY_MODELS[field.name].head_weight * (
        _log_odds(trusted) - _log_odds(np.asarray(BASE_CLICK_RATE))
    )
    return effects


def _copies(roles: tuple[Role, ...]) -> int:
    return max((role.copy for role in roles), default=0) + 1


def count_common(quantiles: NDArray[np.float32], share: float) -> int:
    """Returns how many ranks have this share of the cells or more, by the quantiles of the rank."""
    ranks = quantiles.astype(np.float64)
    common = np.diff(table_shares()) >= share * np.diff(ranks)
    # The last coarse cell and the first fine one meet at the same share: a step of nothing.
    return int(ranks[1:][common & (np.diff(ranks) > 0)].max(initial=0))


def build_categories(
    roles: tuple[Role, ...], quantiles: NDArray[np.float32], seed_key: int, effects: EffectSizes
) -> NDArray[np.void]:
    """Builds CATEGORY[T] of fields with these quantiles; several copies of a field share its strength."""
    records = np.zeros(len(roles), CATEGORY)
    for t, role in enumerate(roles):
        model, copy = CATEGORY_MODELS[role.field.name], role.copy
        own = _TABLE_DRAWS + _DRAWS_PER_FIELD * t
        alone = model.missing_group < 0
        records[t]["own_draw"] = own
        records[t]["missing_draw"] = (
            own + _MISSING_DRAW if alone else _MISSING_DRAWS + copy * _GROUPS_PER_COPY + model.missing_group
        )
        records[t]["world"] = splitmix64(seed_key, 1 + CATEGORICAL_FIELDS.index(role.field) + 32 * copy)
        records[t]["hidden"] = max(model.hidden, 0) + len(HIDDEN_LEADS) * copy
        records[t]["hidden_share"] = model.hidden_share if model.hidden >= 0 else 0.0
        records[t]["missing_share"] = role.field.missing_share
        spread = model.spread * _copies(roles) ** -0.5
        records[t]["num_common"] = count_common(quantiles[t], effects.common_share)
        records[t]["common_spread"], records[t]["spread"] = effects.common * spread, effects.rare * spread
        records[t]["num_heads"] = len(role.field.head_shares) if model.head_weight > 0 else 0
    return records


def build_hidden_quantiles(roles: tuple[Role, ...], table_rows: tuple[int, ...]) -> NDArray[np.float32]:
    """Builds the quantiles of one hidden id of each kind for each copy.

    Each is as rich as the field that leads it, or as the largest table that follows it.
    """
    fields = {field.name: field for field in CATEGORICAL_FIELDS}
    quantiles = []
    for copy in range(_copies(roles)):
        for hidden, lead in enumerate(HIDDEN_LEADS):
            followers = [
                rows
                for role, rows in zip(roles, table_rows, strict=True)
                if role.copy == copy and CATEGORY_MODELS[role.field.name].hidden == hidden
            ]
            quantiles.append(rank_quantiles(fields[lead], max(followers, default=0)))
    return np.stack(quantiles)


def build_integers(num_dense: int, effects: EffectSizes) -> NDArray[np.void]:
    """Builds INTEGER[D], I1 to I13 and again from I1; several copies of a field share its strength."""
    records = np.zeros(num_dense, INTEGER)
    strength = effects.curves * math.ceil(max(num_dense, 1) / len(INTEGER_FIELDS)) ** -0.5
    for d in range(num_dense):
        copy, place = divmod(d, len(INTEGER_FIELDS))
        field = INTEGER_FIELDS[place]
        model = INTEGER_MODELS[field.name]
        own = _INTEGER_DRAWS + _DRAWS_PER_FIELD * d
        alone = model.missing_group < 0
        records[d]["own_draw"] = own
        records[d]["missing_draw"] = (
            own + _MISSING_DRAW if alone else _INTEGER_MISSING_DRAWS + copy * _GROUPS_PER_COPY + model.missing_group
        )
        records[d]["missing_share"] = field.missing_share
        records[d]["activity"] = model.activity
        records[d]["slope"] = model.slope * strength
        records[d]["spike"] = model.spike * strength
        records[d]["missing_effect"] = model.missing_effect * strength
    return records


def build_pairs(roles: tuple[Role, ...], effects: EffectSizes) -> NDArray[np.void]:
    """Builds PAIR[P]: the products whose two fields both have a table, of each copy."""
    place = {(role.field.name, role.copy): t for t, role in enumerate(roles)}
    copies = _copies(roles)
    found = [
        (place[pair.first, copy], place[pair.second, copy], effects.pairs * pair.spread * copies**-0.5)
        for pair in PAIR_MODELS
        for copy in range(copies)
        if (pair.first, copy) in place and (pair.second, copy) in place
    ]
    return np.array(found, PAIR)


def build_world(
    roles: tuple[Role, ...], table_rows: tuple[int, ...], num_dense: int, seed_key: int, effects: EffectSizes
) -> World:
    """Builds everything that the rows of these tables and dense features are drawn from."""
    hidden_quantiles = build_hidden_quantiles(roles, table_rows)
    integer_tables = [integer_quantiles(INTEGER_FIELDS[d % len(INTEGER_FIELDS)]) for d in range(num_dense)]
    pairs = zip(roles, table_rows, strict=True)
    rank_tables = np.stack([rank_quantiles(role.field, rows - role.field.first_id) for role, rows in pairs])
    heads = np.stack([_head_effects(role.field) for role in roles]) * np.float32(effects.heads * _copies(roles) ** -0.5)
    return World(
        categories=build_categories(roles, rank_tables, seed_key, effects),
        category_quantiles=rank_tables,
        head_effects=heads,
        integers=build_integers(num_dense, effects),
        integer_quantiles=np.stack(integer_tables) if integer_tables else np.empty((0, POINTS), np.float32),
        hidden_draws=np.arange(len(hidden_quantiles), dtype=np.uint64) + np.uint64(_HIDDEN_DRAWS),
        hidden_quantiles=hidden_quantiles,
        pairs=build_pairs(roles, effects),
    )
