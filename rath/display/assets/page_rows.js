// Rows by number, unpacked block by block when somebody asks; transcripts as ways through the tree of steps.

const KEPT_BLOCKS = 64;
const blocks = new Map();
let steps = null;

async function unpack(id) {
  const packed = atob(byId(id).textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return JSON.parse(await new Response(stream).text());
}

/** The rows of a block; the blocks used last are kept. */
function block(number) {
  const found = blocks.get(number) ?? unpack(`rath-block-${number}`);
  blocks.delete(number);
  blocks.set(number, found);
  if (blocks.size > KEPT_BLOCKS) blocks.delete(blocks.keys().next().value);
  return found;
}

/** The last number in `sorted` that is not above `wanted`: its place. */
function placeIn(sorted, wanted) {
  let low = 0;
  let high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (sorted[middle] <= wanted) low = middle;
    else high = middle - 1;
  }
  return low;
}

async function rowOf(number) {
  const place = placeIn(data.blocks, number);
  return (await block(place))[number - data.blocks[place]];
}

function allSteps() {
  steps ??= unpack("rath-ways").then((found) => Int32Array.from(found));
  return steps;
}

/** What stands before each node's own steps: nodes whose own steps begin at `start`, in order. */
const owners = [];
data.ways.start.forEach((start, node) => {
  if (data.ways.count[node] > 0) owners.push({ start, node });
});
owners.sort((a, b) => a.start - b.start);
const ownerStarts = owners.map((owner) => owner.start);
const ownerOf = (step) => owners[placeIn(ownerStarts, step)].node;

/** The numbers of a session's rows, from the first; a negative one stands for so many rows left out. Null: not known. */
async function transcriptOf(node) {
  const { base, start, count: own } = data.ways;
  if (own[node] < 0) return null;
  const found = await allSteps();
  const runs = [];
  let length = 0;
  let last = own[node] ? start[node] + own[node] - 1 : base[node];
  while (last >= 0) {
    const owner = ownerOf(last);
    runs.push(found.subarray(start[owner], last + 1));
    length += last + 1 - start[owner];
    last = base[owner];
  }
  const rows = new Int32Array(length);
  let at = 0;
  for (const run of runs.reverse()) {
    rows.set(run, at);
    at += run.length;
  }
  return rows;
}

/** All text of a row, as it is shown. */
function wordsOf(row) {
  const [, said, calls = [], , result] = row;
  const words = [said];
  for (const call of calls) words.push(call[0], call[3]);
  if (result) words.push(result[0], result[3], ...result[4].map((part) => part[1]));
  return words.join("\n");
}

/** Calls `found(number, words)` for every row with `wanted` (lower case) in it, until `over()` is true. */
async function searchRows(wanted, found, over) {
  for (let place = 0; place < data.blocks.length; place += 1) {
    const rows = await block(place);
    if (over()) return;
    rows.forEach((row, index) => {
      const words = wordsOf(row);
      const at = words.toLowerCase().indexOf(wanted);
      if (at >= 0) found(data.blocks[place] + index, words, at);
    });
    // Between two blocks the page answers to its reader.
    await new Promise((resume) => setTimeout(resume));
    if (over()) return;
  }
}
