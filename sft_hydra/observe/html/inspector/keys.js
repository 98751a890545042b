// Views, keys, theme, and the address that leads back to what is on the screen. Runs last: starts the page.
const VIEWS = ["conversations", "packs", "sources", "rejected"];

function show(view) {
  state.view = view;
  showFilters(false);
  card.hidden = true;
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.dataset.view !== view;
  for (const tab of document.querySelectorAll("#views button")) tab.setAttribute("aria-selected", tab.dataset.view === view);
  if (view === "sources") showSources();
  if (view === "packs") packs.show(packRows.length);
  if (view === "rejected") rejectedList.show(rejected.length);
  sayFound();
  if (view === "sources" || view === "rejected") remember();
  else if (count) select(state.selected);
  if (view === "conversations") list.draw(true);
}

// Until the page is ready the address says where to go, not where the reader is.
let ready = false;

function remember() {
  if (!ready) return;
  history.replaceState(null, "", `#${new URLSearchParams({ view: state.view, row: data.row[state.selected], at: state.selected - rowOf(state.selected)[0] })}`);
}

function recall() {
  const said = new URLSearchParams(location.hash.slice(1));
  const first = firstOfRow.get(Number(said.get("row")));
  if (said.has("row") && first !== undefined) state.selected = Math.min(count - 1, first + Number(said.get("at")));
  if (VIEWS.includes(said.get("view"))) state.view = said.get("view");
  return said.has("row") && first !== undefined;
}

function move(step) {
  if (state.view === "packs") return movePack(step);
  if (state.view === "rejected") return find("#rejected").scrollBy(0, 58 * step);
  const index = (place.get(state.selected) ?? -step) + step;
  if (shown.length) select(shown[Math.max(0, Math.min(shown.length - 1, index))]);
}
const sideways = (step) => (state.view === "packs" ? moveInRow(step) : state.view === "conversations" && moveCursor(step));

function changeTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.style.colorScheme || (dark ? "dark" : "light");
  document.documentElement.style.colorScheme = now === "dark" ? "light" : "dark";
  paints.clear();
  packs.draw(true);
}

// In a narrow window the filters lie over the view, and go when one reads on.
function showFilters(open) {
  document.body.classList.toggle("filtering", open);
  find("#filters-open").setAttribute("aria-expanded", open);
}
const turnFilters = () => showFilters(!document.body.classList.contains("filtering"));

const KEYMAP = {
  j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
  PageDown: () => move(10), PageUp: () => move(-10),
  g: () => move(-Infinity), Home: () => move(-Infinity), G: () => move(Infinity), End: () => move(Infinity),
  l: () => sideways(1), ArrowRight: () => sideways(1), h: () => sideways(-1), ArrowLeft: () => sideways(-1),
  t: () => state.view === "conversations" && nextLearned(1), T: () => state.view === "conversations" && nextLearned(-1),
  "]": () => moveInRow(1), "[": () => moveInRow(-1),
  "/": () => { showFilters(true); find("#search").focus(); }, f: turnFilters, x: clearFilters, b: () => document.body.classList.toggle("borders"), d: changeTheme,
  "?": () => find("#help").showModal(),
  Enter: () => state.view === "packs" && show("conversations"),
  Escape: () => { card.hidden = true; showFilters(false); },
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || find("#help").open) return;
  const typed = event.target.closest("input, select, textarea");
  if (typed) {
    if (event.key === "Escape" || (event.key === "Enter" && typed.id === "search")) { typed.blur(); showFilters(false); event.preventDefault(); }
    return;
  }
  if (event.target.closest("button") && (event.key === "Enter" || event.key === " ")) return;
  const view = VIEWS[Number(event.key) - 1];
  const action = view ? () => show(view) : KEYMAP[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

for (const tab of document.querySelectorAll("#views button")) {
  const view = tab.dataset.view;
  const totals = { conversations: count, packs: data.rows.length, rejected: facts.rejectsTotal };
  if (view in totals) tab.append(" ", make("small", { className: "dim" }, number.format(totals[view])));
  tab.onclick = () => show(view);
}
find("#filters-open").onclick = turnFilters;
find("#theme").onclick = changeTheme;
find("#help-open").onclick = () => find("#help").showModal();
matchMedia("(prefers-color-scheme: dark)").onchange = () => { paints.clear(); packs.draw(true); };

const learnedTotal = data.trained.reduce((sum, trained) => sum + trained, 0);
const part = data.rows.length < facts.rowsInSplit
  ? `${number.format(data.rows.length)} of ${number.format(facts.rowsInSplit)} packed rows, evenly spread` : "every packed row";
find("#headline").textContent = `${facts.split}: ${part} · ${number.format(start[count])} tokens, ${percent(learnedTotal / start[count], 1)} trained · ` +
  `rows ${percent(start[count] / (data.rows.length * facts.seqLength), 2)} full`;
find("#about dl").append(...Object.entries(facts.facts).flatMap(([name, value]) => [make("dt", { className: "dim" }, name), make("dd", {}, value)]));

addEventListener("hashchange", () => ready && recall() && show(state.view));
recall();
await apply();
if (!recall() && shown.length) state.selected = shown[0];
ready = true;
show(state.view);
document.documentElement.dataset.ready = "yes";
