"""Common English nouns, from which keywords are drawn."""

_LIST = """
    acorn airport album alley almond anchor animal answer apple apron arch armor arrow artist atlas attic autumn
    avenue baker balcony ball bamboo banana bank barn barrel basin basket battery beach beacon beak bean bear beaver
    bed bell belt bench berry bicycle bird biscuit blanket blossom boat bone book boot border bottle bowl branch
    bread breeze brick bridge broom brush bucket building bus butter button cabin cable cactus cake camel camera
    candle canoe canvas canyon captain caravan card carpet carrot castle cave ceiling cellar cement chain chair
    chalk channel chapter cherry chess chimney circle citizen city clay cliff clock cloud clover coast coat coffee
    coin collar comet compass concert copper coral cork corner cottage cotton country cousin cradle crane crayon
    creek crew crown crystal cup curtain cushion dancer daughter dawn deck deer desert desk diamond diary dinner
    dish doctor dolphin donkey door dragon drawer dress driver drum duck dune dust eagle ear earth echo edge elbow
    elephant engine engineer envelope evening event exit fabric factory falcon family farm farmer feast feather
    fence fern festival field fig film finger fire fish flag flame flood floor flour flower flute fog forest fork
    fortune fossil fountain fox frame friend frog fruit furnace galaxy gallery game garage garden garlic gate gem
    giant ginger glacier glass globe glove glue goat gold goose grain grape grass gravel guest guide guitar gulf
    hail hallway hammer hammock harbor harvest hat hawk hay hedge helmet hen herb highway hill hinge history holiday
    honey hook horizon horn horse hospital hotel house ice idea igloo iron island ivory ivy jacket jar jewel journal
    journey judge juice jungle kettle key kingdom kitchen kite knee knight knot ladder lake lamp lantern lawn leaf
    leather lemon letter library lighthouse lime line lion lizard loaf lock lodge log lunch machine magnet mail
    mango map maple marble market mask meadow medal melody melon memory merchant message meteor mill mineral minute
    mirror mist moment money monkey month moon morning moss motor mountain mouse mud museum music mustard napkin
    neck needle neighbor nest net night north nose notebook nurse nut oak oar oasis ocean office olive onion orange
    orchard orchestra otter oven owl oyster paddle page paint palace palm pan panda paper parade park parrot path
    peach peacock pearl pebble pen pencil pepper piano picture pier pillow pilot pine pirate planet plant plate
    player plum pocket poem poet pond pony porch portrait potato pottery prairie prince prism problem pumpkin puppet
    puzzle pyramid quarry queen question quilt rabbit radio raft railway rain ranch raven reef ribbon rice rider
    ring river road robot rock roof room root rope rose route ruler saddle sail sailor salad salt sand scarf school
    science screen sea season secret shadow sheep shelf shell ship shirt shoe shore silk silver singer sister sky
    sled smoke snail snow soap soil soldier song soup spark spice spider spoon spring squirrel stable stage stairs
    star station statue steam steel stone storm story stove stranger straw stream street string student sugar summer
    sun supper surface swamp swan sweater table tailor tea teacher temple tent theater thread throne thunder ticket
    tide tiger timber tower town toy train treasure tree trumpet tunnel turtle umbrella uncle valley vase vegetable
    velvet vessel village vine violin visitor voice volcano voyage wagon wall walnut watch water wave wax weather
    wheat wheel whistle willow wind window wing winter wizard wolf wood wool word workshop world yard yarn year
    zebra
"""

NOUNS: list[str] = _LIST.split()
