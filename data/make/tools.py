"""Write tools_en.json: ShareGPT conversations of several turns in which the assistant calls tools.

python data/make/tools.py
"""

import json
import random
from pathlib import Path

ROWS = 60
CITIES = {"Oslo": (4, "rain"), "Lima": (19, "mist"), "Cairo": (31, "sun"), "Riga": (8, "wind"), "Quito": (14, "clouds")}
PRICES = {"desk lamp": 24.5, "office chair": 139.0, "bookshelf": 89.9, "rug": 45.0, "coat rack": 32.0}
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city now",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PRICE = {
    "name": "get_price",
    "description": "Price of an article in euros",
    "parameters": {"type": "object", "properties": {"article": {"type": "string"}}, "required": ["article"]},
}


def turn(speaker: str, value: str | dict) -> dict[str, str]:
    """Return one ShareGPT turn."""
    return {"from": speaker, "value": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}


def weather(chance: random.Random) -> list[dict[str, str]]:
    """Ask for the weather of one city."""
    city = chance.choice(sorted(CITIES))
    degrees, sky = CITIES[city]
    asked = chance.choice(["What is the weather like in {}?", "Do I need a coat in {}?", "How warm is it in {} now?"])
    advice = "take a coat" if degrees < 15 else "no coat needed"
    return [
        turn("human", asked.format(city)),
        turn("function_call", {"name": "get_weather", "arguments": {"city": city}}),
        turn("observation", {"degrees": degrees, "sky": sky}),
        turn("gpt", f"In {city} it is {degrees} degrees with {sky}: {advice}."),
    ]


def price(chance: random.Random) -> list[dict[str, str]]:
    """Ask for the price of several pieces of one article."""
    article, count = chance.choice(sorted(PRICES)), chance.randint(1, 4)
    asked = chance.choice(["How much is {}?", "I'd like {}. What does that cost?", "What would {} cost?"])
    pieces = f"{count} x {article}"
    return [
        turn("human", asked.format(pieces)),
        turn("function_call", {"name": "get_price", "arguments": {"article": article}}),
        turn("observation", {"euros": PRICES[article]}),
        turn("gpt", f"{pieces} cost {count * PRICES[article]:.2f} euros."),
    ]


def small_talk(chance: random.Random) -> list[dict[str, str]]:
    """Say something that needs no tool."""
    asked, answer = chance.choice(
        [
            ("Hello!", "Hello! I can look up the weather of a city and the price of an article."),
            ("Can you book a flight?", "No, I can only look up the weather and prices."),
            ("Thanks a lot!", "You are welcome."),
        ]
    )
    return [turn("human", asked), turn("gpt", answer)]


def rows() -> list[dict]:
    """Return `ROWS` different conversations of one to three parts."""
    chance = random.Random(0)
    made: dict[str, dict] = {}
    while len(made) < ROWS:
        parts = [chance.choice([weather, price, small_talk])(chance) for _ in range(chance.randint(1, 3))]
        turns = [turn for part in parts for turn in part]
        row = {"conversations": turns, "tools": json.dumps([WEATHER, PRICE])}
        if chance.random() < 0.5:
            row["system"] = "You help the customers of a furniture shop. Use the tools; invent nothing."
        made.setdefault(json.dumps(turns), row)
    return list(made.values())


if __name__ == "__main__":
    text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows())
    (Path(__file__).parents[1] / "tools_en.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
