"""Training: a recipe, a step, a loop, and all that a resume needs."""
