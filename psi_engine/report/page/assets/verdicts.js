"use strict";
// Verdicts at a level the reader chooses; they depend on adjusted p-values alone.
PSI.verdicts = (() => {
  const LEVELS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5];
  let alpha = null;
  const listeners = [];

  const level = () => (alpha === null ? PSI.core.alpha : alpha);

  function levels() {
    return [...new Set([...LEVELS, PSI.core.alpha, level()])].sort((a, b) => a - b);
  }

  function set(value) {
    if (!(value > 0 && value < 1)) return;
    alpha = value;
    for (const changed of listeners) changed();
  }

  // Polysemantic where PSI's adjusted p reaches the level; else monosemantic where the patches are
  // more alike than random ones; not scorable where PSI has no p.
  function of(row, at = level()) {
    const { psi_p_adj, clarity_p_adj } = PSI.core.columns;
    if (psi_p_adj[row] === null) return "not scorable";
    if (psi_p_adj[row] <= at) return "polysemantic";
    return clarity_p_adj[row] !== null && clarity_p_adj[row] <= at ? "monosemantic" : "random-like";
  }

  // Channels of each verdict, over all layers or one.
  function counts(at = level(), layer = null) {
    const found = Object.fromEntries(PSI.core.verdicts.map((v) => [v.name, 0]));
    const layers = PSI.core.columns.layer;
    for (let row = 0; row < layers.length; row++) {
      if (layer === null || layers[row] === layer) found[of(row, at)] += 1;
    }
    return found;
  }

  const means = (name) => PSI.core.verdicts.find((v) => v.name === name).means;

  function badge(name) {
    return PSI.el("span", { class: `verdict ${name.replace(" ", "-")}`, title: means(name) }, name);
  }

  // A slider over sensible levels and a field for any other; calls `changed` and every listener.
  function control() {
    const { el } = PSI;
    const all = levels();
    const slider = el("input", {
      type: "range", min: 0, max: all.length - 1, step: 1, id: "fdr", value: all.indexOf(level()),
      "aria-label": "False discovery rate", "aria-valuetext": PSI.numbers.percent(level()),
    });
    const field = el("input", {
      type: "number", min: 0.01, max: 99, step: "any", value: +(100 * level()).toPrecision(4),
      "aria-label": "False discovery rate in percent",
    });
    slider.addEventListener("input", () => {
      field.value = +(100 * all[slider.value]).toPrecision(4);
      slider.setAttribute("aria-valuetext", PSI.numbers.percent(all[slider.value]));
      set(all[slider.value]);
    });
    field.addEventListener("change", () => {
      const value = Number(field.value) / 100;
      if (!(value > 0 && value < 1)) { field.value = +(100 * level()).toPrecision(4); return; }
      set(value);
      slider.value = all.reduce((best, x, i) => (Math.abs(x - value) < Math.abs(all[best] - value) ? i : best), 0);
    });
    return el("span", { class: "level" }, slider, el("span", { class: "field" }, field, " %"));
  }

  return { level, set, of, counts, means, badge, control, listen: (f) => listeners.push(f) };
})();
