# %% [markdown] id="title"
# # 13 · Mixture of experts
#
# A dense model uses every weight for every token. A mixture of experts (MoE) has several copies of the widest layer and a
# router that sends each token to a few of them: more weights, hardly more work per token. Here you write the router,
# prove it equal to the library's, turn the course's own model into a mixture, see where tokens go and which experts lie
# idle, and find out which weights a LoRA adapter really reaches.
#
# | you will have | measured as |
# |---|---|
# | your own Mixtral layer and Switch layer | largest difference to the library's |
# | the course's model as a mixture, with the same answers | largest difference of the logits; parameters in all and active; memory; speed |
# | a balanced router | idle experts per layer: without a balancing loss, with the library's, with one per layer |
# | adapters on attention, experts and router, one of them merged in `runs/13_moe/merged` | tensors changed, validation loss |
#
# **Cost:** about 6 minutes and 8 GB on two CPU cores, an estimated 3 minutes on a T4. **Before this:**
# [03 · LoRA](03_lora.ipynb).

# %% [markdown] id="title" lang="zh" of="82ae5068"
# # 13 · 混合专家（MoE）
#
# 稠密模型处理每个 token 都要用到全部权重。混合专家模型（mixture of experts，MoE）把最宽的那一层复制成若干份，称为专家，再由路由器把每个 token 只送到其中几份：权重变多了，每个 token 的计算量却增加不多。在这一课里，你会亲手写路由器，证明它与库的实现一致；把课程自己的模型改造成 MoE；看 token 去了哪里、哪些专家闲着；并弄清 LoRA 适配器到底训练了哪些权重。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 自己写的 Mixtral 层与 Switch 层 | 与库实现的最大差值 |
# | 改造成 MoE 的课程模型，回答不变 | logits 的最大差值；总参数与激活参数；内存；速度 |
# | 负载均衡的路由器 | 每层闲置的专家数：不加均衡损失、用库的、逐层计算的 |
# | 训练注意力、专家、路由器的适配器，其中一个已合并到 `runs/13_moe/merged` | 哪些张量变了；验证损失 |
#
# **耗时与内存：** 两个 CPU 核心上约 6 分钟、8 GB 内存，T4 上估计 3 分钟。**先修：** [03 · LoRA](03_lora.ipynb)。

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
import statistics
import time

import matplotlib.pyplot as plt
import torch
from datasets import load_dataset
from IPython.display import Markdown
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    MistralConfig,
    MixtralConfig,
    MixtralForCausalLM,
    MixtralModel,
    SwitchTransformersConfig,
    set_seed,
)
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from ftlab import checks, cpu, models, plots
from ftlab.apps import course
from ftlab.apps.board import experiment

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own; a dense Llama model without biases
num_local_experts = 4  # copies of the MLP in every block
num_experts_per_tok = 2  # copies that a token uses
router_aux_loss_coef = 0.1  # weight of the balancing loss; high, because the runs here are short
r = 8  # rank of the adapters
learning_rate = 2e-3
max_steps = 0  # optimizer steps of each adapter; 0: the profile's own
per_device_train_batch_size = 4  # examples per step
seed = 0

