"""What a recipe leaves in float, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.base.errors import InputError
from pipeline.networks.lowering.check import lowered
from pipeline.stages.context import Context, branched_model, deployed, float_places


def refuse_bad_floats(contexts: Iterable[Context]) -> None:
    """`refuse_bad_float` for several recipes; of equal networks and patterns once."""
    different: dict[str, Context] = {}
    for context in contexts:
        recipe = context.recipe
        asked = (recipe.model, float_places(recipe), recipe.target.input, recipe.prune)
        different.setdefault(repr(asked), context)
    for context in different.values():
        refuse_bad_float(context)


def refuse_bad_float(context: Context) -> None:
    """Stop at a pattern of `qat.float` that names nothing, or nothing that can stay in float.

    Raises:
        InputError: names the pattern, or the operation that no format has in float either; or
            widths are to be searched for by the times of layers, which are timed in int8 alone.
    """
    recipe = context.recipe
    places = float_places(recipe)
    if not places.patterns:
        return
    from pipeline.compress.quantization.float_layers import float_operations

    if recipe.prune is not None and recipe.prune.latency is not None:
        raise InputError(
            "prune.latency: widths are searched for by the times of int8 layers, and qat.float "
            "leaves some in float; give prune.macs, params or size_mb, or no qat.float"
        )
    model = deployed(context, branched_model(context))
    places.refuse_unknown(model)
    graph = lowered(model, recipe.model.input_shape, places).graph
    float_operations(graph, places, learned_input=not recipe.target.takes_pixels)
