"use strict";
addEventListener("DOMContentLoaded", () => {
  // What a blurred text says is neither selectable, nor found by a search, nor read out, until it is asked for.
  for (const box of document.querySelectorAll(".reveal")) {
    const veil = box.parentElement.querySelector(".veil");
    const reveal = () => { veil.inert = !box.checked; };
    box.addEventListener("change", reveal);
    reveal();
  }

  const form = document.getElementById("filters");
  if (!form) return;
  form.hidden = false;
  const plots = Array.from(document.querySelectorAll(".plot"));

  function unchecked(kind) {
    const boxes = form.querySelectorAll(`input[name="${kind}"]:not(:checked)`);
    return new Set(Array.from(boxes, (box) => box.value));
  }

  function apply() {
    const without = { arm: unchecked("arm"), category: unchecked("category") };
    for (const item of document.querySelectorAll("main [data-arm], main [data-category]")) {
      const { arm, category } = item.dataset;
      item.hidden = without.arm.has(arm) || without.category.has(category);
    }
    for (const plot of plots) show(plot, without);
  }

  // A front among the arms that are shown: none on it is beaten in both drift and score by another.
  function front(traces, higher) {
    const sign = higher ? 1 : -1;
    const points = traces.map((trace) => [trace.x[0], trace.y[0]]);
    points.sort((a, b) => a[0] - b[0] || sign * (b[1] - a[1]));
    let best = -Infinity;
    return points.filter(([, score]) => sign * score > best && ((best = sign * score), true));
  }

  function show(plot, without) {
    const traces = plot.data || [];
    const has = (set, value) => value !== undefined && set.has(String(value));
    const wanted = traces.map(({ meta }) => !(meta && (has(without.arm, meta.arm) || has(without.category, meta.category))));
    const changed = traces.map((_, index) => index).filter((index) => (traces[index].visible !== false) !== wanted[index]);
    if (!changed.length) return;
    const line = traces.findIndex(({ meta }) => meta && meta.front);
    if (line >= 0) {
      const edge = front(traces.filter(({ meta }, index) => meta && meta.arm !== undefined && wanted[index]), traces[line].meta.higher);
      traces[line].x = edge.map(([drift]) => drift);
      traces[line].y = edge.map(([, score]) => score);
    }
    Plotly.restyle(plot, { visible: changed.map((index) => wanted[index]) }, changed);
  }

  form.addEventListener("change", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  // Drawing anew, for another colour scheme or for paper, shows every trace again; these hear of it after the drawing.
  addEventListener("beforeprint", apply);
  addEventListener("afterprint", apply);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
});
