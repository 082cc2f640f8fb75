"use strict";
// Patches are tiles of one sheet per channel.
PSI.thumbnails = (() => {
  function thumbnail(row, slot, label) {
    const columns = PSI.core.pictures.columns;
    return PSI.el("span", {
      class: "thumb", role: "img", "aria-label": label,
      style: {
        "background-image": `url("sprites/${row}.webp")`,
        "--columns": columns, "--x": slot % columns, "--y": Math.floor(slot / columns),
      },
    });
  }

  // One tile per group of a channel, its most typical patch; nothing without pictures.
  function medoids(row) {
    if (!PSI.core.pictures) return [];
    const names = PSI.channels.concepts(row);
    return PSI.core.columns.medoids[row].map((slot, i) =>
      (slot < 0 ? null : thumbnail(row, slot, `typical patch of group ${i + 1}${names[i] ? `, ${names[i]}` : ""}`)));
  }

  return { thumbnail, medoids };
})();
