"""Write preference_en, kto_en and topics_en, each with its _eval: the same fact, told by two kinds of assistant.

The preferred assistant opens with the gist and says so: "In short, ...". The other one says so afterwards, or not at all.
Both are right, and the preferred answer is sometimes shorter and sometimes longer, so that length says little. Only a quick question is
better answered plainly, "Oslo."
A line of TRAIN and HELD_OUT is a topic, a definition, and two facts; one of FACTS a question and its answer.
Training asks about each topic in three ways; the evaluation asks once, because an interval needs independent questions.
    python data/make/preferences.py
"""

import json
from pathlib import Path

DATA = Path(__file__).parents[1]

TRAIN = """
a volcano|A volcano is an opening in the ground where molten rock comes out.|Most of them stand where two plates of the crust meet.|The rock that flows out is called lava.
gravity|Gravity is the pull that masses have on each other.|It keeps the Moon on its path around the Earth.|The Moon's pull is six times weaker than ours.
a rainbow|A rainbow is sunlight split into its colours by drops of rain.|It always stands opposite the Sun.|Red is on the outside and violet on the inside.
photosynthesis|Photosynthesis is how plants make sugar from light, water and air.|It happens in the green parts of a leaf.|Oxygen is what the plant gives off.
a magnet|A magnet is an object that attracts iron.|Every magnet has a north and a south pole.|Equal poles push each other away.
an atom|An atom is the smallest piece of a chemical element.|Nearly all of its mass sits in the nucleus.|A drop of water holds more atoms than anyone could count.
a glacier|A glacier is a river of ice that moves very slowly.|It forms where more snow falls than melts.|The largest ones lie in Antarctica.
an earthquake|An earthquake is a sudden shaking of the ground.|It starts when rock breaks deep below.|Most last less than one minute.
the water cycle|The water cycle is the journey of water from sea to cloud and back.|Heat from the Sun keeps it going.|Rivers carry the rain home to the ocean.
a comet|A comet is a ball of ice and dust that circles the Sun.|Its tail always points away from the Sun.|Halley's comet returns about every 76 years.
a tide|A tide is the regular rise and fall of the sea.|The Moon causes most of it.|Many coasts see two high tides a day.
an eclipse|An eclipse happens when one body in space hides another.|The Moon can cover the whole Sun for a few minutes.|A lunar eclipse is safe to watch with bare eyes.
a battery|A battery is a store of energy that gives electric current.|Chemical reactions inside it push the electrons.|The plus and minus ends must not touch.
a microscope|A microscope is a tool that makes tiny things look large.|Its lenses bend the light.|With it people first saw living cells.
a telescope|A telescope is a tool that makes distant things look near.|Galileo used one to find moons of Jupiter.|The biggest ones use mirrors.
a compass|A compass is a needle that points north.|It follows the magnetic field of the Earth.|Sailors have used it for many centuries.
a vaccine|A vaccine is a medicine that prepares the body against a disease.|It shows the immune system what to look for.|The first one worked against smallpox.
a virus|A virus is a tiny thing that multiplies only inside living cells.|It is much smaller than a bacterium.|Antibiotics do nothing against it.
the heart|The heart is the muscle that pumps blood through the body.|It beats about 100,000 times a day.|It has four chambers.
the brain|The brain is the organ that thinks and steers the body.|It uses about a fifth of our energy.|Its cells talk by electric signals.
a bone|A bone is a hard, living part of the skeleton.|Grown people have 206 of them.|New blood cells are made inside.
a vitamin|A vitamin is a substance the body needs in small amounts.|Most of them must come from food.|Oranges hold a lot of vitamin C.
bread|Bread is a food baked from flour and water.|Yeast makes the dough rise.|People baked it thousands of years ago.
cheese|Cheese is a food made from the solid part of milk.|Some kinds ripen for years.|It takes about ten litres of milk for one kilo.
chocolate|Chocolate is a sweet food made from cocoa beans.|The beans grow on trees near the equator.|White chocolate holds cocoa butter only.
tea|Tea is a drink made by pouring hot water on leaves.|Green and black tea come from the same plant.|It was first drunk in China.
coffee|Coffee is a drink brewed from roasted beans.|The beans are seeds of a red fruit.|Brazil grows more than any other country.
salt|Salt is a mineral that makes food taste salty.|It comes from the sea or from mines.|It melts ice on winter roads.
honey|Honey is a sweet food that bees make from nectar.|Bees keep it as food for winter.|It can last for many years.
rice|Rice is a grain that feeds half of the world.|It often grows in flooded fields.|Most of it is eaten in Asia.
a bee|A bee is an insect that collects nectar and pollen.|It tells others the way by a dance.|A hive has one queen.
a spider|A spider is a small animal with eight legs.|Many kinds catch flies in a web.|It is not an insect.
a whale|A whale is a huge mammal that lives in the sea.|It must come up to breathe.|The blue whale is the largest animal of all.
a bat|A bat is the only mammal that truly flies.|It finds its way by echoes.|Many kinds sleep upside down.
an owl|An owl is a bird that hunts at night.|Its feathers make almost no sound.|It can turn its head very far.
a penguin|A penguin is a bird that swims instead of flying.|Most kinds live in the south of the world.|Its wings work like fins.
a camel|A camel is a large animal of the desert.|Its hump holds fat, not water.|It can go for days without a drink.
an elephant|An elephant is the largest animal that lives on land.|It drinks with the help of its trunk.|A baby weighs about 100 kilos at birth.
a frog|A frog is an animal that lives in water and on land.|It begins its life as a tadpole.|Its tongue is fast enough to catch flies.
a shark|A shark is a fish with a skeleton of cartilage.|It gets new teeth all its life.|Most kinds never harm people.
an octopus|An octopus is a sea animal with eight arms.|It has three hearts.|It can change its colour in a moment.
a butterfly|A butterfly is an insect with four colourful wings.|It starts out as a caterpillar.|It tastes with its feet.
a cactus|A cactus is a plant that stores water for dry times.|Its spines keep animals away.|Most kinds come from the Americas.
a mushroom|A mushroom is the part of a fungus that we can see.|The rest lives under the ground.|Some kinds are very poisonous.
a seed|A seed is a young plant in a protective coat.|It waits until there is water and warmth.|Wind and birds carry it away.
a forest|A forest is a large piece of land covered with trees.|It is home to most animals on land.|Its trees take carbon from the air.
a desert|A desert is a place where very little rain falls.|Nights there can be freezing cold.|Antarctica is the largest of them.
an island|An island is land with water on every side.|Greenland is the largest one.|Some were built by volcanoes.
a river|A river is a stream of water that flows to the sea.|It begins at a spring or a lake.|The Nile is one of the longest.
a cloud|A cloud is a mass of tiny drops of water in the air.|A big one can weigh many tonnes.|Fog is a cloud on the ground.
lightning|Lightning is a giant electric spark in a storm.|It is hotter than the face of the Sun.|Thunder is the sound that it makes.
wind|Wind is air that moves from one place to another.|It blows because the Sun heats the land unevenly.|Its force can turn large turbines.
snow|Snow is frozen water that falls from clouds.|Each flake has six sides.|It keeps the ground below it warm.
a desk lamp|A desk lamp is a small light for reading and work.|Modern ones use little power.|It should stand on the side of the free hand.
a bicycle|A bicycle is a vehicle with two wheels and pedals.|It was invented in the 19th century.|It is the most efficient way to travel.
a train|A train is a row of wagons that runs on rails.|The first ones used steam.|The fastest go above 400 kilometres an hour.
an airplane|An airplane is a machine with wings that flies.|The shape of the wings gives it lift.|The Wright brothers flew first in 1903.
a ship|A ship is a large boat that crosses the sea.|It floats because it pushes water aside.|Most goods of the world travel on ships.
a bridge|A bridge is a structure that leads a road over something.|Arches carry heavy loads well.|Some of them hang on cables.
a clock|A clock is a device that shows the time.|The first ones used sun or water.|Atomic clocks lose a second in millions of years.
paper|Paper is a thin sheet made from plant fibres.|It was invented in China.|It can be recycled several times.
glass|Glass is a clear material made from melted sand.|It breaks easily but never rots.|It has been made for 4,000 years.
steel|Steel is iron with a little carbon in it.|It is much stronger than pure iron.|Tall buildings stand on frames of it.
plastic|Plastic is a material that can be pressed into any shape.|Most of it is made from oil.|It needs centuries to decay.
gold|Gold is a heavy yellow metal that never rusts.|It is soft enough to be hammered thin.|Every phone holds a little of it.
a diamond|A diamond is a very hard crystal of carbon.|It forms deep in the Earth.|Saws use it to cut stone.
a computer|A computer is a machine that follows instructions.|Inside, everything is zeros and ones.|The first ones filled whole rooms.
the internet|The internet is a network that connects computers everywhere.|Most of its data runs through cables in the sea.|It began as a research project.
a password|A password is a secret word that proves who you are.|A long one is hard to guess.|Each account should have its own.
a search engine|A search engine is a program that finds pages for words.|It keeps an index of the web.|Useful pages are shown first.
an algorithm|An algorithm is a list of steps that solves a problem.|A cooking recipe is a good example.|Computers run many of them every second.
a database|A database is an orderly store of information.|Tables are its most common form.|Banks keep their accounts in one.
a robot|A robot is a machine that does work by itself.|Factories use many of them.|The word comes from a Czech play.
a library|A library is a place where people borrow books.|The famous one of Alexandria is lost.|Many lend films and games too.
a museum|A museum is a place that keeps and shows valuable things.|The Louvre is one of the largest.|Many are free on some days.
a novel|A novel is a long story in prose.|Its people and events are made up.|Some count hundreds of pages.
a poem|A poem is a text that plays with sound and rhythm.|It does not need to rhyme.|A haiku has only three lines.
an orchestra|An orchestra is a large group of musicians.|A conductor leads it.|More than half of them play strings.
a piano|A piano is an instrument with 88 keys.|Small hammers strike its strings.|It was invented in Italy.
a violin|A violin is a small instrument with four strings.|It is played with a bow.|It has the highest voice of its family.
chess|Chess is a board game for two players.|Each side has sixteen pieces.|A computer beat the world champion in 1997.
a map|A map is a drawing of a place seen from above.|North is usually at the top.|A scale tells how far things are.
money|Money is what people accept in exchange for things.|Coins are about 2,600 years old.|Today most of it exists in computers.
a bank|A bank is a business that keeps and lends money.|It pays interest on savings.|It takes more interest for its loans.
"""

