"""The single encoder: from a data set's example to token ids and labels, and back to readable text.

Training, `data check`, evaluation, chat and the server all encode through this file, on the texts that `rendering.py`
renders. Prompt and answer are split as text (`answers.py`) and tokenized separately, as in a chat: the model gets the
prompt's tokens and generates the answer's.
"""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ftlab.answers import answer, end_of_turn
from ftlab.errors import say
from ftlab.rendering import PLACEHOLDER, Message, Tools, control_tokens, render

IGNORED = -100
Encoded = dict[str, list[int]]


class Token(NamedTuple):
    """One token of an encoded example: its id, its text, and whether it is in the loss."""

    id: int
    text: str
    trained: bool


class Turn(NamedTuple):
    """One answer with the messages before it, back to the start or to the previous answer.

    Attributes:
        source: token ids of the prompt part.
        answer: token ids of the answer, from where it begins to where generation stops.
        tail: token ids that the template writes after it (ChatML's line break), which are never generated.
        ended: the answer's last token ends the turn. Templates without such a token (GLM-4's) let the next speaker's
            token end it, or eos at the end of the conversation: that token is then added to the answer.
        history: number of tokens of earlier turns in `source`.
    """

    source: list[int]
    answer: list[int]
    tail: list[int]
    ended: bool
    history: int = 0


def prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools = None) -> list[int]:
    """Return the token ids of a conversation up to where the assistant's answer begins, shape (prompt_len,)."""
    return ids_of(tokenizer, render(tokenizer, messages, tools, add_generation_prompt=True))


def written_answers(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], texts: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Return the token ids up to where the text of an answer begins, and those of each text in its place.

    Before it a template may write more than its generation prompt: an empty think block (Qwen3), a channel (gpt-oss).
    """
    rendering = answer(tokenizer, messages, [{"role": "assistant", "content": PLACEHOLDER}])
    opening = rendering.text.partition(PLACEHOLDER)[0]
    # Two letters show which tokens belong to the opening alone: a space may be part of a word's first token, and line
    # breaks before a word may be other tokens than at the end.
    whole = [continuation(tokenizer, rendering.prompt, opening + text) for text in (*texts, "a", "Z")]
    shared = shared_length(whole) if opening else 0
    return [*ids_of(tokenizer, rendering.prompt), *whole[-1][:shared]], [ids[shared:] for ids in whole[:-2]]


def shared_length(sequences: Sequence[Sequence[int]]) -> int:
    """Return the length of the longest common prefix of all sequences."""
    parted = (place for place, ids in enumerate(zip(*sequences, strict=False)) if len(set(ids)) > 1)
    return next(parted, min(map(len, sequences)))


def encode(
    tokenizer: PreTrainedTokenizerBase,
    row: dict[str, Any],
    *,
    cutoff_len: int | None = None,
    train_on_prompt: bool = False,
    mask_history: bool = False,
) -> list[Encoded]:
    """Encode an example of a data set as one or several training examples.

    A conversation is one training example as long as its template leaves earlier answers as they were generated. Where
    it rewrites them (Qwen3 removes earlier reasoning) a following answer starts a new training example,
    with the prompt that the model would get at that point; every answer is trained once.

    Args:
        row: `messages` (every assistant turn without `weight: 0` is trained on), `prompt` and `completion` as lists of
            messages (the completion is trained on), each with optional `tools`; or `text` (all of it is trained on).
        cutoff_len: the most tokens of a training example, see `truncate_lengths`; None keeps all.
        train_on_prompt: the prompt is in the loss too.
        mask_history: only the last of several assistant turns is trained on.
    Returns:
        Training examples {"input_ids", "labels"}, both of shape (seq_len,). `labels` equals `input_ids` where a token
        is trained on and is -100 elsewhere. What a template writes after the token that ends a turn is not trained on.
    Raises:
        LabError: the template refuses the conversation, or leaves an answer out of it.
    """
    return [
        truncated(example, cutoff_len, train_on_prompt)
        for example in examples(tokenizer, row, mask_history=mask_history)
    ]


def examples(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], *, mask_history: bool = False
) -> list[list[Turn]]:
    """Return the training examples of a data set's example, each as its turns, uncut."""
    if "text" in row:
        return [[Turn([], text_ids(tokenizer, row["text"]), [], ended=True)]]
    messages = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
    first = 0 if "messages" in row else len(row["prompt"])
    answers = [n for n, one in enumerate(messages) if n >= first and one["role"] == "assistant"]
    result: list[list[Turn]] = []
    for number in answers[-1:] if mask_history else answers:
        if messages[number].get("weight") == 0:
            continue
        turn = turn_of(tokenizer, messages[:number], messages[number : number + 1], row.get("tools"))
        if not (result and (joined := joined_to(result[-1], turn, tokenizer))):
            result.append([turn])
        else:
            result[-1] = joined
    return [closed(turns, tokenizer) for turns in result]


