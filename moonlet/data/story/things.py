"""What the stories are about: toys, food, keepsakes, fragile and noisy things, and the words that describe them."""

TABLES = """
thing: ball, kite, doll, drum, hat, toy boat, book, ring, key, bell, whistle, scarf, teddy bear, toy car, toy train,
  blanket, basket, cup, lantern, flute, umbrella, bracelet, necklace, marble, coin, puppet, pencil, paintbrush,
  mirror, watch, medal, pillow, ribbon, mitten, spoon, trumpet, feather, crown, backpack, toy rocket, clock, balloon,
  shovel, bucket, toy duck, toy horse, jump rope, magnet, purse, wand, brush, map, box, guitar, robot
treasure: ball, kite, doll, drum, book, toy boat, lantern, teddy bear, toy train, bracelet, music box, flute
thingadj: new, old, shiny, special, favorite, little, big, tiny, pretty, lovely, fine, funny, fancy, striped, spotted,
  beautiful, painted, precious, wonderful, smooth, round, clean, dusty, handy, curvy, colorful, rare, neat, sturdy,
  silly, magic, soft, strange, plain, ordinary
food (was, are, them, they, They): apples/were/are/them/they/They, pears/were/are/them/they/They,
  bread/was/is/it/it/It, cheese/was/is/it/it/It, soup/was/is/it/it/It, honey/was/is/it/it/It,
  nuts/were/are/them/they/They, carrots/were/are/them/they/They, grapes/were/are/them/they/They,
  plums/were/are/them/they/They, peaches/were/are/them/they/They, pancakes/were/are/them/they/They,
  muffins/were/are/them/they/They, jam/was/is/it/it/It, cherries/were/are/them/they/They,
  berries/were/are/them/they/They, cookies/were/are/them/they/They, cake/was/is/it/it/It, pie/was/is/it/it/It,
  popcorn/was/is/it/it/It, rice/was/is/it/it/It, corn/was/is/it/it/It, beans/were/are/them/they/They,
  noodles/were/are/them/they/They, biscuits/were/are/them/they/They, toast/was/is/it/it/It, pudding/was/is/it/it/It,
  porridge/was/is/it/it/It, melon/was/is/it/it/It, bananas/were/are/them/they/They, oranges/were/are/them/they/They,
  sandwiches/were/are/them/they/They, pasta/was/is/it/it/It, yogurt/was/is/it/it/It, potatoes/were/are/them/they/They,
  waffles/were/are/them/they/They, salad/was/is/it/it/It, tomatoes/were/are/them/they/They,
  mushrooms/were/are/them/they/They, peas/were/are/them/they/They, strawberries/were/are/them/they/They,
  crackers/were/are/them/they/They, ice cream/was/is/it/it/It, chocolate/was/is/it/it/It,
  onions/were/are/them/they/They, eggs/were/are/them/they/They
foodadj: warm, sweet, fresh, tasty, yummy, delicious, juicy, crunchy, sticky, soft, hot, cold, golden, salty, creamy,
  spicy, fluffy, baked, mild, buttery, plain, rich, toasted
bag: basket, bag, box, bowl, jar, sack, bucket, lunchbox, pot, pan, cup, dish, tray, pouch, cart, chest, crate,
  barrel, mug
keepsake: buttons, shells, pebbles, coins, feathers, acorns, marbles, stamps, ribbons, beads, twigs, leaves, keys,
  crayons, seeds, stickers, corks, pins, bottles, bells, rings, tickets, cards, nuts, candles, spools, dice, socks,
  whistles, stars, flags, toy cars, dolls, balls, hooks
fragile: vase, plate, lamp, jug, teapot, clock, window, mug, bowl, flowerpot, mirror, jar, picture frame, glass
number: two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, twenty, thirteen, thirty, many, several
size: big, little, tiny, huge, small, tall, giant, wide, short, long, enormous, thin
young: baby, tiny, small, young, poor, weak
pet: little, small, young, dear, sweet, good, nice, bright, lovely, fine, cute, smart
span: minutes, hours, days, weeks
smell: flowers, grass, honey, bread, rain, apples, leaves, mint, pine, roses, hay, lemons, cinnamon, wood, cake, mud,
  berries, butter, smoke, soap, moss, chocolate, paint, vanilla, coffee, sand, pears, clover, salt, popcorn, oranges
sound: Crash, Bang, Pop, Splash, Thud, Whoosh, Snap, Boom, Bump, Plop, Crunch, Clang, Bonk, Swish, Smack, Crack, Wham,
  Clunk, Rumble, Squeak, Thump, Splat, Whack, Zoom
tool: ladder, rope, broom, pole, net, stick, hook, rake, shovel, saw, hammer, bucket, chain
dear: dear, lovely, poor, precious, fine, little, pretty, wonderful, good, nice, beautiful, old, special, silly
sturdy: big, good, heavy, long, strong, handy, trusty, thick
nasty: awful, big, nasty, scary, horrid, terrible, silly, mean
look: pretty, lovely, strange, beautiful, old, odd, fine, wonderful, plain, bright, quiet, secret, fancy, clean,
  dusty, shiny, magic, famous, splendid, messy, muddy, wet, neat, charming, special, broken, dark, crooked, hidden,
  empty, green, painted, mossy, lonely, funny, grand
mood: pretty, funny, lovely, strange, cute, old, odd, fine, wonderful, little, noble, silly, curious, lonely,
  graceful, charming, grumpy, sleepy, hungry, gentle, busy, proud, shy, noisy, lazy, cheeky, fat, clever, plump,
  speedy, wild, huge, friendly
motif: houses, boats, stars, trains, flowers, robots, faces, dragons, castles, planes, trees, moons, monsters, kings,
  queens, ships, rainbows, clouds, hearts, fish, trucks, snowmen, circles, mountains
bugs: butterflies, bees, birds, ants, ducks, frogs, snails, beetles, worms, moths, crickets, ladybugs, spiders,
  dragonflies, crows, sparrows
finds: flowers, leaves, stones, berries, feathers, sticks, nuts, seeds, acorns, herbs, daisies, mushrooms, pinecones,
  reeds, roots, clovers
"""
