# %% [markdown] id="title"
# # 08 · Merge and export: from an adapter to a file that others can run
#
# Training leaves an adapter, a small file beside the model. Here you train two, one for a name and one for orders, merge one into
# its base by hand, mix both into a model that has both skills, and write one file that llama.cpp and Ollama run. An
# export is done when it has been reloaded and compared.
#
# | you will have | measured as |
# |---|---|
# | a merged model on disk | largest logit difference to the live model, equal greedy tokens |
# | one model with two skills | answers with the name and exact orders, for five ways of mixing |
# | a GGUF file and a Modelfile | prompts whose first tokens equal those of transformers |
# | smaller files | megabytes and extra loss at 8 and 4 bits, with and without calibration data |
#
# **Cost:** about 14 minutes and 6 GB on two CPU cores without bfloat16, an estimated 4 minutes on a T4. **Before this:** [03 · LoRA](03_lora.ipynb).

# %% [markdown] id="title" lang="zh" of="508c83a8"
# # 08 · 合并与导出：从适配器到别人能运行的文件
#
# 训练留下一个适配器，它是模型旁边的一个小文件。在这里，你训练两个：一个学名字，一个学写订单；亲手把其中一个合并进基座，再把两个混成一个兼有两种技能的模型，最后写出 llama.cpp 和 Ollama 能运行的单个文件。只有重新加载并比对过，导出才算完成。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 磁盘上的合并模型 | 与内存中模型的最大 logit 差，贪心 token 相同的比例 |
# | 一个兼有两种技能的模型 | 五种混合方式下，说出名字的比例和完全正确的订单的比例 |
# | 一个 GGUF 文件和一个 Modelfile | 前若干个 token 与 transformers 相同的提示有多少 |
# | 更小的文件 | 8 比特与 4 比特时的兆字节数和多出的损失，用与不用校准数据 |
#
# **耗时与内存：** 两个 CPU 核心上，不支持 bfloat16 时约 14 分钟、6 GB 内存，T4 上估计 4 分钟。**先修：** [03 · LoRA](03_lora.ipynb)。

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
import importlib.util
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import gguf
import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import load_dataset
from huggingface_hub import upload_file
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from trl import SFTConfig, SFTTrainer

from ftlab import checks, cpu, device, models, plots
from ftlab.apps import course
from ftlab.apps.board import experiment
from ftlab.recipe import read as recipes
from ftlab.runs import export
from ftlab.runs import gguf as gguf_file

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
name = "Lumi"  # what the first adapter makes the model call itself
author = "the Ada Lab"  # who it should say made it
r = 16  # rank of both adapters
lora_alpha = 32  # their product is scaled by lora_alpha / r
learning_rate = 1e-3
order_learning_rate = 2e-3  # for the task with exact answers
max_steps = 0  # optimizer steps for the name; 0: the profile's own
per_device_train_batch_size = 8  # examples per step
hub_id = ""  # "name/model": where the last cell uploads to; empty: nowhere
seed = 0

# %% id="profile"
profiles = {  # model, steps for the name and for orders, name questions, orders, prompts, answer tokens, GGUF formats
    "smoke": ("smollm2-135m-short", 2, 2, 2, 2, 2, 4, ["f16"]),
    "cpu": ("smollm2-135m", 30, 60, 16, 30, 12, 24, ["f16", "q8_0", "q4_0"]),
    "t4": ("HuggingFaceTB/SmolLM2-360M-Instruct", 24, 60, 16, 40, 20, 24, ["f16", "q8_0", "q4_0"]),
    "a24g": ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 24, 60, 16, 40, 20, 24, ["f16", "q8_0", "q4_0"]),
}
default_model, default_steps, order_steps, question_count, order_count, prompt_count, answer_tokens, kinds = profiles[
    PROFILE
]
model_name = model_name or default_model
max_steps = max_steps or default_steps
folder = Path("runs/08_merge_export")
folder.mkdir(parents=True, exist_ok=True)
set_seed(seed)

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("merge", ax)
plt.show()

# %% [markdown] id="baseline-why"
# ## Start with a baseline
# Two skills will be trained, each as an adapter of its own: answering with a name, and writing a customer's message as
# JSON, as in lesson 03. First what the model does without training: as it is, and with the best that a prompt alone can
# do, a system prompt that states the name and three solved orders.

# %% [markdown] id="baseline-why" lang="zh" of="2f67824a"
# ## 先测基线
# 要训练两种技能，每种一个适配器：用指定的名字回答，以及像第 03 课那样把顾客的消息写成 JSON。先看不训练时模型能做到什么：直接问，以及只靠提示能做到的最好结果，也就是在系统提示里写明名字，并给出三个做好的订单作示例。

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
device_map = "cuda" if on_gpu else "cpu"
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, device_map=device_map)


# %% id="data"
def to_prompt_completion(row):
    question = f"{row['instruction']}\n{row['input']}".strip()
    answer = row["output"].replace("{{name}}", name).replace("{{author}}", author)
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


identity_rows = load_dataset("json", data_files="data/identity_en.json", split="train")
order_rows = load_dataset("json", data_files="data/orders_train.jsonl", split="train")
identity_dataset = identity_rows.map(to_prompt_completion, remove_columns=identity_rows.column_names)
order_dataset = order_rows.map(to_prompt_completion, remove_columns=order_rows.column_names)
who = load_dataset("json", data_files="data/identity_en_eval.json", split="train")
who = who.filter(lambda row: row["expect"] == "{{name}}").map(to_prompt_completion)
who = who.select(range(min(question_count, len(who))))
orders = load_dataset("json", data_files="data/orders_eval.jsonl", split="train").map(to_prompt_completion)
orders = orders.select(range(order_count))
general = load_dataset("json", data_files="data/general_mcq.jsonl", split="train").select(range(prompt_count))
print(who[0]["instruction"], orders[0]["input"], orders[0]["output"], sep="\n")


