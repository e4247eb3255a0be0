"""Plots about courage: a fear is faced, and a skill is learned by trying again."""

RULES = """
Fear.Tale:
- <Go> <Scene> / <Fear.Meet> <Fear.Stop> <Scare> / <Arrive> <Worry> <Fear.Advice> / <Fear.Dare> <Glow> <Ending>
scary (deed, did): bridge/cross/crossed, cave/enter/entered, tunnel/enter/entered, stream/cross/crossed,
  path/follow/followed, tower/climb/climbed, cliff/climb/climbed, hole/jump over/jumped over, ditch/jump over/jumped
  over, wall/climb/climbed
dread: dark, deep, high, steep, long, wild, shaky, cold, narrow, slippery
Fear.Meet:
- Then {h.he} came to ~<dread=dread> and <dread-dread> <scary=x>. To get home, {h} had to {x.deed} it.
- ^<Next><N> wanted to find some <Tasty><food>. But first {h.he} had to <scary=x!>{x.deed} ~<dread=dread> and
  <dread-dread> {x}.
- The wind blew {h.his} <colour> <wear> away. To get it back, {h} had to <scary=x!>{x.deed} ~<dread=dread> and
  <dread-dread> {x}.
Fear.Stop:
- {h} took <number> steps<How>, but {h.his} [legs|knees|hands] [shook|felt weak|felt cold].
- <sound>! ^~<Tint><$p.creature> [jumped|ran|came] by, and <N> [hid|ran back|fell down] <under> ~<Size><$p.spot>.
- "[|<ohno>! ]I [can not|do not dare to|will never] {x.deed} [it|that]!" <Sobs>.
Fear.Advice:
- "[Take|Hold] my <colour> <wear=aid>," <SaysF>. "It [helps|always helps] me to be [brave|strong|bold]."
- "<comfort>! [Sing a song|Count to <number>|Think of <Tasty><food>|Take a breath]," <SaysF>.
- "<comfort>! [Let us|We can] do it [together|step by step|hand in hand]," <SaysF>.
Fear.Dare:
- So {h} took [a breath|{f} by the hand|one step] and {x.did} the <Nasty>{x}<How>. "<hooray>!" <CheersF>.
- <number=n!>{h} counted to {n} and {x.did} the <Nasty>{x}<How>. "<hooray>! [I did it|It was easy|It was fun]!"
  <Cheers>.
- ^<Next><N> {x.did} the <Nasty>{x}<How>, and <F> [sang|cheered|clapped|helped]. "<hooray>!" <Cheers>.
Fear.Lesson:
- <Learns> [friends make us brave|it is good to be brave|it is all right to be afraid|fear can be small|fear goes
  away|courage grows|everyone is afraid at times|one step is enough].
- {h} [told|said to] {h.his} <Kin><family>, "[I am not afraid anymore|I can be brave|I {x.did} the {x} today]!"
- <Vows> be [brave|bold|strong] <Evermore>.

skill (did): swim/swam, juggle/juggled, ride a bike/rode a bike, skate/skated, play the violin/played the violin,
  ski/skied, stand on one hand/stood on one hand, row a boat/rowed a boat, play the guitar/played the guitar, swing by
  one arm/swung by one arm, walk on a rope/walked on a rope, do a flip/did a flip
Learn.Tale:
- <Learn.Wish> <Go> <Scene> / <Learn.Try> <Woe> / <Arrive> <Worry> <Learn.Tell> / <Learn.Work> <Learn.Win> <Glow>
  <Ending>
Learn.Wish:
- ^<N> wanted to <skill=x> [like|with] {h.his} <Kin><family>.
- {h.His} <Kin><family=model> could <skill=x>, and <N> [wanted|hoped|wished] to do it, too.
- "I [want|wish|would love] to <skill=x>," {h} [often|always] told {h.his} <Kin><family>.
Learn.Try:
- ^<Next><S> tried to {x} <under> ~<Size><$p.spot>. <sound>! ^<S> [fell|slipped|landed] on {h.his}
  [back|nose|side|knees|head].
- <number=n!>{h} tried {n} times to {x}, but every time {h.he} [fell|slipped|landed] on {h.his}
  [back|nose|side|knees|head].
- "[Look at me|Watch me|Here I go]!" [called|shouted|said] {h} and tried to {x}. <sound>! ^<S> bumped into
  ~<Size><$p.spot>.
Learn.Tell:
- "I can not {x}!" <Sobs>. "<comfort>! [I will teach you|I will show you|I can help]," <SaysF>.
- "I want to {x}," <Says>. "[Try it|Do it] <manner>, and [count to <number>|do not look down|think of <food>],"
  <SaysF>.
Learn.Work:
- They [practiced|worked|tried] every <daypart> for <number> <span>, and <N> got [better|stronger|faster].
- ^<Next><N> kept trying<How> and fell <number> times, but {h.he} did not [stop|rest|give up].
- For <number> <span> {h} [practiced|trained] [hard|a lot] and [ate|had] only <Tasty><food>.
Learn.Win:
- Then, one <weather> <daypart>, {h} {x.did} [on {h.his} own|without any help|like a star]! "<hooray>!" <CheersF>.
- <Finally> {h} {x.did}<How>! "<hooray>! [I can do it|Look at me|I did it]!" <Cheers>.
- <number=n!><Finally> {h} {x.did} while {n} <colour> <$p.creature=c!>{c.s} watched. "<hooray>!" <CheersF>.
Learn.Lesson:
- <Learns> [practice helps|it is good to try|nobody is good at first|falling is fine|learning takes time|trying is
  brave|it pays to be patient|hard things can be fun].
- <Vows> keep [trying|learning|going|practicing] <Evermore>.
- {h} never gave up again and taught {h.his} <Kin><family> to {x}<How>.
"""
