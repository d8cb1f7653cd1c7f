# %% [markdown] id="title"
# # 04 · QLoRA: the same, with four bits per weight
#
# LoRA trains a few percent of the weights, yet all of them must be in memory. QLoRA keeps the frozen ones in four bits each.
# Here you build that number format by hand, prove it equal to the library's, see what it costs in quality, predict what
# training takes before anything is loaded, check the prediction against the allocator, and train with it.
#
# | you will have | measured as |
# |---|---|
# | NF4 by hand | share of blocks with the library's codes |
# | quality against bits | perplexity at 2, 3, 4 and 8 bits, and as loaded |
# | memory, predicted and measured | error of the prediction |
# | QLoRA beside LoRA | fields right, bytes, seconds |
#
# **Cost:** about 7 minutes and 7 GB on two CPU cores, 5 minutes on a T4. **Before this:** [03 · LoRA](03_lora.ipynb).

# %% [markdown] id="title" lang="zh" of="9c8882ff"
# # 04 · QLoRA：同样的事，每个权重只用 4 比特
#
# LoRA 只训练百分之几的权重，但全部权重都得放在内存里。QLoRA 把冻结的权重各存成 4 比特。在这里，你亲手做出这种数字格式，证明它与库的相等，看它损失多少质量，在加载任何东西之前预测训练要多少内存，再用分配器核对预测，最后用它训练。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 手写的 NF4 | 与库编码相同的块所占比例 |
# | 质量与位数 | 2、3、4、8 位时与原样加载时的困惑度 |
# | 预测的与实测的内存 | 预测误差 |
# | QLoRA 与 LoRA 并排 | 正确字段的比例、字节、秒 |
#
# **耗时与内存：** 两个 CPU 核心上约 7 分钟、7 GB 内存，T4 上约 5 分钟。**先修：** [03 · LoRA](03_lora.ipynb)。

# %% [markdown] id="setup-why"
# ## Setup
# On Colab the next cell installs the course; everywhere else it only steps up to the course folder.

# %% [markdown] id="setup-why" lang="zh" of="91d5b1e4"
# ## 准备
# 在 Colab 上，下一格会安装课程；在其他地方它只是进入课程文件夹。

# %% id="setup"
import os
import subprocess
import sys

FTLAB_REPO = ""  # Colab only: the git address this notebook was opened from
if "google.colab" in sys.modules and not os.path.isdir("ftlab"):
    subprocess.run(["git", "clone", "--depth=1", FTLAB_REPO, "ftlab"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "./ftlab[course,gpu]"], check=True)
    os.chdir("ftlab")
while not os.path.isdir("data") and os.getcwd() != os.path.dirname(os.getcwd()):
    os.chdir("..")

# %% id="imports"
import dataclasses
import itertools
import json
import logging
import math
import time

import matplotlib.pyplot as plt
import torch
from accelerate.state import AcceleratorState
from bitsandbytes import functional as bnb
from bitsandbytes.nn import Linear4bit
from datasets import Dataset, load_dataset
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PrinterCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from ftlab import checks, cpu, device, memory, models
from ftlab.apps import course

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
bnb_4bit_quant_type = "nf4"  # or fp4
bnb_4bit_use_double_quant = True  # quantize the scales too
r = 16  # rank of the adapter
learning_rate = 2e-3
max_steps = 0  # optimizer steps; 0: the profile's own
per_device_train_batch_size = 4  # examples per step
seed = 0

# %% id="profile"
profiles = {  # model, steps, orders asked, tokens of an answer, sentences; what memory is measured: rows, tokens, recompute
    "smoke": ("smollm2-135m-short", 1, 2, 4, 4, [1], [64], [False, True]),
    "cpu": ("smollm2-135m", 80, 80, 48, 40, [1, 4], [128], [False, True]),
    "t4": ("Qwen/Qwen2.5-1.5B-Instruct", 90, 100, 48, 60, [1, 4], [512], [False, True]),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 60, 100, 48, 60, [1, 4], [512], [False, True]),
}
default_model, default_steps, question_count, answer_tokens, sentence_count, *measured = profiles[PROFILE]
model_name = model_name or default_model
max_steps = max_steps or default_steps
set_seed(seed)

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
where = "cuda" if on_gpu else "cpu"
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)


def load(**options):
    return AutoModelForCausalLM.from_pretrained(
        model_path, dtype=dtype, attn_implementation=attention, device_map=where, **options
    )


model = load()
weight = model.model.layers[0].mlp.up_proj.weight.detach()
number_bytes = weight.element_size()
as_loaded = f"{8 * number_bytes} bits"  # 16, on a processor without bfloat16 instructions 32
print(f"{tuple(weight.shape)} weights of {weight.dtype}, from {weight.min():.2f} to {weight.max():.2f}")

# %% [markdown] id="idea-why"
# ## The idea: sixteen levels and a scale
# Four bits name one of sixteen levels. A block of 64 weights shares one scale, its largest absolute value; each weight
# becomes the number of the nearest level. Four weights and four levels, to see it:

# %% [markdown] id="idea-why" lang="zh" of="f317280c"
# ## 想法：十六个量化值和一个缩放因子
# 4 比特可以表示十六个量化值中的一个。64 个权重为一块，共用一个缩放因子：块内绝对值的最大者；每个权重变成离它最近的量化值的编号。用四个权重、四个量化值来看：

