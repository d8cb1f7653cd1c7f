"""quiz_en.json and quiz_zh.json: questions about fine-tuning, four choices each, and why the right one is right."""

import json
from pathlib import Path

DATA = Path(__file__).parents[1]
LANGUAGES = ("en", "zh")
# Lesson that shows it, number of the right choice (from 0), then (question, choices, why) in English and in Chinese.
QUESTIONS: list[tuple] = [
    (
        "01",
        2,
        (
            "In instruction tuning the loss usually looks at the answer only. What happens to the tokens of the question?",
            [
                "They are cut off before training",
                "They are trained on with half the weight",
                "They are read, but their labels are masked",
                "They are replaced by padding",
            ],
            "The model needs the question to answer it, so its tokens go in; their label is -100, which the loss leaves out. Otherwise the model also learns to write questions.",
        ),
        (
            "指令微调时，损失通常只看回答。那么问题部分的 token 会怎样？",
            ["训练前就被切掉", "以一半的权重参与训练", "照样读入，但标签被遮住", "换成填充符"],
            "模型要读到问题才能回答，所以这些 token 仍然输入；它们的标签是 -100，损失会跳过。否则模型还会学着写问题。",
        ),
    ),
    (
        "01",
        1,
        (
            "A tuned model answers well and then never stops writing. What was most likely wrong with its rows?",
            [
                "The learning rate was too low",
                "The end mark after the answer was cut off or not trained on",
                "The rows were too short",
                "The rank was too high",
            ],
            "When to stop is learnt like any other token. If `cutoff_len` cuts the end mark away, or the mask leaves it out, nobody ever showed the model where an answer ends.",
        ),
        (
            "微调后的模型答得不错，却一直写个不停。数据行最可能出了什么问题？",
            ["学习率太低", "回答后的结束标记被切掉，或没有参与训练", "数据行太短", "秩太高"],
            "何时停下和其他 token 一样是学来的。如果 `cutoff_len` 切掉了结束标记，或遮罩漏掉了它，就没人告诉过模型回答在哪里结束。",
        ),
    ),
    (
        "01",
        0,
        (
            "Why must training and chatting use the same chat template?",
            [
                "The model has learnt to answer exactly after these control tokens",
                "Other templates are slower",
                "The tokenizer refuses any other",
                "Otherwise the adapter cannot be loaded",
            ],
            "A template turns turns into one text with control tokens. Trained on one format and asked in another, the model sees a situation that it was never trained for.",
        ),
        (
            "为什么训练和对话必须用同一个对话模板？",
            ["模型学会的是恰好在这些控制 token 之后作答", "其他模板更慢", "分词器会拒绝别的模板", "否则无法加载适配器"],
            "模板把多轮对话变成一段带控制 token 的文本。用一种格式训练、用另一种格式提问，模型面对的就是从没见过的情形。",
        ),
    ),
    (
        "03",
        2,
        (
            "A layer has 1,000 inputs and 3,000 outputs. How many weights does LoRA with rank 8 train beside it?",
            ["8,000", "24,000", "32,000", "3,000,000"],
            "A is 8 x 1,000 and B is 3,000 x 8: 8 x (1,000 + 3,000) = 32,000, about one in a hundred of the 3,000,000 weights of the layer.",
        ),
        (
            "某层有 1,000 个输入、3,000 个输出。秩为 8 的 LoRA 在它旁边训练多少个权重？",
            ["8,000", "24,000", "32,000", "3,000,000"],
            "A 是 8 x 1,000，B 是 3,000 x 8：8 x (1,000 + 3,000) = 32,000，约为该层 3,000,000 个权重的百分之一。",
        ),
    ),
    (
        "03",
        3,
        (
            "LoRA's matrix B starts at zero. Why?",
            [
                "Zeros take no memory",
                "Gradients would explode otherwise",
                "A frozen base needs it",
                "So that training begins with the base model unchanged",
            ],
            "The change is B A. With B at zero it is nothing, so the first step starts from the model as it was. Both at zero would learn nothing: each one's gradient is a product with the other.",
        ),
        (
            "LoRA 的矩阵 B 从零开始。为什么？",
            ["零不占内存", "否则梯度会爆炸", "冻结的基座要求如此", "这样训练从未改动的基座模型开始"],
            "改动是 B A。B 为零时改动为零，第一步就从原来的模型出发。若两个都为零则什么也学不到：每一个的梯度都要乘以另一个。",
        ),
    ),
    (
        "03",
        1,
        (
            "You double `lora_alpha` and leave the rank as it is. What does that resemble most?",
            [
                "Twice as many trained weights",
                "A higher learning rate for the adapter",
                "More rows per step",
                "Training more layers",
            ],
            "The change is scaled by alpha / rank. Doubling alpha makes the same matrices act twice as strongly; no weight is added.",
        ),
        (
            "把 `lora_alpha` 加倍，秩不变。这最像什么？",
            ["可训练权重加倍", "提高适配器的学习率", "每步更多行", "训练更多层"],
            "改动按 alpha / 秩 缩放。alpha 加倍，同样的矩阵作用加倍；并没有增加权重。",
        ),
    ),
    (
        "03",
        0,
        (
            "After training with ten times the learning rate every question about the model's name is answered right. Is the run good?",
            [
                "Unknown: measure also what it was not trained for",
                "Yes: the goal is reached",
                "No: a high rate never works",
                "Yes, if the loss fell",
            ],
            "The score that was trained for says nothing about what was lost. In the lesson such a run answers with its name and has lost its general knowledge. Judge by both.",
        ),
        (
            "用十倍学习率训练后，所有关于名字的问题都答对了。这次训练好吗？",
            ["不知道：还要测没有训练的能力", "好：目标已达成", "不好：高学习率从来不行", "只要损失下降就好"],
            "针对训练目标的分数说明不了失去了什么。课中这样的训练会报出名字，却丢了常识。两边都要看。",
        ),
    ),
    (
        "04",
        2,
        (
            "What does QLoRA keep in four bits?",
            ["The adapter", "The gradients", "The frozen base weights", "The optimizer's moments"],
            "Only the base, which is not trained, is stored in four bits and made whole again, matrix by matrix, for each product. What is trained stays in 16 or 32 bits, because tiny updates vanish in four.",
        ),
        (
            "QLoRA 把什么存成 4 比特？",
            ["适配器", "梯度", "冻结的基座权重", "优化器的矩"],
            "只有不训练的基座存成 4 比特，每次相乘时逐个矩阵还原。被训练的部分保持 16 或 32 位，因为 4 比特里微小的更新会消失。",
        ),
    ),
    (
        "04",
        1,
        (
            "Full fine-tuning with AdamW in float32: how many bytes per weight before any activation?",
            ["4", "16", "8", "12"],
            "Four for the weight, four for its gradient, and twice four for Adam's two moments. That is why a model that runs on a GPU can be four times too big to be trained on it.",
        ),
        (
            "用 float32 的 AdamW 全量微调：不算激活值，每个权重要多少字节？",
            ["4", "16", "8", "12"],
            "权重四个，梯度四个，Adam 的两个矩各四个。所以能在 GPU 上运行的模型，训练时可能大出四倍。",
        ),
    ),
    (
        "04",
        3,
        (
            "What does gradient checkpointing trade?",
            ["Accuracy for memory", "Disk for memory", "Batch size for speed", "Time for memory"],
            "Only each block's input is kept; on the way back the block is computed again. The gradients are the same, a step costs one forward pass more, and activations shrink to a fraction.",
        ),
        (
            "梯度检查点用什么换什么？",
            ["用精度换内存", "用磁盘换内存", "用批大小换速度", "用时间换内存"],
            "只保留每个块的输入；反向时把该块重算一遍。梯度相同，每步多做一次前向，而激活值缩到一小部分。",
        ),
    ),
    (
        "08",
        0,
        (
            "Into which base may a QLoRA adapter be merged?",
            [
                "Into the 16- or 32-bit model that the 4-bit one was made from",
                "Into the 4-bit base, so that nothing changes",
                "Into any model of the same shapes",
                "Into none: it cannot be merged",
            ],
            "Adding a small change to four-bit weights rounds most of it away. A model of the same shapes would merge without an error and talk nonsense: the adapter was trained against one particular base.",
        ),
        (
            "QLoRA 适配器可以合并到哪个基座？",
            ["量化之前的 16 或 32 位模型", "4 比特的基座，这样什么都不变", "任何形状相同的模型", "都不行：它无法合并"],
            "把很小的改动加到 4 比特权重上，大部分会被舍入掉。形状相同的别的模型能合并而不报错，却会胡言乱语：适配器是针对特定基座训练的。",
        ),
    ),
    (
        "09",
        2,
        (
            "In a batch of prompts of unequal length, on which side does a decoder's padding belong when it generates?",
            ["On the right, as in training", "It does not matter", "On the left", "In the middle"],
            "A decoder continues the last position. Padding on the right would put it between the question and the answer; on the left every prompt ends at the same place.",
        ),
        (
            "一批长短不一的提示，解码器生成时填充应放在哪一边？",
            ["右边，和训练时一样", "无所谓", "左边", "中间"],
            "解码器从最后一个位置往下写。填充放右边会夹在问题与回答之间；放左边，每个提示都在同一处结束。",
        ),
    ),
    (
        "09",
        1,
        (
            "What does the KV cache save?",
            [
                "The memory of the weights",
                "Computing keys and values of earlier tokens again at every new one",
                "Loading the model twice",
                "The sampling of rare tokens",
            ],
            "Keys and values of a token never change once it is written. Kept, each new token costs one position instead of the whole text; the price is memory that grows with every token.",
        ),
        (
            "KV 缓存省掉了什么？",
            ["权重占的内存", "每写一个新 token 都重算之前 token 的键和值", "把模型加载两次", "对罕见 token 的采样"],
            "一个 token 写出后，它的键和值就不再变。留着它们，每个新 token 只需算一个位置，而不是整段文本；代价是内存随每个 token 增长。",
        ),
    ),
    (
        "09",
        3,
        (
            "At temperature 0.2 instead of 1 ...",
            [
                "the model knows more",
                "answers get shorter",
                "fewer tokens are computed",
                "likely tokens become likelier still",
            ],
            "Logits are divided by the temperature before the softmax: below 1 differences grow and the draw comes close to always taking the likeliest. What the model knows stays the same.",
        ),
        (
            "温度从 1 降到 0.2……",
            ["模型懂得更多", "回答变短", "计算的 token 更少", "原本可能的 token 变得更可能"],
            "softmax 之前 logit 会除以温度：小于 1 时差距变大，抽样接近于总取最可能的那个。模型懂的东西并没有变。",
        ),
    ),
    (
        "10",
        0,
        (
            "A reward model prefers the longer answer in almost every pair. What should be checked first?",
            [
                "Whether the chosen answers in its data are longer",
                "Whether its learning rate is too low",
                "Whether its head has enough outputs",
                "Whether the base is big enough",
            ],
            "It learns whatever tells the two sides apart, and length is the cheapest sign. Balance length in the pairs, then measure again on pairs where the shorter answer is the better one.",
        ),
        (
            "奖励模型几乎在每一对里都偏好更长的回答。应先检查什么？",
            ["数据中被选中的回答是否更长", "学习率是否太低", "它的头输出是否够多", "基座是否够大"],
            "它学的是任何能区分两边的东西，而长度是最省事的线索。先让各对的长度平衡，再在“短的更好”的样本对上重新测量。",
        ),
    ),
    (
        "12",
        2,
        (
            "What is the reference model in DPO for?",
            [
                "It writes the rejected answers",
                "It scores answers like a reward model",
                "It anchors: only what moves away from it counts as learnt",
                "It makes training faster",
            ],
            "The loss compares how far chosen and rejected have moved from what the reference says of them. `beta` sets how dear moving is. With LoRA the reference is the same model with its adapter off.",
        ),
        (
            "DPO 里的参考模型有什么用？",
            ["写出被拒绝的回答", "像奖励模型一样打分", "作为锚点：只有偏离它的部分才算学到的", "让训练更快"],
            "损失比较的是：相对参考模型，被选与被拒的回答各移动了多远。`beta` 决定移动的代价。用 LoRA 时，参考模型就是关掉适配器的同一个模型。",
        ),
    ),
]


def rows(language: str) -> list[dict]:
    """Return the questions in a language."""
    found = []
    for lesson, answer, *texts in QUESTIONS:
        question, choices, why = texts[LANGUAGES.index(language)]
        found.append({"question": question, "choices": choices, "answer": answer, "why": why, "lesson": lesson})
    return found


for language in LANGUAGES:
    text = json.dumps(rows(language), ensure_ascii=False, indent=1) + "\n"
    (DATA / f"quiz_{language}.json").write_text(text, encoding="utf-8")
