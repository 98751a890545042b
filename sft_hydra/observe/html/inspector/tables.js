// Sources side by side, and the rows that were rejected.
function sourceRows() {
  return facts.sources.map((name, source) => {
    const talks = [];
    for (let talk = 0; talk < count; talk++) if (data.source[talk] === source) talks.push(talk);
    const lengths = talks.map((talk) => data.length[talk]).sort((a, b) => a - b);
    const tokens = lengths.reduce((sum, length) => sum + length, 0);
    const learned = talks.reduce((sum, talk) => sum + data.trained[talk], 0);
    return { name, source, talks, tokens, learned, median: lengths[lengths.length >> 1], longest: lengths.at(-1) };
  }).filter(({ talks }) => talks.length);
}

function showSources() {
  const rows = sourceRows();
  const tokens = start[count];
  const head = ["source", "conversations", "tokens", "share", "trained", "median", "longest", "look closer"];
  const body = rows.map((row) => make("tr", {}, make("td", {}, make("span", { className: "mark", style: `background:${colour(row.source)}` }), row.name),
    ...[number.format(row.talks.length), number.format(row.tokens), percent(row.tokens / tokens, 1), percent(row.learned / row.tokens, 1),
      number.format(row.median), number.format(row.longest),
      number.format(row.talks.filter((talk) => data.flags[talk]).length)].map((cell) => make("td", {}, cell))));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head.map((name) => make("th", {}, name)))), make("tbody", {}, ...body));
  const [lengths, shares] = ["length", "share"].map((name) => tally(name, () => true));
  const plots = rows.map(({ name, source }) => {
    const only = (counts) => counts.map((of, index) => (index === source ? of : of.map(() => 0)));
    const plot = (counts, left, right) => make("div", { className: "plot" }, bars(only(counts), counts[source], 300, 90),
      make("div", { className: "axis dim" }, make("span", {}, left), make("span", {}, right)));
    return make("div", { className: "card" }, make("h3", {}, make("span", { className: "mark", style: `background:${colour(source)}` }), name),
      make("div", { className: "pair" },
        make("div", {}, make("small", { className: "dim" }, "length, tokens"), plot(lengths, number.format(Math.round(2 ** low)), number.format(Math.round(2 ** high)))),
        make("div", {}, make("small", { className: "dim" }, "share that is trained"), plot(shares, "0 %", "100 %"))));
  });
  find("#sources").replaceChildren(make("div", { className: "card wrap" }, table), make("div", { className: "plots" }, ...plots));
}

let rejected = rejects;
const rejectedList = new VirtualList(find("#rejected"), 58, (index) => {
  const { origin, source, reason, detail } = rejected[index];
  return make("div", { className: "item" },
    make("div", { className: "facts" }, make("span", { className: "warn" }, reason.replaceAll("_", " ")),
      make("span", { className: "name" }, source ?? ""), make("code", { className: "dim" }, origin ?? "")),
    make("div", { className: "snippet dim", title: detail ?? "" }, detail ?? ""));
});

listeners.push(() => {
  const query = state.query.toLowerCase();
  const names = new Set([...state.sources].map((source) => facts.sources[source]));
  rejected = rejects.filter((reject) => (!state.reasons.size || state.reasons.has(reject.reason)) &&
    (!names.size || names.has(reject.source)) && (!query || JSON.stringify(reject).toLowerCase().includes(query)));
  rejectedList.show(rejected.length);
  sayFound();
  find("#rejected").dataset.empty = facts.rejectsTotal ? "No rejected row fits these filters." : "Nothing was rejected.";
  find("#rejected").classList.toggle("none", !rejected.length);
  find('#views [data-view="rejected"]').title = rejects.length < facts.rejectsTotal
    ? `the first ${number.format(rejects.length)} of ${number.format(facts.rejectsTotal)}` : "";
});
