"""Exercises: passed, or what to look at next. A check never raises, whatever the learner hands it."""

import math
from dataclasses import dataclass
from typing import Any


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


def check_labels(labels_of: object) -> Verdict:
    """Lesson 01: a function labels_of(input_ids, start, end) that masks all but positions start to end - 1."""
    if not callable(labels_of):
        return Verdict(False, "write a function of three arguments: def labels_of(input_ids, start, end)")
    try:
        labels = labels_of([5, 6, 7, 8, 9], 2, 4)
    except Exception as error:
        return Verdict(False, f"your function stops with {type(error).__name__}: {error}")
    if not isinstance(labels, list) or len(labels) != 5:
        return Verdict(False, "one label per token: a list as long as input_ids")
    if labels[:2] != [-100, -100]:
        return Verdict(False, "the tokens before the answer are not trained on: -100")
    if labels[2:4] != [7, 8]:
        return Verdict(False, "inside the answer a label is the token itself")
    return Verdict(labels[4] == -100, "what follows the end mark is not trained either")


def check_padding_share(answer: float) -> Verdict:
    """Lesson 01: rows of 20, 30 and 50 tokens in one batch: 100 tokens in 150 positions."""
    if isinstance(answer, int | float) and abs(answer - 2 / 3) < 0.01:
        return Verdict(False, "that is the share that holds a token; padding is the rest")
    right = isinstance(answer, int | float) and abs(answer - 1 / 3) < 0.01
    return Verdict(right, "three rows of 50 positions each; how many of them hold no token?")


def check_lora_parameters(answer: int) -> Verdict:
    """Lesson 03: parameters of LoRA with r = 8 on one layer of 576 inputs and 1536 outputs."""
    if answer == 576 * 1536:
        return Verdict(False, "that is the frozen matrix W; count A and B")
    if answer == 8 * 576 * 1536:
        return Verdict(False, "A and B are separate matrices: add their sizes, do not multiply them")
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


def check_nf4_bytes(answer: float) -> Verdict:
    """Lesson 04: 6.5 billion weights of four bits, and a 4-byte scale for every 64."""
    if answer == 3_250_000_000:
        return Verdict(False, "the codes are right; now add a scale for every block")
    if answer == 6_500_000_000 * (4 + 4 / 64):
        return Verdict(False, "four bits are half a byte")
    return Verdict(answer == 3_656_250_000, "half a byte per weight, and 4 bytes for every 64 weights")


def check_nearest_level(nearest: object) -> Verdict:
    """Lesson 04: a function nearest(x, levels) that returns the index of the nearest level."""
    if not callable(nearest):
        return Verdict(False, "write a function of two arguments: def nearest(x, levels)")
    levels = [-1.0, -0.25, 0.5, 1.0]
    try:
        found = [nearest(x, levels) for x in (-0.9, 0.1, 0.2, 2.0)]
    except Exception as error:
        return Verdict(False, f"your function stops with {type(error).__name__}: {error}")
    if found == [levels[i] for i in (0, 1, 2, 3)]:
        return Verdict(False, "that is the level itself; its number is wanted")
    return Verdict(found == [0, 1, 2, 3], "the smallest absolute difference wins: 0.2 is nearer to 0.5 than to -0.25")


def check_full_bytes(answer: int) -> Verdict:
    """Lesson 05: 100 million bfloat16 weights, their gradients and AdamW's two averages, 2 bytes each."""
    if answer == 200_000_000:
        return Verdict(False, "that is the weights alone")
    if answer == 1_200_000_000:
        return Verdict(False, "here the averages are bfloat16 too: 2 bytes, not 4")
    return Verdict(answer == 800_000_000, "four numbers per weight: itself, its gradient, two averages; 2 bytes each")


