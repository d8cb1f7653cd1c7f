# %% [markdown] id="title"
# # 13 · Mixture of experts
#
# A dense model uses every weight for every token. A mixture of experts has several copies of the widest layer and a router
# that sends each token to a few of them: more weights, hardly more work per token. Here you write the router, prove it
# equal to the library's, turn the course's own model into a mixture, watch where tokens go, see experts lie idle, and
# find out which parts a LoRA adapter really reaches.
#
# | you will have | measured as |
# |---|---|
# | your own mixture layer | largest difference to the library's |
# | the course's model, upcycled | parameters in all and active; largest difference of the logits |
# | balance | idle experts: without a balancing loss, with the library's, with one per layer |
# | an adapter on the right weights | loss after the same steps on attention, experts, router |
#
# **Cost:** about 6 minutes and 4 GB on two CPU cores, 3 minutes on a T4. **Before this:**
# [03 · LoRA](03_lora.ipynb).

# %% [markdown] id="title" lang="zh" of="4352cb7b"
# # 13 · 混合专家（MoE）
#
# 稠密模型处理每个 token 都要用到全部权重。混合专家模型把最宽的一层复制成若干份（专家），再由路由器把每个 token 只送到其中几份：权重变多了，每个 token 的计算量却几乎不变。在这里，你会亲手写路由器，证明它与库的实现相等；把课程自己的模型改造成混合专家；观察 token 去了哪里；看到有的专家闲置；并弄清 LoRA 适配器到底训练到了哪些权重。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 自己写的 MoE 层 | 与库实现的最大差值 |
# | 由课程模型改造成的 MoE | 总参数与激活参数；logits 的最大差值 |
# | 负载均衡 | 闲置专家数：不加均衡损失、用库的、按层计算的 |
# | 训练到正确权重的适配器 | 注意力、专家、路由器各训练同样步数后的损失 |
#
# **耗时与内存：** 两个 CPU 核心上约 6 分钟、4 GB 内存，T4 上约 3 分钟。**先修：** [03 · LoRA](03_lora.ipynb)。

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
import time

import matplotlib.pyplot as plt
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM, set_seed
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

from ftlab import checks, cpu, device, models, plots
from ftlab.apps import course
from ftlab.apps.board import experiment

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own; a Llama-like dense model
num_local_experts = 4  # copies of the MLP in every block
num_experts_per_tok = 2  # copies that a token uses
router_aux_loss_coef = 0.02  # weight of the balancing loss
r = 16  # rank of the adapters
learning_rate = 2e-3
max_steps = 0  # optimizer steps of each adapter; 0: the profile's own
per_device_train_batch_size = 4  # examples per step
seed = 0

# %% id="profile"
profiles = {  # model, optimizer steps of an adapter, validation rows, steps of the small model that balances
    "smoke": ("smollm2-135m-short", 1, 2, 5),
    "cpu": ("smollm2-135m", 20, 24, 60),
    "t4": ("Qwen/Qwen2.5-0.5B-Instruct", 30, 48, 60),
    "a24g": ("Qwen/Qwen2.5-1.5B-Instruct", 40, 96, 60),
}
default_model, default_steps, validation_count, balance_steps = profiles[PROFILE]
model_name = model_name or default_model
max_steps = max_steps or default_steps
set_seed(seed)

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("SFT", ax)
plt.show()

# %% [markdown] id="router-why"
# ## The router
# One small matrix gives every token a score for every expert. The best `k` are used; their scores become weights that add
# up to 1. Three tokens, four experts, two of them used:

# %% [markdown] id="router-why" lang="zh" of="4bffb1ab"
# ## 路由器
# 一个小矩阵为每个 token 给每个专家打分。取分数最高的 `k` 个，再把它们的分数归一化为和为 1 的权重。三个 token，四个专家，每次用两个：


# %% id="router"
def route(scores, k):
    """Return the chosen experts and their weights, each (tokens, k), from scores (tokens, experts)."""
    values, chosen = scores.softmax(-1).topk(k)
    return chosen, values / values.sum(-1, keepdim=True)


scores = torch.tensor([[2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 3.0, 3.0], [0.0, 1.0, 0.0, 5.0]])
for token, (chosen, weights) in enumerate(zip(*route(scores, 2), strict=True)):
    print(f"token {token}: experts {chosen.tolist()}, weights {[round(weight, 2) for weight in weights.tolist()]}")

