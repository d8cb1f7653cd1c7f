"""Write common_zh.jsonl: easy questions in Chinese in the layout of C-Eval, for `ftlab eval --tasks common_zh`.

One line below is a question, the right choice, and three wrong ones; a seeded shuffle places the right one.
    python data/make/common_zh.py
"""

import json
import random
from pathlib import Path

QUESTIONS = {
    "地理": """
中国的首都是哪座城市？|北京|上海|广州|西安
中国最长的河流是哪一条？|长江|黄河|珠江|淮河
世界最高峰是哪座山？|珠穆朗玛峰|泰山|华山|富士山
中国面积最大的省级行政区是哪一个？|新疆|四川|广东|浙江
兵马俑在哪座城市？|西安|洛阳|南京|杭州
台湾海峡位于福建与哪里之间？|台湾|海南|香港|日本
被称为“山城”的是哪座城市？|重庆|苏州|青岛|厦门
黄河最后流入哪个海？|渤海|黄海|东海|南海
""",
    "历史": """
完成统一、建立秦朝的皇帝是谁？|秦始皇|汉武帝|唐太宗|康熙帝
造纸术的改进者是谁？|蔡伦|毕昇|张衡|华佗
《史记》的作者是谁？|司马迁|班固|司马光|孔子
活字印刷术的发明者是谁？|毕昇|蔡伦|沈括|祖冲之
率领船队七次下西洋的是谁？|郑和|张骞|玄奘|鉴真
中华人民共和国成立于哪一年？|1949年|1911年|1937年|1978年
中国历史上唯一的女皇帝是谁？|武则天|慈禧|吕后|杨贵妃
""",
    "语文": """
《红楼梦》的作者是谁？|曹雪芹|罗贯中|施耐庵|吴承恩
“床前明月光”的下一句是什么？|疑是地上霜|低头思故乡|处处闻啼鸟|更上一层楼
《静夜思》的作者是谁？|李白|杜甫|白居易|王维
孙悟空出自哪部小说？|《西游记》|《水浒传》|《三国演义》|《红楼梦》
成语“画蛇添足”比喻什么？|做多余的事|做事认真|画得很好|跑得很快
“高”的反义词是什么？|低|大|长|远
鲁迅的原名是什么？|周树人|舒庆春|沈德鸿|李尧棠
""",
    "数学": """
7 乘以 8 等于多少？|56|54|63|48
一个三角形的内角和是多少度？|180|90|270|360
100 减去 37 等于多少？|63|73|67|53
12 的一半是多少？|6|5|7|4
最小的质数是几？|2|1|3|0
一打鸡蛋有多少个？|12|10|6|24
""",
    "科学": """
水在标准大气压下的沸点是多少摄氏度？|100|0|50|200
地球绕什么旋转？|太阳|月亮|火星|木星
植物进行光合作用时放出什么气体？|氧气|氮气|二氧化碳|氢气
人的心脏通常位于胸腔的哪一侧？|左侧|右侧|上方|后方
水的化学式是什么？|H2O|CO2|O2|NaCl
离太阳最近的行星是哪一颗？|水星|金星|地球|火星
蝌蚪长大后变成什么？|青蛙|鱼|蛇|乌龟
""",
    "生活常识": """
红灯亮时，行人应该怎么做？|停下等待|快跑通过|慢慢通过|拨打电话
中国的火警电话是多少？|119|110|120|122
一年有多少个月？|12|10|11|13
中秋节通常吃什么？|月饼|粽子|汤圆|饺子
端午节是为了纪念哪位诗人？|屈原|李白|杜甫|苏轼
""",
}
LETTERS = "ABCD"


def rows() -> list[dict[str, str]]:
    """Return the questions with their choices shuffled."""
    chance = random.Random(0)
    made = []
    for subject, lines in QUESTIONS.items():
        for line in lines.strip().splitlines():
            question, right, *wrong = line.split("|")
            choices = chance.sample([right, *wrong], 4)
            texts = dict(zip(LETTERS, choices, strict=True))
            made.append({"subject": subject, "question": question, **texts, "answer": LETTERS[choices.index(right)]})
    return made


if __name__ == "__main__":
    target = Path(__file__).parents[1] / "common_zh.jsonl"
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows()), encoding="utf-8")
