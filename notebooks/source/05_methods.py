# %% [markdown] id="title"
# # 05 · Twenty-one ways to tune, one budget, one table
#
# Full fine-tuning, LoRA and its variants, vectors, prompts, optimizers: every one has a paper that says it wins. Here they
# all get the same task, the same number of steps and the same two CPU cores, and you read the table yourself.
#
# | you will have | measured as |
# |---|---|
# | one row per method | fields of unseen orders that are right |
# | its price | weights trained, bytes of trained weights, gradients and optimizer state, seconds |
# | how its style of answering drifts | loss per token on short right answers to general questions |
# | the Pareto front | which methods no other one beats in both score and size |
#
# **Cost:** about 12 minutes and 4.5 GB on two CPU cores, 10 minutes on a T4. **Before this:** [03 ·
# LoRA](03_lora.ipynb);
# [04 · QLoRA](04_qlora.ipynb) helps.

# %% [markdown] id="title" lang="zh" of="f358ac6a"
# # 05 · 二十一种微调办法，同一份预算，同一张表
#
# 全量微调、LoRA 及其变体、向量、提示、优化器：每一种都有论文说自己最好。在这里，它们得到同样的任务、同样的步数、同样的两个 CPU 核心，表由你自己来读。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 每种方法一行 | 未见过的订单中正确字段的比例 |
# | 它的开销 | 训练的权重数，被训练的权重、梯度和优化器状态所占的字节，秒数 |
# | 回答的风格变了多少 | 常识问题的简短正确答案上每个 token 的损失 |
# | 前沿 | 在得分和大小上都不被别的方法超过的那些方法 |
#
# **耗时与内存：** 两个 CPU 核心上约 12 分钟、4.5 GB 内存，T4 上约 10 分钟。**先修：** [03 · LoRA](03_lora.ipynb)；[04 · QLoRA](04_qlora.ipynb) 会有帮助。

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
import json
import math
import time

import matplotlib.pyplot as plt
import torch
from datasets import load_dataset
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from peft.optimizers import create_loraplus_optimizer
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from ftlab import checks, cpu, device, models
from ftlab.apps import course

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
r = 16  # rank, where a method has one
max_steps = 0  # optimizer steps of each method; 0: the profile's own
per_device_train_batch_size = 0  # examples per step; 0: the profile's own
seed = 0

# %% id="profile"
profiles = {  # model, optimizer steps of each method, examples per step, orders asked, tokens of an answer, questions
    "smoke": ("smollm2-135m-short", 1, 2, 1, 2, 2),
    "cpu": ("smollm2-135m", 20, 4, 24, 48, 60),
    "t4": ("Qwen/Qwen2.5-0.5B-Instruct", 40, 8, 64, 48, 200),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 40, 8, 64, 48, 200),
}
default_model, default_steps, default_batch, order_count, answer_tokens, general_count = profiles[PROFILE]
model_name = model_name or default_model
max_steps = max_steps or default_steps
per_device_train_batch_size = per_device_train_batch_size or default_batch
set_seed(seed)

# %% [markdown] id="task-why"
# ## One task, two scores
# Orders to JSON, as in lesson 03. With so few steps no method gets whole orders right, so that a finer ruler is needed:
# the share of *fields* that are right. A second score shows how far the model drifts: the loss per token (in nats) on
# the right answers to general questions. Those answers are terse, a word or two, so that a model that learned to answer
# tersely scores well: it measures style more than knowledge.

# %% [markdown] id="task-why" lang="zh" of="db2cbc07"
# ## 一个任务，两个分数
# 和第 03 课一样，把订单变成 JSON。步数这么少，没有方法能把整单写对，所以要用更细的尺子：正确*字段*的比例。第二个分数衡量模型偏离了多少：常识问题正确答案上每个 token 的损失（单位 nat）。这些答案只有一两个词，所以学会了简短作答的模型得分会好：它衡量的更多是风格，而不是知识。

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
where = "cuda" if on_gpu else "cpu"
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)


def load():
    return AutoModelForCausalLM.from_pretrained(
        model_path, dtype=dtype, attn_implementation=attention, device_map=where
    )


# %% id="data"
def to_order(row):
    prompt = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["output"]}]}


