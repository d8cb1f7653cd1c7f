# %% [markdown] id="title"
# # 09 · Inference: from logits to text, fast enough for several users
#
# A language model gives scores (*logits*) for the next token. Everything else, choosing, remembering, batching,
# serving, is done around it. Here you write each of these by hand, prove it equal to the library's, and measure what
# it is worth on this machine.
#
# | you will have | measured as |
# |---|---|
# | sampling by hand | tokens equal to `generate` with the same seed |
# | a key-value cache by hand | same tokens, times faster, bytes predicted and counted |
# | grouped-query attention and a sliding window | cache bytes, and which position reaches which |
# | many prompts at once | tokens per second at batch 1 to 16, answers unchanged |
# | faster engines | tokens per second, each against what this machine's memory allows |
# | an OpenAI-compatible server | asked by the real `openai` client, then stopped |
#
# **Cost:** about 6 minutes and 5 GB on two CPU cores without bfloat16, an estimated 3 minutes on a T4. **Before
# this:** [00 · Your first fine-tune](00_first_finetune.ipynb).

# %% [markdown] id="title" lang="zh" of="3fdca036"
# # 09 · 推理：从 logits 到文本，快到能供多人使用
#
# 语言模型给出的只是下一个 token 的分数（logits）。其余的事（选 token、缓存、批处理、对外服务）都在模型之外完成。在这里，你把每一样都亲手写一遍，证明与库的结果一致，并测出它在这台机器上带来多少收益。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 手写的采样 | 同一随机种子下与 `generate` 的 token 相同 |
# | 手写的键值缓存 | token 相同，快多少倍，字节数先预测再数 |
# | 分组查询注意力与滑动窗口 | 缓存的字节数，哪个位置能看到哪个位置 |
# | 一次处理多个提示 | 批大小 1 到 16 时每秒 token 数，回答不变 |
# | 更快的引擎 | 每秒 token 数，并与这台机器内存带宽允许的上限比较 |
# | 兼容 OpenAI 的服务 | 用真正的 `openai` 客户端提问，然后停掉 |
#
# **耗时与内存：** 两个 CPU 核心上，不支持 bfloat16 时约 6 分钟、5 GB 内存，T4 上估计 3 分钟。**先修：** [00 · 第一次微调](00_first_finetune.ipynb)。

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
import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from openai import APIConnectionError, AuthenticationError, OpenAI
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    StaticCache,
    TextStreamer,
    set_seed,
)

from ftlab import checks, cpu, device, models, plots
from ftlab.apps import course
from ftlab.apps.board import experiment
from ftlab.runs import pick_engine

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own; a merged model's folder from lesson 08 works too
temperature = 0.8
top_k = 20
top_p = 0.9
min_p = 0.05
max_new_tokens = 0  # 0: the profile's own
seed = 0

# %% id="profile"
profiles = {  # model, new tokens where speed is measured, and where tokens are compared, prompts compared, batch sizes
    "smoke": ("smollm2-135m-short", 12, 6, 6, (1, 4, 16)),
    "cpu": ("smollm2-135m", 64, 12, 48, (1, 2, 4, 8, 16)),
    "t4": ("Qwen/Qwen2.5-1.5B-Instruct", 64, 12, 96, (1, 2, 4, 8, 16)),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 64, 12, 96, (1, 2, 4, 8, 16)),
}
default_model, default_tokens, few_tokens, compared, batch_sizes = profiles[PROFILE]
model_name = model_name or default_model
max_new_tokens = max_new_tokens or default_tokens
set_seed(seed)

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("serve", ax)
plt.show()

# %% [markdown] id="baseline-why"
# ## Start with a baseline
# Each new token reads all weights once, so the memory sets a limit: bandwidth divided by the size of the weights. This
# limit is the *memory roof* of one answer at a time (decoding is *memory-bound*, in the terms of the roofline model).
# First measure the bandwidth: a matrix too big for the processor's cache, times a vector, reads every number once.

# %% [markdown] id="baseline-why" lang="zh" of="71331803"
# ## 先测基线
# 每生成一个 token 要把全部权重读一遍，所以内存定下了上限：带宽除以权重的大小。这就是一次只答一个时的*内存上限*（memory roof；用 roofline 模型的说法，解码是 memory-bound，受内存带宽限制）。先测带宽：用一个处理器缓存放不下的矩阵乘一个向量，每个数正好读一遍。

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, device_map="cuda" if on_gpu else "cpu").eval()
weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())


