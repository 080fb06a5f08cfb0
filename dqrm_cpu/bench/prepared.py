"""A contestant made of one function: for kernels, which need no class of their own each."""

from collections.abc import Callable

from torch import Tensor

from dqrm_cpu.bench.pool import Work

Step = Callable[[Work], Tensor]


class Prepared:
    """`prepare` allocates and returns the step; it may raise AbsentError."""

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