orders = load_dataset("json", data_files={"train": "data/orders_train.jsonl", "eval": "data/orders_eval.jsonl"})
rows_seen = max_steps * per_device_train_batch_size  # by every method, in the same order
order_dataset = orders["train"].select(range(rows_seen)).map(to_order, remove_columns=orders["train"].column_names)
asked = orders["eval"].select(range(order_count)).map(to_order)
general = list(load_dataset("json", data_files="data/general_mcq.jsonl", split="train"))[:general_count]
print(asked[0]["input"], asked[0]["output"], sep="\n")


# %% id="fields"
def fields_right(reply, wanted):
    """Return the share of an order's fields that a reply has right; 0 for a reply that is not a JSON object."""
    try:
        given, wanted = json.loads(reply), json.loads(wanted)
    except ValueError:
        return 0.0
    if not isinstance(given, dict):
        return 0.0
    pairs = [(given.get(name), wanted[name]) for name in ("name", "time")]
    items = given.get("items") if isinstance(given.get("items"), list) else []
    pairs += [(items[i] if i < len(items) else "missing", item) for i, item in enumerate(wanted["items"])]
    return sum(found == right for found, right in pairs) / len(pairs)


@torch.no_grad()
def order_score(model):
    texts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in asked["prompt"]]
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.generate(**batch.to(where), max_new_tokens=answer_tokens, do_sample=False)
    replies = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(map(fields_right, replies, asked["output"])) / len(replies)


# %% id="loss"
def to_ids(question):
    turns = [{"role": "user", "content": question["question"]}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    answer = tokenizer(question["choices"][question["answer"]], add_special_tokens=False)["input_ids"]
    return prompt + answer, [-100] * len(prompt) + answer


rows = [to_ids(question) for question in general]
width = max(len(ids) for ids, _ in rows)
known_ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows])
known_labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
known_mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])


@torch.no_grad()
def loss_on_answers(model):
    logits = model(input_ids=known_ids.to(where), attention_mask=known_mask.to(where)).logits[:, -width:-1]
    return F.cross_entropy(logits.float().flatten(0, 1), known_labels[:, 1:].flatten().to(where)).item()


# %% id="before"
untouched = load().eval()
score_before, loss_before = order_score(untouched), loss_on_answers(untouched)
print(f"before: {score_before:.0%} of fields, loss {loss_before:.2f} nats")

# %% [markdown] id="run-why"
# ## One run for all
# A method is three things: how it prepares the model, its learning rate, and sometimes an optimizer or a setting. The rest
# is the same for everybody. Bytes are counted from the tensors themselves: trained weights, gradients, optimizer state.
# For full and freeze the trained weights are the model's own, which it needs anyway; for the others they are new.
#
# Nothing here shows that every method's learning rate got the same number of tries: read a gap between two methods as a
# gap between two settings.

# %% [markdown] id="run-why" lang="zh" of="9a0e345f"
# ## 大家同一种跑法
# 一种方法就是三样东西：怎样准备模型、学习率，有时还有优化器或某个设置。其余对所有人都相同。字节直接从张量数出来：训练的权重、梯度、优化器状态。full 和 freeze 训练的是模型本来就有的权重；其他方法的则是新增的。
#
# 这里没有任何东西能证明各方法的学习率试过同样多次：两种方法之间的差距，应看作两组设置之间的差距。

# %% id="training-args"
training_args = SFTConfig(
    output_dir="runs/05_methods",
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    lr_scheduler_type="cosine",
    warmup_steps=0.1,  # below 1: a share of all steps
    max_length=256,  # tokens per example
    train_sampling_strategy="group_by_length",  # rows of like length together: less padding, fewer seconds
    logging_strategy="no",
    save_strategy="no",
    activation_checkpointing=on_gpu,  # transformers' new name for gradient_checkpointing
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    report_to="none",
    disable_tqdm=True,
    seed=seed,
)


# %% id="run"
def run(prepare, learning_rate, optimizer=None, callback=None, **settings):
    """Prepare an untouched model, train it, score it; return one row of the table."""
    set_seed(seed)
    model = prepare(load())
    args = dataclasses.replace(training_args, learning_rate=learning_rate, **settings)
    own = (optimizer(model, learning_rate), None) if optimizer else (None, None)
    trainer = SFTTrainer(model, args, train_dataset=order_dataset, processing_class=tokenizer, optimizers=own)
    trainer.remove_callback(PrinterCallback)
    if callback:
        trainer.add_callback(callback)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    state = [value for held in trainer.optimizer.state.values() for value in held.values()]
    added = sum(2 * weight.nbytes for weight in trained)
    added += sum(value.nbytes for value in state if isinstance(value, torch.Tensor))
    model.eval()
    return {
        "score": order_score(model),
        "loss": loss_on_answers(model),
        "trained": sum(weight.numel() for weight in trained),
        "mib": added / 2**20,
        "seconds": seconds,
    }