def turn_of(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], reply: Sequence[Message], tools: Tools = None
) -> Turn:
    """Return an answer and everything before it as one turn."""
    rendering = answer(tokenizer, messages, reply, tools)
    source = ids_of(tokenizer, rendering.prompt)
    written, tail = continuation(tokenizer, rendering.prompt, rendering.text), ids_of(tokenizer, rendering.tail)
    return Turn(
        source, written, tail, rendering.ended, history_len(tokenizer, rendering.prompt, source, messages, tools)
    )


def joined_to(turns: list[Turn], turn: Turn, tokenizer: PreTrainedTokenizerBase) -> list[Turn]:
    """Return a training example extended by a turn, [] if the turn's prompt does not start with it.

    Some templates end a conversation with more than a turn: Phi-3's writes `<|endoftext|>` after the last one.
    """
    *before, last = turns
    for kept in (last, last._replace(tail=[])):
        so_far = [token for one in (*before, kept) for token in (*one.source, *one.answer, *one.tail)]
        if turn.source[: len(so_far)] != so_far:
            continue
        source = turn.source[len(so_far) :]
        if not kept.ended and source[0] in tokenizer.convert_tokens_to_ids(control_tokens(tokenizer)):
            kept, source = kept._replace(answer=[*kept.answer, source[0]], ended=True), source[1:]
        return [*before, kept, turn._replace(source=source, history=0)]
    return []


def closed(turns: list[Turn], tokenizer: PreTrainedTokenizerBase) -> list[Turn]:
    """Return turns whose last answer ends with an end token: eos if the template writes none."""
    *before, last = turns
    if last.ended:
        return turns
    return [*before, last._replace(answer=[*last.answer, tokenizer.eos_token_id], ended=True)]


def sides(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], columns: Sequence[str], *, with_tail: bool = False
) -> list[Turn]:
    """Return the answers to one prompt, a pair or a single one, each as a complete turn.

    Some templates prompt differently for an answer with reasoning: Qwen3.5's smaller models with `<think>`, where they
    close an empty block for one without. The prompt of such a pair ends where its sides differ.

    Args:
        columns: columns with the answers: `chosen` and `rejected`, or `completion`.
        with_tail: include what the template writes after the end of the answer.
    Raises:
        LabError: the template refuses the conversation, or leaves an answer out of it.
    """
    result = [closed([turn_of(tokenizer, row["prompt"], row[one], row.get("tools"))], tokenizer)[0] for one in columns]
    shared = shared_length([turn.source for turn in result])
    return [
        turn._replace(
            source=turn.source[:shared],
            history=min(turn.history, shared),
            answer=[*turn.source[shared:], *turn.answer, *(turn.tail if with_tail else [])],
            tail=[],
        )
        for turn in result
    ]


def judged(tokenizer: PreTrainedTokenizerBase, asked: Sequence[Message], reply: Sequence[Message]) -> list[int]:
    """Return the token ids of a prompt with its answer as a reward model reads them, shape (seq_len,)."""
    (turn,) = sides(tokenizer, {"prompt": asked, "completion": reply}, ("completion",), with_tail=True)
    return [*turn.source, *turn.answer]


