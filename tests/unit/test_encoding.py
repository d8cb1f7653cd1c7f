"""Where answers begin and end under every chat template that TRL ships, and what cutting leaves of long examples."""

import contextlib
import json
import os
import random
import re
from importlib.resources import files
from pathlib import Path

import pytest
from tiny import CHATML, make_tokenizer
from transformers import PreTrainedTokenizerFast

from ftlab import rendering, tokens
from ftlab.data import check, encoding
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.recipe import templates
from ftlab.runs import dataset

TEMPLATES = sorted(path.name for path in (files("trl") / "chat_templates").iterdir() if path.name.endswith(".jinja"))
# Merges over white space, as real tokenizers have them: "\n\n", "  ", "\n " and words with a space before.
MERGES = [("Ċ", "Ċ"), ("Ġ", "Ġ"), ("Ċ", "Ġ"), ("ĠĠ", "ĠĠ"), ("Ġ", "I"), ("s", "Ċ"), (">", "Ċ"), ("Ġ", "x")]
CONTROL = re.compile(
    r"<\|[^|<>'\" ]+\|>|<｜[^｜]+｜>|</?(?:start|end)_of_(?:turn|utterance)>|<turn\|>|<\|turn>|<\|tool_response>|</s>"
)
ENDS = (
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|return|>", "<｜end▁of▁sentence｜>", "</s>", "<|END_OF_TURN_TOKEN|>",
    "<end_of_utterance>", "<turn|>", "<|eot|>", "<|end|>",
)  # fmt: skip
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "until": None}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Look.", "parameters": {"type": "object"}}}
CONVERSATIONS = {
    "two_turns": [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See you")],
    "system": [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")],
    "spaces": [("user", "Code"), ("assistant", "    x = 1"), ("user", "More"), ("assistant", "\n\n  x = 2")],
    "thoughts": [
        ("user", "2+2?"),
        ("assistant", "It is 4.", "Two and two."),
        ("user", "3+3?"),
        ("assistant", "It is 6.", "Three."),
    ],
    "call": [("user", "Weather?"), ("assistant", CALL), ("tool", "3 degrees"), ("assistant", "It is cold.")],
    "ends_in_call": [("user", "Weather?"), ("assistant", CALL)],
    "call_beside_text": [
        ("user", "Weather?"),
        ("assistant", (CALL, "I look.")),
        ("tool", "3 degrees"),
        ("assistant", "Cold."),
    ],
    "call_after_thought": [
        ("user", "Weather?"),
        ("assistant", (CALL, ""), "Ask the tool."),
        ("tool", "3 degrees"),
        ("assistant", "It is cold.", "Below ten."),
    ],
}
# They write a call alone, as their models do.
WITHOUT_TEXT = ("llama3_1.jinja", "llama3_2.jinja", "muse_glimmer.jinja", "muse_glimmer_training.jinja")


def message(role: str, content: str | dict | tuple[dict, str], thought: str = "") -> dict:
    """Return a message; a dict is a tool call, a tuple a call and the text beside it."""
    thoughts = {"reasoning_content": thought} if thought else {}
    if isinstance(content, dict):
        content = (content, "")
    if isinstance(content, tuple):
        return {"role": role, "content": content[1], "tool_calls": [content[0]]} | thoughts
    return {"role": role, "content": content} | thoughts


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with merges, a template and the control tokens that the template names."""
    tokenizer = make_tokenizer(MERGES)
    marks = sorted(set(CONTROL.findall(template)))
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.eos_token = next((end for end in ENDS if end in marks), "<|im_end|>")
    tokenizer.bos_token = "<bos>"
    tokenizer.chat_template = template
    return tokenizer


def bundled(name: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one of TRL's templates."""
    return tokenizer_with((files("trl") / "chat_templates" / name).read_text(encoding="utf-8"))


def spans(example: dict[str, list[int]]) -> list[tuple[int, int]]:
    """Return where trained tokens begin and end."""
    trained = [label != tokens.IGNORED for label in example["labels"]]
    starts = [n for n, here in enumerate(trained) if here and not (n and trained[n - 1])]
    return [(start, next((n for n in range(start, len(trained)) if not trained[n]), len(trained))) for start in starts]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_is_trained_once_as_it_is_asked_for(name, conversation):
    tokenizer = bundled(name)
    messages = [message(*turn) for turn in CONVERSATIONS[conversation]]
    row = {"messages": messages} | ({"tools": [TOOL]} if "call" in conversation else {})
    if conversation == "call_beside_text" and name in WITHOUT_TEXT:
        with pytest.raises(LabError, match=r"a tool call without the text beside it: I look\."):
            tokens.encode(tokenizer, row)
        return
    examples = tokens.encode(tokenizer, row)
    found = [(example["input_ids"], *span) for example in examples for span in spans(example)]
    answers = [n for n, one in enumerate(messages) if one["role"] == "assistant"]
    assert len(found) == len(answers)
    control = set(tokenizer.convert_tokens_to_ids(rendering.control_tokens(tokenizer)))
    for (ids, start, end), turn in zip(found, answers, strict=True):
        prompts = [
            tokens.ids_of(tokenizer, rendering.render(tokenizer, messages[:turn], row.get("tools"), True, **options))
            for options in ({}, {"enable_thinking": True})
        ]
        assert ids[:start] in prompts
        text = tokenizer.decode(ids[start:end])
        said = messages[turn]
        assert said["content"].strip() in text and said.get("reasoning_content", "") in text
        assert all(call["function"]["name"] in text and "Oslo" in text for call in said.get("tool_calls", []))
        assert ids[end - 1] in control
        # Nothing but the answer: no word of another turn.
        others = [*messages[:turn], *messages[turn + 1 :]]
        assert not any(other["content"] and other["content"] in text for other in others)
        assert "Oslo" not in text or "tool_calls" in said


def test_a_tool_s_name_that_occurs_by_chance_is_not_taken_for_a_call():
    # As DeepSeek-R1's: it writes no call, and `f` is in the end token. As the template of no use: it names `tools`.
    ends = "{{ m['content'] }}<｜end▁of▁sentence｜>"
    tokenizer = tokenizer_with("{#- no tools, no tool_calls #}{% for m in messages %}" + ends + "{% endfor %}")
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    asked = [{"role": "user", "content": "Now?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    schema = {"type": "function", "function": {"name": "f", "description": "Look.", "parameters": {}}}
    assert rendering.render(tokenizer, asked) == (
        'Now?<｜end▁of▁sentence｜>{"name": "f", "arguments": {}}<｜end▁of▁sentence｜>'
    )
    assert rendering.render(tokenizer, asked[:1], [schema]) == (
        f'{rendering.TOOLS}{{"name": "f", "description": "Look.", "parameters": {{}}}}<｜end▁of▁sentence｜>'
        "Now?<｜end▁of▁sentence｜>"
    )


@pytest.mark.parametrize("text", ["a", "im", "user"])
def test_a_short_turn_that_occurs_by_chance_is_not_taken_for_the_turn(text):
    loop = "{% for message in messages %}"
    without_system = CHATML.replace(loop, loop.replace(" %}", " if message.role != 'system' %}"))
    assert without_system != CHATML
    asked = [{"role": "system", "content": text}, {"role": "user", "content": "Now?"}]
    # Where the template leaves it out it begins the user's turn.
    assert rendering.render(tokenizer_with(without_system), asked) == f"<|im_start|>user\n{text}\n\nNow?<|im_end|>\n"
    assert rendering.render(tokenizer_with(CHATML), asked) == (
        f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user\nNow?<|im_end|>\n"
    )


@pytest.mark.parametrize("name", ["llama3_1.jinja", "llama3_2.jinja"])
def test_a_short_text_beside_a_call_is_missed_where_the_call_holds_it(name):
    row = {"messages": [message("user", "Weather?"), message("assistant", (CALL, "a"))], "tools": [TOOL]}
    with pytest.raises(LabError, match=r"without the text beside it: a\n.*remove the text"):
        tokens.encode(bundled(name), row)


@pytest.mark.parametrize("name", ["llama3_1.jinja", "llama3_2.jinja"])
def test_a_text_beside_a_call_is_missed_in_an_earlier_turn_that_is_not_trained(name):
    messages = [message(*turn) for turn in CONVERSATIONS["call_beside_text"]]
    row = {"messages": [one | {"weight": 0} if "tool_calls" in one else one for one in messages], "tools": [TOOL]}
    with pytest.raises(LabError, match=r"without the text beside it: I look\."):
        tokens.encode(bundled(name), row)


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        ("<think>\nhmm so I wonder", "ends inside its reasoning"),
        ("The tag </think> closes it.", "takes a `</think>` in this answer for the end of its reasoning"),
    ],
)
@pytest.mark.parametrize("name", ["qwen3.jinja", "deepseek_r1_distill.jinja"])
def test_a_thought_without_its_other_end_is_refused_where_the_template_looks_for_it(name, answer, refusal):
    row = {"messages": [message("user", "Hi"), message("assistant", answer)]}
    with pytest.raises(LabError, match=refusal):
        tokens.encode(bundled(name), row)
    (example,) = tokens.encode(tokenizer_with(CHATML), row)
    assert len(spans(example)) == 1, "a template that knows no reasoning writes it as text"


def test_an_answer_after_a_call_is_trained_alone_where_the_template_rewrites_the_call():
    tokenizer = bundled("gptoss.jinja")
    messages = [message(*turn) for turn in CONVERSATIONS["call_beside_text"]]
    (example,) = tokens.encode(tokenizer, {"messages": messages, "tools": [TOOL]})
    assert [tokenizer.decode(example["input_ids"][start:end]) for start, end in spans(example)] == [
        "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant to=functions.weather<|channel|>commentary "
        'json<|message|>{"city": "Oslo", "until": null}<|call|>',
        "<|channel|>final<|message|>Cold.<|return|>",
    ]
    # The prompt is the one that the model is asked: with the text before the call, which goes once an answer follows.
    prompt = tokens.prompt(tokenizer, messages[:3], [TOOL])
    assert example["input_ids"][: len(prompt)] == prompt and "I look." in tokenizer.decode(prompt)


def test_prompt_and_answer_are_tokenized_apart():
    tokenizer = tokenizer_with(CHATML)
    messages = [{"role": "user", "content": "Code"}, {"role": "assistant", "content": "\n  x"}]
    (example,) = tokens.encode(tokenizer, {"messages": messages})
    prompt = tokens.prompt(tokenizer, messages[:1])
    answer = tokenizer("\n  x<|im_end|>", add_special_tokens=False).input_ids
    assert example["input_ids"] == [*prompt, *answer, *tokenizer("\n", add_special_tokens=False).input_ids]
    assert [label for label in example["labels"] if label != tokens.IGNORED] == answer
    # Together the line breaks would have merged, and the answer would begin inside a token.
    together = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert together[: len(prompt)] != prompt


def test_a_history_that_is_rewritten_gives_an_example_for_each_answer():
    tokenizer = bundled("qwen3.jinja")
    messages = [message(*turn) for turn in CONVERSATIONS["thoughts"]]
    first, second = tokens.encode(tokenizer, {"messages": messages})
    assert tokenizer.decode([label for label in first["labels"] if label != tokens.IGNORED]) == (
        "<think>\nTwo and two.\n</think>\n\nIt is 4.<|im_end|>"
    )
    # As the model is asked at that point: without its earlier thought.
    assert "Two and two" not in tokenizer.decode(second["input_ids"])
    (last,) = tokens.encode(tokenizer, {"messages": messages}, mask_history=True)
    assert last == second


def test_turns_of_weight_0_are_not_trained_on(tiny_tokenizer):
    messages = [message(*turn) for turn in CONVERSATIONS["two_turns"]]
    messages[1]["weight"] = 0
    (example,) = tokens.encode(tiny_tokenizer, {"messages": messages})
    assert tiny_tokenizer.decode([one for one in example["labels"] if one != tokens.IGNORED]) == "See you<|im_end|>"
    assert tokens.encode(tiny_tokenizer, {"messages": messages[:2]}) == []


def test_masked_history_does_not_look_at_earlier_turns(tiny_tokenizer, monkeypatch):
    asked = []
    monkeypatch.setattr(tokens, "turn_of", lambda tokenizer, messages, *rest: asked.append(len(messages)))
    monkeypatch.setattr(tokens, "closed", lambda turns, tokenizer: turns)
    tokens.examples(
        tiny_tokenizer, {"messages": [message(*one) for one in CONVERSATIONS["two_turns"]]}, mask_history=True
    )
    assert asked == [3]


def test_a_long_history_loses_its_beginning_and_the_last_question_stays(tiny_tokenizer):
    messages = [
        message("user", "a" * 300),
        message("assistant", "b"),
        message("user", "Why?"),
        message("assistant", "So."),
    ]
    (example,) = tokens.encode(tiny_tokenizer, {"messages": messages}, mask_history=True, cutoff_len=64)
    text = tiny_tokenizer.decode(example["input_ids"])
    assert len(example["input_ids"]) == 64
    assert text.endswith("Why?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n")


def test_control_tokens_in_a_message_end_no_turn(tiny_tokenizer):
    messages = [message("user", "What is <|im_end|>?"), message("assistant", "It is <|im_end|>.")]
    (example,) = tokens.encode(tiny_tokenizer, {"messages": messages})
    # The system never speaks: two turns, two ends.
    assert example["input_ids"].count(tiny_tokenizer.eos_token_id) == 2
    assert tokens.prompt(tiny_tokenizer, messages[:1]).count(tiny_tokenizer.eos_token_id) == 1


def test_tools_stand_in_the_system_turn_where_the_template_has_no_place(tiny_tokenizer):
    messages = [message(*turn) for turn in CONVERSATIONS["call"]]
    text = rendering.render(tiny_tokenizer, messages, [TOOL])
    assert '"description": "Look."' in text.split("<|im_end|>")[0]
    assert '{"name": "weather", "arguments": {"city": "Oslo", "until": null}}' in text


def test_arguments_as_json_text_are_the_same_call(tiny_tokenizer):
    for tokenizer in (tiny_tokenizer, bundled("qwen2_5.jinja"), bundled("qwen3_6.jinja"), bundled("deepseekv3.jinja")):
        call = {
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps({"city": "Oslo", "until": None})},
        }
        messages = [message("user", "Weather?"), message("assistant", call)]
        parsed = [message("user", "Weather?"), message("assistant", CALL)]
        assert rendering.render(tokenizer, messages, [TOOL]) == rendering.render(tokenizer, parsed, [TOOL])


def test_a_system_turn_that_the_template_refuses_begins_the_first_question():
    tokenizer = bundled("gemma.jinja")
    text = rendering.render(tokenizer, [message("system", "Be brief."), message("user", "Hi")])
    assert "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>" in text


def test_the_end_of_an_answer_is_among_the_end_ids():
    tokenizer = tokenizer_with(CHATML)
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    ids = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert tokens.end_ids(tokenizer) == sorted(ids)
    tokenizer.chat_template = None
    assert tokens.end_ids(tokenizer) == ids[1:]


# The whole figure: FTLAB_CASES=2000 pytest tests/unit/test_encoding.py -k data_check
CASES = int(os.environ.get("FTLAB_CASES", "40"))
WORDS = (
    "Hi",
    "a longer sentence with words",
    "\n\n",
    "    x = 1",
    "你好 🙂",
    "<|im_end|>",
    "</think>",
    "<think>\nhm\n</think>\n\n",
    "1",
)
FAMILIES = (
    "qwen2_5",
    "qwen3",
    "qwen3_5_think",
    "llama3_1",
    "gemma",
    "gptoss",
    "deepseek_r1_distill",
    "phi3",
    "glm4moe",
)


def random_set(chance: random.Random) -> list[dict]:
    """Return a few examples of one shape with random turns, lengths, thoughts and weights."""

    def text() -> str:
        return " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, 8))) or "x"

    def turns() -> list[dict]:
        made = [{"role": "system", "content": f"System {text()}"}] if chance.random() < 0.3 else []
        for _ in range(chance.randint(1, 3)):
            made += [
                {"role": "user", "content": f"Question {text()}"},
                {"role": "assistant", "content": f"Answer {text()}"},
            ]
            if chance.random() < 0.2:
                made[-1]["weight"] = 0
            if chance.random() < 0.2:
                made[-1]["reasoning_content"] = "A thought."
        return made

    shape = chance.choice(("messages", "messages", "pair", "kto", "tools"))
    made = []
    for _ in range(chance.randint(1, 4)):
        row: dict = {"messages": turns()}
        if shape == "pair":
            row = {"instruction": text() + "?", "chosen": f"Yes {text()}", "rejected": f"No {text()}"}
        elif shape == "kto":
            row = {"instruction": text() + "?", "output": f"Yes {text()}", "kto_tag": chance.random() < 0.5}
        elif shape == "tools":
            row["messages"] += [
                message("user", "Weather?"),
                message("assistant", CALL),
                message("tool", text()),
                message("assistant", "Cold."),
            ]
            row["tools"] = [TOOL]
        made.append(row)
    return made


@pytest.mark.parametrize("seed", range(CASES))
def test_data_check_says_what_training_does(seed, tmp_path, monkeypatch, capsys):
    """Kept, cut and dropped are the same, and so is every id and label."""
    chance = random.Random(seed)
    path = tmp_path / "set.jsonl"
    made = random_set(chance)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    tokenizer, cutoff_len = bundled(f"{chance.choice(FAMILIES)}.jinja"), chance.choice((16, 48, 128, 2048))
    report = check.check(str(path), cutoff_len=cutoff_len, tokenizer=tokenizer)
    stage = "dpo" if "chosen" in made[0] else "kto" if "kto_tag" in made[0] else "sft"
    keys = {
        "model_name_or_path": "x",
        "dataset": str(path),
        "stage": stage,
        "cutoff_len": cutoff_len,
        "on_bad_rows": "drop",
    }
    try:
        trained, _ = dataset.splits(recipes.load(keys), tokenizer)
    except LabError:
        assert report.kept + report.cut == 0
        return
    printed = capsys.readouterr().out
    counts = re.search(r"(\d+) read, (\d+) kept.*?; (\d+) cut to \d+ tokens \((\d+) tokens lost\)", printed)
    read, kept, cut, lost = map(int, counts.groups())
    assert (kept, cut, lost) == (report.kept + report.cut, report.cut, report.tokens_lost)
    assert report.read - kept == report.dropped and read <= report.read
    shown = []
    for row in dataset.read_examples(recipes.load(keys), str(path)):
        with contextlib.suppress(LabError):
            how = encoding.Encoding(cutoff_len=cutoff_len)
            shown += encoding.encode(tokenizer, dataset.present(row), how).examples
    assert list(trained) == shown


@pytest.mark.parametrize(
    "keys", [{"mask_history": True}, {"stage": "grpo", "reward_funcs": "short_answer"}], ids=["sft", "grpo"]
)
def test_a_last_answer_of_weight_0_is_dropped_with_its_reason(keys, tmp_path, capsys):
    def row(question: str, **last: int) -> dict:
        turns = [message("user", question), message("assistant", "One."), message("user", "And?")]
        return {"messages": [*turns, message("assistant", "Two.") | last]}

    def splits(*rows: dict) -> list[dict]:
        path = tmp_path / f"{len(rows)}.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
        made = recipes.load({"model_name_or_path": "x", "dataset": str(path), "cutoff_len": 256} | keys)
        return list(dataset.splits(made, tokenizer_with(CHATML))[0])

    assert len(splits(row("A?"), row("B?", weight=0), row("C?", weight=1))) == 2
    said = capsys.readouterr().out
    assert "3 read, 2 kept" in said and "1 of the dropped examples has an answer of weight 0 at their end" in said
    with pytest.raises(LabError, match=r"every example ends with an answer of weight 0[^.]*\n.*mask_history: false"):
        splits(row("B?", weight=0))


@pytest.mark.parametrize("train_on_prompt", [True, False])
def test_training_on_prompts_says_that_it_trains_answers_of_weight_0(train_on_prompt, tmp_path, capsys):
    turns = [message("user", "A?"), message("assistant", "One.") | {"weight": 0}, message("user", "And?")]
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"messages": [*turns, message("assistant", "Two.")]}) + "\n", encoding="utf-8")
    keys = {"model_name_or_path": "x", "dataset": str(path), "cutoff_len": 256, "train_on_prompt": train_on_prompt}
    tokenizer = tokenizer_with(CHATML)
    (example,) = dataset.splits(recipes.load(keys), tokenizer)[0]
    trained = tokenizer.decode([label for label in example["labels"] if label != tokens.IGNORED])
    assert ("One." in trained) is train_on_prompt and "Two." in trained
    assert ("1 example has answers of weight 0: `train_on_prompt`" in capsys.readouterr().out) is train_on_prompt


