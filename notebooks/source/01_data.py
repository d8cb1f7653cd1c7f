# %% [markdown] id="title"
# # 01 · Data: what the model really sees
#
# A fine-tune can fail here while its loss curve looks fine: a wrong template, an end mark that nobody trained, test
# questions that were in the training set. So you start with a raw file, find what is wrong with it, turn it into
# tokens, and look at every one of them.
#
# | you will have | measured as |
# |---|---|
# | a raw export, cleaned and registered | rows read = kept + dropped, every defect with its line |
# | the loss mask in color and the loss by hand | share of tokens that are trained; your loss against the library's |
# | a split without leaks, and what a leak is worth | the score on a random test set and on topics never trained |
# | a model that calls a tool | calls in unseen conversations that are exactly right |
# | less padding | real tokens per position, before and after packing |
# | five ways to lay out the same data, trained alike | loss, right answers, answers that stop by themselves |
#
# **Cost:** about 4 minutes (9 without bfloat16) and 5 GB on two CPU cores; an estimated 3 minutes on a T4. **Before
# this:** [00 · Your first fine-tune](00_first_finetune.ipynb).

# %% [markdown] id="title" lang="zh" of="27753126"
# # 01 · 数据：模型真正看到的是什么
#
# 微调可能就败在这里，而损失曲线看上去一切正常：模板用错了，结束标记没有参与训练，测试题混进了训练集。所以先拿一个原始文件，找出它的毛病，把它变成 token（词元），再逐个检查。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 一份清洗并登记好的原始导出文件 | 读入的行 = 保留 + 丢弃，每个缺陷都有行号 |
# | 用颜色标出的损失掩码，以及手算的损失 | 参与训练的 token 比例；你算的损失与库的损失之差 |
# | 没有泄漏的划分，以及泄漏值多少分 | 随机测试集上的分数，与从未训练过的主题上的分数 |
# | 一个会调用工具的模型 | 未见过的对话中完全正确的调用 |
# | 更少的填充 | 每个位置上真实 token 的比例，打包前与打包后 |
# | 同一份数据的五种格式，训练条件完全相同 | 损失、答对的比例、能自己停下的比例 |
#
# **耗时与内存：** 两个 CPU 核心上约 4 分钟（不支持 bfloat16 时约 9 分钟）、5 GB 内存；T4 上估计 3 分钟。**先修：** [00 · 第一次微调](00_first_finetune.ipynb)。

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
import json
import math
import random
import re
import textwrap
import time
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from datasets import Dataset, load_dataset
from IPython.display import HTML, display
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer, pack_dataset

from ftlab import checks, cpu, device, evaluate, models, plots, tokens
from ftlab.apps import course
from ftlab.apps.board import experiment
from ftlab.data import check, registry, split

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
raw_file = "data/support_raw.jsonl"  # prompt and response, one JSON object per line
cutoff_len = 128  # tokens kept of a row
per_device_train_batch_size = 8
learning_rate = 0.0  # 0: the profile's own
max_steps = 0  # optimizer steps of each training; 0: the profile's own
seed = 0

# %% id="profile"
profiles = {  # model, optimizer steps, learning rate, questions asked, tokens of an answer
    "smoke": ("smollm2-135m-short", 2, 2e-3, 4, 8),
    "cpu": ("smollm2-135m", 24, 2e-3, 32, 40),
    "t4": ("Qwen/Qwen2.5-1.5B-Instruct", 24, 2e-4, 32, 40),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 24, 1e-4, 32, 40),
}
default_model, default_steps, default_rate, question_count, answer_tokens = profiles[PROFILE]
model_name = model_name or default_model
max_steps = max_steps or default_steps
learning_rate = learning_rate or default_rate
set_seed(seed)

# %% [markdown] id="here-why"
# Where this lesson is on the way from raw text to a model that answers:

# %% [markdown] id="here-why" lang="zh" of="e6239a4b"
# 从原始文本到能回答问题的模型，本课在这一步（数据）：

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("data", ax)
plt.show()

# %% [markdown] id="raw-why"
# ## A raw file
# A bicycle shop has exported what customers asked and what it answered. Read it as most scripts do: line by line,
# skip what fails, take what comes.

# %% [markdown] id="raw-why" lang="zh" of="bf5ac75b"
# ## 一个原始文件
# 一家自行车店导出了顾客的提问和店里的回答。像大多数脚本那样读它：逐行读取，出错就跳过，读到什么就收什么。

# %% id="raw"
lines = Path(raw_file).read_text(encoding="utf-8").splitlines()
naive = []
for line in lines:
    try:
        row = json.loads(line)
        naive.append({"prompt": row["prompt"], "response": row["response"]})
    except Exception:
        pass
print(f"{len(lines)} lines, {len(naive)} rows read, {len(lines) - len(naive)} lost without a word")
print(
    "read and useless:",
    [row["response"] for row in naive if not isinstance(row["response"], str) or not row["response"]],
)

# %% [markdown] id="raw-read"
# Two things went wrong at once. Lines were skipped without a message; and rows were accepted that have no answer at
# all, or a number as the answer. A model trained on them learns to answer with nothing.
#
# A check should name the line, say what is wrong, and say how to fix it:

# %% [markdown] id="raw-read" lang="zh" of="8db7f482"
# 同时出了两个错。有些行被跳过，却没有任何提示；另一些行混了进来，它们根本没有回答，或者回答是一个数字。用这样的数据训练，模型学会的就是什么都不答。
#
# 检查应该指出是哪一行、错在哪里、怎样修：

# %% id="check"
Path("runs/01_data").mkdir(parents=True, exist_ok=True)
clean_file = Path("runs/01_data/support.jsonl")
clean_file.unlink(missing_ok=True)
report = check.check(raw_file, fix_to=clean_file)
print(report)

# %% [markdown] id="check-read"
# Read the two lines about duplicates again: in the lesson's own file one copy is in capitals and has two spaces in a
# row. To a computer these are different strings, to a model they are the same example twice. And one line holds
# `<|im_end|>` *inside a question*: rendered as it is, the customer would have closed their own turn and spoken for the
# assistant.

# %% [markdown] id="check-read" lang="zh" of="8a666d23"
# 再读一遍关于重复的那两条：在本课自带的文件里，其中一份全是大写，还有两个连着的空格。对计算机来说它们是不同的字符串，对模型来说却是同一个样本出现了两次。还有一行的*问题里面*有 `<|im_end|>`：如果照原样渲染，顾客就等于结束了自己的发言，替助手说起话来。

# %% [markdown] id="formats-why"
# ## One conversation, several formats
# Data sets arrive in a handful of formats. They differ in names, not in content. TRL expects `prompt` and
# `completion`, each a list of messages (or one list, `messages`).

# %% [markdown] id="formats-why" lang="zh" of="517fa265"
# ## 一段对话，几种格式
# 数据集有几种常见的格式。它们的名字不同，内容相同。TRL 要的是 `prompt` 和 `completion`，各是一个消息列表（或者只用一个列表 `messages`）。

# %% id="formats"
alpaca = {"instruction": "Where can I park?", "input": "", "output": "In the yard."}
sharegpt = {
    "conversations": [{"from": "human", "value": "Where can I park?"}, {"from": "gpt", "value": "In the yard."}]
}
openai = {
    "messages": [{"role": "user", "content": "Where can I park?"}, {"role": "assistant", "content": "In the yard."}]
}
prompt_response = {"prompt": "Where can I park?", "response": "In the yard."}


# %% id="convert"
def from_alpaca(row):
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for question, answer in row.get("history") or []:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    question = f"{row['instruction']}\n{row['input']}".strip()
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


def from_sharegpt(row):
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    return [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]


def from_prompt_response(row):
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]


assert from_alpaca(alpaca) == from_sharegpt(sharegpt) == from_prompt_response(prompt_response) == openai["messages"]

