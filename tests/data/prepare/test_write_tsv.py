"""Generated clicks written as text and prepared are the generated clicks."""

from pathlib import Path

import numpy as np

from dqrm_cpu.data.synthetic.kernel import MISSING
from dqrm_cpu.data.synthetic.stream import SyntheticClicks
from dqrm_cpu.data.synthetic.write_tsv import write_tsv
from preparing import prepared, rows_of

TABLE_ROWS = (1460, 583, 1_000_000, 200_000, *[1000] * 22)


def test_what_is_written_is_what_prepare_reads(tmp_path: Path) -> None:
    clicks = SyntheticClicks(TABLE_ROWS, 13, seed=3)
    size = write_tsv(clicks, 100, 700, tmp_path / "train.txt")
    assert size == (tmp_path / "train.txt").stat().st_size
    prepared([tmp_path / "train.txt"], tmp_path / "out")
    raw = clicks.raw_rows(100, 800)
    parts = [rows_of(tmp_path / "out", part) for part in ("test", "validation")]
    label, dense, ids = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    assert np.array_equal(label, raw.label[600:])
    integers = np.where(raw.integers == MISSING, 0, np.maximum(raw.integers, 0))[600:]
    assert np.array_equal(dense, np.log(integers + 1.0).astype(np.float32))
    for t, ranks in enumerate(raw.ranks):
        known = {-1: 0}
        for rank in ranks.tolist():
            known.setdefault(rank, len(known))
        assert ids[:, t].tolist() == [known[rank] for rank in ranks[600:].tolist()]
