"""The planted click model: which fields share a hidden id, and how much each value moves the click rate.

A row's log odds are a bias plus one effect for each value, products between pairs of fields, and a curve of each
integer field. The commonest values lean towards the click rates measured on the Criteo Kaggle set; rarer ones carry
hashed normal effects, so that a value is worth learning exactly as far as it comes back.
"""

from typing import NamedTuple

BASE_CLICK_RATE = 0.2245

PAIR_RANK_LIMIT = 4096
"""Values rarer than this rank take no part in the products: nothing could learn them, they would be label noise."""


class EffectSizes(NamedTuple):
    """How far the effects of values spread, as a multiple of what the fields have."""

    common: float = 1.0  # of values with common_share of a field's cells or more: the hashed ones
    rare: float = 1.0  # of the others
    pairs: float = 1.0  # of the products
    common_share: float = 1e-4
    heads: float = 1.0  # of the commonest values, which lean towards click rates that were measured
    curves: float = 1.0  # of the integers'


OF_KNOWN_IDS = EffectSizes(common=6.0, rare=0.0, pairs=0.3, common_share=2e-4, heads=1.3, curves=0.4)
"""Where tables hold the ids that occur: with these, models do to each other what they do on the real rows."""

VERSION_OF_KNOWN_IDS = 2
"""The number of the effects above, by which a run knows that its rows have not got other clicks since."""

HIDDEN_LEADS = ("C3", "C7", "C15")
"""The hidden ids, each with the marginal of the richest field that is a function of it."""


class CategoryModel(NamedTuple):
    """The relations of one categorical field to others and to the click."""

    hidden: int = -1  # which of HIDDEN_LEADS the field is a function of; -1: a field of its own
    hidden_share: float = 1.0  # the share of the rows in which the field follows the hidden id
    missing_group: int = -1  # fields of one group are missing in the same rows
    head_weight: float = 0.0  # times the measured log odds of the ten commonest values; 0: hashed effects for them too
    spread: float = 0.0  # standard deviation of the hashed effects, in log odds


class IntegerModel(NamedTuple):
    """The effect of one integer field on the click rate along its quantiles, in log odds."""

    slope: float  # from the smallest value to the largest
    spike: float = 0.0  # on top at the smallest, gone by the middle
    missing_effect: float = 0.0
    missing_group: int = -1
    activity: float = 0.0  # weight of the hidden activity of the row in the field's quantile


class PairModel(NamedTuple):
    """A product between hashed vectors of two categorical fields."""

    first: str
    second: str
    spread: float


CATEGORY_MODELS = {
    "C1": CategoryModel(),
    "C2": CategoryModel(hidden=2, hidden_share=0.4, head_weight=0.6, spread=0.06),
    "C3": CategoryModel(hidden=0, missing_group=0, head_weight=0.95, spread=0.09),
    "C4": CategoryModel(hidden=0, missing_group=0, spread=0.1),
    "C5": CategoryModel(),
    "C6": CategoryModel(head_weight=0.75),
    "C7": CategoryModel(hidden=1, head_weight=0.85, spread=0.09),
    "C8": CategoryModel(),
    "C9": CategoryModel(head_weight=0.85),
    "C10": CategoryModel(head_weight=0.8, spread=0.08),
    "C11": CategoryModel(hidden=1, hidden_share=0.97, spread=0.09),
    "C12": CategoryModel(hidden=0, missing_group=0),
    "C13": CategoryModel(hidden=1, hidden_share=0.97, spread=0.08),
    "C14": CategoryModel(hidden=2, hidden_share=0.4, head_weight=0.6, spread=0.09),
    "C15": CategoryModel(hidden=2, head_weight=0.6, spread=0.09),
    "C16": CategoryModel(hidden=0, missing_group=0),
    "C17": CategoryModel(hidden=2, hidden_share=0.4, head_weight=0.75),
    "C18": CategoryModel(hidden=2, hidden_share=0.4, head_weight=0.6, spread=0.08),
    "C19": CategoryModel(missing_group=1, head_weight=0.6, spread=0.06),
    "C20": CategoryModel(missing_group=1, head_weight=0.6),
    "C21": CategoryModel(hidden=0, hidden_share=0.999, missing_group=0),
    "C22": CategoryModel(head_weight=0.6),
    "C23": CategoryModel(hidden=2, hidden_share=0.4, head_weight=0.6),
    "C24": CategoryModel(hidden=0, missing_group=0, spread=0.1),
    "C25": CategoryModel(missing_group=1, head_weight=0.6, spread=0.06),
    "C26": CategoryModel(hidden=0, missing_group=1, spread=0.09),
}

INTEGER_MODELS = {
    "I1": IntegerModel(slope=0.9, missing_effect=-0.6, missing_group=0, activity=0.3),
    "I2": IntegerModel(slope=0.1),
    "I3": IntegerModel(slope=-0.45, missing_effect=0.2),
    "I4": IntegerModel(slope=-0.15, spike=0.5, missing_group=1),
    "I5": IntegerModel(slope=-0.5, spike=1.0, missing_effect=-0.85, activity=-0.3),
    "I6": IntegerModel(slope=-0.9, spike=1.1, missing_effect=-0.9, activity=-0.3),
    "I7": IntegerModel(slope=0.65, missing_effect=-0.2, missing_group=2, activity=0.6),
    "I8": IntegerModel(slope=-0.35, missing_effect=-0.35),
    "I9": IntegerModel(slope=0.15, missing_effect=-0.2, missing_group=2, activity=0.4),
    "I10": IntegerModel(slope=1.0, missing_group=0),
    "I11": IntegerModel(slope=1.0, missing_effect=-0.2, missing_group=2, activity=0.6),
    "I12": IntegerModel(slope=0.35, missing_effect=-0.1),
    "I13": IntegerModel(slope=-0.5, spike=1.4, missing_group=1),
}

PAIR_MODELS = (
    PairModel("C24", "C11", 0.09),
    PairModel("C4", "C15", 0.08),
    PairModel("C17", "C7", 0.09),
    PairModel("C14", "C24", 0.09),
    PairModel("C2", "C13", 0.08),
)
