"""Write a large Chinese set in the Alpaca format: arithmetic, dates, units, lists and texts, each answer computed.

It is not in the repository (10,000 rows are about 2 MB), and the same seed writes the same file anywhere:
    python data/make/alpaca_zh.py alpaca_zh.json --rows 10000
    ftlab train recipes/sft_lora.yaml dataset=alpaca_zh.json
"""

import argparse
import datetime
import json
import random
from collections.abc import Callable
from pathlib import Path

NAMES = ["小明", "小红", "李雷", "王芳", "张伟", "刘洋", "陈静", "赵磊", "孙悦", "周涛", "吴敏", "郑浩"]
FRUIT = ["苹果", "梨", "桃子", "橘子", "香蕉", "西瓜", "葡萄", "芒果", "草莓", "樱桃", "柚子", "石榴"]
ANIMALS = ["猫", "狗", "马", "牛", "羊", "兔子", "老虎", "大象", "猴子", "熊猫", "狐狸", "松鼠"]
TOOLS = ["锤子", "剪刀", "尺子", "扳手", "钳子", "螺丝刀", "锯子", "刷子", "镊子", "卷尺"]
CITIES = ["北京", "上海", "广州", "深圳", "成都", "武汉", "西安", "杭州", "南京", "重庆", "天津", "苏州"]
DAYS = ["星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"]
UNITS = [("千米", "米", 1000), ("米", "厘米", 100), ("千克", "克", 1000), ("小时", "分钟", 60), ("吨", "千克", 1000)]
GROUPS = {"水果": FRUIT, "动物": ANIMALS, "工具": TOOLS}
FIRST_DAY = datetime.date(2000, 1, 1)

Row = tuple[str, str, str]


def shopping(draw: random.Random) -> Row:
    """Return a word problem with two prices."""
    who, (one, other) = draw.choice(NAMES), draw.sample(FRUIT, 2)
    counts, prices = [draw.randint(2, 12) for _ in range(2)], [draw.randint(2, 15) for _ in range(2)]
    total = counts[0] * prices[0] + counts[1] * prices[1]
    question = f"{who}买了 {counts[0]} 斤{one}和 {counts[1]} 斤{other}，{one}每斤 {prices[0]} 元，{other}每斤 {prices[1]} 元，一共花了多少钱？"
    parts = f"{counts[0]}×{prices[0]}={counts[0] * prices[0]} 元，{counts[1]}×{prices[1]}={counts[1] * prices[1]} 元"
    return question, "", f"{parts}，一共 {total} 元。"


def arithmetic(draw: random.Random) -> Row:
    """Return a sum, a difference or a product."""
    a, b = draw.randint(11, 999), draw.randint(2, 99)
    sign, value = draw.choice([("+", a + b), ("-", a - b), ("×", a * b)])
    return (
        draw.choice(["计算下面的算式。", "请算出结果。", "这个算式等于多少？"]),
        f"{a} {sign} {b}",
        f"{a} {sign} {b} = {value}",
    )


def conversion(draw: random.Random) -> Row:
    """Return a conversion of units."""
    large, small, factor = draw.choice(UNITS)
    count = draw.randint(2, 500)
    return f"{count} {large}等于多少{small}？", "", f"{count} {large}等于 {count * factor} {small}。"


def weekday(draw: random.Random) -> Row:
    """Return a question about the day of the week of a date."""
    day = FIRST_DAY + datetime.timedelta(days=draw.randrange(18_000))
    return f"{day.year} 年 {day.month} 月 {day.day} 日是星期几？", "", f"那天是{DAYS[day.weekday()]}。"


def days_between(draw: random.Random) -> Row:
    """Return a question about the days between two dates."""
    day, count = FIRST_DAY + datetime.timedelta(days=draw.randrange(9000)), draw.randint(3, 200)
    later = day + datetime.timedelta(days=count)
    written = [f"{one.year} 年 {one.month} 月 {one.day} 日" for one in (day, later)]
    return "这两个日期相隔多少天？", "，".join(written), f"相隔 {count} 天。"


def sorting(draw: random.Random) -> Row:
    """Return numbers to sort."""
    numbers = draw.sample(range(1, 500), draw.randint(4, 7))
    falling = draw.random() < 0.5
    order = "从大到小" if falling else "从小到大"
    answer = sorted(numbers, reverse=falling)
    return f"把下面的数字{order}排列。", "，".join(map(str, numbers)), "，".join(map(str, answer))


def odd_one_out(draw: random.Random) -> Row:
    """Return four words, one of another kind."""
    kind, other = draw.sample(sorted(GROUPS), 2)
    words, odd = draw.sample(GROUPS[kind], 3), draw.choice(GROUPS[other])
    mixed = draw.sample([*words, odd], 4)
    return "找出与其他不同类的一项，并说明理由。", "、".join(mixed), f"{odd}。它是{other}，其余都是{kind}。"


def extraction(draw: random.Random) -> Row:
    """Return a sentence to turn into JSON."""
    who, city, count = draw.choice(NAMES), draw.choice(CITIES), draw.randint(1, 9)
    month, day = draw.randint(1, 12), draw.randint(1, 28)
    text = f"{who}打算 {month} 月 {day} 日去{city}，在那里住 {count} 天。"
    record = {"姓名": who, "城市": city, "日期": f"{month}-{day}", "天数": count}
    return "从句子中提取姓名、城市、日期和天数，写成 JSON。", text, json.dumps(record, ensure_ascii=False)


def counting(draw: random.Random) -> Row:
    """Return a list of words of two kinds, one of which is counted."""
    words = draw.choices(FRUIT, k=draw.randint(2, 5)) + draw.choices(ANIMALS, k=draw.randint(2, 5))
    draw.shuffle(words)
    count = sum(word in FRUIT for word in words)
    return "下面的词语里有几个是水果？", "、".join(words), f"有 {count} 个。"


KINDS: list[Callable[[random.Random], Row]] = [
    *(shopping, arithmetic, conversion, weekday, days_between, sorting, odd_one_out, extraction, counting),
]


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `count` different examples, the kinds in turn; a kind that has no new one left is passed over."""
    draw, found = random.Random(seed), {}
    turn = 0
    while len(found) < count:
        question, given, answer = KINDS[turn % len(KINDS)](draw)
        found.setdefault((question, given), answer)
        turn += 1
    return [{"instruction": key[0], "input": key[1], "output": answer} for key, answer in found.items()]


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("file", type=Path)
    options.add_argument("--rows", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    asked.file.write_text(
        json.dumps(rows(asked.rows, asked.seed), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    print(f"{asked.file}: {asked.rows} rows")