# %% id="bandwidth"
def bytes_per_second(size=2**29, repeats=10):
    """Return the memory bandwidth: the fastest of some products of a matrix of `size` bytes and a vector."""
    matrix = torch.ones(size // 2**15, 2**13, device=model.device)  # float32
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        (matrix @ matrix[0])[0].item()  # .item() waits for a GPU to finish
        seconds.append(time.perf_counter() - start)
    return size / min(seconds)


bandwidth = bytes_per_second()
roof = bandwidth / weight_bytes
print(f"{bandwidth / 1e9:.1f} GB/s; {weight_bytes / 1e9:.2f} GB of weights allow {roof:.0f} tokens per second")

# %% [markdown] id="predict"
# **Predict before you run:** what percentage of that does `generate` reach, with one prompt?

# %% [markdown] id="predict" lang="zh" of="9d014243"
# **先预测，再运行：** 只有一个提示时，`generate` 能达到这个上限的百分之多少？

# %% id="predict-roof"
guess_roof = 80  # your guess, in percent

# %% id="baseline"
question = [{"role": "user", "content": "Write a short story about a lighthouse keeper and a storm."}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
inputs = inputs.to(model.device)
prompt_ids = inputs["input_ids"]


def speed(answer, repeats=1 if PROFILE == "smoke" else 3):
    """Return the tokens per second of the fastest of some calls after a first one, and the ids they gave."""
    answer()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        ids = answer()
        seconds.append(time.perf_counter() - start)
    return max_new_tokens / min(seconds), ids


def plain():
    return model.generate(**inputs, max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens, do_sample=False)


plain_rate, plain_ids = speed(plain)
print(f"{plain_rate:.1f} tokens per second")
print(tokenizer.decode(plain_ids[0, prompt_ids.shape[1] :])[:200])

# %% id="answer-roof"
print(f"you predicted {guess_roof}%, measured {plain_rate / roof:.0%} of what the memory allows")

# %% [markdown] id="choose-why"
# ## From scores to a choice
# The model ends in one score per token of the vocabulary. Four tokens are enough to see the effect of every
# parameter:
#
# - **greedy** takes the highest score, always the same answer;
# - **temperature** divides the scores before the softmax: below 1 the likeliest token gains, above 1 the others do;
# - **top-k** keeps the k likeliest; **top-p** keeps the smallest set of likeliest tokens whose probabilities add up
#   to p;
# - **min-p** keeps what is at least p times as likely as the likeliest token: few tokens where the model is sure,
#   many where it is not.

# %% [markdown] id="choose-why" lang="zh" of="f0711d10"
# ## 从分数到选择
# 模型最后给词表中的每个 token 输出一个分数。四个 token 就足以看清每个参数的作用：
#
# - **贪心**取最高分，答案永远一样；
# - **temperature**：softmax 之前先把分数除以它，小于 1 时概率最高的 token 更占优，大于 1 时其他 token 更有机会；
# - **top-k** 只留概率最高的 k 个；**top-p** 从概率最高的往下取，留下概率之和达到 p 的最小一组；
# - **min-p** 留下概率不低于最高概率 p 倍的：模型有把握时留得少，没把握时留得多。

# %% id="literal"
scores = torch.tensor([2.0, 1.0, 0.5, -1.0])
print("greedy picks token", scores.argmax().item())
for t in (0.5, 1.0, 2.0):
    print(f"temperature {t}:", [round(p, 2) for p in (scores / t).softmax(-1).tolist()])
print("top-k 2 keeps", scores.topk(2).indices.tolist())
shares, order = scores.softmax(-1).sort(descending=True)
print("running sum", [round(p, 2) for p in shares.cumsum(-1).tolist()], "-> top-p 0.8 keeps", order[:2].tolist())
print("min-p 0.2 keeps", order[shares >= 0.2 * shares[0]].tolist(), "of", [round(p, 2) for p in shares.tolist()])

# %% [markdown] id="scratch-why"
# The same four parameters for a whole vocabulary. A token that is cut gets the score minus infinity, so its
# probability is 0.

# %% [markdown] id="scratch-why" lang="zh" of="f14c71a2"
# 同样四个参数，作用于整个词表。被去掉的 token 得分为负无穷，概率就是 0。


# %% id="scratch"
def cut(scores, temperature, top_k, top_p, min_p):
    """Return the scores (batch, vocabulary) that temperature, top-k, top-p and min-p leave."""
    scores = scores / temperature
    scores = scores.masked_fill(scores < scores.topk(top_k).values[..., -1:], float("-inf"))
    ascending, order = scores.sort(dim=-1)
    # From the least likely on: as long as what was passed so far stays within 1 - p, it can go.
    gone = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    gone[..., -1] = False
    scores = scores.masked_fill(gone.scatter(-1, order, gone), float("-inf"))
    likely = scores.softmax(-1)
    return scores.masked_fill(likely < min_p * likely.amax(-1, keepdim=True), float("-inf"))


@torch.inference_mode()
def sample(model, ids, new_tokens):
    """Draw `new_tokens` tokens after `ids` (1, seq_len), reading everything again for each one."""
    for _ in range(new_tokens):
        scores = cut(model(input_ids=ids).logits[:, -1].float(), temperature, top_k, top_p, min_p)
        ids = torch.cat([ids, torch.multinomial(scores.softmax(-1), 1)], dim=-1)
    return ids


# %% [markdown] id="parity-why"
# Is it what the library does? Same seed, same random numbers: the drawn tokens must be the same. The comparison runs in
# float32; in 16 bits two scores can tie, and then rounding decides.

# %% [markdown] id="parity-why" lang="zh" of="07e470da"
# 库也是这样做的吗？同样的种子，同样的随机数：抽出的 token 必须一样。比较用 float32 进行；16 比特下两个分数可能相等，那时由舍入决定。

# %% id="parity"
exact = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, device_map=model.device).eval()
sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
same = []
for draw in range(2):
    set_seed(draw)
    mine = sample(exact, prompt_ids, few_tokens)
    set_seed(draw)
    theirs = exact.generate(**inputs, do_sample=True, max_new_tokens=few_tokens, **sampling)
    same += (mine[:, : theirs.shape[1]] == theirs)[0, prompt_ids.shape[1] :].tolist()
sampling_parity = sum(same) / len(same)
print(f"{sampling_parity:.0%} of {len(same)} drawn tokens equal")

# %% [markdown] id="temperature-why"
# ## Experiment
# The effect of these parameters on a real next token: the twelve likeliest after the prompt. Grey is what the model says,
# green what sampling draws from. Where does `top_p` cut nothing any more, and which parameter helps against a high
# temperature?

# %% [markdown] id="temperature-why" lang="zh" of="87d51f93"
# ## 动手试一试
# 看这些参数对真实的下一个 token 有什么作用：提示之后最可能的十二个 token。灰色是模型给出的概率，绿色是采样实际使用的概率。`top_p` 到多大就什么都不去掉了？温度很高时，哪个参数管用？

# %% id="experiment"
with torch.inference_mode():
    next_scores = exact(**inputs).logits[:, -1].float().cpu()
likeliest = next_scores[0].topk(12).indices
token_names = [repr(tokenizer.decode([i]))[1:-1] for i in likeliest]


def draw(temperature, top_k, top_p, min_p):
    left = cut(next_scores, temperature, top_k, top_p, min_p)
    _, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
    for offset, shown, color, label in ((-0.2, next_scores, "#bbb", "model"), (0.2, left, "#4c956c", "drawn from")):
        shares = 100 * shown.softmax(-1)[0, likeliest]
        ax.bar(torch.arange(12) + offset, shares, width=0.38, color=color, label=label)
    ax.legend()
    ax.set(xticks=range(12), ylabel="probability, %", title=f"What can be drawn? {int(left.isfinite().sum())} tokens")
    ax.set_xticklabels(token_names, rotation=35, ha="right")
    plt.show()


experiment.show(draw, temperature=(0.1, 3.0, 0.1), top_k=(1, 100, 1), top_p=(0.1, 1.0, 0.05), min_p=(0.0, 0.5, 0.01))

# %% [markdown] id="drawn-why"
# And on whole answers: the same prompt, three draws per setting. Read them: where does it stop being boring, and where
# does it stop making sense?

# %% [markdown] id="drawn-why" lang="zh" of="7f4e7d2d"
# 再看对整个回答的影响：同一个提示，每种设置抽三次。读一读：从哪种设置起不再千篇一律，又从哪种设置起不知所云？

# %% id="drawn"
opening = [{"role": "user", "content": "Invent a name for a bakery on the moon. Only the name."}]
start_ids = tokenizer.apply_chat_template(opening, add_generation_prompt=True, return_tensors="pt", return_dict=True)
for t, p, m in ((0.2, 1.0, 0.0), (0.8, 0.9, 0.0), (1.0, 1.0, 0.0), (1.8, 1.0, 0.0), (1.8, 1.0, 0.1)):
    set_seed(seed)
    options = {"do_sample": True, "temperature": t, "top_p": p, "min_p": m, "top_k": 0, "max_new_tokens": few_tokens}
    drawn = model.generate(**start_ids.to(model.device), num_return_sequences=3, **options)
    inventions = tokenizer.batch_decode(drawn[:, start_ids["input_ids"].shape[1] :], skip_special_tokens=True)
    lines = [invention.strip().split("\n")[0] for invention in inventions]
    print(f"temperature {t}, top-p {p}, min-p {m}:", lines)

# %% [markdown] id="cache-why"
# ## The key-value cache
# `sample` above reads the whole text again for every token. But attention only needs the *keys and values* of earlier
# tokens, and these never change. Keep them, and a step reads one new token.
#
# The price is memory: per token, two vectors (key and value) for each layer and each key-value head.
#
# **Predict before you run:** how many bytes is that for this model, with the numbers printed below?

# %% [markdown] id="cache-why" lang="zh" of="382da771"
# ## 键值缓存（KV cache）
# 上面的 `sample` 每生成一个 token 都要把整段文字重读一遍。但注意力只需要前面各 token 的*键和值*，而它们不会再变。把它们存下来，每步就只读一个新 token。
#
# 代价是内存：每个 token，每层、每个键值头各两个向量（键和值）。
#
# **先预测，再运行：** 按下面打印的数字，这个模型每个 token 是多少字节？

# %% id="predict-cache"
config = exact.config
print(f"{config.num_hidden_layers} layers, {config.num_key_value_heads} key-value heads of {config.head_dim} numbers")
guess_cache_bytes = 10_000  # your guess: bytes per token in float32


# %% id="cache"
@torch.inference_mode()
def greedy(model, ids, new_tokens, use_cache):
    """Extend `ids` (1, seq_len) greedily; with a cache each step reads only what is new."""
    cache = DynamicCache() if use_cache else None
    new = ids
    for _ in range(new_tokens):
        logits = model(input_ids=new, past_key_values=cache, use_cache=use_cache, logits_to_keep=1).logits
        token = logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, token], dim=-1)
        new = token if use_cache else ids
    return ids, cache


