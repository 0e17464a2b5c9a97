// Two sessions side by side: what they share from the start, then which rows only one of them has.

const MOST_CELLS = 6_000_000;
const CONTEXT = 2;

/** `[sign, place in a, place in b]` of each row after the common beginning: a longest common subsequence. */
function aligned(a, b) {
  const [n, m] = [a.length, b.length];
  if (n * m > MOST_CELLS) {
    return [...a.map((_, at) => ["-", at, NONE]), ...b.map((_, at) => ["+", NONE, at])];
  }
  const width = m + 1;
  const longest = new Uint32Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i -= 1) {
    for (let j = m - 1; j >= 0; j -= 1) {
      longest[i * width + j] = a[i] === b[j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const found = [];
  let [i, j] = [0, 0];
  while (i < n || j < m) {
    if (i < n && j < m && a[i] === b[j]) found.push(["=", i++, j++]);
    else if (i < n && (j === m || longest[(i + 1) * width + j] >= longest[i * width + j + 1])) found.push(["-", i++, NONE]);
    else found.push(["+", NONE, j++]);
  }
  return found;
}

function differences(first, second) {
  let common = 0;
  while (common < first.length && common < second.length && first[common].row === second[common].row) common += 1;
  const [a, b] = [first.slice(common), second.slice(common)];
  const changes = aligned(a.map((entry) => entry.row), b.map((entry) => entry.row));
  const all = first.slice(0, common).map((entry) => ({ ...entry, sign: "=" }));
  for (const [sign, i, j] of changes) all.push({ ...(sign === "+" ? b[j] : a[i]), sign });
  return { common: common ? (first[common]?.index ?? first.rows) : 0, entries: withGaps(all), all };
}

/** Long runs of equal rows become one line that counts them. */
function withGaps(all) {
  const found = [];
  for (let at = 0; at < all.length;) {
    let end = at;
    while (end < all.length && all[end].sign === "=") end += 1;
    if (end - at > 2 * CONTEXT + 1) {
      const [head, tail] = [at ? CONTEXT : 0, end < all.length ? CONTEXT : 0];
      found.push(...all.slice(at, at + head), { row: 0, index: 0, gap: end - at - head - tail }, ...all.slice(end - tail, end));
    } else found.push(...all.slice(at, end));
    if (end < all.length) found.push(all[end]);
    at = end + 1;
  }
  return found;
}

function facing(a, b) {
  const made = element("dl", "facts pair");
  const lines = [["status", (node) => textOf("status", node)]];
  const left = new Map(factsOf(a));
  const right = new Map(factsOf(b));
  for (const name of new Set([...left.keys(), ...right.keys()])) {
    if (["id", "path", "digest"].includes(name)) continue;
    lines.push([name, (node) => (node === a ? left : right).get(name) ?? "—"]);
  }
  made.append(element("dt", "", ""), element("dd", "", element("strong", "", `A  ${labelOf(a)} `), element("code", "", shortId(a))));
  made.append(element("dd", "", element("strong", "", `B  ${labelOf(b)} `), element("code", "", shortId(b))));
  for (const [name, read] of lines) {
    const [one, two] = [read(a), read(b)];
    const names = one === two ? "" : "differs";
    made.append(element("dt", "", name), element("dd", names, one), element("dd", names, two));
  }
  return made;
}

async function showDifference(a, b, actions) {
  watching?.disconnect();
  const turn = (asked += 1);
  const rows = element("div", "rows");
  const title = element("h3", "", "Rows");
  panel.replaceChildren(
    closer(actions.close), element("div", "head", element("h2", "", "Compared")), facing(a, b),
    element("div", "actions", button("Swap", () => actions.diff(b, a)), button("Open A", () => actions.select(a, true)),
      button("Open B", () => actions.select(b, true)), button("Done comparing", actions.done)),
    title, rows,
  );
  panel.scrollTop = 0;
  panel.dataset.state = "reading";
  const [first, second] = await Promise.all([transcriptOf(a), transcriptOf(b)]);
  if (turn !== asked) return;
  if (first === null || second === null) {
    rows.append(element("p", "empty", "The rows of one of them are not in this file."));
  } else {
    const { common, entries, all } = differences(indexed(first), indexed(second));
    const only = (sign) => all.filter((entry) => entry.sign === sign).length;
    title.textContent = `The first ${count(common, "row")} are the same · − ${whole(only("-"))} only in A · + ${whole(only("+"))} only in B`
      .replace("The first 1 row are", "The first row is").replace("The first 0 rows are the same", "They differ from the first row");
    if (!only("-") && !only("+")) title.textContent = `All ${count(common, "row")} are the same`.replace("All 1 row are", "The only row is");
    if (entries.length) watching = showRows(rows, entries, "");
  }
  panel.dataset.state = "ready";
}
