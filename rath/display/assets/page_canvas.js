// The graph as drawn: cards from near, coloured boxes from afar. Only what the window shows is drawn.

const canvas = byId("graph");
const pen = canvas.getContext("2d");
const view = { x: 0, y: 0, scale: 1 };
const shown = { selected: NONE, compared: NONE, active: NONE, matching: null, lineage: new Set() };
const SCALES = { least: 0.004, most: 2.5, card: 0.46, word: 0.3, box: 0.13 };
const beside = new Set(places.beside);
const widthOf = (node) => (beside.has(node) ? places.side : places.wide);
const families = Array.from({ length: size }, (_, node) => familyOf(node));
const statuses = Array.from({ length: size }, (_, node) => statusOf(node));
let colours = {};

const bounds = { left: 0, top: 0, right: places.wide, bottom: places.high };
for (let node = 0; node < size; node += 1) {
  bounds.right = Math.max(bounds.right, places.x[node] + widthOf(node) / 2);
  bounds.bottom = Math.max(bounds.bottom, places.y[node] + places.high / 2);
}

function readColours() {
  const probe = element("span", "hidden");
  document.body.append(probe);
  const names = ["bg", "ink", "soft", "edge", "accent", "ok", "bad", "run", "raised", "grid", "hit"];
  for (const family of ["loop", "fork", "merge", "custom", "leaf"]) names.push(family, `${family}-line`);
  colours = {};
  for (const name of names) {
    probe.style.color = `var(--${name})`;
    colours[name] = getComputedStyle(probe).color;
  }
  probe.remove();
}

// -- where edges run --------------------------------------------------------------------------------------------------

const edgeStyle = { straight: 0, bus: 1, column: 2, beside: 3, loose: 4, routed: 5 };

function traceEdge(edge) {
  const from = edges.from[edge];
  const to = edges.to[edge];
  const half = places.high / 2;
  const [x0, y0, x1, y1] = [places.x[from], places.y[from] + half, places.x[to], places.y[to] - half];
  const via = edges.via[edge] ?? [];
  const style = edges.style[edge];
  if (style === edgeStyle.bus) {
    const low = y0 + 12;
    const high = y1 - 16;
    pen.moveTo(x0, y0);
    pen.lineTo(x0, low);
    pen.lineTo(via[0], low);
    pen.lineTo(via[0], Math.max(low, high));
    pen.lineTo(x1, Math.max(low, high));
    pen.lineTo(x1, y1);
  } else if (style === edgeStyle.column) {
    const gutter = x1 - places.wide / 2 - 20;
    pen.moveTo(x0, y0);
    pen.lineTo(x0, y0 + 14);
    pen.lineTo(gutter, y0 + 14);
    pen.lineTo(gutter, y1 - 14);
    pen.lineTo(x1, y1 - 14);
    pen.lineTo(x1, y1);
  } else if (style === edgeStyle.beside) {
    pen.moveTo(x0 - widthOf(from) / 2, places.y[from]);
    pen.lineTo(x1 + widthOf(to) / 2, places.y[to]);
  } else {
    // A long edge passes its layers upright, so that it does not cut a corner through a box.
    let [x, y] = [x0, y0];
    pen.moveTo(x, y);
    for (let at = 0; at < via.length; at += 2) {
      bend(x, y, via[at], via[at + 1] - half);
      pen.lineTo(via[at], via[at + 1] + half);
      [x, y] = [via[at], via[at + 1] + half];
    }
    bend(x, y, x1, y1);
  }
}

function bend(x0, y0, x1, y1) {
  if (x0 === x1) {
    pen.lineTo(x1, y1);
    return;
  }
  const half = Math.max(20, Math.min(140, Math.abs(y1 - y0) / 2));
  pen.bezierCurveTo(x0, y0 + half, x1, y1 - half, x1, y1);
}

const edgeBoxes = edges.from.map((from, edge) => {
  const xs = [places.x[from], places.x[edges.to[edge]]];
  const ys = [places.y[from], places.y[edges.to[edge]]];
  (edges.via[edge] ?? []).forEach((value, at) => { if (at % 2 === 0) xs.push(value); });
  return [Math.min(...xs) - 110, Math.min(...ys) - 60, Math.max(...xs) + 110, Math.max(...ys) + 60];
});

