"""How `facts.yaml` scores an answer."""

from typing import Any

from ftlab.evaluate import has_answer


def contains(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    """Return 1 if the answer contains the expected text as whole words."""
    return {"contains": int(has_answer(results[0], doc["output"]))}
