"""The stages: each a function from what went before to files in a directory and a few facts.

What a stage may read of the recipe, and the order of the stages, stand in `pipeline.run`.
"""