// -- drawing ----------------------------------------------------------------------------------------------------------

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  const [wide, high] = [canvas.clientWidth, canvas.clientHeight];
  if (!wide || !high) return;
  if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(high * ratio);
  }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.fillStyle = colours.bg;
  pen.fillRect(0, 0, wide, high);
  pen.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
  const window_ = [-view.x / view.scale, -view.y / view.scale, (wide - view.x) / view.scale, (high - view.y) / view.scale];
  drawEdges(window_);
  const visible = [];
  for (let node = 0; node < size; node += 1) {
    const half = widthOf(node) / 2 + 12;
    const [x, y] = [places.x[node], places.y[node]];
    if (x + half > window_[0] && x - half < window_[2] && y + 40 > window_[1] && y - 40 < window_[3]) visible.push(node);
  }
  if (view.scale < SCALES.box) drawAfar(visible);
  else for (const node of visible) drawCard(node);
  for (const node of [shown.compared, shown.active, shown.selected]) if (node !== NONE) drawRing(node);
  pen.globalAlpha = 1;
}

function drawEdges(window_) {
  const groups = { plain: [], dashed: [], loose: [], lineage: [] };
  const own = shown.lineage;
  for (let edge = 0; edge < edges.from.length; edge += 1) {
    const box = edgeBoxes[edge];
    if (box[2] < window_[0] || box[0] > window_[2] || box[3] < window_[1] || box[1] > window_[3]) continue;
    if (own.has(edges.to[edge]) && own.has(edges.from[edge])) groups.lineage.push(edge);
    else if (edges.style[edge] === edgeStyle.loose) groups.loose.push(edge);
    else if (edges.roles[edges.role[edge]] === "system") groups.dashed.push(edge);
    else groups.plain.push(edge);
  }
  const thin = Math.max(1.4, 0.7 / view.scale);
  const faint = shown.matching ? 0.35 : 1;
  const stroke = (chosen, colour, width, dash, alpha) => {
    if (!chosen.length) return;
    pen.beginPath();
    for (const edge of chosen) traceEdge(edge);
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.setLineDash(dash);
    pen.globalAlpha = alpha;
    pen.stroke();
  };
  // From afar thousands of far-reaching curves would cover the graph and cost more than all the rest.
  if (view.scale >= SCALES.box || groups.loose.length < 400) stroke(groups.loose, colours.edge, thin, [3, 5], 0.55 * faint);
  stroke(groups.plain, colours.edge, thin, [], faint * (view.scale < SCALES.box ? 0.7 : 1));
  stroke(groups.dashed, colours.edge, thin, view.scale < SCALES.box ? [] : [5, 4], faint);
  stroke(groups.lineage, colours.accent, Math.max(2.4, 1.6 / view.scale), [], 1);
  pen.setLineDash([]);
  pen.globalAlpha = 1;
  if (view.scale >= SCALES.box) drawTips([...groups.plain, ...groups.dashed, ...groups.loose], colours.edge), drawTips(groups.lineage, colours.accent);
}

function drawTips(chosen, colour) {
  pen.fillStyle = colour;
  pen.beginPath();
  for (const edge of chosen) {
    const to = edges.to[edge];
    if (edges.style[edge] === edgeStyle.beside) {
      const x = places.x[to] + widthOf(to) / 2;
      const y = places.y[to];
      pen.moveTo(x, y);
      pen.lineTo(x + 7, y - 4);
      pen.lineTo(x + 7, y + 4);
    } else {
      const x = places.x[to];
      const y = places.y[to] - places.high / 2;
      pen.moveTo(x, y);
      pen.lineTo(x - 4, y - 7);
      pen.lineTo(x + 4, y - 7);
    }
  }
  pen.fill();
}

const dimmed = (node) => shown.matching !== null && !shown.matching.has(node);

