// Search, filters, views: what ties the parts together.

const main = byId("main");
const search = byId("search");
const chosen = { status: new Set(), kind: new Set(), model: new Set() };
let searching = 0;

const haystacks = Array.from({ length: size }, (_, node) => [
  nodes.id[node], uuid(node), ...["label", "operator", "kind", "status", "model", "verdict", "sandbox", "snapshot"].map((name) => textOf(name, node)),
  pathOf(node), ...(nodes.extras[node] ?? []).flat(),
].join("\n").toLowerCase());

const passes = (node) => Object.entries(chosen).every(([name, wanted]) => !wanted.size || wanted.has(textOf(name, node)));

/** What matches is listed and stays bright; words in transcripts are found block by block, while the page can be used. */
async function find() {
  const turn = (searching += 1);
  const wanted = search.value.trim().toLowerCase();
  const filtered = Object.values(chosen).some((set) => set.size);
  const matching = new Set();
  for (let node = 0; node < size; node += 1) {
    if (passes(node) && (!wanted || haystacks[node].includes(wanted))) matching.add(node);
  }
  const notes = new Map();
  const present = (done) => {
    shown.matching = wanted || filtered ? matching : null;
    const found = [...matching].sort((a, b) => a - b);
    fillList(found, notes, wanted);
    byId("found").textContent = (shown.matching ? `${count(found.length, "session")} of ${whole(size)} ${found.length === 1 ? "matches" : "match"}` : count(size, "session"))
      + (wanted ? (done ? (notes.size ? `, ${count(notes.size, "transcript")} among them` : "") : ", reading transcripts …") : "");
    redraw();
  };
  main.dataset.search = wanted.length > 1 && data.blocks.length ? "running" : "done";
  present(main.dataset.search === "done");
  if (main.dataset.search === "done") return;
  const found = await stepsByRow();
  let last = performance.now();
  await searchRows(wanted, (number, words, at) => {
    const excerpt = words.slice(Math.max(0, at - 24), at + wanted.length + 60).replace(/\s+/g, " ");
    for (const step of found.get(number) ?? []) {
      const node = ownerOf(step);
      if (!passes(node)) continue;
      matching.add(node);
      if (!notes.has(node)) notes.set(node, (at > 24 ? "… " : "") + excerpt);
    }
    if (performance.now() - last > 250) {
      last = performance.now();
      present(false);
    }
  }, () => turn !== searching);
  if (turn !== searching) return;
  main.dataset.search = "done";
  present(true);
}

let byRow = null;
/** For each row, the steps that take it: in whose transcript it stands first. */
async function stepsByRow() {
  if (byRow) return byRow;
  const found = new Map();
  (await allSteps()).forEach((row, step) => {
    if (row >= 0) found.get(row)?.push(step) ?? found.set(row, [step]);
  });
  byRow = found;
  return found;
}

// -- what is chosen ---------------------------------------------------------------------------------------------------

const actions = {
  select(node, near) {
    shown.selected = shown.active = node;
    shown.lineage = lineageOf(node);
    openPanel();
    showNode(node, actions, search.value.trim().toLowerCase());
    if (near) show(node, true);
    redraw();
    drawList();
    setAddress(uuid(node));
  },
  compare(node) {
    if (shown.compared !== NONE && shown.compared !== node) {
      actions.diff(shown.compared, node);
      return;
    }
    if (shown.selected !== NONE && shown.selected !== node) {
      shown.compared = shown.selected;
      actions.diff(shown.compared, node);
      return;
    }
    shown.compared = node;
    speak(`${labelOf(node)} is marked. Choose another session to compare it with.`);
    actions.select(node, false);
  },
  diff(a, b) {
    shown.compared = a;
    shown.selected = shown.active = b;
    shown.lineage = new Set([...lineageOf(a), ...lineageOf(b)]);
    openPanel();
    showDifference(a, b, actions);
    redraw();
    drawList();
  },
  done() {
    const node = shown.selected;
    shown.compared = NONE;
    actions.select(node, false);
  },
  show(node) {
    setView("graph");
    show(node, true);
    canvas.focus();
  },
  close() {
    shown.selected = shown.compared = NONE;
    shown.lineage = new Set();
    main.classList.remove("open");
    emptyPanel();
    if (main.dataset.view === "panel") setView("graph");
    redraw();
    drawList();
    setAddress("");
    canvas.focus();
  },
};

function setAddress(fragment) {
  try {
    history.replaceState(null, "", `#${fragment}`);
  } catch {
    // Safari allows a hundred in ten seconds, and a key that is held down asks for more: the address lags behind then.
  }
}

function openPanel() {
  main.classList.add("open");
  setView("panel");
}

function setView(name) {
  main.dataset.view = name;
  for (const tab of document.querySelectorAll(".tabs button")) tab.setAttribute("aria-pressed", String(tab.dataset.view === name));
  drawList();
  redraw();
}

function fromHash() {
  const wanted = location.hash.slice(1).replaceAll("-", "").toLowerCase();
  if (!/^[0-9a-f]{4,32}$/.test(wanted)) return;
  const node = nodes.id.findIndex((id) => id.startsWith(wanted));
  if (node >= 0) actions.select(node, true);
}

