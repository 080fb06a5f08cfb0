"""What a benchmark lets compete: each is set up once, steps through batches, and is taken down."""

from collections.abc import Callable, Iterable, Sequence
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


class Named(Protocol):
    """Whatever takes its turn."""

    @property
    def name(self) -> str: ...


AnyContestant = TypeVar("AnyContestant", bound=Contestant)
AnyNamed = TypeVar("AnyNamed", bound=Named)


def set_up(contestants: Sequence[AnyContestant]) -> tuple[list[AnyContestant], dict[str, str]]:
    """Those that can take part, and by name why the others cannot."""
    return taking_part(contestants, lambda contestant: contestant.setup())


def taking_part(
    contestants: Iterable[AnyNamed], begin: Callable[[AnyNamed], None]
) -> tuple[list[AnyNamed], dict[str, str]]:
    """Those that `begin` does not find absent, and by name why the others are."""
    there, absent = [], {}
    for contestant in contestants:
        try:
            begin(contestant)
            there.append(contestant)
        except AbsentError as error:
            absent[contestant.name] = str(error)
    return there, absent