# %% id="profile"
profiles = {  # model, optimizer steps of an adapter, validation rows, steps of the small model that balances
    "smoke": ("smollm2-135m-short", 1, 2, 3),
    "cpu": ("smollm2-135m", 12, 24, 60),
    "t4": ("smollm2-135m", 40, 48, 60),
    "a24g": ("smollm2-360m", 40, 96, 60),
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
# One small matrix gives every token a score for every expert. The best `k` experts are used, and their softmax
# probabilities, scaled to add up to 1, are the weights of their answers. Three tokens, four experts, two of them used:

# %% [markdown] id="router-why" lang="zh" of="ba452625"
# ## 路由器
# 一个小矩阵给每个 token 对每个专家打分。只用分数最高的 `k` 个专家；它们的 softmax 概率缩放到和为 1，就是各自输出的权重。三个 token，四个专家，每次用两个：


# %% id="router"
def route(scores, k):
    """Return the chosen experts and their weights, each (tokens, k), from scores (tokens, experts)."""
    values, chosen = scores.softmax(-1).topk(k)
    return chosen, values / values.sum(-1, keepdim=True)


scores = torch.tensor([[2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 3.0, 3.0], [0.0, 1.0, 0.0, 5.0]])
for token, (chosen, weights) in enumerate(zip(*route(scores, 2), strict=True)):
    print(f"token {token}: experts {chosen.tolist()}, weights {[round(weight, 2) for weight in weights.tolist()]}")

# %% [markdown] id="layer-why"
# ### Mixtral's layer in ten lines
# Each expert sees only the tokens that chose it. `gate_up` stacks the two input matrices of the gated MLP, as the library
# stores them. The proof is the library's own layer with random weights, for `k` = 1, 2 and 3.

# %% [markdown] id="layer-why" lang="zh" of="49fbaf43"
# ### 十行写出 Mixtral 的层
# 每个专家只看到选中它的 token。`gate_up` 把门控 MLP 的两个输入矩阵上下拼在一起，与库的存法相同。验证方法：拿库自己的层，随机赋值，`k` 取 1、2、3，逐一比较。


# %% id="layer"
def mixture(x, router, gate_up, down, k):
    """Return the output for x (tokens, hidden); gate_up (experts, 2 * width, hidden), down (experts, hidden, width)."""
    chosen, weights = route(x @ router.T, k)
    output = torch.zeros_like(x)
    for expert in range(len(router)):
        token, place = torch.where(chosen == expert)
        gate, up = (x[token] @ gate_up[expert].T).chunk(2, dim=-1)
        answer = (F.silu(gate) * up) @ down[expert].T
        output.index_add_(0, token, weights[token, place, None] * answer)
    return output


# %% id="layer-parity"
layer_max_abs_diff = 0.0
x = torch.randn(2, 7, 32)
for k in (1, 2, 3):
    sizes = MixtralConfig(hidden_size=32, intermediate_size=48, num_local_experts=5, num_experts_per_tok=k)
    sizes._experts_implementation = "eager"  # a plain loop over the experts
    block = MixtralSparseMoeBlock(sizes)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        mine = mixture(x.flatten(0, 1), block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj, k)
        difference = (block(x).flatten(0, 1) - mine).abs().max().item()
    print(f"k = {k}: largest difference to the library's layer {difference:.1e}")
    layer_max_abs_diff = max(layer_max_abs_diff, difference)
assert layer_max_abs_diff <= 1e-5

# %% [markdown] id="switch-why"
# ### Switch: one expert, and a capacity
# The Switch Transformer (Fedus et al. 2021) uses one expert per token, Mixtral (Jiang et al. 2024) two. Two details differ.
# Scaled to add up to 1, a single weight would always be 1 and the router would get no gradient, so Switch keeps the
# probability itself. And every expert has a *capacity*: tokens that come after it is full are dropped, they only keep the
# residual path. That makes the work of every device equal, and loses tokens where the router is uneven.

# %% [markdown] id="switch-why" lang="zh" of="9fa60246"
# ### Switch：单个专家与容量
# Switch Transformer（Fedus 等 2021）每个 token 用一个专家，Mixtral（Jiang 等 2024）用两个。两处细节不同：只有一个权重时，若缩放到和为 1，它永远是 1，路由器得不到梯度，所以 Switch 直接用概率本身作权重；另外，每个专家有*容量*（capacity），专家满了之后再来的 token 会被丢弃，只走残差通路。这样各设备的工作量相等，但路由不均时会丢 token。


# %% id="switch"
def switch(x, router, experts, capacity):
    """Return the layer's output for x (batch, tokens, hidden), and which tokens found a place (batch, tokens)."""
    weight, chosen = (x @ router.T).softmax(-1).max(-1)
    # The rank of each token among those that chose the same expert: 1 for the first.
    place = F.one_hot(chosen, len(router)).cumsum(1).gather(-1, chosen[..., None]).squeeze(-1)
    output, kept = torch.zeros_like(x), place <= capacity
    for number, expert in enumerate(experts):
        mine = kept & (chosen == number)
        output[mine] = weight[mine][:, None] * expert(x[mine])
    return output, kept


sizes = SwitchTransformersConfig(d_model=32, d_ff=48, num_experts=5, expert_capacity=2)
block = SwitchTransformersSparseMLP(sizes).eval()
for parameter in block.parameters():
    nn.init.normal_(parameter, std=0.2)
x = torch.randn(2, 12, 32)
with torch.no_grad():
    mine, kept = switch(x, block.router.classifier.weight, block.experts.values(), sizes.expert_capacity)
    switch_max_abs_diff = (block(x) - mine).abs().max().item()
print(
    f"{(~kept).sum()} of {kept.numel()} tokens dropped; largest difference to the library's {switch_max_abs_diff:.1e}"
)
assert switch_max_abs_diff <= 1e-5


# %% id="capacity"
def dropped_share(chosen, experts, capacity_factor):
    """Return the share of token-expert pairs that exceed an expert's capacity; chosen: (tokens, k)."""
    capacity = int(capacity_factor * chosen.numel() / experts)
    counts = torch.bincount(chosen.flatten(), minlength=experts)
    return (counts - capacity).clamp(min=0).sum().item() / chosen.numel()


uneven = torch.randn(1000, 8) + torch.tensor([2.0, 1.0, 0, 0, 0, 0, 0, 0])
print("an uneven router, 1000 tokens, 8 experts; capacity in multiples of an equal share:")
for factor in (1.0, 1.25, 2.0):
    print(f"capacity factor {factor:<4}: {dropped_share(route(uneven, 1)[0], 8, factor):.0%} of the tokens are dropped")

# %% [markdown] id="upcycle-why"
# ## Upcycle a dense model
# Every expert starts as a copy of the trained MLP, the router at random (Komatsuzaki et al. 2023). The weights add up to 1
# and all experts give the same answer, so the mixture must give the dense model's own logits.
#
# **Predict before you run:** with 4 experts, 2 of them used for a token: how many times the dense model's weights does the
# mixture have, and how many times are *used* for one token?

# %% [markdown] id="upcycle-why" lang="zh" of="23f9aeec"
# ## 把稠密模型改造成 MoE（upcycling）
# 每个专家都从训练好的 MLP 复制而来，路由器随机初始化（Komatsuzaki 等 2023）。路由权重之和为 1，所有专家的输出又相同，所以 MoE 的 logits 必须与稠密模型一致。
#
# **先预测，再运行：** 4 个专家，每个 token 用其中 2 个：MoE 的权重总数是稠密模型的几倍？处理一个 token *用到*的又是几倍？

# %% id="predict"
guess_total = 4.0  # your guess: all weights, in multiples of the dense model's
guess_active = 2.0  # your guess: weights used for one token

# %% id="load"
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
where = "cuda" if on_gpu else "cpu"
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)
dense = AutoModelForCausalLM.from_pretrained(
    model_path, dtype=torch.float32, device_map=where
)  # equality needs float32