def truncated_sides(turns: Sequence[Turn], cutoff_len: int | None) -> list[list[int]]:
    """Return the ids of the prompt and of every answer; `cutoff_len` holds the prompt and the longest answer."""
    longest = max(turns, key=lambda turn: len(turn.answer))
    prompt_ids, written = cut_turn(longest, length([longest]) if cutoff_len is None else cutoff_len)
    return [prompt_ids, *(turn.answer[: len(written)] for turn in turns)]


def length(turns: Sequence[Turn]) -> int:
    """Return the number of tokens of turns, uncut."""
    return sum(len(turn.source) + len(turn.answer) + len(turn.tail) for turn in turns)


def history_len(
    tokenizer: PreTrainedTokenizerBase, asked: str, ids: list[int], before: Sequence[Message], tools: Tools
) -> int:
    """Return how many tokens of a prompt come before the last question, 0 for a single turn."""
    last = max((n for n, one in enumerate(before) if one["role"] == "assistant"), default=-1)
    if last < 0 or last + 1 >= len(before):
        return 0
    marked = [*before[: last + 1], before[last + 1] | {"content": PLACEHOLDER}, *before[last + 2 :]]
    history = render(tokenizer, marked, tools, add_generation_prompt=True).partition(PLACEHOLDER)[0]
    head = ids_of(tokenizer, history)
    return len(head) if asked.startswith(history) and ids[: len(head)] == head else 0


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every token id that ends an answer: eos, and the token with which the chat template ends a turn."""
    ends = [] if tokenizer.chat_template is None else ids_of(tokenizer, end_of_turn(tokenizer))[-1:]
    return sorted({*ends, tokenizer.eos_token_id} - {None})


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text without adding special tokens."""
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a raw text: bos if the tokenizer begins texts with it, and eos, neither of them twice."""
    ids, bos, eos = ids_of(tokenizer, text), tokenizer.bos_token_id, tokenizer.eos_token_id
    before = [bos] if adds_bos(tokenizer) and ids[:1] != [bos] else []
    return [*before, *ids, *([] if ids[-1:] == [eos] else [eos])]


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True if a tokenizer begins every text with its bos token."""
    return tokenizer("a").input_ids[0] == tokenizer.bos_token_id


def continuation(tokenizer: PreTrainedTokenizerBase, before: str, text: str) -> list[int]:
    """Return the token ids of a text that continues another one.

    Most tokenizers encode it as it is. Llama 2's adds a space before every text, which no answer starts with; then
    the ids are those after the tokens of the preceding text.
    """
    if tokenizer.tokenize("a") == ["a"]:
        return ids_of(tokenizer, text)
    before_ids, both = ids_of(tokenizer, before), ids_of(tokenizer, before + text)
    return both[len(before_ids) :] if both[: len(before_ids)] == before_ids else ids_of(tokenizer, text)


def truncated(turns: Sequence[Turn], cutoff_len: int | None, train_on_prompt: bool = False) -> Encoded:
    """Return a training example of at most `cutoff_len` tokens.

    As in LLaMA-Factory each turn in order gets the remaining budget, shared between prompt and answer by
    `truncate_lengths`; both keep their beginnings. Earlier turns inside a prompt are removed first, oldest first.
    """
    encoded: Encoded = {"input_ids": [], "labels": []}
    for turn in turns:
        left = length([turn]) if cutoff_len is None else cutoff_len - len(encoded["input_ids"])
        if left <= 0:
            break
        source, written = cut_turn(turn, left)
        trained = [*[IGNORED] * len(source), *turn.answer, *[IGNORED] * len(turn.tail)][: len(source) + len(written)]
        encoded["input_ids"] += [*source, *written]
        encoded["labels"] += [*source, *written] if train_on_prompt else trained
    return encoded


