"""Which form each layer's weights get: the least loss within a size, or the other way round.

Each layer takes one of its forms; losses and sizes add up over the layers. That is a knapsack with
one choice a layer, which SciPy's HiGHS solves exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pipeline.recipe.weight_forms import WeightForm

ByForm = Mapping[str, Mapping[WeightForm, float]]
"""Numbers by layer and form."""
Forms = dict[str, WeightForm]
_HALVINGS = 8


def least(sizes: ByForm) -> float:
    """The size where every layer has its smallest form."""
    return sum(min(forms.values()) for forms in sizes.values())


def within_size(losses: ByForm, sizes: ByForm, limit: float) -> Forms:
    """The forms of the least loss whose sizes come to `limit` at most.

    Raises:
        ValueError: no choice is that small; `least` says how small they are.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    choices = [(layer, form) for layer, forms in losses.items() for form in forms]
    rows = {layer: row for row, layer in enumerate(losses)}
    of_layer = csr_array(
        (
            np.ones(len(choices)),
            ([rows[layer] for layer, _ in choices], np.arange(len(choices))),
        ),
        shape=(len(rows), len(choices)),
    )
    size = np.array([[sizes[layer][form] for layer, form in choices]])
    loss = np.array([losses[layer][form] for layer, form in choices])
    found = milp(
        loss / max(float(loss.max(initial=0.0)), 1e-300),
        constraints=[LinearConstraint(of_layer, 1, 1), LinearConstraint(size, -np.inf, limit)],
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-4},
    )
    if found.x is None:
        raise ValueError(f"no choice of forms comes to {limit:g}; the least is {least(sizes):g}")
    return {
        layer: form for (layer, form), taken in zip(choices, found.x, strict=True) if taken > 0.5
    }


def within_loss(losses: ByForm, sizes: ByForm, holds: Callable[[Forms], bool]) -> Forms:
    """About the smallest forms of which `holds` is true, each the best of its size.

    Sizes between the least and the largest are halved eight times, so that the result is within
    1/256 of that distance where `holds` is true from some size up. With none that holds, each layer
    has the form of its least loss.

    Args:
        losses: of each layer.
        sizes: of each layer.
        holds: tries a choice.
    """
    best: Forms = {layer: min(forms, key=forms.__getitem__) for layer, forms in losses.items()}
    low, high = least(sizes), total(sizes, best)
    smallest = within_size(losses, sizes, low * (1 + 1e-9))
    if holds(smallest):
        return smallest
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        forms = within_size(losses, sizes, middle)
        if holds(forms):
            best, high = forms, middle
        else:
            low = middle
    return best


def total(numbers: ByForm, forms: Forms) -> float:
    """The sum over the layers of what their forms have."""
    return sum(numbers[layer][form] for layer, form in forms.items())
