"""Plots about a treasure: one is lost and found again, one gets stuck high up."""

RULES = """
Lost.Tale:
- <Treasure> <Go> <Scene> / <Lost.Event> <Woe> / <Arrive> <Worry> <Lost.Tell> <Lost.Search> <Lost.Find> / <Glow>
  <Ending>
Lost.Event:
- ^<Next><S> put the <Dear>{t} <under> ~<Size><$p.spot> and went to <Play>. But when {h.he} came back, it was <gone>.
- ^<Next><S> [chased|followed|ran after] ~<Tint><$p.creature> [around|past] ~<Size><$p.spot>. [Soon|Then|After that]
  the <Dear>{t} was <gone>.
- ^<Next><S> [fell asleep|sat down|took a nap] <under> ~<Size><$p.spot>. When {h.he} [got up|woke up|looked around],
  the <Dear>{t} was <gone>.
- ^<Next><S> [jumped over|ran past|climbed over|hopped around] ~<Size><$p.spot> and did not see the <Dear>{t} fall.
  Soon it was <gone>.
gone: gone, missing, not there, nowhere to be seen, lost
Lost.Tell:
- "[I lost|I can not find|I dropped|Someone took] my <Dear>{t}!" <Sobs>. "<comfort>!" <SaysF>.
- "My <Dear>{t} is <gone>!" <Sobs>. "[We will|Let us|I will|I can help you] [find|look for] it," <SaysF>.
Lost.Search:
- They looked <under> ~<Size><$p.spot=s> and <under> ~<Size><$p.spot-s>, but they found only <number> <keepsake>.
- They asked ~<Tint><$p.creature=c> and ~<Tint><$p.creature-c>, but [nobody|no one] had seen it.
- First they [searched|looked] <under> ~<Size><$p.spot=s>. Then they [searched|looked] <under> ~<Size><$p.spot-s>. It
  was not there.
Lost.Find:
- <Finally> {f} looked <under=w> ~<Size><$p.spot=w.spot>. "[Here it is|I found it|I see it|Look]!" <CheersF>.
- <Finally> {f} saw something {t.colour} <under=w> ~<Size><$p.spot=w.spot>. It was the <Dear>{t}!
- Then ~<Tint><$p.creature> showed {f} where to look. There, <under=w> ~<Size><$p.spot=w.spot>, was the <Dear>{t}!
Lost.Lesson:
- <Vows> [take care of|look after|hold on to] the <Dear>{t} <Evermore>.
- <Learns> a [good|true|kind] friend is better than any {t}.
- <Vows> [put things away|keep things safe|ask for help|be careful] <Evermore>.

Stuck.Tale:
- <Treasure> <Go> <Scene> / <Stuck.Event> <Stuck.Try> <Woe> / <Arrive> <Worry> <Stuck.Idea> <Stuck.Down> / <Thanks>
  <Glow> <Ending>
perch: a tree, a roof, a wall, a pole, a tower, a flag pole, a chimney, a bridge
Stuck.Event:
- ^<Next><N> [threw|tossed|kicked] the <Dear>{t} [up|high up]. <sound>! It landed on <perch=top>.
- [Suddenly|All at once|Just then|But then], ~<Tint><$p.creature> [took|grabbed|threw] the <Dear>{t}. <sound>! It
  [fell|landed] on <perch=top>.
- [Suddenly|All at once|Just then|But then], the wind [carried|swept|lifted|blew] the <Dear>{t} up. <sound>! It landed
  on <perch=top>.
Stuck.Try:
- ^<Next><S> [jumped|reached] up <number> times, but the <Dear>{t} was [too high|too far up].
- ^<Next><S> threw <number> <keepsake> at it, but the <Dear>{t} [did not move|did not come down|stayed there].
- ^<Next><S> climbed on ~<Size><$p.spot>, but {h.he} [slipped|fell down|was too small]. "<ohno>!" <Sobs>.
Stuck.Idea:
- "[I know what to do|I have an idea|I can fix this]!" <SaysF> and [ran to get|came back with|brought]
  ~<Fine><tool=tool>.
- ^<Next><F> [thought and thought|thought for a while|looked around] and found ~<Fine><tool=tool> <under>
  ~<Size><$p.spot>.
- "[My <family>|The farmer|The baker] has ~<Fine><tool=tool>. [Wait here|Come with me]," <SaysF>, and soon they had
  it.
Stuck.Down:
- ^<Next><F> [used|lifted|took|held up] the <Sturdy>{tool}<How>. <sound>! The <Dear>{t} [fell|came|slid] down.
- ^<Next><N> held {f} [tight|by the hand], and <F> [used|lifted|swung] the <Sturdy>{tool}<How>. <sound>! The <Dear>{t}
  [fell|came|slid] down.
- It took <number> tries with the <Sturdy>{tool}, but at last the <Dear>{t} [fell|came|slid] down<How>.
Stuck.Lesson:
- <Learns> [friends can help|it is good to ask|two are better than one|a plan helps|tools are useful|crying does not
  help|thinking helps|things can be fixed].
- <Vows> [stay calm|ask a friend|think first|be careful] <Evermore>.
"""
