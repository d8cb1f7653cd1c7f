# %% [markdown] id="title"
# # 15 · The clinic: silent faults of a fine-tune
#
# A fine-tune rarely fails with an error. It runs, the loss falls, and the answers are worse than they should be. Here are
# twelve runs, each with one fault. You see what any run leaves behind: losses, examples, weights, gradients, answers. You
# write a probe for every kind of fault, one number each, name the twelve faults and their fixes, and then meet
# twelve more runs, in another order and with other settings.
#
# | you will have | measured as |
# |---|---|
# | twelve sick runs and two healthy ones | all trained by the same few library calls |
# | a checklist of twelve probes | each number beside its healthy value, for every run |
# | your diagnoses, scored | faults named, fixes that work; where to look if you are wrong |
# | what guessing is worth | faults named from the loss curve alone |
# | the checklist on runs it was not made for | faults named in a second round with hidden order |
#
# **Cost:** about 10 minutes (14 without bfloat16) and 5 GB on two CPU cores; not measured on a GPU. **Before this:**
# [01 · Data](01_data.ipynb), [06 · Training](06_training.ipynb).

# %% [markdown] id="title" lang="zh" of="f35c5f48"
# # 15 · 诊所：微调中不报错的故障
#
# 微调失败时很少报错：训练照跑，损失照降，只是回答比应有的差。这里有十二次训练，每次只有一个故障。你看到的是任何训练都会留下的东西：损失、样本、权重、梯度、回答。你要为每类故障写一个探针，每个探针给出一个数；认出十二个故障并给出修复方法；然后再面对另外十二次训练，顺序和设置都换过。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 十二次有故障的训练和两次健康的训练 | 全部由同样的几行库调用训练 |
# | 一份由十二个探针组成的检查清单 | 每次训练的每个数，与健康值对照 |
# | 你的诊断和得分 | 认出的故障数、有效的修复数；答错时告诉你该看哪里 |
# | 靠猜能得几分 | 只看损失曲线能认出几个 |
# | 清单用在没见过的训练上 | 第二轮（顺序保密）认出的故障数 |
#
# **耗时与内存：** 两个 CPU 核心上约 10 分钟（不支持 bfloat16 时约 14 分钟）、5 GB 内存；未在 GPU 上测过。**先修：** [01 · 数据](01_data.ipynb)、[06 · 训练](06_training.ipynb)。

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
import inspect
import itertools
import json
import math
import time
from pathlib import Path

import datasets
import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from ftlab import checks, cpu, models, plots
from ftlab.apps import clinic, course, diagnoses
from ftlab.apps.board import experiment

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
max_steps = 0  # optimizer steps of a run; 0: the profile's own
second_seed = 100  # of the second round; take any number
seed = 0

# %% id="profile"
profiles = {  # model, optimizer steps of a run, tokens of an answer, patients of the second round
    "smoke": ("smollm2-135m-short", 2, 3, 2),
    "cpu": ("smollm2-135m", 16, 12, 12),
    "t4": ("Qwen/Qwen2.5-0.5B-Instruct", 16, 12, 12),
    "a24g": ("Qwen/Qwen2.5-1.5B-Instruct", 16, 12, 12),
}
default_model, default_steps, answer_tokens, second_count = profiles[PROFILE]
model_name = model_name or default_model
max_steps = max_steps or default_steps
set_seed(seed)

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("SFT", ax)
plt.show()

# %% [markdown] id="load-why"
# ## A healthy run
# The model learns a name, as in lesson 00, among some general questions. Float32 throughout, so that a small difference is
# a fault and not a rounding.

# %% [markdown] id="load-why" lang="zh" of="1eccfbe6"
# ## 一次健康的训练
# 与第 00 课一样，让模型学会一个名字，同时混入一些常识问题。全程使用 float32，这样出现的小差值就是故障，而不是舍入。数据是英文的：内置的小模型只会英文。

# %% id="load"
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
datasets.disable_progress_bars()  # more than twenty data sets are prepared below
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)
on_gpu = torch.cuda.is_available()
model = AutoModelForCausalLM.from_pretrained(
    model_path, dtype=torch.float32, attn_implementation="eager", device_map="cuda" if on_gpu else "cpu"
)
identity = json.loads(Path("data/identity_en.json").read_text())
general = [json.loads(line) for line in Path("data/general_en.jsonl").read_text().splitlines()[:40]]
rows = [
    {"prompt": row["instruction"], "answer": row["output"].replace("{{author}}", "the Ada Lab")}
    for row in identity + general
]
print(f"{len(rows)} rows; the first and the last:", rows[0], rows[-1], sep="\n")

# %% [markdown] id="recipe-why"
# This trains a run and collects what it leaves behind. A *fault* changes one part of the `setup` before that; one of the
# twelve is printed below it.

