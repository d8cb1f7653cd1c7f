"""GGUF files of every family, read by llama.cpp where a wheel of it is installed; Modelfiles; tokenizers."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from gguf import GGMLQuantizationType as Q
from gguf import GGUFReader, TokenType
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma2Config,
    GemmaConfig,
    Glm4Config,
    GlmConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from ftlab.errors import LabError
from ftlab.runs import export, gguf, gguf_families, gguf_tokenizer, modelfile

# Llama 3.1's positions; heads wider than hidden_size / heads; a window.
STRETCHED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES = {
    "llama": (LlamaConfig, {}),
    "llama3.1": (LlamaConfig, {"rope_parameters": STRETCHED | {"original_max_position_embeddings": 64}}),
    "mistral": (MistralConfig, {}),
    "mixtral": (MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 32}),
    "olmo2": (Olmo2Config, {}),
    "gemma": (GemmaConfig, {"head_dim": 16}),
    "gemma2": (Gemma2Config, {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}),
    "glm": (GlmConfig, {"head_dim": 16}),
    "glm4": (Glm4Config, {"head_dim": 16}),
    "phi3": (Phi3Config, {}),
    "phi": (PhiConfig, {"num_key_value_heads": None}),
    "gpt_neox": (GPTNeoXConfig, {}),
    "bloom": (BloomConfig, {"n_head": 4, "n_layer": 2}),
}
# Rows that blocks of 256 divide.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.05}
KNOWN = {config.__name__.removesuffix("Config") + "ForCausalLM" for config, _ in FAMILIES.values()}
PROMPTS = ["What is 2 plus 3?", "Who are you?<|im_end|>", "the math<new0>"]


def make_base(folder: Path, family: str, tied: bool) -> Path:
    """Write a random base with an added token and three unused rows; norms are not ones, biases not zeros."""
    # llama.cpp does not load a vocabulary without a single merge.
    tokenizer = tiny.make_tokenizer([("t", "h")])
    tokenizer.add_tokens(["<new0>"])
    config_class, own = FAMILIES[family]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    # Some families' tokenizer class adds a token of its own when it is loaded.
    config_class(**sizes | ids | own).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = len(AutoTokenizer.from_pretrained(folder)) + 3
    torch.manual_seed(0)
    config = config_class(**sizes | ids | own | {"vocab_size": rows, "tie_word_embeddings": tied})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1 if weight.ndim == 1 else 0)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("gemma")])
def test_every_family_is_written_and_read_back(family, tied, tmp_path):
    base = make_base(tmp_path / "base", family, tied)
    gguf.write(base, base / "m.gguf", "f16")
    fields = GGUFReader(base / "m.gguf").fields
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds.count(TokenType.USER_DEFINED) == 1 and kinds[-3:] == [TokenType.UNUSED] * 3
    assert fields["tokenizer.chat_template"].contents() == tiny.CHATML
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    read = export.read_back(base, "m.gguf")
    assert (read is not None) == (type(model).__name__ in gguf_families.READ_BACK)
    if read:
        ids = torch.tensor([list(range(40))])
        with torch.inference_mode():
            assert (model(ids).logits - read(ids).logits).abs().max() < 0.05


def test_every_family_of_the_writer_is_tested():
    assert set(gguf_families.FAMILIES) == KNOWN


def test_a_gemma_has_its_embedding_for_a_head_and_is_refused_with_another(tmp_path):
    tied = make_base(tmp_path / "tied", "gemma2", True)
    gguf.write(tied, tied / "m.gguf", "f16")
    ids = torch.tensor([list(range(40))])
    model, read = AutoModelForCausalLM.from_pretrained(tied).eval(), export.read_back(tied, "m.gguf")
    with torch.inference_mode():
        assert (model(ids).logits - read(ids).logits).abs().max() < 0.05
    with pytest.raises(LabError, match=r"a weight called lm_head\.weight"):
        gguf.write(make_base(tmp_path / "untied", "gemma2", False), tmp_path / "m.gguf", "f16")


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_gives_the_greedy_tokens_of_transformers(family, tmp_path):
    pytest.importorskip("xllamacpp")
    for tied in (True, False) if not family.startswith("gemma") else (True,):
        base = make_base(tmp_path / f"base-{tied}", family, tied)
        gguf.write(base, tmp_path / "m.gguf", "f16")
        assert differences(base, tmp_path / "m.gguf") < 0.2


@pytest.mark.parametrize(("kind", "allowed"), [("q8_0", 0.1), ("q6_k", 0.3), ("q5_k_m", 0.6), ("q4_k_m", 1.0)])
def test_llama_cpp_reads_what_its_own_quantizer_wrote(kind, allowed, tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    monkeypatch.setitem(FAMILIES, "wide", (LlamaConfig, WIDE))
    base = make_base(tmp_path / "base", "wide", True)
    gguf.write(base, tmp_path / "m.gguf", kind)
    kinds = {tensor.name: tensor.tensor_type for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == gguf.KINDS[kind].matrices
    assert differences(base, tmp_path / "m.gguf", greedy=False) < allowed


@torch.inference_mode()
def differences(base: Path, file: Path, greedy: bool = True) -> float:
    """Return the largest difference of a token's log-probability between llama.cpp and transformers.

    Answers hold printable ASCII only, which llama.cpp's server can report token by token. Greedy tokens must be equal
    where transformers prefers them by more than what 16 bits round.
    """
    import xllamacpp

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    words = {number: token for token, number in tokenizer.get_vocab().items()}
    readable = [number for number, token in words.items() if len(token) == 1 and token.isascii()]
    barred = sorted(set(range(model.config.vocab_size)) - set(readable))
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.cpuparams.n_threads, settings.verbosity = str(file), 256, 1, -1
    server, worst = xllamacpp.Server(settings), 0.0
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        for _ in range(6):
            logits = model(torch.tensor([ids])).logits[0, -1]
            asked = {"prompt": ids, "n_predict": 1, "temperature": 0, "logprobs": 1}
            said = server.handle_completions(asked | {"logit_bias": [[number, False] for number in barred]})
            (token,) = said["choices"][0]["logprobs"]["content"]
            first, second = logits[readable].topk(2).values
            best = readable[logits[readable].argmax()]
            assert not greedy or token["id"] == best or first - second < 0.02
            top = token["top_logprobs"][0]
            worst = max(worst, abs(logits.log_softmax(-1)[top["id"]].item() - top["logprob"]))
            ids.append(best)
    return worst


def test_llama_cpp_gives_half_of_the_layers_more_bits():
    formats = gguf.KINDS["q4_k_m"]
    kinds = [gguf.format_of(f"blk.{layer}.ffn_down.weight", formats, 16) for layer in range(16)]
    assert [number for number, kind in enumerate(kinds) if kind == Q.Q6_K] == [0, 1, 4, 7, 10, 13, 14, 15]
    assert gguf.format_of("blk.0.attn_q.weight", formats, 16) == Q.Q4_K
    assert gguf.format_of("token_embd.weight", formats, 16) == Q.Q6_K
    assert gguf.format_of("blk.0.ffn_gate_inp.weight", formats, 16) == Q.F32


@pytest.mark.parametrize(
    ("kind", "fused", "values", "keys", "output"),
    [
        ("f16", [Q.F16] * 4, Q.F16, Q.F16, Q.F16),
        ("q8_0", [Q.Q8_0] * 4, Q.Q8_0, Q.Q8_0, Q.Q8_0),
        ("q6_k", [Q.Q6_K] * 4, Q.Q8_0, Q.Q8_0, Q.Q6_K),
        ("q5_k_m", [Q.Q5_K, Q.Q5_K, Q.Q6_K, Q.Q6_K], Q.Q8_0, Q.Q8_0, Q.Q5_K),
        ("q4_k_m", [Q.Q4_K, Q.Q4_K, Q.Q6_K, Q.Q6_K], Q.Q8_0, Q.Q8_0, Q.Q5_K),
        ("q4_0", [Q.Q4_0] * 4, Q.Q8_0, Q.Q8_0, Q.Q4_0),
    ],
)
def test_fused_attention_and_eight_experts_have_llama_cpps_formats(kind, fused, values, keys, output):
    """As llama.cpp's quantizer gave them to a GPT-NeoX, a Phi-3, a BLOOM and a Mixtral of four layers, 256 wide."""
    formats = gguf.KINDS[kind]
    assert [gguf.format_of(f"blk.{layer}.attn_qkv.weight", formats, 4) for layer in range(4)] == fused
    names = ("blk.1.attn_v.weight", "blk.1.attn_k.weight", "blk.1.attn_output.weight")
    assert [gguf.format_of(name, formats, 4, 8) for name in names] == [values, keys, output]
    assert gguf.format_of("blk.1.attn_output.weight", formats, 4, 4) == formats.matrices


