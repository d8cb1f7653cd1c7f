"""Write orders_train.jsonl and orders_eval.jsonl: a customer's message to the JSON a till understands.

Hard enough to tell methods apart: several items, corrections, distractors, missing fields. Evaluation messages use
sentence forms that do not occur in training.
    python data/make/orders.py
"""

import json
import random
from pathlib import Path

TRAIN_ROWS, EVAL_ROWS = 720, 120
SHARE_CORRECTED = 0.35
SHARE_DISTRACTED = 0.35
SHARE_TWO_ITEMS, SHARE_THREE_ITEMS = 0.4, 0.1

ITEMS = {
    "latte": "drink", "espresso": "drink", "cappuccino": "drink", "green tea": "drink", "lemonade": "drink",
    "hot chocolate": "drink", "bagel": "food", "croissant": "food", "muffin": "food", "cheese sandwich": "food",
    "tomato soup": "food", "apple pie": "food",
}  # fmt: skip
PLURALS = {
    "hot chocolate": "hot chocolates",
    "cheese sandwich": "cheese sandwiches",
    "espresso": "espressos",
    "green tea": "green teas",
}
SIZES = ["small", "medium", "large"]
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
NAMES = [
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Farid",
    "Grace",
    "Hugo",
    "Ines",
    "Jack",
    "Kira",
    "Leo",
    "Mei",
    "Noah",
]
TIMES = ["8:15", "9:30", "10:45", "11:00", "12:20", "13:40", "15:10", "16:05", "17:30", "18:50"]

FORMS = {
    "train": {
        "opening": ["Hi, I'd like {items}", "Could I get {items}", "Please prepare {items}", "I want to order {items}", "Hello! {items} please", "Can we have {items}", "We'll take {items}", "Give me {items}", "I would love {items}", "Good evening, may we order {items}", "Let me have {items}", "Time for {items}"],
        "name": ["for {name}", "the name is {name}", "under {name}", "my name is {name}", "it is all for {name}"],
        "time": ["I'll pick it up at {time}", "pick-up at {time}", "ready by {time} please", "I come by at {time}", "we shall fetch it at {time}"],
        "quantity": ["Actually, make that {number} {item}", "No wait, {number} {item} instead", "Sorry, I meant {number} {item}", "Rather {number} {item}", "Or no, {number} {item}", "Change it to {number} {item}", "{number} {item} would do better"],
        "drop": ["Actually, leave out the {item}", "Please skip the {item} after all", "No {item} after all", "Take the {item} off again", "I don't want the {item} any more", "Cross out the {item}", "We do without the {item}", "Drop the {item}"],
        "distractor": ["It is so cold today", "My sister had {n} {other} here last week", "I paid {n} euros the last time", "We came by bus number {n}", "My friend never drinks {other}", "The table beside us got {n} {other}", "I read about your {other}", "What a nice place"],
    },
    "eval": {
        "opening": ["Good day, we would take {items}", "May I have {items}", "I need {items}", "Put me down for {items}"],
        "name": ["it's for {name}", "call it out for {name}"],
        "time": ["I will be there at {time}", "we collect it at {time}"],
        "quantity": ["Hm, better {number} {item}", "On second thought {number} {item}"],
        "drop": ["Please cancel the {item}", "On second thought no {item}"],
        "distractor": ["The last order had {n} {other} in it", "What lovely weather", "Table {n} was very loud yesterday", "My neighbour swears by your {other}"],
    },
}  # fmt: skip


def plural(item: str, count: int) -> str:
    """Return the item's name for this many."""
    return item if count == 1 else PLURALS.get(item, item + "s")


def number(chance: random.Random, count: int) -> str:
    """Write a count as a word or a digit."""
    return NUMBERS[count] if chance.random() < 0.6 else str(count)


def order(chance: random.Random, part: str) -> dict[str, str]:
    """Make one message and the JSON it means."""
    forms = FORMS[part]
    draw = chance.random()
    count = 3 if draw < SHARE_THREE_ITEMS else 2 if draw < SHARE_THREE_ITEMS + SHARE_TWO_ITEMS else 1
    items = [
        {
            "item": item,
            "qty": chance.choice([1, 1, 2, 2, 3, 4]),
            "size": chance.choice([*SIZES, None]) if kind == "drink" else None,
        }
        for item, kind in chance.sample(sorted(ITEMS.items()), count)
    ]
    said = [" ".join(filter(None, [number(chance, i["qty"]), i["size"], plural(i["item"], i["qty"])])) for i in items]
    listed = said[0] if count == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    sentences = [chance.choice(forms["opening"]).format(items=listed)]
    name = chance.choice(NAMES) if chance.random() < 0.7 else None
    time = chance.choice(TIMES) if chance.random() < 0.6 else None
    if name:
        sentences[0] += f", {chance.choice(forms['name']).format(name=name)}"
    if time:
        sentences.append(chance.choice(forms["time"]).format(time=time))
    if chance.random() < SHARE_CORRECTED:
        sentences.append(correct(chance, forms, items))
    if chance.random() < SHARE_DISTRACTED:
        other = chance.choice(sorted(ITEMS))
        remark = chance.choice(forms["distractor"]).format(n=chance.randint(2, 9), other=plural(other, 2))
        sentences.insert(chance.randint(0, len(sentences)), remark)
    message = " ".join(sentence[0].upper() + sentence[1:] + "." for sentence in sentences)
    compact = [[i["qty"], i["size"], i["item"]] for i in items]
    output = json.dumps({"items": compact, "name": name, "time": time}, separators=(",", ":"))
    return {"instruction": "Write the order as JSON.", "input": message, "output": output}


def correct(chance: random.Random, forms: dict[str, list[str]], items: list[dict]) -> str:
    """Change one item of the order and return the sentence that says so."""
    target = chance.choice(items)
    if len(items) > 1 and chance.random() < 0.4:
        items.remove(target)
        return chance.choice(forms["drop"]).format(item=target["item"])
    target["qty"] = chance.choice([n for n in (1, 2, 3, 4, 5, 6) if n != target["qty"]])
    item = plural(target["item"], target["qty"])
    return chance.choice(forms["quantity"]).format(number=number(chance, target["qty"]), item=item)


def rows(part: str, wanted: int, seed: int) -> list[dict[str, str]]:
    """Return `wanted` different rows."""
    chance = random.Random(seed)
    found: dict[str, dict[str, str]] = {}
    while len(found) < wanted:
        row = order(chance, part)
        found.setdefault(row["input"], row)
    return list(found.values())


if __name__ == "__main__":
    for part, wanted, seed in (("train", TRAIN_ROWS, 0), ("eval", EVAL_ROWS, 1)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(part, wanted, seed))
        (Path(__file__).parents[1] / f"orders_{part}.jsonl").write_text(text, encoding="utf-8")
