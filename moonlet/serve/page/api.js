// The server, by its OpenAI routes: JSON in, JSON or server-sent events out.

import {$} from "./dom.js";

const KEY = "moonlet.key";

export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export async function models(signal) {
  return (await (await ask("/v1/models", null, signal)).json()).data;
}

// What was seen of a text, by token and by layer; its map as bytes, 255 sqrt(weight), T x T.
export async function microscope(body, signal) {
  const seen = await (await ask("/moonlet/microscope", body, signal)).json();
  const T = seen.ids.length, rows = seen.attention ?? seen.kept, cells = rows && new Uint8Array(T * T);
  rows?.forEach((row, t) => row.forEach((weight, s) => { cells[t * T + s] = Math.round(255 * Math.sqrt(weight)); }));
  return {
    tokens: seen.ids.map((id, t) => ({
      id, token: seen.tokens[t], text: seen.texts[t], logprob: seen.logprobs[t], likely: seen.likely[t],
    })),
    experts: Object.entries(seen.experts).map(([layer, {chosen, weights}]) => ({layer, index: chosen, weight: weights})),
    map: rows && {kind: seen.kept ? "kept" : "attention", layer: seen.layer, head: seen.head, cells},
    decay: seen.decay?.map((row) => row.reduce((sum, one) => sum + one, 0) / row.length),
    ends: seen.ends,
    cache: {per_token: seen.cache.bytes_per_token, constant: seen.cache.bytes_constant},
  };
}

// The chunks of a stream, one after another; ends where the server says [DONE].
export async function* stream(path, body, signal) {
  const answer = await ask(path, {...body, stream: true, stream_options: {include_usage: true}}, signal);
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(line(chunk.error.message));
    yield chunk;
  }
  throw new ServerError("The answer broke off: the server closed the connection.");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const {done, value} = await reader.read();
      if (done) return;
      held += value;
      const parts = held.split("\n\n");
      held = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {}); // the server ends what nobody reads
  }
}

// POST where there is a body. A 401 asks for the key and tries again, until it is right or given up.
async function ask(path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = {};
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, {method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal});
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ServerError("The server cannot be reached.");
    }
    if (answer.ok) return answer;
    const error = await refusal(answer);
    if (answer.status !== 401 || !(await newKey(key))) throw error;
  }
}

async function refusal(answer) {
  let message = `The server answered ${answer.status}.`;
  try { message = (await answer.json()).error.message; } catch { /* not one of ours: a proxy's */ }
  return new ServerError(line(message), answer.status);
}

const line = (message) => String(message).replace(/\s+/g, " ").slice(0, 400);

let asking = null;

// Whether there is another key now than the one that was refused. All who wait get the same answer.
function newKey(refused) {
  if (sessionStorage.getItem(KEY) !== refused) return Promise.resolve(true);
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    const end = (given) => {
      asking = null;
      dialog.onclose = null;
      if (dialog.open) dialog.close();
      resolve(given);
    };
    $("key").value = "";
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, $("key").value.trim());
      end(true);
    };
    $("key-cancel").onclick = () => end(false);
    dialog.onclose = () => end(false);
    dialog.showModal();
  });
  return asking;
}