/** One colour at a time: ten thousand changes of colour would be most of the work. */
function drawAfar(visible) {
  const least = 2 / view.scale;
  const groups = new Map();
  for (const node of visible) {
    const key = `${dimmed(node) ? 1 : 0} ${families[node]}`;
    groups.get(key)?.push(node) ?? groups.set(key, [node]);
  }
  const box = (node, grow) => {
    const wide = Math.max(widthOf(node), least) + grow;
    const high = Math.max(places.high, least) + grow;
    pen.fillRect(places.x[node] - wide / 2, places.y[node] - high / 2, wide, high);
  };
  for (const [key, group] of [...groups].sort().reverse()) {
    const [dim, family] = key.split(" ");
    pen.globalAlpha = dim === "1" ? 0.22 : 1;
    pen.fillStyle = colours[`${family}-line`];
    for (const node of group) box(node, 0);
  }
  pen.globalAlpha = 1;
  // What went wrong, and what is not done yet, can be found from any distance: a diamond, a disc.
  const r = Math.max(places.high / 2, 4 / view.scale);
  for (const node of visible) {
    const colour = { failed: colours.bad, running: colours.run }[statuses[node]];
    if (!colour || dimmed(node)) continue;
    const [x, y] = [places.x[node], places.y[node]];
    pen.beginPath();
    if (statuses[node] === "failed") pen.moveTo(x, y - 1.3 * r), pen.lineTo(x + 1.3 * r, y), pen.lineTo(x, y + 1.3 * r), pen.lineTo(x - 1.3 * r, y), pen.closePath();
    else pen.arc(x, y, r, 0, 7);
    pen.fillStyle = colour;
    pen.fill();
    pen.strokeStyle = colours.bg;
    pen.lineWidth = 1.2 / view.scale;
    pen.stroke();
  }
}

function drawCard(node) {
  const [wide, high] = [widthOf(node), places.high];
  const [x, y] = [places.x[node] - wide / 2, places.y[node] - high / 2];
  const family = families[node];
  const status = statuses[node];
  pen.globalAlpha = dimmed(node) ? 0.25 : 1;
  pen.beginPath();
  pen.roundRect(x, y, wide, high, family === "leaf" ? 22 : 8);
  pen.fillStyle = colours[family];
  pen.fill();
  pen.strokeStyle = status === "failed" ? colours.bad : colours[`${family}-line`];
  pen.lineWidth = status === "failed" ? 2.6 : 1.5;
  pen.setLineDash(status === "pending" || status === "unknown" ? [5, 4] : []);
  pen.stroke();
  pen.setLineDash([]);
  drawFamily(family, x, y, wide, high);
  const card = view.scale >= SCALES.card;
  if (card) drawIcon(status, x + 20, y + high / 2, 1);
  else if (view.scale >= SCALES.word) drawIcon(status, x + 22, y + high / 2, 1.5);
  else drawIcon(status, x + wide / 2, y + high / 2, 2.1);
  if (view.scale < SCALES.word) return;
  pen.textBaseline = "middle";
  pen.fillStyle = colours.ink;
  if (card) {
    const second = beside.has(node) ? "" : brief(node) || shortId(node);
    pen.font = FONTS.label;
    pen.fillText(fitted(labelOf(node), wide - 46, FONTS.label), x + 36, y + (second ? 19 : high / 2));
    pen.fillStyle = colours.soft;
    pen.font = FONTS.second;
    pen.fillText(fitted(second, wide - 46, FONTS.second), x + 36, y + 35);
  } else {
    pen.font = FONTS.word;
    pen.fillText(fitted(labelOf(node), wide - 58, FONTS.word), x + 46, y + high / 2 + 1);
  }
}

/** What tells families apart without colour: a bar at the left (fork), a bar on top (merge), a line below (custom). */
function drawFamily(family, x, y, wide, high) {
  pen.fillStyle = colours[`${family}-line`];
  if (family === "fork") pen.fillRect(x, y + 8, 4, high - 16);
  else if (family === "merge") pen.fillRect(x + 8, y, wide - 16, 4);
  else if (family === "custom") for (let at = x + 10; at < x + wide - 12; at += 10) pen.fillRect(at, y + high - 4, 6, 3);
}

