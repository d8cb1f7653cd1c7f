"""The one renderer: what is trained on, to the token."""

import pytest
from datasets import Dataset
from lessons import definitions
from tiny import make_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from ftlab import tokens
from ftlab.errors import LabError

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
]


def trained_text(tokenizer, row, **options) -> str:
    (encoded,) = tokens.encode(tokenizer, row, **options)
    return "".join(t.text for t in tokens.tokens(tokenizer, **encoded) if t.trained)


def test_the_answers_and_their_turn_ends_are_trained_on(tiny_tokenizer):
    assert trained_text(tiny_tokenizer, {"messages": CHAT}) == "Hello<|im_end|>See you<|im_end|>"


def test_masked_history_leaves_the_last_answer(tiny_tokenizer):
    assert trained_text(tiny_tokenizer, {"messages": CHAT}, mask_history=True) == "See you<|im_end|>"


def test_lesson_01_masks_a_conversation_by_hand_as_the_renderer_does(tiny_tokenizer):
    _, to_labels = definitions("01_data", "chat_ids", "to_labels", tokenizer=tiny_tokenizer)
    assert [to_labels(CHAT)] == tokens.encode(tiny_tokenizer, {"messages": CHAT})


def test_prompt_and_completion_train_the_completion(tiny_tokenizer):
    row = {"prompt": CHAT[:3], "completion": CHAT[3:]}
    assert trained_text(tiny_tokenizer, row) == "See you<|im_end|>"


def test_train_on_prompt_trains_every_token(tiny_tokenizer):
    (encoded,) = tokens.encode(tiny_tokenizer, {"messages": CHAT}, train_on_prompt=True)
    assert encoded["labels"] == encoded["input_ids"]


def test_plain_text_ends_with_eos(tiny_tokenizer):
    (encoded,) = tokens.encode(tiny_tokenizer, {"text": "abc"})
    assert encoded["input_ids"][-1] == tiny_tokenizer.eos_token_id and encoded["labels"] == encoded["input_ids"]


def test_plain_text_has_one_bos_and_one_eos():
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    start = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)])
    tokenizer.backend_tokenizer.post_processor = start
    assert tokenizer("a").input_ids[0] == bos
    wanted = [bos, *tokens.ids_of(tokenizer, "abc"), eos]
    for text in ("abc", "<|im_start|>abc", "abc<|im_end|>", "<|im_start|>abc<|im_end|>"):
        (encoded,) = tokens.encode(tokenizer, {"text": text})
        assert encoded["input_ids"] == encoded["labels"] == wanted, text


def test_a_long_example_keeps_its_answer(tiny_tokenizer):
    row = {"messages": [{"role": "user", "content": "q" * 200}, {"role": "assistant", "content": "yes"}]}
    (cut,) = tokens.encode(tiny_tokenizer, row, cutoff_len=64)
    (whole,) = tokens.encode(tiny_tokenizer, row)
    # "yes", its end and ChatML's line break take 5 tokens; the prompt keeps its beginning.
    assert cut["input_ids"] == whole["input_ids"][:59] + whole["input_ids"][-5:]
    assert [label for label in cut["labels"] if label != tokens.IGNORED] == whole["input_ids"][-5:-1]


def test_later_turns_go_first(tiny_tokenizer):
    (whole,) = tokens.encode(tiny_tokenizer, {"messages": CHAT})
    first = len(tokens.encode(tiny_tokenizer, {"messages": CHAT[:2]})[0]["input_ids"])
    (cut,) = tokens.encode(tiny_tokenizer, {"messages": CHAT}, cutoff_len=first)
    assert cut == {name: ids[:first] for name, ids in whole.items()}


def test_the_prompt_is_the_beginning_of_the_trained_row(tiny_tokenizer):
    prompt = tokens.prompt(tiny_tokenizer, CHAT[:3])
    assert tokens.encode(tiny_tokenizer, {"messages": CHAT})[0]["input_ids"][: len(prompt)] == prompt


def test_a_base_model_without_template_is_said(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", None)
    with pytest.raises(LabError, match="no chat template"):
        tokens.prompt(tiny_tokenizer, CHAT[:1])


def test_a_template_that_leaves_answers_out_is_refused(tiny_tokenizer, monkeypatch):
    last_only = "{% for m in messages %}{{ m['content'] if loop.last else '' }}<|im_end|>{% endfor %}"
    monkeypatch.setattr(tiny_tokenizer, "chat_template", last_only)
    with pytest.raises(LabError, match=r"message 1 \(user\) is missing"):
        tokens.encode(tiny_tokenizer, {"messages": CHAT})


def test_our_ids_are_trl_s_own(tiny_tokenizer, tiny_model_dir, tmp_path):
    row = {"prompt": CHAT[:1], "completion": CHAT[1:2]}
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list([row]), processing_class=tiny_tokenizer)
    (ours,), theirs = tokens.encode(tiny_tokenizer, row), trainer.train_dataset[0]
    assert ours["input_ids"] == theirs["input_ids"]
    # TRL also trains on ChatML's line break after the turn end; generation has stopped before it.
    assert ours["labels"][:-1] == theirs["labels"][:-1]
    assert (ours["labels"][-1], tiny_tokenizer.decode(theirs["labels"][-1])) == (tokens.IGNORED, "\n")


