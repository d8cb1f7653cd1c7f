# %% [markdown] id="title"
# # 06 · Training: the loop, the schedule, the number formats
#
# A trainer hides a loop of a few lines. Here you write it, prove that your loop and the library's give the same loss
# at every step, and then use it to measure what the other settings do: schedule and warm-up, accumulation, number
# formats, recomputation, a learning rate found instead of guessed, and a run that is killed and resumed.
#
# | you will have | measured as |
# |---|---|
# | your own training loop | largest difference to the Trainer's loss over all steps |
# | schedules compared | validation loss, three seeds each, with their spread |
# | what a number format loses | share of weights that one step leaves unchanged |
# | memory traded for time | peak memory and seconds, with and without recomputation |
# | a run that survives a kill | largest difference to the weights of the uninterrupted run |
#
# **Cost:** about 9 minutes (19 without bfloat16) and 5 GB on two CPU cores, an estimated 4 minutes on a T4. **Before this:** [03 ·
# LoRA](03_lora.ipynb).

# %% [markdown] id="title" lang="zh" of="179e2375"
# # 06 · 训练：循环、学习率调度与数值格式
#
# Trainer 藏起来的其实只是几行代码的循环。在这里你亲手写出来，证明每一步的损失都与库的一致，再用它测量其他设置的作用：学习率调度与预热、梯度累积、数值格式、重计算、不靠猜而是找出来的学习率，以及中断后续跑。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 自己写的训练循环 | 所有步上与 Trainer 损失的最大差值 |
# | 几种调度的比较 | 验证损失，各三个随机种子，给出波动范围 |
# | 数值格式丢掉了什么 | 一步之后没有变化的权重比例 |
# | 用时间换内存 | 开与不开重计算的内存峰值和秒数 |
# | 中断后能续上的训练 | 与不中断时权重的最大差值 |
#
# **耗时与内存：** 两个 CPU 核心上约 9 分钟（不支持 bfloat16 时约 19 分钟）、5 GB 内存，T4 上估计 4 分钟。**先修：** [03 · LoRA](03_lora.ipynb)。

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
import dataclasses
import glob
import math
import os
import shutil
import time

import matplotlib.pyplot as plt
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
    set_seed,
)

from ftlab import checks, cpu, device, memory, models, plots
from ftlab.apps import course
from ftlab.apps.board import experiment

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
r = 16  # rank of the adapter
learning_rate = 2e-3
high_learning_rate = 2e-2  # for the run that goes wrong
per_device_train_batch_size = 4  # examples per step
max_steps = 0  # optimizer steps of each run that is compared; 0: the profile's own
seed = 0

# %% id="profile"
profiles = {  # model, steps checked against the Trainer, steps of a compared run, validation rows, seeds, rates tried
    "smoke": ("smollm2-135m-short", 3, 2, 4, 1, 4),
    "cpu": ("smollm2-135m", 20, 12, 16, 3, 20),
    "t4": ("Qwen/Qwen2.5-0.5B-Instruct", 20, 30, 100, 3, 40),
    "a24g": ("Qwen/Qwen2.5-1.5B-Instruct", 20, 40, 100, 3, 40),
}
default_model, check_steps, default_steps, validation_count, seed_count, rate_count = profiles[PROFILE]
model_name = model_name or default_model
max_steps = max_steps or default_steps
set_seed(seed)

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("SFT", ax)
plt.show()

# %% [markdown] id="data-why"
# ## Data and model
# Orders to JSON, as in lesson 03. Each example becomes token ids and labels; the prompt's labels are -100, so that only
# the answer and its end are trained on.

# %% [markdown] id="data-why" lang="zh" of="58e89e1c"
# ## 数据与模型
# 与第 03 课相同的“订单转 JSON”。每个样本变成 token id 与标签；提示部分的标签是 -100，只训练回答和它的结束标记。

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)


def load(dtype):
    return AutoModelForCausalLM.from_pretrained(
        model_path, dtype=dtype, attn_implementation=attention, device_map="cuda" if on_gpu else "cpu"
    )


