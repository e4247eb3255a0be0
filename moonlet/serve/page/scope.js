// The microscope: a text as tokens, what else might have stood there, and what happened inside as it was read. New
// tokens come by the stream of /v1/completions; what happened comes by /moonlet/microscope, asked again as they come.

import {microscope, stream} from "./api.js";
import {$, complain, el, framed, say} from "./dom.js";
import {bytes, drawCache, drawDecay, drawExperts, drawMap, expertsAt} from "./maps.js";
import {opening, sampling, thinking} from "./settings.js";
import {TokenText, visible} from "./tokens.js";

const LIKELY = 8;
const REST_MS = 250; // between two looks while tokens come: looking takes the engine's time
const MOST_BRANCHES = 12;

let world; // what main.js tells: models(), story()
let branches = []; // {tokens, label}
let current = null; // the branch shown
let view = null; // the last look, of the branch shown
let cells = null; // its map, as bytes
let writing = null; // AbortController of the stream
let looking = null; // of the look
let stale = false; // tokens came since the look began
let text, plan;

export function buildScope(given) {
  world = given;
  text = new TokenText($("tokens"), {pick: () => draw(), branch});
  $("scope-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!stopScope()) begin(typed(), true);
  });
  $("scope-prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (!writing) begin(typed(), true);
    }
  });
  $("look").addEventListener("click", () => begin(typed(), false));
  $("go-on").addEventListener("click", () => writeOn());
  for (const name of ["layer", "head"]) $(name).addEventListener("change", () => { heads(); look(); });
  pointing($("experts"), (x, y) => plan && expertsAt(plan, x, y).t);
  pointing($("head-map"), (x, y, side) => view && Math.floor((y / side) * view.tokens.length));
  window.addEventListener("resize", draw);
}

// Follow the pointer and the arrow keys on a picture: both point at tokens.
function pointing(canvas, token) {
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const t = token(event.clientX - box.left, event.clientY - box.top, box.height);
    if (view && t >= 0 && t < view.tokens.length) text.point(t, false);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!step || !view) return;
    event.preventDefault();
    text.point(Math.min(Math.max(text.at + step, 0), view.tokens.length - 1), false);
  });
}

// Another model: its layers and heads, and nothing looked at yet.
export function scopeModel() {
  const facts = world.models()[0]?.facts;
  if (!facts) return;
  stopScope();
  $("layer").replaceChildren(...facts.layers.map((kind, layer) =>
    el("option", {value: layer}, `${layer} ${kind === "kda" ? "KDA" : "attention"}`)));
  heads();
  branches = [];
  show(null);
  $("scope-welcome").hidden = false;
}

function heads() {
  const facts = world.models()[0].facts, layer = Number($("layer").value);
  const before = Math.min(Number($("head").value || 0), facts.heads[layer] - 1);
  $("head").replaceChildren(...Array.from({length: facts.heads[layer]}, (_, head) => el("option", {value: head}, `${head}`)));
  $("head").value = before;
}

export function stopScope() {
  if (!writing) return false;
  writing.abort();
  writing = null; // what comes next need not wait for the end of this
  return true;
}

export function closeTokens() {
  const open = text.isOpen;
  text.close();
  return open;
}

// What is written in the field: a text, or a conversation's first message.
function typed() {
  const text = $("scope-prompt").value;
  return world.story() ? text : opening(text);
}

// The kind of text that is looked at has changed.
export function scopeKind() {
  $("scope-prompt").placeholder = world.story() ? "Once upon a time" : "Write a message";
  $("scope-prompt-label").textContent = world.story() ? "Text to look at" : "Message to look at";
}

// Look at a text, or at a conversation (messages); `on` lets the model go on after it.
export async function begin(prompt, on) {
  stopScope();
  $("scope-prompt").value = Array.isArray(prompt) ? prompt.findLast((one) => one.role === "user").content : prompt;
  branches = [];
  show({tokens: [], label: "", prompt});
  await look();
  if (on && current?.tokens.length) await writeOn();
}