# %% [markdown] id="layer-why"
# ### Ten lines
# Each expert sees only the tokens that chose it. `gate_up` holds two matrices of the gated MLP below each other, as the
# library stores them.

# %% [markdown] id="layer-why" lang="zh" of="bf75f0b6"
# ### 十行代码
# 每个专家只看到选中它的 token。`gate_up` 把门控 MLP 的两个矩阵上下拼在一起，与库的存法相同。


# %% id="layer"
def mixture(x, router, gate_up, down, k):  # x: (tokens, hidden); gate_up: (experts, 2 * width, hidden)
    chosen, weights = route(x @ router.T, k)
    output = torch.zeros_like(x)
    for expert in range(len(router)):
        token, place = torch.where(chosen == expert)
        gate, up = (x[token] @ gate_up[expert].T).chunk(2, dim=-1)
        answer = (F.silu(gate) * up) @ down[expert].T
        output.index_add_(0, token, weights[token, place, None] * answer)
    return output


# %% id="layer-parity"
tiny = MixtralConfig(hidden_size=32, intermediate_size=48, num_local_experts=5, num_experts_per_tok=2)
block = MixtralSparseMoeBlock(tiny)
for parameter in block.parameters():
    nn.init.normal_(parameter, std=0.2)
x = torch.randn(2, 7, 32)
with torch.no_grad():
    mine = mixture(x.flatten(0, 1), block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj, 2)
    layer_max_abs_diff = (block(x).flatten(0, 1) - mine).abs().max().item()
print(f"largest difference to the library's layer: {layer_max_abs_diff:.1e}")
assert layer_max_abs_diff <= 1e-5

# %% [markdown] id="switch-why"
# With `k = 1` this is the Switch Transformer (Fedus et al. 2021), with `k = 2` Mixtral (Jiang et al. 2024). Switch also gives
# every expert a *capacity*: tokens above it are not processed, they pass by on the residual path. That keeps every
# device's work equal and loses tokens where the router is uneven.

# %% [markdown] id="switch-why" lang="zh" of="088891ee"
# `k = 1` 就是 Switch Transformer（Fedus et al. 2021），`k = 2` 就是 Mixtral（Jiang et al. 2024）。Switch 还给每个专家规定*容量*：超出的 token 不处理，直接走残差通路。这样各设备的工作量相等，但路由不均时会丢 token。


# %% id="switch"
def dropped_share(chosen, experts, capacity_factor):
    """Return the share of token-expert pairs that exceed an expert's capacity; chosen: (tokens, k)."""
    capacity = int(capacity_factor * chosen.numel() / experts)
    counts = torch.bincount(chosen.flatten(), minlength=experts)
    return (counts - capacity).clamp(min=0).sum().item() / chosen.numel()


uneven = torch.randn(1000, 8) + torch.tensor([2.0, 1.0, 0, 0, 0, 0, 0, 0])
for factor in (1.0, 1.25, 2.0):
    print(f"capacity factor {factor}: {dropped_share(route(uneven, 1)[0], 8, factor):.0%} of the tokens are dropped")

# %% [markdown] id="upcycle-why"
# ## Upcycle a dense model
# Every expert starts as a copy of the trained MLP, the router at random (Komatsuzaki et al. 2023). The weights add up to
# 1 and all experts say the same, so that the mixture must give the dense model's own logits.
#
# **Predict before you run:** with 4 experts of which 2 are used, how many times the dense model's weights does the mixture
# have, and how many times are *used* for one token?

# %% [markdown] id="upcycle-why" lang="zh" of="34fee50c"
# ## 把稠密模型改造成 MoE（upcycling）
# 每个专家都从训练好的 MLP 复制而来，路由器随机初始化（Komatsuzaki et al. 2023）。权重之和为 1，而所有专家的输出相同，所以 MoE 的 logits 必须与稠密模型一致。
#
# **先预测，再运行：** 4 个专家、每次用 2 个，MoE 的权重总数是稠密模型的几倍？处理一个 token 用到的又是几倍？

# %% id="predict"
guess_total = 4.0  # your guess: all weights, as a multiple of the dense model's
guess_active = 2.0  # your guess: weights used for one token

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
where = "cuda" if on_gpu else "cpu"
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)
dense = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, device_map=where)


