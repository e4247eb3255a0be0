// Pictures of what a model did, on canvases: experts by token, a head's map, decay, the cache's size.

const GAP = 7; // between layers of experts
const SIDE = 22; // room for a label at the left
const FRAME = 2; // of .scroll

// Colours as the page has them now; a canvas knows no variables.
export function colours(node) {
  const style = (name) => {
    node.style.color = `var(${name})`;
    const found = getComputedStyle(node).color;
    node.style.color = "";
    return found;
  };
  return {accent: style("--accent"), ink: style("--ink"), muted: style("--muted"), line: style("--line"), cell: style("--cell")};
}

// A canvas of so many CSS pixels, sharp on its screen.
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.clearRect(0, 0, width, height);
  pen.font = "10px system-ui, sans-serif";
  return pen;
}

// Where things are in the picture of experts: of T tokens, for E experts in each of some layers.
export function expertsPlan(T, E, layers, room) {
  const cell = Math.max(4, Math.min(16, Math.floor((room - SIDE) / Math.max(T, 24))));
  const row = Math.max(2, Math.min(6, Math.floor(96 / E)));
  return {cell, row, band: E * row + GAP, width: SIDE + T * cell, height: layers * (E * row + GAP)};
}

export function drawExperts(canvas, view, E, at) {
  const {experts, tokens} = view;
  const room = canvas.parentElement.clientWidth - 2 * FRAME;
  const plan = expertsPlan(tokens.length, E, experts.length, room);
  const ink = colours(canvas);
  const pen = sized(canvas, Math.max(plan.width, 1), Math.max(plan.height, 1));
  experts.forEach(({layer, index, weight}, place) => {
    const top = place * plan.band;
    pen.globalAlpha = 1;
    pen.fillStyle = ink.cell;
    pen.fillRect(SIDE, top, index.length * plan.cell, E * plan.row);
    pen.fillStyle = ink.muted;
    pen.textBaseline = "middle";
    pen.fillText(`L${layer}`, 0, top + (E * plan.row) / 2);
    pen.fillStyle = ink.accent;
    index.forEach((chosen, t) => chosen.forEach((expert, a) => {
      // By share, so that two experts of equal weight look alike in every layer.
      const share = weight[t][a] / weight[t].reduce((sum, one) => sum + one, 1e-9);
      pen.globalAlpha = 0.2 + 0.8 * share;
      pen.fillRect(SIDE + t * plan.cell, top + expert * plan.row, plan.cell - (plan.cell > 5 ? 1 : 0), plan.row - (plan.row > 3 ? 1 : 0));
    }));
  });
  pen.globalAlpha = 1;
  if (at >= 0 && at < tokens.length) {
    pen.strokeStyle = ink.ink;
    pen.strokeRect(SIDE + at * plan.cell - 0.5, 0.5, plan.cell, plan.height - GAP - 1);
  }
  return plan;
}

// The token and layer under a point of the picture.
export function expertsAt(plan, x, y) {
  return {t: Math.floor((x - SIDE) / plan.cell), place: Math.floor(y / plan.band)};
}

// A map of T x T bytes, row by row: how each token weighs those before it, or what is left of them.
export function drawMap(canvas, cells, T, at, side) {
  const ink = colours(canvas);
  const pen = sized(canvas, side, side);
  const [r, g, b] = ink.accent.match(/[\d.]+/g).map(Number);
  const image = new ImageData(T, T);
  for (let i = 0; i < T * T; i += 1) image.data.set([r, g, b, cells[i]], 4 * i);
  const small = new OffscreenCanvas(T, T);
  small.getContext("2d").putImageData(image, 0, 0);
  pen.fillStyle = ink.cell;
  pen.beginPath();
  pen.moveTo(0, 0);
  pen.lineTo(side, side);
  pen.lineTo(0, side);
  pen.fill();
  pen.imageSmoothingEnabled = T > side;
  pen.drawImage(small, 0, 0, side, side);
  if (at >= 0 && at < T) {
    const cell = side / T;
    pen.strokeStyle = ink.ink;
    pen.strokeRect(0.5, Math.max(0.5, at * cell - 0.5), (at + 1) * cell, Math.max(cell, 2));
  }
}

// What each token leaves of a head's state, as bars from nothing to all.
export function drawDecay(canvas, decay, at, width, height = 46) {
  const ink = colours(canvas);
  const pen = sized(canvas, width, height);
  const step = width / decay.length;
  pen.fillStyle = ink.cell;
  pen.fillRect(0, 0, width, height);
  decay.forEach((left, t) => {
    pen.fillStyle = t === at ? ink.ink : ink.accent;
    pen.globalAlpha = t === at ? 1 : 0.75;
    pen.fillRect(t * step, height * (1 - left), Math.max(step - (step > 4 ? 1 : 0), 0.5), height * left);
  });
  pen.globalAlpha = 1;
}

// Bytes by length: the states that stay, the entries that grow, and what whole keys and values would take.
export function drawCache(canvas, {per_token: grows, constant}, full, T, width, height = 92) {
  const ink = colours(canvas);
  const pen = sized(canvas, width, height);
  const most = Math.max(64, Math.ceil((T * 1.3) / 32) * 32);
  const top = Math.max(constant + grows * most, full * most) * 1.08 || 1;
  const foot = height - 16;
  const x = (length) => (width * length) / most, y = (bytes) => foot - (foot * bytes) / top;
  const area = (from, to, alpha) => {
    pen.globalAlpha = alpha;
    pen.fillStyle = ink.accent;
    pen.beginPath();
    pen.moveTo(0, y(from(0)));
    pen.lineTo(0, y(to(0)));
    pen.lineTo(x(T), y(to(T)));
    pen.lineTo(x(T), y(from(T)));
    pen.fill();
    pen.globalAlpha = 1;
  };
  const line = (bytes, colour, dashes = []) => {
    pen.strokeStyle = colour;
    pen.setLineDash(dashes);
    pen.lineWidth = 1.5;
    pen.beginPath();
    pen.moveTo(0, y(bytes(0)));
    pen.lineTo(width, y(bytes(most)));
    pen.stroke();
    pen.setLineDash([]);
  };
  area(() => 0, () => constant, 0.22);
  area(() => constant, (n) => constant + grows * n, 0.5);
  line((n) => constant + grows * n, ink.accent);
  line((n) => full * n, ink.muted, [3, 4]);
  pen.strokeStyle = ink.line;
  pen.lineWidth = 1;
  pen.beginPath();
  pen.moveTo(0, foot + 0.5);
  pen.lineTo(width, foot + 0.5);
  pen.stroke();
  pen.fillStyle = ink.muted;
  pen.textBaseline = "bottom";
  pen.fillText("0", 0, height);
  pen.textAlign = "right";
  pen.fillText(`${most} tokens`, width, height);
  pen.fillStyle = ink.ink;
  pen.beginPath();
  pen.arc(Math.min(x(T), width - 4), y(constant + grows * T), 3.5, 0, 7);
  pen.fill();
}

export function bytes(count) {
  if (count < 1000) return `${Math.round(count)} B`;
  const [unit, size] = count < 1e6 ? ["KB", 1e3] : count < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
  return `${(count / size).toFixed(count / size < 10 ? 1 : 0)} ${unit}`;
}