# %% id="upcycle"
SHARED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SHARED += ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
SHARED += ("rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id")


def upcycled(dense):
    """Return a Mixtral whose experts are copies of a dense model's MLPs; the same router for the same seed."""
    config = MixtralConfig(
        **{name: getattr(dense.config, name) for name in SHARED if hasattr(dense.config, name)},
        num_local_experts=num_local_experts,
        num_experts_per_tok=num_experts_per_tok,
        router_aux_loss_coef=router_aux_loss_coef,
    )
    set_seed(seed)
    model = MixtralForCausalLM(config).to(where)
    model.load_state_dict(dense.state_dict(), strict=False)  # all but the MLPs
    with torch.no_grad():
        for old, new in zip(dense.model.layers, model.model.layers, strict=True):
            gate_up = torch.cat([old.mlp.gate_proj.weight, old.mlp.up_proj.weight])
            new.mlp.experts.gate_up_proj.copy_(gate_up.expand_as(new.mlp.experts.gate_up_proj))
            new.mlp.experts.down_proj.copy_(old.mlp.down_proj.weight.expand_as(new.mlp.experts.down_proj))
    model.generation_config = dense.generation_config
    return model.eval()


moe = upcycled(dense)
for name, weight in moe.model.layers[0].mlp.named_parameters():
    print(f"{name:<22} {tuple(weight.shape)}")

# %% id="same"
chat = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
inputs = inputs.to(where)
with torch.inference_mode():
    expected, logits = dense(**inputs).logits, moe(**inputs).logits
    answer = moe.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
upcycled_max_abs_diff = (logits - expected).abs().max().item()
same_choice = (logits.argmax(-1) == expected.argmax(-1)).float().mean().item()
print(f"logits as large as {expected.abs().max():.0f}, largest difference {upcycled_max_abs_diff:.1e}")
print(f"same next token at {same_choice:.0%} of the positions")
print(f"the mixture answers: {tokenizer.decode(answer, skip_special_tokens=True)}")
assert upcycled_max_abs_diff <= 1e-3 and same_choice == 1


# %% id="count"
def parameters_of(model):
    """Return all weights of a Mixtral, and those that one token uses."""
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    unused = 1 - model.config.num_experts_per_tok / model.config.num_local_experts
    return total, round(total - unused * experts)


total, active = parameters_of(moe)
dense_total = sum(parameter.numel() for parameter in dense.parameters())
print(f"dense    {dense_total:>13,}")
print(f"mixture  {total:>13,} in all, {active:>13,} used for one token")

# %% id="answer-count"
print(f"all weights: you predicted {guess_total} times the dense model's, counted {total / dense_total:.2f}")
print(f"used for one token: you predicted {guess_active}, counted {active / dense_total:.2f}")

# %% [markdown] id="eight-why"
# Attention, embeddings and norms exist once; only the MLPs are multiplied. That is why Mixtral 8x7B does not have 56
# billion weights. `MixtralConfig()` holds its sizes, and on the `meta` device a model has shapes and no memory:

# %% [markdown] id="eight-why" lang="zh" of="a0442e6d"
# 注意力、嵌入和归一化只有一份，复制的只是 MLP，所以 Mixtral 8x7B 并没有 560 亿参数。`MixtralConfig()` 的默认值就是它的尺寸；在 `meta` 设备上，模型只有形状，不占内存：

# %% id="eight"
with torch.device("meta"):
    eight = MixtralForCausalLM(MixtralConfig())
eight_total, eight_active = parameters_of(eight)
print(f"Mixtral 8x7B: {eight_total / 1e9:.1f} billion weights, {eight_active / 1e9:.1f} billion used for one token")
print(f"all of them must be in memory: {2 * eight_total / 2**30:.0f} GiB in bfloat16")

# %% [markdown] id="speed-why"
# ### Memory and speed, predicted and measured
# Memory follows *all* weights: four bytes each in float32. Time follows the *active* ones: a long prompt multiplies them with
# every token, a single token reads them once.

# %% [markdown] id="speed-why" lang="zh" of="2afac4f7"
# ### 内存与速度：预测与实测
# 内存取决于*全部*权重，float32 每个 4 字节。时间取决于*激活*的权重：长提示的每个 token 都要与它们相乘，单个 token 则要把它们读一遍。


# %% id="speed"
@torch.inference_mode()
def seconds(model, tokens):
    """Return the median time of five passes over a row of tokens; a first pass is not counted."""
    row, took = torch.randint(0, 1000, (1, tokens), device=where), []
    for _ in range(6):
        started = time.perf_counter()
        model(input_ids=row).logits[0, -1, 0].item()  # waits for a GPU too
        took.append(time.perf_counter() - started)
    return statistics.median(took[1:])


memory_predicted, memory_measured = 4 * total / 2**20, moe.get_memory_footprint() / 2**20
print(f"memory: predicted {memory_predicted:.0f} MiB, measured {memory_measured:.0f} MiB")
slower = {tokens: seconds(moe, tokens) / seconds(dense, tokens) for tokens in (256, 1)}
for tokens, ratio in slower.items():
    print(
        f"a row of {tokens:>3}: predicted {active / dense_total:.2f} times the dense model's time, measured {ratio:.2f}"
    )

# %% id="speed-read"
Markdown(
    f"The mixture has {total / dense_total:.1f} times the weights. It takes {slower[256]:.1f} times as long for a prompt "
    f"and {slower[1]:.1f} times for a single token. The prediction leaves out the loop over the experts, whose products "
    "are smaller, and everything that is not a matrix product."
)