# %% id="upcycle"
def upcycled(dense):
    shared = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shared += ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    shared += ("rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id")
    config = MixtralConfig(
        **{name: getattr(dense.config, name) for name in shared if hasattr(dense.config, name)},
        num_local_experts=num_local_experts,
        num_experts_per_tok=num_experts_per_tok,
        router_aux_loss_coef=router_aux_loss_coef,
        sliding_window=None,
    )
    set_seed(seed)
    mixture_model = MixtralForCausalLM(config).to(where)
    missing = mixture_model.load_state_dict(dense.state_dict(), strict=False).missing_keys
    with torch.no_grad():
        for old, new in zip(dense.model.layers, mixture_model.model.layers, strict=True):
            gate_up = torch.cat([old.mlp.gate_proj.weight, old.mlp.up_proj.weight])
            new.mlp.experts.gate_up_proj.copy_(gate_up.expand_as(new.mlp.experts.gate_up_proj))
            new.mlp.experts.down_proj.copy_(old.mlp.down_proj.weight.expand_as(new.mlp.experts.down_proj))
    print(
        f"{len(missing)} tensors were not in the dense model: routers and experts of {config.num_hidden_layers} blocks"
    )
    return mixture_model


moe = upcycled(dense)
moe.generation_config = dense.generation_config

# %% id="same"
chat = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt").to(
    where
)
with torch.inference_mode():
    difference = (moe(**inputs).logits - dense(**inputs).logits).abs().max().item()
    scale = dense(**inputs).logits.abs().max().item()
    answer = moe.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
print(f"largest difference of the logits: {difference:.1e}, of {scale:.0f}")
print(tokenizer.decode(answer, skip_special_tokens=True))
assert difference <= 1e-3

# %% id="count"
total = sum(parameter.numel() for parameter in moe.parameters())
experts = sum(p.numel() for name, p in moe.named_parameters() if ".experts." in name)
active = total - experts + experts * num_experts_per_tok // num_local_experts
dense_total = dense.num_parameters()
print(f"dense    {dense_total:>13,}")
print(f"mixture  {total:>13,} in all, {active:>13,} used for one token")

# %% id="answer-count"
print(
    f"you predicted {guess_total} and {guess_active} times; measured {total / dense_total:.2f} and {active / dense_total:.2f}"
)

# %% [markdown] id="count-read"
# Attention, embeddings and norms exist once; only the MLPs are multiplied. That is why a model called 8x7B does not have
# 56 billion weights. All of them must be in memory, though: the saving is in the work per token.

# %% [markdown] id="count-read" lang="zh" of="dcc729e1"
# 注意力、嵌入和归一化只有一份，复制的只是 MLP。所以名叫 8x7B 的模型并没有 560 亿参数。但所有权重都要放进内存：省下的是每个 token 的计算量。

# %% id="speed"
long_inputs = {"input_ids": torch.randint(0, 1000, (1, 256), device=where)}
for name, one in (("dense", dense), ("mixture", moe)):
    with torch.inference_mode():
        one(**long_inputs)
        started = time.perf_counter()
        one(**long_inputs)
    print(
        f"{name:<8} {one.get_memory_footprint() / 2**20:>6.0f} MiB, 256 tokens in {time.perf_counter() - started:.2f} s"
    )

# %% [markdown] id="train-why"
# ## Which weights should an adapter reach?
# The copies must become different, or the mixture is a dense model that costs more. Three LoRA adapters, the same steps:
# on attention, on the experts, on the router. The experts are plain tensors and not `nn.Linear` layers, so PEFT finds them by
# `target_parameters`.

# %% [markdown] id="train-why" lang="zh" of="cd6d59ed"
# ## 适配器应该训练哪些权重？
# 各个副本必须变得不同，否则 MoE 只是一个更费的稠密模型。三个 LoRA 适配器，步数相同：分别放在注意力、专家、路由器上。专家是普通张量，不是 `nn.Linear` 层，所以要用 PEFT 的 `target_parameters` 来指定。

# %% id="data"
orders = load_dataset("json", data_files={"train": "data/orders_train.jsonl", "eval": "data/orders_eval.jsonl"})