@pytest.mark.parametrize("seed", range(max(1, CASES // 4)))
def test_nothing_that_stands_in_a_row_is_a_traceback(seed, tmp_path):
    """Fuzz: mutated examples through check and encode under every family; FTLAB_CASES=20000 makes 5,000 rows."""
    chance = random.Random(seed)
    row = random_set(chance)[0]
    for _ in range(chance.randint(1, 3)):
        mutate(row, chance)
    path = Path(tmp_path / "set.jsonl")
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    for family in chance.sample(FAMILIES, 2):
        try:
            report = check.check(str(path), cutoff_len=64, tokenizer=bundled(f"{family}.jinja"))
        except LabError:
            continue
        assert report.kept + report.cut + report.dropped == report.read


def mutate(value: object, chance: random.Random) -> None:
    """Change one thing somewhere inside a value."""
    places = [value]
    for one in places:
        places += [
            inner for inner in (one.values() if isinstance(one, dict) else one) if isinstance(inner, dict | list)
        ]
    if not (filled := [one for one in places if one]):
        return
    place = chance.choice(filled)
    key = chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
    junk = chance.choice(
        (None, 0, 1.5, True, "", "x", [], {}, ["x"], {"role": "user"}, "<|im_end|>", "assistant", "tool")
    )
    if chance.random() < 0.3:
        del place[key]
    else:
        place[key] = junk


def test_a_judged_pair_is_shown_as_its_two_conversations(tiny_tokenizer):
    """What the panel counts is what a reward model reads: the prompt with each answer, to the end of the text."""
    row = {"prompt": [{"role": "user", "content": "a"}]} | {
        side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")
    }
    judged = encoding.shown(tiny_tokenizer, row, encoding.Encoding(judged=True))
    (example,) = encoding.encode(tiny_tokenizer, row, encoding.Encoding(judged=True)).examples
    assert [one["input_ids"] for one in judged] == [example["chosen_ids"], example["rejected_ids"]]
    assert tiny_tokenizer.decode(judged[1]["input_ids"]).startswith("<|im_start|>user\na<|im_end|>")


@pytest.mark.parametrize("longer", ["chosen", "rejected"])
def test_each_side_of_a_pair_follows_the_prompt_that_asks_for_it(longer):
    # Asked without a thought this template closes an empty block, asked for one it opens it.
    tokenizer = bundled("qwen3_5_nothink.jinja")
    asked = [message("user", "2 + 2?")]
    row = {"prompt": asked, "chosen": [message("assistant", "4")], "rejected": [message("assistant", "Five.", "Hm.")]}
    row["chosen"][0]["content"] *= 90 if longer == "chosen" else 1
    (pair,) = encoding.encode(tokenizer, row, encoding.Encoding()).examples
    (whole,) = encoding.encode(tokenizer, row, encoding.Encoding(judged=True)).examples
    for side, thinking in (("chosen", False), ("rejected", True)):
        text = rendering.render(tokenizer, asked, add_generation_prompt=True, enable_thinking=thinking)
        ids = [*pair["prompt_ids"], *pair[f"{side}_ids"]]
        assert ids[: len(tokens.ids_of(tokenizer, text))] == tokens.ids_of(tokenizer, text)
        assert tokenizer.decode(ids) + "\n" == tokenizer.decode(whole[f"{side}_ids"])
    assert tokenizer.decode(pair["prompt_ids"]).endswith("<|im_start|>assistant\n<think>\n")


@pytest.mark.parametrize("judged", [False, True])
def test_a_pair_that_cutoff_len_makes_equal_is_dropped(judged, tmp_path, monkeypatch):
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "cache"))
    tokenizer = tokenizer_with(CHATML)
    same = "The same beginning of both. " * 9
    row = {"prompt": "Hi", "chosen": f"{same}Good.", "rejected": f"{same}Bad."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"chosen": "Good."}) + "\n")
    report = check.check(str(tmp_path / "pairs.jsonl"), cutoff_len=64, tokenizer=tokenizer)
    assert (report.read, report.kept, report.cut, report.dropped) == (2, 0, 1, 1)
    assert report.problems[0].what.startswith("chosen and rejected are empty or the same within cutoff_len 64")
    sides = {side: [message("assistant", row[side])] for side in ("chosen", "rejected")}
    pair = {"prompt": [message("user", "Hi")]} | sides
    for cutoff_len, made in ((64, 0), (4096, 1)):
        how = encoding.Encoding(cutoff_len=cutoff_len, judged=judged)
        assert len(encoding.encode(tokenizer, pair, how).examples) == made


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_written_answer_is_read_where_training_puts_it(name):
    tokenizer = bundled(name)
    asked = [message("user", "Which?")]
    prompt, choices = tokens.written_answers(tokenizer, asked, ["Yes", "Not at all"])
    for text, ids in zip(["Yes", "Not at all"], choices, strict=True):
        (example,) = tokens.encode(tokenizer, {"messages": [*asked, message("assistant", text)]})
        assert example["input_ids"][: len(prompt) + len(ids)] == [*prompt, *ids]
        assert tokenizer.decode(ids).strip() == text


def test_a_thought_is_asked_for_in_all_turns_of_a_template_that_is_told_not_to_think():
    # GLM-4.5's writes `/nothink` after the question: it must not become part of the answer.
    tokenizer = bundled("glm4moe.jinja")
    templates.set_thinking(tokenizer, False)
    turns = [message("user", "2 + 2?"), message("assistant", "4", "Two and two.")]
    (example,) = tokens.encode(tokenizer, {"messages": turns})
    ((start, end),) = spans(example)
    assert tokenizer.decode(example["input_ids"][:start]).endswith("2 + 2?<|assistant|>")
    assert tokenizer.decode(example["input_ids"][start:end]).startswith("\n<think>Two and two.</think>\n4")


def test_a_prompt_names_the_tools_that_may_be_called():
    tokenizer = bundled("qwen2_5.jinja")
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    asked = [{"role": "user", "content": "Will it rain?"}]
    assert "get_weather" in tokenizer.decode(tokens.prompt(tokenizer, asked, tools))
    assert "get_weather" not in tokenizer.decode(tokens.prompt(tokenizer, asked))