# %% id="literal"
levels = torch.tensor([-1.0, -0.3, 0.3, 1.0])
four = torch.tensor([0.02, -0.10, 0.05, 0.01])
scale = four.abs().max()
codes = (four[:, None] / scale - levels).abs().argmin(1)
print(f"scale {scale:.2f}, codes {codes.tolist()}, read back {[round(x, 3) for x in (levels[codes] * scale).tolist()]}")

# %% [markdown] id="levels-why"
# ### Which sixteen levels?
# Trained weights are roughly normal: many small, few large. NF4 puts its levels where a normal distribution has equally
# many weights between them: at its quantiles, eight above zero, seven below, and zero itself.

# %% [markdown] id="levels-why" lang="zh" of="a215741b"
# ### 哪十六个量化值？
# 训练好的权重大致呈正态分布：小的多，大的少。NF4 把等级放在正态分布的分位数上，使相邻等级之间的权重一样多：零以上八个，零以下七个，再加上零本身。


# %% id="levels"
def normal_quantile(p):
    return math.sqrt(2) * torch.erfinv(2 * p - 1)


edge = 0.9677083  # the outermost quantile, from the QLoRA paper's code (Dettmers et al. 2023, arXiv:2305.14314)
above = normal_quantile(torch.linspace(edge, 0.5, 9, dtype=torch.float64)[:-1])
below = -normal_quantile(torch.linspace(edge, 0.5, 8, dtype=torch.float64)[:-1])
nf4 = torch.cat([below, torch.zeros(1), above]).sort().values
nf4 = (nf4 / nf4.max()).float()  # (16,)
print([round(level, 3) for level in nf4.tolist()])
assert torch.allclose(nf4, bnb.get_4bit_type("nf4", device="cpu"), atol=1e-6)

# %% id="levels-plot"
fig, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
blocks = weight.float().cpu().reshape(-1, 64)
ax.hist((blocks / blocks.abs().amax(1, keepdim=True)).flatten().numpy(), bins=120, color="#9ecae1")
ax.vlines(nf4.numpy(), 0, ax.get_ylim()[1], color="#d95f02", linewidth=1)
ax.set(xlabel="weight / scale of its block, and the sixteen levels", ylabel="weights", yticks=[])
plt.show()

# %% [markdown] id="scratch-why"
# ### Ten lines, and the same codes as the library


# %% [markdown] id="scratch-why" lang="zh" of="6c4444cf"
# ### 十行代码，与库的编码相同


# %% id="scratch"
def quantize(weight, levels, block=64):  # -> codes (blocks, block), scales (blocks, 1)
    blocks = weight.float().reshape(-1, block)
    scales = blocks.abs().amax(1, keepdim=True)
    middles = (levels[1:] + levels[:-1]) / 2  # a weight belongs to the level on its side of the middle
    return torch.bucketize(blocks / scales, middles), scales


def dequantize(codes, scales, levels, shape):
    return (levels[codes] * scales).reshape(shape)


# %% id="parity"
equal = total = 0
for layer in model.model.layers[:10]:
    for part in (layer.self_attn.q_proj, layer.mlp.down_proj):
        original = part.weight.detach().cpu()
        mine, scales = quantize(original, nf4)
        packed, state = bnb.quantize_4bit(original, blocksize=64, quant_type="nf4")
        theirs = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).reshape(-1, 64)  # two codes a byte
        equal += (mine == theirs).all(1).sum().item()
        total += len(mine)
nf4_codes_equal_share = equal / total
print(f"{equal:,} of {total:,} blocks have the library's codes: {nf4_codes_equal_share:.0%}")
assert nf4_codes_equal_share == 1

# %% [markdown] id="double-why"
# ### The scales take room too
# A 4-byte scale for 64 weights is half a bit each. *Double quantization* stores the scales in one byte each, 256 of them
# sharing one more scale. Bits per weight, counted and as the library has them:

# %% [markdown] id="double-why" lang="zh" of="e7aa60b6"
# ### 缩放因子本身也占地方
# 每 64 个权重一个 4 字节的缩放因子，等于每个权重多半比特。*双重量化*把缩放因子各存成一个字节，每 256 个再共用一个缩放因子。每个权重的比特数，数出来的和库里的：

# %% id="double"
for double in (False, True):
    packed, state = bnb.quantize_4bit(original, blocksize=64, quant_type="nf4", compress_statistics=double)
    scale_bytes = state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
    counted = 4 + (8 / 64 + 32 / (64 * 256) if double else 32 / 64)
    found = 8 * (packed.nbytes + scale_bytes) / original.numel()
    print(f"double quantization {double!s:<5}  {found:.3f} bits per weight, counted {counted:.3f}")

# %% [markdown] id="quality-why"
# ## What do fewer bits cost?
# Every linear layer rounded and read back, at several widths, levels evenly spaced or at the normal quantiles.
# Perplexity on sentences is the exponential of the loss per token: lower is better.

# %% [markdown] id="quality-why" lang="zh" of="dd1ad4ba"
# ## 比特数更少，质量损失多大？
# 把每个线性层取整再读回，试几种位宽，量化值均匀分布或放在正态分位数上。困惑度是每个 token 损失的指数：越低越好。

# %% id="perplexity"
sentences = load_dataset("json", data_files="data/corpus_en.jsonl", split="train")["text"][:sentence_count]


@torch.no_grad()
def text_perplexity(model):
    batch = tokenizer(list(sentences), padding=True, padding_side="right", return_tensors="pt").to(model.device)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
    return losses.exp().item()