def check_front(answer: object) -> Verdict:
    """Lesson 05: of (1 MiB, 60%), (4 MiB, 55%) and (9 MiB, 90%), those that no other one beats in both."""
    if not isinstance(answer, set):
        return Verdict(False, 'keep a set of names, such as {"a", "b"}')
    if "b" in answer:
        return Verdict(False, "is there a method that is both smaller and better than b?")
    return Verdict(answer == {"a", "c"}, "the smallest is always on the front, and so is the best")


def check_cache_bytes(answer: int) -> Verdict:
    """Lesson 09: 1,000 tokens, 28 layers, 4 key-value heads of 128 numbers, two bytes each."""
    right = 2 * 28 * 4 * 128 * 2 * 1000
    if answer == right // 2:
        return Verdict(
            False, "keys and values are both kept, and each number takes two bytes: count every factor of two"
        )
    return Verdict(answer == right, "tokens x layers x heads x numbers per head x (key and value) x bytes per number")


def check_top_p(kept_by_top_p: object) -> Verdict:
    """Lesson 09: a function kept_by_top_p(probabilities, top_p) for probabilities sorted from the highest down."""
    if not callable(kept_by_top_p):
        return Verdict(False, "write a function of two arguments: def kept_by_top_p(probabilities, top_p)")
    try:
        answers = [kept_by_top_p([0.5, 0.25, 0.15, 0.1], p) for p in (0.7, 0.4, 0.75, 1.0)]
    except Exception as error:
        return Verdict(False, f"your function stops with {type(error).__name__}: {error}")
    if answers[1] == 0:
        return Verdict(False, "the likeliest token always stays, even if it alone is above top_p")
    if answers[0] == 1:
        return Verdict(False, "0.5 alone does not reach 0.7: the token that crosses the line stays")
    if answers[2] == 3:
        return Verdict(False, "0.5 and 0.25 reach 0.75 exactly: that is enough")
    return Verdict(answers == [2, 1, 2, 4], "add from the highest on, and stop as soon as the sum reaches top_p")


def check_preference_probability(probability: object) -> Verdict:
    """Lesson 10: a function probability(reward_a, reward_b) that says how likely a is preferred to b."""
    if not callable(probability):
        return Verdict(False, "write a function of two arguments: def preference_probability(reward_a, reward_b)")
    try:
        if not math.isclose(probability(3, 3), 0.5):
            return Verdict(False, "equal rewards: either answer is as likely to be preferred")
        if not math.isclose(probability(2, 0.5), 0.8176, abs_tol=1e-3):
            return Verdict(False, "rewards 2 and 0.5 give 0.82: the sigmoid of the difference, a minus b")
        if not (math.isclose(probability(1000, 0), 1) and math.isclose(probability(0, 1000), 0, abs_tol=1e-9)):
            return Verdict(False, "rewards of 1,000 and 0 must give 1, and 0 the other way round")
    except OverflowError:
        return Verdict(False, "exp of a big number overflows: take exp of minus the absolute difference, or math.tanh")
    except Exception as error:
        return Verdict(False, f"your function stops with {type(error).__name__}: {error}")
    return Verdict(True)


def check_reward_margin(margin: object) -> Verdict:
    """Lesson 10: the margin at which Bradley-Terry claims 90%."""
    if not isinstance(margin, int | float):
        return Verdict(False, "margin: a number")
    if math.isclose(margin, -math.log(9), abs_tol=0.02):
        return Verdict(False, "the sign: the preferred answer has the higher reward")
    return Verdict(math.isclose(margin, math.log(9), abs_tol=0.02), "solve sigmoid(margin) = 0.9: odds of nine to one")


def check_dpo_loss(loss: object) -> Verdict:
    """Lesson 12: a function loss(chosen_gain, rejected_gain, beta); a gain is policy minus reference, in nats."""
    if not callable(loss):
        return Verdict(False, "write a function of three arguments: def loss(chosen_gain, rejected_gain, beta)")
    try:
        if not math.isclose(loss(0, 0, 0.1), math.log(2), abs_tol=1e-3):
            return Verdict(False, "before training both gains are 0: the loss is log 2, a coin's")
        if loss(5, 5, 0.1) != loss(0, 0, 0.1):
            return Verdict(False, "only the difference of the two gains counts")
        if not math.isclose(loss(10, -10, 0.1), 0.1269, abs_tol=1e-3):
            return Verdict(False, "gains of 10 and -10 at beta 0.1: -log sigmoid(0.1 * 20) = 0.127")
    except Exception as error:
        return Verdict(False, f"your function stops with {type(error).__name__}: {error}")
    return Verdict(True)


