// The view that writes: a conversation where the model knows chats, a text that goes on where it does not. Each turn
// holds what was asked and an answer of each model shown, one or two side by side.

import {stream} from "./api.js";
import {$, button, complain, el, framed, say} from "./dom.js";
import {anySeed, opening, sampling, thinking} from "./settings.js";

const STARTS = ["Once upon a time", "Not long ago, a brave little fox", "In a cozy cottage near a painted bridge"];

let turns = []; // {asked, story, answers: [Answer], node}
let editing = null; // the turn whose prompt is being changed
let running = 0;
let stopping = new AbortController();
let world; // what main.js tells: models(), story(), look(text)

export function buildWrite(given) {
  world = given;
  for (const text of STARTS) $("starts").append(button(text, () => send(text), {class: "start"}));
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) stop();
    else send($("prompt").value);
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (!running) send($("prompt").value);
    }
  });
  $("cancel-edit").addEventListener("click", () => edit(null));
  $("clear").addEventListener("click", () => {
    stop();
    turns = [];
    $("turns").replaceChildren();
    edit(null);
    refresh();
    $("prompt").focus();
  });
  refresh();
}

// The conversation as it stands; null where nothing was said, or an answer is still coming.
export function conversation() {
  const last = turns.at(-1);
  return !last || last.story || running ? null : last.answers[0].whole();
}

export function stop() {
  if (!running) return false;
  stopping.abort();
  stopping = new AbortController();
  return true;
}

// What depends on the kind of text and on whether something is being written.
export function refresh() {
  const story = world.story();
  $("tab-write").textContent = story ? "Story" : "Chat";
  $("welcome-title").textContent = story ? "How does it begin?" : "What would you like to say?";
  $("starts").hidden = !story;
  $("prompt").placeholder = story ? "Once upon a time" : "Write a message";
  $("prompt-label").textContent = story ? "Beginning of a story" : "Message";
  $("welcome").hidden = turns.length > 0;
  $("clear").hidden = !turns.length;
  $("send").textContent = running ? "Stop" : story ? "Write" : "Send";
  $("turns").classList.toggle("busy", running > 0);
  for (const turn of turns) for (const answer of turn.answers) answer.showTools(turn === turns.at(-1), running > 0);
}

function send(text) {
  if (!text.trim() || running) return;
  const story = world.story();
  const turn = {asked: text, story, answers: [], node: el("article", {class: story ? "turn story" : "turn"})};
  if (editing) {
    const at = turns.indexOf(editing);
    // A story stands for itself; an answer in a chat rests on all before it.
    const gone = story ? [editing] : turns.slice(at);
    $("turns").insertBefore(turn.node, editing.node);
    for (const old of gone) old.node.remove();
    turns.splice(at, gone.length, turn);
  } else {
    turns.push(turn);
    $("turns").append(turn.node);
  }
  if (!story) {
    turn.node.append(el("div", {class: "asked"}, el("p", {}, text), button("Edit", () => edit(turn), {class: "quiet edit"})));
  }
  const settings = sampling();
  const columns = el("div", {class: "answers"});
  turn.node.append(columns);
  const shown = world.models();
  turn.answers = shown.map((model, side) => new Answer(turn, model, side, shown.length > 1));
  columns.append(...turn.answers.map((answer) => answer.node));
  $("prompt").value = "";
  edit(null);
  turn.node.scrollIntoView({block: "nearest"});
  for (const answer of turn.answers) answer.write(settings);
}

function edit(turn) {
  if (editing) editing.node.classList.remove("edited");
  if (editing && !turn) $("prompt").value = "";
  editing = turn;
  $("editing").hidden = !turn;
  if (!turn) return;
  turn.node.classList.add("edited");
  $("editing-what").textContent = turn.story ? "Another beginning for this story." : "Another message; what follows it goes.";
  $("prompt").value = turn.asked;
  $("prompt").focus();
}

// The conversation up to a turn, as one side has it.
function messages(turn, side) {
  const said = opening(turn.asked).slice(0, -1);
  for (const before of turns.slice(0, turns.indexOf(turn))) {
    const answer = before.answers[side] ?? before.answers[0];
    if (!answer.text) continue;
    said.push({role: "user", content: before.asked}, {role: "assistant", content: answer.text});
  }
  return [...said, {role: "user", content: turn.asked}];
}

const page = document.documentElement;
const atEnd = () => window.innerHeight + window.scrollY >= page.scrollHeight - 160;
const toEnd = () => window.scrollTo(0, page.scrollHeight);

