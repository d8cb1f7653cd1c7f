"""The panels, in notebooks and as a page."""
