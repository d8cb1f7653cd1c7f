"""`template:` names a chat template by LLaMA-Factory's name; the model's own is used if it matches the name."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from ftlab.errors import fail, say, suggest
from ftlab.rendering import control_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Family(NamedTuple):
    """Chat templates that look alike: LLaMA-Factory's names for them, and the strings all of them contain."""

    names: tuple[str, ...]
    marks: tuple[str, ...]


# A template belongs to the first family all of whose marks it contains, so families with more marks come first.
FAMILIES = (
    Family(("phi4",), ("<|im_start|>", "<|im_sep|>")),
    Family(
        ("chatml", "qwen", "qwen3", "qwen3_nothink", "smollm", "smollm2", "yi", "intern2", "internlm2", "hermes"),
        ("<|im_start|>", "<|im_end|>"),
    ),
    Family(("llama3",), ("<|start_header_id|>", "<|eot_id|>")),
    Family(("llama2", "llama2_zh"), ("[INST]", "<<SYS>>")),
    Family(("mistral", "mistral_small", "ministral"), ("[INST]",)),
    Family(("gemma", "gemma2", "gemma3"), ("<start_of_turn>",)),
    Family(("glm4", "glm4_moe", "glmz1"), ("[gMASK]", "<|user|>")),
    Family(("deepseek3", "deepseekr1"), ("<｜User｜>", "<｜Assistant｜>")),
    Family(("hunyuan",), ("<|startoftext|>", "<|extra_0|>")),
    Family(("baichuan2",), ("<reserved_106>",)),
    Family(("phi", "phi_small"), ("<|user|>", "<|end|>")),
    Family(("zephyr", "olmo"), ("<|user|>", "<|assistant|>")),
    Family(("vicuna",), ("USER:", "ASSISTANT:")),
    Family(("alpaca",), ("### Instruction:", "### Response:")),
    Family(("default",), ("Human: ", "Assistant:")),
)
# Names of templates with a think block in every answer, an empty one if the data has no reasoning.
THINKING = ("qwen3", "deepseekr1", "glmz1", "glm4_moe")
# Name -> its default system turn for data without one; other names have none.
SYSTEM_TURNS = {
    "qwen": "You are Qwen",
    "smollm2": "named SmolLM",
    "intern2": "You are an AI assistant whose name is InternLM",
    "llama2_zh": "You are a helpful assistant. 你是一个乐于助人的助手。",
    "zephyr": "You are Zephyr",
    "vicuna": "A chat between a curious user and an artificial intelligence assistant.",
    "alpaca": "Below is an instruction",
}
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Prepended to a chat template, this sets its `enable_thinking`, in training, chat and server alike, unless
# another value is passed: for an answer with reasoning in the data it is still true.
THINKS = {
    value: "{%- if enable_thinking is not defined %}{%- set enable_thinking = " + str(value).lower() + " %}{%- endif %}"
    for value in (True, False)
}
# Templates that ftlab can give to a base model without one, or in place of the model's own.
TEXTS = dict.fromkeys(("chatml", "qwen3_nothink", "smollm", "yi"), CHATML) | {
    "alpaca": (
        "{% if messages[0]['role'] != 'system' %}{{ 'Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n' }}{% endif %}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '### Instruction:\n' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}"
        "{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% else %}"
        "{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
    "default": (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ 'Human: ' + message['content'] + eos_token + '\n' }}{% elif message['role'] == 'assistant' %}"
        "{{ 'Assistant:' + message['content'] + eos_token + '\n' }}{% else %}"
        "{{ 'System: ' + message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
}
# Names of plain ChatML, which replaces a model's own template with think blocks.
PLAIN = ("chatml", "qwen3_nothink")
QUESTION, ANSWER, SYSTEM = "Hi?", "Yes.", "@@"


def apply(
    name: str | None, tokenizer: "PreTrainedTokenizerBase", replace: bool = False, thinking: bool | None = None
) -> str:
    """Set the chat template of a run: the one that a recipe names, with or without reasoning.

    Args:
        thinking: the value of `enable_thinking`; None: the template's default.
    Returns, raises: as `settle`.
    """
    note = settle(name, tokenizer, replace)
    return note if thinking is None else "\n".join(filter(None, (note, set_thinking(tokenizer, thinking))))