# %% [markdown] id="texts-why"
# ## Where do tokens go?
# Two kinds of text, English prose and JSON, and for each the share of its tokens that every expert gets, layer by
# layer. The router has not been trained. Still, it may route the two differently, because their hidden states differ.
# To tell a difference from chance, the two halves of the prose are compared as well.

# %% [markdown] id="texts-why" lang="zh" of="c73578ef"
# ## token 去了哪里？
# 两类文本：英文散文与 JSON；对每一类，逐层统计每个专家分到的 token 比例。路由器还没训练过，但它未必对两类文本一视同仁：它看到的是隐藏状态，而两类文本的隐藏状态本来就不同。为了区分真实差异与偶然，把散文的前后两半也比较一次。


# %% id="texts"
def loads(router_logits, k):
    """Return the share of its layer's tokens that each expert gets, (layers, experts)."""
    chosen = [logits.topk(k).indices for logits in router_logits]
    counts = [torch.bincount(one.flatten(), minlength=router_logits[0].shape[-1]) / one.numel() for one in chosen]
    return torch.stack(counts).cpu()


def token_rows(texts):
    """Return the first 512 tokens of texts as eight rows."""
    return torch.tensor(tokenizer("\n".join(texts))["input_ids"][:512], device=where).view(8, 64)


orders = load_dataset("json", data_files={"train": "data/orders_train.jsonl", "eval": "data/orders_eval.jsonl"})
prose = load_dataset("json", data_files="data/corpus_en.jsonl", split="train")
kinds = {"English prose": token_rows(prose["text"]), "JSON": token_rows(orders["train"]["output"])}
with torch.inference_mode():
    heat = {
        kind: loads(moe(input_ids=rows, output_router_logits=True).router_logits, num_experts_per_tok)
        for kind, rows in kinds.items()
    }
    halves = [
        loads(moe(input_ids=rows, output_router_logits=True).router_logits, num_experts_per_tok)
        for rows in kinds["English prose"].split(4)
    ]
# Half the sum of the differences: the share of tokens that would have to move to another expert.
text_gap = ((heat["English prose"] - heat["JSON"]).abs().sum(-1) / 2).mean().item()
chance_gap = ((halves[0] - halves[1]).abs().sum(-1) / 2).mean().item()
print(f"prose against JSON: {text_gap:.0%} of the tokens go elsewhere, mean over layers")
print(f"one half of the prose against the other: {chance_gap:.0%}")

# %% id="texts-plot"
fig, axes = plt.subplots(1, 2, figsize=(9, 1.6 + 0.09 * len(heat["JSON"])), layout="constrained", sharey=True)
highest = 100 * max(share.max().item() for share in heat.values())
for ax, (kind, share) in zip(axes, heat.items(), strict=True):
    image = ax.imshow(100 * share, cmap="viridis", vmin=0, vmax=highest, aspect="auto")
    ax.set(xlabel="expert", xticks=range(num_local_experts), title=f"Which experts read {kind}?")
axes[0].set_ylabel("layer")
fig.colorbar(image, ax=axes, label="tokens of the layer, %")
plt.show()

# %% [markdown] id="balance-why"
# ## Idle experts, and the loss that balances
# A router that starts slightly uneven trains the experts it prefers, and then prefers them more. The auxiliary loss (Fedus
# et al. 2021, equation 4) multiplies, for each expert, the share of tokens that it gets by its mean probability; the sum
# over experts is smallest when both are even. The library computes it on the tokens of all layers *pooled*.

# %% [markdown] id="balance-why" lang="zh" of="a80786c4"
# ## 闲置的专家，以及均衡损失
# 路由器开始时稍有不均，就会多训练它偏爱的专家，然后更加偏爱它们。辅助损失（Fedus 等 2021，式 4）对每个专家计算“分到的 token 比例 × 平均概率”，再对专家求和；两者都均匀时最小。库的实现是把所有层的 token *合在一起*算的。


# %% id="balance-loss"
def balancing_loss(logits, k):
    """Return experts * sum over experts of (share of tokens * mean probability), from logits (tokens, experts)."""
    experts = logits.shape[-1]
    probabilities = logits.float().softmax(-1)
    share = F.one_hot(probabilities.topk(k).indices, experts).sum(1).float().mean(0)
    return experts * (share * probabilities.mean(0)).sum()


layers = tuple(torch.randn(50, 8) for _ in range(3))
pooled = balancing_loss(torch.cat(layers), 2)
balance_max_abs_diff = (pooled - load_balancing_loss_func(layers, 8, 2)).abs().item()
print(f"pooled over three layers: {pooled:.4f}, difference to the library's {balance_max_abs_diff:.1e}")
assert balance_max_abs_diff <= 1e-5

# Layer 0 uses experts 0 and 1 alone, layer 1 experts 2 and 3 alone.
layers = (torch.tensor([[9.0, 9.0, 0.0, 0.0]] * 50), torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 50))
print(f"two layers with two idle experts each, pooled: {balancing_loss(torch.cat(layers), 2):.2f}, the minimum is 2.00")
print(f"each layer on its own: {[round(balancing_loss(layer, 2).item(), 2) for layer in layers]}")

# %% [markdown] id="balance-run-why"
# The pooled loss cannot see this: it is at its minimum although every layer leaves half of its experts idle. Does it
# happen in training? A small mixture learns the bytes of the orders' JSON from scratch, in three ways with equal
# weight on the loss: none, pooled, and the mean of the same formula over layers. An expert counts as idle below a
# quarter of an equal share.

