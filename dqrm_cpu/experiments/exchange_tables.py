"""Tables 6 and 10: what rounding gradients between ranks costs, with ranks simulated in one process."""

from dqrm_cpu.experiments.experiment import Experiment, Family, Paper, Variant


def four_ranks(name: str, paper: Paper = Paper(), **comm: str) -> Variant:  # noqa: B008  # frozen
    """Four simulated ranks, the model in INT4."""
    return simulated(name, 4, paper, **comm)


def simulated(name: str, ranks: int, paper: Paper = Paper(), **comm: str) -> Variant:  # noqa: B008  # frozen
    """Data parallel over simulated ranks; `comm` are settings of that section."""
    settings = {"quant.method": "dqrm", "comm.simulated_ranks": str(ranks)}
    return Variant(name, settings | {f"comm.{key}": value for key, value in comm.items()}, paper)


_FP32_GRADIENTS = four_ranks("FP32 gradients", Paper(78.897, 0.8035))

TABLE_6 = Experiment(
    "table6",
    "Table 6: INT8 gradients and error compensation",
    "Four simulated ranks. The paper: rounding the tables' gradients costs little, the MLPs' more, and giving back "
    "what rounding took from the MLPs repairs most of it.",
    (
        _FP32_GRADIENTS,
        four_ranks("embedding gradients INT8", Paper(78.858, 0.8023), wire="int8"),
        four_ranks("embedding and MLP INT8", Paper(78.608, 0.7974), wire="int8", mlp_gradients="int8"),
        four_ranks(
            "embedding and MLP INT8, MLP error feedback",
            Paper(78.840, 0.8023),
            wire="int8",
            mlp_gradients="int8",
            error_feedback="mlp",
        ),
    ),
    _FP32_GRADIENTS.name,
)

_INT8 = {"wire": "int8", "mlp_gradients": "int8", "error_feedback": "mlp"}

_ONE_NODE = simulated("1 node", 1, Paper(), **_INT8)

TABLE_10 = Experiment(
    "table10",
    "Table 10: INT8 gradients on more nodes",
    "The batch is split over simulated nodes, gradients travel in INT8 with error feedback of the MLPs. The paper: a "
    "small, steady loss with the number of nodes. Its figures are missing from the text that we have.",
    (_ONE_NODE, *(simulated(f"{nodes} nodes", nodes, Paper(), **_INT8) for nodes in (2, 4, 8))),
    _ONE_NODE.name,
    Family.TERABYTE,
)
