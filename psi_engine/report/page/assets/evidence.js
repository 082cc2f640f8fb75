"use strict";
// What patch swaps and the validation of the run found.
PSI.swaps = (() => {
  const { el } = PSI;
  const NAMES = {
    "non-aligned": "patch of another group",
    random: "patch of another channel",
    "shuffled-position": "same patch, elsewhere",
    "ablate-elsewhere": "blank square elsewhere",
  };
  const HOSTS = {
    top: "Into images that excite the channel most",
    random: "Into random images",
  };

  // One plot per kind of host; hard pastes where there are any.
  function plots(rows, what) {
    const blends = [...new Set(rows.map((r) => r.blend))];
    const blend = blends.includes("hard") ? "hard" : blends[0];
    const hosts = [...new Set(rows.map((r) => r.hosts))];
    return hosts.map((host) => {
      const own = rows.filter((r) => r.hosts === host && r.blend === blend);
      const first = own[0];
      const drawn = [
        { name: "patch of the same group", mean: first.mean_aligned, low: first.aligned_low, high: first.aligned_high, main: true },
        ...own.map((r) => ({ name: NAMES[r.control] || r.control, mean: r.mean_control, low: r.control_low, high: r.control_high })),
      ].filter((r) => [r.mean, r.low, r.high].every((x) => !PSI.numbers.missing(x)));
      const passed = own.filter((r) => r.t_p_holm !== null && r.t_p_holm <= 0.05 && r.mean_difference > 0);
      return el("figure", {},
        el("figcaption", {}, el("b", {}, HOSTS[host] || host), ` (n = ${first.n} ${what}, ${blend} paste)`),
        PSI.charts.intervals(drawn, `Change of activation, ${HOSTS[host] || host}`),
        el("p", { class: "aside" }, passed.length
          ? `The same group’s patch keeps more activation than ${PSI.numbers.listed(passed.map((r) => `a ${NAMES[r.control] || r.control}`.replace("a same patch", "the same patch")))} (paired t-test, Holm-corrected p ≤ 0.05).`
          : "No difference from a control reaches p ≤ 0.05 (paired t-test, Holm-corrected)."));
    });
  }

  const explanation = "Change of the channel’s activation when the square at its peak is replaced, as a share of its range, with 95 % intervals. If groups are what the channel responds to, a patch of the same group should cost least.";

  return { plots, explanation };
})();

PSI.views.evidence = (() => {
  const { el } = PSI;

  const any = () => PSI.core.swaps.length > 0 || PSI.core.parts.length > 0;

  function show(main) {
    main.append(el("h1", { tabindex: -1 }, "Evidence beyond the scores"));
    if (!any()) main.append(el("p", {}, "This run has neither been validated nor swapped: psi-engine validate RUN, psi-engine swap RUN."));
    const layers = [...new Set(PSI.core.swaps.map((r) => r.layer))];
    if (layers.length) {
      main.append(el("section", {}, el("h2", {}, "Patch swaps"), el("p", { class: "aside" }, PSI.swaps.explanation),
        layers.map((layer) => el("div", {}, el("h3", {}, layer),
          el("div", { class: "figures" }, PSI.swaps.plots(PSI.core.swaps.filter((r) => r.layer === layer), "channels"))))));
    }
    for (const part of PSI.core.parts) main.append(section(part));
    return { refresh() {} };
  }

  function section(part) {
    const name = part.part.replace(/-/g, " ");
    return el("section", {}, el("h2", {}, name[0].toUpperCase() + name.slice(1)),
      part.current ? null : el("p", { class: "note" }, "Made from older scores of this run; psi-engine validate brings it up to date."),
      el("ul", { class: "found" }, part.headline.map((text) => el("li", {}, text))),
      part.figures.map((f) => el("figure", { class: "paper" }, el("a", { href: f.file },
        el("img", { src: f.file, width: f.width, height: f.height, alt: `Figure of ${name}. ${part.headline.join(" ")}` })))),
      part.notes.length ? el("ul", { class: "aside" }, part.notes.map((text) => el("li", {}, text))) : null);
  }

  return { show, any, title: () => "Evidence" };
})();
