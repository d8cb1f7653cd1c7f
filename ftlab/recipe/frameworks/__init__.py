"""The keys of other frameworks, a table each, read in both directions: a file of theirs, and a recipe for them."""
