"""Which networks near the best ones of a search do better on held-out images? (evolution)"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from adapt.architecture import Choices
from adapt.cost.expectation import CostModel
from adapt.space import SearchSpace

TRIES = 50  # per child, to find one that is new and within the budget


@dataclass(frozen=True)
class Individual:
    """A network that was tried.

    Attributes:
        choices: The network.
        generation: When it was bred; 0 for the first population.
        loss: Its loss on held-out images, once that is known.
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
    """Breed as many children per generation as the population has; the best of all go on.

    Args:
        space: The search space.
        population: Where it starts.
        generations: How often children are bred.
        loss: What is minimised; called once for every network.
        fits: Whether a network is within the budget.
        seed: Seed of all choices.

    Returns:
        Everybody that was tried, the first population included, the best first.
    """
    chance = random.Random(seed)
    everybody = list(population)
    seen = {_hash(space, one.choices) for one in population}
    for generation in range(1, generations + 1):
        parents = sorted(everybody, key=lambda one: one.loss)[: len(population)]
        for _ in population:
            child = _child(space, [one.choices for one in parents], chance, seen, fits)
            if child is not None:
                seen.add(_hash(space, child))
                everybody.append(Individual(child, generation, loss(child)))
    return sorted(everybody, key=lambda one: one.loss)


def _child(
    space: SearchSpace,
    parents: Sequence[Choices],
    chance: random.Random,
    seen: set[str],
    fits: Callable[[Choices], bool],
) -> Choices | None:
    """Return a new network within the budget, or None if none is found."""
    for _ in range(TRIES):
        child = chance.choice(parents)
        if len(parents) > 1 and chance.random() < 0.5:
            child = crossed(child, chance.choice(parents), chance)
        child = mutated(space, child, chance)
        if _hash(space, child) not in seen and fits(child):
            return child
    return None


def mutated(space: SearchSpace, choices: Choices, chance: random.Random) -> Choices:
    """Return the network with one operation or one width drawn anew."""
    number = chance.randrange(len(space.blocks))
    block = space.blocks[number]
    if chance.random() < 0.5:
        widths = list(choices.widths)
        widths[number] = chance.randrange(len(block.widths))
        return replace(choices, widths=tuple(widths))
    ops = [list(chosen) for chosen in choices.ops]
    position = chance.randrange(block.num_ops)
    ops[number][position] = chance.randrange(len(block.candidates(position)))
    return replace(choices, ops=tuple(map(tuple, ops)))


def crossed(first: Choices, second: Choices, chance: random.Random) -> Choices:
    """Return a network that has every block, with its width, from one of two."""
    picked = [chance.choice((first, second)) for _ in first.widths]
    return Choices(
        tuple(one.ops[block] for block, one in enumerate(picked)),
        tuple(one.widths[block] for block, one in enumerate(picked)),
    )


def cost_of(model: CostModel, choices: Choices) -> float:
    """Return what a network costs, in the unit of the model."""
    total, before = model.fixed, 0
    for number, (ops, width) in enumerate(zip(choices.ops, choices.widths, strict=True)):
        total += float(model.first[number][before, width, ops[0]] + model.taps[number][width])
        total += sum(float(model.later[number][width, op]) for op in ops[1:])
        before = width
    return total


def _hash(space: SearchSpace, choices: Choices) -> str:
    return choices.architecture(space).hash
