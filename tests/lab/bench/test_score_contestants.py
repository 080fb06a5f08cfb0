"""Whoever takes part in `bench score` gives the logits of the same model."""

from dataclasses import replace
from pathlib import Path

import torch

from dqrm_cpu.config import preset_config
from dqrm_cpu.lab.bench.harness.batch_pool import make_pool
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.lab.bench.harness.contestant import set_up
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.bench.scoring.score_benchmark import ExportedCase, score_groups
from dqrm_cpu.lab.bench.serve.random_model import write_random_model

ROWS = 5


KAGGLE = preset_config("kaggle")
MODEL = replace(KAGGLE.model, table_rows=tuple(min(rows, 90) for rows in KAGGLE.model.table_rows))
CASE = Case("small", "", replace(KAGGLE, model=MODEL, train=replace(KAGGLE.train, batch_size=ROWS)))


def test_all_give_the_same_logits(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_random_model(path, CASE.config)
    work = make_pool(MODEL, ROWS, 1, seed=3).next()
    for group in score_groups(ExportedCase(path, CASE, SharedTables(CASE), threads=1)):
        contestants, absent = set_up(group.contestants)
        assert absent == {}
        found = {one.name: one.step(work) for one in contestants if one.name != "products_floor"}
        expected = found[group.baseline]
        assert expected.std() > 0
        for name, logits in found.items():
            if "int8" in name:
                assert 1e-5 < (logits - expected).abs().max() < 0.3 * expected.std(), name
                continue
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5, msg=name)
