"""Write general_mcq.jsonl: easy general knowledge, four choices each, used to see what a fine-tune forgets.

One line below is a question, the right choice, and three wrong ones; a seeded shuffle places the right one.
    python data/make/mcq.py
"""

import json
import random
from pathlib import Path

QUESTIONS = {
    "geography": """
What is the capital of France?|Paris|Madrid|Berlin|Rome
What is the capital of Italy?|Rome|Paris|London|Vienna
What is the capital of Germany?|Berlin|Paris|Warsaw|Oslo
What is the capital of Spain?|Madrid|Lisbon|Rome|Athens
What is the capital of Japan?|Tokyo|Seoul|Beijing|Bangkok
What is the capital of China?|Beijing|Tokyo|Seoul|Hanoi
What is the capital of Russia?|Moscow|Kyiv|Warsaw|Helsinki
What is the capital of Egypt?|Cairo|Nairobi|Lagos|Tunis
What is the capital of Greece?|Athens|Rome|Sofia|Cairo
What is the capital of the United Kingdom?|London|Dublin|Paris|Edinburgh
On which continent is Kenya?|Africa|Europe|Asia|South America
On which continent is Brazil?|South America|Africa|Europe|Asia
On which continent is India?|Asia|Africa|Europe|South America
On which continent is Poland?|Europe|Asia|Africa|South America
Which is the largest ocean?|the Pacific Ocean|the Arctic Ocean|the Indian Ocean|the Atlantic Ocean
Which is the highest mountain in the world?|Mount Everest|Mont Blanc|Mount Fuji|Mount Etna
In which country is the Great Wall?|China|India|Japan|Korea
In which country are the pyramids of Giza?|Egypt|Greece|Mexico|Turkey
In which city is the Eiffel Tower?|Paris|London|Rome|New York
Which country is famous for kangaroos?|Australia|Canada|Norway|Brazil
In which country is the city of Mumbai?|India|China|Kenya|Peru
In which direction does the sun rise?|in the east|in the west|in the north|in the south
What is the coldest continent?|Antarctica|Africa|Asia|Europe
Which river flows through Egypt?|the Nile|the Rhine|the Amazon|the Thames
Which river flows through London?|the Thames|the Nile|the Danube|the Ganges
""",
    "animals": """
Which animal says meow?|a cat|a dog|a cow|a duck
Which animal barks?|a dog|a cat|a fish|a snake
Which animal gives us wool?|a sheep|a pig|a dog|a horse
Which insect makes honey?|a bee|an ant|a fly|a moth
Which animal has a trunk?|an elephant|a tiger|a horse|a rabbit
Which animal has a very long neck?|a giraffe|a pig|a mouse|a bear
Which animal is called the king of the jungle?|the lion|the mouse|the goat|the duck
How many legs does a spider have?|eight|six|four|ten
How many legs does a dog have?|four|two|six|eight
How many legs does an insect have?|six|four|eight|ten
What do cows eat?|grass|meat|fish|stones
What does a caterpillar turn into?|a butterfly|a frog|a bird|a snake
What is a baby dog called?|a puppy|a kitten|a calf|a foal
What is a baby cat called?|a kitten|a puppy|a lamb|a chick
What is a baby cow called?|a calf|a foal|a lamb|a cub
What is a baby sheep called?|a lamb|a calf|a chick|a kitten
Which animal lives in water?|a fish|a lion|a goat|a camel
Which bird cannot fly?|a penguin|an eagle|a swallow|a sparrow
Which animal carries its house on its back?|a snail|a fox|a wolf|a frog
Which animal has black and white stripes?|a zebra|a bear|a lion|a deer
Which of these is a mammal?|a whale|a shark|a lizard|an eagle
Where do birds lay their eggs?|in a nest|in a shoe|in a cup|in a book
What covers the body of a bird?|feathers|scales|wool|bark
What covers the body of a fish?|scales|feathers|fur|wool
Which animal hops and has long ears?|a rabbit|a cow|a snake|a turtle
""",
    "science": """
What gas do humans need to breathe?|oxygen|helium|methane|neon
What is the chemical formula of water?|H2O|CO2|NaCl|O2
What is frozen water called?|ice|steam|sand|oil
At how many degrees Celsius does water freeze?|0|50|100|200
At how many degrees Celsius does water boil?|100|10|30|500
What planet do we live on?|Earth|Mars|Venus|Jupiter
Which planet is known as the red planet?|Mars|Venus|Saturn|Neptune
Which is the largest planet in our solar system?|Jupiter|Mars|Earth|Mercury
What is at the centre of our solar system?|the Sun|the Moon|the Earth|Mars
What goes around the Earth?|the Moon|the Sun|Mars|Jupiter
What force pulls things to the ground?|gravity|sound|light|heat
What do plants need to grow?|sunlight|plastic|metal|glass
Which part of a plant is under the ground?|the root|the flower|the leaf|the fruit
What do we call frozen rain that falls in soft white flakes?|snow|fog|dew|steam
What does a thermometer measure?|temperature|weight|speed|length
What does a clock measure?|time|weight|heat|colour
What is the chemical symbol of gold?|Au|Fe|Pb|Cu
What is the chemical symbol of oxygen?|O|H|N|C
What is the hardest natural material?|diamond|chalk|clay|wood
Which metal is attracted by a magnet?|iron|gold|silver|copper
What do we call a scientist who studies stars?|an astronomer|a baker|a lawyer|a sailor
What gas do plants take in from the air?|carbon dioxide|helium|hydrogen|neon
Who developed the theory of relativity?|Albert Einstein|Mozart|Napoleon|Shakespeare
Which instrument makes small things look bigger?|a microscope|a telephone|a hammer|a piano
What is the process by which plants make food from light?|photosynthesis|digestion|evaporation|erosion
""",
    "food": """
Which of these is a fruit?|an apple|a carrot|a potato|an onion
Which of these is a vegetable?|a carrot|a banana|an orange|a cherry
What is bread made from?|flour|sand|milk|honey
What is cheese made from?|milk|flour|oil|water
What is wine made from?|grapes|potatoes|carrots|rice
What colour is a ripe banana?|yellow|blue|purple|black
Where do eggs come from?|hens|cows|sheep|horses
Which drink is made from roasted beans?|coffee|milk|water|juice
Which of these tastes sweet?|sugar|salt|vinegar|pepper
Which of these tastes sour?|a lemon|honey|bread|sugar
What do we use to eat soup?|a spoon|a fork|a comb|a pen
Which meal do we eat in the morning?|breakfast|dinner|supper|lunch
From which country does pizza come?|Italy|Japan|Egypt|Canada
From which country does sushi come?|Japan|Mexico|France|Kenya
What are French fries made from?|potatoes|apples|rice|beans
""",
    "body": """
Which part of the body do we see with?|the eyes|the ears|the hands|the knees
Which part of the body do we hear with?|the ears|the eyes|the nose|the feet
Which part of the body do we smell with?|the nose|the ears|the elbow|the feet
How many fingers are on one hand?|five|three|seven|ten
How many eyes does a person have?|two|one|three|four
Which organ pumps blood?|the heart|the stomach|the skin|the liver
Which organ do we think with?|the brain|the heart|the lungs|the stomach
Which organs do we breathe with?|the lungs|the kidneys|the eyes|the bones
What colour is blood?|red|green|blue|yellow
What is inside our body and holds it up?|bones|feathers|wood|leaves
What do we use to chew food?|teeth|hair|ears|toes
Where are your toes?|on your feet|on your hands|on your head|on your back
What grows on our head?|hair|grass|feathers|leaves
""",
    "time": """
How many days are in a week?|seven|five|nine|ten
How many months are in a year?|twelve|ten|eight|twenty
How many hours are in a day?|24|12|60|100
How many minutes are in an hour?|60|30|24|100
How many seconds are in a minute?|60|10|24|100
How many days are in a year?|365|100|500|30
Which day comes after Monday?|Tuesday|Friday|Sunday|Saturday
Which day comes before Sunday?|Saturday|Monday|Tuesday|Wednesday
Which month comes after January?|February|May|August|October
Which is the first month of the year?|January|June|March|December
Which is the last month of the year?|December|May|July|January
In which month is Christmas?|December|June|March|August
How many years are in a century?|one hundred|ten|fifty|one thousand
How many years are in a decade?|ten|two|fifty|one hundred
Which season is the coldest?|winter|summer|spring|autumn
Which season comes after winter?|spring|summer|autumn|winter
""",
    "language": """
What is the opposite of hot?|cold|warm|big|fast
What is the opposite of big?|small|tall|heavy|wide
What is the opposite of up?|down|left|over|far
What is the opposite of day?|night|noon|week|light
What is the opposite of happy?|sad|glad|kind|loud
What is the opposite of fast?|slow|quick|high|hard
What is the opposite of old?|young|tall|wise|slow
What is the opposite of open?|closed|wide|clean|free
What is the opposite of wet?|dry|soft|cold|deep
What is the opposite of black?|white|dark|blue|long
What is the opposite of true?|false|right|real|good
What is the first letter of the English alphabet?|A|B|M|Z
What is the last letter of the English alphabet?|Z|A|M|Q
How many letters are in the English alphabet?|26|10|50|100
What is the plural of child?|children|childs|childes|childrens
What is the past tense of go?|went|goed|gone to|going
Who wrote Romeo and Juliet?|William Shakespeare|Albert Einstein|Napoleon|Mozart
Which language is spoken in France?|French|German|Russian|Greek
Which language is spoken in Brazil?|Portuguese|German|Greek|Polish
Which language is spoken in Germany?|German|French|Spanish|Turkish
""",
    "colours and shapes": """
What colour is the sky on a clear day?|blue|green|brown|pink
What colour is grass?|green|red|blue|purple
What colour is snow?|white|black|red|green
What colour is a ripe strawberry?|red|blue|black|grey
What colour is coal?|black|white|pink|yellow
What colour is an orange?|orange|blue|black|white
What colour do you get from mixing blue and yellow?|green|red|white|black
What colour do you get from mixing red and white?|pink|green|blue|black
How many sides does a triangle have?|three|four|five|six
How many sides does a square have?|four|three|five|eight
What shape is a ball?|round|flat|square|pointed
What shape is a wheel?|a circle|a square|a triangle|a star
""",
    "daily life": """
What do we use to cut paper?|scissors|a spoon|a pillow|a cup
What do we use to write?|a pen|a fork|a shoe|a plate
What do we open when it rains?|an umbrella|a book|a bottle|a box
Where do we borrow books?|at a library|at a bakery|at a bank|at a garage
Where do we buy bread?|at a bakery|at a library|at a museum|at a school
Who works in a hospital?|a doctor|a farmer|a pilot|a baker
Who flies an airplane?|a pilot|a doctor|a cook|a farmer
Who puts out fires?|a firefighter|a teacher|a baker|a singer
Who teaches children at school?|a teacher|a sailor|a pilot|a miner
What do we wear on our feet?|shoes|gloves|hats|scarves
What do we wear on our hands when it is cold?|gloves|socks|boots|glasses
What do we sleep in?|a bed|a bath|a car|a box
What keeps food cold in a kitchen?|a refrigerator|an oven|a lamp|a radio
What do we use to brush our teeth?|a toothbrush|a hammer|a comb|a spoon
Which vehicle runs on rails?|a train|a car|a boat|a bicycle
Which vehicle has two wheels?|a bicycle|a car|a bus|a truck
Which vehicle travels on water?|a boat|a train|a bus|a bicycle
What do we use to tell the time?|a watch|a spoon|a hat|a shoe
Which instrument has black and white keys?|a piano|a drum|a flute|a violin
In which sport do players kick a ball into a goal?|football|tennis|chess|golf
""",
    "arithmetic": """
What is 1 + 1?|2|1|5|11
What is 2 + 2?|4|3|22|8
What is 5 + 5?|10|55|5|20
What is 10 - 5?|5|15|1|50
What is 3 + 4?|7|12|34|1
What is 2 x 3?|6|23|9|1
What is half of ten?|five|twenty|two|nine
How many are a dozen?|twelve|ten|six|twenty
How many wheels does a car have?|four|two|three|six
Which number comes after nine?|ten|seven|three|eight
Which number comes before two?|one|five|three|six
""",
}


def rows() -> list[dict]:
    """Return every question with its choices shuffled."""
    chance = random.Random(0)
    made = []
    for topic, lines in QUESTIONS.items():
        for number, line in enumerate(lines.strip().splitlines(), 1):
            question, *choices = line.split("|")
            right = choices[0]
            chance.shuffle(choices)
            name = f"{topic.split()[0]}-{number:03}"
            made.append(
                {"id": name, "topic": topic, "question": question, "choices": choices, "answer": choices.index(right)}
            )
    return made


if __name__ == "__main__":
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    (Path(__file__).parents[1] / "general_mcq.jsonl").write_text(text, encoding="utf-8")
