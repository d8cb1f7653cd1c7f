"""Batched answers and scores, each score with its interval."""

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer

from ftlab import tokens
from ftlab.errors import fail

# Families that transformers generates with wrongly in a batch: one mixes its rows, the others' state takes padding in.
ONE_BY_ONE = ("rwkv", "recurrent_gemma", "minimax")
# Full-width letters, digits and signs, the minus sign and the dash in its place, as ASCII. Not the punctuation of a
# Chinese text: in 5，6 the comma separates two numbers.
HALF_WIDTH = {ord(wide): chr(ord(wide) - 0xFEE0) for wide in map(chr, range(0xFF01, 0xFF5F)) if wide.isalnum()}
HALF_WIDTH |= {ord(wide): chr(ord(wide) - 0xFEE0) for wide in "．％＋－／＝＄"} | {ord("−"): "-", ord("–"): "-"}
# Typographic quotation marks and apostrophes, as models write them.
HALF_WIDTH |= {ord(mark): "'" for mark in "‘’"} | {ord(mark): '"' for mark in "“”"}
# The comma of 1,234.
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# No minus sign before a first digit. In 7-5 and x-5 it is an operator.
NOT_NEGATIVE = r"(?:(?<!(?<![0-9a-z_)\]])-)|(?!\d))"


def interval(share: float, total: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a share of right answers among `total` questions, both ends 0 to 1.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209.

    >>> [round(end, 2) for end in interval(18 / 20, 20)]
    [0.7, 0.97]
    """
    z = 1.96
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At shares of 0 and 1 the rounding of floats would leave the share itself outside.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict[str, Any]]],
    max_new_tokens: int = 48,
    batch_size: int = 32,
) -> list[str]:
    """Return one greedy answer per conversation, in the order given; special tokens are left out of the answers."""
    prompts = [tokens.prompt(tokenizer, messages) for messages in conversations]
    answers = generate_ids(model, tokenizer, prompts, max_new_tokens, batch_size)
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


class RefuseNaN(LogitsProcessor):
    """Refuse logits that are NaN, which would give the answer `!!!!`.

    Only the logits of the first new token are checked: NaN weights show there, and more checks cost time.
    """

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores` (batch, vocabulary) unchanged.

        Raises:
            LabError: one of them is NaN.
        """
        if not self.seen and scores.isnan().any():
            raise fail("model_not_finite", exit_code=1)
        self.seen = True
        return scores


@torch.inference_mode()
def generate_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 48,
    batch_size: int = 32,
) -> list[list[int]]:
    """Return the token ids of one greedy answer per prompt, in the order given, up to the token that ends it.

    Prompts are sorted by length and padded on the left, batch by batch; ONE_BY_ONE have batches of one.

    Raises:
        LabError: the model gives NaN.
    """
    if model.config.model_type in ONE_BY_ONE:
        batch_size = 1
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    ends = end_ids(model, tokenizer)
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = pad_left([prompts[i] for i in chosen], tokenizer.pad_token_id).to(model.device)
        mask = pad_left([[1] * len(prompts[i]) for i in chosen], 0).to(model.device)
        output = model.generate(
            input_ids=batch,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([RefuseNaN()]),
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )
        for i, ids in zip(chosen, output[:, batch.shape[1] :].tolist(), strict=True):
            # After the end of an answer that was shorter than others in its batch there is padding.
            last = next((place for place, token in enumerate(ids) if token in ends), len(ids))
            answers[i] = ids[: last + 1]
    return answers


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of all tokens that end an answer: the model's own, and those that end answers in training."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return sorted({*own, *tokens.end_ids(tokenizer)} - {None})


