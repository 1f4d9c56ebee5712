"use strict";
(function () {
  const root = document.documentElement;
  const config = { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtons: [["toImage", "resetScale2d"]] };
  const touch = matchMedia("(pointer: coarse)");

  // Colours are written as CSS variables so that one figure serves both the light and the dark page.
  function painted(value, styles) {
    if (typeof value === "string") {
      const match = /^var\((--[\w-]+)\)$/.exec(value);
      return match ? styles.getPropertyValue(match[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => painted(item, styles));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, painted(item, styles)]));
    }
    return value;
  }

  const figures = Array.from(document.querySelectorAll("script[data-plot]"), (source) => ({
    place: document.getElementById(source.dataset.plot),
    figure: JSON.parse(source.textContent),
  }));

  function draw(width) {
    const styles = getComputedStyle(root);
    for (const { place, figure } of figures) {
      const { data, layout } = painted(figure, styles);
      if (touch.matches) layout.dragmode = false;
      if (width) layout.width = Math.min(width, place.clientWidth || width);
      else layout.autosize = true;
      // One chart that cannot be drawn must not take the others with it; its numbers stand below it.
      try {
        Plotly.react(place, data, layout, config);
      } catch (error) {
        place.textContent = "This chart could not be drawn. " + error;
      }
    }
  }

  // Paper is light and narrow whatever the screen is, and cannot unfold anything.
  const paperWidth = 660;
  let unfolded = [];
  addEventListener("beforeprint", () => {
    root.dataset.paper = "";
    unfolded = Array.from(document.querySelectorAll("details.sample:not([open])"));
    for (const item of unfolded) item.open = true;
    draw(paperWidth);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.paper;
    for (const item of unfolded) item.open = false;
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  draw();
})();