table = {}


def report(methods):
    for name, method in methods.items():
        table[name] = run(**method)
        row = table[name]
        print(
            f"{name:<14} {row['score']:>4.0%} of fields, loss {row['loss']:.2f}, "
            f"{row['trained']:>11,} weights, {row['mib']:>7.1f} MiB, {row['seconds']:>3.0f} s"
        )


# %% [markdown] id="whole-why"
# ## Weights that are already there
# - **full** trains every weight; the change can be anything. It needs the most memory.
# - **freeze** trains only the last blocks. What is below stays, and the backward pass stops early, which saves time.
# - **LayerNorm** trains the scales of the norms, one number per channel. Each channel grows or shrinks; no mixing is
#   learned.

# %% [markdown] id="whole-why" lang="zh" of="1a90f9a0"
# ## 已经存在的权重
# - **full** 训练每个权重；改动可以是任何样子。它最费内存。
# - **freeze** 只训练最后几个块。下面的保持不变，反向传播提前停止，省时间。
# - **LayerNorm** 训练归一化的缩放系数，每个通道一个数。通道只会变大或变小，学不到混合。


# %% id="whole"
def freeze(model):
    model.requires_grad_(False)
    model.model.layers[-4:].requires_grad_(True)
    return model


norms = LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm"], task_type="CAUSAL_LM")


def adapt(config):
    # On a CPU adapters in the base model's own format: for most methods float32 would make each step longer.
    return lambda model: get_peft_model(model, config, autocast_adapter_dtype=on_gpu)


report(
    {
        "full": {"prepare": lambda model: model, "learning_rate": 3e-4},
        "freeze": {"prepare": freeze, "learning_rate": 1e-3},
        "LayerNorm": {"prepare": adapt(norms), "learning_rate": 2e-2},
    }
)

# %% [markdown] id="bias-why"
# **BitFit** trains the biases alone, one number per output. This model has none, like Llama; older families do. Counted
# on a small random GPT-NeoX:

# %% [markdown] id="bias-why" lang="zh" of="ab580cef"
# **BitFit** 只训练偏置，每个输出一个数。这个模型和 Llama 一样没有偏置；更老的家族有。在一个随机的小 GPT-NeoX 上数一数：

# %% id="bias"
neox = GPTNeoXForCausalLM(GPTNeoXConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=1000))
for label, candidate in (("this model", untouched), ("a GPT-NeoX", neox)):
    biases = sum(weight.numel() for name, weight in candidate.named_parameters() if name.endswith("bias"))
    print(f"{label}: {biases:,} of {candidate.num_parameters():,} weights are biases")

# %% [markdown] id="lora-why"
# ## LoRA and its variants
# - **LoRA** adds `B A` beside a layer, as in lesson 03. **q, v only** adapts two layers of a block instead of all seven.
# - **rsLoRA** scales by `alpha / sqrt(r)`. At high ranks plain LoRA's `alpha / r` makes the change too small.
# - **DoRA** learns the length of each row of the weight (one number per output) apart from its direction.
# - **PiSSA** starts `B A` from the largest singular directions of the weight and freezes the rest.
# - **OLoRA** starts from the QR factors of the weight, which are orthonormal.
# - **LoRA+** gives B a larger learning rate than A, because B starts at zero.
# - **VeRA** shares one frozen random pair A and B among all layers and trains only the two vectors that scale them.
# - **AdaLoRA** starts with a higher rank than it keeps and removes it where it matters least, while it trains.
# - **OFT** multiplies the weight by a learned rotation, block by block. Angles between neurons stay as they are.
# - **NEFTune** adds noise to the embeddings while training. The weights are LoRA's.

