"""Which Criteo field each table and each dense feature imitates, and the arrays that the kernel reads."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.synthetic.categorical_fields import CATEGORICAL_FIELDS, CategoricalField
from dqrm_cpu.data.synthetic.click_model import (
    BASE_CLICK_RATE,
    CATEGORY_MODELS,
    HIDDEN_LEADS,
    INTEGER_MODELS,
    PAIR_MODELS,
)
from dqrm_cpu.data.synthetic.draws import mix
from dqrm_cpu.data.synthetic.integer_fields import INTEGER_FIELDS
from dqrm_cpu.data.synthetic.kernel import MISSING_DRAW
from dqrm_cpu.data.synthetic.quantiles import POINTS, integer_quantiles, rank_quantiles
from dqrm_cpu.data.synthetic.world import CATEGORY, INTEGER, PAIR, World

_TABLE_DRAWS = 1 << 10
_HIDDEN_DRAWS = 1 << 32
_MISSING_DRAWS = 1 << 33
_INTEGER_DRAWS = 1 << 34
_INTEGER_MISSING_DRAWS = 1 << 35
_DRAWS_PER_FIELD = 8
_GROUPS_PER_COPY = 64

_CLICKS_TO_TRUST = 50.0
"""A measured click rate counts in full only where it was seen much more often than this."""


class Role(NamedTuple):
    """The field that a table imitates; a second table of the same field is copy 1, independent of copy 0."""

    field: CategoricalField
    copy: int


def assign_roles(table_rows: tuple[int, ...]) -> tuple[Role, ...]:
    """By position where every table fits the Kaggle field at its place, else by size: large tables get rich fields."""
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


def build_categories(roles: tuple[Role, ...], seed_key: int) -> NDArray[np.void]:
    """CATEGORY[T]; several copies of a field share its strength."""
    records = np.zeros(len(roles), CATEGORY)
    for t, role in enumerate(roles):
        model, copy = CATEGORY_MODELS[role.field.name], role.copy
        own = _TABLE_DRAWS + _DRAWS_PER_FIELD * t
        alone = model.missing_group < 0
        records[t]["own_draw"] = own
        records[t]["missing_draw"] = (
            own + int(MISSING_DRAW) if alone else _MISSING_DRAWS + copy * _GROUPS_PER_COPY + model.missing_group
        )
        records[t]["world"] = _hash(seed_key, 1 + CATEGORICAL_FIELDS.index(role.field) + 32 * copy)
        records[t]["hidden"] = max(model.hidden, 0) + len(HIDDEN_LEADS) * copy
        records[t]["hidden_share"] = model.hidden_share if model.hidden >= 0 else 0.0
        records[t]["missing_share"] = role.field.missing_share
        records[t]["spread"] = model.spread * _copies(roles) ** -0.5
        records[t]["num_heads"] = len(role.field.head_shares) if model.head_weight > 0 else 0
    return records


def build_hidden_quantiles(roles: tuple[Role, ...], table_rows: tuple[int, ...]) -> NDArray[np.float32]:
    """One id of each kind for each copy, as rich as the field that leads it or as the largest table that follows it."""
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


def build_integers(num_dense: int) -> NDArray[np.void]:
    """INTEGER[D], I1 to I13 and again from I1; several copies of a field share its strength."""
    records = np.zeros(num_dense, INTEGER)
    strength = math.ceil(max(num_dense, 1) / len(INTEGER_FIELDS)) ** -0.5
    for d in range(num_dense):
        copy, place = divmod(d, len(INTEGER_FIELDS))
        field = INTEGER_FIELDS[place]
        model = INTEGER_MODELS[field.name]
        own = _INTEGER_DRAWS + _DRAWS_PER_FIELD * d
        alone = model.missing_group < 0
        records[d]["own_draw"] = own
        records[d]["missing_draw"] = (
            own + int(MISSING_DRAW) if alone else _INTEGER_MISSING_DRAWS + copy * _GROUPS_PER_COPY + model.missing_group
        )
        records[d]["missing_share"] = field.missing_share
        records[d]["activity"] = model.activity
        records[d]["slope"] = model.slope * strength
        records[d]["spike"] = model.spike * strength
        records[d]["missing_effect"] = model.missing_effect * strength
    return records


def build_pairs(roles: tuple[Role, ...]) -> NDArray[np.void]:
    """PAIR[P]: the products whose two fields both have a table, of each copy."""
    place = {(role.field.name, role.copy): t for t, role in enumerate(roles)}
    copies = _copies(roles)
    found = [
        (place[pair.first, copy], place[pair.second, copy], pair.spread * copies**-0.5)
        for pair in PAIR_MODELS
        for copy in range(copies)
        if (pair.first, copy) in place and (pair.second, copy) in place
    ]
    return np.array(found, PAIR)


def build_world(roles: tuple[Role, ...], table_rows: tuple[int, ...], num_dense: int, seed_key: int) -> World:
    """Everything that the rows of these tables and dense features are drawn from."""
    hidden_quantiles = build_hidden_quantiles(roles, table_rows)
    integer_tables = [integer_quantiles(INTEGER_FIELDS[d % len(INTEGER_FIELDS)]) for d in range(num_dense)]
    rank_tables = [
        rank_quantiles(role.field, rows - role.field.first_id) for role, rows in zip(roles, table_rows, strict=True)
    ]
    heads = np.stack([_head_effects(role.field) for role in roles]) * np.float32(_copies(roles) ** -0.5)
    return World(
        categories=build_categories(roles, seed_key),
        category_quantiles=np.stack(rank_tables),
        head_effects=heads,
        integers=build_integers(num_dense),
        integer_quantiles=np.stack(integer_tables) if integer_tables else np.empty((0, POINTS), np.float32),
        hidden_draws=np.arange(len(hidden_quantiles), dtype=np.uint64) + np.uint64(_HIDDEN_DRAWS),
        hidden_quantiles=hidden_quantiles,
        pairs=build_pairs(roles),
    )


def _hash(key: int, number: int) -> int:
    with np.errstate(over="ignore"):
        return int(mix(np.uint64((key + number * 0x9E3779B97F4A7C15) % 2**64)))
