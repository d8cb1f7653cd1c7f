"""Check a learner's answer: a check returns a Verdict and never raises, whatever it gets."""

import copy
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ftlab.errors import fill_in, language, reason_of

# Wrong answers so far, per exercise: the first gets the nudge, later ones the detailed hint.
misses: Counter[str] = Counter()


@dataclass(frozen=True)
class Verdict:
    """The outcome of an exercise: `passed`, and a `hint` when it is not."""

    passed: bool
    hint: str = ""

    def __repr__(self) -> str:
        if language() == "zh":
            return "通过" if self.passed else f"还不对：{self.hint}"
        return "passed" if self.passed else f"not yet: {self.hint}"


def check_function(exercise: str, answer: object, right: Callable, cases: Sequence[tuple]) -> Verdict:
    """Call the learner's function on every case and compare what it returns with the right one.

    Each call gets its own copy of the arguments: a function that changes them must not disturb the comparison.
    """
    if answer is ...:
        return untouched()
    if not callable(answer):
        return missed(exercise, general_hint("no_function"))
    for case in cases:
        try:
            result = answer(*copy.deepcopy(case))
        except (Exception, SystemExit) as error:
            return missed(exercise, general_hint("raises", error=described(error)))
        if result is ...:
            return untouched()
        expected = right(*copy.deepcopy(case))
        if not alike(result, expected):
            return missed(exercise, shape_hint(result, expected))
    return Verdict(True)


def check_number(exercise: str, answer: object, expected: Any, tolerance: float = 1e-6) -> Verdict:
    """Compare a number, or a tuple of numbers, with the expected one; a tensor or NumPy number counts as a number."""
    if answer is ... or (type(answer) is tuple and any(part is ... for part in answer)):
        return untouched()
    if alike(answer, expected, tolerance):
        return Verdict(True)
    if as_numbers(answer) is None:
        return missed(exercise, general_hint("no_number"))
    return missed(exercise, slip_hint(exercise, lambda value: alike(answer, value, 1e-4)))


def check_names(exercise: str, answer: object, expected: set[str]) -> Verdict:
    """Compare a set of names with the expected one, ignoring case."""
    if answer is ...:
        return untouched()
    try:
        names = None if isinstance(answer, str) else {str(name).casefold() for name in answer}  # type: ignore[attr-defined]
    except Exception:
        names = None
    if names is None:
        return missed(exercise, general_hint("no_names"))
    return Verdict(True) if names == expected else missed(exercise, slip_hint(exercise, names.__contains__))


def as_numbers(value: object) -> torch.Tensor | None:
    """Return numbers, nested lists or tensors of them as one float64 tensor; None for everything else."""
    try:
        if isinstance(value, list | tuple):
            value = torch.stack([as_numbers(part) for part in value])  # type: ignore[misc]
        return torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except Exception:
        return None


def alike(answer: object, expected: object, tolerance: float = 1e-4) -> bool:
    """Return True if two answers hold the same numbers in the same shape; one number may have any shape."""
    numbers, right = as_numbers(answer), as_numbers(expected)
    if numbers is None or right is None:
        return False
    if numbers.numel() == right.numel() == 1:
        numbers, right = numbers.reshape(()), right.reshape(())
    return numbers.shape == right.shape and torch.allclose(numbers, right, rtol=tolerance, atol=tolerance)


def missed(exercise: str, hint: str = "") -> Verdict:
    """Count a wrong answer and build its Verdict: what went wrong, or a nudge; from the second on a detailed hint."""
    misses[exercise] += 1
    stages = hints()[exercise]
    if misses[exercise] == 1:
        return Verdict(False, hint or stages[f"nudge_{language()}"])
    return Verdict(False, f"{hint} {stages[f'how_{language()}']}".strip())


def untouched() -> Verdict:
    """Build the Verdict of a cell that was not changed; this isn't a wrong answer."""
    return Verdict(False, general_hint("untouched"))


def slip_hint(exercise: str, is_slip: Callable[[Any], bool]) -> str:
    """Return the hint of the first known slip that was made, else ""."""
    return next((slip[language()] for slip in hints()[exercise].get("slips", []) if is_slip(slip["value"])), "")


def shape_hint(result: object, expected: object) -> str:
    """Return a hint about the shape if the result is numeric but has another shape than expected."""
    numbers, right = as_numbers(result), as_numbers(expected)
    if numbers is None or right is None or numbers.shape == right.shape:
        return ""
    return general_hint("shape", found=tuple(numbers.shape), wanted=tuple(right.shape))


def general_hint(key: str, **values: object) -> str:
    """Return a hint that belongs to no exercise, its placeholders filled."""
    return fill_in(hints()[key][language()], values)


def described(error: BaseException) -> str:
    """Return the type and the first line of an exception; a learner's exception may be unable to print itself."""
    try:
        return f"{type(error).__name__}: {reason_of(error)}"
    except Exception:
        return type(error).__name__


@cache
def hints() -> dict[str, dict[str, Any]]:
    """Return the table of hints: exercise -> `nudge_en`, `how_en`, `nudge_zh`, `how_zh`, `slips`."""
    return tomllib.loads(Path(__file__).with_name("hints.toml").read_text(encoding="utf-8"))


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Draw a tensor of normal numbers; the same seed always gives the same tensor."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
