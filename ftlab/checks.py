"""Exercises: passed, or what to look at next. A check never raises, whatever the learner hands it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """The answer to an exercise: `passed`, and a `hint` when it is not."""

    passed: bool
    hint: str = ""

    def __repr__(self) -> str:
        return "passed" if self.passed else f"not yet: {self.hint}"


def check_supervised_tokens(answer_only: int, prompt_too: int) -> Verdict:
    """Lesson 00: 60 tokens in all, 22 of them in the answer."""
    if answer_only == 60:
        return Verdict(False, "the prompt's tokens are read, but the loss does not look at them")
    if answer_only == 38:
        return Verdict(False, "that is the prompt; the loss looks at the other part")
    if answer_only != 22:
        return Verdict(False, "answer_only: count the green tokens, the turn-end token included")
    if prompt_too != 60:
        return Verdict(False, "prompt_too: now every token of the row is green")
    return Verdict(True)


def check_lora_parameters(answer: int) -> Verdict:
    """Lesson 03: parameters of LoRA with r = 8 beside one layer of 576 inputs and 1536 outputs."""
    if answer == 576 * 1536:
        return Verdict(False, "that is the frozen matrix W; count A and B")
    if answer == 8 * 576 * 1536:
        return Verdict(False, "A and B stand beside each other; add them, do not multiply")
    if answer in (8 * 576, 8 * 1536):
        return Verdict(False, "that is one of the two matrices")
    return Verdict(answer == 8 * (576 + 1536), "A is (r, inputs), B is (outputs, r)")


def check_lora_scale(scale: object) -> Verdict:
    """Lesson 03: a function scale(lora_alpha, r) that says how much of B A x is added."""
    if not callable(scale):
        return Verdict(False, "write a function of two arguments: def scale(lora_alpha, r)")
    try:
        if scale(16, 16) != 1:
            return Verdict(False, "with lora_alpha equal to r, B A x is added as it is")
        if scale(32, 8) != 4:
            return Verdict(False, "a bigger lora_alpha adds more, a bigger r adds less: divide")
    except Exception as error:
        return Verdict(False, f"your function stops with {type(error).__name__}: {error}")
    return Verdict(True)
