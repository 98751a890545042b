// Which conversations are shown and in which order: `state` is what is asked for, `shown` the answer.
const everything = () => ({
  query: "",
  sources: new Set(), // empty: all
  checks: new Set(), // empty: all
  reasons: new Set(), // empty: all
  length: [-Infinity, Infinity],
  share: [-Infinity, Infinity],
});
const state = { ...everything(), view: "conversations", sort: "suspicious", selected: 0 };
let shown = new Uint32Array(0); // conversations, in order
const matches = new Uint8Array(count); // the same as flags
const listeners = [];

const KEYS = {
  packed: () => 0,
  suspicious: (a, b) => data.flags[b] - data.flags[a] || data.repetition[b] - data.repetition[a],
  longest: (a, b) => data.length[b] - data.length[a],
  shortest: (a, b) => data.length[a] - data.length[b],
  most: (a, b) => share[b] - share[a],
  least: (a, b) => share[a] - share[b],
  repetition: (a, b) => data.repetition[b] - data.repetition[a],
};
const RANGES = { length: (talk) => data.length[talk], share: (talk) => 100 * share[talk] };

/** Whether a conversation passes all filters but the search and `except`. */
function passes(talk, except) {
  if (state.sources.size && !state.sources.has(data.source[talk])) return false;
  if (except !== "checks" && state.checks.size && ![...state.checks].some((bit) => (data.flags[talk] >> bit) & 1)) return false;
  return Object.entries(RANGES).every(([name, value]) =>
    name === except || (value(talk) >= state[name][0] && value(talk) <= state[name][1]));
}

const texts = []; // lower case, made when first searched
let run = 0;

/** Work out `shown` again; a search goes on in slices and gives up when another has begun. */
async function apply() {
  const mine = ++run;
  const query = state.query.toLowerCase();
  const found = [];
  let pause = performance.now() + 40;
  for (let talk = 0; talk < count; talk++) {
    matches[talk] = 0;
    if (!passes(talk)) continue;
    if (query) {
      texts[talk] ??= textOf((await tokensOf(talk)).ranks).toLowerCase();
      if (performance.now() > pause) {
        find("#found").textContent = `searching ${percent(talk / count)}`;
        await new Promise((resume) => setTimeout(resume));
        pause = performance.now() + 40;
      }
      if (mine !== run) return;
      if (!texts[talk].includes(query)) continue;
    }
    matches[talk] = 1;
    found.push(talk);
  }
  shown = Uint32Array.from(found).sort((a, b) => KEYS[state.sort](a, b) || a - b);
  if (shown.length && !matches[state.selected]) state.selected = shown[0];
  for (const listener of listeners) listener();
}

const isFiltered = () => state.query || state.sources.size || state.checks.size || state.reasons.size ||
  [...state.length, ...state.share].some(Number.isFinite);

function clearFilters() {
  Object.assign(state, everything());
  find("#search").value = "";
  apply();
}

function toggle(set, value) {
  if (!set.delete(value)) set.add(value);
  apply();
}

/** A list of choices with counts: [{value, name, total, colour, title}]. */
function choices(element, set, entries) {
  element.replaceChildren(...entries.map(({ value, name, total, tone, title }) => {
    const mark = make("span", { className: "mark", style: tone ? `background:${tone}` : "" });
    const button = make("button", { className: total ? "choice" : "choice none", title: title ?? "" }, mark, make("span", {}, name),
      make("span", { className: "dim" }, number.format(total)));
    button.setAttribute("aria-pressed", set.has(value));
    button.onclick = () => toggle(set, value);
    return button;
  }));
}

function countBy(total, keys, accept) {
  const counts = new Array(total).fill(0);
  for (let talk = 0; talk < count; talk++) if (accept(talk)) for (const key of keys(talk)) counts[key]++;
  return counts;
}

const bits = (flags) => facts.checks.map((_, bit) => bit).filter((bit) => (flags >> bit) & 1);
const reasonCounts = Object.entries(Object.groupBy(rejects, (reject) => reject.reason)).map(([name, all]) => [name, all.length]);

listeners.push(() => {
  const sources = countBy(facts.sources.length, (talk) => [data.source[talk]], () => true);
  const checks = countBy(facts.checks.length, (talk) => bits(data.flags[talk]), (talk) => passes(talk, "checks"));
  choices(find("#source-filter"), state.sources,
    facts.sources.map((name, value) => ({ value, name, total: sources[value], tone: colour(value) })).filter((source) => source.total));
  choices(find("#check-filter"), state.checks,
    facts.checks.map(({ name, text }, value) => ({ value, name, total: checks[value], title: text, tone: "var(--warn)" })).reverse());
  choices(find("#reason-filter"), state.reasons,
    reasonCounts.map(([name, total]) => ({ value: name, name: name.replaceAll("_", " "), total, tone: "var(--dim)" })));
  find("#reason-box").hidden = !rejects.length;
  find("#clear").hidden = !isFiltered();
  sayFound();
});

function sayFound() {
  const [some, all, what] = state.view === "rejected" ? [rejected.length, rejects.length, "rejected rows"] : [shown.length, count, "conversations"];
  find("#found").textContent = `${number.format(some)}${some === all ? "" : ` of ${number.format(all)}`} ${what}`;
}

find("#clear").onclick = clearFilters;
find("#sort").onchange = (event) => { state.sort = event.target.value; apply(); };
let typing;
find("#search").oninput = (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => { state.query = event.target.value.trim(); apply(); }, 120);
};
