// A list of any length that only builds the rows in sight; the list of conversations is one.
class VirtualList {
  constructor(element, height, render) {
    this.element = element;
    this.height = height;
    this.render = render; // (index) -> element
    this.length = 0;
    this.canvas = make("div", { className: "canvas" });
    element.append(this.canvas);
    element.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw(true)).observe(element);
  }

  show(length) {
    this.length = length;
    this.canvas.style.height = `${length * this.height}px`;
    this.draw(true);
  }

  draw(again = false) {
    const first = Math.max(0, Math.floor(this.element.scrollTop / this.height) - 4);
    const end = Math.min(this.length, first + Math.ceil(this.element.clientHeight / this.height) + 9);
    if (!again && first === this.first && end === this.end) return;
    [this.first, this.end] = [first, end];
    const rows = [];
    for (let index = first; index < end; index++) {
      const row = this.render(index);
      row.style.top = `${index * this.height}px`;
      rows.push(row);
    }
    this.canvas.replaceChildren(...rows);
  }

  reveal(index) {
    const top = index * this.height;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + this.height > scrollTop + clientHeight) this.element.scrollTop = top + this.height - clientHeight;
    this.draw(true);
  }
}

const place = new Map(); // conversation -> its place in `shown`

/** What the user says first, in one line; without roles, the beginning. */
async function snippet(talk, length = 120) {
  const tokens = await tokensOf(talk);
  const turn = turnsOf(talk, tokens).find(({ role }) => role === "user") ?? { from: 0, to: data.length[talk] };
  const plain = tokens.ranks.subarray(turn.from, Math.min(turn.to, turn.from + 2 * length)).filter((rank) => !data.vocabControl[rank]);
  return textOf(plain).replace(/\s+/g, " ").trim().replace(/^user /, "").slice(0, length);
}

function shareBar(value) {
  return make("span", { className: "bar", title: `${percent(value, 1)} trained` }, make("i", { style: `width:${100 * value}%` }));
}

const list = new VirtualList(find("#list"), 58, (index) => {
  const talk = shown[index];
  const text = make("div", { className: "snippet dim" });
  snippet(talk).then((line) => { text.textContent = line || "(control tokens only)"; });
  const worst = bits(data.flags[talk]).at(-1);
  const row = make("div", { className: "item", id: `talk-${talk}` },
    make("div", { className: "facts" },
      make("span", { className: "mark", style: `background:${colour(data.source[talk])}` }),
      make("span", { className: "name" }, facts.sources[data.source[talk]]),
      make("span", { className: "dim" }, `${number.format(data.length[talk])} tok`),
      shareBar(share[talk]),
      make("span", { className: "warn" }, worst === undefined ? "" : facts.checks[worst].name)),
    text);
  row.setAttribute("role", "option");
  row.setAttribute("aria-selected", talk === state.selected);
  row.onclick = () => select(talk);
  return row;
});

function select(talk) {
  state.selected = talk;
  card.hidden = true;
  if (state.view === "conversations") {
    if (place.has(talk)) list.reveal(place.get(talk));
    find("#list").setAttribute("aria-activedescendant", `talk-${talk}`);
    showConversation(talk);
  } else if (state.view === "packs") revealPack();
  remember();
}

listeners.push(() => {
  place.clear();
  shown.forEach((talk, index) => place.set(talk, index));
  list.show(shown.length);
  if (state.view === "conversations") {
    if (shown.length) select(state.selected);
    else find("#detail").replaceChildren(make("p", { className: "empty dim" }, "No conversation fits these filters."));
  }
});
