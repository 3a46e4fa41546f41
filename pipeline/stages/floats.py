"""What a recipe leaves in float, checked before anything is trained."""

from __future__ import annotations

from pipeline.compress.quantization.float_layers import float_operations
from pipeline.networks.lowering.check import lowered
from pipeline.stages.context import Context, branched_model, deployed, float_places


def refuse_bad_floats(context: Context) -> None:
    """Stop at a pattern of `qat.float` that names nothing, or nothing that can stay in float.

    Raises:
        InputError: names the pattern, or the operation that no format has in float either.
    """
    recipe = context.recipe
    places = float_places(recipe)
    if not places.patterns:
        return
    model = deployed(context, branched_model(context))
    places.refuse_unknown(model)
    graph = lowered(model, recipe.model.input_shape, places).graph
    float_operations(graph, places, learned_input=not recipe.target.takes_pixels)