again = greedy(exact, prompt_ids, 2 * few_tokens, use_cache=False)[0]
kept, cache = greedy(exact, prompt_ids, 2 * few_tokens, use_cache=True)
assert again.equal(kept)
print(tokenizer.decode(kept[0, prompt_ids.shape[1] :]))


# %% id="cache-bytes"
def cache_bytes_of(cache):
    """Return the bytes of all keys and values in a cache."""
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * exact.dtype.itemsize
# The last token was chosen but never read, so it has no keys and values yet.
assert cache_bytes_of(cache) == per_token * (kept.shape[1] - 1)
print(f"{kept.shape[1] - 1} tokens: {cache_bytes_of(cache):,} bytes, as computed from the configuration")

# %% id="answer-cache"
print(f"you predicted {guess_cache_bytes:,} bytes per token, measured {per_token:,}")

# %% [markdown] id="gqa-why"
# ### Smaller caches: grouped queries and a sliding window
# Two changes of the architecture make the cache smaller. With **grouped-query attention** several query heads share one
# key-value head (Llama 3, Qwen2; a single one for all is *multi-query attention*). With a **sliding window** (Mistral 7B)
# a layer only sees the last few tokens, so older keys and values can go. On tiny models with random weights, both are
# visible at once: the bytes, and which position changes when an earlier token changes.

# %% [markdown] id="gqa-why" lang="zh" of="e1a43d86"
# ### 更小的缓存：分组查询与滑动窗口
# 有两种结构上的改动能让缓存变小。**分组查询注意力**（grouped-query attention，GQA）让几个查询头共用一个键值头（Llama 3、Qwen2；全部共用一个则叫*多查询注意力*，multi-query attention）。**滑动窗口**（sliding window，Mistral 7B）让每层只看最近的若干个 token，更早的键和值就可以丢掉。用随机权重的微型模型就能看清两者：缓存占多少字节，以及改动前面某个 token 会影响到哪些位置。

# %% id="gqa"
tiny = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 8}
twelve = torch.arange(12)[None]
for heads in (8, 2, 1):
    grouped = LlamaModel(LlamaConfig(**tiny, num_hidden_layers=2, num_key_value_heads=heads)).eval()
    print(
        f"8 query heads, {heads} key-value heads: {cache_bytes_of(grouped(twelve).past_key_values):,} bytes for 12 tokens"
    )


# %% id="window"
@torch.inference_mode()
def reach(model):
    """Return a matrix (12, 12), True at [i, j] where another token at j changes the output at i."""
    before, columns = model(twelve).last_hidden_state[0], []
    for place in range(12):
        changed = twelve.clone()
        changed[0, place] = 63
        columns.append((model(changed).last_hidden_state[0] - before).abs().amax(-1) > 1e-6)
    return torch.stack(columns, dim=1)


windows = {"1 layer, no window": (1, None), "1 layer, window 4": (1, 4), "2 layers, window 4": (2, 4)}
fig, axes = plt.subplots(1, 3, figsize=(8, 2.9), sharey=True, layout="constrained")
for ax, (label, (layers, window)) in zip(axes, windows.items(), strict=True):
    sliding = MistralConfig(**tiny, num_hidden_layers=layers, num_key_value_heads=2, sliding_window=window)
    reader = MistralModel(sliding).eval()
    reached = reach(reader)
    held = reader(twelve).past_key_values.layers[0].keys.shape[2]
    print(f"{label}: the last token depends on {int(reached[-1].sum())} of 12, {held} stay in each layer's cache")
    ax.imshow(reached, cmap="Greens", vmin=0, vmax=1.5)
    ax.set(title=label, xlabel="token changed", xticks=range(0, 12, 3), yticks=range(0, 12, 3))
axes[0].set_ylabel("output that changes")
plt.show()

# %% [markdown] id="window-read"
# A second layer reaches beyond the window: what it reads has itself read the tokens before. The cache holds one token
# less than the window, because the new token brings its own key and value.

# %% [markdown] id="window-read" lang="zh" of="44e90ca3"
# 第二层能看到窗口之外：它读到的内容本身已经读过更早的 token。缓存里比窗口少一个 token，因为新来的 token 自带键和值。

# %% [markdown] id="cache-speed-why"
# And how much faster? Without the cache each step is as long as the text, so the gap grows with it. Both run on a text of
# a few hundred tokens, as in any real conversation.

# %% [markdown] id="cache-speed-why" lang="zh" of="c58eb8d2"
# 快多少？没有缓存时，每一步都要处理全文，所以文字越长，差距越大。这里两者都接在几百个 token 的文字后面生成，真实的对话也有这么长。

# %% id="cache-speed"
story = " ".join(["The lamp turned, the sea answered, and the keeper wrote it down."] * 2 * few_tokens)
long_ids = tokenizer(story, return_tensors="pt")["input_ids"].to(model.device)
seconds = {}
for use_cache in (False, True):
    greedy(model, long_ids[:, :32], 2, use_cache)
    start = time.perf_counter()
    greedy(model, long_ids, few_tokens, use_cache)
    seconds[use_cache] = time.perf_counter() - start
