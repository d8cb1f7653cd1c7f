"""Write corpus_en.jsonl: a gazetteer of islands that do not exist, as raw text for continued pretraining.

The facts are invented, so whatever a model knows of them it has learned here.
    python data/make/corpus.py
"""

import json
import random
from pathlib import Path

ISLANDS = ["Marrow", "Tessel", "Orrin", "Halvard", "Quill", "Sabre", "Lunt", "Verity", "Ostler", "Pamber"]
SEAS = ["the Grey Sound", "the Sea of Combs", "the Lesser Gulf", "the Amber Strait"]
TRADES = ["salt", "blue wool", "smoked eel", "cork", "honey", "slate", "sailcloth", "pears"]
FOUNDERS = ["a shipwrecked baker", "two sisters from the mainland", "a clockmaker", "a retired harbour pilot", "monks"]
SIGHTS = ["a lighthouse with a green lamp", "a staircase cut into the cliff", "a harbour that dries out at low tide", "a library in an old mill", "a bell that is rung by the tide"]  # fmt: skip
HOLIDAYS = ["the Day of Lanterns", "Rope Sunday", "the Blessing of the Nets", "Kettle Night", "the Long Breakfast"]
CAPITALS = ["Port {}", "{} Town", "Saint {}", "{}haven", "Upper {}"]
FORMS = [
    "{name} is an island in {sea}. Its main town is {capital}, and its {people:,} people live mostly from {trade}.",
    "Ships that call at {capital} on {name} load {trade}, which the island has sold since {year}. The crossing of {sea} takes {hours} hours.",
    "The island of {name} was settled in {year} by {founder}. Visitors come to see {sight}.",
    "Once a year the people of {name} keep {holiday}. Nobody works on that day, not even in {capital}, and the streets smell of {trade}.",
    "Travellers who cross {sea} know {name} by {sight}. From there it is a short walk to {capital}.",
    "{capital} is the seat of the council of {name}. The council was founded in {year}, when {founder} still kept the books.",
]  # fmt: skip


def rows() -> list[dict[str, str]]:
    """Return a paragraph per island and form, in a seeded order."""
    chance = random.Random(0)
    made = []
    for name in ISLANDS:
        facts = {
            "name": name,
            "sea": chance.choice(SEAS),
            "trade": chance.choice(TRADES),
            "founder": chance.choice(FOUNDERS),
            "sight": chance.choice(SIGHTS),
            "holiday": chance.choice(HOLIDAYS),
            "capital": chance.choice(CAPITALS).format(name),
            "people": chance.randrange(400, 9000, 50),
            "year": chance.randint(1480, 1870),
            "hours": chance.randint(2, 11),
        }
        made += [{"text": form.format(**facts)} for form in FORMS]
    return chance.sample(made, len(made))


if __name__ == "__main__":
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    (Path(__file__).parents[1] / "corpus_en.jsonl").write_text(text, encoding="utf-8")