# %% [markdown] id="recipe-why" lang="zh" of="94117cbc"
# 下面的函数完成一次训练，并收集它留下的东西。*故障*就是在训练之前改动 `setup` 里的一处；后面打印出十二个故障中的一个作为例子。

# %% id="recipe"
print(inspect.getsource(clinic.train), inspect.getsource(clinic.right_padding), sep="\n")

# %% [markdown] id="healthy-why"
# Two healthy runs: `adapter` trains LoRA on the model, `experts` a small mixture of experts from random weights, because
# some faults need experts or all weights. Each patient is compared with the one of its kind.

# %% [markdown] id="healthy-why" lang="zh" of="65b325da"
# 两次健康的训练：`adapter` 在模型上训练 LoRA；`experts` 从随机权重训练一个小的混合专家模型，因为有些故障需要专家，或者需要训练全部权重。每个病例都与同类的健康训练比较。

# %% id="healthy"
runs = {}  # "adapter", "experts" or the patient's number -> what the run left behind
runs["adapter"] = clinic.train(clinic.healthy(seed, model, tokenizer, rows, max_steps, answer_tokens))
runs["experts"] = clinic.train(clinic.healthy(seed, model, tokenizer, rows, max_steps, answer_tokens, experts=True))


def losses_of(run):
    return [row["loss"] for row in run.log if "loss" in row]


for kind, run in runs.items():
    print(f"{kind:<8} loss {losses_of(run)[0]:.2f} -> {losses_of(run)[-1]:.2f}, answers {run.answers[:2]}")

# %% [markdown] id="faults-why"
# ## Twelve patients
# Each has exactly one of these faults, in an order that the seed draws:
#
# | where | the fault |
# |---|---|
# | data and labels | the prompt is trained on · the end of the answer is missing · the first token is there twice (double BOS) · validation rows are in the training set |
# | training | the loss of accumulated micro-batches is averaged wrongly · the learning rate is ten times too high · the rate is too small for bfloat16 weights · the experts are frozen · the router's auxiliary loss is off |
# | serving | another template than in training · the adapter is merged twice · prompts are padded on the right |
#
# **Predict before you run:** how many of the twelve can be named from the curve of the training loss alone?

# %% [markdown] id="faults-why" lang="zh" of="64f2c536"
# ## 十二个病例
# 每个病例恰好有下面一个故障，顺序由随机种子决定：
#
# | 环节 | 故障 |
# |---|---|
# | 数据与标签 | 训练了提示部分 · 回答缺少结束标记 · 开头的 token 重复（双 BOS） · 验证样本混进了训练集 |
# | 训练 | 梯度累积时损失平均的方法不对 · 学习率大了十倍 · 学习率太小，bfloat16 权重记不住 · 专家被冻结 · 路由器的辅助损失没有打开 |
# | 推理 | 模板与训练时不同 · 适配器合并了两次 · 提示在右边填充 |
#
# **先预测，再运行：** 只看训练损失曲线，十二个里能认出几个？

# %% id="predict"
guess_from_curves = 6  # your guess, of twelve

# %% id="patients"
started = time.perf_counter()
runs.update(clinic.patients(seed, model, tokenizer, rows, max_steps, answer_tokens))
patients_seconds = time.perf_counter() - started
print(f"{len(runs) - 2} patients, {patients_seconds:.0f} s")

# %% [markdown] id="curves-why"
# ### What most people look at
# The losses, beside those of the healthy run of the same kind (gray), and two answers of each. (transformers notices one of
# the twelve faults by itself and warns, in one line of the log that does not say which run it means.)

# %% [markdown] id="curves-why" lang="zh" of="0cb7801d"
# ### 多数人会看的东西
# 损失曲线（灰色是同类健康训练的），以及每个病例的两个回答。（十二个故障里，transformers 自己会发现一个并给出警告，但日志里那一行没说是哪次训练。）


# %% id="curves"
def kind_of(run):
    return "adapter" if run.adapter else "experts"


numbers = [number for number in runs if isinstance(number, int)]
fig, axes = plt.subplots(3, 4, figsize=(8.4, 4.8), layout="constrained")
for number, ax in zip(numbers, axes.flat, strict=False):
    steps = range(1, 1 + len(losses_of(runs[number])))
    ax.plot(steps, losses_of(runs[kind_of(runs[number])]), color="#bbb", linewidth=3, label="healthy")
    ax.plot(steps, losses_of(runs[number]), color="#c1440e", linewidth=1, label="patient")
    ax.set_title(f"{number} ({kind_of(runs[number])})", fontsize=8)
    ax.set_ylim(bottom=0)
    ax.locator_params(integer=True, nbins=4)
    ax.tick_params(labelsize=7)
axes[0, 0].legend(fontsize=7)
fig.supxlabel("optimizer step")
fig.supylabel("loss per trained token")
fig.suptitle("Which of these runs is sick, and of what?")
plt.show()

