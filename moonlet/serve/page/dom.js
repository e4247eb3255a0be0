// Elements, without markup in strings: what a model or a server wrote is only ever set as text.

export const $ = (id) => document.getElementById(id);

// el("button", {class: "quiet", onclick: f}, "text", child, ...): names with "on" are listeners, strings become text.
export function el(name, given = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

export function button(label, onclick, given = {}) {
  return el("button", {type: "button", class: "quiet", onclick, ...given}, label);
}

// Say something to who listens, once; the same words twice are said twice.
export function say(text) {
  const status = $("status");
  status.textContent = "";
  requestAnimationFrame(() => { status.textContent = text; });
}

// One line of what went wrong, or none.
export function complain(place, error) {
  place.hidden = !error;
  place.textContent = error ? error.message || String(error) : "";
}

// Run `draw` once in the next frame, however often it is asked for.
export function framed(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  };
}

// What is kept between visits. A browser may refuse to keep anything.
export function remember(name, value) {
  try { localStorage.setItem(`moonlet.${name}`, JSON.stringify(value)); } catch { /* then it is not kept */ }
}

export function recall(name, otherwise) {
  try { return JSON.parse(localStorage.getItem(`moonlet.${name}`)) ?? otherwise; } catch { return otherwise; }
}