function show(branch) {
  current = branch;
  view = cells = null;
  looking?.abort();
  looking = null;
  if (branch && !branches.includes(branch)) branches.push(branch);
  if (branches.length > MOST_BRANCHES) branches.shift();
  complain($("scope-error"), null);
  text.close();
  text.at = -1;
  text.show(branch?.tokens ?? []);
  $("scope-text").hidden = $("panels").hidden = !branch?.tokens.length;
  chips();
  draw();
}

function chips() {
  $("branches").hidden = branches.length < 2;
  $("branches").replaceChildren(...branches.map((branch, place) => el("button", {
    type: "button", class: "chip", "aria-pressed": String(branch === current), disabled: Boolean(writing),
    onclick: () => { show(branch); look(); },
  }, branch.label || (place ? `${place + 1}` : "first"))));
}

// Another token in place of one: a branch of its own that goes on from there.
function branch(t, choice) {
  stopScope();
  const old = current.tokens[t];
  const taken = {id: choice.id, token: choice.token, text: choice.token, logprob: choice.logprob, likely: old.likely, given: old.given};
  show({tokens: [...current.tokens.slice(0, t), taken], ends: current.ends, label: `${visible(old.text).trim()} → ${visible(choice.token).trim()}`});
  say(`Branched: ${choice.token}`);
  $("tokens").lastChild?.focus({preventScroll: true});
  text.close();
  writeOn();
}

// Let the model go on after the tokens shown.
async function writeOn() {
  if (writing || !current?.tokens.length) return;
  const mine = (writing = new AbortController()), into = current;
  busy(true);
  const body = {model: world.models()[0].id, prompt: into.tokens.map((one) => one.id), logprobs: LIKELY, ...sampling()};
  try {
    for await (const chunk of stream("/v1/completions", body, mine.signal)) add(into, chunk.choices[0]);
  } catch (error) {
    if (!mine.signal.aborted) complain($("scope-error"), error);
  }
  if (writing === mine) writing = null;
  busy(writing !== null);
  if (into === current) await look();
}

function busy(is) {
  $("scope-send").textContent = is ? "Stop" : "Write on";
  $("go-on").disabled = $("look").disabled = is;
  $("tokens").setAttribute("aria-busy", String(is));
  say(is ? "Writing" : "Done");
  chips();
}

function add(into, choice) {
  const told = choice?.logprobs;
  if (!told) return;
  const alone = told.tokens.length === 1;
  told.tokens.forEach((token, i) => into.tokens.push({
    id: told.token_ids[i], token, text: alone ? choice.text : token, logprob: told.token_logprobs[i],
    likely: Object.entries(told.top_logprobs[i] ?? {}).slice(0, LIKELY).map(([name, logprob]) => ({token: name, logprob})),
  }));
  // /v1/completions knows nothing of turns, and would go on into the next one.
  if (into.ends?.includes(told.token_ids.at(-1))) writing?.abort();
  if (into !== current) return;
  arrived();
  look();
}

const arrived = framed(() => {
  if (!current) return;
  text.show(current.tokens);
  $("scope-text").hidden = $("panels").hidden = !current.tokens.length;
});

// Read the text again and show what happened; while one look is under way the next waits for it.
async function look() {
  if (!current) return;
  if (looking) { stale = true; return; }
  const mine = (looking = new AbortController()), of = current;
  stale = false;
  try {
    const read = of.tokens.length ? {prompt: of.tokens.map((one) => one.id)}
      : Array.isArray(of.prompt) ? {messages: of.prompt, thinking: thinking()} : {prompt: of.prompt};
    const seen = await microscope({model: world.models()[0].id, ...read, likely: LIKELY,
      layer: Number($("layer").value), head: Number($("head").value)}, mine.signal);
    if (of === current) take(of, seen);
    if (writing) await new Promise((done) => setTimeout(done, REST_MS));
  } catch (error) {
    if (!mine.signal.aborted && of === current) complain($("scope-error"), error);
    if (!writing) stale = false;
  }
  if (looking !== mine) return;
  looking = null;
  if (stale) await look();
}

function take(of, seen) {
  const first = !of.tokens.length;
  of.ends ??= seen.ends;
  seen.tokens.forEach((token, t) => {
    const before = of.tokens[t];
    of.tokens[t] = {...token, given: first || before?.given === true};
  });
  view = seen;
  cells = seen.map.cells;
  complain($("scope-error"), null);
  $("scope-welcome").hidden = true;
  arrived();
  draw();
}