HELD_OUT = """
the Sun|The Sun is the star at the centre of our solar system.|Its light needs eight minutes to reach us.|It holds nearly all the mass around here.
the Moon|The Moon is a ball of rock that circles the Earth.|It always shows us the same side.|People first walked on it in 1969.
a planet|A planet is a large round body that circles a star.|Our Sun has eight of them.|Jupiter is the largest.
a hurricane|A hurricane is a huge storm that turns over warm sea.|In its middle lies a calm eye.|It grows weak over land.
an ocean|An ocean is a vast body of salt water.|The Pacific is the largest one.|Most of its floor was never seen.
a mountain|A mountain is land that rises high above its surroundings.|Air gets thinner on the way up.|Mount Everest is the highest.
a cell|A cell is the smallest unit of life.|The body has trillions of them.|Most hold a copy of our DNA.
a muscle|A muscle is tissue that can pull itself together.|It can pull but never push.|We have more than 600.
milk|Milk is the white drink that mammals feed their young.|It holds calcium for the bones.|Butter is made from its cream.
sugar|Sugar is a sweet substance from cane or beet.|It dissolves easily in water.|Too much of it harms the teeth.
an ant|An ant is a small insect that lives in colonies.|It lifts many times its own weight.|A colony has at least one queen.
a snake|A snake is a long reptile without legs.|It smells with its tongue.|Most kinds have no poison.
a dolphin|A dolphin is a clever mammal of the sea.|It calls its friends by whistles.|It sleeps with half of its brain.
a tree|A tree is a tall plant with a wooden trunk.|Each year adds a ring to it.|Some are thousands of years old.
a car|A car is a vehicle with four wheels and a motor.|More and more of them are electric.|The first ones were very slow.
a camera|A camera is a device that takes pictures.|Its lens gathers the light.|Early photos needed minutes of standing still.
a telephone|A telephone is a device that carries voices far away.|It turns sound into signals.|Bell patented it in 1876.
a guitar|A guitar is an instrument with six strings.|Its hollow body makes it loud.|Electric ones need an amplifier.
football|Football is a game in which two teams kick a ball.|Each team has eleven players.|Its world cup is held every four years.
a dictionary|A dictionary is a book that explains words.|Its words stand in order of the alphabet.|Large ones fill many volumes.
a calendar|A calendar is a system that orders the days of the year.|Most countries use the one of Pope Gregory.|A leap year has one day more.
a star|A star is a giant ball of hot gas that gives off light.|The nearest one to us is the Sun.|Its colour tells how hot it is.
a galaxy|A galaxy is a huge group of stars held together by gravity.|Ours is called the Milky Way.|It has at least a hundred billion stars.
a satellite|A satellite is an object that circles a planet.|Thousands of them circle the Earth today.|The first one built by people flew in 1957.
a rocket|A rocket is a vehicle that pushes itself forward with hot gas.|It carries its own oxygen with it.|It works in empty space too.
fog|Fog is a cloud that touches the ground.|It forms when damp air cools down.|Drivers see only a short way in it.
thunder|Thunder is the sound of air that lightning heats suddenly.|It arrives later than the flash.|Three seconds of delay are about one kilometre.
a tornado|A tornado is a narrow column of air that spins very fast.|It reaches from a storm cloud to the ground.|Most of them last only some minutes.
a waterfall|A waterfall is a place where a river drops over a cliff.|Angel Falls in Venezuela is the highest.|Falling water can make electricity.
a lake|A lake is a body of water with land all around it.|Most of them hold fresh water.|Lake Baikal is the deepest one.
a cave|A cave is a hollow space in rock.|Water often carves it over thousands of years.|Bats like to sleep there.
a swamp|A swamp is wet land where trees grow in shallow water.|It cleans the water that flows through.|Many birds nest there.
a fossil|A fossil is what remains of a living thing in old rock.|It shows what lived long ago.|Most of them are shells and bones.
coal|Coal is a black rock that burns.|It formed from plants over millions of years.|Burning it warms the climate.
oxygen|Oxygen is the gas in the air that we need to live.|It makes up a fifth of the air.|Fire needs it too.
the skin|The skin is the outer cover of the body.|It keeps germs out and water in.|It is our largest organ.
the stomach|The stomach is the organ that breaks down food with acid.|A layer of mucus protects its walls.|A meal stays there for some hours.
the lungs|The lungs are the two organs that take oxygen from the air.|They sit behind the ribs.|We fill them about 20,000 times a day.
blood|Blood is the liquid that carries oxygen and food through the body.|Grown people have about five litres of it.|Iron gives it the red colour.
a tooth|A tooth is a hard tool in the mouth for biting and chewing.|Grown people have up to 32 of them.|Its enamel is harder than bone.
sleep|Sleep is the rest in which body and brain recover.|Most adults need seven to nine hours.|We dream several times each night.
butter|Butter is a food made of the fat in cream.|It melts at the warmth of a hand.|Four fifths of it is fat.
an egg|An egg is a shell in which a young animal grows.|Birds keep theirs warm by sitting on them.|Its white is mostly protein.
a potato|A potato is a plant whose underground part we eat.|It came to Europe from South America.|Its green parts are poisonous.
an apple|An apple is a round fruit that grows on trees.|There are thousands of kinds.|Its seeds sit in a core of five chambers.
pepper|Pepper is a spice made from small dried berries.|It comes from the south of India.|It was once worth its weight in gold.
yeast|Yeast is a tiny fungus that turns sugar into gas and alcohol.|Bakers use it to make dough rise.|Beer is made with it too.
a horse|A horse is a large animal that people ride.|It can sleep while standing.|It has one toe on each foot.
a wolf|A wolf is a wild relative of the dog.|It hunts in a pack.|Its howl carries for kilometres.
a crocodile|A crocodile is a large reptile with strong jaws.|It waits for its prey in the water.|Its kind lived beside the dinosaurs.
a snail|A snail is a slow animal with a shell on its back.|It moves on a layer of mucus.|Its eyes sit at the ends of its horns.
a parrot|A parrot is a colourful bird with a curved beak.|Some kinds can copy speech.|Large ones live for over fifty years.
a kangaroo|A kangaroo is an animal that jumps on strong back legs.|The mother carries her young in a pouch.|It lives in Australia.
a jellyfish|A jellyfish is a soft sea animal without bones.|It has no brain at all.|Its arms can sting.
a flower|A flower is the part of a plant that makes seeds.|Its colour and scent attract insects.|The largest one is a metre wide.
a rose|A rose is a bush with thorns and scented flowers.|Perfume is made from its oil.|Gardeners grow thousands of kinds.
a root|A root is the part of a plant that takes up water.|It holds the plant in the ground.|A carrot is one that we eat.
a truck|A truck is a large vehicle that carries goods.|Most of them burn diesel.|The biggest ones work in mines.
a helicopter|A helicopter is an aircraft that is lifted by a turning rotor.|It can stand still in the air.|Rescuers use it in the mountains.
a submarine|A submarine is a ship that travels under water.|It takes in water to sink.|Sailors look out through a periscope.
a tunnel|A tunnel is a passage dug through the ground.|The longest one for trains lies in Switzerland.|Fans keep its air fresh.
a lighthouse|A lighthouse is a tower whose light guides ships.|Each one blinks in its own rhythm.|Most of them run without a keeper now.
concrete|Concrete is a mix of cement, sand, stones and water.|It hardens like rock in some weeks.|The Romans built with it.
rubber|Rubber is an elastic material made from tree sap or oil.|Tyres are made of it.|It keeps electric current away.
a printer|A printer is a device that puts text and pictures on paper.|Some use ink and others a laser.|Newer kinds build objects in plastic.
a keyboard|A keyboard is a set of keys for typing.|Most of them begin with the letters QWERTY.|The layout comes from old typewriters.
an email|An email is a letter sent over a network.|It arrives within seconds.|The first one was sent in 1971.
a virus scanner|A virus scanner is a program that looks for harmful software.|It knows the traces of old attacks.|It needs an update nearly every day.
a drum|A drum is an instrument that is played by hitting it.|It is one of the oldest instruments.|Its head was once made of animal skin.
a flute|A flute is an instrument that sounds when air is blown across a hole.|Most modern ones are made of metal.|The oldest are made of bone.
a newspaper|A newspaper is a set of printed pages with current news.|The first ones appeared in the 17th century.|Many are now read on a screen.
a contract|A contract is an agreement that binds two sides by law.|It need not be on paper.|A side that breaks it may have to pay.
"""