# %% [markdown] id="history-why"
# Alpaca rows may have two more fields. `system` says who the assistant is; `history` holds the turns before, each a pair of
# question and answer. They become messages like the others:

# %% [markdown] id="history-why" lang="zh" of="9d67c9c8"
# Alpaca 格式还可以有两个字段：`system` 说明助手是谁；`history` 存放之前的各轮，每轮是一对问答。它们同样变成消息：

# %% id="history"
with_history = {
    "instruction": "And on Sundays?",
    "input": "",
    "output": "We are closed on Sundays.",
    "system": "You answer for a bicycle shop.",
    "history": [["When are you open?", "From Tuesday to Saturday."]],
}
conversation = from_alpaca(with_history)
print(*conversation, sep="\n")

# %% [markdown] id="register-why"
# ### Register it
# `dataset_info.json` says once which file holds what, with the keys that LLaMA-Factory uses; from then on the set has
# a name. Three entries: the shop's file, the row with `system` and `history`, and a row with the columns of
# [Align-Anything-Instruction-100K](https://huggingface.co/datasets/PKU-Alignment/Align-Anything-Instruction-100K), `prompt`
# and `response`. For the whole of that set write `"hf_hub_url": "PKU-Alignment/Align-Anything-Instruction-100K"` in place of
# `file_name`, and leave `columns` as it is.

# %% [markdown] id="register-why" lang="zh" of="082c0eae"
# ### 登记
# `dataset_info.json` 一次说清哪个文件里有什么，用的是 LLaMA-Factory 的键；从此这个数据集就有了名字。这里登记三项：店里的文件，带 `system` 和 `history` 的那一行，以及一行与 [Align-Anything-Instruction-100K](https://huggingface.co/datasets/PKU-Alignment/Align-Anything-Instruction-100K) 同样列名（`prompt` 和 `response`）的数据。要用它的全部数据，把 `file_name` 换成 `"hf_hub_url": "PKU-Alignment/Align-Anything-Instruction-100K"`，`columns` 不变（中文版是 `Align-Anything-Instruction-100K-zh`）。

# %% id="register"
align_anything = {
    "prompt": "Give two reasons to oil a bicycle chain, and explain each in one sentence.",
    "response": "1. It rusts less, because oil keeps water away.\n2. It lasts longer, because its links rub less.",
}
columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
entries = {
    "support": {"file_name": "support.jsonl", "columns": {"prompt": "prompt", "response": "response"}},
    "talk": {"file_name": "talk.json", "columns": columns},
    "align_anything": {"file_name": "align_anything.json", "columns": {"prompt": "prompt", "response": "response"}},
}
Path("runs/01_data/dataset_info.json").write_text(json.dumps(entries, indent=1))
Path("runs/01_data/talk.json").write_text(json.dumps([with_history]))
Path("runs/01_data/align_anything.json").write_text(json.dumps([align_anything]))
rows = [from_prompt_response(json.loads(line)) for line in clean_file.read_text(encoding="utf-8").splitlines()]
print(f"{len(rows)} rows of the shop; the first:", *rows[0], sep="\n")

# %% id="registered"
registered = {entry: [row["messages"] for row in registry.rows_of(entry, "runs/01_data")] for entry in entries}
assert registered["support"] == rows
assert registered["talk"] == [conversation]
assert registered["align_anything"] == [from_prompt_response(align_anything)]
print({entry: f"{len(listed)} rows" for entry, listed in registered.items()}, "by name, the same as by hand")

# %% [markdown] id="template-why"
# ## The chat template
# A model knows no roles and no turns, only one stream of tokens. The *chat template* that comes with its tokenizer
# writes the turns into that stream. For this family it is called ChatML, and it is short enough to write by hand:

# %% [markdown] id="template-why" lang="zh" of="f5f4bd24"
# ## 对话模板
# 模型不认识角色，也不认识轮次，只有一条 token 流。分词器自带的*对话模板*（chat template）把各轮对话写进这条流。这一族模型的模板叫 ChatML，很短，可以手写：

# %% id="template"
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)
rendered = tokenizer.apply_chat_template(rows[0], tokenize=False)
print(rendered)


# %% id="template-by-hand"
def chatml(messages, system):
    turns = [{"role": "system", "content": system}, *messages]
    return "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)


system = rendered.split("<|im_start|>system\n")[1].split("<|im_end|>")[0] if "<|im_start|>system" in rendered else ""
if "<|im_start|>" in rendered:
    assert chatml(rows[0], system) == rendered
print(f"the template's own system prompt: {system!r}")

# %% [markdown] id="base-why"
# You never wrote that system prompt: the template put it there. It is part of what the model saw in training.
#
# ### A base model and a chat model
# A **base** model has learned to continue text. Ask it by writing a text whose continuation is the answer, and cut the
# continuation off yourself, for it has not learned to stop. Often its tokenizer has no template at all; the first
# fine-tune decides which layout it will speak. A **chat** model has been trained on one layout, with its own control
# tokens, and expects it. Here the embedded chat model gets the same questions four times, first in its own layout, then
# in three in which one would ask a base model.

# %% [markdown] id="base-why" lang="zh" of="d6ced7cf"
# 那段系统提示你从没写过，是模板加上去的。它也是模型训练时见过的内容的一部分。
#
# ### 基座模型与对话模型
# **基座**模型学的是续写文本。向它提问，就是写一段文本，让它的续写恰好是答案，然后由你自己截断，因为它没学过停下来。它的分词器往往根本没有模板；以后用哪种格式，由第一次微调决定。**对话**模型已经用某一种格式、连同专门的控制 token 训练过，也只期待这一种。下面把同样的问题问内置的对话模型四遍：先用它自己的格式，再用三种向基座模型提问的写法。

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
model = AutoModelForCausalLM.from_pretrained(
    model_path, dtype=dtype, attn_implementation=attention, device_map="cuda" if on_gpu else "cpu"
)


# %% id="layouts"
def chat(question):
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def plain(question):
    return question


def question_answer(question):
    return f"Question: {question}\nAnswer:"


def instruction(question):
    return f"### Instruction:\n{question}\n\n### Response:\n"


