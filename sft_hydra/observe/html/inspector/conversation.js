// One conversation: its place in the packed row, its turns, every token; the card tells all about the token pointed at.
const CHUNK = 3000; // tokens built at once; the rest when they come into sight
const card = find("#card");
const exact = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const wordText = []; // rank -> text; null: part of a character
let reading = { talk: -1, cursor: -1 };

function textOfWord(rank) {
  if (wordText[rank] === undefined) {
    try { wordText[rank] = exact.decode(wordBytes(rank)); } catch { wordText[rank] = null; }
  }
  return wordText[rank];
}

const hex = (rank) => [...wordBytes(rank)].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");

async function showConversation(talk) {
  const tokens = await tokensOf(talk);
  if (talk !== state.selected) return;
  if (talk === reading.talk) return markNeighbours(talk);
  reading = { talk, tokens, cursor: -1, built: 0, joined: new TextDecoder("utf-8", { ignoreBOM: true }), turns: turnsOf(talk, tokens) };
  const more = make("div", { className: "more dim" }, "…");
  reading.body = make("div", { className: "turns" });
  const detail = find("#detail");
  detail.replaceChildren(heading(talk), map(tokens), reading.body, more);
  detail.scrollTop = 0;
  build();
  reading.more = new IntersectionObserver(([entry]) => { if (entry.isIntersecting) build(); }, { root: detail, rootMargin: "600px" });
  reading.more.observe(more);
  markNeighbours(talk);
}

function heading(talk) {
  const [first, end] = rowOf(talk);
  const inRow = start[talk] - start[first];
  const box = make("div", { className: "heading" },
    make("h2", {}, make("span", { className: "mark", style: `background:${colour(data.source[talk])}` }), facts.sources[data.source[talk]]),
    make("div", { className: "dim" },
      `${number.format(data.length[talk])} tokens, ${number.format(data.trained[talk])} trained (${percent(share[talk], 1)}) · `,
      `conversation ${talk - first + 1} of ${end - first} in packed row ${number.format(data.row[talk])}, `,
      `tokens ${number.format(inRow)} to ${number.format(inRow + data.length[talk] - 1)}`),
    strip(first, end));
  for (const bit of bits(data.flags[talk]).reverse()) {
    const { name, text } = facts.checks[bit];
    const extra = name === "repeats itself" ? ` (${data.repetition[talk]} %)` : "";
    box.append(make("div", { className: "flag" }, make("b", {}, name), ` ${text}${extra}`));
  }
  box.append(make("div", { className: "legend" }, make("i", { className: "l" }, "trained"), make("i", {}, "context"),
    make("i", { className: "c" }, "control token"), make("span", { className: "dim" }, "point at a token, or → ←, for its id")));
  return box;
}

/** The packed row as one line of blocks; each opens its conversation. */
function strip(first, end) {
  const line = make("div", { className: "strip" });
  for (let talk = first; talk < end; talk++) {
    const block = make("button", { tabIndex: -1, title: `${facts.sources[data.source[talk]]}, ${number.format(data.length[talk])} tokens` });
    block.style.cssText = `flex:${data.length[talk]};--tone:${colour(data.source[talk])};--share:${100 * share[talk]}%`;
    block.dataset.talk = talk;
    block.onclick = () => select(talk);
    line.append(block);
  }
  const free = facts.seqLength - (start[end] - start[first]);
  if (free > 0) line.append(make("span", { className: "free", style: `flex:${free}`, title: `${number.format(free)} tokens free` }));
  return line;
}

/** The whole conversation as one thin line that stays in sight: what is trained, and by a click the way there. */
function map({ ranks, learned }) {
  const line = make("canvas", { className: "map", title: "where the trained tokens are; click to go there" });
  const cells = 800;
  line.width = cells;
  line.height = 1;
  const pen = line.getContext("2d");
  for (let cell = 0; cell < cells; cell++) {
    const [from, to] = [cell, cell + 1].map((edge) => Math.floor((edge * ranks.length) / cells));
    let sum = 0;
    for (let at = from; at < Math.max(to, from + 1); at++) sum += learned(at);
    pen.fillStyle = paint("accent");
    pen.globalAlpha = sum / Math.max(1, to - from);
    pen.fillRect(cell, 0, 1, 1);
  }
  line.onclick = (event) => goTo(Math.floor((event.offsetX / line.clientWidth) * ranks.length));
  return line;
}

function markNeighbours(talk) {
  for (const block of document.querySelectorAll("#detail .strip button"))
    block.classList.toggle("current", Number(block.dataset.talk) === talk);
}

