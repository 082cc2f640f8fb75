"use strict";
// The run at a glance: what was found, in which layers, where to look first, what was run.
PSI.views.overview = (() => {
  const { el } = PSI;
  const { count, percent, p } = PSI.numbers;
  const TOP = 8;

  function show(main) {
    const changing = [];
    const live = (make) => {
      const place = el("div", { class: "live" }, make());
      changing.push(() => place.replaceChildren(make()));
      return place;
    };
    main.append(
      el("section", { class: "lead" },
        live(() => el("div", {},
          el("h1", { tabindex: -1 }, PSI.explain.headline()),
          el("p", { class: "standfirst" }, PSI.explain.by_layer(), " ", standfirst()))),
        el("p", { class: "choose" }, el("label", { for: "fdr" }, "False discovery rate"), PSI.verdicts.control()),
        live(floor_note), notes()),
      el("section", {}, el("h2", {}, "Verdicts by layer"), el("div", { class: "scroll" }, live(bars)), legend()),
      el("section", {}, el("h2", {}, "Where to look first"),
        el("p", { class: "aside" }, "The channels of highest PSI. Each picture is the most typical patch of one group, the word its closest concept."),
        live(cards), el("p", {}, el("a", { href: "#channels" }, `All ${count(PSI.channels.count)} channels`))),
      el("section", {}, el("h2", {}, "Layers side by side"), distributions()),
      el("section", {}, el("h2", {}, "How to read the numbers"), reading()),
      el("section", {}, el("h2", {}, "What was run"), facts()),
    );
    return { refresh: () => changing.forEach((again) => again()) };
  }

  function standfirst() {
    const names = PSI.core.components.map((c) => c.name);
    return `A channel counts as polysemantic when the patches that excite it most fall into groups that chance does not explain: ${PSI.numbers.listed(names)} all have to pass.`;
  }

  function floor_note() {
    const fewest = Math.min(...PSI.core.components.map((c) => c.draws));
    const floor = 1 / (fewest + 1);
    if (!PSI.core.components.length || PSI.verdicts.level() >= floor) return "";
    const names = PSI.core.components.filter((c) => c.draws === fewest).map((c) => c.name);
    return el("p", { class: "note" }, `With ${count(fewest)} draws of the null of ${PSI.numbers.listed(names)} no p is below ${p(floor)}: at this level nothing can be called polysemantic.`);
  }

  function notes() {
    const all = [...PSI.core.notes, ...PSI.core.report_notes];
    if (!all.length) return null;
    return el("div", { class: "notes" }, el("h2", {}, "To know before reading on"),
      el("ul", {}, all.map((text) => el("li", {}, text))));
  }

  function bars() {
    const { layers, verdicts, columns } = PSI.core;
    return el("table", { class: "bars" },
      el("caption", { class: "sr" }, `Channels of each verdict at a false discovery rate of ${percent(PSI.verdicts.level())}`),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Layer"),
        el("th", { scope: "col", class: "bar-head" }, el("span", { class: "sr" }, "Shares")),
        verdicts.map((v) => el("th", { scope: "col", class: "number", title: v.means }, v.name)),
        el("th", { scope: "col", class: "number median" }, "log PSI, median"))),
      el("tbody", {}, layers.map((name, layer) => {
        const found = PSI.verdicts.counts(PSI.verdicts.level(), layer);
        const total = Object.values(found).reduce((a, b) => a + b, 0);
        const own = columns.log_psi ? columns.log_psi.filter((_, row) => columns.layer[row] === layer) : [];
        return el("tr", {},
          el("th", { scope: "row" }, name),
          el("td", { class: "bar" }, el("div", { class: "stack", "aria-hidden": "true" },
            verdicts.map((v) => (found[v.name] ? el("i", { class: v.name.replace(" ", "-"), style: { "flex-grow": found[v.name] }, title: `${v.name}: ${found[v.name]} of ${total}` }) : null)))),
          verdicts.map((v) => el("td", { class: "number" },
            found[v.name] ? el("a", { href: "#channels", onclick: () => PSI.views.channels.filter({ layer, verdict: v.name, text: "" }) }, count(found[v.name])) : "0")),
          el("td", { class: "number median" }, PSI.numbers.spread(PSI.numbers.median(own), 2)));
      })));
  }

  function legend() {
    return el("ul", { class: "legend" }, PSI.core.verdicts.map((v) =>
      el("li", {}, el("i", { class: v.name.replace(" ", "-"), "aria-hidden": "true" }), el("b", {}, v.name), ` ${v.means}`)));
  }

  function cards() {
    const { columns } = PSI.core;
    if (!columns.log_psi) return el("p", {}, "No channel could be scored.");
    const best = columns.log_psi.map((x, row) => [x, row]).filter(([x]) => x !== null)
      .sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, TOP).map(([, row]) => row);
    return el("ul", { class: "cards" }, best.map((row) => {
      const tiles = PSI.thumbnails.medoids(row);
      const names = PSI.channels.concepts(row);
      return el("li", {}, el("a", { href: PSI.channels.link(row) },
        el("span", { class: "card-head" }, el("b", {}, PSI.channels.address(row)), PSI.verdicts.badge(PSI.verdicts.of(row))),
        el("span", { class: "card-groups", style: { "--groups": Math.max(3, names.length) } }, names.map((name, i) =>
          el("span", {}, tiles[i] || null, el("span", { class: "name" }, name || `group ${i + 1}`)))),
        el("span", { class: "card-foot" }, `PSI ${PSI.numbers.share(columns.psi[row])}, adjusted p ${p(columns.psi_p_adj[row])}`)));
    }));
  }

  function distributions() {
    const { layers, components, columns } = PSI.core;
    const shown = [["psi", "PSI"], ...components.map((c) => [`${c.key}_hat`, `${c.name}\u0302`])].filter(([key]) => columns[key]);
    return el("div", {},
      el("p", { class: "aside" }, "Each column runs from 0 to 1; the line is the median. A calibrated score of 0.5 is what chance gives on average."),
      el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Distributions" }, el("table", { class: "small" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Layer"), shown.map(([, name]) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, layers.map((name, layer) => el("tr", {}, el("th", { scope: "row" }, name),
          shown.map(([key, label]) => el("td", {}, PSI.charts.distribution(
            columns[key].filter((_, row) => columns.layer[row] === layer), `${label} in ${name}`)))))))));
  }

  // "1,000 each", or "S 4,000, Q 1,000, D 1,000".
  function draws() {
    const { components } = PSI.core;
    const same = new Set(components.map((c) => c.draws)).size === 1;
    return same ? `${count(components[0].draws)} each` : components.map((c) => `${c.name} ${count(c.draws)}`).join(", ") || "none";
  }

  function reading() {
    return el("dl", { class: "reading" },
      PSI.core.components.map((c) => [
        el("dt", {}, c.name),
        el("dd", {}, el("b", {}, c.question), ` ${c.measured[0].toUpperCase()}${c.measured.slice(1)}. Held against ${c.chance} (null `, el("code", {}, c.null), ")."),
      ]),
      el("dt", {}, "p"), el("dd", {}, el("b", {}, "How often would chance do as well?"), ` The share of chance draws that reach the observed value (draws: ${draws()}). Adjusted p takes into account that many channels were tested (${PSI.core.adjust === "by" ? "Benjamini–Yekutieli" : "Benjamini–Hochberg"}, over the channels of a layer).`),
      el("dt", {}, "Ŝ, Q̂, D̂"), el("dd", {}, el("b", {}, "How far above chance?"), " The distance to chance in its standard deviations, squeezed into 0 to 1."),
      el("dt", {}, "PSI"), el("dd", {}, el("b", {}, "All of them at once."), " Their product, the Polysemanticity Index of Gupta and Kumar (arXiv 2508.16950). PSI ranks, the verdict decides: both need the null."));
  }

  function facts() {
    return el("div", {}, el("dl", { class: "facts" },
      PSI.core.facts.map(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]),
      el("dt", {}, "This report"), el("dd", {}, `${PSI.numbers.bytes(PSI.core.size)}; opens without a network`)));
  }

  return { show, title: () => "Overview" };
})();
