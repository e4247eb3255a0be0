// A text as tokens one can walk through: shaded by how unexpected each was, with what else might have stood there.

import {$, el} from "./dom.js";

const HOVER_MS = 90; // long enough to pass over a token on the way to the list of another

export const percent = (logprob) => {
  const p = 100 * Math.exp(logprob);
  return p >= 10 ? `${p.toFixed(0)} %` : p >= 0.1 ? `${p.toFixed(1)} %` : p >= 0.001 ? `${p.toFixed(3)} %` : "< 0.001 %";
};

// What has no width could neither be seen nor pointed at: control characters as their pictures, the others as a dot.
const spelt = (text) => text
  .replace(/[\0-\x08\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
  .replace(/[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]/g, "·");

export const visible = (text) => spelt(text).replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";

export class TokenText {
  // place: where tokens go. pick(t): one was pointed at. branch(t, choice): another was chosen in its place.
  constructor(place, {pick, branch}) {
    Object.assign(this, {place, pick, branch, tokens: [], spans: [], at: -1, pinned: false});
    place.addEventListener("pointerover", (event) => this.hover(event));
    place.addEventListener("pointerleave", () => clearTimeout(this.timer));
    place.addEventListener("click", (event) => this.click(event));
    place.addEventListener("focusin", (event) => {
      if (event.target.matches(":focus-visible")) this.point(this.index(event.target));
    });
    place.addEventListener("keydown", (event) => this.key(event));
    $("pop").addEventListener("keydown", (event) => this.popKey(event));
    document.addEventListener("pointerdown", (event) => {
      if (!$("pop").contains(event.target) && !place.contains(event.target)) this.close();
    });
  }

  // Show tokens {id, text, token, logprob, likely, given}; those that were there before keep their elements.
  show(tokens) {
    this.tokens = tokens;
    while (this.spans.length > tokens.length) this.spans.pop().remove();
    tokens.forEach((token, t) => {
      if (!this.spans[t]) {
        this.spans[t] = el("span", {class: "token", role: "button", tabindex: t ? "-1" : "0"});
        this.place.append(this.spans[t]);
      }
      const span = this.spans[t];
      if (span.shown === token) return;
      span.shown = token;
      // A part of a character has no text of its own until the rest has come.
      const text = spelt(token.text || token.token.replace(/^bytes:/, ""));
      const broken = text.includes("\n");
      const shown = broken ? text.replaceAll("\n", "↵\n") : text;
      const word = shown.trimStart();
      // The space before a word is no part of its shade, nor of the next line.
      span.replaceChildren(shown.slice(0, shown.length - word.length), el("span", {class: "ink"}, word || "\u200b"));
      span.classList.toggle("given", token.given === true);
      span.classList.toggle("mark", !token.text || /^\[[A-Z]+\]$|^<\|.*\|>$/.test(text));
      span.style.setProperty("--s", surprise(token.logprob).toFixed(3));
      const p = token.logprob == null ? "" : `, ${percent(token.logprob)}`;
      span.setAttribute("aria-label", `${visible(text)}${p}`);
    });
  }

  // How much each token is looked at by the one pointed at, 0..1; null: nothing is shown.
  weigh(weights) {
    this.spans.forEach((span, t) => span.style.setProperty("--w", (weights?.[t] ?? 0).toFixed(3)));
  }

  // Point at a token: from here, or from a map beside the text.
  point(t, open = true) {
    if (t < 0 || t >= this.tokens.length) return;
    this.spans[this.at]?.classList.remove("at");
    for (const span of this.place.querySelectorAll('[tabindex="0"]')) span.tabIndex = -1;
    this.at = t;
    this.spans[t].tabIndex = 0;
    this.spans[t].classList.add("at");
    if (open) this.open(t);
    this.pick(t);
  }

  index(target) {
    return this.spans.indexOf(target.closest?.(".token"));
  }

  hover(event) {
    if (event.pointerType === "touch" || this.pinned) return;
    const t = this.index(event.target);
    clearTimeout(this.timer);
    if (t >= 0) this.timer = setTimeout(() => this.point(t), HOVER_MS);
  }

  click(event) {
    const t = this.index(event.target);
    if (t < 0) return;
    const again = this.pinned && t === this.at;
    this.close();
    if (again) return;
    this.point(t);
    this.pinned = true;
  }

  key(event) {
    const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.line(1), ArrowUp: this.line(-1),
      Home: -this.at, End: this.tokens.length - 1 - this.at}[event.key];
    if (step !== undefined) {
      event.preventDefault();
      this.pinned = false;
      const to = Math.min(Math.max(this.at + step, 0), this.tokens.length - 1);
      this.point(to);
      this.spans[to].focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.point(this.index(event.target));
      this.pinned = true;
      $("pop").querySelector("button")?.focus();
    }
  }

  // Tokens between this one and the nearest in the next line or the one before.
  line(way) {
    const here = this.spans[this.at]?.getBoundingClientRect();
    if (!here) return 0;
    let best = 0, least = Infinity;
    for (let t = this.at + way; this.spans[t]; t += way) {
      const there = this.spans[t].getBoundingClientRect();
      const lines = Math.abs(there.top - here.top) / here.height;
      if (lines < 0.6) continue;
      if (lines > 2.4) break;
      const far = Math.abs(there.left - here.left);
      if (far < least) [least, best] = [far, t - this.at];
    }
    return best;
  }

  popKey(event) {
    const choices = [...$("pop").querySelectorAll("button")];
    const at = choices.indexOf(document.activeElement);
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      choices[(at + (event.key === "ArrowDown" ? 1 : choices.length - 1)) % choices.length]?.focus();
    } else if (event.key === "Escape" || event.key === "Tab") {
      event.preventDefault();
      event.stopPropagation();
      this.close();
      this.spans[this.at]?.focus({preventScroll: true});
      this.close(); // focus had opened it again
    }
  }

  get isOpen() {
    return !$("pop").hidden;
  }

  close() {
    clearTimeout(this.timer);
    this.pinned = false;
    $("pop").hidden = true;
  }

  open(t) {
    const token = this.tokens[t], pop = $("pop");
    const rank = token.likely.findIndex((one) => one.id === token.id && one.id !== undefined);
    const facts = [token.id === undefined ? null : `id ${token.id}`,
      token.logprob == null ? "the beginning" : percent(token.logprob),
      rank >= 0 ? `${ordinal(rank)} likeliest` : token.likely.length ? `not among the first ${token.likely.length}` : null];
    const most = token.likely[0]?.logprob ?? 0;
    pop.replaceChildren(
      el("p", {class: "pop-head"}, el("b", {}, visible(token.text || token.token)), facts.filter(Boolean).join(" · ")),
      ...token.likely.map((one) => {
        const own = one.id === token.id;
        const bar = el("i", {class: "bar"});
        bar.style.setProperty("--p", Math.exp(one.logprob - most).toFixed(3));
        return el("button", {type: "button", class: own ? "choice own" : "choice", disabled: one.id === undefined,
          "aria-label": `${visible(one.token)}, ${percent(one.logprob)}${own ? ", as it is" : ""}`,
          onclick: () => { this.close(); this.branch(t, one); }},
        el("span", {class: "word"}, visible(one.token)), bar, el("span", {class: "p"}, percent(one.logprob)));
      }));
    pop.hidden = false;
    const here = this.spans[t].lastChild.getClientRects()[0];
    // Within the text where it is wide enough: what is beside it belongs to the same token.
    const width = pop.offsetWidth, room = Math.min(document.documentElement.clientWidth, this.place.getBoundingClientRect().right + 8);
    pop.style.left = `${Math.max(8, Math.min(here.left, room - width - 8)) + window.scrollX}px`;
    const below = here.bottom + 3 + pop.offsetHeight < window.innerHeight || here.top < pop.offsetHeight;
    pop.style.top = `${(below ? here.bottom + 3 : here.top - pop.offsetHeight - 3) + window.scrollY}px`;
  }
}

// 0 where the model was certain, 1 where it gave the token one chance in 256 or less.
const surprise = (logprob) => logprob == null ? 0 : Math.min(1, -logprob / Math.LN2 / 8);

const ordinal = (rank) => rank === 0 ? "the" : `${rank + 1}${["th", "st", "nd", "rd"][rank + 1 > 3 && rank + 1 < 21 ? 0 : Math.min((rank + 1) % 10, 4) % 4]}`;
