"""Who the stories are about: names, kinds, natures, families, homes, clothes, and what they like to do.

Names and kinds are few on purpose: they recur through a whole story, and a model learns to carry a word along only once
it has met that word in many stories. What is said once may come from a long table."""

TABLES = """
gender (sex, he, him, his, He, His): girl/girl/she/her/her/She/Her, boy/boy/he/him/his/He/His
girl.name: Lily, Mia, Anna, Lucy, Molly, Daisy, Nora, Emma, Bella, Alice
boy.name: Tom, Max, Ben, Sam, Leo, Jack, Finn, Oscar, Henry, Peter
animal: fox, rabbit, bear, mouse, duck, frog, kitten, puppy, turtle, monkey
girl.kind: girl*10, +animal
boy.kind: boy*10, +animal
trait: kind, brave, clever, cheerful, curious, shy, gentle, silly, playful, happy, friendly, funny, polite, quiet,
  busy, honest, sleepy, merry, lively, jolly, dreamy, careful, helpful, thoughtful, chatty, smart, sweet, patient,
  eager, bold, calm, loyal, proud, neat, wise, strong, quick, caring, loving, tidy, warm, daring, graceful, noble,
  nice, modest, stubborn
family: mom, dad, grandma, grandpa, aunt, uncle, sister, brother, cousin
home: cottage, house, hut, cabin, treehouse, tower, barn, castle, village, town, tent, farmhouse, burrow, windmill,
  mansion, shack, inn, flat
homeadj: cozy, tidy, tall, warm, wooden, crooked, snug, old, quiet, neat, round, sunny, simple, pretty, tiny, narrow,
  dusty, little, white, fine, grand, hidden, strange, wide
landmark: river, mill, bridge, pond, road, well, church, orchard, stream, bakery, mountain, field, valley, waterfall,
  cliff, harbor, forest, garden, lighthouse, market
wear: hat, scarf, coat, cap, ribbon, jacket, sweater, vest, cape, bow, belt, apron, necklace, bracelet, badge, bonnet,
  shirt, raincoat, collar, jumper, headband, helmet, cloak, tie
fabric: woolly, striped, spotted, soft, fuzzy, silky, cotton, checkered, shiny, fluffy, warm, velvet, patched,
  knitted, woven, frilly, torn, thick, thin
colour: red, blue, green, yellow, brown, white, black, gray, orange, pink, purple, golden, silver, violet, crimson,
  tan, peach, lilac, navy, lime
eyeadj: bright, big, round, shiny, sparkling, gentle, sleepy, twinkling, friendly, kind, clever, dreamy, warm, tiny,
  pretty, lovely
face: smile, laugh, voice, nose, chin, grin, giggle
faceadj: sweet, soft, funny, cute, lovely, tiny, wonderful, happy, little, merry
hobby: sing songs, read books, tell jokes, play the drum, blow bubbles, build towers, sail toy boats, hum tunes, play
  the piano, write letters, knit socks, solve puzzles, fold paper birds, listen to stories, water plants, make paper
  hats, do magic tricks, play cards, ring bells, comb wool, polish spoons, sew pillows, write poems, play chess, visit
  friends, wash the dog, plant trees, dress up
play (did): climb trees/climbed trees, jump in puddles/jumped in puddles, dig holes/dug holes, dance/danced, fly
  kites/flew kites, roll down hills/rolled down hills, play hide and seek/played hide and seek, watch the
  clouds/watched the clouds, run races/ran races, hop on one foot/hopped on one foot, feed the birds/fed the birds,
  skip rope/skipped rope, throw sticks/threw sticks, kick a ball/kicked a ball, whistle/whistled, play tag/played tag,
  spin in circles/spun in circles, turn cartwheels/turned cartwheels, sing loudly/sang loudly, swing on ropes/swung on
  ropes, jump over logs/jumped over logs, march and drum/marched and drummed, chase leaves/chased leaves, walk
  backward/walked backward, draw in the dirt/drew in the dirt, sit in the sun/sat in the sun, roll a hoop/rolled a
  hoop, splash in the rain/splashed in the rain, build dams/built dams, wave at trains/waved at trains
kin: dear, kind, old, busy, funny, tired, happy, tall, clever, gentle, quiet, jolly, wise, sweet, proud, strong,
  smart, calm, cheerful, careful, brave, patient, friendly, sleepy
eyecolour: blue, green, brown, black, gray, golden, silver, violet
virtue: kind, brave, clever, gentle, smart, helpful, thoughtful, sweet, good, true, great, dear, strong, wise, caring,
  patient, loyal, wonderful, lovely, fine
"""