/** [{role, from, to, learned}] of a conversation; role "" before the first header. */
function turnsOf(talk, { learned }) {
  const turns = [];
  let index = data.turnStart.length ? lastNotAbove(data.turnStart, start[talk]) : 0;
  while (index < data.turnStart.length && data.turnStart[index] < start[talk]) index++;
  for (; index < data.turnStart.length && data.turnStart[index] < start[talk + 1]; index++)
    turns.push({ role: facts.roles[data.turnRole[index]], from: data.turnStart[index] - start[talk] });
  if (!turns.length || turns[0].from > 0) turns.unshift({ role: "", from: 0 });
  turns.forEach((turn, i) => {
    turn.to = turns[i + 1]?.from ?? data.length[talk];
    turn.learned = 0;
    for (let at = turn.from; at < turn.to; at++) turn.learned += learned(at);
  });
  return turns;
}

/** Build the next tokens of the conversation being read. */
function build() {
  const { talk, tokens, turns, body } = reading;
  const end = Math.min(data.length[talk], reading.built + CHUNK);
  while (reading.built < end) {
    const turn = turns.findLast((candidate) => candidate.from <= reading.built);
    const stop = Math.min(end, turn.to);
    const parts = [];
    for (; reading.built < stop; reading.built++) parts.push(tokenElement(tokens, reading.built));
    if (!turn.text) {
      turn.text = make("div", { className: "text" });
      const figures = `${number.format(turn.to - turn.from)} tok${turn.learned ? `, ${number.format(turn.learned)} trained` : ""}`;
      body.append(make("div", { className: "turn" }, make("div", { className: "role" }, turn.role, make("small", {}, figures)), turn.text));
    }
    turn.text.append(...parts);
  }
  if (reading.built === data.length[talk]) {
    reading.more?.disconnect();
    find("#detail .more")?.remove();
  }
}

function tokenElement({ ranks, learned }, at) {
  const rank = ranks[at];
  const element = document.createElement("i");
  element.className = (learned(at) ? "l" : "") + (data.vocabControl[rank] ? " c" : "");
  const text = textOfWord(rank) ?? reading.joined.decode(wordBytes(rank), { stream: true });
  if (text === "") element.dataset.hex = hex(rank);
  text.split("\n").forEach((line, index) => {
    if (index) element.append(document.createElement("b"), "\n");
    element.append(line);
  });
  element.at = at;
  return element;
}

function describe(element) {
  const { talk, tokens } = reading;
  const { at } = element;
  const rank = tokens.ranks[at];
  const [first] = rowOf(talk);
  const stored = at + 1 < data.length[talk] ? tokens.learned(at + 1) : 0;
  const lines = [
    ["token", JSON.stringify(textOfWord(rank) ?? "part of a character")],
    ["id", `${data.vocabId[rank]}${data.vocabControl[rank] ? ", control token" : ""}`],
    ["bytes", hex(rank)],
    ["place", `${number.format(at)} of the conversation, ${number.format(start[talk] - start[first] + at)} of the packed row`],
    ["trained", tokens.learned(at) ? "yes" : at ? "no, context" : "no: nothing stands before the first token"],
    ["loss_mask", `${stored} (of the token after this one)`],
  ];
  card.replaceChildren(...lines.map(([name, value]) => make("div", {}, make("span", { className: "dim" }, name), make("span", {}, value))));
  card.hidden = false;
  const box = element.getClientRects()[0] ?? element.getBoundingClientRect();
  const below = box.bottom + 8 + card.offsetHeight < innerHeight;
  card.style.top = `${below ? box.bottom + 8 : box.top - 8 - card.offsetHeight}px`;
  card.style.left = `${Math.max(8, Math.min(box.left, innerWidth - card.offsetWidth - 12))}px`;
  find(".here")?.classList.remove("here");
  element.classList.add("here");
  reading.cursor = at;
}

/** Put the token cursor on token `at`. */
function goTo(at, block = "center") {
  while (reading.built <= at) build();
  const turn = reading.turns.findLast((candidate) => candidate.from <= at);
  const element = turn.text.children[at - turn.from];
  element.scrollIntoView({ block });
  describe(element);
}

const moveCursor = (step) => goTo(Math.max(0, Math.min(data.length[reading.talk] - 1, reading.cursor + step)), "nearest");

/** To the first token of the next (step 1) or previous (-1) trained span. */
function nextLearned(step) {
  const { learned } = reading.tokens;
  for (let at = reading.cursor + step; at >= 0 && at < data.length[reading.talk]; at += step)
    if (learned(at) && !(at && learned(at - 1))) return goTo(at);
}

find("#detail").addEventListener("pointerover", (event) => {
  const element = event.target.closest(".turns i");
  if (element) describe(element);
});
find("#detail").addEventListener("pointerleave", () => { card.hidden = true; find(".here")?.classList.remove("here"); });
