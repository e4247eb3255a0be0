"""How every story begins: who it is about, how they look and live, what they like; then a plot is drawn."""

RULES = """
plot: Lost, Stuck, Broken, Share, Fear, Learn, Rescue, Astray, Lonely, Build
Story:
- <gender=h!><Hero> <About> / <plot=plot!><$plot.Tale>
- <gender=h!><Hero> <Habit> / <plot=plot!><$plot.Tale>

Hero:
- Once upon a time,[| <Home>,] there [was|lived] <Who> [named|called] <$h.sex.name=h>.
- [Once|Long ago|Not long ago|Some time ago], <Who> [named|called] <$h.sex.name=h> lived <Home>.
- <$h.sex.name=h> was <Who> who [lived|had a home] <Home>.
- ^<Home> [there lived|lived|there was] <Who> [named|called] <$h.sex.name=h>.
Who:
- ~<trait=nature>[| little| young| small| and <trait-nature>] <$h.sex.kind=h.kind>
Home:
- in ~<homeadj> <home> [by|near|beside|behind|close to] ~<look> <landmark>

About:
- {h.He} [always|often|usually] wore ~<fabric=cloth> <colour> <wear=worn> and ~<fabric-cloth> <colour> <wear-worn>.
- {h.He} had <eyeadj> <eyecolour> eyes, ~<faceadj=mien> <face=part> and ~<faceadj-mien> <face-part>.
- {h.His} favorite color was <colour>, and {h.he} liked to eat <Tasty><food=dish> [and|with|or] <food-dish>.
- {h.He} lived with {h.his} <Kin><family=kin> and {h.his} <Kin><family-kin>, who [liked|loved] to <Hobby>.
- In ~<Fine><bag> {h.he} kept <number> <colour> <keepsake=hoard>, <number> <keepsake-hoard> and ~<Fine><thing>.
- {h.He} [had|owned] ~<Fine><thing=toy>, ~<Fine><thing-toy> and <number> <colour> <keepsake>.
- {h.His} <Kin><family> [often|always] gave {h.him} <Tasty><food=dish>, <Tasty><food-dish=meal> and <food-dish-meal>.

Habit:
- {h} [loved|liked] to <Hobby> and [|to ]<Play>[| with {h.his} <Kin><family>| every <daypart>].
- [Every|Each] <daypart>, {h} [would|liked to|loved to] <play>, <Hobby> and <Chase>.
- When it was <weather>, {h} [would|liked to|wanted to] <Hobby> or <Play>.
- What {h} loved [most|best] was to <play>, but {h.he} also liked to <Hobby> and <Chase>.

Hobby:
- <hobby>
- [paint|draw|sketch|print] [|<colour> ]<motif>
- [bake|cook|make|taste] <Tasty><food>
- [count|sort|polish|collect] [|<colour> ]<keepsake>
Play:
- <play>
- <Chase>
- [pick|gather|look for|find] [|<colour> ]<finds>
Chase:
- [chase|watch|follow|count] [|<colour> ]<bugs>
Played:
- <play=game!>{game.did}
- [chased|watched|followed|counted] [|<colour> ]<bugs>
- [picked|gathered|looked for|found] [|<colour> ]<finds>
"""
