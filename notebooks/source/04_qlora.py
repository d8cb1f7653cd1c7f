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
# | QLoRA beside LoRA | orders exact and fields right on unseen sentence forms, bytes, seconds |
# | an adapter merged without loss, and with | share of the update that is left |
#
# **Cost:** about 9 minutes (16 without bfloat16) and 7 GB on two CPU cores, an estimated 5 minutes on a T4. **Before this:** [03 · LoRA](03_lora.ipynb).

# %% [markdown] id="title" lang="zh" of="b6823628"
# # 04 · QLoRA：同样的事，每个权重只用 4 比特
#
# LoRA 只训练百分之几的权重，但全部权重都得放在内存里。QLoRA 把冻结的权重每个只存 4 比特。在这里，你亲手实现这种数值格式，证明它与库的实现一致，看它损失多少质量，在加载任何东西之前预测训练要多少内存，再用分配器核对预测，最后用它训练。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 手写的 NF4 | 与库编码相同的块所占比例 |
# | 质量与位宽 | 2、3、4、8 比特时与原样加载时的困惑度 |
# | 预测的与实测的内存 | 预测误差 |
# | QLoRA 与 LoRA 并排 | 未见过的句式中完全正确的订单、正确的字段、字节数、秒数 |
# | 合并适配器：无损的与有损的 | 改动还剩下多少 |
#
# **耗时与内存：** 两个 CPU 核心上约 9 分钟（不支持 bfloat16 时约 16 分钟）、7 GB 内存，T4 上估计 5 分钟。**先修：** [03 · LoRA](03_lora.ipynb)。

# %% [markdown] id="setup-why"
# ## Setup
# The next cell installs missing packages (on Colab, for example) and changes to the course folder.

# %% [markdown] id="setup-why" lang="zh" of="dfb7bb60"
# ## 准备
# 下一格会安装当前环境缺少的软件包（例如在 Colab 上），然后进入课程文件夹。

# %% id="setup"
from importlib.util import find_spec

if not find_spec("ftlab"):
    get_ipython().run_line_magic("pip", "install -q --no-deps ftlab")
from ftlab.apps import lesson_setup

lesson_setup.enter()

# %% id="imports"
import contextlib
import dataclasses
import io
import itertools
import json
import logging
import math
import statistics
import time
from collections import Counter

import matplotlib.pyplot as plt
import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn import Linear4bit
from datasets import Dataset, load_dataset
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from trl import SFTConfig, SFTTrainer

from ftlab import checks, cpu, device, memory, models, plots
from ftlab.apps import course
from ftlab.apps.board import experiment

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
bnb_4bit_quant_type = "nf4"  # or fp4
bnb_4bit_use_double_quant = True  # quantize the scales too
r = 16  # rank of the adapter
learning_rate = 0.0  # 0: the profile's own
max_steps = 0  # optimizer steps; 0: the profile's own
per_device_train_batch_size = 4  # examples per step
seed = 0

# %% id="profile"
profiles = {  # model, learning rate, steps, orders, tokens of an answer, texts; memory: rows, tokens, recompute
    "smoke": ("smollm2-135m-short", 2e-3, 2, 2, 4, 4, [1], [64], [False, True]),
    "cpu": ("smollm2-135m", 2e-3, 80, 100, 48, 40, [1, 4], [128], [False, True]),
    "t4": ("Qwen/Qwen2.5-1.5B-Instruct", 4e-4, 90, 100, 48, 40, [1, 4], [512], [False, True]),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 2e-4, 60, 100, 48, 40, [1, 4], [512], [False, True]),
}
default_model, default_rate, default_steps, question_count, answer_tokens, text_count, *measured = profiles[PROFILE]
model_name, learning_rate = model_name or default_model, learning_rate or default_rate
max_steps = max_steps or default_steps
set_seed(seed)

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("SFT", ax)
plt.show()

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
# ## 思路：十六个量化值和一个缩放因子
# 4 比特可以表示十六个量化值中的一个。64 个权重为一块，共用一个缩放因子：块内绝对值的最大者；每个权重变成离它最近的量化值的编号。用四个权重、四个量化值来看：

# %% id="literal"
levels = torch.tensor([-1.0, -0.3, 0.3, 1.0])
four = torch.tensor([0.02, -0.10, 0.05, 0.01])
scale = four.abs().max()
codes = (four[:, None] / scale - levels).abs().argmin(1)
print(f"scale {scale:.2f}, codes {codes.tolist()}, read back {[round(x, 3) for x in (levels[codes] * scale).tolist()]}")

# %% [markdown] id="levels-why"
# ### Which sixteen levels?
# Trained weights are roughly normal: many small, few large. NF4 puts its levels at the quantiles of a normal distribution,
# where equally many weights would lie between neighbours: eight above zero, seven below, and zero itself.

# %% [markdown] id="levels-why" lang="zh" of="ee3136d3"
# ### 哪十六个量化值？
# 训练好的权重大致呈正态分布：小的多，大的少。NF4 把量化值放在正态分布的分位数上，使相邻量化值之间的权重一样多：零以上八个，零以下七个，再加上零本身。


# %% id="levels"
def normal_quantile(p):
    return math.sqrt(2) * torch.erfinv(2 * p - 1)


