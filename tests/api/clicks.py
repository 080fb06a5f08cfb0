"""Clicks of a made-up shop as columns in memory: numbers with gaps, negative ones, codes, texts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA: dict[str, Any] = {"label": "click", "categories": ["item", "device"], "decimals": ["price", "balance"]}
QUICK: dict[str, Any] = {
    "model": {"embedding_dim": 6, "bottom_mlp": [9, 6], "top_mlp": [11, 1]},
    "train": {"epochs": 2, "batch_size": 50, "log_every": 5, "optimizer": "rowwise-adagrad"},
}
QUICK_OPTIONS = [
    *("--model.embedding-dim", "6", "--model.bottom-mlp", "9,6", "--model.top-mlp", "11,1", "--train.epochs", "2"),
    *("--train.batch-size", "50", "--train.log-every", "5", "--train.optimizer", "rowwise-adagrad"),
]


def click_columns(rows: int = 1500, seed: int = 1) -> dict[str, NDArray[Any]]:
    """Returns columns by name, `click` first, of which `item` and `balance` say most."""
    chance = np.random.default_rng(seed)
    item, device = chance.integers(0, 30, rows), chance.choice(["phone", "tablet", "laptop"], rows)
    price, balance = chance.exponential(3, rows), chance.normal(0, 1, rows)
    logits = (item % 5) - 2 + 0.5 * (device == "tablet") + 2 * balance
    click = (chance.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    price[::17] = np.nan
    return {"click": click, "item": item, "device": device, "price": price, "balance": balance}
