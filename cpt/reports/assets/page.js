"use strict";
// Plots take the page's colours, also when the reader's system changes between light and dark, and light ones for print.
const scheme = window.matchMedia("(prefers-color-scheme: dark)");
const plots = [...document.querySelectorAll("script[data-plot]")].map((s) => [document.getElementById(s.dataset.plot), JSON.parse(s.textContent)]);

function themed(layout, dark) {
  const ink = dark ? "#e6e8ea" : "#1d2126", grid = dark ? "#2a2f36" : "#eceef0", paper = dark ? "#1c2025" : "#ffffff";
  const patch = {
    "font.color": ink, "font.family": getComputedStyle(document.body).fontFamily, "font.size": 13,
    "modebar.bgcolor": "rgba(0,0,0,0)", "modebar.color": dark ? "#7d8793" : "#9aa4b0", "modebar.activecolor": ink,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    "hoverlabel.bgcolor": paper, "hoverlabel.bordercolor": grid, "hoverlabel.font.color": ink,
  };
  for (const key of Object.keys(layout)) {
    if (/^[xy]axis\d*$/.test(key)) { patch[key + ".gridcolor"] = grid; patch[key + ".linecolor"] = grid; patch[key + ".tickcolor"] = grid; }
  }
  return patch;
}

for (const [div, spec] of plots) {
  Plotly.newPlot(div, spec.data, spec.layout, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] })
    .then(() => Plotly.relayout(div, themed(spec.layout, scheme.matches)));
}
const recolour = (dark) => plots.forEach(([div, spec]) => Plotly.relayout(div, themed(spec.layout, dark)));
scheme.addEventListener("change", () => recolour(scheme.matches));
window.addEventListener("beforeprint", () => recolour(false));
window.addEventListener("afterprint", () => recolour(scheme.matches));

for (const box of document.querySelectorAll("details input[type=search]")) {
  box.addEventListener("input", () => {
    const want = box.value.toLowerCase();
    for (const row of box.parentElement.querySelectorAll("pre span")) row.style.display = row.textContent.toLowerCase().includes(want) ? "" : "none";
  });
}
