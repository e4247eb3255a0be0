"""What plots share: how things and people are called, speech, feelings, the way to a place, a friend, the ending."""

RULES = """
Size:
- [|<look> |<size> |<size> <look> ]
Tint:
- [|<mood> |<colour> |<mood> <colour> ]
Fine:
- [|<thingadj> |<colour> |<thingadj> <colour> ]
Tasty:
- [2:|<foodadj=savor> |<foodadj=savor>, <foodadj-savor> ]
Kin:
- [|<kin> ]
How:
- [| <manner>]
Dear:
- [|<dear> ]
Sturdy:
- [|<sturdy> ]
Nasty:
- [|<nasty> ]
Ending:
- <$plot.Lesson>
- <$plot.Lesson> <Tail>
- <Tail>
Very:
- [2:|so |very |really |quite |truly |very, very |ever so ]
Next:
- [8:|then |soon |now |just then, |after that, |a moment later, |right then, |at that, ]
N:
- 5:{h}
- 2:the {h.kind}
- 3:the <pet> {h.kind}
S:
- 4:{h}
- 4:{h.he}
- the {h.kind}
- 2:the <pet> {h.kind}
F:
- 5:{f}
- 2:the {f.kind}
- 3:the <pet> {f.kind}
Sobs:
- <sobbed> <N>[| <sadly>]
- <S> <sobbed>[| <sadly>]
Says:
- <said> <N>[| <sadly>]
- <S> <said>[| <sadly>]
Cheers:
- <cheered> <N>[| <gladly>]
- <S> <cheered>[| <gladly>]
SaysH:
- <said> <N>[| <softly>]
- <S> <said>[| <softly>]
AsksH:
- [asked|wondered|begged] <N>[| <sadly>]
- <S> [asked|wondered|begged][| <sadly>]
SobsF:
- <sobbed> <F>[| <sadly>]
- <F> <sobbed>[| <sadly>]
SaysF:
- <replied> <F>[| <softly>]
- <F> <replied>[| <softly>]
AsksF:
- [asked|wondered] <F>[| <softly>]
- <F> [asked|wondered][| <softly>]
CheersF:
- <cheered> <F>[| <gladly>]
- <F> <cheered>[| <gladly>]

Learns:
- [|That day |In the end, |At last, |So ]{h} [learned|knew|saw|understood|found out] that
Vows:
- [|That day |In the end, |At last, |So ]{h} [promised|decided|wanted|tried|chose] to
Evermore:
- [from now on|from then on|every day|always|all {h.his} life|ever after|each <daypart>]
Finally:
- [3:At last,|3:Finally,|3:In the end,|After <number> <span>,]

Woe:
- ^<Next><S> felt <Very><sadness=feel>[| and <sadness-feel>].
- "I [feel|am] <Very><sadness=feel>!" <Sobs>.
- ^<Next><S> was so <sadness=feel> that <number> [tears|big tears|small tears] fell on {h.his} <Fine><wear>.
- ^<Next><S> sat <under> ~<Size><$p.spot> and was <Very><sadness=feel>.
- How <sadness=feel> {h} was! ^<Next><S> could not <Play> or <Hobby>.
Scare:
- ^<Next><S> felt <Very><fright=feel>[| and <fright-feel>].
- "I [feel|am] <Very><fright=feel>!" <Sobs>.
- ^<Next><S> was so <fright=feel> that {h.he} hid <under> ~<Size><$p.spot>.
- ^<Next><S> was <Very><fright=feel> and thought of {h.his} <Kin><family>.
- How <fright=feel> {h} was! {h.His} [heart|legs|hands|nose|knees] [shook|felt cold|felt weak|went bump, bump].

Treasure:
- ^<N> had ~[|<thingadj> ]<colour=t.colour> <treasure=t>. It was a [gift|present|surprise] from {h.his}
  <Kin><family=giver>.
- {h.His} <family=giver> had [given|made|bought|sent] {h.him} ~[|<thingadj> ]<colour=t.colour> <treasure=t>, and {h.he}
  [loved|adored] it.
- Of all {h.his} [things|toys|treasures], {h} [loved|liked] ~[|<thingadj> ]<colour=t.colour> <treasure=t> best. It came
  from {h.his} <Kin><family=giver>.
- One <daypart>, {h.his} <Kin><family=giver> [opened|brought] ~<Fine><bag>. Inside was ~[|<thingadj>
  ]<colour=t.colour> <treasure=t> for {h}.

Go:
- One <weather> <daypart>, <N> <went> to the <placeadj> <place=p> to <Play>.
- It was ~<weather> <daypart>, and <N> [decided|wanted|hoped|planned] to <Play> <place=p!>{p.at} the <placeadj> {p}.
- On ~<weather> <daypart> in <season>, {h} took ~<bag> of <Tasty><food> and <went> to the <placeadj> <place=p>.
- "[What|Such] ~<weather> <daypart>!" [said|thought] {h}, and {h.he} <went> to the <placeadj> <place=p>.

Scene:
- There <S> saw ~<Tint><$p.creature=c>, <number> <colour> <$p.creature-c=d!>{d.s} and ~<Size><$p.spot>.
- ^~<Tint><$p.creature> [waved|smiled|winked|nodded|blinked] at {h.him}, and <N> [waved|smiled|winked|nodded] back.
- The air smelled [of|like] <smell=scent> and <smell-scent>, and <number> <Tint><$p.creature=d!>{d.s}
  [rested|slept|sat|hid] <under> ~<Size><$p.spot>.
- ^<Next><S> [watched|heard|saw] ~<Tint><$p.creature=c> and ~<Tint><$p.creature-c> [play|sing|run|jump|talk|eat]
  <under> ~<Size><$p.spot>.

Arrive:
- <gender=f!>Just then, <Other> <went> by [with ~<bag> of <Tasty><food>|in ~<Fine><wear>].
- <gender=f!>[A minute|A little while|An hour] [later|after that], <Other> [came by|stopped|sat down] [with
  ~<Fine><thing>|in ~<Fine><wear>].
- <gender=f!>^<Other> [heard|saw|noticed] {h} from [behind|beside|near] ~<Size><$p.spot> and [came over|hurried
  over|ran to help].
- <gender=f!>[Luckily|By good luck|Happily], <Other> was [resting|playing|reading|singing|dancing|eating
  <Tasty><food>] <under> ~<Size><$p.spot>.
Other:
- ~<trait=nature>[| little| young| small|, <trait-nature>] <$f.sex.kind-h.kind=f.kind> [named|called]
  <$f.sex.name-h=f>

Pal:
- <gender=f!>{h.His} [best|good|dear|closest] friend was <Other>.
- <gender=f!>^<Other> was {h.his} [best|good|dear|closest] friend.
- <gender=f!>{h} [often|always] played with <Other> who [lived|had ~<home>] [next door|nearby|across the road|down the
  road|around the corner].

Worry:
- "[|<ohno>! ][What is wrong|What is it|What happened|Are you all right][|, {h}]?" <AsksF>.
- "[|<ohno>! ][Why do you look|Why are you] so {feel}[|, {h}]?" <AsksF>.
- ^<Next><F> [sat|stopped|stood] [next to|beside|near] {h}. "[Can I help|What happened|Do you need help|Is something
  wrong]?" <AsksF>.

Thanks:
- "[Thank you|Thanks|Many thanks][|, {f}]! You are ~[2:|very |really ]<virtue> friend," <Cheers>.
- ^<Next><N> [hugged|thanked|kissed] {f} and gave {f.him} ~<Fine><thing> and some <Tasty><food>.
- "<hooray>! [You did it|We did it|You are the best][|, {f}]!" <Cheers>. ^<Next><F>
  [laughed|danced|hopped|clapped|bowed|blushed][| <gladly>].

Glow:
- ^<Next><S> felt <Very><joy=glad>[| and <joy-glad>].
- "I [feel|am] <Very><joy=glad>!" <Cheers>.
- ^<Next><S> was so <joy=glad> that {h.he} [danced|laughed|sang|jumped|clapped|hopped|cheered|skipped][| <gladly>]
  <under> ~<Size><$p.spot>.
- ^<Next><S> was <Very><joy=glad> and [hugged|kissed|thanked|called] {h.his} <Kin><family><How>.

Feast:
- ^<Next>they [ate|shared|had] some <Tasty><food=dish> and <Tasty><food-dish> <under> ~<Size><$p.spot>.
- ^<Next>they [ate|shared|had] ~<bag> of <Tasty><food> and [watched|fed|counted|painted] the
  <Tint><$p.creature=c!>{c.s}.
- {h.His} <family> [made|cooked|brought] them some <Tasty><food=dish> with <Tasty><food-dish>.

Tail:
- From that day on, {h} and {f} <oft> <Played> [together|every <daypart>|in the <season>|when it was <weather>].
- After that, {h} and {f} were [best|good|great|close|dear] friends, and they <oft> <Played>[| together].
- [Every|Each] <daypart>, {h} and {f} [met|sat|played|ate <food>] <under> the <Size><$p.spot> to <Play> or <Hobby>.
- That <dark> {h} dreamed of {f}, ~<Tint><$p.creature> and <number> <colour> <keepsake>.
"""
