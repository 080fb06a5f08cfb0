"""Contestants, which a benchmark compares: each is set up once, steps through batches, and is taken down."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from dqrm_cpu.errors import DqrmError
from dqrm_cpu.lab.bench.harness.batch_pool import Work


class AbsentError(DqrmError):
    """A contestant cannot take part on this machine or in this environment; the message says why."""


class Contestant(Protocol):
    """One way to do a piece of work."""

    name: str
    about: str  # what it is made of, for whoever reads the results

    def setup(self) -> None:
        """Allocates what the steps need; raises AbsentError where it cannot take part."""

    def step(self, work: Work) -> Tensor:
        """Does the work once. What it returns shows that it did the same as the others: a loss, an array."""

    def teardown(self) -> None:
        """Releases what `setup` took."""


class Named(Protocol):
    """Something with a name."""

    @property
    def name(self) -> str: ...


AnyContestant = TypeVar("AnyContestant", bound=Contestant)
AnyNamed = TypeVar("AnyNamed", bound=Named)


def set_up(contestants: Sequence[AnyContestant]) -> tuple[list[AnyContestant], dict[str, str]]:
    """Sets contestants up; returns those that can take part, and by name why the others cannot."""
    return taking_part(contestants, lambda contestant: contestant.setup())


def taking_part(
    contestants: Iterable[AnyNamed], begin: Callable[[AnyNamed], None]
) -> tuple[list[AnyNamed], dict[str, str]]:
    """Returns those for which `begin` raises no AbsentError, and by name why the others are absent."""
    there, absent = [], {}
    for contestant in contestants:
        try:
            begin(contestant)
            there.append(contestant)
        except AbsentError as error:
            absent[contestant.name] = str(error)
    return there, absent


Step = Callable[[Work], Tensor]


class Prepared:
    """A contestant made of one function: for kernels, which need no class of their own each.

    `prepare` allocates and returns the step; it may raise AbsentError.
    """

    def __init__(self, name: str, about: str, prepare: Callable[[], Step]) -> None:
        self.name, self.about = name, about
        self._prepare = prepare
        self._step: Step | None = None

    def setup(self) -> None:
        self._step = self._prepare()

    def step(self, work: Work) -> Tensor:
        assert self._step is not None
        return self._step(work)

    def teardown(self) -> None:
        self._step = None