def test_html_shows_text_as_text():
    shown = tokens.to_html([tokens.Token(7, "<b>", True)])
    assert "&lt;b&gt;" in shown and "<b>" not in shown


@pytest.mark.parametrize(
    ("source", "target", "cutoff", "kept"),
    [
        (3000, 2000, 1000, (600, 400)), (100, 1000, 1000, (100, 900)), (1000, 100, 1000, (900, 100)),
        (10, 10, 100, (10, 10)), (49, 80, 100, (49, 51)), (50, 80, 100, (39, 61)), (80, 49, 100, (51, 49)),
        (80, 50, 100, (62, 38)), (0, 7, 5, (0, 5)), (7, 0, 5, (5, 0)), (2, 4, 4, (2, 2)), (4, 2, 4, (3, 1)),
    ],
)  # fmt: skip
def test_prompt_and_answer_share_a_budget_as_in_llama_factory(source, target, cutoff, kept):
    assert tokens.truncate_lengths(source, target, cutoff) == kept and sum(kept) <= cutoff


def test_a_cut_turn_loses_its_oldest_history_first():
    turn = tokens.Turn([1, 2, 3, 4, 5, 6], [7, 8], [9], ended=True, history=4)
    assert tokens.length([turn, turn]) == 18
    whole = {"input_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9], "labels": [-100] * 6 + [7, 8, -100]}
    assert tokens.truncated([turn], None) == tokens.truncated([turn], 9) == whole
    assert tokens.truncated([turn], 7) == {"input_ids": [3, 4, 5, 6, 7, 8, 9], "labels": [-100] * 4 + [7, 8, -100]}
    assert tokens.truncated([turn], 5) == {"input_ids": [5, 6, 7, 8, 9], "labels": [-100] * 2 + [7, 8, -100]}
    assert tokens.truncated([turn], 4) == {"input_ids": [5, 6, 7, 8], "labels": [-100] * 2 + [7, 8]}
    assert tokens.truncated([turn, turn], 9) == whole, "nothing is left for the second"
    assert tokens.truncated([turn, turn], 10)["input_ids"][9:] == [5]
    assert tokens.truncated([turn], 4, train_on_prompt=True)["labels"] == [5, 6, 7, 8]


def test_the_answers_to_one_prompt_keep_as_much_as_the_longest_may():
    short, long = tokens.Turn([1, 2, 3], [4], [], True), tokens.Turn([1, 2, 3], [5, 6, 7], [], True)
    assert tokens.truncated_sides([short, long], None) == [[1, 2, 3], [4], [5, 6, 7]]
    assert tokens.truncated_sides([short, long], 4) == [[1, 2], [4], [5, 6]]


def test_a_turn_joins_only_what_it_starts_with(tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    first = tokens.Turn([1], [2, end], [3], ended=True)
    following = tokens.Turn([1, 2, end, 3, 4], [5], [], ended=True, history=4)
    joined = tokens.joined_to([first], following, tiny_tokenizer)
    assert joined == [first, tokens.Turn([4], [5], [], ended=True)]
    without_tail = tokens.Turn([1, 2, end, 4], [5], [], ended=True)
    assert tokens.joined_to([first], without_tail, tiny_tokenizer)[0].tail == []
    assert tokens.joined_to([first], tokens.Turn([9, 2, end, 4], [5], [], True), tiny_tokenizer) == []
    open_turn = tokens.Turn([1], [2], [], ended=False)
    ends_next = tokens.joined_to([open_turn], tokens.Turn([1, 2, end, 4], [5], [], True), tiny_tokenizer)
    assert ends_next == [tokens.Turn([1], [2, end], [], True), tokens.Turn([4], [5], [], True)]
    goes_on = tokens.joined_to([open_turn], tokens.Turn([1, 2, 4], [5], [], True), tiny_tokenizer)
    assert goes_on == [open_turn, tokens.Turn([4], [5], [], True)]


def test_the_last_turn_is_closed_with_eos_where_the_template_writes_no_end(tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    before, last = tokens.Turn([1], [2], [], ended=False), tokens.Turn([3], [4], [5], ended=False)
    assert tokens.closed([before, last], tiny_tokenizer) == [before, tokens.Turn([3], [4, end], [5], ended=True)]
    assert tokens.closed([before, last._replace(ended=True)], tiny_tokenizer)[1].answer == [4]


def test_what_a_reward_model_reads_goes_to_the_end_of_the_template(tiny_tokenizer):
    ids = tokens.judged(tiny_tokenizer, CHAT[:1], CHAT[1:2])
    assert ids == tokens.encode(tiny_tokenizer, {"messages": CHAT[:2]})[0]["input_ids"]
    (turn,) = tokens.sides(tiny_tokenizer, {"prompt": CHAT[:1], "completion": CHAT[1:2]}, ("completion",))
    assert [*turn.source, *turn.answer] == ids[:-1] and turn.tail == []


def test_history_is_what_stands_before_the_last_question(tiny_tokenizer):
    asked = tokens.turn_of(tiny_tokenizer, CHAT[:3], CHAT[3:])
    decoded = tiny_tokenizer.decode(asked.source[: asked.history])
    assert decoded.endswith("Hello<|im_end|>\n<|im_start|>user\n") and "Bye" not in decoded
    assert tokens.turn_of(tiny_tokenizer, CHAT[:1], CHAT[1:2]).history == 0
    assert tokens.turn_of(tiny_tokenizer, CHAT[:2], CHAT[3:]).history == 0, "nothing was asked after the last answer"


def test_eos_and_the_turn_s_end_end_an_answer():
    tokenizer = make_tokenizer()
    end = tokenizer.eos_token_id
    assert tokens.end_ids(tokenizer) == [end]
    tokenizer.eos_token = "a"
    assert tokens.end_ids(tokenizer) == sorted({end, tokenizer.convert_tokens_to_ids("a")})
    tokenizer.chat_template = None
    assert tokens.end_ids(tokenizer) == [tokenizer.convert_tokens_to_ids("a")]


def test_a_row_that_teaches_no_end_is_told(tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    assert tokens.ends_with_turn_end(tiny_tokenizer, {"labels": [-100, 5, end, -100]})
    assert not tokens.ends_with_turn_end(tiny_tokenizer, {"labels": [end, 5, -100]})
    assert not tokens.ends_with_turn_end(tiny_tokenizer, {"labels": [-100]})


def test_a_summary_counts_lengths_trained_tokens_and_ends(tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    rows = [{"input_ids": [5] * n, "labels": [-100] * (n - 1) + [end if n > 2 else 5]} for n in (1, 2, 4, 9)]
    first, second, *drawn = tokens.summary(tiny_tokenizer, rows).splitlines()
    assert first == "training examples: 4; tokens: median 4, 95% within 4, longest 9"
    assert second == "trained tokens: 25%; ending with a turn end: 50%"
    assert drawn == tokens.histogram([1, 2, 4, 9]).splitlines()


def test_a_histogram_is_drawn_to_scale():
    assert tokens.histogram([0, 1, 1, 3], bins=2, width=6) == (f"     0-1      {'█' * 6} 3\n     2-3      ██ 1")
    assert tokens.histogram([0], bins=3, width=4) == "     0-0      ████ 1\n     1-1       0\n     2-2       0"
    assert len(tokens.histogram([100]).splitlines()) == 8 and "█" * 40 in tokens.histogram([100])


def test_colours_say_what_is_trained():
    rows = [tokens.Token(7, "a\n", True), tokens.Token(8, "<", False)]
    assert tokens.to_ansi(rows) == "\x1b[32ma\n\x1b[0m\x1b[2m<\x1b[0m"
    assert tokens.to_html(rows) == (
        '<div style="font-family:monospace;line-height:1.7">'
        '<span title="7" style="background:#b7e4c7;color:#111;margin:1px">a⏎<br></span>'
        '<span title="8" style="background:#e9ecef;color:#111;margin:1px">&lt;</span></div>'
    )


def test_each_position_becomes_a_token(tiny_tokenizer):
    ids = tokens.ids_of(tiny_tokenizer, "ab")
    assert tokens.tokens(tiny_tokenizer, ids, [-100, ids[1]]) == [
        tokens.Token(ids[0], "a", False), tokens.Token(ids[1], "b", True),
    ]  # fmt: skip
    with pytest.raises(ValueError):
        tokens.tokens(tiny_tokenizer, ids, [1])


def test_a_tokenizer_that_puts_a_space_before_texts_continues_without_it():
    class Spaced:
        """As Llama 2's: a space before every text, one token for each character."""

        def tokenize(self, text):
            return ["▁", *text]

        def __call__(self, text, **_):
            return type("Ids", (), {"input_ids": [0, *map(ord, text)]})

    assert tokens.continuation(Spaced(), "ab", "cd") == [99, 100]