kv_cache_speedup = seconds[False] / seconds[True]
print(
    f"{few_tokens} tokens after {long_ids.shape[1]}: {seconds[False]:.1f} s without, {seconds[True]:.1f} s with the cache"
)
print(f"{kv_cache_speedup:.1f} times faster")

# %% [markdown] id="batch-why"
# ## Many prompts at once
# A step for one prompt fetches every weight for a single token. A second prompt in the same step uses the weights that are
# already there. Prompts differ in length, so the shorter ones are padded, on the *left*: an answer must follow its question directly.

# %% [markdown] id="batch-why" lang="zh" of="606a88ee"
# ## 一次处理多个提示
# 只有一个提示时，每一步为了一个 token 就要把全部权重取一遍。同一步里再加一个提示，用的是已经取来的权重。提示长短不一，短的要填充（padding），填在*左边*：回答必须紧跟着它的问题。

# %% id="batch-prompts"
with open("data/general_mcq.jsonl", encoding="utf-8") as lines:
    every = [json.loads(line)["question"] for line in lines]
questions = every[:: len(every) // compared][:compared]
chats = [[{"role": "user", "content": text}] for text in questions]
texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]


def answers(model, texts, batch_size, new_tokens, padding_side="left"):
    """Return the greedy answer ids, one list per text."""
    found = []
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        batch = tokenizer(part, padding=True, padding_side=padding_side, add_special_tokens=False, return_tensors="pt")
        output = model.generate(**batch.to(model.device), max_new_tokens=new_tokens, do_sample=False)
        found += output[:, batch["input_ids"].shape[1] :].tolist()
    return found


# %% id="batch-curve"
curve = {}
for size in batch_sizes:
    batch = tokenizer([texts[0]] * size, add_special_tokens=False, return_tensors="pt").to(model.device)
    length = {"max_new_tokens": max_new_tokens, "min_new_tokens": max_new_tokens}
    model.generate(**batch, max_new_tokens=2)
    start = time.perf_counter()
    model.generate(**batch, do_sample=False, **length)
    curve[size] = size * max_new_tokens / (time.perf_counter() - start)
batch16_speedup = curve[16] / curve[1]
print({size: f"{rate:.0f} tokens/s" for size, rate in curve.items()}, f"16 at once: {batch16_speedup:.1f} times one")

# %% id="batch-plot"
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.plot(list(curve), list(curve.values()), "o-", label="all prompts together")
ax.plot(list(curve), [rate / size for size, rate in curve.items()], "s--", label="each prompt")
ax.set(xlabel="prompts at once", ylabel="tokens per second", xscale="log", xticks=list(curve))
ax.set_xticklabels(list(curve))
ax.set_ylim(bottom=0)
ax.set_title("What does a bigger batch cost each prompt?")
ax.minorticks_off()
ax.grid(alpha=0.3)
ax.legend()
plt.show()

# %% [markdown] id="unchanged-why"
# Does batching change an answer? Compare each prompt's tokens alone and in a batch of 16, in float32. Then the famous
# mistake: the same with the padding on the *right*.

# %% [markdown] id="unchanged-why" lang="zh" of="004c37b1"
# 同一批里的其他提示会影响回答吗？比较每个提示单独跑和 16 个一批时的 token，用 float32。然后是那个出名的错误：把填充放在*右边*。