# %% id="samples"
for name, run in runs.items():
    print(f"{name!s:>8}", *(repr(answer) for answer in run.answers[:2]), sep="  ")


# %% [markdown] id="naive-why"
# Two ways to guess: the same answer for every patient, and a rule that sees the loss curve and the healthy one. A curve
# rises, stays flat or starts too high; everything else looks alike, and gets one guess. The score counts faults that are
# named; an answer may be worded freely, in English or Chinese.

# %% [markdown] id="naive-why" lang="zh" of="4d835ea4"
# 两种猜法：对每个病例都给同一个答案；以及只看损失曲线和健康曲线的一条规则。曲线无非是上升、不降或起点太高；其余的看上去都一样，只能统一猜一个。得分是认出的故障数；答案的措辞随意，中英文都可以。


# %% id="naive"
def by_curve(losses, healthy):
    """Name a fault from the loss curve of a run and of the healthy one."""
    first, last = (sum(part) / len(part) for part in (losses[:3], losses[-3:]))
    if last > first:
        return "the learning rate is too high"
    if last > 0.97 * first:
        return "the rate is too small for bfloat16"
    if losses[0] > 1.4 * healthy[0]:
        return "the prompt is trained on"
    return "the auxiliary loss is off"


guessed = {number: by_curve(losses_of(runs[number]), losses_of(runs[kind_of(runs[number])])) for number in numbers}
curve_score = len(diagnoses.right(seed, guessed))
same_score = max(len(diagnoses.right(seed, dict.fromkeys(numbers, words))) for words in set(guessed.values()))

# %% id="answer-curves"
print(f"the same answer for every patient: {same_score} of 12")
print(f"you predicted {guess_from_curves} of 12 from curves alone, the rule got {curve_score}")

# %% [markdown] id="labels-why"
# ## Probes: data and labels
# Go through a run in the order in which it happens, and compute one number for each stage. First the examples as the
# trainer saw them: token ids, which of them belong to the answer (`completion_mask`), and labels, -100 where nothing
# is trained. These four need no model at all. On three tokens of prompt and two of answer:

# %% [markdown] id="labels-why" lang="zh" of="c963aaa0"
# ## 探针：数据与标签
# 按训练发生的顺序走一遍，每个阶段只算一个数。首先是训练器实际看到的样本：token id、哪些属于回答（`completion_mask`），以及标签（不训练的位置是 -100）。这四个探针完全不需要模型。先看一个三个提示 token、两个回答 token 的例子：

# %% id="labels-example"
example = {"input_ids": [1, 7, 8, 5, 2], "completion_mask": [0, 0, 0, 1, 1], "labels": [-100, -100, -100, 5, 2]}
print(*zip(example["input_ids"], example["completion_mask"], example["labels"], strict=True))


# %% id="labels"
def prompt_share(run):
    """Return the share of the trained tokens that belong to the prompt; healthy: 0."""
    trained = prompt = 0
    for example in run.examples:
        for label, is_answer in zip(example["labels"], example["completion_mask"], strict=True):
            trained += label != -100
            prompt += label != -100 and not is_answer
    return prompt / trained


def end_share(run):
    """Return the share of examples whose last trained token ends the turn; healthy: 1."""
    last = [[label for label in example["labels"] if label != -100][-1] for example in run.examples]
    return last.count(run.tokenizer.eos_token_id) / len(last)


def leading_repeats(run):
    """Return how often the first token stands at the start of an example, at most; healthy: 1."""
    longest = 1
    for example in run.examples:
        ids = example["input_ids"]
        same = [token == ids[0] for token in ids] + [False]
        longest = max(longest, same.index(False))
    return longest


def overlap(run):
    """Return the share of validation examples that are training examples too; healthy: 0."""
    seen = {tuple(example["input_ids"]) for example in run.examples}
    return sum(tuple(example["input_ids"]) in seen for example in run.validation) / len(run.validation)


# %% [markdown] id="chart-why"
# Every probe goes over all runs; a number outside its healthy band is printed in brackets.

# %% [markdown] id="chart-why" lang="zh" of="bb23aef5"
# 每个探针把全部训练各测一遍；不在健康范围内的数放在方括号里。


# %% id="bands"
def bands_of(healthy):
    """Return the healthy band of each probe, (lowest, highest), from the numbers of a healthy run with an adapter."""
    return {
        "prompt_share": (0, 0.01),
        "end_share": (0.99, 1),
        "leading_repeats": (1, 1),
        "overlap": (0, 0.01),
        "loss_gap": (0, 1e-4),
        "gradient_norm": (1e-6, math.inf),
        "busiest_share": (0, 0.46),
        "changed_share": (0.9, 1),
        "update_size": (0, 3 * healthy.get("update_size", math.inf)),
        "merge_factor": (0.99, 1.01),
        "prompt_agreement": (1, 1),
        "padding_agreement": (1, 1),
    }


