"""All rows of the fault table, in the order of docs/reliability.md."""

from row import Row
from rows import caches, flips, hostile, inputs, kills, lives, ranks, script

ROWS: tuple[Row, ...] = (
    *kills.ROWS,
    *script.ROWS,
    *flips.ROWS,
    *caches.ROWS,
    *hostile.ROWS,
    *inputs.ROWS,
    *lives.ROWS,
    *ranks.ROWS,
)