def has_answer(answer: str, expected: str | Sequence[str]) -> bool:
    """Return True if `answer` contains `expected`, or one of several, as whole words, however they are written.

    Case, full-width forms, white space and thousands separators (1,234) do not matter; 5 is not in -5.
    Reasoning before the answer is ignored, and no text contains an empty one.

    >>> has_answer("2 + 2 is 4.", ["4", "four"]), has_answer("About 14, or 4.5", "4")
    (True, False)
    """
    accepted = [comparable(text) for text in ([expected] if isinstance(expected, str) else expected)]
    # Chinese is written without spaces: only letters and digits of other scripts continue a word.
    letter, digits = r"[^\W\u2e80-\U0010ffff]", r"\d[.,]"
    pattern = "|".join(re.escape(text) for text in accepted if text) or r"(?!)"
    whole = rf"(?<!{letter})(?<!{digits}){NOT_NEGATIVE}(?:{pattern})(?!{letter})(?![.,]\d)"
    return bool(re.search(whole, comparable(without_thought(answer))))


def comparable(text: str) -> str:
    """Return a text in a normal form: lower case, no full-width forms or thousands separators.

    >>> comparable("Ｎｏ．５:  １,234 m"), comparable("5，6")
    ('no.5: 1234 m', '5，6')
    """
    text = unicodedata.normalize("NFC", text).translate(HALF_WIDTH).casefold()
    return " ".join(THOUSANDS.sub("", text).split())


