"""`template:` names: each means what LLaMA-Factory means by it, or is refused by name with the right one."""

from importlib.resources import files

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ftlab import tokens
from ftlab.errors import LabError
from ftlab.recipe import read as recipes
from ftlab.recipe import templates
from ftlab.runs import chat, train
from tests.tiny import CHATML, make_tokenizer

TALK = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
PLAIN = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"


def tokenizer_with(template: str | None, name: str = "model"):
    """Return a tokenizer with one of TRL's chat templates by name, with a text, or with none."""
    tokenizer = make_tokenizer()
    bundled = {path.name.removesuffix(".jinja"): path for path in (files("trl") / "chat_templates").iterdir()}
    tokenizer.chat_template = bundled[template].read_text() if template in bundled else template
    tokenizer.name_or_path = name
    return tokenizer


def text_of(tokenizer, messages=TALK) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False)


# As DeepSeek-V3 writes it: no think blocks.
DEEPSEEK = (
    "{% for m in messages %}{{ {'user': '<｜User｜>', 'assistant': '<｜Assistant｜>'}.get(m.role, '') + m.content }}"
    "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
PHI4 = "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
LLAMA2 = "{% for m in messages %}[INST] <<SYS>>{{ m.content }}[/INST]{% endfor %}"
FITTING = [
    (CHATML, "chatml"), (CHATML, "yi"), ("qwen2_5", "qwen"), ("qwen3", "qwen3"),
    ("qwen3_instruct_2507", "qwen3_nothink"), (PHI4, "phi4"), (LLAMA2, "llama2"),
    ("llama3", "llama3"), ("gemma", "gemma2"), ("phi3", "phi"), (DEEPSEEK, "deepseek3"),
    ("deepseek_r1_distill", "deepseekr1"), ("glm4moe", "glm4_moe"),
]  # fmt: skip


@pytest.mark.parametrize(("own", "name"), FITTING, ids=lambda part: part[:24])
def test_a_name_that_fits_changes_nothing_and_says_nothing(own, name):
    tokenizer = tokenizer_with(own)
    before = tokenizer.chat_template
    assert templates.apply(name, tokenizer) == "" and tokenizer.chat_template == before


REFUSED = [
    # (the model's own template, its name, what was written, what to write)
    ("qwen2_5", "Qwen2.5-7B-Instruct", "llama3", "qwen"),
    ("qwen2_5", "Qwen2.5-7B-Instruct", "default", "qwen"),
    ("qwen2_5", "Qwen2.5-7B-Instruct", "qwen3", "qwen"),
    ("qwen3", "Qwen3-8B", "qwen", "qwen3"),
    ("qwen3_instruct_2507", "Qwen3-4B-Instruct-2507", "qwen3", "qwen3_nothink"),
    ("deepseek_r1_distill", "DeepSeek-R1-Distill-Qwen-1.5B", "deepseek3", "deepseekr1"),
    (DEEPSEEK, "DeepSeek-V3", "deepseekr1", "deepseek3"),
    ("glm4moe", "GLM-4.5", "glm4", "glmz1|glm4_moe"),
    ("glm4moe", "GLM-4.5", "zephyr", "glm4_moe"),
    ("phi3", "Phi-3-mini-4k-instruct", "zephyr", "phi"),
    (CHATML, "model", "hunyuan", "chatml"),
    (PHI4, "phi-4", "chatml", "phi4"),
    (LLAMA2, "Llama-2-7b-chat", "mistral", "llama2"),
]  # fmt: skip


@pytest.mark.parametrize(("own", "model", "name", "right"), REFUSED, ids=lambda part: part[:24])
def test_a_name_that_promises_something_else_is_refused_with_the_right_one(own, model, name, right):
    tokenizer = tokenizer_with(own, model)
    before = tokenizer.chat_template
    with pytest.raises(LabError, match=f"use `template: ({right})`") as error:
        templates.apply(name, tokenizer)
    assert error.value.exit_code == 2 and tokenizer.chat_template == before


def test_every_name_belongs_to_one_family():
    names = [name for family in templates.FAMILIES for name in family.names]
    assert len(names) == len(set(names)) and set(templates.THINKING) | set(templates.SYSTEM_TURNS) <= set(names)
    for name, text in templates.TEXTS.items():
        assert templates.family_of_text(text) is templates.family_of_name(name), name


@pytest.mark.parametrize("name", ["qwen3_nothink", "chatml"])
def test_plain_chatml_replaces_a_template_that_writes_think_blocks(name):
    tokenizer = tokenizer_with("qwen3", "Qwen3-8B")
    assert "<think>" in text_of(tokenizer)
    assert "think blocks" in templates.apply(name, tokenizer) and text_of(tokenizer) == PLAIN
    # What was saved with the run is taken as it is.
    assert templates.apply(name, tokenizer) == ""


def test_the_three_texts_for_base_models_are_llama_factorys():
    """As its release 0.9.5 renders them, checked by hand."""
    talk = [{"role": "system", "content": "Be kind."}, *TALK]
    tokenizer, end = tokenizer_with(None), "<|im_end|>"
    assert "saved with it" in templates.apply("default", tokenizer)
    assert text_of(tokenizer, talk) == f"System: Be kind.{end}\nHuman: Hi?{end}\nAssistant:Yes.{end}\n"
    assert tokenizer.decode(tokens.prompt(tokenizer, TALK[:1])) == f"Human: Hi?{end}\nAssistant:"
    tokenizer = tokenizer_with(None)
    templates.apply("alpaca", tokenizer)
    begun = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    )
    assert text_of(tokenizer) == f"{begun}### Instruction:\nHi?\n\n### Response:\nYes.{end}\n\n"
    tokenizer = tokenizer_with(None)
    templates.apply("chatml", tokenizer)
    assert text_of(tokenizer) == PLAIN


