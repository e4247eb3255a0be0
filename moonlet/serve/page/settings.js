// How tokens are drawn: the controls, what they send, and what is kept of them between visits.

import {$, el, recall, remember} from "./dom.js";

// name in the request, label, kind, default, least, most, step, where it says nothing and is left out
const SAMPLING = [
  ["temperature", "Temperature", "range", 0.8, 0, 2, 0.05],
  ["top_p", "Top-p", "range", 0.95, 0.05, 1, 0.01, 1],
  ["min_p", "Min-p", "range", 0, 0, 0.5, 0.01, 0],
  ["top_k", "Top-k (0: all)", "number", 0, 0, 1000000, 1, 0],
  ["max_tokens", "Longest answer, tokens", "number", 256, 1, 1000000, 1],
  ["seed", "Seed (empty: any)", "number", "", 0, 2 ** 53 - 1, 1, ""],
];
const PENALTIES = [
  ["repetition_penalty", "Repetition", "range", 1, 1, 2, 0.05, 1],
  ["presence_penalty", "Presence", "range", 0, -2, 2, 0.1, 0],
  ["frequency_penalty", "Frequency", "range", 0, -2, 2, 0.1, 0],
  ["stop", "Stop at", "text", "", null, null, null, ""],
];
const ALL = [...SAMPLING, ...PENALTIES];

export function buildSettings() {
  const kept = recall("settings", {});
  for (const row of SAMPLING) $("sampling").append(control(row, kept));
  for (const row of PENALTIES) $("penalties").append(control(row, kept));
  $("system").value = kept.system ?? "";
  $("thinking").checked = kept.thinking ?? true;
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("controls").addEventListener("input", keep);
  $("controls").addEventListener("reset", (event) => {
    event.preventDefault(); // a form's own reset would also change the model
    for (const [name, , , first] of ALL) $(name).value = first;
    $("system").value = "";
    $("thinking").checked = true;
    keep();
  });
  keep();
}

function control([name, label, kind, first, min, max, step], kept) {
  const input = el("input", {id: name, type: kind, min, max, step, autocomplete: "off"});
  input.value = kept[name] ?? first;
  const output = kind === "range" ? el("output", {for: name, id: `${name}-shown`}) : null;
  return el("div", {class: `control ${kind}`}, el("label", {for: name}, label, output), input);
}

function keep() {
  const kept = {system: $("system").value, thinking: $("thinking").checked};
  for (const [name, , kind] of ALL) {
    kept[name] = $(name).value;
    if (kind === "range") $(`${name}-shown`).textContent = Number($(name).value).toFixed(2);
  }
  remember("settings", kept);
}

// What a request says of drawing. There is always a seed, so that every answer can be had again.
export function sampling() {
  const sent = {seed: anySeed()};
  for (const [name, , kind, , , , , silent] of ALL) {
    const text = $(name).value.trim();
    if (text === "" || (silent !== undefined && Number(text) === silent && kind !== "text")) continue;
    sent[name] = kind === "text" ? $(name).value : Number(text);
  }
  return sent;
}

// How every conversation begins: with the system prompt, where there is one.
export function opening(text) {
  const system = $("system").value;
  return [...(system.trim() ? [{role: "system", content: system}] : []), {role: "user", content: text}];
}

export const thinking = () => ($("thinking").checked ? undefined : {type: "disabled"});

export function anySeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