def quantile_levels(bits):
    """Return 2**bits levels at normal quantiles, from -1 to 1."""
    count, half = 2**bits, 2 ** (bits - 1)
    edge = 1 - (1 / (count - 1) + 1 / count) / 4  # the outermost quantile, as in the paper's code (arXiv:2305.14314)
    above = normal_quantile(torch.linspace(edge, 0.5, half + 1, dtype=torch.float64)[:-1])
    below = -normal_quantile(torch.linspace(edge, 0.5, half, dtype=torch.float64)[:-1])
    levels = torch.cat([below, torch.zeros(1), above]).sort().values
    return (levels / levels.max()).float()


nf4 = quantile_levels(4)  # (16,)
print([round(level, 3) for level in nf4.tolist()])
assert torch.allclose(nf4, bnb.get_4bit_type("nf4", device="cpu"), atol=1e-6)

# %% id="levels-plot"
fig, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
blocks = weight.float().cpu().reshape(-1, 64)
ax.hist((blocks / blocks.abs().amax(1, keepdim=True)).flatten().numpy(), bins=120, color="#9ecae1")
ax.vlines(nf4.numpy(), 0, ax.get_ylim()[1], color="#d95f02", linewidth=1)
ax.set(xlabel="weight / scale of its block", ylabel="weights", yticks=[], title="Are the levels where the weights are?")
plt.show()

# %% [markdown] id="scratch-why"
# ### By hand, and the same codes as the library


# %% [markdown] id="scratch-why" lang="zh" of="032b88c4"
# ### 亲手实现，与库的编码相同


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

# %% [markdown] id="shares-why"
# Does each level get its sixteenth, 6.25%, of the weights? Counted over every linear layer, and for random normal numbers:

# %% [markdown] id="shares-why" lang="zh" of="4563941c"
# 每个量化值是否都分到十六分之一（6.25%）的权重？对所有线性层计数，再对正态分布的随机数计数：


# %% id="shares"
def level_shares(weights):
    """Return the share of weights at each level, in percent."""
    counts = sum(torch.bincount(quantize(weight, nf4)[0].flatten(), minlength=16) for weight in weights)
    return [round(share, 1) for share in (100 * counts / counts.sum()).tolist()]


linear = [part.weight.detach().cpu() for part in model.model.layers.modules() if isinstance(part, nn.Linear)]
print("weights:       ", level_shares(linear))
print("normal numbers:", level_shares([torch.randn(1000, 640)]))


# %% [markdown] id="shares-read"
# Not quite, and this does not come from the model: random normal numbers show the same. The scale is the largest of
# 64 numbers, which is larger than the quantiles assume, so the outer levels get fewer weights and the inner ones
# more.

# %% [markdown] id="shares-read" lang="zh" of="9eb8f8e3"
# 并不完全是，而且不是模型的问题：正态分布的随机数也一样。缩放因子是 64 个数中的最大者，比分位数所假设的更靠外，所以外侧的量化值分到的权重偏少，内侧的偏多。

# %% [markdown] id="double-why"
# ### The scales take room too
# A 4-byte scale for 64 weights is half a bit each. *Double quantization* stores the scales in one byte each, 256 of them
# sharing one more scale. Bits per weight, counted and as the library has them:

# %% [markdown] id="double-why" lang="zh" of="e7aa60b6"
# ### 缩放因子本身也占地方
# 每 64 个权重一个 4 字节的缩放因子，等于每个权重多占半个比特。*双重量化*把缩放因子各存成一个字节，每 256 个再共用一个缩放因子。每个权重占多少比特，自己数一遍，再与库的比较：

# %% id="double"
for double in (False, True):
    packed, state = bnb.quantize_4bit(original, blocksize=64, quant_type="nf4", compress_statistics=double)
    scale_bytes = state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
    counted = 4 + (8 / 64 + 32 / (64 * 256) if double else 32 / 64)
    nf4_bits = 8 * (packed.nbytes + scale_bytes) / original.numel()
    print(f"double quantization {double!s:<5}  {nf4_bits:.3f} bits per weight, counted {counted:.3f}")

# %% [markdown] id="quality-why"
# ## What do fewer bits cost?
# Every linear layer is quantized and dequantized (rounded and read back) at several widths, with levels evenly spaced
# or at the normal quantiles. Perplexity on everyday instructions and their answers is the exponential of the loss per
# token: lower is better.
#
# **Predict before you run:** by how much does the perplexity grow in four bits, with NF4?

# %% [markdown] id="quality-why" lang="zh" of="59f25aaa"
# ## 比特数更少，质量损失多大？
# 把每个线性层量化再反量化（舍入再还原），试几种位宽，量化值均匀分布或放在正态分位数上。困惑度是每个 token 损失的指数，在日常指令及其回答上计算：越低越好。
#
# **先预测，再运行：** 用 NF4 的 4 比特，困惑度会上升百分之多少？

# %% id="predict"
guess_growth = 50  # your guess, in percent

# %% id="perplexity"
rows = load_dataset("json", data_files="data/alpaca_en_demo.json", split="train")
texts = [" ".join(filter(None, row.values())) for row in rows][:text_count]


@torch.no_grad()
def text_perplexity(model):
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(model.device)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
    return losses.exp().item()


print(texts[3])

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

# %% id="answer-quality"
growth = quality["NF4"] / quality[as_loaded] - 1
print(
    f"you predicted {guess_growth}%, measured {growth:.0%}: perplexity {quality[as_loaded]:.1f} -> {quality['NF4']:.1f}"
)
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
shown = [as_loaded, "8 bits", "NF4", "4 bits", "3 bits", "2 bits"]
names = ["4 bits,\neven" if label == "4 bits" else label for label in shown]
bars = left.bar(names, [quality[label] for label in shown], color=["grey", "grey", "#d95f02", "grey", "grey", "grey"])
left.bar_label(bars, labels=[f"{quality[label]:,.1f}" if quality[label] < 1000 else "> 1,000" for label in shown])
left.set(ylabel="perplexity, log scale", yscale="log", title="What do fewer bits cost?")
left.set_ylim(1, 8 * max(quality.values()))
for label in ("4 bits", "NF4"):
    right.plot(errors[label], label=f"{label}, evenly spaced" if label == "4 bits" else label)