# %% id="quality"
widths = {f"{bits} bits": torch.linspace(-1, 1, 2**bits) for bits in (8, 4, 3, 2)} | {"NF4": nf4}
quality, errors = {as_loaded: text_perplexity(model)}, {}
for label, levels in widths.items():
    rounded = load()
    for layer in rounded.model.layers.modules():
        if isinstance(layer, nn.Linear):
            original = layer.weight.detach().float().cpu()
            back = dequantize(*quantize(original, levels), levels, original.shape)
            errors.setdefault(label, []).append(((back - original).norm() / original.norm()).item())
            layer.weight.data.copy_(back)
    quality[label] = text_perplexity(rounded)
    print(f"{label:<8} error {sum(errors[label]) / len(errors[label]):.1%}, perplexity {quality[label]:.1f}")

# %% id="quality-plot"
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
order = [as_loaded, "8 bits", "NF4", "4 bits"]
bars = left.bar(order, [quality[label] for label in order], color=["grey", "grey", "#d95f02", "grey"])
left.bar_label(bars, fmt="%.1f")
left.set(ylabel="perplexity", title=f"3 bits: {quality['3 bits']:,.0f}, 2 bits: {quality['2 bits']:,.0f}")
for label in ("NF4", "4 bits"):
    right.plot(errors[label], label=label)
right.set(xlabel="linear layer, from the first to the last", ylabel="relative error")
right.legend()
plt.show()

# %% [markdown] id="quality-read"
# Eight bits cost next to nothing. At four the quantile levels beat the even ones, for the same memory. Below four bits
# rounding alone breaks a model this small; bigger models bear more.

# %% [markdown] id="quality-read" lang="zh" of="8271ab9d"
# 8 比特几乎没有损失。4 比特时，放在分位数上的量化值胜过均匀的量化值，占的内存相同。低于 4 比特，单靠取整就会让这么小的模型失效；更大的模型能承受更多。

# %% [markdown] id="config-why"
# ## The library call
# One config object, handed to `from_pretrained`. Weights rest in four bits; each layer unpacks its own to
# `bnb_4bit_compute_dtype` for the moment it multiplies.

# %% [markdown] id="config-why" lang="zh" of="0c5f02cf"
# ## 库的调用
# 一个配置对象，交给 `from_pretrained`。权重以 4 比特存放；每一层在相乘的那一刻才把自己的权重解成 `bnb_4bit_compute_dtype`。

# %% id="config"
quantization_config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type=bnb_4bit_quant_type,
    bnb_4bit_use_double_quant=bnb_4bit_use_double_quant,
    bnb_4bit_compute_dtype=dtype,
)
quantized = load(quantization_config=quantization_config)
cpu.keep_gradients(quantized)  # why: the second trap below
print(quantized.model.layers[0].mlp.up_proj)
nf4_perplexity = text_perplexity(quantized)
print(f"perplexity {quality[as_loaded]:.1f} -> {nf4_perplexity:.1f}")

# %% id="base-bytes"
base_bytes_ratio = found / 16  # of the quantized layers: bits per weight with double quantization, against 16
footprints = [memory.held_bytes(candidate) for candidate in (quantized, model)]  # the blocks' scales included
whole_ratio = footprints[0] / footprints[1]
print(
    f"quantized layers: {base_bytes_ratio:.2f} of 16 bits; "
    f"the whole model, its embedding as loaded: {whole_ratio:.2f} of {as_loaded}"
)

# %% [markdown] id="memory-why"
# ## Memory, before anything is loaded
# The field's rule of thumb: a model of N weights takes a = 4 N bytes, full fine-tuning 5a, LoRA a little over a. Here it
# is beside the sum of the parts, for a 7B model and one row of 1,024 tokens. Only `config.json`'s numbers go in.

# %% [markdown] id="memory-why" lang="zh" of="92ead21a"
# ## 加载之前先算内存
# 流行的经验法则：N 个权重的模型占 a = 4 N 字节，全量微调 5a，LoRA 略多于 a。下面把它和逐项相加的结果并排，以 7B 模型、一行 1,024 个 token 为例。只用到 `config.json` 里的数字。

# %% id="rule"
weights_7b, adapter_7b = 7.6e9, 40e6  # Qwen2.5-7B, and LoRA with r = 16 on all its linear layers
a = 4 * weights_7b
settings = {  # bytes of a frozen weight, trained weights, bytes of each: itself where it is new, gradient, two moments
    "full, float32": (4, weights_7b, 12),
    "LoRA on float32": (4, adapter_7b, 16),
    "LoRA on bfloat16": (2, adapter_7b, 16),
    "QLoRA": (found / 8, adapter_7b, 16),
}
for label, (frozen_bytes, trained_weights, trained_bytes) in settings.items():
    total = weights_7b * frozen_bytes + trained_weights * trained_bytes
    print(f"{label:<18} {total / 2**30:6.1f} GiB = {total / a:.2f} a, activations not counted")

# %% id="rule-activations"
seven = memory.Decoder(28, 3584, 28, 4, 128, 18944, 152064, False)  # Qwen2.5-7B: layers, width, heads, ...
for again in (False, True):
    needed = memory.estimate(seven, memory.Training(1, 1024, trained=0, checkpointing=again))
    print(f"activations of 1,024 tokens: {needed.activations / 2**30:.1f} GiB, recomputing {again}")

