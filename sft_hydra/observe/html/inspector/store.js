// What the page holds: facts, arrays over the conversations, and their tokens, unpacked block by block when asked for.
const find = (selector, root = document) => root.querySelector(selector);
const facts = JSON.parse(find("#facts").textContent);
const rejects = JSON.parse(find("#rejects").textContent);
const number = new Intl.NumberFormat("en");
const TYPES = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };

async function unpack(element) {
  const text = atob(element.textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  element.remove();
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const data = {};
await Promise.all([...document.querySelectorAll("script[data-array]")].map(async (element) => {
  data[element.dataset.array] = new TYPES[element.dataset.type]((await unpack(element)).buffer);
}));

const count = data.length.length; // conversations
const start = sums(data.length); // first token of each on the page
const wordStart = sums(data.vocabLength);
const share = Float32Array.from(data.trained, (trained, talk) => trained / data.length[talk]);
const firstOfRow = new Map(); // packed row -> its first conversation
for (let talk = count - 1; talk >= 0; talk--) firstOfRow.set(data.row[talk], talk);

function sums(lengths) {
  const ends = new Uint32Array(lengths.length + 1);
  for (let i = 0; i < lengths.length; i++) ends[i + 1] = ends[i] + lengths[i];
  return ends;
}

/** Conversations of the packed row that `talk` is in: [first, end). */
function rowOf(talk) {
  const first = firstOfRow.get(data.row[talk]);
  let end = first;
  while (end < count && data.row[end] === data.row[first]) end++;
  return [first, end];
}

/** Last index whose entry is not above `value`, in a rising array. */
function lastNotAbove(array, value) {
  let low = 0, high = array.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (array[middle] <= value) low = middle; else high = middle - 1;
  }
  return low;
}

const blocks = [];
function block(index) {
  blocks[index] ??= unpack(find(`script[data-block="${index}"]`)).then((bytes) => {
    const tokens = start[data.blockFirst[index + 1]] - start[data.blockFirst[index]];
    const ranks = new Uint32Array(tokens);
    for (let plane = 0; plane < facts.planes; plane++)
      for (let i = 0; i < tokens; i++) ranks[i] |= bytes[plane * tokens + i] << (8 * plane);
    return { ranks, mask: bytes.subarray(facts.planes * tokens), first: start[data.blockFirst[index]] };
  });
  return blocks[index];
}

/** Tokens of a conversation: {ranks, learned(i)}; a rank is an index into the page's vocabulary. */
async function tokensOf(talk) {
  const { ranks, mask, first } = await block(lastNotAbove(data.blockFirst, talk));
  const at = start[talk] - first;
  return {
    ranks: ranks.subarray(at, at + data.length[talk]),
    learned: (i) => (mask[(at + i) >> 3] >> (7 - ((at + i) & 7))) & 1,
  };
}

const wordBytes = (rank) => data.vocabText.subarray(wordStart[rank], wordStart[rank + 1]);

/** The text of ranks, joined as bytes first: a token may hold half a character. */
function textOf(ranks) {
  let size = 0;
  for (const rank of ranks) size += data.vocabLength[rank];
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const rank of ranks) {
    for (let i = wordStart[rank]; i < wordStart[rank + 1]; i++) bytes[at++] = data.vocabText[i];
  }
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
const percent = (value, digits = 0) => `${(100 * value).toFixed(digits)} %`;
const colour = (source) => `var(--c${source % 8})`;

const paints = new Map(); // name of a colour -> what a canvas understands
function paint(name) {
  if (!paints.has(name)) {
    const probe = make("span", { style: `color:var(--${name});display:none` });
    document.body.append(probe);
    paints.set(name, getComputedStyle(probe).color);
    probe.remove();
  }
  return paints.get(name);
}
