# %% [markdown] id="title"
# # 05 · Which method? One budget, one table
#
# Full fine-tuning, LoRA and its variants, adapters, prefixes, optimizers: each has a paper of its own, with a
# comparison of its own. Here they all get the same task and the same examples, those that are ranked also the same
# number of learning rates to choose from, and the claims about them follow from the table.
#
# | you will have | measured as |
# |---|---|
# | one row per method | unseen orders that come out as exactly the right JSON, with a 95% interval |
# | its price | weights trained, memory that training adds, seconds |
# | what it forgets | general questions still answered correctly |
# | the effect of chance | the front runners again with other seeds |
# | an adapter on disk | `runs/05_methods/LoRA`, loaded again with one call |
#
# **Cost:** about 15 minutes (59 without bfloat16) and 4.5 GB on two CPU cores, an estimated 10 minutes on a T4. **Before
# this:** [03 · LoRA](03_lora.ipynb); [04 · QLoRA](04_qlora.ipynb) helps.

# %% [markdown] id="title" lang="zh" of="6d78cec8"
# # 05 · 该选哪种方法？同一份预算，同一张表
#
# 全量微调、LoRA 及其变体、适配器、前缀、优化器：每一种都有自己的论文、自己的比较方式。在这里，它们面对同样的任务、同样的样本，参加排名的方法可选的学习率个数也相同；能下什么结论，由表说了算。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 每种方法一行 | 未见过的订单中 JSON 完全正确的比例，带 95% 置信区间 |
# | 它的开销 | 训练的权重数、训练多占的内存、秒数 |
# | 它遗忘了什么 | 仍能答对的常识问题 |
# | 哪些差别只是偶然 | 换几个种子，把领先者再跑一遍 |
# | 磁盘上的一个适配器 | `runs/05_methods/LoRA`，一行代码即可重新加载 |
#
# **耗时与内存：** 两个 CPU 核心上约 15 分钟（不支持 bfloat16 时约 59 分钟）、4.5 GB 内存，T4 上估计 10 分钟。**先修：** [03 · LoRA](03_lora.ipynb)；[04 · QLoRA](04_qlora.ipynb) 会有帮助。

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
import copy
import dataclasses
import json
import re
import time
from contextlib import redirect_stdout
from itertools import chain

import matplotlib.pyplot as plt
import torch
from datasets import load_dataset
from peft import (
    AdaLoraConfig,
    AutoPeftModelForCausalLM,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    T5Config,
    TrainerCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from ftlab import checks, cpu, device, evaluate, models, plots
from ftlab.apps import course
from ftlab.apps.board import experiment

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
r = 16  # rank, where a method has one
max_steps = 0  # optimizer steps of each method; 0: the profile's own
per_device_train_batch_size = 0  # examples per step; 0: the profile's own
seed = 0

# %% id="profile"
# Model, optimizer steps of each method, examples per step; orders scored, general questions; front runners that get
# further seeds, seeds in all, methods of the last group; factor of all learning rates, chosen for the 135M model.
profiles = {
    "smoke": ("smollm2-135m-short", 1, 2, 2, 1, 1, 2, 10, 1),
    "cpu": ("smollm2-135m", 20, 4, 104, 20, 3, 3, 0, 1),
    "t4": ("Qwen/Qwen2.5-0.5B-Instruct", 40, 8, 120, 20, 3, 3, 10, 1 / 2),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 40, 8, 120, 20, 3, 3, 10, 1 / 10),
}
default_model, default_steps, default_batch, order_count, *counts, rate_factor = profiles[PROFILE]
general_count, front_count, seed_count, more_count = counts
model_name = model_name or default_model
max_steps = max_steps or default_steps
per_device_train_batch_size = per_device_train_batch_size or default_batch

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("SFT", ax)
plt.show()

# %% [markdown] id="task-why"
# ## One task, two scores
# The task is lesson 03's: an order in plain words becomes JSON. One part of the orders is for training, one for choosing
# learning rates (*validation*), and the score is reported on the third, whose sentence forms occur in neither. The
# second score is what is lost: general questions, answered freely.

# %% [markdown] id="task-why" lang="zh" of="1ec8401e"
# ## 一个任务，两个分数
# 任务与第 03 课相同：把一句点单的话变成 JSON。订单分三份：一份用来训练，一份用来选学习率（*验证集*），得分只在第三份上报告，它的句式在前两份里都没有出现过。第二个分数衡量丢了什么：自由回答的常识问题。

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)
untouched = AutoModelForCausalLM.from_pretrained(
    model_path,
    dtype=dtype,
    attn_implementation="sdpa" if on_gpu else "eager",  # on a CPU plain products are faster while rows are short
    device_map="cuda" if on_gpu else "cpu",
).eval()


# %% id="data"
def to_order(row):
    prompt = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["output"]}]}


orders = load_dataset("json", data_files={"train": "data/orders_train.jsonl", "test": "data/orders_eval.jsonl"})
orders = orders.map(to_order, remove_columns=orders["train"].column_names)
train_pool, validation = orders["train"].select(range(600)), orders["train"].select(range(600, 648))
test = orders["test"].select(range(order_count))
general = list(load_dataset("json", data_files="data/general_freeform_en.jsonl", split="train"))[:general_count]
print(f"{len(train_pool)} orders to train on, {len(validation)} to choose rates on, {len(test)} to report")
print(test[0]["prompt"][0]["content"], test[0]["completion"][0]["content"], sep="\n")

# %% [markdown] id="forced-why"
# ### Scoring without generating
# Greedy decoding takes the most likely token at each position. So the greedy answer is exactly the expected one if, and
# only if, every token of the expected answer is the most likely one *after the correct tokens before it*: at the first
# position where it is not, greedy decoding leaves the path. One forward pass over prompt and answer shows all positions
# at once. Once a model can do the task, we check this against real generation, and compare the seconds.

# %% [markdown] id="forced-why" lang="zh" of="ce191344"
# ### 不生成也能打分
# 贪心解码在每个位置取概率最大的 token。因此，贪心回答与标准答案完全一致，当且仅当标准答案的每个 token *在前面的 token 都正确时*恰好概率最大：只要有一个位置不是，贪心解码就会偏离。把提示和答案一起做一次前向计算，就能看到所有位置。等模型学会这个任务，我们再用真正的生成来核对，顺便比较耗时。


# %% id="forced"
def to_ids(row):
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
    answer = tokenizer(row["completion"][0]["content"], add_special_tokens=False)["input_ids"]
    return prompt, [*answer, tokenizer.eos_token_id]


