"use strict";
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
// Filters the incorrect predictions by class, a screenful at a time. Without JavaScript all of them are visible.
(() => {
  const gallery = document.getElementById("incorrect");
  if (!gallery) return;
  const SCREENFUL = 40;
  const choices = ["true", "predicted"].map((name) => document.getElementById(`by-${name}`));
  const more = document.getElementById("more");
  const status = document.getElementById("count");
  const items = [...gallery.children];
  let limit = SCREENFUL;

  const show = () => {
    const [actual, predicted] = choices.map((choice) => choice.value);
    let found = 0;
    for (const item of items) {
      const fits = (!actual || item.dataset.true === actual) && (!predicted || item.dataset.predicted === predicted);
      if (fits) found += 1;
      item.hidden = !fits || found > limit;
    }
    const visible = Math.min(found, limit);
    more.hidden = visible === found;
    status.textContent = found ? `${visible} of ${found} shown` : "No incorrect prediction of these classes";
  };
  const first = () => { limit = SCREENFUL; show(); };

  choices.forEach((choice) => choice.addEventListener("change", first));
  more.addEventListener("click", () => {
    const next = items.filter((item) => !item.hidden).length;
    limit += SCREENFUL;
    show();
    const item = items.filter((each) => !each.hidden)[next];
    if (item) { item.tabIndex = -1; item.focus({ preventScroll: true }); }
  });
  document.querySelectorAll("a[data-true]").forEach((link) => link.addEventListener("click", () => {
    choices[0].value = link.dataset.true;
    choices[1].value = link.dataset.predicted;
    first();
  }));
  document.getElementById("filters").hidden = false;
  show();
})();