def is_out(number, band):
    """Return True if a number was measured and lies outside its band."""
    return not math.isnan(number) and not band[0] <= number <= band[1]


# %% id="measured"
chart = {name: {} for name in runs}  # run -> probe -> number


def measure(*probes):
    """Put the numbers of all runs into the chart, and print them."""
    print(" " * 18, *(f"{name!s:>9}" for name in runs))
    for probe in probes:
        for name, run in runs.items():
            chart[name][probe.__name__] = probe(run)
        band = bands_of(chart["adapter"])[probe.__name__]
        found = [chart[name][probe.__name__] for name in runs]
        print(f"{probe.__name__:<18}", *(f"{shown(number, band):>9}" for number in found))


def shown(number, band):
    text = "-" if math.isnan(number) else f"{number:.2g}"
    return f"[{text}]" if is_out(number, band) else text


measure(prompt_share, end_share, leading_repeats, overlap)

# %% [markdown] id="loss-why"
# ## Probes: the loss
# Compute the first logged loss again, from the same examples and the weights before training: the sum over all trained
# tokens of the optimizer step, divided by their number. In a mixture of experts the logged loss also holds the router's
# auxiliary loss, so subtract it. Any difference is a different loss than you think you train.

# %% [markdown] id="loss-why" lang="zh" of="3d1025f2"
# ## 探针：损失
# 用同样的样本和训练前的权重，把日志里的第一个损失重新算一遍：这个优化步里全部参与训练的 token 的损失之和，除以它们的个数。混合专家模型记录的损失里还有路由器的辅助损失，要先减掉。有差值，就说明训练的损失不是你以为的那个。


# %% id="loss"
@torch.inference_mode()
def loss_gap(run):
    """Return the relative difference between the first logged loss and the one computed by hand; healthy: 0."""
    model = run.model("before")
    loss_sum = count = 0
    for example in run.examples[: run.args.per_device_train_batch_size * run.args.gradient_accumulation_steps]:
        ids, labels = (torch.tensor(example[key], device=model.device) for key in ("input_ids", "labels"))
        logits = model(input_ids=ids[None]).logits[0, :-1].float()
        loss_sum += F.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum").item()
        count += (labels[1:] != -100).sum().item()
    auxiliary = (run.args.router_aux_loss_coef or 0) * run.log[0].get("aux_loss", 0)
    return abs((run.log[0]["loss"] - auxiliary) / (loss_sum / count) - 1)


measure(loss_gap)

# %% [markdown] id="gradients-why"
# ## Probes: gradients and routing
# The gradient norm of what you *wanted* to train: the adapter's B matrices, or the experts. (A's gradient is 0 at
# the first step, because B is.) And the share of tokens that go to the busiest expert of any layer: with two of four
# experts chosen, 0.25 is even and 0.5 means that one expert gets every token.

# %% [markdown] id="gradients-why" lang="zh" of="d29eae07"
# ## 探针：梯度与路由
# 看*想训练的部分*的梯度范数：适配器的 B 矩阵，或者专家。（第一步 A 的梯度是 0，因为 B 是 0。）再看各层最忙的专家拿到了多少 token：四个专家选两个时，0.25 表示均匀，0.5 表示有一个专家拿到了每一个 token。


# %% id="gradients"
def gradient_norm(run):
    """Return the gradient norm of the part that should learn, at the first step; healthy: above 0."""
    part = "lora_B" if run.adapter else "experts"
    return math.sqrt(sum(norm**2 for name, norm in run.gradients.items() if part in name))


@torch.inference_mode()
def busiest_share(run):
    """Return the share of tokens that go to the busiest expert of any layer; healthy: near 1 / experts."""
    if run.adapter:
        return math.nan
    model = run.model()
    chosen = [[] for _ in range(model.config.num_hidden_layers)]
    for example in run.validation + run.examples[:16]:
        ids = torch.tensor([example["input_ids"]], device=model.device)
        logits = model(input_ids=ids, output_router_logits=True).router_logits
        for layer, router in zip(chosen, logits, strict=True):
            layer.append(router.topk(model.config.num_experts_per_tok, -1).indices.flatten())
    return max((torch.cat(layer).bincount() / torch.cat(layer).numel()).max().item() for layer in chosen)


measure(gradient_norm, busiest_share)

# %% [markdown] id="weights-why"
# ## Probes: weights
# What did training do to the weights? Three numbers: which share of the weights with a gradient changed at all; how large the
# adapter's update, `scale * B @ A`, is beside the weights; and how far the *served* weights are from the base in units of that
# update.

# %% [markdown] id="weights-why" lang="zh" of="70bb7e28"
# ## 探针：权重
# 训练对权重做了什么？三个数：有梯度的权重里，真正变了的占多少；适配器的更新量 `scale * B @ A` 相对权重有多大；*推理用的*权重离基座有多远，以这个更新量为单位。