@torch.no_grad()
def score(model, rows):
    """Return for each row whether the greedy answer would be exact, and the loss per answer token in nats."""
    exact, loss, count = [], 0, 0
    for start in range(0, len(rows), 24):
        pairs = [to_ids(row) for row in rows.select(range(start, min(start + 24, len(rows))))]
        width = max(len(prompt + answer) for prompt, answer in pairs)
        spare = [[0] * (width - len(prompt + answer)) for prompt, answer in pairs]
        ids = torch.tensor([p + a + s for (p, a), s in zip(pairs, spare, strict=True)]).to(model.device)
        is_text = torch.tensor([[1] * len(p + a) + s for (p, a), s in zip(pairs, spare, strict=True)]).to(model.device)
        is_answer = torch.tensor(
            [[0] * len(p) + [1] * len(a) + s for (p, a), s in zip(pairs, spare, strict=True)], device=model.device
        ).bool()[:, 1:]
        # The logits at a token predict the next one: those of the shared beginning of all prompts are not needed.
        keep = width - min(len(prompt) for prompt, _ in pairs) + 1
        logits = model(input_ids=ids, attention_mask=is_text, use_cache=False, logits_to_keep=keep).logits[:, :-1]
        wanted, is_answer = ids[:, -logits.shape[1] :], is_answer[:, -logits.shape[1] :]
        exact += ((logits.argmax(-1) == wanted) | ~is_answer).all(1).tolist()
        loss += F.cross_entropy(logits[is_answer].float(), wanted[is_answer], reduction="sum").item()
        count += is_answer.sum().item()
    return exact, loss / count


# %% id="answers"
@torch.no_grad()
def answers(model, conversations, max_new_tokens):
    texts = [tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in conversations]
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.generate(**batch.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def general_answers(model):
    """Return the answers to the general questions, and which of them contain a right one as a whole word."""
    replies = answers(model, [[{"role": "user", "content": row["instruction"]}] for row in general], 16)
    patterns = [rf"\b({'|'.join(row['expect'])})\b" for row in general]
    return replies, [bool(re.search(*pair, re.I)) for pair in zip(patterns, replies, strict=True)]


# %% [markdown] id="before-why"
# ### Start with a baseline
# The model as it is, and the best that a prompt can do here: the same model with three solved orders in front.

# %% [markdown] id="before-why" lang="zh" of="fe1d70cb"
# ### 先看基线
# 未经训练的模型，以及在这里只靠提示能达到的最好水平：同一个模型，前面放三个做好的订单。

# %% id="before"
shown = [turn for row in train_pool.select(range(3)) for turn in row["prompt"] + row["completion"]]
few = test.select(range(min(40, len(test))))  # long prompts take longer
prompted = few.map(lambda row: {"prompt": shown + row["prompt"]})
exact_before, exact_prompted = (sum(score(untouched, rows)[0]) / len(rows) for rows in (test, prompted))
replies_before, right_before = general_answers(untouched)
general_before = sum(right_before) / len(general)
print(f"untouched: {exact_before:.0%} of {len(test)} orders exact; three examples in the prompt: {exact_prompted:.0%}")
print(f"untouched: {general_before:.0%} of {len(general)} general questions right, such as: {replies_before[0]}")

# %% [markdown] id="predict-why"
# ### Predict first
# Before any method has run: which one will write the most orders correctly, and for how many of the methods will this
# number of test orders be too few to tell them from the best?

# %% [markdown] id="predict-why" lang="zh" of="3ba13f24"
# ### 先预测，再运行
# 所有方法都还没运行。先写下你的预测：哪种方法写对的订单最多？有几种方法，凭这些测试订单无法与最好的区分开？

# %% id="predict"
guess_best = "full"  # your guess: a name from the tables below
guess_undecided = 5  # your guess: how many methods, the best one included

# %% [markdown] id="run-why"
# ## The same training for all
# A method is three things: how it prepares the model, its learning rate, and sometimes an optimizer or a setting.
# Everything else is the same for all of them: examples, their order, number of steps, schedule.
#
# Memory is counted from the tensors: what the method adds to the model, the gradients, the optimizer state. Weights that
# the model has anyway are not counted, nor are activations.

# %% [markdown] id="run-why" lang="zh" of="1147f645"
# ## 统一的训练流程
# 一种方法就是三样东西：怎样准备模型、学习率，有时还有优化器或某个设置。其余完全相同：样本、顺序、步数、学习率调度。
#
# 内存直接从张量数出来：方法给模型新增的部分、梯度、优化器状态。模型本来就有的权重不算，激活值也不算。

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
)


# %% id="run"
def bytes_of(model):
    return sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))


def train(prepare, learning_rate, optimizer=None, callback=None, seed=seed, **settings):
    """Prepare a copy of the untouched model and train it; return it, and what the training took."""
    set_seed(seed)
    model = prepare(copy.deepcopy(untouched))
    args = dataclasses.replace(training_args, learning_rate=learning_rate * rate_factor, seed=seed, **settings)
    own = (optimizer(model, args.learning_rate), None) if optimizer else (None, None)
    rows = train_pool.shuffle(seed=seed).select(range(max_steps * per_device_train_batch_size))
    trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer, optimizers=own)
    if callback:
        trainer.add_callback(callback)
    started = time.perf_counter()
    with redirect_stdout(None):  # Trainer's own line about each run
        trainer.train()
    seconds = time.perf_counter() - started
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    state = [value for one in trainer.optimizer.state.values() for value in one.values()]
    added = bytes_of(model) - bytes_of(untouched)  # what the method adds to the model
    added += sum(weight.nbytes for weight in trained)  # gradients
    added += sum(value.nbytes for value in state if isinstance(value, torch.Tensor))
    row = {"trained": sum(weight.numel() for weight in trained), "mib": added / 2**20, "seconds": seconds}
    return model.eval(), row


def run(**method):
    """Train a method; return the model and its row of the table."""
    model, row = train(**method)
    exact, loss = score(model, test)
    replies, right = general_answers(model)
    scores = {"exact": sum(exact) / len(exact), "loss": loss, "general": sum(right) / len(right)}
    return model, row | scores | {"replies": replies, "right": right}


methods, table = {}, {}


def line(name):
    row = table[name]
    scores = f"orders exact {row['exact']:>4.0%}, general questions right {row['general']:>4.0%}"
    return (
        f"{name:<14} {scores}; {row['trained']:>11,} weights trained, {row['mib']:>5.1f} MiB, {row['seconds']:>2.0f} s"
    )


def report(new_methods):
    methods.update(new_methods)
    for name, method in new_methods.items():
        table[name] = run(**method)[1]
        print(line(name))