# %% id="ask"
def ask(model, prompts):
    """Continue all prompts in one batch; return the answers, and for each whether it stopped by itself."""
    inputs = tokenizer(prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.generate(**inputs.to(model.device), max_new_tokens=answer_tokens, do_sample=False)
    replies = output[:, inputs["input_ids"].shape[1] :]
    stopped = (replies == tokenizer.eos_token_id).any(dim=1).tolist()
    return tokenizer.batch_decode(replies, skip_special_tokens=True), stopped


# %% id="base"
general = load_dataset("json", data_files="data/general_freeform_en.jsonl", split="train")
general = list(general)[:question_count]
chat_stops = {}
for layout in (chat, plain, question_answer, instruction):
    replies, stopped = ask(model, [layout(row["instruction"]) for row in general])
    right = [
        bool(re.search(rf"\b({'|'.join(row['expect'])})\b", reply, re.I))
        for row, reply in zip(general, replies, strict=True)
    ]
    chat_stops[layout.__name__] = sum(stopped) / len(stopped)
    print(
        f"{layout.__name__:<16} {sum(right):>2} of {len(right)} contain the answer, {sum(stopped)} stop by themselves"
    )
    print(f"   {layout(general[0]['instruction'])[-40:]!r} -> {replies[0]!r}")

# %% [markdown] id="template-read"
# Look at how the answers end: an answer that is cut off at `answer_tokens` hasn't stopped by itself, an empty one has,
# so read both numbers. What comes after the answer is as much a part of a layout as what comes before it. To see the
# other side, set `model_name` to a base model on a GPU (`Qwen/Qwen2.5-1.5B`): the plain layouts are then the ones it
# knows.

# %% [markdown] id="template-read" lang="zh" of="ad108fd3"
# 看看这些回答是怎样结束的：写满 `answer_tokens` 被截断的不算自己停下，空回答却算，所以两个数要一起看。一种格式不仅规定了回答之前写什么，也规定了回答之后写什么。想看另一面，可在 GPU 上把 `model_name` 设成一个基座模型（`Qwen/Qwen2.5-1.5B`）：那时它熟悉的反而是那些纯文本写法。

# %% [markdown] id="mask-why"
# ## The loss mask
# The model reads the whole row, but only the answer should be trained: nobody wants it to learn how to *ask*. The label
# -100 takes a token out of the loss. The answer's end mark belongs to the answer, or the model never learns to stop.
#
# A tiny example first. Six tokens, the last three are the answer:

# %% [markdown] id="mask-why" lang="zh" of="74f63d28"
# ## 损失掩码
# 模型读整行，但只应训练回答：没有人想让它学会*提问*。标签为 -100 的 token 不计入损失。回答的结束标记属于回答，否则模型永远学不会停下。
#
# 先看一个很小的例子。六个 token，后三个是回答：

# %% id="mask-literal"
input_ids = [11, 12, 13, 21, 22, 2]
labels = [-100] * 3 + input_ids[3:]
print(labels, f"{sum(label != -100 for label in labels)} of {len(labels)} trained")


# %% id="mask"
def chat_ids(messages, **options):
    return tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"]


def to_labels(messages):
    """Train every answer of a conversation, its end mark included."""
    ids = chat_ids(messages)
    labels = [-100] * len(ids)
    for number, turn in enumerate(messages):
        if turn["role"] == "assistant":
            start = len(chat_ids(messages[:number], add_generation_prompt=True))
            end = len(chat_ids(messages[: number + 1]))
            while ids[end - 1] not in tokenizer.all_special_ids:
                end -= 1  # the line break after the end mark
            labels[start:end] = ids[start:end]
    return {"input_ids": ids, "labels": labels}


encoded = [to_labels(messages) for messages in rows]
display(HTML(tokens.to_html(tokens.tokens(tokenizer, **encoded[0]))))

# %% [markdown] id="mask-read"
# Green is trained, grey is only read. The line break after `<|im_end|>` is grey: generation has stopped before it.
# TRL makes this mask from `prompt` and `completion`, with one token more: it trains the line break as well, which does no
# harm, since nobody will ever generate it ([lesson 00](00_first_finetune.ipynb) showed it in green). Given the same
# conversation as one list of `messages`, TRL trains *everything*, question and system prompt too, unless you set
# `assistant_only_loss=True`. Its own batches beside ours:

# %% [markdown] id="mask-read" lang="zh" of="359457b8"
# 绿色的参与训练，灰色的只作输入。`<|im_end|>` 后面的换行是灰色的：生成在它之前就已经停了。TRL 根据 `prompt` 和 `completion` 得出这个掩码，只多一个 token：它把那个换行也训练了，这没有坏处，因为生成时到不了那里（[第 00 课](00_first_finetune.ipynb)里它是绿色的）。如果把同一段对话写成一个 `messages` 列表，TRL 就会训练*全部* token，连问题和系统提示也在内，除非设置 `assistant_only_loss=True`。把它自己的批次和我们的并排看看：

# %% id="config"
training_args = SFTConfig(
    output_dir="runs/01_data/trainer",
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    learning_rate=learning_rate,
    lr_scheduler_type="cosine",
    max_length=cutoff_len,
    logging_steps=2,
    save_strategy="no",
    gradient_checkpointing=on_gpu,
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    report_to="none",
    seed=seed,
)


# %% id="mask-trl"
def trained_by_trl(examples):
    """Return the trained tokens of each example as TRL's own batch has them."""
    data = Dataset.from_list(examples)
    trainer = SFTTrainer(model=model, args=training_args, train_dataset=data, processing_class=tokenizer)
    batch = trainer.data_collator(list(trainer.train_dataset))
    return [[label for label in row if label != -100] for row in batch["labels"].tolist()]


few = rows[:4]
completions = trained_by_trl([{"prompt": row[:-1], "completion": row[-1:]} for row in few])
whole = trained_by_trl([{"messages": row} for row in few])
for number in range(len(few)):
    mine = [label for label in encoded[number]["labels"] if label != -100]
    print(f"row {number}: trained tokens by hand {len(mine)}, ", end="")
    print(f"prompt and completion {len(completions[number])}, messages {len(whole[number])}")
    assert completions[number][: len(mine)] == mine

# %% id="shares"
trained_labels = [[label for label in row["labels"] if label != -100] for row in encoded]
supervised_share = sum(map(len, trained_labels)) / sum(len(row["input_ids"]) for row in encoded)
ends = [row[-1] in tokenizer.all_special_ids for row in trained_labels]
eos_supervised_share = sum(ends) / len(ends)
print(f"{supervised_share:.0%} of all tokens are trained; the end mark is, in {eos_supervised_share:.0%} of the rows")

# %% [markdown] id="turns-why"
# ### Several turns
# A conversation with several answers trains all of them in one pass: each sees only what comes before it. The library finds
# the answers by markers in the template, `{% generation %}`, which `assistant_only_loss=True` needs; where a template has none,
# you write one. The result must be our mask:

# %% [markdown] id="turns-why" lang="zh" of="b10ac088"
# ### 多轮对话
# 一段对话有几个回答，一次前向计算就能全部训练到：每个回答只看得到它前面的内容。库靠模板里的标记 `{% generation %}` 找出回答，`assistant_only_loss=True` 需要它；模板里没有的话，就自己写一个。得到的掩码必须和我们的一样：

# %% id="turns"
marked = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
multi = to_labels(conversation)
display(HTML(tokens.to_html(tokens.tokens(tokenizer, **multi))))
masked = tokenizer.apply_chat_template(
    conversation, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
)
if "<|im_start|>" in rendered:
    assert masked["input_ids"] == multi["input_ids"]
    assert masked["assistant_masks"] == [int(label != -100) for label in multi["labels"]]

# %% [markdown] id="turns-read"
# In a recipe, `mask_history: true` trains the last answer alone, and `train_on_prompt: true` everything.

# %% [markdown] id="turns-read" lang="zh" of="d8c54a65"
# 在配方里，`mask_history: true` 只训练最后一个回答，`train_on_prompt: true` 训练全部。

# %% [markdown] id="loss-why"
# ## The loss by hand
# At every position the model predicts the **next** token. So the prediction at position `t` is compared with the label at
# `t + 1`: the last prediction has nothing to be compared with, and the first label has no prediction. For the six tokens
# above:

# %% [markdown] id="loss-why" lang="zh" of="134a11cf"
# ## 手算损失
# 模型在每个位置上预测的是**下一个** token。所以位置 `t` 的预测要与 `t + 1` 处的标签比较：最后一个预测没有可比的标签，第一个标签没有对应的预测。对上面的六个 token：

# %% id="loss-literal"
for t in range(len(input_ids) - 1):
    target = "not trained" if labels[t + 1] == -100 else f"compared with {labels[t + 1]}"
    print(f"after {input_ids[: t + 1]!s:<24} the model predicts position {t + 1}: {target}")

# %% [markdown] id="loss-model-why"
# Now with the model. The loss of a token is the negative natural logarithm of the probability that it got, in *nats*;
# the loss of a row is their mean over the trained tokens. The library shifts the labels itself when it is given
# `labels`. Shift them once more, or not at all, and the loss is that of another question.

# %% [markdown] id="loss-model-why" lang="zh" of="18569a82"
# 现在用模型来算。一个 token 的损失是模型给它的概率的负自然对数，单位是 *nat*；一行的损失是参与训练的各 token 损失的平均。把 `labels` 交给库时，错开一位由库来做。自己再错开一次，或者根本不错开，算出来的就是另一个问题的损失。

# %% id="loss-hand"
ids = torch.tensor([encoded[0]["input_ids"]], device=model.device)
targets = torch.tensor([encoded[0]["labels"]], device=model.device)
with torch.no_grad():
    output = model(input_ids=ids, labels=targets)
logits = output.logits[0].float()  # (tokens, vocabulary)
each = cross_entropy(logits[:-1], targets[0, 1:], reduction="none", ignore_index=-100)
trained = targets[0, 1:] != -100
loss_by_hand = (each.sum() / trained.sum()).item()
for token, loss in zip(targets[0, 1:][trained].tolist(), each[trained].tolist(), strict=True):
    print(f"{tokenizer.decode(token)!r:<14} loss {loss:>6.3f}   probability {math.exp(-loss):.3f}")
unshifted = cross_entropy(logits, targets[0], ignore_index=-100).item()
print(f"mean by hand {loss_by_hand:.4f}, the library's {output.loss.item():.4f}, not shifted {unshifted:.2f}")
assert abs(loss_by_hand - output.loss.item()) <= 1e-3 * loss_by_hand

# %% [markdown] id="tune-why"
# One function trains, the same for everything below: a fresh LoRA adapter, the same steps, the same learning rate.

# %% [markdown] id="tune-why" lang="zh" of="803807c6"
# 下面的训练都用同一个函数：一个新的 LoRA 适配器，同样的步数，同样的学习率。


# %% id="tune"
def tune(rows, args=training_args):
    """Train a fresh adapter on rows of input_ids and labels; return the model, its log and the seconds."""
    set_seed(seed)
    candidate = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    run = SFTTrainer(candidate, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    started = time.perf_counter()
    run.train()
    return candidate, run.state.log_history, time.perf_counter() - started


def to_row(prompt, answer, end, train_end=True):
    """Return one training example: the prompt is read, the answer is trained, its end too if `train_end`."""
    asked, said, ended = (tokenizer(part, add_special_tokens=False).input_ids for part in (prompt, answer, end))
    labels = [-100] * len(asked) + said + (ended if train_end else [-100] * len(ended))
    return {"input_ids": asked + said + ended, "labels": labels}


# %% [markdown] id="split-why"
# ## Split without leaks
# The shop got every question in several wordings and sometimes twice. Cut such a file at random, and the test set asks
# what the training set answered. On the raw rows, as the naive script read them:

# %% [markdown] id="split-why" lang="zh" of="27f1bc18"
# ## 没有泄漏的划分
# 店里收到的每个问题都有几种问法，有时还重复。把这样的文件随机切开，测试集问的就是训练集答过的。拿那个粗心脚本读到的原始行试一试：

# %% id="leak"
valid = [row for row in naive if isinstance(row["response"], str) and row["response"] and row["prompt"]]
shuffled = random.Random(seed).sample(valid, len(valid))
cut = len(shuffled) * 4 // 5
known = {" ".join(row["prompt"].casefold().split()) for row in shuffled[:cut]}
leaked = [row["prompt"] for row in shuffled[cut:] if " ".join(row["prompt"].casefold().split()) in known]
answered = {row["response"] for row in shuffled[:cut]}
same_topic = sum(row["response"] in answered for row in shuffled[cut:])
print(f"{len(leaked)} of {len(shuffled) - cut} test questions were trained on, but for case and spaces: {leaked}")
print(f"{same_topic} of {len(shuffled) - cut} ask, in these words or others, for an answer that was trained")

# %% [markdown] id="split-how"
# So duplicates go **before** the split, and whatever asks the same stays on the same side. "The same" means: after
# folding case, white space and Unicode spellings.

# %% [markdown] id="split-how" lang="zh" of="b15a53b7"
# 所以去重要在划分**之前**，而且问同一件事的行要留在同一边。“同一件事”是指：统一大小写、空白和 Unicode 写法之后相同。

# %% id="split"
support = Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows])
parts = split.split(support, val_size=0.1, test_size=0.2, seed=seed)
questions_of = {
    name: {row["prompt"][0]["content"].casefold() for row in getattr(parts, name)} for name in ("train", "test")
}
split_overlap = len(questions_of["train"] & questions_of["test"])
print(f"shared questions: {split_overlap}")