# %% [markdown] id="rule-read"
# For full fine-tuning the rule is on the safe side: weights, gradients and two moments are 4a, and at this length the
# activations add about a fifth of one more. For LoRA it is wrong in both directions: nobody keeps a frozen base in float32,
# so it starts at a/2, and QLoRA at a seventh. And it forgets activations, which grow with every token: unless they are
# recomputed, they outweigh the adapter with its gradients and moments.

# %% [markdown] id="rule-read" lang="zh" of="f7719c41"
# 对全量微调，这个法则偏保守：权重、梯度、一阶矩和二阶矩共 4a，在这个长度上激活只再加约五分之一个 a。对 LoRA，它两头都错：没有人把冻结的基座放在 float32 里，所以起点是 a/2，QLoRA 是七分之一。它还忘了随每个 token 增长的激活：只要不重算，激活就比适配器连同其梯度、一阶矩和二阶矩加起来还大。

# %% [markdown] id="measure-why"
# ### Predicted against measured
# Two steps of real training per setting; the allocator's log gives the peak. The prediction
# knows the sizes in `config.json`, which weights are trained, the bytes of each kind of number, and in which tiles the loss
# goes through the vocabulary.

# %% [markdown] id="measure-why" lang="zh" of="f642baba"
# ### 预测与实测
# 每种设置真实训练两步，由分配器的记录得出峰值。预测知道的有：`config.json` 里的尺寸、训练哪些权重、每类数字占几个字节、损失按怎样的分块遍历词表。

# %% id="training-args"
training_args = SFTConfig(
    output_dir="runs/04_qlora",
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    learning_rate=learning_rate,
    lr_scheduler_type="cosine",
    warmup_steps=0.1,  # below 1: a share of all steps
    max_length=256,  # tokens per example
    train_sampling_strategy="group_by_length",  # rows of like length together: less padding, fewer seconds
    logging_steps=1,
    save_strategy="no",
    activation_checkpointing=on_gpu,  # transformers' new name for gradient_checkpointing
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    report_to="none",
    seed=seed,
)
peft_config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", task_type="CAUSAL_LM")

# %% id="sizes"
config = AutoConfig.from_pretrained(model_path)
keys = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
attention_sides = 2 * (2 * config.hidden_size) + 2 * (config.hidden_size + keys)  # q and o, k and v: inputs + outputs
lora_weights = r * config.num_hidden_layers * (attention_sides + 3 * (config.hidden_size + config.intermediate_size))
adapted = get_peft_model(model, peft_config)
assert lora_weights == adapted.num_parameters(only_trainable=True)
model = adapted.unload()
print(f"LoRA trains {lora_weights:,} weights")


# %% [markdown] id="numbers-why"
# What the prediction is told of each method: which weights are trained, and the bytes of each kind.

# %% [markdown] id="numbers-why" lang="zh" of="0eddd519"
# 预测对每种方法所知道的：训练哪些权重，以及每一类权重的字节数。


# %% id="numbers"
def numbers(method, checkpointing):
    told = {
        "checkpointing": checkpointing,
        "eager": attention == "eager",
        "grouped": not on_gpu,
        "other_bytes": number_bytes,
    }
    told |= {"loss_tile": 32768, "tile_bytes": 2} if on_gpu else {"loss_tile": 2048, "tile_bytes": 31}
    adapter = {"adapter_rank": r, "trained": lora_weights, "trained_bytes": 4 if on_gpu else number_bytes}
    adapter |= {"linear_bytes": number_bytes}
    if not on_gpu:  # with a frozen output layer the fast path holds the whole logits of a few tokens at a time
        adapter |= {"loss_tile": config.vocab_size, "tile_rows": 128, "tile_bytes": 12}
    float32 = {"linear_bytes": 4, "other_bytes": 4, "trained_bytes": 4, "autocast": dtype == "bfloat16"}
    blocks = sum(weight.numel() for weight in model.model.layers[-2:].parameters())
    return (
        told
        | {
            "LoRA": adapter,
            "QLoRA": adapter | {"linear_bytes": found / 8},
            "full": float32 | {"trained": model.num_parameters(), "embedding_trained": True},
            "freeze": float32 | {"trained": blocks, "trained_layers": 2},
        }[method]
    )


# %% id="build"
def build(method):
    """Return the model as each method trains it: LoRA, QLoRA, all weights, or the last two blocks."""
    if method in ("full", "freeze"):
        whole = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation=attention)
        if method == "freeze":
            whole.requires_grad_(False)
            whole.model.layers[-2:].requires_grad_(True)
        return whole
    return get_peft_model(quantized if method == "QLoRA" else model, peft_config, autocast_adapter_dtype=on_gpu)


# %% id="two-steps"
def unround(model):
    """Put what is trained into float32 where this machine doesn't multiply bfloat16; why: the third trap below."""
    for weight in model.parameters():
        if weight.requires_grad and dtype != "bfloat16":
            weight.data = weight.data.float()


def two_steps(method, rows, length, checkpointing):
    """Return a trainer for two steps on rows that are all `length` tokens long."""
    tokens = torch.randint(0, 1000, (2 * rows, length)).tolist()
    args = dataclasses.replace(
        training_args,
        max_steps=2,
        max_length=length,
        per_device_train_batch_size=rows,
        activation_checkpointing=checkpointing,
        logging_strategy="no",
        disable_tqdm=True,
        bf16=training_args.bf16 or (method in ("full", "freeze") and dtype == "bfloat16"),
        train_sampling_strategy="random",
    )
    data = Dataset.from_list([{"input_ids": row, "labels": row} for row in tokens])
    AcceleratorState._reset_state(True)  # it remembers the first trainer's precision for the life of the process
    trainer = SFTTrainer(build(method), args, train_dataset=data, processing_class=tokenizer)
    unround(trainer.model)
    trainer.remove_callback(PrinterCallback)
    return trainer