def adapt(config):
    return lambda model: get_peft_model(model, config)


def lora(**options):
    return adapt(LoraConfig(r=r, lora_alpha=2 * r, task_type="CAUSAL_LM", **{"target_modules": "all-linear"} | options))


# %% [markdown] id="first-why"
# ## LoRA, and a check of the score
# **LoRA** adds `B A` beside each layer, as in lesson 03.

# %% [markdown] id="first-why" lang="zh" of="13b79dfb"
# ## LoRA，顺便验证分数
# **LoRA** 在每一层旁边加上 `B A`，如第 03 课。

# %% id="first"
methods["LoRA"] = {"prepare": lora(), "learning_rate": 2e-3}

# %% id="first-run"
tuned, table["LoRA"] = run(**methods["LoRA"])
print(line("LoRA"))

# %% [markdown] id="proof-why"
# Here is the check: the same orders, generated and compared as text, against the forward pass.

# %% [markdown] id="proof-why" lang="zh" of="81d3a0eb"
# 现在核对：同样的订单，真正生成并逐字比较，再与一次前向计算的判断对照。

# %% id="proof"
sample = test.select(range(min(32, len(test))))
expected = [row[0]["content"] for row in sample["completion"]]
started = time.perf_counter()
replies = answers(tuned, sample["prompt"], 64)
generating = time.perf_counter() - started
generated = [reply == right for reply, right in zip(replies, expected, strict=True)]
forced = score(tuned, sample)[0]
scoring = time.perf_counter() - started - generating
agreement = sum(map(bool.__eq__, generated, forced)) / len(sample)
print(f"{len(sample)} orders: {sum(generated)} exact when generated, {sum(forced)} exact by one forward pass")
print(f"the two agree on {agreement:.0%} of the orders; {generating:.1f} s to generate, {scoring:.1f} s to score")

# %% [markdown] id="samples-why"
# A difference can only come from rounding, where two tokens are almost equally likely. Two orders that came out right
# and two that did not, if there are so many:

# %% [markdown] id="samples-why" lang="zh" of="f9b656a7"
# 若有不一致，只可能来自舍入：两个 token 的概率几乎相等。下面是两个写对的和两个写错的订单（若有的话）：

# %% id="samples"
for is_right in (True, False):
    for number in [i for i, right in enumerate(generated) if right == is_right][:2]:
        print(sample[number]["prompt"][0]["content"].split("\n")[1])
        print("  expected", expected[number])
        print("  answered", replies[number], "" if is_right else "  <- wrong")

# %% [markdown] id="auto-why"
# ### Keep it: one call loads it again
# An adapter folder names its base model, so `AutoPeftModelForCausalLM` needs only the folder.

# %% [markdown] id="auto-why" lang="zh" of="cd532e4c"
# ### 保存下来：一行代码重新加载
# 适配器文件夹里记着基座模型，所以 `AutoPeftModelForCausalLM` 只需要这个文件夹。

# %% id="auto"
tuned.save_pretrained("runs/05_methods/LoRA")
again = AutoPeftModelForCausalLM.from_pretrained("runs/05_methods/LoRA", dtype=dtype)
kept, reloaded = get_peft_model_state_dict(tuned), get_peft_model_state_dict(again)
assert kept.keys() == reloaded.keys() and all(torch.equal(kept[name].cpu(), reloaded[name].cpu()) for name in kept)
print(f"base {again.peft_config['default'].base_model_name_or_path.split('/')[-1]}, {len(kept)} matrices, all equal")
del again

# %% [markdown] id="whole-why"
# ## The model's own weights, or copies of them
# - **full** trains every weight; the change can be anything.
# - **freeze** trains only the last blocks. What is below stays, and the backward pass stops early, which saves time.
# - **LLaMA Pro** (arXiv:2401.02415) inserts copies of blocks and trains only the copies. Their last projections start
#   at zero, so the deeper model first computes what the original did, and the original blocks never change.
# - **BitFit** (arXiv:2106.10199) trains the biases alone, one number per output. This model, like Llama, was
#   published without any: it gets biases of zero, which change nothing until they are trained.
# - **LayerNorm** trains the scales of the norms, one number per channel. Each channel grows or shrinks; no mixing is
#   learned.

# %% [markdown] id="whole-why" lang="zh" of="b5e4c985"
# ## 训练已有的权重，或它们的副本
# - **full** 训练每个权重，改动不受限制。
# - **freeze** 只训练最后几个块。下面的保持不变，反向传播提前停止，省时间。
# - **LLaMA Pro**（arXiv:2401.02415）插入若干块的副本，只训练副本。副本最后的投影从零开始，所以加深后的模型一开始与原来完全一样，原有的块也始终不动。
# - **BitFit**（arXiv:2106.10199）只训练偏置，每个输出一个数。这个模型和 Llama 一样，发布时没有偏置：这里补上全零的偏置，训练之前不起任何作用。
# - **LayerNorm** 训练归一化的缩放系数，每个通道一个数。通道只会放大或缩小，学不到通道之间的混合。


# %% id="whole"
def freeze(model):
    model.requires_grad_(False)
    model.model.layers[-4:].requires_grad_(True)
    return model


def expand(model, copies=5):
    """Insert trainable copies of blocks whose last projections are zero: at first they add nothing."""
    model.requires_grad_(False)
    blocks, count = model.model.layers, len(model.model.layers)
    for place in sorted({count * i // copies for i in range(1, copies + 1)}, reverse=True):
        block = copy.deepcopy(blocks[place - 1]).requires_grad_(True)
        for last in (block.self_attn.o_proj, block.mlp.down_proj):
            last.weight.data.zero_()
        blocks.insert(place, block)
    for index, block in enumerate(blocks):
        block.self_attn.layer_idx = index
    model.config.num_hidden_layers = len(blocks)
    return model


def biases_only(model):
    """Train biases alone; a layer without one is given zeros, which change nothing yet."""
    model.requires_grad_(False)
    for layer in model.model.layers.modules():
        if isinstance(layer, nn.Linear):
            if layer.bias is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_features))
            layer.bias.requires_grad_(True)
    return model


norms = LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm"], task_type="CAUSAL_LM")
report(
    {
        "full": {"prepare": lambda model: model, "learning_rate": 3e-4},
        "freeze": {"prepare": freeze, "learning_rate": 3e-3},
        "LLaMA Pro": {"prepare": expand, "learning_rate": 3e-3},
        "BitFit": {"prepare": biases_only, "learning_rate": 1e-2},
        "LayerNorm": {"prepare": adapt(norms), "learning_rate": 6.7e-3},
    }
)