# %% id="data"
def to_example(row):
    chat = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    answer = tokenizer(row["output"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


orders = load_dataset("json", data_files={"train": "data/orders_train.jsonl", "eval": "data/orders_eval.jsonl"})
orders = orders.map(to_example, remove_columns=orders["train"].column_names)
# Rows of the training file that no run here trains on: settings are compared on these.
validation = orders["train"].select(range(len(orders["train"]) - validation_count, len(orders["train"])))
train_dataset = orders["train"].select(range(len(orders["train"]) - validation_count))
collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100, return_tensors="pt")
first_rows = [train_dataset[i] for i in range(per_device_train_batch_size)]
print({name: tuple(tensor.shape) for name, tensor in collate([dict(row) for row in first_rows]).items()})

# %% [markdown] id="adamw-why"
# ## One step of AdamW
# The optimizer keeps two numbers for every weight: `m`, the mean of its recent gradients, and `v`, the mean of their
# squares. The step is the learning rate times `m / sqrt(v)`: about the learning rate itself, whatever the gradient's
# size. One weight, one gradient:

# %% [markdown] id="adamw-why" lang="zh" of="c7666b84"
# ## AdamW 的一步
# 优化器为每个权重保存两个数：`m` 是近期梯度的均值（一阶矩），`v` 是梯度平方的均值（二阶矩）。更新量是学习率乘以 `m / sqrt(v)`：不管梯度多大，步长都约等于学习率。一个权重，一个梯度：


# %% id="adamw"
def adamw(weight, gradient, m, v, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """Update a weight and its two moments in place (Loshchilov and Hutter 2019, algorithm 2)."""
    m.mul_(betas[0]).add_((1 - betas[0]) * gradient)
    v.mul_(betas[1]).add_((1 - betas[1]) * gradient**2)
    corrected_m, corrected_v = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)  # both began at zero
    weight.mul_(1 - lr * weight_decay)
    weight.sub_(lr * corrected_m / (corrected_v.sqrt() + eps))


for gradient in (1e-6, 1.0, 1e6):
    weight, m, v = torch.tensor([1.0]), torch.zeros(1), torch.zeros(1)
    adamw(weight, torch.tensor([gradient]), m, v, step=1, lr=0.1)
    print(f"gradient {gradient:>9}: the weight goes from 1 to {weight.item():.4f}")

# %% id="adamw-parity"
mine, theirs = torch.randn(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
theirs.copy_(mine).requires_grad_()
optimizer = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
m, v = torch.zeros_like(mine), torch.zeros_like(mine)
for step in range(1, 11):
    theirs.grad = torch.randn(64, dtype=torch.float64)
    optimizer.step()
    adamw(mine, theirs.grad, m, v, step, lr=0.01, weight_decay=0.1)
print(f"largest difference to torch.optim.AdamW after 10 steps: {(mine - theirs).abs().max():.1e}")
assert (mine - theirs).abs().max() <= 1e-10

# %% [markdown] id="loop-why"
# ## The loop
# Forward; the loss, shifted by one position and averaged over the answer's tokens; backward; clip; step; schedule;
# clear the gradients. Everything is in float32, so that a difference would be a mistake and not a rounding error.

# %% [markdown] id="loop-why" lang="zh" of="112578f8"
# ## 训练循环
# 前向；损失要错开一个位置，并在回答的 token 上取平均；反向；裁剪；更新；调度；清空梯度。全部用 float32，这样若有差值就是写错了，而不是舍入。


# %% id="loop"
def with_adapter(model, seed=seed):
    set_seed(seed)
    return get_peft_model(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", task_type="CAUSAL_LM"))


def answer_loss_sum(model, batch):
    """Return the summed loss over the answers' tokens, and how many there are."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    # The logits at one position are about the next token.
    logits, labels = logits[:, :-1].float(), batch["labels"][:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"), (
        labels != -100
    ).sum()


def train_by_hand(model, rows, steps, batch_size):
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=math.ceil(0.1 * steps), num_training_steps=steps)
    losses = []
    for step in range(steps):
        batch = collate([dict(rows[i]) for i in range(step * batch_size, (step + 1) * batch_size)]).to(model.device)
        loss_sum, count = answer_loss_sum(model, batch)
        loss = loss_sum / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


exact_model = load(torch.float32)
check_batch_size = 2  # float32 takes its time on a CPU
by_hand = train_by_hand(with_adapter(exact_model).train(), train_dataset, check_steps, check_batch_size)
print("loss of each step:", *(f"{loss:.3f}" for loss in by_hand[:3]), "...", f"{by_hand[-1]:.3f}")

# %% [markdown] id="trainer-why"
# The same by the library's `Trainer`. Every argument that the loop above decided is spelt out.

# %% [markdown] id="trainer-why" lang="zh" of="2907eb11"
# 用库里的 `Trainer` 再来一次。上面循环里决定的每个参数都逐项写明。

# %% id="trainer"
exact_args = TrainingArguments(
    output_dir="runs/06_training",
    max_steps=check_steps,
    per_device_train_batch_size=check_batch_size,
    train_sampling_strategy="sequential",  # the rows in their order, as the loop takes them
    learning_rate=learning_rate,
    lr_scheduler_type="cosine",
    warmup_steps=0.1,  # below 1: a share of all steps
    weight_decay=0.0,
    max_grad_norm=1.0,
    optim="adamw_torch",
    logging_steps=1,
    save_strategy="no",
    use_cpu=not on_gpu,
    report_to="none",
    seed=seed,
)
exact_model = load(torch.float32)
trainer = Trainer(with_adapter(exact_model), exact_args, train_dataset=train_dataset, data_collator=collate)
trainer.train()
by_trainer = [row["loss"] for row in trainer.state.log_history if "loss" in row]
loop_max_abs_diff = max(abs(mine - theirs) for mine, theirs in zip(by_hand, by_trainer, strict=True))
print(f"{len(by_hand)} steps, largest difference of the loss: {loop_max_abs_diff:.1e}")
assert loop_max_abs_diff <= 1e-4

# %% [markdown] id="schedule-why"
# ## Schedules
# A schedule scales the learning rate from step to step. The cosine one, by hand and from the library:

# %% [markdown] id="schedule-why" lang="zh" of="068e6c7c"
# ## 学习率调度
# 调度器逐步缩放学习率。先手写余弦调度，再与库的比较：


# %% id="schedule"
def cosine(step, total, warmup):
    """Return the share of the learning rate at a step: up in a line, down in half a cosine."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def library_rates(name, total, warmup, rate=1.0):
    """Return the learning rate of each step from the library's schedule."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


schedule_max_abs_diff = max(abs(cosine(step, 50, 5) - rate) for step, rate in enumerate(library_rates("cosine", 50, 5)))
print(f"largest difference of the two cosine schedules: {schedule_max_abs_diff:.1e}")
assert schedule_max_abs_diff <= 1e-12

# %% [markdown] id="predict-why"
# **Predict before you run:** three schedules and one without warm-up, the same steps, three seeds each. Is the difference
# between the best and the worst schedule larger than the spread between seeds? Write `True` or `False`.

# %% [markdown] id="predict-why" lang="zh" of="807a5f17"
# **先预测，再运行：** 三种调度，外加一种不预热的，步数相同，各三个随机种子。最好与最差调度之间的差距，会比随机种子之间的波动更大吗？写 `True` 或 `False`。

# %% id="predict"
guess_schedule_matters = True  # your guess

# %% id="compared"
model = load(dtype)
run_args = dataclasses.replace(
    exact_args,
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    train_sampling_strategy="random",
    disable_tqdm=True,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
)


def adapter_weights(model):
    return torch.cat([weight.detach().float().flatten() for weight in model.parameters() if weight.requires_grad])


def compare(seed, steps=max_steps, **changed):
    """Train a fresh adapter; return its validation loss, the loss of each step and its weights."""
    args = dataclasses.replace(run_args, seed=seed, **changed)
    run = Trainer(with_adapter(model, seed), args, train_dataset=train_dataset, data_collator=collate)
    run.remove_callback(PrinterCallback)
    if steps < args.max_steps:
        run.add_callback(StopAt(steps))
    run.train()
    loss, weights = mean_loss(run.model, validation), adapter_weights(run.model)
    run.model.unload()
    return loss, [row["loss"] for row in run.state.log_history if "loss" in row], weights


@torch.inference_mode()
def mean_loss(model, rows):
    """Return the loss per answer token over all rows."""
    model.eval()
    starts = range(0, len(rows), 16)
    batches = [collate([dict(row) for row in rows.select(range(i, min(i + 16, len(rows))))]) for i in starts]
    sums = [answer_loss_sum(model, batch.to(model.device)) for batch in batches]
    return (sum(loss_sum for loss_sum, _ in sums) / sum(count for _, count in sums)).item()


class StopAt(TrainerCallback):
    """Stop after some steps, as an impatient person would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


seeds = range(seed, seed + seed_count)
schedules = {
    "cosine, warm-up 10%": {"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
    "linear, warm-up 10%": {"lr_scheduler_type": "linear", "warmup_steps": 0.1},
    "constant, warm-up 10%": {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1},
    "cosine, no warm-up": {"lr_scheduler_type": "cosine", "warmup_steps": 0},
}
started = time.perf_counter()
runs = {name: [compare(seed, **changed) for seed in seeds] for name, changed in schedules.items()}
losses = {name: [loss for loss, _, _ in results] for name, results in runs.items()}
compared_seconds = time.perf_counter() - started


# %% id="compared-table"
def spread(values):
    return max(values) - min(values)


means = {name: sum(values) / len(values) for name, values in losses.items()}
for name, values in losses.items():
    print(f"{name:<22} validation loss: mean {means[name]:.3f}, seeds from {min(values):.3f} to {max(values):.3f}")
between, within = spread(means.values()), max(map(spread, losses.values()))
print(f"largest difference between two schedules' means {between:.3f} nats, between two seeds of one {within:.3f} nats")

# %% id="answer-schedule"
print(
    f"you predicted that the schedule matters more than the seed: {guess_schedule_matters}; measured: {between > within}"
)

# %% id="schedule-plot"
fig, axes = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
for name, changed in schedules.items():
    warmup = math.ceil(changed["warmup_steps"] * max_steps)
    axes[0].plot(library_rates(changed["lr_scheduler_type"], max_steps, warmup, learning_rate), label=name)
axes[0].set(xlabel="optimizer step", ylabel="learning rate", title="What does each schedule do?")
for row, values in enumerate(losses.values()):
    axes[1].plot(values, [row] * len(values), "o", alpha=0.7)
    axes[1].plot(sum(values) / len(values), row, "k|", markersize=16)
axes[1].set(yticks=[], xlabel="validation loss (dots: seeds, bar: their mean)", title="Which ends lowest?")
axes[1].invert_yaxis()
axes[1].grid(axis="x", alpha=0.3)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
plt.show()

# %% [markdown] id="break-why"
# ## What goes wrong
# Two classic mistakes. A high learning rate *without* warm-up: AdamW's first steps are full-size in every weight,
# before `v` is a good estimate of the size of the gradients. And a schedule that is *cut short*: planned for three
# times the steps and stopped early, it never reaches the small learning rates at its end.

# %% [markdown] id="break-why" lang="zh" of="b0437210"
# ## 故意出错
# 两个经典错误。一是学习率很高却*不预热*：AdamW 最初几步对每个权重都走满步长，而 `v` 还没有估准梯度的大小。二是调度被*中途截断*：按三倍步数安排，却提前停下，永远到不了末尾的小学习率。

# %% id="break"
faults = {
    f"lr {learning_rate:g}, warm-up 10%": (learning_rate, 0.1, max_steps),
    f"lr {high_learning_rate:g}, warm-up 10%": (high_learning_rate, 0.1, max_steps),
    f"lr {high_learning_rate:g}, no warm-up": (high_learning_rate, 0, max_steps),
    f"lr {learning_rate:g}, cut short": (learning_rate, 0.1, 3 * max_steps),
}
fig, ax = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
fault_losses = {}
for name, (rate, warmup, planned) in faults.items():
    if (rate, warmup, planned) == (learning_rate, 0.1, max_steps):
        fault_losses[name], log, _ = runs["cosine, warm-up 10%"][0]  # this run was made above
    else:
        fault_losses[name], log, _ = compare(seed, learning_rate=rate, warmup_steps=warmup, max_steps=planned)
    ax.plot(range(1, len(log) + 1), log, label=name)
    print(f"{name:<24} validation loss {fault_losses[name]:>6.3f}")
ax.set(xlabel="optimizer step", ylabel="loss per trained token", title="Which run ends worst?", yscale="log")
ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
plt.show()

# %% [markdown] id="break-read"
# Compare the two runs at the high rate. If the one with warm-up also ends far above the others, warm-up didn't rescue
# it: it delays the full-size steps, it doesn't make them smaller. Then compare the schedule that was cut short with the
# full one at the same rate, beside the spread between seeds measured above: the gap is what the small steps at the end
# are worth.

# %% [markdown] id="break-read" lang="zh" of="5eb7252b"
# 比较两次高学习率的训练。如果带预热的那次也远高于其余几次，预热就没能救它：预热只推迟了满步长的更新，并没有让步长变小。再把截断的调度与同一学习率的完整调度相比，并对照上面随机种子之间的波动：两者的差距就是末尾那些小步长的价值。

# %% [markdown] id="accumulate-why"
# ## Gradient accumulation, and its trap
# Two batches of four examples instead of one of eight: add up both gradients, then take the step. The result equals
# that of eight at once only if the loss is divided by the tokens of *all* eight. A mean of two means weighs a token
# of the shorter half more. Transformers did that until 2024 (huggingface/transformers issue 34198).

# %% [markdown] id="accumulate-why" lang="zh" of="e797757b"
# ## 梯度累积，以及它的陷阱
# 把一批八个样本拆成两批，每批四个：梯度相加，再更新。只有损失除以*全部*八个样本的 token 数时，两者才相等。对两个平均值再取平均，会让较短那一半的 token 权重更大。Transformers 直到 2024 年还有这个问题（huggingface/transformers issue 34198）。


# %% id="accumulate"
def gradient(model):
    """Take the gradient of the adapter as one vector, and clear it."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    vector = torch.cat([weight.grad.flatten() for weight in trained])
    model.zero_grad()
    return vector


exact_model = with_adapter(load(torch.float32)).train()
by_length = sorted(range(64), key=lambda i: len(train_dataset[i]["input_ids"]))
halves = [[dict(train_dataset[i]) for i in by_length[:4]], [dict(train_dataset[i]) for i in by_length[-4:]]]
loss_sum, count = answer_loss_sum(exact_model, collate(halves[0] + halves[1]).to(exact_model.device))
(loss_sum / count).backward()
at_once = gradient(exact_model)
parts = [answer_loss_sum(exact_model, collate([dict(row) for row in half]).to(exact_model.device)) for half in halves]
total = sum(part_count for _, part_count in parts)
for part_sum, _ in parts:
    (part_sum / total).backward(retain_graph=True)
by_tokens = gradient(exact_model)
for part_sum, part_count in parts:
    (part_sum / part_count / 2).backward()
mean_of_means = gradient(exact_model)
accumulation_error = ((by_tokens - at_once).norm() / at_once.norm()).item()
trap_error = ((mean_of_means - at_once).norm() / at_once.norm()).item()
print(f"answer tokens in the two halves: {[int(part_count) for _, part_count in parts]}")
print(f"divided by all tokens: gradient {accumulation_error:.1e} away from that of eight at once")
print(f"mean of two means:     gradient {trap_error:.1e} away")
assert accumulation_error <= 1e-4

# %% [markdown] id="precision-why"
# ## Number formats
# bfloat16 has float32's range but only about three digits; float16 has more digits and a small range. This has two
# consequences. An update that is small beside its weight *rounds away* in bfloat16. A gradient that is small in
# itself becomes *zero* in float16, which is why float16 training multiplies the loss first (loss scaling); how large
# a part of a real gradient that concerns is counted below. So what is trained is kept in float32 (PEFT does so with
# its adapters), and 16-bit formats are used for frozen weights and matrix products.

# %% [markdown] id="precision-why" lang="zh" of="d48a966a"
# ## 数值格式
# bfloat16 的范围和 float32 一样，但只有约三位有效数字；float16 有效位数更多，范围却小。后果有两个：相对权重太小的更新，在 bfloat16 里会被*舍掉*；本身太小的梯度，在 float16 里会变成*零*，所以 float16 训练要先放大损失（loss scaling）；真实的梯度里有多大一部分会这样，下面数一数。因此，要训练的权重用 float32 保存（PEFT 的适配器就是这样），16 比特用于冻结的权重和矩阵乘积。

# %% id="formats"
formats = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
for name, number_format in formats.items():
    added = torch.tensor(1.0, dtype=number_format) + 1e-3
    tiny = torch.tensor(1e-8, dtype=number_format)
    print(f"{name:<9} 1 + 0.001 = {added:.6f}, 1e-8 = {tiny:.1e}, largest {torch.finfo(number_format).max:.1e}")

# %% id="underflow"
# The gradient of the eight orders above, as float16 would hold it, with the loss multiplied by 1 and by 2 to the 16th.
real_gradient = at_once[at_once != 0]
underflow = {}
for scale in (1, 2**16):
    stored = (scale * real_gradient).to(torch.float16)
    underflow[scale] = (stored == 0).float().mean().item()
    overflow = (~stored.isfinite()).float().mean().item()
    print(f"loss x {scale:<6} {underflow[scale]:.2%} of the gradient becomes zero, {overflow:.2%} infinite")

# %% id="format-seconds"
for name, number_format in formats.items():
    if name not in ("float32", dtype):
        print(f"{name:<9} not timed: this machine has no instructions for it")
        continue
    left = torch.randn(512, 1536, dtype=number_format, device=exact_model.device)
    (left @ left.T).sum().item()  # the first product prepares the kernel
    started = time.perf_counter()
    for _ in range(10):
        product = left @ left.T
    product.sum().item()
    print(f"{name:<9} {(time.perf_counter() - started) * 100:.2f} ms for a product of 512 x 1536 x 512")

# %% id="lost-updates"
# AdamW's first step moves every weight by about the learning rate: which of the model's own weights notice?
weight = next(w for name, w in model.named_parameters() if name.endswith("q_proj.weight")).detach().float().flatten()
rates = [10.0**-power for power in range(6, 1, -1)]
unchanged = {}
for name, number_format in formats.items():
    stored = weight.to(number_format)
    unchanged[name] = [((stored - rate) == stored).float().mean().item() for rate in rates]
    print(
        f"{name:<9}"
        + "".join(f"  lr {rate:.0e}: {share:>4.0%}" for rate, share in zip(rates, unchanged[name], strict=True))
    )

# %% id="lost-plot"
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for name, shares in unchanged.items():
    ax.plot(rates, [100 * share for share in shares], "o-", label=name)
ax.set(xscale="log", xlabel="learning rate", ylabel="weights unchanged, %", title="Which updates are rounded away?")
ax.grid(alpha=0.3)
ax.legend()
plt.show()

# %% [markdown] id="recompute-why"
# ## Recomputation (gradient checkpointing)
# The backward pass needs what the forward pass computed. Keep it, or keep each block's input alone and compute the block
# again: less memory, more time, the same gradient. (Nothing to do with *checkpoints*, which are saved weights.) What it
# saves follows from the model's sizes; lesson 04 derives that estimate.

# %% [markdown] id="recompute-why" lang="zh" of="02fd79a3"
# ## 重计算（gradient checkpointing）
# 反向传播需要前向计算的中间结果。要么都留着，要么只留每个块的输入、用到时再算一遍：内存更少，时间更多，梯度不变。（与 *checkpoint*，即保存的权重，是两回事。）能省多少由模型的尺寸决定，估算方法见第 04 课。

# %% id="recompute"
batch = collate([dict(train_dataset[i]) for i in range(8)]).to(exact_model.device)
recomputed = {}
for recompute in (False, True):
    if recompute:
        exact_model.gradient_checkpointing_enable()
    started = time.perf_counter()
    with memory.measure_peak_bytes(exact_model) as peak:
        loss_sum, count = answer_loss_sum(exact_model, batch)
        (loss_sum / count).backward()
    recomputed[recompute] = (peak.bytes, time.perf_counter() - started, gradient(exact_model))
for recompute, (peak_bytes, seconds, _) in recomputed.items():
    label = "activations recomputed" if recompute else "activations kept"
    print(f"{label:<22} peak {peak_bytes / 2**20:>5.0f} MiB, {seconds:.2f} s")
sizes, tokens_each = memory.Decoder.from_config(exact_model.config.to_dict()), batch["input_ids"].shape[1]
numbers = {"adapter_rank": r, "linear_bytes": 4, "other_bytes": 4, "trained_bytes": 4, "eager": not on_gpu}
told = memory.Training(len(batch["input_ids"]), tokens_each, sizes.lora_parameters(r), **numbers)
predicted = [
    memory.estimate(sizes, dataclasses.replace(told, checkpointing=recompute)).activations
    for recompute in (False, True)
]
saved, saved_predicted = recomputed[False][0] - recomputed[True][0], predicted[0] - predicted[1]
print(f"saved: {saved_predicted / 2**20:.0f} MiB predicted, {saved / 2**20:.0f} MiB measured")
recompute_error = ((recomputed[True][2] - recomputed[False][2]).norm() / recomputed[False][2].norm()).item()
print(f"difference of the gradients: {recompute_error:.1e}")
assert recompute_error <= 1e-4 and recomputed[True][0] < recomputed[False][0]

# %% [markdown] id="finder-why"
# ## Find a learning rate
# Raise it a little with every step and watch the loss (Smith 2017): too low does nothing, too high blows up. A third of
# the rate where the loss was lowest is a start; runs on validation rows decide.

# %% [markdown] id="finder-why" lang="zh" of="18e7a4f7"
# ## 找一个学习率
# 每一步都把学习率调高一点，观察损失（Smith 2017）：太低没有变化，太高就发散。先取损失最低处学习率的三分之一，再用验证集上的训练来定。

# %% id="finder"
lowest, highest = 1e-5, 1e-1
tried = [lowest * (highest / lowest) ** (step / (rate_count - 1)) for step in range(rate_count)]
candidate = with_adapter(model).train()
trained = [weight for weight in candidate.parameters() if weight.requires_grad]
optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
seen = []
for step, rate in enumerate(tried):
    optimizer.param_groups[0]["lr"] = rate
    rows = [
        dict(train_dataset[i])
        for i in range(step * per_device_train_batch_size, (step + 1) * per_device_train_batch_size)
    ]
    loss_sum, count = answer_loss_sum(candidate, collate(rows).to(candidate.device))
    (loss_sum / count).backward()
    optimizer.step()
    optimizer.zero_grad()
    seen.append((loss_sum / count).item())
candidate.unload()
smooth = [sum(seen[max(0, i - 2) : i + 3]) / len(seen[max(0, i - 2) : i + 3]) for i in range(len(seen))]
best_rate = tried[smooth.index(min(smooth))]
print(
    f"lowest loss at {best_rate:.1e}; a third of it: {best_rate / 3:.1e}; this lesson's runs used {learning_rate:.1e}"
)

# %% id="finder-plot"
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.plot(tried, seen, ".", alpha=0.5, label="each step")
ax.plot(tried, smooth, label="mean of five steps")
ax.axvline(best_rate / 3, linestyle="--", color="#555", label="a third of the lowest point's rate")
ax.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="loss per trained token")
ax.set_title("From which rate does the loss rise?")
ax.legend()
plt.show()

# %% [markdown] id="tracker-why"
# ## A tracker is a callback
# TensorBoard, Weights & Biases, MLflow and the others receive what the Trainer logs: `report_to="tensorboard"` adds a callback
# like this one, which writes a file that any tool can read. The run of the next section reports to both.

# %% [markdown] id="tracker-why" lang="zh" of="138b2388"
# ## 实验跟踪工具就是一个回调
# TensorBoard、Weights & Biases、MLflow 等收到的就是 Trainer 记录的内容：`report_to="tensorboard"` 会加上一个类似下面的回调。这里把日志写进文件，任何工具都能读。下一节的训练会同时写给这两者。


# %% id="tracker"
class CsvLog(TrainerCallback):
    """Write every logged loss as a line of a CSV file."""

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            with open(f"{args.output_dir}/loss.csv", "a") as file:
                print(state.global_step, logs["loss"], logs["learning_rate"], sep=",", file=file)


# %% [markdown] id="overfit-why"
# ## Overfit one batch
# The cheapest test of a training set-up: the same few examples again and again must end near a loss of zero. If they don't,
# labels, masks or gradients are wrong, and a long run would hide it.

# %% [markdown] id="overfit-why" lang="zh" of="32d1551b"
# ## 过拟合一个批次
# 成本最低的自检：同样几个样本反复训练，最后的损失必须接近零。如果做不到，就是标签、掩码或梯度有错，而长时间训练只会把它藏起来。

# %% id="overfit"
same_rows = train_dataset.select(
    [i % per_device_train_batch_size for i in range(per_device_train_batch_size * max_steps)]
)
shutil.rmtree("runs/06_training/tracked", ignore_errors=True)
os.makedirs("runs/06_training/tracked")
tracked = dataclasses.replace(run_args, output_dir="runs/06_training/tracked", report_to="tensorboard")
candidate = with_adapter(model)
run = Trainer(candidate, tracked, train_dataset=same_rows, data_collator=collate, callbacks=[CsvLog()])
run.remove_callback(PrinterCallback)
run.train()
overfit_loss = mean_loss(candidate, same_rows.select(range(per_device_train_batch_size)))
candidate.unload()
print(f"loss on the same {per_device_train_batch_size} examples after {max_steps} steps: {overfit_loss:.4f}")

# %% [markdown] id="tensorboard-why"
# What did TensorBoard record? `tensorboard --logdir runs/06_training/tracked` shows it in a browser; its event file
# can be read from here too. It must hold the numbers of the CSV file.

# %% [markdown] id="tensorboard-why" lang="zh" of="85f23f78"
# TensorBoard 记录了什么？在浏览器里看用 `tensorboard --logdir runs/06_training/tracked`；它的事件文件也可以在这里直接读出来，数值应与 CSV 文件相同。

# %% id="tensorboard"
(folder,) = {os.path.dirname(path) for path in glob.glob("runs/06_training/tracked/**/*tfevents*", recursive=True)}
events = EventAccumulator(folder).Reload()
scalars = events.Scalars("train/loss")
with open("runs/06_training/tracked/loss.csv") as file:
    lines = [line.strip().split(",") for line in file]
print("scalars in TensorBoard's file:", *events.Tags()["scalars"])
tracker_max_abs_diff = max(abs(scalar.value - float(line[1])) for scalar, line in zip(scalars, lines, strict=True))
print(f"{len(lines)} losses in each, largest difference {tracker_max_abs_diff:.1e}")
assert [scalar.step for scalar in scalars] == [int(line[0]) for line in lines] and tracker_max_abs_diff < 1e-5
fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
ax.plot([scalar.step for scalar in scalars], [scalar.value for scalar in scalars], "o-")
ax.set(xlabel="optimizer step", ylabel="loss (from TensorBoard's file)", yscale="log", title="Does one batch overfit?")
ax.grid(alpha=0.3)
plt.show()

# %% [markdown] id="resume-why"
# ## Kill it, and resume
# A checkpoint holds the weights, both moments of AdamW, the position in the schedule, the state of the random
# generators and the position in the data. With all of them a resumed run continues as if nothing had happened; with
# the weights alone it doesn't.

# %% [markdown] id="resume-why" lang="zh" of="8133de92"
# ## 中断，再续上
# 一个 checkpoint 里有权重、AdamW 的一阶矩和二阶矩、调度走到哪里、随机数生成器的状态、数据读到哪里。这些全部恢复，续跑就和没有中断过一样；只恢复权重则不行。


# %% id="resume"
shutil.rmtree("runs/06_training/killed", ignore_errors=True)
half = max(1, max_steps // 2)
saving = dataclasses.replace(
    run_args,
    output_dir="runs/06_training/killed",
    logging_strategy="no",
    save_strategy="steps",
    save_steps=half,
)
# The first run of the comparison above had the same seed and settings, and ran to its end.
uninterrupted = runs["cosine, warm-up 10%"][0][2]
run = Trainer(with_adapter(model), saving, train_dataset=train_dataset, data_collator=collate, callbacks=[StopAt(half)])
run.remove_callback(PrinterCallback)
run.train()
model = run.model.unload()
differences = {}
for keeps in ("everything", "weights alone"):
    candidate = with_adapter(model)
    run = Trainer(candidate, saving, train_dataset=train_dataset, data_collator=collate)
    run.remove_callback(PrinterCallback)
    if keeps == "everything":
        run.train(resume_from_checkpoint=f"runs/06_training/killed/checkpoint-{half}")
    else:
        candidate.load_adapter(f"runs/06_training/killed/checkpoint-{half}", "default", is_trainable=True)
        run.args.max_steps = max_steps - half
        run.train()
    differences[keeps] = (adapter_weights(candidate) - uninterrupted).abs().max().item()
    model = candidate.unload()
    print(f"resumed with {keeps + ':':<14} largest difference to the uninterrupted run {differences[keeps]:.1e}")

# %% [markdown] id="experiment-why"
# ## Experiment
# Shape a schedule. The area under the curve bounds how far the weights can move in total; its end decides how
# precisely they converge.

# %% [markdown] id="experiment-why" lang="zh" of="19983d54"
# ## 动手试一试
# 设计一条学习率曲线。曲线下的面积限定了权重总共能移动多远，末尾的大小决定收敛得多精细。


# %% id="experiment"
def draw(lr_scheduler_type, warmup_share, steps):
    rates = library_rates(lr_scheduler_type, steps, round(warmup_share * steps))
    _, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
    ax.fill_between(range(steps), rates, alpha=0.3)
    ax.plot(rates)
    ax.set(xlabel="optimizer step", ylabel="share of the peak learning rate", ylim=(0, 1.05))
    ax.set_title("How large is the area, and how does it end?")
    plt.show()
    print(f"area: {sum(rates) / steps:.0%} of a constant rate; last step at {rates[-1]:.1%}")


experiment.show(
    draw,
    lr_scheduler_type=["cosine", "linear", "constant_with_warmup", "polynomial", "inverse_sqrt"],
    warmup_share=(0.0, 0.5, 0.05),
    steps=(10, 200, 10),
)

# %% [markdown] id="exercise-linear-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 06`
# checks your saved copy of the whole lesson.
#
# **1.** Write the linear schedule with warm-up: the learning rate at `step` of `total` steps, up from 0 to `peak` over the
# first `warmup` steps, then down in a line to 0 at `total`.

# %% [markdown] id="exercise-linear-why" lang="zh" of="9db819d4"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 06` 检查你保存的整课练习。
#
# **1.** 写出带预热的线性调度：返回第 `step` 步（共 `total` 步）的学习率，前 `warmup` 步从 0 线性升到 `peak`，之后线性降到 `total` 处的 0。

# %% id="exercise-linear" tags=["exercise"]


def linear_rate(step, total, warmup, peak):
    return ...  # your code


print(linear_rate(5, 20, 10, 1.0), linear_rate(15, 20, 10, 1.0))  # 0.5 twice once it is right

checks.check_linear_rate(linear_rate)

# %% [markdown] id="exercise-linear-solution"
# <details><summary>Solution</summary>
#
# ```python
# def linear_rate(step, total, warmup, peak):
#     if step < warmup:
#         return peak * step / warmup
#     return peak * (total - step) / (total - warmup)
# ```
#
# </details>

# %% [markdown] id="exercise-linear-solution" lang="zh" of="6cc6398a"
# <details><summary>参考答案</summary>
#
# ```python
# def linear_rate(step, total, warmup, peak):
#     if step < warmup:
#         return peak * step / warmup
#     return peak * (total - step) / (total - warmup)
# ```
#
# </details>

# %% [markdown] id="exercise-clip-why"
# **2.** Clip a gradient vector: where its Euclidean norm exceeds `max_norm`, scale it down to that norm; otherwise leave it.

# %% [markdown] id="exercise-clip-why" lang="zh" of="e551e4cb"
# **2.** 裁剪一个梯度向量：欧氏范数超过 `max_norm` 时缩放到该范数，否则保持不变。

# %% id="exercise-clip" tags=["exercise"]


def clipped_gradient(gradient, max_norm):
    return ...  # your code


print(clipped_gradient(torch.tensor([3.0, 4.0]), 1.0))  # 0.6 and 0.8 once it is right

checks.check_clipped_gradient(clipped_gradient)

# %% [markdown] id="exercise-clip-solution"
# <details><summary>Solution</summary>
#
# ```python
# def clipped_gradient(gradient, max_norm):
#     return gradient * min(1.0, max_norm / gradient.norm().item())
# ```
#
# </details>

# %% [markdown] id="exercise-clip-solution" lang="zh" of="b2d9ea52"
# <details><summary>参考答案</summary>
#
# ```python
# def clipped_gradient(gradient, max_norm):
#     return gradient * min(1.0, max_norm / gradient.norm().item())
# ```
#
# </details>

# %% [markdown] id="exercise-accumulated-why"
# **3.** The loss of accumulated micro-batches: `losses` is a list of tensors of losses per token, `masks` says with 1 which
# tokens count. Return the loss that one batch of all of them would have.

# %% [markdown] id="exercise-accumulated-why" lang="zh" of="1e5e1cef"
# **3.** 累积若干微批次的损失：`losses` 是每个 token 损失的张量列表，`masks` 用 1 标出计入损失的 token。返回把它们合成一个大批次时的损失。

# %% id="exercise-accumulated" tags=["exercise"]


def accumulated_loss(losses, masks):
    return ...  # your code


print(
    accumulated_loss([torch.tensor([1.0, 1.0, 1.0]), torch.tensor([5.0, 0.0])], [torch.ones(3), torch.tensor([1, 0])])
)  # 2

checks.check_accumulated_loss(accumulated_loss)

# %% [markdown] id="exercise-accumulated-solution"
# <details><summary>Solution</summary>
#
# ```python
# def accumulated_loss(losses, masks):
#     total = sum((loss * mask).sum() for loss, mask in zip(losses, masks))
#     return total / sum(mask.sum() for mask in masks)
# ```
#
# </details>

# %% [markdown] id="exercise-accumulated-solution" lang="zh" of="fc15403e"
# <details><summary>参考答案</summary>
#
# ```python
# def accumulated_loss(losses, masks):
#     total = sum((loss * mask).sum() for loss, mask in zip(losses, masks))
#     return total / sum(mask.sum() for mask in masks)
# ```
#
# </details>

# %% [markdown] id="exercise-state-why"
# **4.** Full fine-tuning in float32 with AdamW keeps weights, gradients and two moments. How many bytes for 135 million
# weights, activations left out?

# %% [markdown] id="exercise-state-why" lang="zh" of="768d1c0f"
# **4.** 用 float32 和 AdamW 做全量微调，要保存权重、梯度和两个矩。1.35 亿个权重需要多少字节（不算激活值）？

# %% id="exercise-state" tags=["exercise"]
state_bytes = ...  # your answer

checks.check_state_bytes(state_bytes)

# %% [markdown] id="exercise-state-solution"
# <details><summary>Solution</summary>
#
# ```python
# state_bytes = 135e6 * 4 * 4
# ```
#
# </details>

# %% [markdown] id="exercise-state-solution" lang="zh" of="8013ddb0"
# <details><summary>参考答案</summary>
#
# ```python
# state_bytes = 135e6 * 4 * 4
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
outcomes = {
    "loop_max_abs_diff": loop_max_abs_diff,
    "schedule_max_abs_diff": schedule_max_abs_diff,
    "accumulation_error": accumulation_error,
    "trap_error": trap_error,
    "cosine_loss": means["cosine, warm-up 10%"],
    "between_schedules": between,
    "between_seeds": within,
    "recompute_memory_share": recomputed[True][0] / recomputed[False][0],
    "recompute_prediction_error": abs(saved_predicted / saved - 1),
    "float16_underflow_unscaled": underflow[1],
    "float16_underflow_scaled": underflow[2**16],
    "overfit_loss": overfit_loss,
    "tracker_max_abs_diff": tracker_max_abs_diff,
    "resumed_max_abs_diff": differences["everything"],
    "weights_alone_max_abs_diff": differences["weights alone"],
    "bfloat16_unchanged_at_1e-5": unchanged["bfloat16"][1],
    "compared_seconds": compared_seconds,
}
bands = {
    "loop_max_abs_diff": (0, 1e-5),
    "trap_error": (1e-2, 10),
    "recompute_prediction_error": (0, 0.1),
    "overfit_loss": (0, 0.1),
    "resumed_max_abs_diff": (0, 0),
    "weights_alone_max_abs_diff": (1e-5, 10),
    "bfloat16_unchanged_at_1e-5": (0.5, 1),
}
course.record(outcomes, bands if PROFILE == "cpu" else {})

# %% [markdown] id="next"
# **You keep** `runs/06_training/killed`: a checkpoint to look into.
#
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`; on a T4, Trainer scales the loss for float16 by itself; watch the
# first steps.
#
# **Next:** what a fine-tune makes a model forget, and how to prevent it: [07 · Forgetting](07_forgetting.ipynb).

# %% [markdown] id="next" lang="zh" of="b7c5f467"
# **你得到的文件：** `runs/06_training/killed`，可以打开看看 checkpoint 里有什么。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`；T4 上的 float16 会自动做损失缩放，留意最初几步。
#
# **下一课：** 微调会让模型忘掉什么，怎样避免：[07 · 遗忘](07_forgetting.ipynb)。