# %% id="measure"
methods = ("LoRA", "QLoRA") if on_gpu else ("LoRA", "QLoRA", "full", "freeze")
table = []
sizes = memory.Decoder.from_config(config.to_dict())
for cell in itertools.product(methods, *measured):  # method, examples, tokens, recompute
    told = memory.Training(*cell[1:3], **numbers(cell[0], cell[3]))
    short_run = two_steps(*cell)
    with memory.measure_peak_bytes(short_run.model) as peak:
        short_run.train()
    if "LoRA" in cell[0]:  # the base is used again
        short_run.model.unload().activation_checkpointing_disable()
    table.append((*cell, memory.estimate(sizes, told), peak.bytes))

# %% id="measure-table"
print(f"{'method':<8} {'rows x tokens':<14} {'recompute':<10} {'predicted':>10} {'measured':>10}  MiB")
differences = []
for method, examples, length, recompute, predicted, found_peak in table:
    differences.append(abs(predicted.peak / found_peak - 1))
    label = f"{method:<8} {examples} x {length:<10} {'yes' if recompute else 'no':<10}"
    print(f"{label} {predicted.peak / 2**20:>10.0f} {found_peak / 2**20:>10.0f}  {differences[-1]:.1%}")
memory_error_max, memory_error_mean = max(differences), sum(differences) / len(differences)
print(f"largest error {memory_error_max:.1%}, mean {memory_error_mean:.1%}")

# %% id="measure-plot"
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
shown = [row for row in table if row[1] == examples and not row[3]]  # the most examples, nothing recomputed
left = [0.0] * len(shown)
for part in ("weights", "optimizer", "gradients", "activations", "logits"):
    gib = [getattr(predicted, part) / 2**30 for *_, predicted, _ in shown]
    ax.barh([method for method, *_ in shown], gib, left=left, label=part)
    left = [start + width for start, width in zip(left, gib, strict=True)]
for i, (*_, found_peak) in enumerate(shown):
    ax.plot([found_peak / 2**30] * 2, [i - 0.45, i + 0.45], color="black", label=None if i else "measured peak")
ax.set(xlabel=f"GiB for {examples} rows of {length} tokens; gradients and activations are not full at once")
ax.legend(fontsize=8)
plt.show()

# %% [markdown] id="train-why"
# ## LoRA and QLoRA on the same task
# Orders to JSON, as in lesson 03, scored on orders that are never trained on: the share of fields that are right, and of
# whole orders, a coarser ruler. Their sentence forms do occur in training, so that both scores are higher than on lesson
# 03's test. The same rows, steps and seed; the only difference is how the frozen weights are stored. **Predict before you run:** which loses points, which seconds?

# %% [markdown] id="train-why" lang="zh" of="395c5f2b"
# ## 同一任务上的 LoRA 与 QLoRA
# 和第 03 课一样，把订单变成 JSON，用从未训练过的订单打分：正确字段的比例，以及整单完全正确的比例，后者是更粗的尺子。这些订单的句式在训练中出现过，所以两个分数都高于第 03 课的测试。样本、步数和种子都相同；唯一的区别是冻结的权重怎样存放。**先预测，再运行：** 谁丢分，谁费时？


# %% id="task"
def to_order(row):
    prompt = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["output"]}]}


orders = load_dataset("json", data_files="data/orders_train.jsonl", split="train").shuffle(seed=seed).map(to_order)
order_dataset = orders.select(range(600)).select_columns(["prompt", "completion"])
asked = orders.select(range(600, 600 + question_count))  # never trained on


def fields_right(reply, wanted):
    """Return the share of an order's fields that a reply has right; 0 for a reply that is not a JSON object."""
    try:
        given, wanted = json.loads(reply), json.loads(wanted)
    except ValueError:
        return 0.0
    if not isinstance(given, dict):
        return 0.0
    items = given.get("items") if isinstance(given.get("items"), list) else []
    pairs = [(given.get(name), wanted[name]) for name in ("name", "time")]
    pairs += [(items[i] if i < len(items) else "missing", item) for i, item in enumerate(wanted["items"])]
    return sum(found == right for found, right in pairs) / len(pairs)


def order_scores(model, rows=asked):
    """Answer greedily, all in one batch, so that weights are unpacked once a token; return each order's score."""
    texts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in rows["prompt"]]
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.eval().generate(**batch.to(model.device), max_new_tokens=answer_tokens, do_sample=False)
    replies = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [fields_right(reply, wanted) for reply, wanted in zip(replies, rows["output"], strict=True)]


def mean(scores):
    return sum(scores) / len(scores)


# %% id="train"
AcceleratorState._reset_state(True)
scores, seconds, tuned = {}, {}, {}
for method in ("LoRA", "QLoRA"):
    set_seed(seed)
    tuned[method] = build(method)
    trainer = SFTTrainer(tuned[method], training_args, train_dataset=order_dataset, processing_class=tokenizer)
    unround(trainer.model)
    started = time.perf_counter()
    trainer.train()
    seconds[method] = time.perf_counter() - started
    scores[method] = order_scores(tuned[method])
lora_score, qlora_score = mean(scores["LoRA"]), mean(scores["QLoRA"])

