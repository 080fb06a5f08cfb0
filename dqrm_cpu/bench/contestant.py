"""What a benchmark lets compete: each is set up once, steps through batches, and is taken down."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from dqrm_cpu.bench.pool import Work
from dqrm_cpu.errors import DqrmError


class AbsentError(DqrmError):
    """A contestant cannot take part on this machine or in this environment; the message says why."""


class Contestant(Protocol):
    """One way to do a piece of work."""

    name: str
    about: str  # what it is made of, for whoever reads the results

    def setup(self) -> None:
        """Allocates; raises AbsentError where it cannot take part."""

    def step(self, work: Work) -> Tensor:
        """Does the work once. What it returns shows that it did the same as the others: a loss, an array."""

    def teardown(self) -> None:
        """Lets go of what `setup` took."""


AnyContestant = TypeVar("AnyContestant", bound=Contestant)


def set_up(contestants: Sequence[AnyContestant]) -> tuple[list[AnyContestant], dict[str, str]]:
    """Those that can take part, and by name why the others cannot."""
    present, absent = [], {}
    for contestant in contestants:
        try:
            contestant.setup()
            present.append(contestant)
        except AbsentError as error:
            absent[contestant.name] = str(error)
    return present, absent
