"""ftlab: the instruments of a course on fine-tuning language models."""

__version__ = "0.1.0"
