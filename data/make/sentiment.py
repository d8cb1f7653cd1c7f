"""Write sentiment_en.jsonl and sentiment_zh.jsonl: a review, the reasons found in it, then the verdict.

Every review praises one side of a thing and blames another; the one named as decisive settles the verdict, so that
the verdict cannot be had from counting kind words.
    python data/make/sentiment.py
"""

import json
import random
from itertools import product
from pathlib import Path

ROWS = 120
ENGLISH = {
    "instruction": "Is the review positive or negative? Reason in one sentence, then give the verdict.",
    "things": {
        "headphones": {"sound": ("the sound is clear", "the sound is tinny"), "battery": ("the battery lasts for days", "the battery is empty by noon"), "fit": ("they sit lightly on the ears", "they press on the ears")},
        "hotel": {"bed": ("the bed is wonderful", "the bed is too soft to sleep in"), "breakfast": ("breakfast is rich and fresh", "breakfast is dry toast"), "staff": ("the staff are kind", "the staff never look up")},
        "novel": {"plot": ("the plot keeps you awake", "the plot goes nowhere"), "style": ("the style is light and exact", "the style is heavy"), "ending": ("the ending is perfect", "the ending makes no sense")},
        "bicycle": {"brakes": ("the brakes grip at once", "the brakes squeal and slip"), "saddle": ("the saddle is comfortable", "the saddle is as hard as stone"), "weight": ("it weighs next to nothing", "it is as heavy as a moped")},
        "restaurant": {"soup": ("the soup is the best in town", "the soup tastes of nothing"), "prices": ("the prices are fair", "the prices are shameless"), "noise": ("one can talk in peace", "it is so loud that one must shout")},
        "phone": {"camera": ("the camera sees in the dark", "the camera blurs everything"), "screen": ("the screen is bright", "the screen scratches at once"), "speed": ("it never makes you wait", "it freezes every hour")},
    },
    "review": ["Of the {thing}: {other}, but {decisive}, and that is what counts for me.", "About this {thing}: {decisive}; for me nothing matters more. That {other} hardly changes it.", "{thing}: some will care that {other}. What decides it for me: {decisive}."],
    "reason": "The writer cares most about the {side}, and says that {decisive}.",
    "verdict": ("Verdict: positive", "Verdict: negative"),
}  # fmt: skip
CHINESE = {
    "instruction": "这条评价是好评还是差评？先用一句话说明理由，再给出结论。",
    "things": {
        "耳机": {"音质": ("声音很清晰", "声音发闷"), "电池": ("电池能用好几天", "电池到中午就没电"), "佩戴": ("戴着很轻", "压得耳朵疼")},
        "酒店": {"床": ("床非常舒服", "床软得睡不着"), "早餐": ("早餐丰盛又新鲜", "早餐只有干面包"), "服务": ("员工很热情", "员工爱理不理")},
        "小说": {"情节": ("情节让人放不下", "情节平淡无味"), "文笔": ("文笔轻快准确", "文笔沉闷"), "结局": ("结局恰到好处", "结局莫名其妙")},
        "自行车": {"刹车": ("刹车一捏就停", "刹车又响又打滑"), "车座": ("车座很舒服", "车座硬得像石头"), "重量": ("轻得几乎没有重量", "重得像摩托车")},
        "餐馆": {"汤": ("汤是全城最好的", "汤没有味道"), "价格": ("价格公道", "价格离谱"), "环境": ("可以安静地聊天", "吵得必须喊着说话")},
        "手机": {"相机": ("相机夜里也拍得清楚", "相机拍什么都糊"), "屏幕": ("屏幕很亮", "屏幕一碰就花"), "速度": ("从来不用等", "每小时都卡死")},
    },
    "review": ["这个{thing}，{other}，不过{decisive}，对我来说这才是最重要的。", "说说{thing}：{decisive}，我最看重的就是这一点；至于{other}，影响不大。", "{thing}嘛，有人会在意{other}，但决定我看法的是{decisive}。"],
    "reason": "作者最看重{side}，而且说{decisive}。",
    "verdict": ("结论：好评", "结论：差评"),
}  # fmt: skip


def rows(language: dict) -> list[dict[str, str]]:
    """Return `ROWS` alpaca rows in a seeded order, as many positive as negative."""
    made = []
    for thing, sides in language["things"].items():
        for (decisive, texts), (other, remarks) in product(sides.items(), sides.items()):
            for good, form in product((0, 1), language["review"]):
                if decisive != other:
                    words = {"thing": thing, "decisive": texts[good], "other": remarks[1 - good], "side": decisive}
                    review = form.format(**words)
                    output = language["reason"].format(**words) + "\n" + language["verdict"][good]
                    made.append(
                        {
                            "instruction": language["instruction"],
                            "input": review[0].upper() + review[1:],
                            "output": output,
                        }
                    )
    chance = random.Random(0)
    sorted_by_verdict = [[row for row in made if row["output"].endswith(verdict)] for verdict in language["verdict"]]
    chosen = [row for part in sorted_by_verdict for row in chance.sample(part, ROWS // 2)]
    return chance.sample(chosen, ROWS)


if __name__ == "__main__":
    for name, language in (("sentiment_en", ENGLISH), ("sentiment_zh", CHINESE)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(language))
        (Path(__file__).parents[1] / f"{name}.jsonl").write_text(text, encoding="utf-8")