# %% [markdown] id="lora-why" lang="zh" of="123e34c7"
# ## LoRA 及其变体
# - **LoRA** 在一层旁边加上 `B A`，如第 03 课。**q, v only** 只适配一个块里的两层，而不是全部七层。
# - **rsLoRA** 用 `alpha / sqrt(r)` 缩放。秩较高时，普通 LoRA 的 `alpha / r` 会把改动压得太小。
# - **DoRA** 把权重每一行的长度（每个输出一个数）和方向分开学。
# - **PiSSA** 让 `B A` 从权重最大的几个奇异方向开始，其余冻结。
# - **OLoRA** 从权重的 QR 分解开始，得到的向量是标准正交的。
# - **LoRA+** 给 B 比 A 更大的学习率，因为 B 从零开始。
# - **VeRA** 所有层共用一对冻结的随机 A 和 B，只训练缩放它们的两个向量。
# - **AdaLoRA** 开始时秩更高，训练中把最不重要的部分逐步剪掉。
# - **OFT** 给权重乘上学出来的旋转，一块一块地乘。神经元之间的夹角不变。
# - **NEFTune** 训练时给嵌入加噪声，训练的权重还是 LoRA 的。


# %% id="lora-configs"
def lora(**options):
    return adapt(LoraConfig(r=r, lora_alpha=2 * r, task_type="CAUSAL_LM", **{"target_modules": "all-linear"} | options))


def lora_plus(model, learning_rate):
    return create_loraplus_optimizer(model, torch.optim.AdamW, lr=learning_rate, loraplus_lr_ratio=4, weight_decay=0)


ada = AdaLoraConfig(
    init_r=r + r // 2,
    target_r=r,
    lora_alpha=2 * r,
    target_modules="all-linear",
    total_step=max(max_steps, 3),
    tinit=max_steps // 4,
    tfinal=max_steps // 4,
    deltaT=2,
    task_type="CAUSAL_LM",
)


class Allocate(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.base_model.update_and_allocate(state.global_step + 1)  # needs the gradients: before they are cleared


# %% id="lora"
vera = VeraConfig(r=256, target_modules="all-linear", task_type="CAUSAL_LM")
oft = OFTConfig(oft_block_size=32, target_modules="all-linear", task_type="CAUSAL_LM")
report(
    {
        "LoRA": {"prepare": lora(), "learning_rate": 2e-3},
        "LoRA q, v only": {"prepare": lora(target_modules=["q_proj", "v_proj"]), "learning_rate": 4e-3},
        "rsLoRA": {"prepare": lora(use_rslora=True), "learning_rate": 1e-3},
        "DoRA": {"prepare": lora(use_dora=True), "learning_rate": 2e-3},
        "PiSSA": {"prepare": lora(init_lora_weights="pissa_niter_16"), "learning_rate": 1e-3},
        "OLoRA": {"prepare": lora(init_lora_weights="olora"), "learning_rate": 5e-4},
        "LoRA+": {"prepare": lora(), "learning_rate": 1e-3, "optimizer": lora_plus},
        "VeRA": {"prepare": adapt(vera), "learning_rate": 2e-2},
        "AdaLoRA": {"prepare": adapt(ada), "learning_rate": 1e-2, "callback": Allocate()},
        "OFT": {"prepare": adapt(oft), "learning_rate": 2e-3},
        "NEFTune": {"prepare": lora(), "learning_rate": 2e-3, "neftune_noise_alpha": 5},
    }
)

# %% [markdown] id="small-why"
# ## Vectors and prompts
# - **IA3** multiplies keys, values and the MLP's middle by learned vectors: no new matrix. In this model these are 192 +
#   192 + 1,536 = 1,920 numbers per block.
# - **prompt tuning** trains sixteen virtual tokens in front of the input. No weight of the model changes.
# - **P-tuning** makes those tokens with a small network while it trains.
# - **prefix tuning** trains keys and values that every block sees before the input.

# %% [markdown] id="small-why" lang="zh" of="2b897ed8"
# ## 向量与提示
# - **IA3** 用学出来的向量去乘键、值和 MLP 的中间层，没有新矩阵。在这个模型里，每块是 192 + 192 + 1536 = 1920 个数。
# - **prompt tuning** 在输入前面训练十六个虚拟 token。模型的权重一个也不变。
# - **P-tuning** 训练时用一个小网络生成这些 token。
# - **prefix tuning** 训练每一块在输入之前先看到的键和值。

# %% id="small"
virtual = {"num_virtual_tokens": 16, "task_type": "CAUSAL_LM"}
ia3 = IA3Config(
    target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
)
report(
    {
        "IA3": {"prepare": adapt(ia3), "learning_rate": 3e-2},
        "prompt tuning": {"prepare": adapt(PromptTuningConfig(**virtual)), "learning_rate": 5e-2},
        "P-tuning": {"prepare": adapt(PromptEncoderConfig(encoder_hidden_size=128, **virtual)), "learning_rate": 1e-2},
        "prefix tuning": {"prepare": adapt(PrefixTuningConfig(**virtual)), "learning_rate": 5e-2},
    }
)

# %% [markdown] id="optimizer-why"
# ## The same LoRA, other optimizers
# - **8-bit AdamW** keeps its two moments in one byte each, where a tensor is large enough.
# - **Adafactor** keeps one number per row and column instead of one per weight.
# - **Muon** makes the update of a matrix orthogonal, so that no direction dominates; one moment instead of two.

# %% [markdown] id="optimizer-why" lang="zh" of="c0c5b720"
# ## 同样的 LoRA，换优化器
# - **8-bit AdamW** 在张量足够大时，一阶矩和二阶矩每个数各用一个字节。
# - **Adafactor** 每行每列存一个数，而不是每个权重一个。
# - **Muon** 让矩阵的更新变成正交的，没有哪个方向独大；只有一个矩，而不是两个。


# %% id="optimizers"
def muon(model, learning_rate):
    matrices = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0)