# %% [markdown] id="lora-why"
# ## LoRA's variants
# Each changes one thing.
#
# - **q, v only** adapts two layers of a block instead of all seven.
# - **rsLoRA** (arXiv:2312.03732) scales by `alpha / sqrt(r)`. Its authors find that at high ranks plain LoRA's `alpha /
#   r` makes the change too small.
# - **LoRA+** (arXiv:2402.12354) gives B a larger learning rate than A, because B starts at zero.
# - **DoRA** (arXiv:2402.09353) learns the length of each row of the weight (one number per output) apart from its
#   direction.

# %% [markdown] id="lora-why" lang="zh" of="a0434734"
# ## LoRA 的变体
# 每个变体只改一处。
#
# - **q, v only** 每个块只适配两层，而不是全部七层。
# - **rsLoRA**（arXiv:2312.03732）用 `alpha / sqrt(r)` 缩放。作者发现，秩较高时普通 LoRA 的 `alpha / r` 会把改动压得太小。
# - **LoRA+**（arXiv:2402.12354）给 B 比 A 更大的学习率，因为 B 从零开始。
# - **DoRA**（arXiv:2402.09353）把权重每一行的长度（每个输出一个数）和方向分开学。


# %% id="lora"
def lora_plus(model, learning_rate):
    return create_loraplus_optimizer(model, torch.optim.AdamW, lr=learning_rate, loraplus_lr_ratio=4, weight_decay=0)


report(
    {
        "LoRA q, v only": {"prepare": lora(target_modules=["q_proj", "v_proj"]), "learning_rate": 1.2e-2},
        "rsLoRA": {"prepare": lora(use_rslora=True), "learning_rate": 1e-3},
        "LoRA+": {"prepare": lora(), "learning_rate": 1e-3, "optimizer": lora_plus},
        "DoRA": {"prepare": lora(use_dora=True), "learning_rate": 2e-3},
    }
)

# %% [markdown] id="numbers-why"
# How many numbers does each of these train in one layer? Counted on a layer of 576 inputs and 1,536 outputs:

# %% [markdown] id="numbers-why" lang="zh" of="6a70132f"
# 这些方法在一层里各训练多少个数？在一个 576 输入、1,536 输出的层上数一数：

# %% id="numbers"
one_layer = {
    "LoRA": LoraConfig(r=16, target_modules=["0"]),
    "DoRA": LoraConfig(r=16, target_modules=["0"], use_dora=True),
    "VeRA": VeraConfig(r=256, target_modules=["0"]),
    "OFT": OFTConfig(oft_block_size=32, target_modules=["0"]),
    "IA3": IA3Config(target_modules=["0"], feedforward_modules=[]),
}
layer_numbers = {}
for name, config in one_layer.items():
    layer = get_peft_model(nn.Sequential(nn.Linear(576, 1536, bias=False)), config)
    layer_numbers[name] = sum(weight.numel() for weight in layer.parameters() if weight.requires_grad)
    print(f"{name:<5} {layer_numbers[name]:>7,} of {576 * 1536:,}")
assert layer_numbers["DoRA"] - layer_numbers["LoRA"] == 1536 == layer_numbers["IA3"]  # one number per output

# %% [markdown] id="small-why"
# ## Adapters, vectors, prefixes
# - **bottleneck** is what "adapter" first meant for language models (Houlsby et al. 2019): a small network behind the
#   MLP of each block, narrow in the middle. Unlike LoRA it cannot be merged into the weights, because there is a
#   nonlinearity inside.
# - **IA3** (arXiv:2205.05638) multiplies keys, values and the hidden activations of the MLP by learned vectors,
#   without any matrix.
# - **prefix tuning** (arXiv:2101.00190) trains keys and values of sixteen virtual tokens that every block sees before
#   the input.

# %% [markdown] id="small-why" lang="zh" of="e63ad88a"
# ## 适配器、向量、前缀
# - **bottleneck**（瓶颈适配器）是语言模型里“adapter”一词最初的含义（Houlsby 等，2019）：在每个块的 MLP 后面接一个中间很窄的小网络。中间有非线性，所以与 LoRA 不同，它无法合并进权重。
# - **IA3**（arXiv:2205.05638）用可训练的向量去乘键、值和 MLP 的中间激活值，不用任何矩阵。
# - **prefix tuning**（arXiv:2101.00190）训练十六个虚拟 token 的键和值，每一块在输入之前都会先看到它们。


# %% id="small"
class Bottleneck(nn.Module):
    def __init__(self, layer, hidden_size, width):
        super().__init__()
        self.layer, self.down, self.up = layer, nn.Linear(hidden_size, width), nn.Linear(width, hidden_size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden):  # (batch, seq_len, hidden_size)
        hidden = self.layer(hidden)
        return hidden + self.up(F.gelu(self.down(hidden.float()))).to(hidden.dtype)


def bottleneck(model):
    model.requires_grad_(False)
    for block in model.model.layers:
        block.mlp = Bottleneck(block.mlp, model.config.hidden_size, 4 * r).to(model.device)
    return model


ia3 = IA3Config(
    target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
)
virtual = {"num_virtual_tokens": 16, "task_type": "CAUSAL_LM"}
report(
    {
        "bottleneck": {"prepare": bottleneck, "learning_rate": 6e-3},
        "IA3": {"prepare": adapt(ia3), "learning_rate": 3e-2},
        "prefix tuning": {"prepare": adapt(PrefixTuningConfig(**virtual)), "learning_rate": 1.5e-1},
    }
)

# %% id="ia3-count"
print(f"IA3 trains {table['IA3']['trained'] // len(untouched.model.layers):,} numbers per block")

# %% [markdown] id="optimizer-why"
# ## The same LoRA, another optimizer
# **Muon** makes the update of a matrix orthogonal: all its singular values become about equal. It keeps one moment
# instead of AdamW's two.

# %% [markdown] id="optimizer-why" lang="zh" of="e448e706"
# ## 同样的 LoRA，换一个优化器
# **Muon** 让矩阵的更新变成正交的：所有奇异值都变得大致相等。它只保存一个矩，而 AdamW 要两个。


# %% id="optimizers"
def muon(model, learning_rate):
    matrices = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0)


report({"Muon": {"prepare": lora(), "learning_rate": 2e-2, "optimizer": muon}})