def set_thinking(tokenizer: "PreTrainedTokenizerBase", thinking: bool) -> str:
    """Turn a chat template's reasoning on or off; return a note if it has no `enable_thinking`."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or "enable_thinking" not in template:
        return say("recipe_note_no_thinking", value=str(thinking).lower())
    for prefix in THINKS.values():
        template = template.removeprefix(prefix)
    tokenizer.chat_template = THINKS[thinking] + template
    return ""


def settle(name: str | None, tokenizer: "PreTrainedTokenizerBase", replace: bool = False) -> str:
    """Compare `template: name` with the model's own chat template, and replace that if necessary.

    A base model gets the named template; so does a model whose own writes think blocks if the name is plain ChatML.

    Args:
        replace: put the named template in place of the model's own, whatever that is.
    Returns:
        A note for the user, "" when there is nothing to say.
    Raises:
        LabError: the model's own is a different one (the right name is given), or the name is unknown.
    """
    if name is None:
        return ""
    family, own = family_of_name(name), tokenizer.chat_template
    if own is None or replace:
        if name not in TEXTS:
            key = "recipe_template_none" if own is None else "recipe_template_no_text"
            raise fail(key, where="template", name=name, known=", ".join(TEXTS))
        tokenizer.chat_template = TEXTS[name]
        note = say("recipe_note_template_base" if own is None else "recipe_note_template_given", name=name)
        return "\n".join(filter(None, (note, plain_note(name, tokenizer))))
    text = own if isinstance(own, str) else " ".join(own.values())
    same, blocks = family is family_of_text(text), thinks(tokenizer)
    if same and blocks == (name in THINKING):
        return system_note(name, tokenizer)
    if same and name in PLAIN:
        tokenizer.chat_template = CHATML
        return say("recipe_note_template_plain", name=name)
    right = right_name(text, tokenizer.name_or_path, blocks)
    if same:
        raise fail(
            "recipe_template_thinks" if blocks else "recipe_template_plain", where="template", name=name, right=right
        )
    raise fail("recipe_template", where="template", name=name, family=right or "?", right=right or "-")


def plain_note(name: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a note if a template marks turns with tokens that the model does not have, else ""."""
    control = control_tokens(tokenizer)
    lacking = [mark for mark in family_of_name(name).marks if mark.startswith("<|") and mark not in control]
    return say("recipe_note_template_tokens", name=name, tokens=", ".join(lacking)) if lacking else ""


def family_of_name(name: str) -> Family:
    """Return the family a name belongs to.

    Raises:
        LabError: `empty`, which would train on text without turns, or an unknown name.
    """
    if name == "empty":
        raise fail("recipe_template_empty", where="template")
    family = next((family for family in FAMILIES if name in family.names), None)
    if family is None:
        hint = suggest(name, [known for family in FAMILIES for known in family.names])
        raise fail("recipe_template_unknown", where="template", name=name, hint=f"{hint} " if hint else "")
    return family


def family_of_text(template: str) -> Family | None:
    """Return the family of a chat template, None if unknown."""
    return next((family for family in FAMILIES if all(mark in template for mark in family.marks)), None)


def right_name(template: str, model: str, blocks: bool) -> str:
    """Return the `template` name of a chat template: the one that the model's name contains, or the first that fits.

    Args:
        blocks: whether the template writes think blocks.
    """
    family = family_of_text(template)
    fitting = [name for name in family.names if (name in THINKING) is blocks] if family else []
    spoken = Path(model).name.lower()
    candidates = [name for name in fitting if name.removesuffix("_nothink") in spoken]
    return max(candidates, key=len) if candidates else (fitting or [""])[0]


def rendered(tokenizer: "PreTrainedTokenizerBase", *turns: tuple[str, str], ask: bool = False) -> str:
    """Render turns (role, text) with a tokenizer's chat template; return "" if it refuses them."""
    messages = [{"role": role, "content": text} for role, text in turns]
    with contextlib.suppress(TemplateError, TypeError, ValueError, KeyError, IndexError):
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
    return ""


def thinks(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return True if a chat template adds a think block, into an answer or before it."""
    question = ("user", QUESTION)
    answered = rendered(tokenizer, question, ("assistant", ANSWER))
    return "<think>" in answered + rendered(tokenizer, question, ask=True)


def system_note(name: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a note if a model's own template has another default system turn than the name, else ""."""
    promised, own = SYSTEM_TURNS.get(name, ""), own_system_turn(tokenizer)
    if promised in own and bool(promised) == bool(own):
        return ""
    shown = [f"`{text[:80]}`" if text else say("no_system_turn") for text in (own.strip(), promised)]
    return say("recipe_note_template_system", name=name, own=shown[0], promised=shown[1])


def own_system_turn(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the system turn that a chat template adds to a conversation without one, or ""."""
    bare, full = rendered(tokenizer, ("user", QUESTION)), rendered(tokenizer, ("system", SYSTEM), ("user", QUESTION))
    before, _, after = full.partition(SYSTEM)
    rest = bare.removeprefix(before)
    if not full or not before or rest == bare or rest.startswith(QUESTION):
        return ""
    between = after.partition(QUESTION)[0]
    # Some templates put a date before every system turn; then there is no default one.
    system = rest.partition(between)[0]
    return system or before.removeprefix(tokenizer.bos_token or "")