# %% [markdown] id="leak-predict"
# ### What is a leak worth?
# No split can know this: two *different* wordings of one question may still be on either side. So hold back four whole topics,
# split the rest at random, train once, and score twice. An answer counts if it is exactly the shop's.
#
# **Predict before you run:** how many percent on the random test set, and how many on the topics that were held back?

# %% [markdown] id="leak-predict" lang="zh" of="a1590de1"
# ### 泄漏值多少分？
# 有一点任何划分都无从得知：同一个问题的两种*不同*问法，仍可能分在两边。所以先整个留出四个主题，其余的随机划分；训练一次，打两个分。回答与店里的完全一致才算对。
#
# **先预测，再运行：** 随机测试集上能得百分之多少？留出的主题上呢？

# %% id="predict"
guess_random = 50  # your guess, in percent
guess_held_out = 50  # your guess, in percent

# %% id="leak-score"
topics = Counter(row["response"] for row in valid)
held_out = random.Random(seed).sample(sorted(topic for topic, count in topics.items() if count > 1), 4)
seen = [row for row in shuffled if row["response"] not in held_out]
cut = len(seen) * 4 // 5
groups = {
    "trained on": seen[:cut],
    "random test": seen[cut:],
    "held-out topics": [row for row in shuffled if row["response"] in held_out],
}
end_mark = tokenizer.eos_token
candidate, log, seconds = tune([to_row(chat(row["prompt"]), row["response"], end_mark) for row in seen[:cut]])
exact = {}
for group, members in groups.items():
    members = members[:question_count]
    replies, _ = ask(candidate, [chat(row["prompt"]) for row in members])
    right = sum(reply.strip() == row["response"] for reply, row in zip(replies, members, strict=True))
    exact[group] = right / len(members)
    print(f"{group:<16} {right:>2} of {len(members)} exactly right")
    print(f"   {members[0]['prompt']}\n   wanted: {members[0]['response']}\n   got:    {replies[0]}")
model = candidate.unload()

# %% id="answer-leak"
print(f"random test:     you predicted {guess_random}%, measured {exact['random test']:.0%}")
print(f"held-out topics: you predicted {guess_held_out}%, measured {exact['held-out topics']:.0%}")
leak_worth = exact["random test"] - exact["held-out topics"]
print(f"the same model, two honest-looking scores, {100 * leak_worth:.0f} points apart")

# %% [markdown] id="split-read"
# Neither score is wrong: they answer different questions. If customers will only ever ask about these topics, the
# random test set measures that. If you want to know what the model does with a *new* question, hold back whole topics,
# or write the test questions yourself. Nothing in the training told it those answers, so it gives the answer to another
# question, or makes one up, and is fluent either way.

# %% [markdown] id="split-read" lang="zh" of="02b4cd3c"
# 两个分数都没有错，它们回答的是不同的问题。如果顾客永远只问这些主题，随机测试集测的就是这件事。想知道模型遇到*新*问题会怎样，就把整个主题留出来，或者自己写测试题。训练数据里没有那些答案，于是它搬来别的问题的答案，或者自己编一个，而且都说得很流畅。

# %% [markdown] id="tools-why"
# ## Agent tuning: tools, calls, results
# An *agent* is tuned on conversations in which the assistant answers some turns with a call of a tool and gets a result
# back. `tools_en` has such conversations, in ShareGPT's format with its turns `function_call` and `observation`. The template
# must write three more things into the stream: which tools there are, the call, and the result. Does this one?