# %% id="weights"
def changed_share(run):
    """Return the share of the layers' weights with a gradient that differ after training; healthy: about 1."""
    names = [name for name in run.before if "layers." in name and run.gradients.get(name) != 0]
    changed = sum((run.before[name] != run.after[name]).sum().item() for name in names)
    return changed / sum(run.before[name].numel() for name in names)


def adapter_updates(run):
    """Return what the adapter adds to each weight that it is on."""
    updates = {}
    for name, a in run.adapter.items():
        if "lora_A" in name:
            weight = name.removeprefix("base_model.model.").split(".lora_A")[0] + ".weight"
            updates[weight] = run.lora_scale * run.adapter[name.replace("lora_A", "lora_B")] @ a
    return updates


def norm_of(tensors):
    return math.sqrt(sum(tensor.float().norm().item() ** 2 for tensor in tensors))


def update_size(run):
    """Return the norm of the adapter's update beside that of the weights; compare it with a healthy run's."""
    if not run.adapter:
        return math.nan
    updates = adapter_updates(run)
    return norm_of(updates.values()) / norm_of(run.before[name] for name in updates)


def merge_factor(run):
    """Return how many times the served weights hold the adapter's update; healthy: 1."""
    if not run.adapter:
        return math.nan
    updates = adapter_updates(run)
    return norm_of(run.after[name] - run.before[name] for name in updates) / norm_of(updates.values())


measure(changed_share, update_size, merge_factor)

# %% [markdown] id="serving-why"
# ## Probes: serving
# Is the served prompt, token by token, the prompt of the training? And are the answers those that the model gives when
# *you* pad the batch on the left? Both catch faults that no curve can show, because the training was fine.

# %% [markdown] id="serving-why" lang="zh" of="58ad5dc8"
# ## 探针：推理
# 推理时的提示，与训练时的提示逐个 token 相同吗？你自己在左边填充一批提示，得到的回答与服务时的一样吗？这两个探针抓的故障，任何曲线都看不出来，因为训练本身没有问题。


# %% id="serving"
def prompt_agreement(run):
    """Return the share of served prompts that equal the training's prompt for the same question; healthy: 1."""
    agreeing = 0
    for example, served in zip(run.validation, run.prompts, strict=False):
        start = example["completion_mask"].index(1)
        agreeing += example["input_ids"][:start] == served
    return agreeing / len(run.prompts)


def padding_agreement(run):
    """Return the share of answers that stay the same when the prompts are padded on the left; healthy: 1."""
    model = run.model()
    batch = run.tokenizer.pad({"input_ids": run.prompts}, padding_side="left", return_tensors="pt").to(model.device)
    output = model.generate(**batch, max_new_tokens=run.answer_tokens, do_sample=False)
    answers = run.tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(mine == theirs for mine, theirs in zip(answers, run.answers, strict=True)) / len(answers)


measure(prompt_agreement, padding_agreement)


# %% [markdown] id="chart-plot-why"
# ## The chart
# All numbers at once, from the data at the top to serving at the bottom. Where a run has more than one number out of its
# band, start at the top: what goes wrong early shows up again later.

# %% [markdown] id="chart-plot-why" lang="zh" of="5ec562dc"
# ## 总表
# 全部数字放在一起，从上面的数据到下面的推理。如果一次训练有不止一个数异常，从最上面的看起：前面出的错，后面还会再显出来。


# %% id="chart"
def draw_chart(chart, bands, title):
    """Draw probes x runs; red: outside the healthy band, gray: not measured."""
    colors = {"out": "#e8a598", "fine": "#dcebe0", "none": "#eee"}
    _, ax = plt.subplots(figsize=(11, 4.2), layout="constrained")
    for column, numbers in enumerate(chart.values()):
        for row, (probe, band) in enumerate(bands.items()):
            number = numbers[probe]
            state = "none" if math.isnan(number) else "out" if is_out(number, band) else "fine"
            ax.add_patch(plt.Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, color=colors[state]))
            text = "" if state == "none" else f"{number:.2g}"
            ax.text(column, row, text, ha="center", va="center", fontsize=8, weight="bold" if state == "out" else None)
    ax.set(xlim=(-0.5, len(chart) - 0.5), ylim=(len(bands) - 0.5, -0.5), title=title)
    ax.set_xticks(range(len(chart)), [str(name) for name in chart])
    ax.set_yticks(range(len(bands)), list(bands))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    plt.show()


bands = bands_of(chart["adapter"])
draw_chart(chart, bands, "Which number is out of its healthy band?")

# %% [markdown] id="diagnose-why"
# ## Your diagnoses
# Name the fault of each patient and its fix, in your own words, and run the cell. For a wrong name, the cell prints
# which probe to look at; the second time, what that probe means.

