"""Where a run stands: everything beside tensors that a checkpoint must hold to go on to the bit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from dqrm_cpu.base.decode import UnreadableError, decoded
from dqrm_cpu.comm.exchange.sent_bytes import NOTHING_SENT, SentBytes
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.train.metrics import ClickMetrics
from dqrm_cpu.train.metrics_log import LogMark


@dataclass
class RunState:
    """Changed by the loop as it goes; plain values only, so that it writes as JSON."""

    step: int = 0
    data: str = ""  # fingerprint of the data set; empty in checkpoints of earlier versions
    identity: str = ""  # of schema and vocabulary; empty in earlier versions and where it is not known
    scale_refreshed_at: int = -1
    best_step: int = -1
    best_validation: ClickMetrics | None = None
    evaluated_step: int = -1
    last_validation: ClickMetrics | None = None
    saved_step: int = -1
    evaluations_without_better: int = 0
    skipped_batches: int = 0  # since the beginning of the run
    log: LogMark | None = None  # of metrics.jsonl; None in checkpoints of earlier versions
    window_loss: float = 0.0  # sum of the step losses since the last logged row
    window_steps: int = 0
    window_sent: SentBytes = NOTHING_SENT  # by this rank since then; that of rank 0 in a checkpoint

    def as_dict(self) -> dict[str, Any]:
        """The form in a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunState":
        """The state that `as_dict` wrote; of earlier versions, too, which had fewer fields."""
        try:
            state = decoded({name: value for name, value in values.items() if name != "log"}, cls)
        except UnreadableError as error:
            raise CheckpointError(f"the state of the checkpoint {error}; use another checkpoint") from error
        return replace(state, log=LogMark.of_state(values))
