"""The learning rate at each step: warm-up, plateau, quadratic decay, as in DLRM's reference."""

from dataclasses import dataclass

from dqrm_cpu.errors import ConfigError


@dataclass(frozen=True)
class LearningRate:
    """A pure function of the step, so that a resumed run goes on with the rate it would have had.

    Steps count from 1. With warmup_steps W: base / W at step 1, base from step W on. With decay_steps D > 0:
    base ((E - step) / D)^2 from decay_start_step to E = decay_start_step + D, then the last rate above 0.
    """

    base: float
    warmup_steps: int = 0
    decay_start_step: int = 0
    decay_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.base < float("inf"):
            raise ConfigError(f"the learning rate is {self.base}; give a finite rate above 0")
        for name in ("warmup_steps", "decay_start_step", "decay_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 or more")
        if self.decay_steps and self.decay_start_step < self.warmup_steps:
            raise ConfigError(
                f"the learning rate would decay from step {self.decay_start_step} on, before its warm-up ends at step "
                f"{self.warmup_steps}; raise decay_start_step or lower warmup_steps"
            )

    def at(self, step: int) -> float:
        """The rate for the step that counts as `step`, from 1."""
        if step < 1:
            raise ValueError(f"steps count from 1, not {step}")
        if step < self.warmup_steps:
            return self.base * (step / self.warmup_steps)
        if not self.decay_steps or step < self.decay_start_step:
            return self.base
        left = max(self.decay_start_step + self.decay_steps - step, 1)
        return self.base * min(left / self.decay_steps, 1.0) ** 2