// -- the frame --------------------------------------------------------------------------------------------------------

function buildFilters() {
  const holder = byId("filters");
  for (const [name, title] of [["status", "Status"], ["kind", "Kind"], ["model", "Model"]]) {
    const counts = new Map();
    for (let node = 0; node < size; node += 1) {
      const value = textOf(name, node);
      if (value) counts.set(value, (counts.get(value) ?? 0) + 1);
    }
    if (!counts.size) continue;
    const group = element("fieldset", "", element("legend", "", title));
    for (const [value, number] of [...counts].sort((a, b) => b[1] - a[1]).slice(0, 24)) {
      const chip = button("", () => {
        if (!chosen[name].delete(value)) chosen[name].add(value);
        chip.setAttribute("aria-pressed", String(chosen[name].has(value)));
        byId("filters-button").textContent = filterWord();
        find();
      });
      chip.append(element("bdi", "", value.length > 40 ? `${value.slice(0, 39)}…` : value), element("span", "soft", ` ${whole(number)}`));
      chip.setAttribute("aria-pressed", "false");
      group.append(chip);
    }
    if (counts.size > 24) group.append(element("span", "soft", `and ${whole(counts.size - 24)} more: search for them`));
    holder.append(group);
  }
  byId("filters-button").addEventListener("click", (event) => {
    holder.hidden = !holder.hidden;
    event.currentTarget.setAttribute("aria-expanded", String(!holder.hidden));
  });
}

function filterWord() {
  const number = Object.values(chosen).reduce((all, set) => all + set.size, 0);
  return number ? `Filter (${number})` : "Filter";
}

function buildLegend() {
  const pairs = element("dl");
  for (const [family, words] of [["leaf", "what somebody wrote: user, system"], ["loop", "a model at work: loop, compress"], ["fork", "fork, detach"], ["merge", "merge"], ["custom", "custom operator"]]) {
    pairs.append(element("dt", "", element("span", `swatch ${family}`)), element("dd", "", words));
  }
  for (const status of STATUSES) pairs.append(element("dt", "", mark(status)), element("dd", "", status));
  for (const [names, words] of [["", "continues"], ["dashed", "instructs, or joins from afar"], ["accent", "lineage of what is chosen"]]) {
    pairs.append(element("dt", "", element("span", `stroke ${names}`)), element("dd", "", words));
  }
  byId("legend-body").append(pairs, element("p", "soft", "Shift-click a second session to compare. Keys: / search, arrows walk, c compares, + − 0 zoom."));
}

function buildTheme() {
  const order = ["auto", "light", "dark"];
  const root = document.documentElement;
  const signs = { auto: "◐", light: "○", dark: "●" };
  const apply = () => {
    readColours();
    redraw();
  };
  byId("theme").addEventListener("click", (event) => {
    root.dataset.theme = order[(order.indexOf(root.dataset.theme) + 1) % order.length];
    const words = `Colours: ${root.dataset.theme === "auto" ? "automatic" : root.dataset.theme}`;
    event.currentTarget.textContent = signs[root.dataset.theme];
    event.currentTarget.title = words;
    event.currentTarget.setAttribute("aria-label", words);
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  addEventListener("beforeprint", () => { readColours(); fitAll(); draw(); });
  addEventListener("afterprint", apply);
  readColours();
}

function summarise() {
  const everyone = Array.from({ length: size }, (_, node) => node);
  const parts = [count(size, "session")];
  const open = statuses.filter((status) => status === "pending" || status === "running").length;
  const failed = statuses.filter((status) => status === "failed").length;
  if (open) parts.push(`${whole(open)} not finished`);
  if (failed) parts.push(`${whole(failed)} failed`);
  const tokens = total("tokens", everyone);
  if (tokens.known) parts.push(`${whole(tokens.value)} tokens`);
  const cost = total("cost", everyone);
  if (cost.known) parts.push(sum(cost, dollars));
  parts.push(`as of ${data.made}`);
  byId("summary").textContent = parts.join(" · ");
  if (data.notes.length) {
    byId("notes").hidden = false;
    byId("notes").textContent = `${data.notes.join("; ")}.`;
  }
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    search.focus();
    search.select();
  } else if (event.key === "Escape" && typing && search.value) {
    search.value = "";
    find();
  } else if (event.key === "Escape" && !typing && main.classList.contains("open")) actions.close();
});
let typed = 0;
search.addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(find, 120);
});
search.addEventListener("keydown", (event) => {
  if (event.key !== "ArrowDown" && event.key !== "Enter") return;
  event.preventDefault();
  setView("list");
  list.focus();
});
for (const tab of document.querySelectorAll(".tabs button")) tab.addEventListener("click", () => setView(tab.dataset.view));
addEventListener("hashchange", fromHash);

buildTheme();
summarise();
fitAll();
draw();
performance.mark("rath-drawn");
emptyPanel();
steerGraph(actions);
steerList(actions);
buildFilters();
buildLegend();
find();
// Rows stand behind this script.
document.addEventListener("DOMContentLoaded", () => {
  fromHash();
  document.documentElement.dataset.state = "ready";
});