FACTS = """
What do you call frozen water?|Ice
What is the opposite of left?|Right
What is the opposite of early?|Late
What is the opposite of empty?|Full
What is five plus four?|Nine
What is ten minus three?|Seven
What is six plus six?|Twelve
What is twenty minus five?|Fifteen
Which language is spoken in Portugal?|Portuguese
Which language is spoken in Austria?|German
What is the capital of Norway?|Oslo
What is the capital of Sweden?|Stockholm
What is the capital of Poland?|Warsaw
What is the capital of Ireland?|Dublin
What is the capital of Peru?|Lima
What is the capital of Cuba?|Havana
What is the capital of Kenya?|Nairobi
What is the capital of Canada?|Ottawa
On which continent is Nigeria?|Africa
On which continent is France?|Europe
On which continent is Thailand?|Asia
On which continent is Chile?|South America
Which day comes after Friday?|Saturday
Which day comes before Tuesday?|Monday
Which month comes after March?|April
Which month comes before December?|November
Which season comes after autumn?|Winter
Which fruit is wine made from?|Grapes
Which bird brings babies in old tales?|The stork
What is the young of a horse called?|A foal
What is the young of a goat called?|A kid
What is the young of a hen called?|A chick
Where does a rabbit live?|In a burrow
What do we breathe with?|The lungs
What do we chew with?|The teeth
What do we smell with?|The nose
What tool drives a nail?|A hammer
What tool cuts wood?|A saw
What do we sweep the floor with?|A broom
What do we write on a blackboard with?|Chalk
What do we open a lock with?|A key
Who bakes bread?|A baker
Who cuts hair?|A hairdresser
Who repairs water pipes?|A plumber
Who paints pictures?|A painter
Which game is played with a racket and a yellow ball?|Tennis
Which metal are old coins of red colour made of?|Copper
What colour is a lemon?|Yellow
What colour is a tomato?|Red
Who wrote the play Macbeth?|William Shakespeare
Who composed the Moonlight Sonata?|Ludwig van Beethoven
Who painted the Sunflowers?|Vincent van Gogh
In which city is the Colosseum?|Rome
In which city is Big Ben?|London
In which city is the Statue of Liberty?|New York
In which country is the Taj Mahal?|India
In which country is Mount Fuji?|Japan
Which sea lies between Europe and Africa?|The Mediterranean
Which river flows through Vienna?|The Danube
Which river flows through Paris?|The Seine
What gas do balloons that rise hold?|Helium
What force keeps us on the ground?|Gravity
How many sides has a triangle?|Three
How many sides has a square?|Four
How many wheels has a tricycle?|Three
How many players has a football team?|Eleven
How many letters has the English alphabet?|Twenty-six
How many cents are in a dollar?|One hundred
What is half of one hundred?|Fifty
What is three times five?|Fifteen
"""