right.set(xlabel="linear layer, from the first to the last", ylabel="relative error of its weights", ylim=(0, None))
right.set_title("Which four bits are closer?")
right.legend(loc="lower right")
plt.show()

# %% [markdown] id="quality-read"
# At four bits the quantile levels are closer to the weights than the even ones, for the same memory. Below four bits,
# see how quickly rounding alone ruins a model of this size; published measurements show that bigger models lose less
# (Dettmers and Zettlemoyer 2023, arXiv:2212.09720).

# %% [markdown] id="quality-read" lang="zh" of="40666ac7"
# 4 比特时，放在分位数上的量化值比均匀的量化值更接近原权重，占的内存相同。低于 4 比特，可以看到单是舍入就让这么小的模型很快失效；已发表的测量表明，更大的模型损失更小（Dettmers 与 Zettlemoyer 2023，arXiv:2212.09720）。

# %% [markdown] id="experiment-why"
# ## Experiment
# Bits, block size and levels on one weight matrix of the model: the left picture shows the first weights of one block before and
# after, the right one the error of the whole matrix against what it takes. Find a setting that is both smaller and closer than
# NF4 in blocks of 64.

# %% [markdown] id="experiment-why" lang="zh" of="6f0b905c"
# ## 动手试一试
# 在模型的一个权重矩阵上调位宽、块大小和量化值：左图是某一块的前几个权重量化前后的值，右图是整个矩阵的误差与占用。试着找一个既比 64 一块的 NF4 更小、又更接近原值的设置。


# %% id="experiment"
original = weight.float().cpu()


def rounded_in(levels, block_size):
    """Return the matrix after rounding, and the relative error of it."""
    back = dequantize(*quantize(original, levels, block_size), levels, original.shape)
    return back, ((back - original).norm() / original.norm()).item()


def draw(bits, block_size, at_quantiles):
    levels = quantile_levels(bits) if at_quantiles else torch.linspace(-1, 1, 2**bits)
    back, error = rounded_in(levels, block_size)
    taken = bits + 32 / block_size  # a float32 scale for each block
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
    left.plot(original[0, :32], "o", markersize=4, label="weight")
    left.plot(back[0, :32], "x", color="#d95f02", label="read back")
    left.set(xlabel="the first 32 weights", title="What does rounding change?")
    left.legend()
    right.plot(taken, error, "o", color="#d95f02", label="this setting")
    right.plot(
        4 + 32 / 64, rounded_in(nf4, 64)[1], "s", color="#1b9e77", fillstyle="none", markersize=10, label="NF4, 64"
    )
    right.set(xlabel="bits per weight, scales included", ylabel="relative error", xlim=(2, 11), ylim=(0, 0.8))
    right.set_title(f"{taken:.2f} bits per weight, error {error:.1%}")
    right.legend()
    plt.show()


experiment.show(draw, bits=(2, 8, 1), block_size=[64, 16, 32, 128, 256], at_quantiles=True)

# %% [markdown] id="config-why"
# ## The library call
# One config object, handed to `from_pretrained`. Weights are stored in four bits; each layer dequantizes its own to
# `bnb_4bit_compute_dtype` for the moment it multiplies.

# %% [markdown] id="config-why" lang="zh" of="723e7168"
# ## 库的调用
# 一个配置对象，交给 `from_pretrained`。权重以 4 比特存放；每一层在相乘的那一刻才把自己的权重反量化成 `bnb_4bit_compute_dtype`。

# %% id="config"
quantization_config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type=bnb_4bit_quant_type,
    bnb_4bit_use_double_quant=bnb_4bit_use_double_quant,
    bnb_4bit_compute_dtype=dtype,
)
quantized = load(quantization_config=quantization_config)
cpu.keep_gradients(quantized)  # why: the first trap below
print(quantized.model.layers[0].mlp.up_proj)
nf4_perplexity = text_perplexity(quantized)
print(f"perplexity {quality[as_loaded]:.1f} -> {nf4_perplexity:.1f}")

# %% id="base-bytes"
base_bytes_ratio = nf4_bits / 16  # of the quantized layers: bits per weight with double quantization, against 16
footprints = [memory.held_bytes(candidate) for candidate in (quantized, model)]  # the blocks' scales included
whole_ratio = footprints[0] / footprints[1]
print(
    f"quantized layers: {base_bytes_ratio:.2f} of 16 bits; "
    f"the whole model, its embedding as loaded: {whole_ratio:.2f} of {as_loaded}"
)

# %% [markdown] id="memory-why"
# ## Memory, before anything is loaded
# A common rule of thumb: a model of N weights takes a = 4 N bytes, full fine-tuning 5a, LoRA a little over a. Here it
# is beside the sum of the parts, for a 7B model and one row of 1,024 tokens. No weight is loaded for it.

# %% [markdown] id="memory-why" lang="zh" of="28db65b8"
# ## 加载之前先算内存
# 一条常见的经验法则：N 个权重的模型占 a = 4 N 字节，全量微调 5a，LoRA 略多于 a。下面把它和逐项相加的结果并排，以 7B 模型、一行 1,024 个 token 为例。不加载任何权重。

