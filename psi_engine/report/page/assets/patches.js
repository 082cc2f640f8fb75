"use strict";
// The groups of a channel: their names, their classes, their patches, and the images behind them.
PSI.patches = (() => {
  const { el, svg } = PSI;
  const { fixed, plural, percent } = PSI.numbers;

  function groups(row, details) {
    const own = details.patches;
    const members = details.clusters.map((_, g) => own.group.flatMap((x, i) => (x === g ? [i] : [])));
    const rest = own.group.flatMap((x, i) => (x < 0 ? [i] : []));
    const order = [...members.flat(), ...rest];
    const open = (i) => picture(row, details, order, order.indexOf(i));
    return [
      ...details.clusters.map((cluster, g) => group(row, details, cluster, g, members[g], open)),
      rest.length ? el("section", { class: "group" }, el("h3", {}, "In no group"),
        el("p", { class: "aside" }, plural(rest.length, "patch", "patches")), tiles(row, details, rest, open)) : null,
    ];
  }

  function group(row, details, cluster, g, members, open) {
    const name = cluster.concepts.length ? cluster.concepts[0][0] : null;
    return el("section", { class: "group", "aria-label": `Group ${g + 1}` },
      el("h3", {}, el("span", { class: "which" }, `Group ${g + 1}`), name),
      el("p", { class: "aside" }, `${plural(cluster.size, "patch", "patches")}, mean silhouette ${fixed(cluster.silhouette, 2)}`),
      el("div", { class: "split" },
        el("div", { class: "names" },
          cluster.concepts.length ? meter("Closest concepts", "cosine similarity to the group’s mean", cluster.concepts, (x) => fixed(x, 3),
            Math.max(...cluster.concepts.map((c) => c[1])))
            : el("p", { class: "aside" }, "No names: this run has no text embeddings."),
          cluster.labels.length ? meter("Classes of the images", `of ${cluster.size} patches`,
            cluster.others ? [...cluster.labels, ["others", cluster.others]] : cluster.labels, String, cluster.size) : null),
        tiles(row, details, members, open)));
  }

  // Named bars, the longest as wide as the column.
  function meter(title, unit, rows, format, full) {
    return el("table", { class: "meter" }, el("caption", {}, title, el("span", { class: "faint" }, `, ${unit}`)),
      el("tbody", {}, rows.map(([name, x], i) => el("tr", { class: i === 0 ? "first" : null },
        el("th", { scope: "row" }, name), el("td", { class: "length", "aria-hidden": "true" }, el("i", { style: { width: `${Math.max(0, (100 * x) / (full || 1)).toFixed(1)}%` } })),
        el("td", { class: "number" }, format(x))))));
  }

  const said = (details, i) => {
    const own = details.patches;
    const label = own.label[i] < 0 ? null : details.strings[own.label[i]];
    return [`Patch ${own.rank[i] + 1}`, label, own.activation ? `activation ${fixed(own.activation[i], 2)}` : null].filter(Boolean).join(", ");
  };

  function tiles(row, details, members, open) {
    const own = details.patches;
    if (!PSI.core.pictures || !own.slot) return listing(details, members);
    const left = members.filter((i) => own.slot[i] < 0).length;
    return el("div", {}, el("ul", { class: "tiles" }, members.filter((i) => own.slot[i] >= 0).map((i) =>
      el("li", {}, el("button", { type: "button", title: `${said(details, i)}: show its image`, onclick: () => open(i) },
        PSI.thumbnails.thumbnail(row, own.slot[i], said(details, i)))))),
    left ? el("p", { class: "aside" }, `${plural(left, "patch", "patches")} not shown.`) : null);
  }

  // Without pictures: which patches they are.
  function listing(details, members) {
    const own = details.patches;
    const key = (i) => (own.key[i] < 0 ? `patch ${own.rank[i] + 1}` : details.strings[own.key[i]]);
    return el("p", { class: "listing" }, members.map((i) => el("span", { title: said(details, i) }, key(i))));
  }

  // The image a patch comes from, with its box; arrow keys go through the channel's patches.
  function picture(row, details, order, start) {
    const own = details.patches;
    let at = start;
    const body = el("div");
    const dialog = el("dialog", { class: "picture", "aria-label": "Image of a patch" }, body);
    const step = (by) => { at = (at + by + order.length) % order.length; draw(); };

    function draw() {
      const i = order[at];
      const side = PSI.core.pictures.image_side;
      const [x0, y0, x1, y1] = own.box[i];
      const label = own.label[i] < 0 ? "unknown" : details.strings[own.label[i]];
      const facts = [
        ["Image", own.key[i] < 0 ? `number ${own.image[i]}` : details.strings[own.key[i]]], ["Class", label],
        ["Patch", `${own.rank[i] + 1} of ${own.rank.length} by activation`],
        ["Activation", own.activation ? fixed(own.activation[i], 3) : "–"],
        ["Group", own.group[i] < 0 ? "none" : String(own.group[i] + 1)],
        ["Silhouette", own.silhouette ? fixed(own.silhouette[i], 3) : null],
        ["Box", `${x1 - x0} × ${y1 - y0} of ${side} × ${side} px`],
      ].filter(([, text]) => text !== null);
      const shown = own.host[i]
        ? el("div", { class: "host" },
          el("img", { src: `hosts/${own.image[i]}.webp`, width: 384, height: 384, alt: `The image ${details.strings[own.key[i]] || own.image[i]}, class ${label}` }),
          svg("svg", { viewBox: `0 0 ${side} ${side}`, "aria-hidden": "true" },
            svg("rect", { class: "box-rim", x: x0, y: y0, width: x1 - x0, height: y1 - y0 }),
            svg("rect", { class: "box", x: x0, y: y0, width: x1 - x0, height: y1 - y0 })))
        : el("div", { class: "host" }, own.slot[i] < 0 ? null : PSI.thumbnails.thumbnail(row, own.slot[i], said(details, i)),
          el("p", { class: "note" }, "Only the patch is kept: the whole image was left out to keep this report small."));
      body.replaceChildren(
        shown, el("dl", { class: "facts" }, facts.map(([name, text]) => [el("dt", {}, name), el("dd", {}, text)])),
        el("p", { class: "steps" },
          el("button", { type: "button", onclick: () => step(-1) }, "← Previous"),
          el("button", { type: "button", onclick: () => step(1) }, "Next →"),
          el("button", { type: "button", onclick: () => dialog.close() }, "Close")));
    }

    dialog.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, j: 1, k: -1 }[event.key];
      if (by) { step(by); event.preventDefault(); }
      event.stopPropagation();
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => dialog.remove());
    draw();
    document.body.append(dialog);
    dialog.showModal();
  }

  // Silhouette of every patch where the run keeps them, else of the groups.
  function silhouettes(details) {
    const own = details.patches;
    const known = details.clusters.filter((c) => c.silhouette !== null);
    if (!known.length) return null;
    const groups = details.clusters.map((c, g) => ({
      mean: c.silhouette,
      values: own.silhouette ? own.group.flatMap((x, i) => (x === g && own.silhouette[i] !== null ? [own.silhouette[i]] : [])) : [c.silhouette],
    }));
    return el("section", {}, el("h2", {}, "How well each patch sits in its group"),
      el("p", { class: "aside" }, own.silhouette
        ? "One bar per patch: 1 = alike its own group only, 0 = between two groups, below 0 = closer to another group. The line is the group’s mean."
        : "This run keeps the mean silhouette of each group only; scoring it again keeps every patch’s."),
      PSI.charts.silhouettes(groups));
  }

  return { groups, silhouettes, percent };
})();
