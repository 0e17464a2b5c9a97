// Rows as people read them, in blocks that are filled when they come into sight and emptied when they have left it.

const BLOCK = 40;
const ROW_HEIGHT = 74;

/** Fills `holder` with `entries` (`{row, index, sign}`); rows are read when a block comes near the window. */
function showRows(holder, entries, wanted) {
  holder.setAttribute("role", "list");
  const parts = [];
  for (let at = 0; at < entries.length; at += BLOCK) {
    const part = element("div", "block empty");
    part.setAttribute("role", "presentation");
    part.style.height = `${Math.min(BLOCK, entries.length - at) * ROW_HEIGHT}px`;
    parts.push(part);
  }
  holder.replaceChildren(...parts);
  const numbers = new Map(parts.map((part, number) => [part, number]));
  const watch = new IntersectionObserver((changes) => {
    for (const change of changes) {
      if (change.isIntersecting) fill(change.target, entries, numbers.get(change.target), wanted);
      else empty(change.target);
    }
  }, { root: byId("panel"), rootMargin: "1200px 0px" });
  for (const part of parts) watch.observe(part);
  return watch;
}

async function fill(part, entries, number, wanted) {
  if (part.dataset.state) return;
  part.dataset.state = "filling";
  const rows = [];
  for (const entry of entries.slice(number * BLOCK, (number + 1) * BLOCK)) {
    rows.push(entry.row < 0 ? leftOut(-entry.row) : entry.gap ? leftOut(entry.gap, "equal") : rowElement(await rowOf(entry.row), entry, wanted));
  }
  // It may have left the window meanwhile.
  if (part.dataset.state !== "filling") return;
  part.replaceChildren(...rows);
  part.style.height = "";
  part.classList.remove("empty");
  part.dataset.state = "filled";
}

function empty(part) {
  if (!part.dataset.state) return;
  if (part.dataset.state === "filled") {
    // What somebody has unfolded stays.
    if (part.querySelector("details[open]")) return;
    part.style.height = `${part.offsetHeight}px`;
    part.replaceChildren();
    part.classList.add("empty");
  }
  delete part.dataset.state;
}

function leftOut(number, what = "") {
  const made = element("div", "row gap", what ? `… ${count(number, `${what} row`)} …` : `… ${count(number, "row")} left out of this file …`);
  made.setAttribute("role", "listitem");
  return made;
}

function rowElement(row, entry, wanted) {
  const [role, said, calls = [], more = 0, result] = row;
  const names = { "+": "added", "-": "removed" }[entry.sign] ?? "";
  const made = element("div", `row ${role === "tool" ? "tool-result" : role} ${names}`);
  made.setAttribute("role", "listitem");
  const sign = { "+": "+ only in B", "-": "− only in A" }[entry.sign];
  const who = element("div", "role", role, " ", element("span", "soft", String(entry.index)));
  if (sign) who.append(element("div", "", sign));
  const body = element("div");
  if (said) {
    const text = element("div", "said", marked(said, wanted));
    text.dir = "auto";
    body.append(text);
  }
  for (const call of calls) body.append(callElement(call, wanted));
  if (more) body.append(element("div", "soft", `… ${count(more, "more call")} …`));
  if (result) body.append(resultElement(result, wanted));
  if (!body.hasChildNodes()) body.append(element("span", "soft", "(empty)"));
  if (wanted && body.querySelector("mark")) made.classList.add("hit");
  made.append(who, body);
  return made;
}

function folded(summary, ...inside) {
  const made = element("details", "", element("summary", "", ...summary), ...inside);
  // What was searched for is not hidden behind a fold.
  made.open = inside.some((part) => part.querySelector?.("mark"));
  return made;
}

function callElement([name, , short, whole_], wanted) {
  return folded(["calls ", element("bdi", "tool", marked(name, wanted)), " ", element("code", "", short)], element("pre", "", marked(whole_, wanted)));
}

function resultElement([name, , ok, summary, parts], wanted) {
  const sign = ok === 0 ? element("span", "wrong", "✗ failed") : ok === 1 ? element("span", "wrong", "•") : element("span", "good", "✓");
  const inside = [];
  for (const [title, text] of parts) {
    if (title) inside.push(element("div", "part", marked(title, wanted)));
    inside.push(element("pre", "", marked(text, wanted)));
  }
  return folded([sign, " ", element("bdi", "tool", marked(name, wanted)), " ", element("span", "soft", marked(summary, wanted))], ...inside);
}