# %% [markdown] id="more-why"
# ## Ten more, ready to run
# They are defined here and run in the GPU profiles; on a CPU, `report(more)` puts them into the table. Their learning
# rates have *not* been searched, so they get a star there.
#
# - **PiSSA** starts `B A` from the largest singular directions of the weight and freezes the rest.
# - **OLoRA** starts from the QR factors of the weight, which are orthonormal.
# - **VeRA** shares one frozen random pair A and B among all layers and trains only the two vectors that scale them.
# - **AdaLoRA** starts with a higher rank than it keeps and removes it where it matters least, while it trains.
# - **OFT** multiplies the weight by a learned rotation, block by block. Angles between neurons stay as they are.
# - **NEFTune** adds noise to the embeddings while training. The weights are LoRA's.
# - **prompt tuning** trains sixteen virtual tokens in front of the input; **P-tuning** makes them with a small
#   network while it trains. No weight of the model changes.
# - **8-bit AdamW** keeps both moments in one byte each, where a tensor is large enough; **Adafactor** keeps one
#   number per row and column instead of one per weight.

# %% [markdown] id="more-why" lang="zh" of="33596546"
# ## 还有十种，随时可跑
# 它们在这里定义，在 GPU 配置下会运行；在 CPU 上执行 `report(more)` 就能加进表里。它们的学习率*没有*搜索过，所以带星号。
#
# - **PiSSA** 让 `B A` 从权重最大的几个奇异方向开始，其余冻结。
# - **OLoRA** 从权重的 QR 分解开始，得到的向量是标准正交的。
# - **VeRA** 所有层共用一对冻结的随机 A 和 B，只训练缩放它们的两个向量。
# - **AdaLoRA** 开始时秩更高，训练中把最不重要的部分逐步剪掉。
# - **OFT** 给权重乘上学出来的旋转，一块一块地乘。神经元之间的夹角不变。
# - **NEFTune** 训练时给嵌入加噪声，训练的权重还是 LoRA 的。
# - **prompt tuning** 在输入前面训练十六个虚拟 token；**P-tuning** 训练时用一个小网络生成它们。模型的权重一个也不变。
# - **8-bit AdamW** 在张量足够大时，一阶矩和二阶矩每个数各用一个字节；**Adafactor** 每行每列存一个数，而不是每个权重一个。


# %% id="more"
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


vera = VeraConfig(r=256, target_modules="all-linear", task_type="CAUSAL_LM")
oft = OFTConfig(oft_block_size=32, target_modules="all-linear", task_type="CAUSAL_LM")
more = {
    "PiSSA": {"prepare": lora(init_lora_weights="pissa_niter_16"), "learning_rate": 1e-3},
    "VeRA": {"prepare": adapt(vera), "learning_rate": 2e-2},
    "OLoRA": {"prepare": lora(init_lora_weights="olora"), "learning_rate": 5e-4},
    "AdaLoRA": {"prepare": adapt(ada), "learning_rate": 1e-2, "callback": Allocate()},
    "OFT": {"prepare": adapt(oft), "learning_rate": 2e-3},
    "NEFTune": {"prepare": lora(), "learning_rate": 2e-3, "neftune_noise_alpha": 5},
    "prompt tuning": {"prepare": adapt(PromptTuningConfig(**virtual)), "learning_rate": 5e-2},
    "P-tuning": {"prepare": adapt(PromptEncoderConfig(encoder_hidden_size=128, **virtual)), "learning_rate": 1e-2},
    "8-bit AdamW": {"prepare": lora(), "learning_rate": 2e-3, "optim": "adamw_8bit"},
    "Adafactor": {"prepare": lora(), "learning_rate": 2e-3, "optim": "adafactor"},
}
report({name: more[name] for name in list(more)[:more_count]})

# %% [markdown] id="rates-why"
# ## Where the learning rates come from
# A comparison is as fair as its tuning. The methods in this picture were each tried at three learning rates, a factor of
# three apart, with half of the steps above, on the 135M model; the rate with the lowest loss on the *validation* orders
# was taken. The search was run once, outside this lesson: `python -m benchmarks.methods benchmarks/methods.json`. Scales
# differ from method to method, so each has its own middle; where the best of the three is at their edge, a better one
# may lie outside.
#
# The ten methods that are not in this picture have not been searched. Where they run, they get a star in the table, and
# the sentences about the table leave them out; the panel shows them.

# %% [markdown] id="rates-why" lang="zh" of="096cc3c7"
# ## 学习率从哪里来
# 调参有多公平，比较就有多公平。图中的每种方法都在 135M 模型上试了三个学习率，相邻相差三倍，步数是上面的一半，取*验证集*上损失最低的那个。搜索在课外只运行过一次：`python -m benchmarks.methods benchmarks/methods.json`。各方法的尺度不同，所以中间值各不相同；若最好的一个落在三者的边上，真正最好的值可能还在外面。
#
# 不在图中的十种方法没有搜索过：运行它们时，表里带星号，关于表的句子不包括它们；动手部分的面板会显示它们。

# %% id="rates"
with open("benchmarks/methods.json", encoding="utf-8") as file:
    searched = json.load(file)
chosen = {name: float(min(losses, key=losses.get)) for name, losses in searched.items()}
fig, ax = plt.subplots(figsize=(8, 5), layout="constrained")
for place, name in enumerate(sorted(searched, key=chosen.get)):
    rates = [float(rate) for rate in searched[name]]
    ax.plot(rates, [place] * len(rates), "o-", color="#bbb", markerfacecolor="white")
    ax.plot(chosen[name], place, "o", color="#d95f02")
ax.set(
    xscale="log", xlabel="learning rate tried; orange: lowest validation loss", title="Which rate suits which method?"
)
ax.set_yticks(range(len(searched)), sorted(searched, key=chosen.get), fontsize=8)
ax.grid(axis="x", alpha=0.3)
plt.show()
ends_of = {name: (min(map(float, losses)), max(map(float, losses))) for name, losses in searched.items()}
at_edge = [name for name in searched if chosen[name] in ends_of[name]]
print(f"tried per method: {sorted({len(losses) for losses in searched.values()})} rates")
print(
    f"best rates from {min(chosen.values()):g} to {max(chosen.values()):g}; "
    f"best at the lowest or highest rate tried: {', '.join(at_edge) or 'none'}"
)

# %% [markdown] id="table-why"
# ## The table as a picture
# Sorted by score. The line on each bar is the 95% confidence interval for this many orders: it says how far the score
# could move with other orders, not with another seed. Orange bars are on the *Pareto front*: no other method is as good
# in score and added memory and better in one of them. A star marks a learning rate that was not searched.

# %% [markdown] id="table-why" lang="zh" of="f1ceb4cf"
# ## 把表画成图
# 按得分排序。误差线是这么多订单的 95% 置信区间：它表示换一批订单时得分会移动多少，不包括换种子的影响。橙色的柱子在 *Pareto 前沿*上：没有别的方法在得分和新增内存上都不比它差、且至少一项更好。星号表示学习率没有搜索过。