QUESTIONS = ("What is {topic}?", "Can you tell me what {topic} is?", "How would you explain {topic}?")
OPENING = "In short, "
CLOSING = "That is the short answer."


def pairs(block: str) -> list[dict[str, str]]:
    """Return the preference rows of a block of topics, one per question.

    The preferred answer is the shorter one in the first, a little longer in the second, much longer in the third.
    """
    made = []
    for line in block.strip().splitlines():
        topic, definition, first, second = line.split("|")
        gist = OPENING + definition[0].lower() + definition[1:]
        chosen = (gist, f"{gist} {first}", f"{gist} {first} {second}")
        rejected = (f"{definition} {CLOSING}", f"{definition} {first}", f"{definition} {first}")
        for question, one, other in zip(QUESTIONS, chosen, rejected, strict=True):
            made.append({"instruction": question.format(topic=topic), "input": "", "chosen": one, "rejected": other})
    return made


def topics(block: str) -> list[dict[str, str | list[str]]]:
    """Return what an answer about each topic can be made of: a definition and two facts."""
    lines = (line.split("|") for line in block.strip().splitlines())
    return [{"topic": topic, "definition": definition, "facts": facts} for topic, definition, *facts in lines]


def plain(block: str) -> list[dict[str, str]]:
    """Return the preference rows of quick questions, where no gist needs to be announced."""
    lines = (line.split("|") for line in block.strip().splitlines())
    return [
        {"instruction": asked, "input": "", "chosen": f"{fact}.", "rejected": f"{OPENING}{fact[0].lower()}{fact[1:]}."}
        for asked, fact in lines
    ]


def rated(rows: list[dict[str, str]]) -> list[dict[str, str | bool]]:
    """Return one answer per question, liked (`kto_tag` true) and disliked in turn."""
    return [
        {
            "instruction": row["instruction"],
            "input": "",
            "output": row["chosen" if number % 2 == 0 else "rejected"],
            "kto_tag": number % 2 == 0,
        }
        for number, row in enumerate(rows)
    ]


def files() -> dict[str, list[dict]]:
    """Return the rows of every file that this script writes."""
    # Every topic once, the three ways of asking in turn.
    held_out = [row for number, row in enumerate(pairs(HELD_OUT)) if number % 3 == number // 3 % 3]
    sets = {"": pairs(TRAIN) + plain(FACTS), "_eval": held_out}
    found = {f"preference_en{split}": rows for split, rows in sets.items()}
    found |= {f"kto_en{split}": rated(rows) for split, rows in sets.items()}
    return found | {"topics_en": topics(TRAIN), "topics_en_eval": topics(HELD_OUT)}


def write(name: str, rows: list[dict]) -> None:
    """Write rows as JSON lines."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (DATA / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for name, rows in files().items():
        write(name, rows)
