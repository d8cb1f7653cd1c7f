"""Write alpaca_en_demo.json and alpaca_zh_demo.json: everyday instructions, one line each.

A line below is an instruction, an input (often empty) and the output.
    python data/make/alpaca_demo.py
"""

import json
from pathlib import Path

ENGLISH = """
Name three fruits that are red.||Apples, cherries and strawberries are red.
Turn this sentence into a question.|The train leaves at noon.|Does the train leave at noon?
Give the plural of the word.|mouse|mice
Write the sentence in the past tense.|I walk to the lake.|I walked to the lake.
Explain in one sentence what a bicycle pump does.||A bicycle pump presses air into a tyre through its valve.
Sort the numbers from small to large.|9, 2, 14, 5|2, 5, 9, 14
Give an antonym of the word.|generous|stingy
Summarise the text in one sentence.|The library opens at nine. On Mondays it stays closed. Members may borrow six books at a time.|The library opens at nine except on Mondays and lends members up to six books.
Suggest a title for the story.|A lighthouse keeper finds a message in a bottle that he wrote himself as a boy.|The Letter That Came Home
How do you boil an egg so that the yolk stays soft?||Lower it into boiling water, wait six minutes, then cool it under cold water.
Correct the spelling.|I recieved your adress yesterday.|I received your address yesterday.
Write a polite request.|Close the window.|Could you please close the window?
List the days of the weekend.||Saturday and Sunday.
Make the sentence shorter without losing its meaning.|Due to the fact that it was raining, we made the decision to stay at home.|Because it rained, we stayed at home.
Which of these is not an animal?|sparrow, maple, trout, beetle|Maple: it is a tree.
Give two reasons to walk to work.||It keeps you fit, and it costs nothing.
Convert to kilometres.|2,500 metres|2.5 kilometres
Write a short thank-you note to a neighbour who watered the plants.||Dear neighbour, thank you for watering the plants. They look better than when we left!
What does the abbreviation mean?|e.g.|It is short for the Latin words exempli gratia and means "for example".
Rewrite the sentence in the active voice.|The cake was eaten by the children.|The children ate the cake.
Find the odd one out and say why.|violin, cello, trumpet, viola|The trumpet: it is blown, the others are played with a bow.
Complete the comparison.|Hot is to cold as tall is to ...|short
Describe a cloud to someone who cannot see.||A cloud is like cool, damp air that you can walk through, such as steam far from the kettle.
Classify the review as good or bad.|The soup was cold and nobody said sorry.|bad
Give one tip for remembering names.||Say the name aloud once when you hear it.
Put the words into alphabetical order.|river, apple, stone, candle|apple, candle, river, stone
What comes next?|2, 4, 8, 16|32
Write a weather report of one sentence for a windy day.||Strong winds from the west today, with dry spells and clouds that move fast.
Translate into plain English.|The aforementioned vehicle shall be relocated forthwith.|Move the car now.
Name the capital of the country.|Norway|Oslo
How many minutes are there in three hours?||There are 180 minutes in three hours.
Extract the date.|The meeting was moved from Friday to the 12th of March.|the 12th of March
Give a synonym of the word.|rapid|fast
Write a headline for the news.|A village school has won the national robot contest with a robot made of scrap.|Village School's Scrap Robot Wins National Contest
Say why ice floats.||Ice is less dense than water, so water carries it.
Turn the list into a sentence.|bread, cheese, two lemons|Please buy bread, cheese and two lemons.
What is the opposite direction of north-east?||South-west.
Give a rhyme for the word.|light|night
Is the statement true?|The sun rises in the west.|No, the sun rises in the east.
Write a question for the answer.|It takes about eight minutes.|How long does light need from the sun to the earth?
"""

CHINESE = """
说出三种红色的水果。||苹果、樱桃和草莓都是红色的。
把这句话改成疑问句。|火车中午出发。|火车是中午出发吗？
写出这个词的反义词。|慷慨|吝啬
用一句话解释打气筒的作用。||打气筒通过气门嘴把空气压进轮胎。
把数字从小到大排列。|9、2、14、5|2、5、9、14
用一句话概括这段话。|图书馆九点开门，星期一不开放，会员一次可以借六本书。|图书馆除星期一外九点开门，会员一次最多借六本书。
给这个故事起个标题。|守灯塔的人捡到一个漂流瓶，里面是他小时候写的信。|回家的信
怎样煮出溏心蛋？||水开后放入鸡蛋，煮六分钟，再用冷水冲凉。
改正错别字。|我己经收到你的来信了。|我已经收到你的来信了。
换成有礼貌的说法。|把窗户关上。|麻烦您把窗户关上，好吗？
一个周末有哪两天？||星期六和星期日。
在不改变意思的前提下缩短句子。|由于下雨的缘故，我们做出了留在家里的决定。|因为下雨，我们留在家里。
下面哪个不是动物？|麻雀、枫树、鳟鱼、甲虫|枫树，它是植物。
说出步行上班的两个理由。||既能锻炼身体，又不花钱。
换算成千米。|2500米|2.5千米
给帮忙浇花的邻居写一句感谢的话。||谢谢您帮我们浇花，它们长得比我们出门前还好！
把句子改成主动句。|蛋糕被孩子们吃掉了。|孩子们吃掉了蛋糕。
找出不同类的一个并说明理由。|小提琴、大提琴、小号、中提琴|小号，它是吹奏的，其余是用弓拉的。
补全类比。|热对冷，高对……|矮
判断这条评价是好评还是差评。|汤是凉的，也没有人道歉。|差评
给出一个记住别人名字的方法。||听到名字时马上跟着说一遍。
接下来是什么数？|2、4、8、16|32
用一句话写大风天的天气预报。||今天西风强劲，天气干燥，云走得很快。
说出这个国家的首都。|挪威|奥斯陆
三个小时有多少分钟？||三个小时有180分钟。
找出句子里的日期。|会议从星期五改到了3月12日。|3月12日
写出这个词的近义词。|迅速|飞快
为这条新闻写一个标题。|一所乡村小学用废料做的机器人获得了全国机器人比赛冠军。|乡村小学的废料机器人夺得全国冠军
为什么冰会浮在水上？||冰的密度比水小，所以水能托住它。
把清单写成一句话。|面包、奶酪、两个柠檬|请买面包、奶酪和两个柠檬。
东北的相反方向是哪里？||西南。
这句话对吗？|太阳从西边升起。|不对，太阳从东边升起。
根据回答写出问题。|大约需要八分钟。|光从太阳到地球需要多久？
用“因为……所以……”造句。||因为今天下雨，所以我带了伞。
把这句话翻译成白话。|君子不器。|君子不应像器具那样只有一种用途。
说出一年中的四个季节。||春天、夏天、秋天和冬天。
给这个量词配一个名词。|一匹|一匹马
写一句提醒同事开会的话。||提醒一下，下午三点在二楼会议室开会。
"""


def rows(lines: str) -> list[dict[str, str]]:
    """Return alpaca rows."""
    keys = ("instruction", "input", "output")
    return [dict(zip(keys, line.split("|"), strict=True)) for line in lines.strip().splitlines()]


if __name__ == "__main__":
    for name, lines in (("alpaca_en_demo", ENGLISH), ("alpaca_zh_demo", CHINESE)):
        text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows(lines))
        (Path(__file__).parents[1] / f"{name}.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