const quoted = (token) => `“${visible(token.text).trim()}”`;

const draw = framed(() => {
  const facts = world.models()[0]?.facts;
  if (!view || !facts || $("panels").hidden) return;
  const at = text.at, T = view.tokens.length;
  $("experts-panel").hidden = !view.experts.length;
  if (view.experts.length) {
    plan = drawExperts($("experts"), view, facts.experts, at);
    follow($("experts").parentElement, at);
    $("experts").setAttribute("aria-label", `Experts that ${T} tokens took in ${view.experts.length} layers`);
    $("experts-line").textContent = at >= 0 && at < T ? chosen(at) : `${facts.experts} experts, ${facts.experts_per_token} a token; the darker, the more it weighs`;
  }
  head(at, T);
  const width = $("cache").parentElement.clientWidth - 2 * 14;
  drawCache($("cache"), view.cache, facts.full_cache, T, width);
  const line = cacheLine(facts, T);
  $("cache").setAttribute("aria-label", line);
  $("cache-line").textContent = line;
});

// Keep the column of the token in sight, or the newest where none is pointed at.
function follow(scroll, at) {
  if (at < 0) scroll.scrollLeft = scroll.scrollWidth;
  else {
    const x = 22 + at * plan.cell;
    if (x < scroll.scrollLeft + 30 || x > scroll.scrollLeft + scroll.clientWidth - 30) scroll.scrollLeft = x - scroll.clientWidth / 2;
  }
}

function chosen(t) {
  const layers = view.experts.map(({layer, index, weight}) =>
    `layer ${layer}: ${index[t].map((expert, a) => `${expert} (${weight[t][a].toFixed(2)})`).join(", ")}`);
  return `${quoted(view.tokens[t])} took experts ${layers.join("; ")}`;
}

function head(at, T) {
  const kept = view.map?.kind === "kept";
  $("head-title").textContent = kept ? "What a KDA head keeps" : "What a head looks at";
  const room = $("head-map").parentElement.clientWidth;
  const narrow = room < 380;
  const side = narrow ? room : 236;
  drawMap($("head-map"), cells, T, at, side);
  const row = at >= 0 && at < T ? cells.subarray(at * T, at * T + T) : null;
  text.weigh(row && Array.from(row, (one) => one / 255));
  $("decay").hidden = !view.decay;
  if (view.decay) {
    drawDecay($("decay"), view.decay, at, narrow ? side : room - side - 15);
    $("decay").setAttribute("aria-label", "What each token leaves of the state, a bar a token");
  }
  $("head-map").setAttribute("aria-label", `${$("head-title").textContent}: layer ${view.map.layer}, head ${view.map.head}, ${T} tokens`);
  $("head-line").textContent = row ? strongest(row, at, kept) : kept
    ? "A row a token: what is left of each earlier one in the state. Bars: what each token leaves of all before it"
    : "A row a token: how it weighs each token up to itself";
}

function strongest(row, at, kept) {
  const told = quoted(view.tokens[at]);
  if (kept) {
    const half = Array.from(row.subarray(0, at + 1)).filter((one) => (one / 255) ** 2 >= 0.5).length;
    return `${told} leaves ${Math.round(100 * view.decay[at])}\u00a0% of the state; more than half is left of the last ${half} tokens`;
  }
  const best = Array.from(row.subarray(0, at + 1), (one, s) => [(one / 255) ** 2, s]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  return `${told} looks at ${best.map(([weight, s]) => `${quoted(view.tokens[s])} ${Math.round(100 * weight)}\u00a0%`).join(", ")}`;
}

function cacheLine(facts, T) {
  const {per_token: grows, constant} = view.cache;
  const now = `${bytes(constant + grows * T)} at ${T} tokens`;
  const parts = [
    constant ? `${bytes(constant)} of KDA's states, whatever the length` : null,
    grows ? `${bytes(grows)} more for each token` : "nothing more for any token",
    facts.full_cache > grows ? `dashed: whole keys and values, ${bytes(facts.full_cache)} a token` : null,
  ];
  return `${now}: ${parts.filter(Boolean).join("; ")}`;
}
