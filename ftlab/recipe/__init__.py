"""Recipes: the keys of a run, read from YAML and checked, and their translation for libraries and other frameworks."""
