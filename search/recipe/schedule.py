"""How many steps does a training take, and which of them train the architecture? (Eq. 3)"""

from dataclasses import dataclass

from search.recipe.optimisation import FinetuneRecipe, SearchRecipe


@dataclass(frozen=True)
class Schedule:
    """Steps of a training.

    Attributes:
        steps_per_epoch: Steps of one pass over the training images.
        total_steps: All steps.
    """

    steps_per_epoch: int
    total_steps: int

    @classmethod
    def of_finetuning(
        cls, recipe: FinetuneRecipe, images: int, limit_steps: int | None = None
    ) -> "Schedule":
        """Return the steps on ``images`` training images, ``limit_steps`` at most."""
        steps = recipe.steps_per_epoch(images)
        total = recipe.epochs * steps
        return cls(steps, total if limit_steps is None else min(total, limit_steps))

    def ends_epoch(self, step: int) -> bool:
        """Return whether an epoch, or the training, is over after ``step`` steps."""
        return step % self.steps_per_epoch == 0 or step == self.total_steps

    def epoch(self, step: int) -> float:
        """Return how many passes over the training images ``step`` steps are."""
        return step / self.steps_per_epoch

    def validates(self, step: int, every: int) -> bool:
        """Return whether ``step`` steps end the training, or ``every`` epochs; of 0, never."""
        if not every:
            return False
        return step % (every * self.steps_per_epoch) == 0 or step == self.total_steps

    def validations(self, every: int) -> int:
        """Return how often that is in the whole training."""
        return -(-self.total_steps // (every * self.steps_per_epoch)) if every else 0


@dataclass(frozen=True)
class SearchSchedule(Schedule):
    """Steps of a search; an epoch is a pass over trainA, and steps are weight steps.

    Attributes:
        warmup_steps: Steps that train weights alone.
        arch_every: Weight steps per architecture step after the warm-up.
    """

    warmup_steps: int
    arch_every: int

    @classmethod
    def of(
        cls, recipe: SearchRecipe, images: int, limit_steps: int | None = None
    ) -> "SearchSchedule":
        """Return the steps on ``images`` training images; ``limit_steps`` shortens both phases."""
        steps = recipe.weights.steps_per_epoch(images // 2)
        warmup = recipe.warmup_epochs * steps
        alternating = (recipe.weights.epochs - recipe.warmup_epochs) * steps
        if limit_steps is not None:
            warmup = min(warmup, limit_steps)
            alternating = min(alternating, limit_steps * recipe.arch_every)
        return cls(steps, warmup + alternating, warmup, recipe.arch_every)

    def arch_step(self, step: int) -> int | None:
        """Return the number of the architecture step before weight step ``step``, or None."""
        after = step - self.warmup_steps
        return after // self.arch_every if after >= 0 and after % self.arch_every == 0 else None

    def arch_share(self, step: int) -> float:
        """Return the share of the architecture steps that come before weight step ``step``."""
        alternating = self.total_steps - self.warmup_steps
        return max(0, step - self.warmup_steps) / alternating if alternating else 0.0

    def arch_steps_in(self, steps: int) -> int:
        """Return how many architecture steps come with the first ``steps`` weight steps."""
        return max(0, -(-(steps - self.warmup_steps) // self.arch_every))

    @property
    def arch_steps(self) -> int:
        """All architecture steps."""
        return self.arch_steps_in(self.total_steps)