def test_a_system_turn_that_the_name_does_not_bring_is_said():
    lumi = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Lumi.<|im_end|>\n{% endif %}" + CHATML
    said = templates.apply("chatml", tokenizer_with(lumi))
    assert "You are Lumi." in said and "default_system" in said
    assert "You are Qwen" in templates.apply("qwen", tokenizer_with(CHATML))
    assert templates.apply("llama2_zh", tokenizer_with(LLAMA2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "plain text without turns"),
        ("chatmal", "did you mean chatml"),
        ("xyzzy", "unknown chat template `xyzzy`\n  fix: if you remove the key"),
        ("minicpm_v", "unknown chat template `minicpm_v`\n  fix: if you remove the key"),
    ],
)
def test_an_unknown_name_is_refused(name, message):
    with pytest.raises(LabError, match=message):
        templates.apply(name, tokenizer_with(CHATML))


def test_one_key_puts_another_template_in_place_of_the_models_own(tiny_recipe, capsys):
    other = tiny_recipe | {"template": "default", "max_steps": 2}
    with pytest.raises(LabError, match="allow_other_template: true replaces"):
        train.train(recipes.load(other))
    done = train.train(recipes.load(other | {"allow_other_template": True}))
    assert "template: default replaces the model's own chat template" in capsys.readouterr().out
    _, tokenizer = chat.load(other["model_name_or_path"], done.folder)
    assert text_of(tokenizer) == "Human: Hi?<|im_end|>\nAssistant:Yes.<|im_end|>\n"
    with pytest.raises(LabError, match="include the text of `template: llama3`"):
        train.train(recipes.load(other | {"allow_other_template": True, "template": "llama3"}))


@pytest.mark.parametrize(("thinking", "asked"), [(None, ""), (True, ""), (False, "<think>\n\n</think>\n\n")])
def test_enable_thinking_is_what_the_template_reads(thinking, asked):
    tokenizer = tokenizer_with("qwen3", "Qwen3-8B")
    assert templates.apply(None, tokenizer, thinking=thinking) == ""
    prompt = tokens.prompt(tokenizer, [{"role": "user", "content": "Hi?"}])
    assert tokenizer.decode(prompt).endswith(f"<|im_start|>assistant\n{asked}")
    # A thought in the data is asked for and trained on either way; applied again, nothing is added.
    for said in ("Yes.", "<think>\nhm\n</think>\n\nYes."):
        row = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": said}]}
        (example,) = tokens.encode(tokenizer, row)
        trained = tokenizer.decode([one for one in example["labels"] if one >= 0])
        empty = "" if asked or "hm" in said else "<think>\n\n</think>\n\n"
        assert trained == f"{empty}{said}<|im_end|>"
    before = tokenizer.chat_template
    templates.apply(None, tokenizer, thinking=thinking)
    assert tokenizer.chat_template == before


def test_a_template_without_thoughts_says_that_the_key_has_no_effect():
    tokenizer = tokenizer_with("qwen2_5", "Qwen2.5-7B-Instruct")
    before = tokenizer.chat_template
    assert "enable_thinking: false has no effect" in templates.apply(None, tokenizer, thinking=False)
    assert tokenizer.chat_template == before


def test_chatml_for_a_model_without_its_tokens_is_said():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")
    note = templates.apply("chatml", tokenizer)
    assert "the model has no tokens <|im_start|>, <|im_end|>; they are trained as plain text" in note
    tokenizer.chat_template = None
    assert "plain text" not in templates.apply("default", tokenizer)
    assert "plain text" not in templates.apply("chatml", tokenizer_with(None))