report(
    {
        "8-bit AdamW": {"prepare": lora(), "learning_rate": 2e-3, "optim": "adamw_8bit"},
        "Adafactor": {"prepare": lora(), "learning_rate": 2e-3, "optim": "adafactor"},
        "Muon": {"prepare": lora(), "learning_rate": 2e-2, "optimizer": muon},
    }
)

# %% [markdown] id="needs-why"
# ### What did not run here, and what it needs

# %% [markdown] id="needs-why" lang="zh" of="0f9667e4"
# ### 这里没有运行的，以及它们需要什么

# %% id="needs"
elsewhere = {
    "LoftQ": "a CUDA GPU: PEFT's initialisation moves each weight there by name",
    "GaLore": "pip install galore-torch, then optim='galore_adamw' with optim_target_modules (full fine-tuning)",
    "APOLLO": "pip install apollo-torch, then optim='apollo_adamw' with optim_target_modules (full fine-tuning)",
    "LOMO": "pip install lomo-optim, then optim='lomo' (full fine-tuning, no gradient kept)",
    "AdaLOMO": "the same, and a CUDA GPU",
    "BitFit": "a model that has biases",
}
for name, need in elsewhere.items():
    print(f"{name:<8} {need}")

# %% [markdown] id="front-why"
# ## The table as a picture
# Right is bigger, up is better. A method is on the *front* when no other is both smaller and better. **Before you look:**
# how many of the twenty-one will be on it?

# %% [markdown] id="front-why" lang="zh" of="d87c857f"
# ## 把表画成图
# 越右越大，越上越好。没有别的方法既更小又更好，它就在*前沿*上。**先别看：** 二十一种里有几种在前沿上？

# %% id="front"
front = [
    name
    for name, row in table.items()
    if not any(other["mib"] < row["mib"] and other["score"] >= row["score"] for other in table.values())
]
fig, ax = plt.subplots(figsize=(8.5, 5), layout="constrained")
taken = {}  # height of the last label in each half of a power of ten: the next one goes above it
for name, row in sorted(table.items(), key=lambda item: item[1]["score"]):
    on_front, place = name in front, round(2 * math.log10(row["mib"]))
    ax.scatter(row["mib"], row["score"], color="#d95f02" if on_front else "#9ecae1", zorder=3 if on_front else 2)
    taken[place] = max(row["score"], taken.get(place, -1) + 0.025)
    ax.annotate(name, (row["mib"], row["score"]), (1.12 * row["mib"], taken[place]), fontsize=7, va="center")
ax.axhline(score_before, color="grey", linestyle=":", label="before")
ax.set(xscale="log", xlabel="MiB that training adds: trained weights, gradients, moments", ylabel="fields right")
ax.legend()
plt.show()
print("on the front:", ", ".join(sorted(front, key=lambda name: table[name]["mib"])))

# %% id="forgetting"
fig, ax = plt.subplots(figsize=(8.5, 3.6), layout="constrained")
ranked = sorted(table, key=lambda name: table[name]["loss"])
ax.bar(ranked, [table[name]["loss"] for name in ranked], color="#9ecae1")
ax.axhline(loss_before, color="#d95f02", label="before")
ax.set(ylabel="loss per token on the correct answer")
ax.tick_params(axis="x", rotation=60, labelsize=7)
ax.legend()
plt.show()

