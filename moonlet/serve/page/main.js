// What the two views share: which models there are, tabs, theme, settings, the keys that work everywhere.

import {models} from "./api.js";
import {$, complain, el, recall, remember} from "./dom.js";
import {begin, buildScope, closeTokens, scopeKind, scopeModel, stopScope} from "./scope.js";
import {buildSettings} from "./settings.js";
import {buildWrite, conversation, refresh, stop} from "./write.js";

const THEMES = ["auto", "light", "dark"];
const SIGNS = {auto: "◐", light: "☀\uFE0E", dark: "☾\uFE0E"};
const WIDE = window.matchMedia("(min-width: 60rem)");
const VIEWS = ["write", "microscope"];
let cards = [];
// Whether settings are shown, by view: the microscope needs the room.
const open = {write: WIDE.matches, microscope: false};

const card = (name) => cards.find((one) => one.id === name);

// The models shown: one, or two to be compared.
const shown = () => [card($("model").value), card($("compare").value)].filter(Boolean);

// Whether text is continued and not answered; so it is where one of the models knows no chats.
const story = () => shown().some((one) => !one.chat) || new FormData($("controls")).get("mode") !== "chat";

function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme-name").textContent = name;
  $("theme-sign").textContent = SIGNS[name];
  $("theme").setAttribute("aria-label", `Theme: ${name}`);
  remember("theme", name);
  window.dispatchEvent(new Event("resize")); // pictures take their colours when they are drawn
}

function view(name) {
  for (const one of VIEWS) {
    $(`view-${one}`).hidden = one !== name;
    $(`tab-${one}`).setAttribute("aria-selected", String(one === name));
    $(`tab-${one}`).tabIndex = one === name ? 0 : -1;
  }
  document.body.dataset.view = name;
  closeTokens();
  settings(open[name]);
}

let looked = null; // the conversation that the microscope was last opened with

// In a chat the microscope opens with what was said, unless it shows that already.
function lookAtChat() {
  const said = story() ? null : conversation();
  const now = said && JSON.stringify(said);
  if (!said || now === looked) return;
  looked = now;
  begin(said, false);
}

function settings(shown) {
  open[document.body.dataset.view] = shown;
  document.body.classList.toggle("settings-open", shown);
  $("open-settings").setAttribute("aria-expanded", String(shown));
  window.dispatchEvent(new Event("resize"));
}

function build() {
  buildSettings();
  theme(recall("theme", "auto"));
  $("theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf(recall("theme", "auto")) + 1) % THEMES.length]));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(recall("theme", "auto")));
  for (const name of VIEWS) {
    $(`tab-${name}`).addEventListener("click", () => {
      view(name);
      if (name === "microscope") lookAtChat();
    });
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      const other = VIEWS[1 - VIEWS.indexOf(name)];
      view(other);
      $(`tab-${other}`).focus();
    });
  }
  $("open-settings").addEventListener("click", () => {
    settings(!document.body.classList.contains("settings-open"));
    if (!WIDE.matches) window.scrollTo(0, 0); // there they stand above the text
  });
  view("write");
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || $("key-dialog").open) return;
    if (closeTokens() || stop() || stopScope()) event.preventDefault();
  });
}

// What changes with the models: how text is written, and what can be looked at.
function chosen() {
  const [first] = shown();
  $("mode").hidden = shown().some((one) => !one.chat);
  if (first) $("max_tokens").max = first.context;
  mode();
  for (const option of $("compare").options) option.disabled = option.value !== "" && option.value === $("model").value;
  if ($("compare").value === $("model").value) $("compare").value = "";
}

function mode() {
  $("system-group").hidden = story();
  refresh();
  scopeKind();
}

async function start() {
  buildScope({models: shown, story});
  buildWrite({models: shown, story, look: (text, model) => {
    if ($("model").value !== model.id) {
      $("model").value = model.id;
      $("compare").value = "";
      chosen();
      scopeModel();
    }
    view("microscope");
    looked = JSON.stringify(text);
    begin(text, false);
  }});
  build();
  $("model").addEventListener("change", () => { chosen(); scopeModel(); });
  $("compare").addEventListener("change", chosen);
  $("mode").addEventListener("change", mode);
  try {
    cards = await models();
  } catch (error) {
    complain($("notice"), error);
    return;
  }
  $("model").append(...cards.map((one) => el("option", {value: one.id}, one.id)));
  $("compare").append(el("option", {value: ""}, "nothing"), ...cards.map((one) => el("option", {value: one.id}, one.id)));
  $("compare").disabled = cards.length < 2;
  $("compare-hint").hidden = cards.length > 1;
  const kind = cards[0].chat ? "chat" : "story";
  document.querySelector(`[name=mode][value=${kind}]`).checked = true;
  chosen();
  scopeModel();
  document.body.classList.add("ready");
}

start();