# %% id="compare"
bits_per_weight = {"LoRA": 8 * number_bytes, "QLoRA": found}
for method, each in scores.items():
    adapter = next(weight for weight in tuned[method].parameters() if weight.requires_grad)
    print(
        f"{method:<6} {mean(each):.0%} of fields, {each.count(1) / len(each):.0%} of orders exact, "
        f"{seconds[method]:.0f} s, {bits_per_weight[method]:.1f} bits per frozen weight, adapter in {adapter.dtype}"
    )

# %% [markdown] id="compare-read"
# Four bits cost a few points here; with this many orders the 95% intervals of the two shares of exact orders overlap. The
# seconds grow, because every multiplication unpacks its weights first. On a small model with long
# rows the peak hardly moves: activations rule. On a 7B model with recomputation the weights rule, and four bits decide
# whether it fits at all: compare the two rows of the table above.

# %% [markdown] id="compare-read" lang="zh" of="5c9fafed"
# 4 比特在这里损失了几个百分点；只有这么多订单，两者整单正确率的 95% 置信区间是重叠的。时间变长，因为每次相乘都要先解开权重。对小模型和长行，峰值几乎不动：激活说了算。对 7B 模型加重算，权重说了算，4 比特决定它到底放不放得下：比较上面表里的那两行。

# %% [markdown] id="optimizer-why"
# ## Moments in eight bits, and pages
# The same trick for the optimizer: `adamw_8bit` keeps its two moments in one byte each. *Paged* optimizers may push
# them to the CPU's memory when a GPU runs out, instead of failing; on a machine without a GPU there is nowhere to push.

# %% [markdown] id="optimizer-why" lang="zh" of="c842e2a6"
# ## 8 比特的一阶矩、二阶矩与分页
# 同样的办法用在优化器上：`adamw_8bit` 把一阶矩和二阶矩各存成一个字节。*分页*优化器可以在显存不足时把它们挪到 CPU 内存，而不是报错；没有 GPU 的机器上则无处可挪。

# %% id="optimizer"
layer = nn.Linear(1024, 1024, bias=False).to(where)
for name in ("adamw_torch", "adamw_8bit", "paged_adamw_8bit"):
    optimizer_class, options = SFTTrainer.get_optimizer_cls_and_kwargs(dataclasses.replace(training_args, optim=name))
    optimizer = optimizer_class(layer.parameters(), **options)
    layer(torch.randn(4, 1024, device=where)).square().mean().backward()
    optimizer.step()
    state = optimizer.state[layer.weight]
    held = sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))
    print(f"{name:<18} {held / layer.weight.numel():.2f} bytes per weight")

# %% [markdown] id="max-memory-why"
# A model that fits on no single GPU can be spread: `device_map="auto"` with `max_memory={0: "10GiB", "cpu": "30GiB"}`
# fills the GPU first and leaves the rest in CPU memory, from where it travels at every step. It runs; it is slow.

# %% [markdown] id="max-memory-why" lang="zh" of="b9705dcf"
# 单块 GPU 放不下的模型可以分开放：`device_map="auto"` 加 `max_memory={0: "10GiB", "cpu": "30GiB"}` 先填满 GPU，其余留在 CPU 内存，每一步都要搬过来。能跑，但慢。

# %% [markdown] id="break-why"
# ## What goes wrong: merging into the 4-bit base
# The adapter learned beside *rounded* weights. Where to merge it? `merge_and_unload` on the 4-bit model adds the change
# and rounds the sum to sixteen levels again: a small change vanishes between two levels. The base that was never
# quantized has no such gaps: a change merged into it stays.

# %% [markdown] id="break-why" lang="zh" of="566927e7"
# ## 故意出错：合并进 4 比特的基座
# 适配器是在*取整过的*权重旁边学的。该合并到哪里？在 4 位模型上调用 `merge_and_unload`，会把改动加上去，再一次取整到十六个等级：小改动就消失在两个等级之间。没有量化过的基座没有这样的间隔：合并进去的改动会留下来。

# %% id="break"
tuned["QLoRA"].save_pretrained("runs/04_qlora/adapter")
few = asked.select(range(min(50, len(asked))))
merged = {"adapter kept": mean(scores["QLoRA"][: len(few)])}
onto = PeftModel.from_pretrained(load(), "runs/04_qlora/adapter", autocast_adapter_dtype=on_gpu)
merged[f"merged, {as_loaded}"] = mean(order_scores(onto.merge_and_unload(), few))
four_bits = tuned["QLoRA"].merge_and_unload()
merged["merged, 4 bits"] = mean(order_scores(four_bits, few))
print(merged)

# %% id="break-plot"
fig, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
bars = ax.barh(list(merged), list(merged.values()), color=["grey", "#1b9e77", "#d95f02"])
ax.bar_label(bars, labels=[f"{share:.0%}" for share in merged.values()], padding=3)
ax.set(xlabel=f"fields right, of {len(few)} orders", xlim=(0, 1.1))
plt.show()

# %% [markdown] id="trap-why"
# ### A trap that gives no error: answer, then train
# On a CPU with AVX512_BF16 instructions a 4-bit layer repacks its weights the first time it answers. The packed form
# multiplies without a backward pass, so that a model which is scored and *then* trained loses the gradient of every layer
# below. The loss still falls, only less. `cpu.keep_gradients` above
# forbids the repacking. On a CPU without these instructions the layer stays as it is, and keeps its gradient.