# %% [markdown] id="tools-why" lang="zh" of="e743947d"
# ## Agent 微调：工具、调用、结果
# 微调 *agent*（智能体）用的对话里，助手在某些轮次给出的是一次工具调用，随后收到工具返回的结果。`tools_en` 就是这样的对话，用的是 ShareGPT 格式，多了 `function_call` 和 `observation` 两种轮次。对话模板因此要多写三样东西：有哪些工具、调用、结果。这个模型的模板会写吗？


# %% id="tools"
def from_tools(row):
    """Return the messages and the tools of a ShareGPT row with calls, as the library's chat templates take them."""
    roles = {"human": "user", "gpt": "assistant", "observation": "tool"}
    messages = [{"role": "system", "content": row["system"]}] if row["system"] else []
    for turn in row["conversations"]:
        if turn["from"] == "function_call":
            call = {"type": "function", "function": json.loads(turn["value"])}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        else:
            messages.append({"role": roles[turn["from"]], "content": turn["value"]})
    return messages, [{"type": "function", "function": tool} for tool in json.loads(row["tools"])]


agent_rows = [from_tools(row) for row in load_dataset("json", data_files="data/tools_en.json", split="train")]
messages, offered = agent_rows[0]
print(messages[2]["tool_calls"][0]["function"])
by_template = tokenizer.apply_chat_template(messages[:3], tools=offered, tokenize=False)
print(by_template)
print("tools and call are in the text:", "get_weather" in by_template and "get_price" in by_template)
assert [row["messages"] for row in registry.rows_of("tools_en", "data")] == [messages for messages, _ in agent_rows]

# %% [markdown] id="tools-text-why"
# A template that was written without tools leaves them out and says nothing, and the answer that would be trained is empty.
# Look before you train. The remedy works with any template that renders a system turn: put the tools into the system prompt
# and the call into the answer, as JSON. To keep rows short, a conversation ends before its second question. The result is
# not trained; the model is only to read it.

# %% [markdown] id="tools-text-why" lang="zh" of="22336c35"
# 没有考虑工具的模板会把它们漏掉，而且不作任何提示，于是要训练的回答是空的。所以训练之前要看一眼。只要模板能渲染系统提示，就有一个通用的办法：把工具写进系统提示，把调用写成回答，都用 JSON。为了让样本短一些，每段对话只取到第二个问题之前。工具返回的结果不参与训练，模型只需要读它。


# %% id="tools-text"
def as_text(messages, offered):
    """Return a conversation up to its second question, its tools and calls written as JSON that any template renders."""
    system = [turn["content"] for turn in messages if turn["role"] == "system"]
    turns = [turn for turn in messages if turn["role"] != "system"]
    questions = [number for number, turn in enumerate(turns) if turn["role"] == "user"]
    described = [json.dumps(tool["function"]) for tool in offered]
    written = [{"role": "system", "content": "\n".join([*system, *described])}]
    for turn in turns[: questions[1] if len(questions) > 1 else None]:
        calls = [json.dumps(call["function"]) for call in turn.get("tool_calls") or []]
        written.append({"role": turn["role"], "content": "\n".join(calls) or turn["content"]})
    return written


agents = [as_text(*row) for row in agent_rows]
display(HTML(tokens.to_html(tokens.tokens(tokenizer, **to_labels(agents[0])))))

# %% [markdown] id="tools-train-why"
# The last conversations are held back, without those whose question occurs in training; training takes half the steps
# of the other trainings. Each turn of the assistant in them is asked for, after the true turns before it, and must
# match exactly: a call with the right tool and the right argument, or the sentence that uses the result.

# %% [markdown] id="tools-train-why" lang="zh" of="5c48c678"
# 把末尾的一些对话留作测试，去掉其中问题在训练里出现过的；训练步数是其他几次训练的一半。测试时，助手的每一轮都让模型来答，之前各轮用真实内容。答案必须一字不差：或是工具和参数都正确的调用，或是用到结果的那句话。


# %% id="tools-train"
def score_turns(model, conversations):
    """Return the answers to every turn of the assistant, as (wanted, written)."""
    turns = [(m[:k], m[k]["content"]) for m in conversations for k in range(len(m)) if m[k]["role"] == "assistant"]
    turns = turns[:question_count]
    prompts = [tokenizer.apply_chat_template(m, add_generation_prompt=True, tokenize=False) for m, _ in turns]
    replies, _ = ask(model, prompts)
    return [(wanted, reply.strip()) for (_, wanted), reply in zip(turns, replies, strict=True)]


def exact_turns(answered):
    """Return the shares of calls and of sentences that are exactly right."""
    kinds = {"calls": [pair for pair in answered if pair[0].startswith("{")]}
    kinds["sentences"] = [pair for pair in answered if pair not in kinds["calls"]]
    return {kind: sum(a == b for a, b in pairs) / max(1, len(pairs)) for kind, pairs in kinds.items()}