# %% [markdown] id="read"
# Read it with care: one task, one seed, twenty steps of four orders, and 24 orders to score. With so few the 95%
# confidence interval of a score near 50% is about 20 points to either side (lesson 00), so most of these methods cannot be
# told apart by this table, and no winner can be named. A row near zero with a high loss on general questions suggests a
# learning rate that is too high rather than a bad method: is there one here? What the table does show, because the gaps
# are larger than that: what each method costs in bytes, and which methods learned next to nothing in this many steps.

# %% [markdown] id="read" lang="zh" of="cc926b57"
# 读的时候要小心：一个任务、一个种子、二十步，每步四个订单，打分用的订单只有 24 个。这么少的订单，50% 左右的得分其 95% 置信区间大约是上下各 20 个百分点（第 00 课），所以这张表分不出大多数方法的高下，也评不出第一名。得分接近零、常识问题损失又高的一行，首先说明学习率过大，而不是方法不好：这里有这样的一行吗？表里确实看得出来的，是差距比这更大的东西：每种方法占多少字节，以及哪些方法在这么多步里几乎什么也没学到。

# %% [markdown] id="break-why"
# ## What goes wrong: one learning rate for all
# The commonest way to "show" that a method is bad: give it somebody else's learning rate. IA3 with LoRA's:

# %% [markdown] id="break-why" lang="zh" of="293ac1e2"
# ## 故意出错：所有方法用同一个学习率
# 要“证明”一种方法不好，最常见的做法是给它别人的学习率。IA3 用 LoRA 的学习率：

# %% id="break"
wronged = run(adapt(ia3), learning_rate=2e-3)
print(f"IA3 at its own rate {table['IA3']['score']:.0%}, at LoRA's {wronged['score']:.0%} of fields")

# %% [markdown] id="knobs-why"
# ## Tune the hyperparameters
# LoRA's rank, everything else as above. How much of the score does a sixteenth of the size keep?

# %% [markdown] id="knobs-why" lang="zh" of="cb09f305"
# ## 调一调超参数
# LoRA 的秩，其余同上。十六分之一的大小能保住多少分数？

# %% id="knobs"
rank = 1
config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
thin = run(adapt(config), learning_rate=2e-3)
for size, row in ((rank, thin), (r, table["LoRA"])):
    print(f"r = {size:<3} {row['score']:.0%} of fields, {row['mib']:.1f} MiB, {row['seconds']:.0f} s")

# %% [markdown] id="exercise-bytes-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 05`
# checks your saved copy of the whole lesson.
#
# **1.** A model of 100 million bfloat16 weights is fully fine-tuned; the gradients and both of AdamW's moments are
# bfloat16 too. How many bytes do weights, gradients and moments take together?

# %% [markdown] id="exercise-bytes-why" lang="zh" of="9ad1e5f9"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 05` 检查你保存的整课练习。
#
# **1.** 一个有 1 亿个 bfloat16 权重的模型做全量微调，梯度和 AdamW 的一阶矩、二阶矩也都是 bfloat16。权重、梯度和两个矩一共占多少字节？

# %% id="exercise-bytes" tags=["exercise"]
total_bytes = ...  # your answer

checks.check_full_bytes(total_bytes)

# %% [markdown] id="exercise-bytes-solution"
# <details><summary>Solution</summary>
#
# ```python
# total_bytes = 100_000_000 * 4 * 2
# ```
#
# </details>

# %% [markdown] id="exercise-bytes-solution" lang="zh" of="d954c318"
# <details><summary>参考答案</summary>
#
# ```python
# total_bytes = 100_000_000 * 4 * 2
# ```
#
# </details>

# %% [markdown] id="exercise-front-why"
# **2.** Three methods: `a` takes 1 MiB and gets 60%, `b` 4 MiB and 55%, `c` 9 MiB and 90%. Which are on the Pareto
# front? A set of names, such as `{"a", "b"}`.

# %% [markdown] id="exercise-front-why" lang="zh" of="b9756df6"
# **2.** 三种方法：`a` 占 1 MiB，得 60%；`b` 占 4 MiB，得 55%；`c` 占 9 MiB，得 90%。哪些在 Pareto 前沿上？写成名字的集合，例如 `{"a", "b"}`。

# %% id="exercise-front" tags=["exercise"]
on_the_front = ...  # your answer