# %% [markdown] id="trap-why" lang="zh" of="7c5f3cb9"
# ### 一个不报错的陷阱：先回答，再训练
# 在有 AVX512_BF16 指令的 CPU 上，4 位的层第一次回答时会把权重重新打包。打包后的形式相乘时没有反向传播，所以先打分、*再*训练的模型会丢掉下面每一层的梯度。损失照样下降，只是降得少。上面的 `cpu.keep_gradients` 禁止了重新打包。在没有这种指令的 CPU 上，这一层保持原样，梯度也还在。

# %% id="trap"
layer = Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16).to(where)
x = torch.randn(4, 64, dtype=torch.bfloat16, device=where, requires_grad=True)


def gradient():
    x.grad = None
    layer.train()(x).sum().backward()
    return "lost" if x.grad is None else f"{x.grad.norm():.1f}"


print("gradient before the layer has answered:", gradient())
with torch.no_grad():
    layer.eval()(x.detach())
repacked = getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
print("gradient after it has answered once:", gradient(), "(repacked)" if repacked else "(not repacked here)")

# %% [markdown] id="rounded-why"
# ### A trap that costs time: the adapter's own format
# TRL's trainers turn the adapter of a quantized model into bfloat16, on every machine. A processor without bfloat16
# instructions emulates each product with it, and the loss scaling of a T4 takes no bfloat16 gradients. `unround` above puts
# the adapter back into float32 there, and leaves it alone elsewhere.

# %% [markdown] id="rounded-why" lang="zh" of="1ac6d816"
# ### 一个费时间的陷阱：适配器自己的格式
# 无论在什么机器上，TRL 的训练器都会把量化模型的适配器转成 bfloat16。没有 bfloat16 指令的处理器只能模拟每一次相乘，而 T4 的损失缩放不接受 bfloat16 的梯度。上面的 `unround` 在这些机器上把适配器放回 float32，在其他机器上不作改动。

# %% id="rounded"
for kind in (torch.float32, torch.bfloat16):
    a, b = torch.randn(256, 576, dtype=kind, device=where), torch.randn(576, 1536, dtype=kind, device=where)
    (a @ b).sum().item()  # the first product also sets things up
    started = time.perf_counter()
    (a @ b).sum().item()
    print(f"256 x 576 times 576 x 1536 in {kind}: {1000 * (time.perf_counter() - started):.1f} ms")

# %% [markdown] id="kbit-why"
# ### One more call you will meet
# `prepare_model_for_kbit_training` readies a quantized model for training: it freezes everything, lifts what is not quantized
# to float32, and lets gradients reach the first block when activations are recomputed. TRL's trainer does the last part
# itself, and bfloat16 is faster to multiply than float32 where there are instructions for it, so it was not used above.

# %% [markdown] id="kbit-why" lang="zh" of="d843fbb6"
# ### 你还会遇到的一个调用
# `prepare_model_for_kbit_training` 让量化的模型可以训练：冻结全部权重，把未量化的部分升到 float32，并在重算激活时让梯度到达第一个块。最后一步 TRL 的训练器自己会做；而在有相应指令的机器上，bfloat16 比 float32 乘得快，所以上面没有用它。

# %% id="kbit"
published = AutoModelForCausalLM.from_pretrained(  # what is not quantized in 16 bits, whatever this machine trains in
    model_path, dtype=torch.bfloat16, quantization_config=quantization_config, device_map=where
)
dtypes = {name: weight.dtype for name, weight in published.named_parameters()}
prepared = prepare_model_for_kbit_training(published, use_gradient_checkpointing=False)
lifted = [name for name, weight in prepared.named_parameters() if weight.dtype != dtypes[name]]
print(f"lifted to float32: {len(lifted)} weights, such as {lifted[0]} and {lifted[-1]}")

# %% [markdown] id="knobs-why"
# ## Tune the hyperparameters
# The same model stored five ways: its bytes, and its perplexity. Which setting saves the most?

# %% [markdown] id="knobs-why" lang="zh" of="d204da78"
# ## 调一调超参数
# 同一个模型的五种存法：字节数与困惑度。哪个设置最划算？

# %% id="knobs"
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # 8 bits: one warning for each of 210 layers
stored = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
print(f"{'nf4, double':<12} {footprints[0] / 2**20:6.0f} MiB, perplexity {nf4_perplexity:.1f}")
print(f"{dtype:<12} {footprints[1] / 2**20:6.0f} MiB, perplexity {quality[as_loaded]:.1f}")
for label, options in stored.items():
    if options.get("load_in_4bit"):
        options["bnb_4bit_compute_dtype"] = dtype
    candidate = load(quantization_config=BitsAndBytesConfig(**options))
    print(f"{label:<12} {memory.held_bytes(candidate) / 2**20:6.0f} MiB, perplexity {text_perplexity(candidate):.1f}")

# %% [markdown] id="exercise-bytes-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 04`
# checks your saved copy of the whole lesson.
#
# **1.** A model has 6.5 billion weights in linear layers. How many bytes do they take in NF4 with blocks of 64 and a
# 4-byte scale per block, without double quantization?

# %% [markdown] id="exercise-bytes-why" lang="zh" of="246bd1ec"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 04` 检查你保存的整课练习。
#
# **1.** 一个模型的线性层有 65 亿个权重。用 NF4 存放：每块 64 个、每块一个 4 字节的缩放因子、不用双重量化，共占多少字节？

# %% id="exercise-bytes" tags=["exercise"]
bytes_taken = ...  # your answer

checks.check_nf4_bytes(bytes_taken)