# %% [markdown] id="balance-run-why" lang="zh" of="4430ba20"
# 合并计算看不到这一点：每一层都有一半专家闲着，损失却已经是最小值。训练中真会发生吗？让一个小 MoE 从零学习订单 JSON 的字节，比较三种做法，均衡损失的权重相同：不加、合并计算、对同一公式逐层计算再取平均。分到的 token 不足平均份额四分之一的专家算作闲置。

# %% id="balance"
stream = torch.tensor(list("\n".join(orders["train"]["output"]).encode()), device=where)  # bytes: a vocabulary of 256
small_sizes = MixtralConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=8,
    num_experts_per_tok=2,
    router_aux_loss_coef=0.0,  # added by hand below
)


def balanced(kind):
    """Train a small mixture; return its loads (layers, experts) and its pooled balancing loss."""
    set_seed(seed)
    small = MixtralForCausalLM(small_sizes).to(where)
    optimizer = torch.optim.AdamW(small.parameters(), lr=3e-3)
    for _ in range(balance_steps):
        starts = torch.randint(0, len(stream) - 96, (16, 1))
        batch = stream[(starts + torch.arange(96)).to(where)]
        output = small(input_ids=batch, labels=batch, output_router_logits=True)
        layers = [balancing_loss(logits, 2) for logits in output.router_logits]
        balance = {"none": 0.0, "pooled": output.aux_loss, "per layer": sum(layers) / len(layers)}[kind]
        (output.loss + router_aux_loss_coef * balance).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.inference_mode():
        output = small(input_ids=stream[: 64 * 96].view(64, 96), output_router_logits=True)
    return loads(output.router_logits, 2), output.aux_loss.item()


shares, pooled_losses = {}, {}
for kind in ("none", "pooled", "per layer"):
    shares[kind], pooled_losses[kind] = balanced(kind)
idle = {kind: (share < 0.25 / share.shape[-1]).sum(-1).tolist() for kind, share in shares.items()}
print("idle experts of 8 in layers 0 to 3, and the pooled loss (its minimum is 2):")
for kind, counts in idle.items():
    print(f"{kind:<10} {counts}   {pooled_losses[kind]:.2f}")

# %% id="balance-plot"
fig, axes = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained", sharey=True)
for ax, (kind, share) in zip(axes, shares.items(), strict=True):
    image = ax.imshow(100 * share, cmap="viridis", vmin=0, vmax=50)
    ax.set(xlabel="expert", yticks=range(4), title=f"balancing loss: {kind}")
axes[0].set_ylabel("layer")
fig.suptitle("Who gets the tokens? An equal share is 12.5%")
fig.colorbar(image, ax=axes, label="tokens of the layer, %")
plt.show()

# %% id="balance-read"
Markdown(
    f"Without a balancing loss {sum(idle['none'])} of 32 experts are idle, with the pooled one {sum(idle['pooled'])}, "
    f"with one per layer {sum(idle['per layer'])}. The pooled loss reads {pooled_losses['pooled']:.2f} at the end, and 2 "
    "is the best that it can be: a log of this loss does not show what the heat map shows. Count idle experts per layer."
)

# %% [markdown] id="train-why"
# ## Which weights should an adapter reach?
# Three LoRA adapters on the upcycled model, the same steps on the same orders: on attention, on the experts, on the
# router. The experts and the router are plain tensors and not `nn.Linear` layers; PEFT reaches them with
# `target_parameters`, and `lora_dropout` must be 0 there. In transformers the balancing loss joins the training loss
# only with `output_router_logits=True`; TRL's trainers set it. After merging, every tensor is compared with the
# untrained model: did those that were asked for change, and no others?

# %% [markdown] id="train-why" lang="zh" of="ee23fcfa"
# ## 适配器应该训练哪些权重？
# 在改造后的模型上训练三个 LoRA 适配器，同样的订单、同样的步数：分别放在注意力、专家、路由器上。专家和路由器是普通张量，不是 `nn.Linear` 层，PEFT 要用 `target_parameters` 来指定，而且 `lora_dropout` 必须为 0。在 transformers 里，只有设了 `output_router_logits=True`，均衡损失才会加进训练损失；TRL 的训练器会自动设置。合并之后，把每个张量与未训练的模型逐一比较：该变的变了吗？有没有不该变的变了？


