"use strict";
// Draws the charts when they are first seen, shows one panel of each group, and filters the tables.

const charts = JSON.parse(document.getElementById("charts").textContent);
const quiet = { labelColor: "var(--quiet)", titleColor: "var(--quiet)" };
const config = {
  background: null,
  font: getComputedStyle(document.body).fontFamily,
  autosize: { type: "fit-x", contains: "padding" },
  view: { stroke: null },
  axis: {
    ...quiet, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 400, titlePadding: 8, labelPadding: 6,
    domainColor: "var(--rule)", gridColor: "var(--rule)", gridOpacity: 0.7, ticks: false, domain: false,
  },
  legend: { ...quiet, labelFontSize: 12, symbolType: "circle", symbolStrokeWidth: 0, symbolSize: 80, labelColor: "var(--text)" },
  text: { fontSize: 12 },
};

function draw(element) {
  if (element.dataset.drawn) return;
  element.dataset.drawn = "yes";
  vegaEmbed(element, { width: "container", ...charts[element.dataset.chart], config }, {
    actions: false,
    renderer: "svg",
    ast: true, // an interpreter in place of eval, which the page's policy forbids
    tooltip: { theme: "custom", disableDefaultStyle: true },
  }).catch((error) => console.error(error));
}

function drawVisible() {
  for (const element of document.querySelectorAll(".chart")) {
    if (element.offsetParent !== null) draw(element);
  }
}

function show(group, value) {
  for (const panel of document.querySelectorAll(`[data-panel="${group}"]`)) panel.hidden = panel.dataset.value !== value;
}

for (const chooser of document.querySelectorAll("[data-chooses]")) {
  const chosen = () => (chooser.matches("select") ? chooser : chooser.querySelector("input:checked")).value;
  show(chooser.dataset.chooses, chosen());
  chooser.addEventListener("change", () => {
    show(chooser.dataset.chooses, chosen());
    drawVisible();
  });
}

for (const field of document.querySelectorAll("[data-filters]")) {
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    for (const row of document.getElementById(field.dataset.filters).tBodies[0].rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    }
  });
}

drawVisible();