def exact_match(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Return the share of answers equal to the expected text, ignoring white space and reasoning.

    Where an empty text is expected nothing matches: an empty answer would be right by accident.
    """
    pairs = [(without_thought(answer), without_thought(want)) for answer, want in zip(answers, expected, strict=True)]
    return sum(bool(want) and answer == want for answer, want in pairs) / len(pairs)


def without_thought(text: str) -> str:
    """Return a text without the reasoning before its answer, including the empty block that templates add.

    >>> without_thought("<think>two and two</think> 4"), without_thought(" 4")
    ('4', '4')
    """
    return text.rpartition("</think>")[2].strip()


def multiple_choice(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[dict[str, Any]],
    batch_size: int = 32,
) -> float:
    """Return the share of questions for which the right choice is the model's likeliest answer.

    Args:
        questions: rows with `question`, `choices` (texts) and `answer` (the right one's index).
    """
    picked: list[int] = []
    for start in range(0, len(questions), batch_size):
        picked += choices(model, tokenizer, questions[start : start + batch_size])
    return sum(p == q["answer"] for p, q in zip(picked, questions, strict=True)) / len(questions)


def choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[dict[str, Any]],
    system: str | None = None,
) -> list[int]:
    """Return, for every question, the index of the choice that the model finds likeliest; all form one batch.

    Args:
        system: the system turn before every question.
    """
    scores = choice_log_probabilities(model, tokenizer, questions, system)
    return [max(range(len(row)), key=row.__getitem__) for row in scores]


@torch.inference_mode()
def choice_log_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[dict[str, Any]],
    system: str | None = None,
) -> list[list[float]]:
    """Return, for every question and choice, the mean log-probability of the choice's tokens as the answer.

    They follow what the chat template writes before an answer, such as an empty think block, as in training.
    """
    model.eval()
    before = [{"role": "system", "content": system}] if system else []
    conversations = [[*before, {"role": "user", "content": q["question"]}] for q in questions]
    encoded = [
        tokens.written_answers(tokenizer, one, q["choices"]) for one, q in zip(conversations, questions, strict=True)
    ]
    score = after_cached_prompts if only_keys_cached(model) else after_each_prompt
    means = score(model, encoded, tokenizer.pad_token_id)
    return [[means.pop(0) for _ in choices] for _, choices in encoded]


def only_keys_cached(model: PreTrainedModel) -> bool:
    """Return True if a model keeps only keys and values of the tokens it has read, no recurrent state."""
    layers = DynamicCache(config=model.config).layers
    return not getattr(model, "_is_stateful", False) and all(isinstance(layer, DynamicLayer) for layer in layers)


def after_cached_prompts(
    model: PreTrainedModel, encoded: Sequence[tuple[list[int], list[list[int]]]], pad_token_id: int
) -> list[float]:
    """Return the mean log-probability of each choice's tokens.

    The question is computed once; its key-value cache is then shared by the choices, which are a few tokens each.

    Args:
        encoded: the token ids of each question, and of its choices.
    """
    prompts = [prompt for prompt, _ in encoded]
    prompt_mask = pad_left([[1] * len(ids) for ids in prompts], 0).to(model.device)
    positions = (prompt_mask.cumsum(-1) - 1).clamp(min=0)
    read = model(
        input_ids=pad_left(prompts, pad_token_id).to(model.device),
        attention_mask=prompt_mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
    )
    owner = torch.tensor([i for i, (_, choices) in enumerate(encoded) for _ in choices], device=model.device)
    read.past_key_values.batch_select_indices(owner)
    target = pad_right([ids for _, choices in encoded for ids in choices], tokens.IGNORED).to(model.device)
    written = model(
        input_ids=target.clamp(min=0),
        attention_mask=torch.cat([prompt_mask[owner], target.ne(tokens.IGNORED).long()], dim=1),
        position_ids=positions[owner, -1:] + 1 + torch.arange(target.shape[1], device=model.device),
        past_key_values=read.past_key_values,
    )
    # The question's last position predicts a choice's first token, each choice token the next one.
    return means(torch.cat([read.logits[owner], written.logits[:, :-1]], dim=1), target)


def after_each_prompt(
    model: PreTrainedModel, encoded: Sequence[tuple[list[int], list[list[int]]]], pad_token_id: int
) -> list[float]:
    """Return what `after_cached_prompts` returns, from passes over question and choice together.

    A recurrent state cannot be shared: padding before the question would change it.
    """
    scores: list[float] = []
    for prompt, choices in encoded:
        ids = pad_right([prompt + choice for choice in choices], pad_token_id).to(model.device)
        mask = pad_right([[1] * len(prompt + choice) for choice in choices], 0).to(model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        scores += means(logits[:, len(prompt) - 1 : -1], pad_right(choices, tokens.IGNORED).to(model.device))
    return scores


def means(logits: torch.Tensor, target: torch.Tensor) -> list[float]:
    """Return the mean log-probability in each row of `target` (rows, tokens), IGNORED left out."""
    log_probabilities = logits.float().log_softmax(-1).gather(-1, target.clamp(min=0)[..., None]).squeeze(-1)
    counted = target.ne(tokens.IGNORED)
    return ((log_probabilities * counted).sum(-1) / counted.sum(-1)).tolist()


@torch.inference_mode()
def mean_token_loss(
    model: PreTrainedModel, examples: Sequence[dict[str, list[int]]], pad_token_id: int, batch_size: int = 8
) -> float:
    """Return the mean loss, in nats, over the trained tokens of encoded examples (`input_ids`, `labels`)."""
    model.eval()
    loss_sum, count = 0.0, 0
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        ids = pad_right([row["input_ids"] for row in batch], pad_token_id).to(model.device)
        mask = pad_right([[1] * len(row["input_ids"]) for row in batch], 0).to(model.device)
        labels = pad_right([row["labels"] for row in batch], tokens.IGNORED).to(model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels[:, 1:], ignore_index=tokens.IGNORED, reduction="sum"
        )
        loss_sum, count = loss_sum + losses.item(), count + int(labels[:, 1:].ne(tokens.IGNORED).sum())
    return loss_sum / count


def pad_left(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Return `rows` as one tensor of shape (len(rows), longest), filled with `value` on the left."""
    width = max(len(row) for row in rows)
    return torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])


def pad_right(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Return `rows` as one tensor of shape (len(rows), longest), filled with `value` on the right."""
    width = max(len(row) for row in rows)
    return torch.tensor([list(row) + [value] * (width - len(row)) for row in rows])
