"""Constrained decoding: which tokens may come next, so that an answer follows a JSON schema or is a tool call.

llguidance works out the tokens that a grammar allows (https://github.com/guidance-ai/llguidance). It fetches no `$ref`
from a file or an address. Its limits, and the limits on a schema's size below, bound the time that a schema can take.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ftlab import packages, responses, tokens
from ftlab.apps.serve.refusals import Refused

# Of a schema: bytes of its JSON, values in it, subschemas that are combined by `allOf` and `$ref`: the time that
# llguidance takes for patterns that must match at once doubles with each. Per step: see `LLParserLimits`.
BYTES, VALUES, COMBINED = 1 << 16, 2000, 8
ANNOTATIONS = {
    "title", "description", "default", "examples", "deprecated", "$schema", "$id", "$comment", "$defs", "definitions",
}  # fmt: skip
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 5_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}
# As json.dumps writes; with free whitespace a small model might write nothing else.
JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}


class Unfollowable(Exception):
    """A schema became too complex while its answer was generated."""


class Constraint:
    """The constraint on the rest of one answer."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher

    def copy(self) -> "Constraint":
        """Return a copy for another answer, in the same state."""
        return Constraint(self.matcher.deep_copy())

    def allowed(self, scores: torch.Tensor) -> torch.Tensor:
        """Return logits (vocabulary,) with -inf for every token that may not come next.

        Raises:
            Unfollowable: the schema is too complex.
        """
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        if self.matcher.is_error():
            raise Unfollowable
        mask = np.unpackbits(bits, bitorder="little")[: len(scores)].astype(bool)
        return scores.masked_fill(~torch.from_numpy(mask), -torch.inf)

    def take(self, token: int) -> bool:
        """Add a token; return True if nothing can follow it.

        Raises:
            Unfollowable: the schema is too complex.
        """
        self.matcher.consume_token(token)
        if self.matcher.is_error():
            raise Unfollowable
        return bool(self.matcher.is_stopped())


class Constraints:
    """Build constraints on what a model generates.

    Args:
        reader: reads calls under the model's chat template.
        vocabulary: how many logits the model has.
        ends: tokens that end an answer.
    """

    def __init__(self, reader: responses.Reader, vocabulary: int, ends: Collection[int]) -> None:
        self.reader, self.vocabulary, self.ends = reader, vocabulary, ends

    @cached_property
    def tokens(self) -> Any:
        """The tokenizer as llguidance reads it; takes about a second."""
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self.reader.tokenizer, n_vocab=self.vocabulary, eos_token=list(self.ends))

    def json(self, schema: Any, param: str = "response_format") -> Constraint:
        """Return the constraint to JSON that follows a schema.

        Raises:
            Refused: 400, the schema is not valid, too large, or uses what llguidance does not know.
        """
        require_small([schema], param)
        return self.made(f"start: {rule(schema)}\n", param)

    def call(self, tools: Sequence[dict[str, Any]]) -> Constraint:
        """Return the constraint to a call of one of some tools, as the chat template writes calls.

        Raises:
            Refused: 400, as for `json`.
        """
        functions = [tool["function"] for tool in tools]
        require_small(functions, "tools")
        before, key, after = written_call(self.reader)
        calls = []
        for function in functions:
            begin = f'{{"name": {json.dumps(function["name"])}, "{key}": '
            # A separate schema, so that its references resolve in it.
            calls.append(f'{json.dumps(begin)} {rule(function.get("parameters") or {"type": "object"})} "}}"')
        return self.made(f"start: {before} ({' | '.join(calls)}) {after}\n", "tools")

    def made(self, grammar: str, param: str) -> Constraint:
        """Return the constraint to a grammar.

        Raises:
            Refused: 400, llguidance's reason.
        """
        from llguidance import LLMatcher, LLParserLimits

        try:
            known = self.tokens
        except ValueError as error:
            # A tokenizer written in Python.
            message = f"{param} is not supported with this model's tokenizer: {error}"
            raise Refused(400, message, param, "unsupported_parameter") from error
        matcher = LLMatcher(known, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())[:200]
            raise Refused(400, f"the schema cannot be followed: {reason}", param, "invalid_value")
        return Constraint(matcher)


def require_small(schemas: Sequence[Any], param: str) -> None:
    """Refuse schemas that could take long, or all of them where llguidance is not installed.

    Raises:
        Refused: 400, naming the limit, or the command that installs it.
    """
    if find_spec("llguidance") is None:
        reason = f"{param} needs the package llguidance here: {packages.install('llguidance')}"
        raise Refused(400, reason, param, "unsupported_parameter")
    parts = list(walked(schemas))
    if len(json.dumps(schemas)) > BYTES or len(parts) > VALUES or sum(map(combined, parts)) > COMBINED:
        reason = f"a schema has at most {BYTES} bytes, {VALUES} values, {COMBINED} subschemas combined by allOf or $ref"
        raise Refused(400, reason, param, "invalid_value")


def rule(schema: dict[str, Any]) -> str:
    """Return the Lark term for JSON that follows a schema."""
    return f"%json {json.dumps(schema | {'x-guidance': JSON})}"


def walked(value: Any) -> Iterator[Any]:
    """Yield a JSON value and all nested values."""
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walked(inner)


def combined(value: Any) -> int:
    """Return how many subschemas of a schema must hold at the same time as others.

    >>> combined({"allOf": [{}, {}], "type": "string"}), combined({"allOf": [{}], "title": "A"})
    (2, 0)
    """
    if not isinstance(value, dict):
        return 0
    every = value.get("allOf")
    own = bool(value.keys() - ANNOTATIONS - {"allOf", "$ref"})
    return max(0, (len(every) if isinstance(every, list) else 0) + ("$ref" in value) + own - 1)


def written_call(reader: responses.Reader) -> tuple[str, str, str]:
    """Return how a chat template writes a call: Lark terms for what is before its JSON, the arguments' name, and after.

    If a template does not write JSON, or no calls at all, the call is plain JSON, which `as_call` reads.
    """
    start = reader.written.find("{")
    if reader.parse is not responses.read_json or start < 0:
        return "", "arguments", ""
    value, end = json.JSONDecoder().raw_decode(reader.written, start)
    key = "parameters" if "parameters" in value else "arguments"
    before, after = (as_tokens(reader.tokenizer, text) for text in (reader.written[:start], reader.written[end:]))
    return before, key, after


def as_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a text as Lark terms, one for each token: `<[5]>`, which may be a control token."""
    return " ".join(f"<[{token}]>" for token in tokens.ids_of(tokenizer, text))