# %% [markdown] id="diagnose-why" lang="zh" of="fc78e6f3"
# ## 你的诊断
# 用自己的话写出每个病例的故障和修复方法，然后运行。答错时会告诉你该看哪个探针；再答错，会告诉你那个探针的含义。中英文都可以，例如“学习率过大”。

# %% id="diagnose"
names = {1: ..., 2: ..., 3: ..., 4: ..., 5: ..., 6: ..., 7: ..., 8: ..., 9: ..., 10: ..., 11: ..., 12: ...}
fixes = {1: ..., 2: ..., 3: ..., 4: ..., 5: ..., 6: ..., 7: ..., 8: ..., 9: ..., 10: ..., 11: ..., 12: ...}

print(diagnoses.report(seed, names, fixes))

# %% [markdown] id="doctor-why"
# ## The checklist as a program
# The order of the probes is the diagnosis: the first number out of its band names the fault. This is the checklist
# to take home. On a run of your own:
#
# | probe | take it from |
# |---|---|
# | `prompt_share`, `end_share`, `leading_repeats`, `overlap` | `trainer.train_dataset` and `trainer.eval_dataset`: `input_ids`, `labels` |
# | `loss_gap` | `trainer.state.log_history[0]`, and the model before `train()` |
# | `gradient_norm` | a callback's `on_pre_optimizer_step`, which sees the gradients |
# | `busiest_share` | a forward pass with `output_router_logits=True` |
# | `changed_share`, `update_size`, `merge_factor` | `state_dict()` before and after, and the saved adapter |
# | `prompt_agreement`, `padding_agreement` | the token ids that your server really feeds to `generate` |

# %% [markdown] id="doctor-why" lang="zh" of="7c744681"
# ## 把清单写成程序
# 探针的顺序就是诊断：第一个异常的数指出故障。这就是可以带走的检查清单。用在你自己的训练上时：
#
# | 探针 | 数据从哪里来 |
# |---|---|
# | `prompt_share`、`end_share`、`leading_repeats`、`overlap` | `trainer.train_dataset` 和 `trainer.eval_dataset` 的 `input_ids`、`labels` |
# | `loss_gap` | `trainer.state.log_history[0]`，以及 `train()` 之前的模型 |
# | `gradient_norm` | 回调的 `on_pre_optimizer_step`，此时梯度还在 |
# | `busiest_share` | 带 `output_router_logits=True` 的一次前向计算 |
# | `changed_share`、`update_size`、`merge_factor` | 训练前后的 `state_dict()`，以及保存的适配器 |
# | `prompt_agreement`、`padding_agreement` | 服务端真正传给 `generate` 的 token id |


# %% id="doctor"
def doctor(numbers, bands):
    """Name the fault by the first probe whose number is outside its band."""
    faults = {
        "prompt_share": "the prompt is trained on",
        "end_share": "the end of the answer is missing",
        "leading_repeats": "double BOS",
        "overlap": "validation rows are in the training set",
        "loss_gap": "the loss of accumulated micro-batches is averaged wrongly",
        "gradient_norm": "the experts are frozen",
        "changed_share": "the learning rate is too small for bfloat16 weights",
        "update_size": "the learning rate is ten times too high",
        "busiest_share": "the router's auxiliary loss is off",
        "merge_factor": "the adapter is merged twice",
        "prompt_agreement": "another template than in training",
        "padding_agreement": "prompts are padded on the right",
    }
    for probe, fault in faults.items():
        number, (low, high) = numbers[probe], bands[probe]
        if not math.isnan(number) and not low <= number <= high:
            return fault
    return "healthy"


named = {number: doctor(chart[number], bands) for number in numbers}
first_round = len(diagnoses.right(seed, named))
print(f"the checklist names {first_round} of {len(numbers)} faults")
print("healthy runs called healthy:", [doctor(chart[kind], bands) for kind in ("adapter", "experts")].count("healthy"))

# %% [markdown] id="second-why"
# ## A second round
# Another seed: other order, name, rank, learning rate and rows. The bands stay as they are. Cover the last printed
# line and name them from the chart first.

# %% [markdown] id="second-why" lang="zh" of="57313703"
# ## 第二轮
# 换一个随机种子：顺序、名字、秩、学习率和样本都变了，健康范围不变。先遮住最后打印的一行，看着总表自己诊断。

# %% id="second"
probes = [prompt_share, end_share, leading_repeats, overlap, loss_gap, gradient_norm, busiest_share]
probes += [changed_share, update_size, merge_factor, prompt_agreement, padding_agreement]
second = {}  # patient -> probe -> number
later = clinic.patients(
    second_seed, model, tokenizer, rows, max_steps, answer_tokens
)  # trains each when it is asked for
second.update(
    (number, {probe.__name__: probe(run) for probe in probes}) for number, run in itertools.islice(later, second_count)
)
draw_chart(second, bands, "The second round: which number is out?")

# %% id="second-diagnose"
second_names = {number: ... for number in second}  # your diagnoses: {1: "...", 2: "...", ...}
second_fixes = {number: ... for number in second}

