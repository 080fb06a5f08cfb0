"""What sharded tables take on each node and send in a step, computed from the rows of one measured batch."""

from collections.abc import Sequence
from dataclasses import dataclass

from dqrm_cpu.comm.sharding.placement import TableLoad, held_bytes, place_tables
from dqrm_cpu.config import preset_config
from dqrm_cpu.config.schema import ModelConfig

_ID_BYTES, _FLOAT_BYTES = 4, 4
_WORTH_IT = 1.5
"""So many times fewer bytes are worth three more messages in a step."""

PRESET_OF_CASE = {"kaggle_2048": "kaggle", "terabyte_2048": "terabyte"}


@dataclass(frozen=True)
class ShardedTables:
    """Tables on N nodes, one rank on each; bytes of the node with the most, received in a step."""

    nodes: int
    replicated_bytes: int  # of all tables: what a node holds without sharding
    held_bytes: int
    received_replicated: float  # INT8 gradients of every other node
    received_sharded: float  # numbers of rows, rows in 4 bits, INT8 gradients

    @property
    def is_better(self) -> bool:
        """Tells whether sharding saves enough traffic to be worth it where memory is not short."""
        return self.received_replicated > _WORTH_IT * self.received_sharded


def shard_tables(model: ModelConfig, rows_of_batch: float, batch: int, nodes: int) -> ShardedTables:
    """Places a model's tables on nodes whose batches look up so many different rows each."""
    dim = model.embedding_dim
    loads = [TableLoad(rows, _FLOAT_BYTES * dim, min(batch, rows)) for rows in model.table_rows]
    placement = place_tables(loads, nodes)
    others = (nodes - 1) / nodes
    gradient, row = dim, dim / 2
    return ShardedTables(
        nodes,
        sum(load.num_bytes for load in loads),
        max(held_bytes(placement, loads, rank) for rank in range(nodes)),
        (nodes - 1) * rows_of_batch * (_ID_BYTES + gradient),
        others * rows_of_batch * (_ID_BYTES + row + gradient),
    )


def placement_table(model: ModelConfig, optimizer_bytes: int, lookups: float, nodes: Sequence[int]) -> list[str]:
    """Returns lines that say where all tables would lie on so many nodes, and what a node holds of them.

    `optimizer_bytes`: what the optimizer keeps of a row; `lookups`: those of a batch in each table.
    """
    row_bytes = _FLOAT_BYTES * model.embedding_dim + optimizer_bytes
    loads = [TableLoad(rows, row_bytes, min(lookups, rows)) for rows in model.table_rows]
    total = sum(load.num_bytes for load in loads)
    lines = [
        f"computed: {len(loads)} tables of {sum(model.table_rows):,} rows, D {model.embedding_dim}, FP32: "
        f"{total / 1e9:.2f} GB on every node where they are not sharded",
        "  nodes   GB on the fullest   on the emptiest   tables on all   whole on one   cut over all",
    ]
    for count in nodes:
        placement = place_tables(loads, count)
        held = [held_bytes(placement, loads, rank) / 1e9 for rank in range(count)]
        cut = len({one.table for one in placement.stretches if one.num_rows < placement.table_rows[one.table]})
        everywhere = sum(placement.replicated)
        lines.append(
            f"  {count:>5}   {max(held):>17.2f}   {min(held):>15.2f}   {everywhere:>13}   "
            f"{len(loads) - everywhere - cut:>12}   {cut:>12}"
        )
    return lines


def model_of_case(case: str) -> ModelConfig:
    """Returns the model that a case of the step benchmark is cut from."""
    return preset_config(PRESET_OF_CASE[case]).model


def rows_of_message(message_bytes: float, dim: int) -> float:
    """Returns the different rows of a batch, from the bytes of its INT8 message."""
    return message_bytes / (_ID_BYTES + dim)


def advice(plans: Sequence[ShardedTables]) -> str:
    """Says from how many nodes on tables should be sharded."""
    better = [plan.nodes for plan in plans if plan.is_better]
    if not better:
        return "shard tables (--comm.tables shard) where a node's memory does not hold all of them"
    return (
        f"shard tables (--comm.tables shard) from {min(better)} nodes on, for the network's sake; with fewer nodes "
        "where one's memory does not hold all of them"
    )