const FAMILY_FONT = 'system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif';
const FONTS = { label: `600 13px ${FAMILY_FONT}`, second: `11.5px ${FAMILY_FONT}`, word: `600 19px ${FAMILY_FONT}` };
const fits = new Map();

function fitted(text, room, font) {
  const key = `${font}${room}|${text}`;
  let found = fits.get(key);
  if (found !== undefined) return found;
  pen.font = font;
  found = text;
  let low = 0;
  let high = text.length;
  if (pen.measureText(text).width > room) {
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (pen.measureText(`${text.slice(0, middle)}…`).width <= room) low = middle;
      else high = middle - 1;
    }
    found = `${text.slice(0, low)}…`;
  }
  if (fits.size > 20000) fits.clear();
  fits.set(key, found);
  return found;
}

/** A status's own shape, so that nobody needs its colour. */
function drawIcon(status, x, y, scale) {
  const r = 7 * scale;
  pen.beginPath();
  pen.lineWidth = 1.7 * scale;
  pen.lineCap = "round";
  pen.lineJoin = "round";
  const fill = { completed: colours.ok, failed: colours.bad, cancelled: colours.soft, running: colours.run }[status];
  if (status === "completed") pen.arc(x, y, r, 0, 7);
  else if (status === "failed") octagon(x, y, r);
  else if (status === "cancelled") pen.roundRect(x - r + 0.7, y - r + 0.7, 2 * r - 1.4, 2 * r - 1.4, 2);
  else if (status === "running") pen.moveTo(x - r * 0.7, y - r), pen.lineTo(x + r, y), pen.lineTo(x - r * 0.7, y + r), pen.closePath();
  else if (status === "pending") pen.arc(x, y, r - 1, 0, 7);
  else pen.moveTo(x, y - r), pen.lineTo(x + r, y), pen.lineTo(x, y + r), pen.lineTo(x - r, y), pen.closePath();
  if (fill) {
    pen.fillStyle = fill;
    pen.fill();
    pen.strokeStyle = colours.bg;
  } else {
    pen.strokeStyle = colours.soft;
    pen.setLineDash(status === "pending" ? [3, 2.4] : []);
    pen.stroke();
    pen.setLineDash([]);
  }
  pen.beginPath();
  const k = r / 7;
  if (status === "completed") pen.moveTo(x - 3.4 * k, y + 0.3 * k), pen.lineTo(x - 1 * k, y + 2.8 * k), pen.lineTo(x + 3.6 * k, y - 2.4 * k);
  else if (status === "failed") pen.moveTo(x - 2.6 * k, y - 2.6 * k), pen.lineTo(x + 2.6 * k, y + 2.6 * k), pen.moveTo(x + 2.6 * k, y - 2.6 * k), pen.lineTo(x - 2.6 * k, y + 2.6 * k);
  else if (status === "cancelled") pen.moveTo(x - 3.2 * k, y), pen.lineTo(x + 3.2 * k, y);
  else return;
  pen.stroke();
}

function octagon(x, y, r) {
  const c = r * 0.43;
  [[c, -r], [r, -c], [r, c], [c, r], [-c, r], [-r, c], [-r, -c], [-c, -r]].forEach(([dx, dy], at) => {
    if (at) pen.lineTo(x + dx, y + dy);
    else pen.moveTo(x + dx, y + dy);
  });
  pen.closePath();
}

function drawRing(node) {
  const grow = Math.max(5, 3 / view.scale);
  const wide = Math.max(widthOf(node), 5 / view.scale) + 2 * grow;
  const high = Math.max(places.high, 5 / view.scale) + 2 * grow;
  pen.globalAlpha = 1;
  pen.strokeStyle = node === shown.selected ? colours.accent : node === shown.compared ? colours.ink : colours.soft;
  pen.lineWidth = Math.max(3, 2 / view.scale);
  pen.setLineDash(node === shown.compared ? [9, 5] : node === shown.selected ? [] : [3, 3]);
  pen.beginPath();
  pen.roundRect(places.x[node] - wide / 2, places.y[node] - high / 2, wide, high, 12);
  pen.stroke();
  pen.setLineDash([]);
}
