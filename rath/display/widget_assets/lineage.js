// Shows what Python drew. The text in it is escaped there; here, whatever is not on these lists is left out all the same.
const TAGS = new Set(
  ("div span p pre code h3 section details summary label input style dl dt dd svg defs marker g path rect circle text " +
    "title foreignobject").split(" "),
);
const ATTRIBUTES = new Set(
  ("class id for type name checked title tabindex role width height viewbox d cx cy r rx x y transform style xmlns " +
    "refx refy markerwidth markerheight markerunits orient marker-end stroke-dasharray aria-label data-session").split(" "),
);

// Buttons and rules find each other by ids, so each view of a widget on a page needs ids of its own.
let views = 0;

function renamed(body, view) {
  const name = body.querySelector(".rg-pick")?.name ?? "";
  if (!/^\w+$/.test(name)) return;
  const all = new RegExp(`(^|[\\s#.])${name}(?=-|$)`, "g");
  const own = (text) => text.replace(all, `$1${name}v${view}`);
  for (const element of body.querySelectorAll("[id], [for], [name], [class], [marker-end]")) {
    for (const key of ["id", "for", "name", "class", "marker-end"]) {
      if (element.hasAttribute(key)) element.setAttribute(key, own(element.getAttribute(key)));
    }
  }
  for (const rules of body.querySelectorAll("style")) rules.textContent = own(rules.textContent);
}

function harmless(html, view) {
  // A document made like this runs nothing and loads nothing.
  const { body } = new DOMParser().parseFromString(html, "text/html");
  for (const element of [...body.querySelectorAll("*")]) {
    if (!TAGS.has(element.localName.toLowerCase())) {
      element.remove();
      continue;
    }
    for (const { name, value } of [...element.attributes]) {
      const refers = /url\(\s*(?!#)|javascript:|@import/i.test(value);
      if (!ATTRIBUTES.has(name.toLowerCase()) || refers) element.removeAttribute(name);
    }
    if (element.localName === "style" && /url\(|@import/i.test(element.textContent)) element.remove();
  }
  renamed(body, view);
  return document.importNode(body, true).childNodes;
}

function render({ model, el }) {
  const view = ++views;
  const box = document.createElement("div");
  const note = document.createElement("div");
  note.setAttribute("role", "status");
  note.style.cssText = "font:12px system-ui,sans-serif;opacity:.75;padding:2px 10px";
  el.replaceChildren(box, note);

  // Each fold under a name that it keeps from one drawing to the next.
  function* folds() {
    for (const section of box.querySelectorAll("section")) {
      let at = 0;
      for (const fold of section.querySelectorAll("details")) yield [`${section.previousElementSibling?.id}/${at++}`, fold];
    }
  }
  const draw = () => {
    const graph = box.querySelector(".graph");
    const [left, top] = graph ? [graph.scrollLeft, graph.scrollTop] : [0, 0];
    const chosen = box.querySelector(".rg-pick[type=radio]:checked")?.id;
    const all = box.querySelector(".rg-all")?.checked;
    const open = new Set([...folds()].filter(([, fold]) => fold.open).map(([name]) => name));
    box.replaceChildren(...harmless(model.get("html"), view));
    for (const pick of box.querySelectorAll(".rg-pick[type=radio]")) if (pick.id === chosen) pick.checked = true;
    if (all) box.querySelector(".rg-all").checked = true;
    for (const [name, fold] of folds()) fold.open = open.has(name);
    const drawn = box.querySelector(".graph");
    if (drawn) [drawn.scrollLeft, drawn.scrollTop] = [left, top];
  };
  const tell = () => {
    note.textContent = model.get("state");
  };
  const choose = (event) => {
    const pick = event.target;
    if (pick.type !== "radio" || !pick.classList.contains("rg-pick")) return;
    model.set("chosen", pick.dataset.session ?? "");
    model.save_changes();
  };
  box.addEventListener("change", choose);
  model.on("change:html", draw);
  model.on("change:state", tell);
  draw();
  tell();
  return () => {
    model.off("change:html", draw);
    model.off("change:state", tell);
  };
}

export default { render };