def to_example(row):
    chat = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    answer = tokenizer(row["output"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [tokenizer.pad_token_id] * (width - len(row["input_ids"])) for row in rows]
    labels = [row["labels"] + [-100] * (width - len(row["labels"])) for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    return {
        name: torch.tensor(x, device=where)
        for name, x in zip(("input_ids", "labels", "attention_mask"), (ids, labels, mask), strict=True)
    }


train_rows = [to_example(row) for row in orders["train"].select(range(max_steps * per_device_train_batch_size))]
validation = [to_example(row) for row in orders["eval"].select(range(validation_count))]


# %% id="train"
def train(model, steps=max_steps):
    """Train what requires a gradient, one batch after another; return the mean loss on the validation rows."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    model.train()
    for step in range(steps):
        batch = collate(train_rows[step * per_device_train_batch_size : (step + 1) * per_device_train_batch_size])
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return validation_loss(model)


@torch.inference_mode()
def validation_loss(model):
    model.eval()
    return sum(model(**collate(validation[i : i + 8])).loss.item() for i in range(0, len(validation), 8)) / max(
        1, -(-len(validation) // 8)
    )


targets = {
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "experts": {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    "router": {"target_modules": [], "target_parameters": ["mlp.gate.weight"]},
}
moe = moe.to(getattr(torch, dtype))
losses, trainable = {"before": validation_loss(moe)}, {"before": 0}
for name, target in targets.items():
    set_seed(seed)
    candidate = get_peft_model(
        moe, LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=0.0, task_type="CAUSAL_LM", **target)
    )
    trainable[name] = candidate.get_nb_trainable_parameters()[0]
    started = time.perf_counter()
    losses[name] = train(candidate)
    seconds = time.perf_counter() - started
    print(
        f"{name:<10} {trainable[name]:>12,} trained, validation loss {losses['before']:.3f} -> {losses[name]:.3f}, {seconds:.0f} s"
    )
    moe = candidate.unload()

# %% id="train-plot"
fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
ax.barh(list(losses), list(losses.values()), color=["#888", "#0072b2", "#009e73", "#e69f00"])
ax.invert_yaxis()
ax.set(xlabel="validation loss per answer token", title=f"Which weights learn orders in {max_steps} steps?")
plt.show()

# %% [markdown] id="train-read"
# As long as all experts are copies, it makes no difference which of them a token is sent to: compare the router's line with
# the loss before. A router has something to learn only once the experts differ.

# %% [markdown] id="train-read" lang="zh" of="3ad3ab9e"
# 只要所有专家还是同一份拷贝，token 送到哪个专家都一样：把路由器那一行与训练前的损失比较。专家之间有了差别，路由器才有东西可学。

# %% [markdown] id="break-why"
# ## What goes wrong: experts silently frozen
# An old recipe names the layers of a dense model: `gate_proj`, `up_proj`, `down_proj`. Here these names belong to nothing that
# PEFT can adapt, and with `q_proj` beside them there is no error: the MLPs stay frozen. Count what is trained, by kind.

# %% [markdown] id="break-why" lang="zh" of="01f1d151"
# ## 故意出错：专家悄悄被冻结
# 旧配方里写的是稠密模型的层名：`gate_proj`、`up_proj`、`down_proj`。在这里 PEFT 找不到叫这些名字的层，而旁边还有 `q_proj`，所以不会报错：MLP 一直是冻结的。按类别数一数训练了什么。


# %% id="break"
def trained_by_kind(model):
    kinds = {"attention": "self_attn", "experts": ".experts.", "router": ".gate."}
    counts = dict.fromkeys(kinds, 0)
    for name, parameter in model.named_parameters():
        for kind, part in kinds.items():
            counts[kind] += parameter.numel() * (parameter.requires_grad and part in name)
    return counts


recipes = {
    "dense names": {"target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]},
    "with target_parameters": {
        "target_modules": ["q_proj", "v_proj"],
        **{k: v for k, v in targets["experts"].items() if v},
    },
}
counts = {}
for name, target in recipes.items():
    candidate = get_peft_model(moe, LoraConfig(r=r, lora_dropout=0.0, task_type="CAUSAL_LM", **target))
    counts[name] = trained_by_kind(candidate)
    print(f"{name:<24} {counts[name]}")
    moe = candidate.unload()

# %% [markdown] id="balance-why"
# ## Idle experts, and the loss that balances
# A router that starts slightly uneven trains the experts it prefers, which makes it prefer them more. The auxiliary loss
# (Fedus et al. 2021, eq. 4) multiplies, for each expert, the share of tokens that it gets by its mean probability:
# smallest when both are even. A small mixture, trained from scratch on the orders, in three ways: without it; with the
# library's, which *pools* the tokens of all layers; and with the same formula for each layer on its own.

# %% [markdown] id="balance-why" lang="zh" of="b28beef7"
# ## 闲置的专家，以及均衡损失
# 路由器开始时稍有不均，就会多训练它偏爱的专家，于是更加偏爱。辅助损失（Fedus et al. 2021，式 4）对每个专家计算：分到的 token 比例 × 平均概率，两者都均匀时最小。下面用订单数据从零训练一个小 MoE，三种做法：不加；用库里的，它把所有层的 token *合在一起*算；用同一公式逐层计算。


# %% id="balance-loss"
def balancing_loss(layer_logits, k):
    """Return experts x sum over experts of (share of tokens x mean probability), of one layer's logits (tokens, experts)."""
    probabilities = layer_logits.float().softmax(-1)
    chosen = probabilities.topk(k).indices
    share = F.one_hot(chosen, layer_logits.shape[-1]).sum(1).float().mean(0)
    return layer_logits.shape[-1] * (share * probabilities.mean(0)).sum()


logits = tuple(torch.randn(50, 8) for _ in range(3))
pooled = balancing_loss(torch.cat(logits), 2)
balance_max_abs_diff = (pooled - load_balancing_loss_func(logits, 8, 2)).abs().item()
print(f"pooled over layers: {pooled:.4f}, difference to the library's {balance_max_abs_diff:.1e}")
assert balance_max_abs_diff <= 1e-4

# %% id="balance"
small_config = MixtralConfig(
    vocab_size=moe.config.vocab_size,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=8,
    num_experts_per_tok=2,
    router_aux_loss_coef=router_aux_loss_coef,
    sliding_window=None,
    pad_token_id=tokenizer.pad_token_id,
)
texts = collate([to_example(row) for row in orders["train"].select(range(32))])


def loads(router_logits, k):
    """Return the share of its tokens that each expert gets, (layers, experts)."""
    chosen = [logits.topk(k).indices for logits in router_logits]
    return torch.stack(
        [
            torch.bincount(one.flatten(), minlength=logits.shape[-1]) / one.numel()
            for one, logits in zip(chosen, router_logits, strict=True)
        ]
    )


def balanced(kind):
    set_seed(seed)
    small = MixtralForCausalLM(small_config).to(where)
    optimizer = torch.optim.AdamW(small.parameters(), lr=3e-3)
    for _ in range(balance_steps):
        output = small(**texts | {"labels": texts["input_ids"]}, output_router_logits=True)
        loss = output.loss - router_aux_loss_coef * output.aux_loss  # the language model's alone
        if kind == "pooled":
            loss = loss + router_aux_loss_coef * output.aux_loss
        elif kind == "per layer":
            loss = loss + router_aux_loss_coef * sum(balancing_loss(one, 2) for one in output.router_logits)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.inference_mode():
        return loads(small(**texts, output_router_logits=True).router_logits, 2)


shares = {kind: balanced(kind) for kind in ("none", "pooled", "per layer")}
idle = {kind: (share < 0.25 / share.shape[-1]).sum(-1).tolist() for kind, share in shares.items()}
for kind, counts_of_layers in idle.items():
    print(f"{kind:<10} experts with less than a quarter of their share, by layer: {counts_of_layers}")

# %% id="balance-plot"
fig, axes = plt.subplots(1, 3, figsize=(11, 2.6), layout="constrained")
for ax, (kind, share) in zip(axes, shares.items(), strict=True):
    image = ax.imshow(100 * share, cmap="viridis", vmin=0, vmax=40)
    ax.set(xlabel="expert", ylabel="layer", title=f"balancing: {kind}")
fig.colorbar(image, ax=axes, label="tokens, %")
plt.show()

# %% id="balance-read"
print(
    f"idle experts in all layers: none {sum(idle['none'])}, pooled {sum(idle['pooled'])}, per layer {sum(idle['per layer'])}"
)

# %% [markdown] id="balance-text"
# Where the pooled loss leaves experts idle, look at its heat map: different layers prefer *different* experts, and pooled
# over layers that looks even. In transformers the loss joins only with `output_router_logits=True`.

# %% [markdown] id="balance-text" lang="zh" of="4f12c5a3"
# 如果合并计算的损失仍然留下闲置专家，看它的热力图：不同的层偏爱*不同*的专家，合在一起看就显得均匀。在 transformers 里，只有设了 `output_router_logits=True`，这项损失才会加进去。

# %% [markdown] id="experiment-why"
# ## Experiment
# How uneven may a router be? Set how strongly it prefers some experts, how many a token uses and the capacity.

# %% [markdown] id="experiment-why" lang="zh" of="ac36902b"
# ## 动手试一试
# 路由器可以有多不均匀？设定它的偏好强度、每个 token 用几个专家，以及容量。


# %% id="experiment"
def draw(num_experts_per_tok, preference, capacity_factor):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2000, 8, generator=generator) + preference * torch.linspace(1, 0, 8)
    chosen = route(scores, num_experts_per_tok)[0]
    counts = torch.bincount(chosen.flatten(), minlength=8)
    _, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
    ax.bar(range(8), counts, color="#0072b2")
    ax.axhline(capacity_factor * chosen.numel() / 8, linestyle="--", color="#d55e00", label="capacity")
    ax.set(xlabel="expert", ylabel="tokens", title="Who gets the tokens, and how many are dropped?")
    ax.legend()
    plt.show()
    loss = balancing_loss(scores, num_experts_per_tok) / num_experts_per_tok
    print(f"dropped {dropped_share(chosen, 8, capacity_factor):.0%}; balancing loss {loss:.2f}, even: 1.00")


experiment.show(draw, num_experts_per_tok=(1, 4, 1), preference=(0.0, 4.0, 0.5), capacity_factor=(0.5, 3.0, 0.25))

# %% [markdown] id="exercise-active-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 13`
# checks your saved copy of the whole lesson.
#
# **1.** A model has 2 billion weights outside its experts, and 8 experts of 5 billion each (over all layers), 2 of them used
# for a token. How many weights are used for one token?

# %% [markdown] id="exercise-active-why" lang="zh" of="2c1932d0"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 13` 检查你保存的整课练习。
#
# **1.** 某模型专家之外有 20 亿个权重，另有 8 个专家，每个（所有层合计）50 亿，每个 token 用其中 2 个。处理一个 token 用到多少个权重？

# %% id="exercise-active" tags=["exercise"]
active_parameters = ...  # your answer

checks.check_active_parameters(active_parameters)

# %% [markdown] id="exercise-active-solution"
# <details><summary>Solution</summary>
#
# ```python
# active_parameters = 2e9 + 2 * 5e9
# ```
#
# </details>

# %% [markdown] id="exercise-active-solution" lang="zh" of="9d0c5bac"
# <details><summary>参考答案</summary>
#
# ```python
# active_parameters = 2e9 + 2 * 5e9
# ```
#
# </details>

# %% [markdown] id="exercise-weights-why"
# **2.** From scores (tokens, experts), return the weights of all experts, (tokens, experts): 0 for those not among the best
# `k`, and the others adding up to 1, in proportion to their softmax.

# %% [markdown] id="exercise-weights-why" lang="zh" of="f1cf79ce"
# **2.** 由分数 (token 数, 专家数) 返回所有专家的权重 (token 数, 专家数)：不在前 `k` 名的为 0，其余按 softmax 成比例，和为 1。

# %% id="exercise-weights" tags=["exercise"]


def router_weights(scores, k):
    return ...  # your code


print(router_weights(torch.tensor([[1.0, 1.0, 0.0]]), 2))  # 0.5, 0.5, 0 once it is right

checks.check_router_weights(router_weights)

# %% [markdown] id="exercise-weights-solution"
# <details><summary>Solution</summary>
#
# ```python
# def router_weights(scores, k):
#     values, chosen = scores.topk(k)
#     return torch.zeros_like(scores).scatter(1, chosen, values.softmax(-1))
# ```
#
# </details>

# %% [markdown] id="exercise-weights-solution" lang="zh" of="a4c150c6"
# <details><summary>参考答案</summary>
#
# ```python
# def router_weights(scores, k):
#     values, chosen = scores.topk(k)
#     return torch.zeros_like(scores).scatter(1, chosen, values.softmax(-1))
# ```
#
# </details>

# %% [markdown] id="exercise-balance-why"
# **3.** Write the balancing loss for `k = 1`: `probabilities` is (tokens, experts). Return experts times the sum, over experts, of
# the share of tokens whose largest probability it has, times its mean probability.

# %% [markdown] id="exercise-balance-why" lang="zh" of="742e24fc"
# **3.** 写出 `k = 1` 时的均衡损失：`probabilities` 是 (token 数, 专家数)。返回专家数 ×（对每个专家：以它为最大概率的 token 比例 × 它的平均概率）之和。

# %% id="exercise-balance" tags=["exercise"]


def switch_loss(probabilities):
    return ...  # your code


print(switch_loss(torch.tensor([[0.9, 0.1], [0.2, 0.8]])))  # 1 once it is right, since both experts get half
checks.check_switch_loss(switch_loss)

# %% [markdown] id="exercise-balance-solution"
# <details><summary>Solution</summary>
#
# ```python
# def switch_loss(probabilities):
#     experts = probabilities.shape[-1]
#     share = F.one_hot(probabilities.argmax(-1), experts).float().mean(0)
#     return experts * (share * probabilities.mean(0)).sum()
# ```
#
# </details>

# %% [markdown] id="exercise-balance-solution" lang="zh" of="ac307a39"
# <details><summary>参考答案</summary>
#
# ```python
# def switch_loss(probabilities):
#     experts = probabilities.shape[-1]
#     share = F.one_hot(probabilities.argmax(-1), experts).float().mean(0)
#     return experts * (share * probabilities.mean(0)).sum()
# ```
#
# </details>

# %% [markdown] id="exercise-dropped-why"
# **4.** `experts` lists the expert of every token, in order; each takes at most `capacity` tokens. Return how many tokens are
# dropped.

# %% [markdown] id="exercise-dropped-why" lang="zh" of="8c401a75"
# **4.** `experts` 按顺序列出每个 token 的专家；每个专家最多接收 `capacity` 个 token。返回被丢弃的 token 数。

# %% id="exercise-dropped" tags=["exercise"]


def dropped_tokens(experts, capacity):
    return ...  # your code


print(dropped_tokens([0, 0, 0, 1], 2))  # 1 once it is right

checks.check_dropped_tokens(dropped_tokens)

# %% [markdown] id="exercise-dropped-solution"
# <details><summary>Solution</summary>
#
# ```python
# def dropped_tokens(experts, capacity):
#     return sum(max(0, experts.count(expert) - capacity) for expert in set(experts))
# ```
#
# </details>

# %% [markdown] id="exercise-dropped-solution" lang="zh" of="4d8387b2"
# <details><summary>参考答案</summary>
#
# ```python
# def dropped_tokens(experts, capacity):
#     return sum(max(0, experts.count(expert) - capacity) for expert in set(experts))
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
outcomes = {
    "layer_max_abs_diff": layer_max_abs_diff,
    "upcycled_max_abs_diff": difference,
    "total_share": total / dense_total,
    "active_share": active / dense_total,
    "loss_before": losses["before"],
    "loss_attention": losses["attention"],
    "loss_experts": losses["experts"],
    "loss_router": losses["router"],
    "frozen_experts": counts["dense names"]["experts"],
    "idle_none": sum(idle["none"]),
    "idle_pooled": sum(idle["pooled"]),
    "idle_per_layer": sum(idle["per layer"]),
}
bands = {
    "upcycled_max_abs_diff": (0, 1e-3),
    "frozen_experts": (0, 0),
    "idle_none": (3, 32),
    "idle_per_layer": (0, 2),
}
course.record(outcomes, bands if PROFILE == "cpu" else {})

# %% [markdown] id="next"
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`. A Mixtral or Qwen MoE loads with the same calls; `ftlab memory` tells what it takes.
#
# **Before or after this:** [09 · Inference](09_inference.ipynb) measures what decides the speed of any of these models.

# %% [markdown] id="next" lang="zh" of="6f1a5a3b"
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`。Mixtral、Qwen MoE 用同样的调用加载；要多少内存，用 `ftlab memory` 查。
#
# **相关课程：** [09 · 推理](09_inference.ipynb) 测量了决定这些模型速度的因素。
