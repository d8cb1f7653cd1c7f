"""Write a tokenizer into a GGUF file: byte-level BPE as llama.cpp's "gpt2", SentencePiece's BPE as its "llama"."""

import json
import re
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from ftlab import tokens
from ftlab.errors import LabError, fail

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "▁"
# How a tokenizer splits text into words -> llama.cpp's name for it.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    CONTRACTIONS + r"\p{N}" + REST: "qwen2",
    CONTRACTIONS + r"\p{N}{1,3}" + REST: "dbrx",
    r" ?[^(\s|[.,!?…。，、।۔،])]+": "bloom",
}


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int, folder: Path) -> None:
    """Add tokens with their types, merges or scores, the special ids, and the chat template.

    Args:
        size: rows of the embedding; those without a token are marked unused.
    Raises:
        LabError: another kind of tokenizer.
    """
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in inner["model"].get("merges", [])]
    listed = [names.get(number, f"[PAD{number}]") for number in range(size)]
    kinds = [kind(number, names, tokenizer) for number in range(size)]
    if inner["model"].get("byte_fallback"):
        require_sentencepiece(inner, folder)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        # llama.cpp prints a user-defined token as listed: Gemma's runs of spaces would become "▁▁".
        own = TokenType.USER_DEFINED
        spaced = [token.replace(SPACE, " ") if one == own else token for token, one in zip(listed, kinds, strict=True)]
        writer.add_token_list(spaced)
        writer.add_token_scores(scores(listed, merges))
        writer.add_add_space_prefix(begins_with_space(inner))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer(inner, folder))
        writer.add_token_list(listed)
        writer.add_token_merges(merges)
    writer.add_token_types(kinds)
    add_ids(writer, tokenizer)
    template = tokenizer.chat_template
    if template:
        writer.add_chat_template(template if isinstance(template, str) else template["default"])


def kind(number: int, names: dict[int, str], tokenizer: PreTrainedTokenizerBase) -> TokenType:
    """Return llama.cpp's type of a token."""
    if number not in names:
        return TokenType.UNUSED
    if number == tokenizer.unk_token_id and names[number] == "<unk>":
        return TokenType.UNKNOWN
    added = tokenizer.added_tokens_decoder.get(number)
    if added:
        return TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    return TokenType.BYTE if BYTE.fullmatch(names[number]) else TokenType.NORMAL


def scores(listed: list[str], merges: list[str]) -> list[float]:
    """Return the score of every token: llama.cpp merges the pair with the highest, that of the earliest merge."""
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), -float(rank))
    return [ranks.get(token, -float(len(merges))) for token in listed]


def add_ids(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the bos, eos and padding ids."""
    for name in ("bos", "eos", "pad", "unk"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    # If a chat template ends turns with a token other than eos, llama.cpp stops at both.
    ends = [number for number in tokens.end_ids(tokenizer) if number != tokenizer.eos_token_id]
    if ends:
        writer.add_eot_token_id(ends[0])
    writer.add_add_bos_token(tokens.adds_bos(tokenizer))


def parts_of(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Return the parts of a normalizer or pre-tokenizer as tokenizer.json has it, [] for none."""
    return (step or {}).get(name) or ([step] if step else [])


def require_sentencepiece(inner: dict[str, Any], folder: Path) -> None:
    """Refuse a BPE with byte fallback that does more than replace spaces, as SentencePiece does.

    Raises:
        LabError: naming its steps.
    """
    steps = parts_of(inner["normalizer"], "normalizers") + parts_of(inner["pre_tokenizer"], "pretokenizers")
    # Gemma's splits at spaces, which its normalizer has already replaced.
    own = [step for step in steps if step.get("pattern") != {"String": " "} or step["type"] != "Split"]
    if any(SPACE not in json.dumps(step, ensure_ascii=False) for step in own):
        raise unknown(inner, [step["type"] for step in steps], folder)


def begins_with_space(inner: dict[str, Any]) -> bool:
    """Return True if a tokenizer prepends a space to a text."""
    steps = parts_of(inner["normalizer"], "normalizers") + parts_of(inner["pre_tokenizer"], "pretokenizers")
    return any(step["type"] == "Prepend" or step.get("prepend_scheme") in ("first", "always") for step in steps)


def pre_tokenizer(inner: dict[str, Any], folder: Path) -> str:
    """Return llama.cpp's name for a tokenizer's pre-tokenization.

    Args:
        inner: the content of a tokenizer.json.
    Raises:
        LabError: not a byte-level BPE, or an unknown pre-tokenization.
    """
    parts = parts_of(inner["pre_tokenizer"], "pretokenizers")
    kinds = [part["type"] for part in parts]
    # llama.cpp's converter leaves out NFC, too: typed text is already in that form.
    plain = inner["model"]["type"] == "BPE" and (inner["normalizer"] or {}).get("type") in (None, "NFC")
    if not plain or kinds[-1:] != ["ByteLevel"] or parts[-1].get("add_prefix_space"):
        raise unknown(inner, kinds, folder)
    name = {("ByteLevel",): "gpt-2", ("Digits", "ByteLevel"): "smollm"}.get(tuple(kinds))
    if kinds == ["Split", "ByteLevel"]:
        name = PATTERNS.get(parts[0]["pattern"].get("Regex", ""))
        # Llama 3's looks up whole words before applying merges.
        name = "llama-bpe" if name == "dbrx" and inner["model"].get("ignore_merges") else name
    if not name:
        raise unknown(inner, kinds, folder)
    return name


def unknown(inner: dict[str, Any], kinds: list[str], folder: Path) -> LabError:
    """Build the error for a tokenizer that llama.cpp might interpret differently."""
    return fail("export_gguf", where=str(folder), what=f"this tokenizer ({inner['model']['type']}, {kinds})")