def test_a_mixture_that_lacks_experts_is_refused(tmp_path):
    base = make_base(tmp_path / "base", "mixtral", False)
    for path in base.glob("*.safetensors"):
        there = load_file(path)
        gone = [name for name in there if "layers.1." in name and ".experts.2." in name]
        assert len(gone) == 3
        save_file({name: weight for name, weight in there.items() if name not in gone}, path)
    with pytest.raises(LabError, match=r"experts that are not all there: .*layers\.1\..*, 3 of 4") as error:
        gguf.write(base, tmp_path / "m.gguf", "f16")
    assert error.value.exit_code == 2


def test_mistrals_window_is_in_its_file(tmp_path, monkeypatch):
    for window in (32, None):
        monkeypatch.setitem(FAMILIES, "mistral", (MistralConfig, {"sliding_window": window}))
        base = make_base(tmp_path / f"base-{window}", "mistral", True)
        gguf.write(base, tmp_path / "m.gguf", "f16")
        field = GGUFReader(tmp_path / "m.gguf").fields.get("llama.attention.sliding_window")
        assert (field.contents() if field else None) == window


# Tokenizers.


def sentencepiece(prepend: bool) -> PreTrainedTokenizerFast:
    """Return a small BPE with byte tokens that writes spaces as SentencePiece does."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Prepend("▁")] if prepend else []
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    inner.train_from_iterator(["the other thing that they thought of then"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    return tokenizer


@pytest.mark.parametrize("prepend", [True, False])
def test_a_sentencepiece_tokenizer_has_scores_by_merge(prepend, tmp_path):
    base = make_base(tmp_path, "llama", True)
    tokenizer = sentencepiece(prepend)
    # As in Gemma: llama.cpp prints added tokens as they are listed.
    tokenizer.add_tokens(["▁▁"])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    gguf.write(base, base / "m.gguf", "q8_0")
    fields = GGUFReader(base / "m.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"].contents() == prepend
    tokens, values = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores"))
    scores = dict(zip(tokens, values, strict=True))
    assert "  " in tokens and "▁▁" not in tokens
    first, second, *_ = (
        "".join(merge) for merge in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    )
    assert scores[first] == 0 > scores[second]
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.CONTROL]


def test_a_bpe_with_byte_tokens_that_cuts_text_in_another_way_is_refused():
    inner = json.loads(sentencepiece(False).backend_tokenizer.to_str())
    inner["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}}
    gguf_tokenizer.require_sentencepiece(inner, Path())
    inner["pre_tokenizer"] = {"type": "Digits", "individual_digits": True}
    with pytest.raises(LabError, match="Digits"):
        gguf_tokenizer.require_sentencepiece(inner, Path())


@pytest.mark.parametrize(("pattern", "name"), gguf_tokenizer.PATTERNS.items())
def test_a_way_of_cutting_text_into_words_has_llama_cpps_name(pattern, name):
    steps = [
        {"type": "Split", "pattern": {"Regex": pattern}},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]
    inner = {
        "model": {"type": "BPE"},
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
    }
    assert gguf_tokenizer.pre_tokenizer(inner, Path()) == name
    inner["model"]["ignore_merges"] = True
    assert gguf_tokenizer.pre_tokenizer(inner, Path()) == ("llama-bpe" if name == "dbrx" else name)
    steps[0]["pattern"]["Regex"] = pattern + "+"
    with pytest.raises(LabError, match="this tokenizer"):
        gguf_tokenizer.pre_tokenizer(inner, Path())


# Modelfiles.


def test_a_modelfile_has_the_template_in_ollamas_language():
    assert modelfile.text("m.gguf", tiny.make_tokenizer()) == (
        "FROM ./m.gguf\n"
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}'
        "{{ if .Prompt }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ end }}"
        '{{ .Response }}<|im_end|>\n"""\n'
        'PARAMETER stop "<|im_end|>"\n'
    )