# %% id="data"
def to_example(row):
    chat = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    answer = tokenizer(row["output"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


train_rows = [to_example(row) for row in orders["train"].select(range(max_steps * per_device_train_batch_size))]
validation_rows = [to_example(row) for row in orders["eval"].select(range(validation_count))]
collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100, return_tensors="pt")


def padded_batches(rows, size):
    return [collate([dict(row) for row in rows[i : i + size]]).to(where) for i in range(0, len(rows), size)]


@torch.inference_mode()
def validation_loss(model):
    model.eval()
    return statistics.mean(model(**batch).loss.item() for batch in padded_batches(validation_rows, 8))


# %% id="adapters"
targets = {
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "experts": {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    "router": {"target_modules": [], "target_parameters": ["mlp.gate.weight"]},
}
PART = {"attention": ".self_attn.", "experts": ".experts.", "router": ".gate."}  # as their weights are called


def with_trained_adapter(target):
    """Return the upcycled model with an adapter that was trained for `max_steps` steps."""
    set_seed(seed)
    peft_config = LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=0.0, task_type="CAUSAL_LM", **target)
    model = get_peft_model(upcycled(dense), peft_config).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], learning_rate)
    for batch in padded_batches(train_rows, per_device_train_batch_size):
        model(**batch, output_router_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def different(model, other):
    pairs = zip(model.named_parameters(), other.parameters(), strict=True)
    return {name for (name, weight), before in pairs if not torch.equal(weight, before)}


# %% id="train"
losses, trained_logits, missed, strangers = {"before": validation_loss(moe)}, {}, 0, 0
for name, target in targets.items():
    started = time.perf_counter()
    candidate = with_trained_adapter(target)
    took = time.perf_counter() - started
    trained = candidate.get_nb_trainable_parameters()[0]
    losses[name] = validation_loss(candidate)
    with torch.inference_mode():
        trained_logits[name] = candidate(**inputs).logits
    candidate.save_pretrained(f"runs/13_moe/{name}")
    changed = different(candidate.merge_and_unload(), moe)
    asked = {weight for weight, _ in moe.named_parameters() if PART[name] in weight}
    missed, strangers = missed + len(asked - changed), strangers + len(changed - asked)
    print(
        f"{name:<10} {trained:>9,} trained, loss {losses['before']:.4f} -> {losses[name]:.4f}, {took:.0f} s;", end=" "
    )
    print(f"{len(asked & changed)} of {len(asked)} tensors changed, {len(changed - asked)} others")
    del candidate

# %% id="train-plot"
fig, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
bars = ax.barh(list(losses), list(losses.values()), color=["#888888", "#0072b2", "#009e73", "#e69f00"])
ax.bar_label(bars, fmt="%.2f", padding=3)
ax.invert_yaxis()
ax.margins(x=0.12)
ax.set(xlabel="validation loss per answer token", title=f"Which adapter learns orders in {max_steps} steps?")
plt.show()

# %% [markdown] id="router-gradient-why"
# The equal steps are not equal adapters: the one on the experts has the most weights and takes the longest. And the router
# has nothing to learn from the orders: as long as all experts are copies, it makes no difference where a token goes, so only
# the balancing loss moves it. Check it on the gradient of the orders' loss, before and after the experts were trained:

# %% [markdown] id="router-gradient-why" lang="zh" of="15d9bde6"
# 步数相同，适配器大小却不同：专家上的适配器权重最多，训练也最慢。路由器则从订单里学不到东西：只要所有专家还是同一份拷贝，token 送到哪里都一样，能推动它的只有均衡损失。用订单损失对路由器的梯度验证一下，分别在训练专家之前和之后：


# %% id="router-gradient"
def router_gradient(model):
    """Return the norm of the gradient that one batch's loss, without the balancing loss, sends to all routers."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(".gate." in name)
    model.zero_grad()
    model(**padded_batches(train_rows, per_device_train_batch_size)[0]).loss.backward()
    return torch.stack([weight.grad.norm() for weight in model.parameters() if weight.requires_grad]).norm().item()


reloaded = PeftModel.from_pretrained(upcycled(dense), "runs/13_moe/experts").eval()
with torch.inference_mode():
    reload_max_abs_diff = (reloaded(**inputs).logits - trained_logits["experts"]).abs().max().item()
merged = reloaded.merge_and_unload()
router_gradients = {"copies": router_gradient(moe), "trained experts": router_gradient(merged)}
for kind, norm in router_gradients.items():
    print(f"{kind:<16} gradient of the routers {norm:.1e}")

# %% [markdown] id="merge-why"
# ### Merge, save, reload
# The adapter on the experts was saved and reloaded above. Merged, it becomes a plain Mixtral: save it, load it as any user
# would, and compare the logits with those of the model that was trained. Then two orders that it has not seen, before and
# after: the form is learned in a few steps, but compare the fields too.

# %% [markdown] id="merge-why" lang="zh" of="78a503b6"
# ### 合并、保存、重新加载
# 专家上的适配器上面已经保存并重新加载过。合并之后就是一个普通的 Mixtral：保存，像任何用户那样加载，再与训练出的模型比较 logits。最后看两份没见过的订单，训练前后各答一次：格式几步就能学会，字段对不对，还要逐个看。

# %% id="merge"
merged.save_pretrained("runs/13_moe/merged")
tokenizer.save_pretrained("runs/13_moe/merged")
del reloaded, merged
final = AutoModelForCausalLM.from_pretrained("runs/13_moe/merged", dtype=torch.float32, device_map=where)
with torch.inference_mode():
    merge_max_abs_diff = (final(**inputs).logits - trained_logits["experts"]).abs().max().item()
print(
    f"largest difference: adapter reloaded {reload_max_abs_diff:.1e}; merged, saved and loaded {merge_max_abs_diff:.1e}"
)
assert max(reload_max_abs_diff, merge_max_abs_diff) <= 1e-4

# %% id="samples"
for row in orders["eval"].select(range(2)):
    chat = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
    order = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt").to(
        where
    )
    print(f"order    {row['input']}\nexpected {row['output']}")
    for name, model in (("before", moe), ("after", final)):
        with torch.inference_mode():
            answer = model.generate(**order, max_new_tokens=64, do_sample=False)[0, order["input_ids"].shape[1] :]
        print(f"{name:<8} {tokenizer.decode(answer, skip_special_tokens=True)[:160]!r}")

# %% [markdown] id="break-why"
# ## What goes wrong: experts silently frozen
# A recipe from a dense model names `gate_proj`, `up_proj`, `down_proj`. In this mixture nothing has these names, and because
# `q_proj` and `v_proj` match, PEFT reports no error: training runs, the loss falls as it did for attention above, and most of
# the model never changes. The loss does not show it; counting the trained weights by kind does. The fix is either
# `target_parameters`, or `all-linear`, which in today's PEFT includes the experts and the router of a Mixtral (and gives the
# fused `gate_up_proj`, two matrices in one, twice the rank): count that too.

# %% [markdown] id="break-why" lang="zh" of="ac3ea9ef"
# ## 故意出错：专家悄悄被冻结
# 稠密模型的配方里写着 `gate_proj`、`up_proj`、`down_proj`。这个 MoE 里没有叫这些名字的层，但 `q_proj` 和 `v_proj` 能匹配上，所以 PEFT 不报错：训练照常进行，损失像上面只训练注意力时那样下降，模型的大部分却从未改变。损失看不出来，按类别数一数可训练的权重就能看出来。改法有两种：用 `target_parameters`，或者用 `all-linear`（现在的 PEFT 会把 Mixtral 的专家和路由器也算进去，并给两个矩阵合成的 `gate_up_proj` 两倍的秩）；后者同样数一遍。


# %% id="break"
def trained_by_kind(model):
    """Return how many weights are trained in attention, experts and router."""
    named = [(name, weight.numel()) for name, weight in model.named_parameters() if weight.requires_grad]
    return {kind: sum(count for name, count in named if part in name) for kind, part in PART.items()}


names = {
    "a dense model's names": {"target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]},
    "with target_parameters": {**targets["experts"], "target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
}
by_kind = {}
for name, target in names.items():
    candidate = get_peft_model(moe, LoraConfig(r=r, lora_dropout=0.0, task_type="CAUSAL_LM", **target))
    by_kind[name] = trained_by_kind(candidate)
    print(f"{name:<23} {by_kind[name]}")
    moe = candidate.unload()

# %% [markdown] id="reach-why"
# ## The other half of the block: attention that costs less
# Mistral and Mixtral changed attention too. With a *sliding window* a position sees only the last `w` positions, itself
# included. Which positions reach which? Change one input and see which outputs move. One layer reaches `w - 1` positions
# back; layers add up.

# %% [markdown] id="reach-why" lang="zh" of="3a82f0e1"
# ## Transformer 块的另一半：更省的注意力
# Mistral 和 Mixtral 也改了注意力。用*滑动窗口*（sliding window）时，一个位置只能看到最近的 `w` 个位置（含自己）。哪些位置能影响哪些位置？改动一个输入，看哪些输出跟着变。一层能看到前面 `w - 1` 个位置，层数越多看得越远。


# %% id="reach"
def reach(sliding_window, num_hidden_layers, length=12):
    """Return whether an output (row) moves when an input (column) is changed, (length, length)."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 8,
    }
    config = MixtralConfig(
        **sizes, sliding_window=sliding_window, num_hidden_layers=num_hidden_layers, initializer_range=0.2
    )
    set_seed(0)
    model, x = MixtralModel(config).eval(), torch.randn(1, length, 32)
    changed = x.repeat(length, 1, 1)
    changed[range(length), range(length)] += 1
    with torch.inference_mode():
        moved = model(inputs_embeds=changed).last_hidden_state - model(inputs_embeds=x).last_hidden_state
    return (moved.abs().amax(-1) > 1e-4).T


fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained", sharey=True)
for ax, (window, layers) in zip(axes, ((None, 1), (4, 1), (4, 3)), strict=True):
    seen = reach(window, layers)
    ax.imshow(seen, cmap="Blues", vmin=0, vmax=1.4)
    ax.set(
        xlabel="input position",
        xticks=range(0, 12, 3),
        yticks=range(0, 12, 3),
        title=f"window {window or 'none'}, {layers} layer{'s' * (layers > 1)}",
    )
    back = 11 if window is None else layers * (window - 1)
    assert torch.equal(seen, torch.ones(12, 12).tril().triu(-back).bool())
    print(f"window {window}, layers {layers}: the last position is reached by the last {seen[-1].sum()} inputs")
axes[0].set_ylabel("output position")
fig.suptitle("Which inputs reach which outputs?")
plt.show()

# %% [markdown] id="cache-why"
# In *grouped-query attention* (GQA) several query heads share one key and value head, so the cache of a chat shrinks by the
# size of the group. The cache holds two tensors (keys and values) per layer: key-value heads x head size x tokens, and with a
# sliding window of `w` no more than `w - 1` tokens. Predicted from the config, then measured:

# %% [markdown] id="cache-why" lang="zh" of="daa49256"
# *分组查询注意力*（GQA）让几个查询头共用一组键和值，对话的键值缓存就按组的大小成倍缩小。缓存每层有键、值两个张量，大小是“键值头数 × 头维度 × token 数”；窗口为 `w` 的滑动窗口最多只存 `w - 1` 个 token。先按配置预测，再实测：


# %% id="cache"
def cache_bytes(config, tokens, number_bytes):
    """Return the bytes of the keys and values that a model keeps of so many tokens."""
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    kept = min(tokens, config.sliding_window - 1) if config.sliding_window else tokens
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * kept * number_bytes


small_sizes.num_attention_heads, cache_errors = 8, []
for num_key_value_heads, window in ((8, None), (2, None), (2, 16)):
    small_sizes.num_key_value_heads, small_sizes.sliding_window = num_key_value_heads, window
    with torch.inference_mode():
        cache = MixtralForCausalLM(small_sizes)(input_ids=torch.zeros(1, 100, dtype=torch.long)).past_key_values
    measured = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    predicted = cache_bytes(small_sizes, 100, 4)
    cache_errors.append(abs(measured - predicted))
    print(f"{num_key_value_heads} of 8 heads, window {window}: predicted {predicted:,} bytes, measured {measured:,}")
assert not any(cache_errors)