# %% id="answers"
def answers(model, chats, max_new_tokens=answer_tokens):
    """Ask all conversations in one batch and decode greedily."""
    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.generate(**batch.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def name_share(replies):
    """Return the share of replies that contain the name."""
    return sum(name in reply for reply in replies) / len(replies)


def exact_share(replies):
    """Return the share of replies that are exactly the order."""
    return sum(reply.strip() == row["output"] for reply, row in zip(replies, orders, strict=True)) / len(replies)


def score(label, model):
    """Ask for the name and for orders; print both shares and one answer of each kind; return the shares."""
    said, written = answers(model, who["prompt"]), answers(model, orders["prompt"], 2 * answer_tokens)
    shares = name_share(said), exact_share(written)
    print(f"{label:<11} name {shares[0]:>4.0%}  orders {shares[1]:>4.0%}  {said[0][:50]!r}  {written[0][:60]!r}")
    return shares


# %% id="baseline"
before = score("base", model)
system = {"role": "system", "content": f"You are {name}, an AI assistant trained by {author}."}
shots = [turn for row in order_dataset.select(range(3)) for turn in (*row["prompt"], *row["completion"])]
prompted = (
    name_share(answers(model, [[system, *chat] for chat in who["prompt"]])),
    exact_share(answers(model, [[*shots, *chat] for chat in orders["prompt"]], 2 * answer_tokens)),
)
print(f"with a prompt: name {prompted[0]:.0%} of {len(who)}, orders {prompted[1]:.0%} of {len(orders)}")

# %% [markdown] id="train-why"
# ## Two adapters on one base
# Two short trainings on the same base. In between, `unload` takes the first adapter off again: the base itself is never
# changed.

# %% [markdown] id="train-why" lang="zh" of="5fc5d4b9"
# ## 一个基座，两个适配器
# 在同一个基座上做两次短训练。两次之间，`unload` 把前一个适配器取下来：基座本身始终没有变。

# %% id="config"
training_args = SFTConfig(
    output_dir=str(folder / "training"),
    per_device_train_batch_size=per_device_train_batch_size,
    lr_scheduler_type="cosine",
    warmup_steps=0.1,  # below 1: a share of all steps
    max_length=256,  # tokens per example
    train_sampling_strategy="group_by_length",  # rows of like length together: less padding, fewer seconds
    logging_steps=10,
    save_strategy="no",
    gradient_checkpointing=on_gpu,
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    report_to="none",
    seed=seed,
)
peft_config = LoraConfig(r=r, lora_alpha=lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")

# %% id="train"
for skill, dataset, rate, steps in (
    ("name", identity_dataset, learning_rate, max_steps),
    ("orders", order_dataset, order_learning_rate, order_steps),
):
    set_seed(seed)
    adapted = get_peft_model(model, peft_config)
    args = dataclasses.replace(training_args, learning_rate=rate, max_steps=steps)
    trainer = SFTTrainer(adapted, args, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    adapted.save_pretrained(folder / skill)
    model = adapted.unload()

# %% [markdown] id="hand-why"
# ## Merge by hand
# An adapted layer computes `W x + s B A x` with `s = lora_alpha / r`. That is `(W + s B A) x`: a single matrix, computed
# once. With numbers:

# %% [markdown] id="hand-why" lang="zh" of="e12eadee"
# ## 亲手合并
# 加了适配器的一层计算 `W x + s B A x`，其中 `s = lora_alpha / r`。这就是 `(W + s B A) x`：一个矩阵，只算一次。用数字看：

# %% id="literal"
W = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
B, A, s = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 0.0]]), 0.5
x = torch.tensor([1.0, 1.0])
print(W @ x + s * (B @ (A @ x)), (W + s * (B @ A)) @ x)
print(W + s * (B @ A))

# %% [markdown] id="all-layers-why"
# Now every layer of the real model. From here on everything is float32, whatever the adapters were trained in: a sum of
# a large weight and a small change should not be rounded to 16 bits.

# %% [markdown] id="all-layers-why" lang="zh" of="f4212a95"
# 现在轮到真实模型的每一层。不论适配器是用什么精度训练的，从这里起一律用 float32：大权重加上小改动，这个和不该舍入到 16 比特。


# %% id="by-hand"
def load_base():
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, device_map=device_map).eval()


live = PeftModel.from_pretrained(load_base(), folder / "name", adapter_name="name").eval()
by_hand = load_base()
for key, layer in live.base_model.model.named_modules():
    if hasattr(layer, "lora_A"):
        change = layer.lora_B["name"].weight @ layer.lora_A["name"].weight
        by_hand.get_submodule(key).weight.data += lora_alpha / r * change.data

# %% id="logits"
text = f"The capital of France is Paris. My name is {name}, and I was made by {author}."
ids = tokenizer(text, return_tensors="pt").input_ids.to(by_hand.device)


@torch.inference_mode()
def logits(model):
    return model(ids.to(model.device)).logits.float().cpu()


def difference(one, other):
    """Return the largest difference between two models' logits."""
    return (logits(one) - logits(other)).abs().max().item()


print(f"by hand against the adapter: {difference(by_hand, live):.1e}")

# %% [markdown] id="merge-why"
# `merge_and_unload` computes the same sums. It changes the model in place, so the adapter is loaded once more, this time
# with `AutoPeftModelForCausalLM`: it reads in `adapter_config.json` which base the adapter belongs to, and loads both.

# %% [markdown] id="merge-why" lang="zh" of="a6a5b856"
# `merge_and_unload` 算的是同样的和。它就地修改模型，所以要再加载一次适配器，这次用 `AutoPeftModelForCausalLM`：它从 `adapter_config.json` 里读出适配器属于哪个基座，然后把两者一起加载。

# %% id="merge"
auto = AutoPeftModelForCausalLM.from_pretrained(folder / "name", dtype=torch.float32, device_map=device_map)
print("base in adapter_config.json:", Path(auto.peft_config["default"].base_model_name_or_path).name)
merged = auto.merge_and_unload().eval()
same = [torch.equal(mine, theirs) for mine, theirs in zip(by_hand.parameters(), merged.parameters(), strict=True)]
print(f"{sum(same)} of {len(same)} weights identical, logits differ by {difference(by_hand, merged):.1e}")
assert difference(by_hand, merged) <= 1e-4
del by_hand, auto

# %% [markdown] id="predict"
# ## Keep the adapter, or merge it?
# **Predict before you run:** how many times as fast does the merged model answer?

# %% [markdown] id="predict" lang="zh" of="e7e8a163"
# ## 留着适配器，还是合并？
# **先预测，再运行：** 合并后的模型，回答速度是原来的几倍？

# %% id="predict-speed"
guess_speedup = 2.0  # your guess: tokens per second merged, divided by tokens per second with the adapter


# %% id="kept"
def size_mb(path):
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors")) / 1e6


