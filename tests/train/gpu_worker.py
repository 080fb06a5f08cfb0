"""One rank: trains every case on DEVICE, over TRANSPORT or simulated, to FOLDER/CASE; a GPU is pretended."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dqrm_cpu.api.ranks import opened_transport
from dqrm_cpu.config import Config
from dqrm_cpu.train.run import RunRequest, train
from pretend_gpu import install
from tiny import tiny_config

RANKS = 2

CASES: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "sparse": {"comm": {"overlap": "auto"}},
    "dense": {"comm": {"wire": "dense"}, "quant": {"method": "none"}, "data": {"max_bag_size": 3}},
    "int8": {
        "comm": {"wire": "int8", "mlp_gradients": "int8", "error_feedback": "all", "rounding": "stochastic"},
        "train": {"optimizer": "rowwise-adagrad"},
    },
    "learned": {"comm": {"mlp_gradients": "bf16"}, "quant": {"method": "lsq", "activation_bits": 8}},
}


def case_config(case: str, device: str, transport: str) -> Config:
    """`transport` sim: ranks are simulated."""
    settings = CASES[case]
    few = {"max_steps": 6, "log_every": 1, "checkpoint_every": 3, **settings.get("train", {})}
    rows = {"train_rows": 500, "validation_rows": 100, "test_rows": 100, **settings.get("data", {})}
    config = tiny_config(quant=settings.get("quant"), train=few, data=rows)
    simulated = RANKS if transport == "sim" else 1
    comm = replace(config.comm, transport=transport, simulated_ranks=simulated, timeout=60.0, **settings["comm"])
    return replace(config, device=device, kernels="torch", comm=comm)


def main(device: str, transport: str, folder: str) -> None:
    gpu = install()
    with opened_transport(case_config("sparse", device, transport)) as way:
        for case in CASES:
            config = case_config(case, device, transport)
            train(config, RunRequest(Path(folder) / case, False, {}, io.StringIO()), way)
    print(gpu.operations)