def test_a_modelfile_leaves_out_a_template_that_is_no_sequence_of_turns():
    tokenizer = tiny.make_tokenizer()
    # As Mistral's and Gemma's, without a system turn of its own.
    tokenizer.chat_template = tiny.CHATML.replace(
        "{% for", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{% for", 1
    )
    assert modelfile.text("m.gguf", tokenizer) == 'FROM ./m.gguf\nPARAMETER stop "<|im_end|>"\n'
    tokenizer.chat_template = None
    assert modelfile.text("m.gguf", tokenizer) == "FROM ./m.gguf\n"


def test_a_modelfile_has_the_system_prompt_of_training():
    """SmolLM2's template writes one where a chat has none, and its first control token is its bos, never added."""
    tokenizer = tiny.make_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    own = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    tokenizer.chat_template = own + tiny.CHATML
    said = modelfile.text("m.gguf", tokenizer)
    assert "{{ if .System }}<|im_start|>system\n{{ .System }}" in said and '\nSYSTEM """Be kind."""\n' in said
    assert '\nSYSTEM """Be brief."""\n' in modelfile.text("m.gguf", tokenizer, "Be brief.")


@pytest.mark.parametrize(
    ("system", "line"),
    [
        ('Say "hi"', 'SYSTEM """Say "hi""""'),
        ('Use """ as quotes\nhere', 'SYSTEM """Use """ as quotes\nhere"""'),
        ('Write x = """\nhere', "# The system prompt has a line that ends with three quotes"),
    ],
)
def test_quotes_in_a_system_prompt_end_it_nowhere_else(system, line):
    """Ollama ends a text in triple quotes where a line ends with three, and has no escape for them."""
    said = modelfile.text("m.gguf", tiny.make_tokenizer(), system)
    assert f"\n{line}" in said and ("SYSTEM" in said) == line.startswith("SYSTEM")


@pytest.mark.parametrize("start", ["[gMASK]", "{{ '{{' }}"])
def test_a_template_with_a_beginning_of_its_own_is_left_to_ollama(start):
    """Ollama repeats its template for every question, and would evaluate braces."""
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = start + tiny.CHATML
    assert "TEMPLATE" not in modelfile.text("m.gguf", tokenizer)