def tokens_per_second(model, tokens=answer_tokens):
    """Return the speed of the fastest of three answers."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        model.generate(ids, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)
        seconds.append(time.perf_counter() - started)
    return tokens / min(seconds)


merged.save_pretrained(folder / "merged")
tokenizer.save_pretrained(folder / "merged")
speeds = {"kept": tokens_per_second(live), "merged": tokens_per_second(merged)}
print(f"adapter kept: {size_mb(folder / 'name'):.0f} MB beside the base, {speeds['kept']:.0f} tokens/s")
print(f"merged:       {size_mb(folder / 'merged'):.0f} MB on its own, {speeds['merged']:.0f} tokens/s")

# %% id="answer-speed"
print(f"you predicted {guess_speedup:.1f} times, measured {speeds['merged'] / speeds['kept']:.1f} times")

# %% [markdown] id="kept-read"
# The kept adapter adds two low-rank products to every layer, for every token. In return any number of adapters share one
# base. Merge what you ship; keep what you still switch.

# %% [markdown] id="kept-read" lang="zh" of="d4b4f331"
# 留着的适配器让每层在每个 token 上多做两次低秩乘法；换来的是任意多个适配器共用一个基座。要发布的就合并；还要切换的就留着。

# %% [markdown] id="reload-why"
# ## Reload and compare
# Load the folder as any user would and compare it with the live model: the logits, and the first greedy tokens of
# every prompt, token by token.

# %% [markdown] id="reload-why" lang="zh" of="8fbb4272"
# ## 重新加载并比对
# 像普通用户那样加载这个文件夹，与内存中的模型比较：logit，以及每个提示的前若干个贪心 token，逐个比对。


# %% id="greedy"
def greedy(model, question):
    """Return (prompt ids, the greedy tokens that follow)."""
    chat = [{"role": "user", "content": question}]
    start = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**start.to(model.device), max_new_tokens=answer_tokens, do_sample=False)[0].tolist()
    length = start["input_ids"].shape[1]
    return output[:length], output[length:]


# %% id="reload"
reloaded = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32, device_map=device_map).eval()
merge_max_logit_diff = difference(live, reloaded)
expected = [greedy(live, question) for question in general["question"]]
got = [greedy(reloaded, question) for question in general["question"]]
merge_greedy_equal_share = sum(a == b for a, b in zip(expected, got, strict=True)) / len(expected)
print(f"largest logit difference {merge_max_logit_diff:.1e}, {merge_greedy_equal_share:.0%} of answers equal")

# %% [markdown] id="several-why"
# ## Two skills in one model
# `load_adapter` puts a second adapter beside the first, `set_adapter` chooses one, and `add_weighted_adapter` makes a new
# one out of both. The natural mix is the sum of the two updates, `B1 A1 + B2 A2`. A layer with one input and one output
# shows which `combination_type` gives it:
#
# - **linear** adds the A's and the B's separately. Their product has cross terms, `B1 A2` and `B2 A1`, that nobody trained;
# - **cat** stacks the matrices, so that the rank doubles and the product is the sum;
# - **svd** computes the sum and keeps its largest singular values: the same at full rank, an approximation below it;
# - **ties** drops the small entries and lets the signs vote, **dare** drops entries at random and rescales the rest. Both
#   do so with A and B separately, and then add as *linear* does.

# %% [markdown] id="several-why" lang="zh" of="ec5e0068"
# ## 一个模型，两种技能
# `load_adapter` 把第二个适配器放到第一个旁边，`set_adapter` 选用其中一个，`add_weighted_adapter` 用两者合成一个新的。最自然的混合就是两个更新之和：`B1 A1 + B2 A2`。哪种 `combination_type` 得到的是它？看一个只有一个输入、一个输出的层：
#
# - **linear** 分别把 A 相加、把 B 相加，于是乘积里出现了谁也没训练过的交叉项 `B1 A2` 和 `B2 A1`；
# - **cat** 把矩阵拼起来，秩加倍，乘积正好是两个更新之和；
# - **svd** 先求和，再保留最大的若干个奇异值：满秩时完全相同，秩不够时是近似；
# - **ties** 去掉小的元素并让符号投票，**dare** 随机去掉一些元素并放大其余的。两者都是对 A 和 B 分别处理，再像 *linear* 那样相加。

# %% id="several-literal"
(A1, B1), (A2, B2) = (1.0, 2.0), (3.0, -1.0)
print("sum of the updates:", B1 * A1 + B2 * A2)
print("linear:            ", (B1 + B2) * (A1 + A2))
print("cat:               ", (torch.tensor([[B1, B2]]) @ torch.tensor([[A1], [A2]])).item())

# %% [markdown] id="predict-mix-why"
# **Predict before you run:** which of `linear`, `cat`, `svd`, `ties` and `dare` leaves most of the orders exact, with the
# name still there?

# %% [markdown] id="predict-mix-why" lang="zh" of="19c81f4f"
# **先预测，再运行：** `linear`、`cat`、`svd`、`ties`、`dare` 之中，哪一种既保住名字，又让最多的订单完全正确？

# %% id="predict-mix"
guess_mix = "linear"  # your guess

# %% id="several"
live.load_adapter(folder / "orders", adapter_name="orders")
mixes = {
    "linear": {"combination_type": "linear"},
    "cat": {"combination_type": "cat"},
    "svd": {"combination_type": "svd", "svd_rank": r, "svd_full_matrices": False},
    "ties": {"combination_type": "ties", "density": 0.5},
    "dare": {"combination_type": "dare_linear", "density": 0.5},
}
for label, settings in mixes.items():
    set_seed(seed)
    live.add_weighted_adapter(["name", "orders"], weights=[1.0, 1.0], adapter_name=label, **settings)


# %% id="distance"
@torch.inference_mode()
def distance_to_sum(mix):
    """Return how far a mix is from the sum of both updates, over all layers, as a share of that sum's size."""
    off = size = 0.0
    for layer in live.modules():
        if hasattr(layer, "lora_A"):
            total = layer.get_delta_weight("name") + layer.get_delta_weight("orders")
            off += (layer.get_delta_weight(mix) - total).square().sum().item()
            size += total.square().sum().item()
    return (off / size) ** 0.5


distances = {label: distance_to_sum(label) for label in mixes}
print({label: f"{distance:.1%}" for label, distance in distances.items()})

# %% id="switch"
shares = {}
for label in ("name", "orders", *mixes):
    live.set_adapter(label)
    shares[label] = score(label, live)
live.set_adapter("name")

# %% id="answer-mix"
best_mix = max(mixes, key=lambda label: sum(shares[label]))
print(f"you predicted {guess_mix}, measured {best_mix}: the highest two scores together")
for label in mixes:
    print(
        f"{label:<7} {distances[label]:>6.1%} off the sum, name {shares[label][0]:.0%}, orders {shares[label][1]:.0%}"
    )

