"""Plots about a good heart: telling the truth about something broken, sharing food, helping one in trouble."""

RULES = """
Broken.Tale:
- <inside=p!><Broken.Day> <Scene> <Broken.Thing> / <Broken.Crash> <Broken.Hide> <Woe> / <Arrive> <Broken.Advice> /
  <Broken.Truth> <Broken.Forgive> <Glow> <Ending>
Broken.Day:
- One <weather> <daypart>, {h} was [alone in|running around|dancing around|jumping around] the house with
  ~<Fine><thing>.
- It was ~<weather> <daypart>, and <N> wanted to stay in the house and <Hobby>.
- On ~<weather> <daypart> in <season>, {h} [stayed|was|played] in the house with ~<Fine><thing>.
Broken.Thing:
- On the [table|shelf|desk] [stood|was] ~<Fine><fragile=b>. It belonged to {h.his} <Kin><family=owner>.
- {h.His} <family=owner> had ~<Fine><fragile=b>. "Please do not touch it," {h.his} {owner} [always|often] said.
- {h.His} <family=owner> [loved|liked] the <colour> <fragile=b> [by the door|on the table|near the window|on the
  shelf] best of all.
Broken.Crash:
- ^<Next><N> [threw|kicked|tossed|rolled] ~<Fine>ball<How>. <sound>! It broke the <Dear>{b}.
- ^<Next><N> [ran|hopped|jumped|spun] by<How>. <sound>! The <Dear>{b} fell down and broke.
- ^<Next><N> [picked up|held|took|lifted] the <Dear>{b}<How>. <sound>! It broke into <number> pieces.
Broken.Hide:
- "<ohno>!" <Sobs>. ^<S> [put|pushed|hid] the pieces <under> ~<Size><$p.spot>.
- ^<Next><S> [put|pushed|hid] the pieces <under> ~<Size><$p.spot><How>. "[Nobody|No one] will know," <Says>.
Broken.Advice:
- "I broke the <Dear>{b}," <Says>. "[Tell|Go and tell] your {owner} [the truth|what happened]," <SaysF>.
- ^<Next><N> told {f} about the <Dear>{b}. "<comfort>! [Be honest|Tell the truth|Go and tell]," <SaysF>.
- ^<Next><N> showed {f.him} the pieces<How>. "[You must|You should|Let us] tell your {owner}," <SaysF>.
Broken.Truth:
- ^<Next><N> went to {h.his} {owner}. "I broke your {b}. I am <Very>sorry," <Says>.
- ^<Next><N> told {h.his} {owner} [everything|the truth|all about it]<How>. "I am <Very>sorry," <Says>.
- "[It was me|It was my fault|I did it]. I broke the <Dear>{b}!" <Sobs>.
Broken.Forgive:
- "<comfort>! [Thank you for the truth|You were honest|I forgive you]," said {h.his} <Kin>{owner} <softly>.
- {h.His} {owner} [smiled|nodded|came near] and said <softly>, "<comfort>!"
- {h.His} {owner} was not [angry|cross|mad] at all and [hugged|kissed|thanked] {h.him}<How>.
Broken.Lesson:
- <Learns> [the truth is best|it is good to be honest|being honest is brave|lies make things worse|the truth
  helps|nobody likes lies|lies are heavy|all can be forgiven].
- <Vows> [tell the truth|be more careful|play outside|be honest] <Evermore>.

Share.Tale:
- <Pal> <Go> <Scene> / <Share.Food> <Share.Ask> <Share.No> / <Share.Mishap> <Woe> <Share.Kind> / <Share.Sorry> <Glow>
  <Ending>
Share.Food:
- ^<Next><N> had ~<colour> <bag=bag> [full of|filled with] <Tasty><food=m>. {m.They} smelled [so good|very
  good|wonderful].
- {h.His} <family> had [given|packed] {h.him} ~<colour> <bag=bag> of <Tasty><food=m>.
- ^<Next><N> sat <under> ~<Size><$p.spot> with ~<colour> <bag=bag> of <Tasty><food=m>.
Share.Ask:
- "[May I have some|Can I have some|Will you share your|Could I try the] {m}?" <AsksF>.
- ^<Next><F> was hungry. "I have [no food|nothing to eat|no lunch]. Can I have some {m}?" <AsksF>.
- ^<Next><F> [looked at|pointed at|smelled] the <Tasty>{m} and asked <softly>, "[Can|Will] you share with me?"
Share.No:
- "No! {m.They} {m.are} [all mine|only for me|just for me]," [said|shouted|snapped|yelled] <N> and
  [turned|looked|walked] away.
- ^<Next><N> [hid|hugged|held] the {bag} and [said|shouted|snapped], "No, [I want to eat {m.them} all|you can not have
  any]!"
- "[Go away|Leave me alone|No, no, no]! I want [all of {m.them}|{m.them} all for me]!" [said|shouted|snapped|yelled]
  <N>.
Share.Mishap:
- ^<Next><N> ate and ate[| and ate]. Soon {h.his} tummy [hurt|felt bad|began to ache], and the {bag} was still
  [full|half full|heavy].
- [Suddenly|All at once|Just then|But then], {h} [fell|slipped|tripped] over ~<Size><$p.spot>. <sound>! The <Tasty>{m}
  fell [into the mud|on the ground|in the dirt].
- [Suddenly|All at once|Just then|But then], ~<Tint><$p.creature> [took|grabbed|stole] the {bag}. <sound>! The
  <Tasty>{m} {m.was} gone.
Share.Kind:
- But {f} came back with ~<colour> <bag> of <Tasty><food>. "You can have [half|some] of mine," <SaysF>.
- ^<Next><F> [sat down|stopped] beside {h} and [gave|handed] {h.him} some <Tasty><food>. "[Let us|We can] share,"
  <SaysF>.
- ^<Next><F> was not [angry|cross|mad] at all. "[Here|Please], have some of my <Tasty><food>," <SaysF>.
Share.Sorry:
- "I am sorry that I did not share," <Says>. "<comfort>!" <SaysF>.
- ^<Next><N> [looked down|blushed|turned red]. "I was [selfish|greedy|unkind|mean]. I am sorry," <Says>.
- "[Next time|Tomorrow|From now on] I will share [everything|all my food|my <food>] with you," <Says>.
Share.Lesson:
- <Learns> [it is good to share|sharing is fun|sharing is caring|friends are better than {m}|half is enough|greed is
  bad|giving feels good|food tastes best with a friend].
- {h} was never [greedy|selfish|mean] again and <oft> [kept|saved] some <Tasty><food> for {f}.
- <Vows> share {h.his} <food> <Evermore>.

Rescue.Tale:
- <Go> <Scene> / <Rescue.Hear> <Rescue.See> <Rescue.Feel> / <Rescue.Plan> <Rescue.Free> / <Rescue.Care> <Rescue.Gift>
  <Glow> <Ending>
Rescue.Hear:
- [Suddenly|Then|All at once] {h.he} heard ~[small|sad|tiny|weak] [voice|sound|cry]. "[Help|Help me|Please help]!"
  [it|the voice] <sobbed>.
- <sound>! [Something|Somebody] [fell|cried|called] <under> ~<Size><$p.spot>. "[What|Who] [was|is] that?" asked <N>.
- ^<Next><N> stopped to <Play>, but then {h.he} heard ~[small|sad|tiny|weak] [voice|sound|cry].
Rescue.See:
- <gender=f!>It was ~<young> <Tint><$p.creature=f.kind> named <$f.sex.name-h=f>, [stuck|trapped|caught] <under>
  ~<Size><$p.spot=trap>.
- <gender=f!>^~<young> <Tint><$p.creature=f.kind> named <$f.sex.name-h=f> was [caught|trapped|stuck] <under>
  ~<Size><$p.spot=trap> and could not get [out|free|home].
- <gender=f!>There {h.he} found ~<young> <Tint><$p.creature=f.kind> named <$f.sex.name-h=f> who was
  [caught|trapped|stuck] <under> ~<Size><$p.spot=trap>.
Rescue.Feel:
- ^<Next><F> was <Very><fright=feel>. "<comfort>!" <SaysH>.
- "I am <Very><fright=feel>," <SobsF>. "<comfort>!" <SaysH>.
- ^<Next><F> [shook|cried|trembled], for {f.he} was <Very><fright=feel>. "<comfort>!" <SaysH>.
Rescue.Plan:
- ^<Next><N> [pulled|pushed|lifted|kicked]<How>, but it was too [heavy|big|strong|tight]. So {h.he}
  [got|took|fetched|found] ~<Fine><tool=tool>.
- ^<Next><N> looked around<How> and found ~<Fine><tool=tool>. "This [will|might] [help|work]!" <Cheers>.
- ^<Next><N> thought<How>. Then {h.he} [got|took|brought|borrowed] ~<Fine><tool=tool> from {h.his} <Kin><family>.
Rescue.Free:
- <sound>! {f} was free [at last|again]! "<hooray>!" <CheersF> and [hugged|kissed|thanked] {h}.
- <sound>! The <Nasty>{trap} moved, and <F> [jumped|ran|came] out. "<hooray>! [Thank you|You saved me]!" <CheersF>.
- <Finally> {f} [came|was] free. "You are <Very><virtue>! Thank you, {h}!" <CheersF>.
Rescue.Care:
- ^<Next><N> gave {f} some <Tasty><food> and [wrapped|covered|dressed] {f.him} in ~<fabric> <colour>
  [blanket|scarf|coat].
- ^<Next><N> [took|walked|carried] {f} home to {f.his} [family|mom|dad|brothers and sisters] <under> ~<Size><$p.spot>.
- ^<Next><N> [washed|cleaned] {f}'s [face|feet] and gave {f.him} some <Tasty><food=dish> and <food-dish>.
Rescue.Gift:
- [The next|One] <daypart>, {f} [came|ran] to see {h} and brought {h.him} <number> <colour> <keepsake>.
- To say thank you, {f} gave {h} ~<Fine><thing>.
- [Later|After that], {f} showed {h} [a secret place|a hidden path|the way] with <number> <colour> <keepsake> <under>
  ~<Size><$p.spot>.
Rescue.Lesson:
- <Learns> [it feels good to help|helping makes a friend|kindness comes back|it is good to be kind|everyone needs
  help|small deeds are big|love is strong|helping is fun].
- <Vows> help [everyone|anyone|animals|others] in [trouble|danger|need] <Evermore>.
"""