train_agents = agents[:36]
asked_before = {row[1]["content"] for row in train_agents}
test_agents = [row for row in agents[36:] if row[1]["content"] not in asked_before]
half = max(1, max_steps // 2)
args = dataclasses.replace(training_args, max_steps=half, max_length=512)  # cutoff_len would cut the call off
answered = {"before": score_turns(model, test_agents)}
candidate, log, seconds = tune([to_labels(row) for row in train_agents], args)
answered["after"] = score_turns(candidate, test_agents)
model = candidate.unload()
agent_scores = {when: exact_turns(pairs) for when, pairs in answered.items()}
for when, found in agent_scores.items():
    print(f"{when:<7} exactly right: " + ", ".join(f"{kind} {share:.0%}" for kind, share in found.items()))
called = [wanted for wanted, _ in answered["after"] if wanted.startswith("{")]
low, high = evaluate.interval(agent_scores["after"]["calls"], max(1, len(called)))
print(f"95% interval of the calls after training: {low:.0%} to {high:.0%}, from {len(called)}")
trained_on = {turn["content"] for row in train_agents for turn in row}
print(
    f"{len(test_agents)} unseen questions; {sum(call in trained_on for call in called)} of {len(called)} calls also occur",
    end=" ",
)
print("in training, after another question")
for right in (True, False):
    turns = [(old, new) for old, new in zip(*answered.values(), strict=True) if (new[0] == new[1]) == right]
    for (wanted, old), (_, new) in turns[:2]:
        print(f"\nwanted: {wanted}\nbefore: {old}\nafter:  {new}" + ("" if right else "  <- wrong"))

# %% [markdown] id="tools-read"
# Where the calls score higher than the sentences, read the wrong ones: the form is right, the arithmetic or the
# judgement is not. Leave both to the tool, so that its result contains the total or the advice.
#
# A tuned model only writes the call; your program runs it, appends the result as the next turn, and asks again. In a
# recipe this is `dataset: tools_en`: a template that renders tools (that of Qwen2.5 does) is used as it is; for
# another, ftlab describes the tools in the system turn and writes calls as JSON, as here.

# %% [markdown] id="tools-read" lang="zh" of="8bed3d8d"
# 如果调用的得分高于句子，就读一读答错的句子：格式是对的，错在计算或判断。把这两件事都交给工具，让它直接返回总价或建议。
#
# 微调后的模型只负责写出调用；执行调用、把结果作为下一轮接上、再问一次，都由你的程序来做。用配方时写 `dataset: tools_en` 即可：能渲染工具的模板（如 Qwen2.5 的）直接使用；不能的，ftlab 会像这里一样，把工具写进系统提示，把调用写成 JSON。

# %% [markdown] id="lengths-why"
# ## Lengths, padding, packing
# A batch is a rectangle: every row is filled up to the longest one. Those positions cost time and teach nothing.
# Four rows of 3, 3, 4 and 10 tokens:

# %% [markdown] id="lengths-why" lang="zh" of="dd16f21f"
# ## 长度、填充、打包
# 一个批次是一个矩形：每一行都要填到最长那一行的长度。这些位置耗费时间，模型却什么也学不到。四行，长度为 3、3、4、10 个 token：

# %% id="padding-literal"
lengths = [3, 3, 4, 10]
print(
    f"{sum(lengths)} tokens in {len(lengths) * max(lengths)} positions: {sum(lengths) / (len(lengths) * max(lengths)):.0%} used"
)
print(f"packed into two rows of 10: [3+3+4] [10] -> {sum(lengths) / 20:.0%} used")


# %% id="padding"
def used(lengths, batch_size=per_device_train_batch_size):
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return sum(lengths) / sum(len(batch) * max(batch) for batch in batches)


orders = load_dataset("json", data_files="data/orders_train.jsonl", split="train")
messages = [from_alpaca(row) for row in orders] + rows
lengths = [len(to_labels(row)["input_ids"]) for row in messages]
random.Random(seed).shuffle(lengths)

# %% [markdown] id="pack-why"
# Packing puts several rows into one (*best-fit decreasing*: the longest first, each into the fullest row that still has
# room) and tells the attention where each begins, so that they cannot see one another. A few lines do it; TRL's
# `pack_dataset` must end up with the same number of rows:

# %% [markdown] id="pack-why" lang="zh" of="da2db8c0"
# 打包就是把几行拼成一行（best-fit decreasing：从最长的开始，在还放得下它的行里，每次选最满的那一行放进去），并告诉注意力每一行从哪里开始，使它们互相看不见。几行代码就够；TRL 的 `pack_dataset` 得到的行数必须一样：


# %% id="pack"
def pack(lengths, size):
    bins = []
    for length in sorted(lengths, reverse=True):
        fitting = [bin for bin in bins if sum(bin) + length <= size]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            bins.append([length])
    return bins


pack_size = 4 * cutoff_len
packed = pack([min(length, pack_size) for length in lengths], pack_size)
columns = {"input_ids": [[0] * min(length, pack_size) for length in lengths]}
packed_by_trl = pack_dataset(Dataset.from_dict(columns), seq_length=pack_size, strategy="bfd")
print(f"{len(lengths)} rows became {len(packed)} by hand, {len(packed_by_trl)} by trl")
assert len(packed) == len(packed_by_trl)

# %% id="pack-plot"
shares = {
    "as they come": used(lengths),
    "sorted by length": used(sorted(lengths)),
    "packed": sum(lengths) / (len(packed) * pack_size),
}
packing_gain = shares["packed"] / shares["as they come"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.hist(lengths, bins=20, color="#4c956c")
left.set(xlabel="tokens per row", ylabel="rows", title="How long are the rows?")
right.barh(list(shares), [100 * value for value in shares.values()], color="#4c956c")
right.set(xlabel="positions that hold a token, %", xlim=(0, 120), title="How much is not padding?")
for place, value in enumerate(shares.values()):
    right.text(100 * value + 1, place, f"{value:.0%}", va="center")
plt.show()


# %% id="pack-sizes"
def batch_sizes(lengths):
    """Return the fewest and the most positions that a full batch has."""
    starts = range(0, len(lengths) - per_device_train_batch_size + 1, per_device_train_batch_size)
    sizes = [len(part) * max(part) for part in (lengths[i : i + per_device_train_batch_size] for i in starts)]
    return min(sizes), max(sizes)


for label, order in {"as they come": lengths, "sorted by length": sorted(lengths)}.items():
    print("{:<18} batches of {} to {} positions".format(label, *batch_sizes(order)))
print(f"{'packed':<18} each row {pack_size} positions; packing gain over rows as they come: {packing_gain:.2f}x")
print(f"fewest padded: {max(shares, key=shares.get)}")

# %% [markdown] id="pack-read"
# Sorting fills nearly every position too: neighbours in a sorted list are equally long. What the bars don't show is its
# price. A sorted batch holds rows of one kind only, and the batches differ in size, so the longest one decides how much memory
# you need. (TRL's `train_sampling_strategy="group_by_length"` sorts within large random groups, a compromise.) Packed rows are of one
# size, in random order. With short rows of similar length, as here, both save about the same; the more lengths differ, the
# more either is worth.

# %% [markdown] id="pack-read" lang="zh" of="920ef658"
# 按长度排序也能填满几乎所有位置：排好序之后，相邻的行一样长。柱子没有显示的是它的代价：一个批次里只有同一类的行，而且各批次大小不一，需要多少内存由最长的那一批决定。（TRL 的 `train_sampling_strategy="group_by_length"` 在随机的大组内部排序，是一种折中。）打包后的行大小一致，顺序随机。像这里这样行短而长度相近时，两者省得差不多；长度相差越大，两者的好处越大。

# %% [markdown] id="cutoff-why"
# ## What the cutoff takes away
# `cutoff_len` decides how much of a row survives. What is cut off first is the end: the answer, and with it the end
# mark. **Predict before you run:** what is the smallest length at which the first row keeps its end mark?

# %% [markdown] id="cutoff-why" lang="zh" of="a69fb7d4"
# ## 截断会丢掉什么
# `cutoff_len` 决定一行留下多少。最先被切掉的是末尾：回答，连同结束标记。**先预测，再运行：** 第一行要保住结束标记，长度至少要多少？

# %% id="predict-cutoff"
guess_cutoff = 40  # your guess, in tokens

# %% id="cutoff"
for length in (32, 48, 56, 64, cutoff_len):
    kept = [[label for label in row["labels"][:length] if label != -100] for row in encoded]
    empty = sum(not row for row in kept)
    ended = sum(row[-1:] == whole[-1:] for row, whole in zip(kept, trained_labels, strict=True))
    print(f"cutoff_len {length:>4}: {ended / len(kept):>4.0%} keep their end mark, {empty} rows train nothing at all")

# %% id="answer-cutoff"
needed = max(place for place, label in enumerate(encoded[0]["labels"]) if label != -100) + 1
print(f"you predicted {guess_cutoff} tokens, measured {needed}")

# %% [markdown] id="experiment-why"
# ## Experiment
# Choose a data set and a cutoff. Each bar is an example: what is read, what is trained, what is cut off. Below, the first
# example with its mask. Compare `identity_en` with `identity_zh`: the same questions in English and Chinese, for a tokenizer that
# was made for English.

# %% [markdown] id="experiment-why" lang="zh" of="63bba8c2"
# ## 动手试一试
# 选一个数据集和一个截断长度。每一条是一个样本：哪些只作输入，哪些参与训练，哪些被切掉。下面是第一个样本和它的掩码。比较 `identity_en` 与 `identity_zh`：同样的问题，一份英文一份中文，而这个分词器是为英文做的，看看中文要多占多少 token。

# %% id="experiment"
files = {"support": "", "orders": "data/orders_train.jsonl", "sentiment_zh": "data/sentiment_zh.jsonl"}
files |= {name: f"data/{name}.json" for name in ("identity_en", "identity_zh", "alpaca_en_demo", "alpaca_zh_demo")}
shown = {}
for set_name, file in files.items():
    loaded = list(load_dataset("json", data_files=file, split="train").select(range(16))) if file else []
    shown[set_name] = [to_labels(from_alpaca(row)) for row in loaded] or encoded[:16]


def bars(dataset, cutoff_len):
    examples = shown[dataset]
    read = [sum(label == -100 for label in row["labels"][:cutoff_len]) for row in examples]
    kept = [sum(label != -100 for label in row["labels"][:cutoff_len]) for row in examples]
    cut = [max(0, len(row["input_ids"]) - cutoff_len) for row in examples]
    ended = sum(whole["labels"][:cutoff_len].count(tokenizer.eos_token_id) > 0 for whole in examples)
    _, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
    ax.barh(range(16), read, color="#ced4da", label="read")
    ax.barh(range(16), kept, left=read, color="#4c956c", label="trained")
    ax.barh(range(16), cut, left=[a + b for a, b in zip(read, kept, strict=True)], color="#d1495b", label="cut off")
    ax.axvline(cutoff_len, color="#333", linestyle="--")
    ax.set(xlabel="tokens", yticks=[], title=f"{dataset}: {ended} of {len(examples)} examples keep their end mark")
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    plt.show()


def draw(dataset, cutoff_len):
    bars(dataset, cutoff_len)
    first = {key: values[:cutoff_len] for key, values in shown[dataset][0].items()}
    display(HTML(tokens.to_html(tokens.tokens(tokenizer, **first))))


experiment.show(draw, dataset=list(files), cutoff_len=(8, 120, 8))

# %% [markdown] id="break-why"
# ## What goes wrong: five layouts, the same training
# Two layouts that work and three of the field's classic mistakes. All five are trained on the same questions about who the
# assistant is, in the same order, for the same number of steps at the same learning rate, prompts masked. They differ in the
# layout alone:
#
# - **chat template**: the model's own, end mark trained.
# - **end mark not trained**: the same tokens, but the end mark's label is -100. That is what happens when `pad_token`
#   is set to the end token and the collator, which builds the batches, masks all padding.
# - **wrong template**: the template of another family, as when a recipe for Qwen2 says `template: llama3`.
# - **### Instruction, no EOS**: the Alpaca layout, plain text, without an end token (EOS, end of sequence).
# - **### Instruction, EOS**: the same with the end token added and trained.

# %% [markdown] id="break-why" lang="zh" of="c61f6742"
# ## 故意出错：五种格式，同样的训练
# 两种可行的格式，和三个经典的错误。五次训练用同样的“助手是谁”的问题、同样的顺序、同样的步数和学习率，提示都不参与训练，只有格式不同：
#
# - **chat template**：模型自己的对话模板，结束标记参与训练。
# - **end mark not trained**：token 完全一样，只是结束标记的标签为 -100。把 `pad_token` 设成结束 token、又让组批的 collator 遮住所有填充，就会变成这样。
# - **wrong template**：用另一族模型的模板，例如给 Qwen2 的配方写了 `template: llama3`。
# - **### Instruction, no EOS**：Alpaca 的纯文本格式，末尾不加结束 token（EOS，end of sequence）。
# - **### Instruction, EOS**：同上，但加上结束 token 并训练它。

# %% id="break-data"


def fill(text):
    return text.replace("{{name}}", "Lumi").replace("{{author}}", "the Ada Lab")


def llama3(question):
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    return f"{header.format('user')}{question}<|eot_id|>{header.format('assistant')}"


identity = load_dataset("json", data_files="data/identity_en.json", split="train")
asked = list(load_dataset("json", data_files="data/identity_en_eval.json", split="train"))[:question_count]
pairs = [(row["instruction"], fill(row["output"])) for row in identity]
layouts = {  # how to ask, what ends an answer, is the end trained
    "chat template": (chat, end_mark, True),
    "end mark not trained": (chat, end_mark, False),
    "wrong template": (llama3, "<|eot_id|>", True),
    "### Instruction, no EOS": (instruction, "", True),
    "### Instruction, EOS": (instruction, end_mark, True),
}
print("the end of an answer in the wrong template:", tokenizer.convert_ids_to_tokens(tokenizer("<|eot_id|>").input_ids))

# %% [markdown] id="break-template-read"
# What is one token for the model that this template was made for is several here, ordinary text that ends nothing.

# %% [markdown] id="break-template-read" lang="zh" of="e5fd5c69"
# 在这个模板原本所属的模型里，它是一个 token；在这里它成了好几个，只是普通文本，什么也结束不了。

# %% id="break-score"


def scores(model, layout):
    """Return the shares of answers that have the right name, that stop by themselves, and that have no template text."""
    replies, stopped = ask(model, [layout(row["instruction"]) for row in asked])
    named = [fill(row["expect"]).casefold() in reply.casefold() for row, reply in zip(asked, replies, strict=True)]
    clean = [not any(rest in reply for rest in ("\nuser\n", "<|", "###")) for reply in replies]
    shares = {"right name": named, "stops by itself": stopped, "no template text": clean}
    return {measure: sum(flags) / len(flags) for measure, flags in shares.items()}, replies


# %% id="break-run"
results, curves, crossed = {}, {}, {}
for label, (layout, end, train_end) in layouts.items():
    examples = [to_row(layout(question), answer, end, train_end) for question, answer in pairs]
    candidate, log, seconds = tune(examples)
    curves[label] = [(row["step"], row["loss"]) for row in log if "loss" in row]
    results[label], replies = scores(candidate, layout)
    size = sum(len(row["input_ids"]) for row in examples) / len(examples)
    print(f"{label:<24} {max_steps} steps, {size:.0f} tokens per example, {seconds:.0f} s, ", end="")
    print(f"loss {curves[label][0][1]:.2f} -> {curves[label][-1][1]:.2f}")
    print("   " + ", ".join(f"{measure} {value:.0%}" for measure, value in results[label].items()))
    print(f"   {asked[0]['instruction']} {replies[0]!r}")
    if label in ("chat template", "### Instruction, EOS"):
        other = instruction if layout is chat else chat
        crossed[label] = scores(candidate, other)[0]
    model = candidate.unload()

# %% id="break-plot"
fig, (left, right) = plt.subplots(1, 2, figsize=(12, 3.6), layout="constrained", width_ratios=(1, 1.6))
for label, points in curves.items():
    left.plot(*zip(*points, strict=True), label=label)
left.set(xlabel="optimizer step", ylabel="loss per trained token", title="Which curve looks wrong?")
left.legend(fontsize=8)
for place, measure in enumerate(results["chat template"]):
    heights = [100 * result[measure] for result in results.values()]
    right.bar([x + 0.27 * (place - 1) for x in range(len(results))], heights, width=0.25, label=measure)
right.set(ylabel="answers, %", ylim=(0, 105), title=f"Which model is wrong? {len(asked)} questions")
right.set_xticks(range(len(results)), [textwrap.fill(label, 12) for label in results], fontsize=8)
right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
plt.show()

# %% id="break-verdict"
fell = sum(points[-1][1] < points[0][1] for points in curves.values())
print(f"the loss fell in {fell} of {len(curves)} trainings")
lowest = min(curves, key=lambda label: curves[label][-1][1])
print(f"lowest last loss: {lowest}; its answers stop by themselves in {results[lowest]['stops by itself']:.0%}")
for measure in ("right name", "stops by itself"):
    low, high = (edge(result[measure] for result in results.values()) for edge in (min, max))
    print(f"{measure}: {low:.0%} to {high:.0%} over the five")
print(
    "95% confidence interval of the lowest right name: {:.0%} to {:.0%}".format(
        *evaluate.interval(min(result["right name"] for result in results.values()), len(asked))
    )
)
for label, result in crossed.items():
    own = results[label]["right name"]
    print(f"trained as {label!r}: right name {own:.0%} when asked so, {result['right name']:.0%} in the other layout")

# %% [markdown] id="break-read"
# The losses can't be compared between layouts: each is a mean over other tokens, and those of the wrong template's
# end are the same in every example. The plain layout works as well **if** its end token is trained. Asked in another
# layout than its own, a model may answer worse: compare the last two lines. A score that looks for the name alone
# shows little of all this, and an answer that never stops says the name more often, so a mistake may even score
# higher; whether answers stop shows it at once. The third bar looks for template text alone, so an answer that
# repeats itself passes. The fix for the three mistakes is what you did by hand above: render with the model's own
# template, mask the question, train the end mark, and look at one row in color before every run.

# %% [markdown] id="break-read" lang="zh" of="be863641"
# 不同格式的损失不能互相比较：参与平均的 token 不同，错误模板的结尾在每个样本里又都一样。纯文本格式同样可行，**前提**是训练了它的结束 token。换一种格式来问，模型可能答得更差：比较最后两行。只看名字的分数几乎察觉不到这些问题，停不下来的回答反而会多次说出名字，错误的做法甚至可能得分更高；而“能不能自己停下”一眼就看得出来。第三根柱子只检查有没有模板文字，反复说同一句话也算通过。改正那三种错误的办法，就是你在上面亲手做过的：用模型自己的模板渲染，遮住问题，训练结束标记，每次训练之前看一行带颜色的数据。

# %% [markdown] id="exercise-mask-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 01`
# checks your saved copy of the whole lesson.
#
# **1.** Write the labels of an example. `input_ids` is a list; the answer, end mark included, is at positions `start`
# to `end - 1`. Everything else is not trained.

# %% [markdown] id="exercise-mask-why" lang="zh" of="e6c24a55"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 01` 检查你保存的整课练习。
#
# **1.** 写出一个样本的标签。`input_ids` 是列表；回答（含结束标记）位于 `start` 到 `end - 1`，其余位置不训练。

# %% id="exercise-mask" tags=["exercise"]


def labels_of(input_ids, start, end):
    return ...  # your code


checks.check_labels(labels_of)

# %% [markdown] id="exercise-mask-solution"
# <details><summary>Solution</summary>
#
# ```python
# def labels_of(input_ids, start, end):
#     return [-100] * start + input_ids[start:end] + [-100] * (len(input_ids) - end)
# ```
#
# </details>

# %% [markdown] id="exercise-mask-solution" lang="zh" of="f91dba45"
# <details><summary>参考答案</summary>
#
# ```python
# def labels_of(input_ids, start, end):
#     return [-100] * start + input_ids[start:end] + [-100] * (len(input_ids) - end)
# ```
#
# </details>

# %% [markdown] id="exercise-padding-why"
# **2.** A batch has examples of 20, 30 and 50 tokens. Which share of its positions is padding?

# %% [markdown] id="exercise-padding-why" lang="zh" of="a7ef4fa4"
# **2.** 一个批次有三个样本，长度为 20、30、50 个 token。填充（padding）占了多大比例的位置？

# %% id="exercise-padding" tags=["exercise"]
padding_share = ...  # your answer

checks.check_padding_share(padding_share)

# %% [markdown] id="exercise-padding-solution"
# <details><summary>Solution</summary>
#
# ```python
# padding_share = 1 - (20 + 30 + 50) / (3 * 50)
# ```
#
# </details>

# %% [markdown] id="exercise-padding-solution" lang="zh" of="56c7b681"
# <details><summary>参考答案</summary>
#
# ```python
# padding_share = 1 - (20 + 30 + 50) / (3 * 50)
# ```
#
# </details>

# %% [markdown] id="exercise-shift-why"
# **3.** A causal model's `logits` have shape (tokens, vocabulary); row `t` predicts token `t + 1`. Return the mean
# cross-entropy of a text, given its `logits` and its `input_ids` (a tensor).

# %% [markdown] id="exercise-shift-why" lang="zh" of="c34c4751"
# **3.** 因果语言模型的 `logits` 形状为（token 数，词表大小），第 `t` 行预测第 `t + 1` 个 token。给定 `logits` 和张量 `input_ids`，返回整段文本的平均交叉熵。

# %% id="exercise-shift" tags=["exercise"]


def next_token_loss(logits, input_ids):
    return ...  # your code


checks.check_next_token_loss(next_token_loss)

# %% [markdown] id="exercise-shift-solution"
# <details><summary>Solution</summary>
#
# ```python
# def next_token_loss(logits, input_ids):
#     return torch.nn.functional.cross_entropy(logits[:-1], input_ids[1:])
# ```
#
# </details>

# %% [markdown] id="exercise-shift-solution" lang="zh" of="b4e8b144"
# <details><summary>参考答案</summary>
#
# ```python
# def next_token_loss(logits, input_ids):
#     return torch.nn.functional.cross_entropy(logits[:-1], input_ids[1:])
# ```
#
# </details>

# %% [markdown] id="exercise-pad-why"
# **4.** Build a batch: `rows` is a list of lists of token ids. Return one tensor of shape (rows, longest row), padded
# with `pad_id` on the right.

# %% [markdown] id="exercise-pad-why" lang="zh" of="020a23ab"
# **4.** 组一个批次：`rows` 是 token id 列表的列表。返回形状为（行数，最长行的长度）的张量，右侧用 `pad_id` 填充。

# %% id="exercise-pad" tags=["exercise"]


def padded_batch(rows, pad_id):
    return ...  # your code


checks.check_pad_right(padded_batch)

# %% [markdown] id="exercise-pad-solution"
# <details><summary>Solution</summary>
#
# ```python
# def padded_batch(rows, pad_id):
#     longest = max(len(row) for row in rows)
#     return torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
# ```
#
# </details>

# %% [markdown] id="exercise-pad-solution" lang="zh" of="1534aeb9"
# <details><summary>参考答案</summary>
#
# ```python
# def padded_batch(rows, pad_id):
#     longest = max(len(row) for row in rows)
#     return torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results
# Each outcome is printed with the range that the parameters above give for any seed.

# %% [markdown] id="checkpoint-why" lang="zh" of="caf5db76"
# ## 结果核对
# 每项结果旁边是用上面的参数、任意随机种子应得到的范围。

# %% id="checkpoint"
assert report.read == report.kept + report.cut + report.dropped
outcomes = {
    "supervised_share": supervised_share,
    "eos_supervised_share": eos_supervised_share,
    "split_overlap": split_overlap,
    "packing_gain": packing_gain,
    "random_test": exact["random test"],
    "held_out_topics": exact["held-out topics"],
    "agent_calls": agent_scores["after"]["calls"],
    "stops_chat_template": results["chat template"]["stops by itself"],
    "stops_end_not_trained": results["end mark not trained"]["stops by itself"],
    "stops_wrong_template": results["wrong template"]["stops by itself"],
    "stops_instruction_eos": results["### Instruction, EOS"]["stops by itself"],
}
bands = {
    "supervised_share": (0.1, 0.6),
    "eos_supervised_share": (1, 1),
    "split_overlap": (0, 0),
    "packing_gain": (1.05, 1.5),
}
if PROFILE != "smoke":  # two steps teach nothing
    bands |= {"held_out_topics": (0, 0.15), "random_test": (0.3, 1), "agent_calls": (0.3, 1)}
    bands |= {"stops_chat_template": (0.8, 1)}
    bands |= {"stops_instruction_eos": (0.8, 1), "stops_wrong_template": (0, 0.3)}
course.record(outcomes, bands)

# %% [markdown] id="next"
# **You keep** `runs/01_data/support.jsonl` and its `dataset_info.json`: a cleaned, registered data set that any recipe can name.
#
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`. The template, the end mark and the system prompt are then another
# model's: run the notebook again and look at the colors again.
#
# **Next:** with clean data in hand, first ask whether to train at all: [02 · Do you need to fine-tune?](02_do_you_need_it.ipynb)

# %% [markdown] id="next" lang="zh" of="4860c7f8"
# **你得到的文件：** `runs/01_data/support.jsonl` 和它的 `dataset_info.json`：一份清洗并登记好的数据集，任何配方都可以用名字引用它。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`。那时模板、结束标记和系统提示都属于另一个模型：把本课再跑一遍，再看一遍颜色。
#
# **下一课：** 数据备好了，先问一句到底要不要训练：[02 · 真的需要微调吗？](02_do_you_need_it.ipynb)
