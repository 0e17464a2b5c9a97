// The sessions as a list that holds only the lines in sight: ten thousand cost as much as thirty.

const LINE = 48;
const list = byId("list");
const listed = { nodes: [], notes: new Map(), wanted: "" };
let activeLine = 0;

/** `notes`: of some nodes, where in their transcripts the searched words stand. */
function fillList(found, notes, wanted) {
  listed.nodes = found;
  listed.notes = notes;
  listed.wanted = wanted;
  activeLine = Math.min(activeLine, Math.max(0, found.length - 1));
  list.firstElementChild.style.height = `${found.length * LINE}px`;
  drawList();
}

function drawList() {
  const sizer = list.firstElementChild;
  if (!list.clientHeight) return;
  const first = Math.max(0, Math.floor(list.scrollTop / LINE) - 6);
  const last = Math.min(listed.nodes.length, Math.ceil((list.scrollTop + list.clientHeight) / LINE) + 6);
  const lines = [];
  for (let place = first; place < last; place += 1) lines.push(line(place));
  if (!listed.nodes.length) lines.push(element("p", "empty", size ? "No session matches." : "No sessions."));
  sizer.replaceChildren(...lines);
  if (listed.nodes.length) list.setAttribute("aria-activedescendant", `line-${activeLine}`);
  else list.removeAttribute("aria-activedescendant");
}

function line(place) {
  const node = listed.nodes[place];
  const status = textOf("status", node);
  const made = element("div", place === activeLine && document.activeElement === list ? "item active" : "item");
  made.id = `line-${place}`;
  made.dataset.node = String(node);
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", String(node === shown.selected));
  made.setAttribute("aria-setsize", String(listed.nodes.length));
  made.setAttribute("aria-posinset", String(place + 1));
  made.style.top = `${place * LINE}px`;
  const label = element("bdi", "label", marked(labelOf(node), listed.wanted));
  label.title = labelOf(node);
  const note = listed.notes.get(node);
  const facts = [status, textOf("model", node), brief(node).replace(`${status} · `, "")].filter((part) => part && part !== status);
  if (status !== "completed") facts.unshift(status);
  const about = element("span", "about", marked(note ?? facts.join(" · "), listed.wanted));
  made.append(mark(statusOf(node)), label, element("code", "short", marked(shortId(node), listed.wanted)), about);
  return made;
}

function steerList({ select, compare }) {
  list.addEventListener("scroll", drawList, { passive: true });
  list.addEventListener("focus", drawList);
  list.addEventListener("blur", drawList);
  new ResizeObserver(drawList).observe(list);
  list.addEventListener("click", (event) => {
    const found = event.target.closest(".item");
    if (!found) return;
    activeLine = listed.nodes.indexOf(Number(found.dataset.node));
    if (event.shiftKey || event.ctrlKey || event.metaKey) compare(Number(found.dataset.node));
    else select(Number(found.dataset.node), true);
  });
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / LINE) - 1);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    const node = listed.nodes[activeLine];
    if (by !== undefined) {
      activeLine = Math.max(0, Math.min(listed.nodes.length - 1, activeLine + by));
      const top = activeLine * LINE;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + LINE > list.scrollTop + list.clientHeight) list.scrollTop = top + LINE - list.clientHeight;
      drawList();
    } else if (event.key === "Enter" && node !== undefined) select(node, true);
    else if (event.key === "c" && node !== undefined) compare(node);
    else return;
    event.preventDefault();
  });
}
