"use strict";
// The verdict of a channel and each of its numbers in a sentence a newcomer can read.
PSI.explain = (() => {
  const { p_is, percent, listed, plural, fixed, spread, share } = PSI.numbers;
  const value = (name, row) => PSI.channels.value(name, row);

  // Components of this channel, the weakest test first.
  function weakest(row) {
    return PSI.core.components
      .filter((c) => value(`${c.key}_p`, row) !== null)
      .sort((a, b) => value(`${b.key}_p`, row) - value(`${a.key}_p`, row))[0];
  }

  function verdict(row) {
    const name = PSI.verdicts.of(row);
    const rate = percent(PSI.verdicts.level());
    if (name === "not scorable") {
      return `Not scorable: ${value("reason", row) || "there was not enough to test"}.`;
    }
    const all = listed(PSI.core.components.filter((c) => value(`${c.key}_p`, row) !== null).map((c) => c.name));
    const adjusted = p_is(value("psi_p_adj", row), "PSI’s adjusted p");
    if (name === "polysemantic") {
      const groups = value("n_clusters", row);
      const names = PSI.channels.concepts(row).filter(Boolean);
      const called = names.length ? `, closest in name to ${listed(names)}` : "";
      return `Polysemantic at a false discovery rate of ${rate}: ${all} beat${all.length > 1 ? "" : "s"} chance (${adjusted}). `
        + `Its strongest patches fall into ${plural(groups, "group")}${called}.`;
    }
    const weak = weakest(row);
    const alike = value("clarity_p_adj", row);
    const why = `${weak.name} is its weakest test (${p_is(value(`${weak.key}_p`, row))}; ${adjusted}, needed: ${percent(PSI.verdicts.level())} or less)`;
    const caution = "The groups below are the best split found, not evidence of several meanings.";
    if (name === "monosemantic") {
      return `Monosemantic at a false discovery rate of ${rate}: not shown to hold several kinds, as ${why}. `
        + `Its patches are more alike than random ones (adjusted ${p_is(alike)}). ${caution}`;
    }
    const told = alike === null ? "" : ` (adjusted ${p_is(alike)})`;
    return `Random-like at a false discovery rate of ${rate}: ${why}, and its patches are no more alike than random patches of the layer${told}. ${caution}`;
  }

  function psi(row) {
    const low = value("psi_low", row);
    const range = low === null ? "" : `; 95 % interval ${share(low)} to ${share(value("psi_high", row))}`;
    const used = PSI.core.components.filter((c) => value(`${c.key}_hat`, row) !== null);
    const product = used.length > 1 ? `The product of how far ${listed(used.map((c) => c.name))} rise above chance, each from 0 to 1` : `How far ${used[0].name} rises above chance, from 0 to 1`;
    return `${product}${range}. A channel like chance has about ${fixed(0.5 ** used.length, 2)}.`;
  }

  // Observed beside chance: "0.31; chance gives 0.18 ± 0.02, p = 0.001".
  function component(c, row) {
    const [mean, std] = [value(`${c.key}_null_mean`, row), value(`${c.key}_null_std`, row)];
    return `chance gives ${fixed(mean)}\u00a0±\u00a0${spread(std, 3)}, ${p_is(value(`${c.key}_p`, row))}`;
  }

  function beats(c, row) {
    const adjusted = value(`${c.key}_p_adj`, row);
    if (adjusted === null) return "not tested";
    return `${adjusted <= PSI.verdicts.level() ? "beats chance" : "does not beat chance"} (adjusted ${p_is(adjusted)})`;
  }

  // Headline of the whole run at the chosen level.
  function headline() {
    const found = PSI.verdicts.counts();
    const total = PSI.channels.count;
    const number = found.polysemantic;
    const opening = number === 0 ? `None of ${PSI.numbers.count(total)} channels is` : number === 1
      ? `One of ${PSI.numbers.count(total)} channels is` : `${PSI.numbers.count(number)} of ${PSI.numbers.count(total)} channels are`;
    // Layers are adjusted one by one: of all channels together no rate is promised.
    const within = PSI.core.layers.length > 1 ? ", controlled within each layer" : "";
    return `${opening} polysemantic at a false discovery rate of ${percent(PSI.verdicts.level())}${within}`;
  }

  function by_layer() {
    const { layers, columns } = PSI.core;
    if (layers.length < 2 || layers.length > 6) return "";
    const parts = layers.map((name, i) => {
      const n = PSI.verdicts.counts(PSI.verdicts.level(), i).polysemantic;
      const of = columns.layer.filter((x) => x === i).length;
      return `${n === 0 ? "none" : PSI.numbers.count(n)} of ${PSI.numbers.count(of)} in ${name}`;
    });
    const text = listed(parts);
    return `${text[0].toUpperCase()}${text.slice(1)}.`;
  }

  return { verdict, psi, component, beats, headline, by_layer };
})();
