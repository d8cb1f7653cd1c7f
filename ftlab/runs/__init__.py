"""Run a recipe: train, evaluate, export and chat."""
