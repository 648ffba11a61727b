"""How does evolution find networks of lower loss near the best ones of a search?"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from adapt.architecture import Choices
from adapt.cost.expectation import CostModel
from adapt.space import SearchSpace

ATTEMPTS = 50  # per child, to find one that is new and within the budget


@dataclass(frozen=True)
class Individual:
    """A network of the population, or one that was bred from it.

    Attributes:
        choices: The network.
        generation: In which it was bred; 0 for the first population.
        loss: Its loss on held-out images; not a number until that is known.
    """

    choices: Choices
    generation: int
    loss: float = float("nan")


def evolve(
    space: SearchSpace,
    population: Sequence[Individual],
    generations: int,
    *,
    loss: Callable[[Choices], float],
    fits: Callable[[Choices], bool],
    seed: int,
) -> list[Individual]:
    """Search near a population by evolution.

    Every generation breeds as many children as the population has members. Its parents are the best
    of all that were tried so far.

    Args:
        space: The search space.
        population: Networks to start from, with their losses.
        generations: How often children are bred.
        loss: What is minimised; called once for every network.
        fits: Whether a network is within the budget.
        seed: Seed of everything that is drawn.

    Returns:
        All individuals, the first population included, the best first.
    """
    rng = random.Random(seed)
    tried = list(population)
    seen = {_hash(space, individual.choices) for individual in population}
    for generation in range(1, generations + 1):
        parents = sorted(tried, key=_loss)[: len(population)]
        for _ in population:
            child = _child(space, [parent.choices for parent in parents], rng, seen, fits)
            if child is not None:
                seen.add(_hash(space, child))
                tried.append(Individual(child, generation, loss(child)))
    return sorted(tried, key=_loss)


def _loss(individual: Individual) -> float:
    return individual.loss


def _child(
    space: SearchSpace,
    parents: Sequence[Choices],
    rng: random.Random,
    seen: set[str],
    fits: Callable[[Choices], bool],
) -> Choices | None:
    """Return a network within the budget that was not tried before, or None if none is found."""
    for _ in range(ATTEMPTS):
        child = rng.choice(parents)
        if len(parents) > 1 and rng.random() < 0.5:
            child = crossed(child, rng.choice(parents), rng)
        child = mutated(space, child, rng)
        if _hash(space, child) not in seen and fits(child):
            return child
    return None


def mutated(space: SearchSpace, choices: Choices, rng: random.Random) -> Choices:
    """Return the network with one operation or one width drawn anew."""
    number = rng.randrange(len(space.blocks))
    block = space.blocks[number]
    if rng.random() < 0.5:
        widths = list(choices.widths)
        widths[number] = rng.randrange(len(block.widths))
        return replace(choices, widths=tuple(widths))
    ops = [list(block_ops) for block_ops in choices.ops]
    position = rng.randrange(block.num_ops)
    ops[number][position] = rng.randrange(len(block.candidates(position)))
    return replace(choices, ops=tuple(map(tuple, ops)))


def crossed(first: Choices, second: Choices, rng: random.Random) -> Choices:
    """Return a network that takes each block, with its width, from one of two parents."""
    donors = [rng.choice((first, second)) for _ in first.widths]
    return Choices(
        tuple(donor.ops[block] for block, donor in enumerate(donors)),
        tuple(donor.widths[block] for block, donor in enumerate(donors)),
    )


def cost_of(model: CostModel, choices: Choices) -> float:
    """Return what a network costs, in the unit of the model."""
    total, before = model.fixed, 0  # the index of the width before
    for number, (ops, width) in enumerate(zip(choices.ops, choices.widths, strict=True)):
        total += float(model.first[number][before, width, ops[0]] + model.taps[number][width])
        total += sum(float(model.later[number][width, op]) for op in ops[1:])
        before = width
    return total


def _hash(space: SearchSpace, choices: Choices) -> str:
    return choices.architecture(space).hash
