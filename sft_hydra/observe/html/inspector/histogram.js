// Histograms of length (steps of a power of two) and trained share; dragging over one, or its two fields, sets a filter.
const BINS = 32;
const svg = (tag, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};

const longest = data.length.reduce((most, length) => Math.max(most, length), 1);
const shortest = data.length.reduce((least, length) => Math.min(least, length), longest);
const low = Math.floor(2 * Math.log2(Math.max(1, shortest))) / 2;
const high = Math.max(low + 1, Math.ceil(2 * Math.log2(longest)) / 2);
const SCALES = {
  length: { at: (value) => (Math.log2(Math.max(1, value)) - low) / (high - low), value: (at) => 2 ** (low + at * (high - low)) },
  share: { at: (value) => value / 100, value: (at) => 100 * at },
};
const binOf = (name, talk) => Math.min(BINS - 1, Math.floor(BINS * SCALES[name].at(RANGES[name](talk))));

/** SVG of stacked bars: counts[source][bin]; `backdrop` the bars of all behind them, `isIn(bin)` whether a bar counts. */
function bars(counts, backdrop, width, height, isIn = () => true) {
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const most = Math.max(1, ...backdrop);
  const step = width / BINS;
  const scale = (total) => (total ? Math.max(1.5, (height * total) / most) : 0);
  for (let bin = 0; bin < BINS; bin++) {
    const box = { x: bin * step + 0.4, width: step - 0.8 };
    chart.append(svg("rect", { ...box, y: height - scale(backdrop[bin]), height: scale(backdrop[bin]), fill: "var(--rule)" }));
    let top = height;
    counts.forEach((of, source) => {
      if (!of[bin] || !isIn(bin)) return;
      const tall = scale(of[bin]);
      top -= tall;
      chart.append(svg("rect", { ...box, y: top, height: tall, fill: colour(source) }));
    });
  }
  return chart;
}

function tally(name, accept) {
  const counts = facts.sources.map(() => new Array(BINS).fill(0));
  for (let talk = 0; talk < count; talk++) if (accept(talk)) counts[data.source[talk]][binOf(name, talk)]++;
  return counts;
}
const total = (counts) => counts.reduce((sum, of) => sum.map((value, bin) => value + of[bin]), new Array(BINS).fill(0));

for (const element of document.querySelectorAll(".histogram")) {
  const name = element.dataset.range;
  const scale = SCALES[name];
  const all = total(tally(name, () => true));
  const plot = make("div", { className: "plot" });
  const fields = ["from", "to"].map((word, end) => {
    const field = make("input", { type: "number", min: 0, placeholder: word });
    field.setAttribute("aria-label", `${name}, ${word}`);
    field.onchange = () => {
      state[name] = [...state[name]];
      state[name][end] = field.value === "" ? (end ? Infinity : -Infinity) : Number(field.value);
      apply();
    };
    return field;
  });
  element.append(plot, make("div", { className: "row" }, fields[0], make("span", { className: "dim" }, "to"), fields[1]));

  listeners.push(() => {
    const [from, to] = state[name];
    const isIn = (bin) => scale.value((bin + 1) / BINS) > from && scale.value(bin / BINS) <= to;
    plot.replaceChildren(bars(tally(name, (talk) => passes(talk, name)), all, 240, 56, isIn));
    fields[0].value = Number.isFinite(from) ? from : "";
    fields[1].value = Number.isFinite(to) ? to : "";
    fields[0].placeholder = name === "length" ? shortest : 0;
    fields[1].placeholder = name === "length" ? longest : 100;
  });

  const bin = (event) => {
    const box = plot.getBoundingClientRect();
    return Math.max(0, Math.min(BINS - 1, Math.floor((BINS * (event.clientX - box.left)) / box.width)));
  };
  let from = null;
  plot.onpointerdown = (event) => { from = bin(event); plot.setPointerCapture(event.pointerId); };
  plot.onpointermove = (event) => {
    if (from === null) return;
    const [a, b] = [from, bin(event)].sort((x, y) => x - y);
    const round = (value) => (name === "length" ? Math.ceil(value) : Math.round(10 * value) / 10);
    const range = [round(scale.value(a / BINS)), round(scale.value((b + 1) / BINS)) - (name === "length" ? 1 : 0)];
    if (range.join() !== state[name].join()) { state[name] = range; apply(); }
  };
  plot.onpointerup = () => { from = null; };
  plot.ondblclick = () => { state[name] = [-Infinity, Infinity]; apply(); };
}
