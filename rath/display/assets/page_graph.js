// The graph under a reader's hands: to move, to zoom, to point at, and to walk with the keyboard.

function zoomTo(scale, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const next = Math.min(SCALES.most, Math.max(SCALES.least, scale));
  view.x = x - ((x - view.x) * next) / view.scale;
  view.y = y - ((y - view.y) * next) / view.scale;
  view.scale = next;
  redraw();
}

let before = [0, 0];
/** The middle stays the middle when a panel opens or the window changes. */
function settle() {
  const [wide, high] = [canvas.clientWidth, canvas.clientHeight];
  if (!wide || !high) return false;
  if (before[0]) [view.x, view.y] = [view.x + (wide - before[0]) / 2, view.y + (high - before[1]) / 2];
  before = [wide, high];
  return true;
}

/** The whole graph; where that is large, from far away. */
function fitAll() {
  if (!settle()) return;
  const [wide, high] = before;
  const margin = Math.min(48, wide / 12);
  const [w, h] = [bounds.right - bounds.left, bounds.bottom - bounds.top];
  view.scale = Math.min(1.1, Math.max(SCALES.least, Math.min((wide - 2 * margin) / w, (high - 2 * margin) / h)));
  view.x = wide / 2 - (view.scale * (bounds.left + bounds.right)) / 2;
  view.y = Math.max(margin, high / 2 - (view.scale * (bounds.top + bounds.bottom)) / 2);
  redraw();
}

/** Bring a node into sight; nearer, if it could not be read. */
function show(node, near) {
  if (!settle()) return;
  const [wide, high] = before;
  if (near && view.scale < SCALES.card) view.scale = 0.8;
  const x = view.x + places.x[node] * view.scale;
  const y = view.y + places.y[node] * view.scale;
  const [mx, my] = [Math.min(130, wide / 3), Math.min(80, high / 3)];
  if (near || x < mx || x > wide - mx || y < my || y > high - my) {
    view.x = wide / 2 - places.x[node] * view.scale;
    view.y = high / 2 - places.y[node] * view.scale;
  }
  redraw();
}

function nodeAt(clientX, clientY) {
  const box = canvas.getBoundingClientRect();
  const x = (clientX - box.left - view.x) / view.scale;
  const y = (clientY - box.top - view.y) / view.scale;
  const slack = Math.max(2, 4 / view.scale);
  for (let node = size - 1; node >= 0; node -= 1) {
    if (Math.abs(places.x[node] - x) < widthOf(node) / 2 + slack && Math.abs(places.y[node] - y) < places.high / 2 + slack) return node;
  }
  return NONE;
}

function steerGraph({ select, compare }) {
  const fingers = new Map();
  let moved = 0;
  let spread = 0;

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (fingers.size === 1) moved = 0;
    spread = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) {
      hover(event);
      return;
    }
    const now = [event.clientX, event.clientY];
    fingers.set(event.pointerId, now);
    moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
    if (fingers.size === 1) {
      if (moved < 5) return;
      view.x += now[0] - before[0];
      view.y += now[1] - before[1];
      redraw();
    } else if (fingers.size === 2) {
      const [[ax, ay], [bx, by]] = [...fingers.values()];
      const apart = Math.hypot(ax - bx, ay - by);
      const box = canvas.getBoundingClientRect();
      if (spread) zoomTo((view.scale * apart) / spread, (ax + bx) / 2 - box.left, (ay + by) / 2 - box.top);
      spread = apart;
    }
  });
  const lift = (event) => {
    const alone = fingers.size === 1;
    fingers.delete(event.pointerId);
    spread = 0;
    if (event.type !== "pointerup" || !alone || moved >= 5) return;
    const node = nodeAt(event.clientX, event.clientY);
    if (node === NONE) return;
    if (event.shiftKey || event.metaKey || event.ctrlKey) compare(node);
    else select(node);
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => { byId("hover").hidden = true; });
  canvas.addEventListener("dblclick", (event) => {
    const box = canvas.getBoundingClientRect();
    zoomTo(view.scale * 2, event.clientX - box.left, event.clientY - box.top);
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    const lines = event.deltaMode === 1 ? 20 : 1;
    const by = Math.max(-160, Math.min(160, event.deltaY * lines));
    zoomTo(view.scale * Math.exp(-by * (event.ctrlKey ? 0.01 : 0.0022)), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });

  canvas.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const at = shown.active === NONE ? shown.selected : shown.active;
    const action = {
      "+": () => zoomTo(view.scale * 1.3), "=": () => zoomTo(view.scale * 1.3), "-": () => zoomTo(view.scale / 1.3), 0: fitAll,
      ArrowUp: () => walk(at, parents), ArrowDown: () => walk(at, children),
      ArrowLeft: () => walkAside(at, -1), ArrowRight: () => walkAside(at, 1),
      Enter: () => at !== NONE && select(at), " ": () => at !== NONE && select(at), c: () => at !== NONE && compare(at),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  byId("zoom-in").addEventListener("click", () => zoomTo(view.scale * 1.4));
  byId("zoom-out").addEventListener("click", () => zoomTo(view.scale / 1.4));
  byId("fit").addEventListener("click", fitAll);
  new ResizeObserver(() => {
    if (before[0]) settle();
    else fitAll();
    draw();
  }).observe(canvas);
}

function hover(event) {
  const node = nodeAt(event.clientX, event.clientY);
  const tip = byId("hover");
  tip.hidden = node === NONE;
  canvas.style.cursor = node === NONE ? "" : "pointer";
  if (node !== NONE) tip.textContent = `${labelOf(node)} · ${shortId(node)} · ${brief(node) || textOf("status", node)}`;
}

function walk(node, ways) {
  if (node === NONE) return go(0);
  const [first] = ways[node];
  return first ? go(first.node) : speak(ways === parents ? "No parent." : "No child.");
}

function walkAside(node, by) {
  if (node === NONE) return go(0);
  const level = parents[node].length ? children[parents[node][0].node].map((child) => child.node) : roots;
  const next = level[level.indexOf(node) + by];
  return next === undefined ? speak("No further sibling.") : go(next);
}

const roots = [];
for (let node = 0; node < size; node += 1) if (!parents[node].length) roots.push(node);

function go(node) {
  if (node >= size) return;
  shown.active = node;
  show(node, false);
  speak(`${labelOf(node)}, ${textOf("status", node)}, ${brief(node)}, ${count(parents[node].length, "parent")}, ${children[node].length === 1 ? "1 child" : `${whole(children[node].length)} children`}`);
}

function speak(text) {
  byId("spoken").textContent = text;
}