# %% id="table"
ranked = sorted(table, key=lambda name: table[name]["exact"])
rows = {name: table[name] for name in ranked if name in searched}  # what the sentences are about


def beats(other, row):
    no_worse = other["mib"] <= row["mib"] and other["exact"] >= row["exact"]
    return no_worse and (other["mib"], other["exact"]) != (row["mib"], row["exact"])


front = [name for name, row in rows.items() if not any(beats(other, row) for other in rows.values())]
labels = [name if name in rows else f"{name} *" for name in ranked]
fig, axes = plt.subplots(1, 3, figsize=(10, 6.5), sharey=True, layout="constrained")
for ax, key, scale, title in (
    (axes[0], "exact", 100, "Orders exactly right, %\n(dotted: untrained, 3-shot)"),
    (axes[1], "mib", 1, "MiB added by training\n(orange: on the Pareto front)"),
    (axes[2], "general", 100, "General questions right, %\n(dotted: untrained)"),
):
    colors = ["#d95f02" if name in front else "#9ecae1" for name in ranked]
    ax.barh(labels, [scale * table[name][key] for name in ranked], color=colors)
    ax.set_title(title, fontsize=9)
    ax.grid(axis="x", alpha=0.3)
axes[0].tick_params(axis="y", labelsize=8)
axes[0].axvline(100 * exact_prompted, color="#333", linestyle=":")
axes[1].set_xscale("log")
axes[2].axvline(100 * general_before, color="#333", linestyle=":")
for ax, key, total in ((axes[0], "exact", len(test)), (axes[2], "general", len(general))):
    for place, name in enumerate(ranked):
        ax.plot([100 * end for end in evaluate.interval(table[name][key], total)], [place, place], color="#555", lw=1)
plt.show()

# %% [markdown] id="read-why"
# ### What the table says
# The sentences below are computed from the searched methods, so they hold for your run. Two methods whose intervals
# overlap may still differ; this many orders do not show it.

# %% [markdown] id="read-why" lang="zh" of="861c62f2"
# ### 表说了什么
# 下面的句子都从搜索过学习率的方法算出来，所以对你的这次运行同样成立。区间重叠的两种方法仍可能有差别，只是这么多订单看不出来。

# %% id="answer-table"
*_, best = rows
ends = {name: evaluate.interval(row["exact"], len(test)) for name, row in rows.items()}
undecided = [name for name in rows if ends[name][1] >= ends[best][0]]
print(f"best method: you predicted {guess_best}, measured with this seed: {best} ({rows[best]['exact']:.0%})")
print(f"methods whose interval overlaps the best one's: you predicted {guess_undecided}, measured {len(undecided)}:")
print("  " + ", ".join(reversed(undecided)))

# %% id="read"
families = {
    "the model's own weights, or copies": ["full", "freeze", "LLaMA Pro", "BitFit", "LayerNorm"],
    "adapters, vectors, prefixes": ["bottleneck", "IA3", "prefix tuning"],
}
families["LoRA, its variants, Muon"] = [name for name in rows if name not in chain(*families.values())]
for family, names in families.items():
    in_order = [name for name in reversed(rows) if name in names]
    print(f"{family}: " + ", ".join(f"{name} {rows[name]['exact']:.0%}" for name in in_order))
small = {name: row["exact"] for name, row in rows.items() if row["trained"] <= 0.1 * rows["LoRA"]["trained"]}
small_best = max(small, key=small.get)
print(f"with at most a tenth of LoRA's weights: {small_best} {small[small_best]:.0%}, LoRA {rows['LoRA']['exact']:.0%}")
print(f"on the Pareto front, cheapest first: {', '.join(sorted(front, key=lambda name: rows[name]['mib']))}")
for key, what in (("exact", "orders"), ("general", "general questions")):
    better = sum(row[key] > rows["full"][key] for row in rows.values())
    print(f"better than full in {what}: {better} of the {len(rows) - 1} other methods")

# %% [markdown] id="forgetting-why"
# ### What was forgotten
# Training on orders alone may teach a model to answer everything with an order. The next cell counts, for every general
# question that the untrained model answers correctly, how many methods get it wrong after training. It shows every
# model's answer to the question with the highest count, sorted by the share of all general questions that are still
# right.

# %% [markdown] id="forgetting-why" lang="zh" of="c3f7de2e"
# ### 遗忘了什么
# 只用订单训练，模型学到的可能是：不管问什么，都回一份订单。下一格对每个未经训练的模型答对的常识问题，统计训练后有多少种方法答错；然后列出各个模型对答错最多的那道题的回答，按全部常识问题的正确率排序。

# %% id="forgetting"
wrong_after = [
    sum(not row["right"][i] for row in table.values()) if was_right else 0 for i, was_right in enumerate(right_before)
]
most_lost = max(range(len(general)), key=wrong_after.__getitem__)
print(f"{general[most_lost]['instruction']} (wrong after {wrong_after[most_lost]} of {len(table)} methods)\n")
print(f"{'':<14} {'all':>4} answer to this question")
print(f"{'untrained':<14} {general_before:>4.0%} {replies_before[most_lost][:90]!r}")
for name in sorted(table, key=lambda name: table[name]["general"]):
    mark = " " if table[name]["right"][most_lost] else "✗"
    print(f"{name:<14} {table[name]['general']:>4.0%} {mark} {table[name]['replies'][most_lost][:90]!r}")

# %% [markdown] id="seeds-why"
# ## Is the best method really the best? Other seeds
# The best of many methods is partly the luckiest. The front runners and LoRA are trained again with other seeds:
# other examples in another order, other initial values. They were selected by their score with the first seed, so
# only the other seeds are a fair measure.

# %% [markdown] id="seeds-why" lang="zh" of="5921ee32"
# ## 赢家是真赢还是运气？换种子
# 许多方法里的第一名，多少有运气的成分。换种子（样本、顺序、初值都换），把领先者和 LoRA 再跑几遍。领先者是按第一个种子的得分选出来的，所以只有其余种子才是公平的衡量。

# %% id="seeds"
picked = list(rows)[: -front_count - 1 : -1]
front_runners = list(dict.fromkeys([*picked, "LoRA"]))
repeats = {}
for name in front_runners:
    further = []
    for other_seed in range(seed + 1, seed + seed_count):
        exact, _ = score(train(**methods[name], seed=other_seed)[0], test)
        further.append(sum(exact) / len(exact))
    repeats[name] = [table[name]["exact"], *further]
    print(f"{name:<14} first seed {repeats[name][0]:.0%}, further {', '.join(f'{share:.0%}' for share in further)}")