# %% [markdown] id="exercise-bytes-solution"
# <details><summary>Solution</summary>
#
# ```python
# bytes_taken = 6_500_000_000 // 2 + 6_500_000_000 // 64 * 4
# ```
#
# </details>

# %% [markdown] id="exercise-bytes-solution" lang="zh" of="6be51a19"
# <details><summary>参考答案</summary>
#
# ```python
# bytes_taken = 6_500_000_000 // 2 + 6_500_000_000 // 64 * 4
# ```
#
# </details>

# %% [markdown] id="exercise-nearest-why"
# **2.** Write the function that returns the index of the level nearest to `x`, given a list of levels.

# %% [markdown] id="exercise-nearest-why" lang="zh" of="1dcf3782"
# **2.** 写一个函数，给定量化等级的列表，返回离 `x` 最近的等级的下标。

# %% id="exercise-nearest" tags=["exercise"]


def nearest(x, levels):
    return ...  # your code


checks.check_nearest_level(nearest)

# %% [markdown] id="exercise-nearest-solution"
# <details><summary>Solution</summary>
#
# ```python
# def nearest(x, levels):
#     return min(range(len(levels)), key=lambda i: abs(levels[i] - x))
# ```
#
# </details>

# %% [markdown] id="exercise-nearest-solution" lang="zh" of="893be042"
# <details><summary>参考答案</summary>
#
# ```python
# def nearest(x, levels):
#     return min(range(len(levels)), key=lambda i: abs(levels[i] - x))
# ```
#
# </details>

# %% [markdown] id="exercise-scales-why"
# **3.** `weights` is a flat tensor whose length is a multiple of `block_size`. Return the scale of every block: the
# largest absolute value in it.

# %% [markdown] id="exercise-scales-why" lang="zh" of="17bc958a"
# **3.** `weights` 是一维张量，长度是 `block_size` 的整数倍。返回每一块的缩放因子：块内绝对值的最大值。

# %% id="exercise-scales" tags=["exercise"]


def block_scales(weights, block_size):
    return ...  # your code


checks.check_block_scales(block_scales)

# %% [markdown] id="exercise-scales-solution"
# <details><summary>Solution</summary>
#
# ```python
# def block_scales(weights, block_size):
#     return weights.reshape(-1, block_size).abs().max(dim=1).values
# ```
#
# </details>

# %% [markdown] id="exercise-scales-solution" lang="zh" of="66bf2f62"
# <details><summary>参考答案</summary>
#
# ```python
# def block_scales(weights, block_size):
#     return weights.reshape(-1, block_size).abs().max(dim=1).values
# ```
#
# </details>

# %% [markdown] id="exercise-restore-why"
# **4.** Turn codes back into weights: `codes` has shape (blocks, block size) and holds indices into the tensor
# `levels`; `scales` holds one scale per block.

# %% [markdown] id="exercise-restore-why" lang="zh" of="3bc56d3e"
# **4.** 把量化值还原成权重：`codes` 形状为（块数, 块大小），内容是张量 `levels` 的下标；`scales` 每块一个缩放因子。

# %% id="exercise-restore" tags=["exercise"]


def restored_weights(codes, levels, scales):
    return ...  # your code


checks.check_restored_weights(restored_weights)

# %% [markdown] id="exercise-restore-solution"
# <details><summary>Solution</summary>
#
# ```python
# def restored_weights(codes, levels, scales):
#     return levels[codes] * scales[:, None]
# ```
#
# </details>

# %% [markdown] id="exercise-restore-solution" lang="zh" of="8ebc0090"
# <details><summary>参考答案</summary>
#
# ```python
# def restored_weights(codes, levels, scales):
#     return levels[codes] * scales[:, None]
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
full_size = PROFILE != "smoke"
assert nf4_codes_equal_share == 1
assert base_bytes_ratio <= 0.35
assert mean(errors["8 bits"]) < mean(errors["NF4"]) < mean(errors["4 bits"]) < mean(errors["2 bits"])
assert quality["NF4"] < quality["4 bits"] < quality["2 bits"] or not full_size
assert quality["8 bits"] < 1.05 * quality[as_loaded] or not full_size
assert memory_error_max <= 0.10 and memory_error_mean <= 0.05
assert qlora_score >= lora_score - 0.03 or not full_size
assert merged[f"merged, {as_loaded}"] >= merged["merged, 4 bits"] or not full_size
outcomes = {
    "nf4_codes_equal_share": nf4_codes_equal_share,
    "base_bytes_ratio": base_bytes_ratio,
    "memory_error_max": memory_error_max,
    "memory_error_mean": memory_error_mean,
    "lora_score": lora_score,
    "qlora_score": qlora_score,
}
course.record(outcomes)

# %% [markdown] id="next"
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`; before you rent one, `ftlab memory qwen2.5-7b quantization_bit=4` says what
# fits. The same from a recipe: `quantization_bit: 4` in `recipes/sft_qlora.yaml`.
#
# **Next:** twenty-one ways to tune, at the same price: [05 · Methods](05_methods.ipynb).

# %% [markdown] id="next" lang="zh" of="1f24fb9c"
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`；租卡之前，`ftlab memory qwen2.5-7b quantization_bit=4` 会告诉你放不放得下。用配方做同样的事：`recipes/sft_qlora.yaml` 里的 `quantization_bit: 4`。
#
# **下一步：** 二十一种微调办法，同样的价钱：[05 · 各种方法](05_methods.ipynb)。