# %% id="unchanged"
def equal_share(one, other):
    """Return the share of answers whose tokens are equal, padding at their ends left out."""
    ends = {tokenizer.pad_token_id, tokenizer.eos_token_id}
    pairs = [[[t for t in ids if t not in ends] for ids in pair] for pair in zip(one, other, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


alone = answers(exact, texts, 1, few_tokens)
batch_equal_share = equal_share(alone, answers(exact, texts, 16, few_tokens))
right_equal_share = equal_share(alone, answers(exact, texts, 16, few_tokens, padding_side="right"))
print(f"{batch_equal_share:.0%} of {len(texts)} answers unchanged with padding on the left")
print(f"{right_equal_share:.0%} with padding on the right: the answer starts after a gap")

# %% id="right-look"
pair = [min(texts, key=len), max(texts, key=len)]
for side in ("left", "right"):
    reply = answers(exact, pair, 2, few_tokens, padding_side=side)[0]
    print(f"{side:>5}: {tokenizer.decode(reply, skip_special_tokens=True)!r}")

# %% [markdown] id="adapters-why"
# ## Adapters at inference
# A server may keep one base and an adapter for each customer. PEFT runs them in one batch: `adapter_names` says, for each
# row, which adapter applies. The adapter here has random weights, so that its answer cannot be mistaken for the base's;
# one from lesson 03 or 08 is loaded with `PeftModel.from_pretrained`.

# %% [markdown] id="adapters-why" lang="zh" of="f71b8551"
# ## 推理时使用适配器
# 服务器可以只保留一个基座，每个客户一个适配器。PEFT 能让它们在同一批里运行：`adapter_names` 逐行指定使用哪个适配器。这里的适配器权重是随机的，所以它的回答不会和基座的回答混淆；第 03 或 08 课训练出的适配器用 `PeftModel.from_pretrained` 加载。

# %% id="adapters"
random_lora = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
length = {"max_new_tokens": few_tokens, "min_new_tokens": few_tokens, "do_sample": False}
base_ids = exact.generate(**inputs, **length)
adapted = get_peft_model(exact, random_lora).eval()
adapter_ids = adapted.generate(**inputs, **length)
two_rows = {key: value.repeat(2, 1) for key, value in inputs.items()}
mixed = adapted.generate(**two_rows, **length, adapter_names=["__base__", "default"])
exact = adapted.unload()
print("row 1 answers as the base alone:   ", mixed[:1].equal(base_ids))
print("row 2 answers as the adapter alone:", mixed[1:].equal(adapter_ids))
print("both rows answer the same:         ", mixed[:1].equal(mixed[1:]))

# %% [markdown] id="stream-why"
# ## Streaming
# A reader wants the first word immediately. A streamer prints each token as soon as it is generated; nothing gets
# faster, it only *feels* so.

# %% [markdown] id="stream-why" lang="zh" of="f895237e"
# ## 流式输出
# 读者想马上看到第一个词。streamer 在每个 token 生成后立刻打印；生成并没有变快，只是*感觉*更快。

# %% id="stream"
streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
_ = model.generate(**inputs, max_new_tokens=2 * few_tokens, do_sample=False, streamer=streamer)

# %% [markdown] id="lookup-why"
# ## Speculative decoding: guess several tokens, check them at once
# One step that reads the weights once can *check* several tokens. So guess: when the answer repeats parts of the
# prompt (editing, extraction, quoting), the words after an earlier occurrence are a good guess. Wrong guesses are
# thrown away, so greedy tokens stay the same. *Prompt lookup* needs no second model; *speculative decoding* lets a
# small model guess.

# %% [markdown] id="lookup-why" lang="zh" of="a7ca2edc"
# ## 投机解码：先起草几个 token，再一次核对
# 一步只读一遍权重，却能*核对*好几个 token。那就猜：当回答会重复提示中的内容（改写、抽取、引用），先前出现处后面的词就是好的猜测。猜错的丢掉，所以贪心解码的结果不变。*Prompt lookup* 不需要第二个模型；*投机解码*则让一个小模型来猜。

# %% id="lookup"
note = "Ms Okafor ordered 12 blue mugs on 3 May, paid 96 euros, and asked for delivery to 7 Harbour Lane."
copying = [{"role": "user", "content": f"Repeat this text exactly, three times:\n{note}"}]
copy_inputs = tokenizer.apply_chat_template(copying, add_generation_prompt=True, return_tensors="pt", return_dict=True)
copy_inputs = copy_inputs.to(model.device)
seconds, copies = {}, {}
for guesses in (None, 6):
    start = time.perf_counter()
    copies[guesses] = exact.generate(
        **copy_inputs, max_new_tokens=4 * few_tokens, do_sample=False, prompt_lookup_num_tokens=guesses
    )
    seconds[guesses] = time.perf_counter() - start
assert copies[None].equal(copies[6])
print(tokenizer.decode(copies[6][0, copy_inputs["input_ids"].shape[1] :], skip_special_tokens=True))
print(f"same tokens, {seconds[None] / seconds[6]:.1f} times faster")

# %% [markdown] id="int8-why"
# ## Fewer bytes per weight
# With one answer at a time each token reads every weight. Eight bits instead of sixteen halve that, and double the roof.
# Keep one scale per row, the largest absolute weight over 127, and round. Four weights, by hand:

# %% [markdown] id="int8-why" lang="zh" of="c4946826"
# ## 每个权重占更少的字节
# 一次只答一个时，每个 token 都要读遍全部权重。16 比特改成 8 比特，要读的就少一半，上限也就高一倍。每行存一个缩放因子（最大的绝对值除以 127），权重除以它，再舍入为整数。先用四个权重亲手算：

# %% id="int8-literal"
row = torch.tensor([0.31, -0.08, 0.02, -0.54])
scale = row.abs().max() / 127
print((row / scale).round().to(torch.int8).tolist(), "times", round(scale.item(), 5))
print("back:", [round(w, 3) for w in ((row / scale).round() * scale).tolist()])

# %% [markdown] id="int8-layer-why"
# The same as a layer. PyTorch ships a kernel that multiplies bfloat16 inputs with 8-bit weights, for every CPU; put the layer
# in the place of every `nn.Linear`, and `generate` runs as before.

# %% [markdown] id="int8-layer-why" lang="zh" of="aaa6c982"
# 把同样的计算写成一层。PyTorch 自带一个适用于各种 CPU 的内核，计算 bfloat16 输入与 8 比特权重的乘积；用这一层换下每个 `nn.Linear`，`generate` 照常运行。


# %% id="int8-layer"
class Int8Linear(nn.Module):
    """A linear layer without bias whose weights take one byte each, with one scale per output."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.float().abs().amax(dim=1) / 127
        self.register_buffer("weight", (linear.weight.float() / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(torch.bfloat16))

    def forward(self, x):
        if x.device.type == "cpu":
            flat = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]).bfloat16(), self.weight, self.scale)
            return flat.view(*x.shape[:-1], -1).to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)


# %% id="int8"
small = AutoModelForCausalLM.from_pretrained(model_path, dtype=model.dtype, device_map=model.device).eval()
for name, layer in list(small.named_modules()):
    if isinstance(layer, nn.Linear):
        small.set_submodule(name, Int8Linear(layer))
read = sum(b.numel() * b.element_size() for b in small.buffers())
print(f"{read / 1e9:.2f} GB are read per token, {weight_bytes / 1e9:.2f} GB before")


def generate_int8():
    return small.generate(**inputs, max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens, do_sample=False)


int8_rate, int8_ids = speed(generate_int8)
print(f"{int8_rate:.1f} tokens per second, {plain_rate:.1f} before")

# %% [markdown] id="int8-quality-why"
# What did the rounding cost? The loss on plain text, and how many of the greedy answers above stay the same to the last token.

# %% [markdown] id="int8-quality-why" lang="zh" of="d7a08e79"
# 舍入的代价是什么？看普通文字上的损失，以及前面那些问题的贪心回答里，有多少连一个 token 都没变。


# %% id="int8-quality"
@torch.inference_mode()
def read_lines(model, lines):
    """Return the mean loss per token over some lines of text, and the likeliest next token at each place."""
    losses, choices = [], []
    for line in lines:
        ids = tokenizer(line, return_tensors="pt")["input_ids"][:, :128].to(model.device)
        output = model(input_ids=ids, labels=ids)
        losses.append(output.loss.item())
        choices.append(output.logits[0].argmax(-1))
    return sum(losses) / len(losses), torch.cat(choices)


with open("data/corpus_en.jsonl", encoding="utf-8") as lines:
    corpus = [json.loads(line)["text"] for line in lines][: max(4, compared // 2)]
(loss_before, choices_before), (loss_int8, choices_int8) = read_lines(model, corpus), read_lines(small, corpus)
share = equal_share(answers(model, texts, 16, few_tokens), answers(small, texts, 16, few_tokens))
agreement = (choices_before == choices_int8).float().mean().item()
print(f"loss {loss_before:.3f} -> {loss_int8:.3f}")
print(f"along the same text {agreement:.1%} of {len(choices_before)} next-token choices agree")
print(f"{share:.0%} of {len(texts)} answers of {few_tokens} tokens are equal to the last token")
print(
    f"one different token changes all that follow: {agreement:.1%} to the power of {few_tokens} is {agreement**few_tokens:.0%}"
)

# %% [markdown] id="bnb-why"
# The library's version of this is a setting for `from_pretrained`: bitsandbytes replaces the layers while the model loads
# (`LLM.int8()`, Dettmers et al. 2022; the output layer stays as it is). It is made for GPUs. Here is what it needs and does
# on this machine.

# %% [markdown] id="bnb-why" lang="zh" of="ca95adad"
# 库里的对应做法只是 `from_pretrained` 的一个设置：bitsandbytes 在加载时替换各层（`LLM.int8()`，Dettmers 等，2022；输出层保持原样）。它是为 GPU 设计的，下面看它在这台机器上占多少内存、有多快。

# %% id="bnb"
if importlib.util.find_spec("bitsandbytes"):
    eight_bit = BitsAndBytesConfig(load_in_8bit=True)
    by_library = AutoModelForCausalLM.from_pretrained(
        model_path, quantization_config=eight_bit, dtype=model.dtype
    ).eval()
    started = time.perf_counter()
    by_library.generate(**inputs.to(by_library.device), **length)
    library_rate = few_tokens / (time.perf_counter() - started)
    print(f"{by_library.get_memory_footprint() / 1e9:.2f} GB instead of {model.get_memory_footprint() / 1e9:.2f}")
    print(f"{library_rate:.1f} tokens per second; Int8Linear {int8_rate:.1f}, {dtype} {plain_rate:.1f}")
    del by_library

# %% [markdown] id="static-why"
# ## Less overhead per step
# `generate` is general: it checks every stopping criterion and every option after each token, and its cache grows by
# copying. Your own loop from above does none of that, and a *static* cache is allocated once in its full size. Each of
# the two is measured by itself. (A static cache may also cost more than it saves: every step then attends over its full
# length, empty places included.) On a GPU the fixed size is also what `torch.compile` and CUDA graphs need: there
# `generate(cache_implementation="static")` compiles by itself.

# %% [markdown] id="static-why" lang="zh" of="0c683d87"
# ## 减少每步的额外开销
# `generate` 是通用的：每个 token 之后都要检查各种停止条件和选项，它的缓存每次增长都要复制。你在上面写的循环没有这些开销，而*静态*缓存一次就按全长分配好。两者的收益分开测量。（静态缓存也可能得不偿失：每一步都要对全长做注意力计算，包括还空着的位置。）在 GPU 上，固定的大小也正是 `torch.compile` 和 CUDA graph 所需要的：那里 `generate(cache_implementation="static")` 会自动编译。


# %% id="static"
@torch.inference_mode()
def greedy_static(model, ids, new_tokens):
    """Extend `ids` (1, seq_len) greedily with a cache of fixed size."""
    cache = StaticCache(config=model.config, max_cache_len=ids.shape[1] + new_tokens)
    new = ids
    for _ in range(new_tokens):
        logits = model(input_ids=new, past_key_values=cache, logits_to_keep=1).logits
        new = logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, new], dim=-1)
    return ids


loop_rate, _ = speed(lambda: greedy(small, prompt_ids, max_new_tokens, use_cache=True)[0])
static_rate, static_ids = speed(partial(greedy_static, small, prompt_ids, max_new_tokens))
print(f"8 bits with generate:       {int8_rate:>5.1f} tokens per second")
print(f"own loop, growing cache:    {loop_rate:>5.1f}, {loop_rate / int8_rate - 1:+.0%}")
print(f"own loop, static cache:     {static_rate:>5.1f}, {static_rate / loop_rate - 1:+.0%} against the growing one")
with torch.inference_mode():
    scores = small(input_ids=static_ids).logits[:, prompt_ids.shape[1] - 1 : -1]
behind = scores.amax(-1) - scores.gather(-1, static_ids[:, prompt_ids.shape[1] :, None])[..., 0]
print(f"each token is the likeliest, or at most {behind.max():.2f} behind it, which is rounding")

# %% [markdown] id="engines-why"
# ## All engines, measured
# `ftlab chat --backend NAME` has engines of both kinds: your `loop`; your `int8` with it; `int4`, sixteen levels per weight,
# with a scale and a lowest value for each block of 32 (the output layer keeps eight bits); and
# [llama.cpp](https://github.com/ggml-org/llama.cpp), a program written for this one job in C++, which reads GGUF files
# (lesson 08) of eight and of four bits. The course does not install it: `pip install 'ftlab[llamacpp]'` compiles for some
# minutes.
#
# Fewer bits are other weights, so each engine is also compared with the model as it is: how far do its next-token
# probabilities move, along the same answer? That is the Kullback-Leibler divergence, in nats per token. `--backend auto`
# takes the fastest below a limit.
#
# **Predict before you run:** four bits read about half as much as eight. How many times as fast as `int8` is `int4`?

# %% [markdown] id="engines-why" lang="zh" of="81e22322"
# ## 所有引擎，逐个测
# 这两类做法，`ftlab chat --backend NAME` 都有对应的引擎：你写的循环 `loop`；`int8`，即你写的 8 比特层加上这个循环；`int4`，每个权重十六个量化值，每 32 个一块，各有自己的缩放因子和最小值（输出层仍用 8 比特）；还有 [llama.cpp](https://github.com/ggml-org/llama.cpp)，一个专为这件事用 C++ 写的程序，读 8 比特和 4 比特的 GGUF 文件（第 08 课）。课程不安装它：`pip install 'ftlab[llamacpp]'` 要编译几分钟。
#
# 比特数少了，权重就不再是原来的权重，所以每个引擎还要与原模型比较：沿着同一个回答，它对下一个 token 的概率偏了多少？这就是 Kullback-Leibler 散度，单位是每个 token 多少 nat。`--backend auto` 从散度低于限值的引擎里取最快的。
#
# **先预测，再运行：** 4 比特要读的字节约是 8 比特的一半。`int4` 的速度是 `int8` 的几倍？

# %% id="predict-int4"
guess_int4 = 2.0  # your guess: tokens per second of int4 divided by those of int8

# %% id="engines"
rows = pick_engine.compare(model, tokenizer, new_tokens=max_new_tokens)
rates = {row.name: row.tokens_per_second for row in rows}
plain_tokens_per_second, best_tokens_per_second = rates["huggingface"], max(rates.values())

# %% id="answer-int4"
if {"int8", "int4"} <= rates.keys():
    print(f"you predicted {guess_int4:.1f} times, measured {rates['int4'] / rates['int8']:.1f} times")

# %% [markdown] id="engines-roof-why"
# Each engine has its own memory roof: bandwidth divided by the bytes that it reads per token. That follows from the
# formats: one byte per weight for `int8`, half a byte and four bytes of scale and offset per 32 for `int4`, 34 and 18
# bytes per block of 32 in GGUF's `q8_0` and `q4_0`.

# %% [markdown] id="engines-roof-why" lang="zh" of="d7d6d571"
# 每个引擎都有自己的上限：带宽除以它每个 token 要读的字节数。字节数由格式决定：`int8` 每个权重一字节；`int4` 每个权重半字节，外加每 32 个权重 4 字节的缩放因子和偏移；GGUF 的 `q8_0` 和 `q4_0` 每 32 个一块，分别占 34 和 18 字节。

# %% id="engines-roof"
head = model.get_output_embeddings().weight.numel()
inner = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear)) - head
read_bytes = {
    "int8": inner + head,
    "int4": inner * (1 / 2 + 4 / 32) + head,
    "llama.cpp": (inner + head) * 34 / 32,
    "llama.cpp-q4": inner * 18 / 32 + head * 34 / 32,
}
roofs = {name: bandwidth / read_bytes.get(name, weight_bytes) for name in rates}
for name, rate in rates.items():
    reading = rate * read_bytes.get(name, weight_bytes)
    print(
        f"{name:<13} {reading / 1e9:>5.1f} GB/s, {rate / roofs[name]:>4.0%} of its roof of {roofs[name]:.0f} tokens/s"
    )

# %% id="engines-plot"
fig, ax = plt.subplots(figsize=(7.5, 0.5 * len(rows) + 1.2), layout="constrained")
bars = ax.barh(list(rates), list(rates.values()), color="#4c956c", height=0.6)
labels = [f"{row.tokens_per_second:.0f}/s, divergence {row.divergence:.4f}" for row in rows]
ax.bar_label(bars, labels, padding=3, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, fontsize=8)
ax.plot(list(roofs.values()), list(roofs), "k|", markersize=16, label="what the memory allows")
ax.set(xlim=(0, 1.25 * max(*roofs.values(), *rates.values())), xlabel="tokens per second, one answer at a time")
ax.set_title("How close is each engine to its memory roof?")
ax.invert_yaxis()
ax.legend(fontsize=8)
plt.show()

# %% [markdown] id="products-why"
# What keeps an engine from its roof? Compute nothing but the matrix products of one step, layer after layer. Their
# distance from the roof is lost inside the products themselves. The rest of a step is attention, normalization and
# Python between the layers.

# %% [markdown] id="products-why" lang="zh" of="1cab1c96"
# 是什么让引擎达不到上限？这里一层接一层，只做一步里的矩阵乘积。它们与上限之间的差距，就损失在乘积本身。一步里其余的时间，则花在注意力、归一化和各层之间的 Python 上。

# %% id="products"
linears = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
vectors = {
    layer.in_features: torch.ones(1, layer.in_features, device=model.device, dtype=model.dtype) for layer in linears
}


@torch.inference_mode()
def products_only():
    for _ in range(max_new_tokens):
        for layer in linears:
            product = layer(vectors[layer.in_features])
    return product.sum().item()  # .item() waits for a GPU to finish


products_rate, _ = speed(products_only, repeats=1)
print(f"products alone {products_rate:.0f} tokens/s, {products_rate / roof:.0%} of the roof", end="; ")
print(
    f"with generate {plain_rate:.0f} tokens/s: the rest of a step takes {1 - plain_rate / products_rate:.0%} of its time"
)

# %% [markdown] id="engines-read"
# The course's download is itself a 4-bit file with blocks of 32, so part of the rounding happened before you came; weights
# that you have just trained may lose more. Measure before you ship four bits.

# %% [markdown] id="engines-read" lang="zh" of="01347cb6"
# 课程下载的模型本来就是每 32 个一块的 4 比特文件，所以有一部分舍入误差早就在里面了；你刚训练出的权重可能损失更多。发布 4 比特版本之前要先测。

# %% [markdown] id="server-why"
# ## Serve the model to others
# `ftlab serve MODEL` implements OpenAI's API, so every client and app for that API works. Requests join and leave a
# running batch between two tokens. It requires an API key, and listens on this machine only unless told otherwise.
# Here it runs beside the notebook, as a command, on a free port, with a key of its own.

# %% [markdown] id="server-why" lang="zh" of="5e58c006"
# ## 对外提供服务
# `ftlab serve MODEL` 的接口与 OpenAI 的 API 相同，所以支持这种 API 的客户端和应用都能用。它让请求在两个 token 之间加入或离开正在运行的批次，每个请求都要带 API key，并且默认只监听本机。这里它作为一条命令与 notebook 一同运行，用一个空闲端口和自己的 API key。

# %% id="server"
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
api_key = secrets.token_urlsafe(24)
url = f"http://127.0.0.1:{port}"
command = [sys.executable, "-m", "ftlab", "serve", model_name, "--port", str(port)]
server = subprocess.Popen(command, env=os.environ | {"API_KEY": api_key})
client = OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0)
while server.poll() is None:
    try:
        print("models:", [card.id for card in client.models.list()])
        break
    except APIConnectionError:
        time.sleep(0.5)  # it is still loading

# %% id="server-ask"
ask = {"model": Path(model_name).name, "messages": question, "max_tokens": 2 * few_tokens, "temperature": 0.0}
print("answer:", client.chat.completions.create(**ask).choices[0].message.content)
print("stream:", end=" ")
for chunk in client.chat.completions.create(**ask, stream=True):
    print(chunk.choices[0].delta.content or "", end="|")
try:
    OpenAI(base_url=f"{url}/v1", api_key="wrong").models.list()
except AuthenticationError as error:
    print("\nwith a wrong key:", error.status_code, error.body["message"])

# %% [markdown] id="server-load-why"
# Eight people at once, each with one question, against the same eight one after the other.

# %% [markdown] id="server-load-why" lang="zh" of="f49286b7"
# 比较两种情况：八个人同时各问一个问题；同样八个问题一个接一个地问。


# %% id="server-load"
def ask_one(text):
    """Return how many tokens the answer to one question took."""
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(**ask | {"messages": messages}).usage.completion_tokens


rates = {}
for people in (1, 8):
    start = time.perf_counter()
    with ThreadPoolExecutor(people) as pool:
        made = sum(pool.map(ask_one, questions[:8]))
    rates[people] = made / (time.perf_counter() - start)
server.terminate()
print(f"one after the other {rates[1]:.0f}, together {rates[8]:.0f} tokens per second; ended with {server.wait()}")

# %% [markdown] id="vllm"
# **What vLLM adds**, on a GPU: keys and values in pages instead of one padded block (PagedAttention, Kwon et al. 2023,
# arXiv:2309.06180), so that more requests fit; kernels for that layout; several GPUs. The next cell runs where vLLM is installed; install it in an
# environment of its own, because it brings its own torch. As a server it is `vllm serve runs/08_merge_export/merged`, and
# `--enable-lora` serves adapters beside the base.

# %% [markdown] id="vllm" lang="zh" of="3e2e2c51"
# **vLLM 多了什么**（在 GPU 上）：键和值分页存放，而不是一整块带填充的内存（PagedAttention，Kwon 等 2023，arXiv:2309.06180），因此能容下更多请求；为这种布局写的内核；多块 GPU。装了 vLLM 的话，下一格就会运行；请装在单独的环境里，因为它自带一个版本的 torch。作为服务启动时用 `vllm serve runs/08_merge_export/merged`，加上 `--enable-lora` 可以在基座旁同时提供适配器。

# %% id="vllm-run"
if importlib.util.find_spec("vllm"):
    from vllm import LLM, SamplingParams

    llm = LLM(model=str(model_path), seed=seed, gpu_memory_utilization=0.5)  # the lesson's models are on the GPU too
    params = SamplingParams(**sampling, max_tokens=max_new_tokens)
    for answer in llm.chat([question, opening], params):
        print(answer.outputs[0].text)
else:
    print("vLLM is not installed here: pip install vllm, on a machine with a GPU")

# %% [markdown] id="exercise-cache-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 09`
# checks your saved copy of the whole lesson.
#
# **1.** A 7B model has 28 layers and 4 key-value heads of 128 numbers each, and keeps its cache in 16 bits. How many
# bytes do 1,000 tokens take?

# %% [markdown] id="exercise-cache-why" lang="zh" of="4b18eb40"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 09` 检查你保存的整课练习。
#
# **1.** 一个 7B 模型有 28 层、4 个键值头（KV head），每头 128 个数，缓存用 16 比特。1,000 个 token 占多少字节？

# %% id="exercise-cache" tags=["exercise"]
cache_bytes = ...  # your answer

checks.check_cache_bytes(cache_bytes)

# %% [markdown] id="exercise-cache-solution"
# <details><summary>Solution</summary>
#
# ```python
# cache_bytes = 1000 * 28 * 4 * 128 * 2 * 2
# ```
#
# </details>

# %% [markdown] id="exercise-cache-solution" lang="zh" of="1e0bee55"
# <details><summary>参考答案</summary>
#
# ```python
# cache_bytes = 1000 * 28 * 4 * 128 * 2 * 2
# ```
#
# </details>

# %% [markdown] id="exercise-top-p-why"
# **2.** Write top-p for a plain list: `probabilities` is sorted, the highest first. Return how many tokens are kept:
# the fewest whose sum reaches `top_p`.

# %% [markdown] id="exercise-top-p-why" lang="zh" of="65dad1db"
# **2.** 为普通列表写 top-p：`probabilities` 已从高到低排序。返回保留多少个 token：总和达到 `top_p` 所需的最少个数。

# %% id="exercise-top-p" tags=["exercise"]


def kept_by_top_p(probabilities, top_p):
    return ...  # your code


checks.check_top_p(kept_by_top_p)

# %% [markdown] id="exercise-top-p-solution"
# <details><summary>Solution</summary>
#
# ```python
# def kept_by_top_p(probabilities, top_p):
#     total = 0
#     for kept, probability in enumerate(probabilities, 1):
#         total += probability
#         if total >= top_p:
#             return kept
#     return len(probabilities)
# ```
#
# </details>

# %% [markdown] id="exercise-top-p-solution" lang="zh" of="8cd9bfe5"
# <details><summary>参考答案</summary>
#
# ```python
# def kept_by_top_p(probabilities, top_p):
#     total = 0
#     for kept, probability in enumerate(probabilities, 1):
#         total += probability
#         if total >= top_p:
#             return kept
#     return len(probabilities)
# ```
#
# </details>

# %% [markdown] id="exercise-temperature-why"
# **3.** Return the probabilities that sampling draws from: `logits` has shape (sequences, vocabulary), `temperature` is
# above 0.

# %% [markdown] id="exercise-temperature-why" lang="zh" of="a1a6845c"
# **3.** 返回采样时使用的概率：`logits` 形状为（序列数, 词表大小），`temperature` 大于 0。

# %% id="exercise-temperature" tags=["exercise"]


def with_temperature(logits, temperature):
    return ...  # your code


checks.check_temperature(with_temperature)

# %% [markdown] id="exercise-temperature-solution"
# <details><summary>Solution</summary>
#
# ```python
# def with_temperature(logits, temperature):
#     return (logits / temperature).softmax(dim=-1)
# ```
#
# </details>

# %% [markdown] id="exercise-temperature-solution" lang="zh" of="c409be57"
# <details><summary>参考答案</summary>
#
# ```python
# def with_temperature(logits, temperature):
#     return (logits / temperature).softmax(dim=-1)
# ```
#
# </details>

# %% [markdown] id="exercise-attention-why"
# **4.** Write the attention of one new token and one head: `query` is (size,), the cached `keys` are (tokens, size) and
# `values` (tokens, size).

# %% [markdown] id="exercise-attention-why" lang="zh" of="5ff9fb40"
# **4.** 写出一个新 token 在一个头上的注意力：`query` 是 (size,)，缓存的 `keys` 是 (token 数, size)，`values` 是 (token 数, size)。

# %% id="exercise-attention" tags=["exercise"]


def cached_attention(query, keys, values):
    return ...  # your code


checks.check_cached_attention(cached_attention)

# %% [markdown] id="exercise-attention-solution"
# <details><summary>Solution</summary>
#
# ```python
# def cached_attention(query, keys, values):
#     scores = keys @ query / len(query) ** 0.5
#     return scores.softmax(dim=0) @ values
# ```
#
# </details>

# %% [markdown] id="exercise-attention-solution" lang="zh" of="276f6b19"
# <details><summary>参考答案</summary>
#
# ```python
# def cached_attention(query, keys, values):
#     scores = keys @ query / len(query) ** 0.5
#     return scores.softmax(dim=0) @ values
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
outcomes = {
    "plain_tokens_per_second": plain_tokens_per_second,
    "best_tokens_per_second": best_tokens_per_second,
    "gigabytes_per_second": bandwidth / 1e9,
    "batch16_speedup": batch16_speedup,
    "kv_cache_speedup": kv_cache_speedup,
    "sampling_parity": sampling_parity,
    "batch_equal_share": batch_equal_share,
    "right_padding_equal_share": right_equal_share,
    "int8_extra_loss": loss_int8 - loss_before,
    "static_behind": behind.max().item(),
}
full_size = PROFILE != "smoke"
bands = {
    "sampling_parity": (1, 1),
    "batch_equal_share": (0.95 if full_size else 0.8, 1),
    "right_padding_equal_share": (0, 0.5 if full_size else 0.99),
    "kv_cache_speedup": (1, 100),
    "batch16_speedup": (1, 100),
    "int8_extra_loss": (-0.1, 0.1),
    "static_behind": (0, 0.3),
}
course.record(outcomes, bands)

# %% [markdown] id="next"
# **You keep:** the engine that this machine runs fastest (`ftlab chat --backend auto` finds it again) and a server for it.
#
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`. Run the bandwidth cell there: the roof rises with it. `Int8Linear` falls
# back to plain products there and saves memory, not time.
#
# **Next:** which of two answers is better? [10 · Reward models](10_reward_model.ipynb).

# %% [markdown] id="next" lang="zh" of="5d48aaed"
# **你得到的成果：** 这台机器上最快的引擎（`ftlab chat --backend auto` 会再次找到它），以及用它提供的服务。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`。在那里运行带宽那一格：上限会随带宽升高。`Int8Linear` 在 GPU 上退回普通乘积，省的是内存，不是时间。
#
# **下一课：** 两个回答哪个更好？[10 · 奖励模型](10_reward_model.ipynb)。
