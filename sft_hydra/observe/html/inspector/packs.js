// Packed rows as lines of blocks: how conversations fill them. Drawn on canvases, so that thousands of blocks are light.
find("#capacity").textContent = number.format(facts.seqLength);
let packRows = data.rows; // those with a conversation that is shown
const packs = new VirtualList(find("#packs"), 30, packLine);
const PAD = 1; // pixels between blocks, where there is room for it

function packLine(index) {
  const first = firstOfRow.get(packRows[index]);
  const [, end] = rowOf(first);
  const tokens = start[end] - start[first];
  const canvas = make("canvas");
  const line = make("div", { className: "pack" },
    make("span", { className: "dim" }, number.format(packRows[index])), canvas,
    make("span", { className: "dim" }, `${percent(tokens / facts.seqLength, 1)}`));
  line.setAttribute("role", "option");
  line.setAttribute("aria-selected", state.selected >= first && state.selected < end);
  requestAnimationFrame(() => drawPack(canvas, first, end));
  const at = (event) => {
    const token = start[first] + (event.offsetX / canvas.clientWidth) * facts.seqLength;
    return token < start[end] ? lastNotAbove(start, token) : -1;
  };
  canvas.onpointermove = (event) => tell(at(event), event);
  canvas.onpointerleave = () => { card.hidden = true; };
  canvas.onclick = (event) => { if (at(event) >= 0) { state.selected = at(event); show("conversations"); } };
  return line;
}

function drawPack(canvas, first, end) {
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = width * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  const pen = canvas.getContext("2d");
  pen.scale(devicePixelRatio, devicePixelRatio);
  pen.fillStyle = paint("raised");
  pen.fillRect(0, 0, width, height);
  for (let talk = first; talk < end; talk++) {
    const left = ((start[talk] - start[first]) / facts.seqLength) * width;
    const wide = (data.length[talk] / facts.seqLength) * width;
    const box = [left, wide > 3 * PAD ? wide - PAD : wide];
    pen.fillStyle = paint(`c${data.source[talk] % 8}`);
    pen.globalAlpha = matches[talk] ? 0.3 : 0.08;
    pen.fillRect(box[0], 0, box[1], height);
    pen.globalAlpha = matches[talk] ? 1 : 0.2;
    pen.fillRect(box[0], height * (1 - share[talk]), box[1], height * share[talk]);
    pen.globalAlpha = 1;
    if (talk !== state.selected) continue;
    pen.strokeStyle = paint("ink");
    pen.lineWidth = 2;
    pen.strokeRect(box[0] + 1, 1, Math.max(2, box[1] - 2), height - 2);
  }
}

function tell(talk, event) {
  card.hidden = talk < 0;
  if (talk < 0) return;
  const lines = [
    ["source", facts.sources[data.source[talk]]],
    ["tokens", `${number.format(data.length[talk])}, ${percent(share[talk], 1)} trained`],
    ["look closer", bits(data.flags[talk]).map((bit) => facts.checks[bit].name).join(", ")],
  ];
  card.replaceChildren(...lines.filter(([, value]) => value).map(([name, value]) =>
    make("div", {}, make("span", { className: "dim" }, name), make("span", {}, value))));
  card.style.left = `${Math.min(event.clientX + 12, innerWidth - card.offsetWidth - 12)}px`;
  card.style.top = `${Math.min(event.clientY + 14, innerHeight - card.offsetHeight - 12)}px`;
}

const packIndex = () => lastNotAbove(packRows, data.row[state.selected]);
const revealPack = () => packs.reveal(packIndex());

/** Select the first conversation that is shown in the row `step` lines further. */
function movePack(step) {
  if (!packRows.length) return;
  let talk = firstOfRow.get(packRows[Math.max(0, Math.min(packRows.length - 1, packIndex() + step))]);
  while (!matches[talk]) talk++;
  select(talk);
}

/** Select the conversation `step` places further in its row. */
function moveInRow(step) {
  const [first, end] = rowOf(state.selected);
  select(Math.max(first, Math.min(end - 1, state.selected + step)));
}

listeners.push(() => {
  const filled = new Set(shown.map((talk) => data.row[talk]));
  packRows = data.rows.filter((row) => filled.has(row));
  packs.show(packRows.length);
  if (state.view === "packs" && shown.length) revealPack();
});
