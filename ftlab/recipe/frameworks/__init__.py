"""The keys of other frameworks, one table each, used in both directions: to read their files, and to write for them."""
