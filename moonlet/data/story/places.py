"""Where and when the stories happen: ten places, each with its own creatures and spots, and the weather and the hours.

A creature's field is its plural. A spot is something one can look under, behind or beside."""

TABLES = """
place (at): beach/at, forest/in, park/in, farm/at, garden/in, meadow/in, lake/by, market/at, hill/on, playground/at
placeadj: big, little, pretty, lovely, wide, quiet, beautiful, wonderful, nearby, famous, old, green, bright, busy,
  far
inside (at): house/in
weather: sunny, cloudy, windy, warm, bright, foggy, rainy, frosty, hot, cool, breezy, misty, golden, lovely, chilly,
  stormy, snowy, calm, gray, fine, mild, dry
daypart: morning, afternoon, day, evening, Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
season: spring, summer, autumn, winter
went: went, walked, ran, skipped, hurried, hopped, marched, strolled, wandered, raced, trotted, danced, crept, rushed,
  jogged, stomped, bounced, tiptoed
under: under, behind, beside, next to, near, in front of, by, close to, across from, not far from
beach.creature (s): crab/crabs, seagull/seagulls, starfish/starfish, dolphin/dolphins, seal/seals, snail/snails,
  pelican/pelicans, clam/clams, jellyfish/jellyfish, shrimp/shrimp, gull/gulls, walrus/walruses
beach.spot: rock, boat, palm tree, sandcastle, umbrella, net, chair, cave, shell, barrel, towel, bucket, log, anchor
forest.creature (s): owl/owls, wolf/wolves, bat/bats, woodpecker/woodpeckers, beetle/beetles, raven/ravens,
  chipmunk/chipmunks, moose/moose, moth/moths, spider/spiders, wren/wrens, porcupine/porcupines
forest.spot: oak tree, log, mushroom, bush, stump, rock, fern, cave, pine tree, nest, boulder, hollow tree, bridge,
  tent
park.creature (s): pigeon/pigeons, crow/crows, poodle/poodles, robin/robins, chipmunk/chipmunks, ladybug/ladybugs,
  swan/swans, sparrow/sparrows, bee/bees, butterfly/butterflies, ant/ants, parrot/parrots
park.spot: bench, fountain, statue, slide, bush, lamp post, gate, flower bed, oak tree, trash can, swing, pond, table
farm.creature (s): cow/cows, hen/hens, horse/horses, sheep/sheep, goose/geese, rooster/roosters, donkey/donkeys,
  turkey/turkeys, chick/chicks, calf/calves, bull/bulls, llama/llamas
farm.spot: haystack, tractor, fence, wheelbarrow, barrel, cart, ladder, scarecrow, shed, bucket, gate, plow
garden.creature (s): bee/bees, butterfly/butterflies, snail/snails, worm/worms, robin/robins, spider/spiders,
  ladybug/ladybugs, caterpillar/caterpillars, beetle/beetles, moth/moths, sparrow/sparrows, wasp/wasps
garden.spot: rosebush, pumpkin, watering can, wheelbarrow, flowerpot, cabbage, shed, sunflower, bench, gate, fence,
  ladder, apple tree, stool
meadow.creature (s): grasshopper/grasshoppers, bee/bees, lark/larks, butterfly/butterflies, sheep/sheep, ant/ants,
  cricket/crickets, dragonfly/dragonflies, crane/cranes, cow/cows, moth/moths, beetle/beetles
meadow.spot: haystack, fence, rock, daisy, stump, bush, sunflower, thistle, gate, log, boulder, well, apple tree
lake.creature (s): swan/swans, toad/toads, fish/fish, goose/geese, heron/herons, dragonfly/dragonflies, trout/trout,
  newt/newts, seagull/seagulls, crane/cranes, loon/loons, snail/snails
lake.spot: boat, dock, willow tree, rock, paddle, bridge, log, reed, net, canoe, raft, stump, bench, bush
market.creature (s): parrot/parrots, donkey/donkeys, hen/hens, pigeon/pigeons, goldfish/goldfish, poodle/poodles,
  mule/mules, cat/cats, crow/crows, sparrow/sparrows, canary/canaries, goose/geese
market.spot: stall, barrel, crate, table, cart, basket, tent, counter, fountain, wagon, sack, stool, sign
hill.creature (s): ram/rams, eagle/eagles, lizard/lizards, mule/mules, hawk/hawks, falcon/falcons, lark/larks,
  grasshopper/grasshoppers, sheep/sheep, crow/crows, hare/hares, beetle/beetles
hill.spot: boulder, pine tree, bush, cave, fence, stump, windmill, log, thistle, sign, well, rock, hut, tower
playground.creature (s): ladybug/ladybugs, sparrow/sparrows, cat/cats, butterfly/butterflies, poodle/poodles,
  ant/ants, pigeon/pigeons, caterpillar/caterpillars, bee/bees, robin/robins, crow/crows, moth/moths
playground.spot: swing, slide, seesaw, sandbox, bench, tunnel, ladder, climbing frame, fence, trash can, table, hut,
  tower
house.creature (s): cat/cats, ferret/ferrets, spider/spiders, fly/flies, moth/moths, poodle/poodles,
  goldfish/goldfish, parrot/parrots, ant/ants, canary/canaries, beetle/beetles, cricket/crickets
house.spot: chair, table, bed, couch, cupboard, stove, rug, bookcase, door, desk, clock, sofa, stool, basket
dark: night, evening
"""