def check_reference_free(methods: Any) -> Verdict:
    """Lesson 12: which of dpo, ipo, kto, orpo and simpo need no reference model."""
    try:
        given = {str(method).casefold() for method in methods}
    except TypeError:
        return Verdict(False, 'a set of names: {"dpo", ...}')
    if given & {"dpo", "ipo", "kto"}:
        return Verdict(False, "dpo, ipo and kto measure how far the model moved from a reference")
    return Verdict(given == {"orpo", "simpo"}, "two of the five look at the model's own log-probabilities only")


def check_rloo_advantage(answer: object) -> Verdict:
    """Lesson 11: rewards 1, 0 and 0.5 in one group; the advantage of the first under RLOO."""
    if not isinstance(answer, int | float):
        return Verdict(False, "advantage: a number")
    if math.isclose(answer, 0.5):
        return Verdict(False, "that is its reward minus the mean of all three; leave the first one out of the mean")
    return Verdict(math.isclose(answer, 0.75), "its own reward minus the mean of the two others")


def check_clipped_pull(pulls: object) -> Verdict:
    """Lesson 11: a function pulls(ratio, advantage): does the loss, clipped at 0.2, still have a gradient there?"""
    if not callable(pulls):
        return Verdict(False, "write a function of two arguments: def pulls(ratio, advantage)")
    try:
        if not pulls(1.0, 1.0) or not pulls(1.0, -1.0):
            return Verdict(False, "right after writing, at ratio 1, every token is pulled at")
        if pulls(1.5, 1.0) or pulls(0.5, -1.0):
            return Verdict(False, "moved more than 20% in the wanted direction: nothing more to gain")
        if not pulls(0.5, 1.0) or not pulls(1.5, -1.0):
            return Verdict(False, "moved in the wrong direction: the clip does not protect it, the loss pulls it back")
        return Verdict(not pulls(1.0, 0.0), "and with an advantage of 0?")
    except Exception as error:
        return Verdict(False, f"your function stops with {type(error).__name__}: {error}")


def check_q8_bytes(answer: int) -> Verdict:
    """Lesson 08: a million weights in blocks of 32 bytes and a 2-byte scale."""
    if answer == 1_000_000:
        return Verdict(False, "one byte per weight, and the scale of every block?")
    if answer == 1_125_000:
        return Verdict(False, "the scale is a float16: 2 bytes, not 4")
    return Verdict(answer == 1_062_500, "a block of 32 weights takes 32 bytes and its scale 2 more")


def check_merged_weight(merged_weight: object) -> Verdict:
    """Lesson 08: a function merged_weight(W, A, B, lora_alpha) that adds the scaled product of B and A."""
    import torch

    if not callable(merged_weight):
        return Verdict(False, "write a function of four arguments: def merged_weight(W, A, B, lora_alpha)")
    W, A, B = torch.eye(3, 4), torch.ones(2, 4), torch.arange(6.0).reshape(3, 2)
    try:
        found = torch.as_tensor(merged_weight(W, A, B, 8))
    except Exception as error:
        return Verdict(False, f"your function stops with {type(error).__name__}: {error}")
    if found.shape != W.shape or torch.equal(found, W):
        return Verdict(False, "add to W a matrix of its own shape: B @ A")
    if torch.allclose(found, W + B @ A):
        return Verdict(False, "the product is scaled first: by lora_alpha / r")
    return Verdict(torch.allclose(found, W + 4 * B @ A), "W + lora_alpha / r * B @ A, with r = A.shape[0]")