# %% id="rule"
weights_7b, adapter_7b = 7.6e9, 40e6  # Qwen2.5-7B, and LoRA with r = 16 on all its linear layers
a = 4 * weights_7b / 2**30
settings = {  # bytes of a frozen weight, trained weights, bytes of each: itself where it is new, gradient, two moments
    "full, float32": (4, weights_7b, 12),
    "LoRA on float32": (4, adapter_7b, 16),
    "LoRA on bfloat16": (2, adapter_7b, 16),
    "QLoRA": (nf4_bits / 8, adapter_7b, 16),
}
for label, (frozen_bytes, trained_weights, trained_bytes) in settings.items():
    gib = (weights_7b * frozen_bytes + trained_weights * trained_bytes) / 2**30
    print(f"{label:<17} {gib:6.1f} GiB = {gib / a:.2f} a, activations not counted")
print(f"of which the adapter, its gradient and its moments: {adapter_7b * 16 / 2**30:.1f} GiB")

# %% id="rule-activations"
seven = memory.Decoder(28, 3584, 28, 4, 128, 18944, 152064, False)  # Qwen2.5-7B: layers, width, heads, ...
for again in (False, True):
    needed = memory.estimate(seven, memory.Training(1, 1024, trained=0, checkpointing=again)).activations / 2**30
    print(f"activations of 1,024 tokens: {needed:.1f} GiB = {needed / a:.2f} a, recomputing {again}")

# %% [markdown] id="rule-read"
# For full fine-tuning the rule is on the safe side: weights, gradients and two moments are 4a, and at this length the
# activations add only a fraction of one more. For LoRA it is wrong in both directions: a frozen base needs no float32,
# and activations, which grow with every token, outweigh the adapter with its gradient and moments unless they are recomputed.

# %% [markdown] id="rule-read" lang="zh" of="d3b7ccd1"
# 对全量微调，这个法则偏保守：权重、梯度、一阶矩和二阶矩共 4a，在这个长度上激活值只再加零点几个 a。对 LoRA，它两头都错：冻结的基座用不着 float32；而随每个 token 增长的激活值，只要不重算，就比适配器连同其梯度、一阶矩和二阶矩加起来还大。

# %% [markdown] id="measure-why"
# ### Predicted against measured
# Two steps of real training per setting; the allocator's log gives the peak. The inputs of the prediction are the
# sizes in `config.json`, which weights are trained, the bytes per number of each kind, and the size of the tiles in
# which the loss is computed. You compute one case by hand: full fine-tuning with recomputed activations. Each weight
# takes 4 bytes, and so do its gradient and its two moments; at the peak the output layer's gradient is held once
# more, before it is added to that of the embedding, whose weights it shares.

# %% [markdown] id="measure-why" lang="zh" of="4efe8d59"
# ### 预测与实测
# 每种设置真实训练两步，由分配器的记录得出峰值。预测的输入有：`config.json` 里的尺寸、训练哪些权重、每类数值占几个字节、损失分块计算时的块大小。其中一种情况由你亲手相加：重算激活值的全量微调。每个权重占 4 字节，它的梯度、一阶矩、二阶矩也各占 4 字节；峰值时，输出层的梯度还要多占一份，之后才加到与它共享权重的嵌入层上。

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
    logging_steps=0.1,
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
adapted = get_peft_model(model, peft_config)
lora_weights = adapted.num_parameters(only_trainable=True)
model = adapted.unload()
print(f"LoRA trains {lora_weights:,} weights, {lora_weights / model.num_parameters():.1%} of the model's own number")
by_hand = 4 * 4 * model.num_parameters() + 4 * config.vocab_size * config.hidden_size
print(f"full, recomputed: {by_hand / 2**20:.0f} MiB by hand")

# %% [markdown] id="numbers-why"
# The inputs of the prediction for each method: which weights are trained, and the bytes of each kind.

# %% [markdown] id="numbers-why" lang="zh" of="bf0235ab"
# 对每种方法，预测的输入是：训练哪些权重，以及每一类权重的字节数。


# %% id="numbers"
def numbers(method, checkpointing):
    """Return what the prediction is told of a method."""
    told = {"checkpointing": checkpointing, "eager": attention == "eager", "grouped": not on_gpu}
    told |= {"loss_tile": 32768, "tile_bytes": 2} if on_gpu else {"loss_tile": 2048, "tile_bytes": 31}
    if method in ("full", "freeze"):
        told |= {"linear_bytes": 4, "other_bytes": 4, "trained_bytes": 4}
        if method == "full":
            return told | {"trained": model.num_parameters(), "embedding_trained": True}
        last = sum(weight.numel() for weight in model.model.layers[-2:].parameters())
        return told | {"trained": last, "trained_layers": 2}
    if not on_gpu:  # with a frozen output layer the fast path holds the whole logits of a few tokens at a time
        told |= {"loss_tile": config.vocab_size, "tile_rows": 128, "tile_bytes": 12}
    told |= {"adapter_rank": r, "trained": lora_weights, "other_bytes": number_bytes, "linear_bytes": number_bytes}
    # PEFT keeps an adapter in float32; TRL puts that of a quantized model into bfloat16.
    told |= {"trained_bytes": 4}
    if method == "QLoRA":
        told |= {"linear_bytes": nf4_bits / 8, "trained_bytes": 2 if dtype == "bfloat16" else 4}
    return told