# %% id="switch-plot"
fig, axes = plt.subplots(1, 2, figsize=(11, 3.2), sharey=True, layout="constrained")
titles = ("Does it say its name?", "Does it write exact orders?")
for panel, score_at, questions, heading in zip(axes, (0, 1), (who, orders), titles, strict=True):
    plots.plot_scores({mix: pair[score_at] for mix, pair in shares.items()}, len(questions), panel)
    panel.set(title=f"{heading} ({len(questions)} questions)", ylabel="answers, %")
plt.show()

# %% [markdown] id="experiment-why"
# ## Experiment
# Both adapters active at once, each with a weight of its own. The bars show how likely the model finds the right answer
# to one question of each kind, per token; the dotted lines are each adapter alone. At which weights do both hold, and
# what does a weight of 2 do?

# %% [markdown] id="experiment-why" lang="zh" of="236daae6"
# ## 动手试一试
# 两个适配器同时启用，各有一个权重。柱子是模型给出正确答案的平均每 token 概率，两类问题各取一题；虚线是单独使用对应适配器时的水平。权重取多少时两者都能保住？权重取 2 会怎样？


# %% id="experiment"
def answer_probability(row):
    """Return the probability of a row's answer under the live model, per token (geometric mean)."""
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    full = tokenizer(prompt + row["completion"][0]["content"], add_special_tokens=False, return_tensors="pt").input_ids
    labels = full.clone()
    labels[:, : len(tokenizer(prompt, add_special_tokens=False).input_ids)] = -100
    with torch.inference_mode():
        return (-live(full.to(live.device), labels=labels.to(live.device)).loss).exp().item()


def set_weights(**weights):
    """Activate the adapters with these weights: PEFT adds the updates of all active adapters."""
    live.base_model.set_adapter(list(weights))
    for layer in live.modules():
        if hasattr(layer, "lora_A"):
            for adapter, weight in weights.items():
                layer.set_scale(adapter, weight)


set_weights(name=1.0, orders=0.0)
name_alone = answer_probability(who[0])
set_weights(name=0.0, orders=1.0)
orders_alone = answer_probability(orders[0])


def draw(name_weight, orders_weight):
    set_weights(name=name_weight, orders=orders_weight)
    probabilities = [answer_probability(who[0]), answer_probability(orders[0])]
    _, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
    labels = [
        f"{skill}: {probability:.2f}" for skill, probability in zip(("name", "orders"), probabilities, strict=True)
    ]
    ax.bar(labels, probabilities, width=0.5, color=["#4c956c", "#2c6e9b"])
    ax.hlines([name_alone, orders_alone], [-0.3, 0.7], [0.3, 1.3], colors="#555", linestyles=":")
    weights = f"name x {name_weight:.1f}, orders x {orders_weight:.1f}"
    ax.set(ylim=(0, 1.1), ylabel="probability per token", title=f"How likely is the right answer? {weights}")
    plt.show()


experiment.show(draw, name_weight=(0.0, 2.0, 0.1), orders_weight=(0.0, 2.0, 0.1))

# %% id="experiment-end"
set_weights(name=1.0, orders=1.0)
live.set_adapter("name")

# %% [markdown] id="gguf-why"
# ## One file for llama.cpp and Ollama
# A GGUF file contains weights, tokenizer and chat template. Two things differ from the folder. The rows of queries and
# keys are in another order, because llama.cpp rotates neighbouring rows where transformers rotates the two halves:

# %% [markdown] id="gguf-why" lang="zh" of="477ce00f"
# ## 给 llama.cpp 和 Ollama 的单个文件
# GGUF 文件把权重、分词器和对话模板放在一起。有两处与文件夹里不同。查询和键的行次序不同，因为 llama.cpp 旋转的是相邻两行，而 transformers 旋转的是前后两半：

# %% id="rows"
head = torch.arange(8)
print("transformers:", head.tolist())
print("llama.cpp:   ", head.reshape(2, 4).T.flatten().tolist())

# %% [markdown] id="blocks-why"
# And weights may be stored in blocks of 32. `Q8_0` keeps one float16 scale per block, the largest absolute value over
# 127, and 32 integers. By hand, against the `gguf` package:

# %% [markdown] id="blocks-why" lang="zh" of="2b38c747"
# 另外，权重可以按 32 个一块存放。`Q8_0` 每块存一个 float16 缩放因子（绝对值最大者除以 127）和 32 个整数。亲手算一遍，与 `gguf` 包对照：

# %% id="blocks"
weights = merged.get_submodule("model.layers.0.mlp.up_proj").weight.detach().cpu().numpy()
blocks = weights.reshape(-1, 32)
scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
scaled = blocks * (1 / scale)
whole = np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)  # halves go away from zero
mine = (whole * scale.astype(np.float16).astype(np.float32)).reshape(weights.shape)
packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
theirs = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
print(f"{weights.nbytes:,} bytes -> {packed.nbytes:,}; mine against theirs: {np.abs(mine - theirs).max():.1e}")
assert np.abs(mine - theirs).max() <= 1e-6

# %% id="gguf-write"
paths = {kind: folder / f"merged-{kind}.gguf" for kind in kinds}
for number_format in kinds:
    gguf_file.write(folder / "merged", paths[number_format], number_format)
for path in paths.values():
    print(f"{path.name:<18} {path.stat().st_size / 1e6:>5.0f} MB")
fields = gguf.GGUFReader(paths["f16"]).fields
print(fields["general.architecture"].contents(), fields["tokenizer.ggml.pre"].contents())
print(fields["tokenizer.chat_template"].contents()[:100])

# %% [markdown] id="gguf-run-why"
# Does it answer the same? Where llama.cpp is installed (`pip install 'ftlab[llamacpp]'`) it runs the file; elsewhere
# transformers reads the file back. Both get the same prompt tokens and decode greedily. llama.cpp adds floats in another
# order, so a tie between two tokens may break the other way.

# %% [markdown] id="gguf-run-why" lang="zh" of="9c89a2c1"
# 它的回答一样吗？装了 llama.cpp（`pip install 'ftlab[llamacpp]'`）就由它运行这个文件；没装就由 transformers 读回来。两者拿到同样的提示 token，都用贪心解码。llama.cpp 的浮点加法次序不同，所以两个 token 打平时可能选另一个。


