"use strict";
// One channel: what it is, how sure that is, and what it responds to.
PSI.views.channel = (() => {
  const { el } = PSI;
  const { fixed, share, p } = PSI.numbers;
  const value = (name, row) => PSI.channels.value(name, row);

  function show(main, row) {
    const next = PSI.views.channels.neighbours(row);
    PSI.views.channels.chosen(row);
    const verdict = el("div", { class: "live" });
    const numbers = el("div", { class: "live" });
    const below = el("div", { class: "below" }, el("p", { class: "wait" }, "Loading its patches …"));
    let details = null;
    main.append(
      el("div", { class: "crumbs" },
        el("a", { href: "#channels" }, "All channels"),
        el("span", { class: "place" }, `${PSI.numbers.count(next.place)} of ${PSI.numbers.count(next.of)}`),
        step(next.before, "← Previous", "k", "prev"), step(next.after, "Next →", "j", "next")),
      verdict, numbers, below);

    function draw() {
      verdict.replaceChildren(
        el("h1", { tabindex: -1 }, PSI.channels.address(row), " ", PSI.verdicts.badge(PSI.verdicts.of(row))),
        el("p", { class: "standfirst" }, PSI.explain.verdict(row)));
      numbers.replaceChildren(blocks(row, details));
    }

    draw();
    PSI.channels.details(row).then((found) => {
      if (!below.isConnected) return;
      details = found;
      draw();
      below.replaceChildren(...rest(row, details).filter(Boolean));
    }).catch((error) => below.replaceChildren(el("p", { class: "note" }, error.message)));

    return { refresh: draw, key: (event) => key(event, next) };
  }

  function step(row, name, letter, rel) {
    if (row === null) return el("span", { class: "step off" }, name);
    return el("a", { class: "step", href: PSI.channels.link(row), rel, title: `${PSI.channels.address(row)} (${letter})` }, name);
  }

  function key(event, next) {
    const to = { j: next.after, ArrowRight: next.after, k: next.before, ArrowLeft: next.before }[event.key];
    if (to !== undefined && to !== null) { location.hash = PSI.channels.link(to).slice(1); return true; }
    if (event.key === "Escape") { location.hash = "channels"; return true; }
    return false;
  }

  function blocks(row, details) {
    if (value("psi", row) === null) return el("p", {});
    const shown = PSI.core.components.filter((c) => value(c.key, row) !== null);
    return el("div", { class: "blocks" },
      el("section", { class: "block whole" },
        el("h2", {}, el("span", { class: "symbol" }, "PSI"), " Is it polysemantic?"),
        el("p", { class: "big" }, share(value("psi", row))),
        el("p", {}, PSI.explain.psi(row)),
        el("table", { class: "product" }, el("tbody", {}, shown.map((c) => el("tr", {},
          el("th", { scope: "row" }, `${c.name}\u0302`),
          el("td", { class: "length", "aria-hidden": "true" }, el("i", { style: { width: `${100 * value(`${c.key}_hat`, row)}%` } })),
          el("td", { class: "number" }, share(value(`${c.key}_hat`, row)))))))),
      shown.map((c) => el("section", { class: "block" },
        el("h2", {}, el("span", { class: "symbol" }, c.name), ` ${c.question}`),
        el("p", {}, el("b", { class: "big" }, fixed(value(c.key, row))), " ", PSI.explain.component(c, row)),
        PSI.charts.against_chance({
          name: c.name, observed: value(c.key, row), mean: value(`${c.key}_null_mean`, row),
          std: value(`${c.key}_null_std`, row), quantiles: quantiles(details, c.key),
        }),
        el("p", { class: "aside" }, `${PSI.explain.beats(c, row)}. Chance here: ${c.chance}.`))),
      PSI.core.null_quantiles ? null : el("p", { class: "aside across" }, "This run keeps the mean and the spread of its nulls only: the dashed hills are normal curves of those. Scoring it again keeps the draws’ quantiles."));
  }

  const quantiles = (details, key) => (details && details.nulls && details.nulls[key]) || null;

  function rest(row, details) {
    return [
      details.clusters.length || details.patches.group.length ? el("section", { class: "groups-of" },
        el("h2", {}, details.clusters.length ? "What it responds to" : "Its patches"),
        el("p", { class: "aside" }, picture_note(details)), PSI.patches.groups(row, details)) : null,
      PSI.patches.silhouettes(details),
      details.swaps ? el("section", {}, el("h2", {}, "Does a group’s patch move the channel?"),
        el("p", { class: "aside" }, PSI.swaps.explanation),
        el("div", { class: "figures" }, PSI.swaps.plots(details.swaps, "images"))) : null,
      el("section", { class: "more" }, peers(row), activation(row), tests(row)),
    ];
  }

  function picture_note(details) {
    const n = details.patches.group.length;
    if (!PSI.core.pictures) return `Its ${PSI.numbers.plural(n, "patch", "patches")}, by group. ${PSI.core.report_notes[0] || ""}`;
    return `The ${n} image patches that excite it most, by group, strongest first. Click one for its image.`;
  }

  function peers(row) {
    const own = PSI.core.peers.filter((m) => value(m.key, row) !== null);
    if (!own.length) return null;
    return el("div", {}, el("h2", {}, "What other measures say"),
      el("table", { class: "plain" }, el("tbody", {}, own.map((m) => {
        const all = PSI.core.columns[m.key].filter((x, i) => x !== null && PSI.core.columns.layer[i] === PSI.core.columns.layer[row]);
        const rank = all.filter((x) => x > value(m.key, row)).length + 1;
        return el("tr", {}, el("th", { scope: "row" }, m.name, el("span", { class: "faint" }, ` ${m.read}`)),
          el("td", { class: "number" }, fixed(value(m.key, row))), el("td", { class: "number faint" }, `no. ${rank} of ${all.length}`));
      }))));
  }

  function activation(row) {
    if (value("activation_max", row) === null) return null;
    const facts = [
      ["Strongest activation", fixed(value("activation_max", row), 2)], ["Weakest", fixed(value("activation_min", row), 2)],
      ["Share of inactive sites", value("sparsity", row) === null ? null : PSI.numbers.percent(value("sparsity", row))],
      ["Likeness of its patches (mean cosine)", fixed(value("clarity", row))],
      ["Patches", String(value("n_patches", row))],
      ["Status", value("status", row) === "ok" ? null : `${value("status", row)} ${value("reason", row)}`],
    ].filter(([, text]) => text !== null);
    return el("div", {}, el("h2", {}, "About the channel"), el("table", { class: "plain" }, el("tbody", {},
      facts.map(([name, text]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "number" }, text))))));
  }

  function tests(row) {
    const shown = PSI.core.components.filter((c) => value(c.key, row) !== null);
    if (!shown.length) return null;
    const head = ["", "observed", "chance", "sd", "z", "p", "adj. p", "calibrated"];
    return el("div", { class: "across" }, el("h2", {}, "All its numbers"),
      el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "All its numbers" }, el("table", { class: "plain" },
        el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col", class: name ? "number" : null }, name)))),
        el("tbody", {}, shown.map((c) => el("tr", {}, el("th", { scope: "row" }, c.name),
          ["", "_null_mean", "_null_std", "_z", "_p", "_p_adj", "_hat"].map((end) => {
            const x = value(`${c.key}${end}`, row);
            return el("td", { class: "number" }, end.startsWith("_p") ? p(x) : end === "_z" ? fixed(x, 2) : end === "_hat" ? share(x) : fixed(x, 4));
          }))),
        el("tr", {}, el("th", { scope: "row" }, "PSI"), el("td", { class: "number" }, share(value("psi", row))),
          el("td", { colspan: 3 }), el("td", { class: "number" }, p(value("psi_p", row))), el("td", { class: "number" }, p(value("psi_p_adj", row))), el("td"))))));
  }

  return { show, title: (row) => PSI.channels.address(row) };
})();