# %% id="seeds-plot"
fig, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
for place, name in enumerate(reversed(front_runners)):
    first, *further = (100 * share for share in repeats[name])
    ends = evaluate.interval(sum(further) / len(further) / 100, len(test))
    ax.plot([100 * end for end in ends], [place, place], color="#9ecae1", lw=6, solid_capstyle="butt")
    ax.plot(first, place, "o", color="#333", markerfacecolor="white", label="first seed" if not place else None)
    ax.plot(further, [place] * len(further), "o", color="#d95f02", label="further seeds" if not place else None)
ax.set_yticks(range(len(front_runners)), reversed(front_runners))
ax.margins(y=0.2)
ax.set(xlim=(0, None), xlabel="orders exactly right, %; bar: 95% confidence interval of the further seeds' mean")
ax.set_title("Does the ranking hold with other seeds?")
ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% id="seeds-read"
means = {name: sum(shares[1:]) / len(shares[1:]) for name, shares in repeats.items()}
firsts = {name: shares[0] for name, shares in repeats.items()}
swing = max(max(shares) - min(shares) for shares in repeats.values())
leader = max(means, key=means.get)
first_mean, later_mean = (sum(part[name] for name in picked) / len(picked) for part in (firsts, means))
print(
    f"mean of the {len(picked)} front runners: {first_mean:.0%} with the first seed, {later_mean:.0%} with the others"
)
print(f"largest difference between two seeds of one method: {100 * swing:.0f} points")
print(
    f"best with the first seed: {best}; best with the others: {leader} ({means[leader]:.0%}), LoRA {means['LoRA']:.0%}"
)

# %% [markdown] id="break-why"
# ## What goes wrong: one learning rate for all
# A common way to "show" that a method is bad: give it the learning rate of another method. Full fine-tuning with
# LoRA's:

# %% [markdown] id="break-why" lang="zh" of="85f218e9"
# ## 故意出错：所有方法用同一个学习率
# 要“证明”一种方法不好，常见的做法是套用另一种方法的学习率。全量微调用 LoRA 的学习率：

# %% id="break"
wronged = run(**methods["full"] | {"learning_rate": methods["LoRA"]["learning_rate"]})[1]
for label, row in (("its own rate", table["full"]), ("LoRA's rate", wronged)):
    print(f"full at {label}: {row['exact']:.0%} of orders exact, {row['general']:.0%} of general questions right")
    print(f"  {general[0]['instruction']} {row['replies'][0][:90]!r}")

# %% [markdown] id="break-fix"
# The fix is the search above: choose the rate per method, on validation rows, before you compare.

# %% [markdown] id="break-fix" lang="zh" of="ea8236d0"
# 解决办法就是上面的搜索：先在验证集上为每种方法各自选好学习率，再作比较。

# %% [markdown] id="experiment-why"
# ## Experiment
# Which method would you take? Set the memory that you have left for training, and pick a method. Left: what fits, with
# your method in orange. Right: its validation loss at the rates that were tried.

# %% [markdown] id="experiment-why" lang="zh" of="d54517cc"
# ## 动手试一试
# 换作是你，选哪种方法？设定留给训练的内存，再挑一种方法。左图：放得下的方法，你选的标成橙色。右图：它在试过的各学习率下的验证损失。


# %% id="experiment"
def draw(method, budget_mib):
    fits = [name for name in ranked if table[name]["mib"] <= budget_mib]
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained", width_ratios=[2, 1])
    colors = ["#d95f02" if name == method else "#9ecae1" for name in fits]
    left.barh(fits, [100 * table[name]["exact"] for name in fits], color=colors)
    left.tick_params(axis="y", labelsize=7)
    left.set(xlabel="orders exactly right, %", title=f"Which methods add at most {budget_mib} MiB?")
    rates, losses = list(searched[method]), list(searched[method].values())
    right.plot([float(rate) for rate in rates], losses, "o-", color="#d95f02")
    right.set(xscale="log", xlabel="learning rate", ylabel="validation loss", title=f"{method}: which rate?")
    right.set_xticks([float(rate) for rate in rates], rates)
    right.minorticks_off()
    plt.show()
    if method not in fits:
        print(f"{method} does not fit: it adds {table[method]['mib']:.1f} MiB")
    if fits:
        print(f"best within {budget_mib} MiB: {fits[-1]}, {table[fits[-1]]['exact']:.0%} of orders exact")


# %% id="experiment-show"
experiment.show(draw, method=list(reversed(rows)), budget_mib=[100, 0.5, 3, 10, 30, 2000])

# %% [markdown] id="loftq-why"
# ## Three more ideas, on small examples
# **LoftQ** (arXiv:2310.08659) is for QLoRA. There `B A` starts at zero, so training starts from a model that
# quantization has damaged. LoftQ looks for a quantized matrix *and* a `B A` whose sum is close to the original:
# quantize, fit `B A` to the error by SVD, quantize what is left, again. With two bits and rank 8:

# %% [markdown] id="loftq-why" lang="zh" of="168497eb"
# ## 另外三个想法，小规模演示
# **LoftQ**（arXiv:2310.08659）用于 QLoRA。在 QLoRA 里 `B A` 从零开始，训练的起点是一个被量化损伤过的模型。LoftQ 同时寻找量化矩阵*和* `B A`，让两者之和接近原矩阵：量化，用 SVD 让 `B A` 拟合误差，再量化剩下的部分，如此反复。2 比特、秩 8：


# %% id="loftq"
def two_bits(W):
    """Round a matrix to four levels."""
    step = W.abs().max() / 2
    return ((W / step - 0.5).round().clamp(-2, 1) + 0.5) * step


W = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
BA, errors = torch.zeros_like(W), []
for _ in range(5):
    Q = two_bits(W - BA)
    errors.append(((W - Q - BA).norm() / W.norm()).item())
    U, S, V = torch.linalg.svd(W - Q)
    BA = (U[:, :8] * S[:8]) @ V[:8]
errors.append(((W - Q - BA).norm() / W.norm()).item())
print("relative error: " + ", ".join(f"{error:.2f}" for error in errors))
assert errors[-1] < errors[0]

# %% [markdown] id="longlora-why"
# **LongLoRA** (arXiv:2309.12307) makes fine-tuning on long texts cheaper: while it trains, a token attends within its
# group only, and half of the heads use groups that are shifted by half a group, so that information passes from group
# to group. It also trains embeddings and norms (`modules_to_save` of `LoraConfig`). Eight tokens in groups of four,
# filled where a query looks:

