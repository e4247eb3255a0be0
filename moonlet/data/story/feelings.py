"""How it feels and how it is said: feelings by their cause, and the verbs and adverbs of speech."""

TABLES = """
sadness: sad, upset, unhappy, gloomy, miserable, worried, sorry, hurt, lonely, hopeless, troubled, glum
fright: scared, afraid, frightened, nervous, worried, shaky, alarmed, uneasy, tense, timid, startled, spooked
joy: happy, glad, joyful, cheerful, delighted, pleased, thankful, excited, proud, merry, jolly, lucky, cheery,
  grateful, thrilled, calm, content, joyous
sobbed: cried, sobbed, wailed, sniffed, sighed, moaned, whispered, groaned, muttered, wept, mumbled, gasped, sniffled,
  whimpered, howled, gulped
cheered: cheered, shouted, laughed, giggled, sang, called, cried, squealed, chirped, yelled, exclaimed, hummed,
  roared, whooped, cooed, boomed, announced
said: said*4, whispered*2, murmured*2, breathed, declared, remarked, announced, called, blurted
softly: softly, kindly, gently, quietly, warmly, calmly, sweetly, politely, slowly, wisely, simply, tenderly,
  cheerfully, patiently, brightly, in a low voice, with a nod, with care, helpfully
sadly: sadly, slowly, quietly, softly, shyly, weakly, faintly, gloomily, nervously, in tears, unhappily, in a small
  voice, with a sob, in a shaky voice, with a sniff
gladly: happily, loudly, proudly, gladly, brightly, cheerfully, merrily, joyfully, with joy, with a grin, with a
  smile, wildly, sweetly, cheekily, in delight, lightly, warmly, with pride
ohno: Oh no, Oh dear, Oh my, Uh-oh, Goodness, Dear me, Oh bother, Alas, Help, Poor me, Bother, Oh boy, Ouch, No, Gosh
hooray: Hooray, Yay, Hurrah, Wow, Yippee, Yes, Great, Oh joy, Wonderful, At last, Whee, Super, Bravo, Perfect,
  Terrific
manner: slowly, carefully, quickly, boldly, calmly, gently, eagerly, firmly, neatly, quietly, steadily, lightly,
  wildly, proudly, patiently, softly, swiftly, bravely, busily, nimbly, bit by bit, step by step, in a hurry, with
  care, at once, again and again, smoothly, silently, cleverly, gracefully, nervously, lazily
comfort: Do not cry, Do not worry, Cheer up, Dry your tears, Stay calm, All will be well, Be brave, Do not be sad,
  Never fear, It is all right, Take heart, Hush now, Poor you, Poor thing, I am here, It is okay, Have no fear, Do not
  give up, Smile, Wipe your eyes, We will be fine, Take a rest, Relax
replied: said*3, replied*2, answered*2, whispered, explained, added, murmured, suggested, offered
oft: often, always, sometimes, usually
"""