# %% id="build"
def build(method):
    """Return the model as each method trains it: LoRA, QLoRA, all weights, or the last two blocks."""
    if method in ("full", "freeze"):
        whole = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation=attention)
        if method == "freeze":
            whole.requires_grad_(False)
            whole.model.layers[-2:].requires_grad_(True)
        return whole
    return get_peft_model(quantized if method == "QLoRA" else model, peft_config)


# %% id="two-steps"
def adapter_to_float32(model):
    """Put what is trained into float32 where this machine doesn't multiply bfloat16; why: the second trap below."""
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
        train_sampling_strategy="random",
    )
    data = Dataset.from_list([{"input_ids": row, "labels": row} for row in tokens])
    trainer = SFTTrainer(build(method), args, train_dataset=data, processing_class=tokenizer)
    adapter_to_float32(trainer.model)
    return trainer


# %% id="measure"
methods = ("LoRA", "QLoRA") if on_gpu else ("LoRA", "QLoRA", "full", "freeze")
table = []
sizes = memory.Decoder.from_config(config.to_dict())
for cell in itertools.product(methods, *measured):  # method, examples, tokens, recompute
    told = memory.Training(*cell[1:3], **numbers(cell[0], cell[3]))
    short_run = two_steps(*cell)
    with memory.measure_peak_bytes(short_run.model) as peak, contextlib.redirect_stdout(io.StringIO()):
        short_run.train()
    if "LoRA" in cell[0]:  # the base is used again
        short_run.model.unload().activation_checkpointing_disable()
    table.append((*cell, memory.estimate(sizes, told), peak.bytes))

# %% id="measure-table"
print(f"{'method':<8} {'rows x tokens':<14} {'recompute':<10} {'predicted':>10} {'measured':>10}  MiB")
differences = []
for method, examples, length, recompute, predicted, measured_peak in table:
    differences.append(abs(predicted.peak / measured_peak - 1))
    label = f"{method:<8} {examples} x {length:<10} {'yes' if recompute else 'no':<10}"
    print(f"{label} {predicted.peak / 2**20:>10.0f} {measured_peak / 2**20:>10.0f}  {differences[-1]:.1%}")
    if (method, recompute, examples) == ("full", True, 1):
        print(f"{'':<34} {by_hand / 2**20:>10.0f} by hand       {abs(by_hand / measured_peak - 1):.1%}")
memory_error_max, memory_error_mean = max(differences), sum(differences) / len(differences)
print(f"largest error {memory_error_max:.1%}, mean {memory_error_mean:.1%}")

# %% id="measure-plot"
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
shown = [row for row in table if row[1] == examples and not row[3]]  # the most examples, nothing recomputed
weights, moments, peaks = (
    [getattr(row[4], part) / 2**30 for row in shown] for part in ("weights", "optimizer", "peak")
)
held = [sum(pair) for pair in zip(weights, moments, strict=True)]
ax.barh([row[0] for row in shown], peaks, label="activations, logits, gradients at the peak", color="#d95f02")
ax.barh([row[0] for row in shown], held, label="moments", color="#4c956c")
ax.barh([row[0] for row in shown], weights, label="weights", color="#9ecae1")
for i, (*_, measured_peak) in enumerate(shown):
    ax.plot([measured_peak / 2**30] * 2, [i - 0.45, i + 0.45], color="black", label=None if i else "measured peak")
ax.set(xlabel=f"GiB for {examples} rows of {length} tokens", title="What takes the memory?")
ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8)
plt.show()

# %% [markdown] id="train-why"
# ## LoRA and QLoRA on the same task
# Orders to JSON, as in lesson 03, scored on messages in sentence forms that are never trained on. Two scores: the share
# of orders that are exact, and the share of fields that are right, a finer measure. Same rows, steps and seed; what
# differs is how the frozen weights are stored (and, printed below, the format of the adapter). The difference is taken
# order by order: both models are asked the same ones.
#
# **Predict before you run:** how many points of exact orders do the four bits cost?

# %% [markdown] id="train-why" lang="zh" of="68366ddf"
# ## 同一任务上的 LoRA 与 QLoRA
# 和第 03 课一样把订单变成 JSON，测试消息的句式从未训练过。两个分数：完全正确的订单所占比例，以及正确字段所占比例，后者是更细的指标。样本、步数和种子都相同；区别在于冻结的权重怎样存放（以及下面打印的适配器格式）。两个模型回答同样的订单，差值按订单逐条计算。
#
# **先预测，再运行：** 4 比特会让完全正确的订单少几个百分点？

# %% id="predict-orders"
guess_points = 5  # your guess, in percentage points

# %% id="task"
orders = load_dataset("json", data_files={"train": "data/orders_train.jsonl", "test": "data/orders_eval.jsonl"})


def to_order(row):
    prompt = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["output"]}]}


order_dataset = orders["train"].map(to_order).select_columns(["prompt", "completion"])
asked = orders["test"].select(range(question_count)).map(to_order)


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
    return torch.tensor([fields_right(reply, wanted) for reply, wanted in zip(replies, rows["output"], strict=True)])


def mean_with_interval(values):
    """Return a mean and the half of its 95% interval; the values are one per order, which are independent."""
    return values.mean().item(), 1.96 * values.std().item() / math.sqrt(len(values))


# %% id="train"
scores, seconds, tuned = {}, {}, {}
for method in ("LoRA", "QLoRA"):
    set_seed(seed)
    tuned[method] = build(method)
    trainer = SFTTrainer(tuned[method], training_args, train_dataset=order_dataset, processing_class=tokenizer)
    adapter_to_float32(trainer.model)
    started = time.perf_counter()
    trainer.train()
    seconds[method] = time.perf_counter() - started
    scores[method] = order_scores(tuned[method])