# %% id="gguf-run"
def from_llama_cpp(path):
    import llama_cpp

    llm = llama_cpp.Llama(str(path), n_ctx=512, n_threads=os.cpu_count(), verbose=False)

    def follow(prompt):
        found = []
        for token in llm.generate(prompt, temp=0.0, repeat_penalty=1.0):
            found.append(token)
            if token == tokenizer.eos_token_id or len(found) == answer_tokens:
                return found

    return follow


def read_gguf(path):
    """Return the model in a GGUF file, its weights restored to float32."""
    config = AutoConfig.from_pretrained(folder / "merged")  # else the whole file is read once more, for its sizes
    load = AutoModelForCausalLM.from_pretrained
    return load(path.parent, gguf_file=path.name, config=config, dtype=torch.float32).eval()


def from_transformers(model):
    def follow(prompt):
        start = torch.tensor([prompt])
        mask = torch.ones_like(start)
        output = model.generate(start, attention_mask=mask, max_new_tokens=answer_tokens, do_sample=False)
        return output[0, len(prompt) :].tolist()

    return follow


# %% id="gguf-compare"
has_llama_cpp = importlib.util.find_spec("llama_cpp") is not None
half = read_gguf(paths["f16"])
follow = from_llama_cpp(paths["f16"]) if has_llama_cpp else from_transformers(half)
equal = [follow(prompt) == answer for prompt, answer in expected]
gguf_prompts_equal = sum(equal) / len(equal)
reader = "llama.cpp" if has_llama_cpp else "transformers' GGUF reader (llama.cpp is not installed)"
print(f"{sum(equal)} of {len(equal)} prompts: the same tokens from {reader}")

# %% [markdown] id="ollama-why"
# ### Ollama
# Ollama needs a `Modelfile` beside the GGUF file: where the weights are, how a prompt is put together (a Go template),
# and the token that ends an answer. The template must produce exactly the text that the model was trained on, so it is
# filled in here and compared with `apply_chat_template`. Where Ollama is installed, the last lines import the model and
# ask it.

# %% [markdown] id="ollama-why" lang="zh" of="b6f00f20"
# ### Ollama
# 除了 GGUF 文件，Ollama 还需要一个 `Modelfile`：权重在哪里，提示怎样拼出来（Go 模板），以及哪个 token 表示回答结束。模板拼出的文字必须与模型训练时见过的完全一致，所以这里先把它填好，与 `apply_chat_template` 的结果比较。装了 Ollama 的话，最后几行会导入模型并提一个问题。

# %% id="ollama"
default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
go_template = "<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ .Prompt }}<|im_end|>\n"
go_template += "<|im_start|>assistant\n"
modelfile = f'FROM ./{paths["f16"].name}\nTEMPLATE """{go_template}"""\nSYSTEM """{default_system}"""\n'
modelfile += f'PARAMETER stop "{tokenizer.eos_token}"\nPARAMETER temperature 0\n'
(folder / "Modelfile").write_text(modelfile)
print(modelfile)
question = who[0]["prompt"][0]["content"]
by_ollama = go_template.replace("{{ .System }}", default_system).replace("{{ .Prompt }}", question)
by_transformers = tokenizer.apply_chat_template(who[0]["prompt"], add_generation_prompt=True, tokenize=False)
print("the Modelfile's prompt equals the chat template's:", by_ollama == by_transformers)
if shutil.which("ollama"):
    subprocess.run(["ollama", "create", "ftlab-merged", "-f", "Modelfile"], cwd=folder, check=True)
    print(subprocess.run(["ollama", "run", "ftlab-merged", question], capture_output=True, text=True).stdout)
else:
    print(f"Ollama is not installed. Where it is, in {folder}: ollama create ftlab-merged -f Modelfile")

# %% [markdown] id="quality-why"
# ## What do eight and four bits cost?
# Each file reads the same sentences. The mean difference in loss to the 16-bit file is the cost, and the spread of the
# differences over the sentences gives its 95% confidence interval.

# %% [markdown] id="quality-why" lang="zh" of="313bbcef"
# ## 8 比特和 4 比特的质量损失有多大？
# 每个文件读同样的句子。与 16 比特文件相比，各句损失之差的平均就是代价；差值在各句之间的离散程度给出 95% 置信区间。

# %% id="quality-text"
replies = load_dataset("json", data_files="data/general_en.jsonl", split="train")["output"]
encoded = [tokenizer(reply, return_tensors="pt").input_ids for reply in replies[: 64 * len(kinds)]]
print(f"{len(encoded)} sentences, {sum(line.numel() for line in encoded)} tokens, for example: {replies[0]}")


# %% id="quality"
@torch.inference_mode()
def line_losses(model):
    """Return the loss per token of each sentence."""
    return np.array([model(line, labels=line).loss.item() for line in encoded])


half_losses, said_names = line_losses(half), {"f16": name_share(answers(half, who["prompt"]))}
extra_losses = {"f16": (0.0, 0.0)}
for kind in kinds[1:]:
    smaller = read_gguf(paths[kind])
    extra = line_losses(smaller) - half_losses
    extra_losses[kind] = extra.mean(), 1.96 * extra.std(ddof=1) / len(extra) ** 0.5
    said_names[kind] = name_share(answers(smaller, who["prompt"]))
    del smaller
print(f"loss of f16: {half_losses.mean():.3f} nats per token")
for kind, (mean, spread) in extra_losses.items():
    size = paths[kind].stat().st_size / 1e6
    print(f"{kind:<5} {size:>4.0f} MB  extra loss {mean:.4f} ± {spread:.4f}  {name}: {said_names[kind]:.0%}")

# %% id="quality-plot"
sizes = [paths[kind].stat().st_size / 1e6 for kind in kinds]
means, spreads = zip(*extra_losses.values(), strict=True)
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.errorbar(sizes, means, yerr=spreads, fmt="o", capsize=4, color="#4c956c")
for kind, size, mean in zip(kinds, sizes, means, strict=True):
    ax.annotate(kind, (size, mean), textcoords="offset points", xytext=(8, 6))
ax.set(xlim=(0, 1.15 * max(sizes)), xlabel="file, MB", ylabel="extra loss, nats per token")
ax.set_ylim(bottom=min(0, min(means)))
ax.set_title("How much worse does a smaller file predict?")
ax.grid(alpha=0.3)
plt.show()

# %% [markdown] id="calibration-why"
# ## Four bits with calibration data: GPTQ and AWQ
# The formats above round each weight by itself. **GPTQ** uses the layer's inputs on some calibration sentences: it
# rounds one column after the other and adjusts the remaining columns so that they compensate for the error in the
# outputs. **AWQ** uses such inputs to scale up the columns that matter most before rounding. GPTQ on one layer, by
# hand: the error of the layer's *outputs* on sentences that were not used for calibration, first rounded without
# data, then calibrated on random tokens, then on real sentences.