# %% [markdown] id="longlora-why" lang="zh" of="c3a55857"
# **LongLoRA**（arXiv:2309.12307）让长文本微调更省：训练时每个 token 只看自己组内的 token，其中一半注意力头的分组错开半组，信息就能在组间传递。它还训练嵌入和归一化层（`LoraConfig` 的 `modules_to_save`）。八个 token、每组四个，填色处是查询能看到的位置：

# %% id="longlora"
query, key = torch.arange(8)[:, None], torch.arange(8)
causal = key <= query
halves = {
    "all tokens": causal,
    "groups (half of the heads)": causal & (query // 4 == key // 4),
    "shifted groups (the others)": causal & ((query + 2) // 4 == (key + 2) // 4),
}
fig, axes = plt.subplots(1, 3, figsize=(7, 2.6), layout="constrained")
for ax, (name, mask) in zip(axes, halves.items(), strict=True):
    ax.imshow(mask, cmap="Greens", vmin=0, vmax=1.4)
    ax.set_title(f"{name}: {mask.sum()} pairs", fontsize=8)
    ax.set(xticks=[], yticks=[], xlabel="key", ylabel="query")
plt.show()

# %% [markdown] id="seq2seq-why"
# **Sequence to sequence**: T5 and mt0 have an encoder that reads and a decoder that writes. PEFT adapts them with the
# same calls and another `task_type`. A tiny T5 with random weights memorizes eight short sequences and writes them
# backwards:

# %% [markdown] id="seq2seq-why" lang="zh" of="63fbc615"
# **序列到序列**：T5、mt0 有负责读的编码器和负责写的解码器。PEFT 的用法不变，只换 `task_type`。一个随机权重的小 T5，记住八条短序列，并把它们倒着写出来：

# %% id="seq2seq"
set_seed(seed)
config = T5Config(vocab_size=16, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0)
seq2seq_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_2_SEQ_LM")
translator = get_peft_model(AutoModelForSeq2SeqLM.from_config(config), seq2seq_config)
source = torch.randint(2, 12, (8, 4))
optimizer = torch.optim.AdamW(translator.parameters(), lr=1e-2)
losses = []
for _ in range(20):
    loss = translator(input_ids=source, labels=source.flip(1)).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"{type(translator).__name__}: loss {losses[0]:.2f} -> {losses[-1]:.2f} nats")

# %% [markdown] id="needs-why"
# ### What did not run here, and what it needs

# %% [markdown] id="needs-why" lang="zh" of="0f9667e4"
# ### 这里没有运行的，以及它们需要什么

# %% id="needs"
elsewhere = {
    "LoftQ": "PEFT's init_lora_weights='loftq' moves each weight to a CUDA GPU",
    "LongLoRA": "its attention is not in PEFT or transformers: the authors' code, or a patch of the model's own",
    "GaLore": "pip install galore-torch, then optim='galore_adamw' with optim_target_modules (full fine-tuning)",
    "APOLLO": "pip install apollo-torch, then optim='apollo_adamw' with optim_target_modules (full fine-tuning)",
    "LOMO": "pip install lomo-optim, then optim='lomo' (full fine-tuning, no gradient kept)",
    "AdaLOMO": "the same, and a CUDA GPU",
}
for name, need in elsewhere.items():
    print(f"{name:<8} {need}")

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
outcomes = {
    "methods_scored": sum(row["loss"] == row["loss"] for row in table.values()),  # NaN is not itself
    "forward_equals_greedy": agreement,
    "exact_before": exact_before,
    "exact_prompted": exact_prompted,
    "exact_best": table[best]["exact"],
    "general_before": general_before,
    "lora_share_of_full": table["LoRA"]["trained"] / table["full"]["trained"],
    "full_at_wrong_rate": wronged["exact"],
    "seed_swing": swing,
}
for name, row in table.items():
    outcomes["exact_" + re.sub("[^a-z0-9]+", "_", name.lower().replace("+", " plus"))] = row["exact"]
bands = {"methods_scored": (14, 24), "lora_share_of_full": (0, 0.05)}
if PROFILE != "smoke":
    bands |= {
        "forward_equals_greedy": (0.85, 1),
        "exact_before": (0, 0.05),
        "exact_prompted": (0, 0.3),
        "exact_best": (0.08, 1),
        "exact_lora": (0.01, 0.9),
        "general_before": (0.6, 1),
    }
course.record(outcomes, bands)

# %% [markdown] id="next"
# **You keep** `runs/05_methods/LoRA`, and a way to compare methods that holds for your own task: same examples, same
# number of tried rates, a validation set for choices, another set for the report, further seeds for the winner.
#
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`. The rates above were chosen for the 135M model; these profiles multiply
# them by 1/2 and 1/10 (`rate_factor`), which is a starting point, not a search.
#
# **The same from a recipe:** `finetuning_type` is `full`, `freeze`, `bitfit`, `lora` or a method of PEFT under PEFT's own
# name (`ia3`, `prefix_tuning`, `vera` ...); `use_dora`, `use_rslora`, `loraplus_lr_ratio`, `use_llama_pro`, `use_muon`,
# `neftune_noise_alpha` and `optim` are keys (`ftlab recipe explain finetuning_type`). Only the bottleneck is in no recipe.
#
# **Next:** the loop under the trainer, and what its settings do: [06 · Training](06_training.ipynb).

# %% [markdown] id="next" lang="zh" of="67166d8d"
# **你得到的成果：** `runs/05_methods/LoRA`，以及一套可以用在自己任务上的比较办法：样本相同，可试的学习率个数相同，用验证集做选择、用另一份数据报告，赢家再换种子验证。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`。上面的学习率是为 135M 模型选的；这两个配置分别乘以 1/2 和 1/10（`rate_factor`），只是起点，没有搜索过。
#
# **用配方跑同样的方法：** `finetuning_type` 可以是 `full`、`freeze`、`bitfit`、`lora`，或 PEFT 中其他方法的名字（`ia3`、`prefix_tuning`、`vera` 等）；`use_dora`、`use_rslora`、`loraplus_lr_ratio`、`use_llama_pro`、`use_muon`、`neftune_noise_alpha` 和 `optim` 都是键（`ftlab recipe explain finetuning_type`）。只有 bottleneck 没有对应的配方。
#
# **中文数据：** 内置模型只懂英文，所以这里的订单是英文的；换成能说中文的模型后，把 `data_files` 指向你自己的中文数据即可，其余不变。
#
# **下一课：** Trainer 背后的训练循环，以及各项设置的作用：[06 · 训练](06_training.ipynb)。
