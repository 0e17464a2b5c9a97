// One session: its facts, its kin, and what was said.

const panel = byId("panel");
let watching = null;
let asked = 0;

function emptyPanel() {
  watching?.disconnect();
  watching = null;
  asked += 1;
  panel.replaceChildren(element("p", "empty", "Choose a session in the graph or in the list."));
}

function factsOf(node) {
  const line_ = lineageOf(node);
  const kind = textOf("kind", node);
  const facts = [
    ["id", element("code", "", uuid(node))],
    ["operator", textOf("operator", node) || "—"],
    ["kind", kind],
    ["model", textOf("model", node)],
    ["rows", nodes.rows[node] === null ? "unknown" : whole(nodes.rows[node])],
    ["tokens", nodes.tokens[node] === null ? "none of its own" : `${whole(nodes.tokens[node])} (${whole(nodes.input[node] ?? 0)} in)`],
    ["tokens, with history", sum(total("tokens", line_), whole)],
    ["cost", nodes.cost[node] === null ? (nodes.tokens[node] === null ? "none of its own" : "unknown: no price") : dollars(nodes.cost[node])],
    ["cost, with history", sum(total("cost", line_), dollars)],
    ["duration", nodes.duration[node] === null ? "" : seconds(nodes.duration[node])],
    ["began", nodes.created[node] === null ? "" : instant(nodes.created[node])],
    ["log", textOf("verdict", node)],
    ["path", pathOf(node)],
    ["sandbox", textOf("sandbox", node)],
    ["snapshot", textOf("snapshot", node)],
    ["digest", nodes.digest[node] ?? ""],
    ["appends before it", nodes.folded[node] ? whole(nodes.folded[node]) : ""],
    ...(nodes.extras[node] ?? []),
  ];
  return facts.filter(([, value]) => value !== "");
}

function kin(title, found, { select }) {
  if (!found.length) return null;
  const made = element("div", "kin", element("h3", "", title));
  for (const { node, role } of found.slice(0, 24)) {
    const suffix = role && role !== "parent" ? ` (${role})` : "";
    made.append(button(`${labelOf(node)} ${shortId(node)}${suffix}`, () => select(node, true), "link"));
  }
  if (found.length > 24) made.append(element("span", "soft", `and ${whole(found.length - 24)} more`));
  return made;
}

function heading(node) {
  const status = textOf("status", node);
  const title = element("h2", "", labelOf(node));
  title.dir = "auto";
  return element("div", "head", mark(statusOf(node)), title, element("span", `badge ${statusOf(node)}`, status));
}

function closer(close) {
  const made = button("✕", close, "close");
  made.setAttribute("aria-label", "Close details");
  return made;
}

async function showNode(node, actions, wanted) {
  watching?.disconnect();
  const turn = (asked += 1);
  const pairs = element("dl", "facts");
  for (const [name, value] of factsOf(node)) {
    const said = element("dd", "", value);
    if (typeof value === "string") said.dir = "auto";
    pairs.append(element("dt", "", name), said);
  }
  const other = shown.compared;
  const compare = other === NONE || other === node
    ? button(other === node ? "Marked: now choose another session" : "Compare with…", () => actions.compare(node))
    : button(`Compare with ${labelOf(other)} ${shortId(other)}`, () => actions.diff(other, node));
  const rows = element("div", "rows");
  const title = element("h3", "", "Transcript");
  const parts = [
    closer(actions.close), heading(node), pairs, kin("Made from", parents[node], actions), kin("Continued by", children[node], actions),
    element("div", "actions", compare, button("Show in graph", () => actions.show(node))), title, rows,
  ];
  panel.replaceChildren(...parts.filter(Boolean));
  panel.scrollTop = 0;
  panel.dataset.state = "reading";
  const numbers = await transcriptOf(node);
  if (turn !== asked) return;
  if (data.unread[node] !== undefined) {
    rows.append(element("div", "error", data.unread[node] || "Its log could not be read."));
  } else if (numbers === null) {
    rows.append(element("p", "empty", "Its rows are not in this file."));
  } else {
    const entries = indexed(numbers);
    const after = numbers.length && ["pending", "running"].includes(textOf("status", node));
    title.textContent = `Transcript: ${count(entries.rows, "row")}`;
    if (!entries.length) rows.append(element("p", "empty", after ? "No rows yet." : "No rows."));
    else watching = showRows(rows, entries, wanted);
    if (after) panel.append(element("div", "row gap", `${textOf("status", node)} when this file was made: more rows may have followed`));
  }
  panel.dataset.state = "ready";
}

/** Entries of a transcript, each with the index that its row has in the session. */
function indexed(numbers) {
  const entries = [];
  let index = 0;
  for (const row of numbers) {
    entries.push({ row, index });
    index += row < 0 ? -row : 1;
  }
  entries.rows = index;
  return entries;
}