print(diagnoses.report(second_seed, second_names, second_fixes))

# %% id="second-score"
second_round = len(diagnoses.right(second_seed, {number: doctor(found, bands) for number, found in second.items()}))
print(f"the checklist, its bands unchanged, names {second_round} of {len(second)} faults of the second round")

# %% [markdown] id="experiment-why"
# ## Experiment
# Choose a patient and a probe: its loss beside the healthy one, and its number among those of all runs. The green band is
# the healthy one.

# %% [markdown] id="experiment-why" lang="zh" of="9be141c4"
# ## 动手试一试
# 选一个病例和一个探针：左边是它的损失与健康的损失，右边是它的数在所有训练中的位置。绿色带是健康范围。


# %% id="experiment"
def draw(patient, probe):
    healthy = kind_of(runs[patient])
    _, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
    axes[0].plot(losses_of(runs[healthy]), color="#999", linewidth=3, label="healthy")
    axes[0].plot(losses_of(runs[patient]), color="#c1440e", label=f"patient {patient}")
    axes[0].set(xlabel="optimizer step", ylabel="loss per trained token", title="What the curve shows")
    axes[0].legend(fontsize=8)
    found = {name: numbers[probe] for name, numbers in chart.items() if not math.isnan(numbers[probe])}
    low, high = bands[probe]
    highest = max(found.values())
    axes[1].axvspan(low, min(high, max(highest, low)), color="#a9d3b5", linewidth=4)
    axes[1].plot(list(found.values()), [0] * len(found), "o", color="#999", alpha=0.6)
    if patient in found:
        axes[1].plot(found[patient], 0, "o", color="#c1440e", markersize=11)
    axes[1].set(yticks=[], xlabel=probe, title="What the probe shows")
    plt.show()
    print(f"patient {patient}: {probe} {chart[patient][probe]:.3g}, healthy {chart[healthy][probe]:.3g}")


experiment.show(draw, patient=numbers, probe=list(bands))

# %% [markdown] id="exercise-ends-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 15`
# checks your saved copy of the whole lesson.
#
# **1.** A batch is padded: `labels` is a list of rows, with -100 before and *after* what is trained. Return the share of rows
# whose last trained label is `end_id`.

# %% [markdown] id="exercise-ends-why" lang="zh" of="b6ad8907"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 15` 检查你保存的整课练习。
#
# **1.** 一个批次是填充过的：`labels` 是若干行的列表，参与训练的部分前面和*后面*都可能是 -100。返回最后一个参与训练的标签是 `end_id` 的行所占的比例。

# %% id="exercise-ends" tags=["exercise"]


def ends_with(labels, end_id):
    return ...  # your code


print(ends_with([[-100, 5, 2], [7, 6, -100]], 2))  # 0.5 once it is right

checks.check_ends_with(ends_with)

# %% [markdown] id="exercise-ends-solution"
# <details><summary>Solution</summary>
#
# ```python
# def ends_with(labels, end_id):
#     last = [[label for label in row if label != -100][-1] for row in labels]
#     return last.count(end_id) / len(last)
# ```
#
# </details>

# %% [markdown] id="exercise-ends-solution" lang="zh" of="a95cedc9"
# <details><summary>参考答案</summary>
#
# ```python
# def ends_with(labels, end_id):
#     last = [[label for label in row if label != -100][-1] for row in labels]
#     return last.count(end_id) / len(last)
# ```
#
# </details>

# %% [markdown] id="exercise-leak-why"
# **2.** Equal token ids miss a leak that somebody typed again. `train` and `validation` are lists of texts; return the share of
# validation texts that are training texts, but for upper and lower case and spaces.

# %% [markdown] id="exercise-leak-why" lang="zh" of="1d991ec3"
# **2.** 比较 token id 抓不到重新敲过一遍的泄漏。`train` 和 `validation` 是文本列表；返回有多少比例的验证文本在训练文本里出现过，大小写和空白的差别不算。

# %% id="exercise-leak" tags=["exercise"]


def leaked_share(train, validation):
    return ...  # your code


print(leaked_share(["Who are you?"], ["who  ARE you?", "Where are you?"]))  # 0.5 once it is right

checks.check_leaked_share(leaked_share)

# %% [markdown] id="exercise-leak-solution"
# <details><summary>Solution</summary>
#
# ```python
# def leaked_share(train, validation):
#     def folded(text):
#         return " ".join(text.casefold().split())
#
#     seen = {folded(text) for text in train}
#     return sum(folded(text) in seen for text in validation) / len(validation)
# ```
#
# </details>

# %% [markdown] id="exercise-leak-solution" lang="zh" of="dc41f476"
# <details><summary>参考答案</summary>
#
# ```python
# def leaked_share(train, validation):
#     def folded(text):
#         return " ".join(text.casefold().split())
#
#     seen = {folded(text) for text in train}
#     return sum(folded(text) in seen for text in validation) / len(validation)
# ```
#
# </details>