# %% id="answer-orders"
bits_per_weight = {"LoRA": 8 * number_bytes, "QLoRA": nf4_bits}
for method, each in scores.items():
    adapter = next(weight for weight in tuned[method].parameters() if weight.requires_grad)
    fields, half = mean_with_interval(each)
    print(
        f"{method:<6} fields right {fields:.1%} ± {half:.1%}, orders exact {(each == 1).float().mean():.0%}, ", end=""
    )
    print(f"{seconds[method]:.0f} s, {bits_per_weight[method]:.1f} bits per frozen weight, adapter in {adapter.dtype}")
lora_score, qlora_score = (scores[method].mean().item() for method in ("LoRA", "QLoRA"))
exact_points, exact_half = mean_with_interval((scores["LoRA"] == 1).float() - (scores["QLoRA"] == 1).float())
field_points, field_half = mean_with_interval(scores["LoRA"] - scores["QLoRA"])
print(f"lost, of fields: {field_points:+.1%} ± {field_half:.1%} (95% interval over {len(asked)} orders)")
print(
    f"you predicted {guess_points} points of exact orders, measured {100 * exact_points:.0f} ± {100 * exact_half:.0f}"
)

# %% id="compare-plot"
fig, ax = plt.subplots(figsize=(4.5, 3), layout="constrained")
plots.plot_scores({method: (each == 1).float().mean().item() for method, each in scores.items()}, len(asked), ax)
ax.set(title=f"Do four bits cost exact orders? ({len(asked)} orders)", ylabel="exact orders, %")
plt.show()

# %% [markdown] id="compare-read"
# An interval that contains 0 says that this many orders cannot tell the two apart, not that they are equal. One that
# does not says that these two runs differ; whether the four bits are the reason, other seeds would have to show. Compare
# the seconds too: with four bits every multiplication first unpacks its weights, work that LoRA doesn't have. And the
# memory, in the table of predicted and measured peaks: four bits save the weights' share, in each setting about the
# same number of MiB, so the more activations there are, the less of the peak it is. On a 7B model with recomputation
# the weights dominate, and four bits may decide whether it fits at all: compare LoRA and QLoRA in the list of the 7B
# model above.

# %% [markdown] id="compare-read" lang="zh" of="67f1fd9e"
# 区间含 0，只说明这么多订单分不出两者高下，并不等于两者相等；区间不含 0，则说明这两次训练的结果确有差别，至于是不是 4 比特造成的，还要换种子再看。也比一比秒数：用 4 比特时，每次相乘都要先解包权重，这一步 LoRA 没有。再看前面“预测与实测”表里的内存：4 比特省下的是权重那一份，各种设置下都差不多是同样多的 MiB，所以激活值越多，它在峰值里占的比例就越小。对 7B 模型，如果重算激活值，权重就占大头，4 比特可能决定它到底放不放得下：比较上面 7B 列表里的 LoRA 与 QLoRA。

# %% [markdown] id="optimizer-why"
# ## 8-bit and paged optimizers
# Quantization also works for the optimizer: `adamw_8bit` keeps its two moments in one byte each; those of small
# tensors (`min_8bit_size=4096`) stay in four. *Paged* optimizers can move them to the CPU's memory when a GPU runs
# out, instead of failing; on a machine without a GPU they have nothing to move, and train like the others. Five steps
# with each, from the same start:

# %% [markdown] id="optimizer-why" lang="zh" of="51d465c5"
# ## 8 比特优化器与分页优化器
# 同样的办法用在优化器上：`adamw_8bit` 把一阶矩和二阶矩各存成一个字节（小张量仍用四个字节，界限是 `min_8bit_size=4096`）。*分页*优化器可以在显存不足时把它们挪到 CPU 内存，而不是报错；没有 GPU 的机器上则没有什么可挪，照样能训练。从同一起点各训练五步：

# %% id="optimizer"
tuned["QLoRA"].save_pretrained("runs/04_qlora/adapter")
base = tuned["LoRA"].unload()
for name in ("adamw_torch", "adamw_8bit", "paged_adamw_8bit"):
    set_seed(seed)
    args = dataclasses.replace(
        training_args, optim=name, max_steps=min(5, max_steps), logging_steps=1, disable_tqdm=True
    )
    trainer = SFTTrainer(
        get_peft_model(base, peft_config), args, train_dataset=order_dataset, processing_class=tokenizer
    )
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    moments = (value for state in trainer.optimizer.state.values() for value in state.values())
    held = sum(value.nbytes for value in moments if isinstance(value, torch.Tensor))
    losses = [round(row["loss"], 2) for row in trainer.state.log_history if "loss" in row]
    print(f"{name:<17} {held / lora_weights:.2f} bytes of moments per trained weight, loss {losses}")
    base = trainer.model.unload()

# %% [markdown] id="max-memory-why"
# A model that fits on no single GPU can be spread: `device_map="auto"` with `max_memory` fills the first place and leaves the
# rest in the next, from where it travels at every pass: GPU, then CPU memory, then the disk. Here the first place has room for
# half the model:

# %% [markdown] id="max-memory-why" lang="zh" of="1f5c57ce"
# 单块 GPU 放不下的模型可以分开放：`device_map="auto"` 加 `max_memory` 先填满第一处，其余放到下一处，每次计算都要搬过来：先 GPU，再 CPU 内存，最后是磁盘。下面第一处只放得下半个模型：

