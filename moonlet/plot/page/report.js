"use strict";
// Draws the figures of a run's report from the JSON in the page. Curves are SVG, maps are canvas; all follow the
// reader's light or dark setting, a change of width, the pointer and the keyboard.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const redraws = [];
  let by = "step";

  const html = (name, parent, text, settings = {}) => {
    const node = Object.assign(document.createElement(name), settings);
    if (text !== undefined && text !== null) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const svg = (name, parent, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
  const percent = (p) => (p >= 0.0995 ? (100 * p).toFixed(0) : p >= 0.001 ? (100 * p).toFixed(1) : "<0.1") + "%";
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const mid = (low + high) >> 1; if (xs[mid] < x) low = mid; else high = mid; }
    return x - xs[low] <= xs[high] - x ? low : high;
  };
  function number(x) {
    const size = Math.abs(x);
    if (size >= 1000) return x.toLocaleString("en", { maximumFractionDigits: 0 });
    if (size >= 0.01 || !size) return String(Number(x.toPrecision(4)));
    return x.toExponential(2).replace(/\.?0+e/, "e");
  }

  // Where a step lies on the chosen axis, and what that axis is called.
  function place(step) {
    if (by === "step") return step;
    if (by === "tokens") return step * data.tokens_per_step;
    const { steps, seconds } = data.clock;
    const i = clamp(steps.findIndex((s) => s >= step), 1, steps.length - 1);
    const part = (step - steps[i - 1]) / (steps[i] - steps[i - 1] || 1);
    return seconds[i - 1] + clamp(part, 0, 1) * (seconds[i] - seconds[i - 1]);
  }
  function axis() {
    const end = place(data.last_step);
    const pick = (units) => units.find(([size]) => end >= 2 * size) || [1, units.one];
    if (by === "tokens") return pick(Object.assign([[1e9, "billion tokens"], [1e6, "million tokens"], [1e3, "thousand tokens"]], { one: "tokens" }));
    if (by === "time") return pick(Object.assign([[3600, "hours of training"], [60, "minutes of training"]], { one: "seconds of training" }));
    return [1, "step"];
  }
  function ticks(low, high, count) {
    const rough = (high - low) / count, size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * size).find((s) => s >= rough);
    const out = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) out.push(Number((i * step).toPrecision(12)));
    return out;
  }

  // A figure: caption with a readout, a place to draw in, and a redraw for every change of width, axis or colours.
  function figure(host, title, draw) {
    const caption = html("figcaption", host);
    html("span", caption, title);
    const readout = html("span", caption, "", { className: "readout" });
    readout.setAttribute("role", "status");
    const body = html("div", host);
    let width = 0;
    const redraw = () => { body.replaceChildren(); readout.textContent = ""; draw(body, readout, Math.max(220, width)); };
    redraws.push(redraw);
    new ResizeObserver(() => {
      // Drawn in the next frame: changing sizes while sizes are being reported would report them again.
      if (body.clientWidth && Math.abs(body.clientWidth - width) > 1) { width = body.clientWidth; requestAnimationFrame(redraw); }
    }).observe(body);
  }

  function curves(host, chart) {
    figure(host, chart.title, (body, readout, width) => {
      const height = clamp(width * 0.5, 190, 270), [unit, below] = axis();
      const left = 46, right = width - 8, top = 10, bottom = height - 32;
      const [low, high] = chart.range, end = place(data.last_step) / unit;
      const x = (value) => left + (value / end) * (right - left);
      const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
      const root = svg("svg", body, { viewBox: `0 0 ${width} ${height}`, height, tabindex: 0, role: "img", "aria-label": `${chart.title}. ${chart.summary}. Arrow keys read values.` });
      const id = `clip-${host.dataset.chart}`;
      svg("rect", svg("clipPath", svg("defs", root, {}), { id }), { x: left, y: top - 4, width: right - left + 4, height: bottom - top + 8 });
      for (const t of ticks(low, high, height / 45)) {
        svg("line", root, { class: "grid", x1: left, x2: right, y1: y(t), y2: y(t) });
        svg("text", root, { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, number(t));
      }
      for (const t of ticks(0, end, width / 80)) svg("text", root, { x: x(t), y: bottom + 15, "text-anchor": t === 0 ? "start" : x(t) > right - 14 ? "end" : "middle" }, number(t));
      svg("text", root, { x: right, y: height - 3, "text-anchor": "end" }, below);
      const plot = svg("g", root, { "clip-path": `url(#${id})` });
      if (chart.floor) {
        svg("line", plot, { class: "floor", x1: left, x2: right, y1: y(chart.floor), y2: y(chart.floor) });
        svg("text", root, { class: "floor-name", x: left + 4, y: y(chart.floor) - 5 }, `${chart.floor_name} ${number(chart.floor)}`);
      }
      const read = [];
      for (const series of chart.series) {
        const xs = series.steps.map((s) => place(s) / unit), colour = `var(--c${series.tone})`;
        const points = xs.map((v, i) => `${x(v).toFixed(1)},${y(series.values[i]).toFixed(1)}`);
        svg("polyline", plot, { class: series.faint ? "curve faint" : "curve", stroke: colour, points: points.join(" ") });
        if (!series.faint && xs.length <= 40) for (const p of points) { const [cx, cy] = p.split(","); svg("circle", plot, { cx, cy, r: 2.6, fill: colour }); }
        if (!series.faint) read.push({ ...series, xs, dot: svg("circle", plot, { r: 4, fill: colour, visibility: "hidden" }) });
      }
      if (read.length > 1) {
        const list = html("ul", body, null, { className: "legend" });
        for (const series of read) { const item = html("li", list); html("i", item).style.background = `var(--c${series.tone})`; item.append(series.name); }
      }
      const cursor = svg("line", root, { class: "cursor", y1: top, y2: bottom, visibility: "hidden" });
      // The series with most points leads; the others say what they know nearest to it.
      const lead = read.reduce((a, b) => (b.xs.length > a.xs.length ? b : a));
      let at = -1;
      const show = (i) => {
        at = clamp(i, 0, lead.xs.length - 1);
        const values = read.map((s) => {
          const j = nearest(s.xs, lead.xs[at]);
          s.dot.setAttribute("cx", x(s.xs[j])); s.dot.setAttribute("cy", y(s.values[j])); s.dot.setAttribute("visibility", "visible");
          return (read.length > 1 ? s.name + " " : "") + number(s.values[j]);
        });
        for (const end_ of ["x1", "x2"]) cursor.setAttribute(end_, x(lead.xs[at]));
        cursor.setAttribute("visibility", "visible");
        const where = by === "step" ? `step ${number(lead.steps[at])}` : `${number(lead.xs[at])} ${below}`;
        readout.textContent = `${where}: ${values.join(", ")}`;
      };
      const hide = () => {
        readout.textContent = "";
        for (const node of [cursor, ...read.map((s) => s.dot)]) node.setAttribute("visibility", "hidden");
      };
      root.addEventListener("pointermove", (event) => {
        const box = root.getBoundingClientRect();
        show(nearest(lead.xs, ((((event.clientX - box.left) / box.width) * width - left) / (right - left)) * end));
      });
      root.addEventListener("pointerleave", hide);
      root.addEventListener("blur", hide);
      root.addEventListener("keydown", (event) => {
        const far = Math.max(1, Math.round(lead.xs.length / 20));
        const to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - far, PageDown: at + far, Home: 0, End: 1e9 }[event.key];
        if (to !== undefined) { event.preventDefault(); show(to); }
      });
    });
  }

  // Colours of maps: a list of stops from 0 to 1.
  const stops = {
    load: [["#1d3f8f", "#8fb0ec", "#f4f4f2", "#f0a376", "#9a3206"], ["#8db4ff", "#35579c", "#23272d", "#a04d1c", "#ffab70"]],
    attention: [["#ffffff", "#b9cdf3", "#3b6fd4", "#152a5c"], ["#1c2026", "#274377", "#5b8df0", "#dbe7ff"]],
  };
  function colours(name) {
    const list = stops[name][dark.matches ? 1 : 0].map((c) => [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16)));
    return (part) => {
      const at = clamp(part, 0, 1) * (list.length - 1), i = Math.min(list.length - 2, Math.floor(at));
      return list[i].map((c, k) => Math.round(c + (list[i + 1][k] - c) * (at - i)));
    };
  }
  const rgb = (c) => `rgb(${c.join(",")})`;
  const ramp = (name) => `linear-gradient(90deg, ${stops[name][dark.matches ? 1 : 0].join(", ")})`;

  function canvas(parent, width, height) {
    const node = html("canvas", parent), dense = Math.min(3, devicePixelRatio || 1);
    node.width = Math.round(width * dense); node.height = Math.round(height * dense);
    node.style.height = `${height}px`;
    const pen = node.getContext("2d");
    pen.scale(dense, dense);
    return [node, pen];
  }

  function loads(host) {
    const { layers, experts, steps, maps } = data.load;
    const scale = document.getElementById("load-scale");
    const rescale = () => {
      scale.replaceChildren("0");
      html("i", scale).style.background = ramp("load");
      scale.append("twice an even load, or more");
    };
    redraws.push(rescale); rescale();
    layers.forEach((layer, which) => {
      const map = bytes(maps[which]);
      figure(html("figure", host), `Layer ${layer}`, (body, readout, width) => {
        const height = clamp(experts * 9, 80, 240), colour = colours("load"), [unit, below] = axis();
        const [node, pen] = canvas(body, width, height);
        const xs = steps.map((s) => place(s)), end = xs[xs.length - 1];
        const edge = (i) => (i < 0 ? 0 : (xs[i] / end) * width);
        for (let i = 0; i < steps.length; i++) for (let e = 0; e < experts; e++) {
          pen.fillStyle = rgb(colour(map[i * experts + e] / 200));
          pen.fillRect(edge(i - 1), (e * height) / experts, edge(i) - edge(i - 1) + 0.6, height / experts + 0.6);
        }
        const ends = html("div", body, null, { className: "axis" });
        html("span", ends, `expert 0 above, ${experts - 1} below`);
        html("span", ends, `${number(end / unit)} ${by === "step" ? "steps" : below}`);
        node.setAttribute("role", "img"); node.tabIndex = 0;
        node.setAttribute("aria-label", `Load of each expert of layer ${layer} over training. Arrow keys read values.`);
        let at = [steps.length - 1, 0];
        const show = () => {
          const share = map[at[0] * experts + at[1]] / 100;
          readout.textContent = `step ${number(steps[at[0]])}, expert ${at[1]}: ${share > 2.54 ? "over 2.5" : share.toFixed(2)} × even`;
        };
        node.addEventListener("pointermove", (event) => {
          const box = node.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * end;
          const i = xs.findIndex((v) => v >= x);
          at = [i < 0 ? xs.length - 1 : i, clamp(Math.floor(((event.clientY - box.top) / box.height) * experts), 0, experts - 1)];
          show();
        });
        node.addEventListener("pointerleave", () => (readout.textContent = ""));
        node.addEventListener("keydown", (event) => {
          const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
          if (!move) return;
          event.preventDefault();
          at = [clamp(at[0] + move[0], 0, steps.length - 1), clamp(at[1] + move[1], 0, experts - 1)];
          show();
        });
      });
    });
  }

  // One chosen token and one chosen head, which the three views of the text share.
  function reading() {
    const { labels, expected, came, surprise } = data.reading, T = labels.length;
    const strip = document.getElementById("tokens"), next = document.getElementById("next");
    let chosen = surprise.length ? surprise.indexOf(Math.max(...surprise)) : 0;
    const listeners = [];
    const buttons = labels.map((label, t) => {
      const button = html("button", strip, label, { type: "button", title: t ? `${surprise[t - 1].toFixed(1)} bits` : "" });
      button.addEventListener("click", () => choose(t));
      button.addEventListener("keydown", (event) => {
        const to = { ArrowLeft: t - 1, ArrowRight: t + 1 }[event.key];
        if (to !== undefined && buttons[to]) { event.preventDefault(); buttons[to].focus(); choose(to); }
      });
      return button;
    });
    const shade = () => {
      const colour = colours("attention");
      buttons.forEach((b, t) => t && b.style.setProperty("--shade", rgb(colour(surprise[t - 1] / 10))));
    };
    redraws.push(shade); shade();
    function choose(t) {
      chosen = t;
      buttons.forEach((b, i) => b.setAttribute("aria-pressed", i === t));
      const table = html("table", null, null, { className: "next" });
      const head = html("tr", html("thead", table));
      html("th", head, `after ${labels[t]}`, { colSpan: 3 });
      const body = html("tbody", table);
      expected[t].forEach(([label, p], rank) => {
        const row = html("tr", body, null, { className: rank === came[t] ? "came" : "" });
        html("td", row, label);
        html("i", html("td", row)).style.width = `${100 * p}%`;
        html("td", row, percent(p));
      });
      const told = t + 1 < T ? `What came, ${labels[t + 1]}, cost ${surprise[t].toFixed(1)} bits.` : "The text ends here.";
      next.replaceChildren(table, html("p", null, told, { className: "note" }));
      listeners.forEach((f) => f());
    }
    if (data.attention) attention(labels, () => chosen, (f) => listeners.push(f));
    choose(chosen);
  }

  function attention(labels, chosen, onChoice) {
    const { layers, heads, maps } = data.attention, T = labels.length;
    const all = maps.map(bytes), grid = document.getElementById("heads"), host = document.getElementById("attention");
    let which = all.length - heads.length;
    const name = (i) => `layer ${layers[Math.floor(i / heads.length)]}, head ${heads[i % heads.length]}`;
    const probability = (i, q, k) => (all[i][q * T + k] / 255) ** 2;
    let mark = () => {};
    figure(host, "", (body, readout, width) => {
      const colour = colours("attention"), room = clamp(Math.max(...labels.map((l) => Math.min(10, l.length))) * 7.2, 30, 76);
      const size = (Math.min(width, 560) - room) / T, height = T * size + room;
      const root = svg("svg", body, { viewBox: `0 0 ${width} ${height}`, height, tabindex: 0, role: "img", "aria-label": `Attention of ${name(which)}. Arrow keys read values.` });
      const short = (l) => (l.length > 10 ? l.slice(0, 9) + "…" : l), letter = clamp(size * 0.85, 6, 11);
      for (let q = 0; q < T; q++) {
        svg("text", root, { x: room - 4, y: (q + 0.5) * size + letter / 3, "text-anchor": "end", style: `font-size:${letter}px` }, short(labels[q]));
        svg("text", root, { transform: `translate(${room + (q + 0.5) * size + letter / 3} ${T * size + 4}) rotate(-90)`, "text-anchor": "end", style: `font-size:${letter}px` }, short(labels[q]));
        for (let k = 0; k <= q; k++) svg("rect", root, { x: room + k * size, y: q * size, width: size - 0.4, height: size - 0.4, fill: rgb(colour(all[which][q * T + k] / 255)) });
      }
      const frame = svg("rect", root, { fill: "none", stroke: "var(--c1)", "stroke-width": 1.6 });
      let at = [chosen(), 0];
      const show = () => { readout.textContent = `${labels[at[0]]} looks at ${labels[at[1]]}: ${percent(probability(which, ...at))}`; };
      mark = () => {
        at = [chosen(), 0];
        for (let k = 1; k <= at[0]; k++) if (all[which][at[0] * T + k] > all[which][at[0] * T + at[1]]) at[1] = k;
        const box = { x: room - 1, y: at[0] * size - 1, width: (at[0] + 1) * size + 2, height: size + 2 };
        for (const key in box) frame.setAttribute(key, box[key]);
        host.querySelector("figcaption span").textContent = name(which)[0].toUpperCase() + name(which).slice(1);
        show();
      };
      root.addEventListener("pointermove", (event) => {
        const box = root.getBoundingClientRect(), scale = width / box.width;
        const q = Math.floor(((event.clientY - box.top) * scale) / size), k = Math.floor(((event.clientX - box.left) * scale - room) / size);
        if (q >= 0 && q < T && k >= 0 && k <= q) { at = [q, k]; show(); }
      });
      root.addEventListener("pointerleave", () => mark());
      root.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (!move) return;
        event.preventDefault();
        at[0] = clamp(at[0] + move[0], 0, T - 1); at[1] = clamp(at[1] + move[1], 0, at[0]);
        show();
      });
      mark();
    });
    onChoice(() => mark());
    const large = redraws[redraws.length - 1];
    grid.style.gridTemplateColumns = `max-content repeat(${heads.length}, minmax(2.2rem, 7rem))`;
    const small = all.map((map, i) => {
      if (i % heads.length === 0) html("span", grid, layers[i / heads.length]);
      const button = html("button", grid, null, { type: "button", title: name(i) });
      button.setAttribute("aria-label", name(i));
      button.addEventListener("click", () => { which = i; press(); large(); });
      const node = html("canvas", button);
      node.width = node.height = T;
      return [button, () => {
        const colour = colours("attention"), pen = node.getContext("2d"), image = pen.createImageData(T, T);
        map.forEach((value, j) => image.data.set(j % T <= Math.floor(j / T) ? [...colour(value / 255), 255] : [0, 0, 0, 0], 4 * j));
        pen.putImageData(image, 0, 0);
      }];
    });
    const press = () => small.forEach(([button], i) => button.setAttribute("aria-pressed", i === which));
    const paint = () => small.forEach(([, draw]) => draw());
    redraws.push(paint); paint(); press();
  }

  function samples(section) {
    const articles = [...section.querySelectorAll("article")], slider = section.querySelector(".slider");
    const input = slider.querySelector("input"), out = slider.querySelector("output");
    const show = () => {
      articles.forEach((a, i) => (a.hidden = i !== Number(input.value)));
      out.textContent = `step ${number(Number(articles[input.value].dataset.step))}`;
    };
    slider.querySelectorAll("button").forEach((b, i) => b.addEventListener("click", () => { input.value = Number(input.value) + (i ? 1 : -1); show(); }));
    input.addEventListener("input", show);
    articles.forEach((a) => (a.querySelector("h3").hidden = true));
    slider.hidden = articles.length < 2;
    show();
  }

  document.querySelectorAll("[data-chart]").forEach((host) => curves(host, data.charts[host.dataset.chart]));
  if (data.load) loads(document.getElementById("loads"));
  if (data.reading) reading();
  const told = document.getElementById("samples");
  if (told) samples(told);
  const redraw = () => redraws.forEach((f) => f());
  document.querySelectorAll("input[name=by]").forEach((input) => input.addEventListener("change", () => { by = input.value; redraw(); }));
  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
})();
