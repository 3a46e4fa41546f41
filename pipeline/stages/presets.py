"""What a recipe leaves to the library of its network: how images are prepared for its weights."""

from __future__ import annotations

from pydantic import ValidationError

from pipeline.base.errors import InputError
from pipeline.networks.families import family_of
from pipeline.recipe.recipe import Recipe
from pipeline.stages.known import KNOWN

_OF_IMAGES = ("crop_pct", "interpolation", "mean", "std")


def with_preset(recipe: Recipe) -> tuple[Recipe, str | None]:
    """A recipe with what it does not say taken from the library of its network.

    That are `model.input_size` and, of folders of images, `data.crop_pct`, `data.interpolation`,
    `data.mean` and `data.std`. It imports the library, which takes seconds: recipes that are only
    checked are left as they are.

    Returns:
        The recipe, and a line for the user where something was taken.

    Raises:
        InputError: the rest of the recipe does not fit to it.
    """
    keys = [("model", "input_size"), *(("data", key) for key in _OF_IMAGES)]
    wanted = [
        (part, key)
        for part, key in keys
        if key not in getattr(recipe, part).model_fields_set
        and key in type(getattr(recipe, part)).model_fields
    ]
    preset = family_of(recipe.model).preset(recipe.model) if wanted else None
    taken = [(part, key) for part, key in wanted if getattr(preset, key, None) is not None]
    if preset is None or not taken:
        return recipe, None
    tree = recipe.model_dump()
    for part, key in taken:
        tree[part][key] = getattr(preset, key)
    said = ", ".join(f"{part}.{key} {_shown(tree[part][key])}" for part, key in taken)
    try:
        changed = Recipe.model_validate(tree, context=KNOWN)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise InputError(
            f"{where}: {problem['msg']}, with what {preset.source} has ({said}); say these keys in "
            "the recipe"
        ) from error
    return changed, f"{recipe.name}: {said}, as {preset.source} has it"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(f'{number:g}' for number in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