checks.check_front(on_the_front)

# %% [markdown] id="exercise-front-solution"
# <details><summary>Solution</summary>
#
# ```python
# on_the_front = {"a", "c"}
# ```
#
# </details>

# %% [markdown] id="exercise-front-solution" lang="zh" of="082f1824"
# <details><summary>参考答案</summary>
#
# ```python
# on_the_front = {"a", "c"}
# ```
#
# </details>

# %% [markdown] id="exercise-ia3-why"
# **3.** Write IA3 for one layer: the output of the frozen layer (`x` is (tokens, inputs), `W` (outputs, inputs)) times
# one learned number per output.

# %% [markdown] id="exercise-ia3-why" lang="zh" of="80531f6b"
# **3.** 写出一层的 IA3：冻结层的输出（`x` 是 (token 数, 输入)，`W` 是 (输出, 输入)）乘以每个输出各自的可训练系数 `scale`。

# %% id="exercise-ia3" tags=["exercise"]


def ia3_forward(x, W, scale):
    return ...  # your code


checks.check_ia3_forward(ia3_forward)

# %% [markdown] id="exercise-ia3-solution"
# <details><summary>Solution</summary>
#
# ```python
# def ia3_forward(x, W, scale):
#     return (x @ W.T) * scale
# ```
#
# </details>

# %% [markdown] id="exercise-ia3-solution" lang="zh" of="77e8ca91"
# <details><summary>参考答案</summary>
#
# ```python
# def ia3_forward(x, W, scale):
#     return (x @ W.T) * scale
# ```
#
# </details>

# %% [markdown] id="exercise-dora-why"
# **4.** Write DoRA's weight: `W` and LoRA's `update` are (outputs, inputs), `magnitude` has one number per output. Each
# row of `W + update` gets exactly the length that `magnitude` says.

# %% [markdown] id="exercise-dora-why" lang="zh" of="4a181019"
# **4.** 写出 DoRA 的权重：`W` 和 LoRA 的 `update` 是 (输出, 输入)，`magnitude` 每个输出一个数。`W + update` 的每一行的长度恰好等于 `magnitude` 中的值。

# %% id="exercise-dora" tags=["exercise"]


def dora_weight(W, update, magnitude):
    return ...  # your code


checks.check_dora_weight(dora_weight)

# %% [markdown] id="exercise-dora-solution"
# <details><summary>Solution</summary>
#
# ```python
# def dora_weight(W, update, magnitude):
#     V = W + update
#     return magnitude[:, None] * V / V.norm(dim=1, keepdim=True)
# ```
#
# </details>

# %% [markdown] id="exercise-dora-solution" lang="zh" of="7030fbcf"
# <details><summary>参考答案</summary>
#
# ```python
# def dora_weight(W, update, magnitude):
#     V = W + update
#     return magnitude[:, None] * V / V.norm(dim=1, keepdim=True)
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
full_size = PROFILE != "smoke"
scored = {name: row for name, row in table.items() if row["loss"] == row["loss"]}  # NaN is not itself
assert len(scored) == len(table) >= 16
assert max(row["score"] for row in table.values()) >= score_before + 0.4 or not full_size
assert table["LoRA"]["trained"] < 0.05 * table["full"]["trained"]
outcomes = {"methods_scored": len(scored)}
outcomes |= {
    f"score_{name.replace(' ', '_').replace(',', '').replace('-', '_')}": row["score"] for name, row in scored.items()
}
course.record(outcomes)

# %% [markdown] id="next"
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`; learning rates of a 7B model are about a tenth of these. From a recipe:
# `finetuning_type: full | freeze | lora`, `use_dora`, `use_rslora`, `pissa_init`, `loraplus_lr_ratio`, `neftune_noise_alpha`
# and `optim` are keys (`ftlab recipe explain use_dora`).
#
# **Next:** what to do with an adapter once it is good: [08 · Merge and export](08_merge_export.ipynb).

# %% [markdown] id="next" lang="zh" of="2f0caef4"
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`；7B 模型的学习率大约是这里的十分之一。用配方：`finetuning_type: full | freeze | lora`、`use_dora`、`use_rslora`、`pissa_init`、`loraplus_lr_ratio`、`neftune_noise_alpha` 和 `optim` 都是键（`ftlab recipe explain use_dora`）。
#
# **下一步：** 适配器练好之后怎么用：[08 · 合并与导出](08_merge_export.ipynb)。