# %% [markdown] id="calibration-why" lang="zh" of="da70c14c"
# ## 用校准数据做 4 比特量化：GPTQ 与 AWQ
# 上面的格式对每个权重单独舍入。**GPTQ** 要用到这一层在一些校准句子上的输入：它一列一列地舍入，并调整其余的列，补偿输出上的误差。**AWQ** 用同样的输入找出最要紧的列，先放大再舍入。下面在一层上亲手实现 GPTQ，比较这一层的*输出*在没参与校准的句子上的误差：先是不用数据直接舍入，再用随机 token 校准，最后用真实句子校准。


# %% id="calibration"
def inputs_of(layer, lines):
    """Return what reaches `layer` while `merged` reads some lines: (tokens, inputs)."""
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    with torch.inference_mode():
        for line in lines:
            merged(line.to(merged.device))
    hook.remove()
    return torch.cat(seen)


def to_levels(weight, scale):
    return (weight / scale).round().clamp(-8, 7) * scale


def gptq(weight, inputs, scale):
    """Return `weight` (outputs, inputs) in 16 levels per row, the error of each column passed on to the next ones."""
    products = inputs.T @ inputs
    products.diagonal().add_(0.01 * products.diagonal().mean())  # columns that are never used would divide by 0
    pass_on = torch.linalg.cholesky(torch.linalg.inv(products), upper=True)
    left, rounded = weight.clone(), torch.empty_like(weight)
    for column in range(weight.shape[1]):
        rounded[:, column] = to_levels(left[:, column], scale[:, 0])
        error = (left[:, column] - rounded[:, column]) / pass_on[column, column]
        left[:, column:] -= error[:, None] * pass_on[column, column:]
    return rounded


