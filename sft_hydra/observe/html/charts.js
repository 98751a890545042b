// Pointing at a chart shows the exact values there.
const SVG = "http://www.w3.org/2000/svg";
for (const chart of document.querySelectorAll(".chart")) {
  const lines = [...chart.querySelectorAll(".line:not(.faint)")].map((line) => ({
    name: line.dataset.name,
    tone: line.classList[1],
    values: line.dataset.points.split(" ").map((pair) => pair.split(",").map(Number)),
    places: line.getAttribute("points").split(" ").map((pair) => Number(pair.split(",")[0])),
  }));
  const cross = document.createElementNS(SVG, "line");
  cross.setAttribute("class", "cross");
  const readout = Object.assign(document.createElement("div"), { className: "readout", hidden: true });
  chart.parentElement.append(readout);

  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    const nearest = lines.map(({ places }) =>
      places.reduce((best, place, index) => (Math.abs(place - x) < Math.abs(places[best] - x) ? index : best), 0));
    const at = lines[0].places[nearest[0]];
    for (const [name, value] of Object.entries({ x1: at, x2: at, y1: 12, y2: 212 })) cross.setAttribute(name, value);
    chart.append(cross);
    const rows = lines.map(({ name, tone, values }, index) => {
      const row = Object.assign(document.createElement("span"), { className: `key ${tone}` });
      row.textContent = `${name} ${values[nearest[index]][1].toPrecision(5).replace(/\.?0+$/, "")}`;
      return row;
    });
    const step = Object.assign(document.createElement("span"), { textContent: `step ${lines[0].values[nearest[0]][0]}` });
    readout.replaceChildren(step, ...rows);
    readout.hidden = false;
    const left = (at / chart.viewBox.baseVal.width) * box.width;
    readout.style.left = left > box.width / 2 ? "" : `${left + 24}px`;
    readout.style.right = left > box.width / 2 ? `${box.width - left + 8}px` : "";
  });
  chart.addEventListener("pointerleave", () => { cross.remove(); readout.hidden = true; });
}