# %% [markdown] id="exercise-lost-why"
# **3.** Before you train in bfloat16: `weight` and `update` are float32 tensors. Return the share of weights that stay the same
# when the update is added in bfloat16.

# %% [markdown] id="exercise-lost-why" lang="zh" of="5c977ab5"
# **3.** 用 bfloat16 训练之前先算一算：`weight` 和 `update` 是 float32 张量。返回以 bfloat16 相加之后没有变化的权重所占的比例。

# %% id="exercise-lost" tags=["exercise"]


def lost_share(weight, update):
    return ...  # your code


print(lost_share(torch.ones(4), torch.tensor([0.1, 0.001, 0.01, 0.0001])))  # 0.5 once it is right

checks.check_lost_share(lost_share)

# %% [markdown] id="exercise-lost-solution"
# <details><summary>Solution</summary>
#
# ```python
# def lost_share(weight, update):
#     stored = weight.bfloat16()
#     return (stored.add(update.bfloat16()) == stored).float().mean()
# ```
#
# </details>

# %% [markdown] id="exercise-lost-solution" lang="zh" of="c1fff118"
# <details><summary>参考答案</summary>
#
# ```python
# def lost_share(weight, update):
#     stored = weight.bfloat16()
#     return (stored.add(update.bfloat16()) == stored).float().mean()
# ```
#
# </details>

# %% [markdown] id="exercise-next-why"
# **4.** A batch arrives padded on whichever side. `logits` is (batch, seq, vocabulary), `attention_mask` (batch, seq). Return the
# logits that the next token of each prompt must be drawn from: (batch, vocabulary).

# %% [markdown] id="exercise-next-why" lang="zh" of="01e6dd53"
# **4.** 一个批次可能在任意一边填充。`logits` 的形状是（批大小, 序列长度, 词表大小），`attention_mask` 是（批大小, 序列长度）。返回每条提示的下一个 token 应当从哪里采样的 logits：（批大小, 词表大小）。

# %% id="exercise-next" tags=["exercise"]


def next_logits(logits, attention_mask):
    return ...  # your code


print(next_logits(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[1, 0], [1, 1]])))  # 1 and 4

checks.check_next_logits(next_logits)

# %% [markdown] id="exercise-next-solution"
# <details><summary>Solution</summary>
#
# ```python
# def next_logits(logits, attention_mask):
#     last = [row.nonzero().max().item() for row in attention_mask]
#     return torch.stack([row[place] for row, place in zip(logits, last)])
# ```
#
# </details>

# %% [markdown] id="exercise-next-solution" lang="zh" of="18f7ad92"
# <details><summary>参考答案</summary>
#
# ```python
# def next_logits(logits, attention_mask):
#     last = [row.nonzero().max().item() for row in attention_mask]
#     return torch.stack([row[place] for row, place in zip(logits, last)])
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
Path("runs/15_clinic").mkdir(parents=True, exist_ok=True)
Path("runs/15_clinic/chart.json").write_text(json.dumps({str(name): found for name, found in chart.items()}, indent=1))
healthy_numbers = [(number, bands[probe]) for kind in ("adapter", "experts") for probe, number in chart[kind].items()]
outcomes = {
    "same_answer_score": same_score,
    "curve_score": curve_score,
    "first_round": first_round,
    "second_round": second_round,
    "healthy_numbers_out": sum(is_out(number, band) for number, band in healthy_numbers),
    "patients_seconds": patients_seconds,
}
bands_expected = {
    "same_answer_score": (0, 4),
    "curve_score": (0, 4),
    "first_round": (12, 12),
    "second_round": (12, 12),
    "healthy_numbers_out": (0, 0),
}
course.record(outcomes, bands_expected if PROFILE == "cpu" else {})

# %% [markdown] id="next"
# **You keep** `runs/15_clinic/chart.json`, all numbers of the first round, and the probes: before you believe a run of
# your own, print its column.
#
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`: the same faults in a larger model. Float32 there too; `busiest_share` and
# `update_size` depend on the model, so compare them with the healthy run.
#
# **Next:** your own file, from the check to the server, with this checklist beside it: [16 · Your own
# project](16_capstone.ipynb).

# %% [markdown] id="next" lang="zh" of="ed74f0e0"
# **你得到的文件：** `runs/15_clinic/chart.json`，第一轮的全部数字；还有这些探针。在相信自己的一次训练之前，先把它的那一列打印出来。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`：同样的故障，更大的模型，仍用 float32。`busiest_share` 和 `update_size` 与模型有关，要与健康的训练比较。
#
# **下一课：** 用你自己的文件，从检查一直做到上线服务，把这份清单放在手边：[16 · 你自己的项目](16_capstone.ipynb)。