# %% id="max-memory"
half = f"{sum(weight.nbytes for weight in model.parameters()) // 2**21}MiB"
spread = AutoModelForCausalLM.from_pretrained(
    model_path,
    dtype=dtype,
    attn_implementation=attention,
    device_map="auto",
    max_memory={0: half, "cpu": "100GiB"} if on_gpu else {"cpu": half},
    offload_folder="runs/04_qlora/offload",
)
print("parts of the model:", dict(Counter(map(str, spread.hf_device_map.values()))))
question = tokenizer("The capital of France is", return_tensors="pt")
with torch.no_grad():
    for label, candidate in (("whole", base), ("spread", spread)):
        candidate(**question.to(where))  # the first pass also sets things up
        started = time.perf_counter()
        next_token = candidate(**question).logits[0, -1].argmax()
        print(f"{label}: {1000 * (time.perf_counter() - started):.0f} ms, next token {tokenizer.decode(next_token)!r}")

# %% [markdown] id="break-why"
# ## What goes wrong: merging into the 4-bit base
# The adapter learned beside *rounded* weights. Where to merge it? `merge_and_unload` on the 4-bit model adds the
# change and rounds the sum to sixteen levels again. That is not a bug, it is a loss: a change that is small compared
# with the distance between two levels is rounded away. How much of it is left depends on its size. One layer, the
# adapter's change scaled to several sizes relative to the weights:

# %% [markdown] id="break-why" lang="zh" of="532f14b9"
# ## 故意出错：合并进 4 比特的基座
# 适配器是在*舍入过的*权重旁边学的。该合并到哪里？在 4 比特模型上调用 `merge_and_unload`，会把改动加上去，再一次舍入到十六个量化值。这不是程序错误，而是损失：改动若小于两个量化值的间距，就会被舍掉。能留下多少取决于它的大小。取一层，把适配器的改动缩放到权重的几种相对大小：

# %% id="update-kept"
adapted_layer = tuned["QLoRA"].base_model.model.model.layers[0].mlp.up_proj
frozen = adapted_layer.base_layer.weight
W = bnb.dequantize_4bit(frozen.data, frozen.quant_state).float().cpu()
change = adapted_layer.get_delta_weight("default").float().cpu()
own_size = (change.norm() / W.norm()).item()


def share_kept(size):
    """Return the share of the change that is left when it is `size` of the weights and the sum is rounded to NF4."""
    scaled = change * (size * W.norm() / change.norm())
    before, after = (dequantize(*quantize(part, nf4), nf4, W.shape) for part in (W, W + scaled))
    return (((after - before) * scaled).sum() / scaled.square().sum()).item()


sizes_tried = (0.01, 0.02, 0.05, 0.1, 0.2)
update_kept = {size: share_kept(size) for size in sizes_tried}
for size, share in update_kept.items():
    print(f"change of {size:.0%} of the weights: {share:.0%} of it is kept")
print(f"this adapter's change is {own_size:.1%} of this layer's weights: {share_kept(own_size):.0%} of it is kept")

# %% id="break"
few = asked.select(range(min(50, len(asked))))
merged = {"adapter beside": scores["QLoRA"][: len(few)].mean().item()}
onto = PeftModel.from_pretrained(load(), "runs/04_qlora/adapter")
merged[f"merged, {as_loaded}"] = order_scores(onto.merge_and_unload(), few).mean().item()
four_bits = tuned["QLoRA"].merge_and_unload()
merged["merged, 4 bits"] = order_scores(four_bits, few).mean().item()
print({place: f"{share:.0%} of fields" for place, share in merged.items()}, f"of {len(few)} orders")

# %% id="break-plot"
fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
ax.plot([100 * size for size in update_kept], [100 * share for share in update_kept.values()], "o-", color="#d95f02")
ax.axvline(100 * own_size, color="grey", linestyle="--", label="this adapter, this layer")
ax.set(xlabel="size of the change, % of the weights", ylabel="kept, %", ylim=(0, 110))
ax.set_title("How much of a change is left in four bits?")
ax.legend()
plt.show()

# %% [markdown] id="break-read"
# Merge into the base that was never quantized: there the change stays. If the merged model must be small again, quantize it
# afterwards and measure it: it then loses what every model loses, and lesson 08 shows ways that lose less.

# %% [markdown] id="break-read" lang="zh" of="0769d11d"
# 请合并进没有量化过的基座：改动会留下来。合并后还想要小模型，就再量化一次并测量：它损失的与任何模型量化时一样，第 08 课会介绍损失更小的办法。

# %% [markdown] id="trap-why"
# ### A trap that gives no error: answer, then train
# On a CPU with AVX512_BF16 instructions a 4-bit layer repacks its weights the first time it answers. The packed form
# multiplies without a backward pass, so that a model which is scored and *then* trained loses the gradient of every
# layer below, without an error or a warning. `cpu.keep_gradients` above forbids the repacking. On a CPU without these
# instructions the layer stays as it is, and keeps its gradient.

# %% [markdown] id="trap-why" lang="zh" of="a5ce3f08"
# ### 一个不报错的陷阱：先回答，再训练
# 在有 AVX512_BF16 指令的 CPU 上，4 比特的层第一次用来回答时会把权重重新打包。打包后的格式不支持反向传播，所以先打分、*再*训练的模型会丢掉下面每一层的梯度，既不报错也没有警告。上面的 `cpu.keep_gradients` 禁止了重新打包。在没有这种指令的 CPU 上，这一层保持原样，梯度也还在。

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
# instructions emulates each product with it, and the loss scaling of a T4 takes no bfloat16 gradients. `adapter_to_float32` above
# puts the adapter back into float32 there, and leaves it alone elsewhere.

