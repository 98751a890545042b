// Pointing at a chart shows the exact values there.
const SVG = "http://www.w3.org/2000/svg";
for (const chart of document.querySelectorAll(".chart")) {
  const [left, right, low, high] = chart.dataset.frame.split(" ").map(Number);
  const across = (x) => left + ((x - low) / (high - low || 1)) * (right - left);
  const lines = [...chart.querySelectorAll(".line:not(.faint)")].map((line) => ({
    name: line.dataset.name,
    tone: line.classList[1],
    values: line.dataset.points.split(" ").map((pair) => pair.split(",").map(Number)),
  }));
  const cross = document.createElementNS(SVG, "line");
  cross.setAttribute("class", "cross");
  const readout = Object.assign(document.createElement("div"), { className: "readout", hidden: true });
  chart.parentElement.append(readout);

  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    const away = ([value]) => Math.abs(across(value) - x);
    const nearest = lines.map(({ values }) => values.reduce((best, point) => (away(point) < away(best) ? point : best)));
    const closest = nearest.reduce((best, point) => (away(point) < away(best) ? point : best));
    const at = across(closest[0]);
    for (const [name, value] of Object.entries({ x1: at, x2: at, y1: 12, y2: 212 })) cross.setAttribute(name, value);
    chart.append(cross);
    const rows = lines.map(({ name, tone }, index) => {
      const row = Object.assign(document.createElement("span"), { className: `key ${tone}` });
      row.textContent = `${name} ${nearest[index][1].toPrecision(5).replace(/\.?0+$/, "")}`;
      return row;
    });
    const step = Object.assign(document.createElement("span"), { textContent: `step ${closest[0]}` });
    readout.replaceChildren(step, ...rows);
    readout.hidden = false;
    const place = (at / chart.viewBox.baseVal.width) * box.width;
    readout.style.left = place > box.width / 2 ? "" : `${place + 24}px`;
    readout.style.right = place > box.width / 2 ? `${box.width - place + 8}px` : "";
  });
  chart.addEventListener("pointerleave", () => { cross.remove(); readout.hidden = true; });
}