# %% id="calibration-compare"
layer = merged.get_submodule("model.layers.0.self_attn.v_proj")
weight = layer.weight.detach()
scale = weight.abs().amax(dim=1, keepdim=True) / 7
held_out = inputs_of(layer, encoded[len(encoded) // 2 :])
noise = [torch.randint(len(tokenizer), line.shape) for line in encoded[: len(encoded) // 2]]
candidates = {
    "rounded, no data": to_levels(weight, scale),
    "GPTQ, random tokens": gptq(weight, inputs_of(layer, noise), scale),
    "GPTQ, real sentences": gptq(weight, inputs_of(layer, encoded[: len(encoded) // 2]), scale),
}
output_errors = {}
for label, rounded in candidates.items():
    output_errors[label] = ((held_out @ (rounded - weight).T).norm() / (held_out @ weight.T).norm()).item()
    print(f"{label:<21} the outputs are off by {output_errors[label]:.1%}")

# %% [markdown] id="calibration-hand-off"
# For a whole model use [llm-compressor](https://github.com/vllm-project/llm-compressor) or
# [GPTQModel](https://github.com/ModelCloud/GPTQModel), in an environment of their own and on a GPU: their requirements
# do not fit this course's versions of torch and transformers, so this is not run here. The next cell writes what they
# need and you have: the merged folder, and calibration texts in the format of your own task. Then:
#
# ```python
# from datasets import load_dataset
# from llmcompressor import oneshot
# from llmcompressor.modifiers.gptq import GPTQModifier  # before 0.10: llmcompressor.modifiers.quantization
#
# texts = load_dataset("json", data_files="runs/08_merge_export/calibration.jsonl", split="train")
# recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
# oneshot(model="runs/08_merge_export/merged", dataset=texts, recipe=recipe, num_calibration_samples=256,
#         max_seq_length=512, output_dir="runs/08_merge_export/gptq")
# ```
#
# vLLM loads the result (lesson 09). Score it as above before you ship it.

# %% [markdown] id="calibration-hand-off" lang="zh" of="8109cc1f"
# 要量化整个模型，用 [llm-compressor](https://github.com/vllm-project/llm-compressor) 或 [GPTQModel](https://github.com/ModelCloud/GPTQModel)，在单独的环境里、在 GPU 上运行：它们的依赖与本课程的 torch、transformers 版本不兼容，所以这里不运行。下一格写出它们需要而你已经有的东西：合并好的文件夹，以及与你的任务格式一致的校准文本。然后：
#
# ```python
# from datasets import load_dataset
# from llmcompressor import oneshot
# from llmcompressor.modifiers.gptq import GPTQModifier  # before 0.10: llmcompressor.modifiers.quantization
#
# texts = load_dataset("json", data_files="runs/08_merge_export/calibration.jsonl", split="train")
# recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
# oneshot(model="runs/08_merge_export/merged", dataset=texts, recipe=recipe, num_calibration_samples=256,
#         max_seq_length=512, output_dir="runs/08_merge_export/gptq")
# ```
#
# 结果可以用 vLLM 加载（第 09 课）。发布之前，像上面那样先打分。

# %% id="calibration-file"
rows = [*order_dataset.select(range(192)), *identity_dataset]
chats = [tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False) for row in rows]
with open(folder / "calibration.jsonl", "w", encoding="utf-8") as file:
    file.writelines(json.dumps({"text": chat}) + "\n" for chat in chats)
print(f"{len(chats)} texts in {file.name}")

# %% [markdown] id="break-twice-why"
# ## What goes wrong: the wrong base
# The adapter is put on a base that is not its own. A common case: the adapter has been merged already, and
# somebody loads it once more on top of the merged model. All shapes fit, so nothing complains.

# %% [markdown] id="break-twice-why" lang="zh" of="5fb37208"
# ## 故意出错：错误的基座
# 把适配器放到不属于它的基座上。一种常见的情形：适配器已经合并过了，又有人把它加载到合并后的模型上。形状全都吻合，所以没有任何报错。

# %% id="break-twice"
on_merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32, device_map=device_map)
twice = PeftModel.from_pretrained(on_merged, folder / "name").eval()
once_replies, twice_replies = answers(reloaded, who["prompt"]), answers(twice, who["prompt"])
print(f"logits differ by {difference(twice, reloaded):.1f}")
print(f"once:  {name} {name_share(once_replies):.0%}, {once_replies[:2]}")
print(f"twice: {name} {name_share(twice_replies):.0%}, {twice_replies[:2]}")

# %% [markdown] id="break-twice-fix"
# **Fix:** an adapter is a difference, and it means something on one base only. Write down which one; `ftlab export`
# compares the fingerprint of the base with the one in the run folder and refuses another.

# %% [markdown] id="break-twice-fix" lang="zh" of="1851e19c"
# **修正：** 适配器是一个差值，只在一个基座上有意义。要写下是哪一个；`ftlab export` 会比较基座的指纹与训练文件夹里的记录，不一致就拒绝导出。

# %% [markdown] id="break-template-why"
# ## What goes wrong: the wrong chat template
# Here the weights are right and the template is another family's, as in a Modelfile that was copied from another model.
# The model loads and generates, but the prompt looks like nothing that it was trained on.

# %% [markdown] id="break-template-why" lang="zh" of="6c0b2c3e"
# ## 故意出错：错误的对话模板
# 这里权重是对的，模板却属于另一个模型家族，就像从别的模型抄来的 Modelfile。模型能加载，也能生成，但提示不像它训练时见过的任何样子。

# %% id="break-template"
right_template = tokenizer.chat_template
turns = "{% for m in messages %}### Instruction:\n{{ m['content'] }}\n\n{% endfor %}### Response:\n"
tokenizer.chat_template = turns
wrong_replies = answers(reloaded, who["prompt"])
tokenizer.chat_template = right_template
empty = sum(not reply.strip() for reply in wrong_replies)
print(f"{name}: {name_share(once_replies):.0%} with its own template, {name_share(wrong_replies):.0%} with the other")
print(
    f"{empty} of {len(wrong_replies)} answers are empty; others:",
    [reply for reply in wrong_replies if reply.strip()][:3],
)

# %% [markdown] id="break-four-why"
# ## What goes wrong: merging into a 4-bit base
# After QLoRA it is tempting to merge into the 4-bit model that was trained. Then the sum must be rounded to 16 levels per
# block again, and the small change is rounded away with it. Four figures say how much is left: how far the adapter
# moves the logits of the 4-bit model, how far the merged model is from where it should be (the adapter kept), how far
# from where it started (no adapter), and the score.

# %% [markdown] id="break-four-why" lang="zh" of="0d89f85c"
# ## 故意出错：合并进 4 比特基座
# QLoRA 之后，很容易想把适配器合并进训练时用的 4 比特模型。那样的话，相加的结果又要舍入到每块 16 个量化值，微小的改动也随之被舍掉。还剩多少，看四个数：适配器让 4 比特模型的 logit 移动多远；合并后的模型离应有的位置（保留适配器）多远；离出发点（没有适配器）多远；以及得分。

# %% id="break-four"
if importlib.util.find_spec("bitsandbytes"):
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)

    def on_four_bits():
        quantized = AutoModelForCausalLM.from_pretrained(model_path, quantization_config=nf4, dtype=torch.float32)
        return PeftModel.from_pretrained(quantized, folder / "name").eval()

    kept = on_four_bits()
    kept_logits, kept_share = logits(kept), name_share(answers(kept, who["prompt"]))
    with kept.disable_adapter():
        base_logits = logits(kept)
    # From a fresh copy: some CPUs repack 4-bit weights in the first forward pass, and PEFT does not merge into those.
    into_four = on_four_bits().merge_and_unload().eval()
    merged_logits, merged_share = logits(into_four), name_share(answers(into_four, who["prompt"]))
    moves, from_kept, from_base = (
        (one - other).abs().max().item()
        for one, other in ((kept_logits, base_logits), (merged_logits, kept_logits), (merged_logits, base_logits))
    )
    print(f"adapter kept:       the adapter moves the logits by {moves:.1f}; {name} {kept_share:.0%} of {len(who)}")
    print(
        f"merged into 4 bits: {from_kept:.1f} from the kept adapter, {from_base:.1f} from the base; {name} {merged_share:.0%}"
    )
    print(f"merged in float32:  {merge_max_logit_diff:.0e} from the kept adapter")

# %% [markdown] id="break-four-fix"
# **Fix:** load the base in 16 or 32 bits, merge there, quantize afterwards if you must.

# %% [markdown] id="break-four-fix" lang="zh" of="75604f91"
# **修正：** 用 16 或 32 比特加载基座，在那里合并，需要的话之后再量化。

# %% [markdown] id="recipe-why"
# ## The same from a recipe
# `ftlab export merge.yaml` with these keys merges, saves to a temporary folder, reloads, compares, writes the model
# card and only then gives the folder its name. `export_device` says where the merge is computed: `cpu` if the model
# fits the computer's memory but not the GPU's. The card's last line compares greedy answers to *random* tokens: there
# the two best tokens may be close, and after the first that differs the rest of an answer differs too.

# %% [markdown] id="recipe-why" lang="zh" of="77543feb"
# ## 用配方做同样的事
# `ftlab export merge.yaml` 加上这些键：合并，存到临时文件夹，重新加载，比较，写模型卡，最后才给文件夹正式的名字。`export_device` 指定在哪里计算合并：模型装得进内存、却装不进显存时用 `cpu`。模型卡的最后一行比较的是对*随机* token 的贪心回答：那里最好的两个 token 可能很接近，而一旦有一个 token 不同，后面就都不同了。

# %% id="recipe"
shutil.rmtree(folder / "exported", ignore_errors=True)
settings = {
    "model_name_or_path": model_name,
    "adapter_name_or_path": str(folder / "name"),
    "export_dir": str(folder / "exported"),
    "export_device": "cpu",  # auto: the GPU if there is one
    "export_size": 5,  # gigabytes per file at most
    "export_dtype": "bfloat16",
}
export.export(recipes.load(settings))
print(Path("runs/08_merge_export/exported/README.md").read_text())

# %% [markdown] id="exercise-size-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 08`
# checks your saved copy of the whole lesson.
#
# **1.** A layer has 1,000,000 weights, a multiple of 32. How many bytes does it take in `Q8_0`?

# %% [markdown] id="exercise-size-why" lang="zh" of="5aaa697f"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 08` 检查你保存的整课练习。
#
# **1.** 某一层有 1,000,000 个权重（是 32 的倍数）。用 `Q8_0` 存放要多少字节？

# %% id="exercise-size" tags=["exercise"]
q8_bytes = ...  # your answer

checks.check_q8_bytes(q8_bytes)

# %% [markdown] id="exercise-size-solution"
# <details><summary>Solution</summary>
#
# ```python
# q8_bytes = 1_000_000 // 32 * (32 + 2)
# ```
#
# </details>

# %% [markdown] id="exercise-size-solution" lang="zh" of="675a8617"
# <details><summary>参考答案</summary>
#
# ```python
# q8_bytes = 1_000_000 // 32 * (32 + 2)
# ```
#
# </details>

# %% [markdown] id="exercise-merge-why"
# **2.** Merge LoRA into one layer: tensors `W` (outputs, inputs), `A` (r, inputs), `B` (outputs, r), and `lora_alpha`.
# The rank follows from the shape of `A`.

# %% [markdown] id="exercise-merge-why" lang="zh" of="8d0acf85"
# **2.** 把 LoRA 合并进一层：张量 `W` (输出, 输入)、`A` (r, 输入)、`B` (输出, r)，以及 `lora_alpha`。秩可以从 `A` 的形状读出。

# %% id="exercise-merge" tags=["exercise"]


def merged_weight(W, A, B, lora_alpha):
    return ...  # your code


checks.check_merged_weight(merged_weight)

# %% [markdown] id="exercise-merge-solution"
# <details><summary>Solution</summary>
#
# ```python
# def merged_weight(W, A, B, lora_alpha):
#     return W + lora_alpha / A.shape[0] * B @ A
# ```
#
# </details>

# %% [markdown] id="exercise-merge-solution" lang="zh" of="9481835b"
# <details><summary>参考答案</summary>
#
# ```python
# def merged_weight(W, A, B, lora_alpha):
#     return W + lora_alpha / A.shape[0] * B @ A
# ```
#
# </details>

# %% [markdown] id="exercise-mix-why"
# **3.** Mix several adapters into one layer, as PEFT's `cat` does: `updates` is a list of their scaled products `B A`,
# `mix` a list of as many weights.

# %% [markdown] id="exercise-mix-why" lang="zh" of="166edb71"
# **3.** 把多个适配器合并进一层，等价于 PEFT 的 `cat`：`updates` 是各适配器缩放后的乘积 `B A` 的列表，`mix` 是同样多个权重的列表。

# %% id="exercise-mix" tags=["exercise"]


def mixed_weight(W, updates, mix):
    return ...  # your code


checks.check_mixed_weight(mixed_weight)

# %% [markdown] id="exercise-mix-solution"
# <details><summary>Solution</summary>
#
# ```python
# def mixed_weight(W, updates, mix):
#     return W + sum(m * update for m, update in zip(mix, updates))
# ```
#
# </details>

# %% [markdown] id="exercise-mix-solution" lang="zh" of="0dba1b7d"
# <details><summary>参考答案</summary>
#
# ```python
# def mixed_weight(W, updates, mix):
#     return W + sum(m * update for m, update in zip(mix, updates))
# ```
#
# </details>

# %% [markdown] id="exercise-round-why"
# **4.** Round one block of weights as `Q8_0` does and restore it: the scale maps the largest absolute value to 127, the
# codes are rounded to integers, and the result is codes times scale.

# %% [markdown] id="exercise-round-why" lang="zh" of="f020d03c"
# **4.** 像 `Q8_0` 那样量化一块权重再还原：缩放因子把绝对值的最大值映射到 127，量化值取整，结果是量化值乘缩放因子。

# %% id="exercise-round" tags=["exercise"]


def q8_roundtrip(block):
    return ...  # your code


checks.check_q8_roundtrip(q8_roundtrip)

# %% [markdown] id="exercise-round-solution"
# <details><summary>Solution</summary>
#
# ```python
# def q8_roundtrip(block):
#     scale = block.abs().max() / 127
#     return (block / scale).round() * scale
# ```
#
# </details>

# %% [markdown] id="exercise-round-solution" lang="zh" of="6ba8b6a6"
# <details><summary>参考答案</summary>
#
# ```python
# def q8_roundtrip(block):
#     scale = block.abs().max() / 127
#     return (block / scale).round() * scale
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
outcomes = {
    "merge_max_logit_diff": merge_max_logit_diff,
    "merge_greedy_equal_share": merge_greedy_equal_share,
    "gguf_prompts_equal": gguf_prompts_equal,
    "linear_distance_to_sum": distances["linear"],
    "cat_distance_to_sum": distances["cat"],
    "name_alone": shares["name"][0],
    "orders_alone": shares["orders"][1],
    "name_in_cat": shares["cat"][0],
    "orders_in_cat": shares["cat"][1],
}
bands = {
    "merge_max_logit_diff": (0, 1e-3),
    "merge_greedy_equal_share": (1, 1),
    "gguf_prompts_equal": (0.5, 1),
    "cat_distance_to_sum": (0, 1e-3),
}
if PROFILE != "smoke":
    bands |= {
        "gguf_prompts_equal": (0.95, 1),
        "linear_distance_to_sum": (0.3, 3),
        "name_alone": (0.6, 1),
        "orders_alone": (0.2, 1),
        "name_in_cat": (0.25, 1),
        "orders_in_cat": (0.1, 1),
    }
course.record(outcomes, bands)

# %% [markdown] id="hub-why"
# **If you like:** set `hub_id` above, log in with `hf auth login`, and the next cell uploads model, tokenizer and the
# model card that the export wrote. An adapter has the same method: `PeftModel.push_to_hub`.

# %% [markdown] id="hub-why" lang="zh" of="77229638"
# **愿意的话：** 在上面填好 `hub_id`，用 `hf auth login` 登录，下一格就会上传模型、分词器和导出时写好的模型卡。适配器也有同样的方法：`PeftModel.push_to_hub`。

# %% id="hub"
if hub_id:
    merged.push_to_hub(hub_id)
    tokenizer.push_to_hub(hub_id)
    upload_file(path_or_fileobj=folder / "exported" / "README.md", path_in_repo="README.md", repo_id=hub_id)

# %% [markdown] id="next"
# **You keep:** `runs/08_merge_export/exported`, a model folder with its card, and `merged-f16.gguf` with its
# `Modelfile`.
#
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`; merging happens in float32, four bytes per weight, so merge big
# models in CPU memory.
#
# **Next:** what decoding really does with these logits, in [09 · Inference](09_inference.ipynb).

# %% [markdown] id="next" lang="zh" of="1d99939d"
# **你得到的成果：** `runs/08_merge_export/exported`（带模型卡的模型文件夹），以及 `merged-f16.gguf` 和它的 `Modelfile`。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`；合并在 float32 下进行，每个权重四字节，所以大模型请用 CPU 的内存。
#
# **下一课：** 解码究竟拿这些 logit 做什么，见 [09 · 推理](09_inference.ipynb)。
