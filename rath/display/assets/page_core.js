// What the page knows of the nodes, and small helpers. Data reaches the page through textContent alone: see `element`.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("rath-data").textContent);
const { nodes, edges, places, strings } = data;
const size = nodes.id.length;
const NONE = -1;

const STATUSES = ["completed", "failed", "cancelled", "running", "pending", "unknown"];
const MARKS = { completed: "✓", failed: "✗", cancelled: "–", running: "▸", pending: "○", unknown: "?" };
const FAMILIES = {
  op_session_loop: "loop", op_session_compress: "loop", op_fork: "fork", op_detach: "fork", op_merge: "merge", op_custom: "custom",
};

const textOf = (column, node) => (nodes[column][node] === NONE ? "" : strings[nodes[column][node]]);
const labelOf = (node) => textOf("label", node);
const statusOf = (node) => {
  const status = textOf("status", node);
  return STATUSES.includes(status) ? status : "unknown";
};
const familyOf = (node) => FAMILIES[textOf("kind", node)] ?? "leaf";
const uuid = (node) => nodes.id[node].replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
const shortId = (node) => nodes.id[node].slice(0, 8);
// A session's own id stands in its path as NUL, which no other text has.
const pathOf = (node) => textOf("path", node).replace("\0", uuid(node));

const parents = Array.from({ length: size }, () => []);
const children = Array.from({ length: size }, () => []);
edges.from.forEach((parent, edge) => {
  const child = edges.to[edge];
  parents[child].push({ node: parent, role: edges.roles[edges.role[edge]] });
  children[parent].push({ node: child, role: edges.roles[edges.role[edge]] });
});

/** The node and all its ancestors, as a set of numbers. */
function lineageOf(node) {
  const seen = new Set([node]);
  const open = [node];
  while (open.length) {
    for (const parent of parents[open.pop()]) {
      if (!seen.has(parent.node)) {
        seen.add(parent.node);
        open.push(parent.node);
      }
    }
  }
  return seen;
}

/** What a column adds up to over some nodes; `unknown` is how many had rows of their own to pay for, but no number. */
function total(column, over) {
  let value = 0;
  let known = 0;
  let unknown = 0;
  for (const node of over) {
    const one = nodes[column][node];
    if (one !== null) {
      value += one;
      known += 1;
    } else if (nodes.tokens[node] !== null) {
      unknown += 1;
    }
  }
  return { value, known, unknown };
}

// -- words ------------------------------------------------------------------------------------------------------------

const whole = (number) => number.toLocaleString("en-US");
const count = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : /(ch|s)$/.test(noun) ? "es" : "s"}`;
function seconds(value) {
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 59.95) return `${value.toFixed(1)} s`;
  const all = Math.round(value);
  return all < 3600 ? `${Math.floor(all / 60)} min ${all % 60} s` : `${Math.floor(all / 3600)} h ${Math.round((all % 3600) / 60)} min`;
}
const dollars = (value) => (value === 0 ? "$0" : value >= 1 ? `$${value.toFixed(2)}` : `$${Number(value.toPrecision(2)).toFixed(Math.min(9, 1 - Math.floor(Math.log10(value))))}`);
const instant = (epoch) => new Date(epoch * 1000).toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC");
function sum(found, shown) {
  if (!found.known) return "unknown";
  return shown(found.value) + (found.unknown ? ` + ${count(found.unknown, "session")} unknown` : "");
}
function brief(node) {
  const parts = [];
  const status = textOf("status", node);
  if (status !== "completed") parts.push(status);
  if (nodes.rows[node] !== null) parts.push(count(nodes.rows[node], "row"));
  if (nodes.tokens[node] !== null) parts.push(`${whole(nodes.tokens[node])} tok`);
  if (nodes.cost[node] !== null) parts.push(dollars(nodes.cost[node]));
  return parts.join(" · ");
}

// -- elements ---------------------------------------------------------------------------------------------------------

/** An element; strings among `inside` become text nodes, so whatever they hold is shown and not obeyed. */
function element(tag, names, ...inside) {
  const made = document.createElement(tag);
  if (names) made.className = names;
  made.append(...inside.filter((part) => part !== null && part !== undefined && part !== ""));
  return made;
}

function button(text, action, names) {
  const made = element("button", names, text);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}

function mark(status) {
  const made = element("span", `mark ${status}`, MARKS[status]);
  made.setAttribute("aria-hidden", "true");
  return made;
}

/** `text` with every occurrence of `wanted` (lower case) marked. */
function marked(text, wanted) {
  const parts = document.createDocumentFragment();
  const lower = text.toLowerCase();
  let at = 0;
  // Lower case may be longer than the text; then places would not fit.
  while (wanted && lower.length === text.length) {
    const next = lower.indexOf(wanted, at);
    if (next < 0) break;
    parts.append(text.slice(at, next), element("mark", "", text.slice(next, next + wanted.length)));
    at = next + wanted.length;
  }
  parts.append(text.slice(at));
  return parts;
}