# %% [markdown] id="rounded-why" lang="zh" of="2304312a"
# ### 一个费时间的陷阱：适配器自己的格式
# 无论在什么机器上，TRL 的训练器都会把量化模型的适配器转成 bfloat16。没有 bfloat16 指令的处理器只能模拟用到它的每一次乘法，而 T4 的损失缩放不接受 bfloat16 的梯度。上面的 `adapter_to_float32` 在这些机器上把适配器转回 float32，在其他机器上不作改动。

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
# `prepare_model_for_kbit_training` 让量化的模型可以训练：冻结全部权重，把未量化的部分转成 float32，并在重算激活值时让梯度到达第一个块。最后一步 TRL 的训练器自己会做；而在有相应指令的机器上，bfloat16 比 float32 乘得快，所以上面没有用它。

# %% id="kbit"
published = AutoModelForCausalLM.from_pretrained(  # what is not quantized in 16 bits, whatever this machine trains in
    model_path, dtype=torch.bfloat16, quantization_config=quantization_config, device_map=where
)
dtypes = {name: weight.dtype for name, weight in published.named_parameters()}
prepared = prepare_model_for_kbit_training(published, use_gradient_checkpointing=False)
lifted = [name for name, weight in prepared.named_parameters() if weight.dtype != dtypes[name]]
print(f"lifted to float32: {len(lifted)} weights, such as {lifted[0]} and {lifted[-1]}")

# %% [markdown] id="stored-why"
# ## Five ways to store a model
# The same model stored five ways: its bytes, and its perplexity. Which setting saves the most for what it costs?

# %% [markdown] id="stored-why" lang="zh" of="76d976b4"
# ## 存放模型的五种办法
# 同一个模型的五种存法：字节数与困惑度。哪个设置最划算？

# %% id="stored"
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # 8 bits: one warning for each layer
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

# %% [markdown] id="stored-read"
# Read small differences with care: these are a few short texts and one seed. Weights that are closer to the original (NF4 was
# made for that) need not give the lower perplexity on them, so compare candidates on your own task, as the orders were above.

# %% [markdown] id="stored-read" lang="zh" of="6b81f7ec"
# 差别小的时候要谨慎：这里只有几段短文、一个随机种子。更接近原权重的存法（NF4 就是为此设计的）在这几段文字上困惑度未必更低，所以要在自己的任务上比较，就像上面比较订单那样。

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
# **2.** 写一个函数，给定量化值的列表，返回离 `x` 最近的量化值的下标。

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
# **4.** 把编码还原成权重：`codes` 形状为（块数, 块大小），内容是张量 `levels` 的下标；`scales` 每块一个缩放因子。

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
outcomes = {
    "nf4_codes_equal_share": nf4_codes_equal_share,
    "base_bytes_ratio": base_bytes_ratio,
    "nf4_error_against_even": statistics.mean(errors["NF4"]) / statistics.mean(errors["4 bits"]),
    "perplexity_growth_8_bits": quality["8 bits"] / quality[as_loaded] - 1,
    "perplexity_growth_nf4": growth,
    "memory_error_max": memory_error_max,
    "memory_error_mean": memory_error_mean,
    "lora_score": lora_score,
    "qlora_score": qlora_score,
    "kept_at_2_percent": update_kept[0.02],
    "kept_at_10_percent": update_kept[0.1],
    "merged_loss": merged["adapter beside"] - merged[f"merged, {as_loaded}"],
}
bands = {
    "nf4_codes_equal_share": (1, 1),
    "base_bytes_ratio": (0.25, 0.3),
    "nf4_error_against_even": (0.5, 0.99),
    "memory_error_max": (0, 0.1),
    "memory_error_mean": (0, 0.05),
}
if PROFILE != "smoke":
    bands |= {
        "perplexity_growth_8_bits": (-0.05, 0.05),
        "perplexity_growth_nf4": (0, 1),
        "lora_score": (0.7, 1),
        "qlora_score": (0.65, 1),
        "kept_at_2_percent": (0, 0.15),
        "kept_at_10_percent": (0.6, 1.1),
        "merged_loss": (-0.15, 0.15),
    }
course.record(outcomes, bands)

# %% [markdown] id="next"
# **You keep** `runs/04_qlora/adapter`, trained on a base in four bits.
#
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`, each with a learning rate of its own; before you rent one, `ftlab memory
# qwen2.5-7b --gpu 16 quantization_bit=4` says whether it fits a T4. The same from a recipe: `quantization_bit: 4` in
# `recipes/sft_qlora.yaml`.
#
# **Next:** other ways to tune, compared on the same budget: [05 · Methods](05_methods.ipynb).

# %% [markdown] id="next" lang="zh" of="8903e22e"
# **你得到的文件：** `runs/04_qlora/adapter`，在 4 比特的基座上训练而成。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`，各自带有合适的学习率；租卡之前，`ftlab memory qwen2.5-7b --gpu 16 quantization_bit=4` 会告诉你 T4 放不放得下。用配方做同样的事：`recipes/sft_qlora.yaml` 里的 `quantization_bit: 4`。
#
# **下一课：** 其他微调方法，在相同的预算下比较：[05 · 各种方法](05_methods.ipynb)。