def cut_turn(turn: Turn, budget: int) -> tuple[list[int], list[int]]:
    """Return a turn's prompt and its answer with its tail, together at most `budget` tokens long."""
    history, question = turn.source[: turn.history], turn.source[turn.history :]
    written = [*turn.answer, *turn.tail]
    kept_question, kept_written = truncate_lengths(len(question), len(written), budget)
    kept_history = max(0, budget - kept_question - kept_written)
    history = history[max(0, len(history) - kept_history) :]
    return [*history, *question[:kept_question]], written[:kept_written]


def truncate_lengths(source: int, target: int, cutoff: int) -> tuple[int, int]:
    """Return how many tokens of a prompt (source) and of its answer (target) fit into `cutoff` tokens together.

    The shorter one is kept whole if it takes less than half of the budget; else both are cut in proportion.
    Source: the rule of LLaMA-Factory's `infer_seqlen`, which gives the same examples.

    >>> truncate_lengths(3000, 2000, 1000)
    (600, 400)
    >>> truncate_lengths(100, 1000, 1000)
    (100, 900)
    """
    if 2 * target < cutoff:
        kept_target = target
    elif 2 * source < cutoff:
        kept_target = min(target, cutoff - source)
    else:
        # In floating point like theirs, which loses a token where the share is whole but its factors are not.
        kept_target = min(target, int(cutoff * (target / (source + target))))
    return min(source, cutoff - kept_target), kept_target


def ends_with_turn_end(tokenizer: PreTrainedTokenizerBase, encoded: dict[str, list[int]]) -> bool:
    """Return True if the last trained token of a row ends a turn; otherwise the model never learns to stop."""
    trained = [label for label in encoded["labels"] if label != IGNORED]
    return bool(trained) and trained[-1] in set(tokenizer.all_special_ids)


def summary(tokenizer: PreTrainedTokenizerBase, encoded: Sequence[dict[str, list[int]]]) -> str:
    """Describe encoded rows: lengths, share of trained tokens, rows whose last trained token ends a turn."""
    lengths = sorted(len(row["input_ids"]) for row in encoded)
    trained = sum(label != IGNORED for row in encoded for label in row["labels"])
    ending = sum(ends_with_turn_end(tokenizer, row) for row in encoded)
    middle, high = lengths[len(lengths) // 2], lengths[int(0.95 * (len(lengths) - 1))]
    return "\n".join([
        say("tokens_lengths", rows=len(lengths), middle=middle, high=high, longest=lengths[-1]),
        say("tokens_trained", share=trained / sum(lengths), ending=ending / len(lengths)),
        histogram(lengths),
    ])  # fmt: skip


def histogram(lengths: Sequence[int], bins: int = 8, width: int = 40) -> str:
    """Draw a histogram of row lengths in text."""
    step = max(1, -(-(max(lengths) + 1) // bins))
    counts = [sum(start <= value < start + step for value in lengths) for start in range(0, step * bins, step)]
    return "\n".join(
        f"{bin * step:>6}-{bin * step + step - 1:<6} {'█' * round(width * count / max(counts))} {count}"
        for bin, count in enumerate(counts)
    )


def tokens(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int]) -> list[Token]:
    """Return one `Token` per position, the text of each as the tokenizer decodes it alone."""
    return [
        Token(int(token), tokenizer.decode(int(token)), int(label) != IGNORED)
        for token, label in zip(input_ids, labels, strict=True)
    ]


def to_html(rows: Sequence[Token]) -> str:
    """Colour a rendered row for a notebook: trained tokens green, masked ones grey; the id is the tooltip."""
    cells = []
    for row in rows:
        colour = "#b7e4c7" if row.trained else "#e9ecef"
        text = html.escape(row.text).replace("\n", "⏎<br>")
        cells.append(f'<span title="{row.id}" style="background:{colour};color:#111;margin:1px">{text}</span>')
    return f'<div style="font-family:monospace;line-height:1.7">{"".join(cells)}</div>'


def to_ansi(rows: Sequence[Token]) -> str:
    """Colour a rendered row for a terminal: trained tokens green, masked ones dim."""
    return "".join(f"\x1b[{'32' if row.trained else '2'}m{row.text}\x1b[0m" for row in rows)