// One model's answer in one turn.
class Answer {
  constructor(turn, model, side, named) {
    Object.assign(this, {turn, model, side, text: "", thought: "", given: null});
    this.body = document.createTextNode("");
    this.thinking = document.createTextNode("");
    this.reasoning = el("details", {class: "reasoning", hidden: true},
      el("summary", {}, "Thoughts"), el("p", {}, this.thinking));
    this.prose = el("div", {class: "prose", "aria-live": "polite"},
      turn.story ? el("span", {class: "given"}, turn.asked) : null, this.body);
    this.error = el("p", {class: "error", role: "alert", hidden: true});
    this.meta = el("span", {class: "meta"});
    this.again = button("Regenerate", () => this.write({...sampling(), seed: anySeed()}));
    this.more = turn.story ? button("Go on", () => this.write(sampling(), true)) : null;
    this.tools = el("div", {class: "row under"}, this.meta, this.more, this.again,
      turn.story ? button("Edit", () => edit(turn)) : null,
      button("Look inside", () => world.look(this.whole(), model)),
      button("Copy", () => this.copy()));
    this.node = el("section", {class: "answer", "aria-label": `Answer of ${model.id}`},
      named ? el("h3", {}, model.id) : null, this.reasoning, this.prose, this.error, this.tools);
    this.draw = framed(() => this.show());
  }

  showTools(last, busy) {
    this.tools.hidden = this.busy === true;
    for (const one of this.tools.querySelectorAll("button")) one.disabled = busy;
    this.again.hidden = !last && !this.turn.story;
  }

  // Ask for the text; `on` goes on after what is there.
  async write(settings, on = false) {
    if (!on) this.text = this.thought = "";
    Object.assign(this, {busy: true, count: 0, reason: null, began: 0});
    this.thinking.data = this.thought;
    this.body.data = this.text;
    complain(this.error, null);
    this.reasoning.hidden = !this.thought;
    this.node.classList.add("busy");
    this.prose.setAttribute("aria-busy", "true");
    running += 1;
    refresh();
    if (running === 1) say("Writing");
    const signal = stopping.signal;
    try {
      for await (const chunk of stream(...this.request(settings), signal)) this.read(chunk);
    } catch (error) {
      if (!signal.aborted) complain(this.error, error);
      else this.reason = "stopped";
    }
    this.end(settings);
  }

  request(settings) {
    const common = {model: this.model.id, ...settings};
    if (this.turn.story) return ["/v1/completions", {...common, prompt: this.turn.asked + this.text}];
    return ["/v1/chat/completions", {...common, messages: messages(this.turn, this.side), thinking: thinking()}];
  }

  // What the microscope is to show: the story, or the conversation with this answer.
  whole() {
    if (this.turn.story) return this.turn.asked + this.text;
    const said = messages(this.turn, this.side);
    if (!this.text && !this.thought) return said;
    return [...said, {role: "assistant", content: this.text, reasoning_content: this.thought || undefined}];
  }

  read(chunk) {
    if (chunk.usage) this.count = chunk.usage.completion_tokens;
    const choice = chunk.choices[0];
    if (!choice) return;
    this.began ||= performance.now();
    this.reason = choice.finish_reason ?? this.reason;
    const delta = choice.delta ?? {content: choice.text};
    this.thought += delta.reasoning_content ?? "";
    this.text += delta.content ?? "";
    for (const call of delta.tool_calls ?? []) {
      this.text += (call.function?.name ? `${call.function.name} ` : "") + (call.function?.arguments ?? "");
    }
    this.ended = performance.now();
    this.draw();
  }

  show() {
    this.body.data = this.text;
    this.thinking.data = this.thought;
    this.reasoning.hidden = !this.thought;
    if (this.busy && atEnd()) toEnd();
  }

  end(settings) {
    const follow = atEnd();
    this.busy = false;
    this.show();
    this.node.classList.remove("busy");
    this.prose.removeAttribute("aria-busy");
    const seconds = (this.ended - this.began) / 1000;
    const why = {length: "cut off at the limit", stopped: "stopped", stop: "ended by itself"}[this.reason];
    this.meta.replaceChildren(...[
      this.count ? `${this.count} tokens` : null,
      this.count > 1 && seconds > 0 ? `${Math.round((this.count - 1) / seconds)} a second` : null,
      `seed ${settings.seed}`,
      why,
    ].filter(Boolean).map((part) => el("span", {}, part)));
    running -= 1;
    refresh();
    if (follow) toEnd();
    if (!running) say(why ? `Done: ${why}` : "Done");
  }

  copy() {
    const text = (this.turn.story ? this.turn.asked : "") + this.text;
    navigator.clipboard?.writeText(text).then(() => say("Copied"), () => say("The browser does not let this page copy"));
  }
}
