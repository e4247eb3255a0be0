"""Plots about company: losing the way, finding a first friend, and building something together."""

RULES = """
Astray.Tale:
- <Go> <Scene> / <Astray.Follow> <Astray.Where> <Scare> / <Arrive> <Worry> <Astray.Tell> <Astray.Plan> / <Astray.Home>
  <Glow> <Ending>
Astray.Follow:
- ^<Next><S> saw ~<Tint><$p.creature=x> and followed it [around|past] ~<Size><$p.spot=s> and [around|past]
  ~<Size><$p.spot-s>.
- ^~<Tint><$p.creature=x> [ran|hurried|moved] by. "[Wait|Stop|Wait for me]!" called {h} and followed it past
  ~<Size><$p.spot>.
- ^<Next><S> wanted to play with ~<Tint><$p.creature=x>, so {h.he} followed it [far away|for an hour|a long way|on and
  on].
Astray.Where:
- [Soon|Then|Later] the {x} was <gone>. {h} [stopped|looked around|turned around]<How>.
- Then the {x} hid <under> ~<Size><$p.spot>, and <N> was [lost|all alone|far from home].
- "<ohno>! [I am lost|This is not the way|I want to go home]!" <Sobs>.
Astray.Tell:
- "I followed ~{x}, and now I am lost," <Says>.
- ^<Next><N> told {f.him} about the {x}. "I [want|need] to go home to my <family>," <Says>.
- "I [can not find|lost|forgot] the [way|path|road] home," <Says>. "<comfort>!" <SaysF>.
Astray.Plan:
- "What is near your home?" <AsksF>. "^~<look> <landmark=mark>," <Says>.
- "[I know|Let us find] the way to the <look> <landmark=mark>. [Come|Come with me|Follow me]!" <SaysF>.
- "Do you see the <colour> smoke over the <landmark=mark>? [That is|That must be] your home," <SaysF>.
Astray.Home:
- {h.His} <family> was waiting [at the door|by the gate|outside] with <Tasty><food>. "<hooray>! You are home!"
- "<hooray>! There is my home!" <Cheers>, and {h.his} <Kin><family> [ran out|came out] with ~<colour> <bag> of
  <Tasty><food>.
- Soon {h} was home, and {h.his} <Kin><family> [hugged|kissed] {h.him} and gave {f} some <Tasty><food>.
Astray.Lesson:
- <Learns> [home is best|the path is safe|it is good to ask|friends know the way|it is wise to stay close|strangers
  can be kind|maps help|looking ahead helps].
- {h} never followed ~{x} so far again[| without {f}].
- <Vows> [stay close|stay on the path|be more careful] <Evermore>.

Lonely.Tale:
- <Lonely.New> <Go> <Scene> / <Lonely.See> <Lonely.Feel> <Lonely.Notice> / <Lonely.Tell> <Lonely.Join> <Lonely.Fun> /
  <Glow> <Ending>
Lonely.New:
- ^<N> had no friends [here|yet|at all] and had to <Play> [alone|with {h.his} <Kin><family>].
- {h.His} <Kin><family> had moved to ~<homeadj> <home>, and {h} had no friends [here|there|yet|at all].
- [Every|Each] <daypart> {h} <Played> [all alone|alone], for {h.he} had no friends.
Lonely.See:
- <gender=f!>There <Other> was [playing|busy|having fun] with ~<Fine><thing=t> <under> ~<Size><$p.spot>.
- <gender=f!>Then {h.he} [saw|noticed] <Other>, who had ~<Fine><thing=t>.
- <gender=f!>Not far away, <Other> [showed|gave] ~<Fine><thing=t> to ~<Tint><$p.creature>.
Lonely.Feel:
- ^<Next><N> wanted to [play, too|say hello|join in], but {h.he} felt <Very><lonely=feel>.
- ^<Next><N> [stood|stopped|waited] <under> ~<Size><$p.spot> and felt <Very><lonely=feel>.
lonely: lonely, shy, nervous, alone, sad, small
Lonely.Notice:
- Then the <Dear>{t} [rolled|fell|dropped] <under> ~<Size><$p.spot>. <sound>! ^<N> [picked it up|got it|found it] and
  gave it back to {f}.
- <sound>! {f} [tripped|slipped|fell] over ~<Size><$p.spot> and dropped the <Dear>{t}. ^<N> helped {f.him}<How>.
- But {f} had [seen|noticed] {h.him} and came over<How> with the <Dear>{t}.
Lonely.Tell:
- "I [am new here|do not know anyone|have no friends here]," <Says>. "[May I|Can I] play with you?"
- "I [would like|want] to play with you and your {t}," <Says>.
- "My name is {h}," <Says>. "I [like|love] your {t}. Can you <Play>, too?"
Lonely.Join:
- "[Of course|Sure|Yes]! [We can|Let us] <Play> [together|with my <family>]," <SaysF>.
- "I [like|love] to <play=q>," <SaysF>. "[Come on|Come with me|Join me]!"
- ^<Next><F> [held out|gave {h.him}] the <Dear>{t} and said <softly>, "[Here|Please], [take it|you can have a turn|it
  is your turn]."
Lonely.Fun:
- So they <Played> and <Played>[| all <daypart>| for <number> hours].
- Soon they [laughed|played|ran] <under> ~<Size><$p.spot> with the <Dear>{t} and ~<Tint><$p.creature>.
- ^<Next><N> [taught|helped] {f} to <Hobby>, and {f} [taught|helped] {h} to <Play>.
Lonely.Lesson:
- <Learns> [it is good to say hello|new friends are near|being shy is all right|a smile helps|friends are
  everywhere|playing together is fun|asking is easy|one hello is enough].
- {h} was never {feel} again and <oft> said hello to everyone.
- <Vows> [say hello|be kind|talk|be nice] to [everyone|children|animals|friends] <Evermore>.

project: raft, fort, snowman, wagon, kennel, puppet stage, sled, swing set, bird house, tree house, mud castle, tent
stuff: wood, paper, cloth, stones, branches, rope, boxes, straw, clay, bricks, string, boards
Build.Tale:
- <Pal> <Go> <Scene> / <Build.Wish> <Build.Alone> / <Build.Crash> <Woe> <Build.Tell> / <Build.Both> <Build.Done>
  <Feast> <Glow> <Ending>
Build.Wish:
- ^<Next><N> wanted to [build|make] ~<Fine><project=x> from <stuff=s> and <stuff-s>.
- "I will [build|make] ~<Fine><project=x> with some <stuff=s>," <Cheers>.
- One <daypart> {h} found <stuff=s> and <stuff-s=s2> and [planned|wanted|decided] to [build|make] ~<Fine><project=x>.
Build.Alone:
- "[May|Can] I help?" <AsksF>. "No, I [can|will] do it [alone|by myself|without you]!" [said|shouted|snapped|yelled]
  <N>.
- ^<Next><F> [offered|wanted|hoped] to help, but <N> said no<How>.
- "[Go away|Leave me alone|I do not need you|It is mine]!" [said|shouted|snapped|yelled] <N>. ^<Next><F> [left|went
  away|sat down|walked away]<How>.
Build.Crash:
- <sound>! The <Dear>{x} [fell down|broke|came apart|fell over][| with a loud noise] and landed on ~<Size><$p.spot>.
- ^<Next>~[big|strong|wild|cold] wind [blew|came]. <sound>! The <Dear>{x} [fell down|broke|came apart|fell over].
- ^~<Tint><$p.creature> [ran|jumped|bumped] into the <Dear>{x}. <sound>! It [fell down|broke|came apart|fell over].
Build.Tell:
- "I can not do it alone," <Says>. "<comfort>! I [will|can] help," <SaysF>.
- "[I am sorry|I was wrong|I was rude]. Will you help me?" <AsksH>. "<comfort>!" <SaysF>.
- "I [was wrong|am sorry|was silly]," <Says>. "<comfort>! [We can|Let us] [start|try] again," <SaysF>.
Build.Both:
- ^<Next><N> held the {s}, and <F> [tied|fixed|glued] the <Dear>{x} with ~<Fine><tool>.
- ^<Next><F> brought <stuff-s> and <number> <keepsake>, and <N> [painted|covered|decorated] the <Dear>{x} with
  <colour> paint.
- They worked [side by side|together] for <number> <span> and [sang|laughed|talked about <food>].
Build.Done:
- <Finally> the <Dear>{x} was [ready|done|finished]. "<hooray>! [We did it|It is perfect|How beautiful]!" <CheersF>.
- <Finally> the <Dear>{x} [stood|was strong], and it was [better|bigger|stronger|prettier] than before.
- "<hooray>! [Our {x} is ready|We did it|It is perfect]!" <Cheers>. ^<S> [hugged|thanked|kissed] {f}.
Build.Lesson:
- <Learns> [two are better than one|it is good to get help|work can be fun|friends make work easy|many hands
  help|nobody can do it all|helping is fun|teams are strong].
- {h} never [worked alone|said no|sent {f} away] again, and they [gave|showed] the <Dear>{x} to {h.his} <Kin><family>.
- <Vows> [share the work|ask for help|work with {f}] <Evermore>.
"""