gib = {
    name: cache_bytes(config, 32768, 2) / 2**30
    for name, config in (("Mixtral", MixtralConfig()), ("Mistral", MistralConfig()))
}
group = MixtralConfig().num_attention_heads // MixtralConfig().num_key_value_heads
print(f"a chat of 32,768 tokens in bfloat16: Mixtral 8x7B {gib['Mixtral']:.1f} GiB, {group} times as much without GQA;")
print(f"Mistral 7B with its window of {MistralConfig().sliding_window} tokens {gib['Mistral']:.1f} GiB")

# %% [markdown] id="experiment-why"
# ## Experiment
# How uneven may a router be? Set how many experts a token uses, how strongly the router prefers the first ones, and the
# capacity.

# %% [markdown] id="experiment-why" lang="zh" of="3de5c28e"
# ## 动手试一试
# 路由器可以有多不均匀？设定每个 token 用几个专家、路由器对前几个专家的偏好有多强，以及容量。


# %% id="experiment"
def draw(num_experts_per_tok, preference, capacity_factor):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2000, 8, generator=generator) + preference * torch.linspace(1, 0, 8)
    chosen = route(scores, num_experts_per_tok)[0]
    _, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
    ax.bar(range(8), torch.bincount(chosen.flatten(), minlength=8), color="#0072b2")
    ax.axhline(capacity_factor * chosen.numel() / 8, linestyle="--", color="#d55e00", label="capacity")
    ax.set(xlabel="expert", ylabel="tokens", title="Who gets the tokens, and how many are dropped?")
    ax.legend()
    plt.show()
    loss = balancing_loss(scores, num_experts_per_tok) / num_experts_per_tok
    print(f"dropped {dropped_share(chosen, 8, capacity_factor):.0%}; balancing loss over k {loss:.2f}, even: 1.00")


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
    "switch_max_abs_diff": switch_max_abs_diff,
    "upcycled_max_abs_diff": upcycled_max_abs_diff,
    "same_choice": same_choice,
    "total_ratio": total / dense_total,
    "active_ratio": active / dense_total,
    "mixtral_8x7b_billions": eight_total / 1e9,
    "memory_error": abs(memory_measured / memory_predicted - 1),
    "slower_256_tokens": slower[256],
    "slower_1_token": slower[1],
    "text_gap": text_gap,
    "chance_gap": chance_gap,
    "idle_none": sum(idle["none"]),
    "idle_pooled": sum(idle["pooled"]),
    "idle_per_layer": sum(idle["per layer"]),
    "loss_before": losses["before"],
    "loss_attention": losses["attention"],
    "loss_experts": losses["experts"],
    "router_gain": losses["before"] - losses["router"],
    "asked_unchanged": missed,
    "others_changed": strangers,
    "reload_max_abs_diff": reload_max_abs_diff,
    "merge_max_abs_diff": merge_max_abs_diff,
    "frozen_experts": by_kind["a dense model's names"]["experts"],
    "cache_error_bytes": max(cache_errors),
}
bands = {
    "upcycled_max_abs_diff": (0, 1e-3),
    "same_choice": (1, 1),
    "mixtral_8x7b_billions": (46, 47.5),
    "memory_error": (0, 0.01),
    "asked_unchanged": (0, 0),
    "others_changed": (0, 0),
    "merge_max_abs_diff": (0, 1e-4),
    "frozen_experts": (0, 0),
    "cache_error_bytes": (0, 0),
}
if PROFILE != "smoke":
    bands |= {
        "idle_none": (4, 32),
        "idle_pooled": (1, 32),
        "idle_per_layer": (0, 0),
        "loss_attention": (0, losses["before"] / 2),
        "loss_experts": (0, losses["before"] / 2),
        "router_gain": (-0.01, 0.01),
    }
course.record(outcomes, bands)

# %% [markdown] id="next"
# **You keep** `runs/13_moe/merged`, a Mixtral that reads orders: `ftlab chat runs/13_moe/merged` talks to it.
#
# **On your GPU:** `PROFILE = "t4"` takes more steps, `"a24g"` a model three times as large; both stay in float32 for the
# equalities. Mixtral and Qwen's mixtures load with the same calls; count by kind what an adapter trains before you start.
#
# **The same from a recipe:** `ftlab train recipes/moe.yaml` trains attention, experts and router (`lora_target: all`, or
# `experts,gate` by name) with `moe_aux_loss_coef`; `ftlab memory mixtral-8x7b` counts all weights and those used for a token.
#
# **Next:** what one machine can't hold or finish is split: [14 · Scale out](14_scale_out.ipynb). What decides the speed
# of any of these models was measured in [09 · Inference](09_inference.ipynb).

# %% [markdown] id="next" lang="zh" of="7cc64880"
# **你得到的成果：** `runs/13_moe/merged`，一个会读订单的 Mixtral：用 `ftlab chat runs/13_moe/merged` 就能和它对话。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 步数更多，`"a24g"` 用三倍大的模型；为了验证相等，两者都用 float32。Mixtral 和 Qwen 的 MoE 用同样的调用加载；开始训练之前，先按类别数一数适配器训练了什么。
#
# **用配方做同样的事：** `ftlab train recipes/moe.yaml` 训练注意力、专家和路由器（`lora_target: all`，也可以按名字写 `experts,gate`），均衡损失的权重是 `moe_aux_loss_coef`；`ftlab memory mixtral-8x7b` 会给出总参数与每个 token 用到的参数。
#
# **下一课：** 一台机器放不下、跑不完的，就切开来：[14 · 扩展](14_scale_out.ipynb)。决定这些模型速度的因素，[09 · 推理](09_inference.ipynb) 已经测过。
